"""Closed forms: from an objective to the policy that maximises it. Nothing here trains.

Arguments come in the order of the objective: reward, log_ref, beta, divergence. A space or a
mixture is where the problem lives and comes first of all: ``token_local_target(space, reward,
log_ref, …)``, ``tilt(mixture, reward, beta)``, ``solve_on_grid(density, reward, beta, …)``,
``solve_on_samples(samples, reward, beta, …)``; there it takes the place of ``log_ref``.

Every result answers ``log_prob``, ``sample``, ``expectation``, ``expected_reward``,
``divergence_value``, ``status`` and ``raise_if_failed``, and what maximises an objective ``value``
too; what is estimated has ``…_error`` beside it.
"""

from kltarget.targets._protocol import DiscreteTarget
from kltarget.targets.discrete import Target, greedy_limit, reference_limit, solve
from kltarget.targets.sequences import (
    TokenLocalTarget,
    soft_values,
    token_advantages,
    token_local_target,
)

__all__ = [
    "DiscreteTarget",
    "Target",
    "TokenLocalTarget",
    "greedy_limit",
    "reference_limit",
    "soft_values",
    "solve",
    "token_advantages",
    "token_local_target",
]
