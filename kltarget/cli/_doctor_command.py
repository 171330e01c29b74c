"""The sub-command ``kltarget doctor``: whether this installation works, and what it lacks."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import platform
import re
import sys
from typing import Any

import jax
import numpy as np
from packaging.requirements import Requirement

from kltarget import targets
from kltarget._core.numerics import double_precision
from kltarget._core.page import Heading, Lines, Page, Table
from kltarget.cli._compiled_programs import kept_in
from kltarget.cli._output import say
from kltarget.divergences import Alpha, ForwardKL, ReverseKL
from kltarget.objectives import Objective

_FOR_MAKING = ("test", "lint", "docs", "bench")
"""Extras for the project itself, which users need not have."""

_REFERENCE = (0.4, 0.3, 0.15, 0.1, 0.05)
_REWARD = (0.1, 0.5, 1.0, 0.9, 0.3)
_BETA = 0.5
# Each to 16 digits, found at 50: roots of the normalisation, evaluated with mpmath.
_TARGETS = {
    "ReverseKL": (
        *(0.15717068403933254, 0.2623423425665193, 0.35656021131697363),
        *(0.19461787355279345, 0.02930888852438111),
    ),
    "ForwardKL": (
        *(0.18369044113721006, 0.2177737393523871, 0.3972704175719609),
        *(0.173137218343313, 0.028128183595128923),
    ),
    "Alpha(0.5)": (
        *(0.17090558545100218, 0.23500197142488433, 0.37809622160520795),
        *(0.1877241423416642, 0.028272079177241345),
    ),
    "Alpha(2)": (0.124, 0.333, 0.3165, 0.191, 0.0355),
}
_MOST_EPS = 32


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    command = commands.add_parser(
        "doctor",
        help="versions, extras, devices, and a self-test of solve",
        description="Say which versions are installed, which extras are there and how to get the "
        "others, which devices JAX finds, and whether solve gives its stored answers here.",
        epilog="Exit codes: 0 fine, 1 the self-test failed.",
    )
    command.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    needed, extras = _requirements()
    tested = _self_test()
    passed = all(error <= _MOST_EPS for *_, error in tested)
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    rows = [(name, _version(name) or "missing") for name in needed]
    page = Page([Heading(f"kltarget {_version('kltarget')}", 1), Lines([python, *_devices()])])
    page.add(Heading("Packages"), Table([("package", "version"), *rows], "ll"))
    page.add(
        Heading("Extras"), Table([("extra", "", "packages"), *map(_extra, extras.items())], "lll")
    )
    listed = [
        (divergence, dtype, f"{error:.1f} eps", "ok" if error <= _MOST_EPS else "WRONG")
        for divergence, dtype, error in tested
    ]
    page.add(
        Heading("Self-test"),
        Lines(["log-probabilities of solve beside stored ones, in units of rounding"]),
        Table([("divergence", "dtype", "error", ""), *listed], "llrl"),
        Lines(["", "All is well." if passed else "solve is wrong on this machine: please report."]),
    )
    say(page)
    return 0 if passed else 1


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that are needed always, and those of every extra."""
    always, extras = [], {}
    for text in importlib.metadata.requires("kltarget") or ():
        requirement = Requirement(text)
        named = re.search(r"extra *== *['\"]([\w-]+)", str(requirement.marker or ""))
        if named is None:
            always.append(requirement.name)
        elif named[1] not in _FOR_MAKING:
            extras.setdefault(named[1], []).append(requirement.name)
    return always, extras


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _extra(extra: tuple[str, list[str]]) -> tuple[str, str, str]:
    name, packages = extra
    versions = {package: _version(package) for package in packages}
    if all(versions.values()):
        return name, "present", ", ".join(f"{x} {version}" for x, version in versions.items())
    lacking = ", ".join(x for x, version in versions.items() if version is None)
    return name, "missing", f'{lacking}: pip install "kltarget[{name}]"'


def _devices() -> list[str]:
    try:
        devices = jax.devices()
    except RuntimeError as error:  # a driver that is there and does not start
        return [f"no device: {' '.join(str(error).split())}"]
    kinds = [f"{device.platform} ({device.device_kind})" for device in devices]
    lines = [f"JAX computes on {', '.join(dict.fromkeys(kinds))}: {len(devices)} in all"]
    if jax.dtypes.canonicalize_dtype(np.float64) == np.float64:
        lines.append("64-bit floats are on (JAX_ENABLE_X64)")
    folder = kept_in()
    lines.append(f"compiled programs are kept in {folder or 'no folder'}")
    encoding = sys.stdout.encoding or "unknown"
    return [*lines, f"the terminal's letters: {encoding}"]


def _self_test() -> list[tuple[str, str, float]]:
    """Errors of log-probabilities in units of eps·(1 + |log p|), for each divergence and dtype."""
    divergences = {
        "ReverseKL": ReverseKL(),
        "ForwardKL": ForwardKL(),
        "Alpha(0.5)": Alpha(0.5),
        "Alpha(2)": Alpha(2.0),
    }
    found = []
    for dtype in (np.float32, np.float64):
        wide = double_precision() if dtype is np.float64 else contextlib.nullcontext()
        with wide:
            reward, log_ref = np.array(_REWARD, dtype), np.log(np.array(_REFERENCE)).astype(dtype)
            for name, divergence in divergences.items():
                objective = Objective(reward, log_ref, dtype(_BETA), divergence)
                solved = targets.solve(objective)
                exact = np.log(np.array(_TARGETS[name]))
                errors = np.abs(np.asarray(solved.log_probs, np.float64) - exact)
                worst = float((errors / (1 + np.abs(exact))).max() / np.finfo(dtype).eps)
                found.append((name, np.dtype(dtype).name, worst if worst == worst else np.inf))
    return found
