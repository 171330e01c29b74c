"""Statements that need the policy's own log-probabilities: family, β, and how far it got."""

from __future__ import annotations

import functools

import numpy as np

from kltarget._core import processes
from kltarget._core.distances import kl, total_variation
from kltarget._core.status import Status
from kltarget._core.words import number
from kltarget.diagnosis import _family, _say_modes as _modes
from kltarget.diagnosis._aims import Aim, aims_of, along_tokens, best_unseen, side_by_side
from kltarget.diagnosis._say_rewards import LARGE, ON_POLICY, SOURCE, Case
from kltarget.diagnosis._say_targets import assumptions
from kltarget.diagnosis._statement import Statement
from kltarget.evidence import LEAST_SEEN, Log

# A policy is far from its target from here on, in total variation or in nats of KL(π‖π*).
FAR = 0.1
STANDS = "the run stands at its fixed point"
DISTINCT = (
    "deviations of different completions are independent and alike, so are those of different "
    "blocks of steps"
)
_LEAST_CELLS = 4
_Z = 1.959963984540054


def run_statements(case: Case, aims: list[Aim]) -> list[Statement]:
    log = case.log
    if not (np.isfinite(log.logp) & np.isfinite(log.ref_logp)).any():
        what = "logp, the sum of the sampling policy's token log-probabilities"
        if not np.isfinite(log.ref_logp).any():
            what = "logp and ref_logp, the sums of token log-probabilities of policy and reference"
        text = "which family the run follows and with which β cannot be told: log "
        text += f"{what}, of each completion"
        return [Statement("family", text, unit="", tier=3, refused=True)]
    distances = _distance(case, aims)
    is_far = any(statement.warning for statement in distances)
    return [*distances, *_families(case, aims, is_far), *_path(case, aims)]


def _cells(log: Log, aims: list[Aim]) -> tuple[_family.LogRatios, int, bool]:
    """Late completions of the analysed prompts, how many rollouts they are, and whether scaled."""
    scaled = all(aim.x is not None for aim in aims)
    x_of, mean = np.full((2, len(log.answer_prompt)), np.nan)
    slope = np.full(len(log.prompts), np.nan)
    for aim in aims:
        mean[aim.prompt.answers] = aim.prompt.reward[:-1]
        x_of[aim.prompt.answers] = (aim.prompt.reward if aim.x is None else aim.x)[:-1]
        slope[aim.prompt.code] = 1 / aim.effective_beta if scaled else np.nan
    known = np.isfinite(log.logp) & np.isfinite(log.ref_logp) & np.isfinite(x_of[log.answer])
    rows = np.flatnonzero(log.late & known)
    x = log.reward
    if scaled:
        # Where an answer was rewarded differently, its own reward counts.
        x = x_of[log.answer] + (x - mean[log.answer]) * slope[log.prompt]
    if not rows.size:
        return _family.LogRatios(*(np.empty(0),) * 6), 0, scaled
    block = _family.blocks(log.time[rows], log.group[rows])
    line = log.prompt[rows] * np.int64(log.num_times) + log.time[rows]
    single = len(np.unique(log.time[rows])) < 2
    pairs = np.stack([log.group[rows] if single else line, log.completion[rows]])
    _, first, cell, count = np.unique(
        pairs, return_index=True, return_inverse=True, return_counts=True, axis=1
    )
    cell = cell.reshape(-1)
    ratio = np.bincount(cell, (log.logp - log.ref_logp)[rows]) / count
    reward = np.bincount(cell, x[rows]) / count
    _, lines = np.unique(line[first], return_inverse=True)
    cells = _family.LogRatios(
        ratio, reward, count.astype(float), lines, pairs[1, first], block[first]
    )
    return cells, rows.size, scaled


def _families(case: Case, aims: list[Aim], is_far: bool) -> list[Statement]:
    cells, size, scaled = _cells(case.log, aims)
    why = ""
    if case.recipe.entropy_bonus:
        why = "beside an entropy bonus neither fits"
    elif any(along_tokens(case.recipe, aim.prompt) for aim in aims):
        why = "where a KL per token acts on several tokens, whole answers follow neither line"
    if why:
        text = f"which family the run follows is not asked: {why}"
        evidence = None, None, (SOURCE,), size, "late rollouts"
        return [Statement("family", text, "", *evidence, tier=3, refused=True)]
    if size < _LEAST_CELLS or not _family.some_slope(cells):
        text = (
            f"which family the run follows cannot be told: in {case.log.late_span} the completions "
            "of a prompt have equal rewards"
        )
        return [Statement("family", text, sample_size=size, unit="late rollouts", tier=3)]
    reverse, forward, share, units = _family.fit_families(cells, case.rng, case.number)
    betas = [aim.effective_beta for aim in aims]
    unit = float(np.median(betas)) if scaled else 1.0
    assumed = (STANDS, ON_POLICY, LARGE, DISTINCT)
    first, second = (number(unit * fit.factor, 3) for fit in (reverse, forward))
    detail = (
        f". The reverse KL fits log π/π_ref with β = {first} to {number(reverse.miss, 2)} nats, "
        f"the forward KL π_ref/π with β = {second} to {number(forward.miss, 2)} nats"
    )
    ahead, behind = (forward, reverse) if forward.miss < reverse.miss else (reverse, forward)
    told = _family.can_tell(cells)
    clear = behind.miss > _family.MARGIN * ahead.miss and share >= _family.SHARE
    sure = told and clear and ahead.factor < np.inf
    care = " (read with care: the run is far from the target)" if is_far else ""
    if not told:
        headline = (
            "cannot tell the family: no prompt's late completions have three different rewards, "
            f"and both pass through two{care}"
        )
    elif sure:
        ratio = behind.miss / max(ahead.miss, 1e-12)
        times = "more than 1,000" if ratio > 1000 else number(ratio, 2)
        headline = f"the log follows the {ahead.family} KL: the {behind.family} KL "
        headline += f"misses {times} times as much"
        asked = f"({_family.MARGIN:g} times and {100 * _family.SHARE:g} % are asked for)"
        found = f"; it misses more in {100 * share:.3g} % of the resamples {asked}{care}"
        detail = found + detail
    else:
        headline = f"cannot tell the family: neither misses {_family.MARGIN:g} times as much as "
        headline += f"the other in {100 * _family.SHARE:g} % of the resamples{care}"
    value = float(ahead.family == "forward") if sure else None
    evidence = value, None, assumed, size, "late rollouts"
    statements = [Statement("family", headline, detail, *evidence, tier=3)]
    configured = case.recipe.aim
    if configured not in ("reverse", "forward") or case.beta == 0 or not scaled:
        return statements
    used = ahead if sure else {"reverse": reverse, "forward": forward}[configured]
    value, (low, high) = unit * used.factor, (unit * x for x in used.interval)
    what = "median effective" if np.ptp(betas) > 1e-6 * unit else "effective"
    text = (
        f"the implied effective β is {number(value, 3)}, the configured {what} β "
        f"{number(unit, 3)}: {'inside' if low <= unit <= high else 'outside'} the interval"
    )
    if used.family != configured:
        text += f" (by the {used.family} KL, which the log follows but the recipe does not)"
    elif not sure:
        text += f" (by the {configured} KL, which the recipe follows)"
    detail = "; the run is far from the target, so this is the β of a policy on its way"
    evidence = value, (low, high), assumed, units, "completions"
    return [
        *statements,
        Statement("implied_beta", text, detail if is_far else "", *evidence, tier=3),
    ]


def _distance(case: Case, aims: list[Aim]) -> list[Statement]:
    known = [aim for aim in aims if aim.prompt.exact_now and aim.prompt.seen_mass >= LEAST_SEEN]
    if not known or aims[0].status & Status.NO_TARGET:
        return []
    pairs = [side_by_side(aim) for aim in known]
    others = aims_of(case.recipe, [best_unseen(aim.prompt) for aim in known], case.beta)
    raised = [side_by_side(aim) for aim in others if not aim.status & Status.NO_TARGET]
    moves = [x for aim in known if (x := _drift(case.log, aim)) is not None]
    value = float(np.nanmean([total_variation(*pair) for pair in pairs]))
    nats = float(np.mean([kl(*pair) for pair in pairs]))
    # How the unseen answers are rewarded is not known, and may decide.
    value_then, nats_then = value, nats
    if len(raised) == len(pairs):
        value_then = float(np.nanmean([total_variation(*pair) for pair in raised]))
        nats_then = float(np.mean([kl(*pair) for pair in raised]))
    near, far = (f(max(value, nats), max(value_then, nats_then)) for f in (min, max))
    is_far, open_still = near > FAR, near <= FAR < far
    text = (
        f"the last policy is {_between(value, value_then)} away from the target in total "
        f"variation, {_between(nats, nats_then)} nats in KL(π‖target)"
    )
    detail = ""
    if is_far:
        text = f"the run is far from its target: {text}"
    elif open_still:
        text += ": by how unseen answers are rewarded, as the worst seen or as the best"
    else:
        text += ": close"
    if moves:
        mean = number(float(np.mean(moves)), 2)
        detail = f"; it moved by {mean} between the last two logged steps"
    if is_far:
        detail += "; it was too short, or the path, the recipe or β are not what is assumed"
    evidence = value, None, assumptions(case, aims[0].prompt), len(known), "prompts"
    return [Statement("distance", text, detail, *evidence, tier=3, warning=is_far)]


def _between(low: float, high: float) -> str:
    """The first of two numbers if they are nearly the same; else both, the smaller one first."""
    first, second = (number(_tidy(x), 2) for x in sorted((low, high)))
    same = low == high or abs(low - high) < FAR / 20
    return number(_tidy(low), 2) if same else f"{first} to {second}"


def _drift(log: Log, aim: Aim) -> float | None:
    """Total variation between a prompt's last two logged policies, over what both sampled."""
    rows = log.rows_of(aim.prompt.code)
    rows = rows[np.isfinite(log.logp[rows])]
    times = np.unique(log.time[rows])
    if len(times) < 2:
        return None
    before, now = (rows[log.time[rows] == time] for time in times[-2:])
    # The first of each completion counts.
    _, i, j = np.intersect1d(log.completion[before], log.completion[now], return_indices=True)
    return total_variation(log.logp[before[i]], log.logp[now[j]])


def _path(case: Case, aims: list[Aim]) -> list[Statement]:
    """How much of the lost diversity the target takes, and how much the way to it.

    All three entropies are estimated from sampled answers of known mass, with what was not sampled
    allowed for, so that none is low because few rollouts show it.
    """
    if aims[0].status & Status.NO_TARGET:
        return []
    several = [aim for aim in aims if aim.prompt.right(case.threshold).sum() > 1]
    several = [aim for aim in several if not aim.status & Status.NO_TARGET]
    laws = processes.shared(functools.partial(_modes.by_whole_log, case), several)
    now = processes.shared(functools.partial(_modes.by_masses, case), several)
    found = zip(laws, now, strict=True)
    known = [(*laws, now) for laws, now in found if laws is not None and now is not None]
    if not known:
        return []
    reference, target, now = np.mean([[x.entropy for x in row] for row in known], axis=0)
    by_target, by_path = _tidy(reference - target), _tidy(target - now)
    # What was missed of the present policy makes the path's share smaller, of the target larger.
    both = sum(row[1].variance + row[2].variance for row in known)
    down, up = (
        _Z * np.sqrt(both + sum(row[law].above for row in known)) / len(known) for law in (2, 1)
    )
    low, high = by_path - float(down), by_path + float(up)
    interval = (low, high) if high > low else None
    text = (
        f"entropy of the right answers: {number(reference, 3)} nats by the reference, "
        f"{number(target, 3)} by the target, {number(now, 3)} now: the target takes "
        f"{number(by_target, 2)}, "
    )
    text += f"the path {number(by_path, 2)} nats"
    if interval is not None and low <= 0 <= high:
        text += ", perhaps none: so few rollouts cannot tell"
    evidence = by_path, interval, assumptions(case, aims[0].prompt), len(known), "prompts"
    return [Statement("path", text, "", *evidence, tier=3)]


def _tidy(x: float) -> float:
    """Zero for what is rounding."""
    return 0.0 if abs(x) < 1e-9 else float(x)
