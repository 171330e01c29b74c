"""What open-instruct writes with ``--save_traces``."""

from __future__ import annotations

import pathlib
import re

from kltarget._core.file_kinds import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import Rollout
from kltarget.rollouts.formats._format import IDS_ALONE, ids_as_text, written_as


@written_as(
    "open-instruct",
    "jsonl",
    columns={"prompt_tokens", "response_tokens", "reward"},
    notes=(IDS_ALONE,),
    shaped=True,
    apart=True,
)
def _read_open_instruct(row: Row, path: pathlib.Path) -> Rollout:
    return Rollout(
        ids_as_text(row["prompt_tokens"]),
        ids_as_text(row["response_tokens"]),
        reward=entries.reward_in(row, "reward"),
        step=entries.whole_in(row, "step"),
        logp=entries.log_total(row.get("logprobs")),
        num_tokens=float(len(row["response_tokens"])),
        advantage=entries.number_in(row, "advantage"),
        group=(
            path.parent.as_posix(),
            re.sub(r"_rollouts_\d+$", "", path.stem),
            str(row["prompt_idx"]),
        ),
    )
