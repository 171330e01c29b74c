"""The most probable texts of a product of a reference and an automaton (Viterbi, of k at once)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from kltarget.targets.automata._product_walks import Product


@functools.partial(jax.jit, static_argnums=(2, 3))
def likeliest_texts(
    product: Product, log_final: Float[Array, "*batch D"], length: int, number: int
) -> tuple[Int[Array, "*batch k T"], Float[Array, "*batch k"]]:
    """The k best texts by the sum of their steps and the value of their final state."""
    flat = log_final.reshape(-1, log_final.shape[-1])
    batch, log_next, rows = log_final.shape[:-1], product.log_next, None
    if log_next.ndim > 2:
        log_next, rows = log_next.reshape(-1, *log_next.shape[-2:]), 0
    each = jax.vmap(
        lambda x, steps: _of_one(product._replace(log_next=steps), x, length, number), (0, rows)
    )
    tokens, scores = each(flat, log_next)
    return tokens.reshape(*batch, number, length), scores.reshape(*batch, number)


def _of_one(product: Product, log_final: Array, length: int, number: int) -> tuple[Array, Array]:
    def step(best: Array, _: None) -> tuple[Array, Array]:
        # Ways on from every node, best first: which token, and which of the ways after it.
        ways = jnp.moveaxis(product.ways(best.T), 0, -1)
        top, place = lax.top_k(ways.reshape(ways.shape[0], -1), number)
        return top, place

    end = log_final[product.state][:, None]
    rest = jnp.full((*end.shape[:-1], number - 1), -jnp.inf, end.dtype)
    best, places = lax.scan(
        step, jnp.concatenate([end, rest], -1), None, length=length, reverse=True
    )

    def follow(at: tuple[Array, Array], place: Array) -> tuple[tuple[Array, Array], Array]:
        node, rank = at
        token, rank = jnp.divmod(place[node, rank], number)
        return (product.below[node, token], rank), token

    start = jnp.zeros(number, product.below.dtype), jnp.arange(number, dtype=places.dtype)
    _, tokens = lax.scan(follow, start, places)
    return tokens.T, best[0]
