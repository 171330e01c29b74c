"""Recipes of public trainers by version, read from ``kltarget/recipes/trainers``."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import importlib.resources
import tomllib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from kltarget._core.page import Page, Table
from kltarget.recipes._reading import kl_term
from kltarget.recipes._recipe import Recipe


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
        clipped: the estimators that ``log_ratio_clip`` and ``kl_clip`` are of; empty for all.

    Example:
        >>> from kltarget import recipes
        >>> print(recipes.preset("trl-rloo"))
        trl-rloo   >=0.22   TRL RLOO   β 0.05   k1 in the reward
    """

    name: str
    trainer: str
    versions: str
    recipe: Recipe
    keys: Mapping[str, str] = dataclasses.field(hash=False)
    file: str
    checked: datetime.date
    notes: tuple[str, ...] = ()
    clipped: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name with its range of versions, as people write it."""
        return self.name if self.versions == "*" else f"{self.name} {self.versions}"

    def __str__(self) -> str:
        name, versions, trainer, beta, kl = _row(self)
        return "   ".join((name, versions, trainer, f"β {beta}", kl))


def recipe(name: str, *, beta: float | None = None, **fields: Any) -> Recipe:
    """What a version of a public trainer does, as a :class:`Recipe`.

    Args:
        name: a preset with a version, ``"trl-grpo==1.9.2"``, or without, ``"trl-grpo"``, which
            is the newest. Versions are compared by their release numbers: ``1.10`` is newer than
            ``1.9.2``, and a release candidate counts as its release.
        beta: coefficient of the regulariser, the trainer's default by default.
        **fields: other fields of the recipe that the configuration at hand sets differently. With
            another ``estimator`` the clips of the trainer's own one go, where they are its alone.

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
        ValueError: there is no preset 'opnrlhf': did you mean 'openrlhf' or 'openrlhf-rloo'?
    """
    known = [field.name for field in dataclasses.fields(Recipe)]
    for field in fields:
        if field not in known:
            raise ValueError(f"a recipe has no field {field!r}: {near(field, known)}")
    changes = fields if beta is None else {**fields, "beta": beta}
    entry = preset(name)
    if entry.clipped and changes.get("estimator", entry.clipped[0]) not in entry.clipped:
        changes = {"log_ratio_clip": None, "kl_clip": None, **changes}
    return dataclasses.replace(entry.recipe, **changes)


def preset(name: str) -> Preset:
    """The preset of a trainer's version: its recipe and where each field was read.

    Args:
        name: with or without a version, as for :func:`recipe`.

    Returns:
        The preset whose range holds the version, the newest without one.

    Raises:
        ValueError: an unknown name, or a version that no preset covers.

    Example:
        >>> from kltarget import recipes
        >>> recipes.preset("nemo-rl==0.6.1").keys["beta"]
        'loss_fn.reference_policy_kl_penalty'
    """
    # Here, because most of a program never asks, and it takes a while to import.
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    wanted, equals, version = (part.strip() for part in name.partition("=="))
    ranges = [entry for entry in presets() if entry.name == wanted]
    if not ranges:
        known = dict.fromkeys(entry.name for entry in presets())
        raise ValueError(f"there is no preset {wanted!r}: {near(wanted, known)}")
    if not equals:
        return ranges[-1]
    try:
        release = Version(version).base_version
    except InvalidVersion:
        raise ValueError(f"{version!r} in {name!r} is not a version such as 1.9.2") from None
    for entry in ranges:
        if release in SpecifierSet(entry.versions.replace("*", "")):
            return entry
    covered = " and ".join(entry.versions for entry in ranges)
    raise ValueError(f"no preset {wanted!r} covers version {version}: they cover {covered}")


@functools.cache
def presets() -> tuple[Preset, ...]:
    """All presets by trainer, versions of one name from old to new; :func:`table` shows them.

    Example:
        >>> from kltarget import recipes
        >>> [entry.versions for entry in recipes.presets() if entry.name == "trl-grpo"]
        ['>=0.14, <0.16', '>=0.16, <0.19', '>=0.19, <=1.9.2', '>=1.10']
    """
    folder = importlib.resources.files("kltarget.recipes").joinpath("trainers")
    files = sorted((x for x in folder.iterdir() if x.name.endswith(".toml")), key=lambda x: x.name)
    entries = [x for file in files for x in tomllib.loads(file.read_text("utf-8"))["preset"]]
    for entry in entries:
        entry["recipe"] = Recipe(**entry["recipe"])
        entry["keys"] = MappingProxyType(entry["keys"])
        for several in ("notes", "clipped"):
            entry[several] = tuple(entry.get(several, ()))
    return tuple(Preset(**entry) for entry in entries)


def table() -> str:
    """All presets as a table of text, a line each.

    Example:
        >>> from kltarget import recipes
        >>> print(recipes.table())
        name    versions   trainer     β   KL
        areal   *          AReaL     0.1   k1 in the reward
        ...
    """
    rows = [("name", "versions", "trainer", "β", "KL"), *map(_row, presets())]
    return Page([Table(rows, "lllrl")]).to_text()


def near(wrong: str, known: Collection[str]) -> str:
    """What may have been meant, or all there is."""
    close = difflib.get_close_matches(wrong, known, n=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"choose of {', '.join(known)}"


def _row(entry: Preset) -> tuple[str, str, str, str, str]:
    beta = f"{entry.recipe.beta:g}"
    return entry.name, entry.versions, entry.trainer, beta, kl_term(entry.recipe)
