"""The effective and the critical β of a recipe, in words."""

from __future__ import annotations

import numpy as np

from kltarget._core.words import compact
from kltarget.recipes._critical import critical_beta
from kltarget.recipes._recipe import Recipe
from kltarget.recipes.groups import make_groups

_P_REF = (0.1, 0.3, 0.5)
_STD = {
    "group-std": "the standard deviation of the group's rewards",
    "others-std": "the standard deviation of the rewards of the others in the group",
    "batch-std": "the standard deviation of the batch's rewards",
    "group-mean": "the mean of the group's rewards",
}
_AGAIN = {
    "batch-std": "the standard deviation of all advantages of the batch",
    "mean-abs": "the mean size of all advantages of the batch",
}


def effective_text(recipe: Recipe, reward_std: float | None) -> str:
    """Formula and number of the effective β, and what they depend on."""
    formula, scale = recipe.effective_formula, recipe.reward_scale
    if formula is None:
        return "—"
    if recipe.kl_target is not None:
        kept = f"the β that keeps the KL at {compact(recipe.kl_target)} nats"
        return f"{kept}; it starts at {compact(recipe.beta)}" if recipe.beta else kept
    if recipe.by_masses and not recipe.charged_before:
        return _by_masses_text(recipe, formula)
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
    if scale != 1:
        formula = formula.replace(f"/{compact(scale)}", "", 1)
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


def _by_masses_text(recipe: Recipe, formula: str) -> str:
    """Of advantages that depend on how likely each reward is."""
    shown = _even_chances(recipe)
    amount = compact(shown * recipe.beta) if recipe.beta else f"{compact(shown)} β"
    where = f"groups of {recipe.group_size}" if recipe.group_size else "large groups"
    text = f"about {formula}; {amount} for rewards 0 and 1, {where} and a success rate of 0.5."
    meant = []
    if recipe.normalize != "none":
        symbol = "r̄" if recipe.normalize == "group-mean" else "σ"
        meant.append(f"{symbol} is {_STD[recipe.normalize]}")
    if recipe.renormalize != "none":
        meant.append(f"S is {_AGAIN[recipe.renormalize]}")
    if meant:
        text += f" {', '.join(meant)} under the policy in training, so it moves."
    return text


def _has_its_own_number(recipe: Recipe) -> bool:
    """Whether groups are finite and each divides by its own deviation."""
    return recipe.group_size is not None and recipe.normalize != "batch-std"


def _even_chances(recipe: Recipe) -> float:
    """Effective β over β for rewards 0 and 1 and a policy that succeeds half of the time."""
    if not _has_its_own_number(recipe) and not recipe.by_masses:
        return (0.5 + recipe.epsilon) / recipe.baseline_factor / recipe.temperature
    groups = make_groups(recipe, np.array([0.0, 1.0]))
    advantage, kept = groups.expected(np.array([0.5, 0.5]))
    return float(kept.mean() / (advantage[1] - advantage[0])) / recipe.temperature


def critical_betas(recipe: Recipe) -> dict[str, float] | None:
    of_group = recipe.normalize in ("group-std", "others-std")
    elsewhere = recipe.by_masses or recipe.teacher or recipe.reference != "fixed"
    if recipe.aim != "reverse" or not of_group or recipe.charged_before or elsewhere:
        return None
    return {f"{p:g}": float(critical_beta(p)) for p in _P_REF}


def critical_text(recipe: Recipe, critical: dict[str, float] | None) -> str:
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
