"""A figure of students trained under several divergences: which mode each of them covers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from kltarget.plot import _style as look
from kltarget.plot._density_figure import density

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kltarget.training import Distillation


def distillation(
    found: Distillation, start: int | None = None, *, ax: Axes | None = None, **style: Any
) -> Axes:
    """Draws the student of each divergence beside the target, on a line.

    Args:
        found: what :func:`kltarget.training.distill` found on a line, of no start or one axis of
            starts.
        start: which of the starts to draw. Default: for each divergence the one that ended lowest.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the students' lines.

    Returns:
        The axes. In the legend stand the shares of the target's components, in the order of their
        means, that each student has too, in percent.

    Raises:
        ValueError: more axes of starts than one, a start that there is not, a plane.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget import plot
        >>> from kltarget.training import distill
        >>> target = kt.GaussianMixture(
        ...     jnp.log(jnp.array([0.6, 0.4])),
        ...     [[-3.0], [3.0]],
        ...     [0.5, 0.5],
        ...     covariance_type="spherical",
        ... )
        >>> start = kt.GaussianMixture([0.0], [[1.0]], [1.0], covariance_type="spherical")
        >>> both = kt.ReverseKL(), kt.ForwardKL()
        >>> ax = plot.distillation(distill(target, both, start, learning_rate=0.05, num_steps=300))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['target', 'reverse KL: 0, 100', 'forward KL: 46, 47']
    """
    value = np.asarray(found.divergence_value[-1], float)
    if value.ndim > 2 or found.target.dim != 1:
        raise ValueError(
            f"found has starts of shape {value.shape[1:]} in {found.target.dim} dimensions: one "
            "axis of starts on a line can be drawn"
        )
    rows = value.reshape(len(value), -1)
    if start is not None and not -rows.shape[1] <= start < rows.shape[1]:
        raise ValueError(f"start {start} is none of the {rows.shape[1]} starts")
    order = np.argsort(np.asarray(found.target.means, float)[:, 0])
    covered = np.asarray(found.covered, float).reshape(*rows.shape, -1)[..., order]
    named, labels = {}, ["target"]
    for k, divergence in enumerate(found.divergences):
        chosen = int(np.argmin(np.where(np.isnan(rows[k]), np.inf, rows[k])))
        chosen = chosen if start is None else start
        at = (k, chosen) if value.ndim == 2 else (k,)
        named[divergence.title] = jax.tree.map(lambda x, at=at: x[at], found.student)
        shares = ", ".join(f"{100 * x:.0f}" for x in covered[k, chosen])
        labels.append(f"{look.short_label(divergence.title)}: {shares}")
    ax = density(named, found.target, name="target", ax=ax, **style)
    with look.in_style(ax):
        handles, _ = ax.get_legend_handles_labels()
        look.legend_beside(ax, handles, labels, title="% of each mode covered")
    return ax
