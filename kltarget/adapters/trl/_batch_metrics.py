"""Numbers of one batch of rollouts in whole groups: rewards, answers, log-probabilities.

Everything is NumPy: the memory of accelerators belongs to the trainer, and JAX would take it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kltarget.recipes import Recipe

_BISECTIONS = 80


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Rollouts in groups of one size, ``[N, G]`` each.

    Attributes:
        reward: total reward, NaN where none was given.
        text: completions.
        answer: texts, or None where there is no answer.
        logp: log-probabilities of whole completions by the policy, or None.
        ref_logp: the same by the reference.
        single: whether every completion is one token.
    """

    reward: np.ndarray
    text: np.ndarray
    answer: np.ndarray
    logp: np.ndarray | None
    ref_logp: np.ndarray | None
    single: bool


def reward_metrics(batch: Batch, recipe: Recipe, beta: float) -> dict[str, float]:
    """The share of groups of equal rewards, and quantiles of the effective β over the others."""
    sizes = (~np.isnan(batch.reward)).sum(1)
    counted = batch.reward[sizes > 1]
    metrics = {}
    if len(counted):
        equal = np.nanmax(counted, 1) == np.nanmin(counted, 1)
        metrics["zero_std_groups"] = float(equal.mean())
    values = effective_betas(batch.reward, recipe, beta)
    if values is not None and (values := values[~np.isnan(values)]).size:
        low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
        metrics |= {
            "effective_beta_p10": float(low),
            "effective_beta_p50": float(middle),
            "effective_beta_p90": float(high),
        }
    return metrics


def effective_betas(reward: np.ndarray, recipe: Recipe, beta: float) -> np.ndarray | None:
    """β in units of the reward that each group ``[N]`` has; NaN where its rewards are equal.

    None where there is no such number: nothing holds the policy, or more than a KL does.
    """
    beside = recipe.entropy_bonus or recipe.teacher
    moved = recipe.by_masses and not recipe.charged_before
    if beta == 0 or recipe.divergence is None or beside or moved or recipe.kl_target is not None:
        return None
    number = len(reward)
    if not recipe.normalized:
        return np.full(number, beta * recipe.effective_factor())
    scaled = recipe.reward_scale * reward
    if recipe.reward_bounds is not None:
        scaled = np.clip(scaled, *recipe.reward_bounds)
    whole = recipe.normalize == "batch-std"
    deviation = np.array([_deviation(x, recipe.ddof) for x in ([scaled] if whole else scaled)])
    deviation = np.broadcast_to(deviation, number)
    return np.where(deviation > 0, beta * recipe.effective_factor(deviation), np.nan)


def _deviation(rewards: np.ndarray, ddof: int) -> float:
    """Standard deviation of what is there; equal rewards have one of exactly 0.

    NaN where a reward is infinite.
    """
    present = rewards[~np.isnan(rewards)]
    if present.size < 2:
        return 0.0
    if np.isinf(present).any():
        return math.nan
    # Distances from one of them: a mean of equal numbers need not be that number.
    return float((present - present.flat[0]).std(ddof=min(ddof, present.size - 1)))


def answer_metrics(batch: Batch, threshold: float) -> dict[str, float]:
    """Right answers per group and how far they differ, and pass@k up to the size of groups."""
    right = batch.reward >= threshold
    size = right.shape[1]
    distinct, differ = [], []
    for answers, chosen in zip(batch.answer, right, strict=True):
        told = [x for x in answers[chosen] if x is not None]
        counts = np.unique(told, return_counts=True)[1] if told else np.zeros(0, int)
        if len(told):
            distinct.append(len(counts))
        if len(told) > 1:
            pairs = len(told) * (len(told) - 1)
            differ.append(1 - (counts * (counts - 1)).sum() / pairs)
    metrics = {"distinct_right": float(np.mean(distinct))} if distinct else {}
    if differ:
        metrics["right_pairs_differ"] = float(np.mean(differ))
    # A rollout without a reward was not judged, so that its group says less than the others.
    judged = right[~np.isnan(batch.reward).any(1)].sum(1)
    for k in passes(size) if judged.size else ():
        missed = [math.comb(size - int(c), k) / math.comb(size, k) for c in judged]
        metrics[f"pass@{k}"] = 1 - float(np.mean(missed))
    return metrics


def passes(size: int) -> list[int]:
    """The k of pass@k: all up to 8, then powers of 2, and the size of the group.

    >>> passes(6), passes(20)
    ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7, 8, 16, 20])
    """
    powers = [2**i for i in range(4, size.bit_length())]
    return sorted({*range(1, min(size, 8) + 1), *powers, size})


def policy_metrics(batch: Batch, recipe: Recipe, beta: float) -> dict[str, float]:
    """Entropy, KL and the distance from the target, as far as log-probabilities are at hand."""
    metrics = {}
    if batch.logp is not None and np.isfinite(batch.logp).all():
        metrics["entropy"] = -float(batch.logp.mean())
    if batch.logp is None or batch.ref_logp is None:
        return metrics
    ratio = batch.logp - batch.ref_logp
    if not np.isfinite(ratio).all():
        return metrics
    metrics["kl"] = float(ratio.mean())
    # A group that says one thing is as far from every target as from none.
    several = np.array([len(set(row)) > 1 for row in batch.text])
    apart = distances(ratio[several], batch.reward[several], recipe, beta, batch.single)
    if apart is not None and len(apart):
        metrics["distance"] = float(apart.mean())
    return metrics


def distances(
    ratio: np.ndarray, reward: np.ndarray, recipe: Recipe, beta: float, single: bool
) -> np.ndarray | None:
    """How far each group's log-ratios ``[N, G]`` are from the target's, in nats, ``[N]``.

    The standard deviation over the group of ``log π/π_ref − log π*/π_ref``. What the group cannot
    tell, π*'s normalisation, does not count.

    Returns:
        One number for each group whose rewards are all there and finite; None where the target's
        log-ratio is no function of the reward, as for per-token terms of completions of several
        tokens.
    """
    effective = effective_betas(reward, recipe, beta)
    by_tokens = recipe.per_token or recipe.kl_length not in (None, recipe.length)
    known = recipe.aim in ("reverse", "forward") and recipe.reference == "fixed"
    if effective is None or not known or (by_tokens and not single):
        return None
    whole = np.isfinite(reward).all(1)
    ratio, reward, effective = ratio[whole], reward[whole], effective[whole]
    if recipe.reward_bounds is not None:
        low, high = (x / recipe.reward_scale for x in recipe.reward_bounds)
        reward = np.clip(reward, low, high)
    # Equal rewards have equal log-ratios at the target, whatever the coefficient.
    cost = np.where(np.isnan(effective), 1.0, effective)[:, None]
    gain = (reward - reward.max(1, keepdims=True)) / cost
    if recipe.aim == "reverse":
        return (ratio - gain).std(1, ddof=1)
    return (ratio + np.log(_multiplier(gain, ratio) - gain)).std(1, ddof=1)


def _multiplier(gain: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Λ/β ``[N, 1]`` with which ``−log(Λ/β − gain)`` has the mean of the log-ratios, by halving."""
    # gain is 0 or less, so that the mean of log(Λ/β − gain) lies between these.
    wanted = -ratio.mean(1, keepdims=True)
    low = np.full_like(wanted, -800.0)
    high = np.maximum(wanted, -700.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = np.log(np.exp(middle) - gain).mean(1, keepdims=True) > wanted
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.exp((low + high) / 2)


class Alarm:
    """Whether right answers or the entropy have fallen below a share of their early level.

    Args:
        share: of the early level, below which it is on.
        window: number of batches that the early and the present level are means of.
    """

    def __init__(self, share: float, window: int) -> None:
        self.share, self.window = share, window
        self.levels: dict[str, list[float]] = {"right_pairs_differ": [], "entropy": []}

    def after(self, metrics: dict[str, float]) -> float | None:
        """1 or 0 with one more batch; None as long as there is no early level to compare with."""
        verdicts = []
        for name, values in self.levels.items():
            if name in metrics:
                values.append(metrics[name])
                del values[self.window : -self.window]
            if len(values) < self.window:
                continue
            early, now = np.mean(values[: self.window]), np.mean(values[-self.window :])
            verdicts.append(bool(early > 0 and now < self.share * early))
        return float(any(verdicts)) if verdicts else None


def in_groups(values: Sequence[float] | np.ndarray, size: int) -> np.ndarray:
    """Consecutive blocks as rows."""
    return np.asarray(values).reshape(-1, size)
