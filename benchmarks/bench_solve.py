"""``solve`` against ``jax.nn.log_softmax(log_ref + reward/beta)``, in the same run.

    pytest benchmarks/bench_solve.py --benchmark-json=solve.json
    python benchmarks/report.py solve.json

The figure of interest is ``ratio`` in ``extra_info``: the median over rounds of the pairwise ratio
of wall times, solve and log_softmax taken in turn, so that a machine whose speed drifts drifts for
both.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kltarget as kt

DIVERGENCES = {
    "reverse KL": kt.ReverseKL(),
    "forward KL": kt.ForwardKL(),
    "Jensen–Shannon": kt.JensenShannon(),
    "α = 1.5": kt.Alpha(1.5),
    "χ²": kt.ChiSquared(),
    "χ² + KL": kt.ChiSquaredKL(),
}
SHAPES = [(4096, 8), (512, 1024), (64, 50_000), (1, 1_000_000)]
REWARDS = ["uniform", "normal", "binary"]
ROUNDS = 15


def problem(
    shape: tuple[int, int], rewards: str, dtype: type = np.float32
) -> tuple[jax.Array, jax.Array]:
    """A reward and a reference as a trainer would have them."""
    rng = np.random.default_rng(0)
    drawn = rng.uniform(size=shape) if rewards == "uniform" else rng.normal(size=shape)
    reward = jnp.asarray(drawn > 1 if rewards == "binary" else drawn, dtype)
    log_ref = kt.normalize(jnp.asarray(rng.normal(size=shape) * 2, dtype))
    return reward, log_ref


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def paired_ratio(run: Callable[[], object], other: Callable[[], object]) -> float:
    """Median of the ratio of the two, taken in turn."""
    for _ in range(2):
        seconds(run), seconds(other)
    return statistics.median(seconds(run) / seconds(other) for _ in range(ROUNDS))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_solve(benchmark, name: str, rewards: str, shape: tuple[int, int]) -> None:
    reward, log_ref = problem(shape, rewards)
    objective = kt.Objective(reward, log_ref, jnp.full(shape[:1], 0.1), DIVERGENCES[name])
    softmax = jax.jit(lambda reward, log_ref: jax.nn.log_softmax(log_ref + reward / 0.1))
    start = time.perf_counter()
    target = kt.solve(objective)
    jax.block_until_ready(target.log_probs)
    first_call = time.perf_counter() - start

    benchmark.pedantic(lambda: jax.block_until_ready(kt.solve(objective).log_probs), rounds=5)
    total = np.exp(np.asarray(target.log_probs, np.float64)).sum(-1)
    benchmark.extra_info.update(
        divergence=name,
        rewards=rewards,
        shape=f"{shape[0]}x{shape[1]}",
        dtype="float32",
        device=jax.devices()[0].platform,
        ratio=paired_ratio(lambda: kt.solve(objective).log_probs, lambda: softmax(reward, log_ref)),
        mass_error=float(np.abs(total - 1).max()),
        first_call_s=first_call,
    )
    target.raise_if_failed()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_memory_and_growth(benchmark, name: str) -> None:
    """Arrays of the input's size alive at once, and cost against the number of outcomes."""
    solver = jax.jit(lambda o: kt.solve(o).log_probs)
    times = {}
    arrays = 0.0
    for size in (10_000, 100_000, 1_000_000, 10_000_000):
        reward, log_ref = problem((1, size), "normal")
        objective = kt.Objective(reward, log_ref, jnp.full(1, 0.1), DIVERGENCES[name])
        memory = solver.lower(objective).compile().memory_analysis()
        if memory is not None:
            used = (
                memory.temp_size_in_bytes
                + memory.argument_size_in_bytes
                + memory.output_size_in_bytes
            )
            arrays = max(arrays, used / (4 * size))
        run = functools.partial(solver, objective)
        seconds(run)
        times[size] = min(seconds(run) for _ in range(3))
    benchmark.pedantic(lambda: jax.block_until_ready(solver(objective)), rounds=1)
    benchmark.extra_info.update(
        divergence=name, arrays_of_input_size=arrays, seconds_by_outcomes=times
    )
