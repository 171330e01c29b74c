"""What a task is, and how its outcomes are spelt."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import jax.numpy as jnp
import numpy as np

from kltarget._core.page import Page, Paragraph, Table
from kltarget._core.words import counted, number, probability, short
from kltarget.objectives import Objective
from kltarget.spaces import SequenceSpace

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 10
"""Outcomes of a page."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A reference, a reward and a partition into modes over ``A`` labelled outcomes.

    Attributes:
        name: how ``load`` finds it, or the stem of the file it was read from.
        description: one line for a reader who has not seen the problem.
        log_ref: natural-log reference probabilities, float64 ``[A]``; ``-inf`` marks an outcome the
            reference cannot produce.
        reward: reward of each outcome in the task's own unit, float64 ``[A]``; ``-inf`` forbids an
            outcome.
        labels: what to call each outcome, ``A`` strings: a tuple, or ``Labels``, which spell
            sequences when asked.
        modes: integer label of each outcome's mode, ``[A]``. In the shipped tasks the right answers
            (those of positive reward) carry labels 0, 1, …; wrong answers are labelled -1, which
            ``kltarget.effective_modes`` and its like leave out.
        space: the sequences, in the order of the outcomes, if outcomes are sequences of tokens.
        alphabet: the tokens' characters: one string, or a tuple of one string per position.
        policy: the model, in the sense of ``kltarget.policies.Policy``, whose probabilities
            ``log_ref`` are.
        params: its trained parameters, float32; ``kltarget.fine_tune(task.policy, task.params,
            task.reward, …)`` starts from the reference. In that precision the policy's
            log-probabilities are ``log_ref`` but for rounding.
    """

    name: str
    description: str
    log_ref: np.ndarray
    reward: np.ndarray
    labels: Sequence[str]
    modes: np.ndarray
    space: SequenceSpace | None = None
    alphabet: str | tuple[str, ...] | None = None
    policy: Any = None
    params: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.labels, Labels):
            object.__setattr__(self, "labels", tuple(self.labels))
        for field, dtype in (("log_ref", np.float64), ("reward", np.float64), ("modes", np.int64)):
            # A task may be shared by every caller of ``load``, so nobody may write into it.
            array = np.array(getattr(self, field), dtype=dtype)
            array.setflags(write=False)
            object.__setattr__(self, field, array)
            if array.shape != (len(self.labels),):
                raise ValueError(
                    f"{field} has shape {array.shape}, but there are {len(self.labels)} labels: "
                    "give one entry per outcome"
                )
        if self.space is not None and self.space.num_sequences != len(self.labels):
            raise ValueError(
                f"space has {self.space.num_sequences} sequences, but there are "
                f"{len(self.labels)} labels: give one per sequence"
            )

    @property
    def num_outcomes(self) -> int:
        """Number of outcomes ``A``."""
        return len(self.labels)

    @property
    def mode_names(self) -> dict[int, str]:
        """What each mode is called, by its label, after the likeliest of its outcomes.

        Example:
            >>> from kltarget import tasks
            >>> tasks.load("bimodal").mode_names
            {0: '25', 1: '75'}
        """
        likeliest = likeliest_outcomes(self.modes, self.log_ref)
        return {mode: self.labels[outcome] for mode, outcome in likeliest.items()}

    def objective(self, beta: Any, **options: Any) -> Objective:
        """The regularised objective of this task: maximise E_π[reward] − beta · D(π, π_ref) over π.

        Args:
            beta: coefficient of the regulariser, reward units per nat: a number, or an array
                ``[*batch]`` for one problem per entry.
            **options: passed to ``kltarget.Objective``; ``divergence=`` chooses the regulariser.

        Returns:
            An ``Objective`` of batch shape ``[*batch]`` over ``[A]`` outcomes.

        Raises:
            ValueError: ``beta`` is not positive.

        Example:
            >>> import kltarget as kt
            >>> from kltarget import tasks
            >>> target = kt.solve(tasks.load("one-two").objective(0.1))
            >>> [f"{p:.4f}" for p in target.probs.tolist()]
            ['0.9374', '0.0625', '0.0001']
        """
        reward, log_ref = jnp.asarray(self.reward), jnp.asarray(self.log_ref)
        return Objective(reward, log_ref, beta, **options)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each outcome: its ``label``, ``reward``, ``log_ref`` and ``mode``.

        Example:
            >>> from kltarget import tasks
            >>> print(tasks.load("one-two").to_dataframe().round(2).to_string(index=False))
            label  reward  log_ref  mode
                1     1.0    -1.20     0
                2     1.0    -3.91     1
            other     0.0    -0.39    -1
        """
        import pandas as pd

        columns = {"label": list(self.labels), "reward": self.reward, "log_ref": self.log_ref}
        return pd.DataFrame({**columns, "mode": self.modes})

    def __repr__(self) -> str:
        modes = len(np.unique(self.modes[self.modes >= 0]))
        size = f"{counted(self.num_outcomes, 'outcome')}, {counted(modes, 'mode')}"
        return f"<Task {self.name!r}: {size}; {self.description}>"

    def _repr_html_(self) -> str:
        order, modes = np.argsort(-self.log_ref, kind="stable")[:_SHOWN], self.mode_names
        rows = [("outcome", "reward", "reference", "mode")]
        for at in map(int, order):
            mode = modes.get(int(self.modes[at]), "")
            share = probability(float(self.log_ref[at]))
            rows.append(
                (short(self.labels[at]), number(float(self.reward[at])), share, short(mode))
            )
        left = self.num_outcomes - len(order)
        more = [Paragraph(f"and {counted(left, 'more outcome')}", faint=True)] if left else []
        title = Paragraph(self.description, label=f"{self.name}:")
        return Page([title, Table(rows, "lrrl"), *more]).to_html()


class Labels(Sequence[str]):
    """The spelling of every sequence of a space, made when asked for: a million cost nothing.

    It compares equal to the tuple of the same strings.

    Args:
        space: the sequences.
        alphabet: the tokens' characters: one string, or a tuple of one string per position.

    Raises:
        ValueError: there is not one character per token.

    Example:
        >>> from kltarget import SequenceSpace, tasks
        >>> labels = tasks.Labels(SequenceSpace((9, 2, 9), 3), ("123456789", "+-", "123456789"))
        >>> len(labels), labels[0], labels[-1], labels.index("2+2")
        (162, '1+1', '9-9', 19)
    """

    def __init__(self, space: SequenceSpace, alphabet: str | tuple[str, ...]) -> None:
        each = alphabet if isinstance(alphabet, tuple) else (alphabet,) * space.length
        if tuple(map(len, each)) != space.sizes or any(len(set(x)) < len(x) for x in each):
            raise ValueError(
                f"alphabet {alphabet!r} does not spell the tokens of {space}: give one character "
                "per token"
            )
        self._space, self._alphabet = space, each

    def __len__(self) -> int:
        return self._space.num_sequences

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        tokens = np.unravel_index(range(len(self))[index], self._space.sizes)
        return "".join(letters[t] for letters, t in zip(self._alphabet, tokens, strict=True))

    def __iter__(self) -> Iterator[str]:
        return map("".join, itertools.product(*self._alphabet))

    def __contains__(self, label: object) -> bool:
        return isinstance(label, str) and self._find(label) is not None

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        """Where a sequence is, by its spelling; a ``ValueError`` if it is not."""
        found = self._find(value)
        if found is None or found not in range(*slice(start, stop).indices(len(self))):
            raise ValueError(f"{value!r} is not among the labels")
        return found

    def _find(self, label: str) -> int | None:
        if len(label) != len(self._alphabet):
            return None
        tokens = [letters.find(x) for letters, x in zip(self._alphabet, label, strict=True)]
        return None if -1 in tokens else int(np.ravel_multi_index(tokens, self._space.sizes))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Labels):
            return self._alphabet == other._alphabet
        if not isinstance(other, tuple) or len(other) != len(self):
            return NotImplemented
        return all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return f"<{len(self):,} labels from {self[0]!r} to {self[-1]!r}>"


def right_outcomes(reward: np.ndarray) -> np.ndarray:
    """Which outcomes count as right if nothing else says so: those of positive reward.

    If that would be all or none of them, those above the lowest finite reward are right instead,
    and if the finite rewards are all equal, every outcome that has one.

    Args:
        reward: rewards ``[A]``.

    Returns:
        Booleans ``[A]``.

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
    """Labels ``[A]`` that make each right outcome a mode, -1 for others; from booleans ``[A]``."""
    return np.where(right, np.cumsum(right) - 1, -1)


def likeliest_outcomes(modes: np.ndarray, log_probs: np.ndarray) -> dict[int, int]:
    """The likeliest outcome of each mode, the first of those that are equal, by the mode's label.

    From labels and log-probabilities ``[A]``; the modes are in increasing order.
    """
    members = np.flatnonzero(modes >= 0)
    members = members[np.argsort(-log_probs[members], kind="stable")]
    keys, first = np.unique(modes[members], return_index=True)
    return dict(zip(keys.tolist(), members[first].tolist(), strict=True))
