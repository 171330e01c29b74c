"""Which answers a target over texts keeps, against β."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from kltarget._core.words import counted
from kltarget.divergences import Divergence
from kltarget.modes import mode_log_mass
from kltarget.plot import _style as look
from kltarget.plot._beta_path import BETA
from kltarget.plot._sweep_figures import cell_edges
from kltarget.targets.automata import solve_on_automaton
from kltarget.tasks import TextTask, load_texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DECADES = 6


def kept_texts(
    task: str | TextTask,
    *,
    beta: ArrayLike | None = None,
    divergence: Divergence | None = None,
    least_probability: float = 1e-3,
    top: int = 25,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws how likely each mode of texts is in the target against β, a row per mode.

    A mode is kept where it has at least some probability; the line is where it does. With rewards
    that are alike the reference's proportions stay at every β: what it hardly ever says is not kept
    by a small one either.

    Args:
        task: texts too many to list, or the name of such a task.
        beta: coefficients, increasing, two or more, in reward units per nat. Default: 61 from 0.01
            to 10 times the range of rewards.
        divergence: reverse KL by default.
        least_probability: from which on a mode counts as kept.
        top: how many modes get a row, the likeliest at the smallest β first.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the coloured mesh.

    Returns:
        The axes; ``ax.figure`` is the figure.

    Raises:
        ValueError: fewer than two β or such as do not increase, a probability that is not between 0
            and 1.

    Example:
        >>> from kltarget import plot
        >>> ax = plot.kept_texts("no-repeats", top=4)
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['no h', 'no a', 'no i', 'no s']
    """
    from matplotlib.colors import LogNorm

    task = load_texts(task) if isinstance(task, str) else task
    if not 0 < least_probability < 1:
        raise ValueError(f"least_probability must be between 0 and 1, got {least_probability!r}")
    span = float(np.ptp(task.reward[np.isfinite(task.reward)])) or 1.0
    betas = np.geomspace(0.01, 10, 61) * span if beta is None else np.asarray(beta, float)
    if betas.ndim != 1 or betas.size < 2 or not (np.diff(betas) > 0).all():
        raise ValueError(f"beta must be two or more coefficients that increase, got {beta!r}")
    problem = (task.reference, task.automaton, task.reward, betas, divergence)
    target = solve_on_automaton(*problem, length=task.length)
    log_mass = np.asarray(mode_log_mass(target.states.log_probs, task.modes), np.float64)
    names = [task.mode_names[label] for label in np.unique(task.modes[task.modes >= 0]).tolist()]
    rows = np.argsort(-log_mass[0], kind="stable")[:top]
    mass = np.exp(log_mass[:, rows]).T
    edges = cell_edges(betas)
    with look.drawing(ax, figsize=(6.4, 1.4 + 0.19 * len(rows))) as ax:
        highest = max(float(mass.max()), least_probability)
        low = max(highest * 10.0**-_DECADES, float(mass.min()))
        low = min(low, least_probability / 10)
        options = {"norm": LogNorm(low, highest), "cmap": "viridis", "rasterized": True, **style}
        mesh = ax.pcolormesh(
            edges, np.arange(len(rows) + 1) - 0.5, np.maximum(mass, low), **options
        )
        _outline(ax, edges, mass >= least_probability)
        kept = (np.exp(log_mass) >= least_probability).sum(-1)
        ax.set(xscale="log", xlim=edges[[0, -1]], ylim=(len(rows) - 0.5, -0.5), xlabel=BETA)
        ax.set_yticks(range(len(rows)), [look.short_label(names[k], 18) for k in rows])
        ax.tick_params(axis="y", length=0)
        if len(rows) < len(names):
            ax.set_ylabel(f"the likeliest {len(rows)} of {len(names)} modes")
        ax.grid(visible=False)
        said = f"{counted(int(kept[0]), 'mode')} of {len(names)}"
        ax.set_title(
            f"{task.name}: {said} kept at β = {look.short_number(float(betas[0]))}",
            color=look.ink(),
        )
        assert ax.figure is not None
        bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
        bar.set_label("probability of the mode")
        look.dress(bar.ax)
        bar.outline.set_visible(False)
        bar.ax.axhline(least_probability, color="white", lw=1.8)
    return ax


def _outline(ax: Axes, edges: np.ndarray, kept: np.ndarray) -> None:
    """A line between what is kept and what is not."""
    from matplotlib.collections import LineCollection

    lines = []
    for i, j in np.argwhere(kept[:, 1:] != kept[:, :-1]).tolist():
        lines.append([(edges[j + 1], i - 0.5), (edges[j + 1], i + 0.5)])
    for i, j in np.argwhere(kept[1:] != kept[:-1]).tolist():
        lines.append([(edges[j], i + 0.5), (edges[j + 1], i + 0.5)])
    ax.add_collection(LineCollection(lines, colors="white", linewidths=1.8, capstyle="round"))
