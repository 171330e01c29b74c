"""The root in β of a measure of targets: a scan where it may turn, bisection, a Newton step.

Rewards are counted from the best one in units of their spread, so that β is of order 1 and expected
rewards near the best keep their digits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import select, working_dtype
from kltarget._core.pytrees import pytree
from kltarget.frontier._measured import Measure, succeeds
from kltarget.objectives import Objective
from kltarget.objectives._objective import broadcast_fields
from kltarget.targets import greedy_limit, reference_limit, solve

DECADES = 9
_PER_DECADE = 8


class Found(NamedTuple):
    """For each row the β, NaN where there is none, and what is to be said about it.

    ``lower`` and ``upper`` are what the measure runs between, or, where it ``jumps`` over what is
    wanted, what it is on both sides of that jump, which is ``at`` a β. ``other`` is a second β that
    would do, 0 where there is none.
    """

    beta: Array
    lower: Array
    upper: Array
    jumps: Array
    at: Array
    other: Array
    failed: Array


@pytree
class _Question:
    """A measure of the targets of a problem whose best reward is 0 and whose worst one is −1.

    Attributes:
        problem: of batch shape ``[*batch]``; its beta is not used.
        measure: of its targets.
        goal: what the measure shall be, ``[*batch]``.
        best: what was subtracted from the rewards.
        spread: what they were divided by.
        failed: rows of which ``solve`` refuses the reward or the reference.
        level: rows of which no target differs from the reference.
    """

    problem: Objective
    measure: Measure
    goal: Array
    best: Array
    spread: Array
    failed: Array
    level: Array

    def measured(self, beta: Array) -> Array:
        return self.measure.of(solve(dataclasses.replace(self.problem, beta=beta)).log_probs)


@functools.partial(jax.jit, static_argnames=("kind", "turns"))
def beta_root(
    objective: Objective,
    wanted: Array,
    blocks: tuple[Array, ...] | None,
    right: Array | None,
    *,
    kind: str,
    turns: bool,
) -> Found:
    """The largest β at which a measure of the target is as wanted.

    ``turns`` says that the measure need not fall all the way from β = 0 to ∞.
    """
    asked = _question(objective, wanted, blocks, right, kind)
    fixed = lax.stop_gradient(asked)
    goal, dtype = fixed.goal, fixed.goal.dtype
    eps = float(jnp.finfo(dtype).eps)
    noise = 64 * eps * (1 + jnp.abs(goal))
    lower, upper = (
        fixed.measure.of(limit(fixed.problem).log_probs)
        for limit in (reference_limit, greedy_limit)
    )
    # What is but rounding is 0.
    lower, upper = (select(jnp.abs(x) > 64 * eps, x, 0) for x in (lower, upper))
    if turns:
        scan = _scanned(fixed, noise)
        low, high, other, falls, there = scan[:5]
        lower, upper = (
            f(f(lower, upper), x) for f, x in zip((jnp.minimum, jnp.maximum), scan[5:], strict=True)
        )
    else:
        ends = math.log(float(jnp.finfo(dtype).tiny)) + 7, math.log(10.0) * 2 * DECADES
        low, high = (jnp.full(goal.shape, math.exp(x), dtype) for x in ends)
        other, falls = jnp.zeros(goal.shape, dtype), jnp.ones(goal.shape, bool)
        # Distances to the best reward keep their digits, sums of probabilities end in rounding.
        last = 0.0 if kind == "expected_reward" else 16 * eps
        there = (goal > lower) & (goal < upper - last * (1 + jnp.abs(goal)))

    def halve(_: int, bracket: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, at_low, at_high = bracket
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        there = fixed.measured(middle)
        # A measure that is infinite or not a number is that of a β too small.
        stays = ~(there <= goal) == falls
        return (
            jnp.where(stays, middle, low),
            jnp.where(stays, high, middle),
            jnp.where(stays, there, at_low),
            jnp.where(stays, at_high, there),
        )

    # From a bracket of up to e^1400 to the last digits of β.
    unknown = jnp.full_like(lower, jnp.nan)
    steps = int(jnp.finfo(dtype).nmant) + 12
    low, high, at_low, at_high = lax.fori_loop(0, steps, halve, (low, high, unknown, lower))
    middle = jnp.sqrt(low) * jnp.sqrt(high)

    # A last Newton step in log β, at the frozen root, carries the implicit function's derivatives.
    value, slope = jax.jvp(
        lambda log_factor: asked.measured(middle * jnp.exp(log_factor)) - asked.goal,
        (jnp.zeros_like(middle),),
        (jnp.ones_like(middle),),
    )
    slope = lax.stop_gradient(select(jnp.isfinite(slope), slope, 0))
    meets = there & (jnp.abs(value) <= 4 * jnp.abs(slope) * (jnp.log(high / low) + eps) + noise)
    step = value / select(slope != 0, slope, jnp.inf)
    smooth = meets & jnp.isfinite(step) & (jnp.abs(step) < eps**0.5)
    spread, best = asked.spread, asked.best
    beta = middle * jnp.exp(-select(smooth, step, 0)) * spread
    jumps = there & ~meets
    lower = jnp.where(jumps, at_high, lower)
    # Where no β was too small, what is wanted lies beyond the smallest one.
    upper = jnp.where(jumps, jnp.where(jnp.isnan(at_low), at_high, at_low), upper)
    if kind == "expected_reward":
        lower, upper = lower * spread + best, upper * spread + best
    ok = meets & ~asked.failed & ~asked.level & (beta > 0)
    remarks = (lower, upper, jumps, middle * spread, select(ok, other, 0) * spread, asked.failed)
    return Found(select(ok, beta, jnp.nan), *lax.stop_gradient(remarks))


def _question(
    objective: Objective,
    wanted: Array,
    blocks: tuple[Array, ...] | None,
    right: Array | None,
    kind: str,
) -> _Question:
    dtype = working_dtype(objective.reward.dtype)
    batch = jnp.broadcast_shapes(objective.batch_shape, wanted.shape)
    outcomes = (*batch, objective.num_outcomes)
    best, spread = (jnp.broadcast_to(x, batch) for x in _best_and_spread(objective))
    failed = jnp.broadcast_to(jnp.isnan(reference_limit(objective).log_probs[..., 0]), batch)
    level = ~failed & ~(spread > 0)
    usual = ~failed & ~level
    best, spread = lax.stop_gradient((select(usual, best, 0), select(usual, spread, 1)))
    given = jnp.broadcast_to(objective.reward.astype(dtype), outcomes)
    right = succeeds(given) if right is None else jnp.broadcast_to(right, outcomes)
    reward = (given - best[..., None]) / spread[..., None]
    log_ref = jnp.broadcast_to(objective.log_ref.astype(dtype), outcomes)
    problem = Objective.unchecked(
        reward, log_ref, jnp.ones(batch, dtype), objective.divergence, measure=True
    )
    goal = jnp.broadcast_to(wanted.astype(dtype), batch)
    goal = (goal - best) / spread if kind == "expected_reward" else goal
    measure = Measure(kind, reward, log_ref, blocks, right)
    return _Question(problem, measure, goal, best, spread, failed, level)


def _best_and_spread(objective: Objective) -> tuple[Array, Array]:
    """The highest reward that a target can reach, and how far below it the worst one lies."""
    reward, log_ref, _, divergence = broadcast_fields(objective)
    usable = (log_ref > -jnp.inf) & (reward > -jnp.inf)
    best = jnp.max(select(usable, reward, -jnp.inf), axis=-1)
    worst = jnp.min(select(usable, reward, jnp.inf), axis=-1)
    outside = jnp.max(select(jnp.isneginf(log_ref), reward, -jnp.inf), axis=-1)
    condenses = jnp.asarray(divergence.slope_at_infinity, reward.dtype) < jnp.inf
    condenses = jnp.broadcast_to(condenses, (*best.shape, 1))[..., 0]
    best = jnp.where(condenses, jnp.maximum(best, outside), best)
    return best, best - worst


def _scanned(asked: _Question, noise: Array) -> tuple[Array, ...]:
    """Of a scan from large to small β: the bracket of the first root, and a second one.

    Further whether the measure falls with β there, whether there is a root, and all it runs
    between.
    """
    dtype, batch = noise.dtype, noise.shape
    count = 2 * DECADES * _PER_DECADE + 1
    exponents = jnp.linspace(DECADES, -DECADES, count, dtype=dtype)
    points = jnp.exp(exponents * jnp.asarray(math.log(10.0), dtype))
    values = lax.map(lambda x: asked.measured(jnp.broadcast_to(x, batch)), points)
    excess = values - jnp.broadcast_to(asked.goal, values.shape)
    clear = jnp.abs(excess) > jnp.broadcast_to(noise, values.shape)
    signs = select(clear, jnp.sign(excess), 0)
    place = jnp.broadcast_to(jnp.arange(count).reshape(count, *[1] * len(batch)), values.shape)
    seen = lax.cummax(jnp.where(clear, place, -1), 0)
    before = jnp.concatenate([jnp.full((1, *batch), -1), seen[:-1]])
    last = jnp.take_along_axis(signs, jnp.maximum(before, 0), 0)
    changes = (before >= 0) & (signs * last < 0)
    there = jnp.any(changes, axis=0)
    first = jnp.argmax(changes, axis=0)
    again = changes & (place > jnp.broadcast_to(first, values.shape))
    other = select(jnp.any(again, axis=0), points[jnp.argmax(again, axis=0)], 0)
    before_first = jnp.take_along_axis(before, first[None], 0)[0]
    falls = jnp.take_along_axis(signs, first[None], 0)[0] > 0
    low = points[first]
    high = jnp.where(there, points[before_first], low)
    known = jnp.isfinite(values)
    least = jnp.min(select(known, values, jnp.inf), axis=0)
    most = jnp.max(select(known, values, -jnp.inf), axis=0)
    return low, high, other, falls, there, least, most
