"""What verl writes into ``rollout_data_dir`` and ``validation_data_dir``."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from kltarget._core.file_kinds import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import NAN, Rollout
from kltarget.rollouts.formats._format import written_as


@written_as("verl", "jsonl", columns={"input", "output", "score"}, step_pattern=r"(\d+)\.\w+$")
def _read_verl(row: Row, path: pathlib.Path) -> Rollout:
    uid, mask = row.get("uid"), row.get("response_mask")
    # One uid per prompt, session and output of the session; groups are of the prompt.
    named = None if uid is None else re.fullmatch(r"(.*)_(\d+)_(\d+)", str(uid), re.DOTALL)
    group = uid if uid is None else str(uid) if named is None else named.group(1)
    return Rollout(
        entries.prompt_in(row, "input"),
        entries.completion_in(row, "output"),
        reward=entries.reward_in(row, "score"),
        step=entries.whole_in(row, "step"),
        logp=_number_or_total(row, "old_log_probs", mask),
        ref_logp=_number_or_total(row, "ref_log_prob", mask),
        num_tokens=float(sum(map(bool, mask))) if isinstance(mask, list) else NAN,
        group=group,
        session=None if named is None else int(named.group(2)),
        turn=None if named is None else int(named.group(3)),
        **entries.tokens_in(row.get("responses"), row.get("ref_log_prob"), mask),
    )


def _number_or_total(row: Row, column: str, mask: Sequence[Any] | None) -> float:
    entry = row.get(column)
    return (
        entries.log_total(entry, mask, column)
        if isinstance(entry, list)
        else entries.number_in(row, column)
    )
