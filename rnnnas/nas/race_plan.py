"""The plan of a race by successive halving: rounds, rungs, and what they cost.

T: weight steps of a full training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from rnnnas.errors import UsageError

FIRST = 0.3  # of T: where the first rung ends; ranks at 0.2 T were too often not those at T
KEPT = 4  # one of so many cells goes on from there (benchmarks/halving.md)
LEAST = 2  # cells that a rung sends on: the best of a short training is too often not the best
GENERATION = 5.8  # T that a round of children costs: 12 to 0.3 T, 3 on to T
START = 12.0  # T of the first round that stands before it: 25 to 0.3 T, 6 on to T
AGAIN = 2  # cells that are trained once more with fresh draws; each costs T
AGAIN_FROM = 10.0  # T: a smaller budget is spent on more cells instead
CHILDREN_FROM = 20.0  # T: below, more random cells were worth more than children of the best
SHORTEST = 3  # times the first rung's least steps: a full training in a given time, at least
MOST = 22.0  # T: a larger budget is better spent on longer trainings


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A height that cells are trained to.

    stop: weight steps from the beginning of the training. keep: cells that go on from here. by:
    what they are promoted by: the mean train loss over the second half of the rung, or the loss
    of averaged weights on held-out text.
    """

    stop: int
    keep: int
    by: Literal["train", "heldout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Cells that start together. what: those that were proposed and random ones; one-gene children
    of the best so far; or the best so far, again, with fresh weights, windows and masks.
    """

    what: Literal["start", "children", "again"]
    cells: int
    rungs: tuple[Rung, ...]

    @property
    def steps(self) -> int:
        """Weight steps of all its trainings together."""
        total, cells, begin = 0, self.cells, 0
        for rung in self.rungs:
            total += cells * (rung.stop - begin)
            cells, begin = min(cells, rung.keep), rung.stop
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The rounds of a race over full trainings of T `steps`.

    budget: full trainings that it was made for, which `plan_of` makes the same plan of; what it
    costs is a little less, as cells are whole.
    """

    steps: int
    rounds: tuple[Round, ...]
    budget: float = field(default=0.0, compare=False)

    @property
    def total_steps(self) -> int:
        """Weight steps of all trainings together, at most."""
        return sum(each.steps for each in self.rounds)

    @property
    def cost(self) -> float:
        """The same in full trainings."""
        return self.total_steps / self.steps

    @property
    def cells(self) -> int:
        """How many different cells are trained, at most."""
        return sum(each.cells for each in self.rounds if each.what != "again")

    @property
    def scorings(self) -> int:
        """How often a cell is scored on held-out text, at most."""
        total = 0
        for each in self.rounds:
            cells = each.cells
            for rung in each.rungs:
                total += cells * (rung.by == "heldout")
                cells = min(cells, rung.keep)
        return total

    def lines(self) -> list[str]:
        """The plan in words, a line a round."""
        said = []
        for each in self.rounds:
            parts = [f"{each.cells} {_NOUNS[each.what]} to step {each.rungs[0].stop}"]
            parts += [
                f"{min(before.keep, each.cells)} on to {rung.stop}"
                for before, rung in zip(each.rungs, each.rungs[1:], strict=False)
            ]
            said.append(", ".join(parts))
        return said


_NOUNS = {"start": "cells", "children": "one-gene children", "again": "with fresh draws"}


def plan_of(budget: float, steps: int, *, least: int = 100, cells: int = 0) -> Plan:
    """The plan that spends `budget` full trainings of `steps` weight steps each.

    As many cells as fit are trained to 0.3 T, a quarter of them on to T. From 10 T on, 2 T go to
    training the best two again; from 20 T on, about 6 T to one-gene children of the best, and of
    what is more to more rounds of children instead of more first cells.

    Args:
        least: steps of the first rung, at least, as far as T has so many.
        cells: of the space; no more are trained in the first round. 0: no limit.

    Raises:
        UsageError: where the budget does not hold two full trainings.
    """
    if steps < 1 or not budget >= LEAST:
        raise UsageError(
            f"a budget of {budget:g} full trainings of {steps} steps is too small: "
            f"halving trains at least {LEAST} cells in full",
            "raise blackbox.budget, or lower blackbox.windows",
        )
    if budget < AGAIN_FROM:
        first = _round("start", budget, steps, least, cells)
        return Plan(steps=steps, rounds=(first,), budget=budget)
    left = budget - AGAIN
    generations = max(1, int((left - START) / GENERATION)) if budget >= CHILDREN_FROM else 0
    rounds = [_round("start", left - generations * GENERATION, steps, least, cells)]
    rounds += [_round("children", GENERATION, steps, least)] * generations
    final = Rung(stop=steps, keep=1, by="heldout")
    rounds.append(Round(what="again", cells=AGAIN, rungs=(final,)))
    return Plan(steps=steps, rounds=tuple(rounds), budget=budget)


def plan_for(
    seconds: float,
    seconds_per_step: float,
    steps: int,
    *,
    workers: int = 1,
    least: int = 100,
    cells: int = 0,
) -> Plan:
    """The plan that takes about `seconds`, given the measured time of a weight step.

    What is left over `MOST` full trainings of `steps` lengthens the trainings instead: a longer
    one says more about the end. Where fewer fit, trainings are shortened, down to `SHORTEST` times
    `least`: of many short ones, a race can give up or add some as it sees the time go.

    Args:
        seconds_per_step: of one cell's training, while `workers` of them run side by side.

    Raises:
        UsageError: where not even two trainings of `least` steps fit.
    """
    there = seconds * workers / seconds_per_step  # weight steps
    if there < LEAST * least:
        raise UsageError(
            f"{seconds:.0f} s are too little: they hold {there:.0f} steps of {seconds_per_step:.2g}"
            f" s, and halving trains {LEAST} cells for {least} steps at least",
            "give more time, or a smaller network with --set model.hidden=...",
        )
    if there > MOST * steps:
        steps = int(there / MOST)
    else:
        steps = min(steps, max(int(there / MOST), SHORTEST * least))
    budget = min(there / steps, MOST)
    if budget < LEAST:
        steps, budget = int(there / LEAST), float(LEAST)
    return plan_of(budget, steps, least=least, cells=cells)


def _round(
    what: Literal["start", "children"], budget: float, steps: int, least: int, limit: int = 0
) -> Round:
    """The round of the most cells that costs at most `budget`; of two where even they cost more."""
    found = _with(what, LEAST, steps, least)
    count = LEAST + 1
    while not limit or count <= limit:
        wider = _with(what, count, steps, least)
        if wider.steps > budget * steps + 0.5:
            break
        found, count = wider, count + 1
    return found


def _with(what: Literal["start", "children"], cells: int, steps: int, least: int) -> Round:
    first = min(steps, max(math.ceil(FIRST * steps), least))
    rungs = [Rung(stop=steps, keep=1, by="heldout")]
    if first < steps:  # else so short that the first rung is all
        rungs.insert(0, Rung(stop=first, keep=max(LEAST, round(cells / KEPT)), by="train"))
    return Round(what=what, cells=cells, rungs=tuple(rungs))


def children_of(steps: int, least: int) -> Round:
    """A round of one-gene children of the usual width, over full trainings of T `steps`."""
    return _round("children", GENERATION, steps, least)
