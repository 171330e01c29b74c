"""The outcomes whose coordinate the search for the root follows, and the reference mass there."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import divide_exactly, paired_sums, two_sum
from kltarget.targets.discrete._coordinates import Coordinate


def supported_max(reward: Array, log_ref: Array) -> Array:
    """The best reward among outcomes of positive reference mass, ``-inf`` if there is none."""
    supported = jnp.where(log_ref > -jnp.inf, reward, jnp.full_like(reward, -jnp.inf))
    return jnp.max(supported, axis=-1, keepdims=True)


def anywhere(condition: Array) -> Array:
    return jnp.any(condition, axis=-1, keepdims=True)


COMFORTABLE = -16.0
"""Log-masses above this are summed as they are.

Where the normaliser or the mass of the best outcomes is smaller, log π_ref and r/β can cancel and
plain sums would lose digits (three of them at a reference mass of e^−800); those rows take a slower
path with compensated sums. Above it, 1.5·16 eps is what plain sums can lose.
"""


def scaled_gaps(reward: Array, best: Array, beta: Array) -> tuple[Array, Array]:
    """``v = (r − r_max)/β`` with a correction that doubles its precision."""
    gap, gap_low = two_sum(reward, -best)
    return divide_exactly(gap, gap_low, beta)


class LogMass(NamedTuple):
    """A log reference mass in two parts, a large logarithm and a small one."""

    pivot: Array
    log_ties: Array

    def times(self, log_u: Array) -> Array:
        """The log target mass at a log density ratio; large parts cancel first."""
        return (self.pivot + log_u) + self.log_ties


class Anchor(NamedTuple):
    best: Array
    """The best supported reward."""
    reward: Array
    """The reward measured from."""
    log_mass: LogMass
    """The reference mass there."""
    log_best: Array
    """The log reference mass of the best outcomes, to a few digits."""
    highest_slope: Array
    """A bound of the slope there, infinite where none is known."""


def find_anchor(
    levels: Coordinate,
    reward: Array,
    log_ref: Array,
    weight: Array,
    beta: Array,
    highest: Array,
) -> Anchor:
    """The outcomes whose coordinate is searched: those of the best reward, if at all likely."""

    def tied(reward: Array, weight: Array) -> tuple[Array, Array]:
        mass = jnp.where((reward - highest) / beta >= 0, weight, 0.0)
        return mass, jnp.zeros_like(mass)

    plain, _ = paired_sums(tied, reward, weight)

    def simple() -> tuple[Array, Array, Array, Array, Array]:
        endless = jnp.full_like(plain, jnp.inf)
        return highest, highest, endless, jnp.zeros_like(plain), jnp.log(plain)

    def compensated() -> tuple[Array, Array, Array, Array, Array]:
        visible = jnp.all(plain > float(jnp.finfo(plain.dtype).tiny) ** 0.5)
        anchor = best = lax.cond(visible, lambda: highest, lambda: supported_max(reward, log_ref))
        bound = jnp.full_like(plain, jnp.inf)
        if levels.by_slope:
            # The sum of two floats holds the slopes of a row as long as none exceeds 1/eps.
            limit = 0.3 / float(jnp.finfo(reward.dtype).eps)
            steepest = _steepest(levels, reward, log_ref, beta, best)
            anchor, bound = lax.cond(
                jnp.all(steepest <= limit),
                lambda: (best, steepest),
                lambda: (_nearest(levels, reward, log_ref, beta, best), bound),
            )

        def seen() -> tuple[Array, Array]:
            pivot = jnp.log(plain)

            def terms(reward: Array, log_ref: Array) -> tuple[Array, Array]:
                mass = jnp.where((reward - highest) / beta >= 0, jnp.exp(log_ref - pivot), 0.0)
                return mass, jnp.zeros_like(mass)

            return pivot, paired_sums(terms, reward, log_ref)[0]

        def unseen() -> tuple[Array, Array]:
            tied = jnp.where((reward - anchor) / beta == 0, log_ref, -jnp.inf)
            pivot = jnp.max(tied, axis=-1, keepdims=True)
            return pivot, jnp.exp(tied - pivot).sum(-1, keepdims=True)

        pivot, ties = lax.cond(visible & jnp.all(anchor == highest), seen, unseen)
        return best, anchor, bound, pivot, jnp.log(ties)

    likely = jnp.all(jnp.log(plain) >= COMFORTABLE)
    best, anchor, bound, *parts = lax.cond(likely, simple, compensated)
    return Anchor(best, anchor, LogMass(*parts), jnp.log(plain), bound)


def _steepest(levels: Coordinate, reward: Array, log_ref: Array, beta: Array, best: Array) -> Array:
    """A quick bound of the best outcome's slope.

    An outcome j alone bounds it by ``f′(1/π_ref(j)) − v_j``, as its own probability cannot exceed
    1; some of the outcomes will do.
    """
    some_reward, some_ref = sample(reward), sample(log_ref)
    usable = (some_ref > -jnp.inf) & (some_reward > -jnp.inf)
    own = levels.of(-jnp.where(usable, some_ref, 0.0)) - (some_reward - best) / beta
    return jnp.min(jnp.where(usable, own, jnp.inf), axis=-1, keepdims=True)


def sample(x: Array, every: int = 12) -> Array:
    """One in so many outcomes, in runs that lie together in memory; of a few all."""
    batch, runs = x.shape[:-1], x.shape[-1] // (every * _RUN)
    if runs < 32:
        return x
    long = x[..., : runs * every * _RUN].reshape(*batch, runs, every * _RUN)
    return long[..., :_RUN].reshape(*batch, runs * _RUN)


_RUN = 16


def _nearest(levels: Coordinate, reward: Array, log_ref: Array, beta: Array, best: Array) -> Array:
    """The reward from which all outcomes of relevant probability are near.

    Where f′(∞) is infinite and the best outcome very unlikely, its slope may be 1e12 while that of
    an outcome which the reference holds likely is 1: the sum of two floats cannot tell both. With
    the bound ``b_j = f′(1/π_ref(j)) − v_j`` of the best slope (:func:`_steepest`), every outcome of
    relevant probability is at most ``O(f′(1/π_ref))`` away from the j of the least
    ``b_j + f′(1/π_ref(j))``: near enough to keep its digits.
    """
    usable = (log_ref > -jnp.inf) & (reward > -jnp.inf)
    own = levels.of(-jnp.where(usable, log_ref, 0.0))
    bound = jnp.minimum(2 * own - (reward - best) / beta, jnp.finfo(reward.dtype).max)
    bound = jnp.where(usable, bound, jnp.inf)
    nearest = bound == jnp.min(bound, axis=-1, keepdims=True)
    return jnp.max(jnp.where(nearest, reward, -jnp.inf), axis=-1, keepdims=True)
