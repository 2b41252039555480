"""Paired comparisons: Student's t, Wilcoxon's signed ranks, and Holm's correction.

Numbers in, numbers out; a difference below 0 favours the first of two things.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rnnnas.studies.statistics import spread, t_within


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A sample of n differences: mean, ends of the 95 % interval of the mean by Student's t, and
    two-sided p values that the mean, or the centre of symmetry, is 0. None where n is too small.
    """

    n: int
    mean: float | None
    low: float | None
    high: float | None
    t_p: float | None
    wilcoxon_p: float | None


def paired(differences: Sequence[float]) -> Paired:
    """Both tests of a sample of independent differences."""
    own = spread(differences)
    t_p = None
    if own.sd is not None and own.mean is not None:
        error = own.sd / math.sqrt(own.n)
        if error > 0:
            t_p = 1 - t_within(abs(own.mean) / error, own.n - 1)
        else:
            t_p = 1.0 if own.mean == 0 else 0.0
    return Paired(
        n=own.n,
        mean=own.mean,
        low=own.low,
        high=own.high,
        t_p=t_p,
        wilcoxon_p=wilcoxon(differences),
    )


def wilcoxon(differences: Sequence[float]) -> float | None:
    """The exact two-sided p value of Wilcoxon's signed-rank test (Wilcoxon 1945).

    Differences of 0 are left out; equal ones share the mean of their ranks. None where nothing is
    left.
    """
    left = sorted((d for d in differences if d), key=abs)
    if not left:
        return None
    ranks: list[int] = []  # doubled, so that means of two ranks are whole
    start = 0
    while start < len(left):
        end = start
        while end < len(left) and abs(left[end]) == abs(left[start]):
            end += 1
        ranks += [start + 1 + end] * (end - start)
        start = end
    total = sum(ranks)
    counts = [1] + [0] * total  # of sign patterns, by the sum of the positive ranks
    for rank in ranks:
        for value in range(total, rank - 1, -1):
            counts[value] += counts[value - rank]
    positive = sum(rank for rank, d in zip(ranks, left, strict=True) if d > 0)
    tail = min(positive, total - positive)
    return min(1.0, float(2 * sum(counts[: tail + 1]) / 2 ** len(left)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values after Holm's step-down correction (Holm 1979) for as many tests as have one."""
    known = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for place, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - place)))
        corrected[i] = highest
    return corrected
