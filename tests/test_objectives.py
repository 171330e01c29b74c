"""The objective: shapes, values, gaps and gradients, and what it says about bad input."""

import itertools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import oracles
import pytest
from hypothesis import given
from oracles import CASES, DTYPES, INF, X64, eps

import kltarget as kt
from kltarget import testing

cases = pytest.mark.parametrize("case", oracles.slow_look_alikes(CASES))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
TV = oracles.Case("total-variation", kt.TotalVariation(), oracles.total_variation(), 0)

P5 = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
R5 = np.array([0.1, 0.5, 1.0, 0.9, 0.3])
T5 = np.array([0.1, 0.2, 0.4, 0.2, 0.1])

value_of = jax.jit(lambda objective, policy: objective.value(policy))
gap_of = jax.jit(lambda objective, policy: kt.solve(objective).gap(policy))
gap_and_values = jax.jit(
    lambda objective, policy: (
        (target := kt.solve(objective)).gap(policy),
        objective.value(policy),
        target.value,
    )
)
gradient_of = jax.jit(lambda objective, policy: objective.gradient(policy))


def log(x, dtype=np.float64):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(x, np.float64)).astype(dtype)


@pytest.mark.quick_only(
    "reward0-log_ref0-beta0-batch0",
    "reward3-log_ref3-beta3-batch3",
    "reward5-log_ref5-beta5-batch5",
    others="broad",
)
@pytest.mark.parametrize(
    ("reward", "log_ref", "beta", "batch"),
    [
        ((5,), (5,), (), ()),
        ((3, 5), (5,), (), (3,)),
        ((5,), (3, 5), (3,), (3,)),
        ((2, 1, 5), (5,), (3,), (2, 3)),
        ((1, 5), (4, 5), (4,), (4,)),
        ((5,), (5,), (2, 0), (2, 0)),
    ],
)
def test_fields_broadcast_and_keep_their_shapes(reward, log_ref, beta, batch):
    log_policy = np.broadcast_to(log(P5, np.float32), (*log_ref[:-1], 5))
    objective = kt.Objective(
        np.broadcast_to(R5.astype(np.float32), reward), log_policy, np.ones(beta, np.float32)
    )
    assert objective.reward.shape == reward
    assert objective.log_ref.shape == log_ref
    assert objective.beta.shape == beta
    assert objective.batch_shape == batch
    assert objective.num_outcomes == 5
    assert objective.value(log(P5)).shape == batch
    assert kt.solve(objective).gap(log(P5)).shape == batch
    assert objective.gradient(log(P5)).shape == (*batch, 5)
    np.testing.assert_allclose(objective.value(log(P5)), np.full(batch, 0.445), rtol=1e-6)


def test_divergence_parameters_broadcast_against_the_batch():
    alphas = np.array([[0.0], [0.5], [2.0]], np.float32)
    betas = np.array([0.5, 1.0], np.float32)
    swept = kt.Objective(R5, log(P5), betas, kt.Alpha(alphas))
    assert swept.batch_shape == (3, 2)
    value = swept.value(log(T5))
    for (i, alpha), (j, beta) in itertools.product(enumerate(alphas[:, 0]), enumerate(betas)):
        one = kt.Objective(R5, log(P5), float(beta), kt.Alpha(float(alpha)))
        assert float(value[i, j]) == pytest.approx(float(one.value(log(T5))), rel=1e-5)


ROWS = {
    # reward, reference, beta, policy
    "interior": (R5, P5, 0.5, T5),
    "cheap": (R5, P5, 0.01, T5),
    "dear": (R5, P5, 300.0, T5),
    "at-reference": (R5, P5, 0.5, P5),
    "near-reference": (R5, P5, 40.0, P5 * (1 + 1e-3 * (R5 - 0.445))),
    "policy-zeros": (R5, P5, 0.5, [0, 0.2, 0.5, 0, 0.3]),
    "reference-zeros": (R5, [0.5, 0.5, 0, 0, 0], 0.5, [0.5, 0.1, 0.2, 0.2, 0]),
    "offset": (R5 + 1024, P5, 0.5, T5),
    "deep": ([1, 0, 0.5, 0, 0], np.exp([-80.0, -1e-9, -30, -20, -21]), 0.3, T5),
    "condensed": ([0.2, 0.6, 1, 1.5, 1.5], [0.5, 0.3, 0.2, 0, 0], 0.1, T5),
    "forbidden": ([0.1, -INF, 1, 0.9, 0.3], P5, 0.5, [0.1, 0, 0.5, 0.3, 0.1]),
    "forbidden-and-used": ([0.1, -INF, 1, 0.9, 0.3], P5, 0.5, T5),
    "tied": ([0, 1, 1, 0, 0], P5, 0.2, T5),
}


def table(dtype):
    reward = np.array([row[0] for row in ROWS.values()], dtype)
    log_ref = np.array([log(row[1]) for row in ROWS.values()], np.float64).astype(dtype)
    beta = np.array([row[2] for row in ROWS.values()], dtype)
    policy = np.array([log(row[3]) for row in ROWS.values()], np.float64)
    return reward, log_ref, beta, oracles.log_normalised(policy, dtype)


@pytest.mark.quick_only("reverse-kl", "forward-kl", "chi-squared", "total-variation")
@dtypes
@pytest.mark.parametrize("case", [*CASES, TV], ids=oracles.ids)
def test_value_in_arbitrary_precision(case, dtype):
    reward, log_ref, beta, policy = table(dtype)
    got = np.asarray(value_of(kt.Objective(reward, log_ref, beta, case.divergence), policy))
    assert got.dtype == dtype
    for k, name in enumerate(ROWS):
        want = oracles.exact_value(policy[k], reward[k], log_ref[k], beta[k], case.generator)
        cost = oracles.exact_divergence(policy[k], log_ref[k], case.generator)
        if not abs(want) < float(jnp.finfo(dtype).max):
            assert got[k] == -INF, name
        else:
            finite = np.abs(reward[k][np.isfinite(reward[k])]).max()
            # A density ratio e^80 carries the rounding of its logarithm, 80 eps.
            both = np.isfinite(policy[k]) & np.isfinite(log_ref[k])
            depth = np.abs(policy[k][both] - log_ref[k][both]).max(initial=0) / 10
            size = float(finite + beta[k] * (1 + abs(cost)) * max(1, depth))
            assert abs(float(got[k]) - float(want)) <= 32 * eps(dtype) * size, name


@pytest.mark.quick_only("reverse-kl", "forward-kl", "chi-squared")
@dtypes
@pytest.mark.parametrize("case", CASES, ids=oracles.ids)
def test_gap_is_the_best_value_minus_this_one(case, dtype):
    reward, log_ref, beta, policy = table(dtype)
    got = np.asarray(gap_of(kt.Objective(reward, log_ref, beta, case.divergence), policy))
    assert got.dtype == dtype
    infinite_cost = case.generator.f_zero() == mp.inf
    for k, name in enumerate(ROWS):
        if name.startswith("forbidden") and infinite_cost:
            assert got[k] == 0, name  # every policy has J = −∞
            continue
        want = oracles.exact_gap(policy[k], reward[k], log_ref[k], beta[k], case.generator)
        if want > float(jnp.finfo(dtype).max):
            assert got[k] == INF, name
        else:
            # relative accuracy, however small the gap is against J
            assert float(got[k]) == pytest.approx(float(want), rel=1024 * eps(dtype)), name


def best_policy(case, dtype):
    if case is TV:
        return log([0, 0, 0.9, 0.1, 0], dtype)
    exact = oracles.exact_target(R5.astype(dtype), log(P5, dtype), 0.5, case.generator)
    return np.array([float(x) for x in exact.log_probs]).astype(dtype)


@pytest.mark.quick_only("forward-kl", "chi-squared")
@dtypes
@pytest.mark.parametrize("case", oracles.slow_look_alikes([*CASES, TV]))
def test_gap_vanishes_quadratically_at_the_target(case, dtype):
    # In the shape of the table above, whose program it shares.
    rows = len(ROWS)
    reward, log_ref = np.tile(R5.astype(dtype), (rows, 1)), np.tile(log(P5, dtype), (rows, 1))
    beta = np.full(rows, 0.5, dtype)
    objective = kt.Objective(reward, log_ref, beta, case.divergence)
    best = best_policy(case, dtype)
    policy = np.tile(best, (rows, 1))
    policy[1] = oracles.log_normalised(
        best.astype(np.float64) + 1e-2 * np.array([1, -1, 0, 1, -1]), dtype
    )
    gap = np.asarray(gap_of(objective, policy))
    assert gap[0] <= 64 * eps(dtype)
    assert gap[1] > 0


@dtypes
def test_gap_of_total_variation_keeps_its_accuracy(dtype):
    # Rewards far from zero: a difference of two values would have lost the gap.
    for offset in (0.0, 1024.0, 2.0**20):
        reward, log_ref = (
            (np.array([0, 0.5, 1]) + offset).astype(dtype),
            log([0.5, 0.25, 0.25], dtype),
        )
        objective = kt.Objective(reward, log_ref, dtype.type(0.25), kt.TotalVariation())
        policy = log([2.0**-12, 0, 1 - 2.0**-12], dtype)
        want = 2.0**-12 * 0.75  # what is held back loses 1 in reward and saves ¼ in distance
        assert float(kt.solve(objective).gap(policy)) == pytest.approx(want, rel=64 * eps(dtype)), (
            offset
        )


@dtypes
def test_gap_of_reverse_kl_is_beta_times_a_kl(dtype):
    objective = kt.Objective(R5.astype(dtype), log(P5, dtype), 0.3)
    target = kt.solve(objective)
    for policy in (log(T5, dtype), log(P5, dtype), log([0, 0, 0.5, 0.5, 0], dtype)):
        want = 0.3 * float(kt.kl(policy, target.log_probs))
        assert float(kt.solve(objective).gap(policy)) == pytest.approx(want, rel=64 * eps(dtype))


@pytest.mark.slow
@given(st.data())
def test_no_policy_beats_the_target(data):
    # A few regularisers, one of each kind: every class is compiled anew.
    divergence = data.draw(
        st.sampled_from([kt.ReverseKL(), kt.ForwardKL(), kt.ChiSquared(), kt.TotalVariation()])
    )
    objective = data.draw(testing.objectives(num_outcomes=4, divergence=divergence))
    policy = data.draw(testing.log_policies(4))
    gap, value, best = map(float, gap_and_values(objective, policy))
    assert gap >= 0
    scale = 1 + abs(best) + abs(value) + float(objective.beta) * 30
    if np.isfinite(value) and np.isfinite(best):
        assert value <= best + 256 * eps(policy.dtype) * scale
        assert gap == pytest.approx(best - value, rel=1e-2, abs=1024 * eps(policy.dtype) * scale)


@pytest.mark.quick_only("reverse-kl", "forward-kl", "chi-squared")
@dtypes
@cases
def test_gradient_is_that_of_the_value(case, dtype):
    objective = kt.Objective(R5.astype(dtype), log(P5, dtype), 0.5, case.divergence)

    @jax.jit
    def both(policy):
        # The value as a function of independent probabilities.
        return objective.gradient(policy), jax.grad(lambda p: objective.value(jnp.log(p)))(
            jnp.exp(policy)
        )

    got, want = both(jnp.asarray(log(T5, dtype)))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=128 * eps(dtype), atol=128 * eps(dtype))
    with mp.workdps(50):
        exact = R5 - 0.5 * np.array([float(case.generator.f_prime(mp.mpf(u))) for u in T5 / P5])
    np.testing.assert_allclose(got, exact, rtol=32 * eps(dtype), atol=32 * eps(dtype))


@cases
def test_gradient_at_zeros(case):
    f_prime_zero = float(case.divergence.f_prime(0.0))
    slope = float(case.generator.slope())
    objective = kt.Objective(R5, log([0.6, 0.3, 0.1, 0, 0]), 0.5, case.divergence)
    got = np.asarray(objective.gradient(log([0.5, 0, 0.3, 0, 0.2])), np.float64)
    np.testing.assert_allclose(got[1], R5[1] - 0.5 * f_prime_zero, rtol=1e-5)
    np.testing.assert_allclose(got[3:], R5[3:] - 0.5 * slope, rtol=1e-5)
    assert np.all(np.isfinite(got[[0, 2]]))


@dtypes
@pytest.mark.parametrize("case", oracles.slow_look_alikes([*CASES, TV]))
@pytest.mark.parametrize("log_ratio", [120.0, -120.0, 800.0, -800.0])
def test_gradient_at_ratios_that_no_float_holds(case, log_ratio, dtype):
    rare = -abs(log_ratio)
    log_policy = np.array([0.0, rare] if log_ratio < 0 else [rare, 0.0], dtype)
    log_ref = np.array([0.0, rare] if log_ratio > 0 else [rare, 0.0], dtype)
    got = kt.Objective(np.zeros(2, dtype), log_ref, 1.0, case.divergence).gradient(log_policy)
    largest = float(np.finfo(dtype).max)
    for value, exponent in zip(np.asarray(got, np.float64), (-log_ratio, log_ratio), strict=True):
        with mp.workdps(50):
            exact = -case.generator.f_prime(mp.exp(exponent))
        want = math.copysign(INF, exact) if abs(exact) > largest else float(exact)
        np.testing.assert_allclose(value, want, rtol=1024 * eps(dtype))


@dtypes
def test_gradient_of_a_rare_outcome(dtype):
    even = np.log(np.full(2, 0.5, dtype))
    log_ref = kt.normalize(np.array([0.0, -120.0], dtype))
    got = kt.Objective(np.zeros(2, dtype), log_ref, 1.0).gradient(even)
    np.testing.assert_allclose(got, [math.log(2), math.log(2) - 120], rtol=4 * eps(dtype))
    got = kt.Objective(np.zeros(2, dtype), even, 1.0).gradient(log_ref)
    np.testing.assert_allclose(got, [-math.log(2), 120 - math.log(2)], rtol=4 * eps(dtype))


def test_gradient_of_a_written_generator_at_ratios_that_no_float_holds():
    written = kt.FDivergence(lambda u: u * jnp.log(u) - u + 1)
    got = kt.Objective(np.zeros(3), [0.0, -900.0, -INF], 1.0, written).gradient([-900.0, 0.0, -INF])
    np.testing.assert_array_equal(got, [INF, -INF, -INF])  # 1e390 and its inverse: the limits


@pytest.mark.quick_only("reverse-kl", "forward-kl", "chi-squared")
@dtypes
@cases
def test_frank_wolfe_bound_on_the_gap(case, dtype):
    reward, log_ref, beta, policy = table(dtype)
    objective = kt.Objective(reward, log_ref, beta, case.divergence)
    gradient = np.asarray(gradient_of(objective, policy), np.float64)
    gap = np.asarray(gap_of(objective, policy), np.float64)
    for k, name in enumerate(ROWS):
        p = np.exp(policy[k].astype(np.float64))
        mean = np.sum(p * np.where(p > 0, gradient[k], 0))
        if np.isfinite(mean) and np.isfinite(gap[k]):
            bound = gradient[k].max() - mean
            size = 1 + np.abs(gradient[k][p > 0]).max()
            assert gap[k] <= bound + 64 * eps(dtype) * size, name


@dtypes
def test_normalize(dtype):
    weights = np.array([[0.0, -800.0, -1.0], [5.0, -INF, 5.0], [1e4, -3e4, 1e4]], dtype)
    got = kt.normalize(weights)
    assert got.dtype == dtype
    want = oracles.log_normalised(weights.astype(np.float64), np.float64)
    np.testing.assert_allclose(got, want, rtol=8 * eps(dtype), atol=8 * eps(dtype))
    np.testing.assert_allclose(jax.jit(kt.normalize)(weights), got, rtol=4 * eps(dtype))
    assert float(kt.normalize(dtype.type([7]))[0]) == 0


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([0.0, np.nan], ValueError, r"log_weights must be below \+inf, got nan at index 1"),
        ([[0.0, 1.0], [INF, 0.0]], ValueError, r"got inf at index \(1, 0\)"),
        ([[0.0, 1.0], [-INF, -INF]], ValueError, r"no outcome with any weight at index 1"),
        (1.0, ValueError, r"log_weights needs a last axis .* got shape \(\)"),
        (np.zeros((3, 0)), ValueError, r"log_weights needs .* got shape \(3, 0\)"),
        (np.zeros(2, np.complex64), TypeError, "log_weights: expected real numbers"),
    ],
)
def test_normalize_names_what_is_wrong(weights, error, message):
    with pytest.raises(error, match=message):
        kt.normalize(weights)


def test_normalize_raises_nothing_in_a_trace():
    got = jax.jit(kt.normalize)(jnp.array([[0.0, jnp.nan], [-jnp.inf, -jnp.inf], [0.0, 0.0]]))
    assert np.isnan(got[:2]).all()
    np.testing.assert_allclose(got[2], np.log([0.5, 0.5]), rtol=1e-6)


UNIFORM = np.log(np.full(3, 1 / 3))
R3 = np.array([0.0, 1.0, 2.0])
BAD = {
    "beta-zero": (
        (R3, UNIFORM, 0.0),
        ValueError,
        r"beta must be above 0, got 0; .* kltarget\.targets\.greedy_limit",
    ),
    "beta-zero-at": ((R3, UNIFORM, [1.0, 0.0]), ValueError, r"beta must .* got 0 at index 1"),
    "beta-negative": ((R3, UNIFORM, -2.0), ValueError, r"beta must be above 0 and finite, got -2"),
    "beta-nan": (
        (R3, UNIFORM, [[1.0], [np.nan]]),
        ValueError,
        r"beta must be .* got nan at index \(1, 0\)",
    ),
    "beta-inf": ((R3, UNIFORM, INF), ValueError, r"beta must be above 0 and finite, got inf"),
    "reward-nan": (
        ([[0, 1, 2], [0, np.nan, 2]], UNIFORM, 1.0),
        ValueError,
        r"reward must be finite or -inf .* got nan at index \(1, 1\)",
    ),
    "reward-inf": (([0, 1, INF], UNIFORM, 1.0), ValueError, r"reward .* got inf at index 2"),
    "ref-nan": (
        (R3, [-1.0, np.nan, -1.0], 1.0),
        ValueError,
        r"log_ref must not be NaN or \+inf, got nan at index 1",
    ),
    "ref-inf": ((R3, [INF, -1.0, -1.0], 1.0), ValueError, r"log_ref .* got inf at index 0"),
    "ref-unnormalised": (
        (R3, np.log([0.5, 0.5, 0.5]), 1.0),
        ValueError,
        r"log_ref is not normalised: its masses sum to 1\.5, not 1; .*kltarget\.normalize",
    ),
    "ref-unnormalised-at": (
        (R3, np.stack([UNIFORM, UNIFORM + 0.1]), 1.0),
        ValueError,
        r"log_ref is not normalised: .* at index 1",
    ),
    "ref-probabilities": (
        (R3, np.full(3, 1 / 3), 1.0),
        ValueError,
        r"log_ref is not normalised: its masses sum to 4\.18",
    ),
    "empty": (
        ([[0, 1, 2], [-INF, -INF, 0]], log([0.5, 0.5, 0]), 1.0),
        ValueError,
        r"reward is -inf wherever log_ref has mass at index 1",
    ),
    "outcomes": (
        (R3, UNIFORM[:2], 1.0),
        ValueError,
        r"reward has 3 outcomes and log_ref has 2 \(shapes \(3,\) and \(2,\)\)",
    ),
    "batch": (
        (np.zeros((2, 3)), UNIFORM, np.ones(5)),
        ValueError,
        r"reward \(2,\), log_ref \(\) and beta \(5,\) do not broadcast",
    ),
    "scalar-reward": ((1.0, UNIFORM, 1.0), ValueError, r"reward needs a last axis .* shape \(\)"),
    "no-outcomes": (
        (np.zeros(0), np.zeros(0), 1.0),
        ValueError,
        r"reward needs a last axis of at least one outcome, got shape \(0,\)",
    ),
    "complex": (
        (R3 * 1j, UNIFORM, 1.0),
        TypeError,
        r"reward: expected real numbers, got .*complex",
    ),
    "text": ((["a", "b", "c"], UNIFORM, 1.0), TypeError, "reward"),
    "divergence": ((R3, UNIFORM, 1.0, "kl"), TypeError, r"divergence must be .* got 'kl'"),
    "divergence-class": ((R3, UNIFORM, 1.0, kt.ForwardKL), TypeError, r"divergence must be .* got"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        kt.Objective(*arguments)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (np.zeros(4), r"log_policy has shape \(4,\), the objective \(2, 3\)"),
        (np.zeros((5, 3)), r"log_policy has shape \(5, 3\), the objective \(2, 3\)"),
        (np.zeros((2, 2, 3)), r"log_policy has shape \(2, 2, 3\)"),
        (0.0, r"log_policy needs a last axis"),
        (np.zeros((2, 1)), r"log_policy has shape \(2, 1\)"),
    ],
)
def test_policies_that_do_not_fit_are_named(policy, message):
    objective = kt.Objective(R3, UNIFORM, np.ones(2))
    for method in (objective.value, kt.solve(objective).gap, objective.gradient):
        with pytest.raises(ValueError, match=message):
            method(policy)


def test_shapes_are_checked_in_a_trace_too():
    with pytest.raises(ValueError, match="reward has 3 outcomes and log_ref has 2"):
        jax.jit(lambda r, q: kt.Objective(r, q, 1.0))(R3, UNIFORM[:2])


TRACED = {
    "good": (R3, UNIFORM, 1.0, 0),
    "beta-zero": (R3, UNIFORM, 0.0, kt.Status.INVALID_BETA),
    "beta-negative": (R3, UNIFORM, -1.0, kt.Status.INVALID_BETA),
    "beta-nan": (R3, UNIFORM, np.nan, kt.Status.INVALID_BETA),
    "beta-inf": (R3, UNIFORM, INF, kt.Status.INVALID_BETA),
    "reward-nan": ([0, np.nan, 1], UNIFORM, 1.0, kt.Status.INVALID_REWARD),
    "reward-inf": ([0, INF, 1], UNIFORM, 1.0, kt.Status.INVALID_REWARD),
    "ref-nan": (R3, [np.nan, -1, -1], 1.0, kt.Status.INVALID_REFERENCE),
    "ref-inf": (R3, [INF, -1, -1], 1.0, kt.Status.INVALID_REFERENCE),
    "ref-mass": (R3, UNIFORM + 0.1, 1.0, kt.Status.INVALID_REFERENCE),
    "ref-empty": (R3, [-INF, -INF, -INF], 1.0, kt.Status.INVALID_REFERENCE),
    "empty": ([-INF, -INF, 0], [np.log(0.5), np.log(0.5), -INF], 1.0, kt.Status.EMPTY_SUPPORT),
    "forbidden": ([0, -INF, 1], UNIFORM, 1.0, 0),
}


@pytest.mark.quick_only("forward KL")
@dtypes
@pytest.mark.parametrize(
    "divergence", [kt.ReverseKL(), kt.ForwardKL(), kt.TotalVariation()], ids=lambda d: d.name
)
def test_under_tracing_only_the_bad_rows_fail(divergence, dtype):
    reward = np.array([row[0] for row in TRACED.values()], dtype)
    log_ref = np.array([row[1] for row in TRACED.values()], dtype)
    beta = np.array([row[2] for row in TRACED.values()], dtype)

    @jax.jit
    def solved(reward, log_ref, beta):
        objective = kt.Objective(reward, log_ref, beta, divergence)
        target = kt.solve(objective)
        policy = jnp.broadcast_to(jnp.asarray(UNIFORM, dtype), reward.shape)
        return target, {
            "value": target.value,
            "multiplier": target.multiplier,
            "expected_reward": target.expected_reward,
            "divergence_value": target.divergence_value,
            "gap": kt.solve(objective).gap(policy),
        }

    target, numbers = solved(reward, log_ref, beta)
    for k, (name, row) in enumerate(TRACED.items()):
        assert bool(int(target.status[k]) & int(row[3])) == bool(row[3]), name
        if row[3]:
            assert np.isnan(target.log_probs[k]).all(), name
            for number, x in numbers.items():
                assert np.isnan(x[k]), (name, number)
        else:
            (alone,) = oracles.solve_rows([(reward[k], log_ref[k], beta[k])], divergence, dtype)
            np.testing.assert_allclose(
                target.log_probs[k], alone.log_probs, rtol=4 * eps(dtype), atol=4 * eps(dtype)
            )
            assert not np.isnan(numbers["multiplier"][k]), name

    def loss(reward, log_ref, beta):
        target = kt.solve(kt.Objective(reward, log_ref, beta, divergence))
        good = np.array([not row[3] for row in TRACED.values()])
        return jnp.sum(jnp.where(good[:, None], target.probs[:, :1], 0.0))

    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(reward, log_ref, beta)
    for k, (name, row) in enumerate(TRACED.items()):
        if not row[3]:
            for gradient in gradients:
                assert np.isfinite(gradient[k]).all(), name


def test_an_objective_is_a_pytree():
    objective = kt.Objective(R3, UNIFORM, [0.5, 1.0], kt.Alpha(0.5))
    leaves, structure = jax.tree.flatten(objective)
    assert [np.shape(x) for x in leaves] == [(3,), (3,), (2,), ()]
    rebuilt = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(rebuilt.value(UNIFORM), objective.value(UNIFORM))
    names = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(objective)
    ]
    assert names == [".reward", ".log_ref", ".beta", ".divergence.alpha"]
    doubled = jax.tree.map(lambda x: 2 * x, objective)
    np.testing.assert_allclose(doubled.reward, 2 * objective.reward)
    with pytest.raises(AttributeError):
        objective.beta = 1.0


def test_a_measure_may_have_any_mass():
    weights = np.log([0.5, 1.0, 0.25])
    with pytest.raises(ValueError, match="not normalised"):
        kt.Objective(R3, weights, 1.0)
    objective = kt.Objective(R3, weights, 1.0, measure=True)
    target = kt.solve(objective)
    assert int(target.status) == 0
    want = oracles.log_normalised(weights + R3, np.float64)
    np.testing.assert_allclose(target.log_probs, want, rtol=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES if c.id in ("forward-kl", "chi-squared")])
def test_the_target_of_a_measure(case):
    weights = np.log(np.array([0.5, 1.0, 0.25, 0.125]))
    reward = np.array([0.0, 0.25, 0.5, 1.0])
    target = kt.solve(kt.Objective(reward, weights, 0.5, case.divergence, measure=True))
    dtype = np.asarray(target.log_probs).dtype
    want = oracles.exact_target(reward, weights.astype(dtype), 0.5, case.generator)
    assert np.max(oracles.bar_errors(target.log_probs, want.log_probs, dtype)) <= 32


DEFAULT = np.float64 if X64 else np.float32


@pytest.mark.broad
@pytest.mark.quick_only(
    "reward0-log_ref0-1", "reward6-log_ref6-0.5-float16", "reward8-log_ref8-0.5-bfloat16"
)
@pytest.mark.parametrize(
    ("reward", "log_ref", "beta", "want"),
    [
        ([0, 1, 2], list(UNIFORM), 1, DEFAULT),
        (np.array([0, 1, 2]), list(UNIFORM), 1, DEFAULT),
        (np.array([False, True, True]), list(UNIFORM), 1, DEFAULT),
        (R3.astype(np.float32), UNIFORM.astype(np.float32), 1.0, np.float32),
        (R3.astype(np.float32), list(UNIFORM), 1, np.float32),
        (R3.astype(np.float64), UNIFORM.astype(np.float32), 1.0, DEFAULT),
        (R3.astype(np.float16), UNIFORM.astype(np.float16), 0.5, np.float16),
        (R3.astype(np.float16), UNIFORM.astype(np.float32), 0.5, np.float32),
        (R3.astype(jnp.bfloat16), UNIFORM.astype(jnp.bfloat16), 0.5, jnp.bfloat16),
        (R3.astype(jnp.bfloat16), UNIFORM.astype(np.float16), 0.5, np.float32),
        (R3.astype(np.float32), UNIFORM.astype(np.float32), np.float32(1), np.float32),
    ],
)
def test_results_have_the_dtype_of_the_inputs(reward, log_ref, beta, want):
    if any(np.asarray(x).dtype == np.float16 for x in (reward, log_ref)):
        oracles.require_float16()
    objective = kt.Objective(reward, log_ref, beta)

    def results(objective):
        target = kt.solve(objective)
        numbers = (
            objective.value(objective.log_ref),
            target.gap(objective.log_ref),
            objective.gradient(objective.log_ref),
            target.log_probs,
            target.probs,
            target.multiplier,
            target.value,
            target.expected_reward,
            target.divergence_value,
        )
        return numbers, target.status

    # Tracing knows the dtypes: nothing need be compiled.
    numbers, status = jax.eval_shape(results, objective)
    for x in (objective.reward, objective.log_ref, objective.beta, *numbers):
        assert x.dtype == jnp.dtype(want)
    assert jnp.issubdtype(status.dtype, jnp.integer)


@pytest.mark.quick_only("bfloat16")
@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_sixteen_bit_inputs_are_computed_in_float32(kind):
    if kind == jnp.float16:
        oracles.require_float16()
    reward, log_ref = jnp.asarray(R5, kind), kt.normalize(jnp.asarray(log(P5), kind))
    for divergence in (kt.ReverseKL(), kt.ForwardKL()):
        short = kt.solve(kt.Objective(reward, log_ref, jnp.asarray(0.05, kind), divergence))
        wide = kt.solve(
            kt.Objective(
                reward.astype(jnp.float32),
                log_ref.astype(jnp.float32),
                jnp.asarray(0.05, kind).astype(jnp.float32),
                divergence,
                measure=True,
            )
        )
        assert short.log_probs.dtype == kind
        # Two programs: float32's last digits may tip the rounding to the short type.
        here, there = (np.asarray(x.log_probs, np.float64) for x in (short, wide))
        np.testing.assert_allclose(here, there, rtol=eps(kind))
