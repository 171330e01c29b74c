"""Output that appears whole or not at all, and errors of the user's input."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from kltarget._core.files import open_whole
from kltarget._core.page import Page
from kltarget._core.words import short

# For terminals without Greek.
_LETTERS = {"β": "b", "π": "pi", "σ": "sigma", "Σ": "sum", "Λ": "Lambda"}
_LINES = {"−": "-", "–": "-", "—": "-", "→": "->", "…": "~", "′": "'", "‖": "||"}
_SIGNS = {"∞": "inf", "≠": "*", "±": "+-"}
_PLAIN = str.maketrans(_LETTERS | _LINES | _SIGNS)

_GLYPH = re.compile(r"Glyph (\d+) ")

written: list[str] = []
"""Files that this call of the command has finished."""

JSON = "write everything as JSON; -: print that instead"
"""The help of ``--json``."""


class InputError(Exception):
    """What the user gave cannot be used; the message is one line."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, and in a few words what is kept."""


@contextlib.contextmanager
def input_errors(where: object = "") -> Iterator[None]:
    """Blames errors on the user's input, of which ``where`` is the place."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None


def check_outputs(
    outputs: Iterable[pathlib.Path | None],
    inputs: Iterable[str | pathlib.Path] = (),
    *,
    figure: pathlib.Path | None = None,
    what: str = "the table",
) -> None:
    """Raises if a file cannot be written, would overwrite what is read, or is no figure's.

    Called before anything is read or computed.
    """
    read = [os.path.realpath(x) for x in inputs]
    given = [path for path in outputs if path is not None]
    if sum(map(is_stdout, given)) > 1:
        raise InputError("-: standard output takes one thing: give the others a file")
    files = [path for path in given if not is_stdout(path)]
    for path in (*files, *([] if figure is None else [figure])):
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {str(path.parent)!r}")
        if path.exists() and os.path.realpath(path) in read:
            raise InputError(f"{path}: this is {what} itself: write elsewhere")
        # A store is a folder, and one that is there is replaced.
        if path.is_dir() and path.suffix != ".zarr":
            raise InputError(f"{path}: this is a folder: give the name of a file")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"{path}: cannot be written: no permission in {str(path.parent)!r}")
    if figure is not None:
        from matplotlib.figure import Figure

        if _kind(figure) not in Figure().canvas.get_supported_filetypes():
            kind = figure.suffix or "file without extension"
            raise InputError(f"{figure}: cannot draw a {kind}: use .png, .pdf or .svg")


@contextlib.contextmanager
def remarks() -> Iterator[None]:
    """Says what a library warns of in a line each, without its source files."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [" ".join(str(warning.message).split()) for warning in caught]
    codes = {int(found[1]) for text in texts if (found := _GLYPH.match(text))}
    said = [text for text in texts if not _GLYPH.match(text)]
    if codes:
        letters = "".join(map(chr, sorted(codes)))
        said.append(f"the figure's fonts lack the letters {short(letters)}: boxes stand for them")
    for text in dict.fromkeys(said):
        print(f"kltarget: note: {text}", file=sys.stderr)


def is_stdout(path: pathlib.Path | None) -> bool:
    """Whether ``-`` was given, which is standard output; nothing else is printed there then."""
    return path is not None and str(path) == "-"


def _kind(path: pathlib.Path) -> str:
    """The extension without its dot."""
    return path.suffix.lower().removeprefix(".")


def write(*outputs: tuple[pathlib.Path | None, Callable[[], Any]]) -> list[str]:
    """Writes texts and figures to files that appear complete or not at all, and says so in lines.

    What has no path is not made, and text for ``-`` goes to standard output.
    """
    lines = []
    for path, make in outputs:
        if path is None:
            continue
        with remarks():
            content = make()
        if is_stdout(path) and isinstance(content, str):
            _print_text(content)
            continue
        try:
            with remarks(), open_whole(path, "w" if isinstance(content, str) else "wb") as file:
                if isinstance(content, str):
                    file.write(content)
                else:
                    content.savefig(file, format=_kind(path))
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
        lines.append(f"wrote {path}")
        written.append(str(path))
    return lines


def _print_text(text: str) -> None:
    """Prints what a program reads: in UTF-8, whatever letters the terminal knows."""
    text = text if text.endswith("\n") else text + "\n"
    if isinstance(buffer := getattr(sys.stdout, "buffer", None), io.BufferedIOBase):
        sys.stdout.flush()
        buffer.write(text.encode())
    else:
        sys.stdout.write(text)
    sys.stdout.flush()


def say(lines: Sequence[str] | Page, *, unless: Iterable[pathlib.Path | None] = ()) -> None:
    """Prints lines or a page, whatever letters the terminal knows.

    Args:
        lines: what to print; a page is as wide as the terminal.
        unless: outputs, one of which may be standard output; then nothing else is printed there.
    """
    if any(map(is_stdout, unless)):
        return
    lines = [lines.to_text()] if isinstance(lines, Page) else lines
    text = "".join(f"{line}\n" for line in lines)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        # A terminal without Greek still gets every number.
        text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    sys.stdout.write(text)
    sys.stdout.flush()
