"""A diagnosis as a page for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kltarget._core.words import aligned, number, short, wrapped

if TYPE_CHECKING:
    from kltarget.diagnosis._diagnosis import Diagnosis, Featured, Statement

WIDTH = 98
TIERS = {
    1: "From the rewards",
    2: "From the reference's log-probabilities",
    3: "From the policy's log-probabilities",
}
_MOST_ROWS = 10
_SHARES = {"zero_std_groups"}
_BARS = "▁▂▃▄▅▆▇█"
_LEGENDS = {
    "reward": "mean reward",
    "entropy": "answer entropy, nats",
    "differ": "two answers differ",
    "zero_std": "groups with σ = 0",
}


def text_page(diagnosis: Diagnosis) -> list[str]:
    """Lines of at most 100 columns."""
    lines = [*wrapped(f"kltarget diagnose · {diagnosis.title}", WIDTH), recipe_line(diagnosis), ""]
    lines += ["In short"]
    for sentence in diagnosis.verdict:
        lines += _hanging(sentence_of(sentence), "  • ")
    if len(diagnosis.history["step"]) > 1:
        lines += ["", *aligned(sparklines(diagnosis))]
    letters = assumption_letters(diagnosis.statements)
    for tier, heading in TIERS.items():
        chosen = [x for x in diagnosis.statements if x.tier == tier]
        if not chosen:
            continue
        lines += ["", heading]
        if tier == 2 and diagnosis.featured is not None:
            lines += ["", *featured_lines(diagnosis), ""]
        for statement in chosen:
            mark = "  ✗ " if statement.refused else "  · "
            lines += _hanging(statement.text + evidence(statement, letters), mark)
    if diagnosis.tier == 1 and diagnosis.featured is not None:
        lines += ["", *featured_lines(diagnosis)]
    if letters:
        lines += ["", "Assumptions"]
        for text, letter in letters.items():
            lines += _hanging(text, f"  {letter}  ")
    if diagnosis.notes:
        lines += ["", "Notes"]
        for note in diagnosis.notes:
            lines += _hanging(note, "  - ")
    return lines


def recipe_line(diagnosis: Diagnosis) -> str:
    recipe = diagnosis.recipe
    groups = f", groups of {recipe.group_size}" if recipe.group_size else ""
    return f"recipe: {diagnosis.recipe_name}{groups}; β = {diagnosis.beta:g}"


def assumption_letters(statements: Iterable[Statement]) -> dict[str, str]:
    """A letter for every assumption, in the order in which they are first made."""
    texts = [text for x in statements for text in x.assumption.split("; ") if x.assumption]
    return {text: chr(ord("a") + i) for i, text in enumerate(dict.fromkeys(texts))}


def evidence(statement: Statement, letters: dict[str, str]) -> str:
    """Interval, sample size and assumptions, in brackets behind a statement."""
    parts = []
    if statement.interval is not None:
        low, high = statement.interval
        if statement.name in _SHARES:
            parts.append(f"95 %: {100 * low:.3g} to {100 * high:.3g} %")
        else:
            parts.append(f"95 %: {number(low, 3)} to {number(high, 3)}")
    if statement.sample_size:
        one = statement.sample_size == 1
        parts.append(f"n = {statement.sample_size:,} {_singular(statement.unit, one)}")
    if statement.assumption:
        parts.append(" ".join(sorted(letters[text] for text in statement.assumption.split("; "))))
    return f"  [{'; '.join(parts)}]" if parts else ""


def sentence_of(text: str) -> str:
    """With a capital, unless it begins with a symbol such as β, k1 or pass@8, and a full stop."""
    first = text.split()[0]
    symbol = not first.isascii() or any(x.isdigit() for x in first)
    return (text[0] if symbol else text[0].upper()) + text[1:] + "."


def _singular(unit: str, one: bool) -> str:
    return unit[:-1] if one and unit.endswith("s") else unit


def sparklines(diagnosis: Diagnosis) -> list[list[str]]:
    """Rows of what changed along the steps, from the first bin to the last."""
    steps = diagnosis.history["step"]
    width = max(map(len, _LEGENDS.values()))
    rows = [
        [
            "along the steps".ljust(width),
            f"{steps[0]:,.0f}",
            "…".center(len(steps)),
            f"{diagnosis.history['until'][-1]:,.0f}",
        ]
    ]
    for name, legend in _LEGENDS.items():
        values = diagnosis.history[name]
        finite = [x for x in values if math.isfinite(x)]
        if not finite:
            continue
        low, high = min(finite), max(finite)
        step = (high - low) or 1.0
        bars = "".join(
            _BARS[min(int((x - low) / step * 8), 7)] if math.isfinite(x) else " " for x in values
        )
        first, last = (number(x, 3) if math.isfinite(x) else "–" for x in (values[0], values[-1]))
        rows.append([legend.ljust(width), first, bars, last])
    return rows


def featured_lines(diagnosis: Diagnosis) -> list[str]:
    """The most informative prompt as a table."""
    featured = diagnosis.featured
    assert featured is not None
    which = "the prompt" if diagnosis.size["prompts"] == 1 else "the most informative prompt"
    lines = [f"  {which}: “{short(featured.prompt, 60)}”"]
    return lines + [f"  {line}" for line in aligned(featured_rows(featured))]


def featured_rows(featured: Featured) -> list[list[str]]:
    """Answers by the target's order, or by how often they were seen."""
    columns: dict[str, Sequence[float] | None] = {
        "reference": featured.reference,
        "target": featured.target,
        "now": featured.now,
    }
    given = {name: x for name, x in columns.items() if x is not None}
    size = len(featured.names)
    key = featured.target or featured.now
    order = sorted(range(size - 1), key=lambda i: (-_or_zero(key[i]), -featured.counts[i]))
    paid = featured.mara_reward
    if paid is not None and all(
        abs(a - b) < 1e-12 for a, b in zip(paid, featured.reward, strict=True)
    ):
        paid = None
    rows = [["answer", "seen", "reward", *given, *(["MARA would pay"] if paid else [])]]
    for i in order[:_MOST_ROWS]:
        cells = [
            short(featured.names[i], 30),
            f"{featured.counts[i]:,}",
            f"{featured.reward[i]:.4g}",
        ]
        cells += [probability(x[i]) for x in given.values()]
        rows.append([*cells, *([f"{paid[i]:.4g}"] if paid else [])])
    hidden = order[_MOST_ROWS:]
    if hidden:
        cells = [f"({len(hidden):,} more)", f"{sum(featured.counts[i] for i in hidden):,}", ""]
        cells += [probability(sum(x[i] for i in hidden)) for x in given.values()]
        rows.append([*cells, *([""] if paid else [])])
    if featured.reference is not None:
        cells = [featured.names[-1], "0", f"{featured.reward[-1]:.4g}?"]
        rows.append(
            [*cells, *(probability(x[-1]) for x in given.values()), *([""] if paid else [])]
        )
    return rows


def probability(p: float) -> str:
    if math.isnan(p):
        return "?"
    return f"{p:.4f}" if p >= 1e-4 or p == 0 else f"{p:.1e}"


def _or_zero(p: float) -> float:
    return 0.0 if math.isnan(p) else p


def _hanging(text: str, mark: str) -> list[str]:
    first, *rest = wrapped(text.replace("  [", " ["), WIDTH - len(mark))
    return [mark + first, *(" " * len(mark) + line for line in rest)]
