"""What a recipe optimises, in words and formulas: the content of ``kltarget recipe``."""

from __future__ import annotations

import dataclasses

import numpy as np

from kltarget._core.words import number as short_number
from kltarget.divergences import ForwardKL
from kltarget.recipes._critical import critical_beta
from kltarget.recipes._groups import make_groups
from kltarget.recipes._recipe import Recipe

P_REF = (0.1, 0.3, 0.5)
_STD = {
    "group-std": "the standard deviation of the group's rewards",
    "others-std": "the standard deviation of the rewards of the others in the group",
    "batch-std": "the standard deviation of the batch's rewards",
}


@dataclasses.dataclass(frozen=True)
class Reading:
    """A recipe, read.

    Args:
        recipe: the recipe.
        objective: what is maximised, with its sign.
        advantage: what a sample is weighed by.
        direction: ``"reverse"``, ``"forward"``, ``"total variation"`` or ``"none"``.
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
            ``"token-local hyperbolic"``, ``"total variation"``, ``"none"``.
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
        return _named(self.direction)


def number(x: float) -> str:
    """A number as people write it: 0.001, but 1e-4."""
    text = short_number(x)
    mantissa, e, exponent = text.partition("e")
    if not e and 0 < abs(x) < 1e-3:
        mantissa, e, exponent = f"{x:.3e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}" if e else text


def read(recipe: Recipe, reward_std: float | None = None) -> Reading:
    """Says what a recipe optimises; with a standard deviation of the reward, with numbers."""
    pulls = _pull(recipe)
    direction = "none" if recipe.beta == 0 else pulls
    family, target = _target(recipe, direction)
    formula, value, text = _effective(recipe, direction, pulls, reward_std)
    critical = _critical(recipe, pulls)
    return Reading(
        recipe=recipe,
        objective=_objective(recipe, direction),
        advantage=_advantage(recipe),
        direction=direction,
        unused=pulls if recipe.beta == 0 else None,
        why=_why(recipe, direction, pulls),
        level=_level(recipe),
        beta=recipe.beta,
        effective=formula,
        effective_beta=value,
        effective_text=text,
        critical=critical,
        critical_text=_critical_text(recipe, critical),
        family=family,
        target=target,
        caveats=tuple(_caveats(recipe, direction, pulls)),
    )


def _pull(recipe: Recipe) -> str:
    """The divergence whose gradient a regulariser of coefficient above 0 follows."""
    if recipe.place == "loss" and recipe.estimator == "absolute":
        return "total variation"
    if recipe.divergence is None:
        return "none"
    return "forward" if isinstance(recipe.divergence, ForwardKL) else "reverse"


def _named(direction: str) -> str:
    return {
        "reverse": "reverse, KL(π‖π_ref)",
        "forward": "forward, KL(π_ref‖π)",
        "total variation": "none; total variation instead",
        "none": "none",
    }[direction]


def _costs(recipe: Recipe) -> bool:
    """Whether a cost without a divergence is charged to the reward."""
    return recipe.place == "reward" and recipe.divergence is None and recipe.beta != 0


def _token_local(recipe: Recipe) -> bool:
    return recipe.place == "loss" and recipe.level == "token"


def _advantage(recipe: Recipe) -> str:
    reward = _reward(recipe)
    charged = ""
    if recipe.place == "reward" and recipe.beta != 0:
        k = {"k1": "log π/π_ref", "k2": "½ log² π/π_ref", "absolute": "|log π/π_ref|"}
        cost = f" − β {k.get(recipe.estimator, 'k3')}"
        if recipe.charged_before:
            reward, charged = "r′", f", r′ = {reward}{cost}"
    mean = {"mean": " − mean", "leave-one-out": " − mean of the others", "none": ""}
    top = f"{reward}{mean[recipe.baseline]}"
    if recipe.normalise == "none":
        return top + charged
    std = {"group-std": "std", "others-std": "std of the others", "batch-std": "std of the batch"}
    bottom = std[recipe.normalise]
    if recipe.epsilon:
        bottom = f"({bottom} + {number(recipe.epsilon)})"
    elif " " in bottom:
        bottom = f"({bottom})"
    return (f"({top})" if " " in top else top) + f"/{bottom}{charged}"


def _objective(recipe: Recipe, direction: str) -> str:
    advantage = _advantage(recipe)
    if recipe.charged_before and direction == "reverse":
        # The regularised rewards are all equal at the target, so what they are divided by does not
        # move it.
        return f"maximise E_π[{_reward(recipe)}] − β KL(π‖π_ref)"
    name = {
        "none": "",
        "reverse": "KL(π‖π_ref)",
        "forward": "KL(π_ref‖π)",
        "total variation": "2 TV(π, π_ref)",
    }[direction]
    if name:
        name = f" − β E_π[Σ_t {name}(s_t)]" if _token_local(recipe) else f" − β {name}"
    return f"maximise E_π[A(y)]{name}, A = {advantage}"


def _reward(recipe: Recipe, reward: str = "r") -> str:
    if recipe.reward_scale != 1:
        reward = f"{number(recipe.reward_scale)} {reward}"
    if recipe.reward_clip is not None:
        reward = f"clip({reward}, ±{number(recipe.reward_clip)})"
    return reward


def _why(recipe: Recipe, direction: str, pulls: str) -> str:
    if recipe.place == "none":
        return "no KL term is computed."
    if recipe.estimator == "sampler":
        return (
            "the log-ratio is to the policy that drew the sample, which is the policy itself: its "
            "square has no gradient there, and no reference enters."
        )
    if recipe.place == "reward":
        if recipe.estimator == "k1":
            how = (
                "k1 is charged to the reward as a number, and the policy gradient of that cost is "
                "the gradient of KL(π‖π_ref)."
            )
        else:
            how = (
                f"{recipe.estimator} charged to the reward as a number is not the derivative of "
                "any divergence, and its target is not unique."
            )
    else:
        how = {
            "k1": "k1 is differentiated as it stands, and the mean of ∇ log π under samples of π "
            "is 0: it adds noise, not regularisation.",
            "k2": "k2 is differentiated as it stands, and its mean derivative under samples of π "
            "is the gradient of KL(π‖π_ref).",
            "k3": "the value of k3 estimates KL(π‖π_ref), but it is differentiated as it stands, "
            "and the mean of that under samples of π is the gradient of KL(π_ref‖π).",
            "weighted-k3": "k3 carries the probability of its sample as the weight π/sg(π), and "
            "with it the mean derivative is the gradient of KL(π‖π_ref).",
            "absolute": "the mean derivative of |log π/π_ref| is that of twice the total "
            "variation.",
        }[recipe.estimator]
    if recipe.beta == 0:
        above = "change nothing" if pulls == "none" else f"make it {_named(pulls)}"
        return f"β = 0 switches it off. A β above 0 would {above}: {how}"
    return how


def _level(recipe: Recipe) -> str:
    if recipe.place == "none":
        return "—"
    if recipe.place == "reward":
        if recipe.level == "token":
            return "tokens, each charged with the KL from its own position on: adds up to sequences"
        return "whole sequences"
    if recipe.level == "sequence":
        return "whole sequences"
    return "tokens: each prefix on its own; no gradient for which prefixes are reached"


def _target(recipe: Recipe, direction: str) -> tuple[str, str]:
    if direction == "none":
        which = "none that is unique" if _costs(recipe) else "none"
        return "none", f"{which}: the path of training decides where it ends"
    if direction == "total variation":
        return "total variation", (
            "total variation: mass moves from answers whose advantage is more than 2β below the "
            "best one to the best; the others keep the reference's probability"
        )
    if _token_local(recipe):
        if direction == "reverse":
            return "token-local exponential tilt", (
                "token-local exponential tilt, π(a|s) = π_ref(a|s) exp(Q(s,a)/β)/Z_s, with Q(s,a) "
                "the mean advantage after token a"
            )
        return "token-local hyperbolic", (
            "token-local hyperbolic, π(a|s) = β π_ref(a|s)/(Λ_s − Q(s,a)), with Q(s,a) the mean "
            "advantage after token a"
        )
    if recipe.charged_before:
        reward = _reward(recipe, "r(y)")
        return "exponential tilt", f"exponential tilt, π(y) = π_ref(y) exp({reward}/β)/Z"
    mean = ", with A(y) its mean advantage"
    if direction == "reverse":
        return "exponential tilt", f"exponential tilt, π(y) = π_ref(y) exp(A(y)/β)/Z{mean}"
    return "hyperbolic", f"hyperbolic, π(y) = β π_ref(y)/(Λ − A(y)){mean}"


def _effective(
    recipe: Recipe, direction: str, pulls: str, reward_std: float | None
) -> tuple[str | None, float | None, str]:
    """Formula, value and sentence of the β that the target has in units of reward."""
    if pulls == "none":
        return None, None, "—"
    beta = recipe.beta or None
    size, scale = recipe.group_size, recipe.reward_scale
    own = size / (size - 1) if size is not None and recipe.baseline_shrinks else 1.0
    mean = "the group's mean includes the sample and shortens the gradient of the reward, not that "
    mean += "of the KL"
    if not recipe.charged_before and recipe.normalise != "none":
        formula = f"(σ + {number(recipe.epsilon)})" if recipe.epsilon else "σ"
        formula = f"β G/(G − 1) {formula}" if own > 1 else f"β{formula}"
        if reward_std is None:
            groups = f"groups of {size}" if size else "large groups"
            remark = f", for rewards 0 and 1, {groups} and a success rate of 0.5"
            factor = _even_chances(recipe)
        else:
            remark = f", for {f'G = {size} and ' if own > 1 else ''}σ = {number(reward_std)}"
            factor = own * (reward_std + recipe.epsilon)
        remark += f". σ is {_STD[recipe.normalise]} under the policy in training, so it moves"
        remark += f"; {mean}" if own > 1 else ""
        known = reward_std is not None
    elif own > 1:
        formula, factor, known = "β G/(G − 1)", own, True
        remark = f", for G = {size}: {mean}"
    else:
        formula, factor, known = "β", 1.0, True
        remark = ""
        if recipe.baseline_shrinks:
            remark = "; β G/(G − 1) in groups of G samples"
        elif recipe.place == "reward" and recipe.normalise != "none":
            remark = ", because the KL is charged before the division, which then moves no target"
    amount = f"{number(factor)} β" if beta is None else number(factor * beta)
    text = f"{formula}{remark}" if amount == "1 β" else f"{formula} = {amount}{remark}"
    value = None if beta is None or not known else factor * beta
    if scale != 1:
        formula = f"{formula}/{number(scale)}"
        if value is not None:
            value /= scale
            text += f". For a reward of 1 instead of {number(scale)} that is {number(value)}"
    return formula, value, text


def _even_chances(recipe: Recipe) -> float:
    """Effective β over β for rewards 0 and 1 and a policy that succeeds half of the time."""
    size = recipe.group_size
    if size is None or recipe.normalise == "batch-std":
        own = size / (size - 1) if size is not None and recipe.baseline_shrinks else 1.0
        return own * (0.5 + recipe.epsilon)
    groups = make_groups(recipe, np.array([0.0, 1.0]))
    advantage, kept = groups.expected(np.array([0.5, 0.5]))
    return float(kept.mean() / (advantage[1] - advantage[0]))


def _critical(recipe: Recipe, pulls: str) -> dict[str, float] | None:
    own_std = recipe.normalise in ("group-std", "others-std")
    if pulls != "reverse" or not own_std or recipe.charged_before:
        return None
    return {f"{p:g}": float(critical_beta(p)) for p in P_REF}


def _critical_text(recipe: Recipe, critical: dict[str, float] | None) -> str:
    if critical is None:
        return "—"
    found = ", ".join(f"{beta:.3f}" for beta in critical.values())
    text = f"{found} if the reference succeeds with probability {', '.join(critical)}."
    if recipe.beta:
        below = [p for p, beta in critical.items() if recipe.beta < beta]
        which = "all of them" if len(below) == len(critical) else f"that of {' and '.join(below)}"
        where = f"below {which}" if below else "above all of them"
        text += f" β = {number(recipe.beta)} is {where}."
    text += (
        " Below the critical β only certainty is left: the success rate runs to 1 and σ, which "
        "multiplies β, to 0. (Rewards 0 and 1, large groups"
    )
    text += "; answers of one token.)" if _token_local(recipe) else ".)"
    if recipe.group_size is not None:
        text += (
            f" In groups of {recipe.group_size} the success rate stays below 1 at every β: "
            "kltarget.implied.implied_target tells how far."
        )
    return text


def _caveats(recipe: Recipe, direction: str, pulls: str) -> list[str]:
    found = []
    normalised = recipe.normalise != "none" and not recipe.charged_before
    if direction == "none":
        path = "where training ends depends on how it gets there."
        if _costs(recipe):
            cost = f"The cost of {recipe.estimator} still acts, but leaves several targets: {path}"
            return [cost, *_general(recipe, pulls)]
        if recipe.place == "none":
            found.append(f"Without a KL there is no target: {path}")
        elif recipe.beta == 0:
            found.append(f"β = 0 has no target: {path}")
        elif recipe.place == "loss" and recipe.estimator == "k1":
            found.append(
                "k1 in the loss has no expected gradient: as far as targets go, this is β = 0 with "
                "more noise. With several updates per batch it pushes away from the sampler, not "
                "towards the reference."
            )
        found.append(
            "Equally right answers do not keep the reference's ratio: the rarer one dies out, and "
            "MARA, which acts through β, changes nothing."
            if recipe.beta == 0 or recipe.place == "none"
            else "Equally right answers do not keep the reference's ratio: the rarer one dies out."
        )
        return found + _general(recipe, pulls)
    if direction == "forward":
        found.append(
            "Logged as “KL”, the value of k3 estimates the reverse KL; the target is that of the "
            "forward one."
        )
    ratio = (
        "Equally rewarded answers keep the reference's ratio, at every β: a rare mode stays rare"
    )
    if _token_local(recipe):
        ratio += (
            " (exactly so where they part at their last token; elsewhere the values of their "
            "branches matter too)"
        )
    found.append(f"{ratio}. MARA (kltarget.mara) is what changes that.")
    if direction == "forward":
        found.append(
            'Under a forward KL MARA by augmented rewards over-corrects: use method="substitute".'
        )
    if normalised and direction == "reverse":
        found.append(
            "Do not combine MARA with this division by a standard deviation: its bonus is divided "
            "too and the KL is not, so for σ < 1 the least likely right answer takes over."
        )
    elif direction == "reverse" and recipe.baseline_shrinks:
        found.append(
            "MARA needs a leave-one-out baseline here: the group's mean shrinks its bonus by "
            "(G − 1)/G."
        )
    return found + _general(recipe, pulls)


def _general(recipe: Recipe, pulls: str) -> list[str]:
    """What holds whatever the target."""
    found = []
    if recipe.length == "mean":
        found.append("Each token weighs 1/|y|: where lengths differ, long answers count for less.")
    if recipe.kl_length not in (None, recipe.length) and pulls != "none":
        if (recipe.length, recipe.kl_length) == ("batch-mean", "mean"):
            found.append(
                "The KL is averaged over its own sequence and the reward over the batch: an answer "
                "of length |y| sees β times mean|y|/|y|, so long answers are regularised less."
            )
        else:
            found.append("Reward and KL are averaged differently, so β depends on the length.")
    if recipe.zero_std == "drop":
        found.append(
            "Groups of equal rewards are left out, their KL with them: the surer the policy, the "
            "less it is regularised."
        )
    if recipe.place == "loss" and pulls != "none":
        clips = [
            f"a log-ratio beyond ±{number(recipe.log_ratio_clip)}" if recipe.log_ratio_clip else "",
            f"a KL estimate beyond {number(recipe.kl_clip)}" if recipe.kl_clip else "",
        ]
        if any(clips):
            found.append(f"The KL has no gradient at {' or '.join(filter(None, clips))} nats.")
    elif recipe.place == "reward" and recipe.log_ratio_clip and recipe.beta != 0:
        found.append(
            f"Log-ratios are cut at ±{number(recipe.log_ratio_clip)} nats: straying further costs "
            "no more."
        )
    if recipe.updates_per_batch > 1:
        found.append(
            f"{recipe.updates_per_batch} updates per batch: all but the first are off-policy, "
            "which these statements leave out."
        )
    return found
