"""How often each prompt was solved: tables of counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kltarget._core.column_names import PROMPT_NAMES
from kltarget._core.rows import as_number
from kltarget._core.words import short
from kltarget.tasks import TableError
from kltarget.tasks._any_table import Frame, raw_of
from kltarget.tasks._raw_table import RawTable, entry_name

if TYPE_CHECKING:
    import pandas as pd

_NAMES = {
    "prompt": (*PROMPT_NAMES, "prompt_id", "problem_id", "question_id", "id"),
    "correct": ("correct", "num_correct", "n_correct", "c"),
    "samples": ("samples", "num_samples", "n_samples", "n"),
}
# Above this a float no longer has all integers.
_MOST = 2**53


def read_counts(
    source: str | os.PathLike[str] | Mapping[str, Any] | Frame,
    *,
    columns: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Reads how many of a prompt's samples are correct, a row per prompt.

    Args:
        source: the path of a CSV, TSV, JSON, JSON Lines, Parquet or Arrow file, or such a table in
            memory: a DataFrame or a dictionary of columns.
        columns: which column is which, for example ``{"correct": "base_correct"}``. By default
            ``prompt``, ``correct`` and ``samples``, or what else they are usually called
            (``problem``, ``id``, ``num_correct``, ``c``, ``num_samples``, ``n``), in any case.

    Returns:
        A frame of the columns ``prompt`` (text), ``correct`` and ``samples`` (int64) in the order
        of the table, with an index from 0. Other columns are left out.

    Raises:
        TypeError: ``columns`` has an unknown role, or the source is nothing of these.
        TableError: there are no rows, a column is missing, a count is no whole number or negative,
            there are no samples or fewer than correct ones, or a prompt is missing or stands twice;
            the message is one line naming the column and the first such row.

    Example:
        >>> from kltarget.evidence import read_counts
        >>> read_counts({"id": ["a", "b"], "rl": [3, 0], "n": [4, 4]}, columns={"correct": "rl"})
          prompt  correct  samples
        0      a        3        4
        1      b        0        4
    """
    import pandas as pd

    roles = dict(columns or {})
    if unknown := sorted(set(roles) - set(_NAMES)):
        raise TypeError(f"columns has the unknown role {unknown[0]!r}: roles are {list(_NAMES)}")
    raw = raw_of(source, "counts", "source")
    found: dict[str, str] = {}
    for role, known in _NAMES.items():
        taken = {*found.values(), *roles.values()}
        column = raw.find_any(role, roles.get(role), known, taken)
        if column is None:
            why = raw.missing(role, known[:3] if role == "prompt" else known)
            raise TableError(f"{why}: name it by columns={{{role!r}: …}}")
        found[role] = column
    prompts = _prompts(raw, found["prompt"])
    samples = _counts(raw, found["samples"], least=1)
    correct = _counts(raw, found["correct"], least=0)
    for row, (right, size) in enumerate(zip(correct, samples, strict=True)):
        if right > size:
            raw.fail(found["correct"], row, f"{right:,} are correct of {size:,} samples")
    counts = {"correct": correct, "samples": samples}
    return pd.DataFrame({"prompt": prompts, **counts}).astype(dict.fromkeys(counts, "int64"))


def _prompts(raw: RawTable, column: str) -> list[str]:
    first: dict[str, int] = {}
    for row, entry in enumerate(raw.columns[column]):
        if entry is None or entry != entry or entry == "":
            raw.fail(column, row, "there is no prompt")
        name = entry_name(entry)
        if name in first:
            where = raw.row(first[name])
            problem = f"the prompt {short(name)!r} is in {where} too: give one row, counts added up"
            raw.fail(column, row, problem)
        first[name] = row
    return list(first)


def _counts(raw: RawTable, column: str, least: int) -> list[int]:
    def count(entry: Any) -> float:
        value = as_number(entry)
        if not value.is_integer() or value > _MOST:
            raise ValueError(f"{value:g} is not a whole number")
        if value < least:
            raise ValueError(f"{value:g} is too few: it must be {least} or more")
        return value

    return [int(x) for x in raw.numbers(column, count)]
