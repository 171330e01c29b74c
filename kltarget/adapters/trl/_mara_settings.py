"""What in a configuration of TRL keeps MARA from its target; read without TRL."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from kltarget.recipes import Recipe, from_config
from kltarget.recipes._caveats import mara_obstacle

_LOSS_TYPES = ("grpo", "bnpo", "dapo", "dr_grpo")


def recipe_for_mara(config: Mapping[str, Any], trainer: str) -> Recipe:
    """The recipe of a configuration with which MARA has its target, or an error that says why not.

    Args:
        config: ``training_args.to_dict()``.
        trainer: a preset with a version, ``"trl-grpo==1.16.0"``.

    Raises:
        ValueError: a setting that defeats the augmentation; the message says why and names the key.
    """
    recipe = from_config(config, trainer=trainer).recipe
    if not recipe.beta:
        raise ValueError(
            "beta = 0: MARA acts through the KL, and without one it changes nothing; set `beta` "
            "above 0"
        )
    for setting, why in _refused(config, recipe):
        raise ValueError(f"{setting} keeps MARA from its target: {why}")
    # The β that acts in the anchor makes up for the mean of the group.
    fair = dataclasses.replace(recipe, baseline="leave-one-out")
    if obstacle := mara_obstacle(fair):
        raise ValueError(f"{_key_of(fair)} keeps MARA from its target: {obstacle}")
    return recipe


def threshold_of(threshold: Any) -> float:
    """The number that a threshold is, ``-inf`` for that of the best so far."""
    if isinstance(threshold, str) and threshold == "best":
        return -math.inf
    if not isinstance(threshold, numbers.Real) or not math.isfinite(threshold):
        raise ValueError(f"threshold must be a reward or 'best', got {threshold!r}")
    return float(threshold)


def acting_beta(recipe: Recipe) -> float:
    """The β against which rewards count: β G/(G − 1) where the group's mean has the sample in it.

    The temperature is left out: TRL's log-probabilities, and the policy that they are of, are
    those at the temperature of the rollouts.
    """
    return (recipe.beta or 0.0) / recipe.baseline_factor


def _key_of(recipe: Recipe) -> str:
    """The setting behind what the library's own reading objects to."""
    if recipe.normalized:
        return f'scale_rewards (set `scale_rewards: "none"`; it is {recipe.normalize})'
    if recipe.aim in ("forward", "other"):
        return "use_bias_correction_kl = false (set `use_bias_correction_kl: true`)"
    return f"The {recipe.estimator_name} in place={recipe.place!r}"


def _refused(config: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Settings that no field of a recipe holds, or that a recipe's target survives and MARA not."""
    if config.get("multi_objective_aggregation") == "normalize_then_sum":
        yield (
            "multi_objective_aggregation = normalize_then_sum",
            "each reward is divided by its own deviation, the augmentation among them; set "
            "`multi_objective_aggregation: sum_then_normalize`",
        )
    if config.get("importance_sampling_level", "token") != "token":
        yield (
            "importance_sampling_level = sequence",
            "with one ratio for each answer the KL in the loss follows no KL's gradient; set "
            "`importance_sampling_level: token`",
        )
    if config.get("loss_type", "grpo") not in _LOSS_TYPES:
        yield (
            f"loss_type = {config['loss_type']}",
            "it weighs the rewards but not the KL by the ratio; set `loss_type` to "
            f"{', '.join(_LOSS_TYPES[:-1])} or {_LOSS_TYPES[-1]}",
        )
    if config.get("top_entropy_quantile", 1.0) < 1:
        yield (
            f"top_entropy_quantile = {config['top_entropy_quantile']:g}",
            "rewards act on some tokens and the KL on all; set `top_entropy_quantile: 1.0`",
        )
    if config.get("normalize_advantages"):
        yield (
            "normalize_advantages = true",
            "at the target all advantages are zero but for noise, and divided by its deviation the "
            "noise never fades; set `normalize_advantages: false`",
        )
    if config.get("reward_clip_range"):
        yield (
            "reward_clip_range",
            "it cuts off what the augmentation adds; unset `reward_clip_range` and clip in the "
            "reward function",
        )
    if recipe.reference != "fixed":
        yield (
            "sync_ref_model = true",
            "the reference follows the policy, and the target moves with it; set "
            "`sync_ref_model: false`",
        )
