"""Figures. Every function has the form ``plot.<noun>(data, *, ax=None, …) -> Axes``.

Those of several panels, such as ``frontier``, return their ``Figure``. Without ``ax`` a figure is
made that pyplot does not know of: a notebook shows it where a cell ends with the axes, and
``ax.figure.savefig(…)`` writes it.

The style sheet ``kltarget.mplstyle`` is in force while a figure is drawn and never outside; use it
for figures of your own with ``matplotlib.style.context(kltarget.plot.STYLE)``. Where matplotlib is
set to a dark background, figures are dark as well:

    with matplotlib.style.context(plot.DARK):
        ax = plot.beta_path(task)

``matplotlib.style.use(plot.DARK)`` does so for a whole notebook, and so does any other dark style.
"""

from kltarget.plot._beta_path import beta_path, ratio
from kltarget.plot._chain_figures import chain_ends
from kltarget.plot._comparison_figure import comparison
from kltarget.plot._density_figure import density
from kltarget.plot._diagnosis_figures import answers, diagnosis
from kltarget.plot._distillation_figure import distillation
from kltarget.plot._forecast_figure import forecast
from kltarget.plot._forgetting_figure import forgetting
from kltarget.plot._frontier_figure import frontier
from kltarget.plot._game_figures import equilibrium_path, game_rates, regret
from kltarget.plot._history_figure import history
from kltarget.plot._kept_texts_figure import kept_texts
from kltarget.plot._mdp_beta_figures import action_flips, regularization_gap
from kltarget.plot._mdp_figures import goal_masses, grid_policy
from kltarget.plot._munchausen_figure import munchausen_averaging
from kltarget.plot._overoptimization_figure import overoptimization
from kltarget.plot._proxy_figure import proxy_gains
from kltarget.plot._recipe_figure import recipe_comparison
from kltarget.plot._space_report_figure import space_report
from kltarget.plot._style import DARK, STYLE
from kltarget.plot._sweep_figures import phase
from kltarget.plot._target_figure import target
from kltarget.plot._tree_figure import tree
from kltarget.plot._value_iteration_figure import value_iterations
from kltarget.plot._verification_figures import (
    distances,
    predicted_vs_reached,
    training,
    verification,
)

__all__ = [
    "DARK",
    "STYLE",
    "action_flips",
    "answers",
    "beta_path",
    "chain_ends",
    "comparison",
    "density",
    "diagnosis",
    "distances",
    "distillation",
    "equilibrium_path",
    "forecast",
    "forgetting",
    "frontier",
    "game_rates",
    "goal_masses",
    "grid_policy",
    "history",
    "kept_texts",
    "munchausen_averaging",
    "overoptimization",
    "phase",
    "predicted_vs_reached",
    "proxy_gains",
    "ratio",
    "recipe_comparison",
    "regret",
    "regularization_gap",
    "space_report",
    "target",
    "training",
    "tree",
    "value_iterations",
    "verification",
]
