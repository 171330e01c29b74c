"""The sub-command ``kltarget tasks``."""

from __future__ import annotations

import argparse
from typing import Any

from kltarget import tasks
from kltarget._core.page import Page, Paragraph, Table
from kltarget.cli._output import say
from kltarget.tasks._kinds import KINDS


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
    for kind, (title, size) in _ON_SPACES.items():
        found = map(KINDS[kind].load, KINDS[kind].names())
        own = [(task.name, size(task), task.description) for task in found]
        parts.append([Paragraph(title), Table([("task", "size", "description"), *own], "lrl")])
    say(Page(*parts))
    return 0


def _size_of_chain(task: tasks.ChainTask) -> str:
    return "real vectors" if task.points is None else f"{len(task.points)} states"


_ON_SPACES: dict[str, tuple[str, Any]] = {
    "text": (
        "Texts too many to list, for solve, sweep, explore and verify:",
        lambda task: f"{task.num_texts:.1e} texts",
    ),
    "chain": ("Chains of steps, for verify:", _size_of_chain),
    "mdp": (
        "Decision processes, states × actions, for verify:",
        lambda task: f"{task.mdp.num_states} × {task.mdp.num_actions}",
    ),
    "game": (
        "Games, for verify:",
        lambda task: " × ".join(str(len(x)) for x in (task.states, *task.labels) if x),
    ),
}
