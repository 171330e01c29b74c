"""Decision processes: growth in states, actions and β, against value iteration and peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from turns import in_turn

from kltarget.spaces import MDP
from kltarget.targets.mdps import solve_mdp

DISCOUNT = 0.95


def problem(states: int, actions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A dense process: transition, reward and log-probabilities of the reference."""
    rng = np.random.default_rng(0)
    moves = rng.dirichlet(np.ones(states), size=(states, actions))
    reward = rng.normal(size=(states, actions))
    return moves, reward, np.log(rng.dirichlet(np.ones(actions), size=states))


def sparse(states: int, actions: int, after: int) -> tuple[MDP, np.ndarray]:
    rng = np.random.default_rng(0)
    successors = rng.integers(0, states, size=(states, actions, after))
    chances = rng.dirichlet(np.ones(after), size=(states, actions)).astype(np.float32)
    reward = rng.normal(size=(states, actions)).astype(np.float32)
    log_ref = np.log(rng.dirichlet(np.ones(actions), size=states)).astype(np.float32)
    return MDP(chances, reward, DISCOUNT, successors=successors), log_ref


def solver(mdp: MDP, log_ref: np.ndarray, beta: Any) -> Callable[[], Any]:
    kept = jnp.asarray(log_ref)

    def run() -> Any:
        return jax.block_until_ready(solve_mdp(mdp, kept, beta))

    assert not np.asarray(run().status).any()
    return run


def iterated(
    moves: np.ndarray, reward: np.ndarray, log_ref: np.ndarray, beta: float, tol: float
) -> np.ndarray:
    """Soft values by plain iteration in NumPy, until none is further than this from the end."""
    values = np.zeros(len(reward))
    flat = moves.reshape(-1, len(reward))
    while True:
        q = log_ref + (reward + DISCOUNT * (flat @ values).reshape(reward.shape)) / beta
        top = q.max(-1)
        after = beta * (top + np.log(np.exp(q - top[:, None]).sum(-1)))
        change = np.abs(after - values).max()
        values = after
        if change * DISCOUNT / (1 - DISCOUNT) < tol:
            return values


@pytest.mark.parametrize("states", [10, 100, 1000])
def test_growth_in_states(benchmark, states: int) -> None:
    def of(size: int) -> Callable[[], Any]:
        moves, reward, log_ref = problem(size, 4)
        return solver(MDP(moves, reward, DISCOUNT), log_ref, 0.1)

    ours = of(states)
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(states=states, over_ten_states=in_turn(ours, of(10)))


@pytest.mark.parametrize("actions", [2, 20, 200])
def test_growth_in_actions(benchmark, actions: int) -> None:
    def of(size: int) -> Callable[[], Any]:
        moves, reward, log_ref = problem(50, size)
        return solver(MDP(moves, reward, DISCOUNT), log_ref, 0.1)

    ours = of(actions)
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(actions=actions, over_two_actions=in_turn(ours, of(2)))


@pytest.mark.parametrize("number", [1, 100, 10_000])
def test_growth_in_betas(benchmark, number: int) -> None:
    moves, reward, log_ref = problem(5, 4)
    mdp = MDP(moves, reward, DISCOUNT)
    ours = solver(mdp, log_ref, jnp.geomspace(0.02, 2, number))
    one = solver(mdp, log_ref, jnp.geomspace(0.02, 2, 1))
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(betas=number, over_one=in_turn(ours, one))


@pytest.mark.parametrize("states", [1000, 10_000])
def test_sparse_processes(benchmark, states: int) -> None:
    """Ten actions and four successors; the bar is ten seconds at 10,000 states."""
    mdp, log_ref = sparse(states, 10, 4)
    start = time.perf_counter()
    ours = solver(mdp, log_ref, 0.1)
    first = time.perf_counter() - start
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(states=states, seconds_with_compilation=first)


@pytest.mark.parametrize("states", [10, 300])
def test_value_iteration_in_numpy(benchmark, states: int) -> None:
    moves, reward, log_ref = problem(states, 4)
    ours = solver(MDP(moves, reward, DISCOUNT), log_ref, 0.1)
    benchmark.pedantic(ours, rounds=3)

    def peer() -> np.ndarray:
        return iterated(moves, reward, log_ref, 0.1, 1e-5)

    benchmark.extra_info.update(
        peer="NumPy",
        states=states,
        ratio=in_turn(ours, peer),
        values_apart=float(np.abs(np.asarray(ours().state_values) - peer()).max()),
    )


def test_quantecon(benchmark) -> None:
    """In the limit of small β, where only rewards count."""
    economics = pytest.importorskip("quantecon")
    moves, reward, log_ref = problem(100, 4)
    ours = solver(MDP(moves, reward, DISCOUNT), log_ref, 1e-4)
    process = economics.markov.DiscreteDP(reward, moves, DISCOUNT)

    def peer() -> np.ndarray:
        return process.solve(method="policy_iteration").v

    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(
        peer="quantecon, policy iteration",
        ratio=in_turn(ours, peer),
        values_apart=float(np.abs(np.asarray(ours().state_values) - peer()).max()),
    )


def test_pymdptoolbox(benchmark) -> None:
    """In the limit of small β, where only rewards count."""
    toolbox = pytest.importorskip("mdptoolbox.mdp")
    moves, reward, log_ref = problem(100, 4)
    ours = solver(MDP(moves, reward, DISCOUNT), log_ref, 1e-4)

    def peer() -> np.ndarray:
        process = toolbox.PolicyIteration(np.moveaxis(moves, 1, 0), reward, DISCOUNT)
        process.run()
        return np.array(process.V)

    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(
        peer="pymdptoolbox, policy iteration",
        ratio=in_turn(ours, peer),
        values_apart=float(np.abs(np.asarray(ours().state_values) - peer()).max()),
    )
