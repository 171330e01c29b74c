"""Rewards designed for what their targets do: bilevel problems over a regularised lower level.

The designer sets x, the policy becomes the target of a reward r_x, and the designer earns its
``E_π[u]``. The gradient goes through the target by the implicit function theorem. The penalty
method asks the lower level for ``r_x + σu`` too: ``(J*(r_x + σu) − J*(r_x))/σ`` earns about as much
at a small σ, and its gradient is a difference of two targets, without a derivative of either.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import central_difference, double_precision, eps
from scipy.optimize import brentq
from scipy.special import rel_entr

import kltarget as kt
from kltarget.spaces import MDP
from kltarget.targets.mdps import solve_mdp

DTYPE = np.float64 if jax.config.jax_enable_x64 else np.float32
REF, U = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.3, -1.0, 0.8, 0.1, 1.0])
REWARD = np.array([0.1, 0.5, 1.0, 0.9, 0.3])
FEATURES = np.array([[1.0, 0.0, -0.5, 0.3, 0.2], [0.0, 1.0, 0.4, -1.0, 0.5]])
X, BETA = np.array([0.2, -0.1]), 0.5


REVERSE = kt.ReverseKL()


def lower(x, sigma=0.0, divergence=REVERSE):
    """The policy that comes of the design x, or of x and σ of the designer's own reward."""
    ref, reward, features, own = (jnp.asarray(a, x.dtype) for a in (REF, REWARD, FEATURES, U))
    return kt.solve(
        kt.Objective(reward + x @ features + sigma * own, jnp.log(ref), BETA, divergence)
    )


def earned(x, divergence=REVERSE):
    return lower(x, divergence=divergence).probs @ jnp.asarray(U, x.dtype)


def penalised(x, sigma, divergence=REVERSE):
    bonus, plain = lower(x, sigma, divergence), lower(x, divergence=divergence)
    return (bonus.value - plain.value) / sigma


@functools.partial(jax.jit, static_argnames="divergence")
def slopes_of(x, sigmas, divergence):
    penalties = jax.vmap(jax.value_and_grad(penalised), in_axes=(None, 0, None))
    return jax.value_and_grad(earned)(x, divergence), penalties(x, sigmas, divergence)


def both(x, sigmas, divergence=REVERSE):
    """Value and gradient, implicit, and the same of six penalties σ."""
    return jax.tree.map(np.asarray, slopes_of(jnp.asarray(x), jnp.asarray(sigmas), divergence))


@pytest.mark.parametrize(
    "divergence",
    [REVERSE, pytest.param(kt.ForwardKL(), marks=pytest.mark.broad)],
    ids=lambda x: x.name,
)
def test_penalties_are_of_first_order_in_sigma(divergence):
    """Claim: the penalty function of a bilevel problem and its gradient are O(σ)-close to the
    hyper-objective and its gradient (arXiv 2309.01753, abstract).

    Holds with a correction: where the lower level has one solution that moves smoothly, as every
    target at a fixed β, and the factor of σ grows as 1/β² in the gradient; where β → 0 leaves ties,
    the limit depends on σ/β.
    """
    with double_precision():
        sigmas = np.array([0.1, 0.01, 0.001, -0.1, -0.01, -0.001])
        (value, slope), (values, slopes) = both(X, sigmas, divergence)

        def earns(step, axis):
            return both(X + step * np.eye(2)[axis], sigmas, divergence)[0][0]

        for axis in range(2):
            exact = central_difference(lambda h, axis=axis: earns(h, axis), 0.0, 1e-3)
            np.testing.assert_allclose(slope[axis], exact, rtol=1e-8)
        off, turned = np.abs(values - value)[:3], np.linalg.norm(slopes - slope, axis=-1)[:3]
        for errors in (off, turned):
            np.testing.assert_allclose(errors[:2] / errors[1:], 10, rtol=0.2)
        # A bonus and a malus, two targets as before, are of second order.
        middle = np.linalg.norm((slopes[:3] + slopes[3:]) / 2 - slope, axis=-1)
        np.testing.assert_allclose(middle[:1] / middle[1:2], 100, rtol=0.2)
        if divergence is REVERSE:
            policy = REF * np.exp((REWARD + X @ FEATURES) / BETA)
            policy /= policy.sum()
            u, features = U - policy @ U, FEATURES - (FEATURES @ policy)[:, None]
            np.testing.assert_allclose(slope, features @ (policy * u) / BETA, rtol=1e-12)
            third = features @ (policy * u**2) / (2 * BETA**2)
            np.testing.assert_allclose((slopes - slope)[2] / sigmas[2], third, rtol=1e-2)
            second = policy @ u**2 / (2 * BETA)
            np.testing.assert_allclose((values - value)[2] / sigmas[2], second, rtol=1e-2)


@pytest.mark.precise
def test_penalties_lose_digits_that_the_implicit_gradient_keeps():
    with double_precision():
        _, wanted = both(X, np.ones(6))[0]
    sigmas = (10.0 ** -np.arange(1, 7)).astype(DTYPE)
    (_, slope), (_, slopes) = both(X.astype(DTYPE), sigmas)
    scale = np.linalg.norm(wanted)
    assert np.linalg.norm(slope - wanted) < 100 * eps(DTYPE) * scale
    lost = np.linalg.norm(slopes - wanted, axis=-1) / scale
    # σ of truncation and eps/σ of cancellation: half of the digits at best.
    assert 1e-2 * np.sqrt(eps(DTYPE)) < lost.min() < 10 * max(np.sqrt(eps(DTYPE)), sigmas[-1])


def test_several_lower_solutions_have_one_gradient_by_the_pseudo_inverse():
    """Claim: where the lower level has several solutions, the gradient of the hyper-objective has
    an explicit formula still, without a unique inverse (arXiv 2309.01753, abstract).

    Holds: with the pseudo-inverse of the lower Hessian, here of seven numbers that make the logits
    of five outcomes; if the designer pays for the parameters too, at those of the target that cost
    the designer least.
    """
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(5, 7))
    back = np.linalg.pinv(maps)

    def cheapest(x):
        """Of all parameters of the target those of the least norm."""
        logits = np.asarray(lower(jnp.asarray(x)).log_probs)
        here, along = back @ logits, back @ np.ones(5)
        return here - along * (along @ here) / (along @ along)

    def loss(x, theta):  # of the lower level
        log_policy = jax.nn.log_softmax(maps @ theta)
        policy = jnp.exp(log_policy)
        return BETA * policy @ (log_policy - np.log(REF)) - policy @ (REWARD + x @ FEATURES)

    def design(x, theta, price):  # what the designer loses
        return price * theta @ theta / 2 - jax.nn.softmax(maps @ theta) @ U

    @jax.jit
    def derivatives(x, theta, price):
        slope = jax.grad(loss, 1)
        cross, curvature = jax.jacobian(slope, (0, 1))(x, theta)
        return slope(x, theta), cross, curvature, jax.grad(design, 1)(x, theta, price)

    def formula(theta, price):
        slope, cross, curvature, paid = map(np.asarray, derivatives(X, theta, price))
        assert np.linalg.norm(slope) < 1e-12
        assert np.linalg.matrix_rank(curvature, 1e-8) == 4
        return -cross.T @ np.linalg.pinv(curvature, 1e-8) @ paid

    with double_precision():
        theta = cheapest(X)
        null = np.linalg.svd(maps)[2][-2:]
        other = theta + null.T @ [1.0, -2.0] + 3 * back @ np.ones(5)
        gradient = -both(X, np.ones(6))[0][1]
        for solution in (theta, other):
            np.testing.assert_allclose(formula(solution, 0.0), gradient, rtol=1e-8)

        def paid(step, axis):
            x = X + step * np.eye(2)[axis]
            return design(x, cheapest(x), 0.3)

        exact = [central_difference(lambda h, a=a: paid(h, a), 0.0, 1e-3) for a in range(2)]
        np.testing.assert_allclose(formula(theta, 0.3), exact, rtol=1e-7)


@pytest.mark.precise
def test_at_ties_the_limit_depends_on_sigma_over_beta():
    ref, u = np.array([0.2, 0.6, 0.2]), np.array([1.0, 0.0, 0.5])
    log_ref = np.log(ref).astype(DTYPE)

    @jax.jit
    def value(reward, beta):
        return kt.solve(kt.Objective(reward, log_ref, beta)).value

    def found(reward, beta, sigma):
        reward = np.asarray(reward)
        bonus = value((reward + sigma * u).astype(DTYPE), DTYPE(beta))
        return (float(bonus) - float(value(reward.astype(DTYPE), DTYPE(beta)))) / sigma

    # Two best outcomes, 1 : 3 in the reference, of which the designer wants the first.
    for beta in (0.02, 0.002):
        for ratio in (0.5, 5.0, 50.0):
            got = found([1.0, 1.0, 0.2], beta, ratio * beta)
            soft = np.log(0.25 * np.exp(ratio) + 0.75) / ratio
            np.testing.assert_allclose(got, soft, atol=4 * eps(DTYPE) / (ratio * beta))
    # Its ends are what the target does, the reference's share, and what is best for the designer.
    assert found([1.0, 1.0, 0.2], 1.0 / 64, 1.0 / 1024) == pytest.approx(0.25, abs=0.01)
    assert found([1.0, 1.0, 0.2], 1e-5, 1.0 / 64) == pytest.approx(1.0, abs=0.01)
    # Where the lower level prefers the second by less than σ, the penalty pretends it does not.
    assert found([1.0 - 1 / 128, 1.0, 0.2], 1e-5, 1.0 / 64) == pytest.approx(0.5, abs=0.01)

    # At the crossing the implicit gradient grows as 1/β: the hyper-objective at β = 0 jumps there.
    @jax.jit
    @jax.grad
    def slope(first, beta):
        reward = jnp.array([first, 1.0, 0.2], DTYPE)
        return kt.solve(kt.Objective(reward, log_ref, beta)).probs @ u.astype(DTYPE)

    for beta in (0.02, 0.002):
        found_slope = float(slope(DTYPE(1.0), DTYPE(beta)))
        np.testing.assert_allclose(found_slope, 0.25 * 0.75 / beta, rtol=100 * eps(DTYPE))


def test_designs_of_the_penalty_approach_those_of_the_bilevel_problem():
    """Claim: minimising the designer's loss plus a multiple of the lower level's gap recovers the
    solution of the bilevel problem of designing a reward (arXiv 2402.06886).

    Holds with a correction: up to a distance that falls as the inverse of the multiple; at any
    finite one the policy is not the target of its own reward but of that plus σu, and the design is
    off as well. Only a summary of the paper was at hand.
    """
    with double_precision():

        def design(slope_at):
            return brentq(lambda x: slope_at(np.array([x, 0.0]))[0] - x, -1, 1, xtol=1e-12)

        best = design(lambda x: both(x, np.ones(6))[0][1])
        sigmas = np.array([0.02, 0.002, 0.0002])
        designs = [design(lambda x, s=s: both(x, np.full(6, s))[1][1][0]) for s in sigmas]
        off = np.abs(np.array(designs) - best)
        np.testing.assert_allclose(off[:2] / off[1:], 10, rtol=0.2)
        # Jointly over design and policy, E[u] − x²/2 − gap/σ is what that design maximises.
        x, sigma = np.array([designs[0], 0.0]), sigmas[0]
        highest = both(x, np.full(6, sigma))[1][0][0]
        reward = REWARD + x @ FEATURES
        plain, policy = (REF * np.exp((reward + s * U) / BETA) for s in (0, sigma))
        plain, policy = plain / plain.sum(), policy / policy.sum()
        gap = BETA * rel_entr(policy, plain).sum()
        np.testing.assert_allclose(policy @ U - gap / sigma, highest, rtol=1e-10)
        assert gap > 1e-4
        for other in np.random.default_rng(0).dirichlet(np.ones(5), 20):
            assert other @ U - BETA * rel_entr(other, plain).sum() / sigma < highest


@pytest.mark.precise
def test_rewards_of_a_decision_process_are_designed_alike():
    rng = np.random.default_rng(3)
    moves, ref = rng.dirichlet(np.ones(3), (3, 2)), rng.dirichlet(np.ones(2), 3)
    worth, own, feature = rng.normal(size=(3, 3, 2))
    start = np.array([0.5, 0.3, 0.2])

    def process(reward):
        return MDP(moves.astype(DTYPE), reward.astype(DTYPE), horizon=4, start=start.astype(DTYPE))

    def optimum(x, sigma):
        return solve_mdp(
            process(worth + x * feature + sigma * own), np.log(ref).astype(DTYPE), BETA
        )

    @jax.jit
    def gradients(x, sigma):
        implicit = jax.grad(lambda x: optimum(x, 0.0).expectation(own.astype(DTYPE)))(x)
        gained = jax.grad(lambda x: (optimum(x, sigma).value - optimum(x, 0.0).value) / sigma)
        return implicit, gained(x)

    def returns(x):
        """What the designer earns, by value iteration and a walk forwards."""
        reward, values, policies = worth + x * feature, np.zeros(3), []
        for _ in range(4):
            joint = ref * np.exp((reward + moves @ values) / BETA)
            policies.append(joint / joint.sum(-1, keepdims=True))
            values = BETA * np.log(joint.sum(-1))
        state, total = start, 0.0
        for policy in policies[::-1]:
            pairs = state[:, None] * policy
            total += (pairs * own).sum()
            state = np.einsum("sa,sat->t", pairs, moves)
        return total

    exact = float(central_difference(returns, 0.3, 1e-3))
    implicit, rough = gradients(DTYPE(0.3), DTYPE(1 / 16))
    _, finer = gradients(DTYPE(0.3), DTYPE(1 / 32))
    np.testing.assert_allclose(implicit, exact, rtol=1e3 * eps(DTYPE) + 1e-9)
    assert (rough - exact) / (finer - exact) == pytest.approx(2, rel=0.1)
