"""The sub-command ``kltarget forecast``."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from kltarget._core.checks import ArgumentError
from kltarget._core.words import compact
from kltarget.cli._arguments import (
    beta_list,
    chosen,
    finite,
    options_of,
    real,
    whole,
    whole_numbers,
)
from kltarget.cli._output import JSON, InputError, check_outputs, input_errors, say, write
from kltarget.cli._recipe_options import add_recipe, columns_of, recipe_of_options


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    command = commands.add_parser(
        "forecast",
        help="what training would ask for, from samples of the base model",
        description="Read samples of a base model with their rewards, or how often each prompt was "
        "solved, and say what the target of a trainer's recipe does at each β: reward, success, "
        "pass@k and KL, with what so many samples leave open.",
        epilog="examples: kltarget forecast samples.jsonl --trainer trl-grpo==1.9.2; kltarget "
        "forecast counts.csv --recipe place=loss,estimator=k3,baseline=mean --kl-budget 0.5 "
        "--html forecast.html. A table of counts has the columns prompt, correct, samples.",
    )
    command.add_argument(
        "paths",
        nargs="+",
        type=pathlib.Path,
        metavar="PATH",
        help="files or folders of samples, one table of counts, or deepscaler: 1,060 prompts, "
        "each solved so often of 128 times",
    )
    add_recipe(command)
    add = options_of(command)
    add("--beta β", "0.1, a list 0.01,0.1,1, or log-spaced FROM:TO:COUNT", beta_list)
    ks = (1, 4, 16, 64, 256)
    add("--k k,…", "of pass@k (default: 1,4,16,64,256)", whole_numbers, default=ks)
    add("--rollouts N", "that a run draws of a prompt in all", whole, dest="rollouts_per_prompt")
    add("--kl-budget NATS", "say which β has this mean KL a prompt", finite)
    add("--reward R", "say which β has this mean reward", real)
    add("--keep-answers SHARE", "say which β keeps this share of the effective answers", finite)
    add("--threshold τ", "right: reward τ or more (default: as the rewards show)", real)
    add(
        "--columns a=b,…",
        "files of your own: completion=response,reward=score, or correct=base_correct",
        columns_of,
    )
    add = options_of(command.add_argument_group("output"))
    add("--json OUT", JSON, pathlib.Path)
    add("--html OUT.html", "write one page with the figure in it", pathlib.Path)
    add("--plot OUT.png", "draw the figure", pathlib.Path)
    command.set_defaults(run=_forecast)


def _forecast(arguments: argparse.Namespace) -> int:
    from kltarget import pages, plot
    from kltarget.forecasts import forecast

    outputs = [arguments.json, arguments.html]
    check_outputs(outputs, arguments.paths, figure=arguments.plot, what="a file of samples")
    options = chosen(arguments, "beta", "k", "rollouts_per_prompt", "threshold", "columns")
    paths: Any = arguments.paths[0] if len(arguments.paths) == 1 else arguments.paths
    if str(paths) == "deepscaler" and not paths.exists():
        from kltarget import tasks

        counts = tasks.deepscaler().rename(columns={"base_correct": "correct"})
        paths = counts[["prompt", "correct", "samples"]]
    with input_errors():
        used, _, name = recipe_of_options(arguments)
        try:
            found = forecast(paths, used, name=name, **options)
        except ArgumentError as error:
            text = error.with_option(f"--{error.argument}") if error.argument else str(error)
            raise InputError(text) from None
        asked = [_asked(found, arguments)]
    say([*str(found).splitlines(), *filter(None, asked)], unless=outputs)
    wrote = write(
        (arguments.json, found.to_json),
        (arguments.html, lambda: pages.forecast(found)),
        (arguments.plot, lambda: plot.forecast(found)),
    )
    say(["", *wrote] if wrote else [], unless=outputs)
    return 0


def _asked(found: Any, arguments: argparse.Namespace) -> str:
    """Which β has what was asked for."""
    asked = {"kl": arguments.kl_budget, "expected_reward": arguments.reward}
    asked["keep_answers"] = arguments.keep_answers
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return ""
    if len(asked) > 1:
        options = {"kl": "--kl-budget", "expected_reward": "--reward"}
        names = [options.get(name, "--keep-answers") for name in asked]
        raise InputError(f"{' and '.join(names)}: choose one of them")
    choice = found.choose(**asked)
    ((name, value),) = asked.items()
    what = {
        "kl": f"has a mean KL of {value:g} nats a prompt",
        "expected_reward": f"has a mean reward of {value:g}",
        "keep_answers": f"keeps {100 * value:g} % of the effective answers",
    }[name]
    if choice.beta != choice.beta:
        reason = f": {choice.reason}" if choice.reason else ""
        if not (found.graded or any(found.correct)):
            return f"\nWhich β {what} is not known{reason}."
        low, high = found.draws_beta[0], found.draws_beta[-1]
        return f"\nNo β between {low:g} and {high:g} {what}{reason}."
    low, middle, high = (compact(float(f"{x:.3g}")) for x in (choice.low, choice.beta, choice.high))
    return f"\nβ = {middle} ({low} to {high}) {what}."
