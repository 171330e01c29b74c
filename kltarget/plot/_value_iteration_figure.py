"""Figure of value iterations: what each policy still loses, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget.plot import _style as look
from kltarget.training import ValueIterates, mirror_descent_vi

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROUNDING = 1e-9
# Below this part of the first loss nothing is drawn: all but a few rows have lost their loss.
_SHOWN = 1e-4


def value_iterations(
    paths: Mapping[str, ValueIterates],
    *,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws how much each step's policy loses against the best one, without regularisers.

    A line is the mean over the batch of ``max_s V*(s) − V^π(s)``, and its band is two
    standard errors on either side. Where errors average out, it keeps falling; a dotted line falls
    as 1/√k.

    Args:
        paths: what :func:`kltarget.training.mirror_descent_vi` or
            :func:`kltarget.training.munchausen_vi` went through, by names for the legend.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines.

    Returns:
        The axes. What is below 1e-4 of the first loss is not shown.

    Raises:
        ValueError: there is nothing to draw.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget import plot
        >>> from kltarget.spaces import MDP
        >>> from kltarget.training import mirror_descent_vi
        >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> mdp = MDP(stay_or_go, jnp.array([[0.1, 0.0], [1.0, 1.0]]), 0.9)
        >>> even = jnp.log(jnp.full((2, 2), 0.5))
        >>> path = mirror_descent_vi(mdp, even, kl_weight=1.0, num_steps=20)
        >>> plot.value_iterations({"KL": path}).get_xlabel()
        'step k'
    """
    if not paths:
        raise ValueError("paths is empty: give at least one")
    top, least, longest = 0.0, np.inf, 1
    with look.drawing(ax) as ax:
        for k, (name, path) in enumerate(paths.items()):
            lost = losses(path)[1:]
            steps, rows = np.arange(1, len(lost) + 1), lost.reshape(len(lost), -1)
            mean = rows.mean(1)
            shown = np.where(mean > _ROUNDING, mean, np.nan)
            if rows.shape[1] > 1:
                error = 2 * rows.std(1, ddof=1) / np.sqrt(rows.shape[1])
                low = np.maximum(mean - error, _ROUNDING)
                shade = {"color": look.color(k), "alpha": 0.2, "lw": 0, "zorder": 2}
                ax.fill_between(steps, low, mean + error, **shade)
            line = {**look.series(k), "label": name, "zorder": 4}
            ax.plot(steps, shown, **{**line, **style})
            top, longest = max(top, float(mean[0])), max(longest, len(lost))
            least = min(least, float(mean.min()))
        steps = np.arange(1, longest + 1)
        dots = {"color": look.GREY, "ls": (0, (1.2, 1.6)), "lw": 1.2, "zorder": 3}
        ax.plot(steps, top / np.sqrt(steps), label="as 1/√k", **dots)
        ax.set(xscale="log", yscale="log", xlim=(1, max(longest, 2)))
        ax.set_ylim(max(ax.get_ylim()[0], _SHOWN * top), 2 * top)
        ax.set(xlabel="step k", ylabel="loss of the policy, reward units")
        look.plain_ticks(ax.yaxis)
        if least < ax.get_ylim()[0]:
            look.unseen(ax, f"not shown: below {look.short_number(_SHOWN * top, 1)}")
        look.legend_beside(ax)
    return ax


def losses(path: ValueIterates) -> np.ndarray:
    """What each policy loses in the state where it loses most, ``[steps, *batch]``."""
    start = path.log_policy[0]
    mdp = path.mdp
    steps = 2 + math.ceil(math.log(_ROUNDING) / math.log(float(mdp.discount)))
    exact = mirror_descent_vi(mdp, start, kl_weight=0.0, num_steps=steps)
    best = np.asarray(exact.returns[-1], float)
    return (best - np.asarray(path.returns, float)).max(-1)
