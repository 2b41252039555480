"""Columns of boxes and lanes: an order with few edge crossings, then heights with few bends.

Lengths are in pixels; y grows downwards. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

_STEPS = 250  # of the relaxation of heights: what it leaves uneven is below a pixel


@dataclass(slots=True, eq=False)
class Item:
    """What stands in a column: a state, a label, or the lane of an edge that passes."""

    width: float
    height: float
    lane: bool = False
    y: float = 0.0
    left: list[tuple[Item, float]] = field(default_factory=list)  # neighbours and their pull
    right: list[tuple[Item, float]] = field(default_factory=list)


Columns = list[list[Item]]


def join(a: Item, b: Item, kind: str) -> None:
    # Straightness matters most where an edge merely passes (Gansner et al. 1993, section 4.2).
    pull = (8.0 if a.lane and b.lane else 2.0) * (0.25 if kind == "concat" else 1.0)
    a.right.append((b, pull))
    b.left.append((a, pull))


def _pair_crossings(a: list[tuple[Item, float]], b: list[tuple[Item, float]]) -> float:
    """Weight of the crossings of two neighbours' edges on one side, the first being above."""
    return sum(p * q for u, p in a for v, q in b if u.y > v.y)


def _number(column: list[Item]) -> None:
    for place, item in enumerate(column):
        item.y = float(place)


def order(columns: Columns) -> None:
    """Permute every column to lessen crossings: by barycentres, forward and backward; the best is kept.

    (Swaps of neighbours besides took only one crossing in twenty more.)
    """

    def crossings() -> float:
        return sum(
            _pair_crossings(a.right, b.right)
            for column in columns
            for i, a in enumerate(column)
            for b in column[i + 1 :]
        )

    for column in columns:
        _number(column)
    best, kept = crossings(), [list(column) for column in columns]
    for sweep in range(12):
        if best == 0:
            break
        forward = sweep % 2 == 0
        for column in columns if forward else columns[::-1]:
            places = {}
            for item in column:
                near = item.left if forward else item.right
                pull = sum(p for _, p in near)
                places[id(item)] = sum(o.y * p for o, p in near) / pull if pull else item.y
            column.sort(key=lambda item: places[id(item)])  # noqa: B023 (used at once)
            _number(column)
        found = crossings()
        if found < best - 1e-9:
            best, kept = found, [list(column) for column in columns]
    columns[:] = kept


def _distance(upper: Item, lower: Item) -> float:
    """Least distance of two neighbours' centres in a column."""
    gap = 8.0 if upper.lane and lower.lane else 12.0
    return (upper.height + lower.height) / 2 + gap


class _Gap(NamedTuple):
    """In some column, block `lower` stands at least `distance` below block `upper`."""

    upper: int
    lower: int
    distance: float


def _descent(count: int, gaps: list[_Gap]) -> list[int] | None:
    """An order of the blocks in which every gap goes forward; None where they go in circles."""
    above = [0] * count
    below: list[list[int]] = [[] for _ in range(count)]
    for gap in gaps:
        above[gap.lower] += 1
        below[gap.upper].append(gap.lower)
    free = [block for block in range(count) if not above[block]]
    for block in free:  # grows as it is read
        for lower in below[block]:
            above[lower] -= 1
            if not above[lower]:
                free.append(lower)
    return free if len(free) == count else None


def _blocks(columns: Columns, groups: list[list[Item]]) -> dict[int, int]:
    """The block of every item, by its id: each group is one, unless the columns' order forbids."""
    block = {id(item): i for i, item in enumerate(item for column in columns for item in column)}
    for group in groups:
        joined = {block[id(item)] for item in group}
        if len(joined) > 1:
            trial = {key: min(joined) if b in joined else b for key, b in block.items()}
            if _descent(len(block), _gaps(columns, trial)) is not None:
                block = trial
    return block


def _gaps(columns: Columns, block: dict[int, int]) -> list[_Gap]:
    """What keeps blocks apart: for every two that are neighbours somewhere, their widest gap."""
    widest: dict[tuple[int, int], float] = {}
    for column in columns:
        for a, b in zip(column, column[1:], strict=False):
            pair = block[id(a)], block[id(b)]
            widest[pair] = max(widest.get(pair, 0.0), _distance(a, b))
    return [_Gap(*pair, distance) for pair, distance in widest.items()]


def settle(columns: Columns, groups: list[list[Item]]) -> None:
    """Set every item's y: neighbours pull one another to one height, gaps keep them apart.

    The items of a group get the very same height where the order allows it; earlier groups first.
    """
    block = _blocks(columns, groups)
    gaps = _gaps(columns, block)
    pulls = [
        (block[id(item)], block[id(other)], pull)
        for column in columns
        for item in column
        for other, pull in item.right
        if block[id(item)] != block[id(other)]
    ]
    total = [1e-9] * len(block)
    for a, b, pull in pulls:
        total[a] += pull
        total[b] += pull
    y = [0.0] * len(block)
    for step in range(_STEPS):
        towards = [0.0] * len(y)
        for a, b, pull in pulls:
            towards[a] += pull * (y[b] - y[a])
            towards[b] += pull * (y[a] - y[b])
        pace = 0.7 * (1 - step / _STEPS)
        y = [at + pace * t / w for at, t, w in zip(y, towards, total, strict=True)]
        for _ in range(4):
            for upper, lower, distance in gaps:
                lack = distance - (y[lower] - y[upper])
                if lack > 0:
                    # What is held firmly yields less; any other share would set the cell adrift.
                    share = total[lower] / (total[upper] + total[lower])
                    y[upper] -= lack * share
                    y[lower] += lack * (1 - share)
    # What is still too close by a fraction of a pixel is pushed down, once and for all.
    place = {block: i for i, block in enumerate(_descent(len(y), gaps) or ())}
    for upper, lower, distance in sorted(gaps, key=lambda gap: place[gap.upper]):
        y[lower] = max(y[lower], y[upper] + distance)
    for column in columns:
        for item in column:
            item.y = y[block[id(item)]]
