"""What keeps a policy from a target over texts, by samples."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_NATURAL_STEPS = (3, 10, 30)


def followable_by_samples(policy: Any, params: Any, tokens: Array, log_ratio: Any) -> float:
    """The share of ``log π/π*`` that the parameters could still follow, from samples of π.

    The reverse KL's pull at a text is ``log π/π*`` less its mean. A change of the parameters moves
    log-probabilities along a combination of scores; the share of the pull's variance that the best
    combination explains is what a natural-gradient step follows. It is fitted on half of the texts
    by conjugate gradients, stopped where it explains most of the other half, and what it explains
    there is the share: a lower bound but for the choice among three stops.
    """
    dtype = jax.tree.leaves(params)[0].dtype
    pull = jnp.asarray(np.asarray(log_ratio, float), dtype)
    half = pull.size // 2
    if not bool(jnp.isfinite(pull).all()) or not bool(pull.std() > 0):
        return float("nan")
    fitted, held = (tokens[:half], pull[:half]), (tokens[half:], pull[half:])
    shares = [float(_explained(policy, n, params, *fitted, *held)) for n in _NATURAL_STEPS]
    return float(np.clip(np.nanmax([0.0, *shares]), 0.0, 1.0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _explained(
    policy: Any, steps: int, params: Any, tokens: Array, pull: Array, others: Array, their: Array
) -> Array:
    def log_probs(params: Any) -> Array:
        return _centred(policy.log_probs(params, tokens).sum(-1))

    def log_probs_of_others(params: Any) -> Array:
        return _centred(policy.log_probs(params, others).sum(-1))

    _, back = jax.vjp(log_probs, params)
    (gradient,) = back(_centred(pull) / pull.std())

    def fisher(direction: Any) -> Any:
        return back(jax.jvp(log_probs, (params,), (direction,))[1])[0]

    with jax.numpy_dtype_promotion("standard"):
        step, _ = jax.scipy.sparse.linalg.cg(fisher, gradient, maxiter=steps, tol=1e-4)
    moved, goal = jax.jvp(log_probs_of_others, (params,), (step,))[1], _centred(their)
    return jnp.square(jnp.vdot(moved, goal)) / (jnp.vdot(moved, moved) * jnp.vdot(goal, goal))


def _centred(x: Array) -> Array:
    return x - x.mean()
