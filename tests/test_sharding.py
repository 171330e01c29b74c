"""Sharded inputs give the results of one device, whichever axis is sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import kltarget as kt

DTYPE = oracles.DTYPES[0]
DIVERGENCES = [kt.ReverseKL(), kt.ForwardKL(), kt.TotalVariation()]

pytestmark = pytest.mark.skipif(jax.device_count() < 2, reason="needs more than one device")


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(6)
    rows, outcomes = 2 * jax.device_count(), 4 * jax.device_count()
    reward = rng.normal(size=(rows, outcomes)).astype(DTYPE)
    log_ref = oracles.log_normalised(2 * rng.normal(size=(rows, outcomes)), DTYPE)
    log_ref[:, 3] = -np.inf
    log_ref = oracles.log_normalised(log_ref.astype(np.float64), DTYPE)
    return reward, log_ref, rng.uniform(0.1, 1, size=rows).astype(DTYPE)


def numbers(reward, log_ref, beta, divergence):
    target = kt.solve(kt.Objective(reward, log_ref, beta, divergence))
    return {
        "log_probs": target.log_probs,
        "multiplier": target.multiplier,
        "status": target.status,
        "value": target.value,
        "divergence": target.divergence_value,
    }


def loss(reward, log_ref, beta, divergence):
    return jnp.sum(kt.solve(kt.Objective(reward, log_ref, beta, divergence)).probs[:, 0])


@jax.jit
def numbers_and_gradient(*problem):
    return numbers(*problem), jax.grad(loss, (0, 1, 2))(*problem)


@pytest.mark.broad
@pytest.mark.quick_only("forward KL-batch")
@pytest.mark.parametrize("axis", ["batch", "outcomes"])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.name)
def test_sharded_inputs_give_the_same_results(problem, divergence, axis, all_devices):
    mesh = Mesh(np.array(all_devices), ("devices",))
    spec = PartitionSpec("devices", None) if axis == "batch" else PartitionSpec(None, "devices")
    beta_spec = PartitionSpec("devices") if axis == "batch" else PartitionSpec(None)
    specs = (spec, spec, beta_spec)
    sharded = [
        jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(problem, specs, strict=True)
    ]
    assert len(sharded[0].sharding.device_set) == jax.device_count()

    want, gradient = numbers_and_gradient(*problem, divergence)
    got, sharded_gradient = numbers_and_gradient(*sharded, divergence)
    for name in want:
        np.testing.assert_allclose(
            got[name], want[name], rtol=32 * oracles.eps(DTYPE), atol=32 * oracles.eps(DTYPE)
        )
    if axis == "batch":  # rows are independent: nothing is gathered on the way
        assert got["log_probs"].sharding.is_equivalent_to(sharded[0].sharding, 2)

    for x, y in zip(sharded_gradient, gradient, strict=True):
        np.testing.assert_allclose(x, y, rtol=64 * oracles.eps(DTYPE), atol=64 * oracles.eps(DTYPE))


@pytest.mark.slow
def test_outside_jit_too(problem, all_devices):
    mesh = Mesh(np.array(all_devices), ("devices",))
    reward, log_ref, beta = (
        jax.device_put(x, NamedSharding(mesh, PartitionSpec("devices"))) for x in problem
    )
    got = kt.solve(kt.Objective(reward, log_ref, beta, kt.ForwardKL()))
    want = kt.solve(kt.Objective(*problem, kt.ForwardKL()))
    np.testing.assert_allclose(got.log_probs, want.log_probs, rtol=32 * oracles.eps(DTYPE))
    assert len(got.log_probs.sharding.device_set) == jax.device_count()


@pytest.mark.slow
def test_under_shard_map(problem, all_devices):
    mesh = Mesh(np.array(all_devices), ("devices",))
    rows = PartitionSpec("devices")
    local = jax.jit(
        jax.shard_map(
            lambda r, q, b: kt.solve(kt.Objective(r, q, b, kt.ForwardKL())).log_probs,
            mesh=mesh,
            in_specs=(rows, rows, rows),
            out_specs=rows,
        )
    )
    want = kt.solve(kt.Objective(*problem, kt.ForwardKL())).log_probs
    np.testing.assert_allclose(local(*problem), want, rtol=32 * oracles.eps(DTYPE))
