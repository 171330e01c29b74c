"""Newton's last steps where the coordinate is the slope, from all digits of the slopes."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import paired_sums, paired_sums_in_parts, two_sum
from kltarget.targets.discrete._row import Row, Sums


class Polished(NamedTuple):
    at: Array
    at_low: Array
    log_probs: Array
    error: Array
    """How far the logarithm of the total mass was from 0 before the last step."""


def polished(row: Row, at: Array, at_low: Array, rare: Array) -> Polished:
    """The root to all digits, and the log-probabilities there.

    Args:
        row: the equation.
        at: near its root.
        at_low: a second part of that.
        rare: whether ratios of masses may not fit floats in some row.
    """
    if not row.long:
        return _exact(row, at, at_low)
    # One step from where the masses add up to 1 within √eps does: it leaves an error of about the
    # square. It takes each slope and each ratio once.
    levels, none = row.coordinate, jnp.full_like(at, jnp.nan)

    def summed(kept: Array) -> Sums:
        def terms(weight: Array, kept: Array) -> Sums:
            u, slope = levels.ratio(kept)
            return weight * u, weight * slope

        return paired_sums(terms, row.weight, kept)

    def measured(s: Array) -> tuple[Array, Array, Array]:
        kept = levels.kept(s)
        # A conditional only to keep that in memory: where all are idle nothing has a root.
        return kept, *lax.cond(jnp.all(row.idle), lambda _: (none, none), summed, kept)

    s = row.slopes(at, at_low)
    kept, total, slope = lax.cond(row.fits(at), measured, lambda s: (s, none, none), s)
    error = jnp.log(total)
    step = -error * total / slope
    small = jnp.abs(error) <= 4 * float(jnp.finfo(at.dtype).eps) ** 0.5

    def moved() -> Polished:
        log_probs = row.log_ref + levels.moved(s, kept, step)
        return Polished(*two_sum(at, at_low + step), log_probs, jnp.abs(error))

    return lax.cond(jnp.all(small | row.idle) & ~rare, moved, lambda: _exact(row, at, at_low))


def _exact(row: Row, at: Array, at_low: Array) -> Polished:
    levels, eps = row.coordinate, float(jnp.finfo(at.dtype).eps)
    sums = paired_sums_in_parts if row.long else paired_sums

    def terms(log_probs: Array, log_ref: Array) -> Sums:
        present = log_probs > -jnp.inf
        log_u = jnp.where(present, log_probs - log_ref, 0.0)
        probs = jnp.exp(log_probs)
        return probs, probs * levels.rate_at(log_u)

    def polish(state: _State) -> _State:
        last = state.last
        total, slope = sums(terms, last.log_probs, row.log_ref)
        error = jnp.log(total)
        size = jnp.abs(error)
        at, at_low = two_sum(last.at, last.at_low - error * total / slope)
        settled = (size <= 2 * eps**0.5) & (size > 0.5 * last.error)  # only rounding is left
        done = (size <= eps**0.75) | settled
        return _State(Polished(at, at_low, row.place(at, at_low), size), done, state.steps + 1)

    start = Polished(at, at_low, row.place(at, at_low), jnp.full_like(at, jnp.inf))
    return lax.while_loop(
        lambda state: jnp.any(~(state.done | row.idle)) & (state.steps < _MAX_STEPS),
        polish,
        _State(start, jnp.zeros_like(row.idle), jnp.int32(0)),
    ).last


class _State(NamedTuple):
    last: Polished
    done: Array
    steps: Array


_MAX_STEPS = 4
