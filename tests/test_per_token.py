"""Long texts: rates per token against eigenvalues, bisection and exact numbers of given lengths."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DTYPES, double_precision, eps, reference
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp

import kltarget as kt
from kltarget.frontier import best_of_n, beta_for, per_token
from kltarget.spaces import MarkovReference

DTYPE = DTYPES[0]
STICKY = np.array([[0.9, 0.1], [0.2, 0.8]])
BIT = np.array([0.0, 1.0])


def chain(transition, dtype=DTYPE):
    size = len(transition)
    with np.errstate(divide="ignore"):
        rows = np.log(np.asarray(transition, np.float64)).astype(dtype)
    return MarkovReference(np.full(size, -math.log(size), dtype), rows)


def cumulant(transition, reward, shift):
    """The logarithm of the largest eigenvalue of the tilted matrix."""
    return math.log(np.linalg.eigvals(transition * np.exp(shift * np.asarray(reward))).real.max())


def test_independent_tokens_of_the_bank():
    case = reference("memoryless-tilt")
    p, budget, s, x = (case["inputs"][k] for k in ("p", "Delta", "s", "x"))
    expected = case["expected"]
    with double_precision():
        tokens = chain([[1 - p, p]] * 2, np.float64)
        found = per_token(tokens, BIT, kl=budget)
        tilted = MarkovReference(tokens.log_initial, found.log_transition)
        further = per_token(tilted, BIT, beta=1 / s)
        rare = per_token(tilted, BIT, expected_reward=x)
    got = {
        "tilt_mean": found.expected_reward,
        "inv_beta": 1 / float(found.beta),
        "scaled_cgf": float(further.value) * s,
        "rate": rare.kl,
    }
    for key, value in got.items():
        np.testing.assert_allclose(float(value), expected[key], rtol=1e-9, err_msg=key)


def test_the_scaled_cumulant_is_an_eigenvalue():
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.full(4, 0.5), 4)
    reward = rng.normal(size=(4, 4))
    beta = np.array([[0.2, 1.0], [3.0, 20.0]])
    with double_precision():
        found = per_token(chain(transition, np.float64), reward, beta=beta)
        assert found.value.shape == (2, 2)
        assert found.log_transition.shape == (2, 2, 4, 4)
    for at in np.ndindex(2, 2):
        s = 1 / beta[at]
        want = cumulant(transition, reward, s)
        np.testing.assert_allclose(float(found.value[at]) * s, want, rtol=1e-11, atol=1e-13)
        step = 1e-5 * s
        ends = [cumulant(transition, reward, s + x) for x in (step, -step)]
        np.testing.assert_allclose(
            found.expected_reward[at], (ends[0] - ends[1]) / 2 / step, rtol=1e-6
        )
        # Legendre's transform, which is also the KL of the tilted chain.
        kl = s * float(found.expected_reward[at]) - want
        np.testing.assert_allclose(found.kl[at], kl, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(np.exp(found.log_transition[at]).sum(-1), 1, rtol=1e-12)


def test_periodic_chains_and_chains_of_second_order():
    with double_precision():
        # Two tokens by turns, of two kinds each: a matrix of period 2.
        turns = np.array([[0, 0, 0.7, 0.3], [0, 0, 0.4, 0.6], [0.5, 0.5, 0, 0], [0.1, 0.9, 0, 0]])
        found = per_token(chain(turns, np.float64), [1.0, 0.0, 0.0, 2.0], beta=0.5)
        want = cumulant(turns, [1.0, 0.0, 0.0, 2.0], 2.0)
        np.testing.assert_allclose(2 * float(found.value), want, rtol=1e-12)
        # After the last two tokens, as a chain of order 1 over pairs of tokens.
        rows = np.random.default_rng(1).dirichlet(np.ones(2), (2, 2))
        second = MarkovReference(np.full((2, 2), math.log(0.25)), np.log(rows))
        pairs = np.zeros((4, 4))
        for a, b, c in np.ndindex(2, 2, 2):
            pairs[2 * a + b, 2 * b + c] = rows[a, b, c]
        found = per_token(second, BIT, beta=0.7)
        want = cumulant(pairs, [0.0, 1.0, 0.0, 1.0], 1 / 0.7)
        np.testing.assert_allclose(float(found.value) / 0.7, want, rtol=1e-12)
        assert found.log_transition.shape == (2, 2, 2)


def test_what_is_asked_for_is_met():
    reference = chain(STICKY)
    want = np.array([1e-8, 1e-3, 0.1, 0.2], DTYPE)
    by_kl = per_token(reference, BIT, kl=want)
    np.testing.assert_allclose(by_kl.kl, want, rtol=max(16 * eps(DTYPE), 1e-11))
    with double_precision():
        exact = chain(STICKY, np.float64)
        by_reward = per_token(exact, BIT, expected_reward=np.asarray(by_kl.expected_reward, float))
        np.testing.assert_allclose(by_reward.kl[1:], want[1:], rtol=1e-4)
        again = per_token(exact, BIT, beta=by_reward.beta)
        np.testing.assert_allclose(again.kl, by_reward.kl, rtol=1e-10)
    assert by_kl.kl.dtype == DTYPE


@functools.cache
def counts(length):
    """How many ones a text of the sticky chain has, and the log-probabilities of these numbers.

    Up to 1000 whatever the length, so that lengths share programs.
    """
    # By their number and the last token.
    given = np.where(np.eye(2, dtype=bool), -math.log(2), -np.inf)
    for _ in range(length - 1):
        arrived = np.logaddexp.reduce(given[..., None] + np.log(STICKY), axis=1)
        given = np.full((len(given) + 1, 2), -np.inf)
        given[:-1, 0], given[1:, 1] = arrived.T
    log_ref = np.full(1001, -np.inf)
    log_ref[: length + 1] = np.logaddexp.reduce(given, axis=1)
    return np.arange(1001.0), log_ref


@pytest.mark.slow
def test_rates_of_texts_of_a_thousand_tokens():
    """Claim: the reward per token of the optimum with a KL satisfies a large deviation principle,
    with a rate function in closed form (arXiv 2404.01730, abstract).

    Holds: for independent tokens, as stated, and for a Markov chain with the largest eigenvalue in
    place of the cumulant of a token; at 1000 tokens logarithms of probabilities are off by log T/T.
    """
    x, y = 0.6, 0.8
    with double_precision():
        sticky = chain(STICKY, np.float64)
        rare = per_token(sticky, BIT, expected_reward=[x, y])
        goal = per_token(sticky, BIT, kl=0.1)
        tilted = MarkovReference(sticky.log_initial, goal.log_transition)
        under_target = float(per_token(tilted, BIT, expected_reward=0.9).kl)
        off = {}
        for length in (250, 1000):
            ones, log_ref = counts(length)
            states = kt.solve(kt.Objective(ones, log_ref, goal.beta))
            log_target = np.asarray(states.log_probs)
            tails = [logsumexp(log_ref[math.ceil(z * length) :]) for z in (x, y)]
            tail = logsumexp(log_target[math.ceil(0.9 * length) :])
            rates = np.array([*rare.kl, under_target])
            off[length] = -np.array([*tails, tail]) / length - rates
            # Less than any power of T: the numbers per token are off by a constant over T.
            for name in ("value", "expected_reward"):
                per = float(getattr(states, name)) / length
                assert abs(per - float(getattr(goal, name))) < 3 / length, name
            assert abs(float(states.divergence_value) / length - 0.1) < 3 / length
    for length, gaps in off.items():
        assert (gaps > 0).all()
        assert (gaps < 2 * math.log(length) / length).all()
    assert (off[1000] < 0.4 * off[250]).all()


@pytest.mark.slow
def test_best_of_many_draws_of_a_chain():
    """Claim: best-of-n earns asymptotically what the optimum with a KL earns (arXiv 2404.01730,
    abstract).

    Holds: with n = e^{TΔ} for Markov references too; of a thousand tokens its KL from the tilt of
    the same KL is 0.002 nats per token, and this falls like log T/T.
    """
    with double_precision():
        sticky = chain(STICKY, np.float64)
        goal = per_token(sticky, BIT, kl=0.05)
        gaps, lost = [], []
        for length in (250, 1000):
            ones, log_ref = counts(length)
            best = best_of_n(ones, log_ref, math.exp(0.05 * length))
            beta = beta_for(kt.Objective(ones, log_ref, 1.0), kl=best.kl)
            tilt = kt.solve(kt.Objective(ones, log_ref, beta))
            gaps.append(float(kt.kl(best.log_probs, tilt.log_probs)) / length)
            lost.append(float(goal.expected_reward) - float(best.expected_reward) / length)
    scale = np.log([250, 1000]) / [250, 1000]
    assert 0 < gaps[1] < 0.5 * gaps[0]
    assert 0 < lost[1] < 0.5 * lost[0]
    assert (gaps < scale).all()
    assert (lost < 2 * scale).all()


def test_a_rate_by_stirling():
    """Of independent tokens the binomial's own logarithm, at 10⁶ tokens."""
    p, x, length = 0.3, 0.6, 1_000_000
    k = x * length
    exact = gammaln(length + 1) - gammaln(k + 1) - gammaln(length - k + 1)
    exact += k * math.log(p) + (length - k) * math.log(1 - p)
    with double_precision():
        found = per_token(chain([[1 - p, p]] * 2, np.float64), BIT, expected_reward=x)
        np.testing.assert_allclose(found.kl, x * math.log(x / p) + 0.4 * math.log(0.4 / 0.7))
        assert 0 < -exact / length - float(found.kl) < math.log(length) / length
    a = brentq(lambda a: a * math.log(a / p) + (1 - a) * math.log((1 - a) / (1 - p)) - 0.1, p, 0.99)
    with double_precision():
        found = per_token(chain([[1 - p, p]] * 2, np.float64), BIT, kl=0.1)
        np.testing.assert_allclose(found.expected_reward, a, rtol=1e-12)


def test_cycles_of_equal_rewards():
    """Staying in any state is best: a small β parts them for good, as far as floats can tell."""
    loops, p = np.eye(3), 0.999
    with double_precision():
        even = chain(np.full((3, 3), 1 / 3), np.float64)
        found = per_token(even, loops, expected_reward=p)
        np.testing.assert_allclose(found.expected_reward, p, rtol=1e-12)
        kl = math.log(3) + p * math.log(p) + (1 - p) * math.log((1 - p) / 2)
        np.testing.assert_allclose(found.kl, kl, rtol=1e-10)
        with pytest.raises(ValueError, match="falls apart in double precision"):
            per_token(even, loops, beta=0.0021)


def test_long_texts_that_are_refused():
    sticky = chain(STICKY)
    with pytest.raises(TypeError, match="exactly one of beta, kl, expected_reward, got none"):
        per_token(sticky, BIT)
    with pytest.raises(
        ValueError, match=r"reward has shape \(3,\): give one of \(2,\) or \(2, 2\)"
    ):
        per_token(sticky, np.zeros(3), beta=1.0)
    with pytest.raises(ValueError, match="reward must be finite, got -inf at index 1"):
        per_token(sticky, [0.0, -np.inf], beta=1.0)
    with pytest.raises(ValueError, match="reward is the same for all tokens"):
        per_token(sticky, [1.0, 1.0], beta=1.0)
    with pytest.raises(ValueError, match="beta must be above 0 and finite, got 0"):
        per_token(sticky, BIT, beta=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"beta=0\.001 must be at least 0\.002"):
        per_token(sticky, BIT, beta=[1.0, 0.001])
    with pytest.raises(ValueError, match=r"kl=3\.0 is not reached: it lies between 0 and 0\.2231"):
        per_token(sticky, BIT, kl=3.0)
    with pytest.raises(
        ValueError, match=r"expected_reward=0\.2 is not reached: it lies between 0\.333"
    ):
        per_token(sticky, BIT, expected_reward=0.2)
    with pytest.raises(ValueError, match="contexts that do not all lead to each other"):
        per_token(chain([[1.0, 0.0], [0.5, 0.5]]), BIT, beta=1.0)
    ended = MarkovReference(
        np.log(np.array([0.5, 0.5])), jnp.array([[-0.6931472, -0.6931472], [-jnp.inf, 0.0]]), end=1
    )
    with pytest.raises(ValueError, match="reference has an end"):
        per_token(ended, BIT, beta=1.0)
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda b: per_token(sticky, BIT, beta=b).kl)(1.0)
