"""The tokens of a logged completion and of its prompt, as the trainer had them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kltarget._core import column_names as usual
from kltarget._core.checks import ArgumentError
from kltarget._core.file_kinds import Row
from kltarget._core.words import counted
from kltarget.rollouts._entries import assistant_text, content_text, is_chat, prompt_in
from kltarget.rollouts._rollout import BadRow

Eos = Literal["auto", "always", "never"]

COMPLETION_IDS = (
    *("completion_ids", "completion_token_ids", "response_ids", "response_token_ids"),
    *("output_ids", "response_tokens", "completion_tokens", "token_ids"),
)
PROMPT_IDS = ("prompt_ids", "prompt_token_ids", "prompt_tokens", "input_ids")
_MASKS = ("token_loss_mask", "loss_mask")
_REASONS = ("finish_reason", "stop_reason")
_CUT = ("truncated", "is_truncated")
# What frames of rollouts have in place of the middle of a long text.
_ABRIDGED = re.compile(r" … [\d,]+ characters, [0-9a-f]{16} … ")
_OF_LENGTH = ("length", "max_tokens", "max_length", "max_new_tokens")


@dataclasses.dataclass(frozen=True)
class Scored:
    """A sequence of tokens, and which of them are summed over."""

    tokens: list[int]
    counts: list[bool]


class LoggedTokens:
    """Makes tokens of rows, and keeps count of how.

    Args:
        tokenizer: of transformers.
        columns: the columns of prompts and completions, if they are not called as usual.
        eos: whether the token that ends a completion is appended to texts.
        chat_template: another template than the tokenizer's; ``"none"`` for none.
        max_completion_length: texts of so many tokens were cut, and have no end.
    """

    def __init__(
        self,
        tokenizer: Any,
        columns: Mapping[str, str],
        eos: Eos,
        chat_template: str | None,
        max_completion_length: int | None,
    ) -> None:
        self.tokenizer, self.columns, self.eos = tokenizer, columns, eos
        self.template, self.longest = chat_template, max_completion_length
        self.how: Counter[str] = Counter()

    def __call__(self, row: Row) -> Scored:
        """The tokens of a row.

        Raises:
            BadRow: it has no completion, or one that cannot be made of tokens.
        """
        ids = _ids(row, COMPLETION_IDS)
        mask = _ids(row, _MASKS)
        if ids is None or mask is None or len(mask) != len(ids):
            mask = None
        elif not mask[0]:
            self.how["masked"] += 1
            return self._checked(ids, [bool(x) for x in mask])
        # A first token that counts is the completion's: the prompt is not among them.
        before = _ids(row, PROMPT_IDS) if ids is not None else None
        prompt = before if before is not None else self._prompt(row)
        if ids is not None:
            self.how["ids"] += 1
        else:
            ids = self._completion(row)
        counts = [True] * len(ids) if mask is None else [bool(x) for x in mask]
        return self._checked([*prompt, *ids], [False] * len(prompt) + counts)

    def _checked(self, tokens: list[int], counts: list[bool]) -> Scored:
        if counts and counts[0]:
            raise BadRow("the prompt has no tokens, so that nothing says how likely the first is")
        if not any(counts):
            raise BadRow("no token of the completion counts")
        return Scored(tokens, counts)

    def _entry(self, row: Row, role: str, known: Sequence[str]) -> tuple[str, Any]:
        column = self.columns.get(role) or usual.first_called(row, known)
        if column is None or column not in row:
            given = f"{column!r}" if column else f"no column of {role}s"
            how = f"columns={{'{role}': …}}, --columns {role}=…"
            raise BadRow(f"{given} is not in the log; say which column it is: {how}")
        return column, row[column]

    def _prompt(self, row: Row) -> list[int]:
        column, entry = self._entry(row, "prompt", usual.PROMPT_NAMES)
        entry = _as_chat(entry)
        if is_chat(entry) and self.template != "none":
            return self._templated(entry)
        if is_chat(entry):
            entry = prompt_in({column: entry}, column)
            self.how["flat"] += 1
        if not isinstance(entry, str):
            raise BadRow(f"column {column!r}: the prompt is neither a text nor messages")
        self.how["plain"] += 1
        return list(self.tokenizer(entry)["input_ids"])

    def _templated(self, messages: Any) -> list[int]:
        messages = [{k: x for k, x in message.items() if x is not None} for message in messages]
        for message in messages:
            message["content"] = content_text(message.get("content"))
        if self.template is None and getattr(self.tokenizer, "chat_template", None) is None:
            raise ArgumentError(
                "{}: prompts are chats, and the tokenizer has no chat template: give a file with "
                "the trainer's, or none to take their texts",
                "chat_template",
            )
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            made = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            )
        except TemplateSyntaxError as error:
            why = f"{{}}: line {error.lineno} of the template: {error.message}"
            raise ArgumentError(why, "chat_template") from None
        except (TemplateError, TypeError) as error:
            # Templates raise at chats that are not as they want them, such as in their roles.
            raise BadRow(f"the chat template does not take the prompt: {error}") from None
        self.how["chat"] += 1
        return list(made["input_ids"])

    def _completion(self, row: Row) -> list[int]:
        column, entry = self._entry(row, "completion", usual.COMPLETION_NAMES)
        entry = _as_chat(entry)
        if is_chat(entry):
            if len(entry) > 1:
                raise BadRow(f"column {column!r}: several messages, whose template is not logged")
            entry = assistant_text(entry)
        if not isinstance(entry, str):
            raise BadRow(f"column {column!r}: the completion is no text")
        if _ABRIDGED.search(entry):
            raise BadRow(f"column {column!r}: the text is abridged: read_rollouts(full_text=True)")
        self.how["text"] += 1
        ids = list(self.tokenizer(entry, add_special_tokens=False)["input_ids"])
        return [*ids, self.tokenizer.eos_token_id] if self._ends(row, ids) else ids

    def _ends(self, row: Row, ids: list[int]) -> bool:
        """Whether the token that ends a completion is to be appended to its text's."""
        end = self.tokenizer.eos_token_id
        if self.eos == "never" or end is None or ids[-1:] == [end]:
            return False
        ends = True if self.eos == "always" else self._logged_end(row)
        if ends is None:
            ends = self.longest is None or len(ids) < self.longest
            self.how["assumed" if self.longest is None else "by length"] += 1
        self.how["ended"] += ends
        return ends

    def _logged_end(self, row: Row) -> bool | None:
        reason = next((row[x] for x in _REASONS if isinstance(row.get(x), str)), None)
        if reason:
            return reason.lower() not in _OF_LENGTH
        cut = next((row[x] for x in _CUT if isinstance(row.get(x), bool)), None)
        return None if cut is None else not cut

    def notes(self) -> list[str]:
        """How tokens came about, in lines."""
        how, notes = self.how, []
        if how["masked"]:
            notes.append(f"tokens and mask as logged in {counted(how['masked'], 'row')}")
        if how["ids"]:
            notes.append(f"completions by their logged tokens in {counted(how['ids'], 'row')}")
        if how["chat"]:
            whose = "the tokenizer's chat template" if self.template is None else "the one given"
            rows = counted(how["chat"], "prompt")
            notes.append(f"{rows} by {whose}, with a generation prompt")
        if how["flat"]:
            notes.append(f"{counted(how['flat'], 'chat')} as plain text, without a chat template")
        if how["text"]:
            notes.append(f"{counted(how['text'], 'completion')} by tokenising their texts")
            why = ""
            if how["assumed"]:
                why = ": the log does not say which were cut; the trainer's maximal length would"
            elif how["by length"]:
                why = f": those shorter than {self.longest} tokens"
            notes.append(f"the token that ends a completion appended to {how['ended']:,}{why}")
        return notes


def _ids(row: Row, names: Sequence[str]) -> list[int] | None:
    """Token ids, or zeros and ones, in the first of the columns that has them."""
    for name in names:
        entry: Any = row.get(name)
        entry = entry.tolist() if hasattr(entry, "tolist") else entry
        if isinstance(entry, list) and len(entry) == 1 and isinstance(entry[0], list):
            entry = entry[0]
        if isinstance(entry, list) and entry and all(isinstance(x, int | float) for x in entry):
            if not all(float(x).is_integer() for x in entry):
                raise BadRow(f"column {name!r}: not all of it are whole numbers")
            return [int(x) for x in entry]
    return None


def _as_chat(entry: Any) -> Any:
    """A text that spells messages, or an array of them, as a list; anything else as it is."""
    if hasattr(entry, "tolist"):
        return entry.tolist()
    if isinstance(entry, str) and entry.lstrip().startswith("[{"):
        try:
            read = json.loads(entry)
        except ValueError:
            return entry
        return read if is_chat(read) else entry
    return entry
