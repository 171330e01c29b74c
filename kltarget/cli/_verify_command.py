"""The sub-command ``kltarget verify``."""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import time
from typing import TYPE_CHECKING, Any

import jax

from kltarget import plot, tasks
from kltarget.cli._arguments import beta_list, names_of, options_of, whole
from kltarget.cli._output import InputError, Stopped, input_errors, say, write
from kltarget.tasks._kinds import KINDS

if TYPE_CHECKING:
    from kltarget.verification import Report

_POLICIES = ("tabular", "gru", "transformer")
# Spaces with more sequences than this take minutes per recipe on a small machine.
_MOST_SEQUENCES = 500_000


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    verify = commands.add_parser(
        "verify",
        help="fine-tune small models and compare them with their computed targets",
        description="Fine-tune small autoregressive models by gradients, for every policy, "
        "recipe, β, reward scale and seed, and compare each with the targets computed in closed "
        "form. Without a task it is words-3: a GRU trained on real words of three letters.",
        epilog="Writes report.json, report.csv and verify.png. Exit codes: 0 all checks passed, "
        "1 a check failed, 2 bad input, 130 interrupted (the finished runs are written).",
    )
    add = options_of(verify)
    verify.add_argument("task", nargs="?", metavar="TASK", help="a task (see kltarget tasks)")
    add("--tasks NAMES", "several tasks, a,b,c or all, each into a folder of its own", _task_list)
    add("--full", "all recipes, six β, three reward scales, three seeds, and a Transformer")
    policies = functools.partial(names_of, "policy", _POLICIES)
    add("--policies NAMES", "of tabular, gru and transformer (default: tabular,gru)", policies)
    add("--beta β", "as for solve", beta_list)
    add("--seeds N", "runs of each setting", whole)
    folder = "kltarget-verify"
    add("--out FOLDER", f"where to write (default: {folder})", pathlib.Path, default=folder)
    verify.set_defaults(run=_verify)


def _task_list(text: str) -> tuple[str, ...]:
    return tuple(tasks.names()) if text == "all" else names_of("task", tasks.names(), text)


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.task is not None and arguments.tasks is not None:
        raise InputError("give a TASK or --tasks, not both")
    known = (*tasks.names(), *(name for kind in KINDS.values() for name in kind.names()))
    if arguments.task is not None and arguments.task not in known:
        raise InputError(f"there is no task {arguments.task!r}: the tasks are {', '.join(known)}")
    chosen = arguments.tasks or [arguments.task or "words-3"]
    folders = [arguments.out / name if arguments.tasks else arguments.out for name in chosen]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from None
        if not os.access(folder, os.W_OK):
            raise InputError(f"{folder}: cannot be written to")
    failed, several = 0, arguments.tasks is not None
    for name, folder in zip(chosen, folders, strict=True):
        failed |= _one(name, folder, arguments, several)
    return failed


def _one(name: str, folder: pathlib.Path, arguments: argparse.Namespace, skip: bool) -> int:
    from kltarget import verification

    verifier = verification.verifier_of(name)
    if verifier is not None:
        return _on_its_space(verifier, name, folder, arguments)
    task = tasks.load(name)
    if skip and not arguments.full and task.num_outcomes > _MOST_SEQUENCES:
        say([f"{name}: left out, {task.num_outcomes:,} sequences: add --full", ""])
        return 0
    began = time.monotonic()
    say([f"Computing the targets of {name}, fine-tuning copies…"])
    options: dict[str, Any] = {}
    if arguments.full:
        options = {
            "policies": _POLICIES,
            "recipes": verification.ALL_RECIPES,
            "beta": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
            "reward_scale": (0.5, 1.0, 2.0),
            "num_seeds": 3,
        }
    given = {"policies": arguments.policies, "beta": arguments.beta, "num_seeds": arguments.seeds}
    options |= {option: value for option, value in given.items() if value is not None}
    contents = [folder / file for file in ("report.json", "report.csv", "verify.png")]
    try:
        with input_errors(name):
            report = verification.verify(task, key=jax.random.key(0), progress=True, **options)
    except verification.Interrupted as interrupt:
        if interrupt.report is None:
            raise Stopped from None
        write(*_outputs(interrupt.report, contents))
        raise Stopped(f"the runs that were finished are in {folder}") from None
    try:
        say(["", *str(report).splitlines(), ""])
        write(*_outputs(report, contents))
    except KeyboardInterrupt:
        # All but the figure takes no time.
        write(*_outputs(report, contents)[:2])
        raise Stopped(f"the report is in {folder}") from None
    took = f"({time.monotonic() - began:.0f} s)"
    say([f"wrote {', '.join(map(str, contents))} {took}", *([""] if skip else [])])
    return int(not report.passed)


def _on_its_space(
    verifier: Any, name: str, folder: pathlib.Path, arguments: argparse.Namespace
) -> int:
    """Verifies a problem that is not a list of outcomes."""
    for option, given in (("--full", arguments.full), ("--policies", arguments.policies)):
        if given:
            raise InputError(f"{option} is for lists of outcomes, but {name!r} is none")
    began = time.monotonic()
    say([f"Computing the target of {name}, training copies…"])
    given = {"beta": arguments.beta, "num_seeds": arguments.seeds}
    options = {option: value for option, value in given.items() if value is not None}
    with input_errors(name):
        report = verifier(name, key=jax.random.key(0), progress=True, **options)
    paths = [folder / file for file in ("report.json", "report.csv", "verify.png")]
    say(["", *str(report).splitlines(), ""])
    makers = (report.to_json, report.to_csv, lambda: plot.space_report(report).figure)
    write(*zip(paths, makers, strict=True))
    say([f"wrote {', '.join(map(str, paths))} ({time.monotonic() - began:.0f} s)"])
    return int(not report.passed)


def _outputs(report: Report, paths: list[pathlib.Path]) -> list[tuple[pathlib.Path, Any]]:
    makers = (report.to_json, report.to_csv, lambda: plot.verification(report))
    return list(zip(paths, makers, strict=True))
