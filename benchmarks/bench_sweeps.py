"""Grids of targets: `sweep` once compiled, against a Python loop over `solve`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import kltarget as kt
from kltarget import sweeps, tasks

_BOTH = ["reverse-kl", "forward-kl"]


def test_a_plane_of_two_divergences(benchmark: Any) -> None:
    """200 β × 200 reward scales × 2 divergences on `bimodal`."""
    side = 4 if benchmark.disabled else 200
    settings = {
        "beta": np.geomspace(1e-3, 10, side),
        "reward_scale": np.geomspace(0.1, 10, side),
        "divergence": _BOTH,
    }
    start = time.perf_counter()
    sweeps.sweep("bimodal", **settings)
    first = time.perf_counter() - start
    data = benchmark.pedantic(lambda: sweeps.sweep("bimodal", **settings), rounds=5)
    assert not data.status.any()

    task = tasks.load("bimodal")
    points = [(b, s) for b in settings["beta"] for s in settings["reward_scale"]][:500]

    def loop() -> float:
        begun = time.perf_counter()
        for beta, scale in points:
            for divergence in (kt.ReverseKL(), kt.ForwardKL()):
                target = kt.solve(kt.Objective(scale * task.reward, task.log_ref, beta, divergence))
                kt.effective_modes(target.log_probs, task.modes).block_until_ready()
        return (time.perf_counter() - begun) / (2 * len(points))

    loop()
    benchmark.extra_info.update(
        {
            "targets": data.value.size,
            "first call s": first,
            "µs a target": 1e6 * benchmark.stats["median"] / data.value.size
            if not benchmark.disabled
            else float("nan"),
            "µs a target, loop with effective modes alone": 1e6 * loop(),
        }
    )


@pytest.mark.parametrize("problem", ["one-two", "bimodal"])
def test_a_million_points(benchmark: Any, problem: str) -> None:
    side = 4 if benchmark.disabled else 1000
    settings = {"beta": np.geomspace(1e-3, 10, side), "reward_scale": np.geomspace(0.1, 10, side)}
    sweeps.sweep(problem, **settings)
    data = benchmark.pedantic(lambda: sweeps.sweep(problem, **settings), rounds=1)
    assert not data.status.any()
    benchmark.extra_info.update({"problem": problem, "targets": data.value.size})
