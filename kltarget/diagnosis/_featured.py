"""The page in a few sentences, and the numbers of its most informative prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kltarget._core.status import Status
from kltarget.diagnosis._aims import Aim, mara_rewards, shares_over_beta
from kltarget.diagnosis._say_rewards import Case, diversity_moved
from kltarget.diagnosis._statement import Featured, FlipOfAnswers, Statement
from kltarget.evidence import Prompt


def verdict_of(case: Case, statements: Sequence[Statement], aims: list[Aim]) -> tuple[str, ...]:
    """The page in a few sentences."""
    named = {statement.name: statement for statement in reversed(statements)}
    told = "family" in named and named["family"].value is not None
    far = "distance" in named and named["distance"].warning
    wanted = ["clipped"] if told else ["direction", "clipped"]
    if not aims or aims[0].status & Status.NO_TARGET:
        wanted += ["favoured"]
    elif far:
        wanted += ["distance", "family"]
    else:
        wanted += ["family", "implied_beta", "distance"]
    wanted += ["reference_ratio"] if aims else ["effective_beta", "pass@1"]
    flips = named.get("flip_beta")
    if flips is not None and flips.value is not None:
        wanted.append("flip_beta")
    if "advantages" in named:
        # What the log contradicts, or does not bear out, is not told in short.
        wanted = ["advantages", *(name for name in wanted if name != "effective_beta")]
    if "answers" in named:
        wanted.append("answers")
    elif diversity_moved(case):
        wanted.append("diversity")
    chosen = [named[name] for name in wanted if name in named and not named[name].refused]
    if named["zero_std_groups"].warning:
        chosen.append(named["zero_std_groups"])
    # Without a regulariser that no target is known has been said already.
    if flips is not None and flips.refused and not (case.told and case.beta == 0):
        chosen.append(flips)
    return tuple(statement.headline for statement in chosen)


def featured_of(
    case: Case, prompt: Prompt, aim: Aim | None, flips: tuple[FlipOfAnswers, ...] = ()
) -> Featured:
    """Numbers of the most informative prompt."""
    base = Featured(
        prompt=prompt.text,
        names=prompt.names,
        reward=_floats(prompt.reward),
        counts=tuple(prompt.counts.tolist()),
        reference=None if aim is None else _known(prompt, prompt.log_ref),
        target=None,
        now=_floats(_now(prompt)),
    )
    if aim is None or aim.status & Status.NO_TARGET:
        return base
    betas, shares = shares_over_beta(case.recipe, prompt, case.beta)
    rewards = mara_rewards(case.recipe, aim)
    return dataclasses.replace(
        base,
        target=_known(prompt, aim.log_target),
        mara_reward=None if rewards is None else _floats(rewards),
        flips=flips,
        betas=_floats(betas),
        shares=tuple(map(_floats, shares)),
        effective_beta=None if case.recipe.entropy_bonus else aim.effective_beta,
    )


def _now(prompt: Prompt) -> np.ndarray:
    """The policy's probabilities; NaN where the last steps do not show them."""
    now = np.exp(prompt.log_now)
    if prompt.exact_now:
        return np.where((now == 0) & (prompt.counts > 0), np.nan, now)
    return now if prompt.late_counts.any() else np.full_like(now, np.nan)


def _known(prompt: Prompt, log_probs: np.ndarray) -> tuple[float, ...]:
    """Probabilities; NaN where it is not known how likely the reference makes an answer."""
    return _floats(np.where(prompt.unknown, np.nan, np.exp(log_probs)))


def _floats(values: np.ndarray) -> tuple[float, ...]:
    # A zero has no sign.
    return tuple((np.asarray(values, float) + 0.0).tolist())
