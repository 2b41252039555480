"""Searches and trainings whose windows are programs; on a card, captured ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import rank_work
import torch
from test_programs import CASES, CPU, assert_same, steps_of
from tiny_home import home as home

from rnnnas import programs
from rnnnas.data.corpus import open_corpus
from rnnnas.errors import UsageError
from rnnnas.files import load_content
from rnnnas.loop import Position
from rnnnas.programs import Program, Programs, programs_for
from rnnnas.ranks import ALONE, Ranks
from rnnnas.search import SearchJob, job_of
from rnnnas.train import TrainJob


def test_the_setting() -> None:
    assert programs_for("auto", CPU) is None and programs_for("off", CPU) is None
    made = programs_for("on", CPU)
    assert made is not None and not made._capture


@pytest.mark.parametrize(
    ("name", "more"),
    [("train", ()), ("darts-1st", ()), ("p-darts", ("stages.ops=[5,3]",)),
     ("random", ("blackbox.cells=2", "blackbox.targets=100"))],
)  # fmt: skip
def test_a_run_by_programs_has_the_same_result(
    name: str, more: tuple[str, ...], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "train" if name == "train" else "search"
    more += () if name == "train" else (f"method={name}",)
    runs: list[Program] = []
    original = Program.run
    monkeypatch.setattr(Program, "run", lambda self, i: (runs.append(self), original(self, i))[1])
    settings = (*more, "epochs=2", "windows.limit=6", "windows.bptt=3", "windows.halved=0.0")
    found = {}
    for setting in ("off", "on"):
        asked = (*settings, f"capture={setting}")
        folder = tmp_path / setting
        found[setting] = rank_work.a_run(ALONE, str(home), kind, str(folder), asked, "")
        assert bool(runs) == (setting == "on")
    # A program for each kind of step, and anew where a stage or another cell has a new network.
    assert len(set(runs)) == {"train": 1, "darts-1st": 2, "p-darts": 4, "random": 2}[name]
    states = [load_content(tmp_path / s / "state.pt")["state"]["job"] for s in found]
    for one, other in zip(*(s["weights"].values() for s in states), strict=True):
        assert torch.equal(one, other)
    if kind == "search":  # a training's covers its settings
        assert found["on"]["digest"] == found["off"]["digest"]
    assert found["on"]["valid_perplexity"] == found["off"]["valid_perplexity"]


def test_a_run_may_go_on_with_another_setting(home: Path, tmp_path: Path) -> None:
    config = {s: rank_work.configuration("train", f"capture={s}") for s in ("on", "off")}
    assert "capture" in config["on"].idle
    assert "capture" in rank_work.configuration("search").idle
    settings = ("epochs=1", "windows.limit=6")
    one = rank_work.a_run(ALONE, str(home), "train", str(tmp_path), (*settings, "capture=on"), "")
    two = rank_work.a_run(ALONE, str(home), "train", str(tmp_path), (*settings, "capture=off"), "")
    assert one == two


def test_a_search_that_talks_within_a_window_is_not_captured(home: Path) -> None:
    config = rank_work.configuration("search", "capture=on")
    with pytest.raises(UsageError, match="one process"):
        job_of(config, open_corpus("tiny"), CPU, Ranks(0, 2))
    assert isinstance(job_of(config, open_corpus("tiny"), CPU), SearchJob)


# On a card

CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@CARD
@pytest.mark.parametrize("case", CASES)
def test_captured_equals_plain_on_a_card(case: str) -> None:
    device = torch.device("cuda")
    made = Programs(device, patience=1)
    rounded = "rounded" in case
    close = {"rtol": 1e-2, "atol": 1e-3} if rounded else {"rtol": 1e-4, "atol": 1e-6}
    assert_same(steps_of(case, made, device), steps_of(case, None, device), **close)
    assert made.count == 2


@pytest.mark.gpu
@CARD
@pytest.mark.parametrize("kind", ["train", "search"])
def test_a_captured_epoch_does_not_wait(kind: str, home: Path) -> None:
    device = torch.device("cuda")
    more = ("method=darts-1st",) if kind == "search" else ()
    values: dict[str, list[float]] = {}
    for setting in ("off", "on"):
        config = rank_work.configuration(kind, f"capture={setting}", *more)
        job: Any = {"train": TrainJob, "search": SearchJob}[kind](
            config, open_corpus("tiny"), device
        )
        at = Position()
        job.begin_epoch(at)
        reports = [job.step(at, 10, 1.0).nats for _ in range(programs.PATIENCE + 2)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            reports += [job.step(at, 10, 1.0).nats for _ in range(5)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (job.programs.count > 0) if setting == "on" else job.programs is None
        values[setting] = [float(nats) for nats in reports]
    assert all(math.isfinite(nats) for nats in values["on"])
    assert values["on"] == pytest.approx(values["off"], rel=1e-4)
