"""One prompt under one recipe: what its stationary policies are made of, and what is found."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from kltarget._core.status import Status
from kltarget.implied._nodes import Rule, Teacher, over_tree, stationary
from kltarget.recipes import Recipe
from kltarget.recipes.groups import Advantages, make_groups
from kltarget.spaces import Branches

_MOST_AT_ONCE = 2**22
_FINE, _COARSE = 401, 65


@dataclasses.dataclass(frozen=True, eq=False)
class FixedPoint:
    """A policy at which the gradient vanishes, and the plain objective that has it as target.

    Attributes:
        log_probs: ``[A]``.
        reward: of the objective, ``[A]``; None if no plain objective has it. Outcomes that training
            gives up although the reference has them have ``-inf``.
        beta: of that objective.
        effective_beta: coefficient in units of the recipe's reward.
        status: remarks.
        others: expected rewards at the other fixed points that were found.
        error: standard error of the total variation where groups were sampled.
    """

    log_probs: np.ndarray
    reward: np.ndarray | None
    beta: float
    effective_beta: float
    status: Status = Status.OK
    others: tuple[float, ...] = ()
    error: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A recipe on one prompt, in float64.

    Attributes:
        recipe: with ``beta`` in ``beta``.
        beta: coefficient of the regulariser, relative to what the reward's gradient weighs.
        reward: as the recipe uses it, ``[A]``.
        log_ref: ``[A]``.
        rule: which f′ the regulariser's gradient is that of.
        regularised: whether its estimator has an expected gradient at all.
        tree: of the tokens where each prefix has a condition of its own, else None.
        lengths: number of tokens per sequence where they differ and matter, else None.
        eos: the token that ends a sequence where the loss knows nothing of it, else None.
        rewards: of which each is normalised by itself before they are added, ``[A, J]``, or None.
        teacher: whom a second KL is to, its cost relative to that of ``beta``, or None.
        tokens: their number per sequence where a centred KL pays for them, ``[A]``, or None.
        paid: what each sequence is paid, in units of the coefficient of the KL, ``[A]``, or None.
        among: log-masses of the outcomes that a policy may choose, where each prefix has a
            condition of its own and all that may follow it its share of the reference; None for
            all.
        together: the share of the cost that tokens have together, as a reverse KL of the whole
            sequence; the rest each has for itself.
        as_asked: whether what is regularised is one divergence to the reference that was given.
    """

    recipe: Recipe
    beta: float
    reward: np.ndarray
    log_ref: np.ndarray
    rule: Rule
    regularised: bool
    tree: Branches | None = None
    lengths: np.ndarray | None = None
    eos: int | None = None
    rewards: np.ndarray | None = None
    teacher: Teacher | None = None
    tokens: np.ndarray | None = None
    paid: np.ndarray | None = None
    among: np.ndarray | None = None
    together: float = 0.0
    as_asked: bool = True

    @functools.cached_property
    def levels(self) -> np.ndarray:
        """The different rewards of possible outcomes, ascending, ``[K]``."""
        return self._distinct[0][:, 0]

    @functools.cached_property
    def level(self) -> np.ndarray:
        """The index of every outcome's reward; of impossible ones any."""
        return self._distinct[1]

    @functools.cached_property
    def parts(self) -> np.ndarray | None:
        """Where each of several rewards is normalised by itself, those of each level, ``[K, J]``.

        What adds up to the same may then be different levels.
        """
        return None if self.rewards is None else self._distinct[0][:, 1:]

    @functools.cached_property
    def _distinct(self) -> tuple[np.ndarray, np.ndarray]:
        columns = self.reward[:, None]
        if self.rewards is not None:
            columns = np.concatenate([columns, self.rewards], axis=1)
        possible = self.log_ref > -np.inf
        levels, which = np.unique(columns[possible], axis=0, return_inverse=True)
        level = np.zeros(self.reward.size, int)
        level[possible] = which.reshape(-1)
        return levels, level

    @functools.cached_property
    def groups(self) -> Advantages | None:
        """What becomes of rewards, where more than their mean and deviation matters."""
        moved = self.recipe.depends_on_groups or self.recipe.by_masses
        if not moved or self.recipe.charged_before:
            return None
        return make_groups(self.recipe, self.levels if self.parts is None else self.parts)

    @functools.cached_property
    def best(self) -> np.ndarray:
        """The possible outcomes of highest reward, ``[A]``."""
        return (self.log_ref > -np.inf) & (self.reward == self.levels[-1])

    @property
    def pull(self) -> float:
        """``beta``, of each token for itself; 0 where the estimator has no expected gradient."""
        return self.beta * (1 - self.together) if self.regularised else 0.0

    @property
    def plain(self) -> bool:
        """Whether a plain objective has the target; the same for all prompts of a recipe."""
        dropped = self.recipe.zero_std == "drop" and self.recipe.group_size is not None
        alone = self.recipe.entropy_bonus == 0 and self.teacher is None and self.tokens is None
        whole = self.paid is None and self.lengths is None
        return self.as_asked and alone and whole and not dropped

    @property
    def held(self) -> bool:
        """Whether anything has an expected gradient beside the reward."""
        return self.regularised or self.recipe.entropy_bonus > 0 or self.teacher is not None

    @property
    def entropy(self) -> float:
        """Coefficient of the entropy, relative to that of the regulariser."""
        return self.recipe.entropy_bonus / self._shared_shrinkage

    @property
    def taught(self) -> float:
        """Coefficient of the KL to the teacher, likewise, or of what tokens have together."""
        if self.together:
            return self.beta * self.together if self.regularised else 0.0
        return 0.0 if self.teacher is None else self.recipe.teacher / self._shared_shrinkage

    @property
    def _shared_shrinkage(self) -> float:
        # A baseline that shrinks the regulariser along with the reward shrinks nothing else.
        size, both = self.recipe.group_size, self.recipe.charged_before
        shrunk = both and self.recipe.baseline == "mean" and size
        return 1 - 1 / size if shrunk and size else 1.0

    def only(self, chosen: np.ndarray, status: Status) -> FixedPoint:
        """Nothing but these outcomes, in the reference's proportions: what no regulariser holds."""
        log_probs = np.where(chosen, self.log_ref, -np.inf)
        log_probs = log_probs - np.logaddexp.reduce(log_probs)
        return FixedPoint(log_probs, np.where(chosen, 0.0, -np.inf), 1.0, 0.0, status)

    def policy(
        self, gain: np.ndarray, cost: np.ndarray, entropy: np.ndarray, taught: np.ndarray
    ) -> np.ndarray:
        """The stationary policy of given numbers per outcome, ``[..., A]``, as ``log π``."""
        teacher = self.teacher
        if self.paid is not None:
            gain = gain + cost * self.paid
        if teacher is not None:
            cost_of_it = np.broadcast_to(taught, np.broadcast_shapes(taught.shape, gain.shape))
            teacher = dataclasses.replace(teacher, cost=cost_of_it)
        if self.tree is not None:
            charged = self.recipe.charged_onward
            if self.eos is not None and self.recipe.estimator == "weighted-k1":
                # Its derivative is ℓ + 1: the 1 has no mean only over all tokens.
                gain = gain - cost
            numbers = (self.tree, gain, cost, self.log_ref, entropy)
            return over_tree(*numbers, self.rule, charged, self.eos, teacher, self.among)
        teacher = None if teacher is None else teacher.at_prefix()
        return stationary(gain, cost, self.log_ref, entropy, self.rule, teacher)

    def at_scale(self, scale: np.ndarray) -> np.ndarray:
        """The policies of rewards that are divided by ``scale [S]``: ``[S, A]``."""
        each = scale[:, None]
        return self.policy(self.reward, self.pull * each, self.entropy * each, self.taught * each)

    def deviation(self, log_probs: np.ndarray) -> np.ndarray:
        """The standard deviation of the reward under policies ``[..., A]``."""
        probs = np.exp(log_probs)
        mean = (probs * self.reward).sum(-1, keepdims=True)
        return np.sqrt((probs * (self.reward - mean) ** 2).sum(-1))

    def masses(self, log_probs: np.ndarray) -> np.ndarray:
        """How likely each reward is, ``[..., K]``."""
        order = np.argsort(self.level, kind="stable")
        first = np.searchsorted(self.level[order], np.arange(self.levels.size))
        return np.add.reduceat(np.exp(log_probs)[..., order], first, axis=-1)

    def expected_reward(self, log_probs: np.ndarray) -> float:
        """``E_π[reward]``."""
        return float((np.exp(log_probs) * self.reward).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Prompts whose rewards are divided by one standard deviation, over all of them.

    They are sampled equally often, under one recipe and one β. Each prompt's policy follows from
    that number, and the number from all policies: how much rewards differ between prompts counts in
    it as how much they differ within one.
    """

    problems: Sequence[Problem]

    def scales(self, low: float, high: float) -> np.ndarray:
        """A grid of what rewards may be divided by, in units of half the spread of all rewards.

        No deviation is larger.
        """
        spread = float(np.ptp(np.concatenate([x.levels for x in self.problems]))) / 2
        number = _FINE if sum(x.reward.size for x in self.problems) <= 10_000 else _COARSE
        return np.geomspace(spread * low, spread * high, number)

    def deviation(self, scales: np.ndarray) -> np.ndarray:
        """The deviation of all rewards where each prompt's are divided by ``scales [S]``."""
        return in_parts(self._deviation, scales, max(x.reward.size for x in self.problems))

    def _deviation(self, scales: np.ndarray) -> np.ndarray:
        means, variances = [], []
        for problem in self.problems:
            log_probs = problem.at_scale(scales)
            means.append((np.exp(log_probs) * problem.reward).sum(-1))
            variances.append(problem.deviation(log_probs) ** 2)
        return np.sqrt(np.mean(variances, 0) + np.var(means, 0))


def in_parts(
    function: Callable[[np.ndarray], np.ndarray], grid: np.ndarray, size: int
) -> np.ndarray:
    """A function of policies of ``size`` on a grid, of no more at once than memory holds."""
    rows = max(1, _MOST_AT_ONCE // size)
    return np.concatenate([function(grid[i : i + rows]) for i in range(0, grid.size, rows)])
