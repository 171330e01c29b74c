"""The regularisers: f-divergences between a policy and its reference.

``D_f(π‖π_ref) = Σ π_ref f(π/π_ref)`` with ``f`` convex and ``f(1) = 0``, the policy first. What an
outcome without reference mass costs is the slope of ``f`` at infinity times its probability.

A coefficient β has a meaning only together with the ``f`` it multiplies: ``f`` and ``c·f`` give the
same target at β and β/c. Every class below therefore states its ``f`` and the factor by which other
libraries' conventions differ.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.numerics import as_float, log_lambert
from kltarget.divergences._base import Divergence, PowerDivergence, alpha_generator, family


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
        when the two distributions nearly agree. Differentiable in both arguments where it is
        finite.

    Raises:
        TypeError: complex numbers.
        ValueError: shapes that do not fit, naming both; outside a trace, rows that are not
            normalised.

    An outcome that is ``-inf`` under ``p`` adds ``q`` to the sum as written, nothing to the KL.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> print(kt.kl(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.5, 0.5]))))
        0.0
    """
    return ReverseKL()(log_p, log_q)


@family
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
    _slug: ClassVar[str | None] = "reverse-kl"
    _alpha: ClassVar[float] = 1


@family
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
    _slug: ClassVar[str | None] = "forward-kl"
    _alpha: ClassVar[float] = 0


@family
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
    _slug: ClassVar[str | None] = "jensen-shannon"

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

    def _scaled(self, log_p: Array, log_q: Array) -> Array:
        # KL of each side to the mixture, every term non-negative
        log_u = log_p - log_q
        log_m = jnp.logaddexp(log_u, jnp.zeros_like(log_u)) - jnp.log(2.0)
        one = jnp.ones((), log_u.dtype)
        return alpha_generator(one, log_p, log_q + log_m, log_u - log_m) + alpha_generator(
            one, log_q, log_q + log_m, -log_m
        )

    def _bregman(self, log_p: Array, log_p_star: Array, log_q: Array) -> Array:
        # (1 + u) times the KL of two coins that fall on the policy's side with chance u/(1 + u)
        inside = (log_p > -jnp.inf) & (log_p_star > -jnp.inf)
        p = jnp.where(inside, log_p, log_q)
        log_u, log_star = p - log_q, jnp.where(inside, log_p_star, log_q) - log_q
        one = jnp.ones((), log_u.dtype)
        ours = jax.nn.softplus(-log_star) - jax.nn.softplus(-log_u)
        other = jax.nn.softplus(log_star) - jax.nn.softplus(log_u)
        apart = alpha_generator(one, p, p - ours, ours)
        apart = apart + alpha_generator(one, log_q, log_q - other, other)
        # A policy that is 0 there loses π_ref log(1 + u*); a target is 0 where everything is.
        left = jnp.isneginf(log_p)
        star = jnp.where(left & ~jnp.isneginf(log_p_star), log_p_star, log_q) - log_q
        lost = jnp.exp(log_q) * jax.nn.softplus(star)
        end = jnp.where(jnp.isneginf(log_p_star), jnp.where(left, 0.0, jnp.inf), lost)
        return jnp.where(inside, apart, end)

    def _log_elasticity(self, log_u: Array) -> Array:
        return jnp.logaddexp(log_u, jnp.zeros_like(log_u))


@family
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
    _slug: ClassVar[str | None] = "alpha"
    alpha: Any

    @property
    def _alpha(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _parameter(self.alpha)


@family
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
    _slug: ClassVar[str | None] = "chi-squared"
    _alpha: ClassVar[float] = 2
    _scale: ClassVar[float] = 2.0


@family
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
    _slug: ClassVar[str | None] = "neyman-chi-squared"
    _alpha: ClassVar[float] = -1
    _scale: ClassVar[float] = 2.0


@family
class SquaredHellinger(PowerDivergence):
    """Squared Hellinger distance, ``Σ (√π − √π_ref)²``: ``f(u) = (√u − 1)²``.

    ``f″(1) = ½``, ``f(0) = 1``, ``f′(0) = −∞``, ``f′(∞) = 1``. Half of ``Alpha(0.5)``;
    libraries with an extra ½ reach the same target at 2β.

    Example:
        >>> import kltarget as kt
        >>> print(f"{kt.SquaredHellinger().f(4.0):.4f}")
        1.0000
    """

    name: ClassVar[str] = "squared Hellinger"
    _slug: ClassVar[str | None] = "squared-hellinger"
    _alpha: ClassVar[float] = 0.5
    _scale: ClassVar[float] = 0.5


@family
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
        >>> print(f"{kt.Tsallis(2.0).f(3.0):.4f}")
        6.0000

    References:
        Zhu, Chen, Schlegel, White, "General Munchausen Reinforcement Learning with Tsallis
        Kullback-Leibler Divergence", 2023, arXiv 2301.11476.
    """

    name: ClassVar[str] = "Tsallis KL"
    _slug: ClassVar[str | None] = "tsallis"
    q: Any
    _linear: ClassVar[float] = 1.0

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


@family
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
    _linear: ClassVar[float] = 1.0
    _slug: ClassVar[str | None] = "chi-squared-kl"

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

    def _scaled(self, log_p: Array, log_q: Array) -> Array:
        one, two = jnp.ones((), log_p.dtype), jnp.full((), 2.0, log_p.dtype)
        return alpha_generator(one, log_p, log_q) + alpha_generator(two, log_p, log_q)

    def _bregman(self, log_p: Array, log_p_star: Array, log_q: Array) -> Array:
        reverse_kl = ReverseKL()._bregman(log_p, log_p_star, log_q)
        return reverse_kl + 0.5 * ChiSquared()._bregman(log_p, log_p_star, log_q)

    def _log_elasticity(self, log_u: Array) -> Array:
        return -jnp.logaddexp(log_u, jnp.zeros_like(log_u))


@family
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
    _slug: ClassVar[str | None] = "total-variation"

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

    def _scaled(self, log_p: Array, log_q: Array) -> Array:
        log_u = log_p - log_q
        p_minus_q = jnp.exp(log_p) - jnp.exp(log_q)
        near = jnp.exp(log_q) * jnp.expm1(jnp.clip(log_u, -1, 1))
        return 0.5 * jnp.abs(jnp.where(jnp.abs(log_u) < 1, near, p_minus_q))
