"""Statements that need the reference's log-probabilities: targets, flips, ratios, rewards."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from kltarget._core.distances import total_variation
from kltarget._core.status import Status
from kltarget._core.words import number, quoted, ratio
from kltarget.diagnosis._aims import (
    Aim,
    Flip,
    aims_of,
    is_forward,
    mara_rewards,
    pairs_of,
    reference_ratio,
    scale_of,
    searched,
)
from kltarget.diagnosis._diagnosis import Statement
from kltarget.diagnosis._say_modes import modes_statements
from kltarget.diagnosis._say_rewards import INDEPENDENT, LARGE, ON_POLICY, SOURCE, Case, share
from kltarget.evidence._prompts import Prompt
from kltarget.evidence._statistics import mean_interval

ENUMERATED = "the seen answers and one outcome for the rest of the reference are all there is"
UNSEEN_WORST = "unseen answers are rewarded as the worst seen"
WHOLE = "whole answers: a KL per token has this target if an answer is one token"
FIRST = "the policy was still the reference at the first logged step"
WEIGHED = "answers weighed by π_ref/π"
SOFTMAX = "one softmax over answers, as if each were one token"


def assumptions(case: Case, prompt: Prompt) -> str:
    """What a statement on targets takes for granted."""
    parts = [ENUMERATED, UNSEEN_WORST, SOURCE, ON_POLICY, LARGE]
    if case.recipe.level == "token" and case.recipe.place == "loss":
        parts.append(WHOLE)
    if prompt.known in ("first-step", "weighted"):
        parts.append(FIRST if prompt.known == "first-step" else WEIGHED)
    return "; ".join(parts)


def target_statements(case: Case, aims: list[Aim], flips: tuple[Flip, ...]) -> list[Statement]:
    found = [_reference(case, aims)]
    featured = aims[0]
    if featured.status & Status.NO_TARGET:
        found += _favoured(case, featured)
    else:
        found += _remarks(case, aims)
    found += [*_ratio(case, featured), *_flips(case, featured, flips), *_gain(case, aims)]
    found += modes_statements(case, aims, assumptions(case, featured.prompt))
    found += _mara(case, featured)
    return found


def _reference(case: Case, aims: list[Aim]) -> Statement:
    seen = np.array([aim.prompt.seen_mass for aim in aims])
    prompt = aims[0].prompt
    mean = float(seen.mean())
    where = {
        "logged": "the seen answers hold",
        "weighted": "weighed by π_ref/π, the seen answers hold",
        "first-step": "by the counts of the first logged step, the seen answers hold",
    }[prompt.known]
    text = f"{where} {share(mean)} of the reference's mass"
    if len(aims) > 1:
        text += f" (least {share(seen.min())})"
    text += ", the rest is one unseen outcome of the lowest seen reward"
    if not aims[0].status & Status.NO_TARGET and not np.isneginf(prompt.log_ref[-1]):
        reward = np.append(prompt.reward[:-1], prompt.reward[:-1].max())
        other = aims_of(case.recipe, [dataclasses.replace(prompt, reward=reward)], case.beta)[0]
        apart = total_variation(other.log_target, aims[0].log_target)
        text += f"; with the highest instead, the target would be {number(apart, 2)} away (TV)"
    assumption = FIRST if prompt.known == "first-step" else "the logged numbers are the reference's"
    return Statement("reference", text, mean, None, assumption, len(aims), "prompts", tier=2)


def _favoured(case: Case, aim: Aim) -> list[Statement]:
    if case.recipe.place == "reward" and case.beta > 0:
        # The cost still acts, so the reward alone does not say where the path ends.
        return []
    prompt, best = aim.prompt, _best(aim.prompt)
    names = _listed([prompt.names[i] for i in best])
    why = "at β = 0" if case.beta == 0 else "for this recipe"
    first = quoted(prompt.names[best[0]])
    if len(best) == 1:
        text = f"there is no target {why}; {first} alone is best: any path that learns ends there"
    else:
        text = (
            f"there is no target {why}: every mixture of {names} is optimal, and exact policy "
            f"gradients from the reference end on the likeliest of them alone, {first} "
            f"({share(float(np.exp(prompt.log_ref[best[0]])))} of the reference)"
        )
    now = np.exp(prompt.log_now[best])
    if now.sum() > 0 and len(best) > 1:
        text += f". Now it has {share(now[0] / now.sum())} of their mass"
    return [
        Statement(
            "favoured",
            text,
            float(now[0] / now.sum()) if now.sum() else None,
            None,
            f"{ENUMERATED}; {LARGE}; {SOFTMAX}; plain gradients: no momentum, no clip",
            int(prompt.late_counts.sum()),
            "late rollouts",
            tier=2,
        )
    ]


def _remarks(case: Case, aims: list[Aim]) -> list[Statement]:
    found = []
    words = {
        Status.SATURATED: "saturate: normalised rewards outweigh the KL, and all but one in a "
        "million ends on the best answers, in the reference's proportions",
        Status.SEVERAL: "have further fixed points; the one that training from the reference "
        "reaches is used",
        Status.CLIPPED: "lie where the trainer cuts its KL estimate: answers beyond the cut are "
        "held by nothing and fall further",
    }
    for bit, text in words.items():
        number_of = sum(bool(aim.status & bit) for aim in aims)
        if number_of:
            counted = f"{number_of:,} of {len(aims):,} targets {text}"
            found.append(
                Statement(
                    bit.name.lower() if bit.name else "remark",
                    counted,
                    float(number_of),
                    None,
                    assumptions(case, aims[0].prompt),
                    len(aims),
                    "prompts",
                    tier=2,
                )
            )
    return found


def _best(prompt: Prompt) -> np.ndarray:
    """The best possible answers of a prompt, the likeliest first."""
    reward, log_ref = prompt.reward[:-1], prompt.log_ref[:-1]
    possible = log_ref > -np.inf
    best = np.flatnonzero(possible & (reward == reward[possible].max()))
    return best[np.argsort(-log_ref[best], kind="stable")]


def _ratio(case: Case, aim: Aim) -> list[Statement]:
    """The ratio of the two likeliest of the best answers."""
    prompt, best = aim.prompt, _best(aim.prompt)
    held = not aim.status & Status.NO_TARGET
    # An entropy bonus evens out what has equal rewards; total variation leaves it open.
    kept = case.recipe.divergence is not None and not case.recipe.entropy_bonus
    if len(best) < 2 or (held and not kept):
        return []
    i, j = int(best[0]), int(best[1])
    value, interval = reference_ratio(prompt, i, j, case.rng, case.number)
    names = f"{quoted(prompt.names[i])} and {quoted(prompt.names[j])}"
    if not held:
        text = f"the reference's ratio of {names} is {ratio(np.log(value))}"
    else:
        text = (
            f"{names} have equal rewards: the target's ratio stays the reference's, "
            f"{ratio(np.log(value))}, at every β"
        )
    now = prompt.log_now[[i, j]]
    if np.isfinite(now).all():
        text += f"; now it is {ratio(float(now[0] - now[1]))}"
    counts = prompt.first_counts if prompt.known == "first-step" else prompt.counts
    return [
        Statement(
            "reference_ratio",
            text,
            value,
            interval,
            assumptions(case, prompt),
            int(counts.sum()),
            "rollouts of the first step" if prompt.known == "first-step" else "rollouts",
            tier=2,
        )
    ]


def _flips(case: Case, aim: Aim, flips: tuple[Flip, ...]) -> list[Statement]:
    if aim.status & Status.NO_TARGET or case.beta == 0:
        return []
    found = []
    for flip in flips:
        names = aim.prompt.names
        lead = aim.log_target[names.index(flip.better)] - aim.log_target[names.index(flip.worse)]
        ahead = flip.worse if lead < 0 else flip.better
        side = "below" if case.beta < flip.beta else "above"
        effective = ""
        if np.isfinite(flip.effective_beta) and abs(flip.effective_beta / flip.beta - 1) > 1e-6:
            effective = f" (effective {number(flip.effective_beta)})"
        text = (
            f"{quoted(flip.better)} overtakes {quoted(flip.worse)} below β = "
            f"{number(flip.beta)}{effective}: the configured {case.beta:g} is {side}, so the "
            f"target prefers {quoted(ahead)}"
        )
        if np.isfinite(flip.other) and abs(flip.other / flip.beta - 1) > 0.01:
            text += f"; were unseen answers as good as the best, at {number(flip.other)}"
        found.append(
            Statement(
                "flip_beta",
                text,
                flip.beta,
                flip.interval,
                assumptions(case, aim.prompt),
                int(aim.prompt.first_counts.sum() if flip.interval else aim.prompt.counts.sum()),
                "rollouts of the first step" if flip.interval else "rollouts",
                tier=2,
            )
        )
    if not found:
        if not pairs_of(aim.prompt):
            text = (
                "no two good answers change places at any β: the reference already prefers the "
                "better one of each pair, or they are rewarded equally"
            )
        elif scale_of(case.recipe, case.beta, aim) is not None:
            text = (
                "no two good answers change places: of some pairs the better one is less likely "
                "by the reference, but it overtakes at no β"
            )
        else:
            low, high = searched(case.recipe, aim.prompt)
            text = (
                f"no two good answers were found to change places between β = {number(low, 2)} "
                f"and {number(high, 2)}, though of some pairs the better one is less likely by the "
                "reference"
            )
        found = [
            Statement(
                "flip_beta",
                text,
                None,
                None,
                assumptions(case, aim.prompt),
                int(aim.prompt.counts.sum()),
                tier=2,
            )
        ]
    return found


def _gain(case: Case, aims: list[Aim]) -> list[Statement]:
    """Expected rewards: of the reference, now, and of the target."""

    def mean(rows: list[np.ndarray]) -> float:
        return float(
            np.mean([np.exp(row) @ aim.prompt.reward for row, aim in zip(rows, aims, strict=True)])
        )

    wanted = np.isin(case.log.prompt, [aim.prompt.code for aim in aims]) & case.log.late
    if not wanted.any():
        return []
    groups, rows = np.unique(case.log.group[wanted], return_inverse=True)
    sums = np.bincount(rows, case.log.reward[wanted]) / np.bincount(rows)
    now, interval = mean_interval(sums)
    before = mean([aim.prompt.log_ref for aim in aims])
    text = f"expected reward now {number(now, 3)}, of the reference {number(before, 3)}"
    held = not aims[0].status & Status.NO_TARGET
    if held:
        text += f", of the target {number(mean([aim.log_target for aim in aims]), 3)}"
    found = Statement(
        "expected_reward",
        text,
        now,
        interval,
        f"{assumptions(case, aims[0].prompt)}; {INDEPENDENT}",
        len(groups),
        "late groups",
        tier=2,
    )
    return [found]


def _mara(case: Case, aim: Aim) -> list[Statement]:
    rewards, best = mara_rewards(case.recipe, aim), _best(aim.prompt)
    if rewards is None or len(best) < 2:
        return []
    rare = int(best[-1])
    extra = float(rewards[rare] - aim.prompt.reward[rare])
    text = (
        f"MARA would pay {number(float(rewards[rare]))} for {quoted(aim.prompt.names[rare])} "
        f"instead of {number(float(aim.prompt.reward[rare]))}, to make all {len(best)} best "
        "answers equally probable"
    )
    recipe = case.recipe
    if recipe.normalise != "none" and not recipe.charged_before:
        text += (
            ". Not with this recipe: dividing by the deviation scales the extra reward but not "
            "the KL, and the policy can collapse on the least likely answer; turn it off first"
        )
    elif is_forward(recipe):
        text += (
            ". Not with this recipe: it follows the forward KL, under which these rewards "
            "over-correct, and the least likely answer gets most; use a reverse KL, or substitute "
            "the reference's probabilities on the right answers"
        )
    if recipe.baseline_shrinks and recipe.group_size:
        size = recipe.group_size
        text += (
            ". The group mean shortens the reward's gradient: with the trainer's own β in place "
            f"of the effective one the ratio^(1/{size}) would be left; a leave-one-out baseline "
            "has no such factor"
        )
    return [
        Statement(
            "mara",
            text,
            extra,
            None,
            assumptions(case, aim.prompt),
            int(aim.prompt.counts.sum()),
            tier=2,
        )
    ]


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = [quoted(name) for name in itertools.islice(names, most)]
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
