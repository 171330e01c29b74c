"""The live explorer: sliders for β and its like, and the exact target redrawn at every move."""

from kltarget.explorer._page import page

__all__ = ["page"]
