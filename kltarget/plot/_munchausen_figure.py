"""Figure of MVI(q): what its policies lose, and whether their action values are still averages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from kltarget.plot import _style as look
from kltarget.plot._value_iteration_figure import losses
from kltarget.spaces import MDP
from kltarget.training import ValueIterates, munchausen_vi

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def munchausen_averaging(
    mdp: MDP,
    log_start: ArrayLike,
    *,
    q: Sequence[float] = (0.95, 1.0, 1.5, 2.0),
    temperature: float,
    munchausen: float,
    num_steps: int,
    errors: ArrayLike | None = None,
    **style: Any,
) -> Figure:
    """Draws what the policies of MVI(q) lose at each step, and how far they are from averages.

    On the left is the mean over rows of ``max_s V*(s) − V^π(s)``, with a band of two standard
    errors. On the right is how far action values are from sums that forget at ``α/q`` a step, where
    they are furthest: 0, but for rounding, as long as no action has been cut off. Errors average
    out where these sums hold and ``α/q`` is near 1.

    Args:
        mdp: the decision process.
        log_start: the first policy, ``[S, A]``.
        q: indices of ``ln_q``, a line each.
        temperature: τ, in reward units per nat.
        munchausen: α, from 0 to 1.
        num_steps: how many steps to take.
        errors: of each step's action values, ``[num_steps, *batch, S, A]``; none by default.
        **style: properties of the lines.

    Returns:
        The figure; on the right, lines of sums that hold lie on each other.

    Raises:
        ValueError: no q, and what :func:`kltarget.training.munchausen_vi` refuses.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget import plot
        >>> from kltarget.spaces import MDP
        >>> stay_or_go = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> mdp = MDP(stay_or_go, jnp.array([[0.1, 0.0], [1.0, 1.0]]), 0.9)
        >>> even = jnp.log(jnp.full((2, 2), 0.5))
        >>> options = {"temperature": 1.0, "munchausen": 0.9, "num_steps": 20}
        >>> figure = plot.munchausen_averaging(mdp, even, q=(1.0, 2.0), **options)
        >>> figure.axes[1].get_ylabel()
        'distance from sums, reward units'

    References:
        Zhu, Chen, Schlegel, White, "General Munchausen Reinforcement Learning with Tsallis
        Kullback-Leibler Divergence", 2023, arXiv 2301.11476.
    """
    if not len(q):
        raise ValueError("q is empty: give at least one index")
    options = {"temperature": temperature, "munchausen": munchausen, "num_steps": num_steps}
    paths = {index: munchausen_vi(mdp, log_start, q=index, errors=errors, **options) for index in q}
    with look.in_style():
        figure = look.new_figure(figsize=(6.4, 3.7))
        left, right = figure.subplots(1, 2)
        for k, (index, path) in enumerate(paths.items()):
            lost = losses(path)[1:]
            rows = lost.reshape(len(lost), -1)
            steps, mean = np.arange(1, len(rows) + 1), rows.mean(1)
            forgotten = look.short_number(munchausen / index)
            name = f"q = {look.short_number(index)}, α/q = {forgotten}"
            line = {**look.series(k), "label": name, "zorder": 3 + 0.01 * k, **style}
            left.plot(steps, mean, **line)
            if rows.shape[1] > 1:
                error = 2 * rows.std(1, ddof=1) / np.sqrt(rows.shape[1])
                shade = {"color": look.color(k), "alpha": 0.2, "lw": 0, "zorder": 2}
                left.fill_between(steps, mean - error, mean + error, **shade)
            far = _distance(path, temperature * munchausen, munchausen / index, index)
            # Sums that hold lie on each other: what is below is seen between the dashes.
            dashes = {"ls": look.DASHED} if k % 2 else {}
            right.plot(steps, far[1:].reshape(len(rows), -1).mean(1), **{**dashes, **line})
        left.set_ylim(bottom=0)
        left.set(ylabel="loss of the policy, reward units")
        right.set(ylabel="distance from sums, reward units")
        for ax in (left, right):
            look.dress(ax)
            ax.set(xscale="log", xlim=(1, max(num_steps, 2)), xlabel="step k")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _distance(path: ValueIterates, weight: float, kept: float, q: float) -> np.ndarray:
    """How far action values are from sums with forgetting, but for a number per state."""
    values, log_policy = (np.asarray(x, float) for x in (path.action_values, path.log_policy))
    present = np.isfinite(log_policy[0])
    added = log_policy if q == 1 else np.expm1((q - 1) * log_policy) / (q - 1)
    own = np.where(present, values - weight * np.where(present, added, 0.0), 0.0)
    values = np.where(present, values, 0.0)
    total, far = values[0], [np.zeros(values.shape[1:-2])]
    for now, new in zip(values[1:], own[1:], strict=True):
        total = new + kept * total
        rest = now - total
        middle = rest.sum(-1, keepdims=True) / present.sum(-1, keepdims=True)
        far.append(np.where(present, np.abs(rest - middle), 0.0).max((-2, -1)))
    return np.array(far)
