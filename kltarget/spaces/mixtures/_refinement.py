"""Which cells a grid needs, so that a target's integrals over it are right.

The target at a multiplier λ is a density ``p u((r − λ)/β)``. Each cell's rule and the rules of its
2^d parts give two values of its integrals; where they differ too much the parts take the cell's
place, and the multiplier is found anew.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from kltarget.divergences import Divergence
from kltarget.objectives import Objective
from kltarget.spaces.mixtures._cells import Cells, Evaluate
from kltarget.status import FAILURES, Status
from kltarget.targets import solve

_LOOSE = 0.05
"""Accuracy of the grids on the way, for larger β than the caller's."""

_ROUNDS = 400
_CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class Solved:
    """The discrete problem on the nodes of a grid, in double precision.

    Args:
        log_probs: of the nodes and, last, of the maximiser, shape ``[*batch, N + 1]``.
        multiplier: shape ``[*batch]``.
        status: shape ``[*batch]``.
    """

    log_probs: np.ndarray
    multiplier: np.ndarray
    status: np.ndarray


@dataclasses.dataclass
class Refinement:
    """A problem whose reward is 0 at the maximiser, if an atom may stand there.

    Args:
        evaluate: what is known at points.
        divergence: the regulariser.
        beta: shape ``[*batch]``, of all parameters.
        atom: whether f has a finite slope at infinity.
        num_labels: how many labels from 0 up there are.
        tol: the accuracy wanted of every sum of integrals.
        max_points: how many nodes there may be.
        peaks: points and scales ``[d]`` that no cell may be too large for.
    """

    evaluate: Evaluate
    divergence: Divergence
    beta: np.ndarray
    atom: bool
    num_labels: int
    tol: float
    max_points: int
    peaks: list[tuple[np.ndarray, np.ndarray]]

    def run(self, cells: Cells) -> tuple[Cells, Solved, np.ndarray, bool]:
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

    def _settle(
        self, cells: Cells, beta: np.ndarray, tol: float
    ) -> tuple[Cells, Solved, np.ndarray, bool]:
        solved = self.solve(cells, beta)
        sums, differences = self.integrals(cells, beta, solved.multiplier)
        whole = True  # all integrals are of the present multiplier
        for _ in range(_ROUNDS):
            scale = np.maximum(np.abs(sums.sum(-1)), 1)
            errors = (differences.sum(-1) / scale).max(-1)
            large = np.array([self._too_large(cells)]).any(0)
            accurate = bool(errors.max() <= tol) and not large.any()
            if (solved.status & FAILURES).any() or (accurate and whole):
                return cells, solved, errors.reshape(beta.shape), accurate
            if accurate:
                sums, differences = self.integrals(cells, beta, solved.multiplier)
                whole = True
                continue
            split = self._chosen((differences / scale[..., None]).max((0, 1)), tol) | large
            split &= cells.divisible()
            count = (len(cells) + split.sum() * (2 ** cells.low.shape[1] - 1)) * cells.own[0].shape[1]
            if not split.any() or count > self.max_points:
                return cells, solved, errors.reshape(beta.shape), False
            fresh = cells.refined(split, self.evaluate)
            cells = cells.joined(fresh, ~split)
            solved = self.solve(cells, beta)
            new_sums, new_differences = self.integrals(fresh, beta, solved.multiplier)
            sums = np.concatenate([sums[..., ~split], new_sums], -1)
            differences = np.concatenate([differences[..., ~split], new_differences], -1)
            whole = False
        return cells, solved, errors.reshape(beta.shape), False

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
        size = 1024
        while size < len(log_ref) + 1:
            size *= 4
        nowhere = np.full(size - len(log_ref), -np.inf)
        top = nowhere.copy()
        top[0] = 0.0 if self.atom else -np.inf
        objective = Objective(
            np.concatenate([reward, top]),
            np.concatenate([log_ref, nowhere]),
            beta,
            self.divergence,
            measure=True,
        )
        target = solve(objective)
        return Solved(
            np.asarray(target.log_probs)[..., : len(log_ref) + 1],
            np.asarray(target.multiplier),
            np.asarray(target.status),
        )

    def integrals(
        self, cells: Cells, beta: np.ndarray, multiplier: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Integrals over each cell, and how far those by its parts are from them: ``[B, K, C]``."""
        own = [x.reshape(len(cells), -1) for x in cells.own]
        parts = [x.reshape(len(cells), -1) for x in cells.parts]
        low, high = (self._sums(x, beta, multiplier) for x in (own, parts))
        return low, np.abs(high - low)

    def _sums(self, at: Any, beta: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
        count, width = at[0].shape
        most = max(_CHUNK // width, 1)
        rows = [
            np.broadcast_to(x, beta.shape).reshape(-1)
            for x in (beta, multiplier, *map(np.asarray, jax.tree.leaves(self.divergence)))
        ]
        divergence = jax.tree.unflatten(jax.tree.structure(self.divergence), rows[2:])
        sums = []
        for start in range(0, count, most):
            chunk = [x[start : start + most] for x in at]
            size = padded(len(chunk[0]), most)
            filled = [
                np.concatenate([x, np.full((size - len(x), width), fill, x.dtype)])
                for x, fill in zip(chunk, (-np.inf, 0.0, -1), strict=True)
            ]
            found = _integrals(divergence, rows[0], rows[1], *filled, num_labels=self.num_labels)
            sums.append(np.asarray(found)[..., : len(chunk[0])])
        return np.concatenate(sums, -1)


def padded(count: int, most: int) -> int:
    """One of few sizes that are large enough."""
    size = 32
    while size < min(count, most):
        size *= 8
    return min(size, most)


@jax.jit(static_argnames="num_labels")
def _integrals(
    divergence: Divergence,
    beta: Array,
    multiplier: Array,
    log_ref: Array,
    reward: Array,
    label: Array,
    num_labels: int,
) -> Array:
    """Per row of β and cell: reference mass, target mass, mean slope, divergence, labels' masses.

    Returns:
        Shape ``[B, 4 + num_labels, C]``.
    """

    def row(given: tuple[Divergence, Array, Array]) -> Array:
        divergence, beta, multiplier = given
        log_probs, slope = log_target(divergence, log_ref, reward, beta, multiplier)
        probs = jnp.exp(log_probs)
        present = probs > 0
        cost = divergence._integrand(log_probs, log_ref)
        terms = [jnp.exp(log_ref), probs, jnp.where(present, probs * slope, 0.0), cost]
        terms += [jnp.where(label == m, probs, 0.0) for m in range(num_labels)]
        return jnp.stack([x.sum(-1) for x in terms])

    return lax.map(row, (divergence, beta, multiplier))


def log_target(
    divergence: Divergence, log_ref: Array, reward: Array, beta: Array, multiplier: Array
) -> tuple[Array, Array]:
    """``log π_ref + log (f′)⁻¹(s)`` and the slope ``s = (reward − λ)/β``, elementwise."""
    possible = (reward > -jnp.inf) & (log_ref > -jnp.inf)
    slope = (jnp.where(possible, reward, multiplier) - multiplier) / beta
    # The rounding of s next to the maximiser may not make the density infinite.
    steepest = jnp.asarray(divergence.slope_at_infinity, slope.dtype)
    below = jnp.nextafter(steepest, jnp.full_like(steepest, -jnp.inf))
    slope = jnp.where(steepest < jnp.inf, jnp.minimum(slope, below), slope)
    log_u = divergence._log_inverse(slope)
    return jnp.where(possible, jnp.where(possible, log_ref, 0.0) + log_u, -jnp.inf), slope


def unsettled(status: np.ndarray) -> np.ndarray:
    """The status of rows whose grid is not accurate enough."""
    return status | np.int32(int(Status.NOT_CONVERGED))
