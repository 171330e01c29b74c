"""A page of its own with one figure, which needs no file beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from kltarget._core.page import STYLE, Figure, Page


def page_with(title: str, drawn: Any, alternative: str, page: Callable[[Figure], Page]) -> str:
    """HTML of a page that is made around a drawn figure."""
    written = io.BytesIO()
    drawn.savefig(written, format="png", dpi=160)
    data = base64.b64encode(written.getvalue()).decode()
    figure = Figure(f"data:image/png;base64,{data}", alternative)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title>"
        f"<style>body {{ margin: clamp(.8rem, 4vw, 2rem); }}{STYLE}</style></head>"
        f"<body>{page(figure).to_html()}</body></html>\n"
    )
