"""The optimiser of verifications."""

from __future__ import annotations

import functools
from typing import Any

import optax


@functools.cache
def annealed_adam(num_steps: int) -> Any:
    """Adam whose learning rate falls to 0: one function object, so that seeds share a program.

    A short memory of squared gradients and an ε far below them matter at small β: the target
    starves most branches of probability, and what is left of their gradients must still move them.
    """

    def optimizer(rate: Any) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(rate, num_steps)
        return optax.adam(schedule, b2=0.95, eps=1e-15)

    return optimizer
