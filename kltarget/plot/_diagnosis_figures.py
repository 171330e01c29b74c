"""The figure of a diagnosis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget.plot import _style as look
from kltarget.plot._beta_path import beta_path
from kltarget.plot._history_figure import history
from kltarget.plot._paths import likeliest_first

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kltarget.diagnosis import Diagnosis

_MOST_ANSWERS = 9


def answers(diagnosis: Diagnosis, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Draws the shares of a prompt's answers: reference, target and the last policy.

    Args:
        diagnosis: what :func:`kltarget.diagnosis.diagnose` found; its ``featured`` prompt is drawn.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the bars.

    Returns:
        The axes; ``ax.figure`` is the figure. What the log does not tell is left out.

    Example:
        >>> import pandas as pd
        >>> from kltarget import plot
        >>> from kltarget.diagnosis import diagnose
        >>> from kltarget.recipes import Recipe
        >>> frame = pd.DataFrame({"answer": ["1", "2"], "completion": ["1", "2"], "reward": [1, 0]})
        >>> frame = frame.assign(prompt="?", step=1, group_id=0, logp=None, ref_logp=[-0.7, -0.7])
        >>> found = diagnose(frame, Recipe("reward", "k1"), beta=1.0)
        >>> plot.answers(found).get_ylabel()
        'probability'
    """
    featured = diagnosis.featured
    with look.drawing(ax) as ax:
        if featured is None:
            ax.text(0.5, 0.5, "no answers", ha="center", transform=ax.transAxes)
            return ax
        shown = likeliest_first(featured)[:_MOST_ANSWERS]
        bars = [
            ("reference", featured.reference, {"color": look.GREY}),
            ("target", featured.target, look.filling(0)),
            ("now", featured.now, look.filling(1)),
        ]
        known = [
            (np.asarray(x)[shown], {**filling, "label": name, "zorder": 3, **style})
            for name, x, filling in bars
            if x is not None
        ]
        look.grouped_bars(ax, known, 0.8)
        labels = [
            f"{look.short_label(featured.names[i], 12)}\n{look.short_number(featured.reward[i])}"
            for i in shown
        ]
        ax.set_xticks(range(len(shown)), labels)
        left = len(featured.names) - len(shown)
        what = "answer, and its reward" + (f"; {left} more not shown" if left else "")
        ax.set(xlabel=what, ylabel="probability", xlim=(-0.6, len(shown) - 0.4))
        ax.grid(False, axis="x")
        look.legend_beside(ax)
        ax.set_title(f"“{look.short_label(featured.prompt, 40)}”", color=look.ink())
    return ax


def diagnosis(diagnosis: Diagnosis) -> Figure:
    """The featured prompt's shares beside its target and, if it has one, the target over β.

    Where there are curves and no rollouts, it is :func:`history`.

    Args:
        diagnosis: what :func:`kltarget.diagnose` returned.
    """
    if diagnosis.tier == 0 and (curves := history(diagnosis)) is not None:
        return curves
    has_target = diagnosis.featured is not None and bool(diagnosis.featured.betas)
    title = diagnosis.recipe_name
    if diagnosis.beta is not None:
        title += f", β = {diagnosis.beta:g}"
    with look.in_style():
        # No wider than what a telephone shows legibly.
        figure = look.new_figure(figsize=(6.4, 6.6 if has_target else 3.6))
        if has_target:
            upper, lower = figure.subplots(2, 1)
            beta_path(diagnosis, ax=lower)
        else:
            upper = figure.subplots()
        answers(diagnosis, ax=upper)
        figure.suptitle(title, x=0.01, ha="left")
    return figure
