"""What all figures share: style sheets, axes to draw into, colours and labels."""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = pathlib.Path(__file__).with_name("kltarget.mplstyle")
DARK = pathlib.Path(__file__).with_name("kltarget-dark.mplstyle")
GREY = "#9a9a9a"
DASHED = (0, (4, 3))
NUM_COLORS = 7
MARKERS = ("", "s", "^", "D", "v", "P", "X", "<")
"""Of series; circles are for places where something happens, dashes for what is compared with."""

HATCHES = ("", "///", "...", "xx", "\\\\\\", "ooo", "++")

_LONGEST_LABEL = 26
_MOST_NAMED = 6
# Beside axes that are narrower than this, in inches, a legend would leave too little of them.
_NARROW = 3.5


@contextlib.contextmanager
def drawing(ax: Axes | None, **figure: Any) -> Iterator[Axes]:
    """Axes to draw into, those of a new figure by default, with the style in force."""
    with in_style(ax):
        if ax is None:
            ax = new_figure(**figure).add_subplot()
            # A cell that ends with them shows their figure.
            vars(ax)["_repr_png_"] = functools.partial(_picture, ax)
        dress(ax)
        yield ax


@contextlib.contextmanager
def in_style(ax: Axes | None = None) -> Iterator[None]:
    """The style sheet, in its dark variant where text is light or the given axes are dark."""
    import matplotlib.style

    sheets = [STYLE, DARK] if _is_dark(ax) else [STYLE]
    with matplotlib.style.context(sheets):
        yield


def new_figure(**options: Any) -> Figure:
    from matplotlib.figure import Figure

    return Figure(**options)


def _picture(ax: Axes) -> bytes | None:
    figure = ax.get_figure(root=True)
    if figure is None:  # they were removed from it
        return None
    with io.BytesIO() as file:
        figure.savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()


def dress(ax: Axes) -> None:
    """Fixes the colours of axes that were made in another style, and of their ticks.

    Matplotlib makes many ticks only when they are drawn, when the style is gone.
    """
    ticks = {"color": _rc("xtick.color"), "labelcolor": _rc("xtick.color")}
    grid = {"grid_color": _rc("grid.color"), "grid_linewidth": _rc("grid.linewidth")}
    ax.tick_params(which="both", labelsize=_rc("xtick.labelsize"), **ticks, **grid)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_color(_rc("axes.labelcolor"))
    ax.spines[:].set_edgecolor(_rc("axes.edgecolor"))


def _rc(name: Any) -> Any:
    from matplotlib import rcParams

    return rcParams[name]


def _is_dark(ax: Axes | None) -> bool:
    from matplotlib.colors import to_rgba

    behind = _rc("figure.facecolor") if ax is None else ax.get_facecolor()
    if ax is not None and ax.figure is not None and to_rgba(behind)[3] == 0:
        behind = ax.figure.get_facecolor()
    *background, opacity = to_rgba(behind)
    if opacity == 0:  # the page shows through, and text has been made for it
        return bool(np.mean(to_rgba(_rc("text.color"))[:3]) > 0.5)
    return bool(np.mean(background) < 0.5)


def ink() -> Any:
    """The colour of text in the style that is in force."""
    return _rc("text.color")


def paper() -> Any:
    """The colour behind the data in the style that is in force."""
    return _rc("axes.facecolor")


def color(k: int) -> Any:
    """Colour k of the palette; matplotlib's own "C0" is looked up only when the style is gone."""
    palette = _rc("axes.prop_cycle").by_key()["color"]
    return palette[k % len(palette)]


def series(k: int) -> dict[str, Any]:
    """The looks of line k of a figure, told apart without colours by its marker."""
    marker = MARKERS[k % len(MARKERS)]
    if not marker:
        return {"color": color(k)}
    # Where lines coincide, their markers are at different places.
    places = (0.02 + 0.03 * (k % 5), 0.15)
    return {"color": color(k), "marker": marker, "ms": 4.5, "markevery": places}


def filling(k: int) -> dict[str, Any]:
    """The looks of area k where its place does not tell it from others, nor colours do."""
    hatch = HATCHES[k % len(HATCHES)]
    return {"facecolor": color(k), "hatch": hatch, "edgecolor": paper()}


def named(names: list[str]) -> tuple[list[str], str]:
    """Of many names in order a few, the others hidden from a legend, and how many these are."""
    if len(names) <= _MOST_NAMED:
        return names, ""
    listed = np.linspace(0, len(names) - 1, _MOST_NAMED - 1).round()
    kept = [name if i in listed else "_nolegend_" for i, name in enumerate(names)]
    return kept, f"{listed.size} of {len(names)} β named"


def plain_ticks(axis: Any) -> None:
    """Numbers as they are spoken on a logarithmic axis of few decades, where powers would crowd."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(lambda x, _: short_number(x))
        axis.set_minor_formatter(NullFormatter())


def unseen(ax: Axes, text: str) -> None:
    """A line of the legend about what is not drawn."""
    ax.plot([], [], ls="", label=text)


def faint() -> Any:
    """A colour for what belongs in the background but must be seen."""
    return _rc("patch.edgecolor")


def shades(count: int) -> np.ndarray:
    """Colours of increasing numbers, without those that would vanish on the page."""
    import matplotlib

    low, high = (0.35, 1.0) if _is_dark(None) else (0.0, 0.88)
    return matplotlib.colormaps["viridis"](np.linspace(low, high, max(count, 2)))


def note(ax: Axes, text: str, at: Any, offset: tuple[float, float], **options: Any) -> None:
    """Small text beside a point, moved by so many typographical points; lines do not cross it."""
    from matplotlib.patheffects import withStroke

    usual = {"textcoords": "offset points", "va": "center", "fontsize": "small"}
    around = [withStroke(linewidth=2.5, foreground=paper())]
    ax.annotate(text, at, offset, path_effects=around, **{**usual, **options})


def grouped_bars(
    ax: Axes, bars: list[Any], room: float, *, lying: bool = False, share: float = 0.92
) -> None:
    """Bars of the given lengths and looks side by side at 0, 1, …, which share so much room."""
    width, draw = room / len(bars), ax.barh if lying else ax.bar
    for k, (lengths, options) in enumerate(bars):
        place = np.arange(len(lengths)) + (k - (len(bars) - 1) / 2) * width
        draw(place, lengths, width * share, **options)


def is_narrow(ax: Axes) -> bool:
    """Whether the axes are too narrow for anything beside them."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return bool(ax.get_window_extent().width / figure.dpi < _NARROW)


def legend_beside(ax: Axes, *entries: Any, **options: Any) -> None:
    """A legend to the right of the axes, of narrow ones below, where it covers nothing."""
    place: dict[str, Any] = {"loc": "upper left", "alignment": "left"}
    figure = ax.get_figure(root=True)
    assert figure is not None
    if is_narrow(ax):
        place |= _below(ax, figure, entries[1] if entries else ax.get_legend_handles_labels()[1])
    else:
        place["bbox_to_anchor"] = (1.01, 1.0)
    ax.legend(*entries, **place, **options)


def _below(ax: Axes, figure: Figure, names: Any) -> dict[str, Any]:
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    ticks = max((x.get_text().count("\n") for x in ax.get_xticklabels()), default=0)
    depth = 0.26 + 0.15 * ticks + (0.2 if ax.get_xlabel() else 0.0)
    # Long labels of the other axis leave room below themselves.
    alone = all(other is ax or other.get_label() == "<colorbar>" for other in figure.axes)
    across = figure.transFigure if alone else ax.transAxes
    place = blended_transform_factory(across, ax.transAxes)
    place += ScaledTranslation(0, -depth, figure.dpi_scale_trans)
    lengths = list(map(len, names))
    half = -(-len(lengths) // 2)
    both = max(lengths[:half], default=0) + max(lengths[half:], default=0)
    columns = 2 if both <= 2 * _LONGEST_LABEL - 4 else 1
    at = {"bbox_to_anchor": (0.02 * alone, 0.0), "bbox_transform": place}
    return {**at, "ncols": columns, "fontsize": "small", "title_fontsize": "small"}


def short_label(label: str, room: int = _LONGEST_LABEL) -> str:
    """A label of one line that matplotlib writes as it is."""
    # A lone dollar sign is plain text, two would start matplotlib's mathematics.
    return short(" ".join(label.split()), room).replace("$", r"\$")


def short_number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}".replace("-", "−").replace("inf", "∞")
