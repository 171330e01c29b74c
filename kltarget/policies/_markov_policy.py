"""Policies that see only the last few tokens: a capacity that one number sets."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from kltarget.policies._sequential import Sequential, check_sizes


@dataclasses.dataclass(frozen=True)
class MarkovPolicy(Sequential):
    """A logit for each position, its last ``order`` tokens and the next one.

    Order 0 is a product of laws of the tokens, order L − 1 every distribution. What it cannot hold
    it cannot learn, whatever the loss and for how long: a family for fits at equal capacity.

    Args:
        vocab_size: number of tokens V, the same at every position.
        length: number of tokens L of every sequence.
        order: how many tokens back it sees, 0 or more.
        eos: the token after which only itself follows, if any.
        init_scale: standard deviation of the initial logits.

    Its parameters are ``{"logits": [L, V**order, V]}``, contexts in lexicographic order; where
    fewer tokens precede, those that lack count as token 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.policies import MarkovPolicy
        >>> policy = MarkovPolicy(vocab_size=2, length=3, order=1)
        >>> params = policy.init(key=jax.random.key(0))
        >>> next_of = policy.next_log_probs(params, jnp.array([[0, 1, 0], [1, 1, 0]]))
        >>> print(jnp.allclose(next_of[0, 2], next_of[1, 2]))  # after 01 as after 11
        True
    """

    vocab_size: int | tuple[int, ...]
    length: int
    order: int = 1
    eos: int | None = None
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.vocab_size, tuple):
            raise ValueError(
                f"vocab_size must be one integer for all positions, got {self.vocab_size!r}: "
                "TabularPolicy takes one per position"
            )
        check_sizes(self)
        if not isinstance(self.order, int) or self.order < 0:
            raise ValueError(f"order must be an integer of 0 or more, got {self.order!r}")

    @property
    def num_contexts(self) -> int:
        """Number of contexts of each position, ``V**order``."""
        return self.max_size**self.order

    def init(self, *, key: PRNGKeyArray) -> dict[str, Array]:
        """Normally distributed logits of standard deviation ``init_scale``."""
        shape = (self.length, self.num_contexts, self.max_size)
        return {"logits": self.init_scale * jax.random.normal(key, shape)}

    def _start(self, params: Any) -> tuple[Array, Array]:
        return jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)

    def _advance(
        self, params: Any, state: tuple[Array, Array], tokens: Array, depth: Any
    ) -> tuple[Array, Array]:
        position, context = state
        longer = context * self.max_size + tokens.astype(jnp.int32)
        return position + 1, longer % self.num_contexts

    def _logits(self, params: Any, state: tuple[Array, Array]) -> Array:
        position, context = state
        return params["logits"].at[position, context].get(mode="clip")

    def _teacher_forced(self, params: Any, tokens: Array) -> Array:
        context = jnp.zeros(tokens.shape, jnp.int32)
        for back in range(self.order, 0, -1):
            before = jnp.pad(tokens.astype(jnp.int32), ((0, 0), (back, 0)))[:, : self.length]
            context = context * self.max_size + before
        position = jnp.broadcast_to(jnp.arange(self.length), tokens.shape)
        return params["logits"][position, context]
