"""What a recipe makes of rewards with several levels, for very many prompts at once.

Answers of equal reward keep the reference's proportions, so that a prompt is its levels' masses.
Where advantages depend on nothing but the mean and deviation of rewards, targets lie on one path of
coefficients; where they depend on all masses, they are followed from the reference down the β.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from kltarget.implied._nodes import Rule, stationary
from kltarget.implied._rows import rule_of
from kltarget.recipes import Recipe
from kltarget.recipes.groups import Advantages, make_groups

_NEWTON = 40
_SETTLED = 1e-13
_PATH = 161
_STEPS = 80
_AT_ONCE = 256
_TOLERANCE = 2e-5
# Beyond these log-ratios targets are those of certainty.
_LEAST = {"reverse": 1e-3, "forward": 1e-9}
_DEVIATES = 1e-12
_SURE = np.log1p(-1e-6)


def level_targets(
    recipe: Recipe, rewards: np.ndarray, log_masses: np.ndarray, beta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Targets of prompts whose rewards have levels, under a recipe that ``require_forecast`` takes.

    Args:
        recipe: what the trainer does.
        rewards: of the levels as the recipe uses them, ascending, ``[K]``.
        log_masses: of the levels by the reference, ``-inf`` where there are none, ``[R, K]``.
        beta: coefficients above 0, ascending, ``[B]``.

    Returns:
        Log-masses of the levels at the targets, ``[B, R, K]``, and the effective coefficients in
        units of the rewards, ``[B, R]``; 0 where nothing is held short of certainty.
    """
    if recipe.normalize == "group-mean" and rewards[0] < 0:
        raise ValueError(
            "rewards must be 0 or more for normalize='group-mean', which divides by their mean, "
            f"got {rewards[0]:g}"
        )
    rule = rule_of(recipe)
    if by_groups(recipe):
        groups = make_groups(recipe, rewards)
        parts = [log_masses[i : i + _AT_ONCE] for i in range(0, len(log_masses), _AT_ONCE)]
        found = [_followed(rule, groups, rewards, part, beta) for part in parts]
        targets, held = zip(*found, strict=True)
        return np.concatenate(targets, 1), np.concatenate(held, 1)
    if recipe.normalized:
        held = _deviating(rule, recipe, rewards, log_masses, beta)
    else:
        each = beta / recipe.baseline_factor
        held = np.broadcast_to(each[:, None], (beta.size, len(log_masses)))
    targets = np.array([_policy(rule, rewards, row, log_masses) for row in held])
    if recipe.normalized:
        deviation = np.array([_deviation(rewards, x) for x in targets])
        held = np.where(deviation > _DEVIATES, held, 0.0)
    return targets, held


def by_groups(recipe: Recipe) -> bool:
    """Whether advantages depend on all masses, not on the mean and deviation of rewards alone."""
    return (recipe.depends_on_groups or recipe.by_masses) and not recipe.charged_before


def has_saturation(recipe: Recipe) -> bool:
    """Whether rewards are divided by nothing but a deviation, with the regulariser outside."""
    deviates = recipe.normalized and recipe.normalize not in ("none", "group-mean")
    return deviates and not recipe.by_masses


def saturation_betas(recipe: Recipe, rewards: np.ndarray, log_masses: np.ndarray) -> np.ndarray:
    """Coefficients below which rewards normalised in large groups saturate, ``[R]``.

    As :func:`kltarget.implied.saturation_beta` has it, of prompts by their levels' masses; NaN for
    recipes without such a coefficient, and for prompts of one level.
    """
    if not has_saturation(recipe):
        return np.full(len(log_masses), np.nan)
    rule = rule_of(recipe)
    several = (log_masses > -np.inf).sum(1) > 1
    if rule == "forward":
        return np.where(several, 0.0, np.nan)
    path, height = _heights(rule, recipe, rewards, log_masses, short_of_certainty=True)
    best = np.clip(height.argmax(0), 1, len(path) - 2)
    rows = np.arange(len(log_masses))
    # The vertex of the parabola through the logarithms at the best point and its neighbours.
    with np.errstate(divide="ignore", invalid="ignore"):
        left, top, right = (np.log(height[best + i, rows]) for i in (-1, 0, 1))
        bend = left - 2 * top + right
        vertex = top - (right - left) ** 2 / (8 * np.where(bend < 0, bend, -np.inf))
    return np.where(several, np.exp(-np.where(np.isfinite(vertex), vertex, top)), np.nan)


def _policy(rule: Rule, gain: np.ndarray, cost: np.ndarray, log_ref: np.ndarray) -> np.ndarray:
    """Stationary masses ``[R, K]`` of gains ``[R, K]`` or ``[K]`` and costs ``[R]``."""
    cost = cost[:, None]
    if rule == "reverse":
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # The best first, so that nothing overflows; at a coefficient of 0 it is all there is.
            inside = log_ref > -np.inf
            best = np.where(inside, gain, -np.inf).max(1, keepdims=True)
            short = np.where(inside & (gain < best), (gain - best) / cost, 0.0)
            tilted = log_ref + short
            return tilted - logsumexp(tilted, axis=1, keepdims=True)
    if rule == "forward":
        return _hyperbolic(gain, cost, log_ref)
    return stationary(gain, np.maximum(cost, 1e-300), log_ref, np.zeros(()), rule)


def _hyperbolic(gain: np.ndarray, cost: np.ndarray, log_ref: np.ndarray) -> np.ndarray:
    """``π = cost π_ref/(g + d)`` of distances d to the best, by Newton's steps on 1/Σπ.

    That function of g is concave: from below no step goes too far.
    """
    inside = log_ref > -np.inf
    apart = np.where(inside, gain, -np.inf)
    apart = np.where(inside, apart.max(1, keepdims=True) - apart, 1.0)
    weight = cost * np.exp(log_ref)
    gap = np.where(inside & (apart == 0), weight, 0.0).sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Where the best are too rare for a number, they are got by what the others leave.
        gap = np.maximum(gap, 1e-300)
        for _ in range(_NEWTON):
            shares = weight / (gap + apart)
            total = shares.sum(1, keepdims=True)
            step = total * (total - 1) / (shares / (gap + apart)).sum(1, keepdims=True)
            gap = gap + np.fmax(step, 0.0)
            if not (step > _SETTLED * gap).any():
                break
        found = np.log(cost) + log_ref - np.log(gap + apart)
        found = np.where(inside, found, -np.inf)
        return found - logsumexp(found, axis=1, keepdims=True)


def _deviation(rewards: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    probs = np.exp(log_probs)
    mean = probs @ rewards
    return np.sqrt((probs * (rewards - mean[:, None]) ** 2).sum(1))


def _heights(
    rule: Rule,
    recipe: Recipe,
    rewards: np.ndarray,
    log_masses: np.ndarray,
    most: float = 1e3,
    short_of_certainty: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients t ``[T]`` of plain targets, and ``(σ(t) + ε)/t`` at them, ``[T, R]``."""
    least = _LEAST["forward" if rule == "forward" else "reverse"]
    span = float(np.ptp(rewards))
    path = np.geomspace(least * span, most * span, _PATH)
    size = len(log_masses)
    each = [_policy(rule, rewards, np.full(size, t), log_masses) for t in path]
    deviation = np.array([_deviation(rewards, x) for x in each])
    height = (deviation + recipe.epsilon) / path[:, None]
    if short_of_certainty:
        # There ε alone would hold, at any coefficient, what has no deviation left.
        height = np.where([(x < _SURE).all(1) for x in each], height, 0.0)
    return path, height


def _deviating(
    rule: Rule, recipe: Recipe, rewards: np.ndarray, log_masses: np.ndarray, beta: np.ndarray
) -> np.ndarray:
    """The coefficients t with ``t = β (σ(t) + ε)``, the largest of each prompt, ``[B, R]``."""
    span, factor = float(np.ptp(rewards)), recipe.baseline_factor
    # No deviation exceeds half the span.
    most = max(beta[-1] * (span / 2 + recipe.epsilon) / factor / span * 1.01, 10.0)
    path, height = _heights(rule, recipe, rewards, log_masses, most)
    # From large coefficients down, the first at which the rewards' deviation holds it.
    reached = np.maximum.accumulate(height[::-1], axis=0)[::-1]
    wanted = np.log(factor / beta)[:, None]
    with np.errstate(divide="ignore"):
        log_height, log_path = np.log(height), np.log(path)
        last = (np.log(reached)[:, None] >= wanted).sum(0) - 1
    rows = np.arange(len(log_masses))
    held = np.clip(last, 0, path.size - 2)
    ends = log_path[held], log_path[held + 1]
    heights = log_height[held, rows], log_height[held + 1, rows]
    for _ in range(2):
        found = _between(ends, heights, wanted)
        each = [_deviation(rewards, _policy(rule, rewards, np.exp(x), log_masses)) for x in found]
        with np.errstate(divide="ignore"):
            now = np.log(np.array(each) + recipe.epsilon) - found
        low = now >= wanted
        ends = np.where(low, found, ends[0]), np.where(low, ends[1], found)
        heights = np.where(low, now, heights[0]), np.where(low, heights[1], now)
    return np.where(last >= 0, np.exp(_between(ends, heights, wanted)), 0.0)


def _between(
    ends: tuple[np.ndarray, np.ndarray], heights: tuple[np.ndarray, np.ndarray], wanted: np.ndarray
) -> np.ndarray:
    """Where a straight line has a height; at the first end where it is flat."""
    with np.errstate(divide="ignore", invalid="ignore"):
        fall = heights[0] - heights[1]
        # From an infinite height a line is all at the first end too.
        sloped = (fall > 0) & np.isfinite(fall)
        part = np.where(sloped, (heights[0] - wanted) / fall, 0.0)
    return ends[0] + (ends[1] - ends[0]) * np.clip(part, 0.0, 1.0)


def _followed(
    rule: Rule, groups: Advantages, rewards: np.ndarray, log_masses: np.ndarray, beta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fixed points of expected advantages, from the reference at the largest β downwards."""
    state = np.exp(log_masses)
    targets = np.empty((beta.size, *log_masses.shape))
    held = np.empty((beta.size, len(log_masses)))
    for i in range(beta.size)[::-1]:
        state, targets[i], held[i] = _settle(rule, groups, rewards, log_masses, beta[i], state)
    return targets, held


def _settle(
    rule: Rule,
    groups: Advantages,
    rewards: np.ndarray,
    log_masses: np.ndarray,
    beta: float,
    start: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where masses that advantages lead to are those they came from; each prompt by itself."""
    state, last = start.copy(), np.zeros_like(start)
    open_rows = np.arange(len(start))
    for _ in range(_STEPS):
        policy, _ = _asked(rule, groups, rewards, log_masses[open_rows], beta, state[open_rows])
        move = np.exp(policy) - state[open_rows]
        before = last[open_rows]
        size = np.square(before).sum(1)
        # What one step leaves of the last is what all further ones would leave of it.
        left = (move * before).sum(1) / np.where(size > 0, size, 1.0)
        factor = 1 / (1 - np.clip(left, -9.0, 0.5))
        step = factor[:, None] * move
        moved = np.maximum(state[open_rows] + step, 0.0)
        state[open_rows] = moved / moved.sum(1, keepdims=True)
        last[open_rows] = move
        open_rows = open_rows[np.abs(move).max(1) > _TOLERANCE]
        if not open_rows.size:
            break
    policy, held = _asked(rule, groups, rewards, log_masses, beta, state)
    return state, policy, held


def _asked(
    rule: Rule,
    groups: Advantages,
    rewards: np.ndarray,
    log_masses: np.ndarray,
    beta: float,
    masses: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The policy that advantages at these masses ask for, and its coefficient of the reward."""
    gain, kept = groups.expected(masses)
    cost = np.full(len(masses), beta)
    if groups.recipe.zero_std == "drop":
        policy = stationary(gain, beta * kept, log_masses, np.zeros(()), rule)
    else:
        policy = _policy(rule, gain, cost, log_masses)
    probs = np.exp(policy)
    spread = np.sqrt((probs * (gain - (probs * gain).sum(1, keepdims=True)) ** 2).sum(1))
    own = _deviation(rewards, policy)
    with np.errstate(divide="ignore", invalid="ignore"):
        held = np.where(own > _DEVIATES, beta * own / spread, 0.0)
    return policy, held
