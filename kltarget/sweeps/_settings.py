"""The grid of a sweep: its settings, its rows and the labelled data they become."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kltarget._core.versions import installed_version
from kltarget.divergences import Divergence, ReverseKL
from kltarget.divergences.names import named
from kltarget.objectives import Objective
from kltarget.tasks import Task, as_task

SETTINGS = ("threshold", "entropy_weight", "ref_temperature", "reward_scale", "beta")
"""The numeric settings in the order of their dimensions; the last ones vary fastest."""

_ENTRIES_AT_A_TIME = 2**18


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Every combination of settings, as rows in C order.

    Attributes:
        problem: what is solved.
        divergences: the regularisers.
        settings: the values of each numeric setting, float64 ``[n]``, or ``[]`` if it is but a
            number; without a threshold there is none.
        several_divergences: whether the divergence is a dimension.
        k: numbers of samples, int32 ``[K]``.
        log_probs: whether the targets themselves are kept.
        chunk_rows: rows solved at a time.
    """

    problem: Task
    divergences: Sequence[Divergence]
    settings: Mapping[str, np.ndarray]
    several_divergences: bool
    k: np.ndarray
    log_probs: bool
    chunk_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the numeric settings that are swept over."""
        return tuple(x.size for x in self.settings.values() if x.ndim)

    @property
    def num_rows(self) -> int:
        """Number of rows of each divergence."""
        return math.prod(self.shape)

    @property
    def used(self) -> frozenset[str]:
        """The settings, and other things, that the compiled program has to compute with."""
        neutral = {"entropy_weight": 0, "ref_temperature": 1}
        used = {name for name, x in neutral.items() if np.any(self.settings[name] != x)}
        used |= {"threshold"} & self.settings.keys()
        return frozenset(used | {"log_probs"} if self.log_probs else used)

    @property
    def parts(self) -> list[tuple[int, slice]]:
        """What is computed at a time, as the number of a divergence and some of its rows."""
        starts = range(0, self.num_rows, self.chunk_rows)
        return [
            (d, slice(start, min(start + self.chunk_rows, self.num_rows)))
            for d in range(len(self.divergences))
            for start in starts
        ]

    def rows(self, part: slice) -> dict[str, np.ndarray]:
        """The settings of some rows, each ``[N]``."""
        size = part.stop - part.start
        axes = iter(np.unravel_index(np.arange(part.start, part.stop), self.shape or (1,)))
        named = self.settings.items()
        return {name: x[next(axes)] if x.ndim else np.full(size, x) for name, x in named}

    def description(self) -> dict[str, Any]:
        """All that the numbers depend on, as JSON has it."""
        return {
            "problem": self.problem.name,
            "problem's numbers and modes": _digest(self.problem),
            "divergence": [one.slug for one in self.divergences],
            **{name: x.tolist() for name, x in self.settings.items()},
            "k": self.k.tolist(),
            "log_probs": self.log_probs,
            "chunk_rows": self.chunk_rows,
            "kltarget": installed_version(),
            "jax": jax.__version__,
            "device": jax.devices()[0].platform,
        }


def _digest(problem: Task) -> str:
    """Equal for equal numbers and modes alone."""
    parts = (problem.reward, problem.log_ref, problem.modes.astype(np.int32))
    return hashlib.sha256(b"".join(x.tobytes() for x in parts)).hexdigest()


def grid_of(
    problem: Any,
    modes: Any,
    divergence: Any,
    threshold: Any,
    settings: Mapping[str, Any],
    k: Any = 1,
    log_probs: bool = False,
    chunk_rows: int | None = None,
) -> Grid:
    """Checks the settings and lays them out."""
    task = as_task(problem, modes=modes)
    if divergence is None:
        divergence = problem.divergence if isinstance(problem, Objective) else ReverseKL()
    several = isinstance(divergence, (list, tuple))
    divergences = _divergences(divergence if several else [divergence])
    values = {} if threshold is None else {"threshold": _thresholds(threshold, task)}
    for name in SETTINGS[1:]:
        values[name] = _values(name, settings[name], least_excluded=name != "entropy_weight")
    others = [one.slug for one in divergences if not isinstance(one, ReverseKL)]
    if others and np.any(values["entropy_weight"] != 0):
        raise ValueError(
            "entropy_weight needs the reverse KL, with which an entropy bonus is a reverse KL to "
            f"another reference; with {others[0]} no closed form is at hand"
        )
    counts = np.atleast_1d(np.asarray(k))
    if counts.ndim > 1 or not np.issubdtype(counts.dtype, np.integer) or (counts < 1).any():
        raise ValueError(f"k must be whole numbers above 0, got {k!r}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be 1 or more, got {chunk_rows}")
    num_rows = math.prod(x.size for x in values.values())
    most = chunk_rows or max(1, _ENTRIES_AT_A_TIME // task.num_outcomes)
    if chunk_rows is None:
        # Chunks of one size, so that none is padded by much.
        most = -(-num_rows // -(-num_rows // most))
    return Grid(task, divergences, values, several, counts.astype(np.int32), bool(log_probs), most)


def _divergences(given: Sequence[Any]) -> list[Divergence]:
    """Divergences from names or instances, all of different names."""
    if not given:
        raise ValueError("divergence has no entries")
    divergences = []
    for one in given:
        if not isinstance(one, str | Divergence):
            raise TypeError(
                "divergence must be a kltarget.Divergence or a name such as 'forward-kl', "
                f"got {one!r}"
            )
        try:
            divergences.append(named(one) if isinstance(one, str) else one)
        except ValueError as error:
            raise ValueError(f"divergence: {error}") from None
    names = [one.slug for one in divergences]
    if len(set(names)) < len(names):
        raise ValueError(f"divergence names one twice: {', '.join(names)}")
    return divergences


def _values(name: str, given: Any, least_excluded: bool) -> np.ndarray:
    try:
        x = np.array(given, np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be a number or a sequence of numbers, got {given!r}"
        ) from None
    if x.ndim > 1 or not x.size:
        raise ValueError(f"{name} has shape {x.shape}: give a number or a sequence of numbers")
    bad = ~(np.isfinite(x) & ((x > 0) if least_excluded else (x >= 0)))
    if bad.any():
        rule = "above 0" if least_excluded else "0 or more"
        raise ValueError(f"{name} must be {rule} and finite, got {x[bad].flat[0]:g}")
    return x


def _thresholds(given: Any, problem: Task) -> np.ndarray:
    # Nothing reaches a threshold of infinity, which stands for "as it is" among others.
    several = isinstance(given, (list, tuple))
    x = np.array([np.inf if t is None else t for t in given] if several else given, np.float64)
    if x.ndim > 1 or not x.size:
        raise ValueError(f"threshold has shape {x.shape}: give a number or a sequence of numbers")
    best = problem.reward[np.isfinite(problem.log_ref)].max()
    bad = np.isnan(x) | ((x > best) & (x < np.inf))
    if bad.any():
        raise ValueError(
            f"threshold {x[bad].flat[0]:g} is above the reward of every outcome with reference "
            f"mass, at most {best:g}; None leaves the reward as it is"
        )
    return x
