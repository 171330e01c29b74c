"""Controllers: where they settle, when they do not, and what three systems say of theirs.

The rules are those of the published code for GTPO (2508.03772) and SAFE (2602.04651), and for APO
(2602.05717), whose code we have not seen, those of a summary by others; full texts were not read.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from oracles import double_precision
from scipy.optimize import brentq, minimize

import kltarget as kt
from kltarget.implied import gain_limit, implied_target, unregularized_path
from kltarget.policies import TabularPolicy
from kltarget.recipes import Recipe
from kltarget.training import estimators, fine_tune

DTYPE = np.float64 if jax.config.jax_enable_x64 else np.float32
FREE = Recipe("none", baseline="mean", normalize="group-std")
SEEDS = st.integers(0, 2**31 - 1)


def distribution(logits):
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return probs / probs.sum(-1, keepdims=True)


def entropy(probs):
    return float(-(probs * np.log(probs)).sum())


def tilt(reward, ref, beta):
    return distribution(np.log(ref) + reward / beta)


def kl_of_tilt(reward, ref, beta):
    probs = tilt(reward, ref, beta)
    return (probs * np.log(probs / ref)).sum(-1)


def problem(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=4), distribution(2 * rng.normal(size=4)), rng


@pytest.mark.precise
def test_the_limit_is_what_the_kl_answers_to_beta():
    rng, h = np.random.default_rng(0), 1e-4
    reward, logits = rng.normal(size=(2, 50, 4))
    ref = distribution(2 * logits)
    beta = np.exp(rng.uniform(-1, 2, 50))[:, None]
    near = [np.log(kl_of_tilt(reward, ref, beta * np.exp(x))) for x in (-h, h)]
    log_ref = np.log(ref).astype(DTYPE)
    target = kt.solve(kt.Objective(reward.astype(DTYPE), log_ref, beta[:, 0].astype(DTYPE)))
    found = np.asarray(gain_limit(target.log_probs, log_ref), float)
    # What the KL loses by the rounding of its logarithms.
    rounding = 16 * np.finfo(DTYPE).eps / np.sqrt(kl_of_tilt(reward, ref, beta))
    error = np.abs(found * (near[0] - near[1]) / (2 * h) - 1)
    assert (error < 1e-6 + rounding).all()


def test_the_limit_where_nothing_or_too_much_was_moved():
    even = jnp.log(jnp.array([0.5, 0.5], DTYPE))
    outside = jnp.log(jnp.array([1.0, 0.0], DTYPE))
    assert gain_limit(even, even) == 0.5
    assert jnp.isnan(gain_limit(even, outside))
    near = kt.normalize(even + jnp.array([1e-3, -1e-3], DTYPE))
    np.testing.assert_allclose(gain_limit(near, even), 0.5, rtol=1e-2)


@jax.jit
def step(state, reward, log_ref, kl_target, gain, rate, natural):
    """One exact step of logits, the last of which is 0, and of log β; the KL is that before it."""
    logits, beta = jnp.append(state[:-1], 0.0), jnp.exp(state[-1])

    def divergence(log_probs):
        return jnp.exp(log_probs) @ (log_probs - log_ref)

    def objective(free):
        log_probs = jax.nn.log_softmax(jnp.append(free, 0.0))
        return jnp.exp(log_probs) @ reward - beta * divergence(log_probs)

    log_probs = jax.nn.log_softmax(logits)
    pull = reward - beta * (log_probs - log_ref)
    ascent = jnp.where(natural, pull[:-1] - pull[-1], jax.grad(objective)(state[:-1]))
    error = jnp.clip(divergence(log_probs) / kl_target - 1, -0.2, 0.2)
    return jnp.append(state[:-1] + rate * ascent, state[-1] + jnp.log1p(gain * error))


jacobian = jax.jit(jax.jacfwd(step))


@given(SEEDS, st.floats(-1.0, 2.0), st.floats(0.05, 1.9))
def test_below_the_limit_every_step_size_settles(seed, log_beta, share):
    reward, ref, _ = problem(seed)
    beta = np.exp(log_beta)
    probs, kl_target = tilt(reward, ref, beta), kl_of_tilt(reward, ref, beta)
    fisher = np.diag(probs) - np.outer(probs, probs)
    most = np.linalg.eigvalsh(fisher[:-1, :-1])[-1]
    with double_precision():
        limit = float(gain_limit(np.log(probs), np.log(ref)))
        state = jnp.append(jnp.log(probs[:-1] / probs[-1]), np.log(beta))

        def slowest(gain, natural):
            """The largest modulus of an eigenvalue of a step at the target."""
            rate = share / beta / (1.0 if natural else most)
            setting = (np.float64(x) for x in (kl_target, gain, rate))
            matrix = jacobian(state, reward, np.log(ref), *setting, natural)
            return np.abs(np.linalg.eigvals(np.asarray(matrix))).max()

        assert slowest(0.99 * limit, True) < 1 < slowest(1.01 * limit, True)
        assert slowest(0.99 * limit, False) < 1


def test_a_controller_keeps_the_kl_it_is_given():
    """Claim: a proportional controller of β in log space reaches a given KL to the pretrained model
    (arXiv 1909.08593).

    Holds with a correction: where rewards can buy that much KL, and with a gain below the mean of
    the log ratio over its variance under the target, 0.36 in an example. A tenth above it the KL
    swings by a quarter to either side for ever.
    """
    ref, reward, kl_target = jnp.array([0.02, 0.98]), jnp.array([1.0, 0.0]), 1.5
    target = implied_target(Recipe(kl_target=kl_target), reward, jnp.log(ref))
    limit = float(gain_limit(target.log_probs, jnp.log(ref)))
    policy = TabularPolicy(2, 1)
    start = policy.from_conditionals([jnp.log(ref)[None]])
    swings = []
    for share in (0.9, 1.1):
        run = fine_tune(
            policy,
            start,
            reward,
            Recipe(kl_target=kl_target, kl_gain=share * limit),
            beta=1.1 * float(target.beta),
            learning_rate=4.0,
            num_steps=4000,
            optimizer=optax.sgd,
            history_every=7,
        )
        kept = np.asarray(run.history.reverse_kl)[-100:] / kl_target
        swings.append(np.ptp(kept) / 2)
        np.testing.assert_allclose(kept.mean(), 1, atol=0.02)
    assert swings[0] < 1e-4

    def passed(swing):
        """The part of a sine of this height that a cut at 0.2 lets through."""
        x = 0.2 / swing
        return 2 / np.pi * (np.arcsin(x) + x * np.sqrt(1 - x**2))

    expected = brentq(lambda x: 1.1 * passed(x) - 1, 0.2 + 1e-9, 2.0)
    np.testing.assert_allclose(swings[1], expected, rtol=0.05)
    np.testing.assert_allclose((limit, expected), (0.36, 0.25), atol=0.006)


def test_a_filter_of_entropies_stops_what_it_is_to_save():
    """Claim: leaving out completions whose entropy exceeds ln 2 keeps the policy from collapse
    (arXiv 2508.03772, abstract).

    Holds with a correction: the entropy stays at ln 2 because nothing is left that moves the
    policy. One that begins below it and has to change its mind among more than two answers is
    stopped on the way: from (0.90, 0.05, 0.05), the second right, at a success of 0.16 for ever.
    """
    start, reward = np.array([0.9, 0.05, 0.05]), np.array([0.0, 1.0, 0.0])
    logits, steps = np.log(start), 0
    while entropy(probs := distribution(logits)) <= np.log(2):
        logits, steps = logits + 0.01 * probs * (reward - probs @ reward), steps + 1
        assert steps < 10_000

    def path(failure):
        return np.exp(np.asarray(unregularized_path(reward, np.log(start), failure), float))

    failure = brentq(lambda x: entropy(path(x)) - np.log(2), 0.7, 0.949)
    np.testing.assert_allclose(probs, path(failure), atol=5e-4)
    np.testing.assert_allclose(1 - failure, 0.158, atol=5e-4)
    assert path(1e-3)[1] > 0.99


def tree(logits):
    """Log-probabilities of two tokens of three each, ``[9, 2]``, and the mean entropy of both."""
    first, then = (jax.nn.log_softmax(x) for x in logits)
    tokens = jnp.stack([jnp.repeat(first, 3), then.ravel()], -1)
    later = -(jnp.exp(then) * then).sum(-1)
    return tokens, (-(jnp.exp(first) * first).sum() + jnp.repeat(later, 3)) / 2


def test_an_entropy_in_the_advantage_is_no_regulariser():
    """Claim: an entropy term in the advantages regularises the policy, so that no KL to a reference
    is needed (arXiv 2508.03772, abstract and code).

    Fails: the term is a number, as a reward of −γ⟨H⟩ is. Where an answer is one token, all answers
    have the same, and it is a baseline; of two tokens it moves the first alone, and settles on the
    one with the least entropy after it, which keeps that entropy. Nothing holds the policy.
    """
    with double_precision():
        rng = np.random.default_rng(0)
        start = tuple(jnp.asarray(rng.normal(size=n)) for n in ((3,), (3, 3)))

        def surrogate(logits):
            tokens, mean_entropy = tree(logits)
            weights = jax.lax.stop_gradient(jnp.exp(tokens.sum(-1)))
            shaped = jax.lax.stop_gradient(-mean_entropy)
            return estimators.surrogate(Recipe("none"), tokens, tokens, shaped, 0.0, weights).sum()

        def regulariser(logits):
            tokens, mean_entropy = tree(logits)
            return -(jnp.exp(tokens.sum(-1)) * mean_entropy).sum()

        @jax.jit
        def settle(logits):
            def ascend(logits, _):
                slope = jax.grad(surrogate)(logits)
                return jax.tree.map(lambda x, g: x + 5.0 * g, logits, slope), slope[1]

            settled, slopes = jax.lax.scan(ascend, logits, length=2000)
            return settled, slopes, jax.grad(regulariser)(logits)[1], tree(logits)[1][::3]

        settled, slopes, full, entropies = settle(start)
        np.testing.assert_allclose(slopes, 0, atol=1e-15)
        assert np.abs(full).max() > 0.02
        np.testing.assert_allclose(settled[1], start[1], atol=1e-12)
        assert distribution(np.asarray(settled[0]))[np.argmin(entropies)] > 0.99
    found = implied_target(FREE, jnp.array([1.0, 0.0]), jnp.log(jnp.array([0.3, 0.7])), beta=0.0)
    assert int(found.status) & kt.Status.NO_TARGET


def test_protected_tokens_drive_out_better_ones():
    """Claim: skipping negative updates of tokens that right and wrong completions share, and
    amplifying positive ones, protects valuable tokens (arXiv 2508.03772, abstract).

    Fails: a first token that is always right is never shared with a wrong completion and counts
    once; one that is right three times in five counts twice when right and never when wrong, and
    drives it out. Training ends at a success of 0.6 where GRPO ends at 1. In large groups it is so
    for every shared token whose success is above a half.
    """
    success, start = np.array([1.0, 0.6, 0.0]), np.array([0.4, 0.4, 0.2])

    def gradients(rng, probs, num_groups, protect, size=64):
        """Of the logits of the first token, one for each group whose rewards differ."""
        tokens = rng.choice(3, (num_groups, size), p=probs)
        right = rng.random(tokens.shape) < success[tokens]
        spread = right.std(1, keepdims=True)
        advantage = (right - right.mean(1, keepdims=True)) / np.maximum(spread, 1e-9)
        taken = np.eye(3)[tokens]
        both = np.stack([(taken * x[..., None]).any(1) for x in (right, ~right)]).all(0)
        shared = np.take_along_axis(both, tokens, 1)
        weight = np.where(shared & protect, np.where(right, 2.0, 0.0), 1.0)
        return ((weight * advantage)[..., None] * (taken - probs)).mean(1)

    rng = np.random.default_rng(0)
    drawn = gradients(rng, start, 1000, True, 256)
    mean = start @ success
    gain = np.array([1.0, 2 * 0.6, 0.0]) * (1 - mean) - np.array([0.0, 0.0, 1.0]) * mean
    expected = start * (gain - start @ gain) / np.sqrt(mean * (1 - mean))
    error = drawn.std(0) / np.sqrt(len(drawn))
    # Groups have means and deviations of their own, by which 1/256 of this is off.
    assert (np.abs(drawn.mean(0) - expected) < 5 * error + 2 / 256).all()
    ends = {}
    for protect in (False, True):
        logits = np.log(start)
        for _ in range(2000):
            logits = logits + gradients(rng, distribution(logits), 1, protect)[0]
        ends[protect] = distribution(logits)
    assert ends[False][0] > 0.95
    assert ends[True][1] > 0.95


REF, GRADED = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 0.4, 0.9, 1.0])


def test_a_penalty_that_is_a_number_holds_nothing():
    """Claim: an entropy-gated penalty on the KL above a threshold regulates the KL
    (arXiv 2602.04651, abstract).

    Fails: in the published code, where the penalty is computed from a number, without derivative,
    and training settles where an entropy bonus of 0.01 without a KL does: on the best answer, 3.0
    nats from the reference in an example. With a derivative it would settle at the target of
    reverse KL with β = 2λ(KL − τ), above the threshold τ = 0.3 by β/2λ: at 1.23 nats with the
    code's λ = 0.1.
    """
    code = Recipe("none", baseline="mean", normalize="batch-std", entropy_bonus=0.01)
    for ref in (REF, REF[::-1]):
        ends = implied_target(code, GRADED, np.log(ref), beta=0.0)
        np.testing.assert_array_equal(ends.probs, [0, 0, 0, 1])
    np.testing.assert_allclose(-np.log(REF[-1]), 3.0, atol=0.005)
    for strength in (0.1, 1.0):

        def loss(logits, strength=strength):
            probs = distribution(logits)
            over = max(float(probs @ np.log(probs / REF)) - 0.3, 0.0)
            return strength * over**2 - probs @ GRADED

        def apart(beta, strength=strength):
            return beta - 2 * strength * (kl_of_tilt(GRADED, REF, beta) - 0.3)

        beta = brentq(apart, 0.05, 1e3)
        best = distribution(minimize(loss, np.log(REF), tol=1e-12).x)
        target = kt.solve(kt.Objective(GRADED.astype(DTYPE), np.log(REF).astype(DTYPE), beta))
        np.testing.assert_allclose(best, target.probs, atol=1e-5)
        if strength == 0.1:
            np.testing.assert_allclose(kl_of_tilt(GRADED, REF, beta), 1.235, atol=1e-3)


def test_a_threshold_that_follows_a_velocity_creeps_to_its_bound():
    """Claim: thresholds of the KL adapt to the velocity of the reward (arXiv 2602.04651, abstract).

    Holds with a correction: what is asked for, in the published code, is a velocity of 0.001 a
    step, which no bounded reward keeps. At a constant reward the threshold falls for a thousand
    more steps, until the integral is at its bound of −1, and rests lower by 0.0103 than its base.
    """
    proportional, integral_gain, derivative, asked = 0.3, 0.01, 0.05, 0.001
    mean = reward = 0.7
    integral = before = 0.0
    thresholds = []
    for _ in range(1500):
        last, mean = mean, 0.95 * mean + 0.05 * reward
        error = mean - last - asked
        integral = np.clip(integral + error, -1, 1)
        change = derivative * (error - before)
        thresholds.append(0.3 + proportional * error + integral_gain * integral + change)
        before = error
    steps = np.arange(1, 1501)
    expected = 0.3 - proportional * asked - integral_gain * np.minimum(asked * steps, 1)
    np.testing.assert_allclose(thresholds[1:], expected[1:], atol=1e-12)
    np.testing.assert_allclose(0.3 - thresholds[-1], 0.0103, atol=1e-12)
    assert thresholds[900] > thresholds[990] > thresholds[1200] == thresholds[-1]


RIGHT, SAFE = np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 1, 0, 1, 0, 0], bool)
SIX = np.array([0.3, 0.1, 0.05, 0.35, 0.15, 0.05])


def anchored(start, push, pull):
    """Where natural gradients of APO end, safe answers being those of the reference ``SIX``."""
    log_probs = np.log(start)
    for _ in range(10_000):
        probs = np.exp(log_probs)
        success = probs[RIGHT].sum()
        if 1 - success < 1e-8:
            return probs
        spread = np.sqrt(success * (1 - success))
        advantage = (RIGHT - success) / spread
        gain = np.where(RIGHT, advantage, push * advantage)
        for wrong in np.flatnonzero(~RIGHT):
            others = SAFE & (np.arange(6) != wrong)
            moved = (others - probs[others].sum()) / SIX[others].sum()
            gain = gain - pull * probs[wrong] * advantage[wrong] * moved
        log_probs = log_probs + 0.02 * spread * gain
        log_probs -= np.logaddexp.reduce(log_probs)
    raise AssertionError("not at rest")


def test_anchors_bring_no_branch_back():
    """Claim: anchored updates on wrong answers re-inflate valid branches that had collapsed
    (arXiv 2602.05717, abstract).

    Fails: the pull is on the mass of the safe set, and shared among its members as they have it.
    Under natural gradients two right answers of the set keep their odds, 900 to 1 if they were, and
    training ends with all mass on right answers, as without any anchor. Against right answers
    outside of the set they gain by a factor of at most e^x, x = (1 − p)(β/Z)/(1 − β/4Z) from a
    success of p, Z being the least reference mass of the anchors: 1.16 for β = 0.1 in an example.
    """
    collapsed = np.array([0.9, 0.001, 0.03, 0.03, 0.03, 0.009])
    for start in (SIX, collapsed):
        for push, pull in ((1.0, 0.0), (1.05, 0.1), (1.05, 1.0)):
            ends = anchored(start, push, pull)
            assert ends[RIGHT].sum() > 1 - 1e-7
            np.testing.assert_allclose(ends[0] / ends[1], start[0] / start[1], rtol=1e-9)
            gained = np.log(ends[0] / ends[2] / (start[0] / start[2]))
            anchors = pull / SIX[[0, 1]].sum()
            most = (1 - start[RIGHT].sum()) * anchors / (1 - anchors / 4)
            assert 0.2 * most - 1e-12 <= gained <= most + 1e-12
    anchors = 0.1 / SIX[[0, 1]].sum()
    np.testing.assert_allclose(np.exp(0.55 * anchors / (1 - anchors / 4)), 1.16, atol=0.005)


def test_the_pull_of_anchors_on_the_safe_set():
    """Claim: the update is aligned with the gradient of the mass of the safe set
    (arXiv 2602.05717, abstract).

    Holds with a correction: for a wrong answer outside of the set. One inside is taken out of its
    anchors, and the mass that is raised is that of the others: the set's own falls, with 0.90 on
    the wrong answer, 0.05 on the other safe one and 0.05 on a third.
    """
    start, ref, h = np.array([0.9, 0.05, 0.05]), np.array([0.5, 0.3, 0.2]), 1e-6

    def covered(logits, indices):
        return distribution(logits)[..., indices].sum(-1)

    def slope(indices):
        ends = [covered(np.log(start) + x * np.eye(3), indices) for x in (h, -h)]
        return (ends[0] - ends[1]) / (2 * h)

    coverage = slope([0, 1])
    outside, inside = (slope(x) / ref[x].sum() for x in ([0, 1], [1]))
    np.testing.assert_allclose(outside, coverage / 0.8, rtol=1e-9)
    assert inside @ coverage < 0
    before, after = (covered(np.log(start) + x * inside, [0, 1]) for x in (0, 1))
    assert after < before


def test_a_kl_keeps_shapes_among_equal_rewards_alone():
    """Claim: a KL to the reference makes the policy mimic its full density, against the sharpening
    that correctness needs (arXiv 2602.05717, abstract).

    Fails: of reverse KL, whose target has the odds of right answers times e^(1/β), as high as one
    likes, and the reference's shape only among right and among wrong answers.
    """
    log_ref, reward = np.log(SIX).astype(DTYPE), RIGHT.astype(DTYPE)
    beta = np.array([1.0, 0.2, 0.05], DTYPE)
    probs = np.asarray(kt.solve(kt.Objective(reward, log_ref, beta)).probs, float)
    odds = probs[:, RIGHT].sum(-1) / probs[:, ~RIGHT].sum(-1)
    np.testing.assert_allclose(np.log(odds), np.log(0.45 / 0.55) + 1 / beta, rtol=1e-5)
    for side in (RIGHT, ~RIGHT):
        shape = probs[:, side] / probs[:, side].sum(-1, keepdims=True)
        np.testing.assert_allclose(shape, np.tile(SIX[side] / SIX[side].sum(), (3, 1)), rtol=1e-5)
    assert probs[-1, RIGHT].sum() > 1 - 1e-7


def test_right_answers_that_training_leaves_behind():
    """Claim: without a regulariser the probability of right alternatives vanishes
    (arXiv 2602.05717, abstract).

    Holds with a correction: under gradients of logits, where all mass ends on the likeliest right
    answer without any noise. Natural gradients keep the proportions of all right answers.
    """
    left = [1e-1, 1e-4, 1e-8]
    paths = [unregularized_path(RIGHT.astype(float), np.log(SIX), x) for x in left]
    alternatives = np.exp(np.asarray(paths, float))[:, 1]
    assert (np.diff(alternatives) < 0).all()
    assert alternatives[-1] < 1e-6
    np.testing.assert_allclose(anchored(SIX, 1.0, 0.0)[:3], SIX[:3] / 0.45, atol=1e-7)
