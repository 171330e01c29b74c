"""What NeMo-RL writes."""

from __future__ import annotations

import pathlib

from kltarget._core.file_kinds import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import Rollout
from kltarget.rollouts.formats._format import written_as


@written_as(
    "nemo-rl",
    "jsonl",
    columns={"content", "rewards", "token_loss_mask"},
    step_pattern=r"step(\d+)\.\w+$",
    grouping="blocks",
    notes=("logp is that of the engine that sampled, not of the trainer",),
)
def _read_nemo_rl(row: Row, path: pathlib.Path) -> Rollout:
    row = {
        name: entry[0] if isinstance(entry, list) and len(entry) == 1 else entry
        for name, entry in row.items()
    }
    prompt, *said = row["content"]
    mask = row["token_loss_mask"]
    return Rollout(
        entries.prompt_in({"content": prompt}, "content"),
        "\n".join(map(entries.message_text, said)),
        reward=entries.reward_in(row, "rewards"),
        logp=entries.log_total(row.get("generation_logprobs", row.get("prev_logprobs")), mask),
        num_tokens=float(sum(map(bool, mask))),
        advantage=entries.mean(row.get("advantages"), mask),
        index=entries.whole_in(row, "idx"),
    )
