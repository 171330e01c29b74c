"""The figure of a diagnosis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._text import short
from kltarget.plot._style import REFERENCE_COLOR, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kltarget.rollouts import Diagnosis, Featured

_MOST_ANSWERS = 9
_MOST_LINES = 5
_LEAST_SHARE = 1e-6


def answers(diagnosis: Diagnosis, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Draws the shares of a prompt's answers: reference, target and the last policy.

    Args:
        diagnosis: what :func:`kltarget.rollouts.diagnose` found; its ``featured`` prompt is drawn.
        ax: Axes to draw into. Default: those of a new figure.
        **style: Properties of the bars.

    Returns:
        The axes; `ax.figure` is the figure. What the log does not tell is left out.

    Example:
        >>> import pandas as pd
        >>> from kltarget import plot
        >>> from kltarget.rollouts import diagnose
        >>> from kltarget.training import Recipe
        >>> frame = pd.DataFrame({"answer": ["1", "2"], "completion": ["1", "2"], "reward": [1, 0]})
        >>> frame = frame.assign(prompt="?", step=1, group_id=0, logp=None, ref_logp=[-0.7, -0.7])
        >>> found = diagnose(frame, Recipe("reward", "k1"), beta=1.0)
        >>> plot.answers(found).get_ylabel()
        'probability'
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    featured = diagnosis.featured
    with matplotlib.style.context(STYLE):
        ax = Figure().add_subplot() if ax is None else ax
        if featured is None:
            ax.text(0.5, 0.5, "no answers", ha="center", transform=ax.transAxes)
            return ax
        shown = _order(featured)[:_MOST_ANSWERS]
        bars = [
            ("reference", featured.reference, REFERENCE_COLOR),
            ("target", featured.target, "#0072B2"),
            ("now", featured.now, "#E69F00"),
        ]
        bars = [(name, np.asarray(x), color) for name, x, color in bars if x is not None]
        width = 0.8 / len(bars)
        for k, (name, values, color) in enumerate(bars):
            place = np.arange(len(shown)) + (k - (len(bars) - 1) / 2) * width
            options = {"color": color, "label": name, "zorder": 3, **style}
            ax.bar(place, values[shown], width * 0.92, **options)
        labels = [f"{short(featured.names[i], 12)}\nr = {featured.reward[i]:.3g}" for i in shown]
        ax.set_xticks(range(len(shown)), labels)
        ax.set_xlim(-0.6, len(shown) - 0.4)
        ax.set_ylabel("probability")
        ax.grid(False, axis="x")
        ax.legend(loc="upper right")
        ax.set_title(f"“{short(featured.prompt, 40)}”")
    return ax


def target_over_beta(diagnosis: Diagnosis, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Draws the target's shares over β, with the flips and the configured β marked.

    Args:
        diagnosis: what :func:`kltarget.rollouts.diagnose` found; its ``featured`` prompt is drawn.
        ax: Axes to draw into. Default: those of a new figure.
        **style: Properties of the lines.

    Returns:
        The axes; `ax.figure` is the figure. Without a target they only say so.

    Example:
        >>> import pandas as pd
        >>> from kltarget import plot
        >>> from kltarget.rollouts import diagnose
        >>> from kltarget.training import Recipe
        >>> frame = pd.DataFrame({"answer": ["1", "2"], "completion": ["1", "2"], "reward": [1, 0]})
        >>> frame = frame.assign(prompt="?", step=1, group_id=0, logp=None, ref_logp=[-0.9, -0.6])
        >>> found = diagnose(frame, Recipe("reward", "k1"), beta=1.0)
        >>> plot.target_over_beta(found).get_xscale()
        'log'
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    featured = diagnosis.featured
    with matplotlib.style.context(STYLE):
        ax = Figure().add_subplot() if ax is None else ax
        ax.set_title("the recipe's target over β")
        ax.set_xlabel("β of the trainer")
        if featured is None or not featured.betas:
            why = "β = 0: no target" if diagnosis.beta == 0 else "no target without ref_logp"
            if featured is not None and featured.reference is not None and diagnosis.beta > 0:
                why = "this recipe has no target"
            ax.text(0.5, 0.5, why, ha="center", transform=ax.transAxes, color="#777777")
            ax.set_xticks([])
            ax.set_yticks([])
            return ax
        betas, shares = np.asarray(featured.betas), np.asarray(featured.shares)
        lines = _order(featured)[:_MOST_LINES]
        for i in lines:
            options = {"label": short(featured.names[i], 16), "zorder": 3, **style}
            ax.plot(betas, shares[:, i], **options)
        rest = np.delete(shares, lines, axis=1).sum(1)
        ax.plot(betas, rest, color="#bbbbbb", lw=1.2, label="all others", zorder=2)
        top = float(shares[:, lines].max()) * 1.18
        ax.set(xscale="log", xlim=(betas[0], betas[-1]), ylim=(0, max(top, _LEAST_SHARE)))
        ax.axvline(diagnosis.beta, color="#222222", lw=1.4, zorder=4)
        ax.annotate(
            f"configured {diagnosis.beta:g}",
            (diagnosis.beta, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -2),
            textcoords="offset points",
            va="top",
            fontsize="small",
        )
        drawn = False
        for flip in featured.flips:
            if not (math.isfinite(flip["beta"]) and betas[0] < flip["beta"] < betas[-1]):
                continue
            i = featured.names.index(flip["better"])
            level = np.interp(math.log(flip["beta"]), np.log(betas), shares[:, i])
            label = None if drawn else "flip: two answers level"
            ax.plot(
                *([flip["beta"]], [level]),
                ls="",
                marker="o",
                ms=6.5,
                mfc="white",
                mec="#222222",
                zorder=5,
                label=label,
            )
            drawn = True
        ax.set_ylabel("probability in the target")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    return ax


def overview(diagnosis: Diagnosis) -> Figure:
    """The two panels of :meth:`kltarget.rollouts.Diagnosis.plot`."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(12.0, 4.2))
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
        answers(diagnosis, ax=left)
        target_over_beta(diagnosis, ax=right)
        figure.suptitle(f"{diagnosis.recipe_name}, β = {diagnosis.beta:g}", x=0.01, ha="left")
    return figure


def _order(featured: Featured) -> list[int]:
    """Seen answers, those of most probability under target or last policy first."""
    columns = [x for x in (featured.target, featured.now) if x is not None]
    # What is not known of an answer does not count; answers of which nothing is come last.
    key = np.fmax.reduce(np.array(columns))[:-1]
    return np.argsort(-key, kind="stable").tolist()
