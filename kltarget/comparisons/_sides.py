"""The two sides of a comparison: how often each prompt was solved before, and after."""

from __future__ import annotations

import dataclasses

import numpy as np

from kltarget._core.checks import ArgumentError
from kltarget._core.words import counted
from kltarget.evidence import SampleCounts


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """Right and wrong samples.

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

    @classmethod
    def of(cls, counts: SampleCounts) -> Side:
        """Of rewards of several levels those of a wrong and a right sample are 0 and 1."""
        if counts.correct is None:
            raise ArgumentError(
                "{} is needed: rewards do not show which samples are right; give the least reward "
                "of a right one",
                "threshold",
            )
        rewards, notes = counts.rewards, counts.notes
        if counts.levels is not None:
            rewards = np.array([0.0, 1.0])
            notes = (*notes, "laws are those of reward 1 for right and 0 for wrong samples")
        return cls(counts.prompts, counts.correct, counts.samples, rewards, notes)

    def some(self, rows: list[int]) -> Side:
        """These prompts, in this order."""
        return dataclasses.replace(
            self,
            prompts=tuple(self.prompts[i] for i in rows),
            correct=self.correct[rows],
            samples=self.samples[rows],
        )

    def __str__(self) -> str:
        least, most = int(self.samples.min()), int(self.samples.max())
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return f"{counted(len(self.prompts), 'prompt')}, {each} samples each"


def paired(
    before: Side, after: Side, labels: tuple[str, str]
) -> tuple[Side, Side, bool, list[str]]:
    """Both with the prompts that they share, in one order; as they are where they share none."""
    place = {name: i for i, name in enumerate(after.prompts)}
    rows = [i for i, name in enumerate(before.prompts) if name in place]
    if not rows:
        note = (
            "no prompt is in both: they are taken for samples of the same kind of prompts, and "
            "nothing is said of single ones"
        )
        return before, after, False, [note]
    columns = [place[before.prompts[i]] for i in rows]
    alone = (len(before.prompts) - len(rows), len(after.prompts) - len(rows))
    notes = [
        f"{counted(number, 'prompt')} only {side}: left out"
        for number, side in zip(alone, labels, strict=True)
        if number
    ]
    return before.some(rows), after.some(columns), True, notes


def title(before: Side, after: Side, paired: bool, labels: tuple[str, str]) -> str:
    """How many prompts and samples there are."""
    first, second = labels
    if not paired:
        return f"{before} {first}; {after} {second}, unpaired"
    if (before.samples == after.samples).all():
        return f"{before}, {first} and {second}"
    return f"{before} {first} and {str(after).partition(', ')[2]} {second}"
