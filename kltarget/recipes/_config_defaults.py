"""Defaults of a configuration, read from its file without running it."""

from __future__ import annotations

import ast
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ABSENT = "absent"
"""What stands for the default of a key that is not there."""

_FIELD_MAKERS = ("field", "Field")
_Fields = Mapping[str, tuple[ast.expr, ast.expr | None]]


def default_of(key: str, places: Iterable[tuple[pathlib.Path, str]]) -> Any:
    """The default of a key, such as ``"beta"`` or ``"algorithm.kl_ctrl.kl_coef"``.

    Args:
        key: its parts, with dots between them.
        places: files, and the class that holds the defaults in each: a dataclass or a pydantic
            model, whose fields lead to other classes of the file. Without a class, a Python file is
            one that adds arguments to a parser, any other is YAML.

    Returns:
        The default, of the first place that has one. What is not a literal, as it is written.
    """
    for path, owner in places:
        if path.suffix != ".py":
            found = _entry(_yaml(path), key.split("."))
        elif owner:
            found = _field_default(_classes(path), owner, key.split("."))
        else:
            found = _arguments(path).get(_dashless(key), ABSENT)
        if found is not ABSENT:
            return found
    return ABSENT


@functools.lru_cache(maxsize=8)
def _yaml(path: pathlib.Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise ImportError(
            f"{path.name} is YAML, which PyYAML reads: pip install pyyaml, or 'kltarget[config]'"
        ) from None
    return yaml.safe_load(path.read_text("utf-8"))


def _entry(document: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if not isinstance(document, dict) or part not in document:
            return ABSENT
        document = document[part]
    return document


@functools.lru_cache(maxsize=8)
def _parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _classes(path: pathlib.Path) -> dict[str, ast.ClassDef]:
    return {x.name: x for x in _parsed(path).body if isinstance(x, ast.ClassDef)}


def _fields(classes: Mapping[str, ast.ClassDef], owner: str) -> _Fields:
    """Annotation and value of each field, those of base classes in the file with them."""
    fields: dict[str, tuple[ast.expr, ast.expr | None]] = {}
    bases = [x.id for x in classes[owner].bases if isinstance(x, ast.Name) and x.id in classes]
    for base in reversed(bases):
        fields |= _fields(classes, base)
    for node in classes[owner].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = (node.annotation, node.value)
    return fields


def _field_default(classes: Mapping[str, ast.ClassDef], owner: str, parts: Sequence[str]) -> Any:
    first, *rest = parts
    if owner not in classes or first not in (fields := _fields(classes, owner)):
        return ABSENT
    annotation, value = fields[first]
    default = _value(value)
    if not rest or default is None:
        return default
    named = [name for name in _names(annotation) if name in classes]
    inner = (_field_default(classes, name, rest) for name in named)
    return next((found for found in inner if found is not ABSENT), ABSENT)


def _names(annotation: ast.expr) -> list[str]:
    """The names in an annotation, which may be quoted."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    return [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)]


def _value(node: ast.expr | None) -> Any:
    """A default: a literal, that of a ``field(default=…)``, or else its source."""
    if node is None:
        return ABSENT
    if isinstance(node, ast.Call) and _called(node) in _FIELD_MAKERS:
        given = {word.arg: word.value for word in node.keywords}
        if "default" in given or node.args:
            return _value(given.get("default") or node.args[0])
        factory = given.get("default_factory")
        if factory is None:
            return ABSENT
        return _value(factory.body) if isinstance(factory, ast.Lambda) else ast.unparse(factory)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _called(call: ast.Call) -> str:
    name = call.func
    return name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")


@functools.lru_cache(maxsize=8)
def _arguments(path: pathlib.Path) -> dict[str, Any]:
    """The defaults of arguments that are added to parsers, by name without dashes."""
    defaults: dict[str, Any] = {}
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Call) and _called(node) == "add_argument":
            given = {word.arg: word.value for word in node.keywords}
            action = _value(given["action"]) if "action" in given else None
            unsaid = {"store_true": False, "store_false": True}.get(str(action))
            default = _value(given["default"]) if "default" in given else unsaid
            names = [x.value for x in node.args if isinstance(x, ast.Constant)]
            defaults |= {_dashless(str(name)): default for name in names}
    return defaults


def _dashless(name: str) -> str:
    return name.lstrip("-").replace("-", "_")
