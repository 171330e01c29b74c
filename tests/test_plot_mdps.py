"""Figures of decision processes and of verifications on them show the numbers they are of."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from matplotlib.quiver import Quiver

from kltarget import plot, tasks
from kltarget.targets.mdps import solve_mdp
from kltarget.training import bandit_play
from kltarget.verification import SpaceReport


@pytest.mark.broad
def test_arrows_are_as_long_as_moves_are_likely():
    task = tasks.load_mdp("two-goals")
    ax = plot.grid_policy(task, 0.05)
    policy = np.exp(np.asarray(solve_mdp(task.mdp, task.log_ref, 0.05).log_policy, float))
    arrows = [x for x in ax.collections if isinstance(x, Quiver)]
    assert len(arrows) == 4
    # The start is the last row of the middle.
    start = int(np.asarray(task.mdp.start).argmax())
    for k, (name, sign) in enumerate((("left", -1), ("right", 1)), start=2):
        at = np.flatnonzero((task.places[start][::-1] == arrows[k].XY).all(-1))
        likely = policy[start, task.labels.index(name)]
        assert arrows[k].U[at[0]] == pytest.approx(sign * 0.45 * likely, rel=1e-4)
    assert ax.get_title(loc="left") == "β = 0.05"
    # The best value without a regulariser, by long value iteration.
    moves, reward = (np.asarray(x, float) for x in (task.mdp.transition, task.mdp.reward))
    best = np.zeros(len(moves))
    for _ in range(400):
        best = (reward + float(task.mdp.discount) * moves @ best).max(-1)
    assert ax.images[0].get_clim() == pytest.approx((0.0, best.max()), rel=1e-5)
    with pytest.raises(ValueError, match="'river-swim' has no places"):
        plot.grid_policy("river-swim", 0.1)
    ends = dataclasses.replace(task, mdp=dataclasses.replace(task.mdp, horizon=8))
    with pytest.raises(ValueError, match="'two-goals' has a horizon"):
        plot.grid_policy(ends, 0.1)


@pytest.mark.broad
def test_goals_that_pay_differently_change_places():
    task = tasks.load_mdp("two-goals")
    reward = task.mdp.reward.at[:, task.labels.index("right")].multiply(1.1)
    uneven = dataclasses.replace(task, mdp=dataclasses.replace(task.mdp, reward=reward))
    beta = np.array([0.003, 0.03, 3.0])
    ax = plot.goal_masses(uneven, beta=beta)
    lines = {line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.lines}
    np.testing.assert_allclose(lines["goal A"] + lines["goal B"], 1, atol=1e-5)
    assert lines["goal B"][0] > 0.99
    assert lines["goal B"][-1] == pytest.approx(0.2, abs=0.01)
    with pytest.raises(ValueError, match="'river-swim' has no goals"):
        plot.goal_masses("river-swim")


def test_a_report_of_runs_is_drawn_run_by_run():
    runs = tuple(
        {"trained by": way, "beta": beta, "seed": seed, "TV": tv}
        for way, tv in (("gradient", 1e-3), ("network", 0.02))
        for beta in (0.1, 1.0)
        for seed in (0, 1)
    )
    ax = plot.space_report(SpaceReport("two-goals", (), {}, runs, ()))
    assert [x.get_text() for x in ax.get_yticklabels()] == ["gradient", "network"]
    shown = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert list(shown) == ["β = 0.1", "β = 1"]
    np.testing.assert_allclose(shown["β = 1"], [1e-3, 1e-3, 0.02, 0.02])
    chain = ({"first law": "fixed", "beta": 0.1, "distance": 0.0},)
    ax = plot.space_report(SpaceReport("denoise", (), {}, chain, ()))
    assert ax.get_xlabel() == "distance from the target"
    nothing = SpaceReport("denoise", (), {}, ({"beta": 1.0},), ())
    with pytest.raises(ValueError, match="report has columns beta: one must be TV or distance"):
        plot.space_report(nothing)


@pytest.mark.broad
def test_regret_of_a_bandit_is_drawn_as_it_is():
    task = tasks.load_mdp("five-arms")
    reward, log_ref = np.asarray(task.mdp.reward[0]), task.log_ref[0].astype(np.float32)
    options = {"key": jax.random.key(0), "num_rounds": 128, "num_seeds": 3}
    learnt = bandit_play(reward, log_ref, 0.3, **options)
    ax = plot.regret(learnt)
    mean = np.asarray(learnt.regret, float).mean(0)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), mean, rtol=1e-5)
