"""Reverse-KL targets of Gaussian mixtures in closed form: mixtures again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kltarget._core.checks import at_index, first_index, raise_first, traced
from kltarget._core.matrices import cholesky, diagonal, inverse_lower, product, times, transposed
from kltarget._core.numerics import log_sum_exp, working_dtype
from kltarget._core.pytrees import pytree
from kltarget._core.status import Status, flag, unless_failed
from kltarget.objectives._point_rewards import QuadraticReward
from kltarget.spaces import GaussianMixture
from kltarget.spaces._gaussian_mixture import unchecked
from kltarget.targets._protocol import Optimum
from kltarget.targets.mixtures import _expectation
from kltarget.targets.mixtures._expansion import Powers, checked, powers, split


@pytree
class MixtureTarget(Optimum):
    """The mixture that maximises ``E_π[reward] − β·KL(π‖p)`` for a mixture p.

    Attributes:
        mixture: the target; its components are those of the reference, each J times, J being the
            number of terms of the reward's exponential (1 for quadratic rewards).
        log_normalizer: ``log Z = log E_p[e^{r/β}]``, shape ``[*batch]``.
        status: :class:`kltarget.Status` bits, shape ``[*batch]``.
        reference: p.
        reward: what is maximised.
        beta: coefficient of the divergence, shape ``[*batch]``.
        closed_divergence: ``KL(π*‖p)`` where it has a closed form, for quadratic rewards, else
            None.
        closed_reward: ``E_π*[reward]``, likewise.
        num_terms: J.
    """

    made_by = "tilt"

    mixture: GaussianMixture
    log_normalizer: Float[Array, "*batch"]
    status: Int[Array, "*batch"]
    reference: GaussianMixture
    reward: Any
    beta: Float[Array, "*batch"]
    closed_divergence: Float[Array, "*batch"] | None
    closed_reward: Float[Array, "*batch"] | None
    num_terms: int = dataclasses.field(metadata={"static": True})

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum ``J* = β log Z`` in reward units, shape ``[*batch]``."""
        if self.closed_reward is None or self.closed_divergence is None:
            return self.beta * self.log_normalizer
        # The weights sum to one but for rounding, which a large β would multiply.
        return self.closed_reward - self.beta * self.closed_divergence

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π*[reward]`` in reward units, shape ``[*batch]``."""
        if self.closed_reward is not None:
            return self.closed_reward
        return self.beta * (self.log_normalizer + self.divergence_value)

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """``KL(π*‖p)`` in nats, shape ``[*batch]``.

        In closed form for quadratic rewards. With log-densities in up to three dimensions by a rule
        of equidistant nodes in every component's own coordinates (to rounding where no component is
        ten times narrower than one it lies under), and NaN in more, where there are
        :meth:`divergence_bounds`.
        """
        if self.closed_divergence is not None:
            return self.closed_divergence
        if self.mixture.dim > _expectation.MOST_DIMENSIONS:
            return jnp.full_like(self.log_normalizer, jnp.nan)
        gained = _expectation.expectation(self.mixture, lambda x: self.reward(x) / self.beta)
        return gained.astype(self.beta.dtype) - self.log_normalizer

    def divergence_bounds(self) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """Numbers that ``KL(π*‖p)`` lies between, in any dimension; equal where it is exact.

        ``KL(π*‖p) = E_π*[r]/β − log Z``, where the expected log-density is bounded by Jensen's
        inequality on either side; it is at least 0, and at most that
        of the joint distribution of the component and the point.

        References:
            Hershey and Olsen, "Approximating the Kullback Leibler divergence between Gaussian
            mixture models", 2007 (bounds by Jensen's inequality and by matching components).
        """
        if self.closed_divergence is not None:
            return self.closed_divergence, self.closed_divergence
        return _bounds(self)

    @property
    def component_log_mass(self) -> Float[Array, "*batch K"]:
        """Log-probability of each of the reference's components, what became of its mode."""
        weights = self.mixture.log_weights
        terms = weights.reshape(*weights.shape[:-1], -1, self.num_terms)
        return log_sum_exp(terms)[..., 0]

    def log_prob(self, x: ArrayLike) -> Float[Array, "*batch"]:
        """The target's log-density, as :meth:`GaussianMixture.log_prob`."""
        return self.mixture.log_prob(x)

    def sample(
        self, *, key: PRNGKeyArray, num_samples: int
    ) -> Float[Array, "num_samples *batch d"]:
        """Independent draws, as :meth:`GaussianMixture.sample`."""
        return self.mixture.sample(key=key, num_samples=num_samples)

    def expectation(self, fn: Callable[[Array], Array]) -> Float[Array, "*batch"]:
        """``E_π*[fn]`` in up to three dimensions, by the rule of :attr:`divergence_value`.

        Args:
            fn: a function of points ``[N, *batch, d]`` with values ``[N, *batch]``.

        Returns:
            Shape ``[*batch]``.

        Raises:
            ValueError: there are more than three dimensions.
        """
        _expectation.require_rule(self.mixture.dim)
        return _expectation.expectation(self.mixture, fn).astype(self.beta.dtype)


def tilt(
    mixture: GaussianMixture, reward: Any, beta: ArrayLike, *, max_terms: int = 1024
) -> MixtureTarget:
    """The policy that maximises ``E_π[reward] − beta · KL(π‖p)`` over densities, p a mixture.

    The target is ``p e^{r/β}/Z``. Where ``r/β`` is quadratic around the mean μ of a component,
    ``c + gᵀ(x − μ) + ½(x − μ)ᵀG(x − μ)``, the component ``N(μ, Σ)`` becomes
    ``N(μ + Pg, P)``, ``P = (Σ⁻¹ − G)⁻¹``, and its weight is multiplied by
    ``Z_k = det(I − ΣG)^{−1/2} exp(c + ½gᵀPg)``. A log-density reward of a mixture q with
    ``scale/β = n`` multiplies p by ``q^n``, a sum of products of Gaussians, each of which is the
    exponential of a quadratic: the target has a component per component of p and term.

    Args:
        mixture: the reference p, of any batch shape.
        reward: a :class:`QuadraticReward` (linear ones included), a :class:`LogDensityReward`, or a
            sum of them.
        beta: coefficient of the divergence, in reward units per nat, above 0; ``[*batch]``, which
            broadcasts against the batch axes of mixture and reward.
        max_terms: the most terms that powers of mixtures are expanded to.

    Returns:
        The target. Weights are accurate at any β: those of two components differ by what the
        reward gains between the two tilted means, which is formed without a difference of two
        values of ``r/β``.

    Raises:
        TypeError: a reward without closed form, or a traced ``beta`` with a log-density.
        ValueError: shapes that do not fit; and outside a trace: a ``beta`` that is not above 0, or
            at which there is no target; the message has the one that it must exceed,
            :func:`kltarget.mixtures.existence_beta`.

    Status:
        ``UNBOUNDED`` where the reward grows faster than the reference decays, ``INVALID_BETA``;
        both with NaN in the numbers of the row.

    A component of weight 0 stays at 0. Differentiable in all fields of the mixture and of quadratic
    rewards, and in beta.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.mixtures import tilt
        >>> p = kt.GaussianMixture(
        ...     jnp.log(jnp.array([0.7, 0.3])),
        ...     [[-2.0], [2.0]],
        ...     [0.64, 0.36],
        ...     covariance_type="spherical",
        ... )
        >>> target = tilt(p, kt.mixtures.QuadraticReward(vector=[0.3]), 0.5)
        >>> print(
        ...     jnp.exp(target.component_log_mass).round(4), target.mixture.means.round(3).ravel()
        ... )
        [0.1821 0.8179] [-1.616  2.216]
        >>> print(f"{target.log_normalizer:.4f} {target.divergence_value:.4f}")
        0.2618 0.6491

    References:
        Korbak, Perez and Buckley, "RL with KL penalties is better viewed as Bayesian inference",
        2022, arXiv 2205.11275 (the target). Products of Gaussians are elementary; Petersen and
        Pedersen, "The Matrix Cookbook", 2012, section 8.1.8.
    """
    quadratic, densities = split(reward)
    beta, batch = checked(mixture, reward, beta)
    dtype = beta.dtype
    if not traced(beta):
        bad = ~((np.asarray(beta) > 0) & (np.asarray(beta) < np.inf))
        raise_first("beta", beta, bad, "must be above 0 and finite")
    wide = beta.astype(working_dtype(dtype))
    terms = powers(densities, wide, batch, mixture.dim, max_terms)
    found = _tilt(mixture, quadratic, terms[:3], wide, terms.counts, terms.log_count)
    tilted, log_normalizer, divergence, expected, status = found
    tilted, log_normalizer = jax.tree.map(lambda x: x.astype(dtype), (tilted, log_normalizer))
    closed = (None, None) if densities else (divergence.astype(dtype), expected.astype(dtype))
    problem = (mixture, reward, jnp.broadcast_to(beta, batch))
    num_terms = len(terms.log_count)
    target = MixtureTarget(tilted, log_normalizer, status, *problem, *closed, num_terms)
    if not traced(status):
        unbounded = np.asarray(target.status) & int(Status.UNBOUNDED) != 0
        if unbounded.any():
            at = first_index(unbounded)
            needed = jnp.broadcast_to(existence_beta(mixture, reward), batch)[at]
            raise ValueError(
                f"there is no target at beta = {jnp.broadcast_to(beta, batch)[at]:.6g}"
                f"{at_index(at)}: the reward grows faster than the reference decays; "
                f"beta must be above {needed:.6g}"
            )
    return target


def existence_beta(mixture: GaussianMixture, reward: Any) -> Float[Array, "*batch"]:
    """The β that reverse KL must exceed for a target to exist.

    ``E_p[e^{r/β}]`` is finite iff ``Σ_k⁻¹ − M/β`` is positive definite for every component of
    positive weight, M being the reward's Hessian: iff β exceeds the largest eigenvalue of
    ``L_kᵀ M L_k``, ``Σ_k = L_k L_kᵀ``. A log-density reward adds minus its scale times the
    precision of one of its components.

    Args:
        mixture: the reference.
        reward: as for :func:`tilt`.

    Returns:
        β in reward units per nat, shape ``[*batch]``; 0 where there always is a target.

    Example:
        >>> import kltarget as kt
        >>> from kltarget.mixtures import existence_beta
        >>> p = kt.GaussianMixture([0.0], [[0.0, 0.0]], [[[1.0, 0.3], [0.3, 0.5]]])
        >>> bowl = kt.mixtures.QuadraticReward([[0.3, -0.2], [-0.2, -0.5]])
        >>> print(f"{existence_beta(p, bowl):.4f}")
        0.2463
    """
    quadratic, densities = split(reward)
    weights, _, factors = mixture._broadcast()
    batch = jnp.broadcast_shapes(mixture.batch_shape, reward.batch_shape)
    count, size = mixture.num_components, mixture.dim
    factors = jnp.broadcast_to(factors, (*batch, count, size, size))
    bend = jnp.zeros((*batch, 1, size, size), factors.dtype)
    if quadratic is not None:
        matrix = quadratic.matrix[..., None, :, :].astype(factors.dtype)
        bend = jnp.broadcast_to(matrix, bend.shape)
    for term in densities:
        _, _, own = term.mixture._broadcast()
        whitening = inverse_lower(own)
        steep = term.scale * product(transposed(whitening), whitening)
        steep = jnp.broadcast_to(steep, (*batch, *steep.shape[-3:])).astype(bend.dtype)
        both = bend[..., :, None, :, :] - steep[..., None, :, :, :]
        bend = both.reshape(*batch, -1, size, size)
    shape = (*batch, count, bend.shape[-3], size, size)
    factors = jnp.broadcast_to(factors[..., None, :, :], shape)
    bend = jnp.broadcast_to(bend[..., None, :, :, :], shape)
    seen = product(transposed(factors), product(bend, factors))
    largest = jnp.linalg.eigvalsh((seen + transposed(seen)) / 2)[..., -1].max(-1)
    present = jnp.broadcast_to(weights, largest.shape) > -jnp.inf
    needed = jnp.where(present, largest, -jnp.inf).max(-1)
    return jnp.maximum(needed, 0.0).astype(mixture.means.dtype)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _tilt(
    mixture: GaussianMixture,
    quadratic: QuadraticReward | None,
    fields: tuple[Array, Array, Array],
    beta: Array,
    counts: tuple[tuple[int, ...], ...],
    log_count: tuple[float, ...],
) -> tuple[GaussianMixture, Array, Array, Array, Array]:
    terms = Powers(*fields, counts, log_count)
    dtype, size = beta.dtype, mixture.dim
    batch = terms.log_weights.shape[:-1]
    shape = (*batch, mixture.num_components, len(log_count))
    weights, means, factors = (x.astype(dtype) for x in mixture._broadcast())
    weights = jnp.broadcast_to(weights[..., None], shape)
    means = jnp.broadcast_to(means[..., None, :], (*shape, size))
    factors = jnp.broadcast_to(factors[..., None, :, :], (*shape, size, size))
    wide_beta = jnp.broadcast_to(beta, batch)[..., None, None]

    _, gradient, hessian = terms.at(means)
    lifted = None if quadratic is None else _lifted(quadratic, 2)
    if lifted is not None:
        _, slope, matrix = lifted.at(means)
        gradient = gradient + slope / wide_beta[..., None]
        hessian = hessian + matrix / wide_beta[..., None, None]
    # I − LᵀGL = UUᵀ, U upper triangular, keeps the new factor LU⁻ᵀ lower triangular.
    # Without weight a component may have no tilt, and stays as it is.
    present = weights > -jnp.inf
    gradient = jnp.where(present[..., None], gradient, jnp.zeros_like(gradient))
    hessian = jnp.where(present[..., None, None], hessian, jnp.zeros_like(hessian))
    seen = product(transposed(factors), product(hessian, factors))
    eye = jnp.broadcast_to(jnp.eye(size, dtype=dtype), seen.shape)
    upper = cholesky((eye - seen)[..., ::-1, ::-1])
    shrink = transposed(inverse_lower(upper)[..., ::-1, ::-1])
    tilted = product(factors, shrink)
    whitened = times(shrink, times(transposed(shrink), times(transposed(factors), gradient)))
    moved = means + times(factors, whitened)

    # log Z_k = r(x)/β − ½(x − μ)ᵀΣ⁻¹(x − μ) − ½ log det(I − ΣG) at the tilted mean x.
    there = terms.at(moved)
    log_z = there.value - jnp.square(whitened).sum(-1) / 2 - jnp.log(diagonal(upper)).sum(-1)
    level = jnp.zeros(batch, dtype)
    gain = jnp.zeros_like(log_z)
    if lifted is not None:
        # A quadratic gains the mean of its slopes at two points times the step between them. The
        # slope at a tilted mean is what balances the pull of the reference.
        slope = times(transposed(inverse_lower(factors)), whitened) - there.gradient
        first = jnp.argmax(weights[..., :1], axis=-2, keepdims=True)[..., None]
        origin = jnp.take_along_axis(moved, first, axis=-3)[..., :1, :]
        at_origin = jnp.take_along_axis(slope, first, axis=-3)[..., :1, :]
        gain = ((slope + at_origin) / 2 * (moved - origin)).sum(-1)
        log_z = log_z + gain
        level = (lifted.at(origin)[0] / wide_beta)[..., 0, 0]
    score = jnp.where(present, weights + jnp.where(present, log_z, 0.0), -jnp.inf)
    flat = score.reshape(*batch, -1)
    log_sum = log_sum_exp(flat)
    new_weights = flat - log_sum

    # log Z less what the reward gains; without the level, which both contain.
    bent = (jnp.square(shrink).sum((-1, -2)) - size) / 2
    share = jnp.exp(new_weights).reshape(shape)
    inside = jnp.where(present, gain + bent, jnp.zeros_like(gain))
    gained = (share * inside).sum((-1, -2))
    divergence = gained - log_sum[..., 0]
    expected = jnp.zeros(batch, dtype)
    if lifted is not None:
        value, _, matrix = lifted.at(moved)
        spread = diagonal(product(transposed(tilted), product(matrix, tilted))).sum(-1)
        expected = (share * (value + spread / 2)).sum((-1, -2))
    exists = (jnp.all(diagonal(upper) > 0, axis=-1) | ~present).all((-1, -2))
    good_beta = jnp.broadcast_to((beta > 0) & (beta < jnp.inf), batch)
    status = flag(~exists & good_beta, Status.UNBOUNDED) | flag(~good_beta, Status.INVALID_BETA)

    kept = functools.partial(unless_failed, status)
    tilted_mixture = unchecked(
        kept(new_weights),
        kept(moved.reshape(*batch, -1, size)),
        kept(tilted.reshape(*batch, -1, size, size)),
    )
    log_normalizer = level + log_sum[..., 0]
    return tilted_mixture, kept(log_normalizer), kept(divergence), kept(expected), status


def _lifted(reward: QuadraticReward, axes: int) -> QuadraticReward:
    """The reward with axes for components, and perhaps terms, which it does not depend on."""
    more = tuple(range(-axes, 0))
    matrix = jnp.expand_dims(reward.matrix, tuple(i - 2 for i in more))
    vector = jnp.expand_dims(reward.vector, tuple(i - 1 for i in more))
    return QuadraticReward(matrix, vector, jnp.expand_dims(reward.constant, more))


@jax.jit
def _bounds(target: MixtureTarget) -> tuple[Array, Array]:
    quadratic, densities = split(target.reward)
    low = high = jnp.zeros_like(target.log_normalizer)
    if quadratic is not None:
        weights, means, factors = target.mixture._broadcast()
        value, _, matrix = _lifted(quadratic, 1).at(means)
        bent = product(transposed(factors), product(matrix, factors))
        value = value + diagonal(bent).sum(-1) / 2
        low = high = (jnp.exp(weights) * value).sum(-1).astype(low.dtype)
    for term in densities:
        least, most = _expectation.expected_log_bounds(target.mixture, term.mixture)
        low = low + term.scale * least.astype(low.dtype)
        high = high + term.scale * most.astype(high.dtype)
    low, high = (x / target.beta - target.log_normalizer for x in (low, high))
    return jnp.maximum(low, 0), jnp.minimum(high, _matched(target))


def _matched(target: MixtureTarget) -> Array:
    """KL of (component, point) under the target to that under the reference."""
    weights, means, factors = target.mixture._broadcast()
    shape = (*target.component_log_mass.shape, target.num_terms)
    others, centers, scales = target.reference._broadcast()
    size = means.shape[-1]
    whitening = jnp.broadcast_to(inverse_lower(scales)[..., None, :, :], (*shape, size, size))
    factors = factors.reshape(*shape, size, size)
    apart = means.reshape(*shape, size) - centers[..., None, :]
    seen = product(whitening, factors)
    each = (
        jnp.square(seen).sum((-1, -2))
        + jnp.square(times(whitening, apart)).sum(-1)
        - size
        - 2 * jnp.log(diagonal(seen)).sum(-1)
    ) / 2
    weights = weights.reshape(shape)
    held = weights > -jnp.inf
    moved = target.component_log_mass[..., None].astype(weights.dtype) - others[..., None]
    each = jnp.where(held, each + moved, jnp.zeros_like(each))
    return (jnp.exp(weights) * each).sum((-1, -2)).astype(target.beta.dtype)
