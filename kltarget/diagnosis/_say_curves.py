"""Statements that the curves of a run alone support: the weakest evidence there is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.special import expit, rel_entr

from kltarget import evidence
from kltarget._core.words import number
from kltarget.diagnosis._say_rewards import SOURCE
from kltarget.diagnosis._statement import Statement
from kltarget.implied import success
from kltarget.recipes import Recipe
from kltarget.recipes._followed import aimed_at

NARROWED, COLLAPSED = 0.5, 0.1
"""Entropy of a token, as a share of where it began, below which it is said to have fallen."""

BEGINNING = "the first logged step is that of the reference"
BOUNDED = "every reward lies between 0 and 1"
ALIKE = "every prompt is as hard as the mean one, and rewards are 0 or 1"
OF_TOKENS = "an answer's KL is the mean per token times the mean number of tokens"
# By so much may a batch's deviation exceed that of its law.
_MORE_IN_A_SAMPLE = 0.05
# Smaller estimates of a KL are rounding.
_NOTHING = 1e-6
_Z = 1.96
# So much less than what a rise of the reward takes is no accident of the estimate.
_SHORT = 0.8


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """The curves of a run by their names, and its recipe.

    Attributes:
        kl: of a whole answer, in nats; of a token where how long answers are is not known.
        late: the last third of the logged steps.
        of_tokens: whether the KL was a mean over tokens, times the length of answers.
        whole: whether the KL is that of whole answers.
    """

    step: np.ndarray
    reward: np.ndarray
    reward_deviation: np.ndarray
    kl: np.ndarray
    entropy: np.ndarray
    zero_std: np.ndarray
    length: np.ndarray
    beta: np.ndarray
    of_tokens: bool
    whole: bool = True

    @property
    def late(self) -> np.ndarray:
        first, last = self.step[0], self.step[-1]
        return self.step >= last - (last - first) / 3

    def ends(self, name: str) -> tuple[float, float, evidence.Interval | None]:
        """Where a curve begins, its mean over the last third, and how far off that mean may be.

        The last is for decisions: steps of a run follow from each other, and no statement has it.
        """
        curve = getattr(self, name)
        known = np.isfinite(curve)
        if not known.any():
            return math.nan, math.nan, None
        mean, interval = evidence.mean_interval(curve[self.late & known])
        # No curve of these but the reward goes below 0.
        if interval is not None and name != "reward":
            interval = max(interval[0], 0.0), interval[1]
        return float(curve[known][0]), mean, interval

    @property
    def scatter(self) -> float:
        """The deviation of single steps' mean rewards, about a line through the last third."""
        known = self.late & np.isfinite(self.reward)
        if known.sum() < 3:
            return 0.0
        step, reward = self.step[known], self.reward[known]
        line = np.polyval(np.polyfit(step - step[0], reward, 1), step - step[0])
        return float(np.sqrt(((reward - line) ** 2).sum() / (known.sum() - 2)))

    @property
    def bounded(self) -> bool:
        """Whether the rewards may all lie between 0 and 1."""
        mean = self.reward[np.isfinite(self.reward)]
        if not mean.size or mean.min() < 0 or mean.max() > 1:
            return False
        known = np.isfinite(self.reward) & np.isfinite(self.reward_deviation)
        reward = self.reward[known]
        # Rewards between 0 and 1 of this mean deviate most if they are 0 or 1; a sample's do more.
        most = np.sqrt(reward * (1 - reward)) + _MORE_IN_A_SAMPLE
        return bool((self.reward_deviation[known] <= most).all())


def curve_statements(curves: Curves, recipe: Recipe | None) -> list[Statement]:
    """What curves say of a run, and of its recipe if that is known."""
    said = [] if recipe is None else [_direction(recipe)]
    said += [_acting(curves, recipe), *_budget(curves), *_price(curves, recipe)]
    if recipe is not None:
        said += _asked_for(curves, recipe)
    return [*said, *_entropy(curves), *_equal_groups(curves), *_lengths(curves), *_moved(curves)]


def _direction(recipe: Recipe) -> Statement:
    headline, detail = aimed_at(recipe)
    return Statement("direction", headline, detail, assumptions=(SOURCE,), unit="recipe", tier=0)


def _acting(curves: Curves, recipe: Recipe | None) -> Statement:
    """Whether there is a KL term, as far as a curve can say."""
    known = curves.kl[np.isfinite(curves.kl)]
    held = recipe is None or (bool(recipe.beta) and recipe.divergence is not None)
    if not known.size:
        text = "no KL to a reference is logged"
        more = ": trainers log one where a reference is loaded, so nothing may hold this policy"
        if not held:
            return Statement("kl_term", text, ", and the recipe has none", tier=0, refused=True)
        return Statement("kl_term", text, more, tier=0, refused=True, warning=recipe is not None)
    if np.abs(known).max() < _NOTHING:
        text = "the logged KL is 0 throughout: the policy has not left its reference"
        return Statement("kl_term", text, tier=0, sample_size=known.size, unit="steps")
    _, late, _ = curves.ends("kl")
    per = "an answer" if curves.whole else "a token"
    text = f"the KL to the reference comes to {number(late, 3)} nats {per} in the last third"
    more = "" if held else ", which is only watched: the recipe charges nothing for it"
    if not curves.whole:
        more += "; what an answer takes is not known, as no length of answers is logged"
    by = (OF_TOKENS,) if curves.of_tokens and curves.whole else ()
    return Statement("kl_term", text, more, late, None, by, known.size, "steps", tier=0)


def _budget(curves: Curves) -> list[Statement]:
    """What the KL bought, beside the least that such a rise takes."""
    begin, end, of_end = curves.ends("reward")
    _, spent, of_spent = curves.ends("kl")
    if not (curves.bounded and curves.whole and spent > _NOTHING and end > begin):
        return []
    # Whatever a channel makes of answers cannot tell two policies better apart than they do: here
    # a coin that falls on 1 with the probability of the reward.
    least = _between_coins(end, begin)
    if not 0 < least < math.inf:
        return []
    rise = f"raising the mean reward from {number(begin, 3)} to {number(end, 3)}"
    by = (BEGINNING, BOUNDED, *((OF_TOKENS,) if curves.of_tokens else ()))
    size = int(np.isfinite(curves.kl).sum())
    ratio, fixed = spent / least, {"sample_size": size, "unit": "steps", "tier": 0}
    most = spent if of_spent is None else of_spent[1]
    # The first step scatters as the last ones do: so little may the true rise be.
    low, high = begin + _Z * curves.scatter, end if of_end is None else of_end[0]
    if low < high and most < _SHORT * _between_coins(high, low):
        text = f"{rise} takes {number(least, 3)} nats or more, and {number(spent, 3)} are logged"
        more = (
            ": the logged KL is not that to the policy of the first step (a reference that moves, "
            "or steps before the first that is logged)"
        )
        return [Statement("kl_budget", text, more, ratio, None, by, warning=True, **fixed)]
    text = (
        f"{rise} takes {number(least, 3)} nats or more; the run spent {number(ratio, 3)} times that"
    )
    more = ", no less within the scatter of the steps" if ratio < 1 else ""
    return [Statement("kl_budget", text, more, ratio, None, by, **fixed)]


def _between_coins(p: float, q: float) -> float:
    """The KL between coins that fall on 1 with these probabilities."""
    return float(rel_entr(p, q) + rel_entr(1 - p, 1 - q))


def _price(curves: Curves, recipe: Recipe | None) -> list[Statement]:
    """Whether the run gained more than it was charged."""
    begin, end, interval = curves.ends("reward")
    _, spent, of_spent = curves.ends("kl")
    if not (curves.whole and spent > _NOTHING) or math.isnan(begin):
        return []
    price = (end - begin) / spent
    size = int(np.isfinite(curves.kl).sum())
    text = f"a nat of KL bought {number(price, 3)} of mean reward"
    fixed = {"sample_size": size, "unit": "steps", "tier": 0}
    beta = None if recipe is None else _acting_beta(recipe)
    if recipe is None or beta is None:
        said = Statement("price", text, "", price, None, (BEGINNING,), **fixed)
        return [said]
    charged = f"it is charged {number(beta, 3)}, the effective β"
    by = (BEGINNING, SOURCE)
    if recipe.aim != "reverse":
        more = (
            f"; {charged}, but for the forward KL, of which the logged one says nothing"
            if recipe.aim == "forward"
            else f"; {charged}, but for another divergence"
        )
        return [Statement("price", text, more, price, None, by, **fixed)]
    # The mean of the first step scatters as those of the last ones do, and the KL may be less.
    gained = end - begin if interval is None else interval[1] - begin + _Z * curves.scatter
    if gained < beta * (spent if of_spent is None else of_spent[0]):
        more = (
            f" and {charged}: by its own objective the run is worse off than it began, so the KL "
            "term does not act as this recipe says, or the run has left its target again"
        )
        return [Statement("price", text, more, price, None, by, warning=True, **fixed)]
    more = f"; {charged}: reward less charge rose, as it does on the way to the target and there"
    return [Statement("price", text, more, price, None, by, **fixed)]


def _acting_beta(recipe: Recipe) -> float | None:
    """The coefficient in units of the reward, if it is one number for all prompts."""
    if not recipe.beta or recipe.divergence is None or recipe.entropy_bonus or recipe.teacher:
        return None
    factor = recipe.effective_factor()
    return None if factor is None else float(recipe.beta * factor)


def _asked_for(curves: Curves, recipe: Recipe) -> list[Statement]:
    """Where the recipe would end if every prompt were as hard as the mean one."""
    begin, end, _ = curves.ends("reward")
    spent = curves.ends("kl")[1]
    if not recipe.beta or not curves.bounded or not 0 < begin < 1:
        return []
    try:
        success.require_forecast(recipe)
    except ValueError:
        return []
    plain, _ = success.of_base_model(recipe)
    bounds = None
    if plain.reward_clip is not None:
        low = -plain.reward_clip if plain.reward_clip_low is None else plain.reward_clip_low
        bounds = low, plain.reward_clip
    rewards = success.shaped(np.array([0.0, 1.0]), plain.reward_scale, bounds)
    odds = success.target_log_odds(plain, rewards, np.array([recipe.beta]))[0]
    asked = float(expit(np.interp(math.log(begin / (1 - begin)), success.NODES, odds)))
    nats = _between_coins(asked, begin)
    text = "were every prompt as hard as the mean one, "
    text += f"the target of β = {recipe.beta:g} would have a mean reward of {number(asked, 3)}"
    text += f", {number(nats, 3)} nats from the reference"
    more = f"; the run has {number(end, 3)}"
    more += f" at {number(spent, 3)} nats" if curves.whole and spent > _NOTHING else ""
    by = (BEGINNING, ALIKE, SOURCE)
    return [Statement("asked_for", text, more, asked, None, by, unit="recipe", tier=0)]


def _entropy(curves: Curves) -> list[Statement]:
    begin, end, _ = curves.ends("entropy")
    if math.isnan(begin) or begin <= 0:
        return []
    left = end / begin
    text = f"the entropy of a token went from {number(begin, 3)} to {number(end, 3)} nats"
    more = f", {number(left, 3)} times as much: what became of different answers it does not say"
    if number(begin, 3) == number(end, 3):
        text, more = f"the entropy of a token is where it began, at {number(end, 3)} nats", ""
    size = int(np.isfinite(curves.entropy).sum())
    return [
        Statement(
            "token_entropy", text, more, left, None, (BEGINNING,), size, "steps", tier=0,
            warning=left < COLLAPSED,
        )
    ]  # fmt: skip


def _equal_groups(curves: Curves) -> list[Statement]:
    _, late, _ = curves.ends("zero_std")
    if math.isnan(late):
        return []
    size = int(np.isfinite(curves.zero_std[curves.late]).sum())
    text = f"{100 * late:.3g} % of the groups in the last third have equal rewards (σ = 0)"
    return [
        Statement(
            "zero_std_groups", text, ": their rewards teach nothing", late, None, (), size,
            "steps", tier=0, warning=late > 0.5,
        )
    ]  # fmt: skip


def _lengths(curves: Curves) -> list[Statement]:
    begin, end, _ = curves.ends("length")
    if math.isnan(begin) or begin <= 0 or abs(end / begin - 1) < 0.1:
        return []
    size = int(np.isfinite(curves.length).sum())
    text = f"answers went from {number(begin, 3)} to {number(end, 3)} tokens"
    more = "; a KL per token hides how much that moves a whole answer" if curves.of_tokens else ""
    ratio = end / begin
    return [Statement("lengths", text, more, ratio, None, (), size, "steps", tier=0)]


def _moved(curves: Curves) -> list[Statement]:
    known = curves.beta[np.isfinite(curves.beta)]
    if not known.size or np.ptp(known) <= 1e-9 * abs(known[-1]):
        return []
    text = f"β was moved from {known[0]:.3g} to {known[-1]:.3g}: the target is that of the last one"
    by = known.size, "steps"
    return [Statement("controller", text, "", float(known[-1]), None, (), *by, tier=0)]
