"""Tilts of Gaussian mixtures in one call, against a Python loop and against writing the result."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kltarget as kt


@pytest.mark.parametrize(("size", "bent"), [(1, False), (1, True), (3, True)])
def test_mixtures_by_betas(benchmark: Any, size: int, bent: bool) -> None:
    """10⁴ mixtures × 10³ β of two components on a line, a hundredth of it in space."""
    rows, columns = (3, 2) if benchmark.disabled else (10_000 if size == 1 else 1000, 1000)
    if size > 1 and not benchmark.disabled:
        columns = 100
    rng = np.random.default_rng(0)
    reference = kt.GaussianMixture(
        kt.normalize(rng.normal(size=(rows, 1, 2)).astype(np.float32)),
        rng.normal(size=(rows, 1, 2, size)).astype(np.float32),
        rng.uniform(0.5, 2.0, size=(rows, 1, 2, size)).astype(np.float32),
        covariance_type="diag",
    )
    matrix = -np.eye(size, dtype=np.float32) if bent else None
    reward = kt.mixtures.QuadraticReward(matrix, np.full(size, 0.3, np.float32))
    betas = np.geomspace(0.1, 10, columns).astype(np.float32)
    target = kt.mixtures.tilt(reference, reward, betas)
    assert target.value.shape == (rows, columns)
    assert np.isfinite(np.asarray(target.value)).all()
    jax.block_until_ready(
        benchmark.pedantic(
            lambda: jax.block_until_ready(kt.mixtures.tilt(reference, reward, betas)), rounds=5
        )
    )
    written = [x for x in jax.tree.leaves(target) if x.shape[:2] == (rows, columns)]
    fill = jax.jit(lambda scale: [jnp.full(x.shape, scale.astype(x.dtype)) for x in written])
    jax.block_until_ready(fill(jnp.float32(0)))

    def one_by_one() -> float:
        count = min(100, rows)
        begun = time.perf_counter()
        for row in range(count):
            own = jax.tree.map(lambda x, row=row: x[row, 0], reference)
            jax.block_until_ready(kt.mixtures.tilt(own, reward, betas[row % columns]))
        return (time.perf_counter() - begun) / count

    def filling() -> float:
        begun = time.perf_counter()
        jax.block_until_ready(fill(jnp.float32(1)))
        return time.perf_counter() - begun

    one_by_one()
    took = float("nan") if benchmark.disabled else benchmark.stats["median"]
    benchmark.extra_info.update(
        {
            "dimensions": size,
            "reward": "quadratic" if bent else "linear",
            "targets": rows * columns,
            "ns a target": 1e9 * took / (rows * columns),
            "loop over one call": one_by_one() * rows * columns / took,
            "one call over writing the result": took / np.median([filling() for _ in range(3)]),
        }
    )


def test_forward_targets_in_five_dimensions(benchmark: Any) -> None:
    """A path over β of forward-KL targets with atoms, against the same one β at a time."""
    betas = np.geomspace(0.1, 10, 4 if benchmark.disabled else 256).astype(np.float32)
    reference = kt.GaussianMixture([0.0], [[0.0] * 5], [1.0], covariance_type="spherical")
    reward = kt.mixtures.QuadraticReward(-2 * np.eye(5, dtype=np.float32))
    kt.mixtures.power_tilt(reference, reward, betas)
    benchmark.pedantic(
        lambda: jax.block_until_ready(kt.mixtures.power_tilt(reference, reward, betas)), rounds=5
    )

    def one_by_one() -> float:
        begun = time.perf_counter()
        for beta in betas:
            jax.block_until_ready(kt.mixtures.power_tilt(reference, reward, beta))
        return time.perf_counter() - begun

    one_by_one()
    took = float("nan") if benchmark.disabled else benchmark.stats["median"]
    benchmark.extra_info.update({"targets": betas.size, "loop over one call": one_by_one() / took})
