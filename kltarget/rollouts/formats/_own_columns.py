"""Files of your own: canonical columns, others that are usual, or others that are named."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kltarget._core import column_names as usual
from kltarget._core.file_kinds import Row
from kltarget._core.rows import simple_name
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import Rollout
from kltarget.rollouts.formats._format import AS_CALLED, MADE_UP, Format, added_up, log_probs_in
from kltarget.rollouts.formats._reward_parts import rewards_among

USUAL = {
    "prompt": usual.PROMPT_NAMES,
    "completion": usual.COMPLETION_NAMES,
    "reward": usual.REWARD_NAMES,
    "step": usual.STEP_NAMES,
    "advantage": usual.ADVANTAGE_NAMES,
    "group_id": usual.GROUP_NAMES,
    "logp": usual.POLICY_NAMES,
    "ref_logp": usual.REFERENCE_NAMES,
    "num_tokens": usual.LENGTH_NAMES,
}
# In a file's name or that of its folder: those further up may be called anything.
_STEP = r"(?i).*(?:step|iter|iteration|completions)[_=-]?(\d+)[^/]*(?:/[^/]*)?$"


def generic(names: Mapping[str, str | Sequence[str]], present: Collection[str]) -> Format:
    """The format of canonical columns, of usual ones, or of others that were named.

    Args:
        names: the file's column of each canonical one; of the reward also several, to be added.
        present: the columns of the file.
    """
    names = {role: _as_spelled(given, present) for role, given in names.items()}
    columns = _columns(names, present)
    rewards = names.get("reward", columns["reward"])
    parts = () if isinstance(rewards, str) else tuple(rewards)
    prompt, completion = columns["prompt"], columns["completion"]
    by_id = prompt not in present and "prompt_id" in present
    chat = None
    if not {prompt, completion} & set(present) and not {"prompt", "completion"} & set(names):
        chat = usual.first_called(present, usual.CHAT_NAMES)
    named = [column for column in names.values() if isinstance(column, str)]
    # In other files, what is called the answer is more likely the right one than the completion's.
    answered = set(present) >= MADE_UP or "answer" in names
    logged = [name for name in present if name.startswith("reward/")]
    found = []
    if not parts and columns["reward"] not in present and not logged:
        found = rewards_among(present, columns["advantage"] in present, columns.values())
        # Where nothing is called a reward, this is one.
        accuracy = usual.first_called(present, ("accuracy", "acc"), columns.values())
        if not found and "reward" not in names and accuracy is not None:
            columns["reward"] = accuracy
    session = "session_id" in present and "turn" in present

    simple = not (chat or by_id or parts or logged or found or session or answered)
    simple = simple and {prompt, completion, columns["reward"]} <= set(present)

    def read(row: Row, path: pathlib.Path) -> Rollout:
        if by_id:
            row[prompt] = str(row["prompt_id"])
        amounts = {name: entries.reward_in(row, name) for name in parts}
        for name in logged:
            amounts[name.removeprefix("reward/")] = entries.number_in(row, name)
        amounts |= entries.numbers_among(row, found)
        several = None if parts else entries.named_rewards(row, columns["reward"])
        if several is not None:
            amounts |= several
            amount = added_up(several.values())
        elif parts or columns["reward"] not in present:
            amount = added_up(amounts.values()) if parts or logged or found else None
        else:
            amount = entries.reward_in(row, columns["reward"])
        if chat is None:
            asked, text = entries.prompt_in(row, prompt), entries.completion_in(row, completion)
        else:
            asked, text = entries.chat_in(row, chat)
        return Rollout(
            asked,
            text,
            reward=amount,
            step=entries.whole_in(row, columns["step"]),
            advantage=entries.number_in(row, columns["advantage"]),
            parts=amounts,
            group=entries.hashable(row.get(columns["group_id"], row.get(entries.ROW_ITSELF))),
            answer=_answer(row.get(columns["answer"]), text) if answered else None,
            answered=answered,
            session=entries.hashable(row.get("session_id")) if session else None,
            turn=entries.whole_in(row, "turn") if session else None,
            **log_probs_in(row, columns),
        )

    asking = {chat} if chat else {completion} if by_id else {completion, prompt}
    return Format(
        "generic",
        ("parquet", "arrow", "jsonl", "json", "csv", "tsv"),
        frozenset({*parts, *named, *asking}),
        read,
        step_pattern=_STEP,
        prompt=prompt,
        completion=completion,
        guessed=not parts,
        plain=columns if simple else None,
        renamed=tuple(
            (role, column)
            for role, column in columns.items()
            if role not in names and column in present and simple_name(column) != role
        ),
    )


def _as_spelled(given: str | Sequence[str], present: Collection[str]) -> Any:
    """Names as the file spells them, if it has them in another case."""
    if not isinstance(given, str):
        return [_as_spelled(name, present) for name in given]
    if given in present:
        return given
    return usual.first_called(present, [simple_name(given)]) or given


def _columns(names: Mapping[str, Any], present: Collection[str]) -> dict[str, str]:
    """The column of every role; where there is none, the role's own name."""
    columns = AS_CALLED | {role: name for role, name in names.items() if isinstance(name, str)}
    taken = {x for given in names.values() for x in ([given] if isinstance(given, str) else given)}
    for role, known in USUAL.items():
        if role in names:
            continue
        column = usual.first_called(present, known, taken)
        if column is not None:
            columns[role] = column
            taken.add(column)
    rewarded = columns["reward"] in present or not isinstance(names.get("reward", ""), str)
    if columns["completion"] not in present and rewarded and "completion" not in names:
        columns["completion"] = usual.first_called(present, ["answer"], taken) or "completion"
    return columns


def _answer(entry: Any, completion: str) -> str | None:
    """The answer that a file says; text files spell a missing one as an empty one."""
    missing = entry is None or (entry == "" and completion.strip())
    return None if missing else str(entry)
