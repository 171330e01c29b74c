"""References in which the next token depends on the last few: Markov chains over tokens."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kltarget._core.checks import (
    at_index,
    first_index,
    float_arguments,
    mass_tolerance,
    positive,
    require_normalized,
    traced,
    typed_key,
)
from kltarget._core.numerics import working_dtype
from kltarget._core.pytrees import register
from kltarget._core.short_repr import short_repr


@dataclasses.dataclass(frozen=True, eq=False)
class MarkovReference:
    """A Markov chain of order k over V tokens: the distribution of a language model in small.

    Where such a chain is by now are its contexts: the last k tokens, or all of them where there are
    fewer. Context 0 is the beginning.

    Args:
        log_initial: log-probabilities of the first k tokens together, k axes of V each; for a chain
            of order 1 that of the first token, ``[V]``.
        log_transition: log-probabilities of the next token after each k, k + 1 axes of V; for a
            chain of order 1 ``[V, V]``, the last token first.
        alphabet: what the tokens are called, V strings; numbers if it is left out.
        end: the token after which a text is over, which only itself follows; its row of
            ``log_transition`` must say so.

    Raises:
        ValueError: shapes that do not fit, and outside a trace rows that are not normalised or that
            let texts go on after their end.

    Differentiable in both arrays. ``-inf`` is a token that is impossible there; after tokens that
    are impossible themselves a row may hold anything normalised. Arrays of 16 bits are held, and
    computed with, in float32, normalised anew.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import MarkovReference
        >>> even = jnp.log(jnp.full(2, 0.5))
        >>> sticky = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> reference = MarkovReference(even, sticky)
        >>> print(f"{jnp.exp(reference.log_prob([0, 0, 1])):.3f}")
        0.045
    """

    __repr__ = short_repr

    log_initial: Float[Array, "..."]
    log_transition: Float[Array, "... V"]
    alphabet: tuple[str, ...] | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        arrays = float_arguments(log_initial=self.log_initial, log_transition=self.log_transition)
        initial, transition = arrays["log_initial"], arrays["log_transition"]
        size, order = transition.shape[-1] if transition.ndim else 0, initial.ndim
        if order < 1 or initial.shape != (size,) * order:
            raise ValueError(
                f"log_initial has shape {initial.shape}: it needs an axis of {size} tokens for "
                "each of the first k tokens, as log_transition has one more"
            )
        if transition.shape != (size,) * (order + 1):
            raise ValueError(
                f"log_transition has shape {transition.shape}, which does not fit log_initial of "
                f"shape {initial.shape}: it needs {order + 1} axes of {size}"
            )
        require_normalized(log_initial=initial.reshape(-1), log_transition=transition)
        alphabet = self.alphabet
        if alphabet is not None:
            alphabet = tuple(alphabet)
            if len(alphabet) != size or len(set(alphabet)) != size:
                raise ValueError(
                    f"alphabet must name each of the {size} tokens once, got {len(alphabet)} names"
                )
        if self.end is not None and not 0 <= self.end < size:
            raise ValueError(f"end must be a token from 0 to {size - 1}, got {self.end}")
        if self.end is not None:
            _require_over("log_initial", initial, self.end, alphabet)
            _require_over("log_transition", transition, self.end, alphabet)
        dtype = working_dtype(initial.dtype)
        if dtype != initial.dtype:
            # Rounding to 16 bits would add up along a text.
            initial, transition = initial.astype(dtype), transition.astype(dtype)
            initial = initial - jax.nn.logsumexp(initial)
            transition = jax.nn.log_softmax(transition)
        for name, x in (("log_initial", initial), ("log_transition", transition)):
            object.__setattr__(self, name, x)
        object.__setattr__(self, "alphabet", alphabet)

    @property
    def vocab_size(self) -> int:
        """The number V of tokens."""
        return self.log_transition.shape[-1]

    @property
    def order(self) -> int:
        """How many tokens the next one depends on, k."""
        return self.log_initial.ndim

    @property
    def num_contexts(self) -> int:
        """The number of contexts, ``1 + V + … + V**k``."""
        return sum(self.vocab_size**j for j in range(self.order + 1))

    def log_next(self) -> Float[Array, "contexts V"]:
        """Log-probabilities of the next token in each context, the shorter contexts first."""
        return _log_next(self)

    @functools.cached_property
    def following(self) -> np.ndarray:
        """The context that each token leads to from each, integers ``[contexts, V]``."""
        return following_contexts(self.vocab_size, self.order)

    @functools.cached_property
    def over(self) -> np.ndarray:
        """Which contexts are after an end, booleans ``[contexts]``."""
        over = np.zeros(self.num_contexts, bool)
        if self.end is not None:
            # A context is entered by its last token.
            over[self.following[:, self.end]] = True
        return over

    def contexts(self, tokens: ArrayLike) -> Int[Array, "... T"]:
        """The context before each token.

        Args:
            tokens: integers from 0 to V − 1, shape ``[..., T]``.

        Returns:
            Contexts, of the same shape, the first of each row 0.
        """
        return walk(jnp.asarray(self.following), self.tokens(tokens))[..., :-1]

    def log_prob(self, tokens: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of texts.

        Args:
            tokens: integers from 0 to V − 1, shape ``[..., T]``; or a string, or a list of strings
                of one length, where the chain has an alphabet of single letters.

        Returns:
            Shape ``[...]``.
        """
        return self.log_probs(tokens).sum(-1)

    def log_probs(self, tokens: ArrayLike) -> Float[Array, "... T"]:
        """Log-probabilities of each token of texts, given those before it.

        Args:
            tokens: as for :meth:`log_prob`.

        Returns:
            Shape ``[..., T]``, whose sum over the last axis is :meth:`log_prob`.
        """
        return _log_probs(self, self.tokens(tokens))

    def sample(
        self, *, key: PRNGKeyArray, num_samples: int, length: int
    ) -> Int[Array, "num_samples length"]:
        """Independent texts of a length, tokens of shape ``[num_samples, length]``."""
        positive("num_samples", num_samples)
        positive("length", length)
        following = jnp.asarray(self.following)
        return _sample(self.log_next(), following, typed_key(key), num_samples, length)

    def tokens(self, texts: Any) -> Int[Array, "... T"]:
        """Tokens of strings of one length, or tokens as they are.

        Raises:
            ValueError: letters outside of the alphabet, strings of several lengths, or tokens that
                there are not.
        """
        if isinstance(texts, str) or (
            isinstance(texts, Sequence) and texts and isinstance(texts[0], str)
        ):
            return jnp.asarray(self._spelled(texts))
        if not traced(texts):
            texts = np.asarray(texts)
            if np.issubdtype(texts.dtype, np.str_):
                return self.tokens(texts.tolist())
            # Of no tokens NumPy makes floats.
            texts = texts if texts.size else texts.astype(np.int32)
        tokens = jnp.asarray(texts)
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
        if not traced(tokens):
            outside = (np.asarray(tokens) < 0) | (np.asarray(tokens) >= self.vocab_size)
            if outside.any():
                at = first_index(outside)
                raise ValueError(
                    f"tokens: there is no token {np.asarray(tokens)[at]}{at_index(at)}, only 0 to "
                    f"{self.vocab_size - 1}"
                )
        return tokens

    def _spelled(self, texts: str | Sequence[str]) -> np.ndarray:
        if self.alphabet is None:
            raise ValueError("tokens: the reference has no alphabet to spell strings in")
        places = {name: i for i, name in enumerate(self.alphabet)}
        listed = [texts] if isinstance(texts, str) else list(texts)
        if len({len(text) for text in listed}) > 1:
            raise ValueError("tokens: these strings are of several lengths")
        for text in listed:
            strange = [x for x in text if x not in places]
            if strange:
                raise ValueError(f"tokens: {strange[0]!r} is not in the alphabet")
        rows = np.array([[places[x] for x in text] for text in listed], np.int32)
        return rows[0] if isinstance(texts, str) else rows

    def spell(self, tokens: ArrayLike) -> Any:
        """Texts as strings, up to their end: one, or nested lists of them.

        Raises:
            ValueError: there is no alphabet, or tokens that there are not, such as the -1 of texts
                that could not be drawn.
        """
        if self.alphabet is None:
            raise ValueError("the reference has no alphabet to spell strings in")
        rows = np.asarray(self.tokens(tokens))
        if rows.ndim > 1:
            return [self.spell(row) for row in rows]
        listed = rows.tolist()
        if self.end in listed:
            listed = listed[: listed.index(self.end)]
        return "".join(self.alphabet[i] for i in listed)

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        *,
        order: int = 1,
        smoothing: float = 0.1,
        alphabet: Sequence[str] | None = None,
        end: str | None = None,
    ) -> MarkovReference:
        """A chain of the letters of texts.

        Args:
            texts: strings of ``order`` letters or more.
            order: how many letters the next one depends on.
            smoothing: added to every count, so that nothing is impossible.
            alphabet: the letters, by default those of the texts, sorted.
            end: a letter that is not in the texts and ends each of them; a chain with it makes
                texts of any length.

        Raises:
            TypeError: one string instead of several, or texts that are not strings.
            ValueError: no texts, too short ones, ones with an end in them, an end that is not one
                letter, letters outside the alphabet, an order below 1, smoothing that is below 0 or
                not finite.

        Example:
            >>> from kltarget.spaces import MarkovReference
            >>> reference = MarkovReference.fit(["abab", "aab"], smoothing=0.0)
            >>> print(f"{reference.log_prob('ab'):.3f}")
            -0.288
        """
        if isinstance(texts, str):
            raise TypeError("texts must be several strings, got one: put it in a list, [text]")
        listed = list(texts)
        for i, text in enumerate(listed):
            if not isinstance(text, str):
                raise TypeError(f"texts must be strings, got {text!r} at {i}")
        positive("order", order)
        if not 0 <= smoothing < math.inf:
            raise ValueError(f"smoothing must be 0 or more and finite, got {smoothing}")
        letters = sorted(set().union(*listed)) if alphabet is None else list(alphabet)
        if end is not None:
            if len(end) != 1:
                raise ValueError(f"end must be one letter, got {end!r}")
            for i, text in enumerate(listed):
                if end in text:
                    raise ValueError(
                        f"texts: text {i} contains the end {end!r} at {text.index(end)}: cut it "
                        "there, or take an end that no text has"
                    )
            letters = [*(x for x in letters if x != end), end]
            listed = [text + end * max(1, order - len(text)) for text in listed]
        if not listed or min(map(len, listed)) < order:
            raise ValueError(f"texts must be strings of {order} letters or more, and at least one")
        places, size = {x: i for i, x in enumerate(letters)}, len(letters)
        first = np.full((size,) * order, float(smoothing))
        then = np.full((size,) * (order + 1), float(smoothing))
        for text in listed:
            strange = [x for x in text if x not in places]
            if strange:
                raise ValueError(f"texts: {strange[0]!r} is not in the alphabet")
            ids = [places[x] for x in text]
            first[tuple(ids[:order])] += 1
            for i in range(order, len(ids)):
                then[tuple(ids[i - order : i + 1])] += 1
        # Contexts that no text has, and none can have without smoothing.
        then[then.sum(-1) == 0] = 1.0
        if end is not None:
            _absorb(first, then, size - 1)
        with np.errstate(divide="ignore"):
            log_first = np.log(first / first.sum())
            log_then = np.log(then / then.sum(-1, keepdims=True))
        return cls(log_first, log_then, tuple(letters), None if end is None else size - 1)


@jax.jit
def _log_next(reference: MarkovReference) -> Array:
    size, rows, joint = reference.vocab_size, [], reference.log_initial
    for j in reversed(range(reference.order)):
        total = jax.nn.logsumexp(joint, axis=-1, keepdims=True)
        known = total > -jnp.inf
        # After what is impossible any token may come, but after an end only an end.
        even = jnp.full_like(joint, -math.log(size))
        if reference.end is not None and j:
            ended = jnp.where(jnp.arange(size) == reference.end, 0.0, -jnp.inf)
            even = even.at[..., reference.end, :].set(ended.astype(even.dtype))
        given = jnp.where(known, joint - jnp.where(known, total, 0.0), even)
        rows.insert(0, given.reshape(size**j, size))
        joint = total[..., 0]
    return jnp.concatenate([*rows, reference.log_transition.reshape(-1, size)])


@jax.jit
def _log_probs(reference: MarkovReference, tokens: Array) -> Array:
    contexts = walk(jnp.asarray(reference.following), tokens)[..., :-1]
    return _log_next(reference)[contexts, tokens]


@functools.partial(jax.jit, static_argnums=(3, 4))
def _sample(
    log_next: Array, following: Array, key: PRNGKeyArray, num_samples: int, length: int
) -> Array:
    def step(context: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        token = jax.random.categorical(key, log_next[context], axis=-1)
        return following[context, token], token

    start = jnp.zeros(num_samples, following.dtype)
    _, tokens = jax.lax.scan(step, start, jax.random.split(key, length))
    return tokens.T.astype(jnp.int32)


register(MarkovReference, ("log_initial", "log_transition"), ("alphabet", "end"))


@jax.jit
def normalized(reference: MarkovReference) -> Bool[Array, ""]:
    """Whether it is: the constructor sees no values under a trace, and lets NaN pass."""
    first, then = reference.log_initial.reshape(-1), reference.log_transition
    off = [jnp.abs(jnp.exp(x).sum(-1) - 1).max() for x in (first, then)]
    return jnp.stack(off).max() <= mass_tolerance(then.dtype)


def _absorb(first: np.ndarray, then: np.ndarray, end: int) -> None:
    """After an end there is nothing but ends, in counts."""
    order = first.ndim
    for counts in (first, then):
        for axis in range(order if counts is then else order - 1):
            over: list[Any] = [slice(None)] * counts.ndim
            over[axis] = end
            # The next token after an end.
            for token in range(counts.shape[0]):
                if token != end:
                    over[axis + 1] = token
                    counts[tuple(over)] = 0.0
    sealed = then.sum(-1) == 0
    then[sealed, end] = 1.0


def _require_over(name: str, log_probs: Array, end: int, alphabet: tuple[str, ...] | None) -> None:
    """An error where, outside a trace, something other than an end follows an end."""
    if traced(log_probs):
        return
    numbers = np.asarray(log_probs)
    # Of the tokens that a transition rests on, only an end at the last place is followed here.
    first = 0 if name == "log_initial" else numbers.ndim - 2
    for axis in range(first, numbers.ndim - 1):
        rows = np.moveaxis(numbers, (axis, axis + 1), (-2, -1))[..., end, :]
        goes_on = np.delete(rows, end, -1) > -np.inf
        if not goes_on.any():
            continue
        *others, token = (int(i) for i in np.argwhere(goes_on)[0])
        context = [*others[:axis], end]
        token += token >= end
        called = str if alphabet is None else lambda i: repr(alphabet[i])
        raise ValueError(
            f"{name}: {called(token)} follows the end after {', '.join(map(called, context))}, but "
            "only an end may follow it: give it -inf there, and the end 0"
        )


def following_contexts(size: int, order: int) -> np.ndarray:
    """The context that each token leads to from each, integers ``[contexts, V]``."""
    first = np.cumsum([0, *(size**j for j in range(order + 1))])
    parts = []
    for j in range(order + 1):
        place = np.arange(size**j)[:, None] * size + np.arange(size)
        if j == order:
            place = place % size**order
        parts.append(first[min(j + 1, order)] + place)
    return np.concatenate(parts)


@jax.jit
def walk(table: Array, tokens: Array) -> Array:
    """The states before each token and after the last, from state 0: ``[..., T + 1]``."""
    flat = tokens.reshape(math.prod(tokens.shape[:-1]), tokens.shape[-1])

    def step(state: Array, token: Array) -> tuple[Array, Array]:
        after = table[state, token]
        return after, after

    start = jnp.zeros(flat.shape[0], table.dtype)
    _, states = jax.lax.scan(step, start, flat.T)
    states = jnp.concatenate([start[None], states]).T
    return states.reshape(*tokens.shape[:-1], tokens.shape[-1] + 1)
