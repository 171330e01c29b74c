"""Rewards that keep every right answer: against tables, numbers by hand, and laws."""

import math
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from oracles import DTYPES, INF, eps

import kltarget as kt
from kltarget.adapters import mara_rewards, trl

KINDS = [np.asarray, jnp.asarray]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["numpy", "jax"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

T3 = ([1.0, 1.0, 0.0], [0.3, 0.02, 0.68])
P5 = ([0.1, 0.5, 1.0, 0.9, 0.3], [0.4, 0.3, 0.15, 0.1, 0.05])


def by_hand(rewards, ref_logps, beta, threshold, groups, anchor="reference"):
    """The definition, one answer after the other."""
    lifted = list(rewards)
    if threshold == "best":
        usable = zip(rewards, ref_logps, strict=True)
        threshold = max((r for r, p in usable if r == r and p > -math.inf), default=math.inf)
    for group in set(groups):
        good = [
            k
            for k, (r, p) in enumerate(zip(rewards, ref_logps, strict=True))
            if groups[k] == group and r >= threshold and p > -math.inf and r > -math.inf
        ]
        if good:
            extra = 1 / beta if anchor == "best" else 0.0
            z = max(good, key=lambda k: (ref_logps[k] + extra * rewards[k], rewards[k]))
            for k in good:
                lifted[k] = rewards[z] + beta * (ref_logps[z] - ref_logps[k])
    return lifted


@kinds
@dtypes
@pytest.mark.parametrize("name", oracles.reference_ids("mara1-t3"))
def test_reference_values(name, dtype, kind):
    beta = float(name.rpartition("-b")[2])
    reward, ref = T3
    got = mara_rewards(kind(np.array(reward, dtype)), kind(np.log(ref).astype(dtype)), beta, 0.8)
    oracles.assert_reference(name, got, "R_aug", dtype)
    assert type(got) is type(kind(np.zeros(3)))
    assert got.dtype == dtype


@kinds
@dtypes
def test_unequal_rewards_above_the_threshold(dtype, kind):
    reward, ref = P5
    got = mara_rewards(kind(np.array(reward, dtype)), kind(np.log(ref).astype(dtype)), 0.5, 0.9)
    oracles.assert_reference("mara-p5-b0.5", got, "R_aug", dtype)


@kinds
@dtypes
@pytest.mark.parametrize("anchor", ["reference", "best"])
def test_rows_of_answers_are_tables(dtype, kind, anchor):
    """Where every outcome was drawn once, a batch says what a table does."""
    reward = np.array([[0.8, 1.0, 0.9, 0.0], [1.0, 1.0, 0.2, 0.9]], dtype)
    log_ref = np.log([[0.5, 0.1, 0.08, 0.32], [0.2, 0.3, 0.4, 0.1]]).astype(dtype)
    got = mara_rewards(kind(reward), kind(log_ref), 0.5, 0.8, anchor=anchor)
    objective = kt.Objective(reward, log_ref, np.array([0.5, 0.5], dtype))
    want = kt.mara(objective, np.array(0.8, dtype), anchor=anchor).reward
    np.testing.assert_allclose(got, want, rtol=16 * eps(dtype), atol=16 * eps(dtype))


BATCHES = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 1.0, math.nan, -math.inf]),
        st.sampled_from([-0.5, -1.0, -3.0, -40.0, -math.inf]),
        st.sampled_from("abc"),
    ),
    min_size=1,
    max_size=8,
)


@given(
    batch=BATCHES,
    threshold=st.sampled_from([0.5, 1.0, 2.0, "best"]),
    anchor=st.sampled_from(["reference", "best"]),
)
def test_groups_are_told_apart(batch, threshold, anchor):
    rewards, ref_logps, groups = (list(x) for x in zip(*batch, strict=True))
    want = by_hand(rewards, ref_logps, 0.25, threshold, groups, anchor)
    arrays = (np.array(rewards, np.float32), np.array(ref_logps, np.float32))
    got = mara_rewards(*arrays, 0.25, threshold, groups=groups, anchor=anchor)
    np.testing.assert_allclose(got, np.array(want, np.float32), rtol=1e-6)


@given(batch=BATCHES, shift=st.sampled_from([-2.0, 0.25, 8.0]), seed=st.integers(0, 99))
def test_shifts_and_permutations_go_through(batch, shift, seed):
    rewards, ref_logps, groups = (np.array(x) for x in zip(*batch, strict=True))
    got = mara_rewards(rewards, ref_logps, 0.25, "best", groups=groups)
    moved = mara_rewards(rewards + shift, ref_logps, 0.25, "best", groups=groups)
    np.testing.assert_allclose(moved, got + shift, rtol=1e-12, atol=1e-12)
    order = np.random.default_rng(seed).permutation(len(rewards))
    shuffled = mara_rewards(rewards[order], ref_logps[order], 0.25, "best", groups=groups[order])
    np.testing.assert_array_equal(shuffled, got[order])


def test_what_is_not_known_stays_as_it_is():
    rewards = np.array([1.0, 1.0, math.nan, 1.0, 1.0])
    ref_logps = np.array([-INF, math.nan, -1.0, -2.0, -3.0])
    got = mara_rewards(rewards, ref_logps, 1.0, "best")
    np.testing.assert_array_equal(got, [1, 1, math.nan, 1, 2])
    np.testing.assert_array_equal(mara_rewards(rewards, ref_logps, 1.0, 2.0), rewards)


def test_the_best_is_that_of_the_whole_batch():
    """A prompt with wrong answers alone has none of them lifted."""
    rewards, ref_logps = np.array([1.0, 0.0, 0.0]), np.array([-1.0, -2.0, -30.0])
    got = mara_rewards(rewards, ref_logps, 0.1, "best", groups=["right", "wrong", "wrong"])
    np.testing.assert_array_equal(got, rewards)
    each = mara_rewards(rewards, ref_logps, 0.1, rewards, groups=["right", "wrong", "wrong"])
    assert each[2] > 2


def test_whole_numbers_lists_and_narrow_floats():
    ref_logps = np.log(np.array(T3[1], np.float32))
    want = mara_rewards(np.array(T3[0], np.float32), ref_logps, 0.1, 1)
    for rewards in ([1, 1, 0], [True, True, False], np.array([1, 1, 0])):
        got = mara_rewards(rewards, ref_logps, 0.1, 1)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want)
    narrow = mara_rewards(jnp.array(T3[0], jnp.bfloat16), jnp.asarray(ref_logps), 0.1, 1)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, jnp.asarray(want).astype(jnp.bfloat16))
    some = mara_rewards([None, 1, 1], ref_logps[[2, 0, 1]], 0.1, 1)
    np.testing.assert_allclose(some, want[[2, 0, 1]] + [math.nan, 0, 0], rtol=1e-6)
    empty = mara_rewards(np.empty(0), np.empty(0), 0.1, 1.0, groups=[])
    assert empty.shape == (0,)


def test_it_can_be_compiled():
    rewards, ref_logps = jnp.array([1.0, 1.0, 0.0]), jnp.log(jnp.array(T3[1]))
    for threshold in (1.0, "best"):
        run = jax.jit(lambda *x, bar=threshold: mara_rewards(*x, 0.1, bar, groups="aab"))
        want = mara_rewards(rewards, ref_logps, 0.1, threshold, groups="aab")
        np.testing.assert_allclose(run(rewards, ref_logps), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beta": 0.0}, ValueError, "beta must be positive and finite, got 0"),
        ({"beta": math.nan}, ValueError, "beta must be positive"),
        ({"threshold": "worst"}, ValueError, "threshold must be a reward or 'best'"),
        ({"threshold": math.nan}, ValueError, "threshold must not be NaN"),
        ({"threshold": np.ones(2)}, ValueError, r"threshold has shape \(2,\) and rewards \(3,\)"),
        ({"anchor": "rarest"}, ValueError, "anchor must be 'reference' or 'best'"),
        ({"groups": "ab"}, ValueError, "groups has 2 entries"),
        ({"groups": [["a"], ["a"], ["b"]]}, TypeError, "groups: a list is not hashable"),
        ({"rewards": np.ones(4)}, ValueError, r"ref_logps has shape \(3,\) and rewards \(4,\)"),
        ({"rewards": np.array([1, INF, 0])}, ValueError, "rewards must not be"),
        ({"ref_logps": np.ones(3)}, ValueError, "ref_logps must be log-probabilities"),
        ({"ref_logps": jnp.zeros(3)}, TypeError, "rewards and ref_logps must be of one kind"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"rewards": np.ones(3), "ref_logps": -np.ones(3), "beta": 0.1, "threshold": 1.0}
    with pytest.raises(error, match=message):
        mara_rewards(**(arguments | change))


def test_the_trainers_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "kltarget.adapters.trl._mara_trainers", raising=False)
    with pytest.raises(ImportError, match=r'MaraGRPOTrainer needs .*pip install "kltarget\[trl\]"'):
        _ = trl.MaraGRPOTrainer
    with pytest.raises(AttributeError, match="no attribute 'MaraPPOTrainer'"):
        _ = trl.MaraPPOTrainer
    assert {"MaraGRPOTrainer", "MaraRLOOTrainer", "LogProbs"} <= set(dir(trl))
