"""Files of your own: canonical columns, or others that are named."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kltarget._core.rows import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import Rollout
from kltarget.rollouts.formats._format import AS_CALLED, MADE_UP, Format, added_up, log_probs_in


def generic(names: Mapping[str, str | Sequence[str]], present: Collection[str]) -> Format:
    """The format of canonical columns, or of others that were named.

    Args:
        names: the file's column of each canonical one; of the reward also several, to be added.
        present: the columns of the file.
    """
    columns = AS_CALLED | {k: v for k, v in names.items() if isinstance(v, str)}
    rewards = names.get("reward", "reward")
    parts = () if isinstance(rewards, str) else tuple(rewards)
    prompt, completion = columns["prompt"], columns["completion"]
    by_id = prompt not in present and "prompt_id" in present
    named = [column for column in names.values() if isinstance(column, str)]
    # In other files, what is called the answer is more likely the right one than the completion's.
    answered = set(present) >= MADE_UP or "answer" in names

    def read(row: Row, path: pathlib.Path) -> Rollout:
        if by_id:
            row[prompt] = str(row["prompt_id"])
        amounts = {name: entries.reward_in(row, name) for name in parts}
        for name in row:
            if name.startswith("reward/"):
                amounts[name.removeprefix("reward/")] = entries.number_in(row, name)
        if parts or columns["reward"] not in row:
            amount = added_up(amounts.values()) if amounts else None
        else:
            amount = entries.reward_in(row, columns["reward"])
        text = entries.completion_in(row, completion)
        return Rollout(
            entries.prompt_in(row, prompt),
            text,
            reward=amount,
            step=entries.whole_in(row, columns["step"]),
            advantage=entries.number_in(row, columns["advantage"]),
            parts=amounts,
            group=_hashable(row.get(columns["group_id"])),
            answer=_answer(row.get(columns["answer"]), text) if answered else None,
            answered=answered,
            **log_probs_in(row, columns),
        )

    return Format(
        "generic",
        ("parquet", "jsonl", "csv", "tsv"),
        frozenset({completion, *parts, *named} | (set() if by_id else {prompt})),
        read,
    )


def _hashable(group: Any) -> str | int | None:
    if group is None or group == "" or group != group:
        return None
    return group if isinstance(group, str | int) else json.dumps(group, default=str)


def _answer(entry: Any, completion: str) -> str | None:
    """The answer that a file says; text files spell a missing one as an empty one."""
    missing = entry is None or (entry == "" and completion.strip())
    return None if missing else str(entry)
