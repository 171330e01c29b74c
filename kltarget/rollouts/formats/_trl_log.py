"""What TRL writes with ``log_completions=True``, and what its subclasses add."""

from __future__ import annotations

import functools
import pathlib

from kltarget._core.file_kinds import Row, kind_of
from kltarget._core.rows import simple_name
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import Rollout
from kltarget.rollouts.formats._format import MADE_UP, added_up, log_probs_in, written_as
from kltarget.rollouts.formats._reward_parts import NO_REWARDS


def _read_trl(row: Row, path: pathlib.Path) -> Rollout:
    numbers = {
        name: entry
        for name, entry in row.items()
        if isinstance(entry, float | int)
        and not isinstance(entry, bool)
        and simple_name(name) not in NO_REWARDS
    }
    # Parquet keeps apart floats, which are rewards, and integers, which beside them are not.
    floats = {name: entry for name, entry in numbers.items() if isinstance(entry, float)}
    typed = kind_of(path) in ("parquet", "arrow")
    kept = floats if typed and floats else numbers
    parts = {name: float(entry) for name, entry in kept.items()}
    return Rollout(
        entries.prompt_in(row, "prompt"),
        entries.completion_in(row, "completion"),
        reward=parts.pop("reward") if "reward" in parts else added_up(parts.values()),
        step=entries.whole_in(row, "step"),
        advantage=entries.number_in(row, "advantages" if "advantages" in row else "advantage"),
        parts=parts,
        **log_probs_in(row),
    )


_COLUMNS = {"step", "prompt", "completion"}
_in_blocks = functools.partial(
    written_as,
    grouping="blocks",
    completion="completion",
    guessed=True,
    step_pattern=r"completions_(\d+)\.\w+$",
)
for _logged in ("logp", "ref_logp"):
    _columns = _COLUMNS | {"advantage", _logged}
    _in_blocks("trl-logp", "parquet", "jsonl", columns=_columns, without=MADE_UP)(_read_trl)
_others = MADE_UP | {"logp", "ref_logp"}
_in_blocks("trl", "parquet", columns=_COLUMNS | {"advantage"}, without=_others)(_read_trl)
_in_blocks("trl-table", "json", columns=_COLUMNS)(_read_trl)
