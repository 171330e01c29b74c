"""Where the expected gradient of a recipe vanishes, for one prompt.

Advantages depend on the policy: through the mean and deviation of its rewards or, in finite
groups, through how likely each reward is. Those few numbers are what is searched for; given them,
the policy follows prefix by prefix.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar, root, root_scalar
from scipy.special import expit

from kltarget._core.status import Status
from kltarget.implied._fixed_point_problem import Batch, FixedPoint, Problem, in_parts
from kltarget.implied._nodes import slope
from kltarget.recipes.groups import Advantages, Groups

_Function = Callable[[np.ndarray], np.ndarray]

_PARTS = 8
_RARE = 1e-6
"""Where less than this is left of all but the best outcomes, training has saturated."""
_GREEDY = 1e-12
_SAME = 1e-5
_FLAT = 1e-9
"""Deviations below this share of the rewards' spread are no longer told from 0."""


def find(problem: Problem) -> FixedPoint:
    """The fixed point that training from the reference is drawn to."""
    if problem.tokens is not None and problem.regularised:
        return _of_mean_kl(problem)
    flat = problem.tree is None and problem.lengths is None
    apart = problem.recipe.entropy_bonus or problem.teacher is not None
    if not flat or apart or problem.paid is not None or problem.levels.size == problem.reward.size:
        return _find(problem)
    # Outcomes of equal reward keep the reference's proportions: one outcome stands for them.
    masses = problem.masses(problem.log_ref)
    merged = {"reward": problem.levels, "rewards": problem.parts, "log_ref": np.log(masses)}
    found = _find(dataclasses.replace(problem, **merged))
    share = np.where(problem.log_ref > -np.inf, problem.log_ref - np.log(masses)[problem.level], 0)
    log_probs = np.where(problem.log_ref > -np.inf, share + found.log_probs[problem.level], -np.inf)
    reward = None if found.reward is None else found.reward[problem.level]
    return dataclasses.replace(found, log_probs=log_probs, reward=reward)


def _of_mean_kl(problem: Problem) -> FixedPoint:
    """The KL per token of the batch, K, is taken off every charge: each token is paid β K."""
    tokens = problem.tokens
    assert tokens is not None

    def paid(mean: float) -> FixedPoint:
        return find(dataclasses.replace(problem, paid=mean * tokens, tokens=None))

    def excess(mean: float) -> float:
        log_probs = paid(mean).log_probs
        return _kl(log_probs, problem.log_ref) / float(np.exp(log_probs) @ tokens) - mean

    # From the reference, where there is no KL yet, the first that is met.
    grid = np.concatenate([[0.0], np.geomspace(1e-6, 50, 120)])
    for low, high in itertools.pairwise(grid):
        if excess(high) <= 0:
            return paid(crossing(excess, low, high) if excess(low) > 0 else low)
    return dataclasses.replace(paid(grid[-1]), status=Status.NOT_CONVERGED)


def _kl(log_probs: np.ndarray, log_ref: np.ndarray) -> float:
    some = log_probs > -np.inf
    return float((np.exp(log_probs[some]) * (log_probs[some] - log_ref[some])).sum())


def _find(problem: Problem) -> FixedPoint:
    recipe, alone = problem.recipe, not problem.recipe.entropy_bonus and problem.teacher is None
    alone &= problem.paid is None
    if problem.levels.size == 1 and problem.lengths is None and alone:
        return FixedPoint(problem.log_ref, problem.reward, problem.beta, problem.beta)
    if problem.levels.size == 1 and (recipe.normalized or recipe.by_masses):
        # Equal rewards have no advantage, whatever that is divided by.
        nothing = {"combine": "sum", "normalize": "none", "renormalize": "none"}
        kept = dataclasses.replace(recipe, **nothing, advantage_clip=None)
        return _find(dataclasses.replace(problem, recipe=kept, rewards=None))
    if problem.lengths is not None:
        return _of_statistics(problem)
    if problem.groups is not None:
        return _of_masses(problem)
    if recipe.normalized:
        return of_deviation([problem])[0]
    return _at(problem, 1 / recipe.baseline_factor)


def smallest_coefficient(problems: Sequence[Problem]) -> float:
    """The least ``beta`` with a fixed point short of saturation: the minimum of ``s/(σ(s) + ε)``.

    At coefficient s the targets of a batch have deviation σ(s); a fixed point is where
    ``s = β (σ + ε)``. It is 0 where the best rewards differ from prompt to prompt, as long as they
    are sampled.
    """
    batch = Batch([dataclasses.replace(x, beta=1.0) for x in problems])
    if np.ptp([x.levels[-1] for x in problems]) > 0:
        return 0.0

    def ratio(scales: np.ndarray) -> np.ndarray:
        return scales / (batch.deviation(scales) + problems[0].recipe.epsilon)

    scales = batch.scales(low=1e-6, high=1e3)
    with np.errstate(divide="ignore"):
        least = int(np.argmin(ratio(scales)))
    around = np.log(scales[[max(least - 1, 0), min(least + 1, scales.size - 1)]])
    options = {"bounds": tuple(around), "method": "bounded", "options": {"xatol": 1e-12}}
    found: Any = minimize_scalar(lambda x: ratio(np.exp([x]))[0], **options)
    return float(found.fun)


def _at(problem: Problem, scale: float) -> FixedPoint:
    """The target of the reward divided by a known number."""
    log_probs = problem.at_scale(np.array([scale]))[0]
    # A baseline that shrinks the regulariser along with the reward leaves their ratio.
    reward, beta = problem.reward if problem.plain else None, problem.pull * scale
    return FixedPoint(log_probs, reward, beta, beta)


def crossing(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function changes its sign, to the last bits."""
    return root_scalar(function, bracket=(low, high), method="brentq", xtol=1e-15).root


def _crossings(excess: _Function, grid: np.ndarray) -> list[float]:
    """Where a function changes its sign between points of a grid, in its order."""
    above = excess(grid) > 0
    brackets = [grid[[i, i + 1]] for i in np.flatnonzero(above[:-1] != above[1:])]
    return [crossing(lambda x: float(excess(np.array([x]))[0]), *ends) for ends in brackets]


def saturated(problem: Problem) -> FixedPoint:
    """The limit of a vanishing coefficient: among the best outcomes only the regulariser acts."""
    limit = problem.only(problem.best, Status.SATURATED)
    if problem.lengths is None and not problem.recipe.entropy_bonus and problem.teacher is None:
        return limit
    nothing = {"combine": "sum", "normalize": "none", "renormalize": "none"}
    kept = dataclasses.replace(problem.recipe, **nothing, advantage_clip=None, group_size=None)
    chosen = np.where(problem.best, problem.log_ref, -np.inf)
    changed = {"recipe": kept, "reward": np.zeros_like(problem.reward), "rewards": None}
    # Token by token the reference keeps the share that it gives to all that may follow.
    by_token = problem.tree is not None and problem.recipe.per_token
    changed |= {"among": chosen} if by_token else {"log_ref": chosen}
    among = dataclasses.replace(problem, **changed)
    return dataclasses.replace(limit, log_probs=_find(among).log_probs, reward=None)


def _with_remarks(problem: Problem, found: FixedPoint, others: Sequence[np.ndarray]) -> FixedPoint:
    """A fixed point, and what is to be said of it where there are others, ``[A]`` each."""
    short = 1 - problem.masses(found.log_probs)[-1]
    status = found.status | (Status.SEVERAL if len(others) else Status.OK)
    if short < _RARE and problem.recipe.normalized:
        status |= Status.SATURATED
    rewards = tuple(map(problem.expected_reward, others))
    return dataclasses.replace(found, status=status, others=rewards)


def of_deviation(problems: Sequence[Problem]) -> list[FixedPoint]:
    """All fixed points of rewards divided by ``σ(π) + ε``; the one nearest the reference first.

    The deviation is that of all prompts together.
    """
    batch, recipe = Batch(problems), problems[0].recipe
    factor, epsilon = recipe.baseline_factor, recipe.epsilon
    # Below, what is left of the other outcomes drowns in the rounding of the others' masses.
    # No deviation exceeds half the spread, but one may reach it.
    scales = batch.scales(low=1e-6, high=1 + 1e-9)
    if epsilon:
        scales = np.concatenate([[epsilon], epsilon + scales])

    def excess(scale: np.ndarray) -> np.ndarray:
        return batch.deviation(scale / factor) + epsilon - scale

    roots = np.array(_crossings(excess, scales)[::-1]) / factor
    if not roots.size:  # the limit of a vanishing coefficient is left
        return list(map(saturated, problems))
    found = [
        _with_remarks(problem, _at(problem, roots[0]), list(problem.at_scale(roots[1:])))
        for problem in problems
    ]
    if all(point.status & Status.SATURATED for point in found):
        return found
    # As long as one prompt has rewards that differ, the deviation that all share is held.
    return [dataclasses.replace(x, status=x.status & ~Status.SATURATED) for x in found]


def _of_advantages(problem: Problem, groups: Advantages, masses: np.ndarray) -> np.ndarray:
    """The policies ``[..., A]`` of the advantages that policies with these masses would see."""
    advantage, kept = groups.expected(masses)
    counts = kept[..., problem.level]
    cost, entropy = problem.pull * counts, problem.entropy * counts
    taught = problem.taught * counts
    return problem.policy(advantage[..., problem.level], cost, entropy, taught)


def _in_groups(problem: Problem, groups: Advantages, log_probs: np.ndarray) -> FixedPoint:
    """A fixed point as what its advantages ask for."""
    gain = groups.expected(problem.masses(log_probs))[0][problem.level]
    # In units of the reward: by how much its spread exceeds that of the advantages.
    spread = dataclasses.replace(problem, reward=gain).deviation(log_probs)
    ratio = problem.deviation(log_probs) / spread if spread > 0 else 0.0
    effective = problem.pull * float(ratio)
    if not problem.plain or isinstance(groups, Groups):
        return FixedPoint(log_probs, gain if problem.plain else None, problem.beta, effective)
    again = problem.policy(gain, *(np.array(x) for x in (problem.pull, 0.0, 0.0)))
    if np.abs(np.exp(again) - np.exp(log_probs)).sum() < _SAME:
        return FixedPoint(log_probs, gain, problem.beta, effective)
    # Where a deviation has vanished its advantages have, though not what they have led to.
    inside = problem.log_ref > -np.inf
    log_ratio = np.where(inside, log_probs, 0.0) - np.where(inside, problem.log_ref, 0.0)
    wish = problem.beta * slope(problem.rule, log_ratio)
    return FixedPoint(log_probs, wish, problem.beta, effective, Status.SATURATED)


def _of_masses(problem: Problem) -> FixedPoint:
    groups = problem.groups
    assert groups is not None
    start = problem.masses(problem.log_ref)
    exactly = not groups.sampled
    if problem.levels.size == 2 and exactly:
        return _of_success(problem, groups)

    def arrive(groups: Advantages, start: np.ndarray) -> tuple[np.ndarray, bool]:
        def policy(masses: np.ndarray) -> np.ndarray:
            return _of_advantages(problem, groups, masses)

        masses, settled = _iterate(lambda x: problem.masses(policy(x)), start, exactly)
        return policy(masses), settled

    greedy = np.full_like(start, 1e-6 / start.size)
    greedy[-1] = 1 - greedy[:-1].sum()
    (reached, settled), other = arrive(groups, start), arrive(groups, greedy)
    found = _arrived(problem, _in_groups(problem, groups, reached), settled, *other)
    if not isinstance(groups, Groups) or exactly:
        return found
    # Each part of the samples has a fixed point of its own, near this one.
    start = problem.masses(reached)
    apart = [arrive(groups.part(i, _PARTS), start)[0] for i in range(_PARTS)]
    spread = np.abs(np.exp(apart) - np.exp(reached)).sum(-1) / 2
    return dataclasses.replace(found, error=float(np.sqrt((spread**2).mean() / _PARTS)))


def _arrived(
    problem: Problem, found: FixedPoint, settled: bool, other: np.ndarray, also: bool
) -> FixedPoint:
    """A fixed point that was iterated to, and what is to be said of it and of another one."""
    apart = also and np.abs(np.exp(found.log_probs) - np.exp(other)).sum() > 1e-3
    found = _with_remarks(problem, found, [other] if apart else [])
    if settled:
        return found
    return dataclasses.replace(found, status=found.status | Status.NOT_CONVERGED)


def _of_success(problem: Problem, groups: Advantages) -> FixedPoint:
    """Two rewards: all fixed points in the probability of the better one."""

    def success(logit: np.ndarray) -> np.ndarray:
        return np.stack([expit(-logit), expit(logit)], axis=-1)

    def lead(logit: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            mass = np.log(problem.masses(_of_advantages(problem, groups, success(logit))))
        return np.clip(mass[..., 1] - mass[..., 0], -800, 800) - logit

    def excess(logit: np.ndarray) -> np.ndarray:
        return in_parts(lead, logit, problem.reward.size)

    begin = np.log(problem.masses(problem.log_ref)) @ np.array([-1.0, 1.0])
    grid = begin + np.concatenate([[-1e-9], np.geomspace(1e-6, 700, 401)])
    roots = _crossings(excess, grid)
    if not roots:
        return saturated(problem)
    first, *others = _of_advantages(problem, groups, success(np.array(roots)))
    return _with_remarks(problem, _in_groups(problem, groups, first), others)


def _of_statistics(problem: Problem) -> FixedPoint:
    """Sequences that count by their lengths: also the mean reward and mean length are unknown."""
    lengths, recipe, groups = problem.lengths, problem.recipe, problem.groups
    assert lengths is not None
    least = _FLAT * float(np.ptp(problem.levels))

    def weights(mean: float) -> tuple[np.ndarray, np.ndarray]:
        """Of a sequence's reward and of its regulariser."""
        each = {"sum": np.ones_like(lengths), "mean": 1 / lengths}
        each["batch-mean"] = np.full_like(lengths, 1 / mean)
        in_loss = recipe.place == "loss" and recipe.kl_length
        return each[recipe.length], each[in_loss or recipe.length]

    def policy(state: np.ndarray) -> np.ndarray:
        own, other = weights(state[-1])
        kept = np.ones_like(problem.reward)
        if groups is not None:
            advantage, counts = groups.expected(state[:-1])
            gain, kept = advantage[problem.level], counts[problem.level]
        else:
            centre = 0.0 if recipe.baseline == "none" else state[0]
            gain = recipe.baseline_factor * (problem.reward - centre)
            if recipe.normalized:
                gain = gain / max(state[1] + recipe.epsilon, least)
        cost, counted = problem.pull * other * kept, own * kept
        return problem.policy(own * gain, cost, problem.entropy * counted, problem.taught * counted)

    def statistics(log_probs: np.ndarray) -> np.ndarray:
        mean_length = float((np.exp(log_probs) * lengths).sum())
        if groups is not None:
            return np.append(problem.masses(log_probs), mean_length)
        mean = problem.expected_reward(log_probs)
        return np.array([mean, float(problem.deviation(log_probs)), mean_length])

    exactly = groups is None or not groups.sampled

    def arrive(start: np.ndarray) -> tuple[np.ndarray, bool]:
        state, settled = _iterate(lambda x: statistics(policy(x)), statistics(start), exactly)
        there = policy(state)
        # Certainty has no deviation to converge to more than a few digits of.
        return there, settled or float(problem.deviation(there)) <= least

    (reached, settled), best = arrive(problem.log_ref), problem.only(problem.best, Status.OK)
    greedy = np.logaddexp(np.log(_GREEDY) + problem.log_ref, np.log1p(-_GREEDY) + best.log_probs)
    if groups is not None:
        found = _in_groups(problem, groups, reached)
    else:
        scale = float(problem.deviation(reached)) + recipe.epsilon if recipe.normalized else 1.0
        if scale <= least:
            return saturated(problem)
        effective = problem.pull * scale / recipe.baseline_factor
        found = FixedPoint(reached, None, problem.beta, effective)
    probs = np.exp(reached)
    own, other = ((probs * x).sum() for x in weights(float((probs * lengths).sum())))
    found = dataclasses.replace(found, effective_beta=found.effective_beta * float(other / own))
    return _arrived(problem, found, settled, *arrive(greedy))


def _iterate(update: _Function, start: np.ndarray, polish: bool) -> tuple[np.ndarray, bool]:
    """The fixed point that small steps from ``start`` arrive at, and whether they did.

    >>> _iterate(lambda x: 0.5 + 0.1 * x, np.array([0.2]), True)[1]
    True
    >>> _iterate(lambda x: np.where(x < 0.5, 0.9, 0.1), np.array([0.2]), True)[1]
    False
    """
    state, step, last = start, 0.5, np.zeros_like(start)
    # Sampled groups give steps and no slope, and are worth fewer digits.
    enough, tolerable = (1e-12, 1e-9) if polish else (1e-7, 1e-4)
    for _ in range(2000 if polish else 200):
        move = update(state) - state
        size = np.abs(move).max()
        if size < enough:
            return state, True
        # Steps that turn back were too long; those that grow may be on their way past a ghost.
        turned = move @ last < 0
        step = max(step / 2, 1e-3 if polish else 0.1) if turned else min(1.2 * step, 0.5)
        state, last = state + step * move, move
        if polish and size < 1e-4:
            break
    left = np.abs(update(state) - state).max()
    if polish and state.size <= 200:
        found = root(lambda x: update(x) - x, state, tol=1e-14)
        near, closer = np.abs(found.x - state).max() < 1e-2, np.abs(update(found.x) - found.x).max()
        if near and closer < left:
            state, left = found.x, closer
    return state, bool(left < tolerable)
