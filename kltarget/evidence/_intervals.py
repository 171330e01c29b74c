"""Intervals of 95 % for means, medians and shares of independent values."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import quantile_test, t as student, ttest_1samp

LEVEL = 0.95
Interval = tuple[float, float]
_Z = 1.959963984540054


def wilson_interval(successes: float, number: float, z: float = _Z) -> Interval:
    """Wilson's interval of a share, by default of 95 %."""
    if not number:
        return 0.0, 1.0
    p, z2 = successes / number, z**2 / number
    middle = (p + z2 / 2) / (1 + z2)
    half = math.sqrt(p * (1 - p) * z2 + z2**2 / 4) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def share_interval(values: np.ndarray) -> tuple[float, Interval | None]:
    """The mean of independent values between 0 and 1 and its 95 % interval, None for one value.

    It is Wilson's for as many trials as would scatter like the values, and Student's factor allows
    for how few values say so. Values that are all equal count as one trial each.
    """
    values = values[np.isfinite(values)]
    if values.size < 2:
        return (float(values[0]) if values.size else math.nan), None
    mean, scatter = float(values.mean()), float(values.var(ddof=1)) / values.size
    trials = float(values.size)
    if scatter > 0:
        trials = max(trials, mean * (1 - mean) / scatter)
    width = float(student.ppf((1 + LEVEL) / 2, values.size - 1))
    return mean, wilson_interval(mean * trials, trials, width)


def mean_interval(values: np.ndarray) -> tuple[float, Interval | None]:
    """The mean of independent values and Student's 95 % interval; None if they do not differ."""
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if values.size else math.nan
    if values.size < 2 or not np.ptp(values):
        return mean, None
    low, high = ttest_1samp(values, 0.0).confidence_interval(LEVEL)
    return mean, (float(low), float(high))


def median_interval(values: np.ndarray) -> tuple[float, Interval | None]:
    """The median and the order statistics that hold it with 95 % or more; None for few values."""
    low, high = quantile_test(values).confidence_interval(LEVEL)
    interval = None if math.isnan(low) or math.isnan(high) else (float(low), float(high))
    return float(np.median(values)), interval
