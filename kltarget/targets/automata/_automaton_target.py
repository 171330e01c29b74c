"""What is known of a target over all texts of a length, of which there may be 10¹⁰⁰."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import (
    at_index,
    first_index,
    positive,
    traced,
    typed_key,
)
from kltarget._core.numerics import log_sum_exp
from kltarget._core.pytrees import register
from kltarget.divergences import ReverseKL, Scaled
from kltarget.objectives._objective import broadcast_fields
from kltarget.spaces import Automaton, MarkovReference
from kltarget.spaces._markov_reference import walk
from kltarget.targets._protocol import Optimum
from kltarget.targets.automata._final_states import log_tilt
from kltarget.targets.automata._likeliest_texts import likeliest_texts
from kltarget.targets.automata._policy_sums import PolicySums, policy_sums
from kltarget.targets.automata._product_walks import (
    Product,
    log_values,
    product_of,
    tilted,
)
from kltarget.targets.automata._text_arguments import prefix_of_text, whole_texts
from kltarget.targets.discrete import Target, greedy_limit


@dataclasses.dataclass(frozen=True, eq=False)
class AutomatonTarget(Optimum):
    """The policy over all texts of T tokens that maximises an objective, exactly.

    Texts are rewarded by the state in which an automaton ends, and those that end in one state keep
    their proportions, for every divergence: what changes is how much mass each state has. That is
    a problem of D outcomes, ``states``, and all else is the reference's.

    Attributes:
        reference: what the policy is regularised to.
        automaton: what reads the texts.
        length: the number T of tokens of a text.
        states: the target over final states, as of outcomes: :class:`kltarget.Target` with
            rewards ``[*batch, D]``. Masses of modes, flips between them, best-of-n and all that is
            known of lists of outcomes are asked of it. With rewards of steps its reference is the
            one tilted by them.
        step_reward: what reading a token in a state earns, ``[*batch, D, V]``, if anything.
        log_total: the logarithm of the mass of the reference tilted by these, ``[*batch]``.

    Example:
        >>> import kltarget as kt
        >>> from kltarget.spaces import Automaton, MarkovReference
        >>> reference = MarkovReference.fit(["abab", "aabb", "bbab"], smoothing=1.0)
        >>> found = Automaton.from_words(["aa"], "ab")
        >>> target = kt.solve_on_automaton(reference, found, found.accepting, 0.2, length=300)
        >>> print(f"{target.expected_reward:.4f} {target.value:.4f}")
        1.0000 1.0000
    """

    made_by = "solve_on_automaton"

    reference: MarkovReference
    automaton: Automaton
    states: Target
    length: int
    step_reward: Float[Array, "*_ D V"] | None = None
    log_total: Float[Array, "*_"] | None = None

    @property
    def status(self) -> Int[Array, "*batch"]:
        """:class:`~kltarget.Status` bits, shape ``[*batch]``."""
        return self.states.status

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum J* in reward units, shape ``[*batch]``."""
        if self.log_total is None:
            return self.states.value
        beta = broadcast_fields(self.states.objective)[2][..., 0]
        value = self.states.value
        return value + beta.astype(value.dtype) * self._log_total

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π[reward]`` in reward units, with that of steps, shape ``[*batch]``."""
        if self.step_reward is None:
            return self.states.expected_reward
        return self.states.expected_reward + self._tallies["earned"]

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """The divergence from the reference in nats, shape ``[*batch]``."""
        if self.step_reward is None:
            return self.states.divergence_value
        own = self.states.objective.divergence
        total = self._tallies["kl"]
        return own.factor * total if isinstance(own, Scaled) else total

    @property
    def log_ratio(self) -> Float[Array, "*batch D"]:
        """``log π/π_ref`` of texts by their final state; 0 where neither has any.

        With rewards of steps, what a text earns on the way, divided by β, is to be added.

        It is infinite where the target has mass and the reference none: of the texts that end
        there only their total is determined, and their log-probability is NaN.
        """
        ratio = log_ratio_of(self.states.log_probs, self.states.objective.log_ref)
        return ratio if self.log_total is None else ratio - self._log_total[..., None]

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of texts.

        Args:
            x: tokens, integers ``[..., T]``, or strings in the reference's alphabet.

        Returns:
            Shape ``[*batch, ...]``, of the texts' own axes last.
        """
        tokens = whole_texts(self.reference, self.length, x)
        ratio = self.log_ratio[..., self.automaton.run(tokens)]
        if self.step_reward is not None:
            product = self._product
            nodes = walk(product.below, tokens)[..., :-1]
            return product.log_next[..., nodes, tokens].sum(-1) + ratio
        return jnp.broadcast_to(self.reference.log_prob(tokens), ratio.shape) + ratio

    def expectation(self, fn: Any) -> Float[Array, "..."]:
        """``E_π[fn]`` of what depends on the final state: values ``[D, ...]``, or a function.

        The function takes the numbers of states ``[D]``.
        """
        return self.states.expectation(fn)

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
        product = self._product
        node = walk(product.below, tokens)[-1]
        left = self.length - tokens.shape[-1] - 1
        after = self._values(left, self._determined())[..., product.below[node]]
        joint = jnp.broadcast_to(product.log_next[..., node, :], after.shape) + after
        return joint - log_sum_exp(joint)

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
        tokens, product = whole_texts(self.reference, self.length, x), self._product
        nodes = walk(product.below, tokens)[..., :-1]
        log_ratio = self._determined()
        values = log_values(product, log_ratio, length=self.length)
        values = jnp.concatenate([values[1:], self._values(0, log_ratio)[None]])
        return _next_log_probs(product, values, nodes)

    def token_advantages(self, x: ArrayLike) -> Float[Array, "... T"]:
        """What each token of texts adds to the soft value, ``β log(π/π_ref)`` of the token.

        With reverse KL the value before a token is ``V(s) = β log E_ref[e^{reward/β} | s]``, and a
        token's advantage what it changes: ``V(sa) − V(s)``, with what the step itself earns. Along
        a text they add up to its reward less :attr:`value`: rewards of steps in place of one at the
        end, of which every token has its own and expects no more.

        Args:
            x: tokens, integers ``[..., T]``, or strings in the reference's alphabet.

        Returns:
            Advantages in reward units, shape ``[*batch, ..., T]``; ``-inf`` at tokens that lead to
            forbidden texts alone, NaN at those that the reference cannot produce and after either.

        Raises:
            ValueError: the divergence is not reverse KL, for others of which a text's log ratio is
                not its reward.

        Example:
            >>> import kltarget as kt
            >>> from kltarget.spaces import Automaton, MarkovReference
            >>> reference = MarkovReference.fit(["abab", "aabb", "bbab"], smoothing=1.0)
            >>> found = Automaton.from_words(["aa"], "ab")
            >>> target = kt.solve_on_automaton(reference, found, found.accepting, 0.5, length=4)
            >>> each = target.token_advantages("baab")
            >>> print([f"{a:.3f}" for a in each], f"{each.sum():.3f} {1 - target.value:.3f}")
            ['-0.124', '0.088', '0.481', '-0.000'] 0.445 0.445

        References:
            Rafailov et al., "From r to Q*: Your Language Model is Secretly a Q-Function", 2024,
            arXiv 2404.12358; Yao, Wang, Zhang, "PRL: Process Reward Learning Improves LLMs'
            Reasoning Ability and Broadens the Reasoning Boundary", 2026, arXiv 2601.10201.
        """
        objective = self.states.objective
        own = objective.divergence
        base = own.base if isinstance(own, Scaled) else own
        if not isinstance(base, ReverseKL):
            raise ValueError(
                f"token_advantages needs a target of reverse KL, not of {own!r}, whose log ratios "
                "are not rewards: solve with divergence=ReverseKL()"
            )
        tokens = whole_texts(self.reference, self.length, x)
        product = product_of(self.reference, self.automaton)
        known = product.log_next[walk(product.below, tokens)[..., :-1], tokens]
        after = self.next_log_probs(tokens)
        at = jnp.broadcast_to(tokens, after.shape[:-1])[..., None]
        log_probs = jnp.take_along_axis(after, at, axis=-1)[..., 0]
        beta = broadcast_fields(objective)[2][..., 0].astype(log_probs.dtype)
        beta = beta.reshape(*self.status.shape, *(1,) * tokens.ndim)
        return beta * (log_probs - jnp.broadcast_to(known, log_probs.shape).astype(log_probs.dtype))

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Int[Array, "num_samples *batch T"]:
        """Independent draws of texts, tokens of shape ``[num_samples, *batch, T]``.

        Raises:
            ValueError: as :meth:`conditionals`; under a trace tokens are -1 there.
        """
        positive("num_samples", num_samples)
        log_ratio = self._determined()
        values = log_values(self._product, log_ratio, length=self.length)
        last = self._values(0, log_ratio)
        tokens = draw_texts(self._product, values, last, typed_key(key), num_samples)
        return jnp.where(jnp.isnan(log_ratio).any(-1)[..., None], -1, tokens)

    @property
    def entropy(self) -> Float[Array, "*batch"]:
        """The entropy of the policy over texts in nats, shape ``[*batch]``.

        It is NaN where the target has mass and the reference none.
        """
        return self._sums(without_undetermined(self.log_ratio)).entropy

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
        end = self.reference.end
        if end is None:
            raise ValueError(
                "length_marginal needs a reference with an end, and this one has none: every text "
                f"has {self.length} tokens"
            )
        sums = self._sums(self._determined())
        ended = jnp.concatenate([sums.ended, sums.unfinished[None]])
        return jnp.moveaxis(ended, 0, -1)

    def likeliest(
        self, number: int = 10
    ) -> tuple[Int[Array, "*batch k T"], Float[Array, "*batch k"]]:
        """The most probable texts and their log-probabilities, the first one first.

        Args:
            number: how many, k; where there are fewer texts the rest have ``-inf``.

        Returns:
            Tokens ``[*batch, k, T]`` and log-probabilities ``[*batch, k]``.

        Raises:
            ValueError: as :meth:`conditionals`; under a trace they are -1 and NaN there.
        """
        positive("number", number)
        log_ratio = self._determined()
        tokens, scores = likeliest_texts(self._product, log_ratio, self.length, number)
        lost = jnp.isnan(log_ratio).any(-1)[..., None]
        return jnp.where(lost[..., None], -1, tokens), jnp.where(lost, jnp.nan, scores)

    def greedy_limit(self) -> AutomatonTarget:
        """The limit for beta → 0: the texts of the best reward, in the reference's proportions.

        It is :func:`kltarget.targets.greedy_limit` of the final states: what is best among those
        that the reference ends in, and with a finite slope at infinity among all that some text
        ends in. Its first :meth:`likeliest` is the reference's most probable text of that reward.

        Returns:
            The target; its value is the best reward.

        Raises:
            ValueError: there are rewards of steps.

        Example:
            >>> import kltarget as kt
            >>> from kltarget.spaces import Automaton, MarkovReference
            >>> reference = MarkovReference.fit(["abab", "aabb", "bbab"], smoothing=1.0)
            >>> found = Automaton.from_words(["aa"], "ab")
            >>> target = kt.solve_on_automaton(reference, found, found.accepting, 0.5, length=7)
            >>> limit = target.greedy_limit()
            >>> tokens, log_prob = limit.likeliest(1)
            >>> print(limit.value, reference.spell(tokens))
            1.0 ['aababab']
        """
        if self.step_reward is not None:
            raise ValueError(
                "greedy_limit takes rewards of final states alone: which texts tie for the best "
                "sum of step_reward is not known at their end; where steps are few-valued let the "
                "automaton count them (Automaton.counter, product), or solve for a small beta"
            )
        return dataclasses.replace(self, states=greedy_limit(self.states.objective))

    @property
    def effective_texts(self) -> Float[Array, "*batch"]:
        """As many equally likely texts have this entropy, ``exp(entropy)``; may be infinite."""
        return jnp.exp(self.entropy)

    @functools.cached_property
    def _product(self) -> Product:
        product = product_of(self.reference, self.automaton)
        return product if self.step_reward is None else tilted(product, self._log_tilt)

    @property
    def _log_tilt(self) -> Array:
        """Of every row, ``[*batch, D, V]``."""
        assert self.step_reward is not None
        objective = self.states.objective
        tilt = log_tilt(self.step_reward, objective.beta, objective.divergence)
        return jnp.broadcast_to(tilt, (*self.status.shape, *tilt.shape[-2:]))

    @property
    def _log_total(self) -> Array:
        assert self.log_total is not None
        return jnp.broadcast_to(self.log_total, self.status.shape)

    @property
    def _tallies(self) -> dict[str, Array]:
        """What is earned on the way and the KL from the reference, ``[*batch]`` each."""
        tallies = self._sums(self.log_ratio).tallies
        return {name: x.sum(0) for name, x in tallies.items()}

    def _values(self, left: int, log_ratio: Array) -> Array:
        """Values of nodes with so many tokens still to come, ``[*batch, N]``."""
        if left:
            return log_values(self._product, log_ratio, length=left)[0]
        return log_ratio[..., self._product.state]

    def _sums(self, log_ratio: Array) -> PolicySums:
        options = {"length": self.length, "end": self.reference.end}
        if self.step_reward is None:
            return policy_sums(self._product, log_ratio, **options)
        log_ref = product_of(self.reference, self.automaton).log_next.astype(log_ratio.dtype)
        steps = self.step_reward.astype(log_ratio.dtype)
        return policy_sums(self._product, log_ratio, steps, log_ref, **options)

    def _determined(self) -> Array:
        return determined(self.log_ratio)


register(
    AutomatonTarget,
    ("reference", "automaton", "states", "step_reward", "log_total"),
    ("length",),
)


@functools.partial(jax.jit, static_argnums=4)
def draw_texts(product: Product, values: Array, last: Array, key: Array, num_samples: int) -> Array:
    batch = values.shape[1:-1]
    shape = (num_samples, *batch)
    rows = jnp.meshgrid(*map(jnp.arange, shape), indexing="ij", sparse=True)[1:]
    after = jnp.concatenate([values[1:], last[None]])
    by_row = product.log_next.ndim > 2

    def step(node: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        value, key = given
        after = value[(*(r[..., None] for r in rows), product.below[node])]
        log_next = product.log_next[(*rows, node) if by_row else node]
        token = jax.random.categorical(key, log_next + after, axis=-1)
        return product.below[node, token], token

    start = jnp.zeros(shape, product.below.dtype)
    keys = jax.random.split(key, len(values))
    _, tokens = lax.scan(step, start, (after, keys))
    return jnp.moveaxis(tokens, 0, -1).astype(jnp.int32)


@jax.jit
def _next_log_probs(product: Product, values: Array, nodes: Array) -> Array:
    """At nodes ``[..., T]``, by the values ``[T, *batch, N]`` of those after each position."""

    def at(value: Array, node: Array) -> Array:
        after = value[..., product.below[node]]
        joint = jnp.broadcast_to(product.log_next[..., node, :], after.shape) + after
        return joint - log_sum_exp(joint)

    by_position = jnp.moveaxis(nodes, -1, 0)
    return jnp.moveaxis(jax.vmap(at)(values, by_position), 0, -2)


def log_ratio_of(log_probs: Array, log_ref: Array) -> Array:
    """``log π/π_ref`` of final states; ``inf`` where only the target has any mass, 0 where none."""
    log_ref = jnp.broadcast_to(log_ref, log_probs.shape)
    seen = ~jnp.isneginf(log_ref)
    ratio = jnp.where(seen, log_probs, 0.0) - jnp.where(seen, log_ref, 0.0)
    return jnp.where(seen, ratio, jnp.where(log_probs > -jnp.inf, jnp.inf, 0.0))


def determined(log_ratio: Array) -> Array:
    """Log-ratios where they determine texts: NaN under a trace and an error outside of one."""
    lost = jnp.isposinf(log_ratio)
    if not traced(lost) and np.asarray(lost).any():
        *row, state = first_index(lost)
        raise ValueError(
            f"texts are not determined{at_index(tuple(row))}: the target has mass in state "
            f"{state}, where the reference has none (status CONDENSED); ask states, change "
            "the divergence, or forbid the state by a reward of -inf"
        )
    return without_undetermined(log_ratio)


def without_undetermined(log_ratio: Array) -> Array:
    """NaN in rows whose texts are not determined."""
    lost = jnp.isposinf(log_ratio).any(-1, keepdims=True)
    return jnp.where(lost, jnp.nan, log_ratio)
