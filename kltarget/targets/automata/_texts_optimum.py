"""What every optimum over all texts of a length answers, by the walks that its texts come about."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import at_index, first_index, positive, traced, typed_key
from kltarget._core.numerics import log_sum_exp
from kltarget.spaces._markov_reference import walk
from kltarget.targets._protocol import Optimum
from kltarget.targets.automata._policy_sums import PolicySums, policy_sums
from kltarget.targets.automata._product_walks import Product, log_values
from kltarget.targets.automata._text_arguments import prefix_of_text, whole_texts
from kltarget.targets.discrete import Target


class Walk(NamedTuple):
    """Some texts of a policy: those that a tilted chain makes.

    Attributes:
        product: its nodes and the log-weight of every token at each. Walks of one policy differ in
            these weights alone.
        log_final: the log-weight of ending in each state, ``-inf`` where others end,
            ``[*batch, D]``.
        log_share: the logarithm of how much mass these texts have, ``[*batch]``.
    """

    product: Product
    log_final: Float[Array, "*batch D"]
    log_share: Float[Array, "*batch"]

    def values_after(self, length: int) -> Float[Array, "T *batch N"]:
        """The value of every node after each token of a text."""
        values = log_values(self.product, self.log_final, length=length)
        return jnp.concatenate([values[1:], self.log_final[..., self.product.state][None]])


class TextsOptimum(Optimum):
    """A policy over all texts of a length, known by the mass of their final states.

    Subclasses say which walks their texts are of.
    """

    states: Target
    """The target over final states, as of outcomes."""

    reference: Any
    """What texts are of, a :class:`kltarget.spaces.MarkovReference`."""

    automaton: Any
    """What reads the texts, a :class:`kltarget.spaces.Automaton`."""

    length: Any
    """The number T of tokens of a text."""

    @property
    @abc.abstractmethod
    def _log_final(self) -> Array:
        """What a text's log-weight is added to by its final state, ``[*batch, D]``."""

    @abc.abstractmethod
    def _log_weight(self, tokens: Array, state: Array) -> Array:
        """That log-weight, of texts that end in these states, ``[*batch, ...]`` or ``[...]``."""

    @abc.abstractmethod
    def _walks(self, log_final: Array) -> tuple[Walk, ...]:
        """The walks, which end in different states, given what may not be determined."""

    @property
    def status(self) -> Int[Array, "*batch"]:
        """:class:`~kltarget.Status` bits, shape ``[*batch]``."""
        return self.states.status

    def expectation(self, fn: Any) -> Float[Array, "..."]:
        """``E_π[fn]`` of what depends on the final state: values ``[D, ...]``, or a function.

        The function takes the numbers of states ``[D]``.
        """
        return self.states.expectation(fn)

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of texts.

        Args:
            x: tokens, integers ``[..., T]``, or strings in the reference's alphabet.

        Returns:
            Shape ``[*batch, ...]``, of the texts' own axes last.
        """
        tokens = whole_texts(self.reference, self.length, x)
        state = self.automaton.run(tokens)
        return _weighted(self._log_weight(tokens, state), self._log_final, state)

    def conditionals(self, prefix: ArrayLike) -> Float[Array, "*batch V"]:
        """Log-probabilities of the token after a prefix.

        Args:
            prefix: tokens, integers ``[t]`` with t from 0 to T − 1, or a string.

        Returns:
            Shape ``[*batch, V]``; NaN after a prefix that is impossible, and under a trace where
            texts are not determined.

        Raises:
            ValueError: outside a trace, texts are not determined: the target has mass where the
                reference has none.
        """
        tokens = prefix_of_text(self.reference, self.length, prefix)
        # What follows makes no difference, and prefixes of all lengths share a program.
        whole = jnp.pad(tokens, (0, self.length - tokens.size))
        return self.next_log_probs(whole)[..., tokens.size, :]

    def next_log_probs(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of every token after each prefix of texts.

        Args:
            x: tokens, integers ``[..., T]``, or strings in the reference's alphabet.

        Returns:
            Shape ``[*batch, ..., T, V]``; NaN after prefixes that are impossible, and under a trace
            where texts are not determined.

        Raises:
            ValueError: as :meth:`conditionals`.
        """
        tokens = whole_texts(self.reference, self.length, x)
        return _next_log_probs(self._walks(self._determined()), tokens)

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Int[Array, "num_samples *batch T"]:
        """Independent draws of texts, tokens of shape ``[num_samples, *batch, T]``.

        Raises:
            ValueError: as :meth:`conditionals`; under a trace tokens are -1 there.
        """
        positive("num_samples", num_samples)
        log_final = self._determined()
        tokens = _draw(self._walks(log_final), typed_key(key), num_samples, self.length)
        return jnp.where(jnp.isnan(log_final).any(-1)[..., None], -1, tokens)

    @property
    def entropy(self) -> Float[Array, "*batch"]:
        """The entropy of the policy over texts in nats, shape ``[*batch]``.

        It is NaN where the target has mass and the reference none.
        """
        log_final = without_undetermined(self._log_final)
        return _unless_lost(self._sums(log_final).entropy, log_final)

    @property
    def effective_texts(self) -> Float[Array, "*batch"]:
        """As many equally likely texts have this entropy, ``exp(entropy)``; may be infinite."""
        return jnp.exp(self.entropy)

    def marginals(self) -> Float[Array, "*batch T V"]:
        """How likely each token is at each position, shape ``[*batch, T, V]``.

        Raises:
            ValueError: as :meth:`conditionals`; under a trace they are NaN there.
        """
        return jnp.moveaxis(self._sums(self._determined()).tokens, 0, -2)

    def length_marginal(self) -> Float[Array, "*batch lengths"]:
        """How likely a text has each number of tokens before its end, shape ``[*batch, T + 1]``.

        The last is of texts that have not ended after T tokens.

        Raises:
            ValueError: the reference has no end; and as :meth:`conditionals`, under a trace NaN.

        Example:
            >>> import jax.numpy as jnp, kltarget as kt
            >>> from kltarget.spaces import Automaton, MarkovReference
            >>> reference = MarkovReference.fit(["a", "ab", "abb"], smoothing=1.0, end="$")
            >>> has_b = Automaton.from_words(["b"], "ab$")
            >>> target = kt.solve_on_automaton(reference, has_b, [0.0, 1.0], 0.1, length=3)
            >>> print(jnp.round(target.length_marginal(), 3))
            [0.    0.15  0.367 0.483]
        """
        if self.reference.end is None:
            raise ValueError(
                "length_marginal needs a reference with an end, and this one has none: every text "
                f"has {self.length} tokens"
            )
        sums = self._sums(self._determined())
        return jnp.moveaxis(jnp.concatenate([sums.ended, sums.unfinished[None]]), 0, -1)

    def _determined(self) -> Array:
        """What is added by final state: NaN under a trace, an error outside, where it is infinite.

        There only the total of the texts is determined.
        """
        log_final = self._log_final
        if not traced(log_final) and (lost := np.isposinf(np.asarray(log_final))).any():
            *row, state = first_index(lost)
            raise ValueError(
                f"texts are not determined{at_index(tuple(row))}: the target has mass in state "
                f"{state}, where the reference has none (status CONDENSED); ask states, change "
                "the divergence, or forbid the state by a reward of -inf"
            )
        return without_undetermined(log_final)

    def _sums(self, log_final: Array) -> PolicySums:
        return _sums_of(self._walks(log_final), self.length, self.reference.end)


@jax.jit
def _weighted(log_weight: Array, log_final: Array, state: Array) -> Array:
    final = log_final[..., state]
    return jnp.broadcast_to(log_weight, final.shape) + final


@functools.partial(jax.jit, static_argnums=(1, 2))
def _sums_of(walks: Sequence[Walk], length: int, end: int | None) -> PolicySums:
    options = {"length": length, "end": end}
    each = [
        policy_sums(part.product, part.log_final, **options).weighted(part.log_share)
        for part in walks
    ]
    return functools.reduce(functools.partial(jax.tree.map, jnp.add), each)


@jax.jit
def _unless_lost(x: Array, log_final: Array) -> Array:
    return jnp.where(jnp.isnan(log_final).any(-1), jnp.nan, x)


@jax.jit
def without_undetermined(log_final: Array) -> Array:
    """NaN in rows whose texts are not determined."""
    lost = jnp.isposinf(log_final).any(-1, keepdims=True)
    return jnp.where(lost, jnp.nan, log_final)


@jax.jit
def log_ratio_of(log_probs: Array, log_ref: Array) -> Array:
    """``log π/π_ref`` of final states; ``inf`` where only the target has any mass, 0 where none."""
    log_ref = jnp.broadcast_to(log_ref, log_probs.shape)
    seen = ~jnp.isneginf(log_ref)
    ratio = jnp.where(seen, log_probs, 0.0) - jnp.where(seen, log_ref, 0.0)
    return jnp.where(seen, ratio, jnp.where(log_probs > -jnp.inf, jnp.inf, 0.0))


@jax.jit
def _next_log_probs(walks: Sequence[Walk], tokens: Array) -> Array:
    """After each prefix of texts ``[..., T]``, as likely as all walks together make it."""
    nodes = walk(walks[0].product.below, tokens)[..., :-1]
    before = []
    for product, *_ in walks:
        steps = product.log_next[..., nodes, tokens]
        start = jnp.zeros_like(steps[..., :1])
        before.append(jnp.concatenate([start, steps[..., :-1]], -1).cumsum(-1))
    # What walks have in common goes first, of one walk all: NaN where no text begins so.
    top = functools.reduce(jnp.maximum, before)

    def at(node: Array, after: Sequence[Array], weights: Sequence[Array]) -> Array:
        joint = []
        for (product, *_), values, weight in zip(walks, after, weights, strict=True):
            below = values[..., product.below[node]]
            steps = product.log_next[..., node, :] + weight[..., None]
            joint.append(jnp.broadcast_to(steps, below.shape) + below)
        both = functools.reduce(jnp.logaddexp, joint)
        return both - log_sum_exp(both)

    by_position = [jnp.moveaxis(x - top, -1, 0) for x in before]
    after = [part.values_after(tokens.shape[-1]) for part in walks]
    return jnp.moveaxis(jax.vmap(at)(jnp.moveaxis(nodes, -1, 0), after, by_position), 0, -2)


def _draw(walks: Sequence[Walk], key: Array, num_samples: int, length: int) -> Array:
    if len(walks) == 1:
        return _draw_walk(walks[0], key, num_samples, length)
    which, *keys = jax.random.split(key, 1 + len(walks))
    each = [_draw_walk(part, k, num_samples, length) for part, k in zip(walks, keys, strict=True)]
    log_shares = jnp.stack([part.log_share for part in walks], -1)
    chosen = jax.random.categorical(which, log_shares, axis=-1, shape=each[0].shape[:-1])
    return jnp.take_along_axis(jnp.stack(each), chosen[None, ..., None], axis=0)[0]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _draw_walk(part: Walk, key: Array, num_samples: int, length: int) -> Array:
    product = part.product
    shape = (num_samples, *part.log_final.shape[:-1])
    rows = jnp.meshgrid(*map(jnp.arange, shape), indexing="ij", sparse=True)[1:]
    by_row = product.log_next.ndim > 2

    def step(node: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        value, key = given
        after = value[(*(r[..., None] for r in rows), product.below[node])]
        log_next = product.log_next[(*rows, node) if by_row else node]
        token = jax.random.categorical(key, log_next + after, axis=-1)
        return product.below[node, token], token

    start = jnp.zeros(shape, product.below.dtype)
    given = part.values_after(length), jax.random.split(key, length)
    _, tokens = lax.scan(step, start, given)
    return jnp.moveaxis(tokens, 0, -1).astype(jnp.int32)
