"""How a trainer applies its regulariser, as data: the record, and presets of public trainers.

``recipe("trl-grpo==1.9.2")`` is what that version of a trainer does, ``presets()`` are all of them
and ``table()`` lists them; ``preset(name)`` says where each number was read and which key of the
trainer's configuration sets it. ``read(recipe)`` says what a recipe optimises, in words and
formulas, and ``difference`` how the targets of two differ. ``divergence_of`` and
``divergence_of_loss`` read a term or a loss function of one's own, ``Weighted`` is such a term with
the probability of its sample, and ``from_config`` reads a trainer's configuration file or command
line.
"""

from kltarget.recipes._critical import critical_beta
from kltarget.recipes._difference import difference
from kltarget.recipes._explanation import Explanation
from kltarget.recipes._installed import Default, InstalledDefaults, installed
from kltarget.recipes._losses import LossReading, divergence_of_loss
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
from kltarget.recipes._weighted import Weighted
from kltarget.recipes.configs import ConfigReading, KeyRead, from_config

__all__ = [
    "ConfigReading",
    "Default",
    "Explanation",
    "InstalledDefaults",
    "KeyRead",
    "LossReading",
    "Preset",
    "Reading",
    "Recipe",
    "TermReading",
    "Weighted",
    "critical_beta",
    "difference",
    "divergence_of",
    "divergence_of_loss",
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
