"""A figure of chains: what is generated, by the reference and by the best law of paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget.plot import _style as look
from kltarget.spaces import Chain
from kltarget.targets.chains import solve_chain
from kltarget.tasks import ChainTask, load_chain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def chain_ends(task: str | ChainTask, beta: float, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Draws what a chain generates: the reference, and the target with the first law free or fixed.

    Args:
        task: a chain on points of a line, or its name.
        beta: coefficient, in reward units per nat.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the targets' lines.

    Returns:
        The axes. Shaded is where the reward is highest; in the legend stands what each target pays,
        in nats, summed over its steps.

    Raises:
        ValueError: a chain that is not on points of a line.

    Example:
        >>> from kltarget import plot
        >>> plot.chain_ends("denoise", 0.2).get_ylabel()
        'probability of x₀'
    """
    task = load_chain(task) if isinstance(task, str) else task
    if not isinstance(task.chain, Chain) or task.points is None:
        raise ValueError(f"task {task.name!r} has no states on a line: give one such as 'denoise'")
    points = np.asarray(task.points, float)
    reward = np.asarray(task.reward, float)
    with look.drawing(ax) as ax:
        base = np.exp(np.asarray(task.chain.log_marginals()[..., -1, :], float))
        best = (reward == reward.max()).astype(float)
        shade = {"color": look.faint(), "lw": 0, "alpha": 0.35, "zorder": 1, "step": "mid"}
        top = base.max()
        lines = []
        for tilt_first, name in ((True, "first law tilted"), (False, "first law fixed")):
            target = solve_chain(task.chain, reward, beta, tilt_first=tilt_first)
            law = np.exp(np.asarray(target.log_last, float))
            paid = look.short_number(float(target.step_kl.sum()))
            lines.append((law, f"{name}, {paid} nats"))
            top = max(top, law.max())
        ax.fill_between(points, 0, 1.08 * top * best, label="highest reward", **shade)
        dashes = {"color": look.GREY, "ls": look.DASHED, "lw": 1.4, "zorder": 2}
        ax.plot(points, base, label="reference", **dashes)
        for k, (law, name) in enumerate(lines):
            line = {**look.series(k), "label": name, "zorder": 3 + k}
            ax.plot(points, law, **{**line, **({"ls": (0, (4, 2))} if k else {}), **style})
        ax.set(xlim=(points[0], points[-1]), ylim=(0, 1.08 * top))
        ax.set(xlabel="x₀", ylabel="probability of x₀")
        look.legend_beside(ax, title=f"{task.name}, β = {look.short_number(beta)}")
    return ax
