"""Fine-tuning of Gaussian mixtures: their gradients, what they converge to, and what is refused.

Gradients are compared with finite differences of objectives computed here by SciPy's densities on
a grid of another spacing, and samples with them within their standard errors.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import DTYPES, X64
from scipy import stats

from kltarget.divergences import JensenShannon
from kltarget.policies import GaussianMixturePolicy, TabularPolicy
from kltarget.recipes import Recipe
from kltarget.spaces import Box, GaussianMixture
from kltarget.training import RunStatus, f_dpg, fine_tune, sft

DTYPE = DTYPES[0]
WIDE = Box((-20.0, 20.0), 500)
# Where the gradient's norm falls to the first, parameters are at rest within the second: the
# smallest curvature is 1/σ² = 1/8.8.
FINE, NEAR = (1e-10, 1e-8) if X64 else (2e-6, 2e-5)


# Projections of the mixture below on one Gaussian, to 12 digits: by its moments; and two roots of
# the stationarity equations E[ψ] = 0, E[zψ] = −1/s at m + sz, with ψ the log-density's slope.
FORWARD = {"mean": -1.375, "std": 2.96553114973, "kl": 0.614074582416}
REVERSE = {
    -2.5: {"mean": -2.99940552713, "std": 1.00117916912, "kl": 0.287541011368},
    3.0: {"mean": 3.49911499531, "std": 0.701598974974, "kl": 1.38596777035},
}


def spherical(weights, means, stds):
    spread = np.asarray(stds, DTYPE)[:, None, None]
    means = np.asarray(means, DTYPE)[:, None]
    return GaussianMixture(np.log(np.asarray(weights)).astype(DTYPE), means, cholesky=spread)


TWO_MODES = spherical([0.75, 0.25], [-3.0, 3.5], [1.0, 0.7])
ONE, TWO = GaussianMixturePolicy(1, WIDE), GaussianMixturePolicy(2, WIDE)


def nothing(x):
    return jnp.zeros(x.shape[:-1], x.dtype)


def bump(x):
    return jnp.exp(-jnp.square(x[..., 0] - 1)) + x[..., 0] / 5


class TestBox:
    def test_points_and_weights_in_order(self):
        box = Box(((0, 1), (-1.0, 3.0)), (2, 5))
        assert box.dim == 2
        assert box.num_outcomes == 10
        want = [[x, y] for x in (0, 1) for y in (-1, 0, 1, 2, 3)]
        np.testing.assert_array_equal(box.points(), want)
        weights = np.exp(box.log_weights()).reshape(2, 5)
        np.testing.assert_allclose(weights, 0.5 * np.tile([0.5, 1, 1, 1, 0.5], (2, 1)), rtol=1e-6)
        assert box == Box([[0.0, 1.0], [-1.0, 3.0]], [2, 5])
        assert hash(box) == hash(Box([[0.0, 1.0], [-1.0, 3.0]], [2, 5]))

    def test_the_error_is_the_one_promised(self):
        # A spacing of 1: the sum of a standard normal is off by 2 exp(−2π²) at its peak.
        for spacing in (1.0, 1.25):
            x = spacing * np.arange(-8, 9)
            sums = spacing * stats.norm.pdf(x).sum()
            assert sums - 1 == pytest.approx(2 * math.exp(-2 * (math.pi / spacing) ** 2), rel=1e-2)
            box = Box((x[0], x[-1]), len(x))
            ours = np.exp(box.log_weights()) @ stats.norm.pdf(np.asarray(box.points())[:, 0])
            assert ours == pytest.approx(sums, rel=1e-6)

    @pytest.mark.parametrize(
        ("bounds", "num_points", "named"),
        [
            ((1.0, 0.0), 5, "bounds must be finite, the lower first"),
            ((0.0, np.inf), 5, "bounds must be finite"),
            (np.zeros((4, 2)), 5, "bounds has shape (4, 2)"),
            ((0.0, 1.0), 1, "num_points must be 2 or more"),
            (((0, 1), (0, 1)), (5,), "num_points must be 2 or more for each of the 2 axes"),
        ],
    )
    def test_errors(self, bounds, num_points, named):
        with pytest.raises(ValueError, match=re.escape(named)):
            Box(bounds, num_points)


@pytest.fixture(scope="module")
def plane():
    """Two correlated Gaussians in the plane, as SciPy has them and as a policy."""
    factors = np.array([[[1.0, 0.0], [0.6, 0.8]], [[0.5, 0.0], [-0.3, 1.2]]])
    means, weights = np.array([[-1.0, 0.5], [1.5, -1.0]]), np.array([0.3, 0.7])
    policy = GaussianMixturePolicy(2, Box(((-6, 6), (-8, 8)), (40, 44)))
    arrays = (x.astype(DTYPE) for x in (np.log(weights), means, factors))
    log_weights, centers, lower = arrays
    params = policy.from_mixture(GaussianMixture(log_weights, centers, cholesky=lower))
    normals = [stats.multivariate_normal(m, f @ f.T) for m, f in zip(means, factors, strict=True)]
    return policy, params, weights, normals


@pytest.mark.broad
def test_densities_and_masses(plane):
    policy, params, weights, normals = plane
    points = np.asarray(policy.space.points(), np.float64)
    each = np.stack([normal.logpdf(points) for normal in normals], axis=-1)
    np.testing.assert_allclose(
        policy.component_log_probs(params, points), each, rtol=1e-4, atol=1e-4
    )
    density = (weights * np.exp(each)).sum(-1)
    np.testing.assert_allclose(
        np.exp(policy.log_probs(params, points)), density, rtol=1e-4, atol=1e-30
    )
    assert np.exp(policy.log_masses(params)).sum() == pytest.approx(1, abs=1e-5)
    back = policy.mixture(params)
    np.testing.assert_allclose(np.exp(back.log_weights), weights, rtol=1e-6)
    np.testing.assert_allclose(back.cholesky[1] @ back.cholesky[1].T, normals[1].cov, rtol=1e-5)
    _, means, factors = policy.components(params)
    again = means[None] + jnp.einsum("kij,nkj->nki", factors, policy.noise(params, points))
    np.testing.assert_allclose(again, np.stack([points, points], axis=1), atol=1e-4)


def test_samples_have_the_moments_of_the_density(plane):
    policy, params, weights, normals = plane
    x = np.asarray(policy.sample(params, key=jax.random.key(0), num_samples=20_000), np.float64)
    second = sum(
        w * (n.cov + np.outer(n.mean, n.mean)) for w, n in zip(weights, normals, strict=True)
    )
    got = np.concatenate([x, (x[:, :, None] * x[:, None]).reshape(-1, 4)], axis=1)
    want = np.concatenate([weights @ [n.mean for n in normals], second.ravel()])
    assert np.all(np.abs(got.mean(0) - want) < 4.5 * got.std(0) / math.sqrt(len(x)))


# What is followed, as a function of the policy's density p, the reference's q and the reward.
OBJECTIVES = {
    ("score", "reward", "k1"): "reverse",
    ("score", "loss", "k3"): "forward",
    ("pathwise", "loss", "k3"): "reverse",
    ("pathwise", "loss", "k1"): "reverse",
    ("pathwise", "reward", "k2"): "k2",
}
START = spherical([0.4, 0.6], [-1.0, 1.5], [1.2, 0.8])
FROM = TWO.from_mixture(START)


def objective(vector, kind):
    """``E_p[r] − 0.7 D`` at logits, means and log-scales, with SciPy's densities."""
    x = np.linspace(-15, 15, 1501)
    weights = np.exp(vector[:2]) / np.exp(vector[:2]).sum()
    density = stats.norm.pdf(x[:, None], vector[2:4], np.exp(vector[4:])) @ weights
    wanted = stats.norm.pdf(x[:, None], [-3.0, 3.5], [1.0, 0.7]) @ [0.75, 0.25]
    reward = np.exp(-np.square(x - 1)) + x / 5
    ratio = np.log(density) - np.log(wanted)
    cost = {"reverse": density * ratio, "forward": -wanted * ratio, "k2": density * ratio**2 / 2}
    return np.sum(density * reward - 0.7 * cost[kind]) * (x[1] - x[0])


def slopes(kind):
    at = np.concatenate([np.log([0.4, 0.6]), [-1.0, 1.5], np.log([1.2, 0.8])])
    steps = 1e-5 * np.eye(6)
    return np.array([(objective(at + h, kind) - objective(at - h, kind)) / 2e-5 for h in steps])


def one_step(gradient, place, estimator, baseline="none", **sampling):
    """The gradient that a run follows in its first step."""
    run = fine_tune(
        TWO,
        FROM,
        bump,
        Recipe(place=place, estimator=estimator, baseline=baseline),
        beta=0.7,
        learning_rate=1.0,
        num_steps=1,
        optimizer=optax.sgd,
        log_ref=TWO_MODES.log_prob,
        gradient=gradient,
        history_every=None,
        **sampling,
    )
    names = ("logits", "means", "factors")
    moved = [np.asarray(run.params[n], np.float64) - np.asarray(FROM[n], np.float64) for n in names]
    return np.concatenate([x.reshape(*run.status.shape, 2) for x in moved], axis=-1)


@pytest.mark.broad
@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(choice, id="-".join(choice), marks=marks)
        for choice in OBJECTIVES
        for marks in ([] if choice == ("score", "loss", "k3") else [pytest.mark.slow],)
    ],
)
def test_exact_gradients_are_those_of_the_objective(choice):
    want = slopes(OBJECTIVES[choice])
    np.testing.assert_allclose(one_step(*choice), want, atol=1e-8 if X64 else 3e-5)


@pytest.mark.broad
@pytest.mark.parametrize(
    ("choice", "baseline"),
    [
        (("score", "reward", "k1"), "leave-one-out"),
        pytest.param(("pathwise", "loss", "k1"), "none", marks=pytest.mark.slow),
        pytest.param(("pathwise", "loss", "k3"), "none", marks=pytest.mark.slow),
        pytest.param(("score", "loss", "k3"), "leave-one-out", marks=pytest.mark.slow),
    ],
)
def test_sampled_gradients_have_the_exact_mean(choice, baseline):
    keys = jax.random.split(jax.random.key(1), 1000)
    sampled = one_step(*choice, baseline=baseline, key=keys, batch_size=32)
    error = sampled.std(0) / math.sqrt(len(keys))
    want = slopes(OBJECTIVES[choice])
    assert np.all(np.abs(sampled.mean(0) - want) < 4.5 * error)
    # The test would see a gradient that is wrong by a fifth of its length.
    assert np.linalg.norm(error) < np.linalg.norm(want) / 5


@pytest.mark.slow
def test_pathwise_gradients_vary_less():
    keys = jax.random.split(jax.random.key(1), 1000)
    score = one_step("score", "reward", "k1", "leave-one-out", key=keys, batch_size=32)
    pathwise = one_step("pathwise", "loss", "k1", key=keys, batch_size=32)
    assert np.all(pathwise.std(0) < 0.8 * score.std(0))


REST = {"learning_rate": 0.3, "num_steps": 3000, "optimizer": optax.sgd, "gradient_tol": FINE}


def assert_gaussian(policy, run, want):
    assert run.status == RunStatus.CONVERGED
    fitted = policy.mixture(run.params)
    np.testing.assert_allclose(fitted.means[0, 0], want["mean"], rtol=NEAR)
    np.testing.assert_allclose(fitted.cholesky[0, 0, 0], want["std"], rtol=NEAR)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["score", "pathwise"])
def test_one_gaussian_seeks_a_mode_by_reverse_kl(gradient):
    recipe = Recipe(place="reward" if gradient == "score" else "loss", estimator="k1")
    for mean, known in REVERSE.items():
        params = ONE.from_mixture(spherical([1.0], [mean], [0.9]))
        options = {"beta": 1.0, "log_ref": TWO_MODES.log_prob, "gradient": gradient, **REST}
        run = fine_tune(ONE, params, nothing, recipe, **options)
        assert_gaussian(ONE, run, known)
        np.testing.assert_allclose(run.history.reverse_kl[-1], known["kl"], rtol=10 * NEAR)


@pytest.mark.slow
def test_one_gaussian_covers_both_modes_by_maximum_likelihood():
    params = ONE.from_mixture(spherical([1.0], [1.0], [3.0]))
    run = sft(ONE, params, TWO_MODES.log_prob, **{**REST, "learning_rate": 0.5})
    assert_gaussian(ONE, run, FORWARD)
    np.testing.assert_allclose(run.history.forward_kl[-1], FORWARD["kl"], rtol=10 * NEAR)
    # Differential entropy, on whatever grid.
    want = math.log(FORWARD["std"]) + math.log(2 * math.pi * math.e) / 2
    np.testing.assert_allclose(run.history.entropy[-1], want, rtol=10 * NEAR)


@pytest.mark.slow
def test_two_gaussians_reach_the_target_either_way():
    params = TWO.from_mixture(spherical([0.5, 0.5], [-1.0, 1.0], [1.5, 1.5]))
    settings = {
        "learning_rate": 0.3,
        "num_steps": 6000,
        "optimizer": optax.sgd,
        "gradient_tol": FINE,
    }
    recipe = Recipe(estimator="k1")
    options = {"beta": 1.0, "log_ref": TWO_MODES.log_prob, **settings}
    runs = {
        "sft": sft(TWO, params, TWO_MODES.log_prob, **settings),
        "rl": fine_tune(TWO, params, nothing, recipe, **options),
        "f_dpg": f_dpg(TWO, params, TWO_MODES.log_prob, JensenShannon(), **settings),
    }
    for run in runs.values():
        assert run.status == RunStatus.CONVERGED
        fitted = TWO.mixture(run.params)
        atol = 1e-6 if X64 else 2e-4
        np.testing.assert_allclose(np.exp(fitted.log_weights), [0.75, 0.25], atol=atol)
        np.testing.assert_allclose(fitted.means[:, 0], [-3.0, 3.5], atol=10 * atol)
        np.testing.assert_allclose(fitted.cholesky[:, 0, 0], [1.0, 0.7], atol=10 * atol)
        assert run.gap < (1e-6 if X64 else 1e-2)


@pytest.mark.broad
def test_the_tilted_mixture_is_reached():
    slope, beta = 0.3, 0.5
    weights, means, stds = np.array([0.7, 0.3]), np.array([-2.0, 2.0]), np.array([0.8, 0.6])
    mixture = spherical(weights, means, stds)

    def linear(x):
        return slope * x[..., 0]

    params = TWO.from_mixture(mixture)
    options = {**REST, "learning_rate": 0.5}
    run = fine_tune(TWO, params, linear, Recipe(), beta=beta, **options)
    fitted = TWO.mixture(run.params)
    # Every component moves by aσ²/β and is weighed by E[exp(ax/β)].
    tilted = weights * np.exp(slope * means / beta + np.square(slope * stds / beta) / 2)
    atol = 1e-7 if X64 else 3e-5
    np.testing.assert_allclose(np.exp(fitted.log_weights), tilted / tilted.sum(), atol=atol)
    shifted = means + slope * np.square(stds) / beta
    np.testing.assert_allclose(fitted.means[:, 0], shifted, atol=atol)
    np.testing.assert_allclose(fitted.cholesky[:, 0, 0], stds, atol=atol)
    # An array over the grid is the same reward, and the reference by default the same too.
    log_ref = TWO.log_masses(params)
    grid = linear(WIDE.points()).astype(DTYPE)
    same = fine_tune(TWO, params, grid, Recipe(), beta=beta, log_ref=log_ref, **options)
    np.testing.assert_allclose(same.log_probs, run.log_probs, atol=1e-3)


@pytest.mark.slow
def test_runs_depend_on_their_own_settings():
    options = {
        "beta": np.array([0.1, 1.0, 3.0])[:, None],
        "key": jax.random.split(jax.random.key(2), (3, 2)),
        "learning_rate": 0.02,
        "num_steps": 6,
        "batch_size": 8,
        "history_every": 3,
    }
    recipe = Recipe(
        place="loss", estimator="k2", baseline="mean", normalize="group-std", group_size=4
    )
    run = fine_tune(TWO, FROM, bump, recipe, **options)
    assert run.log_probs.shape == (3, 2, 500)
    assert run.params["means"].shape == (3, 2, 2, 1)
    assert run.log_probs.dtype == DTYPE
    assert TWO.mixture(run.params).batch_shape == (3, 2)
    assert run.history.gap.shape == (3, 2, 3)
    own = {**options, "beta": 1.0, "key": options["key"][1, 1]}
    alone = fine_tune(TWO, FROM, bump, recipe, **own)
    np.testing.assert_allclose(run.log_probs[1, 1], alone.log_probs, rtol=1e-4, atol=1e-3)
    assert np.abs(run.log_probs[1, 0] - run.log_probs[1, 1]).max() > 1e-3


@pytest.mark.slow
def test_samples_of_the_target_train_too():
    options = {"learning_rate": 0.03, "num_steps": 300, "history_every": None}
    params = ONE.from_mixture(spherical([1.0], [1.0], [3.0]))
    target = np.stack([TWO.log_masses(TWO.from_mixture(TWO_MODES)), ONE.log_masses(params)])
    run = sft(ONE, params, target, key=jax.random.key(0), batch_size=500, **options)
    fitted = ONE.mixture(run.params)
    # The standard errors of means over some dozens of batches.
    np.testing.assert_allclose(fitted.means[:, 0, 0], [-1.375, 1.0], atol=0.15)
    np.testing.assert_allclose(fitted.cholesky[:, 0, 0, 0], [2.9655, 3.0], atol=0.1)


@pytest.mark.slow
def test_samples_of_the_policy_descend_a_divergence():
    options = {"learning_rate": 0.01, "num_steps": 600, "key": jax.random.key(0)}
    params = TWO.from_mixture(spherical([0.5, 0.5], [-2.0, 3.0], [1.5, 1.0]))
    run = f_dpg(TWO, params, TWO_MODES.log_prob, JensenShannon(), batch_size=200, **options)
    assert run.history.reverse_kl[-1] < 0.01 < run.history.reverse_kl[0]


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["score", "pathwise"])
def test_a_density_that_underflows_spoils_nothing(gradient):
    policy = GaussianMixturePolicy(2, Box((-40.0, 40.0), 1601))
    params = policy.from_mixture(spherical([0.5, 0.5], [30.0, 0.0], [0.2, 1.0]))
    params["logits"] = jnp.array([0.0, -jnp.inf])
    options = {"beta": 1.0, "learning_rate": 0.05, "num_steps": 5, "log_ref": TWO_MODES.log_prob}
    recipe = Recipe(place="loss", estimator="k3")
    run = fine_tune(policy, params, nothing, recipe, gradient=gradient, **options)
    assert run.status != RunStatus.NON_FINITE
    assert all(np.isfinite(run.params[name]).all() for name in ("means", "factors"))
    # The reference is out of the policy's sight; the certificate sees it. A weight of 0 stays 0.
    assert run.gap > 1
    assert run.params["logits"][1] == -np.inf


REWARD = np.zeros(500, DTYPE)


@pytest.mark.parametrize(
    ("reward", "recipe", "options", "named"),
    [
        (REWARD, Recipe(), {"batch_size": 4}, "reward must be a function of vectors [..., 1]"),
        (REWARD, Recipe(), {"gradient": "pathwise"}, "reward must be a function"),
        (nothing, Recipe(), {"batch_size": 4, "log_ref": REWARD}, "log_ref must be a function"),
        (REWARD[1:], Recipe(), {}, "reward has shape (499,), but the policy has a grid of 500"),
        (lambda x: x, Recipe(), {}, "reward must turn points of shape [..., 1]"),
        (nothing, Recipe(level="token"), {}, "level='token'"),
        (nothing, Recipe(), {"gradient": "exact"}, "gradient must be one of 'score', 'pathwise'"),
        (nothing, Recipe(baseline="mean"), {"gradient": "pathwise"}, "baseline='mean'"),
        (
            nothing,
            Recipe(normalize="batch-std"),
            {"gradient": "pathwise"},
            "normalize='batch-std'",
        ),
        (
            nothing,
            Recipe(place="loss", estimator="weighted-k3"),
            {"gradient": "pathwise"},
            "estimator='weighted-k3'",
        ),
        (nothing, Recipe(), {"log_ref": lambda x: nothing(x) - 5}, "log_ref has a mass of"),
        (nothing, Recipe(), {"batch_size": 4}, "key is needed"),
    ],
)
def test_errors(reward, recipe, options, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        fine_tune(TWO, FROM, reward, recipe, beta=1.0, learning_rate=0.1, num_steps=1, **options)


def test_errors_of_policies_and_targets():
    with pytest.raises(ValueError, match="mixture has 2 components in 1 dimensions"):
        ONE.from_mixture(TWO_MODES)
    with pytest.raises(ValueError, match="num_components must be an integer"):
        GaussianMixturePolicy(0, WIDE)
    with pytest.raises(TypeError, match="space must be"):
        GaussianMixturePolicy(1, (-1.0, 1.0))
    settings = {"learning_rate": 0.1, "num_steps": 1}
    narrow = GaussianMixturePolicy(1, Box((-4.0, 4.0), 100))
    params = narrow.init(key=jax.random.key(0))
    with pytest.raises(ValueError, match="widen the box"):
        sft(narrow, params, TWO_MODES.log_prob, **settings)
    log_target = ONE.log_masses(ONE.from_mixture(spherical([1.0], [0.0], [1.0])))
    with pytest.raises(ValueError, match="log_target must be a function"):
        f_dpg(
            ONE,
            params,
            log_target,
            JensenShannon(),
            key=jax.random.key(0),
            batch_size=4,
            **settings,
        )
    tabular = TabularPolicy(2, 1)
    with pytest.raises(ValueError, match="needs a GaussianMixturePolicy, got a TabularPolicy"):
        fine_tune(
            tabular,
            tabular.init(key=jax.random.key(0)),
            np.zeros(2, DTYPE),
            Recipe(),
            beta=1.0,
            gradient="pathwise",
            **settings,
        )
