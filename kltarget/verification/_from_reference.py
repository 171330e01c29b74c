"""Networks that begin at a reference: what they add to its logits is learnt."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from kltarget.policies._sequential import Sequential
from kltarget.spaces import MarkovReference
from kltarget.spaces._markov_reference import following_contexts, walk


@dataclasses.dataclass(frozen=True)
class FromReference(Sequential):
    """A network whose logits are added to the log-probabilities of a Markov chain.

    With nothing to add it is the chain, as a language model that is fine-tuned begins at its
    reference. What the chain says is no parameter that gradients move.

    Its parameters are ``{"network": those of the network, "log_next": [contexts, V]}``.

    Args:
        network: a policy over the chain's tokens that reads its state out linearly.
        order: how many tokens the chain looks back.
    """

    network: Any
    order: int

    @property
    def vocab_size(self) -> int | tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of tokens, as the network has it."""
        return self.network.vocab_size

    @property
    def length(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of tokens of every sequence."""
        return self.network.length

    @property
    def eos(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The token after which only itself follows, if any."""
        return self.network.eos

    def at(self, reference: MarkovReference, *, key: PRNGKeyArray) -> Any:
        """Parameters at which the policy is the reference: the network adds nothing yet."""
        params = self.network.init(key=key)
        silent = {name: jnp.zeros_like(params[name]) for name in ("output", "output_bias")}
        return {"network": {**params, **silent}, "log_next": reference.log_next()}

    def _start(self, params: Any) -> Any:
        return self.network._start(params["network"]), jnp.zeros(1, jnp.int32)

    def _advance(self, params: Any, state: Any, tokens: Array, depth: Any) -> Any:
        known, context = state
        known = self.network._advance(params["network"], known, tokens, depth)
        return known, self._following()[context, tokens]

    def _logits(self, params: Any, state: Any) -> Array:
        known, context = state
        return self._added(params, context, self.network._logits(params["network"], known))

    def _teacher_forced(self, params: Any, tokens: Array) -> Array:
        context = walk(self._following(), tokens)[..., :-1]
        own = self.network._teacher_forced(params["network"], tokens)
        return self._added(params, context, own)

    def _following(self) -> Array:
        return jnp.asarray(following_contexts(self.network.max_size, self.order), jnp.int32)

    def _added(self, params: Any, context: Array, own: Array) -> Array:
        return own + lax.stop_gradient(params["log_next"])[context].astype(own.dtype)
