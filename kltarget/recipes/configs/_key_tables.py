"""What the keys of a trainer's configuration do: the tables in ``keys/``, one file per trainer."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import tomllib
from collections.abc import Mapping
from typing import Any

from kltarget.recipes._presets import presets
from kltarget.recipes._trainer_files import near
from kltarget.recipes.configs._flat_settings import Settings, number, spelled


@dataclasses.dataclass(frozen=True)
class KeyRule:
    """What one key does, where ``when`` holds and ``unless`` does not; ``keys/README.md``."""

    key: str
    field: str | None = None
    fields: tuple[str, ...] = ()
    factor: float = 1.0
    values: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    when: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unless: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    clearing: bool = False
    always: bool = False
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """A combination of keys, the preset that it is, and the fields in which it differs."""

    preset: str = ""
    when: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unless: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str | None = None
    refuse: str | None = None


@dataclasses.dataclass(frozen=True)
class KeyTable:
    """The keys of a trainer.

    Attributes:
        name: of the trainer.
        kin: trainers whose keys are much the same: a mark of theirs is no contradiction.
        marks: keys that no other trainer has; ``"actor_rollout_ref.*"`` is all below one.
        hints: keys that speak for it without deciding.
        commands: parts of a command line that start it.
        default: value of a key that no file sets.
        alias: other spellings of keys.
        variants: combinations of keys, the first that holds counts.
        rules: what each key does.
        never: keys of a near relation that this trainer does not read, and the reason.
    """

    name: str
    kin: tuple[str, ...]
    marks: tuple[str, ...]
    hints: tuple[str, ...]
    commands: tuple[str, ...]
    default: Mapping[str, Any]
    alias: Mapping[str, str]
    variants: tuple[Variant, ...]
    rules: tuple[KeyRule, ...]
    never: Mapping[str, str]

    @functools.cached_property
    def known(self) -> frozenset[str]:
        """All keys that mean something here, without aliases."""
        conditions = [x.when for x in (*self.variants, *self.rules)]
        conditions += [x.unless for x in (*self.variants, *self.rules)]
        keys = {key for when in conditions for key in when if not is_pseudo(key)}
        return frozenset(keys | {rule.key for rule in self.rules})

    def canonical(self, key: str) -> str:
        """The key's present spelling."""
        return self.alias.get(key, key)

    def marks_in(self, settings: Settings) -> list[str]:
        """The settings that only this trainer has."""
        return [
            setting.shown
            for key, setting in settings.values.items()
            if any(matches(key, mark) for mark in self.marks)
        ]

    def started_in(self, settings: Settings) -> list[str]:
        """The parts of a command line that start this trainer."""
        return [x for x in self.commands if x in settings.commands]

    def known_in(self, settings: Settings) -> list[str]:
        """The settings that mean something here."""
        return [
            setting.shown
            for key, setting in settings.values.items()
            if self.canonical(key) in self.known
        ]

    def hinted_in(self, settings: Settings) -> int:
        """How many settings speak for this trainer without deciding."""
        return sum(any(matches(key, x) for x in self.hints) for key in settings.values)


def is_pseudo(key: str) -> bool:
    """Whether a condition is on what is no key: the preset, or whether a block is there at all."""
    return key.startswith("_") or key.endswith(".*")


def matches(key: str, pattern: str) -> bool:
    """Whether a key is the one, or below the one, that a pattern names."""
    return key.startswith(pattern[:-1]) if pattern.endswith(".*") else key == pattern


def agrees(value: Any, wanted: Any) -> bool:
    """Whether a value is the one, or one of those, that a condition asks for."""
    if isinstance(wanted, list):
        return any(agrees(value, x) for x in wanted)
    number_wanted = number(wanted)
    if number_wanted is not None:
        return number(value) == number_wanted
    return spelled(value) == spelled(wanted)


@functools.cache
def key_tables() -> tuple[KeyTable, ...]:
    """All of them, by name."""
    folder = importlib.resources.files("kltarget.recipes.configs").joinpath("keys")
    files = sorted((x for x in folder.iterdir() if x.name.endswith(".toml")), key=lambda x: x.name)
    return tuple(_table(tomllib.loads(file.read_text("utf-8"))) for file in files)


def _table(document: dict[str, Any]) -> KeyTable:
    rules = []
    for entry in document.get("key", ()):
        entry["fields"] = tuple(entry.get("fields", ()))
        rules.append(KeyRule(**entry))
    return KeyTable(
        name=document["name"],
        **{x: tuple(document.get(x, ())) for x in ("kin", "marks", "hints", "commands")},
        default=document.get("default", {}),
        alias=document.get("alias", {}),
        variants=tuple(Variant(**entry) for entry in document["variant"]),
        rules=tuple(rules),
        never=document.get("never", {}),
    )


def table_named(trainer: str) -> tuple[KeyTable, str | None]:
    """The table of a trainer, and the preset if it was asked for by a preset's name.

    Raises:
        ValueError: no such name, or one whose configurations are not read.
    """
    name = trainer.partition("==")[0].strip()
    for table in key_tables():
        if name == table.name:
            return table, None
    for table in key_tables():
        if any(name == variant.preset for variant in table.variants):
            return table, name
    if any(name == entry.name for entry in presets()):
        known = ", ".join(table.name for table in key_tables())
        raise ValueError(f"configurations of {name} are not read: choose of {known}")
    every = [table.name for table in key_tables()]
    every += [variant.preset for table in key_tables() for variant in table.variants]
    every = sorted(set(filter(None, every)))
    raise ValueError(f"there is no trainer {name!r}: {near(name, every)}")
