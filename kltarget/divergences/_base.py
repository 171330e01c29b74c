"""What every divergence is made from: the base class, its place among pytrees, the α family."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import require_normalized, worded
from kltarget._core.numerics import (
    as_float,
    expm1_ratio,
    log1p_ratio,
    widest,
    working_dtype,
)
from kltarget._core.pytrees import register


class Divergence(abc.ABC):
    """An f-divergence ``D_f(π‖π_ref) = Σ π_ref f(π/π_ref)``, in nats, policy first.

    Instances are pytrees: parameters such as the α of :class:`Alpha` are leaves, so they can be
    swept with ``vmap`` and differentiated.

    The public methods act elementwise on the density ratio ``u = π/π_ref ≥ 0`` or, for the inverse,
    on the scaled reward ``s``.
    """

    name: ClassVar[str]
    _slug: ClassVar[str | None] = None
    _linear: ClassVar[float] = 0.0
    """``f′(1)``; the term ``_linear·(u − 1)`` of a generator counts for nothing as a whole."""
    _flats: ClassVar[tuple[tuple[float, float], ...]] = ()
    """Intervals of log ratios in which ``f′`` is the same, so that policies may tie."""

    @property
    def title(self) -> str:
        """Its name in figures, with the parameters that tell members of a family apart.

        Example:
            >>> import kltarget as kt
            >>> kt.ReverseKL().title, kt.Alpha(0.5).title
            ('reverse KL', 'α-divergence (0.5)')
        """
        numbers = [np.asarray(leaf) for leaf in jax.tree.leaves(self)]
        shown = ", ".join(f"{x:.4g}" for x in numbers if x.ndim == 0)
        return f"{self.name} ({shown})" if shown else self.name

    @property
    def slug(self) -> str:
        """What the command line and labelled data call it; where they take names, its inverse.

        Of a generator of your own it is the name.

        Raises:
            ValueError: If the parameter is an array, for which there is no one name.

        Example:
            >>> import kltarget as kt
            >>> kt.ReverseKL().slug, kt.Alpha(0.5).slug
            ('reverse-kl', 'alpha:0.5')
        """
        parameters = jax.tree.leaves(self)
        if any(np.ndim(x) for x in parameters) or len(parameters) > 1:
            raise ValueError(f"divergence has several parameters, {self}: give one for each")
        return ":".join([self._slug or self.name, *map(_shortest, map(float, parameters))])

    @abc.abstractmethod
    def f(self, u: ArrayLike) -> Array:
        """The generator at density ratio ``u``; ``inf`` where it is infinite."""

    @abc.abstractmethod
    def f_prime(self, u: ArrayLike) -> Array:
        """The generator's first derivative; ``-inf`` at 0 where it is infinite."""

    @abc.abstractmethod
    def f_second(self, u: ArrayLike) -> Array:
        """The generator's second derivative."""

    @abc.abstractmethod
    def f_prime_inverse(self, s: ArrayLike) -> Array:
        """The ratio ``u`` with ``f′(u) = s``: 0 below ``f′(0)``, ``inf`` from ``f′(∞)`` on."""

    @property
    @abc.abstractmethod
    def slope_at_infinity(self) -> Array:
        """``f′(∞) = lim f(u)/u``, the cost of a unit of probability where the reference is 0."""

    def __call__(self, log_policy: ArrayLike, log_ref: ArrayLike) -> Float[Array, "*batch"]:
        """The divergence of a policy from a reference, in nats.

        ``D_f(π‖π_ref) = Σ_y π_ref(y) f(π(y)/π_ref(y))``, over the last axis. Exact at zeros on
        either side: ``π_ref·f(0)`` where only the policy is 0, ``π·f′(∞)`` where only the reference
        is, 0 where both are, and ``inf`` where one of these is infinite.

        Args:
            log_policy: log-probabilities log π, shape ``[*batch, A]``.
            log_ref: log-probabilities log π_ref, shape ``[*batch, A]``; the two broadcast.

        Returns:
            The divergence, shape ``[*batch]``. Differentiable in both arguments where it is finite.

        Raises:
            TypeError: complex numbers.
            ValueError: shapes that do not fit; outside a trace, rows that are not normalised.

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
            >>> print(f"{kt.ReverseKL()(p, q):.4f} {kt.ForwardKL()(p, q):.4f}")
            0.5108 0.3681
        """
        log_p, log_q = _pair(log_policy, log_ref)
        require_normalized(log_policy=as_float(log_policy), log_ref=as_float(log_ref))
        dtype = widest(as_float(log_policy).dtype, as_float(log_ref).dtype)
        return self._over_outcomes()._total(log_p, log_q).astype(dtype)

    def _over_outcomes(self) -> Divergence:
        """The same divergence with its batched parameters aligned to arrays ``[*batch, A]``."""
        return jax.tree.map(lambda x: x[..., None] if jnp.ndim(x) else x, self)

    def _total(self, log_p: Array, log_q: Array) -> Array:
        """The sum over outcomes, ``[*batch]``."""
        return _summed(self, log_p, log_q)

    def _integrand(self, log_p: Array, log_q: Array) -> Array:
        """``π_ref·f(u)`` of each outcome."""
        linear = self._linear * (jnp.exp(log_p) - jnp.exp(log_q)) if self._linear else 0.0
        return self._curved(log_p, log_q) + linear

    def _curved(self, log_p: Array, log_q: Array) -> Array:
        """``π_ref·f(u)`` of each outcome without the generator's linear term."""
        both, only_p, only_q = _supports(log_p, log_q)
        zero = jnp.zeros_like(log_p)
        inside = self._scaled(jnp.where(both, log_p, zero), jnp.where(both, log_q, zero))
        f_zero = self.f(jnp.zeros((), log_p.dtype)) + self._linear
        slope = jnp.asarray(self.slope_at_infinity, log_p.dtype) - self._linear
        at_zero = _priced(jnp.where(only_q, log_q, zero), f_zero)
        off = _priced(jnp.where(only_p, log_p, zero), slope)
        return jnp.where(both, inside, jnp.where(only_q, at_zero, jnp.where(only_p, off, zero)))

    def _scaled(self, log_p: Array, log_q: Array) -> Array:
        """``π_ref·f(u)`` of finite logarithms less its linear term, accurate near ``u = 1``."""
        return jnp.exp(log_q) * self.f(jnp.exp(log_p - log_q))

    def _bregman(self, log_p: Array, log_p_star: Array, log_q: Array) -> Array:
        """``π_ref·[f(u) − f(u*) − f′(u*)(u − u*)]`` at each outcome, for finite ``log π_ref``."""
        u, u_star = jnp.exp(log_p - log_q), jnp.exp(log_p_star - log_q)
        f_prime = self.f_prime(u_star)
        step = jnp.where(u == u_star, jnp.zeros_like(u), f_prime * (u - u_star))
        apart = jnp.exp(log_q) * jnp.maximum(self.f(u) - self.f(u_star) - step, 0)  # rounding
        # A ratio that no float holds lies on the generator's last straight piece, or on none.
        lifted = _priced(log_p, jnp.asarray(self.slope_at_infinity, u.dtype) - f_prime)
        return jnp.where(jnp.isposinf(u) & jnp.isfinite(u_star), lifted, apart)

    def _f_prime_at(self, log_u: Array) -> Array:
        """``f′(u)`` from ``log u``, also where ``u`` overflows."""
        return self.f_prime(jnp.exp(log_u))

    def _slope(self, log_p: Array, log_q: Array) -> Array:
        """``f′(p/q)``, what more probability of an outcome costs, also where ``p/q`` overflows.

        ``f′(0)`` where only ``p`` is 0 and ``f′(∞)`` where ``q`` is.
        """
        log_p, log_q = jnp.broadcast_arrays(log_p, log_q)
        both, _, only_q = _supports(log_p, log_q)
        zero = jnp.zeros_like(log_p)
        inside = self._f_prime_at(jnp.where(both, log_p, zero) - jnp.where(both, log_q, zero))
        at_zero = slope_at_zero(self, inside.dtype)
        at_infinity = jnp.asarray(self.slope_at_infinity, inside.dtype)
        outside = jnp.where(only_q, at_zero, at_infinity)
        return jnp.where(both, inside, jnp.broadcast_to(outside, inside.shape))

    def _log_inverse(self, s: Array) -> Array:
        """``log u`` with ``f′(u) = s``, also where ``u`` overflows or underflows."""
        u = self.f_prime_inverse(s)
        positive = u > 0
        return jnp.where(positive, jnp.log(jnp.where(positive, u, jnp.ones_like(u))), -jnp.inf)

    def _log_elasticity(self, log_u: Array) -> Array:
        """``log (d log u/d s) = −log(u f″(u))``."""
        u = jnp.exp(log_u)
        return -jnp.log(u * self.f_second(u))


# What is jitted inside of larger programs is traced and differentiated once for each shape.
@jax.jit
def _summed(divergence: Divergence, log_p: Array, log_q: Array) -> Array:
    total = divergence._curved(log_p, log_q).sum(-1)
    if not divergence._linear:
        return total
    # Both sum to 1 but for rounding, which may be all there is of a small divergence.
    surplus = (jnp.exp(log_p) - jnp.exp(log_q)).sum(-1)
    rounding = jnp.abs(surplus) <= 64 * float(jnp.finfo(surplus.dtype).eps)
    surplus = surplus - lax.stop_gradient(jnp.where(rounding, surplus, 0.0))
    return total + divergence._linear * surplus


def _priced(log_mass: Array, price: Array) -> Array:
    """``exp(log_mass)·price``; an infinite price of a mass that underflows is still infinite."""
    finite = jnp.isfinite(price)
    mass = jnp.exp(log_mass)
    endless = jnp.where(jnp.isnan(mass), mass, price)  # a failed row stays one
    return jnp.where(finite, mass * jnp.where(finite, price, 0.0), endless)


def _shortest(x: float) -> str:
    short = f"{x:g}"
    return short if float(short) == x else repr(x)


def slope_at_zero(divergence: Divergence, dtype: Any) -> Array:
    """``f′(0)``; read off ``f′`` near 0 where a caller's generator is NaN at 0 itself."""
    at_zero = divergence.f_prime(jnp.zeros((), dtype))
    before, last = (divergence.f_prime(jnp.asarray(2.0**-k, dtype)) for k in (40, 80))
    settled = jnp.abs(last - before) <= 1e-4 * jnp.maximum(jnp.abs(last), 1e-3)
    return jnp.where(jnp.isnan(at_zero), jnp.where(settled, last, -jnp.inf), at_zero)


def _pair(log_policy: ArrayLike, log_ref: ArrayLike) -> tuple[Array, Array]:
    log_p, log_q = as_float(log_policy), as_float(log_ref)
    if log_p.ndim == 0 or log_q.ndim == 0:
        raise ValueError(
            "log_policy and log_ref need an axis of outcomes, got shapes "
            f"{log_p.shape} and {log_q.shape}"
        )
    if log_p.shape[-1] != log_q.shape[-1]:
        raise ValueError(
            f"log_policy has {log_p.shape[-1]} outcomes and log_ref has {log_q.shape[-1]} "
            f"(shapes {log_p.shape} and {log_q.shape}); both need the same last axis"
        )
    dtype = working_dtype(widest(log_p.dtype, log_q.dtype))
    with worded(f"log_policy {log_p.shape} and log_ref {log_q.shape} do not broadcast"):
        log_p, log_q = jnp.broadcast_arrays(log_p.astype(dtype), log_q.astype(dtype))
    return log_p, log_q


def _supports(log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
    in_p, in_q = ~jnp.isneginf(log_p), ~jnp.isneginf(log_q)
    return in_p & in_q, in_p & ~in_q, in_q & ~in_p


_Class = TypeVar("_Class", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def family(cls: _Class) -> _Class:
    """Makes a class of divergences a frozen dataclass and a pytree, whose leaves are its fields."""
    made = dataclasses.dataclass(frozen=True)(cls)
    register(made, [field.name for field in dataclasses.fields(made)])
    return made


class PowerDivergence(Divergence):
    """``f = c·f_α(u) + b(u − 1)`` with ``f_α = (u^α − αu + α − 1)/(α(α − 1))``.

    The α family and everything that is a multiple of one of its members. α may be a Python number,
    which picks the member's own formula, or an array, which must serve all α at once.
    """

    _alpha: ClassVar[Any]
    _scale: ClassVar[Any] = 1.0

    @property
    def _gamma(self) -> Any:
        return self._alpha - 1

    def f(self, u: ArrayLike) -> Array:
        u = as_float(u)
        positive = u > 0
        log_u = jnp.log(jnp.where(positive, u, jnp.ones_like(u)))
        alpha = jnp.asarray(self._alpha, u.dtype)
        above = alpha > 0
        at_zero = jnp.where(above, 1 / jnp.where(above, alpha, jnp.ones_like(alpha)), jnp.inf)
        inside = jnp.where(positive, alpha_generator(alpha, log_u, jnp.zeros_like(u)), at_zero)
        return jnp.asarray(self._scale, u.dtype) * inside + self._linear * (u - 1)

    def f_prime(self, u: ArrayLike) -> Array:
        u = as_float(u)
        positive = u > 0
        log_u = jnp.log(jnp.where(positive, u, jnp.ones_like(u)))
        gamma = jnp.asarray(self._gamma, u.dtype)
        above = gamma > 0
        at_zero = jnp.where(above, -1 / jnp.where(above, gamma, jnp.ones_like(gamma)), -jnp.inf)
        at_zero = jnp.asarray(self._scale, u.dtype) * at_zero + self._linear
        return jnp.where(positive, self._f_prime_at(log_u), at_zero)

    def _f_prime_at(self, log_u: Array) -> Array:
        gamma = jnp.asarray(self._gamma, log_u.dtype)
        x = gamma * log_u
        large = jnp.abs(x) > 1
        ratio = log_u * expm1_ratio(jnp.where(large, jnp.zeros_like(x), x))
        power = jnp.expm1(x) / jnp.where(large, gamma, jnp.ones_like(gamma))
        return jnp.asarray(self._scale, x.dtype) * jnp.where(large, power, ratio) + self._linear

    def f_second(self, u: ArrayLike) -> Array:
        u = as_float(u)
        return jnp.asarray(self._scale, u.dtype) * u ** jnp.asarray(self._gamma - 1, u.dtype)

    def f_prime_inverse(self, s: ArrayLike) -> Array:
        return jnp.exp(self._log_inverse(as_float(s)))

    def _log_inverse(self, s: Array) -> Array:
        gamma = jnp.asarray(self._gamma, s.dtype)
        s = (s - self._linear) / jnp.asarray(self._scale, s.dtype)
        inside = 1 + gamma * s > 0
        safe = jnp.where(inside, s, jnp.zeros_like(s))
        outside = jnp.where(gamma > 0, jnp.full_like(gamma, -jnp.inf), jnp.inf)
        return jnp.where(inside, safe * log1p_ratio(gamma * safe), outside)

    @property
    def slope_at_infinity(self) -> Array:
        gamma = as_float(self._gamma)
        below = gamma < 0
        slope = -1 / jnp.where(below, gamma, -jnp.ones_like(gamma))
        slope = jnp.asarray(self._scale, gamma.dtype) * slope + self._linear
        return jnp.where(below, slope, jnp.full_like(slope, jnp.inf))

    def _scaled(self, log_p: Array, log_q: Array) -> Array:
        alpha = jnp.asarray(self._alpha, log_p.dtype)
        return jnp.asarray(self._scale, log_p.dtype) * alpha_generator(alpha, log_p, log_q)

    def _bregman(self, log_p: Array, log_p_star: Array, log_q: Array) -> Array:
        # The family is homogeneous: B(u, u*) = u*^α f_α(u/u*), non-negative term by term. In the
        # masses that this makes of π* and π, large logarithms cancel first.
        alpha = jnp.asarray(self._alpha, log_p.dtype)
        scale = jnp.asarray(self._scale, log_p.dtype)
        inside = (log_p > -jnp.inf) & (log_p_star > -jnp.inf)
        p, star = jnp.where(inside, log_p, 0.0), jnp.where(inside, log_p_star, 0.0)
        shift = (1 - alpha) * (jnp.where(inside, log_q, 0.0) - star)
        apart = alpha_generator(alpha, p + shift, star + shift, p - star)
        # At a zero on either side: π_ref u*^α/α and π_ref u^α/(α(α − 1)).
        left, begun = jnp.isneginf(log_p), jnp.isneginf(log_p_star)
        power = jnp.where(left, log_p_star, log_p)
        power = jnp.where(left & begun, 0.0, power)
        weight = jnp.exp((1 - alpha) * log_q + alpha * jnp.where(inside, 0.0, power))
        price = jnp.where(left, 1.0, 1 / jnp.where(alpha > 1, alpha - 1, 1.0))
        price = price / jnp.where(alpha > 0, alpha, 1.0)
        endless = jnp.where(left, alpha <= 0, alpha <= 1)
        end = jnp.where(left & begun, 0.0, jnp.where(endless, jnp.inf, weight * price))
        return scale * jnp.where(inside, apart, end)

    def _log_elasticity(self, log_u: Array) -> Array:
        gamma = jnp.asarray(self._gamma, log_u.dtype)
        scale = jnp.asarray(self._scale, log_u.dtype)
        lost = (gamma == 0) & jnp.isinf(log_u)
        return -gamma * jnp.where(lost, 0.0, log_u) - jnp.log(scale)


@jax.jit
def alpha_generator(alpha: Array, log_p: Array, log_q: Array, y: Array | None = None) -> Array:
    """``q f_α(e^y)`` with ``y = log(p/q)``, without overflow where ``q`` is tiny and ``e^y`` huge.

    ``f_α`` is ``y²`` times a divided difference of ``(e^x − 1)/x`` between ``αy`` and ``y``. Two
    closed forms of it cover the line, one smooth through α = 1, the other through α = 0; both
    cancel at small ``y``, where the Taylor series Σ (1 + α + … + α^{k−2}) y^k/k! takes over.
    """
    y = log_p - log_q if y is None else y
    upper = alpha >= 0.5
    one = jnp.ones_like(alpha)
    limit = 0.3 / (1 + jnp.abs(alpha))
    small = jnp.abs(y) < limit
    big, log_p = jnp.where(small, 1.0, y), jnp.where(small, log_q, log_p)
    p_minus_q = jnp.exp(log_p) - jnp.exp(log_q)
    near = jnp.exp(log_q) * jnp.expm1(jnp.clip(big, -1, 1))
    p_minus_q = jnp.where(jnp.abs(big) < 1, near, p_minus_q)
    a_up, a_down = jnp.where(upper, alpha, one), jnp.where(upper, 0 * one, alpha)
    # p·φ((α−1)y)·y and q·φ(αy)·y, with the exponent inside φ moved where it cannot overflow
    near_one = (_weighted_ratio(log_p, (a_up - 1) * big) * big - p_minus_q) / a_up
    near_zero = (p_minus_q - _weighted_ratio(log_q, a_down * big) * big) / (1 - a_down)
    closed = jnp.where(upper, near_one, near_zero)
    x = jnp.where(small, y, jnp.zeros_like(y))
    polynomials = [one]
    for _ in range(11):
        polynomials.append(1 + alpha * polynomials[-1])
    series = jnp.zeros_like(x)
    for k in range(13, 1, -1):
        series = polynomials[k - 2] / float(math.factorial(k)) + x * series
    return jnp.where(small, jnp.exp(log_q) * x * x * series, closed)


@jax.jit
def _weighted_ratio(log_weight: Array, x: Array) -> Array:
    """``exp(log_weight)·(e^x − 1)/x``, the exponentials joined where ``x`` is large."""
    large = x > 1
    y = jnp.where(large, x, jnp.ones_like(x))
    joined = (jnp.exp(log_weight + y) - jnp.exp(log_weight)) / y
    return jnp.where(
        large, joined, jnp.exp(log_weight) * expm1_ratio(jnp.where(large, jnp.zeros_like(x), x))
    )
