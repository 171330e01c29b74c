"""Mirror ascent: natural gradient on the probabilities themselves."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kltarget._core.checks import positive, worded
from kltarget._core.numerics import safe_exp_product
from kltarget._core.pytrees import pytree
from kltarget.divergences import Divergence, ReverseKL
from kltarget.objectives import Objective
from kltarget.objectives._objective import broadcast_fields, value_faults


@pytree
class MirrorAscent:
    """Where mirror ascent arrived.

    Attributes:
        log_probs: the last policy, ``[*batch, A]``.
        gap: its Frank–Wolfe gap ``max ∇J − ⟨∇J, π⟩ ≥ J* − J(π)`` over the reference's support, in
            reward units, ``[*batch]``.
        num_steps: steps taken, int32 ``[*batch]``.
        converged: whether the gap reached the tolerance, booleans ``[*batch]``.
    """

    log_probs: Float[Array, "*batch A"]
    gap: Float[Array, "*batch"]
    num_steps: Int[Array, "*batch"]
    converged: Array


def mirror_ascent(
    reward: ArrayLike,
    log_ref: ArrayLike,
    beta: ArrayLike,
    divergence: Divergence | None = None,
    *,
    learning_rate: ArrayLike,
    num_steps: int,
    gap_tol: float = 0.0,
) -> MirrorAscent:
    """Maximises ``J(π) = E_π[reward] − beta · D(π, π_ref)`` by natural gradient in log space.

    Starting at the reference, every step is ``log π ← log π + η·∇J(π)``, normalised. For reverse KL
    ``∇J = r − β log(π/π_ref)`` up to a constant, so each step shrinks the distance to the target
    ``log π_ref + r/β`` by exactly ``1 − ηβ``: after k steps the policy is the target at coefficient
    ``β/(1 − (1 − ηβ)^k)``, and ``η = 1/β`` arrives at once. For another f the step is contracting
    near the optimum where ``ηβ·u f″(u) < 2`` at its ratios ``u = π/π_ref``; the gap says whether it
    went well.

    Args:
        reward: larger is better, ``[*batch, A]``; ``-inf`` forbids an outcome.
        log_ref: reference log-probabilities, ``[*batch, A]``. Outcomes without reference mass stay
            without mass.
        beta: coefficient, in reward units per nat, above 0; broadcasts against ``*batch``.
        divergence: any f-divergence, reverse KL by default.
        learning_rate: the step η, per reward unit; broadcasts against ``*batch``.
        num_steps: the most steps to take.
        gap_tol: a row stops when its Frank–Wolfe gap is at most this, in reward units.

    Returns:
        Policies with their gaps, in the dtype of the inputs; NaN in rows that became so and, under
        a trace, where :class:`kltarget.Objective` would have raised.

    Raises:
        TypeError, ValueError: as :class:`kltarget.Objective`, and shapes that do not broadcast.

    Composes with ``jit`` and ``vmap``; differentiable in the arrays, through all steps.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.training import mirror_ascent
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> ascent = mirror_ascent(
        ...     jnp.array([1.0, 1.0, 0.0]), log_ref, 0.1, learning_rate=5.0, num_steps=60
        ... )
        >>> [f"{p:.4f}" for p in jnp.exp(ascent.log_probs)]
        ['0.9374', '0.0625', '0.0001']

    References:
        Beck and Teboulle, "Mirror descent and nonlinear projected subgradient methods for convex
        optimization", 2003.
    """
    objective = Objective(reward, log_ref, beta, ReverseKL() if divergence is None else divergence)
    positive("num_steps", num_steps, 0)
    rate = jnp.asarray(learning_rate, objective.reward.dtype)
    batch = objective.batch_shape
    with worded(
        f"learning_rate has shape {rate.shape}, which does not broadcast against the objective's "
        f"batch axes {batch}"
    ):
        batch = jnp.broadcast_shapes(batch, rate.shape)
    objective = dataclasses.replace(objective, beta=jnp.broadcast_to(objective.beta, batch))
    return _mirror_ascent(objective, jnp.broadcast_to(rate, batch), num_steps, gap_tol)


@functools.partial(jax.jit, static_argnums=2)
def _mirror_ascent(objective: Objective, rate: Array, num_steps: int, gap_tol: Any) -> MirrorAscent:
    reward, log_ref, beta, divergence = broadcast_fields(objective)
    rate = rate.astype(reward.dtype)[..., None]
    gap_tol = jnp.asarray(gap_tol, reward.dtype)
    inside = (log_ref > -jnp.inf) & (reward > -jnp.inf)
    start = jax.nn.log_softmax(jnp.where(inside, log_ref, -jnp.inf), axis=-1)

    def slopes(log_policy: Array) -> Array:
        log_p, log_q = (jnp.where(inside, x, 0.0) for x in (log_policy, log_ref))
        cost = divergence._slope(log_p, log_q)
        cost = jnp.broadcast_to(cost, reward.shape)
        return jnp.where(inside, jnp.where(inside, reward, 0.0) - beta * cost, 0.0)

    def gap(log_policy: Array, gain: Array) -> Array:
        best = jnp.max(jnp.where(inside, gain, -jnp.inf), axis=-1, keepdims=True)
        missing = safe_exp_product(best - gain, jnp.where(inside, log_policy, -jnp.inf))
        return missing.sum(-1)

    def step(carry: Any, _: None) -> Any:
        log_policy, taken, done = carry
        gain = slopes(log_policy)
        done = done | (gap(log_policy, gain) <= gap_tol)
        moved = jax.nn.log_softmax(jnp.where(inside, log_policy + rate * gain, -jnp.inf), axis=-1)
        log_policy = jnp.where(done[..., None], log_policy, moved)
        return (log_policy, taken + (~done).astype(jnp.int32), done), None

    carry = (start, jnp.zeros(rate.shape[:-1], jnp.int32), jnp.zeros(rate.shape[:-1], bool))
    (log_policy, taken, _), _ = lax.scan(step, carry, None, length=num_steps)
    last = gap(log_policy, slopes(log_policy))
    faults = value_faults(objective.reward, objective.log_ref, objective.beta, objective.measure)
    bad = [faults["reward"].any(-1), faults["nan_ref"].any(-1)]
    bad += [faults[name] for name in ("beta", "mass", "empty")]
    failed = functools.reduce(jnp.logical_or, (jnp.broadcast_to(x, last.shape) for x in bad))
    last = jnp.where(failed, jnp.nan, last)
    log_policy = jnp.where(failed[..., None], jnp.nan, log_policy)
    dtype = objective.reward.dtype
    return MirrorAscent(log_policy.astype(dtype), last.astype(dtype), taken, last <= gap_tol)
