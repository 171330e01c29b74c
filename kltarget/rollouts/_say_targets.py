"""Statements that need the reference's log-probabilities: targets, flips, ratios, rewards."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from kltarget._text import number, quoted, ratio
from kltarget.rollouts._aims import (
    Aim,
    aims_of,
    flips_of,
    is_forward,
    mara_rewards,
    reference_ratio,
    shares_over_beta,
)
from kltarget.rollouts._diagnosis import Featured, Interval, Statement
from kltarget.rollouts._evidence import Prompt
from kltarget.rollouts._say_rewards import INDEPENDENT, LARGE, ON_POLICY, SOURCE, Case, share
from kltarget.rollouts._statistics import mean_interval
from kltarget.status import Status

ENUMERATED = "the seen answers and one outcome for the rest of the reference are all there is"
UNSEEN_WORST = "unseen answers are rewarded as the worst seen"
WHOLE = "whole answers: a KL per token has this target if an answer is one token"
FIRST = "the policy was still the reference at the first logged step"
WEIGHED = "answers weighed by π_ref/π"


def assumptions(case: Case, prompt: Prompt) -> str:
    """What a statement on targets takes for granted."""
    parts = [ENUMERATED, UNSEEN_WORST, SOURCE, ON_POLICY, LARGE]
    if case.recipe.level == "token" and case.recipe.place == "loss":
        parts.append(WHOLE)
    if prompt.known in ("first-step", "weighted"):
        parts.append(FIRST if prompt.known == "first-step" else WEIGHED)
    return "; ".join(parts)


def target_statements(case: Case, aims: list[Aim]) -> list[Statement]:
    found = [_reference(case, aims)]
    featured = aims[0]
    if featured.status & Status.NO_TARGET:
        found.append(_favoured(case, featured))
    else:
        found += _remarks(case, aims)
    found += [*_ratio(case, featured), *_flips(case, featured), _gain(case, aims)]
    found += [*_modes(case, aims), *_mara(case, featured)]
    return found


def _reference(case: Case, aims: list[Aim]) -> Statement:
    seen = np.array([aim.prompt.seen_mass for aim in aims])
    prompt = aims[0].prompt
    mean, interval = mean_interval(seen, case.rng, case.number)
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
        apart = 0.5 * np.abs(np.exp(other.log_target) - np.exp(aims[0].log_target)).sum()
        text += f"; with the highest instead, the target would be {number(apart, 2)} away (TV)"
    assumption = FIRST if prompt.known == "first-step" else "the logged numbers are the reference's"
    return Statement(
        "reference", text, mean, interval, assumption, len(aims), "prompts", tier=2
    )


def _favoured(case: Case, aim: Aim) -> Statement:
    prompt = aim.prompt
    best = np.flatnonzero(prompt.reward[:-1] == prompt.reward[:-1].max())
    best = best[np.argsort(-prompt.log_ref[best], kind="stable")]
    names = _listed([prompt.names[i] for i in best])
    why = "at β = 0" if case.beta == 0 else "for this recipe"
    first = quoted(prompt.names[best[0]])
    if len(best) == 1:
        text = f"there is no target {why}; only {first} is best, and every path that learns ends there"
    else:
        text = (
            f"there is no target {why}: every mixture of {names} is optimal. The path decides; exact "
            f"policy gradients from the reference favour the likeliest of them, {first} "
            f"({share(float(np.exp(prompt.log_ref[best[0]])))} of the reference), and end on it alone"
        )
    now = np.exp(prompt.log_now[best])
    if now.sum() > 0 and len(best) > 1:
        text += f". Now it has {share(now[0] / now.sum())} of their mass"
    return Statement(
        "favoured",
        text,
        float(now[0] / now.sum()) if now.sum() else None,
        None,
        f"{ENUMERATED}; {LARGE}; plain gradients: no momentum, no clip",
        int(prompt.late_counts.sum()),
        "late rollouts",
        tier=2,
    )


def _remarks(case: Case, aims: list[Aim]) -> list[Statement]:
    found = []
    words = {
        Status.SATURATED: "saturate: normalised rewards outweigh the KL, and all but one in a "
        "million ends on the best answers, in the reference's proportions",
        Status.SEVERAL: "have further fixed points; the one that training from the reference "
        "reaches is used",
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
    if len(best) < 2:
        return []
    i, j = int(best[0]), int(best[1])
    value, interval = reference_ratio(prompt, i, j, case.rng, case.number)
    names = f"{quoted(prompt.names[i])} and {quoted(prompt.names[j])}"
    if aim.status & Status.NO_TARGET:
        text = f"the reference's ratio of {names} is {ratio(np.log(value))}"
    else:
        text = (
            f"{names} have equal rewards: the target's ratio stays the reference's, "
            f"{ratio(np.log(value))}, at every β"
        )
    now = prompt.log_now[i] - prompt.log_now[j]
    if np.isfinite(now):
        text += f"; now it is {ratio(float(now))}"
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


def _flips(case: Case, aim: Aim) -> list[Statement]:
    if aim.status & Status.NO_TARGET or case.beta == 0:
        return []
    found = []
    for flip in flips_of(case.recipe, case.beta, aim, case.rng, case.number):
        ahead, behind = flip.better, flip.worse
        side = "below" if case.beta < flip.beta else "above"
        if case.beta > flip.beta:
            ahead, behind = behind, ahead
        effective = ""
        if np.isfinite(flip.effective_beta) and abs(flip.effective_beta / flip.beta - 1) > 1e-6:
            effective = f" (effective {number(flip.effective_beta)})"
        text = (
            f"{quoted(flip.better)} overtakes {quoted(flip.worse)} below β = "
            f"{number(flip.beta)}{effective}: the configured {case.beta:g} is {side}, so the target "
            f"prefers {quoted(ahead)}"
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
        text = (
            "no two good answers change places at any β: the reference already prefers the better "
            "one of each pair, or they are rewarded equally"
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


def _gain(case: Case, aims: list[Aim]) -> Statement:
    """Expected rewards: of the reference, now, and of the target."""
    def mean(rows: list[np.ndarray]) -> float:
        return float(
            np.mean([np.exp(row) @ aim.prompt.reward for row, aim in zip(rows, aims, strict=True)])
        )

    wanted = np.isin(case.log.prompt, [aim.prompt.code for aim in aims]) & case.log.late
    groups, rows = np.unique(case.log.group[wanted], return_inverse=True)
    sums = np.bincount(rows, case.log.reward[wanted]) / np.bincount(rows)
    now, interval = mean_interval(sums, case.rng, case.number)
    before = mean([aim.prompt.log_ref for aim in aims])
    text = f"expected reward now {number(now, 3)}, of the reference {number(before, 3)}"
    held = not aims[0].status & Status.NO_TARGET
    if held:
        text += f", of the target {number(mean([aim.log_target for aim in aims]), 3)}"
    return Statement(
        "expected_reward",
        text,
        now,
        interval,
        f"{assumptions(case, aims[0].prompt)}; {INDEPENDENT}",
        len(groups),
        "late groups",
        tier=2,
    )


def _modes(case: Case, aims: list[Aim]) -> list[Statement]:
    """Effective numbers of right answers: by the reference, the target, and now."""
    several = [aim for aim in aims if aim.prompt.right(case.threshold).sum() > 1]
    if not several:
        return []
    now, interval, groups = modes_now(case, several)
    before = np.mean([aim.modes(aim.prompt.log_ref, case.threshold) for aim in several])
    text = (
        f"effective right answers per prompt: {number(now, 3)} now, {number(float(before), 3)} of the "
        "reference"
    )
    if not aims[0].status & Status.NO_TARGET:
        target = np.mean([aim.modes(aim.log_target, case.threshold) for aim in several])
        text += f", {number(float(target), 3)} of the target"
    if len(aims) > 1:
        text += f" (prompts with two or more: {len(several):,})"
    return [
        Statement(
            "effective_modes",
            text,
            now,
            interval,
            f"{assumptions(case, aims[0].prompt)}; {INDEPENDENT}",
            groups,
            "late groups",
            tier=2,
        )
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
    if number_of < 2:
        return value, None, number_of
    drawn = [
        mean(case.rng.multinomial(number_of, np.full(number_of, 1 / number_of))[group].astype(float))
        for _ in range(case.number)
    ]
    # Resamples show fewer answers than samples: their spread counts, not their middle.
    low, high = np.quantile(np.array(drawn) - np.mean(drawn), [0.025, 0.975])
    return value, (max(1.0, float(value + low)), float(value + high)), number_of


def _mara(case: Case, aim: Aim) -> list[Statement]:
    rewards, best = mara_rewards(aim), _best(aim.prompt)
    if rewards is None or len(best) < 2:
        return []
    rare = int(best[-1])
    extra = float(rewards[rare] - aim.prompt.reward[rare])
    text = (
        f"MARA would pay {number(float(rewards[rare]))} for {quoted(aim.prompt.names[rare])} instead "
        f"of {number(float(aim.prompt.reward[rare]))}, to make all {len(best)} best answers equally "
        "probable"
    )
    recipe = case.recipe
    if recipe.normalise != "none":
        text += (
            ". Not with this recipe: dividing by the deviation scales the extra reward but not the "
            "KL, and the policy can collapse on the least likely answer; turn it off first"
        )
    elif is_forward(recipe):
        text += (
            ". Not with this recipe: it follows the forward KL, under which these rewards "
            "over-correct, and the least likely answer gets most; use a reverse KL, or substitute "
            "the reference's probabilities on the right answers"
        )
    if recipe.baseline == "mean" and recipe.place == "loss" and recipe.group_size:
        size = recipe.group_size
        text += (
            f". The group mean shortens the reward's gradient: with the trainer's own β in place of "
            f"the effective one the ratio^(1/{size}) would be left; a leave-one-out baseline has no "
            "such factor"
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


def featured_of(case: Case, prompt: Prompt, aim: Aim | None) -> Featured:
    """Numbers of the most informative prompt."""
    base = Featured(
        prompt=prompt.text,
        names=prompt.names,
        reward=_floats(prompt.reward),
        counts=tuple(int(x) for x in prompt.counts),
        reference=None if aim is None else _floats(np.exp(prompt.log_ref)),
        target=None,
        now=_floats(np.exp(prompt.log_now)),
    )
    if aim is None or aim.status & Status.NO_TARGET:
        return base
    flips = flips_of(case.recipe, case.beta, aim, np.random.default_rng(0), case.number)
    betas, shares = shares_over_beta(case.recipe, prompt, case.beta)
    rewards = mara_rewards(aim)
    return dataclasses.replace(
        base,
        target=_floats(np.exp(aim.log_target)),
        mara_reward=None if rewards is None else _floats(rewards),
        flips=tuple(dataclasses.asdict(flip) for flip in flips),
        betas=_floats(betas),
        shares=tuple(map(_floats, shares)),
        effective_beta=aim.effective_beta,
    )


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(x) for x in values)


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = [quoted(name) for name in itertools.islice(names, most)]
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def verdict_of(case: Case, statements: Sequence[Statement], aims: list[Aim]) -> tuple[str, ...]:
    """The page in a few sentences."""
    named: dict[str, Statement] = {}
    for statement in statements:
        named.setdefault(statement.name, statement)
    wanted = ["distance", "reference_ratio"]
    if not aims or case.beta == 0 or case.recipe.divergence is None:
        wanted = ["direction", "favoured", *wanted]
    else:
        wanted = ["family", "implied_beta", *wanted]
    if not aims:
        wanted += ["effective_beta", "pass@1"]
    flips = named.get("flip_beta")
    if flips is not None and flips.value is not None:
        wanted.append("flip_beta")
    chosen = [named[name].text for name in wanted if name in named and not named[name].refused]
    equal = named["zero_std_groups"]
    if (equal.value or 0) > 0.5:
        chosen.append(equal.text)
    if flips is not None and flips.refused:
        chosen.append(flips.text.split(". ")[0])
    return tuple(text.split("; ")[0] for text in chosen)
