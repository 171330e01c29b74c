"""A diagnosis as an HTML page of its own."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from kltarget import plot
from kltarget._core.page import STYLE, Figure

if TYPE_CHECKING:
    from kltarget.diagnosis import Diagnosis


def diagnosis(diagnosis: Diagnosis) -> str:
    """A diagnosis as one HTML page with its figure, which needs no file beside it.

    Args:
        diagnosis: what :func:`kltarget.diagnose` returned.

    Returns:
        The page; write it to a file of encoding UTF-8.
    """
    drawn = io.BytesIO()
    plot.diagnosis(diagnosis).savefig(drawn, format="png", dpi=160)
    data = base64.b64encode(drawn.getvalue()).decode()
    figure = Figure(
        f"data:image/png;base64,{data}",
        "shares of the answers beside the target, and the target over β",
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>kltarget diagnose</title>"
        f"<style>body {{ margin: clamp(.8rem, 4vw, 2rem); }}{STYLE}</style></head>"
        f"<body>{diagnosis.page(figure).to_html()}</body></html>\n"
    )
