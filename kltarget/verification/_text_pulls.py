"""What keeps a policy from a target over texts, by the prefixes of samples."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_NATURAL_STEPS = (10, 30, 100)


def followable_by_samples(
    policy: Any, params: Any, tokens: Array, log_target: Float[Array, "N T V"]
) -> float:
    """The share of the pull towards a target's next tokens that the parameters could follow.

    At each prefix the policy is pulled by ``log π − log π*`` of every next token. A change of the
    parameters moves log-probabilities along a combination of their derivatives; the share of the
    pull, squared and weighed by π, that the best combination explains is what a natural-gradient
    step follows. It is fitted on half of the texts by conjugate gradients, and what it explains of
    the other half is the share: the more texts and steps the nearer from below.
    """
    if not hasattr(policy, "next_log_probs"):
        return float("nan")
    half = tokens.shape[0] // 2
    fitted = tokens[:half], log_target[:half]
    held = tokens[half : 2 * half], log_target[half : 2 * half]
    shares = [float(_explained(policy, n, params, *fitted, *held)) for n in _NATURAL_STEPS]
    return float(np.clip(np.nanmax([0.0, *shares]), 0.0, 1.0))


@functools.partial(jax.jit, static_argnums=0)
def _explained(
    policy: Any, steps: Any, params: Any, tokens: Array, goal: Array, others: Array, their: Array
) -> Array:
    fitted, weights, pull = _pull(policy, params, tokens, goal)
    _, back = jax.vjp(fitted, params)

    def fisher(direction: Any) -> Any:
        return back(weights * jax.jvp(fitted, (params,), (direction,))[1])[0]

    with jax.numpy_dtype_promotion("standard"):
        (gradient,) = back(weights * pull)
        step, _ = jax.scipy.sparse.linalg.cg(fisher, gradient, maxiter=steps, tol=1e-4)
    held, weights, pull = _pull(policy, params, others, their)
    moved = jax.jvp(held, (params,), (step,))[1]
    gained, moved_size = (weights * moved * pull).sum(), (weights * moved * moved).sum()
    return (2 * gained - moved_size) / (weights * pull * pull).sum()


def _pull(policy: Any, params: Any, tokens: Array, goal: Array) -> Any:
    """The log-probabilities as a function of the parameters, their weights and what pulls them."""

    def log_probs(params: Any) -> Array:
        x = policy.next_log_probs(params, tokens)
        return jnp.where(x > -jnp.inf, x, 0.0)

    now = log_probs(params)
    weights = jnp.exp(now) / tokens.shape[0]
    # Where the target has nothing, nothing finite pulls.
    apart = jnp.where(goal > -jnp.inf, now - goal.astype(now.dtype), 0.0)
    middle = (jnp.exp(now) * apart).sum(-1, keepdims=True)
    return log_probs, weights, apart - middle
