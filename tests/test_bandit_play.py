"""Regret of learning a KL-regularised bandit, which grows like log T and not like √T."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kltarget.training import bandit_play

REWARD = np.array([0.0, 0.3, 0.6, 1.0], np.float32)
LOG_REF = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))


def grows_like(regret, shape):
    """Whether increments over equal steps of ``shape`` agree, as a number of standard errors."""
    rounds = regret.shape[1]
    at = np.array([rounds // 16, rounds // 4, rounds]) - 1
    steps = np.diff(shape(at + 1.0))
    first, second = np.diff(regret[:, at], axis=1).T / steps[:, None]
    difference = second - first
    return difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))


@pytest.mark.slow
@pytest.mark.parametrize("bonus", [0.0, 0.5])
def test_regret_grows_like_a_logarithm(bonus):
    """Claim: the regret of optimistic KL-regularised play grows like log T (arXiv 2502.07460).

    Holds: without the bonus, too, where the reference plays every arm.
    """
    learnt = bandit_play(
        REWARD, LOG_REF, 0.5, key=jax.random.key(1), num_rounds=4096, num_seeds=256, bonus=bonus
    )
    regret = np.asarray(learnt.regret, float)
    assert abs(grows_like(regret, np.log)) < 4
    assert grows_like(regret, np.sqrt) < -10


@pytest.mark.slow
def test_the_comparison_tells_a_root_from_a_logarithm():
    """A control: sums of 1/√t with the same kind of noise."""
    rng, rounds = np.random.default_rng(0), 4096
    each = rng.exponential(size=(256, rounds)) / np.sqrt(np.arange(1, rounds + 1))
    regret = each.cumsum(1)
    assert abs(grows_like(regret, np.sqrt)) < 4
    assert grows_like(regret, np.log) > 10


@pytest.mark.broad
def test_regret_is_the_loss_of_policies_and_the_slope_is_that_of_theory():
    """Late rounds: β·KL(π_t‖π*) ≈ Var_π*(error)/2β with errors of σ²/(t π*(a)), (A − 1)σ²/2βt."""
    beta, sigma, rounds = 0.5, 0.3, 4096
    learnt = bandit_play(
        REWARD,
        LOG_REF,
        beta,
        key=jax.random.key(2),
        num_rounds=rounds,
        num_seeds=256,
        noise=sigma,
    )
    slope = np.asarray(learnt.regret[:, -1] - learnt.regret[:, rounds // 4 - 1]) / np.log(4)
    expected = (len(REWARD) - 1) * sigma**2 / (2 * beta)
    error = slope.std(ddof=1) / np.sqrt(len(slope))
    # The next term is of the order of the first over the number of visits, a few percent here.
    assert abs(slope.mean() - expected) < 4 * error + 0.05 * expected
    best = np.exp(LOG_REF + REWARD / beta)
    best /= best.sum()
    share = np.asarray(learnt.visits).mean(0) / rounds
    np.testing.assert_allclose(share, best, atol=0.02)
    np.testing.assert_allclose(jnp.exp(learnt.log_policy).mean(0), best, atol=0.02)


@pytest.mark.broad
def test_the_first_round_plays_the_reference_with_one_regret():
    learnt = bandit_play(REWARD, LOG_REF, 0.5, key=jax.random.key(0), num_rounds=1, num_seeds=3)
    p, r = np.exp(LOG_REF.astype(float)), REWARD.astype(float)
    expected = 0.5 * np.log(p @ np.exp(r / 0.5)) - p @ r
    np.testing.assert_allclose(learnt.regret, np.full((3, 1), expected), rtol=1e-5)
    assert (learnt.visits.sum(-1) == 1).all()


def test_each_fault_has_its_error():
    few = {"key": jax.random.key(0), "num_rounds": 2}
    for message, call in (
        ("reward has shape", lambda: bandit_play(REWARD[:2], LOG_REF, 1.0, **few)),
        ("log_ref is not normalised", lambda: bandit_play(REWARD, LOG_REF + 1, 1.0, **few)),
        ("beta must be above 0", lambda: bandit_play(REWARD, LOG_REF, 0.0, **few)),
        ("reward must be finite", lambda: bandit_play(REWARD - np.inf, LOG_REF, 1.0, **few)),
        ("noise must be 0", lambda: bandit_play(REWARD, LOG_REF, 1.0, noise=-1.0, **few)),
        ("bonus must be 0", lambda: bandit_play(REWARD, LOG_REF, 1.0, bonus=np.nan, **few)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
