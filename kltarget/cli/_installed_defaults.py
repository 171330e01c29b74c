"""``kltarget recipe NAME --installed``: a preset beside the defaults of the installed package.

``--json OUT`` writes an object of these keys: ``name``, ``versions``, ``read`` and ``caveat`` of
the preset; ``distribution``, and the ``version`` of it that is installed; ``defaults``, of each its
``setting``, the ``field`` of the recipe that it sets, ``read``, ``installed`` and whether they are
the ``same``.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from kltarget import recipes
from kltarget._core.page import Heading, Lines, Page, Paragraph, Table
from kltarget._core.records import json_text
from kltarget._core.words import counted, sentence
from kltarget.cli._output import InputError, input_errors, say, write
from kltarget.recipes import InstalledDefaults


def compare_with_installed(arguments: argparse.Namespace) -> int:
    """Prints the comparison; 1 if a default differs."""
    for name in ("compare", "beta", "reward_std"):
        if getattr(arguments, name) not in (None, ()):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"--installed compares defaults of one trainer: leave {option} out")
    with input_errors():
        found = recipes.installed(arguments.name)
    say(_page(found), unless=[arguments.json])
    say(write((arguments.json, lambda: json_text(_content(found), indent=1))))
    return 1 if found.differences else 0


def _content(found: InstalledDefaults) -> dict[str, Any]:
    return {
        "name": found.preset.name,
        "versions": found.preset.versions,
        "read": list(found.preset.read),
        "caveat": found.preset.caveat,
        "distribution": found.distribution,
        "version": found.version,
        "defaults": [{**dataclasses.asdict(x), "same": x.same} for x in found.defaults],
    }


def _page(found: InstalledDefaults) -> Page:
    preset = found.preset
    package = f"{found.distribution} {found.version}"
    then, now = f"read ({preset.read[-1]})", f"installed ({found.version})"
    table = [("\u00a0\u00a0setting", "sets", then, now)]
    for default in found.defaults:
        mark = "\u00a0" if default.same else "≠"
        texts = (_text(default.read), _text(default.installed))
        table.append((f"{mark}\u00a0{default.setting}", default.field or "–", *texts))
    return Page(
        [
            Heading(f"{preset.title}: {preset.trainer}, beside {package}", 1),
            Lines([f"in {' and '.join(preset.configuration)}"]),
        ],
        [Table(table, "llll", gap=2)],
        [Paragraph(_summary(found, package))],
        [Paragraph(f"{sentence(preset.caveat)}")] if preset.caveat else [],
    )


def _summary(found: InstalledDefaults, package: str) -> str:
    total, count = counted(len(found.defaults), "default"), len(found.differences)
    if not count:
        return f"All {total} are as they were read. What no default says was not compared."
    verb = "differs" if count == 1 else "differ"
    return (
        f"{count} of {total} {verb} from what was read: {found.preset.title} does not say what "
        f"{package} does."
    )


def _text(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)
