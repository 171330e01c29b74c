"""The sub-command ``kltarget diagnose``."""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

from kltarget._core.checks import ArgumentError
from kltarget._core.words import page_width
from kltarget.cli._arguments import chosen, finite, options_of, real, whole
from kltarget.cli._output import (
    JSON,
    InputError,
    Stopped,
    check_outputs,
    input_errors,
    say,
    write,
)
from kltarget.cli._recipe_options import add_recipe, columns_of, recipe_of_options
from kltarget.cli._watched_page import WatchedPage

if TYPE_CHECKING:
    from kltarget.recipes import Recipe

_coefficient = functools.partial(finite, what="a finite number of 0 or more", zero=True)
_seconds = functools.partial(finite, what="a number of seconds above 0")


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    diagnose = commands.add_parser(
        "diagnose",
        help="what a run's logged rollouts say of its KL regulariser",
        description="Read the rollouts that a trainer logged and say what its regulariser aims at, "
        "where right answers change places, and how far the run got. Says no more than the log "
        "holds: rewards alone, with the reference's log-probabilities, or with the policy's too.",
        epilog="examples: kltarget diagnose completions/ --trainer trl-grpo==1.9.2 --beta 0.04; "
        "kltarget diagnose rollouts.parquet --recipe place=loss,estimator=k3,baseline=mean "
        "--beta 0.3 --answer number --html report.html. Exit codes: 0 fine, 1 graded as --fail-on "
        "says, 2 bad input.",
    )
    add = options_of(diagnose)
    diagnose.add_argument(
        "paths",
        nargs="+",
        type=pathlib.Path,
        metavar="PATH",
        help="files or folders of rollouts, - for standard input; or of curves, such as "
        "trainer_state.json, where no rollouts were kept",
    )
    add_recipe(diagnose)
    add("--beta β", "the trainer's coefficient, 0 or more", _coefficient)
    add(
        "--answer RULE",
        "what tells answers apart: text (default), number, boxed, answer, or regex:…",
        default="text",
    )
    add("--threshold τ", "right: reward τ or more (default: the best, where rewards show it)", real)
    diagnose.add_argument(
        "--reference-from-first-step",
        action="store_const",
        const="first-step",
        dest="reference",
        help="take the first logged step as a sample of the reference",
    )
    add("--max-prompts N", "how many prompts get targets (default: 200)", whole, default=200)
    against = "another run of this recipe: both side by side, and what they came to"
    add("--against PATH", against, pathlib.Path)
    add = options_of(diagnose.add_argument_group("reading"))
    add("--group-size G", "rollouts of a group", whole, dest="num_generations")
    add(
        "--format NAME",
        "what wrote the files, such as trl, verl or generic (default: told by their columns)",
        default="auto",
    )
    add(
        "--columns a=b,…",
        "files of your own: completion=response,reward=score; reward=a,reward=b adds both",
        columns_of,
    )
    add(
        "--reward-weights a=w,…",
        "weights of rewards that are added: accuracy=1,format=0.1, or 1,0.1 in the order of the "
        "columns (default: as the logged advantages say)",
        _weights,
    )
    add("--only a=b,…", "rows alone whose entry in a column is this: run=a, split=val", _entries)
    add("--skip-bad", "skip rows that cannot be read")
    add = options_of(diagnose.add_argument_group("output"))
    add("--json OUT", JSON, pathlib.Path)
    add(
        "--html OUT.html",
        "write one page with the figure in it; it reloads with --watch",
        pathlib.Path,
    )
    add("--plot OUT.png", "draw the figure", pathlib.Path)
    fail = "collapsed: end with code 1 if PATH is; narrowing: also if it is narrowing"
    add("--fail-on GRADE", fail, _grade)
    watch = "look again so often and print anew when files have changed; Ctrl-C ends"
    add("--watch SECONDS", watch, _seconds)
    diagnose.set_defaults(run=run_diagnose)


def _grade(text: str) -> str:
    if text not in _FAILING:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(_FAILING)}")
    return text


def _entries(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and equals for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form column=entry")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _weights(text: str) -> dict[str, float] | list[float]:
    parts = [part.strip() for part in text.split(",")]
    if not any("=" in part for part in parts):
        return [real(part) for part in parts]
    named = columns_of(text)
    if any(not isinstance(value, str) for value in named.values()):
        raise argparse.ArgumentTypeError("a reward has two weights")
    return {name: real(str(value)) for name, value in named.items()}


def run_diagnose(arguments: argparse.Namespace) -> int:
    """Runs the sub-command, with ``--watch`` until it is interrupted."""
    outputs = [arguments.json, arguments.html]
    check_outputs(outputs, arguments.paths, figure=arguments.plot, what="a file of rollouts")
    if arguments.watch is None:
        return _code(arguments, _once(arguments))
    seen, page = None, WatchedPage(arguments.html, arguments.watch)
    try:
        while True:
            state = _state(arguments.paths)
            if state != seen:
                try:
                    if _code(arguments, _once(arguments, again=seen is not None, page=page)):
                        return 1
                except InputError as error:
                    # A run that has just begun has written nothing yet, or half a file.
                    say([f"waiting: {error}"])
            seen = state
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        raise Stopped(page.left()) from None
    finally:
        page.left()


_FAILING = {"collapsed": ("collapsed",), "narrowing": ("collapsed", "narrowing")}
"""What ``--fail-on`` takes, and the grades that each is about."""


def _code(arguments: argparse.Namespace, grade: str) -> int:
    """The exit code of a run of this grade."""
    return int(grade in _FAILING.get(arguments.fail_on, ()))


_OPTIONS = {
    "num_generations": "--group-size",
    "reward_weights": "--reward-weights",
    "against": "compare them by --against",
    "run": "--only run=…",
}
"""The options that are called otherwise than Python's arguments."""


def _state(paths: list[pathlib.Path]) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of all files."""
    files = [x for path in paths for x in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    statuses = ((str(file), file.stat()) for file in files if file.is_file())
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in statuses)


def _read(paths: list[pathlib.Path], reading: dict[str, Any]) -> Any:
    """The rollouts, or the curves where no rollouts were kept."""
    from kltarget.rollouts import are_scalars, read_rollouts, read_scalars

    columns = {x: y for x, y in (reading.get("columns") or {}).items() if isinstance(y, str)}
    if reading.get("format", "auto") == "auto" and are_scalars(paths, columns=columns):
        only = reading.get("only") or {}
        return read_scalars(paths, columns=columns, run=only.get("run"))
    return read_rollouts(paths, **reading)


def _recipe(arguments: argparse.Namespace) -> tuple[Recipe | None, float | None, str | None]:
    """What the trainer does, its β and its name; nothing where nothing of it was given."""
    given = arguments.trainer or arguments.recipe or arguments.config
    if not given and arguments.beta is None:
        return None, None, None
    return recipe_of_options(arguments, arguments.beta)


def _once(
    arguments: argparse.Namespace, again: bool = False, page: WatchedPage | None = None
) -> str:
    """Diagnoses, prints and writes; the grade of the first run."""
    from kltarget import pages, plot
    from kltarget.cli._side_by_side import TwoRuns
    from kltarget.diagnosis import diagnose

    reading = chosen(arguments, "format", "columns", "answer", "num_generations", "reward_weights")
    reading |= chosen(arguments, "only", "skip_bad")
    options = chosen(arguments, "reference", "threshold", "max_prompts")
    with input_errors():
        try:
            used, beta, name = _recipe(arguments)
            reading |= {"full_text": False, "progress": sys.stderr.isatty()}
            frame = _read(arguments.paths, reading)
            found = diagnose(frame, used, beta=beta, name=name, **options)
            other = None
            if arguments.against is not None:
                second = _read([arguments.against], reading)
                runs = found, diagnose(second, used, beta=beta, name=name, **options)
                other = TwoRuns.of(runs, (frame, second), arguments.threshold)
        except ArgumentError as error:
            option = _OPTIONS.get(error.argument, f"--{error.argument}")
            text = error.with_option(option) if error.argument else str(error)
            raise InputError(text) from None
    outputs = [arguments.json, arguments.html]
    line = ["", "─" * page_width()] if again else []
    say([*line, *str(other or found).splitlines()], unless=outputs)
    told = {"path": ", ".join(map(str, arguments.paths)), "command": arguments.command_line}
    html = other.to_html if other else lambda: pages.diagnosis(found, frame, **told)
    wrote = write(
        (arguments.json, (other or found).to_json),
        (arguments.html, html if page is None else lambda: page.of(html())),
        (arguments.plot, other.figure if other else lambda: plot.diagnosis(found)),
    )
    say(["", *wrote] if wrote else [], unless=outputs)
    return found.grade
