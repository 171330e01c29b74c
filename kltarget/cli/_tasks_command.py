"""The sub-command ``kltarget tasks``."""

from __future__ import annotations

import argparse
from typing import Any

from kltarget import tasks
from kltarget._core.page import Page, Paragraph, Table
from kltarget.cli._output import say


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    listing = commands.add_parser(
        "tasks", help="list the shipped problems", description="List the shipped problems."
    )
    listing.set_defaults(run=_tasks)


def _tasks(arguments: argparse.Namespace) -> int:
    rows = [
        (task.name, f"{task.num_outcomes:,}", f"{task.num_right:,}", task.description)
        for task in tasks.listing()
    ]
    head = ("task", "outcomes", "right", "description")
    parts: list[list[Any]] = [
        [Paragraph("Lists of outcomes, for every command:"), Table([head, *rows], "lrrl")]
    ]
    for title, names, load, size in _ON_SPACES:
        own = [(task.name, size(task), task.description) for task in map(load, names())]
        parts.append([Paragraph(title), Table([("task", "size", "description"), *own], "lrl")])
    say(Page(*parts))
    return 0


def _size_of_chain(task: tasks.ChainTask) -> str:
    return "real vectors" if task.points is None else f"{len(task.points)} states"


_ON_SPACES: tuple[tuple[str, Any, Any, Any], ...] = (
    (
        "Texts too many to list, for solve, sweep, explore and verify:",
        tasks.text_names,
        tasks.load_texts,
        lambda task: f"{task.num_texts:.1e} texts",
    ),
    ("Chains of steps, for verify:", tasks.chain_names, tasks.load_chain, _size_of_chain),
    (
        "Decision processes, states × actions, for verify:",
        tasks.mdp_names,
        tasks.load_mdp,
        lambda task: f"{task.mdp.num_states} × {task.mdp.num_actions}",
    ),
    (
        "Games, for verify:",
        tasks.game_names,
        tasks.load_game,
        lambda task: " × ".join(str(len(x)) for x in (task.states, *task.labels) if x),
    ),
)
