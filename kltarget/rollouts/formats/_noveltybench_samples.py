"""What NoveltyBench writes: generations, then with their partition, then with its scores."""

from __future__ import annotations

from typing import Any

from kltarget._core.file_kinds import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import BadRow
from kltarget.rollouts.formats._evaluation import Samples, texts_in, written_by_evaluator


@written_by_evaluator(
    "noveltybench",
    "jsonl",
    columns={"id", "prompt", "generations"},
    superseded={"generations": ("partitions", "scores"), "partitions": ("scores",)},
)
def _samples(row: Row) -> Samples:
    """Answers are the classes of generations that say the same.

    A generation's quality is that of its class; what the benchmark calls its score is 0 where
    another of its class stands before it.
    """
    partition = row.get("partition") or []
    metrics: dict[str, Any] | None = None
    if row.get("partition_scores") or row.get("generation_scores"):
        metrics = {"generation_scores": row.get("generation_scores")}
        if row.get("partition_scores"):
            of_class = row["partition_scores"]
            if any(not 0 <= label < len(of_class) for label in partition):
                raise BadRow(f"partition: a class has none of the {len(of_class)} partition_scores")
            metrics = {"partition_scores": [of_class[label] for label in partition], **metrics}
    return Samples(
        entries.prompt_in(row, "prompt"),
        texts_in(row["generations"], "generations"),
        metrics,
        group=row["id"],
        answers=[str(label) for label in partition],
        model=row.get("model"),
    )
