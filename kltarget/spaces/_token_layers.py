"""The prefixes of a token tree by their number of tokens, to be walked backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from kltarget.spaces._sequences import SequenceSpace, ended


class TokenLayer(NamedTuple):
    """The prefixes of t tokens, as a :class:`~kltarget.spaces.Layer`.

    Values may be of fewer prefixes than there are, told apart by their last tokens; the same then
    stands for several.
    """

    log_ref: Array
    """Conditionals of the reference, ``[*batch, nodes, V]``."""
    earned: Array | None = None
    """Reward on reaching each prefix, ``[*batch, nodes]``, of this many nodes or more."""
    ended: Array | None = None
    """Whether the prefixes that values are of end in ``eos``."""

    def children(self, values: Array) -> Array:
        size = self.log_ref.shape[-1]
        if values.shape[-1] < size:
            after = jnp.broadcast_to(values[..., None], (*values.shape, size))
        else:
            after = values.reshape(*values.shape[:-1], -1, size)
        return repeated(after, self.log_ref.shape[-2], -2)


def token_layers(
    space: SequenceSpace,
    conditionals: Sequence[Array],
    earned: Sequence[Array | None],
    num_values: int,
) -> tuple[TokenLayer, ...]:
    """The layers of a token tree, or of its first tokens, with values for ``num_values`` leaves.

    Conditionals and rewards may be of fewer prefixes than there are, told apart by last tokens.
    """
    layers = []
    for t in reversed(range(len(earned))):
        given, reward, size = conditionals[t], earned[t], space.sizes[t]
        num_nodes = num_values if num_values < size else num_values // size
        given = repeated(given, max(num_nodes, given.shape[-2]), -2)
        num_values = given.shape[-2] if reward is None else max(given.shape[-2], reward.shape[-1])
        over = None
        if t and reward is not None and space.eos is not None:
            over = ended(space, given.shape[-2])
        layers.append(TokenLayer(given, reward, over))
    return tuple(layers[::-1])


def repeated(x: Array, size: int, axis: int) -> Array:
    """An array for ``size`` prefixes from one of fewer, told apart by their last tokens."""
    times = [1] * x.ndim
    times[axis] = size // x.shape[axis]
    return x if times[axis] <= 1 else jnp.tile(x, times)
