"""From logs and tables of a model's samples to how often each prompt got which reward."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from kltarget._core.file_kinds import FileError
from kltarget._core.rows import RowFile
from kltarget._core.words import counted
from kltarget.evidence._answer_numbers import AnswerCounts
from kltarget.evidence._counts import read_counts
from kltarget.evidence._log import Log, evident_threshold, log_of
from kltarget.rollouts import RolloutError, read_rollouts

_MOST_VALUES = 256


@dataclasses.dataclass(frozen=True, eq=False)
class SampleCounts:
    """How often each prompt was solved, or got each of several rewards.

    Attributes:
        prompts: their names.
        correct: right samples, ``[P]``; of rewards that do not show what is right, None.
        samples: all samples, ``[P]``.
        rewards: of a wrong and of a right sample, ``[2]``, or of several levels, ``[K]``.
        notes: what was left out or taken for granted.
        levels: samples of each of more than two rewards, ``[P, K]``; None if there are two.
        right: what share of each level's samples is right, ``[K]``; None where that is not known.
        tokens: of the samples on average, NaN where that is not logged.
        answers: how often each was given; None where that is not known.
    """

    prompts: tuple[str, ...]
    correct: np.ndarray | None
    samples: np.ndarray
    rewards: np.ndarray
    notes: tuple[str, ...]
    levels: np.ndarray | None = None
    right: np.ndarray | None = None
    tokens: float = np.nan
    answers: AnswerCounts | None = None

    @property
    def by_level(self) -> np.ndarray:
        """Samples of each reward, also where there are two, ``[P, K]``."""
        if self.levels is not None:
            return self.levels
        assert self.correct is not None
        return np.stack([self.samples - self.correct, self.correct], axis=1)

    def __str__(self) -> str:
        """How many prompts and samples there are."""
        least, most = int(self.samples.min()), int(self.samples.max())
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return f"{counted(len(self.prompts), 'prompt')}, {each} samples each"


def counts_of(
    samples: Any,
    threshold: float | None,
    columns: Any = None,
    *,
    late: bool = False,
    most_levels: int = 12,
) -> SampleCounts:
    """The counts of a table of counts, or of a log with rewards.

    Args:
        samples: such a table, rows of samples with rewards, or files of either.
        threshold: the least reward of a right sample, where the rewards do not show it.
        columns: other names of columns.
        late: of a log with steps, take the last third of these instead of the first step.
        most_levels: of more different rewards those that lie closest are one.
    """
    if _is_table(samples, columns):
        if threshold is not None:
            raise ValueError("threshold is of rewards: a table of counts says what was right")
        frame = read_counts(samples, columns=columns)
        return SampleCounts(
            tuple(map(str, frame["prompt"])),
            frame["correct"].to_numpy(),
            frame["samples"].to_numpy(),
            np.array([0.0, 1.0]),
            (),
        )
    frame = samples
    if isinstance(samples, (str, os.PathLike)) or not hasattr(samples, "columns"):
        try:
            frame = read_rollouts(samples, full_text=False, columns=columns)
        except RolloutError as error:
            if error.argument == "columns":
                error.add("; of a table of counts they are prompt, correct and samples")
            raise
    return _counts_of_log(log_of(frame), frame, threshold, late, most_levels)


def _is_table(samples: Any, columns: Any) -> bool:
    """Whether these are counts; of files by the names of their columns."""
    names = getattr(samples, "columns", samples if isinstance(samples, Mapping) else None)
    if isinstance(samples, (str, os.PathLike)) and os.path.isfile(samples):
        names = _column_names(pathlib.Path(samples))
    if names is None:
        return False
    return all((columns or {}).get(x, x) in names for x in ("correct", "samples"))


def _column_names(path: pathlib.Path) -> Collection[str]:
    """As the header or the first row has them; nothing where neither can be read."""
    file = RowFile(path, guess_delimiter=True)
    try:
        first = next(iter(file), None)
    except FileError:
        return ()
    row = first[2] if first else {}
    return file.columns or (row if isinstance(row, dict) else ())


def _counts_of_log(
    log: Log, frame: Any, threshold: float | None, late: bool, most_levels: int
) -> SampleCounts:
    notes = [*frame.attrs.get("notes", ()), *log.notes]
    chosen = log.late if late else log.early
    if len(log.steps) > 1:
        # A policy in training is the base model before its first step alone.
        taken = "the last third" if late else "the first"
        model = "the trained model" if late else "the base model"
        notes.append(
            f"{taken} of {len(log.steps):,} logged steps is taken for {model}, "
            f"{counted(int(chosen.sum()), 'sample')}"
        )
    values = np.unique(log.reward)
    if threshold is None:
        threshold = evident_threshold(log)
        if threshold is None and len(values) == 1 and values[0] in (0.0, 1.0):
            threshold = 1.0
    size = len(log.prompts)
    samples = np.bincount(log.prompt[chosen], minlength=size)
    seen = samples > 0
    if not seen.all():
        notes.append(f"{counted(int((~seen).sum()), 'prompt')} without a sample of these steps")
    names = tuple(name for name, some in zip(log.prompts, seen, strict=True) if some)
    prompt = (np.cumsum(seen) - 1)[log.prompt[chosen]]
    number = log.tokens.number[chosen]
    tokens = float(number.mean()) if np.isfinite(number).all() else np.nan
    correct = None
    if threshold is not None:
        correct = np.bincount(log.prompt[chosen & (log.reward >= threshold)], minlength=size)[seen]
    if len(values) > 2:
        reward = log.reward[chosen]
        rewards, level, widest = _levels(reward, most_levels)
        cells = np.bincount(prompt * rewards.size + level, minlength=len(names) * rewards.size)
        if widest > 0:
            notes.append(
                f"the {len(np.unique(reward)):,} rewards are gathered in "
                f"{rewards.size} levels by their means; none is further than {widest:.2g} from its "
                "level"
            )
        right = None
        if threshold is not None:
            # A level of gathered rewards may be right in part.
            right = np.bincount(level, reward >= threshold) / np.bincount(level)
            notes.append(f"right: a reward of {threshold:g} or more")
        levels = cells.reshape(len(names), -1)
        found = (names, correct, samples[seen], rewards, tuple(notes), levels, right)
        answers = _answers(log.answer[chosen], prompt, level)
        return SampleCounts(*found, tokens=tokens, answers=answers)
    if correct is None:
        raise ValueError(
            f"threshold is needed: all rewards are {values[0]:g}, pass threshold=1.0, for "
            "instance, for the least reward of a right sample"
        )
    rewards = values if len(values) == 2 else np.array([0.0, 1.0])
    found = (names, correct, samples[seen], rewards, tuple(notes))
    right = (log.reward[chosen] >= threshold).astype(int)
    answers = _answers(log.answer[chosen], prompt, right)
    return SampleCounts(*found, tokens=tokens, answers=answers)


def _answers(answer: np.ndarray, prompt: np.ndarray, level: np.ndarray) -> AnswerCounts | None:
    """Of each answer and reward, for an answer may be rewarded in several ways.

    Where none recurs, nothing can be said of how many there are.
    """
    rows = np.stack([prompt, level, answer])
    different, count = np.unique(rows, axis=1, return_counts=True)
    return AnswerCounts(different[0], different[1], count) if count.max() > 1 else None


def _levels(reward: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, float]:
    """At most so many rewards ``[K]``, which each is, ``[N]``, and the longest way to one."""
    values, which, number = np.unique(reward, return_inverse=True, return_counts=True)
    if len(values) <= most:
        return values, which, 0.0
    first = np.arange(len(values)) * min(_MOST_VALUES, len(values)) // len(values)
    number = np.bincount(first, number)
    level = _merged(np.bincount(first[which], reward) / number, number, most)[first[which]]
    rewards = np.bincount(level, reward) / np.bincount(level)
    return rewards, level, float(np.abs(reward - rewards[level]).max())


def _merged(values: np.ndarray, number: np.ndarray, most: int) -> np.ndarray:
    """Which of at most so many levels each ascending value is in: neighbours that lie closest.

    Ward's criterion, by the root of how often values occur: rare ones at the ends are what small β
    asks for.
    """
    weight, centre = np.sqrt(number.astype(float)), values.astype(float)
    level = np.arange(len(values))
    while len(centre) > most:
        both = weight[:-1] + weight[1:]
        at = int(np.argmin(weight[:-1] * weight[1:] / both * np.diff(centre) ** 2))
        centre[at] = (weight[at : at + 2] * centre[at : at + 2]).sum() / both[at]
        weight[at] = both[at]
        centre, weight = np.delete(centre, at + 1), np.delete(weight, at + 1)
        level = level - (level > at)
    return level
