"""From what a user passes to one problem per prompt."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from kltarget._core.numerics import as_float
from kltarget.implied._fixed_point_problem import Problem
from kltarget.implied._nodes import Rule
from kltarget.implied._slopes import slope_of
from kltarget.objectives import Objective
from kltarget.recipes import Recipe
from kltarget.spaces import PrefixTree, SequenceSpace
from kltarget.tasks import as_task

Space = SequenceSpace | PrefixTree


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The prompts of a batch, one problem each, in one row.

    ``together`` are the rows that are trained in one batch: those of one and the same β.
    """

    recipe: Recipe
    space: Space | None
    log_ref: np.ndarray
    beta: np.ndarray
    problems: list[Problem]
    batch: tuple[int, ...]
    together: list[list[int]]
    dtype: Any


def make_rows(recipe: Any, reward: Any, log_ref: Any, space: Any, beta: Any) -> Rows:
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a kltarget.recipes.Recipe, got {recipe!r}")
    if space is not None and not isinstance(space, Space):
        what = "a kltarget.SequenceSpace or a kltarget.spaces.PrefixTree"
        raise TypeError(f"space must be {what}, got {space!r}")
    if log_ref is None:
        if isinstance(space, PrefixTree):
            raise TypeError("log_ref is needed beside a PrefixTree: the reference of each sequence")
        task = as_task(reward, space=space)
        reward, log_ref, space = task.reward, task.log_ref, task.space
    beta = recipe.beta if beta is None else beta
    if beta is None:
        raise ValueError("beta is needed: pass beta=0.1, for instance, or give it to the recipe")
    given, beta = as_float(beta), np.asarray(beta, np.float64)
    if not np.all(np.isfinite(beta) & (beta >= 0)):
        raise ValueError(f"beta must be 0 or more and finite, got {beta}")
    # Checks shapes, rewards and the reference; which beta, does not matter to it.
    checked = Objective(reward, log_ref, jnp.where(given > 0, given, jnp.ones_like(given)))
    dtype, batch = checked.reward.dtype, checked.batch_shape
    size = checked.reward.shape[-1]
    if space is not None:
        if space.num_sequences != size:
            raise ValueError(f"reward has {size} outcomes, but the space {space.num_sequences}")
        space.require_log_probs(checked.log_ref, "log_ref")
    reward, log_ref = (
        np.broadcast_to(np.asarray(x, np.float64), (*batch, size)).reshape(-1, size)
        for x in (checked.reward, checked.log_ref)
    )
    numbered = np.broadcast_to(np.arange(beta.size).reshape(beta.shape), batch).ravel()
    together = [np.flatnonzero(numbered == i).tolist() for i in range(beta.size)]
    beta = np.broadcast_to(beta, batch).ravel()
    eos, lengths = None, None
    if isinstance(space, SequenceSpace) and recipe.eos == "cut":
        eos = space.eos
    if isinstance(space, SequenceSpace) and eos is not None:
        lengths = _lengths_without_end(space)
    else:
        lengths = _lengths(recipe, space)
    _check_known(recipe, space, lengths is not None)
    scaled = recipe.reward_scale * np.where(log_ref > -np.inf, reward, 0.0)
    if recipe.reward_bounds:
        scaled = np.clip(scaled, *recipe.reward_bounds)
    if not np.isfinite(scaled).all():
        raise ValueError("reward must be finite wherever the reference has mass")
    normal_ref = log_ref - np.logaddexp.reduce(log_ref, axis=-1, keepdims=True)
    charged = recipe.place == "reward" and recipe.level == "token" and lengths is not None
    own_conditions = recipe.per_token or charged or recipe.entropy_bonus > 0
    has_tree = several_tokens(space) or eos is not None
    weight = 1.0 if lengths is not None else _kl_weight(recipe, space)
    problems = [
        Problem(
            recipe=recipe,
            beta=float(one_beta) * weight,
            reward=one_reward,
            log_ref=one_ref,
            rule=_rule(recipe),
            regularised=recipe.divergence is not None and one_beta > 0,
            tree=space.branches if space is not None and has_tree and own_conditions else None,
            lengths=lengths,
            eos=eos,
        )
        for one_reward, one_ref, one_beta in zip(scaled, normal_ref, beta, strict=True)
    ]
    if recipe.normalize == "batch-std" and recipe.normalized:
        _check_together(recipe, max(map(len, together)), lengths is not None)
    return Rows(recipe, space, log_ref, beta, problems, batch, together, dtype)


def _rule(recipe: Recipe) -> Rule:
    if recipe.aim == "other" and recipe.divergence is not None:
        return slope_of(recipe.divergence)
    return "forward" if recipe.aim == "forward" else "reverse"


def _check_together(recipe: Recipe, prompts: int, weighed: bool) -> None:
    dropped = recipe.zero_std == "drop" and recipe.group_size is not None
    if prompts > 1 and (weighed or dropped):
        where = "groups are dropped" if dropped else "sequences count by their lengths"
        raise ValueError(
            f"no fixed point is known for one standard deviation over {prompts} prompts where "
            f"{where}: a beta of the shape of the batch takes each prompt as a batch of its own"
        )


def several_tokens(space: Space | None) -> bool:
    return space is not None and space.length > 1


def _lengths(recipe: Recipe, space: Space | None) -> np.ndarray | None:
    """The number of tokens per sequence where they differ and move the target."""
    kinds = _kinds(recipe)
    if space is None or kinds in ({"sum"}, {"batch-mean"}):
        return None
    counts = np.asarray(space.lengths(), np.float64)
    # What is equal at the target on average is equal however sequences are weighed.
    equal = recipe.charged_before and recipe.baseline != "none" and not recipe.entropy_bonus
    if np.ptp(counts[np.asarray(space.possible())]) == 0 or (equal and recipe.level == "sequence"):
        return None
    return counts


def _lengths_without_end(space: SequenceSpace) -> np.ndarray:
    kept = np.asarray(space.sequences()) != space.eos
    # What has no token at all has no term that a length could divide.
    return np.maximum(kept.sum(-1), 1).astype(np.float64)


def _kinds(recipe: Recipe) -> set[str]:
    kl_length = recipe.kl_length if recipe.place == "loss" else None
    return {recipe.length, kl_length or recipe.length}


def _kl_weight(recipe: Recipe, space: Space | None) -> float:
    """By how much the KL counts more than the reward where all sequences have the same length."""
    if space is None or len(_kinds(recipe)) == 1:
        return 1.0
    count = float(space.lengths()[int(np.argmax(space.possible()))])
    own, other = (1.0 if x == "sum" else 1 / count for x in (recipe.length, recipe.kl_length))
    return other / own


def _check_known(recipe: Recipe, space: Space | None, weighed: bool) -> None:
    """Raises for what no fixed point is known of."""
    in_sequence_loss = recipe.place == "loss" and recipe.level == "sequence"
    in_sequence_reward = recipe.place == "reward" and recipe.level == "sequence"
    several = several_tokens(space)
    # What a token is charged with from its position on has another mean at each position.
    centred = recipe.baseline != "none" or recipe.normalize != "none"
    by_position = recipe.level == "token" and centred
    unknown = None
    if recipe.entropy_bonus and recipe.charged_before and recipe.normalize != "none":
        unknown = "an entropy bonus beside a KL that is normalised with the reward"
    elif (
        recipe.eos == "cut"
        and isinstance(space, SequenceSpace)
        and space.eos is not None
        and (recipe.entropy_bonus or recipe.place == "reward")
    ):
        unknown = "an end that is cut off beside an entropy bonus or a KL in the reward"
    elif recipe.entropy_bonus and in_sequence_loss and several:
        unknown = "an entropy bonus per token beside a loss on whole sequences"
    elif isinstance(space, PrefixTree) and (recipe.eos == "cut" or recipe.aim == "total variation"):
        what = "the absolute log-ratio" if recipe.eos == "kept" else "an end that is cut off"
        unknown = f"{what} on a PrefixTree"
    elif recipe.aim == "other" and recipe.place == "reward" and recipe.level == "token" and several:
        unknown = f"{recipe.estimator_name}, charged token by token"
    elif recipe.zero_std == "drop" and recipe.place == "reward":
        unknown = "dropped groups with a KL in the reward"
    elif recipe.aim == "total variation":
        if recipe.normalize != "none" or recipe.zero_std == "drop":
            unknown = "the absolute log-ratio with normalised rewards or dropped groups"
        elif recipe.entropy_bonus or weighed:
            unknown = "the absolute log-ratio with an entropy bonus or lengths that count"
    elif weighed and recipe.charged_before and (by_position or recipe.depends_on_groups):
        unknown = "a KL that is normalised with the reward where sequences count by their lengths"
    elif weighed and in_sequence_reward and recipe.entropy_bonus:
        unknown = "an entropy bonus beside a KL on sequences that count by their lengths"
    if unknown:
        raise ValueError(f"no fixed point is known for {unknown}")
