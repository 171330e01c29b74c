"""What forecasts make of draws: quantiles, and the best of n samples of the same KL."""

from __future__ import annotations

import dataclasses

import numpy as np

QUANTILES = (0.025, 0.5, 0.975)
TRIES = np.geomspace(1.0, 1e6, 121)
"""Numbers of samples of which the best is taken."""
_KNOWN = 0.95
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What the posterior of a base model says of the targets.

    Attributes:
        curves: draws of means over the prompts, ``[D, B]`` each.
        start: the same of the base model, ``[D]`` each.
        passes: draws of pass@k, ``[K, D, B]``; empty where it is not known what is right.
        start_passes: of the base model's, ``[K, D]``.
        patterns: which prompts have equal counts, ``[P]``.
        of_patterns: quantiles of each of these, ``[U, 3]`` and ``[U, B, 3]``.
        notes: what was taken for granted.
    """

    curves: dict[str, np.ndarray]
    start: dict[str, np.ndarray]
    passes: np.ndarray
    start_passes: np.ndarray
    patterns: np.ndarray
    of_patterns: dict[str, np.ndarray]
    notes: list[str]

    def at(self, which: np.ndarray) -> Found:
        """The same at some of the coefficients alone."""
        of_patterns = {
            name: values if values.ndim == 2 else values[:, which]
            for name, values in self.of_patterns.items()
        }
        return dataclasses.replace(
            self,
            curves={name: values[:, which] for name, values in self.curves.items()},
            passes=self.passes[..., which],
            of_patterns=of_patterns,
        )


def quantiles(draws: np.ndarray) -> list[list[float]]:
    """``[D, B]`` as ``[B, 3]``; NaN where some draws have no number."""
    known = np.isfinite(draws).mean(0) > _KNOWN
    found = quantiles_of_known(np.where(known, draws, 0.0))
    return np.where(known, found, np.nan).T.tolist()


def quantiles_of_known(draws: np.ndarray) -> np.ndarray:
    """``[D, B]`` as ``[3, B]``, each column without its NaN."""
    found = np.quantile(draws, QUANTILES, axis=0)
    # NumPy goes through columns one by one where it must look for NaN.
    lacking = np.isnan(draws).any(0)
    if lacking.any():
        found[:, lacking] = np.nanquantile(draws[:, lacking], QUANTILES, axis=0)
    return found


def best_of_n(
    kl: np.ndarray, tries: np.ndarray, spent: np.ndarray, won: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The n whose best of n samples has the KL of each target, and what it wins, ``[D, B]``.

    NaN where a million samples have less, or where that KL is the most that any n has: from there
    on it says nothing of n.

    Args:
        kl: of the targets, ``[D, B]``.
        tries: numbers of samples, ``[N]``.
        spent: the KL of their best, ``[D, N]``.
        won: their success or reward, ``[D, N]``.
    """
    log_tries = np.log(tries)
    pairs = zip(kl, spent, strict=True)
    number = np.array([np.interp(x, y, log_tries, right=np.nan) for x, y in pairs])
    number = np.where(kl >= spent[:, -1:] * (1 - _ROUNDING), np.nan, number)
    pairs = zip(number, won, strict=True)
    gained = np.array([np.interp(x, log_tries, y) for x, y in pairs])
    return np.exp(number), np.where(np.isnan(number), np.nan, gained)
