"""The figure that compares what recipes ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from kltarget.modes import mode_log_mass
from kltarget.plot import _style as look
from kltarget.plot._paths import mode_names
from kltarget.targets import DiscreteTarget

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST_NAME = 34


def recipe_comparison(
    data: Mapping[str, DiscreteTarget],
    *,
    modes: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    top: int = 6,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws the targets that several recipes imply beside each other, a bar for every mode.

    Args:
        data: a target by the name of its recipe, such as :func:`kltarget.implied_target` or
            :func:`kltarget.solve` give, each without batch axes and all over the same ``A``
            outcomes.
        modes: integer labels of the outcomes' modes, ``[A]``. Default: each outcome is one.
        labels: names of the outcomes, ``A`` strings; a mode has that of its outcome which the
            reference likes best. Default: indices.
        top: how many modes get a bar, at most seven; the others, and the outcomes of no mode, share
            a grey one.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the bars.

    Returns:
        The axes; ``ax.figure`` is the figure. The reference stands on top, if it is the same for
        all.

    Raises:
        TypeError: ``data`` holds anything but targets.
        ValueError: there are none, they have batch axes, or their outcomes differ in number.

    Example:
        >>> from kltarget import implied_target, plot, tasks
        >>> from kltarget.recipes import Recipe
        >>> task = tasks.load("one-two")
        >>> found = {
        ...     name: implied_target(Recipe("loss", name), task.reward, task.log_ref, beta=0.3)
        ...     for name in ("k2", "k3")
        ... }
        >>> ax = plot.recipe_comparison(found, modes=task.modes, labels=task.labels)
        >>> [tick.get_text() for tick in ax.get_yticklabels()]
        ['reference', 'k2', 'k3']
    """
    rows, log_ref = _rows(data)
    size = log_ref.shape[-1]
    members = np.arange(size) if modes is None else np.asarray(modes)
    names = list(mode_names(members, labels, log_ref[0]).values())
    if (log_ref == log_ref[0]).all():
        rows = {"reference": log_ref[0], **rows}
    mass = np.exp(np.asarray(mode_log_mass(np.stack(list(rows.values())), members), float))
    chosen = np.sort(np.argsort(-mass.max(0), kind="stable")[: min(top, look.NUM_COLORS)])
    rest = 1 - mass[:, chosen].sum(1)
    show_rest = bool(rest.max() > 1e-3)
    num_bars = chosen.size + show_rest
    with look.drawing(ax, figsize=(5.6, 0.9 + len(rows) * (0.2 + 0.1 * num_bars))) as ax:
        bars = [
            (mass[:, k], {**look.filling(c), "label": look.short_label(names[k], 16), **style})
            for c, k in enumerate(chosen)
        ]
        if show_rest:
            bars.append((rest, {"color": look.GREY, "label": "all others", **style}))
        look.grouped_bars(ax, bars, 0.84, lying=True)
        if len(names) > chosen.size and not show_rest:
            look.unseen(ax, f"{len(names) - chosen.size} others, below 0.1 %")
        ax.set_yticks(range(len(rows)), [look.short_label(name, _LONGEST_NAME) for name in rows])
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        most = max(lengths.max() for lengths, _ in bars)
        ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1.0 if most > 0.9 else 1.05 * most))
        ax.set_xlabel("probability of the mode")
        look.legend_beside(ax)
    return ax


def _rows(data: Mapping[str, DiscreteTarget]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The targets ``[A]`` by name, and their references ``[N, A]``."""
    if not isinstance(data, Mapping) or not all(
        isinstance(x, DiscreteTarget) for x in data.values()
    ):
        raise TypeError("data must be a mapping of names to Targets")
    if not data:
        raise ValueError("data is empty: give at least one target")
    rows = {str(name): np.asarray(x.log_probs, float) for name, x in data.items()}
    size = len(next(iter(rows.values())))
    for name, row in rows.items():
        if row.ndim != 1:
            raise ValueError(f"the target of {name!r} has batch shape {row.shape[:-1]}: choose one")
        if row.size != size:
            raise ValueError(f"the target of {name!r} has {row.size} outcomes, the first {size}")
    references = [np.reshape(x.objective.log_ref, (-1, size))[0] for x in data.values()]
    return rows, np.array(references, float)
