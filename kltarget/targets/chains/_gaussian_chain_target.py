"""The best law of paths of a linear Gaussian chain with a quadratic reward: such a chain again."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import (
    at_index,
    first_index,
    float_arguments,
    raise_first,
    traced,
    worded,
)
from kltarget._core.matrices import cholesky, diagonal, inverse_lower, product, times, transposed
from kltarget._core.pytrees import made, register
from kltarget._core.short_repr import short_repr
from kltarget._core.status import Status, flag
from kltarget.objectives._point_rewards import QuadraticReward
from kltarget.spaces import GaussianChain, GaussianMixture
from kltarget.spaces._gaussian_chains import by_step, first_law
from kltarget.spaces._gaussian_mixture import unchecked
from kltarget.spaces._widened_chains import widened
from kltarget.targets._protocol import Optimum
from kltarget.targets.mixtures import _expectation


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianChainTarget(Optimum):
    """The law of paths that maximises ``E_π[r(x_0)] − β·KL(π‖p)`` over a Gaussian chain p.

    Attributes:
        policy: the best law, a Gaussian chain itself.
        chain: p.
        reward: of the last state.
        beta: coefficient, ``[*batch]``.
        maximum: J* in reward units, ``[*batch]``.
        step_kl: ``KL(π‖p)`` of the first state and of each step, ``[*batch, T + 1]``, in nats.
        status: ``UNBOUNDED`` where the reward grows faster than the divergence lets it.
        tilt_first: whether the law of the first state moves too.
    """

    __repr__ = short_repr

    made_by = "solve_chain"

    policy: GaussianChain
    chain: GaussianChain
    reward: QuadraticReward
    beta: Float[Array, "*batch"]
    maximum: Float[Array, "*batch"]
    step_kl: Float[Array, "*batch times"]
    status: Int[Array, "*batch"]
    tilt_first: bool

    @property
    def value(self) -> Float[Array, "*batch"]:
        """The maximum J* in reward units, shape ``[*batch]``."""
        return self.maximum

    @property
    def last(self) -> GaussianMixture:
        """The law of the last state ``x_0``, which is what is generated, one Gaussian."""
        return _at_end(self.policy)

    @property
    def expected_reward(self) -> Float[Array, "*batch"]:
        """``E_π[r(x_0)]`` in reward units, shape ``[*batch]``."""
        return self.value + self.beta * self.divergence_value

    @property
    def divergence_value(self) -> Float[Array, "*batch"]:
        """``KL(π‖p)`` of the laws of paths in nats, shape ``[*batch]``."""
        return self.step_kl.sum(-1)

    @property
    def marginal_kl(self) -> Float[Array, "*batch times"]:
        """``KL(π‖p)`` of the states at each time, ``[*batch, T + 1]``, in nats."""
        (mean, spread), (other, wide) = self.policy.marginals(), self.chain.marginals()
        other, wide = jnp.broadcast_to(other, mean.shape), jnp.broadcast_to(wide, spread.shape)
        return _kl(mean - other, jnp.zeros_like(spread), spread, wide)

    def log_prob(self, x: ArrayLike) -> Float[Array, "..."]:
        """Log-densities of paths ``[..., T + 1, d]``, whose leading axes broadcast to batch."""
        points = jnp.asarray(x)
        chain = self.policy
        if points.shape[-2:] != (chain.num_steps + 1, chain.dim):
            raise ValueError(
                f"x has shape {points.shape}: paths need the last axes "
                f"({chain.num_steps + 1}, {chain.dim})"
            )
        before = points[..., :-1, :]
        shape = jnp.broadcast_shapes(points.shape[:-2], chain.batch_shape)
        matrices = jnp.broadcast_to(chain.matrices, (*shape, *chain.matrices.shape[-3:]))
        offsets = jnp.broadcast_to(chain.offsets, (*shape, *chain.offsets.shape[-2:]))
        spreads = jnp.broadcast_to(chain.covariances, matrices.shape)
        before = jnp.broadcast_to(before, offsets.shape)
        after = jnp.broadcast_to(points[..., 1:, :], offsets.shape)
        steps = _log_density(after - times(matrices, before) - offsets, spreads)
        mean = jnp.broadcast_to(chain.mean, (*shape, chain.dim))
        spread = jnp.broadcast_to(chain.covariance, (*mean.shape, chain.dim))
        first = jnp.broadcast_to(points[..., 0, :], mean.shape) - mean
        return _log_density(first, spread) + steps.sum(-1)

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Float[Array, "num_samples *batch times d"]:
        """Independent paths, points of shape ``[num_samples, *batch, T + 1, d]``."""
        return self.policy.sample(key=key, num_samples=num_samples)

    def expectation(self, fn: Callable[[Array], Array]) -> Float[Array, "*batch"]:
        """``E_π[fn(x_0)]`` in up to three dimensions, as that of :func:`kltarget.mixtures.tilt`."""
        _expectation.require_rule(self.policy.dim)
        return _expectation.expectation(self.last, fn).astype(self.beta.dtype)


register(
    GaussianChainTarget,
    ("policy", "chain", "reward", "beta", "maximum", "step_kl", "status"),
    ("tilt_first",),
)


def solve_gaussian_chain(
    chain: GaussianChain, reward: Any, beta: ArrayLike, *, tilt_first: bool
) -> GaussianChainTarget:
    if not isinstance(reward, QuadraticReward):
        raise TypeError(f"reward of a Gaussian chain must be a QuadraticReward, got {reward!r}")
    if reward.dim != chain.dim:
        raise ValueError(f"reward has {reward.dim} dimensions and the chain has {chain.dim}")
    coefficient = float_arguments(beta=beta, mean=chain.mean)["beta"]
    rule = "must be above 0 and finite"
    raise_first("beta", coefficient, ~((coefficient > 0) & jnp.isfinite(coefficient)), rule)
    batches = chain.batch_shape, reward.batch_shape, coefficient.shape
    with worded(
        f"the batch axes of the chain {batches[0]}, reward {batches[1]} and beta {batches[2]} do "
        "not broadcast"
    ):
        batch = jnp.broadcast_shapes(*batches)
    target = _solve(chain, reward, coefficient, batch, tilt_first)
    if not traced(target.status) and np.asarray(target.status).any():
        at = at_index(first_index(np.asarray(target.status)))
        raise ValueError(
            f"beta is too small{at} for a reward that grows without bound: the objective has no "
            "maximum; take a larger one"
        )
    return target


@functools.partial(jax.jit, static_argnums=(3, 4))
def _solve(
    chain: GaussianChain,
    reward: QuadraticReward,
    beta: Array,
    batch: tuple[int, ...],
    tilt_first: bool,
) -> GaussianChainTarget:
    size, dtype = chain.dim, chain.mean.dtype
    chain = widened(chain, batch)
    beta = jnp.broadcast_to(beta, batch)
    matrix = jnp.broadcast_to(reward.matrix.astype(dtype), (*batch, size, size))
    vector = jnp.broadcast_to(reward.vector.astype(dtype), (*batch, size))
    constant = jnp.broadcast_to(reward.constant.astype(dtype), batch)

    def back(value: Any, given: tuple[Array, Array, Array]) -> tuple[Any, Any]:
        a, b, noise = given
        (m, v, c), gain, spread, shift, fine = _backed_up(value, noise, beta)
        pulled = times(m, b) + v
        before = (
            product(transposed(a), product(m, a)),
            times(transposed(a), pulled),
            c + (b * (times(m, b) / 2 + v)).sum(-1),
        )
        return before, (product(gain, a), times(gain, b) + shift, spread, fine)

    value, (matrices, offsets, spreads, fine) = jax.lax.scan(
        back, (matrix, vector, constant), by_step(chain), reverse=True
    )
    mean, spread = first_law(chain)
    good = fine.all(0)
    if tilt_first:
        (m, v, c), gain, own, shift, possible = _backed_up(value, spread, beta)
        best = c + (mean * (times(m, mean) / 2 + v)).sum(-1)
        begin, good = (times(gain, mean) + shift, own), good & possible
    else:
        m, v, c = value
        best = c + (mean * (times(m, mean) / 2 + v)).sum(-1)
        best = best + (m * spread).sum((-1, -2)) / 2
        begin = mean, spread
    lead = len(batch)
    steps = (jnp.moveaxis(x, 0, lead) for x in (matrices, offsets, spreads))
    names = ("mean", "covariance", "matrices", "offsets", "covariances")
    policy = made(GaussianChain, **dict(zip(names, (*begin, *steps), strict=True)))
    status = flag(~good, Status.UNBOUNDED)
    costs = step_kl(policy, chain)
    best = jnp.where(good, best, jnp.nan)
    return GaussianChainTarget(policy, chain, reward, beta, best, costs, status, tilt_first)


def _backed_up(value: Any, noise: Array, beta: Array) -> Any:
    """A quadratic ``½xᵀMx + vᵀx + c`` before Gaussian noise, and what the best noise is.

    With ``G = (Σ⁻¹ − M/β)⁻¹`` and ``K = I + GM/β`` it is ``½mᵀ(MK)m + (Kᵀv)ᵀm + c + vᵀGv/2β −
    ½β log det(I − ΣM/β)`` of the mean m, and the noise that maximises has mean ``Km + Gv/β`` and
    covariance G. It exists where ``I − LᵀML/β`` is positive definite, ``Σ = LLᵀ``.
    """
    m, v, c = value
    per = beta[..., None, None]
    factor = cholesky(noise)
    eye = jnp.broadcast_to(jnp.eye(m.shape[-1], dtype=m.dtype), m.shape)
    inner = cholesky(eye - product(transposed(factor), product(m, factor)) / per)
    fine = (diagonal(inner) > 0).all(-1)
    root = product(factor, transposed(inverse_lower(inner)))
    spread = product(root, transposed(root))
    gain = eye + product(spread, m) / per
    shift = times(spread, v) / beta[..., None]
    after = product(m, gain)
    log_det = 2 * jnp.log(diagonal(inner)).sum(-1)
    constant = c + (v * shift).sum(-1) / 2 - beta / 2 * log_det
    value = (after + transposed(after)) / 2, times(transposed(gain), v), constant
    return value, gain, spread, shift, fine


@jax.jit
def step_kl(policy: GaussianChain, chain: GaussianChain) -> Array:
    """KL of the first state and of each step, expected under the policy, ``[*batch, T + 1]``."""
    chain = widened(chain, policy.batch_shape)
    means, spreads = policy.marginals()
    (mean, spread), (other, wide) = first_law(policy), first_law(chain)
    first = _kl(mean - other, jnp.zeros_like(spread), spread, wide)
    by = policy.matrices - chain.matrices
    apart = times(by, means[..., :-1, :]) + policy.offsets - chain.offsets
    scatter = product(by, product(spreads[..., :-1, :, :], transposed(by)))
    return jnp.concatenate(
        [first[..., None], _kl(apart, scatter, policy.covariances, chain.covariances)], -1
    )


def _kl(apart: Array, scatter: Array, own: Array, other: Array) -> Array:
    """Expected KL of two Gaussians whose means differ by a vector of this mean and covariance."""
    whiten = inverse_lower(cholesky(other))
    inner = product(whiten, product(own + scatter, transposed(whiten)))
    log_own, log_other = (jnp.log(diagonal(cholesky(x))).sum(-1) for x in (own, other))
    squared = jnp.square(times(whiten, apart)).sum(-1)
    return (diagonal(inner).sum(-1) - apart.shape[-1] + squared) / 2 + log_other - log_own


def _log_density(apart: Array, spread: Array) -> Array:
    factor = cholesky(spread)
    squared = jnp.square(times(inverse_lower(factor), apart)).sum(-1)
    size = apart.shape[-1]
    return -squared / 2 - jnp.log(diagonal(factor)).sum(-1) - size / 2 * math.log(2 * math.pi)


def _at_end(chain: GaussianChain) -> GaussianMixture:
    means, spreads = chain.marginals()
    factor = cholesky(spreads[..., -1:, :, :])
    weight = jnp.zeros((*chain.batch_shape, 1), means.dtype)
    return unchecked(weight, means[..., -1:, :], factor)
