"""Options that say what a trainer does, and what files of one's own call their columns."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from typing import Any

from kltarget.cli._arguments import options_of, real, whole
from kltarget.cli._config_options import add_config, say_what_is_not_given, side_of_config
from kltarget.cli._output import InputError
from kltarget.recipes import Recipe, recipe

_FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}
_WHOLE = ("ddof", "group_size", "reference_every", "teacher_top_k", "updates_per_batch")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trainer``, ``--config`` and ``--recipe``."""
    add = options_of(parser)
    add("--trainer NAME", "preset, such as trl-grpo==1.9.2 (see kltarget recipe)")
    add_config(parser)
    add(
        "--recipe place=…,…",
        "what the trainer does, or where it differs from the preset: "
        "place=loss,estimator=k3,baseline=mean,normalize=group-std",
        _recipe_fields,
    )


def recipe_of_options(
    arguments: argparse.Namespace, beta: float | None = None
) -> tuple[Recipe, float | None, str | None]:
    """What the trainer does, by name, by fields or both; its β if it was given, and its name."""
    fields, name = dict(arguments.recipe or {}), arguments.trainer
    if name is None and not fields and not arguments.config:
        raise InputError(
            "say what the trainer does: --trainer trl-grpo==1.9.2, --config or --recipe"
        )
    own = fields.pop("beta", None)
    beta = own if beta is None else beta
    changed = ", ".join(f"{field}={value}" for field, value in fields.items())
    if arguments.config:
        side = side_of_config(arguments.config, name, beta)
        say_what_is_not_given(side)
        name = f"{side.preset.name} of {side.title}"
        used = dataclasses.replace(side.recipe, **fields)
        return used, beta, f"{name} with {changed}" if changed else name
    if name is None:
        return Recipe(**fields), beta, None
    used = recipe(name, beta=beta, **fields)
    return used, beta, f"{name} with {changed}" if changed else name


def _recipe_fields(text: str) -> dict[str, Any]:
    """Fields of a recipe, ``place=loss,estimator=k3``."""
    fields: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (x.strip() for x in part.partition("="))
        if not equals or name not in _FIELDS:
            close = difflib.get_close_matches(name, set(_FIELDS) - {name}, n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise argparse.ArgumentTypeError(
                f"{part!r} is none of the fields {', '.join(_FIELDS)}, as name=value{meant}"
            )
        default = _FIELDS[name].default
        if value in ("none", "None") and default is None:
            fields[name] = None
        elif name in _WHOLE:
            fields[name] = whole(value) if value != "0" else 0
        elif name == "reward_weights":
            fields[name] = tuple(real(x) for x in value.split(":"))
        elif isinstance(default, str) or name == "kl_length":
            fields[name] = value
        else:
            fields[name] = real(value)
    try:
        Recipe(**fields)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return fields


def columns_of(text: str) -> dict[str, str | list[str]]:
    pairs = [part.partition("=") for part in text.split(",")]
    for name, equals, value in pairs:
        if not (name and equals and value):
            what = f"{name + equals + value!r} is not of the form name=column"
            raise argparse.ArgumentTypeError(what)
    columns: dict[str, str | list[str]] = {}
    for name, _, value in pairs:
        role, column = name.strip(), value.strip()
        before = columns.get(role, [])
        # Rewards named one after the other are added up.
        several = [*([before] if isinstance(before, str) else before), column]
        columns[role] = several if len(several) > 1 else column
        if len(several) > 1 and role != "reward":
            raise argparse.ArgumentTypeError(f"{role!r} is given twice; only rewards are added up")
    return columns
