"""Targets on chains of steps: growth in steps and states, against all paths and plain NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from turns import in_turn

import kltarget as kt
from kltarget.spaces import Chain
from kltarget.targets.chains import solve_chain

DIVERGENCES = {"reverse KL": kt.ReverseKL(), "forward KL": kt.ForwardKL()}
BETA = 0.3


def problem(states: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    first = rng.dirichlet(np.ones(states))
    kernels = rng.dirichlet(np.ones(states), size=(steps, states))
    return np.log(first), np.log(kernels), rng.normal(size=states)


def solver(
    states: int, steps: int, divergence: str = "reverse KL", tilt_first: bool = True
) -> Callable[[], Any]:
    """What paths are drawn from: first law, twisted steps and value."""
    log_first, log_kernels, reward = problem(states, steps)
    chain, kind = Chain(log_first, log_kernels), DIVERGENCES[divergence]
    given = chain, jnp.asarray(reward)

    @jax.jit
    def solved(chain: Chain, reward: Any) -> Any:
        target = solve_chain(chain, reward, BETA, kind, tilt_first=tilt_first)
        return target.log_first, target.log_kernels, target.value

    return lambda: jax.block_until_ready(solved(*given))


def recursion(states: int, steps: int) -> Callable[[], Any]:
    """Reverse KL by a loop over the steps, in logarithms, in NumPy."""
    log_first, log_kernels, reward = problem(states, steps)

    def run() -> Any:
        value, twisted = reward / BETA, []
        for kernel in log_kernels[::-1]:
            joint = kernel + value
            top = joint.max(-1, keepdims=True)
            value = (top + np.log(np.exp(joint - top).sum(-1, keepdims=True)))[:, 0]
            twisted.append(joint - value[:, None])
        best = np.logaddexp.reduce(log_first + value)
        return log_first + value - best, np.stack(twisted[::-1]), BETA * best

    return run


def enumeration(states: int, steps: int) -> Callable[[], Any]:
    """Reverse KL over all paths, and the steps from sums over them."""
    log_first, log_kernels, reward = problem(states, steps)
    paths = np.array(list(itertools.product(range(states), repeat=steps + 1)))

    def run() -> Any:
        log_p = log_first[paths[:, 0]]
        for t in range(steps):
            log_p = log_p + log_kernels[t, paths[:, t], paths[:, t + 1]]
        weight = np.exp(log_p + reward[paths[:, -1]] / BETA)
        total, twisted = weight.sum(), []
        for t in range(steps):
            pair = paths[:, t] * states + paths[:, t + 1]
            both = np.bincount(pair, weight, states**2).reshape(states, states)
            twisted.append(np.log(both / both.sum(-1, keepdims=True)))
        first = np.bincount(paths[:, 0], weight, states) / total
        return np.log(first), np.stack(twisted), BETA * np.log(total)

    return run


def apart(ours: Callable[[], Any], theirs: Callable[[], Any]) -> float:
    each = zip(ours(), theirs(), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in each)


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_growth_in_steps(benchmark, steps: int) -> None:
    ours, few = solver(32, steps), solver(32, 10)
    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(steps=steps, over_ten_steps=in_turn(ours, few, rounds=21))


@pytest.mark.parametrize("states", [10, 100, 1000])
def test_growth_in_states(benchmark, states: int) -> None:
    ours, few = solver(states, 10), solver(10, 10)
    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(states=states, over_ten_states=in_turn(ours, few, rounds=21))


@pytest.mark.parametrize("tilt_first", [True, False])
def test_other_divergences(benchmark, tilt_first: bool) -> None:
    """Where the first law is fixed, forward KL solves a problem and makes steps for each state."""
    ours = solver(64, 20, "forward KL", tilt_first)
    reverse = solver(64, 20, "reverse KL", tilt_first)
    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(
        tilt_first=tilt_first, over_reverse_kl=in_turn(ours, reverse, rounds=21)
    )


@pytest.mark.parametrize(("states", "steps"), [(4, 8), (32, 100), (256, 100)])
def test_recursion_in_numpy(benchmark, states: int, steps: int) -> None:
    ours, peer = solver(states, steps), recursion(states, steps)
    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(
        peer="NumPy, a step at a time",
        states=states,
        steps=steps,
        ratio=in_turn(ours, peer, rounds=21),
        apart=apart(ours, peer),
    )


@pytest.mark.parametrize("steps", [4, 6, 8])
def test_all_paths(benchmark, steps: int) -> None:
    ours, peer = solver(4, steps), enumeration(4, steps)
    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    benchmark.extra_info.update(
        peer="NumPy, over all paths",
        paths=4 ** (steps + 1),
        ratio=in_turn(ours, peer, rounds=21),
        apart=apart(ours, peer),
    )
