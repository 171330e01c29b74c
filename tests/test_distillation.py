"""Gradients of divergences as weighted differences of scores, and what students make of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import mpmath as mp
import numpy as np
import optax
import oracles
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

import kltarget as kt
from kltarget import plot
from kltarget.divergences import Scaled, TermDivergence, score_weight
from kltarget.training import distill

SMOOTH = [case for case in oracles.CASES if not isinstance(case.divergence, kt.TotalVariation)]
WEIGHTS, CENTERS, WIDTHS = np.array([0.6, 0.4]), np.array([-1.5, 1.0]), np.array([0.8, 0.6])
X = np.linspace(-9, 9, 4001)
CELL = X[1] - X[0]


def mixture(weights, means, sds):
    means, sds = np.asarray(means), np.asarray(sds)
    return kt.GaussianMixture(
        np.log(weights), means[..., None], sds**2, covariance_type="spherical"
    )


def density(x, weights, means, sds):
    return (weights * norm.pdf(x[:, None], means, sds)).sum(-1)


@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.id)
def test_weights_are_those_of_the_generator_written_with_the_target_first(case):
    """In 50 digits, ``r² g″(r)`` of ``g(r) = r f(1/r)`` at ``r = q/p``."""
    log_ratio = np.array([-3.0, -0.5, 0.2, 2.0])
    with mp.workdps(50):
        f = case.generator.f
        wanted = [
            float(r**2 * mp.diff(lambda x: x * f(1 / x), r, 2))
            for r in (mp.exp(-mp.mpf(float(x))) for x in log_ratio)
        ]
    ours = score_weight(case.divergence, jnp.asarray(log_ratio))
    np.testing.assert_allclose(ours, wanted, rtol=200 * oracles.eps(ours.dtype))


def test_weights_of_papers_tables():
    r = np.array([0.2, 1.0, 3.0])
    table = {
        kt.ReverseKL(): np.ones(3),
        kt.ForwardKL(): r,
        kt.JensenShannon(): r / (1 + r),
        kt.SquaredHellinger(): np.sqrt(r),
        Scaled(kt.ForwardKL(), 0.5): r / 2,
        TermDivergence(lambda x: x, -jnp.inf, jnp.inf): np.ones(3),
    }
    for divergence, wanted in table.items():
        ours = np.asarray(score_weight(divergence, -jnp.log(jnp.asarray(r))), float)
        scale = ours[1] / wanted[1]
        np.testing.assert_allclose(ours, scale * wanted, rtol=1e-5)
    swept = score_weight(kt.Alpha(jnp.array([0.0, 2.0])), jnp.log(jnp.full((2, 1), 3.0)))
    np.testing.assert_allclose(swept, [[1 / 3], [3.0]], rtol=1e-5)
    assert np.isnan(score_weight(kt.ReverseKL(), jnp.array([jnp.inf, -jnp.inf]))).all()


@pytest.mark.broad
@pytest.mark.parametrize(
    "divergence",
    [kt.ReverseKL(), kt.ForwardKL(), kt.JensenShannon(), kt.Alpha(0.5), kt.ChiSquaredKL()],
    ids=lambda d: d.slug,
)
def test_weighted_scores_are_the_derivative_of_the_divergence(divergence):
    """Claim: the derivative of an f-divergence by a generator is the difference of scores weighted
    by u² f″(u) of the ratio with the target in the numerator (arXiv 2502.15681).

    Holds.
    """
    target = mixture([0.3, 0.7], [-0.5, 1.5], [0.9, 0.7])
    log_q = target.log_prob(X[:, None])

    def student(theta):
        means, sds = theta
        return kt.GaussianMixture(
            jnp.log(WEIGHTS), means[:, None], sds**2, covariance_type="spherical"
        )

    def value(theta):
        log_p = student(theta).log_prob(X[:, None])
        return (jnp.exp(log_q) * divergence.f(jnp.exp(log_p - log_q))).sum() * CELL

    theta = jnp.asarray(CENTERS), jnp.asarray(WIDTHS)
    wanted = jax.grad(value)(theta)
    own, z = student(theta), np.linspace(-11, 11, 1601)
    mass = norm.pdf(z) * (z[1] - z[0])
    draws = jnp.asarray(CENTERS[:, None] + WIDTHS[:, None] * z)[..., None]
    scores = [jax.grad(lambda x, p=p: p.log_prob(x).sum())(draws)[..., 0] for p in (own, target)]
    weight = score_weight(divergence, own.log_prob(draws) - target.log_prob(draws))
    force = np.asarray(weight * (scores[0] - scores[1]), float) * mass * WEIGHTS[:, None]
    tight = {"rtol": 1e-7, "atol": 1e-9} if oracles.X64 else {"rtol": 2e-3, "atol": 2e-4}
    np.testing.assert_allclose(force.sum(-1), wanted[0], **tight)
    np.testing.assert_allclose((force * z).sum(-1), wanted[1], **tight)


@pytest.mark.broad
def test_a_step_in_the_plane_follows_the_derivative():
    """One plain step of an affine generator, against differences of the KL in NumPy."""
    mean, factor = np.array([0.4, -0.2]), np.array([[0.8, 0.0], [0.3, 0.6]])
    goal = np.array([[1.0, 0.2], [0.2, 0.5]])
    centers = np.array([[-0.5, 0.3], [1.0, 0.0]])
    target = kt.GaussianMixture(np.log([0.5, 0.5]), centers, np.stack([goal, goal]))
    start = kt.GaussianMixture([0.0], mean[None], cholesky=factor[None])
    axis = np.linspace(-6, 6, 121)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)

    def log_normal(center, cov):
        apart = points - center
        squared = np.einsum("ni,ij,nj->n", apart, np.linalg.inv(cov), apart)
        return -squared / 2 - np.log(np.linalg.det(2 * np.pi * cov)) / 2

    log_q = np.logaddexp(*(log_normal(c, goal) for c in centers)) + np.log(0.5)

    def forward_kl(x):
        root = np.array([[np.exp(x[2]), 0], [x[3], np.exp(x[4])]])
        log_p = log_normal(x[:2], root @ root.T)
        return (np.exp(log_q) * (log_q - log_p)).sum() * (axis[1] - axis[0]) ** 2

    at = np.array([*mean, np.log(0.8), 0.3, np.log(0.6)])
    step = 1e-5 * np.eye(5)
    slope = np.array([(forward_kl(at + s) - forward_kl(at - s)) / 2e-5 for s in step])
    rate = 0.01
    found = distill(
        target,
        [kt.ForwardKL()],
        start,
        learning_rate=rate,
        num_steps=1,
        bounds=[[-6, 6], [-6, 6]],
        num_points=121,
        optimizer=optax.sgd,
    )
    moved = np.asarray(found.student.cholesky, float)[0, 0]
    after = [*np.asarray(found.student.means, float)[0, 0], np.log(moved[0, 0]), moved[1, 0]]
    after = np.array([*after, np.log(moved[1, 1])])
    np.testing.assert_allclose((at - after) / rate, slope, rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(found.divergence_value[0, 0], forward_kl(at), rtol=1e-4)


SPREAD = (np.array([0.5, 0.3, 0.2]), np.array([-3.0, 1.0, 3.5]), np.sqrt([0.5, 0.4, 0.3]))
STARTS = np.array([-2.5, 1.0, 3.0])


@pytest.mark.slow
def test_which_divergence_covers_which_mode():
    """Students found by a search in NumPy from the same starts, which knows no scores."""
    order = (kt.ChiSquared(), kt.ReverseKL(), kt.JensenShannon(), kt.ForwardKL())
    start = mixture(np.ones((3, 1)), STARTS[:, None], np.full((3, 1), 0.6))
    found = distill(mixture(*SPREAD), order, start, learning_rate=0.03, num_steps=1500)
    x = np.linspace(-20, 20, 2001)
    parts = np.log(SPREAD[0]) + norm.logpdf(x[:, None], SPREAD[1], SPREAD[2])
    log_q = np.logaddexp.reduce(parts, axis=-1)

    def loss(theta, name):
        log_p = norm.logpdf(x, theta[0], np.exp(theta[1]))
        log_u = log_p - log_q
        both = np.logaddexp(log_p, log_q) - np.log(2)
        integrand = {
            "χ²": np.exp(log_p + log_u) - np.exp(log_q),
            "reverse KL": np.exp(log_p) * log_u,
            "forward KL": -np.exp(log_q) * log_u,
            "Jensen–Shannon": np.exp(log_p) * (log_p - both) + np.exp(log_q) * (log_q - both),
        }
        return integrand[name].sum() * (x[1] - x[0])

    for k, divergence in enumerate(order):
        for b in range(3):
            mean = float(found.student.means[k, b, 0, 0])
            sd = float(found.student.cholesky[k, b, 0, 0, 0])
            at = np.array([mean, np.log(sd)])
            reached = float(found.divergence_value[-1, k, b])
            np.testing.assert_allclose(reached, loss(at, divergence.name), rtol=1e-3)
            # Nothing nearby is better.
            best = minimize(loss, at, args=(divergence.name,), method="Nelder-Mead")
            assert reached < best.fun + 1e-3, (divergence.name, b)
            shared = np.minimum(np.exp(parts), norm.pdf(x, mean, sd)[:, None]).sum(0)
            shared = shared * (x[1] - x[0]) / SPREAD[0]
            np.testing.assert_allclose(found.covered[k, b], shared, atol=2e-3)
    covered = np.asarray(found.covered, float)
    # From the largest mode all but forward KL keep to it; forward KL matches moments.
    assert (covered[:3, 0, 0] > 0.98).all()
    assert (covered[:3, 0, 1:] < 0.02).all()
    np.testing.assert_allclose(
        found.student.means[3, :, 0, 0], (SPREAD[0] * SPREAD[1]).sum(), atol=5e-3
    )
    # From the middle χ² keeps to one mode where the others spread over all three.
    np.testing.assert_allclose(covered[0, 1, :2], [0.01, 1.0], atol=0.02)
    assert (covered[1:, 1].min(-1) > 0.4).all()
    assert (covered[3].min(-1) > 0.4).all()


@pytest.mark.broad
def test_the_figure_draws_the_students_that_ended_lowest():
    start = mixture(np.ones((2, 1)), np.array([[2.5], [-2.5]]), np.full((2, 1), 0.7))
    target = mixture([0.8, 0.2], [-3.0, 3.0], [0.7, 0.7])
    found = distill(target, [kt.ReverseKL()], start, learning_rate=0.05, num_steps=200)
    ax = plot.distillation(found)
    (line,) = ax.get_lines()
    x, height = line.get_data()
    student = norm.pdf(
        x, *(float(y[0, 1].ravel()[0]) for y in (found.student.means, found.student.cholesky))
    )
    np.testing.assert_allclose(height, student, rtol=1e-3, atol=1e-5)
    # All of the larger mode and what is wasted on nothing else, 0.8 of the student.
    np.testing.assert_allclose(found.divergence_value[-1, 0], -np.log([0.2, 0.8]), atol=1e-3)
    assert ax.get_legend().get_texts()[1].get_text() == "reverse KL: 100, 0"
    (other,) = plot.distillation(found, 0).get_lines()
    assert x[np.argmax(other.get_ydata())] > 2.5
    with pytest.raises(ValueError, match="start 2 is none of the 2 starts"):
        plot.distillation(found, 2)
    plt.close("all")


def test_bad_input_is_named():
    line = mixture(WEIGHTS, CENTERS, WIDTHS)
    plane = kt.GaussianMixture([0.0], [[0.0, 0.0]], [1.0], covariance_type="spherical")
    usual = {"learning_rate": 0.1, "num_steps": 1}
    both = mixture(np.ones((2, 1)), np.zeros((2, 1)), np.ones((2, 1)))
    for call, message in (
        (lambda: distill(both, [kt.ReverseKL()], line, **usual), r"batch shape \(2,\)"),
        (lambda: distill(line, [kt.ReverseKL()], plane, **usual), "start has 2 dimensions"),
        (lambda: distill(line, [], line, **usual), "divergences is empty"),
        (lambda: distill(line, [kt.TotalVariation()], line, **usual), "jumps"),
        (
            lambda: distill(line, [kt.ReverseKL()], line, learning_rate=0.0, num_steps=1),
            "learning_rate must be above 0",
        ),
        (
            lambda: distill(line, [kt.ReverseKL()], line, bounds=[[1.0, 0.0]], **usual),
            "bounds must be 1 finite and increasing pairs",
        ),
        (
            lambda: distill(line, [kt.ReverseKL()], line, bounds=[[-np.inf, 0.0]], **usual),
            "bounds must be 1 finite and increasing pairs",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="start must be a GaussianMixture"):
        distill(line, [kt.ReverseKL()], None, **usual)
    with pytest.raises(TypeError, match="divergences must be several, got one"):
        distill(line, kt.ReverseKL(), line, **usual)


def test_students_that_the_lattice_does_not_hold_have_no_divergence():
    """Points 0.1 apart between −9 and 9: one student lies between two, one is wide, one outside."""
    line = mixture(WEIGHTS, CENTERS, WIDTHS)
    start = mixture(np.ones((3, 1)), [[-1.45], [-1.45], [9.5]], [[1e-2], [0.5], [0.5]])
    options = {"bounds": [[-9.0, 9.0]], "num_points": 181, "learning_rate": 1e-6, "num_steps": 1}
    found = distill(line, [kt.ReverseKL(), kt.JensenShannon()], start, **options)
    np.testing.assert_array_equal(
        np.isnan(found.divergence_value), np.broadcast_to([True, False, True], (2, 2, 3))
    )
    own, other = norm.pdf(X, -1.45, 0.5), density(X, WEIGHTS, CENTERS, WIDTHS)
    wanted = (own * (norm.logpdf(X, -1.45, 0.5) - np.log(other))).sum() * CELL
    np.testing.assert_allclose(found.divergence_value[0, 0, 1], wanted, rtol=1e-4)
