"""A forecast as an HTML page of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kltarget import plot
from kltarget.pages._figure_page import page_with

if TYPE_CHECKING:
    from kltarget.forecasts import Forecast


def forecast(forecast: Forecast) -> str:
    """A forecast as one HTML page with its figure, which needs no file beside it.

    The page is light or dark as its reader's screen is.

    Args:
        forecast: what :func:`kltarget.forecasts.forecast` returned.

    Returns:
        The page; write it to a file of encoding UTF-8.
    """
    return page_with(
        "kltarget forecast",
        lambda: plot.forecast(forecast),
        "success and pass@k over β, and success over KL beside that of the best of n",
        forecast.page,
    )
