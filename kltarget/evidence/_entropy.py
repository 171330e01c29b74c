"""The entropy of a law of which only samples, or the sampled outcomes' masses, are known."""

from __future__ import annotations

import numpy as np
from scipy.special import digamma

# Beyond so many terms the rest of the series is below one in a thousand of an entropy.
_TERMS = 4000
# What is less likely than this is not sampled; its square is still a number.
_LEAST_CHANCE = 1e-60
# Unseen outcomes per sample.
_MOST_UNSEEN = 20


def entropy_of_counts(counts: np.ndarray) -> np.ndarray:
    """Entropies in nats that rows of counts ``[R, K]`` suggest, the unseen outcomes' part included.

    It is Chao's, Wang's and Jost's estimator, nearly unbiased where singletons and doubletons say
    how much is unseen: the plain entropy of seven samples of a dozen outcomes misses a third of it.
    NaN for rows without counts.

    Args:
        counts: whole numbers of 0 or more, with any further zeros.

    Returns:
        ``[R]``.

    References:
        Chao, Wang, Jost, "Entropy and the species accumulation curve: a novel entropy estimator via
        discovery rates of new species", Methods in Ecology and Evolution 4, 2013. Chao, Shen,
        "Nonparametric estimation of Shannon's index of diversity when there are unseen species in
        sample", Environmental and Ecological Statistics 10, 2003.
    """
    counts = np.atleast_2d(counts)
    total = counts.sum(1)
    size = np.maximum(total, 1)[:, None]
    known = counts / size * (digamma(size) - digamma(np.maximum(counts, 1)))
    once, twice = (counts == 1).sum(1), (counts == 2).sum(1)
    cases, which = np.unique(np.stack([total, once, twice]), axis=1, return_inverse=True)
    unseen = np.array([_unseen_part(*case) for case in cases.T.tolist()])
    return np.where(total > 0, known.sum(1) + unseen[which.reshape(-1)], np.nan)


def _unseen_part(total: int, once: int, twice: int) -> float:
    """What outcomes beyond the seen ones are estimated to add, by how many were seen once, twice.

    With a the mean chance of an outcome that was seen once, it is f₁/n (1 − a)^(1−n) times the
    tail of −log a from the n-th term on.
    """
    if not once or total < 2:
        return 0.0
    chance = 2 / ((total - 1) * (once - 1) + 2)
    if twice:
        chance = 2 * twice / ((total - 1) * once + 2 * twice)
    if chance >= 1:
        return 0.0
    terms = np.arange(1, _TERMS)
    tail = (1 - chance) ** terms / (total - 1 + terms)
    return once / total * float(tail.sum())


def unseen_share(counts: np.ndarray) -> float:
    """The mass of all that was not seen, of one law's counts or of several laws' together.

    Turing's estimate, the share of singletons, as if there were one more: few samples without any
    may miss much as well.
    """
    return float(((counts == 1).sum() + 1) / max(counts.sum(), 1))


def likely_law(counts: np.ndarray) -> np.ndarray:
    """A law to draw counts like these from, which has unseen outcomes too; one row of counts.

    As Chao and his coauthors have it: the seen shares are lowered, those of small counts most, by
    what Turing's estimate leaves to the unseen, of which there are as many as Chao's estimate says.
    """
    counts = counts[counts > 0]
    total, once, twice = counts.sum(), (counts == 1).sum(), (counts == 2).sum()
    shares = counts / total
    more = once**2 / (2 * twice) if twice else once * (once - 1) / 2
    # Where nearly all are seen once there would be their square; so many hardly recur either.
    more = min(int(np.ceil((total - 1) / total * more)), _MOST_UNSEEN * int(total))
    if not more:
        return shares
    chance = (total - 1) * once / ((total - 1) * once + 2 * max(twice, 1))
    mass = once / total * chance
    missed = shares * (1 - shares) ** total
    lowered = shares - mass * missed / missed.sum()
    return np.append(np.maximum(lowered, shares * 1e-3), np.full(more, mass / more))


def entropy_of_seen(log_mass: np.ndarray, chance: np.ndarray) -> tuple[float, float]:
    """The entropy of a law by the exact masses of those outcomes that a sample has shown.

    Every outcome stands for as many as its chance of being seen says (Horvitz's and Thompson's
    weights), and what a quotient of such sums is off by is taken away to second order.

    Args:
        log_mass: log-masses of the seen outcomes, ``[K]``, up to a constant.
        chance: of being seen, ``[K]``, whatever the law that was sampled.

    Returns:
        Nats, and the variance of that estimate; NaN without outcomes.

    References:
        Horvitz, Thompson, "A generalization of sampling without replacement from a finite
        universe", Journal of the American Statistical Association 47, 1952.
    """
    possible = log_mass > -np.inf
    log_mass, chance = log_mass[possible], np.maximum(chance[possible], _LEAST_CHANCE)
    if not log_mass.size:
        return np.nan, np.nan
    weight, missed = 1 / chance, (1 - chance) / chance**2
    log_share = log_mass - np.logaddexp.reduce(log_mass + np.log(weight))
    share = np.exp(log_share)
    entropy = float(-(weight * share * log_share).sum())
    spread = float((missed * share**2).sum())
    together = float(-(missed * share**2 * log_share).sum())
    bias = (entropy - 0.5) * spread - together
    lever = share * (1 - log_share - entropy)
    return max(entropy - bias, 0.0), float((missed * lever**2).sum())


def chance_of_seeing(mass: np.ndarray, size: float | np.ndarray) -> np.ndarray:
    """The chance that an outcome of a mass is among so many independent samples."""
    return -np.expm1(size * np.log1p(-np.minimum(mass, 1 - 1e-12)))
