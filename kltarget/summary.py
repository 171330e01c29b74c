"""``summarize``: what a target does to the reference, in one table and one sentence."""

from __future__ import annotations

import dataclasses
import html
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from kltarget._mass import concrete_labels
from kltarget.divergences import kl
from kltarget.modes import collapse_beta, effective_modes, flip_beta, mode_log_mass
from kltarget.objectives import Objective, _traced
from kltarget.status import Status
from kltarget.targets import Target, greedy_limit, solve

__all__ = ["Summary", "SummaryRow", "summarize"]

_COLLAPSED = 0.9
_KEPT = 0.9
_REACHED = 0.5
_UNMOVED = 0.01

_FOOTNOTE = (
    f"Collapses: at least {_COLLAPSED:.0%} of the best modes' mass is on one of them. "
    f"Keeps diversity: at least {_KEPT:.0%} of the reference's effective modes among them. "
    f"Misses: less than {_REACHED:.0%} of all mass is on them. "
    f"Stays: KL(π*‖π_ref) below {_UNMOVED:g} nats."
).replace("%", " %")

_REMARKS = {
    Status.CONDENSED: "part of the target stands on outcomes without reference mass",
    Status.TRUNCATED: "the target is exactly 0 on outcomes that the reference can produce",
    Status.NOT_UNIQUE: "tied outcomes share a mass of which only the total is determined",
    Status.NOT_CONVERGED: "the root of the multiplier was not found",
    Status.INVALID_BETA: "beta is not above 0 and finite",
    Status.INVALID_REWARD: "a reward is NaN or +inf",
    Status.INVALID_REFERENCE: "the reference is NaN or its masses do not sum to one",
    Status.EMPTY_SUPPORT: "no outcome has both a finite reward and reference mass",
}


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
        return _plain(dataclasses.asdict(self))

    def __str__(self) -> str:
        lines = [self._title(), ""]
        for table in self._tables():
            lines += [*_aligned(table), ""]
        lines += _wrapped(f"Verdict: {self.verdict}")
        for remark in self._remarks():
            lines += _wrapped(f"Note: {remark}")
        lines += ["", *_wrapped(_FOOTNOTE)]
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
        parts.append(f"<p><small>{html.escape(_FOOTNOTE)}</small></p>")
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
            remarks.append(f"as β → 0 the target tends to {of}{_quoted(self.greedy[0][0])} alone")
        elif self.greedy:
            shown = [f"{_quoted(label)} {_percent(_log(p))}" for label, p in self.greedy[:3]]
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
                _number(self.expected_reward_reference),
                _number(self.expected_reward),
            ],
            [
                f"mass on the {best}",
                _percent(_log(self.best_mass_reference)),
                _percent(_log(self.best_mass)),
            ],
            [
                f"effective modes, of {self.num_modes:,}",
                _number(self.effective_modes_reference, 3),
                _number(self.effective_modes, 3),
            ],
        ]
        if self.num_best_modes > 1:
            before_after.append(
                [
                    f"effective modes among the {best}",
                    _number(self.effective_best_modes_reference, 3),
                    _number(self.effective_best_modes, 3),
                ]
            )
        before_after += [
            ["KL(π*‖π_ref), nats", "0", _number(self.reverse_kl)],
            ["KL(π_ref‖π*), nats", "0", _number(self.forward_kl)],
        ]
        tables = [before_after]
        if self.mode_rows:
            tables.append(_mass_table("mode", "outcomes", self.mode_rows, self.num_modes))
        tables.append(_mass_table("outcome", "", self.rows, self.num_outcomes))
        return tables


def summarize(
    objective_or_target: Objective | Target,
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
    if not isinstance(objective_or_target, (Objective, Target)):
        raise TypeError(
            f"expected an Objective or a Target, got {type(objective_or_target).__name__}"
        )
    if any(_traced(x) for x in jax.tree.leaves(objective_or_target)):
        raise TypeError("summarize needs concrete numbers: call it outside jit, vmap and grad")
    is_target = isinstance(objective_or_target, Target)
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
    names = tuple(map(str, range(count) if labels is None else labels))
    if len(names) != count:
        raise ValueError(f"there are {len(names)} labels for {count} outcomes: give one for each")
    mode_labels = concrete_labels(np.arange(count) if modes is None else modes, count)
    target = objective_or_target if is_target else solve(objective)
    return _Facts(objective, target, mode_labels, names, top).summary()


class _Facts:
    """Host copies of one problem, and what is read off them."""

    def __init__(
        self,
        objective: Objective,
        target: Target,
        modes: np.ndarray,
        names: tuple[str, ...],
        top: int,
    ) -> None:
        def host(x: Any) -> np.ndarray:
            return np.asarray(x, dtype=np.float64)

        self.objective, self.target, self.modes, self.names = objective, target, modes, names
        self.top = top
        self.beta = float(objective.beta)
        self.reward, self.log_ref = host(objective.reward), host(objective.log_ref)
        self.log_probs = host(target.log_probs)
        self.status = Status(int(target.status))
        self.failed = bool(np.isnan(self.log_probs).any())
        self.mode_labels = np.unique(modes[modes >= 0])
        self.mode_ref = host(mode_log_mass(objective.log_ref, modes))
        self.mode_log = host(mode_log_mass(target.log_probs, modes))
        self.mode_reward = np.array([self.reward[modes == m].max() for m in self.mode_labels])
        self.grouped = bool((np.unique(modes[modes >= 0], return_counts=True)[1] > 1).any())

        usable = (self.log_ref > -np.inf) & (self.reward > -np.inf)
        self.possible = usable
        # At a finite slope at infinity a better outcome that the reference lacks can have mass.
        if usable.any() and float(objective.divergence.slope_at_infinity) < math.inf:
            beyond = self.reward > self.reward[usable].max()
            self.possible = usable | (np.isneginf(self.log_ref) & beyond)
        counted = self.possible & (modes >= 0)
        self.highest = float(self.reward[counted].max()) if counted.any() else math.nan
        on_top = counted & (self.reward == self.highest)
        self.is_best = np.array([bool((on_top & (modes == m)).any()) for m in self.mode_labels])

    def name_of(self, mode: int) -> str:
        """A mode goes by its likeliest outcome."""
        members = np.flatnonzero(self.modes == self.mode_labels[mode])
        best = members[self.log_ref[members].argmax()] if len(members) else 0
        return self.names[best]

    def quoted(self, mode: int) -> str:
        return ("the mode of " if self.grouped else "") + _quoted(self.name_of(mode))

    def summary(self) -> Summary:
        target, modes = self.target, self.modes
        best = modes[:, None] == self.mode_labels[self.is_best][None, :]
        among = np.where(best.any(axis=1), modes, -1)

        def hill(log_probs: Any, labels: np.ndarray) -> float:
            if not (labels >= 0).any():
                return math.nan
            return float(effective_modes(log_probs, labels))

        forbidden = (self.log_ref > -np.inf) & np.isneginf(self.reward)
        safe = np.where(np.isfinite(self.reward), self.reward, 0)
        reference_reward = float((np.exp(self.log_ref) * safe).sum())
        flip, rivals = self.flip()
        mass, mass_ref = (_total(x[self.is_best]) for x in (self.mode_log, self.mode_ref))
        facts: dict[str, Any] = {
            "divergence": self.objective.divergence.name,
            "beta": self.beta,
            "num_outcomes": len(modes),
            "num_modes": len(self.mode_labels),
            "num_best_modes": int(self.is_best.sum()),
            "expected_reward": float(target.expected_reward),
            "expected_reward_reference": -math.inf if forbidden.any() else reference_reward,
            "reverse_kl": float(kl(target.log_probs, self.objective.log_ref)),
            "forward_kl": float(kl(self.objective.log_ref, target.log_probs)),
            "best_mass": math.exp(mass),
            "best_mass_reference": math.exp(mass_ref),
            "effective_modes": hill(target.log_probs, modes),
            "effective_modes_reference": hill(self.objective.log_ref, modes),
            "effective_best_modes": hill(target.log_probs, among),
            "effective_best_modes_reference": hill(self.objective.log_ref, among),
            "flip_beta": flip,
            "flip_modes": tuple(self.name_of(k) for k in rivals),
            "collapse_beta": float(collapse_beta(self.objective)),
        }
        if self.failed:
            for name in ("expected_reward", "reverse_kl", "forward_kl", "best_mass"):
                facts[name] = math.nan
        return Summary(
            **facts,
            rows=self.outcome_rows(),
            mode_rows=self.mode_rows() if self.grouped else (),
            greedy=self.greedy(),
            verdict=self.verdict(facts, rivals),
            status="; ".join(text for bit, text in _REMARKS.items() if bit & self.status),
            notes=self.notes(facts),
        )

    def order(self, log_probs: np.ndarray, log_ref: np.ndarray) -> np.ndarray:
        known = np.where(np.isnan(log_probs), -np.inf, log_probs)
        return np.lexsort((-log_ref, -known))[: self.top]

    def outcome_rows(self) -> tuple[SummaryRow, ...]:
        return tuple(
            SummaryRow(
                label=self.names[i],
                reward=float(self.reward[i]),
                log_ref=float(self.log_ref[i]),
                log_prob=float(self.log_probs[i]),
                mode=int(max(self.modes[i], -1)),
            )
            for i in self.order(self.log_probs, self.log_ref)
        )

    def mode_rows(self) -> tuple[SummaryRow, ...]:
        return tuple(
            SummaryRow(
                label=self.name_of(k),
                reward=float(self.mode_reward[k]),
                log_ref=float(self.mode_ref[k]),
                log_prob=float(self.mode_log[k]),
                mode=int(self.mode_labels[k]),
                size=int((self.modes == self.mode_labels[k]).sum()),
            )
            for k in self.order(self.mode_log, self.mode_ref)
        )

    def greedy(self) -> tuple[tuple[str, float], ...]:
        if self.failed or self.possible.sum() == 1:
            return ()
        log_probs = greedy_limit(self.objective).log_probs
        masses = np.exp(np.asarray(mode_log_mass(log_probs, self.modes), dtype=np.float64))
        order = np.argsort(-masses, kind="stable")[: self.top]
        return tuple((self.name_of(k), float(masses[k])) for k in order if masses[k] > 0)

    def flip(self) -> tuple[float, tuple[int, ...]]:
        """Where the only best mode overtakes its likeliest rival."""
        if self.failed or self.is_best.sum() != 1 or len(self.mode_labels) < 2:
            return math.nan, ()
        best = int(self.is_best.argmax())
        ranked = np.lexsort((-self.mode_ref, -self.mode_log))
        rival = int(next(k for k in ranked if k != best))
        i, j = (int(self.mode_labels[k]) for k in (best, rival))
        return float(flip_beta(self.objective, i, j, modes=self.modes)), (best, rival)

    def notes(self, facts: dict[str, Any]) -> tuple[str, ...]:
        notes = []
        out_of_reach = np.isneginf(self.log_ref) & (self.reward > self.highest)
        if out_of_reach.any():
            i = int(np.where(out_of_reach, self.reward, -np.inf).argmax())
            notes.append(
                f"{_quoted(self.names[i])} has a higher reward ({self.reward[i]:.4g}), but no "
                f"reference mass, and {facts['divergence']} never leaves the reference's support"
            )
        threshold = facts["collapse_beta"]
        if 0 < threshold < math.inf:
            side = "within" if self.beta <= threshold else "above"
            notes.append(
                f"all mass is on the best outcomes for β up to {threshold:.4g}; this β is {side}"
            )
        return tuple(notes)

    def verdict(self, facts: dict[str, Any], rivals: tuple[int, ...]) -> str:
        if self.failed:
            return "no target: the problem is invalid or was not solved"
        if self.possible.sum() == 1:
            only = self.names[int(self.possible.argmax())]
            return f"there is no choice: only {_quoted(only)} is possible"
        best = np.flatnonzero(self.is_best)
        if not len(best):
            return "no mode is possible: all mass is on outcomes of no mode"
        kept = self.kept_ratios(best)
        if len(np.unique(self.reward[self.possible])) == 1:
            return "keeps the reference at every β: all possible outcomes have the same reward"
        if facts["reverse_kl"] < _UNMOVED:
            return _joined(
                f"stays at the reference: KL(π*‖π_ref) is {facts['reverse_kl']:.2g} nats",
                kept,
                self.flip_sentence(facts, rivals),
            )
        mass = facts["best_mass"]
        if len(best) == 1:
            return _joined(self.single(best[0], mass), self.flip_sentence(facts, rivals))
        several = f"{len(best):,} equally rewarded modes"
        if mass < _REACHED:
            return _joined(
                f"misses the best reward: {_percent(_log1m(mass))} of the mass is on outcomes of "
                f"lower reward than the {several}",
                kept,
            )
        largest = best[self.mode_log[best].argmax()]
        share = math.exp(self.mode_log[largest] - _total(self.mode_log[best]))
        now, before = facts["effective_best_modes"], facts["effective_best_modes_reference"]
        if share >= _COLLAPSED:
            return _joined(
                f"collapses: {_percent(float(self.mode_log[largest]))} of the mass is on "
                f"{self.quoted(largest)}, one of {several}",
                kept,
            )
        amount = f"{now:.3g} effective modes among {several}"
        if now >= _KEPT * before or math.isnan(before):
            return _joined(f"keeps the reference's diversity: {amount}", kept)
        return _joined(
            f"leans to {self.quoted(largest)}: {amount}, where the reference has {before:.3g}",
            kept,
        )

    def single(self, best: int, mass: float) -> str:
        only = f"{self.quoted(best)}, which alone has the best reward ({self.highest:.4g})"
        percent = _percent(float(self.mode_log[best]))
        if mass >= _COLLAPSED:
            return f"collapses: {percent} of the mass is on {only}"
        if mass >= _REACHED:
            return f"leans: {percent} of the mass is on {only}"
        return f"misses the best reward: only {percent} of the mass is on {only}"

    def kept_ratios(self, best: np.ndarray) -> str:
        """Which ratios no β can change: those of equally rewarded modes that the reference has."""
        uniform = []
        for k in best:
            members = self.possible & (self.modes == self.mode_labels[k])
            in_ref = self.log_ref[members] > -np.inf
            if in_ref.all() and len(np.unique(self.reward[members])) == 1:
                uniform.append(self.mode_ref[k])
        if len(uniform) < 2:
            return ""
        log_ratio = max(uniform) - min(uniform)
        if len(uniform) == 2:
            return f"equal rewards keep the reference's ratio ({_ratio(log_ratio)}) at every β"
        return f"equal rewards keep the reference's ratios (up to {_ratio(log_ratio)}) at every β"

    def flip_sentence(self, facts: dict[str, Any], rivals: tuple[int, ...]) -> str:
        if not rivals:
            return ""
        best, rival = rivals
        flip = facts["flip_beta"]
        if math.isfinite(flip):
            side = "below" if self.beta < flip else "above"
            return (
                f"it overtakes {self.quoted(rival)} below β = {flip:.4g}, and this β is {side} that"
            )
        if self.mode_ref[best] >= self.mode_ref[rival]:
            return f"the reference prefers it to {self.quoted(rival)} already"
        return ""


def _joined(*sentences: str) -> str:
    return "; ".join(filter(None, sentences))


def _quoted(label: str) -> str:
    return f"“{_short(label, 36)}”"


def _total(log_masses: np.ndarray) -> float:
    if np.isnan(log_masses).any():
        return math.nan
    return float(np.logaddexp.reduce(log_masses)) if len(log_masses) else -math.inf


def _log(p: float) -> float:
    return math.log(p) if p > 0 else (math.nan if math.isnan(p) else -math.inf)


def _log1m(p: float) -> float:
    return math.log1p(-p) if p < 1 else -math.inf


def _mass_table(what: str, size: str, rows: tuple[SummaryRow, ...], total: int) -> list[list[str]]:
    table = [[what, *filter(None, [size]), "reward", "reference", "target", "target/reference"]]
    for row in rows:
        label = _short(row.label, 36)
        counted = [f"of “{label}”" if size else label, *([f"{row.size:,}"] if size else [])]
        table.append(
            [
                *counted,
                f"{row.reward:.4g}".replace("inf", "∞"),
                _percent(row.log_ref),
                _percent(row.log_prob),
                _times(row.log_prob, row.log_ref),
            ]
        )
    if len(rows) < total:
        # All masses sum to one, but for outcomes of no mode.
        table.append([f"({total - len(rows):,} more)", *[""] * (len(table[0]) - 1)])
    return table


def _percent(log_p: float) -> str:
    """A probability in percent with three digits; 100 only if nothing is left."""
    if math.isnan(log_p):
        return "nan"
    if log_p == -math.inf:
        return "0 %"
    percent = 100 * math.exp(log_p)
    if percent < 1e-2:
        return f"{_scientific(log_p + math.log(100))} %"
    if 99.95 <= percent < 100 * (1 - 1e-6):
        return "> 99.9 %"
    return f"{percent:.3g} %"


def _times(log_p: float, log_q: float) -> str:
    if math.isnan(log_p):
        return "nan"
    if log_q == -math.inf:
        return "" if log_p == -math.inf else "new"
    if log_p == -math.inf:
        return "× 0"
    log_ratio = log_p - log_q
    if -7 < log_ratio < 9:
        return f"× {math.exp(log_ratio):.3g}"
    return f"× {_scientific(log_ratio)}"


def _ratio(log_ratio: float) -> str:
    if log_ratio < 9:
        return f"{math.exp(log_ratio):.3g} : 1"
    return f"{_scientific(log_ratio)} : 1"


def _scientific(log_x: float) -> str:
    """``exp(log_x)``, which may be outside the range of a float, with two digits."""
    exponent = math.floor(log_x / math.log(10))
    mantissa = math.exp(log_x - exponent * math.log(10))
    if mantissa >= 9.95:
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.1f}e{exponent:+03d}"


def _number(x: float, digits: int = 4) -> str:
    if not math.isfinite(x):
        return f"{x:g}".replace("inf", "∞")
    return f"{x:.{digits}g}"


def _short(label: str, room: int) -> str:
    """A label for one cell: control characters as escapes, a long middle left out."""
    label = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in label)
    if _width(label) <= room:
        return label
    head, tail = label, label
    while _width(head) > room - room // 3 - 1:
        head = head[:-1]
    while _width(tail) > room // 3:
        tail = tail[1:]
    return f"{head}…{tail}"


def _width(text: str) -> int:
    """Columns of a terminal: East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _aligned(table: list[list[str]]) -> list[str]:
    """Text columns: the first to the left, numbers to the right."""
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        padding = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [
            row[0] + padding[0],
            *(p + cell for p, cell in zip(padding[1:], row[1:], strict=True)),
        ]
        lines.append("   ".join(cells).rstrip())
    return lines


def _wrapped(text: str, width: int = 96) -> list[str]:
    lines = [""]
    for word in text.replace(" %", "\0%").split(" "):
        if lines[-1] and _width(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return [line.replace("\0%", " %") for line in lines]


def _html_cell(tag: str, text: str, column: int) -> str:
    side = "left" if column == 0 else "right"
    return f'<{tag} style="text-align: {side}">{html.escape(text)}</{tag}>'


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _plain(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if isinstance(x, float) and not math.isfinite(x):
        return str(x)
    return x
