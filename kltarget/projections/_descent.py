"""Divergences between a target and a mixture as functions of the mixture's parameters."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.matrices import times
from kltarget._core.newton import Minimum, minimise
from kltarget._core.numerics import log_sum_exp
from kltarget._core.quadrature import NormalLattice, Rule, total
from kltarget.projections._population import Density
from kltarget.spaces import GaussianMixture
from kltarget.spaces._cauchy_schwarz import overlap_lost
from kltarget.spaces._gaussian_mixture import log_joint, unchecked


def vector_of(mixture: GaussianMixture) -> np.ndarray:
    """Logits less the first, means, log-diagonals and what is below them."""
    logs, means, factors = (np.asarray(x, np.float64) for x in jax.tree.leaves(mixture))
    below = np.tril_indices(means.shape[-1], -1)
    parts = (
        logs[1:] - logs[0],
        means.ravel(),
        np.log(np.diagonal(factors, axis1=-2, axis2=-1)).ravel(),
        factors[:, below[0], below[1]].ravel(),
    )
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(1, 2))
def mixture_of(vector: Array, count: int, size: int) -> GaussianMixture:
    below = np.tril_indices(size, -1)
    ends = np.cumsum([count - 1, count * size, count * size])
    logits, means, scales, rest = jnp.split(vector, ends)
    logs = jax.nn.log_softmax(jnp.concatenate([jnp.zeros_like(vector[:1]), logits]))
    eye = jnp.eye(size, dtype=vector.dtype)[None]
    factors = jnp.exp(scales.reshape(count, size))[..., None] * eye
    factors = factors.at[:, below[0], below[1]].set(rest.reshape(count, len(below[0])))
    return unchecked(logs, means.reshape(count, size), factors)


def _log_prob(mixture: GaussianMixture, x: Array) -> Array:
    return log_sum_exp(log_joint(mixture, x))[..., 0]


def _spread(mixture: GaussianMixture, z: Array, weights: Array) -> tuple[Array, Array]:
    """Every component's points and their masses, as one list."""
    points = mixture.means[:, None] + times(mixture.cholesky[:, None], z[None])
    masses = jnp.exp(mixture.log_weights)[:, None] * weights[None]
    return points.reshape(-1, z.shape[-1]), masses.ravel()


def _terms(
    direction: str, q: GaussianMixture, density: Density, rule: Rule, z: Array, weights: Array
) -> tuple[Array, Array]:
    """Log-ratios whose mean is the divergence, and their masses."""
    if direction == "reverse":
        x, masses = _spread(q, z, weights)
        return _log_prob(q, x) - density(x), masses
    x, masses = z, weights
    if isinstance(rule, NormalLattice):
        assert density.mixture is not None
        x, masses = _spread(density.mixture, z, weights)
    # What only fills a block up has no density.
    held = masses > 0
    ratio = jnp.where(held, density(x), 0.0) - _log_prob(q, x)
    return jnp.where(held, ratio, 0.0), masses


def _piece(
    direction: str, count: int, rule: Rule, density: Density, x: Array, z: Array, weights: Array
) -> Array:
    q = mixture_of(x, count, z.shape[-1])
    if direction == "cauchy-schwarz":
        assert density.mixture is not None
        return overlap_lost(density.mixture, q)
    ratios, masses = _terms(direction, q, density, rule, z, weights)
    return (masses * ratios).sum()


Limits = tuple[ArrayLike, ArrayLike]
"""Gradients at which descents end, and most steps."""


@functools.partial(jax.jit, static_argnames=("direction", "count"))
def minimum(
    direction: str, count: int, rule: Rule, density: Density, start: ArrayLike, limits: Limits
) -> Minimum:
    noise, max_steps = limits

    def derivatives(x: Array) -> tuple[Array, Array, Array, Array]:
        def at(z: Array, weights: Array) -> tuple[Array, Array, Array]:
            piece = functools.partial(_piece, direction, count, rule, density)
            both = jax.value_and_grad(piece)

            def gradient(x: Array) -> tuple[Array, tuple[Array, Array]]:
                value, slopes = both(x, z, weights)
                return slopes, (value, slopes)

            hessian, (value, slopes) = jax.jacfwd(gradient, has_aux=True)(x)
            return value, slopes, hessian

        value, gradient, hessian = total(at, rule)
        return value, gradient, hessian, jnp.asarray(noise, x.dtype)

    return minimise(derivatives, jnp.asarray(start), max_steps=max_steps)


@functools.partial(jax.jit, static_argnames=("direction", "count"))
def value_and_gradient(
    direction: str, count: int, rule: Rule, density: Density, x: Array
) -> tuple[Array, Array]:
    piece = functools.partial(_piece, direction, count, rule, density)
    return total(functools.partial(jax.value_and_grad(piece), x), rule)


@functools.partial(jax.jit, static_argnames=("direction", "count"))
def moments(
    direction: str, count: int, rule: Rule, density: Density, x: Array
) -> tuple[Array, Array]:
    """Mean and mean square of the log-ratio."""

    def at(z: Array, weights: Array) -> tuple[Array, Array]:
        q = mixture_of(x, count, z.shape[-1])
        ratios, masses = _terms(direction, q, density, rule, z, weights)
        return (masses * ratios).sum(), (masses * jnp.square(ratios)).sum()

    return total(at, rule)


@functools.partial(jax.jit, static_argnames="count")
def jeffreys(count: int, rule: Rule, x: Array, other: Array, density: Density) -> Array:
    """``KL(p‖q) + KL(q‖p)`` of two mixtures."""
    size = density.center.shape[0]
    p, q = (mixture_of(y, count, size) for y in (x, other))

    def at(z: Array, weights: Array) -> Array:
        sums = []
        for one, two in ((p, q), (q, p)):
            points, masses = _spread(one, z, weights)
            sums.append((masses * (_log_prob(one, points) - _log_prob(two, points))).sum())
        return sums[0] + sums[1]

    return total(at, rule)
