"""The log once more, with a column of scores."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kltarget._core.checks import ArgumentError
from kltarget._core.file_kinds import Row, kind_of
from kltarget._core.files import open_whole, replacing
from kltarget.rollouts._log_files import Reading, rows_of

KINDS = (".parquet", ".jsonl")
_BATCH = 1024


def rows_of_all(
    files: Iterable[pathlib.Path], reading: Reading | None = None
) -> Iterator[tuple[pathlib.Path, str, Row]]:
    """The rows of all files that are not broken, the same ones whenever they are read."""
    reading = Reading(skip_bad=True) if reading is None else reading
    for path in files:
        for _, where, row in rows_of(path, reading):
            yield path, where, row


def write_scored(
    files: Sequence[pathlib.Path] | Mapping[pathlib.Path, Any],
    steps: Mapping[pathlib.Path, int | None],
    scores: Sequence[float | None],
    column: str,
    out: pathlib.Path,
) -> None:
    """Writes all rows of all files in their order, whole or not at all.

    A step that the path of a file names becomes a column, as all rows are in one file now.
    """
    if out.suffix == ".jsonl":
        with open_whole(out) as file:
            for row in _scored(files, steps, scores, column):
                file.write(json.dumps(_plain(row), ensure_ascii=False, default=str) + "\n")
        return
    import pyarrow
    import pyarrow.parquet

    with replacing(out) as part:
        if all(kind_of(path) == "parquet" for path in files):
            _copy(files, steps, scores, column, part)
        else:
            rows = list(_scored(files, steps, scores, column))
            names = dict.fromkeys(name for row in rows for name in row)
            table = {name: [row.get(name) for row in rows] for name in names}
            try:
                made = pyarrow.table(table)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
                raise ArgumentError(
                    f"{{}}: a column has entries of several kinds, which Parquet cannot hold: "
                    f"write a .jsonl file ({error})",
                    "out",
                    str(out),
                ) from None
            pyarrow.parquet.write_table(made, part)


def _scored(
    files: Any, steps: Mapping[pathlib.Path, int | None], scores: Sequence[Any], column: str
) -> Iterator[Row]:
    for number, (path, _, row) in enumerate(rows_of_all(files)):
        if steps[path] is not None and "step" not in row:
            row = {"step": steps[path], **row}
        yield {**row, column: scores[number]}


def _copy(
    files: Any,
    steps: Mapping[pathlib.Path, int | None],
    scores: Sequence[Any],
    column: str,
    part: pathlib.Path,
) -> None:
    """Parquet to Parquet, batch by batch, with the types as they are."""
    import pyarrow
    from pyarrow import parquet

    schemas = [parquet.read_schema(path).remove_metadata() for path in files]
    schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
    if column in schema.names:
        schema = schema.remove(schema.get_field_index(column))
    stepped = "step" not in schema.names and all(steps[path] is not None for path in files)
    if stepped:
        schema = schema.append(pyarrow.field("step", pyarrow.int64()))
    whole = schema.append(pyarrow.field(column, pyarrow.float64()))
    number = 0
    with parquet.ParquetWriter(part, whole) as writer:
        for path in files:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH):
                    size, made = batch.num_rows, []
                    for field in schema:
                        if stepped and field.name == "step":
                            made.append(pyarrow.array([steps[path]] * size, field.type))
                        elif field.name in batch.schema.names:
                            made.append(batch.column(field.name).cast(field.type))
                        else:
                            made.append(pyarrow.nulls(size, field.type))
                    made.append(pyarrow.array(scores[number : number + size], pyarrow.float64()))
                    writer.write_batch(pyarrow.record_batch(made, schema=whole))
                    number += size


def _plain(entry: Any) -> Any:
    """What JSON can spell: a missing number is null."""
    if isinstance(entry, float):
        return None if math.isnan(entry) else entry
    if isinstance(entry, dict):
        return {name: _plain(x) for name, x in entry.items()}
    if isinstance(entry, list | tuple):
        return [_plain(x) for x in entry]
    return entry
