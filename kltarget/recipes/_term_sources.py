"""A function of log ratios in whichever library it was written, as one that JAX can trace."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kltarget._core.numerics import double_precision

_GRID = np.arange(-15, 15 + 1 / 128, 1 / 64)
"""Log ratios at which a term is tried."""
_PER_UNIT = 256
FINE = np.arange(-40, 40 + 0.5 / _PER_UNIT, 1 / _PER_UNIT)
"""Log ratios at which a term is known that JAX cannot trace."""


def called(function: Callable[..., Any]) -> str:
    """What a function is called."""
    return str(getattr(function, "__name__", type(function).__name__))


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A term and its derivative as functions that JAX can trace."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    exact: bool = True
    single: bool = False
    """Whether it was computed in single precision."""
    far: tuple[float, ...] = (100.0, 200.0, 300.0)
    """Log ratios at which limits are read off."""

    def both(self, x: Array) -> Array:
        return self.value(x) + self.slope(x)


def derivative(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


@functools.lru_cache(maxsize=256)
def source_of(term: Callable[[Any], Any]) -> Source:
    """A term in whichever library it was written.

    Raises what :func:`kltarget.recipes.divergence_of` promises where it is no term at all.
    """
    name = called(term)
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
        return Source(term, derivative(term))
    return _interpolated(functools.partial(library, term))


def _of_jax(term: Callable[[Any], Any], at: np.ndarray) -> np.ndarray | None:
    try:
        with double_precision(), jax.ensure_compile_time_eval():
            x = jnp.asarray(at)
            value, slope = jax.jvp(term, (x,), (jnp.ones_like(x),))
            return np.asarray(value) if isinstance(slope, jax.Array) else None
    except Exception:  # whatever a function of another library makes of a tracer
        return None


def _of_torch(term: Callable[[Any], Any], at: np.ndarray) -> np.ndarray | None:
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


def _of_numpy(term: Callable[[Any], Any], at: np.ndarray) -> np.ndarray | None:
    try:
        with np.errstate(all="ignore"):
            return np.asarray(term(at), np.float64)
    except Exception:
        return None


def _why_not(term: Callable[[Any], Any]) -> str:
    try:
        term(np.zeros(3))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "its result is no array"


def _interpolated(values: Callable[[np.ndarray], np.ndarray | None]) -> Source:
    """A term that is known at points only."""
    known = values(FINE)
    assert known is not None
    # Terms that overflow far out are straight from there on, and of no further interest.
    begin, end = np.flatnonzero(np.isfinite(known))[[0, -1]]
    value = spline(FINE[begin : end + 1], known[begin : end + 1])
    return Source(value, derivative(value), exact=False, far=(20.0, 30.0, 39.0))


def spline(x: np.ndarray, y: np.ndarray) -> Callable[[Array], Array]:
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


def primitive(x: np.ndarray, y: np.ndarray) -> np.ndarray:
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
    usual = np.maximum(np.roll(bend, 3), np.roll(bend, -3))
    usual[:3], usual[-3:] = bend[:3], bend[-3:]
    sharp = np.flatnonzero(bend > 20 * usual + 1e-9 * np.abs(np.diff(y)).max()) + 1
    return np.unique(np.concatenate([[0], sharp, *_bends_of(y), [y.size - 1]]))


def _bends_of(y: np.ndarray) -> list[np.ndarray]:
    """Indices around points at which the second derivative jumps, as that of Huber's loss does."""
    change = np.abs(np.diff(y, 3))
    usual = np.maximum(np.roll(change, 3), np.roll(change, -3))
    usual[:3], usual[-3:] = change[:3], change[-3:]
    jumps = np.flatnonzero(change > 20 * usual + 1e-12 * (np.abs(y[1:-2]) + 1e-3))
    groups = np.split(jumps, np.flatnonzero(np.diff(jumps) > 1) + 1)
    # Of a jump at a point two differences show it, of one in between three.
    return [np.array([group[0] + 2, group[-1] + 1]) for group in groups if 1 < group.size < 5]


def _line(ends: np.ndarray) -> np.ndarray:
    return np.array([[ends[0]], [(ends[1] - ends[0]) * _PER_UNIT], [0.0], [0.0]])
