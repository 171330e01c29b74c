"""Files of numbers that were logged once a step, one reader per kind of file."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from kltarget._core.column_names import CHAT_NAMES, COMPLETION_NAMES, PROMPT_NAMES, first_called
from kltarget._core.file_kinds import Fault, FileError, kind_of, readable
from kltarget._core.rows import RowFile, columns_in
from kltarget.rollouts._rollout import RolloutError
from kltarget.rollouts._scalar_names import STEP_NAMES, found_among

STATE = "trainer_state.json"
_EVENTS = "events.out.tfevents."
_RUN = "run_name"
_BOUNDS = ("__MIN", "__MAX")
# What a row of rollouts has one of, or the tokens of both where texts are not kept.
_TEXTS = (*PROMPT_NAMES, *COMPLETION_NAMES, *CHAT_NAMES, "token_ids")


class Logged(NamedTuple):
    """What was logged at one time: the run's name, "" where files have one run, and its numbers."""

    run: str
    entries: Mapping[str, Any]


class ScalarFile(NamedTuple):
    """A file of scalars: what wrote it, and a function that reads it."""

    format: str
    read: Callable[[pathlib.Path], Iterator[Logged]]


def scalar_file(path: pathlib.Path, given: Mapping[str, str]) -> ScalarFile | None:
    """What a file of scalars is, by its name and its first entries; None if it is none."""
    if path.name == STATE:
        return ScalarFile("trainer-state", _trainer_state)
    if path.name.startswith(_EVENTS):
        return ScalarFile("tensorboard", _events)
    if path.suffix == ".db":
        return ScalarFile("trackio", _database)
    if kind_of(path) is None:
        return None
    columns = _columns(path)
    if first_called(columns, _TEXTS) is not None:
        return None
    if "log_history" in columns:
        # A trainer's state under another name.
        return ScalarFile("trainer-state", _trainer_state)
    if {"step", "data"} == set(columns):
        return ScalarFile("verl", _nested)
    if _RUN in columns and "metrics" in columns:
        return ScalarFile("trackio", _packed)
    numbers = [name for _, name in map(split_run, columns)]
    if not any(name in numbers for name in STEP_NAMES) or not found_among(numbers, given):
        return None
    return ScalarFile("table", _table)


def split_run(column: str) -> tuple[str, str]:
    """The run and the metric of a column of Weights & Biases, ``run - metric``; "" without run."""
    run, dash, name = column.rpartition(" - ")
    return (run, name) if dash else ("", column)


def _columns(path: pathlib.Path) -> list[str]:
    with contextlib.suppress(FileError, OSError), readable(path):
        if kind_of(path) in ("parquet", "arrow"):
            return columns_in(path)
        for _, _, row in RowFile(path):
            if not isinstance(row, Fault):
                return list(row)
    return []


def _trainer_state(path: pathlib.Path) -> Iterator[Logged]:
    try:
        history = json.loads(path.read_text("utf-8"))["log_history"]
        assert isinstance(history, list)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise RolloutError(f"{path}: not a trainer's state: it has no list log_history") from None
    for record in history:
        if isinstance(record, dict):
            yield Logged("", record)


def _events(path: pathlib.Path) -> Iterator[Logged]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise RolloutError(
            f"{path}: reading TensorBoard's files takes tensorboard: "
            'pip install "kltarget[tensorboard]"'
        ) from None
    # All scalars, none of anything else.
    events = EventAccumulator(str(path), {"scalars": 0, "tensors": 0, "histograms": 1, "images": 1})
    events.Reload()
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            yield Logged(path.parent.name, {"step": event.step, tag: event.value})
    for tag in events.Tags()["tensors"]:
        for event in events.Tensors(tag):
            if not event.tensor_proto.tensor_shape.dim:
                values = event.tensor_proto.float_val or event.tensor_proto.double_val
                if values:
                    yield Logged(path.parent.name, {"step": event.step, tag: values[0]})


def _database(path: pathlib.Path) -> Iterator[Logged]:
    """Trackio's, which is opened to be read alone."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        ) as database:
            rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id")
            for run, step, metrics in rows:
                yield Logged(str(run), {**_object(metrics), "step": step})
    except sqlite3.Error as error:
        raise RolloutError(f"{path}: not a database of Trackio's: {error}") from None


def _nested(path: pathlib.Path) -> Iterator[Logged]:
    for row in _rows(path):
        if isinstance(row.get("data"), Mapping):
            yield Logged("", {**row["data"], "step": row.get("step")})


def _packed(path: pathlib.Path) -> Iterator[Logged]:
    for row in _rows(path):
        yield Logged(str(row.get(_RUN, "")), {**_object(row["metrics"]), "step": row.get("step")})


def _table(path: pathlib.Path) -> Iterator[Logged]:
    for row in _rows(path):
        step = {name: row[name] for name in STEP_NAMES if name in row}
        runs: dict[str, dict[str, Any]] = {}
        for column, entry in row.items():
            run, name = split_run(column)
            if column not in step and not name.endswith(_BOUNDS):
                runs.setdefault(run or str(row.get(_RUN, "")), {})[name] = entry
        for run, entries in runs.items():
            yield Logged(run, {**entries, **step})


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    try:
        with readable(path):
            for number, line, row in RowFile(path, guess_delimiter=True):
                if isinstance(row, Fault):
                    # A run that is going on has written half of its last line.
                    if row.of_line or line is not None:
                        continue
                    raise RolloutError(f"{path}: {row.at(number, line)}")
                yield row
    except FileError as error:
        raise RolloutError(*error.args) from None


def _object(entry: Any) -> Mapping[str, Any]:
    """Numbers by name, from JSON perhaps."""
    if isinstance(entry, str | bytes):
        with contextlib.suppress(ValueError):
            entry = json.loads(entry)
    return entry if isinstance(entry, Mapping) else {}
