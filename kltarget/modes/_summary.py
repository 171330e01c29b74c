"""``summarize``: what a target does to the reference, in one table and one sentence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kltarget._core.checks import traced
from kltarget._core.page import Page, Paragraph, Table
from kltarget._core.records import Record
from kltarget._core.status import IN_WORDS
from kltarget._core.words import counted, number, percent, quoted, short, times
from kltarget.modes._labels import concrete_labels
from kltarget.modes._verdict import FOOTNOTE, Facts, joined
from kltarget.objectives import Objective
from kltarget.targets import DiscreteTarget, solve
from kltarget.tasks import as_task


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
class Summary(Record):
    """What a target does to the reference; :func:`summarize` makes it.

    Prints as a table, and as HTML in a notebook.

    Attributes:
        divergence: name of the regulariser; "none" where there is no target.
        beta: its coefficient, in reward units per nat; of a recipe's target as given.
        effective_beta: of a recipe's target the coefficient in units of its reward, else ``beta``.
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
        verdict: what happens, in a sentence: the headline, and what no β changes.
        headline: what happens at this β.
        invariant: the ratios that are the reference's at every β; empty if there are none.
        status: remarks and failures of the solver, in words; empty if there are none.
        notes: other things worth knowing.
    """

    divergence: str
    beta: float
    effective_beta: float
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
    headline: str
    invariant: str
    status: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return self._page().to_text()

    def _repr_html_(self) -> str:
        return self._page().to_html()

    def _page(self) -> Page:
        return Page(
            [Paragraph("", label=self._title())],
            *([table] for table in self._tables()),
            [
                Paragraph(self.verdict, label="Verdict:"),
                *(Paragraph(f"Note: {remark}") for remark in self._remarks()),
            ],
            [Paragraph(FOOTNOTE, faint=True)],
        )

    def _title(self) -> str:
        count = counted(self.num_outcomes, "outcome")
        if self.num_modes != self.num_outcomes:
            count += f", {counted(self.num_modes, 'mode')}"
        what = "No target" if self.divergence == "none" else f"Target of {self.divergence}"
        return f"{what} at {self._coefficient()}, {count}"

    def _coefficient(self, effective: str = "effective β =") -> str:
        beta = f"β = {self.beta:.4g}"
        if self.divergence == "none" or self.effective_beta == self.beta:
            return beta
        return f"{beta} ({effective} {self.effective_beta:.4g})"

    def _remarks(self) -> list[str]:
        remarks = [*filter(None, [self.status]), *self.notes]
        if len(self.greedy) == 1:
            of = "the mode of " if self.mode_rows else ""
            remarks.append(f"as β → 0 the target tends to {of}{quoted(self.greedy[0][0])} alone")
        elif self.greedy:
            shown = [f"{quoted(label)} {_share(p)}" for label, p in self.greedy[:3]]
            more = ", …" if len(self.greedy) > len(shown) else ""
            of = "the modes of " if self.mode_rows else ""
            remarks.append(f"as β → 0 the target tends to {of}{', '.join(shown)}{more}")
        return remarks

    def _tables(self) -> list[Table]:
        best = counted(self.num_best_modes, "best mode")
        measured = [
            ("expected reward", "expected_reward", number),
            (f"mass on the {best}", "best_mass", _share),
            (f"effective modes, of {self.num_modes:,}", "effective_modes", _three_digits),
            (f"effective modes among the {best}", "effective_best_modes", _three_digits),
        ]
        if self.num_best_modes <= 1:
            del measured[3]
        rows = [
            (what, shown(getattr(self, f"{field}_reference")), shown(getattr(self, field)))
            for what, field, shown in measured
        ]
        rows += [
            ("KL(π*‖π_ref), nats", "0", number(self.reverse_kl)),
            ("KL(π_ref‖π*), nats", "0", number(self.forward_kl)),
        ]
        column = "one end" if self.divergence == "none" else "target"
        tables = [Table([("", "reference", column), *rows], "lrr")]
        outcomes = self.rows, self.num_outcomes, column
        if self.mode_rows:
            modes = self.mode_rows, self.num_modes, column
            tables.append(_mass_table("mode", "outcomes", *modes))
        return [*tables, _mass_table("outcome", "", *outcomes)]


class Summaries(tuple[Summary, ...]):
    """The summaries of a batch. Prints as one page: a row for each, and what it says."""

    __slots__ = ()

    def __str__(self) -> str:
        return self._page().to_text()

    def _repr_html_(self) -> str:
        return self._page().to_html()

    def _page(self) -> Page:
        if not self:
            return Page([Paragraph("no problems")])
        heads = ("expected reward", "mass on the best modes", "effective modes", "KL(π*‖π_ref)")
        rows: list[tuple[str, ...]] = [("", *heads)]
        names = _distinct([summary._coefficient("effective") for summary in self])
        for name, x in zip(names, self, strict=True):
            reached = number(x.expected_reward), _share(x.best_mass)
            rows.append((name, *reached, _three_digits(x.effective_modes), number(x.reverse_kl)))
        always = {summary.invariant for summary in self}
        once = len(always) == 1
        said = [
            Paragraph(x.headline if once else x.verdict, label=f"{name}:", hanging=4)
            for name, x in zip(names, self, strict=True)
        ]
        further = [Paragraph(text) for text in always if once and text]
        which = ", ".join(sorted({summary.divergence for summary in self} - {"none"}))
        title = f"Targets of {which}" if which else "No targets"
        title += f", {counted(len(self), 'problem')}"
        return Page(
            [Paragraph("", label=title)],
            [Table(rows, "l" + "r" * len(heads))],
            [*said, *further],
            [Paragraph(FOOTNOTE, faint=True)],
        )


def _distinct(names: list[str]) -> list[str]:
    """Names with numbers where one occurs twice."""
    if len(set(names)) == len(names):
        return names
    return [f"{k}: {name}" for k, name in enumerate(names)]


def summarize(
    problem: Any,
    modes: ArrayLike | None = None,
    *,
    labels: Sequence[str] | None = None,
    top: int = 10,
    beta: ArrayLike | None = None,
    **options: Any,
) -> Any:
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
        problem: a target or an objective, which is solved, of any batch shape; or a problem in any
            other form that :func:`kltarget.tasks.as_task` takes.
        modes: one integer label per outcome, shape ``[A]``; outcomes of labels below 0 belong to no
            mode. By default those of a task, of a target or an objective each outcome.
        labels: what to call the outcomes, A strings; by default as the task does, or indices.
        top: how many outcomes, and modes, to list.
        beta: of a task, reward units per nat, shape ``[*batch]``; targets and objectives have one.
        **options: of a task those of its ``objective``: ``divergence=`` chooses the regulariser.

    Returns:
        A :class:`Summary`; of a batch a tuple of them, an entry per problem with the last axis of
        the batch running fastest. ``print`` it, or leave it as the last line of a notebook's cell:
        a batch is one table. ``to_dict()`` of a summary is ready for ``json``.

    Raises:
        TypeError: traced arrays, an argument that is no problem, a task without ``beta``, or a
            target or an objective with one.
        ValueError: ``modes`` or ``labels`` that do not fit, a ``top``
            below 1.

    The target of a recipe (:func:`kltarget.implied_target`) is judged by the trainer's own reward,
    after the recipe's scaling, and β is the recipe's. What would happen at another β is then not
    said, nor, where nothing regularises, what the target is: there is none.

    A failed target is reported as such, with NaN in its numbers. Not differentiable: this is for
    people.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> log_ref = jnp.log(jnp.array([0.3, 0.02, 0.68]))
        >>> objective = kt.Objective(jnp.array([1.0, 1.0, 0.0]), log_ref, 0.1)
        >>> print(kt.summarize(objective, labels=["1", "2", "other"]).verdict)
        collapses: 93.7 % of the mass is on “1”, one of 2 equally rewarded modes; equal rewards keep
        the reference's ratio (15 : 1) at every β
        >>> [summary.headline.split(":")[0] for summary in kt.summarize("bimodal", beta=[0.05, 1])]
        ['collapses', 'misses the best reward']

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817.
    """
    if not isinstance(problem, Objective | DiscreteTarget):
        task = as_task(problem, modes=modes, labels=labels)
        if beta is None:
            raise TypeError(
                "a problem without an objective has no beta, and none is guessed: give beta= in "
                "reward units per nat"
            )
        objective = task.objective(np.asarray(beta), **options)
        return summarize(objective, task.modes, labels=task.labels, top=top)
    if beta is not None or options:
        raise TypeError("a target and an objective have a beta and a divergence of their own")
    if any(traced(x) for x in jax.tree.leaves(problem)):
        raise TypeError("summarize needs concrete numbers: call it outside jit, vmap and grad")
    is_target = isinstance(problem, DiscreteTarget)
    objective = problem.objective if is_target else problem
    if top < 1:
        raise ValueError(f"top must be 1 or more, got {top}")
    count = objective.num_outcomes
    # A million labels may be spelt only when read: they are not copied.
    names = tuple(map(str, range(count))) if labels is None else labels
    if len(names) != count:
        raise ValueError(f"there are {len(names)} labels for {count} outcomes: give one for each")
    mode_labels = concrete_labels(np.arange(count) if modes is None else modes, count)
    target = problem if is_target else solve(objective)
    if objective.batch_shape == ():
        return _summary(Facts(target, mode_labels, names, top))
    return Summaries(_summary(Facts(row, mode_labels, names, top)) for row in _rows(target))


def _rows(target: DiscreteTarget) -> Iterator[DiscreteTarget]:
    """The target of every problem of a batch."""
    objective, batch = target.objective, target.objective.batch_shape
    size = objective.num_outcomes
    fields = (
        jnp.broadcast_to(objective.reward, (*batch, size)),
        jnp.broadcast_to(objective.log_ref, (*batch, size)),
        jnp.broadcast_to(objective.beta, batch),
        jax.tree.map(lambda x: jnp.broadcast_to(x, batch), objective.divergence),
    )
    values = {x.name: getattr(target, x.name) for x in dataclasses.fields(target)}
    certificate = {name: x for name, x in values.items() if isinstance(x, jax.Array)}
    for index in np.ndindex(batch):
        one, parts = jax.tree.map(lambda x, index=index: x[index], (fields, certificate))
        row = Objective.unchecked(*one, measure=objective.measure)
        yield dataclasses.replace(target, objective=row, **parts)


def _summary(facts: Facts) -> Summary:
    numbers, rivals = facts.numbers()
    headline, invariant = facts.verdict(numbers, rivals)
    return Summary(
        **numbers,
        rows=_outcome_rows(facts),
        mode_rows=_mode_rows(facts) if facts.grouped else (),
        greedy=facts.greedy(),
        headline=headline,
        invariant=invariant,
        verdict=joined(headline, invariant),
        status="; ".join(text for bit, text in IN_WORDS.items() if bit & facts.status),
        notes=facts.notes(numbers),
    )


def _outcome_rows(facts: Facts) -> tuple[SummaryRow, ...]:
    columns = (facts.reward, facts.log_ref, facts.log_probs)
    rows = []
    for i in facts.order(facts.log_probs, facts.log_ref):
        numbers = (float(x[i]) for x in columns)
        rows.append(SummaryRow(facts.names[int(i)], *numbers, mode=int(max(facts.modes[i], -1))))
    return tuple(rows)


def _mode_rows(facts: Facts) -> tuple[SummaryRow, ...]:
    columns = (facts.mode_reward, facts.mode_ref, facts.mode_log)
    rows = []
    for k in facts.order(facts.mode_log, facts.mode_ref):
        mode, numbers = int(facts.mode_labels[k]), (float(x[k]) for x in columns)
        size = int((facts.modes == mode).sum())
        rows.append(SummaryRow(facts.name_of(k), *numbers, mode=mode, size=size))
    return tuple(rows)


def _share(p: float) -> str:
    return percent(math.log(p) if p > 0 else (math.nan if math.isnan(p) else -math.inf))


def _three_digits(x: float) -> str:
    return number(x, 3)


def _mass_table(
    what: str, size: str, rows: tuple[SummaryRow, ...], total: int, column: str
) -> Table:
    ratio = f"{column}/reference"
    table = [[what, *filter(None, [size]), "reward", "reference", column, ratio]]
    for row in rows:
        named = [f"of {quoted(row.label)}", f"{row.size:,}"] if size else [short(row.label)]
        numbers = [number(row.reward), percent(row.log_ref), percent(row.log_prob)]
        table.append([*named, *numbers, times(row.log_prob, row.log_ref)])
    if len(rows) < total:
        # All masses sum to one, but for outcomes of no mode.
        table.append([f"({total - len(rows):,} more)", *[""] * (len(table[0]) - 1)])
    return Table(table, "l" + "r" * (len(table[0]) - 1))
