"""What a race of cells gives up, or adds, as its steps take longer or less long than planned.

Times are counted in weight steps that pass one after the other: `workers` trainings run side by
side, so that a rung of n cells takes ceil(n / workers) times its steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rnnnas.nas.halving import Decision, Prospect
from rnnnas.nas.race_plan import AGAIN, LEAST, Round, Rung

SLACK = 0.02  # of the whole time: a plan that is off by less stands
OVER = 0.04  # likewise: what is added may take so much more than there is, being nearer to it
WIDEST = 3  # times the planned children that a round may have where there is time


def time_of(cells: int, rungs: Sequence[Rung], done: int, workers: int) -> int:
    """Steps one after the other that `cells` take from step `done` through `rungs`."""
    total = 0
    for rung in rungs:
        total += math.ceil(cells / workers) * (rung.stop - done)
        cells, done = min(cells, rung.keep), rung.stop
    return total


def total_time(there: Decision, done: int, workers: int) -> int:
    """The same for all that is left of a race. done: where the present round's rungs begin."""
    rounds = sum(time_of(each.cells, each.rungs, 0, workers) for each in there.rounds)
    return time_of(there.cells, there.rungs, done, workers) + rounds


def decide(
    there: Prospect, room: float, *, whole: float, workers: int, children: Round
) -> Decision | None:
    """What to change of a race so that it ends in time; None where the plan fits.

    Where time is short, one after the other until it fits: fewer children, no more children, fewer
    cells of the present round, no second trainings of the best, a single cell. Where time is left,
    more children, a further round of them, more second trainings.

    Args:
        there: what is planned. room: steps one after the other that fit the time left. whole: those
            that the whole race was given.
        children: a round of children as this race would have it.
    """
    planned = Decision(there.cells, there.rungs, there.rounds)
    spare = room - total_time(planned, there.done, workers)
    if abs(spare) <= SLACK * whole:
        return None
    best = planned
    if spare < 0:
        for best in _less(planned):
            spare = room - total_time(best, there.done, workers)
            if spare >= -SLACK * whole:
                break
    if spare > SLACK * whole:  # what was left out may leave room for something smaller
        for choice in _more(best, children, there.finished, workers):
            over = total_time(choice, there.done, workers) - room
            if over <= OVER * whole and abs(over) < abs(spare):
                best, spare = choice, -over
    return None if best == planned else best


def _less(there: Decision) -> Iterator[Decision]:
    """What can be left out, the least important first; each choice leaves out more."""
    while True:
        places = [k for k, each in enumerate(there.rounds) if each.what == "children"]
        if not places:
            break
        place = places[-1]
        round_ = there.rounds[place]
        for cells in range(round_.cells - 1, LEAST, -1):
            yield there._replace(rounds=_with(there.rounds, place, _narrower(round_, cells)))
        there = there._replace(rounds=there.rounds[:place] + there.rounds[place + 1 :])
        yield there
    for cells in range(there.cells - 1, LEAST - 1, -1):
        there = there._replace(cells=cells, rungs=_fewer(there.rungs, cells))
        yield there
    if there.rounds:
        there = there._replace(rounds=())
        yield there
    if there.cells > 1:
        yield there._replace(cells=1, rungs=_fewer(there.rungs, 1))


def _more(there: Decision, children: Round, finished: int, workers: int) -> Iterator[Decision]:
    """What can be added, a little more each time."""
    places = [k for k, each in enumerate(there.rounds) if each.what == "children"]
    again = next((k for k, each in enumerate(there.rounds) if each.what == "again"), None)
    over = not there.rungs and not there.rounds
    if places:
        place = places[-1]
        round_ = there.rounds[place]
        for cells in range(round_.cells + 1, WIDEST * max(children.cells, LEAST) + 1):
            yield there._replace(rounds=_with(there.rounds, place, replace(round_, cells=cells)))
    elif over or (not there.rungs and again is not None):
        # The first round is over, and no children are to come.
        for cells in range(LEAST, WIDEST * max(children.cells, LEAST) + 1):
            for keep in range(1, LEAST + 1):
                fresh = replace(
                    children, cells=cells, rungs=_fewer(children.rungs, min(keep, cells))
                )
                yield there._replace(rounds=(fresh, *there.rounds))
    if again is not None and not places and there.rungs == ():
        for cells in range(AGAIN + workers, finished + 1, workers):
            one = replace(there.rounds[again], cells=cells)
            yield there._replace(rounds=_with(there.rounds, again, one))


def _with(rounds: tuple[Round, ...], place: int, one: Round) -> tuple[Round, ...]:
    return (*rounds[:place], one, *rounds[place + 1 :])


def _narrower(one: Round, cells: int) -> Round:
    """A round of fewer cells."""
    return replace(one, cells=cells, rungs=_fewer(one.rungs, cells))


def _fewer(rungs: tuple[Rung, ...], cells: int) -> tuple[Rung, ...]:
    """Rungs of which none sends on more than `cells`, and the last, as ever, one."""
    return tuple(replace(rung, keep=min(rung.keep, cells)) for rung in rungs)


def plain_of(decided: Mapping[int, Decision]) -> list[Any]:
    """The decisions of a race as plain values, with the number of rungs that were over."""
    return [
        [height, choice.cells, _plain_rungs(choice.rungs),
         [[each.what, each.cells, _plain_rungs(each.rungs)] for each in choice.rounds]]
        for height, choice in decided.items()
    ]  # fmt: skip


def decisions(plain: Sequence[Any]) -> dict[int, Decision]:
    """The inverse of `plain_of`. Raises KeyError, TypeError or ValueError for anything else."""
    found = {}
    for height, cells, rungs, rounds in plain:
        later = tuple(Round(what=w, cells=n, rungs=_rungs(own)) for w, n, own in rounds)
        found[int(height)] = Decision(int(cells), _rungs(rungs), later)
    return found


def _plain_rungs(rungs: Sequence[Rung]) -> list[list[Any]]:
    return [[rung.stop, rung.keep, rung.by] for rung in rungs]


def _rungs(plain: Sequence[Any]) -> tuple[Rung, ...]:
    return tuple(Rung(stop=stop, keep=keep, by=by) for stop, keep, by in plain)
