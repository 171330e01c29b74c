"""Passes over the product of a Markov reference and an automaton, forwards and backwards.

A node is a pair of a context of the reference and a state of the automaton that some text reaches.
Nothing here knows of a reward or a divergence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from kltarget._core.checks import traced
from kltarget._core.numerics import log_sum_exp, widest
from kltarget.spaces import Automaton, MarkovReference


class Product(NamedTuple):
    """The product of a reference and an automaton. Node 0 is the beginning.

    Attributes:
        log_next: log-probability of each token at each node, ``[N, V]``; of a tilted product what
            the token earns is added, and there may be rows, ``[*batch, N, V]``.
        below: the node that it leads to, ``[N, V]``.
        state: the automaton's state at each node, ``[N]``.
        possible: which tokens some text has there, ``[N, V]``: all but those after an end.
        over: which nodes are after an end, ``[N]``.
    """

    log_next: Float[Array, "*batch N V"]
    below: Int[Array, "N V"]
    state: Int[Array, " N"]
    possible: Bool[Array, "N V"]
    over: Bool[Array, " N"]

    def ways(self, values: Float[Array, "*batch N"]) -> Float[Array, "*batch N V"]:
        """Each token's log-probability and the value of the node that it leads to, added."""
        after = values[..., self.below]
        return after + jnp.broadcast_to(self.log_next, after.shape)


def product_of(reference: MarkovReference, automaton: Automaton) -> Product:
    """The nodes that texts reach; under a trace of the automaton all pairs."""
    following, transitions, over = reference.following, automaton.transitions, reference.over
    if traced(transitions):
        context, state = jnp.divmod(
            jnp.arange(len(following) * automaton.num_states, dtype=jnp.int32),
            automaton.num_states,
        )
        below = jnp.asarray(following)[context] * automaton.num_states
        below = below.astype(transitions.dtype) + transitions[state]
    else:
        context, state, below = _explored(following, np.asarray(transitions), over, reference.end)
    return _product(reference, context, state, below)


@jax.jit
def _product(reference: MarkovReference, context: Array, state: Array, below: Array) -> Product:
    steps = reference.log_next()[context]
    ended = jnp.asarray(reference.over)[context]
    possible = ~ended[:, None] | (steps > -jnp.inf)
    return Product(steps, below.astype(jnp.int32), state.astype(jnp.int32), possible, ended)


def tilted(product: Product, log_tilt: Float[Array, "*batch D V"]) -> Product:
    """The product with every token's weight multiplied by what it earns in a state.

    Nothing is earned after an end.
    """
    earned = earned_at(product, log_tilt)
    dtype = widest(earned.dtype, product.log_next.dtype)
    log_next = jnp.broadcast_to(product.log_next, earned.shape).astype(dtype)
    return product._replace(log_next=log_next + earned.astype(dtype))


def earned_at(product: Product, each: Float[Array, "*batch D V"]) -> Float[Array, "*batch N V"]:
    """What tokens earn at each node, given what they do in each state."""
    earned = each[..., product.state, :]
    return jnp.where(jnp.broadcast_to(product.over[:, None], earned.shape), 0.0, earned)


def _explored(
    following: np.ndarray, transitions: np.ndarray, over: np.ndarray, end: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Context and state of each node that is reached, and the nodes that its tokens lead to.

    How far the last few tokens have brought an automaton is mostly known from the context: of a
    search for words in texts of a chain of order 2 one pair in a hundred is reached.
    """
    number, size = len(transitions), transitions.shape[1]
    place = {0: 0}
    found, rows = [np.zeros(1, np.int64)], []
    while found[-1].size:
        context, state = np.divmod(found[-1], number)
        after = following[context].astype(np.int64) * number + transitions[state]
        if end is not None:
            # Other tokens than its end do not follow an end: where they lead matters to nobody.
            after = np.where(over[context][:, None], after[:, [end] * size], after)
        rows.append(after)
        fresh = [x for x in np.unique(after).tolist() if x not in place]
        place.update(zip(fresh, range(len(place), len(place) + len(fresh)), strict=True))
        found.append(np.array(fresh, np.int64))
    nodes, after = np.concatenate(found), np.concatenate(rows)
    order = np.argsort(nodes)
    below = order[np.searchsorted(nodes[order], after)]
    return *np.divmod(nodes, number), below


@functools.partial(jax.jit, static_argnames=("num_states", "length"))
def final_log_masses(
    product: Product, *, num_states: int, length: int
) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
    """Log-masses of the final states of texts, normalised, and the logarithm of their sum."""
    finals = _forwards(product, _log_sums, num_states, length)
    # Rounding adds up along long texts.
    total = log_sum_exp(finals)
    return finals - jnp.where(jnp.isneginf(total), 0.0, total), total[..., 0]


@functools.partial(jax.jit, static_argnames=("num_states", "length"))
def final_log_counts(product: Product, *, num_states: int, length: int) -> Float[Array, " D"]:
    """Logarithms of how many texts that the reference finds possible end in each state."""
    return _forwards(counting(product), _log_sums, num_states, length)


@functools.partial(jax.jit, static_argnames=("num_states", "length"))
def final_log_maxima(product: Product, *, num_states: int, length: int) -> Float[Array, " D"]:
    """The log-probability of the likeliest text that ends in each state."""
    return _forwards(product, jax.ops.segment_max, num_states, length)


def counting(product: Product) -> Product:
    """The product in which every possible text counts 1."""
    steps = product.log_next
    return product._replace(log_next=jnp.where(steps > -jnp.inf, jnp.zeros_like(steps), -jnp.inf))


def _forwards(
    product: Product, gather: Callable[..., Array], num_states: int, length: int
) -> Float[Array, "*batch D"]:
    """What is gathered by final state of texts' log-weights."""
    number, choices = product.below.shape
    below = product.below.reshape(-1)

    def of_one(log_next: Array) -> Array:
        steps = log_next.reshape(-1)

        # Derivatives compute it anew: memory grows with T and N, not with their product and V.
        @jax.checkpoint
        def step(before: Array, _: None) -> tuple[Array, None]:
            return gather(jnp.repeat(before, choices) + steps, below, number), None

        start = jnp.full(number, -jnp.inf, steps.dtype).at[0].set(0.0)
        nodes, _ = lax.scan(step, start, None, length=length)
        return gather(nodes, product.state, num_states)

    return jnp.vectorize(of_one, signature="(n,v)->(d)")(product.log_next)


@functools.partial(jax.jit, static_argnames=("num_states", "length"))
def reached_states(product: Product, *, num_states: int, length: int) -> Bool[Array, " D"]:
    """Which states some text ends in, however unlikely the reference finds it."""
    below = product.below.reshape(-1)

    def step(reached: Array, _: None) -> tuple[Array, None]:
        ways = reached[:, None] & product.possible
        return jnp.zeros_like(reached).at[below].max(ways.reshape(-1)), None

    start = jnp.zeros(product.state.shape, bool).at[0].set(True)
    reached, _ = lax.scan(step, start, None, length=length)
    return jnp.zeros(num_states, bool).at[product.state].max(reached)


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
    *,
    length: int,
) -> Float[Array, "T *batch N"]:
    """``log E_ref[exp(log_final)]`` from every node on, at each position from the first on.

    Values of the end, ``log_final`` itself, are left out.
    """

    def step(values: Array, _: None) -> tuple[Array, Array]:
        now = log_sum_exp(product.ways(values))[..., 0]
        return now, now

    _, values = lax.scan(step, log_final[..., product.state], None, length=length, reverse=True)
    return values
