"""What a recipe means, in words and formulas: wherever the library says it, it asks here."""

from __future__ import annotations

import dataclasses

import numpy as np

from kltarget._core.words import compact
from kltarget.recipes._critical import critical_beta
from kltarget.recipes._recipe import Recipe
from kltarget.recipes._terms import TermReading
from kltarget.recipes.groups import make_groups

_P_REF = (0.1, 0.3, 0.5)
_STD = {
    "group-std": "the standard deviation of the group's rewards",
    "others-std": "the standard deviation of the rewards of the others in the group",
    "batch-std": "the standard deviation of the batch's rewards",
}
_KL = {
    "reverse": "KL(π‖π_ref)",
    "forward": "KL(π_ref‖π)",
    "total variation": "2 TV(π, π_ref)",
    "other": "D(π‖π_ref)",
}
_DIRECTIONS = {
    "reverse": "reverse, KL(π‖π_ref)",
    "forward": "forward, KL(π_ref‖π)",
    "total variation": "none; total variation instead",
    "none": "none",
}
_IN_LOSS = {
    "k1": "k1 in the loss has no expected gradient: it is differentiated as it stands, and the "
    "mean of ∇ log π under samples of π is 0",
    "k2": "k2 is differentiated as it stands, and its mean derivative under samples of π is the "
    "gradient of the reverse KL(π‖π_ref)",
    "k3": "k3 is differentiated as it stands, not weighted by π/sg(π), and its mean derivative "
    "under samples of π is the gradient of the forward KL(π_ref‖π)",
    "weighted-k1": "k1 carries the probability of its sample as the weight π/sg(π), and with it "
    "the mean derivative is the gradient of the reverse KL(π‖π_ref)",
    "weighted-k3": "k3 carries the probability of its sample as the weight π/sg(π), and with it "
    "the mean derivative is the gradient of the reverse KL(π‖π_ref)",
    "absolute": "the mean derivative of |log π/π_ref| is that of twice the total variation",
    "sampler": "the log-ratio is to the policy that drew the sample, not to a reference, and its "
    "square has no gradient there",
}


@dataclasses.dataclass(frozen=True)
class Reading:
    """A recipe, read.

    Args:
        recipe: the recipe.
        objective: what is maximised, with its sign.
        advantage: what a sample is weighed by.
        direction: ``"reverse"``, ``"forward"``, ``"total variation"``, ``"other"`` for another
            divergence, or ``"none"``.
        unused: the direction that a β above 0 would have; None where β is not 0.
        why: where the direction comes from.
        level: whether the KL is one of sequences or of tokens.
        beta: the recipe's.
        effective: formula of the coefficient that the target has.
        effective_beta: its value, None if it depends on a standard deviation that is not known.
        effective_text: formula and value, in words.
        critical: the critical β for each reference success probability, None where there is none.
        critical_text: what to make of it.
        family: one of ``"exponential tilt"``, ``"token-local exponential tilt"``, ``"hyperbolic"``,
            ``"token-local hyperbolic"``, ``"total variation"``, ``"none"``, or the name of another
            divergence.
        target: its formula.
        caveats: what is easily got wrong.
    """

    recipe: Recipe
    objective: str
    advantage: str
    direction: str
    unused: str | None
    why: str
    level: str
    beta: float | None
    effective: str | None
    effective_beta: float | None
    effective_text: str
    critical: dict[str, float] | None
    critical_text: str
    family: str
    target: str
    caveats: tuple[str, ...]

    @property
    def kl(self) -> str:
        """The direction with its formula."""
        return _named(self.recipe, self.direction)


def _named(recipe: Recipe, direction: str) -> str:
    if direction == "other" and recipe.divergence is not None:
        return f"none; another divergence instead, {recipe.divergence.title}"
    return _DIRECTIONS[direction]


def read(recipe: Recipe, reward_std: float | None = None) -> Reading:
    """What a recipe optimises, in words and formulas.

    Args:
        recipe: what a trainer does.
        reward_std: standard deviation of the reward, for a number where the effective β depends on
            it.

    Returns:
        The objective, the direction of the KL and where it comes from, the effective β as formula
        and number, the target's formula, and what is easily got wrong; "—" for what there is not.

    Example:
        >>> from kltarget import recipes
        >>> reading = recipes.read(recipes.recipe("trl-grpo==1.9.2", beta=0.04), reward_std=0.5)
        >>> reading.direction, reading.family
        ('forward', 'token-local hyperbolic')
        >>> print(f"{reading.effective} = {reading.effective_beta:.4f}")
        β G/(G − 1) (σ + 1e-4) = 0.0229
    """
    aimed = recipe.aim != "none"
    direction = "none" if recipe.beta == 0 else recipe.aim
    family, target = _target(recipe, direction)
    factor = recipe.effective_factor(reward_std)
    critical = _critical(recipe)
    return Reading(
        recipe=recipe,
        objective=_objective(recipe, direction),
        advantage=_advantage(recipe),
        direction=direction,
        unused=recipe.aim if recipe.beta == 0 else None,
        why=_why(recipe),
        level=_level(recipe),
        beta=recipe.beta,
        effective=recipe.effective_formula,
        effective_beta=factor * recipe.beta if aimed and recipe.beta and factor else None,
        effective_text=_effective_text(recipe, reward_std),
        critical=critical,
        critical_text=_critical_text(recipe, critical),
        family=family,
        target=target,
        caveats=tuple(_caveats(recipe, direction)),
    )


def in_words(recipe: Recipe) -> str:
    """A recipe in a line."""
    kl = f"{kl_term(recipe)} per {recipe.level}" if recipe.place != "none" else "no KL"
    baseline = {"none": "no baseline", "mean": "group mean"}.get(recipe.baseline, recipe.baseline)
    return f"{kl}, {baseline}, {'no std' if recipe.normalize == 'none' else recipe.normalize}"


def kl_term(recipe: Recipe) -> str:
    """The estimator and its place."""
    return "none" if recipe.place == "none" else f"{recipe.estimator_name} in the {recipe.place}"


def followed(recipe: Recipe) -> str:
    """What the gradient of the KL term is that of, and why."""
    if recipe.place == "none":
        return "no KL term is computed"
    if recipe.term is not None:
        return _of_term(recipe, recipe.term)
    if recipe.place == "loss":
        return _IN_LOSS[recipe.estimator_name]
    if recipe.aim == "none":
        return (
            f"{recipe.estimator} charged to the reward as a number follows the gradient of no "
            "divergence, and its target is not unique"
        )
    return (
        "k1 is charged to the reward as a number, and the policy gradient of that cost is the "
        "gradient of the reverse KL(π‖π_ref)"
    )


def _of_term(recipe: Recipe, term: TermReading) -> str:
    """What the gradient of a term that is known as a function is that of."""
    how = "differentiated as it stands" if recipe.place == "loss" else "charged as a number"
    text = f"{recipe.estimator_name} is {how}, and "
    if term.divergence is None:
        return f"{text}follows the gradient of no divergence: {term}"
    what = "the policy gradient of that cost" if recipe.place == "reward" else "its mean derivative"
    return "; ".join((f"{text}{what} is the gradient of {term.name}", *term.remarks))


def aimed_at(recipe: Recipe) -> tuple[str, str]:
    """What a run with this recipe and its β is drawn to, and why; and what follows from that."""
    bonus = recipe.entropy_bonus
    beside = f"the entropy bonus of {bonus:g} draws it to equally likely tokens"
    if recipe.beta == 0 or recipe.place == "none":
        what = "β = 0" if recipe.beta == 0 else "the recipe has no KL"
        text = f"{what}: nothing holds the policy to the reference"
        if bonus:
            return f"{text}, but {beside}", ""
        return f"{text}, so there is no target", (
            "; the path of training decides, and exact policy gradients favour the best answer "
            "that the reference makes likeliest"
        )
    text = followed(recipe)
    if recipe.charged_without_divergence:
        return f"{text}: its cost still acts, and the path of training decides", ""
    if recipe.aim == "none":
        return f"{text}: this KL term holds nothing on-policy, as if β were 0", ""
    if recipe.aim == "total variation":
        return text, ""
    if bonus:
        return f"{text}, and {beside}", ""
    law = _law(recipe, "", "", "Q" if recipe.per_token else "r", "·")
    of_tokens = "the target of every next token is {}, Q the mean reward after it, with"
    said = of_tokens.format(law) if recipe.per_token else f"the target is {law}, with"
    return f"{text}: {said} the effective β for β", ""


def mara_obstacle(recipe: Recipe, method: str = "augment") -> str | None:
    """Why a recipe's target is not uniform on the good outcomes although MARA was applied."""
    if recipe.divergence is None:
        return (
            f"{recipe.estimator_name} in place={recipe.place!r} holds no policy to its reference: "
            "there is nothing for the augmentation to undo"
        )
    # What has equal rewards and equal references has equal shares, whatever is done to them.
    if method == "substitute":
        return None
    if recipe.aim == "forward":
        return (
            "under the forward KL the augmentation over-corrects: the least likely right answer "
            'gets the most; use a reverse KL or method="substitute"'
        )
    if recipe.aim == "other":
        return (
            "the augmentation is made for the reverse KL, and over- or under-corrects under "
            'another divergence; use a reverse KL or method="substitute"'
        )
    if recipe.normalized:
        return (
            "the division by a standard deviation σ scales the augmentation but not the KL: for "
            "σ < 1 the order of the reference is reversed, and the policy collapses on the least "
            "likely right answer; train without it"
        )
    if recipe.baseline_factor != 1:
        return (
            "the group's mean includes the sample and shortens the augmentation but not the KL: "
            f"ratios keep the power 1/{recipe.group_size} of the reference's; use a leave-one-out "
            "baseline"
        )
    return None


def _advantage(recipe: Recipe) -> str:
    reward = _reward(recipe)
    charged = ""
    if recipe.place == "reward" and recipe.beta != 0:
        k = {"k1": "log π/π_ref", "k2": "½ log² π/π_ref", "absolute": "|log π/π_ref|"}
        cost = f" − β {k.get(recipe.estimator_name, recipe.estimator_name)}"
        if recipe.charged_before:
            reward, charged = "r′", f", r′ = {reward}{cost}"
    mean = {"mean": " − mean", "leave-one-out": " − mean of the others", "none": ""}
    top = f"{reward}{mean[recipe.baseline]}"
    if recipe.normalize == "none":
        return top + charged
    std = {"group-std": "std", "others-std": "std of the others", "batch-std": "std of the batch"}
    bottom = std[recipe.normalize]
    if recipe.epsilon:
        bottom = f"({bottom} + {compact(recipe.epsilon)})"
    elif " " in bottom:
        bottom = f"({bottom})"
    return (f"({top})" if " " in top else top) + f"/{bottom}{charged}"


def _objective(recipe: Recipe, direction: str) -> str:
    if recipe.charged_before and direction in ("reverse", "other"):
        # The regularised rewards are all equal at the target, so what they are divided by does not
        # move it.
        return f"maximise E_π[{_reward(recipe)}] − β {_KL[direction]}"
    regulariser = ""
    if direction != "none":
        kl = _KL[direction]
        regulariser = f" − β E_π[Σ_t {kl}(s_t)]" if recipe.per_token else f" − β {kl}"
    return f"maximise E_π[A(y)]{regulariser}, A = {_advantage(recipe)}"


def _reward(recipe: Recipe, reward: str = "r") -> str:
    if recipe.reward_scale != 1:
        reward = f"{compact(recipe.reward_scale)} {reward}"
    if recipe.reward_bounds:
        low, high = recipe.reward_bounds
        cut = f"±{compact(high)}" if low == -high else f"{compact(low)} … {compact(high)}"
        reward = f"clip({reward}, {cut})"
    return reward


def _why(recipe: Recipe) -> str:
    how = f"{followed(recipe)}."
    if recipe.beta != 0 or recipe.place == "none" or recipe.estimator == "sampler":
        return how
    above = "change nothing" if recipe.aim == "none" else f"make it {_named(recipe, recipe.aim)}"
    return f"β = 0 switches it off. A β above 0 would {above}: {how}"


def _level(recipe: Recipe) -> str:
    if recipe.place == "none":
        return "—"
    if recipe.level == "sequence":
        return "whole sequences"
    if recipe.place == "reward":
        return "tokens, each charged with the KL from its own position on: adds up to sequences"
    return "tokens: each prefix on its own; no gradient for which prefixes are reached"


def _law(recipe: Recipe, outcome: str, prefix: str, gain: str, times: str = " ") -> str:
    """The target of a KL, of an outcome such as ``"(y)"``."""
    ref = f"π_ref{outcome}"
    if recipe.aim == "reverse":
        return f"{ref}{times}exp({gain}/β)/Z{prefix}"
    if recipe.aim == "other":
        return f"{ref}{times}(f′)⁻¹(({gain} − λ{prefix})/β)"
    return f"β{times}{ref}/(Λ{prefix} − {gain})"


def _target(recipe: Recipe, direction: str) -> tuple[str, str]:
    """Family and formula."""
    if direction == "none":
        several = recipe.charged_without_divergence and recipe.beta != 0
        which = "none that is unique" if several else "none"
        return "none", f"{which}: the path of training decides where it ends"
    if direction == "total variation":
        return direction, (
            "total variation: mass moves from answers whose advantage is more than 2β below the "
            "best one to the best; the others keep the reference's probability"
        )
    family = {"reverse": "exponential tilt", "forward": "hyperbolic"}.get(direction)
    if family is None:
        assert recipe.divergence is not None
        family = f"target of {recipe.divergence.title}"
    if recipe.per_token:
        family, law = f"token-local {family}", _law(recipe, "(a|s)", "_s", "Q(s,a)")
        return family, f"{family}, π(a|s) = {law}, with Q(s,a) the mean advantage after token a"
    gain, where = "A(y)", ", with A(y) its mean advantage"
    if recipe.charged_before:
        gain, where = _reward(recipe, "r(y)"), ""
    return family, f"{family}, π(y) = {_law(recipe, '(y)', '', gain)}{where}"


def _effective_text(recipe: Recipe, reward_std: float | None) -> str:
    """Formula and number of the effective β, and what they depend on."""
    formula, scale = recipe.effective_formula, recipe.reward_scale
    if formula is None:
        return "—"
    size, shrunk = recipe.group_size, recipe.baseline_factor != 1
    mean = (
        "the group's mean includes the sample and shortens the gradient of the reward, not that "
        "of the KL"
    )
    factor = recipe.effective_factor(reward_std)
    remark = ""
    if recipe.normalized:
        if reward_std is None:
            groups = f"groups of {size}" if size else "large groups"
            remark = f", for rewards 0 and 1, {groups} and a success rate of 0.5"
        else:
            remark = f", for {f'G = {size} and ' if shrunk else ''}σ = {compact(reward_std)}"
        remark += f". σ is {_STD[recipe.normalize]} under the policy in training, so it moves"
        remark += f"; {mean}" if shrunk else ""
    elif shrunk:
        remark = f", for G = {size}: {mean}"
    elif recipe.baseline_shrinks:
        remark = "; β G/(G − 1) in groups of G samples"
    elif recipe.place == "reward" and recipe.normalize != "none":
        remark = ", because the KL is charged before the division, which then moves no target"
    shown = _even_chances(recipe) if factor is None else factor * scale
    amount = compact(shown * recipe.beta) if recipe.beta else f"{compact(shown)} β"
    formula = formula.removesuffix(f"/{compact(scale)}")
    text = f"{formula}{remark}" if amount == "1 β" else f"{formula} = {amount}{remark}"
    if recipe.normalized and _has_its_own_number(recipe):
        # The formula is that of large groups; in finite ones the deviation is of few rewards.
        text = f"about {text}"
        if factor is None:
            text = f"about {formula}; {amount}{remark.removeprefix(',')}"
    if scale != 1 and factor is not None and recipe.beta:
        text += f". For a reward of 1 instead of {compact(scale)} that is "
        text += compact(factor * recipe.beta)
    return text


def _has_its_own_number(recipe: Recipe) -> bool:
    """Whether groups are finite and each divides by its own deviation."""
    return recipe.group_size is not None and recipe.normalize != "batch-std"


def _even_chances(recipe: Recipe) -> float:
    """Effective β over β for rewards 0 and 1 and a policy that succeeds half of the time."""
    if not _has_its_own_number(recipe):
        return (0.5 + recipe.epsilon) / recipe.baseline_factor
    groups = make_groups(recipe, np.array([0.0, 1.0]))
    advantage, kept = groups.expected(np.array([0.5, 0.5]))
    return float(kept.mean() / (advantage[1] - advantage[0]))


def _critical(recipe: Recipe) -> dict[str, float] | None:
    of_group = recipe.normalize in ("group-std", "others-std")
    if recipe.aim != "reverse" or not of_group or recipe.charged_before:
        return None
    return {f"{p:g}": float(critical_beta(p)) for p in _P_REF}


def _critical_text(recipe: Recipe, critical: dict[str, float] | None) -> str:
    if critical is None:
        return "—"
    numbers = ", ".join(f"{beta:.3f}" for beta in critical.values())
    text = f"{numbers} if the reference succeeds with probability {', '.join(critical)}."
    if recipe.beta:
        below = [p for p, beta in critical.items() if recipe.beta < beta]
        which = "all of them" if len(below) == len(critical) else f"that of {' and '.join(below)}"
        where = f"below {which}" if below else "above all of them"
        text += f" β = {compact(recipe.beta)} is {where}."
    text += (
        " Below the critical β only certainty is left: the success rate runs to 1 and σ, which "
        "multiplies β, to 0. (Rewards 0 and 1, large groups"
    )
    text += "; answers of one token.)" if recipe.per_token else ".)"
    if recipe.group_size is not None:
        text += (
            f" In groups of {recipe.group_size} the success rate stays below 1 at every β: "
            "kltarget.implied.implied_target tells how far."
        )
    return text


def _caveats(recipe: Recipe, direction: str) -> list[str]:
    if direction != "none":
        return [*_of_target(recipe, direction), *_general(recipe)]
    path = "where training ends depends on how it gets there."
    unregularised = recipe.beta == 0 or recipe.place == "none"
    if recipe.charged_without_divergence and recipe.beta != 0:
        first = (
            f"The cost of {recipe.estimator_name} still acts, but leaves several targets: {path}"
        )
        return [first, *_general(recipe)]
    texts = []
    if unregularised:
        without = recipe.place == "none"
        what = "Without a KL there is no target" if without else "β = 0 has no target"
        texts.append(f"{what}: {path}")
    elif recipe.estimator == "k1":
        texts.append(
            "As far as targets go, this is β = 0 with more noise. With several updates per batch "
            "it pushes away from the sampler, not towards the reference."
        )
    dies = "Equally right answers do not keep the reference's ratio: the rarer one dies out"
    mara = ", and MARA, which acts through β, changes nothing" if unregularised else ""
    return [*texts, f"{dies}{mara}.", *_general(recipe)]


def _of_target(recipe: Recipe, direction: str) -> list[str]:
    """What is easily got wrong about a target that there is."""
    texts = []
    if direction == "forward":
        texts.append(
            "Logged as “KL”, the value of k3 estimates the reverse KL; the target is that of the "
            "forward one."
        )
    ratio = (
        "Equally rewarded answers keep the reference's ratio, at every β: a rare mode stays rare"
    )
    if recipe.per_token:
        ratio += (
            " (exactly so where they part at their last token; elsewhere the values of their "
            "branches matter too)"
        )
    texts.append(f"{ratio}. MARA (kltarget.mara) is what changes that.")
    obstacle = mara_obstacle(recipe) if recipe.divergence else None
    return [*texts, f"What defeats MARA: {obstacle}."] if obstacle else texts


def _general(recipe: Recipe) -> list[str]:
    """What holds whatever the target."""
    texts = []
    if recipe.length == "mean":
        texts.append("Each token weighs 1/|y|: where lengths differ, long answers count for less.")
    if recipe.eos == "cut":
        texts.append(
            "The token that ends an answer is cut off before the loss: nothing holds its "
            "probability to the reference's, and it is what the other tokens leave."
        )
    if recipe.kl_length not in (None, recipe.length) and recipe.aim != "none":
        texts.append(
            "The KL is averaged over its own sequence and the reward over the batch: an answer "
            "of length |y| sees β times mean|y|/|y|, so long answers are regularised less."
            if (recipe.length, recipe.kl_length) == ("batch-mean", "mean")
            else "Reward and KL are averaged differently, so β depends on the length."
        )
    if recipe.zero_std == "drop":
        texts.append(
            "Groups of equal rewards are left out, their KL with them: the surer the policy, the "
            "less it is regularised."
        )
    log_ratio, kl = recipe.log_ratio_clip, recipe.kl_clip
    if recipe.place == "loss" and recipe.aim != "none" and (log_ratio or kl):
        cuts = [f"a log-ratio beyond ±{compact(log_ratio)}"] if log_ratio else []
        cuts += [f"a KL estimate beyond {compact(kl)}"] if kl else []
        texts.append(f"The KL has no gradient at {' or '.join(cuts)} nats.")
    elif recipe.place == "reward" and log_ratio and recipe.beta != 0:
        texts.append(
            f"Log-ratios are cut at ±{compact(log_ratio)} nats: straying further costs no more."
        )
    if recipe.updates_per_batch > 1:
        texts.append(
            f"{recipe.updates_per_batch} updates per batch: all but the first are off-policy, "
            "which these statements leave out."
        )
    return texts
