"""What a diagnosis found: statements, and the most informative prompt in numbers."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from kltarget._core.page import Table
from kltarget._core.words import counted, number, ratio, short, singular
from kltarget.evidence import Interval

_MOST_ROWS = 10
_SHARES = {"gradient", "kept", "zero_std_groups"}


@dataclasses.dataclass(frozen=True)
class Statement:
    """One thing that a log says.

    Attributes:
        name: what it is about, in one word for programs.
        headline: the statement in a few words, without a full stop.
        detail: what follows the headline, with the punctuation before it.
        value: its number; None if there is none, or if it is refused.
        interval: 95 % interval of ``value``; None if it is exact or has no number.
        assumptions: what it takes for granted, a phrase each.
        sample_size: how many ``unit`` it rests on.
        unit: what was counted.
        tier: what the log had to hold: 0 curves, 1 rewards, 2 also the reference's
            log-probabilities, 3 also those of the policy.
        refused: whether it only says what is missing.
        warning: whether it says that the run is not where it should be.
    """

    name: str
    headline: str
    detail: str = ""
    value: float | None = None
    interval: Interval | None = None
    assumptions: tuple[str, ...] = ()
    sample_size: int = 0
    unit: str = "rollouts"
    tier: int = 1
    refused: bool = False
    warning: bool = False

    @property
    def text(self) -> str:
        """The whole statement."""
        return self.headline + self.detail

    @property
    def told(self) -> str:
        """The whole statement, with the interval behind the number that it is of."""
        place = self._place()
        if place is None:
            return self.text
        return f"{self.headline[:place]} [{self._bounds}]{self.headline[place:]}{self.detail}"

    @property
    def _bounds(self) -> str:
        assert self.interval is not None
        low, high = self.interval
        if self.name in _SHARES:
            return f"95 %: {number(100 * low, 3)} to {number(100 * high, 3)} %"
        return f"95 %: {number(low, 3)} to {number(high, 3)}"

    def _place(self) -> int | None:
        """Where in the headline the value ends, if it has an interval and is spelled there."""
        if self.interval is None or self.value is None:
            return None
        x = self.value
        spelled = [f"{100 * x:.3g} %"] if self.name in _SHARES else []
        spelled += [ratio(math.log(x))] if x > 0 and not spelled else []
        spelled += [] if self.name in _SHARES else [number(x, digits) for digits in (3, 4, 2)]
        for text in spelled:
            # Neither a part of another number or name, nor a label.
            found = re.search(rf"(?<![\w.@“−-]){re.escape(text)}(?![\d”]|[.,]\d)", self.headline)
            if found is not None:
                return found.end()
        return None

    def evidence(self, letters: Mapping[str, str]) -> str:
        """Sample size, assumptions by their letters, and the interval if ``told`` has none."""
        parts = []
        if self.interval is not None and self._place() is None:
            parts.append(self._bounds)
        if self.sample_size:
            parts.append(f"n = {counted(self.sample_size, singular(self.unit))}")
        if self.assumptions:
            parts.append(" ".join(sorted(letters[text] for text in self.assumptions)))
        return "; ".join(parts)


class FlipOfAnswers(TypedDict):
    """Two answers that are equally probable at one β.

    Attributes:
        better: the answer of higher reward, ahead below the flip.
        worse: the answer the reference prefers, ahead above it.
        effective_beta: β in units of the logged reward per nat; NaN where normalised advantages
            have no such closed form.
        beta: the same as the trainer's own coefficient.
        interval: of ``beta`` where the reference is estimated, else None.
        other: ``beta`` if the unseen answers are as good as the best seen ones.
    """

    better: str
    worse: str
    effective_beta: float
    beta: float
    interval: Interval | None
    other: float


@dataclasses.dataclass(frozen=True)
class Featured:
    """The most informative prompt in numbers, an entry per outcome; the last holds all unseen.

    Attributes:
        prompt: its text.
        names: its answers.
        reward: mean logged reward of each.
        counts: rollouts in the whole log.
        reference: probability by the reference.
        target: by the recipe's target; None if there is none.
        now: by the policy of the last logged steps.
        mara_reward: what MARA would pay instead, None where it has no answer.
        flips: the answers that change places, a dictionary each: ``better``, ``worse``, ``beta`` of
            the trainer, ``effective_beta``, ``interval``, and ``other`` for good unseen answers.
        betas: coefficients of ``shares``.
        shares: target probabilities of every outcome at each of them.
        effective_beta: the configured coefficient in units of the logged reward.
    """

    prompt: str
    names: tuple[str, ...]
    reward: tuple[float, ...]
    counts: tuple[int, ...]
    reference: tuple[float, ...] | None
    target: tuple[float, ...] | None
    now: tuple[float, ...]
    mara_reward: tuple[float, ...] | None = None
    flips: tuple[FlipOfAnswers, ...] = ()
    betas: tuple[float, ...] = ()
    shares: tuple[tuple[float, ...], ...] = ()
    effective_beta: float | None = None

    def table(self) -> Table:
        """Answers by the target's order, or by how often they were seen."""
        given = {"reference": self.reference, "target": self.target, "now": self.now}
        given = {name: x for name, x in given.items() if x is not None}
        key = np.array(self.target or self.now)[:-1]
        order = np.lexsort((-np.array(self.counts[:-1]), -key)).tolist()
        shown, hidden, paid = order[:_MOST_ROWS], order[_MOST_ROWS:], self.mara_reward
        rows = [["answer", "seen", "reward", *given]]
        for i in shown:
            cells = [short(self.names[i], 30), f"{self.counts[i]:,}", number(self.reward[i])]
            rows.append([*cells, *(probability(x[i]) for x in given.values())])
        if hidden:
            cells = [f"({len(hidden):,} more)", f"{sum(self.counts[i] for i in hidden):,}", ""]
            rows.append([*cells, *(probability(sum(x[i] for i in hidden)) for x in given.values())])
        if self.reference is not None:
            cells = [self.names[-1], "0", f"{number(self.reward[-1])}?"]
            rows.append([*cells, *(probability(x[-1]) for x in given.values())])
        if paid is not None and not np.allclose(paid, self.reward, rtol=0, atol=1e-12):
            column = ["MARA would pay", *(number(paid[i]) for i in shown)]
            rows = [[*row, x] for row, x in itertools.zip_longest(rows, column, fillvalue="")]
        return Table(rows, "l" + "r" * (len(rows[0]) - 1), indent=2)


def probability(p: float) -> str:
    if math.isnan(p):
        return "?"
    return f"{p:.4f}" if p >= 1e-4 or p == 0 else f"{p:.1e}"
