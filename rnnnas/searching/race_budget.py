"""A race in a given time: how many cells, and how long their trainings, from a measured step."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from rnnnas.config.text import SearchConfig
from rnnnas.data.text_corpus import Corpus
from rnnnas.errors import CheckpointError
from rnnnas.nas.halving import plan_for
from rnnnas.runs.sealed import read_sealed, write_sealed
from rnnnas.searching.halving import HalvingJob

PLAN = "race.json"  # of a run: what was chosen, so that a resumed race goes on as it began
SHARE = 0.5  # of a search's time that goes to the race behind another method
_WARM, _STEPS = 3, 8  # steps that are not timed, and that are
_START = 6.0  # seconds that workers take to start, and the last evaluation
# Cells are scored between the rungs, and two that run side by side share caches and memory.
_BESIDE = 1.25


def timed_race(
    config: SearchConfig,
    corpus: Corpus,
    device: torch.device,
    folder: Path,
    seconds: float,
    *,
    fresh: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, int]:
    """The budget, in full trainings, and the steps of one, for a race that takes `seconds`.

    A run folder that holds a plan keeps it.

    Args:
        config: of a search by halving.

    Raises:
        UsageError: where the time does not hold two trainings.
        CheckpointError: where the folder's plan is damaged.
    """
    path = folder / PLAN
    if not fresh and os.path.exists(path):
        kept = read_sealed(path, "start anew with --fresh")
        try:
            return float(kept["budget"]), int(kept["windows"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged", "start anew with --fresh") from error
    black = config.blackbox
    usual = black.windows or 500
    job = HalvingJob(replace(config, blackbox=replace(black, budget=2.0)), corpus, device)
    step = seconds_per_step(job, clock)
    left = max(seconds - _START, 0.1 * seconds)
    plan = plan_for(
        left,
        _BESIDE * step,
        usual,
        workers=job.workers,
        least=black.rung,
        cells=config.cell_space.count(),
    )
    return plan.cost, plan.steps


def race_seconds(job: HalvingJob) -> float:
    """About what a race takes, in seconds, by a few timed steps of its first cell."""
    step = _BESIDE * seconds_per_step(job, time.perf_counter)
    return job.plan.total_steps * step / job.workers + _START


def keep_race(folder: Path, budget: float, windows: int) -> None:
    """Write what `timed_race` chose into the run folder."""
    write_sealed(folder / PLAN, {"budget": budget, "windows": windows})


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
