"""How likely each prompt is solved, from how often it was: a posterior over all prompts at once.

Success rates are 0 for a share of the prompts; among the others they are Beta distributed, or their
log-odds are normal, whichever says the counts better. The hyper-parameters, and which of the two it
is, are integrated out on a grid, for a fitted prior is too sure of itself just where forecasts
depend on it: at the prompts that were never solved.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kltarget.evidence._logit_normal import NORMALS, draw_log_odds, log_marginals, normal_masses

_SHAPES = np.geomspace(0.03, 20.0, 28)
_SHARES = np.arange(48) * 0.02
_REPLICATES, _SURPRISING = 400, 0.01
# That every prompt can be solved is as likely beforehand as that some cannot: it lies at the end of
# all shares, and no interval would hold it that gave it no more than the rest.
_OF_SHARES = np.append(0.5, np.full(_SHARES.size - 1, 0.5 / (_SHARES.size - 1)))


@dataclasses.dataclass(frozen=True, eq=False)
class SuccessRates:
    """Draws of the posterior.

    Attributes:
        correct: how many samples of each prompt are right, ``[P]``.
        samples: how many there are, ``[P]``.
        shapes: draws of the two shapes of the Beta distribution, ``[D, 2]``; NaN where it is none.
        normals: draws of the mean and standard deviation of normal log-odds, ``[D, 2]``, where it
            is that.
        missed: log-probability that a prompt which can be solved was not, of the ``sizes``,
            ``[D, S]``.
        sizes: numbers of samples of prompts without a right one, ascending, ``[S]``.
        impossible: draws of the share of prompts that are never solved, ``[D]``.
    """

    correct: np.ndarray
    samples: np.ndarray
    shapes: np.ndarray
    normals: np.ndarray
    missed: np.ndarray
    sizes: np.ndarray
    impossible: np.ndarray

    def log_odds(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws of the log-odds of the prompts ``which [K]``, ``[D, K]``; ``-inf`` for never."""
        correct, samples = self.correct[which], self.samples[which]
        normal = np.isnan(self.shapes[:, 0])
        found = np.empty((len(normal), len(which)))
        found[~normal] = _beta_log_odds(self.shapes[~normal], correct, samples, rng)
        if normal.any():
            found[normal] = draw_log_odds(self.normals[normal], correct, samples, rng)
        never = correct == 0
        if never.any():
            missed = np.exp(self.missed[:, np.searchsorted(self.sizes, samples[never])])
            share = self.impossible[:, None]
            chance = share / (share + (1 - share) * missed)
            drawn = rng.uniform(size=chance.shape) < chance
            found[:, never] = np.where(drawn, -np.inf, found[:, never])
        return found

    def masses(self, nodes: np.ndarray) -> np.ndarray:
        """What prompts that can be solved have at evenly spaced log-odds ``[N]``: ``[D, N]``.

        What lies beyond the nodes is at the last ones; rows sum to the share that can be solved.
        """
        from scipy.special import betainc, betaln, expit, log_expit

        found = np.empty((len(self.impossible), len(nodes)))
        normal = np.isnan(self.shapes[:, 0])
        a, b = self.shapes[~normal, :1], self.shapes[~normal, 1:]
        density = np.exp(a * log_expit(nodes) + b * log_expit(-nodes) - betaln(a, b))
        beta = density * (nodes[1] - nodes[0])
        beta[:, :1] += betainc(a, b, expit(nodes[0]))
        beta[:, -1:] += betainc(b, a, expit(-nodes[-1]))
        found[~normal] = beta
        found[normal] = normal_masses(self.normals[normal], nodes)
        return found * ((1 - self.impossible) / found.sum(1))[:, None]

    def misfit(self, rng: np.random.Generator) -> float:
        """How likely counts as far from the posterior's as these are under it: near 0 for misfits.

        Far in how many prompts have no right sample, all, or each tenth in between.

        References:
            Gelman, Meng, Stern, "Posterior predictive assessment of model fitness via realized
            discrepancies", Statistica Sinica 6, 1996.
        """
        rows = rng.choice(len(self.impossible), size=_REPLICATES)
        again = np.array([_histogram(self._replicate(row, rng), self.samples) for row in rows])
        middle = again.mean(0)
        distances = ((again - middle) ** 2 / (middle + 1)).sum(1)
        seen = _histogram(self.correct, self.samples)
        return float((distances >= ((seen - middle) ** 2 / (middle + 1)).sum()).mean())

    def notes(self, rng: np.random.Generator) -> list[str]:
        """What readers of numbers that rest on these draws should mind."""
        if self.misfit(rng) >= _SURPRISING:
            return []
        return [
            "success rates lie in clumps, as neither a Beta distribution nor normal log-odds do: "
            "numbers at small β and pass@k at large k may be further off than their intervals say; "
            "take kinds of prompts apart"
        ]

    def _replicate(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """Counts of as many prompts, by one draw of the hyper-parameters."""
        from scipy.special import expit

        size = len(self.samples)
        if np.isnan(self.shapes[row, 0]):
            mean, deviation = self.normals[row]
            success = expit(mean + deviation * rng.normal(size=size))
        else:
            success = rng.beta(*self.shapes[row], size=size)
        solvable = rng.uniform(size=size) >= self.impossible[row]
        return rng.binomial(self.samples, success * solvable)


def success_rates(
    correct: np.ndarray, samples: np.ndarray, *, num_draws: int, rng: np.random.Generator
) -> SuccessRates:
    """The posterior of success rates given counts.

    Args:
        correct: how many samples of each prompt are right, ``[P]``.
        samples: how many there are, ``[P]``.
        num_draws: draws of the hyper-parameters.
        rng: the randomness.
    """
    pairs, times = np.unique(np.stack([correct, samples]), axis=1, return_counts=True)
    seen = pairs[0] > 0
    sizes = pairs[1][~seen]
    log_beta, log_normal = _beta_marginals(*pairs), log_marginals(*pairs)
    log_marginal = np.concatenate([log_beta, log_normal])
    prior = np.concatenate([_beta_prior(), np.full(len(log_normal), -np.log(len(log_normal)))])
    log_posterior = prior[:, None] + np.log(_OF_SHARES)
    log_posterior += _log_likelihood(log_marginal, seen, times)
    weights = np.exp(log_posterior - log_posterior.max())
    drawn = rng.choice(weights.size, size=num_draws, p=weights.ravel() / weights.sum())
    law, share = np.unravel_index(drawn, weights.shape)
    none = np.full((len(log_normal), 2), np.nan)
    laws = np.concatenate([_BETAS, none]), np.concatenate([np.full(_BETAS.shape, np.nan), NORMALS])
    return SuccessRates(
        correct=correct,
        samples=samples,
        shapes=laws[0][law],
        normals=laws[1][law],
        missed=log_marginal[:, ~seen][law],
        sizes=sizes,
        impossible=_SHARES[share],
    )


_BETAS = np.stack(np.meshgrid(_SHAPES, _SHAPES, indexing="ij"), axis=-1).reshape(-1, 2)


def _beta_marginals(correct: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Log-probabilities of pairs of counts, in one order of the samples, ``[H, U]``."""
    # A tenth of a second that importing the package does not pay.
    from scipy.special import betaln

    a, b = _BETAS[:, :1], _BETAS[:, 1:]
    return betaln(a + correct, b + samples - correct) - betaln(a, b)


def _beta_prior() -> np.ndarray:
    """(a + b)^(−5/2) on the shapes, whose grid is one of their logarithms; as one law of two."""
    total = _BETAS.sum(1)
    log_prior = -2.5 * np.log(total) + np.log(_BETAS).sum(1)
    return log_prior - np.logaddexp.reduce(log_prior)


def _log_likelihood(log_marginal: np.ndarray, seen: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Of all counts, by law and share of prompts that are never solved, ``[H, W]``."""
    with np.errstate(divide="ignore"):
        shares, others = np.log(_SHARES), np.log1p(-_SHARES)
    found = (log_marginal[:, seen] @ times[seen])[:, None] + times[seen].sum() * others
    for missed, count in zip(log_marginal[:, ~seen].T, times[~seen], strict=True):
        found = found + count * np.logaddexp(shares, others + missed[:, None])
    return found


def _histogram(correct: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """How many prompts have no right sample, some by tenths, or all: 12 numbers."""
    inside = np.clip(correct * 10 // np.maximum(samples, 1), 0, 9) + 1
    places = np.where(correct == 0, 0, np.where(correct == samples, 11, inside))
    return np.bincount(places, minlength=12).astype(float)


def _beta_log_odds(
    shapes: np.ndarray, correct: np.ndarray, samples: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """As logarithms of two Gamma variates, which small shapes would take to 0 or to 1."""
    right = _log_gamma(correct[None] + shapes[:, :1], rng)
    return right - _log_gamma((samples - correct)[None] + shapes[:, 1:], rng)


def _log_gamma(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Logarithms of Gamma variates: of one more in shape, times a power of a uniform."""
    return np.log(rng.gamma(shape + 1)) + np.log(rng.uniform(size=shape.shape)) / shape
