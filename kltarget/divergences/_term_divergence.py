"""The f-divergence whose derivative is known as a function of the log ratio."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.numerics import as_float, double_precision
from kltarget.divergences._base import Divergence

_NODES, _WEIGHTS = (x / 2 for x in np.polynomial.legendre.leggauss(24))
_FARTHEST = 40.0
"""Where ``e^ℓ`` weighs an integral, what is further below its end counts for nothing."""
_STEEPEST = 1e6
"""How fast log ratios are taken to move where the derivative is flat, and they could be any."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class TermDivergence(Divergence):
    """The f-divergence with ``f′(u) = h(log u)``, as terms of a loss have them.

    ``D_f(π‖π_ref) = Σ π_ref f(π/π_ref)``, ``f(u) = ∫_0^{log u} (h(s) − h(0)) e^s ds``. The inverse
    comes from a bracketed root, the derivative of h from automatic differentiation.

    Args:
        slope: h, a function of the log ratio that does not fall, elementwise, in ``jax.numpy``.
        at_zero: its limit ``f′(0)``, for a log ratio of minus infinity.
        at_infinity: its limit ``f′(∞)``.
        kinks: log ratios at which it is not smooth, for the integral.
        name: how reports call it.
        flats: intervals of log ratios in which h is the same everywhere.

    Where h is flat and the probabilities sum to 1 only on that piece, several policies maximise an
    objective: :func:`kltarget.solve` then says ``NOT_UNIQUE``, and gives the outcomes on the piece
    shares in the reference's proportions.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.divergences import TermDivergence
        >>> quartic = TermDivergence(lambda x: x**3, -jnp.inf, jnp.inf, name="quartic")
        >>> print(f"{quartic.f_prime(2.0):.4f} {quartic.f(2.0):.4f}")
        0.3330 0.1011
    """

    slope: Callable[[Array], Array]
    at_zero: float
    at_infinity: float
    kinks: tuple[float, ...]
    name: str  # type: ignore[misc]
    flats: tuple[tuple[float, float], ...]

    def __init__(
        self,
        slope: Callable[[Array], Array],
        at_zero: float,
        at_infinity: float,
        *,
        kinks: tuple[float, ...] = (),
        name: str = "a term's divergence",
        flats: tuple[tuple[float, float], ...] = (),
    ) -> None:
        pieces = tuple((float(low), float(high)) for low, high in flats)
        bent = sorted({*kinks, *(x for piece in pieces for x in piece if math.isfinite(x))})
        given = (slope, float(at_zero), float(at_infinity), tuple(bent), name, pieces)
        for field, value in zip(dataclasses.fields(self), given, strict=True):
            object.__setattr__(self, field.name, value)

    @property
    def _flats(self) -> tuple[tuple[float, float], ...]:  # type: ignore[override]
        return self.flats

    @functools.cached_property
    def _f_at_zero(self) -> float:
        """What a lost outcome costs."""
        with double_precision(), jax.ensure_compile_time_eval():
            far = jnp.array([-200.0, -400.0], jnp.float64)
            near, last = map(float, self._scaled(far, jnp.zeros_like(far)))
        # What still grows there grows without bound, such as −log u.
        settled = abs(last - near) <= 1e-9 * max(abs(last), 1e-9)
        return last if settled else float("inf")

    def f(self, u: ArrayLike) -> Array:
        u = as_float(u)
        log_u = jnp.log(jnp.where(u > 0, u, 1.0))
        return jnp.where(u > 0, self._scaled(log_u, jnp.zeros_like(u)), self._f_at_zero)

    def f_prime(self, u: ArrayLike) -> Array:
        u = as_float(u)
        inside = (u > 0) & (u < jnp.inf)
        ends = jnp.where(u > 0, self.at_infinity, self.at_zero)
        return jnp.where(inside, self._f_prime_at(jnp.log(jnp.where(inside, u, 1.0))), ends)

    def f_second(self, u: ArrayLike) -> Array:
        u = as_float(u)
        return self._rate(jnp.log(u)) / u

    def f_prime_inverse(self, s: ArrayLike) -> Array:
        return jnp.exp(self._log_inverse(as_float(s)))

    @property
    def slope_at_infinity(self) -> Array:
        return jnp.asarray(self.at_infinity)

    def _f_prime_at(self, log_u: Array) -> Array:
        slope = self.slope(log_u) - self.slope(jnp.zeros_like(log_u))
        # Beyond what a term was written for its limits hold.
        far = jnp.where(log_u > 0, self.at_infinity, self.at_zero)
        return jnp.where(jnp.isnan(slope) & ~jnp.isnan(log_u), far, slope)

    def _rate(self, log_u: Array) -> Array:
        """``h′(log u)``."""
        return jax.jvp(self.slope, (log_u,), (jnp.ones_like(log_u),))[1]

    def _log_elasticity(self, log_u: Array) -> Array:
        rate = self._rate(jnp.where(jnp.isfinite(log_u), log_u, 0.0))
        return -jnp.log(jnp.where(rate > 0, rate, 1 / _STEEPEST))

    def _log_inverse(self, s: Array) -> Array:
        top = 0.9 * jnp.log(jnp.finfo(s.dtype).max)

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            above = self._f_prime_at(middle) > lax.stop_gradient(s)
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        ends = jnp.full_like(s, -top), jnp.full_like(s, top)
        low, high = lax.fori_loop(0, jnp.finfo(s.dtype).nmant + 10, halve, ends)
        log_u = lax.stop_gradient(0.5 * (low + high))
        # A Newton step of a root that is frozen carries the derivative.
        rate = self._rate(log_u)
        off = jnp.where(rate > 0, (self._f_prime_at(log_u) - s) / jnp.where(rate > 0, rate, 1.0), 0)
        log_u = jnp.where(jnp.abs(off) < 1e-2, log_u - off, log_u)
        log_u = jnp.where(s <= self.at_zero, -jnp.inf, log_u)
        return jnp.where(s < self.at_infinity, log_u, jnp.inf)

    def _scaled(self, log_p: Array, log_q: Array) -> Array:
        return _weighed(self, log_p, log_q)

    def _integral(self, log_u: Array, above: Array) -> Array:
        """``∫_0^{log u} h(s) e^s ds`` times ``e^{−above}``, between kinks by Gauss's rule."""
        up = [0.0, *sorted(x for x in self.kinks if x > 0), jnp.inf]
        down = [0.0, *sorted((x for x in self.kinks if x < 0), reverse=True), -jnp.inf]
        total = jnp.zeros_like(log_u)
        for low, high in itertools.pairwise(up):
            end = jnp.clip(log_u, low, high)
            middle, begin = (jnp.maximum(end - x, low) for x in (_FARTHEST / 5, _FARTHEST))
            total += self._panel(middle, end, above) + self._panel(begin, middle, above)
        for high, low in itertools.pairwise(down):
            begin = jnp.clip(log_u, low, high)
            near, far = (jnp.maximum(begin, high - x) for x in (_FARTHEST / 5, _FARTHEST))
            for part in ((near, jnp.full_like(log_u, high)), (far, near), (begin, far)):
                total -= self._panel(*part, above)
        return total

    def _panel(self, low: Array, high: Array, above: Array) -> Array:
        width = high - low

        def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
            x, weight = node
            s = low + width * (x + 0.5)
            height = jnp.where(width > 0, self._f_prime_at(s) * jnp.exp(s - above), 0.0)
            return total + weight * height, None

        nodes = (jnp.asarray(_NODES, low.dtype), jnp.asarray(_WEIGHTS, low.dtype))
        return width * lax.scan(add, jnp.zeros_like(low), nodes)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _weighed(divergence: TermDivergence, log_p: Array, log_q: Array) -> Array:
    """``π_ref f(π/π_ref)``, of finite logarithms."""
    log_u = log_p - log_q
    above = jnp.maximum(log_u, 0.0)
    return jnp.exp(log_q + above) * divergence._integral(log_u, above)


@_weighed.defjvp
def _weighed_jvp(
    divergence: TermDivergence, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    # ∂/∂log π = π f′ and ∂/∂log π_ref = π_ref f − π f′: no need to go through the integral.
    log_p, log_q = primals
    value = _weighed(divergence, log_p, log_q)
    paid = jnp.exp(log_p) * divergence._f_prime_at(log_p - log_q)
    return value, paid * tangents[0] + (value - paid) * tangents[1]
