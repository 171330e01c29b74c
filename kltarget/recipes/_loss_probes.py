"""Whether the gradients of a loss are those of what was read, at points it was not read at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

Gradient = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""The derivative by ``logp``, of ``(logp, ref_logp, old_logp, advantages, mask)``."""

_STATE = "two calls with the same input differ: the loss keeps a state or draws at random"
_FULL = np.ones((3, 4))
_PADDED = np.array([[1.0, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
# Odd multiples of 1/64, points of the grid that slopes are known on, away from usual clips.
_RATIOS = np.array([[13, -27, 41, 9], [-35, 21, -15, 63], [51, -7, 29, -45]]) / 64
_NEAR = np.sign(_RATIOS) * np.array([[1, 3, 5, 1], [3, 1, 7, 5], [1, 5, 3, 3]]) / 64
_FAR = np.array([[-511, 35, 7, 93], [-17, 25, -119, 5], [-9, -33, 285, 31]]) / 64
_MIXED = np.array([-1.0, 2.0, 0.5])
_ADVANTAGES = (np.full(3, -1.0), np.full(3, 1.0), np.full(3, 2.0), _MIXED)


@dataclasses.dataclass(frozen=True)
class Model:
    """What was read, as far as gradients at samples of the policy itself go.

    Attributes:
        slopes: ``β c`` at the log ratios ``at``.
        level: what a token's ratio acts on: ``"token"``, ``"onward"`` or ``"sequence"``.
        centred: whether the batch's mean is taken off.
        length: how tokens count for the reward.
        kl_lengths: how they may count for the KL term.
    """

    at: np.ndarray
    slopes: np.ndarray
    level: str
    centred: bool
    length: str
    kl_lengths: tuple[str, ...]

    def reward_pull(self, advantages: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """What the reward's part of the gradient is, but for a factor."""
        return -advantages[:, None] * mask * _weight(self.length, mask)

    def kl_pull(self, ratios: np.ndarray, mask: np.ndarray, length: str) -> np.ndarray:
        """What the KL term's part is, by the same factor."""
        if self.level == "sequence":
            pull = np.interp((ratios * mask).sum(-1), self.at, self.slopes)
            pull = (pull - pull.mean() * self.centred)[:, None] * mask
        else:
            pull = np.interp(ratios, self.at, self.slopes) * mask
            pull = (pull - pull.sum() / mask.sum() * self.centred) * mask
        if self.level == "onward":
            pull = np.cumsum(pull[:, ::-1], axis=1)[:, ::-1] * mask
        return pull * _weight(length, mask)


def unexplained(gradient: Gradient, model: Model) -> tuple[str, ...]:
    """Sentences on what a loss does that its model does not."""
    return _Probes(gradient, model).found()


class _Probes:
    def __init__(self, gradient: Gradient, model: Model) -> None:
        self.gradient, self.model = gradient, model
        first = self.at(_RATIOS, _MIXED)
        single = bool((first == first.astype(np.float32)).all())
        self.tolerance = 1e-4 if single else 1e-7
        self.changes = self.differ(first, self.at(_RATIOS, _MIXED))
        self.unit = self.reward(np.ones(3), _FULL)
        self.size = float(np.abs(self.unit).max())

    def at(
        self,
        ratios: np.ndarray,
        advantages: np.ndarray | None = None,
        mask: np.ndarray = _FULL,
        logp: np.ndarray | float = -1.0,
    ) -> np.ndarray:
        here = np.broadcast_to(logp, mask.shape).astype(float)
        gains = np.zeros(3) if advantages is None else advantages
        return self.gradient(here, here - ratios, here, gains, mask)

    def reward(
        self, advantages: np.ndarray, mask: np.ndarray, logp: np.ndarray | float = -1.0
    ) -> np.ndarray:
        even = np.zeros_like(mask)
        return self.at(even, advantages, mask, logp) - self.at(even, None, mask, logp)

    def differ(self, one: np.ndarray, other: np.ndarray, least: float = 0.0) -> bool:
        size = max(np.abs(one).max(), np.abs(other).max(), least)
        return bool(np.abs(one - other).max() > self.tolerance * size)

    def found(self) -> tuple[str, ...]:
        if self.changes:
            return (_STATE,)
        of_reward = self.of_reward()
        return (*self.of_kl(unweighed=bool(of_reward)), *of_reward)

    def of_reward(self) -> list[str]:
        said = []
        model, size = self.model, self.size
        padded = self.reward(np.ones(3), _PADDED)
        if np.abs(padded * (1 - _PADDED)).max() > self.tolerance * size:
            said.append("the reward's part moves padded tokens")
        wide = np.broadcast_to(np.linspace(-3.0, -0.5, 4), _FULL.shape)
        if self.differ(self.reward(np.ones(3), _FULL, wide), self.unit):
            said.append("the reward's part depends on logp itself, beside its ratio to the sampler")
        if self.differ(self.unit, self.unit[:, :1] + 0 * _FULL):
            said.append("the reward's part depends on the position of a token")
        alone = np.array([0.0, 2.0, 0.0])
        among = self.reward(_MIXED, _FULL)[1]
        if self.differ(self.reward(alone, _FULL)[1], among, size):
            said.append("the reward's part depends on the advantages of other sequences")
        elif any(self.differ(self.reward(x, _FULL), x[:, None] * self.unit) for x in _ADVANTAGES):
            said.append("the reward's part is not proportional to the advantage")
        if not said:
            full = model.reward_pull(np.ones(3), _FULL)
            if self.differ(padded / self.unit, model.reward_pull(np.ones(3), _PADDED) / full):
                said.append("how lengths count for the reward is neither sum, mean nor batch-mean")
        return said

    def of_kl(self, *, unweighed: bool) -> list[str]:
        """Of the KL term; ``unweighed`` where the reward's part gives it no scale."""
        said = []
        even = np.zeros_like(_FULL)
        without = self.at(_RATIOS)
        moved = without - self.at(even)
        if any(
            self.differ(self.at(_RATIOS, x) - self.at(even, x), moved, 0.02 * self.size)
            for x in _ADVANTAGES
        ):
            said.append("the KL term depends on the advantage")
        wide = np.broadcast_to(np.linspace(-3.0, -0.5, 4), _FULL.shape)
        if self.off(self.at(_RATIOS, logp=wide), without):
            said.append(
                "the KL term depends on logp itself, beside its ratio to the reference, or an "
                "entropy bonus is beside it"
            )
        on_padding = self.on_padding()
        if on_padding:
            said.append("the KL term depends on padding: tokens that the mask leaves out count")
        if self.by_position():
            said.append("the KL term depends on the position of a token")
        masks = (_FULL,) if on_padding else (_FULL, _PADDED)
        fits, factor = self.fit(masks)
        if not fits and (not said or said == ["the KL term depends on the advantage"]):
            what = {"sequence": "one function of each sequence's log ratio"}
            said.append(f"the KL term is not {what.get(self.model.level, 'a sum over tokens')}")
        elif fits and not unweighed and abs(factor - 1) > 10 * self.tolerance:
            said.append(
                "the KL term's weight beside the reward depends on the shape of the batch: for 3 "
                f"sequences of 4 tokens it is {factor:.3g} times what it is for single tokens"
            )
        return said

    def off(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether two KL pulls differ, which may both be nothing."""
        return self.differ(one, other, 1e-3 * self.size)

    def on_padding(self) -> bool:
        inside = self.at(_RATIOS, mask=_PADDED)
        outside = self.at(_RATIOS * _PADDED - 2 * (1 - _PADDED), mask=_PADDED)
        return self.off(inside * (1 - _PADDED), 0 * inside) or self.off(inside, outside)

    def by_position(self) -> bool:
        for ratio in (-1.0, 1.0):
            ratios = ratio * _FULL
            pull = self.at(ratios)
            model = self.model.kl_pull(ratios, _FULL, self.model.kl_lengths[0])
            rest = pull - _fitted(pull, model) * model
            least = max(float(np.abs(pull).max()), 1e-3 * self.size)
            if np.abs(rest - rest[:, :1]).max() > self.tolerance * least:
                return True
        return False

    def fit(self, masks: tuple[np.ndarray, ...]) -> tuple[bool, float]:
        """Whether one factor makes the model's KL pulls the loss's, and that factor."""
        probes = [(x, mask) for x in (_NEAR, _RATIOS, _FAR) for mask in masks]
        actual = [self.at(ratios, mask=mask) for ratios, mask in probes]
        scale = self.size / float(np.abs(self.model.reward_pull(np.ones(3), _FULL)).max())
        for length in self.model.kl_lengths:
            model = [scale * self.model.kl_pull(*probe, length) for probe in probes]
            # Near the reference by what is left there, far from it the rest follows.
            factor = _fitted(actual[0], model[0])
            if not any(self.off(x, factor * y) for x, y in zip(actual, model, strict=True)):
                return True, factor if np.abs(model[0]).max() > 0 else 1.0
        return False, 1.0


def _fitted(actual: np.ndarray, model: np.ndarray) -> float:
    """The factor of the model that is closest."""
    size = float((model * model).sum())
    return float((actual * model).sum()) / size if size > 0 else 0.0


def _weight(length: str, mask: np.ndarray) -> np.ndarray:
    own = mask.sum(-1, keepdims=True)
    return {"sum": np.ones_like(own), "mean": 1 / own, "batch-mean": 1 / own.mean() + 0 * own}[
        length
    ]
