"""What a target of a continuous space is, on the nodes of a grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import traced
from kltarget._core.numerics import as_float, log_sum_exp, working_dtype
from kltarget._core.pytrees import pytree
from kltarget._core.status import Status
from kltarget.objectives._objective import broadcast_fields
from kltarget.spaces import GaussianMixture
from kltarget.targets._protocol import Optimum
from kltarget.targets.discrete._solve import Target
from kltarget.targets.grids._refinement import log_target


@pytree
class GridTarget(Optimum):
    """A density that maximises ``E_π[r] − beta · D(π, p)``, with its atom if it has one.

    Attributes:
        target: the discrete target on the N nodes and, as the last outcome, at ``atom``,
            where the reference has no mass.
        points: the nodes, shape ``[N, d]``.
        log_weights: log of the quadrature's weights, shape ``[N]``: an integral over the box is
            ``Σ exp(log_weights) h(points)``.
        atom: the maximiser of the reward, shape ``[d]``; where f′(∞) is infinite and no atom
            possible, the node of the largest reward.
        error: estimated absolute error of the target's mass, and of what is summed, at the
            multiplier found, shape ``[*batch]``. It is the largest of four, each summed over the
            cells as ``|rule − rules of the cell's halves|``: of the reference's mass, of the
            target's mass, and, relative to their size where that exceeds 1, of ``E_π[(r − λ)/β]``
            and of the divergence (and of the modes' masses); plus the target's mass found in the
            blocks around the box. What λ itself is off by is not included, which at small β moves
            rewards and divergences several times further. Where the grid does not resolve an atom,
            at least the atom's mass. NaN where a grid was given.
        box: the bounds of the space, shape ``[d, 2]``.
        density: log-density of the reference, a function of points.
        reward: reward of points.
        log_inside: log of the reference's mass in the box where it was truncated to it, else 0.
        modes: one mode per outcome of ``target``, shape ``[N + 1]``, or None.
        num_modes: how many there are.
        truncated: whether the box is the space.
        condensable: whether f has a finite slope at infinity, so that there may be an atom.
    """

    made_by = "solve_on_grid"

    target: Target
    points: Float[Array, "N d"]
    log_weights: Float[Array, " N"]
    atom: Float[Array, " d"]
    error: Float[Array, "*batch"]
    box: Float[Array, "d 2"]
    density: GaussianMixture | Callable[[Array], Array]
    reward: Callable[[Array], Array]
    log_inside: Float[Array, ""]
    modes: Int[Array, " N+1"] | None
    num_modes: int = dataclasses.field(metadata={"static": True})
    truncated: bool = dataclasses.field(metadata={"static": True})
    condensable: bool = dataclasses.field(metadata={"static": True})

    @property
    def atom_mass(self) -> Float[Array, "*batch"]:
        """The point mass at ``atom``, shape ``[*batch]``."""
        return jnp.exp(self.target.log_probs[..., -1])

    @property
    def multiplier(self) -> Float[Array, "*batch"]:
        """λ, in reward units; the density is ``p (f′)⁻¹((r − λ)/β)``."""
        return self.target.multiplier

    @property  # pyright: ignore[reportIncompatibleVariableOverride]
    def status(self) -> Int[Array, "*batch"]:
        """:class:`Status` bits; ``CONDENSED`` says that there is an atom.

        ``NOT_CONVERGED`` says that ``error`` is above the tolerance; the numbers stand.
        """
        return self.target.status

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum J* in reward units."""
        return self.target.value

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π[r]`` in reward units, with the atom."""
        return self.target.expected_reward

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """``D(π, p)`` in nats, with the atom."""
        return self.target.divergence_value

    @property
    def log_density(self) -> Float[Array, "*batch N"]:
        """The log of the density part at the nodes; its mass is ``1 − atom_mass``."""
        log_probs = self.target.log_probs[..., :-1]
        return log_probs - jnp.broadcast_to(self.log_weights, log_probs.shape)

    def log_prob(self, x: ArrayLike) -> Float[Array, "*batch M"]:
        """The log of the density part at any points ``[M, d]``, shape ``[*batch, M]``.

        ``-inf`` outside of a truncated space. Differentiable in the points.
        """
        points = jnp.asarray(x, self.points.dtype)
        if points.ndim != 2 or points.shape[-1] != self.points.shape[-1]:
            raise ValueError(
                f"x has shape {points.shape}, but the space has {self.points.shape[-1]} "
                f"dimensions: it needs shape [M, {self.points.shape[-1]}]"
            )
        return _log_prob(self, points)

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Float[Array, "num_samples *batch d"]:
        """Independent draws among the nodes and the atom, by the masses that integrals sum.

        Args:
            key: a JAX random key.
            num_samples: how many, per row.

        Returns:
            Points, shape ``[num_samples, *batch, d]``. Their moments are those of the grid; they
            lie on its nodes, at whose distances the density is not told apart.
        """
        places = jnp.concatenate([self.points, self.atom[None]])
        return places[self.target.sample(key=key, num_samples=num_samples)]

    def expectation(self, fn: Callable[[Array], ArrayLike]) -> Float[Array, "..."]:
        """``E_π[fn]`` with the atom.

        Args:
            fn: a function of points ``[M, d]`` with values ``[M, ...]``.

        Returns:
            Shape ``[*batch, ...]``.
        """
        places = jnp.concatenate([self.points, self.atom[None]])
        probs = self.target.probs
        values = as_float(fn(places)).astype(probs.dtype)
        return jnp.tensordot(probs, values, 1, precision="highest")

    @property
    def mean(self) -> Float[Array, "*batch d"]:
        """``E_π[x]``."""
        return self.expectation(lambda x: x)

    @property
    def covariance(self) -> Float[Array, "*batch d d"]:
        """The covariance of π."""
        return _covariance(self)

    @property
    def mode_log_mass(self) -> Float[Array, "*batch M"]:
        """The log-mass of each mode from 0 up, in increasing order, with the atom.

        Raises:
            ValueError: the target was made without modes.
        """
        if self.modes is None:
            raise ValueError("pass modes to solve_on_grid: nothing says what the modes are")
        return _mode_log_mass(self)

    @property
    def component_log_mass(self) -> Float[Array, "*batch K"]:
        """The log-mass of each component of the reference, ``log E_π[responsibility_k]``.

        Raises:
            TypeError: the reference is not a :class:`GaussianMixture`.
        """
        if not isinstance(self.density, GaussianMixture):
            raise TypeError("component_log_mass needs a GaussianMixture as the density")
        return _component_log_mass(self)

    def raise_if_failed(self) -> GridTarget:
        """This target, or an error naming the first failed row.

        Raises:
            ValueError: a row's status has a failure bit.
        """
        if not traced(self.status):
            unsettled = (self.status & int(Status.NOT_CONVERGED)) != 0
            if unsettled.any():
                worst = float(jnp.max(jnp.where(unsettled, self.error, 0.0)))
                raise ValueError(
                    f"the grid of {len(self.points)} points is not accurate enough: NOT_CONVERGED, "
                    f"estimated error {worst:.3g}; raise error_tol or max_points, or narrow bounds"
                )
        return super().raise_if_failed()


@jax.jit
def _log_prob(found: GridTarget, points: Array) -> Array:
    objective = found.target.objective
    dtype = working_dtype(objective.reward.dtype)
    log_ref = log_density_at(found.density, points).astype(dtype) - found.log_inside.astype(dtype)
    if found.truncated:
        inside = (points >= found.box[None, :, 0]) & (points <= found.box[None, :, 1])
        log_ref = jnp.where(inside.all(-1), log_ref, -jnp.inf)
    _, _, beta, divergence = broadcast_fields(objective)
    shape = (*beta.shape[:-1], points.shape[0])
    reward = jnp.broadcast_to(found.reward(points).astype(dtype), shape)
    multiplier = found.multiplier.astype(dtype)[..., None]
    log_ref = jnp.broadcast_to(log_ref, shape)
    log_probs = log_target(divergence, log_ref, reward, beta, multiplier)
    return log_probs.astype(found.target.log_probs.dtype)


@jax.jit
def _covariance(found: GridTarget) -> Array:
    places, mean = jnp.concatenate([found.points, found.atom[None]]), found.mean
    apart = places.reshape((1,) * (mean.ndim - 1) + places.shape) - mean[..., None, :]
    probs = found.target.probs
    return jnp.einsum("...n,...ni,...nj->...ij", probs, apart, apart, precision="highest")


@jax.jit
def _mode_log_mass(found: GridTarget) -> Array:
    log_probs = found.target.log_probs
    modes = jnp.broadcast_to(jnp.asarray(found.modes), log_probs.shape)
    held = [log_sum_exp(jnp.where(modes == m, log_probs, -jnp.inf)) for m in range(found.num_modes)]
    return jnp.concatenate(held, axis=-1)


@jax.jit
def _component_log_mass(found: GridTarget) -> Array:
    places = jnp.concatenate([found.points, found.atom[None]])
    log_probs = found.target.log_probs
    assert isinstance(found.density, GaussianMixture)
    shares = found.density.log_responsibilities(places).astype(log_probs.dtype)
    held = [
        log_sum_exp(log_probs + jnp.broadcast_to(shares[:, k], log_probs.shape))
        for k in range(shares.shape[-1])
    ]
    return jnp.concatenate(held, axis=-1)


def log_density_at(density: Any, points: Array) -> Array:
    """The log-density of a mixture or of a function."""
    return density.log_prob(points) if isinstance(density, GaussianMixture) else density(points)
