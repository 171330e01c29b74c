"""Real training with TRL: live numbers of a run (``watch``).

``watch`` needs nothing but the trainer that calls the reward functions, and never starts JAX's
devices, whose memory is the trainer's.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kltarget.adapters.trl._watch import watch

# Loaded when first used: not every part needs TRL.
_FILE_OF = {"watch": "_watch"}

__all__ = ["watch"]


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILE_OF[name]}"), name)
