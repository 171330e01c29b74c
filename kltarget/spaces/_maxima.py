"""The modes of a density: where they are, which of them a point belongs to, where they swap."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from kltarget._core.matrices import inverse_lower, product, times, transposed
from kltarget._core.numerics import as_float, double_precision, working_dtype
from kltarget.spaces import GaussianMixture

_MOST_STEPS = 2000


def find_modes(mixture: GaussianMixture) -> Float[Array, "M d"]:
    """The local maxima of a mixture's density, the highest first.

    From the mean of every component the iteration ``x ← (Σ_k r_k(x) Σ_k⁻¹)⁻¹ Σ_k r_k(x)
    Σ_k⁻¹ μ_k``, r the responsibilities, climbs the density (modal expectation–maximisation).
    Overlapping components share a mode; in two and more dimensions a mixture may have further modes
    between its components, which are not looked for.

    Args:
        mixture: without batch axes.

    Returns:
        M points, shape ``[M, d]``, M at most the number of components.

    Raises:
        ValueError: a mixture with batch axes.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.spaces import find_modes
        >>> p = kt.GaussianMixture(
        ...     jnp.log(jnp.array([0.5, 0.2, 0.3])),
        ...     [[-3.0], [2.9], [3.0]],
        ...     [1.0, 1.0, 1.0],
        ...     covariance_type="spherical",
        ... )
        >>> print(find_modes(p).round(2).ravel())
        [-3.    2.96]

    References:
        Li, Ray and Lindsay, "A Nonparametric Statistical Approach to Clustering via Mode
        Identification", 2007 (the iteration).
    """
    if mixture.batch_shape:
        raise ValueError(f"mixture must have no batch axes, got {mixture.batch_shape}")
    present = np.asarray(mixture.log_weights) > -np.inf
    with double_precision():
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), mixture)
        ends = _climb(wide, wide.means)
        # Symmetry may hold a climb on a saddle: a push along the steepest bend leaves it.
        bend, axes = jnp.linalg.eigh(jax.vmap(jax.hessian(wide.log_prob))(ends))
        nudge = 1e-3 * jnp.sqrt(jnp.trace(wide.covariances, axis1=-2, axis2=-1).min())
        upward = jnp.where(bend[:, -1:] > 0, nudge * axes[..., -1], 0.0)
        ends = np.asarray(_climb(wide, ends + upward))[present]
        heights = np.asarray(wide.log_prob(ends))
        # A flat top is climbed slowly: ends without a dip between them are one mode.
        between = np.linspace(0, 1, 65)[:, None, None, None]
        ways = jnp.asarray(ends[:, None] + between * (ends[None] - ends[:, None]))
        lowest = np.asarray(wide.log_prob(ways)).min(0)
    modes: list[int] = []
    for i in np.argsort(-heights, kind="stable"):
        if all(lowest[i, mode] < heights[i] - 1e-7 for mode in modes):
            modes.append(int(i))
    return jnp.asarray(ends[modes], mixture.means.dtype)


def basins(mixture: GaussianMixture) -> Callable[[ArrayLike], Int[Array, "*points"]]:
    """The function that labels a point with the mode that it climbs to.

    Args:
        mixture: without batch axes.

    Returns:
        A function from points ``[..., d]`` to indices into :func:`find_modes`, int32 ``[...]``.

    Example:
        >>> import kltarget as kt, jax.numpy as jnp
        >>> from kltarget.spaces import basins
        >>> p = kt.GaussianMixture(
        ...     jnp.log(jnp.array([0.7, 0.3])),
        ...     [[-2.0], [2.0]],
        ...     [0.64, 0.36],
        ...     covariance_type="spherical",
        ... )
        >>> basins(p)(jnp.array([[-5.0], [0.1], [0.6], [9.0]]))
        Array([0, 0, 1, 1], dtype=int32)
    """
    modes = find_modes(mixture)

    def label(x: ArrayLike) -> Int[Array, "*points"]:
        points = as_float(x)
        wide = points.astype(working_dtype(points.dtype)).reshape(-1, mixture.dim)
        ends = _climb(jax.tree.map(lambda a: a.astype(wide.dtype), mixture), wide)
        apart = ends[:, None, :] - modes.astype(wide.dtype)[None]
        nearest = jnp.square(apart).sum(-1).argmin(-1).astype(jnp.int32)
        return nearest.reshape(points.shape[:-1])

    return label


@jax.jit
def _climb(mixture: GaussianMixture, points: Float[Array, "N d"]) -> Float[Array, "N d"]:
    whitening = inverse_lower(mixture.cholesky)
    precision = product(transposed(whitening), whitening)
    tol = 4 * float(jnp.finfo(points.dtype).eps)
    scale = jnp.abs(mixture.means).max() + jnp.abs(mixture.cholesky).max()

    smallest = jnp.linalg.eigvalsh(mixture.covariances).min() ** 0.5

    def step(x: Array) -> Array:
        share = jnp.exp(mixture.log_responsibilities(x))
        held = (share[..., None, None] * precision[None]).sum(-3)
        pull = (share[..., None] * times(precision, mixture.means)[None]).sum(-2)
        step = jnp.linalg.solve(held, pull[..., None])[..., 0] - x
        # The whole step climbs as well, but from a tail, which is the widest component's, it may
        # leap over a mode.
        apart = x[..., None, :] - mixture.means[None]
        nearest = jnp.sqrt(jnp.square(apart).sum(-1).min(-1))
        limit = jnp.maximum(smallest / 2, nearest / 4)
        length = jnp.sqrt(jnp.square(step).sum(-1))
        return x + step * jnp.minimum(1.0, limit / jnp.maximum(length, limit))[..., None]

    def moving(state: tuple[Array, Array, Array]) -> Array:
        _, moved, count = state
        return (moved > tol * scale) & (count < _MOST_STEPS)

    def climb(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, _, count = state
        new = step(x)
        return new, jnp.abs(new - x).max(), count + 1

    start = (points, jnp.full((), jnp.inf, points.dtype), jnp.int32(0))
    return lax.while_loop(moving, climb, start)[0]
