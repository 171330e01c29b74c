"""The TOML files of trainers, held to what they must say when they are read."""

from __future__ import annotations

import datetime
import difflib
import tomllib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from kltarget.recipes._preset import Preset
from kltarget.recipes._recipe import Recipe

_TYPES: dict[str, type] = {
    **dict.fromkeys(("name", "trainer", "versions", "file", "before", "after"), str),
    **dict.fromkeys(("read", "notes", "clipped"), list),
    **dict.fromkeys(("recipe", "keys"), dict),
    "checked": datetime.date,
}
_NEEDED = ("name", "trainer", "versions", "file", "checked", "read", "recipe", "keys")
_IN_WORDS = {str: "a text", list: "a list of texts", dict: "a table", datetime.date: "a date"}


def presets_from_toml(text: str, file: str = "presets") -> list[Preset]:
    """The presets of a TOML file, as one stands beside this room for each trainer.

    Args:
        text: what stands in it.
        file: its name, for errors.

    Returns:
        One for each ``[[preset]]``, in their order.

    Raises:
        ValueError: something missing, unknown, of a wrong type or that a recipe refuses, in a line.

    Example:
        >>> from kltarget import recipes
        >>> recipes.presets_from_toml("preset = [{name = 'mine', verions = '*'}]", "mine.toml")
        Traceback (most recent call last):
        ...
        ValueError: mine.toml, preset 'mine': there is no key 'verions': did you mean 'versions'?
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: this is no TOML: {error}") from None
    try:
        _known(document, ("preset",), "table")
        presets = [_preset(entry, k) for k, entry in enumerate(document.get("preset", ()), 1)]
        _in_order(presets)
    except ValueError as error:
        raise ValueError(f"{file}, {error}") from None
    return presets


def near(wrong: str, known: Collection[str]) -> str:
    """What may have been meant, or all there is."""
    close = difflib.get_close_matches(wrong, known, n=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"choose of {', '.join(known)}"


def _preset(entry: Mapping[str, Any], number: int) -> Preset:
    where = f"preset {entry['name']!r}" if isinstance(entry.get("name"), str) else ""
    try:
        return _checked(entry)
    except ValueError as error:
        raise ValueError(f"{where or f'preset {number}'}: {error}") from None


def _checked(entry: Mapping[str, Any]) -> Preset:
    _known(entry, _TYPES, "key")
    for key in _NEEDED:
        if key not in entry:
            raise ValueError(f"{key} is missing")
    for key, value in entry.items():
        _of_type(key, value, _TYPES[key])
    fields = tuple(Recipe.__dataclass_fields__)
    for table in ("recipe", "keys"):
        _known(entry[table], fields, f"field of a recipe in [preset.{table}]")
    for field, key in entry["keys"].items():
        _of_type(f"{field} in [preset.keys]", key, str)
    if "beta" not in entry["recipe"]:
        raise ValueError("beta is missing in [preset.recipe]")
    _versions(entry)
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    tables = {"recipe": Recipe(**entry["recipe"]), "keys": MappingProxyType(dict(entry["keys"]))}
    return Preset(**{**entry, **lists, **tables})


def _known(given: Collection[str], known: Collection[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}: {near(name, known)}")


def _of_type(key: str, value: Any, kind: type) -> None:
    right = isinstance(value, kind) and not isinstance(value, datetime.datetime)
    if right and kind is list:
        right = all(isinstance(item, str) for item in value)
    if not right:
        raise ValueError(f"{key} must be {_IN_WORDS[kind]}, got {value!r}")


def _versions(entry: Mapping[str, Any]) -> None:
    """Holds the range to what can be compared, and what was read to the range."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        within = SpecifierSet(entry["versions"].replace("*", ""))
        read = [Version(version) for version in entry["read"]]
    except InvalidSpecifier:
        asked = '"*" or bounds such as ">=1.10, <2"'
        raise ValueError(f"versions must be {asked}, got {entry['versions']!r}") from None
    except InvalidVersion as error:
        raise ValueError(f"read must list releases such as 1.9.2: {error}") from None
    if not read and entry["versions"] != "*":
        raise ValueError(f"read is empty: which releases of {entry['versions']} were read?")
    outside = [str(version) for version in read if version not in within]
    if outside:
        raise ValueError(f"read names {outside[0]}, which is not of {entry['versions']}")
    if read != sorted(read):
        raise ValueError(f"read must go from old to new, got {', '.join(entry['read'])}")


def _in_order(presets: list[Preset]) -> None:
    """Where the versions of a name begin and end, somebody who asks for others is told why."""
    for name in dict.fromkeys(preset.name for preset in presets):
        ranges = [preset for preset in presets if preset.name == name]
        oldest, newest = ranges[0], ranges[-1]
        if oldest.versions.startswith(">") and not oldest.before:
            raise ValueError(f"preset {name!r}: before is missing: why {oldest.versions} alone?")
        if "<" in newest.versions and not newest.after:
            raise ValueError(f"preset {name!r}: after is missing: why {newest.versions} alone?")
