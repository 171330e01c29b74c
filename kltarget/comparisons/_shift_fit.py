"""Which law of shifts the counts of two checkpoints follow, and what the shifts are if none."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize
from scipy.special import logit

from kltarget.comparisons._shift_laws import Family
from kltarget.comparisons._shift_likelihood import FREEDOM, PairCounts
from kltarget.implied.success import NODES

SCALES = np.array([0.0, 0.12, 0.2, 0.33, 0.5, 0.75, 1.1, 1.6, 2.4])
KNOTS = logit(np.array([0.003, 0.02, 0.08, 0.25, 0.5, 0.75, 0.92, 0.98, 0.997]))
"""Log-odds between which the free curve is straight."""
_FOLDS, _REFINED, _FINE, _PLACES = 10, 2, 9, 50_000
# Between knots the shift changes by about one; it, and the scatter, are of this order.
_STEP, _LEVEL, _SCATTER = 1.0, 3.0, 1.0
_CHANGE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class FamilyFit:
    """A law at its likeliest parameter.

    Attributes:
        parameter: quantiles 0.025, 0.5 and 0.975.
        scale: of the scatter about the shift.
        shift: at the median, at the nodes, ``[N]``.
        held_out: log-likelihood of each prompt, fitted without it, ``[P]``.
    """

    parameter: np.ndarray
    scale: float
    shift: np.ndarray
    held_out: np.ndarray

    @property
    def scatter(self) -> float:
        """Standard deviation about the shift."""
        return _deviation(self.scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A curve of shifts through ``KNOTS``, with one scatter about it.

    Attributes:
        weight: the posterior probability of that scatter.
        scale: of the scatter.
        knots: the shifts.
        covariance: of these.
    """

    weight: float
    scale: float
    knots: np.ndarray
    covariance: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class CurveFit:
    """Shifts that follow no law.

    Attributes:
        curves: for each scatter that the counts allow, the likeliest first.
        basis: what each knot adds at the nodes, ``[N, K]``.
        held_out: log-likelihood of each prompt, fitted without it, ``[P]``.
    """

    curves: tuple[Curve, ...]
    basis: np.ndarray
    held_out: np.ndarray

    @property
    def shift(self) -> np.ndarray:
        """The likeliest curve at the nodes, ``[N]``."""
        return self.basis @ self.curves[0].knots

    @property
    def scatter(self) -> float:
        """Standard deviation about the likeliest curve."""
        return _deviation(self.curves[0].scale)

    def mean(self, weights: np.ndarray) -> tuple[float, float, float]:
        """The mean shift under weights of the nodes, ``[N]``, with its 95 % interval."""
        row = weights @ self.basis
        means = np.array([row @ x.knots for x in self.curves])
        variances = np.array([row @ x.covariance @ row for x in self.curves])
        shares = np.array([x.weight for x in self.curves])
        middle = float(shares @ means)
        width = 1.96 * float(np.sqrt(shares @ (variances + (means - middle) ** 2)))
        return middle, middle - width, middle + width


def _deviation(scale: float) -> float:
    return float(scale * np.sqrt(FREEDOM / (FREEDOM - 2)))


def folds(num_prompts: int, rng: np.random.Generator) -> np.ndarray:
    """Which part of the prompts each is in."""
    return rng.permutation(np.arange(num_prompts) % min(_FOLDS, num_prompts))


def fit_family(family: Family, pairs: PairCounts, fold: np.ndarray) -> FamilyFit:
    """The likeliest parameter and scatter: on a grid, then on a finer one about its best point."""
    times = _times(pairs, fold)
    parameters, scales, profile = family.parameters[::3], SCALES[::2], {}
    for _ in range(_REFINED):
        _, best, which = _grid(family, pairs, parameters, scales, times, profile)
        parameters = _about(parameters, best)
        scales = np.linspace(*_beside(scales, which), 5)
    likely, _, which = _grid(family, pairs, parameters, scales, times, profile)
    held_out = np.empty(fold.size)
    for number, row in enumerate(times):
        without = likely @ (times.sum(0) - row)
        at = np.unravel_index(without.argmax(), without.shape)
        inside = fold == number
        held_out[inside] = likely[at][pairs.pair[inside]]
    quantiles = _quantiles(profile)
    shift = _at(family, quantiles[1:2], pairs)[0]
    return FamilyFit(quantiles, float(scales[which]), shift, held_out)


def fit_curve(pairs: PairCounts, fold: np.ndarray) -> CurveFit:
    """The likeliest curve of every scatter, by how likely that is."""
    basis, times = _hats(pairs.nodes), _times(pairs, fold)
    curves, knots = [], np.zeros(KNOTS.size)
    for scale in SCALES.tolist():
        scattered = pairs.scattered(scale)
        loss, knots = _climb(pairs, basis, scattered, times.sum(0), knots)
        precision = _curvature(pairs, basis, scattered, times.sum(0), knots)
        # Laplace's evidence: all curves near by count.
        log_weight = -loss - (scale / _SCATTER) ** 2 / 2 - np.linalg.slogdet(precision)[1] / 2
        curves.append(Curve(log_weight, scale, knots, np.linalg.inv(precision)))
    top = max(x.weight for x in curves)
    total = sum(np.exp(x.weight - top) for x in curves)
    curves = [dataclasses.replace(x, weight=np.exp(x.weight - top) / total) for x in curves]
    curves = sorted(curves, key=lambda x: -x.weight)
    best = curves[0]
    scattered = pairs.scattered(best.scale)
    held_out = np.empty(fold.size)
    for number, row in enumerate(times):
        _, fitted = _climb(pairs, basis, scattered, times.sum(0) - row, best.knots)
        inside = fold == number
        each = pairs.log_likelihood(basis @ fitted, scattered)
        held_out[inside] = each[pairs.pair[inside]]
    return CurveFit(tuple(curves), basis, held_out)


def _grid(
    family: Family,
    pairs: PairCounts,
    parameters: np.ndarray,
    scales: np.ndarray,
    times: np.ndarray,
    profile: dict[float, float],
) -> tuple[np.ndarray, int, int]:
    """Log-likelihoods of the pairs, ``[T, S, Q]``, and where that of all prompts is highest.

    The highest of each parameter goes into the profile.
    """
    found = np.empty((parameters.size, scales.size, pairs.rows.size))
    shifts = _at(family, parameters, pairs)
    for j, scale in enumerate(scales):
        scattered = pairs.scattered(float(scale))
        for i, shift in enumerate(shifts):
            found[i, j] = pairs.log_likelihood(shift, scattered)
    total = found @ times.sum(0)
    profile.update(zip(parameters.tolist(), total.max(1).tolist(), strict=True))
    best, which = np.unravel_index(int(total.argmax()), total.shape)
    return found, int(best), int(which)


def _at(family: Family, parameters: np.ndarray, pairs: PairCounts) -> np.ndarray:
    """Shifts at the nodes of the counts, between those of the tables."""
    return np.stack([np.interp(pairs.nodes, NODES, row) for row in family.shifts(parameters)])


def _times(pairs: PairCounts, fold: np.ndarray) -> np.ndarray:
    """How many prompts of each fold have each pair, ``[F, Q]``."""
    size, width = int(fold.max()) + 1, pairs.rows.size
    return np.bincount(fold * width + pairs.pair, minlength=size * width).reshape(size, width)


def _about(parameters: np.ndarray, at: int) -> np.ndarray:
    """A finer grid between the neighbours of one."""
    if parameters.size == 1:
        return parameters
    return np.geomspace(*_beside(parameters, at), _FINE)


def _beside(grid: np.ndarray, at: int) -> tuple[float, float]:
    return float(grid[max(at - 1, 0)]), float(grid[min(at + 1, grid.size - 1)])


def _quantiles(profile: dict[float, float]) -> np.ndarray:
    """Of a parameter, flat in its logarithm before the counts were seen."""
    if len(profile) < 2:
        return np.full(3, np.nan)
    parameters = np.array(sorted(profile))
    # Finer grids end where coarser ones have a point, to rounding.
    parameters = parameters[np.diff(parameters, prepend=0) > 1e-9 * parameters]
    heights = np.array([profile[x] for x in parameters])
    places = np.linspace(np.log(parameters[0]), np.log(parameters[-1]), _PLACES)
    density = np.exp(PchipInterpolator(np.log(parameters), heights - heights.max())(places))
    mass = np.cumsum(density)
    return np.exp(np.interp([0.025, 0.5, 0.975], mass / mass[-1], places))


def _hats(nodes: np.ndarray) -> np.ndarray:
    return np.stack([np.interp(nodes, KNOTS, row) for row in np.eye(KNOTS.size)], axis=1)


def _climb(
    pairs: PairCounts,
    basis: np.ndarray,
    scattered: np.ndarray,
    times: np.ndarray,
    start: np.ndarray,
) -> tuple[float, np.ndarray]:
    """The least loss from ``start`` on, and the shifts at the knots that have it."""
    found = minimize(
        lambda knots: _loss(pairs, basis, scattered, times, knots),
        start,
        jac=True,
        method="L-BFGS-B",
    )
    return float(found.fun), found.x


def _loss(
    pairs: PairCounts,
    basis: np.ndarray,
    scattered: np.ndarray,
    times: np.ndarray,
    knots: np.ndarray,
) -> tuple[float, np.ndarray]:
    likely, slope = pairs.slope(basis @ knots, scattered, times)
    stiff = _PRECISION @ knots
    return float(knots @ stiff) / 2 - likely, stiff - basis.T @ slope


def _curvature(
    pairs: PairCounts,
    basis: np.ndarray,
    scattered: np.ndarray,
    times: np.ndarray,
    knots: np.ndarray,
) -> np.ndarray:
    """Second derivatives of the loss, as differences of the first ones."""
    rows = []
    for change in _CHANGE * np.eye(KNOTS.size):
        _, up = _loss(pairs, basis, scattered, times, knots + change)
        _, down = _loss(pairs, basis, scattered, times, knots - change)
        rows.append((up - down) / (2 * _CHANGE))
    found = np.array(rows)
    found = (found + found.T) / 2
    # Where the likelihood bends the wrong way what was assumed of the curve alone holds it.
    least, directions = np.linalg.eigh(found - _PRECISION)
    return directions @ np.diag(np.maximum(least, 0)) @ directions.T + _PRECISION


def _precision() -> np.ndarray:
    steps = np.diff(np.eye(KNOTS.size), axis=0) / _STEP
    level = np.full((1, KNOTS.size), 1 / KNOTS.size) / _LEVEL
    return steps.T @ steps + level.T @ level


_PRECISION = _precision()
