"""What the sub-commands on one problem share: the table or task, and the divergence."""

from __future__ import annotations

import argparse

from kltarget import tasks
from kltarget.cli._arguments import chosen, options_of, real
from kltarget.cli._output import InputError, input_errors
from kltarget.divergences.names import EXAMPLES, named
from kltarget.tasks import Task, as_task


def add_problem(command: argparse.ArgumentParser) -> None:
    """Adds the argument that names a table or a task."""
    command.add_argument(
        "problem",
        metavar="TABLE_OR_TASK",
        help="a .csv, .tsv, .json, .jsonl, .parquet or .arrow file, a row per outcome, - for "
        "standard input, or a task's name",
    )


def add_columns(command: argparse.ArgumentParser) -> None:
    """Adds the options that say how a table is read."""
    columns = command.add_argument_group("columns of a table (default: found by their names)")
    add = options_of(columns)
    add("--outcome COLUMN", "the outcomes' names")
    add("--reward COLUMN", "their rewards")
    add_one = options_of(columns.add_mutually_exclusive_group())
    add_one("--log-ref COLUMN", "reference log-probabilities (natural)")
    add_one("--prob COLUMN", "or reference probabilities")
    add_one("--count COLUMN", "or how often the reference gave each")
    add("--modes COLUMN", "equal entries are one mode")
    add(
        "--unseen-reward R",
        "keep reference mass that the rows leave out as one more outcome with this reward",
        real,
    )


def add_divergence(command: argparse.ArgumentParser) -> None:
    """Adds the option that names the regulariser."""
    known = f"{', '.join(EXAMPLES)} (default: reverse-kl)"
    options_of(command)("--divergence NAME", known, checked_divergence, default="reverse-kl")


def checked_divergence(text: str) -> str:
    """The name of a divergence, if there is one of that name."""
    try:
        named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def load_problem(arguments: argparse.Namespace) -> tuple[Task, tuple[str, ...]]:
    """The problem and what there is to say about reading it."""
    roles = ("outcome", "reward", "log_ref", "prob", "count", "modes", "unseen_reward")
    columns = chosen(arguments, *roles)
    given = {role: column for role, column in columns.items() if column is not None}
    if given and arguments.problem in (*tasks.names(), *tasks.text_names()):
        role = next(iter(given)).replace("_", "-")
        raise InputError(f"--{role} is for tables, but {arguments.problem!r} is a task")
    if arguments.problem in tasks.text_names():
        from kltarget.targets.automata import over_modes

        texts = tasks.load_texts(arguments.problem)
        note = (
            f"{texts.num_texts:.3g} texts of {texts.length} tokens, as their modes: texts of "
            "equal reward keep their proportions"
        )
        return over_modes(texts), (note,)
    with input_errors():
        task = as_task(arguments.problem, columns=given)
    return task, getattr(task, "notes", ())
