"""Two policies that train against each other, beside the equilibrium that they never see."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kltarget.spaces import MarkovGame, MatrixGame, PreferenceGame
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
        num_steps=1500,
        key=jax.random.key(0),
        batch_size=64,
        num_seeds=8,
        optimizer=optax.adam,
    )
    star = solve_game(game, log_ref, 0.3).row.log_probs
    assert np.median(distance(run.log_row, star)) < 0.02
    assert float(jnp.median(run.gap[-1])) < 0.02 * float(run.gap[0].max())


def damped(payoff, refs, beta, rounds=500):
    """A stage game's policies by damped best answers, and its value, in NumPy."""
    mu, nu = (np.exp(x) for x in refs)
    for _ in range(rounds):
        answers = (refs[0] + payoff @ nu / beta, refs[1] - payoff.T @ mu / beta)
        best = [np.exp(x - np.logaddexp.reduce(x)) for x in answers]
        mu, nu = 0.9 * mu + 0.1 * best[0], 0.9 * nu + 0.1 * best[1]
    kls = [(p * (np.log(p) - q)).sum() for p, q in zip((mu, nu), refs, strict=True)]
    return mu, nu, mu @ payoff @ nu - beta * (kls[0] - kls[1])


@pytest.mark.slow
@pytest.mark.parametrize(("horizon", "discount"), [(3, 1.0), (None, 0.6)])
def test_play_of_markov_games_ends_at_stage_games_by_damped_answers(horizon, discount):
    rng = np.random.default_rng(4)
    transition, reward = rng.dirichlet(np.ones(3), (3, 2, 3)), rng.normal(size=(3, 2, 3))
    refs = tuple(np.log(rng.dirichlet(np.ones(n), 3)) for n in (2, 3))
    game, beta = MarkovGame(transition, reward, discount=discount, horizon=horizon), 1.0
    values, last = np.zeros(3), []
    for _ in range(horizon or 40):
        payoff = reward + discount * transition @ values
        stages = [damped(payoff[s], (refs[0][s], refs[1][s]), beta) for s in range(3)]
        values = np.array([stage[2] for stage in stages])
        last.insert(0, stages)
    options = {"num_steps": 2000, "key": jax.random.key(0), "num_seeds": 2}
    run = self_play(game, refs, [beta], learning_rate=0.5, **options)
    for k, policy in enumerate((run.log_row, run.log_column)):
        wanted = np.array([[stage[k] for stage in stages] for stages in last[: horizon or 1]])
        assert policy.shape == (2, 1, *(wanted.shape if horizon else wanted[0].shape))
        np.testing.assert_allclose(np.exp(policy[1, 0]), np.squeeze(wanted), atol=1e-3)
    assert run.gap.shape == (21, 2, 1)
    assert (np.asarray(run.gap[0]) > 0.05).all()
    assert np.abs(np.asarray(run.gap[-1])).max() < 1e-5


@pytest.mark.broad
def test_a_markov_game_of_one_step_is_a_matrix_game():
    chances, options = np.ones((1, 3, 4, 1)), {"learning_rate": 0.5, "num_steps": 40}
    flat = self_play(MatrixGame(PAYOFF), REFS, 0.4, **options)
    for game in (
        MarkovGame(chances, PAYOFF[None], horizon=1),
        MarkovGame(chances, PAYOFF[None], discount=0.0),
    ):
        run = self_play(game, REFS, 0.4, **options)
        np.testing.assert_allclose(run.log_row.reshape(3), flat.log_row[0], atol=1e-5)
        np.testing.assert_allclose(run.gap, flat.gap, atol=1e-6)


def test_samples_are_drawn_in_games_of_one_stage_alone():
    game = MarkovGame(np.ones((1, 3, 4, 1)), PAYOFF[None], horizon=1)
    options = {"learning_rate": 0.5, "num_steps": 1}
    with pytest.raises(ValueError, match="batch_size is for games of one stage"):
        self_play(game, REFS, 0.4, batch_size=8, key=jax.random.key(0), **options)
    with pytest.raises(ValueError, match="the row player has 2 states and the game 1"):
        self_play(game, (np.log(np.full((2, 3), 1 / 3)), REFS[1]), 0.4, **options)


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


def test_what_is_no_game_is_named():
    with pytest.raises(TypeError, match="a MatrixGame or a MarkovGame, got ndarray"):
        self_play(PAYOFF, REFS, 1.0, learning_rate=0.1, num_steps=2)
