"""The sub-command ``kltarget explore``."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from kltarget.cli._arguments import beta_list, options_of
from kltarget.cli._output import InputError, check_outputs, input_errors, say, write
from kltarget.cli._problem_options import add_columns, add_divergence, add_problem, load_problem
from kltarget.pages._explorer_setup import DIVERGENCES


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    explore = commands.add_parser(
        "explore",
        help="a page with sliders that shows the target live",
        description="Write one self-contained page that solves and draws the target as β, reward "
        "scale, reference odds, MARA threshold and divergence are moved: it needs no server and no "
        "network. In a notebook, kltarget.explore does the same.",
        epilog="examples: kltarget explore bimodal --html bimodal.html; "
        "kltarget explore answers.csv --divergence forward-kl --beta 0.05 --html answers.html",
    )
    add_problem(explore)
    add = options_of(explore)
    add("--html OUT.html", "the page to write", pathlib.Path, required=True)
    add("--beta β", "where the slider of β starts", beta_list)
    add_divergence(explore)
    add_columns(explore)
    explore.set_defaults(run=_explore)


def _explore(arguments: argparse.Namespace) -> int:
    from kltarget.pages import page

    path, betas = arguments.html, arguments.beta or [None]
    if len(betas) > 1:
        raise InputError("--beta: one number, where the slider starts")
    check_outputs([path], [arguments.problem])
    task, notes = load_problem(arguments)
    names = dict.fromkeys((arguments.divergence, *DIVERGENCES))
    with input_errors(arguments.problem):
        text = page(task, beta=betas[0], divergences=tuple(names))
    wrote = [f"{line}: open it in any browser" for line in write((path, lambda: text))]
    say([*notes, *wrote], unless=[path])
    return 0
