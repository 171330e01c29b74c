"""A preset beside the defaults of the package that is installed, which is read and never run."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
import re
from typing import Any

from kltarget.recipes._config_defaults import default_of
from kltarget.recipes._preset import Preset
from kltarget.recipes._presets import preset

_KEY = re.compile(r"([\w.]+)(?: = (.+))?")
_WORDS = {"None": None, "null": None, "True": True, "true": True, "False": False, "false": False}


@dataclasses.dataclass(frozen=True)
class Default:
    """The default of one setting of a trainer, when it was read and now.

    Args:
        setting: its key in the trainer's configuration.
        field: the field of the recipe that it sets; None for another one that decides the target.
        read: its default in the releases that the preset was read in; a list if they differ.
        installed: its default in the package that is installed, ``"absent"`` if it has none.

    Example:
        >>> from kltarget import recipes
        >>> recipes.Default("beta", "beta", 0.0, 0.04).same
        False
    """

    setting: str
    field: str | None
    read: Any
    installed: Any

    @property
    def same(self) -> bool:
        """Whether nothing changed."""
        read = self.read if isinstance(self.read, list) else [self.read]
        return _plain(self.installed) in map(_plain, read)


@dataclasses.dataclass(frozen=True)
class InstalledDefaults:
    """What :func:`installed` found.

    Args:
        preset: the preset of the installed version, or of the one that was asked for.
        distribution: the package.
        version: the version that is installed.
        defaults: each setting, with its default when it was read and now.

    Example:
        >>> from kltarget import recipes
        >>> beta = recipes.Default("beta", "beta", 0.0, 0.04)
        >>> preset = recipes.preset("trl-grpo")
        >>> len(recipes.InstalledDefaults(preset, "trl", "1.17", (beta,)).differences)
        1
    """

    preset: Preset
    distribution: str
    version: str
    defaults: tuple[Default, ...]

    @property
    def differences(self) -> tuple[Default, ...]:
        """The settings whose default changed."""
        return tuple(default for default in self.defaults if not default.same)


def installed(name: str) -> InstalledDefaults:
    """Compares a preset with the defaults of the package that is installed.

    The files of the package are read, not imported: what it needs itself need not be installed.

    Args:
        name: a preset, ``"trl-grpo"``, which stands for the installed version's; or one of a
            version of its own, ``"trl-grpo==1.9.2"``.

    Returns:
        The default of every setting that the preset names, as it was read and as it is installed.

    Raises:
        ValueError: an unknown preset, one that names no package, or a package that is not there.
        ImportError: the defaults are in YAML, and PyYAML is not installed.

    Example:
        >>> from kltarget import recipes
        >>> recipes.installed("torchforge")
        Traceback (most recent call last):
        ...
        ValueError: torchforge names no package whose defaults are read, only apps/grpo/main.py
    """
    found = preset(name)
    if not found.configuration:
        raise ValueError(
            f"{found.name} names no package whose defaults are read, only {found.file}"
        )
    try:
        package = importlib.metadata.distribution(found.distribution)
    except importlib.metadata.PackageNotFoundError:
        mend = f"pip install --no-deps {found.distribution}"
        raise ValueError(f"{found.distribution} is not installed: {mend} is enough") from None
    if "==" not in name:
        found = preset(f"{found.name}=={package.version}")
    places = [_located(package, place) for place in found.configuration]
    defaults = (
        Default(key, field, read, default_of(key, places))
        for key, (field, read) in _as_read(found).items()
    )
    return InstalledDefaults(found, found.distribution, package.version, tuple(defaults))


def _as_read(preset: Preset) -> dict[str, tuple[str | None, Any]]:
    """Of each key of the configuration the field that it sets, and its default when it was read."""
    keys: dict[str, tuple[str | None, Any]] = {}
    for field, text in preset.keys.items():
        # Other texts are sentences for people.
        if match := _KEY.fullmatch(text):
            key, value = match.groups()
            if value is None:
                value = getattr(preset.recipe, field)
            keys.setdefault(key, (field, value))
    for key, value in preset.defaults.items():
        keys[key] = (keys[key][0] if key in keys else None, value)
    return keys


def _located(package: importlib.metadata.Distribution, place: str) -> tuple[pathlib.Path, str]:
    """A file of the package, and the class in it that holds the defaults, if it is one."""
    name, _, owner = place.partition(":")
    path = pathlib.Path(str(package.locate_file(name)))
    if not path.is_file():
        # An editable install has its files elsewhere.
        top, *rest = name.split("/")
        spec = importlib.util.find_spec(top)
        folders = spec.submodule_search_locations or () if spec else ()
        others = (pathlib.Path(folder, *rest) for folder in folders)
        path = next((other for other in others if other.is_file()), path)
    if not path.is_file():
        where = f"{package.name} {package.version}"
        raise ValueError(f"{where} has no {name}, where the defaults were read: it has moved")
    return path, owner


def _plain(value: Any) -> Any:
    """A value as it is compared: text that is a number or a word of Python or YAML as that."""
    text = str(value)
    if text in _WORDS:
        return _WORDS[text]
    try:
        return float(text)
    except ValueError:
        return text
