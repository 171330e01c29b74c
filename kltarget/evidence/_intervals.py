"""Intervals of 95 % for means, medians and shares of independent values, and for curves."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import quantile_test, t as student

LEVEL = 0.95
Interval = tuple[float, float]
_Z = 1.959963984540054
# Below this skewness its correction is below rounding.
_EVEN = 1e-6


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
    for how few values say so. Values that are all equal count as one trial each. Where values lie
    between 0 and 1, it reaches as far as that of their mean, which allows for their skewness.
    """
    values = values[np.isfinite(values)]
    if values.size < 2:
        return (float(values[0]) if values.size else math.nan), None
    mean, scatter = float(values.mean()), float(values.var(ddof=1)) / values.size
    trials = float(values.size)
    if scatter > 0:
        trials = max(trials, mean * (1 - mean) / scatter)
    width = float(student.ppf((1 + LEVEL) / 2, values.size - 1))
    low, high = wilson_interval(mean * trials, trials, width)
    _, other = mean_interval(values)
    if other is not None and ((values > 0) & (values < 1)).any():
        low, high = max(min(low, other[0]), 0.0), min(max(high, other[1]), 1.0)
    return mean, (low, high)


def mean_interval(values: np.ndarray) -> tuple[float, Interval | None]:
    """The mean of independent values and its 95 % interval; None if they do not differ.

    It is Student's, with Hall's correction for values that are skewed: the mean of rewards that are
    nearly all 1 is not as far above the truth as it may be below.

    References:
        Hall, "On the removal of skewness by transformation", Journal of the Royal Statistical
        Society B 54, 1992.
    """
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if values.size else math.nan
    if values.size < 2 or not np.ptp(values):
        return mean, None
    size, deviation = values.size, float(values.std(ddof=1))
    skewness = float((((values - mean) / deviation) ** 3).mean())
    quantile = float(student.ppf((1 + LEVEL) / 2, size - 1))

    def error(times: float) -> float:
        plain = times / math.sqrt(size)
        if abs(skewness) < _EVEN:
            return plain
        cube = 1 + skewness * (plain - skewness / (6 * size))
        return 3 / skewness * (math.copysign(abs(cube) ** (1 / 3), cube) - 1)

    return mean, (mean - deviation * error(quantile), mean - deviation * error(-quantile))


def median_interval(values: np.ndarray) -> tuple[float, Interval | None]:
    """The median and the order statistics that hold it with 95 % or more; None for few values."""
    low, high = quantile_test(values).confidence_interval(LEVEL)
    interval = None if math.isnan(low) or math.isnan(high) else (float(low), float(high))
    return float(np.median(values)), interval


def simultaneous_band(draws: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The narrowest band of order statistics that holds whole curves with ``level``.

    Args:
        draws: curves, ``[D, K]``.
        level: the share of the curves that lie inside everywhere.

    Returns:
        Low, median and high at each place, ``[K, 3]``.

    References:
        Besag, Green, Higdon, Mengersen, "Bayesian computation and stochastic systems", Statistical
        Science 10, 1995, Section 6.3.
    """
    size = len(draws)
    ascending = np.sort(draws, axis=0)
    ranks = draws.argsort(0).argsort(0)
    # How far out a curve is where it is furthest out.
    outermost = np.maximum(ranks, size - 1 - ranks).max(1)
    high = int(np.quantile(outermost, level, method="higher"))
    low = size - 1 - high
    return np.stack([ascending[low], np.median(draws, axis=0), ascending[high]], axis=1)
