"""Mixtures of Gaussians, their tilts in closed form, and the atoms of forward-KL targets.

Oracles: SciPy's densities and adaptive quadrature, mpmath, and the reference bank.
"""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from oracles import DTYPES, eps
from scipy import stats

import kltarget as kt
from kltarget import mixtures

# Closed forms and their derivatives are worth their digits in double precision too.
pytestmark = pytest.mark.precise

DTYPE = DTYPES[0]
SLOW = pytest.mark.slow
A = {"weights": [0.7, 0.3], "means": [[-2.0], [2.0]], "variances": [0.64, 0.36]}
BENT = np.array([[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.1], [-0.1, 0.9]]])


def gmm(weights, means, variances, kind="spherical", dtype=DTYPE):
    return kt.GaussianMixture(
        jnp.log(jnp.asarray(weights, dtype)),
        np.asarray(means, dtype),
        np.asarray(variances, dtype),
        covariance_type=kind,
    )


def mixture_a(dtype=DTYPE):
    return gmm(**A, dtype=dtype)


def plane(dtype=DTYPE):
    """Two bent components in the plane."""
    return gmm([0.6, 0.4], [[0.5, -1.0], [-1.0, 0.5]], BENT, "full", dtype)


def cast(tree, dtype=DTYPE):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def assert_near(got, want, terms=32):
    """Within that many units of rounding of 1 and of the value."""
    want = np.asarray(want, np.float64)
    off = np.abs(np.asarray(got, np.float64) - want)
    assert (off <= terms * eps(DTYPE) * (1 + np.abs(want))).all(), (got, want)


# What a mixture is.


@pytest.mark.parametrize("size", [1, 6])
def test_densities_moments_and_responsibilities(size):
    rng = np.random.default_rng(size)
    root = rng.normal(size=(2, 3, size, size))
    covariances = root @ root.swapaxes(-1, -2) + np.eye(size)
    weights, means = rng.dirichlet(np.ones(3), size=2), rng.normal(size=(2, 3, size))
    p = gmm(weights, means, covariances, "full")
    points = rng.normal(size=(5, 1, size)).astype(DTYPE)
    each = np.array(
        [
            [
                [
                    w * stats.multivariate_normal.pdf(x[0].astype(float), m, c)
                    for w, m, c in zip(weights[b], means[b], covariances[b], strict=True)
                ]
                for b in range(2)
            ]
            for x in points
        ]
    )
    assert_near(p.log_prob(points), np.log(each.sum(-1)), 200)
    share = each / each.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(p.log_responsibilities(points)), share, atol=200 * eps(DTYPE))
    assert_near(p.mean, (weights[..., None] * means).sum(1), 64)
    second = np.einsum("bk,bkij->bij", weights, covariances)
    apart = means - (weights[..., None] * means).sum(1, keepdims=True)
    assert_near(p.covariance, second + np.einsum("bk,bki,bkj->bij", weights, apart, apart), 200)
    assert p.log_prob(points).dtype == p.mean.dtype == DTYPE
    assert p.batch_shape == (2,)


def test_covariance_types_say_the_same():
    full = gmm([0.7, 0.3], [[0.0, 1.0], [2.0, 0.0]], [4 * np.eye(2), 9 * np.eye(2)], "full")
    diag = gmm([0.7, 0.3], [[0.0, 1.0], [2.0, 0.0]], [[4.0, 4.0], [9.0, 9.0]], "diag")
    round_ = gmm([0.7, 0.3], [[0.0, 1.0], [2.0, 0.0]], [4.0, 9.0])
    factors = kt.GaussianMixture(full.log_weights, full.means, cholesky=full.cholesky)
    for other in (diag, round_, factors):
        for x, y in zip(jax.tree.leaves(full), jax.tree.leaves(other), strict=True):
            assert_near(x, y, 4)
    np.testing.assert_allclose(full.covariances[1], 9 * np.eye(2))


def test_samples_have_the_moments():
    p, n = plane(), 40_000
    draws = np.asarray(p.sample(key=jax.random.key(0), num_samples=n), float)
    assert draws.shape == (n, 2)
    sd = np.sqrt(np.diag(p.covariance))
    assert (np.abs(draws.mean(0) - p.mean) < 4 * sd / math.sqrt(n)).all()
    centred = draws - draws.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    bound = 4 * products.std(0) / math.sqrt(n)
    assert (np.abs(products.mean(0) - p.covariance) < bound).all()


@pytest.mark.broad
def test_components_without_weight_do_not_count():
    p = gmm([1.0, 0.0], [[0.5], [3.0]], [1.0, 1e-4])
    alone = gmm([1.0], [[0.5]], [1.0])
    x = np.array([[3.0], [0.0]], DTYPE)
    assert_near(p.log_prob(x), alone.log_prob(x), 4)

    def at_peak(p):
        return p.log_prob(x).sum() + mixtures.tilt(p, up(), 0.5).log_normalizer

    gradient = jax.jit(jax.grad(at_peak))(p)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert gradient.means[1, 0] == 0


def up(slope=0.3):
    return mixtures.QuadraticReward(vector=np.array([slope], DTYPE))


def peak(center=1.0, curvature=0.4, height=0.0):
    numbers = (np.asarray(x, DTYPE) for x in ([center], [[curvature]], height))
    first, second, third = numbers
    return mixtures.QuadraticReward.peak(first, second, height=third)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kt.GaussianMixture([0.0], [[0.0]], [[[0.0]]]), "positive definite"),
        (
            lambda: kt.GaussianMixture([0.0], [[0.0, 1.0]], BENT[:1] * [[[1, 3], [3, 1]]]),
            "definite",
        ),
        (lambda: kt.GaussianMixture([1.0], [[0.0]], [[[1.0]]]), "kltarget.normalize"),
        (lambda: kt.GaussianMixture([0.0], [[np.nan]], [[[1.0]]]), "means must be finite"),
        (lambda: kt.GaussianMixture([0.0], [[0.0]], [1.0]), r"needs shape \[..., 1, 1, 1\]"),
        (lambda: kt.GaussianMixture([0.0], [[0.0], [1.0]], [1.0]), "log_weights has 1 components"),
        (lambda: kt.GaussianMixture([0.0], [[0.0]], [1.0], covariance_type="tied"), "one of"),
        (lambda: kt.GaussianMixture([0.0], [[0.0]], cholesky=[[[-1.0]]]), "positive diagonals"),
        (lambda: mixture_a().log_prob(np.zeros((3, 2))), "1 dimensions"),
        (lambda: mixtures.LogDensityReward(mixture_a(), -1.0), "scale must be above 0"),
        (lambda: mixtures.QuadraticReward(np.zeros((2, 2)), np.zeros(3)), "in d dimensions"),
        (lambda: mixtures.tilt(mixture_a(), up(), 0.0), "beta must be above 0"),
        (lambda: mixtures.tilt(plane(), up(), 1.0), "1 dimensions and the mixture of 2"),
        (
            lambda: mixtures.tilt(mixture_a(), mixtures.LogDensityReward(mixture_a()), 0.3),
            "whole number",
        ),
        (
            lambda: mixtures.tilt(
                mixture_a(), mixtures.LogDensityReward(mixture_a()), 0.01, max_terms=100
            ),
            "max_terms=100",
        ),
        (
            lambda: mixtures.tilt(mixture_a(), mixtures.QuadraticReward([[1.0]]), 0.5),
            "beta must be above 0.64",
        ),
        (lambda: mixtures.power_tilt(mixture_a(), up(), 0.5), "negative definite"),
        (lambda: mixtures.power_tilt(mixture_a(), peak(), np.array([1.0, -1.0])), "at index 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kt.GaussianMixture([0.0], [[0.0]]), "one of covariances and cholesky"),
        (lambda: mixtures.QuadraticReward(constant=1.0), "nothing says how many dimensions"),
        (lambda: mixtures.tilt(mixture_a(), lambda x: x[..., 0], 1.0), "solve_on_grid"),
        (lambda: mixtures.tilt(mixture_a(), "up", 1.0), "QuadraticReward"),
        (lambda: mixtures.power_tilt(mixture_a(), peak(), 1.0, kt.ReverseKL()), "alpha < 1"),
        (
            lambda: mixtures.power_tilt(mixture_a(), mixtures.LogDensityReward(mixture_a()), 1.0),
            "quadratic",
        ),
    ],
)
def test_what_is_not_possible_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


# Reverse KL.


@pytest.mark.parametrize("name", ["gauss-linear-2d", "gauss-quad-2d-pos", "gauss-quad-2d-indef"])
def test_tilts_of_a_gaussian_reference_values(name):
    case = oracles.reference(name)
    inputs, want = case["inputs"], case["expected"]
    p = gmm([1.0], [inputs["mu"]], [inputs["Sigma"]], "full")
    if "a" in inputs:
        reward = mixtures.QuadraticReward(vector=np.asarray(inputs["a"], DTYPE))
    else:
        reward = mixtures.QuadraticReward.peak(
            np.asarray(inputs["m"], DTYPE), np.asarray(inputs["H"], DTYPE)
        )
    target = mixtures.tilt(p, reward, inputs["beta"])
    assert_near(target.mixture.mean, want["mean"])
    assert_near(target.mixture.covariance, want["cov"])
    assert_near(target.log_normalizer, want["log_Z"])
    if "kl" in want:
        assert_near(target.divergence_value, want["kl"])
        assert_near(target.expected_reward, want["mean_reward"])


def test_the_least_beta_reference_value():
    inputs = oracles.reference("gauss-quad-critical")["inputs"]
    p = gmm([1.0], [[0.5, -1.0]], [inputs["Sigma"]], "full")
    reward = mixtures.QuadraticReward(-np.asarray(inputs["H"], DTYPE))
    want = oracles.reference("gauss-quad-critical")["expected"]["beta_min"]
    assert_near(mixtures.existence_beta(p, reward), want)
    assert mixtures.tilt(p, reward, 1.001 * want).status == 0
    with pytest.raises(ValueError, match=r"must be above 0\.24629"):
        mixtures.tilt(p, reward, np.array([1.0, 0.999 * want], DTYPE))
    traced = jax.jit(lambda beta: mixtures.tilt(p, reward, beta))
    target = traced(np.array([1.0, 0.2, -1.0], DTYPE))
    assert target.status.tolist() == [0, kt.Status.UNBOUNDED, kt.Status.INVALID_BETA]
    assert np.isfinite(target.value[0])
    assert np.isnan(target.value[1:]).all()
    with pytest.raises(ValueError, match="at index 1: UNBOUNDED"):
        target.raise_if_failed()


@pytest.mark.parametrize("name", ["gmm-linear", "gmm-quad", "gmm-product"])
def test_tilts_of_a_mixture_reference_values(name):
    want = oracles.reference(name)["expected"]
    reward, beta = {
        "gmm-linear": (up(), 0.5),
        "gmm-quad": (peak(), 0.5),
        "gmm-product": (
            mixtures.LogDensityReward(gmm([0.4, 0.6], [[-1.0], [2.5]], [1.0, 0.25]), 0.5),
            0.5,
        ),
    }[name]
    target = mixtures.tilt(mixture_a(), reward, beta)
    assert_near(np.exp(target.mixture.log_weights), want["weights"])
    assert_near(target.mixture.means[:, 0], want["means"])
    assert_near(target.mixture.cholesky[:, 0, 0], want["stds"])
    assert_near(target.log_normalizer, want["log_Z"])
    assert_near(target.mixture.mean[0], want["mean"])
    assert_near(target.mixture.covariance[0, 0], want["var"])
    by_component = np.reshape(want["weights"], (2, -1)).sum(1)
    assert_near(np.exp(target.component_log_mass), by_component)


def _exact(curvature, slope, constant, beta, mixture):
    """Weights and log-normaliser of a tilt in sixty digits, from the floats as they are."""
    with mp.workdps(60):
        m, v, c, b = (mp.mpf(float(x)) for x in (curvature, slope, constant, beta))
        scores = []
        for k in range(2):
            mean, scale = (
                mp.mpf(float(x[k].reshape(()))) for x in (mixture.means, mixture.cholesky)
            )
            bend, pull = m / b, (m * mean + v) / b
            value = (m * mean**2 / 2 + v * mean + c) / b
            left = 1 - scale**2 * bend
            log_z = value + pull**2 * scale**2 / left / 2 - mp.log(left) / 2
            scores.append(mp.mpf(float(mixture.log_weights[k])) + log_z)
        total = mp.log(mp.fsum(mp.exp(x) for x in scores))
        return [float(x - total) for x in scores], float(total)


@pytest.mark.parametrize("beta", [1e-12, 1e-6, 1e-2, 1.0, 1e3, 1e12])
def test_weights_keep_their_digits_at_any_beta(beta):
    p, beta = mixture_a(), DTYPE.type(beta)
    target = mixtures.tilt(
        p, mixtures.QuadraticReward(cast([[-2.0]]), cast([0.75]), cast(0.25)), beta
    )
    weights, total = _exact(-2.0, 0.75, 0.25, beta, p)
    assert_near(target.mixture.log_weights, weights)
    assert_near(target.log_normalizer, total)
    # E[r]/β and log Z differ by a trillionth of either at small β.
    share = np.exp(np.asarray(weights))
    spread = 1 / (1 / np.array(A["variances"]) + 2 / float(beta))
    mean = np.array([-2.0, 2.0]) + spread * (0.75 - 2 * np.array([-2.0, 2.0])) / float(beta)
    joint = share * (
        np.asarray(weights)
        - np.log(A["weights"])
        + (spread / np.array(A["variances"]) - 1 - np.log(spread / np.array(A["variances"]))) / 2
        + (mean - np.array([-2.0, 2.0])) ** 2 / np.array(A["variances"]) / 2
    )
    # KL of (component, point): that of the point as the component's posterior is the same.
    np.testing.assert_allclose(
        target.divergence_value,
        joint.sum(),
        rtol=1e-6 if np.float32 == DTYPE else 1e-9,
        atol=32 * eps(DTYPE),
    )


@pytest.mark.skipif(np.float32 == DTYPE, reason="adaptive quadrature resolves more than float32")
@pytest.mark.parametrize("which", ["power", "sum", "two densities"])
def test_powers_and_sums_against_quadrature(which):
    p, q = mixture_a(), gmm([0.4, 0.6], [[-1.0], [2.5]], [1.0, 0.25])
    reward, beta = {
        "power": (mixtures.LogDensityReward(q), 1 / 3),
        "sum": (mixtures.LogDensityReward(q) + peak() + 0.3 + up(), 0.5),
        "two densities": (
            mixtures.LogDensityReward(q) + mixtures.LogDensityReward(p, 2.0),
            1.0,
        ),
    }[which]
    target = mixtures.tilt(p, reward, beta)

    # On pieces at whose ends nothing bends, by Gauss's rule of 100 nodes each.
    nodes, shares = np.polynomial.legendre.leggauss(100)
    parts = np.array([-12, -4, -2, -1, 0, 1, 2, 3, 4, 12])
    half = np.diff(parts)[:, None] / 2
    x = (parts[:-1, None] + half * (nodes + 1)).reshape(-1, 1)
    points = np.linspace(-3, 4, 8)[:, None]
    known = jax.jit(lambda x: (p.log_prob(x), reward(x), target.log_prob(x)))
    log_p, rewards, log_target = map(np.asarray, known(np.concatenate([x, points])))
    weight = np.exp(log_p + rewards / beta)
    measure = (half * shares).ravel() * weight[: len(x)]
    total = measure.sum()
    np.testing.assert_allclose(target.log_normalizer, math.log(total), rtol=1e-11)
    want = weight[len(x) :] / total
    np.testing.assert_allclose(np.exp(log_target[len(x) :]), want, rtol=1e-10)
    gained = measure @ rewards[: len(x)] / total
    np.testing.assert_allclose(target.expected_reward, gained, rtol=1e-9)
    low, high = target.divergence_bounds()
    assert 0 <= low <= target.divergence_value <= high < low + 0.2


@pytest.mark.slow
def test_bounds_of_the_divergence_in_five_dimensions():
    rng = np.random.default_rng(3)
    p = gmm([0.5, 0.5], rng.normal(size=(2, 5)), [1.0, 2.0])
    q = gmm([0.3, 0.7], rng.normal(size=(2, 5)), [1.5, 0.8])
    target = mixtures.tilt(p, mixtures.LogDensityReward(q), 1.0)
    assert np.isnan(target.divergence_value)
    x = target.mixture.sample(key=jax.random.key(1), num_samples=20_000)
    each = np.asarray(target.log_prob(x) - p.log_prob(x), float)
    error = each.std() / math.sqrt(len(each))
    low, high = target.divergence_bounds()
    assert low - 4 * error < each.mean() < high + 4 * error
    assert high - low < 0.5


def test_batches_are_loops_and_shapes_broadcast():
    p = gmm([[0.6, 0.4], [0.1, 0.9]], [[0.5, -1.0], [-1.0, 0.5]], BENT, "full")
    reward = mixtures.QuadraticReward(
        vector=cast(np.array([[[0.3, 0.1]], [[1.0, -0.5]], [[0.0, 0.2]]]))
    )
    betas = np.array([0.3, 2.0], DTYPE)
    target = mixtures.tilt(p, reward, betas)
    assert target.mixture.log_weights.shape == (3, 2, 2)
    assert target.value.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            own = kt.GaussianMixture(p.log_weights[j], p.means, cholesky=p.cholesky)
            alone = mixtures.tilt(
                own, mixtures.QuadraticReward(vector=reward.vector[i, 0]), betas[j]
            )
            assert_near(target.mixture.log_weights[i, j], alone.mixture.log_weights)
            assert_near(target.value[i, j], alone.value)
            assert_near(target.divergence_value[i, j], alone.divergence_value)


def test_limits_in_beta():
    p, reward = mixture_a(), peak(curvature=2.0)
    far = mixtures.tilt(p, reward, 1e9)
    np.testing.assert_allclose(np.exp(far.component_log_mass), A["weights"], rtol=1e-6)
    near = mixtures.tilt(p, reward, DTYPE.type(1e-9))
    np.testing.assert_allclose(near.mixture.mean, [1.0], rtol=1e-6)
    # All that is left to choose by is how likely the reference finds the peak.
    density = [0.7 * stats.norm.pdf(1, -2, 0.8), 0.3 * stats.norm.pdf(1, 2, 0.6)]
    np.testing.assert_allclose(
        np.exp(near.component_log_mass), density / np.sum(density), rtol=1e-4
    )


@pytest.mark.slow
def test_derivatives_of_tilts():
    p = plane(np.float64 if oracles.X64 else np.float32)

    def numbers(p, vector, matrix, beta):
        target = mixtures.tilt(p, mixtures.QuadraticReward(matrix, vector), beta)
        parts = (target.value, target.divergence_value, target.component_log_mass[0])
        return sum(parts) + target.mixture.covariance[0, 1]

    arguments = (p, cast([0.3, -0.2]), cast([[-0.5, 0.1], [0.1, 0.2]]), cast(0.7))
    check_grads(jax.jit(numbers), arguments, order=1, modes=["fwd", "rev"], **oracles_tolerance())
    # The envelope: more reward at a point is worth its probability, more β minus the divergence.
    reward = mixtures.QuadraticReward(arguments[2], arguments[1])
    target = mixtures.tilt(p, reward, 0.7)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def slopes(beta, vector):
        return mixtures.tilt(p, mixtures.QuadraticReward(arguments[2], vector), beta).value

    by_beta, by_vector = slopes(arguments[3], arguments[1])
    np.testing.assert_allclose(by_beta, -target.divergence_value, rtol=2e4 * eps(DTYPE))
    np.testing.assert_allclose(by_vector, target.mixture.mean, rtol=2e4 * eps(DTYPE))


def oracles_tolerance():
    loose = np.float32 == DTYPE
    return {"atol": 2e-2 if loose else 1e-6, "rtol": 2e-2 if loose else 1e-6}


# Forward KL and its kind.


@pytest.mark.parametrize("size", [1, pytest.param(3, marks=SLOW), 5])
def test_forward_targets_reference_values(size):
    case = oracles.reference(f"fkl-gauss-d{size}")
    p = gmm([1.0], [[0.0] * size], [1.0])
    reward = mixtures.QuadraticReward(cast(-2 * np.eye(size)))
    target = mixtures.power_tilt(p, reward, case["inputs"]["beta"])
    assert_near(target.offset, case["expected"]["tau"])
    assert_near(target.expected_reward, case["expected"]["mean_reward"])
    assert target.atom_mass == 0
    assert target.status == 0
    np.testing.assert_allclose(
        target.covariance, -case["expected"]["mean_reward"] / size * np.eye(size), atol=2e-6
    )


@pytest.mark.parametrize(
    "name", ["d3-b0.5", *(pytest.param(n, marks=SLOW) for n in ("d3-b0.1", "d5-b1.0"))]
)
def test_atoms_reference_values(name):
    case = oracles.reference(f"fkl-gauss-atom-{name}")
    size = case["inputs"]["d"]
    p = gmm([1.0], [[0.0] * size], [1.0])
    reward = mixtures.QuadraticReward(cast(-2 * np.eye(size)))
    target = mixtures.power_tilt(p, reward, case["inputs"]["beta"])
    assert_near(target.atom_mass, case["expected"]["atom"])
    assert_near(target.expected_reward, case["expected"]["mean_reward"])
    assert target.offset == 0
    assert target.status == kt.Status.CONDENSED
    draws = target.sample(key=jax.random.key(0), num_samples=4000)
    share = np.mean(np.all(np.asarray(draws) == np.asarray(target.atom), axis=-1))
    mass = float(target.atom_mass)
    assert abs(share - mass) < 4 * math.sqrt(mass * (1 - mass) / 4000)


@pytest.mark.parametrize(
    "name", ["a0.5-d5", *(pytest.param(n, marks=SLOW) for n in ("a-1.0-d2", "a0.0-d3", "a-1.0-d3"))]
)
def test_atoms_of_other_divergences_reference_values(name):
    case = oracles.reference(f"alpha-condense-{name}")
    size, alpha = case["inputs"]["d"], case["inputs"]["alpha"]
    p = gmm([1.0], [[0.0] * size], [1.0])
    reward = mixtures.QuadraticReward(cast(-2 * np.eye(size)))
    critical = case["expected"]["beta_critical"]
    betas = np.array([0.5, 0.999, 1.001], DTYPE) * DTYPE.type(critical)
    target = mixtures.power_tilt(p, reward, betas, kt.Alpha(alpha))
    assert_near(target.atom_mass[0], case["expected"]["atom_at_half"])
    assert target.status.tolist() == [1, 1, 0]
    assert (np.asarray(target.offset) > 0).tolist() == [False, False, True]


def test_forward_target_of_a_mixture_reference_value():
    want = oracles.reference("gmm-forward")["expected"]
    target = mixtures.power_tilt(mixture_a(), peak(curvature=2.0), 0.5)
    assert_near(target.offset, want["tau"])
    assert_near(target.mean[0], want["mean"])
    assert_near(target.expected_reward, want["mean_reward"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "divergence",
    [
        kt.ForwardKL(),
        kt.SquaredHellinger(),
        kt.NeymanChiSquared(),
        kt.Alpha(-0.5),
    ],
    ids=repr,
)
def test_power_targets_against_quadrature(divergence):
    """Mass, moments, divergence and gap to it of the density as it is evaluated at points."""
    p = gmm([0.6, 0.4], [[-1.0], [1.5]], [1.0, 0.5])
    target = mixtures.power_tilt(p, peak(curvature=2.0, height=0.3), 0.8, divergence)
    points = np.linspace(-9, 9, 6001)[:, None].astype(DTYPE)
    step = 18 / 6000
    log_p = np.asarray(p.log_prob(points), float) + math.log(step)
    log_target = np.asarray(target.log_prob(points), float) + math.log(step)
    mass = np.exp(log_target)
    loose = {"rtol": 3e-6} if np.float32 == DTYPE else {"rtol": 1e-11}
    np.testing.assert_allclose(mass.sum(), 1, **loose)
    np.testing.assert_allclose((mass * points[:, 0]).sum(), target.mean[0], **loose)
    reward = np.asarray(peak(curvature=2.0, height=0.3)(points), float)
    np.testing.assert_allclose((mass * reward).sum(), target.expected_reward, rtol=1e-5)
    generated = np.asarray(divergence.f(np.exp(log_target - log_p).astype(DTYPE)), float)
    cost = (np.exp(log_p) * generated).sum()
    exact = 2e-5 if np.float32 == DTYPE else 1e-9
    np.testing.assert_allclose(cost, target.divergence_value, rtol=exact)
    share = np.exp(np.asarray(p.log_responsibilities(points), float))
    np.testing.assert_allclose(
        np.exp(target.component_log_mass), (mass[:, None] * share).sum(0), rtol=1e-5
    )
    # And it is the discrete target on the same points.
    discrete = kt.solve(
        kt.Objective(
            jnp.asarray(reward, DTYPE), jnp.asarray(log_p, DTYPE), 0.8, divergence, measure=True
        )
    )
    np.testing.assert_allclose(discrete.multiplier, target.multiplier, rtol=1e-5)


@pytest.mark.slow
def test_derivatives_of_power_targets():
    p = gmm(
        [0.7, 0.3],
        [[-2.0, 0.0, 0.3], [2.0, 1.0, 0.0]],
        [np.eye(3), [[1.0, 0.3, 0.1], [0.3, 0.8, 0.0], [0.1, 0.0, 0.5]]],
        "full",
    )
    matrix = cast([[-1.0, -0.2, 0.0], [-0.2, -0.6, -0.1], [0.0, -0.1, -0.8]])

    def numbers(p, vector, matrix, beta):
        target = mixtures.power_tilt(p, mixtures.QuadraticReward(matrix, vector), beta)
        parts = (target.value, target.offset, target.atom_mass, target.divergence_value)
        moments = target.mean[1] + target.covariance[0, 1]
        return sum(parts) + moments + target.component_log_mass[1]

    numbers = jax.jit(numbers)
    for beta in (0.2, 3.0):  # with an atom and without
        check_grads(
            numbers,
            (p, cast([1.0, 0.0, 0.4]), matrix, cast(beta)),
            order=1,
            modes=["rev"],
            **oracles_tolerance(),
        )


def test_offsets_too_small_for_floats_are_said_to_be():
    p = gmm([1.0], [[0.0, 0.0]], [1.0])
    reward = mixtures.QuadraticReward(cast(-2 * np.eye(2)))
    target = mixtures.power_tilt(p, reward, np.array([0.5, 1e-3], DTYPE))
    assert target.status.tolist() == [0, kt.Status.NOT_CONVERGED]
    assert np.isnan(target.value[1])
    assert np.isnan(target.component_log_mass[1]).all()
    with pytest.raises(ValueError, match="index 1: NOT_CONVERGED"):
        target.raise_if_failed()


# Modes.


@pytest.mark.slow
def test_modes_and_basins():
    p = gmm([0.5, 0.2, 0.3], [[-3.0], [2.9], [3.0]], [1.0, 1.0, 1.0])
    found = np.asarray(mixtures.find_modes(p), float)
    assert found.shape == (2, 1)
    line = np.linspace(-6, 6, 120_001)
    height = sum(w * stats.norm.pdf(line, m, 1) for w, m in ((0.5, -3.0), (0.2, 2.9), (0.3, 3.0)))
    tops = line[1:-1][(height[1:-1] > height[:-2]) & (height[1:-1] > height[2:])]
    assert sorted(np.round(found[:, 0], 3)) == sorted(np.round(tops, 3))
    valley = line[1:-1][(height[1:-1] < height[:-2]) & (height[1:-1] < height[2:])][0]
    points = np.array([[-9.0], [valley - 0.01], [valley + 0.01], [8.0]], DTYPE)
    labels = np.asarray(mixtures.basins(p)(points))
    assert labels[0] == labels[1] != labels[2] == labels[3]
    with pytest.raises(ValueError, match="no batch axes"):
        mixtures.find_modes(gmm([[0.5, 0.5]], [[0.0], [1.0]], [1.0, 1.0]))


@pytest.mark.broad
@pytest.mark.parametrize("kind", ["line", "bowl", "forward", pytest.param("bump", marks=SLOW)])
def test_flips_are_where_two_modes_are_level(kind):
    p = mixture_a()

    def bump(x):
        return jnp.exp(-jnp.square(x[..., 0] - 2.0) / 0.5)

    reward, divergence, options = {
        "line": (up(), None, {}),
        "bowl": (peak(curvature=2.0), kt.ReverseKL(), {}),
        "forward": (peak(curvature=2.0), kt.ForwardKL(), {}),
        "bump": (bump, kt.ChiSquared(), {"bounds": [[-8.0, 8.0]]}),
    }[kind]
    flip = mixtures.mode_flip_beta(p, reward, 0, 1, divergence, between=(0.05, 100.0), **options)
    # The modes' masses there, by sums over a line on which nothing is in closed form.
    line = np.linspace(-9, 9, 4001)
    own = [0.7 * stats.norm.pdf(line, -2, 0.8), 0.3 * stats.norm.pdf(line, 2, 0.6)]
    log_ref = jnp.log(jnp.asarray(np.sum(own, 0) * (line[1] - line[0]), DTYPE))
    rewards = jnp.asarray(reward(jnp.asarray(line[:, None], DTYPE)), DTYPE)
    objective = kt.Objective(rewards, log_ref, flip, divergence or kt.ReverseKL(), measure=True)
    masses = (np.exp(kt.solve(objective).log_probs) * own / np.sum(own, 0)).sum(1)
    np.testing.assert_allclose(masses[0], masses[1], rtol=1e-4)
    if kind == "line":
        # log w₁/w₂ + t a(μ₁ − μ₂) + ½t²a²(σ₁² − σ₂²), with a = 0.3
        roots = 1 / np.roots([0.045 * 0.28, -1.2, math.log(7 / 3)])
        np.testing.assert_allclose(flip, roots.max(), rtol=2e-6)
        none = mixtures.mode_flip_beta(p, up(-0.3), 0, 1, between=(0.05, 100.0))
        assert math.isnan(none)


@pytest.mark.broad
def test_flips_where_targets_are_too_concentrated():
    """Beside the peak of the reward the masses approach those of its responsibilities."""
    bowl = mixtures.QuadraticReward(cast(-2 * np.eye(2)))

    def reference(log_odds):
        weights = np.array([log_odds, 0.0]) - np.logaddexp(log_odds, 0.0)
        return gmm(np.exp(weights), [[1.0, 0.0], [-1.2, 0.0]], [1.0, 1.3])

    def flip(log_odds):
        p = reference(log_odds)
        return mixtures.mode_flip_beta(p, bowl, 0, 1, kt.ForwardKL(), between=(1e-3, 10.0))

    at_peak = np.asarray(reference(0.0).log_responsibilities(cast([0.0, 0.0])), np.float64)
    level = at_peak[1] - at_peak[0]
    # The log-odds fall by 0.25 from there to beta = 10, by 0.003 to where they are known.
    assert math.isnan(flip(level - 0.1))
    assert 0.1 < flip(level + 0.1) < 10
    with pytest.raises(ValueError, match=r"the modes swap below beta = 0\.0"):
        flip(level + 0.001)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda **o: mixtures.mode_flip_beta(mixture_a(), up(), 0, 2, **o),
            "j must be from 0 to 1",
        ),
        (
            lambda **o: mixtures.mode_flip_beta(gmm([[1.0]], [[0.0]], [1.0]), up(), 0, 0, **o),
            "batch",
        ),
    ],
)
def test_flips_refuse_what_is_not_there(call, message):
    with pytest.raises(ValueError, match=message):
        call(between=(0.1, 1.0))
    with pytest.raises(ValueError, match="between must be two numbers"):
        mixtures.mode_flip_beta(mixture_a(), up(), 0, 1, between=(1.0, 0.1))


@pytest.mark.broad
@pytest.mark.parametrize(
    ("alpha", "beta"), [(0.0, 1e6), (0.9, 100.0), pytest.param(0.99, 1.0, marks=SLOW)]
)
def test_power_targets_at_large_beta_and_next_to_reverse_kl(alpha, beta):
    """Against sums over a line in thirty digits."""
    p, order = gmm([1.0], [[-2.0]], [0.64]), 1 / (1 - alpha)
    target = mixtures.power_tilt(p, peak(1.0, 2.0), beta, kt.Alpha(alpha))
    with mp.workdps(30):
        scale = mp.mpf(float(p.cholesky[0, 0, 0]))
        nodes = [mp.mpf(x) / 8 for x in range(-64, 65)]
        share = [mp.exp(-z * z / 2) for z in nodes]
        loss = [(-3 + scale * z) ** 2 for z in nodes]
        total, k = mp.fsum(share), mp.mpf(order)
        share, kappa = [w / total for w in share], k * mp.mpf(beta)

        def log_mass(offset):
            each = zip(share, loss, strict=True)
            return mp.log(mp.fsum(w * (kappa / (offset + q)) ** k for w, q in each))

        offset = mp.findroot(log_mass, (kappa / 2, kappa), solver="anderson", tol=1e-25)
        u = [(kappa / (offset + q)) ** k for q in loss]
        reward = -mp.fsum(w * x * q for w, x, q in zip(share, u, loss, strict=True))
        a = mp.mpf(alpha)
        each = [x - 1 - mp.log(x) for x in u]
        if alpha:
            each = [(x**a - a * x + a - 1) / (a * (a - 1)) for x in u]
        cost = mp.fsum(w * x for w, x in zip(share, each, strict=True))
        want = [float(x) for x in (offset, reward, cost, reward - mp.mpf(beta) * cost)]
    # Powers of k multiply the rounding of logarithms by k.
    loose = max(100 * eps(DTYPE) * (1 + order), 1e-9)
    got = (target.offset, target.expected_reward, target.divergence_value, target.value)
    np.testing.assert_allclose(got[0], want[0], rtol=loose / 10)
    np.testing.assert_allclose(got[1], want[1], rtol=loose)
    np.testing.assert_allclose(got[2], want[2], rtol=1e3 * loose)
    np.testing.assert_allclose(got[3], want[3], rtol=loose)
    # J* is nearly E_p r here: β times the logarithm of a number next to 1 would have no digits.
    tilted = mixtures.tilt(p, peak(1.0, 2.0), DTYPE.type(1e6))
    np.testing.assert_allclose(tilted.value, -9.64, rtol=2e-5)


def test_what_has_no_weight_need_have_no_tilt():
    p = gmm([1.0, 0.0], [[0.0], [1.0]], [1.0, 100.0])
    reward = mixtures.QuadraticReward(cast([[0.5]]))
    target = mixtures.tilt(p, reward, 1.0)
    assert_near(target.mixture.covariance, [[2.0]])
    assert_near(target.log_prob(np.zeros(1, DTYPE)), stats.norm.logpdf(0, 0, math.sqrt(2)))
    slope = jax.grad(lambda beta: mixtures.tilt(p, reward, beta).log_normalizer)(cast(1.0))
    assert_near(slope, -0.5)


@pytest.mark.slow
def test_saddles_and_flat_tops_are_no_further_modes():
    pair = [0.45, 0.45, 0.1], [[-1.5], [1.5], [0.0]], [1.0] * 3
    found = np.asarray(mixtures.find_modes(gmm(*pair)))
    np.testing.assert_allclose(sorted(found[:, 0]), [-1.32195, 1.32195], atol=1e-4)
    for apart, count in ((0.999, 1), (1.0, 1), (1.05, 2)):
        assert len(mixtures.find_modes(gmm([0.5, 0.5], [[-apart], [apart]], [1.0, 1.0]))) == count


@pytest.mark.slow
def test_tails_belong_to_the_mode_they_rise_to():
    # From far out on the right the wider component on the left is the likelier one.
    far = np.array([[5.0], [10.0], [14.0], [25.0]], DTYPE)
    assert (np.asarray(mixtures.basins(mixture_a())(far)) == 1).all()
    assert mixtures.basins(mixture_a())([[-3], [3]]).tolist() == [0, 1]


@pytest.mark.broad
def test_there_is_no_flip_where_there_is_no_target():
    p = gmm([0.7, 0.3], [[-2.0, 0.0], [2.0, 0.0]], [0.64, 0.36])
    bowl = mixtures.QuadraticReward.peak(cast([-2.0, 0.0]), cast(0.1 * np.eye(2)))
    flip = mixtures.mode_flip_beta(p, bowl, 0, 1, kt.ForwardKL(), between=(1e-4, 100.0))
    assert math.isnan(flip)
    steep = mixtures.QuadraticReward(cast([[1.0]]), cast([0.3]))
    with pytest.raises(ValueError, match=r"no target up to beta = 0\.64"):
        mixtures.mode_flip_beta(mixture_a(), steep, 0, 1, between=(0.01, 0.1))
