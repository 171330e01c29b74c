"""How the entries of a row become text and numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kltarget._core.rows import as_number
from kltarget.rollouts._rollout import NAN, BadRow
from kltarget.tasks._raw_table import as_reward


def number_in(row: Mapping[str, Any], column: str) -> float:
    """A number of a row, NaN if it is missing."""
    entry = row.get(column)
    if type(entry) is float:
        return entry
    if entry is None or entry == "":
        return NAN
    try:
        return as_number(entry)
    except ValueError as error:
        # Text files spell missing numbers in many ways, which all are NaN to float().
        if str(entry).strip().lower() == "nan":
            return NAN
        raise BadRow(f"column {column!r}: {error}") from None


def reward_in(row: Mapping[str, Any], column: str) -> float:
    try:
        return as_reward(row.get(column))
    except ValueError as error:
        raise BadRow(f"column {column!r}: no reward: {error}") from None


def whole_in(row: Mapping[str, Any], column: str) -> int | None:
    """A whole number of a row, None if it is missing."""
    entry = row.get(column)
    if type(entry) is int:
        return entry
    value = number_in(row, column)
    if math.isnan(value):
        return None
    if not value.is_integer() or abs(value) > 2**53:
        raise BadRow(f"column {column!r}: {value:g} is not a whole number")
    return int(value)


def total(values: Sequence[float] | None, mask: Sequence[Any] | None = None) -> float:
    """Sum of per-token numbers where the mask says so; NaN if one is missing."""
    if values is None or len(values) == 0:
        return NAN
    kept = values if mask is None else [x for x, on in zip(values, mask, strict=True) if on]
    return NAN if any(x is None for x in kept) else math.fsum(kept)


def mean(values: Sequence[float] | None, mask: Sequence[Any] | None = None) -> float:
    """As ``total``, divided by how many there are."""
    count = len(values or ()) if mask is None else sum(map(bool, mask))
    return total(values, mask) / count if count else NAN


def prompt_in(row: Mapping[str, Any], column: str) -> str:
    """The text of a prompt; of a chat its messages, with roles if there are several."""
    entry = _given(row, column)
    return entry if type(entry) is str else _chat(entry) or _json(entry)


def completion_in(row: Mapping[str, Any], column: str) -> str:
    """The text of a completion; of a chat what the assistant says in it."""
    entry = _given(row, column)
    if type(entry) is str:
        return entry
    return assistant_text(entry) if is_chat(entry) else _json(entry)


def _given(row: Mapping[str, Any], column: str) -> Any:
    entry = row.get(column)
    if entry is None:
        raise BadRow(f"column {column!r}: the entry is empty")
    return entry


def is_chat(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) > 0
        and all(isinstance(message, dict) and "role" in message for message in entry)
    )


def split_chat(messages: list[dict[str, Any]]) -> tuple[str, str]:
    """A conversation as prompt, all that comes before the assistant speaks, and completion."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise BadRow("nobody called 'assistant' says anything in this conversation")
    start = roles.index("assistant")
    return _chat(messages[:start]), assistant_text(messages[start:])


def assistant_text(messages: list[dict[str, Any]]) -> str:
    said = [message for message in messages if message["role"] == "assistant"] or messages
    return "\n".join(content_text(message.get("content")) for message in said)


def content_text(content: Any) -> str:
    """The text of a message: a string, or parts of which some have text."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, dict):
        return content_text(content.get("text"))
    return "".join(map(content_text, content))


def _chat(entry: Any) -> str:
    if not is_chat(entry):
        return ""
    said = [(message["role"], content_text(message.get("content"))) for message in entry]
    said = [(role, text) for role, text in said if text]
    if len(said) == 1:
        return said[0][1]
    return "\n".join(f"{role}: {text}" for role, text in said)


def _json(entry: Any) -> str:
    return json.dumps(entry, ensure_ascii=False, default=str)
