"""How likely each prompt is solved, from how often it was: a posterior over all prompts at once.

Success rates are 0 for a share of the prompts; among the others they are Beta distributed, or their
log-odds are normal, whichever says the counts better. The hyper-parameters, and which of the two it
is, are integrated out on a grid, for a fitted prior is too sure of itself just where forecasts
depend on it: at the prompts that were never solved.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kltarget.evidence._logit_normal import draw_log_odds, log_marginals, normal_masses

_REPLICATES, _SURPRISING = 400, 0.01
# A grid is made anew about where the posterior is until its points lie as close as that is wide.
_ROUNDS, _WIDE, _CLOSE, _POINTS = 5, 4.0, 1.0, 21
_MOST_IMPOSSIBLE = 0.95


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
    found = [_posterior(kind, pairs, times) for kind in (_BetaLaw(), _NormalLaw())]
    log_weights = np.concatenate([x.log_weights.ravel() for x in found])
    weights = np.exp(log_weights - log_weights.max())
    drawn = rng.choice(weights.size, size=num_draws, p=weights / weights.sum())
    beta, normal = found
    is_normal = drawn >= beta.log_weights.size
    shapes, normals = np.full((2, num_draws, 2), np.nan)
    unsolved = pairs[0] == 0
    missed = np.empty((num_draws, int(unsolved.sum())))
    impossible = np.empty(num_draws)
    for each, rows, first, laws in (
        (beta, ~is_normal, 0, shapes),
        (normal, is_normal, beta.log_weights.size, normals),
    ):
        law, share = np.unravel_index(drawn[rows] - first, each.log_weights.shape)
        laws[rows] = each.laws[law]
        missed[rows] = each.log_marginal[law][:, unsolved]
        impossible[rows] = each.shares[share]
    return SuccessRates(
        correct=correct,
        samples=samples,
        shapes=shapes,
        normals=normals,
        missed=missed,
        sizes=pairs[1][unsolved],
        impossible=impossible,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Posterior:
    """On a grid of laws of one kind and shares of prompts that are never solved.

    Attributes:
        laws: parameters, ``[H, 2]``.
        shares: ``[W]``.
        log_marginal: log-probabilities of the different counts, ``[H, U]``.
        log_weights: of the posterior, up to a constant of all kinds, ``[H, W]``.
    """

    laws: np.ndarray
    shares: np.ndarray
    log_marginal: np.ndarray
    log_weights: np.ndarray


def _posterior(kind: _BetaLaw | _NormalLaw, pairs: np.ndarray, times: np.ndarray) -> _Posterior:
    """On a grid that is as fine as the posterior is narrow."""
    axes = [np.linspace(low, high, num) for low, high, num in kind.ranges]
    shares = np.linspace(0, _MOST_IMPOSSIBLE, 39)
    total = np.logaddexp.reduce(_log_prior(kind, axes).ravel())
    found = _on_grid(kind, axes, shares, total, pairs, times)
    for _ in range(_ROUNDS):
        weights = np.exp(found.log_weights - found.log_weights.max())
        by_law = weights.sum(1).reshape(axes[0].size, axes[1].size)
        closer = [_about(x, y) for x, y in zip(axes, (by_law.sum(1), by_law.sum(0)), strict=True)]
        some = _about(shares[1:], weights[:, 1:].sum(0), low=1e-4)
        if all(x is None for x in (*closer, some)):
            break
        ranges = zip(axes, closer, kind.ranges, strict=True)
        axes = [x if y is None else np.unique(np.clip(y, *z[:2])) for x, y, z in ranges]
        shares = shares if some is None else np.append(0.0, np.unique(np.minimum(some, 0.99)))
        found = _on_grid(kind, axes, shares, total, pairs, times)
    return found


def _on_grid(
    kind: _BetaLaw | _NormalLaw,
    axes: list[np.ndarray],
    shares: np.ndarray,
    log_total: float,
    pairs: np.ndarray,
    times: np.ndarray,
) -> _Posterior:
    """With ``log_total`` the logarithm of the prior's sum over all laws of the kind."""
    laws = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    log_marginal = kind.log_marginals(laws, *pairs)
    log_weights = _log_prior(kind, axes).reshape(-1, 1) - log_total + _log_of_shares(shares)
    log_weights = log_weights + _log_likelihood(log_marginal, pairs[0] > 0, times, shares)
    return _Posterior(kind.parameters(laws), shares, log_marginal, log_weights)


def _about(axis: np.ndarray, weights: np.ndarray, low: float = -np.inf) -> np.ndarray | None:
    """A finer axis about where the weights are; None where it is fine enough."""
    if axis.size < 2 or not weights.sum() > 0:
        return None
    spacing = float(np.diff(axis).max())
    share = weights / weights.sum()
    middle = float(share @ axis)
    width = float(np.sqrt(share @ (axis - middle) ** 2))
    if width > _CLOSE * spacing:
        return None
    reach = _WIDE * max(width, spacing / 2)
    return np.linspace(max(middle - reach, low), middle + reach, _POINTS)


def _log_prior(kind: _BetaLaw | _NormalLaw, axes: list[np.ndarray]) -> np.ndarray:
    """Of the cells of a grid, up to a constant of the kind: density times size."""
    sizes = np.multiply.outer(*(np.gradient(x) for x in axes))
    return kind.log_density(*np.meshgrid(*axes, indexing="ij")) + np.log(sizes)


def _log_of_shares(shares: np.ndarray) -> np.ndarray:
    """That every prompt can be solved is as likely beforehand as that some cannot.

    It lies at the end of all shares, and no interval would hold it that gave it no more than the
    rest.
    """
    sizes = np.gradient(shares[1:]) if shares.size > 2 else np.ones(shares.size - 1)
    return np.log(0.5) + np.append(0.0, np.log(sizes / _MOST_IMPOSSIBLE))


class _BetaLaw:
    """Beta distributions by the log-odds of their mean and the logarithm of their strength a + b.

    Beforehand (a + b)^(−5/2) on the shapes.
    """

    ranges = ((-7.0, 7.0, 29), (float(np.log(0.05)), float(np.log(1e4)), 25))

    def parameters(self, laws: np.ndarray) -> np.ndarray:
        """The two shapes."""
        mean, strength = 1 / (1 + np.exp(-laws[:, 0])), np.exp(laws[:, 1])
        return np.stack([mean * strength, (1 - mean) * strength], axis=1)

    def log_density(self, mean: np.ndarray, strength: np.ndarray) -> np.ndarray:
        """``da db`` is ``s² m (1 − m)`` times that of the two axes."""
        return -strength / 2 - np.logaddexp(0, mean) - np.logaddexp(0, -mean)

    def log_marginals(
        self, laws: np.ndarray, correct: np.ndarray, samples: np.ndarray
    ) -> np.ndarray:
        """Log-probabilities of pairs of counts, in one order of the samples, ``[H, U]``."""
        # A tenth of a second that importing the package does not pay.
        from scipy.special import betaln

        a, b = self.parameters(laws).T[..., None]
        return betaln(a + correct, b + samples - correct) - betaln(a, b)


class _NormalLaw:
    """Normal log-odds by their mean and the logarithm of their deviation, flat in both."""

    ranges = ((-10.0, 6.0, 33), (float(np.log(0.1)), float(np.log(6.0)), 14))

    def parameters(self, laws: np.ndarray) -> np.ndarray:
        """Mean and deviation."""
        return np.stack([laws[:, 0], np.exp(laws[:, 1])], axis=1)

    def log_density(self, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
        return np.zeros_like(mean + deviation)

    def log_marginals(
        self, laws: np.ndarray, correct: np.ndarray, samples: np.ndarray
    ) -> np.ndarray:
        """As of :class:`_BetaLaw`."""
        return log_marginals(self.parameters(laws), correct, samples)


def _log_likelihood(
    log_marginal: np.ndarray, seen: np.ndarray, times: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """Of all counts, by law and share of prompts that are never solved, ``[H, W]``."""
    with np.errstate(divide="ignore"):
        some, others = np.log(shares), np.log1p(-shares)
    found = (log_marginal[:, seen] @ times[seen])[:, None] + times[seen].sum() * others
    for missed, count in zip(log_marginal[:, ~seen].T, times[~seen], strict=True):
        found = found + count * np.logaddexp(some, others + missed[:, None])
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
