"""Chains of linear steps with Gaussian noise, as denoising in small is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from kltarget._core.checks import (
    at_index,
    first_index,
    float_arguments,
    positive,
    raise_first,
    traced,
    typed_key,
    worded,
)
from kltarget._core.matrices import cholesky, product, times, transposed
from kltarget._core.pytrees import register
from kltarget._core.short_repr import short_repr


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianChain:
    """A chain ``x_{t−1} = A_t x_t + b_t + noise`` of T steps from a Gaussian ``x_T``.

    Args:
        mean: of the first state ``x_T``, ``[*batch, d]``.
        covariance: of the first state, ``[*batch, d, d]``.
        matrices: A of each step, ``[*batch, T, d, d]``, the step from ``x_T`` first.
        offsets: b of each step, ``[*batch, T, d]``.
        covariances: of the noise of each step, ``[*batch, T, d, d]``.

    Raises:
        ValueError: shapes that do not fit; outside a trace, numbers that are not finite and
            covariances that are not symmetric and positive definite.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import GaussianChain
        >>> one = jnp.ones((1, 1))
        >>> chain = GaussianChain(
        ...     jnp.zeros(1), one, jnp.full((2, 1, 1), 0.5), jnp.ones((2, 1)), jnp.ones((2, 1, 1))
        ... )
        >>> means, covariances = chain.marginals()
        >>> print(means[:, 0], covariances[:, 0, 0])
        [0.  1.  1.5] [1.     1.25   1.3125]
    """

    __repr__ = short_repr

    if TYPE_CHECKING:  # anything that becomes an array may be given; arrays are what is kept

        def __init__(
            self,
            mean: ArrayLike | Any,
            covariance: ArrayLike | Any,
            matrices: ArrayLike | Any,
            offsets: ArrayLike | Any,
            covariances: ArrayLike | Any,
        ) -> None: ...

    mean: Float[Array, "*#batch d"]
    covariance: Float[Array, "*#batch d d"]
    matrices: Float[Array, "*#batch T d d"]
    offsets: Float[Array, "*#batch T d"]
    covariances: Float[Array, "*#batch T d d"]

    def __post_init__(self) -> None:
        names = ("mean", "covariance", "matrices", "offsets", "covariances")
        arrays = float_arguments(**{name: getattr(self, name) for name in names})
        mean, offsets = arrays["mean"], arrays["offsets"]
        if not mean.ndim or not mean.shape[-1]:
            raise ValueError(f"mean needs a last axis of dimensions, got shape {mean.shape}")
        size = mean.shape[-1]
        if offsets.ndim < 2 or not offsets.shape[-2]:
            raise ValueError(f"offsets has shape {offsets.shape}: it needs [*batch, T, {size}]")
        steps = offsets.shape[-2]
        own = {
            "mean": (size,),
            "covariance": (size, size),
            "matrices": (steps, size, size),
            "offsets": (steps, size),
            "covariances": (steps, size, size),
        }
        for name, shape in own.items():
            if arrays[name].shape[-len(shape) :] != shape:
                listed = ", ".join(map(str, shape))
                raise ValueError(
                    f"{name} has shape {arrays[name].shape}: with {steps} steps in {size} "
                    f"dimensions it needs [*batch, {listed}]"
                )
            raise_first(name, arrays[name], ~jnp.isfinite(arrays[name]), "must be finite")
        for name in ("covariance", "covariances"):
            _require_covariances(name, arrays[name])
        batches = [arrays[name].shape[: arrays[name].ndim - len(own[name])] for name in names]
        with worded(f"the batch axes {batches} of {', '.join(names)} do not broadcast"):
            jnp.broadcast_shapes(*batches)
        for name, x in arrays.items():
            object.__setattr__(self, name, x)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape ``*batch`` that all arrays broadcast to."""
        three = (self.covariance.shape[:-2], self.matrices.shape[:-3], self.covariances.shape[:-3])
        return jnp.broadcast_shapes(self.mean.shape[:-1], self.offsets.shape[:-2], *three)

    @property
    def dim(self) -> int:
        """The number d of dimensions."""
        return self.mean.shape[-1]

    @property
    def num_steps(self) -> int:
        """The number T of steps."""
        return self.offsets.shape[-2]

    def marginals(
        self,
    ) -> tuple[Float[Array, "*batch times d"], Float[Array, "*batch times d d"]]:
        """Means and covariances of the states at each time, the first time first."""
        return _marginals(self)

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Float[Array, "num_samples *batch times d"]:
        """Independent paths, points of shape ``[num_samples, *batch, T + 1, d]``."""
        positive("num_samples", num_samples)
        noise = jax.random.normal(
            typed_key(key),
            (num_samples, *self.batch_shape, self.num_steps + 1, self.dim),
            self.mean.dtype,
        )
        return paths_of(self, noise)


register(GaussianChain, ("mean", "covariance", "matrices", "offsets", "covariances"))


def by_step(chain: GaussianChain) -> tuple[Array, Array, Array]:
    """Matrices, offsets and covariances with the step's axis first and all batch axes."""
    batch, size = chain.batch_shape, chain.dim
    matrix, vector = (*batch, chain.num_steps, size, size), (*batch, chain.num_steps, size)
    arrays = (
        jnp.broadcast_to(chain.matrices, matrix),
        jnp.broadcast_to(chain.offsets, vector),
        jnp.broadcast_to(chain.covariances, matrix),
    )
    lead = len(batch)
    return (
        jnp.moveaxis(arrays[0], lead, 0),
        jnp.moveaxis(arrays[1], lead, 0),
        jnp.moveaxis(arrays[2], lead, 0),
    )


def first_law(chain: GaussianChain) -> tuple[Array, Array]:
    """Mean and covariance of the first state with all batch axes."""
    shape = (*chain.batch_shape, chain.dim)
    return jnp.broadcast_to(chain.mean, shape), jnp.broadcast_to(
        chain.covariance, (*shape, chain.dim)
    )


@jax.jit
def _marginals(chain: GaussianChain) -> tuple[Array, Array]:
    def step(state: tuple[Array, Array], given: tuple[Array, Array, Array]) -> Any:
        (mean, spread), (matrix, offset, noise) = state, given
        after = product(product(matrix, spread), transposed(matrix)) + noise
        state = times(matrix, mean) + offset, after
        return state, state

    first = first_law(chain)
    _, later = jax.lax.scan(step, first, by_step(chain))
    lead = len(chain.batch_shape)
    means, spreads = (
        jnp.moveaxis(jnp.concatenate([a[None], b]), 0, lead)
        for a, b in zip(first, later, strict=True)
    )
    return means, spreads


@jax.jit
def paths_of(chain: GaussianChain, noise: Array) -> Array:
    """The paths that standard normal noise ``[N, *batch, T + 1, d]`` makes."""
    drawn = jnp.moveaxis(noise, -2, 0)
    mean, spread = first_law(chain)
    matrices, offsets, covariances = by_step(chain)

    def wide(x: Array) -> Array:
        return jnp.broadcast_to(x, (noise.shape[0], *x.shape))

    def step(state: Array, given: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        matrix, offset, factor, own = given
        after = times(wide(matrix), state) + wide(offset) + times(wide(factor), own)
        return after, after

    first = wide(mean) + times(wide(cholesky(spread)), drawn[0])
    _, later = jax.lax.scan(step, first, (matrices, offsets, cholesky(covariances), drawn[1:]))
    return jnp.moveaxis(jnp.concatenate([first[None], later]), 0, -2)


def _require_covariances(name: str, x: Array) -> None:
    if traced(x):
        return
    numbers = np.asarray(x, np.float64)
    large = np.abs(numbers).max((-1, -2))
    skew = np.abs(numbers - np.swapaxes(numbers, -1, -2)).max((-1, -2))
    bad = skew > 8 * float(jnp.finfo(x.dtype).eps) * large
    bad |= ~(np.linalg.eigvalsh(numbers)[..., 0] > 0)
    if bad.any():
        raise ValueError(
            f"{name} must be symmetric and positive definite, but that{at_index(first_index(bad))} "
            "is not so: a step without noise has no density, add a small variance"
        )
