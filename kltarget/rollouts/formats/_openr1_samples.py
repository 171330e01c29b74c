"""Data sets laid out as OpenR1's: the generations of a problem, and which of them are correct."""

from __future__ import annotations

from kltarget._core.file_kinds import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts.formats._evaluation import Samples, texts_in, written_by_evaluator

# By Math-Verify, by a language model where that failed; and how many of all are correct.
_JUDGED = ("correctness_math_verify", "correctness_llama", "correctness_count")


def _samples(row: Row) -> Samples:
    metrics = {name: entries.parsed(row[name]) for name in _JUDGED if name in row}
    return Samples(
        entries.prompt_in(row, "problem"),
        texts_in(row["generations"], "generations"),
        {name: entry for name, entry in metrics.items() if entry is not None},
        group=row.get("uuid"),
    )


for _name in _JUDGED:
    written_by_evaluator(
        "openr1", "parquet", "arrow", "jsonl", columns={"problem", "generations", _name}
    )(_samples)
