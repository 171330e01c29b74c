"""The closed forms behind ``solve``, row by row on ``[*batch, A]`` arrays.

Every f-divergence target has the form ``π = π_ref · u((r − λ)/β)`` with ``u = (f′)⁻¹`` and one
scalar per problem, the multiplier λ, fixed by ``Σπ = 1``: in closed form for reverse KL, by a rule
for total variation, as a root for the rest (:mod:`kltarget.targets.discrete._root`).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import MANY, divide_exactly, long_max, paired_sums, two_sum
from kltarget._core.status import FAILURES, Status, flag
from kltarget.divergences import Divergence, ReverseKL, TotalVariation
from kltarget.targets.discrete._anchor import anywhere, scaled_gaps, supported_max
from kltarget.targets.discrete._found import Found, Solution, off_one
from kltarget.targets.discrete._root import Side, root


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def closed_form(
    divergence: Divergence,
    reward: Array,
    log_ref: Array,
    beta: Array,
    mass_tolerance: float | None = None,
    measure: bool = False,
    side: Side | None = None,
) -> Solution:
    """The target, its multiplier and its status, NaN in failed rows.

    Args:
        divergence: parameters, if arrays, of shape ``[*batch, 1]``.
        reward: shape ``[*batch, A]``.
        log_ref: shape ``[*batch, A]``; batch axes that all rows share may be of size 1.
        beta: shape ``[*batch, 1]``.
        mass_tolerance: how far the reference mass may be from 1; None leaves it unchecked.
        measure: whether it is meant to be something else.
        side: of a power divergence whose α is traced, what is known of it.
    """
    status = flag(~((beta > 0) & (beta < jnp.inf)), Status.INVALID_BETA)
    if mass_tolerance is not None:
        mass = jnp.exp(log_ref).sum(-1, keepdims=True)
        far = ~(jnp.abs(mass - 1) <= mass_tolerance)
        status = status | flag(far, Status.INVALID_REFERENCE)
    if isinstance(divergence, ReverseKL):
        return _gibbs(reward, jnp.broadcast_to(log_ref, reward.shape), beta, status)
    highest = jnp.max(reward, axis=-1, keepdims=True)
    # The maximum of a long row can pass over NaN, which the constructor lets through if traced.
    trusted = mass_tolerance is None and not measure
    wrong = ~(highest < jnp.inf) if trusted else anywhere(~(reward < jnp.inf))
    status = status | flag(wrong, Status.INVALID_REWARD)
    if isinstance(divergence, TotalVariation):
        full = jnp.broadcast_to(log_ref, reward.shape)
        found = total_variation(reward, full, beta, highest, measure)
    else:
        found = root(divergence, reward, log_ref, beta, highest, measure, side)
    status = _not_converged(status | found.status, found.off)
    return _certified(found.log_probs, found.multiplier, status)


def _not_converged(status: Array, off: Array) -> Array:
    """Marks the rows that are off and have no other failure that says why."""
    return status | jnp.where((status & FAILURES) == 0, flag(off, Status.NOT_CONVERGED), 0)


def _certified(log_probs: Array, multiplier: Array, status: Array) -> Solution:
    """A solution whose failed rows hold NaN."""
    failed = (status & FAILURES) != 0
    return Solution(
        jnp.where(failed, jnp.nan, jnp.minimum(log_probs, 0)),
        jnp.where(failed, jnp.nan, multiplier),
        status,
    )


def _gibbs(reward: Array, log_ref: Array, beta: Array, status: Array) -> Solution:
    top = long_max(lambda reward, log_ref: log_ref + reward / beta, reward, log_ref)

    # Each branch writes its result whole: memory is what this costs. Σπ = 1 needs no check, for it
    # is what log_sum was made for.
    def simple() -> Solution:
        # To twice a float's precision, for log π_ref and r/β can cancel.
        v, v_low = divide_exactly(reward, jnp.zeros_like(beta), beta)
        score, low = two_sum(log_ref, v)
        shifted = (score - top) + (low + v_low)
        log_sum = jnp.log(_sum_exp(shifted))
        # The maximum of a long row can pass over NaN; the sum does not.
        off = jnp.isnan(log_sum)
        wrong = lax.cond(
            jnp.any(off), lambda: anywhere(~(reward < jnp.inf)), lambda: jnp.zeros_like(off)
        )
        found = _not_converged(status | flag(wrong, Status.INVALID_REWARD), off)
        return _certified(shifted - log_sum, beta * (top + log_sum), found)

    def compensated() -> Solution:
        # From the best reward, so that rewards far from 0 keep their differences.
        best = supported_max(reward, log_ref)
        v, v_low = scaled_gaps(reward, best, beta)
        score, low = two_sum(log_ref, v)
        top = jnp.max(score, axis=-1, keepdims=True)
        shifted = (score - top) + (low + v_low)
        log_sum = jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))
        found = status | flag(anywhere(~(reward < jnp.inf)), Status.INVALID_REWARD)
        found = found | flag(jnp.isneginf(best), Status.EMPTY_SUPPORT)
        found = _not_converged(found, ~jnp.isfinite(log_sum))
        return _certified(shifted - log_sum, best + beta * (top + log_sum), found)

    # The comparison is false for NaN, which rows without support and wrong values produce.
    near = jnp.all(jnp.abs(top) <= 0.1 / float(jnp.finfo(top.dtype).eps))
    return lax.cond(near, simple, compensated)


def _sum_exp(x: Array) -> Array:
    if x.shape[-1] <= MANY:
        return jnp.exp(x).sum(-1, keepdims=True)
    return paired_sums(lambda x: (jnp.exp(x), jnp.zeros_like(x)), x)[0]


def total_variation(
    reward: Array, log_ref: Array, beta: Array, best: Array, measure: bool
) -> Found:
    argmax = reward == best
    kept = (best - reward < beta) & ~argmax
    minus_inf = jnp.full_like(log_ref, -jnp.inf)
    in_ref = log_ref > -jnp.inf
    log_kept = jnp.where(kept, log_ref, minus_inf)
    log_held = _log_mass(log_ref, argmax)
    log_lost = _log_mass(log_ref, ~(kept | argmax))
    log_freed = _log_mass(log_ref, ~kept)
    if measure:
        log_kept, log_freed = _fit_to_one(reward, log_kept)
    # Ties share in proportion to the reference, or equally where it has none of them.
    absent = jnp.isneginf(log_held)
    count = argmax.sum(-1, keepdims=True).astype(reward.dtype)
    shares = jnp.where(
        absent,
        jnp.broadcast_to(-jnp.log(count), reward.shape),
        log_ref - jnp.where(absent, jnp.zeros_like(log_held), log_held),
    )
    log_probs = jnp.where(argmax, shares + log_freed, log_kept)
    status = (
        flag(~anywhere(in_ref & (reward > -jnp.inf)), Status.EMPTY_SUPPORT)
        | flag(anywhere((log_probs > -jnp.inf) & ~in_ref), Status.CONDENSED)
        | flag(anywhere(in_ref & (reward > -jnp.inf) & jnp.isneginf(log_probs)), Status.TRUNCATED)
        | flag(
            anywhere((best - reward == beta) & in_ref) | ((log_lost > -jnp.inf) & (count > 1)),
            Status.NOT_UNIQUE,
        )
    )
    return Found(log_probs, best - beta / 2, status, off_one(log_probs))


def _log_mass(log_ref: Array, among: Array) -> Array:
    """The log reference mass of some outcomes, however small; of none ``-inf``, with slope 0."""
    among = among & (log_ref > -jnp.inf)
    none = ~anywhere(among)
    weights = jnp.where(among | none, jnp.where(among, log_ref, 0.0), -jnp.inf)
    return jnp.where(none, -jnp.inf, jax.nn.logsumexp(weights, axis=-1, keepdims=True))


def _fit_to_one(reward: Array, log_kept: Array) -> tuple[Array, Array]:
    """Total variation from a measure whose mass is not one: keep the best until 1 is reached."""
    order = jnp.argsort(-reward, axis=-1)
    mass = jnp.exp(jnp.take_along_axis(log_kept, order, axis=-1))
    before = jnp.cumsum(mass, axis=-1) - mass
    held = mass > 0
    share = jnp.clip((1 - before) / jnp.where(held, mass, 1.0), 0, 1)
    share = jnp.take_along_axis(jnp.where(held, share, 0.0), jnp.argsort(order, axis=-1), axis=-1)
    fits = share > 0
    log_kept = jnp.where(fits, jnp.where(fits, log_kept, 0.0), -jnp.inf)
    log_kept = jnp.where(fits, log_kept + jnp.log(jnp.where(fits, share, 1.0)), -jnp.inf)
    freed = jnp.maximum(1 - jnp.exp(log_kept).sum(-1, keepdims=True), 0)
    some = freed > 0
    return log_kept, jnp.where(some, jnp.log(jnp.where(some, freed, 1.0)), -jnp.inf)
