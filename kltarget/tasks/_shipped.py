"""The tasks that come with the package, by name."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from kltarget.tasks._keywords import KEYWORDS
from kltarget.tasks._shipped_texts import text_names
from kltarget.tasks._task import Task, one_mode_each
from kltarget.tasks.sequence_tasks import (
    SEQUENCE_TASKS,
    load_sequence_task,
    word_counts,
)


class Listing(NamedTuple):
    """What there is to know of a task without building it.

    Attributes:
        name: How ``load`` finds it.
        num_outcomes: Number of outcomes.
        num_right: How many of them are right.
        description: One line for a reader who has not seen the problem.
    """

    name: str
    num_outcomes: int
    num_right: int
    description: str


def names() -> tuple[str, ...]:
    """Names that ``load`` accepts."""
    return tuple(_SMALL_TASKS) + tuple(SEQUENCE_TASKS)


def listing() -> tuple[Listing, ...]:
    """What tasks there are, without building those of more than a few thousand outcomes.

    Returns:
        One ``Listing`` per task, in the order of ``names``.

    Example:
        >>> from kltarget import tasks
        >>> {task.name: task.num_right for task in tasks.listing()}["arithmetic-24"]
        1788
    """
    small = [
        Listing(task.name, task.num_outcomes, int((task.reward > 0).sum()), task.description)
        for task in map(load, _SMALL_TASKS)
    ]
    large = [
        Listing(task.name, task.num_outcomes, task.num_right, task.description)
        for task in SEQUENCE_TASKS.values()
    ]
    return (*small, *large)


def load(name: str) -> Task:
    """The task called ``name``.

    Args:
        name: One of ``names()``.

    Returns:
        The task. It is built once per process; its arrays are read-only.

    Raises:
        ValueError: If there is no such task; the message lists the names.

    Example:
        >>> from kltarget import tasks
        >>> tasks.load("words").num_outcomes
        3118
    """
    if name in _SMALL_TASKS:
        return _SMALL_TASKS[name]()
    if name in SEQUENCE_TASKS:
        return load_sequence_task(SEQUENCE_TASKS[name])
    if name in text_names():
        raise ValueError(
            f"{name!r} is a task over texts too many to list: kltarget.tasks.load_texts has it, "
            "and kltarget.targets.automata.over_modes makes a list of its modes"
        )
    raise ValueError(f"there is no task {name!r}: choose one of {', '.join(names())}")


@functools.cache
def _one_two() -> Task:
    return Task(
        name="one-two",
        description="two right answers, reference ratio 15:1",
        log_ref=np.log([0.3, 0.02, 0.68]),
        reward=np.array([1.0, 1.0, 0.0]),
        labels=("1", "2", "other"),
        modes=np.array([0, 1, -1]),
    )


@functools.cache
def _bimodal() -> Task:
    """The didactic problem of GX-Chen et al. (2025, arXiv 2510.20817), on 100 tokens.

    Two equally wide Gaussian bumps of reference mass on a flat floor, centred on tokens 25 and 75.
    Matching tokens of the two bumps differ by exactly 1.9 nats in favour of the first, their
    rewards by 0.25 in favour of the second, so under reverse KL the modes trade places at β = 0.25
    / 1.9 = 0.131578947…, whatever the shape of the bumps. The shape is this package's own choice.
    """
    token = np.arange(100)
    first, second = np.abs(token - 25) <= 10, np.abs(token - 75) <= 10
    log_weight = np.full(100, -4.0)
    log_weight[first] = -(((token[first] - 25) / 5.0) ** 2) / 2
    log_weight[second] = -(((token[second] - 75) / 5.0) ** 2) / 2 - 1.9
    log_ref = log_weight - np.log(np.exp(log_weight).sum())
    return Task(
        name="bimodal",
        description="a likely mode of reward 0.75 and an unlikely one of reward 1 among 100 tokens",
        log_ref=log_ref,
        reward=np.select([first, second], [0.75, 1.0], 0.0),
        labels=tuple(str(t) for t in token),
        modes=np.select([first, second], [0, 1], -1),
    )


@functools.cache
def _words() -> Task:
    """Word frequencies of Python's documentation; the right answers are Python's keywords.

    See ``data/README.md`` for where the counts come from and their licence.
    """
    labels, count = word_counts()
    right = np.array([word in KEYWORDS for word in labels])
    return Task(
        name="words",
        description="words as often as in Python's documentation; right are the 35 Python keywords",
        log_ref=np.log(count) - np.log(count.sum()),
        reward=right,
        labels=labels,
        modes=one_mode_each(right),
    )


_SMALL_TASKS = {"one-two": _one_two, "bimodal": _bimodal, "words": _words}
