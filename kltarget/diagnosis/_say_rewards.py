"""Statements that need rewards and answers alone, and the recipe."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.stats import t as student

from kltarget import evidence
from kltarget._core.words import counted, quoted
from kltarget.diagnosis._statement import Statement
from kltarget.recipes import Recipe
from kltarget.recipes._followed import aimed_at

# Fewer groups than these, or a smaller part of all, are named beside their number.
_FEW, _PART = 30, 0.5

ON_POLICY = "on-policy: one update per batch, no clip of the ratio is active"
LARGE = "expected gradients: averages over many groups"
INDEPENDENT = "groups are independent draws"
PRESENT = "σ is that of the present policy, not of the target"
SOURCE = "the recipe is what the run did"
BY_RULE = "answers are told apart by the rule"

SEVERAL_TOKENS = (
    "this recipe's KL acts on every token, so that answers of several tokens have a target at each "
    "prefix, and the log does not say how likely the reference makes each token"
)
HOW_TO_LOG = (
    "ref_logp, the sum of the reference's token log-probabilities of each completion (TRL: "
    "kltarget.adapters.trl.LogProbsGRPOTrainer; verl: dump ref_log_prob and old_log_probs; any "
    "trainer: kltarget score LOG --model BASE, at the rollout temperature)"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """What all statements are made from."""

    log: evidence.Log
    groups: evidence.Groups
    recipe: Recipe
    beta: float
    threshold: float
    rng: np.random.Generator
    number: int
    told: bool = True
    """Whether the recipe was given; where not, nothing is said of one."""

    @property
    def late(self) -> np.ndarray:
        """Which groups are of the last third of the steps."""
        return self.groups.time >= self.log.late_from


def reward_statements(case: Case, answers_recur: bool = True) -> list[Statement]:
    headline, detail = aimed_at(case.recipe)
    by = (SOURCE, ON_POLICY)
    direction = Statement("direction", headline, detail, assumptions=by, unit="recipe")
    return [
        *([direction] if case.told else []),
        _equal_groups(case),
        *_coefficient(case),
        *_passes(case),
        *([_diversity(case)] if answers_recur else []),
    ]


def _equal_groups(case: Case) -> Statement:
    recipe, several = case.recipe, case.groups.size > 1
    chosen, alone = case.late & several, int((case.late & ~several).sum())
    if not chosen.any():
        text = "groups of one rollout say nothing of σ, the deviation of a group's rewards"
        return Statement("zero_std_groups", text, unit="groups")
    equal, total = int(case.groups.equal[chosen].sum()), int(chosen.sum())
    acts = recipe.aim != "none" or recipe.charged_without_divergence
    acting = ["the KL"] if case.beta > 0 and acts else []
    acting += ["the entropy bonus"] if recipe.entropy_bonus else []
    if recipe.zero_std == "drop":
        what = "the trainer drops them"
    elif recipe.baseline == "none" and (recipe.normalize != "group-std" or recipe.charged_before):
        what = "without a baseline their reward still counts"
    elif acting:
        what = f"only {' and '.join(acting)} {'acts' if len(acting) == 1 else 'act'} there"
    else:
        what = "they teach nothing"
    late = share(equal / total)
    few = f", {equal:,} of {total:,}," if total < _FEW else ""
    text = f"{late} of the groups in {case.log.late_span}{few} have equal rewards (σ = 0)"
    text += f": {what}" if case.told else ""
    detail = ""
    if total < several.sum():
        detail = f"; over the whole log {share(case.groups.equal[several].mean())}"
    if alone:
        verbs = ("says", "is") if alone == 1 else ("say", "are")
        of = f"{counted(alone, 'group')} of one rollout {verbs[0]} nothing of σ"
        detail += f"; {of} and {verbs[1]} not counted"
    numbers = equal / total, evidence.wilson_interval(equal, total), (INDEPENDENT,), total, "groups"
    return Statement("zero_std_groups", text, detail, *numbers, warning=equal / total > 0.5)


def coefficients(case: Case) -> np.ndarray | None:
    """The effective β of every late group with rewards that differ; None if it is one number.

    A recipe that divides by the deviation of a batch has one per batch, which is a logged step.
    """
    recipe = case.recipe
    if not recipe.normalized:
        return None
    chosen = case.late & ~case.groups.equal
    deviation = case.groups.deviation[chosen]
    if recipe.normalize == "batch-std":
        times = case.log.time[case.log.late]
        order = np.argsort(times, kind="stable")
        ends = np.flatnonzero(np.diff(times[order])) + 1
        batches = np.split(case.log.reward[case.log.late][order], ends)
        deviation = np.array(
            [rewards.std(ddof=min(recipe.ddof, rewards.size - 1)) for rewards in batches]
        )
        deviation = deviation[deviation > 0]
    return case.beta * recipe.effective_factor(recipe.reward_scale * deviation)


def _coefficient(case: Case) -> list[Statement]:
    recipe, beta = case.recipe, case.beta
    # A KL and something else together are no KL with another coefficient.
    beside = recipe.entropy_bonus or recipe.teacher
    moved = recipe.by_masses and not recipe.charged_before
    if beta == 0 or recipe.divergence is None or beside or moved:
        return []
    span = float(np.ptp(case.log.reward))
    size = recipe.group_size
    own = f" · {size}/{size - 1}" if recipe.baseline_factor != 1 and size else ""
    why = " (the mean of a group includes the sample itself)" if own else ""
    values = coefficients(case)
    if values is None:
        single = beta * recipe.effective_factor()
        scale = f" / {recipe.reward_scale:g}" if recipe.reward_scale != 1 else ""
        equals = f" = {beta:g}{own}{scale}{why}" if own or scale else ", the configured one"
        text = f"the effective β is {single:.4g}{equals}, the same for every prompt"
        detail = f"; the range of rewards, {span:.4g}, is {span / single:.3g} times that"
        by = (SOURCE, LARGE)
        return [Statement("effective_beta", text, detail, single, None, by, unit="recipe")]
    if not values.size:
        text = "no late group has rewards that differ, so its deviation says nothing of β"
        if (case.groups.size[case.late] < 2).all():
            text = "groups of one rollout have no deviation, so the log says nothing of β"
        return [Statement("effective_beta", text, assumptions=(INDEPENDENT,), unit="groups")]
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    least, half, most = span / np.array([high, middle, low])
    per_batch = recipe.normalize == "batch-std"
    unit, units = ("batch", "batches") if per_batch else ("group", "groups")
    few = "" if per_batch else resting(values.size, int(case.late.sum()))
    of = f"the {few} whose rewards differ" if few else units
    text = (
        f"dividing by the deviation makes the effective β = {beta:g}{own} · (σ + ε) differ by "
        f"{unit}{why}: "
    )
    if values.size == 1:
        total = 1 if per_batch else int(case.late.sum())
        one = f"one {unit}" if total == 1 else f"one of {total:,} groups"
        text += f"{middle:.3g} in the {one} whose rewards differ"
        times = f"{half:.3g} times"
    else:
        text += f"median {middle:.3g} (10 % to 90 % of {of}: {low:.3g} to {high:.3g})"
        times = f"{half:.3g} ({least:.3g} to {most:.3g}) times"
    detail = f"; the range of rewards, {span:.4g}, is {times} that"
    assumed = (SOURCE, PRESENT, INDEPENDENT)
    value, interval = evidence.median_interval(values)
    size, unit = values.size, units
    return [Statement("effective_beta", text, detail, value, interval, assumed, size, unit)]


def _passes(case: Case) -> list[Statement]:
    if math.isinf(case.threshold):
        return [Statement("pass@1", f"no pass@k: {_unknown(case)}", unit="", refused=True)]
    found, largest = [], int(np.median(case.groups.size[case.late]))
    for k in sorted({1, largest}):
        values = evidence.pass_at(case.groups, case.late, k)
        now, interval = evidence.share_interval(values)
        then = _then(case, evidence.pass_at(case.groups, case.groups.time == 0, k))
        few = resting(values.size, int(case.late.sum()))
        few = f" ({few})" if few else ""
        text = f"pass@{k} is {now:.3g} in {case.log.late_span}{few}{then}"
        if k == 1:
            text += f" (right: reward ≥ {case.threshold:g})"
        numbers = now, interval, (INDEPENDENT,), values.size, "groups"
        found.append(Statement(f"pass@{k}", text, "", *numbers))
    return found


def _unknown(case: Case) -> str:
    """Why what is right is not known."""
    values = np.unique(case.log.reward)
    give = "give the reward from which on an answer is right, threshold=… (--threshold)"
    if len(values) < 2:
        return f"all rewards are {values[0]:g}, so what is right the log does not show: {give}"
    if evidence.are_summed(case.log):
        several = f"{counted(len(case.log.parts), 'reward')} are added"
        return f"{several}, and their total does not say what is right: {give}"
    return f"rewards have {len(values):,} values, of which none says what is right: {give}"


def _then(case: Case, values: np.ndarray) -> str:
    """The mean of values of the first step, if there are more steps."""
    before, _ = evidence.share_interval(values)
    moved = case.log.num_times > 1 and np.isfinite(before)
    return f", {before:.3g} at the first logged step" if moved else ""


def _diversity(case: Case) -> Statement:
    log, groups = case.log, case.groups
    values = groups.differ[case.late]
    if not np.isfinite(values).any():
        text = "groups of one rollout say nothing of how much answers differ"
        return Statement("diversity", text, assumptions=(INDEPENDENT,), unit="groups")
    now, interval = evidence.share_interval(values)
    entropy, time, _ = evidence.answer_entropy(log)
    late = entropy[time >= log.late_from].mean()
    drop = f", {entropy[time == 0].mean():.3g} then" if log.num_times > 1 else ""
    size = int(np.isfinite(values).sum())
    few = resting(size, len(values))
    few = f" ({few})" if few else ""
    text = (
        f"two completions of a group have different answers with probability {now:.3g} in "
        f"{log.late_span}{few}{_then(case, groups.differ[groups.time == 0])}"
    )
    detail = f"; the entropy of a prompt's answers is {_nats(late)}{drop}"
    return Statement("diversity", text, detail, now, interval, (INDEPENDENT,), size, "groups")


def _nats(x: float) -> str:
    text = f"{x:.3g}"
    return f"{text} {'nat' if text == '1' else 'nats'}"


def diversity_moved(case: Case) -> bool:
    """Whether how often answers of a group differ has changed by more than chance would."""
    values = case.groups.differ
    then, now = (x[np.isfinite(x)] for x in (values[case.groups.time == 0], values[case.late]))
    if case.log.num_times < 2 or min(then.size, now.size) < 2:
        return False
    moved = abs(float(now.mean() - then.mean()))
    error = math.sqrt(then.var(ddof=1) / then.size + now.var(ddof=1) / now.size)
    if error == 0:
        return moved > 0
    # Student's factor allows for how few groups say how much they scatter.
    least = float(student.ppf(0.5 + evidence.LEVEL / 2, min(then.size, now.size) - 1))
    return moved > least * error


def right_answers(case: Case, counts: np.ndarray, late: np.ndarray) -> Statement:
    """How many different right answers prompts have, and how many are left."""
    span = case.log.late_span
    if math.isinf(case.threshold):
        text = f"which answers are right is not known: {_unknown(case)}"
        return Statement("right_answers", text, unit="", refused=True)
    some, several = int((counts > 0).sum()), int((counts > 1).sum())
    where = f"{several:,} of {counted(len(counts), 'prompt')}"
    where += f", none for {len(counts) - some:,}" if some < len(counts) else ""
    text = f"two or more different right answers were seen for {where}"
    detail = ""
    sampled = np.bincount(case.log.prompt[case.log.late], minlength=len(counts)) > 0
    kept = (counts > 1) & sampled
    if kept.any():
        left = share(float((late[kept] < 2).mean()))
        which = "those" if kept.sum() == several else f"the {kept.sum():,} of those sampled there"
        detail = (
            f"; in {span} {left} of {which} show at most one (fewer rollouts show fewer answers)"
        )
    value, by = float(counts[counts > 0].mean()) if some else 0.0, (BY_RULE,)
    return Statement("right_answers", text, detail, value, None, by, len(counts), "prompts")


def refusal(case: Case, excess: tuple[float, str] | None = None) -> Statement:
    """Why there is no flip β, and what would give one.

    Args:
        case: what statements are made from.
        excess: what the reference's probabilities of a prompt's different completions add up to,
            if that is impossible, and the prompt.
    """
    if excess is not None:
        text = (
            "no flip β and no target: the logged ref_logp cannot be log-probabilities of whole "
            f"completions: of the different ones of {quoted(excess[1])} exp(ref_logp) adds up to "
            f"{excess[0]:.3g}, more than 1"
        )
        detail = "; is it the mean over tokens, not their sum, or another base than e?"
        return Statement("flip_beta", text, f"{detail} Log {HOW_TO_LOG}", unit="", refused=True)
    if not case.told:
        text = "no flip β and no target: what the trainer does was not said"
        detail = ", recipe=… (--trainer, --config or --recipe)"
        return Statement("flip_beta", text, detail, unit="", refused=True)
    text = (
        "no flip β and no target: which of two answers is ahead at which β depends on how likely "
        "the reference makes them, and the log does not say"
    )
    detail = f". Log {HOW_TO_LOG}"
    if len(case.log.steps) and case.log.steps[0] <= 1:
        options = "reference='first-step', --reference-from-first-step"
        detail += f"; or take the first logged step as a sample of the reference: {options}"
    return Statement("flip_beta", text, detail, unit="", refused=True)


def little_seen() -> Statement:
    """Why logged probabilities of few completions say nothing of a target."""
    text = (
        "no flip β and no target: the completions that were seen hold less than half of the "
        "reference's mass, and too few have both log-probabilities to weigh them"
    )
    detail = "; more rollouts of each prompt, or logp beside ref_logp, would give one"
    return Statement("flip_beta", text, detail, unit="", refused=True)


def impossible_tokens() -> Statement:
    """Why logged probabilities of tokens that add up to more than 1 say nothing of a target."""
    text = (
        "no flip β and no target: the logged ref_token_logps cannot be log-probabilities of single "
        "tokens: those of the different tokens after a prefix add up to more than 1"
    )
    detail = "; are they the same tokens as token_ids, and the reference's at one temperature?"
    return Statement("flip_beta", text, detail, unit="", refused=True)


def several_tokens() -> Statement:
    """Why a KL per token says nothing of answers whose tokens are not known."""
    text = "no flip β, no target and no distance to it: " + SEVERAL_TOKENS
    detail = (
        ". Log token_ids and ref_token_logps, the tokens of each completion with the reference's "
        "log-probability of each, or num_tokens if every completion is one token"
    )
    return Statement("flip_beta", text, detail, unit="", refused=True)


def resting(size: int, total: int) -> str:
    """On how few groups a number rests, where they are few or few of all."""
    if size >= _FEW and size >= _PART * total:
        return ""
    return counted(size, "group") if size == total else f"{size:,} of {total:,} groups"


def share(x: float) -> str:
    """A share in percent."""
    return "nan" if math.isnan(x) else f"{100 * x:.3g} %"
