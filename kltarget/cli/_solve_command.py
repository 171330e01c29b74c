"""The sub-command ``kltarget solve``."""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kltarget import plot, targets
from kltarget._core.numerics import double_precision
from kltarget._core.status import FAILURES, Status
from kltarget.cli._arguments import (
    InputError,
    beta_list,
    check_drawable,
    check_outputs,
    file_kind,
    option,
    real,
    say,
    whole,
    without_device_warnings,
    write,
)
from kltarget.cli._problem_options import add_columns, add_divergence, add_problem, load_problem
from kltarget.cli._solve_page import Solution, page, set_bits, to_json
from kltarget.divergences import kl
from kltarget.divergences.names import named
from kltarget.modes import effective_modes, entropy
from kltarget.objectives import mara
from kltarget.tasks import Task, one_mode_each, right_outcomes


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    solve = commands.add_parser(
        "solve",
        help="targets of a table or of a shipped task",
        description="Print the target of each β: what training with this reward aims at.",
        epilog="examples: kltarget solve words --beta 0.01,0.1,1 --plot words.png; "
        "kltarget solve answers.csv --beta 1e-3:1:7 --divergence forward-kl --json targets.json",
        allow_abbrev=False,
    )
    add_problem(solve)
    solve.add_argument(
        "--beta",
        required=True,
        type=option(beta_list),
        metavar="β",
        help="regularisation, reward units per nat: 0.1, a list 0.01,0.1,1, or log-spaced "
        "FROM:TO:COUNT",
    )
    add_divergence(solve)
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

    add_columns(solve)
    solve.set_defaults(run=_solve)


def _solve(arguments: argparse.Namespace) -> int:
    task, read = load_problem(arguments)
    check_outputs([arguments.json, arguments.plot], [arguments.problem])
    if arguments.plot is not None:
        check_drawable(arguments.plot)
    with double_precision(), without_device_warnings():
        solution = _solution(task, arguments)
        say(page(solution, read, arguments.top))
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


def _solution(task: Task, arguments: argparse.Namespace) -> Solution:
    threshold, method = arguments.threshold, arguments.mara_method
    if method is not None and threshold is None:
        raise InputError("--mara-method needs --threshold")
    try:
        divergence = named(arguments.divergence)
        objective = task.objective(np.array(arguments.beta), divergence=divergence)
        solved = objective
        if threshold is not None:
            method = method or ("augment" if arguments.divergence == "reverse-kl" else "substitute")
            solved = mara(objective, threshold, method=method)
        target = targets.solve(solved)
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
            "kl_to_reference": kl(log_probs, log_ref),
            "entropy": entropy(log_probs),
            "effective_modes": effective_modes(log_probs, modes),
        }

    log_probs = np.asarray(target.log_probs)
    rows = np.vstack([task.log_ref, log_probs])
    measures = measure(rows, *(np.broadcast_to(x, rows.shape) for x in (task.reward, task.log_ref)))
    statuses = [Status(status) for status in np.asarray(target.status).tolist()]
    return Solution(
        task=task,
        betas=arguments.beta,
        divergence=arguments.divergence,
        divergence_name=divergence.title,
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
