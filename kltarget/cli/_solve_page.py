"""What the command says about the targets of one problem: a printed report, and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kltarget._core.page import Lines, Page, Paragraph, Table
from kltarget._core.records import json_text
from kltarget._core.status import FAILURES, IN_WORDS, Status
from kltarget._core.words import counted, decimal, number, probability, quoted, short
from kltarget.cli._budget_options import Asked
from kltarget.modes import flip_beta, summarize
from kltarget.targets import Target
from kltarget.tasks import Task
from kltarget.tasks._task import likeliest_outcomes

# More columns than this do not fit beside the outcomes; the table of β is never cut.
_MOST_COLUMNS = 5


@dataclasses.dataclass(frozen=True)
class Solution:
    """One problem and its targets, a row per β; the measures begin with those of the reference."""

    task: Task
    betas: list[float]
    asked: Asked
    divergence: str
    mara: dict[str, Any] | None
    right: np.ndarray
    modes: np.ndarray
    target: Any
    log_probs: np.ndarray
    measures: dict[str, list[float]]
    statuses: list[Status]


def set_bits(status: Status) -> list[str]:
    """The names of the bits that are set."""
    return [str(bit.name) for bit in Status if bit & status]


def page(solution: Solution, notes: Sequence[str], top: int) -> Page:
    """The problem, a table of β, those of outcomes and modes, and what happens in words."""
    rows = [("β", "expected reward", "KL(π‖π_ref)", "effective modes")]
    num_modes = len(np.unique(solution.modes[solution.right]))
    names = ("reference", *(f"{beta:g}" for beta in solution.betas))
    kinds = ("expected_reward", "kl_to_reference", "effective_modes")
    measures = (solution.measures[kind] for kind in kinds)
    for name, reward, nats, modes in zip(names, *measures, strict=True):
        of = f"{decimal(modes, 2)} of {num_modes:,}"
        rows.append((name, decimal(reward), decimal(nats), of))
    return Page(
        [Lines(_problem(solution, notes))],
        [Table(rows, "lrrr")],
        *([table] for table in _outcomes(solution, top)),
        [Paragraph(sentence, hanging=4) for sentence in _sentences(solution)],
    )


def _problem(solution: Solution, notes: Sequence[str]) -> list[str]:
    task = solution.task
    rewards = task.reward[solution.right]
    if solution.mara is not None:
        what = f"reward ≥ {number(solution.mara['threshold'], 6)}"
    elif (rewards == rewards.max()).all():
        what = f"reward {number(rewards.max())}"
    else:
        what = f"reward above {number(task.reward[np.isfinite(task.reward)].min())}"
    right_mass = probability(np.logaddexp.reduce(task.log_ref[solution.right]))
    mara = f" with MARA ({solution.mara['method']})" if solution.mara else ""
    regularizer = solution.target.objective.divergence.title
    return [
        f"{task.name}: {task.description}",
        *(f"  {note}" for note in notes),
        f"{counted(task.num_outcomes, 'outcome')}, {solution.right.sum():,} right ({what}, "
        f"reference mass {right_mass}); regularised by {regularizer}{mara}",
    ]


def _sentences(solution: Solution) -> list[str]:
    """What happens, in words: the verdict on each β of the tables, or on MARA, and remarks."""
    lines = list(solution.asked.sentences)
    lines += _mara_verdict(solution) if solution.mara is not None else _verdicts(solution)
    for bit, text in IN_WORDS.items():
        statuses = zip(solution.betas, solution.statuses, strict=True)
        at = [f"{beta:g}" for beta, status in statuses if bit & status & ~FAILURES]
        if at:
            lines.append(f"Note: β = {', '.join(at)}: {text}")
    task = solution.task
    beyond = int(np.where(np.isneginf(task.log_ref), task.reward, -np.inf).argmax())
    others = np.where(np.isneginf(task.log_ref), -np.inf, task.reward)
    if task.reward[beyond] > others.max() and np.isneginf(solution.log_probs[:, beyond]).all():
        lines.append(
            f"Note: {quoted(task.labels[beyond])} has the highest reward but no reference mass, "
            f"and {solution.target.objective.divergence.title} keeps it impossible here"
        )
    return lines


def _verdicts(solution: Solution) -> list[str]:
    task, target, shown = solution.task, solution.target, np.array(_columns(solution))
    rows = Target(
        dataclasses.replace(target.objective, beta=target.objective.beta[shown]),
        *(x[shown] for x in (target.log_probs, target.multiplier, target.status)),
    )
    summaries = summarize(rows, solution.modes, labels=task.labels)
    # What no β can change is said once.
    always = {summary.invariant for summary in summaries}
    once = len(summaries) > 1 and len(always) == 1
    lines = [
        f"β = {solution.betas[i]:g}: {summary.headline if once else summary.verdict}"
        for i, summary in zip(shown, summaries, strict=True)
    ]
    lines += filter(None, always if once else ())
    # The summary compares modes; the reference's favourite may be a wrong answer, in none of them.
    favourite = int(task.log_ref.argmax())
    possible = np.isfinite(task.log_ref) & np.isfinite(task.reward)
    best = int(np.lexsort((-task.log_ref, -np.where(possible, task.reward, -np.inf)))[0])
    flips = any(math.isfinite(summary.flip_beta) for summary in summaries)
    if not flips and possible[favourite] and task.reward[favourite] < task.reward[best]:
        objective = task.objective(solution.betas[0], divergence=target.objective.divergence)
        flip = float(flip_beta(objective, favourite, best))
        if 0 < flip < math.inf:
            lines.append(
                f"{quoted(task.labels[best])} overtakes the reference's favourite "
                f"{quoted(task.labels[favourite])} below β = {flip:.4g}"
            )
    return lines


def _mara_verdict(solution: Solution) -> list[str]:
    assert solution.mara is not None
    raised = solution.log_probs[:, solution.right & np.isfinite(solution.task.log_ref)]
    spread = np.exp(raised.max(axis=1) - raised.min(axis=1))
    at = int(spread.argmax())
    which = f"of reward {number(solution.mara['threshold'], 6)} or more"
    count = raised.shape[1]
    if count == 1:
        return [f"MARA changes nothing: there is one outcome {which}"]
    if spread.max() < 1 + 1e-6:
        return [f"MARA makes the {count:,} outcomes {which} equally probable"]
    return [
        f"MARA leaves outcomes {which} unequal, by up to a factor {spread[at]:.3g} at "
        f"β = {solution.betas[at]:g}: use --mara-method substitute"
    ]


def _columns(solution: Solution) -> list[int]:
    """Which β are shown in columns and judged in words: all, or some from end to end."""
    last = len(solution.betas) - 1
    count = min(last + 1, _MOST_COLUMNS)
    return sorted({round(k * last / max(count - 1, 1)) for k in range(count)})


def _outcomes(solution: Solution, top: int) -> list[Table]:
    """The most probable outcomes, and modes if they are not single outcomes, at up to five β."""
    task, betas = solution.task, solution.betas
    columns = _columns(solution)
    masses = np.vstack([task.log_ref, solution.log_probs[columns]])
    heads = ["reference", *(f"β = {betas[i]:g}" for i in columns)]

    chosen = _top(masses, top)
    labels = [short(task.labels[int(i)]) for i in chosen]
    rewards = [number(float(task.reward[i])) for i in chosen]
    tables = [_mass_table(masses, chosen, heads, {"outcome": labels, "reward": rewards})]

    modes = np.unique(solution.modes[solution.right])
    if len(modes) < solution.right.sum():
        members = [np.flatnonzero(solution.modes == mode) for mode in modes]
        if not solution.right.all():
            members.append(np.flatnonzero(~solution.right))
        by_mode = np.stack([np.logaddexp.reduce(masses[:, m], axis=1) for m in members], axis=1)
        kept = _top(by_mode, top)
        likeliest = likeliest_outcomes(solution.modes, task.log_ref)
        of_modes = [f"of “{short(task.labels[likeliest[mode]], 30)}”" for mode in modes.tolist()]
        labels = [(*of_modes, "not right")[k] for k in kept]
        sizes = [f"{len(members[k]):,}" for k in kept]
        tables.append(_mass_table(by_mode, kept, heads, {"mode": labels, "outcomes": sizes}))
    return tables


def _top(masses: np.ndarray, top: int) -> np.ndarray:
    """All columns in their order; of more than ``top``, those that some target favours."""
    if masses.shape[1] <= top:
        return np.arange(masses.shape[1])
    best = np.where(np.isnan(masses[1:]), -np.inf, masses[1:]).max(axis=0)
    return np.lexsort((-masses[0], -best))[:top]


def _mass_table(
    masses: np.ndarray, chosen: np.ndarray, heads: Sequence[str], names: dict[str, list[str]]
) -> Table:
    """Two columns that name the chosen entries, then their mass in each row of ``masses``."""
    rows = [[*names, *heads]]
    for i, *cells in zip(chosen, *names.values(), strict=True):
        rows.append([*cells, *map(probability, masses[:, i])])
    rest = np.delete(masses, chosen, axis=1)
    if rest.shape[1]:
        total = np.logaddexp.reduce(rest, axis=1)
        rows.append([f"({rest.shape[1]:,} more)", "", *map(probability, total)])
    return Table(rows, "l" + "r" * (len(heads) + 1))


def to_json(solution: Solution) -> str:
    """What ``--json`` writes; ``kltarget.cli`` says which keys there are."""
    task, target = solution.task, solution.target
    rows = {name: values[1:] for name, values in solution.measures.items()}
    for name in ("value", "multiplier", "divergence_value"):
        rows[name] = np.asarray(getattr(target, name)).tolist()
    content = {
        "problem": task.name,
        "divergence": solution.divergence,
        "mara": solution.mara,
        "asked": solution.asked.record,
        "notes": list(getattr(task, "notes", ())),
        "missing_mass": getattr(task, "missing_mass", 0.0),
        "labels": list(task.labels),
        "reward": task.reward.tolist(),
        "log_ref": task.log_ref.tolist(),
        "modes": task.modes.tolist(),
        "targets": [
            {
                "beta": beta,
                **{name: values[i] for name, values in rows.items()},
                "status": set_bits(solution.statuses[i]),
                "log_probs": solution.log_probs[i].tolist(),
            }
            for i, beta in enumerate(solution.betas)
        ],
    }
    return json_text(content)
