"""Named problems shared by the tests, the notebooks, the benchmarks and the command line.

A task is a reference distribution and a reward over a finite, labelled set of outcomes. It holds
plain NumPy float64 arrays, so reading one computes nothing on a device; `Task.objective` hands it
to the solver.

Example:
    >>> from kltarget import tasks
    >>> tasks.names()
    ('one-two', 'bimodal', 'words')
    >>> task = tasks.load("one-two")
    >>> task.labels, task.reward.tolist()
    (('1', '2', 'other'), [1.0, 1.0, 0.0])
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from kltarget.objectives import Objective

# The hard keywords of Python 3.11, lower-cased; `keyword.kwlist` differs between versions.
# fmt: off
_KEYWORDS = frozenset((
    "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del", "elif",
    "else", "except", "false", "finally", "for", "from", "global", "if", "import", "in", "is",
    "lambda", "none", "nonlocal", "not", "or", "pass", "raise", "return", "true", "try", "while",
    "with", "yield",
))
# fmt: on


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A reference, a reward and a partition into modes over `A` labelled outcomes.

    Attributes:
        name: How `load` finds it, or the stem of the file it was read from.
        description: One line for a reader who has not seen the problem.
        log_ref: Natural-log reference probabilities, float64 `[A]`; `-inf` marks an outcome the
            reference cannot produce.
        reward: Reward of each outcome in the task's own unit, float64 `[A]`; `-inf` forbids an
            outcome.
        labels: What to call each outcome, `A` strings.
        modes: Integer label of each outcome's mode, `[A]`. In the shipped tasks the right answers
            (those of positive reward) carry labels 0, 1, …; wrong answers are labelled -1, which
            `kltarget.effective_modes` and its like leave out.
    """

    name: str
    description: str
    log_ref: np.ndarray
    reward: np.ndarray
    labels: tuple[str, ...]
    modes: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        for field, dtype in (("log_ref", np.float64), ("reward", np.float64), ("modes", np.int64)):
            # A task may be shared by every caller of `load`, so nobody may write into it.
            array = np.array(getattr(self, field), dtype=dtype)
            array.setflags(write=False)
            object.__setattr__(self, field, array)
            if array.shape != (len(self.labels),):
                raise ValueError(
                    f"{field} has shape {array.shape}, but there are {len(self.labels)} labels: "
                    "give one entry per outcome"
                )

    @property
    def num_outcomes(self) -> int:
        """Number of outcomes `A`."""
        return len(self.labels)

    def objective(self, beta: Any, **options: Any) -> Objective:
        """The regularised objective of this task: maximise E_π[reward] − beta · D(π, π_ref) over π.

        Args:
            beta: Coefficient of the regulariser, reward units per nat: a number, or an array
                `[*batch]` for one problem per entry.
            **options: Passed to `kltarget.Objective`; `divergence=` chooses the regulariser.

        Returns:
            An `Objective` of batch shape `[*batch]` over `[A]` outcomes.

        Raises:
            ValueError: If `beta` is not positive.

        Example:
            >>> import kltarget as kt
            >>> from kltarget import tasks
            >>> target = kt.solve(tasks.load("one-two").objective(0.1))
            >>> [f"{p:.4f}" for p in target.probs.tolist()]
            ['0.9374', '0.0625', '0.0001']
        """
        reward, log_ref = jnp.asarray(self.reward), jnp.asarray(self.log_ref)
        return Objective(reward, log_ref, beta, **options)


def right_outcomes(reward: np.ndarray) -> np.ndarray:
    """Which outcomes count as right if nothing else says so: those of positive reward.

    If that would be all or none of them, those above the lowest finite reward are right instead,
    and if the finite rewards are all equal, every outcome that has one.

    Args:
        reward: Rewards `[A]`.

    Returns:
        Booleans `[A]`.

    Example:
        >>> import numpy as np
        >>> from kltarget import tasks
        >>> tasks.right_outcomes(np.array([-1.0, 0.0, 0.5])).tolist()
        [False, False, True]
        >>> tasks.right_outcomes(np.array([3.0, 4.0, 5.0])).tolist()
        [False, True, True]
    """
    finite = np.isfinite(reward)
    for right in (reward > 0, reward > reward[finite].min(initial=np.inf)):
        if 0 < (right & finite).sum() < finite.sum():
            return right
    return finite


def one_mode_each(right: np.ndarray) -> np.ndarray:
    """Labels `[A]` that make each right outcome a mode, -1 for the others; from booleans `[A]`."""
    return np.where(right, np.cumsum(right) - 1, -1)


def names() -> tuple[str, ...]:
    """Names that `load` accepts, smallest task first."""
    return tuple(_TASKS)


def load(name: str) -> Task:
    """The task called `name`.

    Args:
        name: One of `names()`.

    Returns:
        The task. It is built once per process; its arrays are read-only.

    Raises:
        ValueError: If there is no such task; the message lists the names.

    Example:
        >>> from kltarget import tasks
        >>> tasks.load("words").num_outcomes
        3118
    """
    try:
        build = _TASKS[name]
    except (KeyError, TypeError):
        raise ValueError(f"there is no task {name!r}: choose one of {', '.join(names())}") from None
    return build()


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

    See `data/README.md` for where the counts come from and their licence.
    """
    data = importlib.resources.files("kltarget") / "data" / "words.csv"
    rows = list(csv.DictReader(data.read_text(encoding="utf-8").splitlines()))
    labels = tuple(row["word"] for row in rows)
    count = np.array([int(row["count"]) for row in rows])
    right = np.array([word in _KEYWORDS for word in labels])
    return Task(
        name="words",
        description="words as often as in Python's documentation; right are the 35 Python keywords",
        log_ref=np.log(count) - np.log(count.sum()),
        reward=right,
        labels=labels,
        modes=one_mode_each(right),
    )


_TASKS: dict[str, Callable[[], Task]] = {"one-two": _one_two, "bimodal": _bimodal, "words": _words}
