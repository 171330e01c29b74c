"""Decision processes that end, after a number of steps or in absorbing states."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from oracles import DTYPES, eps

import kltarget as kt
from kltarget.spaces import MDP
from kltarget.targets.mdps import solve_mdp

LAST = DTYPES[-1]


def random_mdp(seed, size=4, actions=3, **fields):
    rng = np.random.default_rng(seed)
    moves = rng.dirichlet(np.ones(size), size=(size, actions)).astype(LAST)
    reward = rng.normal(size=(size, actions)).astype(LAST)
    start = rng.dirichlet(np.ones(size)).astype(LAST)
    log_ref = np.log(rng.dirichlet(np.ones(actions), size=size)).astype(LAST)
    return MDP(moves, reward, start=start, **fields), log_ref


def corridor(size=5, slip=0.1, cost=-1.0, **fields):
    """Left or right with slips, ended at the left end; right, one can stay at the wall."""
    moves = np.zeros((size, 2, size))
    for s in range(size):
        ends = max(s - 1, 0), min(s + 1, size - 1)
        for a in range(2):
            moves[s, a, ends[a]] += 1 - slip
            moves[s, a, ends[1 - a]] += slip
    moves[0] = 0
    moves[0, :, 0] = 1
    reward = np.full((size, 2), cost)
    reward[0] = 0
    return MDP(moves.astype(LAST), reward.astype(LAST), **fields)


@functools.partial(jax.jit, static_argnames="names")
def asked(mdp, log_ref, beta, divergence=None, paths=None, *, names):
    """Answers of a target in one program, and the log-probabilities of paths."""
    target = solve_mdp(mdp, log_ref, beta, divergence)
    answers = {name: getattr(target, name) for name in names}
    return answers if paths is None else answers | {"log_prob": target.log_prob(paths)}


def forward_kl(q, ref, beta):
    """Policy and value by bisection for the level Λ of ``βπ_ref/(Λ − q)``."""
    low, high = q.max(), q.max() + beta
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if (beta * ref / (level - q)).sum() > 1 else (low, level)
    policy = beta * ref / (high - q)
    return policy, policy @ q - beta * (ref * np.log(ref / policy)).sum()


@pytest.mark.broad
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL()], ids=str)
def test_a_horizon_is_a_recursion_from_its_end(divergence):
    mdp, log_ref = random_mdp(0, discount=0.9, horizon=6)
    names = ("state_values", "log_policy", "value", "value_error", "status")
    found = asked(mdp, log_ref, 0.4, divergence, names=names)
    found = {name: np.asarray(x) for name, x in found.items()}
    assert found["status"] == 0
    moves, reward = np.asarray(mdp.transition, float), np.asarray(mdp.reward, float)
    ref, values = np.exp(log_ref.astype(float)), np.zeros(4)
    for time in reversed(range(6)):
        q = reward + 0.9 * moves @ values
        if isinstance(divergence, kt.ReverseKL):
            weights = ref * np.exp((q - q.max()) / 0.4)
            values = q.max() + 0.4 * np.log(weights.sum(-1))
            policy = weights / weights.sum(-1, keepdims=True)
        else:
            rows = [forward_kl(*row, 0.4) for row in zip(q, ref, strict=True)]
            policy, values = (np.array(x) for x in zip(*rows, strict=True))
        np.testing.assert_allclose(found["state_values"][time], values, atol=200 * eps(LAST))
        np.testing.assert_allclose(np.exp(found["log_policy"][time]), policy, atol=500 * eps(LAST))
    assert found["log_policy"].shape == (6, 4, 3)
    wanted = np.asarray(mdp.start) @ values
    np.testing.assert_allclose(found["value"], wanted, rtol=300 * eps(LAST))
    assert found["value_error"] == 0


@pytest.mark.broad
def test_a_horizon_by_all_paths():
    # Which states and actions come in which order, each path by its probability.
    mdp, log_ref = random_mdp(1, size=2, actions=2, discount=0.8, horizon=3)
    target = solve_mdp(mdp, log_ref, 0.3)
    paths = np.array(list(itertools.product(range(2), repeat=6))).reshape(-1, 3, 2)
    names = (
        *("value", "expected_reward", "divergence_value"),
        *("log_policy", "returns", "visits", "occupancy"),
    )
    answers = asked(mdp, log_ref, 0.3, None, paths, names=names)
    answers = {name: np.asarray(x, float) for name, x in answers.items()}
    chance = np.exp(answers["log_prob"])
    np.testing.assert_allclose(chance.sum(), 1, rtol=100 * eps(LAST))
    by_hand = np.asarray(mdp.start, float)[paths[:, 0, 0]]
    policy = np.exp(answers["log_policy"])
    earned, charged = np.zeros(len(paths)), np.zeros(len(paths))
    ratio = answers["log_policy"] - log_ref
    for t in range(3):
        state, action = paths[:, t].T
        by_hand = by_hand * policy[t, state, action]
        if t < 2:
            by_hand = by_hand * np.asarray(mdp.transition)[state, action, paths[:, t + 1, 0]]
        earned += 0.8**t * np.asarray(mdp.reward)[state, action]
        charged += 0.8**t * ratio[t, state, action]
    close = {"rtol": 500 * eps(LAST), "atol": 50 * eps(LAST)}
    np.testing.assert_allclose(chance, by_hand, **close)
    np.testing.assert_allclose(answers["expected_reward"], chance @ earned, **close)
    np.testing.assert_allclose(answers["divergence_value"], chance @ charged, **close)
    np.testing.assert_allclose(answers["value"], chance @ (earned - 0.3 * charged), **close)
    start = np.asarray(mdp.start, float)
    np.testing.assert_allclose(start @ answers["returns"][0], chance @ earned, **close)
    often = np.zeros((3, 2))
    for t in range(3):
        np.add.at(often[t], paths[:, t, 0], 0.8**t * chance)
    np.testing.assert_allclose(answers["visits"], often, **close)
    np.testing.assert_allclose(answers["occupancy"].sum(), 1, **close)
    drawn = np.asarray(target.sample(key=jax.random.key(0), num_samples=4000))
    assert drawn.shape == (4000, 3, 2)
    counts = (drawn[:, None] == paths).all((-2, -1)).sum(0)
    assert counts.sum() == 4000
    wanted = chance
    off = (counts - 4000 * wanted) / np.sqrt(4000 * wanted * (1 - wanted))
    assert np.abs(off).max() < 5
    with pytest.raises(ValueError, match="x has 4 steps, but the process ends after 3"):
        target.log_prob(np.zeros((4, 2), int))
    with pytest.raises(ValueError, match="num_steps has 4 steps"):
        target.sample(key=jax.random.key(0), num_samples=1, num_steps=4)


@pytest.mark.slow
def test_a_tree_is_a_space_of_sequences():
    # States are prefixes; under reverse KL nothing but sequences counts.
    tokens, length = 2, 3
    prefixes = [p for n in range(length + 1) for p in itertools.product(range(tokens), repeat=n)]
    place = {p: i for i, p in enumerate(prefixes)}
    rng = np.random.default_rng(2)
    ref = rng.dirichlet(np.ones(tokens), size=len(prefixes))
    reward_of = {p: rng.normal() for p in prefixes if len(p) == length}
    moves = np.zeros((len(prefixes), tokens, len(prefixes)))
    reward = np.zeros((len(prefixes), tokens))
    for p, i in place.items():
        for a in range(tokens):
            after = (*p, a) if len(p) < length else p
            moves[i, a, place[after]] = 1
            reward[i, a] = reward_of.get(after, 0) if len(p) == length - 1 else 0
    start = np.eye(len(prefixes))[place[()]]
    sequences = np.array(list(itertools.product(range(tokens), repeat=length)))
    log_ref = [
        sum(np.log(ref[place[tuple(s[:t])], s[t]]) for t in range(length)) for s in sequences
    ]
    joint = kt.solve(
        kt.Objective(
            np.array([reward_of[tuple(s)] for s in sequences], LAST), np.array(log_ref, LAST), 0.3
        )
    )
    for ending in ({"horizon": length}, {"discount": 1.0}):
        mdp = MDP(moves.astype(LAST), reward.astype(LAST), start=start.astype(LAST), **ending)
        states = [[place[tuple(s[:t])] for t in range(length)] for s in sequences]
        paths = np.stack([np.array(states), sequences], -1)
        options = {"names": ("value", "status")}
        target = asked(mdp, np.log(ref).astype(LAST), 0.3, None, paths, **options)
        assert target["status"] == 0
        np.testing.assert_allclose(target["value"], joint.value, rtol=100 * eps(LAST))
        np.testing.assert_allclose(
            target["log_prob"], joint.log_probs, rtol=200 * eps(LAST), atol=50 * eps(LAST)
        )


@pytest.mark.slow
def test_absorption_under_reverse_kl_is_a_linear_equation():
    mdp = corridor(discount=1.0)
    ref = np.random.default_rng(0).dirichlet(np.ones(2), size=5)
    beta = np.array([0.3, 3.0])
    names = ("state_values", "status", "visits", "occupancy", "expected_reward")
    target = asked(mdp, np.log(ref).astype(LAST), beta.astype(LAST), names=names)
    assert not np.asarray(target["status"]).any()
    # Deterministic moves would make it exact: with slips, actions are tilted by means.
    values, b = np.zeros((2, 5)), beta[:, None, None]
    moves, reward = np.asarray(mdp.transition, float), np.asarray(mdp.reward, float)
    for _ in range(20_000):
        q = reward + (moves @ values[:, None, :, None])[..., 0]
        values = beta[:, None] * np.log((ref * np.exp(q / b)).sum(-1))
    np.testing.assert_allclose(target["state_values"], values, atol=3e3 * eps(LAST))
    sure = corridor(slip=0.0, discount=1.0)
    # Twice, in the shape that is compiled.
    threes = np.full(2, 3.0, LAST)
    both = asked(sure, np.log(ref).astype(LAST), threes, names=names)
    target = {name: np.asarray(x)[0] for name, x in both.items()}
    kernel = np.einsum("sa,sat->st", ref * np.exp(-1 / 3.0), np.asarray(sure.transition, float))
    desire = np.linalg.solve(np.eye(4) - kernel[1:, 1:], kernel[1:, 0])
    found = target["state_values"][1:]
    np.testing.assert_allclose(found, 3 * np.log(desire), rtol=500 * eps(LAST))
    # The number of steps until absorption is a sum of visits, and each costs 1.
    steps = target["visits"].sum()
    np.testing.assert_allclose(steps, -target["expected_reward"], rtol=1e3 * eps(LAST))
    assert target["visits"][0] == 0
    np.testing.assert_allclose(target["occupancy"].sum(), 1, rtol=100 * eps(LAST))


@pytest.mark.broad
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL()], ids=str)
def test_an_end_that_lacks_an_action_is_not_charged_for_it(divergence):
    moves = np.array([[[0.5, 0.5], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]], LAST)
    reward = np.array([[-1.0, 0.5], [0.0, -np.inf]], LAST)
    mdp = MDP(moves, reward, 1.0, [1.0, 0.0])
    target = solve_mdp(mdp, np.full((2, 2), np.log(0.5), LAST), 1.0, divergence).raise_if_failed()
    assert target.state_values[1] == 0
    # V = max_p {p_0 (V/2 − 1) + p_1/2 − D(p)}, by bisection for V and a grid of p.
    p = np.linspace(1e-4, 1 - 1e-4, 100_001)
    cost = p * np.log(2 * p) + (1 - p) * np.log(2 - 2 * p)
    if divergence == kt.ForwardKL():
        cost = -np.log(4 * p * (1 - p)) / 2
    low, high = -2.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        more = (p * (middle / 2 - 1) + (1 - p) / 2 - cost).max() > middle
        low, high = (middle, high) if more else (low, middle)
    np.testing.assert_allclose(target.value, low, atol=1e-6)
    paid = target.expected_reward - target.divergence_value
    np.testing.assert_allclose(target.value, paid, rtol=1e2 * eps(LAST))


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [kt.ForwardKL(), kt.Tsallis(2.0)], ids=str)
def test_absorption_is_the_limit_of_discounting(divergence):
    ref = np.log(np.array([[0.2, 0.8]] * 5)).astype(LAST)
    names = (
        *("state_values", "value", "expected_reward", "divergence_value"),
        *("value_error", "status"),
    )
    target, *near = (
        asked(corridor(discount=1 - x), ref, 0.5, divergence, names=names)
        for x in (0.0, 2e-3, 1e-3, 5e-4)
    )
    assert target["status"] in (0, kt.Status.TRUNCATED)
    near = [np.asarray(x["state_values"], float) for x in near]
    # Richardson: two orders of 1 − γ drop out.
    first = [2 * near[1] - near[0], 2 * near[2] - near[1]]
    limit = (4 * first[1] - first[0]) / 3
    far = 1e-4 if LAST.itemsize < 8 else 1e-6
    np.testing.assert_allclose(target["state_values"], limit, atol=far)
    paid = float(target["expected_reward"]) - 0.5 * float(target["divergence_value"])
    np.testing.assert_allclose(target["value"], paid, rtol=1e3 * eps(LAST))
    assert target["value_error"] <= 1e3 * eps(LAST)


@pytest.mark.broad
def test_the_limit_without_regulariser_is_a_linear_program():
    mdp = corridor(discount=1.0)
    moves = np.asarray(mdp.transition, float)[1:, :, 1:]
    best = scipy.optimize.linprog(
        np.full(4, 0.25),
        A_ub=(moves - np.eye(4)[:, None]).reshape(8, 4),
        b_ub=np.ones(8),
        bounds=(None, None),
    )
    target = solve_mdp(mdp, np.full((5, 2), np.log(0.5)).astype(LAST), 1e-4)
    np.testing.assert_allclose(target.state_values[1:], best.x, atol=2e-3)


@pytest.mark.broad
def test_a_sparse_process_ends_as_a_dense_one_does():
    """Of a dense one that is iterated in NumPy."""
    mdp = corridor(discount=1.0)
    near = np.arange(5)[:, None, None] + np.array([-1, 1])
    after = np.broadcast_to(np.clip(near, 0, 4), (5, 2, 2)).copy()
    chances = np.broadcast_to(np.array([[0.9, 0.1], [0.1, 0.9]]), (5, 2, 2)).copy()
    after[0] = 0
    ref = np.full((5, 2), np.log(0.5)).astype(LAST)
    moves, reward = (np.asarray(x, float) for x in (mdp.transition, mdp.reward))
    values, policies = [np.zeros(5)], []
    for _ in range(1000):
        q = reward + moves @ values[0]
        values.insert(0, 0.7 * np.log(0.5 * np.exp(q / 0.7).sum(-1)))
        policies.insert(0, 0.5 * np.exp((q - values[0][:, None]) / 0.7))
    step = (policies[0][..., None] * moves).sum(1)[1:, 1:]
    often = [0, *np.linalg.solve(np.eye(4) - step.T, np.full(4, 0.2))]
    law = [np.full(5, 0.2)]
    for policy in policies[-4:-1]:
        law.append(law[-1] @ (policy[..., None] * moves).sum(1))
    for ending, wanted in (
        ({"discount": 1.0}, (values[0], often)),
        ({"horizon": 4}, (values[-5:-1], law)),
    ):
        few = MDP(chances.astype(LAST), mdp.reward, successors=after, **ending)
        found = asked(few, ref, 0.7, names=("state_values", "visits"))
        for x, exact in zip(found.values(), wanted, strict=True):
            np.testing.assert_allclose(x, exact, atol=1e3 * eps(LAST))
        np.testing.assert_array_equal(few.absorbing, [True] + [False] * 4)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [{"horizon": 4, "discount": 0.9}, {"discount": 1.0}], ids=str)
def test_derivatives_reach_the_end(ending):
    ref = np.full((5, 2), np.log(0.5)).astype(LAST)
    mdp = corridor(**ending)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def slopes(reward, beta):
        moved = MDP(mdp.transition, reward, mdp.discount, horizon=mdp.horizon)
        target = solve_mdp(moved, ref, beta, kt.ForwardKL())
        taken = target.visits[..., None] * jnp.exp(target.log_policy)
        return target.value, (taken, target.divergence_value)

    (slopes, of_beta), (taken, charged) = slopes(mdp.reward, np.asarray(0.5, LAST))
    slopes, taken = np.asarray(slopes), np.asarray(taken)
    taken = taken if mdp.horizon is None else taken.sum(0)
    # The end itself could be earned in, but is not visited.
    np.testing.assert_allclose(slopes[1:], taken[1:], rtol=1e3 * eps(LAST), atol=1e2 * eps(LAST))
    np.testing.assert_allclose(of_beta, -charged, rtol=2e3 * eps(LAST))


STAY = np.eye(2)[:, None]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MDP(STAY, np.zeros((2, 1))), "give a discount, or a horizon"),
        (lambda: MDP(STAY, np.zeros((2, 1)), 1.1), "above 0 and not above 1, got 1.1"),
        (lambda: MDP(STAY, np.zeros((2, 1)), horizon=0), "horizon must be an integer of 1 or more"),
        (lambda: MDP(STAY, np.zeros((2, 1)), horizon=2.0), "horizon must be an integer"),
        (
            lambda: MDP(STAY, np.array([[0.0], [-1.0]]), 1.0),
            r"reward is -1 at index \(1, 0\), in an absorbing state",
        ),
        (
            lambda: MDP(1 - STAY, np.zeros((2, 1)), 1.0),
            "no absorbing state from the state at index 0, and the discount is 1: add a way",
        ),
        (
            lambda: corridor(slip=0.0, cost=0.5, discount=1.0),
            r"reward is 0.5 at index \(1, 1\), where a policy can stay for ever",
        ),
        (
            lambda: solve_mdp(
                corridor(slip=0.0, discount=1.0), np.log(np.array([[1e-9, 1]] * 5)) * [np.inf, 1], 1
            ),
            "log_ref leads to no absorbing state from the state at index 1",
        ),
        (
            lambda: corridor(discount=1.0, horizon=3).require_discounted("that"),
            "that is of discounted processes",
        ),
    ],
)
def test_what_does_not_end_is_named(make, message):
    with pytest.raises(ValueError, match=message), np.errstate(invalid="ignore"):
        make()


def test_rewards_are_free_where_every_policy_ends():
    # Every move leads on, so that a reward above 0 is earned at most twice.
    on = np.zeros((3, 1, 3))
    on[0, 0, 1] = on[1, 0, 2] = on[2, 0, 2] = 1
    mdp = MDP(on.astype(LAST), np.array([[5.0], [1.0], [0.0]], LAST), 1.0)
    assert mdp.absorbing.tolist() == [False, False, True]


def test_a_batch_names_its_row():
    moves = np.stack([STAY, 1 - STAY])
    with pytest.raises(ValueError, match=r"from the state at index \(1, 0\)"):
        MDP(moves, np.zeros((2, 1)), 1.0)
