"""Which rows are of one generation group, where the file does not say."""

from __future__ import annotations

import numpy as np

from kltarget.rollouts._rollout import RolloutError

# Advantages are float32 numbers, of which a group's sum to zero.
_ROUNDING = 1e-4


def first_seen(*columns: np.ndarray) -> np.ndarray:
    """Equal rows as equal integers, counted in the order in which they appear."""
    import pandas as pd

    rows = pd.DataFrame(dict(enumerate(columns)))
    return rows.groupby(list(rows), sort=False).ngroup().to_numpy(np.int32)


def blocks(position: np.ndarray, source: np.ndarray, step: np.ndarray, size: int) -> np.ndarray:
    """Consecutive blocks of a file; the file's last may be cut short."""
    return first_seen(source, step, position // size)


def check_blocks(groups: np.ndarray, prompt: np.ndarray, size: int, whole: bool) -> None:
    """Refuses blocks that no generation group can be."""
    _, first, counts = np.unique(groups, return_index=True, return_counts=True)
    strange = np.flatnonzero(prompt != prompt[first[groups]])
    mend = "{} does not fit: give another"
    if strange.size:
        why = f"in row {strange[0] + 1} a block has a second prompt"
        raise RolloutError(f"{mend}: {why}", "num_generations", size)
    short = np.flatnonzero(counts != size)
    if whole and short.size:
        why = f"the block from row {first[short[0]] + 1} has {counts[short[0]]} rows"
        raise RolloutError(f"{mend}: {why}", "num_generations", size)


def equal_runs(source: np.ndarray, prompt: np.ndarray) -> tuple[int, np.ndarray] | None:
    """The length of runs of equal prompts, and the run of every row, if all are equally long.

    None if they are not, or no prompt has several of them. Two next to each other are one run of
    twice the length.
    """
    change = np.flatnonzero((np.diff(prompt, prepend=-1) != 0) | (np.diff(source, prepend=-1) != 0))
    lengths = np.diff(np.append(change, len(prompt)))
    size = int(np.bincount(lengths).argmax()) if len(lengths) else 0
    if size < 2 or (lengths % size).any():
        return None
    pairs = np.unique(np.stack([source[change], prompt[change]]), axis=1)
    if pairs.shape[1] == len(change):
        return None
    return size, (np.arange(len(prompt)) // size).astype(np.int32)


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
    none the largest, unless most runs are longer and as long as any: then some have lost rows.

    Returns:
        The size, and whether advantages confirm it.
    """
    file = np.flatnonzero(np.diff(source, prepend=-1))
    change = np.diff(prompt, prepend=-1) | np.diff(step, prepend=-1) | np.diff(source, prepend=-1)
    starts = position[np.flatnonzero(change)]
    ends = position[np.append(file[1:] - 1, source.size - 1)] + 1
    largest = int(np.gcd.reduce(np.concatenate([starts, ends])))
    lengths = np.diff(np.append(np.flatnonzero(change), source.size))

    def usual_or(size: int) -> int:
        """1, that is no blocks, where most runs are of the largest length but some lost rows."""
        usual = int(np.bincount(lengths).argmax())
        return 1 if size < usual == lengths.max() else size

    if not np.isfinite(advantage).all() or not advantage.any():
        return usual_or(largest), False
    for size in (d for d in range(2, largest + 1) if largest % d == 0):
        groups = blocks(position, source, step, size)
        sums = np.bincount(groups, advantage)
        scale = np.bincount(groups, np.abs(advantage))
        if (np.abs(sums) <= _ROUNDING * (scale + _ROUNDING)).all():
            return size, True
    return usual_or(largest), False
