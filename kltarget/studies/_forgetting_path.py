"""Learning a new mode and forgetting the old one, step by step."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from kltarget._core.checks import positive, positive_if_given, typed_key
from kltarget._core.numerics import as_float
from kltarget._core.pytrees import pytree
from kltarget.spaces import Box, GaussianMixture
from kltarget.spaces._gaussian_mixture import unchecked
from kltarget.studies._at_equal_gain import AtEqualGain

if TYPE_CHECKING:  # tasks are trained on, and themselves know the trainers
    from kltarget.studies._forgetting import Forgetting

# The numbers of the published code: what keeps its logarithms and ratios finite, and the factor of
# the new mode's density in the reward.
_FLOOR, _TINY, _FACTOR = math.log(1e-12), -300 * math.log(10), math.log(0.1)


@pytree
class ForgettingPath(AtEqualGain):
    """Policies on their way from one mode to two; axes ``*batch`` run over runs, T over steps.

    Attributes:
        params: w, μ₁, σ₁, μ₂, σ₂ before the first and after every step, ``[*batch, T + 1, 5]``.
        overlap_old: how much of the old mode is covered, ``[*batch, T + 1]``.
        overlap_new: how much of the new one.
    """

    params: Float[Array, "*batch T 5"]
    overlap_old: Float[Array, "*batch T"]
    overlap_new: Float[Array, "*batch T"]

    @property
    def mixtures(self) -> GaussianMixture:
        """The policies, with batch axes ``[*batch, T + 1]``."""
        return _mixture(self.params)

    def _mastered(self) -> tuple[Array, Array]:
        return self.overlap_old, self.overlap_new


def forgetting_path(
    task: Forgetting,
    method: str,
    *,
    learning_rate: ArrayLike,
    num_steps: int = 200,
    rates: tuple[float, ...] = (0.005, 0.005, 0.005, 1.0, 1.0),
    key: PRNGKeyArray | None = None,
    batch_size: int | None = None,
    grid: Box | None = None,
) -> ForgettingPath:
    """The published updates of a two-mode policy that learns a new mode.

    The policy ``q = w N(μ₁, σ₁²) + (1 − w) N(μ₂, σ₂²)`` follows, with q₂ the density of its second
    component and p₂ that of the task's new mode,

    - ``"sft"``: the gradient of ``E_{p₂}[log q]``, maximum likelihood on samples of the new mode;
    - ``"rl"``: ``E_{q₂}[ρ R ∇log q]``, the score function with samples of its second component
      alone, the importance weight ``ρ = q/((1 − w) q₂)`` and the reward
      ``R = log p₂ − log((1 − w) q₂) − log 0.1``, whose gradient descends the reverse KL to a
      new mode of ten times its mass.

    Parameters move by ``learning_rate · rates`` times that, and w is kept from 0.001 to 0.999. As
    published, 1e-12 is added to q, to ρ's denominator and inside R's logarithm.

    With ``batch_size``, ``"rl"`` sees only where q₂ has mass: at the other mode ρ has practically
    infinite variance, so that sampled runs are no unbiased picture of the path in expectation.

    Args:
        task: a :class:`kltarget.studies.Forgetting`.
        method: ``"sft"`` or ``"rl"``.
        learning_rate: any shape; broadcasts with ``key`` to ``*batch``, one run per entry.
        num_steps: number of steps T.
        rates: factors of the learning rate of w, μ₁, σ₁, μ₂, σ₂. As published the weight and the
            old mode are slow; with five equal ones all parameters move as their gradients say.
        key: random keys; needed with ``batch_size``.
        batch_size: samples per step; None for expectations by quadrature.
        grid: the points of that quadrature, by default those of the task.

    Returns:
        The policies and what they cover of either mode. NaN from where a path leads to a standard
        deviation below 0.

    Raises:
        ValueError: an unknown method, numbers out of range, a missing key, axes that do not
            broadcast, a grid of several dimensions.

    Composes with ``jit`` and ``vmap``, and is differentiable in the learning rate.

    Example:
        At equal gain supervised fine-tuning has forgotten more:

        >>> from kltarget import studies
        >>> from kltarget.studies import forgetting_path
        >>> task = studies.forgetting()
        >>> for method, rate in (("sft", 0.15), ("rl", 0.01)):
        ...     path = forgetting_path(task, method, learning_rate=rate)
        ...     print(f"{path.steps_to(0.9)} steps, {path.loss_at(0.9):.3f} forgotten")
        85 steps, 0.126 forgotten
        110 steps, 0.073 forgotten

    References:
        Chen, Razin, Narasimhan, Chen, "Retaining by Doing: The Role of On-Policy Data in Mitigating
        Forgetting", 2025, arXiv 2510.18874.
    """
    if method not in ("sft", "rl"):
        raise ValueError(f"method must be one of 'sft', 'rl', got {method!r}")
    positive("num_steps", num_steps)
    positive_if_given("batch_size", batch_size)
    if (batch_size is None) != (key is None):
        raise ValueError("key and batch_size belong together: give both, or neither for quadrature")
    if len(rates) != 5:
        raise ValueError(f"rates needs five numbers, for w, μ₁, σ₁, μ₂ and σ₂, got {rates}")
    grid = task.space if grid is None else grid
    if grid.dim != 1:
        raise ValueError(f"grid has {grid.dim} dimensions: it needs one, as the modes have")
    dtype = task.start.means.dtype
    rate = as_float(learning_rate).astype(dtype)
    keys = None if key is None else typed_key(key)
    shape = () if keys is None else keys.shape
    try:
        batch = jnp.broadcast_shapes(rate.shape, shape)
    except ValueError:
        raise ValueError(
            f"the batch axes of learning_rate {rate.shape} and key {shape} do not broadcast"
        ) from None
    runs = [None if x is None else jnp.broadcast_to(x, batch).reshape(-1) for x in (rate, keys)]
    static = (method, num_steps, batch_size, grid)
    path = _paths(static, task, jnp.asarray(rates, dtype), *runs)
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), path)


@functools.partial(jax.jit, static_argnums=0)
def _paths(static: Any, task: Forgetting, rates: Array, rate: Array, keys: Any) -> ForgettingPath:
    method, num_steps, batch_size, grid = static
    new = jnp.stack([task.target.means[1, 0], task.target.cholesky[1, 0, 0]])
    points = grid.points()[:, 0].astype(rates.dtype)
    log_weights = grid.log_weights().astype(rates.dtype)

    def ascent(params: Array, fixed: Array, key: Any) -> Array:
        """What is ascended in ``params``; samples and what weighs them are of ``fixed``."""
        mean, std = new if method == "sft" else fixed[3:]
        if batch_size is None:
            x = points
            share = jnp.exp(_log_density(x, mean, std) + log_weights)
        else:
            x = mean + std * jax.random.normal(key, (batch_size,), rates.dtype)
            share = jnp.full(batch_size, 1 / batch_size, rates.dtype)
        if method == "rl":
            second = _log_parts(fixed, x)[1]
            importance = jnp.exp(_log_policy(fixed, x) - jnp.logaddexp(second, _FLOOR))
            ratio = _log_density(x, *new) - jnp.logaddexp(second, _TINY) - _FACTOR
            share = share * importance * jnp.logaddexp(ratio, _FLOOR)
        return jnp.sum(share * _log_policy(params, x))

    def one(rate: Array, key: Any) -> Any:
        def step(params: Array, time: Array) -> tuple[Array, Any]:
            drawn = None if key is None else jax.random.fold_in(key, time)
            moved = params + rate * rates * jax.grad(ascent)(params, params, drawn)
            moved = moved.at[0].set(jnp.clip(moved[0], 1e-3, 1 - 1e-3))
            return moved, (params, *task.overlap(_mixture(params)))

        weight = jnp.exp(task.start.log_weights[:1])
        modes = jnp.stack([task.start.means[:, 0], task.start.cholesky[:, 0, 0]], axis=-1)
        start = jnp.concatenate([weight, modes.reshape(-1)])
        # One step more, of which nothing but its beginning is kept.
        return lax.scan(step, start, jnp.arange(num_steps + 1))[1]

    return ForgettingPath(*jax.vmap(one)(rate, keys))


def _mixture(params: Array) -> GaussianMixture:
    weight = params[..., :1]
    log_weights = jnp.concatenate([jnp.log(weight), jnp.log1p(-weight)], axis=-1)
    return unchecked(log_weights, params[..., 1::2, None], params[..., 2::2, None, None])


def _log_density(x: Array, mean: Array, std: Array) -> Array:
    return -jnp.square((x - mean) / std) / 2 - jnp.log(std) - math.log(2 * math.pi) / 2


def _log_parts(params: Array, x: Array) -> tuple[Array, Array]:
    """Log-densities of both components with their weights."""
    weight, *modes = params
    return (
        jnp.log(weight) + _log_density(x, *modes[:2]),
        jnp.log1p(-weight) + _log_density(x, *modes[2:]),
    )


def _log_policy(params: Array, x: Array) -> Array:
    return jnp.logaddexp(jnp.logaddexp(*_log_parts(params, x)), _FLOOR)
