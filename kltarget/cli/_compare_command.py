"""The sub-command ``kltarget compare``."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from kltarget._core.checks import ArgumentError
from kltarget.cli._arguments import chosen, finite, options_of, real, whole_numbers
from kltarget.cli._output import JSON, InputError, check_outputs, input_errors, say, write
from kltarget.cli._recipe_options import add_recipe, columns_of, recipe_of_options

_SHIPPED = "deepscaler"


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    command = commands.add_parser(
        "compare",
        help="what changed between two checkpoints, and whether a target could have done it",
        description="Read samples of two checkpoints with their rewards, or how often each solved "
        "each prompt, and say which prompts rose and fell, what became of pass@k, and which law of "
        "RL the shift of the log-odds follows: a KL target's, a path's, or none.",
        epilog="examples: kltarget compare deepscaler; kltarget compare base.jsonl trained.jsonl "
        "--trainer trl-grpo==1.9.2 --beta 0.001 --html compare.html. A table of counts has the "
        "columns prompt, correct, samples.",
    )
    command.add_argument(
        "before",
        type=pathlib.Path,
        metavar="BEFORE",
        help="samples of the model before, a table of counts, or deepscaler: 1,060 prompts of a "
        "published run, before and after",
    )
    command.add_argument(
        "after",
        nargs="?",
        type=pathlib.Path,
        metavar="AFTER",
        help="of the model after; without it, BEFORE has both, see --columns-after",
    )
    add_recipe(command)
    add = options_of(command)
    add("--beta β", "that the run had, in the trainer's units", finite)
    ks = tuple(2**i for i in range(9))
    add("--k k,…", "of pass@k (default: 1,2,4,…,256)", whole_numbers, default=ks)
    add("--threshold τ", "right: reward τ or more (default: as the rewards show)", real)
    columns = "files of your own: completion=response,reward=score, or correct=base_correct"
    add("--columns a=b,…", columns, columns_of)
    add("--columns-after a=b,…", "those of AFTER, where they differ", columns_of)
    rate = "of prompts said to have moved (default: 0.05)"
    add("--false-discovery-rate RATE", rate, _share, default=0.05)
    add = options_of(command.add_argument_group("output"))
    add("--json OUT", JSON, pathlib.Path)
    add("--html OUT.html", "write one page with the figure in it", pathlib.Path)
    add("--plot OUT.png", "draw the figure", pathlib.Path)
    command.set_defaults(run=_compare)


def _share(text: str) -> float:
    value = real(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def _compare(arguments: argparse.Namespace) -> int:
    from kltarget import pages, plot
    from kltarget.comparisons import compare

    outputs = [arguments.json, arguments.html]
    sides = [x for x in (arguments.before, arguments.after) if x is not None]
    check_outputs(outputs, sides, figure=arguments.plot, what="a file of samples")
    names = ("beta", "k", "threshold", "columns", "columns_after", "false_discovery_rate")
    options = chosen(arguments, *names)
    with input_errors():
        before, after = _sides(arguments, options)
        used, name = None, None
        if arguments.trainer or arguments.recipe or arguments.config:
            used, beta, name = recipe_of_options(arguments, arguments.beta)
            options["beta"] = beta
        try:
            found = compare(before, after, used, name=name, **options)
        except ArgumentError as error:
            raise InputError(error.with_option(f"--{error.argument}")) from None
    say(str(found).splitlines(), unless=outputs)
    wrote = write(
        (arguments.json, found.to_json),
        (arguments.html, lambda: pages.comparison(found)),
        (arguments.plot, lambda: plot.comparison(found)),
    )
    say(["", *wrote] if wrote else [], unless=outputs)
    return 0


def _sides(arguments: argparse.Namespace, options: dict[str, Any]) -> tuple[Any, Any]:
    """Both files, or one that has both."""
    before, after = arguments.before, arguments.after
    if after is not None:
        return before, after
    if str(before) == _SHIPPED and not before.exists():
        from kltarget import tasks

        options |= {"columns": {"correct": "base_correct"}}
        options |= {"columns_after": {"correct": "rl_correct"}}
        return tasks.deepscaler(), tasks.deepscaler()
    if arguments.columns_after is None:
        raise InputError(
            "AFTER: give a second file; of a log with steps the same again, for its first step and "
            "its last ones; of a table with both counts say which columns are those after: "
            "--columns correct=base_correct --columns-after correct=rl_correct"
        )
    return before, before
