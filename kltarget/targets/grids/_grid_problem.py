"""A problem on a box as a grid sees it: bounds, the maximiser, checks, and the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.pytrees import as_function
from kltarget._core.status import Status
from kltarget.divergences import Divergence
from kltarget.objectives import Objective
from kltarget.objectives._point_rewards import LogDensityReward
from kltarget.spaces import GaussianMixture
from kltarget.targets.discrete._solve import Target
from kltarget.targets.grids import _maximum_search
from kltarget.targets.grids._cells import Cells, edges_of, nodes, surroundings
from kltarget.targets.grids._grid_target import GridTarget, log_density_at
from kltarget.targets.grids._refinement import Refinement, Settled, rounded_up
from kltarget.targets.mixtures._bounds import box_around, default_peaks, is_exponential
from kltarget.targets.mixtures._expansion import quadratic_of

_BLOCK = 2**19


@jax.jit
def _values(density: Any, reward: Any, points: Array) -> tuple[Array, Array]:
    return log_density_at(density, points), reward(points)


class Problem:
    """A problem in double precision, and what is known of it so far."""

    def __init__(
        self,
        density: Any,
        reward: Any,
        beta: np.ndarray,
        divergence: Divergence,
        modes: Callable[[Array], ArrayLike] | None,
        tol: float,
        truncate: bool,
    ) -> None:
        if not ((beta > 0) & np.isfinite(beta)).all() or not beta.size:
            raise ValueError(f"beta must be above 0 and finite, got {beta.min(initial=0):.10g}")
        if not tol > 0:
            raise ValueError(f"error_tol must be above 0, got {tol}")
        self.density, self.reward = as_function(density), as_function(reward)
        self.given = (density, reward)
        self.divergence, self.modes = divergence, modes
        self.tol, self.truncate = tol, truncate
        batch = np.broadcast_shapes(beta.shape, *map(np.shape, jax.tree.leaves(divergence)))
        self.beta = np.broadcast_to(beta, batch)
        slope = np.asarray(divergence.slope_at_infinity)
        self.atom = bool((slope < np.inf).any())
        if self.atom and not (slope < np.inf).all():
            raise ValueError(
                "divergence has finite and infinite slopes at infinity in one batch; solve the "
                "two parts apart"
            )
        self.quadratic = quadratic_of(reward)
        # Cells and their nodes are counted from the origin, rewards from the top.
        self.origin = np.zeros(())
        self.top = 0.0
        self.bend: np.ndarray | None = None
        self.log_inside = 0.0
        self.best = (-np.inf, np.zeros(0))

    def solved(self, bounds: Any, maximum: Any, max_points: int, dtype: Any) -> GridTarget:
        peaks = default_peaks(*self.given, self.beta, self.divergence, self.tol, self.truncate)
        place = None if maximum is None else np.asarray(maximum, np.float64)
        found = self.atom and place is None and not self.truncate
        closed = self.quadratic if found else None
        if closed is not None:
            place = _maximum_search.of_quadratic(closed)
        box = self._box(bounds, peaks, place)
        # A first look, at the points of even cells
        first = Cells.cut(edges_of(box, None), self._look)
        num_modes = max(int(first.own[2].max()) + 1, 0)
        if num_modes > 100:
            raise ValueError(f"modes must be below 100, got {num_modes - 1}: number them from 0")
        if self.atom:
            place = self._maximum(place, maximum is not None, box)
            if closed is not None:
                self.bend = np.asarray(closed.matrix, np.float64)
        else:
            place = self.best[1]
            self.top = self.best[0] if np.isfinite(self.best[0]) else 0.0
        peaks = [(x, scale) for x, scale in peaks if _within(x, box)]
        while True:
            self.origin = place if self.atom else np.zeros(len(box))
            shared = (self._look, self.divergence, self.beta, self.atom, num_modes, self.tol)
            moved = [(x - self.origin, scale) for x, scale in peaks]
            refinement = Refinement(*shared, max_points, moved)
            corner = np.zeros(len(box)) if self.atom else None
            cells = Cells.cut(edges_of(box - self.origin[:, None], corner), self._look)
            settled = self._refined(refinement, cells)
            if not self.atom or self.best[0] <= self.top + 1e-9 * max(abs(self.top), 1):
                break
            if maximum is not None:
                raise ValueError(
                    f"maximum has the reward {self.top:.10g}, but {self.best[1]} has "
                    f"{self.best[0]:.10g}; leave maximum out to have it found"
                )
            # The nodes met a better place than the search; each time the top rises.
            place = self._maximum(None, False, box)
        if not self.truncate:
            errors = settled.errors + self._outside(refinement, box, settled)
            settled = settled._replace(errors=errors)
        return self._packed(settled, place, box, dtype)

    def _box(self, bounds: Any, peaks: Any, place: np.ndarray | None) -> np.ndarray:
        known = getattr(self.given[0], "dim", getattr(self.given[1], "dim", None))
        if bounds is not None:
            box = np.asarray(bounds, np.float64)
            shape = (known, 2) if known else (box.shape[0] if box.ndim else 1, 2)
            if box.shape != shape:
                raise ValueError(f"bounds has shape {box.shape}: it needs shape ({shape[0]}, 2)")
            if not (np.isfinite(box).all() and (box[:, 0] < box[:, 1]).all()):
                raise ValueError(f"bounds must be finite, each low below its high, got {bounds}")
        else:
            if not isinstance(self.given[0], GaussianMixture):
                raise ValueError("bounds are needed where density is a function: give a [d, 2] box")
            bent = self.quadratic is None and not isinstance(self.given[1], LogDensityReward)
            if bent and is_exponential(self.divergence):
                raise ValueError(
                    "bounds are needed for reverse KL and a reward that is neither quadratic nor a "
                    "log-density: nothing says where the target ends; give a [d, 2] box"
                )
            scale = peaks[0][1]
            box = box_around([*peaks, (place, scale)] if place is not None else peaks, self.tol)
        if len(box) > 3:
            raise ValueError(
                f"the space has {len(box)} dimensions, a grid serves 1 to 3: solve_on_samples "
                "takes any number"
            )
        return box

    def _look(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is known at points, with the reward as its distance to the largest one."""
        points = self.origin + offsets
        log_density, reward = self._raw(points)
        for name, x in (("density", log_density), ("reward", reward)):
            bad = np.isnan(x) | (x == np.inf)
            if bad.any():
                at = int(np.argmax(bad))
                raise ValueError(f"{name} must be below +inf, got {x[at]} at {points[at]}")
        top = int(np.argmax(reward))
        if reward[top] > self.best[0]:
            self.best = (float(reward[top]), points[top])
        distance = reward - self.top
        if self.bend is not None:  # from the offsets themselves, which are far finer than points
            distance = np.einsum("ni,ij,nj->n", offsets, self.bend, offsets) / 2
        if self.atom:
            # A node that ties with the maximiser by rounding would stand in for the atom.
            noise = 0.0 if self.bend is not None else np.spacing(abs(self.top))
            distance = np.minimum(distance, -max(noise, 1e-300))
        return log_density - self.log_inside, distance, self._modes(points)

    def _raw(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found: list[list[np.ndarray]] = []
        for start in range(0, len(points), _BLOCK):
            chunk = points[start : start + _BLOCK]
            size = rounded_up(len(chunk), 1024, 8)
            filled = np.concatenate([chunk, np.repeat(chunk[:1], size - len(chunk), 0)])
            values = _values(self.density, self.reward, jnp.asarray(filled))
            for name, x in zip(("density", "reward"), values, strict=True):
                if x.shape != (size,):
                    raise ValueError(
                        f"{name} gives shape {x.shape} for points {filled.shape}: it needs one "
                        f"number per point, shape ({size},)"
                    )
            found.append([np.asarray(x, np.float64)[: len(chunk)] for x in values])
        log_density, reward = map(np.concatenate, zip(*found, strict=True))
        return log_density, reward

    def _modes(self, points: np.ndarray) -> np.ndarray:
        if self.modes is None:
            return np.full(len(points), -1)
        modes = np.asarray(self.modes(jnp.asarray(points)))
        if modes.shape != (len(points),) or not np.issubdtype(modes.dtype, np.integer):
            raise ValueError(
                f"modes gives {modes.dtype} of shape {modes.shape} for points {points.shape}: "
                f"it needs integers of shape ({len(points)},)"
            )
        return modes.astype(np.int64)

    def _maximum(self, place: np.ndarray | None, given: bool, box: np.ndarray) -> np.ndarray:
        if place is None:
            start = self.best[1][None]
            low, width = box[None, :, 0], np.diff(box, axis=1)[None, :, 0]
            middles = [(e[1:] + e[:-1]) / 2 for e in edges_of(box, None)]
            lattice = np.stack(np.meshgrid(*middles, indexing="ij"), -1).reshape(-1, len(box))
            points = np.concatenate([start, nodes(low, width)[0], lattice])
            place = _maximum_search.search(self.reward, points, box)
        if place.shape != (len(box),) or not np.isfinite(place).all():
            raise ValueError(f"maximum must be a finite point of shape ({len(box)},), got {place}")
        if given and not _within(place, box):
            raise ValueError(f"maximum {place} lies outside of the bounds {box.tolist()}")
        edge = np.min(np.stack([place - box[:, 0], box[:, 1] - place]) / np.diff(box, axis=1).T)
        if not self.truncate and edge <= 1e-9:
            raise ValueError(
                f"the reward is largest at the edge of the bounds, at {place}, and the divergence "
                "has a finite slope at infinity: an atom belongs to the reward's maximiser; give "
                "bounds that hold it or, if the reward is unbounded, where no optimum exists, "
                "truncate=True, which makes the bounds the space"
            )
        self.top = float(self._raw(place[None])[1][0])
        return place

    def _refined(self, refinement: Refinement, cells: Cells) -> Settled:
        if self.truncate:
            for _ in range(2):
                cells = self._normalised(cells)
                cells, *_ = refinement.run(cells)
            cells = self._normalised(cells)
        return refinement.run(cells)

    def _normalised(self, cells: Cells) -> Cells:
        mass = np.exp(cells.own[0]).sum()
        if not mass > 0:
            raise ValueError("density has no mass within the bounds")
        excess = float(np.log(mass))
        self.log_inside += excess
        own, parts = ((x[0] - excess, *x[1:]) for x in (cells.own, cells.parts))
        return dataclasses.replace(cells, own=own, parts=parts)

    def _outside(self, refinement: Refinement, box: np.ndarray, settled: Settled) -> np.ndarray:
        """The target's mass in the blocks around the box."""
        mass = float(np.exp(settled.cells.own[0]).sum())
        limit = 10 * self.tol + float(settled.errors.max())
        if not abs(mass - 1) <= limit:
            raise ValueError(
                f"density has the mass {mass:.10g} within the bounds {box.tolist()}, not 1: widen "
                "them, normalise the density, or pass truncate=True, which makes the bounds the "
                "space"
            )
        low, width = surroundings(box)
        points, log_weights = nodes(low, width)
        log_density, reward = self._raw(points)
        usual = ~(np.isnan(log_density) | np.isnan(reward))
        log_ref = np.where(usual, log_density + log_weights, -np.inf)
        reward = np.where(usual, reward - self.top, -np.inf)
        blocks = [x.reshape(len(low), -1) for x in (log_ref, reward, np.full(len(points), -1))]
        sums = refinement.sums(blocks, self.beta, settled.solved)
        mass = sums[:, 1].sum(-1).reshape(self.beta.shape)
        if not (mass <= limit).all():
            raise ValueError(
                f"the bounds {box.tolist()} cut off mass of the target, about {mass.max():.3g}: "
                "widen them, or pass truncate=True, which makes them the space"
            )
        return mass

    def _packed(
        self, settled: Settled, place: np.ndarray, box: np.ndarray, dtype: Any
    ) -> GridTarget:
        cells, found, error, accurate = settled
        offsets, log_weights = nodes(cells.low, cells.width)
        points = self.origin + offsets
        modes, num_modes = None, 0
        if self.modes is not None:
            modes = np.concatenate([cells.own[2].reshape(-1), self._modes(place[None])])
            kept = np.unique(modes[modes >= 0])
            num_modes = len(kept)
            modes = np.where(modes >= 0, np.searchsorted(kept, modes), -1).astype(np.int32)
        status = found.status
        if not accurate:
            atom = np.exp(found.log_probs[..., -1])
            error = np.maximum(error, np.where(error > self.tol, atom, 0.0))
            unsettled = status | np.int32(int(Status.NOT_CONVERGED))
            status = np.where(error > self.tol, unsettled, status)
        top = self.top if self.atom else -np.inf
        reward = np.append(cells.own[1].reshape(-1) + self.top, top)
        log_ref = np.append(cells.own[0].reshape(-1), -np.inf)

        def rounded(x: Any) -> Array:
            return jnp.asarray(x, dtype)

        # Its values have been looked at; to do it again takes a program per number of nodes.
        problem = (rounded(reward), rounded(log_ref), rounded(self.beta), self.divergence)
        objective = Objective.unchecked(*problem, measure=True)
        log_probs, multiplier = rounded(found.log_probs), rounded(found.multiplier + self.top)
        target = Target(objective, log_probs, multiplier, jnp.asarray(status, jnp.int32))
        return GridTarget(
            target=target,
            points=rounded(points),
            log_weights=rounded(log_weights),
            atom=rounded(place),
            error=rounded(error),
            box=rounded(box),
            density=self.density,
            reward=self.reward,
            log_inside=rounded(self.log_inside),
            modes=None if modes is None else jnp.asarray(modes),
            num_modes=num_modes,
            truncated=self.truncate,
            condensable=self.atom,
        )


def _within(point: np.ndarray, box: np.ndarray) -> bool:
    return bool(((point >= box[:, 0]) & (point <= box[:, 1])).all())
