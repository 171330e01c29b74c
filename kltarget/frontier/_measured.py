"""What can be asked of a target, as a function of its log-probabilities."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from kltarget._core.numerics import log_sum_exp, safe_exp_product, select
from kltarget._core.pytrees import register
from kltarget.divergences import ForwardKL, ReverseKL
from kltarget.modes import effective_modes
from kltarget.modes._measures import log_mass_of_blocks

UNITS = {
    "kl": "nats",
    "forward_kl": "nats",
    "expected_reward": "reward units",
    "effective_modes": "modes",
    "success": "",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Measure:
    """One of :data:`UNITS`, measured on targets of one problem.

    Attributes:
        kind: which one.
        reward: in the unit it is measured in, ``[*batch, A]``.
        log_ref: ``[*batch, A]``.
        blocks: sums of outcomes to modes; none for a mode each.
        right: booleans of the outcomes that succeed, ``[*batch, A]``.
    """

    kind: str
    reward: Array
    log_ref: Array
    blocks: tuple[Array, ...] | None
    right: Array

    def of(self, log_probs: Array) -> Array:
        """The measure of log-probabilities ``[*batch, A]``, shape ``[*batch]``."""
        if self.kind == "kl":
            return ReverseKL()._total(log_probs, self.log_ref)
        if self.kind == "forward_kl":
            return ForwardKL()._total(log_probs, self.log_ref)
        if self.kind == "expected_reward":
            return safe_exp_product(self.reward, log_probs).sum(-1)
        if self.kind == "success":
            return jnp.exp(log_sum_exp(select(self.right, log_probs, -jnp.inf))[..., 0])
        blocks = self.blocks
        return effective_modes(
            log_probs if blocks is None else log_mass_of_blocks(log_probs, blocks)
        )


register(Measure, ("reward", "log_ref", "blocks", "right"), static=("kind",))


def succeeds(reward: Array) -> Array:
    """Which outcomes are right: those of positive reward, or else those above the least.

    The rule of :func:`kltarget.tasks.right_outcomes`, row by row.
    """
    finite = reward > -jnp.inf
    positive = (reward > 0) & finite
    telling = jnp.any(positive, -1, keepdims=True) & jnp.any(finite & ~positive, -1, keepdims=True)
    least = jnp.min(select(finite, reward, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(telling, positive, finite & (reward > least))
