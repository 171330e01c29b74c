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
from kltarget.cli._arguments import options_of, real, whole
from kltarget.cli._budget_options import add_betas, asked_betas, take_reward_of_task
from kltarget.cli._output import JSON, InputError, check_outputs, input_errors, say, write
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
        "kltarget solve answers.csv --beta 1e-3:1:7 --divergence forward-kl --json targets.json; "
        "kltarget solve words --best-of 16",
    )
    add_problem(solve)
    add = options_of(solve)
    add_betas(solve)
    add_divergence(solve)
    add(
        "--threshold τ",
        "apply MARA: all outcomes of reward τ or more become equally probable",
        real,
    )
    add(
        "--mara-method METHOD",
        "augment (change the reward) or substitute (change reward and reference); default: "
        "augment for reverse-kl, substitute for the others, which augmenting does not equalise",
        choices=("augment", "substitute"),
    )
    add("--top K", "outcomes to print", whole, default=10)
    add("--json OUT", JSON, pathlib.Path)
    add("--plot OUT.png", "draw the targets", pathlib.Path)

    add_columns(solve)
    solve.set_defaults(run=_solve)


def _solve(arguments: argparse.Namespace) -> int:
    check_outputs([arguments.json], [arguments.problem], figure=arguments.plot)
    take_reward_of_task(arguments)
    task, read = load_problem(arguments)
    with double_precision():
        solution = _solution(task, arguments)
        say(page(solution, read, arguments.top), unless=[arguments.json])
        say(write((arguments.json, lambda: to_json(solution))))
        say(write((arguments.plot, lambda: _figure(solution))), unless=[arguments.json])
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
    with input_errors(arguments.problem):
        divergence = named(arguments.divergence)
        asked = asked_betas(task, arguments, divergence)
        objective = task.objective(np.array(asked.betas), divergence=divergence)
        if threshold is not None:
            method = method or ("augment" if arguments.divergence == "reverse-kl" else "substitute")
            objective = mara(objective, threshold, method=method)
        target = targets.solve(objective)

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
            "kl_to_reference": jnp.maximum(kl(log_probs, log_ref), 0),  # but for rounding it is
            "entropy": entropy(log_probs),
            "effective_modes": effective_modes(log_probs, modes),
        }

    log_probs = np.asarray(target.log_probs)
    rows = np.vstack([task.log_ref, log_probs])
    measures = measure(rows, *(np.broadcast_to(x, rows.shape) for x in (task.reward, task.log_ref)))
    return Solution(
        task=task,
        betas=asked.betas,
        asked=asked,
        divergence=arguments.divergence,
        mara=None if threshold is None else {"threshold": threshold, "method": method},
        right=right,
        modes=modes,
        target=target,
        log_probs=log_probs,
        measures={name: np.asarray(values).tolist() for name, values in measures.items()},
        statuses=[Status(status) for status in np.asarray(target.status).tolist()],
    )


def _figure(solution: Solution) -> Any:
    import matplotlib.style

    ax = plot.target(solution.target, problem=solution.task)
    with matplotlib.style.context(plot.STYLE):
        ax.set_title(solution.task.name)
    return ax.figure
