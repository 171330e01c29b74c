"""Sets of outcomes: which ones a label means, and how much mass they have."""

from __future__ import annotations

import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._numerics import log_sum_exp
from kltarget.objectives import _traced


def concrete_labels(modes: Any, num_outcomes: int) -> np.ndarray:
    """Labels of modes as a caller gave them, checked, shape ``[A]``."""
    if _traced(modes):
        raise TypeError(
            "modes must be concrete labels, not traced ones: they decide the shape of the result; "
            "close over them instead of passing them through jit or vmap"
        )
    labels = np.asarray(modes)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"modes must be integer labels, got dtype {labels.dtype}")
    if labels.shape != (num_outcomes,):
        raise ValueError(
            f"modes has shape {labels.shape}, but there are {num_outcomes} outcomes: "
            f"give one label per outcome, shape ({num_outcomes},)"
        )
    if not (labels >= 0).any():
        raise ValueError("modes has no label of 0 or more: every outcome is in no mode")
    return labels


def members_of(
    i: ArrayLike, j: ArrayLike, modes: ArrayLike | None, num_outcomes: int
) -> tuple[Array, Array]:
    """Which outcomes belong to each of the two, as booleans of shape ``[A]``."""
    labels = None if modes is None else concrete_labels(modes, num_outcomes)

    def members(which: Any, name: str) -> Array:
        if _traced(which):
            if which.ndim or not jnp.issubdtype(which.dtype, jnp.integer):
                raise TypeError(
                    f"{name} must be an integer, got {which.dtype} of shape {which.shape}"
                )
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


def select(condition: Array, x: Array, y: Array | float) -> Array:
    """``where`` that keeps the shape and dtype of ``x``, whatever promotion the user has set."""
    return jnp.where(condition, x, jnp.broadcast_to(jnp.asarray(y, x.dtype), x.shape))
