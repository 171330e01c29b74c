"""Recipes of public trainers by version, read from ``kltarget/data/recipes.toml``."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import importlib.resources
import itertools
import math
import re
import tomllib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kltarget._core.page import Page, Table
from kltarget.recipes._recipe import Recipe

_FIELDS = tuple(field.name for field in dataclasses.fields(Recipe))
_ENTRY = {
    "name": str,
    "trainer": str,
    "versions": str,
    "file": str,
    "checked": datetime.date,
    "note": list,
    "recipe": dict,
    "keys": dict,
}
# What may follow the release in a version; it is not compared.
_SUFFIX = re.compile(r"v?(\d+(?:\.\d+)*)(?:[-_.+]?[a-z].*|\+.*)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Preset:
    """The recipe that a range of versions of a trainer follows by default.

    Args:
        name: what :func:`recipe` is asked for.
        trainer: the trainer's own name.
        versions: the range, such as ``">=1.10"``; ``"*"`` for all.
        recipe: what these versions do, with the trainer's default β.
        keys: for fields of the recipe, the key of the trainer's configuration.
        file: where the numbers were read.
        checked: when; the first of a month where only the month is known.
        notes: what the fields cannot say.

    Example:
        >>> from kltarget.training import recipes
        >>> print(recipes.preset("trl-rloo"))
        trl-rloo   *   TRL RLOO   β 0.05   k1 in the reward
    """

    name: str
    trainer: str
    versions: str
    recipe: Recipe
    keys: Mapping[str, str] = dataclasses.field(hash=False)
    file: str
    checked: datetime.date
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name with its range of versions, as people write it."""
        return self.name if self.versions == "*" else f"{self.name} {self.versions}"

    def __str__(self) -> str:
        return "   ".join(_row(self))


class Presets(tuple[Preset, ...]):
    """Presets that print as a table, one line each."""

    def __repr__(self) -> str:
        head = ("name", "versions", "trainer", "β", "KL")
        rows = [head, *((*_row(preset)[:3], *_short(preset)) for preset in self)]
        return Page([Table(rows, "lllrl")]).to_text()

    __str__ = __repr__


def recipe(name: str, *, beta: float | None = None, **fields: Any) -> Recipe:
    """What a version of a public trainer does, as a :class:`Recipe`.

    Args:
        name: a preset with a version, ``"trl-grpo==1.9.2"``, or without, ``"trl-grpo"``, which
            is the newest. Versions are compared by their release numbers: ``1.10`` is newer than
            ``1.9.2``, and a release candidate counts as its release.
        beta: coefficient of the regulariser, the trainer's default by default.
        **fields: other fields of the recipe that the configuration at hand sets differently.

    Returns:
        The recipe. Where a trainer's default could not be read in its source, the field has the
        recipe's own default; ``preset(name).notes`` says so.

    Raises:
        ValueError: an unknown name or field, a version that no preset covers, or a field that the
            recipe refuses.

    Example:
        The same configuration, before and after the trainer changed its default:

        >>> from kltarget.recipes import recipe
        >>> recipe("trl-grpo==1.9.2", beta=0.04).divergence
        ForwardKL()
        >>> recipe("trl-grpo", beta=0.04).divergence
        ReverseKL()
        >>> recipe("opnrlhf")
        Traceback (most recent call last):
        ...
        ValueError: there is no preset 'opnrlhf': did you mean 'openrlhf'?
    """
    for field in fields:
        if field not in _FIELDS:
            raise ValueError(f"a recipe has no field {field!r}: {_near(field, _FIELDS)}")
    changes = fields if beta is None else {**fields, "beta": beta}
    return dataclasses.replace(preset(name).recipe, **changes)


def preset(name: str) -> Preset:
    """The preset of a trainer's version: its recipe and where each field was read.

    Args:
        name: with or without a version, as for :func:`recipe`.

    Returns:
        The preset whose range holds the version, the newest without one.

    Raises:
        ValueError: an unknown name, or a version that no preset covers.

    Example:
        >>> from kltarget.training import recipes
        >>> recipes.preset("nemo-rl==0.6.1").keys["beta"]
        'loss_fn.reference_policy_kl_penalty'
    """
    wanted, equals, version = (part.strip() for part in name.partition("=="))
    ranges = [entry for entry in presets() if entry.name == wanted]
    if not ranges:
        known = tuple(dict.fromkeys(entry.name for entry in presets()))
        raise ValueError(f"there is no preset {wanted!r}: {_near(wanted, known)}")
    if not equals:
        return ranges[-1]
    release = _release(version)
    if release is None:
        raise ValueError(f"{version!r} in {name!r} is not a version such as 1.9.2")
    for entry in ranges:
        if release in _Range.parse(entry.versions):
            return entry
    covered = " and ".join(entry.versions for entry in ranges)
    raise ValueError(f"no preset {wanted!r} covers version {version}: they cover {covered}")


@functools.cache
def presets() -> Presets:
    """All presets, in the order of the data file, versions of one name from old to new.

    Returns:
        A tuple of :class:`Preset` that prints as a table.

    Example:
        >>> from kltarget.training import recipes
        >>> [entry.versions for entry in recipes.presets() if entry.name == "trl-grpo"]
        ['<=1.9.2', '>=1.10']
    """
    data = importlib.resources.files("kltarget").joinpath("data", "recipes.toml")
    return parse(data.read_text(encoding="utf-8"))


def parse(text: str) -> Presets:
    """The presets of a TOML text.

    Raises:
        ValueError: an entry says what it should not, or too little; the message names it.
    """
    document = tomllib.loads(text)
    if set(document) != {"preset"}:
        raise ValueError(f"recipes.toml: only [[preset]] entries belong here, got {[*document]}")
    entries = [_entry(i, table) for i, table in enumerate(document["preset"], start=1)]
    order = list(dict.fromkeys(entry.name for entry in entries))
    entries.sort(key=lambda entry: (order.index(entry.name), _Range.parse(entry.versions).low))
    for older, newer in itertools.pairwise(entries):
        if older.name == newer.name and _Range.parse(older.versions).overlaps(
            _Range.parse(newer.versions)
        ):
            raise ValueError(
                f"recipes.toml: the versions {older.versions} and {newer.versions} of "
                f"{older.name!r} overlap"
            )
    return Presets(entries)


def _entry(position: int, table: dict[str, Any]) -> Preset:
    where = f"recipes.toml, preset {position} ({table.get('name', 'without name')!r})"
    for key in table:
        if key not in _ENTRY:
            raise ValueError(f"{where}: unknown key {key!r}: {_near(key, tuple(_ENTRY))}")
    for key, kind in _ENTRY.items():
        if key not in table and key != "note":
            raise ValueError(f"{where}: {key!r} is missing")
        if not isinstance(table.get(key, []), kind) and key in table:
            raise ValueError(f"{where}: {key!r} must be a {kind.__name__}, got {table[key]!r}")
    if not all(isinstance(note, str) for note in table.get("note", [])):
        raise ValueError(f"{where}: 'note' must be a list of strings")
    for part in ("recipe", "keys"):
        for field in table[part]:
            if field not in _FIELDS:
                raise ValueError(f"{where}: {part}: no field {field!r}: {_near(field, _FIELDS)}")
    if not all(isinstance(key, str) for key in table["keys"].values()):
        raise ValueError(f"{where}: 'keys' must name a string for each field")
    if "beta" not in table["recipe"]:
        raise ValueError(f"{where}: recipe: 'beta' is missing")
    try:
        _Range.parse(table["versions"])
        made = Recipe(**table["recipe"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Preset(
        name=table["name"],
        trainer=table["trainer"],
        versions=table["versions"],
        recipe=made,
        keys=MappingProxyType(dict(table["keys"])),
        file=table["file"],
        checked=table["checked"],
        notes=tuple(table.get("note", ())),
    )


@dataclasses.dataclass(frozen=True)
class _Range:
    """The versions between two bounds; a bound is a release and whether the versions at it are out.

    ``(release, False)`` stands just before a release and ``(release, True)`` just after it, so that
    every bound is a number on one line.
    """

    low: tuple[tuple[float, ...], bool]
    high: tuple[tuple[float, ...], bool]

    @classmethod
    def parse(cls, text: str) -> _Range:
        low, high = ((-math.inf,), False), ((math.inf,), True)
        if text.strip() != "*":
            for part in text.split(","):
                match = re.fullmatch(r"(<=|>=|==|<|>)\s*(\S+)", part.strip())
                release = match and _release(match[2])
                if not match or release is None:
                    raise ValueError(
                        f"versions {text!r} is neither '*' nor bounds such as '>=1.10'"
                    )
                if match[1] in (">=", ">", "=="):
                    low = max(low, (release, match[1] == ">"))
                if match[1] in ("<=", "<", "=="):
                    high = min(high, (release, match[1] != "<"))
        if low >= high:
            raise ValueError(f"versions {text!r} leaves no version")
        return cls(low, high)

    def __contains__(self, release: tuple[float, ...]) -> bool:
        return self.low <= (release, False) and (release, True) <= self.high

    def overlaps(self, other: _Range) -> bool:
        return max(self.low, other.low) < min(self.high, other.high)


def _release(version: str) -> tuple[float, ...] | None:
    """The numbers of a version without trailing zeros: 1.10, 1.10.0 and 1.10.0rc1 are equal."""
    match = _SUFFIX.fullmatch(version)
    if not match:
        return None
    numbers = [float(part) for part in match[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _near(wrong: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(wrong, known, n=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"choose of {', '.join(known)}"


def _row(entry: Preset) -> tuple[str, ...]:
    beta, kl = _short(entry)
    return entry.name, entry.versions, entry.trainer, f"β {beta}", kl


def _short(entry: Preset) -> tuple[str, str]:
    """β and where its KL is, in a few words."""
    used = entry.recipe
    if used.place == "none":
        return f"{used.beta:g}", "none"
    return f"{used.beta:g}", f"{used.estimator} in the {used.place}"
