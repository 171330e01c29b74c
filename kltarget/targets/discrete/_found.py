"""What a search for targets gives."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array


class Solution(NamedTuple):
    """Log-probabilities ``[*batch, A]``; multiplier and status bits ``[*batch, 1]``."""

    log_probs: Array
    multiplier: Array
    status: Array


class Found(NamedTuple):
    """A solution that is still to be certified, and where its probabilities do not sum to one."""

    log_probs: Array
    multiplier: Array
    status: Array
    off: Array


def off_one(log_probs: Array) -> Array:
    """Whatever went wrong on the way, what is no distribution is not returned as one."""
    total = jnp.exp(log_probs).sum(-1, keepdims=True)
    return ~(jnp.abs(total - 1) <= float(jnp.finfo(total.dtype).eps) ** 0.5)


def share_rounding(log_probs: Array, log_ref: Array) -> Array:
    """Probabilities that sum to 1, by the same relative change of every log ratio.

    Log ratios of several hundred are rounded by more than log-probabilities near 0 may be.
    """
    log_u = jnp.where(log_probs > -jnp.inf, log_probs - log_ref, 0.0)
    probs = jnp.exp(log_probs)
    total = probs.sum(-1, keepdims=True)
    mean = (probs * log_u).sum(-1, keepdims=True) / total
    large = mean > 1
    return log_probs - jnp.where(large, jnp.log(total) / jnp.where(large, mean, 1.0), 0.0) * log_u
