"""``solve_on_grid`` against SciPy's adaptive quadrature inside a root finder, at equal error.

    pytest benchmarks/bench_mixtures_grid.py --benchmark-json=grid.json
    python benchmarks/report.py grid.json

The peer finds the multiplier of the forward-KL target by ``brentq`` on ``quad`` (``dblquad`` in two
dimensions) and then one mean, with what is known of the problem put in: the box, its symmetry, and
the bracket. Both are given the same tolerance; the errors that they reach stand beside the ratio.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

import kltarget as kt
from kltarget.mixtures import solve_on_grid
from kltarget.objectives import QuadraticReward
from kltarget.spaces import GaussianMixture

BETA = 0.5
KNOWN = {1: 0.20431558437778094, 2: 0.021708270441389534}
"""Λ of the standard normal reference and the reward −|x|², from closed forms at 50 digits."""

REACH = 7.0


def quadrature_1d(tol: float) -> tuple[float, float]:
    """Λ and the mean reward, by quad."""

    def mean(of: Callable[[float], float]) -> float:
        def integrand(x: float) -> float:
            return math.exp(-x * x / 2) / math.sqrt(2 * math.pi) * of(x * x)

        options: dict[str, Any] = {"epsabs": tol / 10, "epsrel": 0, "limit": 200}
        return 2 * scipy.integrate.quad(integrand, 0, REACH, **options)[0]

    def excess(top: float) -> float:
        return mean(lambda s: BETA / (top + s)) - 1

    top = float(scipy.optimize.brentq(excess, 1e-3, 1.0, xtol=tol))  # pyright: ignore
    return top, mean(lambda s: -s * BETA / (top + s))


def quadrature_2d(tol: float) -> tuple[float, float]:
    """Λ and the mean reward, by dblquad over a quadrant."""

    def mean(of: Callable[[float], float]) -> float:
        def integrand(y: float, x: float) -> float:
            s = x * x + y * y
            return math.exp(-s / 2) / (2 * math.pi) * of(s)

        options: dict[str, Any] = {"epsabs": tol / 10, "epsrel": 0}
        return 4 * scipy.integrate.dblquad(integrand, 0, REACH, 0, REACH, **options)[0]

    def excess(top: float) -> float:
        return mean(lambda s: BETA / (top + s)) - 1

    top = float(scipy.optimize.brentq(excess, 1e-3, 1.0, xtol=tol / 10))  # pyright: ignore
    return top, mean(lambda s: -s * BETA / (top + s))


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


@pytest.mark.parametrize(("size", "tol"), [(1, 1e-6), (1, 1e-9), (2, 1e-6)])
def test_against_quadrature(benchmark: Any, size: int, tol: float) -> None:
    rounds = 1 if benchmark.disabled else 7
    peer = {1: quadrature_1d, 2: quadrature_2d}[size]

    def ours(beta: Any = BETA) -> Any:
        target = solve_on_grid(reference, reward, beta, kt.ForwardKL(), error_tol=tol)
        jax.block_until_ready(target.multiplier)
        return target

    with jax.enable_x64(True):
        reference = GaussianMixture(
            np.zeros(1), np.zeros((1, size)), np.ones(1), covariance_type="spherical"
        )
        reward = QuadraticReward.peak(np.zeros(size), 2 * np.eye(size))
        first, target = seconds(ours)
        pairs = [(seconds(ours)[0], seconds(lambda: peer(tol))) for _ in range(rounds)]
        ratio = float(np.median([mine / other for mine, (other, _) in pairs]))
        top, _ = pairs[0][1][1]
        betas = np.geomspace(0.3, 3, 16)
        ours(betas)
        many = min(seconds(lambda: ours(betas))[0] for _ in range(3))
        benchmark.pedantic(ours, rounds=rounds)
        benchmark.extra_info.update(
            {
                "d": size,
                "tol": f"{tol:.0e}",
                "time over quad's": ratio,
                "a target of 16 betas over quad's": many / 16 / pairs[0][1][0],
                "error of Λ": abs(float(target.multiplier) + BETA - KNOWN[size]),
                "error of Λ by quad": abs(top - KNOWN[size]),
                "nodes": len(target.points),
                "first call s": first,
            }
        )
