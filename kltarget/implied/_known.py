"""Which combinations of fields a fixed point is known of."""

from __future__ import annotations

from collections.abc import Iterator

from kltarget.recipes import Recipe
from kltarget.spaces import PrefixTree, SequenceSpace

Space = SequenceSpace | PrefixTree


def several_tokens(space: Space | None) -> bool:
    return space is not None and space.length > 1


def require_known(
    recipe: Recipe, space: Space | None, *, even: bool, weighed: bool, held: bool, prompts: int
) -> None:
    """Raises for what no fixed point is known of.

    ``even``, if all sequences have one length; ``weighed``, if they count by it; ``held``, if the
    KL to the reference has an expected gradient everywhere; ``prompts`` of one batch.
    """
    several = several_tokens(space)
    for unknown in (
        *_of_entropy(recipe, several),
        *_of_ends(recipe, space),
        *_of_charges(recipe, several, even),
        *_of_variation(recipe, weighed),
        *_of_lengths(recipe, weighed),
        *_of_teachers(recipe, space, weighed, held),
        *_of_motion(recipe, space, weighed),
    ):
        raise ValueError(f"no fixed point is known for {unknown}")
    _require_known_batch(recipe, prompts, weighed)


def _of_entropy(recipe: Recipe, several: bool) -> Iterator[str]:
    if not recipe.entropy_bonus and recipe.entropy_target is None:
        return
    if recipe.charged_before and (recipe.normalize != "none" or recipe.by_masses):
        yield "an entropy bonus beside a KL that is normalised with the reward"
    if recipe.place == "loss" and recipe.level == "sequence" and several:
        yield "an entropy bonus per token beside a loss on whole sequences"


def _of_ends(recipe: Recipe, space: Space | None) -> Iterator[str]:
    cut = recipe.eos == "cut"
    if cut and isinstance(space, SequenceSpace) and space.eos is not None:
        bonus = recipe.entropy_bonus or recipe.entropy_target is not None
        if bonus or recipe.place == "reward" or recipe.teacher or recipe.reference == "none":
            yield (
                "an end that is cut off beside an entropy bonus, a teacher, no reference or a KL "
                "in the reward"
            )
    if isinstance(space, PrefixTree):
        if cut or recipe.aim == "total variation":
            what = "an end that is cut off" if cut else "the absolute log-ratio"
            yield f"{what} on a PrefixTree"
        # What was not observed is one outcome of unknown tokens.
        renewed = recipe.reference == "averaged" and recipe.reference_share < 1
        if recipe.temperature != 1 or renewed or recipe.reference == "none" or recipe.teacher_top_k:
            yield "a temperature, an average of references, none, or a top-k on a PrefixTree"


def weighted_together(recipe: Recipe) -> bool:
    """Whether each token's estimate is weighed by the ratio of the whole sequence."""
    weighted = recipe.estimator in ("weighted-k1", "weighted-k3") and recipe.place == "loss"
    return weighted and recipe.level == "token" and recipe.ratio_level == "sequence"


def _of_charges(recipe: Recipe, several: bool, even: bool) -> Iterator[str]:
    by_token = recipe.level == "token"
    if recipe.aim == "other" and recipe.charged_onward and by_token and several:
        yield f"{recipe.estimator_name}, charged token by token"
    if recipe.zero_std == "drop" and recipe.charged_before:
        yield "dropped groups with a KL that is normalised with the reward"
    moved = recipe.depends_on_groups or recipe.advantage_clip is not None
    if recipe.charge == "own" and recipe.charged_before and moved and several:
        yield "charges of single tokens that are normalised in groups or cut"
    if recipe.charged_before and recipe.advantage_clip is not None and recipe.baseline == "none":
        yield "advantages that are cut without a baseline, a KL among them"
    together = recipe.weighted and by_token and recipe.ratio_level == "sequence" and several
    if together and not weighted_together(recipe):
        yield "a term per token that is weighted by the ratio of the whole sequence"
    bonus = recipe.entropy_bonus or recipe.entropy_target is not None
    beside = recipe.teacher or bonus or recipe.reference != "fixed" or recipe.eos == "cut"
    if weighted_together(recipe) and several and (beside or not even):
        yield (
            "estimates per token that are weighted by the ratio of the whole sequence, beside a "
            "teacher, an entropy bonus or a reference that moves, or where lengths differ"
        )


def _of_variation(recipe: Recipe, weighed: bool) -> Iterator[str]:
    if recipe.aim != "total variation":
        return
    if recipe.normalize != "none" or recipe.by_masses or recipe.zero_std == "drop":
        yield "the absolute log-ratio with normalised or cut rewards or dropped groups"
    if recipe.entropy_bonus or recipe.entropy_target is not None or weighed or recipe.teacher:
        yield "the absolute log-ratio with an entropy bonus, a teacher or lengths that count"
    if recipe.temperature != 1 or recipe.reference != "fixed" or recipe.kl_target is not None:
        yield "the absolute log-ratio with a temperature, a moving reference or a controller"


def _of_lengths(recipe: Recipe, weighed: bool) -> Iterator[str]:
    # What a token is charged with from its position on has another mean at each position.
    centred = recipe.baseline != "none" or recipe.normalize != "none" or recipe.by_masses
    by_position = recipe.level == "token" and centred
    if weighed and recipe.charged_before and (by_position or recipe.depends_on_groups):
        yield "a KL that is normalised with the reward where sequences count by their lengths"
    bonus = recipe.entropy_bonus or recipe.entropy_target is not None
    if weighed and recipe.place == "reward" and recipe.level == "sequence" and bonus:
        yield "an entropy bonus beside a KL on sequences that count by their lengths"
    dropped = recipe.zero_std == "drop" and recipe.depends_on_groups
    if recipe.kl_centre != "none" and (weighed or dropped):
        yield "a centred KL where groups are dropped or sequences count by their lengths"


def _of_teachers(recipe: Recipe, space: Space | None, weighed: bool, held: bool) -> Iterator[str]:
    if not recipe.teacher:
        return
    if recipe.charged_before and (recipe.normalize != "none" or recipe.by_masses):
        yield "a teacher beside a KL that is normalised with the reward"
    if recipe.aim == "other" and recipe.teacher_direction == "forward":
        yield f"a forward KL to a teacher beside {recipe.estimator_name}"
    bonus = recipe.entropy_bonus or recipe.entropy_target is not None
    if recipe.level == "sequence" and several_tokens(space) and bonus:
        yield "an entropy bonus per token beside a teacher of whole sequences"
    if recipe.teacher_top_k is not None and not (held or recipe.entropy_bonus):
        yield "a teacher's top-k where nothing holds the other tokens"
    if weighed and (recipe.teacher_top_k is not None or recipe.charged_before):
        yield "a teacher's top-k, or a KL in the reward, where sequences count by their lengths"


def _of_motion(recipe: Recipe, space: Space | None, weighed: bool) -> Iterator[str]:
    if recipe.reference == "lagged":
        yield "reference='lagged': the policy it is held to follows it, and neither rests"
    if recipe.reference == "none" and recipe.aim not in ("reverse", "none"):
        yield f"{recipe.estimator_name} without a reference"
    if recipe.reference == "none" and (weighed or recipe.kl_centre != "none"):
        yield "reference='none' with a centred KL or where sequences count by their lengths"
    controlled = recipe.kl_target is not None or recipe.entropy_target is not None
    if controlled and recipe.reference in ("copied", "averaged"):
        yield "a controller beside a reference that moves"
    if recipe.kl_target is not None and recipe.reference == "none":
        yield "a controller of the KL without a reference"
    if recipe.kl_target is not None and recipe.entropy_target is not None:
        yield "two controllers at once"


def _require_known_batch(recipe: Recipe, prompts: int, weighed: bool) -> None:
    if prompts == 1 or not recipe.normalized:
        return
    if recipe.renormalize == "none" and recipe.normalize != "batch-std":
        return
    dropped = recipe.zero_std == "drop" and recipe.group_size is not None
    several = recipe.by_masses
    if weighed or dropped or several:
        where = "groups are dropped" if dropped else "sequences count by their lengths"
        if several:
            where = "advantages are cut or normalised more than once"
        raise ValueError(
            f"no fixed point is known for one standard deviation over {prompts} prompts where "
            f"{where}: a beta of the shape of the batch takes each prompt as a batch of its own"
        )
