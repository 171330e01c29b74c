"""Regularised decision processes, against 50-digit values, long plain iteration and programs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from oracles import DTYPES, eps

import kltarget as kt
from kltarget import tasks
from kltarget.spaces import MDP
from kltarget.targets.mdps import action_flips, solve_mdp, solve_occupancy

TRANSITION = np.array([[[0.9, 0.1], [0.4, 0.6]], [[0.3, 0.7], [0.2, 0.8]]])
REWARD = np.array([[0.0, 0.2], [1.0, 0.5]])
REF = np.array([[0.5, 0.5], [0.25, 0.75]])
LAST = DTYPES[-1]
KNOWN = {
    # Value iteration, then policy iteration, to 50 digits.
    "reverse": (
        kt.ReverseKL(),
        [4.944437869415031, 5.723540611652725],
        [[0.05991850552471672, 0.9400814944752833], [0.7409268555870081, 0.2590731444129919]],
    ),
    "forward": (
        kt.ForwardKL(),
        [4.8587566081414675, 5.669725670137573],
        [[0.14660288437894978, 0.8533971156210503], [0.6991163857776483, 0.30088361422235166]],
    ),
    "tsallis": (
        kt.Tsallis(2.0),
        [4.356861295622178, 5.126443473338327],
        [[0.1585550125173331, 0.8414449874826669], [0.4519082518776, 0.5480917481224]],
    ),
}


def two_states(dtype=LAST, **fields):
    return MDP(TRANSITION.astype(dtype), REWARD.astype(dtype), 0.9, **fields)


def log_ref(dtype=LAST):
    return np.log(REF).astype(dtype)


def sparse(rng, size=30, actions=4, successors=3, discount=0.9):
    after = rng.integers(0, size, size=(size, actions, successors))
    chances = rng.dirichlet(np.ones(successors), size=(size, actions)).astype(LAST)
    reward = rng.normal(size=(size, actions)).astype(LAST)
    dense = np.zeros((size, actions, size), LAST)
    for k in range(successors):
        np.add.at(dense, (*np.indices((size, actions)), after[..., k]), chances[..., k])
    return MDP(chances, reward, discount, successors=after), MDP(dense, reward, discount)


@functools.partial(jax.jit, static_argnames="names")
def asked(mdp, log_ref, beta, divergence=None, *, names):
    """Answers of a target in one program."""
    target = solve_mdp(mdp, log_ref, beta, divergence)
    return {name: getattr(target, name) for name in names}


@pytest.mark.parametrize(
    "name",
    [
        "reverse",
        pytest.param("forward", marks=pytest.mark.broad),
        pytest.param("tsallis", marks=pytest.mark.slow),
    ],
)
def test_values_and_policies_of_fifty_digits(name):
    divergence, values, policy = KNOWN[name]
    target = solve_mdp(two_states(), log_ref(), 0.2, divergence).raise_if_failed()
    # 1/(1 − γ) roundings of a backup.
    np.testing.assert_allclose(target.state_values, values, rtol=10 * 8 * eps(LAST))
    np.testing.assert_allclose(jnp.exp(target.log_policy), policy, rtol=2e3 * eps(LAST))
    assert target.value_error <= 2e3 * eps(LAST)


def test_returns_without_the_regulariser_and_their_gap():
    target = solve_mdp(two_states(), log_ref(), 0.2)
    np.testing.assert_allclose(
        target.returns, [5.952655983426582, 6.746457520950365], rtol=1e3 * eps(LAST)
    )
    best = np.array([6.747252747252747, 7.626373626373627])
    gap = np.max(best - np.asarray(target.returns, float))
    np.testing.assert_allclose(gap, 0.8799161054232616, rtol=1e4 * eps(LAST))
    assert 0 <= gap <= 0.2 * np.log(4) / 0.1  # Geist et al.


@pytest.mark.broad
def test_the_value_is_reward_less_divergence():
    names, beta = ("value", "expected_reward", "divergence_value", "occupancy"), [0.2, 1.0]
    answers = asked(two_states(), log_ref(), np.array(beta, LAST), kt.ForwardKL(), names=names)
    value, earned, charged, occupancy = (np.asarray(answers[name]) for name in names)
    np.testing.assert_allclose(value, earned - beta * charged, rtol=1e3 * eps(LAST))
    np.testing.assert_allclose(occupancy.sum(-1), [1, 1], rtol=1e3 * eps(LAST))


def test_without_regulariser_it_is_a_linear_program():
    best = scipy.optimize.linprog(
        np.full(2, 0.5),
        A_ub=(0.9 * TRANSITION - np.eye(2)[:, None]).reshape(4, 2),
        b_ub=-REWARD.reshape(4),
        bounds=(None, None),
    )
    target = solve_mdp(two_states(), log_ref(), 1e-6)
    np.testing.assert_allclose(target.state_values, best.x, rtol=1e-5)


@pytest.mark.broad
def test_sparse_processes_are_dense_ones():
    rng = np.random.default_rng(3)
    few, full = sparse(rng)
    ref = np.log(rng.dirichlet(np.ones(4), size=30)).astype(LAST)
    names = ("state_values", "occupancy", "status")
    got, other = (asked(x, ref, 0.3, names=names) for x in (few, full))
    assert got["status"] == 0
    values = np.zeros(30)
    wide = [np.asarray(x, float) for x in (full.transition, full.reward, ref)]
    for _ in range(500):
        q = wide[1] + 0.9 * wide[0] @ values
        values = 0.3 * np.log(np.exp(wide[2] + q / 0.3).sum(-1))
    np.testing.assert_allclose(got["state_values"], values, atol=2e3 * eps(LAST))
    np.testing.assert_allclose(got["occupancy"], other["occupancy"], atol=1e3 * eps(LAST))


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL()])
def test_derivatives_go_through_the_fixed_point(divergence):
    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def slopes(reward, beta, logits):
        mdp = MDP(TRANSITION.astype(LAST), reward, 0.9)
        target = solve_mdp(mdp, jax.nn.log_softmax(logits), beta, divergence)
        taken = target.occupancy[:, None] * jnp.exp(target.log_policy) / (1 - mdp.discount)
        return target.value, (target.divergence_value, taken)

    given = REWARD.astype(LAST), np.asarray(0.5, LAST), log_ref()
    (_, (charged, taken)), (of_reward, of_beta, of_logits) = slopes(*given)
    step = eps(LAST) ** (1 / 3)

    def difference(which, at):
        ends = []
        for x in (step, -step):
            moved = [y.copy() for y in given]
            moved[which][at] += x
            ends.append(float(slopes(*moved)[0][0]))
        return (ends[0] - ends[1]) / (2 * step)

    for at in np.ndindex(2, 2):
        found = difference(0, at)
        np.testing.assert_allclose(of_reward[at], found, atol=30 * step**2 + step)
    found = difference(2, (1, 0))
    np.testing.assert_allclose(of_logits[1, 0], found, atol=30 * step**2 + step)
    # The envelope's: what is charged, and how often each action is taken.
    np.testing.assert_allclose(of_beta, -charged, rtol=1e3 * eps(LAST))
    np.testing.assert_allclose(of_reward, taken, rtol=1e3 * eps(LAST))


@pytest.mark.broad
def test_draws_are_as_likely_as_they_say():
    target = solve_mdp(two_states(), log_ref(), 0.2)
    paths = target.sample(key=jax.random.key(1), num_samples=4000, num_steps=2)
    found, counts = np.unique(np.asarray(paths), axis=0, return_counts=True)
    chance = np.exp(np.asarray(target.log_prob(found), float))
    np.testing.assert_allclose(chance.sum(), 1, rtol=0.01)
    off = (counts - 4000 * chance) / np.sqrt(4000 * chance * (1 - chance))
    assert np.abs(off).max() < 5


def test_an_action_that_a_state_lacks():
    reward = np.where([[True, True], [True, False]], REWARD, -np.inf).astype(LAST)
    ref = np.log(np.array([[0.5, 0.5], [1.0, 1e-30]])).astype(LAST)
    target = solve_mdp(MDP(TRANSITION.astype(LAST), reward, 0.9), ref, 0.2).raise_if_failed()
    assert target.log_policy[1, 1] == -np.inf
    assert np.isfinite(target.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MDP(TRANSITION * 1.1, REWARD, 0.9), r"transition sums to 1.1 at index \(0, 0\)"),
        (lambda: MDP(TRANSITION, REWARD, 1.0), "no absorbing state from the state at index 0"),
        (lambda: MDP(TRANSITION, REWARD * np.nan, 0.9), "reward must be below"),
        (
            # Not even for an action that the state lacks.
            lambda: MDP(
                np.stack([TRANSITION[0], TRANSITION[1] * [[1], [np.nan]]]),
                [[0.0, 0.2], [1.0, -np.inf]],
                0.9,
            ),
            r"transition must be finite, got nan at index \(1, 1, 0\)",
        ),
        (lambda: MDP(TRANSITION, np.full((2, 2), -np.inf), 0.9), "-inf for every action"),
        (lambda: MDP(TRANSITION, REWARD, 0.9, np.array([0.5, 0.2])), "start sums to 0.7"),
        (lambda: MDP(TRANSITION[..., :1], REWARD, 0.9), "give successors"),
        (lambda: MDP(np.ones((0, 2, 0)), np.ones((0, 2)), 0.9), "one state and one action"),
        (lambda: MDP(np.ones((2, 0, 2)), np.ones((2, 0)), 0.9), "one state and one action"),
        (
            lambda: MDP(np.tile(TRANSITION, (3, 1, 1, 1)), np.tile(REWARD, (4, 1, 1)), 0.9),
            r"batch axes \(3,\), \(4,\) of transition, reward and start do not broadcast",
        ),
        (lambda: action_flips(two_states(), log_ref(), [0.1, 1.0], num_halvings=0), "num_halvings"),
        (lambda: solve_mdp(two_states(), np.log([0.5, 0.5]), 0.2), "log_ref has shape"),
        (lambda: solve_mdp(two_states(), log_ref(), -1.0), "beta"),
        (
            lambda: solve_mdp(
                MDP(TRANSITION, [[0.0, 0.2], [1.0, -np.inf]], 0.9), log_ref(), 0.2, kt.ForwardKL()
            ),
            "reward is -inf where log_ref is not.* forward KL at index",
        ),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_process_is_refused():
    with pytest.raises(TypeError, match="mdp must be an MDP, got MDPTask"):
        solve_mdp(tasks.load_mdp("five-arms"), log_ref(), 0.2)
    with pytest.raises(TypeError, match="mdp must be an MDP, got str"):
        action_flips("five-arms", log_ref(), [0.1, 1.0])


@pytest.mark.precise
@pytest.mark.slow
def test_sixteen_bits_are_held_and_computed_in_32():
    """Against value iteration in NumPy on what 16 bits kept, with rows divided by their sums."""
    # XLA has no other 16 bits on processors without instructions for them.
    short = jnp.bfloat16
    rng = np.random.default_rng(3)
    chances = rng.dirichlet(np.ones(5), size=(5, 3)).astype(short)
    start, policy = (rng.dirichlet(np.ones(n), size=m) for n, m in ((5, 1), (3, 5)))
    start, log_ref = start[0].astype(short), np.log(policy).astype(short)
    reward = rng.normal(size=(5, 3)).astype(short)
    mdp = MDP(chances, reward, 0.99, start)
    assert {x.dtype for x in (mdp.transition, mdp.reward, mdp.discount, mdp.start)} == {
        jnp.dtype(jnp.float32)
    }
    moves, ref = chances.astype(float), np.exp(log_ref.astype(float))
    assert np.abs(moves.sum(-1) - 1).max() > 1e-4
    moves, ref = (x / x.sum(-1, keepdims=True) for x in (moves, ref))
    values = np.zeros(5)
    for _ in range(4000):
        q = reward.astype(float) + 0.99 * moves @ values
        values = 0.25 * np.log((ref * np.exp(q / 0.25)).sum(-1))
    for target in (solve_mdp(mdp, log_ref, 0.25), solve_mdp(mdp, log_ref, short(0.25))):
        assert target.state_values.dtype == jnp.float32
        np.testing.assert_allclose(target.state_values, values, rtol=1e-4)
    # The charge of occupancies vanishes with beta: the best policy, by value iteration.
    for _ in range(4000):
        values = (reward.astype(float) + 0.99 * moves @ values).max(-1)
    first = start.astype(float) / start.astype(float).sum()
    best = solve_occupancy(mdp, log_ref, 1e-6)
    assert best.occupancy.dtype == jnp.float32
    np.testing.assert_allclose(best.value, 0.01 * first @ values, rtol=1e-4)


def test_sixteen_bits_excuse_rounding_alone():
    short = jnp.bfloat16
    with pytest.raises(ValueError, match=r"transition sums to 1\.99"):
        MDP((2 * TRANSITION).astype(short), REWARD.astype(short), 0.9)
    mdp = MDP(TRANSITION.astype(short), REWARD.astype(short), 0.9)
    with pytest.raises(ValueError, match="log_ref is not normalised"):
        solve_mdp(mdp, np.zeros((2, 2), short), 0.2)


@pytest.mark.broad
def test_under_a_trace_what_is_no_process_is_nan_and_says_so():
    @jax.jit
    def solved(moves, discount):
        return solve_mdp(MDP(moves, REWARD.astype(LAST), discount), log_ref(), 0.5)

    moves = TRANSITION.astype(LAST)
    assert solved(moves, 0.9).status == 0
    less = moves.copy()
    less[0, 0] = [1.5, -0.5]
    for wrong in ((moves, 1.5), (moves, -0.5), (moves * 2, 0.9), (less, 0.9), (moves, 1.0)):
        target = solved(*wrong)
        assert target.status == kt.Status.INVALID_PROCESS
        assert np.isnan(target.state_values).all()
        assert np.isnan(target.value_error)


def test_means_are_of_states_and_actions():
    target = solve_mdp(two_states(), log_ref(), 0.2)
    np.testing.assert_allclose(target.expectation(np.ones((2, 2))), 10.0, rtol=100 * eps(LAST))
    # As many states as actions: a number per state would be taken for one per action.
    with pytest.raises(ValueError, match=r"fn has shape \(2,\): its last axes must be states and"):
        target.expectation(np.ones(2))
    occupied = solve_occupancy(two_states(), log_ref(), 0.2)
    with pytest.raises(ValueError, match=r"fn has shape \(4,\): its first axes must be states and"):
        occupied.expectation(np.ones(4))


def test_probabilities_are_of_states_and_actions_that_there_are():
    targets = solve_mdp(two_states(), log_ref(), 0.2), solve_occupancy(two_states(), log_ref(), 0.2)
    for target in targets:
        for wrong, message in (
            ([[0, 2]], "x must have actions from 0 to 1, got 2 at index 0"),
            ([[-1, 0]], "x must have states from 0 to 1, got -1"),
            ([[0, 1, 1]], r"x has shape \(1, 3\): it needs . axes or more"),
        ):
            with pytest.raises(ValueError, match=message):
                target.log_prob(wrong)
        with pytest.raises(TypeError, match="x must be integers, got dtype float"):
            target.log_prob([[0.0, 1.0]])
        assert np.isfinite(jax.jit(target.log_prob)(np.array([[0, 1]]))).all()
    assert targets[0].log_prob(np.zeros((0, 3, 2), int)).shape == (0,)


def test_states_that_no_policy_reaches():
    stay = np.eye(3)[:, None]
    mdp = MDP(stay, np.zeros((3, 1)), 0.9, np.array([0.0, 1.0, 0.0]))
    assert mdp.reached().tolist() == [False, True, False]


@pytest.mark.slow
def test_batches_of_processes_and_betas_are_loops_under_jit_and_vmap():
    rng = np.random.default_rng(6)
    moves = rng.dirichlet(np.ones(3), size=(2, 3, 2)).astype(LAST)
    reward = rng.normal(size=(2, 3, 2)).astype(LAST)
    ref = np.log(rng.dirichlet(np.ones(2), size=3)).astype(LAST)
    beta = np.array([0.1, 0.5, 2.0], LAST)
    names = ("state_values", "log_policy", "value", "occupancy", "status", "value_error")

    def one(moves, reward, beta):
        return asked(MDP(moves, reward, 0.8), ref, beta, kt.ForwardKL(), names=names)

    # [M, 1] processes against [B] coefficients.
    many = one(moves[:, None], reward[:, None], beta)
    assert many["log_policy"].shape == (2, 3, 3, 2)
    each = jax.jit(jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None)))(moves, reward, beta)
    many, each = jax.tree.map(np.asarray, (many, each))
    close = {"rtol": 300 * eps(LAST), "atol": 100 * eps(LAST)}
    for m, b in np.ndindex(2, 3):
        alone = one(moves[m], reward[m], beta[b])
        for name in names[:-1]:
            np.testing.assert_allclose(alone[name], many[name][m, b], **close)
        np.testing.assert_allclose(each["state_values"][m, b], alone["state_values"], **close)
        assert alone["value_error"] <= 1e3 * eps(LAST)


@pytest.mark.broad
@pytest.mark.parametrize("given", [np.float32, np.int32])
def test_the_type_of_floats_is_kept(given):
    mdp = MDP(TRANSITION.astype(np.float32), REWARD.round().astype(given), np.float32(0.9))
    target = solve_mdp(mdp, log_ref(np.float32), np.float32(0.2))
    for name in ("state_values", "action_values", "log_policy", "value", "occupancy", "returns"):
        assert getattr(target, name).dtype == mdp.reward.dtype, name
    # Integers become the default float.
    assert mdp.reward.dtype == (jnp.float32 if given is np.float32 else jnp.result_type(float))
    assert target.value_error.dtype == mdp.reward.dtype


@pytest.mark.broad
def test_what_is_stopped_early_says_so():
    known, flagged = np.array(KNOWN["reverse"][1]), []
    for steps in (1, 2, 20):
        target = solve_mdp(two_states(), log_ref(), 0.2, num_steps=steps)
        apart = np.abs(np.asarray(target.state_values, float) - known).max()
        flagged.append(bool(target.status & kt.Status.NOT_CONVERGED))
        assert flagged[-1] == np.isnan(target.value_error)
        assert flagged[-1] or apart <= float(target.value_error) + 100 * eps(LAST)
    assert flagged[0]
    assert not flagged[-1]
