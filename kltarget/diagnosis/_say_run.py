"""Statements that need the policy's own log-probabilities: family, β, and how far it got."""

from __future__ import annotations

import numpy as np

from kltarget._core.status import Status
from kltarget._core.words import number
from kltarget.diagnosis._aims import Aim, distance, divergence
from kltarget.diagnosis._family import (
    MARGIN,
    SHARE,
    FamilyFit,
    LogRatios,
    blocks,
    can_tell,
    fit_families,
    some_slope,
)
from kltarget.diagnosis._say_rewards import LARGE, ON_POLICY, SOURCE, Case
from kltarget.diagnosis._say_targets import assumptions
from kltarget.diagnosis._statement import Statement
from kltarget.evidence import LEAST_SEEN, Log

# A policy is far from its target from here on, in total variation or in nats of KL(π‖π*).
FAR = 0.1
STANDS = "the run stands at its fixed point"
DISTINCT = "deviations of different completions, and of different blocks of steps, are independent"
_LEAST_CELLS = 4


def run_statements(case: Case, aims: list[Aim]) -> list[Statement]:
    log = case.log
    if not (np.isfinite(log.logp) & np.isfinite(log.ref_logp)).any():
        if not np.isfinite(log.ref_logp).any():
            what = "logp and ref_logp, the sums of token log-probabilities of policy and reference"
        else:
            what = "logp, the sum of the sampling policy's token log-probabilities"
        text = (
            "which family the run follows and with which β cannot be told: log "
            f"{what}, of each completion"
        )
        return [Statement("family", text, unit="", tier=3, refused=True)]
    distances = _distance(case, aims)
    is_far = any(statement.warning for statement in distances)
    return [*distances, *_family(case, aims, is_far), *_path(case, aims)]


def _cells(log: Log, aims: list[Aim]) -> tuple[LogRatios, int, bool]:
    """Late completions of the analysed prompts, how many rollouts they are, and whether scaled."""
    scaled = all(aim.x is not None for aim in aims)
    x_of = np.full(len(log.answer_prompt), np.nan)
    for aim in aims:
        answers, values = aim.prompt.answers, aim.x if aim.x is not None else aim.prompt.reward
        x_of[answers] = (values if scaled else aim.prompt.reward)[:-1]
    rows = log.late & np.isfinite(log.logp) & np.isfinite(log.ref_logp)
    rows &= np.isfinite(x_of[log.answer])
    if scaled:
        # Where an answer was rewarded differently, its own reward counts.
        slope = np.full(len(log.prompts), np.nan)
        mean = np.full(len(log.answer_prompt), 0.0)
        for aim in aims:
            mean[aim.prompt.answers] = aim.prompt.reward[:-1]
            slope[aim.prompt.code] = 1 / aim.effective_beta
        x = x_of[log.answer] + (log.reward - mean[log.answer]) * slope[log.prompt]
    else:
        x = log.reward
    rows = np.flatnonzero(rows)
    if not rows.size:
        return LogRatios(*(np.empty(0),) * 6), 0, scaled
    block = blocks(log.time[rows], log.group[rows])
    line = log.prompt[rows] * np.int64(log.num_times) + log.time[rows]
    single = len(np.unique(log.time[rows])) < 2
    part = log.group[rows] if single else line
    _, first, cell, count = np.unique(
        np.stack([part, log.completion[rows]]),
        axis=1,
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    cell = cell.reshape(-1)
    ratio = np.bincount(cell, (log.logp - log.ref_logp)[rows]) / count
    reward = np.bincount(cell, x[rows]) / count
    _, lines = np.unique(line[first], return_inverse=True)
    cells = LogRatios(
        ratio, reward, count.astype(float), lines, log.completion[rows][first], block[first]
    )
    return cells, int(rows.size), scaled


def _family(case: Case, aims: list[Aim], is_far: bool) -> list[Statement]:
    cells, size, scaled = _cells(case.log, aims)
    name = "family"
    if case.recipe.entropy_bonus:
        text = "which family the run follows is not asked: beside an entropy bonus neither fits"
        return [Statement(name, text, "", None, None, (SOURCE,), size, "late rollouts", tier=3)]
    if size < _LEAST_CELLS or not some_slope(cells):
        text = (
            f"which family the run follows cannot be told: in {case.log.late_span} the completions "
            "of a prompt have equal rewards"
        )
        return [Statement(name, text, sample_size=size, unit="late rollouts", tier=3)]
    reverse, forward, share, units = fit_families(cells, case.rng, case.number)
    unit = 1.0 if not scaled else float(np.median([aim.effective_beta for aim in aims]))
    differ = scaled and np.ptp([aim.effective_beta for aim in aims]) > 1e-6 * unit
    assumed = (STANDS, ON_POLICY, LARGE, DISTINCT)
    both = (
        f"reverse KL fits log π/π_ref with β = {_beta(reverse, unit)} to "
        f"{number(reverse.miss, 2)} nats, the forward KL π_ref/π with β = {_beta(forward, unit)} "
        f"to {number(forward.miss, 2)} nats"
    )
    ahead, behind = (forward, reverse) if forward.miss < reverse.miss else (reverse, forward)
    sure = (
        can_tell(cells)
        and behind.miss > MARGIN * ahead.miss
        and share >= SHARE
        and ahead.factor < np.inf
    )
    care = " (read with care: the run is far from the target)" if is_far else ""
    detail = f". The {both}"
    if not can_tell(cells):
        headline = (
            "cannot tell the family: no prompt's late completions have three different rewards, "
            f"and both pass through two{care}"
        )
    elif sure:
        times = behind.miss / max(ahead.miss, 1e-12)
        told = "more than 1,000" if times > 1000 else number(times, 2)
        headline = (
            f"the log follows the {ahead.family} KL: the {behind.family} KL misses {told} times as "
            "much"
        )
        detail = (
            f"; it misses more in {100 * share:.3g} % of the resamples ({MARGIN:g} times and "
            f"{100 * SHARE:g} % are asked for){care}{detail}"
        )
    else:
        headline = (
            f"cannot tell the family: neither misses {MARGIN:g} times as much as the other in "
            f"{100 * SHARE:g} % of the resamples{care}"
        )
    statements = [
        Statement(
            name,
            headline,
            detail,
            float(ahead.family == "forward") if sure else None,
            None,
            assumed,
            size,
            "late rollouts",
            tier=3,
        )
    ]
    configured = case.recipe.aim
    if case.recipe.divergence is None or case.beta == 0 or not scaled:
        return statements
    used = ahead if sure else {"reverse": reverse, "forward": forward}[configured]
    value, interval = unit * used.factor, tuple(unit * x for x in used.interval)
    inside = interval[0] <= unit <= interval[1]
    what = "median effective" if differ else "effective"
    text = (
        f"the implied effective β is {number(value, 3)}, the configured {what} β "
        f"{number(unit, 3)}: {'inside' if inside else 'outside'} the interval"
    )
    if used.family != configured:
        text += f" (by the {used.family} KL, which the log follows but the recipe does not)"
    elif not sure:
        text += f" (by the {configured} KL, which the recipe follows)"
    on_its_way = "; the run is far from the target, so this is the β of a policy on its way"
    statements.append(
        Statement(
            "implied_beta",
            text,
            on_its_way if is_far else "",
            value,
            (interval[0], interval[1]),
            assumed,
            units,
            "completions",
            tier=3,
        )
    )
    return statements


def _beta(fit: FamilyFit, unit: float) -> str:
    return number(unit * fit.factor, 3)


def _distance(case: Case, aims: list[Aim]) -> list[Statement]:
    known = [aim for aim in aims if aim.prompt.exact_now and aim.prompt.seen_mass >= LEAST_SEEN]
    if not known or aims[0].status & Status.NO_TARGET:
        return []
    apart = np.array([distance(aim) for aim in known])
    moves = np.array([x for aim in known if (x := _drift(case.log, aim)) is not None])
    value = float(np.nanmean(apart))
    nats = float(np.mean([divergence(aim) for aim in known]))
    text = (
        f"the last policy is {number(value, 2)} away from the target in total variation, "
        f"{number(nats, 2)} nats in KL(π‖target)"
    )
    is_far = max(value, nats) > FAR
    text = f"the run is far from its target: {text}" if is_far else f"{text}: close"
    detail = ""
    if moves.size:
        detail = f"; it moved by {number(float(moves.mean()), 2)} between the last two logged steps"
    if is_far:
        detail += "; it was too short, or the path, the recipe or β are not what is assumed"
    return [
        Statement(
            "distance",
            text,
            detail,
            value,
            None,
            assumptions(case, aims[0].prompt),
            len(known),
            "prompts",
            tier=3,
            warning=is_far,
        )
    ]


def _drift(log: Log, aim: Aim) -> float | None:
    """Total variation between a prompt's last two logged policies, over what both sampled."""
    rows = np.flatnonzero((log.prompt == aim.prompt.code) & np.isfinite(log.logp))
    times = np.unique(log.time[rows])
    if len(times) < 2:
        return None
    last = {}
    for time in times[-2:]:
        at = rows[log.time[rows] == time]
        codes, first = np.unique(log.completion[at], return_index=True)
        last[time] = dict(zip(codes.tolist(), log.logp[at[first]].tolist(), strict=True))
    before, now = last.values()
    common = before.keys() & now.keys()
    return 0.5 * sum(abs(np.exp(now[code]) - np.exp(before[code])) for code in common)


def _path(case: Case, aims: list[Aim]) -> list[Statement]:
    """How much of the lost diversity the target takes, and how much the way to it."""
    known = [
        aim for aim in aims if aim.prompt.exact_now and aim.prompt.right(case.threshold).sum() > 1
    ]
    if not known or aims[0].status & Status.NO_TARGET:
        return []
    rows = [
        [
            np.log(aim.modes(log_probs, case.threshold))
            for log_probs in (aim.prompt.log_ref, aim.log_target, aim.prompt.log_now)
        ]
        for aim in known
    ]
    reference, target, now = np.nanmean(np.array(rows), axis=0)
    by_target, by_path = reference - target, target - now
    text = (
        f"entropy of the right answers: {number(reference, 3)} nats by the reference, "
        f"{number(target, 3)} by the target, {number(now, 3)} now: the target takes "
        f"{number(_tidy(by_target), 2)}, the path {number(_tidy(by_path), 2)} nats"
    )
    by, size = assumptions(case, aims[0].prompt), len(known)
    return [Statement("path", text, "", float(by_path), None, by, size, "prompts", tier=3)]


def _tidy(x: float) -> float:
    """Zero for what is rounding."""
    return 0.0 if abs(x) < 1e-9 else float(x)
