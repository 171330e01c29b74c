"""Expected advantages, from how likely each reward is.

A sample meets G − 1 others in its group, whose counts over the reward levels are multinomial. Its
advantage depends on those counts alone, so its expectation ``u_a = E[A | a]`` is a finite sum; in
large groups the counts are the masses.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math

import numpy as np

from kltarget.recipes._recipe import Recipe

MOST_GROUPS = 200_000
NUM_SAMPLES = 2**15
_MOST_COUNTS = 2**23
_NEVER = -1e4


@dataclasses.dataclass(frozen=True, eq=False)
class Advantages(abc.ABC):
    """What a recipe makes of rewards, given how likely each level of them is.

    Attributes:
        recipe: which advantages are taken.
        levels: rewards in ascending order, ``[K]``; of several rewards ``[K, J]``.
    """

    recipe: Recipe
    levels: np.ndarray

    @property
    def sampled(self) -> bool:
        """Whether expectations are means over samples."""
        return False

    def expected(self, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``E[A | level]`` and the chance that its group counts, given ``[..., K]`` masses."""
        masses = np.maximum(masses, 0)
        masses = masses / masses.sum(-1, keepdims=True)
        if masses.ndim > 1 and self._one_by_one:
            each = [self._expected(row) for row in masses.reshape(-1, masses.shape[-1])]
            advantage, kept = (np.reshape(x, masses.shape) for x in zip(*each, strict=True))
            return advantage, kept
        return self._expected(masses)

    def _expected(self, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`expected`, of masses that add up to 1."""
        chance, advantage, kept = self._among_others(masses)
        recipe = self.recipe
        if recipe.normalize == "batch-std":
            # One number for all groups, dropped or not.
            deviation = self._deviations(masses)[..., 0, None, None]
            advantage = _over(advantage, deviation, recipe.epsilon)
        if recipe.renormalize != "none":
            weight = chance[..., None] * masses[..., None, :] * kept
            size = _scatter(recipe, weight, advantage)[..., None, None]
            advantage = _over(advantage, size, recipe.epsilon)
        if recipe.advantage_clip is not None:
            advantage = np.clip(advantage, -recipe.advantage_clip, recipe.advantage_clip)
        advantage = advantage * kept
        return _mean(chance, advantage), _mean(chance, kept)

    def _deviations(self, masses: np.ndarray) -> np.ndarray:
        """The standard deviation of each reward, ``[..., J]``."""
        rewards = self._rewards
        mean = masses @ rewards
        apart = rewards - mean[..., None, :]
        return np.sqrt((masses[..., None] * apart**2).sum(-2))

    @property
    def _rewards(self) -> np.ndarray:
        """``[K, J]``, one column for one reward."""
        return self.levels if self.levels.ndim == 2 else self.levels[:, None]

    @property
    def _weights(self) -> tuple[float, ...]:
        several = self.levels.ndim == 2 and self.recipe.reward_weights is not None
        return self.recipe.reward_weights if several and self.recipe.reward_weights else (1.0,)

    @property
    @abc.abstractmethod
    def _one_by_one(self) -> bool:
        """Whether rows of masses are to be taken one after the other."""

    @abc.abstractmethod
    def _among_others(self, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Chances ``[..., C]`` of sets of others, advantages ``[..., C, K]``, and what counts."""


@dataclasses.dataclass(frozen=True, eq=False)
class LargeGroups(Advantages):
    """The limit of large groups: everybody meets the same others."""

    @property
    def _one_by_one(self) -> bool:
        return False

    def _among_others(self, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        recipe, rewards = self.recipe, self._rewards
        mean, deviation = masses @ rewards, self._deviations(masses)
        total = np.zeros(masses.shape)
        for j, weight in enumerate(self._weights):
            centre = 0.0 if recipe.baseline == "none" else mean[..., j, None]
            each = rewards[:, j] - centre
            if recipe.normalize in ("group-std", "others-std"):
                each = _over(each, deviation[..., j, None], recipe.epsilon)
            elif recipe.normalize == "group-mean":
                each = _over(each, mean[..., j, None], recipe.epsilon)
            total = total + weight * each
        total = total[..., None, :]
        return np.ones((*masses.shape[:-1], 1)), total, np.ones_like(total)


@dataclasses.dataclass(frozen=True, eq=False)
class Groups(Advantages):
    """What the others in a group can be: every possibility, or samples where they are too many.

    Attributes:
        counts: of each level among the others, ``[C, K]``; None where they are sampled.
        uniforms: positions of sampled others in the distribution, ``[S, G − 1]``, or None.
    """

    counts: np.ndarray | None
    uniforms: np.ndarray | None

    @property
    def sampled(self) -> bool:
        """Whether expectations are means over samples."""
        return self.counts is None

    def part(self, index: int, of: int) -> Groups:
        """A part of the samples, to see how much they scatter."""
        assert self.uniforms is not None
        return dataclasses.replace(self, uniforms=self.uniforms[index::of])

    @property
    def _one_by_one(self) -> bool:
        # What is divided by a number of the masses is a table for each of them.
        recipe = self.recipe
        divided = recipe.normalize == "batch-std" or recipe.renormalize != "none"
        return self.counts is None or divided

    def _among_others(self, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.counts is not None:
            advantage, kept = self._table
            with np.errstate(divide="ignore"):
                # What never occurs is a number here, for it may occur 0 times.
                logs = np.maximum(np.log(masses), _NEVER)
            return np.exp(self._log_arrangements + logs @ self.counts.T), advantage, kept
        assert self.uniforms is not None
        number, several = len(self.uniforms), len(self.levels)
        drawn = np.searchsorted(np.cumsum(masses), self.uniforms)
        drawn = np.minimum(drawn, several - 1)
        counts = np.zeros((number, several))
        np.add.at(counts, (np.arange(number)[:, None], drawn), 1)
        return np.full(number, 1 / number), *self._advantages(counts)

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
        recipe, rewards = self.recipe, self._rewards
        columns = [self._of_one(counts, rewards[:, j]) for j in range(rewards.shape[1])]
        advantage = sum(w * x for w, (x, _) in zip(self._weights, columns, strict=True))
        alone = np.all([same for _, same in columns], 0)
        drop = alone & (recipe.zero_std == "drop")
        return np.asarray(advantage), np.where(drop, 0.0, 1.0)

    def _of_one(self, counts: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of one reward: its advantage, and where all in the group have the same."""
        recipe, size = self.recipe, self.recipe.group_size or 0
        # Distances from a sample's own reward: nothing cancels where rewards are close.
        apart = levels[:, None] - levels[None]
        total, squares = counts @ apart, counts @ apart**2
        alone = squares == 0
        if recipe.baseline == "none":
            advantage = np.broadcast_to(levels, counts.shape)
        else:
            advantage = -total / (size - (recipe.baseline == "leave-one-out"))
        if recipe.normalize == "group-std":
            deviation = np.sqrt((squares - total**2 / size) / (size - recipe.ddof))
            advantage = _over(advantage, np.where(alone, 0.0, deviation), recipe.epsilon)
        elif recipe.normalize == "group-mean":
            advantage = _over(advantage, levels + total / size, recipe.epsilon)
        elif recipe.normalize == "others-std":
            left = np.maximum(squares - total**2 / (size - 1), 0)
            others = counts @ (levels[:, None] == levels[None])
            same = (others == size - 1).any(1, keepdims=True) & np.ones_like(alone)
            deviation = np.sqrt(left / (size - 1 - recipe.ddof))
            safe = np.where(same, 1.0, deviation + recipe.epsilon)
            advantage = advantage / safe
        return advantage, alone


def make_groups(recipe: Recipe, levels: np.ndarray) -> Advantages:
    """What a recipe makes of rewards ``[K]``, or of several at once ``[K, J]``."""
    if recipe.group_size is None:
        return LargeGroups(recipe, levels)
    others, number = recipe.group_size - 1, len(levels)
    if math.comb(others + number - 1, others) <= MOST_GROUPS:
        return Groups(recipe, levels, _compositions(others, number), None)
    samples = max(2**8, min(NUM_SAMPLES, _MOST_COUNTS // number))
    # The same samples at every step of a search, so that there is something to converge to.
    uniforms = np.random.default_rng(0).uniform(size=(samples, others))
    return Groups(recipe, levels, None, uniforms)


def _over(advantage: np.ndarray, size: np.ndarray, epsilon: float) -> np.ndarray:
    """``advantage/(size + epsilon)``, and 0 where the size is."""
    some = size > 0
    return np.where(some, advantage / (np.where(some, size, 1.0) + epsilon), 0.0)


def _scatter(recipe: Recipe, weight: np.ndarray, advantage: np.ndarray) -> np.ndarray:
    """The standard deviation of all advantages that count, or the mean of their sizes."""
    total = weight.sum((-2, -1))
    weight = weight / np.where(total > 0, total, 1.0)[..., None, None]
    if recipe.renormalize == "mean-abs":
        return (weight * np.abs(advantage)).sum((-2, -1))
    mean = (weight * advantage).sum((-2, -1), keepdims=True)
    return np.sqrt((weight * (advantage - mean) ** 2).sum((-2, -1)))


def _mean(chance: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Over all sets of others; ``[..., C]`` chances of a table ``[C, K]`` or ``[..., C, K]``."""
    if table.ndim == 2:
        return chance @ table
    return (chance[..., None] * table).sum(-2)


def _compositions(total: int, parts: int) -> np.ndarray:
    """All ways to write ``total`` as a sum of ``parts`` numbers of 0 or more, one per row."""
    rows, left = np.zeros((1, 0), int), np.array([total])
    for _ in range(parts - 1):
        repeats = left + 1
        taken = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        rows = np.concatenate([np.repeat(rows, repeats, axis=0), taken[:, None]], axis=1)
        left = np.repeat(left, repeats) - taken
    return np.concatenate([rows, left[:, None]], axis=1)
