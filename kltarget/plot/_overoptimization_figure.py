"""A figure of overoptimisation: what is really earned as a proxy is maximised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget.plot import _style as look
from kltarget.plot._paths import require_dims

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

_SYMBOLS = {"beta": "β", "n": "n", "temperature": "τ"}


def overoptimization(
    data: xr.Dataset | Mapping[str, xr.Dataset], *, ax: Axes | None = None, **style: Any
) -> Axes:
    """Draws gold rewards, and faintly the proxies that are maximised, against √KL(π‖π_ref).

    Args:
        data: what :func:`kltarget.frontier.curve` found with ``gold``; or several of these by name,
            such as those of different ensembles, of at most seven families in all.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines.

    Returns:
        The axes. A circle stands at the highest gold reward between the ends of a line; the legend
        gives its parameter.

    Raises:
        ValueError: data without gold rewards, or more families than can be told apart.

    Example:
        >>> import numpy as np, kltarget as kt
        >>> from kltarget import plot
        >>> problem = (np.array([0.0, 1.0, 1.2]), np.log([0.6, 0.3, 0.1]))
        >>> data = kt.frontier.curve(problem, ["reverse-kl", "best-of-n"], gold=[0.0, 1.0, 0.0])
        >>> ax = plot.overoptimization(data)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['reverse-kl, best at β = 0.353', 'best-of-n, best at n = 3.89', 'gold', 'proxy']
    """
    import xarray as xr

    named: dict[str, xr.Dataset]
    named = {"": data} if isinstance(data, xr.Dataset) else dict(data)
    rows = []
    for name, one in named.items():
        if "gold_reward" not in one:
            raise ValueError("data has no gold_reward: make it by frontier.curve(…, gold=…)")
        require_dims(one, "gold_reward", ("family", "point"))
        rows += [(name, one.isel(family=k)) for k in range(one.sizes["family"])]
    if len(rows) > look.NUM_COLORS:
        raise ValueError(
            f"there are {len(rows)} families: at most {look.NUM_COLORS} can be told apart; choose "
            "some with .sel(family=[…])"
        )
    alike = len({row.family.item() for _, row in rows}) == 1
    from matplotlib.lines import Line2D

    with look.drawing(ax, figsize=(6.4, 3.6)) as ax:
        for k, (name, row) in enumerate(rows):
            order = np.argsort(np.asarray(row["kl"], float))
            order = order[np.isfinite(np.asarray(row["kl"], float)[order])]
            # Rounding makes some of the smallest KLs negative.
            far = np.sqrt(np.maximum(np.asarray(row["kl"], float)[order], 0.0))
            gold, proxy = (
                np.asarray(row[x], float)[order] for x in ("gold_reward", "expected_reward")
            )
            color = look.color(k)
            ax.plot(far, proxy, **{"color": color, "ls": "--", "lw": 1.0, "alpha": 0.6, **style})
            family = str(row.family.item())
            label = family if len(named) == 1 else name if alike else f"{name}: {family}"
            if np.isfinite(row["peak"]):
                peak = look.short_number(float(row["peak"]))
                label += f", best at {_SYMBOLS[row.parameter_name.item()]} = {peak}"
                at = np.sqrt(max(float(row["peak_kl"]), 0.0)), float(row["peak_reward"])
                ax.plot(*at, ls="", marker="o", ms=6, color=color, zorder=4)
            ax.plot(far, gold, **{**look.series(k), "label": label, "zorder": 3, **style})
        ax.set(xlabel="√KL(π‖π_ref), √nats", ylabel="expected reward", xlim=(0, None))
        handles, labels = ax.get_legend_handles_labels()
        for kind, ls in (("gold", "-"), ("proxy", "--")):
            handles.append(Line2D([], [], color=look.ink(), ls=ls, lw=1.2))
            labels.append(kind)
        look.legend_beside(ax, handles, labels, handlelength=2.0)
    return ax
