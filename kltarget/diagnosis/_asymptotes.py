"""Where the curves of a run end if it gets to its target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kltarget._core.status import Status
from kltarget.diagnosis._aims import Aim


def asymptotes(aims: Sequence[Aim], group_size: int) -> dict[str, float]:
    """Means over prompts by their targets, named as the curves; empty without targets."""
    if not aims or any(aim.status & Status.NO_TARGET for aim in aims):
        return {}
    rows = [_of_one(aim, group_size) for aim in aims]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _of_one(aim: Aim, group_size: int) -> dict[str, float]:
    mass = np.exp(aim.log_target)
    inside = mass > 0
    _, level = np.unique(aim.prompt.reward, return_inverse=True)
    found = {
        "reward": float(mass @ aim.prompt.reward),
        "entropy": float(-(mass[inside] @ aim.log_target[inside])) + 0.0,
        "differ": float(1 - (mass**2).sum()),
    }
    if group_size > 1:
        found["zero_std"] = float((np.bincount(level, mass) ** group_size).sum())
    return found
