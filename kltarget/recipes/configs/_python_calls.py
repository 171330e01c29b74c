"""The configuration in a Python script, ``GRPOConfig(beta=0.04)``, read from its text alone."""

from __future__ import annotations

import ast
from typing import Any

_CLASSES = ("GRPOConfig", "RLOOConfig", "PPOConfig")


def config_call(text: str) -> tuple[str, dict[str, Any]]:
    """The class that a script makes its configuration of, and the arguments written there.

    Names that the script gives one literal are replaced; what else is no literal stays as its text
    after a ``$``. Unsloth's class is TRL's, after the import of Unsloth: ``unsloth.GRPOConfig``.

    Raises:
        ValueError: broken Python, or no such call.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"line {error.lineno}: broken Python: {error.msg}") from None
    except (RecursionError, MemoryError, ValueError):
        raise ValueError("nested too deep, or not Python: mend the file") from None
    calls, named, unsloth = [], {}, False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node.func) in _CLASSES:
            calls.append(node)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named.setdefault(node.targets[0].id, []).append(node.value)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [getattr(node, "module", None), *(x.name for x in node.names)]
            unsloth |= any(str(module).split(".")[0] == "unsloth" for module in modules)
    if not calls:
        raise ValueError(f"no call of {', '.join(_CLASSES[:-1])} or {_CLASSES[-1]} is in it")
    call = max(calls, key=lambda call: len(call.keywords))
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            continue
        value = keyword.value
        # One that is assigned twice is not followed.
        if isinstance(value, ast.Name) and len(named.get(value.id, ())) == 1:
            value = named[value.id][0]
        try:
            arguments[keyword.arg] = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            arguments[keyword.arg] = f"${ast.unparse(keyword.value)}"
    return f"{'unsloth.' if unsloth else ''}{_called(call.func)}", arguments


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
