"""A policy at another temperature."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, PRNGKeyArray

from kltarget.policies._sequential import Sequential


@dataclasses.dataclass(frozen=True)
class Tempered(Sequential):
    """A policy over sequences whose logits are divided by a temperature, with its own parameters.

    Args:
        policy: one of the policies over sequences here.
        temperature: above 0; 1 is the policy itself, less is greedier.

    Raises:
        TypeError: a policy that has no logits of next tokens.
        ValueError: a temperature that is not above 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from kltarget.policies import TabularPolicy, Tempered
        >>> policy = TabularPolicy(vocab_size=2, length=1)
        >>> params = {"logits": jnp.log(jnp.array([[0.8, 0.2]]))}
        >>> cold = Tempered(policy, temperature=0.5)
        >>> print(f"{jnp.exp(cold.log_probs(params, jnp.array([0])))[0]:.4f}")
        0.9412
    """

    policy: Any
    temperature: float

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Sequential):
            raise TypeError(
                "policy must be a TabularPolicy, GRUPolicy or TransformerPolicy, whose logits a "
                f"temperature can divide, got {self.policy!r}"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    @property
    def vocab_size(self) -> int | tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of tokens, as the policy has it."""
        return self.policy.vocab_size

    @property
    def length(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of tokens of every sequence."""
        return self.policy.length

    @property
    def eos(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The token after which only itself follows, if any."""
        return self.policy.eos

    def init(self, *, key: PRNGKeyArray) -> Any:
        """Fresh parameters of the policy."""
        return self.policy.init(key=key)

    def _start(self, params: Any) -> Any:
        return self.policy._start(params)

    def _advance(self, params: Any, state: Any, tokens: Array, depth: Any) -> Any:
        return self.policy._advance(params, state, tokens, depth)

    def _logits(self, params: Any, state: Any) -> Array:
        return self.policy._logits(params, state) / self.temperature

    def _teacher_forced(self, params: Any, tokens: Array) -> Array:
        return self.policy._teacher_forced(params, tokens) / self.temperature

    def _tree_of_logits(self, params: Any) -> list[Array]:
        return [x / self.temperature for x in self.policy._tree_of_logits(params)]
