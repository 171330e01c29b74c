"""Figures of densities on a line or in a plane, with their atoms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from kltarget.plot import _style as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kltarget.spaces import GaussianMixture

_POINTS = {1: 801, 2: 161}
_REACH = 3.5
"""How many standard deviations of every component are shown."""
_LEVELS = (0.5, 0.8, 0.95)


def density(
    targets: Any,
    reference: GaussianMixture,
    *,
    reward: Callable[[np.ndarray], ArrayLike] | None = None,
    bounds: ArrayLike | None = None,
    name: str = "reference",
    ax: Axes | None = None,
    **style: Any,
) -> Axes:
    """Draws densities and the reference they were tilted from, on a line or in a plane.

    Args:
        targets: anything with a ``log_prob`` of points ``[N, d]``, d = 1 or 2, without batch axes:
            a :class:`kltarget.mixtures.MixtureTarget`, :class:`kltarget.mixtures.PowerTarget`, a
            target on a grid, a mixture; or a mapping of names to such, in a plane of one.
        reference: the mixture that they are compared with.
        reward: drawn as a dashed line, scaled to the axes, if given; on a line only.
        bounds: the part of the space to draw, ``[d, 2]``. Default: where the reference has mass,
            and the targets that are mixtures.
        name: what the reference is called.
        ax: axes to draw into. Default: those of a new figure.
        **style: properties of the lines, or of the filled contours.

    Returns:
        The axes; ``ax.figure`` is the figure. Atoms are arrows of the height of their mass on the
        scale of the axes' full height, or discs in a plane, with the mass written beside them. In a
        plane lines and areas hold 50, 80 and 95 % of the mass that is in view.

    Raises:
        ValueError: the space is not a line or a plane, or there is more than one target in one.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget import plot
        >>> p = kt.GaussianMixture(
        ...     jnp.log(jnp.array([0.7, 0.3])),
        ...     [[-2.0], [2.0]],
        ...     [0.64, 0.36],
        ...     covariance_type="spherical",
        ... )
        >>> reward = kt.mixtures.QuadraticReward.peak([1.0], [[2.0]])
        >>> found = {
        ...     "reverse KL": kt.mixtures.tilt(p, reward, 0.5),
        ...     "forward KL": kt.mixtures.power_tilt(p, reward, 0.5),
        ... }
        >>> ax = plot.density(found, p)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['reference', 'reverse KL', 'forward KL']
    """
    named = dict(targets) if isinstance(targets, Mapping) else {"target": targets}
    if reference.dim not in _POINTS or reference.batch_shape:
        raise ValueError(
            f"reference has {reference.dim} dimensions and batch shape {reference.batch_shape}: "
            "a line or a plane can be drawn, without batch axes"
        )
    if reference.dim == 2 and len(named) != 1:
        raise ValueError(f"a plane holds one target, got {len(named)}: draw them side by side")
    box = _box(reference, named) if bounds is None else np.asarray(bounds, float)
    if box.shape != (reference.dim, 2):
        raise ValueError(f"bounds has shape {box.shape}: it needs shape ({reference.dim}, 2)")
    with look.drawing(ax, figsize=(5.6, 3.2) if reference.dim == 1 else (5.0, 4.0)) as ax:
        behind = (look.short_label(name), reference)
        if reference.dim == 1:
            _on_line(ax, named, behind, reward, box[0], style)
        else:
            _in_plane(ax, named, behind, box, style)
    return ax


def _on_line(ax: Axes, named: Any, behind: Any, reward: Any, span: Any, style: Any) -> None:
    own_name, reference = behind
    x = np.linspace(span[0], span[1], _POINTS[1])
    points = x[:, None].astype(reference.means.dtype)
    height = _heights(reference, points)
    ax.fill_between(x, height, label=own_name, color=look.GREY, alpha=0.35, lw=0)
    top = height.max()
    for k, (name, target) in enumerate(named.items()):
        height = _heights(target, points)
        # A pole on an atom would leave nothing to see of the rest.
        highest = float(height.max())
        top = max(top, min(height[np.isfinite(height)].max(), 4 * top))
        label = look.short_label(name)
        if highest > 1.08 * top:
            label += f", up to {look.short_number(highest)}"
        line = {**look.series(k), "label": label, "lw": 1.6, **style}
        ax.plot(x, height, **line)
    arrow = {"arrowstyle": "-|>", "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    for k, target in enumerate(named.values()):
        mass, place = _atom(target)
        if mass > 0:
            tip = (place[0], mass * top)
            ax.annotate("", tip, (place[0], 0.0), arrowprops={**arrow, "color": look.color(k)})
            look.note(ax, f"atom {look.short_number(mass, 2)}", tip, (9, 5))
    if reward is not None:
        value = np.asarray(reward(points), float)
        low, high = value[np.isfinite(value)].min(), value[np.isfinite(value)].max()
        scaled = (value - low) / max(high - low, 1e-300) * 0.92 * top
        line = {"color": look.ink(), "ls": look.DASHED, "lw": 1, "label": "reward (scaled)"}
        ax.plot(x, scaled, zorder=1, **line)
    ax.set(xlim=span, ylim=(0, 1.08 * top), xlabel="x", ylabel="density")
    look.legend_beside(ax)


def _in_plane(ax: Axes, named: Any, behind: Any, box: Any, style: Any) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    own_name, reference = behind
    lines = [np.linspace(low, high, _POINTS[2]) for low, high in box]
    grid = np.stack(np.meshgrid(*lines, indexing="xy"), -1).astype(reference.means.dtype)
    ((name, target),) = named.items()
    height = _heights(target, grid)
    shades = [to_rgba(look.color(0), alpha) for alpha in (0.25, 0.5, 0.8)]
    levels = [*_levels(height), np.inf]
    ax.contourf(*lines, height, levels=levels, **{"colors": shades, **style})
    height = _heights(reference, grid)
    ax.contour(*lines, height, levels=_levels(height), colors=[look.ink()], linewidths=0.8)
    handles: list[Any] = [Line2D([], [], color=look.ink(), lw=0.8), Patch(color=shades[1])]
    names = [own_name, look.short_label(name)]
    mass, place = _atom(target)
    if mass > 0:
        disc = {"marker": "o", "ls": "", "color": look.color(1)}
        ax.plot(*place, ms=5 + 7 * mass, **disc)
        look.note(ax, f"atom {look.short_number(mass, 2)}", place, (9, 5))
        handles.append(Line2D([], [], **disc))
        names.append("atom")
    look.legend_beside(ax, handles, names)
    ax.set(aspect="equal", xlabel="x₁", ylabel="x₂")
    ax.grid(False)


def _box(reference: Any, named: Mapping[str, Any]) -> np.ndarray:
    low, high = [], []
    for x in (reference, *(t.mixture for t in named.values() if hasattr(t, "mixture"))):
        shown = np.asarray(x.log_weights) > np.log(1e-3)
        spread = np.sqrt(np.diagonal(np.asarray(x.covariances, float), axis1=-2, axis2=-1))
        means = np.asarray(x.means, float)
        low.append((means - _REACH * spread)[shown].min(0))
        high.append((means + _REACH * spread)[shown].max(0))
    return np.stack([np.min(low, 0), np.max(high, 0)], axis=-1)


def _heights(target: Any, points: np.ndarray) -> np.ndarray:
    """Densities at points ``[..., d]``."""
    log_probs = np.asarray(target.log_prob(points.reshape(-1, points.shape[-1])), float)
    height = np.exp(log_probs).reshape(points.shape[:-1])
    if np.isnan(height).any():
        raise ValueError("a density is NaN: raise_if_failed() of the target says why")
    return height


def _levels(height: np.ndarray) -> list[float]:
    """Heights above which the given shares of the mass lie, from the lowest."""
    ordered = np.sort(height[np.isfinite(height)])[::-1]
    share = np.cumsum(ordered) / ordered.sum()
    return [float(ordered[min(np.searchsorted(share, x), ordered.size - 1)]) for x in _LEVELS[::-1]]


def _atom(target: Any) -> tuple[float, np.ndarray]:
    mass = float(getattr(target, "atom_mass", 0.0))
    return mass, np.asarray(getattr(target, "atom", ()), float)
