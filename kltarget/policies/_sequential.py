"""What every step-by-step policy shares: sampling, and conditionals computed depth by depth."""

from __future__ import annotations

import abc
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kltarget._core.numerics import working_dtype
from kltarget.spaces._sequences import position_sizes, require_eos, require_sizes


class Sequential(abc.ABC):
    """A policy that reads one token at a time.

    A subclass says what it knows before the first token (:meth:`_start`), how a token changes that
    (:meth:`_advance`) and what it makes the next token (:meth:`_logits`). Whatever it knows is a
    pytree of arrays whose first axis runs over prefixes.
    """

    vocab_size: int | tuple[int, ...]
    length: int
    eos: int | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of tokens to choose from at each position, L integers."""
        return position_sizes(self.vocab_size, self.length)

    @property
    def max_size(self) -> int:
        """The largest of ``sizes``, the number of tokens that layers read and score."""
        return max(self.sizes)

    @abc.abstractmethod
    def _start(self, params: Any) -> Any:
        """The state before the first token, of one prefix."""

    @abc.abstractmethod
    def _advance(self, params: Any, state: Any, tokens: Array, depth: Any) -> Any:
        """The state of prefixes ``[N]`` of ``depth`` tokens after one more, ``tokens [N]``."""

    @abc.abstractmethod
    def _logits(self, params: Any, state: Any) -> Array:
        """Logits of the next token, ``[N, max_size]``."""

    @abc.abstractmethod
    def _teacher_forced(self, params: Any, tokens: Array) -> Array:
        """Logits ``[N, L, max_size]`` at every prefix of sequences ``[N, L]``."""

    def _tree_of_logits(self, params: Any) -> list[Array]:
        """Logits ``[V**t, max_size]`` at every prefix of every depth t."""
        state = self._start(params)
        levels = [self._logits(params, state)]
        for depth, size in enumerate(self.sizes[:-1]):
            state = jax.tree.map(lambda x, size=size: jnp.repeat(x, size, axis=0), state)
            tokens = jnp.tile(jnp.arange(size, dtype=jnp.int32), math.prod(self.sizes[:depth]))
            state = self._advance(params, state, tokens, jnp.int32(depth))
            levels.append(self._logits(params, state))
        return levels

    def log_probs(self, params: Any, tokens: Int[Array, "*batch L"]) -> Float[Array, "*batch L"]:
        """The log-probability of each token given those before it, shape ``[*batch, L]``."""
        tokens = jnp.asarray(tokens)
        if tokens.ndim == 0 or tokens.shape[-1] != self.length:
            raise ValueError(
                f"tokens has shape {tokens.shape}, but this policy's sequences have length "
                f"{self.length}: its last axis must have that size"
            )
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
        return _log_probs(self, params, tokens)

    def next_log_probs(
        self, params: Any, tokens: Int[Array, "*batch L"]
    ) -> Float[Array, "*batch L V"]:
        """The log-probability of every token after each prefix, shape ``[*batch, L, V]``."""
        tokens = jnp.asarray(tokens)
        if tokens.ndim == 0 or tokens.shape[-1] != self.length:
            raise ValueError(
                f"tokens has shape {tokens.shape}: its last axis must be {self.length}"
            )
        return _next_log_probs(self, params, tokens)

    def sample(
        self, params: Any, *, key: PRNGKeyArray, num_samples: int
    ) -> Int[Array, "num_samples L"]:
        """Independent sequences from the policy, int32 ``[num_samples, L]``."""
        return _sample(self, params, key, num_samples)[0]

    def sample_and_log_probs(
        self, params: Any, *, key: PRNGKeyArray, num_samples: int
    ) -> tuple[Int[Array, "num_samples L"], Float[Array, "num_samples L"]]:
        """What ``sample`` draws and its ``log_probs``, which are differentiable, in one pass."""
        return _sample(self, params, key, num_samples)

    def conditionals(self, params: Any, space: Any) -> tuple[Float[Array, "prefixes V"], ...]:
        """Next-token log-probabilities at every prefix: for each depth t an array ``[V**t, V]``.

        With one vocabulary size per position ``V**t`` stands for the product of the first t and V
        for the next. What is computed at a prefix is reused by all of its continuations.

        Args:
            params: the policy's parameters.
            space: a sequence space of the policy's vocabulary, length and end-of-sequence token.

        Returns:
            L arrays, prefixes in lexicographic order.

        Raises:
            ValueError: the space's sequences are not those of the policy.
        """
        check_space(self, space)
        return _conditionals(self, params)


def check_space(policy: Any, space: Any) -> None:
    """Raises unless the sequences of a space are those of a policy."""
    for name, part in (("length", "length"), ("vocab_size", "sizes"), ("eos", "eos")):
        if getattr(policy, part) != getattr(space, part):
            own, given = getattr(policy, name), getattr(space, name)
            raise ValueError(
                f"the space has {name}={given} and the policy {name}={own}: "
                "both must describe the same sequences"
            )


def check_sizes(policy: Any, *names: str) -> None:
    """Raises unless the named fields are whole numbers above 0 and ``eos`` is a token."""
    for name in ("vocab_size", "length", *names):
        value = getattr(policy, name)
        each = value if name == "vocab_size" and isinstance(value, tuple) else (value,)
        if not all(isinstance(x, int) and x >= 1 for x in each):
            raise ValueError(f"{name} must be an integer of 1 or more, got {value!r}")
    require_sizes(policy.vocab_size, policy.length)
    if policy.eos is not None:
        require_eos(policy.vocab_size, policy.eos)


def of_position(policy: Sequential, logits: Array, depth: Any) -> Array:
    """Logits ``[..., max_size]`` with ``-inf`` at tokens that their position does not have."""
    if not isinstance(policy.vocab_size, tuple):
        return logits
    own = jnp.array(np.arange(policy.max_size) < np.array(policy.sizes)[:, None])[depth]
    return jnp.where(jnp.broadcast_to(own, logits.shape), logits, jnp.full_like(logits, -jnp.inf))


def next_token(policy: Any, logits: Array, finished: Array) -> Array:
    """Log-probabilities of the next token; after the end of a sequence only ``eos`` follows."""
    log_probs = jax.nn.log_softmax(logits.astype(working_dtype(logits.dtype)), axis=-1)
    if policy.eos is None:
        return log_probs
    is_eos = jnp.arange(logits.shape[-1]) == policy.eos
    after = jnp.where(is_eos, 0.0, -jnp.inf).astype(log_probs.dtype)
    after = jnp.broadcast_to(after, log_probs.shape)
    return jnp.where(finished[..., None], after, log_probs)


def normal(key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int) -> Array:
    """Initial weights of variance ``1/fan_in``."""
    return jax.random.normal(key, shape) / math.sqrt(fan_in)


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(policy: Any, params: Any, tokens: Array) -> Array:
    log_probs = _next_log_probs(policy, params, tokens)
    return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


@functools.partial(jax.jit, static_argnums=0)
def _next_log_probs(policy: Any, params: Any, tokens: Array) -> Array:
    flat = tokens.reshape(-1, policy.length)
    before = jnp.zeros_like(flat, dtype=bool)
    if policy.eos is not None:
        ended = jnp.cumsum((flat == policy.eos).astype(jnp.int32), axis=-1) > 0
        before = jnp.concatenate([before[:, :1], ended[:, :-1]], axis=-1)
    logits = of_position(policy, policy._teacher_forced(params, flat), jnp.arange(policy.length))
    log_probs = next_token(policy, logits, before)
    return log_probs.reshape(*tokens.shape, -1)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _sample(policy: Any, params: Any, key: PRNGKeyArray, num_samples: int) -> tuple[Array, Array]:
    start = policy._start(params)
    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_samples, *x.shape[1:])), start)

    def draw(state: Any, finished: Array, key: Any, depth: Any) -> tuple[Array, Array, Array]:
        logits = of_position(policy, policy._logits(params, state), depth)
        log_probs = next_token(policy, logits, finished)
        token = jax.random.categorical(key, lax.stop_gradient(log_probs), axis=-1).astype(jnp.int32)
        own = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
        return token, own, finished if policy.eos is None else finished | (token == policy.eos)

    def step(carry: Any, xs: Any) -> Any:
        token, own, finished = draw(*carry, *xs)
        return (policy._advance(params, carry[0], token, xs[1]), finished), (token, own)

    keys = jax.random.split(key, policy.length)
    depths = jnp.arange(policy.length, dtype=jnp.int32)
    carry = (start, jnp.zeros(num_samples, bool))
    # Nothing reads the last token.
    carry, drawn = lax.scan(step, carry, (keys[:-1], depths[:-1]))
    last = draw(*carry, keys[-1], depths[-1])[:2]
    tokens, log_probs = (jnp.concatenate([x, y[None]]).T for x, y in zip(drawn, last, strict=True))
    return tokens, log_probs


@functools.partial(jax.jit, static_argnums=0)
def _conditionals(policy: Any, params: Any) -> tuple[Array, ...]:
    finished, levels = jnp.zeros(1, bool), []
    for size, logits in zip(policy.sizes, policy._tree_of_logits(params), strict=True):
        levels.append(next_token(policy, logits[..., :size], finished))
        finished = jnp.repeat(finished, size)
        if policy.eos is not None:
            finished = finished | (jnp.arange(finished.size) % size == policy.eos)
    return tuple(levels)
