"""Mixtures of Gaussians as policies over real vectors."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kltarget._core.numerics import working_dtype
from kltarget.spaces import Box, GaussianMixture
from kltarget.spaces._gaussian_mixture import unchecked


@dataclasses.dataclass(frozen=True)
class GaussianMixturePolicy:
    """A mixture of K Gaussians over the real vectors of a box, ``Σ_k w_k N(x; μ_k, L_k L_kᵀ)``.

    :func:`fine_tune`, :func:`sft` and :func:`f_dpg` train it like a policy over sequences: its
    outcomes are the points of the box's grid, exact gradients are sums over them (the trapezoidal
    rule), and samples are vectors. What leaves the box is lost to exact gradients and to what is
    measured: ``jnp.exp(run.log_probs).sum(-1)`` is the mass that is left. Nor do exact gradients
    see what lies where the policy's density underflows (in float32 below about 1e-31, 12 standard
    deviations away): the pull of k3 in the loss towards a reference there is lost, as it is to
    samples, while the gap of :class:`Run` still counts it.

    Args:
        num_components: the number K of Gaussians, at least 1.
        space: the box and its grid, of as many dimensions d as the vectors.

    Its parameters are a dict of ``logits [K]`` of the weights, ``means [K, d]`` and ``factors
    [K, d, d]``: the lower triangles of the Cholesky factors L with the logarithms of their
    diagonals; what is above the diagonal is not looked at.

    Raises:
        TypeError: a space that is no box.
        ValueError: fewer than one component.

    Example:
        One Gaussian on two modes covers both, with their mean and variance:

        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import Box, GaussianMixture
        >>> from kltarget.policies import GaussianMixturePolicy
        >>> from kltarget.training import sft
        >>> policy = GaussianMixturePolicy(1, Box((-12.0, 12.0), 200))
        >>> params = policy.from_mixture(GaussianMixture([0.0], [[-2.0]], [[[1.0]]]))
        >>> target = GaussianMixture(jnp.log(jnp.array([0.5, 0.5])), [[-2.0], [4.0]], [[[1.0]]] * 2)
        >>> run = sft(
        ...     policy, params, target.log_prob, learning_rate=0.1, num_steps=300, gradient_tol=1e-4
        ... )
        >>> fitted = policy.mixture(run.params)
        >>> print(f"{fitted.mean[0]:.2f} {fitted.covariance[0, 0]:.2f}")
        1.00 10.00
    """

    num_components: int
    space: Box

    def __post_init__(self) -> None:
        if not isinstance(self.space, Box):
            raise TypeError(f"space must be a kltarget.spaces.Box, got {self.space!r}")
        count = self.num_components
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"num_components must be an integer of 1 or more, got {count!r}")

    def init(self, *, key: PRNGKeyArray) -> dict[str, Array]:
        """Equal weights, means anywhere in the middle half of the box, and its eighth as scale."""
        low, high = jnp.array(self.space.bounds).T
        shape = (self.num_components, self.space.dim)
        place = jax.random.uniform(key, shape, minval=0.25, maxval=0.75)
        scale = jnp.diag(jnp.log((high - low) / 8))
        return {
            "logits": jnp.zeros(self.num_components),
            "means": low[None] + place * (high - low)[None],
            "factors": jnp.broadcast_to(scale, (*shape, self.space.dim)),
        }

    def from_mixture(self, mixture: GaussianMixture) -> dict[str, Array]:
        """The parameters of a mixture; its batch axes become theirs.

        Raises:
            ValueError: other numbers of components or dimensions.
        """
        own, given = (self.num_components, self.space.dim), (mixture.num_components, mixture.dim)
        if own != given:
            raise ValueError(
                f"mixture has {given[0]} components in {given[1]} dimensions, this policy {own[0]} "
                f"in {own[1]}: both must agree"
            )
        factors = mixture.cholesky
        diagonal = jnp.broadcast_to(jnp.eye(own[1], dtype=bool), factors.shape)
        return {
            "logits": mixture.log_weights,
            "means": mixture.means,
            "factors": jnp.where(diagonal, jnp.log(jnp.where(diagonal, factors, 1.0)), factors),
        }

    def mixture(self, params: Any) -> GaussianMixture:
        """The mixture of given parameters; their batch axes become its."""
        # Unchecked: the parameters of a run that failed are not finite.
        log_weights = jax.nn.log_softmax(params["logits"], axis=-1)
        return unchecked(log_weights, params["means"], _cholesky(params["factors"]))

    @functools.partial(jax.jit, static_argnums=0)
    def log_probs(self, params: Any, x: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
        """The log-density at points ``[*batch, d]``."""
        densities = self.component_log_probs(params, x)
        log_weights = jnp.broadcast_to(self.components(params)[0], densities.shape)
        return jax.scipy.special.logsumexp(log_weights + densities, axis=-1)

    def log_masses(self, params: Any) -> Float[Array, "N"]:
        """Log-density plus log-weight of every point of the grid, ``[N]``."""
        log_probs = self.log_probs(params, self.space.points())
        return log_probs + self.space.log_weights().astype(log_probs.dtype)

    def sample(
        self, params: Any, *, key: PRNGKeyArray, num_samples: int
    ) -> Float[Array, "num_samples d"]:
        """Independent vectors, inside the box or not."""
        which_key, noise_key = jax.random.split(key)
        log_weights, means, factors = self.components(params)
        which = jax.random.categorical(which_key, log_weights, shape=(num_samples,))
        noise = jax.random.normal(noise_key, (num_samples, self.space.dim), means.dtype)
        return means[which] + jnp.einsum("nij,nj->ni", factors[which], noise)

    def components(
        self, params: Any
    ) -> tuple[Float[Array, "K"], Float[Array, "K d"], Float[Array, "K d d"]]:
        """Log-weights, means and Cholesky factors: draws of component k are ``μ_k + L_k z``."""
        dtype = working_dtype(params["means"].dtype)
        logits, means, factors = (params[n].astype(dtype) for n in ("logits", "means", "factors"))
        return jax.nn.log_softmax(logits), means, _cholesky(factors)

    def noise(self, params: Any, x: Float[Array, "*batch d"]) -> Float[Array, "*batch K d"]:
        """The standard normal z from which each component makes a point, ``L_k⁻¹(x − μ_k)``."""
        _, means, factors = self.components(params)
        apart = jnp.asarray(x).astype(means.dtype)[..., None, :]
        shape = (*apart.shape[:-2], *means.shape)
        rest = jnp.broadcast_to(apart, shape) - jnp.broadcast_to(means, shape)
        factors = jnp.broadcast_to(factors, (*shape, self.space.dim))
        noise: list[Array] = []
        # Forward substitution, column by column of at most three.
        for i in range(self.space.dim):
            noise.append(rest[..., i] / factors[..., i, i])
            rest = rest - factors[..., i] * noise[-1][..., None]
        return jnp.stack(noise, axis=-1)

    def component_log_probs(
        self, params: Any, x: Float[Array, "*batch d"]
    ) -> Float[Array, "*batch K"]:
        """The log-density of each component at points ``[*batch, d]``, without its weight."""
        _, _, factors = self.components(params)
        noise = self.noise(params, x)
        constant = -jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1)).sum(-1)
        constant = constant - self.space.dim / 2 * math.log(2 * math.pi)
        return jnp.broadcast_to(constant, noise.shape[:-1]) - jnp.square(noise).sum(-1) / 2


@jax.jit
def _cholesky(factors: Array) -> Array:
    """Triangular factors from lower triangles with logarithms on the diagonal."""
    size = factors.shape[-1]
    diagonal = jnp.broadcast_to(jnp.eye(size, dtype=bool), factors.shape)
    return jnp.where(diagonal, jnp.exp(jnp.where(diagonal, factors, 0.0)), jnp.tril(factors, -1))
