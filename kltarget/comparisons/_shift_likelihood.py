"""How likely pairs of counts are under a shift of log-odds, before against after.

The log-odds before are those of the Beta distributions that the counts before suggest; those after
are shifted, and scatter about the shift by Student's t with four degrees of freedom, for some
prompts go their own way. Prompts that can't be solved stay so.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy.special import gammaln, log_expit
from scipy.stats import t as student

from kltarget.comparisons._sides import Side
from kltarget.evidence import SuccessRates

FREEDOM = 4
"""Degrees of freedom of the scatter, whose variance is twice its scale's square."""
_REACH, _COARSEST, _FINEST, _NARROW = 20.0, 0.1, 0.02, 1.4
_LEAST = 1e-300
# Prompts that follow the laws, added to those of a histogram, and steps towards it.
_MORE, _STEPS = 10.0, 200


@dataclasses.dataclass(frozen=True, eq=False)
class PairCounts:
    """Prompts as pairs of counts, equal ones together.

    Attributes:
        nodes: log-odds, evenly spaced, ``[N]``.
        priors: draws of masses there of what can be solved, ``[D, N]``.
        impossible: draws of the mass of what can't, ``[D]``.
        before: likelihoods of each different count before, ``[N, U]``.
        after: of each different count after, ``[N, V]``.
        rows: which count before each pair has, ``[Q]``.
        columns: which after, ``[Q]``.
        before_missed: whether there is no right sample before, ``[Q]``.
        missed: whether there is none in a pair, ``[Q]``.
        pair: of each prompt, ``[P]``.
    """

    nodes: np.ndarray
    priors: np.ndarray
    impossible: np.ndarray
    before: np.ndarray
    after: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    before_missed: np.ndarray
    missed: np.ndarray
    pair: np.ndarray

    @classmethod
    def of(
        cls,
        rates: SuccessRates,
        before: Side,
        after: Side,
        clumped: bool,
        rng: np.random.Generator,
    ) -> PairCounts:
        """Of the same prompts twice; of clumped ones the prior is a histogram, not a law."""
        most = max(int(before.samples.max()), int(after.samples.max()))
        # As fine as many samples tell success rates apart.
        spacing = min(max(_NARROW / np.sqrt(most), _FINEST), _COARSEST)
        nodes = np.linspace(-_REACH, _REACH, 2 * round(_REACH / spacing) + 1)
        (first, rows), (second, columns) = _different(before), _different(after)
        both, pair = np.unique(np.stack([rows, columns]), axis=1, return_inverse=True)
        priors, impossible = rates.masses(nodes), rates.impossible
        seen = _likelihood(nodes, *first)
        if clumped:
            times = np.bincount(rows)
            priors, impossible = _histograms(priors, impossible, seen, first[0] == 0, times, rng)
        return cls(
            nodes,
            priors,
            impossible,
            seen,
            _likelihood(nodes, *second),
            both[0],
            both[1],
            first[0][both[0]] == 0,
            (first[0][both[0]] == 0) & (second[0][both[1]] == 0),
            pair.ravel(),
        )

    @functools.cached_property
    def prior(self) -> np.ndarray:
        """The mean of the priors, ``[N]``."""
        return self.priors.mean(0)

    @functools.cached_property
    def _weighed(self) -> np.ndarray:
        return self.prior[:, None] * self.before

    @functools.cached_property
    def _never(self) -> np.ndarray:
        return self.impossible.mean() * self.missed

    @functools.cached_property
    def _scattered(self) -> dict[float, np.ndarray]:
        return {0.0: self.after}

    def scattered(self, scale: float) -> np.ndarray:
        """Likelihoods of the counts after about each node, ``[N, V]``."""
        # Grids of several laws have their scales in common.
        if scale not in self._scattered:
            self._scattered[scale] = self.kernel(scale) @ self.after
        return self._scattered[scale]

    def kernel(self, scale: float) -> np.ndarray:
        """The scatter about each node, ``[N, N]``."""
        size = self.nodes.size
        if scale == 0:
            return np.eye(size)
        # One row of differences has them all: the nodes are evenly spaced.
        apart = student.pdf((self.nodes[1] - self.nodes[0]) * np.arange(size) / scale, FREEDOM)
        kernel = apart[np.abs(np.subtract.outer(np.arange(size), np.arange(size)))]
        return kernel / kernel.sum(1, keepdims=True)

    def log_likelihood(self, shift: np.ndarray, scattered: np.ndarray) -> np.ndarray:
        """Of each pair, with shifts at the nodes: ``[Q]``."""
        joint = self._weighed.T @ self.moved(shift, scattered)
        return np.log(np.maximum(joint[self.rows, self.columns] + self._never, _LEAST))

    def moved(self, shift: np.ndarray, scattered: np.ndarray) -> np.ndarray:
        """Likelihoods of the counts after, of prompts at each node before, ``[N, V]``."""
        low, above, _ = self._places(shift)
        return _between(scattered, low, above)

    def slope(
        self, shift: np.ndarray, scattered: np.ndarray, times: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Log-likelihood of ``times [Q]`` prompts of each pair, and its slope in the shifts."""
        low, above, inside = self._places(shift)
        joint = self._weighed.T @ _between(scattered, low, above)
        likely = np.maximum(joint[self.rows, self.columns] + self._never, _LEAST)
        weights = np.zeros_like(joint)
        weights[self.rows, self.columns] = times / likely
        rise = (scattered[low + 1] - scattered[low]) / (self.nodes[1] - self.nodes[0])
        slope = inside * np.einsum("nu,nu->n", self._weighed @ weights, rise)
        return float(np.log(likely) @ times), slope

    def _places(self, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        spacing, last = self.nodes[1] - self.nodes[0], self.nodes.size - 1
        raw = (self.nodes + shift - self.nodes[0]) / spacing
        place = np.clip(raw, 0, last - 1e-9)
        low = place.astype(int)
        return low, place - low, raw == place


def _histograms(
    priors: np.ndarray,
    impossible: np.ndarray,
    likelihood: np.ndarray,
    missed: np.ndarray,
    times: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the masses about what fits the counts best, near the laws' mean where they are few.

    Expectation and maximization, with some prompts more that follow the laws.
    """
    start = np.append(priors.mean(0), impossible.mean())
    chances = np.vstack([likelihood, missed])
    masses, size = start, times.sum() + _MORE
    for _ in range(_STEPS):
        share = masses[:, None] * chances
        share /= np.maximum(share.sum(0), _LEAST)
        masses = (share @ times + _MORE * start) / size
    drawn = rng.gamma(np.maximum(masses * size, _LEAST), size=(len(priors), masses.size))
    drawn /= drawn.sum(1, keepdims=True)
    return drawn[:, :-1], drawn[:, -1]


def _between(table: np.ndarray, low: np.ndarray, above: np.ndarray) -> np.ndarray:
    return table[low] * (1 - above)[:, None] + table[low + 1] * above[:, None]


def _different(counts: Side) -> tuple[np.ndarray, np.ndarray]:
    both = np.stack([counts.correct, counts.samples])
    found, index = np.unique(both, axis=1, return_inverse=True)
    return found, index.ravel()


def _likelihood(nodes: np.ndarray, correct: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Binomial, ``[N, U]``."""
    wrong = samples - correct
    ways = gammaln(samples + 1) - gammaln(correct + 1) - gammaln(wrong + 1)
    log_p = log_expit(nodes)[:, None] * correct + log_expit(-nodes)[:, None] * wrong
    return np.exp(ways + log_p)
