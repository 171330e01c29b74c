"""The figure of what changed along the steps of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kltarget._core.words import number
from kltarget.plot import _style as look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kltarget.diagnosis import Diagnosis

_PANELS = {
    "reward": "mean reward",
    "kl": "KL to the reference, nats",
    "token_entropy": "entropy of a token, nats",
    "entropy": "entropy of the answers, nats",
    "differ": "chance that two answers differ",
    "zero_std": "groups with equal rewards",
}
_SHARES = ("differ", "zero_std")


def history(diagnosis: Diagnosis) -> Figure | None:
    """Draws what changed along the steps: reward, entropy, difference and groups of equal rewards.

    Where a run has a target, a dashed line is where the curve ends if the run gets there: the mean
    over the prompts whose targets were computed; of curves alone, the target of a prompt that is as
    hard as the mean one.

    Args:
        diagnosis: what :func:`kltarget.diagnose` returned.

    Returns:
        The figure, a panel for each curve that the log holds; None if it has one step, or none.

    Example:
        >>> import pandas as pd
        >>> from kltarget import plot
        >>> from kltarget.diagnosis import diagnose
        >>> frame = pd.DataFrame(
        ...     {"answer": list("1221"), "reward": [0.0, 1, 1, 1], "ref_logp": None}
        ... )
        >>> frame = frame.assign(
        ...     completion=frame["answer"], prompt="?", step=[1, 1, 2, 2], logp=None
        ... )
        >>> len(plot.history(diagnose(frame.assign(group_id=[0, 0, 1, 1]))).axes)
        4
    """
    steps = [
        (first + last) / 2
        for first, last in zip(diagnosis.history["step"], diagnosis.history["until"], strict=True)
    ]
    kept = {x: diagnosis.history.get(x, []) for x in _PANELS}
    shown = [x for x in _PANELS if sum(map(math.isfinite, kept[x])) > 1]
    if len(steps) < 2 or not shown:
        return None
    from matplotlib.ticker import MaxNLocator

    # Curves know the target of a prompt that is as hard as the mean one.
    called = "target, if all alike:" if diagnosis.tier == 0 else "target"
    with look.in_style():
        rows = -(-len(shown) // 2)
        figure = look.new_figure(figsize=(6.4 if len(shown) > 1 else 3.4, 0.2 + 2.4 * rows))
        grid = figure.add_gridspec(rows, min(len(shown), 2))
        panels = [figure.add_subplot(grid[k // 2, k % 2]) for k in range(len(shown))]
        for ax, name in zip(panels, shown, strict=True):
            ax.plot(steps, diagnosis.history[name], color=look.color(1), marker=".", zorder=3)
            target = diagnosis.asymptotes.get(name)
            if target is not None:
                ax.axhline(target, color=look.color(0), linestyle="--", zorder=2)
                ends = [x for x in diagnosis.history[name] if math.isfinite(x)]
                middle = (min(*ends, target) + max(*ends, target)) / 2
                up = target < middle
                look.note(
                    *(
                        ax,
                        f"{called} {number(target, 3)}",
                        (steps[0], target),
                        (0, 3 if up else -3),
                    ),
                    ha="left",
                    va="bottom" if up else "top",
                )
            ax.set_title(_PANELS[name], color=look.ink())
            ax.set_xlabel("step")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.margins(y=0.12)
            if name in _SHARES:
                low, high = ax.get_ylim()
                ax.set_ylim(max(low, -0.03), min(high, 1.03))
    return figure
