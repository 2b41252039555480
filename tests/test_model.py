"""The language model: sizes, start, the loss of a window by an independent formula, carries."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import SILENCE, LMNoise, NoiseConfig
from rnnnas.nas.genotype import CellGene, Genotype
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.relax.darts import Darts
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.nas.zoo import ZOO
from rnnnas.types import Batch

DOUBLE = torch.float64
V, H, T, B = 13, 5, 6, 4
NOISY = NoiseConfig(dropout=0.4, dropouti=0.3, dropoute=0.2, dropoutx=0.3, dropouth=0.25)
PENALTY = PenaltyConfig(ar=0.3, tar=0.7)
DERIVED = Genotype.from_text("sigmoid0 relu1 tanh1 identity2 concat 2,4").recurrent
SEARCHED = recurrent_space(3)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lm(
    cell: CellGene | CellSpace, *, path: Any = "fast", seed: int = 0, hidden: int = H,
    noise: NoiseConfig = NOISY, penalty: PenaltyConfig = PENALTY,
) -> RecurrentLM:  # fmt: skip
    """A network in float64, its weights large enough for every gate to open and close."""
    net = RecurrentLM(
        ModelConfig(hidden=hidden, path=path), V, cell,
        noise=noise, penalty=penalty, generator=seeded(seed),
    ).double()  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, dtype=DOUBLE, generator=seeded(seed + p.numel())))
    return net


def window(seed: int = 0, steps: int = T) -> Batch:
    """The last word of the vocabulary is among its inputs, and not always a target."""
    ids = torch.randint(V, (steps + 1, B), generator=seeded(seed))
    ids[0, 0] = V - 1
    return Batch(ids[:-1], ids[1:])


def mixture(space: CellSpace, seed: int = 0) -> dict[str, Mixture]:
    logits = torch.randn(len(space.edges), len(space.ops), dtype=DOUBLE, generator=seeded(seed))
    return {"recurrent": Mixture(logits.softmax(-1).requires_grad_())}


# The formula


def sigma(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


OPS: dict[str, Any] = {
    "tanh": lambda x: 1 - 2 / (1 + torch.exp(2 * x)),
    "relu": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "sigmoid": sigma,
    "identity": lambda x: x,
}


def formula(
    leaves: Mapping[str, Tensor],
    cell: CellGene | CellSpace,
    batch: Batch,
    hidden_state: Tensor,
    noise: LMNoise,
    mixed: Tensor | None = None,
    penalty: PenaltyConfig = PENALTY,
) -> tuple[Tensor, Tensor, Tensor]:
    """(nats a target, penalty, raw outputs), stream by stream, from the paper's equations.

    `leaves` has the input embedding and the decoder apart: "embedding" and "decoder".
    """

    def of(mask: Tensor | None, *index: int) -> Tensor | float:
        return 1.0 if mask is None else mask[index]

    def candidate(s: Tensor, inner: Tensor, weight: Tensor, op: str) -> Tensor:
        width = weight.shape[1] // 2
        c, z = sigma(inner @ weight[:, :width]), inner @ weight[:, width:]
        return c * OPS[op](z) + (1 - c) * s

    def normal(rows: list[Tensor]) -> list[Tensor]:
        if isinstance(cell, CellGene):
            return rows
        stack = torch.stack(rows)
        mean = stack.sum(0) / B
        variance = ((stack - mean) ** 2).sum(0) / B
        return [(row - mean) / torch.sqrt(variance + 1e-5) for row in rows]

    streams = range(B)
    h = [hidden_state[b] for b in streams]
    raw = []
    for t in range(len(batch.inputs)):
        first = []
        for b in streams:
            word = int(batch.inputs[t, b])
            x = leaves["embedding"][word] * of(noise.words, word) * of(noise.inputs, 0, b)
            joined = torch.cat([x * of(noise.x, b), h[b] * of(noise.h, b)])
            first.append(candidate(h[b], joined, leaves["first"], "tanh"))
        states = [normal(first)]
        count = len(cell.nodes) if isinstance(cell, CellGene) else cell.nodes
        for i in range(count):
            rows = []
            for b in streams:
                total = torch.zeros(H, dtype=DOUBLE)
                for j in range(i + 1):
                    s = states[j][b]
                    for o, op in enumerate(SEARCHED.ops[1:], 1):
                        if isinstance(cell, CellGene):
                            share: Any = float(tuple(cell.nodes[i][0]) == (op, j))
                        else:
                            assert mixed is not None
                            share = mixed[i * (i + 1) // 2 + j, o]
                        u = candidate(s, s * of(noise.h, b), leaves["nodes"][i], op)
                        total = total + share * u
                rows.append(total)
            states.append(normal(rows))
        chosen = cell.concat if isinstance(cell, CellGene) else range(1, count + 1)
        h = [sum(states[i][b] for i in chosen) / len(chosen) for b in streams]  # type: ignore[misc]
        raw.append(torch.stack(h))
    outputs = torch.stack(raw)
    dropped = outputs * (1.0 if noise.outputs is None else noise.outputs)
    nats = torch.zeros((), dtype=DOUBLE)
    for t in range(len(outputs)):
        for b in streams:
            logits = dropped[t, b] @ leaves["decoder"].T + leaves["bias"]
            nats = nats - logits[batch.targets[t, b]] + torch.log(torch.exp(logits).sum())
    squares = [((outputs[t + 1] - outputs[t]) ** 2).mean() for t in range(len(outputs) - 1)]
    extra = penalty.ar * (dropped**2).mean() + penalty.tar * sum(squares) / max(1, len(squares))
    return nats / batch.targets.numel(), extra, outputs


def untied(net: RecurrentLM) -> dict[str, Tensor]:
    leaves = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    leaves["decoder"] = leaves["embedding"].detach().clone().requires_grad_()
    return leaves


@pytest.mark.parametrize("path", ["fast", "reference"])
@pytest.mark.parametrize("cell", [DERIVED, SEARCHED], ids=["derived", "searched"])
@pytest.mark.parametrize("noisy", [True, False])
def test_a_window_by_the_formula(path: Any, cell: CellGene | CellSpace, noisy: bool) -> None:
    net = lm(cell, path=path)
    batch, hidden_state = window(), torch.randn(B, H, dtype=DOUBLE, generator=seeded(9))
    noise = net.noise(batch, seeded(4)) if noisy else SILENCE
    assert all((mask is not None) == noisy for mask in noise[:5])
    mixtures = mixture(cell) if isinstance(cell, CellSpace) else {}
    loss = net(batch, hidden_state, mixtures, noise)
    leaves = untied(net)
    shares = mixtures["recurrent"].weights if mixtures else None
    nats, extra, raw = formula(leaves, cell, batch, hidden_state, noise, shares)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(loss.value, nats, **close)
    torch.testing.assert_close(loss.penalty, extra, **close)
    torch.testing.assert_close(loss.objective, nats + extra, **close)
    torch.testing.assert_close(loss.hidden_state, raw[-1].detach(), **close)
    assert loss.count == T * B and float(extra.detach()) > 0

    # Gradients too: a tied embedding gets the sum of its two parts.
    if shares is not None:
        leaves["shares"] = shares
    grads = torch.autograd.grad(nats + extra, list(leaves.values()))
    wanted = dict(zip(leaves, grads, strict=True))
    loss.objective.backward()
    for name, p in net.named_parameters():
        assert p.grad is not None
        expected = wanted[name] + wanted["decoder"] if name == "embedding" else wanted[name]
        torch.testing.assert_close(p.grad, expected, **close)
    if not noisy:
        # The last word is an input here, and its row is learnt from that as well.
        assert bool((wanted["embedding"][V - 1] != 0).all())
        assert bool((wanted["decoder"] != 0).all())
    if shares is not None:
        torch.testing.assert_close(shares.grad, wanted["shares"], **close)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("searched", [False, True])
def test_the_fast_path_equals_the_reference(seed: int, searched: bool) -> None:
    """Loss, penalty, carry and every gradient, over random cells and mixtures of eight nodes."""
    space = recurrent_space(8)
    cell = space if searched else space.sample(random.Random(seed))
    mixtures = mixture(space, seed) if searched else {}
    batch, hidden_state = window(seed, 3), torch.randn(B, 7, dtype=DOUBLE, generator=seeded(seed))
    results = []
    for path in ("reference", "eager", "fast"):
        net = lm(cell, path=path, seed=seed, hidden=7)
        loss = net(batch, hidden_state, mixtures, net.noise(batch, seeded(seed)))
        leaves = [*net.parameters(), *(m.weights for m in mixtures.values())]
        grads = torch.autograd.grad(loss.objective, leaves)
        results.append([loss.value, loss.penalty, loss.hidden_state, *grads])
    for one, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)


# Size and start


@pytest.mark.parametrize(
    ("cell", "hidden", "vocabulary", "parameters"),
    [
        (recurrent_space(), 300, 10_000, 4_810_000),
        (ZOO["DARTS_V2"].genotype.recurrent, 850, 10_000, 22_960_000),
        (ZOO["DARTS_V1"].genotype.recurrent, 700, 33_278, 33_127_878),
    ],
    ids=["search-ptb", "ptb", "wikitext-2"],
)
def test_the_published_sizes(
    cell: CellGene | CellSpace, hidden: int, vocabulary: int, parameters: int
) -> None:
    net = RecurrentLM(
        ModelConfig(hidden=hidden), vocabulary, cell,
        noise=NoiseConfig(), penalty=PenaltyConfig(), generator=seeded(0),
    )  # fmt: skip
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert not list(net.buffers())


def fresh(seed: int, cell: CellGene | CellSpace = SEARCHED) -> RecurrentLM:
    return RecurrentLM(
        ModelConfig(hidden=40), 500, cell,
        noise=NoiseConfig(), penalty=PenaltyConfig(), generator=seeded(seed),
    )  # fmt: skip


def test_the_start() -> None:
    net = fresh(1)
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == {
        "embedding": (500, 40), "bias": (500,), "first": (80, 80), "nodes": (3, 40, 80),
    }  # fmt: skip
    assert bool((net.bias == 0).all())
    for name in ("embedding", "first", "nodes"):
        weight = getattr(net, name).detach()
        assert 0.0395 < float(weight.abs().max()) <= 0.04
        assert abs(float(weight.mean())) < 1e-3
        assert abs(float(weight.std()) - 0.04 / 3**0.5) < 5e-4  # uniform, not normal
    assert not torch.equal(net.nodes[0], net.nodes[1])


def test_the_start_depends_on_its_generator_alone() -> None:
    torch.manual_seed(1)
    one = fresh(1).state_dict()
    torch.manual_seed(2)
    same, other = fresh(1).state_dict(), fresh(2).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["embedding"], other["embedding"])
    assert not torch.equal(one["nodes"], other["nodes"])


@pytest.mark.parametrize("bad", [{"hidden": 0}, {"nodes": 0}, {"hidden": -3}])
def test_sizes_below_one_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=rf"model\.{next(iter(bad))} = "):
        ModelConfig(**bad)


def test_a_cell_that_cannot_run_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="'swish'"):
        fresh(0, Genotype.from_text("swish0").recurrent)


def test_what_is_searched_is_named() -> None:
    assert fresh(0).space == {"recurrent": SEARCHED}
    assert fresh(0, DERIVED).space == {} and len(fresh(0, DERIVED).nodes) == 4


# Carries, noise, logits


def test_the_carry_is_the_last_raw_output_detached() -> None:
    net, batch = lm(DERIVED), window()
    noise = net.noise(batch, seeded(1))
    loss = net(batch, None, {}, noise)
    raw, _ = net.outputs(batch.inputs, None, {}, noise)
    assert isinstance(loss.hidden_state, Tensor) and not loss.hidden_state.requires_grad
    assert torch.equal(loss.hidden_state, raw[-1])
    assert raw.shape == (T, B, H) and raw.requires_grad


def test_no_hidden_state_is_one_of_zeros() -> None:
    net, batch = lm(DERIVED), window()
    one, other = net(batch, None, {}, None), net(batch, torch.zeros(B, H).double(), {}, None)
    assert torch.equal(one.value, other.value) and torch.equal(one.hidden_state, other.hidden_state)


@pytest.mark.parametrize("cell", [DERIVED, SEARCHED], ids=["derived", "searched"])
@pytest.mark.parametrize("cut", [1, 3, T - 1])
def test_a_window_in_two_parts_is_the_whole(cell: CellGene | CellSpace, cut: int) -> None:
    net, batch = lm(cell), window()
    mixtures = mixture(cell) if isinstance(cell, CellSpace) else {}
    noise = net.noise(batch, seeded(1))  # fixed over the steps, so the same for both parts
    whole = net(batch, None, mixtures, noise)
    head = net(Batch(batch.inputs[:cut], batch.targets[:cut]), None, mixtures, noise)
    tail = net(Batch(batch.inputs[cut:], batch.targets[cut:]), head.hidden_state, mixtures, noise)
    assert head.count + tail.count == whole.count == T * B
    mean = (head.value * head.count + tail.value * tail.count) / whole.count
    torch.testing.assert_close(mean, whole.value, rtol=1e-12, atol=0)
    torch.testing.assert_close(tail.hidden_state, whole.hidden_state, rtol=1e-12, atol=1e-14)


def test_no_gradient_goes_back_through_the_hidden_state() -> None:
    net, batch = lm(DERIVED), window()
    hidden_state = torch.randn(B, H, dtype=DOUBLE, requires_grad=True)
    second = net(batch, net(batch, hidden_state, {}, None).hidden_state, {}, None)
    assert torch.autograd.grad(second.value, [hidden_state], allow_unused=True) == (None,)


def test_evaluation_has_neither_masks_nor_penalty() -> None:
    net, batch = lm(DERIVED), window()
    evaluated, silent = net(batch, None, {}, None), net(batch, None, {}, SILENCE)
    assert float(evaluated.penalty) == 0 and float(silent.penalty.detach()) > 0
    assert torch.equal(evaluated.value, silent.value)
    noisy = net(batch, None, {}, net.noise(batch, seeded(0)))
    assert float(noisy.value.detach()) != float(evaluated.value.detach())


def test_noise_fits_the_window_and_its_seed() -> None:
    net, batch = lm(DERIVED), window()
    noise, same, other = (net.noise(batch, seeded(s)) for s in (1, 1, 2))
    shapes = {"words": (V, 1), "inputs": (1, B, H), "x": (B, H), "h": (B, H), "outputs": (1, B, H)}
    for name, shape in shapes.items():
        assert getattr(noise, name).shape == shape and getattr(noise, name).dtype == DOUBLE
        assert torch.equal(getattr(noise, name), getattr(same, name))
    assert any(not torch.equal(getattr(noise, n), getattr(other, n)) for n in shapes)


def test_logits_agree_with_the_loss() -> None:
    net, batch = lm(DERIVED), window()
    hidden_state = torch.randn(B, H, dtype=DOUBLE, generator=seeded(3))
    loss = net(batch, hidden_state, {}, None)
    logits, after = net.logits(batch.inputs, hidden_state)
    assert logits.shape == (T, B, V) and not after.requires_grad
    nats = F.cross_entropy(logits.reshape(-1, V), batch.targets.reshape(-1))
    torch.testing.assert_close(nats, loss.value, rtol=1e-12, atol=0)
    assert torch.equal(after, loss.hidden_state)


def test_streams_of_a_derived_cell_do_not_mix() -> None:
    net, batch = lm(DERIVED), window()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = Batch(batch.inputs[:, order], batch.targets[:, order])
    one, other = net(batch, None, {}, None), net(shuffled, None, {}, None)
    torch.testing.assert_close(other.hidden_state, one.hidden_state[order], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(other.value, one.value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", ["fast", "reference"])
def test_float32_stays_close_to_float64(path: Any) -> None:
    """What runs by default differs from the oracle by rounding alone."""
    cell = ZOO["DARTS_V2"].genotype.recurrent
    precise = lm(cell, path=path)
    single = lm(cell, path=path).float()
    batch = window()
    one, other = precise(batch, None, {}, None), single(batch, None, {}, None)
    assert other.value.dtype == torch.float32
    torch.testing.assert_close(other.value.double(), one.value, rtol=1e-5, atol=0)


def test_the_start_of_a_search_is_differentiable_in_the_alphas() -> None:
    net, batch = lm(SEARCHED), window()
    alphas = Darts().init(net.space, seeded(0))
    mixtures = Darts().mix(alphas, net.space, 0.0, seeded(0))
    loss = net(batch, None, {k: Mixture(m.weights.double()) for k, m in mixtures.items()}, None)
    (grad,) = torch.autograd.grad(loss.value, [alphas["recurrent"]])
    assert bool((grad != 0).all())
