"""Pairs of outcomes and how often each was preferred to the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kltarget._core.checks import broadcasts_to


@dataclasses.dataclass(frozen=True, eq=False)
class Preferences:
    """Pairs of outcomes of one prompt, and how often each was preferred to the other.

    A pair may occur more than once, in either order: its entries add up.

    Attributes:
        first: indices of outcomes, integers ``[P]``.
        second: what each of them was compared with, integers ``[P]``.
        wins: how often, or with which weight, the first was preferred, float64 ``[P]``.
        losses: how often the second was, ``[P]``.
        labels: the names of all outcomes, in their order; None where outcomes have none.

    Raises:
        ValueError: there is no pair, shapes differ, an outcome is compared with itself, an index
            has no label or is negative, or a weight is negative or not finite; the message names
            the argument and the pair.

    Example:
        >>> from kltarget.tasks import Preferences
        >>> pairs = Preferences([0, 1], [1, 2], wins=[3, 1], losses=[1, 1])
        >>> pairs.win_rate.tolist(), pairs.num_outcomes
        ([0.75, 0.5], 3)
    """

    first: Any
    second: Any
    wins: Any
    losses: Any
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            indices = np.asarray(getattr(self, name))
            if indices.size and not np.issubdtype(indices.dtype, np.integer):
                raise ValueError(f"{name} must be integer indices, got dtype {indices.dtype}")
            _keep(self, name, indices.astype(np.int64))
        for name in ("wins", "losses"):
            _keep(self, name, np.asarray(getattr(self, name), np.float64))
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))
        shapes = {x: getattr(self, x).shape for x in ("first", "second", "wins", "losses")}
        if len(set(shapes.values())) > 1 or self.first.ndim != 1:
            listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(f"the shapes {listing} differ: give one entry per pair, [P]")
        if not self.first.size:
            raise ValueError("first is empty: give at least one pair")
        self._check_entries()

    def _check_entries(self) -> None:
        lowest = np.minimum(self.first, self.second)
        _refuse(lowest < 0, "first and second must be 0 or more")
        _refuse(self.first == self.second, "first and second must be different outcomes")
        for name in ("wins", "losses"):
            weights = getattr(self, name)
            good = np.isfinite(weights) & (weights >= 0)
            _refuse(~good, f"{name} must be finite and 0 or more")
        _refuse(self.comparisons == 0, "wins and losses are both 0: leave the pair out")
        if self.labels is not None:
            beyond = np.maximum(self.first, self.second) >= len(self.labels)
            _refuse(beyond, f"first and second must be below {len(self.labels)}, one per label")

    @classmethod
    def from_win_rates(
        cls,
        first: ArrayLike,
        second: ArrayLike,
        win_rate: ArrayLike,
        comparisons: ArrayLike = 1.0,
        *,
        labels: Sequence[str] | None = None,
    ) -> Preferences:
        """Pairs of which the share of wins is known.

        Args:
            first: indices of outcomes, ``[P]``.
            second: what each of them was compared with, ``[P]``.
            win_rate: how likely the first is preferred, between 0 and 1, a number or ``[P]``.
            comparisons: the weight of each pair, above 0, a number or ``[P]``.
            labels: the names of all outcomes, in their order.

        Returns:
            The pairs, with ``win_rate · comparisons`` wins each.

        Raises:
            ValueError: a win rate is not between 0 and 1, or as for the class.

        Example:
            >>> from kltarget.tasks import Preferences
            >>> Preferences.from_win_rates([0], [1], [0.75], comparisons=8).wins.tolist()
            [6.0]
        """
        rate, number = np.asarray(win_rate, np.float64), np.asarray(comparisons, np.float64)
        _refuse(~((rate >= 0) & (rate <= 1)), "win_rate must be between 0 and 1")
        shape = np.shape(first)
        if broadcasts_to(rate.shape, shape) and broadcasts_to(number.shape, shape):
            rate, number = (np.broadcast_to(x, shape) for x in (rate, number))
        else:
            raise ValueError(
                f"win_rate {rate.shape} and comparisons {number.shape} must be numbers or have an "
                f"entry per pair, as first {shape}"
            )
        return cls(first, second, rate * number, (1 - rate) * number, labels)

    @property
    def comparisons(self) -> np.ndarray:
        """How often each pair was compared, or its weight, ``[P]``."""
        return self.wins + self.losses

    @property
    def win_rate(self) -> np.ndarray:
        """The share of comparisons that the first won, ``[P]``."""
        return self.wins / self.comparisons

    @property
    def num_outcomes(self) -> int:
        """One per label or, without labels, as many as reach to the last that is compared."""
        if self.labels is not None:
            return len(self.labels)
        return int(max(self.first.max(), self.second.max())) + 1

    def label(self, outcome: int) -> str:
        """What an outcome is called: its label or, without labels, its index."""
        return str(outcome) if self.labels is None else str(self.labels[outcome])

    def win_matrix(self, num_outcomes: int | None = None) -> np.ndarray:
        """How often each outcome was preferred to each other one, ``[A, A]``.

        Args:
            num_outcomes: A; by default that of the pairs.

        Returns:
            Entry ``[i, j]`` is how often i was preferred to j.

        Example:
            >>> from kltarget.tasks import Preferences
            >>> Preferences([0, 1], [1, 0], [3, 2], [1, 0]).win_matrix().tolist()
            [[0.0, 3.0], [3.0, 0.0]]
        """
        size = self.num_outcomes if num_outcomes is None else num_outcomes
        wins = np.zeros((size, size))
        np.add.at(wins, (self.first, self.second), self.wins)
        np.add.at(wins, (self.second, self.first), self.losses)
        return wins


def smoothing_of(label_smoothing: Any, loss: str) -> float:
    """The share of labels that a loss takes for wrong; an error if it has none or is no share."""
    try:
        share = float(label_smoothing)
    except (TypeError, ValueError):
        share = float("nan")
    if not 0 <= share < 0.5:
        raise ValueError(
            f"label_smoothing must be from 0 to less than 0.5, got {label_smoothing!r}"
        )
    if share and loss != "dpo":
        raise ValueError(f"label_smoothing is for loss='dpo' alone, not for {loss!r}: leave it out")
    return share


def _keep(preferences: Preferences, name: str, array: np.ndarray) -> None:
    array = array.copy()
    array.setflags(write=False)
    object.__setattr__(preferences, name, array)


def _refuse(bad: np.ndarray, rule: str) -> None:
    places = np.flatnonzero(bad)
    if places.size:
        raise ValueError(f"{rule}: not so in pair {places[0]}")
