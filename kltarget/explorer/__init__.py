"""The live explorer: sliders for β and its like, and the exact target redrawn at every move.

`explore` is for notebooks, `page` writes the same as one HTML file that needs nothing beside it.
"""

from typing import TYPE_CHECKING, Any

from kltarget.explorer._explore import explore
from kltarget.explorer._moves import Move, Path, Scene
from kltarget.explorer._page import page

if TYPE_CHECKING:
    from kltarget.explorer._widget import Explorer

__all__ = ["Explorer", "Move", "Path", "Scene", "explore", "page"]


def __getattr__(name: str) -> Any:
    if name == "Explorer":
        from kltarget.explorer._widget import Explorer

        return Explorer
    raise AttributeError(f"module 'kltarget.explorer' has no attribute {name!r}")
