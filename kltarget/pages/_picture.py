"""A scene as SVG: the target over the reference and the reward, and the modes against β.

Text, made anew for every move: a few milliseconds where a matplotlib figure takes fifty, sharp at
any size, and in the colours of the notebook around it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kltarget._core.words import number, short
from kltarget.pages._explorer_setup import MOST_BARS, Setup
from kltarget.pages._moves import Scene

WIDTH = 680
_LEFT, _RIGHT = 56, WIDTH - 10
_COLORS = ("#3386c7", "#e08a1e", "#1fa67a", "#8b9199")
_NAMED = 10
_STYLE = (
    "<style>.kltarget-scene{max-width:760px;font:12px system-ui,sans-serif}"
    ".kltarget-scene text{fill:currentColor;opacity:.8}"
    ".kltarget-scene .axis{stroke:currentColor;opacity:.18}"
    ".kltarget-scene .reference{stroke:currentColor;opacity:.75;fill:none;stroke-width:1.4}"
    ".kltarget-scene .now{stroke:currentColor;stroke-dasharray:3 3}</style>"
)


def picture(setup: Setup, scene: Scene) -> str:
    """The two drawings below each other, one SVG element."""
    if len(setup.labels) <= MOST_BARS:
        parts, height = _bars(setup, scene), 300
    else:
        parts, height = _many(setup, scene), 370
    path = "".join(_path(setup, scene))
    alternative = f"Target at β = {scene.move.beta:.4g}, and the modes against β"
    return (
        f'{_STYLE}<svg class="kltarget-scene" viewBox="0 0 {WIDTH} {height + 220}" role="img" '
        f'aria-label="{alternative}">{"".join(_legend(setup))}{"".join(parts)}'
        f'<g transform="translate(0 {height})">{path}</g></svg>'
    )


def groups_of(setup: Setup) -> np.ndarray:
    """0 and 1 for the modes of the pair, 2 for other modes, 3 for outcomes in none, `[A]`."""
    return np.select([setup.members(0), setup.members(1), setup.modes >= 0], [0, 1, 2], 3)


def _legend(setup: Setup) -> Iterable[str]:
    names = [
        *(setup.pair_names or ("", "")),
        "other modes" if setup.pair else "modes",
        "in no mode",
    ]
    yield f'<rect class="reference" x="{_LEFT}" y="3" width="11" height="11"/>'
    yield _text(_LEFT + 16, 13, "reference")
    x = _LEFT + 92.0
    for group in np.unique(groups_of(setup)):
        name = short(names[group], 18)
        yield f'<rect x="{x:.0f}" y="3" width="11" height="11" fill="{_COLORS[group]}"/>'
        yield _text(x + 16, 13, name)
        x += 34 + 6.6 * len(name)


def _bars(setup: Setup, scene: Scene) -> Iterable[str]:
    top, bottom, count = 30, 250, len(setup.labels)
    slot = (_RIGHT - _LEFT) / count
    bar = min(0.38 * slot, 60)

    def y(p: float) -> float:
        return bottom - p * (bottom - top)

    yield from _probability_axis(y, 1.0)
    groups = groups_of(setup)
    for i, (log_q, log_p) in enumerate(zip(scene.log_ref, scene.log_probs, strict=True)):
        middle = _LEFT + slot * (i + 0.5)
        for kind, x, p in (
            ('class="reference"', middle - bar - 1, math.exp(log_q)),
            (f'class="target" fill="{_COLORS[groups[i]]}"', middle + 1, math.exp(log_p)),
        ):
            size = f'width="{bar:.2f}" height="{bottom - y(p):.4f}"'
            yield f'<rect {kind} x="{x:.2f}" y="{y(p):.4f}" {size}/>'
            if slot > 100:
                yield _text(x + bar / 2, y(p) - 4, number(p, 3), "middle")
        yield _text(middle, bottom + 17, short(setup.labels[i], max(3, int(slot / 7))), "middle")
        lifted = scene.reward[i]
        changed = not math.isclose(lifted, setup.reward[i], rel_tol=1e-9, abs_tol=1e-12)
        said = number(setup.reward[i], 3) + (f" → {number(lifted, 3)}" if changed else "")
        yield _text(middle, bottom + 33, f"reward {said}" if slot > 110 else said, "middle")


def _many(setup: Setup, scene: Scene) -> Iterable[str]:
    bottom, groups = 268, groups_of(setup)
    if setup.positions is not None:
        order, at = np.arange(len(setup.labels)), np.array(setup.positions)
        room = 0.5
    else:
        order = np.argsort(-setup.log_ref, kind="stable")
        at, room = np.log10(np.arange(1, order.size + 1)), 0.05
    span = at[-1] - at[0] + 2 * room
    x = _LEFT + (at - at[0] + room) / span * (_RIGHT - _LEFT)
    log_ref, log_probs, groups = scene.log_ref[order], scene.log_probs[order], groups[order]
    if setup.positions is not None:
        high = _round_up(math.exp(max(log_ref.max(), log_probs.max())))
        heights = bottom - np.exp(log_probs) / high * (bottom - 30)
        yield from _probability_axis(lambda p: bottom - p / high * (bottom - 30), high)
        bar = max(0.78 * (_RIGHT - _LEFT) / order.size, 1)
        for group in np.unique(groups):
            points = zip(x[groups == group], heights[groups == group], strict=True)
            d = "".join(f"M{a:.1f} {bottom}V{b:.2f}" for a, b in points)
            style = f'stroke="{_COLORS[group]}" stroke-width="{bar:.2f}"'
            yield f'<path class="target" d="{d}" {style}/>'
        yield _line(x, bottom - np.exp(log_ref) / high * (bottom - 30), 'class="reference"')
        ticks = [(float(v), number(float(v), 6)) for v in _round_steps(at[0], at[-1])]
    else:
        top = 94
        low = math.floor(setup.log_ref[np.isfinite(setup.log_ref)].min() / math.log(10)) - 2

        def y(logs: np.ndarray) -> np.ndarray:
            return top + logs / math.log(10) / low * (bottom - top)

        for k in range(0, low - 1, -math.ceil(-low / 6)):
            yield _rule(_LEFT, top + k / low * (bottom - top))
            yield _text(_LEFT - 7, top + k / low * (bottom - top) + 4, f"{10.0**k:.0e}", "end")
        inside = log_probs > low * math.log(10)
        yield from _dots(x[inside], y(log_probs[inside]), groups[inside], "target")
        # As many points as there are pixels.
        known = np.isfinite(log_ref) & (np.diff(x.round(), prepend=-1.0) > 0)
        yield _line(x[known], y(log_ref[known]), 'class="reference"')
        yield from _names(setup, order, x, log_probs, y, top)
        if not inside.all():
            yield _text(_RIGHT, bottom - 6, f"{(~inside).sum():,} below the axis", "end")
        ticks = [(float(k), f"{10**k:,}") for k in range(int(at[-1]) + 1)]
    yield _rule(_LEFT, bottom)
    for v, label in ticks:
        tick = _LEFT + (v - at[0] + room) / span * (_RIGHT - _LEFT)
        yield _text(tick, bottom + 15, label, "middle")
    what = "outcome" if setup.positions is not None else "rank under the reference"
    yield _text(_RIGHT, bottom + 29, what, "end")
    yield from _reward(setup, scene, order, x, groups)


def _reward(
    setup: Setup, scene: Scene, order: np.ndarray, x: np.ndarray, groups: np.ndarray
) -> Iterable[str]:
    top, bottom = 312, 356
    shown = scene.reward[order]
    finite = np.concatenate([setup.reward, shown])
    finite = finite[np.isfinite(finite)]
    low, high = float(finite.min()), float(finite.max())
    unit = (np.maximum(shown, low) - low) / (high - low or 1)
    augmented = math.isfinite(scene.move.threshold)
    yield _text(_LEFT, top - 8, "reward after MARA" if augmented else "reward")
    for value, y in {low: bottom, high: top if high > low else bottom}.items():
        yield _rule(_LEFT, y)
        yield _text(_LEFT - 7, y + 4, number(value, 3), "end")
    heights = bottom - unit * (bottom - top)
    if setup.positions is not None:
        yield _line(x, heights, 'class="reference"')
    else:
        yield from _dots(x, heights, groups, "reward")


def _path(setup: Setup, scene: Scene) -> Iterable[str]:
    top, bottom, path, beta = 30, 180, scene.path, scene.move.beta
    low, high = setup.beta_decades

    def x(betas: np.ndarray | float) -> np.ndarray:
        share = (np.log10(betas) - low) / (high - low)
        return _LEFT + np.clip(share, 0, 1) * (_RIGHT - _LEFT)

    yield from _probability_axis(lambda p: bottom - p * (bottom - top), 1.0)
    for k in range(low, high + 1):
        yield _text(float(x(10.0**k)), bottom + 16, f"{10.0**k:g}", "middle")
    yield _text(_RIGHT, bottom + 31, "β", "end")
    here = float(x(beta))
    yield f'<path class="now" d="M{here:.1f} {top - 4}V{bottom}"/>'
    anchor = "end" if here > _RIGHT - 40 else "start" if here < _LEFT + 40 else "middle"
    yield _text(here, top - 8, f"β = {number(beta, 3)}", anchor)
    for group in np.unique(groups_of(setup))[::-1]:
        heights = bottom - path.masses[:, group] * (bottom - top)
        # Where the two modes coincide, dashes let the one behind be seen.
        tied = group == 0 and path.leads.size > 0 and bool((np.abs(path.leads) < 1e-6).all())
        dashes = ' stroke-dasharray="9 9"' if tied else ""
        style = f'class="mode" fill="none" stroke="{_COLORS[group]}" stroke-width="2.2"{dashes}'
        yield _line(x(path.betas), heights, style)
    for flip in path.flips:
        mass = np.interp(math.log(flip), np.log(path.betas), path.masses[:, 0])
        place, y = float(x(flip)), bottom - float(mass) * (bottom - top)
        yield f'<circle class="reference" cx="{place:.1f}" cy="{y:.1f}" r="5"/>'
        end = place > _RIGHT - 110
        label = f"flip at {number(flip, 4)}"
        yield _text(place + (-11 if end else 11), y + 4, label, "end" if end else "start")


def _names(
    setup: Setup,
    order: np.ndarray,
    x: np.ndarray,
    log_probs: np.ndarray,
    y: Callable[[np.ndarray], np.ndarray],
    top: int,
) -> Iterable[str]:
    """The most probable outcomes, on a rail above so that their names cannot overlap."""
    ranked = np.argsort(-np.round(np.maximum(log_probs, -1e6), 6), kind="stable")
    chosen = np.sort(ranked[:_NAMED])
    places: list[float] = []
    for wanted in x[chosen].tolist():
        places.append(max(wanted, places[-1] + 26) if places else wanted)
    limit = _RIGHT - 40.0
    for n in range(len(places) - 1, -1, -1):
        places[n] = min(places[n], limit)
        limit = places[n] - 26
    for k, place in zip(chosen, places, strict=True):
        ends = f"M{place:.1f} {top - 10}L{x[k]:.1f} {float(y(log_probs[k])):.1f}"
        yield f'<path class="axis" d="{ends}"/>'
        turn = f'transform="rotate(-42 {place:.1f} {top - 13})"'
        yield _text(place, top - 13, short(setup.labels[int(order[k])], 12), more=turn)


def _dots(x: np.ndarray, y: np.ndarray, groups: np.ndarray, kind: str) -> Iterable[str]:
    """A path per colour; dots that would cover one another to the pixel are drawn once."""
    for group in np.unique(groups)[::-1]:
        these = groups == group
        points = np.unique(np.stack([x[these], y[these]], axis=-1).round(), axis=0)
        d = "".join(f"M{a:.0f} {b:.0f}h0" for a, b in points.tolist())
        size = 9 if group < 2 else 5 if group == 2 or x.size <= 400 else 2.4
        style = f'stroke="{_COLORS[group]}" stroke-width="{size}" stroke-linecap="round"'
        yield f'<path class="{kind}" d="{d}" fill="none" {style}/>'


def _probability_axis(y: Callable[[float], float], top: float) -> Iterable[str]:
    for k in range(5):
        p = k * top / 4
        yield _rule(_LEFT, y(p))
        yield _text(_LEFT - 7, y(p) + 4, number(p, 3), "end")


def _round_up(p: float) -> float:
    unit = 10.0 ** math.floor(math.log10(p))
    return min(unit * next(k for k in (1, 2, 4, 10) if k * unit >= 0.999 * p), 1.0)


def _round_steps(low: float, high: float) -> np.ndarray:
    unit = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = unit * next(k for k in (1, 2, 5) if (high - low) / (k * unit) <= 8 or k == 5)
    return np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step


def _line(x: Sequence[float] | np.ndarray, y: np.ndarray, style: str) -> str:
    points = " ".join(f"{a:.1f},{b:.2f}" for a, b in zip(x, y, strict=True))
    return f'<polyline fill="none" {style} points="{points}"/>'


def _rule(left: float, y: float) -> str:
    return f'<path class="axis" d="M{left} {y:.1f}H{_RIGHT}"/>'


def _text(x: float, y: float, said: str, anchor: str = "start", more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place} {more}>{html.escape(said)}</text>"
