"""What is asked of lists of outcomes, asked of texts by their final states, against enumeration."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from test_automata import EVEN, SWITCH, close, enumerated, random_problem
from test_automata_enumerated import LAWS, solved

import kltarget as kt
from kltarget.frontier import best_of_n
from kltarget.spaces import Automaton, MarkovReference

MODES = np.array([0, 1, 1, -1])
"""Of the final states; the last is of wrong texts."""


def problem(reward=(1.0, 0.2, 1.0, 0.0), length=5, seed=7):
    """A reference and an automaton of four states, and all texts one by one."""
    chain, automaton, arrays, _ = random_problem(seed)
    texts, log_ref, finals = enumerated(arrays, length)
    assert np.unique(finals).size == 4
    return chain, automaton, np.array(reward), texts, log_ref, finals


@pytest.mark.broad
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL(), kt.ChiSquared()])
def test_greedy_limits_are_the_best_texts_as_the_reference_has_them(divergence):
    chain, automaton, _, texts, log_ref, finals = problem()
    # Two states tie; the best is forbidden; all are alike.
    rewards = np.array([[1.0, 0.2, 1.0, 0.0], [-1.0, 0.5, -np.inf, 0.2], [0.0, 0.0, 0.0, 0.0]])
    target = kt.solve_on_automaton(chain, automaton, rewards, 1.0, divergence, length=5)
    limit = target.greedy_limit()
    best = rewards[:, finals] == rewards[:, finals].max(-1, keepdims=True)
    kept = np.where(best, log_ref, -np.inf)
    with np.errstate(divide="ignore"):
        wanted = kept - np.log(np.exp(kept).sum(-1, keepdims=True))
    dtype = limit.value.dtype
    close(limit.log_prob(texts), wanted, dtype, 64)
    np.testing.assert_array_equal(limit.value, np.array([1.0, 0.5, 0.0], dtype))
    tokens, scores = limit.likeliest(1)
    np.testing.assert_array_equal(tokens[:, 0], texts[wanted.argmax(-1)])
    close(scores[:, 0], wanted.max(-1), dtype, 64)
    assert bool(kt.Status.NOT_UNIQUE & kt.Status(int(limit.status[0])))
    # Targets of small β come near.
    near = kt.solve_on_automaton(chain, automaton, rewards, 1e-3, divergence, length=5)
    np.testing.assert_allclose(np.exp(near.log_prob(texts)), np.exp(wanted), atol=5e-3)


@pytest.mark.broad
def test_limits_find_what_the_reference_never_says_where_the_divergence_does():
    with np.errstate(divide="ignore"):
        only_a = MarkovReference(np.log([1.0, 0.0]), np.log([[1.0, 0.0], [1.0, 0.0]]))
    has_b = Automaton(np.array([[0, 1], [1, 1]]))
    for divergence, best in ((kt.ReverseKL(), 0.0), (kt.ForwardKL(), 5.0)):
        target = kt.solve_on_automaton(only_a, has_b, [0.0, 5.0], 0.5, divergence, length=3)
        limit = target.greedy_limit()
        assert float(limit.value) == best
        condensed = kt.Status.CONDENSED in kt.Status(int(limit.status))
        assert condensed == (best == 5.0)


def test_ties_on_the_way_have_no_limit_here():
    target = kt.solve_on_automaton(
        EVEN, SWITCH, [0.0, 1.0], 1.0, length=3, step_reward=np.zeros((2, 2))
    )
    with pytest.raises(ValueError, match=r"greedy_limit takes rewards of final states.*count them"):
        target.greedy_limit()


@pytest.mark.broad
def test_the_best_of_n_texts_is_that_of_their_states():
    chain, automaton, reward, _, log_ref, finals = problem()
    target = kt.solve_on_automaton(chain, automaton, reward, 1.0, length=5)
    states = target.states.objective
    draws = np.array([1.0, 3.0, 64.0, 1e4])
    found = best_of_n(states.reward, states.log_ref, draws)
    # Of n independent draws: texts sorted by reward, F below and F up to each level.
    ref, levels = np.exp(log_ref), reward[finals]
    below = np.array([ref[levels < x].sum() for x in levels])
    upto = np.array([ref[levels <= x].sum() for x in levels])
    n = draws[:, None]
    probs = ref / (upto - below) * (upto**n - below**n)
    kl = np.where(probs > 0, probs * np.log(np.maximum(probs, 1e-300) / ref), 0.0).sum(-1)
    wins = (probs * (below + (upto - below) / 2)).sum(-1)
    ends = np.stack([probs[:, finals == d].sum(-1) for d in range(4)], -1)
    np.testing.assert_allclose(found.probs, ends, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.expected_reward, (probs * levels).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.win_rate, wins, rtol=1e-5)


@pytest.mark.broad
@pytest.mark.parametrize("name", ["reverse KL", "forward KL"])
def test_modes_of_texts_flip_where_those_of_all_texts_do(name):
    """Between modes of one reward each, and between modes of several."""
    divergence = LAWS[name].divergence
    for reward in ((0.4, 1.0, 1.0, 0.0), (0.4, 0.9, 0.6, 0.0)):
        chain, automaton, reward, texts, log_ref, finals = problem(reward)
        beta = np.array([0.05, 0.4, 4.0])
        target = kt.solve_on_automaton(chain, automaton, reward, beta, divergence, length=5)
        states, modes = target.states.objective, MODES[finals]
        probs = np.exp(np.asarray(target.log_prob(texts), np.float64))
        masses = np.stack([probs[:, modes == m].sum(-1) for m in (0, 1)], -1)
        mode_mass = np.exp(kt.mode_log_mass(target.states.log_probs, MODES))
        np.testing.assert_allclose(mode_mass, masses, rtol=1e-4)
        odds = kt.log_odds(target.states, 0, 1, modes=MODES)
        np.testing.assert_allclose(odds, np.log(masses[:, 0] / masses[:, 1]), rtol=1e-3, atol=1e-4)
        shares = masses / masses.sum(-1, keepdims=True)
        effective = kt.effective_modes(target.states.log_probs, MODES)
        entropy = -(shares * np.log(shares)).sum(-1)
        np.testing.assert_allclose(effective, np.exp(entropy), rtol=1e-4)
        one = dataclasses.replace(states, beta=jnp.asarray(1.0))
        flip = float(kt.flip_beta(one, 0, 1, modes=MODES))
        assert np.isfinite(flip)
        # There the masses of all texts are level, and on either side they are not.
        around = flip * np.array([[0.9], [1.0], [1.1]])
        whole = log_ref - np.logaddexp.reduce(log_ref)
        log_probs = solved(reward[finals], whole, around, LAWS[name]).log_probs
        level = np.stack([np.logaddexp.reduce(log_probs[:, modes == m], -1) for m in (0, 1)], -1)
        # The reference prefers the first.
        apart = level[:, 1] - level[:, 0]
        assert apart[0] > 1e-3 > abs(apart[1])
        assert apart[2] < -1e-3


@pytest.mark.broad
def test_texts_collapse_where_their_states_do():
    chain, automaton, reward, texts, _, finals = problem((1.0, 0.2, 0.5, 0.0))
    target = kt.solve_on_automaton(chain, automaton, reward, 1.0, kt.ChiSquared(), length=5)
    edge = float(kt.collapse_beta(target.states.objective))
    assert 0 < edge < np.inf
    best = finals == 0
    for beta, all_best in ((0.98 * edge, True), (1.02 * edge, False)):
        there = kt.solve_on_automaton(
            chain, automaton, reward, beta, kt.ChiSquared(), length=5
        ).log_prob(texts)
        assert bool((np.isneginf(there) == ~best).all()) == all_best
