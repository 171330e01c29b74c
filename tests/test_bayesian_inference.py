"""The target is a posterior on every space: prior π_ref, likelihood e^{r/β}.

On each, the posterior is Bayes' rule over everything listed one by one, in NumPy, and the objective
of some other policy is its reward less β times its KL, summed term by term. Between the two stands
the identity of the evidence lower bound, J(π) = β log Z − β KL(π‖posterior).
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import norm

import kltarget as kt
from kltarget.spaces import MDP, Automaton, Chain, MarkovReference, MatrixGame
from kltarget.targets.chains import solve_chain
from kltarget.targets.games import solve_game
from kltarget.targets.mdps import solve_mdp

BETA = 0.4


def eps():
    return float(jnp.finfo(jnp.result_type(float)).eps)


def bayes(prior, reward, beta=BETA):
    """The posterior and β times the logarithm of the evidence."""
    joint = prior * np.exp(reward / beta)
    return joint / joint.sum(), beta * np.log(joint.sum())


def kl(p, q):
    on = p > 0
    return (p[on] * np.log(p[on] / q[on])).sum()


def assert_bound(policy, prior, reward, best, beta=BETA):
    """That the objective of a policy falls short of ``best`` by β times its KL to the posterior."""
    value = (policy * reward).sum() - beta * kl(policy, prior)
    posterior, _ = bayes(prior, reward, beta)
    scale = 1 + abs(float(best)) + beta * kl(policy, posterior)
    np.testing.assert_allclose(
        float(best) - value, beta * kl(policy, posterior), atol=1e3 * eps() * scale
    )


def on(log_probs):
    return np.exp(np.asarray(log_probs, np.float64))


@given(st.integers(0, 10**6), st.floats(0.0625, 16, width=32), st.booleans())
def test_the_target_is_the_posterior_and_the_objective_its_bound(seed, beta, impossible):
    """Claim: the optimum with a KL penalty is Bayes' posterior of the reference under the
    likelihood e^{r/β}, and the objective β times its evidence lower bound (arXiv 2205.11275).

    Holds.
    """
    rng = np.random.default_rng(seed)
    prior, policy = rng.dirichlet(np.ones(6), 2)
    reward = rng.normal(size=6)
    if impossible:
        prior[0] = policy[0] = 0.0
        prior, policy = prior / prior.sum(), policy / policy.sum()
    with np.errstate(divide="ignore"):
        objective = kt.Objective(reward, np.log(prior), beta)
    target = kt.solve(objective)
    posterior, evidence = bayes(prior, reward, beta)
    np.testing.assert_allclose(on(target.log_probs), posterior, atol=1e3 * eps())
    np.testing.assert_allclose(
        target.value, evidence, rtol=1e3 * eps(), atol=1e3 * eps() * (1 + beta)
    )
    assert_bound(policy, prior, reward, target.value, beta)


def test_next_tokens_are_those_of_the_posterior_given_the_prefix():
    space = kt.SequenceSpace(3, 3)
    rng = np.random.default_rng(0)
    prior, policy = rng.dirichlet(np.ones(27), 2)
    reward = rng.normal(size=27)
    target = kt.solve(kt.Objective(reward, np.log(prior), BETA))
    posterior, _ = bayes(prior, reward)
    table = posterior.reshape(3, 3, 3)
    wanted = (table.sum((1, 2)), table.sum(2), table)
    for found, mass in zip(space.conditionals(target.log_probs), wanted, strict=True):
        given_prefix = mass / mass.sum(-1, keepdims=True)
        np.testing.assert_allclose(on(found), given_prefix.reshape(-1, 3), atol=1e3 * eps())
    assert_bound(policy, prior, reward, target.value)


@pytest.mark.broad
def test_texts_of_an_automaton_have_the_posterior_of_their_final_state():
    rng = np.random.default_rng(1)
    first, then = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), 3)
    moves, worth = rng.integers(0, 4, (4, 3)), rng.normal(size=4)
    texts = np.array(list(itertools.product(range(3), repeat=5)))
    prior, reward = first[texts[:, 0]], []
    for t in range(1, 5):
        prior = prior * then[texts[:, t - 1], texts[:, t]]
    for text in texts:
        state = 0
        for token in text:
            state = moves[state, token]
        reward.append(worth[state])
    reference = MarkovReference(np.log(first), np.log(then))
    target = kt.solve_on_automaton(reference, Automaton(moves), worth, BETA, length=5)
    posterior, evidence = bayes(prior, np.array(reward))
    np.testing.assert_allclose(on(target.log_prob(texts)), posterior, atol=1e3 * eps())
    np.testing.assert_allclose(target.value, evidence, atol=1e3 * eps())
    assert_bound(rng.dirichlet(np.ones(243)), prior, np.array(reward), target.value)


@pytest.mark.broad
def test_paths_of_a_chain_have_the_posterior_of_their_end():
    rng = np.random.default_rng(2)
    first, kernels = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), (2, 3))
    worth = rng.normal(size=3)
    paths = np.array(list(itertools.product(range(3), repeat=3)))
    prior = first[paths[:, 0]]
    for t in range(2):
        prior = prior * kernels[t, paths[:, t], paths[:, t + 1]]
    chain = Chain(np.log(first), np.log(kernels))
    target = solve_chain(chain, worth, BETA)
    posterior, evidence = bayes(prior, worth[paths[:, -1]])
    np.testing.assert_allclose(on(target.log_prob(paths)), posterior, atol=1e3 * eps())
    np.testing.assert_allclose(target.value, evidence, atol=1e3 * eps())
    assert_bound(rng.dirichlet(np.ones(27)), prior, worth[paths[:, -1]], target.value)


@pytest.mark.broad
@pytest.mark.parametrize("certain", [True, False])
def test_walks_of_a_decision_process_are_a_posterior_where_moves_are_certain(certain):
    """Claim: control with a KL or entropy cost is inference: the optimal policy is the posterior
    of actions given that all rewards were earned (arXiv 1805.00909).

    Holds with a correction: where moves are certain; elsewhere the posterior counts on luck,
    and the optimum is the closest to it among laws that keep the moves.
    """
    rng = np.random.default_rng(3)
    after = rng.integers(0, 3, (3, 2))
    moves = np.eye(3)[after] if certain else rng.dirichlet(np.ones(3), (3, 2))
    worth, ref, start = rng.normal(size=(3, 2)), rng.dirichlet(np.ones(2), 3), np.ones(3) / 3
    mdp = MDP(moves, worth, horizon=3, start=start)
    target = solve_mdp(mdp, np.log(ref), BETA)
    walks = np.array(list(itertools.product(range(3), range(2), repeat=3))).reshape(-1, 3, 2)
    state, action = walks[..., 0], walks[..., 1]
    chance = start[state[:, 0]] * np.prod(
        [moves[state[:, t], action[:, t], state[:, t + 1]] for t in range(2)], axis=0
    )
    prior, reward = chance * ref[state, action].prod(1), worth[state, action].sum(1)
    with np.errstate(divide="ignore"):
        found = on(target.log_prob(walks))
    possible = prior > 0
    posterior, evidence = bayes(prior[possible], reward[possible])
    np.testing.assert_allclose(found[~possible], 0.0)
    apart = np.abs(found[possible] - _of_starts(posterior, state[possible, 0], start)).max()
    assert_bound(found[possible], prior[possible], reward[possible], evidence)
    if certain:
        assert apart < 1e3 * eps()
    else:
        assert apart > 0.02
        # Nothing that may be chosen is closer to the posterior.
        for _ in range(20):
            other = rng.dirichlet(np.ones(2), (3, 3))
            law = chance * np.prod([other[t, state[:, t], action[:, t]] for t in range(3)], axis=0)
            gap = kl(law[possible], posterior) - kl(found[possible], posterior)
            assert gap > 0


def _of_starts(posterior, first, start):
    """The posterior with its starts as likely as they are: nobody chooses where to begin."""
    law = posterior.copy()
    for state, mass in enumerate(start):
        law[first == state] *= mass / law[first == state].sum()
    return law


def test_a_mixture_under_an_observation_is_the_conjugate_posterior():
    weights, means, sds = np.array([0.7, 0.3]), np.array([-2.0, 1.0]), np.array([0.8, 0.6])
    seen, noise = 0.5, 0.9
    prior = kt.GaussianMixture(np.log(weights), means[:, None], sds**2, covariance_type="spherical")
    # log N(seen; x, noise²) in the form of a quadratic reward, but for its constant.
    reward = kt.mixtures.QuadraticReward(matrix=[[-1 / noise**2]], vector=[seen / noise**2])
    target = kt.mixtures.tilt(prior, reward, 1.0)
    evidence = norm.pdf(seen, means, np.hypot(sds, noise))
    precision = 1 / sds**2 + 1 / noise**2
    wide = {"rtol": 1e3 * eps()}
    np.testing.assert_allclose(
        on(target.component_log_mass), weights * evidence / (weights * evidence).sum(), **wide
    )
    np.testing.assert_allclose(
        target.mixture.means[:, 0], (means / sds**2 + seen / noise**2) / precision, **wide
    )


@pytest.mark.broad
def test_in_a_game_each_policy_is_the_posterior_given_the_other():
    rng = np.random.default_rng(4)
    payoff, refs = rng.normal(size=(3, 2)), (rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(2)))
    found = solve_game(MatrixGame(payoff), (np.log(refs[0]), np.log(refs[1])), BETA)
    row, column = np.asarray(found.row.probs, float), np.asarray(found.column.probs, float)
    np.testing.assert_allclose(row, bayes(refs[0], payoff @ column)[0], atol=1e3 * eps())
    np.testing.assert_allclose(column, bayes(refs[1], -row @ payoff)[0], atol=1e3 * eps())
