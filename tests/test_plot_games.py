"""Figures of games show the numbers that they are of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kltarget import plot, tasks
from kltarget.targets.games import solve_game
from kltarget.training import GamePath, mirror_prox, optimistic_play


@pytest.mark.broad
def test_the_path_over_beta_is_that_of_the_equilibrium():
    task = tasks.load_game("penalty")
    beta = np.array([0.05, 0.5, 5.0])
    ax = plot.equilibrium_path(task, beta=beta, player="column")
    found = solve_game(task.game, task.log_ref, beta)
    for k, name in enumerate(task.labels[1]):
        line = next(x for x in ax.lines if x.get_label() == name)
        np.testing.assert_allclose(line.get_ydata(), found.column.probs[:, k], rtol=1e-6)
    with pytest.raises(ValueError, match="player must be"):
        plot.equilibrium_path("penalty", player="keeper")
    with pytest.raises(ValueError, match="state must be from 0 to 0, got 1"):
        plot.equilibrium_path("penalty", beta=beta, state=1)


@pytest.mark.slow
def test_the_path_of_a_markov_game_is_that_of_one_state():
    task, beta = tasks.load_game("duel"), np.array([0.05, 0.3, 2.0])
    ax = plot.equilibrium_path(task, beta=beta, player="column", state=2)
    found = solve_game(task.game, task.log_ref, beta)
    for k, name in enumerate(task.labels[1]):
        line = next(x for x in ax.lines if x.get_label() == name)
        np.testing.assert_allclose(line.get_ydata(), found.stages.column.probs[:, 0, 2, k])
    assert ax.get_title(loc="left") == "ahead"


@pytest.mark.broad
def test_rates_are_divergences_from_the_equilibrium():
    task = tasks.load_game("cycle")
    found = solve_game(task.game, task.log_ref, 1.0)
    path = mirror_prox(task.game, task.log_ref, 1.0, num_steps=3)
    ax = plot.game_rates({"steps": path}, found, step_size=2.0)
    line, bound = ax.lines[:2]
    p, q = np.exp(np.asarray(found.row.log_probs, float)), task.log_ref
    start = 2 * (p * (np.log(p) - q)).sum()
    assert line.get_ydata()[0] == pytest.approx(start, rel=1e-4)
    np.testing.assert_allclose(bound.get_ydata(), start * 3.0 ** -np.arange(4), rtol=1e-4)
    # What comes after a step at which all but rounding is gone is rounding too, and it is said.
    there, first = found.row.log_probs, path.log_row[0]
    rows = jnp.stack([first, there, first])
    lost = plot.game_rates({"steps": GamePath(rows, rows, path.gap[:3])}, found)
    assert np.isfinite(lost.lines[0].get_ydata()).tolist() == [True, False, False]
    (said,) = [x for x in lost.get_legend_handles_labels()[1] if x.startswith("not shown")]
    assert said.startswith("not shown: rounding, below")
    assert not any(x.startswith("not shown") for x in ax.get_legend_handles_labels()[1])
    with pytest.raises(ValueError, match="paths is empty"):
        plot.game_rates({}, found)
    wide = GamePath(path.log_row[:, None], path.log_column[:, None], path.gap[:, None])
    with pytest.raises(ValueError, match="'wide' has batch axes"):
        plot.game_rates({"wide": wide}, found)


@pytest.mark.broad
def test_regret_is_drawn_as_its_mean():
    task = tasks.load_game("penalty")
    options = {"key": jax.random.key(0), "num_seeds": 3}
    learnt = optimistic_play(task.game, task.log_ref, 0.5, num_rounds=128, **options)
    ax = plot.regret(learnt)
    np.testing.assert_allclose(
        ax.lines[0].get_ydata(), np.asarray(learnt.regret).mean(0), rtol=1e-5
    )
    short = optimistic_play(task.game, task.log_ref, 0.5, num_rounds=10, **options)
    with pytest.raises(ValueError, match="from 64 on"):
        plot.regret(short)
