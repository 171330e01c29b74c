"""Texts that are asked about: whole ones, and beginnings."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget.spaces import MarkovReference


def whole_texts(reference: MarkovReference, length: int, x: ArrayLike) -> Array:
    """Tokens ``[..., T]``, or an error that says how long texts are."""
    tokens = reference.tokens(x)
    if tokens.ndim == 0 or tokens.shape[-1] != length:
        raise ValueError(
            f"x has shape {tokens.shape}, but texts have {length} tokens: the last axis must be "
            f"{length}"
        )
    return tokens


def prefix_of_text(reference: MarkovReference, length: int, prefix: ArrayLike) -> Array:
    """Tokens ``[t]`` that a text may begin with and go on after."""
    empty = not len(prefix) if isinstance(prefix, str) else not np.size(prefix)
    tokens = jnp.zeros(0, jnp.int32) if empty else reference.tokens(prefix)
    if tokens.ndim != 1 or tokens.shape[0] >= length:
        raise ValueError(
            f"prefix has shape {tokens.shape}: it needs one axis of 0 to {length - 1} tokens"
        )
    return tokens
