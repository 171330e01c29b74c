"""Which closed form a run's own log-probabilities follow, and with which coefficient.

At the target of the reverse KL ``log π/π_ref = r/β − const``, at that of the forward KL
``π_ref/π = (Λ − r)/β``: both are lines in the reward within a prompt, in different coordinates.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.stats import t as student

from kltarget._core import processes
from kltarget.evidence import LEVEL

# One family has to miss by so much more than the other, in so many of the resamples.
MARGIN, SHARE = 1.5, 0.95
_ROUNDS = 8
_MOST_BLOCKS = 10
_MOST_AT_ONCE, _MOST_IN_ALL = 2**18, 2**25
# Beyond this log-ratios are those of a policy that has nothing to do with the reference.
_MOST_NATS = 100.0
# Log-probabilities are logged with seven digits.
_ROUNDING = 1e-6
# A relative square that is rounding.
_EXACT = 1e-24
_LEAST_DRAWS, _MOST_DRAWS = 400, 2000


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
    deviate at all steps, or all answers in one block. The intervals allow for both
    (``_half_width``).
    """
    order = np.argsort(cells.line, kind="stable")
    cells = LogRatios(*(getattr(cells, field.name)[order] for field in dataclasses.fields(cells)))
    names = ("reverse", "forward")
    estimates = {name: _fit(name, cells, cells.count[None]) for name in names}
    better, worse = sorted(names, key=lambda name: estimates[name].miss[0])
    shares = []
    for label in (cells.completion, cells.block):
        _, unit = np.unique(label, return_inverse=True)
        few = int(unit.max()) + 1
        if few > 1:
            misses = _resampled(cells, unit, few, rng, number)
            shares.append(float((misses[better] < misses[worse]).mean()))
    fits = []
    for name, fit in estimates.items():
        slope, miss = float(fit.slope[0]), float(fit.miss[0])
        half = _half_width(cells, fit, rng) + _ROUNDING * abs(slope)
        interval = _inverse(slope + half), _inverse(slope - half)
        fits.append(FamilyFit(name, _inverse(slope), interval, miss))
    return fits[0], fits[1], min(shares, default=0.0), len(np.unique(cells.completion))


def _resampled(
    cells: LogRatios, unit: np.ndarray, few: int, rng: np.random.Generator, number: int
) -> dict[str, np.ndarray]:
    """What both families miss by under random weights of the units, ``[R]`` each."""
    names = ("reverse", "forward")

    def misses(drawn: np.ndarray) -> list[np.ndarray]:
        weight = cells.count * drawn[:, unit]
        return [_fit(name, cells, weight).miss for name in names]

    sizes = _in_parts(number, len(unit))
    drawn = (rng.exponential(size=(size, few)) for size in sizes)
    parts = zip(*processes.shared(misses, drawn), strict=True)
    return dict(zip(names, map(np.concatenate, parts), strict=True))


def _in_parts(number: int, length: int) -> list[int]:
    """How many rows of this length are taken at a time."""
    at_once = max(1, _MOST_AT_ONCE // length)
    return [min(at_once, number - start) for start in range(0, number, at_once)]


def _half_width(cells: LogRatios, fit: _Fit, rng: np.random.Generator) -> float:
    """Half a 95 % interval of a slope, infinite where nothing says how much completions deviate.

    Its variance adds up the squares of what each completion's deviations, and each block's, move
    the slope by. From few, unequal completions that comes out small, and unsteady, by as much as
    simulated deviations of this very design say: independent and equally large of all completions,
    the same at all steps. The quotient of the slope's error and its estimated error there is what
    Student's is of equal points. Where the blocks prevail it is Student's, with Satterthwaite's
    degrees of freedom.

    References:
        Bell, McCaffrey, "Bias reduction in standard errors for linear regression with multi-stage
        samples", Survey Methodology 28, 2002 (the same by formulas). Cameron, Gelbach, Miller,
        "Bootstrap-based improvements for inference with clustered errors", Review of Economics and
        Statistics 90, 2008.
    """
    weight, scale = fit.weight[:1], fit.scale[0]
    (_, completion), (_, block) = (
        np.unique(label, return_inverse=True) for label in (cells.completion, cells.block)
    )
    units, few = int(completion.max()) + 1, int(block.max()) + 1
    spread = few / (few - 1) if few > 1 else 0.0

    def errors(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slopes, and their variances by completions and by blocks."""
        slope, fitted, lever = _line(cells, y, weight)
        moved = lever * (y - fitted)
        return slope, _squares(moved, completion), spread * _squares(moved, block)

    _, by_completions, by_blocks = (float(x[0]) for x in errors(fit.y))
    most = min(_MOST_DRAWS, max(_LEAST_DRAWS, _MOST_IN_ALL // len(completion)))

    def quotients(deviations: np.ndarray) -> np.ndarray:
        slope, one, other = errors(scale * deviations[:, completion])
        with np.errstate(divide="ignore"):
            # What remains of a fit through all points is rounding.
            exact = one <= _EXACT * slope**2
            return np.abs(slope) / np.sqrt(np.where(exact, 0, one + other))

    sizes = _in_parts(most, len(completion))
    drawn = (rng.standard_normal((size, units)) for size in sizes)
    ratios = processes.shared(quotients, drawn)
    times = float(np.quantile(np.concatenate(ratios), LEVEL, method="inverted_cdf"))
    total = by_completions + by_blocks
    if not np.isfinite(times):
        return np.inf
    if not total:
        return 0.0
    parts = (by_completions, units - 1), (by_blocks, few - 1)
    freedom = total**2 / sum(part**2 / degrees for part, degrees in parts if part)
    return max(times, float(student.ppf((1 + LEVEL) / 2, freedom))) * float(np.sqrt(total))


def _squares(moved: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """The sums of the squares of the units' sums, ``[R]``."""
    order = np.argsort(unit, kind="stable")
    starts = np.flatnonzero(np.diff(unit[order], prepend=-1))
    return (np.add.reduceat(moved[:, order], starts, axis=1) ** 2).sum(1)


def _inverse(slope: float) -> float:
    return 1 / slope if slope > 0 else np.inf


@dataclasses.dataclass(frozen=True, eq=False)
class _Fit:
    """A family under rows of weights.

    Attributes:
        slope: in 1/β, ``[R]``.
        miss: root mean square deviation of ``log π/π_ref``, ``[R]``.
        y: what is a line in the reward, ``[1, N]``.
        weight: of its least squares, ``[R, N]``.
        scale: how far ``y`` moves with ``log π/π_ref``, ``[R, N]``.
    """

    slope: np.ndarray
    miss: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    scale: np.ndarray


def _fit(family: str, cells: LogRatios, weight: np.ndarray) -> _Fit:
    """A family under weights ``[R, N]``."""
    if family == "reverse":
        slope, fitted, _ = _line(cells, cells.log_ratio[None], weight)
        miss = _mean_square(cells.log_ratio - fitted, weight)
        return _Fit(slope, miss, cells.log_ratio[None], weight, np.ones_like(weight))
    # Deviations of log π/π_ref are what is even, so those of its inverse count by its square.
    tame = np.clip(cells.log_ratio, -_MOST_NATS, _MOST_NATS)
    inverse, relative = np.exp(-tame)[None], weight * np.exp(2 * tame)
    slope, fitted, _ = _line(cells, inverse, relative)
    for _ in range(_ROUNDS):
        relative = weight / np.maximum(fitted, 1e-3 * inverse) ** 2
        slope, fitted, _ = _line(cells, inverse, relative)
    fitted = np.maximum(fitted, 1e-3 * inverse)
    return _Fit(-slope, _mean_square(-tame - np.log(fitted), weight), inverse, relative, fitted)


def _line(
    cells: LogRatios, y: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted least squares with one slope and an intercept per line, of sorted lines.

    Returns the slopes ``[R]``, the fits, and by how much the slope moves with ``y``, ``[R, N]``.
    """
    starts = np.flatnonzero(np.diff(cells.line, prepend=-1))
    sizes = np.diff(np.append(starts, len(cells.line)))
    total = np.add.reduceat(weight, starts, axis=1)

    def centre(values: np.ndarray) -> np.ndarray:
        sums = np.add.reduceat(weight * values, starts, axis=1)
        return np.repeat(sums / total, sizes, axis=1)

    dx = cells.x - centre(cells.x)
    lever = weight * dx / (weight * dx**2).sum(1)[:, None]
    slope = (lever * y).sum(1)
    return slope, centre(y) + slope[:, None] * dx, lever


def _mean_square(miss: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.sqrt((weight * miss**2).sum(1) / weight.sum(1))


def blocks(times: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Neighbouring steps in at most ten blocks; the groups themselves if there is one step."""
    ranks, time = np.unique(times, return_inverse=True)
    if len(ranks) < 2:
        return groups
    return time * min(len(ranks), _MOST_BLOCKS) // len(ranks)
