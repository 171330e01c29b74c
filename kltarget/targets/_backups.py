"""What the values of a node's children are worth at the node: backups of :func:`backward`."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import log_sum_exp
from kltarget.divergences import Divergence
from kltarget.objectives import Objective
from kltarget.targets.discrete._solve import solve


def soft_value(values: Array, log_ref: Array, beta: Array) -> Array:
    """``β log Σ π_ref e^{V/β}`` over the last axis, the best ``E_π[V] − β·KL(π‖π_ref)``."""
    alive = ~jnp.isneginf(values) & ~jnp.isneginf(log_ref)
    best = jnp.max(jnp.where(alive, values, -jnp.inf), axis=-1, keepdims=True)
    nothing = jnp.isneginf(best)
    best = jnp.where(nothing, 0.0, lax.stop_gradient(best))
    gap = jnp.where(alive, jnp.where(alive, values, 0.0) - best, 0.0) / beta
    gap = jnp.where(alive, gap, -jnp.inf)
    # V − best = β log Σ π_ref e^gap: as a logarithm near 1 where β is large, else as it stands.
    mass = jnp.exp(log_ref)
    total = mass.sum(-1, keepdims=True)
    near = (mass * jnp.expm1(gap)).sum(-1, keepdims=True) + (total - lax.stop_gradient(total))
    is_near = near > -0.5
    near = jnp.log1p(jnp.where(is_near, near, 0.0))
    far = log_sum_exp(jnp.where(alive, jnp.where(alive, log_ref, 0.0) + gap, -jnp.inf))
    value = best + beta * jnp.where(is_near, near, jnp.where(nothing, 0.0, far))
    return jnp.where(nothing, -jnp.inf, value)[..., 0]


class Local(NamedTuple):
    """The problems of one depth, each over a node's choices; nodes are the last axis of all."""

    log_probs: Array
    multiplier: Array
    status: Array
    empty: Array


def local_target(
    values: Array, log_ref: Array, beta: Array, divergence: Divergence, full_gradient: bool
) -> tuple[Array, Local]:
    """The targets over the choices at each node, with their mean values, or the best ones.

    Args:
        values: of the children, shape ``[*batch, nodes, choices]``.
        log_ref: the reference's kernel, likewise.
        beta: shape ``[*batch, 1]``.
        divergence: with parameters of the same shape.
        full_gradient: whether a node is worth what its problem is, ``E_π[V] − β·D(π, π_ref)``, or
            ``E_π[V]`` alone.
    """
    supported = ~jnp.isneginf(values) & ~jnp.isneginf(log_ref)
    empty = ~jnp.any(supported, axis=-1)
    # Where nothing is allowed any policy will do: the node's value keeps it from being used.
    nothing = jnp.broadcast_to(empty[..., None], values.shape)
    values = jnp.where(nothing, jnp.zeros_like(values), values)
    here = solve(Objective(values, log_ref, beta, divergence))
    value = here.value if full_gradient else here.expected_reward
    value = jnp.where(empty, jnp.full_like(value, -jnp.inf), value)
    choices_first = jnp.moveaxis(here.log_probs, -1, -2)
    return value, Local(choices_first, here.multiplier, here.status, empty)
