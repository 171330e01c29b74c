"""Chains of steps, as denoising is: a first state, and a kernel for every step after it."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from kltarget._core.checks import (
    at_index,
    first_index,
    float_arguments,
    positive,
    require_normalized,
    traced,
    typed_key,
    worded,
)
from kltarget._core.numerics import log_sum_exp
from kltarget._core.pytrees import register
from kltarget._core.short_repr import short_repr


class Step(NamedTuple):
    """One step of a chain as a layer that is walked backwards: a node is a state.

    Attributes:
        log_ref: log-probabilities of the next state from each, ``[*batch, S, S]``.
    """

    log_ref: Float[Array, "*batch S S"]

    def children(self, values: Float[Array, "*batch S"]) -> Float[Array, "*batch S S"]:
        """The next states' values, the same from every state."""
        states = values.shape[-1]
        return jnp.broadcast_to(values[..., None, :], (*values.shape[:-1], states, states))


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """A chain ``x_T → x_{T−1} → … → x_0`` over S states, with a kernel for each of its T steps.

    Args:
        log_initial: log-probabilities of the first state ``x_T``, ``[*batch, S]``.
        log_kernels: log-probabilities of the next state from each, ``[*batch, T, S, S]``, the step
            from ``x_T`` first.

    Paths are arrays of states ``[..., T + 1]`` in the order in which they are visited: ``x_T``
    first, ``x_0``, which is what is generated, last. ``-inf`` is a step that is impossible.

    Raises:
        ValueError: shapes that do not fit; outside a trace, rows that do not sum to one.

    Differentiable in both arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from kltarget.spaces import Chain
        >>> first = jnp.log(jnp.array([0.5, 0.5]))
        >>> steps = jnp.log(jnp.array([[[0.8, 0.2], [0.3, 0.7]], [[0.9, 0.1], [0.2, 0.8]]]))
        >>> chain = Chain(first, steps)
        >>> print([f"{p:.3f}" for p in jnp.exp(chain.log_marginals()[-1])])
        ['0.585', '0.415']
    """

    __repr__ = short_repr

    if TYPE_CHECKING:  # anything that becomes an array may be given; arrays are what is kept

        def __init__(self, log_initial: ArrayLike | Any, log_kernels: ArrayLike | Any) -> None: ...

    log_initial: Float[Array, "*#batch S"]
    log_kernels: Float[Array, "*#batch T S S"]

    def __post_init__(self) -> None:
        arrays = float_arguments(log_initial=self.log_initial, log_kernels=self.log_kernels)
        initial, kernels = arrays.values()
        if initial.ndim < 1 or not initial.shape[-1]:
            raise ValueError(f"log_initial needs a last axis of states, got shape {initial.shape}")
        states = initial.shape[-1]
        if kernels.ndim < 3 or kernels.shape[-2:] != (states, states) or not kernels.shape[-3]:
            raise ValueError(
                f"log_kernels has shape {kernels.shape}, but log_initial has {states} states: it "
                f"needs shape [*batch, T, {states}, {states}] with at least one step"
            )
        with worded(
            f"the batch axes of log_initial {initial.shape[:-1]} and log_kernels "
            f"{kernels.shape[:-3]} do not broadcast"
        ):
            jnp.broadcast_shapes(initial.shape[:-1], kernels.shape[:-3])
        for name, x in arrays.items():
            if not traced(x) and np.isnan(np.asarray(x)).any():
                at = at_index(first_index(np.isnan(np.asarray(x))))
                raise ValueError(f"{name} is NaN{at}: give log-probabilities, -inf for impossible")
        require_normalized(log_initial=initial, log_kernels=kernels)
        for name, x in arrays.items():
            object.__setattr__(self, name, x)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape ``*batch`` that both arrays broadcast to."""
        return jnp.broadcast_shapes(self.log_initial.shape[:-1], self.log_kernels.shape[:-3])

    @property
    def num_states(self) -> int:
        """The number S of states."""
        return self.log_initial.shape[-1]

    @property
    def num_steps(self) -> int:
        """The number T of steps."""
        return self.log_kernels.shape[-3]

    def layers(self) -> tuple[Step, ...]:
        """The steps as layers for :func:`backward`, that from ``x_T`` first."""
        kernels = jnp.moveaxis(self.log_kernels, -3, 0)
        return tuple(Step(kernels[t]) for t in range(self.num_steps))

    def log_marginals(self) -> Float[Array, "*batch times S"]:
        """Log-probabilities of the states at each time, ``[*batch, T + 1, S]``, first to last."""
        return marginals_of(self)

    def log_prob(self, paths: ArrayLike) -> Float[Array, "..."]:
        """Log-probabilities of paths.

        Args:
            paths: states, integers ``[..., T + 1]``, the first state first.

        Returns:
            Shape ``[*batch, ...]``, of the paths' own axes last.
        """
        states = self.paths(paths)
        kernels = self.log_kernels[
            ..., jnp.arange(self.num_steps), states[..., :-1], states[..., 1:]
        ]
        steps, first = kernels.sum(-1), self.log_initial[..., states[..., 0]]
        own = states.ndim - 1
        shape = (*self.batch_shape, *states.shape[:-1])
        first, steps = (_among(x, own, len(self.batch_shape)) for x in (first, steps))
        return jnp.broadcast_to(first, shape) + jnp.broadcast_to(steps, shape)

    def paths(self, paths: ArrayLike) -> Int[Array, "... times"]:
        """Paths as arrays, or an error that says what is wrong with them."""
        states = jnp.asarray(paths)
        if not jnp.issubdtype(states.dtype, jnp.integer):
            raise TypeError(f"paths must be integers, got dtype {states.dtype}")
        if states.ndim == 0 or states.shape[-1] != self.num_steps + 1:
            raise ValueError(
                f"paths has shape {states.shape}, but the chain has {self.num_steps} steps: the "
                f"last axis must be {self.num_steps + 1}"
            )
        if not traced(states):
            outside = (np.asarray(states) < 0) | (np.asarray(states) >= self.num_states)
            if outside.any():
                at = first_index(outside)
                raise ValueError(
                    f"paths: there is no state {np.asarray(states)[at]}{at_index(at)}, only 0 to "
                    f"{self.num_states - 1}"
                )
        return states

    def sample(
        self, *, key: Shaped[Array, ""], num_samples: int
    ) -> Int[Array, "num_samples *batch times"]:
        """Independent paths, states of shape ``[num_samples, *batch, T + 1]``."""
        positive("num_samples", num_samples)
        return _sample(self, typed_key(key), num_samples)


register(Chain, ("log_initial", "log_kernels"))


def _among(x: Array, own: int, batch: int) -> Array:
    """An array ``[*some batch, *own]`` with as many batch axes as there are."""
    missing = batch - (x.ndim - own)
    return x.reshape(*(1,) * missing, *x.shape)


@jax.jit
def marginals_of(chain: Chain) -> Array:
    shape = (*chain.batch_shape, chain.num_states)
    first = jnp.broadcast_to(chain.log_initial, shape)

    def step(log_p: Array, kernel: Array) -> tuple[Array, Array]:
        pairs = jnp.broadcast_to(log_p[..., :, None], (*shape, chain.num_states))
        joint = pairs + jnp.broadcast_to(kernel, pairs.shape)
        after = log_sum_exp(jnp.swapaxes(joint, -1, -2))[..., 0]
        return after, after

    _, later = jax.lax.scan(step, first, jnp.moveaxis(chain.log_kernels, -3, 0))
    return jnp.moveaxis(jnp.concatenate([first[None], later]), 0, -2)


def _sample(chain: Chain, key: Array, num_samples: int) -> Array:
    shape = (num_samples, *chain.batch_shape)
    kernels = jnp.broadcast_to(
        chain.log_kernels, (*chain.batch_shape, *chain.log_kernels.shape[-3:])
    )
    first = jnp.broadcast_to(chain.log_initial, (*chain.batch_shape, chain.num_states))
    return draw_paths(first, jnp.moveaxis(kernels, -3, 0), key, shape)


@functools.partial(jax.jit, static_argnums=3)
def draw_paths(log_first: Array, kernels: Array, key: Array, shape: tuple[int, ...]) -> Array:
    """Paths of a first law ``[*batch, S]`` and kernels ``[T, *batch, S, S]``."""
    rows = jnp.meshgrid(*map(jnp.arange, shape), indexing="ij", sparse=True)[1:]
    begin, *keys = jax.random.split(key, kernels.shape[0] + 1)

    def step(state: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        kernel, key = given
        after = jax.random.categorical(key, kernel[(*rows, state)], axis=-1)
        return after, after

    state = jax.random.categorical(begin, log_first, axis=-1, shape=shape)
    _, later = jax.lax.scan(step, state, (kernels, jnp.stack(keys)))
    return jnp.moveaxis(jnp.concatenate([state[None], later]), 0, -1)
