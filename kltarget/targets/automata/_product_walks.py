"""Passes over the product of a Markov reference and an automaton, forwards and backwards.

A node is a pair of a context s of the reference and a state d of the automaton. Nothing here knows
of a reward or a divergence.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from kltarget._core.numerics import log_sum_exp


class Product(NamedTuple):
    """The product of a reference and an automaton.

    Attributes:
        log_next: log-probability of each token in each context, ``[S, V]``.
        following: the context that it leads to, ``[S, V]``.
        transitions: the state that it leads to, ``[D, V]``.
    """

    log_next: Float[Array, "S V"]
    following: Int[Array, "S V"]
    transitions: Int[Array, "D V"]

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers S of contexts and D of states."""
        return self.log_next.shape[0], self.transitions.shape[0]

    @property
    def below(self) -> Int[Array, "S D V"]:
        """The node that each token leads to from each, of all nodes in one row."""
        states = self.shape[1]
        return self.following[:, None, :] * states + self.transitions[None, :, :]

    def ways(self, values: Float[Array, "*batch S D"]) -> Float[Array, "*batch S D V"]:
        """Each token's log-probability and the value of the node that it leads to, added."""
        contexts, states = self.shape
        after = values.reshape(*values.shape[:-2], contexts * states)[..., self.below]
        return after + jnp.broadcast_to(self.log_next[:, None, :], after.shape)


@functools.partial(jax.jit, static_argnames="length")
def final_log_masses(product: Product, *, length: int) -> Float[Array, " D"]:
    """Log-probabilities of the final states of texts of the reference, normalised."""
    below = product.below.reshape(-1)
    steps = jnp.broadcast_to(product.log_next[:, None, :], product.below.shape).reshape(-1)
    contexts, states = product.shape
    number, choices = contexts * states, product.log_next.shape[1]

    def step(log_mass: Array, _: None) -> tuple[Array, None]:
        arriving = jnp.repeat(log_mass, choices) + steps
        return _log_sums(arriving, below, number), None

    start = jnp.full(number, -jnp.inf, steps.dtype).at[0].set(0.0)
    log_mass, _ = lax.scan(step, start, None, length=length)
    finals = log_sum_exp(log_mass.reshape(contexts, states).T)[:, 0]
    # Rounding adds up along long texts.
    return finals - log_sum_exp(finals)


@functools.partial(jax.jit, static_argnames="length")
def reached_states(product: Product, over: Bool[Array, " S"], *, length: int) -> Bool[Array, " D"]:
    """Which states some text ends in, however unlikely the reference finds it.

    Args:
        product: reference and automaton.
        over: contexts after an end, in which no text goes on but as the reference does.
        length: tokens of a text.
    """
    below, number = product.below, product.shape[0] * product.shape[1]
    possible = ~over[:, None] | (product.log_next > -jnp.inf)

    def step(reached: Array, _: None) -> tuple[Array, None]:
        ways = reached.reshape(*product.shape, 1) & possible[:, None, :]
        return jnp.zeros(number, bool).at[below.reshape(-1)].max(ways.reshape(-1)), None

    reached, _ = lax.scan(step, jnp.zeros(number, bool).at[0].set(True), None, length=length)
    return reached.reshape(product.shape).any(0)


def _log_sums(x: Array, where: Array, number: int) -> Array:
    """Log of the sums of exp(x) by place."""
    top = lax.stop_gradient(jax.ops.segment_max(x, where, number))
    top = jnp.where(top > -jnp.inf, top, jnp.zeros_like(top))
    some = x > -jnp.inf
    scaled = jnp.where(some, jnp.exp(jnp.where(some, x - top[where], 0.0)), 0.0)
    total = jax.ops.segment_sum(scaled, where, number)
    full = total > 0
    return jnp.where(full, jnp.log(jnp.where(full, total, 1.0)) + top, -jnp.inf)


@functools.partial(jax.jit, static_argnames="length")
def log_values(
    product: Product,
    log_final: Float[Array, "*batch D"],
    bonus: Float[Array, "T *batch V"] | None = None,
    *,
    length: int,
) -> Float[Array, "T *batch S D"]:
    """``log E_ref[exp(log_final)]`` from every node on, at each position from the first on.

    Values of the end, ``log_final`` itself, are left out. A bonus is added to the logarithm where
    its token is chosen at its position: by it the derivative of the first value is the token's
    probability there.
    """

    def step(values: Array, added: Array | None) -> tuple[Array, Array]:
        ways = product.ways(values)
        ways = ways if added is None else ways + added[..., None, None, :]
        now = log_sum_exp(ways)[..., 0]
        return now, now

    last = at_the_end(product, log_final)
    _, values = lax.scan(step, last, bonus, length=length, reverse=True)
    return values


def at_the_end(product: Product, log_final: Array) -> Array:
    """Values of final states as those of nodes, ``[*batch, S, D]``."""
    shape = (*log_final.shape[:-1], *product.shape)
    return jnp.broadcast_to(log_final[..., None, :], shape)
