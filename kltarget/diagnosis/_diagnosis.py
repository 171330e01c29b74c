"""What a diagnosis found: statements, the prompts behind them, and both as a page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kltarget._core.page import (
    STYLE,
    Bullets,
    Figure,
    Heading,
    Item,
    Page,
    Paragraph,
    Quotation,
    Table,
)
from kltarget._core.records import Record
from kltarget._core.words import counted, number
from kltarget.diagnosis._action import Action
from kltarget.diagnosis._statement import Featured, Statement
from kltarget.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd

_TIERS = {
    0: "From curves alone, the weakest evidence",
    1: "From the rewards",
    2: "From the reference's log-probabilities",
    3: "From the policy's log-probabilities",
}
_BARS = "▁▂▃▄▅▆▇█"
_LEGENDS = {
    "reward": "mean reward",
    "kl": "KL to the reference, nats",
    "token_entropy": "entropy of a token, nats",
    "entropy": "answer entropy, nats",
    "differ": "two answers differ",
    "zero_std": "groups with σ = 0",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis(Record):
    """What :func:`kltarget.diagnosis.diagnose` found. Prints as a page.

    Attributes:
        title: the log in a line.
        recipe: what the trainer does, as it was given or completed from the log; None if it was not
            given.
        recipe_name: name of the preset, or the recipe in words.
        beta: the trainer's coefficient; None without a recipe.
        tier: 1 if the log has rewards alone, 2 with log-probabilities of the reference, 3 also with
            those of the policy; 0 if there are no rollouts, but curves.
        size: numbers of ``rollouts``, ``prompts``, ``groups`` and logged ``steps``, the
            ``group_size``, and how many prompts were ``analysed`` in full.
        notes: what was guessed or left out while reading and on the way.
        verdict: the page in a few sentences.
        statements: a :class:`Statement` each.
        history: along the steps, in at most a dozen bins: the first ``step`` of each and its last,
            ``until``, mean ``reward``, ``entropy`` of the answers in nats, the chance that two
            completions of a group ``differ``, and the share of groups with ``zero_std``; of curves
            the ``kl`` of an answer and the ``token_entropy`` in place of what is of answers.
        featured: the most informative prompt; None if no target could be computed.
        prompts: columns of :meth:`to_dataframe`, an entry per prompt.
        grade: ``"held"``, ``"narrowing"``, ``"collapsed"`` or ``"unknown"``.
        cause: of what was lost: ``"target"`` (asked for by the target), ``"path"`` (made by the
            path), ``"unregularised"`` (not regularised at all), ``"unknown"`` (cannot tell); None
            where the run has held.
        headline: grade and cause in a sentence.
        actions: one to three things to do, an :class:`Action` each.
        grading: how the grade was found, in sentences.
        asymptotes: where the curves of ``history`` end at the target, means over the analysed
            prompts; empty without targets.

    Example:
        >>> import pandas as pd
        >>> from kltarget.diagnosis import diagnose
        >>> from kltarget.recipes import Recipe
        >>> frame = pd.DataFrame(
        ...     {
        ...         "prompt": ["a digit?"] * 4,
        ...         "completion": ["1", "2", "1", "7"],
        ...         "answer": ["1", "2", "1", "7"],
        ...         "reward": [1.0, 1.0, 1.0, 0.0],
        ...         "step": [1, 1, 1, 1],
        ...         "group_id": [0, 0, 0, 0],
        ...         "ref_logp": [-1.0, -2.0, -1.0, -0.7],
        ...         "logp": [float("nan")] * 4,
        ...     }
        ... )
        >>> diagnosis = diagnose(frame, Recipe("reward", "k1"), beta=0.5)
        >>> diagnosis.tier, [round(p, 3) for p in diagnosis.featured.target]
        (2, [0.645, 0.237, 0.118, 0.0])
        >>> print(f"{diagnosis['reference_ratio'].value:.2f}")
        2.72
    """

    title: str
    recipe: Recipe | None
    recipe_name: str
    beta: float | None
    tier: int
    size: dict[str, int]
    notes: tuple[str, ...]
    verdict: tuple[str, ...]
    statements: tuple[Statement, ...]
    history: dict[str, list[float]]
    featured: Featured | None
    prompts: dict[str, list[Any]]
    grade: str = "unknown"
    cause: str | None = None
    headline: str = ""
    actions: tuple[Action, ...] = ()
    grading: tuple[str, ...] = ()
    asymptotes: dict[str, float] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> Statement:
        """The first statement of this name."""
        for statement in self.statements:
            if statement.name == name:
                return statement
        known = ", ".join(dict.fromkeys(x.name for x in self.statements))
        raise KeyError(f"no statement {name!r}: there are {known}")

    def __contains__(self, name: str) -> bool:
        return any(x.name == name for x in self.statements)

    def __str__(self) -> str:
        return self.page().to_text()

    def __repr__(self) -> str:
        found = counted(len(self.statements), "statement")
        return f"<Diagnosis of {self.title}: {self.headline} ({found}; print it to read it)>"

    def _repr_html_(self) -> str:
        return f"<style>{STYLE}</style>{self.page().to_html()}"

    def page(self, *figures: Figure) -> Page:
        """The whole as headings, lists and tables, with figures after its first lines."""
        log = Paragraph(f"kltarget diagnose · {self.title}", faint=True)
        page = Page([Heading(self.headline, 1), *self.to_do()])
        page.add(log, Paragraph(self.recipe_line, faint=True))
        in_short = [Item("  • ", sentence_of(text)) for text in self.verdict]
        page.add(Heading("In short"), Bullets(in_short, "short"), *figures)
        if len(self.history["step"]) > 1:
            page.add(self._sparklines())
        assumed = [text for x in self.statements for text in x.assumptions]
        letters = {x: chr(ord("a") + i) for i, x in enumerate(dict.fromkeys(assumed))}
        for tier, heading in _TIERS.items():
            items = [
                Item("  ✗ " if x.refused else "  · ", x.told, x.evidence(letters), x.refused)
                for x in self.statements
                if x.tier == tier
            ]
            if items and tier == 2 and self.featured is not None:
                page.add(Heading(heading))
                self._add_featured(page, self.featured)
                page.add(Bullets(items))
            elif items:
                page.add(Heading(heading), Bullets(items))
        if self.tier == 1 and self.featured is not None:
            self._add_featured(page, self.featured)
        if letters:
            items = [Item(f"  {letter}  ", text) for text, letter in letters.items()]
            page.add(Heading("Assumptions"), Bullets(items, "labelled"))
        if self.grading:
            page.add(Heading("How this was graded"), *map(Paragraph, self.grading))
        if self.notes:
            page.add(Heading("Notes"), Bullets([Item("  - ", note) for note in self.notes]))
        return page

    @property
    def recipe_line(self) -> str:
        """What the trainer does, in a line."""
        if self.recipe is None:
            return "recipe: not given"
        groups = f", groups of {self.recipe.group_size}" if self.recipe.group_size else ""
        return f"recipe: {self.recipe_name}{groups}; β = {self.beta:g}"

    def to_do(self) -> list[Bullets]:
        """The actions as a part of a page."""
        items = [Item(f"  {i}. ", str(action)) for i, action in enumerate(self.actions, 1)]
        return [Bullets(items, "labelled")] if items else []

    def _add_featured(self, page: Page, featured: Featured) -> None:
        which = "the prompt" if self.size["prompts"] == 1 else "the most informative prompt"
        page.add(Quotation(which, featured.prompt), featured.table())

    def _sparklines(self) -> Table:
        """Rows of what changed along the steps, from the first bin to the last."""
        first, last = self.history["step"][0], self.history["until"][-1]
        rows = [("along the steps", f"{first:,.0f}", "…", f"{last:,.0f}")]
        for name, legend in _LEGENDS.items():
            values = self.history.get(name, [])
            finite = [x for x in values if math.isfinite(x)]
            if not finite:
                continue
            low, high = min(finite), max(finite)
            step = (high - low) or 1.0
            bars = "".join(
                _BARS[min(int((x - low) / step * 8), 7)] if math.isfinite(x) else " "
                for x in values
            )
            ends = (number(x, 3) if math.isfinite(x) else "–" for x in (values[0], values[-1]))
            rows.append((legend, next(ends), bars, next(ends)))
        return Table(rows, "lrcr")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Diagnosis:
        """What :meth:`to_dict` gave, read from JSON perhaps."""
        again = super().from_dict(content)
        # A prompt may be called "nan".
        return dataclasses.replace(
            again, prompts={**again.prompts, "prompt": list(content["prompts"]["prompt"])}
        )

    def to_dataframe(self) -> pd.DataFrame:
        """A row per prompt; numbers of prompts that were not analysed in full are NaN."""
        import pandas as pd

        return pd.DataFrame(self.prompts)


def sentence_of(text: str) -> str:
    """With a capital, unless it begins with a symbol such as β, k1 or pass@8, and a full stop."""
    first = text.split()[0]
    symbol = not first.isascii() or any(x.isdigit() for x in first)
    return (text[0] if symbol else text[0].upper()) + text[1:] + "."
