"""Which cells a grid needs, so that a target's integrals over it are right.

The target at a multiplier λ is a density ``p u((r − λ)/β)``. Each cell's rule and the rules of its
2^d parts give two values of its integrals; where they differ too much the parts take the cell's
place, and the multiplier is found anew.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kltarget._core.status import FAILURES
from kltarget.divergences import Divergence, TotalVariation
from kltarget.objectives import Objective
from kltarget.targets.discrete._coordinates import coordinate
from kltarget.targets.discrete._solve import solve
from kltarget.targets.grids._cells import Cells, Evaluate

_LOOSE = 0.05
"""Accuracy of the grids on the way, for larger β than the caller's."""

_ROUNDS = 1000

_STALLED = 8
"""How many times as many cells must halve the error; at jumps, in three dimensions, four do."""

_CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class Solved:
    """The discrete problem on the nodes of a grid, in double precision.

    Args:
        log_probs: of the nodes and, last, of the maximiser, shape ``[*batch, N + 1]``.
        multiplier: shape ``[*batch]``.
        status: shape ``[*batch]``.
        anchor: the reward of the best outcome, 0 where that is the maximiser, shape ``[*batch]``.
        log_ratio: log of the density ratio there, ``inf`` at an atom, shape ``[*batch]``.
    """

    log_probs: np.ndarray
    multiplier: np.ndarray
    status: np.ndarray
    anchor: np.ndarray
    log_ratio: np.ndarray


class Settled(NamedTuple):
    """Where a refinement ended: errors ``[*batch]``, and whether they are below the tolerance."""

    cells: Cells
    solved: Solved
    errors: np.ndarray
    accurate: bool


@dataclasses.dataclass
class Refinement:
    """A problem whose reward is 0 at the maximiser, if an atom may stand there.

    Args:
        evaluate: what is known at points.
        divergence: the regulariser.
        beta: shape ``[*batch]``, of all parameters.
        atom: whether f has a finite slope at infinity; the maximum is then at the origin, a
            corner of cells.
        num_modes: how many modes from 0 up there are.
        tol: the accuracy wanted of every sum of integrals.
        max_points: how many nodes there may be.
        peaks: points and scales ``[d]`` that no cell may be too large for.
    """

    evaluate: Evaluate
    divergence: Divergence
    beta: np.ndarray
    atom: bool
    num_modes: int
    tol: float
    max_points: int
    peaks: list[tuple[np.ndarray, np.ndarray]]

    def run(self, cells: Cells) -> Settled:
        """Cells, the problem on them, the errors ``[*batch]`` and whether they are below tol.

        Small β can hide a second peak whose nodes happen to lie a little lower than those of the
        first, so that larger β come first, under which both are seen.
        """
        known = cells.own[1][np.isfinite(cells.own[1]) & (cells.own[0] > -50)]
        spread = np.ptp(known) if known.size else 0.0
        levels = int(np.clip(np.ceil(np.log(spread / self.beta.min() / 20 + 1) / np.log(4)), 0, 30))
        for level in range(levels, 0, -1):
            heated = np.maximum(self.beta, self.beta.min() * 4.0**level)
            cells, *_ = self._settle(cells, heated, max(_LOOSE, self.tol))
        return self._settle(cells, self.beta, self.tol)

    def _settle(self, cells: Cells, beta: np.ndarray, tol: float) -> Settled:
        solved = self.solve(cells, beta)
        sums, differences = self.integrals(cells, beta, solved)
        whole = True  # all integrals are of the present multiplier
        errors = np.full(differences.shape[0], np.inf)
        before = np.full(differences.shape[:-1], np.inf)
        smallest, number = np.inf, len(cells)
        tail = 1.0
        for _ in range(_ROUNDS):
            scale = np.maximum(np.abs(sums.sum(-1)), 1)
            near = self.atom & cells.contain(np.zeros(cells.low.shape[1]))
            weighted = differences * np.where(near, tail, 1.0)
            errors = (weighted.sum(-1) / scale).max(-1)
            large = self._too_large(cells)
            accurate = bool(errors.max() <= tol) and not large.any()
            if (solved.status & FAILURES).any() or (accurate and whole):
                return Settled(cells, solved, errors.reshape(beta.shape), accurate)
            if accurate:
                sums, differences = self.integrals(cells, beta, solved)
                whole = True
                continue
            split = self._chosen((weighted / scale[..., None]).max((0, 1)), tol) | large
            split &= cells.divisible()
            if errors.max() < smallest / 2:
                smallest, number = errors.max(), len(cells)
            # What is left is rounding, unless only a few cells shrink, towards a singular point.
            stalled = len(cells) > _STALLED * number and split.sum() > len(cells) / 20
            growth = split.sum() * (2 ** cells.low.shape[1] - 1)
            too_many = (len(cells) + growth) * cells.own[0].shape[1] > self.max_points
            if not split.any() or too_many or stalled:
                return Settled(cells, solved, errors.reshape(beta.shape), False)
            fresh = cells.refined(split, self.evaluate)
            cells = cells.joined(fresh, ~split)
            solved = self.solve(cells, beta)
            new_sums, new_differences = self.integrals(fresh, beta, solved)
            sums = np.concatenate([sums[..., ~split], new_sums], -1)
            differences = np.concatenate([differences[..., ~split], new_differences], -1)
            whole = False
            if split[near].any():
                # Next to a singular point all levels of halving that are still to come count.
                now = differences[..., cells.contain(np.zeros(cells.low.shape[1]))].sum(-1)
                falls = (before > 0) & (now > tol / 100)
                ratio = np.max(now[falls] / before[falls], initial=0.0)
                before, tail = now, 1 / (1 - min(ratio, 0.99))
        return Settled(cells, solved, errors.reshape(beta.shape), False)

    def _too_large(self, cells: Cells) -> np.ndarray:
        """Cells that could overlook a peak they are known to contain."""
        large = np.zeros(len(cells), bool)
        for point, scale in self.peaks:
            large |= cells.contain(point) & (cells.width > 8 * scale).any(-1)
        return large & cells.divisible()

    def _chosen(self, indicators: np.ndarray, tol: float) -> np.ndarray:
        """The fewest cells without which the errors sum to half of what is allowed."""
        order = np.argsort(indicators)
        chosen = np.zeros(len(indicators), bool)
        chosen[order[np.cumsum(indicators[order]) > tol / 2]] = True
        return chosen

    def solve(self, cells: Cells, beta: np.ndarray) -> Solved:
        """The discrete problem on the cells' own nodes."""
        log_ref, reward = cells.own[0].reshape(-1), cells.own[1].reshape(-1)
        size = rounded_up(len(log_ref) + 1, 1024, 4)
        nowhere = np.full(size - len(log_ref), -np.inf)
        top = nowhere.copy()
        top[0] = 0.0 if self.atom else -np.inf
        # Its values were looked at as they came.
        rewards = jnp.asarray(np.concatenate([reward, top]))
        refs = jnp.asarray(np.concatenate([log_ref, nowhere]))
        known = (rewards, refs, jnp.asarray(beta), self.divergence)
        target = solve(Objective.unchecked(*known, measure=True))
        log_probs = np.asarray(target.log_probs)[..., : len(log_ref) + 1]
        best = np.argmax(np.where(log_ref > -np.inf, reward, -np.inf))
        log_ratio = log_probs[..., best] - log_ref[best]
        condensed = log_probs[..., -1] > -np.inf
        log_ratio = np.where(condensed, np.inf, log_ratio)
        anchor = np.where(condensed, 0.0, reward[best])
        multiplier, status = np.asarray(target.multiplier), np.asarray(target.status)
        return Solved(log_probs, multiplier, status, anchor, log_ratio)

    def integrals(
        self, cells: Cells, beta: np.ndarray, solved: Solved
    ) -> tuple[np.ndarray, np.ndarray]:
        """Integrals over each cell, and how far those by its parts are from them: ``[B, K, C]``."""
        width = cells.own[0].shape[1]
        own = self.sums(cells.own, beta, solved)
        parts = self.sums([x.reshape(-1, width) for x in cells.parts], beta, solved)
        together = parts.reshape(*own.shape, -1).sum(-1)
        return own, np.abs(together - own)

    def sums(self, at: Any, beta: np.ndarray, solved: Solved) -> np.ndarray:
        """Integrals over cells of which log reference masses, rewards and modes are given."""
        count, width = at[0].shape
        most = max(_CHUNK // width, 1)
        rows = jax.tree.map(
            lambda x: np.broadcast_to(np.asarray(x), beta.shape).reshape(-1),
            (self.divergence, beta, solved.multiplier, solved.anchor, solved.log_ratio),
        )
        sums = []
        for start in range(0, count, most):
            chunk = [x[start : start + most] for x in at]
            size = min(rounded_up(len(chunk[0]), 256, 8), most)
            filled = [
                np.concatenate([x, np.full((size - len(x), width), fill, x.dtype)])
                for x, fill in zip(chunk, (-np.inf, 0.0, -1), strict=True)
            ]
            found = _integrals(rows, *filled, atom=self.atom, num_modes=self.num_modes)
            sums.append(np.asarray(found)[..., : len(chunk[0])])
        return np.concatenate(sums, -1)


def rounded_up(count: int, size: int, factor: int) -> int:
    """One of few sizes that are large enough: times a factor each."""
    while size < count:
        size *= factor
    return size


Row = tuple[Divergence, Array, Array, Array, Array]
"""Divergence, β, multiplier, anchor and the log density ratio there."""


@jax.jit(static_argnames=("atom", "num_modes"))
def _integrals(
    rows: Row, log_ref: Array, reward: Array, mode: Array, atom: bool, num_modes: int
) -> Array:
    """Per row and cell: reference mass, target mass, mean slope, divergence, modes' masses.

    Args:
        rows: divergence, β, multiplier, and reward and log density ratio of the anchor, each of
            shape ``[B]``. Density ratios are measured from the anchor: next to the maximiser their
            slopes ``(r − λ)/β`` have no digits left.
        log_ref: log of reference mass at the nodes, shape ``[C, P]``.
        reward: shape ``[C, P]``.
        mode: shape ``[C, P]``.
        atom: whether f has a finite slope at infinity; the maximum is then at the origin, a
            corner of cells.
        num_modes: how many modes there are.

    Returns:
        Shape ``[B, 4 + num_modes, C]``.
    """
    possible = (reward > -jnp.inf) & (log_ref > -jnp.inf)

    def row(given: Row) -> Array:
        divergence, beta, multiplier, anchor, log_ratio = given
        slope = (jnp.where(possible, reward, multiplier) - multiplier) / beta
        if isinstance(divergence, TotalVariation):
            log_probs = log_target(divergence, log_ref, reward, beta, multiplier)
        else:
            levels = coordinate(divergence, below=atom)
            at = jnp.broadcast_to(levels.of(log_ratio), reward.shape)
            away = (jnp.where(possible, reward, anchor) - anchor) / beta
            log_u, _ = levels.place(at, 0.0, away, 0.0)
            log_probs = jnp.where(possible, jnp.where(possible, log_ref, 0.0) + log_u, -jnp.inf)
        probs = jnp.exp(log_probs)
        cost = divergence._integrand(log_probs, log_ref)
        terms = [jnp.exp(log_ref), probs, jnp.where(probs > 0, probs * slope, 0.0), cost]
        terms += [jnp.where(mode == m, probs, 0.0) for m in range(num_modes)]
        return jnp.stack([x.sum(-1) for x in terms])

    return lax.map(row, rows)


def log_target(
    divergence: Divergence, log_ref: Array, reward: Array, beta: Array, multiplier: Array
) -> Array:
    """``log π_ref + log (f′)⁻¹((reward − λ)/β)``, elementwise."""
    possible = (reward > -jnp.inf) & (log_ref > -jnp.inf)
    slope = (jnp.where(possible, reward, multiplier) - multiplier) / beta
    # The rounding of s next to the maximiser may not make the density infinite.
    steepest = jnp.asarray(divergence.slope_at_infinity, slope.dtype)
    below = jnp.nextafter(steepest, jnp.full_like(steepest, -jnp.inf))
    slope = jnp.where(steepest < jnp.inf, jnp.minimum(slope, below), slope)
    log_u = divergence._log_inverse(slope)
    return jnp.where(possible, jnp.where(possible, log_ref, 0.0) + log_u, -jnp.inf)
