"""A target over a list of outcomes as a table: all of it as data, the most of it as a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.checks import traced
from kltarget._core.page import Page, Paragraph, Table
from kltarget._core.status import IN_WORDS, Status
from kltarget._core.words import counted, number, probability

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 10
"""Rows of a page."""


def frame_of(target: Any) -> pd.DataFrame:
    """See :meth:`kltarget.targets.DiscreteTarget.to_dataframe`."""
    import pandas as pd

    if traced(target.log_probs):
        raise TypeError("to_dataframe needs numbers: call it outside of jit, vmap and grad")
    arrays = _arrays(target)
    shape = arrays["log_prob"].shape
    rows = ["row"] if len(shape) == 2 else [f"row {axis}" for axis in range(len(shape) - 1)]
    places = np.indices(shape, sparse=True)
    columns = dict(zip([*rows, "outcome"], places, strict=True)) | arrays
    return pd.DataFrame({name: np.broadcast_to(x, shape).ravel() for name, x in columns.items()})


def page_of(target: Any) -> Page:
    """The likeliest outcomes of one target, or the first of many with what each reaches."""
    arrays, objective = _arrays(target), target.objective
    size = counted(objective.num_outcomes, "outcome")
    title = f"{type(target).__name__}, {objective.divergence.title}, {size}"
    if arrays["log_prob"].ndim == 1:
        return _of_one(target, arrays, f"{title}, β = {number(arrays['beta'][0])}")
    status = np.asarray(target.status).ravel()
    beta = arrays["beta"][..., 0].ravel()
    reached = _gain(arrays).ravel(), np.asarray(target.divergence_value, float).ravel()
    rows: list[Sequence[str]] = [("row", "β", "expected reward", "divergence", "status")]
    for at in range(min(status.size, _SHOWN)):
        place = ", ".join(map(str, np.unravel_index(at, np.shape(target.status))))
        found = [number(float(x[at])) for x in (beta, *reached)]
        rows.append((place, *found, Status(int(status[at])).name or "OK"))
    more = _more(status.size, "row")
    return Page([Paragraph("", label=title), Table(rows, "lrrrl"), *more])


def _of_one(target: Any, arrays: dict[str, np.ndarray], title: str) -> Page:
    reward, log_ref, log_prob = (arrays[x] for x in ("reward", "log_ref", "log_prob"))
    # The likeliest first; of those without mass the ones that the reference has most of.
    order = np.lexsort((-log_ref, -np.where(np.isnan(log_prob), -math.inf, log_prob)))
    rows: list[Sequence[str]] = [("outcome", "reward", "reference", "target")]
    for at in order[:_SHOWN]:
        shares = (probability(float(x[at])) for x in (log_ref, log_prob))
        rows.append((f"{at:,}", number(float(reward[at])), *shares))
    cost = number(float(target.divergence_value))
    said = [f"expected reward {number(float(_gain(arrays)))}, divergence {cost} nats"]
    if hasattr(target, "effective_beta"):
        said.append(f"effective β {number(float(target.effective_beta))}")
    said += [words for bit, words in IN_WORDS.items() if int(target.status) & bit]
    more = _more(log_prob.size, "outcome")
    table = Table(rows, "rrrr")
    return Page([Paragraph("", label=title), table, *more, Paragraph("; ".join(said))])


def _more(number_of: int, what: str) -> list[Paragraph]:
    left = number_of - _SHOWN
    return [Paragraph(f"and {counted(left, f'more {what}')}", faint=True)] if left > 0 else []


def _gain(arrays: dict[str, np.ndarray]) -> np.ndarray:
    probs = np.exp(arrays["log_prob"])
    return (probs * np.where(probs > 0, arrays["reward"], 0.0)).sum(-1)


def _arrays(target: Any) -> dict[str, np.ndarray]:
    objective, shape = target.objective, np.shape(target.log_probs)
    # Of a trainer's recipe its own numbers, not the expected advantages that stand for them.
    own = target if hasattr(target, "effective_beta") else objective
    given = {
        "beta": np.asarray(own.beta, np.float64)[..., None],
        "reward": own.reward,
        "log_ref": objective.log_ref,
        "log_prob": target.log_probs,
    }
    return {name: np.broadcast_to(np.asarray(x, np.float64), shape) for name, x in given.items()}
