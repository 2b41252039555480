"""Exponents of growth: straight lines by least squares on two logarithmic scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# How far a measured exponent may lie above the expected one before growth counts as too fast.
SLACK, SLACK_LAST = 0.1, 0.2  # of the fit, and of the last pair, which has no error of its own


class Fit(NamedTuple):
    """value ~ size^exponent.

    error: standard error of the exponent, nan where two sizes leave none. last: the exponent
    between the two largest sizes alone, where a constant cost weighs least.
    """

    exponent: float
    error: float
    last: float


def fit(sizes: Sequence[float], values: Sequence[float]) -> Fit:
    """The exponent of `values`, one for each of `sizes`, in rising order.

    Raises:
        ValueError: for fewer than two different sizes, or for what is not above 0.
    """
    if len(sizes) != len(values) or len(set(sizes)) < 2 or min(*sizes, *values) <= 0:
        raise ValueError(f"no exponent fits sizes {list(sizes)} and values {list(values)}")
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    count = len(x)
    middle_x, middle_y = sum(x) / count, sum(y) / count
    spread = sum((a - middle_x) ** 2 for a in x)
    exponent = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread
    error = math.nan
    if count > 2:
        rest = sum(
            (b - middle_y - exponent * (a - middle_x)) ** 2 for a, b in zip(x, y, strict=True)
        )
        error = math.sqrt(rest / (count - 2) / spread)
    return Fit(exponent, error, (y[-1] - y[-2]) / (x[-1] - x[-2]))


def grows_faster(measured: Fit, expected: Fit) -> bool:
    """Whether `measured` rises faster than `expected`, the fit of a model at the same sizes.

    It does where the whole fit lies above by more than `SLACK` and two standard errors, or the last
    pair by more than `SLACK_LAST`.
    """
    error = 0.0 if math.isnan(measured.error) else measured.error
    above = measured.exponent - expected.exponent > max(SLACK, 2 * error)
    return above or measured.last - expected.last > SLACK_LAST
