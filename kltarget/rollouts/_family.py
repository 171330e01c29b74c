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
    """Both families, the share of resamples in which the reverse misses less, and how many units.

    Resampled are completions and, independently, blocks of steps, by random weights: whatever makes
    all answers of a block deviate together, or one answer at all steps, is in the interval, which
    is conservative for what does neither (Owen, "The Pigeonhole Bootstrap", 2007, arXiv 0712.1111).
    The width is Student's for the smaller number of units.
    """
    estimates = {name: _fit(name, cells, cells.count) for name in ("reverse", "forward")}
    _, block = np.unique(cells.block, return_inverse=True)
    _, completion = np.unique(cells.completion, return_inverse=True)
    units = [n for n in (int(block.max()) + 1, int(completion.max()) + 1) if n > 1]
    drawn: dict[str, list[tuple[float, float]]] = {"reverse": [], "forward": []}
    for _ in range(number):
        weight = cells.count * rng.exponential(size=int(completion.max()) + 1)[completion]
        if block.max() > 0:
            weight = weight * rng.exponential(size=int(block.max()) + 1)[block]
        for name, values in drawn.items():
            values.append(_fit(name, cells, weight))
    fits = []
    few = min(units, default=1)
    for name, (slope, miss) in estimates.items():
        slopes = np.array([x for x, _ in drawn[name]])
        # Random exponential weights of n units scatter less than n independent ones by this.
        wider = np.sqrt((few + 1) / max(few - 1, 1))
        half = student.ppf((1 + LEVEL) / 2, max(few - 1, 1)) * wider * slopes.std()
        half += _ROUNDING * abs(slope)
        fits.append(Fit(name, _inverse(slope), _inverted(slope - half, slope + half), miss))
    misses = {name: np.array([miss for _, miss in values]) for name, values in drawn.items()}
    better = float((misses["reverse"] < misses["forward"]).mean()) if number else float("nan")
    return fits[0], fits[1], better, few


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
