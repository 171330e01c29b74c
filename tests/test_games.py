"""Equilibria of regularised games, against plain recursions, linear programs and 50 digits."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.optimize import linprog

import kltarget as kt
from kltarget import tasks
from kltarget.spaces import MarkovGame, MatrixGame, PreferenceGame
from kltarget.targets.games import equilibrium_flips, solve_game

CYCLE = np.array(
    [[0.5, 0.9, 0.2, 0.6], [0.1, 0.5, 0.8, 0.7], [0.8, 0.2, 0.5, 0.3], [0.4, 0.3, 0.7, 0.5]]
)
LOG_REF = np.log([0.4, 0.3, 0.2, 0.1])
PAYOFF = np.array([[0.6, -0.2, 0.1, 0.4], [-0.5, 0.3, 0.7, -0.1], [0.2, 0.5, -0.6, 0.0]])
REFS = (np.log([0.5, 0.3, 0.2]), np.log(np.full(4, 0.25)))


def eps():
    return float(jnp.finfo(jnp.result_type(float)).eps)


def wide():
    if not jax.config.jax_enable_x64:
        pytest.skip("needs 64-bit floats")


def gibbs(log_ref, x):
    y = log_ref + x
    return np.exp(y - np.logaddexp.reduce(y, axis=-1, keepdims=True))


def iterated(payoff, log_mu, log_nu, beta, rounds=20_000):
    """Best answers, averaged in logarithms with a step that is small enough to converge.

    Of games ``[..., A, B]`` and their β ``[...]``.
    """
    beta = np.asarray(beta)[..., None]
    u, v = (0.0 * (payoff.sum(axis) + beta) for axis in (-1, -2))
    for _ in range(rounds):
        mu, nu = gibbs(log_mu, u), gibbs(log_nu, v)
        u += 0.5 * np.minimum(beta, 1) * ((payoff @ nu[..., None])[..., 0] / beta - u)
        v += 0.5 * np.minimum(beta, 1) * (-(mu[..., None, :] @ payoff)[..., 0, :] / beta - v)
    return gibbs(log_mu, u), gibbs(log_nu, v)


@pytest.mark.parametrize(
    ("beta", "policy", "of_ref"),
    [
        (0.05, [0.353157815416, 0.213311576149, 0.344821485759, 0.0887091226763], 0.0335718841486),
        (0.1, [0.395344136191, 0.199633873802, 0.315860112772, 0.0891618772344], 0.0195743675338),
        (0.5, [0.44024833489, 0.251115002433, 0.21761745582, 0.0910192068571], 0.00422458645336),
    ],
)
def test_games_of_preferences_have_the_policy_found_at_50_digits(beta, policy, of_ref):
    found = solve_game(PreferenceGame(CYCLE), LOG_REF, beta)
    np.testing.assert_allclose(found.row.probs, policy, rtol=max(1e-11, 64 * eps()))
    np.testing.assert_allclose(found.value, 0.5, rtol=8 * eps())
    tight = {"rtol": max(1e-10, 2e4 * eps())}
    np.testing.assert_allclose(found.exploitability(LOG_REF), of_ref, **tight)
    np.testing.assert_allclose(found.gap(LOG_REF), 2 * of_ref, **tight)
    assert 0 <= float(found.duality_gap) < 100 * eps()
    assert int(found.status) == 0


def test_a_zero_sum_game_has_the_saddle_point_found_at_50_digits():
    found = solve_game(MatrixGame(PAYOFF), REFS, 0.5)
    tight = {"rtol": max(1e-11, 64 * eps())}
    np.testing.assert_allclose(
        found.row.probs, [0.545783141411, 0.290239649538, 0.16397720905], **tight
    )
    np.testing.assert_allclose(
        found.column.probs,
        [0.22049789338, 0.300777684626, 0.246524075481, 0.232200346512],
        **tight,
    )
    np.testing.assert_allclose(found.value, 0.149532117857, **tight)
    np.testing.assert_allclose(found.gap(*REFS), 0.00798279495804, rtol=max(1e-9, 1e4 * eps()))
    # Both players' shares in the gap are what the other could gain against each.
    parts = found.exploitability(REFS[0]), found.exploitability(REFS[1], "column")
    np.testing.assert_allclose(sum(parts), found.gap(*REFS), rtol=1e4 * eps())


@pytest.mark.broad
def test_preferences_of_bradley_and_terry_are_not_the_target_of_their_rewards():
    """Claim: the regularised Nash policy of a preference game is another answer than the optimum
    of a reward model (arXiv 2312.00886).

    Holds.
    """
    log_ref, reward = np.log([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.1, 0.5, 1.0, 0.9, 0.3])
    found = solve_game(PreferenceGame.bradley_terry(reward), log_ref, 0.5)
    exact = [0.33455015757, 0.30393731475, 0.192806788935, 0.122719767102, 0.0459859716422]
    np.testing.assert_allclose(found.row.probs, exact, rtol=max(1e-11, 64 * eps()))
    target = kt.solve(kt.Objective(reward, log_ref, 0.5))
    assert float(jnp.abs(found.row.probs - target.probs).sum()) > 0.2


@pytest.mark.broad
def test_batches_of_random_games_equal_damped_iteration():
    rng = np.random.default_rng(0)
    payoff = rng.normal(size=(3, 1, 5, 4))
    beta = np.array([0.3, 1.0])
    refs = np.log(rng.dirichlet(np.ones(5))), np.log(rng.dirichlet(np.ones(4)))
    found = solve_game(MatrixGame(payoff), refs, beta)
    assert found.row.probs.shape == (3, 2, 5)
    mu, nu = iterated(payoff, *refs, beta)
    np.testing.assert_allclose(found.row.probs, mu, rtol=1e3 * eps())
    np.testing.assert_allclose(found.column.probs, nu, rtol=1e3 * eps())


def test_equal_rows_keep_their_reference_ratio():
    """Rock twice, under two names, and a reference that prefers one name 7 to 1."""
    game = np.array([[0.5, 0.5, 0.1, 0.9], [0.5, 0.5, 0.1, 0.9], [0.9, 0.9, 0.5, 0.2]])
    game = np.vstack([game, [0.1, 0.1, 0.8, 0.5]])
    log_ref = np.log([0.35, 0.05, 0.3, 0.3])
    found = solve_game(PreferenceGame(game), log_ref, np.array([0.01, 0.1, 1.0]))
    ratio = found.row.log_probs[:, 0] - found.row.log_probs[:, 1]
    np.testing.assert_allclose(ratio, np.log(7), rtol=64 * eps())


@pytest.mark.broad
@pytest.mark.parametrize("shape", [(5, 4), (2, 2), (12, 9)])
def test_small_beta_is_found_and_near_the_linear_program(shape):
    rng = np.random.default_rng(sum(shape))
    payoff = rng.uniform(size=(100, *shape))
    refs = tuple(np.log(rng.dirichlet(np.ones(n), size=100)) for n in shape)
    beta = 1e-3
    found = solve_game(MatrixGame(payoff), refs, beta)
    assert not np.asarray(found.status).any()
    assert float(found.duality_gap.max()) < 1e3 * eps()
    for i in range(100):
        # max v with μᵀA ≥ v
        size = shape[0]
        upper = np.hstack([-payoff[i].T, np.ones((shape[1], 1))])
        total = np.append(np.ones(size), 0.0)[None]
        bounds = [(0, 1)] * size + [(None, None)]
        goal = np.append(np.zeros(size), -1.0)
        exact = -linprog(goal, upper, np.zeros(shape[1]), total, [1.0], bounds).fun
        # Neither regulariser is worth more than β log(1/least mass).
        slack = beta * max(-x[i].min() for x in refs)
        assert abs(float(found.value[i]) - exact) <= slack + 16 * eps()


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1e-3, 1e-2, 1.0])
def test_policies_equal_the_fixed_point_at_50_digits(beta):
    rng = np.random.default_rng(7)
    payoff, refs = rng.normal(size=(4, 3)), [np.log(rng.dirichlet(np.ones(n))) for n in (4, 3)]
    dtype = jnp.result_type(float)
    payoff, refs = payoff.astype(dtype), tuple(x.astype(dtype) for x in refs)
    found = solve_game(MatrixGame(payoff), refs, beta)
    with mpmath.workdps(50):
        table = mpmath.matrix(payoff.astype(float).tolist())
        logs = [list(map(mpmath.mpf, x.astype(float))) for x in refs]
        b = mpmath.mpf(float(np.asarray(beta, dtype)))

        def soft(z):
            top = max(z)
            w = [mpmath.exp(x - top) for x in z]
            return [x / sum(w) for x in w]

        def equations(*z):
            z1, z2 = z[:4], z[4:]
            mu = soft([a + x for a, x in zip(logs[0], z1, strict=True)])
            nu = soft([a + x for a, x in zip(logs[1], z2, strict=True)])
            up, down = table * mpmath.matrix(nu) / b, table.T * mpmath.matrix(mu) / b
            return [x - y for x, y in zip(z1, up, strict=True)] + [
                x + y for x, y in zip(z2, down, strict=True)
            ]

        nu, mu = (np.asarray(x.probs, float) for x in (found.column, found.row))
        near = [*(payoff.astype(float) @ nu / float(b)), *(-payoff.T.astype(float) @ mu / float(b))]
        root = mpmath.findroot(equations, near, tol=1e-40, maxsteps=100, verify=False)
        exact = [
            np.array([float(mpmath.log(x)) for x in soft([a + root[i + k] for i, a in own])])
            for k, own in ((0, list(enumerate(logs[0]))), (4, list(enumerate(logs[1]))))
        ]
    for target, log_probs in zip((found.row, found.column), exact, strict=True):
        # Rounding of the payoffs, by whose differences over β the logarithms go.
        bar = 64 * eps() * (1 + np.abs(log_probs)) + 8 * eps() / beta * (log_probs < -3)
        assert (np.abs(np.asarray(target.log_probs, float) - log_probs) <= bar).all()


@pytest.mark.broad
@pytest.mark.parametrize("divergence", [kt.ForwardKL(), kt.ChiSquared(), kt.JensenShannon()])
def test_of_any_divergence_each_answers_the_other_best(divergence):
    beta = 0.3
    found = solve_game(MatrixGame(PAYOFF), REFS, beta, divergence)
    mu, nu = np.asarray(found.row.probs), np.asarray(found.column.probs)
    for faced, log_ref, probs in ((PAYOFF @ nu, REFS[0], mu), (-PAYOFF.T @ mu, REFS[1], nu)):
        best = kt.solve(kt.Objective(faced, log_ref, beta, divergence)).probs
        np.testing.assert_allclose(probs, best, rtol=1e3 * eps())
    assert 0 <= float(found.duality_gap) < 100 * eps()


@pytest.mark.broad
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL()])
def test_derivatives_are_central_differences(divergence):
    wide()

    def numbers(payoff, beta, rows, columns):
        refs = kt.normalize(rows), kt.normalize(columns)
        found = solve_game(MatrixGame(payoff), refs, beta, divergence)
        return jnp.concatenate([found.row.log_probs, found.column.log_probs, found.value[None]])

    rng = np.random.default_rng(1)
    at = (jnp.asarray(PAYOFF), jnp.asarray(0.3), *map(jnp.asarray, REFS))
    way = tuple(jnp.asarray(rng.normal(size=x.shape)) for x in at)
    step = 1e-5
    ahead, behind = ([x + s * d for x, d in zip(at, way, strict=True)] for s in (step, -step))
    differences = (numbers(*ahead) - numbers(*behind)) / (2 * step)
    _, forward = jax.jvp(numbers, at, way)
    np.testing.assert_allclose(forward, differences, rtol=1e-7, atol=1e-8)
    weights = jnp.asarray(rng.normal(size=8))
    reverse = jax.grad(lambda *x: weights @ numbers(*x), argnums=(0, 1, 2, 3))(*at)
    along = sum((a * b).sum() for a, b in zip(reverse, way, strict=True))
    np.testing.assert_allclose(along, weights @ differences, rtol=1e-7)


@pytest.mark.broad
def test_actions_without_reference_are_not_played_and_keep_derivatives_finite():
    log_ref = np.array([np.log(0.7), -np.inf, np.log(0.3)])

    def policy(payoff):
        return solve_game(MatrixGame(payoff), (log_ref, REFS[1]), 0.2).row.log_probs

    found = np.asarray(policy(PAYOFF))
    without = solve_game(MatrixGame(PAYOFF[[0, 2]]), (log_ref[[0, 2]], REFS[1]), 0.2)
    assert found[1] == -np.inf
    np.testing.assert_allclose(found[[0, 2]], without.row.log_probs, rtol=64 * eps())
    gradient = jax.grad(lambda x: policy(x)[0])(jnp.asarray(PAYOFF, jnp.result_type(float)))
    assert jnp.isfinite(gradient).all()
    assert (np.asarray(gradient[1]) == 0).all()


def random_markov_game(horizon=None, discount=0.9):
    rng = np.random.default_rng(3)
    transition = rng.dirichlet(np.ones(3), size=(3, 2, 2))
    reward = rng.normal(size=(3, 2, 2))
    refs = tuple(np.log(rng.dirichlet(np.ones(2), size=3)) for _ in range(2))
    return MarkovGame(transition, reward, discount=discount, horizon=horizon), refs


def recursion(game, refs, beta, steps):
    """Stage games by damped iteration, in NumPy: values and the first step's policies."""
    transition, reward = (np.asarray(x, float) for x in (game.transition, game.reward))
    values = np.zeros(3)
    for _ in range(steps):
        payoff = reward + float(game.discount) * transition @ values
        policies = mu, nu = iterated(payoff, *refs, beta, rounds=400)
        kls = [(p * (np.log(p) - q)).sum(-1) for p, q in zip(policies, refs, strict=True)]
        values = np.einsum("sa,sab,sb->s", mu, payoff, nu) - beta * (kls[0] - kls[1])
    return values, policies


@pytest.mark.slow
def test_markov_games_with_a_horizon_equal_a_recursion():
    game, refs = random_markov_game(horizon=4)
    found = solve_game(game, refs, np.array([0.5, 1.0]))
    assert found.stages.row.probs.shape == (2, 4, 3, 2)
    for i, beta in enumerate((0.5, 1.0)):
        values, policies = recursion(game, refs, beta, 4)
        np.testing.assert_allclose(found.value[i], values, rtol=1e3 * eps())
        played = (x.probs[i, 0] for x in (found.stages.row, found.stages.column))
        for policy, exact in zip(played, policies, strict=True):
            np.testing.assert_allclose(policy, exact, rtol=1e3 * eps())
    assert float(jnp.abs(found.duality_gap).max()) < 100 * eps()
    even = jnp.full_like(found.stages.row.log_probs, jnp.log(0.5))
    assert float(found.gap(even, even).min()) > 1e-3


@pytest.mark.slow
def test_markov_games_without_end_equal_a_long_recursion():
    game, refs = random_markov_game(discount=0.7)
    found = solve_game(game, refs, 0.5)
    values, _ = recursion(game, refs, 0.5, 60)
    np.testing.assert_allclose(found.value, values, rtol=max(1e-8, 1e3 * eps()))
    assert int(found.status) == 0
    assert float(jnp.abs(found.duality_gap).max()) < 200 * eps()


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [None, 3])
def test_derivatives_of_markov_games_are_central_differences(horizon):
    wide()
    game, refs = random_markov_game(horizon=horizon)

    way = np.random.default_rng(5).normal(size=game.reward.shape)

    @jax.jit
    def slopes(reward, beta):
        def value(reward, beta):
            changed = MarkovGame(game.transition, reward, discount=0.9, horizon=horizon)
            found = solve_game(changed, refs, beta)
            return found.value.sum() + found.stages.row.log_probs.sum()

        # Forwards and backwards through one solution.
        here, forwards = jax.linearize(value, reward, beta)
        gradient, _ = jax.linear_transpose(forwards, reward, beta)(jnp.ones(()))
        along = forwards(jnp.asarray(way), jnp.ones(())), forwards(jnp.asarray(way), jnp.zeros(()))
        return here, along, gradient

    step, reward = 1e-5, np.asarray(game.reward)
    _, (along, only), gradient = slopes(reward, 0.5)
    pairs = [float(slopes(reward + s * way, 0.5 + s)[0]) for s in (step, -step)]
    np.testing.assert_allclose(along, (pairs[0] - pairs[1]) / (2 * step), rtol=1e-6)
    np.testing.assert_allclose((np.asarray(gradient) * way).sum(), only, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PreferenceGame(np.full((2, 3), 0.5)), "as many rows as columns"),
        (lambda: PreferenceGame([[0.5, 0.9], [0.2, 0.5]]), r"got 1.1 at index \(0, 1\)"),
        (lambda: PreferenceGame([[0.5, 1.5], [-0.5, 0.5]]), r"from 0 to 1, got 1.5"),
        (lambda: MatrixGame([[1.0, np.inf]]), r"payoff must be finite.*at index \(0, 1\)"),
        (lambda: MatrixGame([1.0, 2.0]), "rows and columns"),
        (lambda: MarkovGame(np.full((1, 1, 1, 1), 0.9), [[[0.0]]], horizon=1), "sums to 0.9"),
        (lambda: MarkovGame(np.ones((1, 1, 1, 1)), [[[0.0]]]), "discount must be below 1"),
        (lambda: MarkovGame(np.ones((1, 1, 1, 1)), [[0.0]], horizon=1), "reward has shape"),
        (lambda: MarkovGame(np.ones((2, 1, 1, 1)), [[[0.0]]], horizon=1), "next states"),
        (
            lambda: MarkovGame(np.ones((2, 1, 1, 1, 1)), np.ones((3, 1, 1, 1)), horizon=1),
            r"batch axes of transition \(2,\) and of reward \(3,\)",
        ),
        (lambda: solve_game(MatrixGame(PAYOFF), LOG_REF, 1.0), "of the row player has shape"),
        (lambda: solve_game(MatrixGame(PAYOFF), REFS, 0.0), "beta must be above 0"),
        (lambda: solve_game(PreferenceGame(CYCLE), (LOG_REF, LOG_REF), 1.0), "share one reference"),
        (lambda: solve_game(PreferenceGame(CYCLE), np.exp(LOG_REF), 1.0), "log_ref is not norm"),
        (
            lambda: solve_game(PreferenceGame(CYCLE), LOG_REF, 1.0, kt.TotalVariation()),
            "flat pieces",
        ),
    ],
)
def test_bad_input_names_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_flips_are_looked_for_among_increasing_betas():
    with pytest.raises(ValueError, match="two or more increasing"):
        equilibrium_flips(PreferenceGame(CYCLE), LOG_REF, [1.0, 0.5])


def test_what_is_no_game_is_refused():
    with pytest.raises(TypeError, match="game must be"):
        solve_game(PAYOFF, REFS, 1.0)
    duel = tasks.load_game("duel")
    with pytest.raises(TypeError, match="or a MarkovGame, got GameTask"):
        equilibrium_flips(duel, duel.log_ref, [0.1, 1.0])
    with pytest.raises(ValueError, match="state must be from 0 to 2, got 3"):
        equilibrium_flips(duel.game, duel.log_ref, [0.1, 1.0], state=3)
    with pytest.raises(TypeError, match=r"got GameTask$"):
        solve_game(duel, duel.log_ref, 1.0)


def test_a_batch_of_no_games_has_no_equilibria():
    found = solve_game(PreferenceGame(np.full((0, 2, 2), 0.5)), np.log([0.5, 0.5]), 1.0)
    assert found.value.shape == (0,)
    assert found.row.probs.shape == (0, 2)


@pytest.mark.broad
def test_flips_are_where_two_actions_are_level_and_lead():
    beta = np.geomspace(0.02, 2, 40)
    flips = equilibrium_flips(PreferenceGame(CYCLE), LOG_REF[::-1].copy(), beta)
    assert flips
    for flip in flips:
        probs = solve_game(PreferenceGame(CYCLE), LOG_REF[::-1].copy(), flip.beta).row.log_probs
        assert float(probs[flip.below]) == pytest.approx(float(probs.max()), abs=2e3 * eps())
        assert float(probs[flip.above]) == pytest.approx(float(probs.max()), abs=2e3 * eps())
    # By another method, at which β the answers to one another are as likely.
    policies, _ = iterated(CYCLE, LOG_REF[::-1], LOG_REF[::-1], [0.1, 1.0], 3000)
    between = [flip for flip in flips if 0.1 < flip.beta < 1.0]
    ends = [int(x.argmax()) for x in policies]
    assert (between[0].below, between[-1].above) == tuple(ends) if between else ends[0] == ends[1]


@pytest.mark.broad
def test_pairs_are_drawn_and_averaged():
    found = solve_game(MatrixGame(PAYOFF), REFS, 0.5)
    draws = np.asarray(found.sample(key=jax.random.key(0), num_samples=4000))
    assert draws.shape == (4000, 2)
    paid = PAYOFF[draws[:, 0], draws[:, 1]]
    error = paid.std() / np.sqrt(4000)
    assert abs(paid.mean() - float(found.expected_reward)) < 5 * error
    np.testing.assert_allclose(found.expectation(PAYOFF), found.expected_reward, rtol=1e-5)
    joint = np.exp(np.asarray(found.log_prob(np.argwhere(np.ones((3, 4))))))
    np.testing.assert_allclose(joint.sum(), 1.0, rtol=1e-5)
    with pytest.raises(ValueError, match="x must have row actions from 0 to 2, got 3 at index 1"):
        found.log_prob([[0, 0], [3, 0]])
    with pytest.raises(ValueError, match="x must have column actions from 0 to 3, got -1"):
        found.log_prob([0, -1])
    with pytest.raises(TypeError, match="x must be integers"):
        found.log_prob([0.5, 1.0])
    with pytest.raises(ValueError, match=r"x has shape \(3,\).* row action, column action"):
        found.log_prob([0, 1, 2])


@pytest.mark.broad
def test_mass_outside_the_reference_is_not_found_and_said_so():
    outside = np.array([np.log(0.5), np.log(0.5), -np.inf, -np.inf])
    found = solve_game(MatrixGame(PAYOFF), (REFS[0], outside), [0.1, 20.0], kt.ForwardKL())
    failed = np.asarray(found.status) & int(kt.Status.NOT_CONVERGED)
    assert failed.tolist() == [int(kt.Status.NOT_CONVERGED), 0]
    assert jnp.isnan(found.column.probs[0]).all()
    within = solve_game(MatrixGame(PAYOFF[:, :2]), (REFS[0], outside[:2]), 20.0, kt.ForwardKL())
    np.testing.assert_allclose(found.row.probs[1], within.row.probs, rtol=1e3 * eps())
    with pytest.raises(ValueError, match="solve_game failed at index 0: NOT_CONVERGED"):
        found.raise_if_failed()


@pytest.mark.broad
def test_under_a_trace_bad_numbers_are_flagged_in_their_own_rows():
    payoff = jnp.stack([jnp.asarray(PAYOFF), jnp.full((3, 4), jnp.nan)])
    status, probs = jax.jit(
        lambda x: (lambda found: (found.status, found.row.probs))(
            solve_game(MatrixGame(x), REFS, 1.0)
        )
    )(payoff)
    assert int(status[0]) == 0
    assert int(status[1]) & int(kt.Status.INVALID_REWARD)
    assert jnp.isfinite(probs[0]).all()
    assert jnp.isnan(probs[1]).all()


def plays(game, length):
    """Every play of some steps from state 0, and how likely the moves between its states are."""
    transition = np.asarray(game.transition, float)
    cells = list(itertools.product(range(3), range(2), range(2)))
    every = [x for x in itertools.product(cells, repeat=length) if x[0][0] == 0]
    chances = [
        np.prod([transition[(*x, y[0])] for x, y in itertools.pairwise(play)]) for play in every
    ]
    return np.array(every), np.array(chances)


@pytest.mark.slow
def test_flips_in_soccer_are_where_two_moves_are_level():
    task = tasks.load_game("soccer")
    state = task.states.index("1.1 against 1.2, ball of the row")
    beta = np.geomspace(0.1, 1.0, 4)
    (flip,) = equilibrium_flips(task.game, task.log_ref, beta, num_halvings=12, state=state)
    names = task.labels[0]
    assert (flip.player, names[flip.below], names[flip.above]) == ("row", "down", "ahead")
    level = np.asarray(solve_game(task.game, task.log_ref, flip.beta).stages.row.probs[state])
    assert abs(level[flip.below] - level[flip.above]) < 1e-3
    assert level.argmax() in (flip.below, flip.above)


@pytest.mark.broad
def test_plays_of_a_markov_game_are_those_of_an_enumeration():
    game, refs = random_markov_game(horizon=3)
    found = solve_game(game, refs, [0.5, 2.0])
    every, chances = plays(game, 3)
    row, column = (np.asarray(x.probs, float) for x in (found.stages.row, found.stages.column))
    time, (state, i, j) = np.arange(3), np.moveaxis(every, -1, 0)
    acted = row[:, time, state, i] * column[:, time, state, j]
    law = acted.prod(-1) * chances
    np.testing.assert_allclose(law.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(found.log_prob(every)), law, rtol=1e-4)
    worth = (np.asarray(game.reward, float)[state, i, j] * 0.9**time).sum(-1)
    np.testing.assert_allclose(found.expected_reward[:, 0], law @ worth, rtol=1e-4)
    ones = found.expectation(np.ones((3, 2, 2)))
    np.testing.assert_allclose(ones, np.full((2, 3), 1 + 0.9 + 0.81), rtol=1e-5)
    logs = [np.log(x) - y for x, y in zip((row, column), refs, strict=True)]
    spent = (0.9**time * (logs[0][:, time, state, i] + logs[1][:, time, state, j])).sum(-1)
    np.testing.assert_allclose(found.divergence_value[:, 0], (law * spent).sum(-1), rtol=1e-4)
    draws = np.asarray(found.sample(key=jax.random.key(0), num_samples=4000))
    assert draws.shape == (4000, 2, 3, 3)
    assert (draws[:, :, 0, 0] == 0).all()
    for k in range(2):
        earned = np.asarray(game.reward, float)[tuple(np.moveaxis(draws[:, k], -1, 0))] @ 0.9**time
        error = earned.std() / np.sqrt(4000)
        assert abs(earned.mean() - law[k] @ worth) < 5 * error
    with pytest.raises(ValueError, match="start must be a state, from 0 to 2, got 3"):
        found.sample(key=jax.random.key(0), num_samples=1, start=3)
    with pytest.raises(ValueError, match="ends after 3"):
        found.sample(key=jax.random.key(0), num_samples=1, num_steps=4)
    with pytest.raises(ValueError, match=r"x has shape \(3, 2\)"):
        found.log_prob(np.zeros((3, 2), int))
    with pytest.raises(ValueError, match=r"fn has shape \(3, 2\)"):
        found.expectation(np.zeros((3, 2)))


@pytest.mark.broad
def test_sums_of_a_markov_game_without_end_are_long_sums():
    game, refs = random_markov_game(discount=0.8)
    found = solve_game(game, refs, 0.7).raise_if_failed()
    row, column = (np.asarray(x.probs, float) for x in (found.stages.row, found.stages.column))
    pairs = row[:, :, None] * column[:, None, :]
    moves = np.einsum("sab,sabt->st", pairs, np.asarray(game.transition, float))
    gain = (pairs * np.asarray(game.reward, float)).sum((1, 2))
    kls = [(x * (np.log(x) - y)).sum(-1) for x, y in zip((row, column), refs, strict=True)]
    sums = {"gain": np.zeros(3), "row": np.zeros(3), "column": np.zeros(3)}
    for _ in range(200):
        for (name, x), now in zip(sums.items(), (gain, *kls), strict=True):
            sums[name] = now + 0.8 * moves @ x
    np.testing.assert_allclose(found.expected_reward, sums["gain"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.divergence_value, sums["row"] + sums["column"], rtol=1e-4)
    value = sums["gain"] - 0.7 * (sums["row"] - sums["column"])
    np.testing.assert_allclose(found.value, value, rtol=1e-4, atol=1e-5)
    draws = np.asarray(found.sample(key=jax.random.key(1), num_samples=2, num_steps=7, start=2))
    assert draws.shape == (2, 7, 3)
    assert (draws[:, 0, 0] == 2).all()
    assert found.log_prob(draws).shape == (2,)
