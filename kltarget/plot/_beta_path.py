"""Figures over β: the masses of modes, and the odds of two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from kltarget._core.words import percent
from kltarget.plot import _style as look
from kltarget.plot._paths import BetaPath, likeliest_first, path_of, path_of_featured, paths_of

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

    from kltarget.diagnosis import Diagnosis
    from kltarget.targets import Target
    from kltarget.tasks import ProblemLike

BETA = "β, reward units per nat"
_MOST_NOTES = 3
# Two lines that cross below this part of the axis cannot be told apart there.
_LEAST_LEVEL = 0.01
_LEAST_TOP = 1e-6
# Odds of many decades would leave nothing to see of the flip.
_MOST_DECADES = 5


def beta_path(
    data: ProblemLike | Target | xr.Dataset | Diagnosis,
    *,
    beta: ArrayLike | None = None,
    modes: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    top: int = 5,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws the probability of each mode against β, with circles where two modes change places.

    Args:
        data: what maximises ``E_π[reward] − β·D(π, π_ref)`` for many β: a task (its name, a table's
            path or a pair of arrays), regularised by reverse KL; an objective or a target whose
            batch ``[B]`` differs in β; a sweep with the dimensions ``beta`` and ``mode``; or the
            diagnosis of a log, whose featured prompt is drawn with the configured β.
        beta: coefficients to solve a task for, reward units per nat. Default: from 1/100 to 10
            times the range of its rewards.
        modes: integer labels of the outcomes' modes, ``[A]``. Default: those of the task; of an
            objective or a target each outcome is one.
        labels: names of the outcomes, ``A`` strings; a mode has that of its outcome which the
            reference likes best. Default: those of the task, else indices.
        top: how many modes get a line of their own; the others, and the outcomes of no mode, share
            a grey one, or a band at the upper edge where that lies above the axes.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines.

    Returns:
        The axes; ``ax.figure`` is the figure. Flips are where the lines cross: with a coarse β they
        are exact for reverse KL only. Without a target the axes of a diagnosis only say so.

    Raises:
        TypeError: ``data`` is none of these.
        ValueError: there is more than one problem per β.

    Example:
        >>> from kltarget import plot, tasks
        >>> ax = plot.beta_path(tasks.load("bimodal"))
        >>> [text.get_text() for text in ax.texts]
        ['0.132']
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['25', '75', 'all others', 'flip: both level']
    """
    from kltarget.diagnosis import Diagnosis

    if isinstance(data, Diagnosis):
        return _of_diagnosis(data, top, ax, style)
    path = path_of(data, beta, modes, labels)
    chosen = sorted(np.argsort(-path.log_mass.max(0), kind="stable")[:top].tolist())
    pairs = itertools.combinations(chosen, 2)
    flips = [(float(at), i) for i, j in pairs for at in path.crossings(i, j)]
    with look.drawing(ax) as ax:
        _lines(ax, path, chosen, flips, style)
        ax.set(xlabel=BETA, ylabel="probability of the mode")
        look.legend_beside(ax, title=path.name or None)
    return ax


def _lines(
    ax: Axes, path: BetaPath, chosen: list[int], flips: list[tuple[float, int]], style: Any
) -> None:
    """Lines of the chosen modes, of the rest, and the flips: β with the column they lie on."""
    mass = np.exp(path.log_mass)
    for place, k in enumerate(chosen):
        options = {**look.series(place), "zorder": 3, **style}
        ax.plot(path.beta, mass[:, k], label=look.short_label(path.names[k], 16), **options)
    rest = 1 - mass[:, chosen].sum(1)
    top = max(float(mass[:, chosen].max()), _LEAST_TOP)
    top = 1.03 if top > 0.85 else 1.18 * top
    if rest.max() > 1e-3 and rest.min() < top:
        ax.plot(path.beta, rest, color=look.GREY, lw=1.2, label="all others", zorder=2)
    elif rest.max() > 1e-3:
        # Far above the modes that are drawn: a band at the edge says how much that is.
        ends = dict.fromkeys(percent(math.log(x)) for x in (rest.min(), rest.max()))
        label = f"all others, {' to '.join(ends)}"
        ax.axhspan(0.97 * top, top, color=look.GREY, alpha=0.45, lw=0, label=label, zorder=1)
    elif len(path.names) > len(chosen):
        look.unseen(ax, f"{len(path.names) - len(chosen)} others, below 0.1 %")
    ax.set(xscale="log", xlim=(path.beta[0], path.beta[-1]), ylim=(0, top))
    points = [(at, path.level(at, k)) for at, k in flips]
    _mark_flips(ax, [(at, level) for at, level in points if level > _LEAST_LEVEL * top])


def _mark_flips(ax: Axes, points: list[tuple[float, float]], *, in_row: bool = False) -> None:
    """Hollow circles; the β of a few is written beside them, in a row above and below in turn."""
    circle = {"ls": "", "marker": "o", "ms": 6.5, "mfc": look.paper(), "mec": look.ink()}
    for k, (at, level) in enumerate(points):
        label = "_nolegend_" if k else "flip: both level"
        ax.plot([at], [level], label=label, zorder=5, **circle)
        if len(points) <= _MOST_NOTES:
            offset = (5, 9 if k % 2 else -9) if in_row else (8, 0)
            look.note(ax, look.short_number(at), (at, level), offset, zorder=6)


def _of_diagnosis(diagnosis: Diagnosis, top: int, ax: Axes | None, style: dict[str, Any]) -> Axes:
    featured = diagnosis.featured
    with look.drawing(ax) as ax:
        ax.set_title("the recipe's target over β", color=look.ink())
        ax.set_xlabel("β of the trainer")
        beta = diagnosis.beta
        if featured is None or not featured.betas or beta is None:
            why = "β = 0: no target" if beta == 0 else "no target without ref_logp"
            if beta is None:
                why = "no target without a recipe"
            elif featured is not None and featured.reference is not None and beta > 0:
                why = "this recipe has no target"
            ax.text(0.5, 0.5, why, ha="center", transform=ax.transAxes, color=look.GREY)
            ax.set(xticks=[], yticks=[])
            return ax
        path, chosen = path_of_featured(featured), likeliest_first(featured)[:top]
        low, high = path.beta[[0, -1]]
        inside = [flip for flip in featured.flips if low < flip["beta"] < high]
        flips = [(float(x["beta"]), featured.names.index(x["better"])) for x in inside]
        ax.axvline(beta, color=look.ink(), lw=1.4, zorder=4)
        at_top = {"xycoords": ("data", "axes fraction"), "va": "top"}
        look.note(ax, f"configured {beta:g}", (beta, 1.0), (4, -2), **at_top)
        _lines(ax, path, chosen, flips, style)
        ax.set_ylabel("probability in the target")
        look.legend_beside(ax)
    return ax


def ratio(
    data: ProblemLike | Target | xr.Dataset | Sequence[Target],
    *,
    pair: tuple[int, int] = (0, 1),
    beta: ArrayLike | None = None,
    modes: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws the odds of two modes in the target against β, beside those in the reference.

    Both axes are logarithmic. For large β the odds are the reference's; equal rewards keep them at
    every β. Where they pass 1 the modes change places: a flip.

    Args:
        data: as for :func:`kltarget.plot.beta_path`, or a sequence of targets, one per divergence;
            a sweep may have the dimension ``divergence`` too. Each gets a line.
        pair: labels of the two modes, or indices of two outcomes where there are no modes.
        beta: coefficients to solve a task for, reward units per nat. Default: from 1/100 to 10
            times the range of its rewards.
        modes: integer labels of the outcomes' modes, ``[A]``. Default: those of the task; of an
            objective or a target each outcome is one.
        labels: names of the outcomes, ``A`` strings; a mode has that of its outcome which the
            reference likes best. Default: those of the task, else indices.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines.

    Returns:
        The axes; ``ax.figure`` is the figure. Odds beyond five decades from those of the reference
        and from 1 are cut off. A sweep does not hold the reference, which is then not drawn.

    Raises:
        TypeError: ``data`` is none of these.
        ValueError: there is no such mode, or more than one problem per β and divergence.

    Example:
        >>> import numpy as np, kltarget as kt
        >>> from kltarget import plot, tasks
        >>> task, beta = tasks.load("bimodal"), np.geomspace(0.03, 3, 60)
        >>> kinds = (kt.ReverseKL(), kt.ForwardKL())
        >>> targets = [kt.solve(task.objective(beta, divergence=kind)) for kind in kinds]
        >>> ax = plot.ratio(targets, modes=task.modes, labels=task.labels)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['reverse KL', 'forward KL', 'reference', 'flip: both level']
        >>> ax.get_ylabel()
        'odds of 25 to 75'
    """
    paths = paths_of(data, beta, modes, labels)
    if not paths:
        raise ValueError("data is empty: give at least one target")
    with look.drawing(ax) as ax:
        seen, points = [0.0], []
        for k, path in enumerate(paths):
            i, j = (path.column(key) for key in pair)
            with np.errstate(invalid="ignore"):
                odds = (path.log_mass[:, i] - path.log_mass[:, j]) / math.log(10)
            options = {**look.series(k), "label": path.name or None, "zorder": 3, **style}
            # A line that ends where a mode has nothing left runs out of the axes there.
            drawn = np.clip(odds, -100, 100) if np.isfinite(odds).any() else odds * np.nan
            ax.plot(path.beta, 10.0**drawn, **options)
            points += [(float(at), 1.0) for at in path.crossings(i, j)]
            seen += odds[np.isfinite(odds)].tolist()
        in_reference = _reference_odds(paths, pair)
        for level in in_reference:
            dashes = {"color": look.ink(), "lw": 0.9, "ls": look.DASHED, "label": "reference"}
            # Above the lines: with equal rewards they lie on it at every β.
            ax.axhline(10.0**level, zorder=4, **dashes)
        ax.axhline(1.0, color=look.ink(), lw=0.8, zorder=1)
        kept = [0.0, *in_reference]
        low = max(min(seen), min(kept) - _MOST_DECADES) - 0.2
        high = min(max(seen), max(kept) + _MOST_DECADES) + 0.2
        low, high = min(low, min(kept) - 0.1), max(high, max(kept) + 0.1)
        high = max(high, low + 1)
        span = [min(path.beta[0] for path in paths), max(path.beta[-1] for path in paths)]
        ax.set(xscale="log", yscale="log", xlim=span, ylim=(10.0**low, 10.0**high))
        look.plain_ticks(ax.yaxis)
        _mark_flips(ax, sorted(points), in_row=True)
        first, second = (look.short_label(paths[0].names[paths[0].column(key)], 16) for key in pair)
        ax.set(xlabel=BETA, ylabel=f"odds of {first} to {second}")
        look.legend_beside(ax)
    return ax


def _reference_odds(paths: list[BetaPath], pair: tuple[int, int]) -> list[float]:
    """Decimal logarithms of the reference's odds, where data hold them: one for all or none."""
    for path in paths:
        if path.log_reference is not None:
            i, j = (path.log_reference[path.column(key)] for key in pair)
            if math.isfinite(i) and math.isfinite(j):
                return [float(i - j) / math.log(10)]
    return []
