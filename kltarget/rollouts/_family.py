"""Which closed form a run's own log-probabilities follow, and with which coefficient.

At the target of the reverse KL ``log π/π_ref = r/β − const``, at that of the forward KL
``π_ref/π = (Λ − r)/β``: both are lines in the reward within a prompt, in different coordinates.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.stats import t as student

from kltarget.rollouts._statistics import LEVEL

# One family has to miss by so much more than the other, in so many of the resamples.
MARGIN, SHARE = 1.5, 0.95
_ROUNDS = 8
_MOST_BLOCKS = 10
# Log-probabilities are logged with seven digits.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """Distinct completions at a step, an entry each.

    Attributes:
        log_ratio: ``log π/π_ref``.
        x: the reward over the configured coefficient of its prompt, or the reward itself.
        count: rollouts.
        line: code of the pair of prompt and step, each of which has an intercept of its own.
        completion: code of the completion, whose deviations at several steps go together.
        block: code of the block of steps, or of groups if there is one step.
    """

    log_ratio: np.ndarray
    x: np.ndarray
    count: np.ndarray
    line: np.ndarray
    completion: np.ndarray
    block: np.ndarray


@dataclasses.dataclass(frozen=True)
class Fit:
    """One family fitted to a log.

    Attributes:
        family: "reverse" or "forward".
        factor: implied over configured coefficient, or the coefficient itself in reward units.
        interval: 95 % interval of ``factor``.
        miss: root mean square deviation of ``log π/π_ref`` from the fit, in nats.
    """

    family: str
    factor: float
    interval: tuple[float, float]
    miss: float


def can_tell(cells: Cells) -> bool:
    """Whether some line has three rewards: through two points both families pass."""
    order = np.lexsort((cells.x, cells.line))
    x, line = cells.x[order], cells.line[order]
    new = np.diff(x, prepend=-np.inf) > 1e-9 * (1 + np.abs(x))
    new |= np.diff(line, prepend=-1) != 0
    return bool((np.bincount(line, new) >= 3).any())


def some_slope(cells: Cells) -> bool:
    """Whether rewards differ anywhere within a line."""
    low = np.full(cells.line.max() + 1, np.inf)
    high = -low
    np.minimum.at(low, cells.line, cells.x)
    np.maximum.at(high, cells.line, cells.x)
    return bool((high - low > 1e-9).any())


def fit_families(
    cells: Cells, rng: np.random.Generator, number: int
) -> tuple[Fit, Fit, float, int]:
    """Both families, in how many of the resamples the better one stays so, and how many
    different completions there are.

    Resampled by random weights are the completions, and the blocks of steps: so one answer may
    deviate at all steps, or all answers in one block. Both variances count, which is conservative
    for what does neither, and the width is Student's with Satterthwaite's degrees of freedom.
    """
    names = ("reverse", "forward")
    estimates = {name: _fit(name, cells, cells.count) for name in names}
    better = min(names, key=lambda name: estimates[name][1])
    variances: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    shares = []
    for label in (cells.completion, cells.block):
        _, unit = np.unique(label, return_inverse=True)
        few = int(unit.max()) + 1
        if few < 2:
            continue
        weights = [cells.count * rng.exponential(size=few)[unit] for _ in range(number)]
        drawn = {name: np.array([_fit(name, cells, w) for w in weights]) for name in names}
        for name, values in drawn.items():
            # Random exponential weights of n units scatter less than n independent ones by this.
            scatter = values[:, 0].var() * (few + 1) / (few - 1)
            variances[name].append((float(scatter), few - 1))
        worse = names[1 - names.index(better)]
        shares.append(float((drawn[better][:, 1] < drawn[worse][:, 1]).mean()))
    fits = []
    for name, (slope, miss) in estimates.items():
        half = _half_width(variances[name]) + _ROUNDING * abs(slope)
        fits.append(Fit(name, _inverse(slope), _inverted(slope - half, slope + half), miss))
    return fits[0], fits[1], min(shares, default=0.0), len(np.unique(cells.completion))


def _half_width(variances: list[tuple[float, int]]) -> float:
    """Half a 95 % interval from variances with their degrees of freedom."""
    total = sum(variance for variance, _ in variances)
    if not total:
        return 0.0 if variances else np.inf
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in variances)
    return float(student.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(total))


def _inverse(slope: float) -> float:
    return 1 / slope if slope > 0 else np.inf


def _inverted(low: float, high: float) -> tuple[float, float]:
    return _inverse(high), _inverse(low)


def _fit(family: str, cells: Cells, weight: np.ndarray) -> tuple[float, float]:
    """The slope of a family in 1/β, and what it misses by."""
    if family == "reverse":
        slope, fitted = _line(cells, cells.log_ratio, weight)
        miss = cells.log_ratio - fitted
        return slope, _mean_square(miss, weight)
    # Deviations of log π/π_ref are what is even, so those of its inverse count by its square.
    inverse, relative = np.exp(-cells.log_ratio), weight * np.exp(2 * cells.log_ratio)
    slope, fitted = 0.0, inverse
    for _ in range(_ROUNDS):
        slope, fitted = _line(cells, inverse, relative)
        fitted = np.maximum(fitted, 1e-3 * inverse)
        relative = weight / fitted**2
    return -slope, _mean_square(-cells.log_ratio - np.log(fitted), weight)


def _line(cells: Cells, y: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted least squares with one slope and an intercept per line."""
    total = np.bincount(cells.line, weight)
    mean_x = (np.bincount(cells.line, weight * cells.x) / total)[cells.line]
    mean_y = (np.bincount(cells.line, weight * y) / total)[cells.line]
    dx = cells.x - mean_x
    slope = float((weight * dx * y).sum() / (weight * dx**2).sum())
    return slope, mean_y + slope * dx


def _mean_square(miss: np.ndarray, weight: np.ndarray) -> float:
    return float(np.sqrt((weight * miss**2).sum() / weight.sum()))


def blocks(times: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Neighbouring steps in at most ten blocks; the groups themselves if there is one step."""
    ranks, time = np.unique(times, return_inverse=True)
    if len(ranks) < 2:
        return groups
    return time * min(len(ranks), _MOST_BLOCKS) // len(ranks)
