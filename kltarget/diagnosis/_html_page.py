"""A diagnosis as HTML."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from kltarget.diagnosis._text_page import (
    TIERS,
    assumption_letters,
    evidence,
    featured_rows,
    recipe_line,
    sentence_of,
    sparklines,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kltarget.diagnosis._diagnosis import Diagnosis

STYLE = """
.kltarget { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; color: #222; }
.kltarget h1 { font-size: 1.35rem; margin: 0 0 .2rem; }
.kltarget h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
.kltarget ul { padding-left: 1.2rem; margin: .3rem 0; }
.kltarget li { margin: .3rem 0; }
.kltarget .short { background: #f1f5fa; border-left: 4px solid #0072b2; padding: .5rem 1rem; }
.kltarget .refused { color: #a33d00; }
.kltarget .evidence, .kltarget .faint { color: #777; font-size: .87em; }
.kltarget table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
.kltarget th { color: #555; font-weight: 600; border-bottom: 1px solid #bbb; }
.kltarget th, .kltarget td { padding: .15rem .8rem; text-align: right; }
.kltarget th:first-child, .kltarget td:first-child { text-align: left; }
.kltarget img { max-width: 100%; height: auto; margin: .8rem 0; }
"""


def fragment(diagnosis: Diagnosis) -> str:
    """What a notebook shows: the page without its figure."""
    return f"<style>{STYLE}</style>{body(diagnosis, '')}"


def body(diagnosis: Diagnosis, figure: str) -> str:
    letters = assumption_letters(diagnosis.statements)
    parts = [
        '<div class="kltarget">',
        f"<h1>{html.escape(diagnosis.title)}</h1>",
        f'<div class="faint">{html.escape(recipe_line(diagnosis))}</div>',
        '<h2>In short</h2><div class="short"><ul>',
        *(f"<li>{html.escape(sentence_of(text))}</li>" for text in diagnosis.verdict),
        "</ul></div>",
        figure,
    ]
    if len(diagnosis.history["step"]) > 1:
        parts += _table(sparklines(diagnosis))
    if diagnosis.featured is not None:
        parts.append(f"<h2>Prompt “{html.escape(diagnosis.featured.prompt)}”</h2>")
        parts += _table(featured_rows(diagnosis.featured))
    for tier, heading in TIERS.items():
        chosen = [x for x in diagnosis.statements if x.tier == tier]
        if not chosen:
            continue
        parts += [f"<h2>{heading}</h2><ul>"]
        for statement in chosen:
            refused = ' class="refused"' if statement.refused else ""
            behind = evidence(statement, letters).strip()
            parts.append(
                f"<li{refused}>{html.escape(statement.text)} "
                f'<span class="evidence">{html.escape(behind)}</span></li>'
            )
        parts.append("</ul>")
    if letters:
        parts.append('<h2>Assumptions</h2><ul style="list-style: none">')
        parts += [f"<li><b>{x}</b> {html.escape(text)}</li>" for text, x in letters.items()]
        parts.append("</ul>")
    if diagnosis.notes:
        parts.append("<h2>Notes</h2><ul>")
        parts += [f"<li>{html.escape(note)}</li>" for note in diagnosis.notes]
        parts.append("</ul>")
    return "\n".join([*parts, "</div>"])


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = [f"<table><tr>{cells}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{html.escape(x)}</td>' for x in row)}</tr>" for row in body]
    return [*lines, "</table>"]
