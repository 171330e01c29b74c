"""Networks that begin at a reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kltarget.policies import GRUPolicy
from kltarget.spaces import MarkovReference
from kltarget.verification._from_reference import FromReference


@pytest.mark.broad
@pytest.mark.parametrize("order", [1, 2])
def test_networks_begin_at_the_reference_and_move_alone(order):
    reference = MarkovReference.fit(["abab", "aabba", "babac"], order=order, smoothing=0.3)
    policy = FromReference(GRUPolicy(3, 6, width=2), order)
    params = policy.at(reference, key=jax.random.key(0))
    texts = reference.sample(key=jax.random.key(1), num_samples=50, length=6)
    np.testing.assert_allclose(
        policy.log_probs(params, texts), reference.log_probs(texts), rtol=1e-5, atol=1e-6
    )
    slopes = jax.grad(lambda p: policy.log_probs(p, texts)[:, 0].sum())(params)
    assert not np.asarray(slopes["log_next"]).any()
    assert np.asarray(slopes["network"]["output_bias"]).any()
    # What is drawn step by step has the probabilities that are read at once.
    params["network"]["output_bias"] = jnp.array([0.5, 0.0, -1.0])
    number = 4000
    drawn = policy.sample(params, key=jax.random.key(2), num_samples=number)
    starts, counts = np.unique(np.asarray(drawn[:, :3]), axis=0, return_counts=True)
    wholes = np.concatenate([starts, np.zeros_like(starts)], axis=1)
    probs = np.exp(np.asarray(policy.log_probs(params, wholes)[:, :3].sum(-1)))
    assert (np.abs(counts / number - probs) <= 5 * np.sqrt(probs / number) + 1e-3).all()
