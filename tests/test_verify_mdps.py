"""Verification on decision processes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from kltarget import tasks
from kltarget.spaces import MDP
from kltarget.targets.mdps import solve_mdp
from kltarget.verification import verifier_of, verify_mdp

# One program per way of training for all runs on a process.
SAME = {"num_seeds": 2, "num_steps": 700}


def _failed(report):
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.mdp_names())
def test_training_ends_at_the_optimum(name):
    report = verify_mdp(name, key=jax.random.key(1), **SAME)
    assert report.passed, str(report)
    ways = report.to_dataframe()["trained by"]
    assert ways.value_counts().to_dict() == {"gradient": 4, "natural gradient": 2, "network": 4}
    kept = [check.name for check in report.checks if "ratio" in check.name]
    assert kept == (["goals keep the ratio 0.8:0.2"] if name == "two-goals" else [])


@pytest.mark.slow
def test_too_little_training_does_not_pass():
    report = verify_mdp("five-arms", key=jax.random.key(1), learning_rate=1e-4, **SAME)
    failed = _failed(report)
    assert "a thousandth of the reference's gap is left at most" in failed
    assert "trained policies are path consistent" in failed
    # Natural gradients were there, and what is left is still what the identity says.
    assert "16 natural steps of 1/β are there" not in failed
    assert "J* − J is β times the KL from the optimum" not in failed


@pytest.mark.slow
def test_a_wrong_target_and_goals_that_pay_differently_are_seen(monkeypatch):
    task = tasks.load_mdp("two-goals")
    wrong = lambda mdp, log_ref, beta: solve_mdp(mdp, log_ref, beta / 2)  # noqa: E731
    monkeypatch.setattr("kltarget.verification._of_mdps.solve_mdp", wrong)
    failed = _failed(verify_mdp(task, key=jax.random.key(0), **SAME))
    assert "J* − J is β times the KL from the optimum" in failed
    assert "actions apart by less than 0.001" in failed
    monkeypatch.undo()
    # Twice the reward of the right goal: nothing is said of a ratio.
    reward = task.mdp.reward.at[:, task.labels.index("right")].multiply(2)
    uneven = dataclasses.replace(task, mdp=dataclasses.replace(task.mdp, reward=reward))
    report = verify_mdp(uneven, key=jax.random.key(0), **SAME)
    assert not any("ratio" in check.name for check in report.checks)
    assert report.passed, str(report)


@pytest.mark.slow
def test_a_sparse_process_and_one_that_lacks_an_action_are_taken():
    chances = np.random.default_rng(0).dirichlet(np.ones(2), size=(3, 3))
    after = np.array([[[0, 1]] * 3, [[1, 2]] * 3, [[2, 0]] * 3])
    reward = np.array([[0.0, 0.5, -np.inf], [1.0, 0.2, 0.3], [0.0, 0.0, 0.0]])
    task = tasks.MDPTask(
        name="mine",
        description="three states",
        mdp=MDP(chances, reward, 0.9, successors=after),
        log_ref=np.log(np.full((3, 3), 1 / 3)),
        labels=("a", "b", "c"),
        states=("x", "y", "z"),
    )
    report = verify_mdp(task, key=jax.random.key(0), beta=[0.5], num_seeds=1, num_steps=400)
    assert report.passed, str(report)


def test_processes_have_a_verifier():
    assert all(verifier_of(name) is verify_mdp for name in tasks.mdp_names())
    with pytest.raises(ValueError, match="num_seeds must be"):
        verify_mdp("five-arms", key=jax.random.key(0), num_seeds=0)


@pytest.mark.slow
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_reference_that_is_the_optimum_leaves_nothing_to_be_gained(reward):
    mdp = MDP(np.full((2, 2, 2), 0.5), np.full((2, 2), reward), 0.9)
    log_ref = np.log([[0.7, 0.3], [0.2, 0.8]])
    task = tasks.MDPTask("there", "already", mdp, log_ref, ("a", "b"), ("s", "t"))
    report = verify_mdp(task, key=jax.random.key(0), num_seeds=2)
    assert report.passed, str(report)
    assert "nan" not in str(report)
