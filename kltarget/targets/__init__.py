"""Closed forms: from an objective to the policy that maximises it. Nothing here trains."""

from kltarget.targets.discrete import Target, greedy_limit, reference_limit, solve
from kltarget.targets.sequences import (
    TokenLocalTarget,
    soft_values,
    token_advantages,
    token_local_target,
)

__all__ = [
    "Target",
    "TokenLocalTarget",
    "greedy_limit",
    "reference_limit",
    "soft_values",
    "solve",
    "token_advantages",
    "token_local_target",
]
