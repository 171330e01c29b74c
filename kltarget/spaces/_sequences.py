"""The tree of token sequences: its order, its prefixes, and distributions on it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from kltarget._core.checks import at_index, first_index, float_argument, worded
from kltarget._core.numerics import log_sum_exp, widest, working_dtype
from kltarget.spaces._layers import Branches

MAX_SEQUENCES = 10**8
"""More sequences are not enumerated, as a target holds a dozen arrays of so many floats at once."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SequenceSpace:
    """All sequences of ``length`` tokens, in lexicographic order: the leaves of a token tree.

    A distribution over sequences is an array of log-probabilities ``[..., V**L]``. Sequence
    ``a_1…a_L`` has index ``Σ_t a_t V^(L−t)``, so that reshaping to ``[..., V, V, …]`` gives the
    tree, and the ``V**t`` prefixes of t tokens are in lexicographic order too.

    Where the choice of tokens depends on the position, ``vocab_size`` is a tuple with one size per
    position: then ``V_1·V_2⋯V_t`` stands for every ``V**t`` below, and ``V_{t+1}`` for the V of the
    tokens that may follow t others.

    With ``eos`` sequences vary in length: one ends at its first ``eos``, which only more of them
    may follow up to ``length``. Arrays still have ``V**L`` entries; those that continue after their
    end are impossible, log-probability ``-inf`` (:meth:`possible`).

    Made of plain integers, hashable, and a static pytree: usable as a static argument of
    ``jax.jit`` and as an ordinary one.

    Args:
        vocab_size: the number V of tokens, at least 1; or a tuple of L such numbers, one per
            position.
        length: the number L of tokens in a sequence, at least 1.
        eos: the token that ends a sequence, if one does; only with a single ``vocab_size``.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range. Methods that list the sequences raise it when there
            are more than 1e8 of them, with the count; the space itself may be of any size.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> space = kt.SequenceSpace(2, 2)
        >>> space.sequences().tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
        >>> root, after = space.conditionals(jnp.log(jnp.array([0.42, 0.28, 0.06, 0.24])))
        >>> [f"{p:.2f}" for p in jnp.exp(root)[0]]
        ['0.70', '0.30']
        >>> [[f"{p:.2f}" for p in row] for row in jnp.exp(after)]
        [['0.60', '0.40'], ['0.20', '0.80']]

        A digit, a sign and a digit:

        >>> sums = kt.SequenceSpace((9, 2, 9), 3)
        >>> sums.num_sequences, int(sums.index([8, 1, 8]))
        (162, 161)
    """

    vocab_size: int | tuple[int, ...]
    length: int
    eos: int | None = None

    def __post_init__(self) -> None:
        vocab_size = self.vocab_size
        if isinstance(vocab_size, tuple | list):
            vocab_size = tuple(_integer("vocab_size", size) for size in vocab_size)
        else:
            vocab_size = _integer("vocab_size", vocab_size)
        object.__setattr__(self, "vocab_size", vocab_size)
        object.__setattr__(self, "length", _integer("length", self.length))
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
        require_sizes(vocab_size, self.length)
        if self.eos is not None:
            object.__setattr__(self, "eos", _integer("eos", self.eos))
            require_eos(vocab_size, self.eos)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of tokens to choose from at each position, L integers."""
        return position_sizes(self.vocab_size, self.length)

    @property
    def num_sequences(self) -> int:
        """The size ``V**L`` of arrays over the sequences, impossible ones included."""
        return self.num_prefixes(self.length)

    def num_prefixes(self, t: int) -> int:
        """The number ``V**t`` of prefixes of t tokens, impossible ones included."""
        return math.prod(self.sizes[:t])

    @functools.cached_property
    def branches(self) -> Branches:
        """The tree as index arrays on the host, impossible sequences included."""
        self.require_enumerable()
        sizes, none = self.sizes, np.empty(0, np.int64)
        children = (
            np.arange(self.num_prefixes(t + 1)).reshape(-1, size) for t, size in enumerate(sizes)
        )
        return Branches(tuple(children), (none,) * len(sizes) + (np.arange(self.num_sequences),))

    def sequences(self) -> Int[Array, "sequences length"]:
        """All sequences in order, int32 ``[V**L, L]``, impossible ones included.

        Raises:
            ValueError: there are too many.
        """
        self.require_enumerable()
        return _sequences(self)

    def index(self, tokens: ArrayLike) -> Int[Array, "..."]:
        """Where sequences are in the order.

        Args:
            tokens: integers from 0 to V − 1, shape ``[..., L]``.

        Returns:
            Indices, int32 ``[...]``.

        Raises:
            TypeError: tokens are not integers.
            ValueError: the last axis is not L, there are too many sequences, or, outside a trace,
                there is no such token. Under a trace the index is −1 there.

        Example:
            >>> import kltarget as kt
            >>> print(kt.SequenceSpace(3, 2).index([[0, 1], [2, 2]]))
            [1 8]
        """
        self.require_enumerable()
        array = jnp.asarray(tokens)
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"tokens must be integers, got dtype {array.dtype}")
        if array.ndim == 0 or array.shape[-1] != self.length:
            raise ValueError(
                f"tokens has shape {array.shape}, but sequences have {self.length} tokens: "
                f"the last axis must be {self.length}"
            )
        if not isinstance(array, Tracer):
            require_tokens(self, np.asarray(array), "tokens")
        return _index(self, array)

    def possible(self) -> Bool[Array, " sequences"]:
        """Which sequences exist: those where only ``eos`` follows ``eos``; booleans ``[V**L]``.

        Rewards that do not know of ``eos`` are made fit for it by
        ``jnp.where(space.possible(), reward, -jnp.inf)``.

        Raises:
            ValueError: there are too many.

        Example:
            >>> import kltarget as kt
            >>> print(kt.SequenceSpace(2, 2, eos=0).possible())
            [ True False  True  True]
        """
        self.require_enumerable()
        return _walk(self)[0]

    def lengths(self) -> Int[Array, " sequences"]:
        """How many tokens each sequence has, its first ``eos`` included; int32 ``[V**L]``.

        Raises:
            ValueError: there are too many.

        Example:
            >>> import kltarget as kt
            >>> print(kt.SequenceSpace(2, 2, eos=0).lengths())
            [1 1 2 2]
        """
        self.require_enumerable()
        return _walk(self)[1]

    def prefix_log_masses(self, log_probs: ArrayLike) -> tuple[Float[Array, "..."], ...]:
        """The log-probability of starting with each prefix.

        Args:
            log_probs: log-probabilities of the sequences, shape ``[..., V**L]``.

        Returns:
            L + 1 arrays: of shape ``[..., V**t]`` for the prefixes of t = 0…L tokens, from the
            total mass to ``log_probs`` themselves.

        Raises:
            ValueError: the last axis is not ``V**L``, there are too many sequences, or, outside a
                trace, an impossible sequence has mass. Under a trace such mass does not count.

        ``-inf`` where nothing is possible. Differentiable; derivatives at ``-inf`` are 0.

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> log_probs = jnp.log(jnp.array([0.5, 0.25, 0.125, 0.125]))
            >>> print(jnp.exp(kt.SequenceSpace(2, 2).prefix_log_masses(log_probs)[1]))
            [0.75 0.25]
        """
        x = self.require_log_probs(log_probs, "log_probs")
        return tuple(mass.astype(x.dtype) for mass in _prefix_log_masses(self, x))

    def conditionals(self, log_probs: ArrayLike) -> tuple[Float[Array, "..."], ...]:
        """Next-token log-probabilities at every prefix; :meth:`joint` is their inverse.

        Args:
            log_probs: log-probabilities of the sequences, shape ``[..., V**L]``. Of unnormalised
                ones the conditionals are those of the normalised.

        Returns:
            L arrays, of shape ``[..., V**t, V]`` for the prefixes of t = 0…L−1 tokens: first the
            prefix, then the token. Every row is normalised.

        Raises:
            ValueError: as for :meth:`prefix_log_masses`.

        After ``eos`` they are 0 at ``eos`` and ``-inf`` elsewhere. At other prefixes without any
        mass conditionals are undefined; uniform ones stand there, whose derivatives are 0. What
        ``joint`` makes of them is ``-inf`` again. Differentiable; derivatives at ``-inf`` are 0.

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> log_probs = jnp.log(jnp.array([0.25, 0.75, 0.0, 0.0]))
            >>> print(jnp.exp(kt.SequenceSpace(2, 2).conditionals(log_probs)[1]))
            [[0.25 0.75]
             [0.5  0.5 ]]
        """
        x = self.require_log_probs(log_probs, "log_probs")
        return tuple(given.astype(x.dtype) for given in conditionals(self, x))

    def joint(self, conditionals: Sequence[ArrayLike]) -> Float[Array, "... sequences"]:
        """Log-probabilities of the sequences, ``log π(y) = Σ_t log π(a_t | a_1…a_{t−1})``.

        Args:
            conditionals: L arrays of next-token log-probabilities, of shape ``[..., V**t, V]`` for
                t = 0…L−1; their batch axes broadcast. After ``eos`` they are not looked at.

        Returns:
            Log-probabilities, shape ``[..., V**L]``.

        Raises:
            ValueError: not L arrays, or their shapes do not fit; there are too many sequences.

        ``-inf`` anywhere on the way makes a sequence impossible. Differentiable.

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> root = jnp.log(jnp.array([[0.5, 0.5]]))
            >>> after = jnp.log(jnp.array([[0.25, 0.75], [1.0, 0.0]]))
            >>> print(jnp.exp(kt.SequenceSpace(2, 2).joint((root, after))))
            [0.125 0.375 0.5   0.   ]
        """
        self.require_enumerable()
        if len(conditionals) != self.length:
            raise ValueError(
                f"conditionals has {len(conditionals)} arrays; {self.length} are needed, "
                "one for each number of tokens before the next"
            )
        arrays = [float_argument(x, f"conditionals[{t}]") for t, x in enumerate(conditionals)]
        for t, x in enumerate(arrays):
            nodes = (self.num_prefixes(t), self.sizes[t])
            if x.shape[-2:] != nodes:
                raise ValueError(
                    f"conditionals[{t}] has shape {x.shape}, but its last two axes must be "
                    f"{nodes}: prefixes of {t} tokens, next tokens"
                )
        shapes = [x.shape[:-2] for x in arrays]
        listed = ", ".join(map(str, shapes))
        with worded(f"the batch axes of conditionals do not broadcast: {listed}"):
            batch = jnp.broadcast_shapes(*shapes)
        dtype = widest(*(x.dtype for x in arrays))
        wide = tuple(
            jnp.broadcast_to(x.astype(working_dtype(dtype)), (*batch, *x.shape[-2:]))
            for x in arrays
        )
        return joint(self, wide).astype(dtype)

    def require_enumerable(self) -> None:
        """Raises a ``ValueError`` if there are more sequences than one can list."""
        if self.num_sequences > MAX_SEQUENCES:
            digits = sum(map(math.log10, self.sizes))
            raise ValueError(
                f"there are {counted(self)} sequences, about 1e{digits:.0f}, "
                f"and at most {MAX_SEQUENCES:,} can be listed: shorten length or vocab_size, or "
                "give rewards per prefix to kltarget.soft_values, which lists only the prefixes"
            )

    def require_log_probs(self, log_probs: ArrayLike, name: str) -> Float[Array, "... sequences"]:
        """``log_probs`` as a float array ``[..., V**L]``, or an error that names it."""
        x = over_sequences(self, log_probs, name)
        if self.eos is not None and not isinstance(x, Tracer) and _has_impossible_mass(self, x):
            at = first_index(~self.possible() & ~jnp.isneginf(x))
            raise ValueError(
                f"{name} must be -inf at sequences that continue after eos, got {x[at]}"
                f"{at_index(at)}; space.possible() says which they are"
            )
        return x


def _integer(name: str, given: object) -> int:
    try:
        return operator.index(given)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {given!r}") from None


def position_sizes(vocab_size: int | tuple[int, ...], length: int) -> tuple[int, ...]:
    """The number of tokens to choose from at each position."""
    return vocab_size if isinstance(vocab_size, tuple) else (vocab_size,) * length


def require_sizes(vocab_size: int | tuple[int, ...], length: int) -> None:
    """Raises unless there is a number of tokens, at least 1, for every position."""
    if isinstance(vocab_size, tuple) and len(vocab_size) != length:
        raise ValueError(
            f"vocab_size has {len(vocab_size)} entries, but sequences have {length} tokens: give "
            "one size per position, or one integer for all"
        )
    if min(position_sizes(vocab_size, length)) < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")


def require_eos(vocab_size: int | tuple[int, ...], eos: int) -> None:
    """Raises unless ``eos`` is a token, the same at every position."""
    if isinstance(vocab_size, tuple):
        raise ValueError(
            f"eos must be None where vocab_size is a tuple, got {eos}: what ends a sequence at "
            "one position is no token, or another, at the next"
        )
    if not 0 <= eos < vocab_size:
        raise ValueError(f"eos must be a token, from 0 to {vocab_size - 1}, or None; got {eos}")


def require_tokens(space: SequenceSpace, tokens: np.ndarray, name: str) -> None:
    """Raises unless integers ``[..., L]`` are tokens of their positions."""
    bad = np.argwhere((tokens < 0) | (tokens >= np.array(space.sizes)))
    if bad.size:
        at = tuple(int(i) for i in bad[0])
        where = f" at position {at[-1]}" if isinstance(space.vocab_size, tuple) else ""
        raise ValueError(
            f"{name} must be from 0 to {space.sizes[at[-1]] - 1}{where}, "
            f"got {tokens[at]} at index {at}"
        )


def over_sequences(space: SequenceSpace, x: ArrayLike, name: str) -> Array:
    """``x`` as a float array ``[..., V**L]``, or an error that names both shapes."""
    space.require_enumerable()
    array, count = float_argument(x, name), space.num_sequences
    if array.ndim == 0 or array.shape[-1] != count:
        raise ValueError(
            f"{name} has shape {array.shape}, but there are {counted(space)} = {count} sequences: "
            f"the last axis must be {count}"
        )
    return array


def counted(space: SequenceSpace) -> str:
    """The number of sequences as a power or a product."""
    if isinstance(space.vocab_size, tuple):
        return "·".join(map(str, space.vocab_size))
    return f"{space.vocab_size}**{space.length}"


@functools.partial(jax.jit, static_argnums=0)
def _sequences(space: SequenceSpace) -> Array:
    each = jnp.arange(space.num_sequences, dtype=jnp.int32)
    tokens = []
    for size in reversed(space.sizes):
        tokens.append(each % size)
        each = each // size
    return jnp.stack(tokens[::-1], axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _index(space: SequenceSpace, tokens: Array) -> Array:
    inside = jnp.ones(tokens.shape[:-1], bool)
    index = jnp.zeros(tokens.shape[:-1], jnp.int32)
    for t, size in enumerate(space.sizes):
        token = tokens[..., t]
        inside = inside & (token >= 0) & (token < size)
        index = index * size + token.astype(jnp.int32)
    return jnp.where(inside, index, -1)


@functools.partial(jax.jit, static_argnums=0)
def _walk(space: SequenceSpace) -> tuple[Array, Array]:
    """Which sequences exist, and how many tokens they have."""
    exists, ended = jnp.ones((1,), bool), jnp.zeros((1,), bool)
    length = jnp.zeros((1,), jnp.int32)
    for size in space.sizes:
        ends = jnp.arange(size) == (-1 if space.eos is None else space.eos)
        exists = (exists[:, None] & (~ended[:, None] | ends[None])).ravel()
        length = jnp.repeat(length + (~ended).astype(jnp.int32), size)
        ended = (ended[:, None] | ends[None]).ravel()
    return exists, length


@functools.partial(jax.jit, static_argnums=0)
def _has_impossible_mass(space: SequenceSpace, log_probs: Array) -> Array:
    return jnp.any(jnp.where(_walk(space)[0], -jnp.inf, log_probs) > -jnp.inf)


def only_possible(space: SequenceSpace, x: Array) -> Array:
    """``x`` over the sequences, ``-inf`` at those that continue after their end."""
    if space.eos is None:
        return x
    possible = jnp.broadcast_to(_walk(space)[0], x.shape)
    return jnp.where(possible, x, jnp.full_like(x, -jnp.inf))


def ended(space: SequenceSpace, num_nodes: int) -> Array:
    """Whether prefixes end in ``eos``, from their last tokens, shape ``[num_nodes]``."""
    return jnp.arange(num_nodes, dtype=jnp.int32) % space.sizes[0] == space.eos


def after_eos(space: SequenceSpace, given: Array) -> Array:
    """An array ``[..., nodes, V]``, with 0 at ``eos`` and ``-inf`` elsewhere after ``eos``."""
    vocab_size = given.shape[-1]
    if space.eos is None or given.shape[-2] < vocab_size:
        return given
    over = jnp.broadcast_to(ended(space, given.shape[-2])[:, None], given.shape)
    more = jnp.arange(vocab_size, dtype=jnp.int32) == space.eos
    forced = jnp.where(more, jnp.zeros((), given.dtype), jnp.asarray(-jnp.inf, given.dtype))
    return jnp.where(over, jnp.broadcast_to(forced, given.shape), given)


@functools.partial(jax.jit, static_argnums=0)
def _prefix_log_masses(space: SequenceSpace, log_probs: Array) -> tuple[Array, ...]:
    mass = only_possible(space, log_probs.astype(working_dtype(log_probs.dtype)))
    masses = [mass]
    for t in reversed(range(space.length)):
        mass = log_sum_exp(children(space, mass, t))[..., 0]
        masses.append(mass)
    return tuple(masses[::-1])


def children(space: SequenceSpace, x: Array, t: int) -> Array:
    """An array over prefixes ``[..., V**(t+1)]`` as one over their parents ``[..., V**t, V]``."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // space.sizes[t], space.sizes[t])


@functools.partial(jax.jit, static_argnums=0)
def conditionals(space: SequenceSpace, log_probs: Array) -> tuple[Array, ...]:
    """:meth:`SequenceSpace.conditionals` of a checked array, in the working dtype."""
    masses = _prefix_log_masses(space, log_probs)
    found = []
    for t, (mass, below) in enumerate(itertools.pairwise(masses)):
        child = children(space, below, t)
        parent = jnp.broadcast_to(mass[..., None], child.shape)
        empty, gone = jnp.isneginf(parent), jnp.isneginf(child)
        ratio = jnp.where(gone, 0.0, child) - jnp.where(empty, 0.0, parent)
        ratio = jnp.where(gone, -jnp.inf, ratio)
        uniform = jnp.full_like(ratio, -math.log(space.sizes[t]))
        found.append(after_eos(space, jnp.where(empty, uniform, ratio)))
    return tuple(found)


@functools.partial(jax.jit, static_argnums=0)
def joint(space: SequenceSpace, conditionals: tuple[Array, ...]) -> Array:
    """:meth:`SequenceSpace.joint` of checked arrays of one batch shape and dtype."""
    batch = conditionals[0].shape[:-2]
    log_probs = jnp.zeros((*batch, 1), conditionals[0].dtype)
    for t, given in enumerate(conditionals):
        log_probs = log_probs[..., None] + after_eos(space, given)
        log_probs = log_probs.reshape(*batch, space.num_prefixes(t + 1))
    return log_probs
