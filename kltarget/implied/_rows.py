"""From what a user passes to one problem per prompt."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from kltarget._core.checks import mass_tolerance
from kltarget._core.numerics import as_float
from kltarget.implied._fixed_point_problem import Problem
from kltarget.implied._known import require_known, several_tokens, weighted_together
from kltarget.implied._nodes import Rule, Teacher, one_level, token_by_token
from kltarget.implied._slopes import slope_of
from kltarget.objectives import Objective
from kltarget.recipes import Recipe
from kltarget.spaces import Branches, PrefixTree, SequenceSpace
from kltarget.tasks import as_task

Space = SequenceSpace | PrefixTree


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The prompts of a batch, one problem each, in one row.

    Attributes:
        recipe: what is done.
        space: the sequences that the outcomes are, or None.
        log_ref: the reference as it was given, ``[R, A]``.
        beta: the coefficients, ``[R]``.
        kl_weight: how much the KL counts more than the reward because of how tokens are averaged.
        problems: one per row.
        batch: the axes that the rows are of.
        together: the rows that are trained in one batch, those of one and the same β.
        dtype: of the result.
    """

    recipe: Recipe
    space: Space | None
    log_ref: np.ndarray
    beta: np.ndarray
    kl_weight: float
    problems: list[Problem]
    batch: tuple[int, ...]
    together: list[list[int]]
    dtype: Any

    @property
    def tree(self) -> Branches:
        """Of the tokens of all outcomes."""
        return one_level(self.log_ref.shape[-1]) if self.space is None else self.space.branches

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Numbers of tokens, ``[A]``."""
        if self.space is None:
            return np.ones(self.log_ref.shape[-1])
        return np.asarray(self.space.lengths(), np.float64)

    def powered(self, log_probs: np.ndarray, power: float) -> np.ndarray:
        """What a policy is where the logits of its next tokens are multiplied by ``power``."""
        if power == 1:
            return log_probs
        return token_by_token(self.tree, lambda x: power * x, log_probs)

    def changed(self, beta: float | None = None, **recipe: Any) -> Rows:
        """The same prompts under one other coefficient, or another recipe."""
        other = dataclasses.replace(self.recipe, **recipe)
        coefficients = self.beta if beta is None else np.full_like(self.beta, beta)
        problems = [
            dataclasses.replace(
                problem,
                recipe=other,
                beta=float(one) * self.kl_weight,
                rule=rule_of(other, problem.together) if one > 0 else "reverse",
                regularised=other.divergence is not None and one > 0,
            )
            for problem, one in zip(self.problems, coefficients, strict=True)
        ]
        return dataclasses.replace(self, recipe=other, beta=coefficients, problems=problems)


def make_rows(
    recipe: Any, reward: Any, log_ref: Any, space: Any, beta: Any, log_teacher: Any = None
) -> Rows:
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
    beta = _coefficient(recipe, beta)
    shared = several_tokens(space) and weighted_together(recipe)
    given, beta = as_float(beta), np.asarray(beta, np.float64)
    if not np.all(np.isfinite(beta) & (beta >= 0)):
        raise ValueError(f"beta must be 0 or more and finite, got {beta}")
    reward, rewards = _one_reward(recipe, reward, log_ref)
    # Checks shapes, rewards and the reference; which beta, does not matter to it.
    checked = Objective(reward, log_ref, jnp.where(given > 0, given, jnp.ones_like(given)))
    dtype, batch = checked.reward.dtype, checked.batch_shape
    size = checked.reward.shape[-1]
    if space is not None:
        if space.num_sequences != size:
            raise ValueError(f"reward has {size} outcomes, but the space {space.num_sequences}")
        space.require_log_probs(checked.log_ref, "log_ref")

    def in_rows(x: Any, *own: int) -> np.ndarray:
        return np.broadcast_to(np.asarray(x, np.float64), (*batch, *own)).reshape(-1, *own)

    reward, log_ref = (in_rows(x, size) for x in (checked.reward, checked.log_ref))
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
    held = recipe.divergence is not None and bool((beta > 0).all())
    prompts = max(map(len, together), default=1)
    counts = np.ones(size) if space is None else np.asarray(space.lengths())
    even = len(set(counts[(log_ref > -np.inf).any(0)].tolist())) < 2
    require_known(recipe, space, even=even, weighed=lengths is not None, held=held, prompts=prompts)
    possible = log_ref > -np.inf
    scaled = recipe.reward_scale * np.where(possible, reward, 0.0)
    if recipe.reward_bounds:
        scaled = np.clip(scaled, *recipe.reward_bounds)
    if not np.isfinite(scaled).all():
        raise ValueError("reward must be finite wherever the reference has mass")
    if rewards is not None:
        rewards = in_rows(rewards, *rewards.shape[-2:]).transpose(0, 2, 1) * recipe.reward_scale
    if recipe.normalize == "group-mean" and (np.where(possible, scaled, 0.0) < 0).any():
        raise ValueError(
            "reward must be 0 or more for normalize='group-mean', which divides by its mean, got "
            f"{scaled[possible].min():g}"
        )
    dropped = recipe.zero_std == "drop" and recipe.depends_on_groups
    weighed = lengths is not None or dropped
    charged = recipe.charged_onward and recipe.level == "token" and weighed
    own_conditions = recipe.per_token or charged or recipe.entropy_bonus > 0
    own_conditions |= recipe.entropy_target is not None
    own_conditions |= recipe.teacher > 0 and recipe.level == "token"
    has_tree = several_tokens(space) or eos is not None
    weight = 1.0 if lengths is not None else _kl_weight(recipe, space)
    length = 1 if space is None else space.length
    if shared and recipe.estimator == "weighted-k1":
        # Its derivative has no mean, its value is charged to all tokens together.
        recipe = dataclasses.replace(
            recipe,
            place="reward",
            estimator="k1",
            level="sequence",
            ratio_level="token",
            normalize_when="before",
            kl_length=None,
        )
        weight, shared, own_conditions = weight / length, False, False
    plain = Problem(
        recipe=recipe,
        beta=0.0,
        reward=np.zeros(size),
        log_ref=np.zeros(size),
        rule="reverse",
        regularised=False,
        tree=space.branches if space is not None and has_tree and own_conditions else None,
        lengths=lengths,
        eos=eos,
        together=1 / length if shared else 0.0,
        as_asked=recipe.temperature == 1 and recipe.reference == "fixed",
    )
    rows = Rows(recipe, space, log_ref, beta, weight, [plain] * len(beta), batch, together, dtype)
    onward = recipe.kl_centre != "none" and recipe.charge == "onward"
    if onward and len(set(rows.lengths[possible.any(0)])) > 1:
        plain = dataclasses.replace(plain, tokens=rows.lengths)
    told = None if log_teacher is None else _checked_teacher(rows, log_teacher)
    if (told is None) == (recipe.teacher > 0):
        raise ValueError(
            "log_teacher is needed, the teacher's log-probabilities of every outcome: the recipe "
            f"has teacher={recipe.teacher:g}"
            if told is None
            else "log_teacher is given, but the recipe has no coefficient for it: set teacher=1.0"
        )
    problems = []
    for i in range(len(beta)):
        reference = _reference(rows, log_ref[i])
        teacher = None if told is None else _teacher(rows, told[i])
        if shared:
            teacher = Teacher(reference, np.zeros(()), "reverse", onward=True)
        several = None if rewards is None else rewards[i]
        own = {"reward": scaled[i], "rewards": several, "log_ref": reference, "teacher": teacher}
        problems.append(dataclasses.replace(plain, **own))
    return dataclasses.replace(rows, problems=problems).changed()


def _coefficient(recipe: Recipe, beta: Any) -> Any:
    if recipe.kl_target is not None:
        if beta is not None:
            raise ValueError(
                f"beta is what a controller moves to keep kl_target={recipe.kl_target:g}: leave "
                "it out, or set kl_target=None"
            )
        return 1.0
    beta = recipe.beta if beta is None else beta
    if beta is None and recipe.place == "none":
        return 0.0
    if beta is None:
        raise ValueError("beta is needed: pass beta=0.1, for instance, or give it to the recipe")
    return beta


def _one_reward(recipe: Recipe, reward: Any, log_ref: Any) -> tuple[Any, np.ndarray | None]:
    """The reward of every outcome and, where each is normalised by itself, all of them."""
    weights = recipe.reward_weights
    if weights is None:
        return reward, None
    rewards = as_float(reward)
    if rewards.ndim < 2 or rewards.shape[-2] != len(weights):
        raise ValueError(
            f"reward must be of shape [..., {len(weights)}, A], a row for each of reward_weights="
            f"{weights}, got {rewards.shape}"
        )
    # What the reference cannot produce may have any reward, which no weight is to turn.
    impossible = (as_float(log_ref) == -jnp.inf)[..., None, :]
    rewards = jnp.where(impossible, jnp.zeros_like(rewards), rewards)
    total = jnp.tensordot(rewards, jnp.asarray(weights, rewards.dtype), ((rewards.ndim - 2,), (0,)))
    return total, None if recipe.combine == "sum" else np.asarray(rewards, np.float64)


def _reference(rows: Rows, log_ref: np.ndarray) -> np.ndarray:
    """What the policy is compared with, at the temperature of training."""
    possible = log_ref > -np.inf
    if rows.recipe.reference == "none":
        # Log-probabilities of 0 differ from equal ones by what is equal for all choices.
        even = np.where(possible, 0.0, -np.inf)
        if rows.recipe.per_token:
            return token_by_token(rows.tree, np.zeros_like, even)
        return even - np.log(possible.sum())
    return rows.powered(log_ref - np.logaddexp.reduce(log_ref), 1 / rows.recipe.temperature)


def _checked_teacher(rows: Rows, log_teacher: Any) -> np.ndarray:
    """Log-probabilities of the teacher by row, ``[R, A]``, or an error that names them."""
    given = np.asarray(as_float(log_teacher), np.float64)
    shape = (*rows.batch, rows.log_ref.shape[-1])
    try:
        told = np.broadcast_to(given, shape).reshape(rows.log_ref.shape)
    except ValueError:
        raise ValueError(
            f"log_teacher must be of a shape that broadcasts to {list(shape)}, got "
            f"{list(given.shape)}"
        ) from None
    if np.isnan(told).any() or (told == np.inf).any():
        raise ValueError("log_teacher must be log-probabilities, without NaN or +inf")
    mass = np.exp(told).sum(-1)
    if (np.abs(mass - 1) > mass_tolerance(as_float(log_teacher).dtype)).any():
        raise ValueError(
            f"log_teacher has a mass of {mass.flat[0]:.6g}, not 1: pass "
            "kltarget.normalize(log_teacher), or its logarithms if these are probabilities"
        )
    missing = (rows.log_ref > -np.inf) & (told == -np.inf)
    if rows.recipe.teacher_direction == "reverse" and missing.any():
        raise ValueError(
            "log_teacher must be finite wherever the reference has mass: the reverse KL to a "
            "teacher that excludes what the policy samples is infinite"
        )
    return told


def _teacher(rows: Rows, log_teacher: np.ndarray) -> Teacher:
    log_teacher = log_teacher - np.logaddexp.reduce(log_teacher)
    recipe, none = rows.recipe, np.zeros(())
    told = rows.powered(log_teacher, 1 / recipe.temperature)
    return Teacher(told, none, recipe.teacher_direction, recipe.teacher_top_k)


def rule_of(recipe: Recipe, together: float = 0.0) -> Rule:
    """Which f′ the gradient of a recipe's regulariser is that of."""
    if together:
        # k3 + k3′ spread over L tokens: ((L − 1) (1 − 1/u) + log u)/L.
        return "forward"
    if recipe.aim == "other" and recipe.divergence is not None:
        return slope_of(recipe.divergence)
    return "forward" if recipe.aim == "forward" else "reverse"


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
