"""What Inspect writes: samples in a JSON file, or one file each in an archive (``.eval``)."""

from __future__ import annotations

from typing import Any

from kltarget._core.file_kinds import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import NAN, UnusedRow
from kltarget.rollouts.formats._evaluation import Samples, written_by_evaluator

_ATTACHED = "attachment://"


@written_by_evaluator(
    "inspect", "eval", "jsonl", columns={"id", "epoch", "input", "target", "messages"}
)
def _samples(row: Row) -> Samples:
    # A sample that failed before it was answered has none.
    output = row.get("output") or {}
    choices = output.get("choices") or []
    attached = row.get("attachments") or {}
    usage = output.get("usage") or {}
    # Of several choices the tokens are those of all.
    tokens = entries.number_in(usage, "output_tokens") if len(choices) == 1 else NAN
    return Samples(
        entries.prompt_in({"input": _whole(row["input"], attached)}, "input"),
        [entries.message_text(_whole(choice["message"], attached)) for choice in choices],
        _metrics(row.get("scores") or {}),
        group=row["id"],
        num_tokens=[tokens] * len(choices),
        # A score is of the output's first choice.
        judges_first=True,
        model=output.get("model"),
    )


def _metrics(scores: Row) -> dict[str, Any]:
    """The value of every score, and the parts of those that have several by name."""
    metrics = {}
    for name, score in scores.items():
        value = score.get("value") if isinstance(score, dict) else score
        if isinstance(value, dict):
            metrics |= {f"{name}/{part}": amount for part, amount in value.items()}
        else:
            metrics[name] = value
    return metrics


def _whole(entry: Any, attached: Row) -> Any:
    """An input or a message with the texts that stand apart from it."""
    if isinstance(entry, str) and entry.startswith(_ATTACHED):
        name = entry.removeprefix(_ATTACHED)
        if name not in attached:
            raise UnusedRow("a text is in an attachment that is not in the sample")
        return attached[name]
    if isinstance(entry, list):
        return [_whole(part, attached) for part in entry]
    if isinstance(entry, dict):
        return {name: _whole(part, attached) for name, part in entry.items()}
    return entry
