"""What a recipe means, in words and formulas: wherever the library says it, it asks here."""

from __future__ import annotations

import dataclasses

from kltarget._core.words import compact
from kltarget.recipes._caveats import caveats
from kltarget.recipes._effective_beta import critical_betas, critical_text, effective_text
from kltarget.recipes._followed import followed, law_of
from kltarget.recipes._recipe import Recipe

_DIVISORS = {
    "group-std": "std",
    "others-std": "std of the others",
    "batch-std": "std of the batch",
    "group-mean": "mean",
    "mean-abs": "mean size of the batch",
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
    critical = critical_betas(recipe)
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
        effective_text=effective_text(recipe, reward_std),
        critical=critical,
        critical_text=critical_text(recipe, critical),
        family=family,
        target=target,
        caveats=tuple(caveats(recipe, direction)),
    )


def _advantage(recipe: Recipe) -> str:
    reward = _reward(recipe)
    charged = ""
    if recipe.place == "reward" and recipe.beta != 0:
        k = {"k1": "log π/π_ref", "k2": "½ log² π/π_ref", "absolute": "|log π/π_ref|"}
        cost = f" − β {k.get(recipe.estimator_name, recipe.estimator_name)}"
        if recipe.charged_before:
            reward, charged = "r′", f", r′ = {reward}{cost}"
    mean = {"mean": " − mean", "leave-one-out": " − mean of the others", "none": ""}
    text = f"{reward}{mean[recipe.baseline]}"
    if recipe.normalize != "none":
        text = _over(text, _DIVISORS[recipe.normalize], recipe.epsilon)
    if recipe.combine != "sum":
        text = f"Σ_j w_j {text.replace(reward, 'r_j')}"
    if recipe.renormalize != "none":
        text = _over(text, _DIVISORS[recipe.renormalize], recipe.epsilon)
    if recipe.advantage_clip is not None:
        text = f"clip({text}, ±{compact(recipe.advantage_clip)})"
    return text + charged


def _over(top: str, bottom: str, epsilon: float) -> str:
    if epsilon:
        bottom = f"({bottom} + {compact(epsilon)})"
    elif " " in bottom:
        bottom = f"({bottom})"
    return (f"({top})" if " " in top else top) + f"/{bottom}"


def _objective(recipe: Recipe, direction: str) -> str:
    if recipe.charged_before and direction in ("reverse", "other"):
        # The regularised rewards are all equal at the target, so what they are divided by does not
        # move it.
        return f"maximise E_π[{_reward(recipe)}] − β {_KL[direction]}{_taught(recipe)}"
    regulariser = ""
    if direction != "none":
        kl = _KL[direction]
        regulariser = f" − β E_π[Σ_t {kl}(s_t)]" if recipe.per_token else f" − β {kl}"
    regulariser += _taught(recipe)
    return f"maximise E_π[A(y)]{regulariser}, A = {_advantage(recipe)}"


def _taught(recipe: Recipe) -> str:
    """What is charged for a teacher."""
    if not recipe.teacher:
        return ""
    kl = "KL(π‖T)" if recipe.teacher_direction == "reverse" else "KL(T‖π)"
    kl = kl if recipe.level == "sequence" else f"E_π[Σ_t {kl}(s_t)]"
    return f" − {compact(recipe.teacher)} {kl}"


def _reward(recipe: Recipe, reward: str = "r") -> str:
    if recipe.reward_weights is not None and recipe.combine == "sum" and reward == "r":
        reward = "Σ_j w_j r_j"
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
    if recipe.charge == "own":
        return "tokens, each charged with its own KL alone: each prefix on its own"
    if recipe.place == "reward":
        return "tokens, each charged with the KL from its own position on: adds up to sequences"
    return "tokens: each prefix on its own; no gradient for which prefixes are reached"


def _target(recipe: Recipe, direction: str) -> tuple[str, str]:
    """Family and formula."""
    if direction == "none":
        if recipe.teacher:
            law = "T e^(A/c)/Z" if recipe.teacher_direction == "reverse" else "c T/(Λ − A)"
            told = f"c = {compact(recipe.teacher)}, A its mean advantage"
            return "target of a teacher", f"the teacher's T, moved by the reward: {law}, {told}"
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
        family, law = f"token-local {family}", law_of(recipe, "(a|s)", "_s", "Q(s,a)")
        return family, f"{family}, π(a|s) = {law}, with Q(s,a) the mean advantage after token a"
    gain, where = "A(y)", ", with A(y) its mean advantage"
    if recipe.charged_before:
        gain, where = _reward(recipe, "r(y)"), ""
    return family, f"{family}, π(y) = {law_of(recipe, '(y)', '', gain)}{where}"
