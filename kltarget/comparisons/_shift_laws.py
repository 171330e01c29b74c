"""What a change of success rates looks like, prompt by prompt, if a law of RL made it.

Each law says by how much the log-odds of a prompt shift, as a function of what they were: targets
by their β, paths of exact policy gradients by how far they went.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.interpolate import PchipInterpolator

from kltarget.implied.success import NODES, shaped, target_log_odds
from kltarget.recipes import Recipe

Kind = Literal["none", "target", "path", "recipe"]
_BETAS, _TAUS = np.geomspace(0.05, 60.0, 61), np.geomspace(0.03, 300.0, 61)
_HALVINGS = 50
_WIDEST = 60.0
_STEEP = 200.0


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """Shifts with one parameter.

    Attributes:
        name: a short one.
        title: in words.
        kind: whether it is a target, a path on the way to none, or no change at all.
        symbol: of the parameter.
        parameters: a grid of them, ascending, ``[T]``.
        table: shifts of the log-odds at ``NODES``, ``[T, N]``.
    """

    name: str
    title: str
    kind: Kind
    symbol: str
    parameters: np.ndarray
    table: np.ndarray

    def shifts(self, parameters: np.ndarray) -> np.ndarray:
        """At parameters between those of the grid, ``[S, N]``."""
        if self.parameters.size == 1:
            return self.table
        low, high = self.parameters[[0, -1]]
        return self._between(np.log(np.clip(parameters, low, high)))

    @functools.cached_property
    def _between(self) -> PchipInterpolator:
        return PchipInterpolator(np.log(self.parameters), self.table)


def families(rewards: np.ndarray, recipe: Recipe | None, name: str) -> list[Family]:
    """All laws, and the target of a recipe of one's own where there is one.

    Args:
        rewards: of a wrong and of a right sample, ``[2]``.
        recipe: what the trainer does.
        name: what it is called.
    """
    normalized = Recipe("loss", "k3", baseline="mean", normalize="group-std")
    targets = [
        ("reverse", "reverse-KL target", Recipe()),
        ("forward", "forward-KL target", Recipe("loss", "k3")),
        (
            "reverse-std",
            "reverse-KL target, σ-normalized",
            dataclasses.replace(normalized, estimator="k2"),
        ),
        ("forward-std", "forward-KL target, σ-normalized", normalized),
    ]
    nothing = np.zeros((1, NODES.size))
    found = [Family("none", "no change", "none", "", np.zeros(1), nothing)]
    found += [_target(x, title, "target", y, rewards) for x, title, y in targets]
    if recipe is not None:
        own = shaped(rewards, recipe.reward_scale, recipe.reward_bounds)
        found.append(_target("recipe", f"target of {name}", "recipe", recipe, own))
    paths = [
        ("gradient", "policy gradient", _of_gradient),
        ("gradient-std", "policy gradient, σ-normalized", _of_normalized_gradient),
        ("maxrl", "MaxRL gradient", _of_maximum_likelihood),
    ]
    found += [Family(x, title, "path", "τ", _TAUS, _walked(y)) for x, title, y in paths]
    return found


def _target(name: str, title: str, kind: Kind, recipe: Recipe, rewards: np.ndarray) -> Family:
    # Normalized advantages have no unit, and so has their β.
    unit = 1.0 if recipe.normalized else float(rewards[1] - rewards[0])
    betas = unit * _BETAS
    return Family(name, title, kind, "β", betas, shifts(recipe, rewards, betas))


def shifts(recipe: Recipe, rewards: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Of log-odds at ``NODES``, from a reference to the target of a recipe: ``[B, N]``."""
    # Beyond the nodes success is certain to all digits.
    return np.clip(target_log_odds(recipe, rewards, beta), NODES[0], NODES[-1]) - NODES


# What the time of a flow from log-odds l to l + d is. With p the success, the log-odds move at the
# speed p(1 − p), √(p(1 − p)) or 1 − p, and time is the integral of its inverse.


def _of_gradient(start: np.ndarray, gone: np.ndarray) -> np.ndarray:
    return 2 * gone + 4 * _cosh(start + gone / 2) * np.sinh(gone / 2)


def _of_normalized_gradient(start: np.ndarray, gone: np.ndarray) -> np.ndarray:
    return 8 * _cosh(start / 2 + gone / 4) * np.sinh(gone / 4)


def _of_maximum_likelihood(start: np.ndarray, gone: np.ndarray) -> np.ndarray:
    return gone + np.exp(start) * np.expm1(gone)


def _cosh(x: np.ndarray) -> np.ndarray:
    return np.cosh(np.clip(x, -_STEEP, _STEEP))


@functools.cache
def _walked(time: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """How far log-odds have gone after each time, ``[T, N]``."""
    low = np.zeros((_TAUS.size, NODES.size))
    high = np.full_like(low, _WIDEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        early = time(NODES, middle) < _TAUS[:, None]
        low, high = np.where(early, middle, low), np.where(early, high, middle)
    return (low + high) / 2
