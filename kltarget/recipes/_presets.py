"""Recipes of public trainers by version, read from ``kltarget/recipes/trainers``."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kltarget._core.page import Page, Table
from kltarget.recipes._explanation import Explanation
from kltarget.recipes._preset import Preset
from kltarget.recipes._recipe import Recipe
from kltarget.recipes._trainer_files import explanations_from_toml, near, presets_from_toml

if TYPE_CHECKING:
    from packaging.version import Version


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
        recipe's own default; ``preset(name).notes`` says so, and ``preset(name).caveat`` whether
        the version is one that was not read.

    Raises:
        ValueError: an unknown name or field, a version that had no such trainer, or a field that
            the recipe refuses.

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
        The preset whose range holds the version, the newest without one. Where that version was
        not read, its ``caveat`` says so, and which ones were.

    Raises:
        ValueError: an unknown name, one of :func:`explanations`, or a version that had no such
            trainer.

    Example:
        >>> from kltarget import recipes
        >>> recipes.preset("nemo-rl==0.6.1").keys["beta"]
        'loss_fn.reference_policy_kl_penalty'
        >>> recipes.preset("maxtext==0.3").caveat
        'version 0.3 of maxtext was not read: the newest release that was is 0.2.5, and later ...'
    """
    # Here, because most of a program never asks, and it takes a while to import.
    from packaging.specifiers import SpecifierSet

    wanted, equals, version = (part.strip() for part in name.partition("=="))
    ranges = [entry for entry in presets() if entry.name == wanted]
    if not ranges:
        if told := explanation(name):
            raise ValueError(f"no recipe says what {wanted} does: {told}")
        known = [entry.name for entry in (*presets(), *explanations())]
        raise ValueError(f"there is no preset {wanted!r}: {near(wanted, dict.fromkeys(known))}")
    if not equals:
        return ranges[-1]
    release = _release(name)
    within = [release in SpecifierSet(entry.versions.replace("*", "")) for entry in ranges]
    place = within.index(True) if any(within) else _gap(ranges, release)
    caveat = _caveat(ranges, place, version, release)
    return dataclasses.replace(ranges[place], caveat=caveat) if caveat else ranges[place]


def explanation(name: str) -> Explanation | None:
    """What a trainer does that no recipe says, such as DPO or distillation.

    Args:
        name: with or without a version, as for :func:`recipe`.

    Returns:
        What its coefficient is and what it aims at; None if the name is not of one of
        :func:`explanations`.

    Example:
        >>> from kltarget import recipes
        >>> recipes.explanation("trl-dpo").trainer
        'TRL DPO'
    """
    wanted, equals, version = (part.strip() for part in name.partition("=="))
    found = next((entry for entry in explanations() if entry.name == wanted), None)
    if found is None or not equals:
        return found
    return dataclasses.replace(found, caveat=_caveat([found], 0, version, _release(name)))


def _release(name: str) -> Version:
    """The release that a name ends in."""
    from packaging.version import InvalidVersion, Version

    version = name.partition("==")[2].strip()
    try:
        return Version(Version(version).base_version)
    except InvalidVersion:
        raise ValueError(f"{version!r} in {name!r} is not a version such as 1.9.2") from None


def _gap(ranges: Sequence[Preset], release: Version) -> int:
    """Which entry lies below a version that none covers."""
    from packaging.version import Version

    below = [k for k, entry in enumerate(ranges) if Version(entry.read[-1]) < release]
    why = "" if below else ranges[0].before
    if below and below[-1] == len(ranges) - 1:
        why = ranges[-1].after
    if why:
        raise ValueError(f"no preset {ranges[0].name!r} covers version {release}: {why}")
    return below[-1]


def _caveat(
    ranges: Sequence[Preset] | Sequence[Explanation], place: int, version: str, release: Version
) -> str:
    """What to mind where a version was not read."""
    from packaging.version import Version

    entry = ranges[place]
    told = f"version {version} of {entry.name} was not read"
    if not entry.read:
        where = f"{entry.file}, checked {entry.checked}"
        return f"{told}, nor was any release: this is from {where}."
    first, last = entry.read[0], entry.read[-1]
    if Version(first) <= release <= Version(last):
        return ""
    older, newer = ranges[max(place - 1, 0)], ranges[min(place + 1, len(ranges) - 1)]
    if release < Version(first) and older is not entry:
        other, side = older.read[-1], f"and {first} does this"
        return f"{told}: {other} does what {entry.name}=={other} says, {side}."
    if release < Version(first):
        return f"{told}: the oldest release that was is {first}, and earlier ones may do otherwise."
    if newer is not entry:
        other = newer.read[0]
        return f"{told}: {last} does this, and {other} does what {entry.name}=={other} says."
    return f"{told}: the newest release that was is {last}, and later ones may do otherwise."


@functools.cache
def presets() -> tuple[Preset, ...]:
    """All presets by trainer, versions of one name from old to new; :func:`table` shows them.

    Example:
        >>> from kltarget import recipes
        >>> [entry.versions for entry in recipes.presets() if entry.name == "trl-grpo"]
        ['>=0.14, <0.16', '>=0.16, <0.19', '>=0.19, <=1.9.2', '>=1.10']
    """
    return tuple(x for file, text in _files().items() for x in presets_from_toml(text, file))


@functools.cache
def explanations() -> tuple[Explanation, ...]:
    """All trainers that no recipe describes, with what their coefficient is instead.

    Example:
        >>> from kltarget import recipes
        >>> [entry.name for entry in recipes.explanations()]
        ['llamafactory-dpo', 'llamafactory-kto', ..., 'trl-gkd', 'trl-distillation']
    """
    return tuple(x for file, text in _files().items() for x in explanations_from_toml(text, file))


@functools.cache
def _files() -> dict[str, str]:
    """What stands in the file of each trainer."""
    folder = importlib.resources.files("kltarget.recipes").joinpath("trainers")
    files = sorted((x for x in folder.iterdir() if x.name.endswith(".toml")), key=lambda x: x.name)
    return {file.name: file.read_text("utf-8") for file in files}


def table() -> str:
    """All presets as a table of text, a line each.

    Example:
        >>> from kltarget import recipes
        >>> print(recipes.table())
        name    versions   trainer     β   KL
        areal   *          AReaL     0.1   k1 in the reward
        ...
    """
    head = ("name", "versions", "trainer", "β", "KL")
    rows = [head, *(entry.row for entry in presets())]
    return Page([Table(rows, "lllrl")]).to_text()
