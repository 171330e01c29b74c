"""A recipe as the log of its run has it: its group size, its units, what does not move in a log."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from kltarget import evidence
from kltarget.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd


def completed(recipe: Recipe, log: evidence.Log, beta: float) -> tuple[Recipe, list[str]]:
    """The recipe with the log's own group size, if groups matter.

    That is the one size they all have, or their median if the recipe has none.
    """
    sizes = np.bincount(log.group)
    size, notes = int(np.median(sizes)), []
    recipe, moved = _as_logged(recipe)
    notes += moved
    if recipe.beta != beta:
        recipe = dataclasses.replace(recipe, beta=float(beta))
    usual = int(np.bincount(sizes).argmax())
    if (sizes != usual).any() and usual == sizes.max():
        size = usual
        which = f"{usual}, the largest and usual size, counts; the others have lost some"
        notes.append(f"groups of {sizes.min()} to {sizes.max()} rollouts: {which}")
        sizes = np.full_like(sizes, usual)
    matters = recipe.baseline != "none" or recipe.normalize in ("group-std", "others-std")
    matters |= recipe.by_masses
    if matters and (sizes != size).any():
        whose = "the median" if recipe.group_size is None else "that of the recipe"
        size = recipe.group_size or size
        notes.append(f"groups of {sizes.min()} to {sizes.max()} rollouts: {size}, {whose}, counts")
    if not matters or recipe.group_size == size:
        return recipe, notes
    if size < 2:
        if recipe.group_size is not None:
            own = recipe.group_size
            notes.append(f"groups of {size} in the log, {own} in the recipe: {own} is used")
        return recipe, notes
    try:
        sized = dataclasses.replace(recipe, group_size=size)
    except ValueError:
        return recipe, notes
    if recipe.group_size is not None:
        notes.append(
            f"groups of {size} in the log, {recipe.group_size} in the recipe: {size} is used"
        )
    return sized, notes


def _as_logged(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe of what stands in a log: its policy, its reference and its coefficient of then."""
    notes = []
    if recipe.moves_reference:
        notes.append(
            "the reference moves: what is said of targets is of the reference that was logged"
        )
    if recipe.temperature != 1:
        notes.append(
            f"log-probabilities and answers are taken to be at the recipe's temperature, "
            f"{recipe.temperature:g}, as they are trained on"
        )
    if recipe.kl_target is not None:
        notes.append("a controller moves β: give the one that the run had in the end (--beta)")
    recipe = recipe.without_motion
    if recipe.combine == "sum" and recipe.reward_weights is not None:
        # What is logged is their sum.
        recipe = dataclasses.replace(recipe, reward_weights=None)
    return recipe, notes


def unshaped(recipe: Recipe, frame: pd.DataFrame) -> tuple[Recipe, list[str]]:
    """The recipe of rewards that were logged as it scaled and cut them."""
    plain = dataclasses.replace(recipe, reward_scale=1.0, reward_clip=None, reward_clip_low=None)
    if plain == recipe or not frame.attrs.get("shaped"):
        return recipe, []
    return plain, [
        "rewards are in the trainer's own units, as it logs them: the recipe's scale and clip of "
        "rewards are in them already"
    ]
