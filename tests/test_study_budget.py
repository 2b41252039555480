"""A study's time budget: what it is shared out to, and what it leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rnnnas.config.plain import from_plain
from rnnnas.config.presets import preset_table, resolve
from rnnnas.engine.budget import Stopwatch
from rnnnas.errors import UsageError
from rnnnas.studies.budget import AROUND, StudyPace, budgeted, kept, line, planned_seconds, retimed
from rnnnas.studies.costs import cost_of, cost_text
from rnnnas.studies.plan import (
    RANDOM,
    Sizes,
    StudyConfig,
    final_jobs,
    first_jobs,
    search_config,
    train_config,
)
from rnnnas.studies.record import Record


class Text:
    """Splits of a corpus as far as a study's jobs ask for them."""

    splits = {"train": range(100_000)}


def study_config(**more: Any) -> StudyConfig:
    table = {**preset_table("study-quick", "study"), "corpus": "pydocs", **more}
    return from_plain(StudyConfig, table)


def lasts(config: StudyConfig, slots: int) -> float:
    """Seconds of the jobs as a list scheduler runs them: in order, on the slot that is free first,
    the finals after all others."""
    sizes = Sizes(Text.splits)
    firsts = first_jobs(config, sizes)
    finals = final_jobs(config, dict.fromkeys((*config.methods, RANDOM), 1), sizes)
    each = {
        "search": config.search["seconds"],
        "short": config.short["seconds"],
        "final": config.final["seconds"],
    }
    free = [0.0] * slots
    for jobs in (firsts, finals):
        free = [max(free)] * slots
        for job in jobs:
            first = free.index(min(free))
            free[first] += each[job.kind] + AROUND[0] + AROUND[1] * 4.0
    return max(free)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("seconds", [240.0, 600.0, 1800.0, 36_000.0])
def test_the_jobs_fill_the_budget(seconds: float, slots: int) -> None:
    config = budgeted(study_config(), seconds, slots, start=4.0, methods=False, seeds=False)
    assert 0.85 * seconds < lasts(config, slots) + 4.0 <= 1.001 * seconds
    assert line(config, seconds).startswith(f"{seconds:.0f} s: darts-1st")


def test_what_does_not_fit_is_left_out_unless_it_was_named() -> None:
    shared = {"start": 4.0, "methods": False, "seeds": False}
    config = study_config()
    assert budgeted(config, 36_000, 2, **shared).seeds == config.seeds
    few = budgeted(config, 120, 2, **shared)
    assert len(few.methods) == 2 and few.seeds == (1,)
    named = budgeted(config, 600, 2, start=4.0, methods=True, seeds=True)
    assert (named.methods, named.seeds) == (config.methods, config.seeds)
    with pytest.raises(UsageError, match="too few for a study") as error:
        budgeted(config, 120, 2, start=4.0, methods=True, seeds=True)
    assert "minutes" in error.value.remedy
    with pytest.raises(UsageError, match="20 s pass as one starts"):
        budgeted(config, 120, 2, start=20.0, methods=False, seeds=False)


def test_its_runs_have_a_time_and_no_number_of_steps() -> None:
    config = budgeted(study_config(), 600, 2, start=4.0, methods=False, seeds=False)
    for run in (search_config(config, "darts-1st"), train_config(config, "final")):
        assert run.seconds > 30
        assert run.windows.limit == 0
        assert run.windows.streams == 16  # the rest of the stage's settings stays


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("late", [0.0, 0.1, 0.25, -0.05])
@pytest.mark.parametrize("seconds", [240.0, 900.0])
def test_later_jobs_make_up_for_what_earlier_ones_overran(
    seconds: float, late: float, slots: int
) -> None:
    config = budgeted(study_config(), seconds, slots, start=4.0, methods=False, seeds=False)
    now = [4.0]
    pace = StudyPace(seconds, Stopwatch(0.0, clock=lambda: now[0]), slots)
    planned = planned_seconds(config)
    sizes = Sizes(Text.splits)
    firsts = first_jobs(config, sizes)
    finals = final_jobs(config, dict.fromkeys((*config.methods, RANDOM), 1), sizes)
    given: dict[str, set[float]] = {}
    for jobs, more in ((firsts, [job.kind for job in finals]), (finals, [])):
        left, running = list(jobs), {}
        while left or running:
            while left and len(running) < slots:
                waiting = [job.kind for job in left] + more
                there = [job for job, _ in running.values()]
                job = left.pop(0)
                own = pace.of(job.kind, planned, waiting, there)
                given.setdefault(job.kind, set()).add(own)
                pace.started(job.name)
                running[job.name] = job, now[0] + own * (1 + late) + 2.0
            name = min(running, key=lambda name: running[name][1])
            job, now[0] = running.pop(name)
            pace.ended(name, job.kind, planned)
    assert all(len(times) == 1 for times in given.values())  # what is compared had the same
    assert 0.9 * seconds < now[0] < 1.1 * seconds


def test_a_study_goes_on_with_the_times_it_began_with(tmp_path: Path) -> None:
    config = budgeted(study_config(), 600, 2, start=4.0, methods=False, seeds=False)
    record = Record(tmp_path, config, "sha")
    pace = StudyPace(600.0, Stopwatch(0.0, clock=lambda: 123.4), 2)
    pace.decided["short"] = 31.5
    record.budget = pace.to_plain()
    record.save()
    unnamed = {"methods": False, "seeds": False}
    again = kept(tmp_path, study_config(), 600.0, **unnamed)
    assert again is not None and (again.short, again.seeds) == (config.short, config.seeds)
    opened = Record.open(tmp_path, again, "sha")
    later = StudyPace(600.0, Stopwatch(0.0, clock=lambda: 0.0), 2)
    later.restore(opened.budget or {})
    assert later.to_plain() == pace.to_plain()
    with pytest.raises(UsageError, match="a budget of 600 s, and 1200 s were asked for"):
        kept(tmp_path, study_config(), 1200.0, **unnamed)
    assert kept(tmp_path / "other", study_config(), 600.0, **unnamed) is None
    # What is asked for now is not replaced by what was, but held against it.
    wide = study_config(short={**study_config().short, "model": {"hidden": 200}})
    other = kept(tmp_path, wide, 600.0, **unnamed)
    assert other is not None
    with pytest.raises(UsageError, match=r"short.model.hidden is 100 there and 200 here"):
        Record.open(tmp_path, other, "sha")
    named = study_config(methods=["darts"])
    with pytest.raises(UsageError, match="of methods darts-1st"):
        kept(tmp_path, named, 600.0, methods=True, seeds=False)
    with pytest.raises(UsageError, match="of seeds"):
        kept(tmp_path, study_config(seeds=[1, 2, 3, 4]), 600.0, methods=False, seeds=True)
    asked = study_config(methods=list(config.methods), seeds=list(config.seeds))
    same = kept(tmp_path, asked, 600.0, methods=True, seeds=True)
    assert same is not None and same.seeds == config.seeds


def test_searches_of_a_given_cost_have_no_time() -> None:
    table = {**preset_table("study-search", "study"), "corpus": "pydocs"}
    with pytest.raises(UsageError, match="halving@4 has blackbox.budget = 4") as error:
        budgeted(from_plain(StudyConfig, table), 1800, 2, start=4.0, methods=False, seeds=False)
    assert "study-quick" in error.value.remedy
    flags = {"corpus": "book", "method": "halving", "seconds": 60.0}
    for setting in ("blackbox.budget=4", "select.budget=4"):
        with pytest.raises(UsageError, match="has no place beside it"):
            resolve("search", preset="quick", file=None, settings=[setting], flags=flags)


@pytest.mark.parametrize("slots", [1, 2])
def test_finals_of_every_cell_fill_the_budget(slots: int) -> None:
    """Without short trainings, and with the fixed cells."""
    more = {"finals": "all", "fixed": ["LSTM", "DARTS_V2"], "final_seeds": [7, 8]}
    config = budgeted(study_config(**more), 3600, slots, start=4.0, methods=False, seeds=False)
    sizes = Sizes(Text.splits)
    each = planned_seconds(config)
    jobs = first_jobs(config, sizes)
    assert {job.kind for job in jobs} == {"search", "final"}
    around = AROUND[0] + AROUND[1] * 4.0
    total = 4.0 + sum(each[job.kind] + around for job in jobs) / slots
    assert 0.95 * 3600 < total <= 3600 * 1.001


def test_the_steps_of_a_timed_job_are_those_that_it_tells(tmp_path: Path) -> None:
    config = budgeted(study_config(), 600, 2, start=4.0, methods=False, seeds=False)
    jobs = first_jobs(config, Sizes(Text.splits))[:2]
    assert all(job.timed and job.steps < 600 for job in jobs)
    record = Record(tmp_path, config, "sha")
    results: dict[str, Any] = {job.name: {"seconds": 3.0, "steps": 1000} for job in jobs}
    assert cost_of(jobs, record, results)["steps"] == 1000
    counted = [replace(job, tokens=n) for job, n in zip(jobs, (100, 300), strict=True)]
    assert cost_of(counted, record, results)["tokens"] == 200  # of one job, on average
    del results[jobs[0].name]["steps"]
    cost = cost_of(jobs, record, results)
    assert cost["steps"] is None and cost_text(cost)[0] == "-"


def test_a_job_is_told_its_time() -> None:
    config = budgeted(study_config(), 600, 2, start=4.0, methods=False, seeds=False)
    job = first_jobs(config, Sizes(Text.splits))[0]
    assert f"seconds={config.search['seconds']}" in job.words
    assert "seconds=12.5" in retimed(job.words, 12.5)
    assert len(retimed(job.words, 12.5)) == len(job.words)
