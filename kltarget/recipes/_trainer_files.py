"""The TOML files of trainers, held to what they must say when they are read."""

from __future__ import annotations

import datetime
import difflib
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from kltarget.recipes._explanation import Explanation
from kltarget.recipes._preset import Preset
from kltarget.recipes._recipe import Recipe

if TYPE_CHECKING:
    from packaging.version import Version

T = TypeVar("T")
_TYPES: dict[str, type] = {
    **dict.fromkeys(("name", "trainer", "versions", "file", "before", "after"), str),
    **dict.fromkeys(("read", "notes", "clipped", "configuration"), list),
    **dict.fromkeys(("recipe", "keys", "defaults"), dict),
    "distribution": str,
    "checked": datetime.date,
}
_EXPLAINED: dict[str, type] = {
    **dict.fromkeys(("name", "trainer", "file"), str),
    **dict.fromkeys(("read", "text"), list),
    "checked": datetime.date,
}
_PLACE = re.compile(r"[\w./-]+[.](py(:\w+)?|ya?ml)")
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
    presets = _entries(text, file, "preset", _checked)
    try:
        _in_order(presets)
    except ValueError as error:
        raise ValueError(f"{file}, {error}") from None
    return presets


def explanations_from_toml(text: str, file: str = "explanations") -> list[Explanation]:
    """The trainers of a TOML file that no recipe describes.

    Args:
        text: what stands in it.
        file: its name, for errors.

    Returns:
        One for each ``[[explained]]``, in their order.

    Raises:
        ValueError: something missing, unknown or of a wrong type, in a line.

    Example:
        >>> from kltarget import recipes
        >>> recipes.explanations_from_toml("explained = [{name = 'mine'}]", "mine.toml")
        Traceback (most recent call last):
        ...
        ValueError: mine.toml, explained 'mine': trainer is missing
    """
    return _entries(text, file, "explained", _checked_explanation)


def _entries(text: str, file: str, table: str, made: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """What is made of each ``[[table]]``; errors name the file and the entry."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: this is no TOML: {error}") from None
    try:
        _known(document, ("preset", "explained"), "table")
        given = document.get(table, [])
        if not (isinstance(given, list) and all(isinstance(entry, dict) for entry in given)):
            raise ValueError(f"{table} must stand as [[{table}]], once for each entry")
    except ValueError as error:
        raise ValueError(f"{file}, {error}") from None
    entries = []
    for number, entry in enumerate(given, 1):
        try:
            entries.append(made(entry))
        except ValueError as error:
            title = repr(entry["name"]) if isinstance(entry.get("name"), str) else number
            raise ValueError(f"{file}, {table} {title}: {error}") from None
    return entries


def near(wrong: str, known: Collection[str]) -> str:
    """What may have been meant, or all there is."""
    close = difflib.get_close_matches(wrong, known, n=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"choose of {', '.join(known)}"


def _checked_explanation(entry: Mapping[str, Any]) -> Explanation:
    _complete(entry, _EXPLAINED, tuple(_EXPLAINED))
    _releases(entry["read"])
    if not entry["text"]:
        raise ValueError("text is empty: what is its coefficient?")
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return Explanation(**{**entry, **lists})


def _checked(entry: Mapping[str, Any]) -> Preset:
    _complete(entry, _TYPES, _NEEDED)
    fields = tuple(Recipe.__dataclass_fields__)
    for table in ("recipe", "keys"):
        _known(entry[table], fields, f"field of a recipe in [preset.{table}]")
    for field, key in entry["keys"].items():
        _of_type(f"{field} in [preset.keys]", key, str)
    if "beta" not in entry["recipe"]:
        raise ValueError("beta is missing in [preset.recipe]")
    _places(entry)
    _versions(entry)
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    tables = {key: MappingProxyType(value) for key, value in entry.items() if _TYPES[key] is dict}
    return Preset(**{**entry, **lists, **tables, "recipe": Recipe(**entry["recipe"])})


def _complete(entry: Mapping[str, Any], types: Mapping[str, type], needed: Sequence[str]) -> None:
    _known(entry, types, "key")
    for key in needed:
        if key not in entry:
            raise ValueError(f"{key} is missing")
    for key, value in entry.items():
        _of_type(key, value, types[key])


def _known(given: Collection[str], known: Collection[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}: {near(name, known)}")


def _of_type(key: str, value: Any, kind: type) -> None:
    right = isinstance(value, kind) and not isinstance(value, datetime.datetime)
    if right and isinstance(value, list):
        right = all(isinstance(item, str) for item in value)
    if not right:
        raise ValueError(f"{key} must be {_IN_WORDS[kind]}, got {value!r}")


def _places(entry: Mapping[str, Any]) -> None:
    """Holds what ``--installed`` reads to what it can read."""
    given = [key for key in ("distribution", "configuration") if key in entry]
    if len(given) == 1 or ("defaults" in entry and not given):
        raise ValueError("distribution and configuration go together, defaults go with them")
    for place in entry.get("configuration", ()):
        if not _PLACE.fullmatch(place):
            asked = "package/file.py:Class, package/file.py or package/file.yaml"
            raise ValueError(f"configuration must list files such as {asked}, got {place!r}")
    if given and not entry["read"]:
        raise ValueError("read is empty: which releases had the defaults of configuration?")


def _versions(entry: Mapping[str, Any]) -> None:
    """Holds the range to what can be compared, and what was read to the range."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    versions, read = entry["versions"], _releases(entry["read"])
    try:
        within = SpecifierSet(versions.replace("*", ""))
    except InvalidSpecifier:
        asked = '"*" or bounds such as ">=1.10, <2"'
        raise ValueError(f"versions must be {asked}, got {versions!r}") from None
    if not read and versions != "*":
        raise ValueError(f"read is empty: which releases of {versions} were read?")
    outside = [str(version) for version in read if version not in within]
    if outside:
        raise ValueError(f"read names {outside[0]}, which is not of {versions}")


def _releases(read: Sequence[str]) -> list[Version]:
    """The releases that were read, from old to new."""
    from packaging.version import InvalidVersion, Version

    try:
        releases = [Version(version) for version in read]
    except InvalidVersion as error:
        raise ValueError(f"read must list releases such as 1.9.2: {error}") from None
    if releases != sorted(releases):
        raise ValueError(f"read must go from old to new, got {', '.join(read)}")
    return releases


def _in_order(presets: list[Preset]) -> None:
    """Where the versions of a name begin and end, somebody who asks for others is told why."""
    for name in dict.fromkeys(preset.name for preset in presets):
        ranges = [preset for preset in presets if preset.name == name]
        oldest, newest = ranges[0], ranges[-1]
        if oldest.versions.startswith(">") and not oldest.before:
            raise ValueError(f"preset {name!r}: before is missing: why {oldest.versions} alone?")
        if "<" in newest.versions and not newest.after:
            raise ValueError(f"preset {name!r}: after is missing: why {newest.versions} alone?")
