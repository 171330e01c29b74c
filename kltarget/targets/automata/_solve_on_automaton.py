"""``solve_on_automaton``: targets over all texts of a length, of which there may be 10¹⁰⁰."""

from __future__ import annotations

from jax.typing import ArrayLike

from kltarget.divergences import Divergence, ReverseKL
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets.automata._automaton_target import AutomatonTarget
from kltarget.targets.automata._final_states import checked_steps, over_final_states
from kltarget.targets.discrete import solve


def solve_on_automaton(
    reference: MarkovReference,
    automaton: Automaton,
    reward: ArrayLike,
    beta: ArrayLike,
    divergence: Divergence | None = None,
    *,
    length: int,
    step_reward: ArrayLike | None = None,
) -> AutomatonTarget:
    """The policy over all texts of a length that maximises ``E_π[reward] − β·D(π, π_ref)``.

    The texts are never enumerated. The reference is a Markov chain, the reward depends on the state
    in which an automaton ends: one pass over pairs of a context and a state finds how likely the
    reference ends in each state, and :func:`kltarget.solve` does the rest with a state as an
    outcome, because texts of equal reward keep their proportions under every divergence.

    Args:
        reference: over V tokens.
        automaton: of D states, over the same tokens.
        reward: of each final state, in reward units, shape ``[*batch, D]``. ``-inf`` forbids it.
        beta: coefficient of the divergence, in reward units per nat, shape ``[*batch]``.
        divergence: reverse KL by default.
        length: the number T of tokens of a text; with an ``end`` of the reference the most.
        step_reward: what reading each token in each state earns besides, in reward units, shape
            ``[*batch, D, V]``; ``-inf`` forbids it, and after an end nothing is earned. Reverse KL
            only. What entering a state earns is ``entered[automaton.transitions]``.

    Returns:
        The target. Time grows with T, V and the number of pairs of a context and a state that texts
        reach, whatever the number of texts ``V**T``; memory with V and that number.

    Raises:
        ValueError: shapes that do not fit, alphabets of two sizes, a length below 1, rewards of
            steps with another divergence than reverse KL; and what :func:`kltarget.solve` refuses.

    States that no text of the reference ends in have no mass; a divergence that would put some
    there is flagged ``CONDENSED``. Differentiable in reward, beta, step_reward and the reference.

    Reverse KL with rewards of steps is that with the reference tilted by them: the target is
    ``π_ref(y) e^{(Σ_t step + reward)/β}/Z``, so that each token's weight is multiplied by
    ``e^{step/β}`` and the rest is as without.

    Example:
        The 43 million texts of 16 letters a, b, c, of which those with exactly three c are wanted:

        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.spaces import Automaton, MarkovReference
        >>> reference = MarkovReference.fit(["abcab", "aabba", "bacba"])
        >>> count = Automaton.counter([2], 3, most=4)
        >>> reward = jnp.array([0.0, 0.0, 0.0, 1.0, 0.0])
        >>> target = kt.solve_on_automaton(reference, count, reward, 0.25, length=16)
        >>> print([f"{p:.3f}" for p in jnp.exp(target.states.objective.log_ref)])
        ['0.030', '0.140', '0.275', '0.291', '0.265']
        >>> print(f"{target.expected_reward:.3f}, {target.divergence_value:.3f} nats")
        0.957, 1.020 nats
    """
    divergence = ReverseKL() if divergence is None else divergence
    if step_reward is None:
        objective, _ = over_final_states(reference, automaton, reward, beta, divergence, length)
        return AutomatonTarget(reference, automaton, solve(objective), length)
    steps = checked_steps(automaton, step_reward, divergence)
    objective, log_total = over_final_states(
        reference, automaton, reward, beta, divergence, length, steps
    )
    return AutomatonTarget(reference, automaton, solve(objective), length, steps, log_total)
