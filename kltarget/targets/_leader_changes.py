"""Where what leads changes as β does: intervals are halved until they are points."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from kltarget._core.checks import positive


class LeaderChange(NamedTuple):
    """A β at which one leader takes over from another, somewhere.

    Attributes:
        beta: where, in reward units per nat.
        place: whose leaders they are, an index.
        below: who leads below it.
        above: who leads above it.
    """

    beta: float
    place: tuple[int, ...]
    below: int
    above: int


def leader_changes(
    leaders: Callable[[np.ndarray], np.ndarray], beta: ArrayLike, num_halvings: int
) -> list[LeaderChange]:
    """Halves every interval of β in which a leader changes, all of them at once.

    Args:
        leaders: who leads at each of N numbers β, integers ``[N, *places]``.
        beta: increasing, at least two.
        num_halvings: how often an interval is halved, in the logarithm of β.
    """
    positive("num_halvings", num_halvings)
    grid = np.asarray(beta, float)
    if grid.ndim != 1 or len(grid) < 2 or not (np.diff(grid) > 0).all():
        raise ValueError("beta must be two or more increasing numbers, [N]")
    first = leaders(grid)
    k, *places = np.nonzero(first[1:] != first[:-1])
    if not len(k):
        return []
    low, high = np.log(grid[k]), np.log(grid[k + 1])
    below, above = first[(k, *places)], first[(k + 1, *places)]
    every = np.arange(len(k))
    for _ in range(num_halvings):
        middle = (low + high) / 2
        here = leaders(np.exp(middle))[(every, *places)]
        # A third action that leads in between ends the interval above it.
        stays = here == below
        low, high = np.where(stays, middle, low), np.where(stays, high, middle)
        above = np.where(stays, above, here)
    at = [tuple(map(int, place)) for place in zip(*places, strict=True)]
    rows = zip(np.exp((low + high) / 2), at, below, above, strict=True)
    return [LeaderChange(float(b), place, int(i), int(j)) for b, place, i, j in rows]
