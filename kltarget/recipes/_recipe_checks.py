"""What each field of a recipe may be, and which of them make no sense together.

A recipe asks this when it is made: its class is not known here.
"""

from __future__ import annotations

import functools
import math
import typing
from typing import Any, Literal

from kltarget.recipes._weighted import Weighted

_IN_LOSS_ONLY = ("weighted-k1", "weighted-k3", "sampler")
_LEAST = {"ddof": 0, "group_size": 2, "updates_per_batch": 1, "reference_every": 1}
_LEAST |= {"teacher_top_k": 1}
_MAY_BE_ZERO = ("beta", "epsilon", "entropy_bonus", "teacher", "entropy_target")
_OF_ANY_SIGN = ("reward_clip_low",)


def check_fields(recipe: Any, estimators: Any) -> None:
    """Raises for an unknown choice or a number out of range."""
    for name, (kind, choices) in _types(type(recipe), estimators).items():
        value = getattr(recipe, name)
        if name == "estimator" and callable(value):
            continue
        if kind is None:
            if value not in choices:
                listed = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {listed}, got {value!r}")
        elif value is not None or type(None) not in choices:
            _check_number(name, value, kind)
    weights = recipe.reward_weights
    if weights is None:
        return
    if not isinstance(weights, tuple) or not weights or not all(map(_is_finite, weights)):
        raise ValueError(
            f"reward_weights must be finite numbers, one per reward, such as (1.0, 0.5), got "
            f"{weights!r}"
        )


def _check_number(name: str, value: Any, kind: type) -> None:
    asked = f"a number {'0 or more' if name in _MAY_BE_ZERO else 'above 0'}"
    least = _LEAST.get(name, 0)
    if name in _OF_ANY_SIGN:
        asked, least = "a finite number", -math.inf
    if kind is int:
        asked = f"an integer of {_LEAST[name]} or more"
    if (
        not _is_finite(value, (int,) if kind is int else (int, float))
        or value < least
        or (value == 0 and asked.endswith("above 0"))
    ):
        raise ValueError(f"{name} must be {asked}, got {value!r}")


def _is_finite(value: Any, kinds: tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def check_together(recipe: Any) -> None:
    """Raises for fields that make no sense beside each other."""
    for check in (_of_divergence, _of_reward, _of_reference):
        check(recipe)


def _of_divergence(recipe: Any) -> None:
    weighted = isinstance(recipe.estimator, Weighted)
    if recipe.place == "reward" and (weighted or recipe.estimator in _IN_LOSS_ONLY):
        raise ValueError(
            f"estimator={recipe.estimator!r} is made for its derivative, which place='reward' "
            "does not take: use place='loss'"
        )
    by_token = recipe.level == "token"
    if recipe.ratio_level == "sequence" and by_token and recipe.place == "reward":
        raise ValueError(
            "ratio_level='sequence' weighs a sequence by one number, level='token' in the reward "
            "gives each token an advantage of its own: use level='sequence'"
        )
    if recipe.eos == "cut" and not by_token:
        raise ValueError(
            "eos='cut' leaves a token out, level='sequence' takes them together: use level='token'"
        )
    if recipe.eos == "cut" and weighted:
        raise ValueError(
            f"eos='cut' leaves out a token over which the weight of estimator={recipe.estimator!r} "
            "has its mean: use eos='kept'"
        )
    charged = recipe.place == "reward" and by_token
    if recipe.charge == "own" and not charged:
        raise ValueError(
            "charge='own' is of a KL that is charged token by token: use place='reward' and "
            "level='token'"
        )
    if recipe.kl_centre != "none" and not (charged and recipe.estimator == "k1"):
        raise ValueError(
            f"kl_centre={recipe.kl_centre!r} is of k1 that is charged token by token: use "
            "place='reward', estimator='k1' and level='token'"
        )


def _of_reward(recipe: Any) -> None:
    bounds = recipe.reward_bounds
    if bounds and bounds[0] >= bounds[1]:
        raise ValueError(
            f"reward_clip_low={recipe.reward_clip_low} must be below reward_clip="
            f"{recipe.reward_clip}: rewards are cut to between them"
        )
    counted = (recipe.group_size or math.inf) - (recipe.normalize == "others-std")
    if recipe.normalize in ("group-std", "others-std") and recipe.ddof >= counted:
        raise ValueError(
            f"ddof={recipe.ddof} must be less than the {counted:g} samples whose standard "
            "deviation is taken: use a larger group_size"
        )
    if recipe.combine == "normalize-then-sum":
        if recipe.reward_weights is None or recipe.normalize in ("none", "batch-std"):
            raise ValueError(
                "combine='normalize-then-sum' normalises each of several rewards in its group: "
                "give reward_weights and a normalize of the group"
            )
        if recipe.charged_before:
            raise ValueError(
                "combine='normalize-then-sum' normalises each reward by itself, and a KL that is "
                "charged before belongs to none: use normalize_when='before' or place='loss'"
            )
        if bounds:
            raise ValueError(
                "reward_clip is of one reward, combine='normalize-then-sum' normalises several: "
                "clip them before they are given"
            )


def _of_reference(recipe: Any) -> None:
    moves = recipe.reference in ("copied", "averaged", "lagged")
    if moves and recipe.reference_every is None:
        raise ValueError(
            f"reference={recipe.reference!r} needs reference_every, the number of gradient steps"
        )
    if recipe.reference_every is not None and not moves:
        raise ValueError(
            f"reference_every={recipe.reference_every} is of a reference that moves, not of "
            f"reference={recipe.reference!r}: use 'copied', 'averaged' or 'lagged'"
        )
    share = recipe.reference_share
    if share > 1 or (share != 1 and recipe.reference != "averaged"):
        raise ValueError(f"reference_share={share} is of reference='averaged', and at most 1")
    if recipe.kl_target is not None and recipe.place == "none":
        raise ValueError(
            "kl_target is of a KL that has a coefficient: use place='reward' or 'loss'"
        )
    if recipe.teacher_top_k is not None and not (recipe.teacher and recipe.level == "token"):
        raise ValueError(
            "teacher_top_k is of the next tokens of a teacher: give its coefficient, teacher=1.0, "
            "and level='token'"
        )


@functools.cache
def _types(kind: type, estimators: Any) -> dict[str, tuple[type | None, tuple[Any, ...]]]:
    """Of every field whether it is a float, an int or, with None, a choice; and what it may be."""
    fields = {}
    for name, hint in (typing.get_type_hints(kind) | {"estimator": estimators}).items():
        if name == "reward_weights":
            continue
        choices = typing.get_args(hint) or (hint,)
        choice = typing.get_origin(hint) is Literal
        fields[name] = (None if choice else int if int in choices else float, choices)
    return fields
