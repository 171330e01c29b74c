"""What lighteval writes with ``--save-details``, by all versions."""

from __future__ import annotations

from typing import Any

from kltarget._core.file_kinds import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import NAN, BadRow, UnusedRow
from kltarget.rollouts.formats._evaluation import Samples, texts_in, written_by_evaluator

_KINDS = ("parquet", "arrow", "jsonl")


# These are the columns of the files; the documentation calls them as the next format does.
@written_by_evaluator("lighteval", *_KINDS, columns={"doc", "model_response", "metric"})
def _details(row: Row) -> Samples:
    return _samples(row["doc"], row["model_response"], row["metric"])


@written_by_evaluator("lighteval", *_KINDS, columns={"__doc__", "__model_response__", "__metric__"})
def _documented_details(row: Row) -> Samples:
    return _samples(row["__doc__"], row["__model_response__"], row["__metric__"])


def _samples(doc: Row, response: Row, metrics: Any) -> Samples:
    asked = response if response.get("input") else {"input": doc.get("query")}
    completions = texts_in(response.get("text"), "text")
    if not completions and response.get("logprobs"):
        raise UnusedRow("log-likelihoods of given answers were asked for, no completion")
    tokens = response.get("output_tokens") or []
    counted = len(tokens) == len(completions)
    return Samples(
        entries.prompt_in(asked, "input"),
        completions,
        _named(metrics),
        num_tokens=[float(len(x)) if isinstance(x, list) else NAN for x in tokens]
        if counted
        else (),
    )


@written_by_evaluator("lighteval", *_KINDS, columns={"full_prompt", "predictions", "metrics"})
def _old_details(row: Row) -> Samples:
    """Details before version 0.11."""
    completions = entries.parsed(row["predictions"])
    if _are_numbers(completions):
        raise UnusedRow("log-likelihoods of given answers were asked for, no completion")
    return Samples(
        entries.prompt_in(row, "full_prompt"),
        texts_in(completions, "predictions"),
        _named(row["metrics"]),
    )


def _are_numbers(found: Any) -> bool:
    """Whether a list is of log-likelihoods, each perhaps with whether it is the greedy one."""
    if not isinstance(found, list) or not found:
        return False
    return all(isinstance(x[0] if isinstance(x, list) and x else x, int | float) for x in found)


def _named(metrics: Any) -> dict[str, Any]:
    """Metrics by name: Parquet has all names of a file in every row."""
    if not isinstance(metrics, dict):
        raise BadRow("the metrics are no entries by name")
    return {name: entry for name, entry in metrics.items() if entry is not None}
