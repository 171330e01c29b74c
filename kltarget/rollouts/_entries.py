"""How the entries of a row become text and numbers."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kltarget._core.file_kinds import Row
from kltarget._core.rows import as_number
from kltarget.rollouts._rollout import NAN, ROUNDING, BadRow
from kltarget.tasks._raw_table import as_reward

# How text files spell a missing number.
_NO_NUMBER = ("", "nan", "none", "null", "na", "n/a", "<na>")
# The entry of a row that was split which is common to its parts.
ROW_ITSELF = "(row)"
# What trainers write for tokens that do not count, such as those of an environment.
PADDING = 1.0
# Above this a float no longer has all integers.
MOST_WHOLE = 2**53
# Longer completions do not recur, so that their tokens say nothing of what else may follow.
_MOST_TOKENS = 256


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
        if str(entry).strip().lower() in _NO_NUMBER:
            return NAN
        raise BadRow(f"column {column!r}: {error}") from None


def reward_in(row: Mapping[str, Any], column: str) -> float:
    """A reward, NaN where none was given."""
    entry = row.get(column)
    if isinstance(entry, list) and entry and all(isinstance(x, int | float) for x in entry):
        return math.fsum(entry)  # one per token
    if entry is None or entry != entry or str(entry).strip().lower() in _NO_NUMBER:
        return NAN
    try:
        return as_reward(entry)
    except ValueError as error:
        raise BadRow(f"column {column!r}: no reward: {error}") from None


def named_rewards(row: Mapping[str, Any], column: str) -> dict[str, float] | None:
    """The rewards by name that are the entry of a column; None if it is no such entry."""
    entry = row.get(column)
    if not isinstance(entry, dict) or not entry:
        return None
    return {str(name): reward_in(entry, name) for name in entry}


def numbers_among(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, float]:
    """The numbers in some columns; what is text, or no number, is left out."""
    found = {}
    for name in columns:
        entry = row.get(name)
        if isinstance(entry, list | dict):
            continue
        try:
            value = as_reward(entry)
        except ValueError:
            continue
        found[name] = value
    return found


def whole_in(row: Mapping[str, Any], column: str) -> int | None:
    """A whole number of a row, None if it is missing."""
    entry = row.get(column)
    if type(entry) is int and abs(entry) <= MOST_WHOLE:
        return entry
    value = number_in(row, column)
    if math.isnan(value):
        return None
    if not value.is_integer() or abs(value) > MOST_WHOLE:
        raise BadRow(f"column {column!r}: {value:g} is not a whole number")
    return int(value)


def hashable(group: Any) -> str | int | None:
    """What names a group, None if nothing does."""
    if group is None or group == "" or group != group:
        return None
    return group if isinstance(group, str | int) else json.dumps(group, default=str)


def total(values: Sequence[float] | None, mask: Sequence[Any] | None = None) -> float:
    """Sum of per-token numbers where the mask says so; NaN if one is missing."""
    if values is None or len(values) == 0:
        return NAN
    kept = values if mask is None else [x for x, on in zip(values, mask, strict=True) if on]
    return NAN if any(x is None for x in kept) else math.fsum(kept)


def log_total(
    values: Sequence[float] | None, mask: Sequence[Any] | None = None, name: str = "logp"
) -> float:
    """As ``total``, of log-probabilities; those of +1 are padding and left out."""
    if values is None or len(values) == 0:
        return NAN
    for i, x in enumerate(values):
        if x is not None and x > ROUNDING and x != PADDING and (mask is None or mask[i]):
            why = "is no log-probability: it must be 0 or less"
            raise BadRow(f"{name}: token {i + 1} has {x:g}, which {why}")
    kept = [x for x in values if x != PADDING]
    if mask is not None:
        pairs = zip(values, mask, strict=True)
        kept = [x for x, on in pairs if on and x != PADDING]
    return total(kept)


def num_padding(values: Any) -> int:
    """How many tokens of a list are padding."""
    return sum(x == PADDING for x in values) if isinstance(values, list) else 0


def tokens_in(tokens: Any, ref_logps: Any, mask: Sequence[Any] | None = None) -> dict[str, Any]:
    """A completion's tokens with their log-probabilities by the reference, if both are known.

    Either may be of all tokens or of those alone that the mask says were sampled.
    """
    if not isinstance(tokens, list) or not isinstance(ref_logps, list):
        return {}
    if mask is not None:
        tokens, ref_logps = (
            list(itertools.compress(x, mask)) if len(x) == len(mask) else x
            for x in (tokens, ref_logps)
        )
    if not len(tokens) == len(ref_logps) <= _MOST_TOKENS:
        return {}
    kept = [
        (x, y) for x, y in zip(tokens, ref_logps, strict=True) if y is not None and y != PADDING
    ]
    # A null in the middle is a token that is not known.
    if not kept or len(kept) + num_padding(ref_logps) < len(tokens):
        return {}
    ids, logps = zip(*kept, strict=True)
    return {"tokens": np.array(ids), "ref_token_logps": np.array(logps, np.float64)}


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


def chat_in(row: Row, column: str) -> tuple[str, str]:
    """Prompt and completion of a conversation."""
    entry = row.get(column)
    if not isinstance(entry, list) or not is_chat(entry):
        raise BadRow(f"column {column!r}: not a list of messages with roles")
    return split_chat(entry)


def split_row(row: Row, prompt: str, completion: str, position: int) -> list[Row]:
    """A row per element where the entry of a completion is a list of several.

    Lists of the same length beside it have an entry per element, other entries are common to all.
    If the prompt is, the completions are one group.
    """
    said = row.get(completion)
    if isinstance(said, str) and said.startswith("["):
        row = _with_literals(row, completion)
        said = row.get(completion)
    if not isinstance(said, list) or not _is_several(said):
        return [row]
    split = [
        name
        for name, entry in row.items()
        if isinstance(entry, list) and len(entry) == len(said) and not is_chat(entry)
    ]
    common = {} if prompt in split else {ROW_ITSELF: position}
    return [{**row, **{name: row[name][i] for name in split}, **common} for i in range(len(said))]


def _is_several(entry: Any) -> bool:
    """Whether an entry is several completions, not one of them."""
    if not isinstance(entry, list) or not entry or is_chat(entry):
        return False
    return all(isinstance(x, str) for x in entry) or all(map(is_chat, entry))


def _with_literals(row: Row, completion: str) -> Row:
    """A row of texts that spell lists, as a text file has to, with lists for them.

    One completion may look like a list too, so another column has to have as many numbers.
    """
    read = {name: parsed(entry) for name, entry in row.items()}
    lists = {name: entry for name, entry in read.items() if isinstance(entry, list)}
    size = len(lists.get(completion, ()))
    numbers = any(
        len(entry) == size and all(isinstance(x, int | float) for x in entry)
        for name, entry in lists.items()
        if name != completion
    )
    return {**row, **lists} if size and numbers else row


def parsed(entry: Any) -> Any:
    """What a text that spells a list spells; anything else as it is."""
    if not isinstance(entry, str) or not entry.startswith("["):
        return entry
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return parse(entry)
    return entry


def split_chat(messages: list[dict[str, Any]]) -> tuple[str, str]:
    """A conversation as prompt, all that comes before the assistant speaks, and completion."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise BadRow("nobody called 'assistant' says anything in this conversation")
    start = roles.index("assistant")
    return _chat(messages[:start]), assistant_text(messages[start:])


def assistant_text(messages: list[dict[str, Any]]) -> str:
    said = [message for message in messages if message["role"] == "assistant"] or messages
    return "\n".join(map(message_text, said))


def message_text(message: Any) -> str:
    """What a message says: its text, and the tools that it calls."""
    if not isinstance(message, dict):
        return content_text(message)
    texts = [content_text(message.get("content"))]
    calls = [*(message.get("tool_calls") or ()), message.get("function_call")]
    texts += [_call_text(call) for call in calls if call]
    return "\n".join(filter(None, texts))


def _call_text(call: Any) -> str:
    """The name and the arguments of a call, whichever way they are nested."""
    called = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(called, dict):
        return _json(called)
    arguments = called.get("arguments", called.get("input", called.get("parameters")))
    arguments = arguments if isinstance(arguments, str) else _json(arguments)
    return f"{called.get('name', '')}({arguments})"


def content_text(content: Any) -> str:
    """The text of a message: a string, or parts of which some have text."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, dict):
        if content.get("type") in ("tool_use", "tool_call", "function_call"):
            return _call_text(content)
        return content_text(content.get("text"))
    return "".join(map(content_text, content))


def _chat(entry: Any) -> str:
    if not is_chat(entry):
        return ""
    said = [(message["role"], message_text(message)) for message in entry]
    said = [(role, text) for role, text in said if text]
    if len(said) == 1:
        return said[0][1]
    return "\n".join(f"{role}: {text}" for role, text in said)


def _json(entry: Any) -> str:
    return json.dumps(entry, ensure_ascii=False, default=str)
