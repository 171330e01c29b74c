"""What is easily got wrong about a recipe and its target, in words."""

from __future__ import annotations

from collections.abc import Iterator

from kltarget._core.words import compact
from kltarget.recipes._recipe import Recipe


def caveats(recipe: Recipe, direction: str) -> list[str]:
    if direction != "none":
        return [*_of_target(recipe, direction), *_general(recipe)]
    if recipe.teacher:
        return _general(recipe)
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
    return [*texts, *_of_advantages(recipe), *_of_motion(recipe), *_of_charges(recipe)]


def _of_advantages(recipe: Recipe) -> Iterator[str]:
    if recipe.normalize == "group-mean" and recipe.normalized:
        yield (
            "Divided by the mean reward, the KL counts for more the surer the policy is: there is "
            "no critical β."
        )
    if recipe.combine != "sum":
        yield (
            "Each reward is divided by its own deviation before they are added: one that is nearly "
            "always the same counts as much as one that is not."
        )
    if recipe.renormalize != "none" and recipe.normalized:
        yield "All advantages of a batch are divided once more, by one number that moves β with it."
    if recipe.advantage_clip is not None:
        what = ", the KL among them," if recipe.charged_before else ""
        yield f"Advantages{what} beyond ±{compact(recipe.advantage_clip)} count no more than that."


def _of_motion(recipe: Recipe) -> Iterator[str]:
    every = recipe.reference_every
    if recipe.reference in ("copied", "averaged"):
        share = recipe.reference_share
        how = "copied from the policy"
        count = "β/(n + 1)"
        if recipe.reference == "averaged":
            how = f"averaged with the policy (of which {compact(share)} counts)"
            count = f"β/(1 + {compact(share)} n)"
        yield (
            f"The reference is {how} every {every} steps: after n renewals, each at rest, a "
            f"reverse KL holds to the first reference with {count}; in the end nothing does."
        )
    if recipe.reference == "lagged":
        yield (
            f"The reference is the policy of {every} steps ago: it follows, and there is no target."
        )
    if recipe.reference == "none":
        yield (
            "No reference: its log-probabilities are taken as 0, and the KL is an entropy bonus, "
            "whose target weighs all strings alike."
        )
    if recipe.temperature != 1:
        t = compact(recipe.temperature)
        yield (
            f"Trained at temperature {t} and used at 1: a reverse KL of one token has the target "
            f"of β/{t}."
        )
    if recipe.kl_target is not None:
        yield (
            f"β is moved until the KL is {compact(recipe.kl_target)} nats "
            f"{'a token' if recipe.kl_target_per == 'token' else 'an answer'}: the target is the "
            "one at that distance. Where rewards cannot buy so much KL, β runs to 0."
        )
    if recipe.entropy_target is not None:
        yield (
            "The entropy bonus is moved so that the entropy does not fall below "
            f"{compact(recipe.entropy_target)} nats a token."
        )


def _of_charges(recipe: Recipe) -> Iterator[str]:
    if recipe.teacher:
        top = "" if recipe.teacher_top_k is None else f", over its {recipe.teacher_top_k} likeliest"
        yield (
            f"A KL to a teacher counts {compact(recipe.teacher)}{top}: reward and reference "
            "weigh against it."
        )
    if recipe.kl_centre != "none" and recipe.charge == "onward":
        yield (
            "The mean KL per token is taken off each token's charge: every further token is paid "
            "β times that mean, and long answers gain."
        )


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
