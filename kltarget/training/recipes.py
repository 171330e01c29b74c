"""How a trainer applies its regulariser, as data: the record, and presets of public trainers.

``recipe("trl-grpo==1.9.2")`` is what that version of a trainer does, ``list()`` names all presets,
and ``preset(name)`` says where each number was read and which key of the trainer's configuration
sets it.
"""

from kltarget.training._presets import Preset, preset, recipe
from kltarget.training._presets import presets as list
from kltarget.training._recipe import Recipe

__all__ = ["Preset", "Recipe", "list", "preset", "recipe"]
