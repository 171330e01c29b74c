"""TRL's trainers: rewards that keep every right answer, log-probabilities in the log, live metrics.

``watch`` needs no more than TRL's signature of reward functions; the trainers need TRL itself,
``pip install "kltarget[trl]"``, and are imported when they are first used.
"""

import importlib
from typing import Any

_FILE_OF: dict[str, str] = {}
"""The file of each name; those in ``_NEEDS_TRL`` cannot be imported without TRL."""

_NEEDS_TRL: set[str] = set()

__all__ = []


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_FILE_OF[name]}")
    except ModuleNotFoundError as error:
        if _FILE_OF[name] not in _NEEDS_TRL or (error.name or "").startswith("kltarget"):
            raise
        raise ImportError(
            f'{name} needs {error.name}, which is not installed: pip install "kltarget[trl]"'
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(_FILE_OF)
