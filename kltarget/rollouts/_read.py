"""Files of rollouts as one frame, and what was guessed, skipped and left out on the way."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kltarget._core.progress import progress_bar
from kltarget._core.words import counted
from kltarget.rollouts._answers import Rule, answer_rule
from kltarget.rollouts._frame import Columns
from kltarget.rollouts._log_files import Reading, rows_of
from kltarget.rollouts._rollout import BadRow, RolloutError
from kltarget.rollouts._select import Path, listed, select, some
from kltarget.rollouts.formats._format import Format

if TYPE_CHECKING:
    import pandas as pd


def read_rollouts(
    paths: Path | Iterable[Path],
    *,
    format: str = "auto",
    columns: Mapping[str, str | Sequence[str]] | None = None,
    answer: str | re.Pattern[str] | Rule = "text",
    num_generations: int | None = None,
    skip_bad: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    r"""Reads the completions that a trainer logged, one row each.

    Files are read row by row, a folder's in the order of their numbers, which is that of steps.

    Args:
        paths: A file, several files, or a folder, which is searched with all its subfolders. Files
            in a folder that are no rollouts are left out with a note.
        format: What wrote the files, of `kltarget.rollouts.FORMAT_NAMES`; by default it is told by
            their columns. Several formats are not read at once, except that where rollouts with
            log-probabilities ("trl-logp") are found, TRL's own files beside them, which hold the
            same rollouts, are left out with a note, and that "generic" files beside a trainer's
            are left out.
        columns: For files of your own: the file's name of each canonical column, for example
            `{"completion": "response"}`. Rewards that are to be added are given as a list.
        answer: How a completion becomes the answer that tells modes apart. "text": the completion
            without white space at its end. "number": its last number, `1,200.50` as `1200.5`.
            "boxed": the content of its last `\boxed{…}` whose braces balance. "answer": that of its
            last `<answer>…</answer>`. A pattern, or its text after "regex:": the first group of the
            last match, or all of it. A function of yours from the completion to a text or None.
            Files that `read_rollouts` once wrote keep their answers if "text" is asked for.
        num_generations: Size of a generation group where the files do not name groups: consecutive
            blocks of so many rows. By default it is guessed, which `attrs["notes"]` then says.
        skip_bad: Skip and count what cannot be read, instead of raising.
        progress: Show a progress bar over the bytes of all files.

    Returns:
        A frame in the files' order with the columns below. `attrs["format"]` is the format,
        `attrs["notes"]` a list of one-line texts: what was guessed, skipped and left out, and
        `attrs["shaped"]` says whether the trainer logs rewards as it scaled and cut them.

        ==================  ========  ==============================================================
        column              dtype
        ==================  ========  ==============================================================
        `prompt_id`         int32     one per text of a prompt, from 0 as they first appear
        `sample_id`         int32     index in the generation group, from 0
        `step`              Int64     training step; NA if the file does not say
        `prompt`            category  text; a chat's messages, with roles if there are several
        `completion`        string    text; of a chat what the assistant says
        `answer`            string    NA where the rule finds none
        `reward`            float64   total reward; NaN only in formats that have none
        `ref_logp`, `logp`  float64   natural, by the reference and by the policy that sampled
        `num_tokens`        float64   tokens of the completion, NaN if not logged
        `advantage`         float64   of the sequence, or the mean of its tokens'; NaN if not logged
        `source`            category  the file
        `group_id`          int32     one per generation group: the samples of a prompt in a step
        `reward/…`          float64   one for each reward that was added; NaN if it does not apply
        ==================  ========  ==============================================================

    Raises:
        RolloutError: If a file is none of the formats, or a row cannot be read: a broken line, text
            that is not UTF-8, a reward that is missing, NaN or +inf, a positive log-probability, or
            groups that do not fit. The message is one line naming file and line. Pickles are never
            opened.
        ImportError: If a Parquet file is read and pyarrow is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> from kltarget.rollouts import read_rollouts
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "5.jsonl"
        >>> _ = path.write_text(
        ...     '{"input": "1+1=", "output": "so 2", "score": 1.0, "uid": "a_0_0"}\n'
        ...     '{"input": "1+1=", "output": "so 3", "score": 0.0, "uid": "a_1_0"}\n'
        ... )
        >>> rollouts = read_rollouts(path, answer="number")
        >>> rollouts[["step", "prompt", "answer", "reward", "group_id"]]
           step prompt answer  reward  group_id
        0     5   1+1=      2     1.0         0
        1     5   1+1=      3     0.0         0
        >>> print(*rollouts.attrs["notes"], sep="\n")
        format 'verl': 1 file
        groups as the files name them
        answer 'number': 2 different answers
    """
    rule_name, rule = answer_rule(answer)
    if num_generations is not None and num_generations < 1:
        raise RolloutError(f"num_generations is {num_generations}: it must be 1 or more")
    reading = Reading(skip_bad)
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files, ignored = select(listed(given), format, columns or {}, reading, some(given))
    found = next(iter(files.values()))

    gathered = Columns()
    notes = [f"format {found.name!r}: {counted(len(files), 'file')}", *found.notes]
    size = sum(path.stat().st_size for path in files)
    with progress_bar(progress, total=size, unit="B", unit_scale=True, desc="rollouts") as bar:
        reading.advance = bar.update
        for path, file_format in files.items():
            try:
                _gather(path, file_format, rule, reading, gathered)
            except RolloutError as error:
                # What remains under skip_bad is a file that breaks off, or never begins.
                if not skip_bad or len(files) == 1:
                    raise
                reading.broken.append(str(error))
    if not len(gathered):
        bad = f" that can be read: {reading.skipped:,} are bad, the first: {reading.first}"
        raise RolloutError(f"{some(files)}: no rows{bad if reading.skipped else ''}")
    whole = not reading.skipped and not reading.repeated
    group_id, grouped = gathered.group_ids(found.grouping, num_generations, whole)
    frame = gathered.frame(group_id)

    if gathered.parts:
        notes.append(f"reward from {some(map(repr, gathered.parts))}")
    if gathered.unrewarded:
        notes.append(f"{gathered.unrewarded:,} of {len(frame):,} rows have no reward")
    notes.append(grouped)
    num_answers = len(frame["answer"].dropna().unique())
    named = f"answer {rule_name!r}: {counted(num_answers, 'different answer')}"
    missing = f", {gathered.unanswered:,} of {len(frame):,} completions without one"
    notes.append(named + (missing if gathered.unanswered else ""))
    if reading.repeated:
        notes.append(f"{counted(reading.repeated, 'row')} of steps that were logged twice dropped")
    if reading.skipped:
        notes.append(f"{counted(reading.skipped, 'bad row')} skipped, the first: {reading.first}")
    notes += [f"not read to its end: {problem}" for problem in reading.broken]
    if ignored:
        notes.append(f"left out: {some(ignored)}")
    frame.attrs = {"format": found.name, "notes": notes, "shaped": found.shaped}
    return frame


def _gather(
    path: pathlib.Path, format: Format, rule: Rule, reading: Reading, gathered: Columns
) -> None:
    source, step = str(path), format.step_of(path)
    for position, where, row in rows_of(path, reading):
        try:
            rollout = format.read(row, path)
            rollout.check()
        except BadRow as error:
            reading.bad(path, where, str(error))
            continue
        except KeyError as error:
            reading.bad(path, where, f"no {error.args[0]!r}, which {format.name!r} has")
            continue
        except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
            reading.bad(path, where, f"not as {format.name!r} writes it: {error}")
            continue
        if rollout.step is None:
            rollout.step = step
        answer = rollout.answer if rollout.answered else rule(rollout.completion)
        try:
            gathered.add(rollout, answer, source, position)
        except BadRow as error:
            reading.bad(path, where, str(error))
