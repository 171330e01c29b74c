"""A diagnosis as an HTML page of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kltarget import plot
from kltarget.pages._figure_page import page_with

if TYPE_CHECKING:
    from kltarget.diagnosis import Diagnosis


def diagnosis(diagnosis: Diagnosis) -> str:
    """A diagnosis as one HTML page with its figure, which needs no file beside it.

    The page is light or dark as its reader's screen is.

    Args:
        diagnosis: what :func:`kltarget.diagnose` returned.

    Returns:
        The page; write it to a file of encoding UTF-8.
    """
    return page_with(
        "kltarget diagnose",
        lambda: plot.diagnosis(diagnosis),
        "shares of the answers beside the target, and the target over β",
        diagnosis.page,
    )
