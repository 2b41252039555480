"""Trainings inside of searches against a loop written out: state, clip, step size, decay."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_work import zipf_text
from tiny_home import corpus as corpus
from tiny_home import home as home
from torch.nn import functional as F

from rnnnas.config.presets import resolve
from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.engine.job import Position
from rnnnas.lm.model import RecurrentLM
from rnnnas.lm.noise import SILENCE
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.strategies import Scored
from rnnnas.searching import derive_by_perturbation, supernet
from rnnnas.searching.blackbox import CandidateJob
from rnnnas.searching.cell_training import CellTraining, Course
from rnnnas.searching.derive_by_perturbation import LanguageSearch
from rnnnas.searching.halving import HalvingJob
from rnnnas.searching.run import search
from rnnnas.searching.selection import proposals, race_config
from rnnnas.searching.supernet import SearchJob

HOME_TEXT = zipf_text(30, 400)
CPU = torch.device("cpu")
LR, CLIP, DECAY, BPTT = 9.0, 0.05, 1e-3, 10
SMALL = [
    "model.hidden=6", "model.precision=float32", "model.nodes=3", "windows.streams=6",
    "windows.limit=6", f"windows.bptt={BPTT}", "windows.jitter=3", "valid_streams=6", "epochs=2",
    *(f"noise.dropout{part}=0" for part in ("", "h", "x", "i", "e")), "penalty.ar=0",
    "penalty.tar=0", f"weights.lr={LR}", f"weights.clip={CLIP}", f"weights.weight_decay={DECAY}",
]  # fmt: skip


def config(*settings: str) -> SearchConfig:
    resolved: SearchConfig = resolve(
        "search", preset="smoke", file=None, settings=[*SMALL, *settings],
        flags={"corpus": "tiny", "seed": 3},
    )  # fmt: skip
    return resolved


def by_hand(
    net: RecurrentLM, text: Streams, windows: list[tuple[int, int]], schedule: Callable[..., float]
) -> list[float]:
    """Losses of plain stochastic gradient descent; at least one gradient is clipped."""
    losses, state, clipped = [], None, 0
    for number, (start, steps) in enumerate(windows):
        batch = text.window(start, steps)
        raw, state = net.outputs(batch.inputs, state if start else None, {}, SILENCE)
        loss = F.cross_entropy(net.scores(raw.flatten(0, 1)), batch.targets.flatten())
        net.zero_grad()
        loss.backward()
        trained = [(p, p.grad) for p in net.parameters() if p.grad is not None]
        assert len(trained) == len(list(net.parameters()))
        norm = math.sqrt(sum(float(grad.square().sum()) for _, grad in trained))
        clipped += norm > CLIP
        lr = schedule(number / len(windows)) * steps / BPTT
        with torch.no_grad():
            for p, grad in trained:
                p -= lr * (grad * min(1.0, CLIP / norm) + DECAY * p)
        losses.append(float(loss.detach()))
    assert clipped
    return losses


def cosine(progress: float) -> float:
    return LR * 0.5 * (1 + math.cos(math.pi * progress))


CELL = Genotype.from_text("tanh0 relu1 sigmoid0")


def test_a_training_of_a_race(corpus: Corpus) -> None:
    """Ten windows: of the first six each goes on where the one before ended, then the text begins
    again.
    """
    made = config("method=halving", "blackbox.windows=10", "weights.schedule=cosine")
    course = Course(made, corpus, CPU)
    assert [start == 0 for start, _ in course.windows(0)] == [n in (0, 6) for n in range(10)]
    training = CellTraining(course, CELL, 0, None)
    for _ in range(10):
        training.advance()
    expected = by_hand(course.network(CELL, 0), course.train, course.windows(0), cosine)
    assert training.nats == pytest.approx(expected, rel=1e-5)


def test_a_training_of_random_search(corpus: Corpus) -> None:
    made = config("method=random", "blackbox.windows=10", "weights.schedule=cosine")
    job = CandidateJob(made, corpus, CPU)
    other = CandidateJob(made, corpus, CPU)
    assert [start == 0 for start, _ in job.windows] == [n in (0, 6) for n in range(10)]
    nats = [
        job.step(Position(window=n), steps, 1.0).nats for n, (_, steps) in enumerate(job.windows)
    ]
    assert nats == pytest.approx(by_hand(other.net, job.train, job.windows, cosine), rel=1e-5)


def spied(patch: pytest.MonkeyPatch, module: Any) -> list[dict[str, Any]]:
    """What the weight steps of a module were given, and the state that they gave."""
    original, seen = module.weight_step, []

    def step(net: Any, optimizer: Any, batch: Any, state: Any, *args: Any, **more: Any) -> Any:
        loss, norm = original(net, optimizer, batch, state, *args, **more)
        steps = batch.inputs.shape[0]
        seen.append({"state": state, "after": loss.hidden_state, "steps": steps, **more})
        return loss, norm

    patch.setattr(module, "weight_step", step)
    return seen


def test_the_state_of_a_search_goes_on_from_window_to_window(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spied(monkeypatch, supernet)
    job = SearchJob(config("method=darts-1st"), corpus, CPU)
    for epoch in range(2):
        job.begin_epoch(Position(epoch=epoch))
        for window, steps in enumerate(job.lengths(epoch)):
            job.step(Position(epoch=epoch, window=window, step=6 * epoch + window), steps, 1.0)
    assert len(seen) == 12
    for number, step in enumerate(seen):
        assert step["clip"] == CLIP and step["lr"] == pytest.approx(LR * step["steps"] / BPTT)
        if number in (0, 6):
            assert step["state"] is None
        else:
            assert torch.equal(step["state"][0], seen[number - 1]["after"][0])
            assert step["state"][0].abs().sum() > 0


def test_a_derivation_by_perturbation_tunes_with_its_own_step_size(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config("method=darts-1st", "derive.by=perturbation", "derive.lr=0.5")
    job = SearchJob(made, corpus, CPU)
    work = LanguageSearch(job, corpus, 3, lr_factor=0.25)
    seen = spied(monkeypatch, derive_by_perturbation)
    mixtures = job.mixtures_of(CELL)
    for number in range(6):
        work.tune(number, mixtures)
    assert len({step["steps"] for step in seen}) > 1
    for step in seen:
        assert step["lr"] == pytest.approx(0.5 * LR * step["steps"] / BPTT * 0.25)


def test_what_was_tried_is_proposed_best_first_without_the_best(corpus: Corpus) -> None:
    made = config("method=random-ws", "select.by=race", "select.samples=2")
    job = SearchJob(made, corpus, CPU)
    cells = [Genotype.from_text(f"tanh0 relu{k} {op}0") for k in (0, 1) for op in ("tanh", "relu")]
    losses = [3.0, 1.0, 4.0, 2.0]
    job.tried = [Scored(*pair) for pair in zip(cells, losses, strict=True)]
    job.chosen = cells[1]
    found = [p.genotype for p in proposals(job, made) if p.origin.endswith("tried")]
    assert found == [cells[3], cells[0]]


def test_a_race_behind_a_search_has_the_settings_of_select() -> None:
    made = config(
        "method=darts-1st", "select.by=race", "select.schedule=linear", "select.windows=30",
        "select.rung=7", "select.budget=5", "blackbox.targets=99", "blackbox.draws=2",
        "weights.schedule=cosine",
    )  # fmt: skip
    race = race_config(made)
    black = race.blackbox
    assert race.method == "halving" and race.weights.schedule == "linear"
    assert (black.windows, black.rung, black.budget) == (30, 7, 5)
    assert (black.targets, black.draws) == (99, 2)


@pytest.mark.parametrize("behind", ["race", "perturbation"])
def test_the_perplexity_of_a_search_is_that_of_the_cell(
    behind: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the network it was searched in."""
    race = ["select.by=race", "select.windows=8", "select.budget=3.5", "select.rung=2"]
    own = race if behind == "race" else ["derive.by=perturbation", "derive.tune_windows=1"]
    of_race: list[float] = []
    measured = HalvingJob.measured

    def spy(self: HalvingJob) -> dict[str, float]:
        of_race.append(measured(self)["valid_perplexity"])
        return measured(self)

    monkeypatch.setattr(HalvingJob, "measured", spy)
    of_cell: list[float] = []
    scored = SearchJob._score

    def score(self: SearchJob, net: Any, mixtures: Any) -> Any:
        found = scored(self, net, mixtures)
        of_cell.append(found.perplexity)
        return found

    monkeypatch.setattr(SearchJob, "_score", score)
    result = search(config("method=darts-1st", *own), corpus, tmp_path, device=CPU, quiet=True)
    told = result["valid_perplexity"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    networks = [x["valid_perplexity"] for x in lines if x["kind"] == "epoch"][:2]
    assert len(networks) == 2 and told not in networks
    assert told == (of_race or of_cell)[-1]
