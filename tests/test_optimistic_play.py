"""Learning games from noisy payoffs: how regret grows, over many seeds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kltarget.spaces import MarkovGame, MatrixGame, PreferenceGame
from kltarget.targets.games import solve_game
from kltarget.training import optimistic_play

PAYOFF = np.array([[0.6, -0.2, 0.1, 0.4], [-0.5, 0.3, 0.7, -0.1], [0.2, 0.5, -0.6, 0.0]])
REFS = (np.log([0.5, 0.3, 0.2]), np.log(np.full(4, 0.25)))
HALF = np.log([0.5, 0.5])


def markov_game(horizon=3):
    rng = np.random.default_rng(3)
    chances = rng.dirichlet(np.ones(3), size=(3, 2, 2))
    return MarkovGame(chances, rng.uniform(-1, 1, size=(3, 2, 2)), horizon=horizon)


def growth(regret):
    """Two equal increments per factor of 4 where growth is logarithmic; √T doubles them.

    In standard errors over the seeds: of the change of the increment, and of what is missing to
    its doubling.
    """
    rounds = regret.shape[1]
    at = [np.asarray(regret, float)[:, rounds // 4**i - 1] for i in (2, 1, 0)]
    first, second = at[1] - at[0], at[2] - at[1]

    def errors(x):
        return x.mean() / (x.std(ddof=1) / np.sqrt(len(x)))

    assert first.mean() > 0
    return errors(second - first), errors(second - 2 * first)


@pytest.mark.slow
def test_regret_in_a_matrix_game_grows_like_the_logarithm():
    learnt = optimistic_play(
        MatrixGame(PAYOFF), REFS, 0.3, key=jax.random.key(0), num_rounds=2048, num_seeds=128
    )
    change, short_of_root = growth(learnt.regret)
    assert abs(change) < 4
    assert short_of_root < -6


@pytest.mark.slow
def test_regret_in_a_markov_game_grows_like_the_logarithm():
    """Claim: optimistic play of KL-regularised zero-sum Markov games has a regret that grows like
    log T (arXiv 2510.13060).

    Holds.
    """
    learnt = optimistic_play(
        markov_game(), HALF, 0.5, key=jax.random.key(0), num_rounds=2048, num_seeds=32
    )
    change, short_of_root = growth(learnt.regret)
    assert abs(change) < 4
    assert short_of_root < -6


def test_a_root_would_be_told_from_a_logarithm():
    """The same measure of sums that do grow like √T."""
    rng = np.random.default_rng(0)
    steps = rng.exponential(size=(128, 4096)) / np.sqrt(np.arange(1.0, 4097))
    change, short_of_root = growth(np.cumsum(steps, 1))
    assert change > 6
    assert abs(short_of_root) < 4


@pytest.mark.broad
def test_the_first_loss_is_the_gap_of_the_references():
    """Nothing is known in the first round, so that the policies are the references."""
    learnt = optimistic_play(MatrixGame(PAYOFF), REFS, 0.5, key=jax.random.key(0), num_rounds=2)
    assert float(learnt.regret[0, 0]) == pytest.approx(0.00798279495804, rel=1e-4)
    assert float(learnt.visits.sum()) == 4


@pytest.mark.slow
def test_losses_in_a_markov_game_are_gaps_of_its_equilibrium():
    game = markov_game()
    learnt = optimistic_play(game, HALF, 0.5, key=jax.random.key(1), num_rounds=300, num_seeds=2)
    found = solve_game(game, HALF, 0.5)
    last = np.diff(np.asarray(learnt.regret, float), axis=1)[:, -1]
    for k in range(2):
        gap = found.gap(learnt.log_row[k], learnt.log_column[k])[0]
        assert float(gap) == pytest.approx(last[k], abs=2e-4)
    # Two episodes a round, each of three steps.
    assert float(learnt.visits[0].sum()) == 2 * 3 * 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rounds": 0}, "num_rounds must be"),
        ({"num_rounds": 2, "bonus": -1.0}, "bonus must be 0 or more"),
        ({"num_rounds": 2, "noise": np.inf}, "noise must be 0 or more and finite"),
        ({"num_rounds": 2, "beta": -1.0}, "beta must be above 0"),
        ({"num_rounds": 2, "beta": np.ones(2)}, "one beta"),
    ],
)
def test_bad_input_names_what_is_wrong(options, message):
    beta = options.pop("beta", 1.0)
    with pytest.raises(ValueError, match=message):
        optimistic_play(MatrixGame(PAYOFF), REFS, beta, key=jax.random.key(0), **options)


def test_games_without_end_have_no_episodes():
    game = MarkovGame(np.ones((1, 2, 2, 1)), np.zeros((1, 2, 2)), discount=0.5)
    with pytest.raises(ValueError, match="needs one, MarkovGame"):
        optimistic_play(game, HALF, 1.0, key=jax.random.key(0), num_rounds=1)
    many = PreferenceGame(jnp.full((2, 2, 2), 0.5))
    with pytest.raises(ValueError, match="batch axes"):
        optimistic_play(many, HALF, 1.0, key=jax.random.key(0), num_rounds=1)
