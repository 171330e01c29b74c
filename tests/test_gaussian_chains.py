"""Targets on Gaussian chains, against the one Gaussian that all states of a path have together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kltarget as kt
from kltarget.mixtures import QuadraticReward, tilt
from kltarget.spaces import GaussianChain
from kltarget.targets.chains import solve_chain

BETA = 0.6


def eps():
    return float(jnp.finfo(jnp.result_type(float)).eps)


def problem(steps=3, size=2, seed=0):
    rng = np.random.default_rng(seed)
    square = rng.normal(size=(steps + 1, size, size)) * 0.4
    spreads = square @ np.swapaxes(square, -1, -2) + 0.3 * np.eye(size)
    chain = (
        rng.normal(size=size),
        spreads[0],
        rng.normal(size=(steps, size, size)) * 0.6,
        rng.normal(size=(steps, size)),
        spreads[1:],
    )
    return chain, np.array([[-1.0, 0.2], [0.2, 0.1]]), np.array([0.3, -0.5]), 0.25


def joint(mean, covariance, matrices, offsets, covariances):
    """Mean and precision of all states of a path, as one vector."""
    steps, size = offsets.shape
    middle, total = [mean], steps + 1
    precision = np.zeros((total * size, total * size))
    precision[:size, :size] = np.linalg.inv(covariance)
    for t in range(steps):
        middle.append(matrices[t] @ middle[-1] + offsets[t])
        rows = np.zeros((size, total * size))
        rows[:, t * size : (t + 1) * size] = -matrices[t]
        rows[:, (t + 1) * size : (t + 2) * size] = np.eye(size)
        precision += rows.T @ np.linalg.inv(covariances[t]) @ rows
    return np.concatenate(middle), precision


def kl(mean, spread, other, wide):
    inverse = np.linalg.inv(wide)
    apart = mean - other
    log_dets = np.linalg.slogdet(wide)[1] - np.linalg.slogdet(spread)[1]
    return (np.trace(inverse @ spread) - len(mean) + apart @ inverse @ apart + log_dets) / 2


def tilted(mean, precision, matrix, vector):
    """A Gaussian times the exponential of a quadratic in its last coordinates."""
    size = len(vector)
    pulled, after = precision @ mean, precision.copy()
    after[-size:, -size:] -= matrix / BETA
    pulled[-size:] += vector / BETA
    return np.linalg.solve(after, pulled), np.linalg.inv(after)


def test_the_law_of_paths_is_the_tilted_joint_gaussian():
    chain, matrix, vector, constant = problem()
    target = solve_chain(GaussianChain(*chain), QuadraticReward(matrix, vector, constant), BETA)
    mean, precision = joint(*chain)
    best, spread = tilted(mean, precision, matrix, vector)
    policy = [np.asarray(getattr(target.policy, x), float) for x in target.policy.__annotations__]
    ours, own = joint(*policy)
    tight = {"rtol": 2e3 * eps(), "atol": 500 * eps()}
    np.testing.assert_allclose(ours, best, **tight)
    np.testing.assert_allclose(np.linalg.inv(own), spread, **tight)
    paid = kl(best, spread, mean, np.linalg.inv(precision))
    np.testing.assert_allclose(target.divergence_value, paid, **tight)
    end = best[-2:]
    earned = end @ matrix @ end / 2 + np.trace(matrix @ spread[-2:, -2:]) / 2 + vector @ end
    np.testing.assert_allclose(target.expected_reward, earned + constant, **tight)
    np.testing.assert_allclose(target.value, earned + constant - BETA * paid, **tight)
    alone = kl(end, spread[-2:, -2:], mean[-2:], np.linalg.inv(precision)[-2:, -2:])
    np.testing.assert_allclose(target.marginal_kl[-1], alone, **tight)
    np.testing.assert_allclose(paid, alone, rtol=1e-9)
    x = mean + 0.3
    density = -(x - best) @ np.linalg.solve(spread, x - best) / 2
    density -= np.linalg.slogdet(2 * np.pi * spread)[1] / 2
    np.testing.assert_allclose(target.log_prob(x.reshape(4, 2)), density, **tight)


@pytest.mark.broad
def test_with_a_fixed_first_law_each_first_state_has_its_own_tilt():
    chain, matrix, vector, constant = problem(seed=4)
    reward = QuadraticReward(matrix, vector, constant)
    target = solve_chain(GaussianChain(*chain), reward, BETA, tilt_first=False)
    mean, precision = joint(*chain)
    # Given x_T the rest is Gaussian, and so it is after the tilt: conditional means are linear.
    value = 0.0
    for weight, node in zip(*_nodes(chain[0], chain[1]), strict=True):
        inner = precision[2:, 2:]
        given = mean[2:] - np.linalg.solve(inner, precision[2:, :2] @ (node - chain[0]))
        best, spread = tilted(given, inner, matrix, vector)
        end = best[-2:]
        earned = end @ matrix @ end / 2 + np.trace(matrix @ spread[-2:, -2:]) / 2 + vector @ end
        paid = kl(best, spread, given, np.linalg.inv(inner))
        value += weight * (earned + constant - BETA * paid)
        steps = np.concatenate([[node], best.reshape(3, 2)])
        for t in range(3):
            after = np.asarray(target.policy.matrices[t]) @ steps[t]
            after = after + np.asarray(target.policy.offsets[t])
            np.testing.assert_allclose(after, steps[t + 1], rtol=4e3 * eps(), atol=1e3 * eps())
    np.testing.assert_allclose(target.value, value, rtol=4e3 * eps())
    np.testing.assert_allclose(target.policy.mean, chain[0], rtol=eps())
    free = solve_chain(GaussianChain(*chain), reward, BETA)
    assert float(target.value) < float(free.value)
    assert float(target.divergence_value) > float(target.marginal_kl[-1]) + 1e-3


def _nodes(mean, spread):
    """Gauss–Hermite nodes of a Gaussian in the plane, exact for quadratics."""
    x, w = np.polynomial.hermite_e.hermegauss(4)
    pairs = np.stack(np.meshgrid(x, x), -1).reshape(-1, 2)
    return np.outer(w, w).ravel() / w.sum() ** 2, mean + pairs @ np.linalg.cholesky(spread).T


def test_the_last_marginal_is_the_tilt_of_the_chains_own():
    chain, matrix, vector, constant = problem(seed=2)
    reward = QuadraticReward(matrix, vector, constant)
    target = solve_chain(GaussianChain(*chain), reward, BETA)
    means, spreads = GaussianChain(*chain).marginals()
    own = kt.GaussianMixture(jnp.zeros(1), means[-1:], spreads[-1:])
    best = tilt(own, reward, BETA)
    tight = {"rtol": 2e3 * eps(), "atol": 500 * eps()}
    np.testing.assert_allclose(target.last.mean, best.mixture.mean, **tight)
    np.testing.assert_allclose(target.last.covariance, best.mixture.covariance, **tight)
    np.testing.assert_allclose(target.value, best.value, **tight)


@pytest.mark.broad
def test_batches_and_draws():
    chain, matrix, vector, constant = problem(seed=1)
    reward = QuadraticReward(matrix, vector, constant)
    both = solve_chain(GaussianChain(*chain), reward, np.array([0.6, 3.0]), tilt_first=False)
    for row, beta in enumerate((0.6, 3.0)):
        one = solve_chain(GaussianChain(*chain), reward, beta, tilt_first=False)
        for name in ("value", "step_kl", "marginal_kl"):
            np.testing.assert_allclose(
                getattr(both, name)[row], getattr(one, name), rtol=300 * eps(), atol=50 * eps()
            )
    paths = np.asarray(both.sample(key=jax.random.key(0), num_samples=4000), float)
    assert paths.shape == (4000, 2, 4, 2)
    end = np.asarray(both.policy.marginals()[0][:, -1])
    sigma = paths[:, :, -1].std(0) / np.sqrt(4000)
    assert (np.abs(paths[:, :, -1].mean(0) - end) < 5 * sigma).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: -np.eye(2)}, "covariance must be symmetric and positive definite"),
        ({4: np.zeros((3, 2, 2))}, "covariances must be .* but that at index 0 is not"),
        ({2: np.zeros((2, 2, 2))}, r"matrices has shape \(2, 2, 2\): with 3 steps in 2 dim"),
        ({3: np.full((3, 2), np.inf)}, r"offsets must be finite, got inf at index \(0, 0\)"),
    ],
)
def test_bad_chains_are_named(change, message):
    chain = dict(enumerate(problem()[0])) | change
    with pytest.raises(ValueError, match=message):
        GaussianChain(*chain.values())


def test_rewards_that_outgrow_the_divergence_are_refused():
    chain = GaussianChain(*problem()[0])
    with pytest.raises(ValueError, match="beta is too small for a reward that grows"):
        solve_chain(chain, QuadraticReward(9 * np.eye(2)), 0.1)
    with pytest.raises(ValueError, match="leads out of the Gaussian chains"):
        solve_chain(chain, QuadraticReward(dim=2), 1.0, kt.ForwardKL())
    with pytest.raises(TypeError, match="must be a QuadraticReward"):
        solve_chain(chain, np.zeros(2), 1.0)
