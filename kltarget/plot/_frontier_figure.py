"""Frontiers: what policies earn against the divergence they pay and the modes they keep."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from kltarget.plot import _style as look
from kltarget.plot._paths import require_dims

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE_STYLES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
_KL_NAMES = {"reverse_kl": "KL(π‖π_ref), nats", "forward_kl": "KL(π_ref‖π), nats"}
_SYMBOLS = {"beta": "β", "n": "n", "temperature": "τ"}
# A path that spans less of both axes than this is a point on the page.
_SHORT = 0.12


class _Path(NamedTuple):
    """A line: where it is in the panels, its parameter, and its looks. The far end comes first."""

    label: str
    parameter: np.ndarray
    kl: np.ndarray
    modes: np.ndarray
    reward: np.ndarray
    line: dict[str, Any]
    short_name: str


def frontier(
    data: xr.Dataset,
    *,
    kl: Literal["reverse_kl", "forward_kl"] = "reverse_kl",
    ax: Sequence[Axes] | None = None,
    **style: Any,
) -> Figure:
    """Draws the expected reward against the divergence paid and against the modes kept.

    A line is a path over β, or over another family's parameter; circles stand at powers of ten, the
    filled one at the far end: the smallest β, the most draws or the lowest temperature. A path that
    is next to a point, as that of MARA, is a diamond with its name.

    Args:
        data: what :func:`kltarget.frontier.curve` found, of at most seven families; or a sweep over
            ``beta``, and over at most two further settings, such as ``divergence`` and
            ``threshold`` (MARA): the first has colours, of which there are seven, the second one of
            four line styles.
        kl: which divergence from the reference is paid: ``"reverse_kl"``, KL(π‖π_ref), or
            ``"forward_kl"``, KL(π_ref‖π), whatever the regulariser.
        ax: two axes to draw into. Default: those of a new figure.
        **style: properties of the lines.

    Returns:
        The figure of the two panels. Points where one of the numbers is infinite are left out, and
        a divergence that grows long after the reward has stopped to runs out of its panel.

    Raises:
        ValueError: there is nothing to draw a line of, or more lines than can be told apart.

    Example:
        >>> import kltarget as kt
        >>> from kltarget import plot
        >>> data = kt.sweep("one-two", beta=[0.1, 0.3, 1.0])
        >>> [ax.get_xlabel() for ax in plot.frontier(data).axes]
        ['KL(π‖π_ref), nats', 'effective modes']
    """
    if kl not in _KL_NAMES:
        raise ValueError(f"kl must be 'reverse_kl' or 'forward_kl', got {kl!r}")
    curves = "expected_reward" in data and "family" in data["expected_reward"].dims
    marks = ("a power of ten", "smallest β, most draws, lowest τ")
    marks = marks if curves else ("β a power of ten", "smallest β")
    from matplotlib.lines import Line2D

    with look.in_style(None if ax is None else ax[0]):
        paths = list(
            _of_families(data, "kl" if kl == "reverse_kl" else kl)
            if curves
            else _of_sweep(data, kl)
        )
        fresh = look.new_figure(figsize=(6.4, 3.9))
        left, right = fresh.subplots(1, 2, sharey=True) if ax is None else ax
        figure = left.get_figure(root=True)
        assert figure is not None
        for panel, attribute in ((left, "kl"), (right, "modes")):
            look.dress(panel)
            _draw(panel, paths, attribute, style)
        end = _end(paths)
        left.set(xlabel=_KL_NAMES[kl], ylabel="expected reward", xlim=(0, end))
        # From 1 on: of a constant number the rounding errors are not what is to be seen.
        most = max(*(float(np.nanmax(x.modes, initial=1.0)) for x in paths), 1.5)
        margin = 0.04 * (most - 1)
        right.set(xlabel="effective modes", xlim=(1 - margin, most + margin))
        handles, names = right.get_legend_handles_labels()
        for name, fill in zip(marks, (look.paper(), look.ink()), strict=True):
            handles.append(Line2D([], [], ls="", marker="o", ms=5, mfc=fill, mec=look.ink()))
            names.append(name)
        if end is not None:
            handles.append(Line2D([], [], ls=""))
            names.append("KL cut off where all is earned")
        if ax is None:
            place = {"loc": "outside upper left", "ncols": 2}
            figure.legend(handles, names, handlelength=2.2, **place)
        else:
            look.legend_beside(right, handles, names, handlelength=2.2)
    return figure


def _of_sweep(data: xr.Dataset, kl: str) -> Iterator[_Path]:
    further = [str(name) for name in data["expected_reward"].dims if name != "beta"]
    variables = (kl, "effective_modes", "expected_reward")
    for variable in ("expected_reward", kl, "effective_modes"):
        require_dims(data, variable, ("beta", *further))
    sizes = [data.sizes[name] for name in further]
    if len(further) > 2 or any(a > b for a, b in zip(sizes, (look.NUM_COLORS, 4), strict=False)):
        raise ValueError(
            f"the sweep has {' × '.join(f'{a} {b}' for a, b in zip(sizes, further, strict=True))}: "
            f"at most {look.NUM_COLORS} of one setting and 4 of another can be told apart; choose "
            "some with .isel or .sel"
        )
    data = data.sortby("beta")
    for at in itertools.product(*map(range, sizes)):
        row = data.isel(dict(zip(further, at, strict=True)))
        names = [_setting(name, row[name].values.item()) for name in further]
        shade, dashes = at if len(at) > 1 else (*at, *at, 0, 0)[:2]
        # Where lines coincide, later and thinner ones leave the rim of the earlier ones visible.
        first = sizes[0] if further else 1
        width = 1.5 + 1.7 * (1 - shade / max(first - 1, 1)) * (first > 1)
        line = {"color": look.color(shade), "ls": _LINE_STYLES[dashes % 4], "lw": width}
        paid, kept, earned = (np.asarray(row[name], float) for name in variables)
        short_name = next((name for name in names if name.startswith("MARA")), ", ".join(names))
        beta = np.asarray(row["beta"], float)
        yield _Path(", ".join(names), beta, paid, kept, earned, line, short_name)


def _of_families(data: xr.Dataset, kl: str) -> Iterator[_Path]:
    variables = (kl, "effective_modes", "expected_reward")
    for variable in variables:
        require_dims(data, variable, ("family", "point"))
    if data.sizes["family"] > look.NUM_COLORS:
        raise ValueError(
            f"there are {data.sizes['family']} families: at most {look.NUM_COLORS} can be told "
            "apart; choose some with .sel(family=[…])"
        )
    names = [str(name) for name in data["family"].values]
    for k, (name, parameter) in enumerate(zip(names, data["parameter_name"].values, strict=True)):
        row = data.isel(family=k)
        values = np.asarray(row["parameter"], float)
        order = np.argsort(-values if parameter == "n" else values, kind="stable")
        order = order[np.isfinite(values[order])]
        paid, kept, earned = (np.asarray(row[x], float)[order] for x in variables)
        width = 1.5 + 1.7 * (1 - k / max(len(names) - 1, 1))
        line = {"color": look.color(k), "ls": _LINE_STYLES[k % 4], "lw": width}
        label = f"{name} ({_SYMBOLS.get(str(parameter), parameter)})"
        short_name = "MARA" if name == "mara" else name
        yield _Path(label, values[order], paid, kept, earned, line, short_name)


def _setting(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name == "threshold":
        return f"MARA from {look.short_number(value)}" if np.isfinite(value) else "no MARA"
    return f"{name.replace('_', ' ')} {look.short_number(value)}"


def _draw(ax: Axes, paths: list[_Path], attribute: str, style: dict[str, Any]) -> None:
    places = [np.stack([getattr(path, attribute), path.reward]) for path in paths]
    shown = [np.flatnonzero(np.isfinite(place).all(0)) for place in places]
    whole = np.concatenate([x[:, at] for x, at in zip(places, shown, strict=True)], axis=1)
    spans = np.maximum(np.ptp(whole, axis=1), np.finfo(float).tiny) if whole.size else np.ones(2)
    named: set[str] = set()
    for path, (x, y), at in zip(paths, places, shown, strict=True):
        ax.plot(x, y, **{"label": path.label, "zorder": 3, **path.line, **style})
        if not at.size:
            continue
        marks = {"ls": "", "color": path.line["color"]}
        extent = (np.ptp([x[at], y[at]], axis=1) / spans).max()
        if extent < _SHORT and len(paths) > 1:
            size = {"ms": 5.5 + 2.2 * path.line["lw"], "mec": look.paper()}
            ax.plot(x[at[:1]], y[at[:1]], marker="D", zorder=5, **size, **marks)
            if path.short_name not in named:
                _name(ax, path.short_name, float(x[at[0]]), float(y[at[0]]), attribute)
                named.add(path.short_name)
            continue
        # The logarithm of a power of ten may miss the whole number by its rounding.
        exponents = np.log10(path.parameter[at]).round(9)
        low, high = sorted((exponents[0], exponents[-1]))
        decades = np.arange(np.ceil(low), np.floor(high) + 1)
        nearest = at[np.abs(exponents[:, None] - decades).argmin(0)] if decades.size else []
        ax.plot(x[nearest], y[nearest], marker="o", ms=4.5, mfc=look.paper(), **marks, zorder=4)
        ax.plot(x[at[:1]], y[at[:1]], marker="o", ms=5.5, **marks, zorder=4)


def _name(ax: Axes, name: str, x: float, y: float, attribute: str) -> None:
    """The name of a point, below it and on the side where its panel has room."""
    side = {"kl": ("left", 9.0), "modes": ("right", -9.0)}[attribute]
    look.note(ax, look.short_label(name), (x, y), (side[1], -9.0), ha=side[0])


def _end(paths: list[_Path]) -> float | None:
    """Where the divergence axis ends: where the last path has earned all but a hundredth."""
    ends, most = [], 0.0
    for path in paths:
        shown = np.isfinite(path.kl) & np.isfinite(path.reward)
        if shown.any():
            x, y = path.kl[shown], path.reward[shown]
            there = np.abs(y - y[0]) <= 0.01 * np.ptp(y)
            ends.append(float(x[there].min()))
            most = max(most, float(x.max()))
    return 1.15 * max(ends) if ends and most > 3 * max(ends) > 0 else None
