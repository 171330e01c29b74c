"""What a log knows of single prompts: answers, rewards, and how likely each is by whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kltarget.evidence._log import Log, crossed
from kltarget.evidence._trees import TokenTree, part_at_once, tree_of
from kltarget.rollouts import RolloutError

UNSEEN = "(unseen)"
# Targets over the seen answers say little if those hold less of the reference than this.
LEAST_SEEN = 0.5
_LEAST_SAMPLES = 20.0
_FOUND_TWICE = 0.01
# Rounded log-probabilities of all that is possible may add up to a little more than 1.
IMPOSSIBLE = 1.02
# What is left of 1 by rounding alone.
_ROUNDING = 1e-12
_STEP = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt: what is known of its answers, the last of which stands for all unseen ones.

    Attributes:
        code: of the prompt in the log.
        text: the prompt.
        answers: codes of the seen answers, ``[A − 1]``.
        names: of all outcomes, ``[A]``.
        reward: mean logged reward; of the unseen the least, ``[A]``: of the prompt, or of the log
            where the prompt's are all equal.
        best_unseen: the greatest reward, which the unseen may have as well.
        log_ref: log-probabilities by the reference, ``[A]``; those of unknown answers are among the
            unseen.
        unknown: of which answers the log has no reference log-probability, ``[A]``.
        counts: rollouts of each outcome in the whole log, ``[A]``.
        late_counts: the same in its last third.
        first_counts: the same at its first step.
        log_now: log-probabilities by the policy of the last steps, ``[A]``.
        known: where the reference is from: "logged", "weighted", "first-step", or "none".
        exact_now: whether ``log_now`` is from logged probabilities, not from counts.
        reward_varies: whether one answer was rewarded differently.
        at_once: whether completions are known to part at their first token.
        tree: of their tokens, where they part later and the log has the reference of each token.
        tokens_possible: whether the logged probabilities of the tokens after no prefix add up to
            more than 1; where they do there is no tree.
    """

    code: int
    text: str
    answers: np.ndarray
    names: tuple[str, ...]
    reward: np.ndarray
    best_unseen: float
    log_ref: np.ndarray
    unknown: np.ndarray
    counts: np.ndarray
    late_counts: np.ndarray
    first_counts: np.ndarray
    log_now: np.ndarray
    known: str
    exact_now: bool
    reward_varies: bool
    at_once: bool
    tree: TokenTree | None
    tokens_possible: bool

    def right(self, threshold: float) -> np.ndarray:
        """Which seen answers are right and possible, ``[A − 1]``."""
        return (self.reward[:-1] >= threshold) & ~np.isneginf(self.log_ref[:-1])

    @property
    def seen_mass(self) -> float:
        return float(np.exp(np.logaddexp.reduce(self.log_ref[:-1])))


def informative_order(log: Log, threshold: float) -> np.ndarray:
    """Prompts, the most informative first: many rollouts, rewards that differ, right answers."""
    number = np.bincount(log.prompt, minlength=len(log.prompts))
    mean = np.bincount(log.prompt, log.reward) / number
    spread = np.sqrt(np.bincount(log.prompt, (log.reward - mean[log.prompt]) ** 2) / number)
    late = np.bincount(log.prompt[log.late], minlength=len(log.prompts)) > 0
    # What became of the others is not known.
    return np.lexsort((-number * spread * (1 + num_right(log, threshold)), ~late))


def num_right(log: Log, threshold: float, late: bool = False) -> np.ndarray:
    """How many different right answers of every prompt were seen."""
    right = log.reward >= threshold
    codes = np.unique(log.answer[right & log.late] if late else log.answer[right])
    return np.bincount(log.answer_prompt[codes], minlength=len(log.prompts))


def prompts_of(log: Log, codes: np.ndarray, reference: str) -> list[Prompt]:
    """The chosen prompts of which a reference over the answers is known."""
    found = (_prompt(log, code, log.rows_of(code), reference) for code in codes.tolist())
    return [prompt for prompt in found if prompt is not None]


def _prompt(log: Log, code: int, rows: np.ndarray, reference: str) -> Prompt | None:
    answers, place = np.unique(log.answer[rows], return_inverse=True)
    size = len(answers)
    counts, first_counts, late_counts = (
        np.bincount(place[chosen], minlength=size + 1)
        for chosen in (slice(None), log.early[rows], log.late[rows])
    )
    reward = np.bincount(place, log.reward[rows]) / counts[:-1]
    # A prompt whose rewards are all equal shows neither how bad its answers are nor how good.
    apart = np.ptp(reward) > 0
    of_unseen = (float(reward.min()), float(reward.max())) if apart else log.reward_range
    unknown = np.zeros(size + 1, bool)
    varies = np.abs(log.reward[rows] - reward[place]).max() > 1e-6
    if reference == "first-step":
        if not first_counts.any():
            return None
        log_ref, known = _shares(first_counts), "first-step"
    elif reference == "none":
        log_ref, known = np.full(size + 1, np.nan), "none"
    else:
        log_ref, known = _logged(log, rows, place, size)
        if log_ref is None:
            return None
        unknown[:-1] = np.bincount(place[~np.isnan(log.ref_logp[rows])], minlength=size) == 0
    seen = float(np.nansum(np.exp(log_ref[:-1])))
    at_once, tree = part_at_once(log.tokens, log.completion, rows, seen), None
    tokens_possible = True
    if known == "logged":
        tree = tree_of(log.tokens, rows, place, size)
    if tree is not None:
        # What is known of tokens outweighs what texts suggest.
        at_once = tree.space.length == 1
        tokens_possible = at_once or tree.largest_sum <= IMPOSSIBLE
        tree = None if at_once or not tokens_possible else tree
    log_now = _now(log, rows, place, size)
    exact = log_now is not None
    if log_now is None:
        with np.errstate(divide="ignore"):
            log_now = np.log(late_counts / max(late_counts.sum(), 1))
    return Prompt(
        code=code,
        text=log.prompts[code],
        answers=answers,
        names=(*(str(name) for name in log.answer_names[answers]), UNSEEN),
        reward=np.append(reward, of_unseen[0]),
        best_unseen=of_unseen[1],
        log_ref=log_ref,
        unknown=unknown,
        counts=counts,
        late_counts=late_counts,
        first_counts=first_counts,
        log_now=log_now,
        known=known,
        exact_now=exact,
        reward_varies=bool(varies),
        at_once=at_once,
        tree=tree,
        tokens_possible=tokens_possible,
    )


def _shares(counts: np.ndarray) -> np.ndarray:
    """Shares that counts suggest, with half a count more for each outcome (Jeffreys)."""
    return np.log((counts + 0.5) / (counts + 0.5).sum())


def _logged(
    log: Log, rows: np.ndarray, place: np.ndarray, size: int
) -> tuple[np.ndarray | None, str]:
    """The reference's masses by logged probabilities: added up, or weighted if too few are seen."""
    ref = log.ref_logp[rows]
    kept = np.flatnonzero(np.isfinite(ref))
    if not kept.size:
        return None, ""
    seen = _masses(log.completion[rows[kept]], place[kept], ref[kept], size)
    total = seen.sum()
    if total >= LEAST_SEEN:
        # Different tokens can spell one text, and logs are rounded: no sum may pass 1.
        seen = seen / max(total, 1.0)
        with np.errstate(divide="ignore"):
            left = 1 - total if 1 - total > _ROUNDING else 0.0
            return np.log(np.append(seen, left)), "logged"
    weight = ref[kept] - log.logp[rows[kept]]
    known = np.isfinite(weight)
    if not known.any():
        return None, ""
    kept, weight = kept[known], np.exp(weight[known] - weight[known].max())
    if weight.sum() ** 2 / (weight**2).sum() < _LEAST_SAMPLES:
        return None, ""
    mass = np.bincount(place[kept], weight, minlength=size + 1)
    with np.errstate(divide="ignore"):
        return np.log(mass / mass.sum()), "weighted"


def _masses(
    completion: np.ndarray, place: np.ndarray, log_probs: np.ndarray, size: int
) -> np.ndarray:
    """What the completions of each answer add up to; of equal ones the first counts."""
    _, once = np.unique(completion, return_index=True)
    return np.bincount(place[once], np.exp(np.minimum(log_probs[once], 0.0)), minlength=size)


def _now(log: Log, rows: np.ndarray, place: np.ndarray, size: int) -> np.ndarray | None:
    """The last policy's masses by logged probabilities; what is left over is unseen."""
    kept = np.flatnonzero(np.isfinite(log.logp[rows]) & log.late[rows])
    # The latest of each completion.
    kept = kept[np.argsort(-log.time[rows[kept]], kind="stable")]
    late = rows[kept]
    mass = _masses(log.completion[late], place[kept], log.logp[late], size)
    if mass.sum() < LEAST_SEEN:
        return None
    mass = np.append(mass, max(1 - mass.sum(), 0.0))
    with np.errstate(divide="ignore"):
        return np.log(mass / mass.sum())


def reference_kind(log: Log, reference: str | None) -> str | None:
    """What a reference can be had from: "logged", "first-step" if asked for, or None."""
    if reference not in (None, "first-step"):
        raise ValueError(f"reference must be None or 'first-step', got {reference!r}")
    if reference == "first-step" and not len(log.steps):
        why = "the files do not say the steps"
        raise RolloutError(f"the reference cannot be taken from the first step: {why}")
    if reference is not None:
        return reference
    return "logged" if np.isfinite(log.ref_logp).any() else None


def reference_sums(log: Log) -> np.ndarray:
    """What the reference's probabilities of a prompt's different completions add up to, ``[P]``."""
    kept = np.flatnonzero(np.isfinite(log.ref_logp))
    _, first = np.unique(log.completion[kept], return_index=True)
    return _sums(log.ref_logp[kept[first]], log.prompt[kept[first]], len(log.prompts))


def policy_sums(log: Log) -> np.ndarray:
    """The same of the policy that sampled at one step, of the step of the largest sum, ``[P]``."""
    kept = np.flatnonzero(np.isfinite(log.logp))
    cell, width = crossed(log.prompt[kept], log.time[kept])
    pairs, _ = crossed(cell, log.completion[kept])
    _, first = np.unique(pairs, return_index=True)
    cells, code = np.unique(cell[first], return_inverse=True)
    sums = np.zeros(len(log.prompts))
    np.maximum.at(sums, cells // width, _sums(log.logp[kept[first]], code, len(cells)))
    return sums


def _sums(log_probs: np.ndarray, code: np.ndarray, number: int) -> np.ndarray:
    return np.bincount(code, np.exp(np.minimum(log_probs, 0.0)), minlength=number)


def disagreements(log: Log) -> int:
    """How many completions were logged with reference log-probabilities that differ."""
    import pandas as pd

    kept = np.isfinite(log.ref_logp)
    values: Any = pd.Series(log.ref_logp[kept]).groupby(log.completion[kept])
    return int((values.max() - values.min() > _FOUND_TWICE).sum())


def padded(
    rewards: Sequence[np.ndarray], log_refs: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and references as rows of one length; what is added is impossible.

    Lengths come in steps, so that prompts of other sizes find programs that are compiled already.
    """
    width = -(-max(map(len, rewards)) // _STEP) * _STEP
    reward = np.zeros((len(rewards), width))
    log_ref = np.full((len(rewards), width), -np.inf)
    for row, (values, masses) in enumerate(zip(rewards, log_refs, strict=True)):
        reward[row, : len(values)] = values
        log_ref[row, : len(masses)] = masses
    return reward, log_ref - np.logaddexp.reduce(log_ref, 1)[:, None]
