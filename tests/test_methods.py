"""What published methods ask for, as targets: each against a policy that is optimised directly."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import DTYPES, eps
from scipy.optimize import minimize
from scipy.special import log_softmax, logit

import kltarget as kt
from kltarget.projections import moment_projection
from kltarget.recipes import Recipe

LAST = DTYPES[-1]
REF = np.array([0.4, 0.06, 0.02, 0.3, 0.22])
RIGHT = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
GOOD = RIGHT > 0


def best(objective):
    """The policy at which a function of probabilities is largest."""

    def loss(theta):
        return -objective(np.exp(log_softmax(theta)))

    found = minimize(loss, np.log(REF), method="BFGS", options={"gtol": 1e-10, "maxiter": 2000})
    return np.exp(log_softmax(found.x))


def kl(p, q):
    return (p * np.log(p / q)).sum()


def solved(reward, beta, log_ref=None):
    log_ref = np.log(REF) if log_ref is None else log_ref
    target = kt.solve(kt.Objective(np.asarray(reward, LAST), log_ref.astype(LAST), beta))
    return np.exp(np.asarray(target.log_probs, float))


def test_filtering_is_the_limit_of_a_small_coefficient():
    """Claim: the reference filtered by a verifier is another target than that of RL with
    verifiable rewards, whose reverse KL loses diversity (arXiv 2512.05962).

    Holds with a correction: it is the limit β → 0 of RL with a KL penalty, and at every β the
    right answers have the same ratios; what is lost beyond it is lost on the way there, not
    asked for.
    """
    filtered = np.where(GOOD, REF, 0.0) / REF[GOOD].sum()
    kept = moment_projection(np.log(REF).astype(LAST), RIGHT[:, None].astype(LAST), [1.0])
    np.testing.assert_allclose(np.exp(kept.log_probs), filtered, atol=32 * eps(LAST))
    np.testing.assert_allclose(solved(RIGHT, 0.03), filtered, atol=1e-6)
    for beta in (0.1, 1.0):
        ratios = solved(RIGHT, beta)[GOOD] / filtered[GOOD]
        np.testing.assert_allclose(ratios, ratios[0], rtol=64 * eps(LAST))
        direct = best(lambda p, beta=beta: p @ RIGHT - beta * kl(p, REF))
        np.testing.assert_allclose(solved(RIGHT, beta), direct, atol=1e-6)


def test_a_bias_for_the_typical_sharpens_the_reference():
    """Claim: where raters add α log π_ref to a reward, the target is a tilt of π_ref^(1 + α/β)
    (arXiv 2510.01171).

    Holds: equally good answers, too, are told apart then; a bonus of α for entropy takes it
    back.
    """
    alpha, beta = 0.6, 0.3
    found = solved(RIGHT + alpha * np.log(REF), beta)
    sharp = REF ** (1 + alpha / beta) * np.exp(RIGHT / beta)
    np.testing.assert_allclose(found, sharp / sharp.sum(), rtol=256 * eps(LAST))
    direct = best(lambda p: p @ (RIGHT + alpha * np.log(REF)) - beta * kl(p, REF))
    np.testing.assert_allclose(found, direct, atol=1e-6)
    rewards = (RIGHT + alpha * np.log(REF)).astype(LAST)
    level = kt.implied_target(
        Recipe(entropy_bonus=alpha), rewards, np.log(REF).astype(LAST), beta=beta
    )
    again = REF * np.exp(RIGHT / (alpha + beta))
    np.testing.assert_allclose(
        np.exp(np.asarray(level.log_probs, float)), again / again.sum(), rtol=1e4 * eps(LAST)
    )


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_an_average_as_anchor_weakens_the_coefficient(beta):
    """Claim: an exponential moving average of the policy is a better anchor than the fixed
    reference (arXiv 2602.04417).

    Holds with a correction: as a target it is no anchor: after n renewals at convergence by the
    share a it is the fixed reference at β/(1 + n a), and without end it regularises nothing.
    """
    share, renewals = 0.25, 6
    recipe = Recipe(reference="averaged", reference_every=100, reference_share=share)
    found = kt.implied_target(
        recipe, RIGHT.astype(LAST), np.log(REF).astype(LAST), beta=beta, num_syncs=renewals
    )
    anchor = np.log(REF)
    for _ in range(renewals):
        policy = np.log(best(lambda p, a=anchor: p @ RIGHT - beta * kl(p, np.exp(a))))
        anchor = log_softmax((1 - share) * anchor + share * policy)
    direct = best(lambda p: p @ RIGHT - beta * kl(p, np.exp(anchor)))
    np.testing.assert_allclose(np.exp(np.asarray(found.log_probs, float)), direct, atol=2e-5)
    np.testing.assert_allclose(found.effective_beta, beta / (1 + renewals * share), rtol=1e-5)


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_dividing_by_the_mean_maximises_the_log_of_success(beta):
    """Claim: advantages (r − p)/p maximise the likelihood of success, log p, in place of p (arXiv
    2602.02710).

    Holds: with a KL penalty logit p = logit p_ref + 1/(β p), inside at every β; ratios among
    right answers are those of the reference, as without.
    """
    recipe = Recipe("loss", "k2", "sequence", "mean", "group-mean")
    target = kt.implied_target(recipe, RIGHT.astype(LAST), np.log(REF).astype(LAST), beta=beta)
    found = np.exp(np.asarray(target.log_probs, float))
    direct = best(lambda p: np.log(p @ RIGHT) - beta * kl(p, REF))
    np.testing.assert_allclose(found, direct, atol=1e-5)
    p = found @ RIGHT
    gained = np.log(p / found[~GOOD].sum()) - logit(REF @ RIGHT)
    np.testing.assert_allclose(gained, 1 / (beta * p), rtol=2e-3)
    np.testing.assert_allclose(found[GOOD] / REF[GOOD], found[0] / REF[0], rtol=1e-4)


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_a_penalty_on_what_is_uneven_levels_only_so_far(weight):
    """Claim: the policy that is uniform over right answers is the one optimum where their
    conditional law is held to the uniform (arXiv 2605.00365).

    Holds with a correction: without a KL to the reference. Beside one of coefficient β a
    penalty of weight w on KL(π(·|right)‖uniform) leaves the reference's ratios to the power β
    p/(β p + w), p the success; MARA leaves none. Only the abstract was at hand.
    """
    beta, even = 0.2, np.full(3, 1 / 3)

    def objective(p, beta=beta):
        right = p[GOOD] / p[GOOD].sum()
        return p @ RIGHT - beta * kl(p, REF) - weight * kl(right, even)

    found = best(objective)
    p = found @ RIGHT
    power = beta * p / (beta * p + weight)
    ratios = np.log(found[GOOD][1:] / found[0]) / np.log(REF[GOOD][1:] / REF[0])
    np.testing.assert_allclose(ratios, power, rtol=1e-4)
    free = best(lambda p: objective(p, beta=1e-6))
    np.testing.assert_allclose(free[GOOD] / free[GOOD].sum(), even, atol=1e-4)
    level = kt.mara(kt.Objective(RIGHT.astype(LAST), np.log(REF).astype(LAST), beta), 1.0)
    mara = np.exp(np.asarray(kt.solve(level).log_probs, float))
    np.testing.assert_allclose(mara[GOOD], mara[0], rtol=64 * eps(LAST))
