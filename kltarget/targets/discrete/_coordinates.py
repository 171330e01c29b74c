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
from typing import Any, ClassVar

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

    prepares: ClassVar[bool] = False
    """Whether :meth:`quick` takes :meth:`prepared` gaps."""

    @property
    def costly(self) -> bool:
        """Whether what :meth:`quick` gives is worth an array."""
        return True

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

    def prepared(self, v: Array) -> Array:
        """What :meth:`quick` takes in place of ``v``, 0 where that is 0."""
        return v

    def quick(self, at: Array, x: Array) -> tuple[Array, ...]:
        """``u`` and, unless :meth:`slope` tells it from that, its derivative.

        By the shortest way, for steps at moderate coordinates, where speed counts and neither
        overflow nor cancellation threatens. ``x`` are :meth:`prepared` gaps.
        """
        log_u, rate = self.place(at, 0.0, x, 0.0)
        u = jnp.exp(log_u)
        return u, u * rate

    def slope(self, at: Array, x: Array, u: Array, slope: Array | None = None) -> Array:
        """The derivative of ``u``, from what :meth:`quick` gave."""
        assert slope is not None
        return slope

    def log_ratio(self, s: Array) -> Array:
        """``log u``, ``-inf`` where truncated, at a slope above f′(1)."""
        return self.divergence._log_inverse(s + self._f_prime_one(s))

    def kept(self, s: Array) -> Array:
        """What is worth an array of ``u`` at a slope above f′(1)."""
        return self.log_ratio(s)

    def moved(self, s: Array, kept: Array, step: Array) -> Array:
        """``log u`` a small step from the slope at which :meth:`kept` was taken."""
        return self.log_ratio(s + step)

    def ratio(self, kept: Array) -> Place:
        """``u`` and its derivative, where the coordinate is the slope."""
        u = jnp.exp(kept)
        rate = self.rate_at(jnp.where(kept > -jnp.inf, kept, 0.0))
        return u, u * rate

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

    @property
    def costly(self) -> bool:
        return isinstance(self.gamma, jax.Array) or self.gamma not in _SHORT

    def quick(self, at: Array, x: Array) -> tuple[Array, ...]:
        if self.costly:
            return super().quick(at, x)
        invert, _ = _SHORT[self.gamma]
        return (invert(jnp.exp(self.gamma * at) + (self.gamma / self.scale) * x),)

    def slope(self, at: Array, x: Array, u: Array, slope: Array | None = None) -> Array:
        if slope is not None:
            return slope
        _, power = _SHORT[self.gamma]
        return u * (jnp.exp(self.gamma * at) * power(u))

    def gap(self, at: Array, rate: Array) -> Array:
        return self.scale * jnp.exp(self.gamma * at) * (1 / rate - 1) / self.gamma


@dataclasses.dataclass(frozen=True)
class _PowerAbove(Coordinate):
    """``u^γ = 1 + γs/c`` for γ ≥ 0, truncated at 0."""

    gamma: Any
    scale: Any

    def place(self, at: Array, at_low: Array | float, v: Array, v_low: Array | float) -> Place:
        s = _add(at, at_low, v, v_low)
        log_u = self.log_ratio(s)
        inside = log_u > -jnp.inf
        return _present(log_u, 1 / (self.scale + self.gamma * jnp.where(inside, s, 0.0)), inside)

    def log_ratio(self, s: Array) -> Array:
        s = s / self.scale
        inside = (1 + self.gamma * s > 0) & (s > -jnp.inf)
        s = jnp.where(inside, s, 0.0)
        if isinstance(self.gamma, jax.Array) or self.gamma < 0.5:
            log_u = s * log1p_ratio(self.gamma * s)
        else:
            log_u = jnp.log(1 + self.gamma * s) / self.gamma
        return jnp.where(inside, log_u, -jnp.inf)

    @property
    def costly(self) -> bool:
        return isinstance(self.gamma, jax.Array) or self.gamma not in (0.5, 1)

    def quick(self, at: Array, x: Array) -> tuple[Array, ...]:
        if self.costly:
            return (jnp.exp(self.log_ratio(at + x)),)
        z = jnp.maximum(1 + self.gamma * (at + x) / self.scale, 0)
        return (z if self.gamma == 1 else z * z,)

    def slope(self, at: Array, x: Array, u: Array, slope: Array | None = None) -> Array:
        if not self.costly and self.gamma == 1:
            return jnp.where(u > 0, 1 / self.scale, 0.0)
        if not self.costly:
            return jnp.sqrt(u) / self.scale
        z = self.scale + self.gamma * (at + x)
        return jnp.where(u > 0, u / jnp.where(u > 0, z, 1.0), 0.0)

    def kept(self, s: Array) -> Array:
        return self.log_ratio(s) if self.costly else s

    def ratio(self, kept: Array) -> Place:
        if self.costly:
            return super().ratio(kept)
        (u,) = self.quick(kept, jnp.zeros_like(kept))
        return u, self.slope(kept, jnp.zeros_like(kept), u)

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
        log_rest = jnp.log(-jnp.expm1(-gap))  # −log(1 + u)
        # (1 + u)/(1 + u_max), without overflow at either end
        finite = jnp.where(jnp.isposinf(at), jnp.zeros_like(at), at)
        rate = jnp.exp(-log_rest - jnp.logaddexp(finite, jnp.zeros_like(finite)))
        return jnp.where(tied, at, -gap - log_rest), jnp.where(tied, 1.0, rate)

    prepares: ClassVar[bool] = True

    @property
    def costly(self) -> bool:
        return False

    def prepared(self, v: Array) -> Array:
        return -jnp.expm1(v)

    def quick(self, at: Array, x: Array) -> tuple[Array, ...]:
        # 1/u + 1 = (1/u_max + 1) e^−v, all terms positive
        return ((1 - x) / (jnp.exp(-at) + x),)

    def slope(self, at: Array, x: Array, u: Array, slope: Array | None = None) -> Array:
        return u * ((1 + u) * (1 / (1 + jnp.exp(at))))

    def gap(self, at: Array, rate: Array) -> Array:
        inverse = jnp.exp(-at)
        u = (rate * (inverse + 1) - inverse) / inverse
        return log1p(inverse) - log1p(1 / u)


@dataclasses.dataclass(frozen=True)
class _ChiSquaredKL(Coordinate):
    def place(self, at: Array, at_low: Array | float, v: Array, v_low: Array | float) -> Place:
        log_u = self.log_ratio(_add(at, at_low, v, v_low))
        return _present(log_u, self.rate_at(log_u), log_u > -jnp.inf)

    def quick(self, at: Array, x: Array) -> tuple[Array, ...]:
        # steps are polished later
        return (lambert(1 + (at + x), 0 if x.dtype == jnp.float32 else 1),)

    def slope(self, at: Array, x: Array, u: Array, slope: Array | None = None) -> Array:
        return u / (1 + u)

    def log_ratio(self, s: Array) -> Array:
        return log_lambert(1 + s)

    def kept(self, s: Array) -> Array:
        # log u where u counts for nothing
        return jnp.where(s < -40, 1 + s, lambert(1 + s, 1))

    def moved(self, s: Array, kept: Array, step: Array) -> Array:
        u = jnp.maximum(kept, 0)
        rate = 1 / (1 + u)
        log_u = jnp.where(kept > 0, jnp.log(jnp.where(kept > 0, kept, 1.0)), kept)
        return log_u + step * rate * (1 - 0.5 * step * u * rate * rate)

    def ratio(self, kept: Array) -> Place:
        u = jnp.maximum(kept, 0)
        return u, u / (1 + u)

    def rate_at(self, log_u: Array) -> Array:
        return 1 / (1 + jnp.exp(log_u))

    def gap(self, at: Array, rate: Array) -> Array:
        u = 1 / rate - 1
        return (u - 1) + jnp.log(u) - at


_SHORT = {
    -2: (lax.rsqrt, jnp.square),
    -1: (lambda z: 1 / z, lambda u: u),
    -0.5: (lambda z: 1 / (z * z), jnp.sqrt),
}
"""Powers γ whose roots z^{1/γ} take no logarithm, with u^{−γ}."""


SHORT_POWERS = (-2.0, -1.0, -0.5, 0.5, 1.0)
"""The γ at which a pass takes no logarithm."""


def coordinate(
    divergence: Divergence, *, below: bool | None = None, gamma: float | None = None
) -> Coordinate:
    """The coordinate of a divergence.

    Of a power divergence whose γ is an array, ``below`` says on which side of 0 it lies, and
    ``gamma`` its value if that is one of the short powers.
    """
    if isinstance(divergence, PowerDivergence):
        power: Any = divergence._gamma if gamma is None else gamma
        if below is None:
            below = bool(power < 0)
        kind = _PowerBelow if below else _PowerAbove
        return kind(divergence, not below, power, divergence._scale)
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
