"""What a format of logs is, and what several of them have in common."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from kltarget._core.file_kinds import Row
from kltarget._core.rows import shown
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import NAN, BadRow, Rollout

# What canonical columns are called, if they are not given other names.
AS_CALLED = {
    name: name
    for name in (
        *("prompt", "completion", "answer", "reward", "step"),
        *("advantage", "group_id", "logp", "ref_logp", "num_tokens"),
    )
}
# Columns that ``read_rollouts`` itself makes up; a file that has them is one of its own.
MADE_UP = frozenset({"prompt_id", "sample_id", "group_id", "source"})

_PER_TOKEN = (
    (
        *("token_logps", "token_logprobs", "per_token_logps", "old_per_token_logps"),
        *("sampling_per_token_logps", "logps", "logprobs", "log_probs", "old_log_probs"),
    ),
    (
        *("ref_token_logps", "ref_token_logprobs", "ref_per_token_logps", "ref_logps"),
        *("ref_logprobs", "ref_log_probs", "reference_logprobs"),
    ),
)
_TOKENS = (
    *("token_ids", "completion_ids", "completion_token_ids", "response_ids"),
    *("response_token_ids", "output_ids", "tokens", "completion_tokens", "response_tokens"),
)
LISTED = frozenset({*_PER_TOKEN[0], *_PER_TOKEN[1], *_TOKENS})
"""Columns of which lists are of a completion's tokens."""
IDS_ALONE = "texts are token ids, separated by spaces: the file has no others"


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        kinds: the extensions it comes in, as ``kind_of`` calls them.
        columns: the columns it is known by.
        read: the rollout of a row in a file.
        step_pattern: where a file's path has the step of the rows that do not say theirs.
        grouping: where rows do not name their group: whether groups are consecutive blocks, or all
            completions of one prompt at one step.
        notes: what its users should know.
        without: columns of which it has none.
        shaped: whether the rewards are logged as the trainer scaled and cut them.
        completion: the column whose lists are several completions, and
        prompt: that of their prompts.
        guessed: whether which columns are rewards is to be told by the advantages.
        apart: whether what names a group says of which files it is.
        renamed: roles, and the columns that were taken for them.
        samples: of logs of evaluations, what a row holds.
        variant: the column of which only the rows of one entry are read: the others are the same
            completions, judged in another way.
        plain: the column of every role, if a row is no more than its entries in these.
        superseded: names of files, each with those of files beside it that say the same and more.
    """

    name: str
    kinds: tuple[str, ...]
    columns: frozenset[str]
    read: Callable[[Row, pathlib.Path], Rollout]
    step_pattern: str | None = None
    grouping: Literal["blocks", "prompt"] = "prompt"
    notes: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()
    shaped: bool = False
    prompt: str = "prompt"
    completion: str | None = None
    guessed: bool = False
    apart: bool = False
    renamed: tuple[tuple[str, str], ...] = ()
    samples: Callable[[Row], Any] | None = None
    variant: str | None = None
    plain: Mapping[str, str] | None = None
    superseded: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def rows(self, row: Row, position: int) -> list[Row]:
        """The row, or one per completion if it has several."""
        if self.completion is None or type(row.get(self.completion)) is not list:
            text = row.get(self.completion or "")
            if not (isinstance(text, str) and text.startswith("[")):
                return [row]
        return entries.split_row(row, self.prompt, self.completion or "", position)

    def matches(self, kind: str | None, columns: Collection[str]) -> bool:
        present = frozenset(columns)
        return kind in self.kinds and self.columns <= present and not self.without & present

    def step_of(self, path: pathlib.Path) -> int | None:
        """The step that a file's path names, by what is nearest to the file."""
        name = path.as_posix().removesuffix(".gz")
        named = re.findall(self.step_pattern, name) if self.step_pattern else []
        return int(named[-1]) if named else None


FORMATS: list[Format] = []
"""What ``written_as`` declared, the first that fits a file counts."""


def written_as(
    name: str, *kinds: str, columns: Collection[str], **settings: Any
) -> Callable[..., Any]:
    """Declares a format that the decorated function reads."""

    def declare(read: Callable[[Row, pathlib.Path], Rollout]) -> Any:
        FORMATS.append(Format(name, kinds, frozenset(columns), read, **settings))
        return read

    return declare


def log_probs_in(row: Row, columns: Mapping[str, str] = AS_CALLED) -> dict[str, Any]:
    """A practitioner's ``ref_logp`` and ``logp``, summed or per token, and ``num_tokens``."""
    ref_logp, logp, count = (
        entries.number_in(row, columns[name]) for name in ("ref_logp", "logp", "num_tokens")
    )
    tokens, ref_tokens = (
        next((row[name] for name in known if isinstance(row.get(name), list)), None)
        for known in _PER_TOKEN
    )
    padding = max(entries.num_padding(tokens), entries.num_padding(ref_tokens))
    listed = row.get("token_ids") or tokens or ref_tokens
    if math.isnan(count) and isinstance(listed, list):
        count = float(len(listed) - padding)
    listed = next((row[name] for name in _TOKENS if isinstance(row.get(name), list)), None)
    if math.isnan(ref_logp):
        ref_logp = entries.log_total(ref_tokens, name="ref_logp")
    if math.isnan(logp):
        logp = entries.log_total(tokens)
    return {
        "ref_logp": ref_logp,
        "logp": logp,
        "num_tokens": count,
        "padding": padding,
        **entries.tokens_in(listed, ref_tokens),
    }


def added_up(parts: Collection[float]) -> float:
    """As TRL adds rewards: NaN says that a reward does not apply, if not all of them are."""
    applying = [part for part in parts if not math.isnan(part)]
    return math.fsum(applying) if applying else NAN


def ids_as_text(tokens: Sequence[int]) -> str:
    if not isinstance(tokens, list):
        raise BadRow(f"{shown(tokens)} is not a list of token ids")
    return " ".join(map(str, tokens))
