"""The root behind a target: the multiplier that makes its probabilities sum to 1."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.status import Status, flag
from kltarget.divergences import Divergence
from kltarget.targets.discrete._anchor import anywhere
from kltarget.targets.discrete._coordinates import SHORT_POWERS, coordinate
from kltarget.targets.discrete._found import Found, off_one, share_rounding
from kltarget.targets.discrete._marginal import marginal_root
from kltarget.targets.discrete._search import search


def root(
    divergence: Divergence,
    reward: Array,
    log_ref: Array,
    beta: Array,
    highest: Array,
    measure: bool,
    side: Side | None = None,
) -> Found:
    """The coordinate of the best outcome at which ``Σπ = 1``, and the target there.

    ``side`` is where a traced α lies, if that is known.
    """
    # No ratio exceeds the best outcome's, which is thus at least 1 over the reference's mass.
    least = jnp.zeros_like(beta)
    if measure:
        mass = jax.nn.logsumexp(log_ref, axis=-1, keepdims=True)
        least = jnp.broadcast_to(-jnp.maximum(mass, 0), beta.shape)
    gamma = getattr(divergence, "_gamma", 0.0)
    if not isinstance(gamma, jax.Array):
        if Side.of(gamma, measure).way == 2:
            return _steep(divergence, gamma, reward, log_ref, beta)
        return search(coordinate(divergence), reward, log_ref, beta, highest, least)

    # α is traced: it may lie on either side of reverse KL, where coordinates meet, or beyond χ².
    def part(index: int, gamma: Array) -> Found:
        if index == 2:
            return _steep(divergence, gamma, reward, log_ref, beta)
        chosen = coordinate(divergence, below=index == 0)
        return search(
            dataclasses.replace(chosen, gamma=gamma), reward, log_ref, beta, highest, least
        )

    if side is not None and side.gamma is not None:
        chosen = coordinate(divergence, gamma=side.gamma)
        return search(chosen, reward, log_ref, beta, highest, least)
    if side is not None:
        return part(side.way, gamma)
    which = jnp.where(gamma < 0, 0, jnp.where(gamma <= _steepest_power(measure), 1, 2))
    parts = [
        functools.partial(part, k, jnp.where(which == k, gamma, jnp.full_like(gamma, harmless)))
        for k, harmless in enumerate((-1.0, 0.0, 2.0))
    ]
    if jnp.ndim(gamma) == 0:
        return lax.switch(which, parts)
    fields = zip(*(solved() for solved in parts), strict=True)
    return Found(*(lax.select_n(jnp.broadcast_to(which, x.shape), x, *y) for x, *y in fields))


class Side(NamedTuple):
    """What is known of a power divergence before its α is traced."""

    way: int
    """Which of three ways its root is sought."""
    gamma: float | None
    """Its γ, if that is a short power."""

    @classmethod
    def of(cls, gamma: float, measure: bool) -> Side:
        way = 0 if gamma < 0 else 1 if gamma <= _steepest_power(measure) else 2
        return cls(way, gamma if gamma in SHORT_POWERS and way < 2 else None)


def _steepest_power(measure: bool) -> float:
    # Beyond it the outcome next to truncation has more to say than the best one; from a reference
    # of large mass all may be next to truncation.
    return 0.5 if measure else 1.0


def _steep(divergence: Any, gamma: Any, reward: Array, log_ref: Array, beta: Array) -> Found:
    """The target of a power divergence with γ > 1, from the outcome next to truncation."""
    scale = jnp.asarray(divergence._scale, beta.dtype)
    log_ref = jnp.broadcast_to(log_ref, reward.shape)
    found = marginal_root(reward, log_ref, beta * scale, gamma)
    usable = (log_ref > -jnp.inf) & (reward > -jnp.inf)
    log_probs = jnp.where(usable, share_rounding(log_ref + found.log_u, log_ref), -jnp.inf)
    multiplier = found.reward - beta * (scale * found.slope + divergence._linear)
    empty, lost = ~anywhere(usable), anywhere(usable & jnp.isneginf(log_probs))
    status = flag(empty, Status.EMPTY_SUPPORT) | flag(lost, Status.TRUNCATED)
    return Found(log_probs, multiplier, status, off_one(log_probs))
