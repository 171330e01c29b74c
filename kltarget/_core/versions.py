"""Which version of this package is running."""

from __future__ import annotations

import importlib.metadata


def installed_version() -> str:
    """The version of this package, ``"unknown"`` in a checkout that is not installed."""
    try:
        return importlib.metadata.version("kltarget")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
