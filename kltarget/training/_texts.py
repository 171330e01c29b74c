"""Sequences too many to list, of which everything is known by functions and measured by samples."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kltarget.training._outcomes import Sequences


@dataclasses.dataclass(frozen=True)
class Texts(Sequences):
    """The sequences of a policy, of which there are only ever samples at hand.

    Attributes:
        known: which of ``lengths``, ``trained`` and ``num_tokens`` are asked for.
        num_measured: how many samples a measurement takes.
    """

    known: tuple[str, ...] = ()
    num_measured: int = 1024

    def look_up(self, samples: Array, facts: Any) -> dict[str, Array]:
        """What is known of samples, by the functions that say it and by their tokens."""
        dtype = facts["reward"].dtype
        told = {name: f(samples).astype(dtype) for name, f in facts["functions"].items()}
        before, eos = jnp.ones(samples.shape, bool), self.policy.eos
        if eos is not None:
            ended = jnp.cumsum((samples == eos).astype(jnp.int32), axis=-1)
            # The end itself is a token, what follows it is none.
            before = ended - (samples == eos).astype(jnp.int32) == 0
        trained = before if eos is None else before & (samples != eos)
        counted = before if "trained" not in self.known else trained
        lengths = jnp.maximum(counted.sum(-1), 1).astype(dtype)
        own = {"trained": trained.astype(dtype), "lengths": lengths, "num_tokens": lengths}
        return {**told, **{name: own[name] for name in self.known}}


@functools.partial(jax.jit, static_argnums=0)
def estimated(outcomes: Texts, params: Any, facts: Any, key: Any) -> tuple[dict[str, Array], Array]:
    """Means over samples with their standard errors, and the samples' log-probabilities."""
    samples = outcomes.sample(params, key, outcomes.num_measured)
    told = outcomes.look_up(samples, facts)
    log_probs = outcomes.log_probs_of(params, samples).sum(-1)
    each = {
        "expected_reward": told["reward"],
        "reverse_kl": log_probs - told["token_log_ref"].sum(-1),
        "entropy": -log_probs,
    }
    metrics = {name: x.mean() for name, x in each.items()}
    for name, x in each.items():
        metrics[f"{name}_error"] = x.std(ddof=1) / x.size**0.5
    return metrics, log_probs
