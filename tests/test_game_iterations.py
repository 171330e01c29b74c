"""Iterations towards equilibria: their rates, and where they come to rest."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import root

from kltarget.spaces import MatrixGame, PreferenceGame
from kltarget.targets.games import solve_game
from kltarget.training import mirror_prox, nash_md

CYCLE = np.array(
    [[0.5, 0.9, 0.2, 0.6], [0.1, 0.5, 0.8, 0.7], [0.8, 0.2, 0.5, 0.3], [0.4, 0.3, 0.7, 0.5]]
)
LOG_REF = np.log([0.4, 0.3, 0.2, 0.1])


def eps():
    return float(jnp.finfo(jnp.result_type(float)).eps)


def divergence(log_p, log_q):
    log_p, log_q = np.asarray(log_p, float), np.asarray(log_q, float)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize(
    ("beta", "steps", "exact"),
    [
        (0.1, [0, 1, 5, 20], [0.0481750352288, 0.029891320751, 0.00457712699047, 3.69270716736e-6]),
        (1.0, [0, 1, 5], [0.00204181352801, 2.10757149719e-4, 2.44955882877e-8]),
    ],
)
def test_mirror_prox_goes_the_way_found_at_50_digits(beta, steps, exact):
    path = mirror_prox(PreferenceGame(CYCLE), LOG_REF, beta, num_steps=20)
    # The equilibrium as the iteration itself has it in the end, to all digits.
    last = solve_game(PreferenceGame(CYCLE), LOG_REF, beta).row.log_probs
    kl = divergence(last, path.log_row)
    np.testing.assert_allclose(kl[steps], exact, rtol=max(1e-6, 1e4 * eps()), atol=8 * eps())
    bound = kl[0] * (1 + 2 * beta) ** -np.arange(21.0)
    assert (kl <= bound * (1 + 1e-6) + 8 * eps()).all()


@pytest.mark.broad
def test_mirror_prox_keeps_its_bound_in_random_matrix_games():
    """Claim: Mirror Prox converges linearly to the regularised equilibrium (arXiv 2505.19731).

    Holds: each step divides the KL by 1 + β/L, L half the payoff's range.
    """
    rng = np.random.default_rng(0)
    payoff = rng.normal(size=(50, 4, 3))
    refs = np.log(rng.dirichlet(np.ones(4), 50)), np.log(rng.dirichlet(np.ones(3), 50))
    beta = rng.uniform(0.2, 2.0, size=50)
    path = mirror_prox(MatrixGame(payoff), refs, beta, num_steps=60)
    found = solve_game(MatrixGame(payoff), refs, beta)
    kl = divergence(found.row.log_probs, path.log_row)
    kl += divergence(found.column.log_probs, path.log_column)
    rate = 1 + beta / (np.ptp(payoff, axis=(1, 2)) / 2)
    bound = kl[0] * rate ** -np.arange(61.0)[:, None]
    assert (kl <= bound * (1 + 1e-5) + 16 * eps()).all()
    gaps = np.asarray(found.gap(path.log_row[3], path.log_column[3]))
    np.testing.assert_allclose(path.gap[3], gaps, rtol=1e-3, atol=64 * eps())


def test_nash_md_rests_where_its_opponent_is_the_mixture():
    """Claim: Nash-MD converges to the regularised Nash policy (arXiv 2312.00886).

    Holds with a correction: its steps η must shrink; at a fixed one it rests at a KL of the
    order of η².
    """
    beta, step = 0.5, np.array([0.4, 0.1])
    path = nash_md(PreferenceGame(CYCLE), LOG_REF, beta, step_size=step, num_steps=1000)
    star = np.asarray(solve_game(PreferenceGame(CYCLE), LOG_REF, beta).row.log_probs, float)
    floors = divergence(star, path.log_row[-1])
    for i, eta in enumerate(step):

        def rest(log_pi, eta=eta):
            mixed = np.exp((1 - eta * beta) * log_pi + eta * beta * LOG_REF)
            x = LOG_REF + CYCLE @ (mixed / mixed.sum()) / beta
            return log_pi - x + np.logaddexp.reduce(x)

        exact = root(rest, LOG_REF, tol=1e-13).x
        np.testing.assert_allclose(path.log_row[-1, i], exact, atol=32 * eps(), rtol=32 * eps())
    # The bias is of the order of the step, its divergence of the square.
    assert 10 < floors[0] / floors[1] < 24


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mirror_prox(PreferenceGame(CYCLE), LOG_REF, 0.0, num_steps=1), "beta must be"),
        (lambda: mirror_prox(PreferenceGame(CYCLE), LOG_REF[:3], 1.0, num_steps=1), "row player"),
        (
            lambda: nash_md(PreferenceGame(CYCLE), LOG_REF, 1.0, step_size=2.0, num_steps=1),
            "step_size times beta must be at most 1",
        ),
        (
            lambda: nash_md(PreferenceGame(CYCLE), LOG_REF, 1.0, step_size=-2.0, num_steps=1),
            "step_size must be above 0",
        ),
    ],
)
def test_bad_input_names_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nash_md_is_of_preferences():
    with pytest.raises(TypeError, match="PreferenceGame"):
        nash_md(MatrixGame(CYCLE), LOG_REF, 1.0, step_size=0.1, num_steps=1)
