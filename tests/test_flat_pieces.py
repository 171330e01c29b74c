"""Targets on flat pieces of a term, where several policies are optimal, against weak duality."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize_scalar

import kltarget as kt
from kltarget.divergences import Scaled
from kltarget.implied import implied_target
from kltarget.policies import TabularPolicy
from kltarget.recipes import Recipe, divergence_of
from kltarget.training import fine_tune

DTYPE = np.float64 if jax.config.jax_enable_x64 else np.float32
EPS = float(np.finfo(DTYPE).eps)
REF = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
DEAD = 0.513


def huber(x):
    return jnp.where(jnp.abs(x) < 1, x**2 / 2, jnp.abs(x) - 0.5)


def dead_zone(x):
    return jnp.maximum(jnp.abs(x) - DEAD, 0) ** 2


def huber_generator(u):
    """``∫_1^u clip(log t, −1, 1) dt`` by hand."""
    middle = np.clip(u, np.exp(-1), np.e)
    straight = np.maximum(u - np.e, 0) + middle - np.minimum(u, middle)
    return middle * np.log(middle) - middle + 1 + straight


def huber_conjugate(s):
    """``sup_u su − f(u)``; infinite above a slope of 1."""
    return np.where(s > 1 + 1e-12, np.inf, np.exp(np.maximum(s, -1)) - 1 - 0 * s)


def dead_generator(u):
    """``∫_1^u 2 sign(log t) max(|log t| − c, 0) dt`` by hand."""
    low, high = np.exp(-DEAD), np.exp(DEAD)
    over, under = np.maximum(u, high), np.minimum(np.maximum(u, 1e-300), low)
    above = 2 * (over * (np.log(over) - 1 - DEAD) + high)
    below = 2 * (under * (np.log(under) - 1 + DEAD) + low)
    return above + below


def dead_conjugate(s):
    u = np.where(s == 0, 1.0, np.exp(np.sign(s) * DEAD + s / 2))
    return s * u - dead_generator(u)


TERMS = {
    huber: (huber_generator, huber_conjugate),
    dead_zone: (dead_generator, dead_conjugate),
}


cases = pytest.mark.parametrize("term", TERMS, ids=lambda x: x.__name__)


def both(test):
    """Both terms, of which one is quick: each compiles programs of its own."""
    return pytest.mark.quick_only("huber", others="broad")(cases(test))


def least_bound(term, reward, ref, beta):
    """``min_λ λ + β Σ π_ref f*((r − λ)/β)``, which no policy's objective exceeds."""
    conjugate = TERMS[term][1]

    def bound(level):
        return level + beta * (ref * conjugate((reward - level) / beta)).sum()

    least = reward.max() - beta if term is huber else reward.min() - 9
    # The kinks of the bound are where a piece is flat.
    kinks = [x for x in np.concatenate([reward, reward + beta, reward - beta]) if x >= least]
    found = minimize_scalar(
        bound,
        bounds=(least, reward.max() + 2 * beta + 1),
        method="bounded",
        options={"xatol": 1e-13},
    )
    return min(map(bound, [found.x, *kinks]))


def value_of(term, probs, reward, ref, beta):
    return (probs * reward).sum() - beta * (ref * TERMS[term][0](probs / ref)).sum()


@both
def test_targets_reach_the_bound(term):
    rng = np.random.default_rng(0)
    rows = 100
    rewards = rng.integers(0, 2, (rows, 5)).astype(DTYPE)
    betas = rng.uniform(0.3, 0.8, rows).astype(DTYPE)
    refs = np.log(rng.dirichlet(3 * np.ones(5), rows)).astype(DTYPE)
    refs = np.asarray(jax.nn.log_softmax(refs))
    target = kt.solve(kt.Objective(rewards, refs, betas, divergence_of(term)))
    target.raise_if_failed()
    np.testing.assert_allclose(np.asarray(target.probs).sum(-1), 1, atol=16 * EPS)
    arrays = (target.probs, rewards, np.exp(refs), betas, target.value)
    for probs, *problem, value in zip(*(np.asarray(x, np.float64) for x in arrays), strict=True):
        bound = least_bound(term, *problem)
        assert bound - value_of(term, probs, *problem) < 1e-9 + 32 * EPS
        assert abs(value - bound) < 1e-9 + 32 * EPS
    several = np.asarray(target.status & kt.Status.NOT_UNIQUE) > 0
    assert 5 < several.sum() < 95


# Who is on the flat piece, and how large their common ratio is: what the others, whose log ratios
# are known there, leave.
TIED = {
    huber: (np.array([1.0, 1.0, 0.0, 0.0, 0.0]), 0.7, [2, 3, 4], np.exp(0.3 / 0.7), 0.6),
    dead_zone: (
        np.array([0.0, 0.0, 0.0, 1.0, 0.0]),
        0.6,
        [0, 1, 2, 4],
        np.exp(DEAD + 1 / 1.2),
        0.1,
    ),
}
REFS = {huber: np.array([0.4, 0.2, 0.2, 0.15, 0.05]), dead_zone: REF}


def solved(term, reward, ref, beta):
    numbers = (np.asarray(x, DTYPE) for x in (reward, np.log(ref), beta))
    return kt.solve(kt.Objective(*numbers, divergence_of(term)))


@both
def test_outcomes_on_a_flat_piece_keep_the_proportions_of_the_reference(term):
    reward, beta, flat, best, mass = TIED[term]
    ref = REFS[term]
    target = solved(term, reward, ref, beta)
    assert int(target.status) == kt.Status.NOT_UNIQUE
    want = np.where(np.isin(np.arange(5), flat), (1 - mass * best) / (1 - mass), best)
    np.testing.assert_allclose(target.probs / ref, want, rtol=64 * EPS)
    scaled = kt.Objective(
        *(np.asarray(x, DTYPE) for x in (reward, np.log(ref), beta / 2)),
        Scaled(divergence_of(term), 2.0),
    )
    np.testing.assert_allclose(kt.solve(scaled).probs, target.probs, rtol=64 * EPS)


@pytest.mark.broad
@both
def test_whatever_they_take_is_as_good(term):
    reward, beta, flat, *_ = TIED[term]
    target = solved(term, reward, REFS[term], beta)
    moved = np.array(target.probs)
    moved[flat[:2]] += np.array([0.01, -0.01], DTYPE)
    away = np.array(target.probs)
    best = int(np.argmax(reward))
    away[[best, flat[0]]] += np.array([0.01, -0.01], DTYPE)
    assert float(target.gap(np.log(moved))) < 16 * EPS
    assert float(target.gap(np.log(away))) > 1e-5


@pytest.mark.broad
@both
def test_one_outcome_alone_is_unique(term):
    reward, beta, flat, best, mass = TIED[term]
    ref = REFS[term]
    joined = np.append(ref[~np.isin(np.arange(5), flat)], ref[flat].sum())
    level = np.append(reward[~np.isin(np.arange(5), flat)], 0.0)
    target = solved(term, level, joined, beta)
    assert int(target.status) == kt.Status.OK
    np.testing.assert_allclose(target.probs[-1], 1 - mass * best, rtol=64 * EPS)


def test_equal_rewards_leave_the_reference():
    target = solved(dead_zone, np.ones(5), REF, 0.3)
    assert int(target.status) == kt.Status.NOT_UNIQUE
    np.testing.assert_allclose(target.probs, REF, rtol=64 * EPS)


def test_mass_between_two_pieces_may_lie_on_either():
    # The best on Huber's upper piece, and exactly 2 β below it an outcome on the lower one.
    reward, ref = np.array([1.0, 0.0, -1.0]), np.array([0.01, 0.59, 0.4])
    target = solved(huber, reward, ref, 0.5)
    assert target.status & kt.Status.NOT_UNIQUE
    assert not solved(huber, reward, ref, 0.45).status & kt.Status.NOT_UNIQUE


@pytest.mark.broad
def test_the_smooth_do_not_tie():
    for term in (lambda x: x**4 / 4, lambda x: jax.nn.softplus(x) - x / 2):
        target = solved(term, np.ones(5), REF, 0.3)
        assert not target.status & kt.Status.NOT_UNIQUE


@both
def test_derivatives_where_the_ties_stay_ties(term):
    reward, beta, flat, *_ = TIED[term]
    divergence, ref = divergence_of(term), REFS[term]
    step = np.array([0.3, -0.1, 0.0, 0.2, 0.0])
    step[flat] = 0.25
    along = np.array([0.2, -0.1, 0.1, -0.3, 0.0])
    along -= (ref * along).sum()

    def probs(x):
        moved = np.log(ref).astype(DTYPE) + x * along.astype(DTYPE)
        rewards = reward.astype(DTYPE) + x * step.astype(DTYPE)
        objective = kt.Objective(rewards, jax.nn.log_softmax(moved), beta + 0.1 * x, divergence)
        return kt.solve(objective).probs

    zero, apart = jnp.zeros((), DTYPE), EPS ** (1 / 3)
    got = jax.jvp(probs, (zero,), (jnp.ones((), DTYPE),))[1]
    want = (probs(zero + apart) - probs(zero - apart)) / (2 * apart)
    np.testing.assert_allclose(got, want, atol=20 * EPS ** (2 / 3))
    backward = jax.grad(lambda x: probs(x)[0])(zero)
    np.testing.assert_allclose(backward, got[0], atol=32 * EPS)


@pytest.mark.quick_only("sequence-huber", "token-huber", others="broad")
@cases
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_implied_targets_agree(term, level):
    reward, beta, *_ = TIED[term]
    log_ref = np.log(REFS[term]).astype(DTYPE)
    recipe = Recipe("loss", term, level, baseline="mean", beta=beta)
    target = implied_target(recipe, reward.astype(DTYPE), log_ref)
    assert int(target.status) == kt.Status.NOT_UNIQUE
    np.testing.assert_allclose(
        target.probs, solved(term, reward, REFS[term], beta).probs, rtol=64 * EPS
    )


def test_the_table_of_slopes_agrees():
    # Divided by the deviation of the rewards the coefficient follows from policies of the table.
    reward, beta, *_ = TIED[dead_zone]
    target = solved(dead_zone, reward, REF, beta)
    success = float(target.probs[3])
    normalised = Recipe("loss", dead_zone, baseline="mean", normalize="group-std")
    given = beta / np.sqrt(success * (1 - success))
    log_ref = np.log(REF).astype(DTYPE)
    implied = implied_target(normalised, reward.astype(DTYPE), log_ref, beta=given)
    assert implied.status & kt.Status.NOT_UNIQUE
    assert float(implied.effective_beta) == pytest.approx(beta, rel=1e-5)
    np.testing.assert_allclose(implied.probs, target.probs, atol=1e-5)


@pytest.mark.broad
@both
def test_training_ends_at_one_of_them(term):
    reward, beta, *_ = TIED[term]
    policy, log_ref = TabularPolicy(5, 1), np.log(REFS[term]).astype(DTYPE)
    run = fine_tune(
        *(policy, policy.from_conditionals([log_ref[None]]), reward.astype(DTYPE)),
        Recipe("loss", term, baseline="mean"),
        beta=beta,
        learning_rate=0.05,
        num_steps=2000,
        history_every=None,
        optimizer=lambda rate: optax.adam(optax.cosine_decay_schedule(rate, 2000)),
        gradient_tol=0.0,
    )
    assert float(solved(term, reward, REFS[term], beta).gap(run.log_probs)) < 1e-6
