"""What rewards and answers alone say: arrays of a log, and sums over its groups.

Nothing here loops over groups or prompts: a million rollouts are a few sorts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.rows import simple_name
from kltarget._core.words import abridged
from kltarget.evidence._trees import Tokens, tokens_of
from kltarget.rollouts import RolloutError

if TYPE_CHECKING:
    import pandas as pd

NO_ANSWER = "(no answer)"
_MOST_BINS = 12
_SAME_REWARD = 1e-6
# Grades and sums of a few rewards have so many values, measured rewards more.
_FEW_REWARDS = 6
# So many grades have a best one, that is right; of more it has to stand out.
_FEW_GRADES = 3
# What rewards of right answers are called.
_CORRECT = re.compile("accura|correct|exact_match|solved|success|(^|_)acc(_|$)")
# Columns of texts of so many bytes are not copied.
_HEAVY = 1 << 28
# Log-probabilities of long completions are sums of rounded terms.
_ROUNDING = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Log:
    """Rollouts as arrays, a row each, and the names that their codes stand for.

    Attributes:
        prompt: code of the prompt, ``[N]``.
        answer: code of the prompt's answer, one per different pair of prompt and answer, ``[N]``.
        completion: the same for the pair of prompt and completion, ``[N]``.
        group: code of the generation group, without gaps, ``[N]``.
        time: rank of the step among the logged ones, ``[N]``.
        steps: the logged steps, ascending; empty if the files do not say.
        reward: total reward, finite, ``[N]``.
        ref_logp: natural log-probabilities of the completions, NaN where missing, ``[N]``.
        logp: the same of the policy that sampled them.
        advantage: what the trainer made of the rewards, NaN where it is not logged, ``[N]``.
        prompts: texts of the prompts.
        answer_names: texts of the answers, by code.
        answer_prompt: whose answer each is, by code.
        tokens: what is known of the completions' tokens.
        notes: what was left out.
        parts: the rewards that were added, NaN where one does not apply, ``[N]`` each.
    """

    prompt: np.ndarray
    answer: np.ndarray
    completion: np.ndarray
    group: np.ndarray
    time: np.ndarray
    steps: np.ndarray
    reward: np.ndarray
    ref_logp: np.ndarray
    logp: np.ndarray
    advantage: np.ndarray
    prompts: tuple[str, ...]
    answer_names: np.ndarray
    answer_prompt: np.ndarray
    tokens: Tokens
    notes: tuple[str, ...]
    parts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def num_times(self) -> int:
        return max(len(self.steps), 1)

    @property
    def late_from(self) -> int:
        """The first rank of the last third of the logged steps, or of half of a few."""
        most = min(3, self.num_times // 2)
        return self.num_times - max(1, math.ceil(self.num_times / 3), most)

    @functools.cached_property
    def late(self) -> np.ndarray:
        return self.time >= self.late_from

    @functools.cached_property
    def early(self) -> np.ndarray:
        """The rows of the first logged step."""
        return self.time == 0

    def rows_of(self, prompt: int) -> np.ndarray:
        """The rows of a prompt, ascending."""
        order, starts = self._by_prompt
        return order[starts[prompt] : starts[prompt + 1]]

    @functools.cached_property
    def _by_prompt(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows, those of a prompt together, and where these begin."""
        counts = np.bincount(self.prompt, minlength=len(self.prompts))
        return np.argsort(self.prompt, kind="stable"), np.append(0, counts.cumsum())

    @functools.cached_property
    def reward_range(self) -> tuple[float, float]:
        """The least and the largest reward."""
        return float(self.reward.min()), float(self.reward.max())

    @property
    def late_span(self) -> str:
        """The last third of the logged steps in words."""
        if not len(self.steps):
            return "the whole log"
        low, high = self.steps[self.late_from], self.steps[-1]
        return f"step {low:,}" if low == high else f"steps {low:,} to {high:,}"


def log_of(frame: pd.DataFrame) -> Log:
    """The arrays of a frame that ``read_rollouts`` made.

    Raises:
        RolloutError: a frame without rows, rewards or one of the columns.
    """
    for name in (
        "prompt",
        "completion",
        "answer",
        "reward",
        "step",
        "group_id",
        "ref_logp",
        "logp",
    ):
        if name not in getattr(frame, "columns", ()):
            raise RolloutError(f"the rollouts have no column {name!r}: read them by read_rollouts")
    kept, notes = np.isfinite(frame["reward"].to_numpy(np.float64)), []
    if not kept.any():
        if not len(frame):
            raise RolloutError("there are no rollouts")
        numbers = frame.attrs.get("numbers", ())
        if not numbers:
            none = bool(np.isnan(frame["reward"].to_numpy(np.float64)).all())
            raise RolloutError(f"the rollouts have no {'' if none else 'finite '}rewards")
        first, seen = numbers[0], ", ".join(map(repr, numbers))
        why = f"the rollouts have no rewards; if one of the numbers {seen} is one, say so by {{}}"
        given = f"reward={first}", f"columns={{'reward': {first!r}}}"
        raise RolloutError(why, "columns", *given)
    if not kept.all():
        what = "rollouts without a finite reward left out"
        notes.append(f"{(~kept).sum():,} of {kept.size:,} {what}")
    table: Any = frame if kept.all() else frame[kept]
    for name in ("logp", "ref_logp"):
        above = np.flatnonzero(table[name].to_numpy(np.float64) > _ROUNDING)
        if above.size:
            value = float(table[name].iloc[above[0]])
            what = f"{name} = {value:g} is no log-probability: it must be 0 or less"
            raise RolloutError(f"rollout {table.index[above[0]]}: {what}")
    prompt, prompts = _codes(table["prompt"])
    text, texts = _codes(table["answer"])
    said, completions = _codes(table["completion"])
    pairs, width = crossed(prompt, text + 1)
    pair, answer = np.unique(pairs, return_inverse=True)
    _, completion = np.unique(crossed(prompt, said + 1)[0], return_inverse=True)
    _, group = np.unique(table["group_id"].to_numpy(), return_inverse=True)
    mixed = len(np.unique(crossed(group, prompt)[0])) - int(group.max()) - 1
    if mixed and "notes" not in frame.attrs:
        notes.append("some groups hold several prompts, though a group is of one")
    step = table["step"]
    steps, time = np.empty(0, np.int64), np.zeros(len(table), np.int64)
    if not step.isna().any():
        steps, time = np.unique(step.to_numpy(np.int64), return_inverse=True)
    elif not step.isna().all():
        notes.append("some rollouts name no step: the whole log is taken as one")
    names = np.append(np.asarray(texts, object), NO_ANSWER)
    advantage = np.full(len(table), np.nan)
    if "advantage" in table:
        advantage = table["advantage"].to_numpy(np.float64)
    return Log(
        prompt=prompt,
        answer=answer,
        completion=completion,
        group=group,
        time=time,
        steps=steps,
        reward=table["reward"].to_numpy(np.float64),
        ref_logp=table["ref_logp"].to_numpy(np.float64),
        logp=table["logp"].to_numpy(np.float64),
        advantage=advantage,
        prompts=tuple(map(str, prompts)),
        answer_names=names[pair % width - 1],
        answer_prompt=pair // width,
        tokens=tokens_of(table, said, completions),
        notes=tuple(notes),
        parts={
            name.removeprefix("reward/"): table[name].to_numpy(np.float64)
            for name in map(str, table.columns)
            if name.startswith("reward/")
        },
    )


def crossed(code: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, int]:
    """A code for each pair of codes, and the number by which division gives back the first."""
    width = int(other.max(initial=0)) + 1
    return code.astype(np.int64) * width + other, width


def _codes(column: Any) -> tuple[np.ndarray, list[str]]:
    """Codes without gaps, in the order of appearance; missing texts are -1."""
    import pandas as pd

    if isinstance(column.dtype, pd.StringDtype) and column.memory_usage(index=False) > _HEAVY:
        # Books are told apart by their hashes, and named by how they begin and end.
        hashes = [hash(x) if isinstance(x, str) else None for x in column]
        codes = np.asarray(pd.factorize(pd.array(hashes, dtype="Int64"))[0], np.int64)
        new = np.zeros(len(codes), bool)
        new[np.unique(codes, return_index=True)[1]] = True
        # One after the other: taking them together copies them.
        texts = zip(column, new & (codes >= 0), strict=True)
        return codes, [abridged(x) for x, first in texts if first]
    codes, values = pd.factorize(column)
    return np.asarray(codes, np.int64), list(values)


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Generation groups, one entry each.

    Attributes:
        size: number of rollouts.
        prompt: code of the prompt.
        time: rank of the last step.
        deviation: standard deviation of the rewards, as the recipe takes it.
        equal: whether all rewards are equal.
        right: number of right answers.
        differ: the chance that two different rollouts of the group have different answers.
    """

    size: np.ndarray
    prompt: np.ndarray
    time: np.ndarray
    deviation: np.ndarray
    equal: np.ndarray
    right: np.ndarray
    differ: np.ndarray


def groups_of(log: Log, threshold: float, ddof: int) -> Groups:
    """Sizes, deviations and diversity of every group."""
    _, first, size = np.unique(log.group, return_index=True, return_counts=True)
    # Distances from the group's first reward: equal rewards have a deviation of exactly 0.
    apart = log.reward - log.reward[first][log.group]
    total, squares = np.bincount(log.group, apart), np.bincount(log.group, apart**2)
    left = np.maximum(squares - total**2 / size, 0) / np.maximum(size - ddof, 1)
    equal = squares == 0
    time = np.zeros(len(size), np.int64)
    np.maximum.at(time, log.group, log.time)
    owner, count = _answer_counts(log, log.group)
    same = np.bincount(owner, count * (count - 1.0), minlength=len(size))
    with np.errstate(invalid="ignore", divide="ignore"):
        differ = np.where(size > 1, 1 - same / (size * (size - 1.0)), np.nan)
    return Groups(
        size=size,
        prompt=log.prompt[first],
        time=time,
        deviation=np.where(equal, 0.0, np.sqrt(left)),
        equal=equal,
        right=np.bincount(log.group, log.reward >= threshold).astype(np.int64),
        differ=differ,
    )


def evident_threshold(log: Log) -> float | None:
    """The reward of right answers, where rewards alone show it; None where they do not.

    They do if there are two rewards, or three that recur; if there are more, the best one stands
    out by how often it occurs, and recurs or is shared by most prompts. Rewards that never differ,
    and those of which each prompt has its own, do not say what is right. Of several that are added
    one that is called accuracy does, if no wrong answer has as much in total as a right one.
    """
    values, number = np.unique(log.reward, return_counts=True)
    if len(values) < 2:
        return None
    called = [part for name, part in log.parts.items() if _CORRECT.search(simple_name(name))]
    if called and len(log.parts) > 1:
        return _least_right(log.reward, called[0]) if len(called) == 1 else None
    if are_summed(log):
        return None
    # The best of several grades is not.
    graded = len(values) > _FEW_GRADES and number[-1] < number.max()
    if graded and number[-1] < 2 * number[1:-1].max():
        return None
    if len(values) == 2 or (len(values) <= _FEW_REWARDS and len(log) >= 2 * len(values)):
        return float(values[-1])
    best = np.full(len(log.prompts), -np.inf)
    np.maximum.at(best, log.prompt, log.reward)
    shared = (best == values[-1]).sum()
    return float(values[-1]) if shared > 1 and 2 * shared >= len(best) else None


def are_summed(log: Log) -> bool:
    """Whether several rewards that differ are added in a row."""
    differing = [x for x in log.parts.values() if len(np.unique(x[np.isfinite(x)])) > 1]
    return bool((np.sum([np.isfinite(x) for x in differing], axis=0) > 1).any())


def _least_right(reward: np.ndarray, part: np.ndarray) -> float | None:
    """The least total of answers that a reward of two values calls right, if it tells them."""
    known = np.isfinite(part)
    values = np.unique(part[known])
    if len(values) != 2:
        return None
    right = part == values[-1]
    least = float(reward[right].min())
    return least if least > reward[~right].max() else None


def rewards_vary(log: Log) -> bool:
    """Whether some answer was rewarded differently at times."""
    _, first = np.unique(log.answer, return_index=True)
    return bool((np.abs(log.reward - log.reward[first][log.answer]) > _SAME_REWARD).any())


def _answer_counts(log: Log, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often each answer occurs under each code, and the codes."""
    pairs, width = crossed(code, log.answer)
    pair, count = np.unique(pairs, return_counts=True)
    return pair // width, count


def pass_at(groups: Groups, chosen: np.ndarray, k: int) -> np.ndarray:
    """The unbiased estimate of pass@k in every chosen group of k rollouts or more."""
    from kltarget.modes import pass_at_k_from_counts

    size, right = groups.size[chosen], groups.right[chosen]
    large = size >= k
    size, right = size[large], right[large]
    # Few pairs of numbers occur, however many groups there are.
    pairs, width = crossed(size, right)
    pairs, inverse = np.unique(pairs, return_inverse=True)
    if not pairs.size:
        return np.empty(0)
    # A zero has no sign.
    values = np.asarray(pass_at_k_from_counts(pairs % width, pairs // width, k), float) + 0.0
    return values[inverse]


def answer_entropy(log: Log) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entropy of the answers of every prompt at every step, in nats, with the step's rank.

    Miller's and Madow's correction, half the number of seen answers less one over the number of
    rollouts, takes off most of what small samples miss. Third come the numbers of rollouts.
    """
    of_step, width = crossed(log.prompt, log.time)
    cells, cell, size = np.unique(of_step, return_inverse=True, return_counts=True)
    owner, count = _answer_counts(log, cell)
    share = count / size[owner]
    plain = 0.0 - np.bincount(owner, share * np.log(share), minlength=len(cells))
    return plain + (np.bincount(owner) - 1) / (2 * size), cells % width, size


def history(log: Log, groups: Groups) -> dict[str, list[float]]:
    """Means over groups and prompts along the steps, in at most a dozen bins."""
    bins = min(log.num_times, _MOST_BINS)
    bin_of = np.arange(log.num_times) * bins // log.num_times
    value, time, _ = answer_entropy(log)
    steps = log.steps if len(log.steps) else np.zeros(1, np.int64)

    def mean(values: np.ndarray, times: np.ndarray) -> list[float]:
        kept = np.isfinite(values)
        at = bin_of[times[kept]]
        with np.errstate(invalid="ignore"):
            means = np.bincount(at, values[kept], bins) / np.bincount(at, minlength=bins)
        return means.tolist()

    return {
        "step": [float(steps[bin_of == b].min()) for b in range(bins)],
        "until": [float(steps[bin_of == b].max()) for b in range(bins)],
        "reward": mean(log.reward, log.time),
        "entropy": mean(value, time),
        "differ": mean(groups.differ, groups.time),
        "zero_std": mean(np.where(groups.size > 1, groups.equal, np.nan), groups.time),
    }
