"""What a log says of itself and of the recipe, and where they contradict each other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from kltarget import evidence
from kltarget._core.words import counted, number
from kltarget.diagnosis._say_rewards import INDEPENDENT, SOURCE, Case, coefficients
from kltarget.diagnosis._statement import Statement
from kltarget.evidence import AdvantageFit, AdvantageRule, LoggedAdvantages
from kltarget.recipes import Recipe

_LEAST_GROUPS = 2
_SAME = 0.01
_LESS = {
    "mean": "the rewards less the group's mean",
    "leave-one-out": "the rewards less the mean of the others in the group",
    "none": "the rewards without a baseline of the group",
}
_TAKES = {
    "mean": "takes off the group's mean",
    "leave-one-out": "takes off the mean of the others",
    "none": "takes off no baseline of the group",
}
_BY = {
    "none": "not divided",
    "group-std": "divided by the group's standard deviation",
    "others-std": "divided by the others' standard deviation",
    "batch-std": "divided by the batch's standard deviation",
}
_DIVIDES = {
    "none": "does not divide",
    "group-std": "divides by the group's standard deviation",
    "others-std": "divides by the others' standard deviation",
    "batch-std": "divides by the batch's standard deviation",
}


def advantage_statement(
    case: Case, keys: Mapping[str, str]
) -> tuple[Statement | None, tuple[str, ...], dict[str, str | int]]:
    """What the logged advantages say of the recipe.

    Args:
        case: what statements are made from.
        keys: for fields of the recipe, the key of the trainer's configuration.

    Returns:
        A statement, which warns if the advantages are those of another recipe; None where they are
        those of this one, or say nothing. A line to note.
    """
    recipe, rewards = case.recipe, _returns(case)
    told = rewards is not None and bool(np.isfinite(case.log.advantage).any())
    if rewards is None or not told or recipe.by_masses:
        return None, (), {}
    logged = LoggedAdvantages(case.log, rewards, recipe.group_size)
    if logged.num_groups < _LEAST_GROUPS:
        return None, (), {}
    given = _rule_of(recipe)
    fit = logged.fit(given)
    if fit is not None and fit.exact:
        return None, (f"the logged advantages fit the recipe, {_in_groups(fit)}",), {}
    other = _other_fit(logged, given)
    if fit is not None and (other is None or not other.exact):
        if fit.steps:
            how = "the logged advantages fit the recipe but for a constant of each step"
            return None, (f"{how}, {_in_groups(fit)}",), {}
        return _contradiction(case, logged, fit, keys)
    cut = None if other is not None and other.exact else logged.fit(given, clipped=True)
    if cut is not None:
        how = f"the logged advantages fit the recipe but for a clip, {_in_groups(cut)}"
        return None, (how,), {}
    if other is None:
        other = _other_fit(logged, given, clipped=True)
    if other is not None:
        return _contradiction(case, logged, other, keys)
    turned = _reversed(case, rewards, given)
    if turned is not None:
        return turned, (), {}
    if case.recipe.place == "reward" and case.beta > 0:
        return _without_kl(case), (), {}
    text = (
        "the logged advantages are not what the recipe makes of the rewards, nor what another "
        f"baseline or divisor would ({counted(logged.num_groups, 'group')} compared)"
    )
    detail = (
        "; rewards that are shaped or normalised one by one, a penalty that is not logged, several "
        "turns, or groups that lost rows can be why"
    )
    return Statement("advantages", text, detail, unit="groups"), (), {}


def _returns(case: Case) -> np.ndarray | None:
    """What the recipe makes advantages of, for every rollout; None if the log does not say."""
    recipe, log = case.recipe, case.log
    rewards = recipe.reward_scale * log.reward
    if recipe.reward_bounds:
        rewards = np.clip(rewards, *recipe.reward_bounds)
    if recipe.place != "reward" or case.beta == 0:
        return rewards
    cut = recipe.log_ratio_clip or recipe.kl_clip
    if not recipe.charged_before or recipe.estimator != "k1" or cut:
        return None
    charged = rewards - case.beta * (log.logp - log.ref_logp)
    return charged if np.isfinite(charged).all() else None


def _rule_of(recipe: Recipe) -> AdvantageRule:
    return AdvantageRule(recipe.baseline, recipe.normalize, recipe.ddof, recipe.epsilon)


def _others(given: AdvantageRule) -> Iterator[AdvantageRule]:
    """Other rules, those of the same baseline and of one change first."""
    baselines = dict.fromkeys((given.baseline, *_LESS))
    divisors = dict.fromkeys((given.normalize, *_BY))
    degrees = dict.fromkeys((given.ddof, 0, 1))
    every = [
        AdvantageRule(*x, given.epsilon) for x in itertools.product(baselines, divisors, degrees)
    ]

    def changes(rule: AdvantageRule) -> tuple[bool, int]:
        apart = (rule.baseline != given.baseline) + (rule.normalize != given.normalize)
        return rule.ddof != given.ddof, apart

    for rule in sorted(every, key=changes):
        if rule != given and (rule.normalize != "none" or rule.ddof == given.ddof):
            yield rule


def _other_fit(
    logged: LoggedAdvantages, given: AdvantageRule, clipped: bool = False
) -> AdvantageFit | None:
    """The rule next to the given one that the advantages follow, if any; a factor of 1 first."""
    scaled = None
    for rule in _others(given):
        fit = logged.fit(rule, clipped=clipped)
        if fit is not None and fit.exact:
            return fit
        scaled = scaled or fit
    return scaled


def _contradiction(
    case: Case, logged: LoggedAdvantages, fit: AdvantageFit, keys: Mapping[str, str]
) -> tuple[Statement, tuple[str, ...], dict[str, str | int]]:
    recipe, rule = case.recipe, fit.rule
    given = _rule_of(recipe)
    fields = ("baseline", "normalize", "ddof")
    changed = [x for x in fields if getattr(rule, x) != getattr(given, x)]
    if rule.normalize == "none":
        changed = [x for x in changed if x != "ddof"]
    text = f"the logged advantages contradict the recipe: {_in_groups(fit)} they are "
    text += _words(rule, "ddof" in changed)
    if fit.factor != 1:
        text += f", {number(fit.factor, 3)} times"
    if fit.clipped:
        text += ", cut at their largest"
    if changed:
        what = [_TAKES[given.baseline]] if "baseline" in changed else []
        if {"normalize", "ddof"} & {*changed}:
            what.append(f"{_DIVIDES[given.normalize]}{_degrees(given, 'ddof' in changed)}")
        text += f", but the recipe {' and '.join(what)}"
    said, value, interval, number_of = "", None, None, fit.of
    own = _effective(case, logged, fit)
    if own is not None and own.size:
        value, interval = evidence.median_interval(own)
        if not np.ptp(own) > _SAME * value:
            value, interval = float(np.median(own)), None
        before = coefficients(case)
        if before is None:
            before = np.array([case.beta * recipe.effective_factor()])
        middle = f"{np.median(before):.3g}" if before.size else "that of the recipe"
        which = "median effective β" if interval else "effective β"
        said, number_of = f"; with them the {which} is {value:.3g}, not {middle}", own.size
    elif recipe.charged_before and changed:
        said = "; the target does not depend on it, as the KL is divided with the rewards"
    settings = ", ".join(
        f"{name}={getattr(rule, name)}" + (f" ({keys[name]})" if name in keys else "")
        for name in changed
    )
    detail = ". All other numbers are of the recipe that was given"
    detail += f"; that of the log has {settings}" if settings else ""
    told = Statement(
        *("advantages", text + said, detail, value, interval, (SOURCE, INDEPENDENT), number_of),
        unit="groups",
        warning=True,
    )
    return told, (), {name: getattr(rule, name) for name in changed}


def _effective(case: Case, logged: LoggedAdvantages, fit: AdvantageFit) -> np.ndarray | None:
    """The effective β of the groups by their advantages; None where there is no such number."""
    recipe, rule = case.recipe, fit.rule
    if case.beta == 0 or recipe.divergence is None or recipe.entropy_bonus or recipe.charged_before:
        return None
    if rule.normalize == "others-std":
        fields = {"baseline": rule.baseline, "normalize": rule.normalize, "ddof": rule.ddof}
        try:
            followed = dataclasses.replace(recipe, **fields)
        except ValueError:
            return None
        other = coefficients(dataclasses.replace(case, recipe=followed))
        return None if other is None else other / fit.factor
    slopes = logged.slopes(case.late)
    if not slopes.size:
        slopes = logged.slopes(np.ones_like(case.late))
    size = recipe.group_size or int(np.median(case.groups.size))
    own = size / (size - 1) if rule.baseline != "none" and size > 1 else 1.0
    return case.beta * own / slopes / recipe.reward_scale


def _reversed(case: Case, rewards: np.ndarray, given: AdvantageRule) -> Statement | None:
    """Where advantages are those of a rule with the other sign."""
    negated = dataclasses.replace(case.log, advantage=-case.log.advantage)
    logged = LoggedAdvantages(negated, rewards, case.recipe.group_size)
    fit = logged.fit(given) or _other_fit(logged, given)
    if fit is None:
        return None
    text = (
        "the logged advantages have the opposite sign of those of the recipe: "
        f"{_in_groups(fit)} they are {number(-fit.factor, 3)} times {_words(fit.rule, False)}"
    )
    detail = (
        "; either the log has them with the sign of a loss, or training makes answers of lower "
        "reward more likely. All other numbers are of the recipe that was given"
    )
    by = (SOURCE,)
    return Statement(
        "advantages", text, detail, -fit.factor, None, by, fit.of, "groups", warning=True
    )


def _without_kl(case: Case) -> Statement | None:
    """Where the recipe charges a KL to the reward, but the advantages hold none."""
    recipe = case.recipe
    bare = dataclasses.replace(case, beta=0.0)
    rewards = _returns(bare)
    if rewards is None:
        return None
    fit = LoggedAdvantages(case.log, rewards, recipe.group_size).fit(_rule_of(recipe))
    if fit is None or not fit.exact:
        return None
    text = (
        "the logged advantages contradict the recipe: "
        f"{_in_groups(fit)} they are those of the rewards alone, without the KL that the recipe "
        "charges to them"
    )
    detail = (
        "; either the trainer puts the KL elsewhere (place=loss), or it logs advantages before it "
        "charges them. All other numbers are of the recipe that was given"
    )
    return Statement(
        *("advantages", text, detail, None, None, (SOURCE,), fit.of), unit="groups", warning=True
    )


def _in_groups(fit: AdvantageFit) -> str:
    return f"in {fit.groups:,} of {fit.of:,} groups whose advantages are not 0"


def _words(rule: AdvantageRule, degrees: bool) -> str:
    return f"{_LESS[rule.baseline]}, {_BY[rule.normalize]}{_degrees(rule, degrees)}"


def _degrees(rule: AdvantageRule, told: bool) -> str:
    return f" (ddof {rule.ddof})" if told and rule.normalize != "none" else ""
