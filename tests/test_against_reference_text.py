"""Training, dynamic evaluation and cache against the specification in `tests/reference`."""

from __future__ import annotations

import math
import random

import pytest
import torch
from reference import averaging
from reference import cache as cache_rule
from reference import dynamic_evaluation as dynamic_rule
from reference.cell import derived_cell, language_model, ones
from test_against_reference import (
    CLOSE,
    DOUBLE,
    Case,
    case,
    masks_of,
    specified,
    weights_of,
)  # fmt: skip
from test_runs import CPU, corpus, home, train_config
from torch import Tensor

from rnnnas.data.corpus import Corpus
from rnnnas.engine.job import Position
from rnnnas.engine.steps import generator
from rnnnas.errors import UsageError
from rnnnas.evaluation.dynamic import Dynamic, DynamicConfig, average_rms, gradient_rms
from rnnnas.evaluation.log_probs import score
from rnnnas.evaluation.neural_cache import Cache, with_cache
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.optim import Average, averaging_starts
from rnnnas.training.run import TrainJob
from rnnnas.types import Batch

__all__ = ["corpus", "home"]  # fixtures


def test_windows_through_the_trainer(corpus: Corpus) -> None:
    """Thirty windows of random length, with noise, penalties, clipping and decay; the second half
    averaged. The reference takes the product's windows and masks, and nothing else.
    """
    config = train_config(
        "windows.bptt=8", "windows.jitter=3", "windows.halved=0.2",
        "windows.shortest=2", "windows.limit=0", "weights.clip=0.2", "weights.weight_decay=1e-3",
        "penalty.ar=0.5", "penalty.tar=0.5", "noise.dropout=0.3", "noise.dropouth=0.2",
        "noise.dropoute=0.1",
    )  # fmt: skip
    job = TrainJob(config, corpus, CPU)
    job.net.double()
    w = weights_of(job.net)  # type: ignore[arg-type]
    h = torch.zeros(config.windows.streams, config.model.hidden, dtype=DOUBLE)
    job.begin_epoch(Position())
    start, averaged, clipped = 0, [], 0
    lengths = job.lengths(0)[:30]
    assert len(lengths) == 30 and len(set(lengths)) > 4
    for k, steps in enumerate(lengths):
        at = Position(window=k, step=k, start=start, progress=0.0)
        batch = job.task.batch(at, steps)
        noise = job.net.noise(batch, generator(config.seed, "weight-step", k, CPU))
        if k == 15:
            job.average = Average(dict(job.net.named_parameters()))
        report = job.step(at, steps, 1.0)

        own = {name: x.requires_grad_() for name, x in w.items()}
        spec = specified(
            job.net, own, (batch, h), masks_of(noise), None, config.penalty,  # type: ignore[arg-type]
        )  # fmt: skip
        g = torch.autograd.grad(spec.loss + spec.penalty, list(own.values()))
        lr = averaging.step_size(config.weights.lr, steps, config.windows.bptt)
        gradient = dict(zip(own, g, strict=True))
        plain = {name: x.detach() for name, x in own.items()}
        w = averaging.sgd(plain, gradient, lr=lr, clip=0.2, decay=1e-3)
        h, start = spec.outputs[-1].detach(), start + steps
        clipped += float(report.norm) > 0.2
        torch.testing.assert_close(report.nats, spec.loss.detach(), **CLOSE)
        if k >= 15:
            averaged.append(w)
    assert clipped > 0
    for name, p in job.net.named_parameters():
        torch.testing.assert_close(p.detach(), w[name], **CLOSE)
    expected = averaging.average(averaged)
    for name, x in job.weights().items():
        torch.testing.assert_close(x, expected[name], **CLOSE)
        assert float((x - w[name]).abs().max()) > 1e-9, "the average is not the last weights"


def test_when_averaging_begins() -> None:
    began = 0
    for seed in range(2000):
        rng = random.Random(seed)
        patience = rng.randint(1, 6)
        curve = [5 - 0.1 * k + rng.gauss(0, 0.3) for k in range(rng.randint(1, 30))]
        found = [k for k in range(len(curve)) if averaging_starts(curve[:k], curve[k], patience)]
        first = found[0] if found else None
        assert first == averaging.begins_after(curve, patience)
        began += first is not None
    assert 500 < began < 2000


def text_case(seed: int, path: str = "fast") -> tuple[Case, list[Batch]]:
    """A derived cell and a text of one to three streams, in windows."""
    found = case(seed, path, searched=False, scale=6.0)
    vocabulary, streams = len(found.net.bias), found.rng.randint(1, 3)
    draws = torch.Generator().manual_seed(seed)
    steps, count = found.rng.randint(1, 6), 5
    ids = torch.randint(vocabulary, (steps * count + 1, streams), generator=draws)
    cuts = range(0, steps * count, steps)
    return found, [Batch(ids[i : i + steps], ids[i + 1 : i + steps + 1]) for i in cuts]


def plain_pass(
    found: Case, w: dict[str, Tensor], batch: Batch, h: Tensor | None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The gradients of a window's mean loss without noise, its log-probabilities, and its end."""
    streams, units = batch.inputs.shape[1], w["embedding"].shape[1]
    own = {name: x.detach().requires_grad_() for name, x in w.items()}
    silent = ones(len(w["bias"]), streams, units)
    h = torch.zeros(streams, units, dtype=DOUBLE) if h is None else h
    cell = found.net.cell
    nodes = [(gene.op, gene.source) for (gene,) in cell.nodes]  # type: ignore[union-attr]
    step = derived_cell(nodes, cell.concat, own, silent)  # type: ignore[union-attr]
    spec = language_model(step, own, *batch, h, silent)
    grads = torch.autograd.grad(spec.loss, list(own.values()))
    return dict(zip(own, grads, strict=True)), spec.log_probs.detach(), spec.outputs[-1].detach()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("average", ["weights", "matrices"])
def test_dynamic_evaluation(seed: int, average: str) -> None:
    found, batches = text_case(seed)
    net = found.net
    trained = weights_of(net)
    gradients: list[dict[str, Tensor]] = []
    h = None
    for batch in batches:
        g, _, h = plain_pass(found, trained, batch, h)
        gradients.append(g)
    rms = dynamic_rule.root_mean_square(gradients)
    for name, value in gradient_rms(net, batches).items():
        torch.testing.assert_close(value, rms[name], **CLOSE)
    means = {
        "weights": dynamic_rule.mean_over_weights(rms),
        "matrices": dynamic_rule.mean_over_matrices(rms),
    }
    assert average_rms(rms, average) == pytest.approx(means[average], rel=1e-12)  # type: ignore[arg-type]
    # A step in proportion to the epsilon, so that rare words' tiny gradients do not throw it off.
    rates = {"lr": 0.02, "decay": 0.3, "epsilon": 0.05}
    config = DynamicConfig(**rates, average=average)  # type: ignore[arg-type]
    moving = Dynamic(net, rms, config)
    theta, h, state = trained, None, None
    for batch in batches:
        scores, state = moving.score(batch, state)
        g, log_probs, h = plain_pass(found, theta, batch, h)
        torch.testing.assert_close(scores.log_probs, log_probs, **CLOSE)
        theta = dynamic_rule.step(theta, trained, g, rms, **rates, mean=means[average])
        for name, value in theta.items():
            torch.testing.assert_close(moving.weights[name], value, **CLOSE)


def test_the_two_averages_of_the_decay_differ_and_the_papers_is_the_default() -> None:
    found, batches = text_case(3)
    rms = gradient_rms(found.net, batches)
    assert DynamicConfig().average == "weights"
    assert average_rms(rms) == average_rms(rms, "weights")
    assert abs(average_rms(rms, "matrices") / average_rms(rms) - 1) > 0.05
    with pytest.raises(UsageError, match="dynamic.average"):
        DynamicConfig(average="tensors")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
def test_the_cache_on_a_network(seed: int) -> None:
    """A stream's words under the mixture of network and cache, whatever its windows."""
    found, batches = text_case(seed)
    net, streams = found.net, batches[0].inputs.shape[1]
    rng = random.Random(seed)
    size, theta, share = rng.randint(1, 12), rng.uniform(0, 1), rng.uniform(0.05, 0.9)
    memory = Cache(size, theta)
    state = None
    scored = []
    for batch in batches:
        scores, state = score(net, batch, state)
        scored.append(with_cache(scores, memory, share).log_probs)
    h = None
    states: list[Tensor] = []
    model: list[Tensor] = []
    trained = weights_of(net)
    silent = ones(len(net.bias), streams, net.config.hidden)
    h = torch.zeros(streams, net.config.hidden, dtype=DOUBLE)
    for batch in batches:
        spec = specified(net, trained, (batch, h), silent, None, PenaltyConfig())
        states.append(spec.outputs)
        model.append(spec.log_probs.exp())
        h = spec.outputs[-1]
    every = torch.cat([b.targets for b in batches])
    for b in range(streams):
        words = every[:, b].tolist()
        vectors = torch.cat(states)[:, b].tolist()
        cached = cache_rule.cache(vectors, words, size, theta)
        expected = cache_rule.mixture(torch.cat(model)[:, b].tolist(), cached, share)
        found_p = torch.cat(scored)[:, b].exp().tolist()
        assert found_p == pytest.approx(expected, rel=1e-10)
        assert math.isnan(cached[0])
