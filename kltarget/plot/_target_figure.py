"""The figure of a target beside its reference."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.words import counted
from kltarget.objectives import Objective
from kltarget.plot import _style as look
from kltarget.plot._paths import as_drawn
from kltarget.targets import DiscreteTarget, solve
from kltarget.tasks import ProblemLike, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Bars stay countable and their labels level up to here; beyond it outcomes are ranked on an axis.
_MOST_BARS = 12
_MOST_POSITIONS = 1000
# Nothing below it is drawn unless all is: a tail of 1e-65 would press the rest together.
_LEAST_DECADE = -12
# On a linear axis this part of its end is still seen, and as much mass has to lie above it.
_SEEN, _ENOUGH = 0.01, 0.9
_MOST_TICK_CHARACTERS = 64


def target(
    data: ProblemLike | DiscreteTarget | Sequence[DiscreteTarget],
    *,
    problem: ProblemLike | None = None,
    labels: Sequence[str] | None = None,
    top: int = 8,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    r"""Draws the reference, the reward and the targets of several β over the same outcomes.

    Up to 12 outcomes are drawn as groups of bars in the given order. More are drawn as points on a
    logarithmic scale, ranked by reference mass with the rewards as a strip above and the ``top``
    most probable outcomes named. Up to 1,000 labels that count upwards, such as token positions,
    keep their order instead of being ranked, on a linear scale where that shows nine tenths of each
    distribution.

    Args:
        data: a target, whose batch may hold several β; a sequence of targets; an objective, which
            is solved; or a task (its name, a table's path or a pair of arrays), of which only
            reference and reward are drawn. All share ``A`` outcomes.
        problem: draw the reference and the reward of this problem instead of the targets' own, for
            instance those from before ``mara`` changed them.
        labels: names of the outcomes, ``A`` strings. Default: those of the task, else their
            indices.
        top: how many outcomes are named when there are more than 12.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the targets' bars or points, such as ``alpha``.

    Returns:
        The axes; ``ax.figure`` is the figure. Probabilities of exactly zero have no point on the
        logarithmic scale, which ends at 1e-12; the legend counts the outcomes that lie below.

    Raises:
        TypeError: ``data`` is none of these.
        ValueError: the problems differ in anything but β and divergence, or the number of labels
            is wrong.

    Example:
        >>> import kltarget as kt
        >>> from kltarget import plot, tasks
        >>> task = tasks.load("one-two")
        >>> ax = plot.target(task.objective([0.1, 1.0]), labels=task.labels)
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['1\nreward 1', '2\nreward 1', 'other\nreward 0']
    """
    given, behind = as_drawn(data), as_drawn(problem)
    with look.in_style(ax):
        curves = _curves(given)
    own = given if isinstance(given, Task) else curves[0].objective
    shown = _problem(own if behind is None else behind)
    others = (_problem(curve.objective) for curve in curves[1:])
    if problem is None and not all(np.array_equal(other, shown) for other in others):
        raise ValueError(
            "the targets belong to different problems: draw targets that differ in beta or "
            "divergence only, or say with problem= whose reference and reward to draw"
        )
    size = shown.shape[1]
    if labels is None:
        labels = next((x.labels for x in (behind, given) if isinstance(x, Task)), None)
    # Indices that stand in for labels name points but say nothing of an order worth keeping.
    keep_order = labels is not None and size <= _MOST_POSITIONS and counts_upwards(labels)
    names: Sequence[Any] = range(size) if labels is None else labels
    for name, found in (("labels", len(names)), *((c.name, c.log_probs.size) for c in curves)):
        if found != size:
            raise ValueError(f"{name}: {found} outcomes, but the reward has {size}")

    with look.drawing(ax) as ax:
        if size <= _MOST_BARS:
            _bars(ax, list(map(str, names)), shown, curves, style)
        else:
            _points(ax, names, shown, curves, style, 0 if keep_order else top, keep_order)
    return ax


@dataclasses.dataclass(frozen=True, eq=False)
class _Curve:
    name: str
    label: str
    color: Any
    marker: str
    log_probs: np.ndarray
    objective: Objective


def _curves(data: Any) -> list[_Curve]:
    if isinstance(data, Task):
        return []
    if isinstance(data, Objective):
        data = solve(data)
    targets = list(data) if isinstance(data, list | tuple) else [data]
    if not targets or not all(isinstance(item, DiscreteTarget) for item in targets):
        raise TypeError("data must be a Task, an Objective, a Target or a sequence of Targets")
    rows = []
    for item in targets:
        log_probs = np.asarray(item.log_probs, np.float64)
        beta = np.broadcast_to(np.asarray(item.objective.beta, np.float64), log_probs.shape[:-1])
        rows += [(float(beta[at]), log_probs[at], item.objective) for at in np.ndindex(beta.shape)]
    betas, log_probs, objectives = zip(*rows, strict=True)
    titles = [objective.divergence.title for objective in objectives]
    names = [f"β = {beta:.4g}" for beta in betas]
    if len(set(titles)) > 1:
        names = [f"{name}, {title}" for name, title in zip(names, titles, strict=True)]
    kinds = list(dict.fromkeys(titles))
    # Of divergences each is named, of many β of one divergence some.
    labels = names if len(kinds) > 1 else look.named(names)[0]
    if len(kinds) == len(rows) > 1 == len(set(betas)):
        colors: Any = [look.color(k) for k in range(len(rows))]
    else:  # from dark for weak regularisation to bright
        colors = look.shades(len(rows))[np.argsort(np.argsort(betas, kind="stable"))]
    markers = [look.MARKERS[kinds.index(title) % len(look.MARKERS)] or "o" for title in titles]
    curves = zip(names, labels, colors, markers, log_probs, objectives, strict=True)
    return [_Curve(*curve) for curve in curves]


def _problem(of: Any) -> np.ndarray:
    """Reward and reference ``[2, A]`` that all rows of a batch have in common."""
    return np.stack([_shared(of.reward, "reward"), _shared(of.log_ref, "log_ref")])


def _shared(values: Any, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    rows = values.reshape(-1, values.shape[-1])
    if not (rows == rows[0]).all():
        raise ValueError(f"{name} differs within the batch: draw problems that differ in beta only")
    return rows[0]


def _bars(
    ax: Axes, labels: list[str], problem: np.ndarray, curves: list[_Curve], style: dict[str, Any]
) -> None:
    reward, log_ref = problem
    spelt = [
        (look.short_label(label), look.short_number(r))
        for label, r in zip(labels, reward, strict=True)
    ]
    ticks = [f"{label}\nreward {r}" for label, r in spelt]
    # Labels that would run into each other below the bars are written beside them.
    flat = sum(max(map(len, tick.split("\n"))) + 2 for tick in ticks) > _MOST_TICK_CHARACTERS
    if flat:
        ticks = [f"{label} ({r})" for label, r in spelt]
    bars: list[Any] = [(np.exp(log_ref), {"color": look.GREY, "label": "reference"})]
    kinds = list(dict.fromkeys(c.marker for c in curves))
    for c in curves:
        # Shades tell β apart, hatches divergences.
        hatch = look.HATCHES[kinds.index(c.marker) % len(look.HATCHES)]
        filling = {"facecolor": c.color, "hatch": hatch, "edgecolor": look.paper()}
        bars.append((np.exp(c.log_probs), {**filling, "label": c.label, **style}))
    look.grouped_bars(ax, bars, 0.84, lying=flat, share=0.92 if len(curves) < 7 else 1.0)
    outcome, mass = (ax.yaxis, ax.xaxis) if flat else (ax.xaxis, ax.yaxis)
    outcome.set_ticks(range(len(labels)), ticks)
    outcome.set_tick_params(length=0)
    outcome.grid(False)
    mass.set_label_text("probability")
    top = ax.dataLim.x1 if flat else ax.dataLim.y1
    limits = (0, 1.0 if top > 0.93 else 1.08 * top)
    if flat:
        ax.set(xlim=limits, ylim=(len(labels) - 0.5, -0.5), ylabel="outcome (reward)")
    else:
        ax.set_ylim(limits)
    _legend(ax, curves)


def _points(
    ax: Axes,
    labels: Sequence[Any],
    problem: np.ndarray,
    curves: list[_Curve],
    style: dict[str, Any],
    top: int,
    keep_order: bool,
) -> None:
    size = len(labels)
    order = np.arange(size) if keep_order else np.argsort(-problem[1], kind="stable")
    x = np.array([float(label) for label in labels]) if keep_order else np.arange(1.0, size + 1)
    reward, log_ref = problem[:, order]
    rows = [c.log_probs[order] for c in curves]

    everything = np.exp([log_ref, *rows])
    seen = np.where(everything >= _SEEN * everything.max(), everything, 0.0).sum(-1)
    # Logarithms would hide how much of the mass is where, which positions in order show.
    linear = keep_order and bool((seen >= _ENOUGH).all())
    ax.set(xscale="log" if size > 60 and not keep_order else "linear")
    ax.set(yscale="linear" if linear else "log")
    ax.plot(x, _mass(log_ref), color=look.GREY, lw=2.2, label="reference", zorder=2)
    # Well rewarded outcomes are large, the fourth power keeps the many middling ones of a graded
    # reward small.
    emphasis = _unit(reward) ** 4
    least, most = (1.5, 30.0) if size > 200 else (4.0, 16.0) if linear else (9.0, 45.0)
    usual = {"linewidths": 0, "zorder": 3, "rasterized": size > 500}
    for k, (curve, row) in enumerate(zip(curves, rows, strict=True)):
        # Where targets coincide, later and smaller points leave the rim of the earlier ones
        # visible.
        shrink = 1 - 0.65 * k / max(len(curves) - 1, 1)
        dot = {"marker": curve.marker, "color": curve.color}
        ax.plot([], [], ls="-" if linear else "", ms=6, label=curve.label, **dot)
        if linear:
            ax.plot(x, _mass(row), color=curve.color, lw=1.0, zorder=3)
        options = {"color": [curve.color], "marker": curve.marker, **usual, **style}
        ax.scatter(x, _mass(row), (least + (most - least) * emphasis) * shrink, **options)

    if linear:
        ax.set_ylim(0, 1.06 * float(everything.max()))
    else:
        _probability_axis(ax, log_ref, rows, room=0.5 if top else 0.06)
    _reward_strip(ax, x, reward)
    best = np.max(rows if rows else [log_ref], axis=0)
    end = -np.inf if linear else math.log(ax.get_ylim()[0])
    shown = np.maximum(best, log_ref) >= end
    if not shown.all():
        below = counted(size - int(shown.sum()), "outcome")
        look.unseen(ax, f"{below} below 1e{round(end / math.log(10))}")
        if not keep_order:
            ax.set_xlim(right=float(x[shown][-1]) + 0.5)
    order_of_names = np.argsort(np.where(shown, -best, np.inf), kind="stable")
    chosen = np.sort(order_of_names[: min(top, int(shown.sum()))])
    if chosen.size:
        _name_points(ax, x[chosen], best[chosen], [str(labels[int(order[i])]) for i in chosen])
    place = "outcome" if keep_order else "rank of the outcome under the reference"
    ax.set(xlabel=place, ylabel="probability")
    _legend(ax, curves, reward)


def _unit(reward: np.ndarray) -> np.ndarray:
    """Rewards moved and scaled to [0, 1]; ``-inf`` counts as the least finite one."""
    finite = reward[np.isfinite(reward)]
    low, high = finite.min(initial=np.inf), finite.max(initial=-np.inf)
    if not high > low:
        return np.zeros_like(reward)
    return (np.maximum(reward, low) - low) / (high - low)


def _mass(log_probs: np.ndarray) -> np.ndarray:
    # What float64 cannot hold lies far below the axis; a NaN is left out of a line, a zero would
    # raise a warning.
    return np.where(log_probs > -700, np.exp(np.maximum(log_probs, -700)), np.nan)


def _probability_axis(ax: Axes, log_ref: np.ndarray, rows: list[np.ndarray], room: float) -> None:
    """Limits that show the reference and at most four decades below, to 1e-12; names need room."""
    decades = [row[np.isfinite(row)] / math.log(10) for row in (log_ref, *rows)]
    least = [math.floor(row.min(initial=-1.0)) for row in decades]
    low = max(min(least), least[0] - 4, _LEAST_DECADE)
    ax.set_ylim(10.0**low, 10.0 ** (room * -low))
    step = max(1, round(-low / 6))
    ax.set_yticks([10.0**k for k in range(0, low - 1, -step)])
    ax.set_yticks([], minor=True)


def _reward_strip(ax: Axes, x: np.ndarray, reward: np.ndarray) -> None:
    strip = ax.inset_axes((0, 1.02, 1, 0.05), sharex=ax)
    edges = np.concatenate([[x[0] - 0.5], (x[1:] + x[:-1]) / 2, [x[-1] + 0.5]])
    colors = {"cmap": _reward_colors(), "vmin": 0, "vmax": 1}
    strip.pcolormesh(edges, [0, 1], _unit(reward)[None], rasterized=True, **colors)
    strip.set_label("reward")
    strip.set_yticks([])
    strip.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    strip.grid(False)
    strip.spines[:].set_visible(True)
    ax.set_xlim(edges[0], edges[-1])


def _reward_colors() -> Any:
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    # Hardly darker than a light page, hardly lighter than a dark one.
    least = 0.95 * np.array(to_rgb(look.paper())) + 0.05 * np.array(to_rgb(look.ink()))
    return LinearSegmentedColormap.from_list("reward", [least, np.array(to_rgb("#d55e00"))])


def _name_points(ax: Axes, x: np.ndarray, log_mass: np.ndarray, names: list[str]) -> None:
    """Names the most probable outcomes on a rail above the points, so that names cannot overlap."""
    on_axis = np.log if ax.get_xscale() == "log" else np.asarray
    left, right = on_axis(ax.get_xlim())
    wanted = (on_axis(x) - left) / (right - left)
    # What a legend will leave of the axes, in points; a name of 9 points at 40 degrees needs 13 to
    # its neighbour and 50 to the right end.
    room = max(72 * ax.bbox.width / ax.figure.dpi - 90, 100)
    placed = _spread(wanted, gap=13 / room, low=0.01, high=1 - 50 / room)
    slanted = {"rotation": 40, "rotation_mode": "anchor", "ha": "left", "va": "bottom"}
    arrow = {"arrowstyle": "-", "color": look.faint(), "lw": 0.7, "shrinkA": 0, "shrinkB": 3}
    above = {"textcoords": "axes fraction", "arrowprops": arrow, **slanted}
    for name, place, at in zip(names, placed, zip(x, np.exp(log_mass), strict=True), strict=True):
        look.note(ax, look.short_label(name, 12), at, (place, 0.77), zorder=1, **above)


def _spread(wanted: np.ndarray, *, gap: float, low: float, high: float) -> np.ndarray:
    """Sorted positions, moved up and then down again to keep ``gap`` between them."""
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    steps = gap * np.arange(len(wanted))
    # Less their steps, positions that keep the gap do not decrease.
    apart = np.maximum.accumulate(np.clip(wanted, low, high) - steps)
    return np.minimum(apart, high - steps[-1]) + steps


def _legend(ax: Axes, curves: list[_Curve], reward: np.ndarray | None = None) -> None:
    """A legend beside the axes, where it covers nothing, with a key to the reward strip."""
    from matplotlib.patches import Patch

    handles, names = ax.get_legend_handles_labels()
    if reward is not None:
        unit = _unit(reward)
        for i in dict.fromkeys((int(unit.argmax()), int(unit.argmin()))):
            handles.append(Patch(facecolor=_reward_colors()(unit[i]), edgecolor=look.GREY, lw=0.6))
            names.append(f"reward {look.short_number(reward[i])}")
    divergences = {curve.objective.divergence.title for curve in curves}
    title = [divergences.pop()] if len(divergences) == 1 else []
    if any(curve.label.startswith("_") for curve in curves):
        title.append(look.named([curve.name for curve in curves])[1])
    look.legend_beside(ax, handles, names, title="\n".join(title) or None)


def counts_upwards(labels: Sequence[str]) -> bool:
    try:
        numbers = [float(label) for label in labels]
    except (TypeError, ValueError):
        return False
    return all(map(math.isfinite, numbers)) and all(a < b for a, b in itertools.pairwise(numbers))
