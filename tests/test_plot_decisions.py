"""Figures of proxies, gaps, flips and MVI(q) show the numbers they are of."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DTYPES, eps

from kltarget import plot, tasks
from kltarget.divergences import ForwardKL
from kltarget.spaces import MDP
from kltarget.targets.mdps import solve_occupancy

LAST = DTYPES[-1]
RIVER = tasks.load_mdp("river-swim")
MOVES, REWARD = (np.asarray(x, float) for x in (RIVER.mdp.transition, RIVER.mdp.reward))


def soft_values(beta, steps=600):
    """State values and policy of the river by plain iteration."""
    values = np.zeros(len(REWARD))
    for _ in range(steps):
        q = REWARD + 0.95 * MOVES @ values
        logits = RIVER.log_ref + q / beta
        top = logits.max(-1)
        total = np.log(np.exp(logits - top[:, None]).sum(-1)) + top
        values = beta * total
    return values, np.exp(logits - total[:, None])


def best_values():
    values = np.zeros(len(REWARD))
    for _ in range(600):
        values = (REWARD + 0.95 * MOVES @ values).max(-1)
    return values


def lines_of(ax):
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.lines}


@pytest.mark.broad
def test_gains_of_a_proxy_are_those_of_its_optima_and_keep_their_promise():
    bonus = np.zeros(REWARD.shape)
    bonus[3, 1] = 0.1
    beta = np.array([0.001, 0.003, 0.01])
    ax = plot.proxy_gains(RIVER, REWARD + bonus, beta=beta)
    proxied, earned, promised, of_kl = (np.asarray(x.get_ydata(), float) for x in ax.lines[:4])
    assert (earned >= promised).all()
    # By summing over time.
    hacked = dataclasses.replace(RIVER.mdp, reward=jnp.asarray(REWARD + bonus, LAST))
    policies = np.exp(np.asarray(solve_occupancy(hacked, RIVER.log_ref, beta).log_policy, float))
    laws = []
    for policy in (np.exp(RIVER.log_ref), *policies):
        now, law = np.eye(6)[0], np.zeros(REWARD.shape)
        for t in range(800):
            law += 0.05 * 0.95**t * now[:, None] * policy
            now = np.einsum("s,sa,sat->t", now, policy, MOVES)
        laws.append(law)
    ref, laws = laws[0], np.array(laws[:0:-1])
    spread = np.sqrt((ref * REWARD**2).sum() - (ref * REWARD).sum() ** 2)
    np.testing.assert_allclose(earned, ((laws - ref) * REWARD).sum((1, 2)) / spread, atol=1e-4)
    chi = ((laws - ref) ** 2 / ref).sum((1, 2))
    np.testing.assert_allclose(ax.lines[0].get_xdata(), chi, rtol=1e-3)
    assert len(proxied) == len(of_kl) == 3
    kl = (laws * np.log(np.where(laws > 0, laws, ref) / ref)).sum((1, 2))
    ax = plot.proxy_gains(RIVER, REWARD + bonus, beta=beta, against="KL")
    np.testing.assert_allclose(ax.lines[0].get_xdata(), kl, rtol=1e-3)


def test_a_proxy_that_says_nothing_is_refused():
    for options, message in (
        ({"proxy": -REWARD}, "proxy has correlation -1.00 with the reward"),
        ({"proxy": np.ones(REWARD.shape)}, "proxy has correlation -?0.00 with the reward"),
        ({"proxy": REWARD[0]}, r"proxy has shape \(2,\), but the reward \(6, 2\)"),
        ({"proxy": REWARD, "against": "TV"}, "against must be 'chi-squared' or 'KL'"),
    ):
        with pytest.raises(ValueError, match=message):
            plot.proxy_gains(RIVER, **options)


@pytest.mark.broad
def test_gaps_are_what_is_lost_against_the_best_values():
    beta = np.array([0.01, 0.1, 1.0])
    shown = lines_of(plot.regularization_gap(RIVER, beta=beta))
    best, bound = best_values(), beta * np.log(1 / 0.3) / 0.05
    for k, b in enumerate(beta):
        values, policy = soft_values(b)
        chain = np.einsum("sa,sat->st", policy, MOVES)
        earned = np.linalg.solve(np.eye(6) - 0.95 * chain, (policy * REWARD).sum(-1))
        np.testing.assert_allclose(shown["of the value"][k], (best - values).max(), rtol=1e-4)
        lost = (best - earned).max()
        if lost > 1e-3:
            np.testing.assert_allclose(shown["of the rewards"][k], lost, rtol=1e-2)
    np.testing.assert_allclose(shown["bound"], bound, rtol=1e-5)
    assert np.isnan(shown["of the rewards"][0])
    # Forward KL charges any amount for a sure action: there is no bound to draw.
    shown = lines_of(plot.regularization_gap(RIVER, beta=beta, divergence=ForwardKL()))
    assert list(shown) == ["of the value", "of the rewards"]


@pytest.mark.broad
def test_flips_stand_where_two_actions_are_level():
    ax = plot.action_flips(RIVER, beta=np.geomspace(0.05, 3, 9))
    circles = next(line for line in ax.lines if line.get_label() == "flip: both level")
    assert list(circles.get_ydata()) == [0, 1, 2, 3, 4, 5]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == list(RIVER.states)
    for state, beta in enumerate(circles.get_xdata()):
        np.testing.assert_allclose(soft_values(beta)[1][state], 0.5, atol=1e-3)
    ends = dataclasses.replace(RIVER, mdp=dataclasses.replace(RIVER.mdp, horizon=8))
    with pytest.raises(ValueError, match="'river-swim' has a horizon"):
        plot.action_flips(ends)


@pytest.mark.broad
def test_sums_hold_until_an_action_is_cut_off():
    transition = np.array([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.1, 0.9]]], LAST)
    mdp = MDP(transition, np.array([[0.1, 0.0], [1.0, 0.3]], LAST), 0.9)
    even = np.log(np.full((2, 2), 0.5, LAST))
    options = {"munchausen": 0.9, "num_steps": 12}
    figure = plot.munchausen_averaging(mdp, even, q=(1.0, 2.0), temperature=0.05, **options)
    left, right = figure.axes
    kept, lost = right.lines
    assert kept.get_label() == "q = 1, α/q = 0.9"
    assert np.max(kept.get_ydata()) < 500 * eps(LAST)
    assert np.max(lost.get_ydata()) > 0.02
    calm = plot.munchausen_averaging(mdp, even, q=(2.0,), temperature=5.0, **options)
    assert np.max(calm.axes[1].lines[0].get_ydata()) < 500 * eps(LAST)
    # The first step is greedy in the rewards with an entropy, from even policies.
    chances, reward = np.asarray(transition, float), np.asarray(mdp.reward, float)
    best = np.zeros(2)
    for _ in range(400):
        best = (reward + 0.9 * chances @ best).max(-1)
    chain, gain = np.einsum("sa,sat->st", [[0.5, 0.5]] * 2, chances), reward.mean(-1)
    first = np.linalg.solve(np.eye(2) - 0.9 * chain, gain)
    assert left.lines[0].get_ydata()[0] == pytest.approx((best - first).max(), rel=1e-4)
    with pytest.raises(ValueError, match="q is empty"):
        plot.munchausen_averaging(mdp, even, q=(), temperature=1.0, **options)
