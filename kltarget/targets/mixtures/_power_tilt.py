"""Forward-KL and other power-law targets of Gaussian mixtures, in any dimension, with their atoms.

For a reward ``r = r_max − Q(x)``, Q a positive definite quadratic, these targets are
``p·(κ/(τ + Q))^k``. As ``Γ(k) y^{−k} = ∫ t^{k−1} e^{−ty} dt``, they are reverse-KL targets
``p e^{−tQ}`` of all coefficients ``1/t``, mixed: one-dimensional integrals of closed forms,
whatever the dimension.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kltarget._core.checks import at_index, first_index, float_argument, traced, typed_key
from kltarget._core.matrices import cholesky, product, times, transposed
from kltarget._core.numerics import log_sum_exp, working_dtype
from kltarget._core.pytrees import pytree
from kltarget._core.status import Status, flag, unless_failed
from kltarget.divergences import Divergence, ForwardKL
from kltarget.divergences._base import PowerDivergence
from kltarget.objectives._point_rewards import QuadraticReward
from kltarget.spaces import GaussianMixture
from kltarget.spaces._gaussian_mixture import unchecked
from kltarget.targets._protocol import Optimum
from kltarget.targets.mixtures._expansion import checked, quadratic_of
from kltarget.targets.mixtures._expectation import expectation, require_rule
from kltarget.targets.mixtures._quadratic_frame import Frame, Nodes


@pytree
class PowerTarget(Optimum):
    """The distribution that maximises ``E_π[reward] − β·D(π‖p)``, D forward KL or of its kind.

    A density ``p(x)·(κ/(τ + Q(x)))^k``, ``Q = r_max − reward``, and possibly an atom where Q is 0.

    Attributes:
        offset: τ in reward units, how far above the best reward the density's pole lies,
            ``[*batch]``; 0 with an atom.
        atom_mass: probability of the point ``atom`` itself, shape ``[*batch]``.
        atom: the maximiser of the reward, shape ``[*batch, d]``.
        status: :class:`kltarget.Status` bits, shape ``[*batch]``; ``CONDENSED`` with an atom.
        reference: p.
        reward: what is maximised.
        beta: coefficient of the divergence, shape ``[*batch]``.
        divergence: D.
    """

    made_by = "power_tilt"

    offset: Float[Array, "*batch"]
    atom_mass: Float[Array, "*batch"]
    atom: Float[Array, "*batch d"]
    status: Int[Array, "*batch"]
    reference: GaussianMixture
    reward: QuadraticReward
    beta: Float[Array, "*batch"]
    divergence: PowerDivergence

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum ``J* = E_π*[reward] − β·D(π*, p)``, shape ``[*batch]``."""
        return self.expected_reward - self.beta * self.divergence_value

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π*[reward]`` in reward units, shape ``[*batch]``."""
        loss, _ = _expectations(self, _alpha(self.divergence))
        return self.reward(self.atom) - loss

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """``D(π*, p)`` in nats, shape ``[*batch]``."""
        return _expectations(self, _alpha(self.divergence))[1]

    @property
    def component_log_mass(self) -> Float[Array, "*batch K"]:
        """Log-probability of each of the reference's components; an atom belongs to none."""
        return _component_log_mass(self, _alpha(self.divergence))

    @property
    def mean(self) -> Float[Array, "*batch d"]:
        """The mean, atom included, shape ``[*batch, d]``."""
        return _moments(self, _alpha(self.divergence))[0]

    @property
    def covariance(self) -> Float[Array, "*batch d d"]:
        """The covariance, atom included, shape ``[*batch, d, d]``."""
        return _moments(self, _alpha(self.divergence))[1]

    @property
    def multiplier(self) -> Float[Array, "*batch"]:
        """λ, the dual variable of normalisation in reward units, as that of a ``Target``."""
        _, reach, shift = _constants(self.divergence)
        best = self.reward(self.atom)
        return best + self.offset - (reach + shift) * self.beta

    def log_prob(self, x: ArrayLike) -> Float[Array, "*batch"]:
        """The log-density, without the atom, at points ``[..., d]``."""
        order, reach, _ = _constants(self.divergence)
        points = float_argument(x, "x")
        loss = _loss(self.reward, points, self.atom.astype(points.dtype))
        offset = jnp.broadcast_to(self.offset, loss.shape)
        ratio = jnp.broadcast_to(jnp.log(reach * self.beta), loss.shape) - jnp.log(offset + loss)
        return self.reference.log_prob(points) + order * ratio

    def sample(
        self, *, key: PRNGKeyArray, num_samples: int
    ) -> Float[Array, "num_samples *batch d"]:
        """Independent draws, shape ``[num_samples, *batch, d]``; not differentiable."""
        return _sample(self, typed_key(key), num_samples, _alpha(self.divergence))

    def expectation(self, fn: Callable[[Array], Array]) -> Float[Array, "*batch"]:
        """``E_π*[fn]``, atom included, in up to three dimensions.

        Args:
            fn: a function of points ``[N, *batch, d]`` with values ``[N, *batch]``.

        Returns:
            Shape ``[*batch]``, by a rule of equidistant nodes in the coordinates of each of the
            Gaussians that make up the density.

        Raises:
            ValueError: there are more than three dimensions.
        """
        require_rule(self.reference.dim)
        shares, means, covariances = _components(self, _alpha(self.divergence))
        present = shares > 0
        weights = jnp.where(present, jnp.log(jnp.where(present, shares, 1.0)), -jnp.inf)
        density = unchecked(weights, means, cholesky(covariances))
        at_atom = fn(self.atom[None].astype(means.dtype))[0]
        mean = expectation(density, fn) + self.atom_mass.astype(means.dtype) * at_atom
        return mean.astype(self.beta.dtype)


def power_tilt(
    mixture: GaussianMixture, reward: Any, beta: ArrayLike, divergence: Divergence | None = None
) -> PowerTarget:
    """The distribution that maximises ``E_π[reward] − beta · D(π‖p)``, D forward KL or of its kind.

    With ``f = c·f_α``, α < 1, ``k = 1/(1 − α)``, ``κ = kcβ`` and ``Q = r_max − reward`` the target
    is ``p·(κ/(τ + Q))^k``; for forward KL ``βp/(Λ − r)``, ``τ = Λ − r_max``. The offset τ > 0 makes
    it integrate to one. In more than 2k dimensions ``(κ/Q)^k`` itself is integrable; where its
    integral under p is below one no density attains the supremum, τ is 0 and the maximiser of the
    reward holds the rest as an **atom**: for ``p = N(0, I_d)``, ``r = −|x|²`` and forward KL at
    ``β < d − 2``, with mass ``1 − β/(d − 2)``.

    From ``Γ(k) y^{−k} = ∫ t^{k−1} e^{−ty} dt`` follows
    ``E_p[(τ + Q)^{−k}] = ∫ t^{k−1} e^{−tτ} Z(t) dt / Γ(k)``, where ``Z(t) = E_p[e^{−tQ}]`` is the
    normaliser of the reverse-KL target at β = 1/t, in closed form in any dimension: the target is a
    mixture of reverse-KL targets of all β.

    Args:
        mixture: the reference p, of any batch shape.
        reward: a :class:`QuadraticReward` with a negative definite matrix, or a sum of quadratic
            rewards whose matrices add up to one.
        beta: coefficient of the divergence, in reward units per nat, above 0; ``[*batch]``.
        divergence: :class:`kltarget.ForwardKL` by default, or another multiple of a member of the α
            family with α < 1, one number.

    Returns:
        The target, to rounding of the dtype times 1 + k. In 2k dimensions τ falls like
        ``e^{−1/β}``: below e^−200 (e^−60 in float32) of the scale of Q the row is
        ``NOT_CONVERGED``.

    Raises:
        TypeError: a divergence with an infinite slope at infinity, or a reward that is not
            quadratic.
        ValueError: shapes that do not fit; and outside a trace: a ``beta`` that is not above 0, or
            a reward that is unbounded or flat in some direction.

    Status:
        ``CONDENSED`` with an atom; ``UNBOUNDED``, ``INVALID_BETA`` and ``NOT_CONVERGED`` come with
        NaN in the numbers of the row.

    Differentiable once in all fields of the mixture and of the reward, and in beta.

    Example:
        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.mixtures import QuadraticReward, power_tilt
        >>> p = kt.GaussianMixture([0.0], [[0.0] * 5], [1.0], covariance_type="spherical")
        >>> target = power_tilt(
        ...     p, kt.mixtures.QuadraticReward(-2 * jnp.eye(5)), jnp.array([1.0, 4.0])
        ... )
        >>> print([f"{mass:.4f}" for mass in target.atom_mass], f"{target.offset[1]:.4f}")
        ['0.6667', '0.0000'] 0.5808

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817 (the forward-KL target). The atoms and the integral over reverse-KL targets
        are derived above.
    """
    divergence = ForwardKL() if divergence is None else divergence
    if not isinstance(divergence, PowerDivergence) or not _alpha(divergence) < 1:
        raise TypeError(
            "divergence must be a multiple of a member of the alpha family with alpha < 1, such as "
            f"kltarget.ForwardKL(), got {divergence!r}; solve_on_grid takes any"
        )
    quadratic = quadratic_of(reward)
    if quadratic is None:
        raise TypeError("reward must be quadratic; solve_on_grid takes any")
    beta, batch = checked(mixture, quadratic, beta)
    target = _power_tilt(mixture, quadratic, beta, divergence, _alpha(divergence), batch)
    if not traced(target.status):
        for bit, why in (
            (Status.INVALID_BETA, "beta must be above 0 and finite"),
            (
                Status.UNBOUNDED,
                "the reward's matrix must be negative definite: forward KL keeps no mass from "
                "going where a reward has no maximum, and directions that a reward does not depend "
                "on are to be left out of the space",
            ),
        ):
            bad = np.asarray(target.status) & int(bit) != 0
            if bad.any():
                raise ValueError(f"{why}{at_index(first_index(bad))}")
    return target


def _alpha(divergence: PowerDivergence) -> float:
    return float(np.asarray(divergence._alpha))


def _constants(divergence: PowerDivergence, alpha: float | None = None) -> tuple[float, Any, Any]:
    """``k``, ``κ/β`` and b of ``f = c·f_α + b(u − 1)``."""
    order = 1 / (1 - (_alpha(divergence) if alpha is None else alpha))
    return order, order * divergence._scale, divergence._linear


def _loss(reward: QuadraticReward, points: Array, peak: Array) -> Array:
    """``Q = ½(x − m)ᵀH(x − m)``, without a difference of two rewards."""
    lead = jnp.broadcast_shapes(points.shape[:-1], peak.shape[:-1])
    shape = (*lead, peak.shape[-1])
    apart = jnp.broadcast_to(points, shape) - jnp.broadcast_to(peak, shape)
    matrix = jnp.broadcast_to(reward.matrix, (*lead, *reward.matrix.shape[-2:]))
    return -(apart * times(matrix.astype(apart.dtype), apart)).sum(-1) / 2


@functools.partial(jax.jit, static_argnums=(4, 5))
def _power_tilt(
    mixture: GaussianMixture,
    reward: QuadraticReward,
    beta: Array,
    divergence: PowerDivergence,
    alpha: float,
    batch: tuple[int, ...],
) -> PowerTarget:
    narrow, dtype = beta.dtype, working_dtype(beta.dtype)
    order, reach, _ = _constants(divergence, alpha)
    beta = jnp.broadcast_to(beta, batch)
    good = (beta > 0) & (beta < jnp.inf)
    wide = jnp.where(good, beta, jnp.ones_like(beta)).astype(dtype)
    frame = Frame(mixture, reward, wide)
    nodes = Nodes(frame, wide, order, reach)
    at_pole = nodes.log_mass_at_pole(mixture.dim / 2 - order)
    condensed = at_pole < 0
    log_offset, lost = _log_offset(nodes, jnp.log(reach * wide))
    lost = lost & ~condensed
    offset = jnp.where(condensed, 0.0, jnp.exp(jnp.where(condensed, 0.0, log_offset)))
    atom_mass = jnp.where(condensed, -jnp.expm1(jnp.where(condensed, at_pole, 0.0)), 0.0)
    status = flag(~good, Status.INVALID_BETA) | flag(~frame.bounded, Status.UNBOUNDED)
    sound = good & frame.bounded
    status = status | flag(sound & lost, Status.NOT_CONVERGED)
    status = status | flag(sound & condensed, Status.CONDENSED)
    found = (offset, atom_mass, frame.center)
    offset, atom_mass, atom = (unless_failed(status, x).astype(narrow) for x in found)
    return PowerTarget(offset, atom_mass, atom, status, mixture, reward, beta, divergence)


def _log_offset(nodes: Nodes, highest: Array) -> tuple[Array, Array]:
    """Log τ by bisection, and where it lies beyond the nodes; differentiable once."""
    # (κ/(τ + Q))^k is at most (κ/τ)^k, and an offset is seen while its 1/t is among the nodes.
    lowest = -lax.stop_gradient(nodes.log_t[..., -1]) + 4
    highest = jnp.maximum(lax.stop_gradient(highest), lowest) + 1
    lost = lax.stop_gradient(nodes.log_mass(lowest)) < 0

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        above = lax.stop_gradient(nodes.log_mass(middle)) > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    steps = 40 if highest.dtype.itemsize == 4 else 70
    low, high = lax.fori_loop(0, steps, halve, (lowest, highest))
    root = (low + high) / 2
    # Newton's step from the root is 0 and has the derivative of the implicit function.
    mass, slope = jax.jvp(nodes.log_mass, (root,), (jnp.ones_like(root),))
    return root - mass / lax.stop_gradient(slope), lost


def _of_target(target: PowerTarget, alpha: float) -> tuple[Nodes, Array]:
    """The nodes and the logarithm of each one's share, in the working dtype."""
    beta = target.beta.astype(working_dtype(target.beta.dtype))
    order, reach, _ = _constants(target.divergence, alpha)
    nodes = Nodes(Frame(target.reference, target.reward, beta), beta, order, reach)
    offset = target.offset.astype(beta.dtype)
    return nodes, nodes.log_free - offset[..., None] * nodes.time


@functools.partial(jax.jit, static_argnums=1)
def _expectations(target: PowerTarget, alpha: float) -> tuple[Array, Array]:
    """``E_π[Q]`` and ``D(π‖p)``."""
    nodes, log_share = _of_target(target, alpha)
    order, reach, _ = _constants(target.divergence, alpha)

    # Under p e^{−tQ} the mean of Q is −d log Z/dt.
    def log_z(t: Array) -> Array:
        return log_sum_exp(nodes.weights + nodes.frame.log_transform(t))[..., 0]

    gained = jax.jvp(log_z, (nodes.time,), (jnp.ones_like(nodes.time),))[1]
    loss = -(jnp.exp(log_share) * gained).sum(-1)
    scale = jnp.asarray(target.divergence._scale, loss.dtype)
    offset, atom = target.offset.astype(loss.dtype), target.atom_mass.astype(loss.dtype)
    # For u = y^{−k}, y = (τ + Q)/κ: E f_α(u) = k/Γ(k) ∫ s^{k−1} (k − s)(e^{−s} − E e^{−sy}) ds/s;
    # at large β y is nearly 1 everywhere, and differences from 1 alone are summed.
    kappa = (reach * target.beta.astype(loss.dtype))[..., None]
    stretch = kappa * nodes.time
    lead = (order - 1) * (jnp.log(kappa) + nodes.log_t) - math.lgamma(order)
    decayed = nodes.log_z - offset[..., None] * nodes.time
    apart = nodes.log_own - ((offset[..., None] - kappa) * nodes.time)[..., None]
    close = (jnp.abs(apart) < 0.5).all(-1)
    change = jnp.expm1(jnp.where(close[..., None], apart, jnp.zeros_like(apart)))
    change = (jnp.exp(nodes.weights) * change).sum(-1)
    some = close & (change != 0)
    near = -change * jnp.exp(jnp.where(some, lead - stretch, jnp.zeros_like(lead)))
    far = jnp.exp(jnp.where(close, -jnp.inf, lead - stretch)) - jnp.exp(
        jnp.where(close, -jnp.inf, lead + decayed)
    )
    terms = order * (order - stretch) * jnp.where(close, near, far)
    generated = nodes.step * terms.sum(-1) + order * atom
    fall = target.atom.shape[-1] / 2 - order
    if fall > 0:
        # Without an offset the terms fall like a geometric series at last.
        rest = nodes.step * terms[..., -1] / math.expm1(fall * nodes.step)
        generated = generated + jnp.where(atom > 0, rest, jnp.zeros_like(rest))
    dtype = target.beta.dtype
    return loss.astype(dtype), (scale * generated).astype(dtype)


@functools.partial(jax.jit, static_argnums=1)
def _component_log_mass(target: PowerTarget, alpha: float) -> Array:
    nodes, log_share = _of_target(target, alpha)
    each = nodes.log_each + (log_share - nodes.log_z)[..., None]
    masses = log_sum_exp(jnp.swapaxes(each, -1, -2))[..., 0].astype(target.beta.dtype)
    return unless_failed(target.status, masses)


def _components(target: PowerTarget, alpha: float) -> tuple[Array, Array, Array]:
    """Shares ``[*batch, M]``, means and covariances of all Gaussians that make up the density."""
    nodes, log_share = _of_target(target, alpha)
    shares = jnp.exp(nodes.log_each + (log_share - nodes.log_z)[..., None])
    means, covariances = nodes.frame.gaussians(nodes.time)
    batch, size = target.beta.shape, means.shape[-1]
    return (
        shares.reshape(*batch, -1),
        means.reshape(*batch, -1, size),
        covariances.reshape(*batch, -1, size, size),
    )


@functools.partial(jax.jit, static_argnums=1)
def _moments(target: PowerTarget, alpha: float) -> tuple[Array, Array]:
    shares, means, covariances = _components(target, alpha)
    mass, place = (x.astype(shares.dtype) for x in (target.atom_mass, target.atom))
    mean = (shares[..., None] * means).sum(-2) + mass[..., None] * place
    apart, off = means - mean[..., None, :], place - mean
    spread = (shares[..., None, None] * covariances).sum(-3)
    spread = spread + product(transposed(shares[..., None] * apart), apart)
    spread = spread + mass[..., None, None] * off[..., :, None] * off[..., None, :]
    dtype = target.beta.dtype
    return mean.astype(dtype), spread.astype(dtype)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _sample(target: PowerTarget, key: Array, num_samples: int, alpha: float) -> Array:
    shares, means, covariances = _components(target, alpha)
    mass, place = (x.astype(shares.dtype) for x in (target.atom_mass, target.atom))
    logits = jnp.log(jnp.concatenate([shares, mass[..., None]], axis=-1))
    which_key, noise_key = jax.random.split(key)
    shape = (num_samples, *target.beta.shape)
    which = jax.random.categorical(which_key, logits, axis=-1, shape=shape)[..., None, None]
    noise = jax.random.normal(noise_key, (*shape, place.shape[-1]), means.dtype)
    means = jnp.concatenate([means, place[..., None, :]], axis=-2)
    factors = cholesky(covariances)
    still = jnp.zeros_like(factors[..., :1, :, :])
    factors = jnp.concatenate([factors, still], axis=-3)
    center = jnp.take_along_axis(means[None], which, axis=-2)[..., 0, :]
    factor = jnp.take_along_axis(factors[None], which[..., None], axis=-3)[..., 0, :, :]
    return (center + times(factor, noise)).astype(target.beta.dtype)
