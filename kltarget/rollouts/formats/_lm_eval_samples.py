"""What the LM evaluation harness writes with ``--log_samples``."""

from __future__ import annotations

import json
from typing import Any

from kltarget._core.file_kinds import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import BadRow, UnusedRow
from kltarget.rollouts.formats._evaluation import Samples, written_by_evaluator

# What rows of versions that do not list their metrics have beside them.
_NO_METRICS = frozenset(
    {
        *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
        *("doc_hash", "prompt_hash", "target_hash"),
    }
)


@written_by_evaluator(
    "lm-eval",
    "jsonl",
    columns={"doc", "doc_id", "arguments", "resps", "filtered_resps"},
    variant="filter",
)
def _samples(row: Row) -> Samples:
    requests = row["resps"]
    if any(isinstance(said, list) for request in requests for said in request):
        raise UnusedRow("log-likelihoods of given answers were asked for, no completion")
    if len(requests) > 1:
        raise UnusedRow("there are several requests, whose metrics are not told apart")
    completions = list(map(str, requests[0])) if requests else []
    filtered = row["filtered_resps"]
    # Where a task has no filter of its own, metrics are of the first of several responses.
    first = row.get("filter") == "none" and filtered[:1] == completions[:1]
    named = row.get("metrics")
    metrics = named if isinstance(named, list) else [x for x in row if x not in _NO_METRICS]
    return Samples(
        _prompt(row["arguments"]),
        completions,
        {name: _entry(row.get(name), len(completions)) for name in metrics},
        group=row["doc_id"],
        judges_first=first,
    )


def _entry(entry: Any, count: int) -> Any:
    """A metric; the numbers that one over all documents is made of are no list of completions'."""
    return tuple(entry) if isinstance(entry, list) and len(entry) != count else entry


def _prompt(arguments: Any) -> str:
    """The first argument of the first request; a chat is a list of messages in JSON."""
    request = arguments["gen_args_0"]["arg_0"] if isinstance(arguments, dict) else arguments[0][0]
    text = request[0] if isinstance(request, list) and len(request) == 1 else request
    if not isinstance(text, str):
        raise BadRow("column 'arguments': the first is no text")
    if text.startswith('[{"role"'):
        try:
            return entries.prompt_in({"prompt": json.loads(text)}, "prompt")
        except json.JSONDecodeError:
            return text
    return text
