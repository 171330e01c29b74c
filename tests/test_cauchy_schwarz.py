"""The Cauchy–Schwarz divergence of mixtures, against quadrature and a search in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DTYPES, eps
from scipy.optimize import minimize
from scipy.stats import norm

import kltarget as kt
from kltarget.mixtures import project
from kltarget.spaces import cauchy_schwarz

LAST = DTYPES[-1]
X = np.linspace(-16, 16, 6401)
CELL = X[1] - X[0]


def line(weights, means, sds, dtype=LAST):
    weights, means, sds = (np.asarray(x, float) for x in (weights, means, sds))
    return kt.GaussianMixture(
        np.log(weights).astype(dtype),
        means[..., None].astype(dtype),
        (sds**2).astype(dtype),
        covariance_type="spherical",
    )


def by_quadrature(p, q):
    """Of densities on ``X``."""
    return -np.log((p * q).sum() ** 2 / ((p * p).sum() * (q * q).sum()))


def density(weights, means, sds):
    return (np.asarray(weights) * norm.pdf(X[:, None], means, sds)).sum(-1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_overlap_of_the_densities(dtype):
    one = ([0.7, 0.3], [-1.0, 2.5], [0.8, 0.4])
    other = ([0.2, 0.5, 0.3], [-2.0, 0.5, 3.0], [1.0, 0.3, 0.9])
    found = cauchy_schwarz(line(*one, dtype), line(*other, dtype))
    assert found.dtype == dtype
    wanted = by_quadrature(density(*one), density(*other))
    np.testing.assert_allclose(found, wanted, rtol=64 * eps(dtype))
    again = cauchy_schwarz(line(*other, dtype), line(*one, dtype))
    np.testing.assert_allclose(again, found, rtol=32 * eps(dtype))
    assert 0 <= float(cauchy_schwarz(line(*one, dtype), line(*one, dtype))) < 16 * eps(dtype)
    batch = line(*(np.stack([x, x]) for x in one), dtype)
    np.testing.assert_allclose(
        cauchy_schwarz(batch, line(*other, dtype)), np.full(2, wanted), rtol=64 * eps(dtype)
    )


@pytest.mark.broad
def test_linear_coordinates_and_merged_components_change_nothing():
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(2, 2)) + 2 * np.eye(2)
    pair = []
    for count in (2, 3):
        means, roots = rng.normal(size=(count, 2)), rng.normal(size=(count, 2, 2))
        spread = roots @ roots.swapaxes(-1, -2) + 0.3 * np.eye(2)
        pair.append((rng.dirichlet(np.ones(count)), means, spread))

    def made(weights, means, spread):
        return kt.GaussianMixture(np.log(weights), means, spread, covariance_type="full")

    here = cauchy_schwarz(*(made(*x) for x in pair))
    there = cauchy_schwarz(*(made(w, m @ turn.T, turn @ s @ turn.T) for w, m, s in pair))
    np.testing.assert_allclose(there, here, rtol=1e3 * eps(LAST))
    w, m, s = pair[0]
    parted = made(np.r_[w[0] / 2, w[0] / 2, w[1]], m[[0, 0, 1]], s[[0, 0, 1]])
    np.testing.assert_allclose(cauchy_schwarz(parted, made(*pair[1])), here, rtol=1e3 * eps(LAST))


@pytest.mark.broad
def test_derivatives_are_those_of_the_quadrature():
    def by_sums(theta):
        p = (jnp.array([[0.7, 0.3]]) * norm_pdf(X[:, None], theta[:2], theta[2:])).sum(-1)
        q = density([0.5, 0.5], [-1.5, 1.0], [0.6, 1.2])
        return -jnp.log((p * q).sum() ** 2 / ((p * p).sum() * (q * q).sum()))

    def norm_pdf(x, mean, sd):
        z = (x - mean[None]) / sd[None]
        return jnp.exp(-(z**2) / 2) / (sd[None] * np.sqrt(2 * np.pi))

    def closed(theta):
        p = kt.GaussianMixture(
            jnp.log(jnp.array([0.7, 0.3])),
            theta[:2, None],
            theta[2:] ** 2,
            covariance_type="spherical",
        )
        return cauchy_schwarz(p, line([0.5, 0.5], [-1.5, 1.0], [0.6, 1.2]))

    theta = jnp.array([-0.5, 2.0, 0.9, 0.5])
    wanted, found = (jax.jit(jax.grad(x))(theta) for x in (by_sums, closed))
    np.testing.assert_allclose(found, wanted, rtol=3e4 * eps(LAST))


@pytest.mark.broad
def test_half_of_it_is_at_most_either_kl_of_gaussians():
    """Claim: of two Gaussians the Cauchy–Schwarz divergence is at most KL (arXiv 2404.17951).

    Holds with a correction: half of it is, in either order; the whole, −log((∫pq)²/(∫p² ∫q²)), is
    more where means are far apart for the larger width. Of mixtures neither is so: a narrow
    component of weight 0.01 takes half of it to 2 and KL to 0.1. Only the abstract was at hand.
    """
    rng = np.random.default_rng(1)
    means, sds = rng.normal(size=(2, 200)), rng.uniform(0.2, 3.0, size=(2, 200))
    one, other = (
        line(np.ones((200, 1)), m[:, None], s[:, None]) for m, s in zip(means, sds, strict=True)
    )
    found = np.asarray(cauchy_schwarz(one, other), float)

    def kl(s, t):
        return np.log(t / s) + (s**2 + (means[0] - means[1]) ** 2) / (2 * t**2) - 0.5

    least = np.minimum(kl(*sds), kl(*sds[::-1]))
    assert (found / 2 <= least + 64 * eps(LAST) * (1 + least)).all()
    assert (found > 1.05 * least).any()
    alike = cauchy_schwarz(line([1], [0.0], [0.7]), line([1], [1.5], [0.7]))
    np.testing.assert_allclose(alike, 1.5**2 / (2 * 0.7**2), rtol=64 * eps(LAST))
    spike = 1e-6
    far = cauchy_schwarz(line([0.99, 0.01], [0.0, 0.0], [1.0, spike]), line([1], [0.0], [1.0]))
    # KL is convex: at most that of the spike alone, times its weight.
    most = 0.01 * (-np.log(spike) + spike**2 / 2 - 0.5)
    assert float(far) / 2 > 2
    assert most < 0.15


@pytest.mark.slow
def test_a_projection_has_no_better_neighbour():
    parts = ([0.6, 0.4], [-2.0, 2.5], [0.7, 1.0])
    target = line(*parts)
    found = project(target, 1, "cauchy-schwarz", key=jax.random.key(0))
    assert bool(found.converged.all())
    # One for each part, and one that covers both.
    assert len(found.optima_values) == 3
    q = density(*parts)

    def loss(theta):
        return by_quadrature(norm.pdf(X, theta[0], np.exp(theta[1])), q)

    for k in range(3):
        mean = float(found.optima.means[k, 0, 0])
        sd = float(found.optima.cholesky[k, 0, 0, 0])
        best = minimize(
            loss, [mean, np.log(sd)], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14}
        )
        np.testing.assert_allclose([mean, np.log(sd)], best.x, atol=1e-4)
        np.testing.assert_allclose(found.optima_values[k], best.fun, rtol=1e-5)
    held = project(target, 2, "cauchy-schwarz", key=jax.random.key(0))
    np.testing.assert_allclose(held.mixture.means[:, 0], parts[1], rtol=1e-4)


def test_what_is_refused():
    plane = kt.GaussianMixture(np.zeros(1), np.zeros((1, 2)), np.eye(2)[None])
    with pytest.raises(ValueError, match="p has 1 dimensions and q 2"):
        cauchy_schwarz(line([1], [0.0], [1.0]), plane)
    with pytest.raises(TypeError, match=r"q must be a kltarget\.GaussianMixture"):
        cauchy_schwarz(plane, "plane")
    with pytest.raises(ValueError, match="fit_mixture"):
        project((np.eye(3)[:, :1], np.zeros(3)), 1, "cauchy-schwarz", key=jax.random.key(0))
    with pytest.raises(ValueError, match="direction must be one of"):
        project(line([1], [0.0], [1.0]), 1, "sideways", key=jax.random.key(0))
