"""How many different right answers prompts had before, and have after.

Right answers of equal reward keep the reference's proportions at every KL target: so many right
samples show as many different answers as so many did before. What is missing, the path lost.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.special import gammaln

from kltarget.evidence import evident_threshold, log_of, mean_interval

_FEWEST = 5


@dataclasses.dataclass(frozen=True)
class KeptAnswers:
    """Different right answers among as many right samples before and after.

    Attributes:
        prompts: how many have two or more right samples on both sides.
        samples: how many right samples of a prompt are compared, on average.
        before: expected number of different answers among so many, mean over these prompts.
        after: the same after.
        kept: ``after`` over ``before``, with its 95 % interval: 1 at every KL target.
    """

    prompts: int
    samples: float
    before: float
    after: float
    kept: list[float]


def right_answers(
    frame: Any, threshold: float | None, *, late: bool = False
) -> dict[str, np.ndarray]:
    """How often each right answer of each prompt was given."""
    log = log_of(frame)
    threshold = evident_threshold(log) if threshold is None else threshold
    if threshold is None:
        return {}
    chosen = (log.late if late else log.early) & (log.reward >= threshold)
    times = np.bincount(log.answer[chosen], minlength=len(log.answer_names))
    seen = np.flatnonzero(times)
    if not seen.size:
        return {}
    order = seen[np.argsort(log.answer_prompt[seen], kind="stable")]
    prompts, first = np.unique(log.answer_prompt[order], return_index=True)
    parts = np.split(times[order], first[1:])
    return {log.prompts[i]: part for i, part in zip(prompts, parts, strict=True)}


def kept_answers(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> KeptAnswers | None:
    """Of prompts that have right answers on both sides; None where there are too few."""
    rows = []
    for name in before:
        if name in after:
            size = int(min(before[name].sum(), after[name].sum()))
            if size > 1:
                rows.append((size, _distinct(before[name], size), _distinct(after[name], size)))
    if len(rows) < _FEWEST:
        return None
    sizes, first, second = np.array(rows, float).T
    ratio = second.mean() / first.mean()
    # Of a ratio of means: that of the residuals about it.
    _, apart = mean_interval(second - ratio * first)
    low, high = (0.0, 0.0) if apart is None else apart
    return KeptAnswers(
        prompts=len(rows),
        samples=float(sizes.mean()),
        before=float(first.mean()),
        after=float(second.mean()),
        kept=[ratio + low / first.mean(), ratio, ratio + high / first.mean()],
    )


def _distinct(counts: np.ndarray, size: int) -> float:
    """Expected number of different ones among ``size`` of the samples, drawn without return."""
    total = counts.sum()
    others = total - counts
    missed = np.where(
        others >= size,
        np.exp(
            gammaln(others + 1)
            - gammaln(np.maximum(others - size, 0) + 1)
            - gammaln(total + 1)
            + gammaln(total - size + 1)
        ),
        0.0,
    )
    return float((1 - missed).sum())
