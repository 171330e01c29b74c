"""Expected advantages in groups of G samples, from how often each reward occurs among the others.

A sample with reward r_a meets G − 1 others, whose counts over the reward levels are multinomial.
Its advantage depends on those counts alone, so its expectation ``u_a = E[A | a]`` is a finite sum.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from kltarget.recipes._recipe import Recipe

MOST_GROUPS = 200_000
NUM_SAMPLES = 2**15
_MOST_COUNTS = 2**23


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """What the others in a group can be: every possibility, or samples where they are too many.

    Attributes:
        recipe: which advantages are taken; of finite ``group_size``.
        levels: rewards in ascending order, ``[K]``.
        counts: of each level among the others, ``[C, K]``; None where they are sampled.
        uniforms: positions of sampled others in the distribution, ``[S, G − 1]``, or None.
    """

    recipe: Recipe
    levels: np.ndarray
    counts: np.ndarray | None
    uniforms: np.ndarray | None

    def part(self, index: int, of: int) -> Groups:
        """A part of the samples, to see how much they scatter."""
        assert self.uniforms is not None
        return dataclasses.replace(self, uniforms=self.uniforms[index::of])

    def expected(self, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``E[A | level]`` and the chance that its group counts, given ``[..., K]`` masses."""
        masses = np.maximum(masses, 0)
        masses = masses / masses.sum(-1, keepdims=True)
        advantage, kept = self._before_batches(masses)
        if self.recipe.normalize == "batch-std":
            # One number for all groups, dropped or not.
            mean = (masses * self.levels).sum(-1, keepdims=True)
            deviation = np.sqrt((masses * (self.levels - mean) ** 2).sum(-1, keepdims=True))
            safe = np.where(deviation > 0, deviation, 1.0) + self.recipe.epsilon
            advantage = np.where(deviation > 0, advantage / safe, 0.0)
        return advantage, kept

    def _before_batches(self, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.counts is not None:
            advantage, kept = self._table
            with np.errstate(divide="ignore"):
                logs = np.log(masses)[..., None, :]
            weighed = np.where(self.counts > 0, self.counts * np.where(self.counts, logs, 0), 0)
            chance = np.exp(self._log_arrangements + weighed.sum(-1))
            return chance @ advantage, chance @ kept
        if masses.ndim > 1:
            each = [self._before_batches(row) for row in masses.reshape(-1, masses.shape[-1])]
            advantage, kept = (np.reshape(x, masses.shape) for x in zip(*each, strict=True))
            return advantage, kept
        assert self.uniforms is not None
        drawn = np.searchsorted(np.cumsum(masses), self.uniforms)
        drawn = np.minimum(drawn, self.levels.size - 1)
        counts = np.zeros((len(drawn), self.levels.size))
        np.add.at(counts, (np.arange(len(drawn))[:, None], drawn), 1)
        advantage, kept = self._advantages(counts)
        return advantage.mean(0), kept.mean(0)

    @functools.cached_property
    def _log_arrangements(self) -> np.ndarray:
        """Logarithm of the number of orders in which each set of others can be drawn, ``[C]``."""
        assert self.counts is not None
        # A tenth of a second that importing the package does not pay.
        from scipy.special import gammaln

        return gammaln(self.counts.sum(1) + 1) - gammaln(self.counts + 1).sum(1)

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.counts is not None
        return self._advantages(self.counts)

    def _advantages(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Advantage of each level among each set of others ``[C, K]``, and whether it counts."""
        recipe, size = self.recipe, self.recipe.group_size or 0
        # Distances from a sample's own reward: nothing cancels where rewards are close.
        apart = self.levels[:, None] - self.levels[None]
        total, squares = counts @ apart, counts @ apart**2
        alone = counts == size - 1
        if recipe.baseline == "none":
            advantage = np.broadcast_to(self.levels, counts.shape)
        else:
            advantage = -total / (size - (recipe.baseline == "leave-one-out"))
        if recipe.normalize == "group-std":
            deviation = np.sqrt((squares - total**2 / size) / (size - recipe.ddof))
            safe = np.where(alone, 1.0, deviation) + recipe.epsilon
            advantage = np.where(alone, 0.0, advantage / safe)
        elif recipe.normalize == "others-std":
            left = np.maximum(squares - total**2 / (size - 1), 0)
            same = np.broadcast_to((counts == size - 1).any(1, keepdims=True), counts.shape)
            deviation = np.sqrt(left / (size - 1 - recipe.ddof))
            safe = np.where(same, 1.0, deviation + recipe.epsilon)
            advantage = advantage / safe
        kept = np.ones_like(total)
        if recipe.zero_std == "drop":
            kept = np.where(alone, 0.0, kept)
        return advantage * kept, kept


def make_groups(recipe: Recipe, levels: np.ndarray) -> Groups:
    """The groups that a recipe of finite ``group_size`` compares samples of these rewards in."""
    others = (recipe.group_size or 0) - 1
    if math.comb(others + levels.size - 1, others) <= MOST_GROUPS:
        return Groups(recipe, levels, _compositions(others, levels.size), None)
    number = max(2**8, min(NUM_SAMPLES, _MOST_COUNTS // levels.size))
    # The same samples at every step of a search, so that there is something to converge to.
    uniforms = np.random.default_rng(0).uniform(size=(number, others))
    return Groups(recipe, levels, None, uniforms)


def _compositions(total: int, parts: int) -> np.ndarray:
    """All ways to write ``total`` as a sum of ``parts`` numbers of 0 or more, one per row."""
    rows, left = np.zeros((1, 0), int), np.array([total])
    for _ in range(parts - 1):
        repeats = left + 1
        taken = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        rows = np.concatenate([np.repeat(rows, repeats, axis=0), taken[:, None]], axis=1)
        left = np.repeat(left, repeats) - taken
    return np.concatenate([rows, left[:, None]], axis=1)
