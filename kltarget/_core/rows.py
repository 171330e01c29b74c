"""Files of rows, one reader per format: where each row is, and what is wrong with broken ones."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kltarget._core.file_kinds import (
    Fault,
    FileError,
    Row,
    encoding_fault,
    kind_of,
    opened,
    readable,
)
from kltarget._core.json_rows import is_lines, json_lines, json_table

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_BATCH = 1024


def simple_name(column: str) -> str:
    """A column's name as names are compared: in lower case, spaces and hyphens as underscores."""
    return re.sub(r"[\s-]+", "_", str(column).strip().lower())


class RowFile:
    """A file of rows that is read, row by row, while it is iterated over.

    Iterating yields triples: the row's number from 1, broken ones counted; the number of its line,
    None where there are none; its entries by name, or a ``Fault``. Rows of blank entries are none.

    Args:
        path: a file of any kind.
        guess_delimiter: whether semicolons, say, are looked for where the header has no comma.
        advance: called with so many bytes as were read.

    Attributes:
        columns: those of a header or a schema, once iteration has begun.
        delimiter: what separates entries, if it had to be guessed.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        guess_delimiter: bool = False,
        advance: Callable[[int], Any] = lambda _: None,
    ) -> None:
        self.path, self.kind, self.advance = path, kind_of(path), advance
        self.guess_delimiter, self.delimiter = guess_delimiter, None
        self.columns: list[str] = []

    def __iter__(self) -> Iterator[tuple[int, int | None, Row | Fault]]:
        with readable(self.path):
            if self.kind == "parquet":
                yield from self._parquet()
            elif self.kind == "arrow":
                yield from self._arrow()
            elif self.kind == "json" and not is_lines(self.path):
                yield from self._json()
            elif self.kind in ("json", "jsonl"):
                yield from self._jsonl()
            else:
                with _long_entries():
                    yield from self._csv(_DELIMITERS[str(self.kind)])

    def _parquet(self) -> Iterator[tuple[int, None, Row]]:
        size, number = self.path.stat().st_size, 0
        if not size:
            return
        with open_parquet(self.path) as file:
            self.columns = names = unique_names(self.path, file.schema_arrow.names)
            for batch in file.iter_batches(_BATCH):
                columns = [column.to_pylist() for column in batch.columns]
                for entries in zip(*columns, strict=True):
                    number += 1
                    yield number, None, dict(zip(names, entries, strict=True))
                self.advance(size * batch.num_rows // file.metadata.num_rows)

    def _arrow(self) -> Iterator[tuple[int, None, Row]]:
        number = 0
        with _open_arrow(self.path) as reader:
            self.columns = names = unique_names(self.path, reader.schema.names)
            for batch in _batches(reader):
                columns = [column.to_pylist() for column in batch.columns]
                for entries in zip(*columns, strict=True):
                    number += 1
                    yield number, None, dict(zip(names, entries, strict=True))
        self.advance(self.path.stat().st_size)

    def _json(self) -> Iterator[tuple[int, None, Row | Fault]]:
        table = json_table(self.path)
        self.columns = list(table.columns)
        for number, row in enumerate(table.rows, start=1):
            yield number, None, row
        self.advance(self.path.stat().st_size)

    def _lines(self, newline: str) -> Iterator[str]:
        with opened(self.path, newline) as (text, bytes_read):
            told = 0
            for line in text:
                yield line
                read = bytes_read()
                if read > told:
                    self.advance(read - told)
                    told = read

    def _jsonl(self) -> Iterator[tuple[int, int, Row | Fault]]:
        yield from json_lines(self._lines("\n"))

    def _csv(self, delimiter: str) -> Iterator[tuple[int, int, Row | Fault]]:
        undecoded: dict[int, Fault] = {}

        def lines() -> Iterator[str]:
            for number, line in enumerate(self._lines(""), start=1):
                fault = encoding_fault(line)
                if fault is not None:
                    undecoded[number] = fault
                yield line

        text, head = lines(), []
        if self.guess_delimiter:
            for line in text:
                head.append(line)
                if line.strip():
                    break
            if head:
                found = _delimiter_of(head[-1], delimiter)
                self.delimiter = None if found == delimiter else found
                delimiter = found
        reader = csv.reader(itertools.chain(head, text), delimiter=delimiter, strict=True)
        number, end = 0, 0
        while True:
            # A quoted entry may span lines; the reader reports the last of them.
            start = end + 1
            try:
                entries = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                number, end = number + 1, reader.line_num
                yield number, start, Fault(str(error), of_line=True)
                continue
            end = reader.line_num
            broken = min(undecoded.keys() & range(start, end + 1), default=None)
            if not any(map(str.strip, entries)):
                continue
            if not self.columns:
                if broken is not None:
                    raise FileError(f"{self.path}: line {broken}: {undecoded[broken].phrase}")
                self.columns = unique_names(self.path, [entry.strip() for entry in entries])
                continue
            number += 1
            if broken is not None:
                yield number, broken, undecoded[broken]
            elif len(entries) != len(self.columns):
                found, wanted = f"{len(entries)} entries", f"the header has {len(self.columns)}"
                fault = Fault(f"{found}, but {wanted}", f"has {found}, {wanted}")
                yield number, start, fault
            else:
                yield number, start, dict(zip(self.columns, entries, strict=True))


def _delimiter_of(header: str, usual: str) -> str:
    """What parts most names of a header; where none does better, the usual one."""
    bare = re.sub(r'"[^"]*"', "", header)
    known = [usual, *(d for d in (";", "\t", ",") if d != usual), "|"]
    counts = [bare.count(d) for d in known]
    # A bar is rare as a delimiter, but not in names.
    counts[-1] = 0 if any(counts[:-1]) else counts[-1]
    return known[counts.index(max(counts))]


def columns_in(path: pathlib.Path) -> list[str]:
    """The columns of a Parquet or Arrow file, which are in its schema."""
    with readable(path):
        if kind_of(path) == "parquet":
            with open_parquet(path) as file:
                return unique_names(path, file.schema_arrow.names)
        with _open_arrow(path) as reader:
            return unique_names(path, reader.schema.names)


@contextlib.contextmanager
def open_parquet(path: pathlib.Path) -> Iterator[Any]:
    """A Parquet file as pyarrow has it, whose errors become a ``FileError``."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            f'{path}: reading Parquet needs pyarrow: pip install "kltarget[parquet]"'
        ) from None
    with readable_parquet(path), pyarrow.parquet.ParquetFile(path) as file:
        yield file


@contextlib.contextmanager
def readable_parquet(path: pathlib.Path) -> Iterator[None]:
    """Turns what pyarrow says of a Parquet file into a ``FileError``."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FileError(f"{path}: not a readable Parquet file: {reason}") from None


@contextlib.contextmanager
def _open_arrow(path: pathlib.Path) -> Iterator[Any]:
    """A reader of record batches, of a file (Feather) or of a stream (datasets)."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise ImportError(
            f'{path}: reading Arrow needs pyarrow: pip install "kltarget[parquet]"'
        ) from None
    try:
        with pyarrow.OSFile(str(path)) as source:
            try:
                reader = pyarrow.ipc.open_file(source)
            except pyarrow.ArrowInvalid:
                source.seek(0)
                reader = pyarrow.ipc.open_stream(source)
            yield reader
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise FileError(f"{path}: not a readable Arrow file: {reason}") from None


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)


@contextlib.contextmanager
def _long_entries() -> Iterator[None]:
    """Lists of tokens are longer than the csv module expects an entry to be."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def unique_names(path: pathlib.Path, columns: Sequence[str]) -> list[str]:
    for i, name in enumerate(columns):
        if name in columns[:i]:
            raise FileError(f"{path}: two columns are called {name!r}")
    return list(columns)


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


def shown(entry: Any) -> str:
    """An entry as messages quote it, cut off if it is long."""
    text = repr(entry)
    return text if len(text) <= 40 else text[:39] + "…"
