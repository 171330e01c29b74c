"""Figures. Every function has the form `plot.<noun>(data, *, ax=None, …) -> Axes`.

Without `ax` a figure is made that pyplot does not know of: show it as `ax.figure` in a notebook or
write it with `ax.figure.savefig(…)`. The style sheet `kltarget.mplstyle` is in force while a figure
is drawn and never outside; use it for figures of your own with
`matplotlib.style.context(kltarget.plot.STYLE)`.
"""

from kltarget.plot._diagnosis import answers, target_over_beta
from kltarget.plot._style import STYLE
from kltarget.plot._target import target
from kltarget.plot._verification import distances, predicted_vs_reached, training

__all__ = [
    "STYLE",
    "answers",
    "distances",
    "predicted_vs_reached",
    "target",
    "target_over_beta",
    "training",
]
