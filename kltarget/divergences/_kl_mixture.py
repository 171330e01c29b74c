"""Reverse and forward KL at once, as objectives with both kinds of references have them."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.numerics import as_float, log_lambert
from kltarget.divergences._base import Divergence, alpha_generator, family
from kltarget.divergences._families import ForwardKL, ReverseKL


@family
class KLMixture(Divergence):
    """Both KLs, weighted: ``w KL(π‖π_ref) + (1 − w) KL(π_ref‖π)``.

    ``f(u) = w (u log u − u + 1) + (1 − w)(u − 1 − log u)``, so ``f″(1) = 1``, ``f′(0) = −∞`` and
    ``f′(∞) = ∞``, and ``f(0) = ∞`` unless w is 1, which is reverse KL. Its target is ``π_ref/v``
    with ``v = w/(1 − w) · W((1 − w)/w · e^{(1 − w − s)/w})``, ``s = (r − λ)/β``, W Lambert's
    function. Where the ratio to the reference is above ``(1 − w)/w``, reverse KL rules, and below
    it forward KL. Jeffreys' divergence is twice that of w = ½.

    :func:`kltarget.objectives.references.combine` makes objectives with it, for references of
    their own for both KLs.

    Args:
        weight: w, of reverse KL, above 0 and at most 1; a number, or an array that broadcasts
            against the objective's batch axes.

    Differentiable in ``weight`` too.

    Example:
        >>> import kltarget as kt
        >>> from kltarget.divergences import KLMixture
        >>> print(f"{2 * KLMixture(0.5).f(2.0):.4f} {kt.ReverseKL().f(2.0):.4f}")
        0.6931 0.3863

    References:
        Jeffreys, "An invariant form for the prior probability in estimation problems", 1946. The
        inverse of ``w log u + (1 − w)(1 − 1/u) = s`` follows by ``y = (1 − w)/(w u)``, for which
        ``y + log y = (1 − w − s)/w + log((1 − w)/w)``.
    """

    name: ClassVar[str] = "reverse + forward KL"
    weight: Any

    def __post_init__(self) -> None:
        if isinstance(self.weight, (int, float)) and not 0 < self.weight <= 1:
            raise ValueError(
                f"weight must be above 0 and at most 1, got {self.weight}: without reverse KL it "
                "is kltarget.ForwardKL()"
            )

    def _weights(self, dtype: Any) -> tuple[Array, Array]:
        weight = jnp.asarray(self.weight, dtype)
        return weight, 1 - weight

    def f(self, u: ArrayLike) -> Array:
        u = as_float(u)
        positive = u > 0
        log_u = jnp.log(jnp.where(positive, u, jnp.ones_like(u)))
        inside = self._scaled(log_u, jnp.zeros_like(u))
        weight = jnp.asarray(self.weight, u.dtype)
        return jnp.where(positive, inside, jnp.where(weight < 1, jnp.inf, jnp.ones_like(weight)))

    def f_prime(self, u: ArrayLike) -> Array:
        return self._f_prime_at(jnp.log(as_float(u)))

    def _f_prime_at(self, log_u: Array) -> Array:
        reverse, forward = self._weights(log_u.dtype)
        some = jnp.where(forward > 0, log_u, jnp.zeros_like(log_u))
        return reverse * log_u - forward * jnp.expm1(-some)

    def f_second(self, u: ArrayLike) -> Array:
        u = as_float(u)
        reverse, forward = self._weights(u.dtype)
        return reverse / u + forward / (u * u)

    def f_prime_inverse(self, s: ArrayLike) -> Array:
        return jnp.exp(self._log_inverse(as_float(s)))

    @property
    def slope_at_infinity(self) -> Array:
        return jnp.asarray(jnp.inf)

    def _log_inverse(self, s: Array) -> Array:
        reverse, forward = self._weights(s.dtype)
        both = forward > 0
        share = jnp.where(both, forward, 0.5)
        odds = jnp.log(share) - jnp.log(reverse)
        log_u = odds - log_lambert((share - s) / reverse + odds)
        log_u = lax.stop_gradient(jnp.where(both, log_u, s / reverse))
        # A Newton step of the frozen root carries the derivatives, and is what keeps the digits of
        # ratios near 1, where two logarithms cancel.
        inside = jnp.isfinite(log_u)
        at = jnp.where(inside, log_u, 0.0)
        step = (self._f_prime_at(at) - s) * jnp.exp(self._log_elasticity(at))
        return jnp.where(inside, at - jnp.where(jnp.isfinite(step), step, 0.0), log_u)

    def _scaled(self, log_p: Array, log_q: Array) -> Array:
        reverse, forward = self._weights(log_p.dtype)
        one, zero = jnp.ones((), log_p.dtype), jnp.zeros((), log_p.dtype)
        to_ref = alpha_generator(one, log_p, log_q)
        return reverse * to_ref + forward * alpha_generator(zero, log_p, log_q)

    def _bregman(self, log_p: Array, log_p_star: Array, log_q: Array) -> Array:
        reverse, forward = self._weights(log_p.dtype)
        to_data = ForwardKL()._bregman(log_p, log_p_star, log_q)
        charged = forward * jnp.where(forward > 0, to_data, jnp.zeros_like(to_data))
        return reverse * ReverseKL()._bregman(log_p, log_p_star, log_q) + charged

    def _log_elasticity(self, log_u: Array) -> Array:
        reverse, forward = self._weights(log_u.dtype)
        some = forward > 0
        of_forward = jnp.log(jnp.where(some, forward, 1.0)) - log_u
        return -jnp.logaddexp(jnp.log(reverse), jnp.where(some, of_forward, -jnp.inf))
