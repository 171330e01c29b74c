"""An equation ``Σ π_ref u = 1`` as its root is sought: passes over the outcomes.

A pass is what the search costs. What no coordinate changes is computed once and kept in memory, the
reference's masses first of all; what is left to a pass is best one short formula, for compilers
compute anew inside of a sum what its two terms have in common. Where that is costly, it is kept
too: operands of a conditional stay in memory.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import MANY, in_parts, paired_sums, paired_sums_in_parts, two_sum
from kltarget.targets.discrete._anchor import Anchor, LogMass, scaled_gaps
from kltarget.targets.discrete._coordinates import Coordinate

Sums = tuple[Array, Array]
"""The mass of all but the anchor's ties, and its derivative, ``[*batch, 1]``."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known before the root is sought, ``[*batch, 1]`` but for arrays over outcomes."""

    coordinate: Coordinate
    reward: Array
    log_ref: Array
    beta: Array
    anchor: Array
    """The reward measured from."""
    log_mass: LogMass
    """Of the anchor's ties under the reference."""
    above: Array
    """Where the best outcome stands, as a gap from the anchor."""
    idle: Array
    """Rows that have no root."""
    weight: Array
    """The reference's masses, shape ``[*batch, A]``."""
    held: Array
    """What short formulas take of an outcome's reward, shape ``[*batch, A]``."""

    @classmethod
    def of(
        cls,
        coordinate: Coordinate,
        reward: Array,
        log_ref: Array,
        weight: Array,
        beta: Array,
        anchor: Anchor,
        idle: Array,
    ) -> Row:
        above = (anchor.best - anchor.reward) / beta
        row = cls(
            coordinate,
            reward,
            log_ref,
            beta,
            anchor.reward,
            anchor.log_mass,
            above,
            idle,
            weight,
            reward,
        )
        if coordinate.prepares:
            row = dataclasses.replace(row, held=coordinate.prepared(row.plain_gaps(reward)))
        return row

    @property
    def long(self) -> bool:
        return self.reward.shape[-1] > MANY

    def plain_gaps(self, reward: Array) -> Array:
        # Better outcomes without reference mass are clipped: their mass is 0 anyway.
        return jnp.minimum((reward - self.anchor) / self.beta, self.above)

    def gaps(self, reward: Array) -> tuple[Array, Array | float]:
        if not self.coordinate.by_slope:
            return self.plain_gaps(reward), 0.0
        v, v_low = scaled_gaps(reward, self.anchor, self.beta)
        return jnp.minimum(v, self.above), v_low

    def moderate(self, at: Array) -> Array:
        """Whether short formulas do, in all rows."""
        eps = float(jnp.finfo(at.dtype).eps)
        # Slopes of one float are off by eps times this, which long rows mend in the end.
        limit = eps**-0.75 if self.long else 0.3 / eps**0.5
        limit = limit if self.coordinate.by_slope else MODERATE
        near = (jnp.abs(at) <= limit) & (self.above <= limit)
        return jnp.all(near) & self.fits(at)

    def fits(self, at: Array) -> Array:
        """Whether masses are products of floats, in all rows."""
        return jnp.all(self.coordinate.place(at, 0.0, self.above, 0.0)[0] <= MODERATE)

    def sums(self, at: Array, at_low: Array) -> Sums:
        """A pass."""
        levels = self.coordinate

        def input_of(held: Array) -> Array:
            return held if levels.prepares else self.plain_gaps(held)

        def short(weight: Array, held: Array, *kept: Array) -> Sums:
            x = input_of(held)
            u, *slopes = kept or levels.quick(at, x)
            others = jnp.where(x != 0, weight, 0.0)
            return others * u, others * levels.slope(at, x, u, *slopes)

        def careful(reward: Array, log_ref: Array) -> Sums:
            v, v_low = self.gaps(reward)
            log_u, rate = levels.place(at, at_low, v, v_low)
            mass = jnp.where(v != 0, jnp.exp(log_ref + log_u), 0.0)
            return mass, mass * rate

        rare = paired_sums_in_parts if self.long else paired_sums
        kept = levels.quick(at, input_of(self.held)) if levels.costly else ()
        return lax.cond(
            self.moderate(at),
            lambda *kept: paired_sums(short, self.weight, self.held, *kept),
            lambda *_: rare(careful, self.reward, self.log_ref),
            *kept,
        )

    def slopes(self, at: Array, at_low: Array) -> Array:
        """Of all outcomes, rounded to a float, where the coordinate is the anchor's."""
        v, v_low = self.gaps(self.reward)
        s, low = two_sum(at, v)
        return s + (low + (v_low + at_low))

    def place(self, at: Array, at_low: Array) -> Array:
        """Log-probabilities at a coordinate."""

        def placed(reward: Array, log_ref: Array) -> Array:
            v, v_low = self.gaps(reward)
            log_u, rate = self.coordinate.place(at, at_low, v, v_low)
            log_probs = log_ref + log_u
            return log_probs if self.coordinate.by_slope else log_probs + rate * at_low

        if self.long and self.coordinate.by_slope:  # rare, see _polish.py
            return in_parts(placed, self.reward, self.log_ref)
        return placed(self.reward, self.log_ref)


MODERATE = 40.0
"""Up to this log ratio, outcomes whose reference mass underflows count for nothing."""
