"""What every step-by-step policy shares: sampling, and conditionals computed depth by depth."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kltarget._numerics import working_dtype


class Sequential:
    """A policy that reads one token at a time.

    A subclass says what it knows before the first token (:meth:`_start`), how a token changes that
    (:meth:`_advance`) and what it makes the next token (:meth:`_logits`). Whatever it knows is a
    pytree of arrays whose first axis runs over prefixes.
    """

    vocab_size: int
    length: int
    eos: int | None

    def _start(self, params: Any) -> Any:
        raise NotImplementedError

    def _advance(self, params: Any, state: Any, tokens: Array, depth: Any) -> Any:
        raise NotImplementedError

    def _logits(self, params: Any, state: Any) -> Array:
        raise NotImplementedError

    def _teacher_forced(self, params: Any, tokens: Array) -> Array:
        """Logits ``[N, L, V]`` at every prefix of sequences ``[N, L]``."""
        raise NotImplementedError

    def _tree_of_logits(self, params: Any) -> list[Array]:
        """Logits ``[V**t, V]`` at every prefix of every depth t."""
        state = self._start(params)
        levels = [self._logits(params, state)]
        for depth in range(self.length - 1):
            state = jax.tree.map(lambda x: jnp.repeat(x, self.vocab_size, axis=0), state)
            tokens = jnp.tile(jnp.arange(self.vocab_size, dtype=jnp.int32), self.vocab_size**depth)
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

    def sample(
        self, params: Any, *, key: PRNGKeyArray, num_samples: int
    ) -> Int[Array, "num_samples L"]:
        """Independent sequences from the policy, int32 ``[num_samples, L]``."""
        return _sample(self, params, key, num_samples)

    def conditionals(self, params: Any, space: Any) -> tuple[Float[Array, "prefixes V"], ...]:
        """Next-token log-probabilities at every prefix: for each depth t an array ``[V**t, V]``.

        What is computed at a prefix is computed once and reused by all of its continuations.

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
    for name in ("vocab_size", "length", "eos"):
        own, given = getattr(policy, name, None), getattr(space, name, None)
        if own != given:
            raise ValueError(
                f"the space has {name}={given} and the policy {name}={own}: "
                "both must describe the same sequences"
            )


def check_sizes(policy: Any, *names: str) -> None:
    """Raises unless the named fields are whole numbers above 0 and ``eos`` is a token."""
    for name in ("vocab_size", "length", *names):
        value = getattr(policy, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of 1 or more, got {value!r}")
    if policy.eos is not None and not 0 <= policy.eos < policy.vocab_size:
        raise ValueError(
            f"eos must be a token, from 0 to vocab_size − 1 = {policy.vocab_size - 1}, or None; "
            f"got {policy.eos!r}"
        )


def next_token(policy: Any, logits: Array, finished: Array) -> Array:
    """Log-probabilities of the next token; after the end of a sequence only ``eos`` follows."""
    log_probs = jax.nn.log_softmax(logits.astype(working_dtype(logits.dtype)), axis=-1)
    if policy.eos is None:
        return log_probs
    is_eos = jnp.arange(policy.vocab_size) == policy.eos
    after = jnp.where(is_eos, 0.0, -jnp.inf).astype(log_probs.dtype)
    after = jnp.broadcast_to(after, log_probs.shape)
    return jnp.where(finished[..., None], after, log_probs)


def normal(key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int) -> Array:
    """Initial weights of variance ``1/fan_in``."""
    return jax.random.normal(key, shape) / math.sqrt(fan_in)


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(policy: Any, params: Any, tokens: Array) -> Array:
    flat = tokens.reshape(-1, policy.length)
    before = jnp.zeros_like(flat, dtype=bool)
    if policy.eos is not None:
        ended = jnp.cumsum((flat == policy.eos).astype(jnp.int32), axis=-1) > 0
        before = jnp.concatenate([before[:, :1], ended[:, :-1]], axis=-1)
    log_probs = next_token(policy, policy._teacher_forced(params, flat), before)
    chosen = jnp.take_along_axis(log_probs, flat[..., None], axis=-1)
    return chosen.reshape(tokens.shape)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _sample(policy: Any, params: Any, key: PRNGKeyArray, num_samples: int) -> Array:
    start = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (num_samples, *x.shape[1:])), policy._start(params)
    )

    def step(carry: Any, xs: Any) -> Any:
        state, finished = carry
        key, depth = xs
        log_probs = next_token(policy, policy._logits(params, state), finished)
        token = jax.random.categorical(key, log_probs, axis=-1).astype(jnp.int32)
        finished = finished if policy.eos is None else finished | (token == policy.eos)
        return (policy._advance(params, state, token, depth), finished), token

    keys = jax.random.split(key, policy.length)
    depths = jnp.arange(policy.length, dtype=jnp.int32)
    carry = (start, jnp.zeros(num_samples, bool))
    return lax.scan(step, carry, (keys, depths))[1].T


@functools.partial(jax.jit, static_argnums=0)
def _conditionals(policy: Any, params: Any) -> tuple[Array, ...]:
    vocab = policy.vocab_size
    finished, levels = jnp.zeros(1, bool), []
    for logits in policy._tree_of_logits(params):
        levels.append(next_token(policy, logits, finished))
        finished = jnp.repeat(finished, vocab)
        if policy.eos is not None:
            finished = finished | (jnp.arange(finished.size) % vocab == policy.eos)
    return tuple(levels)
