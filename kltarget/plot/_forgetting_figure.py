"""The figure of what learning costs in forgetting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget.plot import _style as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kltarget.studies import ForgettingPath, RetentionPath


def forgetting(
    paths: Mapping[str, ForgettingPath | RetentionPath], *, ax: Axes | None = None, **style: Any
) -> Axes:
    """Draws what has been forgotten of something old against what has been learned of a new one.

    Args:
        paths: by name, such as :func:`kltarget.studies.forgetting_path` and
            :func:`kltarget.studies.retention_path` give; of one with batch axes every run is drawn,
            faintly.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines.

    Returns:
        The axes; ``ax.figure`` is the figure. Training goes from the left to the right; a path that
        stays low learns without forgetting.

    Raises:
        ValueError: there are no paths.

    Example:
        >>> from kltarget import plot, studies
        >>> from kltarget.studies import forgetting_path
        >>> task = studies.forgetting()
        >>> paths = {
        ...     name: forgetting_path(task, name, learning_rate=rate)
        ...     for name, rate in (("sft", 0.15), ("rl", 0.01))
        ... }
        >>> ax = plot.forgetting(paths)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['sft', 'rl']
    """
    if not paths:
        raise ValueError("paths is empty: give at least one")
    with look.drawing(ax, figsize=(5.6, 3.4)) as ax:
        for k, (name, path) in enumerate(paths.items()):
            gain = np.asarray(path.gain, float)
            gain, loss = (x.reshape(-1, gain.shape[-1]) for x in (gain, np.asarray(path.loss)))
            line = {"lw": 1.6, "alpha": 1.0 if len(gain) == 1 else 0.3, **style}
            for row, (x, y) in enumerate(zip(gain, loss, strict=True)):
                own = {"color": look.color(k)} if row else look.series(k)
                ax.plot(x, y, label=None if row else look.short_label(name), **{**own, **line})
        ax.set_xlabel("gain: learned of the new, since the start")
        ax.set_ylabel("loss: forgotten of the old")
        look.legend_beside(ax)
        legend = ax.get_legend()
        for handle in legend.legend_handles if legend else ():
            if handle is not None:
                handle.set_alpha(1.0)
    return ax
