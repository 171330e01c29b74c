"""What a move of a slider changes: the target, what is measured on it, and the path over β."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import double_precision
from kltarget.divergences import Divergence, ReverseKL, kl
from kltarget.modes import effective_modes
from kltarget.objectives import Objective, mara
from kltarget.pages._explorer_setup import Setup
from kltarget.targets import solve

NUM_BETAS = 61
_REFINEMENTS = 4
_FINER = 9


@dataclasses.dataclass(frozen=True)
class Move:
    """Where the sliders stand.

    Attributes:
        divergence: Its name in the setup.
        beta: Coefficient, reward units per nat.
        reward_scale: What the rewards are multiplied by.
        odds: Reference odds of the first mode of the pair against the second.
        threshold: Reward from which on MARA makes outcomes equally probable; `inf` for off.
    """

    divergence: str
    beta: float
    reward_scale: float
    odds: float
    threshold: float = math.inf


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """How the target changes over the whole range of β.

    Attributes:
        betas: `[P]`, evenly spaced in log.
        masses: Probability of the first mode of the pair, the second, all others and outcomes in
            no mode, `[P, 4]`.
        leads: Log-odds of the first mode against the second, `[P]`; empty without a pair.
        flips: β at which the two trade places.
    """

    betas: np.ndarray
    masses: np.ndarray
    leads: np.ndarray
    flips: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """All that is drawn after a move.

    Attributes:
        move: Where the sliders stand.
        log_ref: The reference with the odds of the move, `[A]`.
        log_probs: The target, `[A]`.
        reward: What was maximised, MARA included, divided by the reward scale, `[A]`.
        measures: Of the reference (0) and the target (1): `expected_reward` in the problem's
            unit, `effective_modes`, `reverse_kl` and `forward_kl` in nats.
        path: The same problem over β.
    """

    move: Move
    log_ref: np.ndarray
    log_probs: np.ndarray
    reward: np.ndarray
    measures: dict[str, np.ndarray]
    path: Path


class Mover:
    """Solves a problem anew for every move, with one program per divergence."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        first, second = setup.members(0), setup.members(1)
        others = (setup.modes >= 0) & ~first & ~second
        self._groups = np.stack([first, second, others, setup.modes < 0])
        self._last: tuple[Move, Path] | None = None
        num_outcomes = setup.reward.size
        # Made here: JAX remembers the precision in which a trace first met an array of NumPy's, and
        # would return the user's own in it ever after.
        with double_precision():
            own_reward = jnp.asarray(setup.reward)

        # One program serves a single β and the whole path, since compiling is what takes longest:
        # everything that moves is an argument, and so is how many of the β are wanted.
        @jax.jit
        def targets(
            divergence: Divergence,
            log_ref: Array,
            betas: Array,
            count: Array,
            scale: Array,
            threshold: Array,
        ) -> tuple[Array, Array]:
            # A threshold that no reward reaches leaves everything as it is.
            method = "augment" if isinstance(divergence, ReverseKL) else "substitute"

            def one(k: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
                reward = scale * own_reward
                objective = Objective(reward, log_ref, betas[k], divergence)
                solved = mara(objective, scale * threshold, method=method)
                return found[0].at[k].set(solve(solved).log_probs), solved.reward / scale

            empty = jnp.zeros((NUM_BETAS, num_outcomes)), jnp.zeros(num_outcomes)
            return lax.fori_loop(0, count, one, empty)

        @jax.jit
        def measure(log_ref: Array, log_probs: Array) -> dict[str, Array]:
            both = jnp.stack([log_ref, log_probs])
            probs = jnp.exp(both)
            gains = jnp.where(probs == 0, jnp.zeros_like(probs), probs * setup.reward[None])
            return {
                "expected_reward": gains.sum(-1),
                "effective_modes": effective_modes(both, setup.modes),
                "reverse_kl": kl(both, log_ref[None]),
                "forward_kl": kl(log_ref[None], both),
            }

        @jax.jit
        def masses(log_probs: Array) -> Array:
            inside = jnp.where(self._groups[None], log_probs[:, None], -jnp.inf)
            return jax.nn.logsumexp(inside, axis=-1)

        self._targets, self._measure, self._log_masses = targets, measure, masses

    def __call__(self, move: Move) -> Scene:
        """The scene after a move; the path over β is computed anew if more than β has moved."""
        log_ref = self._reference(move.odds)
        elsewhere = dataclasses.replace(move, beta=1.0)
        with double_precision():
            log_probs, reward = self._solve(move, log_ref, np.array([move.beta]))
            measures = self._measure(log_ref, log_probs[0])
            if self._last is None or self._last[0] != elsewhere:
                self._last = elsewhere, self._over_beta(move, log_ref)
        return Scene(
            move=move,
            log_ref=log_ref,
            log_probs=log_probs[0],
            reward=reward,
            measures={name: np.asarray(x) for name, x in measures.items()},
            path=self._last[1],
        )

    def _solve(
        self, move: Move, log_ref: np.ndarray, betas: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Targets `[P, A]`, of which those of the given β are filled, and the last one's reward."""
        log_probs, reward = self._targets(
            self.setup.divergences[move.divergence],
            log_ref,
            np.pad(betas, (0, NUM_BETAS - betas.size), mode="edge"),
            np.int32(betas.size),
            np.float64(move.reward_scale),
            np.float64(move.threshold),
        )
        return np.asarray(log_probs), np.asarray(reward)

    def _reference(self, odds: float) -> np.ndarray:
        """The reference with these odds of the pair, whose total mass is kept."""
        setup = self.setup
        if setup.pair is None or odds == setup.own_odds:
            return setup.log_ref
        moved = setup.log_ref.copy()
        first, second = setup.members(0), setup.members(1)
        masses = [np.exp(setup.log_ref[members]).sum() for members in (first, second)]
        total = math.log(sum(masses))
        moved[first] += total - math.log1p(1 / odds) - math.log(masses[0])
        moved[second] += total - math.log1p(odds) - math.log(masses[1])
        return moved

    def _over_beta(self, move: Move, log_ref: np.ndarray) -> Path:
        def at(betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            log_masses = np.asarray(self._log_masses(self._solve(move, log_ref, betas)[0]))
            log_masses = log_masses[: betas.size]
            with np.errstate(invalid="ignore"):  # modes without any mass
                return np.exp(log_masses), log_masses[:, 0] - log_masses[:, 1]

        betas = np.logspace(*self.setup.beta_decades, NUM_BETAS)
        masses, leads = at(betas)
        if self.setup.pair is None:
            return Path(betas, masses, leads[:0], ())
        flips = [
            _closed_in(*bracket, lambda betas: at(betas)[1]) for bracket in _changes(betas, leads)
        ]
        return Path(betas, masses, leads, tuple(flips))


def _closed_in(low: float, high: float, leads_at: Callable[[np.ndarray], np.ndarray]) -> float:
    """Where between two β the log-odds vanish or jump past 0."""
    for _ in range(_REFINEMENTS):
        betas = np.geomspace(low, high, _FINER)
        leads = leads_at(betas)
        changes = _changes(betas, leads)
        if not changes:
            break
        low, high = changes[0]
    # What is left is straight to many digits, unless the target jumps.
    (before, after), (a, b) = leads_at(np.array([low, high])), (math.log(low), math.log(high))
    finite = np.isfinite(before) and np.isfinite(after) and before != after
    return math.exp(a - before * (b - a) / (after - before) if finite else 0.5 * (a + b))


def _changes(betas: np.ndarray, leads: np.ndarray) -> list[tuple[float, float]]:
    """Neighbouring β between which the log-odds change their sign by more than rounding."""
    clear = np.flatnonzero(np.abs(leads) > 1e-9)
    changes = np.flatnonzero(np.diff(np.sign(leads[clear])))
    return [(float(betas[clear[k]]), float(betas[clear[k + 1]])) for k in changes]
