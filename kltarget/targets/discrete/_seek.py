"""The search along a coordinate for the point at which all masses sum to 1.

A pass over the outcomes gives the mass of all but the anchor's ties and its derivative; a model of
two levels that has both (:mod:`kltarget.targets.discrete._levels`) says where to look next.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import two_sum
from kltarget.targets.discrete._levels import Level, between, mean_level, seen_from, two_level_step
from kltarget.targets.discrete._row import Row


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Search:
    """Where a search stands; every field but the last has shape ``[*batch, 1]``."""

    at: Array
    at_low: Array
    step: Array
    last: Array
    """The step that is left, by Newton's rule."""
    others: Level
    low: Array
    high: Array
    total: Array
    done: Array
    condensed: Array
    steps: Array


def seek(row: Row, bottom: Array, top: Array, capped: Array, tol: float) -> Search:
    """To within a last step of the root.

    Args:
        row: the equation.
        bottom: the bracket's lower end, shape ``[*batch, 1]`` as all others.
        top: its upper end.
        capped: rows that begin there and stay if their mass is short.
        tol: the size of the last step, of which d²/4 is left.
    """
    coordinate, by_slope = row.coordinate, row.coordinate.by_slope
    zero, no = jnp.zeros_like(row.above), jnp.zeros_like(row.idle)
    eps = float(jnp.finfo(zero.dtype).eps)

    def advance(state: Search) -> Search:
        step = two_level_step(
            coordinate, row.log_mass, state.at, state.others, state.low, state.high
        )
        # At a kink (truncation) the model's steps can swing forever, and far from it all can be
        # short; bisection ends that.
        turns = (step > 0) != (state.step > 0)
        patience = jnp.where(turns, 3, 8)
        swings = (jnp.abs(step) > 0.5 * jnp.abs(state.step)) & (state.steps > patience)
        step = jnp.where(swings, between(state.low, state.high, by_slope) - state.at, step)
        at, at_low = two_sum(state.at, state.at_low + step)
        at_low = at_low if by_slope else zero
        at_end = capped & (state.steps == 0)
        at = jnp.where(at_end, top, at)
        mass, slope = row.sums(at, at_low)
        log_u, rate = coordinate.place(at, 0.0, zero, 0.0)
        held = jnp.exp(row.log_mass.times(log_u))
        total = mass + held
        short = total < 1
        low, high = jnp.where(short, at, state.low), jnp.where(short, state.high, at)
        newton = -jnp.log(total) * total / (slope + (held * rate if by_slope else held))
        near = jnp.abs(jnp.log(total) if by_slope else newton) <= tol
        closed = high - low <= 2 * eps * jnp.maximum(jnp.abs(high), 1)
        condensed = at_end & short
        last = jnp.where(condensed, zero, jnp.clip(newton, low - at, high - at))
        others = seen_from(coordinate, at, mass, slope)
        done, condensed = condensed | near | closed, condensed | state.condensed
        after = Search(
            at, at_low, step, last, others, low, high, total, done, condensed, state.steps + 1
        )
        # Rows that are done stay where they are.
        return jax.tree.map(
            lambda new, old: jnp.where(state.done, old, new) if jnp.ndim(new) else new,
            after,
            state,
        )

    def unfinished(state: Search) -> Array:
        return jnp.any(~state.done) & (state.steps < _MAX_STEPS)

    mean_gap = (row.reward.mean(-1, keepdims=True) - row.anchor) / row.beta
    first = mean_level(row.log_mass, mean_gap)
    state = Search(
        zero, zero, zero, zero, first, bottom, top, zero, row.idle, no, jnp.int32(0)
    )  # fmt: skip
    return lax.while_loop(unfinished, advance, state)


_MAX_STEPS = 100
"""Bisection alone closes the widest bracket, e^±1000 to the last bit of a double, in about 65."""
