"""Which prompts the reward's gradient comes from, and what a band of success would keep."""

from __future__ import annotations

import math

import numpy as np

from kltarget import evidence
from kltarget._core.words import counted
from kltarget.diagnosis._say_rewards import INDEPENDENT, ON_POLICY, Case, share
from kltarget.diagnosis._statement import Statement

_BAND = (0.2, 0.8)
"""Successes that filters by difficulty keep."""


def gradient_shares(case: Case) -> np.ndarray:
    """Of every prompt, its share of the advantages' sizes in the late groups, ``[prompts]``.

    Advantages that are centred add up to ``2 k(G − k)/G`` in size where k of G rewards are 1, in
    general to about G times the variance, and if they are divided by the deviation to G times that.
    NaN where a prompt has no late group of several rollouts, where no group teaches anything, and
    where the recipe subtracts nothing from the rewards.
    """
    groups, recipe = case.groups, case.recipe
    if case.told and recipe.baseline == "none" and recipe.normalize != "group-std":
        return np.full(len(case.log.prompts), np.nan)
    chosen = case.late & (groups.size > 1)
    size = groups.deviation if recipe.normalized else groups.deviation**2
    total = np.bincount(groups.prompt[chosen], (groups.size * size)[chosen], len(case.log.prompts))
    sampled = np.bincount(groups.prompt[chosen], minlength=total.size) > 0
    whole = total.sum()
    return np.where(sampled & (whole > 0), total / (whole or 1.0), np.nan)


def gradient_statements(case: Case) -> list[Statement]:
    """How few prompts carry the gradient, how many give none, and what a filter would keep."""
    shares = gradient_shares(case)
    known = np.flatnonzero(np.isfinite(shares))
    if known.size < 2:
        return []
    shares = shares[known]
    none = int((shares == 0).sum())
    running = np.cumsum(np.sort(shares)[::-1])
    half = int(np.searchsorted(running, 0.5 * running[-1] * (1 - 1e-12))) + 1
    prompts, verb = counted(known.size, "prompt"), "gives" if none == 1 else "give"
    text = (
        f"half of the reward's gradient comes from {half:,} of {prompts} in {case.log.late_span}; "
        f"{none:,} of them, {share(none / known.size)}, {verb} none"
    )
    detail = _equal_ones(case, known[shares == 0]) + _band(case, known, shares)
    by = (ON_POLICY, INDEPENDENT)
    interval = evidence.wilson_interval(none, known.size)
    return [
        Statement("gradient", text, detail, none / known.size, interval, by, known.size, "prompts")
    ]


def _successes(case: Case, prompts: np.ndarray) -> np.ndarray:
    groups = case.groups
    chosen = case.late & (groups.size > 1)
    of, length = groups.prompt[chosen], len(case.log.prompts)
    right, size = (np.bincount(of, x[chosen], length) for x in (groups.right, groups.size))
    return (right / np.maximum(size, 1))[prompts]


def _equal_ones(case: Case, prompts: np.ndarray) -> str:
    """Of the prompts without a gradient, which are solved and which are out of reach."""
    if math.isinf(case.threshold) or not prompts.size:
        return ""
    success = _successes(case, prompts)
    told = {"always right": success == 1, "always wrong": success == 0}
    parts = [f"{int(x.sum()):,} {words}" for words, x in told.items() if x.any()]
    return f": {', '.join(parts)}" if parts else ""


def _band(case: Case, prompts: np.ndarray, shares: np.ndarray) -> str:
    if math.isinf(case.threshold):
        return ""
    low, high = _BAND
    success = _successes(case, prompts)
    kept = (success >= low) & (success <= high)
    if kept.all() or not kept.any():
        return ""
    return (
        f"; the {int(kept.sum()):,} of success {low:g} to {high:g} there have "
        f"{share(float(shares[kept].sum()))} of it"
    )
