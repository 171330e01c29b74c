"""``phase_boundaries``: where in the plane of β and reward scale targets change character."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kltarget._core.numerics import double_precision
from kltarget.divergences import Divergence
from kltarget.modes import collapse_beta, flip_beta
from kltarget.objectives import Objective, mara
from kltarget.sweeps._settings import grid_of
from kltarget.tasks import ProblemLike, Task

if TYPE_CHECKING:
    import xarray

_MOST_PAIRS = 10_000


class _Boundary(NamedTuple):
    ratio: float
    kind: str
    first: str
    second: str


def phase_boundaries(
    problem: ProblemLike,
    *,
    divergence: str | Divergence | None = None,
    threshold: float | None = None,
    ref_temperature: float = 1.0,
    modes: ArrayLike | None = None,
) -> xarray.Dataset:
    """Where in the plane of β and reward scale two modes trade places, and where modes collapse.

    The target maximises ``E_π[reward_scale · reward] − beta · D(π, π_ref)``. Scaling reward and β
    together changes nothing, so every boundary is a line ``beta = ratio · reward_scale``: the
    ratios are the :func:`kltarget.flip_beta` of every two modes, and the
    :func:`kltarget.collapse_beta` of the outcomes of highest reward, at a scale of 1.

    Args:
        problem: in any form that :func:`kltarget.tasks.as_task` takes: a task, the name of one, the
            path of a table, an objective, whose beta is not used, or a pair of arrays.
        divergence: the regulariser, or its name; by default the objective's, or reverse KL.
        threshold: apply :func:`kltarget.mara` first, as :func:`sweep` does.
        ref_temperature: temperature of the reference, as in :func:`sweep`.
        modes: integer labels of the outcomes' modes, ``[A]``, as in :func:`sweep`.

    Returns:
        A dataset over the dimension ``boundary``, by decreasing ratio: ``ratio``, β over reward
        scale, in reward units per nat; ``kind``, ``"flip"`` or ``"collapse"``; ``first`` and
        ``second``, names of modes. Below a flip the first leads, above it the second. Below a
        collapse all mass is on the outcomes of highest reward, which the first names; there is no
        second. Pairs that never flip are left out, as are divergences without exact collapse.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a setting out of range, or more modes of different rewards than can be compared
            in pairs.

    Of modes that trade places several times, as only modes of unequal rewards inside can, it is the
    flip of largest ratio. An entropy bonus moves no flip of single outcomes; that of modes of
    several outcomes it moves, unless the reference spreads alike inside both.

    Example:
        >>> from kltarget import sweeps
        >>> found = sweeps.phase_boundaries("bimodal")
        >>> print(found.ratio.values.round(4), found.first.values, found.second.values)
        [0.1316] ['75'] ['25']

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817.
    """
    import xarray as xr

    if isinstance(divergence, (list, tuple)):
        raise TypeError("divergence must be one of them: call phase_boundaries for each")
    settings = {"beta": 1.0, "reward_scale": 1.0, "entropy_weight": 0.0}
    settings["ref_temperature"] = ref_temperature
    grid = grid_of(problem, modes, divergence, threshold, settings)
    if grid.shape:
        raise ValueError("threshold and ref_temperature must be single numbers")
    (regulariser,) = grid.divergences
    with double_precision():
        log_ref = grid.problem.log_ref / grid.settings["ref_temperature"]
        log_ref = log_ref - np.logaddexp.reduce(log_ref)
        reward = jnp.asarray(grid.problem.reward)
        objective = Objective(reward, jnp.asarray(log_ref), 1.0, regulariser)
        if math.isfinite(grid.settings.get("threshold", math.inf)):
            # For reverse KL its target is that of the augmented reward too, and here β is free.
            objective = mara(objective, threshold or 0.0, method="substitute")
        found = [*_flips(objective, grid.problem), *_collapse(objective, grid.problem)]
    found.sort(key=lambda x: -x.ratio)
    kinds = {"ratio": np.float64, "kind": np.str_, "first": np.str_, "second": np.str_}
    columns = {
        name: ("boundary", np.array([getattr(x, name) for x in found], kind))
        for name, kind in kinds.items()
    }
    kept = [name for name in ("threshold", "ref_temperature") if name in grid.settings]
    coordinates = {name: float(grid.settings[name]) for name in kept}
    coordinates = {"divergence": regulariser.slug, **coordinates}
    data = xr.Dataset(columns, coordinates, {"problem": grid.problem.name})
    data["ratio"].attrs = {"long_name": "β over the factor of the reward", "units": "reward/nat"}
    return data


def _flips(objective: Objective, problem: Task) -> list[_Boundary]:
    pairs = _candidates(objective, problem)
    names = problem.mode_names
    if len(pairs) > _MOST_PAIRS:
        raise ValueError(
            f"modes has {len(names):,} modes, {len(pairs):,} pairs of which may trade "
            f"places: give fewer modes, so that at most {_MOST_PAIRS:,} pairs do"
        )
    # Modes of one outcome need no sums, and labels that are indices no search.
    ratios = [
        (float(flip_beta(objective, first, second, modes=problem.modes)), first, second)
        for first, second in pairs
    ]
    return [
        _Boundary(ratio, "flip", names[first], names[second])
        for ratio, first, second in ratios
        if ratio > 0
    ]


def _candidates(objective: Objective, problem: Task) -> list[tuple[int, int]]:
    """Pairs of modes that may trade places, the one that the reference likes better second.

    A mode whose rewards are all at least those of another, and whose mass is too, leads at every β.
    """
    reward, log_ref = np.asarray(objective.reward), np.asarray(objective.log_ref)
    open_ended = bool(objective.divergence.slope_at_infinity < math.inf)
    alive = np.isfinite(reward) & (np.isfinite(log_ref) | open_ended)
    spans = []
    for mode in np.unique(problem.modes[problem.modes >= 0]).tolist():
        members = alive & (problem.modes == mode)
        if members.any():
            rewards, mass = reward[members], np.exp(log_ref[members])
            mean = (mass @ rewards) / mass.sum() if mass.sum() > 0 else -math.inf
            log_mass = np.logaddexp.reduce(log_ref[members])
            spans.append((log_mass, mean, mode, rewards.min(), rewards.max()))
    spans.sort()
    pairs = itertools.combinations(spans, 2)
    return [(low[2], high[2]) for low, high in pairs if not high[3] >= low[4]]


def _collapse(objective: Objective, problem: Task) -> list[_Boundary]:
    ratio = float(collapse_beta(objective))
    if not 0 < ratio < math.inf:
        return []
    reward, log_ref = np.asarray(objective.reward), np.asarray(objective.log_ref)
    usable = np.isfinite(log_ref) | bool(objective.divergence.slope_at_infinity < math.inf)
    best = np.flatnonzero(usable & (reward == reward[usable].max()))
    modes, mode_names = np.unique(problem.modes[best]), problem.mode_names
    if (modes >= 0).all():
        names = [mode_names[mode] for mode in modes.tolist()]
    else:
        names = [problem.labels[outcome] for outcome in best.tolist()]
    return [_Boundary(ratio, "collapse", ", ".join(names), "")]
