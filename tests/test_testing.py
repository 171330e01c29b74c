"""`kltarget.testing`, used as in a user's own unit tests."""

import re
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given

import kltarget as kt
from kltarget.testing import (
    assert_optimal,
    assert_targets_close,
    divergences,
    log_policies,
    objectives,
)

LOG_REF = np.log(np.array([0.3, 0.02, 0.68], np.float32))
REWARD = np.array([1.0, 1.0, 0.0], np.float32)


def train(objective, steps, rate):
    """A user's trainer: gradient ascent on logits, knowing nothing of closed forms."""

    @jax.jit
    def step(logits):
        return logits + rate * jax.grad(lambda x: objective.value(jax.nn.log_softmax(x)))(logits)

    logits = objective.log_ref
    for _ in range(steps):
        logits = step(logits)
    return jax.nn.log_softmax(logits)


@pytest.mark.broad
def test_a_trained_policy_is_optimal_once_it_has_converged():
    objective = kt.Objective(REWARD, LOG_REF, 0.5, kt.ForwardKL())
    assert_optimal(train(objective, 300, 2.0), objective, tol=1e-4)
    with pytest.raises(AssertionError, match="falls short of the optimum"):
        assert_optimal(train(objective, 3, 2.0), objective, tol=1e-4)


def test_the_message_names_the_worst_outcome_and_both_probabilities():
    objective = kt.Objective(REWARD, LOG_REF, 0.5)
    optimum = kt.solve(objective).probs
    with pytest.raises(AssertionError) as error:
        assert_optimal(LOG_REF, objective, tol=1e-3)
    found = re.search(
        r"by ([\d.]+) nats, more than tol = 0\.001\n.* gap ([\d.]+) in reward at beta = 0\.5\n"
        r".*worst outcome 2: probability ([\d.]+) here, ([\d.]+) at the optimum",
        str(error.value),
    )
    nats, gap, here, there = map(float, found.groups())
    assert here == pytest.approx(0.68, rel=1e-4)
    assert there == pytest.approx(float(optimum[2]), rel=1e-4)
    assert gap == pytest.approx(float(kt.solve(objective).gap(LOG_REF)), rel=1e-2)
    assert nats == pytest.approx(gap / 0.5, rel=2e-2)


def test_the_message_names_the_row():
    objective = kt.Objective(REWARD, LOG_REF, np.array([[0.5, 1.0], [2.0, 4.0]], np.float32))
    policy = np.array(kt.solve(objective).log_probs)
    assert_optimal(policy, objective)
    policy[1, 0] = LOG_REF
    with pytest.raises(AssertionError, match=r"nats in row \(1, 0\), .*\n.*beta = 2\n.*outcome"):
        assert_optimal(policy, objective)
    sweep = kt.Objective(REWARD, LOG_REF, np.array([0.5, 1.0], np.float32))
    with pytest.raises(AssertionError, match=r"in row 0, "):
        assert_optimal(LOG_REF, sweep)


def test_the_verdict_does_not_depend_on_the_unit_of_the_reward():
    policy = np.log(np.array([0.70, 0.05, 0.25], np.float32))
    messages = []
    for unit in (1.0, 1024.0):
        with pytest.raises(AssertionError) as error:
            assert_optimal(policy, kt.Objective(unit * REWARD, LOG_REF, 0.5 * unit), tol=1e-6)
        messages.append(re.search(r"by (\S+) nats", str(error.value)).group(1))
    assert messages[0] == messages[1]


def test_every_optimal_policy_passes_where_there_are_several():
    # Total variation leaves the split among tied best outcomes open.
    objective = kt.Objective(REWARD, LOG_REF, 0.25, kt.TotalVariation())
    assert_optimal(np.log(np.array([0.5, 0.5, 1e-30], np.float32)), objective, tol=1e-5)
    assert_optimal(kt.solve(objective).log_probs, objective, tol=1e-5)


def test_forbidden_and_impossible_outcomes():
    reward = np.array([0.0, -np.inf, 1.0], np.float32)
    log_ref = np.log(np.array([0.5, 0.25, 0.25], np.float32))
    for divergence in (kt.ReverseKL(), kt.ForwardKL()):
        objective = kt.Objective(reward, log_ref, 1.0, divergence)
        assert_optimal(kt.solve(objective).log_probs, objective)
        with pytest.raises(AssertionError, match="by inf nats"):
            assert_optimal(log_ref, objective)
        # also where every policy has J = −∞, one that is not the target fails
        with pytest.raises(AssertionError, match="falls short"):
            assert_optimal(np.log(np.array([0.9, 1e-38, 0.1]), dtype=np.float32), objective)


def test_bad_policies_and_objectives():
    objective = kt.Objective(REWARD, LOG_REF, 0.5)
    with pytest.raises(AssertionError, match=r"not normalised: its masses sum to 1\.5, not 1"):
        assert_optimal(LOG_REF + np.log(np.float32(1.5)), objective)
    with pytest.raises(AssertionError, match="masses sum to nan"):
        assert_optimal(LOG_REF * np.nan, objective)
    with pytest.raises(ValueError, match=r"log_policy has shape \(2,\), the objective \(3,\)"):
        assert_optimal(LOG_REF[:2], objective)
    leaves, structure = jax.tree.flatten(objective)
    broken = jax.tree.unflatten(structure, [*leaves[:2], jnp.float32(-1.0)])
    with pytest.raises(ValueError, match="INVALID_BETA"):
        assert_optimal(LOG_REF, broken)


def test_targets_close():
    target = kt.solve(kt.Objective(REWARD, LOG_REF, 0.5))
    again = kt.solve(kt.Objective(4 * REWARD, LOG_REF, 2.0))
    assert_targets_close(target, again)
    assert_targets_close(target, again.log_probs)
    assert_targets_close(target.log_probs, again)
    other = kt.solve(kt.Objective(REWARD, LOG_REF, 0.51))
    assert_targets_close(target, other, tol=0.1)
    with pytest.raises(AssertionError) as error:
        assert_targets_close(target, other)
    here, there = re.search(
        r"worst outcome 2: probability (\S+) here, (\S+) wanted", str(error.value)
    ).groups()
    assert float(here) == pytest.approx(float(target.probs[2]), rel=1e-5)
    assert float(there) == pytest.approx(float(other.probs[2]), rel=1e-5)


def test_targets_close_sees_zeros_rows_and_failures():
    zero = np.array([[-np.inf, 0.0], [-np.inf, 0.0]])
    assert_targets_close(zero, zero)
    tiny = np.array([[-np.inf, 0.0], [-800.0, 0.0]])
    for actual, desired in ((zero, tiny), (tiny, zero)):
        with pytest.raises(AssertionError, match=r"by inf.* in row 1, .*\n.*worst outcome 0"):
            assert_targets_close(actual, desired)
    with pytest.raises(AssertionError, match="the desired target is NaN in row 1"):
        assert_targets_close(zero, np.array([[-np.inf, 0.0], [np.nan, 0.0]]))
    with pytest.raises(ValueError, match=r"actual has shape \(2, 2\) and desired \(3,\)"):
        assert_targets_close(zero, np.zeros(3))


def test_the_default_tolerance_follows_the_coarser_dtype():
    target = np.asarray(kt.solve(kt.Objective(REWARD, LOG_REF, 0.5)).log_probs)
    eps = np.finfo(np.float32).eps
    assert_targets_close(target * (1 + np.float32(8 * eps)), target)
    with pytest.raises(AssertionError, match=f"tol = {32 * eps:.3g}"):
        assert_targets_close(target * (1 + np.float32(128 * eps)) - 1e-3, target)


@given(objectives(num_outcomes=3, divergence=kt.ReverseKL()))
def test_a_property_of_a_users_own_code(objective):
    # What a user might write: a closed form of their own, for every objective.
    allowed = objective.reward > -jnp.inf
    score = jnp.where(allowed, objective.reward, 0.0) / objective.beta
    own = kt.normalize(jnp.where(allowed, objective.log_ref + score, -jnp.inf))
    assert_targets_close(own, kt.solve(objective), tol=1e-2)


@given(st.data())
def test_objectives_follow_what_is_asked(data):
    dtype = np.float16 if oracles.has_float16() else jnp.bfloat16
    objective = data.draw(
        objectives(
            num_outcomes=st.integers(2, 3),
            batch_shape=(2,),
            divergence=st.just(kt.ForwardKL()),
            betas=st.sampled_from([0.5, 2.0]),
            rewards=st.sampled_from([0.0, 1.0]),
            dtype=dtype,
            zeros=False,
        )
    )
    assert objective.batch_shape == (2,)
    assert objective.num_outcomes in (2, 3)
    assert objective.divergence == kt.ForwardKL()
    assert objective.reward.dtype == objective.log_ref.dtype == objective.beta.dtype == dtype
    assert set(np.asarray(objective.reward).ravel().tolist()) <= {0.0, 1.0}
    assert set(np.asarray(objective.beta).tolist()) <= {0.5, 2.0}
    assert np.isfinite(objective.log_ref).all()


@given(objectives(batch_shape=(2, 2)))
def test_objectives_always_have_a_target(objective):
    assert objective.batch_shape == (2, 2)
    usable = (np.asarray(objective.reward) > -np.inf) & (np.asarray(objective.log_ref) > -np.inf)
    assert usable.any(-1).all()
    assert np.all(np.asarray(objective.beta) > 0)


@given(st.data())
def test_policies_are_normalised(data):
    shape = data.draw(st.sampled_from([(), (3,), (2, 2)]))
    policy = data.draw(log_policies(3, batch_shape=shape, dtype=np.float32))
    assert policy.shape == (*shape, 3)
    assert policy.dtype == np.float32
    np.testing.assert_allclose(np.exp(policy).sum(-1), np.ones(shape), rtol=1e-6)


def finds(strategy, condition):
    return hypothesis.find(
        strategy, condition, settings=hypothesis.settings(max_examples=2000, database=None)
    )


@pytest.mark.broad
def test_the_strategies_reach_the_corners():
    pair = objectives(num_outcomes=3)
    assert finds(pair, lambda o: np.isneginf(o.reward).any()).num_outcomes == 3
    assert finds(pair, lambda o: np.isneginf(o.log_ref).any()).num_outcomes == 3
    tied = finds(pair, lambda o: np.sum(np.asarray(o.reward) == np.max(o.reward)) > 1)
    assert tied.num_outcomes == 3
    assert float(finds(pair, lambda o: o.beta < 0.01).beta) < 0.01
    assert np.isneginf(finds(log_policies(2), lambda x: np.isneginf(x).any())).any()
    for kind in (kt.ReverseKL, kt.Alpha, kt.Tsallis, kt.TotalVariation):
        assert isinstance(finds(divergences(), lambda d, kind=kind: isinstance(d, kind)), kind)


@pytest.mark.broad
def test_the_assertions_work_without_hypothesis():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import jax.numpy as jnp, kltarget as kt\n"
        "from kltarget.testing import assert_optimal, objectives\n"
        "objective = kt.Objective(jnp.zeros(2), jnp.log(jnp.full(2, 0.5)), 1.0)\n"
        "assert_optimal(objective.log_ref, objective)\n"
        "try:\n    objectives()\nexcept ImportError:\n    print('asked for hypothesis')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "asked for hypothesis"
