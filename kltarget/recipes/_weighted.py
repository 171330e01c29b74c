"""A term of the loss that carries the probability of its sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kltarget.recipes._term_sources import called


class Weighted:
    """A term of a loss times ``π/sg(π)``, which is 1 but for its derivative.

    With samples from the policy and log ratios ``ℓ = log π/π_ref``, a term g that is weighted has
    the gradient of its own mean ``E_π[g]``, through the sampling too, which is that of the
    divergence with ``f′(u) = g(log u) + g′(log u)``. A recipe with this estimator in its loss has
    the target of ``E_π[r] − β D``. Over several updates per batch the weight is the ratio of the
    policy to the one that drew the sample, as trainers write it. Called with log ratios, it returns
    what the term does.

    Args:
        term: a function g of an array of log ratios, elementwise, as
            :func:`kltarget.recipes.divergence_of` takes.

    Raises:
        TypeError: ``term`` is no function, or weighted already.

    Example:
        >>> from kltarget.recipes import Recipe, Weighted
        >>> Recipe("loss", Weighted(lambda x: x)).divergence
        ReverseKL()
        >>> print(Recipe("loss", Weighted(lambda x: x**4)).aim)
        other

    References:
        Tang and Munos, "On a few pitfalls in KL divergence gradient estimation for RL", 2025, arXiv
        2506.09477, for the estimators; ``∇E_π[g] = E_π[(g + g′) ∇log π]`` is the product's rule.
    """

    def __init__(self, term: Callable[[Any], Any]) -> None:
        if isinstance(term, Weighted):
            raise TypeError(f"term {called(term)} is weighted already: give the function itself")
        if not callable(term):
            raise TypeError(f"term must be a function of log ratios, got {type(term).__name__}")
        self.__wrapped__ = term
        self.__name__ = f"weighted {called(term)}"

    @property
    def term(self) -> Callable[[Any], Any]:
        """The function without its weight."""
        return self.__wrapped__

    def __call__(self, log_ratio: Any) -> Any:
        return self.term(log_ratio)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weighted) and self.term == other.term

    def __hash__(self) -> int:
        return hash((Weighted, self.term))

    def __repr__(self) -> str:
        return f"Weighted({called(self.term)})"


def term_and_place(term: Any, place: str) -> tuple[Any, str]:
    """A term without its weight, and where it then is.

    Raises:
        ValueError: a weighted term anywhere but in the loss.
    """
    if not isinstance(term, Weighted):
        return term, place
    if place != "loss":
        raise ValueError(
            f"term {called(term)} is made for its derivative, which place={place!r} does not take: "
            "use place='loss'"
        )
    return term.term, "weighted-loss"
