"""Dataclasses as JSON, which has no infinities, and back."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from kltarget._core.files import open_whole


class Record:
    """A dataclass that can be written as JSON and read back by the types of its fields."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python for ``json``; numbers that are not finite become strings."""
        return plain(dataclasses.asdict(typing.cast(Any, self)))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave, read from JSON perhaps."""
        return restored(cls, content)

    def to_json(self) -> str:
        """Everything as JSON; what is not finite is a string."""
        return json_text(self.to_dict())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes :meth:`to_json` to a file, which appears whole or not at all."""
        with open_whole(path) as file:
            file.write(self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what :meth:`save` wrote."""
        with open(path, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))


def json_text(content: Any, indent: int | None = None) -> str:
    """Strict JSON, with a line break at its end."""
    text = json.dumps(plain(content), indent=indent, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def plain(x: Any) -> Any:
    """Nested content for ``json``: arrays as lists, what is not finite as a string."""
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, np.ndarray):
        return plain(x.tolist())
    if isinstance(x, float) and not np.isfinite(x):
        return str(x)
    return _address(x) if callable(x) else x


def _address(function: Any) -> str:
    """Where a function is found again, ``module:name``; of one in a function its name.

    What wraps another in an object of its own is ``module:Class(module:name)``.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", None) or "__main__"
    if not hasattr(function, "__qualname__") and hasattr(function, "__wrapped__"):
        return f"{module}:{name}({_address(function.__wrapped__)})"
    return f"{module}:{name}"


def _found_again(address: str) -> Any:
    """The function of an address. Nothing is imported: a file must not say what is run."""
    if address.endswith(")"):
        outer, _, inner = address.removesuffix(")").partition("(")
        return _found_again(outer)(_found_again(inner))
    module, _, name = address.partition(":")
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(
            f"{address!r} is a function that is not there: import {module} first, and save none "
            "that has no name in its module"
        )
    return found


def restored(kind: Any, x: Any) -> Any:
    """What :func:`plain` was given, by its type; names that the type lacks are left out."""
    if kind is Any or kind is float:
        if isinstance(x, list):
            return [restored(kind, value) for value in x]
        if isinstance(x, dict):
            return {name: restored(kind, value) for name, value in x.items()}
        return float(x) if x in ("nan", "inf", "-inf") else x
    if kind is np.ndarray:
        return np.asarray(restored(Any, x))
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        fields = typing.get_type_hints(kind)
        known = {name: restored(of, x[name]) for name, of in fields.items() if name in x}
        return typing.cast(Any, kind)(**known)
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if isinstance(x, str) and ":" in x and any(_is_function(one) for one in of):
            return _found_again(x)
        return None if x is None else restored(of[0], x)
    if origin is dict:
        return {name: restored(of[1], value) for name, value in x.items()}
    if origin is list or (origin is tuple and of[-1] is Ellipsis):
        return origin(restored(of[0], value) for value in x)
    if origin is tuple:
        return tuple(restored(one, value) for one, value in zip(of, x, strict=True))
    return x


def _is_function(kind: Any) -> bool:
    return typing.get_origin(kind) is Callable
