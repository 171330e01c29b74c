"""What training enumerates and samples: the sequences of a policy, or points of a box.

The engine and the methods know outcomes only: an axis of A log-probabilities, each split into the
tokens it is a sum of, and samples whose rewards and references can be looked up. A vector is an
outcome of one token.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from kltarget._core.numerics import as_float
from kltarget.policies import Tempered
from kltarget.spaces import Box, SequenceSpace
from kltarget.spaces._sequences import counted


def _require(policy: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if not hasattr(policy, name):
            raise TypeError(
                f"policy must be a kltarget.policies.Policy, but {policy!r} has no {name}"
            )
    try:
        hash(policy)
    except TypeError:
        raise TypeError(
            f"policy must be hashable, with its arrays in params: make {type(policy).__name__} a "
            "frozen dataclass of plain numbers, for instance"
        ) from None


def token_table(space: SequenceSpace, conditionals: tuple[Array, ...]) -> Array:
    """The log-probability of every token of every sequence, ``[V**L, L]``."""
    count = space.num_sequences
    columns = [jnp.repeat(level.reshape(-1), count // level.size) for level in conditionals]
    return jnp.stack(columns, axis=-1)


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The sequences of a policy, in lexicographic order."""

    policy: Any
    space: SequenceSpace

    @property
    def num_outcomes(self) -> int:
        """The number A of sequences."""
        return self.space.num_sequences

    @property
    def counted(self) -> str:
        """How many there are, in words."""
        return f"{counted(self.space)} sequences"

    def possible(self) -> Array:
        """Which of them do not go on after their end, ``[A]``."""
        return self.space.possible()

    def lengths(self) -> Array:
        """Their numbers of tokens, ``[A]``."""
        return self.space.lengths()

    def all(self) -> Array:
        """All of them, as samples."""
        return self.space.sequences()

    def log_probs(self, params: Any) -> Array:
        """Log-probabilities, ``[A]``."""
        total = jnp.zeros(1)
        # Level by level: a prefix is added up once for all of its continuations.
        for level in self.policy.conditionals(params, self.space):
            total = (total.astype(level.dtype)[:, None] + level).reshape(-1)
        return total

    def table(self, params: Any) -> Array:
        """Log-probabilities of their tokens, ``[A, L]``."""
        return token_table(self.space, self.policy.conditionals(params, self.space))

    def split(self, log_probs: Array, dtype: Any) -> Array:
        """Given log-probabilities, token by token, ``[A, L]``."""
        levels = self.space.conditionals(log_probs)
        return token_table(self.space, tuple(x.astype(dtype) for x in levels))

    def at(self, temperature: float) -> Sequences:
        """The sequences of the policy at another temperature."""
        if temperature == 1:
            return self
        return dataclasses.replace(self, policy=Tempered(self.policy, temperature))

    def split_at(self, log_probs: Array, temperature: float, dtype: Any) -> Array:
        """Given log-probabilities, token by token, of a policy at another temperature."""
        levels = []
        for x in self.space.conditionals(log_probs):
            some = (x > -jnp.inf).any(-1, keepdims=True)
            scaled = jax.nn.log_softmax(jnp.where(some, x / temperature, 0.0), axis=-1)
            levels.append(jnp.where(some, scaled, -jnp.inf).astype(dtype))
        return token_table(self.space, tuple(levels))

    def likeliest(self, log_probs: Array, number: int) -> Array:
        """Which tokens are among the likeliest after what precedes them, ``[A, L]``."""
        levels = []
        for x in self.space.conditionals(log_probs):
            rank = jnp.argsort(jnp.argsort(-x, axis=-1, stable=True), axis=-1, stable=True)
            levels.append(rank < number)
        return token_table(self.space, tuple(levels))

    def require_log_probs(self, x: Array, name: str) -> Array:
        """``x``, or an error if it has mass where nothing is possible."""
        return self.space.require_log_probs(x, name)

    def on_all(self, x: Any, name: str) -> Array:
        """An array over the outcomes."""
        return as_float(x)

    def sample(self, params: Any, key: Any, num_samples: int | None) -> Array:
        """Samples of the policy, ``[S, L]``."""
        return self.policy.sample(params, key=key, num_samples=num_samples)

    def drawn(self, params: Any, key: Any, num_samples: int | None) -> tuple[Array, Array]:
        """Samples and the log-probabilities of their tokens, in one pass where the policy can."""
        if hasattr(self.policy, "sample_and_log_probs"):
            return self.policy.sample_and_log_probs(params, key=key, num_samples=num_samples)
        samples = self.sample(lax.stop_gradient(params), key, num_samples)
        return samples, self.log_probs_of(params, samples)

    def log_probs_of(self, params: Any, samples: Array) -> Array:
        """Log-probabilities of the tokens of samples, ``[S, L]``."""
        return self.policy.log_probs(params, samples)

    def look_up(self, samples: Array, facts: Any) -> dict[str, Array]:
        """What is known of samples: the rows of what is known of all."""
        names = ("reward", "token_log_ref", "lengths", "trained", "log_ref")
        names += ("rewards", "token_log_teacher", "asked", "num_tokens")
        which = self.space.index(samples)
        return {name: facts[name][which] for name in names if name in facts}


@dataclasses.dataclass(frozen=True)
class Points:
    """Vectors in a box: all of them are the points of its grid, samples may be any."""

    policy: Any
    space: Box

    @property
    def num_outcomes(self) -> int:
        """The number A of points."""
        return self.space.num_outcomes

    @property
    def counted(self) -> str:
        """How many there are, in words."""
        return f"a grid of {self.num_outcomes:,} points"

    def possible(self) -> Array:
        """All of them, ``[A]``."""
        return jnp.ones(self.num_outcomes, bool)

    def lengths(self) -> Array:
        """One token each, ``[A]``."""
        return jnp.ones(self.num_outcomes, jnp.int32)

    def all(self) -> Array:
        """All of them, as samples."""
        return self.space.points()

    def log_probs(self, params: Any) -> Array:
        """Log-masses, ``[A]``."""
        return self.policy.log_masses(params)

    def table(self, params: Any) -> Array:
        """The same as the log-probability of one token, ``[A, 1]``."""
        return self.log_probs(params)[:, None]

    def split(self, log_probs: Array, dtype: Any) -> Array:
        """Given log-masses as those of one token, ``[A, 1]``."""
        return log_probs.astype(dtype)[:, None]

    def require_log_probs(self, x: Array, name: str) -> Array:
        """``x``: a log-mass may be anything."""
        return x

    def on_all(self, x: Any, name: str) -> Array:
        """An array over the points, or the values of a function there, with weights of masses."""
        if not callable(x):
            return as_float(x)
        values = as_float(x(self.space.points()))
        if values.shape != (self.num_outcomes,):
            raise ValueError(
                f"{name} must turn points of shape [..., {self.space.dim}] into numbers of shape "
                f"[...], but of {self.num_outcomes} points it makes shape {values.shape}"
            )
        if name == "reward":
            return values
        return values + self.space.log_weights().astype(values.dtype)

    def sample(self, params: Any, key: Any, num_samples: int | None) -> Array:
        """Samples of the policy, ``[S, d]``."""
        return self.policy.sample(params, key=key, num_samples=num_samples)

    def drawn(self, params: Any, key: Any, num_samples: int | None) -> tuple[Array, Array]:
        """Samples and their log-densities."""
        samples = self.sample(lax.stop_gradient(params), key, num_samples)
        return samples, self.log_probs_of(params, samples)

    def log_probs_of(self, params: Any, samples: Array) -> Array:
        """Log-densities of samples, ``[S, 1]``."""
        return self.policy.log_probs(params, samples)[..., None]

    def look_up(self, samples: Array, facts: Any) -> dict[str, Array]:
        """What is known of samples, by the functions that say it."""
        dtype = facts["reward"].dtype
        known = {n: f(samples).astype(dtype) for n, f in facts["functions"].items()}
        return {**known, "token_log_ref": known["log_ref"][..., None]}


Outcomes = Sequences | Points


def outcomes_of(policy: Any) -> Outcomes:
    """The sequences of a policy, or the points of its box if its outcomes are vectors."""
    space = getattr(policy, "space", None)
    if not isinstance(space, Box):
        return sequences_of(policy)
    _require(policy, ("log_probs", "log_masses", "sample"))
    return Points(policy, space)


def sequences_of(policy: Any) -> Sequences:
    """The sequences of a policy, or an error if it is none."""
    _require(policy, ("vocab_size", "length", "log_probs", "sample", "conditionals"))
    space = SequenceSpace(policy.vocab_size, policy.length, getattr(policy, "eos", None))
    return Sequences(policy, space)
