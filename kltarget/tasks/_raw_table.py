"""Files of tables as columns of untyped entries, whatever the format, and where each row stands."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from kltarget._core.column_names import first_called
from kltarget._core.file_kinds import Fault, FileError, Row, kind_of, place
from kltarget._core.rows import RowFile, as_number, simple_name


class TableError(ValueError):
    """A table that is no problem; the message is one line naming file, column and row."""

    __module__ = "kltarget.tasks"  # where users catch it, so what a traceback is to call it


@dataclasses.dataclass
class RawTable:
    """A table as read: columns of untyped entries, and where in the file each row is."""

    path: pathlib.Path
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int | None]
    notes: tuple[str, ...] = ()
    rows: Sequence[int] | None = None
    """The numbers of the rows in the whole table, if this is a part of it."""

    def parts(self, column: str, name: Callable[[Any], str]) -> dict[str, RawTable]:
        """The rows of each entry of a column, by its name, without that column."""
        where: dict[str, list[int]] = {}
        for row, entry in enumerate(self.columns[column]):
            where.setdefault(name(entry), []).append(row)
        others = {key: x for key, x in self.columns.items() if key != column}
        return {
            key: dataclasses.replace(
                self,
                columns={other: [x[row] for row in rows] for other, x in others.items()},
                lines=[self.lines[row] for row in rows],
                rows=rows,
            )
            for key, rows in where.items()
        }

    @property
    def num_rows(self) -> int:
        return len(self.lines)

    def fail(self, column: str, row: int, problem: str) -> NoReturn:
        raise TableError(f"{self.path}: column {column!r}, {self.row(row)}: {problem}")

    def row(self, row: int) -> str:
        return place((row if self.rows is None else self.rows[row]) + 1, self.lines[row])

    def find(self, role: str, given: str | None, known: Sequence[str]) -> str:
        """The column of a role: the one that was given, else the first whose name is known."""
        column = self.find_any(role, given, known)
        if column is None:
            raise self.missing(role, known[:3])
        return column

    def missing(self, role: str, names: Sequence[str]) -> TableError:
        """What to raise where no column has a role, and what it could have been called."""
        either = f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"
        found = self.listing()
        return TableError(f"{self.path}: no {role} column: none of {found} is called {either}")

    def find_any(
        self, role: str, given: str | None, known: Sequence[str], taken: Collection[str | None] = ()
    ) -> str | None:
        """As ``find``, but None if there is no such column; those taken are not guessed again."""
        if given is not None:
            if given not in self.columns and simple_name(given) in map(simple_name, self.columns):
                return first_called(self.columns, [simple_name(given)])
            if given not in self.columns:
                raise TableError(
                    f"{self.path}: there is no {role} column {given!r}: "
                    f"the columns are {self.listing()}"
                )
            return given
        return first_called(self.columns, known, taken)

    def called(self, known: Collection[str]) -> list[str]:
        """The columns whose names are known."""
        return [column for column in self.columns if simple_name(column) in known]

    def listing(self) -> str:
        return ", ".join(map(repr, self.columns))

    def numbers(self, column: str, convert: Callable[[Any], float]) -> np.ndarray:
        """A column's entries, each converted; or what is wrong with the first that cannot be."""
        values = []
        for row, entry in enumerate(self.columns[column]):
            try:
                values.append(convert(entry))
            except ValueError as error:
                self.fail(column, row, str(error))
        return np.array(values)


def as_reward(entry: Any) -> float:
    """As ``as_number``, with true and false for 1 and 0; infinite rewards are ``-inf``."""
    truth = {"true": 1.0, "false": 0.0}.get(str(entry).strip().lower())
    value = as_number(entry) if truth is None else truth
    if value == math.inf:
        raise ValueError("a reward of +inf has no target: rewards are finite or -inf")
    return value


def is_index(entry: Any) -> bool:
    return isinstance(entry, int | np.integer) and not isinstance(entry, bool)


def entry_name(entry: Any) -> str:
    """What an outcome or a prompt is called; two entries of one name are one."""
    if isinstance(entry, str):
        return entry
    if is_index(entry):
        return str(int(entry))
    return json.dumps(entry, ensure_ascii=False, default=str)


def read_raw(path: pathlib.Path) -> RawTable:
    kind = kind_of(path)
    if kind is None:
        raise TableError(
            f"{path}: unknown extension {path.suffix!r}: "
            "a table ends in .csv, .tsv, .json, .jsonl or .parquet"
        )
    try:
        raw = _read_rows(path)
    except FileError as error:
        raise TableError(*error.args) from None
    if not raw.num_rows:
        raise TableError(f"{path}: there are no rows, only the columns {raw.listing()}")
    return raw


def _read_rows(path: pathlib.Path) -> RawTable:
    file = RowFile(path, guess_delimiter=True)
    rows = list(file)
    if not rows and not file.columns and file.kind != "json":
        raise TableError(f"{path}: the file is empty")
    notes = () if file.delimiter is None else (f"columns are separated by {file.delimiter!r}",)
    return _from_records(path, rows, file.columns, notes)


def _from_records(
    path: pathlib.Path,
    rows: Sequence[tuple[int, int | None, Row | Fault]],
    columns: Sequence[str] = (),
    notes: tuple[str, ...] = (),
) -> RawTable:
    names, records = dict.fromkeys(columns), []
    for number, line, row in rows:
        if isinstance(row, Fault):
            raise TableError(f"{path}: {row.at(number, line)}")
        names.update(dict.fromkeys(row))
        records.append(row)
    entries = {name: [record.get(name) for record in records] for name in names}
    return RawTable(path, entries, [line for _, line, _ in rows], notes)
