"""The figure of a comparison: pass@k, prompts, and the shifts of their log-odds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget.plot import _style as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kltarget.comparisons import Comparison

_TICKS = (0.01, 0.1, 0.5, 0.9, 0.99)
_NEAREST = 3e-3
_SHOWN_LAWS = 3


def comparison(data: Comparison, **style: Any) -> Figure:
    """Draws what changed between two checkpoints.

    Args:
        data: what :func:`kltarget.comparisons.compare` returned.
        **style: properties of the lines.

    Returns:
        A figure of three panels, or of the first alone where prompts are not paired: pass@k of both
        with bands that hold at all k at once; each prompt's success before and after, those that
        are known to have moved in colour; the shift of the log-odds over the success before, its
        95 % band, and the laws that fit best.

    Example:
        >>> import pandas as pd
        >>> from kltarget import plot
        >>> from kltarget.comparisons import compare
        >>> before = pd.DataFrame({"prompt": range(6), "correct": [0, 1, 2, 4, 6, 8], "samples": 8})
        >>> after = before.assign(correct=[0, 4, 5, 7, 8, 8])
        >>> len(plot.comparison(compare(before, after, num_draws=100)).axes)
        3
    """
    with look.in_style():
        wide = data.shifts is not None
        size = (6.4, 6.6) if wide else (4.6, 3.9)
        figure = look.new_figure(figsize=size, layout="constrained")
        panels = figure.add_gridspec(2, 2) if wide else figure.add_gridspec(1, 1)
        _passes(figure.add_subplot(panels[0, 0]), data, style)
        if data.shifts is not None:
            _prompts(figure.add_subplot(panels[0, 1]), data)
            _shifts(figure.add_subplot(panels[1, :]), data, style)
    return figure


def _passes(ax: Axes, data: Comparison, style: dict[str, Any]) -> None:
    look.dress(ax)
    sides = zip(data.labels, ("before", "after"), strict=True)
    lines = [(label, data.pass_at_k[side], "-") for label, side in sides]
    if data.asked is not None:
        lines.append(("asked for", data.asked.pass_at_k, ":"))
    for i, (name, band, dashes) in enumerate(lines):
        low, middle, high = np.array(band).T
        color = look.color(i)
        line = {**look.series(i), "linestyle": dashes, "label": name, **style}
        ax.plot(data.k, middle, **line)
        ax.fill_between(data.k, low, high, color=color, alpha=0.2, linewidth=0)
    ax.set_xscale("log", base=2)
    ax.set(xlabel="k", ylabel="pass@k, mean over the prompts")
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.legend(loc="lower right")


def _prompts(ax: Axes, data: Comparison) -> None:
    look.dress(ax)
    rates = (np.array(data.correct) + 0.5) / (np.array(data.samples) + 1)
    places = _logit(rates)
    moved = np.array(data.moved)
    kinds = [
        (moved == 0, look.GREY, "o", f"not known: {int((moved == 0).sum()):,}"),
        (moved > 0, look.color(0), "^", f"rose: {data.num_rose:,}"),
        (moved < 0, look.color(1), "v", f"fell: {data.num_fell:,}"),
    ]
    for chosen, color, marker, label in kinds:
        if chosen.any():
            dots = {"s": 14, "marker": marker, "alpha": 0.7, "linewidth": 0, "label": label}
            ax.scatter(*places[:, chosen], color=color, **dots)
    ends = [float(places.min()), float(places.max())]
    ax.plot(ends, ends, color=look.GREY, linewidth=1, linestyle=look.DASHED)
    _rates(ax, "x")
    _rates(ax, "y")
    first, second = data.labels
    ax.set(xlabel=f"success {first}", ylabel=f"success {second}")
    # Framed, for its dots would be taken for prompts.
    frame = {"frameon": True, "facecolor": look.paper(), "edgecolor": look.faint()}
    key = ax.legend(loc="lower right", fontsize="small", handletextpad=0.3, **frame)
    key.get_frame().set_linewidth(0.8)


def _shifts(ax: Axes, data: Comparison, style: dict[str, Any]) -> None:
    look.dress(ax)
    shifts = data.shifts
    assert shifts is not None
    place = _logit(np.array(shifts.success))
    low, high = _logit(np.array([_NEAREST, 1 - _NEAREST]))
    inside = (place >= low) & (place <= high)
    middle, below, above = np.array(shifts.curve)[inside].T
    color = look.color(0)
    ax.plot(place[inside], middle, **{"color": color, "label": "what happened", **style})
    ax.fill_between(place[inside], below, above, color=color, alpha=0.2, linewidth=0)
    laws = [law for law in data.laws if law.symbol and data.from_base]
    for i, law in enumerate(laws[:_SHOWN_LAWS], start=1):
        label = f"{law.title}, {law.symbol} = {law.parameter[1]:.2g}"
        curve = np.array(law.curve)[inside]
        ax.plot(place[inside], curve, **look.series(i), linestyle=look.DASHED, label=label)
    ax.axhline(0, color=look.GREY, linewidth=1)
    _rates(ax, "x")
    top = float(max(above.max(), 0.5))
    ax.set(
        xlabel=f"success {data.labels[0]}",
        ylabel="shift of the log-odds",
        ylim=(min(float(below.min()), 0.0) - 0.1, 1.1 * top),
    )
    best = f"best {_SHOWN_LAWS} of {len(laws)} laws" if len(laws) > _SHOWN_LAWS else None
    place_of_legend = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 2}
    ax.legend(title=best, alignment="left", **place_of_legend)


def _rates(ax: Axes, which: str) -> None:
    """Ticks at round rates of an axis of log-odds."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_ticks(_logit(np.array(_TICKS)), [f"{x:g}" for x in _TICKS])


def _logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)
