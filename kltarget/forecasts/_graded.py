"""Forecasts for rewards of several levels: targets of drawn masses, prompt by prompt."""

from __future__ import annotations

import dataclasses

import numpy as np

from kltarget._core import processes
from kltarget.evidence import SampleCounts, level_masses
from kltarget.forecasts._draws import TRIES, Found, best_of_n, quantiles_of_known
from kltarget.forecasts._effective_answers import effective_answers, entropies
from kltarget.implied.levels import by_groups, has_saturation, level_targets, saturation_betas
from kltarget.recipes import Recipe

_ENOUGH_ROWS, _FEWEST_ROWS = 1000, 20
_FEWEST_DRAWS, _MOST_DRAWS, _FEWEST_PROMPTS = 100, 250, 30
_SURE = 1e-6
_AT_ONCE, _TOGETHER = 2**18, 256
_NUMBERS = TRIES[::3]
# Nanoseconds of a level at one coefficient, by how its target is found; a few seconds in all.
_PLAIN, _DEVIATING, _BISECTED = 200, 800, 15_000
_ROUNDS, _OTHERS = 5, 25
_DRAWN = 5000
_TIME = 8e9


def most_levels(recipe: Recipe) -> int:
    """How many levels of the reward a forecast tells apart."""
    if not by_groups(recipe) or recipe.group_size is None:
        return 12
    # As many as leave a few hundred possible groups.
    return 6 if recipe.group_size <= 8 else 4 if recipe.group_size <= 16 else 3


def graded(
    counts: SampleCounts,
    recipe: Recipe,
    rewards: np.ndarray,
    beta: np.ndarray,
    k: tuple[int, ...],
    num_draws: int,
    rng: np.random.Generator,
) -> Found:
    """Forecasts from samples of each level.

    Args:
        counts: with ``levels``.
        recipe: what the trainer does, on the base model.
        rewards: of the levels as the recipe uses them, ``[K]``.
        beta: coefficients, ascending, ``[B]``.
        k: of pass@k.
        num_draws: at most so many draws.
        rng: the randomness.
    """
    levels = counts.levels
    assert levels is not None
    size = len(levels)
    num_draws, some = _affordable(recipe, rewards.size, beta.size, size, num_draws)
    chosen = _spread_out(levels @ counts.rewards / levels.sum(1), num_draws, some, rng)
    drawn = level_masses(levels, num_draws=num_draws, rng=rng).log_masses(chosen, rng)
    rows = drawn.reshape(-1, rewards.size)
    known = () if counts.right is None else k
    reads = _Reads(counts.rewards, counts.right, recipe.group_size, known)
    shown = {"above": _above_seen(levels)}
    if counts.answers is not None:
        shown["within"] = entropies(counts.answers, *levels.shape)
    shown = {name: values[chosen].reshape(rows.shape) for name, values in shown.items()}
    found = _over_parts(reads, recipe, rewards, beta, rows, shown)
    each = {x: np.moveaxis(y.reshape(-1, num_draws, some), 0, 2) for x, y in found.items()}
    curves = {x: y.mean(1) for x, y in each.items() if x != "effective_beta"}
    passes = np.array([curves.pop(f"pass@{x}") for x in reads.k]).reshape(-1, num_draws, beta.size)
    spent, won = _best_of(rows, counts.rewards, num_draws)
    curves["best_of_n"], curves["best_of_n_reward"] = best_of_n(curves["kl"], _NUMBERS, spent, won)
    masses = np.exp(drawn)
    start = {x: y.mean(1) for x, y in reads.of(masses).items()}
    if "within" in shown:
        of_base = effective_answers(rows, shown["within"])
        start["effective_answers"] = of_base.reshape(num_draws, some).mean(1)
    start_passes = np.array([start.pop(f"pass@{x}") for x in reads.k]).reshape(-1, num_draws)
    _, first, patterns = np.unique(levels, axis=0, return_index=True, return_inverse=True)
    patterns = patterns.ravel()
    own, of_patterns = patterns[chosen], {}
    names = ["expected_reward", *(["success"] if reads.right is not None else [])]
    for name, base in reads.of(masses).items():
        if name in names:
            of_patterns[f"start_{name}"] = _by_pattern(base[..., None], own, len(first))[:, 0]
    for name in (*names, "kl", "effective_beta"):
        of_patterns[name] = _by_pattern(each[name], own, len(first))
    if has_saturation(recipe):
        least = saturation_betas(recipe, rewards, rows).reshape(num_draws, some, 1)
        of_patterns["saturation_beta"] = _by_pattern(least, own, len(first))[:, 0]
    return Found(curves, start, passes, start_passes, patterns, of_patterns, _notes(some, size))


def _notes(some: int, size: int) -> list[str]:
    if some == size:
        return []
    return [
        f"{some:,} of the {size:,} prompts, others in each draw, stand for all: with this recipe "
        "all would take long"
    ]


def _affordable(
    recipe: Recipe, levels: int, betas: int, prompts: int, wanted: int
) -> tuple[int, int]:
    """How many draws are taken, and of how many prompts in each."""
    bisected = recipe.aim == "other" or recipe.zero_std == "drop"
    unit = _BISECTED if bisected else _DEVIATING if recipe.normalized else _PLAIN
    each = unit * levels
    if by_groups(recipe):
        others, size = 1, recipe.group_size or 1
        for i in range(1, levels):
            others = others * (size - 1 + i) // i
        each = _ROUNDS * ((_BISECTED if bisected else _PLAIN) * levels + _OTHERS * others)
    rows = _TIME / (each * betas + _DRAWN * (levels - 1))
    wanted = min(wanted, _MOST_DRAWS)
    draws = int(np.clip(rows / prompts, min(_FEWEST_DRAWS, wanted), wanted))
    return draws, int(np.clip(rows / draws, min(_FEWEST_PROMPTS, prompts), prompts))


def _spread_out(reward: np.ndarray, draws: int, some: int, rng: np.random.Generator) -> np.ndarray:
    """Prompts of each draw, ``[D, S]``: all, or evenly spaced ones in the order of their reward.

    Evenly spaced from a random start, each has the same chance, and their mean is next to that of
    all.
    """
    size = len(reward)
    if some == size:
        return np.broadcast_to(np.arange(size), (draws, size))
    # Of equal rewards the order is drawn, or it would be that of the table.
    order = np.array([np.lexsort((rng.uniform(size=size), reward)) for _ in range(draws)])
    at = (np.arange(some) + rng.uniform(size=(draws, 1))) * size / some
    return np.take_along_axis(order, at.astype(int), axis=1)


def _above_seen(levels: np.ndarray) -> np.ndarray:
    """Which levels are better than all that a prompt's samples show, ``[P, K]``."""
    size = levels.shape[1]
    best = size - 1 - (levels[:, ::-1] > 0).argmax(1)
    return np.arange(size) > best[:, None]


@dataclasses.dataclass(frozen=True, eq=False)
class _Reads:
    """What is read off masses of levels.

    Attributes:
        rewards: as they are logged, ``[K]``.
        right: what share of each level is right, or None.
        group_size: of a run's groups, or None.
        k: of pass@k, if it is known what is right.
    """

    rewards: np.ndarray
    right: np.ndarray | None
    group_size: int | None
    k: tuple[int, ...]

    def of(self, masses: np.ndarray) -> dict[str, np.ndarray]:
        """Of masses ``[..., K]``, numbers ``[...]``."""
        found = {"expected_reward": masses @ self.rewards}
        if self.group_size is not None:
            found["zero_std"] = (masses**self.group_size).sum(-1)
        if self.right is not None:
            success = found["success"] = np.minimum(masses @ self.right, 1.0)
            with np.errstate(divide="ignore"):
                missed = np.log1p(-success)
            found |= {f"pass@{k}": -np.expm1(k * missed) for k in self.k}
        return found


def _over_parts(
    reads: _Reads,
    recipe: Recipe,
    rewards: np.ndarray,
    beta: np.ndarray,
    rows: np.ndarray,
    shown: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """What is read off the targets of log-masses ``[R, K]``, ``[B, R]`` each."""
    number = max(1, _AT_ONCE // (beta.size * rewards.size * _TOGETHER)) * _TOGETHER

    def read(i: int) -> dict[str, np.ndarray]:
        log_ref = rows[i : i + number]
        log_probs, held = level_targets(recipe, rewards, log_ref, beta)
        probs = np.exp(log_probs)
        found = reads.of(probs) | {"effective_beta": held}
        some = probs > 0
        log_ratio = np.where(some, log_probs, 0.0) - np.where(some, log_ref, 0.0)
        found["kl"] = (probs * log_ratio).sum(-1)
        best = np.where(log_ref > -np.inf, rewards, -np.inf)
        short = best < best.max(1, keepdims=True)
        several = (short & (log_ref > -np.inf)).any(1)
        found["saturated"] = ((probs * short).sum(-1) < _SURE) & several
        found["above_seen"] = (probs * shown["above"][i : i + number]).sum(-1)
        if "within" in shown:
            within = shown["within"][i : i + number]
            found["effective_answers"] = effective_answers(log_probs, within)
        return found

    parts = processes.shared(read, range(0, len(rows), number))
    return {x: np.concatenate([part[x] for part in parts], 1) for x in parts[0]}


def _best_of(
    rows: np.ndarray, rewards: np.ndarray, num_draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """KL and reward of the best of each number of samples, means over the prompts, ``[D, N]``.

    With ties broken in proportion to the reference a level has ``F^n − F₋^n``, F being the mass up
    to it and F₋ that below.
    """
    masses = np.exp(rows)
    better = np.concatenate([masses[:, ::-1].cumsum(1)[:, ::-1][:, 1:], 0 * masses[:, :1]], axis=1)
    with np.errstate(divide="ignore"):
        log_up_to = np.log1p(-np.minimum(better, 1.0))
    spent, won = [], []
    for n in _NUMBERS:
        up_to = np.exp(n * log_up_to)
        taken = np.diff(up_to, axis=1, prepend=0.0)
        taken[:, -1] = -np.expm1(n * log_up_to[:, -2])
        taken = np.where(masses > 0, np.maximum(taken, 0.0), 0.0)
        some = taken > 0
        log_ratio = np.log(np.where(some, taken, 1.0)) - np.where(some, rows, 0.0)
        spent.append((taken * log_ratio).sum(1).reshape(num_draws, -1).mean(1))
        won.append((taken @ rewards).reshape(num_draws, -1).mean(1))
    return np.array(spent).T, np.array(won).T


def _by_pattern(draws: np.ndarray, own: np.ndarray, number: int) -> np.ndarray:
    """Quantiles ``[U, B, 3]`` of draws ``[D, S, B]``; NaN where a pattern has few of them."""
    order = np.argsort(own, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(own.ravel(), minlength=number))
    flat = draws.reshape(-1, draws.shape[-1])
    found = np.full((number, draws.shape[-1], 3), np.nan)
    for at, rows in enumerate(np.split(order, ends[:-1])):
        if rows.size >= _FEWEST_ROWS:
            rows = rows[:: -(-rows.size // _ENOUGH_ROWS)]
            found[at] = quantiles_of_known(flat[rows]).T
    return found.round(6)
