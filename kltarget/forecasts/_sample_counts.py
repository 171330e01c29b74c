"""From logs and tables of a base model's samples to how often each prompt was solved."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from kltarget import evidence
from kltarget._core.words import counted
from kltarget.rollouts import read_rollouts


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
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


def counts_of(samples: Any, threshold: float | None, columns: Any) -> Counts:
    """The counts of a table of counts, or of a log whose rewards tell right from wrong."""
    if _is_table(samples, columns):
        if threshold is not None:
            raise ValueError("threshold is of rewards: a table of counts says what was right")
        frame = evidence.read_counts(samples, columns=columns)
        return Counts(
            tuple(map(str, frame["prompt"])),
            frame["correct"].to_numpy(),
            frame["samples"].to_numpy(),
            np.array([0.0, 1.0]),
            (),
        )
    frame = samples
    if isinstance(samples, (str, os.PathLike)) or not hasattr(samples, "columns"):
        frame = read_rollouts(samples, full_text=False, columns=columns)
    return _counts_of_log(evidence.log_of(frame), frame, threshold)


def _is_table(samples: Any, columns: Any) -> bool:
    """Whether these are counts; of files by their first line."""
    names = getattr(samples, "columns", None)
    if names is None and isinstance(samples, (str, os.PathLike)) and os.path.isfile(samples):
        with open(samples, encoding="utf-8", errors="replace") as file:
            names = file.readline(100_000)
    if names is None:
        return False
    return all((columns or {}).get(x, x) in names for x in ("correct", "samples"))


def _counts_of_log(log: evidence.Log, frame: Any, threshold: float | None) -> Counts:
    notes = [*frame.attrs.get("notes", ()), *log.notes]
    chosen = np.ones(len(log), bool)
    if len(log.steps) > 1:
        # A policy in training is the base model before its first step alone.
        chosen = log.time == 0
        notes.append(
            f"the first of {len(log.steps):,} logged steps is taken for the base model, "
            f"{counted(int(chosen.sum()), 'sample')}"
        )
    values = np.unique(log.reward)
    if threshold is None:
        threshold = evidence.evident_threshold(log)
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
        notes.append(f"{counted(int((~seen).sum()), 'prompt')} without a sample of the first step")
    names = tuple(name for name, some in zip(log.prompts, seen, strict=True) if some)
    return Counts(names, correct[seen], samples[seen], rewards, tuple(notes))


def shaped(rewards: np.ndarray, scale: float, bounds: tuple[float, float] | None) -> np.ndarray:
    """Rewards as a recipe uses them."""
    scaled = scale * rewards
    return np.clip(scaled, *bounds) if bounds else scaled


def describe(counts: Counts) -> str:
    """How many prompts and samples there are."""
    least, most = int(counts.samples.min()), int(counts.samples.max())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{counted(len(counts.prompts), 'prompt')}, {each} samples each"
