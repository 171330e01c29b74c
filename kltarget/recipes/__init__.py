"""How a trainer applies its regulariser, as data: the record, and presets of public trainers.

``recipe("trl-grpo==1.9.2")`` is what that version of a trainer does, ``presets()`` names them all,
and ``preset(name)`` says where each number was read and which key of the trainer's configuration
sets it.
"""

from kltarget.recipes._critical import critical_beta
from kltarget.recipes._presets import Preset, preset, presets, recipe
from kltarget.recipes._recipe import Recipe

__all__ = ["Preset", "Recipe", "critical_beta", "preset", "presets", "recipe"]
