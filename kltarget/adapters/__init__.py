"""Real trainers and language models: what the library says, put to work where they run.

Each part needs the packages that it adapts, which extras install: ``kltarget[trl]`` for TRL's
trainers, ``kltarget[lm]`` for log-probabilities of a language model. Nothing but the command line
imports this room, and it imports those packages only where they are used. ``mara_rewards`` needs
none of them: it takes the arrays of NumPy, PyTorch and JAX as they come. ``policy_of`` makes a
model of JAX a policy.
"""

from kltarget.adapters._mara_rewards import mara_rewards
from kltarget.adapters._policy_of import policy_of

__all__ = ["mara_rewards", "policy_of"]
