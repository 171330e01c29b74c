"""Rewards made for a target: mode-anchored augmentation, and the reward of a wished policy."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import at_index, broadcasts_to, first_index, mass_tolerance, traced
from kltarget._core.numerics import as_float, log_sum_exp, select, widest
from kltarget.divergences import Divergence, ReverseKL, TotalVariation
from kltarget.divergences._base import slope_at_zero
from kltarget.objectives._objective import Objective, broadcast_fields, require_objective
from kltarget.recipes import Recipe
from kltarget.recipes._caveats import mara_obstacle


def mara(
    objective: Objective,
    threshold: ArrayLike,
    *,
    method: Literal["augment", "substitute"] = "augment",
    anchor: Literal["reference", "best"] = "reference",
    recipe: Recipe | None = None,
) -> Objective:
    """Mode-anchored reward augmentation: an objective whose target is uniform on the good outcomes.

    With ``S = {y: r(y) ≥ threshold}`` and an anchor z in S:

    - ``"augment"`` changes rewards only: ``r̄(y) = r(z) + β[log π_ref(z) − log π_ref(y)]`` on S.
      The maximiser of ``E_π[r̄] − β·KL(π‖π_ref)`` is uniform on S.
    - ``"substitute"`` puts ``r(z)`` for the reward and ``π_ref(z)`` for the reference on S, inside
      the regulariser; its masses no longer sum to one (``measure=True``). The maximiser of
      ``E_π[r̄] − β·D(π, π̄_ref)`` is uniform on S for every f-divergence D.

    What to know before training with it:

    1. ``"augment"`` is made for reverse KL. With forward KL its target is
       ``∝ π_ref(y)/(κ − log(π_ref(z)/π_ref(y)))`` on S, which is **not** uniform but
       over-corrects: the least likely member of S gets the most. Use ``"substitute"`` for any other
       divergence.
    2. The anchor of the paper, the most likely member of S, maximises the mass on S only if all of
       S is rewarded equally. ``anchor="best"`` takes ``argmax log π_ref + r/β`` instead, which does
       so for reverse KL whatever the rewards.
    3. **Never divide the advantages by their standard deviation σ.** That scales the augmentation
       by 1/σ but not the KL term, and leaves ``log(π_1/π_2) = (1 − 1/σ) log(π_ref,1/π_ref,2)``: for
       σ < 1 the order of the reference is reversed, and for small β the policy collapses on the
       least likely member of S.
    4. Use a leave-one-out baseline. The mean of a group of G that includes the sample itself
       multiplies the KL coefficient by G/(G − 1) but not the augmentation, and leaves the ratio
       ``(π_ref,1/π_ref,2)^{1/G}``.

    Args:
        objective: of any batch shape; ``"augment"`` uses its beta, so the new rewards have the
            whole batch shape.
        threshold: reward from which on an outcome is good, in reward units; a number, or an array
            that broadcasts against ``*batch``.
        method: which of the paper's algorithms: 1 is ``"augment"``, 2 is ``"substitute"``.
        anchor: ``"reference"`` for the most likely member of S (the best-rewarded of several), or
            ``"best"``.
        recipe: what the trainer that is to use it does. A ``UserWarning`` then says which of the
            points above keeps its target from being uniform.

    Returns:
        A new objective of the same batch shape, divergence and beta. Judge its target by the
        original objective's reward.

    Raises:
        TypeError: no objective.
        ValueError: an unknown ``method`` or ``anchor``, a threshold that does not broadcast; and
            outside a trace, a row where no outcome with reference mass reaches the threshold, or a
            NaN threshold. Under a trace such rows are left as they are.

    Outcomes without reference mass keep their reward and stay without, even above the threshold:
    their augmentation would be infinite. Differentiable in reward, log_ref and beta where the sets
    and the anchor do not change.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> objective = kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, 0.1)
        >>> print([f"{x:.3f}" for x in kt.mara(objective, 1.0).reward])
        ['1.000', '1.271', '0.000']
        >>> print([f"{p:.3f}" for p in kt.solve(kt.mara(objective, 1.0)).probs])
        ['0.500', '0.500', '0.000']

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817, algorithms 1 and 2, for reverse KL and the likely anchor. The rest follows
        from ``π* = π_ref (f′)⁻¹((r − λ)/β)``.
    """
    require_objective(objective, "mara")
    if method not in ("augment", "substitute"):
        raise ValueError(f"method must be 'augment' or 'substitute', got {method!r}")
    if anchor not in ("reference", "best"):
        raise ValueError(f"anchor must be 'reference' or 'best', got {anchor!r}")
    if recipe is not None and (obstacle := mara_obstacle(recipe, method)):
        warnings.warn(obstacle, stacklevel=2)
    threshold = as_float(threshold).astype(objective.reward.dtype)
    if not broadcasts_to(threshold.shape, objective.batch_shape):
        raise ValueError(
            f"threshold has shape {threshold.shape}, which does not broadcast to the objective's "
            f"batch shape {objective.batch_shape}"
        )
    reward, log_ref, some = _anchored(objective, threshold, method, anchor)
    if not traced(some) and not bool(jnp.all(some)):
        at = first_index(~np.asarray(some))
        level = np.broadcast_to(np.asarray(threshold), objective.batch_shape)[at]
        raise ValueError(
            f"threshold {level:g} is above the reward of every outcome with reference mass"
            f"{at_index(at)}"
        )
    if method == "augment":
        return dataclasses.replace(objective, reward=reward)
    return dataclasses.replace(objective, reward=reward, log_ref=log_ref, measure=True)


def _anchored(
    objective: Objective, threshold: Array, method: str, anchor: str
) -> tuple[Array, Array, Array]:
    reward, log_ref, beta, _ = broadcast_fields(objective)
    bar = jnp.broadcast_to(threshold, objective.batch_shape)[..., None].astype(reward.dtype)
    good = (reward >= bar) & (log_ref > -jnp.inf) & (reward > -jnp.inf)
    likely = select(good, log_ref, -jnp.inf)
    score = likely if anchor == "reference" else likely + select(good, reward, 0) / beta
    first = good & (score == jnp.max(score, axis=-1, keepdims=True))
    # Of equal scores the best reward decides, and of equal rewards the first.
    at = jnp.argmax(select(first, reward, -jnp.inf), axis=-1, keepdims=True)
    reward_z = jnp.take_along_axis(reward, at, axis=-1)
    log_ref_z = jnp.take_along_axis(log_ref, at, axis=-1)
    some = jnp.any(good, axis=-1)
    if method == "augment":
        lift = select(good, log_ref_z - select(good, log_ref, 0), 0)
        new = jnp.where(good, reward_z + beta * lift, reward)
        new_ref = log_ref
    else:
        new = jnp.where(good, reward_z, reward)
        new_ref = jnp.where(good, log_ref_z, log_ref)
    dtype = objective.reward.dtype
    return new.astype(dtype), new_ref.astype(dtype), some


def reward_for(
    log_target: ArrayLike, log_ref: ArrayLike, beta: ArrayLike, divergence: Divergence | None = None
) -> Float[Array, "*batch A"]:
    """The reward whose target is a given distribution p: ``r = β f′(p/π_ref)``, up to a constant.

    It makes p the maximiser of ``E_π[r] − β·D(π, π_ref)``. For reverse KL it is
    ``β log(p/π_ref)``, for forward KL ``−β π_ref/p``. Where p is positive all rewards that do so
    differ by a constant; this one's maximum is 0.

    Args:
        log_target: log p, normalised, shape ``[*batch, A]``.
        log_ref: log π_ref, normalised, shape ``[*batch, A]``.
        beta: coefficient of the divergence, in reward units per nat, shape ``[*batch]``.
        divergence: the regulariser, :class:`ReverseKL` by default.

    Returns:
        Rewards in the units of beta, shape ``[*batch, A]``.

    Raises:
        ValueError: shapes that do not fit; total variation, whose targets do not determine a
            reward; and outside a trace: an invalid beta or reference, a ``log_target`` that is NaN
            or unnormalised, p where the reference has no mass though ``f′(∞)`` is infinite, or a
            ratio p/π_ref whose f′ overflows. Under a trace these rows are NaN.

    Where only p is 0: the largest reward that keeps it there, ``β f′(0)``; ``-inf`` if that is
    infinite. Where both are 0: ``-inf``. Where only the reference is 0 and ``f′(∞)`` is finite:
    ``β f′(∞)``, at which the target condenses there; of several such outcomes only the total is
    determined, and :func:`solve` shares it equally. Differentiable in every argument where finite.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> wish = jnp.log(jnp.array([0.45, 0.45, 0.1]))
        >>> reward = kt.reward_for(wish, log_ref, 0.1)
        >>> print([f"{x:.3f}" for x in reward])
        ['-0.271', '0.000', '-0.503']
        >>> print([f"{p:.3f}" for p in kt.solve(kt.Objective(reward, log_ref, 0.1)).probs])
        ['0.450', '0.450', '0.100']

    References:
        Wang et al., "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse
        Divergence Constraints", 2023, arXiv 2309.16240, for the reward as a function of the policy.
    """
    divergence = ReverseKL() if divergence is None else divergence
    if isinstance(divergence, TotalVariation):
        raise ValueError(
            "total variation has no reward for a target: many rewards have the same target, and "
            "most distributions are the target of none"
        )
    log_p, log_q = as_float(log_target), as_float(log_ref)
    for name, x in (("log_target", log_p), ("log_ref", log_q)):
        if x.ndim == 0 or x.shape[-1] != (log_q if log_q.ndim else x).shape[-1]:
            raise ValueError(
                f"{name} has shape {x.shape}; log_target and log_ref need the same last axis of "
                f"outcomes, got shapes {log_p.shape} and {log_q.shape}"
            )
    dtype = widest(log_p.dtype, log_q.dtype)
    if isinstance(beta, (jax.Array, np.ndarray, np.generic)):
        dtype = widest(dtype, as_float(beta).dtype)
    log_p, log_q, beta = (as_float(x).astype(dtype) for x in (log_p, log_q, beta))
    # An objective holds everything but the target, and checks it.
    problem = Objective(jnp.zeros_like(log_p), log_q, beta, divergence)
    reward, normalised = _reward_for(problem, log_p)
    if not traced(reward):
        _require_target(problem, log_p, reward, np.asarray(normalised))
    return reward


def _require_target(
    problem: Objective, log_p: Array, reward: Array, normalised: np.ndarray
) -> None:
    if not normalised.all():
        at = at_index(first_index(~normalised))
        raise ValueError(f"log_target is not normalised{at}: pass kltarget.normalize(log_target)")
    bad = np.isnan(np.asarray(reward)).any(axis=-1)
    if bad.any():
        lost = np.asarray((log_p > -jnp.inf) & jnp.isneginf(problem.log_ref))
        lost = np.broadcast_to(lost, reward.shape)
        if lost.any():
            raise ValueError(
                f"log_target has mass where log_ref has none{at_index(first_index(lost))}: "
                f"no reward makes a {problem.divergence.name} target go there"
            )
        raise ValueError(
            f"the reward is too large for {reward.dtype}{at_index(first_index(bad))}: "
            "log_target and log_ref are too far apart for this divergence"
        )


@jax.jit
def _reward_for(problem: Objective, log_p: Array) -> tuple[Array, Array]:
    zeros, log_q, beta, divergence = broadcast_fields(problem)
    log_p = jnp.broadcast_to(log_p.astype(zeros.dtype), zeros.shape)
    in_p, in_q = log_p > -jnp.inf, log_q > -jnp.inf
    both = in_p & in_q
    slope = jnp.asarray(divergence.slope_at_infinity, zeros.dtype)
    at_zero = slope_at_zero(divergence, zeros.dtype)

    def there(condition: Array, x: Array, otherwise: Array) -> Array:
        return jnp.where(condition, jnp.broadcast_to(x, condition.shape), otherwise)

    scaled = divergence._f_prime_at(select(both, log_p, 0) - select(both, log_q, 0))
    scaled = there(both, scaled, jnp.full_like(zeros, -jnp.inf))
    scaled = there(in_q & ~in_p, at_zero, scaled)
    scaled = there(in_p & ~in_q, jnp.where(slope < jnp.inf, slope, jnp.nan * slope), scaled)
    top = jnp.max(scaled, axis=-1, keepdims=True)
    lowest = jnp.isneginf(scaled)
    reward = jnp.where(lowest, scaled, beta * (select(~lowest, scaled, 0) - top))

    log_total = log_sum_exp(log_p)
    normalised = jnp.abs(jnp.expm1(log_total)) <= mass_tolerance(problem.reward.dtype)
    valid = normalised & (beta > 0) & (beta < jnp.inf) & (jnp.abs(top) < jnp.inf)
    reference = jnp.abs(jnp.expm1(log_sum_exp(log_q))) <= mass_tolerance(problem.log_ref.dtype)
    reward = select(valid & reference, reward, jnp.nan)
    return reward.astype(problem.reward.dtype), normalised[..., 0]
