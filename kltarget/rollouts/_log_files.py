"""Files as rows of named entries, one after the other, and what becomes of broken ones."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from kltarget._core.file_kinds import Fault, FileError, Row, kind_of, readable
from kltarget._core.json_rows import is_tracked, json_table
from kltarget._core.rows import RowFile, columns_in
from kltarget.rollouts._rollout import RolloutError
from kltarget.rollouts._sample_archives import is_archive, samples_in


def _nowhere(_: int) -> None:
    """Moves no progress bar."""


@dataclasses.dataclass
class Reading:
    """What is kept from file to file.

    Attributes:
        skip_bad: whether bad rows are skipped.
        advance: moves the progress bar by so many bytes.
        skipped: the number of rows skipped.
        first: what was wrong with the first of them.
        broken: what was wrong with files that could not be read, or not to their end.
        repeated: the number of rows left out because they were logged twice.
        seen: hashes of the steps of tables as they were read.
        unused: how many rows were left out for each reason, and the first of them.
        variants: columns of variants, the one that was read and how many rows of others.
        metrics: which metrics of evaluations were read, in words.
        models: the models that evaluations are of, and the first file of each; None where a file
            does not say.
    """

    skip_bad: bool = False
    advance: Callable[[int], Any] = _nowhere
    skipped: int = 0
    first: str = ""
    broken: list[str] = dataclasses.field(default_factory=list)
    repeated: int = 0
    seen: set[int] = dataclasses.field(default_factory=set)
    unused: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    variants: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    metrics: dict[str, None] = dataclasses.field(default_factory=dict)
    models: dict[str | None, pathlib.Path] = dataclasses.field(default_factory=dict)

    def bad(self, path: pathlib.Path, where: str, problem: str) -> None:
        """Raises what is wrong with a row, or counts it."""
        message = f"{path}: {where}: {problem}"
        if not self.skip_bad:
            raise RolloutError(message)
        self.skipped += 1
        self.first = self.first or message

    def leave_out(self, path: pathlib.Path, where: str, why: str) -> None:
        """Counts a row that is no rollout."""
        count, first = self.unused.get(why, (0, f"{path}: {where}"))
        self.unused[why] = count + 1, first

    def extend(self, other: Reading) -> None:
        """Adds what was kept of the files that come next."""
        self.skipped += other.skipped
        self.first = self.first or other.first
        self.broken += other.broken
        self.repeated += other.repeated
        self.seen |= other.seen
        for why, (count, first) in other.unused.items():
            known, earlier = self.unused.get(why, (0, first))
            self.unused[why] = known + count, earlier
        self.variants.update(other.variants)
        self.metrics |= other.metrics
        for model, path in other.models.items():
            self.models.setdefault(model, path)


def columns_of(path: pathlib.Path, reading: Reading) -> list[str]:
    """The columns of a file, or the names in its first row; none if it is empty."""
    with as_rollouts(), readable(path):
        if not path.stat().st_size:
            return []
        if kind_of(path) in ("parquet", "arrow"):
            return columns_in(path)
    # What is skipped here is skipped, and counted, once more when the file is read.
    scout = dataclasses.replace(reading, advance=_nowhere, seen=set())
    return next((list(row) for _, _, row in rows_of(path, scout)), [])


def log_kind(path: pathlib.Path) -> str | None:
    """As ``kind_of``, with archives of samples, which no table is."""
    return "eval" if is_archive(path) else kind_of(path)


def layout_of(path: pathlib.Path) -> str | None:
    """As ``kind_of``; records in a JSON file are as good as those of JSON Lines."""
    kind = log_kind(path)
    if kind != "json":
        return kind
    with as_rollouts(), readable(path):
        return "json" if is_tracked(path) else "jsonl"


def rows_of(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, str, Row]]:
    """The rows of a file that are not broken.

    Yields:
        The row's place among all rows, broken ones too, from 0; where it is as messages say it; its
        entries by name.
    """
    with as_rollouts():
        if is_archive(path):
            for position, (where, row) in enumerate(samples_in(path, reading.advance)):
                if isinstance(row, Fault):
                    reading.bad(path, where, row.phrase)
                else:
                    yield position, where, row
            return
        if kind_of(path) == "json" and is_tracked(path):
            yield from _steps_of_a_table(path, reading)
            return
        for number, line, row in RowFile(path, guess_delimiter=True, advance=reading.advance):
            where = f"row {number}" if line is None else f"line {line}"
            if isinstance(row, Fault):
                reading.bad(path, where, row.phrase)
            else:
                yield number - 1, where, row


@contextlib.contextmanager
def as_rollouts() -> Iterator[None]:
    try:
        yield
    except FileError as error:
        raise RolloutError(*error.args) from None


def _steps_of_a_table(path: pathlib.Path, reading: Reading) -> Iterator[tuple[int, str, Row]]:
    rows, position = json_table(path).rows, 0
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
            if isinstance(row, Fault):
                reading.bad(path, f"row {i + 1}", row.phrase)
            else:
                yield i, f"row {i + 1}", row
        position += len(block)
    reading.advance(path.stat().st_size)


def _step(row: Row | Fault) -> Any:
    return None if isinstance(row, Fault) else row.get("step")


def _is_twice(block: list[Row | Fault]) -> bool:
    """Whether a block is the same rows twice; NaN is no equal of itself, but its JSON is."""
    half, odd = divmod(len(block), 2)
    return not odd and json.dumps(block[:half]) == json.dumps(block[half:])
