"""Statistics of a comparison: mean and its confidence interval, rank correlation, fair minimum.

Numbers in, numbers out; n is a count of values throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95  # of every confidence interval, and 1 - LEVEL of every test
EXACT = 60  # things whose orders are counted one by one; their number grows as the fourth power


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A sample's mean, its standard deviation (divisor n - 1), and the ends of the confidence
    interval of the mean. sd, low and high are None for one value, mean too for none.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and the interval mean ± t(n - 1) sd / sqrt(n), by Student's t.

    The interval takes the values for independent draws of one normal distribution.
    """
    n = len(values)
    if n == 0:
        return Spread(n=0, mean=None, sd=None, low=None, high=None)
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(n=1, mean=mean, sd=None, low=None, high=None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * sd / math.sqrt(n)
    return Spread(n=n, mean=mean, sd=sd, low=mean - half, high=mean + half)


def training_variance(cells: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """The variance of one training about what its cell and its seed come to, and its degrees of
    freedom: the residual of a two-way analysis of variance of n cells by k seeds, of which a cell
    that was found twice counts once. None where n or k is below 2.
    """
    rows = sorted({tuple(row) for row in cells})
    n, k = len(rows), len(rows[0]) if rows else 0
    if n < 2 or k < 2:
        return None
    by_seed = [math.fsum(row[seed] for row in rows) / n for seed in range(k)]
    whole = math.fsum(by_seed) / k
    squares = math.fsum(
        (value - math.fsum(row) / k - by_seed[seed] + whole) ** 2
        for row in rows
        for seed, value in enumerate(row)
    )
    return squares / ((n - 1) * (k - 1)), (n - 1) * (k - 1)


def t_within(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's t: Abramowitz & Stegun (1972), 26.7.3 and 26.7.4, exact sums."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(odd, degrees - 1, 2):  # cos^odd, cos^(odd + 2), ... cos^(degrees - 2)
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """The t with P(|T| <= t) = level, by bisection.

    Raises:
        ValueError: for fewer than one degree of freedom.
    """
    if degrees < 1:
        raise ValueError("Student's t needs at least one degree of freedom")
    low, high = 0.0, 1.0
    while t_within(high, degrees) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, degrees) < level else (low, middle)
    return (low + high) / 2


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rankings of the same things (Kendall 1945): ties count for neither.

    Returns:
        A number in [-1, 1]; None where a ranking has no two different values.

    Raises:
        ValueError: where the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"rankings of {len(first)} and of {len(second)} things")
    agree = untied_first = untied_second = 0
    for i in range(len(first)):
        for j in range(i):
            a = (first[i] > first[j]) - (first[i] < first[j])
            b = (second[i] > second[j]) - (second[i] < second[j])
            agree += a * b
            untied_first += a * a
            untied_second += b * b
    if not untied_first or not untied_second:
        return None
    return agree / math.sqrt(untied_first * untied_second)


def tau_threshold(n: int, level: float = LEVEL) -> float | None:
    """The least |tau| that at most 1 - level of all orders of n things, none tied, reach by chance.

    None where even a perfect agreement is likelier than that: n is too small to mean anything.
    Exact up to `EXACT` things; of more by the normal distribution with tau's variance (Kendall
    1938), which is off by less than a thousandth there.
    """
    if n > EXACT:
        spread_of_tau = math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
        return NormalDist().inv_cdf((1 + level) / 2) * spread_of_tau
    orders = [1]  # of n things, by their number of inversions (Mahonian numbers)
    for things in range(2, n + 1):
        wider = [0] * (len(orders) + things - 1)
        for inversions, count in enumerate(orders):
            for more in range(things):
                wider[inversions + more] += count
        orders = wider
    pairs = n * (n - 1) // 2
    found, tail = None, 0
    for inversions in range((pairs + 1) // 2):  # from perfect agreement towards none
        tail += orders[inversions]
        if 2 * tail > (1 - level) * math.factorial(n):
            break
        found = 1 - 2 * inversions / pairs
    return found


def expected_best(values: Sequence[float], k: int) -> float | None:
    """The mean, over all choices of k of the n values, of the least among them; None for k > n.

    What a method that offers k cells is to be held against: the least of more cells is lower by
    their number alone.
    """
    return expected_choice([(value, value) for value in values], k)


def expected_choice(pairs: Sequence[tuple[float, float]], k: int) -> float | None:
    """The mean, over all choices of k of the n pairs (score, value), of the value whose score is
    the least among them; None for k > n.
    """
    n = len(pairs)
    if not 1 <= k <= n:
        return None
    # The pair of rank i has the least score of k where the others come from the n - 1 - i above it.
    sums = (value * math.comb(n - 1 - i, k - 1) for i, (_, value) in enumerate(sorted(pairs)))
    return math.fsum(sums) / math.comb(n, k)
