"""Token trees against enumeration in arbitrary precision, the reference bank and identities."""

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

(DTYPE,) = DTYPES
EPS = eps(DTYPE)
TWO, THREE = kt.SequenceSpace(2, 2), kt.SequenceSpace(3, 3)
ENDING = kt.SequenceSpace(3, 3, eos=2)
TREES = {"tree2": TWO, "tree3": THREE, "tree3bin": THREE}
KLS = {"k2": kt.ReverseKL(), "k3": kt.ForwardKL()}

token_local = jax.jit(kt.token_local_target, static_argnums=0)
token_summed = jax.jit(
    functools.partial(kt.token_local_target, full_gradient=True), static_argnums=0
)
solve = jax.jit(kt.solve)
soft_values = jax.jit(kt.soft_values, static_argnums=0)
token_advantages = jax.jit(kt.token_advantages, static_argnums=0)


def strings(space):
    return list(itertools.product(range(space.vocab_size), repeat=space.length))


def bank_tree(name):
    """A tree of the bank: its space, rewards, conditionals by depth and joint, by multiplying."""
    inputs = oracles.reference(name)["inputs"]
    rows = np.array(inputs.get("ref_by_node", inputs.get("ref_row_weights")), np.float64)
    rows = rows / rows.sum(-1, keepdims=True)
    size, length = inputs["V"], inputs["L"]
    starts = [(size**t - 1) // (size - 1) if size > 1 else t for t in range(length + 1)]
    depths = [rows[a:b] for a, b in itertools.pairwise(starts)]
    probs = [
        np.prod([depths[t][number(y[:t], size), y[t]] for t in range(length)])
        for y in itertools.product(range(size), repeat=length)
    ]
    log_ref = np.log(probs).astype(DTYPE)
    return kt.SequenceSpace(size, length), np.array(inputs["r"], DTYPE), depths, log_ref


def number(tokens, size):
    return functools.reduce(lambda n, a: n * size + a, tokens, 0)


def by_node(arrays):
    return np.concatenate([np.asarray(x, np.float64) for x in arrays])


def random_tree(space, seed, *batch, scale=1.0):
    rng = np.random.default_rng(seed)
    shape = (*batch, space.num_sequences)
    log_ref = scale * rng.normal(size=shape)
    if space.eos is not None:
        log_ref = np.where(space.possible(), log_ref, -INF)
    return rng.normal(size=shape).astype(DTYPE), oracles.log_normalised(log_ref, DTYPE)


def close(got, want, ulps=64, **options):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    np.testing.assert_allclose(got, want, rtol=ulps * EPS, atol=ulps * EPS, **options)


def exact_soft_value(log_ref, reward, beta):
    """``β log E_ref[e^{r/β}]`` over some sequences, relative to their own mass."""
    with mp.workdps(60):
        mass = [mp.exp(mp.mpf(float(q))) for q in log_ref]
        beta = mp.mpf(float(beta))
        gain = [m * mp.exp(mp.mpf(float(r)) / beta) for m, r in zip(mass, reward, strict=True)]
        return float(beta * mp.log(mp.fsum(gain) / mp.fsum(mass)))


@pytest.mark.parametrize("space", [TWO, THREE, kt.SequenceSpace(1, 3), kt.SequenceSpace(4, 1)])
def test_sequences_are_in_lexicographic_order(space):
    tokens = np.asarray(space.sequences())
    assert tokens.dtype == np.int32
    assert [tuple(y) for y in tokens] == strings(space)
    assert space.num_sequences == len(tokens)
    np.testing.assert_array_equal(space.index(tokens), np.arange(len(tokens)))
    assert space.index(tokens[-1]) == len(tokens) - 1


def test_index_takes_any_batch_shape():
    picks = np.random.default_rng(0).integers(27, size=(2, 1, 4))
    np.testing.assert_array_equal(THREE.index(THREE.sequences()[picks]), picks)
    assert jax.jit(THREE.index)(jnp.array([0, 3, 0])) == -1


def test_a_space_is_a_static_argument():
    assert kt.SequenceSpace(np.int64(2), 2) == TWO
    assert hash(TWO) == hash(kt.SequenceSpace(2, 2))
    assert {ENDING, THREE, kt.SequenceSpace(3, 3)} == {ENDING, THREE}
    assert jax.tree.leaves(ENDING) == []
    assert jax.jit(lambda space: space.possible())(ENDING).sum() == 8 + 1 + 2 + 4
    assert pickle.loads(pickle.dumps(ENDING)) == ENDING


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (2, 1, 3)])
def test_conditionals_and_joint_are_inverses(shape):
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(*shape, 27)) * 3
    weights[rng.uniform(size=weights.shape) < 0.3] = -INF
    weights[..., 9:18] = -INF  # a first token that is impossible
    weights[..., 3:6] = -INF
    weights[..., 2] = -700
    log_probs = oracles.log_normalised(weights, DTYPE)

    def total(log_probs):
        parts = THREE.conditionals(log_probs)
        leaves = (*parts, THREE.joint(parts), *THREE.prefix_log_masses(log_probs))
        return sum(jnp.sum(jnp.sin(jnp.where(jnp.isfinite(x), x, 0))) for x in leaves)

    @jax.jit
    def there_and_back(log_probs):
        given = THREE.conditionals(log_probs)
        back = THREE.joint(given)
        return given, back, THREE.conditionals(back), jax.grad(total)(log_probs)

    given, back, again, gradient = jax.tree.map(np.asarray, there_and_back(log_probs))
    assert [x.shape for x in given] == [(*shape, 1, 3), (*shape, 3, 3), (*shape, 9, 3)]
    for x in given:
        assert x.dtype == DTYPE
        close(np.exp(np.asarray(x, np.float64)).sum(-1), 1)
    np.testing.assert_array_equal(np.isneginf(back), np.isneginf(log_probs))
    finite = log_probs > -INF
    bound = 8 * EPS * (1 + np.abs(log_probs[finite]))
    assert np.all(np.abs(back[finite] - log_probs[finite]) <= bound)
    for x, y in zip(again, given, strict=True):
        reachable = np.isfinite(y)
        np.testing.assert_array_equal(np.isfinite(x), reachable)
        # A conditional is a difference of log-masses as large as 700.
        np.testing.assert_allclose(x, y, rtol=32 * EPS, atol=16 * EPS * 700)
    assert np.isfinite(gradient).all()
    assert np.all(gradient[~finite] == 0)
    assert np.any(gradient != 0)


def test_conditionals_and_masses_by_enumeration():
    _, log_probs = random_tree(THREE, 1, 2)
    probs = np.exp(np.asarray(log_probs, np.float64))
    given, masses = THREE.conditionals(log_probs), THREE.prefix_log_masses(log_probs)
    tree = probs.reshape(2, 3, 3, 3)
    wanted = [tree.sum((1, 2, 3)), tree.sum((2, 3)), tree.sum(3), tree]
    for t, mass in enumerate(wanted):
        close(np.exp(masses[t]), mass.reshape(2, -1))
        if t:
            ratio = mass / np.expand_dims(wanted[t - 1], -1)
            close(np.exp(given[t - 1]), ratio.reshape(2, -1, 3))


def test_joint_broadcasts_batches():
    root = np.log([[0.5, 0.5]]).astype(DTYPE)
    after = np.log(np.full((4, 2, 2), 0.5)).astype(DTYPE)
    assert TWO.joint((root, after)).shape == (4, 4)


def hand_made_ending():
    """Token 2 ends; the sequences of V=3, L=3 and their probabilities, by a small loop."""
    first, second, third = [0.5, 0.2, 0.3], [[0.1, 0.6, 0.3], [0.25, 0.25, 0.5]], [0.2, 0.7, 0.1]
    probs, lengths = np.zeros(27), np.zeros(27, int)
    for k, (a, b, c) in enumerate(strings(ENDING)):
        lengths[k] = 1 if a == 2 else 2 if b == 2 else 3
        if a == 2:
            probs[k] = first[2] if b == c == 2 else 0
        elif b == 2:
            probs[k] = first[a] * second[a][2] if c == 2 else 0
        else:
            probs[k] = first[a] * second[a][b] * third[c]
    uniform = [1 / 3] * 3
    after = np.array([first], DTYPE), np.array([*second, uniform], DTYPE)
    with np.errstate(divide="ignore"):
        return np.log(probs), lengths, tuple(map(np.log, (*after, np.array([third] * 9, DTYPE))))


def test_eos_by_hand():
    log_probs, lengths, given = hand_made_ending()
    possible = np.asarray(ENDING.possible())
    np.testing.assert_array_equal(possible, log_probs > -INF)
    assert possible.sum() == 1 + 2 + 12
    np.testing.assert_array_equal(ENDING.lengths(), lengths)
    np.testing.assert_array_equal(THREE.lengths(), 3)
    assert np.asarray(THREE.possible()).all()

    # What a model says after eos is not looked at.
    joint = np.asarray(ENDING.joint(given))
    np.testing.assert_array_equal(np.isneginf(joint), ~possible)
    close(np.exp(joint), np.exp(log_probs))
    found = ENDING.conditionals(log_probs.astype(DTYPE))
    close(np.exp(found[1][0]), [0.1, 0.6, 0.3])
    np.testing.assert_array_equal(found[1][2], [-INF, -INF, 0])
    for node in (2, 5, 8):
        np.testing.assert_array_equal(found[2][node], [-INF, -INF, 0])
    close(found[2][6], np.log(1 / 3))  # after "2 0", which does not exist
    np.testing.assert_array_equal(
        np.asarray(ENDING.joint(found)) > -INF, np.asarray(log_probs) > -INF
    )


def test_targets_on_sequences_that_end():
    log_ref = hand_made_ending()[0].astype(DTYPE)
    possible = np.asarray(ENDING.possible())
    reward = np.random.default_rng(5).normal(size=27).astype(DTYPE)
    reward[~possible] = 9.0  # does not count
    for divergence in KLS.values():
        target = token_local(ENDING, reward, log_ref, DTYPE.type(0.3), divergence)
        assert target.status == 0
        np.testing.assert_array_equal(np.asarray(target.log_probs) > -INF, possible)
        close(target.probs.sum(), 1)
        # The same tree without the dead branches, node by node.
        third = [
            solved([reward[9 * a + 3 * b + c] for c in range(3)], [0.2, 0.7, 0.1], divergence)
            for a in range(2)
            for b in range(2)
        ]
        second = [
            solved([third[2 * a][1], third[2 * a + 1][1], reward[9 * a + 8]], probs, divergence)
            for a, probs in enumerate([[0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])
        ]
        first = solved([second[0][1], second[1][1], reward[26]], [0.5, 0.2, 0.3], divergence)
        close(target.expected_reward, first[1])
        close(target.probs[26], first[0][2])
        close(target.probs[8], first[0][0] * second[0][0][2])
        close(target.probs[13], first[0][1] * second[1][0][1] * third[3][0][1])


def solved(rewards, probs, divergence, beta=0.3):
    """One node's policy and mean value in arbitrary precision."""
    generator = BY_ID["reverse-kl" if divergence == kt.ReverseKL() else "forward-kl"].generator
    rewards = [r if isinstance(r, mp.mpf) else mp.mpf(float(r)) for r in rewards]
    found = oracles.exact_target(rewards, np.log(probs), DTYPE.type(beta), generator)
    return [float(p) for p in found.probs], mp.fsum(
        p * r for p, r in zip(found.probs, rewards, strict=True) if p > 0
    )


def test_soft_values_on_sequences_that_end():
    log_ref = hand_made_ending()[0].astype(DTYPE)
    reward = np.random.default_rng(6).normal(size=27).astype(DTYPE)
    values = kt.soft_values(ENDING, reward, log_ref, 0.5)
    advantages = kt.token_advantages(ENDING, reward, log_ref, 0.5)
    possible = np.asarray(ENDING.possible())
    close(values[0][0], exact_soft_value(log_ref[possible], reward[possible], 0.5))
    close(values[1][2], reward[26])
    close(values[2][5], reward[17])
    np.testing.assert_array_equal(advantages[2][5], [-INF, -INF, 0])
    np.testing.assert_array_equal(advantages[1][2], [-INF, -INF, 0])


@pytest.mark.parametrize(
    "name", [*oracles.reference_ids("tree2-"), *oracles.slow(oracles.reference_ids("tree3"))]
)
def test_targets_of_the_bank_on_trees(name):
    case = oracles.reference(name)
    space, reward, depths, log_ref = bank_tree(name)
    expected, check = case["expected"], functools.partial(oracles.assert_reference, name)
    check = functools.partial(check, dtype=DTYPE, ulps=256)
    close(by_node(np.exp(np.asarray(x, np.float64)) for x in space.conditionals(log_ref)),
          np.concatenate(depths))  # fmt: skip
    if "beta_c" in expected:
        b = expected["b_at_min"]
        ratios = [x / spread(space, reward, log_ref, x, "k2") for x in (b, 0.9 * b, 1.1 * b)]
        np.testing.assert_allclose(ratios[0], expected["beta_c"], rtol=max(1e-10, 256 * EPS))
        assert min(ratios) == ratios[0]
    elif "beta_eff" in expected:
        estimator = "k2" if "-k2-" in name else "k3"
        for beta in expected["all_beta_eff"]:
            sigma = spread(space, reward, log_ref, beta, estimator)
            np.testing.assert_allclose(
                beta, case["inputs"]["beta"] * sigma, rtol=max(1e-8, 256 * EPS)
            )
        target = local(space, reward, log_ref, expected["beta_eff"], estimator)
        check(target.probs, "pi")
        check(target.expected_reward, "mean_reward")
    elif "tok_local" in name:
        target = local(space, reward, log_ref, case["inputs"]["beta"], name[-2:])
        assert target.status == 0
        check(target.probs, "pi")
        check(target.expected_reward, "mean_reward")
        given = space.conditionals(target.log_probs)
        check(by_node(map(np.exp, given)), "policy_by_node")
    elif "seq_" in name:
        divergence = kt.ReverseKL() if "reverse" in name else kt.ForwardKL()
        beta = DTYPE.type(case["inputs"]["beta"])
        target = solve(kt.Objective(reward, log_ref, beta, divergence))
        check(target.probs, "pi")
        check(target.expected_reward, "mean_reward")
        if "soft_values_by_node" in expected:
            values = kt.soft_values(space, reward, log_ref, beta)
            np.testing.assert_array_equal(values[-1], reward)
            check(by_node(values[:-1]), "soft_values_by_node")
    elif "-tv" in name:
        objective = kt.Objective(reward, log_ref, DTYPE.type(case["inputs"]["beta"]))
        reverse = solve(objective).probs
        for estimator in KLS:
            target = local(space, reward, log_ref, case["inputs"]["beta"], estimator)
            apart = np.abs(np.asarray(target.probs, np.float64) - reverse).sum() / 2
            close(apart, expected[f"tok_local_{estimator}"]["to_seq_reverse"])
    else:
        assert "tok_forward_full" in name
        beta = DTYPE.type(case["inputs"]["beta"])
        target = token_summed(space, reward, log_ref, beta, kt.ForwardKL())
        check(target.probs, "pi")
        check(target.expected_reward, "mean_reward")
        objective = summed_objective(space, reward, log_ref, beta, kt.ForwardKL())
        check(objective(space.conditionals(target.log_probs)), "value")


def local(space, reward, log_ref, beta, estimator):
    return token_local(space, reward, log_ref, DTYPE.type(beta), KLS[estimator])


def spread(space, reward, log_ref, beta, estimator):
    probs = np.asarray(local(space, reward, log_ref, beta, estimator).probs, np.float64)
    mean = probs @ reward
    return float(np.sqrt(probs @ (reward - mean) ** 2))


def test_problem_and_advantages_of_the_bank():
    case = oracles.reference("problem-tree3")["expected"]
    space, reward, depths, log_ref = bank_tree("tree3-b0.3-seq_reverse")
    joint = space.joint([np.log(x).astype(DTYPE) for x in depths])
    close(np.exp(joint[jnp.array([0, 13, 26])]), case["leaves"])
    rows = by_node(np.exp(x) for x in space.conditionals(log_ref))
    close(rows[[0, 1, 4, 12]], case["rows"])
    close(reward[:6], case["rewards_first_six"])

    space, reward, _, log_ref = bank_tree("prl-tree2")
    advantages = kt.token_advantages(space, reward, log_ref, DTYPE.type(0.3))
    oracles.assert_reference("prl-tree2", by_node(advantages), "token_advantages", DTYPE, ulps=64)
    root = kt.soft_values(space, reward, log_ref, DTYPE.type(0.3))[0][0]
    oracles.assert_reference("prl-tree2", root, "V_root", DTYPE)


BETAS = np.array([1e-3, 0.1, 1, 1e6], DTYPE)


def test_soft_values_by_enumeration():
    reward, log_ref = random_tree(THREE, 11, 4, scale=2.0)
    values = kt.soft_values(THREE, reward, log_ref, BETAS)
    assert [v.shape for v in values] == [(4, 1), (4, 3), (4, 9), (4, 27)]
    for row, beta in enumerate(BETAS):
        for t, v in enumerate(values):
            blocks = zip(*(np.split(x[row], 3**t) for x in (log_ref, reward)), strict=True)
            # Large β forms a mean of rewards: the rounding of the conditionals counts once.
            close(v[row], [exact_soft_value(q, r, beta) for q, r in blocks])


def test_advantages_telescope_and_are_the_token_log_ratios():
    """Claim: the optimum's log ratios of tokens, times β, are advantages that add up to r less the
    soft value of the prompt (arXiv 2404.12358).

    Holds.
    """
    reward, log_ref = random_tree(THREE, 11, 4, scale=2.0)
    values = kt.soft_values(THREE, reward, log_ref, BETAS)
    advantages = kt.token_advantages(THREE, reward, log_ref, BETAS)
    path = sum(np.repeat(np.asarray(x).reshape(4, -1), 27 // (3 * 3**t), axis=-1)
               for t, x in enumerate(advantages))  # fmt: skip
    close(path, reward - np.asarray(values[0]))
    target = solve(kt.Objective(reward, log_ref, BETAS))
    close(target.value, values[0][:, 0])
    pairs = zip(THREE.conditionals(target.log_probs), THREE.conditionals(log_ref), strict=True)
    for t, (pi, ref) in enumerate(pairs):
        row = 1  # where neither β nor 1/β is large
        close((pi - ref)[row] * BETAS[row], advantages[t][row], ulps=256)


def summed_objective(space, reward, log_ref, beta, divergence):
    """``E_π[reward − beta Σ_t D(π(·|s_t), π_ref(·|s_t))]`` as a function of a logit per token."""
    refs = space.conditionals(log_ref)

    def value(logits):
        mass, cost, levels = jnp.ones(1, DTYPE), 0.0, []
        for x, ref in zip(logits, refs, strict=True):
            levels.append(jax.nn.log_softmax(x))
            cost = cost + jnp.sum(mass * divergence(levels[-1], ref))
            mass = (mass[:, None] * jnp.exp(levels[-1])).ravel()
        return jnp.sum(mass * reward) - beta * cost

    return value


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [kt.ForwardKL(), kt.JensenShannon()], ids=lambda d: d.name)
def test_the_full_gradient_of_a_divergence_summed_over_tokens_vanishes(divergence):
    reward, log_ref = random_tree(THREE, 17)
    beta = DTYPE.type(0.3)
    target = token_summed(THREE, reward, log_ref, beta, divergence)
    objective = jax.jit(jax.grad(summed_objective(THREE, reward, log_ref, beta, divergence)))
    gradient = objective(THREE.conditionals(target.log_probs))
    assert max(np.abs(x).max() for x in gradient) < 64 * EPS
    local = token_local(THREE, reward, log_ref, beta, divergence)
    gradient = objective(THREE.conditionals(local.log_probs))
    assert max(np.abs(x).max() for x in gradient) > 1e-3


@pytest.mark.slow
def test_reverse_kl_summed_over_tokens_is_that_of_sequences():
    reward, log_ref = random_tree(THREE, 18, 2)
    reward[0, :9] = reward[1, 4] = -INF
    beta = np.array([0.2, 3.0], DTYPE)
    target = token_summed(THREE, reward, log_ref, beta, kt.ReverseKL())
    whole = solve(kt.Objective(reward, log_ref, beta))
    close(target.log_probs, whole.log_probs, ulps=128)
    close(target.objective_value, whole.value, ulps=128)


def per_prefix(space, seed, last):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=space.vocab_size**t).astype(DTYPE) for t in range(last + 1))


def spread_out(space, rewards):
    """Per-prefix rewards as rewards of whole sequences."""
    total = np.zeros(space.num_sequences)
    for k, y in enumerate(strings(space)):
        for t, r in enumerate(rewards):
            if space.eos is None or space.eos not in y[: max(t - 1, 0)]:
                total[k] += r[number(y[:t], space.vocab_size) % len(r)]
    return total.astype(DTYPE)


@pytest.mark.broad
@pytest.mark.quick_only("2")
@pytest.mark.parametrize("last", [0, 2, 3])
def test_rewards_per_prefix_add_up(last):
    _, log_ref = random_tree(THREE, 12)
    rewards = per_prefix(THREE, 13, last)
    got = soft_values(THREE, rewards, THREE.conditionals(log_ref), 0.7)
    assert [v.shape for v in got] == [(3**t,) for t in range(last + 1)]
    same = soft_values(THREE, rewards, log_ref, 0.7)
    for x, y in zip(got, same, strict=True):
        close(x, y)
    whole = spread_out(THREE, rewards)
    values = soft_values(THREE, whole, log_ref, 0.7)
    close(got[0], values[0])
    advantages = token_advantages(THREE, rewards, log_ref, 0.7)
    wanted = token_advantages(THREE, whole, log_ref, 0.7)
    assert len(advantages) == last
    for t in range(3):
        close(advantages[t] if t < last else np.zeros((3**t, 3)), wanted[t], ulps=256)


@pytest.mark.slow
def test_only_the_last_tokens_may_count():
    # A bigram reference, rewards of pairs: the same as on the full tree, also when scanned.
    rng = np.random.default_rng(14)
    space = kt.SequenceSpace(2, 6)
    bigram = np.log(rng.dirichlet(np.ones(2), size=2)).astype(DTYPE)
    pair = rng.normal(size=4).astype(DTYPE)
    rewards = (np.zeros(1, DTYPE), np.zeros(1, DTYPE), *[pair] * 5)
    given = (bigram[:1], *[bigram] * 5)
    values = soft_values(space, rewards, given, 0.4)
    assert [v.shape[-1] for v in values] == [1, 2, 4, 4, 4, 4, 4]
    full = tuple(np.tile(x, (2**t // len(x), 1)) for t, x in enumerate(given))
    joint = np.asarray(jax.jit(space.joint)(full))
    whole = soft_values(space, spread_out(space, rewards), joint, 0.4)
    close(values[0], whole[0])
    advantages = token_advantages(space, rewards, given, 0.4)
    wanted = token_advantages(space, spread_out(space, rewards), joint, 0.4)
    for x, y in zip(advantages, wanted, strict=True):
        close(np.tile(x, (y.shape[0] // x.shape[0], 1)), y, ulps=256)
    gradient = jax.jit(
        jax.grad(lambda r: kt.soft_values(space, (*rewards[:2], *[r] * 5), given, 0.4)[0][0])
    )
    target = solve(kt.Objective(spread_out(space, rewards), joint, DTYPE.type(0.4)))
    counts = [[sum(y[i : i + 2] == p for i in range(5)) for p in strings(TWO)]
              for y in strings(space)]  # fmt: skip
    close(gradient(pair), np.asarray(target.probs, np.float64) @ np.array(counts))


@pytest.mark.broad
def test_rewards_per_prefix_end_with_the_sequence():
    log_ref, _, given = hand_made_ending()
    rewards = per_prefix(ENDING, 15, 3)
    whole = spread_out(ENDING, rewards)
    got = kt.soft_values(ENDING, rewards, given, 0.7)
    want = kt.soft_values(ENDING, whole, log_ref.astype(DTYPE), 0.7)
    close(got[0], want[0])
    last = tuple(r[-3:] if len(r) > 1 else r for r in rewards)  # by the last token alone
    narrow = kt.soft_values(ENDING, last, (given[0], given[1], given[2][:1]), 0.7)
    want = kt.soft_values(ENDING, spread_out(ENDING, last), log_ref.astype(DTYPE), 0.7)
    assert narrow[2].shape == (3,) if given[1].shape[0] < 3 else (9,)
    close(narrow[0], want[0])


def test_nothing_is_enumerated_for_rewards_per_prefix():
    space = kt.SequenceSpace(50_000, 1000)
    even = np.full((1, 50_000), -np.log(50_000), DTYPE)
    rewards = np.zeros(1, DTYPE), np.linspace(0, 1, 50_000, dtype=DTYPE)
    values = kt.soft_values(space, rewards, (even,), 1.0)
    np.testing.assert_allclose(values[0], np.log(np.e - 1), rtol=1e-4)
    with pytest.raises(ValueError, match=r"50000\*\*1000 sequences, about 1e4699"):
        space.sequences()


@pytest.mark.slow
def test_forbidden_sequences_have_soft_values():
    reward, log_ref = random_tree(THREE, 16)
    reward[:9] = -INF
    reward[10] = -INF
    log_ref[18:] = -INF
    log_ref = oracles.log_normalised(log_ref.astype(np.float64), DTYPE)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    def found(reward, log_ref, beta):
        given = THREE, reward, log_ref, beta
        values, advantages = kt.soft_values(*given), kt.token_advantages(*given)
        parts = (*values, *advantages)
        total = sum(jnp.sum(jnp.sin(jnp.where(jnp.isfinite(x), x, 0))) for x in parts)
        return total, (values, advantages)

    gradients, (values, advantages) = jax.tree.map(
        np.asarray, found(reward, log_ref, DTYPE.type(0.5))
    )
    close(values[0][0], exact_soft_value(log_ref[9:18], reward[9:18], 0.5) +
          0.5 * np.log(np.exp(log_ref[9:18].astype(np.float64)).sum()))  # fmt: skip
    assert values[1][0] == -INF
    assert advantages[0][0, 0] == -INF
    np.testing.assert_array_equal(advantages[1][0], 0)
    close(values[2][8], exact_soft_value(np.log([1 / 3] * 3), reward[24:], 0.5))
    assert not any(np.isnan(x).any() for x in (*values, *advantages))
    assert all(np.isfinite(x).all() for x in gradients)


def brute_token_local(space, reward, log_ref, beta, generator):
    """The recursion, over strings and in arbitrary precision; impossible prefixes are uniform."""
    mass = dict(zip(strings(space), np.exp(np.asarray(log_ref, np.float64)), strict=True))
    for length in reversed(range(space.length)):
        for s in itertools.product(range(space.vocab_size), repeat=length):
            mass[s] = sum(mass[(*s, a)] for a in range(space.vocab_size))
    value = dict(zip(strings(space), (mp.mpf(float(r)) for r in reward), strict=True))
    log_probs = dict.fromkeys(strings(space), mp.mpf(0))
    for length in reversed(range(space.length)):
        for s in itertools.product(range(space.vocab_size), repeat=length):
            following = [(*s, a) for a in range(space.vocab_size)]
            q = [value[y] for y in following]
            ref = [mass[y] / mass[s] if mass[s] else 1 / space.vocab_size for y in following]
            if not any(m > 0 and x > -mp.inf for m, x in zip(ref, q, strict=True)):
                value[s] = -mp.inf
                continue
            logs = [mp.log(m) if m else -mp.inf for m in ref]
            found = oracles.exact_target(q, logs, beta, generator)
            value[s] = mp.fsum(p * x for p, x in zip(found.probs, q, strict=True) if p > 0)
            for y in log_probs:
                if y[:length] == s:
                    log_probs[y] += found.log_probs[y[length]]
    return np.array([float(x) for x in log_probs.values()]), float(value[()])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reverse-kl", "forward-kl", "chi-squared"])
def test_token_local_targets_by_brute_force(name):
    case = BY_ID[name]
    reward, log_ref = random_tree(THREE, 21)
    reward[:9] = -INF  # a whole branch is forbidden, and a single sequence
    reward[12] = -INF
    log_ref[18:21] = -INF  # a prefix without mass
    log_ref = oracles.log_normalised(log_ref.astype(np.float64), DTYPE)
    beta = DTYPE.type(0.3)
    target = token_local(THREE, reward, log_ref, beta, case.divergence)
    want, value = brute_token_local(THREE, reward, log_ref, beta, case.generator)
    got = np.asarray(target.log_probs)
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want))
    finite = want > -INF
    np.testing.assert_allclose(got[finite], want[finite], rtol=256 * EPS, atol=256 * EPS)
    close(target.expected_reward, value)
    assert not int(target.status) & 0xFFF0
    truncated = np.isneginf(want) & (log_ref > -INF) & (reward > -INF)
    assert bool(target.status & kt.Status.TRUNCATED) == truncated.any()
    assert bool(target.status & kt.Status.CONDENSED) == (want[18:21] > -INF).any()


ONE = kt.SequenceSpace(4, 1)


@pytest.mark.broad
@pytest.mark.quick_only("reverse KL")
@pytest.mark.parametrize("divergence", [*KLS.values(), kt.TotalVariation()], ids=lambda d: d.name)
def test_one_token_is_solve(divergence):
    reward, log_ref = random_tree(ONE, 22, 3)
    beta = np.array([0.1, 0.5, 2], DTYPE)
    target = token_local(ONE, reward, log_ref, beta, divergence)
    whole = solve(kt.Objective(reward, log_ref, beta, divergence))
    for name in ("log_probs", "multiplier", "status", "expected_reward"):
        close(getattr(target, name), getattr(whole, name), ulps=128, err_msg=name)
    close(target.objective_value, whole.value, ulps=128)


def test_value_is_the_objective_there_and_not_its_maximum():
    reward, log_ref = random_tree(TWO, 23)
    target = kt.token_local_target(TWO, reward, log_ref, DTYPE.type(0.3), kt.ReverseKL())
    assert not isinstance(target, kt.Target)
    probs, ref = np.exp([np.asarray(target.log_probs, np.float64), log_ref])
    close(target.objective_value, probs @ reward - 0.3 * probs @ np.log(probs / ref), ulps=256)
    close(target.divergence_value, probs @ np.log(probs / ref))
    best = solve(target.objective)
    gap = best.gap(target.log_probs)
    close(best.value - target.objective_value, gap)
    assert gap > 1e-3


@pytest.mark.parametrize("estimator", KLS)
def test_equal_siblings_keep_their_reference_ratio(estimator):
    reward, log_ref = random_tree(THREE, 24)
    reward[4] = reward[5] = reward[20] = 0.5
    probs = local(THREE, reward, log_ref, 0.2, estimator).log_probs
    close(probs[4] - probs[5], log_ref[4] - log_ref[5], ulps=256)
    assert abs((probs[4] - probs[20]) - (log_ref[4] - log_ref[20])) > 0.01


@pytest.mark.slow
def test_under_tracing_only_the_bad_rows_fail():
    reward, log_ref = random_tree(TWO, 25, 6)
    beta = np.full(6, 0.5, DTYPE)
    beta[1] = -1
    reward[2, 3] = np.nan
    log_ref[3] += 1
    reward[4] = -INF
    log_ref[5, 0] = np.nan
    target = token_local(TWO, reward, log_ref, beta, kt.ForwardKL())
    status = [int(x) for x in target.status]
    assert status[0] == 0
    for row, bit in ((1, "BETA"), (2, "REWARD"), (3, "REFERENCE"), (5, "REFERENCE")):
        assert status[row] & kt.Status[f"INVALID_{bit}"], (row, status)
    assert status[4] == kt.Status.EMPTY_SUPPORT
    numbers = (target.log_probs, target.multiplier, target.objective_value, target.expected_reward)
    for x in numbers:
        assert np.isfinite(x[0]).all()
        assert np.isnan(x[1:]).all()
    with pytest.raises(ValueError, match="INVALID_BETA"):
        target.raise_if_failed()
    values = soft_values(TWO, reward, log_ref, beta)
    assert np.isfinite(values[0][0])
    assert values[0][4] == -INF
    assert np.isnan(np.asarray(values[0])[[1, 2, 3, 5]]).all()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", KLS)
def test_gradients_of_token_local_targets(estimator):
    reward, log_ref = random_tree(TWO, 26)
    weights = np.arange(1, 5).astype(DTYPE)

    @jax.jit
    def numbers(reward, logits, beta):
        target = kt.token_local_target(TWO, reward, kt.normalize(logits), beta, KLS[estimator])
        return jnp.stack(
            [target.log_probs @ weights, target.objective_value, target.expected_reward]
        )

    arguments = (reward, log_ref, DTYPE.type(0.3))
    gradients = jax.jit(jax.jacrev(numbers, (0, 1, 2)))(*arguments)
    assert all(np.isfinite(x).all() for x in gradients)
    # A constant added to all rewards moves no probability, only the values.
    close(gradients[0].sum(-1), [0, 1, 1], ulps=1024)
    if np.float64 == DTYPE:
        for k, (x, argument) in enumerate(zip(gradients, arguments, strict=True)):
            for i in range(np.size(argument)):

                def moved(by, k=k, i=i, argument=argument):
                    changed = np.array(argument)
                    changed.flat[i] += by
                    return numbers(*arguments[:k], changed, *arguments[k + 1 :])

                slope = oracles.central_difference(moved, 0.0, 1e-3)
                np.testing.assert_allclose(x.reshape(3, -1)[:, i], slope, rtol=1e-8, atol=1e-9)


def test_gradients_of_soft_values():
    reward, log_ref = random_tree(TWO, 27)

    @jax.jit
    def root(reward, logits, beta):
        return kt.soft_values(TWO, reward, kt.normalize(logits), beta)[0][0]

    for beta in (0.3, 30):  # logarithms as they stand, and of what is near 1
        arguments = (reward, log_ref, DTYPE.type(beta))
        gradients = jax.grad(root, (0, 1, 2))(*arguments)
        probs = solve(kt.Objective(reward, log_ref, arguments[2])).probs
        close(gradients[0], probs)
        close(gradients[1], beta * (probs - np.exp(log_ref)), ulps=64 * beta)
        cost = kt.kl(probs := jnp.log(probs), log_ref)
        np.testing.assert_allclose(gradients[2], -cost, rtol=1e-6, atol=64 * EPS)


@pytest.mark.slow
def test_derivatives_are_finite_where_things_are_impossible():
    reward, log_ref = random_tree(THREE, 21)
    reward[:9] = reward[12] = -INF
    log_ref[18:21] = -INF
    log_ref = oracles.log_normalised(log_ref.astype(np.float64), DTYPE)

    def total(reward, log_ref, beta):
        target = kt.token_local_target(THREE, reward, log_ref, beta, kt.ForwardKL())
        finite = jnp.where(jnp.isfinite(target.log_probs), target.log_probs, 0)
        return jnp.sum(jnp.sin(finite)) + target.expected_reward

    gradients = jax.jit(jax.grad(total, (0, 1, 2)))(reward, log_ref, DTYPE.type(0.3))
    assert all(np.isfinite(x).all() for x in gradients)
    assert np.all(gradients[0][:9] == 0)


@pytest.mark.parametrize("dtype", [DTYPE, np.dtype(jnp.bfloat16)], ids=str)
def test_the_dtype_is_kept(dtype):
    reward, log_ref = (x.astype(dtype) for x in random_tree(TWO, 28))
    target = kt.token_local_target(TWO, reward, log_ref, 0.5, kt.ReverseKL())
    found = (
        target.log_probs,
        target.multiplier,
        target.objective_value,
        *kt.soft_values(TWO, reward, log_ref, 0.5),
        *kt.token_advantages(TWO, reward, log_ref, 0.5),
        *TWO.conditionals(log_ref),
        *TWO.prefix_log_masses(log_ref),
        TWO.joint(TWO.conditionals(log_ref)),
    )
    assert {x.dtype for x in found} == {dtype}


@pytest.mark.slow
def test_a_million_sequences():
    space = kt.SequenceSpace(10, 6)
    reward, log_ref = (x.astype(np.float32) for x in random_tree(space, 31))
    back = space.joint(space.conditionals(log_ref))
    np.testing.assert_allclose(back, log_ref, rtol=1e-5)
    target = token_local(space, reward, log_ref, np.float32(0.5), kt.ReverseKL())
    assert target.status == 0
    np.testing.assert_allclose(np.asarray(target.probs, np.float64).sum(), 1, rtol=1e-5)
    root = kt.soft_values(space, reward, log_ref, np.float32(0.5))[0][0]
    np.testing.assert_allclose(root, solve(kt.Objective(reward, log_ref, 0.5)).value, rtol=1e-5)
    assert target.objective_value < root
    tokens = np.asarray(space.sequences())
    assert tokens.shape == (10**6, 6)
    np.testing.assert_array_equal(space.index(tokens[::99_991]), np.arange(0, 10**6, 99_991))


HUGE = kt.SequenceSpace(10, 9)
PAIR = np.log([[0.5, 0.5]])
ERRORS = [
    (lambda: kt.SequenceSpace(0, 2), ValueError, "vocab_size must be at least 1, got 0"),
    (lambda: kt.SequenceSpace(2, 0), ValueError, "length must be at least 1"),
    (lambda: kt.SequenceSpace(2.5, 2), TypeError, "vocab_size must be an integer, got 2.5"),
    (lambda: kt.SequenceSpace(2, 2, eos=2), ValueError, "eos must be a token, from 0 to 1"),
    (HUGE.sequences, ValueError, r"10\*\*9 sequences, about 1e9, and at most 100,000,000"),
    (HUGE.possible, ValueError, "100,000,000"),
    (lambda: HUGE.conditionals(PAIR), ValueError, "100,000,000"),
    (lambda: kt.soft_values(HUGE, PAIR, PAIR, 1.0), ValueError, "100,000,000"),
    (lambda: TWO.conditionals(np.zeros(5)), ValueError, r"log_probs has shape \(5,\).* must be 4"),
    (lambda: TWO.conditionals(0.0), ValueError, r"log_probs has shape \(\)"),
    (lambda: TWO.index([0, 1, 1]), ValueError, r"tokens has shape \(3,\)"),
    (lambda: TWO.index([0.0, 1.0]), TypeError, "tokens must be integers"),
    (lambda: TWO.index([[0, 1], [0, 2]]), ValueError, r"got 2 at index \(1, 1\)"),
    (lambda: TWO.joint((PAIR,)), ValueError, "conditionals has 1 arrays; 2 are needed"),
    (lambda: TWO.joint((PAIR, PAIR)), ValueError, r"conditionals\[1\] has shape \(1, 2\)"),
    (
        lambda: TWO.joint((np.zeros((2, 1, 2)), np.zeros((3, 2, 2)))),
        ValueError,
        "batch axes of conditionals do not broadcast",
    ),
    (
        lambda: ENDING.conditionals(np.full(27, -np.log(27))),
        ValueError,
        "log_probs must be -inf at sequences that continue after eos.* at index 6",
    ),
    (
        lambda: kt.token_local_target(TWO, np.zeros(3), np.zeros(4), 1.0, kt.ReverseKL()),
        ValueError,
        r"reward has shape \(3,\)",
    ),
    (
        lambda: kt.token_local_target(TWO, np.zeros(4), np.zeros(4), 1.0, kt.ReverseKL()),
        ValueError,
        "log_ref is not normalised",
    ),
    (lambda: kt.soft_values(TWO, np.zeros(4), np.zeros(4), 1.0), ValueError, "log_ref is not norm"),
    (lambda: kt.soft_values(TWO, np.zeros(4), np.zeros(3), 1.0), ValueError, "log_ref has shape"),
    (
        lambda: kt.soft_values(TWO, (np.zeros(1), np.full(2, np.nan)), (PAIR,), 1.0),
        ValueError,
        r"reward\[1\] must be finite or -inf, got nan at index 0",
    ),
    (
        lambda: kt.soft_values(TWO, (np.zeros(1), np.zeros(3)), (PAIR,), 1.0),
        ValueError,
        r"reward\[1\] has shape \(3,\), but must end in \[2\*\*1\]",
    ),
    (
        lambda: kt.soft_values(TWO, (np.zeros(1), np.zeros(2)), (), 1.0),
        ValueError,
        "log_ref has 0 arrays of conditionals",
    ),
    (lambda: kt.soft_values(TWO, (), (), 1.0), ValueError, "reward has 0 arrays"),
    (
        lambda: kt.soft_values(TWO, (np.zeros(1), np.zeros(2)), (PAIR + 1,), 1.0),
        ValueError,
        r"log_ref\[0\] is not normalised",
    ),
    (
        lambda: kt.soft_values(TWO, (np.zeros(1), np.zeros(2)), (PAIR,), 0.0),
        ValueError,
        "beta must be above 0",
    ),
    (
        lambda: kt.soft_values(TWO, np.zeros((2, 4)), np.log(np.full(4, 0.25)), np.ones(3)),
        ValueError,
        "batch axes of reward",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_name_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message):
        call()
