"""The regularisers: f-divergences between a policy and its reference.

``D_f(π‖π_ref) = Σ π_ref f(π/π_ref)`` with ``f`` convex and ``f(1) = 0``, the policy first. What an
outcome without reference mass costs is the slope of ``f`` at infinity times its probability.

A coefficient β has a meaning only together with the ``f`` it multiplies: ``f`` and ``c·f`` give the
same target at β and β/c. Every class below therefore states its ``f`` and the factor by which other
libraries' conventions differ.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._numerics import (
    as_float,
    expm1_ratio,
    log1p_ratio,
    log_lambert,
    safe_exp_product,
    widest,
    working_dtype,
)

__all__ = [
    "Alpha",
    "ChiSquared",
    "ChiSquaredKL",
    "Divergence",
    "FDivergence",
    "ForwardKL",
    "JensenShannon",
    "NeymanChiSquared",
    "ReverseKL",
    "SquaredHellinger",
    "TotalVariation",
    "Tsallis",
    "kl",
]


class Divergence(abc.ABC):
    """An f-divergence ``D_f(π‖π_ref) = Σ π_ref f(π/π_ref)``, in nats, policy first.

    Instances are pytrees: parameters such as the α of :class:`Alpha` are leaves, so they can be
    swept with ``vmap`` and differentiated.

    The public methods act elementwise on the density ratio ``u = π/π_ref ≥ 0`` or, for the inverse,
    on the scaled reward ``s``.
    """

    name: ClassVar[str]

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
        """``f′(∞) = lim f(u)/u``: what a unit of probability costs where the reference has none."""

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

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
            >>> print(f"{kt.ReverseKL()(p, q):.4f} {kt.ForwardKL()(p, q):.4f}")
            0.5108 0.3681
        """
        log_p, log_q = _pair(log_policy, log_ref)
        dtype = widest(as_float(log_policy).dtype, as_float(log_ref).dtype)
        return jnp.sum(self._over_outcomes()._integrand(log_p, log_q), axis=-1).astype(dtype)

    def _over_outcomes(self) -> Divergence:
        """The same divergence with its batched parameters aligned to arrays ``[*batch, A]``."""
        return jax.tree.map(lambda x: x[..., None] if jnp.ndim(x) else x, self)

    def _integrand(self, log_p: Array, log_q: Array) -> Array:
        both, only_p, only_q = _supports(log_p, log_q)
        zero = jnp.zeros_like(log_p)
        log_u = jnp.where(both, log_p, zero) - jnp.where(both, log_q, zero)
        inside = self._scaled(log_u, jnp.where(both, log_q, zero))
        f_zero = self.f(jnp.zeros((), log_p.dtype))
        slope = jnp.asarray(self.slope_at_infinity, log_p.dtype)
        at_zero = jnp.exp(jnp.where(only_q, log_q, zero)) * f_zero
        off = jnp.exp(jnp.where(only_p, log_p, zero)) * slope
        return jnp.where(both, inside, jnp.where(only_q, at_zero, jnp.where(only_p, off, zero)))

    def _scaled(self, log_u: Array, log_q: Array) -> Array:
        """``π_ref·f(u)`` from finite ``log u`` and ``log π_ref``, accurate near ``u = 1``."""
        return jnp.exp(log_q) * self.f(jnp.exp(log_u))

    def _bregman(self, log_u: Array, log_u_star: Array, log_q: Array) -> Array:
        """``π_ref·[f(u) − f(u*) − f′(u*)(u − u*)]`` at each outcome."""
        u, u_star = jnp.exp(log_u), jnp.exp(log_u_star)
        f_prime = self.f_prime(u_star)
        step = jnp.where(u == u_star, jnp.zeros_like(u), f_prime * (u - u_star))
        return safe_exp_product(self.f(u) - self.f(u_star) - step, log_q)

    def _f_prime_at(self, log_u: Array) -> Array:
        """``f′(u)`` from ``log u``, also where ``u`` overflows."""
        return self.f_prime(jnp.exp(log_u))

    def _log_elasticity(self, log_u: Array) -> Array:
        """``log (d log u/d s) = −log(u f″(u))``."""
        u = jnp.exp(log_u)
        return -jnp.log(u * self.f_second(u))


def kl(log_p: ArrayLike, log_q: ArrayLike) -> Float[Array, "*batch"]:
    """The Kullback–Leibler divergence ``KL(p‖q) = E_p[log p − log q]``, in nats.

    ``kl(log_policy, log_ref)`` is the reverse KL of this library, ``kl(log_ref, log_policy)`` the
    forward KL.

    Args:
        log_p: normalised log-probabilities, shape ``[*batch, A]``; the expectation is over these.
        log_q: normalised log-probabilities, shape ``[*batch, A]``.

    Returns:
        The divergence, shape ``[*batch]``; ``inf`` where ``q`` is 0 and ``p`` is not. Summed as
        ``Σ (p log(p/q) − p + q)``, whose terms are non-negative, so it keeps its relative accuracy
        when the two distributions nearly agree.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> print(kt.kl(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.5, 0.5]))))
        0.0
    """
    return ReverseKL()(log_p, log_q)


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
    try:
        shape = jnp.broadcast_shapes(log_p.shape, log_q.shape)
    except ValueError:
        raise ValueError(
            f"log_policy {log_p.shape} and log_ref {log_q.shape} do not broadcast"
        ) from None
    return (
        jnp.broadcast_to(log_p.astype(dtype), shape),
        jnp.broadcast_to(log_q.astype(dtype), shape),
    )


def _supports(log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
    in_p, in_q = ~jnp.isneginf(log_p), ~jnp.isneginf(log_q)
    return in_p & in_q, in_p & ~in_q, in_q & ~in_p


_Class = TypeVar("_Class", bound=type)


def _register(cls: _Class) -> _Class:
    """Makes a frozen dataclass a pytree whose fields are leaves and whose structure is its class.

    ``register_dataclass`` leaves the class out when two structures are compared: all divergences
    without parameters would be the same one to a jit cache, and a function compiled for one could
    be run for another.
    """
    names = [field.name for field in dataclasses.fields(cls)]

    def flatten(divergence: Any) -> tuple[tuple[Any, ...], type]:
        return tuple(getattr(divergence, name) for name in names), cls

    def flatten_with_keys(divergence: Any) -> tuple[tuple[Any, ...], type]:
        children, structure = flatten(divergence)
        keys = (jax.tree_util.GetAttrKey(name) for name in names)
        return tuple(zip(keys, children, strict=True)), structure

    def unflatten(_: type, children: Iterable[Any]) -> Any:
        # Transformations carry other things than numbers through trees: no checks on the way back.
        divergence = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(divergence, name, child)
        return divergence

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


class PowerDivergence(Divergence):
    """``f = c·f_α(u) + b(u − 1)`` with ``f_α = (u^α − αu + α − 1)/(α(α − 1))``.

    The α family and everything that is a multiple of one of its members. α may be a Python number,
    which picks the member's own formula, or an array, which must serve all α at once.
    """

    _alpha: ClassVar[Any]
    _scale: ClassVar[Any] = 1.0
    _slope: ClassVar[float] = 0.0

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
        inside = jnp.where(positive, _alpha_generator(alpha, log_u), at_zero)
        return jnp.asarray(self._scale, u.dtype) * inside + self._slope * (u - 1)

    def f_prime(self, u: ArrayLike) -> Array:
        u = as_float(u)
        positive = u > 0
        log_u = jnp.log(jnp.where(positive, u, jnp.ones_like(u)))
        gamma = jnp.asarray(self._gamma, u.dtype)
        above = gamma > 0
        at_zero = jnp.where(above, -1 / jnp.where(above, gamma, jnp.ones_like(gamma)), -jnp.inf)
        at_zero = jnp.asarray(self._scale, u.dtype) * at_zero + self._slope
        return jnp.where(positive, self._f_prime_at(log_u), at_zero)

    def _f_prime_at(self, log_u: Array) -> Array:
        gamma = jnp.asarray(self._gamma, log_u.dtype)
        x = gamma * log_u
        large = jnp.abs(x) > 1
        ratio = log_u * expm1_ratio(jnp.where(large, jnp.zeros_like(x), x))
        power = jnp.expm1(x) / jnp.where(large, gamma, jnp.ones_like(gamma))
        return jnp.asarray(self._scale, x.dtype) * jnp.where(large, power, ratio) + self._slope

    def f_second(self, u: ArrayLike) -> Array:
        u = as_float(u)
        return jnp.asarray(self._scale, u.dtype) * u ** jnp.asarray(self._gamma - 1, u.dtype)

    def f_prime_inverse(self, s: ArrayLike) -> Array:
        s = as_float(s)
        gamma = jnp.asarray(self._gamma, s.dtype)
        s = (s - self._slope) / jnp.asarray(self._scale, s.dtype)
        inside = 1 + gamma * s > 0
        safe = jnp.where(inside, s, jnp.zeros_like(s))
        outside = jnp.where(gamma > 0, jnp.zeros_like(gamma), jnp.full_like(gamma, jnp.inf))
        return jnp.where(inside, jnp.exp(safe * log1p_ratio(gamma * safe)), outside)

    @property
    def slope_at_infinity(self) -> Array:
        gamma = as_float(self._gamma)
        below = gamma < 0
        slope = -1 / jnp.where(below, gamma, -jnp.ones_like(gamma))
        slope = jnp.asarray(self._scale, gamma.dtype) * slope + self._slope
        return jnp.where(below, slope, jnp.full_like(slope, jnp.inf))

    def _scaled(self, log_u: Array, log_q: Array) -> Array:
        alpha = jnp.asarray(self._alpha, log_u.dtype)
        scale = jnp.asarray(self._scale, log_u.dtype)
        linear = jnp.exp(log_q + log_u) - jnp.exp(log_q) if self._slope else jnp.zeros_like(log_u)
        return scale * _alpha_generator(alpha, log_u, log_q) + self._slope * linear

    def _bregman(self, log_u: Array, log_u_star: Array, log_q: Array) -> Array:
        # The family is homogeneous: B(u, u*) = u*^α f_α(u/u*), non-negative term by term.
        alpha = jnp.asarray(self._alpha, log_u.dtype)
        scale = jnp.asarray(self._scale, log_u.dtype)
        inside = (log_u > -jnp.inf) & (log_u_star > -jnp.inf) & (log_q > -jnp.inf)
        zero = jnp.zeros_like(log_u)
        y = jnp.where(inside, log_u, zero) - jnp.where(inside, log_u_star, zero)
        weight = jnp.where(inside, log_q + alpha * log_u_star, zero)
        return jnp.where(
            inside,
            scale * _alpha_generator(alpha, y, weight),
            super()._bregman(log_u, log_u_star, log_q),
        )

    def _log_elasticity(self, log_u: Array) -> Array:
        gamma = jnp.asarray(self._gamma, log_u.dtype)
        scale = jnp.asarray(self._scale, log_u.dtype)
        flat = gamma == 0
        power = -jnp.where(flat, jnp.ones_like(gamma), gamma) * log_u
        return jnp.where(flat, jnp.zeros_like(log_u), power) - jnp.log(scale)


def _is_array(x: object) -> bool:
    return not isinstance(x, (int, float))


def _alpha_generator(alpha: Array, y: Array, log_q: Array | None = None) -> Array:
    """``π_ref f_α(e^y)``, without overflow where ``π_ref`` is tiny and ``e^y`` huge.

    ``f_α`` is ``y²`` times a divided difference of ``(e^x − 1)/x`` between ``αy`` and ``y``. Two
    closed forms of it cover the line, one smooth through α = 1, the other through α = 0; both
    cancel at small ``y``, where the Taylor series Σ (1 + α + … + α^{k−2}) y^k/k! takes over.
    """
    q = jnp.zeros_like(y) if log_q is None else log_q
    upper = alpha >= 0.5
    one = jnp.ones_like(alpha)
    limit = 0.3 / (1 + jnp.abs(alpha))
    small = jnp.abs(y) < limit
    big = jnp.where(small, jnp.ones_like(y), y)
    p_minus_q = jnp.exp(q + big) - jnp.exp(q)
    p_minus_q = jnp.where(jnp.abs(big) < 1, jnp.exp(q) * jnp.expm1(jnp.clip(big, -1, 1)), p_minus_q)
    a_up, a_down = jnp.where(upper, alpha, one), jnp.where(upper, 0 * one, alpha)
    # e^{q+y}·φ((α−1)y)·y and e^q·φ(αy)·y, with the exponent inside φ moved where it cannot overflow
    near_one = (_weighted_ratio(q + big, (a_up - 1) * big) * big - p_minus_q) / a_up
    near_zero = (p_minus_q - _weighted_ratio(q, a_down * big) * big) / (1 - a_down)
    closed = jnp.where(upper, near_one, near_zero)
    x = jnp.where(small, y, jnp.zeros_like(y))
    polynomials = [one]
    for _ in range(11):
        polynomials.append(1 + alpha * polynomials[-1])
    series = jnp.zeros_like(x)
    for k in range(13, 1, -1):
        series = polynomials[k - 2] / float(math.factorial(k)) + x * series
    return jnp.where(small, jnp.exp(q) * x * x * series, closed)


def _weighted_ratio(log_weight: Array, x: Array) -> Array:
    """``exp(log_weight)·(e^x − 1)/x``, the exponentials joined where ``x`` is large."""
    large = x > 1
    y = jnp.where(large, x, jnp.ones_like(x))
    joined = (jnp.exp(log_weight + y) - jnp.exp(log_weight)) / y
    return jnp.where(
        large, joined, jnp.exp(log_weight) * expm1_ratio(jnp.where(large, jnp.zeros_like(x), x))
    )


@_register
@dataclasses.dataclass(frozen=True)
class ReverseKL(PowerDivergence):
    """Reverse KL, ``KL(π‖π_ref) = E_π log(π/π_ref)``: ``f(u) = u log u − u + 1``.

    The divergence of almost every KL-regularised trainer. Its target is
    ``π* = π_ref e^{r/β}/Z`` with multiplier and value ``β log Z``. ``f″(1) = 1``,
    ``f(0) = 1``, ``f′(0) = −∞``, ``f′(∞) = ∞``: outcomes without reference mass stay at 0.

    Written as ``u log u`` elsewhere: same target, multiplier lower by β.

    Example:
        >>> import kltarget as kt
        >>> print(f"{kt.ReverseKL().f(2.0):.4f}")
        0.3863

    References:
        Korbak, Perez, Buckley, "RL with KL penalties is better viewed as Bayesian inference",
        2022, arXiv 2205.11275.
    """

    name: ClassVar[str] = "reverse KL"
    _alpha: ClassVar[float] = 1


@_register
@dataclasses.dataclass(frozen=True)
class ForwardKL(PowerDivergence):
    """Forward KL, ``KL(π_ref‖π) = E_ref log(π_ref/π)``: ``f(u) = −log u + u − 1``.

    Its target is ``π* = β π_ref/(Λ − r)`` with ``Λ = multiplier + β``. ``f″(1) = 1``,
    ``f(0) = ∞``, ``f′(0) = −∞``, ``f′(∞) = 1``: at small β it puts mass on a best outcome that the
    reference lacks.

    Written as ``−log u`` elsewhere: same target, multiplier Λ, higher by β.

    Example:
        >>> import kltarget as kt
        >>> print(kt.ForwardKL().f_prime_inverse(0.5))
        2.0

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817. Grill et al., "Monte-Carlo Tree Search as Regularized Policy
        Optimization", 2020, arXiv 2007.12509.
    """

    name: ClassVar[str] = "forward KL"
    _alpha: ClassVar[float] = 0


@_register
@dataclasses.dataclass(frozen=True)
class ChiSquared(PowerDivergence):
    """Pearson's χ², ``Σ (π − π_ref)²/π_ref``: ``f(u) = (u − 1)²``.

    Its target is piecewise linear in the reward, ``π_ref (1 + (r − λ)/2β)₊``, with exact zeros;
    it collapses on the argmax set at a finite β. ``f″(1) = 2``, ``f(0) = 1``, ``f′(0) = −2``,
    ``f′(∞) = ∞``.

    Twice ``Alpha(2)``; libraries with a factor ½ reach the same target at 2β.

    Example:
        >>> import kltarget as kt
        >>> print(kt.ChiSquared().f_prime_inverse(-3.0))
        0.0
    """

    name: ClassVar[str] = "χ²"
    _alpha: ClassVar[float] = 2
    _scale: ClassVar[float] = 2.0


@_register
@dataclasses.dataclass(frozen=True)
class NeymanChiSquared(PowerDivergence):
    """Neyman's χ², ``Σ (π − π_ref)²/π``: ``f(u) = (1 − u)²/u``.

    ``f″(1) = 2``, ``f(0) = ∞``, ``f′(0) = −∞``, ``f′(∞) = 1``. Twice ``Alpha(-1)``; libraries with
    a factor ½ reach the same target at 2β.

    Example:
        >>> import kltarget as kt
        >>> print(kt.NeymanChiSquared().f(0.5))
        0.5
    """

    name: ClassVar[str] = "Neyman χ²"
    _alpha: ClassVar[float] = -1
    _scale: ClassVar[float] = 2.0


@_register
@dataclasses.dataclass(frozen=True)
class SquaredHellinger(PowerDivergence):
    """Squared Hellinger distance, ``Σ (√π − √π_ref)²``: ``f(u) = (√u − 1)²``.

    ``f″(1) = ½``, ``f(0) = 1``, ``f′(0) = −∞``, ``f′(∞) = 1``. Half of ``Alpha(0.5)``;
    libraries with an extra ½ reach the same target at 2β.

    Example:
        >>> import kltarget as kt
        >>> print(kt.SquaredHellinger().f(4.0))
        1.0
    """

    name: ClassVar[str] = "squared Hellinger"
    _alpha: ClassVar[float] = 0.5
    _scale: ClassVar[float] = 0.5


@_register
@dataclasses.dataclass(frozen=True)
class Alpha(PowerDivergence):
    """The α family, ``f(u) = (u^α − αu + α − 1)/(α(α − 1))`` with ``f″(1) = 1``.

    α → 1 is reverse KL and α → 0 forward KL, both reached smoothly in value and derivative; α = 2
    is half of Pearson's χ², α = −1 half of Neyman's, α = ½ twice the squared Hellinger distance.
    ``f(0) = 1/α`` for α > 0, else ∞; ``f′(0) = −1/(α − 1)`` for α > 1, else −∞;
    ``f′(∞) = 1/(1 − α)`` for α < 1, else ∞.

    Other parametrisations: f-DPO's ``a`` is 1 − α; Amari's ``a`` is 1 − 2α; Cressie–Read's power
    is α − 1; entmax's α is the same α with unit weights for the reference. Rényi's divergence of
    order α is a monotone function of this one: the same frontier at other β.

    Args:
        alpha: the order, a number or an array that broadcasts against the objective's batch axes.

    Differentiable in ``alpha`` too.

    Example:
        >>> import kltarget as kt
        >>> print(f"{kt.Alpha(0.5).f(2.5):.6f}")
        0.675445

    References:
        Wang, Jiang, Yang, Liu, Chen, "Beyond Reverse KL: Generalizing Direct Preference
        Optimization with Diverse Divergence Constraints", 2023, arXiv 2309.16240. Roulet, Liu,
        Vieillard, Sander, Blondel, "Loss Functions and Operators Generated by f-Divergences",
        2025, arXiv 2501.18537.
    """

    name: ClassVar[str] = "α-divergence"
    alpha: Any

    @property
    def _alpha(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _parameter(self.alpha)


@_register
@dataclasses.dataclass(frozen=True)
class Tsallis(PowerDivergence):
    """Tsallis KL, ``E_π ln_q(π/π_ref)`` with ``ln_q x = (x^{q−1} − 1)/(q − 1)``.

    ``f(u) = (u^q − u)/(q − 1)``, which is ``q·f_q(u) + (u − 1)`` in terms of the α family: the
    target of ``Alpha(q)`` at coefficient qβ, with the multiplier lower by β. q → 1 is reverse KL
    (as ``u log u``). With the other convention, ``ln_q x = (x^{1−q} − 1)/(1 − q)``, this is
    ``−E_π ln_q(π_ref/π)``, and ``E_π ln_q(π/π_ref)`` is this one at 2 − q.

    Args:
        q: the entropic index, above 0; a number or an array.

    Example:
        >>> import kltarget as kt
        >>> print(kt.Tsallis(2.0).f(3.0))
        6.0

    References:
        Zhu, Chen, Schlegel, White, "Generalized Munchausen Reinforcement Learning using Tsallis KL
        Divergence", 2023, arXiv 2301.11476.
    """

    name: ClassVar[str] = "Tsallis KL"
    q: Any
    _slope: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.q, (int, float)) and not self.q > 0:
            raise ValueError(f"q must be above 0, got {self.q}: below, f is not convex")

    @property
    def _alpha(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _parameter(self.q)

    @property
    def _scale(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _parameter(self.q)


def _parameter(x: Any) -> Any:
    return x if isinstance(x, (int, float, jax.Array)) else jnp.asarray(x)


@_register
@dataclasses.dataclass(frozen=True)
class JensenShannon(Divergence):
    """Jensen–Shannon, ``KL(π‖m) + KL(π_ref‖m)`` with ``m = (π + π_ref)/2``.

    ``f(u) = u log u − (u + 1) log((u + 1)/2)``, twice the JSD with weights ½: libraries with those
    weights reach the same target at 2β. ``f″(1) = ½``, ``f(0) = f′(∞) = log 2``, ``f′(0) = −∞``.

    Example:
        >>> import kltarget as kt
        >>> print(f"{kt.JensenShannon().slope_at_infinity:.4f}")
        0.6931
    """

    name: ClassVar[str] = "Jensen–Shannon"

    def f(self, u: ArrayLike) -> Array:
        u = as_float(u)
        positive = u > 0
        log_u = jnp.log(jnp.where(positive, u, jnp.ones_like(u)))
        return jnp.where(positive, self._scaled(log_u, jnp.zeros_like(u)), jnp.log(2.0))

    def f_prime(self, u: ArrayLike) -> Array:
        return self._f_prime_at(jnp.log(as_float(u)))

    def _f_prime_at(self, log_u: Array) -> Array:
        return jnp.log(2.0) - jnp.logaddexp(-log_u, jnp.zeros_like(log_u))

    def f_second(self, u: ArrayLike) -> Array:
        u = as_float(u)
        return 1 / (u * (1 + u))

    def f_prime_inverse(self, s: ArrayLike) -> Array:
        s = as_float(s)
        inside = s < jnp.log(2.0)
        gap = jnp.where(inside, jnp.log(2.0) - s, jnp.ones_like(s))
        return jnp.where(inside, 1 / jnp.expm1(gap), jnp.full_like(s, jnp.inf))

    @property
    def slope_at_infinity(self) -> Array:
        return jnp.log(2.0)

    def _scaled(self, log_u: Array, log_q: Array) -> Array:
        # KL of each side to the mixture, every term non-negative
        log_m = jnp.logaddexp(log_u, jnp.zeros_like(log_u)) - jnp.log(2.0)
        one = jnp.ones((), log_u.dtype)
        return _alpha_generator(one, log_u - log_m, log_q + log_m) + _alpha_generator(
            one, -log_m, log_q + log_m
        )

    def _log_elasticity(self, log_u: Array) -> Array:
        return jnp.logaddexp(log_u, jnp.zeros_like(log_u))


@_register
@dataclasses.dataclass(frozen=True)
class ChiSquaredKL(Divergence):
    """χ² plus reverse KL, the regulariser of χPO: ``f(u) = ½(u − 1)² + u log u``.

    Its target is ``π_ref W(e^{(r − λ)/β})`` with Lambert's W. ``f″(1) = 2``, ``f(0) = ½``,
    ``f′(0) = −∞``, ``f′(∞) = ∞``; ``f′(1) = 1``, so the multiplier is lower by β than that of a
    generator with ``f′(1) = 0``.

    Example:
        >>> import kltarget as kt
        >>> print(kt.ChiSquaredKL().f_prime(1.0))
        1.0

    References:
        Huang et al., "Correcting the Mythos of KL-Regularization: Direct Alignment without
        Overoptimization via Chi-Squared Preference Optimization", 2024, arXiv 2407.13399.
    """

    name: ClassVar[str] = "χ² + KL"

    def f(self, u: ArrayLike) -> Array:
        u = as_float(u)
        positive = u > 0
        safe = jnp.where(positive, u, jnp.ones_like(u))
        return 0.5 * (u - 1) ** 2 + jnp.where(positive, u * jnp.log(safe), jnp.zeros_like(u))

    def f_prime(self, u: ArrayLike) -> Array:
        u = as_float(u)
        return u + jnp.log(u)

    def _f_prime_at(self, log_u: Array) -> Array:
        return jnp.exp(log_u) + log_u

    def f_second(self, u: ArrayLike) -> Array:
        u = as_float(u)
        return 1 + 1 / u

    def f_prime_inverse(self, s: ArrayLike) -> Array:
        return jnp.exp(log_lambert(as_float(s)))

    @property
    def slope_at_infinity(self) -> Array:
        return jnp.asarray(jnp.inf)

    def _scaled(self, log_u: Array, log_q: Array) -> Array:
        one, two = jnp.ones((), log_u.dtype), jnp.full((), 2.0, log_u.dtype)
        linear = jnp.exp(log_q + log_u) - jnp.exp(log_q)
        return _alpha_generator(one, log_u, log_q) + _alpha_generator(two, log_u, log_q) + linear

    def _bregman(self, log_u: Array, log_u_star: Array, log_q: Array) -> Array:
        return ReverseKL()._bregman(log_u, log_u_star, log_q) + 0.5 * ChiSquared()._bregman(
            log_u, log_u_star, log_q
        )

    def _log_elasticity(self, log_u: Array) -> Array:
        return -jnp.logaddexp(log_u, jnp.zeros_like(log_u))


@_register
@dataclasses.dataclass(frozen=True)
class TotalVariation(Divergence):
    """Total variation, ``½ Σ |π − π_ref|``: ``f(u) = ½|u − 1|``.

    Its target keeps the reference where the reward is within β of the best, is exactly 0
    elsewhere, and gives the freed mass to the best outcomes; at ties it is not unique and ``solve``
    splits in proportion to the reference. ``f(0) = f′(∞) = ½`` and ``f′`` jumps at 1, so the target
    is not differentiable in β at the thresholds. Libraries that use the ℓ₁ distance without ½ reach
    the same target at β/2.

    Example:
        >>> import kltarget as kt
        >>> print(kt.TotalVariation().f(3.0))
        1.0
    """

    name: ClassVar[str] = "total variation"

    def f(self, u: ArrayLike) -> Array:
        return 0.5 * jnp.abs(as_float(u) - 1)

    def f_prime(self, u: ArrayLike) -> Array:
        return 0.5 * jnp.sign(as_float(u) - 1)

    def f_second(self, u: ArrayLike) -> Array:
        return jnp.zeros_like(as_float(u))

    def f_prime_inverse(self, s: ArrayLike) -> Array:
        """0 below −½, ``inf`` above ½ and 1 between: the set-valued inverse's middle branch."""
        s = as_float(s)
        one = jnp.ones_like(s)
        return jnp.where(s < -0.5, 0 * one, jnp.where(s > 0.5, jnp.inf * one, one))

    @property
    def slope_at_infinity(self) -> Array:
        return jnp.asarray(0.5)

    def _scaled(self, log_u: Array, log_q: Array) -> Array:
        p_minus_q = jnp.exp(log_q + log_u) - jnp.exp(log_q)
        near = jnp.exp(log_q) * jnp.expm1(jnp.clip(log_u, -1, 1))
        return 0.5 * jnp.abs(jnp.where(jnp.abs(log_u) < 1, near, p_minus_q))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FDivergence(Divergence):
    """The f-divergence of a generator the caller writes.

    ``D_f(π‖π_ref) = Σ π_ref f(π/π_ref)``. The derivatives come from automatic differentiation of
    ``f`` and ``(f′)⁻¹`` from a bracketed root in log u, unless they are given.

    Args:
        f: a convex function of the density ratio ``u ≥ 0`` with ``f(1) = 0``, written with
            ``jax.numpy``, elementwise; its value at 0 is what a lost outcome costs.
        f_prime_inverse: ``(f′)⁻¹`` elementwise, on arguments between ``f′(0)`` and ``f′(∞)``.
        slope_at_infinity: ``f′(∞)``. By default read off ``f′`` at large ``u``: its limit if ``f′``
            settles there or approaches it at least as fast as ``u^{−1/5}``, else ``inf``.
        name: how reports call it.

    Raises:
        ValueError: ``f(1)`` is not 0, or ``f″(1)`` is not positive.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> le_cam = kt.FDivergence(lambda u: (1 - u) ** 2 / (2 * (1 + u)), name="Le Cam")
        >>> print(f"{le_cam.f_prime(2.0):.4f} {le_cam.slope_at_infinity:.4f}")
        0.2778 0.5000

    References:
        Go et al., "Aligning Language Models with Preferences through f-divergence Minimization",
        2023, arXiv 2302.08215.
    """

    generator: Callable[[Array], Array]
    inverse: Callable[[Array], Array] | None
    slope: float | None
    name: str  # type: ignore[misc]

    def __init__(
        self,
        f: Callable[[Array], Array],
        *,
        f_prime_inverse: Callable[[Array], Array] | None = None,
        slope_at_infinity: float | None = None,
        name: str = "f-divergence",
    ) -> None:
        for field, value in (
            ("generator", f),
            ("inverse", f_prime_inverse),
            ("slope", slope_at_infinity),
            ("name", name),
        ):
            object.__setattr__(self, field, value)
        with jax.ensure_compile_time_eval():
            one = jnp.ones(())
            at_one, curvature = float(f(one)), float(self.f_second(one))
        if not abs(at_one) <= 1e-6:
            raise ValueError(f"f must satisfy f(1) = 0, got f(1) = {at_one}; subtract it")
        if not curvature > 0:
            raise ValueError(
                f"f must be strictly convex at 1, got f''(1) = {curvature}; "
                "TotalVariation is available by name"
            )

    def f(self, u: ArrayLike) -> Array:
        return self.generator(as_float(u))

    def f_prime(self, u: ArrayLike) -> Array:
        return _elementwise_derivative(self.generator)(as_float(u))

    def f_second(self, u: ArrayLike) -> Array:
        return _elementwise_derivative(_elementwise_derivative(self.generator))(as_float(u))

    def f_prime_inverse(self, s: ArrayLike) -> Array:
        s = as_float(s)
        if self.inverse is not None:
            inside = s < self.slope_at_infinity
            u = self.inverse(jnp.where(inside, s, jnp.zeros_like(s)))
            return jnp.where(inside, jnp.maximum(u, 0), jnp.full_like(u, jnp.inf))
        top = 0.9 * jnp.log(jnp.finfo(s.dtype).max)
        low, high = jnp.full_like(s, -top), jnp.full_like(s, top)

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            above = self.f_prime(jnp.exp(middle)) > lax.stop_gradient(s)
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        low, high = lax.fori_loop(0, jnp.finfo(s.dtype).nmant + 8, halve, (low, high))
        u = lax.stop_gradient(jnp.exp(0.5 * (low + high)))
        # One Newton step on the frozen root polishes it and carries the derivative 1/f″.
        stepped = u - (self.f_prime(u) - s) / self.f_second(u)
        u = jnp.where(stepped > 0, stepped, u)
        u = jnp.where(low <= -0.99 * top, jnp.zeros_like(u), u)
        return jnp.where(s < self.slope_at_infinity, u, jnp.full_like(u, jnp.inf))

    @property
    def slope_at_infinity(self) -> Array:
        if self.slope is not None:
            return jnp.asarray(float(self.slope))
        with jax.ensure_compile_time_eval():
            first, before, last = (
                float(self.f_prime(jnp.asarray(x))) for x in (2.0**16, 2.0**18, 2.0**20)
            )
        if abs(last - before) <= 1e-4 * max(abs(last), 1e-3):
            return jnp.asarray(last)
        # f′ of a power law approaches its limit by steps in a fixed ratio below 1; the logarithm,
        # which has none, by equal steps.
        ratio = (last - before) / (before - first)
        limit = last + (last - before) * ratio / (1 - ratio) if ratio < 0.8 else float("inf")
        return jnp.asarray(limit)


def _elementwise_derivative(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda u: jax.jvp(f, (u,), (jnp.ones_like(u),))[1]
