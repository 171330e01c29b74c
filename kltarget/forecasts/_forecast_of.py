"""``forecast``: what training with a recipe asks for, before it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from scipy.special import expit, log_expit

from kltarget._core.checks import worded
from kltarget.evidence import SampleCounts, counts_of, success_rates
from kltarget.forecasts._forecast import QUANTILES, Forecast
from kltarget.implied.success import (
    NODES,
    of_base_model,
    require_forecast,
    shaped,
    target_log_odds,
)
from kltarget.recipes import Recipe, recipe as recipe_of
from kltarget.recipes._followed import in_words

_GRID = np.geomspace(0.01, 10.0, 41)
_TRIES = np.geomspace(1.0, 1e6, 121)
_SURE = np.log(1e-6)
_KNOWN = 0.95
_SPACING = NODES[1] - NODES[0]


def forecast(
    samples: Any,
    recipe: Recipe | str,
    *,
    beta: ArrayLike | None = None,
    k: Sequence[int] = (1, 4, 16, 64, 256),
    rollouts_per_prompt: int | None = None,
    threshold: float | None = None,
    columns: Mapping[str, str] | None = None,
    num_draws: int = 1000,
    key: Any = None,
    name: str | None = None,
) -> Forecast:
    """What the target of a recipe does to a base model, from samples of it, at each β.

    A prompt that the base model solves with probability p has, at the target of
    ``max E_π[r] − beta · D(π, π_ref)`` with rewards for right answers alone, a success that follows
    from p and the recipe: with a reverse KL ``logit p + Δr/beta``, otherwise where the recipe's
    expected gradient vanishes, as :func:`kltarget.implied_target` has it. What p is, n samples
    leave open; success rates are taken to be 0 for a share of the prompts and Beta distributed
    among the others, and intervals hold all that is not known of these.

    Args:
        samples: rows of samples with rewards, as :func:`kltarget.rollouts.read_rollouts` gives or
            reads; of a log with steps the first counts. Or a table with the columns ``prompt``,
            ``correct`` and ``samples``.
        recipe: what the trainer does, or the name of a preset such as ``"trl-grpo==1.9.2"``.
        beta: coefficients, above 0, in the trainer's units; by default 41 from 0.01 to 10 times the
            distance of the two rewards.
        k: for which k pass@k is given; beyond the number of samples too, with what is not known.
        rollouts_per_prompt: how many rollouts of a prompt a run draws in all. One that meets no
            right answer learns nothing: ``met`` is the success that such a run can come to.
        threshold: the least reward of a right sample, where the rewards do not show it.
        columns: other names of columns, ``{"correct": "base_correct"}``.
        num_draws: draws of the posterior behind each interval, 20 or more.
        key: of these draws; by default ``jax.random.key(0)``.
        name: what to call the recipe; by default the preset's name, or the recipe in words.

    Returns:
        For every β the mean over the prompts of success, pass@k, KL and more, as medians and 95 %
        intervals, and per prompt.

    Raises:
        TypeError: a recipe that is none.
        ValueError: samples that say nothing, values out of range, or a recipe that no forecast is
            known for; the message names the argument.

    Answers count as wholes: of a recipe whose KL acts on every token the target of each answer also
    depends on which tokens lead to it. One prompt does not teach another.

    Example:
        >>> import pandas as pd
        >>> from kltarget.forecasts import forecast
        >>> from kltarget.recipes import Recipe
        >>> counts = pd.DataFrame({"prompt": ["a", "b"], "correct": [40, 60], "samples": 100})
        >>> found = forecast(counts, Recipe(), beta=1.0)
        >>> print(found.dataset["success"].sel(quantile=0.5).values.round(1))
        [0.7]

    References:
        Agresti and Hitchcock, "Bayesian inference for categorical data analysis", 2005 (Beta–
        binomial models). Chen et al., "Evaluating Large Language Models Trained on Code", 2021,
        arXiv 2107.03374 (pass@k).
    """
    if isinstance(recipe, str):
        name = recipe if name is None else name
        recipe = recipe_of(recipe)
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a kltarget.recipes.Recipe or a name, got {recipe!r}")
    require_forecast(recipe)
    recipe, notes = of_base_model(recipe)
    if not isinstance(k, Sequence) or not k:
        raise ValueError(f"k must be a sequence of integers, such as (1, 16), got {k!r}")
    for each in k:
        if not isinstance(each, (int, np.integer)) or each < 1:
            raise ValueError(f"k must be integers of 1 or more, got {each!r}")
    if rollouts_per_prompt is not None and rollouts_per_prompt < 1:
        raise ValueError(f"rollouts_per_prompt must be 1 or more, got {rollouts_per_prompt}")
    if num_draws < 20:
        raise ValueError(f"num_draws must be 20 or more, got {num_draws}")
    if threshold is not None and not np.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold}")
    counts = counts_of(samples, threshold, columns)
    rewards = shaped(counts.rewards, recipe.reward_scale, recipe.reward_bounds)
    if not rewards[1] > rewards[0]:
        raise ValueError("reward_clip of the recipe leaves right and wrong samples the same reward")
    betas = _coefficients(recipe, rewards, beta)
    bits = np.asarray(jax.random.key_data(jax.random.key(0) if key is None else key)).ravel()
    rng = np.random.default_rng(bits[::-1])
    target = target_log_odds(recipe, rewards, betas)
    return _assembled(
        counts,
        recipe,
        name or in_words(recipe),
        notes,
        betas,
        tuple(int(x) for x in k),
        rollouts_per_prompt,
        target,
        num_draws,
        rng,
    )


def _coefficients(recipe: Recipe, rewards: np.ndarray, beta: ArrayLike | None) -> np.ndarray:
    if beta is None:
        unit = 1.0 if recipe.normalized else float(rewards[1] - rewards[0])
        return _GRID * unit
    with worded(f"beta must be numbers above 0, got {beta!r}"):
        found = np.unique(np.asarray(beta, np.float64))
    if found.ndim != 1 or not found.size or not (np.isfinite(found) & (found > 0)).all():
        raise ValueError(f"beta must be numbers above 0, got {beta!r}")
    return found


def _assembled(
    counts: SampleCounts,
    recipe: Recipe,
    name: str,
    notes: list[str],
    betas: np.ndarray,
    k: tuple[int, ...],
    num_rollouts: int | None,
    target: np.ndarray,
    num_draws: int,
    rng: np.random.Generator,
) -> Forecast:
    rates = success_rates(counts.correct, counts.samples, num_draws=num_draws, rng=rng)
    size = len(counts.prompts)
    weights = _Weights.of(rates.log_odds(np.arange(size), rng))
    unsolved = counts.correct == 0
    of_others = _Weights.of(rates.log_odds(np.flatnonzero(~unsolved), rng), size)
    log_right, log_wrong = log_expit(target), log_expit(-target)
    success = np.exp(log_right)
    kl = _kl(target)
    span = counts.rewards[1] - counts.rewards[0]
    curves = {
        "success": weights.mean(success),
        "kl": weights.mean(kl),
        "saturated": weights.mean((log_wrong < _SURE).astype(float)),
        "success_without_unsolved": of_others.mean(success),
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
    passes = [weights.mean(-np.expm1(each * log_wrong)) for each in k]
    curves["best_of_n"], curves["best_of_n_success"] = _best_of_n(weights, curves["kl"])
    starts = [weights.mean(-np.expm1(each * log_expit(-NODES))) for each in k]
    both = np.stack([counts.correct, counts.samples])
    _, first, index = np.unique(both, axis=1, return_index=True, return_inverse=True)
    per_pair = np.quantile(rates.log_odds(first, rng), QUANTILES, axis=0, method="nearest").T
    at_target = np.array([np.interp(per_pair, NODES, row) for row in target])
    return Forecast(
        title=str(counts),
        recipe=recipe,
        recipe_name=name,
        notes=(*notes, *counts.notes),
        beta=betas.tolist(),
        k=list(k),
        rollouts_per_prompt=num_rollouts,
        rewards=counts.rewards.tolist(),
        share_unsolved=float(unsolved.mean()),
        curves={x: _quantiles(y) for x, y in curves.items()},
        pass_at_k=[_quantiles(x) for x in passes],
        start={x: np.quantile(y, QUANTILES, axis=0).tolist() for x, y in start.items()},
        start_pass_at_k=[np.quantile(x, QUANTILES, axis=0).tolist() for x in starts],
        draws={x: curves[x].astype(np.float32).tolist() for x in ("success", "kl")},
        prompts=list(counts.prompts),
        correct=counts.correct.tolist(),
        samples=counts.samples.tolist(),
        pair=index.ravel().tolist(),
        pair_start=expit(per_pair).tolist(),
        pair_success=np.moveaxis(expit(at_target), 0, 1).tolist(),
        reward_span=float(span),
    )


def _kl(target: np.ndarray) -> np.ndarray:
    """``KL(π‖π_ref)`` of right against wrong; equal rewards keep the reference's proportions."""
    right, wrong = expit(target), expit(-target)
    with np.errstate(invalid="ignore"):
        up = np.where(right > 0, right * (log_expit(target) - log_expit(NODES)), 0.0)
        down = np.where(wrong > 0, wrong * (log_expit(-target) - log_expit(-NODES)), 0.0)
    return up + down


def _best_of_n(weights: _Weights, kl: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The n whose best of n samples has the KL of each target, and its success, ``[D, B]``."""
    log_odds = np.log(-np.expm1(_TRIES[:, None] * log_expit(-NODES))) - _TRIES[:, None] * log_expit(
        -NODES
    )
    spent, won = weights.mean(_kl(log_odds)), weights.mean(expit(log_odds))
    number = np.array(
        [np.interp(x, y, np.log(_TRIES), right=np.nan) for x, y in zip(kl, spent, strict=True)]
    )
    success = np.array([np.interp(x, np.log(_TRIES), y) for x, y in zip(number, won, strict=True)])
    return np.exp(number), np.where(np.isnan(number), np.nan, success)


def _quantiles(draws: np.ndarray) -> list[list[float]]:
    """``[D, B]`` as ``[B, 3]``; NaN where some draws have no number."""
    known = np.isfinite(draws).mean(0) > _KNOWN
    found = np.nanquantile(np.where(known, draws, 0.0), QUANTILES, axis=0)
    return np.where(known, found, np.nan).T.tolist()


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
