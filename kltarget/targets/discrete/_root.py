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

from kltarget._core.numerics import paired_sum, two_sum
from kltarget._core.status import Status, flag
from kltarget.divergences import Divergence
from kltarget.targets.discrete._anchor import LogMass, anywhere, find_anchor, scaled_gaps
from kltarget.targets.discrete._coordinates import Coordinate, coordinate
from kltarget.targets.discrete._flat_pieces import several, shared_out
from kltarget.targets.discrete._marginal import marginal_root

Masses = Callable[[Array, Array], tuple[Array, Array]]
"""From a coordinate in two parts to a mass and its derivative."""


class Solution(NamedTuple):
    """Log-probabilities ``[*batch, A]``; multiplier and status bits ``[*batch, 1]``."""

    log_probs: Array
    multiplier: Array
    status: Array


def root(
    divergence: Divergence,
    reward: Array,
    log_ref: Array,
    beta: Array,
    highest: Array,
    measure: bool,
) -> Solution:
    """The coordinate of the best outcome at which ``Σπ = 1``, and the target there."""
    # No ratio exceeds the best outcome's, which is thus at least 1 over the reference's mass.
    least = jnp.zeros_like(beta)
    if measure:
        least = -jnp.maximum(jax.nn.logsumexp(log_ref, axis=-1, keepdims=True), 0)
    # Beyond this power the outcome next to truncation has more to say; from a reference of large
    # mass all may be next to it.
    steep = 0.5 if measure else 1.0
    gamma = getattr(divergence, "_gamma", 0.0)
    if not isinstance(gamma, jax.Array):
        if gamma > steep:
            return _steep(divergence, gamma, reward, log_ref, beta)
        return _search(coordinate(divergence), reward, log_ref, beta, highest, least)

    # α is traced: it may lie on either side of reverse KL, where coordinates meet, or beyond χ².
    def part(index: int, harmless: float) -> Solution:
        here = jnp.where(which == index, gamma, jnp.full_like(gamma, harmless))
        if index == 2:
            return _steep(divergence, here, reward, log_ref, beta)
        chosen = coordinate(divergence, below=index == 0)
        chosen = dataclasses.replace(chosen, gamma=here)
        return _search(chosen, reward, log_ref, beta, highest, least)

    which = jnp.where(gamma < 0, 0, jnp.where(gamma <= steep, 1, 2))
    parts = [functools.partial(part, *x) for x in enumerate((-1.0, 0.0, 2.0))]
    if jnp.ndim(gamma) == 0:
        return lax.switch(which, parts)
    fields = zip(*(solved() for solved in parts), strict=True)
    return Solution(*(lax.select_n(jnp.broadcast_to(which, x.shape), x, *y) for x, *y in fields))


def _steep(divergence: Any, gamma: Any, reward: Array, log_ref: Array, beta: Array) -> Solution:
    """The target of a power divergence with γ > 1, from the outcome next to truncation."""
    scale = jnp.asarray(divergence._scale, beta.dtype)
    found = marginal_root(reward, log_ref, beta * scale, gamma)
    usable = (log_ref > -jnp.inf) & (reward > -jnp.inf)
    log_probs = jnp.where(usable, _share_rounding(log_ref + found.log_u, log_ref), -jnp.inf)
    multiplier = found.reward - beta * (scale * found.slope + divergence._linear)
    empty, lost = ~anywhere(usable), anywhere(usable & jnp.isneginf(log_probs))
    status = flag(empty, Status.EMPTY_SUPPORT) | flag(lost, Status.TRUNCATED)
    return Solution(log_probs, multiplier, status)


def _search(
    levels: Coordinate, reward: Array, log_ref: Array, beta: Array, highest: Array, least: Array
) -> Solution:
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

    def rest(reward: Array, log_ref: Array, at: Array, at_low: Array) -> tuple[Array, Array]:
        """Target mass on all but the anchor's ties, and its derivative in the coordinate."""

        def fast() -> tuple[Array, Array]:
            v = jnp.minimum((reward - anchor) / beta, above)
            u, rate = levels.quick(at, v)
            mass = jnp.where(v != 0, jnp.exp(log_ref) * u, 0.0)
            return paired_sum(mass, mass * rate)

        def careful() -> tuple[Array, Array]:
            v, v_low = gaps(reward)
            log_u, rate = levels.place(at, at_low, v, v_low)
            mass = jnp.where(v != 0, jnp.exp(log_ref + log_u), 0.0)
            return paired_sum(mass, mass * rate)

        limit = 0.3 / eps**0.5 if by_slope else _QUICK
        easy = (jnp.abs(at) <= limit) & (above <= limit)
        return lax.cond(jnp.all(easy), fast, careful)

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

    # The first guess: the others as one outcome at their mean distance.
    mean_gap = (reward.mean(-1, keepdims=True) - anchor) / beta
    log_others = jnp.log(jnp.maximum(1 - jnp.exp(log_m), 0))
    far = jnp.isfinite(mean_gap) & (mean_gap < 0)
    log_weight = jnp.where(far, log_others, jnp.full_like(zero, -jnp.inf))
    v, lawless = jnp.where(far, mean_gap, -jnp.ones_like(zero)), jnp.full_like(zero, jnp.nan)
    guess, _ = _two_level(levels, zero, log_mass, log_weight, v, lawless, bottom, top)
    no = jnp.zeros_like(empty)
    overwhelmed = ~(top < finfo.max)
    idle = empty | overwhelmed | ~(highest < jnp.inf) | ~(beta > 0)

    def seek(others: Masses, start: Array, tol: float, max_steps: int) -> _Search:
        """From a start to within a last step of the root, given the mass of the others."""

        def advance(state: _Search) -> _Search:
            at, at_low = two_sum(state.at, state.at_low + state.step)
            at_low = at_low if by_slope else zero
            mass, slope = others(at, at_low)
            log_u, _ = levels.place(at, 0.0, zero, 0.0)
            total = mass + jnp.exp(log_mass.times(log_u))
            short = total < 1
            low = jnp.where(short, at, state.low)
            high = jnp.where(short, state.high, at)
            condensed = (state.steps == 0) & capped & (at == top) & short
            step, newton = _next(levels, log_mass, at, mass, slope, low, high)
            near = jnp.abs(jnp.log(total) if by_slope else newton) <= tol
            # At a kink (truncation) the model's steps can swing forever; bisection ends that.
            swings = (jnp.abs(step) > 0.5 * jnp.abs(state.step)) & ~near & (state.steps > 3)
            step = jnp.where(swings, _between(low, high, by_slope) - at, step)
            step = jnp.where(near, newton, step)
            step = jnp.where(condensed, zero, step)
            closed = high - low <= 2 * eps * jnp.maximum(jnp.abs(high), 1)
            done = condensed | near | closed
            condensed = condensed | state.condensed
            after = _Search(at, at_low, step, low, high, total, done, condensed, state.steps + 1)
            # Rows that are done stay where they are.
            return jax.tree.map(
                lambda new, old: jnp.where(state.done, old, new) if jnp.ndim(new) else new,
                after,
                state,
            )

        def unfinished(state: _Search) -> Array:
            return jnp.any(~state.done) & (state.steps < max_steps)

        state = _Search(start, zero, zero, bottom, top, zero, idle, no, jnp.int32(0))
        return lax.while_loop(unfinished, advance, state)

    stride = reward.shape[-1] // _SAMPLE
    if stride > 1:
        # A sample of the outcomes gives a start that saves passes over all of them.
        some_reward, some_ref = reward[..., ::stride], log_ref[..., ::stride]
        apart = (some_reward - anchor) / beta != 0
        drawn = jnp.where(apart, jnp.exp(some_ref), 0.0).sum(-1, keepdims=True)
        scale = jnp.exp(log_others) / jnp.where(drawn > 0, drawn, 1.0)

        def sampled(at: Array, at_low: Array) -> tuple[Array, Array]:
            mass, slope = rest(some_reward, some_ref, at, at_low)
            return scale * mass, scale * slope

        rough = seek(sampled, guess, 0.01, 20)
        guess = jnp.clip(rough.at + rough.step, bottom, top)
    start = jnp.where(capped, top, guess)
    state = seek(functools.partial(rest, reward, log_ref), start, tol, _MAX_STEPS)
    at, at_low = two_sum(state.at, state.at_low + state.step)

    def place(at: Array, at_low: Array) -> tuple[Array, Array]:
        v, v_low = gaps(reward)
        log_u, rate = levels.place(at, at_low, v, v_low)
        log_probs = log_ref + log_u
        return (log_probs if by_slope else log_probs + rate * at_low), rate

    if by_slope:

        def polish(last: _Polish) -> _Polish:
            log_probs, rate = place(last.at, last.at_low)
            probs = jnp.exp(log_probs)
            total, slope = paired_sum(probs, probs * rate)
            error = jnp.log(total)
            size = jnp.abs(error)
            at, at_low = two_sum(last.at, last.at_low - error * total / slope)
            settled = (size <= tol) & (size > 0.5 * last.error)  # only rounding is left
            return _Polish(at, at_low, size, (size <= eps**0.75) | settled, last.steps + 1)

        # Newton's last steps, from all digits of the slopes. One outcome next to its truncation
        # bends the equation; among many it counts for little, and one step does.
        last = _Polish(at, at_low, jnp.full_like(zero, jnp.inf), no, jnp.int32(0))
        if stride > 1:
            last = polish(last)
        else:
            last = lax.while_loop(
                lambda last: jnp.any(~(last.done | idle)) & (last.steps < _MAX_POLISH), polish, last
            )
        at, at_low = last.at, last.at_low

    def outcome() -> Array:
        return place(at, at_low)[0]

    def mended() -> Array:
        # Where the reference mass of all usable outcomes underflows, rewards count for nothing.
        usable = jnp.where(reward > -jnp.inf, log_ref, -jnp.inf)
        usable = usable - jnp.max(usable, axis=-1, keepdims=True)
        return _share_rounding(jnp.where(overwhelmed, usable, outcome()), log_ref)

    rare = jnp.any(overwhelmed | ~(log_best >= _FINE))
    log_probs = lax.cond(rare, mended, outcome) if by_slope else outcome()
    done = state.done
    if divergence._flats:
        total = jnp.exp(log_probs).sum(-1, keepdims=True)
        jumps = ~(jnp.abs(total - 1) <= eps**0.75) & ~(state.condensed | idle)

        def shared() -> tuple[Array, Array]:
            return shared_out(
                lambda at: place(at, zero)[0],
                bottom,
                top,
                lambda low, high: _between(low, high, by_slope),
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
        status = status | flag(anywhere(lost), Status.TRUNCATED)
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
    return Solution(log_probs, multiplier, status)


def _between(low: Array, high: Array, by_slope: bool) -> Array:
    middle = 0.5 * low + 0.5 * high
    if not by_slope:
        return middle
    # Slopes span hundreds of orders of magnitude, on both sides of 0: halve their logarithms, until
    # these have no digits left to tell them apart.
    wide = high - low > jnp.abs(middle)
    return jnp.where(wide, jnp.sinh(0.5 * (jnp.arcsinh(low) + jnp.arcsinh(high))), middle)


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

_QUICK = 40.0
"""Up to this log u_max, outcomes whose reference mass underflows count for nothing."""

_SAMPLE = 4096
_MAX_POLISH = 4

_MAX_STEPS = 100
"""Bisection alone closes the widest bracket, e^±1000 to the last bit of a double, in about 65."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Search:
    at: Array
    at_low: Array
    step: Array
    low: Array
    high: Array
    total: Array
    done: Array
    condensed: Array
    steps: Array


class _Polish(NamedTuple):
    at: Array
    at_low: Array
    error: Array
    done: Array
    steps: Array


def _next(
    levels: Coordinate,
    log_mass: LogMass,
    at: Array,
    mass: Array,
    slope: Array,
    low: Array,
    high: Array,
) -> tuple[Array, Array]:
    """The step from ``at`` to the root of a two-level model of the equation, and Newton's step.

    The anchor's outcomes are exact in the model; the others act as one outcome, whose mass and
    distance match the value and the slope found at ``at``. For two reward levels (verifiable
    rewards) the model is the problem itself. Outside the bracket the step falls back to bisection.
    """
    present = mass > 0
    some = jnp.where(present, mass, jnp.ones_like(mass))
    rate = jnp.where(present, slope / some, jnp.ones_like(mass))
    v = levels.gap(at, rate)
    level, _ = levels.place(at, 0.0, v, 0.0)
    fits = jnp.isfinite(v) & jnp.isfinite(level) & ((v < 0) | levels.by_slope)
    log_weight = jnp.log(some) - jnp.where(fits, level, jnp.zeros_like(level))
    log_weight = jnp.where(present, log_weight, jnp.full_like(mass, -jnp.inf))
    v = jnp.where(fits, v, -jnp.ones_like(v))
    power = jnp.where(fits, jnp.full_like(rate, jnp.nan), rate)
    return _two_level(levels, at, log_mass, log_weight, v, power, low, high)


def _two_level(
    levels: Coordinate,
    at: Array,
    log_mass: LogMass,
    log_weight: Array,
    v: Array,
    power: Array,
    low: Array,
    high: Array,
) -> tuple[Array, Array]:
    """The step from ``at`` to where two levels have total mass 1, and Newton's first step.

    One level is the anchor's, of reference mass ``log_mass``; the other lies at the gap ``v`` and
    has the reference mass ``log_weight``, or, where ``power`` is not NaN, the target mass
    ``log_weight`` at ``at`` and grows exponentially with the coordinate at that rate.
    """
    zero = jnp.zeros_like(at)
    lawful = ~jnp.isnan(power)
    exponent = jnp.where(lawful, power, zero)

    def total_at(step: Array) -> tuple[Array, Array]:
        """Logarithm of the total mass after a step, and its derivative."""
        if levels.by_slope:  # a slope of 1e10 must not swallow a step of 1
            log_u_anchor, own = levels.place(at, step, zero, 0.0)
            log_best = log_mass.times(log_u_anchor)
            log_u, local = levels.place(at, step, v, 0.0)
        else:
            log_best, own = log_mass.times(at) + step, jnp.ones_like(step)
            log_u, local = levels.place(at + step, 0.0, v, 0.0)
        log_u = jnp.where(lawful, exponent * step, log_u)
        local = jnp.where(lawful, exponent, local)
        log_rest = jnp.where(log_weight > -jnp.inf, log_weight + log_u, log_weight)
        log_total = jnp.logaddexp(log_best, log_rest)
        share = jnp.where(log_rest > -jnp.inf, jnp.exp(log_rest - log_total), 0.0)
        return log_total, (1 - share) * own + jnp.where(share > 0, share * local, zero)

    def improve(_: int, search: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, low, high = search
        log_total, local = total_at(step)
        low, high = jnp.where(log_total < 0, step, low), jnp.where(log_total < 0, high, step)
        # Mass is nearly linear in the slope, its logarithm in the logarithm of the ratio.
        excess = -jnp.expm1(-jnp.maximum(log_total, -30.0)) if levels.by_slope else log_total
        newton = step - excess / local
        inside = (newton >= low) & (newton <= high)  # it stays where it has converged
        middle = _between(at + low, at + high, levels.by_slope) - at
        return jnp.where(inside, newton, middle), low, high

    log_total, local = total_at(zero)
    below, above = low - at, high - at
    step, _, _ = lax.fori_loop(0, _MODEL_STEPS, improve, (zero, below, above))
    inside = (step > below) & (step < above)
    step = jnp.where(inside, step, _between(low, high, levels.by_slope) - at)
    return step, -log_total / local


_MODEL_STEPS = 12
