"""What is explored: one problem with names, and the ranges of its sliders."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kltarget._core.distances import normalised
from kltarget._core.numerics import double_precision
from kltarget.divergences import Divergence
from kltarget.divergences.names import CLASSES, named
from kltarget.objectives import Objective
from kltarget.plot._target_figure import counts_upwards
from kltarget.tasks import Task, as_task, names

MOST_OUTCOMES = 20_000
"""More cannot be solved and drawn anew as fast as a slider moves."""

MOST_BARS = 12
_MOST_POSITIONS = 1000
_MOST_THRESHOLDS = 24

_ROWS, _NEAR = 4096, 16
_WIDEST = math.asinh(700 / _NEAR)

DIVERGENCES = (
    "reverse-kl",
    "forward-kl",
    "jensen-shannon",
    "alpha:0.5",
    "chi-squared",
    "chi-squared-kl",
    "total-variation",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A problem over ``A`` outcomes and where its sliders start and end.

    Attributes:
        task: what is explored; its outcomes have modes.
        log_ref: its reference, float64 ``[A]``, normalised to the last digit.
        pair: labels of the two modes whose reference odds can be changed; None where there are
            fewer than two that the reference can produce.
        beta_decades: exponents of ten between which β moves.
        beta: β to start from.
        divergences: what there is to choose from, by name; the first is the start.
    """

    task: Task
    log_ref: np.ndarray
    pair: tuple[int, int] | None
    beta_decades: tuple[int, int]
    beta: float
    divergences: dict[str, Divergence]

    def members(self, which: int) -> np.ndarray:
        """Which outcomes are in the first (0) or second (1) mode of the pair, booleans ``[A]``."""
        return self.task.modes == (self.pair or (-2, -2))[which]

    @property
    def start(self) -> dict[str, Any]:
        """Where the sliders start; None for the reference's own odds and for no MARA."""
        return {
            "divergence": next(iter(self.divergences)),
            "beta": self.beta,
            "reward_scale": 1.0,
            "odds": None,
            "threshold": None,
        }

    def to_json(self) -> dict[str, Any]:
        """What the page's script needs to solve and draw, as JSON can hold it."""
        task, labels = self.task, tuple(map(str, self.task.labels))
        in_order = MOST_BARS < len(labels) <= _MOST_POSITIONS and counts_upwards(labels)
        possible = (self.log_ref > -np.inf) & np.isfinite(task.reward)
        return {
            "name": task.name,
            "description": task.description,
            "labels": labels,
            "log_ref": _numbers(self.log_ref),
            "reward": _numbers(task.reward),
            "modes": task.modes.tolist(),
            "pair": self.pair,
            "pair_names": self.pair and [_mode_name(task, mode, in_order) for mode in self.pair],
            "positions": [float(label) for label in labels] if in_order else None,
            "beta_decades": self.beta_decades,
            "thresholds": _thresholds(task.reward[possible]),
            "divergences": [
                (name, x.title, _table(x), _code(x)) for name, x in self.divergences.items()
            ],
            "source": _source(task),
            "start": self.start,
            "most_bars": MOST_BARS,
        }


def setup_of(
    problem: Any,
    *,
    labels: Sequence[str] | None = None,
    modes: ArrayLike | None = None,
    pair: tuple[int, int] | None = None,
    beta: float | None = None,
    divergences: Sequence[str | Divergence] | None = None,
) -> Setup:
    """What ``explore`` and ``page`` are given, checked and completed."""
    objective = problem if isinstance(problem, Objective) else None
    if objective is not None and objective.batch_shape:
        raise ValueError(
            f"explore one problem: the objective has batch shape {objective.batch_shape}"
        )
    task = as_task(problem, modes=modes, labels=labels)
    if task.num_outcomes > MOST_OUTCOMES:
        raise ValueError(
            f"{task.num_outcomes:,} outcomes are more than the {MOST_OUTCOMES:,} that can be drawn "
            "anew at every move: keep those that matter and merge the others into one"
        )
    possible = (task.log_ref > -np.inf) & np.isfinite(task.reward)
    if not possible.any():
        raise ValueError("no outcome has both a finite reward and reference mass")
    span = float(np.ptp(task.reward[possible])) or 1.0
    # The logarithm of a power of ten may miss the whole number by its rounding.
    exponent = round(math.log10(span), 9)
    if beta is None:
        # A float32 is meant as the shortest number that it stands for.
        beta = float(f"{0.1 * span:.1g}" if objective is None else str(np.asarray(objective.beta)))
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be above 0 and finite, got {beta}")
    return Setup(
        task=task,
        log_ref=normalised(task.log_ref),
        pair=_checked_pair(pair, task.modes, possible) if pair else _pair(task),
        beta_decades=(
            min(math.floor(exponent) - 3, math.floor(math.log10(beta))),
            max(math.ceil(exponent) + 1, math.ceil(math.log10(beta))),
        ),
        beta=float(beta),
        divergences=_choices(divergences, objective and objective.divergence),
    )


def _source(task: Task) -> str | None:
    """The code that has the task, where it is one that is shipped and nothing of it is changed."""
    if task.name not in names():
        return None
    own = as_task(task.name)
    fields = ("reward", "log_ref", "modes", "labels")
    same = all(np.array_equal(getattr(task, field), getattr(own, field)) for field in fields)
    return f"kt.tasks.as_task({task.name!r})".replace("'", '"') if same else None


def _code(divergence: Divergence) -> str | None:
    """What makes the divergence; None for one of the user's own."""
    if type(divergence) not in CLASSES.values():
        return None
    return f"kt.{type(divergence).__name__}({divergence.slug.partition(':')[2]})"


def _choices(
    divergences: Sequence[str | Divergence] | None, first: Divergence | None
) -> dict[str, Divergence]:
    if divergences is None:
        divergences = DIVERGENCES if first is None else (first, *DIVERGENCES)
    given = [named(x) if isinstance(x, str) else x for x in divergences]
    if not given:
        raise ValueError("divergences is empty: name at least one, such as 'reverse-kl'")
    chosen: dict[str, Divergence] = {}
    for divergence in given:
        if type(chosen.setdefault(divergence.slug, divergence)) is not type(divergence):
            raise ValueError(f"two divergences are called {divergence.slug!r}: rename one")
    return chosen


def _thresholds(reward: np.ndarray) -> list[float]:
    """Rewards above the lowest, which would make every outcome a good one."""
    stops = np.unique(reward)
    if stops.size > _MOST_THRESHOLDS + 1:
        stops = np.linspace(stops[0], stops[-1], _MOST_THRESHOLDS + 1)
    return (stops[1:] if stops.size > 1 else stops).tolist()


def _pair(task: Task) -> tuple[int, int] | None:
    """The likeliest mode, and of the best of the others the least likely."""
    known = {}
    counted = (task.modes >= 0) & (task.log_ref > -np.inf) & np.isfinite(task.reward)
    for mode in np.unique(task.modes[counted]).tolist():
        members = task.modes == mode
        known[mode] = task.reward[members].max(), np.exp(task.log_ref[members]).sum()
    if len(known) < 2:
        return None
    first = max(known, key=lambda mode: known[mode][1])
    others = (mode for mode in known if mode != first)
    return first, min(others, key=lambda mode: (-known[mode][0], known[mode][1]))


def _checked_pair(
    pair: tuple[int, int], modes: np.ndarray, possible: np.ndarray
) -> tuple[int, int]:
    first, second = map(int, pair)
    for mode in (first, second):
        if mode < 0 or not (possible & (modes == mode)).any():
            raise ValueError(f"pair names mode {mode}, which the reference cannot produce")
    if first == second:
        raise ValueError(f"pair names mode {first} twice: choose two modes")
    return first, second


def _mode_name(task: Task, mode: int, in_order: bool) -> str:
    members = np.flatnonzero(task.modes == mode)
    if in_order and 1 < members.size == members[-1] - members[0] + 1:
        return f"{task.labels[members[0]]}–{task.labels[members[-1]]}"
    return task.mode_names[mode] + (" …" if members.size > 1 else "")


def _table(divergence: Divergence) -> dict[str, Any] | None:
    """f′ against log u, for the script to invert where it has no formula; None where it has one.

    The rows are closest around u = 1; a cubic between two of them is off by some 1e-9 of f′.
    """
    if type(divergence) in CLASSES.values():
        return None
    log_ratio = _NEAR * np.sinh(np.arange(-_ROWS, _ROWS + 1) * (_WIDEST / _ROWS))
    with double_precision():
        ratio = jnp.exp(log_ratio)
        slope = np.asarray(divergence.f_prime(ratio))
        rate = np.asarray(ratio * divergence.f_second(ratio))
        at_infinity = float(divergence.slope_at_infinity)
    known = np.isfinite(slope) & np.isfinite(rate)
    # Rounding makes f′ fall where it hardly rises.
    log_ratio, slope = log_ratio[known], np.maximum.accumulate(slope[known])
    halfway = slope[np.searchsorted(log_ratio, log_ratio[0] / 2)]
    settled = halfway - slope[0] <= 1e-9 * (1 + abs(slope[0]))
    return {
        "log_ratio": log_ratio.tolist(),
        "slope": slope.tolist(),
        "rate": np.maximum(rate[known], 0).tolist(),
        "at_zero": float(slope[0]) if settled else None,
        "at_infinity": at_infinity if math.isfinite(at_infinity) else None,
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    """With None for infinities, which JSON lacks."""
    return [x if math.isfinite(x) else None for x in values.tolist()]
