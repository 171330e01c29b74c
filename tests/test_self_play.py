"""Two policies that train against each other, beside the equilibrium that they never see."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kltarget.spaces import MatrixGame, PreferenceGame
from kltarget.targets.games import solve_game
from kltarget.training import self_play

PAYOFF = np.array([[0.6, -0.2, 0.1, 0.4], [-0.5, 0.3, 0.7, -0.1], [0.2, 0.5, -0.6, 0.0]])
REFS = (np.log([0.5, 0.3, 0.2]), np.log(np.full(4, 0.25)))


def distance(log_p, log_q):
    return np.abs(np.exp(np.asarray(log_p)) - np.exp(np.asarray(log_q))).sum(-1) / 2


@pytest.mark.broad
def test_exact_gradients_reach_the_equilibrium():
    beta = np.array([0.1, 1.0])
    run = self_play(
        MatrixGame(PAYOFF),
        REFS,
        beta,
        learning_rate=1.0,
        num_steps=4000,
        key=jax.random.key(0),
        num_seeds=3,
    )
    found = solve_game(MatrixGame(PAYOFF), REFS, beta)
    assert run.log_row.shape == (3, 2, 3)
    assert distance(run.log_row, found.row.log_probs).max() < 1e-4
    assert distance(run.log_column, found.column.log_probs).max() < 1e-4
    assert run.gap.shape == (21, 3, 2)
    exact = found.gap(run.log_row[1, 0], run.log_column[1, 0])
    np.testing.assert_allclose(run.gap[-1, 1, 0], exact[0], atol=1e-6)
    np.testing.assert_allclose(run.gap[0, 0], found.gap(*REFS), rtol=1e-4, atol=1e-6)


@pytest.mark.broad
def test_sampled_gradients_are_the_exact_ones_on_average():
    options = {"learning_rate": 0.01, "num_steps": 1, "key": jax.random.key(2), "num_seeds": 4000}
    exact = self_play(MatrixGame(PAYOFF), REFS, 0.3, **options)
    drawn = self_play(MatrixGame(PAYOFF), REFS, 0.3, batch_size=8, **options)
    for name in ("log_row", "log_column"):
        ends = [np.asarray(getattr(x, name), float) for x in (drawn, exact)]
        apart = ends[0] - ends[1]
        error = apart.std(0) / np.sqrt(len(apart))
        assert (error > 0).all()
        assert (np.abs(apart.mean(0)) < 5 * error).all()


@pytest.mark.slow
def test_sampled_gradients_come_near():
    game = PreferenceGame([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
    log_ref = np.log([0.6, 0.3, 0.1])
    run = self_play(
        game,
        log_ref,
        0.3,
        learning_rate=0.01,
        num_steps=3000,
        key=jax.random.key(0),
        batch_size=64,
        num_seeds=8,
        optimizer=optax.adam,
    )
    star = solve_game(game, log_ref, 0.3).row.log_probs
    assert np.median(distance(run.log_row, star)) < 0.02
    assert float(jnp.median(run.gap[-1])) < 0.02 * float(run.gap[0].max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4}, "key is needed"),
        ({"num_seeds": 2}, "key is needed"),
        ({"batch_size": 1, "key": jax.random.key(0)}, "batch_size must be an integer of 2"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ({"learning_rate": np.inf}, "learning_rate must be a number above 0"),
        ({"learning_rate": np.ones(2)}, "learning_rate must be a number above 0"),
        ({"beta": 0.0}, "beta must be above 0"),
    ],
)
def test_bad_input_names_what_is_wrong(options, message):
    usual = {"beta": 1.0, "learning_rate": 0.1, "num_steps": 2, **options}
    with pytest.raises(ValueError, match=message):
        self_play(MatrixGame(PAYOFF), REFS, usual.pop("beta"), **usual)
