"""Information projections of laws over texts, which are too many to list."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.checks import float_argument
from kltarget._core.pytrees import pytree
from kltarget.objectives import Objective
from kltarget.projections._moments import MomentProjection, moment_projection
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets import solve
from kltarget.targets.automata import AutomatonTarget, solve_on_automaton


@pytree
class TextProjection:
    """The law over texts closest to a reference among those with given moments.

    Attributes:
        target: the law itself, with log-probabilities, conditionals and draws of texts. It is the
            target of the reward ``log p/π_ref`` at β = 1, whose value is 0 and whose divergence is
            ``KL(p‖π_ref)``. Its automaton is the product of those that were given.
        states: the projection of the final states' masses: multipliers, log-normaliser, status.
        features: φ of the final states of that automaton, ``[D, F]``.
    """

    target: AutomatonTarget
    states: MomentProjection
    features: Array


def moment_projection_on_automaton(
    reference: MarkovReference,
    automaton: Automaton | Sequence[Automaton],
    features: Any,
    moments: ArrayLike | Any,
    *,
    length: int,
) -> TextProjection:
    """The law over texts that minimises ``KL(p‖π_ref)`` subject to ``E_p[φ] = moments``.

    What is constrained depends on the state in which an automaton ends, as whether a word occurs or
    how often a token does. Texts that end in one state keep their proportions, so that this is
    :func:`moment_projection` of the states' masses: ``p(y) = π_ref(y) e^{η·φ(y)}/Z``, with the
    partition function Z of all texts exact.

    Args:
        reference: over V tokens.
        automaton: over the same tokens; or several, which are then read side by side.
        features: φ of each final state, shape ``[D, F]``, or ``[D]`` of one feature; of several
            automata a list of such arrays, one for each. ``automaton.accepting`` will do.
        moments: μ, the wished means of all features, shape ``[*batch, F]``: 1 of an indicator is a
            pointwise constraint, what is between 0 and 1 a distributional one.
        length: the number T of tokens of a text; with an ``end`` of the reference the most.

    Returns:
        The law over texts and the projection of the states.

    Raises:
        TypeError: several automata with one array of features.
        ValueError: shapes that do not fit, and what :func:`moment_projection` and
            :func:`kltarget.solve_on_automaton` refuse, such as moments that no texts have.

    Differentiable in moments, features and the reference where :func:`moment_projection` is.

    Example:
        Texts of 60 letters: every one is to hold "bbb", and half of them "aaa":

        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.projections import moment_projection_on_automaton
        >>> from kltarget.spaces import Automaton, MarkovReference
        >>> reference = MarkovReference.fit(["abab", "aabb", "bbab"], smoothing=1.0)
        >>> words = [Automaton.from_words([word], "ab") for word in ("bbb", "aaa")]
        >>> wanted = [x.accepting for x in words]
        >>> p = moment_projection_on_automaton(reference, words, wanted, [1.0, 0.5], length=60)
        >>> print(jnp.round(p.target.expectation(p.features), 4))
        [1.  0.5]
        >>> print(f"{p.target.divergence_value:.3f} nats")
        0.198 nats

    References:
        Khalifa, Elsahar and Dymetman, "A Distributional Approach to Controlled Text Generation",
        2021, arXiv 2012.11635. Go et al., "Aligning Language Models with Preferences through
        f-divergence Minimization", 2023, arXiv 2302.08215.
    """
    several = not isinstance(automaton, Automaton)
    automata = list(automaton) if several else [automaton]
    if several and not (isinstance(features, list | tuple) and len(features) == len(automata)):
        raise TypeError(
            f"features must be a list of {len(automata)} arrays, one for each automaton, got "
            f"{type(features).__name__}"
        )
    if not automata:
        raise ValueError("automaton must be one or more, got none")
    given = [
        _columns(values, part, f"features[{k}]" if several else "features")
        for k, (values, part) in enumerate(
            zip(features if several else [features], automata, strict=True)
        )
    ]
    whole = functools.reduce(Automaton.product, automata)
    if several:
        given = [x[_states_of(whole, part)] for x, part in zip(given, automata, strict=True)]
    dtype = jnp.result_type(*given, float_argument(moments, "moments"))
    phi = jnp.concatenate([x.astype(dtype) for x in given], axis=1)
    nothing = jnp.zeros(whole.num_states, dtype)
    flat = solve_on_automaton(reference, whole, nothing, 1.0, length=length)
    log_ref = flat.states.objective.log_ref
    states = moment_projection(log_ref, phi, moments)
    held = states.log_probs > -jnp.inf
    ratio = jnp.where(held, states.log_probs, 0.0) - jnp.where(held, states.log_ref, 0.0)
    objective = Objective(jnp.where(held, ratio, -jnp.inf), log_ref, 1.0)
    target = dataclasses.replace(flat, states=solve(objective))
    return TextProjection(target, states, phi)


def _columns(values: Any, automaton: Automaton, name: str) -> Array:
    """Features of an automaton's states, ``[D, F]``."""
    array = float_argument(values, name)
    if array.ndim not in (1, 2) or array.shape[0] != automaton.num_states:
        raise ValueError(
            f"{name} has shape {array.shape}, but the automaton has {automaton.num_states} "
            f"states: it needs shape [{automaton.num_states}, F], one row per state"
        )
    return array.reshape(automaton.num_states, -1)


def _states_of(whole: Automaton, part: Automaton) -> np.ndarray:
    """Which state one automaton of a product is in, of each state of the product."""
    where = np.zeros(whole.num_states, int)
    # A product numbers its states as it meets them: each comes after one that leads to it.
    for state, followers in enumerate(np.asarray(whole.transitions)):
        where[followers] = np.asarray(part.transitions)[where[state]]
    return where
