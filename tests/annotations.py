"""beartype under test: what the library's annotations say of results and of fields is enforced.

Arguments are left alone: public functions take whatever becomes an array, and refuse the rest with
errors of their own. Where arrays are concerned jaxtyping's axes are checked too, those of all
fields of an object, or of all parts of a result, together.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from beartype.door import is_bearable
from jaxtyping import AbstractArray, jaxtyped


class AnnotationError(AssertionError):
    """An annotation that is not true."""


class Enforcer(importlib.abc.MetaPathFinder):
    """Has the modules of a package enforce their annotations, each as it is imported."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None, _: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != self.package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        for name, x in list(vars(module).items()):
            if getattr(x, "__module__", None) == module.__name__:
                if inspect.isfunction(x):
                    setattr(module, name, _of_result(x))
                elif inspect.isclass(x):
                    _of_class(x)


def enforce(package: str) -> None:
    """Enforces the annotations of a package that is not imported yet."""
    assert package not in sys.modules, f"{package} is imported already"
    sys.meta_path.insert(0, Enforcer(package))


def _of_class(cls: type) -> None:
    for name, x in list(vars(cls).items()):
        if inspect.isfunction(x):
            setattr(cls, name, _of_result(x))
        elif isinstance(x, property) and x.fget:
            setattr(cls, name, property(_of_result(x.fget), x.fset, x.fdel, x.__doc__))
    if dataclasses.is_dataclass(cls) and "__init__" in vars(cls):
        cls.__init__ = _of_fields(cls.__init__)


def _of_result(function: Callable[..., Any]) -> Callable[..., Any]:
    if "[" not in str(inspect.get_annotations(function).get("return", "")):
        return function

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if (hint := _array_result(function)) is not None:
            with jaxtyped("context"):
                if not is_bearable(result, hint):
                    raise AnnotationError(f"{function.__qualname__} gave {_shown(result)}: {hint}")
        return result

    return checked


def _of_fields(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if not (hints := _array_fields(type(self))):
            return
        with jaxtyped("context"):
            for name, hint in hints.items():
                if not is_bearable(x := getattr(self, name), hint):
                    raise AnnotationError(f"{type(self).__name__}.{name} is {_shown(x)}: {hint}")

    return checked


@functools.cache  # rows of a log call some functions a million times
def _array_result(function: Callable[..., Any]) -> Any:
    hint = _hints(function).get("return")
    return hint if _holds_an_array(hint) else None


@functools.cache
def _array_fields(cls: type) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    hints = {name: x for base in reversed(cls.__mro__) for name, x in _hints(base).items()}
    return {name: x for name, x in hints.items() if name in names and _holds_an_array(x)}


def _hints(annotated: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(annotated)
    except NameError:  # of a type that is imported for the type checker alone
        return {}


def _holds_an_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_holds_an_array(x) for x in typing.get_args(hint))


def _shown(x: Any) -> str:
    return str(getattr(x, "aval", None) or (getattr(x, "shape", ""), getattr(x, "dtype", type(x))))
