"""Rewards that texts earn on their way, against enumeration."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_automata import DTYPES, EVEN, SWITCH, close, enumerated, random_problem, wide

import kltarget as kt
from kltarget.divergences import Scaled
from kltarget.spaces import Automaton, MarkovReference


def earned(texts, automaton, steps, end=None):
    """What each text earns on its way, token by token: ``[*batch, texts]``."""
    total = np.zeros((*steps.shape[:-2], len(texts)))
    for i, text in enumerate(texts):
        state = 0
        for token in text.tolist():
            total[..., i] += steps[..., state, token]
            state = int(automaton.transitions[state, token])
            if token == end:
                break
    return total


@pytest.mark.precise
@pytest.mark.broad
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [1, 2])
def test_equal_to_enumeration(order, dtype):
    wide(dtype)
    if dtype is np.float32 and jax.config.jax_enable_x64:
        pytest.skip("where float32 is the default it is tested")
    chain, automaton, arrays, rng = random_problem(order, order, dtype=dtype)
    texts, log_ref, finals = enumerated(arrays, 5)
    reward, steps = rng.normal(size=4), rng.normal(size=(2, 1, 4, 3))
    # One row forbids a step.
    steps[1, 0, 2, 1] = -np.inf
    beta = np.array([0.3, 2.0, 5.0])
    reward, steps, beta = (x.astype(dtype) for x in (reward, steps, beta))
    target = kt.solve_on_automaton(chain, automaton, reward, beta, length=5, step_reward=steps)
    total = reward[finals] + earned(texts, automaton, steps.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        joint = log_ref - np.log(np.exp(log_ref).sum()) + total / beta[:, None]
        top = joint.max(-1, keepdims=True)
        log_z = (top + np.log(np.exp(joint - top).sum(-1, keepdims=True)))[..., 0]
        log_probs = joint - log_z[..., None]
        probs = np.exp(log_probs)
        mean = np.where(probs > 0, probs * total, 0.0).sum(-1)
        kl = np.where(probs > 0, probs * (log_probs - log_ref), 0.0).sum(-1)
        entropy = -np.where(probs > 0, probs * log_probs, 0.0).sum(-1)
    assert target.value.shape == (2, 3)
    close(target.log_prob(texts), log_probs, dtype, 64)
    close(target.value, beta * log_z, dtype, 64)
    close(target.expected_reward, mean, dtype, 64)
    close(target.divergence_value, kl, dtype, 64)
    close(target.entropy, entropy, dtype, 64)
    with np.errstate(invalid="ignore"):
        spread = np.where(probs > 0, probs * (total - mean[..., None]) ** 2, 0.0).sum(-1)

    def by_beta(x):
        again = kt.solve_on_automaton(chain, automaton, reward, x, length=5, step_reward=steps)
        return jnp.stack([again.value.sum(0), again.expected_reward.sum(0)])

    # By the envelope theorem, and because the tilted law is an exponential family in 1/β.
    slopes = jax.jit(lambda x: jax.jvp(by_beta, (x,), (jnp.ones_like(x),))[1])(beta)
    close(slopes, np.stack([-kl.sum(0), -(spread / beta.astype(float) ** 2).sum(0)]), dtype, 512)
    shares = [[probs[..., texts[:, t] == v].sum(-1) for v in range(3)] for t in range(5)]
    close(target.marginals(), np.moveaxis(shares, (0, 1), (-2, -1)), dtype, 64)
    given = probs.reshape(2, 3, 9, 3, 9).sum(-1)[:, :, 5]
    given /= given.sum(-1, keepdims=True)
    close(np.exp(target.conditionals(texts[5 * 27][:2])), given, dtype, 64)
    close(np.exp(target.next_log_probs(texts[5 * 27]))[:, :, 2], given, dtype, 64)
    tokens, scores = target.likeliest(4)
    close(scores, -np.sort(-log_probs, -1)[..., :4], dtype, 64)
    assert tokens.shape == (2, 3, 4, 5)
    draws = np.asarray(target.sample(key=jax.random.key(0), num_samples=3000))
    share = (draws == 1).mean(0)[..., 4]
    wanted = np.asarray(shares)[4, 1]
    assert (np.abs(share - wanted) <= 5 * np.sqrt(wanted / 3000) + 1e-3).all()


@pytest.mark.broad
def test_what_is_earned_on_the_way_may_be_counted_instead():
    """Of 60 tokens each b earns a tenth: as rewards of steps, and of a counter's last state."""
    count = Automaton.counter([1], 2, most=60)
    counted = kt.solve_on_automaton(EVEN, count, np.arange(61) / 10, 0.3, length=60)
    one, steps = Automaton(np.zeros((1, 2), int)), np.array([[0.0, 0.1]])
    for divergence, factor in ((kt.ReverseKL(), 1.0), (Scaled(kt.ReverseKL(), 2.0), 2.0)):
        target = kt.solve_on_automaton(
            EVEN, one, [0.0], 0.3 / factor, divergence, length=60, step_reward=steps
        )
        assert float(target.value) == pytest.approx(float(counted.value), rel=1e-5)
        assert float(target.expected_reward) == pytest.approx(
            float(counted.expected_reward), rel=1e-5
        )
        assert float(target.divergence_value) == pytest.approx(
            factor * float(counted.divergence_value), rel=1e-4
        )
    # The envelope.
    slope = jax.jit(
        jax.grad(
            lambda x: (
                kt.solve_on_automaton(EVEN, one, jnp.zeros(1), 0.3, length=60, step_reward=x).value
            )
        )
    )(jnp.asarray(steps, float))
    assert float(slope[0, 1]) == pytest.approx(10 * float(counted.expected_reward), rel=1e-4)
    assert float(slope.sum()) == pytest.approx(60, rel=1e-4)


@pytest.mark.broad
def test_nothing_is_earned_after_an_end():
    chain = MarkovReference.fit(["ab", "abab", "b"], smoothing=0.5, end="$")
    automaton = Automaton(np.array([[0, 1, 2], [2, 1, 0], [1, 0, 2]]))
    steps = np.arange(9.0).reshape(3, 3) / 10
    reward = np.array([0.0, 1.0, 0.5])
    target = kt.solve_on_automaton(chain, automaton, reward, 0.4, length=4, step_reward=steps)
    texts = np.stack(np.meshgrid(*[np.arange(3)] * 4, indexing="ij"), -1).reshape(-1, 4)
    log_ref = np.asarray(chain.log_prob(texts), np.float64)
    texts, log_ref = texts[log_ref > -np.inf], log_ref[log_ref > -np.inf]
    total = reward[np.asarray(automaton.run(texts))] + earned(texts, automaton, steps, end=2)
    weights = np.exp(log_ref + total / 0.4)
    np.testing.assert_allclose(np.exp(target.log_prob(texts)), weights / weights.sum(), rtol=1e-4)
    assert float(target.expected_reward) == pytest.approx(
        float(weights @ total / weights.sum()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("steps", "divergence", "message"),
    [
        (np.zeros((2, 2)), kt.ForwardKL(), "step_reward needs reverse KL.*let the automaton count"),
        (np.zeros(2), None, r"step_reward has shape \(2,\).*last two axes must be \(2, 2\)"),
        (
            np.array([[0.0, np.nan], [0.0, 0.0]]),
            None,
            r"step_reward must be finite or -inf.*index \(0, 1\)",
        ),
        (np.zeros((3, 2, 2)), None, r"step_reward \(3,\) and beta \(2,\) do not broadcast"),
    ],
)
def test_bad_steps_are_named(steps, divergence, message):
    with pytest.raises(ValueError, match=message):
        kt.solve_on_automaton(
            EVEN, SWITCH, [0.0, 1.0], np.ones(2), divergence, length=3, step_reward=steps
        )
