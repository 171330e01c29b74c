"""Files of rollouts as one frame, and what was guessed, skipped and left out on the way."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.file_kinds import Row
from kltarget._core.rows import simple_name
from kltarget._core.words import counted, number
from kltarget.rollouts._answers import Rule, answer_rule
from kltarget.rollouts._frame import ANSWERED, SAID, Columns
from kltarget.rollouts._gather import Asked
from kltarget.rollouts._log_files import Reading
from kltarget.rollouts._one_run import (
    check_one_model,
    check_one_run,
    files_of_validation,
    note_of_folders,
    note_of_validation,
    other_steps,
    written_twice,
)
from kltarget.rollouts._repeats import first_uses, merged, overlaps, unmixed, without_gaps
from kltarget.rollouts._reward_weights import Weights, given_weights, told_weights
from kltarget.rollouts._rollout import RolloutError
from kltarget.rollouts._select import Path, listed, metric_asked, select, some
from kltarget.rollouts._shares import gathered_by_all
from kltarget.rollouts.formats._reward_parts import NO_REWARDS

if TYPE_CHECKING:
    import pandas as pd


def read_rollouts(
    paths: Path | Iterable[Path],
    *,
    format: str = "auto",
    columns: Mapping[str, str | Sequence[str]] | None = None,
    answer: str | re.Pattern[str] | Rule = "text",
    num_generations: int | None = None,
    reward_weights: Weights | None = None,
    only: Mapping[str, str] | None = None,
    full_text: bool = True,
    skip_bad: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    r"""Reads the completions that a trainer logged, one row each.

    Files are read row by row, a folder's in the order of their numbers, which is that of steps.

    Args:
        paths: A file, several files, or a folder, which is searched with all its subfolders. Files
            in a folder that are no rollouts are left out with a note.
        format: What wrote the files, of ``kltarget.rollouts.FORMAT_NAMES``; by default it is told
            by their columns. Several formats are not read at once, except that where rollouts with
            log-probabilities ("trl-logp") are found, TRL's own files beside them, which hold the
            same rollouts, are left out with a note, and that "generic" files beside a trainer's are
            left out.
        columns: For files of your own: the file's name of each canonical column, for example
            ``{"completion": "text"}``, in any case. Rewards that are to be added are given as a
            list. Usual names, such as ``response``, ``score`` and ``global_step``, need not be
            given. For logs of evaluations: ``{"reward": metric}``, by default the first metric that
            is a number.
        answer: How a completion becomes the answer that tells modes apart. "text": the completion
            without white space at its end. "number": its last number, ``1,200.50`` as ``1200.5``,
            ``1e-3`` as ``0.001``, ``2/4`` as ``0.5`` and ``2/6`` as ``1/3``. "boxed": the content
            of its last ``\boxed{…}`` whose braces balance. "answer": that of its last
            ``<answer>…</answer>``. A pattern, or its text after "regex:": the first group of the
            last match, or all of it. A function of yours from the completion to a text or None.
            Files that ``read_rollouts`` once wrote keep their answers if "text" is asked for, and
            NoveltyBench's have the class of a completion then.
        num_generations: Size of a generation group where the files do not name groups: consecutive
            blocks of so many rows. By default it is guessed, which ``attrs["notes"]`` then says.
        reward_weights: What the trainer multiplies its rewards by before it adds them: a number by
            the name of each reward that has another than 1, or one for each in the order of the
            columns. By default the logged advantages say it, or all count as 1; ``attrs["notes"]``
            has them, and which numbers beside the rewards the advantages leave out.
        only: Read the rows alone whose entry in a column is this, for example ``{"run": "a"}`` or
            ``{"split": "validation"}``.
        full_text: Keep completions and answers as they are. Otherwise those of more than 1,000
            characters are kept as their beginning, their end and what tells them from others, which
            is enough to diagnose a run and takes little memory. Answers are found before.
        skip_bad: Skip and count what cannot be read, instead of raising.
        progress: Show a progress bar over the bytes of all files.

    Returns:
        A frame in the files' order with the columns below. ``attrs["format"]`` is the format,
        ``attrs["notes"]`` a list of one-line texts: what was guessed, skipped and left out, and
        ``attrs["shaped"]`` says whether the trainer logs rewards as it scaled and cut them. Where
        there are no rewards, ``attrs["numbers"]`` names columns of numbers that may be some.

        ======================  ========  ==========================================================
        column                  dtype
        ======================  ========  ==========================================================
        ``prompt_id``           int32     one per text of a prompt, from 0 as they first appear
        ``sample_id``           int32     index in the generation group, from 0
        ``step``                Int64     training step; NA if the file does not say
        ``prompt``              category  text; a chat's messages, with roles if there are several
        ``completion``          string    text; of a chat what the assistant says
        ``answer``              string    NA where the rule finds none
        ``reward``              float64   total reward; NaN only where no rewards are logged
        ``ref_logp``, ``logp``  float64   natural, by the reference and by the policy that sampled
        ``num_tokens``          float64   tokens of the completion, NaN if not logged
        ``advantage``           float64   of the sequence, or the mean of its tokens'; NaN if not
                                          logged
        ``source``              category  the file
        ``group_id``            int32     one per generation group: the samples of a prompt in a
                                          step
        ``reward/…``            float64   one for each reward that was added; NaN if it does not
                                          apply
        ``tokens``              object    arrays, only where the reference's log-probabilities of
                                          tokens are logged too; None for completions of more than
                                          256 tokens
        ``ref_token_logps``     object    arrays of as many, natural
        ======================  ========  ==========================================================

    Raises:
        RolloutError: If a file is none of the formats, or a row cannot be read: a broken line, text
            that is not UTF-8, a reward of +inf, a positive log-probability, or groups that do not
            fit; if no row has a reward though there is a column of them; or if the rows are of two
            runs. The message is one line naming file and line. Pickles are never opened.
        ImportError: If a Parquet or Arrow file is read and pyarrow is not installed.

    Rows without a reward are left out and counted in the notes. Groups and runs go over no two
    files; the outputs of one session, and steps that train on one generation, are one rollout. A
    group that a file names is one for each of its prompts if each has several rollouts in it.

    One run's training is read. Rows of validation, by a column such as ``split``, ``phase`` or
    ``is_train``, or where no column says by the names of files and folders, are left out with a
    note if there are others. Two runs are an error: those that a column such as ``run_id`` names,
    or ``seed`` or ``model`` where the same prompts have each value at the same steps; one after
    the other in a file, if steps go back to the beginning; folders or files that have the same
    prompts at the same steps, if more than half of the steps of one are steps of the other; and
    those that begin at the same step but log other ones, have groups of other sizes or a
    configuration of their own (``trainer_state.json``, ``config.yaml``, …) that differs. Otherwise
    files with other prompts at the same steps are ranks or shards of one run, those with few steps
    in common a run that was resumed, and both are read as one; so are folders whose names say that
    they are parts (``rank_0``, ``shard-1``). What stands twice in a file, row for row, counts once.

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
    # Logs of evaluations have nothing else, whatever their names say.
    apart = files_of_validation(files) if found.samples is None else set()
    notes = [f"format {found.name!r}: {counted(len(files), 'file')}", *found.notes]
    asked = Asked(
        rule_name, rule, metric_asked(columns or {}), full_text, only or {}, apart, skip_bad
    )
    read = gathered_by_all(files, asked, progress)
    parts, origin = read.parts, read.origin
    reading.extend(read.reading)
    gathered, left = parts if len(parts[0]) else parts[::-1]
    origin.check(some(files), len(gathered))
    if not len(gathered):
        bad = f" that can be read: {reading.skipped:,} are bad, the first: {reading.first}"
        for why, (count, first) in reading.unused.items():
            raise RolloutError(
                f"{first}: {why} (so it is in {counted(count, 'row')}, none is left)"
            )
        raise RolloutError(f"{some(files)}: no rows{bad if reading.skipped else ''}")
    check_one_model(reading.models, some(files))
    whole = not reading.skipped and not reading.repeated
    group_id, grouped = gathered.group_ids(found.grouping, num_generations, whole)
    weighed = _weigh(gathered, group_id, found.guessed, reward_weights)
    frame: Any = gathered.frame(group_id)
    again = written_twice(frame)
    once = ~again
    runs = list(itertools.compress(gathered.runs(), once))
    check_one_run(frame[once] if again.any() else frame, runs, some(files))
    named = {str(path): of.step_of(path) for path, of in files.items()}
    steps = other_steps(frame, {path: step for path, step in named.items() if step is not None})
    frame, dropped = _own_rollouts(frame, gathered, rule, some(files), again)

    if found.renamed:
        listing = ", ".join(f"{column!r} as {role}" for role, column in found.renamed)
        notes.append(f"columns read by their names: {listing}")
    if gathered.parts:
        notes.append(f"reward from {some(map(repr, gathered.parts))}")
    notes += reading.metrics
    if None in reading.models:
        notes += filter(None, [note_of_folders(files)])
    notes += weighed
    if gathered.unrewarded:
        notes.append(f"{gathered.unrewarded:,} of {len(gathered):,} rows have no reward")
    if len(left) or gathered is parts[1]:
        notes.append(note_of_validation(origin, len(left), len(gathered)))
    notes += [grouped, *filter(None, [steps]), *dropped]
    missing_answers = frame["answer"].isna().to_numpy()
    num_answers = len(np.unique(frame[ANSWERED].to_numpy()[~missing_answers]))
    unanswered = int(missing_answers.sum())
    # In place, for dropping them copies the others.
    del frame[SAID], frame[ANSWERED]
    named = f"answer {rule_name!r}: {counted(num_answers, 'different answer')}"
    missing = f", {unanswered:,} of {len(frame):,} completions without one"
    notes.append(named + (missing if unanswered else ""))
    for why, (count, first) in reading.unused.items():
        notes.append(f"{counted(count, 'row')} left out, {why}, the first: {first}")
    for (column, kept), count in reading.variants.items():
        rows = f"{counted(count, 'row')} of another {column} than {kept!r}"
        notes.append(f"{rows} left out: only={{{column!r}: …}} (--only {column}=…) reads another")
    if gathered.padding:
        tokens = counted(gathered.padding, "token")
        notes.append(f"{tokens} of log-probability +1 taken for padding and left out")
    if reading.repeated:
        notes.append(f"{counted(reading.repeated, 'row')} of steps that were logged twice dropped")
    if reading.skipped:
        notes.append(f"{counted(reading.skipped, 'bad row')} skipped, the first: {reading.first}")
    notes += [f"not read to its end: {problem}" for problem in reading.broken]
    if ignored:
        notes.append(f"left out: {some(ignored)}")
    frame.attrs = {"format": found.name, "notes": notes, "shaped": found.shaped}
    if gathered.unrewarded == len(gathered) and origin.first is not None:
        texts = found.prompt, found.completion
        numbers = [name for name in origin.first if _may_be_reward(origin.first, name)]
        frame.attrs["numbers"] = [name for name in numbers if name not in texts]
    return frame


def _may_be_reward(row: Row, name: str) -> bool:
    """Whether a column that is called no reward, and nothing else, has a number."""
    if simple_name(name) in NO_REWARDS or isinstance(row[name], bool):
        return False
    try:
        return math.isfinite(float(row[name]))
    except (TypeError, ValueError):
        return False


def _weigh(gathered: Columns, group: np.ndarray, guessed: bool, given: Weights | None) -> list[str]:
    """Weighs the parts of rewards, as the user or the advantages say, and says so."""
    parts = {name: np.array(part) for name, part in gathered.parts.items()}
    if given is not None:
        weights = given_weights(given, list(parts))
        gathered.weigh(weights)
        listing = ", ".join(f"{name!r} × {number(weight)}" for name, weight in weights.items())
        return [f"weights of rewards as given: {listing}"]
    if not guessed or not parts:
        return []
    # A total that was logged itself is right as it is.
    reward, total = np.array(gathered.numbers["reward"]), np.nansum(list(parts.values()), 0)
    known = ~np.isnan(reward)
    if not np.allclose(reward[known], total[known]):
        return []
    weights, notes = told_weights(parts, group, np.array(gathered.numbers["advantage"]))
    if any(weight != 1 for weight in weights.values()):
        gathered.weigh(weights)
    return notes


def _own_rollouts(
    frame: Any, gathered: Columns, rule: Rule, where: str, again: np.ndarray
) -> tuple[pd.DataFrame, list[str]]:
    """The frame without rows that are no rollouts of their own or have no reward, and why."""
    notes, size = [], len(frame)
    session, turn = gathered.sessions(), np.array(gathered.turn)
    if again.any():
        frame = frame[~again]
        session, turn = None if session is None else session[~again], turn[~again]
    if session is not None:
        frame, notes = merged(frame, session, turn, rule)
    if again.any():
        rows = counted(int(again.sum()), "row")
        notes = [f"the log is written twice, row for row: counted once, {rows} left out", *notes]
    kept, why = first_uses(frame)
    if why:
        notes.append(why)
        frame = frame[kept]
    frame, mixed = unmixed(frame)
    notes += filter(None, (mixed, overlaps(frame)))
    rewarded = frame["reward"].notna().to_numpy()
    if gathered.unrewarded < size and not rewarded.all():
        if not rewarded.any():
            first = gathered.first_missing or where
            raise RolloutError(f"{first}: no reward, and no row has one")
        rows = f"{(~rewarded).sum():,} of {len(frame):,} rows"
        notes.append(f"{rows} have no reward and are left out, the first: {gathered.first_missing}")
        frame = frame[rewarded]
    return (frame if len(frame) == size else without_gaps(frame)), notes
