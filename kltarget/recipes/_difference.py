"""How the targets of two recipes differ, in a sentence."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from kltarget.recipes._reading import Reading
from kltarget.recipes._recipe import Recipe

_DIRECTIONS = {"reverse": "reverse KL", "forward": "forward KL", "none": "no KL"}
# What no expected gradient on-policy depends on.
_OFF_POLICY = ("clip", "clip_high", "ratio_level", "updates_per_batch")


def difference(before: Reading, after: Reading, *, same_keys: bool = False) -> str:
    """One sentence on how the targets of two recipes differ.

    Args:
        before: a recipe as :func:`read` reads it.
        after: another.
        same_keys: whether both follow from the same configuration, as of two versions of a trainer.

    Returns:
        Which target becomes which, by how much the effective β changes, or which fields differ.

    Example:
        >>> from kltarget import recipes
        >>> older, newer = (recipes.read(recipes.recipe(f"tunix=={v}")) for v in ("0.1.6", "0.1.7"))
        >>> recipes.difference(older, newer, same_keys=True)
        'same YAML, other target: forward KL → no KL'
    """
    same = "same YAML, " if same_keys else ""
    first, second = (_direction(x) for x in (before, after))
    of = [f"of {'tokens' if x.recipe.per_token else 'sequences'}" for x in (before, after)]
    if first != second:
        levels = f", {of[0]} → {of[1]}" if of[0] != of[1] and "no KL" not in (first, second) else ""
        return f"{same}other target: {first} → {second}{levels}"
    if first == "no KL":
        unused = [_DIRECTIONS.get(str(x.unused), x.unused) for x in (before, after)]
        if None in unused or unused[0] == unused[1]:
            return "no target either way: the path of training decides"
        change = f"{unused[0]} → {unused[1]}"
        return f"no target either way at β = 0; with β above 0, {same}other target: {change}"
    if before.family != after.family:
        return f"{same}other target: the same {first}, {of[0]} → {of[1]}"
    fields, others = _acting(before.recipe), _acting(after.recipe)
    names = [name for name in fields if fields[name] != others[name]]
    if not names:
        return "same target"
    differ = f"; what differs: {', '.join(names)}"
    change = f"{before.effective} → {after.effective}"
    if before.effective == after.effective:
        pairs = (before.effective_beta, after.effective_beta), (before.beta, after.beta)
        ratios = [b / a for a, b in pairs if a and b and not math.isclose(a, b)]
        if not ratios:
            return f"same family of targets{differ}"
        change = f"ratio {ratios[0]:.3g}"
    return f"same family of targets, another effective β: {change}{differ}"


def _direction(reading: Reading) -> str:
    divergence = reading.recipe.divergence
    if reading.direction == "other" and divergence is not None:
        return divergence.title
    return _DIRECTIONS.get(reading.direction, reading.direction)


def _acting(recipe: Recipe) -> dict[str, Any]:
    """The fields, with those that do not move a target at one value each."""
    fields = dataclasses.asdict(recipe) | dict.fromkeys(_OFF_POLICY)
    # Estimators of one expected gradient differ in what a clip of them cuts.
    fields["estimator"] = recipe.divergence or recipe.estimator_name
    fields["kl_clip"] = recipe.kl_clip and (recipe.kl_clip, recipe.estimator)
    in_reward = recipe.place == "reward"
    kl_length = recipe.length if in_reward else recipe.kl_length or recipe.length
    if recipe.length == kl_length == "batch-mean" or (in_reward and recipe.baseline != "none"):
        fields["length"] = kl_length = "sum"
    fields["kl_length"] = None if kl_length == fields["length"] else kl_length
    if in_reward:
        fields["level"] = recipe.level if recipe.log_ratio_clip or recipe.kl_clip else None
    else:
        fields["normalize_when"] = None
    if not recipe.normalized:
        fields |= {"epsilon": None, "ddof": None, "normalize": None}
    if recipe.charged_before and fields["length"] != "mean":
        fields["baseline"] = None
    in_groups = recipe.normalized and recipe.normalize != "batch-std"
    if not (in_groups or recipe.baseline_shrinks or recipe.zero_std == "drop"):
        fields["group_size"] = None
    return fields
