"""A study's time budget: what it is shared out to, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from rnnnas.config.plain import from_plain
from rnnnas.config.presets import preset_table
from rnnnas.errors import UsageError
from rnnnas.studies.budget import AROUND, budgeted, line
from rnnnas.studies.plan import StudyConfig, final_jobs, first_jobs, search_config, train_config


class Text:
    """Splits of a corpus as far as a study's jobs ask for them."""

    splits = {"train": range(100_000)}


def study_config(**more: Any) -> StudyConfig:
    table = {**preset_table("study-quick", "study"), "corpus": "pydocs", **more}
    return from_plain(StudyConfig, table)


def lasts(config: StudyConfig, slots: int) -> float:
    """Seconds of the jobs as a list scheduler runs them: in order, on the slot that is free first,
    the finals after all others."""
    from rnnnas.studies.plan import RANDOM, Sizes

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
