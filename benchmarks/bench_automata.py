"""Targets over texts too many to list: growth, memory, against enumeration and NumPy."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from turns import in_turn

import kltarget as kt
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets.automata import AutomatonTarget, token_local_on_automaton

BETA = 0.1
LETTERS, STATES, LENGTH = 27, 200, 70


def problem(
    letters: int = LETTERS, states: int = STATES, order: int = 1
) -> tuple[MarkovReference, Automaton, np.ndarray]:
    """A random chain, automaton and rewards of three levels."""
    rng = np.random.default_rng(0)
    then = np.log(rng.dirichlet(np.ones(letters), size=(letters,) * order)).astype(np.float32)
    first = np.log(rng.dirichlet(np.ones(letters**order))).astype(np.float32)
    automaton = Automaton(rng.integers(0, states, size=(states, letters)))
    reference = MarkovReference(first.reshape((letters,) * order), then)
    return reference, automaton, rng.choice([0.0, 0.5, 1.0], size=states).astype(np.float32)


def solver(
    given: tuple[MarkovReference, Automaton, np.ndarray],
    length: int = LENGTH,
    beta: Any = BETA,
    divergence: kt.Divergence | None = None,
) -> Callable[[], AutomatonTarget]:
    def run() -> AutomatonTarget:
        target = kt.solve_on_automaton(*given, beta, divergence, length=length)
        return jax.block_until_ready(target)

    assert not np.asarray(run().status & ~kt.Status.NOT_UNIQUE).any()
    return run


@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL(), kt.JensenShannon()])
def test_ten_to_the_hundred(benchmark, divergence: kt.Divergence) -> None:
    """27⁷⁰ texts, 200 states."""
    ours = solver(problem(), divergence=divergence)
    benchmark.pedantic(ours, rounds=5)
    benchmark.extra_info.update(divergence=divergence.name)


@pytest.mark.parametrize("length", [70, 140, 280, 1120])
def test_growth_in_length(benchmark, length: int) -> None:
    ours, short = solver(problem(), length), solver(problem(), 70)
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(length=length, over_70=in_turn(ours, short))


@pytest.mark.parametrize("states", [50, 200, 800])
def test_growth_in_states(benchmark, states: int) -> None:
    ours, few = solver(problem(states=states)), solver(problem(states=50))
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(states=states, over_50=in_turn(ours, few))


@pytest.mark.parametrize("order", [1, 2])
def test_growth_in_order(benchmark, order: int) -> None:
    """27 contexts or 729, 20 states."""
    ours = solver(problem(states=20, order=order))
    one = solver(problem(states=20))
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(order=order, over_first=in_turn(ours, one))


@pytest.mark.parametrize("letters", [9, 27, 81])
def test_growth_in_letters(benchmark, letters: int) -> None:
    ours = solver(problem(letters=letters, states=50))
    few = solver(problem(letters=9, states=50))
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(letters=letters, over_9=in_turn(ours, few))


@pytest.mark.parametrize("number", [1, 100, 10_000])
def test_growth_in_betas(benchmark, number: int) -> None:
    ours = solver(problem(), beta=jnp.geomspace(0.02, 2, number), divergence=kt.ForwardKL())
    one = solver(problem(), beta=jnp.geomspace(0.02, 2, 1), divergence=kt.ForwardKL())
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(betas=number, over_one=in_turn(ours, one))


@pytest.mark.parametrize("length", [8, 10, 12])
def test_against_enumeration(benchmark, length: int) -> None:
    """3¹² texts are half a million; listing them is not counted, only solving."""
    reference, automaton, reward = given = problem(letters=3, states=6)
    texts = np.array(list(itertools.product(range(3), repeat=length)), np.int32)
    log_ref = kt.normalize(reference.log_prob(texts))
    rewards = jnp.asarray(reward)[automaton.run(texts)]

    def listed() -> kt.Target:
        return jax.block_until_ready(kt.solve(kt.Objective(rewards, log_ref, BETA)))

    ours = solver(given, length)
    benchmark.pedantic(ours, rounds=5)
    apart = float(abs(ours().value - listed().value))
    benchmark.extra_info.update(texts=len(texts), apart=apart, over_listed=in_turn(ours, listed))


def numpy_value(given: tuple[MarkovReference, Automaton, np.ndarray], length: int) -> float:
    """``β log Z`` by the recursion over all pairs of a letter and a state, in float64."""
    reference, automaton, reward = given
    first = np.exp(np.asarray(reference.log_initial, np.float64))
    then = np.exp(np.asarray(reference.log_transition, np.float64))
    letters, table = np.arange(len(first)), np.asarray(automaton.transitions)
    after = np.broadcast_to(np.exp(reward / BETA), (len(first), len(table)))
    log_scale = 0.0
    for _ in range(length - 1):
        # Of the letter that comes next and the state that it leads to from each.
        reached = after[letters[:, None], table.T]
        after = then @ reached
        log_scale += np.log(after.max())
        after = after / after.max()
    return float(BETA * (np.log(first @ after[letters, table[0]]) + log_scale))


def test_against_a_plain_recursion(benchmark) -> None:
    """The recursion has one β and reverse KL; ours has any, and the masses of all states."""
    given = problem()
    ours = solver(given)
    benchmark.pedantic(ours, rounds=5)
    wanted = numpy_value(given, LENGTH)
    ratio = in_turn(ours, lambda: numpy_value(given, LENGTH))
    apart = abs(float(ours().value) - wanted)
    benchmark.extra_info.update(apart=apart, over_numpy=ratio)


@pytest.mark.parametrize("what", ["value", "marginals", "derivative"])
@pytest.mark.parametrize("states", [50, 200, 800])
def test_memory(benchmark, what: str, states: int) -> None:
    """Bytes that the compiled program needs at once, per pair of a context and a state."""
    reference, automaton, reward = problem(states=states)

    def solved(log_transition: jax.Array) -> AutomatonTarget:
        given = dataclasses.replace(reference, log_transition=log_transition)
        return kt.solve_on_automaton(given, automaton, reward, BETA, length=LENGTH)

    function = {
        "value": lambda x: solved(x).value,
        "marginals": lambda x: solved(x).marginals(),
        "derivative": jax.grad(lambda x: solved(x).value),
    }[what]
    log_transition = reference.log_transition
    compiled = jax.jit(function).lower(log_transition).compile()
    benchmark.pedantic(lambda: jax.block_until_ready(compiled(log_transition)), rounds=3)
    used = compiled.memory_analysis().temp_size_in_bytes
    pairs = reference.num_contexts * states
    benchmark.extra_info.update(
        what=what, states=states, mib=used / 2**20, bytes_per_pair=used / pairs
    )


@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL()])
def test_token_local(benchmark, divergence: kt.Divergence) -> None:
    """A problem of 27 outcomes for each of 5,400 pairs and 70 positions."""
    given = problem()

    def ours() -> Any:
        found = token_local_on_automaton(*given, BETA, divergence, length=LENGTH)
        return jax.block_until_ready(found)

    ours()
    benchmark.pedantic(ours, rounds=2)
    whole = solver(given, divergence=divergence)
    ratio = in_turn(ours, whole, rounds=2)
    benchmark.extra_info.update(divergence=divergence.name, over_text_level=ratio)
