"""Which divergence a trainer's own term has, whatever function of the log ratio it is."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kltarget._core.checks import traced
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

Term = Callable[[Any], Any]
"""A function of log ratios ``log π/π_ref``, elementwise."""

Place = Literal["loss", "reward", "weighted-loss"]

_REACH = 15.0
"""Log ratios up to this are looked at."""
_STEP = 1 / 64
_GRID = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
_CENTRE = _GRID.size // 2
_PER_UNIT = 256
_FINE = np.arange(-40, 40 + 0.5 / _PER_UNIT, 1 / _PER_UNIT)
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
    return _read(term, place)


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
        raise ValueError(f"term {_called(term)} has no divergence: {reading}")
    return reading.divergence


@functools.lru_cache(maxsize=256)
def in_jax(term: Term) -> Callable[[Array], Array]:
    """The term as a function that JAX can trace and differentiate."""
    return _source(term).value


def log_ratios() -> np.ndarray:
    """The log ratios at which slopes that are only known at points are asked for."""
    return _FINE[np.abs(_FINE) <= 20]


def from_slopes(heights: np.ndarray, name: str) -> tuple[TermReading, Callable[[Array], Array]]:
    """The reading of a term whose derivative is known at :func:`log_ratios`, and the term."""
    slope = _spline(log_ratios(), heights)
    term = _spline(log_ratios(), _primitive(log_ratios(), heights))
    term.__name__ = name
    source = _Source(term, slope, exact=False, far=(16.0, 18.0, 19.9))
    with double_precision(), jax.ensure_compile_time_eval():
        return _read_slope(slope, source, name), term


@functools.lru_cache(maxsize=256)
def _read(term: Term, place: Place) -> TermReading:
    source = _source(term)
    slope = {"loss": source.slope, "reward": source.value}.get(place, source.both)
    with double_precision(), jax.ensure_compile_time_eval():
        return _read_slope(slope, source, _called(term))


def _read_slope(slope: Callable[[Array], Array], source: _Source, name: str) -> TermReading:
    """In double precision."""

    def at(x: float) -> float:
        return float(slope(jnp.asarray(x)))

    height, rate = (np.asarray(x(jnp.asarray(_GRID))) for x in (slope, _derivative(slope)))
    if not np.ptp(height) > 1e-9 * max(1.0, float(np.abs(height).max())):
        return TermReading(None, "its pull is the same at every log ratio, and holds nothing")
    # A pull that jumps at equality has no one value there.
    jumps = _jumps(np.diff(height), rate)
    jumps_at_zero = bool(np.isin([_CENTRE - 1, _CENTRE], jumps).any())
    zero = float(height[[_CENTRE - 1, _CENTRE + 1]].mean() if jumps_at_zero else height[_CENTRE])
    height = height - zero
    if jumps_at_zero:
        height[_CENTRE] = 0.0
    step, size = np.diff(height), np.abs(height)
    falls = step < -1e-9 * np.maximum(np.maximum(size[:-1], size[1:]), 1e-3)
    held = _held(at, lambda x: float(_derivative(slope)(jnp.asarray(x))), falls)
    # What is interpolated is flat but for rounding; an exact derivative of next to 0 is not 0.
    still = np.abs(rate) <= (0.0 if source.exact else 1e-7 * (size + 1e-3))
    # At the very edge of a clamp a derivative is whatever its library says.
    low, high = held[0] + _STEP / 4 < _GRID, held[1] - _STEP / 4 > _GRID
    pieces = {
        "flat": _pieces(still & low & high, held),
        "falling": _pieces(np.append(falls, False) | ~low | ~high, held),
    }
    if min(-held[0], held[1]) < 2 * _STEP:
        return TermReading(None, "its pull falls at equality", None, held, **pieces)
    inside = low & high
    known = _known(height, inside, jumps_at_zero)
    if known is not None and held == _EVERYWHERE:
        return TermReading(known, known.title, known)
    if any(inside[i] and inside[i + 1] for i in jumps):
        return TermReading(None, "its pull jumps", None, held, **pieces)
    limits = [x - zero for x in (_limit(at, sign, source.far) for sign in (-1.0, 1.0))]
    if held != _EVERYWHERE:
        slope, limits = _continued(slope, held, limits)
    said = f"{known.title} within {_range(held)}" if known is not None else f"divergence of {name}"
    kinks = tuple(x for x in _kinks(rate) if held[0] < x < held[1])
    divergence = TermDivergence(slope, *limits, kinks=kinks, name=said)
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
    rates = [max(float(_derivative(slope)(jnp.asarray(x))), 1e-3) for x in ends]

    def continued(x: Array) -> Array:
        near = jnp.where(x < inner[0], inner[0], jnp.where(x > inner[1], inner[1], x))
        return slope(near) + jnp.where(x < near, rates[0], rates[1]) * (x - near)

    reached = [
        limit if math.isinf(x) else math.copysign(math.inf, x)
        for x, limit in zip(held, limits, strict=True)
    ]
    return continued, reached


def _known(height: np.ndarray, inside: np.ndarray, jumps: bool) -> Divergence | None:
    """The family and factor of a slope, measured from that at equality, where it is held."""

    def equal(other: np.ndarray) -> bool:
        off = np.abs(height - other) <= _CLOSE * (1e-3 + np.abs(other))
        return bool(off[inside].all())

    if jumps:
        level = float(height[_CENTRE + 1])
        return _times(TotalVariation(), 2 * level) if equal(level * np.sign(_GRID)) else None
    # By heights: of what is interpolated the second derivative is known to few digits.
    apart = 32
    up, down = float(height[_CENTRE + apart]), float(-height[_CENTRE - apart])
    if not (up > 0 and down > 0 and inside[_CENTRE - apart] and inside[_CENTRE + apart]):
        return None
    # A power's pull grows by the same factor everywhere.
    alpha = 1 + round(math.log(up / down) / (apart * _STEP), 6)
    for family in (*_FAMILIES, Alpha(alpha)):
        unit = _slope_of(family)
        scaled = (up + down) / float(unit[_CENTRE + apart] - unit[_CENTRE - apart])
        if abs(alpha) < 50 and equal(scaled * unit):
            return _times(family, scaled)
    return None


def _times(divergence: Divergence, factor: float) -> Divergence:
    rounded = float(f"{factor:.9g}")
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


def _jumps(step: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """The steps of a grid that rise by far more than the derivative on either side accounts for."""
    steep = np.maximum(np.abs(rate[:-1]), np.abs(rate[1:])) * _STEP
    return np.flatnonzero(step > 4 * steep + 1e-3 * np.abs(step).max())


def _kinks(rate: np.ndarray) -> tuple[float, ...]:
    """Points of the grid next to which the derivative is another on either side."""
    change = np.abs(np.diff(rate))
    size = np.maximum(np.abs(rate[:-1]), np.abs(rate[1:]))
    usual = np.maximum(np.insert(change[:-1], 0, 0), np.append(change[1:], 0))
    at = np.flatnonzero((change > 0.05 * size) & (change > 5 * usual))
    return tuple(float(_GRID[i + (abs(_GRID[i + 1]) < abs(_GRID[i]))]) for i in at)


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


def _called(term: Term) -> str:
    return str(getattr(term, "__name__", type(term).__name__))


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
    """A term and its derivative as functions that JAX can trace."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    exact: bool = True
    far: tuple[float, ...] = (100.0, 200.0, 300.0)
    """Log ratios at which limits are read off."""

    def both(self, x: Array) -> Array:
        return self.value(x) + self.slope(x)


def _derivative(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


@functools.lru_cache(maxsize=256)
def _source(term: Term) -> _Source:
    """A term in whichever library it was written.

    Raises what :func:`divergence_of` promises where it is no term at all.
    """
    if traced(_GRID):
        raise TypeError("a term is read outside of jit")
    name = _called(term)
    for library in (_of_jax, _of_torch, _of_numpy):
        values = library(term, _GRID)
        if values is not None:
            break
    else:
        raise TypeError(
            f"term {name} must be a function of one array of log ratios, written with jax.numpy, "
            f"NumPy or torch: {_why_not(term)}"
        )
    if values.shape != _GRID.shape:
        raise ValueError(
            f"term {name} must return an array of the shape it is given, got {values.shape} for "
            f"{_GRID.shape}: no sum or mean"
        )
    if not np.isfinite(values).all():
        at = float(_GRID[np.flatnonzero(~np.isfinite(values))[0]])
        raise ValueError(f"term {name} is not finite at the log ratio {at:g}")
    again = library(term, _GRID)
    if again is None or not np.array_equal(values, again):
        raise ValueError(
            f"term {name} gives other values when it is called again: it must be a function of "
            "its argument alone"
        )
    part = slice(300, 1200)
    alone = library(term, _GRID[part])
    if alone is None or not np.allclose(values[part], alone, rtol=1e-9, atol=1e-12):
        raise ValueError(
            f"term {name} must be elementwise: its values depend on the other log ratios"
        )
    if library is _of_jax:
        return _Source(term, _derivative(term))
    return _interpolated(functools.partial(library, term))


def _of_jax(term: Term, at: np.ndarray) -> np.ndarray | None:
    try:
        with double_precision(), jax.ensure_compile_time_eval():
            x = jnp.asarray(at)
            value, slope = jax.jvp(term, (x,), (jnp.ones_like(x),))
            return np.asarray(value) if isinstance(slope, jax.Array) else None
    except Exception:  # whatever a function of another library makes of a tracer
        return None


def _of_torch(term: Term, at: np.ndarray) -> np.ndarray | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy's functions warn of tensors, and take them
            value = term(torch.tensor(at))
        return value.detach().numpy() if isinstance(value, torch.Tensor) else None
    except Exception:
        return None


def _of_numpy(term: Term, at: np.ndarray) -> np.ndarray | None:
    try:
        with np.errstate(all="ignore"):
            return np.asarray(term(at), np.float64)
    except Exception:
        return None


def _why_not(term: Term) -> str:
    try:
        term(np.zeros(3))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "its result is no array"


def _interpolated(values: Callable[[np.ndarray], np.ndarray | None]) -> _Source:
    """A term that is known at points only."""
    known = values(_FINE)
    assert known is not None
    # Terms that overflow far out are straight from there on, and of no further interest.
    begin, end = np.flatnonzero(np.isfinite(known))[[0, -1]]
    value = _spline(_FINE[begin : end + 1], known[begin : end + 1])
    return _Source(value, _derivative(value), exact=False, far=(20.0, 30.0, 39.0))


def _spline(x: np.ndarray, y: np.ndarray) -> Callable[[Array], Array]:
    """Cubic pieces between the kinks of what is known at points, straight beyond the last ones."""
    from scipy.interpolate import CubicSpline

    first, last = float(x[0]), float(x[-1])
    pieces = np.concatenate(
        [
            CubicSpline(x[i : j + 1], y[i : j + 1]).c[::-1] if j > i + 1 else _line(y[i : j + 1])
            for i, j in itertools.pairwise(_kinks_of(y))
        ],
        axis=1,
    )

    def value(at: Array) -> Array:
        near = jnp.clip(at, first, last)
        # Nodes are multiples of a power of two: what is left of one is exact.
        node = jnp.minimum(jnp.floor(near * _PER_UNIT), last * _PER_UNIT - 1)
        inside, beyond = near - node / _PER_UNIT, at - near
        index = (node - first * _PER_UNIT).astype(jnp.int32)
        a, b, c, d = (jnp.asarray(row, at.dtype)[index] for row in pieces)
        slope = b + inside * (2 * c + inside * 3 * d)
        return a + inside * (b + inside * (c + inside * d)) + beyond * slope

    return value


def _primitive(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The integral of what is known at points, 0 at 0."""
    from scipy.interpolate import CubicSpline

    parts = np.zeros_like(y)
    for i, j in itertools.pairwise(_kinks_of(y)):
        if j > i + 1:
            parts[i : j + 1] = parts[i] + CubicSpline(x[i : j + 1], y[i : j + 1]).antiderivative()(
                x[i : j + 1]
            )
        else:
            parts[j] = parts[i] + (y[i] + y[j]) / 2 / _PER_UNIT
    return parts - parts[int(np.argmin(np.abs(x)))]


def _kinks_of(y: np.ndarray) -> np.ndarray:
    """Indices between which points lie on a smooth curve, the two ends among them."""
    bend = np.abs(np.diff(y, 2))
    usual = np.minimum(np.roll(bend, 3), np.roll(bend, -3))
    usual[:3], usual[-3:] = bend[:3], bend[-3:]
    sharp = np.flatnonzero(bend > 20 * usual + 1e-9 * np.abs(np.diff(y)).max()) + 1
    return np.unique(np.concatenate([[0], sharp, [y.size - 1]]))


def _line(ends: np.ndarray) -> np.ndarray:
    return np.array([[ends[0]], [(ends[1] - ends[0]) * _PER_UNIT], [0.0], [0.0]])
