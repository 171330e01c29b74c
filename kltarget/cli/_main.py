"""The command ``kltarget``: targets, their verification, trainers' recipes, logged rollouts.

Exit codes: 0 fine, 1 a solution or a check failed, 2 bad input, with one line on stderr that says
where, 130 interrupted, with one line on stderr that says what is kept.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from kltarget._core.page import Lines, Page
from kltarget._core.words import wrapped
from kltarget.cli._interrupts import LINE, pressed
from kltarget.cli._output import InputError, Stopped, say, written
from kltarget.cli._standard_input import with_standard_input


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments after the program's name. Default: those of the process.

    Returns:
        The exit code: 0 fine, 1 a solution or a check failed, 2 bad input, 130 interrupted. Errors
        are written to stderr. Pages are as wide as ``COLUMNS`` says, or the terminal; 96 columns
        where there is no terminal.
    """
    logger = logging.getLogger("jax")
    level = logger.level
    # JAX remarks on accelerators that it finds and cannot use; here that is noise.
    logger.setLevel(logging.ERROR)
    written.clear()
    try:
        arguments = _parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
        # A page may say by which command it was made.
        given = sys.argv[1:] if argv is None else argv
        arguments.command_line = shlex.join(["kltarget", *given])
        with with_standard_input(arguments):
            return arguments.run(arguments)
    except SystemExit as stop:  # --help and --version end here, bad options too
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt as stop:
        return _interrupted(stop)
    except InputError as error:
        if pressed():
            return _interrupted(error)
        print(f"kltarget: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader, such as ``head``, has gone; without this Python complains when it flushes at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Libraries make other errors of Ctrl-C, such as that an import failed.
        if pressed():
            return _interrupted(error)
        raise
    finally:
        logger.setLevel(level)


def _interrupted(stop: BaseException) -> int:
    """Says so, with what is kept, in one line."""
    kept = str(stop) if isinstance(stop, Stopped) else ""
    if not kept and written:
        kept = f"wrote {', '.join(written)}"
    print(f"{LINE}: {kept}" if kept else LINE, file=sys.stderr)
    return 130


class _Help(argparse.HelpFormatter):
    """Help whose lines part no word: argparse's own do at hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(" ".join(text.split()), width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = wrapped(" ".join(text.split()), width - len(indent))
        return "\n".join(indent + line for line in lines)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            # A group of options is kept on one line, however narrow the terminal is.
            say(Page([Lines(message.splitlines())]))

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


_COMMANDS = (
    "tasks", "solve", "sweep", "prefer", "explore", "verify", "recipe", "forecast", "compare",
    "diagnose", "score", "demo", "doctor",
)  # fmt: skip


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Of all commands, or of the one that is called: what others import takes half a second."""
    parser = _Parser(
        prog="kltarget",
        description="Exact targets of regularised reward maximisation, "
        "max over π of E_π[r] − β·D(π, π_ref).",
        epilog="Exit codes: 0 fine, 1 a solution or a check failed, 2 bad input, 130 interrupted. "
        "Pages are as wide as COLUMNS says, or the terminal; 96 columns where there is none.",
    )
    parser.add_argument("--version", action=_Version)
    # A demonstration runs other commands.
    parser.set_defaults(main=main)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    called = [x for x in argv[:1] if x in _COMMANDS]
    for name in called or _COMMANDS:
        importlib.import_module(f"kltarget.cli._{name}_command").add_to(commands)
        commands.choices[name].add_argument(
            "--no-cache",
            action="store_true",
            help="keep no compiled programs for the next call, and use none of an earlier one",
        )
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"kltarget {version('kltarget')}")
        parser.exit()
