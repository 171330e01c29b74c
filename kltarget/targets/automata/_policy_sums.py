"""Marginals, entropy and lengths of a policy over texts, by one walk forwards."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kltarget._core.numerics import log_sum_exp
from kltarget.targets.automata._product_walks import Product, log_values


class PolicySums(NamedTuple):
    """Sums over the texts of a policy.

    Attributes:
        tokens: how likely each token is at each position, ``[T, *batch, V]``.
        entropy: over texts in nats, ``[*batch]``.
        ended: how likely texts end at each position, ``[T, *batch]``; 0 without an end.
        unfinished: how likely they never do, ``[*batch]``.
    """

    tokens: Float[Array, "T *batch V"]
    entropy: Float[Array, "*batch"]
    ended: Float[Array, "T *batch"]
    unfinished: Float[Array, "*batch"]


@functools.partial(jax.jit, static_argnames=("length", "end"))
def policy_sums(
    product: Product, log_ratio: Float[Array, "*batch D"], *, length: int, end: int | None
) -> PolicySums:
    """The mass of each node at each position, and what its choices add.

    The policy at a node is the softmax of its ways. Memory grows with T and the number of nodes,
    not with their product and V: steps are computed anew for derivatives.
    """
    number, batch = product.state.size, log_ratio.shape[:-1]
    last = log_ratio[..., product.state]
    values = log_values(product, log_ratio, length=length)
    after = jnp.concatenate([values[1:], last[None]])
    below = product.below.reshape(-1)

    @jax.checkpoint
    def step(mass: Array, value: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        ways = product.ways(value)
        total = log_sum_exp(ways)
        # NaN is kept: there texts are not determined.
        some = ~jnp.isneginf(ways)
        log_policy = jnp.where(some, ways, 0.0) - jnp.where(jnp.isneginf(total), 0.0, total)
        log_policy = jnp.where(some, log_policy, 0.0)
        chosen = mass[..., None] * jnp.where(some, jnp.exp(log_policy), 0.0)
        surprise = -(chosen * log_policy).sum((-2, -1))
        ended = jnp.zeros(batch, chosen.dtype)
        if end is not None:
            ended = jnp.where(product.over, 0.0, chosen[..., end]).sum(-1)
        flat = chosen.reshape(*batch, -1)
        mass = jnp.zeros_like(mass).at[..., below].add(flat)
        return mass, (chosen.sum(-2), surprise, ended)

    start = jnp.zeros((*batch, number), last.dtype).at[..., 0].set(1.0)
    mass, (tokens, surprise, ended) = lax.scan(step, start, after)
    return PolicySums(tokens, surprise.sum(0), ended, jnp.where(product.over, 0.0, mass).sum(-1))
