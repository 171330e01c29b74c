"""The compiled program of a sweep: rows of settings in, measures of their targets out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kltarget._core.numerics import safe_exp_product
from kltarget.divergences import Divergence, ReverseKL, kl
from kltarget.modes import effective_modes, entropy, pass_at_k
from kltarget.modes._measures import log_mass_of_blocks
from kltarget.objectives import Objective, mara, normalize
from kltarget.targets import solve

Columns = dict[str, Array]
"""The settings of ``N`` rows, each ``[N]``, by their names."""


def nats(log_p: Array, log_q: Array) -> Array:
    """KL divergence; rounding makes one of 0 negative."""
    return jnp.maximum(kl(log_p, log_q), 0)


def pose(
    divergence: Divergence, reward: Array, log_ref: Array, columns: Columns, used: frozenset[str]
) -> tuple[Objective, Array, Array]:
    """The rows' objectives, their references ``[N, A]``, and what to add to their values ``[N]``.

    An entropy bonus of weight η beside the reverse KL is a reverse KL again, of coefficient β + η,
    to ``π_ref^{β/(β+η)}/Z``: the maxima differ by ``(β + η) log Z``. Settings that are not ``used``
    are left out of the computation.
    """
    beta, scale = columns["beta"], columns["reward_scale"]
    shape = (*beta.shape, *reward.shape)
    reward = scale[:, None] * jnp.broadcast_to(reward, shape)
    log_ref = own = jnp.broadcast_to(log_ref, shape)
    lift = jnp.zeros_like(beta)
    if "ref_temperature" in used:
        log_ref = own = normalize(log_ref / columns["ref_temperature"][:, None])
    if "entropy_weight" in used:
        total = beta + columns["entropy_weight"]
        weights = log_ref * (beta / total)[:, None]
        log_mass = jax.nn.logsumexp(weights, axis=-1)
        own, lift, beta = weights - log_mass[:, None], total * log_mass, total
    objective = Objective(reward, own, beta, divergence)
    if "threshold" in used:
        method = "augment" if isinstance(divergence, ReverseKL) else "substitute"
        objective = mara(objective, scale * columns["threshold"], method=method)
    return objective, log_ref, lift


@functools.partial(jax.jit, static_argnames="used")
def measure(
    divergence: Divergence,
    reward: Array,
    log_ref: Array,
    blocks: tuple[Array, ...],
    k: Array,
    columns: Columns,
    *,
    used: frozenset[str],
) -> dict[str, Any]:
    """What a sweep reports of every row; ``blocks`` sum outcomes to modes."""
    objective, log_ref, lift = pose(divergence, reward, log_ref, columns, used)
    target = solve(objective)
    log_probs = target.log_probs
    gain = safe_exp_product(jnp.broadcast_to(reward, log_probs.shape), log_probs)
    log_mass = log_mass_of_blocks(log_probs, blocks)
    mass = jnp.exp(log_mass)
    right = jnp.broadcast_to(mass.sum(-1, keepdims=True), (mass.shape[0], k.size))
    found = {
        "expected_reward": gain.sum(-1),
        "reverse_kl": nats(log_probs, log_ref),
        "forward_kl": nats(log_ref, log_probs),
        "entropy": entropy(log_probs),
        "effective_modes": effective_modes(log_mass),
        "mode_mass": mass,
        "pass_at_k": pass_at_k(right, jnp.broadcast_to(k, right.shape)),
        "value": target.value + lift,
        "status": target.status,
    }
    return found | ({"log_probs": log_probs} if "log_probs" in used else {})


@functools.partial(jax.jit, static_argnames="used")
def targets(
    divergence: Divergence, reward: Array, log_ref: Array, columns: Columns, *, used: frozenset[str]
) -> tuple[Array, Array, Array, Array]:
    """Reward, reference and beta of the objectives of the rows, and their targets."""
    objective, _, _ = pose(divergence, reward, log_ref, columns, used)
    return objective.reward, objective.log_ref, objective.beta, solve(objective).log_probs


@jax.jit
def distances(
    log_policy: Array, log_target: Array, reward: Array, blocks: tuple[Array, ...]
) -> dict[str, Array]:
    """How far policies ``[N, A]`` are from their targets, and what else is said of them."""
    probs = jnp.exp(log_policy)
    gain = jnp.broadcast_to(reward, probs.shape)
    return {
        "total_variation": jnp.abs(probs - jnp.exp(log_target)).sum(-1) / 2,
        "reverse_kl_to_target": nats(log_policy, log_target),
        "forward_kl_to_target": nats(log_target, log_policy),
        "tuned_expected_reward": (probs * jnp.where(probs > 0, gain, jnp.zeros_like(gain))).sum(-1),
        "tuned_effective_modes": effective_modes(log_mass_of_blocks(log_policy, blocks)),
    }
