"""Prompts of one batch whose rewards are divided by one standard deviation, over all of them.

Each prompt's policy follows from that number, and the number from all policies: how much rewards
differ between prompts counts in it as how much they differ within one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from kltarget._core.status import Status
from kltarget.implied._fixed_point_problem import FixedPoint, Problem
from kltarget.implied._fixed_points import crossing, saturated

_RARE = 1e-6
"""Where less than this is left of all but the best outcomes of every prompt, it has saturated."""
_MOST_AT_ONCE = 2**22
_FINE, _COARSE = 401, 65


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """The prompts that one batch samples, all equally often, under one recipe and one β."""

    problems: Sequence[Problem]

    @property
    def spread(self) -> float:
        """Half of how far apart any two rewards are: no deviation is larger."""
        levels = np.concatenate([x.levels for x in self.problems])
        return float(np.ptp(levels)) / 2

    def scales(self, low: float, high: float) -> np.ndarray:
        """A grid of what rewards may be divided by, in units of their spread."""
        size = sum(x.reward.size for x in self.problems)
        number = _FINE if size <= 10_000 else _COARSE
        return np.geomspace(self.spread * low, self.spread * high, number)

    def deviation(self, scales: np.ndarray) -> np.ndarray:
        """The deviation of all rewards where each prompt's are divided by ``scales [S]``."""
        largest = max(x.reward.size for x in self.problems)
        rows = max(1, _MOST_AT_ONCE // largest)
        parts = [self._deviation(scales[i : i + rows]) for i in range(0, scales.size, rows)]
        return np.concatenate(parts)

    def _deviation(self, scales: np.ndarray) -> np.ndarray:
        means, variances = [], []
        for problem in self.problems:
            log_probs = problem.at_scale(scales)
            means.append((np.exp(log_probs) * problem.reward).sum(-1))
            variances.append(problem.deviation(log_probs) ** 2)
        return np.sqrt(np.mean(variances, 0) + np.var(means, 0))


def find_together(problems: Sequence[Problem]) -> list[FixedPoint]:
    """The fixed point that training all prompts from the reference is drawn to."""
    batch, recipe = Batch(problems), problems[0].recipe
    factor, epsilon = recipe.baseline_factor, recipe.epsilon
    scales = batch.scales(low=1e-6, high=1 + 1e-9)
    if epsilon:
        scales = np.concatenate([[epsilon], epsilon + scales])

    def excess(scale: np.ndarray) -> np.ndarray:
        return batch.deviation(scale / factor) + epsilon - scale

    above = excess(scales) > 0
    changes = np.flatnonzero(above[:-1] != above[1:])[::-1]
    roots = [
        crossing(lambda x: float(excess(np.array([x]))[0]), *scales[[i, i + 1]]) for i in changes
    ]
    if not roots:  # the limit of a vanishing coefficient is left
        return list(map(saturated, problems))
    first, *others = np.array(roots) / factor
    found = [_at(problem, float(first)) for problem in problems]
    status = Status.SEVERAL if others else Status.OK
    if all(1 - x.masses(y.log_probs)[-1] < _RARE for x, y in zip(problems, found, strict=True)):
        status |= Status.SATURATED
    return [
        dataclasses.replace(
            point,
            status=status,
            others=tuple(problem.expected_reward(_at(problem, x).log_probs) for x in others),
        )
        for problem, point in zip(problems, found, strict=True)
    ]


def smallest_coefficient_together(problems: Sequence[Problem]) -> float:
    """The least ``beta`` with a fixed point short of saturation, the same for all prompts.

    It is 0 where rewards differ from prompt to prompt as long as the best of each is sampled.
    """
    batch = Batch([dataclasses.replace(x, beta=1.0) for x in problems])
    epsilon = problems[0].recipe.epsilon
    best = np.array([x.levels[-1] for x in problems])
    if np.ptp(best) > 0:
        return 0.0

    def ratio(scales: np.ndarray) -> np.ndarray:
        return scales / (batch.deviation(scales) + epsilon)

    scales = batch.scales(low=1e-6, high=1e3)
    with np.errstate(divide="ignore"):
        ratios = ratio(scales)
    least = int(np.argmin(ratios))
    around = np.log(scales[[max(least - 1, 0), min(least + 1, scales.size - 1)]])
    options = {"bounds": tuple(around), "method": "bounded", "options": {"xatol": 1e-12}}
    found: Any = minimize_scalar(lambda x: ratio(np.exp([x]))[0], **options)
    return float(found.fun)


def _at(problem: Problem, scale: float) -> FixedPoint:
    log_probs = problem.at_scale(np.array([scale]))[0]
    reward, beta = problem.reward if problem.plain else None, problem.pull * scale
    return FixedPoint(log_probs, reward, beta, beta)
