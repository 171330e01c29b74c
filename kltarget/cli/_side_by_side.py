"""Two runs side by side: a diagnosis of each, and how far apart they came."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from kltarget._core.checks import ArgumentError
from kltarget._core.page import Bullets, Heading, Item, Page, Paragraph, Table
from kltarget._core.records import json_text
from kltarget._core.words import number
from kltarget.comparisons import Comparison, compare
from kltarget.diagnosis import CAUSES, Diagnosis
from kltarget.diagnosis._diagnosis import sentence_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kltarget._core import page
    from kltarget.diagnosis._statement import Statement

_NAMES = ("A", "B")


@dataclasses.dataclass(frozen=True, eq=False)
class TwoRuns:
    """What ``kltarget diagnose A --against B`` says.

    Attributes:
        runs: what each log says.
        last: the comparison of their last steps, None where rewards do not show what is right.
        why: what that would have needed.
    """

    runs: tuple[Diagnosis, Diagnosis]
    last: Comparison | None
    why: str

    @classmethod
    def of(
        cls, runs: tuple[Diagnosis, Diagnosis], logs: tuple[Any, Any], threshold: float | None
    ) -> TwoRuns:
        """Of diagnoses and the logs that they are of."""
        if any(run.tier == 0 for run in runs):
            return cls(runs, None, "curves have no prompts, whose successes could be compared")
        try:
            last = compare(*logs, steps=("last", "last"), labels=_NAMES, threshold=threshold)
        except ArgumentError as error:
            return cls(runs, None, error.with_option(f"--{error.argument}"))
        return cls(runs, last, "")

    def page(self, figure: page.Figure | None = None) -> Page:
        """What each run says, the numbers of both, and the comparison of what they came to."""
        page = Page([Heading("kltarget diagnose · two runs", 1)])
        for name, run in zip(_NAMES, self.runs, strict=True):
            page.add(
                Heading(f"{name} · {run.headline}"),
                Bullets(
                    [Item(f"  {i}. ", str(x)) for i, x in enumerate(run.actions, 1)], "labelled"
                ),
                Paragraph(run.title, faint=True),
                Paragraph(run.recipe_line, faint=True),
                Bullets([Item("  • ", sentence_of(text)) for text in run.verdict]),
            )
        page.add(Heading("The numbers of both"), self._numbers())
        page.add(Heading("From A to B, by the last steps of both"))
        if self.last is None:
            page.add(Paragraph(f"Not compared: {self.why}."))
        else:
            for part in self.last.parts(figure):
                page.add(*part)
        return page

    def __str__(self) -> str:
        return self.page().to_text()

    def to_json(self) -> str:
        """Both diagnoses and the comparison."""
        content = {name: run.to_dict() for name, run in zip(_NAMES, self.runs, strict=True)}
        return json_text({**content, "comparison": self.last and self.last.to_dict()})

    def to_html(self) -> str:
        """The page with the figure of the comparison, or of the first run."""
        from kltarget.pages._figure_page import page_with

        what = "pass@k of both runs, prompts, and shifts of their log-odds"
        return page_with("kltarget diagnose · two runs", self.figure, what, self.page)

    def figure(self) -> Figure:
        """That of the comparison, or of the first run."""
        from kltarget import plot

        return plot.diagnosis(self.runs[0]) if self.last is None else plot.comparison(self.last)

    def _numbers(self) -> Table:
        rows = [["", *_NAMES], ["grade", *(run.grade for run in self.runs)]]
        causes = [CAUSES[run.cause] if run.cause else "" for run in self.runs]
        rows += [["cause", *(cause or "—" for cause in causes)]] if any(causes) else []
        names = dict.fromkeys(x.name for run in self.runs for x in run.statements)
        for name in names:
            found = [[x for x in run.statements if x.name == name] for run in self.runs]
            entries = [_entry(x[0]) if x else "" for x in found]
            if any(entries):
                rows.append([name.replace("_", " "), *(x or "—" for x in entries)])
        return Table(rows, "lrr")


def _entry(statement: Statement) -> str:
    """A value with its interval; nothing where there is no number."""
    if statement.value is None:
        return ""
    if statement.interval is None:
        return number(statement.value)
    low, high = (number(x, 3) for x in statement.interval)
    return f"{number(statement.value, 3)} ({low} to {high})"
