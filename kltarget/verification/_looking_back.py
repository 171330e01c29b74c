"""Transformers whose heads begin by looking back, as those of language models do."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kltarget.policies import TransformerPolicy

_SHARPNESS = 2.0
_SIZE = 2.0


def looking_back(network: TransformerPolicy, params: Any) -> Any:
    """Parameters with which each head of the first layer reads one of the tokens before the last.

    A model that is to be fine-tuned has learnt where to look; from heads that look anywhere it
    would take a policy gradient long to find what the last letters were. Positions are sines and
    cosines, of which a matrix makes those of another position: the query of head h asks for what is
    h tokens back (Vaswani et al., 2017, section 3.5).
    """
    width, size = network.width, network.width // network.num_heads
    frequencies = np.geomspace(2.5, 0.05, size // 2)
    even, odd = np.arange(0, 2 * frequencies.size, 2), np.arange(1, 2 * frequencies.size, 2)
    angles = np.arange(network.length)[:, None] * frequencies
    positions = np.zeros((network.length, width))
    positions[:, even], positions[:, odd] = _SIZE * np.cos(angles), _SIZE * np.sin(angles)
    tokens = np.array(params["tokens"])
    tokens[:, :size] = 0.0
    first, *others = params["layers"]
    attention = np.array(first["attention"])
    attention[:, : 2 * width] = 0.0
    for head in range(network.num_heads):
        turned = (head + 1) * frequencies
        query, key = head * size, width + head * size
        attention[even, query + even] = attention[odd, query + odd] = _SHARPNESS * np.cos(turned)
        attention[odd, query + even] = _SHARPNESS * np.sin(turned)
        attention[even, query + odd] = -_SHARPNESS * np.sin(turned)
        attention[even, key + even] = attention[odd, key + odd] = 1.0

    def like(x: np.ndarray, old: Array) -> Array:
        return jnp.asarray(x, old.dtype)

    first = {**first, "attention": like(attention, first["attention"])}
    return {
        **params,
        "tokens": like(tokens, params["tokens"]),
        "positions": like(positions, params["positions"]),
        "layers": [first, *others],
    }
