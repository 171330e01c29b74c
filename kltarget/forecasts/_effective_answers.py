"""How many answers the target has: those of one reward keep the reference's proportions."""

from __future__ import annotations

import numpy as np

from kltarget.evidence import (
    AnswerCounts,
    SampleCounts,
    effective_number,
    entropy_of_counts,
    missed_share,
    number_of_answers,
)
from kltarget.forecasts._draws import QUANTILES

_NORMAL = 1.959963984540054
_FEWEST = 2


def right_answers(counts: SampleCounts, rng: np.random.Generator) -> dict[str, list[float]]:
    """Right answers a prompt, low, estimate and high: ``number`` there are, and ``effective``.

    Means over the prompts with two right samples or more; empty where there are none, or where it
    is not known what is right. Of one reward they are the same for the base model and at every
    target. Where no prompt says how many it has not shown, the high end of the number is NaN; the
    effective number of those seen is never above it. ``missed`` has quantiles over the prompts of
    the share below which a right answer is missed with probability 5 % or more.
    """
    answers = counts.answers
    if answers is None or counts.correct is None:
        return {}
    right = np.array([0.0, 1.0]) if counts.right is None else counts.right
    if not np.isin(right, (0.0, 1.0)).all():
        return {}
    laws = [x for x in answers.of(right[answers.level] == 1) if x.sum() >= _FEWEST]
    if not laws:
        return {}
    low, middle, high = np.array([number_of_answers(x) for x in laws]).T
    value, error = np.array([effective_number(x, rng) for x in laws]).T
    # There are at least as many as there are in effect.
    value = np.minimum(value, middle)
    open_ended = bool(np.isnan(high).all())
    high = np.where(np.isnan(high), middle, high)
    spread = _NORMAL * float(np.sqrt((error**2).sum())) / len(laws)
    # Errors of different prompts are independent: their squares add up.
    below, above = (float(np.sqrt(((x - middle) ** 2).sum())) / len(laws) for x in (low, high))
    number, effective = float(middle.mean()), float(value.mean())
    most = min(effective + spread, number + above)
    missed = np.quantile([missed_share(x.sum()) for x in laws], QUANTILES)
    return {
        "number": [number - below, number, np.nan if open_ended else number + above],
        "effective": [max(effective - spread, 1.0), effective, most],
        "missed": missed.tolist(),
    }


def entropies(answers: AnswerCounts, size: int, levels: int) -> np.ndarray:
    """Entropies of the answers of each reward by prompt, nats, ``[P, K]``.

    Where a prompt has fewer than two samples of a reward, it is the mean of the others'.
    """
    found = np.full((size, levels), np.nan)
    for level in range(levels):
        chosen = answers.level == level
        prompts = np.unique(answers.prompt[chosen])
        for prompt, law in zip(prompts, answers.of(chosen), strict=True):
            if law.sum() >= _FEWEST:
                found[prompt, level] = float(entropy_of_counts(law)[0])
        known = np.isfinite(found[:, level])
        typical = float(found[known, level].mean()) if known.any() else 0.0
        found[~known, level] = typical
    return found


def effective_answers(log_masses: np.ndarray, within: np.ndarray) -> np.ndarray:
    """``e^H`` of laws over answers, by their levels' masses and the entropies within, ``[...]``.

    Args:
        log_masses: ``[..., K]``.
        within: nats, ``[..., K]``.
    """
    masses = np.exp(log_masses)
    between = masses * np.where(masses > 0, log_masses, 0.0)
    return np.exp((masses * within - between).sum(-1))
