"""Figures of sweeps: phases in the plane of β and reward scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kltarget import sweeps, tasks
from kltarget.plot import _style as look
from kltarget.plot._beta_path import BETA
from kltarget.plot._paths import dataset_mode_names, require_dims

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

_PLANE = ("reward_scale", "beta")
_MOST_NAMED_BOUNDARIES = 4
_MOST_CHARACTERS = 30


def phase(
    data: xr.Dataset,
    *,
    variable: Literal["effective_modes", "winning_mode"] = "effective_modes",
    boundaries: xr.Dataset | bool = True,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws how many modes survive, or which one wins, over the plane of β and reward scale.

    Targets depend on β/scale alone, so every exact boundary is a straight line of slope 1 on the
    two logarithmic axes: solid where two modes change places, dashed where the target collapses on
    the best outcomes alone.

    Args:
        data: a sweep over ``beta`` and ``reward_scale``, both above 0.
        variable: ``"effective_modes"``, or ``"winning_mode"``, the most probable one by
            ``mode_mass``.
        boundaries: what ``kltarget.sweeps.phase_boundaries`` found, with the variables ``ratio``
            (β/scale), ``kind`` (``"flip"`` or ``"collapse"``), ``first`` and ``second`` along
            ``boundary``; True to have it computed, if the sweep is of a named task and its modes
            and has no entropy bonus; False for none.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the map, such as ``cmap``.

    Returns:
        The axes; ``ax.figure`` is the figure. Points without a number are left blank.

    Raises:
        ValueError: the sweep has further dimensions, or not these, or there is no such variable.

    Example:
        >>> import kltarget as kt
        >>> from kltarget import plot
        >>> data = kt.sweep("one-two", beta=[0.1, 0.3, 1.0], reward_scale=[1.0, 2.0])
        >>> ax = plot.phase(data)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('β, reward units per nat', 'reward scale')
    """
    choices = ("effective_modes", "winning_mode")
    if variable not in choices:
        raise ValueError(f"variable must be one of {', '.join(choices)}, got {variable!r}")
    winners = variable == "winning_mode"
    drawn, dims = ("mode_mass", (*_PLANE, "mode")) if winners else (variable, _PLANE)
    require_dims(data, drawn, dims)
    data = data.sortby(list(_PLANE))
    x, y = (np.asarray(data[name], float) for name in ("beta", "reward_scale"))
    if min(x[0], y[0]) <= 0:
        raise ValueError("beta and reward_scale must be above 0: both axes are logarithmic")
    lines = _boundaries(data, boundaries)
    with look.drawing(ax) as ax:
        edges, values = (
            (cell_edges(x), cell_edges(y)),
            np.asarray(data[drawn].transpose(*dims), float),
        )
        if winners:
            _winners(ax, edges, values, dataset_mode_names(data), style)
        else:
            _survivors(ax, edges, values, style)
        ax.set(xlabel=BETA, xscale="log", xlim=edges[0][[0, -1]])
        ax.set(ylabel="reward scale", yscale="log", ylim=edges[1][[0, -1]])
        look.plain_ticks(ax.xaxis)
        look.plain_ticks(ax.yaxis)
        ax.grid(False)
        if lines is not None:
            _draw_boundaries(ax, lines)
        handles, names = ax.get_legend_handles_labels()
        if handles:
            # Beside the axes stands the scale of colours.
            # A legend wider than the axes would press them together.
            columns = 2 if max(map(len, names)) <= _MOST_CHARACTERS else 1
            ax.legend(handles, names, loc="lower left", bbox_to_anchor=(0.0, 1.01), ncols=columns)
    return ax


def cell_edges(x: np.ndarray) -> np.ndarray:
    """Edges of cells around points of a logarithmic axis."""
    log_x = np.log(x)
    steps = np.diff(log_x) if x.size > 1 else np.array([np.log(2.0)])
    middle = log_x[:-1] + steps / 2 if x.size > 1 else np.empty(0)
    return np.exp([log_x[0] - steps[0] / 2, *middle, log_x[-1] + steps[-1] / 2])


def _survivors(ax: Axes, edges: Any, values: np.ndarray, style: Any) -> None:
    options = {"cmap": "viridis", "vmin": 1.0, "rasterized": True, **style}
    image = ax.pcolormesh(*edges, np.ma.masked_invalid(values), **options)
    assert ax.figure is not None
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=25)
    bar.set_label("effective modes")
    bar.outline.set_visible(False)
    look.dress(bar.ax)


def _winners(ax: Axes, edges: Any, mass: np.ndarray, names: Sequence[str], style: Any) -> None:
    from matplotlib.colors import ListedColormap, to_rgb

    known = np.isfinite(mass).all(-1)
    best = mass.argmax(-1)
    found, counts = np.unique(best[known], return_counts=True)
    # The winners of the most points get a colour; they keep the order of the modes.
    chosen = np.sort(found[np.argsort(-counts, kind="stable")[: look.NUM_COLORS - 1]])
    # Softened, so that lines stand out on them.
    page = 0.38 * np.array(to_rgb(look.paper()))
    colors = [0.62 * np.array(to_rgb(look.color(k))) + page for k in range(chosen.size)]
    colors.append(np.array(to_rgb(look.GREY)))
    place = np.full(mass.shape[-1], chosen.size)
    place[chosen] = np.arange(chosen.size)
    shades = {"cmap": ListedColormap(colors), "vmin": -0.5, "vmax": chosen.size + 0.5}
    image = np.ma.masked_array(place[best], ~known)
    ax.pcolormesh(*edges, image, **{**shades, "rasterized": True, **style})
    leaders = [look.short_label(names[int(mode)], 16) for mode in chosen]
    leaders += ["another"] * (chosen.size < found.size)
    for shade, leader in zip(colors, leaders, strict=False):
        ax.plot([], [], ls="", marker="s", ms=8, color=shade, label=f"{leader} leads")


def _boundaries(data: xr.Dataset, given: xr.Dataset | bool) -> xr.Dataset | None:
    if not isinstance(given, bool):
        return given
    name = data.attrs.get("problem")
    if not given or name not in tasks.names() or "mode" not in data.coords:
        return None
    task = tasks.load(name)
    own_modes = tuple(task.mode_names.values())
    if dataset_mode_names(data) != own_modes or _setting_of(data, "entropy_weight"):
        return None
    names = ("divergence", "threshold", "ref_temperature")
    settings = {x: _setting_of(data, x) for x in names}
    try:
        return sweeps.phase_boundaries(name, **{x: y for x, y in settings.items() if y is not None})
    except ValueError:  # a divergence without a name, or too many pairs of modes
        return None


def _setting_of(data: xr.Dataset, name: str) -> Any:
    """The one value of a setting; None if it has none."""
    if name not in data.coords:
        return None
    value = data[name].values.item()
    return value if isinstance(value, str) or math.isfinite(value) else None


def _draw_boundaries(ax: Axes, boundaries: xr.Dataset) -> None:
    from matplotlib.patheffects import Normal, Stroke

    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    names = ("ratio", "kind", "first", "second")
    rows = list(zip(*(boundaries[name].values.tolist() for name in names), strict=True))
    seen = [row for row in rows if left / top < row[0] < right / bottom]
    kinds = [row[1] for row in seen]
    scale = np.array([bottom, top])
    # White on bright colours needs a rim.
    rim = [Stroke(linewidth=3.0, foreground="#222222"), Normal()]
    line: dict[str, Any] = {"color": "white", "lw": 1.4, "path_effects": rim}
    for k, (ratio, kind, first, second) in enumerate(seen):
        if len(seen) <= _MOST_NAMED_BOUNDARIES:
            pair = f"{look.short_label(first, 12)} ⇄ {look.short_label(second, 12)}"
            what = pair if kind == "flip" else "collapse"
            label = f"{what}: β/scale = {look.short_number(ratio)}"
        elif kinds.index(kind) == k:
            label = f"{kind} ({kinds.count(kind)})"
        else:
            label = "_nolegend_"
        dashes = "-" if kind == "flip" else look.DASHED
        ax.plot(ratio * scale, scale, ls=dashes, label=label, zorder=4, **line)
    ax.set(xlim=(left, right), ylim=(bottom, top))
