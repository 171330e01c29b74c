"""Which rows are of one run's training: not of its validation, nor of another run."""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from kltarget._core.file_kinds import Row
from kltarget._core.rows import simple_name
from kltarget._core.words import counted, quoted
from kltarget.rollouts._frame import SAID
from kltarget.rollouts._rollout import RolloutError
from kltarget.rollouts._select import some
from kltarget.rollouts._two_runs import check_parts, shared_folder

_SPLITS = frozenset({"split", "data_split", "subset", "partition"})
_KINDS = frozenset({"kind", "mode", "phase", "stage"})
_FLAGS = frozenset({"is_val", "is_validation", "is_eval", "is_evaluation", "is_test", "validate"})
_TRUTHS = frozenset({"validation", "eval"})
_TRAINS = frozenset({"is_train", "is_training"})
_RUNS = frozenset(
    {
        *("run", "run_id", "run_name", "wandb_run", "wandb_run_id", "wandb_run_name"),
        *("experiment", "experiment_id", "experiment_name", "exp_name"),
    }
)
# These are of two runs only where each has the same prompts at the same steps.
_PERHAPS = frozenset({"seed", "run_seed", "model", "model_id", "model_name", "model_path"})
_VALIDATION = frozenset({"val", "validation", "eval", "evals", "evaluation", "validate"})
_TESTED = _VALIDATION | {"test", "testing"}
_HELD_OUT = _TESTED | {"valid", "dev", "heldout", "holdout"}
_TRAINING = frozenset({"train", "training"})
_MOST_RUNS = 50


Run = tuple[tuple[str, str], ...]


@functools.lru_cache(maxsize=4096)
def _role(column: str) -> str:
    name = simple_name(column)
    roles = {"split": _SPLITS, "kind": _KINDS, "flag": _FLAGS, "truth": _TRUTHS, "train": _TRAINS}
    roles |= {"run": _RUNS, "perhaps": _PERHAPS}
    return next((role for role, names in roles.items() if name in names), "")


class Origin:
    """What rows say of the run, and of the part of it, that they are of.

    Args:
        only: for columns, the entry of the rows that are wanted.
    """

    def __init__(self, only: Mapping[str, str]) -> None:
        self.only = {column: str(value).strip() for column, value in only.items()}
        self.seen = {column: Counter[str]() for column in only}
        self.held_out: Counter[tuple[str, str]] = Counter()
        self.by_name: set[pathlib.Path] = set()
        self.first: Row | None = None
        self._columns: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        self._runs: dict[str, set[str]] = {}

    def wants(self, row: Row) -> bool:
        wanted = True
        for column, value in self.only.items():
            name = column if column in row else _same_name(row, column)
            entry = _spelled(row.get(name)) if name is not None else ""
            if name is not None:
                self.seen[column][entry] += 1
            wanted &= name is not None and entry == value
        return wanted

    def of(self, row: Row, path: pathlib.Path, named: bool) -> tuple[bool, Run]:
        """Whether a row is of validation, and what the columns call its run that may name one.

        Args:
            row: the row.
            path: the file that it is in.
            named: whether that is called one of validation, which counts if no column says more.
        """
        self.first = row if self.first is None else self.first
        names = tuple(row)
        if names not in self._columns:
            roles = [(name, _role(name)) for name in names]
            self._columns[names] = [x for x in roles if x[1] and x[0] not in self.only]
        run, validation, training = [], False, False
        for column, role in self._columns[names]:
            entry = row[column]
            if role in ("run", "perhaps"):
                if isinstance(entry, str | int) and entry != "":
                    run += self._named(column, str(entry))
            else:
                says = _says_validation(role, entry)
                training |= says is False
                if says:
                    validation = True
                    self.held_out[column, _spelled(entry)] += 1
        if named and not validation and not training:
            self.by_name.add(path)
            validation = True
        return validation, tuple(run)

    def of_block(
        self, first: Row, steady: Collection[str], size: int, path: pathlib.Path, named: bool
    ) -> tuple[bool, Run] | None:
        """As ``of`` of so many rows, if the columns that say it do not vary; else None.

        Args:
            first: the first of the rows.
            steady: the columns whose entries are those of the first in all rows.
            size: how many rows there are.
            path: the file that they are in.
            named: whether that is called one of validation.
        """
        if self.only or any(_role(name) and name not in steady for name in first):
            return None
        for column in first:
            role, entry = _role(column), first[column]
            if role not in ("", "run", "perhaps") and _says_validation(role, entry):
                self.held_out[column, _spelled(entry)] += size - 1
        return self.of(first, path, named)

    def _named(self, column: str, entry: str) -> Run:
        """The column and its entry, unless it has too many to be those of runs."""
        seen = self._runs.setdefault(column, set())
        if len(seen) <= _MOST_RUNS:
            seen.add(entry)
        return ((column, entry),) if len(seen) <= _MOST_RUNS else ()

    def extend(self, other: Origin) -> bool:
        """Adds what the rows that come next say; False if they were not read as one after these."""
        for column, seen in other.seen.items():
            self.seen[column].update(seen)
        self.held_out.update(other.held_out)
        self.by_name |= other.by_name
        self.first = other.first if self.first is None else self.first
        for column, entries in other._runs.items():
            self._runs.setdefault(column, set()).update(entries)
        return all(len(entries) <= _MOST_RUNS for entries in self._runs.values())

    def check(self, where: str, kept: int) -> None:
        """Refuses what was asked for if no row has it."""
        for column, value in self.only.items():
            seen = self.seen[column]
            if kept or seen[value]:
                continue
            has = f"there {some(map(repr, seen))}" if seen else "no row has such a column"
            why = f"{where}: {{}}: no row has {column} = {value!r}: {has}"
            raise RolloutError(why, "only", f"{column}={value}", f"only={{{column!r}: {value!r}}}")


def _same_name(row: Row, column: str) -> str | None:
    return next((name for name in row if simple_name(name) == simple_name(column)), None)


def _spelled(entry: Any) -> str:
    return "" if entry is None else str(entry).strip()


def _says_validation(role: str, entry: Any) -> bool | None:
    """Whether an entry says that its row is of validation; None if it says nothing of that."""
    if entry is None:
        return None
    text = _spelled(entry).lower()
    if role in ("flag", "truth", "train"):
        # A number in a column "eval" may be a score.
        yes = text == "true" or (role != "truth" and text in ("1", "1.0", "yes"))
        no = text == "false" or (role != "truth" and text in ("0", "0.0", "no"))
        return None if not yes and not no else yes != (role == "train")
    if not isinstance(entry, str):
        return None
    words = re.split(r"[^a-z]+", text)
    if not (_HELD_OUT if role == "split" else _TESTED).isdisjoint(words):
        return True
    return None if _TRAINING.isdisjoint(words) else False


def files_of_validation(files: Iterable[pathlib.Path]) -> set[pathlib.Path]:
    """The files that their names, or those of folders, say are of validation."""
    files = list(files)
    shared = shared_folder(files)
    found = set()
    for path in files:
        inner = os.path.relpath(path.absolute(), shared).removesuffix(".gz").lower()
        if not _VALIDATION.isdisjoint(re.split(r"[^a-z]+", inner)):
            found.add(path)
    return found


def note_of_validation(origin: Origin, left: int, rows: int) -> str:
    """What to say of rows of validation, if they were left out, and how to read them."""
    files = origin.by_name
    if not left and origin.held_out:
        return "all rows are of validation, none of training"
    if not left:
        name = min(files).name
        return f"the name of {name} says that it is of validation, no column does: read as it is"
    what = f"{counted(left, 'row')} of validation left out, {rows:,} of training read"
    if files:
        named = f"{counted(len(files), 'file')} such as {min(files).name}"
        return f"{what}: {named}, to be given alone if wanted"
    column, value = origin.held_out.most_common(1)[0][0]
    give = f"only={{{column!r}: {value!r}}} (--only {column}={value})"
    return f"{what}: {give} reads the others"


def check_one_model(models: Mapping[str | None, pathlib.Path], where: str) -> None:
    """Refuses evaluations of several models, each with the first file that names it."""
    named = [(model, path) for model, path in models.items() if model is not None]
    if len(named) > 1:
        (one, first), (other, second) = named[:2]
        which = f"{quoted(one)} in {first.name} and {quoted(other)} in {second.name}"
        raise RolloutError(f"{where}: samples of several models, {which}: read one by one")


def note_of_folders(files: Iterable[pathlib.Path]) -> str:
    """What to say of evaluations in several folders, which often are those of several models."""
    folders = {path.parent for path in files}
    if len(folders) < 2:
        return ""
    return f"samples in {len(folders):,} folders are read as those of one model"


def check_one_run(frame: Any, runs: list[Run], where: str) -> None:
    """Refuses a frame that holds several runs.

    They are told by a column that names them, by steps of a file that go back to the beginning, or
    by folders and files of which each is a run of its own.
    """
    _check_named(frame, runs, where)
    _check_steps(frame)
    check_parts(frame)


def _check_named(frame: Any, runs: list[Run], where: str) -> None:
    named = {run: dict(run) for run in dict.fromkeys(runs)}
    for column in dict.fromkeys(column for run in named for column, _ in run):
        if not all(column in entries for entries in named.values()):
            continue
        names = list(dict.fromkeys(entries[column] for entries in named.values()))
        if not 1 < len(names) <= _MOST_RUNS:
            continue
        code = {run: names.index(entries[column]) for run, entries in named.items()}
        if not _are_runs(frame, np.array([code[run] for run in runs]), _role(column)):
            continue
        more = f" and {len(names) - 2:,} more" if len(names) > 2 else ""
        several = f"several runs, {quoted(names[0])} and {quoted(names[1])}{more}"
        raise RolloutError(
            f"{where}: column {column!r} names {several}: read one by {{}}",
            *("only", f"{column}={names[0]}", f"only={{{column!r}: {names[0]!r}}}"),
        )


def _are_runs(frame: Any, code: np.ndarray, role: str) -> bool:
    """Whether what names rows names runs: not completions of a prompt, nor perhaps groups."""
    step = frame["step"].fillna(-1).to_numpy(np.int64)
    cells = np.stack([step, frame["prompt_id"].to_numpy(np.int64), code])
    cells, count = np.unique(cells, axis=1, return_counts=True)
    if np.median(count) < 2 or role == "run":
        return bool(np.median(count) >= 2)
    if frame["step"].isna().any():
        return False
    _, shared = np.unique(cells[:2], axis=1, return_counts=True)
    return bool(2 * (shared > 1).sum() >= len(shared))


def _restarts(frame: Any) -> tuple[np.ndarray, np.ndarray]:
    """How often the steps of a row's file have gone back to the first, and all steps."""
    step = frame["step"].to_numpy(np.int64)
    source = frame["source"].cat.codes.to_numpy()
    first = np.full(int(source.max(initial=0)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, source, step)
    new = np.diff(source, prepend=-1) != 0
    back = (np.diff(step, prepend=step[:1]) < 0) & (step == first[source]) & ~new
    total = np.cumsum(back)
    starts = np.maximum.accumulate(np.where(new, np.arange(len(step)), 0))
    return total - total[starts], step


def written_twice(frame: Any) -> np.ndarray:
    """Rows of files that begin again and say the same once more, of another time than the first."""
    again = np.zeros(len(frame), bool)
    if frame["step"].isna().any() or not len(frame):
        return again
    time, _ = _restarts(frame)
    if not time.any():
        return again
    source = frame["source"].cat.codes.to_numpy()
    names = ["step", "prompt_id", SAID, "reward", "advantage", "logp", "ref_logp"]
    for code in np.unique(source[time > 0]):
        own = np.flatnonzero(source == code)
        parts = [own[time[own] == k] for k in range(int(time[own].max()) + 1)]
        whole = frame[names].iloc[parts[0]].reset_index(drop=True)
        for part in parts[1:]:
            same = len(part) == len(parts[0]) and len(np.unique(frame["step"].iloc[part])) > 1
            if same and whole.equals(frame[names].iloc[part].reset_index(drop=True)):
                again[part] = True
    return again


def _check_steps(frame: Any) -> None:
    if frame["step"].isna().any() or not len(frame):
        return
    time, step = _restarts(frame)
    source = frame["source"].cat.codes.to_numpy()
    for code in np.unique(source[time > 0]):
        own = source == code
        cells, count = np.unique(
            np.stack([time, step, frame["prompt_id"].to_numpy(np.int64)])[:, own],
            axis=1,
            return_counts=True,
        )
        if not cells[0, -1] < _MOST_RUNS or np.median(count) < 2:
            continue
        one, other = (cells[1:, cells[0] == k] for k in (0, 1))
        both = np.intersect1d(one[0], other[0])
        asked = set(zip(*one, strict=True)) & set(zip(*other, strict=True))
        if len(both) < 2 or 2 * len(asked) < min(one.shape[1], other.shape[1]):
            continue
        row = int(np.flatnonzero(own & (time == 1))[0] - np.flatnonzero(own)[0]) + 1
        file = frame["source"].cat.categories[code]
        raise RolloutError(
            f"{file} holds two runs one after the other: in rollout {row:,} steps go back to "
            f"{both[0]:,}, with the same prompts: part it there (or, if steps are counted anew in "
            "each epoch, count them on)"
        )


def other_steps(frame: Any, named: Mapping[str, int]) -> str:
    """What to say of files whose one step is another than the one they are named by."""
    if not named or frame["step"].isna().all():
        return ""
    pairs = frame[["source", "step"]].dropna().drop_duplicates()
    pairs = pairs[~pairs["source"].duplicated(keep=False)]
    apart = [
        (source, step)
        for source, step in zip(pairs["source"], pairs["step"], strict=True)
        if source in named and named[source] != step
    ]
    if not apart:
        return ""
    source, step = apart[0]
    files = counted(len(apart), "file")
    return (
        f"{files} of {len(named):,} named by another step than that of the rows, which counts: "
        f"{os.path.basename(source)} has step {step:,}"
    )
