"""Training of chains by gradients against their targets, and what a verification finds amiss."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from kltarget import tasks, training
from kltarget.mixtures import QuadraticReward
from kltarget.spaces import Chain
from kltarget.targets.chains import solve_chain
from kltarget.verification import verify_chain

FIRST = np.log([0.5, 0.5])
STEPS_TAKEN = 400
STEPS = np.log([[[0.8, 0.2], [0.3, 0.7]], [[0.9, 0.1], [0.2, 0.8]]])


def test_the_tasks_are_what_they_say():
    task = tasks.load_chain("denoise")
    assert isinstance(task.chain, Chain)
    assert task.modes is not None
    last = np.exp(np.asarray(task.chain.log_marginals()[-1], float))
    left, right = (last[task.modes == k].sum() for k in (0, 1))
    assert 3.0 < left / right < 4.0
    assert [task.reward[task.modes == k].max() for k in (0, 1)] == [0.5, 1.0]
    with pytest.raises(ValueError, match="choose one of denoise, drift"):
        tasks.load_chain("noise")


@pytest.mark.broad
def test_noise_that_is_fixed_keeps_the_better_mode_from_being_reached():
    """By sums over all pairs of first and last states, in NumPy."""
    task = tasks.load_chain("denoise")
    first = np.exp(np.asarray(task.chain.log_initial, float))
    reached = np.linalg.multi_dot(list(np.exp(np.asarray(task.chain.log_kernels, float))))
    tilt = reached * np.exp(task.reward / 0.2)
    tilted = first @ tilt / (first @ tilt).sum()
    fixed = first @ (tilt / tilt.sum(-1, keepdims=True))
    for tilt_first, law in ((True, tilted), (False, fixed)):
        ours = np.exp(solve_chain(task.chain, task.reward, 0.2, tilt_first=tilt_first).log_last)
        np.testing.assert_allclose(ours, law, rtol=1e-3, atol=1e-6)
    assert tilted[task.modes == 1].sum() > 0.7
    assert fixed[task.modes == 1].sum() < 0.5
    assert np.abs(tilted - fixed).sum() / 2 > 0.25


def test_exact_gradients_reach_the_terminal_marginals_found_at_50_digits():
    for tilt_first, best in ((True, 0.9124028640771804), (False, 0.8980044088304844)):
        run = training.fine_tune_chain(
            Chain(FIRST, STEPS),
            [1.0, 0.0],
            0.5,
            learning_rate=0.05,
            num_steps=600,
            tilt_first=tilt_first,
        )
        ends = np.exp(run.chain.log_marginals()[0, -1])
        np.testing.assert_allclose(ends[0], best, atol=1e-4)
        if not tilt_first:
            np.testing.assert_array_equal(run.chain.log_initial[0], np.asarray(FIRST, ends.dtype))
    # v(x_2) of either first state, at 50 digits.
    mean = np.mean([0.8837062901897529, 0.6431697432780324])
    np.testing.assert_allclose(run.objective[-1, 0], mean, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoise", "drift"])
def test_gradients_confirm_the_law_of_paths(name):
    report = verify_chain(name, key=jax.random.key(1), num_seeds=2, num_steps=STEPS_TAKEN)
    assert report.passed, str(report)
    assert len(report.runs) == 8
    assert {run["first law"] for run in report.runs} == {"tilted", "fixed"}


@pytest.mark.slow
def test_a_wrong_target_and_too_little_training_are_seen(monkeypatch):
    task = tasks.load_chain("denoise")
    short = verify_chain(task, key=jax.random.key(0), num_seeds=2, num_steps=3)
    assert not short.passed
    assert [check.name for check in short.checks if not check.passed] == [
        "gap below 0.0001",
        "distance below 0.001",
    ]
    # Of half the β, as if a factor were lost.
    wrong = lambda chain, reward, beta, **options: solve_chain(chain, reward, beta / 2, **options)  # noqa: E731
    monkeypatch.setattr("kltarget.verification._of_chains.solve_chain", wrong)
    same = {"num_seeds": 2, "num_steps": STEPS_TAKEN}
    assert not verify_chain(task, key=jax.random.key(0), **same).passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"num_steps": 0}, "num_steps must be an integer of 1 or more"),
        ({"num_seeds": 2}, "key is needed for samples and for several seeds"),
        ({"beta": -1.0}, "beta must be above 0 and finite"),
        ({"reward": np.zeros(3)}, "reward has 3 on its last axis and the chain 2"),
        ({"reward": [-np.inf, 0.0]}, "reward must be finite"),
        ({"reward": QuadraticReward(dim=2)}, "reward must be a QuadraticReward for a Gauss"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"reward": [1.0, 0.0], "beta": 1.0, "learning_rate": 0.1, "num_steps": 2} | change
    reward, beta = given.pop("reward"), given.pop("beta")
    with pytest.raises(ValueError, match=message):
        training.fine_tune_chain(Chain(FIRST, STEPS), reward, beta, **given)


def test_what_is_no_chain_is_named():
    with pytest.raises(TypeError, match="chain must be a Chain or a GaussianChain"):
        training.fine_tune_chain("denoise", [1.0, 0.0], 1.0, learning_rate=0.1, num_steps=2)


def test_training_of_a_chain_may_be_traced():
    """Of one step only the objective of the reference is seen: its mean reward, at every β."""
    options = {"learning_rate": 0.1, "num_steps": 1}
    train = jax.jit(
        lambda beta: training.fine_tune_chain(Chain(FIRST, STEPS), [1.0, 0.0], beta, **options)
    )
    np.testing.assert_allclose(train(np.array([0.1, 1.0])).objective[0, 0], 0.585, rtol=1e-6)
