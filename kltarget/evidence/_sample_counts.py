"""From logs and tables of a model's samples to how often each prompt was solved."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from kltarget._core.rows import FileError, RowFile
from kltarget._core.words import counted
from kltarget.evidence._counts import read_counts
from kltarget.evidence._log import Log, evident_threshold, log_of
from kltarget.rollouts import read_rollouts


@dataclasses.dataclass(frozen=True, eq=False)
class SampleCounts:
    """How often each prompt was solved.

    Attributes:
        prompts: their names.
        correct: right samples, ``[P]``.
        samples: all samples, ``[P]``.
        rewards: of a wrong and of a right sample, ``[2]``.
        notes: what was left out or taken for granted.
    """

    prompts: tuple[str, ...]
    correct: np.ndarray
    samples: np.ndarray
    rewards: np.ndarray
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """How many prompts and samples there are."""
        least, most = int(self.samples.min()), int(self.samples.max())
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return f"{counted(len(self.prompts), 'prompt')}, {each} samples each"


def counts_of(
    samples: Any, threshold: float | None, columns: Any = None, *, late: bool = False
) -> SampleCounts:
    """The counts of a table of counts, or of a log whose rewards tell right from wrong.

    Args:
        samples: such a table, rows of samples with rewards, or files of either.
        threshold: the least reward of a right sample, where the rewards do not show it.
        columns: other names of columns.
        late: of a log with steps, take the last third of these instead of the first step.
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
        frame = read_rollouts(samples, full_text=False, columns=columns)
    return _counts_of_log(log_of(frame), frame, threshold, late)


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


def _counts_of_log(log: Log, frame: Any, threshold: float | None, late: bool) -> SampleCounts:
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
    if threshold is None:
        raise ValueError(
            "threshold is needed: rewards do not show which samples are right, pass threshold=1.0, "
            "for instance, for the least reward of a right one"
        )
    right = log.reward >= threshold
    rewards = np.array([0.0, 1.0])
    if len(values) == 2:
        rewards = values
    elif len(values) > 2:
        notes.append(
            f"rewards have {len(values):,} values: right samples, of {threshold:g} or more, count "
            "1 and all others 0"
        )
    size = len(log.prompts)
    samples = np.bincount(log.prompt[chosen], minlength=size)
    correct = np.bincount(log.prompt[chosen & right], minlength=size)
    seen = samples > 0
    if not seen.all():
        notes.append(f"{counted(int((~seen).sum()), 'prompt')} without a sample of these steps")
    names = tuple(name for name, some in zip(log.prompts, seen, strict=True) if some)
    return SampleCounts(names, correct[seen], samples[seen], rewards, tuple(notes))
