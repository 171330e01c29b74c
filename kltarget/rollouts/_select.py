"""Which files are read, as what, and in which order."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kltarget.rollouts._log_files import Reading, columns_of, layout_of, log_kind
from kltarget.rollouts._rollout import RolloutError
from kltarget.rollouts.formats import FORMATS
from kltarget.rollouts.formats._format import AS_CALLED, Format
from kltarget.rollouts.formats._own_columns import generic

Path = str | os.PathLike[str]

FORMAT_NAMES = (*dict.fromkeys(format.name for format in FORMATS), "generic")
_EVALUATIONS = {format.name for format in FORMATS if format.samples is not None}
_PICKLES = (".pkl", ".pickle", ".pt")


def listed(given: Iterable[Path]) -> dict[pathlib.Path, bool]:
    """All files, and whether each was named, not found in a folder."""
    files: dict[pathlib.Path, bool] = {}
    for path in map(pathlib.Path, given):
        if path.is_dir():
            inside = [x for x in path.rglob("*") if x.is_file() and not _is_hidden(x, path)]
            if not inside:
                raise RolloutError(f"{path}: the folder is empty")
            for file in sorted(inside, key=_in_order):
                files.setdefault(file, False)
        elif path.exists():
            files[path] = True
        else:
            raise RolloutError(f"{path}: there is no such file or folder")
    if not files:
        raise RolloutError("no paths were given")
    return files


def metric_asked(columns: Mapping[str, str | Sequence[str]]) -> str | None:
    """The metric of an evaluation that ``columns`` names as the reward, if it names that alone."""
    named = columns.get("reward")
    return named if isinstance(named, str) and len(columns) == 1 else None


def _is_hidden(path: pathlib.Path, folder: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _in_order(path: pathlib.Path) -> list[str | int]:
    """A key by which step 10 comes after step 9."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def select(
    files: Mapping[pathlib.Path, bool],
    format: str,
    columns: Mapping[str, str | Sequence[str]],
    reading: Reading,
    where: str,
) -> tuple[dict[pathlib.Path, Format], list[str]]:
    """The files to read, all of one format, and the names of those left out."""
    if format not in ("auto", *FORMAT_NAMES):
        raise RolloutError(
            f"{{}} is none of 'auto', {', '.join(map(repr, FORMAT_NAMES))}", "format", format
        )
    evaluated = metric_asked(columns) is not None and format in _EVALUATIONS
    if columns and format not in ("auto", "generic") and not evaluated:
        raise RolloutError("columns are for files of your own, not for {}", "format", format)
    strange = [name for name in columns if name not in AS_CALLED]
    if strange:
        known = ", ".join(map(repr, AS_CALLED))
        raise RolloutError(f"{{}}: {strange[0]!r} is none of {known}", "columns")
    found: dict[pathlib.Path, Format] = {}
    left_out: list[pathlib.Path] = []
    for path, named in files.items():
        try:
            match = _match(path, named, format, columns, reading)
        except RolloutError as error:
            if not reading.skip_bad or len(files) == 1:
                raise
            reading.broken.append(str(error))
            continue
        if match is None:
            left_out.append(path)
        else:
            found[path] = match
    doubles = [path for path in found if not files[path] and _is_double(path, found)]
    left_out += doubles
    found = {path: match for path, match in found.items() if path not in doubles}
    names = {match.name for match in found.values()}
    if len(names) > 1:
        raise RolloutError(
            f"{where}: files of several formats, {', '.join(sorted(names))}: "
            "read them one by one, or give {}",
            "format",
            python="the format",
        )
    if not found:
        pickles = [path for path in left_out if path.suffix in _PICKLES]
        if pickles:
            raise _pickled(pickles[0])
        if reading.broken:
            raise RolloutError(reading.broken[0])
        raise RolloutError(
            f"{where}: nothing to read: {some([path.name for path in left_out])}: not of "
            f"{'any known format' if format == 'auto' else f'format {format!r}'}"
        )
    return found, [path.name for path in left_out]


def _is_double(path: pathlib.Path, found: Mapping[pathlib.Path, Format]) -> bool:
    """Whether rollouts stand in another file better, or are none but look so beside a trainer's."""
    if found[path].name == "generic":
        return any(match.name != "generic" for match in found.values())
    fuller = found[path].superseded.get(path.stem, ())
    if any(path.with_stem(stem) in found for stem in fuller):
        return True
    better = [other for other, match in found.items() if match.name == "trl-logp"]
    return found[path].name == "trl" and any(other.parent in path.parents for other in better)


def _match(
    path: pathlib.Path,
    named: bool,
    format: str,
    columns: Mapping[str, str | Sequence[str]],
    reading: Reading,
) -> Format | None:
    """The format of a file, None for one in a folder that is none; named files have to be one."""
    kind = log_kind(path)
    if kind is None:
        if not named:
            return None
        if path.suffix in _PICKLES:
            raise _pickled(path)
        raise RolloutError(
            f"{path}: unknown extension {path.suffix!r}: "
            "rollouts end in .parquet, .jsonl, .csv, .tsv, .json or .eval, or those of text and .gz"
        )
    try:
        present = columns_of(path, reading)
        layout = layout_of(path)
    except RolloutError:
        # Trainers write JSON files of other kinds too; a broken file of rows is one of rollouts.
        if kind == "json" and not named:
            return None
        raise
    own = generic(columns, present)
    known = FORMATS
    if columns:
        asked = metric_asked(columns) is not None
        known = [candidate for candidate in FORMATS if asked and candidate.samples is not None]
    for candidate in (*known, own):
        if format in ("auto", candidate.name) and candidate.matches(layout, present):
            return candidate
    if not named:
        return None
    if not present:
        raise RolloutError(f"{path}: the file is empty, or has no row that can be read")
    listing = ", ".join(map(repr, present))
    if columns and layout in own.kinds:
        missing = ", ".join(map(repr, sorted(own.columns - set(present))))
        raise RolloutError(f"{path}: there is no column {missing}: the columns are {listing}")
    raise RolloutError(
        f"{path}: not of {'any known format' if format == 'auto' else f'format {format!r}'}: "
        f"the columns are {listing}; name those of a file of your own by {{}}",
        "columns",
        "prompt=…,completion=…,reward=…",
        python="columns={'prompt': …, 'completion': …, 'reward': …}",
    )


def _pickled(path: pathlib.Path) -> RolloutError:
    return RolloutError(
        f"{path}: opening a pickle can run any code, so it is never opened here: convert it where "
        "it was written, as shown in help(kltarget.rollouts)"
    )


def some(names: Iterable[Any], most: int = 5) -> str:
    names = [str(name) for name in names]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
