"""What TRL writes with ``log_completions=True``, and what its subclasses add."""

from __future__ import annotations

import pathlib

from kltarget._core.rows import Row
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import Rollout
from kltarget.rollouts.formats._format import MADE_UP, Format, added_up, log_probs_in

# Numbers beside the rewards.
_NO_REWARDS = {
    *("advantage", "advantages", "entropy", "epoch", "kl", "logp", "loss", "num_tokens"),
    *("old_logp", "ref_logp", "step", "temperature", "time", "timestamp"),
}


def _read_trl(row: Row, path: pathlib.Path) -> Rollout:
    # Parquet keeps apart floats, which are rewards, and integers, which are not; JSON does not.
    numeric = float | int if path.suffix == ".json" else float
    parts = {
        name: float(entry)
        for name, entry in row.items()
        if isinstance(entry, numeric) and not isinstance(entry, bool) and name not in _NO_REWARDS
    }
    ref_logp, logp, num_tokens = log_probs_in(row)
    return Rollout(
        entries.prompt_in(row, "prompt"),
        entries.completion_in(row, "completion"),
        reward=parts.pop("reward") if "reward" in parts else added_up(parts.values()),
        step=entries.whole_in(row, "step"),
        advantage=entries.number_in(row, "advantage"),
        parts=parts,
        ref_logp=ref_logp,
        logp=logp,
        num_tokens=num_tokens,
    )


_COLUMNS = frozenset({"step", "prompt", "completion"})
FORMATS = (
    *(
        Format(
            "trl-logp",
            ("parquet", "jsonl"),
            _COLUMNS | {"advantage", logged},
            _read_trl,
            grouping="blocks",
            without=MADE_UP,
        )
        for logged in ("logp", "ref_logp")
    ),
    Format(
        "trl",
        ("parquet",),
        _COLUMNS | {"advantage"},
        _read_trl,
        grouping="blocks",
        without=MADE_UP | {"logp", "ref_logp"},
    ),
    Format("trl-table", ("json",), _COLUMNS, _read_trl, grouping="blocks"),
)
