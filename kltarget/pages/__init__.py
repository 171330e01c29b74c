"""Pages: diagnoses, forecasts and comparisons as HTML, and the live explorer.

The explorer has sliders for β and its like, and redraws the exact target at every move.

``explore`` is for notebooks, ``page`` writes the same as one HTML file that needs nothing beside
it.
"""

from typing import TYPE_CHECKING, Any

from kltarget.pages._comparison_html import comparison
from kltarget.pages._diagnosis_page import diagnosis
from kltarget.pages._explore import explore
from kltarget.pages._explorer_page import page
from kltarget.pages._forecast_html import forecast

if TYPE_CHECKING:
    from kltarget.pages._widget import Explorer, Scene

__all__ = ["Explorer", "Scene", "comparison", "diagnosis", "explore", "forecast", "page"]


def __getattr__(name: str) -> Any:
    if name in ("Explorer", "Scene"):
        from kltarget.pages import _widget

        return getattr(_widget, name)
    raise AttributeError(f"module 'kltarget.pages' has no attribute {name!r}")
