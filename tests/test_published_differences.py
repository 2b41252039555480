"""Where the product differs from the published code on purpose: each difference shown on both.

The other sides are torch's own optimiser and the published rules, written out. docs/methods.md
lists the differences with the tests that hold them.
"""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_runs import CPU, corpus, home, search_config
from torch import Tensor, nn

from rnnnas.data.corpus import Corpus
from rnnnas.data.text_streams import Streams, WindowConfig, window_lengths
from rnnnas.engine.job import Position
from rnnnas.engine.steps import evaluate, weight_step
from rnnnas.lm import search_cell
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.optim import Average
from rnnnas.searching.supernet import SearchJob
from rnnnas.types import Batch, Loss

__all__ = ["corpus", "home"]  # fixtures

DOUBLE = torch.float64


class Weight(nn.Module):
    """A weight whose gradient is what the batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=DOUBLE))

    def forward(self, batch: Batch, state: Any, mixtures: Any, noise: Any) -> Loss:
        value = (self.w * batch.inputs).sum()
        return Loss(value=value, count=1, hidden_state=None, penalty=value.new_zeros(()))


def gradients() -> list[Tensor]:
    return [torch.tensor([float(k)], dtype=DOUBLE) for k in (1, 2, 4, 8)]


def test_the_average_starts_with_the_first_step_and_torchs_with_the_second() -> None:
    own, theirs = Weight(), Weight()
    sgd = torch.optim.SGD(own.parameters(), lr=0.1)
    asgd = torch.optim.ASGD(theirs.parameters(), lr=0.1, t0=0, lambd=0.0)
    average = Average(dict(own.named_parameters()))
    seen = []
    for g in gradients():
        weight_step(own, sgd, Batch(g, g), None, {}, None, lr=0.1, clip=0.0)
        average.update(dict(own.named_parameters()))
        theirs.w.grad = g.clone()
        asgd.step()
        torch.testing.assert_close(theirs.w, own.w)  # the iterates are the same
        seen.append(own.w.detach().clone())
    torch.testing.assert_close(average.weights["w"], torch.stack(seen).mean(0))
    torch.testing.assert_close(asgd.state[theirs.w]["ax"], torch.stack(seen[1:]).mean(0))


def test_a_windows_step_size_holds_for_its_own_step_and_torchs_for_the_next() -> None:
    own, theirs = Weight(), Weight()
    sgd = torch.optim.SGD(own.parameters(), lr=1.0)
    asgd = torch.optim.ASGD(theirs.parameters(), lr=1.0, t0=0, lambd=0.0)
    sizes = [1.0, 0.5, 2.0, 0.25]
    moved = []
    for lr, g in zip(sizes, gradients(), strict=True):
        before = own.w.detach().clone(), theirs.w.detach().clone()
        weight_step(own, sgd, Batch(g, g), None, {}, None, lr=lr, clip=0.0)
        asgd.param_groups[0]["lr"] = lr  # as the published training does before each step
        theirs.w.grad = g.clone()
        asgd.step()
        after = own.w.detach(), theirs.w.detach()
        moved.append([float((b - a) / g) for b, a in zip(before, after, strict=True)])
    assert [a for a, _ in moved] == pytest.approx(sizes)
    assert [b for _, b in moved] == pytest.approx([1.0, *sizes[:-1]])


def network(cell: Any, seed: int = 0) -> RecurrentLM:
    net = RecurrentLM(
        ModelConfig(hidden=5, nodes=2), 9, cell, noise=NoiseConfig(), penalty=PenaltyConfig(),
        generator=torch.Generator().manual_seed(seed),
    ).double()  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20)
    return net


def test_an_evaluation_divides_by_the_targets() -> None:
    """The published one divides by the rows, of which the last has no target of its own."""
    net = network(recurrent_space(2).sample(random.Random(1)))
    tokens = np.random.RandomState(0).randint(0, 9, 91).astype(np.int64)
    streams = Streams(tokens, 3, CPU)
    score = evaluate(net, streams, {})
    rows = len(tokens) // 3
    batch = streams.window(0, rows - 1)
    with torch.no_grad():
        logits, _ = net.logits(batch.inputs, None)
    nats = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    assert score.tokens == 3 * (rows - 1)
    assert score.loss == pytest.approx(float(nats) / (3 * (rows - 1)), rel=1e-12)
    published = math.exp(float(nats) / (3 * rows))
    assert published < score.perplexity


def test_the_network_under_search_is_evaluated_with_the_batchs_own_statistics() -> None:
    """The published one takes running statistics, which mix all nodes and steps."""
    space = recurrent_space(2)
    net = network(space)
    assert not list(net.named_buffers())  # there are none to run along
    mixture = {"recurrent": Mixture(torch.full((len(space.edges), 5), 0.2, dtype=DOUBLE))}
    ids = torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(1))
    batch = Batch(ids[:-1], ids[1:])
    with torch.no_grad():
        alone = net(batch, None, mixture, None)
        state = alone.hidden_state
    # Statistics of this batch at this step: every unit has the mean 0 over the streams.
    assert isinstance(state, Tensor)
    torch.testing.assert_close(state.mean(0), torch.zeros(5, dtype=DOUBLE), rtol=0, atol=1e-12)
    running = _with_running_statistics(net, space, batch)
    assert abs(running - float(alone.value)) > 1e-3


def _with_running_statistics(net: RecurrentLM, space: CellSpace, batch: Batch) -> float:
    """The loss as one BatchNorm1d for all nodes and steps gives it, after a pass in training."""
    norm = nn.BatchNorm1d(5, affine=False).double()
    weights = torch.full((len(space.edges), 5), 0.2, dtype=DOUBLE)

    def loss() -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search_cell, "normalise", lambda state, ranks=None: norm(state))
            words = F.embedding(batch.inputs, net.embedding)
            start = words.new_zeros(words.shape[1:])
            raw = search_cell.unroll_reference(
                words, start, net.first, net.nodes, space, weights, None, None
            )
        logits = F.linear(raw, net.embedding, net.bias)
        return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())

    with torch.no_grad():
        for _ in range(20):
            loss()
        norm.eval()
        return float(loss())


@pytest.mark.parametrize("bptt", [5, 7])
def test_a_last_window_of_one_target_is_kept(bptt: int) -> None:
    """The published training leaves the last targets of a stream out where they are too few."""
    config = WindowConfig(bptt=bptt, halved=0.0)
    lengths = window_lengths(config, 3 * bptt + 2, random.Random(0))
    assert lengths == [bptt] * 3 + [1]


def test_alphas_see_whole_windows_one_after_another(corpus: Corpus) -> None:
    """Whole as in the published code, also after a halved one; and not overlapping, as there."""
    job = SearchJob(search_config("windows.halved=0.5", "windows.bptt=10"), corpus, CPU)
    assert {5, 10} <= set(job.lengths(0))
    place, begun = 0, []
    for k, steps in enumerate([10, 5, 5, 10, 5, 10]):
        batch, place, fresh = job.task.alpha_batch(Position(step=k, start=7 * k), place)
        assert len(batch.inputs) == 10 and steps in (5, 10)
        begun.append((place - 10, fresh))
    assert begun[:3] == [(0, False), (10, False), (20, False)]
    last = (job.alpha.length - 1) // 10 * 10
    _, place, fresh = job.task.alpha_batch(Position(), last)
    assert (place, fresh) == (10, True), "from the beginning, without the state of the end"


def test_alphas_of_a_short_text_see_what_there_is(corpus: Corpus) -> None:
    job = SearchJob(search_config("windows.bptt=50000"), corpus, CPU)
    batch, _, _ = job.task.alpha_batch(Position(), 0)
    assert len(batch.inputs) == job.alpha.length - 1


def test_every_test_that_the_page_names_exists() -> None:
    root = Path(__file__).parent.parent
    page = (root / "docs/methods.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", page)
    assert len(named) > 15
    for file, test in named:
        assert f"\ndef {test}(" in (root / file).read_text(encoding="utf-8"), (file, test)
