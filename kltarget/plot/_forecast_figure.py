"""The figure of a forecast: what each β asks for, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget.plot import _style as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kltarget.forecasts import Forecast


def forecast(data: Forecast, **style: Any) -> Figure:
    """Draws what a forecast says: success and pass@k over β, and success over KL.

    Of rewards of several levels it is the expected reward instead of the success.

    Args:
        data: what :func:`kltarget.forecasts.forecast` returned.
        **style: properties of the lines.

    Returns:
        A figure of two panels. Bands are 95 % intervals, dotted lines the base model; on the right
        the best of n samples stands beside the targets.

    Example:
        >>> import pandas as pd
        >>> from kltarget import plot
        >>> from kltarget.forecasts import forecast
        >>> from kltarget.recipes import Recipe
        >>> counts = pd.DataFrame({"prompt": ["a", "b", "c"], "correct": [0, 3, 8], "samples": 8})
        >>> len(plot.forecast(forecast(counts, Recipe())).axes)
        2
    """
    with look.in_style():
        figure = look.new_figure(figsize=(6.4, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        _over_beta(left, data, style)
        _over_kl(right, data, style)
    return figure


def _over_beta(ax: Axes, data: Forecast, style: dict[str, Any]) -> None:
    look.dress(ax)
    what = "reward" if data.graded else "success"
    main = "expected_reward" if data.graded else "success"
    lines = [(what, data.curves[main], data.start[main])]
    several = []
    if not data.graded:
        passes = zip(data.k, data.pass_at_k, data.start_pass_at_k, strict=True)
        several = [(f"pass@{k}", at, start) for k, at, start in passes if k > 1]
        lines += several if len(several) < 3 else [several[len(several) // 2 - 1], several[-1]]
    for i, (name, curve, start) in enumerate(lines):
        low, middle, high = np.array(curve).T
        color = look.color(i)
        ax.plot(data.beta, middle, **{**look.series(i), "label": name, **style})
        ax.fill_between(data.beta, low, high, color=color, alpha=0.2, linewidth=0)
        ax.axhline(start[1], color=color, linestyle=":", linewidth=1)
    ax.plot([], [], color=look.GREY, linestyle=":", linewidth=1, label="base model")
    ax.fill_between([], [], color=look.GREY, alpha=0.3, linewidth=0, label="95 % intervals")
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.05 * (high - low), None if data.graded else 1.02)
    chosen = data.recommended.beta
    if data.beta[0] <= chosen <= data.beta[-1]:
        ax.axvline(chosen, color=look.GREY, linestyle=look.DASHED, linewidth=1)
        ax.annotate(
            "recommended",
            (chosen, 0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 4),
            textcoords="offset points",
            color=look.GREY,
            bbox={"facecolor": ax.get_facecolor(), "edgecolor": "none", "pad": 1, "alpha": 0.8},
        )
    ax.set(xscale="log", xlabel="β", ylabel="mean over the prompts")
    drawn = len(lines) - 1
    _legend_above(ax, f"{drawn} of {len(several)} k drawn" if drawn < len(several) else None)


def _over_kl(ax: Axes, data: Forecast, style: dict[str, Any]) -> None:
    look.dress(ax)
    kind = "reward" if data.graded else "success"
    kl = np.array(data.curves["kl"])[:, 1]
    gained = np.array(data.curves["expected_reward" if data.graded else "success"])
    color = look.color(0)
    ax.plot(kl, gained[:, 1], **{"color": color, "label": "targets", **style})
    ax.fill_between(kl, gained[:, 0], gained[:, 2], color=color, alpha=0.2, linewidth=0)
    best = np.array(data.curves[f"best_of_n_{kind}"])[:, 1]
    ax.plot(kl, best, color=look.ink(), linestyle=look.DASHED, label="best of n")
    top = None if data.graded else 1.02
    ax.set(xlabel="KL(π‖π_ref), nats a prompt", ylabel=kind, ylim=(None, top))
    _legend_above(ax)


def _legend_above(ax: Axes, title: str | None = None) -> None:
    place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "alignment": "left"}
    ax.legend(ncols=2, title=title, **place)
