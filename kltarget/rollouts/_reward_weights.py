"""What the logged advantages say of the rewards: which columns count, and with which weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kltarget._core.words import number
from kltarget.rollouts._rollout import RolloutError
from kltarget.rollouts._select import some
from kltarget.rollouts.formats._reward_parts import is_called_reward

Weights = Mapping[str, float] | Sequence[float]

# What advantages of 32 bits leave of a share that is zero, and those of two decimals.
_EXACT, _ROUNDED = 1e-8, 1e-4
_NOTHING = 1e-3
_BALANCED = 1e-2
_MOST = 0.75


def given_weights(weights: Weights, names: Sequence[str]) -> dict[str, float]:
    """A weight for every reward, as the user gave them: by name, or in the order of the columns."""
    what = f"the rewards are {some(map(repr, names))}" if names else "no column is one of several"
    if isinstance(weights, Mapping):
        unknown = [name for name in weights if name not in names]
        if unknown:
            raise RolloutError(f"{{}}: no reward {unknown[0]!r}: {what}", "reward_weights")
        return {name: float(weights.get(name, 1.0)) for name in names}
    if len(weights) != len(names):
        raise RolloutError(f"{{}}: {len(weights)} weights: {what}", "reward_weights")
    return dict(zip(names, map(float, weights), strict=True))


def told_weights(
    parts: Mapping[str, np.ndarray], group: np.ndarray, advantage: np.ndarray
) -> tuple[dict[str, float], list[str]]:
    """The weights at which the advantages of every group are in proportion to its rewards.

    What divides advantages may differ by group, so that weights are told up to a common factor:
    they are all 1 if that fits, and the largest is 1 otherwise.

    Returns:
        Weights by name, and lines that say what was found. Without advantages all are 1.
    """
    ones = dict.fromkeys(parts, 1.0)
    values = np.stack(list(parts.values()), 1)
    kept = np.isfinite(advantage) & ~np.isnan(values).all(1) & ~np.isinf(values).any(1)
    if len(parts) < 2:
        return ones, []
    if not advantage[kept].any():
        return ones, ["each reward counts as 1, as no advantages tell their weights"]
    _, code = np.unique(group[kept], return_inverse=True)
    # A part that says nothing of a row adds nothing to its reward.
    values, target = np.where(np.isnan(values), 0.0, values)[kept], advantage[kept]
    values = values - _means(values, code)[code]
    level = _means(target[:, None], code)[:, 0]
    balanced = np.abs(level) <= _BALANCED * _means(np.abs(target)[:, None], code)[:, 0]
    target = target - level[code]
    varying = (values**2).sum(0) > 1e-12 * max(float((values**2).sum()), 1e-300)
    names = np.array(list(parts), object)[varying]
    fixed = [name for name in parts if name not in names]
    values = values[:, varying]
    # Groups may have lost rows, but advantages of most are differences from a mean.
    fair = balanced.mean() >= _MOST
    found = _proportional(values, target, code, names) if fair else None
    if found is None:
        text = "the logged advantages fit no weights of the rewards: each counts as 1"
        return ones, [text]
    told = dict(zip(names.tolist(), found.tolist(), strict=True))
    # Of what never differs in a group advantages say nothing.
    told |= {name: 1.0 if is_called_reward(name) or not told else 0.0 for name in fixed}
    weights = {name: told[name] for name in parts}
    notes, counted = [], [name for name, weight in weights.items() if weight]
    left = [name for name in parts if name not in counted]
    if left:
        listing = some(map(repr, left))
        notes.append(f"not counted as rewards, as the logged advantages say: {listing}")
    if any(weights[name] != 1 for name in counted):
        listing = ", ".join(f"{name!r} × {number(weights[name])}" for name in counted)
        notes.append(
            f"weights of rewards as the logged advantages say, the largest taken as 1: {listing}"
        )
    return weights, notes


def _means(values: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Means of every column in every group."""
    size = np.bincount(code)
    columns = [np.bincount(code, column) / size for column in values.T]
    return np.stack(columns, 1)


def _proportional(
    values: np.ndarray, target: np.ndarray, code: np.ndarray, names: np.ndarray
) -> np.ndarray | None:
    """Weights whose sum is the target times a positive number of each group; None if none are."""
    if not values.shape[1]:
        return None
    length = np.bincount(code, target**2)
    # What is left of each column when its part along the target is taken away, group by group.
    along = np.stack([np.bincount(code, column * target) for column in values.T], 1)
    along = along / np.where(length > 0, length, 1)[:, None]
    across = values - along[code] * target[:, None]
    inner, outer = across.T @ across, values.T @ values

    def miss(weights: np.ndarray) -> float:
        size = float(weights @ outer @ weights)
        return float(weights @ inner @ weights) / size if size > 0 else np.inf

    scale = np.sqrt(np.diag(outer))
    _, vectors = np.linalg.eigh(inner / np.outer(scale, scale))
    best = vectors[:, 0] / scale
    allowed = min(_ROUNDED, max(_EXACT, 4 * miss(best)))

    def fits(weights: np.ndarray) -> bool:
        if miss(weights) > allowed:
            return False
        ahead = along @ weights
        return bool((ahead >= -_NOTHING * np.abs(ahead).max()).all())

    count = len(names)
    called = np.array([is_called_reward(name) for name in names])
    singles = list(np.eye(count))
    total = [x for x in singles if np.allclose(values @ x, values @ (1 - x), atol=1e-6)]
    candidates = [*(total if count > 2 else []), np.ones(count), called.astype(float), *singles]
    for weights in candidates:
        if fits(weights):
            return weights
    if _num_tested(values, code) < count + 1:
        return None
    best = best / best[np.abs(best).argmax()]
    best[np.abs(best) < _NOTHING] = 0
    rounded = [*(np.round(best, digits) for digits in (1, 2, 3, 4)), best]
    for candidate in (sign * weights for weights in rounded for sign in (1, -1)):
        if fits(candidate):
            return candidate
    return None


def _num_tested(values: np.ndarray, code: np.ndarray) -> int:
    """How many different numbers test a proportion of each group's own."""
    rows = np.unique(np.column_stack([code, np.round(values, 9)]), axis=0)
    sizes = np.bincount(rows[:, 0].astype(np.int64))
    return int(np.maximum(sizes - 2, 0).sum())
