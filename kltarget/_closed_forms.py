"""The closed forms behind ``solve``, row by row on ``[*batch, A]`` arrays.

Every f-divergence target has the form ``π_i = π_ref,i · u((r_i − λ)/β)`` with ``u = (f′)⁻¹`` and one
scalar per problem, the multiplier λ, fixed by ``Σπ = 1``. The scalar used here is ``ℓ = log u_max``,
the log density ratio of the best supported outcome: it lies between 0 and ``−log m`` with ``m`` the
reference mass of the best outcomes, knows no unit, survives reference masses of e^−800, and turns
the equation into ``Σ π_ref u(ℓ, v) = 1`` with ``v = (r − r_max)/β``, increasing in ℓ.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._numerics import divide_exactly, paired_sum, two_sum
from kltarget.divergences import Divergence, ReverseKL, TotalVariation
from kltarget.status import FAILURES, Status, flag


class Solution(NamedTuple):
    """Log-probabilities ``[*batch, A]``; multiplier and status bits ``[*batch, 1]``."""

    log_probs: Array
    multiplier: Array
    status: Array


def closed_form(
    divergence: Divergence,
    reward: Array,
    log_ref: Array,
    beta: Array,
    mass_tolerance: float | None = None,
    measure: bool = False,
) -> Solution:
    """The target, its multiplier and its status, NaN in failed rows.

    Args:
        divergence: parameters, if arrays, of shape ``[*batch, 1]``.
        reward: shape ``[*batch, A]``.
        log_ref: shape ``[*batch, A]``.
        beta: shape ``[*batch, 1]``.
        mass_tolerance: how far the reference mass may be from 1; None leaves it unchecked.
        measure: whether it is meant to be something else.
    """
    highest = jnp.max(reward, axis=-1, keepdims=True)
    status = flag(~((beta > 0) & (beta < jnp.inf)), Status.INVALID_BETA)
    status = status | flag(~(highest < jnp.inf), Status.INVALID_REWARD)
    if mass_tolerance is not None:
        mass = jnp.exp(log_ref).sum(-1, keepdims=True)
        far = ~(jnp.abs(mass - 1) <= mass_tolerance)
        status = status | flag(far, Status.INVALID_REFERENCE)
    if isinstance(divergence, ReverseKL):
        found = _gibbs(reward, log_ref, beta, highest)
    elif isinstance(divergence, TotalVariation):
        found = total_variation(reward, log_ref, beta, highest, measure)
    else:
        found = _root(divergence, reward, log_ref, beta, highest)
    status = status | found.status
    failed = (status & FAILURES) != 0
    return Solution(
        jnp.where(failed, jnp.full_like(found.log_probs, jnp.nan), found.log_probs),
        jnp.where(failed, jnp.full_like(found.multiplier, jnp.nan), found.multiplier),
        status,
    )


def supported_max(reward: Array, log_ref: Array) -> Array:
    """The best reward among outcomes of positive reference mass, ``-inf`` if there is none."""
    supported = jnp.where(log_ref > -jnp.inf, reward, jnp.full_like(reward, -jnp.inf))
    return jnp.max(supported, axis=-1, keepdims=True)


def _anywhere(condition: Array) -> Array:
    return jnp.any(condition, axis=-1, keepdims=True)


_COMFORTABLE = -16.0
"""Log-masses above this are summed as they are.

Where the normaliser or the mass of the best outcomes is smaller, log π_ref and r/β can cancel and
plain sums would lose digits (three of them at a reference mass of e^−800); those rows take a slower
path with compensated sums. Above it, 1.5·16 eps is what plain sums can lose.
"""


def _gibbs(reward: Array, log_ref: Array, beta: Array, highest: Array) -> Solution:
    plain = log_ref + (reward - highest) / beta
    log_sum = jnp.log(jnp.exp(plain).sum(-1, keepdims=True))

    def simple() -> tuple[Array, Array, Array]:
        return log_ref + (reward - highest) / beta - log_sum, highest, log_sum

    def compensated() -> tuple[Array, Array, Array]:
        best = supported_max(reward, log_ref)
        v, v_low = _scaled_gaps(reward, best, beta)
        score, low = two_sum(log_ref, v)
        top = jnp.max(score, axis=-1, keepdims=True)
        shifted = (score - top) + (low + v_low)
        log_sum = jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))
        return shifted - log_sum, best, top + log_sum

    # The comparison is false for NaN, which rows without support produce.
    log_probs, best, log_sum = lax.cond(
        jnp.all(log_sum >= _COMFORTABLE), simple, compensated
    )
    return Solution(
        log_probs, best + beta * log_sum, flag(jnp.isneginf(best), Status.EMPTY_SUPPORT)
    )


def _scaled_gaps(reward: Array, best: Array, beta: Array) -> tuple[Array, Array]:
    """``v = (r − r_max)/β`` with a correction that doubles its precision."""
    gap, gap_low = two_sum(reward, -best)
    return divide_exactly(gap, gap_low, beta)


def total_variation(
    reward: Array, log_ref: Array, beta: Array, best: Array, measure: bool
) -> Solution:
    argmax = reward == best
    kept = (best - reward < beta) & ~argmax
    minus_inf = jnp.full_like(log_ref, -jnp.inf)
    in_ref = log_ref > -jnp.inf
    log_kept = jnp.where(kept, log_ref, minus_inf)
    held = jnp.exp(jnp.where(argmax, log_ref, minus_inf)).sum(-1, keepdims=True)
    lost = jnp.exp(jnp.where(kept | argmax, minus_inf, log_ref)).sum(-1, keepdims=True)
    freed = held + lost
    if measure:
        log_kept, freed = _fit_to_one(reward, log_kept)
    # Ties share in proportion to the reference, or equally where it has none of them.
    absent = held == 0
    count = argmax.sum(-1, keepdims=True).astype(reward.dtype)
    shares = jnp.where(
        absent,
        jnp.broadcast_to(-jnp.log(count), reward.shape),
        log_ref - jnp.log(jnp.where(absent, jnp.ones_like(held), held)),
    )
    some = freed > 0
    log_freed = jnp.log(jnp.where(some, freed, jnp.ones_like(held)))
    log_freed = jnp.where(some, log_freed, jnp.full_like(held, -jnp.inf))
    log_probs = jnp.where(argmax, shares + log_freed, log_kept)
    status = (
        flag(~_anywhere(in_ref & (reward > -jnp.inf)), Status.EMPTY_SUPPORT)
        | flag(_anywhere((log_probs > -jnp.inf) & ~in_ref), Status.CONDENSED)
        | flag(
            _anywhere(in_ref & (reward > -jnp.inf) & jnp.isneginf(log_probs)), Status.TRUNCATED
        )
        | flag(
            _anywhere((best - reward == beta) & in_ref) | ((lost > 0) & (count > 1)),
            Status.NOT_UNIQUE,
        )
    )
    return Solution(log_probs, best - beta / 2, status)


def _fit_to_one(reward: Array, log_kept: Array) -> tuple[Array, Array]:
    """Total variation from a measure whose mass is not one: keep the best until 1 is reached."""
    order = jnp.argsort(-reward, axis=-1)
    mass = jnp.exp(jnp.take_along_axis(log_kept, order, axis=-1))
    before = jnp.cumsum(mass, axis=-1) - mass
    fitting = jnp.minimum(mass, jnp.maximum(1 - before, 0))
    fitting = jnp.take_along_axis(fitting, jnp.argsort(order, axis=-1), axis=-1)
    freed = jnp.maximum(1 - fitting.sum(-1, keepdims=True), 0)
    return jnp.log(fitting), freed


def _root(
    divergence: Divergence, reward: Array, log_ref: Array, beta: Array, highest: Array
) -> Solution:
    eps = float(jnp.finfo(reward.dtype).eps)
    # A step of size d leaves an error of about d²/4; the last one is not checked by another pass.
    tol = 2 * eps**0.5
    stiff = divergence._stiff
    minus_inf = jnp.full_like(log_ref, -jnp.inf)

    def best_refs(best: Array) -> Array:
        return jnp.where((reward - best) / beta >= 0, log_ref, minus_inf)

    # m, the reference mass of the best outcomes, in two parts: a large logarithm and a small one.
    reached = (reward - highest) / beta >= 0
    plain = jnp.where(reached, jnp.exp(log_ref), jnp.zeros_like(log_ref)).sum(-1, keepdims=True)

    def simple() -> tuple[Array, Array, Array]:
        return highest, jnp.zeros_like(plain), jnp.log(plain)

    def compensated() -> tuple[Array, Array, Array]:
        best = supported_max(reward, log_ref)
        pivot = jnp.max(best_refs(best), axis=-1, keepdims=True)
        return best, pivot, jnp.log(jnp.exp(best_refs(best) - pivot).sum(-1, keepdims=True))

    best, pivot, log_ties = lax.cond(
        jnp.all(jnp.log(plain) >= _COMFORTABLE), simple, compensated
    )
    empty = jnp.isneginf(best)

    def log_best(log_u_max: Array) -> Array:
        return (pivot + log_u_max) + log_ties

    def gaps() -> tuple[Array, Array | float]:
        # Better outcomes without reference mass are clipped to 0: their mass below is 0 anyway.
        if not stiff:
            return jnp.minimum((reward - best) / beta, 0), 0.0
        v, v_low = _scaled_gaps(reward, best, beta)
        return jnp.minimum(v, 0), v_low

    def rise(log_u_max: Array) -> Array:
        """How much a relative change of ℓ may be magnified in another outcome's ``log u``."""
        if not stiff:
            return jnp.ones_like(log_u_max)
        lift = divergence._f_prime_at(log_u_max) - divergence._f_prime_at(jnp.zeros_like(log_u_max))
        return lift * jnp.exp(divergence._log_elasticity(jnp.zeros_like(log_u_max)))

    def rest(log_u_max: Array) -> tuple[Array, Array]:
        """Target mass on all but the best outcomes, and its derivative in ``log_u_max``."""

        def fast() -> tuple[Array, Array]:
            v = jnp.minimum((reward - best) / beta, 0)
            u, rho = divergence._ratio(log_u_max, v)
            mass = jnp.where(v < 0, jnp.exp(log_ref) * u, jnp.zeros_like(v))
            return paired_sum(mass, mass * rho)

        def careful() -> tuple[Array, Array]:
            v, v_low = gaps()
            log_u, rho = divergence._log_ratio(log_u_max, v, v_low)
            mass = jnp.where(v < 0, jnp.exp(log_ref + log_u), jnp.zeros_like(v))
            return paired_sum(mass, mass * rho)

        easy = (log_u_max <= -_COMFORTABLE) & (rise(log_u_max) <= 0.3 / eps**0.5)
        return lax.cond(jnp.all(easy), fast, careful)

    # Where the reference lacks a better outcome, ℓ cannot rise above the point at which that
    # outcome's density ratio is infinite.
    beyond = (highest > best) & (divergence.slope_at_infinity < jnp.inf)
    v_out = jnp.where(beyond, (best - highest) / beta, -jnp.ones_like(best))
    infinite = jnp.full_like(best, jnp.inf)
    cap = jnp.where(beyond, divergence._log_ratio(infinite, v_out)[0], infinite)
    high = 0.5 - (pivot + log_ties)  # a little beyond the root, so that no root lies on an end
    capped = cap <= high
    high = jnp.where(capped, cap, high)
    low = jnp.full_like(high, -1.0)
    low = jnp.minimum(low, high - 1)
    zero = jnp.zeros_like(best)
    start = jnp.where(capped, cap, zero)
    if not stiff:
        # The first guess: the others as one outcome at their mean distance.
        mean_gap = jnp.minimum((reward - best) / beta, 0).mean(-1, keepdims=True)
        log_u, rho = divergence._log_ratio(zero, mean_gap)
        others = jnp.maximum(1 - jnp.exp(log_best(zero)), 0) * jnp.exp(log_u)
        guess = _next(divergence, log_best(zero), zero, others, others * rho, low, high, tol=0.0)
        start = jnp.where(capped | ~jnp.isfinite(guess), start, guess)

    def evaluate(state: _Search) -> _Search:
        mass, slope = rest(state.at)
        log_top = log_best(state.at)
        total = mass + jnp.exp(log_top)
        short = total < 1
        low = jnp.where(short, state.at, state.low)
        high = jnp.where(short, state.high, state.at)
        condensed = (state.steps == 0) & capped & short
        step = _next(divergence, log_top, state.at, mass, slope, low, high, tol)
        # At a kink (truncation) the model's steps can swing forever; bisection ends that.
        swings = jnp.abs(step) > 0.5 * jnp.abs(state.step)
        swings = swings & (jnp.abs(step) > tol) & (state.steps > 1)
        step = jnp.where(swings, 0.5 * (low + high) - state.at, step)
        step = jnp.where(condensed, jnp.zeros_like(step), step)
        closed = high - low <= 2 * eps * jnp.maximum(jnp.abs(high), 1)
        done = condensed | (jnp.abs(step) <= tol) | closed
        condensed = condensed | state.condensed
        return _Search(state.at, step, low, high, total, done, condensed, state.steps + 1)

    def advance(state: _Search) -> _Search:
        # Rows that are done stay where they are: another evaluation there changes nothing.
        after = evaluate(
            dataclasses.replace(state, at=jnp.where(state.done, state.at, state.at + state.step))
        )
        return jax.tree.map(
            lambda new, old: jnp.where(state.done, old, new) if jnp.ndim(new) else new, after, state
        )

    no = jnp.zeros(best.shape, bool)
    idle = empty | ~(highest < jnp.inf) | ~(beta > 0)
    state = _Search(start, zero, low, high, zero, idle, no, jnp.int32(0))
    state = lax.while_loop(lambda s: jnp.any(~s.done) & (s.steps < _MAX_STEPS), advance, state)

    log_u_max, low_part = two_sum(state.at, state.step)

    def place() -> tuple[Array, Array]:
        v, v_low = gaps()
        log_u, rho = divergence._log_ratio(log_u_max, v, v_low)
        return (log_ref + log_u) + rho * low_part, rho

    def last_step() -> Array:
        # Rounding of ℓ itself, magnified in the others: one more step from the values as rounded.
        log_probs, rho = place()
        probs = jnp.exp(log_probs)
        total, slope = paired_sum(probs, probs * rho)
        return jnp.where(state.condensed, zero, -jnp.log(total) * total / slope)

    log_probs, rho = place()
    if stiff:
        moved = lax.cond(jnp.any(rise(log_u_max) > 8), last_step, lambda: zero)
        log_probs = log_probs + jnp.log(1 + jnp.maximum(rho * moved, -0.5))

    def count_atoms() -> Array:
        atoms = (reward == highest) & jnp.isneginf(log_ref)
        return atoms.sum(-1, keepdims=True).astype(reward.dtype)

    count = lax.cond(jnp.any(state.condensed), count_atoms, lambda: jnp.ones_like(best))
    missing = jnp.where(state.condensed, 1 - state.total, jnp.ones_like(best))
    log_atom = jnp.log(missing) - jnp.log(count)
    atoms = state.condensed & (reward == highest) & jnp.isneginf(log_ref)
    log_probs = jnp.where(atoms, jnp.broadcast_to(log_atom, log_probs.shape), log_probs)

    truncated = jnp.zeros(best.shape, bool)
    if divergence._truncates:
        lost = jnp.isneginf(log_probs) & (log_ref > -jnp.inf) & (reward > -jnp.inf)
        truncated = _anywhere(lost)
    slope = jnp.asarray(divergence.slope_at_infinity, reward.dtype)
    slope = jnp.where(slope < jnp.inf, slope, jnp.zeros_like(slope))
    multiplier = jnp.where(
        state.condensed,
        highest - beta * slope,
        best - beta * divergence._f_prime_at(log_u_max),
    )
    status = (
        flag(empty, Status.EMPTY_SUPPORT)
        | flag(state.condensed, Status.CONDENSED)
        | flag(state.condensed & (count > 1), Status.NOT_UNIQUE)
        | flag(truncated, Status.TRUNCATED)
        | flag(~state.done, Status.NOT_CONVERGED)
    )
    return Solution(log_probs, multiplier, status)


_MAX_STEPS = 100
"""Bisection alone closes the widest bracket, e^±1000 to the last bit of a double, in about 65."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Search:
    at: Array
    step: Array
    low: Array
    high: Array
    total: Array
    done: Array
    condensed: Array
    steps: Array


def _next(
    divergence: Divergence,
    log_top: Array,
    at: Array,
    mass: Array,
    slope: Array,
    low: Array,
    high: Array,
    tol: float,
) -> Array:
    """The step from ``at`` to the root of a two-level model of the equation.

    The best outcomes are exact in the model; the others act as one outcome, whose mass and distance
    match the value and the slope found at ``at``. For two reward levels (verifiable rewards) the
    model is the problem itself. Outside the bracket the step falls back to bisection.
    """
    present = mass > 0
    log_mass = jnp.log(jnp.where(present, mass, jnp.ones_like(mass)))
    rho = jnp.where(present, slope / jnp.where(present, mass, jnp.ones_like(mass)), 1 + 0 * mass)
    v = divergence._gap(at, rho)
    level = divergence._log_ratio(at, v)[0]
    fits = jnp.isfinite(v) & jnp.isfinite(level) & (v < 0) & present
    safe_v = jnp.where(fits, v, -jnp.ones_like(v))
    base = jnp.where(fits, level, jnp.zeros_like(level))

    def total_at(step: Array) -> tuple[Array, Array]:
        """Logarithm of the model's total mass after a step, and its derivative."""
        log_u, local = divergence._log_ratio(at + step, safe_v)
        # without such a level: a power law of the same slope
        log_u = jnp.where(fits, log_u - base, rho * step)
        local = jnp.where(fits, local, rho)
        log_rest = jnp.where(present, log_mass + log_u, jnp.full_like(log_u, -jnp.inf))
        log_total = jnp.logaddexp(log_top + step, log_rest)
        share = jnp.exp(log_rest - log_total)
        return log_total, 1 - share + jnp.where(share > 0, share * local, jnp.zeros_like(share))

    def improve(_: int, search: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, low, high = search
        log_total, local = total_at(step)
        low, high = jnp.where(log_total < 0, step, low), jnp.where(log_total < 0, high, step)
        newton = step - log_total / local
        inside = ((newton >= low) & (newton <= high)) | (log_total == 0)
        return jnp.where(inside, newton, 0.5 * (low + high)), low, high

    below, above = low - at, high - at
    zero = jnp.zeros_like(at)
    step, _, _ = lax.fori_loop(0, _MODEL_STEPS, improve, (zero, below, above))
    log_total, local = total_at(zero)
    newton = -log_total / local
    inside = (step > below) & (step < above)
    step = jnp.where(inside, step, 0.5 * (below + above))
    return jnp.where(jnp.abs(newton) <= tol, newton, step)


_MODEL_STEPS = 8
