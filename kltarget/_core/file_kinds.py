"""Files of any kind: what the name says, how texts are opened, what can be wrong with a row."""

from __future__ import annotations

import contextlib
import gzip
import io
import pathlib
import zlib
from collections.abc import Callable, Iterator
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


def place(number: int, line: int | None) -> str:
    """Where a row is, in words."""
    return f"row {number}" if line is None else f"row {number} (line {line})"


@contextlib.contextmanager
def readable(path: pathlib.Path) -> Iterator[None]:
    """Turns what the operating system says into a ``FileError``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise FileError(f"{path}: cannot be read: {reason}") from None


@contextlib.contextmanager
def opened(path: pathlib.Path, newline: str) -> Iterator[tuple[Iterator[str], Callable[[], int]]]:
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


def encoding_fault(text: str) -> Fault | None:
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
