"""The command `kltarget`: targets, their verification, trainers' recipes, logged rollouts.

Exit codes: 0 fine, 1 a solution or a check failed, 2 bad input, with one line on stderr that says
where.

`kltarget solve … --json OUT` writes these keys:

- `problem`, `divergence`, and `mara`: `null`, or its `threshold` and `method`;
- `notes`: what was guessed or changed while reading, a list of lines;
- `missing_mass`: reference mass that the table's rows leave out;
- `labels`, `reward`, `log_ref`, `modes`: the problem, a list with one entry per outcome;
- `targets`: a list with an entry for each β, in the order given, of `beta`; `log_probs`, a list
  with one entry per outcome; `expected_reward`, `kl_to_reference`, `entropy` (nats) and
  `effective_modes` under the problem as read; `value`, `multiplier` and `divergence_value` of the
  objective that was solved; `status`, a list of the names of its set bits.

Logarithms are natural. JSON has no infinities: they are the strings `"inf"` and `"-inf"`, and
`"nan"` stands where a solution failed. Equal inputs give equal bytes.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

import kltarget as kt
from kltarget import _cli_diagnose, _cli_recipe, _cli_verify, plot, tables, tasks
from kltarget._command import (
    InputError,
    beta_list,
    check_drawable,
    file_kind,
    one_line,
    option,
    real,
    say,
    whole,
    without_device_warnings,
    write,
)
from kltarget._numerics import double_precision
from kltarget._report import Solution, report, set_bits, to_json
from kltarget._text import aligned
from kltarget.status import FAILURES
from kltarget.tasks import Task, one_mode_each, right_outcomes

_DIVERGENCES = {
    "reverse-kl": "ReverseKL",
    "forward-kl": "ForwardKL",
    "jensen-shannon": "JensenShannon",
    "alpha": "Alpha",
    "chi-squared": "ChiSquared",
    "neyman-chi-squared": "NeymanChiSquared",
    "squared-hellinger": "SquaredHellinger",
    "tsallis": "Tsallis",
    "chi-squared-kl": "ChiSquaredKL",
    "total-variation": "TotalVariation",
}
_WITH_PARAMETER = {"alpha": "0.5", "tsallis": "1.5"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the program's name. Default: those of the process.

    Returns:
        The exit code: 0 fine, 1 a solution or a check failed, 2 bad input. Errors are written to
        stderr.
    """
    try:
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments)
    except SystemExit as stop:  # --help and --version end here, bad options too
        return stop.code if isinstance(stop.code, int) else 0
    except InputError as error:
        print(f"kltarget: {one_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as `head`, has gone; without this Python complains when it flushes at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            say(message.splitlines())

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kltarget",
        description="Exact targets of regularised reward maximisation, "
        "max over π of E_π[r] − β·D(π, π_ref).",
        epilog="Exit codes: 0 fine, 1 a solution or a check failed, 2 bad input.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    tasks = commands.add_parser(
        "tasks", help="list the shipped problems", description="List the shipped problems."
    )
    tasks.set_defaults(run=_tasks)

    solve = commands.add_parser(
        "solve",
        help="targets of a table or of a shipped task",
        description="Print the target of each β: what training with this reward aims at.",
        epilog="examples: kltarget solve words --beta 0.01,0.1,1 --plot words.png; "
        "kltarget solve answers.csv --beta 1e-3:1:7 --divergence forward-kl --json targets.json",
        allow_abbrev=False,
    )
    solve.add_argument(
        "problem",
        metavar="TABLE_OR_TASK",
        help="a .csv, .tsv, .json, .jsonl or .parquet file, a row per outcome, or a task's name",
    )
    solve.add_argument(
        "--beta",
        required=True,
        type=option(beta_list),
        metavar="β",
        help="regularisation, reward units per nat: 0.1, a list 0.01,0.1,1, or log-spaced "
        "FROM:TO:COUNT",
    )
    solve.add_argument(
        "--divergence",
        default="reverse-kl",
        type=option(_divergence),
        metavar="NAME",
        help=", ".join(
            f"{name}:{_WITH_PARAMETER[name]}" if name in _WITH_PARAMETER else name
            for name in _DIVERGENCES
        )
        + " (default: reverse-kl)",
    )
    solve.add_argument(
        "--threshold",
        type=option(real),
        metavar="τ",
        help="apply MARA: all outcomes of reward τ or more become equally probable",
    )
    solve.add_argument(
        "--mara-method",
        choices=("augment", "substitute"),
        metavar="METHOD",
        help="augment (change the reward) or substitute (change reward and reference); default: "
        "augment for reverse-kl, substitute for the others, which augmenting does not equalise",
    )
    solve.add_argument(
        "--top", type=option(whole), default=10, metavar="K", help="outcomes to print"
    )
    solve.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write everything as JSON")
    solve.add_argument("--plot", type=pathlib.Path, metavar="OUT.png", help="draw the targets")

    columns = solve.add_argument_group("columns of a table (default: found by their names)")
    columns.add_argument("--outcome", metavar="COLUMN", help="the outcomes' names")
    columns.add_argument("--reward", metavar="COLUMN", help="their rewards")
    reference = columns.add_mutually_exclusive_group()
    reference.add_argument(
        "--log-ref", metavar="COLUMN", help="reference log-probabilities (natural)"
    )
    reference.add_argument("--prob", metavar="COLUMN", help="or reference probabilities")
    reference.add_argument("--count", metavar="COLUMN", help="or how often the reference gave each")
    columns.add_argument("--modes", metavar="COLUMN", help="equal entries are one mode")
    columns.add_argument(
        "--unseen-reward",
        type=option(real),
        metavar="R",
        help="keep reference mass that the rows leave out as one more outcome with this reward",
    )
    solve.set_defaults(run=_solve)

    _cli_verify.add_to(commands)
    _cli_recipe.add_to(commands)
    _cli_diagnose.add_to(commands)
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"kltarget {version('kltarget')}")
        parser.exit()


def _divergence(text: str) -> tuple[str, str, float | None]:
    """The name as given, the class in `kltarget` and its parameter."""
    name, colon, parameter = text.partition(":")
    if name not in _DIVERGENCES:
        raise ValueError(f"{text!r} is none of {', '.join(_DIVERGENCES)}")
    if name in _WITH_PARAMETER:
        if not colon:
            raise ValueError(f"{name} needs its parameter, such as {name}:{_WITH_PARAMETER[name]}")
        value = real(parameter)
        if math.isinf(value):
            raise ValueError(f"{parameter!r} is not a finite number")
        return text, _DIVERGENCES[name], value
    if colon:
        raise ValueError(f"{name} has no parameter")
    return text, _DIVERGENCES[name], None


def _tasks(arguments: argparse.Namespace) -> int:
    known = tasks.listing()
    rows = [["task", "outcomes", "right"]]
    rows += [[task.name, f"{task.num_outcomes:,}", f"{task.num_right:,}"] for task in known]
    descriptions = ["description", *(task.description for task in known)]
    lines = zip(aligned(rows), descriptions, strict=True)
    say([f"{line}   {description}" for line, description in lines])
    return 0


def _solve(arguments: argparse.Namespace) -> int:
    task, read = _load(arguments)
    for path in (arguments.json, arguments.plot):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {str(path.parent)!r}")
        if (
            path is not None
            and path.exists()
            and os.path.realpath(arguments.problem) == str(path.resolve())
        ):
            raise InputError(f"{path}: this is the table itself: write elsewhere")
    if arguments.plot is not None:
        check_drawable(arguments.plot)
    with double_precision(), without_device_warnings():
        solution = _solution(task, arguments)
        say(report(solution, read, arguments.top))
        if arguments.json is not None:
            write(arguments.json, lambda file: file.write(to_json(solution)))
        if arguments.plot is not None:
            _plot(arguments.plot, solution)
    for path in filter(None, (arguments.json, arguments.plot)):
        say([f"wrote {path}"])
    failed = 0
    for i, (beta, status) in enumerate(zip(solution.betas, solution.statuses, strict=True)):
        nan = any(map(math.isnan, solution.log_probs[i].tolist()))
        if status & FAILURES or nan:
            failed = 1
            why = ", ".join(set_bits(status & FAILURES)) or "the numbers overflow"
            print(f"kltarget: {arguments.problem}: β = {beta:g} failed: {why}", file=sys.stderr)
    return failed


def _load(arguments: argparse.Namespace) -> tuple[Task, tuple[str, ...]]:
    """The problem and what there is to say about reading it."""
    columns = {
        role: getattr(arguments, role)
        for role in ("outcome", "reward", "log_ref", "prob", "count", "modes", "unseen_reward")
    }
    if arguments.problem in tasks.names():
        for role, column in columns.items():
            if column is not None:
                option = role.replace("_", "-")
                raise InputError(f"--{option} is for tables, but {arguments.problem!r} is a task")
        return tasks.load(arguments.problem), ()
    path = pathlib.Path(arguments.problem)
    if not path.suffix and not path.exists():
        raise InputError(
            f"{arguments.problem!r} is neither a file nor a task: "
            f"the tasks are {', '.join(tasks.names())}"
        )
    try:
        table = tables.read_table(path, **columns)
    except (tables.TableError, ImportError) as error:
        raise InputError(str(error)) from None
    return table, table.notes


def _solution(task: Task, arguments: argparse.Namespace) -> Solution:
    text, class_name, parameter = arguments.divergence
    threshold, method = arguments.threshold, arguments.mara_method
    if method is not None and threshold is None:
        raise InputError("--mara-method needs --threshold")
    try:
        divergence = getattr(kt, class_name)(*(() if parameter is None else (parameter,)))
        objective = task.objective(np.array(arguments.beta), divergence=divergence)
        solved = objective
        if threshold is not None:
            method = method or ("augment" if class_name == "ReverseKL" else "substitute")
            solved = kt.mara(objective, threshold, method=method)
        target = kt.solve(solved)
    except ValueError as error:
        raise InputError(f"{arguments.problem}: {error}") from None

    right = task.reward >= threshold if threshold is not None else right_outcomes(task.reward)
    # Right outcomes that the table puts in no mode, which a threshold may add, are a mode each.
    apart = one_mode_each(right & (task.modes < 0))
    modes = np.where(right, np.where(apart < 0, task.modes, task.modes.max() + 1 + apart), -1)

    # Under jit the whole is compiled once, which is most of what the command takes.
    @jax.jit
    def measure(log_probs: jax.Array, reward: jax.Array, log_ref: jax.Array) -> dict[str, Any]:
        probs = jnp.exp(log_probs)
        gain = jnp.where(probs == 0, jnp.zeros_like(probs), probs * reward)
        return {
            "expected_reward": gain.sum(-1),
            "kl_to_reference": kt.kl(log_probs, log_ref),
            "entropy": kt.entropy(log_probs),
            "effective_modes": kt.effective_modes(log_probs, modes),
        }

    log_probs = np.asarray(target.log_probs)
    rows = np.vstack([task.log_ref, log_probs])
    measures = measure(rows, *(np.broadcast_to(x, rows.shape) for x in (task.reward, task.log_ref)))
    statuses = [kt.Status(status) for status in np.asarray(target.status).tolist()]
    return Solution(
        task=task,
        betas=arguments.beta,
        divergence=text,
        divergence_name=divergence.name + ("" if parameter is None else f" ({text})"),
        mara=None if threshold is None else {"threshold": threshold, "method": method},
        right=right,
        modes=modes,
        target=target,
        log_probs=log_probs,
        measures={name: np.asarray(values).tolist() for name, values in measures.items()},
        statuses=statuses,
    )


def _plot(path: pathlib.Path, solution: Solution) -> None:
    import matplotlib.style

    ax = plot.target(solution.target, problem=solution.task)
    with matplotlib.style.context(plot.STYLE):
        ax.set_title(solution.task.name)
    figure: Any = ax.figure
    write(path, lambda file: figure.savefig(file, format=file_kind(path)), binary=True)
