"""The sub-command ``kltarget verify``."""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from typing import Any

import jax

from kltarget import plot, tasks
from kltarget.cli._arguments import (
    InputError,
    beta_list,
    option,
    say,
    whole,
    without_device_warnings,
    write,
)

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
        "1 a check failed, 2 bad input.",
        allow_abbrev=False,
    )
    verify.add_argument("task", nargs="?", metavar="TASK", help="a task (see kltarget tasks)")
    verify.add_argument(
        "--tasks",
        type=option(_task_list),
        metavar="NAMES",
        help="several tasks, a,b,c or all, each into a folder of its own",
    )
    verify.add_argument(
        "--full",
        action="store_true",
        help="all recipes, six β, three reward scales, three seeds, and a Transformer",
    )
    verify.add_argument(
        "--policies",
        type=option(_policy_list),
        metavar="NAMES",
        help="of tabular, gru and transformer (default: tabular,gru)",
    )
    verify.add_argument("--beta", type=option(beta_list), metavar="β", help="as for solve")
    verify.add_argument("--seeds", type=option(whole), metavar="N", help="runs of each setting")
    verify.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("kltarget-verify"),
        metavar="FOLDER",
        help="where to write (default: kltarget-verify)",
    )
    verify.set_defaults(run=_verify)


def _policy_list(text: str) -> tuple[str, ...]:
    known = ("tabular", "gru", "transformer")
    chosen = tuple(text.split(","))
    for name in chosen:
        if name not in known:
            raise ValueError(f"there is no policy {name!r}: choose of {', '.join(known)}")
    return chosen


def _task_list(text: str) -> list[str]:
    chosen = list(tasks.names()) if text == "all" else text.split(",")
    for name in chosen:
        if name not in tasks.names():
            raise ValueError(f"there is no task {name!r}: choose of {', '.join(tasks.names())}")
    return chosen


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.task is not None and arguments.tasks is not None:
        raise InputError("give a TASK or --tasks, not both")
    if arguments.task is not None and arguments.task not in tasks.names():
        raise InputError(
            f"there is no task {arguments.task!r}: the tasks are {', '.join(tasks.names())}"
        )
    chosen: list[str] = arguments.tasks or [arguments.task or "words-3"]
    folders = [arguments.out / name if arguments.tasks else arguments.out for name in chosen]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made: {error.strerror or error}") from None
        if not os.access(folder, os.W_OK):
            raise InputError(f"{folder}: cannot be written to")
    failed = 0
    for name, folder in zip(chosen, folders, strict=True):
        with without_device_warnings():
            failed |= _one(name, folder, arguments, skip=arguments.tasks is not None)
    return failed


def _one(name: str, folder: pathlib.Path, arguments: argparse.Namespace, skip: bool) -> int:
    from kltarget import verification

    task = tasks.load(name)
    if skip and not arguments.full and task.num_outcomes > _MOST_SEQUENCES:
        say([f"{name}: left out, {task.num_outcomes:,} sequences: add --full", ""])
        return 0
    began = time.monotonic()
    say([f"Computing the targets of {name}, fine-tuning copies…"])
    options: dict[str, Any] = {}
    if arguments.full:
        options = {
            "policies": ("tabular", "gru", "transformer"),
            "recipes": verification.ALL_RECIPES,
            "beta": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
            "reward_scale": (0.5, 1.0, 2.0),
            "num_seeds": 3,
        }
    if arguments.policies is not None:
        options["policies"] = arguments.policies
    if arguments.beta is not None:
        options["beta"] = arguments.beta
    if arguments.seeds is not None:
        options["num_seeds"] = arguments.seeds
    try:
        report = verification.verify(task, key=jax.random.key(0), progress=True, **options)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    say(["", *str(report).splitlines(), ""])
    files = [folder / name for name in ("report.json", "report.csv", "verify.png")]
    write(files[0], lambda file: file.write(report.to_json()))
    write(files[1], lambda file: file.write(report.to_csv()))
    write(files[2], lambda file: plot.verification(report).savefig(file, format="png"), binary=True)
    took = f"({time.monotonic() - began:.0f} s)"
    say([f"wrote {', '.join(map(str, files))} {took}", *([""] if skip else [])])
    return int(not report.passed)
