"""Boxes of real vectors and the grids on them."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Box:
    """A box in 1 to 3 dimensions and a regular grid of N points on it.

    A density p becomes the distribution ``p(x_n) h_n`` on the points, with the weights of the
    trapezoidal rule, half as large on each face that a point is on. For smooth densities that
    vanish at the faces the error of such sums falls faster than any power of the spacing: with a
    Gaussian whose standard deviation is s spacings, as ``exp(−2π²s²)``. Whatever lies outside the
    box is not counted.

    Made of plain numbers, hashable, and a static pytree: usable as a static argument of ``jax.jit``
    and as an ordinary one.

    Args:
        bounds: lower and upper end of each axis, d pairs; in one dimension also one pair.
        num_points: number of points along each axis, 2 or more: d integers, or one for all axes.

    Raises:
        TypeError: a number of points that is not an integer.
        ValueError: bounds that are not finite and rising, more than three axes, numbers of points
            that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import Box
        >>> box = Box((-1.0, 1.0), 5)
        >>> box.points()[:, 0].tolist()
        [-1.0, -0.5, 0.0, 0.5, 1.0]
        >>> jnp.exp(box.log_weights()).round(3).tolist()
        [0.25, 0.5, 0.5, 0.5, 0.25]
        >>> Box(((0, 1), (0, 2)), (3, 5)).num_outcomes
        15
    """

    bounds: tuple[tuple[float, float], ...]
    num_points: tuple[int, ...]

    def __init__(self, bounds: Any, num_points: Any) -> None:
        ends = np.asarray(bounds, np.float64)
        ends = ends[None] if ends.ndim == 1 else ends
        if ends.ndim != 2 or ends.shape[1] != 2 or not 1 <= len(ends) <= 3:
            raise ValueError(
                f"bounds has shape {ends.shape}: it needs a lower and an upper end for each of 1 "
                "to 3 axes, shape (d, 2)"
            )
        if not (np.isfinite(ends).all() and (ends[:, 0] < ends[:, 1]).all()):
            raise ValueError(f"bounds must be finite, the lower first, got {ends.tolist()}")
        given = num_points if isinstance(num_points, tuple | list) else [num_points] * len(ends)
        counts = tuple(operator.index(n) for n in given)
        if len(counts) != len(ends) or min(counts) < 2:
            raise ValueError(
                f"num_points must be 2 or more for each of the {len(ends)} axes of bounds, got "
                f"{num_points!r}"
            )
        pairs = tuple((low, high) for low, high in ends.tolist())
        object.__setattr__(self, "bounds", pairs)
        object.__setattr__(self, "num_points", counts)

    @property
    def dim(self) -> int:
        """The number d of dimensions."""
        return len(self.bounds)

    @property
    def num_outcomes(self) -> int:
        """The number N of points."""
        return math.prod(self.num_points)

    def points(self) -> Float[Array, "N d"]:
        """The points, ``[N, d]`` in the default float type; the last coordinate runs fastest."""
        axes = [np.linspace(*ends, n) for ends, n in zip(self.bounds, self.num_points, strict=True)]
        return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, self.dim))

    def log_weights(self) -> Float[Array, "N"]:
        """Natural logarithms of the trapezoidal rule's weights, ``[N]``."""
        parts = []
        for (low, high), n in zip(self.bounds, self.num_points, strict=True):
            weights = np.full(n, (high - low) / (n - 1))
            weights[[0, -1]] /= 2
            parts.append(np.log(weights))
        return jnp.asarray(functools.reduce(np.add.outer, parts).reshape(-1))
