"""How a trainer's configuration spells a field of a recipe."""

from __future__ import annotations

from typing import Any

from kltarget.recipes._preset import Preset
from kltarget.recipes.configs._flat_settings import spelled
from kltarget.recipes.configs._key_tables import KeyRule, KeyTable, Variant, agrees, key_tables


def setting_of(preset: Preset, field: str, value: Any) -> tuple[str, Any] | None:
    """The key and the value by which a trainer's configuration sets a field of its recipe.

    None if nothing that is known of the trainer sets it, such as an estimator that it has not.
    """
    for table in key_tables():
        for variant in table.variants:
            if variant.preset != preset.name or variant.recipe:
                continue
            for rule in table.rules:
                found = _setting(rule, field, value)
                if found is not None and _holds(table, variant, rule, preset):
                    return found
    return None


def _setting(rule: KeyRule, field: str, value: Any) -> tuple[str, Any] | None:
    if rule.field == field:
        return rule.key, value / rule.factor if isinstance(value, float) else value
    for spelling, fields in rule.values.items():
        if field in fields and spelled(fields[field]) == spelled(value) and spelling != "*":
            return rule.key, spelling
    return None


def _holds(table: KeyTable, variant: Variant, rule: KeyRule, preset: Preset) -> bool:
    """Whether a key acts beside what makes a configuration this preset, and defaults."""
    beside = {
        **table.default,
        **variant.when,
        "_preset": preset.name,
        "_versions": preset.versions,
    }
    acts = all(key not in beside or _overlap(beside[key], x) for key, x in rule.when.items())
    return acts and not any(
        key in beside and agrees(beside[key], x) for key, x in rule.unless.items()
    )


def _overlap(given: Any, wanted: Any) -> bool:
    return any(agrees(x, wanted) for x in (given if isinstance(given, list) else [given]))
