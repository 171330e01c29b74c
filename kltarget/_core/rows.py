"""Files of rows, one reader per format: where each row is, and what is wrong with broken ones."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import math
import pathlib
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]

_KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_PACKED = ".gz"
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_BATCH = 1024


class FileError(ValueError):
    """What is wrong with a whole file; the message is one line that begins with its name."""


class Fault(NamedTuple):
    """What is wrong with a row.

    Attributes:
        phrase: as it follows the row's place and a colon.
        predicate: as it follows the place alone.
        of_line: whether the line is no whole row, so that it cannot be counted.
    """

    phrase: str
    predicate: str = ""
    of_line: bool = False

    def at(self, number: int, line: int | None) -> str:
        """The fault as a sentence about its place."""
        where = f"line {line}" if self.of_line else place(number, line)
        return f"{where} {self.predicate}" if self.predicate else f"{where}: {self.phrase}"


NOT_A_RECORD = Fault("not a record of named entries", "is not a record of named entries")


def kind_of(path: pathlib.Path) -> str | None:
    """What the extension says a file is: csv, tsv, json, jsonl, parquet, arrow; None if none.

    A text file may be packed by gzip, which ``.gz`` after its extension says.
    """
    packed = path.suffix.lower() == _PACKED
    kind = _KINDS.get((path.with_suffix("") if packed else path).suffix.lower())
    return None if packed and kind in ("parquet", "arrow") else kind


def simple_name(column: str) -> str:
    """A column's name as names are compared: in lower case, spaces and hyphens as underscores."""
    return re.sub(r"[\s-]+", "_", str(column).strip().lower())


def place(number: int, line: int | None) -> str:
    """Where a row is, in words."""
    return f"row {number}" if line is None else f"row {number} (line {line})"


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
            elif self.kind == "json" and not _is_lines(self.path):
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
        with _opened(self.path, newline) as (text, bytes_read):
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
                fault = _encoding_fault(line)
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
        fault = _encoding_fault(text)
        if fault is not None:
            yield number, at, fault
            continue
        try:
            row = json.loads(text.strip())
        except (json.JSONDecodeError, RecursionError) as error:
            row = Fault(_not_json(error))
        yield number, at, row if isinstance(row, dict | Fault) else NOT_A_RECORD


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
    return not _is_lines(path) and json_table(path).tracked


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


def _is_lines(path: pathlib.Path) -> bool:
    """Whether a file that is called JSON has a whole record on each of several lines."""
    if kind_of(path) != "json":
        return False
    with _opened(path, "\n") as (text, _):
        lines = (line for line in text if not line.isspace())
        for _ in range(2):
            try:
                if not isinstance(json.loads(next(lines, "")), dict):
                    return False
            except (json.JSONDecodeError, RecursionError):
                return False
    return True


@contextlib.contextmanager
def _opened(path: pathlib.Path, newline: str) -> Iterator[tuple[Iterator[str], Callable[[], int]]]:
    """The lines of a text file, unpacked if it is packed, and how many of its bytes were read.

    What is no UTF-8 becomes surrogates.
    """
    packed = path.suffix.lower() == _PACKED
    with path.open("rb") as file:
        stream: Any = gzip.GzipFile(fileobj=file) if packed else file
        with io.TextIOWrapper(
            stream, encoding="utf-8-sig", errors="surrogateescape", newline=newline
        ) as text:
            try:
                yield text, file.tell
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise FileError(f"{path}: not a readable gzip file: {error}") from None


def load_json(path: pathlib.Path) -> Any:
    """What a JSON file holds."""
    with readable(path), _opened(path, "") as (text, _):
        content = "".join(text)
    if not content.strip():
        raise FileError(f"{path}: the file is empty")
    for line, text in enumerate(content.split("\n"), start=1):
        fault = _encoding_fault(text)
        if fault is not None:
            raise FileError(f"{path}: {fault.at(line, line)}")
    try:
        return json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise FileError(f"{path}: line {line}: {_not_json(error)}") from None


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
    """Turns what the operating system says into a ``FileError``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise FileError(f"{path}: cannot be read: {reason}") from None


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


def _encoding_fault(text: str) -> Fault | None:
    """What is wrong with a text that was decoded with ``surrogateescape``, if anything is."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        phrase = f"not UTF-8 text (byte 0x{byte:02x}): save the file as UTF-8"
        return Fault(phrase, f"is {phrase}", of_line=True)
    return None


def _not_json(error: json.JSONDecodeError | RecursionError) -> str:
    return f"not JSON: {getattr(error, 'msg', 'nested too deeply')}"


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
