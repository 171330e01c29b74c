"""A page of its own with one figure, which needs no file beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from kltarget import plot
from kltarget._core.page import STYLE, Figure, Page

_BODY = "body { margin: clamp(.8rem, 4vw, 2rem); background: light-dark(#fff, #16181d); }"


def page_with(
    title: str, draw: Callable[[], Any], alternative: str, page: Callable[[Figure], Page]
) -> str:
    """HTML of a page that is made around a figure, as light or dark as its reader's screen."""
    return html_of(title, page(drawn_twice(draw, alternative)))


def drawn_twice(draw: Callable[[], Any], alternative: str) -> Figure:
    """A figure, drawn for light and for dark pages whatever style is in force."""
    return Figure(_drawn(draw, plot.STYLE), alternative, dark=_drawn(draw, plot.DARK))


def html_of(title: str, page: Page, style: str = "") -> str:
    """HTML of a page of its own."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title>"
        f"<style>{_BODY}{STYLE}{style}</style></head>"
        f"<body>{page.to_html()}</body></html>\n"
    )


def _drawn(draw: Callable[[], Any], style: Any) -> str:
    import matplotlib.style

    written = io.BytesIO()
    with matplotlib.style.context([style, {"savefig.facecolor": "auto"}]):
        draw().savefig(written, format="png", dpi=160)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
