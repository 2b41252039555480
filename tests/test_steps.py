"""One weight update against SGD by hand, one evaluation against one token at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rnnnas.data import text_streams
from rnnnas.data.text_streams import Streams
from rnnnas.engine import steps
from rnnnas.engine.metrics import Score
from rnnnas.engine.steps import evaluate, generator, weight_step
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.genotype import CellGene, Genotype
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.types import Batch, Loss

CPU, DOUBLE = torch.device("cpu"), torch.float64
V, H, B, T = 12, 4, 3, 5
DERIVED = Genotype.from_text("sigmoid0 relu1 tanh1").recurrent
SEARCHED = recurrent_space(2)


def lm(cell: CellGene | CellSpace = DERIVED, share: float = 0.3, seed: int = 0) -> RecurrentLM:
    noise = NoiseConfig(dropout=share, dropouti=share, dropoute=share, dropoutx=share)
    net = RecurrentLM(
        ModelConfig(hidden=H), V, cell, noise=noise,
        penalty=PenaltyConfig(ar=0.5, tar=0.9), generator=torch.Generator().manual_seed(seed),
    ).double()  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(12).add_(0.1)
    return net


def window(seed: int = 0) -> Batch:
    ids = torch.randint(V, (T + 1, B), generator=torch.Generator().manual_seed(seed))
    return Batch(ids[:-1], ids[1:])


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


# A step


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("clip", [0.0, 0.2, 1e6])
def test_steps_are_clipped_sgd(clip: float, momentum: float) -> None:
    net = lm()
    optimizer = torch.optim.SGD(net.parameters(), lr=99.0, momentum=momentum, weight_decay=0.05)
    expected, speed = weights_of(net), {}
    hidden_state = None
    for step, lr in enumerate((0.7, 0.3)):
        batch, noise = window(step), net.noise(window(step), generator(1, "t", step, CPU))
        loss = net(batch, hidden_state, {}, noise)
        wanted = loss.value + loss.penalty  # what is minimised, penalties with it
        grads = torch.autograd.grad(wanted, list(net.parameters()))
        length = math.sqrt(sum(float((g**2).sum()) for g in grads))
        coef = min(1.0, clip / (length + 1e-6)) if clip else 1.0
        for (name, w), g in zip(expected.items(), grads, strict=True):
            move = coef * g + 0.05 * w
            speed[name] = momentum * speed[name] + move if name in speed else move
            expected[name] = w - lr * speed[name]
        result, norm = weight_step(net, optimizer, batch, hidden_state, {}, noise, lr=lr, clip=clip)
        assert norm == pytest.approx(length, rel=1e-12)
        assert float(result.value) == pytest.approx(float(loss.value.detach()), rel=1e-14)
        assert float(result.penalty) == pytest.approx(float(loss.penalty.detach()), rel=1e-14)
        assert not result.value.requires_grad and not result.penalty.requires_grad
        assert result.count == T * B and torch.equal(result.hidden_state, loss.hidden_state)
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-11, atol=1e-13)
        hidden_state = result.hidden_state


def test_old_gradients_have_no_say() -> None:
    one, other = lm(), lm()
    for p in other.parameters():
        p.grad = torch.full_like(p, 1e3)
    for net in (one, other):
        sgd = torch.optim.SGD(net.parameters(), lr=1.0)
        weight_step(net, sgd, window(), None, {}, None, lr=0.5, clip=0.25)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_moves_nothing(value: float) -> None:
    net = lm()
    sgd = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    weight_step(net, sgd, window(), None, {}, None, lr=0.1, clip=0.25)
    with torch.no_grad():
        net.bias[3] = value
    before = weights_of(net)
    buffers = [s["momentum_buffer"].clone() for s in sgd.state.values()]
    loss, norm = weight_step(net, sgd, window(), None, {}, None, lr=0.1, clip=0.25)
    assert not (math.isfinite(norm) and math.isfinite(float(loss.value)))
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=0, equal_nan=True)
    after = [s["momentum_buffer"] for s in sgd.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, buffers, strict=True))


class Root(nn.Module):
    """A finite loss with an infinite gradient: the root of a weight that is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, *_: Any) -> Loss:
        value = self.w.sqrt().sum()
        return Loss(value=value, count=1, hidden_state=None, penalty=torch.zeros(()))


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    net = Root()
    sgd = torch.optim.SGD(net.parameters(), lr=1.0)
    loss, norm = weight_step(net, sgd, window(), None, {}, None, lr=0.1, clip=0.25)
    assert float(loss.value) == 0.0 and norm == math.inf and float(net.w.detach()) == 0.0


# An evaluation


def text(count: int, streams: int, seed: int = 0) -> Streams:
    tokens = np.random.default_rng(seed).integers(0, V, count).astype(np.uint16)
    return Streams(tokens, streams, CPU)


@torch.no_grad()
def token_by_token(net: RecurrentLM, over: Streams) -> tuple[float, int]:
    """(nats, targets) with one token at a time, one stream after the other."""
    nats, count = 0.0, 0
    for row in over._rows:
        hidden_state = None
        for word, following in zip(row[:-1].tolist(), row[1:].tolist(), strict=True):
            logits, hidden_state = net.logits(torch.tensor([[word]]), hidden_state)
            scores = logits[0, 0].tolist()
            nats += math.log(sum(math.exp(s) for s in scores)) - scores[following]
            count += 1
    return nats, count


@pytest.mark.parametrize(("count", "streams"), [(150, 1), (151, 2), (200, 7)])
def test_evaluation_equals_one_token_at_a_time(count: int, streams: int) -> None:
    net, over = lm(), text(count, streams)
    score = evaluate(net, over, {})
    nats, targets = token_by_token(net, over)
    # The first token of a stream is no target: dividing by all tokens would be too kind.
    assert score.tokens == targets == streams * (count // streams - 1)
    assert score.nats == pytest.approx(nats, rel=1e-10)
    assert score.perplexity == pytest.approx(math.exp(nats / targets), rel=1e-10)


@pytest.mark.parametrize("cell", [DERIVED, SEARCHED], ids=["derived", "searched"])
@pytest.mark.parametrize("width", [1, 7, 49, 1000])
def test_the_window_of_an_evaluation_does_not_matter(
    cell: CellGene | CellSpace, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, over = lm(cell), text(300, 3)
    mixtures = {}
    if isinstance(cell, CellSpace):
        mixtures = {"recurrent": Mixture(torch.full((3, 5), 0.2, dtype=DOUBLE))}
    usual = evaluate(net, over, mixtures)
    monkeypatch.setattr(steps, "EVALUATION_STEPS", width)
    monkeypatch.setattr(text_streams, "EVALUATION_ROWS", 0)
    other = evaluate(net, over, mixtures)
    assert other.tokens == usual.tokens
    assert abs(other.perplexity / usual.perplexity - 1) < 1e-10


def test_other_weights_are_evaluated_and_nothing_is_left() -> None:
    net, averaged, over = lm(), lm(seed=1), text(90, 2)
    before = weights_of(net)
    score = evaluate(net, over, {}, weights_of(averaged))
    assert score == evaluate(averaged, over, {}) != evaluate(net, over, {})
    for name, p in net.named_parameters():
        assert torch.equal(p.detach(), before[name]) and p.grad is None


def test_an_evaluation_has_no_noise() -> None:
    over = text(90, 2)
    assert evaluate(lm(share=0.9), over, {}) == evaluate(lm(share=0.0), over, {})


def test_scores() -> None:
    score = Score(nats=6.0, tokens=4)
    assert score.loss == 1.5 and score.perplexity == math.exp(1.5)
    assert Score(nats=1e6, tokens=2).perplexity == math.inf
    assert math.isnan(Score(nats=math.nan, tokens=2).perplexity)


# Generators


def test_a_generator_depends_on_all_of_its_arguments() -> None:
    def draw(seed: int, purpose: str, step: int) -> float:
        return float(torch.rand((), generator=generator(seed, purpose, step, CPU)))

    cases = [
        (seed, purpose, step)
        for seed in (0, 1, 2, 11)
        for purpose in ("weights", "alphas", "weight-step")
        for step in (0, 1, 12)
    ]
    assert len({draw(*case) for case in cases}) == len(cases)
    torch.manual_seed(5)
    first = [draw(*case) for case in cases]
    torch.manual_seed(6)
    assert first == [draw(*case) for case in cases]
    assert generator(1, "weights", 0, CPU).device == CPU


def test_generators_are_the_same_on_every_machine() -> None:
    """A run that goes on elsewhere, or after an update, must draw the same numbers."""
    assert generator(1, "weight-step", 7, CPU).initial_seed() == 0x5BB984965B50F123
