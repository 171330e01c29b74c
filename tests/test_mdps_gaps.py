"""What a regulariser takes in a decision process, and where its likeliest actions change."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
import scipy.optimize
from oracles import DTYPES, eps

import kltarget as kt
from kltarget.spaces import MDP
from kltarget.targets.mdps import action_flips, regularization_gap, solve_mdp

LAST = DTYPES[-1]
TRANSITION = np.array([[[0.9, 0.1], [0.4, 0.6]], [[0.3, 0.7], [0.2, 0.8]]])
REWARD = np.array([[0.0, 0.2], [1.0, 0.5]])
LOG_REF = np.log(np.array([[0.5, 0.5], [0.25, 0.75]])).astype(LAST)


def soft_policies(moves, reward, ref, beta, discount, num_steps):
    """Of each β, by plain iteration."""
    beta = np.asarray(beta)[:, None, None]
    values = np.zeros((len(beta), len(ref)))
    for _ in range(num_steps):
        q = reward + discount * np.einsum("sat,bt->bsa", moves, values)
        top = q.max(-1, keepdims=True)
        values = (top + beta * np.log((ref * np.exp((q - top) / beta)).sum(-1, keepdims=True)))[
            ..., 0
        ]
    return ref * np.exp((q - values[..., None]) / beta)


@jax.jit
def gap_of(mdp, log_ref, beta, divergence=None):
    """The gap and the values of one solution, in one program."""
    target = solve_mdp(mdp, log_ref, beta, divergence)
    return regularization_gap(target), target.state_values


@pytest.mark.broad
def test_gaps_of_fifty_digits():
    mdp = MDP(TRANSITION.astype(LAST), REWARD.astype(LAST), 0.9)
    gap, values = jax.tree.map(np.asarray, gap_of(mdp, LOG_REF, np.array([0.2, 1.0], LAST)))
    best = [6.74725274725274725, 7.62637362637362637]
    close = {"rtol": 1e4 * eps(LAST)}
    np.testing.assert_allclose(gap.greedy_values, [best, best], **close)
    np.testing.assert_allclose(gap.return_gap.max(-1), [0.879916105423, 2.59311198203], **close)
    np.testing.assert_allclose(gap.bound, [2.77258872224, 13.8629436112], **close)
    np.testing.assert_allclose(gap.value_gap[0], np.array(best) - values[0], **close)


@pytest.mark.broad
@pytest.mark.parametrize(
    "divergence", [kt.ReverseKL(), kt.JensenShannon(), kt.Tsallis(1.5), kt.ForwardKL()], ids=str
)
def test_the_bound_holds(divergence):
    """Claim: what regularisation costs is at most β (max Ω − min Ω) / (1 − γ) (arXiv 1901.11275).

    Holds: for forward KL, whose Ω has no largest value, the bound says nothing.
    """
    rng = np.random.default_rng(0)
    moves = rng.dirichlet(np.ones(3), size=(40, 3, 2)).astype(LAST)
    reward = rng.normal(size=(40, 3, 2)).astype(LAST)
    ref = np.log(rng.dirichlet(np.ones(2), size=(40, 3))).astype(LAST)
    mdp = MDP(moves, reward, 0.8)
    gap, _ = gap_of(mdp, ref, np.asarray(0.5, LAST), divergence)
    slack = 1e3 * eps(LAST)
    for part in (gap.value_gap, gap.return_gap):
        assert (np.asarray(part) >= -slack).all()
        assert (np.asarray(part).max(-1) <= np.asarray(gap.bound) + slack).all()
    assert np.isinf(gap.bound).all() == isinstance(divergence, kt.ForwardKL)
    for row in range(3):
        best = scipy.optimize.linprog(
            np.full(3, 1 / 3),
            A_ub=(0.8 * moves[row].astype(float) - np.eye(3)[:, None]).reshape(6, 3),
            b_ub=-reward[row].astype(float).reshape(6),
            bounds=(None, None),
        )
        np.testing.assert_allclose(gap.greedy_values[row], best.x, rtol=1e-5)


@pytest.mark.broad
@pytest.mark.parametrize("ending", [{"discount": 1.0}, {"discount": 0.9, "horizon": 5}], ids=str)
def test_the_best_of_all_policies_of_a_process_that_ends(ending):
    # Four states in a row: stay free of charge, go left for 1, jump for 3 with a chance of 1/2.
    size, actions = 4, 3
    moves = np.zeros((size, actions, size))
    moves[:, 0] = np.eye(size)
    for s in range(size):
        moves[s, 1, max(s - 1, 0)] = 1
        moves[s, 2, 0] += 0.5
        moves[s, 2, s] += 0.5
    moves[0, :] = np.eye(size)[0]
    reward = np.tile([-0.7, -1.0, -1.2], (size, 1))
    reward[0] = 0
    mdp = MDP(moves.astype(LAST), reward.astype(LAST), **ending)
    ref = np.full((size, actions), np.log(1 / 3)).astype(LAST)
    gap, _ = jax.tree.map(np.asarray, gap_of(mdp, ref, 0.3))
    each = [np.array(p) for p in itertools.product(range(actions), repeat=size)]
    if mdp.horizon is None:
        best = np.full(size, -np.inf)
        for policy in each:
            chain = moves[np.arange(size), policy][1:, 1:]
            if np.abs(np.linalg.eigvals(chain)).max() < 1:
                earned = reward[np.arange(size), policy][1:]
                best[1:] = np.maximum(best[1:], np.linalg.solve(np.eye(3) - chain, earned))
        best[0] = 0
    else:
        best = np.zeros(size)
        for _ in range(5):
            after = [
                reward[np.arange(size), p] + 0.9 * moves[np.arange(size), p] @ best for p in each
            ]
            best = np.max(after, axis=0)
    got = gap.greedy_values if mdp.horizon is None else gap.greedy_values[0]
    np.testing.assert_allclose(got, best, rtol=100 * eps(LAST), atol=100 * eps(LAST))
    assert 0 <= float(gap.value_gap.max()) <= float(gap.bound)
    assert 0 <= float(gap.return_gap.max()) <= float(gap.bound)


@pytest.mark.slow
def test_likeliest_actions_change_where_flips_say():
    rng = np.random.default_rng(4)
    moves, reward = rng.dirichlet(np.ones(4), size=(4, 3)), rng.normal(size=(4, 3))
    ref = rng.dirichlet(np.ones(3), size=4)
    mdp = MDP(moves.astype(LAST), reward.astype(LAST), 0.8)
    grid = np.geomspace(0.05, 20, 40)
    flips = action_flips(mdp, np.log(ref).astype(LAST), grid)
    assert len(flips) >= 2
    assert [f.beta for f in flips] == sorted(f.beta for f in flips)
    off = 1e-3 if LAST.itemsize < 8 else 1e-6
    sides = np.array([[f.beta * (1 - off), f.beta * (1 + off)] for f in flips])
    policies = soft_policies(moves, reward, ref, sides.ravel(), 0.8, 3000)
    for flip, pair in zip(flips, policies.reshape(len(flips), 2, 4, 3), strict=True):
        assert pair[:, flip.state].argmax(-1).tolist() == [flip.below, flip.above]
    # Between flips nothing changes: the number of changes over a finer grid is that of the flips.
    fine = np.geomspace(0.05, 20, 200)
    leaders = soft_policies(moves, reward, ref, fine, 0.8, 300).argmax(-1)
    assert (leaders[1:] != leaders[:-1]).sum() == len(flips)


@pytest.mark.broad
def test_actions_that_are_level_at_every_beta_do_not_flip():
    # Two ways to the same end, whose log-probabilities differ by rounding alone.
    chances = np.array([[0.3, 0.35, 0.35], [0.3, 0.21, 0.49]])
    moves = np.stack([chances, np.eye(3)[[1, 1]], np.eye(3)[[2, 2]]])
    reward = np.array([[0.0, 0.0], [0.3, 0.0], [0.3, 0.0]], LAST)
    mdp = MDP(moves.astype(LAST), reward, 0.9)
    even = np.log(np.full((3, 2), 0.5, LAST))
    assert action_flips(mdp, even, np.geomspace(1e-3, 1, 60)) == ()


@pytest.mark.broad
def test_flips_of_a_horizon_name_their_step():
    # One state; what an action leads to is the same, so each step flips where one choice would.
    mdp = MDP(np.ones((1, 2, 1), LAST), np.array([[1.0, 0.0]], LAST), horizon=2)
    ref = np.log(np.array([[0.2, 0.8]])).astype(LAST)
    # Both are at one β, but for rounding.
    flips = sorted(action_flips(mdp, ref, [0.1, 5.0]), key=lambda flip: flip.step)
    assert [(f.step, f.state, f.below, f.above) for f in flips] == [(0, 0, 0, 1), (1, 0, 0, 1)]
    np.testing.assert_allclose([f.beta for f in flips], 1 / np.log(4), rtol=300 * eps(LAST))
    assert action_flips(mdp, ref, [1.0, 5.0]) == ()


@pytest.mark.broad
def test_rewards_along_a_path_are_consistent():
    """Claim: on every path, not those of the policy alone, soft values and rewards less β log
    π/π_ref agree (arXiv 1702.08892).

    Holds.
    """
    # V(s_0) − γ^T V(s_T) = Σ γ^t (r − β log π/π_ref), where moves are certain, on every path.
    rng = np.random.default_rng(5)
    after = rng.integers(0, 6, size=(6, 3))
    moves = np.eye(6)[after]
    reward, ref = rng.normal(size=(6, 3)), rng.dirichlet(np.ones(3), size=6)
    mdp = MDP(moves.astype(LAST), reward.astype(LAST), 0.9)
    target = solve_mdp(mdp, np.log(ref).astype(LAST), 0.4)
    values, ratio = np.asarray(target.state_values), np.asarray(target.log_policy) - np.log(ref)
    for _ in range(20):
        state, summed = rng.integers(6), 0.0
        first = state
        for t in range(7):
            action = rng.integers(3)
            summed += 0.9**t * (reward[state, action] - 0.4 * ratio[state, action])
            state = after[state, action]
        drop = values[first] - 0.9**7 * values[state]
        np.testing.assert_allclose(summed, drop, atol=500 * eps(LAST))


def test_what_is_wrong_with_flips_is_named():
    mdp = MDP(TRANSITION, REWARD, 0.9)
    with pytest.raises(ValueError, match="beta must be two or more increasing numbers"):
        action_flips(mdp, LOG_REF, [1.0, 0.5])
    with pytest.raises(ValueError, match="give one process and"):
        action_flips(mdp, np.stack([LOG_REF, LOG_REF]), [0.5, 1.0])
    with pytest.raises(TypeError, match="one of solve_mdp, got MDP"):
        regularization_gap(mdp)
