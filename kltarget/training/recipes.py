"""How a trainer applies its regulariser, as data."""

from kltarget.training._recipe import Recipe

__all__ = ["Recipe"]
