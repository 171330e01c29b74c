r"""Read a problem from a table: one row per outcome, with its reward and its reference probability.

CSV, TSV, JSON, JSON Lines and Parquet are read. Which column is which is guessed from the names
unless it is said; every guess is kept as a line of text in `Table.notes`.

Rows are counted from 1 and the header is not a row; where the two differ, messages give the line of
the file too.

Example:
    >>> import pathlib, tempfile
    >>> from kltarget import tables
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "answers.csv"
    >>> _ = path.write_text("answer,reward,count\nyes,1,30\nno,0,10\n")
    >>> table = tables.read_table(path)
    >>> table.labels, table.reward.tolist()
    (('yes', 'no'), [1.0, 0.0])
    >>> print(*table.notes, sep="\n")
    outcome column 'answer', reward column 'reward'
    reference from counts in column 'count' (total 40)
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from kltarget.tasks import Task, one_mode_each, right_outcomes

# Names that are recognised, in order of preference; compared in lower case with `-` and ` ` read as
# `_`.
OUTCOME_NAMES = (
    "outcome",
    "answer",
    "completion",
    "response",
    "output",
    "text",
    "word",
    "token",
    "label",
    "name",
)
REWARD_NAMES = ("reward", "rewards", "score", "r", "correct", "is_correct")
LOG_REF_NAMES = (
    "log_ref",
    "ref_logp",
    "ref_logprob",
    "ref_log_prob",
    "logp",
    "logprob",
    "log_prob",
    "log_probability",
)
PROB_NAMES = ("ref_prob", "ref_probability", "pi_ref", "probability", "prob", "p", "ref")
COUNT_NAMES = ("count", "counts", "n", "freq", "frequency")
MODE_NAMES = ("mode", "modes")

UNSEEN = "(unseen)"

# Masses that miss one by less than this are taken for rounding and not reported as missing.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class _Reference:
    names: tuple[str, ...]
    what: str
    low: float
    high: float
    wrong: str


_REFERENCES = {
    "log_ref": _Reference(
        LOG_REF_NAMES,
        "log-probabilities",
        -math.inf,
        0.0,
        "no log-probability: it must be 0 or less",
    ),
    "prob": _Reference(
        PROB_NAMES, "probabilities", 0.0, 1.0, "no probability: it must be between 0 and 1"
    ),
    "count": _Reference(
        COUNT_NAMES,
        "counts",
        0.0,
        sys.float_info.max,
        "no count: it must be finite and 0 or more",
    ),
}

_EXTENSIONS = {
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


@dataclasses.dataclass(frozen=True, eq=False)
class Table(Task):
    """A `Task` read from a file, and what was guessed or changed on the way.

    Attributes:
        notes: One line of text for each guess and each change.
        missing_mass: Reference mass that the file's rows leave out, a probability. It was spread
            over the rows in proportion, or kept as one more outcome when a reward for it was given.
    """

    notes: tuple[str, ...] = ()
    missing_mass: float = 0.0


def read_table(
    path: str | os.PathLike[str],
    *,
    outcome: str | None = None,
    reward: str | None = None,
    log_ref: str | None = None,
    prob: str | None = None,
    count: str | None = None,
    modes: str | None = None,
    unseen_reward: float | None = None,
) -> Table:
    """Reads one problem, a row per outcome.

    The reference is read from the first of these that the table has, or from the one that is named:
    log-probabilities (natural logarithms), probabilities, counts. Masses are normalised; what
    rounding cannot explain is noted.

    Args:
        path: A `.csv`, `.tsv`, `.json` (a list of records or an object of columns), `.jsonl` or
            `.parquet` file.
        outcome: Column of the outcomes' labels. A label may occur once only.
        reward: Column of the rewards: numbers, `-inf`, or true/false for 1 and 0.
        log_ref: Column of natural-log reference probabilities.
        prob: Column of reference probabilities.
        count: Column of how often the reference produced each outcome.
        modes: Column whose equal entries mark outcomes of the same mode. Without it (and without a
            column called `mode`), each right outcome is its own mode and all others are labelled
            -1; right are those of positive reward, see `kltarget.tasks.right_outcomes`.
        unseen_reward: If given, reference mass that the rows leave out is kept as one more outcome
            with this reward, labelled `(unseen)`, instead of being normalised away.

    Returns:
        A `Table` of `A` outcomes in the order of the file, the unseen one last.

    Raises:
        TableError: If the file is missing, is not what its extension says, lacks a column, or has
            an entry that is no valid reward, reference or label. The message is one line naming
            file, column and row.
        ImportError: If a Parquet file is read and pyarrow is not installed.
    """
    path = pathlib.Path(path)
    raw = _read_raw(path)
    notes = list(raw.notes)

    references = {"log_ref": log_ref, "prob": prob, "count": count}
    given = [kind for kind, column in references.items() if column is not None]
    if len(given) > 1:
        raise TableError(
            f"{path}: columns were given for {' and '.join(given)}: "
            "the reference is read from one of them"
        )
    if unseen_reward is not None and (math.isnan(unseen_reward) or unseen_reward == math.inf):
        raise TableError(
            f"{path}: the reward of the unseen outcome is {unseen_reward}: give a number or -inf"
        )

    reward_column = raw.find("reward", reward, REWARD_NAMES)
    kind, reference_column = _find_reference(raw, references)
    taken = {reward_column, reference_column}
    mode_column = raw.find_any("mode", modes, MODE_NAMES, taken)
    outcome_column = raw.find_any("outcome", outcome, OUTCOME_NAMES, taken)
    if outcome_column is None:
        outcome_column = _only_text_column(raw, taken | {mode_column})
    named = f"outcome column {outcome_column!r}, reward column {reward_column!r}"
    notes.append(named + (f", mode column {mode_column!r}" if mode_column is not None else ""))

    labels = _labels(raw, outcome_column)
    rewards = np.array([raw.reward(reward_column, i) for i in range(raw.num_rows)])
    log_mass = _log_masses(raw, kind, reference_column)
    highest = log_mass.max()
    if highest == -math.inf:
        raise TableError(
            f"{path}: column {reference_column!r}: every outcome has reference mass zero"
        )
    log_total = float(highest + np.log(np.exp(log_mass - highest).sum()))

    missing = 0.0
    source = f"reference from {_REFERENCES[kind].what} in column {reference_column!r}"
    if kind == "count":
        notes.append(f"{source} (total {math.exp(log_total):,.10g})")
    elif log_total > _ROUNDING:
        hint = "" if log_total < 0.01 else "; is each row a different outcome of one prompt?"
        notes.append(
            f"{source}: masses sum to {math.exp(log_total):.6g}, more than one: normalised{hint}"
        )
    elif log_total < -_ROUNDING:
        missing = -math.expm1(log_total)
        fate = "normalised away"
        if unseen_reward is not None:
            fate = f"kept as {UNSEEN!r}, reward {unseen_reward:g}"
        notes.append(
            f"{source}: masses sum to {math.exp(log_total):.6g}, missing mass {missing:.6g} {fate}"
        )
    else:
        notes.append(source)
    spare = raw.spare_references(reference_column)
    if spare:
        notes.append(f"not used for the reference: {', '.join(map(repr, spare))}")

    mode_labels = _modes(raw, mode_column, rewards)
    if unseen_reward is not None and missing > 0:
        if UNSEEN in labels:
            row = labels.index(UNSEEN)
            raw.fail(outcome_column, row, f"{UNSEEN!r} is the name of the missing mass")
        labels = (*labels, UNSEEN)
        rewards = np.append(rewards, unseen_reward)
        log_mass = np.append(log_mass, math.log(missing))
        if mode_column is None:
            mode_labels = _modes(raw, None, rewards)
        else:
            mode_labels = np.append(mode_labels, mode_labels.max() + 1)
    else:
        log_mass = log_mass - log_total
        if unseen_reward is not None:
            notes.append("no reference mass is missing: the unseen reward is not used")

    empty = int(np.isneginf(log_mass).sum())
    if empty:
        notes.append(f"{empty} outcome{'s have' if empty > 1 else ' has'} no reference mass")
    if np.isneginf(np.where(np.isneginf(log_mass), -np.inf, rewards)).all():
        raise TableError(
            f"{path}: column {reward_column!r}: no outcome with reference mass has a finite reward"
        )
    return Table(
        name=path.stem,
        description=f"{len(labels):,} outcomes from {path.name}",
        log_ref=log_mass,
        reward=rewards,
        labels=labels,
        modes=mode_labels,
        notes=tuple(notes),
        missing_mass=missing,
    )


@dataclasses.dataclass
class _Raw:
    """A table as read: columns of untyped entries, and where in the file each row is."""

    path: pathlib.Path
    columns: Mapping[str, Sequence[Any]]
    num_rows: int
    lines: Sequence[int] | None = None
    notes: tuple[str, ...] = ()

    def fail(self, column: str, row: int, problem: str) -> NoReturn:
        raise TableError(f"{self.path}: column {column!r}, {self.row(row)}: {problem}")

    def row(self, row: int) -> str:
        place = f"row {row + 1}"
        return place if self.lines is None else f"{place} (line {self.lines[row]})"

    def find(self, role: str, given: str | None, known: Sequence[str]) -> str:
        """The column of a role: the one that was given, else the first whose name is known."""
        column = self.find_any(role, given, known)
        if column is None:
            raise TableError(
                f"{self.path}: no {role} column: none of {self.listing()} "
                f"is called {_either(known[:3])}"
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

    def spare_references(self, used: str) -> list[str]:
        known = {name for reference in _REFERENCES.values() for name in reference.names}
        return [column for column in self.columns if _simple(column) in known and column != used]

    def listing(self) -> str:
        return ", ".join(map(repr, self.columns))

    def number(self, column: str, row: int) -> float:
        entry = self.columns[column][row]
        if entry is None or (isinstance(entry, str) and not entry.strip()):
            self.fail(column, row, "the entry is empty")
        try:
            # float() accepts digit grouping by underscores, which in a table is more likely a
            # typing error.
            if isinstance(entry, bool | complex) or (isinstance(entry, str) and "_" in entry):
                raise ValueError
            value = float(entry)
        except (TypeError, ValueError, OverflowError):
            comma = isinstance(entry, str) and re.fullmatch(r"\s*-?\d+,\d+\s*", entry)
            hint = ": write a decimal point, not a comma" if comma else ""
            self.fail(column, row, f"{_shown(entry)} is not a number{hint}")
        if math.isnan(value):
            self.fail(column, row, "the entry is NaN")
        return value

    def reward(self, column: str, row: int) -> float:
        entry = self.columns[column][row]
        truth = {"true": 1.0, "false": 0.0}.get(str(entry).strip().lower())
        value = self.number(column, row) if truth is None else truth
        if value == math.inf:
            self.fail(column, row, "a reward of +inf has no target: rewards are finite or -inf")
        return value


def _simple(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"


def _shown(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 40 else text[:39] + "…"


def _find_reference(raw: _Raw, given: Mapping[str, str | None]) -> tuple[str, str]:
    for kind, column in given.items():
        if column is not None:
            return kind, raw.find("reference", column, ())
    for kind, reference in _REFERENCES.items():
        column = raw.find_any("reference", None, reference.names)
        if column is not None:
            return kind, column
    raise TableError(
        f"{raw.path}: no reference column: none of {raw.listing()} "
        "is called 'ref_logp', 'prob' or 'count'"
    )


def _log_masses(raw: _Raw, kind: str, column: str) -> np.ndarray:
    reference = _REFERENCES[kind]
    values = np.array([raw.number(column, i) for i in range(raw.num_rows)])
    for row in np.flatnonzero((values < reference.low) | (values > reference.high + _ROUNDING)):
        raw.fail(column, int(row), f"{values[row]:g} is {reference.wrong}")
    values = np.minimum(values, reference.high)
    if kind == "log_ref":
        return values
    with np.errstate(divide="ignore"):
        return np.log(values)


def _only_text_column(raw: _Raw, taken: set[str | None]) -> str:
    text = [
        column
        for column, entries in raw.columns.items()
        if column not in taken and any(_is_text(entry) for entry in entries)
    ]
    if len(text) != 1:
        raise TableError(
            f"{raw.path}: no outcome column: none of {raw.listing()} "
            f"is called {_either(OUTCOME_NAMES[:3])}"
        )
    return text[0]


def _is_text(entry: Any) -> bool:
    if not isinstance(entry, str):
        return False
    try:
        float(entry)
    except ValueError:
        return bool(entry.strip())
    return False


def _labels(raw: _Raw, column: str) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for row, entry in enumerate(raw.columns[column]):
        if entry is None:
            raw.fail(column, row, "the entry is empty")
        label = (
            entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False, default=str)
        )
        if label in seen:
            raw.fail(
                column,
                row,
                f"{_shown(label)} is already in {raw.row(seen[label])}: "
                "give each outcome one row (add up its counts or probabilities)",
            )
        seen[label] = row
    return tuple(seen)


def _modes(raw: _Raw, column: str | None, rewards: np.ndarray) -> np.ndarray:
    if column is None:
        return one_mode_each(right_outcomes(rewards))
    codes: dict[str, int] = {}
    for row, entry in enumerate(raw.columns[column]):
        if entry is None or not str(entry).strip():
            raw.fail(column, row, "the entry is empty")
        codes.setdefault(str(entry), len(codes))
    return np.array([codes[str(entry)] for entry in raw.columns[column]])


def _read_raw(path: pathlib.Path) -> _Raw:
    kind = _EXTENSIONS.get(path.suffix.lower())
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


def _read_csv(path: pathlib.Path, text: str, delimiter: str) -> _Raw:
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
    return _Raw(path, columns, len(rows), lines, notes)


def _check_header(path: pathlib.Path, header: Sequence[str]) -> None:
    for i, name in enumerate(header):
        if name in header[:i]:
            raise TableError(f"{path}: two columns are called {name!r}")


def _read_json(path: pathlib.Path, text: str) -> _Raw:
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
        return _Raw(path, content, max(lengths.values(), default=0))
    if not isinstance(content, list):
        raise TableError(f"{path}: expected a list of records or an object of columns")
    return _from_records(path, content)


def _read_jsonl(path: pathlib.Path, text: str) -> _Raw:
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


def _from_records(path: pathlib.Path, records: list[Any], lines: list[int] | None = None) -> _Raw:
    names: dict[str, None] = {}
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            place = f"row {row + 1}" if lines is None else f"row {row + 1} (line {lines[row]})"
            raise TableError(f"{path}: {place} is not a record of named entries")
        names.update(dict.fromkeys(record))
    columns = {name: [record.get(name) for record in records] for name in names}
    return _Raw(path, columns, len(records), lines)


def _read_parquet(path: pathlib.Path, data: bytes) -> _Raw:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            f'{path}: reading Parquet needs pyarrow: pip install "kltarget[parquet]"'
        ) from None
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TableError(f"{path}: not a readable Parquet file: {reason}") from None
    _check_header(path, table.column_names)
    return _Raw(
        path, {name: table[name].to_pylist() for name in table.column_names}, table.num_rows
    )
