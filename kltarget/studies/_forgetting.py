"""Learning a new mode without losing the old one, with two Gaussians."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kltarget._core.pytrees import pytree
from kltarget.spaces import Box, GaussianMixture


@pytree
class Forgetting:
    """An old mode to keep, a new one to learn, and the mixture that training starts from.

    Attributes:
        target: what is wanted, in one dimension: ``w p₁ + (1 − w) p₂``, the old mode first.
        start: the policy before training: its first component near the old mode.
        space: the grid that overlaps are sums over.
    """

    target: GaussianMixture
    start: GaussianMixture
    space: Box = dataclasses.field(metadata={"static": True})

    @property
    def old(self) -> GaussianMixture:
        """The old mode alone, a single Gaussian."""
        return self._mode(0)

    @property
    def new(self) -> GaussianMixture:
        """The new mode alone, a single Gaussian."""
        return self._mode(1)

    def overlap(
        self, mixture: GaussianMixture, *, by_component: bool = True
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """How much of the old and of the new mode a policy covers, from 0 to 1.

        Of mode i with weight ``w_i`` and density ``p_i`` that is ``∫ min(w_i p_i, q_i)/∫ w_i p_i``,
        where ``q_i`` is the policy's i-th component with its weight or, for policies whose
        components are not those modes, its whole density.

        Args:
            mixture: the policy, with batch axes ``*batch``.
            by_component: compare each mode with the component of the same number; else with the
                whole density.

        Returns:
            Overlaps with the old and with the new mode, each ``[*batch]``.

        Raises:
            ValueError: comparison by component of a policy without two, or other dimensions.

        Example:
            >>> from kltarget import studies
            >>> task = studies.forgetting()
            >>> old, new = task.overlap(task.start)
            >>> print(f"{old:.4f} {new:.4f}")
            0.8026 0.0321
        """
        if by_component and mixture.num_components != 2:
            raise ValueError(
                f"mixture has {mixture.num_components} components, not one per mode: compare its "
                "whole density, by_component=False"
            )
        dtype = mixture.means.dtype
        points = self.space.points().astype(dtype)
        weights = jnp.exp(self.space.log_weights().astype(dtype))
        modes = jnp.exp(self.target._log_joint(points)).astype(dtype)
        # [N, *batch, K]
        apart = points.reshape(-1, *[1] * len(mixture.batch_shape), 1)
        parts = jnp.exp(mixture._log_joint(apart)).astype(dtype)
        if not by_component:
            parts = jnp.broadcast_to(parts.sum(-1, keepdims=True), (*parts.shape[:-1], 2))
        modes_apart = modes.reshape(-1, *[1] * len(mixture.batch_shape), 2)
        covered = jnp.minimum(jnp.broadcast_to(modes_apart, parts.shape), parts)
        totals = jnp.broadcast_to(jnp.tensordot(weights, modes, 1), covered.shape[1:])
        shares = jnp.tensordot(weights, covered, 1) / totals
        return shares[..., 0], shares[..., 1]

    def _mode(self, i: int) -> GaussianMixture:
        means, cholesky = (x[i : i + 1] for x in (self.target.means, self.target.cholesky))
        return GaussianMixture(jnp.zeros(1, means.dtype), means, cholesky=cholesky)


def forgetting(
    *,
    weight: float = 0.75,
    old: tuple[float, float] = (-3.0, 1.0),
    new: tuple[float, float] = (3.5, 0.7),
    start_weight: float = 0.75,
    start_old: tuple[float, float] = (-3.5, 1.0),
    start_new: tuple[float, float] = (0.5, 0.7),
    space: Box | None = None,
) -> Forgetting:
    """The toy problem of Chen et al. with the published numbers: keep one mode, learn another.

    Args:
        weight: of the old mode in the target.
        old: mean and standard deviation of the old mode.
        new: of the new mode.
        start_weight: weight of the policy's first component before training.
        start_old: mean and standard deviation of that component.
        start_new: of the other one, which is to become the new mode.
        space: the grid that overlaps are sums over, by default 500 points on [−8, 8].

    Returns:
        The task; :func:`kltarget.studies.forgetting_path` trains on it.

    Raises:
        ValueError: weights that are not between 0 and 1, means that are not finite, standard
            deviations that are not above 0, a space of several dimensions.

    Example:
        >>> from kltarget import studies
        >>> task = studies.forgetting()
        >>> task.target.means[:, 0].tolist(), task.start.means[:, 0].tolist()
        ([-3.0, 3.5], [-3.5, 0.5])

    References:
        Chen, Razin, Narasimhan, Chen, "Retaining by Doing: The Role of On-Policy Data in Mitigating
        Forgetting", 2025, arXiv 2510.18874.
    """
    for name, x in (("weight", weight), ("start_weight", start_weight)):
        if not 0 < x < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {x}")
    modes = {"old": old, "new": new, "start_old": start_old, "start_new": start_new}
    for name, (mean, std) in modes.items():
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ValueError(
                f"{name} must be a finite mean and a standard deviation above 0, got {(mean, std)}"
            )
    space = Box((-8.0, 8.0), 500) if space is None else space
    if space.dim != 1:
        raise ValueError(f"space has {space.dim} dimensions: it needs one, as the modes have")
    return Forgetting(_two(weight, old, new), _two(start_weight, start_old, start_new), space)


def _two(weight: float, first: tuple[float, float], second: tuple[float, float]) -> GaussianMixture:
    means, stds = np.array([first, second], np.float64).T
    log_weights = np.log([weight, 1 - weight])
    return GaussianMixture(log_weights, means[:, None], cholesky=stds[:, None, None])
