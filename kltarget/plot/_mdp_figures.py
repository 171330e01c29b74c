"""Figures of decision processes: policies on a grid, and the goals in which they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from kltarget.divergences import Divergence
from kltarget.plot import _style as look
from kltarget.targets.mdps import regularization_gap, solve_mdp
from kltarget.tasks import MDPTask, load_mdp

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST = 0.02
_STEPS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


def grid_policy(
    task: str | MDPTask,
    beta: float,
    *,
    divergence: Divergence | None = None,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws the optimal policy of a grid world at one β: arrows over the values of its states.

    The longer an arrow, the likelier the move; those below 2 % are left out. The ring is where it
    starts. Colors end at the best value without a regulariser, and so mean the same at every β.

    Args:
        task: a grid world or its name.
        beta: coefficient, in reward units per nat, a number.
        divergence: reverse KL by default.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the arrows.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Raises:
        ValueError: a process that is no grid world, or has a horizon.

    Example:
        >>> from kltarget import plot
        >>> ax = plot.grid_policy("two-goals", 0.05)
        >>> [text.get_text() for text in ax.texts]
        ['A', 'B']
    """
    task = load_mdp(task) if isinstance(task, str) else task
    if task.places is None:
        raise ValueError(f"task {task.name!r} has no places: give a grid world, as 'two-goals' is")
    if task.mdp.horizon is not None:
        raise ValueError(f"task {task.name!r} has a horizon: give one of one policy for all steps")
    target = solve_mdp(task.mdp, task.log_ref, float(beta), divergence).raise_if_failed()
    policy = np.exp(np.asarray(target.log_policy, float))
    value, places = np.asarray(target.state_values, float), np.asarray(task.places)
    most = float(regularization_gap(target).greedy_values.max())
    seen = np.full(places.max(0) + 1, np.nan)
    seen[tuple(places.T)] = value
    seen[tuple(places[list(task.goals)].T)] = np.nan
    import matplotlib
    from matplotlib.patches import Rectangle

    with look.drawing(ax, figsize=(6.0, 3.7)) as ax:
        # Walls are what the picture leaves open.
        shades = matplotlib.colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
        ax.patch.set(facecolor=look.faint(), hatch="////", edgecolor=look.paper())
        image = ax.imshow(seen, cmap=shades, vmin=min(0.0, float(np.nanmin(seen))), vmax=most)
        bar = ax.figure.colorbar(image, ax=ax, shrink=0.8)
        bar.set_label("value of the state", color=look.ink())
        bar.ax.tick_params(colors=look.ink())
        bright = value > 0.55 * most
        for k, name in enumerate(task.labels):
            right, down = _STEPS[name]
            shown = (policy[:, k] > _LEAST) & ~np.isin(np.arange(len(policy)), task.goals)
            length = 0.45 * policy[shown, k]
            colors = np.where(bright[shown], "black", "white")
            arrows = {
                "angles": "xy",
                "scale_units": "xy",
                "scale": 1,
                "width": 0.006,
                "headwidth": 3.6,
            }
            arrows |= {"headlength": 3.2, "headaxislength": 2.8, "minlength": 0.1}
            arrows |= {"color": colors, "zorder": 3}
            y, x = places[shown].T
            ax.quiver(x, y, right * length, down * length, **{**arrows, **style})
        for goal in task.goals:
            i, j = places[goal]
            square = {"facecolor": look.color(1), "edgecolor": "none", "zorder": 2}
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **square))
            name = task.states[goal].removeprefix("goal ")
            ax.text(j, i, name, ha="center", va="center", color="black", fontsize=13, zorder=4)
        i, j = places[int(np.asarray(task.mdp.start).argmax())]
        ring = "black" if bright[int(np.asarray(task.mdp.start).argmax())] else "white"
        circle = {"marker": "o", "ms": 30, "mfc": "none", "mec": ring, "mew": 1.6}
        ax.plot([j], [i], ls="", zorder=4, **circle)
        walls = "" if len(places) == seen.size else "; hatched: wall"
        ax.set(xticks=[], yticks=[], xlabel="circle: start" + walls)
        ax.grid(False)
        ax.set_title(f"β = {look.short_number(float(beta))}", color=look.ink())
    return ax


def goal_masses(
    task: str | MDPTask,
    *,
    beta: ArrayLike | None = None,
    divergence: Divergence | None = None,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws how likely the optimal policy is to end in each goal against β.

    Dashed is the reference, which a large β leads to. Goals that pay the same and lie as far away
    keep its ratio at every β.

    Args:
        task: a decision process with goals, or its name.
        beta: coefficients to solve it for, increasing, in reward units per nat. Default: 61 from
            0.003 to 3 times the largest reward.
        divergence: reverse KL by default.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Raises:
        ValueError: a process without goals.

    Example:
        >>> from kltarget import plot
        >>> ax = plot.goal_masses("two-goals", beta=[0.01, 0.1, 1.0])
        >>> ax.get_ylabel()
        'probability to end there'
    """
    task = load_mdp(task) if isinstance(task, str) else task
    if not task.goals:
        raise ValueError(
            f"task {task.name!r} has no goals: give one that ends, as 'two-goals' does"
        )
    reward = np.asarray(task.mdp.reward, float)
    if beta is None:
        beta = np.geomspace(0.003, 3, 61) * float(reward[np.isfinite(reward)].max())
    grid = np.asarray(beta, float)
    target = solve_mdp(task.mdp, task.log_ref, grid, divergence).raise_if_failed()
    masses, level = task.goal_masses(target.log_policy), task.goal_masses(task.log_ref)
    with look.drawing(ax) as ax:
        for k, goal in enumerate(task.goals):
            line = {**look.series(k), "label": task.states[goal], "zorder": 3}
            ax.plot(grid, masses[:, k], **{**line, **style})
            # Above the lines: with equal rewards they lie on it at every β.
            ax.axhline(level[k], color=look.ink(), lw=0.9, ls=look.DASHED, zorder=4)
        ax.plot([], [], color=look.ink(), lw=0.9, ls=look.DASHED, label="reference")
        ax.set(xscale="log", xlim=(grid[0], grid[-1]), ylim=(0, 1.03))
        ax.set(xlabel="β, reward units per nat", ylabel="probability to end there")
        look.legend_beside(ax)
    return ax
