"""What Tunix writes with agentic learners."""

from __future__ import annotations

import ast
import json
import pathlib
from typing import Any

from kltarget._core.file_kinds import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import BadRow, Rollout
from kltarget.rollouts.formats._format import written_as


@written_as(
    "tunix",
    "csv",
    columns={"conversation_text", "trajectory_reward"},
    notes=("no steps: groups are in the order of training",),
)
def _read_tunix(row: Row, path: pathlib.Path) -> Rollout:
    conversation = _literal(row, "conversation_text")
    if not entries.is_chat(conversation):
        raise BadRow("column 'conversation_text': not a list of messages with roles")
    prompt, completion = entries.split_chat(conversation)
    mask = _literal(row, "conversation_masks")
    if not row.get("group_id"):
        raise BadRow("column 'group_id': the entry is empty")
    return Rollout(
        prompt,
        completion,
        reward=entries.reward_in(row, "trajectory_reward"),
        logp=entries.log_total(_literal(row, "old_logprobs"), mask),
        num_tokens=float(sum(map(bool, mask or ()))),
        group=(path.as_posix(), row["group_id"]),
    )


def _literal(row: Row, column: str) -> Any:
    """A nested value that was written as Python writes it, or as JSON; it is never run."""
    entry = row.get(column)
    if not isinstance(entry, str) or not entry.strip():
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(entry)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    raise BadRow(f"column {column!r}: neither a Python literal nor JSON")
