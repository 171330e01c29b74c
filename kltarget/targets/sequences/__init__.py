"""Targets on token trees: soft values, token advantages, and the targets of per-token losses.

The target of a sequence-level objective is ``solve`` on the enumerated space, and its next-token
probabilities are ``space.conditionals(target.log_probs)``. What is here is what the tree adds.
"""

from kltarget.targets.sequences._soft_values import soft_values, token_advantages
from kltarget.targets.sequences._token_local import TokenLocalTarget, token_local_target

__all__ = ["TokenLocalTarget", "soft_values", "token_advantages", "token_local_target"]
