"""Rewards under which Gaussians stay Gaussians: quadratic ones and log-densities."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import common_dtype, float_argument, float_arguments, traced, worded
from kltarget._core.matrices import times, transposed
from kltarget._core.numerics import as_float, widest, working_dtype
from kltarget._core.pytrees import pytree
from kltarget.spaces import GaussianMixture


class _Reward(abc.ABC):
    """What can be added up and multiplied."""

    def __add__(self, other: Any) -> Any:
        if isinstance(other, (int, float)):
            other = QuadraticReward(constant=float(other), dim=self.dim)
        if not isinstance(other, _Reward):
            return NotImplemented
        return RewardSum((*_terms(self), *_terms(other)))

    __radd__ = __add__

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """The number d of dimensions."""


@pytree
class QuadraticReward(_Reward):
    """``r(x) = ½xᵀMx + vᵀx + c``; linear without a matrix.

    Args:
        matrix: M, reward units per unit of x squared, shape ``[*batch, d, d]``; only its symmetric
            part matters. Negative definite for a peak; 0 by default.
        vector: v, shape ``[*batch, d]``; 0 by default.
        constant: c in reward units, shape ``[*batch]``.
        dim: the number of dimensions, where neither matrix nor vector says it.

    Rewards add up, also with :class:`LogDensityReward`.

    Raises:
        TypeError: complex numbers, or no argument that says the number of dimensions.
        ValueError: shapes that do not fit; a number that is NaN or infinite, outside a trace.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> slope = kt.mixtures.QuadraticReward(vector=[0.3])
        >>> peak = kt.mixtures.QuadraticReward.peak([1.0], [[2.0]], height=0.5)
        >>> x = jnp.array([2.0])
        >>> print(f"{slope(x):.1f} {peak(x):.1f} {(slope + peak)(x):.1f}")
        0.6 -0.5 0.1
    """

    matrix: Float[Array, "*#batch d d"]
    vector: Float[Array, "*#batch d"]
    constant: Float[Array, "*#batch"]

    def __init__(
        self,
        matrix: ArrayLike | Any = None,
        vector: ArrayLike | Any = None,
        constant: ArrayLike | Any = 0.0,
        *,
        dim: int | None = None,
    ) -> None:
        given = {"matrix": matrix, "vector": vector, "constant": constant}
        arrays = {name: float_argument(x, name) for name, x in given.items() if x is not None}
        least = {"matrix": 2, "vector": 1, "constant": 0}
        sizes = {name: x.shape[-1] for name, x in arrays.items() if least[name] and x.ndim}
        if dim is not None:
            sizes["dim"] = dim
        if not sizes:
            raise TypeError("give a matrix, a vector or dim: nothing says how many dimensions")
        flat = any(x.ndim < least[name] for name, x in arrays.items())
        if flat or len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
            raise ValueError(
                f"{listed}: in d dimensions they need shapes [..., d, d], [..., d] and [...]"
            )
        size = next(iter(sizes.values()))
        dtype = common_dtype([given[name] for name in arrays], arrays.values())
        zeros = {"matrix": jnp.zeros((size, size)), "vector": jnp.zeros(size)}
        fields = {name: arrays.get(name, zeros.get(name)) for name in given}
        fields = {name: jnp.asarray(x, dtype) for name, x in fields.items()}
        if fields["matrix"].shape[-2:] != (size, size):
            raise ValueError(f"matrix must be square, got shape {fields['matrix'].shape}")
        for name, x in fields.items():
            if not traced(x) and not np.isfinite(np.asarray(x, np.float64)).all():
                raise ValueError(f"{name} must be finite")
        fields["matrix"] = (fields["matrix"] + transposed(fields["matrix"])) / 2
        for name, x in fields.items():
            object.__setattr__(self, name, x)
        listed = ", ".join(f"{name} {x.shape}" for name, x in fields.items())
        with worded(f"the batch axes of {listed} do not broadcast"):
            _ = self.batch_shape

    @classmethod
    def peak(
        cls, center: ArrayLike | Any, curvature: ArrayLike | Any, *, height: ArrayLike | Any = 0.0
    ) -> QuadraticReward:
        """``height − ½(x − center)ᵀ curvature (x − center)``.

        Args:
            center: shape ``[*batch, d]``.
            curvature: shape ``[*batch, d, d]``, positive definite for a maximum at the center.
            height: the reward at the center, shape ``[*batch]``.
        """
        arrays = float_arguments(center=center, curvature=curvature, height=height)
        middle, bend, top = arrays.values()
        bend = (bend + transposed(bend)) / 2
        pulled = times(bend, middle)
        return cls(-bend, pulled, top - (pulled * middle).sum(-1) / 2)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape ``*batch`` that the fields broadcast to."""
        return jnp.broadcast_shapes(
            self.matrix.shape[:-2], self.vector.shape[:-1], self.constant.shape
        )

    @property
    def dim(self) -> int:
        """The number d of dimensions."""
        return self.vector.shape[-1]

    def __call__(self, x: ArrayLike) -> Float[Array, "*batch"]:
        """The reward of points ``[..., d]``, whose leading axes broadcast against ``*batch``."""
        points = _of_dim(x, self.dim)
        dtype = widest(points.dtype, self.vector.dtype)
        return self.at(points.astype(working_dtype(dtype)))[0].astype(dtype)

    def at(self, x: Array) -> tuple[Array, Array, Array]:
        """Reward, gradient and Hessian at points ``[..., d]`` of the working dtype."""
        lead = jnp.broadcast_shapes(x.shape[:-1], self.batch_shape)
        x = jnp.broadcast_to(x, (*lead, self.dim))
        matrix = jnp.broadcast_to(self.matrix.astype(x.dtype), (*lead, self.dim, self.dim))
        vector = jnp.broadcast_to(self.vector.astype(x.dtype), x.shape)
        bent = times(matrix, x)
        value = (x * (vector + bent / 2)).sum(-1)
        constant = jnp.broadcast_to(self.constant.astype(x.dtype), lead)
        return value + constant, vector + bent, matrix


@pytree
class LogDensityReward(_Reward):
    """``r(x) = scale · log q(x)`` for a mixture q: what a learnt density or a posterior rewards.

    Its exponential at β is ``q^{scale/β}``, a mixture again where ``scale/β`` is a whole number.

    Args:
        mixture: the density q, of batch shape ``*batch``.
        scale: reward units per nat, a number above 0.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> q = kt.GaussianMixture([0.0], [[0.0]], [1.0], covariance_type="spherical")
        >>> print(f"{kt.mixtures.LogDensityReward(q)(jnp.array([1.0])):.4f}")
        -1.4189
    """

    mixture: GaussianMixture
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})

    def __post_init__(self) -> None:
        if isinstance(self.mixture, GaussianMixture) and not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be above 0 and finite, got {self.scale}")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape ``*batch`` of the mixture."""
        return self.mixture.batch_shape

    @property
    def dim(self) -> int:
        """The number d of dimensions."""
        return self.mixture.dim

    def __call__(self, x: ArrayLike) -> Float[Array, "*batch"]:
        """The reward of points ``[..., d]``, whose leading axes broadcast against ``*batch``."""
        return self.scale * self.mixture.log_prob(x)


@pytree
class RewardSum(_Reward):
    """The sum of rewards, as ``+`` makes it.

    Args:
        terms: quadratic rewards and log-densities of the same number of dimensions.
    """

    terms: tuple[Any, ...]

    def __post_init__(self) -> None:
        sizes = {term.dim for term in self.terms if isinstance(term, _Reward)}
        if len(sizes) > 1:
            raise ValueError(f"rewards of {sorted(sizes)} dimensions do not add up")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape ``*batch`` that the terms broadcast to."""
        return np.broadcast_shapes(*(term.batch_shape for term in self.terms))

    @property
    def dim(self) -> int:
        """The number d of dimensions."""
        return self.terms[0].dim

    def __call__(self, x: ArrayLike) -> Float[Array, "*batch"]:
        """The reward of points ``[..., d]``, whose leading axes broadcast against ``*batch``."""
        values = jnp.broadcast_arrays(*(term(x) for term in self.terms))
        return functools.reduce(jnp.add, values)


def _terms(reward: Any) -> tuple[Any, ...]:
    return reward.terms if isinstance(reward, RewardSum) else (reward,)


def _of_dim(x: ArrayLike, size: int) -> Array:
    points = as_float(x)
    if points.ndim == 0 or points.shape[-1] != size:
        raise ValueError(
            f"x has shape {points.shape}, but the reward is of {size} dimensions: its last axis "
            "must have that size"
        )
    return points
