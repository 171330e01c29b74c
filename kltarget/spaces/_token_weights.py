"""Weights of the tokens of all sequences, however few of them are given."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core import checks
from kltarget.spaces._sequences import SequenceSpace


def token_weights(
    space: SequenceSpace, x: ArrayLike, name: str
) -> Float[Array, "sequences length"]:
    """Weights of 0 or more, of all tokens, of those of each position or of each single one."""
    space.require_enumerable()
    weight, shape = checks.float_argument(x, name), (space.num_sequences, space.length)
    if weight.shape not in ((), shape[1:], shape):
        raise ValueError(
            f"{name} has shape {weight.shape}, but must be one number, one per position "
            f"[{shape[1]}], or one per token of every sequence [{shape[0]}, {shape[1]}]"
        )
    if not checks.traced(weight):
        checks.raise_first(name, weight, ~((weight >= 0) & (weight < jnp.inf)), "must be 0 or more")
    return jnp.broadcast_to(weight, shape)


def prefix_weights(
    space: SequenceSpace, x: ArrayLike, name: str
) -> tuple[Float[Array, " prefixes"], ...]:
    """Weights of tokens that depend on what precedes them alone, by prefixes of 0, 1, … tokens."""
    table, found = token_weights(space, x, name), []
    for t in range(space.length):
        column = table[:, t].reshape(space.num_prefixes(t), -1)
        if not checks.traced(column):
            differ = np.asarray((column != column[:, :1]).any(-1))
            if differ.any():
                raise ValueError(
                    f"{name} tells sequences apart that are alike before token {t}, those of "
                    f"prefix {int(differ.argmax())} of {t} tokens: give each prefix one weight"
                )
        found.append(column[:, 0])
    return tuple(found)
