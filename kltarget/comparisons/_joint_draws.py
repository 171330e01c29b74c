"""Draws of each prompt's success before and after together.

What became of a prompt says where it was and the other way about: one without a right sample after
that had many before is not as hopeless as one that never had any. So the log-odds before are drawn
given both counts, and those after given the log-odds before and the counts after, by the free
curve of shifts and the scatter about it.
"""

from __future__ import annotations

import numpy as np

from kltarget.comparisons._shift_fit import Curve, CurveFit
from kltarget.comparisons._shift_likelihood import PairCounts

# Numbers of draws times prompts times nodes, and draws at the least.
_MOST, _FEWEST = 3e8, 200
_LEAST = 1e-300


def joint_draws(
    pairs: PairCounts, free: CurveFit, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds before and after, ``[D, P]`` each, ``-inf`` of what can't be solved."""
    most, all_draws = _MOST / pairs.nodes.size / pairs.pair.size, len(pairs.priors)
    number = int(np.clip(most, min(_FEWEST, all_draws), all_draws))
    shares = [curve.weight for curve in free.curves]
    times = rng.multinomial(number, np.array(shares) / sum(shares))
    chosen = rng.choice(all_draws, size=number, p=_given_after(pairs, free))
    before, after = np.empty((2, number, pairs.pair.size))
    end = 0
    for curve, each in zip(free.curves, times.tolist(), strict=True):
        rows = slice(end, end + each)
        end += each
        if each:
            which = chosen[rows]
            before[rows], after[rows] = _of_curve(pairs, free.basis, curve, which, rng)
    return before, after


def _given_after(pairs: PairCounts, free: CurveFit) -> np.ndarray:
    """Probabilities of the priors, which the counts before chose, given those after too."""
    moved = pairs.moved(free.shift, pairs.scattered(free.curves[0].scale))
    times = np.bincount(pairs.pair)
    both = pairs.before[:, pairs.rows] * moved[:, pairs.columns]
    unsolved = pairs.before_missed
    log_ratio = np.log(
        np.maximum(pairs.priors @ both + pairs.impossible[:, None] * pairs.missed, _LEAST)
    )
    alone = pairs.priors @ pairs.before[:, pairs.rows] + pairs.impossible[:, None] * unsolved
    log_ratio = (log_ratio - np.log(np.maximum(alone, _LEAST))) @ times
    weights = np.exp(log_ratio - log_ratio.max())
    return weights / weights.sum()


def _of_curve(
    pairs: PairCounts, basis: np.ndarray, curve: Curve, which: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """With one scatter, and the priors of these draws."""
    kernel = pairs.kernel(curve.scale)
    scattered = kernel @ pairs.after
    before_each, after_each = pairs.before.T[pairs.rows], pairs.after.T[pairs.columns[pairs.pair]]
    spacing, size = pairs.nodes[1] - pairs.nodes[0], pairs.pair.size
    priors, impossible = pairs.priors[which], pairs.impossible[which]
    before, after = np.empty((2, len(priors), size))
    for row, prior in enumerate(priors):
        shift = basis @ rng.multivariate_normal(curve.knots, curve.covariance)
        # Nodes last: a pair's lie together.
        moved = np.ascontiguousarray(pairs.moved(shift, scattered).T)
        summed = np.cumsum(prior * before_each * moved[pairs.columns], axis=1)
        never = impossible[row] * pairs.missed
        share = never / np.maximum(never + summed[:, -1], _LEAST)
        start = _drawn(summed[pairs.pair], rng)
        # Between two nodes one of them, each as often as it is near.
        place = (pairs.nodes[start] + shift[start] - pairs.nodes[0]) / spacing
        place = np.clip(np.floor(place + rng.uniform(size=size)), 0, pairs.nodes.size - 1)
        ends = np.cumsum(kernel[place.astype(int)] * after_each, axis=1)
        stop = _drawn(ends, rng)
        within = spacing * (rng.uniform(size=(2, size)) - 0.5)
        hopeless = rng.uniform(size=size) < share[pairs.pair]
        before[row] = np.where(hopeless, -np.inf, pairs.nodes[start] + within[0])
        after[row] = np.where(hopeless, -np.inf, pairs.nodes[stop] + within[1])
    return before, after


def _drawn(summed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where cumulative masses ``[P, N]`` first exceed a uniform share of all."""
    uniform = rng.uniform(size=(len(summed), 1))
    found = np.count_nonzero(summed < uniform * np.maximum(summed[:, -1:], _LEAST), axis=1)
    return np.minimum(found, summed.shape[1] - 1)
