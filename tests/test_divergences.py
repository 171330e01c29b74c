"""The generators, their derivatives and inverses, and the divergences at every kind of zero."""

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import oracles
import pytest
from hypothesis import given
from oracles import CASES, DTYPES, INF, eps

import kltarget as kt
from kltarget import testing

EVERY = [*CASES, oracles.Case("total-variation", kt.TotalVariation(), oracles.total_variation(), 0)]
RATIOS = np.array([2.0**k for k in (-20, -7, -3, -1, -0.25, 0.5, 2, 5, 11, 24)] + [1.0])

cases = pytest.mark.parametrize("case", oracles.slow_look_alikes(CASES))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def exactly(f, values):
    with mp.workdps(120):
        return np.array([float(f(mp.mpf(float(x)))) for x in values])


measure = jax.jit(lambda divergence, p, q: divergence(p, q))
"""A divergence between two policies, compiled once per class and shape."""


def assert_accurate(got, want, dtype, ulps=32, floor=0.0):
    assert np.asarray(got).dtype == dtype
    np.testing.assert_allclose(
        np.asarray(got, np.float64), want, rtol=ulps * eps(dtype), atol=floor * eps(dtype)
    )


@dtypes
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.3, 0.5, 1.0, 1.5, 2.0])
def test_alpha_family_of_the_bank(alpha, dtype):
    divergence, u = kt.Alpha(alpha), np.asarray(2.5, dtype)
    want = oracles.reference("alpha-family-u2.5")["expected"][f"alpha{alpha}"]
    assert_accurate(divergence.f(u), want["f"], dtype)
    assert_accurate(divergence.f_prime(u), want["fprime"], dtype)


@dtypes
@pytest.mark.parametrize(
    ("key", "divergence"),
    [
        ("reverse_kl", kt.ReverseKL()),
        ("forward_kl", kt.ForwardKL()),
        ("alpha-1.0", kt.Alpha(-1.0)),
        ("alpha0.0", kt.Alpha(0.0)),
        ("alpha0.5", kt.Alpha(0.5)),
        ("alpha1.0", kt.Alpha(1.0)),
        ("alpha2.0", kt.Alpha(2.0)),
        pytest.param("js_twice", kt.JensenShannon(), marks=pytest.mark.slow),
        pytest.param("hellinger", kt.SquaredHellinger(), marks=pytest.mark.slow),
        ("tv", kt.TotalVariation()),
        ("chi2", kt.ChiSquared()),
    ],
)
def test_divergences_of_the_bank(key, divergence, dtype):
    case = oracles.reference("divergences-t5-p5")
    p, q = (np.log(np.asarray(case["inputs"][x])).astype(dtype) for x in ("pi", "ref"))
    oracles.assert_reference(case["id"], divergence(p, q), key, dtype)


@dtypes
def test_kl_of_the_bank_and_its_two_orders(dtype):
    case = oracles.reference("divergences-t5-p5")
    p, q = (np.log(np.asarray(case["inputs"][x])).astype(dtype) for x in ("pi", "ref"))
    oracles.assert_reference(case["id"], kt.kl(p, q), "reverse_kl", dtype)
    oracles.assert_reference(case["id"], kt.kl(q, p), "forward_kl", dtype)


@dtypes
@pytest.mark.parametrize("case", oracles.slow_look_alikes(EVERY))
def test_generator_and_derivative_are_accurate(case, dtype):
    u = RATIOS.astype(dtype)
    # Tsallis adds two parts of order one that cancel where the ratio is small.
    floor = 4 if isinstance(case.divergence, kt.Tsallis) else 0
    # Powers are exponentials of α log u, which rounding makes that many ulps uncertain.
    ulps = max(32, 3 * np.log(RATIOS.max())) if case.id == "alpha-3" else 32
    assert_accurate(case.divergence.f(u), exactly(case.generator.f, u), dtype, ulps, floor)
    if case.id != "total-variation":
        # Near u = 1 the derivative passes through 0: absolute accuracy there.
        assert_accurate(
            case.divergence.f_prime(u), exactly(case.generator.f_prime, u), dtype, floor=4
        )


@dtypes
@cases
def test_generator_keeps_relative_accuracy_next_to_one(case, dtype):
    # f vanishes quadratically at 1; a formula that subtracts would return rounding noise.
    u = (1 + np.array([-1, 1, 3, -40, 1000]) * eps(dtype) ** 0.75).astype(dtype)
    tilted = isinstance(case.divergence, (kt.Tsallis, kt.ChiSquaredKL))
    # A generator that crosses 1 with a slope is linear there, and exact to the last bits of u.
    assert_accurate(case.divergence.f(u), exactly(case.generator.f, u), dtype, ulps=64)
    assert tilted == bool(abs(float(case.divergence.f_prime(1.0))) > 0.5)


@dtypes
@cases
def test_derivatives_agree_with_automatic_differentiation(case, dtype):
    u = jnp.asarray(RATIOS[2:-2], dtype)
    first = jax.jit(jax.vmap(jax.grad(case.divergence.f)))(u)
    second = jax.jit(jax.vmap(jax.grad(case.divergence.f_prime)))(u)
    f_prime, f_second = case.divergence.f_prime(u), case.divergence.f_second(u)
    np.testing.assert_allclose(first, f_prime, rtol=64 * eps(dtype), atol=64 * eps(dtype))
    # f″ as a change per log u, which differentiation can give to the rounding of f′ itself
    np.testing.assert_array_less(
        np.abs(u * (second - f_second)),
        64 * eps(dtype) * (np.abs(u * f_second) + np.abs(f_prime)),
    )


@dtypes
@cases
def test_second_derivative_at_one_is_as_documented(case, dtype):
    one = np.ones((), dtype)
    assert_accurate(case.divergence.f_second(one), case.curvature, dtype, ulps=4)
    assert float(case.divergence.f(one)) == pytest.approx(0, abs=eps(dtype))


@dtypes
@cases
def test_inverse_of_the_derivative(case, dtype):
    u = np.array([2.0**-9, 0.1, 0.5, 0.9, 1.0, 1.1, 2.0, 7.0, 300.0], dtype)
    s = np.asarray(case.divergence.f_prime(u))
    with mp.workdps(60):
        want = exactly(case.generator.inverse, s)
        # A rounding error of s moves u by 1/f″; both enter what can be asked for.
        moved = np.abs(s) * eps(dtype) / np.asarray(case.divergence.f_second(u), np.float64) / want
    error = np.abs(np.asarray(case.divergence.f_prime_inverse(s), np.float64) / want - 1)
    assert np.all(error <= 16 * eps(dtype) + 4 * moved), (error / eps(dtype), moved / eps(dtype))


@dtypes
@cases
def test_inverse_beyond_the_range_of_the_derivative(case, dtype):
    slope = float(case.generator.slope())
    inverse = case.divergence.f_prime_inverse
    if slope < INF:
        beyond = np.asarray([slope * (1 + 1e-5), slope + 1, 1e30], dtype)
        assert np.all(np.isposinf(inverse(beyond)))
    else:
        assert np.all(np.asarray(inverse(np.asarray([5.0, 20.0], dtype))) > 1)
    deep = np.asarray(inverse(np.asarray([-1e3, -1e30], dtype)))
    if float(case.divergence.f_prime(0.0)) > -INF:
        assert np.all(deep == 0)
    else:
        assert np.all((deep >= 0) & (deep < 0.1))


@cases
def test_values_at_zero_and_slope_at_infinity(case):
    assert float(case.divergence.f(0.0)) == pytest.approx(float(case.generator.f_zero()), rel=1e-6)
    assert float(case.divergence.slope_at_infinity) == pytest.approx(
        float(case.generator.slope()), rel=1e-6
    )
    if case.generator.slope() == mp.inf:
        assert float(case.divergence.f_prime(1e30)) > 60
    else:
        far = exactly(case.generator.f_prime, [1e30])[0]
        assert float(case.divergence.f_prime(1e30)) == pytest.approx(far, rel=1e-5)
        assert far <= float(case.generator.slope())


def test_total_variation_by_hand():
    tv = kt.TotalVariation()
    np.testing.assert_array_equal(tv.f(jnp.array([0.0, 0.5, 1.0, 3.0])), [0.5, 0.25, 0, 1])
    np.testing.assert_array_equal(tv.f_prime(jnp.array([0.2, 4.0])), [-0.5, 0.5])
    np.testing.assert_array_equal(
        tv.f_prime_inverse(jnp.array([-0.6, 0.0, 0.4, 0.6])), [0, 1, 1, INF]
    )
    assert float(tv.slope_at_infinity) == 0.5


PAIRS = {
    "both": ([-0.5, -2.0, -1.5], [-1.0, -0.7, -2.5]),
    "policy-zero": ([0.0, -INF, -INF], [-1.0, -0.7, -2.5]),
    "reference-zero": ([-1.0, -0.7, -2.5], [0.0, -INF, -INF]),
    "each": ([-0.1, -INF, -2.5], [-INF, -0.7, -0.7]),
    "common-zero": ([-0.3, -1.2, -INF], [-1.5, -0.2, -INF]),
    "disjoint": ([0.0, -INF, -INF], [-INF, -0.5, -0.9]),
    "deep": ([-800.0, 0.0, -1.0], [-1.0, -0.5, -790.0]),
}


@dtypes
@pytest.mark.parametrize("case", oracles.slow_look_alikes(EVERY))
def test_divergence_at_zeros_on_either_side(case, dtype):
    p = np.array([pair[0] for pair in PAIRS.values()], dtype)
    q = np.array([pair[1] for pair in PAIRS.values()], dtype)
    got = np.asarray(measure(case.divergence, p, q))
    want = [oracles.exact_divergence(a, b, case.generator) for a, b in zip(p, q, strict=True)]
    largest = float(jnp.finfo(dtype).max)
    # The rows are not normalised, so the terms may cancel: accuracy is that of the largest term.
    for name, g, w in zip(PAIRS, got, want, strict=True):
        if w > largest:
            assert g == INF, name
        else:
            assert float(abs(mp.mpf(float(g)) - w)) <= 64 * eps(dtype) * float(1 + abs(w)), name


@dtypes
@pytest.mark.parametrize("case", oracles.slow_look_alikes(EVERY))
def test_nearly_equal_distributions_keep_relative_accuracy(case, dtype):
    rng = np.random.default_rng(3)
    q = oracles.log_normalised(rng.normal(size=(4, 6)), np.float64)
    nudge = np.array([1e-2, 1e-3, 1e-4, 1e-5])[:, None] * rng.normal(size=q.shape)
    p = oracles.log_normalised(q + nudge, dtype)
    q = q.astype(dtype)
    got = np.asarray(measure(case.divergence, p, q), np.float64)
    for a, b, g in zip(p, q, got, strict=True):
        want = oracles.exact_divergence(a, b, case.generator)
        # Masses that miss 1 by a rounding error cost that much times the slope at 1.
        slope = abs(float(case.generator.f_prime(mp.mpf(1))))
        slack = 8 * eps(dtype) * slope
        assert float(abs(mp.mpf(g) - want)) <= 64 * eps(dtype) * float(abs(want)) + slack


@given(testing.divergences(), testing.log_policies(4), testing.log_policies(4))
def test_divergences_are_not_negative(divergence, p, q):
    tolerance = 32 * eps(p.dtype)
    assert float(measure(divergence, p, q)) >= -tolerance
    assert float(measure(divergence, p, p)) == pytest.approx(0, abs=tolerance)


@given(testing.log_policies(4, zeros=False), testing.log_policies(4, zeros=False))
def test_symmetric_divergences_and_mirrored_pairs(p, q):
    close = {"rel": 1e-3, "abs": 1e-5}
    for same in (kt.JensenShannon(), kt.SquaredHellinger(), kt.TotalVariation()):
        assert float(measure(same, p, q)) == pytest.approx(float(measure(same, q, p)), **close)
    for there, back in (
        (kt.ReverseKL(), kt.ForwardKL()),
        (kt.ChiSquared(), kt.NeymanChiSquared()),
        (kt.Alpha(0.25), kt.Alpha(0.75)),
    ):
        assert float(measure(there, p, q)) == pytest.approx(float(measure(back, q, p)), **close)


NEAR = [sign * 10.0**-k for k in range(1, 12, 2) for sign in (1, -1)] + [0.0]


@pytest.mark.broad
@dtypes
@pytest.mark.parametrize("centre", [0.0, 1.0])
def test_alpha_is_smooth_through_both_kl_divergences(centre, dtype):
    alphas = np.array([centre + x for x in NEAR], dtype)
    us = np.array([1e-3, 0.3, 0.97, 1.0, 1.02, 2.5, 40.0, 1e4], dtype)
    grid_a, grid_u = (x.ravel() for x in np.meshgrid(alphas, us))

    def f(alpha, u):
        return kt.Alpha(alpha).f(u)

    def f_prime(alpha, u):
        return kt.Alpha(alpha).f_prime(u)

    def inverse(alpha, u):
        return kt.Alpha(alpha).f_prime_inverse(kt.Alpha(alpha).f_prime(u))

    value, by_u, by_alpha, mixed, back = (
        jax.jit(jax.vmap(g))(jnp.asarray(grid_a), jnp.asarray(grid_u))
        for g in (f, jax.grad(f, 1), jax.grad(f, 0), jax.grad(f_prime, 0), inverse)
    )

    with mp.workdps(60):
        h = mp.mpf(10) ** -20

        def shifted(alpha, u, method, step):
            # at a multiple of h away from 0 and 1, where the plain formula divides by nothing
            a, u = mp.mpf(float(alpha)) + step, mp.mpf(float(u))
            a = a + h / 7
            if method == "f":
                return (u**a - a * u + a - 1) / (a * (a - 1))
            return (u ** (a - 1) - 1) / (a - 1)

        for k, (alpha, u) in enumerate(zip(grid_a, grid_u, strict=True)):
            want_f = shifted(alpha, u, "f", 0)
            want_by_u = shifted(alpha, u, "f′", 0)
            want_by_alpha = (shifted(alpha, u, "f", h) - shifted(alpha, u, "f", -h)) / (2 * h)
            want_mixed = (shifted(alpha, u, "f′", h) - shifted(alpha, u, "f′", -h)) / (2 * h)
            where = f"alpha={alpha!r} u={u!r}"
            bar = 64 * eps(dtype)
            assert float(value[k]) == pytest.approx(float(want_f), rel=bar, abs=1e-30), where
            assert float(by_u[k]) == pytest.approx(float(want_by_u), rel=bar, abs=bar), where
            assert float(by_alpha[k]) == pytest.approx(
                float(want_by_alpha), rel=4 * bar, abs=bar * float(want_f)
            ), where
            assert float(mixed[k]) == pytest.approx(float(want_mixed), rel=4 * bar, abs=bar), where
            # s is rounded, and u responds to it by u^(2 − α)
            moved = abs(float(want_by_u)) * eps(dtype) * float(u) ** (1 - float(alpha))
            assert float(back[k]) == pytest.approx(float(u), rel=bar + 4 * moved), where


@dtypes
@pytest.mark.parametrize(
    ("divergence", "factor", "alpha", "tilt"),
    [
        (kt.ReverseKL(), 1, 1.0, 0),
        (kt.ForwardKL(), 1, 0.0, 0),
        (kt.ChiSquared(), 2, 2.0, 0),
        (kt.NeymanChiSquared(), 2, -1.0, 0),
        (kt.SquaredHellinger(), 0.5, 0.5, 0),
        (kt.Tsallis(0.5), 0.5, 0.5, 1),
        (kt.Tsallis(3.0), 3, 3.0, 1),
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_members_of_the_alpha_family(divergence, factor, alpha, tilt, dtype):
    u = np.array([0.0, 0.2, 1.0, 3.5], dtype)
    member = kt.Alpha(alpha)
    np.testing.assert_allclose(
        divergence.f(u),
        factor * np.asarray(member.f(u)) + tilt * (u - 1),
        rtol=16 * eps(dtype),
        atol=8 * eps(dtype),
    )
    np.testing.assert_allclose(
        divergence.f_second(u[1:]), factor * np.asarray(member.f_second(u[1:])), rtol=8 * eps(dtype)
    )
    p, q = (np.log(np.array(x, dtype)) for x in ([0.2, 0.3, 0.5], [0.6, 0.3, 0.1]))
    assert float(divergence(p, q)) == pytest.approx(
        factor * float(member(p, q)), rel=64 * eps(dtype)
    )


METHODS = ("f", "f_prime", "f_second")
WRITTEN = {
    "reverse-kl": (kt.ReverseKL(), lambda u: jax.scipy.special.xlogy(u, u) - u + 1),
    "forward-kl": (kt.ForwardKL(), lambda u: -jnp.log(u) + u - 1),
    "jensen-shannon": (
        kt.JensenShannon(),
        lambda u: jax.scipy.special.xlogy(u, u) - (u + 1) * jnp.log((u + 1) / 2),
    ),
    "hellinger": (kt.SquaredHellinger(), lambda u: (jnp.sqrt(u) - 1) ** 2),
    "neyman": (kt.NeymanChiSquared(), lambda u: (1 - u) ** 2 / u),
    "chi-squared": (kt.ChiSquared(), lambda u: (u - 1) ** 2),
    "chi-squared-kl": (
        kt.ChiSquaredKL(),
        lambda u: 0.5 * (u - 1) ** 2 + jax.scipy.special.xlogy(u, u),
    ),
}


@pytest.mark.quick_only("forward-kl", "chi-squared")
@dtypes
@pytest.mark.parametrize("name", WRITTEN)
def test_written_generators_equal_the_built_in_ones(name, dtype):
    built_in, f = WRITTEN[name]
    written = kt.FDivergence(f, name=name)
    u = np.array([0.05, 0.4, 0.9, 1.3, 6.0], dtype)

    @jax.jit
    def both(u):
        s = built_in.f_prime(u)
        pairs = {m: (getattr(written, m)(u), getattr(built_in, m)(u)) for m in METHODS}
        pairs["inverse"] = written.f_prime_inverse(s), u
        slope = jax.vmap(jax.grad(written.f_prime_inverse))(s)
        pairs["slope of the inverse"] = slope, 1 / built_in.f_second(u)
        return pairs

    for method, (got, want) in both(u).items():
        assert got.dtype == dtype
        np.testing.assert_allclose(
            got, want, rtol=1e3 * eps(dtype), atol=1e2 * eps(dtype), err_msg=method
        )
    assert float(written.slope_at_infinity) == pytest.approx(
        float(built_in.slope_at_infinity), rel=1e-3
    )
    assert float(written.f(0.0)) == pytest.approx(float(built_in.f(0.0)), rel=1e-6)
    p, q = (np.log(np.array(x, dtype)) for x in ([0.2, 0.3, 0.5], [0.6, 0.3, 0.1]))
    assert float(measure(written, p, q)) == pytest.approx(
        float(measure(built_in, p, q)), rel=1e3 * eps(dtype)
    )


@dtypes
def test_a_given_inverse_and_slope_are_used(dtype):
    asked = []

    def inverse(s):
        asked.append(s)
        return 1 / (1 - s)

    written = kt.FDivergence(
        lambda u: -jnp.log(u) + u - 1, f_prime_inverse=inverse, slope_at_infinity=1.0
    )
    s = np.array([-3.0, 0.0, 0.5, 1.5], dtype)
    got = written.f_prime_inverse(s)
    assert asked
    assert got.dtype == dtype
    np.testing.assert_allclose(got, [0.25, 1, 2, INF], rtol=4 * eps(dtype))
    assert float(written.slope_at_infinity) == 1


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda u: u * jnp.log(u), None),
        (lambda u: (u - 1) ** 2 + 0.5, r"f\(1\) = 0\.5"),
        (lambda u: -((u - 1) ** 2), r"strictly convex at 1, got f''\(1\) = -2"),
        (lambda u: u - 1, r"strictly convex at 1, got f''\(1\) = 0"),
        (lambda u: jnp.abs(u - 1), "TotalVariation"),
        (lambda u: jnp.nan * u, r"f\(1\) = nan"),
    ],
)
def test_bad_generators_are_rejected(f, message):
    if message is None:
        kt.FDivergence(f)
    else:
        with pytest.raises(ValueError, match=message):
            kt.FDivergence(f)


@pytest.mark.parametrize("q", [0, 0.0, -1.0, math.nan])
def test_tsallis_rejects_an_index_that_is_not_positive(q):
    with pytest.raises(ValueError, match=r"q must be above 0, got"):
        kt.Tsallis(q)


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        (0.0, [0.0], r"axis of outcomes, got shapes \(\) and \(1,\)"),
        ([0.0], [-0.7, -0.7], "log_policy has 1 outcomes and log_ref has 2"),
        (np.zeros((2, 1)), np.zeros((3, 1)), r"\(2, 1\) and log_ref \(3, 1\) do not broadcast"),
    ],
)
def test_divergences_reject_shapes_that_do_not_fit(p, q, message):
    with pytest.raises(ValueError, match=message):
        kt.ReverseKL()(p, q)
    with pytest.raises(ValueError, match=message):
        kt.kl(p, q)


def test_divergences_reject_complex_numbers():
    with pytest.raises(TypeError, match="complex"):
        kt.kl(np.zeros(2, np.complex64), np.zeros(2))


def test_divergences_are_immutable_pytrees():
    assert jax.tree.leaves(kt.ReverseKL()) == []
    assert jax.tree.leaves(kt.Alpha(0.5)) == [0.5]
    assert jax.tree.leaves(kt.Tsallis(2.0)) == [2.0]
    assert kt.ForwardKL() == kt.ForwardKL()
    assert kt.Alpha(0.5) == kt.Alpha(0.5) != kt.Alpha(0.25)
    assert kt.Alpha(0.5) != kt.Tsallis(0.5)
    assert len({kt.ReverseKL(), kt.ReverseKL(), kt.Alpha(0.5), kt.Alpha(0.5)}) == 2

    def f(u):
        return (u - 1) ** 2

    assert kt.FDivergence(f) == kt.FDivergence(f)
    assert hash(kt.FDivergence(f)) == hash(kt.FDivergence(f))
    assert kt.FDivergence(f) != kt.FDivergence(f, name="other")
    for divergence in (kt.Alpha(0.5), kt.FDivergence(f), kt.ReverseKL()):
        with pytest.raises(AttributeError):
            divergence.alpha = 1.0
        rebuilt = jax.tree.map(lambda x: x, divergence)
        assert rebuilt == divergence


def test_alpha_sweeps_by_vmap_and_by_broadcasting():
    p, q = (jnp.log(jnp.array(x)) for x in ([0.2, 0.3, 0.5], [0.6, 0.3, 0.1]))
    alphas = jnp.array([-1.0, 0.0, 0.5, 1.0, 2.0])
    one_by_one = [float(measure(kt.Alpha(float(a)), p, q)) for a in alphas]
    mapped = jax.jit(jax.vmap(lambda a: kt.Alpha(a)(p, q)))(alphas)
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-5)
    whole = jax.jit(jax.vmap(lambda d: d(p, q)))(kt.Alpha(alphas))
    np.testing.assert_allclose(whole, one_by_one, rtol=1e-5)
    rows = np.broadcast_to(p, (5, 3)), np.broadcast_to(q, (5, 3))
    np.testing.assert_allclose(measure(kt.Alpha(alphas), *rows), one_by_one, rtol=1e-5)


@given(st.sampled_from(CASES), testing.log_policies(3), testing.log_policies(3))
def test_merging_outcomes_never_increases_a_divergence(case, p, q):
    # The data-processing inequality, which every f-divergence obeys.
    def merge(x):
        return np.array([x[0], np.logaddexp(x[1], x[2])], x.dtype)

    fine = float(measure(case.divergence, p, q))
    coarse = float(measure(case.divergence, merge(p), merge(q)))
    slack = 64 * eps(p.dtype) * (1 + abs(fine)) if math.isfinite(fine) else 0
    assert coarse <= fine + slack
