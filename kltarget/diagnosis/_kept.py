"""How different right answers still are: now against before, and against the target."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from kltarget.evidence import Interval, Log, Prompt

# So large a part of the logged steps, from the first on, is "before" where it is sampled.
EARLY = 0.1
# Of many prompts those of most rollouts are compared.
_MOST_PROMPTS = 200
# Of fewer rollouts, early ones or late ones, a share of this is noise.
LEAST_ROLLOUTS = 12
_LEAST_GROUPS = 10
_DRAWS = 999
_Z = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Kept:
    """The chance that two completions of a prompt differ, before and now.

    Attributes:
        before: by the reference, or in the first steps.
        now: in the last third of the logged steps.
        share: ``now`` over ``before``.
        interval: of ``share``, 95 %.
        chance: how likely so few different ones would be had nothing been lost.
        source: what ``before`` is of.
        prompts: how many were compared.
        rollouts: how many of them are late.
        of_target: the chance by the target, over the same prompts; None without one.
        reference_share: ``of_target`` over the same by the law that the target is of.
        beyond: how likely so few would be had the run got to its target; None without one.
        recurring: whether the same prompts were compared; otherwise groups of whatever prompts.
    """

    before: float
    now: float
    share: float
    interval: Interval
    chance: float
    source: str
    prompts: int
    rollouts: int
    of_target: float | None = None
    reference_share: float | None = None
    beyond: float | None = None
    recurring: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """A prompt's right answers as the reference and the target weigh them.

    Attributes:
        prompt: the prompt.
        reference: shares of its right answers, ``[K]``.
        target: the same of the target; None without one.
        right: the reference's mass of all of them.
        late: late rollouts of each, ``[K]``.
    """

    prompt: Prompt
    reference: np.ndarray
    target: np.ndarray | None
    right: float
    late: np.ndarray


def early_rows(log: Log) -> np.ndarray:
    """The rows of the first steps, none of which is late."""
    first = min(max(1, int(EARLY * log.num_times)), log.late_from)
    return log.time < first


def laws_of(
    prompts: Sequence[Prompt], targets: Sequence[np.ndarray | None], threshold: float
) -> list[Law]:
    """The laws of prompts with two or more right answers, in the order of their texts."""
    laws = []
    pairs = sorted(zip(prompts, targets, strict=True), key=lambda pair: pair[0].text)
    for prompt, target in pairs:
        right = prompt.right(threshold) & ~prompt.unknown[:-1]
        if right.sum() < 2:
            continue
        # The order of answers in a log says nothing.
        chosen = np.flatnonzero(right)
        chosen = chosen[np.argsort(-prompt.log_ref[chosen], kind="stable")]
        laws.append(
            Law(
                prompt,
                _shares(prompt.log_ref[chosen]),
                None if target is None else _shares(target[chosen]),
                float(np.exp(prompt.log_ref[chosen]).sum()),
                prompt.late_counts[:-1][chosen],
            )
        )
    return laws


def kept_by_reference(laws: Sequence[Law], rng: np.random.Generator) -> Kept | None:
    """What is left of the reference's right answers, where its masses are logged."""
    known = [law for law in laws if law.prompt.known == "logged" and law.late.sum() > 1]
    if not known:
        return None
    if sum(law.late.sum() for law in known) < LEAST_ROLLOUTS:
        return None
    before = float(np.mean([_differ(law.reference) for law in known]))
    most = float(np.mean([_with_unseen(law) for law in known]))
    now, variance = _mean_of_counts([law.late for law in known])
    chance = _chance([(law.late, law.reference) for law in known], now, rng)
    rollouts = int(sum(law.late.sum() for law in known))
    if not before > 0:
        return None
    low, high = _ratio_interval(now, variance, before, 0.0)
    # What was not seen may be right too, and then more differed before.
    interval = low * before / most, high
    found = Kept(before, now, now / before, interval, chance, "reference", len(known), rollouts)
    return _beside_target(found, known, rng)


def kept_since_start(
    log: Log, chosen: np.ndarray, laws: Sequence[Law], rng: np.random.Generator
) -> Kept | None:
    """What is left of the first steps' answers, of the chosen rows alone, prompt by prompt."""
    early, late = (
        np.bincount(log.answer[chosen & rows], minlength=len(log.answer_prompt))
        for rows in (early_rows(log), log.late)
    )
    sizes = [
        np.bincount(log.answer_prompt, counts, minlength=len(log.prompts))
        for counts in (early, late)
    ]
    both = np.flatnonzero((sizes[0] > 1) & (sizes[1] > 1)).tolist()
    both = sorted(both, key=lambda p: (-min(sizes[0][p], sizes[1][p]), log.prompts[p]))
    pairs = []
    for prompt in both[:_MOST_PROMPTS]:
        own = np.flatnonzero(log.answer_prompt == prompt)
        own = own[(early[own] > 0) | (late[own] > 0)]
        own = own[np.lexsort((late[own], early[own]))]
        pairs.append((early[own], late[own]))
    smaller = min(sum(x[k].sum() for x in pairs) for k in (0, 1)) if pairs else 0
    if smaller < LEAST_ROLLOUTS:
        return None
    before, of_before = _mean_of_counts([pair[0] for pair in pairs])
    now, of_now = _mean_of_counts([pair[1] for pair in pairs])
    chance = _chance_of_labels(pairs, now - before, rng)
    rollouts = int(sum(pair[1].sum() for pair in pairs))
    if not before > 0:
        return None
    interval = _ratio_interval(now, of_now, before, of_before)
    found = Kept(before, now, now / before, interval, chance, "first steps", len(pairs), rollouts)
    known = [law for law in laws if law.late.sum() > 1]
    return _beside_target(found, known, rng) if known else found


def kept_between_groups(log: Log, chosen: np.ndarray) -> Kept | None:
    """What is left of the first steps' answers, of the chosen rows alone, group by group.

    For prompts that do not recur: those of the first and of the last steps are taken to be alike.
    """
    found = []
    for rows in (early_rows(log) & chosen, log.late & chosen):
        pairs = np.stack([log.group[rows], log.answer[rows]])
        group, count = np.unique(pairs, axis=1, return_counts=True)
        _, owner = np.unique(group[0], return_inverse=True)
        size = np.bincount(owner, count)
        same = np.bincount(owner, count * (count - 1.0))
        found.append((1 - same / np.maximum(size * (size - 1), 1))[size > 1])
    early, late = found
    if min(early.size, late.size) < _LEAST_GROUPS or not early.mean() > 0:
        return None
    before, now = float(early.mean()), float(late.mean())
    # So many groups cannot all have been alike by more than this.
    spread = [max(x.var(ddof=1), x.mean() / x.size, 1 / x.size**2) / x.size for x in found]
    chance = float(student.cdf((now - before) / math.sqrt(sum(spread)), min(map(len, found)) - 1))
    interval = _ratio_interval(now, spread[1], before, spread[0])
    numbers = before, now, now / before, interval, chance, "first steps"
    prompts = len(np.unique(log.prompt[log.late & chosen]))
    return Kept(*numbers, prompts, int((log.late & chosen).sum()), recurring=False)


def _beside_target(found: Kept, laws: Sequence[Law], rng: np.random.Generator) -> Kept:
    targets = [law.target for law in laws if law.target is not None]
    if len(targets) < len(laws):
        return found
    of_target = float(np.mean([_differ(target) for target in targets]))
    reference = float(np.mean([_differ(law.reference) for law in laws]))
    now, _ = _mean_of_counts([law.late for law in laws])
    draws = [(law.late, target) for law, target in zip(laws, targets, strict=True)]
    return dataclasses.replace(
        found,
        of_target=of_target,
        reference_share=of_target / reference if reference > 0 else math.nan,
        beyond=_chance(draws, now, rng),
    )


def _ratio_interval(now: float, of_now: float, before: float, of_before: float) -> Interval:
    """Fieller's interval of ``now/before`` by their variances, from 0 on; its end may be infinite.

    It holds the K for which ``now − K·before`` is not further from 0 than its own deviation says.
    """
    a, b, c = before**2 - _Z**2 * of_before, now * before, now**2 - _Z**2 * of_now
    root = math.sqrt(max(b**2 - a * c, 0.0))
    if a <= 0:
        low = (b - root) / a if a < 0 and c > 0 else 0.0
        return min(max(low, 0.0), now / before), math.inf
    return max((b - root) / a, 0.0), (b + root) / a


def _with_unseen(law: Law) -> float:
    """How often two right answers differ by the reference if the unseen are one of them."""
    unseen = float(np.exp(law.prompt.log_ref[-1]))
    share = unseen / (unseen + law.right) if unseen > 0 else 0.0
    return float(1 - (1 - share) ** 2 * (law.reference**2).sum() - share**2)


def _shares(log_mass: np.ndarray) -> np.ndarray:
    return np.exp(log_mass - np.logaddexp.reduce(log_mass))


def _differ(share: np.ndarray) -> float:
    """The chance that two draws differ."""
    return float(1 - (share**2).sum())


def _differ_of_counts(counts: np.ndarray) -> np.ndarray:
    """Its unbiased estimate by counts ``[…, K]`` of two draws or more."""
    size = counts.sum(-1)
    return 1 - (counts * (counts - 1.0)).sum(-1) / (size * (size - 1.0))


def _mean_of_counts(counts: Sequence[np.ndarray]) -> tuple[float, float]:
    """The mean over prompts, and its variance."""
    values = [float(_differ_of_counts(x)) for x in counts]
    return float(np.mean(values)), sum(map(_variance, counts)) / len(counts) ** 2


def _variance(counts: np.ndarray) -> float:
    """Of one prompt's estimate, by the formula of a U-statistic of multinomial counts.

    Half a count for one answer more: where all draws are alike the formula would say 0.
    """
    size = float(counts.sum())
    share = np.append(counts[counts > 0], 0.5) / (size + 0.5)
    squares, cubes = (share**2).sum(), (share**3).sum()
    total = 4 * (size - 2) * (cubes - squares**2) + 2 * (squares - squares**2)
    return float(total / (size * (size - 1)))


def _chance(
    draws: Sequence[tuple[np.ndarray, np.ndarray]], now: float, rng: np.random.Generator
) -> float:
    """How often samples of these sizes from these laws differ as little as ``now``."""
    total = np.zeros(_DRAWS)
    for counts, law in draws:
        total += _differ_of_counts(rng.multinomial(int(counts.sum()), law, size=_DRAWS))
    return _at_most(total / len(draws), now)


def _chance_of_labels(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], change: float, rng: np.random.Generator
) -> float:
    """The same if it is all one which rollouts are early and which are late."""
    total = np.zeros(_DRAWS)
    for early, late in pairs:
        both = (early + late).astype(np.int64)
        drawn = rng.multivariate_hypergeometric(
            both, int(late.sum()), size=_DRAWS, method="marginals"
        )
        total += _differ_of_counts(drawn) - _differ_of_counts(both - drawn)
    return _at_most(total / len(pairs), change)


def _at_most(values: np.ndarray, bound: float) -> float:
    # Draws that equal what was seen count, though their sums are rounded in another order.
    return float((1 + (values <= bound + 1e-9).sum()) / (1 + len(values)))
