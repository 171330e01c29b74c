"""A comparison as an HTML page of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kltarget import plot
from kltarget.pages._figure_page import page_with

if TYPE_CHECKING:
    from kltarget.comparisons import Comparison


def comparison(comparison: Comparison) -> str:
    """A comparison of two checkpoints as one HTML page with its figure, without files beside it.

    The page is light or dark as its reader's screen is.

    Args:
        comparison: what :func:`kltarget.comparisons.compare` returned.

    Returns:
        The page; write it to a file of encoding UTF-8.
    """
    return page_with(
        "kltarget compare",
        lambda: plot.comparison(comparison),
        "pass@k before and after, each prompt's success, and the shift of the log-odds",
        comparison.page,
    )
