"""Where a reward that policies do not maximise is highest on their way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike

_STEPS = 60


def peak_of(
    policy_at: Callable[[float], ArrayLike], values: np.ndarray, gold: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Gold rewards of a family of policies, and the highest one between its points.

    Args:
        policy_at: log-probabilities ``[A]`` of the policy of a parameter.
        values: of the parameter, ``[N]``.
        gold: rewards, ``[A]``.

    Returns:
        The gold rewards ``[N]``, the parameter of the highest one, NaN where it is at an end, and
        that reward.
    """
    from scipy.optimize import minimize_scalar

    def earned(log_value: float) -> float:
        return float(np.exp(np.asarray(policy_at(float(np.exp(log_value))))) @ gold)

    order = np.argsort(values)
    logs = np.log(values[order])
    rewards = np.array([earned(x) for x in logs])
    found = np.empty_like(rewards)
    found[order] = rewards
    best = int(rewards.argmax())
    # Level but for rounding is no peak: the reward was there all along.
    level = 1e-12 * max(np.ptp(gold), np.finfo(float).tiny)
    ends = max(rewards[0], rewards[-1])
    if not rewards[best] > ends + level:
        return found, np.nan, float(rewards.max())
    bracket = logs[best - 1], logs[best + 1]
    options = {"xatol": 1e-10, "maxiter": _STEPS}
    peak = minimize_scalar(lambda x: -earned(x), bounds=bracket, method="bounded", options=options)
    if -peak.fun < rewards[best]:
        return found, float(np.exp(logs[best])), float(rewards[best])
    return found, float(np.exp(peak.x)), float(-peak.fun)
