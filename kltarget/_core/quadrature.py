"""Points and weights of expectations, a block at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from kltarget._core.pytrees import pytree

BLOCK = 256


@pytree
class NormalLattice:
    """The trapezoid rule for expectations of standard normal vectors.

    Its error falls faster than any power of the step for smooth integrands, and for log-densities
    of mixtures, whose singularities lie off the real axis, exponentially. Step and extent are
    numbers, so that rules of any fineness run in one program.

    Args:
        step: distance of neighbours.
        half: how many there are on either side of the origin on every axis.
        dim: number of dimensions.
    """

    step: Float[Array, ""] | float
    half: Int[Array, ""] | int
    dim: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, step: float, radius: float, dim: int) -> NormalLattice:
        """A lattice that reaches ``radius`` standard deviations along every axis."""
        return cls(step, math.ceil(radius / step), dim)

    @property
    def num_blocks(self) -> Array | int:
        """The number of blocks."""
        return ((2 * self.half + 1) ** self.dim + BLOCK - 1) // BLOCK

    def block(self, number: Array) -> tuple[Float[Array, "B d"], Float[Array, "B"]]:
        """Points and weights; 0 past the end."""
        index = number * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
        count = 2 * self.half + 1
        axes = jnp.stack([index // count**j % count for j in range(self.dim)], axis=-1)
        step = jnp.asarray(self.step, jnp.result_type(float))
        points = (axes - self.half).astype(step.dtype) * step
        density = jnp.exp(-jnp.square(points).sum(-1) / 2)
        weights = density * (step / math.sqrt(2 * math.pi)) ** self.dim
        return points, jnp.where(index < count**self.dim, weights, 0.0)

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """All points ``[N, d]`` and their weights ``[N]``."""
        points, weights = jax.vmap(self.block)(jnp.arange(int(self.num_blocks), dtype=jnp.int32))
        points, weights = np.asarray(points).reshape(-1, self.dim), np.asarray(weights).ravel()
        return points[weights > 0], weights[weights > 0]


@pytree
class Table:
    """Points that are given, with their weights.

    Args:
        points: shape ``[n·B, d]``.
        weights: shape ``[n·B]``.
    """

    points: Float[Array | np.ndarray, "nB d"]
    weights: Float[Array | np.ndarray, "nB"]

    @classmethod
    def of(cls, points: np.ndarray, weights: np.ndarray) -> Table:
        """A table of any length; what fills its last block up has weight 0."""
        missing = -len(points) % BLOCK
        filled = np.concatenate([points, np.repeat(points[:1], missing, axis=0)])
        return cls(filled, np.append(weights, np.zeros(missing)))

    @property
    def num_blocks(self) -> int:
        """The number of blocks."""
        return len(self.weights) // BLOCK

    def block(self, number: Array) -> tuple[Float[Array, "B d"], Float[Array, "B"]]:
        """Points and weights."""
        first = number * BLOCK
        points = lax.dynamic_slice_in_dim(self.points, first, BLOCK)
        return points, lax.dynamic_slice_in_dim(self.weights, first, BLOCK)


Rule = NormalLattice | Table


def total(piece: Callable[[Array, Array], Any], rule: Rule) -> Any:
    """The sum over a rule's blocks of what ``piece(points, weights)`` gives."""

    def add(number: Array, so_far: Any) -> Any:
        return jax.tree.map(jnp.add, so_far, piece(*rule.block(number)))

    shapes = jax.eval_shape(piece, *rule.block(jnp.int32(0)))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.fori_loop(0, rule.num_blocks, add, nothing)


LEVELS = {
    1: ((1 / 4, 9), (1 / 8, 9), (1 / 16, 9), (1 / 32, 9), (1 / 64, 9), (1 / 128, 9)),
    2: ((1 / 2, 6), (1 / 4, 7), (1 / 6, 8), (1 / 8, 8), (1 / 12, 8)),
    3: ((1, 4), (1 / 2, 6), (1 / 3, 7), (1 / 4, 7)),
}
"""Steps and radii of lattices for a number of dimensions, from the coarsest to the finest."""


def box(bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of a uniform grid on a box, trapezoid weights, and those of every other point.

    Every other point makes a rule of twice the step, whose difference tells the error.
    """
    size = len(bounds)
    count = {1: 2049, 2: 257, 3: 49}[size]
    axes = [np.linspace(low, high, count) for low, high in bounds]
    fine, coarse = np.ones(1), np.ones(1)
    for low, high in bounds:
        ends = np.ones(count)
        ends[[0, -1]] = 0.5
        step = (high - low) / (count - 1)
        fine = np.multiply.outer(fine, step * ends)
        coarse = np.multiply.outer(coarse, 2 * step * ends * (np.arange(count) % 2 == 0))
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, size)
    return points, fine.ravel(), coarse.ravel()
