"""Whether folders or files that are read together are parts of one run, or a run each."""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from kltarget.rollouts._rollout import RolloutError

# What parts of one run are called, that log the same steps.
_RANK = re.compile(
    r"(?i)(?<![a-z])(rank|shard|part|worker|proc|process|gpu|node|device|dp|replica)(?![a-z])"
)
_MOST_PARTS = 40
# What a trainer writes once for each run.
_OWN_FILES = (
    *("trainer_state.json", "training_args.json", "args.json", "args.yaml"),
    *("config.json", "config.yaml", "config.toml", ".hydra/config.yaml"),
)
_FEWEST_GROUPS, _USUAL = 4, 0.9


class _Part(NamedTuple):
    """A folder or a file: its rows, its steps, and the prompt of each, ``[2, …]``."""

    name: str
    rows: Any
    steps: np.ndarray
    asked: np.ndarray


def check_parts(frame: Any) -> None:
    """Refuses folders and files that are two runs.

    They are if most steps of one are steps of the other, with the same prompts there; or if they
    begin at the same step and log other ones, have groups of other sizes or another configuration
    beside them. A run that was resumed does not begin anew, and has few steps in common with what
    was before. Other prompts at the same steps are those of another rank.
    """
    if frame["step"].isna().any() or len(frame["source"].cat.categories) < 2:
        return
    names, part = np.unique(_parts(frame), return_inverse=True)
    if not 1 < len(names) <= _MOST_PARTS or all(_RANK.search(_own_name(name)) for name in names):
        return
    step, source = frame["step"].to_numpy(np.int64), frame["source"].cat.codes.to_numpy()
    cells = np.unique(np.stack([part[source], step, frame["prompt_id"]]), axis=1)
    parts = []
    for code, name in enumerate(names):
        asked = cells[1:, cells[0] == code]
        rows = functools.partial(_rows_of, frame, part[source] == code)
        parts.append(_Part(name, rows, np.unique(asked[0]), asked))
    for one, other in itertools.combinations(parts, 2):
        why = _why_two(one, other)
        if why:
            raise RolloutError(
                f"{one.name} and {other.name} are two runs, {why}: take one of them, or {{}} "
                "(parts of one run are told by names such as rank_0, rank_1)",
                *("against", other.name, "read them one by one"),
            )


def _own_name(part: str) -> str:
    """The name of a part without that of the folders it is in, which are those of every part."""
    return pathlib.Path(part).name


def _rows_of(frame: Any, own: np.ndarray) -> Any:
    return frame[own]


def _why_two(one: _Part, other: _Part) -> str:
    """Why two parts are two runs; empty if they need not be."""
    both = np.intersect1d(one.steps, other.steps)
    anew = one.steps[0] == other.steps[0] and min(len(one.steps), len(other.steps)) > 1
    if 2 * len(both) <= min(len(one.steps), len(other.steps)):
        return f"which both begin at step {one.steps[0]:,} and log other ones" if anew else ""
    first, second = (
        set(zip(*x.asked[:, np.isin(x.asked[0], both)], strict=True)) for x in (one, other)
    )
    if 2 * len(first & second) >= min(len(first), len(second)):
        which = f"step {both[0]:,}" if len(both) == 1 else f"steps {both[0]:,} to {both[-1]:,}"
        return f"which have the same prompts at {which}"
    told = _other_settings(one, other) if anew else ""
    return f"which both begin at step {one.steps[0]:,}, {told}" if told else ""


def _other_settings(one: _Part, other: _Part) -> str:
    """What two parts have that those of one run have in common; empty if nothing is known."""
    names = [os.path.join(x.name, own) for x in (one, other) for own in _OWN_FILES]
    texts = [_content(name) for name in names]
    here, there = texts[: len(_OWN_FILES)], texts[len(_OWN_FILES) :]
    for own, first, second in zip(_OWN_FILES, here, there, strict=True):
        if first and second and first != second:
            return f"each with a {own} of its own"
    sizes = [_group_size(x.rows()) for x in (one, other)]
    if None not in sizes and sizes[0] != sizes[1]:
        return f"one in groups of {sizes[0]}, the other of {sizes[1]}"
    return ""


def _content(name: str) -> bytes:
    try:
        return pathlib.Path(name).read_bytes()
    except OSError:
        return b""


def _group_size(rows: Any) -> int | None:
    """The size of nearly all groups, if there are several."""
    sizes, count = np.unique(rows.groupby("group_id").size(), return_counts=True)
    usual = count.argmax()
    enough = count.sum() >= _FEWEST_GROUPS and count[usual] >= _USUAL * count.sum()
    return int(sizes[usual]) if enough else None


def shared_folder(files: list[pathlib.Path]) -> str:
    """The folder that all files are in."""
    folders = [str(path.absolute().parent) for path in files]
    return os.path.commonpath(folders)


def _parts(frame: Any) -> list[str]:
    """What each file is a part of: a folder below the shared one, or itself if it has steps."""
    files = [pathlib.Path(x) for x in frame["source"].cat.categories]
    shared = shared_folder(files)
    pairs = frame[["source", "step"]].drop_duplicates()
    several: Any = pairs["source"].value_counts(sort=False).to_numpy() > 1
    parts = []
    for path, own in zip(files, several, strict=True):
        inner = pathlib.Path(os.path.relpath(path.absolute(), shared))
        alone = len(inner.parts) == 1
        parts.append(str(path) if alone and own else shared if alone else _top(path, inner))
    return parts


def _top(path: pathlib.Path, inner: pathlib.Path) -> str:
    """The folder of a file that is directly below the shared one, as the path spells it."""
    return str(path.parents[len(inner.parts) - 2])
