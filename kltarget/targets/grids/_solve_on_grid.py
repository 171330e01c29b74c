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

from kltarget._core.checks import common_dtype, float_argument, traced
from kltarget._core.numerics import double_precision, log_sum_exp, working_dtype
from kltarget._core.pytrees import as_function
from kltarget.divergences import Divergence, ReverseKL
from kltarget.objectives import Objective
from kltarget.spaces import GaussianMixture
from kltarget.targets.discrete._solve import solve
from kltarget.targets.grids import _maximum_search
from kltarget.targets.grids._grid_problem import Problem
from kltarget.targets.grids._grid_target import GridTarget, log_density_at


def solve_on_grid(
    density: GaussianMixture | Callable[[Array], Array],
    reward: Callable[[Array], Array],
    beta: ArrayLike | Any,
    divergence: Divergence | None = None,
    *,
    bounds: ArrayLike | Any = None,
    error_tol: float = 1e-6,
    truncate: bool = False,
    maximum: ArrayLike | Any = None,
    modes: Callable[[Array], ArrayLike] | None = None,
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
    differ, so that cells gather where density and reward need them; the maximum is kept at the
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
            its tilts by ``e^{r/β}``, up to a hundredth of ``error_tol``.
        error_tol: what ``error`` is to fall below; see :class:`GridTarget`.
        truncate: the box is the space: the reference is restricted to it and renormalised.
        maximum: where r is largest, shape ``[d]``. By default in closed form or by ascent from
            the best nodes; needed for rewards that have kinks there. Only one point is reported
            where several are best.
        modes: a function of points ``[N, d]`` to integers ``[N]``, such as basins; below 0 is in
            none. Cells are refined until the modes' masses are accurate as well, which in more
            than one dimension takes many cells where a border runs through the mass.
        max_points: the most nodes; eight times as many are evaluated in three dimensions.
        grid: a result whose nodes are used again without refinement. Only then may the call be
            traced. The nodes move along with a maximiser that an atom could stand on. ``error`` is
            then how far the reference's mass on the nodes is from 1. Other options are not used.

    Returns:
        A :class:`GridTarget`, computed in double precision and rounded to the inputs' type, float32
        at least. ``NOT_CONVERGED`` in its status says that ``error`` is above ``error_tol``, as
        where an atom cannot be told from a density that is singular below the scale of floats.

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
        >>> from kltarget import mixtures
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
    beta_array = float_argument(beta, "beta")
    arrays = [x for x in jax.tree.leaves((density, reward)) if isinstance(x, jax.Array)]
    dtype = working_dtype(common_dtype([beta, *arrays], [beta_array, *arrays]))
    if grid is not None:
        functions = as_function(density), as_function(reward)
        return _on_nodes(*functions, beta_array.astype(dtype), divergence, grid)
    if traced(beta_array, *arrays, *jax.tree.leaves(divergence)):
        raise TypeError(
            "solve_on_grid decides on its nodes from numbers and cannot be traced: solve once "
            "outside and pass the result as grid="
        )
    betas = np.asarray(beta_array, np.float64)
    problem = Problem(density, reward, betas, divergence, modes, error_tol, truncate)
    with double_precision():
        return problem.solved(bounds, maximum, max_points, dtype)


@jax.jit
def _on_nodes(
    density: Any, reward: Any, beta: Array, divergence: Divergence, grid: GridTarget
) -> GridTarget:
    """The problem on the nodes of a grid, for transformations."""
    dtype = beta.dtype
    points, place = grid.points.astype(dtype), grid.atom.astype(dtype)
    log_inside = jnp.zeros_like(grid.log_inside, dtype)
    top = jnp.full((), -jnp.inf, dtype)
    if grid.condensable:
        moved = _maximum_search.newton(reward, place)
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
    rewards = jnp.concatenate([rewards, top[None]]).astype(dtype)
    log_ref = jnp.append(log_ref, -jnp.inf).astype(dtype)
    target = solve(Objective(rewards, log_ref, beta, divergence, measure=True))
    error = jnp.abs(jnp.exp(mass[0]) - 1) if not grid.truncated else jnp.zeros_like(mass[0])
    error = jnp.broadcast_to(error.astype(dtype), target.status.shape)
    moved = {"points": points, "atom": place, "error": error, "log_inside": log_inside}
    return dataclasses.replace(grid, target=target, density=density, reward=reward, **moved)
