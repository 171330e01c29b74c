"""The Cauchy–Schwarz divergence, which mixtures of Gaussians have in closed form."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kltarget._core.matrices import cholesky, diagonal, inverse_lower, product, times, transposed
from kltarget._core.numerics import log_sum_exp, widest
from kltarget.spaces._gaussian_mixture import GaussianMixture


def cauchy_schwarz(p: GaussianMixture, q: GaussianMixture) -> Float[Array, "*batch"]:
    """The Cauchy–Schwarz divergence ``−log((∫pq)² / (∫p² ∫q²))`` of two mixtures, in nats.

    It is 0 where ``p = q`` and above 0 elsewhere, symmetric, the same in all linear coordinates,
    and finite even where one of the two is 0: no f-divergence, so that it regularises no policy
    here. Of two Gaussians half of it, as which some define it, is at most either KL, and all of it
    equals both where the covariances are equal; of mixtures it may be far more, for it weighs
    narrow components by their height.

    Args:
        p: a mixture of any batch shape.
        q: another one of the same number of dimensions, whose batch axes broadcast against its.

    Returns:
        Nats, of the batch shape, from sums over pairs of components:
        ``∫pq = Σ_ij w_i v_j N(μ_i; m_j, Σ_i + S_j)``.

    Raises:
        TypeError: what is no :class:`GaussianMixture`.
        ValueError: mixtures of another number of dimensions.

    Differentiable in all fields of both.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.spaces import cauchy_schwarz
        >>> p = kt.GaussianMixture(jnp.zeros(1), [[0.0]], [1.0], covariance_type="spherical")
        >>> q = kt.GaussianMixture(jnp.zeros(1), [[2.0]], [1.0], covariance_type="spherical")
        >>> print(f"{cauchy_schwarz(p, q):.4f}")  # half the square of the distance, as both KLs
        2.0000

    References:
        Yu, Yu, Løkse, Jenssen and Príncipe, "Cauchy-Schwarz Divergence Information Bottleneck for
        Regression", 2024, arXiv 2404.17951.
    """
    for name, given in (("p", p), ("q", q)):
        if not isinstance(given, GaussianMixture):
            raise TypeError(f"{name} must be a kltarget.GaussianMixture, got {given!r}")
    if p.dim != q.dim:
        raise ValueError(f"p has {p.dim} dimensions and q {q.dim}: they must be in one space")
    return _cauchy_schwarz(p, q)


@jax.jit
def _cauchy_schwarz(p: GaussianMixture, q: GaussianMixture) -> Array:
    # Rounding makes a divergence of 0 negative.
    apart = jnp.maximum(overlap_lost(p, q), 0)
    return apart.astype(widest(p.means.dtype, q.means.dtype))


def overlap_lost(p: GaussianMixture, q: GaussianMixture) -> Float[Array, "*batch"]:
    """The divergence as it is computed, in the working dtype."""
    batch = jnp.broadcast_shapes(p.batch_shape, q.batch_shape)
    one, two = _fields(p, batch), _fields(q, batch)
    return _log_overlap(one, one) + _log_overlap(two, two) - 2 * _log_overlap(one, two)


def _fields(mixture: GaussianMixture, batch: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Log-weights, means and covariances with all batch axes."""
    weights, means, factors = mixture._broadcast()
    fields = weights, means, product(factors, transposed(factors))
    own = len(mixture.batch_shape)
    return tuple(jnp.broadcast_to(x, (*batch, *x.shape[own:])) for x in fields)  # pyright: ignore


def _log_overlap(one: tuple[Array, ...], two: tuple[Array, ...]) -> Array:
    """``log ∫pq``: the sum of Gaussian densities of all pairs of components."""
    dtype = widest(*(x.dtype for x in (*one, *two)))
    (w, means, inner), (v, others, outer) = ([x.astype(dtype) for x in y] for y in (one, two))
    factors = cholesky(inner[..., :, None, :, :] + outer[..., None, :, :, :])
    apart = means[..., :, None, :] - others[..., None, :, :]
    squared = jnp.square(times(inverse_lower(factors), apart)).sum(-1)
    scale = jnp.log(diagonal(factors)).sum(-1) + means.shape[-1] / 2 * math.log(2 * math.pi)
    logs = w[..., :, None] + v[..., None, :] - scale - squared / 2
    return log_sum_exp(logs.reshape(*logs.shape[:-2], -1))[..., 0]
