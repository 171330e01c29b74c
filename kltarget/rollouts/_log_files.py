"""Files as rows of named entries, one after the other, and what becomes of broken ones."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from kltarget.rollouts._rollout import RolloutError
from kltarget.tasks._raw_table import EXTENSIONS, import_pyarrow

Row = dict[str, Any]

_BATCH = 16384


@dataclasses.dataclass
class Reading:
    """What is kept from file to file.

    Attributes:
        skip_bad: Whether bad rows are skipped.
        advance: Moves the progress bar by so many bytes.
        skipped: The number of rows skipped.
        first: What was wrong with the first of them.
        broken: What was wrong with files that could not be read, or not to their end.
        repeated: The number of rows left out because they were logged twice.
        seen: Hashes of the steps of tables as they were read.
    """

    skip_bad: bool = False
    advance: Callable[[int], Any] = lambda _: None
    skipped: int = 0
    first: str = ""
    broken: list[str] = dataclasses.field(default_factory=list)
    repeated: int = 0
    seen: set[int] = dataclasses.field(default_factory=set)

    def bad(self, path: pathlib.Path, number: int, problem: str) -> None:
        """Raises what is wrong with a row, or counts it."""
        message = f"{path}: {_unit(path)} {number}: {problem}"
        if not self.skip_bad:
            raise RolloutError(message)
        self.skipped += 1
        self.first = self.first or message


def kind_of(path: pathlib.Path) -> str | None:
    """What the extension says a file is: csv, tsv, json, jsonl, parquet; None if nothing known."""
    return EXTENSIONS.get(path.suffix.lower())


def columns_of(path: pathlib.Path, reading: Reading) -> list[str]:
    """The columns of a file, or the names in its first row; none if it is empty."""
    with _readable(path):
        if path.stat().st_size == 0:
            return []
        if kind_of(path) == "parquet":
            with _open_parquet(path) as file:
                return file.schema_arrow.names
        if kind_of(path) == "json":
            return (_load_table(path) or {"columns": []})["columns"]
    # What is skipped here is skipped, and counted, once more when the file is read.
    scout = dataclasses.replace(reading, advance=lambda _: None)
    return next((list(row) for _, _, row in rows_of(path, scout)), [])


def rows_of(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, int, Row]]:
    """The rows of a file.

    Yields:
        The row's place among all rows, broken ones too, from 0; the number of its row or line as
        messages say it, from 1; its entries by name.
    """
    kind = kind_of(path)
    with _readable(path):
        if kind == "parquet":
            yield from _parquet(path, reading)
        elif kind == "json":
            yield from _table(path, reading)
        elif kind == "jsonl":
            yield from _jsonl(path, reading)
        else:
            yield from _csv(path, reading, "," if kind == "csv" else "\t")


def _unit(path: pathlib.Path) -> str:
    return "row" if kind_of(path) in ("parquet", "json") else "line"


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise RolloutError(f"{path}: cannot be read: {reason}") from None


@contextlib.contextmanager
def _open_parquet(path: pathlib.Path) -> Iterator[Any]:
    pyarrow = import_pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RolloutError(f"{path}: not a readable Parquet file: {reason}") from None


def _parquet(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, int, Row]]:
    size = path.stat().st_size
    with _open_parquet(path) as file:
        names = file.schema_arrow.names
        position = 0
        for batch in file.iter_batches(_BATCH):
            columns = [column.to_pylist() for column in batch.columns]
            for entries in zip(*columns, strict=True):
                yield position, position + 1, dict(zip(names, entries, strict=True))
                position += 1
            reading.advance(size * batch.num_rows // file.metadata.num_rows)


def _lines(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        ahead = 0
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, line
            ahead += len(line)
            if ahead > 1 << 20:
                reading.advance(ahead)
                ahead = 0
        reading.advance(ahead)


def _not_utf8(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"not UTF-8 text (byte 0x{byte:02x}): save the file as UTF-8"


def _jsonl(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, int, Row]]:
    position = -1
    for number, line in _lines(path, reading):
        if line.isspace():
            continue
        position += 1
        try:
            row = json.loads(line.decode().strip())
        except UnicodeDecodeError as error:
            reading.bad(path, number, _not_utf8(error))
        except (json.JSONDecodeError, RecursionError) as error:
            reading.bad(path, number, f"not JSON: {getattr(error, 'msg', 'nested too deeply')}")
        else:
            if isinstance(row, dict):
                yield position, number, row
            else:
                reading.bad(path, number, "not a record of named entries")


def _csv(path: pathlib.Path, reading: Reading, delimiter: str) -> Iterator[tuple[int, int, Row]]:
    undecoded: dict[int, str] = {}

    def lines() -> Iterator[str]:
        for number, line in _lines(path, reading):
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                undecoded[number] = _not_utf8(error)
                yield line.decode(errors="replace")

    with _long_fields():
        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        position, last = -1, 0
        while True:
            # A quoted entry may span lines; the reader reports the last of them.
            start = last + 1
            try:
                entries = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                position, last = position + 1, reader.line_num
                reading.bad(path, start, str(error))
                continue
            last = reader.line_num
            if not entries:
                continue
            if header is None:
                header = _header(path, entries, undecoded)
                continue
            position += 1
            broken = min(undecoded.keys() & range(start, last + 1), default=None)
            if broken is not None:
                reading.bad(path, broken, undecoded[broken])
            elif len(entries) != len(header):
                problem = f"{len(entries)} entries, but the header has {len(header)}"
                reading.bad(path, start, problem)
            else:
                yield position, start, dict(zip(header, entries, strict=True))


def _header(path: pathlib.Path, entries: list[str], undecoded: dict[int, str]) -> list[str]:
    if undecoded:
        raise RolloutError(f"{path}: line 1: {undecoded[min(undecoded)]}")
    header = [entry.strip() for entry in entries]
    for i, name in enumerate(header):
        if name in header[:i]:
            raise RolloutError(f"{path}: two columns are called {name!r}")
    return header


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Lists of tokens are longer than the csv module expects a field to be."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _load_table(path: pathlib.Path) -> dict[str, Any] | None:
    """A table `{"columns": […], "data": [[…], …]}`; None if the file holds something else."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RolloutError(f"{path}: {_not_utf8(error)}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        reason = getattr(error, "msg", "nested too deeply")
        raise RolloutError(f"{path}: line {line}: not JSON: {reason}") from None
    fields = ("columns", "data")
    if isinstance(content, dict) and all(isinstance(content.get(x), list) for x in fields):
        return content
    return None


def _table(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, int, Row]]:
    table = _load_table(path) or {"columns": [], "data": []}
    names, position = table["columns"], 0
    rows = [
        dict(zip(names, entries, strict=False))
        if isinstance(entries, list) and len(entries) == len(names)
        else None
        for entries in table["data"]
    ]
    blocks = [list(block) for _, block in itertools.groupby(rows, _step)]
    for block in blocks:
        # TRL logs its last step once more when training ends, in this table or in the next.
        once = block[: len(block) // 2] if block is blocks[-1] and _is_twice(block) else block
        content = hash(json.dumps(once))
        if content in reading.seen:
            once = []
        reading.seen.add(content)
        reading.repeated += len(block) - len(once)
        for i, row in enumerate(once, start=position):
            if row is None:
                reading.bad(path, i + 1, f"not a list of {len(names)} entries")
            else:
                yield i, i + 1, row
        position += len(block)
    reading.advance(path.stat().st_size)


def _step(row: Row | None) -> Any:
    return (row or {}).get("step")


def _is_twice(block: list[Row | None]) -> bool:
    """Whether a block is the same rows twice; NaN is no equal of itself, but its JSON is."""
    half, odd = divmod(len(block), 2)
    return not odd and json.dumps(block[:half]) == json.dumps(block[half:])
