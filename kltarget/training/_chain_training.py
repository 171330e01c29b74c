"""Training of the steps of a chain by gradients of the objective of its paths."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from kltarget._core.checks import float_arguments, positive, raise_first, typed_key, worded
from kltarget._core.matrices import cholesky, diagonal, inverse_lower, product, times, transposed
from kltarget._core.pytrees import made, pytree
from kltarget.objectives._point_rewards import QuadraticReward
from kltarget.spaces import Chain, GaussianChain
from kltarget.spaces._gaussian_chains import paths_of
from kltarget.spaces._widened_chains import widened


@pytree
class ChainRun:
    """Trained chains and how their training went.

    Attributes:
        chain: the trained chains, of batch shape ``[num_seeds, *batch]``.
        objective: of discrete chains the objective itself, of Gaussian ones its estimate from the
            step's paths, in reward units, before each step, ``[num_steps, num_seeds, *batch]``.
    """

    chain: Any
    objective: Float[Array, "steps seeds *batch"]


def fine_tune_chain(
    chain: Chain | GaussianChain,
    reward: ArrayLike | QuadraticReward,
    beta: ArrayLike,
    *,
    learning_rate: float,
    num_steps: int,
    tilt_first: bool = True,
    key: PRNGKeyArray | None = None,
    num_seeds: int = 1,
    batch_size: int = 256,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam,
) -> ChainRun:
    """Trains the steps of a chain, all problems and seeds in one program.

    Ascends ``E_π[r(x_0)] − β Σ_t E_π[KL(π(·|x_t)‖p(·|x_t))]``, with the KL of the first law where
    that may move. Of discrete chains the parameters are logits for every step and state, and the
    gradient is exact, by differentiation through the marginals. Of Gaussian chains they are the
    linear maps, offsets and noises of the steps, and the gradient is pathwise: that of rewards of
    reparameterised paths.

    Args:
        chain: p, where training starts; from the second seed on next to it.
        reward: of the last state, ``[*batch, S]`` and finite; of a Gaussian chain a
            :class:`kltarget.mixtures.QuadraticReward`.
        beta: coefficient, in reward units per nat, ``[*batch]``.
        learning_rate: what ``optimizer`` is called with.
        num_steps: number of gradient steps.
        tilt_first: whether the law of the first state is trained too.
        key: a random key; needed for Gaussian chains and for several seeds.
        num_seeds: how many chains per problem.
        batch_size: paths per step, of Gaussian chains, in pairs of opposite noise.
        optimizer: makes an optax transformation from a learning rate.

    Returns:
        The trained chains and the objective along the way.

    Raises:
        TypeError: no chain.
        ValueError: shapes that do not fit, values out of range, a missing key.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import Chain
        >>> from kltarget.training import fine_tune_chain
        >>> first = jnp.log(jnp.array([0.5, 0.5]))
        >>> steps = jnp.log(jnp.array([[[0.8, 0.2], [0.3, 0.7]], [[0.9, 0.1], [0.2, 0.8]]]))
        >>> reward = jnp.array([1.0, 0.0])
        >>> run = fine_tune_chain(
        ...     Chain(first, steps), reward, 0.5, learning_rate=0.05, num_steps=300
        ... )
        >>> print([f"{p:.3f}" for p in jnp.exp(run.chain.log_marginals()[0, -1])])
        ['0.912', '0.088']
    """
    positive("num_steps", num_steps)
    positive("num_seeds", num_seeds)
    positive("batch_size", batch_size, 2)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be above 0, got {learning_rate}")
    if not isinstance(chain, (Chain, GaussianChain)):
        raise TypeError(f"chain must be a Chain or a GaussianChain of kltarget.spaces: {chain!r}")
    gaussian = isinstance(chain, GaussianChain)
    if key is None and (gaussian or num_seeds > 1):
        raise ValueError("key is needed for samples and for several seeds: key=jax.random.key(0)")
    if gaussian != isinstance(reward, QuadraticReward):
        raise ValueError(
            "reward must be a QuadraticReward for a GaussianChain and an array for a Chain"
        )
    dtype_of = chain.mean if isinstance(chain, GaussianChain) else chain.log_initial
    beta = float_arguments(beta=beta, chain=dtype_of)["beta"]
    raise_first("beta", beta, ~((beta > 0) & jnp.isfinite(beta)), "must be above 0 and finite")
    if isinstance(reward, QuadraticReward):
        size, given = reward.dim, reward.batch_shape
        wanted = chain.dim if isinstance(chain, GaussianChain) else size
    else:
        reward = float_arguments(reward=reward, chain=dtype_of)["reward"]
        size, given = reward.shape[-1] if reward.ndim else 0, reward.shape[:-1]
        wanted = chain.num_states if isinstance(chain, Chain) else size
        raise_first("reward", reward, ~jnp.isfinite(reward), "must be finite to be trained on")
    if size != wanted:
        raise ValueError(f"reward has {size} on its last axis and the chain {wanted}")
    with worded("the batch axes of the chain, reward and beta do not broadcast"):
        batch = jnp.broadcast_shapes(chain.batch_shape, given, beta.shape)
    start = jax.random.key(0) if key is None else typed_key(key)
    rate = jnp.asarray(learning_rate, beta.dtype)
    program = ((num_seeds, *batch), num_steps, tilt_first, batch_size, optimizer)
    return ChainRun(*_train(chain, reward, beta, rate, start, *program))


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8, 9))
def _train(
    chain: Any,
    reward: Any,
    beta: Array,
    rate: Array,
    key: Array,
    shape: tuple[int, ...],
    num_steps: int,
    tilt_first: bool,
    batch_size: int,
    optimizer: Any,
) -> tuple[Any, Array]:
    gaussian = isinstance(chain, GaussianChain)
    reference = widened(chain, shape)
    beta = jnp.broadcast_to(beta, shape)
    start_key, key = jax.random.split(key)
    params = _beside(_params(reference, tilt_first), start_key)
    method = optimizer(rate)
    chain_of: Callable[..., Any] = _gaussian if gaussian else _discrete
    worth: Callable[..., Array] = _pathwise if gaussian else _exact

    def loss(params: Any, key: Array) -> tuple[Array, Array]:
        value = worth(chain_of(params, reference), reference, reward, beta, key, batch_size)
        return -value.sum(), value

    def step(state: Any, time: Array) -> tuple[Any, Array]:
        params, memory = state
        slopes, value = jax.grad(loss, has_aux=True)(params, jax.random.fold_in(key, time))
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = method.update(slopes, memory, params)
            return (optax.apply_updates(params, updates), memory), value

    with jax.numpy_dtype_promotion("standard"):
        memory = method.init(params)
    (params, _), values = lax.scan(step, (params, memory), jnp.arange(num_steps))
    return chain_of(params, reference), values


def _params(chain: Any, tilt_first: bool) -> dict[str, Array]:
    if isinstance(chain, Chain):
        first, steps = {"log_initial": chain.log_initial}, {"log_kernels": chain.log_kernels}
        both = {**steps, **(first if tilt_first else {})}
        # What is impossible has no logit that training moves.
        return {name: jnp.where(x > -jnp.inf, x, 0.0) for name, x in both.items()}
    steps = {
        "matrices": chain.matrices,
        "offsets": chain.offsets,
        "noises": _unbounded(chain.covariances),
    }
    return {
        **steps,
        **({"mean": chain.mean, "noise": _unbounded(chain.covariance)} if tilt_first else {}),
    }


def _beside(params: dict[str, Array], key: Array) -> dict[str, Array]:
    """The first seed starts at the reference, the others next to it."""
    keys = jax.random.split(key, len(params))

    def moved(x: Array, key: Array) -> Array:
        apart = 0.1 * jax.random.normal(key, x.shape, x.dtype)
        return x + apart.at[0].set(0.0)

    return {name: moved(x, k) for (name, x), k in zip(params.items(), keys, strict=True)}


def _discrete(params: dict[str, Array], reference: Chain) -> Chain:
    def law(name: str) -> Array:
        ref = getattr(reference, name)
        if name not in params:
            return ref
        return jax.nn.log_softmax(jnp.where(ref > -jnp.inf, params[name], -jnp.inf), axis=-1)

    return made(Chain, log_initial=law("log_initial"), log_kernels=law("log_kernels"))


def _exact(
    policy: Chain, reference: Chain, reward: Array, beta: Array, key: Array, batch_size: int
) -> Array:
    del key, batch_size
    first = jnp.exp(policy.log_initial)
    kernels = jnp.moveaxis(policy.log_kernels, -3, 0)
    cost = jnp.moveaxis(_cost(policy.log_kernels, reference.log_kernels), -2, 0)

    def step(state: tuple[Array, Array], given: tuple[Array, Array]) -> tuple[Any, None]:
        (mass, paid), (log_kernel, price) = state, given
        after = jnp.einsum("...s,...st->...t", mass, jnp.exp(log_kernel), precision="highest")
        return (after, paid + (mass * price).sum(-1)), None

    paid = _cost(policy.log_initial, reference.log_initial)
    (last, paid), _ = lax.scan(step, (first, paid), (kernels, cost))
    return (last * jnp.broadcast_to(reward, last.shape)).sum(-1) - beta * paid


def _cost(log_p: Array, log_q: Array) -> Array:
    some = (log_p > -jnp.inf) & (log_q > -jnp.inf)
    ratio = jnp.where(some, log_p, 0.0) - jnp.where(some, log_q, 0.0)
    return (jnp.where(some, jnp.exp(jnp.where(some, log_p, 0.0)), 0.0) * ratio).sum(-1)


def _unbounded(covariance: Array) -> Array:
    """A lower factor with the logarithm of its diagonal."""
    factor = cholesky(covariance)
    eye = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=bool), factor.shape)
    return jnp.where(eye, jnp.log(jnp.where(eye, factor, 1.0)), factor)


def _covariance(noise: Array) -> Array:
    size = noise.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(size, dtype=bool), noise.shape)
    below = jnp.broadcast_to(jnp.tril(jnp.ones((size, size), bool), -1), noise.shape)
    factor = jnp.where(eye, jnp.exp(jnp.where(eye, noise, 0.0)), jnp.where(below, noise, 0.0))
    return product(factor, transposed(factor))


def _gaussian(params: dict[str, Array], reference: GaussianChain) -> GaussianChain:
    free = "mean" in params
    return made(
        GaussianChain,
        mean=params["mean"] if free else reference.mean,
        covariance=_covariance(params["noise"]) if free else reference.covariance,
        matrices=params["matrices"],
        offsets=params["offsets"],
        covariances=_covariance(params["noises"]),
    )


def _pathwise(
    policy: GaussianChain,
    reference: GaussianChain,
    reward: QuadraticReward,
    beta: Array,
    key: Array,
    batch_size: int,
) -> Array:
    shape = (batch_size // 2, *beta.shape, policy.num_steps + 1, policy.dim)
    half = jax.random.normal(key, shape, policy.mean.dtype)
    paths = paths_of(policy, jnp.concatenate([half, -half]))
    before = paths[..., :-1, :]

    def wide(x: Array) -> Array:
        return jnp.broadcast_to(x, (paths.shape[0], *x.shape))

    apart = times(wide(policy.matrices - reference.matrices), before)
    apart = apart + wide(policy.offsets - reference.offsets)
    whiten = inverse_lower(cholesky(reference.covariances))
    moved = jnp.square(times(wide(whiten), apart)).sum((-1, -2)).mean(0) / 2
    steps = _noise_cost(policy.covariances, reference.covariances).sum(-1)
    own = inverse_lower(cholesky(reference.covariance))
    first = jnp.square(times(own, policy.mean - reference.mean)).sum(-1) / 2
    first = first + _noise_cost(policy.covariance, reference.covariance)
    gained = reward(paths[..., -1, :]).mean(0)
    return gained - beta * (first + steps + moved)


def _noise_cost(own: Array, other: Array) -> Array:
    """KL of Gaussians of one mean."""
    whiten = inverse_lower(cholesky(other))
    inner = product(whiten, product(own, transposed(whiten)))
    log_own, log_other = (jnp.log(diagonal(cholesky(x))).sum(-1) for x in (own, other))
    return (diagonal(inner).sum(-1) - own.shape[-1]) / 2 + log_other - log_own
