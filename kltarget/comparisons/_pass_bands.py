"""pass@k of two checkpoints and their difference, with bands that hold for all k at once."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import log_expit

from kltarget.comparisons._sides import Side
from kltarget.evidence import simultaneous_band, success_rates

_MOST_AT_ONCE = 2_000_000
# Less than this, half of a tenth of a point, is no difference.
_LEAST = 5e-4


@dataclasses.dataclass(frozen=True, eq=False)
class PassBands:
    """Bands ``[K, 3]``: low, middle, high.

    Attributes:
        before: of the model before.
        after: of the model after.
        difference: after minus before.
        known: 1 where the difference is known to be above 0, -1 below, 0 elsewhere, ``[K]``.
    """

    before: np.ndarray
    after: np.ndarray
    difference: np.ndarray
    known: np.ndarray


def pass_draws(log_odds: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Means over the prompts of pass@k, of draws of their log-odds ``[D, P]``: ``[D, K]``."""
    rows = max(1, _MOST_AT_ONCE // log_odds.shape[1])
    parts = []
    for first in range(0, len(log_odds), rows):
        log_wrong = log_expit(-log_odds[first : first + rows])
        parts.append(np.stack([-np.expm1(each * log_wrong).mean(1) for each in k], axis=1))
    return np.concatenate(parts)


def draws_of(counts: Side, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Of the log-odds of each prompt, ``[D, P]``."""
    rates = success_rates(counts.correct, counts.samples, num_draws=num_draws, rng=rng)
    return rates.log_odds(np.arange(len(counts.prompts)), rng)


def pass_bands(before: np.ndarray, after: np.ndarray) -> PassBands:
    """Of independent draws of both, ``[D, K]`` each."""
    difference = simultaneous_band(after - before)
    known = (difference[:, 0] > _LEAST).astype(int) - (difference[:, 2] < -_LEAST)
    return PassBands(simultaneous_band(before), simultaneous_band(after), difference, known)
