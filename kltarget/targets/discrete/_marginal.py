"""The root behind a target of a power divergence beyond χ²: ``f′ = c(u^γ − 1)/γ`` with γ > 1.

There probability rises vertically from truncation, ``du/ds = u^{1−γ}``, and no multiplier that a
float holds says how much an outcome next to it has. The outcome that is nearest to truncation says
it of all: with ``w`` its density ratio and ``r_m`` its reward, every other one that is left has
``u^γ = w^γ + γ(r − r_m)/(βc)``, a sum of positive terms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp, sigmoid, softplus
from jaxtyping import Array


class Marginal(NamedTuple):
    """Log density ratios ``[*batch, A]``; the multiplier's slope and the error, ``[*batch, 1]``."""

    log_u: Array
    reward: Array
    """The reward of the outcome next to truncation."""
    slope: Array
    """``(u^γ − 1)/γ`` of that outcome."""


def marginal_root(reward: Array, log_ref: Array, scale: Array, gamma: Any) -> Marginal:
    """The density ratios at which ``Σ π_ref u = 1``, as ``u^γ = w^γ + γ(r − r_m)/scale``.

    Args:
        reward: shape ``[*batch, A]``; at least one finite one where the reference has mass.
        log_ref: shape ``[*batch, A]``, of any mass.
        scale: ``β c``, shape ``[*batch, 1]``.
        gamma: above 1; a number, or an array ``[*batch, 1]``.
    """
    zero = jnp.zeros_like(scale)
    usable = (log_ref > -jnp.inf) & (reward > -jnp.inf)
    log_ref = jnp.where(usable, log_ref, -jnp.inf)
    descending = -jnp.sort(jnp.where(usable, -reward, jnp.inf), axis=-1)

    def above(level: Array) -> tuple[Array, Array]:
        """Which outcomes are better than a reward, and ``log γ(r − level)/scale`` of them."""
        better = usable & (reward > level)
        gap = jnp.where(better, reward - level, 1.0)
        return better, jnp.where(better, jnp.log(gamma * gap / scale), -jnp.inf)

    def log_held(level: Array) -> Array:
        """The log target mass, were the outcomes of that reward just truncated."""
        better, log_a = above(level)
        held = logsumexp(jnp.where(better, log_ref + log_a / gamma, -jnp.inf), -1, keepdims=True)
        return jnp.where(level > -jnp.inf, held, jnp.inf)

    # The lowest reward that is not truncated: all better ones together hold less than 1.
    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        first, last = bracket
        middle = (first + last) // 2
        fits = log_held(jnp.take_along_axis(descending, middle, axis=-1)) < 0
        return jnp.where(fits, middle, first), jnp.where(fits, last, middle)

    size = reward.shape[-1]
    ends = jnp.zeros(zero.shape, jnp.int32), jnp.full(zero.shape, size, jnp.int32)
    first, _ = lax.fori_loop(0, size.bit_length(), halve, ends)
    lowest = jnp.take_along_axis(descending, first, axis=-1)
    better, log_a = above(lowest)
    tied = usable & (reward == lowest)
    log_missing = jnp.log(-jnp.expm1(log_held(lowest)))
    log_tied = logsumexp(jnp.where(tied, log_ref, -jnp.inf), -1, keepdims=True)
    log_alive = logsumexp(jnp.where(tied | better, log_ref, -jnp.inf), -1, keepdims=True)

    def place(log_w: Array) -> tuple[Array, Array, Array]:
        """``log u``, the logarithm of what w adds to u, and its derivative in ``log w``."""
        apart = jnp.where(better, gamma * log_w - jnp.where(better, log_a, 0.0), 0.0)
        log_u = jnp.where(better, jnp.where(better, log_a, 0.0) + softplus(apart), gamma * log_w)
        log_u = log_u / gamma
        # log(1 − (a/u^γ)^{1/γ}), to the first order where w adds next to nothing
        little = apart < -30
        grown = softplus(jnp.where(little, 0.0, apart)) / gamma
        log_share = jnp.where(little, apart - jnp.log(gamma), jnp.log(-jnp.expm1(-grown)))
        rate = jnp.where(little, gamma, sigmoid(apart) / -jnp.expm1(-grown))
        alive = tied | better
        log_more = log_u + jnp.where(better, log_share, 0.0)
        return (
            jnp.where(alive, log_u, -jnp.inf),
            jnp.where(alive, log_ref + log_more, -jnp.inf),
            jnp.where(better, rate, 1.0),
        )

    # What w adds is to be what is missing. In logarithms the slope lies between 1 and γ.
    def improve(state: _Search) -> _Search:
        log_w, low, high, last, _, steps = state
        _, log_more, rate = place(log_w)
        log_total = logsumexp(log_more, -1, keepdims=True)
        slope = (jnp.exp(log_more - log_total) * rate).sum(-1, keepdims=True)
        excess = log_total - log_missing
        low, high = jnp.where(excess < 0, log_w, low), jnp.where(excess < 0, high, log_w)
        newton = log_w - excess / slope
        step = jnp.abs(newton - log_w)
        settled = step <= eps * (1 + jnp.abs(log_w))
        # From one bend to the other and back it would go for ever.
        trusted = (newton >= low) & (newton <= high) & ((step < 0.5 * last) | settled)
        after = jnp.where(trusted, newton, 0.5 * (low + high))
        return _Search(after, low, high, jnp.abs(after - log_w), ~settled, steps + 1)

    eps = float(jnp.finfo(reward.dtype).eps)
    low, high = log_missing - log_alive, log_missing - log_tied
    state = _Search(high, low, high, high - low, jnp.isfinite(high), jnp.int32(0))
    log_w = lax.while_loop(
        lambda state: jnp.any(state.moves) & (state.steps < _MAX_STEPS), improve, state
    ).log_w
    return Marginal(place(log_w)[0], lowest, jnp.expm1(gamma * log_w) / gamma)


class _Search(NamedTuple):
    log_w: Array
    low: Array
    high: Array
    last: Array
    moves: Array
    steps: Array


_MAX_STEPS = 60
"""A few of Newton's do; bisection alone closes the widest bracket in as many."""
