"""LSTM and GRU against their equations written out gate by gate; layers against composition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from rnnnas.lm import cell as derived
from rnnnas.lm import lstm_gru
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import SILENCE, LMNoise, NoiseConfig
from rnnnas.nas.genotype import Genotype
from rnnnas.types import Batch, Loss

DOUBLE = torch.float64
V, H, T, B = 13, 5, 6, 4
NOISY = NoiseConfig(
    dropout=0.4, dropouti=0.3, dropoute=0.2, dropoutx=0.3, dropouth=0.25, weightdrop=0.4
)
PENALTY = PenaltyConfig(ar=0.3, tar=0.7)
KINDS: list[Any] = ["lstm", "gru"]
CELL = Genotype.from_text("sigmoid0 relu1 tanh1 concat 2,3").recurrent
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lm(cell: Any, layers: int = 1, *, path: Any = "fast", softmaxes: int = 1) -> RecurrentLM:
    """In float64, weights large enough for every gate to open and close."""
    net = RecurrentLM(
        ModelConfig(hidden=H, path=path, layers=layers, softmaxes=softmaxes), V, cell,
        noise=NOISY, penalty=PENALTY, generator=seeded(0),
    ).double()  # fmt: skip
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(0.6 * torch.randn(p.shape, dtype=DOUBLE, generator=seeded(i)))
    return net


def window(steps: int = T) -> Batch:
    ids = torch.randint(V, (steps + 1, B), generator=seeded(7))
    return Batch(ids[:-1], ids[1:])


def random_state(cell: Any, layers: int) -> tuple[Tensor, ...]:
    """h and c of an LSTM, h of the others, layer by layer."""
    count = layers * (2 if cell == "lstm" else 1)
    return tuple(torch.randn(B, H, dtype=DOUBLE, generator=seeded(k + 50)) for k in range(count))


# The formula


def sigma(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def tanh(x: Tensor) -> Tensor:
    return 2 * sigma(2 * x) - 1


def one_step(kind: str, x: Tensor, state: list[Tensor], w: Mapping[str, Tensor]) -> list[Tensor]:
    """One stream, one step: every gate by its own rows of the weights."""
    h = state[0]

    def part(gate: int, side: str, value: Tensor) -> Tensor:
        rows = slice(gate * H, (gate + 1) * H)
        return w[f"weight_{side}"][rows] @ value + w[f"bias_{side}"][rows]

    if kind == "lstm":
        i, f, o = (sigma(part(g, "ih", x) + part(g, "hh", h)) for g in (0, 1, 3))
        c = f * state[1] + i * tanh(part(2, "ih", x) + part(2, "hh", h))
        return [o * tanh(c), c]
    r, z = (sigma(part(g, "ih", x) + part(g, "hh", h)) for g in (0, 1))
    n = tanh(part(2, "ih", x) + r * part(2, "hh", h))
    return [(1 - z) * n + z * h]


def formula(
    leaves: Mapping[str, Tensor], kind: str, layers: int, batch: Batch,
    hidden_state: tuple[Tensor, ...], noise: LMNoise,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """(nats a target, penalty, states after), stream by stream."""
    each = 2 if kind == "lstm" else 1
    raw = torch.zeros(T, B, H, dtype=DOUBLE)
    after = [torch.zeros(B, H, dtype=DOUBLE) for _ in range(layers * each)]
    for b in range(B):
        states = [[s[b] for s in hidden_state[k * each : (k + 1) * each]] for k in range(layers)]
        rows = []
        for t in range(T):
            word = int(batch.inputs[t, b])
            x = leaves["embedding"][word]
            x = x if noise.words is None else x * noise.words[word]
            x = x if noise.inputs is None else x * noise.inputs[0, b]
            for k in range(layers):
                w = {name: leaves[f"layers.{k + 1}.{name}"] for name in lstm_gru._WEIGHTS}
                masks = ([noise.weights] + [above.weights for above in noise.above])[k:]
                if masks and masks[0] is not None:
                    w["weight_hh"] = w["weight_hh"] * masks[0]
                if k > 0 and noise.above:
                    between = noise.above[k - 1].x
                    assert between is not None
                    x = x * between[b]
                states[k] = one_step(kind, x, states[k], w)
                x = states[k][0]
            rows.append(x)
        raw = raw.index_put((torch.arange(T), torch.tensor(b)), torch.stack(rows))
        for i, s in enumerate(s for state in states for s in state):
            after[i] = after[i].index_put((torch.tensor(b),), s)
    dropped = raw if noise.outputs is None else raw * noise.outputs
    logits = dropped @ leaves["embedding"].T + leaves["bias"]
    hit = logits.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    nats = (torch.log(torch.exp(logits).sum(-1)) - hit).mean()
    tar = ((raw[1:] - raw[:-1]) ** 2).sum() / (T - 1) / B / H
    return nats, PENALTY.ar * (dropped**2).sum() / T / B / H + PENALTY.tar * tar, after


@pytest.mark.parametrize("path", ["fast", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layers", "noisy"), [(1, True), (1, False), (3, True)])
def test_a_window_gate_by_gate(kind: Any, layers: int, noisy: bool, path: Any) -> None:
    """Value, penalty, states and every gradient, with masks and from an initial state."""
    net, batch, hidden_state = lm(kind, layers, path=path), window(), random_state(kind, layers)
    noise = net.noise(batch, seeded(4)) if noisy else SILENCE
    assert (noise.weights is not None) == noisy and len(noise.above) == (layers - 1) * noisy
    loss = net(batch, hidden_state, {}, noise)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    nats, extra, after = formula(leaves, kind, layers, batch, hidden_state, noise)
    torch.testing.assert_close(loss.value, nats, **CLOSE)
    torch.testing.assert_close(loss.penalty, extra, **CLOSE)
    assert isinstance(loss.hidden_state, tuple) and len(loss.hidden_state) == len(after)
    for state, wanted in zip(loss.hidden_state, after, strict=True):
        assert not state.requires_grad
        torch.testing.assert_close(state, wanted.detach(), **CLOSE)
    loss.objective.backward()
    grads = torch.autograd.grad(nats + extra, list(leaves.values()))
    for (name, p), wanted in zip(net.named_parameters(), grads, strict=True):
        assert p.grad is not None and bool((wanted != 0).any()), name
        torch.testing.assert_close(p.grad, wanted, **CLOSE)
    if noisy:  # a dropped weight has no gradient, a kept one a scaled one
        hidden = net.get_parameter("layers.1.weight_hh")
        assert hidden.grad is not None and noise.weights is not None
        assert torch.equal(hidden.grad == 0, noise.weights == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_own_modules_give_the_same(kind: Any) -> None:
    """The gates lie in the order of torch.nn.LSTM and torch.nn.GRU, and the names are theirs."""
    net, batch = lm(kind), window()
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](H, H).double()
    own = {f"{name}_l0": net.get_parameter(f"layers.1.{name}") for name in lstm_gru._WEIGHTS}
    module.load_state_dict(own)
    outputs, _ = module(F.embedding(batch.inputs, net.embedding))
    raw, _ = net.outputs(batch.inputs, None, {}, SILENCE)
    torch.testing.assert_close(raw, outputs, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_stays_close_to_float64(kind: Any) -> None:
    """Single precision may run another kernel than double."""
    net, batch = lm(kind, 2), window()
    noise = net.noise(batch, seeded(1))
    precise = net(batch, None, {}, noise)
    single = net.float().in_float32()
    rounded = single.noise(batch, seeded(1))
    loss = single(batch, None, {}, rounded._replace(
        **{k: getattr(noise, k).float() for k in ("words", "inputs", "outputs", "weights")},
        above=tuple(type(a)(*(m if m is None else m.float() for m in a)) for a in noise.above),
    ))  # fmt: skip
    assert loss.value.dtype == torch.float32
    torch.testing.assert_close(loss.value.double(), precise.value, rtol=1e-5, atol=0)


# Layers and carries

CELLS: list[Any] = ["lstm", "gru", CELL]
IDS = ["lstm", "gru", "derived"]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS, ids=IDS)
@pytest.mark.parametrize("cut", [1, T - 2])
def test_a_window_in_two_parts_is_the_whole(cell: Any, layers: int, cut: int) -> None:
    net, batch = lm(cell, layers), window()
    noise = net.noise(batch, seeded(1))
    whole = net(batch, None, {}, noise)
    head = net(Batch(batch.inputs[:cut], batch.targets[:cut]), None, {}, noise)
    tail = net(Batch(batch.inputs[cut:], batch.targets[cut:]), head.hidden_state, {}, noise)
    mean = (head.value * head.count + tail.value * tail.count) / whole.count
    torch.testing.assert_close(mean, whole.value, rtol=1e-12, atol=0)
    torch.testing.assert_close(tail.hidden_state, whole.hidden_state, rtol=1e-12, atol=1e-14)
    zeros = random_state(cell, layers)
    zeros = tuple(torch.zeros_like(z) for z in zeros)
    given: Any = zeros[0] if cell is CELL and layers == 1 else zeros
    assert torch.equal(net(batch, given, {}, noise).value, whole.value)


def test_a_single_derived_layer_carries_a_tensor_and_several_a_tuple() -> None:
    single, double = (lm(CELL, layers)(window(), None, {}, None) for layers in (1, 2))
    assert isinstance(single.hidden_state, Tensor)
    assert isinstance(double.hidden_state, tuple) and len(double.hidden_state) == 2


def test_derived_layers_are_one_on_top_of_the_other() -> None:
    """Two single layers composed by hand: outputs, carries, gradients; each its own masks."""
    net, batch, hidden_state = lm(CELL, 2), window(), random_state(CELL, 2)
    noise = net.noise(batch, seeded(3))
    raw, after = net.outputs(batch.inputs, hidden_state, {}, noise)
    words = F.embedding(batch.inputs, net.embedding * noise.words) * noise.inputs
    masks = [(noise.x, noise.h), (noise.above[0].x, noise.above[0].h)]
    assert all(mask is not None for pair in masks for mask in pair)
    upper = [net.get_parameter(f"layers.2.{name}") for name in ("first", "nodes")]
    below = derived.unroll(words, hidden_state[0], net.first, net.nodes, CELL, *masks[0])
    above = derived.unroll(below, hidden_state[1], upper[0], upper[1], CELL, *masks[1])
    torch.testing.assert_close(raw, above, **CLOSE)
    torch.testing.assert_close(after, (below[-1].detach(), above[-1].detach()), **CLOSE)
    grads = [torch.autograd.grad(o.sin().sum(), [net.first, *upper]) for o in (raw, above)]
    torch.testing.assert_close(grads[0], grads[1], **CLOSE)


def test_layers_start_apart_and_leave_the_first_as_it_was() -> None:
    def start(cell: Any, layers: int) -> RecurrentLM:
        return RecurrentLM(
            ModelConfig(hidden=30, layers=layers), 50, cell,
            noise=NoiseConfig(), penalty=PenaltyConfig(), generator=seeded(1),
        )  # fmt: skip

    one, two = start(CELL, 1).state_dict(), start(CELL, 2).state_dict()
    assert set(two) - set(one) == {"layers.2.first", "layers.2.nodes"}
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(two["first"], two["layers.2.first"])
    lstm = start("lstm", 2).state_dict()
    assert set(lstm) == {
        "embedding", "bias", *(f"layers.{k}.{n}" for k in (1, 2) for n in lstm_gru._WEIGHTS)
    }  # fmt: skip
    reach = 30**-0.5
    for name in set(lstm) - {"embedding", "bias"}:
        assert 0.85 * reach < float(lstm[name].abs().max()) <= reach, name
    assert not torch.equal(lstm["layers.1.weight_hh"], lstm["layers.2.weight_hh"])


@pytest.mark.parametrize("cell", CELLS, ids=IDS)
def test_other_weights_can_be_handed_in(cell: Any) -> None:
    """As evaluation does with averaged ones, and the architect with shifted ones."""
    net, other, batch = lm(cell, 2), lm(cell, 2), window()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    handed: Loss = functional_call(net, dict(other.named_parameters()), (batch, None, {}, None))
    assert torch.equal(handed.value, other(batch, None, {}, None).value)
    assert not torch.equal(handed.value, net(batch, None, {}, None).value)


@pytest.mark.parametrize("softmaxes", [1, 3])
@pytest.mark.parametrize("cell", CELLS, ids=IDS)
def test_logits_agree_with_the_loss(cell: Any, softmaxes: int) -> None:
    """One word after the other, through the hidden state, as sampling does."""
    net, batch = lm(cell, 2, softmaxes=softmaxes), window()
    loss = net(batch, None, {}, None)
    hidden_state, nats = None, 0.0
    for words, targets in zip(batch.inputs, batch.targets, strict=True):
        logits, hidden_state = net.logits(words.unsqueeze(0), hidden_state)
        assert logits.shape == (1, B, V)
        nats += float(F.cross_entropy(logits[0], targets).detach()) / T
    assert nats == pytest.approx(float(loss.value.detach()), rel=1e-12)
    torch.testing.assert_close(hidden_state, loss.hidden_state, **CLOSE)
