"""What a trainer does, by a preset's name or by its configuration files."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from typing import Any

from kltarget import recipes
from kltarget._core.checks import ArgumentError
from kltarget.cli._arguments import options_of
from kltarget.cli._output import InputError, input_errors
from kltarget.cli._standard_input import with_configuration
from kltarget.recipes import ConfigReading, Preset, Recipe

_KINDS = (".yaml", ".yml", ".json", ".toml", ".sh", ".py", ".bash", ".slurm", ".sbatch")
_FILES = "FILE"


@dataclasses.dataclass(frozen=True)
class Side:
    """A recipe, where it comes from, and its configuration if it was read from one."""

    preset: Preset
    recipe: Recipe
    config: ConfigReading | None = None

    @property
    def title(self) -> str:
        """The preset's name, or the file's."""
        return self.config.files[-1] if self.config else self.preset.title


def add_config(command: Any) -> None:
    """Adds ``--config``."""
    options_of(command)(
        f"--config {_FILES}",
        "a trainer's configuration (YAML, JSON, TOML, a shell script with its command line, or a "
        "Python script with a GRPOConfig; - for standard input), "
        "a later file on top of an earlier one, then key=value on top of all",
        nargs="+",
        default=(),
    )


def say_what_is_not_given(*sides: Side) -> None:
    """A line on standard error for each value that no file says, where no page lists them."""
    for side in sides:
        for text in side.config.not_given if side.config else ():
            print(f"kltarget: note: {text}", file=sys.stderr)


def side_of_config(entries: list[str], trainer: str | None, beta: float | None) -> Side:
    """The recipe of files and of ``key=value``."""
    overrides = [x for x in entries if "=" in x and not pathlib.Path(x).exists()]
    files = [x for x in entries if x not in overrides]
    if not files:
        raise InputError("--config has no file, only key=value: give the trainer's configuration")
    with with_configuration(files) as paths, input_errors():
        try:
            config = recipes.from_config(paths, trainer=trainer, overrides=overrides)
        except ArgumentError as error:
            raise InputError(error.with_option("--trainer")) from None
    names = tuple("standard input" if file == "-" else file for file in files)
    config = dataclasses.replace(config, files=names)
    used = config.recipe if beta is None else dataclasses.replace(config.recipe, beta=beta)
    return Side(config.preset, used, config)


def side_of(name: str, beta: float | None) -> Side:
    """The recipe of a preset's name, or of a configuration file."""
    if name == "-" or pathlib.Path(name).is_file() or name.lower().endswith(_KINDS):
        return side_of_config([name], None, beta)
    with input_errors():
        return Side(recipes.preset(name), recipes.recipe(name, beta=beta))


def sides(arguments: argparse.Namespace) -> list[Side]:
    """What ``NAME``, ``--config`` and ``--compare`` say, in this order."""
    found = []
    if arguments.config:
        trainer = arguments.trainer or arguments.name
        found.append(side_of_config(arguments.config, trainer, arguments.beta))
    elif arguments.name is not None:
        found.append(side_of(arguments.name, arguments.beta))
    return found + [side_of(name, arguments.beta) for name in arguments.compare]
