"""How problems that come with the package are found by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

_Task = TypeVar("_Task")


def found_by_name(kind: str, makers: Mapping[str, Callable[[], _Task]], name: str) -> _Task:
    """What is made under a name; an error that lists the names if there is no such."""
    if name not in makers:
        raise ValueError(f"there is no {kind} {name!r}: choose one of {', '.join(makers)}")
    return makers[name]()
