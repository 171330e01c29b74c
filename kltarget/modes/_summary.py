"""``summarize``: what a target does to the reference, in one table and one sentence."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from kltarget._core.checks import traced
from kltarget._core.status import IN_WORDS
from kltarget._core.words import aligned, number, percent, plain, quoted, short, times, wrapped
from kltarget.modes._labels import concrete_labels
from kltarget.modes._verdict import FOOTNOTE, Facts
from kltarget.objectives import Objective
from kltarget.targets import DiscreteTarget, solve

__all__ = ["Summary", "SummaryRow", "summarize"]


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """One outcome, or one mode.

    Attributes:
        label: what it is called.
        reward: its reward; of a mode the highest of its outcomes, in reward units.
        log_ref: natural-log probability in the reference.
        log_prob: natural-log probability in the target.
        mode: the label of its mode; -1 if it has none.
        size: how many outcomes it stands for.
    """

    label: str
    reward: float
    log_ref: float
    log_prob: float
    mode: int
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a target does to the reference; :func:`summarize` makes it.

    Prints as a table, and as HTML in a notebook.

    Attributes:
        divergence: name of the regulariser.
        beta: its coefficient, in reward units per nat.
        num_outcomes: how many outcomes there are.
        num_modes: how many modes they form.
        num_best_modes: how many modes have the best reward that a target can reach.
        expected_reward: ``E_π*[r]`` in reward units.
        expected_reward_reference: ``E_π_ref[r]``; ``-inf`` if the reference does what is forbidden.
        reverse_kl: ``KL(π*‖π_ref)`` in nats.
        forward_kl: ``KL(π_ref‖π*)`` in nats.
        best_mass: target probability of the best modes.
        best_mass_reference: their reference probability.
        effective_modes: exp of the target's entropy over all modes.
        effective_modes_reference: the same of the reference.
        effective_best_modes: exp of the entropy among the best modes, renormalised.
        effective_best_modes_reference: the same of the reference; NaN if it has none of them.
        rows: the most probable outcomes of the target.
        mode_rows: the most probable modes; empty if none has more than one outcome.
        greedy: labels and probabilities of the modes that the target tends to for beta to 0, the
            likeliest first, at most as many as may be listed; empty without a choice or a target.
        flip_beta: β at which the two modes in ``flip_modes`` are equally probable; NaN if there is
            none or the comparison makes no sense.
        flip_modes: labels of the best mode and of its likeliest rival, or empty.
        collapse_beta: the largest β at which the target stands on the best outcomes alone.
        verdict: what happens, in a sentence.
        status: remarks and failures of the solver, in words; empty if there are none.
        notes: other things worth knowing.
    """

    divergence: str
    beta: float
    num_outcomes: int
    num_modes: int
    num_best_modes: int
    expected_reward: float
    expected_reward_reference: float
    reverse_kl: float
    forward_kl: float
    best_mass: float
    best_mass_reference: float
    effective_modes: float
    effective_modes_reference: float
    effective_best_modes: float
    effective_best_modes_reference: float
    rows: tuple[SummaryRow, ...]
    mode_rows: tuple[SummaryRow, ...]
    greedy: tuple[tuple[str, float], ...]
    flip_beta: float
    flip_modes: tuple[str, ...]
    collapse_beta: float
    verdict: str
    status: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python for ``json``; numbers that are not finite become strings."""
        return plain(dataclasses.asdict(self))

    def __str__(self) -> str:
        lines = [self._title(), ""]
        for table in self._tables():
            lines += [*aligned(table), ""]
        lines += wrapped(f"Verdict: {self.verdict}")
        for remark in self._remarks():
            lines += wrapped(f"Note: {remark}")
        lines += ["", *wrapped(FOOTNOTE)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{html.escape(self._title())}</b></p>"]
        for head, *body in self._tables():
            cells = [
                f"<tr>{''.join(_html_cell('th', x, k) for k, x in enumerate(head))}</tr>",
                *(
                    f"<tr>{''.join(_html_cell('td', x, k) for k, x in enumerate(row))}</tr>"
                    for row in body
                ),
            ]
            parts.append(
                f"<table><thead>{cells[0]}</thead><tbody>{''.join(cells[1:])}</tbody></table>"
            )
        parts.append(f"<p><b>Verdict:</b> {html.escape(self.verdict)}</p>")
        parts += [f"<p>Note: {html.escape(remark)}</p>" for remark in self._remarks()]
        parts.append(f"<p><small>{html.escape(FOOTNOTE)}</small></p>")
        return f"<div>{''.join(parts)}</div>"

    def _title(self) -> str:
        count = f"{self.num_outcomes:,} outcome{'s' * (self.num_outcomes != 1)}"
        if self.num_modes != self.num_outcomes:
            count += f", {self.num_modes:,} mode{'s' * (self.num_modes != 1)}"
        return f"Target of {self.divergence} at β = {self.beta:.4g}, {count}"

    def _remarks(self) -> list[str]:
        remarks = [*filter(None, [self.status]), *self.notes]
        if len(self.greedy) == 1:
            of = "the mode of " if self.mode_rows else ""
            remarks.append(f"as β → 0 the target tends to {of}{quoted(self.greedy[0][0])} alone")
        elif self.greedy:
            shown = [f"{quoted(label)} {percent(_log(p))}" for label, p in self.greedy[:3]]
            more = ", …" if len(self.greedy) > len(shown) else ""
            of = "the modes of " if self.mode_rows else ""
            remarks.append(f"as β → 0 the target tends to {of}{', '.join(shown)}{more}")
        return remarks

    def _tables(self) -> list[list[list[str]]]:
        several = "" if self.num_best_modes == 1 else "s"
        best = f"{self.num_best_modes:,} best mode{several}"
        before_after = [
            ["", "reference", "target"],
            [
                "expected reward",
                number(self.expected_reward_reference),
                number(self.expected_reward),
            ],
            [
                f"mass on the {best}",
                percent(_log(self.best_mass_reference)),
                percent(_log(self.best_mass)),
            ],
            [
                f"effective modes, of {self.num_modes:,}",
                number(self.effective_modes_reference, 3),
                number(self.effective_modes, 3),
            ],
        ]
        if self.num_best_modes > 1:
            before_after.append(
                [
                    f"effective modes among the {best}",
                    number(self.effective_best_modes_reference, 3),
                    number(self.effective_best_modes, 3),
                ]
            )
        before_after += [
            ["KL(π*‖π_ref), nats", "0", number(self.reverse_kl)],
            ["KL(π_ref‖π*), nats", "0", number(self.forward_kl)],
        ]
        tables = [before_after]
        if self.mode_rows:
            tables.append(_mass_table("mode", "outcomes", self.mode_rows, self.num_modes))
        tables.append(_mass_table("outcome", "", self.rows, self.num_outcomes))
        return tables


def summarize(
    objective_or_target: Objective | DiscreteTarget,
    modes: ArrayLike | None = None,
    *,
    labels: Sequence[str] | None = None,
    top: int = 10,
) -> Summary:
    """What the target of ``max_π E_π[reward] − β·D(π, π_ref)`` does to the reference, at a glance.

    The best modes are those that hold an outcome of the highest reward a target can reach. The
    verdict is, the first that applies:

    - *stays at the reference*: ``KL(π*‖π_ref)`` is below 0.01 nats;
    - *misses*: less than 50 % of the mass is on the best modes;
    - *collapses*: at least 90 % of the best modes' mass is on one of them (with a single best mode:
      at least 90 % of all mass is on it);
    - *keeps diversity*: the effective number of best modes is at least 90 % of the reference's;
    - *leans*: anything between.

    Args:
        objective_or_target: one problem, of batch shape ``()``. An objective is solved.
        modes: one integer label per outcome, shape ``[A]``; outcomes of labels below 0 belong to no
            mode. By default each outcome is a mode.
        labels: what to call the outcomes, A strings; by default their indices.
        top: how many outcomes, and modes, to list.

    Returns:
        A :class:`Summary`. ``print`` it, or leave it as the last line of a notebook's cell;
        ``to_dict()`` is ready for ``json``.

    Raises:
        TypeError: traced arrays, or an argument that is neither an objective nor a target.
        ValueError: several problems at once, ``modes`` or ``labels`` that do not fit, a ``top``
            below 1.

    A failed target is reported as such, with NaN in its numbers. Not differentiable: this is for
    people.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> objective = kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, 0.1)
        >>> print(kt.summarize(objective, labels=["1", "2", "other"]).verdict)
        collapses: 93.7 % of the mass is on “1”, one of 2 equally rewarded modes; equal rewards keep
        the reference's ratio (15 : 1) at every β

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817.
    """
    if not isinstance(objective_or_target, (Objective, DiscreteTarget)):
        raise TypeError(
            f"expected an Objective or a Target, got {type(objective_or_target).__name__}"
        )
    if any(traced(x) for x in jax.tree.leaves(objective_or_target)):
        raise TypeError("summarize needs concrete numbers: call it outside jit, vmap and grad")
    is_target = isinstance(objective_or_target, DiscreteTarget)
    objective = objective_or_target.objective if is_target else objective_or_target
    batch = objective.batch_shape
    if batch != ():
        raise ValueError(
            f"summarize describes one problem, got batch shape {batch}: pass one of them, for "
            "example summarize(Objective(reward[i], log_ref[i], beta[i]))"
        )
    if top < 1:
        raise ValueError(f"top must be 1 or more, got {top}")
    count = objective.num_outcomes
    # A million labels may be spelt only when read: they are not copied.
    names = tuple(map(str, range(count))) if labels is None else labels
    if len(names) != count:
        raise ValueError(f"there are {len(names)} labels for {count} outcomes: give one for each")
    mode_labels = concrete_labels(np.arange(count) if modes is None else modes, count)
    target = objective_or_target if is_target else solve(objective)
    return _summary(Facts(objective, target, mode_labels, names, top))


def _summary(facts: Facts) -> Summary:
    numbers, rivals = facts.numbers()
    return Summary(
        **numbers,
        rows=_outcome_rows(facts),
        mode_rows=_mode_rows(facts) if facts.grouped else (),
        greedy=facts.greedy(),
        verdict=facts.verdict(numbers, rivals),
        status="; ".join(text for bit, text in IN_WORDS.items() if bit & facts.status),
        notes=facts.notes(numbers),
    )


def _outcome_rows(facts: Facts) -> tuple[SummaryRow, ...]:
    return tuple(
        SummaryRow(
            label=facts.names[int(i)],
            reward=float(facts.reward[i]),
            log_ref=float(facts.log_ref[i]),
            log_prob=float(facts.log_probs[i]),
            mode=int(max(facts.modes[i], -1)),
        )
        for i in facts.order(facts.log_probs, facts.log_ref)
    )


def _mode_rows(facts: Facts) -> tuple[SummaryRow, ...]:
    return tuple(
        SummaryRow(
            label=facts.name_of(k),
            reward=float(facts.mode_reward[k]),
            log_ref=float(facts.mode_ref[k]),
            log_prob=float(facts.mode_log[k]),
            mode=int(facts.mode_labels[k]),
            size=int((facts.modes == facts.mode_labels[k]).sum()),
        )
        for k in facts.order(facts.mode_log, facts.mode_ref)
    )


def _log(p: float) -> float:
    return math.log(p) if p > 0 else (math.nan if math.isnan(p) else -math.inf)


def _mass_table(what: str, size: str, rows: tuple[SummaryRow, ...], total: int) -> list[list[str]]:
    table = [[what, *filter(None, [size]), "reward", "reference", "target", "target/reference"]]
    for row in rows:
        named = [f"of {quoted(row.label)}", f"{row.size:,}"] if size else [short(row.label)]
        table.append(
            [
                *named,
                f"{row.reward:.4g}".replace("inf", "∞"),
                percent(row.log_ref),
                percent(row.log_prob),
                times(row.log_prob, row.log_ref),
            ]
        )
    if len(rows) < total:
        # All masses sum to one, but for outcomes of no mode.
        table.append([f"({total - len(rows):,} more)", *[""] * (len(table[0]) - 1)])
    return table


def _html_cell(tag: str, text: str, column: int) -> str:
    side = "left" if column == 0 else "right"
    return f'<{tag} style="text-align: {side}">{html.escape(text)}</{tag}>'
