"""What the sub-commands share: options, output that appears whole or not at all, and errors."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from kltarget._core.files import open_whole

# For terminals without Greek.
_PLAIN = {
    "β": "b",
    "π": "pi",
    "σ": "sigma",
    "Σ": "sum",
    "Λ": "Lambda",
    "′": "'",
    "‖": "||",
    "∞": "inf",
    "…": "~",
    "−": "-",
    "–": "-",
    "—": "-",
    "→": "->",
    "≠": "*",
    "±": "+-",
}


class InputError(Exception):
    """What the user gave cannot be used; the message is one line."""


def option(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Lets a parser of option values say what is wrong, where argparse would name the function."""

    def parse_option(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_option


def real(text: str) -> float:
    """A number, infinite perhaps."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if math.isnan(value):
        raise ValueError(f"{text!r} is not a number")
    return value


def whole(text: str) -> int:
    """A whole number above 0."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number above 0")
    return int(text)


def beta_list(text: str) -> list[float]:
    """One β, a list of them, or log-spaced ones."""
    span = text.split(":")
    if len(span) == 3:
        low, high, count = real(span[0]), real(span[1]), whole(span[2])
        betas = [positive(low, span[0]), positive(high, span[1])]
        if count > 1:
            step = math.log(high / low) / (count - 1)
            # The ends are exactly what was asked for.
            betas[1:1] = [low * math.exp(k * step) for k in range(1, count - 1)]
        return betas if count > 1 else betas[:1]
    if len(span) != 1:
        raise ValueError(f"{text!r} is neither a list such as 0.01,0.1,1 nor FROM:TO:COUNT")
    return [positive(real(part), part) for part in text.split(",")]


def positive(value: float, text: str) -> float:
    """The value, if it can be a β."""
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not a finite number above 0")
    return value


def check_outputs(
    outputs: Iterable[pathlib.Path | None],
    inputs: Iterable[str | pathlib.Path] = (),
    *,
    what: str = "the table",
) -> None:
    """Raises if a file cannot be written, or would overwrite what is read."""
    read = [os.path.realpath(x) for x in inputs]
    for path in outputs:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {str(path.parent)!r}")
        if path.exists() and os.path.realpath(path) in read:
            raise InputError(f"{path}: this is {what} itself: write elsewhere")


def check_drawable(path: pathlib.Path) -> None:
    """Raises if figures cannot be written in this format."""
    from matplotlib.figure import Figure

    if file_kind(path) not in Figure().canvas.get_supported_filetypes():
        raise InputError(
            f"{path}: cannot draw a {path.suffix or 'file without extension'}: "
            "use .png, .pdf or .svg"
        )


def file_kind(path: pathlib.Path) -> str:
    """The extension without its dot."""
    return path.suffix.lower().removeprefix(".")


def write(path: pathlib.Path, fill: Callable[[IO[Any]], Any], *, binary: bool = False) -> None:
    """Writes a file that appears complete or not at all."""
    try:
        with open_whole(path, "wb" if binary else "w") as file:
            fill(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def say(lines: Sequence[str]) -> None:
    """Prints lines, whatever letters the terminal knows."""
    text = "\n".join(lines) + "\n"
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        # A terminal without Greek still gets every number.
        for sign, plain in _PLAIN.items():
            text = text.replace(sign, plain)
        text = text.encode(encoding, "replace").decode(encoding)
    sys.stdout.write(text)
    sys.stdout.flush()


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())


@contextlib.contextmanager
def without_device_warnings() -> Iterator[None]:
    """JAX remarks on accelerators that it finds and cannot use; here that is noise."""
    logger = logging.getLogger("jax")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
