"""Configuration files and overrides as flat settings: a dotted key and a value each."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kltarget._core.words import compact
from kltarget.recipes.configs._python_calls import config_call
from kltarget.recipes.configs._shell_scripts import commands_of
from kltarget.recipes.configs._yaml_files import yaml_data

Source = str | os.PathLike[str] | Mapping[str, Any]

_MOST_BYTES, _MOST_SETTINGS, _MOST_DEPTH = 256_000, 20_000, 60
_SHELL = (".sh", ".bash", ".zsh", ".slurm", ".sbatch", ".job", ".qsub", ".sub", ".txt")
_GIVE = "give a .yaml, .json, .toml, .sh or .py file"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_OVERRIDE = re.compile(r"(?P<mark>\+{0,2}|~)(?P<key>[A-Za-z_][\w.@/:-]*)=(?P<value>.*)", re.DOTALL)
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
_OTHER_FILES = re.compile(r"[^=\s]+\.(ya?ml|json|toml|sh)")
_NAMES_FILES = ("config", "config_name", "config_file", "config_path", "custom_config_path")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A key and its value.

    Attributes:
        shown: the key as the file writes it.
        value: a text, a number, true, false, None or a list.
    """

    shown: str
    value: Any

    @property
    def open(self) -> bool:
        """Whether the value comes from outside, from a variable that nothing given sets."""
        values = self.value if isinstance(self.value, (list, tuple)) else [self.value]
        return any(isinstance(x, str) and ("$" in x or "`" in x) for x in values)

    @property
    def text(self) -> str:
        """The value as a table of keys spells it."""
        return spelled(self.value)

    @property
    def shown_value(self) -> str:
        """The value for people."""
        return compact(self.value) if isinstance(self.value, float) else self.text

    @property
    def number(self) -> float | None:
        """The value as a number, None if it is none."""
        return number(self.value)


@dataclasses.dataclass
class Settings:
    """All settings, the command lines they stand in, and which other files those name.

    ``from_caller`` is whether a script hands on what it is called with.
    """

    values: dict[str, Setting] = dataclasses.field(default_factory=dict)
    commands: str = ""
    named_files: list[str] = dataclasses.field(default_factory=list)
    from_caller: bool = False

    def add(self, key: str, shown: str, value: Any) -> None:
        """Sets one; a later one counts."""
        self.values.pop(key, None)
        self.values[key] = Setting(shown, value)
        if len(self.values) > _MOST_SETTINGS:
            raise ValueError(f"more than {_MOST_SETTINGS:,} settings: no trainer has as many")


def spelled(value: Any) -> str:
    """A value as a table of keys spells it: ``true``, ``none``, ``0.5``."""
    text = str(value).strip().lower()
    return "none" if text in ("null", "~") else text


def number(value: Any) -> float | None:
    """A value as a number: YAML reads ``1e-3`` as a text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def read_settings(sources: Sequence[Source], overrides: Iterable[str]) -> Settings:
    """The settings of files in their order, a later one on top of an earlier one; then overrides.

    Raises:
        ImportError: YAML without PyYAML.
        OSError: a file that cannot be opened.
        ValueError: a file that is none of the kinds, broken, or too large; it is named.
    """
    settings = Settings()
    for source in sources:
        if isinstance(source, Mapping):
            _flatten(settings, source, "", 0)
            continue
        path = pathlib.Path(source)
        try:
            _read_file(settings, path)
        except (ValueError, ImportError) as error:
            raise type(error)(f"{path}: {error}") from None
        except OSError as error:
            raise OSError(f"{path}: cannot be read: {error.strerror or error}") from None
    for override in overrides:
        if not _override(settings, override):
            raise ValueError(f"{override!r} is no override such as algorithm.kl_ctrl.kl_coef=0.01")
    _resolve(settings)
    given = {x.name for x in map(pathlib.Path, (x for x in sources if not isinstance(x, Mapping)))}
    stems = given | {pathlib.PurePath(name).stem for name in given}
    settings.named_files = [
        name
        for name in dict.fromkeys(settings.named_files)
        if not {pathlib.PurePath(name).name, pathlib.PurePath(name).stem} & stems
    ]
    return settings


def _read_file(settings: Settings, path: pathlib.Path) -> None:
    kind = path.suffix.lower()
    if kind in _PICKLES:
        raise ValueError(
            "a pickle can run anything when it is loaded, so it is not: save "
            "training_args.to_json_string() and give that"
        )
    if path.is_dir():
        raise ValueError("this is a folder: give the files in it")
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES // 1000} kB: no trainer's configuration is that")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(
            "not a text in UTF-8: give a .yaml, .json, .toml, .sh or .py file"
        ) from None
    if "\0" in text:
        raise ValueError(f"not a text: {_GIVE}")
    if not text.strip():
        raise ValueError("the file is empty")
    if kind in _SHELL or (text.startswith("#!") and kind != ".py"):
        _read_script(settings, text)
        return
    if kind == ".py":
        name, data = config_call(text)
        settings.commands += f"\nclass {name}"
        _flatten(settings, data, "", 0)
        return
    data = _data(text, kind)
    if not isinstance(data, Mapping):
        raise ValueError(f"holds {_called(data)} and no keys: give a trainer's configuration")
    defaults = data.get("defaults")
    if isinstance(defaults, (str, list)):
        settings.named_files += _defaults(defaults)
        data = {key: value for key, value in data.items() if key != "defaults"}
    _flatten(settings, data, "", 0)


def _data(text: str, kind: str) -> Any:
    if kind in (".yaml", ".yml"):
        return yaml_data(text)
    if kind == ".toml":
        try:
            return tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ValueError(f"broken TOML: {error or 'nested too deep'}") from None
    if kind == ".json" or text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("nested too deep: mend the file") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"line {error.lineno}: broken JSON: {error.msg}") from None
    raise ValueError(f"of no kind that is read: {_GIVE}")


def _called(data: Any) -> str:
    return {list: "a list", str: "one text", type(None): "nothing"}.get(type(data), "one value")


def _defaults(defaults: str | list[Any]) -> list[str]:
    """The files that Hydra puts below this one."""
    names = []
    for entry in [defaults] if isinstance(defaults, str) else defaults:
        if isinstance(entry, Mapping):
            names += [f"{key}/{value}" for key, value in entry.items() if value is not None]
        elif str(entry) != "_self_":
            names.append(str(entry))
    return names


def _flatten(settings: Settings, data: Mapping[Any, Any], prefix: str, depth: int) -> None:
    if depth > _MOST_DEPTH:
        raise ValueError(f"nested deeper than {_MOST_DEPTH}: mend the file")
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            _flatten(settings, value, f"{key}.", depth + 1)
        else:
            settings.add(key, key, value)


def _override(settings: Settings, text: str) -> bool:
    """Takes ``key=value`` as Hydra does, or ``~key``; says whether it is one."""
    if text.startswith("~") and "=" not in text:
        settings.values.pop(text[1:], None)
        return True
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        return False
    key = match["key"]
    if match["mark"] == "~":
        settings.values.pop(key, None)
    else:
        settings.add(key, key, _plain(match["value"]))
    return True


def _plain(text: str) -> Any:
    """A value of a command line: a list in brackets, or a text without its quotes."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text.startswith("[") and text.endswith("]"):
        return [_plain(part) for part in text[1:-1].split(",") if part.strip()]
    return text


def _read_script(settings: Settings, text: str) -> None:
    commands = [(_flags(words), words) for words in commands_of(text)]
    # A script also stops old servers and looks for graphics cards: the trainer has most settings.
    commands = [(flags, words) for flags, words in commands if flags]
    if not commands:
        raise ValueError("no command line with --flag or key=value settings is in it")
    flags, words = max(reversed(commands), key=lambda command: len(command[0]))
    settings.commands += f"\n{' '.join(words)}"
    for key, shown, value in flags:
        if key.removeprefix("--") in _NAMES_FILES and isinstance(value, str):
            settings.named_files.append(value)
        settings.add(key.removeprefix("--"), shown, value)
    settings.named_files += [word for word in words[1:] if _OTHER_FILES.fullmatch(word)]
    settings.from_caller |= bool({"$@", "$*", "${@}", "${*}"} & set(words))


def _flags(words: Sequence[str]) -> list[tuple[str, str, Any]]:
    """Of a command its settings: key, key as written, value."""
    if "--" in words:
        words = words[len(words) - list(reversed(words)).index("--") :]
    found: list[tuple[str, str, Any]] = []
    values: list[str] = []
    flag = None

    def close() -> None:
        if flag is not None:
            value = values[0] if len(values) == 1 else list(values) if values else True
            found.append((f"--{flag[2:].replace('-', '_')}", flag, value))

    for word in words:
        if re.match(r"--[A-Za-z]", word):
            close()
            flag, equals, value = word.partition("=")
            values = [value] if equals else []
        elif match := _OVERRIDE.fullmatch(word):
            close()
            flag = None
            if match["mark"] != "~" and "/" not in match["key"]:
                found.append((match["key"], match["key"], _plain(match["value"])))
        elif flag is not None:
            values.append(word)
    close()
    return found


def _resolve(settings: Settings) -> None:
    """Puts ``${other.key}`` in place, where it is the whole value."""
    for key, setting in list(settings.values.items()):
        current = setting
        for _ in range(10):
            match = _REFERENCE.fullmatch(current.value) if isinstance(current.value, str) else None
            other = settings.values.get(match[1]) if match else None
            if other is None:
                break
            current = other
        if current is not setting and not current.open:
            settings.values[key] = Setting(setting.shown, current.value)
