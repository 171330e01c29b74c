"""Rows of JSON, one on each line or all in a file of any usual layout."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kltarget._core.file_kinds import (
    NOT_A_RECORD,
    Fault,
    FileError,
    Row,
    encoding_fault,
    kind_of,
    opened,
    readable,
)


class JsonTable(NamedTuple):
    """The rows that a JSON file holds.

    Attributes:
        rows: their entries by name, or what is wrong with them.
        columns: the names of columns, if they stand apart from the rows.
        tracked: whether an experiment tracker wrote the file, in a layout of its own.
    """

    rows: list[Row | Fault]
    columns: tuple[str, ...] = ()
    tracked: bool = False


def json_lines(
    lines: Iterable[str], number: int = 0, line: int = 0
) -> Iterator[tuple[int, int, Row | Fault]]:
    """The rows of JSON Lines, after so many rows and lines before them, as ``RowFile`` has them.

    Args:
        lines: texts that end with a line feed alone, decoded with ``surrogateescape``.
        number: of the row before.
        line: that of the line before.
    """
    # Only \n ends a record: JSON strings may contain what else separates lines.
    for at, text in enumerate(lines, start=line + 1):
        if text.isspace():
            continue
        number += 1
        fault = encoding_fault(text)
        if fault is not None:
            yield number, at, fault
            continue
        try:
            row = json.loads(text.strip())
        except (json.JSONDecodeError, RecursionError) as error:
            row = Fault(_not_json(error))
        yield number, at, row if isinstance(row, dict | Fault) else NOT_A_RECORD


def json_table(path: pathlib.Path) -> JsonTable:
    """The rows of a JSON file in any usual layout.

    That is a list of records, an object of columns, an object of which one entry is a list of
    records (Trackio, the "table" of pandas), one of ``columns`` and ``data`` (Weights & Biases,
    the "split" of pandas), or a log of Inspect, whose rows are its samples.
    """
    content = load_json(path)
    if isinstance(content, list):
        return JsonTable(list(map(_record, content)))
    if not isinstance(content, dict):
        raise FileError(f"{path}: expected a list of records or an object of columns")
    names, data = content.get("columns"), content.get("data")
    if isinstance(names, list) and isinstance(data, list) and not any(map(_is_record, names)):
        columns = tuple(map(str, names))
        return JsonTable([_named(columns, entries) for entries in data], columns, True)
    if isinstance(content.get("eval"), dict) and "version" in content:
        samples = content.get("samples")
        if not isinstance(samples, list):
            raise FileError(f"{path}: a log of Inspect without samples")
        return JsonTable(list(map(_record, samples)))
    lists = [entries for entries in content.values() if _is_records(entries)]
    if len(lists) == 1 and not all(isinstance(x, list) for x in content.values()):
        return JsonTable(list(map(_record, lists[0])), (), "_type" in content)
    columns = {name: _column(path, name, entries) for name, entries in content.items()}
    lengths = {name: len(entries) for name, entries in columns.items()}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise FileError(f"{path}: the columns differ in length: {listing}")
    rows = zip(*columns.values(), strict=True)
    return JsonTable([dict(zip(columns, row, strict=True)) for row in rows], tuple(columns))


def is_tracked(path: pathlib.Path) -> bool:
    """Whether a JSON file is a table of an experiment tracker."""
    return not is_lines(path) and json_table(path).tracked


def is_lines(path: pathlib.Path) -> bool:
    """Whether a file that is called JSON has a whole record on each of several lines."""
    if kind_of(path) != "json":
        return False
    with opened(path, "\n") as (text, _):
        lines = (line for line in text if not line.isspace())
        for _ in range(2):
            try:
                if not isinstance(json.loads(next(lines, "")), dict):
                    return False
            except (json.JSONDecodeError, RecursionError):
                return False
    return True


def load_json(path: pathlib.Path) -> Any:
    """What a JSON file holds."""
    with readable(path), opened(path, "") as (text, _):
        content = "".join(text)
    if not content.strip():
        raise FileError(f"{path}: the file is empty")
    for line, text in enumerate(content.split("\n"), start=1):
        fault = encoding_fault(text)
        if fault is not None:
            raise FileError(f"{path}: {fault.at(line, line)}")
    try:
        return json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise FileError(f"{path}: line {line}: {_not_json(error)}") from None


def _is_record(entry: Any) -> bool:
    return isinstance(entry, dict)


def _is_records(entries: Any) -> bool:
    return isinstance(entries, list) and len(entries) > 0 and all(map(_is_record, entries))


def _record(entry: Any) -> Row | Fault:
    return entry if isinstance(entry, dict) else NOT_A_RECORD


def _named(columns: Sequence[str], entries: Any) -> Row | Fault:
    if isinstance(entries, list) and len(entries) == len(columns):
        return dict(zip(columns, entries, strict=True))
    return Fault(f"not a list of {len(columns)} entries")


def _column(path: pathlib.Path, name: str, entries: Any) -> Sequence[Any]:
    # pandas writes a column as an object of entries by their index.
    if isinstance(entries, Mapping) and all(str(key).isdecimal() for key in entries):
        return list(entries.values())
    if not isinstance(entries, list):
        raise FileError(f"{path}: column {name!r} is not a list: give one entry per outcome")
    return entries


def _not_json(error: json.JSONDecodeError | RecursionError) -> str:
    return f"not JSON: {getattr(error, 'msg', 'nested too deeply')}"
