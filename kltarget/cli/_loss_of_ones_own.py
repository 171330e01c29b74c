"""``kltarget recipe --loss MODULE:FUNCTION``: a loss function of one's own, read.

``--json OUT`` writes an object of these keys: ``loss``, what was asked for; ``recipe`` and the
other keys of a reading; ``remarks`` and ``unread``, lists of lines.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from kltarget import recipes
from kltarget._core.page import Bullets, Heading, Item, Lines, Page, Table
from kltarget._core.records import json_text
from kltarget._core.words import sentence
from kltarget.cli._output import InputError, check_outputs, input_errors, say, write
from kltarget.cli._reading_page import labelled, shown
from kltarget.recipes import Recipe

_ALWAYS = ("place", "estimator", "level", "length", "clip")
_OTHERS = ("name", "config", "trainer", "compare", "same_target_as", "installed", "list", "beta")


def read_loss(arguments: argparse.Namespace) -> int:
    """Runs the sub-command with ``--loss``."""
    for name in _OTHERS:
        if getattr(arguments, name) not in (None, False, (), []):
            given = "NAME" if name == "name" else f"--{name.replace('_', '-')}"
            raise InputError(f"--loss reads one function: leave {given} out")
    check_outputs([arguments.json])
    loss = _load(arguments.loss)
    with input_errors(), _quiet_about(arguments.loss):
        found = recipes.divergence_of_loss(loss)
    reading = recipes.read(found.recipe, arguments.reward_std)
    defaults = dataclasses.asdict(Recipe())
    rows = [("field", "value")]
    for field, default in defaults.items():
        value = getattr(found.recipe, field)
        if field in _ALWAYS or value != default:
            rows.append((field, shown(value)))
    mind = [sentence(x) for x in found.remarks] + list(reading.caveats)
    page = Page(
        [Heading(f"{arguments.loss}: a loss function", 1), Lines(["read off its gradients"])],
        [labelled(reading)],
        [Heading("Mind"), Bullets([Item("- ", text) for text in mind])],
        [Heading("Not read"), Bullets([Item("- ", sentence(text)) for text in found.unread])],
        [Table(rows, "lr")],
    )

    def content() -> str:
        own: dict[str, Any] = dataclasses.asdict(reading)
        own["recipe"]["estimator"] = found.recipe.estimator_name
        own |= {"remarks": list(found.remarks), "unread": list(found.unread)}
        return json_text({"loss": arguments.loss, **own}, indent=1)

    say(page, unless=[arguments.json])
    say(write((arguments.json, content)))
    return 0


def _load(text: str) -> Any:
    """The function that ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION`` names."""
    module, colon, name = text.rpartition(":")
    if not colon or not module or not name:
        raise InputError(f"--loss takes MODULE:FUNCTION or FILE.py:FUNCTION, got {text!r}")
    if module.endswith(".py") and not pathlib.Path(module).is_file():
        raise InputError(f"--loss: there is no file {module!r}")
    try:
        if module.endswith(".py"):
            spec = importlib.util.spec_from_file_location(pathlib.Path(module).stem, module)
            assert spec is not None
            assert spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            with _importable(pathlib.Path(module).resolve().parent):
                spec.loader.exec_module(loaded)
        else:
            with _importable(pathlib.Path.cwd()):
                loaded = importlib.import_module(module)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"--loss: {module} cannot be imported: {what}") from None
    found: Any = loaded
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"--loss: {module} has no {name!r}")
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def _importable(folder: pathlib.Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, os.fspath(folder))
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def _quiet_about(text: str) -> Iterator[None]:
    """A loss that is no loss is bad input, of whatever type the error is."""
    try:
        yield
    except TypeError as error:
        raise InputError(f"--loss {text}: {error}") from None
