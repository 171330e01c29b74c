"""How a trainer applies its regulariser, as data."""

from __future__ import annotations

import dataclasses

from kltarget.divergences import Divergence, ForwardKL, ReverseKL

__all__ = ["Recipe"]

_CHOICES = {
    "place": ("reward", "loss", "none"),
    "estimator": ("k1", "k2", "k3", "weighted-k3"),
    "level": ("sequence", "token"),
    "baseline": ("none", "mean", "leave-one-out"),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a policy-gradient trainer estimates the KL to its reference and where it puts it.

    Different recipes with the same β have different targets: not the name of the KL decides, but
    the gradient that is followed.

    Args:
        place: ``"reward"`` subtracts β times the estimate from the reward, as a number without a
            derivative; ``"loss"`` adds it to the loss, differentiates it as it stands and does not
            weigh it by the probability of the sample; ``"none"`` leaves it out.
        estimator: of the log-ratio ``ℓ = log π/π_ref``: ``"k1"`` is ``ℓ``, ``"k2"`` is ``ℓ²/2``,
            ``"k3"`` is ``e^(−ℓ) − 1 + ℓ``, ``"weighted-k3"`` is k3 times ``π/sg(π)``, which is 1
            but for its derivative; in the loss only.
        level: ``"sequence"`` applies the estimator to the log-ratio of the whole sequence,
            ``"token"`` to that of each token and sums. In the reward a token is then charged with
            the estimates from its own position on.
        baseline: what is subtracted from the return: nothing, the group's ``"mean"``, or
            ``"leave-one-out"``, the mean of the others in the group. A mean over G samples that
            includes the sample itself shortens the expected score-function gradient by
            ``(G − 1)/G``; leaving it out does not.

    Raises:
        ValueError: an unknown choice, or weighted k3 in the reward.

    Example:
        >>> from kltarget.training import Recipe
        >>> Recipe(place="loss", estimator="k3").divergence
        ForwardKL()
        >>> Recipe(place="loss", estimator="k4")
        Traceback (most recent call last):
        ...
        ValueError: estimator must be one of 'k1', 'k2', 'k3', 'weighted-k3', got 'k4'

    References:
        Schulman, "Approximating KL Divergence", 2020 (names and forms of k1, k2, k3). Tang and
        Munos, "On a few pitfalls in KL divergence gradient estimation for RL", 2025, arXiv
        2506.09477.
    """

    place: str = "reward"
    estimator: str = "k1"
    level: str = "sequence"
    baseline: str = "none"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                listed = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {listed}, got {value!r}")
        if self.place == "reward" and self.estimator == "weighted-k3":
            raise ValueError(
                "estimator='weighted-k3' differs from 'k3' by a derivative that place='reward' "
                "does not take: use place='loss' or estimator='k3'"
            )

    @property
    def divergence(self) -> Divergence | None:
        """The divergence whose gradient this is at sequence level, None if there is none.

        k1 in the reward, k2 in the loss and weighted k3 in the loss follow the gradient of the
        reverse KL, k3 in the loss that of the forward KL. k1 in the loss has no expected gradient;
        k2 and k3 in the reward follow no divergence's.
        """
        if (self.place, self.estimator) in (
            ("reward", "k1"),
            ("loss", "k2"),
            ("loss", "weighted-k3"),
        ):
            return ReverseKL()
        return ForwardKL() if (self.place, self.estimator) == ("loss", "k3") else None
