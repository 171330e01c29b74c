"""How options are declared, and how their values are read."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable
from typing import Any


def options_of(command: Any) -> Callable[..., None]:
    """What adds an option to a command or a group: ``add("--top K", "outcomes to print", whole)``.

    An option without a metavar is a flag; further keywords are those of ``add_argument``.
    """

    def add(usage: str, text: str, parse: Callable[[str], Any] = str, **settings: Any) -> None:
        name, _, metavar = usage.partition(" ")
        kind = {"metavar": metavar, "type": parse} if metavar else {"action": "store_true"}
        command.add_argument(name, help=text, **kind, **settings)

    return add


def chosen(arguments: Namespace, *names: str) -> dict[str, Any]:
    """The arguments of these names, to be passed on under the same."""
    return {name: getattr(arguments, name) for name in names}


def real(text: str) -> float:
    """A number, infinite perhaps."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ArgumentTypeError(f"{text!r} is not a number")
    return value


def finite(text: str, what: str = "a finite number above 0", *, zero: bool = False) -> float:
    """A finite number above 0, or from 0 on."""
    value = real(text)
    if not 0 <= value < math.inf or (value == 0 and not zero):
        raise ArgumentTypeError(f"{text!r} is not {what}")
    return value


def whole(text: str) -> int:
    """A whole number above 0."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers above 0."""
    return tuple(whole(part) for part in text.split(","))


def beta_list(text: str) -> list[float]:
    """One β, a list of them, or log-spaced ones."""
    span = text.split(":")
    if len(span) == 3:
        low, high, count = finite(span[0]), finite(span[1]), whole(span[2])
        step = math.log(high / low) / max(count - 1, 1)
        # The ends are exactly what was asked for.
        return [low, *(low * math.exp(k * step) for k in range(1, count - 1)), high][:count]
    if len(span) != 1:
        raise ArgumentTypeError(f"{text!r} is neither a list such as 0.01,0.1,1 nor FROM:TO:COUNT")
    return [finite(part) for part in text.split(",")]


def names_of(kind: str, known: Iterable[str], text: str) -> tuple[str, ...]:
    """A list of names, all of them known."""
    chosen, known = tuple(text.split(",")), tuple(known)
    for name in chosen:
        if name not in known:
            raise ArgumentTypeError(f"there is no {kind} {name!r}: choose of {', '.join(known)}")
    return chosen
