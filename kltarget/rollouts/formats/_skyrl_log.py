"""What SkyRL writes of its evaluations."""

from __future__ import annotations

import pathlib

from kltarget._core.file_kinds import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import Rollout
from kltarget.rollouts.formats._format import written_as


@written_as(
    "skyrl",
    "jsonl",
    columns={"input_prompt", "output_response", "score"},
    step_pattern=r"global_step_(\d+)",
)
def _read_skyrl(row: Row, path: pathlib.Path) -> Rollout:
    score = row["score"]
    return Rollout(
        entries.prompt_in(row, "input_prompt"),
        entries.completion_in(row, "output_response"),
        # One number, or one per token.
        reward=entries.total(score) if isinstance(score, list) else entries.reward_in(row, "score"),
    )
