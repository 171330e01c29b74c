"""Targets on flat pieces of ``f′``, where several policies are optimal.

Where ``f′`` is the same at an interval of ratios, the outcomes with ``(r − λ)/β`` at that height
may have any of them. Their mass jumps as λ passes, and if the sum of all probabilities passes 1
there, what is missing is theirs to share in any way: here each goes the same part of its way from
one end of the interval to the other, which keeps the reference's proportions.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget.divergences import Divergence

_HALVINGS = 100


def shared_out(
    log_probs: Callable[[Array], Array],
    low: Array,
    high: Array,
    between: Callable[[Array, Array], Array],
) -> tuple[Array, Array]:
    """Log-probabilities that sum to 1 across a jump, and the coordinate of the jump.

    Args:
        log_probs: at a coordinate ``[*batch, 1]``, those of all outcomes, which rise with it.
        low: where they sum to less than 1.
        high: where they sum to 1 or more.
        between: the next coordinate to try.
    """

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = between(low, high)
        short = jnp.exp(log_probs(middle)).sum(-1, keepdims=True) < 1
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    low, high = lax.fori_loop(0, _HALVINGS, halve, (low, high))
    below, above = log_probs(low), log_probs(high)
    probs = jnp.exp(below)
    rise = (jnp.exp(above) - probs).sum(-1, keepdims=True)
    missing = 1 - probs.sum(-1, keepdims=True)
    part = jnp.clip(missing / jnp.where(rise > 0, rise, 1.0), 0, 1)
    mixed = jnp.logaddexp(below + jnp.log1p(-part), above + jnp.log(part))
    return jnp.where(below == above, below, mixed), high


def several(divergence: Divergence, log_ratio: Array, slope: Array, usable: Array) -> Array:
    """Whether mass could move from one outcome to another at no loss, ``[*batch, 1]``.

    Args:
        divergence: with its flat pieces.
        log_ratio: log π/π_ref, ``[*batch, A]``.
        slope: ``(r − λ)/β`` up to rounding, ``[*batch, A]``.
        usable: which outcomes may have mass.
    """
    eps = float(jnp.finfo(slope.dtype).eps)
    held = jnp.where(usable & jnp.isfinite(slope), jnp.abs(slope), 0.0)
    rounding = max(64 * eps, _ROUNDED) * jnp.maximum(jnp.max(held, axis=-1, keepdims=True), 1)
    rises = jnp.zeros_like(usable)
    falls = jnp.zeros_like(usable)
    for low, high in divergence._flats:
        inside = jnp.asarray(jnp.clip(0.0, low + _INSIDE, high - _INSIDE), slope.dtype)
        there = usable & (jnp.abs(slope - divergence._f_prime_at(inside)) <= rounding)
        rises |= there & (log_ratio < high - eps**0.5)
        falls |= there & (log_ratio > low + eps**0.5)
    both = (rises | falls).sum(-1, keepdims=True) > 1
    return both & jnp.any(rises, -1, keepdims=True) & jnp.any(falls, -1, keepdims=True)


def on_flat_piece(divergence: Divergence, log_ratio: Array) -> Array:
    """Whether ``f′`` is the same at neighbouring log ratios, ``[*batch, A]``."""
    found = jnp.zeros(log_ratio.shape, bool)
    for low, high in divergence._flats:
        found |= (log_ratio > low) & (log_ratio < high)
    return found


_ROUNDED = 1e-10
"""How accurate slopes are at best that come from a table."""
_INSIDE = 0.01
"""How far from its end a piece is certainly flat; no piece is shorter than twice that."""
