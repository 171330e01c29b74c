"""What a recipe aims at, prompt by prompt, and what follows for the answers of one of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.optimize import brentq

from kltarget._core import processes
from kltarget._core.distances import effective_number
from kltarget._core.status import Status
from kltarget.diagnosis._statement import FlipOfAnswers
from kltarget.evidence import Prompt, padded
from kltarget.implied import ImpliedTarget, implied_target
from kltarget.modes import flip_beta
from kltarget.objectives import Objective, mara
from kltarget.recipes import Recipe

_NUM_BETAS = 25
_MOST_SHOWN = 8
_MOST_PAIRS = 4
# Finding a fixed point of finite groups takes this many times as long with several rewards.
_SEVERAL_REWARDS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Aim:
    """A prompt's target.

    Attributes:
        log_target: ``[A]``, as the outcomes of the prompt.
        x: reward over coefficient, on which the target depends, ``[A]``; None if it does not depend
            on them alone.
        effective_beta: in units of the logged reward; 0 if there is no target.
        status: :class:`kltarget.Status` bits.
    """

    prompt: Prompt
    log_target: np.ndarray
    x: np.ndarray | None
    effective_beta: float
    status: Status

    def modes(self, threshold: float) -> tuple[float, float]:
        """The effective number of right answers by the reference and by the target."""
        right = np.append(self.prompt.right(threshold), False)
        reference, target = self.prompt.log_ref[right], self.log_target[right]
        return effective_number(reference), effective_number(target)


def affordable(recipe: Recipe, prompts: list[Prompt], most: int) -> list[Prompt]:
    """The first prompts whose targets take no longer than ``most`` simple ones."""
    heavy = recipe.normalized and recipe.depends_on_groups
    several = [len(np.unique(x.reward[x.log_ref > -np.inf])) > 2 for x in prompts]
    costs = np.where(np.array(several) & heavy, _SEVERAL_REWARDS, 1).cumsum()
    return prompts[: (costs <= max(most, _SEVERAL_REWARDS)).sum()]


def statable(recipe: Recipe, prompt: Prompt) -> bool:
    """Whether the prompt's target is known, over its answers as wholes or along their tokens."""
    return not recipe.per_token or prompt.at_once or prompt.tree is not None


def aims_of(recipe: Recipe, prompts: list[Prompt], beta: float) -> list[Aim]:
    """Targets of many prompts at once."""
    along = [along_tokens(recipe, prompt) for prompt in prompts]
    if not any(along):
        return _whole(recipe, prompts, beta)
    if recipe.normalize == "batch-std" and recipe.normalized and len(prompts) > 1:
        raise ValueError("one standard deviation over prompts whose answers are trees of tokens")
    whole = iter(
        _whole(recipe, [x for x, tree in zip(prompts, along, strict=True) if not tree], beta)
    )
    return [
        _along(recipe, prompt, beta) if tree else next(whole)
        for prompt, tree in zip(prompts, along, strict=True)
    ]


def best_unseen(prompt: Prompt) -> Prompt:
    """The prompt if unseen answers were as good as the best seen one, not as bad as the worst."""
    reward = np.append(prompt.reward[:-1], prompt.best_unseen)
    return dataclasses.replace(prompt, reward=reward)


def along_tokens(recipe: Recipe, prompt: Prompt) -> bool:
    """Whether each prefix has a target of its own."""
    return recipe.per_token and not prompt.at_once


def _couples_prompts(recipe: Recipe) -> bool:
    """Whether a prompt's target depends on the other prompts, or the way to it does."""
    controlled = recipe.kl_target is not None or recipe.entropy_target is not None
    moved = controlled or recipe.reference in ("copied", "averaged")
    in_a_batch = "batch-std" in (recipe.normalize, recipe.renormalize)
    return moved or in_a_batch or recipe.renormalize != "none" or recipe.kl_centre != "none"


def _along(recipe: Recipe, prompt: Prompt, beta: float) -> Aim:
    target = _along_tree(recipe, prompt, beta)
    bits, size = Status(int(target.status)), len(prompt.names)
    assert prompt.tree is not None
    log_target = prompt.tree.over_outcomes(np.asarray(target.log_probs), size)
    return Aim(prompt, log_target, None, float(target.effective_beta), bits)


def _along_tree(recipe: Recipe, prompt: Prompt, beta: Any) -> ImpliedTarget:
    tree = prompt.tree
    assert tree is not None
    reward = prompt.reward[tree.outcome]
    with np.errstate(invalid="ignore"):
        return implied_target(recipe, reward, tree.log_ref, space=tree.space, beta=beta)


def _whole(recipe: Recipe, prompts: list[Prompt], beta: float) -> list[Aim]:
    if not prompts:
        return []
    rewards, log_refs = padded([x.reward for x in prompts], [x.log_ref for x in prompts])

    def targets(rows: slice) -> tuple[np.ndarray, ...]:
        # Searches for fixed points may step outside of what is possible and come back.
        with np.errstate(invalid="ignore"):
            target = implied_target(recipe, rewards[rows], log_refs[rows], beta=beta)
        log_probs, coefficient = np.asarray(target.log_probs), np.asarray(target.effective_beta)
        objective = target.objective
        plain = type(objective.divergence) is type(recipe.divergence)
        return (
            log_probs,
            np.broadcast_to(np.asarray(objective.reward), log_probs.shape),
            coefficient,
            np.broadcast_to(np.asarray(objective.beta), coefficient.shape),
            np.asarray(target.status),
            np.full(coefficient.shape, plain),
        )

    # Prompts that are easy and hard come in turn.
    number = 1 if _couples_prompts(recipe) else min(processes.count(), len(prompts))
    shares = [slice(i, None, number) for i in range(number)]
    found = processes.shared(targets, shares)
    order = np.argsort(np.concatenate([np.arange(len(prompts))[rows] for rows in shares]))
    log_probs, reward, coefficient, shared, status, plain = (
        np.concatenate(parts)[order] for parts in zip(*found, strict=True)
    )
    aims = []
    for row, prompt in enumerate(prompts):
        size, bits = len(prompt.names), Status(int(status[row]))
        held = plain[row] and not bits & Status.NO_TARGET and coefficient[row] > 0
        x = reward[row, :size] / shared[row] if held else None
        aims.append(Aim(prompt, log_probs[row, :size], x, float(coefficient[row]), bits))
    return aims


def pairs_of(prompt: Prompt) -> list[tuple[int, int]]:
    """Answers of which the better one is less likely by the reference, most likely ones first."""
    log_ref, reward = prompt.log_ref[:-1], prompt.reward[:-1]
    good = np.flatnonzero((reward > reward.min()) & (log_ref > -np.inf))
    good = good[np.argsort(-log_ref[good], kind="stable")][:_MOST_SHOWN]
    pairs = ((i, j) for j in good.tolist() for i in good.tolist())
    found = [(i, j) for i, j in pairs if reward[i] > reward[j] and log_ref[i] < log_ref[j]]
    # The best answer against each favourite says most.
    return sorted(found, key=lambda pair: (-reward[pair[0]], -log_ref[pair[0]]))[:_MOST_PAIRS]


def scale_of(recipe: Recipe, beta: float, aim: Aim) -> float | None:
    """The trainer's coefficient over the effective one, where it is the same at every β."""
    if recipe.normalized or recipe.entropy_bonus or recipe.divergence is None:
        return None
    if along_tokens(recipe, aim.prompt):
        return None
    return beta / aim.effective_beta if beta > 0 and aim.effective_beta > 0 else None


def flips_of(
    recipe: Recipe, beta: float, aim: Aim, rng: np.random.Generator, number: int
) -> tuple[FlipOfAnswers, ...]:
    """Where the recipe's target changes its favourite of two good answers."""
    prompt, scale = aim.prompt, scale_of(recipe, beta, aim)
    pairs = pairs_of(prompt)
    if not pairs or beta == 0 or aim.status & Status.NO_TARGET:
        return ()
    if scale is None:
        betas = np.geomspace(*searched(recipe, prompt), 13)
        rows = targets_over(recipe, prompt, betas)
        levels = [_search(recipe, prompt, betas, rows, pair) for pair in pairs]
        found: list[Any] = [(np.nan, level, None, np.nan) for level in levels]
    else:
        found, best = [], np.append(prompt.reward[:-1], prompt.reward.max())
        drawn = _draws(prompt, rng, number) if prompt.known == "first-step" else None
        for pair in pairs:
            flip = _closed(recipe, prompt.reward, prompt.log_ref, pair)
            other = _closed(recipe, best, prompt.log_ref, pair)
            spread = None
            if drawn is not None:
                # A resample that turns the reference's order round has no flip: it is at infinity.
                values = _closed(recipe, prompt.reward, drawn, pair)
                spread = _quantiles(scale * np.where(np.isnan(values), np.inf, values))
            found.append((float(flip), float(scale * flip), spread, float(scale * other)))
    # In the order of the fields of their type.
    named: list[Any] = [
        zip(FlipOfAnswers.__annotations__, (prompt.names[i], prompt.names[j], *values), strict=True)
        for (i, j), values in zip(pairs, found, strict=True)
    ]
    flips = (FlipOfAnswers(**dict(values)) for values in named)
    return tuple(flip for flip in flips if np.isfinite(flip["beta"]))


def searched(recipe: Recipe, prompt: Prompt) -> tuple[float, float]:
    """Between which β flips are searched for where no formula is known."""
    unit = 1.0 if recipe.normalized else recipe.reward_scale * float(np.ptp(prompt.reward))
    return 1e-4 * unit, 1e2 * unit


def _closed(recipe: Recipe, reward: np.ndarray, log_ref: np.ndarray, pair: tuple[int, int]) -> Any:
    rows = np.atleast_2d(log_ref)
    rewards, log_refs = padded([reward] * len(rows), list(rows))
    assert recipe.divergence is not None
    objective = Objective(rewards, log_refs, np.ones(len(rows)), recipe.divergence)
    return np.asarray(flip_beta(objective, *pair)).reshape(log_ref.shape[:-1])


def _draws(prompt: Prompt, rng: np.random.Generator, number: int) -> np.ndarray:
    """References that fit the first step's counts, by Jeffreys' posterior."""
    with np.errstate(divide="ignore"):
        return np.log(rng.dirichlet(prompt.first_counts + 0.5, size=max(number, 1)))


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def reference_ratio(
    prompt: Prompt, i: int, j: int, rng: np.random.Generator, number: int
) -> tuple[float, tuple[float, float] | None]:
    """``π_ref(i)/π_ref(j)``, with an interval if it is estimated."""
    value = float(np.exp(prompt.log_ref[i] - prompt.log_ref[j]))
    if prompt.known != "first-step":
        return value, None
    drawn = _draws(prompt, rng, max(number, 1000))
    return value, _quantiles(np.exp(np.minimum(drawn[:, i] - drawn[:, j], 700)))


def _search(
    recipe: Recipe, prompt: Prompt, betas: np.ndarray, log_probs: np.ndarray, pair: tuple[int, int]
) -> float:
    """The trainer's β at which two answers are level, NaN if none is, given targets of some β."""
    i, j = pair
    lead = log_probs[:, i] - log_probs[:, j]
    change = np.flatnonzero((lead[:-1] > 0) & (lead[1:] <= 0))
    if not change.size:
        return np.nan

    def leads(log_beta: float) -> float:
        row = targets_over(recipe, prompt, np.exp([log_beta]))[0]
        # Two answers may both have vanished.
        return 0.0 if row[i] == row[j] else float(row[i] - row[j])

    low, high = (float(x) for x in np.log(betas[change[-1] : change[-1] + 2]))
    root: Any = brentq(leads, low, high, xtol=1e-8)
    return float(np.exp(root))


def targets_over(recipe: Recipe, prompt: Prompt, betas: np.ndarray) -> np.ndarray:
    """Log-probabilities at every β, NaN where no target is found."""
    reward, log_ref = padded([prompt.reward], [prompt.log_ref])
    try:
        if along_tokens(recipe, prompt) and prompt.tree is not None:
            found = np.asarray(_along_tree(recipe, prompt, betas).log_probs)
            return prompt.tree.over_outcomes(found, len(prompt.names))
        with np.errstate(invalid="ignore"):
            log_probs = implied_target(recipe, reward, log_ref, beta=betas).log_probs
    except ValueError:
        if len(betas) == 1:
            return np.full((1, len(prompt.names)), np.nan)
        return np.concatenate([targets_over(recipe, prompt, betas[[k]]) for k in range(len(betas))])
    return np.asarray(log_probs)[:, : len(prompt.names)]


def shares_over_beta(recipe: Recipe, prompt: Prompt, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Target masses ``[B, A]`` over two decades of β on each side of the configured one."""
    if beta == 0:
        return np.empty(0), np.empty((0, len(prompt.names)))
    betas = np.geomspace(beta / 100, beta * 100, _NUM_BETAS)
    return betas, np.exp(targets_over(recipe, prompt, betas))


def mara_rewards(recipe: Recipe, aim: Aim) -> np.ndarray | None:
    """What MARA would give instead of the logged rewards, with the best of them as threshold.

    None where it acts through another coefficient or on another target than these rewards have.
    """
    if aim.effective_beta <= 0 or recipe.divergence is None or recipe.entropy_bonus:
        return None
    if along_tokens(recipe, aim.prompt):
        return None
    reward, log_ref = padded([aim.prompt.reward], [aim.prompt.log_ref])
    objective = Objective(reward, log_ref, np.array([aim.effective_beta]))
    seen = aim.prompt.log_ref[:-1] > -np.inf
    best = aim.prompt.reward[:-1][seen].max(initial=-np.inf)
    if not np.isfinite(best) or aim.prompt.reward[-1] >= best:
        return None
    return np.asarray(mara(objective, best).reward)[0, : len(aim.prompt.names)]


def side_by_side(aim: Aim) -> tuple[np.ndarray, np.ndarray]:
    """Log-masses of the last policy and the target.

    What was not sampled lately, or has no reference log-probability, is one outcome.
    """
    known = (aim.prompt.log_now[:-1] > -np.inf) & ~aim.prompt.unknown[:-1]
    target = aim.log_target[:-1]
    rest = np.logaddexp.reduce(np.append(target[~known], aim.log_target[-1]))
    now, others = aim.prompt.log_now[:-1], aim.prompt.log_now[-1]
    now = np.append(now[known], np.logaddexp.reduce(np.append(now[~known], others)))
    return now, np.append(target[known], rest)
