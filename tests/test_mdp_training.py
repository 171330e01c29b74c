"""Policy gradients in decision processes, against NumPy and against the optimum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from oracles import DTYPES, eps

import kltarget as kt
from kltarget.spaces import MDP
from kltarget.targets.mdps import solve_mdp
from kltarget.training import fine_tune_mdp

LAST = DTYPES[-1]
TRANSITION = np.array([[[0.9, 0.1], [0.4, 0.6]], [[0.3, 0.7], [0.2, 0.8]]])
REWARD = np.array([[0.0, 0.2], [1.0, 0.5]])
REF = np.log([[0.5, 0.5], [0.25, 0.75]])
START = np.array([0.7, 0.3])
BETA, DISCOUNT = 0.2, 0.9


def two_states():
    return MDP(TRANSITION.astype(LAST), REWARD.astype(LAST), DISCOUNT, START.astype(LAST))


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def values(log_policy):
    """Regularised values in NumPy, reverse KL."""
    policy = np.exp(log_policy)
    paid = (policy * (REWARD - BETA * (log_policy - REF))).sum(-1)
    moves = np.einsum("sa,sat->st", policy, TRANSITION)
    return np.linalg.solve(np.eye(2) - DISCOUNT * moves, paid)


def action_values(log_policy):
    return REWARD + DISCOUNT * TRANSITION @ values(log_policy)


def objective(log_policy):
    return START @ values(log_policy)


def slopes(of, x, step=1e-5):
    """Central differences in NumPy."""
    out = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        change = np.zeros_like(x)
        change[at] = step
        out[at] = (of(x + change) - of(x - change)) / (2 * step)
    return out


@pytest.mark.broad
@pytest.mark.parametrize("steps", [1, 3])
def test_natural_steps_of_one_over_beta_are_soft_policy_iteration(steps):
    """Claim: natural gradient steps of their largest length are soft policy iteration (arXiv
    2007.06558).

    Holds.
    """
    log_policy = REF
    for _ in range(steps):
        after = REF + (REWARD + DISCOUNT * TRANSITION @ values(log_policy)) / BETA
        log_policy = log_softmax(after)
    run = fine_tune_mdp(
        two_states(), REF, BETA, learning_rate=1 / BETA, num_steps=steps, natural=True
    )
    np.testing.assert_allclose(run.log_policy[0], log_policy, atol=300 * eps(LAST))
    np.testing.assert_allclose(run.objective[-1, 0], objective(log_policy), rtol=100 * eps(LAST))


@pytest.mark.broad
@pytest.mark.broad
def test_plain_natural_steps_shrink_errors_at_the_rate_of_theory():
    """Claim: natural gradient steps of length η shrink the error by 1 − ηβ each (arXiv
    2007.06558).

    Holds with a correction: so near the optimum; from anywhere by 1 − (1 − γ)ηβ.
    """
    mdp = MDP(TRANSITION.astype(LAST), REWARD.astype(LAST), DISCOUNT)
    best = np.asarray(solve_mdp(mdp, REF, BETA).log_policy, float)
    eta = 0.4 / BETA
    # The constant of the theorem: how far Q and log π are at first.
    first = np.abs(action_values(REF) - action_values(best)).max()
    first += 2 * BETA * (1 - eta * BETA) * np.abs(REF - best).max()
    errors = {}
    for k in (6, 9):
        options = {"learning_rate": eta, "num_steps": k, "natural": True}
        log_policy = np.asarray(fine_tune_mdp(mdp, REF, BETA, **options).log_policy[0], float)
        errors[k] = np.abs(log_policy - best).max()
        off = np.abs(action_values(log_policy) - action_values(best)).max()
        assert off <= first * (1 - (1 - DISCOUNT) * eta * BETA) ** k
    np.testing.assert_allclose(errors[9] / errors[6], 0.6**3, rtol=0.02)


@pytest.mark.broad
def test_natural_steps_of_forward_kl_settle_below_the_length_that_is_said_and_not_above():
    # One state and two actions: the step is linear there, of eigenvalue 1 − ηβ Σ π_ref/π² / Σ 1/π.
    reward, ref = np.array([[0.0, 1.0]]), np.log(np.array([[0.5, 0.5]]))
    mdp = MDP(np.ones((1, 2, 1), LAST), reward.astype(LAST), 0.5)
    # β/2π = Λ − r with masses that add to one: 1/(2Λ) + 1/(2Λ − 2) = 1.
    level = 1 + 0.5**0.5
    policy = 0.5 / (level - reward[0])
    np.testing.assert_allclose(policy.sum(), 1, rtol=1e-12)
    limit = 2 * (1 / policy).sum() / (0.5 / policy**2).sum()
    assert limit > 2 * policy.min() / 0.5
    options = {"num_steps": 300, "natural": True}
    for share in (0.9, 1.1):
        step = {"learning_rate": share * limit}
        run = fine_tune_mdp(mdp, ref, 1.0, kt.ForwardKL(), **step, **options)
        near = np.abs(np.exp(np.asarray(run.log_policy[0, 0], float)) - policy).max()
        assert (near < 1e-5) == (share < 1)


def test_a_plain_step_is_along_the_gradient():
    plain = {"learning_rate": 0.5, "num_steps": 1, "optimizer": optax.sgd}
    run = fine_tune_mdp(two_states(), REF, BETA, **plain)
    slope = slopes(lambda x: objective(log_softmax(REF + x)), np.zeros((2, 2)))
    expected = log_softmax(REF + 0.5 * slope)
    np.testing.assert_allclose(run.log_policy[0], expected, atol=1e-5)
    np.testing.assert_allclose(
        run.objective[:, 0], [objective(REF), objective(expected)], rtol=1e-5
    )


@pytest.mark.broad
def test_natural_gradients_of_features_divide_by_the_fisher_matrix():
    features = np.array([[1.0, 0.5], [-0.3, 2.0]])

    def policy(weights):
        return log_softmax(REF + features @ weights.reshape(2, 2))

    nothing = np.zeros(4)
    slope = slopes(lambda w: objective(policy(w)), nothing)
    jacobian = np.stack([slopes(lambda w, k=k: policy(w).flat[k], nothing) for k in range(4)])
    moves = np.einsum("sa,sat->st", np.exp(REF), TRANSITION)
    met = np.linalg.solve(np.eye(2) - DISCOUNT * moves.T, START)
    weight = (met[:, None] * np.exp(REF)).reshape(-1)
    fisher = jacobian.T @ (weight[:, None] * jacobian)
    expected = policy(0.3 * np.linalg.pinv(fisher, rcond=1e-6) @ slope)
    options = {"learning_rate": 0.3, "num_steps": 1, "natural": True}
    run = fine_tune_mdp(two_states(), REF, BETA, features=features, **options)
    np.testing.assert_allclose(run.log_policy[0], expected, atol=2e-4)


@pytest.mark.broad
def test_states_that_look_alike_are_treated_alike():
    found = scipy.optimize.minimize(
        lambda w: -objective(log_softmax(REF + w)), np.zeros(2), tol=1e-12
    )
    options = {"learning_rate": 0.1, "num_steps": 400, "features": np.ones((2, 1))}
    run = fine_tune_mdp(two_states(), REF, BETA, **options)
    np.testing.assert_allclose(run.log_policy[0], log_softmax(REF + found.x), atol=2e-3)
    best = float(solve_mdp(two_states(), REF.astype(LAST), BETA).value)
    assert float(run.objective[-1, 0]) < best - 0.01


def random_processes(rng, batch, states=5, actions=3):
    transition = rng.dirichlet(np.full(states, 0.3), size=(*batch, states, actions))
    reward = rng.normal(size=(*batch, states, actions))
    mdp = MDP(transition.astype(LAST), reward.astype(LAST), DISCOUNT)
    log_ref = np.log(rng.dirichlet(np.ones(actions), size=(*batch, states)))
    return mdp, log_ref.astype(LAST)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL(), kt.Tsallis(2.0)])
def test_gradients_end_at_the_optimum(divergence):
    mdp, log_ref = random_processes(np.random.default_rng(0), (4,))
    beta = np.array([0.3, 3.0], LAST)[:, None]
    target = solve_mdp(mdp, log_ref, beta, divergence).raise_if_failed()
    options = {"key": jax.random.key(0), "num_seeds": 2, "learning_rate": 0.1}
    # A softmax comes to the zeros of the last one like 1/t.
    num_steps = 3000 if isinstance(divergence, kt.Tsallis) else 500
    run = fine_tune_mdp(mdp, log_ref, beta, divergence, num_steps=num_steps, **options)
    assert run.log_policy.shape == (2, 2, 4, 5, 3)
    value, objective = (np.asarray(x, float) for x in (target.value, run.objective))
    gap, start = value - objective[-1], value - objective[0]
    assert gap.min() > -1e-5 * np.abs(value).max()
    assert (gap / start[0]).max() < 1e-3
    apart = np.exp(np.asarray(run.log_policy)) - np.exp(np.asarray(target.log_policy))
    assert np.abs(apart).max() < 0.02


@pytest.mark.slow
def test_thousands_of_processes_at_once():
    mdp, log_ref = random_processes(np.random.default_rng(1), (1500,))
    beta = np.array([0.2, 1.0], LAST)[:, None]
    target = solve_mdp(mdp, log_ref, beta).raise_if_failed()
    run = fine_tune_mdp(mdp, log_ref, beta, learning_rate=1 / beta, num_steps=12, natural=True)
    assert run.objective.shape == (13, 1, 2, 1500)
    # Soft policy iteration never falls.
    rise = np.diff(np.asarray(run.objective, float), axis=0)
    assert rise.min() > -1e-4
    np.testing.assert_allclose(run.objective[-1, 0], target.value, atol=3e4 * eps(LAST))
    apart = np.exp(np.asarray(run.log_policy[0])) - np.exp(np.asarray(target.log_policy))
    assert np.abs(apart).max() < 1e5 * eps(LAST)


@pytest.mark.slow
def test_networks_end_at_the_optimum():
    mdp, log_ref = random_processes(np.random.default_rng(2), ())
    beta = np.array([0.3, 1.0], LAST)
    target = solve_mdp(mdp, log_ref, beta)
    shared = {"width": 16, "key": jax.random.key(0), "num_seeds": 2}
    for options in (
        {"learning_rate": 0.02, "num_steps": 1000},
        {"learning_rate": 0.3 / beta, "num_steps": 60, "natural": True},
    ):
        run = fine_tune_mdp(mdp, log_ref, beta, **options, **shared)
        assert np.abs(np.asarray(target.value) - np.asarray(run.objective[-1])).max() < 1e-3
        apart = np.exp(np.asarray(run.log_policy)) - np.exp(np.asarray(target.log_policy))
        assert np.abs(apart).max() < 0.02


@pytest.mark.broad
def test_sparse_processes_and_actions_that_a_state_lacks():
    rng = np.random.default_rng(4)
    after = rng.integers(0, 4, size=(4, 2, 3))
    chances = rng.dirichlet(np.ones(3), size=(4, 2)).astype(LAST)
    reward = rng.normal(size=(4, 2)).astype(LAST)
    reward[1, 0] = -np.inf
    dense = np.zeros((4, 2, 4), LAST)
    for k in range(3):
        np.add.at(dense, (*np.indices((4, 2)), after[..., k]), chances[..., k])
    log_ref = np.log(np.full((4, 2), 0.5))
    options = {"learning_rate": 2.0, "num_steps": 4, "natural": True}
    few = fine_tune_mdp(MDP(chances, reward, 0.9, successors=after), log_ref, 0.5, **options)
    full = fine_tune_mdp(MDP(dense, reward, 0.9), log_ref, 0.5, **options)
    np.testing.assert_allclose(few.log_policy, full.log_policy, atol=100 * eps(LAST))
    assert few.log_policy[0, 1, 0] == -jnp.inf
    assert np.isfinite(few.objective).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps must be an integer of 1 or more"),
        ({"width": 0}, "width must be an integer of 1 or more"),
        ({"num_seeds": 2}, "key is needed for networks and several seeds"),
        ({"width": 4}, "key is needed for networks and several seeds"),
        ({"beta": -1.0}, "beta must be above 0 and finite"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and finite"),
        ({"log_ref": REF[0]}, r"log_ref has shape \(2,\): its last axes must be \(2, 2\)"),
        ({"log_ref": REF + 1}, "log_ref is not normalised"),
        ({"features": np.ones((3, 2))}, r"features has shape \(3, 2\): give \[2, F\]"),
        ({"beta": np.ones(2), "learning_rate": np.ones(3)}, "do not broadcast"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"log_ref": REF, "beta": BETA, "learning_rate": 0.1, "num_steps": 1} | change
    with pytest.raises(ValueError, match=message):
        fine_tune_mdp(two_states(), given.pop("log_ref"), given.pop("beta"), **given)


def test_what_cannot_be_trained_is_named():
    reward = np.where([[True, True], [True, False]], REWARD, -np.inf).astype(LAST)
    mdp = MDP(TRANSITION.astype(LAST), reward, DISCOUNT)
    with pytest.raises(ValueError, match=r"reward is -inf where log_ref is not.* forward KL"):
        fine_tune_mdp(mdp, REF, BETA, kt.ForwardKL(), learning_rate=0.1, num_steps=1)
    only = np.array([[0.0, -np.inf], [-np.inf, 0.0]])
    with pytest.raises(ValueError, match="log_ref has no action that the state has"):
        fine_tune_mdp(mdp, only, BETA, learning_rate=0.1, num_steps=1)
    with pytest.raises(TypeError, match="mdp must be an MDP, got ndarray"):
        fine_tune_mdp(REWARD, REF, BETA, learning_rate=0.1, num_steps=1)
    ends = MDP(TRANSITION.astype(LAST), REWARD.astype(LAST), DISCOUNT, horizon=3)
    with pytest.raises(ValueError, match="fine_tune_mdp is of discounted processes"):
        fine_tune_mdp(ends, REF, BETA, learning_rate=0.1, num_steps=1)
