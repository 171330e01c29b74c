"""Where outcomes stand relative to the best one: the scalar that ``solve`` searches.

The multiplier is found through the density ratio ``u_max`` of the best supported outcome, in the
coordinate in which the other outcomes keep their digits:

* where ``f′(∞)`` is finite, ``log u_max``: there ``u`` may be e^800 at a slope that differs from
  ``f′(∞)`` by e^−800;
* where it is infinite, the slope ``s = f′(u_max) − f′(1)``, held as a sum of two floats, since the
  others' slopes ``s + v`` cancel.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import lambert, log1p, log1p_ratio, log_lambert, two_sum
from kltarget.divergences import ChiSquaredKL, Divergence, JensenShannon
from kltarget.divergences._families import PowerDivergence

Place = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Coordinate:
    """A divergence seen from its best outcome; here for any generator, through its inverse.

    ``v ≤ 0`` is an outcome's scaled reward less the best one's, ``(r − r_max)/β``, and ``v_low``
    what it lost to rounding.
    """

    divergence: Divergence
    by_slope: bool
    """Whether the coordinate is the slope; otherwise it is ``log u_max``."""

    @property
    def has_gaps(self) -> bool:
        """Whether ``gap`` knows."""
        return type(self) is not Coordinate

    def of(self, log_u_max: Array) -> Array:
        """The coordinate at which the best outcome has a given log density ratio."""
        if not self.by_slope:
            return log_u_max
        return self.divergence._f_prime_at(log_u_max) - self._f_prime_one(log_u_max)

    def place(self, at: Array, at_low: Array | float, v: Array, v_low: Array | float) -> Place:
        """``log u``, ``-inf`` where truncated, and its derivative in the coordinate.

        ``at_low`` is a second part of the coordinate; where that is ``log u_max`` the caller adds
        it to the first order.
        """
        divergence = self.divergence
        if self.by_slope:
            s = _add(at, at_low, v, v_low) + self._f_prime_one(at)
            log_u = divergence._log_inverse(s)
            return _present(log_u, jnp.exp(divergence._log_elasticity(log_u)), log_u > -jnp.inf)
        endless = jnp.isposinf(at)
        finite = jnp.where(endless, jnp.zeros_like(at), at)
        slope = jnp.asarray(divergence.slope_at_infinity, at.dtype)
        s = jnp.where(endless, slope, divergence._f_prime_at(finite)) + v
        log_u = divergence._log_inverse(s)
        log_u = jnp.where(v == 0, jnp.broadcast_to(at, log_u.shape), log_u)
        rho = jnp.exp(divergence._log_elasticity(log_u) - divergence._log_elasticity(finite))
        return _present(log_u, rho, log_u > -jnp.inf)

    def quick(self, at: Array, v: Array) -> tuple[Array, ...]:
        """``u`` and, unless :meth:`rate` tells it from that, the derivative of ``log u``.

        By the shortest way, for steps at moderate coordinates, where speed counts and neither
        overflow nor cancellation threatens.
        """
        log_u, rate = self.place(at, 0.0, v, 0.0)
        return jnp.exp(log_u), rate

    def rate(self, at: Array, u: Array) -> Array:
        """The derivative of ``log u`` in a moderate coordinate."""
        raise NotImplementedError

    def rate_at(self, log_u: Array) -> Array:
        """The derivative of ``log u`` in a coordinate that is the slope."""
        return jnp.exp(self.divergence._log_elasticity(log_u))

    def gap(self, at: Array, rate: Array) -> Array:
        """The ``v`` at which ``place`` has derivative ``rate``; NaN if it cannot tell."""
        return jnp.full_like(rate, jnp.nan)

    def _f_prime_one(self, like: Array) -> Array:
        return self.divergence._f_prime_at(jnp.zeros((), like.dtype))


@dataclasses.dataclass(frozen=True)
class _PowerBelow(Coordinate):
    """``u^γ = u_max^γ + γv/c`` for γ < 0: positive terms."""

    gamma: Any
    scale: Any

    def place(self, at: Array, at_low: Array | float, v: Array, v_low: Array | float) -> Place:
        gamma, v = self.gamma, v / self.scale
        tied = v == 0
        t = jnp.exp(gamma * at)
        # A gap of 0 stays out of the logarithm: t underflows where the best is very unlikely. Where
        # it does not, z is right all the same: a compiler may round v anew at each of its uses.
        z = jnp.where(tied, jnp.where(t > 0, t, 1.0), t + gamma * v)
        log_u, rho = jnp.log(z) / gamma, t / z
        if isinstance(gamma, jax.Array):
            # Close to γ = 0 the logarithm of z is all rounding; the gap relative to t is not,
            # unless it outweighs t and takes back most of a large logarithm.
            near = (gamma > -0.05) & jnp.isfinite(at)
            near = near & ((jnp.abs(gamma * at) < 1) | (gamma * v < 0.5 * t))
            x = jnp.where(near, v / jnp.where(near, t, jnp.ones_like(t)), jnp.zeros_like(v))
            x = jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))
            log_u = jnp.where(near & (v > -jnp.inf), at + x * log1p_ratio(gamma * x), log_u)
            rho = jnp.where(near & (v > -jnp.inf), 1 / (1 + gamma * x), rho)
        one = jnp.ones_like(rho)
        return jnp.where(tied, at, log_u), jnp.where(tied, one, rho)

    def quick(self, at: Array, v: Array) -> tuple[Array, ...]:
        gamma = self.gamma
        powers = {-2: lax.rsqrt, -1: lambda z: 1 / z, -0.5: lambda z: 1 / (z * z)}
        if isinstance(gamma, jax.Array) or gamma not in powers:
            return super().quick(at, v)
        return (powers[gamma](jnp.exp(gamma * at) + (gamma / self.scale) * v),)

    def rate(self, at: Array, u: Array) -> Array:
        powers = {-2: jnp.square, -1: lambda u: u, -0.5: jnp.sqrt}
        return jnp.exp(self.gamma * at) * powers[self.gamma](u)

    def gap(self, at: Array, rate: Array) -> Array:
        return self.scale * jnp.exp(self.gamma * at) * (1 / rate - 1) / self.gamma


@dataclasses.dataclass(frozen=True)
class _PowerAbove(Coordinate):
    """``u^γ = 1 + γs/c`` for γ ≥ 0, truncated at 0."""

    gamma: Any
    scale: Any

    def place(self, at: Array, at_low: Array | float, v: Array, v_low: Array | float) -> Place:
        s = _add(at, at_low, v, v_low) / self.scale
        inside = (1 + self.gamma * s > 0) & (v > -jnp.inf)
        s = jnp.where(inside, s, 0.0)
        if isinstance(self.gamma, jax.Array) or self.gamma < 0.5:
            log_u = s * log1p_ratio(self.gamma * s)
        else:
            log_u = jnp.log(1 + self.gamma * s) / self.gamma
        return _present(log_u, 1 / (self.scale * (1 + self.gamma * s)), inside)

    def quick(self, at: Array, v: Array) -> tuple[Array, ...]:
        if isinstance(self.gamma, jax.Array) or self.gamma != 1:
            return super().quick(at, v)
        return (jnp.maximum(1 + (at + v) / self.scale, 0),)

    def rate(self, at: Array, u: Array) -> Array:
        rate = 1 / (self.scale * jnp.where(u > 0, u, jnp.ones_like(u)))
        return jnp.where(u > 0, rate, jnp.zeros_like(rate))

    def gap(self, at: Array, rate: Array) -> Array:
        flat = self.gamma == 0
        gamma = jnp.where(flat, jnp.ones_like(rate), self.gamma * jnp.ones_like(rate))
        v = (1 / rate - self.scale) / gamma - at
        return jnp.where(flat, jnp.full_like(v, jnp.nan), v)


@dataclasses.dataclass(frozen=True)
class _JensenShannon(Coordinate):
    def place(self, at: Array, at_low: Array | float, v: Array, v_low: Array | float) -> Place:
        tied = v == 0
        # A compiler may round v anew at each of its uses: the second `tied` need not be the first.
        gap = jnp.logaddexp(-at, jnp.zeros_like(at)) - v
        gap = jnp.where(tied & ~(gap > 0), 1.0, gap)
        log_u = jnp.where(tied, at, -gap - jnp.log(-jnp.expm1(-gap)))
        # (1 + u)/(1 + u_max), without overflow at either end
        finite = jnp.where(jnp.isposinf(at), jnp.zeros_like(at), at)
        grown = jnp.logaddexp(log_u, jnp.zeros_like(log_u))
        return log_u, jnp.exp(grown - jnp.logaddexp(finite, jnp.zeros_like(finite)))

    def quick(self, at: Array, v: Array) -> tuple[Array, ...]:
        return (1 / jnp.expm1(log1p(jnp.exp(-at)) - v),)

    def rate(self, at: Array, u: Array) -> Array:
        return (1 + u) * (1 / (1 + jnp.exp(at)))

    def gap(self, at: Array, rate: Array) -> Array:
        inverse = jnp.exp(-at)
        u = (rate * (inverse + 1) - inverse) / inverse
        return log1p(inverse) - log1p(1 / u)


@dataclasses.dataclass(frozen=True)
class _ChiSquaredKL(Coordinate):
    def place(self, at: Array, at_low: Array | float, v: Array, v_low: Array | float) -> Place:
        log_u = log_lambert(1 + _add(at, at_low, v, v_low))
        return _present(log_u, 1 / (1 + jnp.exp(log_u)), log_u > -jnp.inf)

    def quick(self, at: Array, v: Array) -> tuple[Array, ...]:
        # steps are polished later
        return (lambert(1 + (at + v), 0 if v.dtype == jnp.float32 else 1),)

    def rate(self, at: Array, u: Array) -> Array:
        return 1 / (1 + u)

    def rate_at(self, log_u: Array) -> Array:
        return 1 / (1 + jnp.exp(log_u))

    def gap(self, at: Array, rate: Array) -> Array:
        u = 1 / rate - 1
        return (u - 1) + jnp.log(u) - at


def coordinate(divergence: Divergence, *, below: bool | None = None) -> Coordinate:
    """The coordinate of a divergence; ``below`` says on which side of 0 an array γ lies."""
    if isinstance(divergence, PowerDivergence):
        gamma, scale = divergence._gamma, divergence._scale
        if below is None:
            below = bool(gamma < 0)
        kind = _PowerBelow if below else _PowerAbove
        return kind(divergence, not below, gamma, scale)
    if isinstance(divergence, JensenShannon):
        return _JensenShannon(divergence, by_slope=False)
    if isinstance(divergence, ChiSquaredKL):
        return _ChiSquaredKL(divergence, by_slope=True)
    with jax.ensure_compile_time_eval():
        endless = bool(jnp.isposinf(divergence.slope_at_infinity))
    return Coordinate(divergence, by_slope=endless)


def _add(at: Array, at_low: Array | float, v: Array, v_low: Array | float) -> Array:
    """``at + v``, which may cancel, with both their second parts."""
    s, low = two_sum(at, v)
    return s + (low + (v_low + at_low))


def _present(log_u: Array, rate: Array, present: Array) -> Place:
    return (jnp.where(present, log_u, -jnp.inf), jnp.where(present, rate, 0.0))
