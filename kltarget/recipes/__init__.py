"""How a trainer applies its regulariser, as data: the record, and presets of public trainers.

``recipe("trl-grpo==1.9.2")`` is what that version of a trainer does, ``presets()`` are all of them
and ``table()`` lists them; ``preset(name)`` says where each number was read and which key of the
trainer's configuration sets it. ``read(recipe)`` says what a recipe optimises, in words and
formulas, and ``compare`` how the targets of two differ. ``from_config`` reads a trainer's own
configuration file or command line as a recipe.
"""

from kltarget.recipes._comparison import compare
from kltarget.recipes._critical import critical_beta
from kltarget.recipes._explanation import Explanation
from kltarget.recipes._installed import Default, InstalledDefaults, installed
from kltarget.recipes._preset import Preset
from kltarget.recipes._presets import (
    explanation,
    explanations,
    preset,
    presets,
    recipe,
    table,
)
from kltarget.recipes._reading import Reading, read
from kltarget.recipes._recipe import Recipe
from kltarget.recipes._terms import TermReading, divergence_of, read_term
from kltarget.recipes._trainer_files import explanations_from_toml, presets_from_toml
from kltarget.recipes.configs import ConfigReading, KeyRead, from_config

__all__ = [
    "ConfigReading",
    "Default",
    "Explanation",
    "InstalledDefaults",
    "KeyRead",
    "Preset",
    "Reading",
    "Recipe",
    "TermReading",
    "compare",
    "critical_beta",
    "divergence_of",
    "explanation",
    "explanations",
    "explanations_from_toml",
    "from_config",
    "installed",
    "preset",
    "presets",
    "presets_from_toml",
    "read",
    "read_term",
    "recipe",
    "table",
]
