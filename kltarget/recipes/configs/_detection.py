"""Which trainer a configuration is of, by its keys."""

from __future__ import annotations

from kltarget._core.checks import ArgumentError
from kltarget.recipes.configs._flat_settings import Settings
from kltarget.recipes.configs._key_tables import KeyTable, key_tables, table_named

_FEW = 2


def table_of(settings: Settings, trainer: str | None, where: str) -> tuple[KeyTable, str | None]:
    """The trainer's table, and the preset where a name says which.

    Raises:
        ValueError: no trainer or several have these keys, or another one than was said.
    """
    if trainer is not None:
        return _checked(settings, trainer, where)
    scores = {table.name: _score(table, settings) for table in key_tables()}
    best = max(scores.values())
    candidates = [table for table in key_tables() if scores[table.name] == best]
    if not any(best):
        known = ", ".join(table.name for table in key_tables())
        named = settings.named_files[:1]
        below = f", and {named[0]}, on which it builds, is not given" if named else ""
        raise ArgumentError(
            f"{where}: its keys tell no trainer{below}: say {{}}, one of {known}",
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


def _score(table: KeyTable, settings: Settings) -> tuple[bool, bool, int]:
    """What speaks for a trainer: its command, its own keys, and how many keys mean something."""
    started, marked = bool(table.started_in(settings)), bool(table.marks_in(settings))
    known = len(table.known_in(settings))
    # A single key such as beta is in many a file, and so are flags of many a program.
    enough = started or marked or (known >= _FEW and not settings.commands)
    return started, marked, known + table.hinted_in(settings) if enough else 0


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
