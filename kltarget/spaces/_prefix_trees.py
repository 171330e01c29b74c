"""Trees of given token sequences, of any lengths."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from kltarget._core.checks import float_argument
from kltarget.spaces._layers import Branches


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PrefixTree:
    """The tree of some token sequences: a leaf each, in their order, at the depth of its length.

    For completions that were observed: what else may follow a prefix is one further sequence, which
    ends in a token of its own. A distribution is an array of log-probabilities ``[..., A]`` over
    the sequences. Where all sequences of one length are meant, :class:`SequenceSpace` is faster.

    Hashable, and a static pytree.

    Args:
        sequences: tuples of tokens, integers or any other hashable ones; no two are equal and none
            begins with another.

    Raises:
        ValueError: no sequence, an empty one, or one that begins with another.

    Example:
        >>> from kltarget.spaces import PrefixTree
        >>> tree = PrefixTree((("a", "b"), ("a", "?"), ("?",)))
        >>> print(tree.lengths())
        [2 2 1]
    """

    sequences: tuple[tuple[Hashable, ...], ...]

    def __post_init__(self) -> None:
        sequences = tuple(map(tuple, self.sequences))
        object.__setattr__(self, "sequences", sequences)
        if not all(sequences) or not sequences:
            raise ValueError("sequences must be one or more, of a token or more each")
        prefixes = {sequence[:t] for sequence in sequences for t in range(1, len(sequence))}
        for sequence in sequences:
            if sequence in prefixes:
                raise ValueError(f"sequences: another begins with {sequence!r}, so it is no leaf")
        if len(set(sequences)) < len(sequences):
            raise ValueError("sequences: one is given twice")

    @property
    def num_sequences(self) -> int:
        """The number A of sequences."""
        return len(self.sequences)

    @property
    def length(self) -> int:
        """The number of tokens of the longest sequence."""
        return max(map(len, self.sequences))

    def lengths(self) -> Int[Array, " sequences"]:
        """How many tokens each sequence has, int32 ``[A]``."""
        return jnp.array(list(map(len, self.sequences)), jnp.int32)

    def possible(self) -> Bool[Array, " sequences"]:
        """Which sequences exist: all of them, booleans ``[A]``."""
        return jnp.ones(len(self.sequences), bool)

    def require_log_probs(self, log_probs: ArrayLike, name: str) -> Float[Array, "... sequences"]:
        """``log_probs`` as a float array ``[..., A]``, or an error that names it."""
        x = float_argument(log_probs, name)
        if x.ndim == 0 or x.shape[-1] != self.num_sequences:
            raise ValueError(
                f"{name} has shape {x.shape}, but there are {self.num_sequences} sequences: the "
                f"last axis must be {self.num_sequences}"
            )
        return x

    @functools.cached_property
    def branches(self) -> Branches:
        """The tree as index arrays."""
        children, leaves = [], [np.empty(0, np.int64)]
        # The sequences that pass through every node that branches.
        nodes = [list(range(self.num_sequences))]
        while nodes:
            below = [self._by_token(node, len(children)) for node in nodes]
            children.append(np.full((len(nodes), max(map(len, below))), -1, np.int64))
            counts = np.array(list(map(len, below)))
            nodes = [node for each in below for node in each]
            ends = np.array([len(self.sequences[node[0]]) == len(children) for node in nodes])
            order = np.argsort(ends, kind="stable")
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            children[-1][np.arange(counts.max()) < counts[:, None]] = place
            leaves.append(np.array([nodes[i][0] for i in np.flatnonzero(ends)], np.int64))
            nodes = [nodes[i] for i in np.flatnonzero(~ends)]
        return Branches(tuple(children), tuple(leaves))

    def _by_token(self, node: list[int], position: int) -> list[list[int]]:
        found: dict[Hashable, list[int]] = {}
        for i in node:
            found.setdefault(self.sequences[i][position], []).append(i)
        return list(found.values())
