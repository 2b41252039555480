"""A time budget for a study: methods and seeds that fit, and what each job gets as time passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from rnnnas.config.plain import from_plain
from rnnnas.engine.budget import Stopwatch
from rnnnas.errors import UsageError
from rnnnas.runs.sealed import read_sealed
from rnnnas.studies.plan import TIMED, Job, Kind, StudyConfig, races_by_cost
from rnnnas.studies.record import DAMAGED, NAME

# Around a job, beside its own budget: the interpreter begins and ends, the study looks for it. In
# seconds, and times what a start takes.
AROUND = 0.5, 0.5
SEARCH_SHARE = 1.2  # a search gets so many times what a training gets
LEAST = 10.0, 2.0  # seconds of a training to be worth starting, and times its start beside them
ENOUGH = 60.0  # seconds of a training before there are more seeds and methods
FEW_METHODS = 2  # where more would leave each too little
JOB_START = 4.0  # seconds that the process of a job takes to start, about
RANGE = 0.3, 1.5  # least and most of its planned time that a stage gets


def in_time(
    config: StudyConfig, folder: Path, seconds: float, slots: int, *, start: float, methods: bool,
    seeds: bool, fresh: bool = False,
) -> StudyConfig:  # fmt: skip
    """The study that `folder` holds, with the times it was begun with, or one that ends in
    `seconds`.

    Raises:
        UsageError, CheckpointError: as `kept` and `budgeted` say.
    """
    there = None if fresh else kept(folder, config, seconds, methods=methods, seeds=seeds)
    return there or budgeted(config, seconds, slots, start=start, methods=methods, seeds=seeds)


def budgeted(
    config: StudyConfig, seconds: float, slots: int, *, start: float, methods: bool, seeds: bool
) -> StudyConfig:
    """A study that ends in `seconds`, `slots` jobs at a time.

    Args:
        start: seconds that the study's own process took to start, as every job's will.
        methods, seeds: whether the user named them; if not, there are as many as get enough time.

    Raises:
        UsageError: where the jobs would get too little to be worth starting, or a method has a
            budget of its own.
    """
    for method in config.methods:
        if said := races_by_cost(config, method):
            raise UsageError(
                f"{method} has {said}, and a time budget decides what a search costs",
                "leave the time out, since such a study can be stopped and goes on, or take "
                "another: --preset study-quick",
            )
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
    if config.finals == "all":
        cells = searches + config.randoms + len(config.fixed)
        counts = searches, 0, cells * len(config.final_seeds)
    else:
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


def kept(
    folder: Path, config: StudyConfig, seconds: float, *, methods: bool, seeds: bool
) -> StudyConfig | None:
    """`config` with the times that the study in `folder` was begun with; None where there is none.

    Other settings than that study's stay, so that they are refused when it is opened.

    Args:
        methods, seeds: whether the user named them; if not, they are those of that study.

    Raises:
        UsageError: where it has another budget, or other methods or seeds than were named.
        CheckpointError: where it is damaged.
    """
    if not (folder / NAME).exists():
        return None
    stored = read_sealed(folder / NAME, DAMAGED)
    had = (stored.get("budget") or {}).get("seconds")
    if had != seconds:
        what = "no budget" if had is None else f"a budget of {had:g} s"
        raise UsageError(
            f"{folder} holds a study with {what}, and {seconds:g} s were asked for",
            "give the budget it was begun with, --fresh for a new study, or another --out",
        )
    there = from_plain(StudyConfig, stored["plan"]["config"])
    for named, what in ((methods, "methods"), (seeds, "seeds")):
        old, new = getattr(there, what), getattr(config, what)
        if named and set(old) != set(new):
            raise UsageError(
                f"{folder} holds a study in a given time of {what} {', '.join(map(str, old))}, and "
                f"{', '.join(map(str, new))} were asked for: they share its time out otherwise",
                "give --fresh for a new study, or another --out",
            )
    times = planned_seconds(there)
    return replace(
        config, methods=there.methods, seeds=there.seeds,
        search=_timed(config.search, times["search"]),
        short=_timed(config.short, times["short"]), final=_timed(config.final, times["final"]),
    )  # fmt: skip


@final
class StudyPace:
    """How a study keeps to its time: all trainings of a stage get the same seconds, decided when
    the first of them starts, so that what is compared had the same.

    Args:
        seconds: of the whole study. stopwatch: running since it began. slots: jobs at a time.
    """

    def __init__(self, seconds: float, stopwatch: Stopwatch, slots: int) -> None:
        self.seconds, self.slots = seconds, slots
        self.decided: dict[str, float] = {}  # by stage
        self._stopwatch = stopwatch
        self._began: dict[str, float] = {}  # of running jobs
        self._around: list[float] = []  # seconds that finished jobs took beside their own

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Take over what `to_plain` gave in an earlier session."""
        self._stopwatch.resume(float(plain.get("spent", 0.0)))
        self.decided = dict(plain.get("decided", {}))

    def to_plain(self) -> dict[str, Any]:
        """Plain values for study.json."""
        spent = round(self._stopwatch.spent(), 1)
        return {"seconds": self.seconds, "spent": spent, "decided": self.decided}

    def started(self, name: str) -> None:
        """Note that a job begins."""
        self._began[name] = self._stopwatch.spent()

    def ended(self, name: str, kind: Kind, planned: Mapping[str, float]) -> None:
        """Note that a job is over."""
        if (began := self._began.pop(name, None)) is not None:
            own = self.decided.get(kind, planned[kind])
            self._around.append(max(0.0, self._stopwatch.spent() - began - own))

    def of(
        self,
        kind: Kind,
        planned: Mapping[str, float],
        waiting: Sequence[Kind],
        running: Sequence[Job],
    ) -> float:
        """Seconds of a job of stage `kind`, which is about to start.

        Args:
            planned: seconds by stage. waiting: the stages of all jobs that were not started yet,
                this one's included.
        """
        if kind == "search":  # the first of all: nothing has been seen yet
            return planned[kind]
        if kind not in self.decided:
            around = sum(self._around) / len(self._around) if self._around else 2 * AROUND[0]
            now = self._stopwatch.spent()
            busy = 0.0
            for job in running:
                own = self.decided.get(job.kind, planned[job.kind])
                busy += max(0.0, own - (now - self._began.get(job.name, now))) + around
            known, unknown = 0.0, 0.0
            for stage in dict.fromkeys(waiting):
                count = sum(other == stage for other in waiting)
                turns = -(-count // self.slots) * self.slots  # the last turn may not be full
                known += turns * around
                if stage == "search" or stage in self.decided:
                    known += turns * self.decided.get(stage, planned[stage])
                else:
                    unknown += turns * planned[stage]
            share = ((self.seconds - now) * self.slots - busy - known) / unknown
            low, high = RANGE
            own = min(max(low, share), high) * planned[kind]
            self.decided[kind] = round(own, 1)
        return self.decided[kind]


def retimed(words: Sequence[str], seconds: float) -> tuple[str, ...]:
    """A job's command line with another time budget."""
    return tuple(f"{TIMED}{seconds:g}" if word.startswith(TIMED) else word for word in words)


def planned_seconds(config: StudyConfig) -> dict[str, float]:
    """Seconds of a job by stage."""
    stages = {"search": config.search, "short": config.short, "final": config.final}
    return {name: float(stage["seconds"]) for name, stage in stages.items()}
