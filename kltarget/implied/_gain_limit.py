"""How strongly a controller may move the coefficient of a KL."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import log_probs_in
from kltarget._core.numerics import as_float, widest, working_dtype
from kltarget.divergences import kl


@jax.jit
def _mean_over_variance(log_p: Array, log_q: Array, mean: Array) -> Array:
    inside = log_p > -jnp.inf
    probs = jnp.where(inside, jnp.exp(log_p), 0.0)
    ratio = jnp.where(inside, log_p, 0.0) - jnp.where(inside, log_q, 0.0)
    variance = (probs * jnp.square(ratio - mean[..., None])).sum(-1)
    equal = (mean <= 0) | (variance <= 0)
    return jnp.where(equal, 0.5, mean / jnp.where(equal, 1.0, variance))


def gain_limit(log_policy: ArrayLike, log_ref: ArrayLike) -> Float[Array, "*batch"]:
    """The gain up to which a controller of the reverse KL settles at a target.

    A controller ``β ← β (1 + K e)``, with ``e = KL/κ − 1`` cut to ±0.2, has one point of rest: the
    target of ``max E_π[reward] − β KL(π‖π_ref)`` with ``KL = κ``
    (:func:`~kltarget.implied.implied_target` of a recipe with a ``kl_target``). There the KL
    answers to β by ``−d log KL/d log β = Var ℓ/E ℓ``, with the log ratio ``ℓ = log π/π_ref`` under
    the target. If K is less than ``E ℓ/Var ℓ``, this point is stable under the controller wherever
    it is under a fixed β, whatever the learning rate and the (fixed) preconditioner. For natural
    gradients, and for gradients of two outcomes, the limit is sharp: beyond it β and the KL swing
    for ever, as far as the cut of e lets them.

    The limit is ½ where the KL is small, and falls where a little more reward would change
    much, as where the success of a target rises from nearly 0 to nearly 1. From a run's own log it
    is the mean of its log ratios of whole answers over their variance. For several prompts under
    one β it is the sum of the KLs over the sum of the variances.

    Args:
        log_policy: log-probabilities of the target, ``[*batch, A]``.
        log_ref: log-probabilities of the reference, ``[*batch, A]``.

    Returns:
        The largest K, shape ``[*batch]``; K is the number of samples per update over the horizon in
        trainers that have one. ½ where the two are equal, NaN where the KL is infinite.

    Raises:
        ValueError: shapes that do not fit; outside a trace, rows that are not normalised.

    Differentiable in both arguments. It is of whole answers, whose KL has the gradient of the
    reverse KL and whose rewards are not divided by a deviation that moves with the policy. The KL
    is that of the policy which the samples are from, before the step that is taken with them.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.implied import gain_limit, implied_target
        >>> from kltarget.recipes import Recipe
        >>> log_ref = jnp.log(jnp.array([1e-6, 1 - 1e-6]))
        >>> target = implied_target(Recipe(kl_target=6.0), jnp.array([1.0, 0.0]), log_ref)
        >>> print(f"{gain_limit(target.log_probs, log_ref):.3f} at β = {target.beta:.3f}")
        0.127 at β = 0.073

    References:
        Ziegler et al., "Fine-Tuning Language Models from Human Preferences", 2019, arXiv 1909.08593
        (the controller). The limit follows from the linearised step: with ``a_i`` the share of a
        deviation that a step takes back along direction i, and ``e_i`` the part of ``Var ℓ/E ℓ``
        there, its eigenvalues ``1 + ν`` solve ``ν + K Σ a_i e_i/(ν + a_i) = 0``, and none is on the
        unit circle while ``K Σ e_i < 1`` and all ``0 < a_i < 2``.
    """
    log_p, log_q = as_float(log_policy), as_float(log_ref)
    dtype = widest(log_p.dtype, log_q.dtype)
    wide = working_dtype(dtype)
    log_p, log_q = log_probs_in(wide, log_policy=log_p), log_probs_in(wide, log_ref=log_q)
    return _mean_over_variance(log_p, log_q, kl(log_p, log_q)).astype(dtype)
