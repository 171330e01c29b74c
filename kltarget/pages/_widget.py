"""The explorer in a notebook."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import anywidget
import jax
import numpy as np
import traitlets
from jaxtyping import Array

from kltarget._core.ahead import compile_ahead
from kltarget._core.distances import effective_number, kl, mode_masses
from kltarget._core.numerics import double_precision
from kltarget.divergences import Divergence, ReverseKL
from kltarget.objectives import Objective, mara
from kltarget.pages._explorer_page import script
from kltarget.pages._explorer_setup import Setup
from kltarget.targets import solve


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What the sliders ask for, solved in Python in double precision.

    Attributes:
        log_ref: the reference, with the odds that are asked for, ``[A]``.
        reward: what is maximised, MARA included, divided by the reward scale, ``[A]``.
        log_probs: the target, ``[A]``.
        measures: of the reference and of the target: ``expected_reward`` in the problem's unit,
            ``effective_modes``, ``reverse_kl`` and ``forward_kl`` in nats.
    """

    log_ref: np.ndarray
    reward: np.ndarray
    log_probs: np.ndarray
    measures: dict[str, tuple[float, float]]


class Explorer(anywidget.AnyWidget):
    """Sliders and the picture they move; show it by making it the last line of a cell.

    The browser solves and draws, also while the kernel is busy. What the sliders say can be read
    and set here: setting an attribute moves the picture, moving a slider sets the attribute.

    Attributes:
        divergence: name of the divergence.
        beta: coefficient, reward units per nat.
        reward_scale: what the rewards are multiplied by.
        odds: reference odds of the first mode of the pair against the second; None for its own.
        threshold: reward from which on MARA makes outcomes equally probable; None for off.
        problem: what is explored, as the browser reads it.
    """

    divergence = traitlets.Unicode().tag(sync=True)
    beta = traitlets.Float().tag(sync=True)
    reward_scale = traitlets.Float(1.0).tag(sync=True)
    odds = traitlets.Float(None, allow_none=True).tag(sync=True)
    threshold = traitlets.Float(None, allow_none=True).tag(sync=True)
    problem = traitlets.Dict(read_only=True).tag(sync=True)

    def __init__(self, setup: Setup) -> None:
        self._setup, self._shown = setup, False
        self._esm = f"{script()}\nexport default {{ render }};\n"
        self.set_trait("problem", setup.to_json())
        super().__init__(**setup.start)

    def __repr__(self) -> str:
        start, now = self._setup.start, {name: getattr(self, name) for name in self._setup.start}
        shown = [f"{name}={x!r}" for name, x in now.items() if name == "beta" or x != start[name]]
        return f"Explorer({', '.join([repr(self._setup.task.name), *shown])})"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        # Whoever looks at the picture may soon ask for a scene.
        setup = self._setup
        if not self._shown:
            self._shown = True
            numbers = (setup.task.reward, setup.log_ref, setup.beta)
            each = setup.divergences.values()
            compile_ahead(functools.partial(_solved, *numbers, divergence) for divergence in each)
        return super()._repr_mimebundle_(**options)

    @traitlets.validate("beta", "reward_scale", "odds")
    def _positive(self, proposal: Any) -> Any:
        value = proposal["value"]
        if value is not None and not 0 < value < math.inf:
            name = proposal["trait"].name
            raise traitlets.TraitError(f"{name} must be above 0 and finite, got {value}")
        return value

    @traitlets.validate("threshold")
    def _finite(self, proposal: Any) -> Any:
        if proposal["value"] is not None and not math.isfinite(proposal["value"]):
            raise traitlets.TraitError("threshold must be finite, or None for off")
        return proposal["value"]

    @traitlets.validate("divergence")
    def _known(self, proposal: Any) -> str:
        if proposal["value"] not in self._setup.divergences:
            choices = ", ".join(self._setup.divergences)
            raise traitlets.TraitError(f"divergence must be one of {choices}")
        return proposal["value"]

    def move(self, **settings: Any) -> Scene:
        """Sets several attributes in one step, and returns the scene after it."""
        unknown = settings.keys() - self._setup.start.keys()
        if unknown:
            raise TypeError(f"there is no slider {sorted(unknown)[0]!r}")
        with self.hold_sync(), self.hold_trait_notifications():
            for name, value in settings.items():
                setattr(self, name, value)
        return self.scene

    @property
    def scene(self) -> Scene:
        """What the browser draws, solved anew in Python, as an independent check of the script."""
        setup, modes, own_reward = self._setup, self._setup.task.modes, self._setup.task.reward
        log_ref, divergence = self._reference(), setup.divergences[self.divergence]
        posed = (self.reward_scale * own_reward, log_ref, self.beta, divergence)
        # No reward reaches infinity: all stays as it is.
        threshold = self.reward_scale * (math.inf if self.threshold is None else self.threshold)
        reward, log_probs = _solved(*posed, threshold)
        possible = np.where(np.isfinite(own_reward), own_reward, 0)

        def measured(logs: np.ndarray) -> dict[str, float]:
            with np.errstate(divide="ignore"):
                log_masses = np.log(mode_masses(logs, modes))
            return {
                "expected_reward": float(np.exp(logs) @ possible),
                "effective_modes": effective_number(log_masses),
                "reverse_kl": kl(logs, log_ref),
                "forward_kl": kl(log_ref, logs),
            }

        before, after = measured(log_ref), measured(log_probs)
        measures = {name: (value, after[name]) for name, value in before.items()}
        return Scene(log_ref, reward / self.reward_scale, log_probs, measures)

    def _reference(self) -> np.ndarray:
        """The reference with the odds of the pair, whose total mass is kept."""
        setup, odds = self._setup, self.odds
        if setup.pair is None or odds is None:
            return setup.log_ref
        moved, members = setup.log_ref.copy(), [setup.members(k) for k in (0, 1)]
        log_masses = [np.logaddexp.reduce(moved[inside]) for inside in members]
        total = np.logaddexp(*log_masses)
        for inside, log_mass, ratio in zip(members, log_masses, (1 / odds, odds), strict=True):
            moved[inside] += total - math.log1p(ratio) - log_mass
        return moved


def _solved(
    reward: np.ndarray,
    log_ref: np.ndarray,
    beta: float,
    divergence: Divergence,
    threshold: float = math.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """The reward with MARA in it, and the target.

    Two programs per number of outcomes and divergence at most, for all explorers together.
    """
    augments = isinstance(divergence, ReverseKL)
    with double_precision():
        method = "augment" if augments else "substitute"
        at = np.float64(beta)
        changed, anchored = _with_mara(reward, log_ref, at, np.float64(threshold), method)
        problem = Objective(changed, anchored, at, divergence, measure=not augments)
        return np.asarray(problem.reward), np.asarray(solve(problem).log_probs)


@functools.partial(jax.jit, static_argnums=4)
def _with_mara(
    reward: Array, log_ref: Array, beta: Array, threshold: Array, method: Any
) -> tuple[Array, Array]:
    problem = mara(Objective(reward, log_ref, beta), threshold, method=method)
    return problem.reward, problem.log_ref
