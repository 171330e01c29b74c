"""Rows of plain columns, many at a time; what is not plain is left to be read row by row.

JSON Lines are parsed by Polars where it is installed, Parquet files by pyarrow. A block that has
anything unusual in it is no block of columns but rows, so that what is wrong is said of the row.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import io
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from packaging.version import Version

from kltarget._core.file_kinds import Fault, Row, kind_of, readable
from kltarget._core.json_rows import json_lines
from kltarget._core.rows import open_parquet, readable_parquet, unique_names
from kltarget.rollouts._entries import MOST_WHOLE
from kltarget.rollouts._log_files import Reading, as_rollouts, rows_of
from kltarget.rollouts._rollout import ROUNDING
from kltarget.rollouts.formats._format import LISTED, Format

_BYTES, _ROWS, _ROWS_AT_ONCE = 1 << 20, 1 << 13, 1 << 10
_STRICT = Version("2.1")
_UNPACKED = (".jsonl", ".ndjson")
_NUMBERS = ("reward", "ref_logp", "logp", "num_tokens", "advantage")


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows of plain columns.

    Attributes:
        first: the first of them, by name.
        steady: the columns that have the same entry in all of them.
        texts: prompts and completions: the different ones, and which of them each row has.
        numbers: ``[N]`` each, NaN where there is none.
        step: ``[N]``, and which rows have none.
        group: as ``texts``, None if no group is named.
    """

    first: Row
    steady: frozenset[str]
    texts: Mapping[str, tuple[list[str], np.ndarray]]
    numbers: Mapping[str, np.ndarray]
    step: tuple[np.ndarray, np.ndarray]
    group: tuple[list[Any], np.ndarray] | None

    def __len__(self) -> int:
        return len(self.step[0])


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Rows of a file that follow each other.

    Attributes:
        place: how many rows are before them.
        block: the rows, if they are plain.
        where: from the place of a row to what messages call it, if they are plain.
        rows: the rows one by one, as ``rows_of`` has them.
    """

    place: int
    block: Block | None
    where: Callable[[int], str]
    rows: Callable[[], Iterator[tuple[int, str, Row]]]


def stretches_of(path: pathlib.Path, format: Format, reading: Reading) -> Iterator[Stretch]:
    """The rows of a file, as many at a time as can be read together."""
    kind, roles = kind_of(path), format.plain
    with as_rollouts(), readable(path):
        if roles is not None and kind == "parquet" and path.stat().st_size:
            yield from _parquet(path, roles, reading)
            return
        if roles is not None and path.suffix in _UNPACKED and _parser():
            yield from _json_lines(path, roles, reading)
            return
    yield Stretch(0, None, str, lambda: rows_of(path, reading))


@functools.cache
def _parser() -> bool:
    """Whether Polars and pyarrow are here: earlier ones leave out what is of another type."""
    if not all(map(importlib.util.find_spec, ("polars", "pyarrow"))):
        return False
    return Version(importlib.metadata.version("polars")) >= _STRICT


def _parquet(path: pathlib.Path, roles: Mapping[str, str], reading: Reading) -> Iterator[Stretch]:
    import pyarrow as pa

    place, size = 0, path.stat().st_size
    with open_parquet(path) as file:
        names = unique_names(path, file.schema_arrow.names)
        for batch in file.iter_batches(_ROWS):

            def rows(batch: Any = batch, place: int = place) -> Iterator[tuple[int, str, Row]]:
                with as_rollouts(), readable_parquet(path):
                    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                        some = batch.slice(start, _ROWS_AT_ONCE)
                        columns = [column.to_pylist() for column in some.columns]
                        for i, entries in enumerate(zip(*columns, strict=True), place + start):
                            yield i, f"row {i + 1}", dict(zip(names, entries, strict=True))

            block = _block_of(pa.Table.from_batches([batch]), roles)
            yield Stretch(place, block, lambda i: f"row {i + 1}", rows)
            place += batch.num_rows
            reading.advance(size * batch.num_rows // file.metadata.num_rows)


def _json_lines(
    path: pathlib.Path, roles: Mapping[str, str], reading: Reading
) -> Iterator[Stretch]:
    line = place = told = 0
    with path.open("rb") as stream:
        for content in _whole_lines(stream):
            count = content.count(b"\n") + (not content.endswith(b"\n"))
            table = _parsed(content, roles, count)
            block, number = None if table is None else _block_of(table, roles), count
            encoding = "utf-8" if line else "utf-8-sig"

            def lines(content: bytes = content, encoding: str = encoding) -> io.TextIOWrapper:
                return io.TextIOWrapper(io.BytesIO(content), encoding, "surrogateescape", "\n")

            def rows(
                lines: Any = lines, place: int = place, line: int = line
            ) -> Iterator[tuple[int, str, Row]]:
                for number, at, row in json_lines(lines(), place, line):
                    if isinstance(row, Fault):
                        reading.bad(path, f"line {at}", row.phrase)
                    else:
                        yield number - 1, f"line {at}", row

            if block is None:
                number = sum(not text.isspace() for text in lines())
            ahead = line - place + 1
            yield Stretch(place, block, lambda i, ahead=ahead: f"line {i + ahead}", rows)
            line, place = line + count, place + number
            reading.advance(stream.tell() - told)
            told = stream.tell()


def _whole_lines(stream: Any) -> Iterator[bytes]:
    """The bytes of a file in pieces that end where lines do."""
    rest = b""
    while piece := stream.read(_BYTES):
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield rest + piece[:cut]
            rest = piece[cut:]
        else:
            rest += piece
    if rest:
        yield rest


def _parsed(content: bytes, roles: Mapping[str, str], count: int) -> Any:
    """A table of JSON Lines, None where it might not say what Python's parser says."""
    import polars as pl

    # A name may be spelled with escapes.
    if re.search(rb"\\u00[4-7]", content):
        return None
    # Of an entry that is given twice the last counts; texts that are the name of a column look
    # like one that is.
    for role, name in roles.items():
        spelled = b'"%s"' % name.encode()
        if content.count(spelled) > count:
            return None
        # Numbers and lists among texts would become texts.
        if role in _TEXTS and re.search(re.escape(spelled) + rb'\s*:\s*[^"\s]', content):
            return None
    try:
        frame = pl.read_ndjson(content)
    except (pl.exceptions.PolarsError, OSError):
        return None
    # As many names as rows may be two in one and none in another.
    for name in set(roles.values()) & set(frame.columns):
        twice = re.escape(b'"%s"' % name.encode())
        twice += rb"[^\n]*" + twice
        if frame[name].null_count() and re.search(twice, content):
            return None
    return frame if frame.height == count else None


_TEXTS = ("prompt", "completion")


def _block_of(table: Any, roles: Mapping[str, str]) -> Block | None:
    """The table as a block, None if it has anything but texts, numbers and names in its columns."""
    import pyarrow as pa

    try:
        return _plain(table if isinstance(table, pa.Table) else table.to_arrow(), roles)
    except (pa.ArrowException, UnicodeDecodeError):
        return None


def _plain(table: Any, roles: Mapping[str, str]) -> Block | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    present, types = set(table.column_names), pa.types
    if not len(table) or not {roles[role] for role in _TEXTS} <= present:
        return None
    if any(types.is_nested(table[name].type) for name in present & LISTED):
        return None
    # What ``kltarget score`` writes counts beside columns of other names.
    if any(name in present and roles[name] != name for name in ("logp", "ref_logp")):
        return None
    texts, numbers = {}, {}
    for role in _TEXTS:
        column = table[roles[role]]
        if not _is_text(column) or column.null_count:
            return None
        texts[role] = _encoded(column)
        # Polars makes this of half of a surrogate pair, which is no text.
        if any("\0" in text for text in texts[role][0]):
            return None
    if any(text.startswith("[") for text in texts["completion"][0]):
        return None
    for role in _NUMBERS:
        column = table[roles[role]] if roles[role] in present else pa.nulls(len(table))
        if not (types.is_null(column.type) or _is_number(column)):
            return None
        numbers[role] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    above = [(numbers[name] > ROUNDING).any() for name in ("logp", "ref_logp")]
    if any(above) or (numbers["reward"] == np.inf).any():
        return None
    step = table[roles["step"]] if roles["step"] in present else pa.nulls(len(table))
    if not (types.is_null(step.type) or types.is_integer(step.type)):
        return None
    unknown = step.is_null().to_numpy(zero_copy_only=False)
    step = pc.fill_null(step.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    if (np.abs(step) > MOST_WHOLE).any():
        return None
    group = table[roles["group_id"]] if roles["group_id"] in present else pa.nulls(len(table))
    named = not types.is_null(group.type)
    if named and (group.null_count or not (types.is_integer(group.type) or _is_text(group))):
        return None
    groups = _encoded(group) if named else None
    if groups is not None and "" in groups[0]:
        return None
    (first,) = table.slice(0, 1).to_pylist()
    steady = frozenset(
        name for name in present - set(roles.values()) if _is_steady(table[name], first[name])
    )
    return Block(first, steady, texts, numbers, (step, unknown), groups)


def _is_text(column: Any) -> bool:
    import pyarrow.types as types

    return types.is_string(column.type) or types.is_large_string(column.type)


def _is_number(column: Any) -> bool:
    import pyarrow.types as types

    return types.is_floating(column.type) or types.is_integer(column.type)


def _is_steady(column: Any, first: Any) -> bool:
    import pyarrow.types as types

    if first is None or column.null_count or types.is_nested(column.type):
        return column.null_count == len(column)
    return len(column.unique()) == 1


def _encoded(column: Any) -> tuple[list[Any], np.ndarray]:
    """The different entries in the order in which they appear, and which of them each is."""
    whole = column.combine_chunks().dictionary_encode()
    if hasattr(whole, "chunks"):
        whole = whole.unify_dictionaries().combine_chunks()
    different = whole.dictionary.to_numpy(zero_copy_only=False).tolist()
    return different, whole.indices.to_numpy(zero_copy_only=False)
