"""Which trainer a configuration is of, by its keys."""

from __future__ import annotations

from kltarget._core.checks import ArgumentError
from kltarget.recipes.configs._flat_settings import Settings
from kltarget.recipes.configs._key_tables import KeyTable, key_tables, table_named


def table_of(settings: Settings, trainer: str | None, where: str) -> tuple[KeyTable, str | None]:
    """The trainer's table, and the preset where a name says which.

    Raises:
        ValueError: no trainer or several have these keys, or another one than was said.
    """
    if trainer is not None:
        return _checked(settings, trainer, where)
    scores = {
        table.name: (
            bool(table.started_in(settings)),
            bool(table.marks_in(settings)),
            len(table.known_in(settings)),
        )
        for table in key_tables()
    }
    best = max(scores.values())
    candidates = [table for table in key_tables() if scores[table.name] == best]
    if best == (False, False, 0):
        known = ", ".join(table.name for table in key_tables())
        raise ArgumentError(
            f"{where}: no key of a trainer that is known is in it: say {{}}, one of {known}",
            "trainer",
            python="trainer=…",
        )
    if len(candidates) > 1:
        names = " or of ".join(table.name for table in candidates)
        raise ArgumentError(
            f"{where}: its keys are those of {names}: say {{}}",
            "trainer",
            candidates[0].name,
        )
    return candidates[0], None


def _checked(settings: Settings, trainer: str, where: str) -> tuple[KeyTable, str | None]:
    """What was said, if the keys do not speak against it."""
    table, name = table_named(trainer)
    if table.marks_in(settings) or table.started_in(settings):
        return table, name
    for other in key_tables():
        marks = [*other.started_in(settings), *other.marks_in(settings)]
        if marks and other.name not in table.kin and table.name not in other.kin:
            raise ArgumentError(
                f"{where}: {marks[0]} is of {other.name}, not of {trainer}: say {{}}",
                "trainer",
                other.name,
            )
    if not table.known_in(settings):
        raise ValueError(f"{where}: has no key of {trainer}: give its configuration")
    return table, name
