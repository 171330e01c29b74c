"""Targets of densities in one to three dimensions, by quadrature that refines itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._numerics import double_precision, log_sum_exp, working_dtype
from kltarget.divergences import Divergence, ReverseKL
from kltarget.objectives import Objective, _common_dtype, _named, _traced, _unflatten
from kltarget.spaces._gaussian_mixture import GaussianMixture
from kltarget.spaces.mixtures import _maximiser
from kltarget.spaces.mixtures._bounds import box_around, default_peaks, is_exponential
from kltarget.spaces.mixtures._cells import Cells, edges_of, nodes, surroundings
from kltarget.spaces.mixtures._grid_target import GridTarget, as_function, log_density_at
from kltarget.spaces.mixtures._refinement import Refinement, Solved, unsettled
from kltarget.spaces.mixtures._rewards import LogDensityReward, _Reward, quadratic_part
from kltarget.targets import Target, solve

__all__ = ["solve_on_grid"]

_BLOCK = 2**19


def solve_on_grid(
    density: GaussianMixture | Callable[[Array], Array],
    reward: Callable[[Array], Array],
    beta: ArrayLike,
    divergence: Divergence | None = None,
    *,
    bounds: ArrayLike | None = None,
    tol: float = 1e-6,
    truncate: bool = False,
    maximiser: ArrayLike | None = None,
    labels: Callable[[Array], ArrayLike] | None = None,
    max_points: int = 1_000_000,
    grid: GridTarget | None = None,
) -> GridTarget:
    """The distribution that maximises ``E_π[r] − beta · D(π, p)`` over those on a box of R^d.

    Its density is ``p (f′)⁻¹((r − λ)/β)`` with λ from its mass. Where f has a finite slope at
    infinity (forward KL, Jensen–Shannon, α < 1) probability may also stand where p has no mass: at
    a point. λ cannot fall below ``λ_c = sup r − β f′(∞)``, at which the density is infinite where r
    is largest; if its integral is below 1 even there, the optimum keeps what is missing as an atom
    on the maximiser of r. For forward KL the density is ``β p/(Λ − r)``, ``Λ = λ + β``, and the
    atom's mass ``1 − ∫ β p/(sup r − r)``; next to a quadratic maximum the integral is finite in
    three and more dimensions only.

    The box is cut into cells with a Gauss–Legendre rule each, on whose nodes the problem is a
    discrete one, for :func:`~kltarget.solve`, with the maximiser as one more outcome that has no
    reference mass. A cell is halved along every axis while its rule and the rules of its parts
    differ, so that cells gather where density and reward need them; the maximiser is kept at the
    cells' corners, towards which they shrink geometrically.

    Args:
        density: the reference p in d ≤ 3 dimensions: a :class:`GaussianMixture` without batch axes,
            or a function of points ``[N, d]``, traceable by JAX, with values ``[N]``: the
            log-density, normalised.
        reward: r in any real unit: a :class:`QuadraticReward`, :class:`LogDensityReward` or a sum
            of them, without batch axes, or a traceable function of points ``[N, d]`` with values
            ``[N]``.
        beta: coefficient of the divergence in reward units per nat, shape ``[*batch]``; one grid
            serves all.
        divergence: any f-divergence, :class:`ReverseKL` by default; its parameters broadcast
            against ``*batch``.
        bounds: the box, shape ``[d, 2]``. By default it holds a mixture and, for quadratic rewards,
            its tilts by ``e^{r/β}``, up to a hundredth of ``tol``.
        tol: what ``error`` is to fall below; see :class:`GridTarget`.
        truncate: the box is the space: the reference is restricted to it and renormalised.
        maximiser: where r is largest, shape ``[d]``. By default in closed form or by ascent from
            the best nodes; needed for rewards that have kinks there. Only one point is reported
            where several are best.
        labels: a function of points ``[N, d]`` to integers ``[N]``, such as basins; below 0 is in
            none. Cells are refined until the labels' masses are accurate as well, which in more
            than one dimension takes many cells where a border runs through the mass.
        max_points: the most nodes; eight times as many are evaluated in three dimensions.
        grid: a result whose nodes are used again without refinement. Only then may the call be
            traced. The nodes move along with a maximiser that an atom could stand on. ``error`` is
            then how far the reference's mass on the nodes is from 1. Other options are not used.

    Returns:
        A :class:`GridTarget`, computed in double precision and rounded to the inputs' type, float32
        at least. ``NOT_CONVERGED`` in its status says that ``error`` is above ``tol``, as where an
        atom cannot be told from a density that is singular on a scale below that of floats.

    Raises:
        TypeError: traced arguments without ``grid``.
        ValueError: shapes that do not fit; NaN or +inf; bounds that are missing or cut off mass of
            the reference or of the target; an unbounded reward with a finite slope at infinity; a
            reverse-KL target that cannot be normalised.

    Where the density is ``-inf`` so is the target's. Peaks narrower than the nodes' first distances
    (a 380th, a 64th, a 24th of the box in one, two, three dimensions) are found only if they are
    components of a mixture or the maximiser; a density whose peak was missed fails the check of its
    mass. With ``grid``, differentiable in β and the parameters of density, reward and divergence.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.spaces import mixtures
        >>> normal = mixtures.GaussianMixture([0.0], [[0.0]], [1.0], covariance_type="spherical")
        >>> bowl = mixtures.QuadraticReward.peak([0.0], [[2.0]])
        >>> target = mixtures.solve_on_grid(normal, bowl, 0.5, kt.ForwardKL())
        >>> print(f"{target.expected_reward:.5f} {target.multiplier + 0.5:.5f}")
        -0.29568 0.20432
        >>> print(target.atom_mass)
        0.0

    References:
        Korbak et al., 2022, arXiv 2205.11275 (the reverse-KL target). Grill et al., 2020, arXiv
        2007.12509 (forward KL). Davis and Rabinowitz, "Methods of Numerical Integration", 1984,
        §6.2 (adaptive rules).
    """
    divergence = ReverseKL() if divergence is None else divergence
    if not isinstance(divergence, Divergence):
        raise TypeError(
            "divergence must be a kltarget.Divergence such as kltarget.ForwardKL(), "
            f"got {divergence!r}"
        )
    for name, given in (("density", density), ("reward", reward)):
        if not (callable(given) or isinstance(given, GaussianMixture)):
            raise TypeError(f"{name} must be a function of points [N, d], got {given!r}")
        if batch := getattr(given, "batch_shape", ()):
            raise ValueError(
                f"{name} has batch shape {batch}: one grid serves one density and one reward; map "
                "over the others with grid="
            )
    beta_array = _named(beta, "beta")
    arrays = [x for x in jax.tree.leaves((density, reward)) if isinstance(x, jax.Array)]
    dtype = working_dtype(_common_dtype([beta, *arrays], [beta_array, *arrays]))
    if grid is not None:
        functions = as_function(density), as_function(reward)
        return _on_nodes(*functions, beta_array.astype(dtype), divergence, grid)
    if _traced(beta_array, *arrays, *jax.tree.leaves(divergence)):
        raise TypeError(
            "solve_on_grid decides on its nodes from numbers and cannot be traced: solve once "
            "outside and pass the result as grid="
        )
    problem = _Problem(
        density, reward, np.asarray(beta_array, np.float64), divergence, labels, tol, truncate
    )
    with double_precision():
        return problem.solved(bounds, maximiser, max_points, dtype)


@jax.jit
def _values(density: Any, reward: Any, points: Array) -> tuple[Array, Array]:
    return log_density_at(density, points), reward(points)


class _Problem:
    """A problem in double precision, and what is known of it so far."""

    def __init__(
        self,
        density: Any,
        reward: Any,
        beta: np.ndarray,
        divergence: Divergence,
        labels: Callable[[Array], ArrayLike] | None,
        tol: float,
        truncate: bool,
    ) -> None:
        if not ((beta > 0) & np.isfinite(beta)).all() or not beta.size:
            raise ValueError(f"beta must be above 0 and finite, got {beta.min(initial=0):.10g}")
        if not tol > 0:
            raise ValueError(f"tol must be above 0, got {tol}")
        self.density, self.reward = as_function(density), as_function(reward)
        self.given = (density, reward)
        self.divergence, self.labels = divergence, labels
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
        self.top = 0.0
        self.log_inside = 0.0
        self.best = (-np.inf, np.zeros(0))

    def solved(self, bounds: Any, maximiser: Any, max_points: int, dtype: Any) -> GridTarget:
        quadratic = None
        if isinstance(self.given[1], _Reward):
            quadratic = quadratic_part(self.given[1])
        peaks = default_peaks(
            *self.given, quadratic, self.beta, self.divergence, self.tol, self.truncate
        )
        place = None if maximiser is None else np.asarray(maximiser, np.float64)
        if self.atom and place is None and quadratic is not None and not self.truncate:
            place = _maximiser.of_quadratic(quadratic)
        box = self._box(bounds, peaks, quadratic, place)
        # A first look, at the points of even cells
        first = Cells.cut(edges_of(box, None), self._look)
        num_labels = self._count(first)
        if self.atom:
            place = self._maximum(place, maximiser is not None, box)
        else:
            place = self.best[1]
            self.top = self.best[0] if np.isfinite(self.best[0]) else 0.0
        peaks = [(x, scale) for x, scale in peaks if _within(x, box)]
        for _ in range(4):
            refinement = Refinement(
                self._look,
                self.divergence,
                self.beta,
                self.atom,
                place,
                num_labels,
                self.tol,
                max_points,
                peaks,
            )
            cells = Cells.cut(edges_of(box, place if self.atom else None), self._look)
            cells, found, error, accurate = self._refined(refinement, cells)
            if not self.atom or self.best[0] <= self.top + 1e-9 * max(abs(self.top), 1):
                break
            if maximiser is not None:
                raise ValueError(
                    f"maximiser has the reward {self.top:.10g}, but {self.best[1]} has "
                    f"{self.best[0]:.10g}; leave maximiser out to have it found"
                )
            place = self._maximum(None, False, box)
        if not self.truncate:
            error = error + self._outside(refinement, box, cells, found, error)
        return self._packed(cells, found, error, accurate, place, box, dtype)

    def _box(self, bounds: Any, peaks: Any, quadratic: Any, place: np.ndarray | None) -> np.ndarray:
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
            bent = quadratic is None and not isinstance(self.given[1], LogDensityReward)
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

    def _look(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is known at points, with the reward as its distance to the largest one."""
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
        if self.atom:
            # A node that ties with the maximiser by rounding would stand in for the atom.
            distance = np.minimum(distance, -max(np.spacing(abs(self.top)), 1e-300))
        return log_density - self.log_inside, distance, self._labels(points)

    def _raw(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(points), _BLOCK):
            chunk = points[start : start + _BLOCK]
            size = 1024
            while size < len(chunk):
                size *= 8
            filled = np.concatenate([chunk, np.repeat(chunk[:1], size - len(chunk), 0)])
            values = _values(self.density, self.reward, jnp.asarray(filled))
            for name, x in zip(("density", "reward"), values, strict=True):
                if x.shape != (size,):
                    raise ValueError(
                        f"{name} gives shape {x.shape} for points {filled.shape}: it needs one "
                        f"number per point, shape ({size},)"
                    )
            pair = tuple(np.asarray(x, np.float64)[: len(chunk)] for x in values)
            found.append((pair[0], pair[1]))
        return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])

    def _labels(self, points: np.ndarray) -> np.ndarray:
        if self.labels is None:
            return np.full(len(points), -1)
        labels = np.asarray(self.labels(jnp.asarray(points)))
        if labels.shape != (len(points),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels gives {labels.dtype} of shape {labels.shape} for points {points.shape}: "
                f"it needs integers of shape ({len(points)},)"
            )
        return labels.astype(np.int64)

    def _count(self, cells: Cells) -> int:
        most = int(cells.own[2].max()) + 1
        if most > 100:
            raise ValueError(f"labels must be below 100, got {most - 1}: number them from 0")
        return max(most, 0)

    def _maximum(self, place: np.ndarray | None, given: bool, box: np.ndarray) -> np.ndarray:
        if place is None:
            start = self.best[1][None]
            low, width = box[None, :, 0], np.diff(box, axis=1)[None, :, 0]
            points = np.concatenate([start, nodes(low, width)[0], self._lattice(box)])
            place = _maximiser.search(self.reward, points, box)
        if place.shape != (len(box),) or not np.isfinite(place).all():
            raise ValueError(
                f"maximiser must be a finite point of shape ({len(box)},), got {place}"
            )
        if given and not _within(place, box):
            raise ValueError(f"maximiser {place} lies outside of the bounds {box.tolist()}")
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

    def _lattice(self, box: np.ndarray) -> np.ndarray:
        edges = edges_of(box, None)
        middles = [(e[1:] + e[:-1]) / 2 for e in edges]
        return np.stack(np.meshgrid(*middles, indexing="ij"), -1).reshape(-1, len(box))

    def _refined(
        self, refinement: Refinement, cells: Cells
    ) -> tuple[Cells, Solved, np.ndarray, bool]:
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

    def _outside(
        self,
        refinement: Refinement,
        box: np.ndarray,
        cells: Cells,
        found: Solved,
        error: np.ndarray,
    ) -> np.ndarray:
        """The target's mass in the blocks around the box."""
        mass = float(np.exp(cells.own[0]).sum())
        limit = 10 * self.tol + float(error.max())
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
        blocks = (
            np.where(usual, log_density + log_weights, -np.inf),
            np.where(usual, reward - self.top, -np.inf),
            np.full(len(points), -1),
        )
        sums = refinement.sums([x.reshape(len(low), -1) for x in blocks], self.beta, found)
        mass = sums[:, 1].sum(-1).reshape(self.beta.shape)
        if not (mass <= limit).all():
            raise ValueError(
                f"the bounds {box.tolist()} cut off mass of the target, about {mass.max():.3g}: "
                "widen them, or pass truncate=True, which makes them the space"
            )
        return mass

    def _packed(
        self,
        cells: Cells,
        found: Solved,
        error: np.ndarray,
        accurate: bool,
        place: np.ndarray,
        box: np.ndarray,
        dtype: Any,
    ) -> GridTarget:
        points, log_weights = cells.nodes()
        labels, num_labels = None, 0
        if self.labels is not None:
            labels = np.concatenate([cells.own[2].reshape(-1), self._labels(place[None])])
            kept = np.unique(labels[labels >= 0])
            num_labels = len(kept)
            labels = np.where(labels >= 0, np.searchsorted(kept, labels), -1).astype(np.int32)
        status = found.status
        if not accurate:
            atom = np.exp(found.log_probs[..., -1])
            error = np.maximum(error, np.where(error > self.tol, atom, 0.0))
            status = np.where(error > self.tol, unsettled(status), status)
        top = self.top if self.atom else -np.inf
        reward = np.append(cells.own[1].reshape(-1) + self.top, top)
        log_ref = np.append(cells.own[0].reshape(-1), -np.inf)

        def rounded(x: Any) -> Array:
            return jnp.asarray(x, dtype)

        # Its values have been looked at; to do it again takes a program per number of nodes.
        fields = (rounded(reward), rounded(log_ref), rounded(self.beta), self.divergence)
        objective = _unflatten(True, fields)
        target = Target(
            objective,
            rounded(found.log_probs),
            rounded(found.multiplier + self.top),
            jnp.asarray(status, jnp.int32),
        )
        return GridTarget(
            target=target,
            points=rounded(points),
            log_weights=rounded(log_weights),
            atom_place=rounded(place),
            error=rounded(error),
            box=rounded(box),
            density=self.density,
            reward=self.reward,
            log_inside=rounded(self.log_inside),
            labels=None if labels is None else jnp.asarray(labels),
            num_labels=num_labels,
            truncated=self.truncate,
            condensable=self.atom,
        )


def _within(point: np.ndarray, box: np.ndarray) -> bool:
    return bool(((point >= box[:, 0]) & (point <= box[:, 1])).all())


@jax.jit
def _on_nodes(
    density: Any, reward: Any, beta: Array, divergence: Divergence, grid: GridTarget
) -> GridTarget:
    """The problem on the nodes of a grid, for transformations."""
    points, place, log_inside = grid.points, grid.atom_place, jnp.zeros_like(grid.log_inside)
    top = jnp.full((), -jnp.inf, points.dtype)
    if grid.condensable:
        moved = _maximiser.newton(reward, place)
        if not grid.truncated:
            points = points + (moved - place)[None]
        place = moved
        top = reward(place[None])[0]
    rewards = reward(points)
    if grid.condensable:
        finfo = jnp.finfo(top.dtype)
        step = jnp.maximum(finfo.eps * jnp.abs(top), float(finfo.tiny))
        below = top - jax.lax.stop_gradient(step)
        rewards = jnp.minimum(rewards, jnp.broadcast_to(below, rewards.shape))
    log_ref = log_density_at(density, points) + grid.log_weights.astype(points.dtype)
    mass = log_sum_exp(log_ref)
    if grid.truncated:
        log_ref, log_inside = log_ref - jnp.broadcast_to(mass, log_ref.shape), mass[0]
    dtype = beta.dtype
    objective = Objective(
        jnp.concatenate([rewards, top[None]]).astype(dtype),
        jnp.append(log_ref, -jnp.inf).astype(dtype),
        beta,
        divergence,
        measure=True,
    )
    target = solve(objective)
    error = jnp.abs(jnp.exp(mass[0]) - 1) if not grid.truncated else jnp.zeros_like(mass[0])
    return dataclasses.replace(
        grid,
        target=target,
        points=points,
        atom_place=place,
        error=jnp.broadcast_to(error.astype(dtype), target.status.shape),
        density=density,
        reward=reward,
        log_inside=log_inside,
    )
