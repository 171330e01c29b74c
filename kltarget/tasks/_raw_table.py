"""Files of tables as columns of untyped entries, whatever the format, and where each row stands."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

EXTENSIONS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


class TableError(ValueError):
    """A table that is no problem; the message is one line naming file, column and row."""

    __module__ = "kltarget.tasks"  # where users catch it, so what a traceback is to call it


@dataclasses.dataclass
class RawTable:
    """A table as read: columns of untyped entries, and where in the file each row is."""

    path: pathlib.Path
    columns: Mapping[str, Sequence[Any]]
    num_rows: int
    lines: Sequence[int] | None = None
    notes: tuple[str, ...] = ()

    def fail(self, column: str, row: int, problem: str) -> NoReturn:
        raise TableError(f"{self.path}: column {column!r}, {self.row(row)}: {problem}")

    def row(self, row: int) -> str:
        return _place(row, self.lines)

    def find(self, role: str, given: str | None, known: Sequence[str]) -> str:
        """The column of a role: the one that was given, else the first whose name is known."""
        column = self.find_any(role, given, known)
        if column is None:
            raise TableError(
                f"{self.path}: no {role} column: none of {self.listing()} "
                f"is called {either(known[:3])}"
            )
        return column

    def find_any(
        self,
        role: str,
        given: str | None,
        known: Sequence[str],
        taken: Collection[str | None] = (),
    ) -> str | None:
        """As `find`, but None if there is no such column; those taken are not guessed again."""
        if given is not None:
            if given not in self.columns:
                raise TableError(
                    f"{self.path}: there is no {role} column {given!r}: "
                    f"the columns are {self.listing()}"
                )
            return given
        simple = {_simple(column): column for column in self.columns if column not in taken}
        return next((simple[name] for name in known if name in simple), None)

    def called(self, known: Collection[str]) -> list[str]:
        """The columns whose names are known."""
        return [column for column in self.columns if _simple(column) in known]

    def listing(self) -> str:
        return ", ".join(map(repr, self.columns))

    def number(self, column: str, row: int) -> float:
        return self._entry(as_number, column, row)

    def reward(self, column: str, row: int) -> float:
        return self._entry(as_reward, column, row)

    def _entry(self, convert: Callable[[Any], float], column: str, row: int) -> float:
        try:
            return convert(self.columns[column][row])
        except ValueError as error:
            self.fail(column, row, str(error))


def as_number(entry: Any) -> float:
    """The number that an entry of a table is; a ValueError says why it is none."""
    if entry is None or (isinstance(entry, str) and not entry.strip()):
        raise ValueError("the entry is empty")
    try:
        # float() accepts digit grouping by underscores, which in a table is more likely a
        # typing error.
        if isinstance(entry, bool | complex) or (isinstance(entry, str) and "_" in entry):
            raise ValueError
        value = float(entry)
    except (TypeError, ValueError, OverflowError):
        comma = isinstance(entry, str) and re.fullmatch(r"\s*-?\d+,\d+\s*", entry)
        hint = ": write a decimal point, not a comma" if comma else ""
        raise ValueError(f"{shown(entry)} is not a number{hint}") from None
    if math.isnan(value):
        raise ValueError("the entry is NaN")
    return value


def as_reward(entry: Any) -> float:
    """As `as_number`, with true and false for 1 and 0; infinite rewards are `-inf`."""
    truth = {"true": 1.0, "false": 0.0}.get(str(entry).strip().lower())
    value = as_number(entry) if truth is None else truth
    if value == math.inf:
        raise ValueError("a reward of +inf has no target: rewards are finite or -inf")
    return value


def _place(row: int, lines: Sequence[int] | None) -> str:
    place = f"row {row + 1}"
    return place if lines is None else f"{place} (line {lines[row]})"


def _simple(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def either(names: Sequence[str]) -> str:
    return f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"


def shown(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 40 else text[:39] + "…"


def read_raw(path: pathlib.Path) -> RawTable:
    kind = EXTENSIONS.get(path.suffix.lower())
    if kind is None:
        raise TableError(
            f"{path}: unknown extension {path.suffix!r}: "
            "a table ends in .csv, .tsv, .json, .jsonl or .parquet"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not data.strip():
        raise TableError(f"{path}: the file is empty")
    if kind == "parquet":
        raw = _read_parquet(path, data)
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise TableError(
                f"{path}: line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}): "
                "save the file as UTF-8"
            ) from None
        if kind == "json":
            raw = _read_json(path, text)
        elif kind == "jsonl":
            raw = _read_jsonl(path, text)
        else:
            raw = _read_csv(path, text, "," if kind == "csv" else "\t")
    if not raw.num_rows:
        raise TableError(f"{path}: there are no rows, only the columns {raw.listing()}")
    return raw


def _read_csv(path: pathlib.Path, text: str, delimiter: str) -> RawTable:
    notes: tuple[str, ...] = ()
    header_line = text.lstrip("\r\n").splitlines()[0]
    if delimiter not in header_line:
        other = next((d for d in (";", "\t", ",") if d in header_line), None)
        if other is not None:
            delimiter, notes = other, (f"columns are separated by {other!r}",)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    rows: list[list[str]] = []
    lines: list[int] = []
    last_line = 0
    try:
        for row in reader:
            # A quoted entry may span lines; the reader reports the last of them.
            line, last_line = last_line + 1, reader.line_num
            if not any(entry.strip() for entry in row):
                continue
            if header is None:
                header = [entry.strip() for entry in row]
                _check_header(path, header)
                continue
            if len(row) != len(header):
                raise TableError(
                    f"{path}: row {len(rows) + 1} (line {line}) has {len(row)} entries, "
                    f"the header has {len(header)}"
                )
            rows.append(row)
            lines.append(line)
    except csv.Error as error:
        raise TableError(f"{path}: line {reader.line_num}: {error}") from None
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header or ())}
    return RawTable(path, columns, len(rows), lines, notes)


def _check_header(path: pathlib.Path, header: Sequence[str]) -> None:
    for i, name in enumerate(header):
        if name in header[:i]:
            raise TableError(f"{path}: two columns are called {name!r}")


def _read_json(path: pathlib.Path, text: str) -> RawTable:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise TableError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from None
    if isinstance(content, dict):
        for name, entries in content.items():
            if not isinstance(entries, list):
                raise TableError(
                    f"{path}: column {name!r} is not a list: give one entry per outcome"
                )
        lengths = {name: len(entries) for name, entries in content.items()}
        if len(set(lengths.values())) > 1:
            listing = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            raise TableError(f"{path}: the columns differ in length: {listing}")
        return RawTable(path, content, max(lengths.values(), default=0))
    if not isinstance(content, list):
        raise TableError(f"{path}: expected a list of records or an object of columns")
    return _from_records(path, content)


def _read_jsonl(path: pathlib.Path, text: str) -> RawTable:
    records, lines = [], []
    # Only \n ends a record: str.splitlines would also split at separators that JSON strings may
    # contain.
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                records.append(json.loads(content))
            except json.JSONDecodeError as error:
                raise TableError(
                    f"{path}: row {len(records) + 1} (line {line}): not JSON: {error.msg}"
                ) from None
            lines.append(line)
    return _from_records(path, records, lines)


def _from_records(
    path: pathlib.Path, records: list[Any], lines: list[int] | None = None
) -> RawTable:
    names: dict[str, None] = {}
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise TableError(f"{path}: {_place(row, lines)} is not a record of named entries")
        names.update(dict.fromkeys(record))
    columns = {name: [record.get(name) for record in records] for name in names}
    return RawTable(path, columns, len(records), lines)


def import_pyarrow(path: pathlib.Path) -> ModuleType:
    """Pyarrow with its Parquet module; without it, the error says how to get it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            f'{path}: reading Parquet needs pyarrow: pip install "kltarget[parquet]"'
        ) from None
    return pyarrow


def _read_parquet(path: pathlib.Path, data: bytes) -> RawTable:
    pyarrow = import_pyarrow(path)
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TableError(f"{path}: not a readable Parquet file: {reason}") from None
    _check_header(path, table.column_names)
    return RawTable(
        path, {name: table[name].to_pylist() for name in table.column_names}, table.num_rows
    )
