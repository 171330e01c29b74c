"""``curve``: what policies of one parameter earn, and the KL and the diversity they pay for it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.checks import float_argument, raise_first
from kltarget._core.numerics import double_precision, safe_exp_product
from kltarget._core.versions import installed_version
from kltarget.divergences import Divergence, ForwardKL, ReverseKL
from kltarget.divergences.names import CLASSES, named
from kltarget.frontier._best_of_n import best_of_n
from kltarget.frontier._overoptimization import peak_of
from kltarget.modes import effective_modes, entropy
from kltarget.modes._labels import mode_blocks
from kltarget.modes._measures import log_mass_of_blocks
from kltarget.objectives import Objective, mara, normalize
from kltarget.targets import solve
from kltarget.tasks import ProblemLike, Task, as_task, right_outcomes

if TYPE_CHECKING:
    import xarray

_NUM_POINTS = 61
_MOST_DRAWS = 1e12
_OTHERS = ("mara", "best-of-n", "temperature")
_MEASURES = ("expected_reward", "kl", "forward_kl", "entropy", "effective_modes", "success")
_VARIABLES = {
    "expected_reward": ("expected reward", "reward"),
    "kl": ("KL(π‖π_ref)", "nats"),
    "forward_kl": ("KL(π_ref‖π)", "nats"),
    "entropy": ("entropy", "nats"),
    "effective_modes": ("effective number of modes", "1"),
    "success": ("probability of the modes", "1"),
    "gold_reward": ("expected gold reward", "reward"),
    "peak": ("parameter at which the gold reward is highest", ""),
    "peak_reward": ("highest expected gold reward", "reward"),
    "peak_kl": ("KL(π‖π_ref) of the highest gold reward", "nats"),
    "parameter": ("parameter of the family: β, n or a temperature", ""),
    "parameter_name": ("name of the family's parameter", ""),
    "family": ("family of policies", ""),
}


class _Family(NamedTuple):
    name: str
    parameter: str
    divergence: Divergence | None = None
    threshold: float | None = None


def curve(
    problem: ProblemLike,
    families: Sequence[str | Divergence] = ("reverse-kl", "forward-kl", *_OTHERS),
    *,
    beta: Sequence[float] | np.ndarray | None = None,
    n: Sequence[float] | np.ndarray | None = None,
    temperature: Sequence[float] | np.ndarray | None = None,
    threshold: float | None = None,
    modes: ArrayLike | None = None,
    gold: ArrayLike | None = None,
) -> xarray.Dataset:
    """Families of policies on one frontier of expected reward, KL and diversity.

    A family has one parameter. A divergence stands for the targets ``max_π E_π[reward] − beta·D(π,
    π_ref)`` over β, ``"mara"`` for those of reverse KL after :func:`kltarget.mara`, ``"best-of-n"``
    for :func:`best_of_n` over n, and ``"temperature"`` for ``π_ref^{1/τ}`` over temperatures τ,
    which look at no reward at all. No policy of the same ``kl`` earns more than reverse KL does,
    and none of the same ``forward_kl`` more than forward KL.

    Args:
        problem: in any form that :func:`kltarget.tasks.as_task` takes: a task, the name of one, the
            path of a table, an objective, whose beta is not used, or a pair of arrays.
        families: names of divergences such as ``"alpha:0.5"``, divergences, and the three above.
        beta: coefficients in reward units per nat, one axis; by default from 1e-3 to 1e2 times the
            rewards' range.
        n: numbers of draws, 1 or more, one axis; by default from 1 to ten times what finds a best
            outcome on average, at most 1e12.
        temperature: temperatures above 0, one axis; by default from 1 to 0.02.
        threshold: of MARA; by default the least reward of the outcomes that count as right.
        modes: integer labels of the outcomes' modes, ``[A]``, below 0 for no mode; by default the
            problem's own.
        gold: rewards of another kind, ``[A]``, for which the problem's own is a proxy: families
            maximise the proxy, and overoptimisation is where the gold reward falls again.

    Returns:
        A dataset of dimensions ``family`` and ``point`` with the variables ``expected_reward``,
        ``kl`` ``KL(π‖π_ref)``, ``forward_kl`` ``KL(π_ref‖π)``, ``entropy``, ``effective_modes`` of
        the modes and ``success``, the modes' probability, in double precision whatever the setting
        of JAX; coordinates ``parameter`` (family, point), its value, NaN behind the last point of a
        shorter family, and ``parameter_name`` (family): ``"beta"``, ``"n"`` or ``"temperature"``.
        With ``gold``, also ``gold_reward`` (family, point) and, for each family, ``peak``, the
        parameter at which the gold reward is highest between its points, NaN where that is at one
        of their ends, and ``peak_reward`` and ``peak_kl``, what it is there and ``KL(π‖π_ref)``.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an unknown family, a parameter out of range or of more than one axis, gold
            rewards of another shape or that are not finite where the reference has mass.

    Outcomes of reward ``-inf`` have no mass in targets, and drawn they cost an expected reward of
    ``-inf``. Not differentiable, and not to be called under a trace.

    Example:
        >>> import kltarget as kt
        >>> data = kt.frontier.curve("one-two", ["reverse-kl", "best-of-n"], beta=[0.2], n=[4])
        >>> print(data.expected_reward.values.round(4).tolist(), data.kl.values.round(4).tolist())
        [[0.9859], [0.7862]] [[1.0546], [0.4593]]

        A proxy that likes the third answer best, which is worthless:

        >>> import numpy as np
        >>> proxy, gold = np.array([0.0, 1.0, 1.2]), [0.0, 1.0, 0.0]
        >>> problem = (proxy, np.log([0.6, 0.3, 0.1]))
        >>> data = kt.frontier.curve(problem, ["reverse-kl", "best-of-n"], gold=gold)
        >>> print(data.peak.values.round(3).tolist(), data.peak_reward.values.round(3).tolist())
        [0.353, 3.893] [0.586, 0.527]

    References:
        Beirami et al., "Theoretical guarantees on the best-of-n alignment policy", 2024, arXiv
        2401.01879. Yang et al., "Asymptotics of Language Model Alignment", 2024, arXiv 2404.01730:
        over long sequences of independent tokens best-of-n comes as close as one likes to the
        targets of reverse KL. GX-Chen et al., 2025, arXiv 2510.20817 (MARA).
    """
    import xarray as xr

    task = as_task(problem) if modes is None else as_task(problem, modes=modes)
    given = {"beta": beta, "n": n, "temperature": temperature}
    points = {
        name: _default(name, task) if x is None else _axis(name, x) for name, x in given.items()
    }
    chosen = [_family(name, task, threshold) for name in families]
    if len({family.name for family in chosen}) < len(chosen) or not chosen:
        raise ValueError("families must name at least one family, each of them once")
    length = max(points[family.parameter].size for family in chosen)
    other = None if gold is None else _gold(gold, task)
    rows, peaks = [], []
    with double_precision():
        constants = (jnp.asarray(task.reward), jnp.asarray(task.log_ref))
        blocks = tuple(map(jnp.asarray, mode_blocks(task.modes)))
        for family in chosen:
            values = points[family.parameter]
            row = _measured(family, values, *constants, blocks) | {"parameter": values}
            if other is not None:
                policy_at = functools.partial(_log_probs, family, constants)
                row["gold_reward"], *peak = peak_of(policy_at, values, other)
                paid = _measures(policy_at(peak[0]), *constants, blocks)[_MEASURES.index("kl")]
                peaks.append([*peak, float(paid)])
            rows.append({name: _padded(x, length) for name, x in row.items()})
    axes = ("family", "point")
    table: dict[str, Any]
    table = {name: (axes, np.stack([row[name] for row in rows])) for name in rows[0]}
    if gold is not None:
        for name, x in zip(("peak", "peak_reward", "peak_kl"), np.array(peaks).T, strict=True):
            table[name] = ("family", x)
    coordinates = {
        "family": [family.name for family in chosen],
        "parameter": table.pop("parameter"),
        "parameter_name": ("family", [family.parameter for family in chosen]),
    }
    data = xr.Dataset(table, coordinates, {"problem": task.name, "kltarget": installed_version()})
    for name in (*data.data_vars, *data.coords):
        long_name, units = _VARIABLES[str(name)]
        data[name].attrs = {"long_name": long_name} | ({"units": units} if units else {})
    return data


def _family(given: str | Divergence, task: Task, threshold: float | None) -> _Family:
    if isinstance(given, Divergence):
        return _Family(given.slug, "beta", given)
    if not isinstance(given, str):
        raise TypeError(f"families holds {given!r}: give names or divergences")
    if given == "best-of-n":
        return _Family(given, "n")
    if given == "temperature":
        return _Family(given, "temperature")
    if given == "mara":
        usual = task.reward[right_outcomes(task.reward) & (task.log_ref > -np.inf)]
        level = usual.min(initial=np.inf) if threshold is None else threshold
        return _Family(given, "beta", ReverseKL(), float(level))
    if given.partition(":")[0] not in CLASSES:
        raise ValueError(
            f"families holds {given!r}, which is none of {', '.join((*_OTHERS, *CLASSES))}"
        )
    return _Family(given, "beta", named(given))


def _default(name: str, task: Task) -> np.ndarray:
    usable = np.isfinite(task.reward) & np.isfinite(task.log_ref)
    reward = task.reward[usable]
    if name == "beta":
        return (float(np.ptp(reward)) or 1.0) * np.geomspace(1e-3, 1e2, _NUM_POINTS)
    if name == "temperature":
        return np.geomspace(1.0, 0.02, _NUM_POINTS)
    best = np.logaddexp.reduce(task.log_ref[usable][reward == reward.max()])
    return np.geomspace(1.0, min(10 * np.exp(-best), _MOST_DRAWS), _NUM_POINTS)


def _axis(name: str, given: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(given, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} has shape {values.shape}: give one axis of values")
    least, rule = (1.0, "1 or more") if name == "n" else (np.nextafter(0, 1), "above 0")
    bad = ~((values >= least) & (values < np.inf))
    if bad.any():
        raise ValueError(f"{name} must be finite and {rule}, got {values[bad][0]:g}")
    return values


def _padded(x: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([x, np.full(length - x.size, np.nan)])


def _measured(
    family: _Family, values: np.ndarray, reward: Array, log_ref: Array, blocks: tuple[Array, ...]
) -> dict[str, np.ndarray]:
    """What a family earns and pays at each value of its parameter, one after the other.

    All families are measured by one program, and MARA's targets are those of reverse KL: compiling
    is what a first call waits for.
    """
    rows = []
    for x in values:
        log_probs = _log_probs(family, (reward, log_ref), x)
        rows.append(_measures(log_probs, reward, log_ref, blocks))
    return dict(zip(_MEASURES, np.array(jax.device_get(rows)).T, strict=True))


def _log_probs(family: _Family, problem: tuple[Array, Array], x: float) -> Array:
    reward, log_ref = problem
    if family.parameter == "n":
        return _best(reward, log_ref, x)
    if family.parameter == "temperature":
        return _tempered(log_ref, x)
    paid = reward
    if family.threshold is not None:
        paid = _augmented(reward, log_ref, x, family.threshold)
    return _target(family.divergence or ReverseKL(), paid, log_ref, x)


def _gold(given: ArrayLike, task: Task) -> np.ndarray:
    gold = np.asarray(float_argument(given, "gold"), np.float64)
    if gold.shape != task.reward.shape:
        raise ValueError(f"gold has shape {gold.shape} and the problem {task.reward.shape}")
    bad = ~np.isfinite(gold) & (task.log_ref > -np.inf)
    raise_first("gold", gold, bad, "must be finite where the reference has mass")
    return np.where(task.log_ref > -np.inf, gold, 0.0)


@jax.jit
def _best(reward: Array, log_ref: Array, n: ArrayLike) -> Array:
    return best_of_n(reward, log_ref, n).log_probs


@jax.jit
def _tempered(log_ref: Array, temperature: ArrayLike) -> Array:
    return normalize(log_ref / temperature)


@jax.jit
def _target(divergence: Divergence, reward: Array, log_ref: Array, beta: ArrayLike) -> Array:
    return solve(Objective(reward, log_ref, beta, divergence)).log_probs


@jax.jit
def _augmented(reward: Array, log_ref: Array, beta: ArrayLike, threshold: ArrayLike) -> Array:
    return mara(Objective(reward, log_ref, beta), threshold).reward


@jax.jit
def _measures(log_probs: Array, reward: Array, log_ref: Array, blocks: tuple[Array, ...]) -> Array:
    log_mass = log_mass_of_blocks(log_probs, blocks)
    found = {
        "expected_reward": safe_exp_product(reward, log_probs).sum(-1),
        "kl": ReverseKL()._total(log_probs, log_ref),
        "forward_kl": ForwardKL()._total(log_probs, log_ref),
        "entropy": entropy(log_probs),
        "effective_modes": effective_modes(log_mass),
        "success": jnp.exp(log_mass).sum(-1),
    }
    return jnp.stack([found[name] for name in _MEASURES])
