"""A page of headings, paragraphs, lists and tables, as text and as HTML."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import Literal, Protocol

from kltarget._core.words import display_width, page_width, short, words_of, wrapped

STYLE = """
.kltarget { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem;
  color: light-dark(#222, #e6e6e6); }
.kltarget h1 { font-size: 1.35rem; margin: 0 0 .2rem; }
.kltarget h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
.kltarget p { margin: .3rem 0; }
.kltarget ul { padding-left: 1.2rem; margin: .3rem 0; }
.kltarget li { margin: .3rem 0; }
.kltarget .short { padding: .5rem 1rem; border-left: 4px solid light-dark(#0072b2, #4da3db);
  background: light-dark(#f1f5fa, #1f242d); }
.kltarget .short li { margin-left: 1rem; }
.kltarget .labelled { list-style: none; }
.kltarget .refused { color: light-dark(#a33d00, #f0955e); }
.kltarget .faint { color: light-dark(#6b6b6b, #a8adb5); font-size: .87em; }
.kltarget table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
.kltarget th { color: light-dark(#555, #c8ccd2); font-weight: 600;
  border-bottom: 1px solid light-dark(#bbb, #5d636c); }
.kltarget th, .kltarget td { padding: .15rem .8rem; }
.kltarget td[style*="right"] { white-space: nowrap; }
.kltarget .wide { overflow-x: auto; }
.kltarget p, .kltarget li, .kltarget h1, .kltarget h2 { overflow-wrap: anywhere; }
.kltarget summary { overflow-wrap: anywhere; }
.kltarget img { max-width: 100%; height: auto; margin: .8rem 0; }
@media (max-width: 44rem) {
  .kltarget th, .kltarget td { padding: .15rem .4rem; }
}
"""
_SLIVER = 10
_UNFOLDED, _MOST_QUOTED = 120, 2000
_SIDES = {"l": "left", "r": "right", "c": "center"}


@dataclasses.dataclass(frozen=True)
class Heading:
    """A title of the page (level 1) or of a part of it (level 2)."""

    text: str
    level: Literal[1, 2] = 2

    def lines(self, width: int) -> list[str]:
        return wrapped(self.text, width)

    def html(self) -> str:
        return f"<h{self.level}>{html.escape(self.text)}</h{self.level}>"


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A paragraph, after a ``label`` that stands out perhaps.

    Its lines after the first are indented by ``hanging``; ``faint`` is what few readers need.
    """

    text: str
    label: str = ""
    hanging: int = 0
    faint: bool = False

    def lines(self, width: int) -> list[str]:
        text = f"{self.label} {self.text}" if self.label and self.text else self.label + self.text
        return wrapped(text, width, " " * self.hanging)

    def html(self) -> str:
        label = f"<b>{html.escape(self.label)}</b> " if self.label else ""
        kind = ' class="faint"' if self.faint else ""
        return f"<p{kind}>{(label + html.escape(self.text)).strip()}</p>"


@dataclasses.dataclass(frozen=True)
class Lines:
    """Lines, each of which begins anew; what does not fit goes on four columns further in."""

    texts: Sequence[str]

    def lines(self, width: int) -> list[str]:
        lines = []
        for text in self.texts:
            body = text.lstrip(" ")
            indent = len(text) - len(body)
            first, *rest = wrapped(body, width - indent, " " * 4)
            lines += [" " * indent + line for line in (first, *rest)]
        return lines

    def html(self) -> str:
        return "".join(f"<p>{html.escape(text)}</p>" for text in self.texts)


@dataclasses.dataclass(frozen=True)
class Quotation:
    """A text of somebody else's after its label; a long one is folded, so that it hides no page."""

    label: str
    text: str
    room: int = 60

    def lines(self, width: int) -> list[str]:
        return Lines([f"  {self.label}: “{short(self.text, self.room)}”"]).lines(width)

    def html(self) -> str:
        begin = html.escape(f"{self.label}: “{short(self.text, _UNFOLDED)}”")
        if display_width(self.text) <= _UNFOLDED:
            return f"<p>{begin}</p>"
        whole = html.escape(short(self.text, _MOST_QUOTED))
        return f"<details><summary>{begin}</summary><p>{whole}</p></details>"


@dataclasses.dataclass(frozen=True)
class Item:
    """An entry of a list: its mark with the space around it, its text, and its evidence."""

    mark: str
    text: str
    evidence: str = ""
    refused: bool = False


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list; ``kind`` is its class in HTML, where ``"labelled"`` shows the marks."""

    items: Sequence[Item]
    kind: Literal["", "short", "labelled"] = ""

    def lines(self, width: int) -> list[str]:
        lines = []
        for item in self.items:
            indent = display_width(item.mark)
            text = f"{item.text} [{item.evidence}]" if item.evidence else item.text
            first, *rest = wrapped(text, width - indent)
            lines += [item.mark + first, *(" " * indent + line for line in rest)]
        return lines

    def html(self) -> str:
        items = []
        for item in self.items:
            mark = f"<b>{html.escape(item.mark.strip())}</b> " if self.kind == "labelled" else ""
            refused = ' class="refused"' if item.refused else ""
            evidence = html.escape(f"[{item.evidence}]") if item.evidence else ""
            evidence = f' <span class="faint">{evidence}</span>' if evidence else ""
            items.append(f"<li{refused}>{mark}{html.escape(item.text)}{evidence}</li>")
        kind = f' class="{self.kind}"' if self.kind else ""
        return f"<ul{kind}>{''.join(items)}</ul>"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows, the head first, with a letter per column: left, right or centred.

    A table that is too wide has its heads and its texts wrapped, numbers never; if that is not
    enough, its columns are given in several blocks, each after the first column.
    """

    rows: Sequence[Sequence[str]]
    align: str
    indent: int = 0
    gap: int = 3

    def lines(self, width: int) -> list[str]:
        room = width - self.indent
        columns = list(range(len(self.align)))
        widest = [max(display_width(cell) for cell in x) for x in zip(*self.rows, strict=True)]
        if _total(widest, self.gap) <= room:
            return self._block(columns, widest, self.gap)
        gap = min(self.gap, 2)
        least = [
            max(map(display_width, _unbroken(column, side)))
            for column, side in zip(zip(*self.rows, strict=True), self.align, strict=True)
        ]
        # A column of slivers is hard to read.
        least = [max(x, min(most, _SLIVER)) for x, most in zip(least, widest, strict=True)]
        blocks = [columns[:1]]
        for column in columns[1:]:
            smallest = [least[k] for k in (*blocks[-1], column)]
            if len(blocks[-1]) > 1 and _total(smallest, gap) > room:
                blocks.append(columns[:1])
            blocks[-1].append(column)
        lines: list[str] = []
        for block in blocks:
            sizes = _fitted([widest[k] for k in block], [least[k] for k in block], gap, room)
            lines += ([""] if lines else []) + self._block(block, sizes, gap)
        return lines

    def _block(self, columns: Sequence[int], sizes: Sequence[int], gap: int) -> list[str]:
        lines = []
        for row in self.rows:
            cells = [wrapped(row[k], size) for k, size in zip(columns, sizes, strict=True)]
            for i in range(max(map(len, cells))):
                placed = [
                    _placed(cell[i] if i < len(cell) else "", size, self.align[k])
                    for cell, size, k in zip(cells, sizes, columns, strict=True)
                ]
                lines.append((" " * self.indent + (" " * gap).join(placed)).rstrip())
        return lines

    def html(self) -> str:
        head, *body = (
            [
                f' style="text-align: {_SIDES[side]}">{html.escape(cell)}'
                for cell, side in zip(row, self.align, strict=True)
            ]
            for row in self.rows
        )
        lines = [f"<thead><tr>{''.join(f'<th{cell}</th>' for cell in head)}</tr></thead>"]
        lines += [f"<tr>{''.join(f'<td{cell}</td>' for cell in row)}</tr>" for row in body]
        table = f"<table>{lines[0]}<tbody>{''.join(lines[1:])}</tbody></table>"
        return f'<div class="wide">{table}</div>'


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture, which text leaves out, and its variant for dark pages."""

    source: str
    description: str
    dark: str

    def lines(self, width: int) -> list[str]:
        return []

    def html(self) -> str:
        source, dark = html.escape(self.source), html.escape(self.dark)
        variant = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        image = f'<img alt="{html.escape(self.description)}" src="{source}">'
        return f'<div class="wide"><picture>{variant}{image}</picture></div>'


class Block(Protocol):
    """A part of a page, as lines of text and as HTML."""

    def lines(self, width: int) -> list[str]: ...

    def html(self) -> str: ...


class Page:
    """Parts, each of some blocks; in text an empty line stands between two parts."""

    def __init__(self, *parts: Sequence[Block]) -> None:
        self.parts = list(parts)

    def add(self, *blocks: Block) -> None:
        """Appends a part."""
        self.parts.append(blocks)

    def to_text(self, width: int | None = None) -> str:
        """Lines of at most so many columns; by default those of the terminal."""
        width = page_width() if width is None else width
        parts = [[line for block in part for line in block.lines(width)] for part in self.parts]
        return "\n\n".join("\n".join(lines) for lines in parts if lines)

    def to_html(self) -> str:
        """A fragment for a notebook or a document; ``STYLE`` is for its head."""
        blocks = "\n".join(block.html() for part in self.parts for block in part)
        return f'<div class="kltarget">\n{blocks}\n</div>'


def _placed(text: str, width: int, side: str) -> str:
    space = width - display_width(text)
    before = {"l": 0, "r": space, "c": space // 2}[side]
    return " " * before + text + " " * (space - before)


def _total(sizes: Sequence[int], gap: int) -> int:
    return sum(sizes) + gap * (len(sizes) - 1)


def _unbroken(column: Sequence[str], side: str) -> list[str]:
    """What a column cannot break: the words of its head and of its texts, and whole numbers."""
    head, *body = column
    words = [word for cell in body for word in words_of(cell)]
    return [*words_of(head), *(words if side == "l" else body)]


def _fitted(widest: list[int], least: list[int], gap: int, room: int) -> list[int]:
    """Widths that fit the room: the widest columns give, as long as they can; then the first."""
    sizes = list(widest)
    while (excess := _total(sizes, gap) - room) > 0:
        giving = [k for k, size in enumerate(sizes) if size > least[k]]
        if not giving:
            # Words that are longer than all the room there is.
            largest = max(range(len(sizes)), key=lambda k: sizes[k])
            sizes[largest] = max(sizes[largest] - excess, 1)
            break
        sizes[max(giving, key=lambda k: sizes[k])] -= 1
    return sizes
