"""The record of what a trainer does with its regulariser and its advantages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

from kltarget._core.page import Page, Table
from kltarget._core.words import compact
from kltarget.divergences import Divergence, ForwardKL, ReverseKL, Scaled, TotalVariation
from kltarget.recipes._recipe_checks import check_fields, check_together
from kltarget.recipes._terms import TermReading, read_term, swapped_k3
from kltarget.recipes._weighted import Weighted

if TYPE_CHECKING:
    import pandas as pd

Aim = Literal["reverse", "forward", "total variation", "other", "none"]
"""What a regulariser's expected gradient is that of, for most a direction of the KL."""

Estimator = Literal[
    "k1", "k2", "k3", "weighted-k1", "weighted-k3", "swapped-k3", "absolute", "abs", "sampler"
]

_AIMS: dict[tuple[str, str], Aim] = {
    ("reward", "k1"): "reverse",
    ("loss", "k2"): "reverse",
    ("loss", "weighted-k1"): "reverse",
    ("loss", "weighted-k3"): "reverse",
    ("loss", "k3"): "forward",
    ("loss", "absolute"): "total variation",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a policy-gradient trainer estimates the KL to its reference and where it puts it.

    Different recipes with the same β have different targets: not the name of the KL decides, but
    the gradient that is followed. With advantages A and log-ratios ``ℓ = log π/π_ref`` that is the
    derivative of ``E[w(y) A(y) log π(y)] − β E[w_KL(y) Σ k(ℓ)]`` for a regulariser in the loss;
    one in the reward enters A.

    Args:
        place: ``"reward"`` subtracts β times the estimate from the reward, as a number without a
            derivative; ``"loss"`` adds it to the loss, differentiates it as it stands and does not
            weigh it by the probability of the sample; ``"none"`` leaves it out.
        estimator: of the log-ratio ``ℓ``: ``"k1"`` is ``ℓ``, ``"k2"`` is ``ℓ²/2``, ``"k3"`` is
            ``e^(−ℓ) − 1 + ℓ``, ``"weighted-k1"`` and ``"weighted-k3"`` are k1 and k3 times
            ``π/sg(π)``, which is 1 but for its derivative (in the loss only), ``"absolute"`` or
            ``"abs"`` is ``|ℓ|``, ``"swapped-k3"`` is ``e^ℓ − 1 − ℓ``, k3 with its arguments
            exchanged; ``"sampler"`` is half the squared log-ratio to the policy that drew the
            sample instead of a reference (in the loss only). Or any function of an array of
            log-ratios, elementwise, as :func:`kltarget.recipes.divergence_of` takes; or
            :class:`kltarget.recipes.Weighted` of one, times ``π/sg(π)`` (in the loss only).
        level: ``"sequence"`` applies the estimator to the log-ratio of the whole sequence,
            ``"token"`` to that of each token and sums. In the reward a token is then charged with
            the estimates from its own position on.
        baseline: what is subtracted from the return: nothing, the group's ``"mean"``, or
            ``"leave-one-out"``, the mean of the others in the group. A mean over G samples that
            includes the sample itself shortens the expected score-function gradient by
            ``(G − 1)/G``; leaving it out does not.
        normalize: what the return less its baseline is divided by: ``"none"``; ``"group-std"``, the
            standard deviation of the group; ``"others-std"``, that of the others in the group
            (nothing is divided where it is 0); ``"batch-std"``, that of the whole batch, one
            number over all its prompts.
        normalize_when: whether baseline and standard deviation are taken ``"after"`` a KL in the
            reward was charged, or ``"before"``, so that the KL is charged to normalised advantages.
        epsilon: added to the standard deviation.
        ddof: degrees of freedom taken off in the standard deviation: 0, or 1 for Bessel's.
        zero_std: ``"drop"`` leaves out the groups whose rewards are all equal, their KL with them.
        group_size: samples G that are compared with each other; None for the whole batch, which
            with exact gradients is infinitely large.
        beta: coefficient of the regulariser, in reward units per nat; None to be said where it is
            needed.
        reward_scale: factor of the reward, before anything else.
        reward_clip: rewards are cut to between minus and plus this, after scaling.
        reward_clip_low: what they are cut at from below, of any sign; minus ``reward_clip`` by
            default.
        clip: ε of the clipped ratio of a policy to the one that drew the sample, as in PPO. It acts
            only if a batch is used for more than one update.
        clip_high: ε of the upper side, as ``clip`` by default.
        ratio_level: whether that ratio, and its clip, is one of each ``"token"`` or of the whole
            ``"sequence"``, which needs ``level="sequence"``.
        updates_per_batch: gradient steps taken with the samples of one policy. What is charged to
            the reward stays that of the policy that drew them.
        log_ratio_clip: ``ℓ`` is cut to between minus and plus this before it is used.
        kl_clip: the estimate is cut likewise.
        length: how the tokens of a sequence count: ``"sum"`` adds them up, ``"mean"`` divides
            by its own number of tokens, ``"batch-mean"`` by the mean number of the batch.
        kl_length: the same for a KL in the loss; as ``length`` by default.
        eos: whether the token that ends a sequence is ``"kept"`` or ``"cut"`` off by a sampler that
            does not return it: then it is neither rewarded nor regularised, and counts in no
            length. Needs ``level="token"``.
        entropy_bonus: coefficient of the entropy of each next-token distribution, added to what is
            ascended; no gradient flows through which prefixes are reached.
        charge: what a token is charged with where the KL is in the reward ``level="token"``: the
            estimates from its own position ``"onward"``, or its ``"own"`` alone, as in a return
            of discount 0.
        kl_centre: ``"batch-mean"`` takes the mean estimate per token of the whole batch off each
            token's estimate before it is charged, which pays for every further token; for k1 in
            the reward ``level="token"``.
        renormalize: what all advantages are divided by once more, after ``normalize``:
            ``"batch-std"``, their standard deviation in the whole batch, or ``"mean-abs"``, the
            mean of their absolute values. One number over all prompts of a batch.
        advantage_clip: advantages are cut to between minus and plus this, after all normalisation.
        reward_weights: weights of several rewards, which are then given as ``[..., J, A]``; None
            for one.
        combine: whether several rewards are weighed and added before anything else, ``"sum"``, or
            each first less its baseline and divided by its own ``normalize``,
            ``"normalize-then-sum"`` (GDPO).
        temperature: that samples are drawn at and log-probabilities taken at, of the policy and of
            the reference; the policy is used at 1.
        reference: ``"fixed"``; ``"copied"`` from the policy every ``reference_every`` steps;
            ``"averaged"`` with it at those steps, the parameters of the policy counting
            ``reference_share``; ``"lagged"``, the policy of ``reference_every`` steps ago;
            ``"none"``, no reference log-probabilities: they are taken as 0.
        reference_every: number of gradient steps between renewals, or of the lag.
        reference_share: α of ``ref ← (1 − α) ref + α policy``, 1 or less.
        teacher: coefficient of a second KL, to a teacher, in units of the (normalised) reward per
            nat, summed over tokens, or of the whole sequence, as ``level`` says. It is not part of
            what is normalised, and no gradient flows through which prefixes are reached.
        teacher_direction: of that KL: ``"reverse"`` is ``KL(π‖teacher)``, ``"forward"``
            ``KL(teacher‖π)``.
        teacher_top_k: only this many of the teacher's likeliest tokens are compared at each prefix;
            None for all.
        kl_target: nats of ``KL(π‖π_ref)`` that a controller moves the coefficient to keep; ``beta``
            is then where it starts.
        kl_target_per: whether these are of a whole ``"sequence"`` or, averaged over the tokens of
            each sequence and then over sequences, per ``"token"``.
        kl_gain: K of ``β ← β (1 + K e)``, e the relative distance of the KL from ``kl_target``, cut
            to between −0.2 and 0.2; trainers have samples per update over a horizon. What it may be
            is :func:`kltarget.implied.gain_limit`.
        entropy_target: nats of entropy, averaged over all tokens, that a controller moves
            ``entropy_bonus`` to keep from falling below.

    Raises:
        ValueError: an unknown choice, a number out of range, or a combination that makes no sense.

    Example:
        >>> from kltarget.recipes import Recipe
        >>> Recipe(place="loss", estimator="k3").divergence
        ForwardKL()
        >>> Recipe(place="loss", estimator="k4")
        Traceback (most recent call last):
        ...
        ValueError: estimator must be one of 'k1', 'k2', 'k3', ..., got 'k4'

    References:
        Schulman, "Approximating KL Divergence", 2020 (names and forms of k1, k2, k3). Tang and
        Munos, "On a few pitfalls in KL divergence gradient estimation for RL", 2025, arXiv
        2506.09477. Shao et al., "DeepSeekMath", 2024, arXiv 2402.03300 (group normalisation). Liu
        et al., "Understanding R1-Zero-Like Training: A Critical Perspective", 2025, arXiv
        2503.20783 (what it and the length do).
    """

    place: Literal["reward", "loss", "none"] = "reward"
    estimator: Estimator | Callable[[Any], Any] = "k1"
    level: Literal["sequence", "token"] = "sequence"
    baseline: Literal["none", "mean", "leave-one-out"] = "none"
    normalize: Literal["none", "group-std", "others-std", "batch-std", "group-mean"] = "none"
    normalize_when: Literal["after", "before"] = "after"
    epsilon: float = 0.0
    ddof: int = 0
    zero_std: Literal["keep", "drop"] = "keep"
    group_size: int | None = None
    beta: float | None = None
    reward_scale: float = 1.0
    reward_clip: float | None = None
    reward_clip_low: float | None = None
    clip: float | None = None
    clip_high: float | None = None
    ratio_level: Literal["token", "sequence"] = "token"
    updates_per_batch: int = 1
    log_ratio_clip: float | None = None
    kl_clip: float | None = None
    length: Literal["sum", "mean", "batch-mean"] = "sum"
    kl_length: Literal[None, "sum", "mean", "batch-mean"] = None
    eos: Literal["kept", "cut"] = "kept"
    entropy_bonus: float = 0.0
    charge: Literal["onward", "own"] = "onward"
    kl_centre: Literal["none", "batch-mean"] = "none"
    renormalize: Literal["none", "batch-std", "mean-abs"] = "none"
    advantage_clip: float | None = None
    reward_weights: tuple[float, ...] | None = None
    combine: Literal["sum", "normalize-then-sum"] = "sum"
    temperature: float = 1.0
    reference: Literal["fixed", "copied", "averaged", "lagged", "none"] = "fixed"
    reference_every: int | None = None
    reference_share: float = 1.0
    teacher: float = 0.0
    teacher_direction: Literal["reverse", "forward"] = "reverse"
    teacher_top_k: int | None = None
    kl_target: float | None = None
    kl_target_per: Literal["sequence", "token"] = "sequence"
    kl_gain: float = 0.01
    entropy_target: float | None = None

    def __post_init__(self) -> None:
        if self.estimator == "abs":
            object.__setattr__(self, "estimator", "absolute")
        if isinstance(self.reward_weights, list):
            object.__setattr__(self, "reward_weights", tuple(self.reward_weights))
        check_fields(self, Estimator)
        check_together(self)
        if callable(self.estimator) and self.place != "none":
            read_term(self.estimator, place=self.place)

    @property
    def aim(self) -> Aim:
        """What the expected gradient of the regulariser is that of, for any β above 0.

        k1 in the reward, k2 in the loss and weighted k1 or k3 in the loss follow the gradient of
        the reverse KL, k3 in the loss that of the forward KL, the absolute log-ratio in the loss
        that of total variation with twice the coefficient. k1 in the loss has no expected
        gradient, nor has the log-ratio to the sampler where the sampler is the policy itself. The
        others in the reward follow no divergence's.
        """
        if self.term is None:
            return _AIMS.get((self.place, cast(str, self.estimator)), "none")
        divergence = self.term.divergence
        if isinstance(divergence, TotalVariation):
            return "total variation"
        if isinstance(divergence, Scaled) and isinstance(divergence.base, TotalVariation):
            return "total variation"
        known: dict[Divergence | None, Aim] = {
            None: "none",
            ReverseKL(): "reverse",
            ForwardKL(): "forward",
        }
        return known.get(divergence, "other")

    @property
    def divergence(self) -> Divergence | None:
        """The divergence whose gradient this is at sequence level, None if it is that of none.

        Total variation, which has corners where others have a gradient, is not among them.
        """
        if self.aim == "other" and self.term is not None:
            return self.term.divergence
        return {"reverse": ReverseKL(), "forward": ForwardKL()}.get(self.aim)

    @property
    def variation_factor(self) -> float:
        """How many times the total variation an absolute log-ratio is."""
        divergence = None if self.term is None else self.term.divergence
        return divergence.factor if isinstance(divergence, Scaled) else 2.0

    @property
    def term(self) -> TermReading | None:
        """What an estimator that is a function does; None for those that have a name alone."""
        if self.place == "none":
            return None
        if self.estimator == "swapped-k3":
            return read_term(swapped_k3, place=self.place)
        return read_term(self.estimator, place=self.place) if callable(self.estimator) else None

    @property
    def weighted(self) -> bool:
        """Whether the estimator carries the probability of its sample, for its derivative."""
        named = self.estimator in ("weighted-k1", "weighted-k3")
        return self.place == "loss" and (named or isinstance(self.estimator, Weighted))

    @property
    def held(self) -> tuple[float, float]:
        """The log ratios beyond which the estimator does not hold the policy."""
        return (-math.inf, math.inf) if self.term is None else self.term.held

    @property
    def estimator_name(self) -> str:
        """The estimator in a word; of a function its own name."""
        if callable(self.estimator):
            return str(getattr(self.estimator, "__name__", type(self.estimator).__name__))
        return self.estimator

    @property
    def reward_bounds(self) -> tuple[float, float] | None:
        """What rewards are cut to after scaling, from below and from above; None if they are not.

        Example:
            >>> from kltarget.recipes import Recipe
            >>> Recipe(reward_clip=10.0).reward_bounds
            (-10.0, 10.0)
        """
        if self.reward_clip is None and self.reward_clip_low is None:
            return None
        high = math.inf if self.reward_clip is None else self.reward_clip
        return (-high if self.reward_clip_low is None else self.reward_clip_low), high

    @property
    def per_token(self) -> bool:
        """Whether the target is token-local, no gradient flowing through what prefixes are reached.

        So it is for a KL of tokens in the loss, or charged to each token alone. Tokens that are
        charged in the reward, each with the estimates from its own position on, add up to
        sequences.
        """
        return self.level == "token" and (self.place == "loss" or self.charge == "own")

    @property
    def charged_onward(self) -> bool:
        """Whether a token pays for what is charged to those that follow it."""
        return self.place == "reward" and self.charge == "onward"

    @property
    def moves_reference(self) -> bool:
        """Whether the reference follows the policy."""
        return self.reference in ("copied", "averaged", "lagged")

    @property
    def without_motion(self) -> Recipe:
        """The same at one moment, with its reference and β as they are and training's temperature.

        Example:
            >>> from kltarget.recipes import Recipe
            >>> Recipe(temperature=0.7, kl_target=6.0).without_motion == Recipe()
            True
        """
        fields: dict[str, Any] = {"temperature": 1.0, "kl_target": None}
        if self.moves_reference:
            fields |= {"reference": "fixed", "reference_every": None, "reference_share": 1.0}
        return dataclasses.replace(self, **fields)

    @property
    def charged_without_divergence(self) -> bool:
        """Whether there is a cost that acts, but is that of no divergence.

        It leaves several stationary policies: the path of training decides among them.
        """
        acts = self.place == "reward" or (self.term is not None and bool(self.term.falling))
        return acts and self.aim == "none"

    @property
    def charged_before(self) -> bool:
        """Whether the KL is charged to the reward before baseline and standard deviation are taken.

        Whatever is then done to the reward is done to the KL as well.
        """
        return self.place == "reward" and self.normalize_when == "after"

    @property
    def normalized(self) -> bool:
        """Whether rewards are divided by a number that moves with the policy, but not the KL.

        It then scales β.
        """
        divided = self.normalize != "none" or self.renormalize != "none"
        return divided and not self.charged_before

    @property
    def by_masses(self) -> bool:
        """Whether advantages depend on how likely each reward is, even in large groups.

        That is, on more than its mean and its standard deviation.
        """
        return (
            self.normalize == "group-mean"
            or self.renormalize != "none"
            or self.advantage_clip is not None
            or self.combine != "sum"
        )

    @property
    def baseline_shrinks(self) -> bool:
        """Whether each sample's share in its own baseline shrinks the reward, but not the KL."""
        return self.baseline == "mean" and not self.charged_before

    @property
    def baseline_factor(self) -> float:
        """What the baseline leaves of the reward's gradient, but not of the regulariser's.

        Advantages less the mean of G samples that includes the sample itself are shorter by
        ``(G − 1)/G`` in expectation; against a KL that is not part of them, β counts ``G/(G − 1)``
        times.
        """
        return 1 - 1 / self.group_size if self.group_size and self.baseline_shrinks else 1.0

    @property
    def depends_on_groups(self) -> bool:
        """Whether expected advantages depend on more than the mean of a finite group."""
        by_group = self.normalize in ("group-std", "others-std") or self.zero_std == "drop"
        return self.group_size is not None and (by_group or self.by_masses)

    @property
    def effective_formula(self) -> str | None:
        """Formula of the β that the target has in units of the raw reward, None without an aim.

        σ is the standard deviation of the rewards as the recipe scales and cuts them, r̄ their mean
        and S what all advantages are divided by once more, all under the policy in training. None
        too where rewards are normalised one by one.

        Example:
            >>> from kltarget.recipes import recipe
            >>> recipe("trl-grpo").effective_formula
            'β G/(G − 1) (σ + 1e-4)'
        """
        if self.aim == "none" or self.combine != "sum":
            return None
        formula = "β" if self.baseline_factor == 1 else "β G/(G − 1)"
        divisors = []
        if not self.charged_before:
            divisors += [] if self.normalize == "none" else ["σ"]
            divisors = ["r̄"] if self.normalize == "group-mean" else divisors
            divisors += [] if self.renormalize == "none" else ["S"]
        for divisor in divisors:
            factor = f"({divisor} + {compact(self.epsilon)})" if self.epsilon else divisor
            formula += factor if formula == "β" else f" {factor}"
        formula = formula if self.reward_scale == 1 else f"{formula}/{compact(self.reward_scale)}"
        return formula if self.temperature == 1 else f"{formula}/{compact(self.temperature)}"

    def effective_factor(self, reward_std: Any = None) -> Any:
        """The number of :attr:`effective_formula` in units of β.

        It is exact for large groups, and in finite ones wherever nothing is divided by a standard
        deviation; :func:`kltarget.implied.effective_beta` has that of finite groups.

        Args:
            reward_std: σ of the scaled rewards, a number or an array of any shape.

        Returns:
            Effective β over β, of the shape of ``reward_std`` if it matters; None if it matters and
            is not given, or if more than it matters.

        Example:
            >>> from kltarget.recipes import Recipe
            >>> k3 = Recipe("loss", "k3", baseline="mean", normalize="group-std", group_size=5)
            >>> print(f"{k3.effective_factor(0.5):.3f}")
            0.625
        """
        moved = self.by_masses and not self.charged_before
        if moved or (self.normalized and reward_std is None):
            return None
        deviation = reward_std + self.epsilon if self.normalized else 1.0
        return deviation / self.baseline_factor / self.reward_scale / self.temperature

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each ``setting``: its ``value``, and whether that is the ``default``.

        Example:
            >>> from kltarget.recipes import Recipe
            >>> frame = Recipe("loss", "k3").to_dataframe()
            >>> print(frame[~frame.default].to_string(index=False))
              setting value  default
                place  loss    False
            estimator    k3    False
        """
        import pandas as pd

        told = [(x.name, getattr(self, x.name), x.default) for x in dataclasses.fields(self)]
        rows = [(name, value, value == default) for name, value, default in told]
        return pd.DataFrame(rows, columns=["setting", "value", "default"])

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self._told())
        return f"Recipe({told})"

    def _repr_html_(self) -> str:
        rows = [("setting", "value"), *((name, str(value)) for name, value in self._told())]
        return Page([Table(rows, "ll")]).to_html()

    def _told(self) -> list[tuple[str, Any]]:
        """What every recipe is told by, and what is not as it is by default."""
        first = ("place", "estimator", "level", "baseline")
        fields = ((x.name, getattr(self, x.name), x.default) for x in dataclasses.fields(self))
        return [(name, x) for name, x, default in fields if name in first or x != default]
