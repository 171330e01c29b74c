"""From which β on a recipe's target keeps right answers, and what it gains there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kltarget.diagnosis._aims import Aim, searched, targets_over
from kltarget.diagnosis._grade import HELD
from kltarget.recipes import Recipe

GAIN = 0.95
"""What a β is asked to leave of the reward that could be gained, where there is none yet."""
_COARSE, _FINE = 25, 9
_MOST_PROMPTS, _MOST_NORMALIZED = 8, 4


@dataclasses.dataclass(frozen=True)
class KeepingBeta:
    """A β and what its target does.

    Attributes:
        beta: of the trainer.
        kept: the chance that two right answers differ, over that of the reference.
        gain: how much of the reward that could be gained the target gains.
    """

    beta: float
    kept: float
    gain: float


def keeping_beta(
    recipe: Recipe, aims: Sequence[Aim], beta: float, threshold: float
) -> KeepingBeta | None:
    """The least β from which on the target keeps right answers; None if none above is found.

    Where there is no β yet, any may keep them: of those, the largest that still gains most of the
    reward.
    """
    most = _MOST_NORMALIZED if recipe.normalized else _MOST_PROMPTS
    chosen = [aim for aim in aims if aim.prompt.right(threshold).sum() > 1][:most]
    if not chosen:
        return None
    low, high = (
        f(x)
        for f, x in zip(
            (min, max),
            zip(*(searched(recipe, aim.prompt) for aim in chosen), strict=True),
            strict=True,
        )
    )
    low = max(low, beta)
    if not low < high:
        return None
    betas = np.geomspace(low, high, _COARSE)
    kept, gain = _curves(recipe, chosen, betas, threshold)
    at = _first(kept)
    if at is None or (at == 0 and beta > 0):
        return None
    if at > 0:
        betas = np.geomspace(betas[at - 1], betas[at], _FINE)
        kept, gain = _curves(recipe, chosen, betas, threshold)
        at = _first(kept)
        if at is None:
            return None
    elif 0 < (enough := int((gain >= GAIN).sum())) < _COARSE:
        # All are kept: the largest β that gains enough.
        betas = np.geomspace(betas[enough - 1], betas[enough], _FINE)
        kept, gain = _curves(recipe, chosen, betas, threshold)
        at = max(int((gain >= GAIN).sum()) - 1, 0)
    return KeepingBeta(_rounded_up(float(betas[at])), float(kept[at]), float(gain[at]))


def _first(kept: np.ndarray) -> int | None:
    """From where on all are kept."""
    lost = np.flatnonzero(~(kept >= HELD))
    first = int(lost[-1]) + 1 if lost.size else 0
    return first if first < len(kept) else None


def _curves(
    recipe: Recipe, aims: Sequence[Aim], betas: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """What targets of these β keep and gain, means over prompts, ``[B]`` each."""
    before, after, gained, possible = 0.0, np.zeros(len(betas)), np.zeros(len(betas)), 0.0
    for aim in aims:
        prompt = aim.prompt
        right = np.append(prompt.right(threshold) & ~prompt.unknown[:-1], False)
        log_probs = targets_over(recipe, prompt, betas)
        before += float(_differ(prompt.log_ref[None, right])[0])
        after += _differ(log_probs[:, right])
        start = float(np.exp(prompt.log_ref) @ prompt.reward)
        gained += np.exp(log_probs) @ prompt.reward - start
        possible += float(prompt.reward[prompt.log_ref > -np.inf].max()) - start
    return after / before, gained / possible if possible > 0 else np.ones(len(betas))


def _differ(log_mass: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        share = np.exp(log_mass - np.logaddexp.reduce(log_mass, axis=1)[:, None])
    return 1 - (share**2).sum(1)


def _rounded_up(beta: float) -> float:
    """To two digits, so that what holds above it holds there."""
    unit = 10.0 ** (math.floor(math.log10(beta)) - 1)
    return float(f"{math.ceil(round(beta / unit, 6)) * unit:.6g}")
