"""How likely each level of the reward is per prompt, from how often it was seen.

From the best level down, each is reached or missed by what is left: a chain of success rates, whose
posteriors are those of ``success_rates``, one per step. So every step has its own spread over
the prompts and its own share of prompts that never get there.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kltarget.evidence._success_rates import SuccessRates, success_rates


@dataclasses.dataclass(frozen=True, eq=False)
class LevelMasses:
    """Draws of the posterior.

    Attributes:
        counts: samples of each level by prompt, the least reward first, ``[P, K]``.
        rates: of each level but the least among it and all below, the best first.
    """

    counts: np.ndarray
    rates: tuple[SuccessRates, ...]

    def log_masses(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws of the log-masses of the prompts ``which [S]``: ``[D, S, K]``; ``-inf`` for none.

        As it happens once for all draws, whatever is known of one prompt alone is drawn anew.
        """
        from scipy.special import log_expit

        found, left = [], np.zeros(())
        for rates in self.rates:
            log_odds = rates.log_odds(which, rng)
            found.append(left + log_expit(log_odds))
            left = left + log_expit(-log_odds)
        found.append(left)
        return np.stack(found[::-1], axis=-1)


def level_masses(counts: np.ndarray, *, num_draws: int, rng: np.random.Generator) -> LevelMasses:
    """The posterior of the levels' masses given counts.

    Args:
        counts: samples of each level by prompt, the least reward first, ``[P, K]``.
        num_draws: draws of the hyper-parameters.
        rng: the randomness.
    """
    below = counts.cumsum(1)
    rates = [
        success_rates(counts[:, level], below[:, level], num_draws=num_draws, rng=rng)
        for level in range(counts.shape[1] - 1, 0, -1)
    ]
    return LevelMasses(counts, tuple(rates))
