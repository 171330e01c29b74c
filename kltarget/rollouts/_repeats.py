"""Rows that are no rollouts of their own: outputs of one session, generations logged twice."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.words import counted
from kltarget.rollouts._answers import Rule
from kltarget.rollouts._frame import ANSWERED, SAID

if TYPE_CHECKING:
    import pandas as pd


def merged(
    frame: pd.DataFrame, session: np.ndarray, turn: np.ndarray, rule: Rule
) -> tuple[pd.DataFrame, list[str]]:
    """The frame with one row for all outputs of a session, whose reward is that of its last.

    Args:
        frame: rollouts, their groups known.
        session: code of the session, -1 for rows that name none.
        turn: place of the output in the session, -1 where it is not known.
        rule: from a completion to its answer.
    """
    import pandas as pd

    named = session >= 0
    keys = pd.DataFrame({"group": frame["group_id"].to_numpy(), "session": session, "turn": turn})
    # Where outputs of one place occur twice, the numbers are not those of sessions.
    if not named.all() or keys.duplicated().to_numpy().any():
        return frame, []
    code = keys.groupby(["group", "session"], sort=False).ngroup().to_numpy()
    if len(np.unique(code)) == len(frame):
        return frame, []
    order = np.lexsort((turn, code))
    table: Any = frame.iloc[order]
    rows = table.groupby(code[order], sort=False)
    said = rows["completion"].agg("\n".join)
    whole = rows.nth(-1).reset_index(drop=True)
    for name in ("ref_logp", "logp", "num_tokens"):
        whole[name] = rows[name].agg(lambda x: x.sum(skipna=False)).to_numpy()
    if "tokens" in whole:
        # Between the tokens of two outputs stand some that were not sampled.
        whole[["tokens", "ref_token_logps"]] = None
    whole["prompt"] = pd.Categorical(
        rows["prompt"].first(), categories=frame["prompt"].cat.categories
    )
    whole["prompt_id"] = rows["prompt_id"].first().to_numpy()
    whole["completion"] = said.astype(frame["completion"].dtype).to_numpy()
    answers = [rule(text) for text in whole["completion"]]
    whole["answer"] = pd.Series(answers, dtype=frame["answer"].dtype)
    whole[SAID], whole[ANSWERED] = list(map(hash, said)), list(map(hash, answers))
    whole = whole[list(frame.columns)].astype(frame.dtypes.to_dict())
    note = f"{len(frame):,} outputs of {counted(len(whole), 'session')}: each session is a rollout"
    return whole, [note]


def first_uses(frame: Any) -> tuple[np.ndarray, str]:
    """Which rows are of a generation's first step, where several steps train on each.

    Steps count as such if, in a run, every generation stands there the same number of times, one
    after the other, but for those at which the log begins and ends.
    """
    every = np.ones(len(frame), bool)
    if frame["step"].isna().any():
        return every, ""
    step = frame["step"].to_numpy(np.int64)
    folders = [os.path.dirname(source) for source in frame["source"].cat.categories]
    _, folder = np.unique(folders, return_inverse=True)
    run = folder[frame["source"].cat.codes.to_numpy()]
    # By codes of pairs, for sorting the pairs takes several times as much memory.
    times, time = np.unique(step, return_inverse=True)
    codes, cell = np.unique(run * len(times) + time, return_inverse=True)
    cells = np.stack([codes // len(times), times[codes % len(times)]])
    rough = np.stack([np.bincount(cell), np.bincount(cell, frame["reward"].fillna(0).to_numpy())])
    if not _equal_to_last(rough, cells[0]).any():
        return every, ""
    content = _signatures(frame, cell, cells.shape[1])
    same = _equal_to_last(content[None], cells[0]) & _equal_to_last(rough, cells[0])
    kept, times = np.ones(cells.shape[1], bool), set()
    for code in np.unique(cells[0]):
        chosen = np.flatnonzero(cells[0] == code)
        starts = np.flatnonzero(~same[chosen])
        lengths = np.diff(np.append(starts, len(chosen)))
        inner = lengths[1:-1] if len(lengths) > 2 else lengths
        period = math.gcd(*inner.tolist())
        # Few runs say so only if none is longer; steps that are all alike say nothing.
        if period < 2 or len(lengths) < 2 or (len(lengths) < 4 and lengths.max() > period):
            continue
        times.add(period)
        place = np.arange(len(chosen)) - np.repeat(starts, lengths)
        kept[chosen] = place % period == 0
    if not times:
        return every, ""
    often = " or ".join(map(str, sorted(times)))
    number = int((~kept[cell]).sum())
    rows = counted(number, "row")
    return kept[cell], (
        f"{often} steps train on each generation: it is counted once, {rows} left out"
    )


def _equal_to_last(columns: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Which cells are equal to the one before, in the same run."""
    equal = np.zeros(columns.shape[1], bool)
    equal[1:] = (columns[:, 1:] == columns[:, :-1]).all(0) & (run[1:] == run[:-1])
    return equal


def _signatures(frame: pd.DataFrame, cell: np.ndarray, number: int) -> np.ndarray:
    """A number per cell that depends on its rows, not on their order."""
    import pandas as pd

    hashing: Any = vars(pd)["util"]

    numbers: Any = frame[["prompt_id", "reward", "advantage", "logp"]].astype(float)
    numbers[SAID] = frame[SAID]
    rows = hashing.hash_pandas_object(numbers, index=False).to_numpy()
    sums = np.zeros(number, np.uint64)
    np.add.at(sums, cell, rows)
    return sums


def unmixed(frame: Any) -> tuple[pd.DataFrame, str]:
    """The frame with groups of one prompt each, and what to say if there were others.

    A group of several prompts is parted if each has several rollouts in it; otherwise the prompts
    may be one, spelled in several ways.
    """
    pairs = frame[["group_id", "prompt_id"]].value_counts(sort=False)
    prompts = pairs.groupby("group_id").size()
    several = prompts.index[prompts > 1]
    if not len(several):
        return frame, ""
    number = f"{len(several):,} of {len(prompts):,} groups"
    if (pairs.loc[several] < 2).any():
        return frame, (
            f"{number} hold several prompts, though a group is of one: what names them may be "
            "something else"
        )
    parted = frame.groupby(["group_id", "prompt_id"], sort=False).ngroup().to_numpy(np.int32)
    place = frame.groupby(parted).cumcount().to_numpy(np.int32)
    return frame.assign(group_id=parted, sample_id=place), (
        f"{number} hold several prompts, though a group is of one: each is taken as one group for "
        "every prompt in it"
    )


def overlaps(frame: Any) -> str:
    """What to say of steps that stand in several files."""
    if frame["step"].isna().all() or len(frame["source"].cat.categories) < 2:
        return ""
    pairs = frame[["step", "source"]].dropna().drop_duplicates()
    twice: Any = pairs[pairs["step"].duplicated(keep=False)]
    if twice.empty:
        return ""
    steps = sorted(twice["step"].unique().tolist())
    files: list[str] = twice["source"][twice["step"] == steps[0]].astype(str).tolist()
    shared = os.path.commonpath(files) if len({os.path.isabs(x) for x in files}) == 1 else ""
    names = [os.path.relpath(x, shared) if shared else x for x in files[:3]]
    which = f"step {steps[0]:,} is" if len(steps) == 1 else f"steps {_ranges(steps)} are"
    more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
    return (
        f"{which} in several files ({', '.join(names)}{more}): parts of one step, or runs that "
        "overlap; no group goes over files"
    )


def _ranges(steps: list[int]) -> str:
    if steps[-1] - steps[0] == len(steps) - 1:
        return f"{steps[0]:,} to {steps[-1]:,}"
    more = f" and {len(steps) - 5:,} more" if len(steps) > 5 else ""
    return ", ".join(f"{step:,}" for step in steps[:5]) + more


def without_gaps(frame: Any) -> pd.DataFrame:
    """The frame with its numbers of groups and places counted anew."""
    import pandas as pd

    group, _ = pd.factorize(frame["group_id"])
    place = pd.Series(group).groupby(group).cumcount().to_numpy(np.int32)
    ids, _ = pd.factorize(frame["prompt_id"])
    return frame.reset_index(drop=True).assign(
        group_id=group.astype(np.int32),
        sample_id=place,
        prompt_id=ids.astype(frame["prompt_id"].dtype),
        prompt=frame["prompt"].cat.remove_unused_categories().array,
    )
