"""Statements on how many right answers are left: by the reference, the target, and now."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from kltarget._core import processes
from kltarget._core.status import Status
from kltarget._core.words import number
from kltarget.diagnosis._aims import Aim
from kltarget.diagnosis._say_rewards import INDEPENDENT, Case
from kltarget.diagnosis._statement import Statement
from kltarget.evidence import (
    Interval,
    chance_of_seeing,
    entropy_of_counts,
    entropy_of_seen,
    likely_law,
    unseen_share,
)

# Where more of the right rollouts show an answer for the only time, how many are unseen is open.
_MOST_UNSEEN = 0.1
_MOST_AT_ONCE = 2**21
# So much of the policy's mass must be seen where an answer can be written in several ways.
_NEARLY_ALL = 0.95
# Of what is seen so little of, a sample says next to nothing.
_LEAST_SEEN = 0.25
_ROUNDING = 1e-6
_Z, _ONE_SIDED = 1.959963984540054, 1.6448536269514722


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The entropy of a prompt's right answers under one law.

    Attributes:
        entropy: in nats.
        variance: of that, by which answers were sampled.
        above: the variance of what lies above it because an answer may have been missed.
    """

    entropy: float
    variance: float
    above: float = 0.0

    @property
    def modes(self) -> float:
        """The effective number, corrected for the curve of the exponential."""
        return max(math.exp(self.entropy) * (1 - min(self.variance, 1.0) / 2), 1.0)

    def scaled(self, above: bool) -> float:
        """The variance of the effective number, downwards or upwards."""
        total = self.variance + (self.above if above else 0.0)
        return math.exp(2 * self.entropy) * total


def modes_statements(case: Case, aims: list[Aim], assumed: tuple[str, ...]) -> list[Statement]:
    """Effective numbers of right answers: by the reference, the target, and now."""
    several = [aim for aim in aims if aim.prompt.right(case.threshold).sum() > 1]
    if not several:
        return []
    now, interval, groups = modes_now(case, several)
    if not groups:
        return []
    before, target = np.mean(processes.shared(functools.partial(_by_laws, case), several), axis=0)
    least = "at least " if interval is not None and math.isinf(interval[1]) else ""
    text = f"effective right answers per prompt: {least}{number(now, 3)} now, "
    text += f"{number(before, 3)} of the reference"
    if not aims[0].status & Status.NO_TARGET:
        text += f", {number(target, 3)} of the target"
    if len(aims) > 1:
        text += f" (prompts with two or more: {len(several):,})"
    detail = ""
    if least:
        detail = "; too few rollouts a prompt to say how many more: answers were seen but once"
    by = (*assumed, INDEPENDENT)
    evidence = now, interval, by, groups, "late groups"
    return [Statement("effective_modes", text, detail, *evidence, tier=2)]


def modes_now(case: Case, aims: list[Aim]) -> tuple[float, Interval | None, int]:
    """Their mean over prompts in the last third, and how many groups show any.

    Where the policy's masses of the sampled answers are logged, they are used; elsewhere counts
    are. If of these too many are singletons, it is a lower bound, and the interval has no end.
    """
    log = case.log
    wanted = np.isin(log.prompt, [aim.prompt.code for aim in aims]) & log.late
    wanted &= log.reward >= case.threshold
    if not wanted.any():
        return math.nan, None, 0
    groups = len(np.unique(log.group[wanted]))
    found = processes.shared(functools.partial(by_masses, case), aims)
    by_mass = [x for x in found if x is not None]
    rest = [aim.prompt.code for aim, x in zip(aims, found, strict=True) if x is None]
    rows = np.flatnonzero(wanted & np.isin(log.prompt, rest))
    counts = [
        np.unique(log.answer[rows[log.prompt[rows] == code]], return_counts=True)[1]
        for code in np.unique(log.prompt[rows])
    ]
    open_ended = bool(counts) and unseen_share(np.concatenate(counts)) > _MOST_UNSEEN
    estimates = by_mass + [_by_counts(case, x, open_ended) for x in counts]
    if not estimates:
        return math.nan, None, 0
    value = float(np.mean([x.modes for x in estimates]))
    down, up = (
        math.sqrt(sum(x.scaled(above) for x in estimates)) / len(estimates)
        for above in (False, True)
    )
    if open_ended:
        low = max(1.0, value - _ONE_SIDED * down)
        return low, (low, math.inf), groups
    if up == 0:
        # All there is was seen, and its masses are known.
        return value, None, groups
    return value, (max(1.0, value - _Z * down), value + _Z * up), groups


def modes_of(case: Case, aim: Aim) -> float:
    """The same of one prompt, without an interval."""
    found = by_masses(case, aim)
    if found is not None:
        return found.modes
    rows = case.log.rows_of(aim.prompt.code)
    rows = rows[case.log.late[rows] & (case.log.reward[rows] >= case.threshold)]
    counts = np.unique(case.log.answer[rows], return_counts=True)[1]
    return float(np.exp(entropy_of_counts(counts[None])[0])) if counts.size else math.nan


def _by_counts(case: Case, counts: np.ndarray, as_bound: bool) -> Estimate:
    """By how often each answer was seen, with the scatter of likely samples."""

    def of(rows: np.ndarray) -> np.ndarray:
        if not as_bound:
            return entropy_of_counts(rows)
        # Miller's and Madow's correction leaves it too low where much is unseen.
        share = rows / rows.sum(1, keepdims=True)
        plain = -np.where(rows > 0, share * np.log(np.where(rows > 0, share, 1)), 0).sum(1)
        return plain + ((rows > 0).sum(1) - 1) / (2 * rows.sum(1))

    law, size = likely_law(counts), int(counts.sum())
    at_once, drawn = max(1, _MOST_AT_ONCE // len(law)), []
    for start in range(0, case.number, at_once):
        rows = min(at_once, case.number - start)
        drawn.append(of(case.rng.multinomial(size, law / law.sum(), size=rows)))
    entropy, variance = float(of(counts[None])[0]), float(np.concatenate(drawn).var(ddof=1))
    # One answer more may have been missed as likely as not.
    unseen = 1 / (size + 1)
    more = _with_one_more(np.log(counts / size), unseen)
    return Estimate(entropy, variance, more**2 * (1 - unseen) ** size)


def by_masses(case: Case, aim: Aim) -> Estimate | None:
    """By the last policy's masses of the answers it was seen to give; None if they are not known.

    An answer stands for as many as its chance of being sampled says. What no rollout showed has a
    known mass: were it one right answer, the entropy would be so much larger.
    """
    log, right = case.log, aim.prompt.right(case.threshold)
    rows = log.rows_of(aim.prompt.code)
    rows = rows[log.late[rows] & np.isfinite(log.logp[rows])]
    # The latest of each answer, or of each way to write it.
    rows = rows[np.argsort(-log.time[rows], kind="stable")]
    apart = _told_apart(case, aim)
    _, first = np.unique(log.completion[rows], return_index=True)
    latest = rows[first]
    place = np.searchsorted(aim.prompt.answers, log.answer[latest])
    mass = np.bincount(place, np.exp(log.logp[latest]), len(right))
    total = float(mass.sum())
    mass = mass / max(total, 1.0)
    if total < (_LEAST_SEEN if apart else _NEARLY_ALL) or not (mass[right] > 0).any():
        return None
    log_mass = np.log(mass[right & (mass > 0)])
    chance = chance_of_seeing(np.exp(log_mass), rows.size)
    entropy, variance = entropy_of_seen(log_mass, chance)
    unseen = 1 - total
    if unseen <= _ROUNDING:
        return Estimate(entropy, variance)
    missed = 1 - float(chance_of_seeing(np.array(unseen), rows.size))
    return Estimate(entropy, variance, _with_one_more(log_mass, unseen) ** 2 * missed)


def by_whole_log(case: Case, aim: Aim) -> tuple[Estimate, Estimate] | None:
    """The same of the reference and of the target, by the answers of the whole log.

    None if the log-probabilities are not there. The unseen may hold one more right answer.
    """
    prompt, right = aim.prompt, aim.prompt.right(case.threshold)
    if prompt.known != "logged" or not _told_apart(case, aim):
        return None
    chance = _chances(case, aim)
    if chance is None or not (chance[right] > 0).all():
        return None
    found = []
    for law in (prompt.log_ref, aim.log_target):
        log_mass = law[:-1][right]
        more = 0.0
        if np.isnan(log_mass).any():
            # There is no target.
            found.append(Estimate(math.nan, math.nan))
            continue
        if prompt.log_ref[-1] > -np.inf:
            # Equally rewarded answers keep the reference's ratios.
            total = np.logaddexp.reduce(log_mass) - np.logaddexp.reduce(prompt.log_ref[:-1][right])
            more = _with_one_more(log_mass, float(np.exp(prompt.log_ref[-1] + total)))
        found.append(Estimate(*entropy_of_seen(log_mass, chance[right]), more**2))
    return found[0], found[1]


def _chances(case: Case, aim: Aim) -> np.ndarray | None:
    """The chance of every answer to be somewhere in the log, 0 where it cannot be told.

    At steps that did not show an answer its log-probability is taken from the steps around, before
    them from the reference, or is less if such answers add up to more than that step's rollouts
    leave.
    """
    log, size = case.log, len(aim.prompt.answers)
    rows = log.rows_of(aim.prompt.code)
    rows = rows[np.isfinite(log.logp[rows])]
    if not rows.size:
        return None
    place = np.searchsorted(aim.prompt.answers, log.answer[rows])
    times, time, number_of = np.unique(log.time[rows], return_inverse=True, return_counts=True)
    log_mass = np.full((len(times), size), np.nan)
    log_mass[time, place] = log.logp[rows]
    shown = np.isfinite(log_mass)
    first = ~shown[0] & (aim.prompt.log_ref[:-1] > -np.inf)
    log_mass[0, first] = aim.prompt.log_ref[:-1][first]
    for column in log_mass.T:
        known = np.isfinite(column)
        if known.any():
            column[:] = np.interp(times, times[known], column[known])
    mass = np.exp(np.where(np.isfinite(log_mass), log_mass, -np.inf))
    left = np.maximum(1 - np.where(shown, mass, 0).sum(1), 0)
    claimed = np.where(shown, 0, mass).sum(1)
    less = np.minimum(1, left / np.where(claimed > 0, claimed, 1))[:, None]
    mass = np.where(shown, mass, mass * less)
    chance = -np.expm1(number_of @ np.log1p(-np.minimum(mass, 1 - 1e-12)))
    return np.where(shown.any(0), chance, 0.0)


def _by_laws(case: Case, aim: Aim) -> tuple[float, float]:
    """Effective numbers of the reference and the target."""
    known = by_whole_log(case, aim)
    if known is None:
        return aim.modes(case.threshold)
    return known[0].modes, known[1].modes


def _told_apart(case: Case, aim: Aim) -> bool:
    """Whether each right answer was written in one way, so that its mass is the completion's."""
    log = case.log
    rows = log.rows_of(aim.prompt.code)
    pairs = np.unique(np.stack([log.answer[rows], log.completion[rows]]), axis=1)
    return pairs.shape[1] == len(np.unique(pairs[0]))


def _with_one_more(log_mass: np.ndarray, unseen: float) -> float:
    """By how much one more answer, of this mass, would raise the entropy."""
    log_mass = log_mass[log_mass > -np.inf]
    if not log_mass.size or not unseen > 0:
        return 0.0
    plain, more = (
        -float(np.exp(share) @ share)
        for masses in (log_mass, np.append(log_mass, np.log(unseen)))
        for share in (masses - np.logaddexp.reduce(masses),)
    )
    return max(more - plain, 0.0)
