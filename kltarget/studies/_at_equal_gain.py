"""Runs compared where they have learned as much, not after as many steps."""

from __future__ import annotations

import abc

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class AtEqualGain(abc.ABC):
    """What was learned of something new and forgotten of something old; T runs over steps."""

    @abc.abstractmethod
    def _mastered(self) -> tuple[Array, Array]:
        """How well the old and the new are done before the first and after every step."""

    @property
    def gain(self) -> Float[Array, "*batch T"]:
        """What has been learned of the new, above what was known of it at the start."""
        new = self._mastered()[1]
        return new - new[..., :1]

    @property
    def loss(self) -> Float[Array, "*batch T"]:
        """What has been forgotten of the old, below what was known of it at the start."""
        old = self._mastered()[0]
        return old[..., :1] - old

    def steps_to(self, gain: float = 0.9) -> Int[Array, "*batch"]:
        """Steps until as much has been learned for the first time; −1 where it never is."""
        there = self.gain >= gain
        return jnp.where(there.any(-1), jnp.argmax(there, -1), -1).astype(jnp.int32)

    def loss_at(self, gain: float = 0.9) -> Float[Array, "*batch"]:
        """What has been forgotten when as much has been learned; NaN where it never is."""
        return self._then(self.loss, gain)

    def _then(self, values: Array, gain: float) -> Array:
        """Values ``[*batch, T]`` at the step at which as much has been learned."""
        steps = self.steps_to(gain)
        then = jnp.take_along_axis(values, jnp.maximum(steps, 0)[..., None], axis=-1)[..., 0]
        return jnp.where(steps >= 0, then, jnp.nan)
