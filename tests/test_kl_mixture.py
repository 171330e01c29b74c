"""Both KLs at once: its generator, its targets to fifty digits, and its ends."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import oracles
import pytest
from oracles import central_difference, double_precision, eps, kl_mixture

import kltarget as kt
from kltarget.divergences import KLMixture

DTYPE = np.dtype("float64" if jax.config.jax_enable_x64 else "float32")
WEIGHTS = [2.0**-6, 0.5, 0.875]
RATIOS = np.array([2.0**k for k in (-20, -7, -3, -1, -0.25, 0.5, 2, 5, 11, 24)], DTYPE)


def digits(f, x):
    with mp.workdps(60):
        return [float(f(mp.mpf(float(u)))) for u in x]


@pytest.mark.quick_only("0.875")
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_generator_and_its_inverse(weight):
    divergence, exact = KLMixture(weight), kl_mixture(weight)

    def close(got, want, atol=0.0):
        assert got.dtype == DTYPE
        np.testing.assert_allclose(got, digits(want, RATIOS), rtol=64 * eps(DTYPE), atol=atol)

    close(divergence.f(RATIOS), exact.f)
    close(divergence.f_prime(RATIOS), exact.f_prime, atol=4 * eps(DTYPE))
    slopes = divergence.f_prime(RATIOS)
    slack = np.log(RATIOS[-1]) * eps(DTYPE) / weight  # what rounding of a slope may move a ratio by
    inverse = divergence.f_prime_inverse(slopes)
    np.testing.assert_allclose(np.log(inverse), np.log(RATIOS), atol=64 * slack)
    curvature = weight / RATIOS + (1 - weight) / RATIOS**2
    np.testing.assert_allclose(divergence.f_second(RATIOS), curvature, rtol=8 * eps(DTYPE))
    next_to_one = (1 + np.array([-3.0, 2.0, 50.0]) * eps(DTYPE) ** 0.75).astype(DTYPE)
    want = digits(exact.f, next_to_one)
    np.testing.assert_allclose(divergence.f(next_to_one), want, rtol=64 * eps(DTYPE))
    assert divergence.f(0.0) == divergence.slope_at_infinity == np.inf


def test_it_is_the_sum_of_both():
    rng = np.random.default_rng(0)
    logs = rng.normal(size=(2, 5, 6))
    log_p, log_q = (logs - np.logaddexp.reduce(logs, -1, keepdims=True)).astype(DTYPE)
    weights = np.array([0.1, 0.3, 0.5, 0.9, 1.0], DTYPE)
    want = weights * kt.kl(log_p, log_q) + (1 - weights) * kt.kl(log_q, log_p)
    np.testing.assert_allclose(KLMixture(weights)(log_p, log_q), want, rtol=32 * eps(DTYPE))
    lacks = np.array([0.0, -np.inf], DTYPE), np.log([0.5, 0.5]).astype(DTYPE)
    assert KLMixture(0.5)(*lacks) == np.inf
    np.testing.assert_allclose(KLMixture(1.0)(*lacks), np.log(2.0), rtol=1e-6)
    for weight in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="weight must be above 0 and at most 1"):
            KLMixture(weight)


@pytest.mark.broad
@pytest.mark.parametrize("weight", WEIGHTS)
def test_targets_to_fifty_digits(weight):
    deep = oracles.log_normalised(np.array([-800.0, 0.0, -1.0, -400.0]), np.float64).astype(DTYPE)
    problems = oracles.random_problems(0, 30, DTYPE)
    problems += [
        (np.array([1, 0, 0.5, 0.25], DTYPE), deep, DTYPE.type(beta))
        for beta in (1e-12, 1e-3, 1.0, 1e12)
    ]
    rows = oracles.solve_rows(problems, KLMixture(weight), DTYPE)
    for problem, got in zip(problems, rows, strict=True):
        assert got.status == 0
        want = oracles.exact_target(*problem, kl_mixture(weight))
        assert oracles.bar_errors(got.log_probs, want.log_probs, DTYPE).max() <= 32, problem


def test_weights_are_swept_up_to_reverse_kl():
    log_ref, reward = np.log([0.3, 0.02, 0.68]), np.array([1.0, 0.5, 0.0])
    weights = np.array([0.25, 0.5, 1.0])
    rows = kt.solve(kt.Objective(reward, log_ref, 0.2, KLMixture(weights)))
    for weight, probs in zip(weights[:2], rows.probs, strict=False):
        want = oracles.exact_target(reward, log_ref, 0.2, kl_mixture(weight)).probs
        np.testing.assert_allclose(probs, np.array(want, float), rtol=1e-5)
    reverse = kt.solve(kt.Objective(reward, log_ref, 0.2))
    np.testing.assert_allclose(rows.probs[2], reverse.probs, rtol=64 * eps(DTYPE))
    # More of forward KL keeps more of what the reward lets go of.
    assert (np.diff(rows.probs[:, 2]) < 0).all()


@pytest.mark.broad
def test_targets_have_derivatives_in_the_weight():
    with double_precision():
        log_ref, reward = jnp.log(jnp.array([0.3, 0.02, 0.68])), jnp.array([1.0, 0.5, 0.0])

        def probs(weight):
            return kt.solve(kt.Objective(reward, log_ref, 0.2, KLMixture(weight))).probs

        both = jax.jit(lambda w: jax.jvp(probs, (w,), (jnp.ones_like(w),)))
        slope = both(jnp.asarray(0.4))[1]
        want = central_difference(lambda w: both(jnp.asarray(w))[0], 0.4, 1e-4)
        np.testing.assert_allclose(slope, want, rtol=1e-7)
