"""From which step on a prompt shows one right answer alone."""

from __future__ import annotations

import numpy as np

from kltarget.evidence import Log

_MOST_BINS = 12
# Had nothing changed, one answer alone would be seen so often by chance.
_CHANCE = 0.05
_LEAST_GROUPS = 2


def collapse_steps(log: Log, threshold: float) -> np.ndarray:
    """The first step of the first bin from which on only one right answer was seen, ``[P]``.

    The steps are in the bins of the history. NaN where a prompt kept several, never showed two, or
    shows too few right answers afterwards: as many of them must be unlikely by chance, had the
    answer kept the share that it had of the right ones before.
    """
    found = np.full(len(log.prompts), np.nan)
    if log.num_times < 2:
        return found
    bins = min(log.num_times, _MOST_BINS)
    right = np.flatnonzero(log.reward >= threshold)
    several = np.bincount(log.answer_prompt[np.unique(log.answer[right])], minlength=len(found))
    right = right[several[log.prompt[right]] > 1]
    order = right[np.argsort(log.prompt[right], kind="stable")]
    starts = np.flatnonzero(np.diff(log.prompt[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if order.size else ():
        place = log.time[rows] * bins // log.num_times
        last = log.answer[rows[place.argmax()]]
        others = place[log.answer[rows] != last]
        # After the last bin with another one; the last bin may hold both.
        begin = int(others.max()) + 1
        after, before = place >= begin, place < begin
        if len(np.unique(log.group[rows[after]])) < _LEAST_GROUPS:
            continue
        share = float((log.answer[rows[before]] == last).mean())
        if share ** int(after.sum()) < _CHANCE:
            time = np.flatnonzero(np.arange(log.num_times) * bins // log.num_times == begin)[0]
            found[log.prompt[rows[0]]] = log.steps[time]
    return found
