"""Marginals, entropy and lengths of a policy over texts, by one walk forwards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kltarget._core.numerics import log_sum_exp
from kltarget.targets.automata._product_walks import Product, earned_at, log_values


class PolicySums(NamedTuple):
    """Sums over the texts of a policy.

    Attributes:
        tokens: how likely each token is at each position, ``[T, *batch, V]``.
        states: how likely each state is after each token, ``[T, *batch, D]``.
        entropy: over texts in nats, ``[*batch]``.
        ended: how likely texts end at each position, ``[T, *batch]``; 0 without an end.
        unfinished: how likely they never do, ``[*batch]``.
        tallies: what else was counted at each position, a pytree of arrays ``[T, ...]``.
    """

    tokens: Float[Array, "T *batch V"]
    states: Float[Array, "T *batch D"]
    entropy: Float[Array, "*batch"]
    ended: Float[Array, "T *batch"]
    unfinished: Float[Array, "*batch"]
    tallies: Any

    def weighted(self, log_share: Float[Array, "*batch"]) -> PolicySums:
        """What these texts add to those of a policy in which they have a share of the mass."""
        mass = jnp.exp(log_share)

        def scaled(x: Array) -> Array:
            wide = mass if x.ndim <= mass.ndim + 1 else mass[..., None]
            return x * jnp.broadcast_to(wide, x.shape)

        entropy = jnp.where(mass > 0, mass * (self.entropy - log_share), 0.0)
        return jax.tree.map(scaled, self)._replace(entropy=entropy)


class Choices(NamedTuple):
    """A policy at all nodes of a position.

    Attributes:
        log_policy: of each token at each node, ``[*batch, N, V]``.
        tally: what to count there, a function of the mass of each node ``[*batch, N]`` and of how
            likely each of its tokens is chosen, ``[*batch, N, V]``.
    """

    log_policy: Float[Array, "*batch N V"]
    tally: Callable[[Array, Array], Any]


def sums_of(
    product: Product,
    after: Float[Array, "T *batch N"],
    choices: Callable[[Array], Choices],
    *,
    num_states: int,
    end: int | None,
) -> PolicySums:
    """The mass of each node at each position, and what its choices add.

    ``choices`` makes the policy at a position from the values of the nodes after it. Memory grows
    with T and the number of nodes, not with their product and V: steps are computed anew for
    derivatives.
    """
    batch, below = after.shape[1:-1], product.below.reshape(-1)

    @jax.checkpoint
    def step(mass: Array, value: Array) -> tuple[Array, tuple[Any, ...]]:
        log_policy, tally = choices(value)
        # NaN is kept: there texts are not determined.
        some = ~jnp.isneginf(log_policy)
        log_policy = jnp.where(some, log_policy, 0.0)
        chosen = mass[..., None] * jnp.where(some, jnp.exp(log_policy), 0.0)
        surprise = -(chosen * log_policy).sum((-2, -1))
        ended = jnp.zeros(batch, chosen.dtype)
        if end is not None:
            ended = jnp.where(product.over, 0.0, chosen[..., end]).sum(-1)
        flat = chosen.reshape(*batch, -1)
        tallied = tally(mass, chosen)
        mass = jnp.zeros_like(mass).at[..., below].add(flat)
        states = jnp.zeros((*batch, num_states), mass.dtype).at[..., product.state].add(mass)
        return mass, (chosen.sum(-2), states, surprise, ended, tallied)

    start = jnp.zeros(after.shape[1:], after.dtype).at[..., 0].set(1.0)
    mass, (tokens, states, surprise, ended, tallies) = lax.scan(step, start, after)
    unfinished = jnp.where(product.over, 0.0, mass).sum(-1)
    return PolicySums(tokens, states, surprise.sum(0), ended, unfinished, tallies)


@functools.partial(jax.jit, static_argnames=("length", "end"))
def policy_sums(
    product: Product,
    log_ratio: Float[Array, "*batch D"],
    step_reward: Float[Array, "*batch D V"] | None = None,
    log_ref: Float[Array, "N V"] | None = None,
    *,
    length: int,
    end: int | None,
) -> PolicySums:
    """Of the policy that is at every node the softmax of its ways.

    With rewards of steps, and the reference that was tilted by them, what is earned on the way and
    the KL from the reference are tallied as ``earned`` and ``kl``.
    """
    earned = None if step_reward is None else earned_at(product, step_reward)

    def softmax(value: Array) -> Choices:
        ways = product.ways(value)
        total, some = log_sum_exp(ways), ~jnp.isneginf(ways)
        log_policy = jnp.where(some, ways, 0.0) - jnp.where(jnp.isneginf(total), 0.0, total)
        log_policy = jnp.where(some, log_policy, -jnp.inf)

        def tally(_: Array, chosen: Array) -> dict[str, Array]:
            if earned is None or log_ref is None:
                return {}
            each = {
                "earned": jnp.broadcast_to(earned, chosen.shape),
                "kl": log_policy - jnp.broadcast_to(log_ref, chosen.shape),
            }
            return {
                name: (chosen * jnp.where(chosen > 0, x, 0.0)).sum((-2, -1))
                for name, x in each.items()
            }

        return Choices(log_policy, tally)

    values = log_values(product, log_ratio, length=length)
    after = jnp.concatenate([values[1:], log_ratio[..., product.state][None]])
    return sums_of(product, after, softmax, num_states=log_ratio.shape[-1], end=end)
