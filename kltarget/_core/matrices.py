"""Triangular factors of many small matrices.

Up to a few rows the loops are written out: elementwise operations over the batch, which XLA fuses,
where a library call per matrix costs more than its arithmetic.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_WRITTEN_OUT = 4


def cholesky(a: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """The lower factor L of ``a = LLᵀ``; NaN where ``a`` is not positive definite."""
    size = a.shape[-1]
    if size > _WRITTEN_OUT:
        return jnp.linalg.cholesky(a)
    rows: list[list[Array]] = []
    for i in range(size):
        row: list[Array] = []
        for j in range(i + 1):
            rest = a[..., i, j]
            for k in range(j):
                rest = rest - row[k] * (rows[j][k] if j < i else row[k])
            row.append(_sqrt(rest) if i == j else rest / rows[j][j])
        rows.append(row)
    return _stacked(rows)


def inverse_lower(lower: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """The inverse of a lower triangular matrix."""
    size = lower.shape[-1]
    if size > _WRITTEN_OUT:
        eye = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), lower.shape)
        return jax.scipy.linalg.solve_triangular(lower, eye, lower=True)
    rows: list[list[Array]] = []
    for i in range(size):
        scale = 1 / lower[..., i, i]
        row = [-scale * sum(lower[..., i, k] * rows[k][j] for k in range(j, i)) for j in range(i)]
        rows.append([*row, scale])
    return _stacked(rows)


def times(a: Float[Array, "*batch i j"], x: Float[Array, "*batch j"]) -> Float[Array, "*batch i"]:
    """Products of matrices and vectors, in the full precision of their type on every device."""
    return jnp.einsum("...ij,...j->...i", a, x, precision="highest")


def product(a: Float[Array, "*batch i j"], b: Float[Array, "*batch j k"]) -> Array:
    """Products of matrices, in the full precision of their type on every device."""
    return jnp.einsum("...ij,...jk->...ik", a, b, precision="highest")


def transposed(a: Float[Array, "*batch i j"]) -> Float[Array, "*batch j i"]:
    """Rows and columns exchanged."""
    return jnp.swapaxes(a, -1, -2)


def diagonal(a: Float[Array, "*batch d d"]) -> Float[Array, "*batch d"]:
    """The diagonals."""
    return jnp.diagonal(a, axis1=-2, axis2=-1)


def _sqrt(x: Array) -> Array:
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.nan)


def _stacked(rows: list[list[Array]]) -> Array:
    zero = jnp.zeros_like(rows[0][0])
    full = [jnp.stack([*row, *[zero] * (len(rows) - len(row))], axis=-1) for row in rows]
    return jnp.stack(full, axis=-2)
