"""A quadratic reward's own coordinates, and integrals over reverse-KL targets of all β there."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kltarget._core.matrices import cholesky, diagonal, inverse_lower, product, times, transposed
from kltarget._core.numerics import log1p, log_sum_exp
from kltarget.objectives._point_rewards import QuadraticReward
from kltarget.spaces import GaussianMixture

_STEP = 0.25
"""Distance between nodes in log t, for orders k up to 1.

The integrands are analytic for imaginary parts of log t below π/2: the rule's error is e^−39.
"""
_LEFT = 40.0
"""Nats after which what falls like ``t^k`` has vanished, times k."""
_RIGHT = {4: 70.0, 8: 220.0}
"""Nats of log t beyond the scale of Q, by bytes of the float type, which say how small τ can be."""


class Frame:
    """The reference where Q is half the squared norm: ``z = Fᵀ(x − m)``, ``Q = ½|z|²``.

    Every component is turned to the axes of its covariance there. The rotation is held fixed in
    derivatives, which are right to first order all the same: off-diagonal terms, 0 in themselves,
    carry them.
    """

    def __init__(self, mixture: GaussianMixture, reward: QuadraticReward, beta: Array) -> None:
        batch, dtype, size = beta.shape, beta.dtype, mixture.dim
        shape = (*batch, mixture.num_components)
        weights, means, factors = (x.astype(dtype) for x in mixture._broadcast())
        lower = cholesky(jnp.broadcast_to(-reward.matrix.astype(dtype), (*batch, size, size)))
        self.bounded = jnp.all(diagonal(lower) > 0, axis=-1)
        inverse = inverse_lower(lower)
        vector = jnp.broadcast_to(reward.vector.astype(dtype), (*batch, size))
        self.center = times(transposed(inverse), times(inverse, vector))
        # A rounding of their sum would count at every node of small t.
        self.weights = jnp.broadcast_to(weights - log_sum_exp(weights), shape)
        apart = jnp.broadcast_to(means, (*shape, size)) - self.center[..., None, :]
        root = jnp.broadcast_to(transposed(lower)[..., None, :, :], (*shape, size, size))
        seen = product(root, jnp.broadcast_to(factors, root.shape))
        spread = product(seen, transposed(seen))
        still = lax.stop_gradient(jnp.where(jnp.isfinite(spread), spread, jnp.zeros_like(spread)))
        axes = jnp.linalg.eigh(still)[1]
        turned = product(transposed(axes), product(spread, axes))
        eye = jnp.broadcast_to(jnp.eye(size, dtype=bool), turned.shape)
        self.variances = diagonal(turned)
        self.mixed = jnp.where(eye, jnp.zeros_like(turned), turned)
        self.apart = times(transposed(axes), times(root, apart))
        back = jnp.broadcast_to(transposed(inverse)[..., None, :, :], axes.shape)
        self.back = product(back, axes)

    def largest_loss(self) -> Array:
        """The largest expected Q of a component, ``[*batch]``."""
        each = (jnp.square(self.apart).sum(-1) + self.variances.sum(-1)) / 2
        present = jnp.where(self.weights > -jnp.inf, each, jnp.zeros_like(each))
        return lax.stop_gradient(present.max(-1))

    def log_transform(self, t: Float[Array, "*batch N"]) -> Float[Array, "*batch N K"]:
        """``log E_k[e^{−tQ}]`` of every component, to relative accuracy at any t."""
        grown, pulled, turned = self._at(t)
        loss = (pulled * (self.apart[..., None, :, :] - turned)).sum(-1) / 2
        return -log1p(grown).sum(-1) / 2 - t[..., None] * loss

    def gaussians(self, t: Float[Array, "*batch N"]) -> tuple[Array, Array]:
        """Means ``[*batch, N, K, d]`` and covariances of the components of ``p e^{−tQ}``."""
        grown, pulled, turned = self._at(t)
        back = jnp.broadcast_to(self.back[..., None, :, :, :], (*grown.shape, grown.shape[-1]))
        means = self.center[..., None, None, :] + times(back, pulled - turned / (1 + grown))
        kept = self.variances[..., None, :, :] / (1 + grown)
        eye = jnp.broadcast_to(jnp.eye(kept.shape[-1], dtype=bool), back.shape)
        both = (1 + grown)[..., None] * (1 + grown)[..., None, :]
        inner = jnp.where(eye, kept[..., None], self.mixed[..., None, :, :, :] / both)
        return means, product(back, product(inner, transposed(back)))

    def _at(self, t: Array) -> tuple[Array, Array, Array]:
        """``tS``, ``(1 + tS)⁻¹y`` and t times what the off-diagonal of S makes of that."""
        grown = t[..., None, None] * self.variances[..., None, :, :]
        pulled = self.apart[..., None, :, :] / (1 + grown)
        mixed = jnp.broadcast_to(self.mixed[..., None, :, :, :], (*pulled.shape, pulled.shape[-1]))
        return grown, pulled, t[..., None, None] * times(mixed, pulled)


class Nodes:
    """The density's integral over nodes of log t: ``h t^k e^{−tτ} Z(t) κ^k/Γ(k)``."""

    def __init__(self, frame: Frame, beta: Array, order: float, reach: Any) -> None:
        self.frame, dtype = frame, beta.dtype
        # t^k e^{−tτ} peaks at k/τ, nearly as narrow as 1/√k; at large β τ is close to κ.
        self.step = _STEP / math.sqrt(max(order, 1.0))
        left = math.ceil((_LEFT / order + 3) / self.step)
        right = math.ceil(_RIGHT[dtype.itemsize] / self.step)
        line = self.step * jnp.arange(-left, right + 1, dtype=dtype)
        self.unit = jnp.maximum(frame.largest_loss(), lax.stop_gradient(reach * beta) / order)
        start = -jnp.log(self.unit)[..., None]
        self.log_t = start + jnp.broadcast_to(line, (*self.unit.shape, line.size))
        self.time = jnp.exp(self.log_t)
        self.weights = frame.weights[..., None, :]
        self.log_own = frame.log_transform(self.time)
        self.log_each = self.weights + self.log_own
        self.log_z = log_sum_exp(self.log_each)[..., 0]
        constant = order * jnp.log(reach * beta) - math.lgamma(order) + math.log(self.step)
        self.log_free = constant[..., None] + order * self.log_t + self.log_z

    def log_shares(self, log_offset: Float[Array, "*batch"]) -> Float[Array, "*batch N"]:
        """What each node contributes at an offset."""
        return self.log_free - jnp.exp(log_offset[..., None] + self.log_t)

    def log_mass(self, log_offset: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The logarithm of the integral."""
        return log_sum_exp(self.log_shares(log_offset))[..., 0]

    def log_mass_at_pole(self, fall: float) -> Float[Array, "*batch"]:
        """The same without an offset, where the terms fall like ``t^−fall`` at last."""
        if fall <= 0:
            return jnp.full_like(self.unit, jnp.inf)
        # What the nodes leave out: a geometric series.
        rest = self.log_free[..., -1:] - math.log(math.expm1(fall * self.step))
        return log_sum_exp(jnp.concatenate([self.log_free, rest], axis=-1))[..., 0]
