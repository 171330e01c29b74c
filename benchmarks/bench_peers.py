"""``solve`` against what a user would otherwise reach for, on the same problems in the same run.

entmax solves two members of the α family with a uniform reference (sparsemax is α = 2, entmax-1.5
is α = 1.5) and any by bisection; cvxpy with Clarabel solves any convex objective; SciPy's
``brentq`` finds the multiplier of one row at a time. Peers that are not installed are skipped.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench_solve import paired_ratio, problem, seconds
from scipy.optimize import brentq

import kltarget as kt


@pytest.mark.parametrize(
    ("alpha", "peer"),
    [(2.0, "sparsemax"), (1.5, "entmax15"), (1.5, "entmax_bisect"), (1.3, "entmax_bisect")],
)
def test_entmax(benchmark, alpha: float, peer: str) -> None:
    torch = pytest.importorskip("torch")
    entmax = pytest.importorskip("entmax")
    shape = (64, 50_000)
    reward, _ = problem(shape, "normal")
    # entmax maximises p·z + H_α(p): the α family from a uniform reference, whose unit is A^(1−α).
    beta = shape[1] ** (1 - alpha)
    log_ref = jnp.full(shape[1], -np.log(shape[1]), jnp.float32)
    objective = kt.Objective(reward, log_ref, jnp.float32(beta), kt.Alpha(alpha))
    scores = torch.tensor(np.asarray(reward))
    options = {"alpha": alpha} if peer == "entmax_bisect" else {}

    def run() -> np.ndarray:
        return getattr(entmax, peer)(scores, dim=-1, **options).numpy()

    theirs = run()
    ours = np.asarray(kt.solve(objective).probs)
    benchmark.pedantic(lambda: jax.block_until_ready(kt.solve(objective).log_probs), rounds=3)
    benchmark.extra_info.update(
        peer=peer,
        shape="64x50000",
        dtype="float32",
        ratio=paired_ratio(lambda: kt.solve(objective).log_probs, run),
        total_variation=float(0.5 * np.abs(ours - theirs).sum(-1).max()),
    )


@pytest.mark.parametrize("size", [100, 1000])
def test_cvxpy(benchmark, size: int) -> None:
    cp = pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    reward, log_ref = problem((1, size), "normal")
    objective = kt.Objective(reward[0], log_ref[0], 0.1, kt.ForwardKL())
    p, ref = cp.Variable(size), np.exp(np.asarray(log_ref[0], np.float64))
    value = cp.sum(cp.multiply(np.asarray(reward[0], np.float64), p)) - 0.1 * cp.sum(
        cp.rel_entr(ref, p)
    )
    program = cp.Problem(cp.Maximize(value), [cp.sum(p) == 1])

    def peer() -> None:
        program.solve(solver="CLARABEL")

    peer()
    policy = np.maximum(p.value, 0)
    benchmark.pedantic(lambda: jax.block_until_ready(kt.solve(objective).log_probs), rounds=5)
    benchmark.extra_info.update(
        peer="cvxpy + clarabel",
        shape=f"1x{size}",
        dtype="float64",
        ratio=paired_ratio(lambda: kt.solve(objective).log_probs, peer),
        gap_of_peer=float(kt.solve(objective).gap(np.log(policy / policy.sum()))),
    )


def test_scipy_root_per_row(benchmark) -> None:
    shape = (512, 1024)
    reward, log_ref = problem(shape, "normal")
    objective = kt.Objective(reward, log_ref, jnp.full(shape[0], 0.1), kt.ForwardKL())
    r, ref = np.asarray(reward, np.float64), np.exp(np.asarray(log_ref, np.float64))

    def peer() -> np.ndarray:
        out = np.empty_like(r)
        for i in range(shape[0]):
            v = (r[i] - r[i].max()) / 0.1
            low = ref[i][v == 0].sum() / 2
            t = brentq(lambda t, i=i, v=v: (ref[i] / (t - v)).sum() - 1, low, 1 + 1e-6)
            out[i] = ref[i] / (t - v)
        return out

    theirs = peer()
    ours = np.asarray(kt.solve(objective).probs)
    benchmark.pedantic(lambda: jax.block_until_ready(kt.solve(objective).log_probs), rounds=5)
    benchmark.extra_info.update(
        peer="scipy brentq per row",
        shape="512x1024",
        dtype=str(reward.dtype),
        ratio=paired_ratio(lambda: kt.solve(objective).log_probs, peer),
        total_variation=float(0.5 * np.abs(ours - theirs).sum(-1).max()),
    )


def test_one_small_problem(benchmark) -> None:
    """Dispatch cost: three outcomes, one row, called from Python."""
    objective = kt.Objective(jnp.array([1.0, 1.0, 0.0]), jnp.log(jnp.array([0.3, 0.02, 0.68])), 0.1)
    jax.block_until_ready(kt.solve(objective).log_probs)
    benchmark(lambda: jax.block_until_ready(kt.solve(objective).log_probs))
    start = time.perf_counter()
    seconds(lambda: kt.solve(objective).log_probs)
    benchmark.extra_info.update(shape="3", microseconds=1e6 * (time.perf_counter() - start))
