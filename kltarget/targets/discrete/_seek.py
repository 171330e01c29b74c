"""The search along a coordinate for the point at which all masses sum to 1.

A pass over the outcomes gives the mass of all but the anchor's ties, in groups, and its derivative;
a model of these (:mod:`kltarget.targets.discrete._levels`) says where to look next. Of few outcomes
it has one level besides the anchor's; of many it has a level for every dozen, whose own root is
sought in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import num_groups, two_sum
from kltarget.targets.discrete._anchor import LogMass, sample
from kltarget.targets.discrete._coordinates import Coordinate
from kltarget.targets.discrete._levels import Levels, between, seen_from, two_level_step

Masses = Callable[[Array, Array], tuple[Array, Array]]
"""From a coordinate in two parts to the masses of groups and their derivatives."""

Propose = Callable[[Array, Levels, Array, Array], Array]
"""From a coordinate, what the others are there and a bracket to a step inside of it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Search:
    """Where a search stands; every field but the last has shape ``[*batch, 1]``."""

    at: Array
    at_low: Array
    step: Array
    last: Array
    """The step that is left, by Newton's rule."""
    levels: Levels
    low: Array
    high: Array
    total: Array
    done: Array
    condensed: Array
    steps: Array


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of an equation before its root is sought."""

    coordinate: Coordinate
    log_mass: LogMass
    """Of the anchor's ties under the reference."""
    above: Array
    """Where the best outcome stands, as a gap from the anchor."""
    idle: Array
    """Rows that have no root."""
    limit: float
    """How far from 0 a coordinate is moderate."""

    def moderate(self, at: Array) -> Array:
        """Whether short formulas do, in all rows."""
        near = (jnp.abs(at) <= self.limit) & (self.above <= self.limit)
        highest = self.coordinate.place(at, 0.0, self.above, 0.0)[0]
        return jnp.all(near & (highest <= MODERATE))

    def rate(self, at: Array, u: Array, rate: Array | None = None) -> Array:
        """The derivative of ``log u``, from what ``Coordinate.quick`` gave."""
        return self.coordinate.rate(at, u) if rate is None else rate

    def seek(
        self,
        masses_at: Masses,
        propose: Propose,
        start: tuple[Array, Levels, Array, Array],
        tol: float,
        max_steps: int,
        capped: Array | bool = False,
    ) -> Search:
        """To within a last step of the root.

        Args:
            masses_at: the pass.
            propose: the model's step.
            start: a coordinate, what the others are there, and a bracket.
            tol: the size of the last step, of which d²/4 is left.
            max_steps: how many passes there may be.
            capped: rows that begin at the bracket's end and stay there if their mass is short.
        """
        coordinate, by_slope = self.coordinate, self.coordinate.by_slope
        at, first, bottom, top = start
        zero, no = jnp.zeros_like(at), jnp.zeros_like(self.idle)
        eps = float(jnp.finfo(at.dtype).eps)

        def advance(state: Search) -> Search:
            step = propose(state.at, state.levels, state.low, state.high)
            # At a kink (truncation) the model's steps can swing forever; bisection ends that.
            swings = (jnp.abs(step) > 0.5 * jnp.abs(state.step)) & (state.steps > 3)
            step = jnp.where(swings, between(state.low, state.high, by_slope) - state.at, step)
            at, at_low = two_sum(state.at, state.at_low + step)
            at_low = at_low if by_slope else zero
            at_end = capped & (state.steps == 0)
            at = jnp.where(at_end, top, at)
            masses, slopes = masses_at(at, at_low)
            mass, slope = (x.sum(-1, keepdims=True) for x in (masses, slopes))
            log_u, rate = coordinate.place(at, 0.0, zero, 0.0)
            held = jnp.exp(self.log_mass.times(log_u))
            total = mass + held
            short = total < 1
            low, high = jnp.where(short, at, state.low), jnp.where(short, state.high, at)
            newton = -jnp.log(total) * total / (slope + (held * rate if by_slope else held))
            near = jnp.abs(jnp.log(total) if by_slope else newton) <= tol
            closed = high - low <= 2 * eps * jnp.maximum(jnp.abs(high), 1)
            condensed = at_end & short
            last = jnp.where(condensed, zero, jnp.clip(newton, low - at, high - at))
            levels = seen_from(coordinate, at, masses, slopes)
            done, condensed = condensed | near | closed, condensed | state.condensed
            after = Search(
                at, at_low, step, last, levels, low, high, total, done, condensed, state.steps + 1
            )
            # Rows that are done stay where they are.
            return jax.tree.map(
                lambda new, old: jnp.where(state.done, old, new) if jnp.ndim(new) else new,
                after,
                state,
            )

        def unfinished(state: Search) -> Array:
            return jnp.any(~state.done) & (state.steps < max_steps)

        state = Search(
            at, zero, zero, zero, first, bottom, top, zero, self.idle, no, jnp.int32(0)
        )  # fmt: skip
        return lax.while_loop(unfinished, advance, state)

    def two_level(self, at: Array, other: Levels, low: Array, high: Array) -> Array:
        """The step to where the anchor's ties and one level have total mass 1."""
        return two_level_step(self.coordinate, self.log_mass, at, other, low, high)

    def many_level(self, at: Array, others: Levels, low: Array, high: Array) -> Array:
        """The step to where the anchor's ties and all levels have total mass 1."""
        coordinate = self.coordinate

        def masses_at(at: Array, at_low: Array) -> tuple[Array, Array]:
            def quick() -> tuple[Array, Array]:
                u, *rates = coordinate.quick(at, others.gap)
                lawful = jnp.isnan(others.power)
                power = jnp.where(lawful, 0.0, others.power)
                grown = jnp.exp(power * ((at - others.at) + at_low))
                mass = jnp.exp(others.log_weight) * jnp.where(lawful, u, grown)
                return mass, jnp.where(lawful, self.rate(at, u, *rates), power)

            def careful() -> tuple[Array, Array]:
                log_u, rate = others.place(coordinate, at, at_low)
                return jnp.exp(others.log_weight + log_u), rate

            mass, rate = lax.cond(self.moderate(at), quick, careful)
            return mass.sum(-1, keepdims=True), (mass * rate).sum(-1, keepdims=True)

        one = seen_from(coordinate, at, *masses_at(at, jnp.zeros_like(at)))
        found = self.seek(masses_at, self.two_level, (at, one, low, high), _MODEL_TOL, _MODEL_STEPS)
        step = found.at + found.last - at
        inside = (step > low - at) & (step < high - at)
        return jnp.where(inside, step, between(low, high, coordinate.by_slope) - at)

    def mean_level(self, gap: Array) -> Levels:
        """The others as one outcome at their mean distance, ``[*batch, 1]``."""
        far = jnp.isfinite(gap) & (gap < 0)
        log_weight = jnp.where(far, self._log_others(gap), -jnp.inf)
        gap = jnp.where(far, gap, -1.0)
        return Levels(jnp.zeros_like(gap), log_weight, gap, jnp.full_like(gap, jnp.nan))

    def sampled_levels(
        self, gaps: Callable[[Array], Array], reward: Array, log_ref: Array
    ) -> Levels:
        """The others as a sample of them, filled up to a level for each group."""
        groups, every = num_groups(reward.shape[-1], GROUP, MANY)
        gap, log_weight = gaps(sample(reward, every)), sample(log_ref, every)
        usable = (gap != 0) & (gap > -jnp.inf)
        drawn = jnp.where(usable, jnp.exp(log_weight), 0.0).sum(-1, keepdims=True)
        scale = self._log_others(drawn) - jnp.log(jnp.where(drawn > 0, drawn, 1.0))
        log_weight = jnp.where(usable, log_weight + scale, -jnp.inf)
        gap = jnp.where(usable, gap, -1.0)
        fill = [(0, 0)] * (gap.ndim - 1) + [(0, groups - gap.shape[-1])]
        log_weight = jnp.pad(log_weight, fill, constant_values=-jnp.inf)
        gap = jnp.pad(gap, fill, constant_values=-1.0)
        at = jnp.zeros_like(self.above)
        return Levels(at, log_weight, gap, jnp.full_like(gap, jnp.nan))

    def _log_others(self, like: Array) -> Array:
        held = jnp.exp(self.log_mass.times(jnp.zeros_like(like)))
        return jnp.log(jnp.maximum(1 - held, 0))


MODERATE = 40.0
"""Up to this log ratio, outcomes whose reference mass underflows count for nothing."""

MANY = 8192
"""Beyond this number of outcomes, groups of them are levels of the model, at most this number."""

GROUP = 12
"""Outcomes to a level. Of fewer the model is better, of more it is smaller."""

_MODEL_TOL = 0.01
_MODEL_STEPS = 20
