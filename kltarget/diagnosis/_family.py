"""Which closed form a run's own log-probabilities follow, and with which coefficient.

At the target of the reverse KL ``log π/π_ref = r/β − const``, at that of the forward KL
``π_ref/π = (Λ − r)/β``: both are lines in the reward within a prompt, in different coordinates.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.stats import t as student

from kltarget.evidence import LEVEL

# One family has to miss by so much more than the other, in so many of the resamples.
MARGIN, SHARE = 1.5, 0.95
_ROUNDS = 8
_MOST_BLOCKS = 10
_MOST_AT_ONCE = 2**21
# Beyond this log-ratios are those of a policy that has nothing to do with the reference.
_MOST_NATS = 100.0
# Log-probabilities are logged with seven digits.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class LogRatios:
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
class FamilyFit:
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


def can_tell(cells: LogRatios) -> bool:
    """Whether some line has three rewards: through two points both families pass."""
    order = np.lexsort((cells.x, cells.line))
    x, line = cells.x[order], cells.line[order]
    new = np.diff(x, prepend=-np.inf) > 1e-9 * (1 + np.abs(x))
    new |= np.diff(line, prepend=-1) != 0
    return bool((np.bincount(line, new) >= 3).any())


def some_slope(cells: LogRatios) -> bool:
    """Whether rewards differ anywhere within a line."""
    import pandas as pd

    x: Any = pd.Series(cells.x).groupby(cells.line)
    return bool((x.max() - x.min() > 1e-9).any())


def fit_families(
    cells: LogRatios, rng: np.random.Generator, number: int
) -> tuple[FamilyFit, FamilyFit, float, int]:
    """Both families, the share of resamples in which the better stays so, and how many completions.

    Resampled by random weights are the completions, and the blocks of steps: so one answer may
    deviate at all steps, or all answers in one block. Both variances count, which is conservative
    for what does neither, and the width is Student's with Satterthwaite's degrees of freedom.
    """
    order = np.argsort(cells.line, kind="stable")
    cells = LogRatios(*(getattr(cells, field.name)[order] for field in dataclasses.fields(cells)))
    names = ("reverse", "forward")
    estimates = {name: _fit(name, cells, cells.count[None]) for name in names}
    better, worse = sorted(names, key=lambda name: estimates[name][1, 0])
    variances: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    shares = []
    for label in (cells.completion, cells.block):
        _, unit = np.unique(label, return_inverse=True)
        few = int(unit.max()) + 1
        if few < 2:
            continue
        drawn = _resampled(cells, unit, few, rng, number)
        for name, values in drawn.items():
            # Random exponential weights of n units scatter less than n independent ones by this.
            scatter = values[0].var() * (few + 1) / (few - 1)
            variances[name].append((float(scatter), few - 1))
        shares.append(float((drawn[better][1] < drawn[worse][1]).mean()))
    fits = []
    for name in names:
        slope, miss = (float(x) for x in estimates[name][:, 0])
        half = _half_width(variances[name]) + _ROUNDING * abs(slope)
        interval = _inverse(slope + half), _inverse(slope - half)
        fits.append(FamilyFit(name, _inverse(slope), interval, miss))
    return fits[0], fits[1], min(shares, default=0.0), len(np.unique(cells.completion))


def _resampled(
    cells: LogRatios, unit: np.ndarray, few: int, rng: np.random.Generator, number: int
) -> dict[str, np.ndarray]:
    """Slopes and misses of both families under random weights of the units, ``[2, R]`` each."""
    at_once = max(1, _MOST_AT_ONCE // len(unit))
    parts: dict[str, list[np.ndarray]] = {"reverse": [], "forward": []}
    for start in range(0, number, at_once):
        rows = min(at_once, number - start)
        weight = cells.count * rng.exponential(size=(rows, few))[:, unit]
        for name, values in parts.items():
            values.append(_fit(name, cells, weight))
    return {name: np.concatenate(values, axis=1) for name, values in parts.items()}


def _half_width(variances: list[tuple[float, int]]) -> float:
    """Half a 95 % interval from variances with their degrees of freedom."""
    total = sum(variance for variance, _ in variances)
    if not total:
        return 0.0 if variances else np.inf
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in variances)
    return float(student.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(total))


def _inverse(slope: float) -> float:
    return 1 / slope if slope > 0 else np.inf


def _fit(family: str, cells: LogRatios, weight: np.ndarray) -> np.ndarray:
    """The slopes of a family in 1/β and what they miss by, ``[2, R]``, of weights ``[R, N]``."""
    if family == "reverse":
        slope, fitted = _line(cells, cells.log_ratio, weight)
        return np.stack([slope, _mean_square(cells.log_ratio - fitted, weight)])
    # Deviations of log π/π_ref are what is even, so those of its inverse count by its square.
    tame = np.clip(cells.log_ratio, -_MOST_NATS, _MOST_NATS)
    inverse, relative = np.exp(-tame), weight * np.exp(2 * tame)
    slope, fitted = _line(cells, inverse, relative)
    for _ in range(_ROUNDS):
        fitted = np.maximum(fitted, 1e-3 * inverse)
        slope, fitted = _line(cells, inverse, weight / fitted**2)
    fitted = np.maximum(fitted, 1e-3 * inverse)
    return np.stack([-slope, _mean_square(-tame - np.log(fitted), weight)])


def _line(cells: LogRatios, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares with one slope and an intercept per line, of sorted lines."""
    starts = np.flatnonzero(np.diff(cells.line, prepend=-1))
    sizes = np.diff(np.append(starts, len(cells.line)))
    total = np.add.reduceat(weight, starts, axis=1)

    def centre(values: np.ndarray) -> np.ndarray:
        sums = np.add.reduceat(weight * values, starts, axis=1)
        return np.repeat(sums / total, sizes, axis=1)

    dx = cells.x - centre(cells.x)
    slope = (weight * dx * y).sum(1) / (weight * dx**2).sum(1)
    return slope, centre(y) + slope[:, None] * dx


def _mean_square(miss: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.sqrt((weight * miss**2).sum(1) / weight.sum(1))


def blocks(times: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Neighbouring steps in at most ten blocks; the groups themselves if there is one step."""
    ranks, time = np.unique(times, return_inverse=True)
    if len(ranks) < 2:
        return groups
    return time * min(len(ranks), _MOST_BLOCKS) // len(ranks)
