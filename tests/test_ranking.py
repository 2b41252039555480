"""Statistics against tables, hand-worked values and plain enumeration."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest

from rnnnas.studies.statistics import (
    EXACT,
    expected_best,
    kendall_tau,
    spread,
    t_quantile,
    t_within,
    tau_threshold,
)

# Two-sided 95 % and 99 % points of Student's t, as every printed table has them.
TABLE = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604),
         5: (2.571, 4.032), 9: (2.262, 3.250), 10: (2.228, 3.169), 29: (2.045, 2.756),
         120: (1.980, 2.617)}  # fmt: skip


@pytest.mark.parametrize("degrees", TABLE)
def test_t_points_are_those_of_the_tables(degrees: int) -> None:
    for level, expected in zip((0.95, 0.99), TABLE[degrees], strict=True):
        assert t_quantile(degrees, level) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 8, 31])
@pytest.mark.parametrize("t", [0.1, 1.0, 2.5, 9.0])
def test_t_is_the_integral_of_its_density(degrees: int, t: float) -> None:
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    scale /= math.sqrt(degrees * math.pi)
    n = 4000
    xs = [t * i / n for i in range(n + 1)]
    values = [scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2) for x in xs]
    simpson = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
    assert t_within(t, degrees) == pytest.approx(2 * simpson * t / n / 3, abs=1e-10)


def test_many_degrees_are_the_normal_distribution() -> None:
    assert t_quantile(100_000) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-4)


def test_no_degrees_are_refused() -> None:
    with pytest.raises(ValueError, match="degree"):
        t_quantile(0)


def test_spread_of_a_worked_sample() -> None:
    # mean 6, squares 4 + 0 + 4 = 8, sd 2, half width 4.3027 * 2 / sqrt(3) = 4.968
    own = spread([4.0, 6.0, 8.0])
    assert (own.n, own.mean, own.sd) == (3, 6.0, 2.0)
    assert own.low == pytest.approx(6 - 4.96828, abs=1e-4)
    assert own.high == pytest.approx(6 + 4.96828, abs=1e-4)


def test_two_values_have_an_interval_of_nine_standard_deviations() -> None:
    own = spread([100.0, 102.0])
    assert own.sd == pytest.approx(math.sqrt(2)) and own.high is not None and own.mean is not None
    assert (own.high - own.mean) / own.sd == pytest.approx(12.7062 / math.sqrt(2), abs=1e-3)


def test_one_value_has_no_spread_and_none_no_mean() -> None:
    one, none = spread([3.0]), spread([])
    assert (one.mean, one.sd, one.low, one.high) == (3.0, None, None, None)
    assert (none.n, none.mean, none.sd) == (0, None, None)


def test_tau_of_worked_rankings() -> None:
    assert kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == 1.0
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == -1.0
    # Of 6 pairs 5 agree and 1 does not: 4/6.
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    # Ties: of 6 pairs 5 differ in the first, 5 in the second; 4 agree, none disagrees.
    assert kendall_tau([1, 1, 2, 3], [1, 2, 2, 3]) == pytest.approx(4 / 5)
    # A tie on one side only: 5 of 6 and 6 of 6 pairs differ, all 5 agree.
    assert kendall_tau([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(5 / math.sqrt(30))


def test_tau_of_nothing_to_rank_is_none() -> None:
    assert kendall_tau([], []) is None
    assert kendall_tau([1.0], [2.0]) is None
    assert kendall_tau([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="rankings of 1 and of 2"):
        kendall_tau([1], [1, 2])


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
def test_the_tau_of_chance_is_that_of_all_orders(n: int) -> None:
    order = list(range(n))
    taus = [abs(kendall_tau(order, other) or 0) for other in itertools.permutations(order)]
    significant = [
        value for value in set(taus)
        if sum(t >= value - 1e-12 for t in taus) <= 0.05 * len(taus) + 1e-9
    ]  # fmt: skip
    expected = min(significant) if significant else None
    assert tau_threshold(n) == (None if expected is None else pytest.approx(expected))


def test_the_tau_of_many_things_goes_on_from_that_of_few() -> None:
    exact, beyond = tau_threshold(EXACT), tau_threshold(EXACT + 1)
    assert exact is not None and beyond is not None
    assert 0.98 * exact < beyond < exact
    # 1.96 sqrt(2 · 805 / (9 · 400 · 399))
    assert tau_threshold(400) == pytest.approx(0.0656, abs=1e-4)


def test_too_few_to_mean_anything() -> None:
    assert [tau_threshold(n) for n in (0, 1, 2, 3, 4)] == [None] * 5
    # Printed tables of Kendall's tau: 5 % two-sided, n = 8: S >= 18 of 28; n = 10: S >= 23 of 45.
    assert tau_threshold(8) == pytest.approx(18 / 28)
    assert tau_threshold(10) == pytest.approx(23 / 45)


def test_the_best_of_k_is_the_mean_over_all_choices() -> None:
    values = [5.0, 1.0, 9.0, 4.0, 4.0]
    for k in range(1, 6):
        every = [min(chosen) for chosen in itertools.combinations(values, k)]
        assert expected_best(values, k) == pytest.approx(sum(every) / len(every))
    assert expected_best(values, 6) is None and expected_best(values, 0) is None
