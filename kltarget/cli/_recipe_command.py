"""The sub-command ``kltarget recipe``.

``--json OUT`` writes an object, with ``--compare`` a list of two, of these keys:

- ``name``, ``trainer``, ``versions``, ``file``, ``checked``, ``read``, ``notes``: the preset that
  was asked for; ``caveat`` is not empty where its version was not read;
- ``keys``: for fields of the recipe, the key of the trainer's configuration;
- ``recipe``: every field of the recipe, the arguments of ``kltarget.recipes.Recipe``;
- ``objective``, ``advantage``, ``direction``, ``unused``, ``why``, ``level``, ``beta``,
  ``effective``, ``effective_beta``, ``effective_text``, ``critical``, ``critical_text``,
  ``family``, ``target``, ``caveats``: what it optimises. ``effective_beta`` is ``null`` where it
  depends on a standard deviation that was not given, ``critical`` where there is no critical β,
  ``unused`` where β is not 0;
- ``config``, where it was read from one: ``files``, ``trainer``, and what became of its keys,
  ``acting``, ``idle``, ``unknown``, ``not_given``, ``notes``;
- ``same_target``, with ``--same-target-as``: for each reference success rate the β, ``null`` where
  none gives that target.

``--loss`` writes ``loss``, ``recipe`` and the rest of the reading, ``remarks`` and ``unread``.
``--installed`` is that of ``kltarget.cli._installed_defaults``, and of a trainer that no recipe
describes, such as ``trl-dpo``, that of ``kltarget.cli._explained``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import pathlib
from typing import Any

from kltarget import recipes
from kltarget._core.page import Bullets, Heading, Item, Lines, Page, Paragraph, Table
from kltarget._core.records import json_text
from kltarget._core.words import compact, sentence
from kltarget.cli._arguments import finite, options_of
from kltarget.cli._config_options import Side, add_config, say_what_is_not_given, side_of, sides
from kltarget.cli._explained import explain
from kltarget.cli._installed_defaults import compare_with_installed
from kltarget.cli._output import JSON, InputError, check_outputs, input_errors, say, write
from kltarget.cli._reading_page import labelled, shown
from kltarget.recipes import Preset, Reading, Recipe

_LABELS = ("trainer", "objective", "KL", "level", "effective β", "critical β", "target")
_DEFAULTS = dataclasses.asdict(Recipe())
# Fields that a page names even at their defaults.
_ALWAYS = ("place", "estimator", "level", "baseline", "normalize")
_coefficient = functools.partial(finite, what="a finite number, 0 or more", zero=True)


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    command = commands.add_parser(
        "recipe",
        help="what a version of a public trainer optimises",
        description="Print what a version of a public trainer optimises: its objective, the "
        "direction of its KL, the β its target really has, and where each number was read. "
        "Without NAME, list the trainers and versions. With --config, read what a run's own "
        "configuration or command line asks for, and which of its keys do nothing.",
        epilog="examples: kltarget recipe; kltarget recipe trl-grpo --beta 0.04; kltarget recipe "
        "trl-grpo==1.9.2 --compare trl-grpo==1.10 --beta 0.04; kltarget recipe trl-grpo "
        "--installed; kltarget recipe --config run.sh algorithm.kl_ctrl.kl_coef=0.01 --compare "
        "other.yaml. Exit codes: 0 fine, 1 defaults that differ, 2 bad input.",
    )
    add = options_of(command)
    command.add_argument(
        "name", nargs="?", metavar="NAME", help="a trainer such as trl-grpo or trl-grpo==1.9.2"
    )
    add_config(command)
    add("--trainer NAME", "whose --config it is (default: told by its keys)")
    add("--beta β", "coefficient (default: the trainer's)", _coefficient)
    add(
        "--reward-std σ",
        "standard deviation of the reward within a group, for trainers that divide by it",
        finite,
    )
    add(
        "--compare OTHER",
        "a second trainer or configuration, side by side; without NAME two of them",
        nargs="+",
        default=(),
    )
    add(
        "--same-target-as OTHER",
        "the β under which this trainer aims at what OTHER does, a trainer or a configuration",
    )
    add(
        "--installed",
        "compare the preset with the defaults of the package that is installed, which is read and "
        "not run; exit code 1 if they differ",
    )
    add(
        "--loss MODULE:FUNCTION",
        "read a loss function of your own instead, loss(logp, ref_logp, old_logp, advantages, "
        "mask) in torch or JAX, which is imported and called",
    )
    add("--list", "list the trainers and versions")
    add("--json OUT", JSON, pathlib.Path)
    command.set_defaults(run=_recipe)


def _recipe(arguments: argparse.Namespace) -> int:
    if arguments.loss is not None:
        from kltarget.cli._loss_of_ones_own import read_loss

        return read_loss(arguments)
    one = bool(arguments.config) or arguments.name is not None
    if arguments.list or not (one or arguments.compare):
        return _list(arguments)
    if arguments.compare and one + len(arguments.compare) != 2:
        many = one + len(arguments.compare)
        raise InputError(f"--compare puts two trainers side by side, not {many}")
    if arguments.trainer is not None and not arguments.config:
        raise InputError("--trainer says whose --config it is: give one, or NAME alone")
    if arguments.compare and arguments.same_target_as is not None:
        raise InputError("--compare and --same-target-as are two questions: ask one")
    check_outputs([arguments.json], arguments.config)
    if arguments.installed:
        if arguments.config or arguments.same_target_as is not None:
            raise InputError("--installed is of a preset: leave --config and --same-target-as out")
        return compare_with_installed(arguments)
    alone = not (arguments.compare or arguments.config or arguments.same_target_as)
    if alone and arguments.name is not None:
        with input_errors():
            told = recipes.explanation(arguments.name)
        if told is not None:
            return explain(told, arguments)
    found = sides(arguments)
    readings = [recipes.read(side.recipe, arguments.reward_std) for side in found]
    rows = list(zip(found, readings, strict=True))
    content: Any = [_content(*row) for row in rows] if arguments.compare else _content(*rows[0])
    page = _beside(*rows) if arguments.compare else _page(*rows[0])
    if arguments.same_target_as is not None:
        from kltarget.cli._same_target import same_target

        # The β of OTHER is its own.
        other = side_of(arguments.same_target_as, None)
        betas, page = same_target(found[0], other)
        say_what_is_not_given(found[0], other)
        content["same_target"] = {x: None if math.isnan(b) else b for x, b in betas.items()}
    if arguments.compare:
        say_what_is_not_given(*found)
    say(page, unless=[arguments.json])
    say(write((arguments.json, lambda: json_text(content, indent=1))))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    if arguments.name is not None or arguments.compare:
        raise InputError("--list lists all trainers: leave NAME and --compare out")
    if arguments.config or arguments.trainer or arguments.same_target_as:
        raise InputError("--list lists all trainers: give a NAME or a --config, and no --list")
    for name in ("json", "beta", "reward_std", "installed"):
        given = getattr(arguments, name)
        if given is not None and given is not False:
            what = {"json": "writes", "installed": "compares"}.get(name, "says something of")
            raise InputError(f"--{name.replace('_', '-')} {what} one trainer: give a NAME")
    others = ", ".join(entry.name for entry in recipes.explanations())
    say([*recipes.table().splitlines(), ""])
    say(Page([Paragraph(f"No recipe, but what each does instead, have {others}.")]))
    return 0


def _content(side: Side, reading: Reading) -> dict[str, Any]:
    preset = side.preset
    config = {}
    if side.config is not None:
        names = ("files", "trainer", "acting", "idle", "unknown", "not_given", "notes")
        whole = dataclasses.asdict(dataclasses.replace(side.config, preset=None))
        config = {"config": {name: whole[name] for name in names}}
    return {
        "name": preset.name,
        "trainer": preset.trainer,
        "versions": preset.versions,
        "file": preset.file,
        "checked": preset.checked.isoformat(),
        "read": list(preset.read),
        "caveat": preset.caveat,
        "notes": list(preset.notes),
        "keys": dict(preset.keys),
        **dataclasses.asdict(reading),
        **config,
    }


def _page(side: Side, reading: Reading) -> Page:
    preset = side.preset
    versions = "" if preset.versions == "*" else f", versions {preset.versions}"
    title = Heading(f"{preset.name}: {preset.trainer}{versions}", 1)
    releases = f" of {', '.join(preset.read)}" if preset.read else ""
    caveat = [sentence(preset.caveat)] if preset.caveat else []
    mind = [Item("- ", text) for text in (*caveat, *reading.caveats, *preset.notes)]
    config = side.config.page().parts if side.config else []
    return Page(
        *config,
        [title, Lines([f"read in {preset.file}{releases}, checked {preset.checked}"])],
        [labelled(reading)],
        [Heading("Mind"), Bullets(mind)],
        [_fields(preset, reading.recipe)],
    )


def _fields(preset: Preset, recipe: Recipe) -> Table:
    """The fields that matter, their values, and the keys of the trainer that set them."""
    rows = [("field", "value", "set by")]
    for name, default in _DEFAULTS.items():
        value = getattr(recipe, name)
        if name in preset.keys or name in _ALWAYS or value != default:
            rows.append((name, shown(value), preset.keys.get(name, "–")))
    return Table(rows, "lrl")


def _beside(*rows: tuple[Side, Reading]) -> Page:
    """Two columns; a line that differs is marked."""
    (older, first), (newer, second) = rows
    used = [first.recipe, second.recipe]
    table = [("", older.title, newer.title)]
    columns = (_column(older.preset, first), _column(newer.preset, second))
    said = zip(_LABELS, *columns, strict=True)
    fields = [
        (name, *(shown(getattr(recipe, name)) for recipe in used))
        for name, default in _DEFAULTS.items()
        if any(getattr(recipe, name) != default for recipe in used)
    ]
    for label, left, right in (*said, ("", "", ""), *fields):
        mark = "≠" if left != right else "\u00a0"
        table.append((f"{mark}\u00a0{label}" if label else "", left, right))
    differ = any(label.startswith("≠") for label, _, _ in table)
    same = older.preset.trainer == newer.preset.trainer and first.beta == second.beta
    same = same and older.config is newer.config is None
    summary = recipes.difference(first, second, same_keys=same)
    caveats = filter(None, dict.fromkeys([older.preset.caveat, newer.preset.caveat]))
    return Page(
        [Table(table, "lll", gap=2)],
        [Lines(["≠ marks what differs."])] if differ else [],
        [Paragraph(f"{sentence(summary)}.")],
        [Paragraph(sentence(text)) for text in caveats],
    )


def _column(preset: Preset, reading: Reading) -> list[str]:
    """What a column of ``--compare`` says beside ``_LABELS``."""
    effective = reading.effective or "—"
    if reading.effective_beta is not None:
        effective += f" = {compact(reading.effective_beta)}"
    critical = "—"
    if reading.critical is not None:
        critical = ", ".join(f"{beta:.3f}" for beta in reading.critical.values())
        critical += f" for a reference success rate of {', '.join(reading.critical)}"
    texts = [preset.trainer, reading.objective, reading.kl, reading.level]
    return [*texts, effective, critical, reading.target]
