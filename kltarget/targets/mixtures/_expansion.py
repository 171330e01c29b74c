"""What a Gaussian needs to know of a reward to be tilted by its exponential."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import common_dtype, float_argument, traced, worded
from kltarget._core.matrices import diagonal, inverse_lower, product, times, transposed
from kltarget.objectives._point_rewards import LogDensityReward, QuadraticReward, RewardSum
from kltarget.spaces import GaussianMixture


def checked(
    mixture: GaussianMixture, reward: Any, beta: ArrayLike
) -> tuple[Array, tuple[int, ...]]:
    """β in the dtype of the problem, and the shape that its batch axes broadcast to."""
    if not isinstance(mixture, GaussianMixture):
        raise TypeError(f"mixture must be a kltarget.GaussianMixture, got {mixture!r}")
    if reward.dim != mixture.dim:
        raise ValueError(
            f"reward is of {reward.dim} dimensions and the mixture of {mixture.dim}: both need the "
            "same"
        )
    array = float_argument(beta, "beta")
    with worded(
        f"the batch axes of mixture {mixture.batch_shape}, reward {reward.batch_shape} and beta "
        f"{array.shape} do not broadcast"
    ):
        batch = np.broadcast_shapes(mixture.batch_shape, reward.batch_shape, array.shape)
    arrays = [mixture.means, *jax.tree.leaves(reward), array]
    return array.astype(common_dtype([*arrays[:-1], beta], arrays)), batch


class Bend(NamedTuple):
    """Value, gradient and Hessian of J functions at a point of each."""

    value: Float[Array, "*batch J"]
    gradient: Float[Array, "*batch J d"]
    hessian: Float[Array, "*batch J d d"]


class Powers(NamedTuple):
    """A product of whole powers of mixtures as a sum of J products of Gaussians.

    The j-th term holds the i-th Gaussian of all mixtures ``counts[j, i]`` times.
    """

    log_weights: Float[Array, "*batch I"]
    means: Float[Array, "*batch I d"]
    whitening: Float[Array, "*batch I d d"]
    counts: tuple[tuple[int, ...], ...]
    log_count: tuple[float, ...]

    def at(self, x: Float[Array, "*batch K J d"]) -> Bend:
        """The logarithm of each term, around a point of its own."""
        size = x.shape[-1]
        apart = self.means[..., None, None, :, :] - x[..., None, :]
        whitening = jnp.broadcast_to(self.whitening[..., None, None, :, :, :], (*apart.shape, size))
        scaled = times(whitening, apart)
        scale = jnp.log(diagonal(whitening)).sum(-1) - size / 2 * math.log(2 * math.pi)
        weights = jnp.broadcast_to(self.log_weights[..., None, None, :], scale.shape)
        joint = weights + scale - jnp.square(scaled).sum(-1) / 2
        counts = jnp.asarray(self.counts, x.dtype)
        counts = jnp.broadcast_to(counts, joint.shape)
        # A component without weight counts only where it occurs.
        value = jnp.where(counts > 0, counts * joint, jnp.zeros_like(joint)).sum(-1)
        value = value + jnp.broadcast_to(jnp.asarray(self.log_count, x.dtype), value.shape)
        pull = times(transposed(whitening), scaled)
        precision = product(transposed(whitening), whitening)
        gradient = (counts[..., None] * pull).sum(-2)
        return Bend(value, gradient, -(counts[..., None, None] * precision).sum(-3))


def split(reward: Any) -> tuple[QuadraticReward | None, tuple[LogDensityReward, ...]]:
    """The quadratic terms of a reward as one, and the others."""
    terms = reward.terms if isinstance(reward, RewardSum) else (reward,)
    for term in terms:
        if not isinstance(term, (QuadraticReward, LogDensityReward)):
            raise TypeError(
                "reward must be a QuadraticReward, a LogDensityReward or a sum of them, got "
                f"{term!r}; other rewards have no target in closed form: solve_on_grid and "
                "solve_on_samples take any function"
            )
    quadratics = [term for term in terms if isinstance(term, QuadraticReward)]
    densities = tuple(term for term in terms if isinstance(term, LogDensityReward))
    if len(quadratics) < 2:
        return next(iter(quadratics), None), densities
    size = reward.dim
    batch = jnp.broadcast_shapes(*(term.batch_shape for term in quadratics))
    shapes = {"matrix": (*batch, size, size), "vector": (*batch, size), "constant": batch}
    fields = {
        name: sum(
            (jnp.broadcast_to(getattr(term, name), shape) for term in quadratics),
            start=jnp.zeros(shape, quadratics[0].vector.dtype),
        )
        for name, shape in shapes.items()
    }
    return QuadraticReward(*(fields[name] for name in shapes)), densities


def quadratic_of(reward: Any) -> QuadraticReward | None:
    """The reward as one quadratic, None if it is none."""
    terms = reward.terms if isinstance(reward, RewardSum) else (reward,)
    if not all(isinstance(term, QuadraticReward) for term in terms):
        return None
    return split(reward)[0]


def powers(
    densities: Sequence[LogDensityReward], beta: Array, batch: tuple[int, ...], size: int, most: int
) -> Powers:
    """``Π q^{scale/β}`` of log-density rewards, one term equal to 1 where there are none."""
    dtype = beta.dtype
    columns = [_expanded(term, beta, most) for term in densities]
    total = math.prod(map(len, columns))
    if total > most:
        raise ValueError(
            f"the target is a mixture of {total:,} products per component of the reference, more "
            f"than max_terms={most:,}: raise it, or use a larger beta"
        )
    chosen = list(itertools.product(*columns))
    counts = tuple(sum((own for own, _ in row), start=()) for row in chosen)
    log_count = tuple(math.fsum(log for _, log in row) for row in chosen)
    fields: list[list[Array]] = [[], [], []]
    for term in densities:
        weights, means, factors = (x.astype(dtype) for x in term.mixture._broadcast())
        parts = (weights, means, inverse_lower(factors))
        for kept, x in zip(fields, parts, strict=True):
            own = x.shape[len(term.batch_shape) :]
            kept.append(jnp.broadcast_to(x, (*batch, *own)))
    empty = [(*batch, 0), (*batch, 0, size), (*batch, 0, size, size)]
    joined = [
        jnp.concatenate([jnp.zeros(shape, dtype), *kept], axis=len(batch))
        for shape, kept in zip(empty, fields, strict=True)
    ]
    return Powers(*joined, counts=counts, log_count=log_count)


def _exponent(term: LogDensityReward, beta: Array) -> int:
    """``scale/β``, which must be one whole number for all β."""
    if traced(beta):
        raise TypeError(
            "beta must be concrete with a LogDensityReward: how often its components are "
            "multiplied decides the shape of the target"
        )
    betas = np.unique(np.asarray(beta, np.float64))
    exponents = term.scale / betas
    whole = np.rint(exponents)
    # A float32 beta holds 1/3 with an error of its own precision.
    exact = np.abs(exponents - whole) <= 8 * float(jnp.finfo(beta.dtype).eps) * whole
    if whole.size != 1 or not exact.all() or whole[0] < 1:
        shown = ", ".join(f"{x:.6g}" for x in exponents[:3])
        raise ValueError(
            "scale/beta must be one whole number of 1 or more for a LogDensityReward, got "
            f"{shown}: other powers of a mixture are none; solve_on_grid and solve_on_samples "
            "take any"
        )
    return int(whole[0])


def _expanded(
    term: LogDensityReward, beta: Array, most: int
) -> list[tuple[tuple[int, ...], float]]:
    """How often each component occurs in the products of ``q^{scale/β}``, and log how many."""
    count, power = term.mixture.num_components, _exponent(term, beta)
    number = math.comb(count + power - 1, power)
    if number > most:
        raise ValueError(
            f"the power {power} of a mixture of {count} components has {number:,} terms, more than "
            f"max_terms={most:,}: raise it, or use a larger beta"
        )
    rows = []
    for drawn in itertools.combinations_with_replacement(range(count), power):
        row = tuple(drawn.count(i) for i in range(count))
        ways = math.lgamma(power + 1) - math.fsum(math.lgamma(n + 1) for n in row)
        rows.append((row, ways))
    return rows
