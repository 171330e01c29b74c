"""χ² between occupancy measures against a general solver, and the bound for correlated proxies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DTYPES, eps

import kltarget as kt
from kltarget.spaces import MDP
from kltarget.targets.mdps import solve_occupancy

LAST = DTYPES[-1]


def problem(seed, size=5, actions=3, discount=0.9):
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.full(size, 0.5), size=(size, actions)).astype(LAST)
    reward = rng.normal(size=(size, actions)).astype(LAST)
    start = rng.dirichlet(np.ones(size)).astype(LAST)
    log_ref = np.log(rng.dirichlet(np.ones(actions), size=size)).astype(LAST)
    return MDP(chances, reward, discount, start=start), log_ref


def occupancy_of(mdp, policy):
    """By summing over time."""
    chain = np.einsum("sa,sat->st", policy, np.asarray(mdp.transition, float))
    gamma = float(mdp.discount)
    now, total = np.asarray(mdp.start, float), np.zeros(len(policy))
    for t in range(int(np.log(1e-17) / np.log(gamma))):
        total += (1 - gamma) * gamma**t * now
        now = now @ chain
    return total[:, None] * policy


@pytest.mark.broad
@pytest.mark.parametrize("root", [False, True])
def test_optima_are_those_of_a_general_solver(root):
    cvxpy = pytest.importorskip("cvxpy")
    for seed in range(6):
        mdp, log_ref = problem(seed)
        reward, gamma = np.asarray(mdp.reward, float), float(mdp.discount)
        ref = occupancy_of(mdp, np.exp(log_ref.astype(float)))
        for beta in (0.02, 0.1, 0.5, 3.0):
            target = solve_occupancy(mdp, log_ref, beta, root=root).raise_if_failed()
            ratio = cvxpy.Variable(ref.shape)
            d = cvxpy.multiply(ref, ratio)
            far = cvxpy.multiply(np.sqrt(ref), ratio - 1)
            charge = cvxpy.norm(far, "fro") if root else cvxpy.sum_squares(far)
            moves = np.asarray(mdp.transition, float)
            into = sum(moves[:, a].T @ d[:, a] for a in range(ref.shape[1]))
            start = (1 - gamma) * np.asarray(mdp.start, float)
            flow = cvxpy.sum(d, axis=1) == start + gamma * into
            gain = cvxpy.sum(cvxpy.multiply(reward, d)) - beta * charge
            program = cvxpy.Problem(cvxpy.Maximize(gain), [ratio >= 0, flow])
            best = program.solve(solver="CLARABEL")
            np.testing.assert_allclose(target.value, best, atol=3e-6)
            assert target.value_error < 1e-6
            if not root:
                np.testing.assert_allclose(target.occupancy, ref * ratio.value, atol=2e-4)


@pytest.mark.broad
def test_small_coefficients_come_to_what_the_best_policy_earns():
    beta = np.array([1e-4, 1e-3, 1e-2], LAST)
    for seed in range(4):
        mdp, log_ref = problem(seed, size=8)
        moves, reward = np.asarray(mdp.transition, float), np.asarray(mdp.reward, float)
        q = np.zeros(reward.shape)
        for _ in range(400):
            q = reward + 0.9 * moves @ q.max(-1)
        best = occupancy_of(mdp, np.eye(3)[q.argmax(-1)])
        ref = occupancy_of(mdp, np.exp(log_ref.astype(float)))
        charge = beta * ((best - ref) ** 2 / ref).sum()
        target = solve_occupancy(mdp, log_ref, beta).raise_if_failed()
        left = (best * reward).sum() - np.asarray(target.value, float)
        assert (left <= charge + 100 * eps(LAST)).all()
        assert (left >= -100 * eps(LAST)).all()


def test_a_constant_added_to_every_reward_changes_no_policy():
    # At values of 0 every action would be worth less than χ² charges to cut it off.
    mdp, log_ref = problem(8)
    betas = np.array([0.02, 0.5, 30.0], LAST)
    own = solve_occupancy(mdp, log_ref, betas).raise_if_failed()
    for offset in (-1e3, 1e3):
        given = MDP(mdp.transition, mdp.reward + offset, mdp.discount, start=mdp.start)
        target = solve_occupancy(given, log_ref, betas).raise_if_failed()
        # Rewards around 1e3 are rounded to 1e3 eps, which is compared with 2β.
        np.testing.assert_allclose(target.occupancy, own.occupancy, atol=1e3 * eps(LAST) / 0.04)


@pytest.mark.parametrize("reward", [-40.0, 0.0, 40.0])
def test_one_state_with_one_action_is_as_it_was(reward):
    mdp = MDP(np.ones((1, 1, 1), LAST), np.array([[reward]], LAST), 0.5)
    for root in (False, True):
        target = solve_occupancy(mdp, np.zeros((1, 1), LAST), 0.1, root=root).raise_if_failed()
        np.testing.assert_array_equal(target.occupancy, [[1.0]])
        assert (target.value, target.value_error) == (reward, 0)


@pytest.mark.broad
def test_occupancy_is_that_of_the_policy_and_the_numbers_agree():
    mdp, log_ref = problem(7)
    for root in (False, True):
        target = solve_occupancy(mdp, log_ref, np.array([0.1, 0.4], LAST), root=root)
        for k in range(2):
            expected = occupancy_of(mdp, np.exp(np.asarray(target.log_policy[k], float)))
            np.testing.assert_allclose(target.occupancy[k], expected, atol=100 * eps(LAST))
        cost = target.beta * target.divergence_value
        np.testing.assert_allclose(target.expected_reward - cost, target.value, atol=1e-4)
        pairs = target.sample(key=jax.random.key(0), num_samples=4)
        assert pairs.shape == (4, 2, 2)
        assert target.log_prob(jnp.array([1, 2])).shape == (2,)


@pytest.mark.broad
def test_one_state_is_a_list_of_actions():
    """Where nothing moves, d is the policy and χ² that of ``solve``."""
    reward = np.array([[0.0, 1.0, 0.4, -2.0]], LAST)
    log_ref = np.log(np.array([[0.1, 0.2, 0.3, 0.4]], LAST))
    mdp = MDP(np.ones((1, 4, 1), LAST), reward, 0.5)
    for beta in (0.1, 0.6, 5.0):
        target = solve_occupancy(mdp, log_ref, beta)
        listed = kt.solve(kt.Objective(reward[0], log_ref[0], beta, kt.ChiSquared()))
        np.testing.assert_allclose(target.occupancy[0], listed.probs, atol=50 * eps(LAST))


@pytest.mark.broad
def test_a_large_root_coefficient_keeps_the_reference():
    """Below the largest reward per unit of √χ² something is worth its charge, above it nothing."""
    reward = np.array([[0.0, 1.0]], LAST)
    log_ref = np.log(np.array([[0.75, 0.25]], LAST))
    mdp = MDP(np.ones((1, 2, 1), LAST), reward, 0.5)
    spread = np.sqrt(0.75 * 0.25)
    target = solve_occupancy(mdp, log_ref, spread * np.array([0.99, 1.01], LAST), root=True)
    np.testing.assert_allclose(target.occupancy[1, 0], [0.75, 0.25], atol=1e-6)
    assert target.occupancy[0, 0, 1] > 0.99


@pytest.mark.broad
def test_what_the_reference_never_does_is_not_done():
    mdp, log_ref = problem(3)
    log_ref[:, 0] = -np.inf
    log_ref = np.asarray(kt.normalize(log_ref))
    target = solve_occupancy(mdp, log_ref, 0.05)
    assert (target.occupancy[:, 0] == 0).all()
    assert np.isfinite(target.divergence_value)


@pytest.mark.slow
def test_the_bound_for_correlated_proxies_holds_and_is_best_at_the_root():
    """Claim: a proxy's gain, less the root of χ² between occupancy measures, bounds the gain of a
    true reward that correlates with it (arXiv 2403.03185).

    Holds: its largest value is where that root is the regulariser.
    """
    rng = np.random.default_rng(0)
    for seed in range(40):
        mdp, log_ref = problem(seed)
        ref = occupancy_of(mdp, np.exp(log_ref.astype(float)))
        true = np.asarray(mdp.reward, float)
        proxy = true + rng.uniform(0.2, 2.0) * rng.normal(size=true.shape)

        def moment(x, y, ref=ref):
            return (ref * (x - (ref * x).sum()) * (y - (ref * y).sum())).sum()

        r = moment(true, proxy) / np.sqrt(moment(true, true) * moment(proxy, proxy))
        sd, sd_proxy = np.sqrt(moment(true, true)), np.sqrt(moment(proxy, proxy))
        if r <= 0.05:
            continue

        def bound(d, r=r, proxy=proxy, ref=ref, sd_proxy=sd_proxy):
            chi2 = ((d - ref) ** 2 / ref).sum()
            return (((d - ref) * proxy).sum() / sd_proxy - np.sqrt((1 - r**2) * chi2)) / r

        policies = np.exp(rng.normal(size=(50, *true.shape)) * rng.uniform(0, 4, (50, 1, 1)))
        policies /= policies.sum(-1, keepdims=True)
        seen = [occupancy_of(mdp, p) for p in policies]
        for d in seen:
            assert ((d - ref) * true).sum() / sd >= bound(d) - 1e-9
        hacked = MDP(mdp.transition, proxy.astype(LAST), mdp.discount, start=mdp.start)
        beta = sd_proxy * np.sqrt(1 - r**2)
        target = solve_occupancy(
            hacked, log_ref, np.asarray(beta, LAST), root=True
        ).raise_if_failed()
        best = np.asarray(target.occupancy, float)
        assert ((best - ref) * true).sum() / sd >= bound(best) - 1e-4
        # The reference itself promises 0; occupancies are rounded to their dtype.
        assert bound(best) >= -1e-5 / r
        assert bound(best) >= max(map(bound, seen)) - 1e-3 / r


def test_each_fault_has_its_error():
    mdp, log_ref = problem(1)
    for error, message, call in (
        (TypeError, "mdp must be an MDP", lambda: solve_occupancy(log_ref, log_ref, 1.0)),
        (ValueError, "log_ref has shape", lambda: solve_occupancy(mdp, log_ref[0], 1.0)),
        (ValueError, "beta must be above 0", lambda: solve_occupancy(mdp, log_ref, 0.0)),
        (ValueError, "log_ref is not normalised", lambda: solve_occupancy(mdp, log_ref + 1, 1.0)),
        (
            TypeError,
            "needs concrete arguments",
            lambda: jax.jit(lambda b: solve_occupancy(mdp, log_ref, b).value)(1.0),
        ),
    ):
        with pytest.raises(error, match=message):
            call()
