"""What a step takes, measured by several processes that share a run."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from rnnnas.engine.budget import Costs, RaceClock, Stopwatch, measure_step

CPU = torch.device("cpu")


def test_processes_that_share_a_run_time_as_many_steps() -> None:
    """Each step waits for all: one that came earlier finds its first step long, and the others not.
    The first process's clock counts.
    """
    barrier, told = threading.Barrier(2, timeout=60), [0.0]
    steps: dict[int, list[float]] = {0: [9.0, *[1.0] * 20], 1: [1.0] * 21}  # by each one's clock

    class Shared:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def broadcast(self, value: float) -> float:
            if self.rank == 0:
                told[0] = value
            barrier.wait()
            found = told[0]
            barrier.wait()
            return found

    class Job:
        device, cuda_graphs = CPU, None

        def __init__(self, rank: int) -> None:
            self.ranks, self.now, self.made = Shared(rank), 0.0, 0

        def begin_epoch(self, at: Any) -> None:
            pass

        def lengths(self, epoch: int) -> list[int]:
            return [5] * 21

        def step(self, at: Any, length: int, lr_factor: float) -> None:
            self.now += steps[self.ranks.rank][self.made]
            self.made += 1

    jobs = [Job(rank) for rank in (0, 1)]
    found: dict[int, float] = {}

    def measure(job: Any) -> None:
        found[job.ranks.rank] = measure_step(job, 3.5, lambda: job.now)

    threads = [threading.Thread(target=measure, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert jobs[0].made == jobs[1].made == 5  # one long step, and four that are timed
    assert found == {0: 1.0, 1: 1.0}


def test_a_step_costs_what_windows_of_mean_length_take() -> None:
    """A second a token: of the timed windows some are longer than the mean of a pass."""

    class Job:
        device, cuda_graphs = CPU, None
        now = 0.0

        def begin_epoch(self, at: Any) -> None:
            pass

        def lengths(self, epoch: int) -> list[int]:
            return [20] * 12 + [5] * 12

        def step(self, at: Any, length: int, lr_factor: float) -> None:
            self.now += length

    job: Any = Job()
    assert measure_step(job, 1e9, lambda: job.now) == pytest.approx(12.5)


def test_a_race_is_late_when_its_end_would_be() -> None:
    now = [0.0]
    watch = Stopwatch(clock=lambda: now[0])
    clock = RaceClock(watch, 100.0, Costs(step=0.1, validation=0.0, end=10.0))
    for seconds, late in ((0.0, False), (89.0, False), (92.9, False), (93.1, True), (200.0, True)):
        now[0] = seconds
        assert clock.late == late
    now[0] = 50.0
    assert clock.room == pytest.approx(400)
