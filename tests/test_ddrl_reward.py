"""The reward of data-regularised learning, against searches that know no closed form."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import X64
from scipy.optimize import minimize

import kltarget as kt
from kltarget.objectives import ddrl_reward
from kltarget.spaces import Chain
from kltarget.targets.chains import solve_chain

DATA, REWARD = np.array([0.5, 0.3, 0.2]), np.array([0.0, 2.0, 0.5])


def best_of(reward, mass, coefficient=1.0, groups=None):
    """The law that maximises ``E_π[r] − c·KL(mass‖π)``, in logits that a search moves."""
    groups = np.zeros(len(mass), int) if groups is None else groups

    def law(logits):
        p = np.exp(logits - logits.max())
        for g in np.unique(groups):
            on = groups == g
            p[on] *= mass[on].sum() / p[on].sum() if len(np.unique(groups)) > 1 else 1 / p.sum()
        return p

    def loss(logits):
        p = law(logits)
        return coefficient * (mass * np.log(mass / p)).sum() - (p * reward).sum()

    found = minimize(loss, np.log(mass), method="BFGS", options={"gtol": 1e-9})
    return law(found.x)


def gibbs(mass, reward, beta):
    p = mass * np.exp(reward / beta)
    return p / p.sum()


def made(*args, **options):
    return np.asarray(ddrl_reward(*(jnp.asarray(x) for x in args), **options), float)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_forward_kl_to_data_has_the_target_of_reverse_kl(beta):
    """Claim: forward KL to data with the reward −e^{−(r − b)/β} has the target of reverse KL
    (arXiv 2512.04332).

    Holds: with b = Z, the soft value.
    """
    reward = made(REWARD, np.log(DATA), beta)
    wanted = gibbs(DATA, REWARD, beta)
    np.testing.assert_allclose(best_of(reward, DATA), wanted, atol=1e-5)
    # The reward as it is leads elsewhere.
    plain = best_of(REWARD, DATA, beta)
    level = (plain * REWARD).sum() + beta
    np.testing.assert_allclose(plain, beta * DATA / (level - REWARD), atol=1e-5)
    assert np.abs(plain - wanted).sum() > 0.05
    # It is the reward for that target, but for a constant.
    other = kt.reward_for(jnp.log(wanted), jnp.log(DATA), 1.0, kt.ForwardKL())
    np.testing.assert_allclose(reward - reward.max(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shift", "coefficient"), [(-0.4, 1.0), (0.3, 1.0), (0.0, 2.0)])
def test_another_center_bends_the_ratios(shift, coefficient):
    """Claim: the mean of a group may stand for b in that reward (arXiv 2512.04332).

    Fails: below Z large ratios level off, above it they grow.
    """
    beta = 0.5
    partition = beta * np.log((DATA * np.exp(REWARD / beta)).sum())
    right = partition + beta * np.log(coefficient)
    options = {"center": jnp.asarray(right)}
    tilted = best_of(made(REWARD, np.log(DATA), beta, **options), DATA, coefficient)
    np.testing.assert_allclose(tilted, gibbs(DATA, REWARD, beta), atol=1e-5)
    center = partition + shift
    options = {"center": jnp.asarray(center)}
    moved = best_of(made(REWARD, np.log(DATA), beta, **options), DATA, coefficient)
    level = coefficient * DATA / moved - np.exp(-(REWARD - center) / beta)
    np.testing.assert_allclose(level, level[0], atol=2e-4)
    below = center < right
    assert (level[0] > 0) == below
    odds = np.log(moved / DATA)
    assert (np.ptp(odds) < np.ptp(REWARD) / beta) == below


@pytest.mark.broad
def test_paths_of_a_chain_follow_only_where_the_first_law_may_be_tilted():
    """Over all paths of three steps; with noise that is fixed no one center serves."""
    rng = np.random.default_rng(1)
    first, kernels = rng.dirichlet([2.0, 2.0]), rng.dirichlet([2.0, 2.0], size=(2, 2))
    reward, beta = np.array([0.0, 1.0]), 0.5
    paths = np.array(list(itertools.product(range(2), repeat=3)))
    mass = first[paths[:, 0]]
    for t in range(2):
        mass = mass * kernels[t, paths[:, t], paths[:, t + 1]]
    chain = Chain(jnp.log(first), jnp.log(kernels))
    data = np.bincount(paths[:, -1], mass, 2)
    bent = ddrl_reward(jnp.asarray(reward), jnp.log(data), beta)
    tight = {"atol": 1e-6 if X64 else 1e-5}
    seen = {}
    for tilt_first in (True, False):
        forward = solve_chain(chain, bent, 1.0, kt.ForwardKL(), tilt_first=tilt_first)
        reverse = solve_chain(chain, reward, beta, tilt_first=tilt_first)
        ours = np.exp(np.asarray(forward.log_prob(paths), float))
        groups = None if tilt_first else paths[:, 0]
        searched = best_of(np.asarray(bent, float)[paths[:, -1]], mass, groups=groups)
        np.testing.assert_allclose(ours, searched, atol=2e-5)
        seen[tilt_first] = np.abs(ours - np.exp(np.asarray(reverse.log_prob(paths), float))).sum()
        if tilt_first:
            tilted = gibbs(mass, reward[paths[:, -1]], beta)
            np.testing.assert_allclose(ours, tilted, **tight)
            np.testing.assert_allclose(forward.log_kernels, reverse.log_kernels, **tight)
    assert seen[False] > 100 * max(seen[True], 1e-6)


def test_edges():
    log_ref = jnp.log(jnp.asarray([[0.5, 0.5], [0.9, 0.1]]))
    reward = jnp.array([-jnp.inf, 1.0])
    out = ddrl_reward(reward, log_ref, jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(out, [[-np.inf, -0.5], [-np.inf, -0.1]], rtol=1e-5)
    far = ddrl_reward(jnp.array([0.0, 5.0]), log_ref, 0.001)
    np.testing.assert_allclose(far, [[-np.inf, -0.5], [-np.inf, -0.1]], rtol=1e-3)
    with pytest.raises(ValueError, match="center and the batch axes"):
        ddrl_reward(reward, log_ref, 1.0, center=jnp.zeros(3))
