"""Projections: onto moments, onto mixtures of Gaussians, and mixtures fitted to samples."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings, strategies as st
from oracles import DTYPES, assert_reference, eps, reference
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm

import kltarget as kt
from kltarget.mixtures import fit_mixture, from_sklearn, power_tilt, project, tilt
from kltarget.projections import moment_projection
from kltarget.spaces import GaussianMixture

DTYPE = DTYPES[0]
KEY = jax.random.key(0)

REF = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
FEATURES = np.array([[1, 0, 1, 0, 0], [0, 1, 1, 0, 1]], float).T


def moments_of(features, moments, ref=REF):
    with np.errstate(divide="ignore"):
        log_ref = np.log(np.asarray(ref, float))
    return moment_projection(*(jnp.asarray(x, DTYPE) for x in (log_ref, features, moments)))


def numbers(x):
    return np.asarray(x, np.float64)


def kl(p, q):
    on = p > 0
    return float((p[on] * np.log(p[on] / q[on])).sum())


@pytest.fixture(scope="module")
def both_rows():
    return moments_of(FEATURES, [[0.5, 0.6], [0.6, 0.45]])


@pytest.mark.parametrize(("row", "name"), [(0, "gdc-a"), (1, "gdc-b")])
def test_moment_projections_of_the_bank(both_rows, row, name):
    for key, got in (
        ("p", jnp.exp(both_rows.log_probs[row])),
        ("multipliers", both_rows.multipliers[row]),
        ("kl", both_rows.divergence_value[row]),
        ("log_Z", both_rows.log_normalizer[row]),
    ):
        # Values are differences of numbers of order 1.
        want = np.asarray(reference(name)["expected"][key])
        np.testing.assert_allclose(numbers(got), want, rtol=1e-10, atol=32 * eps(DTYPE))
    assert not np.any(both_rows.status)


def test_pythagoras_of_the_bank(both_rows):
    """Claim: KL(q‖π_ref) = KL(q‖p) + KL(p‖π_ref), p the projection of π_ref on moments that q has
    (arXiv 2012.11635).

    Holds.
    """
    case = reference("gdc-pythagoras")
    q, want = np.array(case["inputs"]["q"]), case["expected"]
    gap = both_rows.pythagorean_gap(jnp.log(jnp.asarray(q, DTYPE)))
    assert abs(float(gap[0])) < 32 * eps(DTYPE)
    p = numbers(both_rows.probs[0])
    assert kl(q, REF) == pytest.approx(want["kl_q_ref"], rel=1e-9)
    assert kl(q, p) == pytest.approx(want["kl_q_p"], rel=max(1e-9, 100 * eps(DTYPE)))
    assert abs(float(gap[1])) > 1e-3  # q has other moments than the second row


def test_a_pointwise_constraint_filters_the_reference():
    case = reference("gdc-pointwise")
    indicator = np.array(case["inputs"]["allowed"], float)[:, None]
    p = moments_of(indicator, [1.0])
    assert_reference("gdc-pointwise", p.probs, "p", DTYPE)
    assert_reference("gdc-pointwise", p.divergence_value, "kl", DTYPE)
    assert int(p.status) == kt.Status.TRUNCATED
    assert np.isneginf(numbers(p.log_probs)[[0, 1, 4]]).all()
    assert np.isneginf(p.pythagorean_gap(jnp.log(jnp.asarray(REF, DTYPE))))


def test_moments_on_an_edge_use_that_face_only():
    # On the edge from (1, 0) to (1, 1) outcomes 0 and 2 are left, in the proportion asked for.
    p = moments_of(FEATURES, [1.0, 0.25])
    np.testing.assert_allclose(p.probs, [0.75, 0, 0.25, 0, 0], atol=16 * eps(DTYPE))
    assert int(p.status) == kt.Status.TRUNCATED
    want = 0.75 * np.log(0.75 / 0.4) + 0.25 * np.log(0.25 / 0.15)
    assert float(p.divergence_value) == pytest.approx(want, rel=32 * eps(DTYPE))
    assert np.isfinite(numbers(p.multipliers)).all()


@pytest.mark.broad
def test_constraints_on_very_many_outcomes_need_no_programme(monkeypatch):
    """Pointwise and distributional ones at once, and a face that few kinds of outcomes span."""
    rng = np.random.default_rng(0)
    ref = rng.dirichlet(np.ones(100_000))
    features = np.stack([*(rng.uniform(size=(3, ref.size)) < 0.3), rng.normal(size=ref.size)], 1)
    asked = np.array([1.0, 0.0, 0.5, 0.4], DTYPE)
    allowed = (features[:, 0] == 1) & (features[:, 1] == 0)
    with monkeypatch.context() as patch:
        patch.setattr("kltarget.projections._moments.linprog", None)
        p = moments_of(features, asked, ref)
    assert int(p.status) == kt.Status.TRUNCATED
    assert np.isneginf(numbers(p.log_probs)[~allowed]).all()
    probs = np.exp(numbers(p.log_probs))
    np.testing.assert_allclose(probs @ features, asked.astype(float), atol=64 * eps(DTYPE))
    tilt = (
        numbers(p.log_probs)[allowed]
        - np.log(ref[allowed])
        - features[allowed] @ numbers(p.multipliers)
    )
    np.testing.assert_allclose(tilt, tilt.mean(), atol=128 * eps(DTYPE))
    # Either of two features, never both, and always one: a face that is no feature's end.
    either = features[:, :2]
    q = moments_of(either, [0.5, 0.5], np.where(either.all(1), 0, ref) / ref[~either.all(1)].sum())
    assert int(q.status) == kt.Status.TRUNCATED
    assert np.isneginf(numbers(q.log_probs)[either.sum(1) != 1]).all()


@pytest.mark.broad
def test_moments_just_off_the_boundary_are_in_the_interior():
    ref = np.array([0.5, 0.3, 0.2])
    p = moments_of([[0.0], [1.0], [2.0]], [[1e-9], [0.0], [1e-5]], ref)
    assert p.status.tolist() == [0, kt.Status.TRUNCATED, 0]
    # Σ π_ref,i (i − μ) zⁱ = 0 with z = e^η.
    for mu, eta in zip([1e-9, 1e-5], numbers(p.multipliers)[[0, 2], 0], strict=True):
        a, b, c = ref * (np.arange(3) - np.float64(np.asarray(mu, DTYPE)))
        z = 2 * -a / (b + np.sqrt(b**2 - 4 * a * c))
        assert eta == pytest.approx(np.log(z), rel=100 * eps(DTYPE))
    mean = numbers(p.probs[0]) @ np.arange(3)
    np.testing.assert_allclose(mean, 1e-9, rtol=1e3 * eps(DTYPE))


@pytest.mark.slow  # with x64 on
@pytest.mark.skipif(np.float32 == DTYPE, reason="linear programmes are solved in double precision")
def test_moments_off_an_edge_by_rounding_are_on_it():
    p = moments_of([[0.1], [0.1], [0.3]], [np.nextafter(0.1, 1)], [0.5, 0.3, 0.2])
    assert int(p.status) == kt.Status.TRUNCATED


def test_moments_out_of_reach_are_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match=r"moments \[1.2, 0.5.*cannot be had.*nearest.*\[1\. "):
        moments_of(FEATURES, [1.2, 0.5])
    with pytest.raises(ValueError, match=r"1\.00003\] cannot be had.*off by up to [23].*e-05"):
        moments_of(FEATURES, [0.5, 1.00003])
    with pytest.raises(ValueError, match="at index 1 cannot be had"):
        moments_of(FEATURES, [[0.5, 0.6], [0.9, -0.1]])
    with pytest.raises(ValueError, match="cannot be had"):  # only without outcomes 1, 2 and 4
        moments_of(FEATURES, [0.5, 0.6], ref=[0.8, 0, 0, 0.2, 0])


def test_under_a_trace_the_status_says_so():
    log_ref, features = jnp.log(jnp.asarray(REF, DTYPE)), jnp.asarray(FEATURES, DTYPE)
    asked = jnp.asarray([[1.2, 0.5], [0.5, 0.6]], DTYPE)
    p = jax.jit(moment_projection)(log_ref, features, asked)
    assert [int(x) for x in p.status] == [kt.Status.INFEASIBLE, 0]
    assert np.isnan(p.log_probs[0]).all()
    assert np.isnan(p.divergence_value[0])
    np.testing.assert_allclose(p.probs[1] @ features, asked[1], atol=16 * eps(DTYPE))
    bad = jax.jit(moment_projection)(log_ref + 1, features, asked)
    assert np.all(numbers(bad.status).astype(int) & kt.Status.INVALID_REFERENCE)


def test_superfluous_features_get_the_multipliers_of_least_norm():
    both = np.concatenate([FEATURES, 1 - FEATURES, np.ones((5, 1))], axis=1)
    p = moments_of(both, [0.6, 0.45, 0.4, 0.55, 1.0])
    want = np.array(reference("gdc-b")["expected"]["multipliers"])
    expected = np.concatenate([want / 2, -want / 2, [0]])
    np.testing.assert_allclose(p.multipliers, expected, atol=64 * eps(DTYPE))
    assert_reference("gdc-b", p.probs, "p", DTYPE)
    both[:, 2] += 0.1
    with pytest.raises(ValueError, match="cannot be had"):  # contradictory
        moments_of(both, [0.6, 0.45, 0.4, 0.55, 1.0])


@settings(max_examples=12)
@given(st.integers(0, 10_000))
def test_projections_obey_pythagoras_and_forget_shifts(seed):
    rng = np.random.default_rng(seed)
    ref = rng.dirichlet(np.full(5, 0.3)) + 1e-6
    ref /= ref.sum()
    features = rng.normal(size=(5, 2))
    q = rng.dirichlet(np.full(5, 0.5))
    p = moments_of(features, q @ features, ref)
    size = 1 + np.abs(numbers(p.multipliers)).max()
    assert not int(p.status) & ~int(kt.Status.TRUNCATED)
    tolerance = 200 * eps(DTYPE) * size
    np.testing.assert_allclose(numbers(p.probs) @ features, q @ features, atol=tolerance)
    if not int(p.status):
        with np.errstate(divide="ignore"):
            gap = p.pythagorean_gap(jnp.asarray(np.log(q), DTYPE))
        assert abs(float(gap)) < tolerance
    moved = moments_of(features + 3.0, q @ features + 3.0, ref)
    np.testing.assert_allclose(moved.probs, p.probs, atol=5 * tolerance)
    # Every distribution with these moments is further from the reference.
    assert kl(q, ref) > float(p.divergence_value) - tolerance


@pytest.mark.parametrize("seed", range(2))
def test_against_an_interior_point_solver(seed):
    import cvxpy as cp

    rng = np.random.default_rng(seed)
    ref, features = rng.dirichlet(np.ones(5)), rng.normal(size=(5, 2))
    asked = rng.dirichlet(np.ones(5)) @ features
    p = cp.Variable(5)
    problem = cp.Problem(
        cp.Minimize(cp.sum(cp.rel_entr(p, ref))), [cp.sum(p) == 1, features.T @ p == asked]
    )
    slack = oracles.clarabel(problem)
    got = moments_of(features, asked, ref)
    # A shift of the moments by the peer's slack is worth the multipliers.
    slack *= 1 + np.abs(numbers(got.multipliers)).sum()
    assert float(got.divergence_value) == pytest.approx(problem.value, abs=slack + 32 * eps(DTYPE))
    # What is within `slack` of the least divergence is within √(2·slack) in L₁ (Pinsker).
    np.testing.assert_allclose(got.probs, p.value, atol=np.sqrt(2 * slack) + 32 * eps(DTYPE))


@settings(max_examples=12)
@given(st.integers(0, 10_000))
def test_projections_meet_their_optimality_conditions(seed):
    """Feasible, exponentially tilted, and as good as the dual's value at the multipliers."""
    rng = np.random.default_rng(seed)
    ref, features = rng.dirichlet(np.ones(5)), rng.normal(size=(5, 2))
    asked = rng.dirichlet(np.ones(5)) @ features
    got = moments_of(features, asked, ref)
    # What was asked is what the float type holds of it.
    ref, features, asked = (numbers(np.asarray(x, DTYPE)) for x in (ref, features, asked))
    p, eta = numbers(got.probs), numbers(got.multipliers)
    tilts = features @ eta
    tolerance = 32 * eps(DTYPE) * (1 + np.abs(tilts).max())
    np.testing.assert_allclose(p.sum(), 1, atol=tolerance)
    np.testing.assert_allclose(p @ features, asked, atol=tolerance * np.abs(features).max())
    log_z = logsumexp(np.log(ref) + tilts)
    np.testing.assert_allclose(np.log(p / ref), tilts - log_z, atol=tolerance)
    # No distribution with these moments has a divergence below this.
    dual = eta @ asked - log_z
    assert float(got.divergence_value) == pytest.approx(dual, abs=tolerance)


def test_deep_references_are_reached():
    ref = np.array([0.0, -300, -500, -800, -50.0])
    log_ref = jnp.asarray(oracles.log_normalised(ref, DTYPE))
    features = jnp.asarray([[0.0], [1.0], [2.0], [3.0], [-1.0]], DTYPE)
    p = moment_projection(log_ref, features, jnp.asarray([2.5], DTYPE))
    # Between -50 at -1 and -800 at 3 the chord decides: all else is exponentially less.
    assert float(p.probs @ features[:, 0]) == pytest.approx(2.5, rel=1e3 * eps(DTYPE))
    assert not int(p.status)


def test_derivatives_of_moment_projections():
    log_ref, features = jnp.log(jnp.asarray(REF, DTYPE)), jnp.asarray(FEATURES, DTYPE)
    asked = np.array([0.6, 0.45])

    def multipliers(moments, log_ref):
        return moment_projection(log_ref, features, moments).multipliers

    at = (jnp.asarray(asked, DTYPE), log_ref)
    backward = jax.jit(jax.jacrev(multipliers, (0, 1)))(*at)
    p = np.array(reference("gdc-b")["expected"]["p"])
    apart = FEATURES - asked
    inverse = np.linalg.inv((p[:, None] * apart).T @ apart)
    np.testing.assert_allclose(backward[0], inverse, rtol=500 * eps(DTYPE))
    # A reference that gains log-mass δ at an outcome moves E[φ] by p(φ − μ)δ, which η undoes.
    want = -inverse @ (p[:, None] * apart).T
    np.testing.assert_allclose(backward[1], want, atol=500 * eps(DTYPE))


def test_what_a_moment_projection_refuses():
    with pytest.raises(ValueError, match=r"features has shape \(2, 5\), but log_ref \(5,\)"):
        moments_of(FEATURES.T, [0.5, 0.6])
    with pytest.raises(ValueError, match=r"moments has shape \(3,\)"):
        moments_of(FEATURES, [0.5, 0.6, 0.1])
    with pytest.raises(ValueError, match="not normalised"):
        moments_of(FEATURES, [0.5, 0.6], ref=2 * REF)
    with pytest.raises(ValueError, match="moments must be finite"):
        moments_of(FEATURES, [0.5, np.nan])


CLUSTERS = np.random.default_rng(3)
WHICH = CLUSTERS.choice(3, size=600, p=[0.5, 0.3, 0.2])
PLACES = np.array([[0.0, 0], [2.5, 1], [-1, 3]])
FACTORS = np.array([[[1, 0], [0.5, 0.6]], [[0.7, 0], [-0.3, 0.5]], [[0.4, 0], [0, 1.0]]])
SAMPLES = PLACES[WHICH] + np.einsum("nij,nj->ni", FACTORS[WHICH], CLUSTERS.normal(size=(600, 2)))

# scikit-learn 1.x on these samples, best of 20 starts, reg_covar 0, tol 1e-12.
PEER = {
    "full": (
        -2.924717274191436,
        [0.17781834468102195, 0.32175202420844207, 0.500429631110536],
        [
            [-0.9299980017462183, 3.18645914255416],
            [2.4354030198111256, 1.0629334041268352],
            [-0.02766482788509355, 0.022582870998514047],
        ],
    ),
    "diag": (
        -3.0004016589500595,
        [0.1724183729168072, 0.36016098284558673, 0.46742064423760615],
        [
            [-0.9205717001419459, 3.2497595502812575],
            [-0.47210561959586883, -0.24622722511176431],
            [1.9963567221585878, 0.9590423384120859],
        ],
    ),
    "spherical": (
        -3.0850574133312065,
        [0.16292138297622868, 0.4116340982694989, 0.42544451875427247],
        [
            [-0.9031680804270528, 3.3584167463158785],
            [2.2009895751942983, 0.9849283540289706],
            [-0.36309345403647436, -0.07680200836596505],
        ],
    ),
}


def em_step(x, shares, weights, means, covariances):
    """One step of EM, component by component."""
    logs = np.stack(
        [
            np.log(w)
            - 0.5 * np.einsum("ni,ij,nj->n", x - m, np.linalg.inv(c), x - m)
            - 0.5 * np.linalg.slogdet(2 * np.pi * c)[1]
            for w, m, c in zip(weights, means, covariances, strict=True)
        ]
    )
    given = shares * np.exp(logs - logsumexp(logs, axis=0))
    masses = given.sum(1)
    new = given @ x / masses[:, None]
    spread = [(g * (x - m).T) @ (x - m) / g.sum() for g, m in zip(given, new, strict=True)]
    return float(shares @ logsumexp(logs, axis=0)), masses, new, np.array(spread)


@pytest.fixture(scope="module")
def fitted():
    return fit_mixture(jnp.asarray(SAMPLES, DTYPE), 3, key=KEY, gain_tol=1e-12, max_steps=5000)


@pytest.mark.broad
def test_fits_are_those_of_scikit_learn(fitted):
    check_against_peer(fitted, "full")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diag", "spherical"])
def test_fits_of_other_kinds_are_those_of_scikit_learn(kind):
    x = jnp.asarray(SAMPLES, DTYPE)
    fit = fit_mixture(
        x, 3, key=KEY, covariance_type=kind, gain_tol=1e-12, max_steps=5000, num_starts=24
    )
    check_against_peer(fit, kind)
    off = numbers(fit.mixture.covariances)[:, 0, 1]
    np.testing.assert_array_equal(off, 0)


def check_against_peer(fit, kind):
    score, weights, means = PEER[kind]
    order = np.argsort(numbers(fit.mixture.log_weights))
    assert float(fit.log_likelihood) == pytest.approx(score, rel=max(1e-9, 20 * eps(DTYPE)))
    # Where rounding ends the climb the likelihood is flat to its square root.
    flat = max(1e-4, 20 * eps(DTYPE) ** 0.5)
    np.testing.assert_allclose(np.exp(fit.mixture.log_weights)[order], weights, atol=flat)
    np.testing.assert_allclose(numbers(fit.mixture.means)[order], means, atol=flat)
    assert bool(fit.converged)


def test_fits_are_fixed_points_of_independent_steps_and_keep_moments(fitted):
    q = fitted.mixture
    parts = (np.exp(numbers(q.log_weights)), numbers(q.means), numbers(q.covariances))
    shares = np.full(600, 1 / 600)
    score, weights, means, covariances = em_step(SAMPLES, shares, *parts)
    flat = max(1e-5, 10 * eps(DTYPE) ** 0.5)
    assert score == pytest.approx(float(fitted.log_likelihood), rel=20 * eps(DTYPE))
    for got, want in zip(parts, (weights, means, covariances), strict=True):
        np.testing.assert_allclose(got, want, atol=flat)
    # After any step, converged or not, the mixture has the samples' own moments.
    np.testing.assert_allclose(q.mean, SAMPLES.mean(0), atol=50 * eps(DTYPE))
    np.testing.assert_allclose(q.covariance, np.cov(SAMPLES.T, bias=True), atol=200 * eps(DTYPE))


def test_the_likelihood_never_falls():
    x = jnp.asarray(SAMPLES, DTYPE)
    scores = [
        float(fit_mixture(x, 3, key=KEY, gain_tol=0.0, max_steps=n).log_likelihood)
        for n in range(1, 9)
    ]
    # More steps can only help the best of the same starts.
    assert (np.diff(scores) > -20 * eps(DTYPE)).all()
    assert scores[-1] > scores[0] + 0.01


def test_weighted_fits_are_fixed_points_of_weighted_steps():
    counts = np.random.default_rng(0).integers(0, 4, size=600)
    with np.errstate(divide="ignore"):
        logs = jnp.asarray(np.log(counts), DTYPE)
    x = jnp.asarray(SAMPLES, DTYPE)
    q = fit_mixture(x, 3, key=KEY, log_weights=logs, gain_tol=1e-12, max_steps=5000).mixture
    parts = (np.exp(numbers(q.log_weights)), numbers(q.means), numbers(q.covariances))
    _, *stepped = em_step(SAMPLES, counts / counts.sum(), *parts)
    for got, want in zip(parts, stepped, strict=True):
        np.testing.assert_allclose(got, want, atol=max(1e-5, 10 * eps(DTYPE) ** 0.5))
    repeated = np.repeat(SAMPLES, counts, axis=0)
    np.testing.assert_allclose(q.mean, repeated.mean(0), atol=50 * eps(DTYPE))


def test_samples_on_few_points_have_no_fit():
    x = np.tile([[0.0, 1], [2, 3]], (300, 1))
    with pytest.raises(ValueError, match=r"collapsed .* in every one of 8 starts.*min_variance"):
        fit_mixture(jnp.asarray(x, DTYPE), 3, key=KEY)


@pytest.mark.broad
@pytest.mark.parametrize("value", [0.1, 1.0])
def test_samples_that_are_alike_have_no_fit_but_a_bounded_one(value):
    x = jnp.full((50, 1), value, DTYPE)
    with pytest.raises(ValueError, match=r"collapsed .* in every one of 8 starts.*min_variance"):
        fit_mixture(x, 1, key=KEY)
    p = fit_mixture(x, 2, key=KEY, min_variance=0.1)
    assert int(p.num_collapsed) == 0
    np.testing.assert_allclose(p.log_likelihood, norm.logpdf(0, 0, np.sqrt(0.1)), rtol=1e-5)
    np.testing.assert_allclose(p.mixture.means, value, rtol=8 * eps(DTYPE))


def test_more_components_than_distinct_samples_where_variances_are_bounded():
    x = jnp.asarray([[0.0], [0.0], [1.0], [1.0]], DTYPE)
    p = fit_mixture(x, 3, key=KEY, min_variance=0.1)
    assert int(p.num_collapsed) == 0
    np.testing.assert_allclose(p.mixture.covariances, 0.1, rtol=8 * eps(DTYPE))
    np.testing.assert_allclose(np.sort(p.mixture.log_weights)[1:], np.log(0.5), rtol=1e-5)
    # Two components of half the mass at ±a around the middle: tanh(a/2v) = 2a.
    place = np.sort(np.abs(numbers(p.mixture.means)[:, 0] - 0.5))[0]
    assert place == pytest.approx(np.tanh(place / 0.2) / 2, rel=1e-3)


@pytest.mark.slow
def test_collapsed_components_are_discarded_and_never_mended():
    # Two coinciding samples far from the rest: a spike there has unbounded likelihood.
    x = np.concatenate([np.random.default_rng(1).normal(size=(30, 1)), [[9.0], [9.0]]])
    x = jnp.asarray(x, DTYPE)
    with pytest.raises(ValueError, match=r"collapsed .* in every one of 4 starts.*min_variance"):
        fit_mixture(x, 2, key=KEY, num_starts=4)
    held = fit_mixture(x, 2, key=KEY, num_starts=4, min_variance=0.01)
    assert float(held.mixture.covariances.min()) == pytest.approx(0.01, rel=20 * eps(DTYPE))
    assert int(held.num_collapsed) == 0


def test_what_a_fit_refuses():
    with pytest.raises(ValueError, match=r"samples has shape \(3,\): it needs shape \[N, d\]"):
        fit_mixture(np.zeros(3), 1, key=KEY)
    with pytest.raises(ValueError, match=r"log_weights has shape \(2,\), but samples \(3, 1\)"):
        fit_mixture(np.zeros((3, 1)), 1, key=KEY, log_weights=np.zeros(2))
    with pytest.raises(ValueError, match="num_components must be at least 1"):
        fit_mixture(np.zeros((3, 1)), 0, key=KEY)
    with pytest.raises(ValueError, match="covariance_type must be one of"):
        fit_mixture(np.zeros((3, 1)), 1, key=KEY, covariance_type="tied")
    with pytest.raises(ValueError, match="samples must be finite"):
        fit_mixture(np.full((3, 1), np.nan), 1, key=KEY)


@pytest.mark.parametrize(
    ("kind", "covariances"),
    [
        ("full", np.array([[[2.0, 0.5], [0.5, 1]], [[1, 0], [0, 3.0]]])),
        ("tied", np.array([[2.0, 0.5], [0.5, 1]])),
        ("diag", np.array([[2.0, 1], [1, 3.0]])),
        ("spherical", np.array([2.0, 3.0])),
    ],
)
def test_mixtures_of_scikit_learn(kind, covariances):
    model = types.SimpleNamespace(
        weights_=np.array([0.25, 0.75]),
        means_=np.array([[0.0, 1], [2, 3]]),
        covariances_=covariances,
        covariance_type=kind,
    )
    got = from_sklearn(model)
    full = {
        "full": lambda: covariances,
        "tied": lambda: np.stack([covariances] * 2),
        "diag": lambda: np.stack([np.diag(x) for x in covariances]),
        "spherical": lambda: np.stack([x * np.eye(2) for x in covariances]),
    }[kind]()
    np.testing.assert_allclose(got.covariances, full, rtol=1e-6)
    np.testing.assert_allclose(np.exp(got.log_weights), [0.25, 0.75], rtol=1e-6)
    with pytest.raises(TypeError, match="no weights_"):
        from_sklearn(object())


def mixture_1d(weights, means, stds):
    fields = (np.log(weights), np.reshape(means, (-1, 1)), np.square(stds))
    return GaussianMixture(*(jnp.asarray(x, DTYPE) for x in fields), covariance_type="spherical")


APART = {"weights": [0.75, 0.25], "means": [-3.0, 3.5], "stds": [1.0, 0.7]}
CLOSE = {"weights": [0.6, 0.4], "means": [-1.0, 1.2], "stds": [0.8, 0.6]}


def log_density(case, x):
    parts = zip(case["weights"], case["means"], case["stds"], strict=True)
    return logsumexp([np.log(w) + norm.logpdf(x, m, s) for w, m, s in parts], axis=0)


@pytest.fixture(scope="module")
def seeking():
    return project(mixture_1d(**APART), 1, "reverse", key=KEY)


@pytest.mark.slow
def test_forward_projection_matches_moments():
    p = project(mixture_1d(**APART), 1, "forward", key=KEY)
    assert_reference("proj-forward-gauss", p.mixture.means[0, 0], "mean", DTYPE)
    assert_reference("proj-forward-gauss", p.mixture.cholesky[0, 0, 0], "std", DTYPE)
    assert_reference("proj-forward-gauss", p.divergence_value, "kl", DTYPE)
    assert float(p.error) < 1e-10
    assert bool(p.converged.all())


@pytest.mark.broad
def test_reverse_projection_finds_both_modes(seeking):
    want = reference("proj-reverse-rbd")["expected"]
    assert seeking.optima_values.shape == (2,)
    for row, name in enumerate(["mode1", "mode2"]):
        got = (
            seeking.optima.means[row, 0, 0],
            seeking.optima.cholesky[row, 0, 0, 0],
            seeking.optima_values[row],
        )
        expected = [want[name][key] for key in ("mean", "std", "kl")]
        np.testing.assert_allclose(numbers(got), expected, rtol=max(1e-9, 4 * eps(DTYPE)))
    assert (np.asarray(seeking.starts_per_optimum) > 0).all()
    assert seeking.reached.shape == (16,)
    assert float(seeking.gradient_norms.max()) < 1e-10


@pytest.mark.broad
def test_reverse_projection_of_close_modes_is_unique():
    p = project(mixture_1d(**CLOSE), 1, "reverse", key=KEY)
    assert p.optima_values.shape == (1,)
    assert_reference("proj-reverse-close", p.mixture.means[0, 0], "mean", DTYPE)
    assert_reference("proj-reverse-close", p.mixture.cholesky[0, 0, 0], "std", DTYPE)
    assert_reference("proj-reverse-close", p.divergence_value, "kl", DTYPE)


def test_reverse_optima_are_stationary_and_their_values_are_divergences(seeking):
    """By adaptive quadrature, and the target's score by hand."""

    def score(x):
        parts = list(zip(APART["weights"], APART["means"], APART["stds"], strict=True))
        logs = np.array([np.log(w) + norm.logpdf(x, m, s) for w, m, s in parts])
        given = np.exp(logs - logsumexp(logs))
        return sum(g * (m - x) / s**2 for g, (_, m, s) in zip(given, parts, strict=True))

    for row in range(2):
        m = float(seeking.optima.means[row, 0, 0])
        s = float(seeking.optima.cholesky[row, 0, 0, 0])

        def expect(h):
            return quad(lambda z: norm.pdf(z) * h(z), -9, 9, epsabs=1e-11, limit=400)[0]

        slack = max(1e-9, 8 * eps(DTYPE))
        assert abs(expect(lambda z, m=m, s=s: score(m + s * z))) < slack * 4
        assert abs(1 / s + expect(lambda z, m=m, s=s: z * score(m + s * z))) < slack * 4
        value = expect(
            lambda z, m=m, s=s: norm.logpdf(z) - np.log(s) - log_density(APART, m + s * z)
        )
        assert float(seeking.optima_values[row]) == pytest.approx(value, rel=slack)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_family_that_holds_the_target_neither_seeks_nor_covers(direction):
    for case in (APART, CLOSE):
        p = project(mixture_1d(**case), 2, direction, key=KEY)
        assert abs(float(p.divergence_value)) < 1e-12
        order = np.argsort(case["means"])
        got = (
            np.exp(p.mixture.log_weights),
            p.mixture.means[:, 0],
            p.mixture.cholesky[:, 0, 0],
        )
        for x, name in zip(got, ("weights", "means", "stds"), strict=True):
            want = np.array(case[name])[order]
            np.testing.assert_allclose(x, want, rtol=max(1e-8, 4 * eps(DTYPE)))


@pytest.mark.slow
def test_log_densities_on_a_box_are_projected_alike(seeking):
    target = mixture_1d(**APART)
    p = project(lambda x: target.log_prob(x) + 2.0, 1, "reverse", key=KEY, bounds=[[-12, 12]])
    np.testing.assert_allclose(
        p.optima_values, seeking.optima_values, rtol=max(1e-8, 4 * eps(DTYPE))
    )
    np.testing.assert_allclose(p.optima.means, seeking.optima.means, rtol=max(1e-8, 4 * eps(DTYPE)))


def test_points_have_cross_entropies():
    x = np.random.default_rng(2).normal(2.0, 3.0, size=(500, 1))
    masses = np.random.default_rng(3).dirichlet(np.ones(500))
    p = project((jnp.asarray(x, DTYPE), jnp.asarray(np.log(masses), DTYPE)), 1, "forward", key=KEY)
    mean = float(masses @ x[:, 0])
    std = float(np.sqrt(masses @ (x[:, 0] - mean) ** 2))
    np.testing.assert_allclose(p.mixture.means[0, 0], mean, rtol=50 * eps(DTYPE))
    np.testing.assert_allclose(p.mixture.cholesky[0, 0, 0], std, rtol=50 * eps(DTYPE))
    entropy = 0.5 * np.log(2 * np.pi * np.e * std**2)
    assert float(p.divergence_value) == pytest.approx(entropy, rel=50 * eps(DTYPE))
    assert np.isnan(p.error)


def test_what_a_projection_refuses():
    target = mixture_1d(**APART)
    with pytest.raises(ValueError, match="direction must be"):
        project(target, 1, "both", key=KEY)
    with pytest.raises(ValueError, match="needs the target's log-density"):
        project((np.zeros((3, 1)) + np.arange(3)[:, None], None), 1, "reverse", key=KEY)
    with pytest.raises(ValueError, match="bounds cut the target off"):
        project(target.log_prob, 1, "reverse", key=KEY, bounds=[[-4, 4]])
    with pytest.raises(ValueError, match="needs bounds"):
        project(target.log_prob, 1, "reverse", key=KEY)
    with pytest.raises(TypeError, match="target must be"):
        project(3.0, 1, "reverse", key=KEY)

    def half(x):
        return jnp.where(x[:, 0] > 0, -x[:, 0], -jnp.inf)

    with pytest.raises(ValueError, match="0 somewhere"):
        project(half, 1, "reverse", key=KEY, bounds=[[0, 60.0]])


@pytest.mark.slow
def test_projections_in_two_dimensions():
    covariances = np.array([[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.1], [-0.1, 0.8]]])
    fields = (np.log([0.6, 0.4]), np.array([[-2.0, 0.0], [2.5, 1.0]]), covariances)
    target = GaussianMixture(*(jnp.asarray(x, DTYPE) for x in fields))
    cover = project(target, 1, "forward", key=KEY)
    np.testing.assert_allclose(cover.mixture.means[0], target.mean, atol=8 * eps(DTYPE))
    np.testing.assert_allclose(
        cover.mixture.covariances[0], target.covariance, atol=64 * eps(DTYPE)
    )
    seek = project(target, 1, "reverse", key=KEY)
    np.testing.assert_allclose(seek.optima_values[:2], -np.log([0.6, 0.4]), atol=0.02)
    draws = seek.mixture.sample(key=jax.random.key(5), num_samples=40_000)
    ratio = numbers(seek.mixture.log_prob(draws) - target.log_prob(draws))
    assert abs(ratio.mean() - float(seek.divergence_value)) < 4 * ratio.std() / 200
    same = project(target, 2, "reverse", key=KEY, num_starts=4)
    assert abs(float(same.divergence_value)) < 1e-10
    np.testing.assert_allclose(same.mixture.covariances, covariances, atol=1e-6)


@pytest.mark.slow
def test_projections_in_five_dimensions_have_standard_errors():
    rng = np.random.default_rng(0)
    means = np.stack([np.zeros(5), np.full(5, 2.5)])
    fields = (np.log([0.7, 0.3]), means, np.ones(2))
    target = GaussianMixture(*(jnp.asarray(x, DTYPE) for x in fields), covariance_type="spherical")
    seek = project(target, 1, "reverse", key=KEY, num_starts=6, num_points=2048)
    np.testing.assert_allclose(seek.optima_values, -np.log([0.7, 0.3]), atol=0.05)
    x = rng.normal(size=(100_000, 5)) @ numbers(seek.mixture.cholesky[0]).T
    x = jnp.asarray(x + numbers(seek.mixture.means[0]), DTYPE)
    ratio = numbers(seek.mixture.log_prob(x) - target.log_prob(x))
    error = np.hypot(ratio.std() / np.sqrt(len(x)), float(seek.error))
    assert abs(ratio.mean() - float(seek.divergence_value)) < 4 * error
    assert float(seek.error) < 0.05


@pytest.mark.broad
def test_tilted_mixtures_are_mixtures_and_atoms_are_refused():
    target = tilt(mixture_1d(**APART), kt.mixtures.QuadraticReward([[-0.5]]), 1.0)
    p = project(target, 1, "forward", key=KEY, num_starts=1)
    np.testing.assert_allclose(p.mixture.means[0], target.mixture.mean, rtol=50 * eps(DTYPE))
    normal = GaussianMixture([0.0], [[0.0] * 5], [1.0], covariance_type="spherical")
    condensed = power_tilt(normal, kt.mixtures.QuadraticReward(-2 * jnp.eye(5)), 1.0)
    for points in (None, np.eye(5)):
        with pytest.raises(ValueError, match=r"an atom of mass 0\.6667"):
            project(condensed, 1, "forward", key=KEY, points=points)


def test_optima_that_did_not_converge_come_last_and_no_start_counts_for_them():
    # Of two modes the likelier has a step, over which no lattice is accurate to the tolerance.
    def log_density(x):
        step = jnp.where(jnp.abs(x[:, 0] + 3) < 0.3, 0.5, 0.0)
        likely = jnp.log(0.7) - jnp.square(x[:, 0] + 3) + step
        return jnp.logaddexp(likely, jnp.log(0.3) - jnp.square(x[:, 0] - 3))

    points = np.concatenate([np.linspace(-5, -1, 70), np.linspace(1, 5, 30)])[:, None]
    p = project(log_density, 1, "reverse", key=KEY, points=points.astype(DTYPE))
    assert p.converged.tolist() == [True, False]
    assert p.optima_values[0] > p.optima_values[1] + 0.5
    np.testing.assert_allclose(p.optima.means[:, 0, 0], [3, -3], atol=0.01)
    first, last = p.starts_per_optimum.tolist()
    assert first > 0 == last
    assert (numbers(p.reached) == -1).sum() == numbers(p.reached).size - first > 0


def test_targets_on_points_bring_their_masses_and_their_density(seeking):
    x = np.linspace(-12, 12, 600)[:, None]
    masses = np.append(log_density(APART, x[:, 0]) + np.log(24 / 599), -np.inf)

    def on_grid(log_probs):
        return types.SimpleNamespace(
            points=jnp.asarray(x, DTYPE),
            target=types.SimpleNamespace(log_probs=log_probs),
            log_prob=mixture_1d(**APART).log_prob,
        )

    p = project(on_grid(masses), 1, "reverse", key=KEY)
    np.testing.assert_allclose(p.optima_values, seeking.optima_values, rtol=1e-5)
    condensed = np.append(masses[:-1] + np.log(0.75), np.log(0.25))
    with pytest.raises(ValueError, match=r"an atom of mass 0\.25"):
        project(on_grid(condensed), 1, "forward", key=KEY)
