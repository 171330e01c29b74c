"""Forecasts for right and wrong samples: targets by a table over the log-odds of success."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import expit, log_expit

from kltarget._core import processes
from kltarget.evidence import SampleCounts, success_rates
from kltarget.forecasts._draws import QUANTILES, TRIES, Found, best_of_n
from kltarget.implied.levels import has_saturation, saturation_betas
from kltarget.implied.success import NODES, effective_betas, target_log_odds
from kltarget.recipes import Recipe

_SURE = np.log(1e-6)
_SPACING = NODES[1] - NODES[0]
_MOST = 2**24
_COARSE = NODES[::20]


def binary(
    counts: SampleCounts,
    recipe: Recipe,
    rewards: np.ndarray,
    beta: np.ndarray,
    k: tuple[int, ...],
    num_rollouts: int | None,
    num_draws: int,
    rng: np.random.Generator,
) -> Found:
    """Forecasts from right and all samples.

    Args:
        counts: of two rewards.
        recipe: what the trainer does, on the base model.
        rewards: of a wrong and a right sample as the recipe uses them, ``[2]``.
        beta: coefficients, ascending, ``[B]``.
        k: of pass@k.
        num_rollouts: that a run draws of a prompt in all, or None.
        num_draws: draws of the posterior.
        rng: the randomness.
    """
    correct = counts.correct
    assert correct is not None
    target = target_log_odds(recipe, rewards, beta)
    rates = success_rates(correct, counts.samples, num_draws=num_draws, rng=rng)
    size = len(counts.prompts)
    log_odds = rates.log_odds(np.arange(size), rng)
    weights = _Weights.of(log_odds)
    of_others = _Weights.of(log_odds[:, correct > 0], size)
    of_unsolved = _Weights.of(log_odds[:, correct == 0], size)
    log_right, log_wrong = log_expit(target), log_expit(-target)
    success, kl = np.exp(log_right), _kl(target)
    curves = {
        "success": weights.mean(success),
        "kl": weights.mean(kl),
        "saturated": weights.mean((log_wrong < _SURE).astype(float)),
        "success_without_unsolved": of_others.mean(success),
        "success_of_unsolved": of_unsolved.mean(success),
    }
    groups = recipe.group_size
    start = {"success": weights.mean(expit(NODES))}
    if groups is not None:
        start["zero_std"] = weights.mean(expit(NODES) ** groups + expit(-NODES) ** groups, 1.0)
        equal = np.exp(groups * log_right) + np.exp(groups * log_wrong)
        curves["zero_std"] = weights.mean(equal, 1.0)
    if num_rollouts is not None:
        meets = -np.expm1(num_rollouts * log_expit(-NODES))
        curves["met"] = weights.mean(success * meets)
    spent, won = _best(weights)
    curves["best_of_n"], curves["best_of_n_success"] = best_of_n(curves["kl"], TRIES, spent, won)
    low, span = counts.rewards[0], counts.rewards[1] - counts.rewards[0]
    curves["expected_reward"] = low + span * curves["success"]
    curves["best_of_n_reward"] = low + span * curves["best_of_n_success"]
    start["expected_reward"] = low + span * start["success"]
    both = np.stack([correct, counts.samples])
    _, first, pattern = np.unique(both, axis=1, return_index=True, return_inverse=True)
    each = rates.log_odds(first, rng)
    middle = np.quantile(each, QUANTILES, axis=0, method="nearest").T
    at_target = np.array([np.interp(middle, NODES, row) for row in target])
    own = {"start_success": expit(middle), "success": np.moveaxis(expit(at_target), 0, 1)}
    own["start_expected_reward"] = low + span * own["start_success"]
    own["expected_reward"] = low + span * own["success"]
    few = each[: max(_MOST // (len(first) * beta.size), 100)]
    own["kl"] = _of_draws(few, kl)
    own["effective_beta"] = _of_draws(few, effective_betas(recipe, rewards, target))
    if has_saturation(recipe):
        masses = np.stack([log_expit(-_COARSE), log_expit(_COARSE)], axis=1)
        least = np.interp(NODES, _COARSE, saturation_betas(recipe, rewards, masses))
        own["saturation_beta"] = _of_draws(few, least[None])[:, 0]
    return Found(
        curves=curves,
        start=start,
        passes=np.array([weights.mean(-np.expm1(each * log_wrong)) for each in k]),
        start_passes=np.array([weights.mean(-np.expm1(each * log_expit(-NODES))) for each in k]),
        patterns=pattern.ravel(),
        of_patterns=own,
        notes=rates.notes(rng),
    )


def _of_draws(log_odds: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Quantiles ``[U, B, 3]`` of what a table over ``NODES`` has at draws ``[D, U]``."""

    def quantiles(row: np.ndarray) -> np.ndarray:
        # Nearest ones, for there is no number between a finite and an infinite one.
        each = np.interp(log_odds, NODES, row)
        return np.quantile(each, QUANTILES, axis=0, method="nearest")

    return np.array(processes.shared(quantiles, table)).transpose(2, 0, 1)


def _kl(target: np.ndarray) -> np.ndarray:
    """``KL(π‖π_ref)`` of right against wrong; equal rewards keep the reference's proportions."""
    right, wrong = expit(target), expit(-target)
    with np.errstate(invalid="ignore"):
        up = np.where(right > 0, right * (log_expit(target) - log_expit(NODES)), 0.0)
        down = np.where(wrong > 0, wrong * (log_expit(-target) - log_expit(-NODES)), 0.0)
    return up + down


def _best(weights: _Weights) -> tuple[np.ndarray, np.ndarray]:
    """KL and success of the best of each number of samples, ``[D, N]``."""
    wrong = log_expit(-NODES)
    log_odds = np.log(-np.expm1(TRIES[:, None] * wrong)) - TRIES[:, None] * wrong
    return weights.mean(_kl(log_odds)), weights.mean(expit(log_odds))


@dataclasses.dataclass(frozen=True, eq=False)
class _Weights:
    """How many prompts have each log-odds, per draw: what means over prompts are sums with.

    Attributes:
        at_nodes: shares of the prompts, ``[D, N]``.
        never: share that is never solved, ``[D]``.
    """

    at_nodes: np.ndarray
    never: np.ndarray

    @classmethod
    def of(cls, log_odds: np.ndarray, total: int | None = None) -> _Weights:
        """Of draws ``[D, P]``, as shares of ``total`` prompts; each between its two nodes."""
        total = log_odds.shape[1] if total is None else total
        rows = []
        for row in log_odds:
            place = np.clip((row[row > -np.inf] - NODES[0]) / _SPACING, 0, NODES.size - 1.001)
            low = place.astype(int)
            above = place - low
            counted = np.bincount(low, 1 - above, NODES.size)
            rows.append(counted + np.bincount(low + 1, above, NODES.size))
        never = (log_odds == -np.inf).sum(1) + total - log_odds.shape[1]
        return cls(np.array(rows) / total, never / total)

    def mean(self, values: np.ndarray, of_never: float = 0.0) -> np.ndarray:
        """Means over the prompts of values ``[..., N]``: ``[D, ...]``."""
        found = self.at_nodes @ values.reshape(-1, NODES.size).T
        found = found + self.never[:, None] * of_never
        return found.reshape(len(found), *values.shape[:-1])
