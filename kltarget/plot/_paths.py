"""How the masses of modes move with β, read from whatever holds them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from kltarget.modes import mode_log_mass
from kltarget.objectives import Objective
from kltarget.targets import DiscreteTarget, solve
from kltarget.tasks import Task, as_task
from kltarget.tasks._task import likeliest_outcomes

if TYPE_CHECKING:
    import xarray as xr

    from kltarget.diagnosis import Featured

# As many probabilities are held at once when a task is solved for many β.
_MOST_AT_ONCE = 5_000_000
_NUM_BETAS = 241
# Log-odds below this are rounding, not an order of the two.
_LEVEL = 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class BetaPath:
    """Masses of modes along β under one divergence.

    Attributes:
        name: of the divergence.
        beta: coefficients in increasing order, ``[B]``.
        log_mass: of the modes, ``[B, M]``.
        keys: labels of the modes, ``[M]`` integers.
        names: what the modes are called, ``[M]``.
        log_reference: masses in the reference, ``[M]``; None where the data do not hold it.
    """

    name: str
    beta: np.ndarray
    log_mass: np.ndarray
    keys: tuple[int, ...]
    names: tuple[str, ...]
    log_reference: np.ndarray | None = None

    def column(self, key: int) -> int:
        """Where a mode is, by its label."""
        if key not in self.keys:
            raise ValueError(f"there is no mode {key}: the labels are {_listed(self.keys)}")
        return self.keys.index(key)

    def crossings(self, i: int, j: int) -> np.ndarray:
        """The β at which the modes of columns i and j change places, shape ``[K]``.

        Log-odds are interpolated linearly in 1/β, which is exact for reverse KL and modes of one
        reward each.
        """
        first, second = self.log_mass[:, i], self.log_mass[:, j]
        never = np.isneginf(first) & np.isneginf(second)
        odds = np.where(never, 0.0, first - np.where(never, 0.0, second))
        apart = np.flatnonzero(np.abs(odds) > _LEVEL)
        # Where a target has an exact zero the odds jump: the nearer side decides.
        odds, slope = np.clip(odds[apart], -700, 700), 1 / self.beta[apart]
        at = np.flatnonzero(odds[1:] * odds[:-1] < 0)
        share = odds[at] / (odds[at] - odds[at + 1])
        return 1 / (slope[at] + share * (slope[at + 1] - slope[at]))

    def level(self, beta: float, column: int) -> float:
        """Mass of a mode between two β, on the straight line of a logarithmic axis."""
        mass = np.exp(self.log_mass[:, column])
        return float(np.interp(np.log(beta), np.log(self.beta), mass))


def as_drawn(data: Any) -> Any:
    """A task's name, a table, its path or arrays as a task; anything else as it is."""
    arrays = isinstance(data, tuple) and all(
        isinstance(item, list | tuple) or hasattr(item, "shape") for item in data
    )
    # A sweep's Dataset is a mapping too.
    frame = hasattr(data, "columns") and hasattr(data, "__getitem__")
    table = (frame or isinstance(data, Mapping)) and not hasattr(data, "data_vars")
    return as_task(data) if arrays or table or isinstance(data, str | os.PathLike) else data


def path_of(
    data: Any,
    beta: ArrayLike | None = None,
    modes: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
) -> BetaPath:
    """The one path that data hold."""
    data = as_drawn(data)
    if isinstance(data, Task):
        return _of_task(as_task(data, modes=modes, labels=labels), beta)
    if beta is not None:
        raise TypeError("beta is for a Task; an Objective, a Target and a sweep have their own")
    if isinstance(data, Objective):
        data = solve(data)
    if isinstance(data, DiscreteTarget):
        return _of_target(data, modes, labels)
    if hasattr(data, "data_vars"):
        require_dims(data, "mode_mass", ("beta", "mode"))
        return _of_dataset(data)
    raise TypeError(
        f"data must be a Task, an Objective, a Target or a sweep's Dataset, got {type(data)}"
    )


def paths_of(data: Any, *options: Any) -> list[BetaPath]:
    """A path per entry of a sequence, or of a sweep over divergences; else the one there is."""
    data = as_drawn(data)
    if hasattr(data, "data_vars") and "divergence" in data.dims:
        data = [data.isel(divergence=k) for k in range(data.sizes["divergence"])]
    several = data if isinstance(data, list | tuple) else [data]
    return [path_of(item, *options) for item in several]


def path_of_featured(featured: Featured) -> BetaPath:
    """The answers' shares under a diagnosed recipe, every answer a mode of its own."""
    with np.errstate(divide="ignore"):
        log_mass = np.log(np.asarray(featured.shares))
    columns = tuple(range(len(featured.names)))
    return BetaPath("", np.asarray(featured.betas), log_mass, columns, featured.names)


def likeliest_first(featured: Featured) -> list[int]:
    """Seen answers, those of most probability under target or last policy first."""
    columns = [x for x in (featured.target, featured.now) if x is not None]
    # What is not known of an answer does not count; answers of which nothing is come last.
    return np.argsort(-np.fmax.reduce(columns)[:-1], kind="stable").tolist()


def require_dims(data: xr.Dataset, variable: str, wanted: Iterable[str]) -> None:
    """Raises a ``ValueError`` unless a variable is there, along exactly these dimensions."""
    if variable not in data:
        raise ValueError(f"the Dataset has no variable {variable!r}: it has {_listed(data)}")
    wanted, found = tuple(wanted), data[variable].dims
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{variable} has no dimension {missing[0]!r}: sweep over it")
    further = [str(name) for name in found if name not in wanted]
    if further:
        raise ValueError(
            f"{variable} varies along {_listed(further)} too: choose one entry, for instance by "
            f".isel({further[0]}=0), or average by .mean({further[0]!r})"
        )


def mode_names(
    modes: np.ndarray, labels: Sequence[str] | None, log_ref: np.ndarray
) -> dict[int, str]:
    """Each mode by the name of its outcome that the reference likes best, by its label."""
    likeliest = likeliest_outcomes(modes, log_ref)
    return {mode: str(i) if labels is None else str(labels[i]) for mode, i in likeliest.items()}


def _of_task(task: Task, beta: ArrayLike | None) -> BetaPath:
    finite = task.reward[np.isfinite(task.reward)]
    spread = float(np.ptp(finite)) or 1.0
    grid = np.geomspace(1e-2 * spread, 1e1 * spread, _NUM_BETAS) if beta is None else beta
    grid = np.sort(np.atleast_1d(np.asarray(grid, float)))
    num_parts = -(-grid.size * task.num_outcomes // _MOST_AT_ONCE)
    parts = [
        _mode_log_mass(solve(task.objective(part)).log_probs, task.modes)
        for part in np.array_split(grid, num_parts)
    ]
    log_mass, log_reference = np.concatenate(parts), _mode_log_mass(task.log_ref, task.modes)
    name, names = task.objective(1.0).divergence.name, task.mode_names
    return BetaPath(name, grid, log_mass, tuple(names), tuple(names.values()), log_reference)


def _of_target(
    target: DiscreteTarget, modes: ArrayLike | None, labels: Sequence[str] | None
) -> BetaPath:
    objective = target.objective
    log_probs = np.asarray(target.log_probs, float)
    if log_probs.ndim != 2:
        raise ValueError(
            f"the batch shape is {log_probs.shape[:-1]}, but a path has one axis: beta of shape [B]"
        )
    beta = np.broadcast_to(np.asarray(objective.beta, float), log_probs.shape[:1])
    if np.unique(beta).size < beta.size:
        raise ValueError("some beta are equal: give a path one problem per beta")
    members = np.arange(log_probs.shape[-1]) if modes is None else np.asarray(modes)
    order = np.argsort(beta)
    log_ref = np.atleast_2d(np.asarray(objective.log_ref, float))
    shared = bool((log_ref == log_ref[0]).all())
    log_reference = _mode_log_mass(log_ref[0], members) if shared else None
    log_mass = _mode_log_mass(log_probs[order], members)
    name, names = objective.divergence.title, mode_names(members, labels, log_ref[0])
    return BetaPath(name, beta[order], log_mass, tuple(names), tuple(names.values()), log_reference)


def _mode_log_mass(log_probs: Any, modes: np.ndarray) -> np.ndarray:
    return np.asarray(mode_log_mass(log_probs, modes), float)


def _of_dataset(data: xr.Dataset) -> BetaPath:
    data = data.sortby("beta")
    name = str(data["divergence"].values) if "divergence" in data else ""
    with np.errstate(divide="ignore"):
        log_mass = np.log(np.asarray(data["mode_mass"].transpose("beta", "mode"), float))
    keys = tuple(data["mode"].values.tolist())
    return BetaPath(name, data["beta"].values, log_mass, keys, dataset_mode_names(data))


def dataset_mode_names(data: xr.Dataset) -> tuple[str, ...]:
    """Names of a sweep's modes, in the order of its coordinate."""
    if "mode_label" in data.coords:
        return tuple(map(str, data["mode_label"].values))
    return tuple(f"mode {key}" for key in data["mode"].values)


def _listed(names: Iterable[Any]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:8]) + (", …" if len(shown) > 8 else "")
