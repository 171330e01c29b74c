"""Which divergence a trainer's own term has, whatever function of the log ratio it is."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kltarget._core.numerics import double_precision
from kltarget.divergences import (
    Alpha,
    ChiSquared,
    ChiSquaredKL,
    Divergence,
    ForwardKL,
    JensenShannon,
    NeymanChiSquared,
    ReverseKL,
    Scaled,
    SquaredHellinger,
    TermDivergence,
    TotalVariation,
)
from kltarget.recipes._term_sources import (
    FINE,
    Source,
    called,
    derivative,
    primitive,
    source_of,
    spline,
)
from kltarget.recipes._weighted import term_and_place

Term = Callable[[Any], Any]
"""A function of log ratios ``log π/π_ref``, elementwise."""

Place = Literal["loss", "reward", "weighted-loss"]

_REACH = 15.0
"""Log ratios up to this are looked at."""
_STEP = 1 / 64
_GRID = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
_CENTRE = _GRID.size // 2
_EVERYWHERE = (-math.inf, math.inf)
_CLOSE = 1e-6
_FAMILIES = (
    ReverseKL(),
    ForwardKL(),
    ChiSquared(),
    JensenShannon(),
    SquaredHellinger(),
    NeymanChiSquared(),
    ChiSquaredKL(),
)


def swapped_k3(log_ratio: Any) -> Any:
    """``e^ℓ − 1 − ℓ``: k3 of the reference's log ratio to the policy."""
    return jnp.expm1(log_ratio) - log_ratio


@dataclasses.dataclass(frozen=True, eq=False)
class TermReading:
    """What a term of a trainer's loss does to the policy.

    Attributes:
        divergence: the divergence whose gradient its expected gradient is, while log ratios stay in
            ``held``; None if there is none.
        name: of that divergence, with its factor; or why there is none.
        family: the divergence of this package, or multiple of one, that it is within ``held``; None
            if it is one of its own.
        held: the interval of log ratios around 0 in which the pull to the reference does not fall.
        flat: intervals in which that pull is the same everywhere.
        falling: intervals in which it falls, or beyond which it has fallen.
    """

    divergence: Divergence | None
    name: str
    family: Divergence | None = None
    held: tuple[float, float] = (-math.inf, math.inf)
    flat: tuple[tuple[float, float], ...] = ()
    falling: tuple[tuple[float, float], ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on where the term does not hold the policy."""
        said = []
        if self.flat:
            said.append(f"{_where(self.flat)} its pull does not change with the policy")
        if self.falling:
            said.append(f"{_where(self.falling)} its pull falls, or has fallen")
        if self.divergence is not None and self.held != _EVERYWHERE:
            said.append(f"beyond {_range(self.held)} nothing holds the policy")
        return tuple(said)

    def __str__(self) -> str:
        return "; ".join((self.name, *self.remarks))


def read_term(term: Term, *, place: Place = "loss") -> TermReading:
    """What a term does: its divergence, where it is flat, and where it falls.

    Args:
        term: as for :func:`divergence_of`.
        place: as there.

    Returns:
        A :class:`TermReading`, also of terms that have no divergence.

    Raises:
        TypeError: ``term`` is no function of one array.
        ValueError: an unknown ``place``; a term that is not finite, elementwise or a function of
            its argument alone.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget import recipes
        >>> reading = recipes.read_term(lambda x: jnp.clip(x, -10, 10) ** 2 / 2)
        >>> print(reading.name)
        reverse KL within |log ratio| = 10
        >>> print(reading.remarks[-1])
        beyond |log ratio| = 10 nothing holds the policy
    """
    choices = ("loss", "reward", "weighted-loss")
    if place not in choices:
        raise ValueError(f"place must be one of {', '.join(map(repr, choices))}, got {place!r}")
    if not callable(term):
        raise TypeError(f"term must be a function of log ratios, got {type(term).__name__}")
    bare, where = term_and_place(term, place)
    try:
        hash(term)
    except TypeError:
        raise TypeError(
            f"term must be hashable, as functions are, got a {type(term).__name__}"
        ) from None
    return _read(bare, where, called(term))


def divergence_of(term: Term, *, place: Place = "loss") -> Divergence:
    """The divergence whose gradient the expected gradient of a term is.

    With samples from the policy and log ratios ``ℓ = log π/π_ref``, a term g that is added to the
    loss and differentiated as it stands has the gradient of the divergence with
    ``f′(u) = g′(log u)``; one that is charged to the reward as a number, ``f′(u) = g(log u)``; one
    in the loss that is weighted by ``π/sg(π)``, ``f′(u) = g(log u) + g′(log u)``. The target of
    ``E_π[r] − β D`` is then :func:`kltarget.solve`'s.

    Args:
        term: a function g of an array of log ratios, elementwise, written with JAX, NumPy or
            torch. It is evaluated at log ratios up to ±15, and at ±300 for its limits. What is not
            written with JAX is known at these points and interpolated in between.
        place: ``"loss"``, ``"reward"`` or ``"weighted-loss"``.

    Returns:
        A divergence of this package where the term is a multiple of one
        (``"0.5 × χ²"`` is ``Scaled(ChiSquared(), 0.5)``), else a :class:`TermDivergence`. Where the
        term is flat, as behind a clamp, nothing holds the policy: :func:`read_term` says where.
        Where only its slope is, several policies may be optimal: targets are ``NOT_UNIQUE`` then.

    Raises:
        TypeError: ``term`` is no function of one array.
        ValueError: the term has no divergence, with the reason: it is constant, or it falls; or it
            is not finite, not elementwise, or not a function of its argument alone.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget import recipes
        >>> recipes.divergence_of(lambda x: x**2 / 2), recipes.divergence_of(lambda x: x**2)
        (ReverseKL(), Scaled(base=ReverseKL(), factor=2.0))
        >>> recipes.divergence_of(lambda x: jnp.exp(x) - 1 - x)  # k3 with its arguments swapped
        Scaled(base=ChiSquared(), factor=0.5)
        >>> print(recipes.divergence_of(lambda x: x**4 / 4).name)
        divergence of <lambda>

    References:
        Tang and Munos, "On a few pitfalls in KL divergence gradient estimation for RL", 2025,
        arXiv 2506.09477, for the estimators; the rule follows from ``∇E_π[g]`` at fixed samples,
        ``E_π[g′(ℓ) ∇log π]``, against ``∇D_f = E_π[f′(π/π_ref) ∇log π]``.
    """
    reading = read_term(term, place=place)
    if reading.divergence is None:
        raise ValueError(f"term {called(term)} has no divergence: {reading}")
    return reading.divergence


@functools.lru_cache(maxsize=256)
def in_jax(term: Term) -> Callable[[Array], Array]:
    """The term as a function that JAX can trace and differentiate."""
    return source_of(term).value


def log_ratios() -> np.ndarray:
    """The log ratios at which slopes that are only known at points are asked for."""
    return FINE[np.abs(FINE) <= 20]


def from_slopes(
    heights: np.ndarray, name: str, *, single: bool = False
) -> tuple[TermReading, Callable[[Array], Array]]:
    """The reading of a term whose derivative is known at :func:`log_ratios`, and the term.

    ``single`` says that it is known in single precision only.
    """
    slope = spline(log_ratios(), heights)
    term = spline(log_ratios(), primitive(log_ratios(), heights))
    term.__name__ = name
    source = Source(term, slope, exact=False, single=single, far=(16.0, 18.0, 19.9))
    with double_precision(), jax.ensure_compile_time_eval():
        return _read_slope(slope, source, name), term


@functools.lru_cache(maxsize=256)
def _read(term: Term, place: str, name: str) -> TermReading:
    source = source_of(term)
    slope = {"loss": source.slope, "reward": source.value}.get(place, source.both)
    with double_precision(), jax.ensure_compile_time_eval():
        return _read_slope(slope, source, name)


def _read_slope(slope: Callable[[Array], Array], source: Source, name: str) -> TermReading:
    """In double precision."""

    def at(x: float) -> float:
        return float(slope(jnp.asarray(x)))

    height, rate = (np.asarray(x(jnp.asarray(_GRID))) for x in (slope, derivative(slope)))
    if not np.ptp(height) > 1e-9 * max(1.0, float(np.abs(height).max())):
        return TermReading(None, "its pull is the same at every log ratio, and holds nothing")
    # A pull that jumps at equality has no one value there.
    jumps = _jumps(np.diff(height), rate, source.exact)
    jumps_at_zero = bool(np.isin([_CENTRE - 1, _CENTRE], jumps).any())
    zero = float(height[[_CENTRE - 1, _CENTRE + 1]].mean() if jumps_at_zero else height[_CENTRE])
    height = height - zero
    if jumps_at_zero:
        height[_CENTRE] = 0.0
    known = _known(height, np.ones_like(height, bool), jumps_at_zero, source.single)
    if known is not None:
        return TermReading(known, known.title, known)
    step, size = np.diff(height), np.abs(height)
    falls = step < -1e-9 * np.maximum(np.maximum(size[:-1], size[1:]), 1e-3)
    held = _held(at, lambda x: float(derivative(slope)(jnp.asarray(x))), falls)
    # What is interpolated is flat but for rounding; an exact derivative of next to 0 is not 0.
    still = np.abs(rate) <= (0.0 if source.exact else 1e-7 * (size + 1e-3))
    # At the very edge of a clamp a derivative is whatever its library says.
    low, high = held[0] + _STEP / 4 < _GRID, held[1] - _STEP / 4 > _GRID

    def rates(x: np.ndarray) -> np.ndarray:
        return np.asarray(derivative(slope)(jnp.asarray(x)))

    pieces = {
        "flat": tuple(
            _to_the_ends(rates, x, 0.0 if source.exact else 1e-7)
            for x in _pieces(still & low & high, held)
        ),
        "falling": _pieces(np.append(falls, False) | ~low | ~high, held),
    }
    if min(-held[0], held[1]) < 2 * _STEP:
        return TermReading(None, "its pull falls at equality", None, held, **pieces)
    inside = low & high
    known = _known(height, inside, jumps_at_zero, source.single)
    if any(inside[i] and inside[i + 1] for i in jumps):
        return TermReading(None, "its pull jumps", None, held, **pieces)
    limits = [x - zero for x in (_limit(at, sign, source.far) for sign in (-1.0, 1.0))]
    if held != _EVERYWHERE:
        slope, limits = _continued(slope, held, limits)
    said = f"{known.title} within {_range(held)}" if known is not None else f"divergence of {name}"
    kinks = tuple(x for x in _kinks(rate, rates) if held[0] < x < held[1])
    divergence = TermDivergence(slope, *limits, kinks=kinks, name=said, flats=pieces["flat"])
    return TermReading(divergence, said, known, held, **pieces)


def _held(
    at: Callable[[float], float], rate: Callable[[float], float], falls: np.ndarray
) -> tuple[float, float]:
    """The interval around 0 in which a slope does not fall."""

    def edge(inner: int, outer: int, sign: float) -> float:
        low, high = float(_GRID[inner]), float(_GRID[outer])
        best = at(low)
        for _ in range(40):
            middle = (low + high) / 2
            value = at(middle)
            if sign * (value - best) >= 0 and rate(middle) >= 0:
                low, best = middle, value
            else:
                high = middle
        return round(low, 9) + 0.0

    above, below = np.flatnonzero(falls[_CENTRE:]), np.flatnonzero(falls[:_CENTRE])
    high = low = math.inf
    if above.size:
        first = _CENTRE + int(above[0])
        high = edge(max(first - 1, _CENTRE), first + 1, 1.0)
    if below.size:
        last = int(below[-1])
        low = -edge(min(last + 2, _CENTRE), last, -1.0)
    return -low, high


def _continued(
    slope: Callable[[Array], Array], held: tuple[float, float], limits: list[float]
) -> tuple[Callable[[Array], Array], list[float]]:
    """A slope that goes on straight where the term's own falls, and its limits.

    A target that lies there is none of the term's; a straight line still says that it does.
    """
    inner = [x * (1 - 1e-6) if math.isfinite(x) else x for x in held]
    ends = [x if math.isfinite(x) else math.copysign(_REACH, x) for x in inner]
    rates = [max(float(derivative(slope)(jnp.asarray(x))), 1e-3) for x in ends]

    def continued(x: Array) -> Array:
        near = jnp.where(x < inner[0], inner[0], jnp.where(x > inner[1], inner[1], x))
        return slope(near) + jnp.where(x < near, rates[0], rates[1]) * (x - near)

    reached = [
        limit if math.isinf(x) else math.copysign(math.inf, x)
        for x, limit in zip(held, limits, strict=True)
    ]
    return continued, reached


def _known(height: np.ndarray, inside: np.ndarray, jumps: bool, single: bool) -> Divergence | None:
    """The family and factor of a slope, measured from that at equality, where it is held."""

    def equal(other: np.ndarray) -> bool:
        # Rounding in single precision is that of numbers of the size that slopes have at 1.
        least = abs(float(other[_CENTRE + 64])) if single else 1e-3
        off = np.abs(height - other) <= _CLOSE * (least + np.abs(other))
        return bool(off[inside].all())

    if jumps:
        level = float(height[_CENTRE + 1])
        same = equal(level * np.sign(_GRID))
        return _times(TotalVariation(), 2 * level, single) if same else None
    # By heights: of what is interpolated the second derivative is known to few digits.
    apart = 32
    up, down = float(height[_CENTRE + apart]), float(-height[_CENTRE - apart])
    if not (up > 0 and down > 0 and inside[_CENTRE - apart] and inside[_CENTRE + apart]):
        return None
    # A power's pull grows by the same factor everywhere.
    alpha = 1 + round(math.log(up / down) / (apart * _STEP), 5 if single else 6)
    for family in (*_FAMILIES, Alpha(alpha)):
        unit = _slope_of(family)
        scaled = (up + down) / float(unit[_CENTRE + apart] - unit[_CENTRE - apart])
        if abs(alpha) < 50 and equal(scaled * unit):
            return _times(family, scaled, single)
    return None


def _times(divergence: Divergence, factor: float, single: bool) -> Divergence:
    rounded = float(f"{factor:.{6 if single else 9}g}")
    return divergence if abs(rounded - 1) < _CLOSE else Scaled(divergence, rounded)


@functools.lru_cache(maxsize=64)
def _slope_of(divergence: Divergence) -> np.ndarray:
    """The slope of a divergence on the grid, less that at equality."""
    with double_precision(), jax.ensure_compile_time_eval():
        height = np.asarray(divergence._f_prime_at(jnp.asarray(_GRID)))
    return height - height[_CENTRE]


def _limit(at: Callable[[float], float], sign: float, far: tuple[float, ...]) -> float:
    """The slope at infinitely large or small ratios, infinite where it does not settle."""
    found = [at(sign * x) for x in (_REACH, *far)]
    known = [x for x in found if math.isfinite(x)]
    if len(known) < len(found) and not any(map(math.isnan, found)):
        return sign * math.inf
    if len(known) < 2 or abs(known[-1] - known[-2]) > 1e-9 * max(1.0, abs(known[-1])):
        return sign * math.inf
    return known[-1]


def _jumps(step: np.ndarray, rate: np.ndarray, exact: bool) -> np.ndarray:
    """The steps of a grid that rise by far more than the derivative on either side accounts for."""
    steep = np.maximum(np.abs(rate[:-1]), np.abs(rate[1:])) * _STEP
    least = np.full(step.size, 1e-3 * np.abs(step).max())
    if not exact:
        # Where a slope bends between points of its table, it takes a small part of a usual step.
        usual = [np.roll(np.abs(step), k) for k in (-3, -2, 2, 3)]
        least = np.maximum(least, 0.3 * np.max(usual, axis=0))
    return np.flatnonzero(step > 4 * steep + least)


def _kinks(rate: np.ndarray, rates: Callable[[np.ndarray], np.ndarray]) -> tuple[float, ...]:
    """Points next to which the derivative is another on either side."""
    change = np.abs(np.diff(rate))
    size = np.maximum(np.abs(rate[:-1]), np.abs(rate[1:]))
    usual = np.maximum(np.insert(change[:-1], 0, 0), np.append(change[1:], 0))
    at = np.flatnonzero((change > np.maximum(0.05 * size, 1e-9)) & (change > 5 * usual))
    return tuple(
        _last(
            lambda x, i=i: np.abs(rates(x) - rate[i]) < np.abs(rates(x) - rate[i + 1]),
            float(_GRID[i]),
            float(_GRID[i + 1]),
        )
        for i in at
    )


def _to_the_ends(
    rates: Callable[[np.ndarray], np.ndarray], piece: tuple[float, float], rounding: float
) -> tuple[float, float]:
    """A flat piece of the grid up to where it ends between points of it."""
    middle = float(np.clip(0.0, piece[0] + 2 * _STEP, piece[1] - 2 * _STEP))
    least = max(float(np.abs(rates(np.array([middle]))).max()), rounding)

    def end(edge: float, sign: float) -> float:
        inner, outer = edge - sign * _STEP, edge + 2 * sign * _STEP
        return _last(lambda x: np.abs(rates(x)) <= least, inner, outer)

    low, high = piece
    return (
        low if math.isinf(low) else end(low, -1.0),
        high if math.isinf(high) else end(high, 1.0),
    )


def _last(holds: Callable[[np.ndarray], np.ndarray], inner: float, outer: float) -> float:
    """The point up to which something holds on the way from ``inner`` to ``outer``."""
    for _ in range(6):
        points = np.linspace(inner, outer, 65)
        fails = np.flatnonzero(~holds(points))
        if not fails.size or fails[0] == 0:
            break
        inner, outer = float(points[fails[0] - 1]), float(points[fails[0]])
    return round(inner, 9) + 0.0


def _pieces(where: np.ndarray, held: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """Intervals of the grid, open where they reach its ends, ending where the pull is held."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], where.astype(int), [0]])))
    found = []
    for first, last in edges.reshape(-1, 2):
        low = -math.inf if first == 0 else float(_GRID[first])
        high = math.inf if last == where.size else float(_GRID[last - 1])
        for edge in held:
            low = edge if abs(low - edge) <= _STEP else low
            high = edge if abs(high - edge) <= _STEP else high
        if high - low >= 4 * _STEP:
            found.append((low, high))
    return tuple(found)


def _range(held: tuple[float, float]) -> str:
    low, high = held
    if low == -high:
        return f"|log ratio| = {high:.3g}"
    ends = [f"{x:.3g}" for x in held if math.isfinite(x)]
    return f"log ratio{'s' if len(ends) > 1 else ''} {' and '.join(ends)}"


def _where(pieces: tuple[tuple[float, float], ...]) -> str:
    def one(low: float, high: float) -> str:
        if math.isinf(low):
            return f"below {high:.3g}"
        return f"above {low:.3g}" if math.isinf(high) else f"from {low:.3g} to {high:.3g}"

    if _EVERYWHERE in pieces:
        return "everywhere"
    return "at log ratios " + " and ".join(one(*piece) for piece in pieces)
