"""The root behind a target: the multiplier that makes its probabilities sum to 1.

The scalar searched is the place of the best supported outcome, its log density ratio or its slope
(:mod:`kltarget.targets.discrete._coordinates`): free of units, at home at reference masses of
e^−800, and with ``v = (r − r_max)/β`` the others' distances, ``Σ π_ref u(place, v) = 1`` is an
equation whose left side increases.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import grouped_sums, paired_sum, two_sum
from kltarget._core.status import Status, flag
from kltarget.divergences import Divergence
from kltarget.targets.discrete._anchor import anywhere, find_anchor, scaled_gaps
from kltarget.targets.discrete._coordinates import Coordinate, coordinate
from kltarget.targets.discrete._flat_pieces import several, shared_out
from kltarget.targets.discrete._levels import between
from kltarget.targets.discrete._marginal import marginal_root
from kltarget.targets.discrete._seek import GROUP, MANY, MODERATE, Row


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


def root(
    divergence: Divergence,
    reward: Array,
    log_ref: Array,
    beta: Array,
    highest: Array,
    measure: bool,
    side: int | None = None,
) -> Found:
    """The coordinate of the best outcome at which ``Σπ = 1``, and the target there.

    ``side`` is that of a traced α, if it is known (:func:`side_of`).
    """
    # No ratio exceeds the best outcome's, which is thus at least 1 over the reference's mass.
    least = jnp.zeros_like(beta)
    if measure:
        least = -jnp.maximum(jax.nn.logsumexp(log_ref, axis=-1, keepdims=True), 0)
    gamma = getattr(divergence, "_gamma", 0.0)
    if not isinstance(gamma, jax.Array):
        if side_of(gamma, measure) == 2:
            return _steep(divergence, gamma, reward, log_ref, beta)
        return _search(coordinate(divergence), reward, log_ref, beta, highest, least)

    # α is traced: it may lie on either side of reverse KL, where coordinates meet, or beyond χ².
    def part(index: int, gamma: Array) -> Found:
        if index == 2:
            return _steep(divergence, gamma, reward, log_ref, beta)
        chosen = coordinate(divergence, below=index == 0)
        return _search(
            dataclasses.replace(chosen, gamma=gamma), reward, log_ref, beta, highest, least
        )

    if side is not None:
        return part(side, gamma)
    which = jnp.where(gamma < 0, 0, jnp.where(gamma <= _steepest_power(measure), 1, 2))
    parts = [
        functools.partial(part, k, jnp.where(which == k, gamma, jnp.full_like(gamma, harmless)))
        for k, harmless in enumerate((-1.0, 0.0, 2.0))
    ]
    if jnp.ndim(gamma) == 0:
        return lax.switch(which, parts)
    fields = zip(*(solved() for solved in parts), strict=True)
    return Found(*(lax.select_n(jnp.broadcast_to(which, x.shape), x, *y) for x, *y in fields))


def side_of(gamma: float, measure: bool) -> int:
    """Which of three ways the root of a power divergence is sought."""
    return 0 if gamma < 0 else 1 if gamma <= _steepest_power(measure) else 2


def _steepest_power(measure: bool) -> float:
    # Beyond it the outcome next to truncation has more to say than the best one; from a reference
    # of large mass all may be next to truncation.
    return 0.5 if measure else 1.0


def _steep(divergence: Any, gamma: Any, reward: Array, log_ref: Array, beta: Array) -> Found:
    """The target of a power divergence with γ > 1, from the outcome next to truncation."""
    scale = jnp.asarray(divergence._scale, beta.dtype)
    found = marginal_root(reward, log_ref, beta * scale, gamma)
    usable = (log_ref > -jnp.inf) & (reward > -jnp.inf)
    log_probs = jnp.where(usable, _share_rounding(log_ref + found.log_u, log_ref), -jnp.inf)
    multiplier = found.reward - beta * (scale * found.slope + divergence._linear)
    empty, lost = ~anywhere(usable), anywhere(usable & jnp.isneginf(log_probs))
    status = flag(empty, Status.EMPTY_SUPPORT) | flag(lost, Status.TRUNCATED)
    return Found(log_probs, multiplier, status, off_one(log_probs))


def _search(
    levels: Coordinate, reward: Array, log_ref: Array, beta: Array, highest: Array, least: Array
) -> Found:
    divergence, by_slope = levels.divergence, levels.by_slope
    finfo = jnp.finfo(reward.dtype)
    eps = float(finfo.eps)
    # A step of size d leaves an error of about d²/4; the last one is not checked by another pass.
    tol = 2 * eps**0.5
    zero = jnp.zeros_like(beta)
    best, anchor, log_mass, log_best, bound = find_anchor(levels, reward, log_ref, beta, highest)
    above = (best - anchor) / beta  # where the best outcome stands; 0 if it is the anchor
    empty = jnp.isneginf(best)

    def gaps(reward: Array) -> tuple[Array, Array | float]:
        # Better outcomes without reference mass are clipped: their mass is 0 anyway.
        if not by_slope:
            return jnp.minimum((reward - anchor) / beta, above), 0.0
        v, v_low = scaled_gaps(reward, anchor, beta)
        return jnp.minimum(v, above), v_low

    # Coordinates below and above the root, strictly: the best outcome gains, and the anchor's own
    # probability cannot exceed 1.
    log_m = log_mass.times(zero)
    bottom, top = least - 1, 0.5 - log_m
    if by_slope:
        bottom = 1.01 * levels.of(least) - 1 - 1.01 * above
        top = 1 + 1.01 * jnp.maximum(jnp.minimum(levels.of(-log_m), bound), 0)
    # Where the reference lacks a better outcome, log u_max cannot rise above the point at which
    # that outcome's density ratio is infinite.
    capped = jnp.zeros_like(empty)
    if not by_slope:
        beyond = (highest > best) & (divergence.slope_at_infinity < jnp.inf)
        v_out = jnp.where(beyond, (best - highest) / beta, -jnp.ones_like(best))
        cap, _ = levels.place(jnp.full_like(best, jnp.inf), 0.0, v_out, 0.0)
        capped = beyond & (cap <= top)
        top = jnp.where(capped, cap, top)
        bottom = jnp.minimum(bottom, top - 1)

    no = jnp.zeros_like(empty)
    overwhelmed = ~(top < finfo.max)
    idle = empty | overwhelmed | ~(highest < jnp.inf) | ~(beta > 0)
    row = Row(levels, log_mass, above, idle, 0.3 / eps**0.5 if by_slope else MODERATE)
    # Where there are many outcomes, some stand together for one level in the search's model.
    grouped = reward.shape[-1] > MANY and levels.has_gaps

    def summed(terms: Callable[..., tuple[Array, Array]], *arrays: Array) -> tuple[Array, Array]:
        if grouped:
            return grouped_sums(terms, GROUP, *arrays)
        return paired_sum(*terms(*arrays))

    def plain_gaps(reward: Array) -> Array:
        return jnp.minimum((reward - anchor) / beta, above)

    def masses_at(at: Array, at_low: Array) -> tuple[Array, Array]:
        # Kept in memory: inside of a sum, compilers would compute it anew for each of its uses.
        v = plain_gaps(reward)
        u, *rates = levels.quick(at, v)
        kept = (jnp.where(v != 0, u, 0.0), *rates)

        def quick(log_ref: Array, *kept: Array) -> tuple[Array, Array]:
            mass = jnp.exp(log_ref) * kept[0]
            return mass, mass * row.rate(at, *kept)

        def careful(reward: Array, log_ref: Array) -> tuple[Array, Array]:
            v, v_low = gaps(reward)
            log_u, rate = levels.place(at, at_low, v, v_low)
            mass = jnp.where(v != 0, jnp.exp(log_ref + log_u), 0.0)
            return mass, mass * rate

        sums = lax.cond(
            row.moderate(at),
            lambda *kept: summed(quick, log_ref, *kept),
            lambda *_: summed(careful, reward, log_ref),
            *kept,
        )
        while grouped and sums[0].shape[-1] > MANY:
            sums = grouped_sums(lambda *x: x, GROUP, *sums)
        return sums

    if grouped:
        first, propose = row.sampled_levels(plain_gaps, reward, log_ref), row.many_level
    else:
        mean_gap = (reward.mean(-1, keepdims=True) - anchor) / beta
        first, propose = row.mean_level(mean_gap), row.two_level
    start = (zero, first, bottom, top)
    state = row.seek(masses_at, propose, start, tol, _MAX_STEPS, capped)
    at, at_low = two_sum(state.at, state.at_low + state.last)

    def place(at: Array, at_low: Array, reward: Array = reward) -> Array:
        v, v_low = gaps(reward)
        log_u, rate = levels.place(at, at_low, v, v_low)
        log_probs = log_ref + log_u
        return log_probs if by_slope else log_probs + rate * at_low

    log_probs = place(at, at_low)
    if by_slope:

        def polish(last: _Polish) -> _Polish:
            def terms(log_probs: Array, log_ref: Array) -> tuple[Array, Array]:
                present = log_probs > -jnp.inf
                log_u = jnp.where(present, log_probs - log_ref, 0.0)
                probs = jnp.exp(log_probs)
                return probs, probs * levels.rate_at(log_u)

            sums = lax.cond(
                jnp.all(idle),
                lambda x: tuple(jnp.ones_like(y) for y in summed(terms, x, log_ref)),
                lambda x: summed(terms, x, log_ref),
                last.log_probs,
            )
            total, slope = (x.sum(-1, keepdims=True) for x in sums)
            error = jnp.log(total)
            size = jnp.abs(error)
            at, at_low = two_sum(last.at, last.at_low - error * total / slope)
            settled = (size <= tol) & (size > 0.5 * last.error)  # only rounding is left
            done = (size <= eps**0.75) | settled
            # The gaps are to be computed again: kept, they would be two more arrays.
            log_probs = place(at, at_low, lax.optimization_barrier(reward))
            return _Polish(at, at_low, log_probs, size, done, last.steps + 1)

        # Newton's last steps, from all digits of the slopes. One outcome next to its truncation
        # bends the equation; among many it counts for little, and one step does.
        last = _Polish(at, at_low, log_probs, jnp.full_like(zero, jnp.inf), no, jnp.int32(0))
        if grouped:
            last = polish(last)
        else:
            last = lax.while_loop(
                lambda last: jnp.any(~(last.done | idle)) & (last.steps < _MAX_POLISH), polish, last
            )
        at, at_low, log_probs = last.at, last.at_low, last.log_probs

        def mended(log_probs: Array) -> Array:
            # Where the reference mass of all usable outcomes underflows, rewards count for nothing.
            usable = jnp.where(reward > -jnp.inf, log_ref, -jnp.inf)
            usable = usable - jnp.max(usable, axis=-1, keepdims=True)
            return _share_rounding(jnp.where(overwhelmed, usable, log_probs), log_ref)

        rare = jnp.any(overwhelmed | ~(log_best >= _FINE))
        log_probs = lax.cond(rare, mended, lambda x: x, log_probs)
    done = state.done
    if divergence._flats:
        total = jnp.exp(log_probs).sum(-1, keepdims=True)
        jumps = ~(jnp.abs(total - 1) <= eps**0.75) & ~(state.condensed | idle)

        def shared() -> tuple[Array, Array]:
            return shared_out(
                lambda at: place(at, zero),
                bottom,
                top,
                lambda low, high: between(low, high, by_slope),
            )

        mixed, jump = lax.cond(jnp.any(jumps), shared, lambda: (log_probs, at))
        log_probs, done = jnp.where(jumps, mixed, log_probs), done | jumps
        at, at_low = jnp.where(jumps, jump, at), jnp.where(jumps, 0.0, at_low)

    def count_atoms() -> Array:
        atoms = (reward == highest) & jnp.isneginf(log_ref)
        return atoms.sum(-1, keepdims=True).astype(reward.dtype)

    slope = (at + at_low) + divergence._f_prime_at(zero) if by_slope else divergence._f_prime_at(at)
    multiplier = anchor - beta * slope
    if by_slope:
        multiplier = jnp.where(overwhelmed, -jnp.inf, multiplier)
    status = flag(empty, Status.EMPTY_SUPPORT) | flag(~done, Status.NOT_CONVERGED)
    if divergence._flats:
        usable = (log_ref > -jnp.inf) & (reward > -jnp.inf)
        log_ratio = jnp.where(usable, log_probs - log_ref, 0.0)
        ties = several(divergence, log_ratio, (reward - multiplier) / beta, usable)
        status = status | flag(ties & ~state.condensed, Status.NOT_UNIQUE)
    if by_slope or divergence._flats:
        lost = jnp.isneginf(log_probs) & (log_ref > -jnp.inf) & (reward > -jnp.inf)
        status = status | flag(anywhere(lost) & (beta > 0), Status.TRUNCATED)
    if not by_slope:
        count = lax.cond(jnp.any(state.condensed), count_atoms, lambda: jnp.ones_like(best))
        missing = jnp.where(state.condensed, 1 - state.total, jnp.ones_like(best))
        log_atom = jnp.log(missing) - jnp.log(count)
        atoms = state.condensed & (reward == highest) & jnp.isneginf(log_ref)
        log_probs = jnp.where(atoms, jnp.broadcast_to(log_atom, log_probs.shape), log_probs)
        slope = jnp.asarray(divergence.slope_at_infinity, reward.dtype)
        slope = jnp.where(slope < jnp.inf, slope, jnp.zeros_like(slope))
        multiplier = jnp.where(state.condensed, highest - beta * slope, multiplier)
        status = (
            status
            | flag(state.condensed, Status.CONDENSED)
            | flag(state.condensed & (count > 1), Status.NOT_UNIQUE)
        )
    # Among many the last pass has seen it, and another would take its time.
    off = jnp.isnan(state.total) if grouped else off_one(log_probs)
    return Found(log_probs, multiplier, status, off)


def _share_rounding(log_probs: Array, log_ref: Array) -> Array:
    """Probabilities that sum to 1, by the same relative change of every log ratio.

    Log ratios of several hundred are rounded by more than log-probabilities near 0 may be.
    """
    log_u = jnp.where(log_probs > -jnp.inf, log_probs - log_ref, 0.0)
    probs = jnp.exp(log_probs)
    total = probs.sum(-1, keepdims=True)
    mean = (probs * log_u).sum(-1, keepdims=True) / total
    large = mean > 1
    return log_probs - jnp.where(large, jnp.log(total) / jnp.where(large, mean, 1.0), 0.0) * log_u


_FINE = -32.0
"""Log ratios up to this size are rounded by no more than half of the accuracy that is promised."""

_MAX_POLISH = 4

_MAX_STEPS = 100
"""Bisection alone closes the widest bracket, e^±1000 to the last bit of a double, in about 65."""


class _Polish(NamedTuple):
    at: Array
    at_low: Array
    log_probs: Array
    error: Array
    done: Array
    steps: Array
