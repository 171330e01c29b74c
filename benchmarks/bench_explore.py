"""``explore``: from the move of a slider to the new picture, in milliseconds.

What is timed is all that happens in the kernel: solving, measuring, the path over β with its flips
where more than β has moved, and the SVG that the notebook then shows. The bar is a median of 50 ms.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

import numpy as np
import pytest

import kltarget as kt
from kltarget import tasks

DIVERGENCES = ("reverse-kl", "forward-kl")
BETAS = np.geomspace(0.01, 1, 21)
SCALES = np.geomspace(0.3, 3, 21)


@pytest.mark.parametrize("name", ["one-two", "bimodal", "words"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_redraw(benchmark, divergence: str, name: str) -> None:
    start = time.perf_counter()
    explorer = kt.explore(tasks.load(name), divergences=(divergence,), beta=0.1)
    first = time.perf_counter() - start

    def moves(control: str, values: Iterable[float]) -> float:
        taken = []
        for value in values:
            start = time.perf_counter()
            explorer.controls[control].value = value
            taken.append(1e3 * (time.perf_counter() - start))
        return statistics.median(taken)

    scale = moves("reward_scale", SCALES)
    beta = moves("beta", BETAS)
    benchmark.pedantic(lambda: moves("beta", BETAS), rounds=1)
    benchmark.extra_info.update(
        task=name,
        divergence=divergence,
        beta_ms=beta,
        reward_scale_ms=scale,
        median_ms=statistics.median([beta, scale]),
        first_seconds=first,
    )
