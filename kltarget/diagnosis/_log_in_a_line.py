"""A log in a line: how much of it there is, and how large its groups are."""

from __future__ import annotations

import numpy as np

from kltarget import evidence
from kltarget._core.words import counted
from kltarget.recipes import Recipe


def counting(sizes: np.ndarray, recipe: Recipe) -> tuple[int, str]:
    """The size of groups that counts, and what to say of it."""
    usual = int(np.bincount(sizes).argmax())
    if usual == sizes.max():
        return usual, f"{usual}"
    size = recipe.group_size or int(np.median(sizes))
    return size, f"{sizes.min()} to {sizes.max()} ({size} counts)"


def title_of(log: evidence.Log, size: dict[str, int], format: str | None, of: str) -> str:
    steps = ""
    if len(log.steps):
        which = f"{log.steps[0]:,} to {log.steps[-1]:,}"
        which = which if len(log.steps) > 1 else f"step {log.steps[0]:,}"
        steps = f", {counted(len(log.steps), 'logged step')}, {which}"
    written = f"{format}: " if format else ""
    return (
        f"{written}{counted(size['rollouts'], 'rollout')} of {counted(size['prompts'], 'prompt')} "
        f"in {counted(size['groups'], 'group')} of {of}{steps}"
    )
