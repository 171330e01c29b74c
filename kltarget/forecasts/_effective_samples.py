"""How many of a prompt's samples the target at each β rests on."""

from __future__ import annotations

import numpy as np

from kltarget.evidence import SampleCounts
from kltarget.implied.levels import level_targets
from kltarget.recipes import Recipe

_MOST = 256


def effective_samples(
    counts: SampleCounts, recipe: Recipe, rewards: np.ndarray, beta: np.ndarray
) -> list[float]:
    """Mean effective sample size of the weights that turn samples into the target's, ``[B]``.

    Of weights w over the samples, ``e^{reward/beta}`` for a reverse KL, it is ``(Σw)²/Σw²``; with
    the target's masses π and the counts n of each reward that is ``1/Σ π²/n``.

    Args:
        counts: samples of each reward.
        recipe: what the trainer does, on the base model.
        rewards: as the recipe uses them, ``[K]``.
        beta: coefficients, ascending, ``[B]``.
    """
    levels = counts.by_level
    # So many prompts, evenly along their rewards, have next to the mean of all.
    order = np.argsort(levels @ counts.rewards / levels.sum(1), kind="stable")
    size = min(len(order), _MOST)
    chosen = levels[order[((np.arange(size) + 0.5) * len(order) / size).astype(int)]]
    with np.errstate(divide="ignore"):
        log_masses = np.log(chosen / chosen.sum(1, keepdims=True))
    targets, _ = level_targets(recipe, rewards, log_masses, beta)
    per_sample = np.exp(2 * targets) / np.maximum(chosen, 1)
    return (1 / per_sample.sum(-1)).mean(1).tolist()
