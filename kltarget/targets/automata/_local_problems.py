"""One small problem per node of a product: which token comes next, given what it leads to."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from kltarget._core.numerics import widest
from kltarget.objectives import Objective
from kltarget.objectives._objective import broadcast_fields
from kltarget.targets.automata._product_walks import Product
from kltarget.targets.discrete import Target
from kltarget.targets.sequences._token_local import local_problem


def local_problems(
    product: Product,
    objective: Objective,
    full_gradient: bool,
    after: Array,
    nodes: Any = slice(None),
) -> tuple[Array, Target, Array]:
    """Worth, target and emptiness of nodes ``[M]``, by the values ``[*batch, N]`` after them."""
    _, _, beta, divergence = broadcast_fields(objective)
    values = after[..., product.below[nodes]]
    possible = jnp.broadcast_to(product.possible[nodes], values.shape)
    values = jnp.where(possible, values, -jnp.inf)
    log_next = jnp.broadcast_to(product.log_next[nodes], values.shape)
    dtype = widest(values.dtype, log_next.dtype)
    return local_problem(
        values.astype(dtype), log_next.astype(dtype), beta.astype(dtype), divergence, full_gradient
    )
