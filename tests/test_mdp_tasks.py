"""The decision processes that come with the package are as described."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import kltarget as kt
from kltarget import tasks
from kltarget.spaces import MDP
from kltarget.targets.mdps import solve_mdp


@pytest.mark.parametrize("name", tasks.mdp_names())
def test_shipped_processes_are_as_described(name):
    task = tasks.load_mdp(name)
    assert task is tasks.load_mdp(name)
    assert task.name == name
    assert "\n" not in task.description
    assert task.log_ref.shape == (task.mdp.num_states, task.mdp.num_actions)
    assert len(task.labels) == task.mdp.num_actions
    assert len(task.states) == task.mdp.num_states
    assert task.mdp.reached().all()
    np.testing.assert_allclose(np.exp(task.log_ref).sum(-1), 1, rtol=1e-12)
    # Goals are never left and pay nothing more.
    for goal in task.goals:
        assert (np.asarray(task.mdp.transition)[goal, :, goal] == 1).all()
        assert (np.asarray(task.mdp.reward)[goal] == 0).all()


def test_an_unknown_name_lists_the_processes():
    with pytest.raises(ValueError, match="no decision process 'maze': choose one of two-goals"):
        tasks.load_mdp("maze")


def test_a_move_pays_where_it_reaches_a_goal():
    task = tasks.load_mdp("two-goals")
    beside = [i for i, place in enumerate(task.places) if tuple(place) == (0, 1)]
    reward = np.asarray(task.mdp.reward)
    assert reward[beside[0], task.labels.index("left")] == pytest.approx(0.9)
    assert (reward > 0).sum() == 4


@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL()])
@pytest.mark.broad
def test_goals_of_equal_reward_keep_the_ratio_of_the_reference(divergence):
    task = tasks.load_mdp("two-goals")
    beta = np.array([0.01, 0.1, 1.0], np.float32)
    target = solve_mdp(task.mdp, task.log_ref, beta, divergence).raise_if_failed()
    masses = task.goal_masses(target.log_policy)
    np.testing.assert_allclose(masses, np.tile([0.8, 0.2], (3, 1)), atol=1e-4)
    # Walked out, a hundred thousand steps by repeated squaring.
    for policy, mass in zip(np.exp(np.asarray(target.log_policy, float)), masses, strict=True):
        step = np.einsum("sa,sat->st", policy, np.asarray(task.mdp.transition, float))
        many = np.linalg.matrix_power(step, 2**17)
        ends = np.asarray(task.mdp.start, float) @ many
        # Rows of the policy sum to one up to its rounding, which so many steps add up.
        np.testing.assert_allclose(ends[list(task.goals)] / ends.sum(), mass, atol=1e-4)


@pytest.mark.broad
def test_the_swimmer_turns_round_and_the_bandit_is_a_tilt():
    swim = tasks.load_mdp("river-swim")
    low, high = solve_mdp(swim.mdp, swim.log_ref, np.array([0.05, 3.0])).log_policy
    assert (np.asarray(low).argmax(-1) == 1).all()
    assert (np.asarray(high)[:-1].argmax(-1) == 0).all()
    arms = tasks.load_mdp("five-arms")
    found = np.exp(np.asarray(solve_mdp(arms.mdp, arms.log_ref, 0.25).log_policy[0], float))
    tilted = np.exp(arms.log_ref[0] + np.asarray(arms.mdp.reward[0], float) / 0.25)
    np.testing.assert_allclose(found, tilted / tilted.sum(), rtol=2e-4)


def sparse_goals():
    """The grid world with the two states that each move may lead to."""
    task = tasks.load_mdp("two-goals")
    chances = np.asarray(task.mdp.transition)
    after = np.argsort(-chances, axis=-1)[..., :2]
    few = np.take_along_axis(chances, after, -1)
    mdp = MDP(few, task.mdp.reward, task.mdp.discount, task.mdp.start, after)
    return dataclasses.replace(task, mdp=mdp)


def test_masses_of_goals_are_of_processes_that_end():
    task = tasks.load_mdp("two-goals")
    sparse = sparse_goals()
    np.testing.assert_array_equal(sparse.mdp.dense_transition, task.mdp.transition)
    np.testing.assert_allclose(sparse.goal_masses(task.log_ref), [0.8, 0.2], rtol=1e-5)
    down = np.where(np.array(task.labels) == "down", 0.0, -np.inf) + np.zeros_like(task.log_ref)
    with pytest.raises(ValueError, match="can go on for ever"):
        task.goal_masses(down)
    ends = dataclasses.replace(task, mdp=dataclasses.replace(task.mdp, horizon=8))
    with pytest.raises(ValueError, match="'two-goals' has a horizon: masses are of processes"):
        ends.goal_masses(task.log_ref)
    # Downwards is lacking, so that the reference's share of it goes to the others.
    reward = np.asarray(task.mdp.reward).copy()
    reward[:, task.labels.index("down")] = -np.inf
    lacking = dataclasses.replace(task, mdp=dataclasses.replace(task.mdp, reward=reward))
    np.testing.assert_allclose(lacking.goal_masses(task.log_ref), [0.8, 0.2], rtol=1e-5)
