"""Figure of a verification on a space of its own: how far from the target each run ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget.plot import _style as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kltarget.verification import SpaceReport

_DISTANCES = {"TV": "total variation from the target", "distance": "distance from the target"}
_ROUNDING = 1e-9


def space_report(report: SpaceReport, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Draws how far from its target each run of a verification ended, a line per kind of run.

    Args:
        report: what ``verify_texts``, ``verify_chain``, ``verify_mdp`` or ``verify_game`` of
            :mod:`kltarget.verification` returned.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the points.

    Returns:
        The axes. What is below 1e-9 is drawn there.

    Raises:
        ValueError: a report of which nothing is a distance.

    Example:
        >>> from kltarget import plot
        >>> from kltarget.verification import SpaceReport
        >>> runs = ({"policy": "tabular", "beta": 0.5, "TV": 2e-4},)
        >>> plot.space_report(SpaceReport("coin", (), {}, runs, ())).get_xlabel()
        'total variation from the target'
    """
    first = report.runs[0]
    measure = next((name for name in _DISTANCES if name in first), None)
    if measure is None:
        raise ValueError(f"report has columns {', '.join(first)}: one must be TV or distance")
    beta = "beta" if "beta" in first else "β"
    kind = next((name for name, x in first.items() if isinstance(x, str)), None)
    kinds = list(dict.fromkeys(report.problem if kind is None else x[kind] for x in report.runs))
    levels = sorted({run[beta] for run in report.runs})
    with look.drawing(ax, figsize=(6.2, 1.3 + 0.55 * len(kinds))) as ax:
        for k, level in enumerate(levels):
            own = [run for run in report.runs if run[beta] == level]
            x = [max(run[measure], _ROUNDING) for run in own]
            # The levels of β are side by side, so that none covers another.
            shift = 0.4 * (k - (len(levels) - 1) / 2) / max(len(levels), 2)
            y = [kinds.index(report.problem if kind is None else r[kind]) + shift for r in own]
            marker = look.MARKERS[k % len(look.MARKERS)] or "o"
            points = {"ls": "", "marker": marker, "ms": 5, "mfc": "none", "mew": 1.4, "zorder": 3}
            points |= {"color": look.color(k), "label": f"β = {look.short_number(level)}"}
            ax.plot(x, y, **{**points, **style})
        ax.set_yticks(range(len(kinds)), kinds)
        ax.set(xscale="log", ylim=(len(kinds) - 0.5, -0.5), xlabel=_DISTANCES[measure])
        low = min(max(run[measure], _ROUNDING) for run in report.runs)
        ax.set_xlim(10 ** np.floor(np.log10(low) - 0.2), 1)
        ax.set_title(report.problem, color=look.ink())
        look.legend_beside(ax)
    return ax
