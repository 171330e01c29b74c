"""Rooms whose files are loaded when a name of theirs is first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def loaded_on_use(room: str, files: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a room, by the names that it has of each of its files.

    Files that are named without an underscore may be asked for themselves.
    """
    file_of = {name: file for file, names in files.items() for name in names}

    def found(name: str) -> Any:
        if name in file_of:
            value = getattr(importlib.import_module(f"{room}.{file_of[name]}"), name)
            setattr(sys.modules[room], name, value)
            return value
        if name in files:
            return importlib.import_module(f"{room}.{name}")
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    return found
