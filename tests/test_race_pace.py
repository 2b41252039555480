"""A race that keeps to a time: what it gives up or adds, its clock, and its exact resumption."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_budget import Crash, FakeClock, search_config
from tiny_home import corpus, home  # noqa: F401  (fixtures)

from rnnnas.data.corpus import Corpus
from rnnnas.engine.budget import Costs, RaceClock, Stopwatch
from rnnnas.nas.genotype import RECURRENT
from rnnnas.nas.halving import Decision, Outcome, Prospect, Race
from rnnnas.nas.race_pace import decide, decisions, plain_of, time_of
from rnnnas.nas.race_plan import Rung, children_of, plan_for, plan_of
from rnnnas.nas.space import recurrent_space
from rnnnas.runs.checkpoint import load_content
from rnnnas.searching import run as searching
from rnnnas.searching.cell_training import CellTraining
from rnnnas.searching.race_budget import TimedRace
from rnnnas.searching.run import search

SPACES = {RECURRENT: recurrent_space(8)}
CPU = torch.device("cpu")


def test_the_time_of_rungs_counted_by_hand() -> None:
    rungs = (Rung(stop=10, keep=3, by="train"), Rung(stop=50, keep=1, by="heldout"))
    # Of seven cells two at a time there are four turns of ten steps, then two of forty.
    assert time_of(7, rungs, 0, 2) == 4 * 10 + 2 * 40
    assert time_of(7, rungs, 0, 1) == 7 * 10 + 3 * 40


def raced(plan_seconds: float, speed: Any, workers: int, budget_steps: int = 500) -> float:
    """When a race ends that was given `plan_seconds`, in seconds, where a step takes 0.01 s times
    `speed` of the time that is gone.
    """
    clock = FakeClock()
    watch = Stopwatch(clock=clock)
    plan = plan_for(plan_seconds - 1.0, 0.01, budget_steps, workers=workers)
    race = Race(SPACES, 1, plan)
    kept = RaceClock(watch, plan_seconds, Costs(step=0.01, validation=0.0, end=1.0))
    children = children_of(plan.steps, 100)
    race.decide = lambda there: decide(
        there, kept.room, whole=kept.whole, workers=workers, children=children
    )
    while not race.done:
        trials = race.due()
        kept.rung()
        kept.passed(0)
        beside = min(workers, len(trials))
        done = 0.0
        for first in range(0, len(trials), beside):
            together = trials[first : first + beside]
            for _ in range(10):
                clock.now += 0.1 * (trials[0].stop - trials[0].start) * 0.01 * speed(watch.spent())
            done += trials[0].stop - trials[0].start
            for trial in together:
                kept.passed(done)
                race.tell(trial, Outcome(5.0 + 0.01 * trial.number, 5.0 if trial.heldout else None))
    return watch.spent() + 1.0 * speed(watch.spent())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("seconds", [120.0, 300.0, 600.0])
@pytest.mark.parametrize(
    "speed",
    [
        lambda at: 1.0,
        lambda at: 1.3,
        lambda at: 0.8,
        lambda at: 1.0 if at < 60 else 1.5,
        lambda at: 2.0 if at < 30 else 1.0,
        lambda at: 1.0 + 0.3 * math.sin(at / 5),
    ],
)
def test_a_race_ends_in_its_time_whatever_the_load(
    seconds: float, speed: Any, workers: int
) -> None:
    assert 0.9 * seconds < raced(seconds, speed, workers) < 1.1 * seconds


def test_a_plan_that_fits_stands() -> None:
    plan = plan_of(22.0, 500)
    after = plan.rounds[1:]
    rungs = plan.rounds[0].rungs[1:]
    there = Prospect(7, rungs, after, 150, 0)
    whole = 1.0 * plan.total_steps
    left = time_of(7, rungs, 150, 1) + sum(time_of(r.cells, r.rungs, 0, 1) for r in after)
    children = children_of(500, 100)
    assert decide(there, left + 1.0, whole=whole, workers=1, children=children) is None
    less = decide(there, 0.6 * left, whole=whole, workers=1, children=children)
    assert less is not None and less.cells == 7  # children are what goes first
    assert sum(r.cells for r in less.rounds) < sum(r.cells for r in after)
    least = decide(there, 0.0, whole=whole, workers=1, children=children)
    assert least is not None and (least.cells, least.rounds) == (1, ())


def test_decisions_outlive_their_plain_values() -> None:
    plan = plan_of(16.0, 500)
    made = {1: Decision(3, plan.rounds[0].rungs[1:], plan.rounds[1:]), 4: Decision(0, (), ())}
    assert decisions(plain_of(made)) == made
    with pytest.raises((TypeError, ValueError)):
        decisions([[1, 2]])


def test_a_race_in_a_time_resumes_as_it_was(
    corpus: Corpus,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    made = TimedRace(budget=11.0, windows=10, step=0.1, end=0.2, begins=0.0, workers=1)
    monkeypatch.setattr(searching, "timed_race", lambda *args, **more: made)
    advance, left, count = CellTraining.advance, [0], [0]

    def slow(self: CellTraining) -> None:
        count[0] += 1
        if left and count[0] == left[0]:
            left.pop(0)
            raise Crash
        clock.now += 0.13  # slower than it was measured
        advance(self)

    monkeypatch.setattr(CellTraining, "advance", slow)
    rung, passed, at_rung = RaceClock.rung, RaceClock.passed, [0]

    def begins(self: RaceClock) -> None:
        at_rung[0] = count[0]
        rung(self)

    def told(self: RaceClock, steps: float) -> None:
        # What was done of these trainings before a restart took none of the time since.
        assert steps == count[0] - at_rung[0]
        passed(self, steps)

    monkeypatch.setattr(RaceClock, "rung", begins)
    monkeypatch.setattr(RaceClock, "passed", told)
    config = search_config(
        "save_seconds=0", "blackbox.rung=2", method="halving", seconds=11.0 * 10 * 0.1 + 0.5
    )

    def run(name: str) -> dict[str, Any]:
        count[0] = 0
        watch = Stopwatch(clock=clock)
        return search(config, corpus, tmp_path / name, device=CPU, quiet=True, stopwatch=watch)

    left.clear()
    whole = run("whole")
    assert 0.9 < whole["spent_seconds"] / whole["budget_seconds"] < 1.1
    steps = count[0]
    assert whole["steps"] == steps
    left += [steps // 2, steps // 4]
    decided: list[Any] = []
    for _ in range(2):
        with pytest.raises(Crash):
            run("cut")
        state = load_content(tmp_path / "cut" / "state.pt")["state"]
        assert state["decided"][: len(decided)] == decided
        decided = state["decided"]
    assert decided  # what was decided before a crash holds after it
    resumed = run("cut")
    assert 0.9 < resumed["spent_seconds"] / resumed["budget_seconds"] < 1.1
    last = load_content(tmp_path / "cut" / "state.pt")["state"]
    assert last["decided"][: len(decided)] == decided
    again = run("cut")
    assert again["digest"] == resumed["digest"]
