"""Tables of pairs: one row per comparison, or per pair with its counts or its win rate."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kltarget._core.column_names import PROMPT_NAMES
from kltarget._core.rows import as_number
from kltarget._core.words import short
from kltarget.tasks._any_table import Frame, raw_of
from kltarget.tasks._preferences import Preferences
from kltarget.tasks._raw_table import RawTable, TableError, entry_name, is_index, read_raw

_COUNT = ("count", "counts", "n", "comparisons", "weight")
_NAMES = {
    "chosen": ("chosen", "winner", "preferred", "won"),
    "rejected": ("rejected", "loser", "dispreferred", "lost"),
    "first": ("a", "first", "outcome_a", "response_a", "answer_a", "completion_a"),
    "second": ("b", "second", "outcome_b", "response_b", "answer_b", "completion_b"),
    "wins": ("wins", "wins_a", "a_wins"),
    "losses": ("losses", "wins_b", "b_wins"),
    "win_rate": ("win_rate", "winrate", "win_rate_a", "preference"),
    "comparisons": _COUNT,
    "prompt": PROMPT_NAMES,
}


def read_preferences(
    table: str | os.PathLike[str] | Mapping[str, Any] | Frame,
    *,
    labels: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Preferences:
    """Reads the pairs of one prompt, a row per comparison or per pair.

    A row names the ``chosen`` and the ``rejected`` outcome, and perhaps their ``count``; or it
    names the outcomes ``a`` and ``b`` with their ``wins`` and ``losses``, or with the ``win_rate``
    of a and perhaps a ``count`` of comparisons, which is the pair's weight, 1 by default.

    Args:
        table: the path of a CSV, TSV, JSON, JSON Lines, Parquet or Arrow file, or such a table in
            memory: a DataFrame or a dictionary of columns.
        labels: the names of all outcomes in the order of the reference. Default: the names that the
            table has, in the order in which they first occur, along each row; where all of them are
            integers and not text, they are the outcomes' indices.
        columns: which column is which, by role: ``chosen``, ``rejected``, ``first``, ``second``,
            ``wins``, ``losses``, ``win_rate``, ``comparisons``, ``prompt``. What is not said is
            found by usual names.

    Returns:
        The pairs in the order of the table.

    Raises:
        TypeError: ``columns`` has an unknown role, or the table is nothing of these.
        TableError: there are no rows, columns are missing, there is more than one prompt, an entry
            is no number or out of its range, a name is not among the labels, or an outcome is
            compared with itself; the message is one line naming column and row.

    Example:
        >>> from kltarget.tasks import read_preferences
        >>> pairs = read_preferences({"chosen": ["tea", "milk"], "rejected": ["milk", "tea"]})
        >>> pairs.labels, pairs.wins.tolist()
        (('tea', 'milk'), [1.0, 1.0])
        >>> read_preferences({"a": ["tea"], "b": ["milk"], "win_rate": [0.7]}).win_rate.tolist()
        [0.7]
    """
    raw = raw_of(table, "pairs")
    found = _columns(raw, columns)
    _one_prompt(raw, found.get("prompt"))
    return _read(raw, found, labels)


def read_preferences_by_prompt(
    table: str | os.PathLike[str] | Mapping[str, Any] | Frame,
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Preferences]:
    """Reads the pairs of several prompts, as :func:`read_preferences` does those of one.

    Args:
        table: as there, with a column that says which prompt a row is of.
        labels: of each prompt the names of all its outcomes in the order of its reference; by
            default as there.
        columns: as there.

    Returns:
        The pairs of each prompt, in the order in which prompts first occur.

    Raises:
        TypeError: as there.
        TableError: as there, or there is no column of prompts, or no labels for one of them.

    Example:
        >>> from kltarget.tasks import read_preferences_by_prompt
        >>> drinks = {
        ...     "prompt": ["morning", "morning", "evening"],
        ...     "chosen": ["tea", "milk", "milk"],
        ...     "rejected": ["milk", "tea", "tea"],
        ... }
        >>> pairs = read_preferences_by_prompt(drinks)
        >>> pairs["morning"].labels, pairs["evening"].labels
        (('tea', 'milk'), ('milk', 'tea'))
    """
    raw = raw_of(table, "pairs")
    found = _columns(raw, columns)
    prompt = found.pop("prompt", None)
    if prompt is None:
        raise raw.missing("prompt", PROMPT_NAMES[:3])
    pairs = {}
    for name, part in raw.parts(prompt, entry_name).items():
        if labels is not None and name not in labels:
            part.fail(prompt, 0, f"there are no labels for the prompt {short(name)!r}")
        pairs[name] = _read(part, found, None if labels is None else labels[name])
    return pairs


def prompts_of(path: str | os.PathLike[str]) -> list[str]:
    """The different prompts of a table of any kind; none if no column has any."""
    raw = read_raw(pathlib.Path(path))
    column = raw.find_any("prompt", None, PROMPT_NAMES)
    return [] if column is None else list(raw.parts(column, entry_name))


def _columns(raw: RawTable, columns: Mapping[str, str] | None) -> dict[str, str]:
    """The column of each role that there is."""
    roles = dict(columns or {})
    if unknown := sorted(set(roles) - set(_NAMES)):
        raise TypeError(f"columns has the unknown role {unknown[0]!r}: roles are {list(_NAMES)}")
    found: dict[str, str] = {}
    for role, known in _NAMES.items():
        column = raw.find_any(role, roles.get(role), known, taken=found.values())
        if column is not None:
            found[role] = column
    return found


def _read(raw: RawTable, found: Mapping[str, str], labels: Sequence[str] | None) -> Preferences:
    left, right = _sides(raw, found)
    first, second, names = _indices(raw, left, right, labels)
    wins, losses = _weights(raw, found)
    return Preferences(first, second, wins, losses, names)


def _one_prompt(raw: RawTable, column: str | None) -> None:
    if column is None:
        return
    entries = list(map(entry_name, raw.columns[column]))
    for row, entry in enumerate(entries):
        if entry != entries[0]:
            raw.fail(
                column, row, "a second prompt begins: read them by prompt, or give one at a time"
            )


def _sides(raw: RawTable, found: Mapping[str, str]) -> tuple[str, str]:
    """The columns of the outcomes, the chosen or the first before the other."""
    for roles in (("chosen", "rejected"), ("first", "second")):
        sides = [found[role] for role in roles if role in found]
        if len(sides) == 2:
            return sides[0], sides[1]
    raise TableError(
        f"{raw.path}: no pairs: the columns {raw.listing()} are neither 'chosen' and 'rejected' "
        "nor 'a' and 'b' with 'wins' and 'losses' or a 'win_rate'"
    )


def _weights(raw: RawTable, found: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    count = np.ones(raw.num_rows)
    if "comparisons" in found:
        count = _numbers(raw, found["comparisons"], 0.0, np.inf)
    if "chosen" in found and "rejected" in found:
        wins, losses = count, np.zeros(raw.num_rows)
    elif "wins" in found and "losses" in found:
        wins, losses = (_numbers(raw, found[x], 0.0, np.inf) for x in ("wins", "losses"))
    elif "win_rate" in found:
        rate = _numbers(raw, found["win_rate"], 0.0, 1.0)
        wins, losses = rate * count, (1 - rate) * count
    else:
        raise TableError(
            f"{raw.path}: no preferences: {raw.listing()} has neither 'wins' and 'losses' nor a "
            "'win_rate'"
        )
    empty = np.flatnonzero(wins + losses == 0)
    if empty.size:
        raise TableError(f"{raw.path}: {raw.row(int(empty[0]))}: the pair was never compared")
    return wins, losses


def _numbers(raw: RawTable, column: str, low: float, high: float) -> np.ndarray:
    values = raw.numbers(column, as_number)
    bad = ~((values >= low) & (values <= high) & np.isfinite(values))
    for row in np.flatnonzero(bad):
        rule = "between 0 and 1" if high == 1 else "finite and 0 or more"
        raw.fail(column, int(row), f"{values[row]:g} must be {rule}")
    return values


def _indices(
    raw: RawTable, left: str, right: str, labels: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...] | None]:
    sides = raw.columns[left], raw.columns[right]
    for column, entries in zip((left, right), sides, strict=True):
        for row, entry in enumerate(entries):
            if entry is None or not str(entry).strip():
                raw.fail(column, row, "the entry is empty")
    pairs = [tuple(map(entry_name, pair)) for pair in zip(*sides, strict=True)]
    for row, (one, other) in enumerate(pairs):
        if one == other:
            raw.fail(right, row, f"{other!r} is compared with itself")
    everything = [entry for pair in zip(*sides, strict=True) for entry in pair]
    if labels is None and all(map(is_index, everything)):
        for column, entries in zip((left, right), sides, strict=True):
            for row, entry in enumerate(entries):
                if entry < 0:
                    raw.fail(column, row, f"{entry} must be an index, 0 or more")
        first, second = (np.asarray(x, np.int64) for x in sides)
        return first, second, None
    occurring = dict.fromkeys(name for pair in pairs for name in pair)
    names = tuple(occurring) if labels is None else tuple(map(str, labels))
    at = {name: k for k, name in enumerate(names)}
    if len(at) < len(names):
        raise ValueError("labels has a name twice: give each outcome its own")
    for row, pair in enumerate(pairs):
        for column, name in zip((left, right), pair, strict=True):
            if name not in at:
                raw.fail(column, row, f"{name!r} is not among the labels")
    first, second = (np.array([at[pair[side]] for pair in pairs]) for side in (0, 1))
    return first, second, names
