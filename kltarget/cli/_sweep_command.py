"""The sub-command ``kltarget sweep``."""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.page import Lines, Page
from kltarget._core.status import FAILURES
from kltarget.cli._arguments import beta_list, chosen, options_of, real, whole
from kltarget.cli._output import (
    InputError,
    Stopped,
    check_outputs,
    input_errors,
    say,
    write,
    written,
)
from kltarget.cli._problem_options import add_columns, add_problem, checked_divergence, load_problem
from kltarget.divergences.names import EXAMPLES
from kltarget.tasks import Task

if TYPE_CHECKING:
    import xarray

_MOST_BOUNDARIES = 10
_PLANE = ("beta", "reward_scale")
_AXES = (*_PLANE, "divergence", "threshold", "entropy_weight", "ref_temperature")
"""The options of which several values are an axis."""


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    sweep = commands.add_parser(
        "sweep",
        help="targets over a grid of settings, into one labelled file",
        description="Solve a problem at every combination of settings and write expected rewards, "
        "divergences, masses of modes and more as one labelled array.",
        epilog="A grid setting is a number, a list 0.01,0.1,1, or log-spaced FROM:TO:COUNT. "
        "example: kltarget sweep bimodal --beta 1e-3:10:50 --reward-scale 0.1:10:40 "
        "--out sweep.nc --plot phase.png",
    )
    add_problem(sweep)
    positive, any_sign = _one_or_more(beta_list), _one_or_more(_each(real))
    add = options_of(sweep)
    add("--beta β", "regularisation, reward units per nat", positive, required=True)
    add("--reward-scale S", "factor of the reward (default: 1)", positive, default=1.0)
    add("--threshold τ", "apply MARA above this reward; inf: leave as it is", any_sign)
    add("--entropy-weight η", "entropy bonus, for reverse-kl (default: 0)", any_sign, default=0.0)
    add("--ref-temperature T", "temperature of the reference (default: 1)", positive, default=1.0)
    add(
        "--divergence NAMES",
        f"one or a list of {', '.join(EXAMPLES)} (default: reverse-kl)",
        _one_or_more(_each(checked_divergence)),
        default="reverse-kl",
    )
    add(
        "--k K",
        "numbers of samples for pass@k (default: 1,4,16,64)",
        _each(whole),
        default=[1, 4, 16, 64],
    )
    add("--log-probs", "keep the targets themselves")
    add(
        "--out OUT.nc",
        "a netCDF file, or a zarr store if the name ends in .zarr",
        pathlib.Path,
        required=True,
    )
    add(
        "--parts FOLDER",
        "keep finished parts here; the same command goes on where it was stopped",
        pathlib.Path,
    )
    add("--plot OUT.png", "draw effective modes over the plane", pathlib.Path)
    add_columns(sweep)
    sweep.set_defaults(run=_sweep)


def _each(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [parse(part) for part in text.split(",")]


def _one_or_more(parse: Callable[[str], list[Any]]) -> Callable[[str], Any]:
    """One value is a setting, several are an axis."""

    def one_or_list(text: str) -> Any:
        values = parse(text)
        return values if len(values) > 1 else values[0]

    return one_or_list


def _sweep(arguments: argparse.Namespace) -> int:
    from kltarget import sweeps

    _check_outputs(arguments)
    task, read = load_problem(arguments)
    began = time.monotonic()
    settings = chosen(arguments, *_AXES, "k", "log_probs")
    data = None
    try:
        with input_errors(arguments.problem):
            data = sweeps.sweep(task, **settings, folder=arguments.parts, progress=True)
            boundaries = _boundaries(task, arguments)
    except KeyboardInterrupt:
        kept = "--parts FOLDER keeps what is finished"
        if arguments.parts is not None:
            kept = f"finished parts are in {arguments.parts}, the same command goes on from there"
        if data is not None:
            _save(data, arguments.out)
            kept = f"wrote {arguments.out}"
        raise Stopped(kept) from None
    took = time.monotonic() - began
    _save(data, arguments.out)

    def drawn() -> Any:
        from kltarget import plot

        return plot.phase(data, boundaries=boundaries[0]).figure

    wrote = write((arguments.plot, drawn))
    report = [*(f"{task.name}: {note}" for note in read), *_report(task, data, boundaries, took)]
    say(Page([Lines(report)]))
    say([f"wrote {arguments.out}", *wrote])
    return int(bool((data.status.values & FAILURES).any()))


def _save(data: xarray.Dataset, path: pathlib.Path) -> None:
    from kltarget import sweeps

    try:
        sweeps.save(data, path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    written.append(str(path))


def _check_outputs(arguments: argparse.Namespace) -> None:
    if arguments.out.suffix not in (".nc", ".zarr"):
        raise InputError(f"{arguments.out}: the name must end in .nc or .zarr")
    if arguments.out.suffix == ".zarr" and importlib.util.find_spec("zarr") is None:
        raise InputError("zarr stores need zarr: pip install 'kltarget[zarr]'")
    check_outputs([arguments.out], [arguments.problem], figure=arguments.plot)
    if arguments.plot is None:
        return
    swept = [name for name in _AXES if isinstance(getattr(arguments, name), list)]
    others = ", ".join(name for name in swept if name not in _PLANE).replace("_", "-")
    if others or tuple(swept) != _PLANE:
        given = f", not {others}" if others else ""
        raise InputError(f"--plot draws a plane: give several --beta and --reward-scale{given}")


def _boundaries(task: Task, arguments: argparse.Namespace) -> list[xarray.Dataset]:
    """Those of every divergence, as long as there is one problem."""
    from kltarget import sweeps

    if isinstance(arguments.threshold, list) or isinstance(arguments.ref_temperature, list):
        return []
    names = np.atleast_1d(arguments.divergence).tolist()
    given = chosen(arguments, "threshold", "ref_temperature")
    return [sweeps.phase_boundaries(task, divergence=name, **given) for name in names]


def _report(
    task: Task, data: xarray.Dataset, boundaries: list[xarray.Dataset], seconds: float
) -> list[str]:
    shape = " × ".join(
        f"{size} {axis.replace('_', ' ')}" for axis, size in data.effective_modes.sizes.items()
    )
    count = data.effective_modes.size
    low, high = float(data.effective_modes.min()), float(data.effective_modes.max())
    lines = [
        f"{task.name}: {shape or 'one point'}: {count:,} targets in {seconds:.1f} s",
        f"effective modes from {low:.3g} to {high:.3g} of {data.sizes['mode']}",
    ]
    for found in boundaries:
        name = str(found.divergence.values)
        if not found.sizes["boundary"]:
            lines.append(f"{name}: no modes trade places, none collapses exactly")
        for i in range(min(found.sizes["boundary"], _MOST_BOUNDARIES)):
            one = found.isel(boundary=i)
            what = f"everything is on “{one['first'].values}”"
            if one.kind == "flip":
                what = f"“{one['first'].values}” overtakes “{one['second'].values}”"
            lines.append(f"{name}: {what} below β = {float(one.ratio):.4g} × reward scale")
        if (more := found.sizes["boundary"] - _MOST_BOUNDARIES) > 0:
            lines.append(f"{name}: and {more:,} more boundaries")
    failed = int(np.count_nonzero(data.status.values & FAILURES))
    return [*lines, f"{failed:,} targets failed: see status"] if failed else lines
