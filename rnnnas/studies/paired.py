"""Comparisons of two samples, paired or independent: t tests, Wilcoxon's tests, Holm's correction.

Numbers in, numbers out; a difference below 0 favours the first of two things.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rnnnas.studies.statistics import spread, t_quantile, t_within


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A sample of n differences: mean, ends of the 95 % interval of the mean by Student's t, and
    two-sided p values that the mean, or the centre of symmetry, is 0. None where n is too small.

    Of independent samples (`unpaired`): n of the first, and the difference of the two means.
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


def beside_one(differences: Sequence[float], variance: float, degrees: int) -> Paired:
    """The t test of differences from one thing that was itself measured with noise.

    The thing's error is in all differences alike, and no number of them averages it out: the mean's
    squared error is s² / n + `variance`, with the degrees of freedom of Satterthwaite (1946),
    rounded down. Signed ranks know nothing of such an error: there is no p value by them.

    Args:
        variance: of the thing's measured value. degrees: of freedom that it was estimated with.
    """
    own = spread(differences)
    if own.mean is None or own.sd is None:
        return Paired(n=own.n, mean=own.mean, low=None, high=None, t_p=None, wilcoxon_p=None)
    parts = own.sd**2 / own.n, variance
    return Paired(
        n=own.n, mean=own.mean, wilcoxon_p=None,
        **_satterthwaite(own.mean, parts, (own.n - 1, degrees)),
    )  # fmt: skip


def unpaired(own: Sequence[float], other: Sequence[float]) -> Paired:
    """Both tests of two independent samples: Welch's t, its degrees of freedom rounded down
    (Welch 1947), and Wilcoxon's rank sums.
    """
    first, second = spread(own), spread(other)
    if first.mean is None or second.mean is None:
        return Paired(n=first.n, mean=None, low=None, high=None, t_p=None, wilcoxon_p=None)
    mean = first.mean - second.mean
    tested: dict[str, float | None] = {"low": None, "high": None, "t_p": None}
    if first.sd is not None and second.sd is not None:
        parts = first.sd**2 / first.n, second.sd**2 / second.n
        tested = _satterthwaite(mean, parts, (first.n - 1, second.n - 1))
    return Paired(n=first.n, mean=mean, wilcoxon_p=rank_sum(own, other), **tested)


def _satterthwaite(
    mean: float, parts: tuple[float, float], degrees: tuple[int, int]
) -> dict[str, float | None]:
    """Interval and p value of a mean whose squared error is the sum of two `parts`, each estimated
    with its own degrees of freedom.
    """
    error = math.sqrt(math.fsum(parts))
    if not error > 0:
        return {"t_p": 1.0 if mean == 0 else 0.0, "low": mean, "high": mean}
    below = math.fsum(part**2 / own for part, own in zip(parts, degrees, strict=True))
    both = max(1, int(math.fsum(parts) ** 2 / below + 1e-9))
    half = t_quantile(both) * error
    return {"t_p": 1 - t_within(abs(mean) / error, both), "low": mean - half, "high": mean + half}


def rank_sum(own: Sequence[float], other: Sequence[float]) -> float | None:
    """The exact two-sided p value of Wilcoxon's rank-sum test (Wilcoxon 1945; Mann, Whitney 1947).

    Equal values share the mean of their ranks. None where a sample is empty.
    """
    if not own or not other:
        return None
    pooled = sorted((*own, *other))
    # Doubled, so that means of two ranks are whole: the first place of a value and its last.
    doubled = {x: 2 * pooled.index(x) + 1 + pooled.count(x) for x in pooled}
    ranks = [doubled[x] for x in pooled]
    counts = [{0: 1}, *({} for _ in own)]  # of choices of k values, by the sum of their ranks
    for rank in ranks:
        for k in range(len(own), 0, -1):
            for total, count in counts[k - 1].items():
                counts[k][total + rank] = counts[k].get(total + rank, 0) + count
    observed = sum(doubled[x] for x in own)
    every = counts[len(own)]
    below = sum(count for total, count in every.items() if total <= observed)
    above = sum(count for total, count in every.items() if total >= observed)
    return min(1.0, 2 * min(below, above) / math.comb(len(pooled), len(own)))


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


def p_text(p: float | None, unknown: str = "-") -> str:
    """A p value as it is shown; below 1e-15 rounding decides its digits."""
    if p is None:
        return unknown
    return f"{p:.2g}" if p >= 1e-15 else "<1e-15"


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values after Holm's step-down correction (Holm 1979) for as many tests as have one."""
    known = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for place, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - place)))
        corrected[i] = highest
    return corrected
