"""Spaces and policies with one vocabulary size per position, against enumeration."""

import functools
import itertools
import pickle

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import oracles
import pytest
from oracles import BY_ID, DTYPES, INF, eps

import kltarget as kt
from kltarget.policies import GRUPolicy, TabularPolicy, TransformerPolicy
from kltarget.recipes import Recipe
from kltarget.training import fine_tune, fit

(DTYPE,) = DTYPES
EPS = eps(DTYPE)
SIZES = (3, 1, 2, 4)
SPACE = kt.SequenceSpace(SIZES, 4)
STRINGS = list(itertools.product(*map(range, SIZES)))


def random_tree(seed, *batch):
    rng = np.random.default_rng(seed)
    shape = (*batch, SPACE.num_sequences)
    return rng.normal(size=shape).astype(DTYPE), oracles.log_normalised(
        rng.normal(size=shape), DTYPE
    )


def close(got, want, ulps=64):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    np.testing.assert_allclose(got, want, rtol=ulps * EPS, atol=ulps * EPS)


def test_sequences_are_in_lexicographic_order():
    assert SPACE.sizes == SIZES
    assert SPACE.num_sequences == 24
    assert [SPACE.num_prefixes(t) for t in range(5)] == [1, 3, 3, 6, 24]
    tokens = np.asarray(SPACE.sequences())
    assert [tuple(y) for y in tokens] == STRINGS
    np.testing.assert_array_equal(SPACE.index(tokens), np.arange(24))
    assert jax.jit(SPACE.index)(jnp.array([2, 1, 0, 0])) == -1
    assert np.asarray(SPACE.possible()).all()
    np.testing.assert_array_equal(SPACE.lengths(), 4)


def test_a_space_is_a_static_argument():
    assert kt.SequenceSpace(list(SIZES), np.int64(4)) == SPACE
    assert len({SPACE, kt.SequenceSpace(SIZES, 4), kt.SequenceSpace(3, 4)}) == 2
    assert pickle.loads(pickle.dumps(SPACE)) == SPACE


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (2, 1, 3)])
def test_conditionals_and_joint_are_inverses(shape):
    _, log_probs = random_tree(1, *shape)
    given = SPACE.conditionals(log_probs)
    nodes = [(1, 3), (3, 1), (3, 2), (6, 4)]
    assert [x.shape for x in given] == [(*shape, *node) for node in nodes]
    tree = np.exp(np.asarray(log_probs, np.float64)).reshape(-1, *SIZES)
    for t, x in enumerate(given):
        mass = tree.sum(tuple(range(t + 2, 5)))
        ratio = mass / mass.sum(-1, keepdims=True)
        close(np.exp(x).reshape(ratio.shape), ratio)
    close(SPACE.joint(given), log_probs)
    masses = SPACE.prefix_log_masses(log_probs)
    assert [x.shape[-1] for x in masses] == [1, 3, 3, 6, 24]


def exact_soft_value(log_ref, reward, beta):
    with mp.workdps(40):
        mass = [mp.exp(mp.mpf(float(q))) for q in log_ref]
        gain = [m * mp.exp(mp.mpf(float(r)) / beta) for m, r in zip(mass, reward, strict=True)]
        return float(beta * mp.log(mp.fsum(gain) / mp.fsum(mass)))


def test_soft_values_and_advantages_by_enumeration():
    reward, log_ref = random_tree(2)
    values = kt.soft_values(SPACE, reward, log_ref, 0.5)
    assert [v.shape[-1] for v in values] == [1, 3, 3, 6, 24]
    for v in values:
        blocks = zip(*(np.split(x, len(v)) for x in (log_ref, reward)), strict=True)
        close(v, [exact_soft_value(q, r, 0.5) for q, r in blocks])
    advantages = kt.token_advantages(SPACE, reward, log_ref, 0.5)
    assert [a.shape for a in advantages] == [(1, 3), (3, 1), (3, 2), (6, 4)]
    path = sum(np.repeat(np.ravel(a), 24 // a.size) for a in advantages)
    close(path, reward - values[0])


def test_rewards_of_prefixes_and_of_their_last_tokens():
    rng = np.random.default_rng(3)
    _, log_ref = random_tree(3)
    # Of 3 tokens only the last two count, of 2 only the last, which is always the same.
    rewards = tuple(rng.normal(size=n).astype(DTYPE) for n in (1, 3, 1, 2, 8))
    whole = [
        sum(r[functools.reduce(lambda n, a: n * SIZES[a[0]] + a[1], enumerate(y[:t]), 0) % len(r)]
            for t, r in enumerate(rewards))
        for y in STRINGS
    ]  # fmt: skip
    got = kt.soft_values(SPACE, rewards, SPACE.conditionals(log_ref), 0.7)
    close(got[0], kt.soft_values(SPACE, np.array(whole, DTYPE), log_ref, 0.7)[0])


def brute_token_local(reward, log_ref, beta, generator):
    """The backward recursion with mean values over strings, in arbitrary precision."""
    mass = dict(zip(STRINGS, np.exp(np.asarray(log_ref, np.float64)), strict=True))
    value = dict(zip(STRINGS, (mp.mpf(float(r)) for r in reward), strict=True))
    log_probs = dict.fromkeys(STRINGS, mp.mpf(0))
    for t in reversed(range(4)):
        for s in itertools.product(*map(range, SIZES[:t])):
            following = [(*s, a) for a in range(SIZES[t])]
            mass[s] = sum(mass[y] for y in following)
            q = [value[y] for y in following]
            logs = [mp.log(mass[y] / mass[s]) for y in following]
            found = oracles.exact_target(q, logs, beta, generator)
            value[s] = mp.fsum(p * x for p, x in zip(found.probs, q, strict=True))
            for y in STRINGS:
                if y[:t] == s:
                    log_probs[y] += found.log_probs[y[t]]
    return [float(x) for x in log_probs.values()], float(value[()])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reverse-kl", "forward-kl"])
def test_token_local_targets_by_brute_force(name):
    case = BY_ID[name]
    reward, log_ref = random_tree(4)
    beta = DTYPE.type(0.4)
    target = jax.jit(kt.token_local_target, static_argnums=0)(
        SPACE, reward, log_ref, beta, case.divergence
    )
    want, value = brute_token_local(reward, log_ref, beta, case.generator)
    close(target.log_probs, want, ulps=256)
    close(target.expected_reward, value)
    assert target.status == 0


POLICIES = [
    TabularPolicy(SIZES, 4),
    GRUPolicy(SIZES, 4, width=5),
    pytest.param(
        TransformerPolicy(SIZES, 4, width=8, num_heads=2, num_layers=1), marks=pytest.mark.slow
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_policies(policy):
    params = policy.init(key=jax.random.key(0))
    conditionals = policy.conditionals(params, SPACE)
    assert [x.shape for x in conditionals] == [(1, 3), (3, 1), (3, 2), (6, 4)]
    joint = SPACE.joint(conditionals)
    assert abs(np.exp(joint).sum() - 1) < 32 * EPS
    assert np.isfinite(joint).all()
    np.testing.assert_allclose(
        policy.log_probs(params, SPACE.sequences()).sum(-1), joint, atol=64 * EPS
    )
    num, probs = 20_000, np.exp(np.asarray(joint, np.float64))
    tokens = np.asarray(policy.sample(params, key=jax.random.key(1), num_samples=num))
    counts = np.bincount(SPACE.index(tokens), minlength=24)
    error = np.sqrt(num * probs * (1 - probs))
    assert np.all(np.abs(counts - num * probs) <= 4.5 * error)

    weights = jax.random.normal(jax.random.key(2), (24,))

    def by_tree(params):
        return jnp.sum(weights * jnp.exp(SPACE.joint(policy.conditionals(params, SPACE))))

    def by_sequence(params):
        return jnp.sum(weights * jnp.exp(policy.log_probs(params, SPACE.sequences()).sum(-1)))

    first, second = jax.jit(lambda p: (jax.grad(by_tree)(p), jax.grad(by_sequence)(p)))(params)
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, y, atol=200 * EPS)


def test_tabular_parameters_of_a_tree():
    policy = TabularPolicy(SIZES, 4)
    assert policy.num_prefixes == 1 + 3 + 3 + 6
    _, log_probs = random_tree(5)
    params = policy.from_conditionals(SPACE.conditionals(log_probs))
    assert params["logits"].shape == (13, 4)
    close(SPACE.joint(policy.conditionals(params, SPACE)), log_probs)


@pytest.mark.slow
def test_training_reaches_the_target():
    policy = TabularPolicy(SIZES, 4)
    reward, log_ref = random_tree(6)
    params = policy.from_conditionals(SPACE.conditionals(log_ref))
    run = fine_tune(policy, params, reward, Recipe(), beta=0.7, learning_rate=0.1, num_steps=800)
    target = kt.solve(kt.Objective(reward, log_ref, 0.7))
    assert np.abs(np.exp(run.log_probs) - target.probs).sum() / 2 < 1e-4


def test_fitting_refuses_tokens_of_other_positions():
    corpus = np.array([[2, 0, 1, 3], [0, 0, 0, 0]])
    fitted = fit(
        TabularPolicy(SIZES, 4), corpus, key=jax.random.key(0), num_steps=50, holdout=0.0,
        learning_rate=0.3, batch_size=None,
    )  # fmt: skip
    assert fitted.log_likelihood > -1.0  # −log 2 is the best possible
    with pytest.raises(ValueError, match=r"from 0 to 0 at position 1, got 2 at index \(0, 1\)"):
        fit(TabularPolicy(SIZES, 4), corpus[:, [1, 0, 2, 3]], key=jax.random.key(0), num_steps=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kt.SequenceSpace((2, 3), 3), "vocab_size has 2 entries, but .* 3 tokens"),
        (lambda: kt.SequenceSpace((2, 0), 2), "vocab_size must be at least 1"),
        (lambda: kt.SequenceSpace((2, 2), 2, eos=1), "eos must be None where vocab_size is a"),
        (lambda: SPACE.index([2, 1, 0, 0]), r"from 0 to 0 at position 1, got 1 at index \(1,\)"),
        (lambda: SPACE.conditionals(np.zeros(81)), "3·1·2·4 = 24 sequences"),
        (lambda: kt.SequenceSpace((10,) * 9, 9).sequences(), "10·10.* sequences, about 1e9"),
        (
            lambda: kt.soft_values(SPACE, (np.zeros(1), np.zeros(2)), (np.zeros((1, 3)),), 1.0),
            r"reward\[1\] has shape \(2,\), but must end in \[3\].* one of \[1, 3\]",
        ),
        (lambda: GRUPolicy((2, 3), 3), "vocab_size has 2 entries"),
        (lambda: GRUPolicy((2, 3), 2, eos=0), "eos must be None where vocab_size is a tuple"),
        (lambda: GRUPolicy((2, 0), 2), "vocab_size must be an integer of 1 or more"),
        (
            lambda: TabularPolicy(3, 4).conditionals({}, SPACE),
            r"vocab_size=\(3, 1, 2, 4\) and the policy vocab_size=3",
        ),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_equal_sizes_are_the_same_sequences():
    log_probs = oracles.log_normalised(np.random.default_rng(7).normal(size=8), DTYPE)
    log_probs[3] = -INF
    one, many = kt.SequenceSpace(2, 3), kt.SequenceSpace((2, 2, 2), 3)
    for x, y in zip(one.conditionals(log_probs), many.conditionals(log_probs), strict=True):
        close(x, y, ulps=4)
    params = TabularPolicy(2, 3).init(key=jax.random.key(0))
    for policy in (TabularPolicy(2, 3), TabularPolicy((2, 2, 2), 3)):
        close(policy.conditionals(params, many)[2], policy.conditionals(params, one)[2], ulps=4)
