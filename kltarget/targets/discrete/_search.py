"""A target from the place of its best supported outcome, which is searched.

That scalar, its log density ratio or its slope (:mod:`kltarget.targets.discrete._coordinates`), is
free of units and at home at reference masses of e^−800, and with ``v = (r − r_max)/β`` the others'
distances, ``Σ π_ref u(place, v) = 1`` is an equation whose left side increases.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import two_sum
from kltarget._core.status import Status, flag
from kltarget.targets.discrete._anchor import Anchor, anywhere, find_anchor
from kltarget.targets.discrete._coordinates import Coordinate
from kltarget.targets.discrete._flat_pieces import several, shared_out
from kltarget.targets.discrete._found import Found, off_one, share_rounding
from kltarget.targets.discrete._levels import between
from kltarget.targets.discrete._polish import polished
from kltarget.targets.discrete._row import Row
from kltarget.targets.discrete._seek import Search, seek


def search(
    levels: Coordinate, reward: Array, log_ref: Array, beta: Array, highest: Array, least: Array
) -> Found:
    """The target, by its root along a coordinate.

    Args:
        levels: the coordinate.
        reward: shape ``[*batch, A]``.
        log_ref: shape ``[*batch, A]``.
        beta: shape ``[*batch, 1]``.
        highest: the best reward, shape ``[*batch, 1]``.
        least: a bound from below of the best outcome's log density ratio, shape ``[*batch, 1]``.
    """
    divergence, by_slope = levels.divergence, levels.by_slope
    eps = float(jnp.finfo(reward.dtype).eps)
    weight = jnp.exp(log_ref)
    anchor = find_anchor(levels, reward, log_ref, weight, beta, highest)
    empty = jnp.isneginf(anchor.best)
    bottom, top, capped = _bracket(levels, anchor, beta, highest, least)
    overwhelmed = ~(top < jnp.finfo(reward.dtype).max)
    idle = empty | overwhelmed | ~(highest < jnp.inf) | ~(beta > 0)
    row = Row.of(levels, reward, log_ref, weight, beta, anchor, idle)
    # A step of size d leaves an error of about d²/4; the last one is not checked by another pass,
    # but where slopes are polished.
    tol = eps**0.25 if by_slope and row.long else 2 * eps**0.5
    state = seek(row, bottom, top, capped, tol)
    at, at_low = two_sum(state.at, state.at_low + state.last)
    done = state.done
    off = jnp.isnan(state.total)
    if by_slope:
        rare = jnp.any(overwhelmed | ~(anchor.log_best >= _FINE))
        last = polished(row, at, at_low, rare)
        at, at_low, log_probs = last.at, last.at_low, last.log_probs
        off = off | jnp.isnan(last.error)

        def mended(log_probs: Array) -> Array:
            # Where the reference mass of all usable outcomes underflows, rewards count for nothing.
            usable = jnp.where(reward > -jnp.inf, log_ref, -jnp.inf)
            usable = usable - jnp.max(usable, axis=-1, keepdims=True)
            return share_rounding(jnp.where(overwhelmed, usable, log_probs), log_ref)

        log_probs = lax.cond(rare, mended, lambda x: x, log_probs)
    else:
        log_probs = row.place(at, at_low)
    if divergence._flats:
        zero = jnp.zeros_like(at)
        total = jnp.exp(log_probs).sum(-1, keepdims=True)
        jumps = ~(jnp.abs(total - 1) <= eps**0.75) & ~(state.condensed | idle)

        def shared() -> tuple[Array, Array]:
            return shared_out(
                lambda at: row.place(at, zero),
                bottom,
                top,
                lambda low, high: between(low, high, by_slope),
            )

        mixed, jump = lax.cond(jnp.any(jumps), shared, lambda: (log_probs, at))
        log_probs, done = jnp.where(jumps, mixed, log_probs), done | jumps
        at, at_low = jnp.where(jumps, jump, at), jnp.where(jumps, 0.0, at_low)
    slope = divergence._f_prime_at(at)
    if by_slope:
        slope = (at + at_low) + divergence._f_prime_at(jnp.zeros_like(at))
    multiplier = anchor.reward - beta * slope
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
        atoms = _condensed(levels, reward, log_ref, beta, highest, state)
        log_probs = jnp.where(atoms.where, atoms.log_probs, log_probs)
        multiplier = jnp.where(state.condensed, atoms.multiplier, multiplier)
        status = status | atoms.status
    # Among many the last pass has seen it, and another would take its time.
    return Found(log_probs, multiplier, status, off if row.long else off_one(log_probs))


class _Bracket(NamedTuple):
    bottom: Array
    top: Array
    capped: Array
    """Where nothing above the top is possible, not even if mass is missing."""


def _bracket(
    levels: Coordinate, anchor: Anchor, beta: Array, highest: Array, least: Array
) -> _Bracket:
    """Coordinates below and above the root, strictly.

    The best outcome gains, and the anchor's own probability cannot exceed 1.
    """
    best, above = anchor.best, (anchor.best - anchor.reward) / beta
    log_m = anchor.log_mass.times(jnp.zeros_like(beta))
    if levels.by_slope:
        bottom = 1.01 * levels.of(least) - 1 - 1.01 * above
        top = 1 + 1.01 * jnp.maximum(jnp.minimum(levels.of(-log_m), anchor.highest_slope), 0)
        return _Bracket(bottom, top, jnp.zeros(bottom.shape, bool))
    bottom, top = least - 1, 0.5 - log_m
    # Where the reference lacks a better outcome, log u_max cannot rise above the point at which
    # that outcome's density ratio is infinite.
    beyond = (highest > best) & (levels.divergence.slope_at_infinity < jnp.inf)
    v_out = jnp.where(beyond, (best - highest) / beta, -jnp.ones_like(best))
    cap, _ = levels.place(jnp.full_like(best, jnp.inf), 0.0, v_out, 0.0)
    capped = beyond & (cap <= top)
    top = jnp.where(capped, cap, top)
    return _Bracket(jnp.minimum(bottom, top - 1), top, capped)


class _Atoms(NamedTuple):
    where: Array
    log_probs: Array
    multiplier: Array
    status: Array


def _condensed(
    levels: Coordinate, reward: Array, log_ref: Array, beta: Array, highest: Array, state: Search
) -> _Atoms:
    """The best outcomes that the reference lacks, which hold what is missing in equal parts."""
    condensed, one = state.condensed, jnp.ones_like(beta)

    def count_atoms() -> Array:
        atoms = (reward == highest) & jnp.isneginf(log_ref)
        return atoms.sum(-1, keepdims=True).astype(reward.dtype)

    count = lax.cond(jnp.any(condensed), count_atoms, lambda: one)
    missing = jnp.where(condensed, 1 - state.total, one)
    slope = jnp.asarray(levels.divergence.slope_at_infinity, reward.dtype)
    slope = jnp.where(slope < jnp.inf, slope, jnp.zeros_like(slope))
    return _Atoms(
        condensed & (reward == highest) & jnp.isneginf(log_ref),
        jnp.log(missing) - jnp.log(count),
        highest - beta * slope,
        flag(condensed, Status.CONDENSED) | flag(condensed & (count > 1), Status.NOT_UNIQUE),
    )


_FINE = -32.0
"""Log ratios up to this size are rounded by no more than half of the accuracy that is promised."""
