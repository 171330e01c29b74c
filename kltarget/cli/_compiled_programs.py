"""Keeps what JAX compiled for the next call of the command: most of a first call's time."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import jax

_MOST = 4000
"""Files that are kept, two to a program of some 15 kB."""


def keep_compiled_programs() -> None:
    """Has JAX keep compiled programs in the user's cache, unless its own settings say where.

    ``--no-cache`` or ``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off. For the command alone: a
    library leaves the settings of its caller as they are.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] or not settings["jax_enable_compilation_cache"]:
        return
    folder = _user_cache() / "kltarget" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _trim(folder)
    except (OSError, RuntimeError):  # no home, or none to write to
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def kept_in() -> str | None:
    """The folder that compiled programs are kept in, if they are."""
    return jax.config.values["jax_compilation_cache_dir"]


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _machine() -> str:
    """Names what programs are compiled for: homes are shared between unlike processors."""
    processor = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((x for x in lines if x.startswith(("flags", "Features"))), processor)
    compiler = importlib.metadata.version("jaxlib")
    made_for = f"{platform.machine()} {processor} {jax.__version__} {compiler}"
    return hashlib.sha256(made_for.encode()).hexdigest()[:16]


def _trim(folder: Path) -> None:
    """Removes the older half of too many files; another process may be doing the same."""
    with os.scandir(folder) as entries:
        files = [entry.path for entry in entries if entry.is_file()]
    if len(files) <= _MOST:
        return
    ages = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            ages[file] = os.stat(file).st_mtime
    for file in sorted(ages, key=ages.__getitem__)[: len(files) - _MOST // 2]:
        Path(file).unlink(missing_ok=True)
