"""How the targets of two recipes differ, in a sentence."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from kltarget.recipes._reading import Reading
from kltarget.recipes._recipe import Recipe

_DIRECTIONS = {"reverse": "reverse KL", "forward": "forward KL", "none": "no KL"}
# What no expected gradient on-policy depends on.
_OFF_POLICY = ("clip", "clip_high", "updates_per_batch")


def in_words(before: Reading, after: Reading, same_keys: bool) -> str:
    """One sentence on how the targets of two recipes differ."""
    same = "same YAML, " if same_keys else ""
    first, second = (_DIRECTIONS.get(x.direction, x.direction) for x in (before, after))
    if first != second:
        change = f"{same}other target: {first} → {second}"
        if "none" not in (before.direction, after.direction) and _where(before) != _where(after):
            change += f", of {_where(before)} → of {_where(after)}"
        return change
    if before.direction == "none":
        unused = before.unused, after.unused
        if None not in unused and unused[0] != unused[1]:
            first, second = (_DIRECTIONS.get(str(x), str(x)) for x in unused)
            return (
                f"no target either way at β = 0; with β above 0, {same}other target: "
                f"{first} → {second}"
            )
        return "no target either way: the path of training decides"
    if before.family != after.family:
        return f"{same}other target: the same {first}, of {_where(before)} → of {_where(after)}"
    names = [
        field.name
        for field in dataclasses.fields(Recipe)
        if _acting(before.recipe)[field.name] != _acting(after.recipe)[field.name]
    ]
    if not names:
        return "same target"
    differ = f"; what differs: {', '.join(names)}"
    if before.effective != after.effective:
        change = f"{before.effective} → {after.effective}"
        return f"same family of targets, another effective β: {change}{differ}"
    for one, other in (
        (before.effective_beta, after.effective_beta),
        (before.beta, after.beta),
    ):
        if one is not None and other is not None and not math.isclose(one, other):
            ratio = f"ratio {other / one:.3g}"
            return f"same family of targets, another effective β: {ratio}{differ}"
    return f"same family of targets{differ}"


def _where(reading: Reading) -> str:
    return "tokens" if reading.family.startswith("token-local") else "sequences"


def _acting(recipe: Recipe) -> dict[str, Any]:
    """The fields, with those that do not move a target at one value each."""
    fields = dataclasses.asdict(recipe) | dict.fromkeys(_OFF_POLICY)
    # Estimators of one expected gradient differ in what a clip of them cuts.
    fields["estimator"] = recipe.divergence or recipe.estimator
    fields["kl_clip"] = recipe.kl_clip and (recipe.kl_clip, recipe.estimator)
    kl_length = recipe.length if recipe.place == "reward" else recipe.kl_length or recipe.length
    if recipe.length == kl_length == "batch-mean" or (
        recipe.place == "reward" and recipe.baseline != "none"
    ):
        fields["length"] = kl_length = "sum"
    fields["kl_length"] = None if kl_length == fields["length"] else kl_length
    if recipe.place == "reward":
        fields["level"] = recipe.level if recipe.log_ratio_clip or recipe.kl_clip else None
    else:
        fields["normalise_when"] = None
    scaled = recipe.normalise != "none" and not recipe.charged_before
    if not scaled:
        fields |= {"epsilon": None, "ddof": None, "normalise": None}
    if recipe.charged_before and fields["length"] != "mean":
        fields["baseline"] = None
    in_groups = recipe.normalise in ("group-std", "others-std") and scaled
    if not (in_groups or recipe.baseline_shrinks or recipe.zero_std == "drop"):
        fields["group_size"] = None
    return fields
