"""Statements on how many right answers are left: by the reference, the target, and now."""

from __future__ import annotations

import numpy as np

from kltarget._core.status import Status
from kltarget._core.words import number
from kltarget.diagnosis._aims import Aim
from kltarget.diagnosis._say_rewards import INDEPENDENT, Case
from kltarget.diagnosis._statement import Statement
from kltarget.evidence import Interval

# Resamples of fewer groups scatter less than what they stand for.
_FEWEST = 10


def modes_statements(case: Case, aims: list[Aim], assumed: tuple[str, ...]) -> list[Statement]:
    """Effective numbers of right answers: by the reference, the target, and now."""
    several = [aim for aim in aims if aim.prompt.right(case.threshold).sum() > 1]
    if not several:
        return []
    now, interval, groups = modes_now(case, several)
    if not groups:
        return []
    before, target, _ = np.mean([aim.modes(case.threshold) for aim in several], axis=0)
    text = f"effective right answers per prompt: {number(now, 3)} now, "
    text += f"{number(before, 3)} of the reference"
    if not aims[0].status & Status.NO_TARGET:
        text += f", {number(target, 3)} of the target"
    if len(aims) > 1:
        text += f" (prompts with two or more: {len(several):,})"
    by = (*assumed, INDEPENDENT)
    return [
        Statement("effective_modes", text, "", now, interval, by, groups, "late groups", tier=2)
    ]


def modes_now(case: Case, aims: list[Aim]) -> tuple[float, Interval | None, int]:
    """Their mean over prompts by the counts of the last third, resampled by groups."""
    log = case.log
    wanted = np.isin(log.prompt, [aim.prompt.code for aim in aims]) & log.late
    wanted &= log.reward >= case.threshold
    if not wanted.any():
        return float("nan"), None, 0
    _, group = np.unique(log.group[wanted], return_inverse=True)
    codes, answer = np.unique(log.answer[wanted], return_inverse=True)
    _, prompt = np.unique(log.answer_prompt[codes], return_inverse=True)

    def mean(weight: np.ndarray) -> float:
        count = np.bincount(answer, weight, minlength=len(codes))
        total = np.bincount(prompt, count)
        part = np.where(count > 0, count, 1) / np.where(total > 0, total, 1)[prompt]
        plain = -np.bincount(prompt, np.where(count > 0, part * np.log(part), 0))
        kinds = np.bincount(prompt, count > 0)
        # Miller's and Madow's correction.
        entropy = plain + np.maximum(kinds - 1, 0) / (2 * np.where(total > 0, total, 1))
        return float(np.exp(entropy)[total > 0].mean())

    value, number_of = mean(np.ones(len(group))), int(group.max()) + 1
    if number_of < _FEWEST:
        return value, None, number_of
    even = np.full(number_of, 1 / number_of)
    resamples = case.rng.multinomial(number_of, even, size=case.number)
    drawn = [mean(counts[group].astype(float)) for counts in resamples]
    # Resamples show fewer answers than samples: their spread counts, not their middle.
    low, high = np.quantile(np.array(drawn) - np.mean(drawn), [0.025, 0.975])
    return value, (max(1.0, float(value + low)), float(value + high)), number_of
