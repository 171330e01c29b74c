"""How many different answers there are, seen and unseen, from the counts of a sample."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from kltarget.evidence._entropy import entropy_of_counts, likely_law

_NORMAL = 1.959963984540054
_MISSED = 0.05
_REPEATS, _FEWEST_REPEATS, _MOST = 60, 8, 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerCounts:
    """How often each answer was given, a row each.

    Attributes:
        prompt: of each answer, ``[A]``.
        level: index of its reward, ``[A]``.
        count: samples, ``[A]``.
    """

    prompt: np.ndarray
    level: np.ndarray
    count: np.ndarray

    def of(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Counts of the chosen answers, prompt by prompt, of prompts that have any."""
        order = np.flatnonzero(chosen)
        order = order[np.argsort(self.prompt[order], kind="stable")]
        _, first = np.unique(self.prompt[order], return_index=True)
        return np.split(self.count[order], first[1:]) if len(order) else []


def number_of_answers(counts: np.ndarray) -> tuple[float, float, float]:
    """How many answers a law has that counts like these were drawn from: low, estimate, high.

    Chao's estimator in its bias-corrected form and his log-normal interval. It is a lower bound
    where some answers are too rare to be drawn at all. Where fewer than two answers were seen just
    once it adds none to those seen, and there is no upper end: NaN. See :func:`missed_share`.

    Args:
        counts: of each seen answer, above 0.

    References:
        Chao, "Estimating the population size for capture-recapture data with unequal
        catchability", Biometrics 43, 1987.
    """
    seen, size = len(counts), counts.sum()
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    shrunk = (size - 1) / size
    unseen = shrunk * once * (once - 1) / (2 * (twice + 1))
    if unseen <= 0:
        return float(seen), float(seen), math.nan
    variance = (
        shrunk * once * (once - 1) / (2 * (twice + 1))
        + shrunk**2 * once * (2 * once - 1) ** 2 / (4 * (twice + 1) ** 2)
        + shrunk**2 * once**2 * twice * (once - 1) ** 2 / (4 * (twice + 1) ** 4)
    )
    spread = math.exp(_NORMAL * math.sqrt(math.log1p(variance / unseen**2)))
    # Numbers are whole: where all were seen, a part of one more would leave that out.
    return math.floor(seen + unseen / spread), seen + unseen, math.ceil(seen + unseen * spread)


def missed_share(size: float) -> float:
    """The share below which an answer is missed by so many samples with probability 5 % or more.

    About 3 over their number, the rule of three.

    Args:
        size: samples, 1 or more.
    """
    return -math.expm1(math.log(_MISSED) / size)


def effective_number(counts: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The effective number ``e^H`` of a law's answers, and its standard error.

    H is Chao's, Wang's and Jost's estimate of the entropy; the error is that of samples drawn from
    a law with unseen answers too.

    Args:
        counts: of each seen answer, above 0, 2 or more in all.
        rng: the randomness.
    """
    found = math.exp(float(entropy_of_counts(counts)[0]))
    law = likely_law(counts)
    repeats = int(np.clip(_MOST // len(law), _FEWEST_REPEATS, _REPEATS))
    again = rng.multinomial(int(counts.sum()), law / law.sum(), size=repeats)
    return found, float(np.exp(entropy_of_counts(again)).std(ddof=1))
