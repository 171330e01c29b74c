"""Equilibria of games: growth in actions and in games, against iteration and a linear program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from turns import in_turn

from kltarget.spaces import MatrixGame
from kltarget.targets.games import solve_game


def problem(games: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    payoff = rng.uniform(-1, 1, size=(games, size, size))
    return payoff, np.log(rng.dirichlet(np.ones(size), size=games))


def solver(payoff: np.ndarray, log_ref: np.ndarray, beta: Any) -> Callable[[], Any]:
    game, refs = MatrixGame(payoff), (jnp.asarray(log_ref), jnp.asarray(log_ref))

    def run() -> Any:
        return jax.block_until_ready(solve_game(game, refs, beta))

    assert not np.asarray(run().status).any()
    return run


def iterated(payoff: np.ndarray, log_ref: np.ndarray, beta: float, gap: float) -> float:
    """Damped best answers of one game in NumPy, until both could gain no more than this."""
    u, v = np.zeros(len(payoff)), np.zeros(len(payoff))
    step = 0.2 * beta
    for _ in range(200_000):
        scores = log_ref + u, log_ref + v
        mu, nu = (np.exp(x - np.logaddexp.reduce(x)) for x in scores)
        faced, paid = payoff @ nu / beta, -payoff.T @ mu / beta
        most = np.logaddexp.reduce(log_ref + faced) + np.logaddexp.reduce(log_ref + paid)
        cost = (mu * (np.log(mu) - log_ref)).sum() + (nu * (np.log(nu) - log_ref)).sum()
        if beta * (most + cost) < gap:
            break
        u, v = u + step * (faced - u), v + step * (paid - v)
    return float(beta * (most + cost))


@pytest.mark.parametrize("size", [10, 40, 160])
def test_growth_in_actions(benchmark, size: int) -> None:
    ours = solver(*problem(4, size), 0.05)
    small = solver(*problem(4, 10), 0.05)
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(actions=size, over_ten_actions=in_turn(ours, small))


@pytest.mark.parametrize("number", [1, 100, 10_000])
def test_growth_in_betas(benchmark, number: int) -> None:
    payoff, log_ref = problem(1, 5)
    ours = solver(payoff, log_ref, jnp.geomspace(0.02, 2, number))
    one = solver(payoff, log_ref, jnp.geomspace(0.02, 2, 1))
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(betas=number, over_one=in_turn(ours, one))


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_damped_iteration_in_numpy(benchmark, beta: float) -> None:
    games = 64
    payoff, log_ref = problem(games, 10)
    ours = solver(payoff, log_ref, beta)
    benchmark.pedantic(ours, rounds=3)

    def peer() -> float:
        each = zip(payoff, log_ref, strict=True)
        return max(iterated(*x, beta, 1e-6) for x in each)

    benchmark.extra_info.update(
        peer="NumPy, game by game",
        games=games,
        beta=beta,
        ratio=in_turn(ours, peer, 3),
        gap=float(jnp.max(ours().duality_gap)),
        gap_of_peer=peer(),
    )


def test_nashpy(benchmark) -> None:
    """In the limit of small β, where the equilibrium is that of a linear program."""
    nash = pytest.importorskip("nashpy")
    games = 32
    payoff, log_ref = problem(games, 8)
    beta = 1e-3
    ours = solver(payoff, log_ref, beta)

    def peer() -> list[float]:
        values = []
        for table in payoff:
            row, column = nash.Game(table, -table).linear_program()
            values.append(float(row @ table @ column))
        return values

    benchmark.pedantic(ours, rounds=3)
    apart = np.abs(np.asarray(ours().value) - np.array(peer())).max()
    benchmark.extra_info.update(
        peer="nashpy, linear programs",
        games=games,
        ratio=in_turn(ours, peer, 3),
        values_apart=float(apart),
    )
