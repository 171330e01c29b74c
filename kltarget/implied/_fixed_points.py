"""Where the expected gradient of a recipe vanishes, for one prompt.

Advantages depend on the policy: through the mean and deviation of its rewards or, in finite
groups, through how likely each reward is. Those few numbers are what is searched for; given them,
the policy follows prefix by prefix.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar, root, root_scalar
from scipy.special import expit

from kltarget.implied._groups import Groups, make_groups
from kltarget.implied._nodes import over_tree, stationary
from kltarget.status import Status
from kltarget.training._advantages import needs_groups
from kltarget.training._recipe import Recipe

_MOST_AT_ONCE = 2**22
_FINE, _COARSE = 401, 65
_PARTS = 8
_RARE = 1e-6
"""Where less than this is left of all but the best outcomes, training has saturated."""


@dataclasses.dataclass(frozen=True, eq=False)
class FixedPoint:
    """A policy at which the gradient vanishes, and the plain objective that has it as target.

    Attributes:
        log_probs: ``[A]``.
        reward: of the objective, ``[A]``; None if no plain objective has it.
        beta: of that objective.
        effective_beta: coefficient in units of the recipe's reward.
        status: remarks.
        others: expected rewards at the other fixed points that were found.
        error: standard error of the total variation where groups were sampled.
    """

    log_probs: np.ndarray
    reward: np.ndarray | None
    beta: float
    effective_beta: float
    status: Status = Status.OK
    others: tuple[float, ...] = ()
    error: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A recipe on one prompt, in float64.

    Attributes:
        recipe: with ``beta`` in ``beta``.
        beta: coefficient of the regulariser.
        reward: as the recipe uses it, ``[A]``.
        log_ref: ``[A]``.
        forward: whether the regulariser's gradient is that of the forward KL.
        regularised: whether its estimator has an expected gradient at all.
        sizes: number of tokens per position where the target is token-local, else None.
        lengths: number of tokens per sequence where they differ and matter, else None.
    """

    recipe: Recipe
    beta: float
    reward: np.ndarray
    log_ref: np.ndarray
    forward: bool
    regularised: bool
    sizes: tuple[int, ...] | None = None
    lengths: np.ndarray | None = None

    @property
    def charged_before(self) -> bool:
        """Whether advantages are normalised with the regulariser in them, which then cancels."""
        return self.recipe.place == "reward" and self.recipe.normalise_when == "after"

    @functools.cached_property
    def levels(self) -> np.ndarray:
        """The different rewards of possible outcomes, ascending."""
        return np.unique(self.reward[self.log_ref > -np.inf])

    @functools.cached_property
    def level(self) -> np.ndarray:
        """The index of every outcome's reward; of impossible ones any."""
        return np.minimum(np.searchsorted(self.levels, self.reward), self.levels.size - 1)

    @functools.cached_property
    def groups(self) -> Groups | None:
        """The finite groups that samples are compared in, where they matter."""
        if not needs_groups(self.recipe) or self.charged_before:
            return None
        return make_groups(self.recipe, self.levels)

    @property
    def baseline_factor(self) -> float:
        """What a mean over the group that includes the sample leaves of the reward's gradient."""
        own = self.recipe.baseline == "mean" and self.recipe.place != "reward"
        return 1 - 1 / self.recipe.group_size if own and self.recipe.group_size else 1.0

    @property
    def normalised(self) -> bool:
        """Whether the scale of the advantages depends on the policy."""
        return self.recipe.normalise != "none" and not self.charged_before

    def policy(self, gain: np.ndarray, cost: np.ndarray, entropy: np.ndarray) -> np.ndarray:
        """The stationary policy of given numbers per outcome, ``[..., A]``, as ``log π``."""
        if self.sizes is not None:
            charged = self.recipe.place == "reward"
            return over_tree(self.sizes, gain, cost, self.log_ref, entropy, self.forward, charged)
        return stationary(gain, cost, self.log_ref, entropy, self.forward)

    def at_scale(self, scale: np.ndarray) -> np.ndarray:
        """The policies of rewards that are divided by ``scale [S]``: ``[S, A]``."""
        even = np.ones((scale.size, 1))
        cost = scale[:, None] * (self.beta if self.regularised else 0.0)
        entropy = scale[:, None] * self.recipe.entropy_bonus
        return self.policy(self.reward * even, cost * even, entropy * even)

    def deviation(self, log_probs: np.ndarray) -> np.ndarray:
        """The standard deviation of the reward under policies ``[..., A]``."""
        probs = np.exp(log_probs)
        mean = (probs * self.reward).sum(-1, keepdims=True)
        return np.sqrt((probs * (self.reward - mean) ** 2).sum(-1))

    def masses(self, log_probs: np.ndarray) -> np.ndarray:
        """How likely each reward is, ``[..., K]``."""
        order = np.argsort(self.level, kind="stable")
        first = np.searchsorted(self.level[order], np.arange(self.levels.size))
        return np.add.reduceat(np.exp(log_probs)[..., order], first, axis=-1)

    def expected_reward(self, log_probs: np.ndarray) -> float:
        """``E_π[reward]``."""
        return float((np.exp(log_probs) * self.reward).sum())


def find(problem: Problem) -> FixedPoint:
    """The fixed point that training from the reference is drawn to."""
    flat = problem.sizes is None and problem.lengths is None
    if not flat or problem.recipe.entropy_bonus or problem.levels.size == problem.reward.size:
        return _find(problem)
    # Outcomes of equal reward keep the reference's proportions: one outcome stands for them.
    masses = problem.masses(problem.log_ref)
    found = _find(dataclasses.replace(problem, reward=problem.levels, log_ref=np.log(masses)))
    share = np.where(problem.log_ref > -np.inf, problem.log_ref - np.log(masses)[problem.level], 0)
    log_probs = np.where(problem.log_ref > -np.inf, share + found.log_probs[problem.level], -np.inf)
    reward = None if found.reward is None else found.reward[problem.level]
    return dataclasses.replace(found, log_probs=log_probs, reward=reward)


def _find(problem: Problem) -> FixedPoint:
    if problem.levels.size == 1 and problem.lengths is None and not problem.recipe.entropy_bonus:
        return FixedPoint(problem.log_ref, problem.reward, problem.beta, problem.beta)
    if problem.lengths is not None:
        return _of_statistics(problem)
    if problem.groups is not None:
        return _of_masses(problem)
    if problem.normalised:
        return _of_deviation(problem)
    return _at(problem, 1 / problem.baseline_factor)


def smallest_coefficient(problem: Problem) -> float:
    """The least ``beta`` with a fixed point short of saturation: the minimum of ``s/(σ(s) + ε)``.

    At coefficient s the target has deviation σ(s); a fixed point is where ``s = β (σ + ε)``.
    """
    unit = dataclasses.replace(problem, beta=1.0)
    scales = _scales(unit, low=1e-6, high=1e3)

    def ratio(log_scale: float) -> float:
        scale = np.exp(np.atleast_1d(log_scale))
        return float(scale[0] / (unit.deviation(unit.at_scale(scale))[0] + problem.recipe.epsilon))

    with np.errstate(divide="ignore"):
        ratios = scales / (_deviations(unit, scales) + problem.recipe.epsilon)
    least = int(np.argmin(ratios))
    around = np.log(scales[[max(least - 1, 0), min(least + 1, scales.size - 1)]])
    found = minimize_scalar(ratio, bounds=tuple(around), method="bounded", options={"xatol": 1e-12})
    return float(found.fun)


def _at(
    problem: Problem,
    scale: float,
    status: Status = Status.OK,
    others: tuple[float, ...] = (),
) -> FixedPoint:
    """The target of the reward divided by a known number."""
    log_probs = problem.at_scale(np.array([scale]))[0]
    plain = problem.recipe.entropy_bonus == 0
    return FixedPoint(
        log_probs,
        problem.reward if plain else None,
        problem.beta * scale,
        problem.beta * scale,
        status,
        others,
    )


def crossing(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function changes its sign, to the last bits."""
    return root_scalar(function, bracket=(low, high), method="brentq", xtol=1e-15).root


def _remarks(problem: Problem, log_probs: np.ndarray, others: tuple[float, ...]) -> Status:
    """What is to be said of a fixed point of normalised rewards."""
    short = 1 - problem.masses(log_probs)[-1]
    status = Status.SEVERAL if others else Status.OK
    return status | Status.SATURATED if short < _RARE and problem.normalised else status


def _saturated(problem: Problem) -> FixedPoint:
    """The limit of a vanishing coefficient: the best outcomes in the reference's proportions."""
    possible = problem.log_ref > -np.inf
    best = possible & (problem.reward == problem.levels[-1])
    log_probs = np.where(best, problem.log_ref, -np.inf)
    log_probs = log_probs - np.logaddexp.reduce(log_probs)
    return FixedPoint(log_probs, None, 0.0, 0.0, Status.SATURATED)


def _scales(problem: Problem, low: float, high: float) -> np.ndarray:
    spread = float(np.ptp(problem.levels)) / 2
    number = _FINE if problem.reward.size <= 10_000 else _COARSE
    return np.geomspace(spread * low, spread * high, number)


def _deviations(problem: Problem, scales: np.ndarray) -> np.ndarray:
    rows = max(1, _MOST_AT_ONCE // problem.reward.size)
    parts = [scales[i : i + rows] for i in range(0, scales.size, rows)]
    return np.concatenate([problem.deviation(problem.at_scale(part)) for part in parts])


def _of_deviation(problem: Problem) -> FixedPoint:
    """All fixed points of rewards divided by ``σ(π) + ε``; the one nearest the reference first."""
    epsilon, factor = problem.recipe.epsilon, problem.baseline_factor
    # Below, what is left of the other outcomes drowns in the rounding of the others' masses.
    # No deviation exceeds half the spread, but one may reach it.
    scales = _scales(problem, low=1e-6, high=1 + 1e-9)
    if epsilon:
        scales = np.concatenate([[epsilon], epsilon + scales])

    def excess(scale: float) -> float:
        there = problem.at_scale(np.array([scale / factor]))
        return float(problem.deviation(there)[0] + epsilon - scale)

    values = _deviations(problem, scales / factor) + epsilon - scales
    crossings = np.flatnonzero((values[:-1] > 0) != (values[1:] > 0))[::-1]
    roots = [crossing(excess, *scales[[i, i + 1]]) for i in crossings]
    if not roots:
        return _saturated(problem)
    policies = problem.at_scale(np.array(roots) / factor)
    others = tuple(problem.expected_reward(x) for x in policies[1:])
    status = _remarks(problem, policies[0], others)
    return _at(problem, roots[0] / factor, status, others)


def _of_advantages(problem: Problem, groups: Groups, masses: np.ndarray) -> np.ndarray:
    """The policies ``[..., A]`` of the advantages that policies with these masses would see."""
    advantage, kept = groups.expected(masses)
    counts = kept[..., problem.level]
    cost = problem.beta * counts if problem.regularised else np.zeros_like(counts)
    if problem.recipe.place == "reward":
        cost = np.full_like(counts, problem.beta)
    entropy = problem.recipe.entropy_bonus * counts
    return problem.policy(advantage[..., problem.level], cost, entropy)


def _in_groups(problem: Problem, groups: Groups, log_probs: np.ndarray) -> FixedPoint:
    """A fixed point as what its advantages ask for."""
    gain = groups.expected(problem.masses(log_probs))[0][problem.level]
    plain = problem.recipe.entropy_bonus == 0 and problem.recipe.zero_std == "keep"
    # In units of the reward: by how much its spread exceeds that of the advantages.
    spread = dataclasses.replace(problem, reward=gain).deviation(log_probs)
    ratio = problem.deviation(log_probs) / spread if spread > 0 else 0.0
    effective = problem.beta * float(ratio)
    return FixedPoint(log_probs, gain if plain else None, problem.beta, effective)


def _of_masses(problem: Problem) -> FixedPoint:
    groups = problem.groups
    assert groups is not None
    start = problem.masses(problem.log_ref)
    exactly = groups.uniforms is None
    if problem.levels.size == 2 and exactly:
        return _of_success(problem, groups)

    def arrive(groups: Groups, start: np.ndarray) -> np.ndarray:
        def update(masses: np.ndarray) -> np.ndarray:
            return problem.masses(_of_advantages(problem, groups, masses))

        return _of_advantages(problem, groups, _iterate(update, start, exactly))

    greedy = np.full_like(start, 1e-6 / start.size)
    greedy[-1] = 1 - greedy[:-1].sum()
    reached, other = arrive(groups, start), arrive(groups, greedy)
    apart = np.abs(np.exp(reached) - np.exp(other)).sum() > 1e-3
    others = (problem.expected_reward(other),) if apart else ()
    found = _in_groups(problem, groups, reached)
    status = _remarks(problem, reached, others)
    found = dataclasses.replace(found, status=status, others=others)
    if exactly:
        return found
    # Each part of the samples has a fixed point of its own, near this one.
    start = problem.masses(reached)
    apart = [arrive(groups.part(i, _PARTS), start) for i in range(_PARTS)]
    spread = np.abs(np.exp(apart) - np.exp(reached)).sum(-1) / 2
    return dataclasses.replace(found, error=float(np.sqrt((spread**2).mean() / _PARTS)))


def _of_success(problem: Problem, groups: Groups) -> FixedPoint:
    """Two rewards: all fixed points in the probability of the better one."""

    def success(logit: np.ndarray) -> np.ndarray:
        return np.stack([expit(-logit), expit(logit)], axis=-1)

    def excess(logit: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            mass = np.log(problem.masses(_of_advantages(problem, groups, success(logit))))
        return np.clip(mass[..., 1] - mass[..., 0], -800, 800) - logit

    begin = np.log(problem.masses(problem.log_ref)) @ np.array([-1.0, 1.0])
    grid = begin + np.concatenate([[-1e-9], np.geomspace(1e-6, 700, _FINE)])
    rows = max(1, _MOST_AT_ONCE // problem.reward.size)
    values = np.concatenate([excess(grid[i : i + rows]) for i in range(0, grid.size, rows)])
    crossings = np.flatnonzero((values[:-1] > 0) != (values[1:] > 0))
    roots = [crossing(lambda x: float(excess(np.asarray(x))), *grid[[i, i + 1]]) for i in crossings]
    if not roots:
        return _saturated(problem)
    policies = _of_advantages(problem, groups, success(np.array(roots)))
    others = tuple(problem.expected_reward(x) for x in policies[1:])
    status = _remarks(problem, policies[0], others)
    found = _in_groups(problem, groups, policies[0])
    return dataclasses.replace(found, status=status, others=others)


def _of_statistics(problem: Problem) -> FixedPoint:
    """Sequences that count by their lengths: also the mean reward and mean length are unknown."""
    lengths, recipe, groups = problem.lengths, problem.recipe, problem.groups
    assert lengths is not None

    def weight(kind: str, mean: float) -> np.ndarray:
        if kind == "mean":
            return 1 / lengths
        return np.full(lengths.shape, 1.0 if kind == "sum" else 1 / mean)

    def policy(state: np.ndarray) -> np.ndarray:
        mean_length, kept = state[-1], np.ones_like(problem.reward)
        if groups is not None:
            advantage, counts = groups.expected(state[:-1])
            gain, kept = advantage[problem.level], counts[problem.level]
        else:
            centre = 0.0 if recipe.baseline == "none" else state[0]
            gain = problem.baseline_factor * (problem.reward - centre)
            if problem.normalised:
                gain = gain / (state[1] + recipe.epsilon)
        own = weight(recipe.length, mean_length)
        other = (
            own
            if recipe.place == "reward"
            else weight(recipe.kl_length or recipe.length, mean_length)
        )
        cost = (problem.beta if problem.regularised else 0.0) * other * kept
        return problem.policy(own * gain, cost, recipe.entropy_bonus * own * kept)

    def statistics(log_probs: np.ndarray) -> np.ndarray:
        mean_length = float((np.exp(log_probs) * lengths).sum())
        if groups is not None:
            return np.append(problem.masses(log_probs), mean_length)
        mean = problem.expected_reward(log_probs)
        return np.array([mean, float(problem.deviation(log_probs)), mean_length])

    exactly = groups is None or groups.uniforms is None
    state = _iterate(lambda x: statistics(policy(x)), statistics(problem.log_ref), exactly)
    return FixedPoint(policy(state), None, problem.beta, problem.beta)


def _iterate(
    update: Callable[[np.ndarray], np.ndarray], start: np.ndarray, polish: bool
) -> np.ndarray:
    """The fixed point that small steps from ``start`` arrive at."""
    state, step, last = start, 0.5, np.inf
    # Sampled groups give steps and no slope, and are worth fewer digits.
    enough = 1e-12 if polish else 1e-7
    for _ in range(2000 if polish else 200):
        move = update(state) - state
        size = np.abs(move).max()
        if size < enough:
            return state
        if size > last:
            step = max(step / 2, 1e-3 if polish else 0.1)
        state, last = state + step * move, size
        if polish and size < 1e-4:
            break
    if polish and state.size <= 200:
        found = root(lambda x: update(x) - x, state, tol=1e-14)
        near = np.abs(found.x - state).max() < 1e-2
        if near and np.abs(update(found.x) - found.x).max() < np.abs(update(state) - state).max():
            return found.x
    return state
