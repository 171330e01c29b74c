"""The record of what a trainer does with its regulariser and its advantages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from kltarget.divergences import Divergence, ForwardKL, ReverseKL

_CHOICES = {
    "place": ("reward", "loss", "none"),
    "estimator": ("k1", "k2", "k3", "weighted-k3", "absolute", "sampler"),
    "level": ("sequence", "token"),
    "baseline": ("none", "mean", "leave-one-out"),
    "normalise": ("none", "group-std", "others-std", "batch-std"),
    "normalise_when": ("after", "before"),
    "zero_std": ("keep", "drop"),
    "length": ("sum", "mean", "batch-mean"),
    "kl_length": (None, "sum", "mean", "batch-mean"),
}
# Number fields: whether None is allowed, and what is asked of the others.
_NUMBERS: dict[str, tuple[bool, str, Callable[[float], bool]]] = {
    "beta": (True, "0 or more", lambda x: x >= 0),
    "epsilon": (False, "0 or more", lambda x: x >= 0),
    "reward_scale": (False, "above 0", lambda x: x > 0),
    "reward_clip": (True, "above 0", lambda x: x > 0),
    "clip": (True, "above 0", lambda x: x > 0),
    "clip_high": (True, "above 0", lambda x: x > 0),
    "log_ratio_clip": (True, "above 0", lambda x: x > 0),
    "kl_clip": (True, "above 0", lambda x: x > 0),
    "entropy_bonus": (False, "0 or more", lambda x: x >= 0),
}
_WHOLE = {"ddof": (0, False), "group_size": (2, True), "updates_per_batch": (1, False)}


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
            ``e^(−ℓ) − 1 + ℓ``, ``"weighted-k3"`` is k3 times ``π/sg(π)``, which is 1 but for its
            derivative (in the loss only), ``"absolute"`` is ``|ℓ|``; ``"sampler"`` is half the
            squared log-ratio to the policy that drew the sample instead of a reference (in the
            loss only).
        level: ``"sequence"`` applies the estimator to the log-ratio of the whole sequence,
            ``"token"`` to that of each token and sums. In the reward a token is then charged with
            the estimates from its own position on.
        baseline: what is subtracted from the return: nothing, the group's ``"mean"``, or
            ``"leave-one-out"``, the mean of the others in the group. A mean over G samples that
            includes the sample itself shortens the expected score-function gradient by
            ``(G − 1)/G``; leaving it out does not.
        normalise: what the return less its baseline is divided by: ``"none"``; ``"group-std"``, the
            standard deviation of the group; ``"others-std"``, that of the others in the group
            (nothing is divided where it is 0); ``"batch-std"``, that of the whole batch.
        normalise_when: whether baseline and standard deviation are taken ``"after"`` a KL in the
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
        clip: ε of the clipped ratio of a policy to the one that drew the sample, as in PPO. It acts
            only if a batch is used for more than one update.
        clip_high: ε of the upper side, as ``clip`` by default.
        updates_per_batch: gradient steps taken with the samples of one policy.
        log_ratio_clip: ``ℓ`` is cut to between minus and plus this before it is used.
        kl_clip: the estimate is cut likewise.
        length: how the tokens of a sequence count: ``"sum"`` adds them up, ``"mean"`` divides
            by its own number of tokens, ``"batch-mean"`` by the mean number of the batch.
        kl_length: the same for a KL in the loss; as ``length`` by default.
        entropy_bonus: coefficient of the entropy of each next-token distribution, added to what is
            ascended; no gradient flows through which prefixes are reached.

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

    place: str = "reward"
    estimator: str = "k1"
    level: str = "sequence"
    baseline: str = "none"
    normalise: str = "none"
    normalise_when: str = "after"
    epsilon: float = 0.0
    ddof: int = 0
    zero_std: str = "keep"
    group_size: int | None = None
    beta: float | None = None
    reward_scale: float = 1.0
    reward_clip: float | None = None
    clip: float | None = None
    clip_high: float | None = None
    updates_per_batch: int = 1
    log_ratio_clip: float | None = None
    kl_clip: float | None = None
    length: str = "sum"
    kl_length: str | None = None
    entropy_bonus: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                listed = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {listed}, got {value!r}")
        for name, (optional, asked, holds) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and optional:
                continue
            if (
                not isinstance(value, (int, float))
                or isinstance(value, bool)
                or not (math.isfinite(value) and holds(value))
            ):
                raise ValueError(f"{name} must be a number {asked}, got {value!r}")
        for name, (least, optional) in _WHOLE.items():
            value = getattr(self, name)
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer of {least} or more, got {value!r}")
        if self.place == "reward" and self.estimator in ("weighted-k3", "sampler"):
            raise ValueError(
                f"estimator={self.estimator!r} is made for its derivative, which place='reward' "
                "does not take: use place='loss'"
            )
        counted = (self.group_size or math.inf) - (self.normalise == "others-std")
        if self.normalise in ("group-std", "others-std") and self.ddof >= counted:
            raise ValueError(
                f"ddof={self.ddof} must be less than the {counted:g} samples whose standard "
                "deviation is taken: use a larger group_size"
            )

    @property
    def divergence(self) -> Divergence | None:
        """The divergence whose gradient this is at sequence level, None if there is none.

        k1 in the reward, k2 in the loss and weighted k3 in the loss follow the gradient of the
        reverse KL, k3 in the loss that of the forward KL. k1 in the loss has no expected gradient,
        nor has the log-ratio to the sampler where the sampler is the policy itself. The absolute
        log-ratio in the loss follows total variation, but with twice the coefficient; the others
        in the reward follow no divergence's.
        """
        if self.place == "reward":
            return ReverseKL() if self.estimator == "k1" else None
        if self.place == "none":
            return None
        in_loss = {"k2": ReverseKL(), "weighted-k3": ReverseKL(), "k3": ForwardKL()}
        return in_loss.get(self.estimator)

    @property
    def charged_before(self) -> bool:
        """Whether the KL is charged to the reward before baseline and standard deviation are taken.

        Whatever is then done to the reward is done to the KL as well.
        """
        return self.place == "reward" and self.normalise_when == "after"

    @property
    def baseline_shrinks(self) -> bool:
        """Whether each sample's share in its own baseline shrinks the reward, but not the KL.

        Advantages less the mean of G samples that includes the sample itself are shorter by
        ``(G − 1)/G`` in expectation; against a KL that is not part of them, β counts ``G/(G − 1)``
        times.
        """
        return self.baseline == "mean" and not self.charged_before

    @property
    def depends_on_groups(self) -> bool:
        """Whether expected advantages depend on more than the mean of a finite group."""
        nonlinear = self.normalise in ("group-std", "others-std") or self.zero_std == "drop"
        return self.group_size is not None and nonlinear
