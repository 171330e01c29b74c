"""Which columns are rewards, where none is called one: by their names, and by the advantages."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kltarget._core.column_names import (
    ADVANTAGE_NAMES,
    GROUP_NAMES,
    LENGTH_NAMES,
    POLICY_NAMES,
    REFERENCE_NAMES,
    STEP_NAMES,
)
from kltarget._core.rows import simple_name

# Numbers beside the rewards.
NO_REWARDS = frozenset(
    {
        *(*STEP_NAMES, *ADVANTAGE_NAMES, *GROUP_NAMES, *POLICY_NAMES, *REFERENCE_NAMES),
        *(*LENGTH_NAMES, "entropy", "epoch", "kl", "loss", "temperature", "time", "timestamp"),
        *("prompt_id", "sample_id", "completion_id", "index", "idx", "id", "uid", "seed", "lr"),
        *("learning_rate", "grad_norm", "num_turns", "turn", "token_ids", "rank", "weight"),
    }
)
_CALLED = ("reward", "score", "correct")


def rewards_among(columns: Iterable[str], advantages: bool, taken: Collection[str]) -> list[str]:
    """Columns that may be rewards, where no column is called one.

    Args:
        columns: all columns.
        advantages: whether advantages are logged, which tell rewards from other numbers.
        taken: columns that are something else.
    """
    free = [x for x in columns if x not in taken and simple_name(x) not in NO_REWARDS]
    return free if advantages else [x for x in free if is_called_reward(x)]


def is_called_reward(column: str) -> bool:
    return any(word in simple_name(column) for word in _CALLED)
