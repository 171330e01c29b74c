"""Derivatives of targets by the implicit function theorem, never through the iterations.

With ``s = (r − λ)/β``, ``κ = d log u/d s`` and weights ``w = πκ``: at fixed λ an outcome's scaled
reward shifts by ``dη``; ``Σπ = 1`` fixes dλ as a w-weighted mean; and ``d log π = d log π_ref +
κ (dη − mean)``, less the share in what the reference itself gained.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import rounded_once
from kltarget.divergences import Divergence, ReverseKL, TotalVariation
from kltarget.targets.discrete._anchor import supported_max
from kltarget.targets.discrete._closed_forms import closed_form, total_variation
from kltarget.targets.discrete._flat_pieces import on_flat_piece
from kltarget.targets.discrete._found import Solution
from kltarget.targets.discrete._root import Side


def _where(condition: Array, x: Array) -> Array:
    return jnp.where(condition, x, jnp.zeros_like(x))


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6))
def differentiable_closed_form(
    divergence: Divergence,
    reward: Array,
    log_ref: Array,
    beta: Array,
    mass_tolerance: float | None,
    measure: bool,
    side: Side | None = None,
) -> Solution:
    """:func:`closed_form` with its implicit derivatives."""
    return closed_form(divergence, reward, log_ref, beta, mass_tolerance, measure, side)


@differentiable_closed_form.defjvp
def _implicit(
    mass_tolerance: float | None, measure: bool, side: Side | None, primals: Any, tangents: Any
) -> tuple[Solution, Solution]:
    divergence, reward, log_ref, beta = primals
    divergence_dot, reward_dot, log_ref_dot, beta_dot = tangents
    given = (divergence, reward, log_ref, beta, mass_tolerance, measure, side)
    out = differentiable_closed_form(*given)
    log_probs, multiplier, status = out
    log_ref, log_ref_dot = (jnp.broadcast_to(x, reward.shape) for x in (log_ref, log_ref_dot))
    status_dot: Any = np.zeros(status.shape, jax.dtypes.float0)
    if isinstance(divergence, ReverseKL):
        reward = rounded_once(reward)  # others have it so already
    if isinstance(divergence, TotalVariation):
        highest = jnp.max(reward, axis=-1, keepdims=True)

        def closed(reward: Array, log_ref: Array, beta: Array) -> tuple[Array, Array]:
            found = total_variation(reward, log_ref, beta, highest, measure)
            return found.log_probs, found.multiplier

        dots = (reward_dot, log_ref_dot, beta_dot)
        moved, multiplier_dot = jax.jvp(closed, (reward, log_ref, beta), dots)[1]
        return out, Solution(moved, multiplier_dot, status_dot)

    alive = log_probs > -jnp.inf
    on = alive & (log_ref > -jnp.inf)
    probs = jnp.where(on, jnp.exp(log_probs), jnp.zeros_like(log_probs))
    log_u = _where(on, log_probs) - _where(on, log_ref)
    best = supported_max(reward, log_ref)
    gap = jnp.where(on, reward - best, jnp.zeros_like(reward))

    # η, the shift of the scaled reward s = (r − λ)/β at fixed λ, up to a constant of the row
    def shift(gap: Array, gap_dot: Array) -> Array:
        return (gap_dot - gap / beta * beta_dot) / beta

    eta = shift(gap, jnp.where(on, reward_dot, jnp.zeros_like(reward)))
    if jax.tree.leaves(divergence):
        eta = eta - jax.jvp(lambda d: d._f_prime_at(log_u), (divergence,), (divergence_dot,))[1]
    eta = _where(on, eta)
    ref_dot = _where(on, log_ref_dot)

    # κ = d log u/d s, infinite for all practical purposes where u is; it enters relative to that of
    # the best outcomes, a constant, whose own rows are summed in an order that never meets ∞ − ∞.
    log_kappa = _where(on, divergence._log_elasticity(log_u))
    tied = on & (gap == 0)
    level = on & on_flat_piece(divergence, log_u)
    some = jnp.any(level, axis=-1, keepdims=True)
    if divergence._flats:
        # What is on a flat piece takes up whatever the others leave, in shares that stay.
        tied = jnp.where(some, level, tied)
        log_kappa = jnp.where(level, -2 * jnp.log(jnp.finfo(eta.dtype).eps), log_kappa)
    count = tied.sum(-1, keepdims=True)
    top = lax.stop_gradient(jnp.where(tied, log_kappa, -jnp.inf).max(-1, keepdims=True))
    relative = jnp.where(on, jnp.exp(log_kappa - top), jnp.zeros_like(log_kappa))
    weight = probs * relative
    total = weight.sum(-1, keepdims=True)
    total = jnp.where(total > 0, total, jnp.ones_like(total))  # a failed row has no derivatives
    omega = weight / total
    mean = (omega * eta).sum(-1, keepdims=True)
    rest = on & ~tied
    kappa = jnp.exp(jnp.where(rest, log_kappa, jnp.zeros_like(log_kappa)))
    kappa_top = jnp.exp(top)
    psi = jnp.where(rest, probs * kappa, jnp.zeros_like(probs)) / total

    def dot(a: Array, b: Array) -> Array:
        return (a * b).sum(-1, keepdims=True)

    among = _where(tied, omega)
    several = jnp.where((count > 1) & ~some, jnp.minimum(kappa_top, jnp.finfo(eta.dtype).max), 0.0)
    of_rest = kappa * (eta - mean)
    of_best = relative * (
        psi.sum(-1, keepdims=True) * eta
        - dot(psi, eta)
        + several * (among.sum(-1, keepdims=True) * eta - dot(among, eta))
    )
    drawn = dot(probs, ref_dot) / total
    free = ref_dot + jnp.where(tied, of_best, of_rest) - relative * drawn

    # A condensed row: λ follows the best outcome outside, which takes up the difference.
    atoms = alive & ~on
    holders = jnp.maximum(atoms.sum(-1, keepdims=True), 1).astype(reward.dtype)
    pinned = jnp.any(atoms, axis=-1, keepdims=True)
    outside = jnp.max(
        jnp.where(atoms, reward, jnp.full_like(reward, -jnp.inf)), axis=-1, keepdims=True
    )
    outside_dot = jnp.sum(jnp.where(atoms, reward_dot, jnp.zeros_like(reward)), -1, keepdims=True)
    gap_out = jnp.where(pinned, outside - best, jnp.zeros_like(best))
    eta_out = shift(gap_out, outside_dot / holders)
    slope = jnp.asarray(divergence.slope_at_infinity, reward.dtype)
    slope = jnp.where(slope < jnp.inf, slope, jnp.zeros_like(slope))
    slope_dot = jnp.zeros_like(best)
    if jax.tree.leaves(divergence):

        def finite_slope(d: Divergence) -> Array:
            return _where(d.slope_at_infinity < jnp.inf, d.slope_at_infinity)

        slope_dot = slope_dot + jax.jvp(finite_slope, (divergence,), (divergence_dot,))[1]
        eta_out = eta_out - slope_dot
    kappa_held = jnp.where(tied, relative * jnp.where(pinned, kappa_top, 0.0), kappa)
    held = ref_dot + kappa_held * (eta - eta_out)
    atom = jnp.max(jnp.where(atoms, jnp.exp(log_probs), 0 * probs), axis=-1, keepdims=True)
    given = -dot(probs, jnp.where(pinned, held, jnp.zeros_like(held)))
    atom_dot = given / jnp.where(pinned, holders * atom, jnp.ones_like(atom))

    log_probs_dot = jnp.where(on, jnp.where(pinned, held, free), jnp.zeros_like(free))
    log_probs_dot = jnp.where(atoms, jnp.broadcast_to(atom_dot, free.shape), log_probs_dot)

    # λ: the ω-average of r − βf′(u), at fixed shares
    s_best = (best - multiplier) / beta
    reward_mean = dot(omega, jnp.where(on, reward_dot, jnp.zeros_like(reward)))
    gap_mean = dot(omega, gap) / beta
    lifted = drawn * jnp.exp(-top)
    multiplier_free = reward_mean - (s_best + gap_mean) * beta_dot + beta * lifted
    if jax.tree.leaves(divergence):
        own = jax.jvp(lambda d: d._f_prime_at(log_u), (divergence,), (divergence_dot,))[1]
        multiplier_free = multiplier_free - beta * dot(omega, _where(on, own))
    multiplier_out = outside_dot / holders - slope * beta_dot - beta * slope_dot
    multiplier_dot = jnp.where(pinned, multiplier_out, multiplier_free)
    return out, Solution(log_probs_dot, multiplier_dot, status_dot)


@jax.custom_jvp
@jax.jit
def optimal_value(
    divergence: Divergence, reward: Array, log_ref: Array, beta: Array, log_probs: Array
) -> Array:
    """J at the target, shape ``[*batch, 1]``."""
    probs = jnp.exp(log_probs)
    best = jnp.where(probs > 0, reward, -jnp.inf).max(-1, keepdims=True)
    # The masses sum to one but for rounding, which a large level of all rewards would multiply.
    level = jax.lax.stop_gradient(jnp.where(jnp.isfinite(best), best, jnp.zeros_like(best)))
    gain = level + (probs * _where(probs > 0, reward - level)).sum(-1, keepdims=True)
    cost = divergence._total(log_probs, log_ref)[..., None]
    # In the limits beta → 0 and beta → ∞ the regulariser contributes nothing: 0·∞ is 0 there.
    priced = ~((cost == 0) | (beta == 0))
    price = _where(priced, beta) * _where(priced, cost)
    return gain - price


@optimal_value.defjvp
def optimal_value_jvp(primals: Any, tangents: Any) -> Any:
    # Envelope theorem: at the maximum the policy's own change does not count.
    *explicit, log_probs = primals
    *explicit_dot, _ = tangents

    # Nor does an outcome whose cost is infinite, such as a forbidden one under forward KL.
    divergence, _, log_ref, _ = explicit
    endless = jnp.isinf(divergence._integrand(log_probs, log_ref))
    log_probs = jnp.where(endless, jnp.zeros_like(log_probs), log_probs)

    def at_target(divergence: Divergence, reward: Array, log_ref: Array, beta: Array) -> Array:
        log_ref = jnp.where(endless, jnp.zeros_like(log_ref), log_ref)
        reward = jnp.where(endless, jnp.zeros_like(reward), reward)
        return optimal_value.fun(divergence, reward, log_ref, beta, log_probs)

    _, value_dot = jax.jvp(at_target, tuple(explicit), tuple(explicit_dot))
    return optimal_value(*primals), value_dot
