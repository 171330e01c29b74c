"""The explorer in a notebook."""

from __future__ import annotations

import html
import math
from typing import Any

import ipywidgets as widgets
import numpy as np

from kltarget._core.words import number
from kltarget.pages._explorer_setup import Setup, title
from kltarget.pages._moves import Move, Mover, Scene
from kltarget.pages._picture import picture

_DECADE = 0.01


class Explorer(widgets.VBox):
    """Sliders and the picture they move; show it by making it the last line of a cell.

    Attributes:
        controls: The widgets by name: `divergence`, `beta`, `reward_scale`, `odds`, `threshold`.
            Setting the `value` of one moves the picture, from code too.
        scene: What is drawn: the move, the target's `log_probs`, its reference, reward, measures
            and path over β, as NumPy arrays in double precision.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup, self._mover = setup, Mover(setup)
        self._odds_start = math.log10(setup.own_odds)
        self.controls = self._make_controls()
        self._picture, self._numbers = widgets.HTML(), widgets.HTML()
        self._redraw()
        for control in self.controls.values():
            control.observe(self._redraw, "value")
        shown = [c for name, c in self.controls.items() if name != "odds" or setup.pair]
        side = widgets.VBox([*shown, self._numbers], layout={"width": "340px"})
        drawing = widgets.VBox([self._picture], layout={"flex": "1 1 420px", "max_width": "760px"})
        head = f"<b>{html.escape(setup.name)}</b>: {html.escape(setup.description)}"
        body = widgets.HBox([drawing, side], layout={"flex_flow": "row wrap"})
        super().__init__([widgets.HTML(head), body])

    @property
    def move(self) -> Move:
        """Where the sliders stand."""
        value = {name: control.value for name, control in self.controls.items()}
        at_start = abs(value["odds"] - self._odds_start) < _DECADE / 2
        return Move(
            divergence=value["divergence"],
            beta=value["beta"],
            reward_scale=value["reward_scale"],
            odds=self._setup.own_odds if at_start else 10.0 ** value["odds"],
            threshold=value["threshold"],
        )

    def _make_controls(self) -> dict[str, Any]:
        setup = self._setup
        common = {
            "style": {"description_width": "92px"},
            "layout": {"width": "330px"},
        }
        low, high = setup.beta_decades
        reach = max(3.0, math.ceil(abs(self._odds_start)) + 0.5)
        stops = [("off", math.inf), *((number(x), x) for x in setup.thresholds)]
        return {
            "divergence": widgets.Dropdown(
                options=[(title(x), name) for name, x in setup.divergences.items()],
                description="regulariser",
                **common,
            ),
            "beta": widgets.FloatLogSlider(
                setup.beta, min=low, max=high, step=_DECADE, description="β", **common
            ),
            "reward_scale": widgets.FloatLogSlider(
                1.0, min=-2, max=2, step=_DECADE, description="reward ×", **common
            ),
            "odds": widgets.FloatSlider(
                self._odds_start,
                min=-reach,
                max=reach,
                step=_DECADE,
                description="log₁₀ odds",
                tooltip="reference odds of the first mode against the second, their sum kept",
                readout_format=".2f",
                **common,
            ),
            "threshold": widgets.SelectionSlider(options=stops, description="MARA from", **common),
        }

    def _redraw(self, change: Any = None) -> None:
        self.scene = self._mover(self.move)
        self._picture.value = picture(self._setup, self.scene)
        self._numbers.value = _numbers(self._setup, self.scene)


def _numbers(setup: Setup, scene: Scene) -> str:
    """A table of what is measured on the reference and on the target, and when modes flip."""
    num_modes = np.unique(setup.modes[setup.modes >= 0]).size
    named = {
        "expected reward": "expected_reward",
        f"effective modes, of {num_modes}": "effective_modes",
        "KL(π‖π_ref), nats": "reverse_kl",
        "KL(π_ref‖π), nats": "forward_kl",
    }
    rows = [(what, *(number(float(x)) for x in scene.measures[key])) for what, key in named.items()]
    if setup.pair_names is not None:
        first, second = (_log_mass(setup.members(k), scene) for k in (0, 1))
        rows.append((f"odds {' : '.join(setup.pair_names)}", *map(_odds, first - second)))
        rows.append(("flip at β", "", ", ".join(map(number, scene.path.flips)) or "none"))
    cells = "".join(
        f"<tr><td>{html.escape(what)}</td>"
        + "".join(f'<td style="text-align:right;padding-left:12px">{x}</td>' for x in (a, b))
        + "</tr>"
        for what, a, b in [("", "reference", "target"), *rows]
    )
    return f'<table style="line-height:1.6">{cells}</table>'


def _log_mass(members: np.ndarray, scene: Scene) -> np.ndarray:
    """Log-mass of a mode in the reference and in the target."""
    both = np.stack([scene.log_ref, scene.log_probs])[:, members]
    return np.logaddexp.reduce(both, axis=-1)


def _odds(log_odds: float) -> str:
    if math.isnan(log_odds):
        return "—"
    if abs(log_odds) > 20:
        return "∞ : 1" if log_odds > 0 else "1 : ∞"
    large = number(math.exp(abs(log_odds)), 3)
    return f"{large} : 1" if log_odds >= 0 else f"1 : {large}"
