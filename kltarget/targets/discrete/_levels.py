"""Two levels of reward in place of all outcomes, and where their masses sum to 1.

At a coordinate the outcomes besides the anchor's ties have a mass and its derivative; one outcome
that has both stands for them nearby. For two reward levels (verifiable rewards) that is the problem
itself.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget.targets.discrete._anchor import LogMass
from kltarget.targets.discrete._coordinates import Coordinate, Place


class Level(NamedTuple):
    """What the other outcomes are taken for around a coordinate, all of shape ``[*batch, 1]``."""

    at: Array
    """The coordinate."""
    log_weight: Array
    """The log reference mass at ``gap``; where ``power`` is a number, the log target mass."""
    gap: Array
    """``v``, the distance from the anchor's reward over β."""
    power: Array
    """NaN, or the rate at which the mass grows exponentially with the coordinate."""

    def place(self, coordinate: Coordinate, at: Array, at_low: Array | float) -> Place:
        """What ``log_weight`` gains at another coordinate, and the derivative."""
        log_u, rate = coordinate.place(at, at_low, self.gap, 0.0)
        lawful = jnp.isnan(self.power)
        grown = jnp.where(lawful, 0.0, self.power) * ((at - self.at) + at_low)
        return jnp.where(lawful, log_u, grown), jnp.where(lawful, rate, self.power)


def seen_from(coordinate: Coordinate, at: Array, mass: Array, slope: Array) -> Level:
    """The level that has this mass and derivative at a coordinate."""
    present = mass > 0
    some = jnp.where(present, mass, jnp.ones_like(mass))
    rate = jnp.where(present, slope / some, jnp.ones_like(mass))
    v = coordinate.gap(at, rate)
    log_u, _ = coordinate.place(at, 0.0, v, 0.0)
    fits = jnp.isfinite(v) & jnp.isfinite(log_u) & ((v < 0) | coordinate.by_slope)
    log_weight = jnp.log(some) - jnp.where(fits, log_u, jnp.zeros_like(log_u))
    return Level(
        at,
        jnp.where(present, log_weight, -jnp.inf),
        jnp.where(fits, v, -jnp.ones_like(v)),
        jnp.where(fits, jnp.full_like(rate, jnp.nan), rate),
    )


def mean_level(log_mass: LogMass, gap: Array) -> Level:
    """The others as one outcome at their mean distance from the anchor."""
    far = jnp.isfinite(gap) & (gap < 0)
    held = jnp.exp(log_mass.times(jnp.zeros_like(gap)))
    log_weight = jnp.where(far, jnp.log(jnp.maximum(1 - held, 0)), -jnp.inf)
    gap = jnp.where(far, gap, -1.0)
    return Level(jnp.zeros_like(gap), log_weight, gap, jnp.full_like(gap, jnp.nan))


def between(low: Array, high: Array, by_slope: bool) -> Array:
    """The coordinate to try next where nothing better is known."""
    middle = 0.5 * low + 0.5 * high
    if not by_slope:
        return middle
    # Slopes span hundreds of orders of magnitude, on both sides of 0: halve their logarithms, until
    # these have no digits left to tell them apart.
    wide = high - low > jnp.abs(middle)
    return jnp.where(wide, jnp.sinh(0.5 * (jnp.arcsinh(low) + jnp.arcsinh(high))), middle)


def two_level_step(
    coordinate: Coordinate, log_mass: LogMass, at: Array, other: Level, low: Array, high: Array
) -> Array:
    """The step to where the anchor's outcomes and one other level have total mass 1.

    The anchor's are of reference mass ``log_mass`` and exact. Outside the bracket the step falls
    back to bisection.
    """
    zero = jnp.zeros_like(at)

    def total_at(step: Array) -> tuple[Array, Array]:
        """Logarithm of the total mass after a step, and its derivative."""
        if coordinate.by_slope:  # a slope of 1e10 must not swallow a step of 1
            log_u_anchor, own = coordinate.place(at, step, zero, 0.0)
            log_best = log_mass.times(log_u_anchor)
            log_u, local = other.place(coordinate, at, step)
        else:
            log_best, own = log_mass.times(at) + step, jnp.ones_like(step)
            log_u, local = other.place(coordinate, at + step, 0.0)
        present = other.log_weight > -jnp.inf
        log_rest = jnp.where(present, other.log_weight + log_u, -jnp.inf)
        log_total = jnp.logaddexp(log_best, log_rest)
        share = jnp.where(log_rest > -jnp.inf, jnp.exp(log_rest - log_total), 0.0)
        return log_total, (1 - share) * own + jnp.where(share > 0, share * local, zero)

    def improve(_: int, search: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, low, high = search
        log_total, local = total_at(step)
        low, high = jnp.where(log_total < 0, step, low), jnp.where(log_total < 0, high, step)
        # Mass is nearly linear in the slope, its logarithm in the logarithm of the ratio.
        by_slope = coordinate.by_slope
        excess = -jnp.expm1(-jnp.maximum(log_total, -30.0)) if by_slope else log_total
        newton = step - excess / local
        inside = (newton >= low) & (newton <= high)  # it stays where it has converged
        middle = between(at + low, at + high, by_slope) - at
        return jnp.where(inside, newton, middle), low, high

    below, above = low - at, high - at
    step, _, _ = lax.fori_loop(0, _STEPS, improve, (zero, below, above))
    inside = (step > below) & (step < above)
    return jnp.where(inside, step, between(low, high, coordinate.by_slope) - at)


_STEPS = 12
