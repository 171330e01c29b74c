"""Logged advantages against rewards: what was subtracted from these, and what divided them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from kltarget.evidence._log import Log

# So many groups say it as well as all of them.
_MOST_GROUPS = 1500
_FITTING = 0.95
# What float32 and an ε beside a standard deviation leave of a number, and bfloat16 does.
_RELATIVE, _HALF = 5e-4, 1e-2
_FLOAT = 4 * float(np.finfo(np.float32).eps)
_MOST_DIGITS = 4
_VARYING = 0.02
_EPSILONS = (0.0, 1e-4, 1e-6)
# A clip may hide so many of the rows, and the others are to show three different numbers.
_MOST_CLIPPED, _LEAST_VALUES = 0.5, 3


@dataclasses.dataclass(frozen=True)
class AdvantageRule:
    """How rewards become advantages, by the names of a recipe's fields."""

    baseline: str
    normalize: str
    ddof: int = 0
    epsilon: float = 0.0


@dataclasses.dataclass(frozen=True)
class AdvantageFit:
    """A rule that the logged advantages follow.

    Attributes:
        rule: the rule.
        factor: a constant by which the advantages are larger than the rule makes them.
        groups: how many groups follow it, of
        of: so many that show it.
        clipped: whether they are cut at their largest.
        steps: whether each step has a constant of its own, which the log does not explain.
    """

    rule: AdvantageRule
    factor: float
    groups: int
    of: int
    clipped: bool = False
    steps: bool = False

    @property
    def exact(self) -> bool:
        """Whether the rule makes the advantages themselves, with no constant beside it."""
        return self.factor == 1 and not self.steps


class LoggedAdvantages:
    """The advantages of a log, beside those that rules make of its rewards.

    Where most groups are of the largest size, or that is the ``usual`` one of the recipe, the
    others have lost rows and are left out, and so are those whose advantages are all 0.
    """

    def __init__(self, log: Log, reward: np.ndarray, usual: int | None = None) -> None:
        self._log, self._reward = log, reward
        size = np.bincount(log.group)
        whole = np.bincount(log.group, ~np.isfinite(log.advantage + reward)) == 0
        if 2 * (size == size.max()).sum() > len(size) or size.max() == usual:
            whole &= size == size.max()
        scale = np.bincount(log.group, np.abs(log.advantage))
        shown = np.flatnonzero(whole & (scale > 0) & (size > 1))
        if len(shown) > _MOST_GROUPS:
            shown = shown[np.linspace(0, len(shown) - 1, _MOST_GROUPS).astype(int)]
        place = np.full(len(size), -1)
        place[shown] = np.arange(len(shown))
        self.num_groups = len(shown)
        """Groups that show what advantages are made of."""
        self._rows = np.flatnonzero(place[log.group] >= 0)
        self._code = place[log.group[self._rows]]
        self._size = size[log.group[self._rows]].astype(float)
        self._time = log.time[self._rows]
        self._target = log.advantage[self._rows]
        if self.num_groups:
            self._slack = _slack(self._target, reward[self._rows])

    def fit(self, rule: AdvantageRule, *, clipped: bool = False) -> AdvantageFit | None:
        """How the advantages follow a rule, None if they do not.

        Args:
            rule: the rule; other small ε than its own are tried too.
            clipped: whether the advantages may be cut at their largest and smallest.
        """
        if not self.num_groups:
            return None
        found: list[AdvantageFit] = []
        for epsilon in dict.fromkeys((rule.epsilon, *_EPSILONS)):
            tried = dataclasses.replace(rule, epsilon=epsilon)
            found += [fit for made in self._made(tried) for fit in self._fits(tried, made, clipped)]
            if rule.normalize == "none" or (found and found[0].groups == self.num_groups):
                break
        if not found and rule.normalize == "batch-std" and rule.baseline != "none":
            found += self._fits_of_steps(rule, clipped)
        # Of constants 1 is the likeliest.
        return max(found, key=lambda fit: (fit.exact, fit.groups), default=None)

    def _fits(self, rule: AdvantageRule, made: np.ndarray, clipped: bool) -> Iterator[AdvantageFit]:
        for factor in (1.0,) if clipped else (1.0, *self._factors(made)):
            number = self._following(factor * made, clipped)
            if number >= _FITTING * self.num_groups:
                told = 1.0 if abs(factor - 1) <= 2 * _RELATIVE else factor
                yield AdvantageFit(rule, told, number, self.num_groups, clipped)
                return

    def slopes(self, chosen: np.ndarray) -> np.ndarray:
        """By how much the advantage grows with the reward in each group that shows it.

        Args:
            chosen: which groups of the log count.
        """
        kept = chosen[self._log.group[self._rows]]
        if not kept.any():
            return np.empty(0)
        _, code = np.unique(self._code[kept], return_inverse=True)
        reward, target = (self._apart(x[kept], code) for x in (self._own, self._target))
        squares = np.bincount(code, reward**2)
        with np.errstate(invalid="ignore", divide="ignore"):
            slopes = np.bincount(code, reward * target) / squares
        return slopes[(squares > 0) & (slopes > 0)]

    @property
    def _own(self) -> np.ndarray:
        return self._reward[self._rows]

    @staticmethod
    def _apart(values: np.ndarray, code: np.ndarray) -> np.ndarray:
        return values - (np.bincount(code, values) / np.bincount(code))[code]

    @functools.cached_property
    def _centred(self) -> np.ndarray:
        return self._apart(self._own, self._code)

    @functools.cached_property
    def _squares(self) -> np.ndarray:
        """Squared distances from the group's mean, added up, of every row's group."""
        return np.bincount(self._code, self._centred**2)[self._code]

    def _made(self, rule: AdvantageRule) -> list[np.ndarray]:
        """What a rule makes of the rewards; several, where trainers differ in it."""
        size, reward = self._size, self._own
        if rule.baseline == "mean":
            tops = [self._centred]
        elif rule.baseline == "leave-one-out":
            tops = [self._centred * size / (size - 1)]
        else:
            tops = [reward, reward - self._batches[0][0][self._time]]
        if rule.normalize == "none":
            return tops
        if rule.normalize == "batch-std":
            return [made for top in tops for made in self._by_batch(top, rule)]
        count, squares = size, self._squares
        if rule.normalize == "others-std":
            count = size - 1
            squares = squares - self._centred**2 * size / count
        if (count <= rule.ddof).any():
            return []
        deviation = np.sqrt(np.maximum(squares, 0) / (count - rule.ddof))
        nothing = deviation <= 1e-9 * np.abs(reward).max()
        whole = 1.0 if rule.normalize == "others-std" else np.inf
        bottom = np.where(nothing, whole, deviation + rule.epsilon)
        return [top / bottom for top in tops]

    @functools.cached_property
    def _batches(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Mean, squared distances from it and number of rows of every step.

        First of the rewards, then of the rewards less the mean of their group.
        """
        time, found = self._log.time, []
        number = np.maximum(np.bincount(time), 1)
        for values in (self._reward, self._apart(self._reward, self._log.group)):
            mean = np.bincount(time, values) / number
            found.append((mean, np.bincount(time, (values - mean[time]) ** 2), number))
        return found

    def _by_batch(self, top: np.ndarray, rule: AdvantageRule) -> list[np.ndarray]:
        """Divided by the deviation of all rewards of the step, or of all advantages."""
        if not np.isfinite(self._reward).all():
            return []
        found = []
        for _, squares, number in self._batches:
            deviation = np.sqrt(squares / np.maximum(number - rule.ddof, 1))[self._time]
            bottom = np.where(deviation > 0, deviation + rule.epsilon, np.inf)
            found.append(top / bottom)
        return found

    def _fits_of_steps(self, rule: AdvantageRule, clipped: bool) -> Iterator[AdvantageFit]:
        """Divided by a number of each step: a part of a batch does not show that of the whole."""
        steps = np.unique(self._time)
        several = [t for t in steps if len(np.unique(self._code[self._time == t])) > 1]
        if len(several) < len(steps) or len(steps) < 2:
            return
        (top,) = self._made(dataclasses.replace(rule, normalize="none"))
        length = np.bincount(self._time, top**2)
        along = np.bincount(self._time, top * self._target)
        own = along[steps] / np.maximum(length[steps], 1e-300)
        # Of one number for all steps it is not the batch's deviation that divides.
        if (own <= 0).any() or np.ptp(own) <= _VARYING * own.max():
            return
        scaled = top * own[np.searchsorted(steps, self._time)]
        for fit in self._fits(rule, scaled, clipped):
            if fit.factor == 1:
                yield dataclasses.replace(fit, steps=True)

    def _factors(self, made: np.ndarray) -> list[float]:
        """Constants that may make up what a rule leaves out."""
        largest = np.abs(made).max()
        kept = np.abs(made) > 0.1 * largest
        if not kept.any():
            return []
        factors = np.median(self._target[kept] / made[kept]), made @ self._target / (made @ made)
        return [float(x) for x in factors if x > 0]

    def _following(self, made: np.ndarray, clipped: bool) -> int:
        """The number of groups that are as they were made."""
        off = np.abs(self._target - made) > self._slack
        if clipped:
            low, high = self._target.min(), self._target.max()
            at_end = (self._target >= high) | (self._target <= low)
            beyond = at_end & (np.abs(made) >= np.abs(self._target))
            inner = np.unique(np.round(self._target[~at_end], 6))
            if at_end.mean() > _MOST_CLIPPED or len(inner) < _LEAST_VALUES:
                return 0
            off &= ~beyond
        return int((np.bincount(self._code, off, self.num_groups) == 0).sum())


def _slack(target: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """How far advantages may be off for the digits they are logged with."""
    size = np.abs(target)
    mantissa, _ = np.frexp(target)
    relative = _HALF if _whole(mantissa, 1 / 256) else _RELATIVE
    rounded = np.full_like(size, _FLOAT * max(float(size.max()), float(np.abs(reward).max())))
    # Digits may be counted after the point or from the first that is not 0.
    lead = 10.0 ** np.floor(np.log10(np.where(size > 0, size, 1.0)))
    decimals = (10.0**-x for x in range(1, _MOST_DIGITS + 1))
    digits = (lead * 10.0 ** (1 - x) for x in range(2, _MOST_DIGITS + 1))
    for units in (decimals, digits):
        unit = next((unit for unit in units if _whole(target, unit)), 0.0)
        rounded = np.maximum(rounded, 0.51 * unit)
    return rounded + relative * size


def _whole(values: np.ndarray, unit: float | np.ndarray) -> bool:
    """Whether values are multiples of a unit, but for what float32 leaves of them."""
    multiple = values / unit
    return bool((np.abs(multiple - np.round(multiple)) * unit <= _FLOAT * np.abs(values)).all())
