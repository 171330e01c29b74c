"""What a KL term is, what its gradient follows, and what that draws a policy to, in words."""

from __future__ import annotations

from kltarget.recipes._recipe import Recipe
from kltarget.recipes._terms import TermReading

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
    how = "is differentiated as it stands" if recipe.place == "loss" else "is charged as a number"
    if recipe.weighted:
        how = "carries the probability of its sample as the weight π/sg(π)"
    text = f"{recipe.estimator_name} {how}, and "
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
    law = law_of(recipe, "", "", "Q" if recipe.per_token else "r", "·")
    of_tokens = "the target of every next token is {}, Q the mean reward after it, with"
    said = of_tokens.format(law) if recipe.per_token else f"the target is {law}, with"
    return f"{text}: {said} the effective β for β", ""


def law_of(recipe: Recipe, outcome: str, prefix: str, gain: str, times: str = " ") -> str:
    """The target of a KL, of an outcome such as ``"(y)"``."""
    ref = f"π_ref{outcome}"
    if recipe.aim == "reverse":
        return f"{ref}{times}exp({gain}/β)/Z{prefix}"
    if recipe.aim == "other":
        return f"{ref}{times}(f′)⁻¹(({gain} − λ{prefix})/β)"
    return f"β{times}{ref}/(Λ{prefix} − {gain})"
