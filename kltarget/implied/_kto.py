"""Where KTO ends: outcomes that are judged desirable or undesirable one by one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq

_SCAN = 257
"""How many scales are looked at for policies that there may be besides the first."""

_EVEN = 2 * np.log(2)
"""``2 log(2 cosh(x/2))`` at x = 0."""


class Drawn(NamedTuple):
    """What KTO draws the policy to.

    Attributes:
        reward: β(log π/π_ref − z₀) of every outcome, ``[A]``; -inf where its mass goes to 0.
        several: whether there is more than one such policy.
    """

    reward: np.ndarray
    several: bool


def kto_rewards(net: np.ndarray, log_ref: np.ndarray, beta: float) -> Drawn:
    """Stationarity, with the reference point at its own value ``z₀ = KL(π‖π_ref)``.

    With ``x = β(log π/π_ref − z₀)`` what is ascended is ``Σ net_i σ(x_i)``, z₀ held fixed. It is
    stationary where ``π_i`` is proportional to ``net_i σ(x_i)σ(−x_i)``, so that
    ``x/β + 2 log(2 cosh(x/2)) = log(net/π_ref) + k``: the left side increases in x if β < 1. Then
    ``z₀ = KL`` is ``Σ π_i x_i = 0``, an equation for k. What has no positive net weight falls to 0,
    for a gradient that is not above its share of the total takes mass away.

    Args:
        net: weight of desirable less that of undesirable judgements, ``[A]``.
        log_ref: ``[A]``.
        beta: below 1.
    """
    kept = (net > 0) & (log_ref > -np.inf)
    logs = log_ref[kept]
    height = np.log(net[kept]) - logs

    def mean(k: np.ndarray | float) -> np.ndarray:
        x = _increasing_root(height + np.asarray(k)[..., None], beta)
        weights = logs + x / beta
        weights = weights - np.logaddexp.reduce(weights, axis=-1, keepdims=True)
        return (np.exp(weights) * x).sum(-1)

    # At the first of these scales every x is above 0, at the last every one below.
    scales = np.linspace(1 + _EVEN - height.min(), _EVEN - height.max() - 1, _SCAN)
    below = mean(scales) < 0
    crossings = np.flatnonzero(~below[:-1] & below[1:])
    # Training begins at z₀ = 0 and meets the first of them: z₀ falls as the scale rises.
    first = crossings[0]
    ends = float(scales[first + 1]), float(scales[first])
    scale: Any = brentq(mean, *ends, xtol=1e-14)
    reward = np.full(net.shape, -np.inf)
    reward[kept] = _increasing_root(height + scale, beta)
    return Drawn(reward, crossings.size > 1)


def _increasing_root(height: np.ndarray, beta: float) -> np.ndarray:
    """The x with ``x/β + 2 log(2 cosh(x/2)) = height``, by bisection."""
    # 2 log(2 cosh(x/2)) lies between |x| and |x| + 2 log 2.
    above = height >= _EVEN
    slope = np.where(above, 1 / beta + 1, 1 / beta - 1)
    low, high = (height - _EVEN) / slope, height / slope
    low, high = np.minimum(low, high), np.maximum(low, high)
    for _ in range(100):
        middle = (low + high) / 2
        short = middle / beta + 2 * np.logaddexp(middle / 2, -middle / 2) < height
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return (low + high) / 2
