"""The f′ of any divergence on the host, in float64, by a table of log ratios."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kltarget._core.numerics import double_precision
from kltarget.divergences import Divergence

_FINE = np.linspace(-60, 60, 48_001)
_COARSE = np.geomspace(60.5, 700, 200)
_RATIOS = np.concatenate([-_COARSE[::-1], _FINE, _COARSE])
_HALVINGS = 60


class Slope:
    """``f′(e^ℓ)`` and its inverse, between points of a table by straight lines.

    Targets that this helps to find are off by some 1e-6 of total variation; what a plain objective
    has is then solved exactly.
    """

    def __init__(self, divergence: Divergence) -> None:
        with double_precision(), jax.ensure_compile_time_eval():
            heights = np.asarray(divergence._f_prime_at(jnp.asarray(_RATIOS)))
            self.at_infinity = float(divergence.slope_at_infinity)
        known = np.isfinite(heights)
        self._ratios, self._heights = _RATIOS[known], np.maximum.accumulate(heights[known])

    def height(self, log_ratio: np.ndarray) -> np.ndarray:
        """``f′`` at log ratios."""
        return np.interp(log_ratio, self._ratios, self._heights)

    def log_ratio(self, pulled: np.ndarray, share: np.ndarray) -> np.ndarray:
        """The ℓ with ``f′(e^ℓ) + share·ℓ = pulled``; infinite beyond the slopes that there are."""
        if not share.any():
            found = np.interp(pulled, self._heights, self._ratios)
            found = np.where(pulled < self._heights[0], -np.inf, found)
            return np.where(pulled >= self.at_infinity, np.inf, found)
        low = np.full(np.broadcast_shapes(pulled.shape, share.shape), self._ratios[0])
        high = np.full_like(low, self._ratios[-1])
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = self.height(middle) + share * middle > pulled
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return (low + high) / 2


@functools.lru_cache(maxsize=64)
def slope_of(divergence: Divergence) -> Slope:
    """The table of a divergence without array parameters."""
    return Slope(divergence)
