"""Expectations under mixtures of Gaussians by a rule in each component's own coordinates."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from kltarget._core.matrices import cholesky, diagonal, inverse_lower, product, times, transposed
from kltarget._core.numerics import double_precision, log_sum_exp
from kltarget._core.quadrature import LEVELS, NormalLattice
from kltarget.spaces import GaussianMixture

MOST_DIMENSIONS = 3
"""Dimensions in which rules have few enough nodes."""


@functools.cache
def standard_nodes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes ``[N, d]`` and masses ``[N]`` of a rule for a standard normal."""
    step, radius = LEVELS[size][-3]
    with double_precision():
        nodes, masses = NormalLattice.of(step, radius, size).all()
    # Corners far out count for nothing.
    kept = masses > 1e-22
    return nodes[kept], masses[kept]


def require_rule(size: int) -> None:
    """Raises if there are too many dimensions for a rule."""
    if size > MOST_DIMENSIONS:
        raise ValueError(
            f"the space has {size} dimensions, the rule serves up to {MOST_DIMENSIONS}: average "
            "over target.sample"
        )


def expectation(
    mixture: GaussianMixture, function: Callable[[Array], Array]
) -> Float[Array, "*batch"]:
    """``E[function(x)]`` in up to three dimensions; ``function`` maps ``[N, *batch, d]``."""
    nodes, masses = standard_nodes(mixture.dim)
    weights, means, factors = mixture._broadcast()
    batch = mixture.batch_shape
    spread = (len(masses), *[1] * len(batch))
    z = jnp.asarray(nodes, means.dtype).reshape(*spread, mixture.dim)
    mass = jnp.asarray(masses, means.dtype).reshape(spread)

    def of_component(component: tuple[Array, Array]) -> Array:
        center, factor = component
        moved = times(factor[None], jnp.broadcast_to(z, (len(masses), *center.shape)))
        values = function(center[None] + moved)
        return (jnp.broadcast_to(mass, values.shape) * values).sum(0)

    each = lax.map(of_component, (jnp.moveaxis(means, -2, 0), jnp.moveaxis(factors, -3, 0)))
    share = jnp.moveaxis(jnp.exp(weights), -1, 0)
    return jnp.where(share > 0, share * each, 0.0).sum(0)


def expected_log_bounds(
    mixture: GaussianMixture, density: GaussianMixture
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Numbers that ``E_p[log q(x)]`` lies between, in any dimension, p and q being mixtures.

    For a component N of p and the components ``v_j N_j`` of q, by Jensen's inequality on either
    side, ``log Σ_j v_j exp(E_N[log N_j]) ≤ E_N[log q] ≤ log Σ_j v_j ∫N N_j``.
    """
    size, batch = mixture.dim, jnp.broadcast_shapes(mixture.batch_shape, density.batch_shape)
    pairs = (*batch, mixture.num_components, density.num_components)
    weights, means, factors = mixture._broadcast()
    others, centers, scales = density._broadcast()
    apart = means[..., :, None, :] - centers[..., None, :, :]
    apart = jnp.broadcast_to(apart, (*pairs, size))
    own = jnp.broadcast_to(factors[..., :, None, :, :], (*pairs, size, size))
    other = jnp.broadcast_to(scales[..., None, :, :, :], (*pairs, size, size))
    others = jnp.broadcast_to(others[..., None, :], pairs)
    constant = size / 2 * math.log(2 * math.pi)

    def log_normal(factor: Array) -> tuple[Array, Array]:
        whitening = inverse_lower(factor)
        squared = jnp.square(times(whitening, apart)).sum(-1)
        return -squared / 2 - jnp.log(diagonal(factor)).sum(-1) - constant, whitening

    at_mean, whitening = log_normal(other)
    expected_log = at_mean - jnp.square(product(whitening, own)).sum((-1, -2)) / 2
    both = product(own, transposed(own)) + product(other, transposed(other))
    log_expected, _ = log_normal(cholesky(both))
    share = jnp.broadcast_to(jnp.exp(weights), pairs[:-1])
    ends = (expected_log, log_expected)
    low, high = ((share * log_sum_exp(others + x)[..., 0]).sum(-1) for x in ends)
    return low, high
