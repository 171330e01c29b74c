"""Arrays of a sweep as labelled data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.versions import installed_version

if TYPE_CHECKING:
    import xarray

    from kltarget.sweeps._settings import Grid

_COORDINATES = {
    "divergence": ("regulariser D(π, π_ref)", ""),
    "threshold": ("outcomes of this reward or more are made equally probable (MARA)", "reward"),
    "entropy_weight": ("weight of the entropy bonus", "reward/nat"),
    "ref_temperature": ("temperature of the reference", "1"),
    "reward_scale": ("factor of the reward", "1"),
    "beta": ("coefficient of the regulariser", "reward/nat"),
    "seed": ("number of the random key", "1"),
    "mode": ("label of the mode", "1"),
    "mode_label": ("the mode's outcome that the reference likes best", ""),
    "k": ("number of samples", "1"),
    "outcome": ("index of the outcome", "1"),
    "outcome_label": ("name of the outcome", ""),
}
_VARIABLES = {
    "expected_reward": ("expected reward, before its factor", "reward"),
    "reverse_kl": ("KL(π‖π_ref)", "nats"),
    "forward_kl": ("KL(π_ref‖π)", "nats"),
    "entropy": ("entropy", "nats"),
    "effective_modes": ("effective number of modes", "1"),
    "mode_mass": ("probability of the mode", "1"),
    "pass_at_k": ("probability that one of k samples is in a mode", "1"),
    "value": ("maximum of the objective", "reward"),
    "status": ("kltarget.Status bits", "1"),
    "log_probs": ("log-probability", "nats"),
    "total_variation": ("total variation of the fine-tuned policy from the target", "1"),
    "reverse_kl_to_target": ("KL(π‖π*) of the fine-tuned policy π", "nats"),
    "forward_kl_to_target": ("KL(π*‖π) of the fine-tuned policy π", "nats"),
    "tuned_expected_reward": ("expected reward of the fine-tuned policy", "reward"),
    "tuned_effective_modes": ("effective number of modes of the fine-tuned policy", "1"),
    "training_status": ("kltarget.training.RunStatus of the fine-tuning", "1"),
}
_OWN_AXIS = {"mode_mass": "mode", "pass_at_k": "k", "log_probs": "outcome"}


def frame(grid: Grid) -> dict[str, Any]:
    """What labels the arrays of a grid, as JSON has it."""
    problem = grid.problem
    modes = problem.mode_names
    return {
        "problem": problem.name,
        "divergence": [one.slug for one in grid.divergences],
        "several_divergences": grid.several_divergences,
        "settings": {name: x.tolist() for name, x in grid.settings.items()},
        "mode": list(modes),
        "mode_label": list(modes.values()),
        "k": grid.k.tolist(),
        "outcome_label": list(problem.labels) if grid.log_probs else [],
        "kltarget": installed_version(),
    }


_MOST_LISTED = 8


def dataset(
    frame: Mapping[str, Any], settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> xarray.Dataset:
    """Labels arrays ``[D, N, …]`` over divergences and rows."""
    import xarray as xr

    values = {name: np.asarray(x, np.float64) for name, x in frame["settings"].items()}
    names = frame["divergence"]
    sizes = {"divergence": len(names)} if frame["several_divergences"] else {}
    sizes |= {name: x.size for name, x in values.items() if x.ndim}
    coordinates: dict[str, Any] = {
        "divergence": ("divergence", names) if frame["several_divergences"] else names[0],
        **{name: (name, x) if x.ndim else float(x) for name, x in values.items()},
        "mode": ("mode", np.array(frame["mode"], np.int32)),
        "mode_label": ("mode", frame["mode_label"]),
        "k": ("k", np.array(frame["k"], np.int32)),
    }
    variables = {}
    for name in filter(arrays.__contains__, _VARIABLES):
        x = arrays[name]
        own = [_OWN_AXIS.get(name, "seed")] if x.ndim > 2 else []
        variables[name] = ([*sizes, *own], x.reshape((*sizes.values(), *x.shape[2:])))
        for axis in own:
            coordinates.setdefault(axis, (axis, np.arange(x.shape[2], dtype=np.int32)))
    if "outcome" in coordinates:
        coordinates["outcome_label"] = ("outcome", frame["outcome_label"])
    attributes = {name: frame[name] for name in ("problem", "kltarget")}
    # What is swept stands in the coordinates, and a page of numbers would hide the rest.
    short = {
        name: f"{len(x)} values, see the coordinate"
        if name in coordinates and isinstance(x, list) and len(x) > _MOST_LISTED
        else x
        for name, x in settings.items()
    }
    attributes["settings"] = json.dumps(short, ensure_ascii=False)
    data = xr.Dataset(variables, coordinates, attributes)
    for name, (long_name, units) in (_COORDINATES | _VARIABLES).items():
        if name in data.variables:
            data[name].attrs["long_name"] = long_name
            if units:
                data[name].attrs["units"] = units
    return data
