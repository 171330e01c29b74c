"""``token_local_on_automaton``: what per-token losses really optimise, over 10¹⁰⁰ texts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from kltarget._core.numerics import widest
from kltarget._core.status import FAILURES, Status, flag, unless_failed
from kltarget.divergences import Divergence
from kltarget.objectives import Objective
from kltarget.objectives._objective import broadcast_fields
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets.automata._final_states import over_final_states
from kltarget.targets.automata._local_problems import local_problems
from kltarget.targets.automata._policy_sums import Choices, PolicySums, sums_of
from kltarget.targets.automata._product_walks import Product, product_of
from kltarget.targets.automata._token_local_texts import TokenLocalTexts


def token_local_on_automaton(
    reference: MarkovReference,
    automaton: Automaton,
    reward: ArrayLike,
    beta: ArrayLike,
    divergence: Divergence,
    *,
    length: int,
    full_gradient: bool = False,
) -> TokenLocalTexts:
    """The fixed point of a per-token loss over all texts of a length.

    What :func:`kltarget.token_local_target` is for enumerated sequences: after every prefix the
    next token maximises ``E_π[V] − β·D(π, π_ref)``, where V is the mean reward from there on, or
    with ``full_gradient`` the value of the problem there. Prefixes that lead to the same context
    and state with as many tokens to come have the same problem, so that there is one for each pair
    and position, whatever the number of texts.

    Args:
        reference: over V tokens.
        automaton: of D states, over the same tokens.
        reward: of each final state, in reward units, shape ``[*batch, D]``. ``-inf`` forbids it.
        beta: coefficient of the per-token divergence, in reward units per nat, above 0, shape
            ``[*batch]``.
        divergence: the per-token divergence; array parameters broadcast against ``*batch``.
        length: the number T of tokens of a text; with an ``end`` of the reference the most.
        full_gradient: whether the gradient of the divergence flows through the prefixes. The
            divergence summed over tokens is then maximised; for reverse KL it is that of texts.

    Returns:
        The policy. Time grows with T, V and the number of pairs of a context and a state that texts
        reach; memory with V and that number, and with T and that number.

    Raises:
        TypeError: not numbers, or not a divergence.
        ValueError: as :func:`kltarget.solve_on_automaton`.

    Status:
        Remarks where they hold at a node that the policy reaches. Failures, as for
        :func:`kltarget.solve`, come with NaN in every number of the row. A node from which
        everything is forbidden is no failure but has value ``-inf``.

    A state that no text ends in is no outcome. Differentiable in reward, beta, the reference and
    the divergence's parameters.

    Example:
        Texts of 64 letters, of which those with exactly three c are wanted:

        >>> import jax.numpy as jnp, kltarget as kt
        >>> from kltarget.spaces import Automaton, MarkovReference
        >>> from kltarget.targets.automata import token_local_on_automaton
        >>> reference = MarkovReference.fit(["abab", "aabba", "babac"], smoothing=0.1)
        >>> count = Automaton.counter([2], 3, most=4)
        >>> problem = (reference, count, jnp.arange(5) == 3, 0.3, kt.ReverseKL())
        >>> local = token_local_on_automaton(*problem, length=64)
        >>> whole = kt.solve_on_automaton(*problem, length=64)
        >>> print(f"{local.expected_reward:.2f} {whole.expected_reward:.2f}")
        0.80 0.54
        >>> print(f"{local.objective_value:.2f} {whole.value:.2f}")
        -0.01 0.22
    """
    objective, _ = over_final_states(reference, automaton, reward, beta, divergence, length)
    product = product_of(reference, automaton)
    end = reference.end
    values, sums, status = _token_local(product, objective, length, full_gradient, end)
    return TokenLocalTexts(
        reference, automaton, objective, product, values, sums, status, length, full_gradient
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _token_local(
    product: Product, objective: Objective, length: int, full_gradient: bool, end: int | None
) -> tuple[Array, PolicySums, Array]:
    reward, log_masses, *_ = broadcast_fields(objective)
    dtype = widest(reward.dtype, product.log_next.dtype)
    leaves = reward.astype(dtype)[..., product.state]

    def back(after: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        value, here, empty = local_problems(product, objective, full_gradient, after)
        failures = lax.reduce(
            here.status & FAILURES, jnp.int32(0), lax.bitwise_or, (value.ndim - 1,)
        )
        return value, (value, failures | flag(empty[..., 0], Status.EMPTY_SUPPORT))

    _, (values, status) = lax.scan(back, leaves, None, length=length, reverse=True)
    # Emptiness is that of node 0, which matters at the beginning alone.
    later = status[1:] & ~jnp.int32(int(Status.EMPTY_SUPPORT))
    status = status[0] | lax.reduce(later, jnp.int32(0), lax.bitwise_or, (0,))
    status = status | flag(jnp.isnan(log_masses).any(-1), Status.INVALID_REFERENCE)
    values = unless_failed(status, jnp.moveaxis(jnp.concatenate([values, leaves[None]]), 0, -2))
    values = jnp.moveaxis(values, -2, 0)

    def choices(after: Array) -> Choices:
        _, here, _ = local_problems(product, objective, full_gradient, after)

        def tally(mass: Array, _: Array) -> dict[str, Array]:
            charged = jnp.where(mass == 0, 0.0, here.divergence_value)
            # Where the divergence is infinite, its derivatives must not be formed.
            endless = jnp.isposinf(charged)
            total = (mass * jnp.where(endless, 0.0, charged)).sum(-1)
            remarks = jnp.where(mass > 0, here.status & ~FAILURES, 0)
            return {
                "divergence": jnp.where(endless.any(-1), jnp.inf, total),
                "remarks": lax.reduce(remarks, jnp.int32(0), lax.bitwise_or, (mass.ndim - 1,)),
            }

        return Choices(here.log_probs, tally)

    states = objective.num_outcomes
    sums = sums_of(product, values[1:], choices, num_states=states, end=end)
    remarks = lax.reduce(sums.tallies["remarks"], jnp.int32(0), lax.bitwise_or, (0,))
    return values, sums, status | remarks
