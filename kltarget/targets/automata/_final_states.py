"""The objective over final states, of which each stands for all texts that end in it."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from kltarget._core.checks import float_arguments, positive
from kltarget.divergences import Divergence
from kltarget.objectives import Objective
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets.automata._product_walks import final_log_masses, product_of, reached_states


def over_final_states(
    reference: MarkovReference,
    automaton: Automaton,
    reward: ArrayLike,
    beta: ArrayLike,
    divergence: Divergence,
    length: int,
) -> Objective:
    """Of D outcomes: how likely the reference ends in each state, and what that is worth."""
    if automaton.vocab_size != reference.vocab_size:
        raise ValueError(
            f"automaton reads {automaton.vocab_size} tokens and reference has "
            f"{reference.vocab_size}"
        )
    positive("length", length)
    product = product_of(reference, automaton)
    rewards = float_arguments(reward=reward)["reward"]
    if rewards.ndim == 0 or rewards.shape[-1] != automaton.num_states:
        raise ValueError(
            f"reward has shape {rewards.shape}, but the automaton has {automaton.num_states} "
            f"states: the last axis must be {automaton.num_states}"
        )
    size = automaton.num_states
    masses = final_log_masses(product, num_states=size, length=length)
    some = reached_states(product, num_states=size, length=length)
    # A state that no text ends in is no outcome; one of impossible texts may be.
    # What no reward may be stays, so that it is refused or flagged as everywhere else.
    bad = jnp.isnan(rewards) | (rewards == jnp.inf)
    kept = jnp.broadcast_to(some, bad.shape) | bad
    return Objective(jnp.where(kept, rewards, -jnp.inf), masses, beta, divergence)
