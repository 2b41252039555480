"""A race in a given time: how many cells, and how long their trainings, from a measured step."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from rnnnas.config.text import SearchConfig
from rnnnas.data.text_corpus import Corpus
from rnnnas.engine.budget import Costs, measure_pass
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.nas.race_plan import LEAST, plan_for
from rnnnas.runs.sealed import read_sealed, write_sealed
from rnnnas.searching.halving import HalvingJob

PLAN = "race.json"  # of a run: what was chosen, so that a resumed race goes on as it began
AIM = 0.97  # of a budget is what a race aims at: its last trainings can only be late
SHARE = 0.5  # of a search's time that goes to the race behind another method
_WARM, _STEPS = 3, 8  # steps that are not timed, and that are
_START = 3.0  # seconds that workers take to start, at least
_START_SHARE = 0.15  # of a race's time, at most, goes to the start of workers
_END = 1.5  # seconds that the table and the result take at the end, beside the validation
# Cells are scored between the rungs, and two that run side by side share caches and memory.
_BESIDE = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRace:
    """What a race was given, from its measured costs.

    budget: full trainings that all of it may cost; windows: steps of one. step: seconds of a step,
    two side by side. end: seconds of what follows the last training. begins: the second of the
    budget at which the race does, 0 where it is all.
    workers: trainings at a time; 1 where starting processes for more would take too much of it.
    """

    budget: float
    windows: int
    step: float
    end: float
    begins: float
    workers: int

    @property
    def costs(self) -> Costs:
        """The costs that a clock begins with."""
        return Costs(step=self.step, validation=0.0, end=self.end)


def timed_race(
    config: SearchConfig,
    corpus: Corpus,
    device: torch.device,
    folder: Path,
    seconds: float,
    *,
    spent: float = 0.0,
    share: float = 1.0,
    fresh: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> TimedRace:
    """The plan of a race in a budget of `seconds`. A run folder that holds one keeps it.

    Args:
        config: of a search by halving.
        spent: seconds of the budget that the start took. share: of what is then left, for the race.

    Raises:
        UsageError: where the time does not hold two trainings.
        CheckpointError: where the folder's plan is damaged.
    """
    path = folder / PLAN
    if not fresh and os.path.exists(path):
        kept = read_sealed(path, "start anew with --fresh")
        try:
            return TimedRace(
                budget=float(kept["budget"]), windows=int(kept["windows"]),
                step=float(kept["step"]), end=float(kept["end"]), begins=float(kept["begins"]),
                workers=int(kept["workers"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged", "start anew with --fresh") from error
    black = config.blackbox
    began = clock()
    job = HalvingJob(replace(config, blackbox=replace(black, budget=2.0)), corpus, device)
    given = share * (seconds - spent)
    start = max(_START, spent)  # workers start as this process did
    if start > _START_SHARE * given:
        job.workers, start = 1, 0.0
    step = (_BESIDE if job.workers > 1 else 1.0) * seconds_per_step(job, clock)
    valid = job.course.valid
    end = _END + measure_pass(job.net, valid, (valid.length - 1) * valid.streams, {}, clock)
    left = given - (clock() - began) - start - end
    if left * job.workers < LEAST * black.rung * step:
        needed = LEAST * black.rung * step / job.workers + end
        raise UsageError(
            f"{seconds:.0f} s are too few: {spent:.0f} s went into the start, a step takes "
            f"{1000 * step:.0f} ms, and a race of two cells {needed:.0f} s",
            f"give {math.ceil(1.5 * (spent + needed / share)):,} seconds or more, or a smaller "
            "network with --hidden",
        )
    plan = plan_for(
        left,
        step,
        black.windows or 500,
        workers=job.workers,
        least=black.rung,
        cells=config.cell_space.count(),
    )
    begins = 0.0 if share == 1.0 else spent + (1 - share) * (seconds - spent)
    return TimedRace(
        budget=plan.budget, windows=plan.steps, step=step, end=end, begins=begins,
        workers=job.workers,
    )  # fmt: skip


def race_seconds(job: HalvingJob) -> float:
    """About what a race takes, in seconds, by a few timed steps of its first cell."""
    step = _BESIDE * seconds_per_step(job, time.perf_counter)
    return job.plan.total_steps * step / job.workers + _START + _END


def keep_race(folder: Path, race: TimedRace) -> None:
    """Write what `timed_race` chose into the run folder."""
    write_sealed(folder / PLAN, asdict(race))


def seconds_per_step(job: HalvingJob, clock: Callable[[], float]) -> float:
    """The median time of a weight step of one cell, on the threads that a worker has."""
    threads = torch.get_num_threads()
    if job.workers > 1:
        torch.set_num_threads(1)
    try:
        training, there = job.sample, job.course.steps  # of which a training has no more
        warm = min(_WARM, there - 1)
        for _ in range(warm):
            training.advance()
        times = []
        for _ in range(min(_STEPS, there - warm)):
            began = clock()
            training.advance()
            times.append(clock() - began)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times)
