"""Which rows are of one generation group, where the file does not say."""

from __future__ import annotations

import numpy as np

from kltarget.rollouts._rollout import RolloutError

# Advantages are float32 numbers, of which a group's sum to zero.
_ROUNDING = 1e-4


def blocks(position: np.ndarray, source: np.ndarray, step: np.ndarray, size: int) -> np.ndarray:
    """Consecutive blocks of a file; the file's last may be cut short."""
    return _first_seen(np.stack([source, step, position // size], axis=1))


def by_prompt(step: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """All completions of one prompt at one step."""
    return _first_seen(np.stack([step, prompt], axis=1))


def check_blocks(groups: np.ndarray, prompt: np.ndarray, size: int, whole: bool) -> None:
    """Refuses blocks that no generation group can be."""
    first = np.zeros(groups.max(initial=-1) + 1, dtype=np.int64)
    first[groups[::-1]] = np.arange(groups.size)[::-1]
    strange = np.flatnonzero(prompt != prompt[first[groups]])
    mend = "{} does not fit: give another"
    if strange.size:
        why = f"in row {strange[0] + 1} a block has a second prompt"
        raise RolloutError(f"{mend}: {why}", "num_generations", size)
    counts = np.bincount(groups)
    if whole and (counts != size).any():
        row = first[np.flatnonzero(counts != size)[0]]
        count = counts[counts != size][0]
        why = f"the block from row {row + 1} has {count} rows"
        raise RolloutError(f"{mend}: {why}", "num_generations", size)


def guess_size(
    position: np.ndarray,
    source: np.ndarray,
    step: np.ndarray,
    prompt: np.ndarray,
    advantage: np.ndarray,
) -> tuple[int, bool]:
    """The number of generations that runs of equal prompts suggest.

    Several groups of one prompt make a longer run. So the size divides the length of every run. Of
    such numbers it is the smallest by which advantages sum to zero in every block, or if there is
    none the largest.

    Returns:
        The size, and whether advantages confirm it.
    """
    file = np.flatnonzero(np.diff(source, prepend=-1))
    change = np.diff(prompt, prepend=-1) | np.diff(step, prepend=-1) | np.diff(source, prepend=-1)
    starts = position[np.flatnonzero(change)]
    ends = position[np.append(file[1:] - 1, source.size - 1)] + 1
    largest = int(np.gcd.reduce(np.concatenate([starts, ends])))
    if not np.isfinite(advantage).all() or not advantage.any():
        return largest, False
    for size in (d for d in range(2, largest + 1) if largest % d == 0):
        groups = blocks(position, source, step, size)
        sums = np.bincount(groups, advantage)
        scale = np.bincount(groups, np.abs(advantage))
        if (np.abs(sums) <= _ROUNDING * (scale + _ROUNDING)).all():
            return size, True
    return largest, False


def index_in_group(groups: np.ndarray) -> np.ndarray:
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    index = np.empty(groups.size, dtype=np.int32)
    index[order] = np.arange(groups.size) - starts
    return index


def _first_seen(keys: np.ndarray) -> np.ndarray:
    """Equal rows as equal integers, counted in the order in which they appear."""
    # One integer per row: sorting those is many times faster than sorting rows.
    code = np.zeros(len(keys), dtype=np.int64)
    for column in keys.T:
        _, inverse = np.unique(column, return_inverse=True)
        code = code * (int(inverse.max(initial=0)) + 1) + inverse
        _, code = np.unique(code, return_inverse=True)
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    rank = np.empty(first.size, dtype=np.int32)
    rank[np.argsort(first)] = np.arange(first.size)
    return rank[inverse]
