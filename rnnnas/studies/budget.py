"""A time budget for a study: how many methods and seeds fit, and what each of its jobs gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rnnnas.errors import UsageError
from rnnnas.studies.plan import StudyConfig

# Around a job, beside its own budget: the interpreter begins and ends, the study looks for it. In
# seconds, and times what a start takes.
AROUND = 0.5, 0.5
SEARCH_SHARE = 1.2  # a search gets so many times what a training gets
LEAST = 10.0, 2.0  # seconds of a training to be worth starting, and times its start beside them
ENOUGH = 60.0  # seconds of a training before there are more seeds and methods
FEW_METHODS = 2  # where more would leave each too little


def budgeted(
    config: StudyConfig, seconds: float, slots: int, *, start: float, methods: bool, seeds: bool
) -> StudyConfig:
    """A study that ends in `seconds`, `slots` jobs at a time.

    Args:
        start: seconds that the study's own process took to start, as every job's will.
        methods, seeds: whether the user named them; if not, there are as many as get enough time.

    Raises:
        UsageError: where the jobs would get too little to be worth starting.
    """
    choices = [config]
    if not seeds:
        choices.append(replace(config, seeds=config.seeds[:1]))
    if not methods:
        choices.append(replace(choices[-1], methods=config.methods[:FEW_METHODS]))
    chosen = next((c for c in choices if _each(c, seconds, slots, start) >= ENOUGH), choices[-1])
    each, enough = _each(chosen, seconds, slots, start), LEAST[0] + LEAST[1] * start
    if each < enough:
        least = seconds + (enough - each) * _units(chosen, slots)
        raise UsageError(
            f"{seconds:.0f} s are too few for a study of {', '.join(chosen.methods)}: "
            f"each training would get {max(each, 0):.0f} s, and {start:.0f} s pass as one starts",
            f"give {math.ceil(least / 60)} minutes or more, or fewer methods with --methods",
        )
    timed = {
        "search": _timed(chosen.search, SEARCH_SHARE * each),
        "short": _timed(chosen.short, each),
        "final": _timed(chosen.final, each),
    }
    return replace(chosen, **timed)  # type: ignore[arg-type]


def line(config: StudyConfig, seconds: float) -> str:
    """What was chosen, in one line."""
    each = config.short["seconds"]
    return (
        f"{seconds:.0f} s: {', '.join(config.methods)}; {len(config.seeds)} search seeds; "
        f"{config.search['seconds']:.0f} s a search, {each:.0f} s a training"
    )


def _waves(config: StudyConfig, slots: int) -> tuple[int, int, int]:
    """How many times all slots are filled: with searches, short and final trainings."""
    searches = len(config.methods) * len(config.seeds)
    finals = (len(config.methods) + 1) * len(config.final_seeds)
    counts = searches, searches + config.randoms, finals
    a, b, c = (-(-count // slots) for count in counts)
    return a, b, c


def _units(config: StudyConfig, slots: int) -> float:
    """Trainings' times, one after the other, that the study lasts."""
    searches, shorts, finals = _waves(config, slots)
    return SEARCH_SHARE * searches + shorts + finals


def _each(config: StudyConfig, seconds: float, slots: int, start: float) -> float:
    """Seconds that a training gets; start: what the start of a process takes."""
    around = (AROUND[0] + AROUND[1] * start) * sum(_waves(config, slots))
    return (seconds - start - around) / _units(config, slots)


def _timed(stage: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """A stage's settings with a time in place of a number of steps."""
    kept = {k: v for k, v in stage.items() if k not in ("epochs", "least_steps")}
    windows = {k: v for k, v in stage.get("windows", {}).items() if k != "limit"}
    if "windows" in kept:
        kept["windows"] = windows
    return {**kept, "seconds": round(seconds, 1)}
