"""A time budget for a run: what a step costs here, how many fit, and keeping to it on the way.

A budgeted run is cut into rounds, which take the place of epochs: each is an equal share of the
schedules. How many steps a round has is planned from costs that were measured before the first
step. At the start of every round the plan is compared with the time that is left, and the round
gets more or fewer steps where the two are apart. What was decided lies in the run's state: a run
that goes on after a stop, or returns to its last good state, repeats it.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, final

import torch

from rnnnas.distributed import ALONE, Ranks
from rnnnas.engine.cuda_graphs import PATIENCE, synchronise
from rnnnas.engine.job import Position
from rnnnas.engine.steps import EVALUATION_STEPS, Readable, evaluate
from rnnnas.errors import CheckpointError, UsageError, visible
from rnnnas.runs.sealed import read_sealed, write_sealed
from rnnnas.types import Batch

T = TypeVar("T")
Clock = Callable[[], float]

PLAN = "plan.json"  # of a run folder
ROUNDS = (5, 20)  # at least and at most, in a budget of up to 20 * LONGEST_ROUND seconds
SHORTEST_ROUND, LONGEST_ROUND = 6.0, 600.0  # seconds: after each the state is saved
VALIDATION_SHARE = 0.1  # of the budget, at most, goes to validations on the way
TOLERANCE = 0.02  # of the budget: a round keeps its planned steps where the end is off by less
SLOWDOWN = 0.75, 2.0  # least and most that the end's work is taken to be slower than measured
MEMORY = 0.5  # weight of the newest round in what a step is taken to cost
LATE = 0.03  # of the budget: a race that is later than this ends where it is
NEWEST = 0.7  # weight of the newest rung in what a step of a race is taken to cost
WARM, TIMED = 3, 8  # steps that are discarded, and those that are timed
TIMED_SHARE = 0.02  # of the budget, at most, goes to the timed steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds that a run's parts take on this device.

    step: one step, in the middle of the run. validation: one pass over the validation data. end:
    all that follows the last step, its own last validation included.
    """

    step: float
    validation: float
    end: float

    def least(self, other: Costs) -> Costs:
        """The smaller of each."""
        return Costs(
            step=min(self.step, other.step),
            validation=min(self.validation, other.validation),
            end=min(self.end, other.end),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a budget was turned into before the first step.

    seconds: the budget; first: what it was before the run was extended. spent: of it, before the
    first step. rounds: how many; steps: planned for each. every: validation comes after every so
    many rounds, and after the last. costs: as they were measured. equal: every round has the
    planned steps, and there are as many rounds as fit.
    """

    seconds: float
    spent: float
    rounds: int
    steps: int
    every: int
    costs: Costs
    equal: bool = False
    first: float = 0.0

    def to_plain(self) -> dict[str, Any]:
        """Nested plain values, as plan.json holds them."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Plan:
        """The inverse of `to_plain`. Raises KeyError or TypeError for anything else."""
        return cls(**{**plain, "costs": Costs(**plain["costs"])})

    def line(self, course: Course) -> str:
        """What was chosen, in one line."""
        steps, costs = self.rounds * self.steps, self.costs
        start = f"{_time(self.seconds)}: a step takes {_time(costs.step)}, so about {steps:,} steps"
        end = f"{_time(costs.end)} for the end"
        if self.equal:
            return f"{start}, {self.steps:,} for each of about {self.rounds} cells; {end}"
        often = "each" if self.every == 1 else f"every {self.every}"
        return (
            f"{start}, {course.passes(steps):.3g} passes over the text, in {self.rounds} rounds; "
            f"validation ({_time(costs.validation)}) after {often}; {end}"
        )

    def extended(self, seconds: float) -> Plan:
        """The same plan with more rounds like those it has, for a larger budget."""
        more = (seconds - self.seconds) / max(self.seconds - self.spent, 1e-9)
        return replace(
            self, seconds=seconds, rounds=self.rounds + max(1, round(more * self.rounds))
        )


def _time(seconds: float) -> str:
    """'43 ms', '1.8 s', '5 min'."""
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.3g} min"


def make_plan(
    seconds: float, spent: float, costs: Costs, equal: int = 0, later: float = 0.0
) -> Plan:
    """Rounds and steps for what is left of a budget.

    Args:
        later: seconds of the user's budget that are for what follows, beside `seconds`.
        equal: rounds of the same length, each validated, instead of what the budget suggests.

    Raises:
        UsageError: where not even a few steps fit, with what the parts take.
    """
    left = seconds - spent - costs.end
    # Of what is left: around every round the state is saved, which steps must be worth.
    most = max(left, 0.0)
    rounds = max(round(most / LONGEST_ROUND), min(round(most / SHORTEST_ROUND), ROUNDS[1]))
    rounds = equal or max(rounds, ROUNDS[0])
    affordable = int(VALIDATION_SHARE * seconds / max(costs.validation, 1e-9))
    every = 1 if equal else math.ceil(rounds / max(1, min(affordable, rounds)))
    left -= (math.ceil(rounds / every) - 1) * costs.validation
    steps = int(left / (rounds * costs.step)) if left > 0 else 0
    if steps < 1:
        least = spent + costs.end + rounds * costs.step
        of_it = f", {later:.0f} s are for the race" if later else ""
        least = 1.5 * (least + (later * least / seconds))
        raise UsageError(
            f"{seconds + later:.0f} s are too few: {spent:.0f} s went into the start{of_it}, the "
            f"evaluation at the end takes about {costs.end:.0f} s, and a step "
            f"{1000 * costs.step:.0f} ms",
            f"give {math.ceil(least):,} seconds or more, or a smaller model with --hidden",
        )
    return Plan(
        seconds=seconds, spent=spent, rounds=rounds, steps=steps, every=every, costs=costs,
        equal=bool(equal), first=seconds,
    )  # fmt: skip


def read_plan(folder: Path) -> Plan | None:
    """The plan of the run in `folder`, None where there is none.

    Raises:
        CheckpointError: where it is damaged.
    """
    path = folder / PLAN
    if not os.path.exists(path):  # unlike Path's, False for a name that is too long
        return None
    try:
        return Plan.from_plain(read_sealed(path, "start the run anew with --fresh"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged", "start the run anew with --fresh") from error


def write_plan(folder: Path, plan: Plan) -> None:
    """Keep `plan` in a run folder. Raises DiskError where it cannot be written."""
    write_sealed(folder / PLAN, plan.to_plain())


def planned(
    seconds: float, folder: Path, stopwatch: Stopwatch, *, fresh: bool, ranks: Ranks,
    measure: Callable[[], Costs], equal: int = 0, later: float = 0.0,
) -> Plan:  # fmt: skip
    """The plan of the run in `folder`, or a new one, by costs that `measure` finds on every rank.

    later: as of `make_plan`.

    Raises:
        UsageError: as `make_plan`. CheckpointError: as `read_plan`.
    """

    def stored() -> dict[str, Any] | None:
        plan = None if fresh else read_plan(folder)
        if plan is not None and plan.seconds < seconds:
            plan = plan.extended(seconds)
        return None if plan is None else plan.to_plain()

    there = ranks.on_rank_zero(stored)
    if there is None:
        costs = measure()
        large = ranks.broadcast(costs.end > 0.5 * (seconds - stopwatch.spent()))
        if large and ranks.broadcast(stopwatch.spent() < 0.5 * seconds):
            # Other work may have come in between: what is refused is measured twice.
            costs = costs.least(measure())
        there = ranks.on_rank_zero(
            lambda: make_plan(seconds, stopwatch.spent(), costs, equal, later).to_plain()
        )
    return Plan.from_plain(there)


def enter_plan(plan: Plan, folder: Path, course: Course, *, quiet: bool, ranks: Ranks) -> None:
    """Keep a plan in its run folder, and say on standard error what was chosen."""
    if not ranks.leads:
        return
    write_plan(folder, plan)
    if not quiet:
        print(visible(plan.line(course)), file=sys.stderr, flush=True)


@final
class Stopwatch:
    """The time of a budget that is gone.

    Args:
        began: the reading of `clock` at which the budget began, now unless given.
        clock: seconds; for tests.
    """

    def __init__(self, began: float | None = None, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock() if began is None else began
        self._before = 0.0  # seconds of earlier sessions

    def spent(self) -> float:
        """Seconds since the budget began, pauses between two sessions of a run left out."""
        return self._clock() - self._began

    def resume(self, spent: float) -> None:
        """Count the seconds that earlier sessions of the run took, too: `spent` in all."""
        self._began -= spent - self._before
        self._before = spent


@final
class Pace:
    """How a run keeps to its plan: the steps of each round, as they are decided.

    Args:
        stopwatch: running since the budget began.
        ranks: what the first of them decides holds for all.
    """

    def __init__(self, plan: Plan, stopwatch: Stopwatch, ranks: Ranks = ALONE) -> None:
        self.plan = plan
        self.rounds: list[int] = []  # steps of each that was begun
        self._stopwatch = stopwatch
        self._ranks = ranks
        self._step_seconds = plan.costs.step
        self._validation_seconds = plan.costs.validation
        self._around = 0.0  # seconds between two rounds, validation left out: states are saved
        self._ended: float | None = None  # of the round before, None before it and once resumed
        self._began: float | None = None  # of the present round, None before it and once resumed
        self._resumed = False
        self._over = False  # whether the last round that was begun was to be the last one

    def spent(self) -> float:
        """Seconds of the budget that are gone."""
        return self._stopwatch.spent()

    @property
    def slowdown(self) -> float:
        """How much longer a step takes now than when it was measured; within bounds, for a search
        whose alphas rest at first, and for a burst of other work.
        """
        low, high = SLOWDOWN
        return min(max(low, self._step_seconds / self.plan.costs.step), high)

    def steps(self, number: int) -> int:
        """Steps of round `number`; decided when it is first asked for."""
        if number == len(self.rounds):
            if self._ended is not None:
                self._around += MEMORY * (self.spent() - self._ended - self._around)
                self._ended = None
            self.rounds.append(self._ranks.broadcast(self._decided(number)))
            self._began = self.spent()
        return self.rounds[number]

    def first(self, number: int) -> int:
        """Steps of all rounds before `number`."""
        return sum(self.rounds[:number])

    def _left(self) -> float:
        """Seconds before the end's own work must begin."""
        return self.plan.seconds - self.spent() - self.plan.costs.end * self.slowdown

    def _no_time(self) -> bool:
        """Whether not even a step fits any more, or half a round where all are equal."""
        steps = 0.5 * self.plan.steps if self.plan.equal else 1.0
        return self._left() < steps * self._step_seconds

    def total(self) -> int:
        """Rounds that there are, those that a restored state ended before the plan's last one."""
        ended = self._ranks.broadcast(self._over and self._no_time())
        if ended:
            return len(self.rounds)
        return max(self.plan.rounds, len(self.rounds) + 1) if self.plan.equal else self.plan.rounds

    def _decided(self, number: int) -> int:
        plan = self.plan
        if plan.equal:
            return plan.steps
        ahead = range(number, plan.rounds)
        # The last validation is part of the end's costs.
        validations = sum(self.validates(k) for k in ahead) - 1
        left = self._left() - validations * self._validation_seconds
        left -= (len(ahead) - 1) * self._around
        fitting = left / (len(ahead) * self._step_seconds)
        error = abs(fitting - plan.steps) * len(ahead) * self._step_seconds
        if error <= TOLERANCE * plan.seconds:
            return plan.steps
        return max(1, int(fitting))

    def validates(self, number: int) -> bool:
        """Whether validation follows round `number`."""
        return (number + 1) % self.plan.every == 0 or number + 1 >= self.plan.rounds

    def trained(self, number: int) -> bool:
        """Note that the steps of a round are done. Whether it is the last: by the plan, or because
        no time is left.
        """
        if self._began is not None:
            took = (self.spent() - self._began) / self.rounds[number]
            # A round of few steps tells little.
            weight = MEMORY * min(1.0, self.rounds[number] / TIMED)
            self._step_seconds += weight * (took - self._step_seconds)
            self._began, self._ended = None, self.spent()
        planned = number + 1 >= self.plan.rounds and not self.plan.equal
        over = planned or self._no_time()
        self._over = self._ranks.broadcast(over)
        return self._over

    def validated(self, seconds: float) -> None:
        """Note that a validation took `seconds`."""
        self._validation_seconds = seconds
        if self._ended is not None:
            self._ended += seconds

    def told(self) -> dict[str, Any]:
        """What a result says of a budget: that, what is gone of it, and the steps."""
        return {
            "budget_seconds": self.plan.seconds,
            "spent_seconds": round(self.spent(), 3),
            "steps": sum(self.rounds),
        }

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "rounds": list(self.rounds),
            "spent": self.spent(),
            "step_seconds": self._step_seconds,
            "validation_seconds": self._validation_seconds,
            "around": self._around,
            "over": self._over,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave: of an earlier session, or of this one, whose time is gone
        even where its steps are undone.
        """
        if not self._resumed and not self.rounds:
            self._stopwatch.resume(state["spent"])
        self._resumed = True
        self.rounds = list(state["rounds"])
        self._step_seconds = state["step_seconds"]
        self._validation_seconds = state["validation_seconds"]
        self._over = state["over"]
        self._around = state.get("around", 0.0)
        self._began = self._ended = None


@final
class RaceClock:
    """The time of a race of trainings: how long their steps take, and how many more fit.

    Steps are counted one after the other: of trainings side by side, those of one of them.

    Args:
        stopwatch: running since the budget began.
        seconds: the reading of it at which all is to be over.
        costs: as they were measured before.
        aim: the share of that which is aimed at.
    """

    def __init__(
        self, stopwatch: Stopwatch, seconds: float, costs: Costs, aim: float = 1.0
    ) -> None:
        self.seconds, self._aim = seconds, aim
        self._stopwatch, self._costs = stopwatch, costs
        self._step = self._known = costs.step
        self._began: float | None = None

    def spent(self) -> float:
        """Seconds of the budget that are gone."""
        return self._stopwatch.spent()

    def resume(self, spent: float) -> None:
        """Count the seconds of earlier sessions, `spent` in all."""
        self._stopwatch.resume(spent)

    def rung(self) -> None:
        """Note that the next trainings are about to begin."""
        self._known, self._began = self._step, None

    def passed(self, steps: float) -> None:
        """Note that `steps`, one after the other, are done of these trainings."""
        if self._began is None:
            self._began = self.spent()
        elif steps > 0:
            took = (self.spent() - self._began) / steps
            self._step = self._known + NEWEST * (took - self._known)

    @property
    def whole(self) -> float:
        """Steps that the whole budget would hold."""
        return self.seconds / self._step

    @property
    def room(self) -> float:
        """Steps that fit before the end's own work must begin."""
        low, high = SLOWDOWN
        slower = min(max(low, self._step / self._costs.step), high)
        left = self._aim * self.seconds - self.spent() - self._costs.end * slower
        return left / self._step

    @property
    def late(self) -> bool:
        """Whether the time is up: the end's own work would end after it."""
        return self.room * self._step < -LATE * self.seconds

    def told(self) -> dict[str, float]:
        """What a result says of a budget."""
        return {"budget_seconds": self.seconds, "spent_seconds": round(self.spent(), 3)}


class Paced(Protocol):
    """A job whose length a pace may decide; `epochs` are those that it is to have."""

    pace: Pace | None
    epochs: int


def end_round(
    job: Paced, number: int, validate: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """The values of the validation that ends an epoch, or a round of a time budget.

    A round may end without one. Where it is the last, `epochs` is set to end the job.

    Args:
        number: of the epoch or round, from 0.
        validate: measures, and says what it found.
    """
    pace = job.pace
    if pace is None:
        return validate()
    if pace.trained(number):
        job.epochs = number + 1
    elif not pace.validates(number):
        return {}
    began = pace.spent()
    values = validate()
    pace.validated(pace.spent() - began)
    return values


@final
class Course:
    """The windows of a run one after the other: pass after pass over the data.

    Args:
        lengths: T of every window of a pass, by its number.
    """

    def __init__(self, lengths: Callable[[int], list[int]]) -> None:
        self._of_pass = lengths
        self._windows: list[tuple[int, int, int, int]] = []  # pass, number in it, start, T
        self._passes = 0

    def _grow(self, count: int) -> None:
        while len(self._windows) < count:
            start = 0
            for number, steps in enumerate(self._of_pass(self._passes)):
                self._windows.append((self._passes, number, start, steps))
                start += steps
            self._passes += 1

    def lengths(self, first: int, count: int) -> list[int]:
        """T of `count` windows from number `first` of the run on."""
        self._grow(first + count)
        return [steps for *_, steps in self._windows[first : first + count]]

    def passes(self, steps: int) -> float:
        """Passes over the data that so many steps are, by the length of the first one."""
        return steps / len(self._of_pass(0))

    def place(self, at: Position) -> Position:
        """Where in the data step `at.step` of the run reads: the pass takes the epoch's place."""
        self._grow(at.step + 1)
        epoch, window, start, _ = self._windows[at.step]
        return replace(at, epoch=epoch, window=window, start=start)


class Steppable(Protocol):
    """What `measure_step` needs of a job."""

    device: torch.device
    cuda_graphs: Any

    def lengths(self, epoch: int) -> list[int]: ...
    def begin_epoch(self, at: Position) -> None: ...
    def step(self, at: Position, steps: int, lr_factor: float) -> Any: ...


def measure_step(job: Steppable, most: float, clock: Clock = time.perf_counter) -> float:
    """Seconds a step in the middle of a run, the first ones left out, which compile or are cold.

    The job's weights move: use one that is thrown away. Where several processes share it, all go by
    the clock of the first: each step waits for all of them, so that all must make as many.

    Args:
        most: seconds after which no further step is timed.
    """
    ranks: Ranks = getattr(job, "ranks", ALONE)
    job.begin_epoch(Position())
    lengths = job.lengths(0)
    mean = sum(lengths) / len(lengths)
    warm = min(WARM if job.cuda_graphs is None else PATIENCE + 2, len(lengths) - 1)
    if job.cuda_graphs is not None:  # one length, until it is captured
        lengths = lengths[:1] * min(warm + TIMED, len(lengths))
    start, timed, took, tokens = 0, 0, 0.0, 0
    for number, steps in enumerate(lengths[: warm + TIMED]):
        synchronise(job.device)
        began = clock()
        job.step(Position(step=number, start=start, progress=0.5), steps, 1.0)
        synchronise(job.device)
        seconds = ranks.broadcast(clock() - began)
        start += steps
        if number >= warm:
            took, timed, tokens = took + seconds, timed + 1, tokens + steps
        elif job.cuda_graphs is None and seconds > most:  # of such long steps, one will do
            warm = number + 1
        if took > most:
            break
    # Windows differ in length: what counts is the mean over a pass.
    return took / tokens * mean


def measure_pass(
    net: torch.nn.Module,
    data: Readable,
    targets: int,
    mixtures: Mapping[str, Any],
    clock: Clock = time.perf_counter,
) -> float:
    """Seconds that `steps.evaluate` takes over `data` of `targets` targets, from its first
    windows.
    """
    device = next(net.parameters()).device
    evaluate(net, _First(data, 1), mixtures)  # the first is cold
    synchronise(device)
    began = clock()
    score = evaluate(net, _First(data, 2), mixtures)
    synchronise(device)
    return (clock() - began) * targets / max(score.tokens, 1)


class _First:
    """The first batches of what an evaluation goes through."""

    def __init__(self, data: Readable, count: int) -> None:
        self._data, self._count = data, count

    def read(self, steps: int = EVALUATION_STEPS) -> Iterator[Batch]:
        return itertools.islice(iter(self._data.read(steps)), self._count)
