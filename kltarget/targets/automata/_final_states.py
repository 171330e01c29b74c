"""The objective over final states, of which each stands for all texts that end in it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kltarget._core.checks import (
    at_index,
    first_index,
    float_argument,
    positive,
    raise_first,
    traced,
    worded,
)
from kltarget._core.numerics import widest, working_dtype
from kltarget.divergences import Divergence, ReverseKL, Scaled
from kltarget.objectives import Objective
from kltarget.spaces import Automaton, MarkovReference
from kltarget.spaces._markov_reference import normalized
from kltarget.targets.automata._product_walks import (
    final_log_masses,
    product_of,
    reached_states,
    tilted,
)


def over_final_states(
    reference: MarkovReference,
    automaton: Automaton,
    reward: ArrayLike,
    beta: ArrayLike,
    divergence: Divergence,
    length: int,
    step_reward: Array | None = None,
) -> tuple[Objective, Array]:
    """Of D outcomes: how likely the reference ends in each state, and what that is worth.

    With rewards of steps it is the reference tilted by them; the logarithm of its mass comes second
    and is 0 up to rounding without.
    """
    for name, given, kind in (
        ("reference", reference, MarkovReference),
        ("automaton", automaton, Automaton),
    ):
        if not isinstance(given, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(given).__name__}")
    if automaton.vocab_size != reference.vocab_size:
        raise ValueError(
            f"automaton reads {automaton.vocab_size} tokens and reference has "
            f"{reference.vocab_size}"
        )
    positive("length", length)
    if reward is None:
        raise TypeError(
            "reward is None, as accepting is of an automaton without accepting states: give a "
            f"number for each of {automaton.num_states} states"
        )
    product = product_of(reference, automaton)
    rewards = float_argument(reward, "reward")
    if rewards.ndim == 0 or rewards.shape[-1] != automaton.num_states:
        raise ValueError(
            f"reward has shape {rewards.shape}, but the automaton has {automaton.num_states} "
            f"states: the last axis must be {automaton.num_states}"
        )
    size = automaton.num_states
    some = reached_states(product, num_states=size, length=length)
    if step_reward is not None:
        product = tilted(product, log_tilt(step_reward, beta, divergence))
    masses, log_total = final_log_masses(product, num_states=size, length=length)
    rewards, masses = _of_texts(reference, rewards, some, masses)
    _require_texts(rewards, masses)
    return Objective(rewards, masses, beta, divergence), log_total


@jax.jit
def _of_texts(
    reference: MarkovReference, rewards: Array, some: Array, masses: Array
) -> tuple[Array, Array]:
    # Sums of texts pass over NaN, and normalising would hide what the reference lacks.
    masses = jnp.where(normalized(reference), masses, jnp.nan)
    # A state that no text ends in is no outcome; one of impossible texts may be.
    # What no reward may be stays, so that it is refused or flagged as everywhere else.
    bad = jnp.isnan(rewards) | (rewards == jnp.inf)
    kept = jnp.broadcast_to(some, bad.shape) | bad
    return jnp.where(kept, rewards, -jnp.inf), masses


def _require_texts(reward: Array, log_masses: Array) -> None:
    """An error where, outside a trace, every text that the reference makes is forbidden."""
    if traced(reward, log_masses):
        return
    with worded(
        f"the batch axes of reward {reward.shape[:-1]} do not broadcast against those of "
        f"step_reward and beta {log_masses.shape[:-1]}"
    ):
        gone = (np.isneginf(np.asarray(reward)) | np.isneginf(np.asarray(log_masses))).all(-1)
    if gone.any():
        raise ValueError(
            f"reward forbids every text that the reference makes{at_index(first_index(gone))}: "
            "give a state that it ends in a finite one"
        )


def checked_steps(automaton: Automaton, step_reward: ArrayLike, divergence: Divergence) -> Array:
    """Rewards of steps ``[*batch, D, V]``, or an error that says what is wrong with them."""
    base = divergence.base if isinstance(divergence, Scaled) else divergence
    if not isinstance(base, ReverseKL):
        raise ValueError(
            f"step_reward needs reverse KL, not {divergence!r}: under any other divergence what a "
            "text earned on the way must be known at its end; where steps are few-valued let the "
            "automaton count them (Automaton.counter, product) and reward its final states"
        )
    steps, shape = float_argument(step_reward, "step_reward"), automaton.transitions.shape
    if steps.shape[-2:] != shape:
        raise ValueError(
            f"step_reward has shape {steps.shape}, but the automaton has {shape[0]} states and "
            f"reads {shape[1]} tokens: the last two axes must be {shape}"
        )
    bad = jnp.isnan(steps) | (steps == jnp.inf)
    raise_first("step_reward", steps, bad, "must be finite or -inf (a step to forbid)")
    return steps


def log_tilt(
    step_reward: Float[Array, "*batch D V"], beta: ArrayLike, divergence: Divergence
) -> Float[Array, "*batch D V"]:
    """Rewards of steps in nats: by how much reverse KL multiplies the weight of each."""
    factor = divergence.factor if isinstance(divergence, Scaled) else 1.0
    coefficient = float_argument(beta, "beta")
    with worded(
        f"the batch axes of step_reward {step_reward.shape[:-2]} and beta {coefficient.shape} do "
        "not broadcast; the last two axes of step_reward are states and tokens"
    ):
        batch = jnp.broadcast_shapes(step_reward.shape[:-2], coefficient.shape)
    dtype = working_dtype(widest(step_reward.dtype, coefficient.dtype))
    coefficient = jnp.broadcast_to(coefficient, batch)[..., None, None].astype(dtype) * factor
    steps = jnp.broadcast_to(step_reward, (*batch, *step_reward.shape[-2:])).astype(dtype)
    allowed = steps > -jnp.inf
    # What is forbidden is so at every beta: no derivative comes from there.
    tilt = jnp.where(allowed, steps, 0.0) / jnp.broadcast_to(coefficient, steps.shape)
    return jnp.where(allowed, tilt, jnp.where(jnp.isneginf(steps), -jnp.inf, jnp.nan))
