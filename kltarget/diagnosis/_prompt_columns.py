"""The numbers of every prompt, in columns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kltarget.diagnosis._aims import Aim
from kltarget.diagnosis._collapse_steps import collapse_steps
from kltarget.diagnosis._say_gradient import gradient_shares
from kltarget.diagnosis._say_modes import modes_of
from kltarget.diagnosis._say_rewards import Case


def columns_of(
    case: Case, aims: list[Aim], right: np.ndarray, late: np.ndarray
) -> dict[str, list[Any]]:
    """A number per prompt and column."""
    log, groups = case.log, case.groups
    size = len(log.prompts)
    number = np.bincount(log.prompt, minlength=size)
    per, several = np.bincount(groups.prompt, minlength=size), groups.size > 1
    with np.errstate(invalid="ignore", divide="ignore"):
        columns: dict[str, Any] = {
            "prompt": list(log.prompts),
            "rollouts": number,
            "groups": per,
            "mean_reward": np.bincount(log.prompt, log.reward, size) / number,
            "deviation": np.bincount(groups.prompt, groups.deviation, size) / per,
            "zero_std_share": np.bincount(groups.prompt, groups.equal & several, size)
            / np.bincount(groups.prompt, several, size),
            "pass@1": np.full(size, np.nan)
            if math.isinf(case.threshold)
            else np.bincount(groups.prompt, groups.right / groups.size, size) / per,
            "gradient_share": gradient_shares(case),
            "right_answers": right,
            "late_right_answers": late,
            "collapse_step": collapse_steps(log, case.threshold),
        }
    names = ("effective_beta", "reference_modes", "target_modes", "modes_now")
    extra = {name: np.full(size, np.nan) for name in (*names, "seen_reference_mass")}
    for aim in aims:
        modes = *aim.modes(case.threshold), modes_of(case, aim)
        numbers = (aim.effective_beta, *modes, aim.prompt.seen_mass)
        for column, number_of in zip(extra.values(), numbers, strict=True):
            column[aim.prompt.code] = number_of
    columns |= extra
    return {name: x if isinstance(x, list) else x.tolist() for name, x in columns.items()}
