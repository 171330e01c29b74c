"""TRL's trainers: rewards that keep every right answer, log-probabilities in the log, live numbers.

``watch`` needs nothing but the trainer that calls the reward functions, and never starts JAX's
devices, whose memory is the trainer's. The trainers need TRL itself, ``pip install
"kltarget[trl]"``, and are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kltarget.adapters.trl._log_prob_trainers import (
        LogProbs as LogProbs,
        LogProbsGRPOTrainer as LogProbsGRPOTrainer,
        LogProbsRLOOTrainer as LogProbsRLOOTrainer,
    )
    from kltarget.adapters.trl._mara_trainers import (
        MaraGRPOTrainer as MaraGRPOTrainer,
        MaraRLOOTrainer as MaraRLOOTrainer,
    )
    from kltarget.adapters.trl._watch import watch

_FILE_OF = {
    "LogProbs": "_log_prob_trainers",
    "LogProbsGRPOTrainer": "_log_prob_trainers",
    "LogProbsRLOOTrainer": "_log_prob_trainers",
    "MaraGRPOTrainer": "_mara_trainers",
    "MaraRLOOTrainer": "_mara_trainers",
    "watch": "_watch",
}
"""The file of each name; those in ``_NEEDS_TRL`` cannot be imported without TRL."""

_NEEDS_TRL = {"_log_prob_trainers", "_mara_trainers"}

# What can be imported without TRL; the other names are in `__dir__`.
__all__ = ["watch"]


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_FILE_OF[name]}")
    except ModuleNotFoundError as error:
        if _FILE_OF[name] not in _NEEDS_TRL or (error.name or "").startswith("kltarget"):
            raise
        raise ImportError(
            f'{name} needs {error.name}, which is not installed: pip install "kltarget[trl]"'
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(_FILE_OF)
