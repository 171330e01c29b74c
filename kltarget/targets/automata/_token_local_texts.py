"""What is known of the fixed point of a per-token loss over all texts of a length."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import positive, typed_key
from kltarget._core.pytrees import register
from kltarget._core.short_repr import short_repr
from kltarget.divergences import Scaled
from kltarget.objectives import Objective
from kltarget.spaces import Automaton, MarkovReference
from kltarget.spaces._markov_reference import walk
from kltarget.targets._protocol import Distribution, mean_of
from kltarget.targets.automata._local_problems import local_problems
from kltarget.targets.automata._policy_sums import PolicySums
from kltarget.targets.automata._product_walks import Product
from kltarget.targets.automata._text_arguments import prefix_of_text, whole_texts


@dataclasses.dataclass(frozen=True, eq=False)
class TokenLocalTexts(Distribution):
    """The fixed point of a per-token loss, as a policy over all texts of T tokens.

    Attributes:
        reference: what the policy is regularised to.
        automaton: what reads the texts.
        objective: the text-level objective of the same reward, beta and divergence, over final
            states: ``[*batch, D]``. This policy does not maximise it.
        product: the pairs of a context and a state that texts reach, its nodes.
        values: what each node is worth with T, T − 1, …, 0 tokens to come, in reward units,
            ``[T + 1, *batch, N]``; node 0 is the beginning.
        sums: what one walk through all texts counts.
        status: :class:`~kltarget.Status` bits, shape ``[*batch]``. A remark holds at some node that
            the policy reaches, a failure at any.
        length: the number T of tokens of a text.
        full_gradient: whether nodes are worth their problems' values or mean rewards.
    """

    __repr__ = short_repr

    made_by = "token_local_on_automaton"

    reference: MarkovReference
    automaton: Automaton
    objective: Objective
    product: Product
    values: Float[Array, "positions *batch N"]
    sums: PolicySums
    status: Int[Array, "*batch"]
    length: int
    full_gradient: bool

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π[reward]`` in reward units, shape ``[*batch]``."""
        if self.full_gradient:
            some = self.state_probs > 0
            return (self.state_probs * jnp.where(some, self._reward, 0.0)).sum(-1)
        return self.values[0, ..., 0]

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """``E_π[Σ_t D(π(·|s_t), π_ref(·|s_t))]`` in nats, shape ``[*batch]``.

        The sum over tokens, which for reverse KL is the divergence of texts, and for no other.
        """
        total = self.sums.tallies["divergence"].sum(0)
        own = self.objective.divergence
        return own.factor * total if isinstance(own, Scaled) else total

    @property
    def objective_value(self) -> Float[Array, "*batch"]:
        """``E_π[reward − beta · Σ_t D]`` in reward units, shape ``[*batch]``.

        With ``full_gradient`` it is the maximum; without, less.
        """
        if self.full_gradient:
            return self.values[0, ..., 0]
        beta = jnp.broadcast_to(self.objective.beta, self.status.shape)
        dtype = self.values.dtype
        cost = self.divergence_value
        endless = jnp.isposinf(cost)
        value = self.expected_reward - beta.astype(dtype) * jnp.where(endless, 0.0, cost)
        return jnp.where(endless, -jnp.inf, value)

    @property
    def state_probs(self) -> Float[Array, "*batch D"]:
        """How likely a text ends in each state, shape ``[*batch, D]``."""
        return self.sums.states[-1]

    def state_marginals(self) -> Float[Array, "*batch T D"]:
        """How likely each state is after each token, shape ``[*batch, T, D]``."""
        return jnp.moveaxis(self.sums.states, 0, -2)

    def marginals(self) -> Float[Array, "*batch T V"]:
        """How likely each token is at each position, shape ``[*batch, T, V]``."""
        return jnp.moveaxis(self.sums.tokens, 0, -2)

    @property
    def entropy(self) -> Float[Array, "*batch"]:
        """The entropy of the policy over texts in nats, shape ``[*batch]``."""
        return self.sums.entropy

    def expectation(self, fn: Any) -> Float[Array, "..."]:
        """``E_π[fn]`` of what depends on the final state: its values ``[D, ...]``, or a function.

        The function takes the numbers of states ``[D]``.
        """
        return mean_of(fn, self.state_probs)

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of texts.

        Args:
            x: tokens, integers ``[..., T]``, or strings in the reference's alphabet.

        Returns:
            Shape ``[*batch, ...]``, of the texts' own axes last.
        """
        tokens = whole_texts(self.reference, self.length, x)
        log_next = self.next_log_probs(tokens)
        at = jnp.broadcast_to(tokens[..., None], (*log_next.shape[:-1], 1))
        return jnp.take_along_axis(log_next, at, axis=-1)[..., 0].sum(-1)

    def next_log_probs(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of every token after each prefix of texts.

        Args:
            x: tokens, integers ``[..., T]``, or strings in the reference's alphabet.

        Returns:
            Shape ``[*batch, ..., T, V]``.
        """
        tokens = whole_texts(self.reference, self.length, x)
        nodes = walk(self.product.below, tokens)[..., :-1]
        return _next_log_probs(self.product, self.objective, self.values, nodes)

    def conditionals(self, prefix: ArrayLike) -> Float[Array, "*batch V"]:
        """Log-probabilities of the token after a prefix.

        Args:
            prefix: tokens, integers ``[t]`` with t from 0 to T − 1, or a string.

        Returns:
            Shape ``[*batch, V]``.
        """
        tokens = prefix_of_text(self.reference, self.length, prefix)
        node, after = walk(self.product.below, tokens)[-1:], self.values[len(tokens) + 1]
        return _log_probs_at(self.product, self.objective, after, node)[..., 0, :]

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Int[Array, "num_samples *batch T"]:
        """Independent draws of texts, tokens ``[num_samples, *batch, T]``; -1 in failed rows."""
        positive("num_samples", num_samples)
        draws = _sample(self.product, self.objective, self.values, typed_key(key), num_samples)
        return jnp.where(jnp.isnan(self.values[0, ..., 0])[..., None], -1, draws)

    @property
    def _reward(self) -> Array:
        shape = self.state_probs.shape
        return jnp.broadcast_to(self.objective.reward, shape).astype(self.values.dtype)


register(
    TokenLocalTexts,
    ("reference", "automaton", "objective", "product", "values", "sums", "status"),
    ("length", "full_gradient"),
)


def _log_probs_at(product: Product, objective: Objective, after: Array, nodes: Any) -> Array:
    # How a node is worth its problem makes no difference to its target.
    return local_problems(product, objective, False, after, nodes)[1].log_probs


@jax.jit
def _next_log_probs(product: Product, objective: Objective, values: Array, nodes: Array) -> Array:
    """At nodes ``[..., T]``, by the values ``[T + 1, *batch, N]`` of each position and the end."""
    flat = nodes.reshape(-1, nodes.shape[-1]).T
    each = lax.map(lambda x: _log_probs_at(product, objective, *x), (values[1:], flat))
    batch = values.shape[1:-1]
    return jnp.moveaxis(each, 0, -2).reshape(*batch, *nodes.shape, each.shape[-1])


@functools.partial(jax.jit, static_argnums=4)
def _sample(
    product: Product, objective: Objective, values: Array, key: Array, num_samples: int
) -> Array:
    shape = (num_samples, *values.shape[1:-1])
    rows = jnp.meshgrid(*map(jnp.arange, shape), indexing="ij", sparse=True)[1:]

    def step(node: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        after, key = given
        log_policy = _log_probs_at(product, objective, after, slice(None))[(*rows, node)]
        token = jax.random.categorical(key, log_policy, axis=-1)
        return product.below[node, token], token

    start = jnp.zeros(shape, product.below.dtype)
    _, tokens = lax.scan(step, start, (values[1:], jax.random.split(key, len(values) - 1)))
    return jnp.moveaxis(tokens, 0, -1).astype(jnp.int32)
