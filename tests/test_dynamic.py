"""Dynamic evaluation against the published formula, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_torch import without_kernels
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.evaluation import dynamic, log_probs
from rnnnas.evaluation.dynamic import Dynamic, DynamicConfig, gradient_rms
from rnnnas.evaluation.log_probs import Scores, score
from rnnnas.evaluation.neural_cache import Cache, with_cache
from rnnnas.lm.fast import cpu_library
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.genotype import Genotype
from rnnnas.types import Batch, HiddenState

CELL = Genotype.from_text("tanh0 relu1 sigmoid1 identity0 concat 2,3,4").recurrent
WORDS = 11


def make_net(seed: int, path: str = "fast") -> RecurrentLM:
    net = RecurrentLM(
        ModelConfig(hidden=5, path=path),  # type: ignore[arg-type]
        WORDS, CELL, noise=NoiseConfig(dropout=0.5), penalty=PenaltyConfig(ar=1.0, tar=1.0),
        generator=torch.Generator().manual_seed(seed),
    ).double()  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + 9)) * 0.5)
    return net


def make_batches(seed: int, count: int, steps: int, streams: int) -> list[Batch]:
    draws = torch.Generator().manual_seed(seed)
    text = torch.randint(0, WORDS, (count * steps + 1, streams), generator=draws)
    cuts = range(0, count * steps, steps)
    return [Batch(text[i : i + steps], text[i + 1 : i + steps + 1]) for i in cuts]


def gradients(
    net: RecurrentLM, batch: Batch, hidden_state: HiddenState
) -> tuple[float, dict[str, Tensor]]:
    """The mean loss of a window and its gradients, by plain cross entropy over logits."""
    logits, _ = net.logits(batch.inputs, hidden_state)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    names = dict(net.named_parameters())
    grads = torch.autograd.grad(loss, list(names.values()))
    return float(loss.detach()), dict(zip(names, grads, strict=True))


def next_state(net: RecurrentLM, batch: Batch, hidden_state: HiddenState) -> HiddenState:
    with torch.no_grad():
        return net.logits(batch.inputs, hidden_state)[1]


def plain_scores(net: RecurrentLM, batches: list[Batch]) -> Iterator[Scores]:
    hidden_state: HiddenState = None
    for batch in batches:
        scores, hidden_state = score(net, batch, hidden_state)
        yield scores


@pytest.mark.parametrize("seed", range(3))
def test_gradient_rms(seed: int) -> None:
    net = make_net(seed)
    batches = make_batches(seed, 4, 5, 3)
    squares = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    hidden_state: HiddenState = None
    for batch in batches:
        for name, grad in gradients(net, batch, hidden_state)[1].items():
            squares[name] += grad**2 / 4
        hidden_state = next_state(net, batch, hidden_state)
    rms = gradient_rms(net, iter(batches))
    assert set(rms) == set(squares) and len(rms) == 4
    for name, total in squares.items():
        torch.testing.assert_close(rms[name], total.sqrt(), rtol=1e-9, atol=1e-14)
        assert not rms[name].requires_grad
    with pytest.raises(ValueError, match="at least one window"):
        gradient_rms(net, [])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("path", "streams"), [("fast", 1), ("reference", 1), ("fast", 3)])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_formula(
    monkeypatch: pytest.MonkeyPatch, seed: int, path: str, streams: int, compiled: bool
) -> None:
    """θ - lr g / (rms + ε) + min(decay rms / mean rms, 1) (θ_g - θ), over several windows."""
    if not compiled:
        without_kernels(monkeypatch)
    elif cpu_library.built().library is None:
        pytest.skip(cpu_library.built().reason)
    net = make_net(seed, path)
    rms = gradient_rms(net, make_batches(seed + 50, 3, 5, 2))
    config = DynamicConfig(lr=3e-2, decay=0.4, epsilon=1e-3)
    mean = torch.cat([r.flatten() for r in rms.values()]).mean()
    clipped = sum(int((0.4 * r / mean > 1).sum()) for r in rms.values())
    assert 0 < clipped < 200  # both sides of the limit are tested
    theta = make_net(seed, path)  # a second copy, moved by the formula
    trained = {name: p.detach().clone() for name, p in net.named_parameters()}
    moving = Dynamic(net, rms, config)
    hidden_state: HiddenState = None
    own_state: HiddenState = None
    for batch in make_batches(seed + 70, 4, 5, streams):
        loss, grads = gradients(theta, batch, hidden_state)
        hidden_state = next_state(theta, batch, hidden_state)
        scores, own_state = moving.score(batch, own_state)
        assert -float(scores.log_probs.mean()) == pytest.approx(loss, rel=1e-12)
        torch.testing.assert_close(own_state, hidden_state, rtol=1e-11, atol=1e-12)
        assert torch.equal(scores.targets, batch.targets)
        torch.testing.assert_close(scores.outputs[-1], hidden_state, rtol=1e-11, atol=1e-12)
        with torch.no_grad():
            for name, p in theta.named_parameters():
                back = torch.minimum(0.4 * rms[name] / mean, torch.tensor(1.0))
                step = 3e-2 * grads[name] / (rms[name] + 1e-3)
                p.copy_(p - step + back * (trained[name] - p))
                assert float((p - trained[name]).abs().max()) > 1e-3
        for name, p in theta.named_parameters():
            torch.testing.assert_close(moving.weights[name], p.detach(), rtol=1e-9, atol=1e-11)
    for name, p in net.named_parameters():
        assert torch.equal(p, trained[name]) and p.grad is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("single", [False, True])
def test_without_a_step_it_is_the_plain_evaluation(seed: int, single: bool) -> None:
    net = make_net(seed).float() if single else make_net(seed)
    batches = make_batches(seed, 6, 5, 1)
    rms = gradient_rms(net, batches)
    tight = 1e-5 if single else 1e-12
    for decay in (0.0, 0.1):
        moving = Dynamic(net, rms, DynamicConfig(lr=0.0, decay=decay))
        hidden_state: HiddenState = None
        for batch, plain in zip(batches, plain_scores(net, batches), strict=True):
            scores, hidden_state = moving.score(batch, hidden_state)
            for one, other in zip(scores, plain, strict=True):  # sums run in another order
                torch.testing.assert_close(one, other, rtol=tight, atol=tight)
        for name, p in net.named_parameters():
            assert torch.equal(moving.weights[name], p)


@pytest.mark.parametrize("chunk", [4, 512])
def test_plain_scores_are_the_models_own(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 targets, in parts of 4, too."""
    monkeypatch.setattr(log_probs, "CHUNK", chunk)
    net = make_net(4)
    batch = make_batches(4, 1, 9, 2)[0]
    scores, hidden_state = score(net, batch, None)
    with torch.no_grad():
        logits, expected = net.logits(batch.inputs, None)
    hits = logits.log_softmax(-1).gather(2, batch.targets.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(scores.log_probs, hits, rtol=1e-12, atol=1e-12)
    assert isinstance(hidden_state, Tensor) and torch.equal(hidden_state, expected)  # type: ignore[arg-type]


def test_a_window_is_scored_before_it_is_learned_from() -> None:
    """The first window's score is the plain one, whatever the step; the second's is not."""
    net = make_net(1)
    batches = make_batches(1, 2, 5, 1)
    moving = Dynamic(net, gradient_rms(net, batches), DynamicConfig(lr=0.1))
    plain = list(plain_scores(net, batches))
    first, hidden_state = moving.score(batches[0], None)
    torch.testing.assert_close(first.log_probs, plain[0].log_probs, rtol=1e-12, atol=1e-12)
    second, _ = moving.score(batches[1], hidden_state)
    assert float((second.log_probs - plain[1].log_probs).abs().max()) > 1e-3


def test_full_decay_forgets_each_window() -> None:
    """Where the decay reaches its limit of 1, what was learned before is gone."""
    net = make_net(2)
    rms = {name: torch.ones_like(p) for name, p in net.named_parameters()}
    moving = Dynamic(net, rms, DynamicConfig(lr=0.1, decay=5.0))
    with torch.no_grad():
        for w in moving.weights.values():
            w.add_(1e-9)
    batch = make_batches(2, 1, 5, 1)[0]
    _, grads = gradients(net, batch, None)
    moving.score(batch, None)
    for name, p in net.named_parameters():
        expected = p.detach() - 0.1 * grads[name] / (1 + moving.config.epsilon)
        torch.testing.assert_close(moving.weights[name], expected, rtol=1e-6, atol=1e-7)


def changing_text(seed: int, steps: int) -> Tensor:
    """Words 0 to 2 in the first half, 5 to 8 in the second. (steps, 1)"""
    draws = torch.Generator().manual_seed(seed)
    half = steps // 2
    first = torch.randint(0, 3, (half, 1), generator=draws)
    return torch.cat([first, torch.randint(5, 9, (steps - half, 1), generator=draws)])


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_a_text_that_changes(seed: int) -> None:
    """A model of uniform text gains on it by the weights, by the cache, and most by both."""
    net = make_net(seed).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for batch in make_batches(seed, 60, 10, 16):
        optimizer.zero_grad()
        net(batch, None, {}, None).value.backward()
        optimizer.step()
    rms = gradient_rms(net, make_batches(seed + 1, 20, 5, 16))
    text = changing_text(seed, 601)
    batches = [Batch(text[i : i + 5], text[i + 1 : i + 6]) for i in range(0, 600, 5)]
    plain = list(plain_scores(net, batches))
    moving = Dynamic(net, rms, DynamicConfig(lr=3e-3, decay=1e-2))
    hidden_state: HiddenState = None
    moved = []
    for batch in batches:
        scores, hidden_state = moving.score(batch, hidden_state)
        moved.append(scores)

    def perplexity(windows: list[Scores]) -> float:
        return math.exp(-float(torch.cat([w.log_probs for w in windows]).mean()))

    def with_memory(windows: list[Scores]) -> list[Scores]:
        cache = Cache(50, 0.1)
        return [with_cache(w, cache, 0.3) for w in windows]

    values = [perplexity(w) for w in (plain, moved, with_memory(plain), with_memory(moved))]
    print("plain {:.2f} dynamic {:.2f} cache {:.2f} both {:.2f}".format(*values))
    assert values[0] > 9  # of the 11 words that it was trained on
    assert values[1] < 0.8 * values[0] and values[2] < 0.8 * values[0]
    assert values[3] < min(values[1], values[2])


@pytest.mark.parametrize(
    "values", [{"lr": -1.0}, {"lr": math.nan}, {"decay": -0.1}, {"decay": math.inf}, {"steps": 0},
               {"epsilon": 0.0}, {"streams": 0}, {"windows": 0}],
)  # fmt: skip
def test_senseless_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"dynamic.{next(iter(values))}"):
        DynamicConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_the_decoder_by_hand_equals_automatic_differentiation(seed: int) -> None:
    """The plain softmax has a faster form; mixtures of softmaxes take the general one."""
    net = make_net(seed)
    batches = make_batches(seed, 4, 5, 3)
    rms = gradient_rms(net, batches)
    config = DynamicConfig(lr=0.01, decay=0.1)
    found = []
    for plain in (True, False):
        dynamic = Dynamic(net, rms, config)
        assert dynamic._plain
        dynamic._plain = plain
        hidden_state: HiddenState = None
        for batch in batches:
            scores, hidden_state = dynamic.score(batch, hidden_state)
        found.append([scores.log_probs, hidden_state, *dynamic.weights.values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru", CELL], ids=["lstm", "gru", "derived"])
def test_every_network_can_follow_a_text(cell: Any) -> None:
    """Layers, baselines and mixtures of softmaxes: exact at rest, better where it repeats."""
    net = RecurrentLM(
        ModelConfig(hidden=5, layers=2, softmaxes=2), WORDS, cell,
        noise=NoiseConfig(), penalty=PenaltyConfig(), generator=torch.Generator().manual_seed(0),
    ).double()  # fmt: skip
    batches = make_batches(0, 1, 5, 2) * 12
    rms = gradient_rms(net, batches)
    plain = [s.log_probs for s in plain_scores(net, batches)]
    for lr in (0.0, 0.003):
        dynamic = Dynamic(net, rms, DynamicConfig(lr=lr, decay=0.0))
        hidden_state: HiddenState = None
        moved = []
        for batch in batches:
            scores, hidden_state = dynamic.score(batch, hidden_state)
            moved.append(scores.log_probs)
        if lr == 0.0:
            torch.testing.assert_close(moved, plain, rtol=1e-12, atol=1e-12)
        else:
            assert float(moved[-1].mean()) > float(plain[-1].mean()) + 0.02


@pytest.mark.skipif(cpu_library.built().library is None, reason=cpu_library.built().reason)
def test_the_number_of_threads_changes_no_weight() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            net = make_net(6)
            rms = gradient_rms(net, make_batches(6, 3, 5, 2))
            moving = Dynamic(net, rms, DynamicConfig(lr=1e-2, decay=0.1))
            hidden_state: HiddenState = None
            for batch in make_batches(7, 4, 5, 2):
                _, hidden_state = moving.score(batch, hidden_state)
            found.append(moving.weights)
    finally:
        torch.set_num_threads(before)
    for name, weight in found[0].items():
        assert torch.equal(weight, found[1][name]) and torch.equal(weight, found[2][name])


@pytest.mark.skipif(cpu_library.built().library is None, reason=cpu_library.built().reason)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_kernels_against_the_formula(dtype: torch.dtype, threads: int) -> None:
    """Over more elements than a part has, and more rows than there are parts."""
    draws = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws, dtype=torch.float64)

    lr, epsilon, relative = 0.3, 0.02, 0.9
    close = 1e-5 if dtype == torch.float32 else 1e-12

    def addresses(*tensors: Tensor) -> list[int]:
        return [t.data_ptr() for t in tensors]

    for rows, width in ((3 * 4096 + 5, 1), (1000, 37), (1, 1), (7, 3)):
        w, trained, rms = rand(rows, width), rand(rows, width), rand(rows, width).abs()
        gradient, x = rand(5, rows), rand(5, width)
        grad = gradient.t() @ x
        pull = (relative * rms).clamp(max=1)
        assert rows < 9 or 0 < int((pull == 1).sum()) < pull.numel()
        wanted = w + pull * (trained - w) - lr * grad / (rms + epsilon)
        back_wanted = gradient @ w
        own, other, grad, trained, rms, gradient, x = (
            t.to(dtype).clone() for t in (w, w, grad, trained, rms, gradient, x)
        )
        cpu_library.function("learn", dtype)(
            own.numel(), *addresses(grad, trained, rms), lr, epsilon, relative,
            own.data_ptr(), threads,
        )  # fmt: skip
        torch.testing.assert_close(own.double(), wanted, rtol=close, atol=10 * close)
        back = torch.full_like(x, float("nan"))
        cpu_library.function("learn_rows", dtype)(
            5, rows, width, *addresses(gradient, x, trained, rms), lr, epsilon, relative,
            *addresses(other, back), threads,
        )  # fmt: skip
        torch.testing.assert_close(other.double(), wanted, rtol=close, atol=10 * close)
        torch.testing.assert_close(back.double(), back_wanted, rtol=close, atol=100 * close)


def test_windows_of_many_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product makes the embedding's gradient then; the weights move as by rows."""
    found = []
    for few in (0, 16):
        monkeypatch.setattr(dynamic, "FEW", few)
        net = make_net(8)
        moving = Dynamic(net, gradient_rms(net, make_batches(8, 2, 5, 2)), DynamicConfig(lr=1e-2))
        hidden_state: HiddenState = None
        for batch in make_batches(9, 3, 5, 3):
            _, hidden_state = moving.score(batch, hidden_state)
        found.append(moving.weights)
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-11, atol=1e-13)


def test_statistics_of_another_model_are_refused() -> None:
    """A kernel would read beyond them."""
    net = make_net(1)
    rms = gradient_rms(net, make_batches(1, 2, 5, 2))
    rms["bias"] = rms["bias"][:-1]
    with pytest.raises(ValueError, match="a tensor of shape"):
        Dynamic(net, rms, DynamicConfig())
