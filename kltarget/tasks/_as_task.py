"""One intake for problems: whatever a caller holds, as a task."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.typing import ArrayLike

from kltarget._core.checks import concrete_labels, traced
from kltarget._core.numerics import double_precision
from kltarget._core.words import counted
from kltarget.objectives import Objective
from kltarget.objectives._objective import objective_over_states
from kltarget.spaces import SequenceSpace
from kltarget.tasks._any_table import Frame
from kltarget.tasks._raw_table import RawTable, TableError
from kltarget.tasks._task import Task, one_mode_each, right_outcomes

ProblemLike: TypeAlias = (
    Task
    | Objective
    | str
    | os.PathLike[str]
    | Mapping[str, Any]
    | Frame
    | tuple[ArrayLike, ArrayLike]
)
"""What ``as_task`` takes."""

_MASS_TOLERANCE = 1e-3


def as_task(
    problem: ProblemLike,
    *,
    modes: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    space: SequenceSpace | None = None,
    columns: Mapping[str, Any] | None = None,
) -> Task:
    """A problem as a ``Task``, in whichever form it comes.

    Every verb on one problem takes it in each of these forms, through this function.

    Args:
        problem: a ``Task``; the name of a shipped one; the path of a table, as ``read_table`` reads
            it; such a table in memory, a DataFrame or a dictionary of columns, where the outcomes'
            names may be missing; a ``kltarget.Objective`` of one reward ``[A]`` and one reference
            ``[A]``, whatever its beta and divergence; or a pair ``(reward, log_ref)`` of arrays
            ``[A]``.
        modes: integer labels ``[A]`` of the outcomes' modes, below 0 for none. Default: the
            problem's own; where it has none, each outcome that ``right_outcomes`` counts is one.
        labels: what the outcomes are called, ``A`` strings. Default: the problem's own; of an
            objective or arrays their indices, or their tokens if there is a ``space``.
        space: the sequences that the outcomes are. Default: the task's own, if it has one.
        columns: the options of ``read_table`` that say which column is which; for tables only.

    Returns:
        The task itself if nothing of it is replaced. The reference of an objective or of arrays is
        normalised in double precision.

    Raises:
        TypeError: ``problem`` is nothing of these or is traced, or ``modes`` are no integers.
        ValueError: there is no such task, the objective has batch axes or a reference that is no
            distribution, or shapes or values do not fit; the message names the argument.
        TableError: a table is no problem.

    Example:
        >>> import kltarget as kt
        >>> from kltarget import tasks
        >>> tasks.as_task("one-two").mode_names
        {0: '1', 1: '2'}
        >>> log_ref = kt.normalize([0.0, -1.0, -2.0])
        >>> task = tasks.as_task(([1.0, 0.0, 1.0], log_ref), labels=["yes", "no", "maybe"])
        >>> task.modes.tolist(), task.mode_names
        ([0, -1, 1], {0: 'yes', 1: 'maybe'})
        >>> tasks.as_task({"answer": ["yes", "no"], "reward": [1, 0], "count": [1, 3]}).labels
        ('yes', 'no')
    """
    if isinstance(problem, str | os.PathLike):
        task = _named_or_read(problem, columns or {})
    elif isinstance(problem, Mapping):
        task = _of_columns(problem, columns or {}, "a dictionary")
    elif isinstance(problem, Frame) and not isinstance(problem, Task | Objective):
        task = _of_frame(problem, columns or {})
    elif columns:
        raise TypeError(f"columns are for a table, but problem is a {type(problem).__name__}")
    elif isinstance(problem, Task):
        task = problem
    elif isinstance(problem, Objective):
        task = _of_objective(problem, space)
    elif isinstance(problem, tuple) and len(problem) == 2:
        task = _of_arrays(*problem, space)
    else:
        over_states = objective_over_states(problem)
        mend = f": {over_states}" if over_states else ""
        raise TypeError(
            "problem must be a kltarget.tasks.Task, the name of one, the path of a table, a table "
            "as a DataFrame or a dictionary of columns, a kltarget.Objective or a pair (reward, "
            f"log_ref), got {type(problem).__name__}{mend}"
        )
    replaced: dict[str, Any] = {}
    if modes is not None:
        replaced["modes"] = concrete_labels(modes, task.num_outcomes)
    elif not (task.modes >= 0).any():
        replaced["modes"] = one_mode_each(right_outcomes(task.reward))
    if labels is not None:
        if len(labels) != task.num_outcomes:
            raise ValueError(
                f"labels has {len(labels)} entries, but there are {task.num_outcomes} outcomes: "
                "give one name per outcome"
            )
        replaced["labels"] = labels
    if space is not None and space != task.space:
        replaced |= {"space": space, "alphabet": None, "policy": None, "params": None}
    return dataclasses.replace(task, **replaced) if replaced else task


def _named_or_read(problem: str | os.PathLike[str], columns: Mapping[str, Any]) -> Task:
    # Who solves objectives need not load what reads files and builds tasks.
    from kltarget.tasks._kinds import KINDS, kind_of
    from kltarget.tasks._shipped import load, names
    from kltarget.tasks._tables import read_table

    if isinstance(problem, str) and problem in names():
        if columns:
            raise TypeError(f"columns are for a table, but problem is the task {problem!r}")
        return load(problem)
    path = pathlib.Path(problem)
    if not path.suffix and not path.exists():
        kind = kind_of(str(problem))
        if kind is not None:
            raise ValueError(
                f"task {str(problem)!r} is not a list of outcomes: load it with "
                f"kltarget.tasks.{KINDS[kind].load.__name__}, or kltarget verify {problem}"
            )
        raise ValueError(
            f"problem {str(problem)!r} is neither a file nor a task: "
            f"the tasks are {', '.join(names())}"
        )
    return read_table(path, **columns)


def _of_frame(frame: Frame, roles: Mapping[str, Any]) -> Task:
    from kltarget.tasks._tables import OUTCOME_NAMES

    columns = {str(name): frame[name] for name in frame.columns}
    if not roles.get("outcome") and not {x.strip().lower() for x in columns} & set(OUTCOME_NAMES):
        # pandas' own numbers of rows are no names.
        index = getattr(frame, "index", None)
        if index is not None and getattr(index, "name", None) is not None:
            columns = {str(index.name): index, **columns}
            roles = {"outcome": str(index.name), **roles}
    return _of_columns(columns, roles, f"a {type(frame).__name__}")


def _of_columns(given: Mapping[str, Any], roles: Mapping[str, Any], origin: str) -> Task:
    """The problem of a table in memory, in which the outcomes may be without names."""
    from kltarget.tasks._tables import OUTCOME_NAMES, table_of

    columns = {str(name): np.asarray(x) for name, x in given.items()}
    for name, entries in columns.items():
        if entries.ndim != 1:
            raise TableError(
                f"problem: column {name!r} has shape {entries.shape}: give one entry per outcome"
            )
    lengths = {name: entries.size for name, entries in columns.items()}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise TableError(f"problem: the columns differ in length: {listing}")
    size = max(lengths.values(), default=0)
    if not size:
        raise TableError(f"problem: there are no rows, only the columns {list(columns)}")
    entries = {name: x.tolist() for name, x in columns.items()}
    taken = {x for x in roles.values() if isinstance(x, str)}
    named = any(
        isinstance(x[0], str) or name.strip().lower() in OUTCOME_NAMES
        for name, x in entries.items()
        if name not in taken
    )
    if not roles.get("outcome") and not named:
        entries = {"outcome": [str(k) for k in range(size)], **entries}
    raw = RawTable(pathlib.Path("problem"), entries, [None] * size)
    return table_of(raw, **roles, origin=origin)


def _of_arrays(reward: ArrayLike, log_ref: ArrayLike, space: SequenceSpace | None) -> Task:
    with double_precision():
        # A reference that was rounded on its way here still counts as normalised.
        task = _of_fields(Objective(reward, log_ref, 1.0, measure=True), "problem", space)
    mass = np.exp(np.asarray(log_ref, np.float64)).sum()
    if abs(mass - 1) > _MASS_TOLERANCE:
        raise ValueError(f"log_ref has mass {mass:.4g}, not 1: pass kltarget.normalize of it")
    return task


def _of_objective(objective: Objective, space: SequenceSpace | None) -> Task:
    if objective.measure:
        raise ValueError(
            "problem has a reference that is no distribution, as kltarget.mara makes them: give "
            "the objective from before and threshold= where there is one"
        )
    return _of_fields(objective, "objective", space)


def _of_fields(objective: Objective, name: str, space: SequenceSpace | None) -> Task:
    if any(map(traced, jax.tree.leaves(objective))):
        raise TypeError("problem is traced, and has no numbers: call this outside of jit and vmap")
    reward, log_ref = (np.asarray(x, np.float64) for x in (objective.reward, objective.log_ref))
    if reward.ndim > 1 or log_ref.ndim > 1:
        raise ValueError(
            f"problem has batch shape {objective.batch_shape}: give one reward [A] and one "
            "reference [A]"
        )
    if space is not None and space.num_sequences != reward.size:
        raise ValueError(
            f"reward has shape {reward.shape}, but the space has {space.num_sequences} sequences"
        )
    sizes = (reward.size,) if space is None else space.sizes
    tokens = itertools.product(*([str(token) for token in range(n)] for n in sizes))
    return Task(
        name=name,
        description=counted(reward.size, "outcome"),
        # The masses of a narrower type sum to 1 in that type only.
        log_ref=log_ref - np.logaddexp.reduce(log_ref),
        reward=reward,
        labels=tuple(map(" ".join, tokens)),
        modes=one_mode_each(right_outcomes(reward)),
        space=space,
    )
