"""Sets of outcomes: which ones a label means, and how much mass they have."""

from __future__ import annotations

import math
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.checks import concrete_labels, traced
from kltarget._core.numerics import log_sum_exp


def members_of(
    i: ArrayLike, j: ArrayLike, modes: ArrayLike | None, num_outcomes: int
) -> tuple[Array, Array]:
    """Which outcomes belong to each of the two, as booleans of shape ``[A]``."""
    labels = None if modes is None else concrete_labels(modes, num_outcomes)

    def members(which: Any, name: str) -> Array:
        if traced(which):
            if which.ndim or not jnp.issubdtype(which.dtype, jnp.integer):
                kind = f"{which.dtype} of shape {which.shape}"
                raise TypeError(f"{name} must be an integer, got {kind}")
            where = np.arange(num_outcomes, dtype=np.int32) if labels is None else labels
            return jnp.asarray(where).astype(which.dtype) == which
        try:
            index = operator.index(which)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {which!r}") from None
        if labels is None:
            if not 0 <= index < num_outcomes:
                raise ValueError(
                    f"{name} must be the index of an outcome, from 0 to {num_outcomes - 1}, "
                    f"got {index}"
                )
            return jnp.asarray(np.arange(num_outcomes) == index)
        if index < 0 or not (labels == index).any():
            raise ValueError(f"{name} must be a label of 0 or more among modes, got {index}")
        return jnp.asarray(labels == index)

    return members(i, "i"), members(j, "j")


def log_mass_of(log_probs: Array, members: Array) -> Array:
    """The log-mass of the outcomes in a mask ``[A]``, shape ``[*batch, 1]``."""
    members = jnp.broadcast_to(members, log_probs.shape)
    return log_sum_exp(jnp.where(members, log_probs, jnp.full_like(log_probs, -jnp.inf)))


def mode_blocks(labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Gathers that turn sums over modes into two sums over short rows, padded with index A.

    Adding the outcomes of a large mode one by one would lose digits in proportion to their number.
    """
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels[order], 0) :]
    sizes = np.unique(labels[order], return_counts=True)[1]
    if sizes.size == order.size:
        return (order[:, None].astype(np.int32),)
    width = math.isqrt(int(sizes.max()) - 1) + 1
    per_mode = -(-sizes // width)
    members = np.split(order, np.cumsum(sizes)[:-1])
    first = np.full((int(per_mode.sum()), width), labels.size, np.int32)
    second = np.full((sizes.size, int(per_mode.max())), len(first), np.int32)
    row = 0
    for mode, (outcomes, rows) in enumerate(zip(members, per_mode, strict=True)):
        first[row : row + rows].flat[: outcomes.size] = outcomes
        second[mode, :rows] = np.arange(row, row + rows)
        row += int(rows)
    return (first,) if len(first) == sizes.size else (first, second)
