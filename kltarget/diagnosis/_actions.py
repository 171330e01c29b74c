"""What to do about a run: one to three things, by its grade, its cause and its recipe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kltarget._core.status import Status
from kltarget._core.words import number
from kltarget.diagnosis._action import Action
from kltarget.diagnosis._aims import Aim, mara_rewards
from kltarget.diagnosis._grade import Grading, unregularised
from kltarget.diagnosis._keeping_beta import keeping_beta
from kltarget.diagnosis._say_rewards import Case, coefficients
from kltarget.diagnosis._statement import Statement
from kltarget.recipes import Preset
from kltarget.recipes._caveats import mara_obstacle
from kltarget.recipes.configs._spelling import setting_of

_MOST = 3
# The range of rewards is so many times the effective β or more: the KL hardly weighs.
_OUTWEIGHED = 20
# A smaller share of the range of rewards is not worth more training.
_NOTICED = 0.05
# Regularisers that have a gradient, the reverse KL's first.
_ACTING = ("weighted-k3", "weighted-k1", "k2", "k3")
_REVERSE = _ACTING[:3]
_PRESETS = {
    **dict.fromkeys(("trl", "trl-logp", "trl-table"), "trl-grpo"),
    **dict.fromkeys(("prime-rl", "prime-rl-tokens"), "prime-rl"),
    "verl": "verl-grpo",
    "open-instruct": "open-instruct",
    "nemo-rl": "nemo-rl",
    "skyrl": "skyrl",
    "tunix": "tunix",
}
"""The preset that is likeliest where a format is known."""
_RATES = {
    "verl": "actor_rollout_ref.actor.optim.lr",
    **dict.fromkeys(("trl", "unsloth", "ms-swift", "open-instruct"), "learning_rate"),
}
"""What the learning rate is called, by how a preset's name begins."""
_SEEN = {"boxed": "\\boxed was", "answer": "<answer> tags were", "number": "numbers were"}


@dataclasses.dataclass(frozen=True, eq=False)
class Advice:
    """What actions are chosen by.

    Attributes:
        case: what statements are made from.
        grading: the grade.
        aims: targets.
        named: statements by name, the first of each.
        preset: of the trainer, if it was named.
        format: of the files, if it is known.
        rule: the rule that would tell answers apart, if there is one.
        shown: fields of the recipe that the logged advantages have otherwise.
        steered: whether a controller moves β, so that what it is set to says little.
    """

    case: Case
    grading: Grading
    aims: Sequence[Aim]
    named: Mapping[str, Statement]
    preset: Preset | None
    format: str | None
    rule: str | None
    shown: Mapping[str, str | int]
    steered: bool

    @property
    def lost(self) -> bool:
        return self.grading.grade in ("narrowing", "collapsed")

    @property
    def unregularised(self) -> bool:
        """Whether the recipe is known to hold the policy to nothing."""
        return self.case.told and unregularised(self.case.recipe, self.case.beta)

    def setting(self, field: str, value: float | str) -> tuple[str, float | str]:
        """The key and the value of the trainer, or of the recipe."""
        if self.preset is None:
            return field, value
        found = setting_of(self.preset, field, value)
        if found is not None:
            return found
        return self.preset.keys.get(field, field).split(" = ")[0], value

    def set(self, field: str, value: float | str, why: str) -> Action:
        key, spelled = self.setting(field, value)
        shown = number(spelled) if isinstance(spelled, float) else spelled
        return Action(f"set {key}: {shown}", key, spelled, why)


def actions_of(advice: Advice) -> tuple[Action, ...]:
    """One to three actions, the first one first."""
    first = (_read, _recipe, _contradicted, _regulariser, _failing)
    rules = (*first, _beta, _division, _path, _mara, _log)
    found: dict[str, Action] = {}
    for rule in rules:
        for action in rule(advice):
            found.setdefault(action.key or action.text, action)
    if not found:
        found[""] = _on_its_way(advice)
    return tuple(found.values())[:_MOST]


def _read(advice: Advice) -> Iterator[Action]:
    """What would let the log be read."""
    if "answers" in advice.named:
        rule = advice.rule
        if rule is None:
            text = "say what tells answers apart: add --answer 'regex:…'"
            why = "every completion is its own answer, so none recurs"
        else:
            spelled = f"'{rule}'" if ":" in rule else rule
            text = f"add --answer {spelled}"
            what = _SEEN.get(rule, "a word that recurs was")
            why = f"every completion is its own answer, and {what} seen in most"
        yield Action(text, "--answer", rule, why)
    elif math.isinf(advice.case.threshold):
        text = "say from which reward on an answer is right: add --threshold"
        yield Action(text, "--threshold", None, "rewards alone do not show which answers are right")


def _recipe(advice: Advice) -> Iterator[Action]:
    """How to give the recipe."""
    if advice.case.told:
        return
    name = _PRESETS.get(advice.format or "")
    text = f"say what the trainer does: --trainer {name} --beta β"
    if name is None:
        text = "say what the trainer does: --trainer, --config or --recipe (see kltarget recipe)"
    why = "without it there is no target, and no cause of what was lost"
    yield Action(text, "--trainer", name, why)


def _contradicted(advice: Advice) -> Iterator[Action]:
    """The recipe that the log shows, where it is another."""
    if not advice.shown:
        return
    fields = ",".join(f"{name}={value}" for name, value in advice.shown.items())
    why = "the logged advantages contradict the recipe, and all other numbers are of the one given"
    yield Action(f"give the recipe that the log shows: --recipe {fields}", "--recipe", fields, why)


def _regulariser(advice: Advice) -> Iterator[Action]:
    """A regulariser where none acts."""
    case, recipe = advice.case, advice.case.recipe
    # A β that was set and does nothing is a mistake, whatever became of the run.
    idle = advice.unregularised and case.beta > 0 and recipe.aim == "none"
    if not idle and not (advice.lost and advice.grading.cause == "unregularised"):
        return
    if recipe.place == "none":
        why = "the recipe has no KL, so nothing holds the policy to the reference"
        yield advice.set("place", "loss", why)
    elif recipe.aim == "none":
        why = f"{recipe.estimator_name} in the {recipe.place} has no mean gradient: β does nothing"
        yield advice.set("estimator", _spelled(advice, _ACTING), why)
    if case.beta > 0 or advice.steered:
        return
    key, _ = advice.setting("beta", 1.0)
    found = None
    if advice.aims and recipe.aim != "none":
        found = keeping_beta(recipe, advice.aims, case.beta, case.threshold)
    if found is None:
        text = f"set {key} above 0; kltarget forecast, on samples of the base model, says how far"
        why = "at β = 0 nothing holds the policy to the reference"
        yield Action(text, key, None, why)
        return
    why = (
        f"at β = 0 there is no target; there it gains {100 * found.gain:.0f} % of the reward that "
        f"there is to gain and keeps {100 * found.kept:.0f} % of how right answers differ"
    )
    yield advice.set("beta", found.beta, why)


def _beta(advice: Advice) -> Iterator[Action]:
    """A larger β where the target asks for the loss."""
    case = advice.case
    if not advice.lost or advice.grading.cause != "target":
        return
    if advice.steered:
        key, _ = advice.setting("kl_target", 1.0)
        why = "a controller moves β until the KL is that far: the less of it, the more is kept"
        yield Action(f"lower {key}", key, None, why)
        return
    found = keeping_beta(case.recipe, advice.aims, case.beta, case.threshold)
    if found is None:
        return
    key, value = advice.setting("beta", found.beta)
    shown = number(value) if isinstance(value, float) else value
    why = (
        f"from there on the target keeps {100 * found.kept:.0f} % of how right answers differ; it "
        f"gains {100 * found.gain:.0f} % of the reward that there is to gain"
    )
    yield Action(f"raise {key} above {shown}", key, value, why)


def _division(advice: Advice) -> Iterator[Action]:
    """No division by a deviation, where it leaves next to no KL."""
    case, recipe = advice.case, advice.case.recipe
    acts = case.told and case.beta > 0 and recipe.aim != "none" and recipe.normalized
    if not advice.lost or not acts or recipe.normalize == "none":
        return
    saturated = sum(bool(aim.status & Status.SATURATED) for aim in advice.aims)
    if saturated:
        why = f"divided by σ, {saturated:,} of {len(advice.aims):,} targets saturate: the KL is "
        why += "outweighed where the policy is sure"
        yield advice.set("normalize", "none", why)
        return
    values = None if recipe.by_masses else coefficients(case)
    if values is None or not values.size:
        return
    middle, span = float(np.median(values)), float(np.ptp(case.log.reward))
    if span >= _OUTWEIGHED * middle:
        why = f"the division by σ makes the effective β {number(middle, 3)}, and smaller as the "
        why += "policy gets sure"
        yield advice.set("normalize", "none", why)


def _path(advice: Advice) -> Iterator[Action]:
    """Smaller steps, or more of them, where the target keeps more than the policy."""
    kept = advice.grading.kept
    if not advice.lost or advice.grading.cause != "path" or kept is None:
        return
    if kept.now > 0 and advice.grading.grade == "narrowing" and _is_far(advice):
        why = "the target keeps more, and rare right answers are still sampled: the KL brings them "
        why += "back"
        yield Action("train longer", "", None, why)
        return
    why = "the target keeps more right answers than the run: large steps from few samples lost them"
    yield _smaller_steps(advice, why)


def _failing(advice: Advice) -> Iterator[Action]:
    """Smaller steps where right answers went altogether."""
    if advice.grading.failing:
        why = "right completions became few, which no target asks for if these are its rewards"
        yield _smaller_steps(advice, why)


def _smaller_steps(advice: Advice, why: str) -> Action:
    name = advice.preset.name if advice.preset is not None else "trl"
    key = next((key for start, key in _RATES.items() if name.startswith(start)), "")
    lower = f"a lower {key or 'learning rate'}"
    text = f"take smaller steps: {lower}, larger groups, from an earlier checkpoint"
    return Action(text, key, None, why)


def _mara(advice: Advice) -> Iterator[Action]:
    """MARA, or what stands in its way."""
    case, recipe = advice.case, advice.case.recipe
    if not advice.lost or not any(_several_best(case, aim) for aim in advice.aims):
        return
    # The anchor can be made with the β that acts, so a group's mean is no obstacle.
    plain = (
        dataclasses.replace(recipe, baseline="leave-one-out")
        if recipe.baseline_factor != 1
        else recipe
    )
    obstacle = mara_obstacle(plain)
    if obstacle is None:
        name = advice.preset.name if advice.preset is not None else ""
        of_trl = {"trl-grpo": "MaraGRPOTrainer", "trl-rloo": "MaraRLOOTrainer"}.get(name)
        key = f"kltarget.adapters.trl.{of_trl}" if of_trl else "kltarget.adapters.mara_rewards"
        why = "equally good answers keep the reference's ratio at every β; with it they come out "
        why += "equally probable"
        yield Action(f"use MARA: {key}", key, None, why)
    elif recipe.aim in ("forward", "other"):
        why = f"for MARA, which would make equally good answers equally probable: {obstacle}"
        yield advice.set("estimator", _spelled(advice, _REVERSE), _first_part(why))
    elif recipe.normalize != "none":
        why = f"for MARA, which would make equally good answers equally probable: {obstacle}"
        yield advice.set("normalize", "none", _first_part(why))


def _log(advice: Advice) -> Iterator[Action]:
    """Log-probabilities, where the log lacks those that would tell more."""
    case, named = advice.case, advice.named
    if advice.grading.grade == "held" or not case.told:
        return
    if np.isfinite(case.log.ref_logp).any():
        flips = named.get("flip_beta")
        if not advice.aims and flips is not None and flips.refused and "token_ids" in flips.detail:
            text = (
                "log token_ids and ref_token_logps, the reference's log-probability of each token"
            )
            why = "the KL acts on every token, so there is a target at each prefix"
            yield Action(text, "ref_token_logps", None, why)
        return
    recipe = case.recipe
    if recipe.teacher or recipe.combine != "sum" or recipe.charged_without_divergence:
        # There is no target, whatever is logged.
        return
    why = "they give the target, the β at which answers change places, and the cause of a loss"
    if advice.unregularised:
        why = "they tell whether right answers were lost, and from which β on a target keeps them"
    name, text = advice.preset.name if advice.preset is not None else "", ""
    if name.startswith("verl") or (not name and advice.format == "verl"):
        key = "ref_log_prob"
        text = "log reference log-probabilities: dump ref_log_prob and old_log_probs"
    elif case.beta > 0 and (name == "trl-grpo" or (not name and advice.format == "trl")):
        key = "kltarget.adapters.trl.LogProbsGRPOTrainer"
        text = f"log reference log-probabilities: train with {key}"
    else:
        key = "kltarget score"
        text = "log reference log-probabilities: kltarget score LOG --model BASE"
    yield Action(text, key, None, why)


def _on_its_way(advice: Advice) -> Action:
    grading = advice.grading
    if grading.single:
        why = "prompts have next to one right answer each, so there are none to keep apart"
        return Action("nothing to change", "", None, why)
    if grading.grade == "unknown":
        why = "with more rollouts of prompts that recur, the loss of right answers can be told"
        return Action("log more rollouts", "", None, why)
    if grading.grade == "held" and _is_far(advice):
        distance = advice.named["distance"]
        far = number(distance.value if distance.value is not None else math.nan, 2)
        why = f"right answers are kept, and the run is {far} away from its target (TV)"
        return Action("train longer", "", None, why)
    if grading.grade == "held":
        behind = _behind(advice)
        if behind:
            why = f"right answers are kept, and the mean reward is {behind}"
            return Action("train longer", "", None, why)
        return Action("nothing to change", "", None, "right answers are kept")
    if grading.cause == "unknown" and advice.aims and grading.kept is not None:
        why = "whether the target or the path lost right answers, so few cannot tell"
        return Action("log more rollouts", "", None, why)
    why = "no target of this recipe is known that keeps more"
    return Action("look at the path of training", "", None, why)


def _is_far(advice: Advice) -> bool:
    return "distance" in advice.named and advice.named["distance"].warning


def _behind(advice: Advice) -> str:
    """That less than half of what the target gains is gained yet; empty where more is."""
    reward = advice.named.get("expected_reward")
    if reward is None or reward.interval is None or reward.value is None:
        return ""
    if any(aim.status & Status.NO_TARGET for aim in advice.aims):
        return ""
    reference, target = (
        float(np.mean([np.exp(law(aim)) @ aim.prompt.reward for aim in advice.aims]))
        for law in (lambda aim: aim.prompt.log_ref, lambda aim: aim.log_target)
    )
    # A target that is the reference is no way off.
    least = _NOTICED * float(np.ptp(advice.case.log.reward))
    if target - reference < least or reward.interval[1] > (reference + target) / 2:
        return ""
    return f"{number(reward.value, 3)} where the target has {number(target, 3)}"


def _several_best(case: Case, aim: Aim) -> bool:
    """Whether a prompt has two best answers whose reward MARA would change."""
    if case.beta == 0 or aim.status & Status.NO_TARGET or mara_rewards(case.recipe, aim) is None:
        return False
    reward = aim.prompt.reward[:-1][aim.prompt.log_ref[:-1] > -np.inf]
    return int((reward == reward.max()).sum()) > 1


def _spelled(advice: Advice, estimators: Sequence[str]) -> str:
    """The first estimator that the trainer has; the first that needs no weight otherwise."""
    if advice.preset is not None:
        for estimator in estimators:
            if setting_of(advice.preset, "estimator", estimator) is not None:
                return estimator
    return "k2"


def _first_part(text: str) -> str:
    return text.partition(";")[0]
