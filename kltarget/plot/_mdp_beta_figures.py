"""Figures of decision processes against β: what a regulariser takes, and which action leads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from kltarget.divergences import Divergence, ReverseKL
from kltarget.plot import _style as look
from kltarget.targets import mdps
from kltarget.targets.mdps import solve_mdp
from kltarget.tasks import MDPTask, load_mdp

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROUNDING = 1e-5
_MOST_STATES = 12
_FLIP = "flip: both level"


def regularization_gap(
    task: str | MDPTask,
    *,
    beta: ArrayLike | None = None,
    divergence: Divergence | None = None,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws what a regulariser takes from a decision process against β, below its bound.

    "Of the value" is ``max_s V*(s) − V(s)``, the regulariser's charge included, and "of the
    rewards" what its optimum earns less than ``V*``. The bound, of both, grows as β: it is what the
    dearest action would be charged in every step.

    Args:
        task: a decision process or its name.
        beta: coefficients to solve it for, increasing, in reward units per nat. Default: 61 from
            0.003 to 3 times the range of the rewards.
        divergence: reverse KL by default.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines of both gaps.

    Returns:
        The axes. Gaps below 1e-5 of the largest value are rounding and left out, and so is a bound
        that is infinite.

    Example:
        >>> from kltarget import plot
        >>> ax = plot.regularization_gap("two-goals", beta=[0.01, 0.1, 1.0])
        >>> [line.get_label() for line in ax.lines]
        ['bound', 'of the value', 'of the rewards']

    References:
        Geist, Scherrer, Pietquin, "A Theory of Regularized Markov Decision Processes", 2019, arXiv
        1901.11275.
    """
    task = load_mdp(task) if isinstance(task, str) else task
    grid = _grid(task, beta)
    target = solve_mdp(task.mdp, task.log_ref, grid, divergence).raise_if_failed()
    gap = mdps.regularization_gap(target)
    over = tuple(range(1, gap.value_gap.ndim))
    bound = np.asarray(gap.bound, float)
    least = _ROUNDING * float(np.abs(np.asarray(gap.greedy_values)).max())
    with look.drawing(ax) as ax:
        if np.isfinite(bound).any():
            dashes = {"color": look.ink(), "ls": look.DASHED, "lw": 1.2, "zorder": 4}
            ax.plot(grid, np.where(np.isfinite(bound), bound, np.nan), label="bound", **dashes)
        for k, (name, values) in enumerate(
            {"of the value": gap.value_gap, "of the rewards": gap.return_gap}.items()
        ):
            most = np.asarray(values, float).max(over)
            line = {**look.series(k), "label": name, "zorder": 3}
            ax.plot(grid, np.where(most > least, most, np.nan), **{**line, **style})
        ax.set(xscale="log", yscale="log", xlim=(grid[0], grid[-1]))
        ax.set(xlabel="β, reward units per nat", ylabel="largest gap, reward units")
        title = ReverseKL().title if divergence is None else divergence.title
        look.legend_beside(ax, title=title)
    return ax


def action_flips(
    task: str | MDPTask,
    *,
    beta: ArrayLike | None = None,
    divergence: Divergence | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws which action is the likeliest in each state against β, with the β where that changes.

    A bar is a state and its color the action that leads. Circles are the flips, found to a point.

    Args:
        task: a decision process without a horizon or its name.
        beta: coefficients between which to look, increasing, in reward units per nat. Default: 61
            from 0.003 to 3 times the range of the rewards.
        divergence: reverse KL by default.
        ax: axes to draw into. Default: those of a new figure.

    Returns:
        The axes. Of more than 12 states those that flip come first, and the rest is left out.

    Raises:
        ValueError: a process with a horizon, which has a policy for each step.

    Example:
        >>> from kltarget import plot
        >>> ax = plot.action_flips("river-swim", beta=[0.01, 0.1, 1.0])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['left', 'right', 'flip: both level']
    """
    task = load_mdp(task) if isinstance(task, str) else task
    if task.mdp.horizon is not None:
        raise ValueError(f"task {task.name!r} has a horizon: give one of one policy for all steps")
    grid = _grid(task, beta)
    flips = mdps.action_flips(task.mdp, task.log_ref, grid, divergence)
    ends = solve_mdp(task.mdp, task.log_ref, grid[:1], divergence).raise_if_failed()
    lead = np.asarray(ends.log_policy)[0].argmax(-1)
    states = np.setdiff1d(np.arange(task.mdp.num_states), np.flatnonzero(task.mdp.absorbing))
    turned = np.isin(states, [flip.state for flip in flips])
    rows = np.sort(states[np.argsort(~turned, kind="stable")][:_MOST_STATES])
    drawn, levels = set(), []
    with look.drawing(ax, figsize=(6.4, 1.1 + 0.26 * max(len(rows), 4))) as ax:
        for y, state in enumerate(rows):
            own = [flip for flip in flips if flip.state == state]
            cuts = np.array([grid[0], *(flip.beta for flip in own), grid[-1]])
            for k, action in enumerate([int(lead[state]), *(flip.above for flip in own)]):
                bar = {**look.filling(action), "height": 0.62, "zorder": 2}
                ax.barh(y, cuts[k + 1] - cuts[k], left=cuts[k], **bar)
                drawn.add(action)
            levels += [(flip.beta, y) for flip in own]
        for action in sorted(drawn):
            ax.barh([0], [0], left=grid[0], **look.filling(action), label=task.labels[action])
        if levels:
            circle = {"ls": "", "marker": "o", "ms": 6, "mfc": look.paper(), "mec": look.ink()}
            ax.plot(*zip(*levels, strict=True), label=_FLIP, zorder=4, **circle)
        ax.set(xscale="log", xlim=(grid[0], grid[-1]), ylim=(len(rows) - 0.5, -0.5))
        names = [look.short_label(task.states[state], 20) for state in rows]
        ax.set_yticks(range(len(rows)), names)
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        ax.set_xlabel("β, reward units per nat")
        if len(rows) < len(states):
            ax.set_ylabel(f"{len(rows)} of {len(states)} states")
        # Matplotlib names lines before bars.
        entries = sorted(
            zip(*ax.get_legend_handles_labels(), strict=True), key=lambda x: x[1] == _FLIP
        )
        look.legend_beside(ax, *zip(*entries, strict=True), title="likeliest action")
    return ax


def _grid(task: MDPTask, beta: ArrayLike | None) -> np.ndarray:
    if beta is None:
        reward = np.asarray(task.mdp.reward, float)
        beta = np.geomspace(0.003, 3, 61) * (np.ptp(reward[np.isfinite(reward)]) or 1.0)
    return np.asarray(beta, float).ravel()
