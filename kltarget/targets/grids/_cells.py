"""Boxes cut into cells with a Gauss–Legendre rule each, refined until the halves agree."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import jax
import numpy as np

from kltarget._core.pytrees import pytree

_ORDER = {1: 12, 2: 8, 3: 6}
_CUTS = {1: 32, 2: 8, 3: 4}

Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Points ``[n, d]`` to log-density, reward and mode, each ``[n]``."""


@pytree
class Cells:
    """Cells of a box, with what is known at the nodes of each and at those of its 2^d parts.

    Args:
        low: lower corners, shape ``[C, d]``.
        width: shape ``[C, d]``.
        own: log of reference mass (density times weight), reward and mode at the nodes of the
            cell's rule, each ``[C, P]``.
        parts: the same at the nodes of the parts' rules, each ``[C, 2^d, P]``.
    """

    low: np.ndarray
    width: np.ndarray
    own: tuple[np.ndarray, ...]
    parts: tuple[np.ndarray, ...]

    @classmethod
    def cut(cls, edges: list[np.ndarray], evaluate: Evaluate) -> Cells:
        """All cells between the edges given per axis."""
        low = np.stack(np.meshgrid(*(e[:-1] for e in edges), indexing="ij"), -1)
        width = np.stack(np.meshgrid(*(np.diff(e) for e in edges), indexing="ij"), -1)
        low, width = (x.reshape(-1, len(edges)) for x in (low, width))
        return cls.measured(low, width, _measure(low, width, evaluate), evaluate)

    @classmethod
    def measured(
        cls, low: np.ndarray, width: np.ndarray, own: tuple[np.ndarray, ...], evaluate: Evaluate
    ) -> Cells:
        """Cells whose own rule is known already."""
        part_low, part_width = _parts(low, width)
        parts = _measure(part_low, part_width, evaluate)
        shape = (len(low), 2 ** low.shape[1], -1)
        return cls(low, width, own, tuple(x.reshape(shape) for x in parts))

    def __len__(self) -> int:
        return len(self.low)

    def refined(self, which: np.ndarray, evaluate: Evaluate) -> Cells:
        """The parts of the cells in a mask, in the order of the cells."""
        low, width = _parts(self.low[which], self.width[which])
        own = tuple(x[which].reshape(len(low), -1) for x in self.parts)
        return Cells.measured(low, width, own, evaluate)

    def joined(self, other: Cells, keep: np.ndarray) -> Cells:
        """The cells in a mask, then the other ones."""
        return jax.tree.map(lambda a, b: np.concatenate([a[keep], b]), self, other)

    def divisible(self) -> np.ndarray:
        """Whether the nodes of a cell's parts are still apart in double precision."""
        reach = np.maximum(np.abs(self.low), np.abs(self.low + self.width))
        least = np.maximum(1e3 * np.finfo(float).eps * reach, 1e-140)
        return np.all(self.width > least, axis=-1)

    def contain(self, point: np.ndarray) -> np.ndarray:
        """Which cells a point lies in, or on the edge of."""
        inside = (point >= self.low) & (point <= self.low + self.width)
        return np.all(inside, axis=-1)


def edges_of(box: np.ndarray, corner: np.ndarray | None) -> list[np.ndarray]:
    """Even cuts of a box ``[d, 2]``, per axis; a point inside becomes a corner of cells."""
    edges = []
    for axis, (low, high) in enumerate(box):
        count = _CUTS[len(box)]
        if corner is None or not low < corner[axis] < high:
            edges.append(np.linspace(low, high, count + 1))
            continue
        left = round(count * (corner[axis] - low) / (high - low))
        left = min(max(left, 1), count - 1)
        below = np.linspace(low, corner[axis], left + 1)
        above = np.linspace(corner[axis], high, count - left + 1)
        edges.append(np.concatenate([below, above[1:]]))
    return edges


def surroundings(box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 3^d − 1 blocks around a box, half as wide as it: lower corners and widths."""
    width = box[:, 1] - box[:, 0]
    lows = np.stack([box[:, 0] - width / 2, box[:, 0], box[:, 1]])
    widths = np.stack([width / 2, width, width / 2])
    axes = np.arange(len(box))
    picks = [p for p in itertools.product(range(3), repeat=len(box)) if set(p) != {1}]
    return lows[np.array(picks), axes], widths[np.array(picks), axes]


def nodes(low: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Legendre nodes of cells ``[C·P, d]`` and their log weights ``[C·P]``."""
    size = low.shape[1]
    unit, weights = _rule(size)
    points = low[:, None, :] + width[:, None, :] * unit
    log_weights = np.log(width).sum(-1)[:, None] + weights
    return points.reshape(-1, size), log_weights.reshape(-1)


@functools.cache
def _rule(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and log weights of the unit cell."""
    x, w = np.polynomial.legendre.leggauss(_ORDER[size])
    x, log_w = (x + 1) / 2, np.log(w / 2)
    unit = np.stack(np.meshgrid(*[x] * size, indexing="ij"), -1).reshape(-1, size)
    return unit, np.sum(np.meshgrid(*[log_w] * size, indexing="ij"), axis=0).reshape(-1)


def _measure(low: np.ndarray, width: np.ndarray, evaluate: Evaluate) -> tuple[np.ndarray, ...]:
    points, log_weights = nodes(low, width)
    log_density, reward, mode = evaluate(points)
    shape = (len(low), -1)
    return ((log_density + log_weights).reshape(shape), reward.reshape(shape), mode.reshape(shape))


def _parts(low: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = low.shape[1]
    offsets = np.array(list(itertools.product((0.0, 0.5), repeat=size)))
    part_low = low[:, None, :] + offsets * width[:, None, :]
    part_width = np.broadcast_to(width[:, None, :] / 2, part_low.shape)
    return part_low.reshape(-1, size), part_width.reshape(-1, size)
