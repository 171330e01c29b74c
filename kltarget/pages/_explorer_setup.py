"""What is explored: one problem with names, and the ranges of its sliders."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from kltarget._core.checks import traced
from kltarget.divergences import Divergence
from kltarget.divergences._names import named
from kltarget.modes._labels import concrete_labels
from kltarget.objectives import Objective
from kltarget.plot._target_figure import counts_upwards
from kltarget.tasks import Task, one_mode_each, right_outcomes

MOST_OUTCOMES = 20_000
"""More cannot be solved and drawn anew as fast as a slider moves."""

MOST_BARS = 12
MOST_POSITIONS = 1000
_MOST_THRESHOLDS = 24

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
    """A problem over `A` outcomes and where its sliders start and end.

    Attributes:
        log_ref: Natural-log reference probabilities, float64 `[A]`, normalised.
        reward: Rewards, float64 `[A]`.
        modes: Integer labels `[A]`, -1 for outcomes in no mode.
        pair: Labels of the two modes whose reference odds can be changed; None where there are
            fewer than two that the reference can produce.
        pair_names: What they are called.
        positions: The outcomes' labels as numbers, if they count upwards and are too many for
            bars; else None.
        beta_decades: Exponents of ten between which β moves.
        thresholds: Stops of the MARA slider after "off", in reward units.
        beta: β to start from.
        divergences: What there is to choose from, by name; the first is the start.
    """

    name: str
    description: str
    labels: tuple[str, ...]
    log_ref: np.ndarray
    reward: np.ndarray
    modes: np.ndarray
    pair: tuple[int, int] | None
    pair_names: tuple[str, str] | None
    positions: list[float] | None
    beta_decades: tuple[int, int]
    thresholds: list[float]
    beta: float
    divergences: dict[str, Divergence]

    def members(self, which: int) -> np.ndarray:
        """Which outcomes are in the first (0) or second (1) mode of the pair, booleans `[A]`."""
        return self.modes == (self.pair or (-2, -2))[which]

    @property
    def own_odds(self) -> float:
        """Reference odds of the first mode against the second, before any slider moves."""
        if self.pair is None:
            return 1.0
        masses = [np.exp(self.log_ref[self.members(k)]).sum() for k in (0, 1)]
        return float(masses[0] / masses[1])


def setup_of(
    problem: Task | Objective,
    *,
    labels: Sequence[str] | None = None,
    modes: ArrayLike | None = None,
    pair: tuple[int, int] | None = None,
    beta: float | None = None,
    divergences: Sequence[str | Divergence] | None = None,
) -> Setup:
    """What `explore` and `page` are given, checked and completed."""
    if not isinstance(problem, Task | Objective):
        raise TypeError(f"explore a Task or an Objective, not {type(problem).__name__}")
    task, objective = (problem, None) if isinstance(problem, Task) else (None, problem)
    count = problem.num_outcomes
    if count > MOST_OUTCOMES:
        raise ValueError(
            f"{count:,} outcomes are more than the {MOST_OUTCOMES:,} that can be drawn anew at "
            "every move: keep those that matter and merge the others into one"
        )
    if objective is not None:
        if any(map(traced, jax.tree.leaves(objective))):
            raise TypeError("an objective under jit or vmap cannot be explored: it has no numbers")
        if objective.batch_shape or objective.measure:
            raise ValueError(
                f"explore one normalised problem: the objective has batch shape "
                f"{objective.batch_shape} and measure={objective.measure}"
            )
    reward = np.asarray(problem.reward, np.float64)
    log_ref = np.asarray(problem.log_ref, np.float64)
    # A float32 reference is normalised to its own accuracy only.
    log_ref = log_ref - np.log(np.exp(log_ref).sum())
    if modes is not None:
        groups = concrete_labels(modes, count).astype(np.int64)
    else:
        named_modes = task is not None and bool((task.modes >= 0).any())
        groups = task.modes if task and named_modes else one_mode_each(right_outcomes(reward))
    if labels is None:
        labels = task.labels if task else tuple(map(str, range(count)))
    if len(labels) != count:
        raise ValueError(f"there are {len(labels)} labels for {count} outcomes: give one for each")

    possible = (log_ref > -np.inf) & np.isfinite(reward)
    if not possible.any():
        raise ValueError("no outcome has both a finite reward and reference mass")
    low, high = reward[possible].min(), reward[possible].max()
    span = float(high - low) or 1.0
    # The logarithm of a power of ten may miss the whole number by its rounding.
    exponent = round(math.log10(span), 9)
    decades = (math.floor(exponent) - 3, math.ceil(exponent) + 1)
    if beta is None:
        # A float32 is meant as the shortest number that it stands for.
        beta = float(f"{0.1 * span:.1g}" if objective is None else str(np.asarray(objective.beta)))
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be above 0 and finite, got {beta}")
    decades = (
        min(decades[0], math.floor(math.log10(beta))),
        max(decades[1], math.ceil(math.log10(beta))),
    )
    pair = _checked_pair(pair, groups, possible) if pair else _pair(groups, reward, log_ref)
    names = tuple(map(str, labels))
    in_order = MOST_BARS < count <= MOST_POSITIONS and counts_upwards(names)
    first = objective.divergence if objective is not None else None
    return Setup(
        name=task.name if task else "objective",
        description=task.description if task else f"{count:,} outcomes",
        labels=names,
        log_ref=log_ref,
        reward=reward,
        modes=groups,
        pair=pair,
        pair_names=None if pair is None else _names(pair, groups, log_ref, names, in_order),
        positions=[float(label) for label in names] if in_order else None,
        beta_decades=decades,
        thresholds=_thresholds(reward[possible]),
        beta=float(beta),
        divergences=_choices(divergences, first),
    )


def _choices(
    divergences: Sequence[str | Divergence] | None, first: Divergence | None
) -> dict[str, Divergence]:
    given = DIVERGENCES if divergences is None else tuple(divergences)
    if not given:
        raise ValueError("divergences is empty: name at least one, such as 'reverse-kl'")
    chosen = {
        x if isinstance(x, str) else x.name: named(x) if isinstance(x, str) else x for x in given
    }
    if first is None or divergences is not None:
        return chosen
    alike = [name for name, x in chosen.items() if _same(x, first)]
    start = alike[0] if alike else first.name
    return {start: first, **{name: x for name, x in chosen.items() if name != start}}


def _same(x: Divergence, y: Divergence) -> bool:
    leaves, structure = jax.tree.flatten(x)
    others, other = jax.tree.flatten(y)
    pairs = zip(leaves, others, strict=False)
    return structure == other and all(np.array_equal(a, b) for a, b in pairs)


def title(divergence: Divergence) -> str:
    """Its name with the parameters that tell members of a family apart."""
    numbers = [np.asarray(leaf) for leaf in jax.tree.leaves(divergence)]
    shown = ", ".join(f"{x:.4g}" for x in numbers if x.ndim == 0)
    return f"{divergence.name} ({shown})" if shown else divergence.name


def _thresholds(reward: np.ndarray) -> list[float]:
    """Rewards above the lowest, which would make every outcome a good one."""
    stops = np.unique(reward)
    if stops.size > _MOST_THRESHOLDS + 1:
        stops = np.linspace(stops[0], stops[-1], _MOST_THRESHOLDS + 1)
    return (stops[1:] if stops.size > 1 else stops).tolist()


def _pair(modes: np.ndarray, reward: np.ndarray, log_ref: np.ndarray) -> tuple[int, int] | None:
    """The likeliest mode, and of the best of the others the least likely."""
    known = {}
    for mode in np.unique(modes[(modes >= 0) & (log_ref > -np.inf) & np.isfinite(reward)]):
        members = modes == mode
        known[int(mode)] = (float(reward[members].max()), np.exp(log_ref[members]).sum())
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


def _names(
    pair: tuple[int, int], modes: np.ndarray, log_ref: np.ndarray, labels: Any, ordered: bool
) -> tuple[str, str]:
    names = []
    for mode in pair:
        members = np.flatnonzero(modes == mode)
        likeliest = labels[members[np.argmax(log_ref[members])]]
        if members.size == 1:
            names.append(likeliest)
        elif ordered and members[-1] - members[0] == members.size - 1:
            names.append(f"{labels[members[0]]}–{labels[members[-1]]}")
        else:
            names.append(f"{likeliest} …")
    return names[0], names[1]
