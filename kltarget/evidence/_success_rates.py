"""How likely each prompt is solved, from how often it was: a posterior over all prompts at once.

Success rates are 0 for a share of the prompts and Beta distributed among the others. The three
hyper-parameters are integrated out on a grid, for a fitted prior is too sure of itself just where
forecasts depend on it: at the prompts that were never solved.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_SHAPES = np.geomspace(0.03, 20.0, 28)
_SHARES = np.arange(20) * 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class SuccessRates:
    """Draws of the posterior.

    Attributes:
        correct: how many samples of each prompt are right, ``[P]``.
        samples: how many there are, ``[P]``.
        shapes: draws of the two shapes of the Beta distribution, ``[D, 2]``.
        impossible: draws of the share of prompts that are never solved, ``[D]``.
    """

    correct: np.ndarray
    samples: np.ndarray
    shapes: np.ndarray
    impossible: np.ndarray

    def log_odds(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws of the log-odds of the prompts ``which [K]``, ``[D, K]``; ``-inf`` for never.

        As logarithms of two Gamma variates, which small shapes would take to 0 or to 1.
        """
        right = self.correct[which][None] + self.shapes[:, :1]
        wrong = (self.samples - self.correct)[which][None] + self.shapes[:, 1:]
        found = _log_gamma(right, rng) - _log_gamma(wrong, rng)
        never = self.correct[which] == 0
        if never.any():
            missed = np.exp(_log_missed(self.shapes, self.samples[which][never]))
            share = self.impossible[:, None]
            chance = share / (share + (1 - share) * missed)
            drawn = rng.uniform(size=chance.shape) < chance
            found[:, never] = np.where(drawn, -np.inf, found[:, never])
        return found


def success_rates(
    correct: np.ndarray, samples: np.ndarray, *, num_draws: int, rng: np.random.Generator
) -> SuccessRates:
    """The posterior of success rates given counts.

    Args:
        correct: how many samples of each prompt are right, ``[P]``.
        samples: how many there are, ``[P]``, each 1 or more.
        num_draws: draws of the hyper-parameters.
        rng: the randomness.
    """
    pairs, times = np.unique(np.stack([correct, samples]), axis=1, return_counts=True)
    log_posterior = _log_posterior(pairs[0], pairs[1], times)
    weights = np.exp(log_posterior - log_posterior.max()).ravel()
    drawn = rng.choice(weights.size, size=num_draws, p=weights / weights.sum())
    first, second, share = np.unravel_index(drawn, log_posterior.shape)
    shapes = np.stack([_SHAPES[first], _SHAPES[second]], axis=1)
    return SuccessRates(correct, samples, shapes, _SHARES[share])


def _log_posterior(correct: np.ndarray, samples: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Of the grid of shapes and shares ``[A, B, W]``, up to a constant."""
    # A tenth of a second that importing the package does not pay.
    from scipy.special import betaln

    a, b = _SHAPES[:, None, None], _SHAPES[None, :, None]
    some = correct > 0
    with np.errstate(divide="ignore"):
        shares, others = np.log(_SHARES), np.log1p(-_SHARES)
    seen = betaln(a + correct[some], b + (samples - correct)[some]) - betaln(a, b)
    found = (seen @ times[some])[..., None] + times[some].sum() * others
    for number, count in zip(samples[~some], times[~some], strict=True):
        missed = betaln(a[..., 0], b[..., 0] + number) - betaln(a[..., 0], b[..., 0])
        found = found + count * np.logaddexp(shares, others + missed[..., None])
    # (a + b)^(−5/2) on the shapes, whose grid is one of their logarithms.
    total = (a + b)[..., 0]
    prior = -2.5 * np.log(total) + np.log(a[..., 0]) + np.log(b[..., 0])
    return found + prior[..., None]


def _log_missed(shapes: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Log-probability that a prompt which can be solved was not, ``[D, K]``."""
    from scipy.special import betaln

    a, b = shapes[:, :1], shapes[:, 1:]
    return betaln(a, b + samples) - betaln(a, b)


def _log_gamma(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Logarithms of Gamma variates: of one more in shape, times a power of a uniform."""
    return np.log(rng.gamma(shape + 1)) + np.log(rng.uniform(size=shape.shape)) / shape
