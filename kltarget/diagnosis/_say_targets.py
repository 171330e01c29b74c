"""Statements that need the reference's log-probabilities: targets, flips, ratios, rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kltarget._core.distances import total_variation
from kltarget._core.status import Status
from kltarget._core.words import counted, number, quoted, ratio
from kltarget.diagnosis import _aims
from kltarget.diagnosis._aims import Aim
from kltarget.diagnosis._say_modes import modes_statements
from kltarget.diagnosis._say_rewards import INDEPENDENT, LARGE, ON_POLICY, SOURCE, Case, share
from kltarget.diagnosis._statement import FlipOfAnswers, Statement
from kltarget.evidence import Prompt, mean_interval
from kltarget.recipes._caveats import mara_obstacle

ENUMERATED = "the seen answers and one outcome for the rest of the reference are all there is"
UNSEEN_WORST = "unseen answers are rewarded as the worst seen"
AT_ONCE = "different answers part at their first token, so that a KL per token counts them whole"
TREE = "what was not seen to follow a prefix ends there, as one token"
FIRST = "the policy was still the reference at the first logged step"
WEIGHED = "answers weighed by π_ref/π"
SOFTMAX = "one softmax over answers, as if each were one token"


def assumptions(case: Case, prompt: Prompt) -> tuple[str, ...]:
    """What a statement on targets takes for granted."""
    per_token = ()
    if case.recipe.per_token:
        per_token = (AT_ONCE,) if prompt.at_once else (TREE,)
    source = {"first-step": (FIRST,), "weighted": (WEIGHED,)}.get(prompt.known, ())
    return ENUMERATED, UNSEEN_WORST, SOURCE, ON_POLICY, LARGE, *per_token, *source


def target_statements(
    case: Case, aims: list[Aim], flips: tuple[FlipOfAnswers, ...]
) -> list[Statement]:
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
    prompt, mean = aims[0].prompt, float(seen.mean())
    how = {
        "weighted": "weighed by π_ref/π, ",
        "first-step": "by the counts of the first logged step, ",
    }
    least = f" (least {share(seen.min())})" if len(aims) > 1 else ""
    text = (
        f"{how.get(prompt.known, '')}the seen answers hold {share(mean)} of the reference's mass"
        f"{least}, the rest is one unseen outcome of the lowest seen reward"
    )
    detail = ""
    if not aims[0].status & Status.NO_TARGET and not np.isneginf(prompt.log_ref[-1]):
        (other,) = _aims.aims_of(case.recipe, [_aims.best_unseen(prompt)], case.beta)
        apart = total_variation(other.log_target, aims[0].log_target)
        detail = f"; with the highest instead, the target would be {number(apart, 2)} away (TV)"
    by = FIRST if prompt.known == "first-step" else "the logged numbers are the reference's"
    return Statement("reference", text, detail, mean, None, (by,), len(aims), "prompts", tier=2)


def _favoured(case: Case, aim: Aim) -> list[Statement]:
    if case.recipe.charged_without_divergence and case.beta > 0:
        # The cost still acts, so the reward alone does not say where the path ends.
        return []
    prompt, best = aim.prompt, _best(aim.prompt)
    now = np.exp(prompt.log_now[best])
    value = float(now[0] / now.sum()) if now.sum() else None
    first = quoted(prompt.names[best[0]])
    text = f"there is no target {'at β = 0' if case.beta == 0 else 'for this recipe'}"
    detail = f"; {first} alone is best: any path that learns ends there"
    if len(best) > 1:
        names = _listed([prompt.names[i] for i in best])
        text += (
            f": every mixture of {names} is optimal, and exact policy "
            f"gradients from the reference end on the likeliest of them alone, {first} "
            f"({share(float(np.exp(prompt.log_ref[best[0]])))} of the reference)"
        )
        detail = "" if value is None else f". Now it has {share(value)} of their mass"
    size = int(prompt.late_counts.sum())
    by = (ENUMERATED, LARGE, SOFTMAX, "plain gradients: no momentum, no clip")
    return [Statement("favoured", text, detail, value, None, by, size, "late rollouts", tier=2)]


def _remarks(case: Case, aims: list[Aim]) -> list[Statement]:
    found, size = [], len(aims)
    words = {
        Status.SATURATED: "saturate{s}: normalised rewards outweigh the KL, and all but one in a "
        "million ends on the best answers, in the reference's proportions",
        Status.SEVERAL: "ha{ve} further fixed points",
        Status.CLIPPED: "lie{s} where the trainer cuts its KL estimate: answers beyond the cut are "
        "held by nothing and fall further",
    }
    details = {
        Status.SATURATED: "; large steps collapse onto one of them instead",
        Status.SEVERAL: "; the one that training from the reference reaches is used",
    }
    for bit, words_of in words.items():
        number_of = sum(bool(aim.status & bit) for aim in aims)
        if number_of:
            one = number_of == 1
            verb = words_of.format(s="s" if one else "", ve="s" if one else "ve")
            text = f"{number_of:,} of {counted(size, 'target')} {verb}"
            evidence = float(number_of), None, assumptions(case, aims[0].prompt), size, "prompts"
            name, detail = str(bit.name).lower(), details.get(bit, "")
            found.append(Statement(name, text, detail, *evidence, tier=2))
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
    i, j = best[:2].tolist()
    value, interval = _aims.reference_ratio(prompt, i, j, case.rng, case.number)
    names = f"{quoted(prompt.names[i])} and {quoted(prompt.names[j])}"
    text = f"the reference's ratio of {names} is {ratio(np.log(value))}"
    if held and _aims.along_tokens(case.recipe, prompt):
        target = float(aim.log_target[i] - aim.log_target[j])
        text = f"{names} have equal rewards, but a KL per token does not keep the reference's "
        text += f"ratio of {ratio(np.log(value))}: the target's is {ratio(target)}"
    elif held:
        text = f"{names} have equal rewards: the target's ratio stays the reference's, "
        text += f"{ratio(np.log(value))}, at every β"
    now, detail = prompt.log_now[[i, j]], ""
    if np.isfinite(now).all():
        detail = f"; now it is {ratio(float(now[0] - now[1]))}"
    sample = _sample(prompt, prompt.known == "first-step")
    evidence = value, interval, assumptions(case, prompt), *sample
    return [Statement("reference_ratio", text, detail, *evidence, tier=2)]


def _sample(prompt: Prompt, first: bool) -> tuple[int, str]:
    """The rollouts that a number rests on: those of the first step, or all."""
    if first:
        return int(prompt.first_counts.sum()), "rollouts of the first step"
    return int(prompt.counts.sum()), "rollouts"


def _flips(case: Case, aim: Aim, flips: tuple[FlipOfAnswers, ...]) -> list[Statement]:
    if aim.status & Status.NO_TARGET or case.beta == 0:
        return []
    found, by, names = [], assumptions(case, aim.prompt), aim.prompt.names
    for flip in flips:
        better, worse, beta, interval = (
            flip["better"],
            flip["worse"],
            flip["beta"],
            flip["interval"],
        )
        lead = aim.log_target[names.index(better)] - aim.log_target[names.index(worse)]
        side = "below" if case.beta < beta else "above"
        effective = detail = ""
        if 1e-6 < abs(flip["effective_beta"] / beta - 1) < np.inf:
            effective = f" (effective {number(flip['effective_beta'])})"
        text = (
            f"{quoted(better)} overtakes {quoted(worse)} below β = {number(beta)}{effective}: "
            f"the configured {case.beta:g} is {side}, so the target prefers "
            f"{quoted(worse if lead < 0 else better)}"
        )
        if 0.01 < abs(flip["other"] / beta - 1) < np.inf:
            detail = f"; were unseen answers as good as the best, at {number(flip['other'])}"
        evidence = beta, interval, by, *_sample(aim.prompt, interval is not None)
        found.append(Statement("flip_beta", text, detail, *evidence, tier=2))
    if found:
        return found
    if not _aims.pairs_of(aim.prompt):
        text = (
            "no two good answers change places at any β: the reference already prefers the "
            "better one of each pair, or they are rewarded equally"
        )
    elif _aims.scale_of(case.recipe, case.beta, aim) is not None:
        text = (
            "no two good answers change places: of some pairs the better one is less likely "
            "by the reference, but it overtakes at no β"
        )
    else:
        low, high = (number(x, 2) for x in _aims.searched(case.recipe, aim.prompt))
        text = (
            f"no two good answers were found to change places between β = {low} and {high}, "
            "though of some pairs the better one is less likely by the reference"
        )
    return [Statement("flip_beta", text, "", None, None, by, *_sample(aim.prompt, False), tier=2)]


def _gain(case: Case, aims: list[Aim]) -> list[Statement]:
    """Expected rewards: of the reference, now, and of the target."""
    wanted = np.isin(case.log.prompt, [aim.prompt.code for aim in aims]) & case.log.late
    if not wanted.any():
        return []
    groups, rows = np.unique(case.log.group[wanted], return_inverse=True)
    sums = np.bincount(rows, case.log.reward[wanted]) / np.bincount(rows)
    now, interval = mean_interval(sums)
    before = np.mean([np.exp(aim.prompt.log_ref) @ aim.prompt.reward for aim in aims])
    text = f"expected reward now {number(now, 3)}, of the reference {number(float(before), 3)}"
    if not aims[0].status & Status.NO_TARGET:
        target = np.mean([np.exp(aim.log_target) @ aim.prompt.reward for aim in aims])
        text += f", of the target {number(float(target), 3)}"
    evidence = now, interval, (*assumptions(case, aims[0].prompt), INDEPENDENT), len(groups)
    return [Statement("expected_reward", text, "", *evidence, "late groups", tier=2)]


def _mara(case: Case, aim: Aim) -> list[Statement]:
    rewards, best = _aims.mara_rewards(case.recipe, aim), _best(aim.prompt)
    if rewards is None or len(best) < 2:
        return []
    rare = int(best[-1])
    paid, logged = float(rewards[rare]), float(aim.prompt.reward[rare])
    text = (
        f"MARA would pay {number(paid)} for {quoted(aim.prompt.names[rare])} instead of "
        f"{number(logged)}, to make all {len(best)} best answers equally probable"
    )
    recipe, detail = case.recipe, ""
    # What a baseline shortens is in the effective β, and so in these rewards.
    if recipe.aim != "reverse" or recipe.normalized:
        detail = f". Not with this recipe: {mara_obstacle(recipe)}"
    if recipe.baseline_factor != 1:
        detail += (
            ". The group mean shortens the reward's gradient: with the trainer's own β in place of "
            f"the effective one the ratio^(1/{recipe.group_size}) would be left; a leave-one-out "
            "baseline has no such factor"
        )
    evidence = paid - logged, None, assumptions(case, aim.prompt), *_sample(aim.prompt, False)
    return [Statement("mara", text, detail, *evidence, tier=2)]


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = [quoted(name) for name in names[:most]]
    last = f"{len(names) - most} more" if len(names) > most else shown.pop()
    return " and ".join(filter(None, (", ".join(shown), last)))
