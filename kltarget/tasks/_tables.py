r"""Read a problem from a table: one row per outcome, with its reward and its reference probability.

CSV, TSV, JSON, JSON Lines, Parquet and Arrow are read. Which column is which is guessed from the
names unless it is said; every guess is kept as a line of text in ``Table.notes``.

Rows are counted from 1 and the header is not a row; where the two differ, messages give the line of
the file too.

Example:
    >>> import pathlib, tempfile
    >>> from kltarget import tasks
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "answers.csv"
    >>> _ = path.write_text("answer,reward,count\nyes,1,30\nno,0,10\n")
    >>> table = tasks.read_table(path)
    >>> table.labels, table.reward.tolist()
    (('yes', 'no'), [1.0, 0.0])
    >>> print(*table.notes, sep="\n")
    outcome column 'answer', reward column 'reward'
    reference from counts in column 'count' (total 40)
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from kltarget._core.column_names import OUTCOME_NAMES, PROMPT_NAMES, REWARD_NAMES
from kltarget._core.rows import as_number, shown
from kltarget._core.words import counted
from kltarget.tasks._raw_table import RawTable, TableError, as_reward, entry_name, read_raw
from kltarget.tasks._task import Task, one_mode_each, right_outcomes

# Names that are recognised, in order of preference.
LOG_REF_NAMES = (
    *("log_ref", "ref_logp", "ref_logprob", "ref_log_prob", "reference_logp"),
    *("logp", "logprob", "log_prob", "log_probability"),
)
PROB_NAMES = ("ref_prob", "ref_probability", "pi_ref", "probability", "prob", "p", "ref")
COUNT_NAMES = ("count", "counts", "n", "freq", "frequency")
MODE_NAMES = ("mode", "modes")

UNSEEN = "(unseen)"

# Masses that miss one by less than this are taken for rounding and not reported as missing.
_ROUNDING = 1e-6
# Tables have logarithms of a few decimals.
_ROUNDED_LOGS = 1e-3


@dataclasses.dataclass(frozen=True)
class _Reference:
    names: tuple[str, ...]
    what: str
    low: float
    high: float
    wrong: str


_REFERENCES = {
    "log_ref": _Reference(
        LOG_REF_NAMES,
        "log-probabilities",
        -math.inf,
        0.0,
        "no log-probability: it must be 0 or less",
    ),
    "prob": _Reference(
        PROB_NAMES, "probabilities", 0.0, 1.0, "no probability: it must be between 0 and 1"
    ),
    "count": _Reference(
        COUNT_NAMES, "counts", 0.0, sys.float_info.max, "no count: it must be finite and 0 or more"
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Table(Task):
    """A ``Task`` read from a file, and what was guessed or changed on the way.

    Attributes:
        notes: one line of text for each guess and each change.
        missing_mass: reference mass that the file's rows leave out, a probability. It was spread
            over the rows in proportion, or kept as one more outcome when a reward for it was given.
    """

    notes: tuple[str, ...] = ()
    missing_mass: float = 0.0


def read_table(
    path: str | os.PathLike[str],
    *,
    outcome: str | None = None,
    reward: str | None = None,
    log_ref: str | None = None,
    prob: str | None = None,
    count: str | None = None,
    modes: str | None = None,
    unseen_reward: float | None = None,
) -> Table:
    r"""Reads one problem, a row per outcome, to be solved as ``table.objective(beta)``.

    The reference is read from the first of these that the table has, or from the one that is named:
    log-probabilities (natural logarithms), probabilities, counts. Masses are normalised; what
    rounding cannot explain is noted.

    Args:
        path: a ``.csv``, ``.tsv``, ``.json`` (a list of records or an object of columns),
            ``.jsonl``, ``.parquet``, ``.arrow`` or ``.feather`` file; those of text may be packed
            (``.csv.gz``).
        outcome: column of the outcomes' labels. A label may occur once only.
        reward: column of the rewards, in any real unit: numbers, ``-inf``, or true/false for 1 and
            0.
        log_ref: column of natural-log reference probabilities.
        prob: column of reference probabilities.
        count: column of how often the reference produced each outcome.
        modes: column whose equal entries mark outcomes of the same mode. Without it (and without a
            column called ``mode``), each right outcome is its own mode and all others are labelled
            -1; right are those of positive reward, see :func:`kltarget.tasks.right_outcomes`.
        unseen_reward: if given, reference mass that the rows leave out is kept as one more outcome
            with this reward, labelled ``(unseen)``, instead of being normalised away.

    Columns that are not named are found by their names, such as ``answer``, ``reward`` and
    ``count``, in any case and with spaces or hyphens for underscores.

    Returns:
        A :class:`Table` of ``A`` outcomes in the order of the file, the unseen one last; each guess
        and each change is a line of its ``notes``. Reward ``-inf`` forbids an outcome, and
        reference mass 0 is kept as ``-inf``.

    Raises:
        TableError: the file is missing, is not what its extension says, lacks a column, or has an
            entry that is no valid reward, reference or label. The message is one line naming file,
            column and row.
        ImportError: a Parquet file is read and pyarrow is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> from kltarget.tasks import read_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "answers.csv")
        ...     _ = path.write_text("answer,reward,count\none,1,15\ntwo,1,1\nother,0,34\n")
        ...     table = read_table(path)
        >>> table.labels, table.reward.tolist()
        (('one', 'two', 'other'), [1.0, 1.0, 0.0])
    """
    columns: dict[str, Any] = {"outcome": outcome, "reward": reward, "modes": modes}
    columns |= {"log_ref": log_ref, "prob": prob, "count": count}
    return table_of(read_raw(pathlib.Path(path)), **columns, unseen_reward=unseen_reward)


def read_reference(
    path: str | os.PathLike[str],
    *,
    outcome: str | None = None,
    log_ref: str | None = None,
    prob: str | None = None,
    count: str | None = None,
) -> Table:
    r"""Reads a reference alone, a row per outcome, as :func:`read_table` does.

    Args:
        path: a file of any kind that :func:`read_table` reads.
        outcome: column of the outcomes' labels.
        log_ref: column of natural-log reference probabilities.
        prob: column of reference probabilities.
        count: column of how often the reference produced each outcome.

    Returns:
        A :class:`Table` whose rewards are all 0: a column of rewards is not looked at.

    Raises:
        TableError: as for :func:`read_table`.

    Example:
        >>> import pathlib, tempfile
        >>> from kltarget.tasks import read_reference
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "answers.csv")
        ...     _ = path.write_text("answer,count\nyes,30\nno,10\n")
        ...     table = read_reference(path)
        >>> table.labels, [f"{p:.2f}" for p in 2.718281828**table.log_ref]
        (('yes', 'no'), ['0.75', '0.25'])
    """
    columns: dict[str, Any] = {"outcome": outcome, "log_ref": log_ref, "prob": prob, "count": count}
    return table_of(read_raw(pathlib.Path(path)), **columns, rewarded=False)


def read_references_by_prompt(
    path: str | os.PathLike[str],
    *,
    prompt: str | None = None,
    outcome: str | None = None,
    log_ref: str | None = None,
    prob: str | None = None,
    count: str | None = None,
) -> dict[str, Table]:
    r"""Reads the references of several prompts, as :func:`read_reference` does that of one.

    Args:
        path: a file of any kind that :func:`read_table` reads.
        prompt: column that says which prompt a row is of.
        outcome: as for :func:`read_reference`.
        log_ref: as there.
        prob: as there.
        count: as there.

    Returns:
        A :class:`Table` for each prompt, in the order in which prompts first occur; their
        references sum to 1 each.

    Raises:
        TableError: as for :func:`read_table`, or there is no column of prompts.

    Example:
        >>> import pathlib, tempfile
        >>> from kltarget.tasks import read_references_by_prompt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "answers.csv")
        ...     _ = path.write_text("prompt,answer,count\nA,yes,30\nA,no,10\nB,five,7\n")
        ...     tables = read_references_by_prompt(path)
        >>> {prompt: table.labels for prompt, table in tables.items()}
        {'A': ('yes', 'no'), 'B': ('five',)}
    """
    columns: dict[str, Any] = {"outcome": outcome, "log_ref": log_ref, "prob": prob, "count": count}
    raw = read_raw(pathlib.Path(path))
    found = raw.find("prompt", prompt, PROMPT_NAMES)
    parts = raw.parts(found, entry_name)
    return {name: table_of(part, **columns, rewarded=False) for name, part in parts.items()}


def table_of(
    raw: RawTable,
    *,
    outcome: str | None = None,
    reward: str | None = None,
    log_ref: str | None = None,
    prob: str | None = None,
    count: str | None = None,
    modes: str | None = None,
    unseen_reward: float | None = None,
    origin: str = "",
    rewarded: bool = True,
) -> Table:
    """The problem of a table whose entries are read; the options are those of ``read_table``.

    Where it is not ``rewarded``, no column of rewards is looked for and all are 0.
    """
    path, notes = raw.path, list(raw.notes)
    references = {"log_ref": log_ref, "prob": prob, "count": count}
    given = [kind for kind, column in references.items() if column is not None]
    if len(given) > 1:
        raise TableError(
            f"{path}: columns were given for {' and '.join(given)}: "
            "the reference is read from one of them"
        )
    if unseen_reward is not None and (math.isnan(unseen_reward) or unseen_reward == math.inf):
        raise TableError(
            f"{path}: the reward of the unseen outcome is {unseen_reward}: give a number or -inf"
        )

    reward_column = raw.find("reward", reward, REWARD_NAMES) if rewarded else None
    kind, reference_column = _find_reference(raw, references)
    taken = {reward_column, reference_column}
    mode_column = raw.find_any("mode", modes, MODE_NAMES, taken)
    outcome_column = raw.find_any("outcome", outcome, OUTCOME_NAMES, taken)
    if outcome_column is None:
        outcome_column = _only_text_column(raw, taken | {mode_column})
    others = {"reward": reward_column, "mode": mode_column}
    named = [f", {role} column {name!r}" for role, name in others.items() if name is not None]
    notes.append(f"outcome column {outcome_column!r}" + "".join(named))

    labels = _labels(raw, outcome_column)
    rewards = np.zeros(raw.num_rows)
    if reward_column is not None:
        rewards = raw.numbers(reward_column, as_reward)
    log_mass = _log_masses(raw, kind, reference_column)
    highest = log_mass.max()
    if highest == -math.inf:
        raise TableError(
            f"{path}: column {reference_column!r}: every outcome has reference mass zero"
        )
    log_total = float(highest + np.log(np.exp(log_mass - highest).sum()))

    missing = 0.0
    source = f"reference from {_REFERENCES[kind].what} in column {reference_column!r}"
    total = math.exp(log_total)
    if kind == "count":
        notes.append(f"{source} (total {total:,.10g})")
    elif log_total > _ROUNDING:
        hint = "" if log_total < 0.01 else "; is each row a different outcome of one prompt?"
        hint = _hint_of_base(log_mass, kind) or hint
        notes.append(f"{source}: masses sum to {total:.6g}, more than one: normalised{hint}")
    elif log_total < -_ROUNDING:
        missing = -math.expm1(log_total)
        fate = "normalised away"
        if unseen_reward is not None:
            fate = f"kept as {UNSEEN!r}, reward {unseen_reward:g}"
        fate += _hint_of_base(log_mass, kind)
        notes.append(f"{source}: masses sum to {total:.6g}, missing mass {missing:.6g} {fate}")
    else:
        notes.append(source)
    known = {name for reference in _REFERENCES.values() for name in reference.names}
    spare = [column for column in raw.called(known) if column != reference_column]
    if spare:
        notes.append(f"not used for the reference: {', '.join(map(repr, spare))}")

    if unseen_reward is not None and missing > 0:
        if UNSEEN in labels:
            row = labels.index(UNSEEN)
            raw.fail(outcome_column, row, f"{UNSEEN!r} is the name of the missing mass")
        labels = (*labels, UNSEEN)
        rewards = np.append(rewards, unseen_reward)
        log_mass = np.append(log_mass, math.log(missing))
    else:
        log_mass = log_mass - log_total
        if unseen_reward is not None:
            notes.append("no reference mass is missing: the unseen reward is not used")

    mode_labels = _modes(raw, mode_column, rewards)
    empty = int(np.isneginf(log_mass).sum())
    if empty:
        notes.append(f"{empty} outcome{'s have' if empty > 1 else ' has'} no reference mass")
    if np.isneginf(np.where(np.isneginf(log_mass), -np.inf, rewards)).all():
        raise TableError(
            f"{path}: column {reward_column!r}: no outcome with reference mass has a finite reward"
        )
    return Table(
        name=path.stem,
        description=f"{counted(len(labels), 'outcome')} from {origin or path.name}",
        log_ref=log_mass,
        reward=rewards,
        labels=labels,
        modes=mode_labels,
        notes=tuple(notes),
        missing_mass=missing,
    )


def _hint_of_base(log_mass: np.ndarray, kind: str) -> str:
    """What to say of log-probabilities that sum to one if they are of a usual base, but not e."""
    for base in (10, 2) if kind == "log_ref" else ():
        scaled = log_mass * math.log(base)
        if abs(math.expm1(float(np.logaddexp.reduce(scaled)))) < _ROUNDED_LOGS:
            return (
                f"; as logarithms of base {base} they sum to 1: multiply them by "
                f"ln {base} = {math.log(base):.6g}, natural ones are read"
            )
    return ""


def _find_reference(raw: RawTable, given: Mapping[str, str | None]) -> tuple[str, str]:
    named = [kind for kind, column in given.items() if column is not None]
    for kind in named or _REFERENCES:
        column = raw.find_any("reference", given[kind], _REFERENCES[kind].names)
        if column is not None:
            return kind, column
    raise raw.missing("reference", ("ref_logp", "prob", "count"))


def _log_masses(raw: RawTable, kind: str, column: str) -> np.ndarray:
    reference = _REFERENCES[kind]
    values = raw.numbers(column, as_number)
    for row in np.flatnonzero((values < reference.low) | (values > reference.high + _ROUNDING)):
        raw.fail(column, int(row), f"{values[row]:g} is {reference.wrong}")
    values = np.minimum(values, reference.high)
    if kind == "log_ref":
        return values
    with np.errstate(divide="ignore"):
        return np.log(values)


def _only_text_column(raw: RawTable, taken: set[str | None]) -> str:
    text = [
        column
        for column, entries in raw.columns.items()
        if column not in taken and any(map(_is_text, entries))
    ]
    if len(text) != 1:
        raise raw.missing("outcome", OUTCOME_NAMES[:3])
    return text[0]


def _is_text(entry: Any) -> bool:
    if not isinstance(entry, str):
        return False
    try:
        float(entry)
    except ValueError:
        return bool(entry.strip())
    return False


def _labels(raw: RawTable, column: str) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for row, entry in enumerate(raw.columns[column]):
        if entry is None:
            raw.fail(column, row, "the entry is empty")
        text = isinstance(entry, str)
        label = entry if text else json.dumps(entry, ensure_ascii=False, default=str)
        if label in seen:
            raw.fail(
                column,
                row,
                f"{shown(label)} is already in {raw.row(seen[label])}: "
                "give each outcome one row (add up its counts or probabilities)",
            )
        seen[label] = row
    return tuple(seen)


def _modes(raw: RawTable, column: str | None, rewards: np.ndarray) -> np.ndarray:
    if column is None:
        return one_mode_each(right_outcomes(rewards))
    codes: dict[str, int] = {}
    for row, entry in enumerate(raw.columns[column]):
        if entry is None or not str(entry).strip():
            raw.fail(column, row, "the entry is empty")
        codes.setdefault(str(entry), len(codes))
    found = [codes[str(entry)] for entry in raw.columns[column]]
    return np.array([*found, *[len(codes)] * (rewards.size - len(found))])
