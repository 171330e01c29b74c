"""What a verification on a space of its own found: a row per trained run, checks, and words."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from kltarget._core.page import Lines, Page, Paragraph, Table
from kltarget._core.records import Record
from kltarget.verification._report import Check, checked_lines, verdict_of

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False)
class SpaceReport(Record):
    """What gradients reached on a space that is not a list of outcomes. Prints as a table.

    Attributes:
        problem: name of the problem.
        description: the problem and how it was set up, a few lines.
        settings: what was trained, plain values.
        runs: a mapping from the names of columns to numbers or words for each trained run.
        shown: the columns of the printed table, in order; by default all.
        legend: what the columns mean, in a sentence or two.
        checks: a :class:`kltarget.verification.Check` each.

    Example:
        >>> from kltarget.verification import Check, SpaceReport
        >>> runs = ({"policy": "tabular", "beta": 0.5, "gap": 2e-9},)
        >>> checks = (Check("gap below 1e-6", True, "at most 2.0e-09"),)
        >>> report = SpaceReport("coin", ("coin: one state, two actions",), {}, runs, checks)
        >>> report.passed, report.to_dataframe().gap.tolist()
        (True, [2e-09])
    """

    problem: str
    description: tuple[str, ...]
    settings: dict[str, Any]
    runs: tuple[dict[str, Any], ...]
    checks: tuple[Check, ...]
    shown: tuple[str, ...] | None = None
    legend: str = ""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """What follows, in plain words."""
        return verdict_of(self.checks, "Training never saw a closed form, and every check passed.")

    def __str__(self) -> str:
        blocks = [Lines(self.description), self._table()]
        blocks += [Paragraph(self.legend)] if self.legend else []
        blocks += [Lines(checked_lines(self.checks)), Paragraph(self.verdict)]
        return Page(*([block] for block in blocks)).to_text()

    def _table(self) -> Table:
        names = self.shown or tuple(self.runs[0])
        rows = [names, *(tuple(_shown(name, run[name]) for name in names) for run in self.runs)]
        kinds = ["l" if isinstance(self.runs[0][name], str) else "r" for name in names]
        return Table(rows, "".join(kinds))

    def to_dataframe(self) -> pd.DataFrame:
        """A row per run, a column per number."""
        import pandas as pd

        return pd.DataFrame(list(self.runs))

    def to_csv(self) -> str:
        """The rows of :meth:`to_dataframe` as comma-separated text."""
        return self.to_dataframe().to_csv(index=False, lineterminator="\n")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python for ``json``; numbers that are not finite become strings."""
        return {**super().to_dict(), "passed": self.passed, "verdict": self.verdict}


def _shown(name: str, x: Any) -> str:
    # Of a standard error a digit says all.
    digits = 1 if name.endswith("±") else 3
    return f"{x:.{digits}g}" if isinstance(x, float) else str(x)
