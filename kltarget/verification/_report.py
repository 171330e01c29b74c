"""What a verification found: a row per run, the checks it passed, and both in words."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import operator
import statistics
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.page import Lines, Page, Paragraph, Table
from kltarget._core.records import Record
from kltarget._core.words import counted
from kltarget.verification._exact_targets import title_of

if TYPE_CHECKING:
    import pandas as pd

_LEFT_OUT = ("mode_labels", "mode_mass", "target_mode_mass", "step", "history", "target_tv")
_LEGEND = (
    "TV: total variation between a policy and the target computed for its recipe, from 0 (equal) "
    "to 1 (disjoint), at the start and after training. nearest: how many runs ended nearer to that "
    "target than to any other."
)


@dataclasses.dataclass(frozen=True, eq=False)
class VerifiedRun:
    """One trained policy beside the targets computed for its problem.

    Attributes:
        policy: name of the policy.
        recipe: how the regulariser was applied, in words.
        tabular: whether the policy has a logit per prefix and token: it can represent everything.
        beta: coefficient of the regulariser, in reward units per nat.
        reward_scale: factor of the reward.
        seed: 0 starts at the reference, others next to it; with sampled gradients the seeds differ
            in their random numbers instead.
        target: the target of the recipe, a key of the three distances; None if it has none.
        status: how training ended, a name of :class:`kltarget.training.RunStatus`.
        num_steps: steps taken.
        gradient_norm: euclidean norm of the last gradient.
        tv: total variation to each target, by its name.
        reverse_kl: ``KL(π‖target)`` in nats.
        forward_kl: ``KL(target‖π)`` in nats.
        target_tv: total variation of the recipe's own target from the others, which says how
            hard they are to tell apart.
        start_tv: total variation of the reference from the recipe's own target.
        nearest: the target of least total variation.
        value: the maximum J* of the sequence-level objective with the recipe's divergence.
        gap: ``J* − J(π)`` in reward units. The token-local targets do not maximise J either.
        bound: the Frank–Wolfe bound on the gap, which training found without knowing J*.
        bound_holds: whether it is no less than the gap, up to the rounding of the training.
        identity_error: relative error of ``J* − J(π) = β·KL(π‖π*)`` for reverse KL.
        expected_reward: ``E_π[reward]``, without its scale.
        target_expected_reward: the same of the recipe's own target.
        effective_modes: ``exp`` of the entropy over the modes, given that a sequence is in one.
        target_effective_modes: the same of the recipe's own target.
        mode_labels: the likeliest sequence of each of the target's largest modes.
        mode_mass: probability of those modes.
        target_mode_mass: the same under the recipe's own target.
        followable: share of the remaining pull that the parameters could follow, from 0 to 1; NaN
            where it was not needed. See :func:`kltarget.verification.verify`.
        remains: what keeps the policy from its target: "nothing", "optimisation", "family",
            "sampling", "diverged", or "no target".
        step: numbers of steps at which the history was measured, ``[H]``.
        history: ``E_π[reward]`` then, ``[H]``.
    """

    policy: str
    recipe: str
    tabular: bool
    beta: float
    reward_scale: float
    seed: int
    target: str | None
    status: str
    num_steps: int
    gradient_norm: float
    tv: dict[str, float]
    reverse_kl: dict[str, float]
    forward_kl: dict[str, float]
    target_tv: dict[str, float]
    start_tv: float
    nearest: str
    value: float
    gap: float
    bound: float
    bound_holds: bool
    identity_error: float
    expected_reward: float
    target_expected_reward: float
    effective_modes: float
    target_effective_modes: float
    mode_labels: tuple[str, ...]
    mode_mass: np.ndarray
    target_mode_mass: np.ndarray
    followable: float
    remains: str
    step: np.ndarray
    history: np.ndarray

    @property
    def distance(self) -> float:
        """Total variation to the recipe's own target; NaN if it has none."""
        return float("nan") if self.target is None else self.tv[self.target]


@dataclasses.dataclass(frozen=True)
class Check:
    """Something that must hold, and whether it did.

    Attributes:
        name: what must hold.
        passed: whether it did.
        detail: by how much.
    """

    name: str
    passed: bool
    detail: str


@dataclasses.dataclass(frozen=True, eq=False)
class Report(Record):
    """What :func:`kltarget.verification.verify` found. Prints as a table.

    Attributes:
        problem: name of the problem.
        description: the problem and how it was set up, a few lines.
        settings: what was trained, plain values.
        runs: a :class:`kltarget.verification.VerifiedRun` each.
        checks: a :class:`kltarget.verification.Check` each.

    Example:
        >>> import jax, kltarget as kt
        >>> from kltarget.verification import RECIPES
        >>> options = {"policies": ["tabular"], "recipes": RECIPES[:1], "num_seeds": 1}
        >>> report = kt.verify("one-two", key=jax.random.key(0), **options)
        >>> report.passed, len(report.to_dataframe())
        (True, 6)
    """

    problem: str
    description: tuple[str, ...]
    settings: dict[str, Any]
    runs: tuple[VerifiedRun, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def groups(self) -> Iterator[tuple[str, str, list[VerifiedRun]]]:
        """Policy, recipe and their runs, in the order in which they were trained."""
        key = operator.attrgetter("policy", "recipe")
        for (policy, recipe), runs in itertools.groupby(self.runs, key):
            yield policy, recipe, list(runs)

    def __str__(self) -> str:
        checks, verdict = Lines(checked_lines(self.checks)), Paragraph(self.verdict)
        blocks = (Lines(self.description), self._table(), Paragraph(_LEGEND), checks, verdict)
        return Page(*([block] for block in blocks)).to_text()

    def _table(self) -> Table:
        head = ("policy", "recipe", "its target", "start TV", "median TV", "worst TV", "nearest")
        rows: list[tuple[str, ...]] = [(*head, "what is left")]
        for policy, recipe, runs in self.groups():
            target, near = runs[0].target, ""
            if target is not None:
                near = f"{sum(run.nearest == target for run in runs)} of {len(runs)}"
            distances = [run.distance for run in runs]
            start = statistics.median(run.start_tv for run in runs)
            tvs = map(_short, (start, statistics.median(distances), max(distances)))
            left = _counted([run.remains for run in runs])
            rows.append((policy, recipe, title_of(target) if target else "none", *tvs, near, left))
        return Table(rows, "lllrrrrl")

    @property
    def verdict(self) -> str:
        """What follows, in plain words."""
        aimed = [run for run in self.runs if run.target is not None and run.remains != "diverged"]
        told = [run for run in aimed if min(_others(run), default=0.0) > 2 * run.distance]
        own = sum(run.nearest == run.target for run in told)
        reached = [run for run in aimed if run.remains == "nothing"]
        short = [run for run in aimed if run.remains in ("optimisation", "family")]
        found = (
            f"{counted(len(aimed), 'run')} went towards the distribution that was computed for them"
        )
        if reached:
            found = (
                f"{len(reached)} of {counted(len(aimed), 'run')} ended on the distribution that "
                "was computed beforehand for their recipe, to a total variation of "
                f"{self.settings['bar']:g}"
            )
        sentences = [f"Training never saw a closed form, and {found}."]
        if told:
            sentences.append(
                f"In {counted(len(told), 'run')} the targets of other recipes are far enough to be "
                f"told apart: {own or 'none'} of them ended nearest to their own."
            )
        if short:
            worst = max(run.distance for run in short)
            by = _counted([run.remains for run in short])
            sentences.append(
                f"{len(short)} runs stopped short, by at most {_short(worst)}; the reason is "
                f"{by} (optimisation: the parameters could still follow most of what pulls them to "
                "the target, so better training would help; family: no change of them that was "
                "found follows it)."
            )
        return verdict_of(self.checks, " ".join(sentences))

    def to_dataframe(self) -> pd.DataFrame:
        """A row per run, a column per number; mode masses and histories are left to the JSON."""
        import pandas as pd

        return pd.DataFrame(map(_row, self.runs))

    def to_csv(self) -> str:
        """The rows of :meth:`to_dataframe` as comma-separated text."""
        rows = list(map(_row, self.runs))
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python for ``json``; numbers that are not finite become strings."""
        return {**super().to_dict(), "passed": self.passed, "verdict": self.verdict}


def checked_lines(checks: Iterable[Check]) -> list[str]:
    """Each check in a line of its own."""
    return [f"{'ok  ' if x.passed else 'FAIL'}  {x.name}: {x.detail}" for x in checks]


def verdict_of(checks: Iterable[Check], confirmed: str) -> str:
    """What the checks decide; where all passed, with what that shows."""
    failed = [check.name for check in checks if not check.passed]
    if failed:
        return f"Verdict: NOT confirmed. Failed: {'; '.join(failed)}."
    return f"Verdict: confirmed. {confirmed}"


def _row(run: VerifiedRun) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in vars(run).items():
        if name in _LEFT_OUT:
            continue
        nested = isinstance(value, dict)
        row |= {f"{name}_{key}": x for key, x in value.items()} if nested else {name: value}
    return row


def _others(run: VerifiedRun) -> list[float]:
    """How far the recipe's own target is from those that differ from it at all."""
    return [x for name, x in run.target_tv.items() if name != run.target]


def _counted(words: list[str]) -> str:
    counts = {word: words.count(word) for word in sorted(set(words), key=words.index)}
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{word} {count}" for word, count in counts.items())


def _short(x: float) -> str:
    return f"{x:.2g}" if not 0 < x < 1e-3 else f"{x:.0e}"
