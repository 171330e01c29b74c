"""The weight that a divergence gives the difference of two scores."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.numerics import as_float, working_dtype
from kltarget.divergences._base import Divergence
from kltarget.divergences._families import TotalVariation
from kltarget.divergences._scaled import Scaled


def score_weight(divergence: Divergence, log_ratio: ArrayLike) -> Float[Array, "*batch N"]:
    """The weight ``w = u f″(u)`` of a score difference, ``u = p/q`` of a generator p and target q.

    Of draws ``x = G_θ(z)`` of p, the derivative of ``D_f(p, q) = E_q[f(p/q)]`` is

    ``∇_θ D_f = E_z[w(x) (∇ log p(x) − ∇ log q(x)) · ∂x/∂θ]``,

    because it is that of ``E_z[f′(u(G_θ(z)))]`` with u held fixed, and
    ``∇f′(u) = u f″(u) ∇ log u``. Draws that q has too little of weigh by q/p under forward KL, all
    alike under reverse KL, and by 2 p/q under χ²: in the α family by ``(p/q)^{α−1}``.

    Args:
        divergence: of the generator p from the target q, p first as a policy is.
        log_ratio: ``log p(x) − log q(x)``, ``[*batch, N]``; parameters of the divergence, where
            they are arrays, have the shape ``[*batch]``.

    Returns:
        The weights, ``[*batch, N]``, 0 or more. NaN where the log ratio is infinite, for there one
        of the laws has no score. Differentiable in the log ratio and in parameters, though a
        gradient estimator holds the weights fixed.

    Raises:
        TypeError: no divergence, complex numbers.
        ValueError: total variation, whose f′ jumps where p = q: that is all of its derivative, and
            no weights hold it.

    Written with the target first, as papers on distillation do, ``E_p[g(q/p)]`` with
    ``g(r) = r f(1/r)``, the same weight is ``r² g″(r)`` at ``r = q/p``.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.divergences import score_weight
        >>> log_ratio = jnp.log(jnp.array([0.5, 1.0, 4.0]))
        >>> for divergence in (kt.ReverseKL(), kt.ForwardKL(), kt.ChiSquared()):
        ...     print(divergence.name, [f"{w:.2f}" for w in score_weight(divergence, log_ratio)])
        reverse KL ['1.00', '1.00', '1.00']
        forward KL ['2.00', '1.00', '0.25']
        χ² ['1.00', '2.00', '8.00']

    References:
        Xu, Nie and Vahdat, "One-step Diffusion Models with f-Divergence Distribution Matching",
        2025, arXiv 2502.15681 (f-distill).
    """
    require_weights(divergence)
    log_u = as_float(log_ratio)
    dtype = log_u.dtype
    log_u = log_u.astype(working_dtype(dtype))
    known = jnp.isfinite(log_u)
    aligned = divergence._over_outcomes()
    weight = jnp.exp(-aligned._log_elasticity(jnp.where(known, log_u, 0.0)))
    return jnp.where(known, weight, jnp.nan).astype(dtype)


def require_weights(divergence: Divergence) -> None:
    """An error where a divergence weighs no scores."""
    if not isinstance(divergence, Divergence):
        raise TypeError(f"divergence must be one such as kltarget.ForwardKL(), got {divergence!r}")
    base = divergence
    while isinstance(base, Scaled):
        base = base.base
    if isinstance(base, TotalVariation):
        raise ValueError(
            "divergence: f′ of total variation jumps where both laws agree, and no weights of "
            "scores hold its derivative; take kltarget.JensenShannon()"
        )
