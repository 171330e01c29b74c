"""What the sub-commands on one problem share: the table or task, and the divergence."""

from __future__ import annotations

import argparse

from kltarget import tasks
from kltarget.cli._arguments import InputError, input_errors, real
from kltarget.divergences._names import EXAMPLES, named
from kltarget.tasks import Task, as_task


def add_problem(command: argparse.ArgumentParser) -> None:
    """Adds the argument that names a table or a task."""
    command.add_argument(
        "problem",
        metavar="TABLE_OR_TASK",
        help="a .csv, .tsv, .json, .jsonl or .parquet file, a row per outcome, or a task's name",
    )


def add_columns(command: argparse.ArgumentParser) -> None:
    """Adds the options that say how a table is read."""
    columns = command.add_argument_group("columns of a table (default: found by their names)")
    columns.add_argument("--outcome", metavar="COLUMN", help="the outcomes' names")
    columns.add_argument("--reward", metavar="COLUMN", help="their rewards")
    reference = columns.add_mutually_exclusive_group()
    add = reference.add_argument
    add("--log-ref", metavar="COLUMN", help="reference log-probabilities (natural)")
    add("--prob", metavar="COLUMN", help="or reference probabilities")
    add("--count", metavar="COLUMN", help="or how often the reference gave each")
    columns.add_argument("--modes", metavar="COLUMN", help="equal entries are one mode")
    columns.add_argument(
        "--unseen-reward",
        type=real,
        metavar="R",
        help="keep reference mass that the rows leave out as one more outcome with this reward",
    )


def add_divergence(command: argparse.ArgumentParser) -> None:
    """Adds the option that names the regulariser."""
    command.add_argument(
        "--divergence",
        default="reverse-kl",
        type=checked_divergence,
        metavar="NAME",
        help=f"{', '.join(EXAMPLES)} (default: reverse-kl)",
    )


def checked_divergence(text: str) -> str:
    """The name of a divergence, if there is one of that name."""
    try:
        named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def load_problem(arguments: argparse.Namespace) -> tuple[Task, tuple[str, ...]]:
    """The problem and what there is to say about reading it."""
    columns = {
        role: getattr(arguments, role)
        for role in ("outcome", "reward", "log_ref", "prob", "count", "modes", "unseen_reward")
    }
    given = {role: column for role, column in columns.items() if column is not None}
    if given and arguments.problem in tasks.names():
        role = next(iter(given)).replace("_", "-")
        raise InputError(f"--{role} is for tables, but {arguments.problem!r} is a task")
    with input_errors():
        task = as_task(arguments.problem, columns=given)
    return task, getattr(task, "notes", ())
