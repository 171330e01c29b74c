"""Fixed points of per-token losses over texts too many to list, against trees of a few."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_reference, reference
from test_automata import DIVERGENCES, DTYPES, close, enumerated, random_problem, wide

import kltarget as kt
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets.automata import token_local_on_automaton

# Values and contexts of two tokens are the same walk for every divergence.
CASES = [*((x, False, 1) for x in DIVERGENCES), (kt.ForwardKL(), True, 2)]


@pytest.mark.precise
@pytest.mark.broad
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("divergence", "full_gradient", "order"), CASES, ids=lambda x: str(x).split("(")[0]
)
def test_equal_to_the_tree_of_all_texts(divergence, full_gradient, order, dtype):
    wide(dtype)
    if dtype == np.float32 and jax.config.jax_enable_x64:
        pytest.skip("where float32 is the default it is tested")
    length = 4
    chain, automaton, arrays, rng = random_problem(11 + order, order, dtype=dtype)
    reward, beta = rng.normal(size=4).astype(dtype), np.array([0.3, 2.0], dtype)
    texts, log_ref, finals = enumerated(arrays, length)
    space, options = kt.SequenceSpace(3, length), {"full_gradient": full_gradient}
    log_ref = np.asarray(kt.normalize(log_ref.astype(dtype)))
    tree = kt.token_local_target(space, reward[finals], log_ref, beta, divergence, **options)
    found = token_local_on_automaton(
        chain, automaton, reward, beta, divergence, length=length, **options
    )
    close(found.log_prob(texts), tree.log_probs, dtype, 64)
    close(found.expected_reward, tree.expected_reward, dtype, 64)
    probs = np.exp(np.asarray(tree.log_probs, np.float64))
    ends = np.stack([probs[:, finals == d].sum(-1) for d in range(4)], -1)
    close(found.state_probs, ends, dtype, 64)
    close(found.state_marginals()[:, -1], ends, dtype, 64)
    shares = [[probs[:, texts[:, t] == v].sum(-1) for v in range(3)] for t in range(length)]
    close(found.marginals(), np.moveaxis(shares, -1, 0), dtype, 64)
    with np.errstate(divide="ignore", invalid="ignore"):
        close(found.entropy, -np.nansum(probs * np.log(probs), -1), dtype, 64)
    after = space.conditionals(tree.log_probs)[2][:, 5]
    if (ends > 0).all() and (np.exp(np.asarray(after)).sum(-1) > 0.5).all():
        close(np.exp(found.conditionals(texts[9 * 5][:2])), np.exp(np.asarray(after)), dtype, 64)
    # What is charged, prefix by prefix.
    given = [space.conditionals(x) for x in (tree.log_probs, jnp.broadcast_to(log_ref, (2, 81)))]
    charged = np.zeros(2)
    for t in range(length):
        reach = probs.reshape(2, 3**t, -1).sum(-1)
        zero = np.zeros(given[0][t].shape[-1], dtype)
        nodes = kt.Objective(zero, given[1][t], np.ones((2, 3**t), dtype), divergence)
        cost = -np.asarray(nodes.value(given[0][t]), np.float64)
        charged += np.where(reach > 0, reach * cost, 0.0).sum(-1)
    close(found.divergence_value, charged, dtype, 64)
    close(found.objective_value, np.asarray(tree.expected_reward) - beta * charged, dtype, 64)


TREE = Automaton(np.array([[1, 2], [3, 4], [5, 6], [0, 0], [0, 0], [0, 0], [0, 0]]))


@pytest.mark.broad
@pytest.mark.parametrize(
    ("name", "divergence", "full_gradient"),
    [
        ("tree2-b0.3-tok_local_k2", kt.ReverseKL(), False),
        ("tree2-b0.3-tok_local_k3", kt.ForwardKL(), False),
        ("tree2-b0.3-tok_forward_full", kt.ForwardKL(), True),
    ],
)
def test_reference_values(name, divergence, full_gradient):
    case = reference(name)
    given = case["inputs"]
    nodes = np.log(np.array(given["ref_by_node"]))
    chain = MarkovReference(nodes[0], nodes[1:])
    reward = np.array([0.0, 0.0, 0.0, *given["r"]])
    found = token_local_on_automaton(
        chain, TREE, reward, given["beta"], divergence, length=2, full_gradient=full_gradient
    )
    texts = [[0, 0], [0, 1], [1, 0], [1, 1]]
    dtype = found.values.dtype
    assert_reference(name, jnp.exp(found.log_prob(texts)), "pi", dtype)
    assert_reference(name, found.expected_reward, "mean_reward", dtype)
    if full_gradient:
        assert_reference(name, found.objective_value, "value", dtype)


def sixty_four(divergence, **options):
    chain = MarkovReference.fit(["abab", "aabba", "babac"], smoothing=0.1)
    problem = (chain, Automaton.counter([2], 3, most=9), np.eye(10)[3], np.array([0.1, 0.5]))
    local = token_local_on_automaton(*problem, divergence, length=64, **options)
    return local, kt.solve_on_automaton(*problem, divergence, length=64)


@pytest.mark.broad
def test_reverse_kl_summed_over_tokens_is_that_of_texts():
    full, whole = sixty_four(kt.ReverseKL(), full_gradient=True)
    for name in ("value", "expected_reward", "divergence_value", "entropy"):
        own = "objective_value" if name == "value" else name
        np.testing.assert_allclose(getattr(full, own), getattr(whole, name), rtol=2e-5)
    np.testing.assert_allclose(full.state_probs, whole.states.probs, atol=2e-6)
    text = whole.sample(key=jax.random.key(0), num_samples=1)[0, 0]
    np.testing.assert_allclose(full.log_prob(text), whole.log_prob(text), rtol=2e-5)
    # Without the gradient through prefixes less of the objective is reached.
    local, _ = sixty_four(kt.ReverseKL())
    assert (local.objective_value < whole.value - 1e-4).all()


@pytest.mark.broad
def test_draws_are_those_of_the_policy():
    local, _ = sixty_four(kt.ForwardKL())
    number = 4000
    draws = np.asarray(local.sample(key=jax.random.key(1), num_samples=number))
    assert draws.shape == (number, 2, 64)
    ends = np.minimum((draws == 2).sum(-1), 9)
    for row in range(2):
        probs = np.asarray(local.state_probs, np.float64)[row]
        share = np.bincount(ends[:, row], minlength=10) / number
        assert (np.abs(share - probs) <= 5 * np.sqrt(probs / number) + 1e-3).all()
        mean = (draws[:, row] == 1).mean(0)
        wanted = np.asarray(local.marginals(), np.float64)[row, :, 1]
        assert (np.abs(mean - wanted) <= 5 * np.sqrt(wanted / number) + 1e-3).all()
    np.testing.assert_allclose(local.expectation(np.arange(10.0)), ends.mean(0), atol=0.2)


@pytest.mark.broad
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL()])
def test_texts_that_end_are_those_of_a_tree_with_an_end(divergence):
    chain = MarkovReference.fit(["ab", "abab", "b"], smoothing=0.5, end="$")
    automaton = Automaton(np.array([[0, 1, 2], [2, 1, 0], [1, 0, 2]]))
    reward, space = np.array([0.0, 1.0, -0.5]), kt.SequenceSpace(3, 4, eos=2)
    texts = space.sequences()
    tree = kt.token_local_target(
        space, reward[np.asarray(automaton.run(texts))], chain.log_prob(texts), 0.3, divergence
    )
    found = token_local_on_automaton(chain, automaton, reward, 0.3, divergence, length=4)
    possible = np.asarray(space.possible())
    close(found.log_prob(texts[possible]), tree.log_probs[possible], np.float32, 64)
    close(found.expected_reward, tree.expected_reward, np.float32, 64)


@pytest.mark.broad
def test_derivatives_are_those_of_small_steps():
    chain, automaton, _, rng = random_problem(4)
    reward = jnp.asarray(rng.normal(size=4), float)

    def both(reward, beta):
        found = token_local_on_automaton(chain, automaton, reward, beta, kt.ForwardKL(), length=5)
        return jnp.stack([found.expected_reward, found.entropy, found.divergence_value])

    step = 1e-2
    moved = (both(reward, 0.5 + step) - both(reward, 0.5 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jacrev(both, 1)(reward, 0.5), moved, rtol=5e-3, atol=1e-3)
    way = jnp.asarray(rng.normal(size=4), float)
    moved = (both(reward + step * way, 0.5) - both(reward - step * way, 0.5)) / (2 * step)
    np.testing.assert_allclose(jax.jacrev(both)(reward, 0.5) @ way, moved, rtol=5e-3, atol=1e-3)


@pytest.mark.broad
def test_rows_that_fail_are_flagged_and_touch_no_other():
    chain, automaton, _, _ = random_problem(5)
    reward = jnp.zeros(4)

    def solve(beta):
        return token_local_on_automaton(chain, automaton, reward, beta, kt.ForwardKL(), length=3)

    found = jax.jit(solve)(jnp.array([0.5, -1.0]))
    assert int(found.status[0]) == 0
    assert kt.Status.INVALID_BETA in kt.Status(int(found.status[1]))
    for x in (found.expected_reward, found.entropy, found.divergence_value):
        np.testing.assert_array_equal(np.isnan(x), [False, True])
    draws = found.sample(key=jax.random.key(0), num_samples=2)
    np.testing.assert_array_equal((np.asarray(draws) == -1).all((0, 2)), [False, True])
    with pytest.raises(ValueError, match="token_local_on_automaton failed"):
        found.raise_if_failed()
    with pytest.raises(ValueError, match="beta must be above 0"):
        solve(-1.0)
    with pytest.raises(ValueError, match="texts have 3 tokens"):
        solve(1.0).log_prob([0, 1])
    with pytest.raises(ValueError, match="one axis of 0 to 2 tokens"):
        solve(1.0).conditionals([0, 1, 1])


@pytest.mark.broad
def test_a_policy_that_is_an_argument_of_a_jitted_function_is_the_same():
    """Nodes are numbered as when it was found, of which texts reach only a part."""
    chain = MarkovReference.fit(["abcab", "aabba", "bacba"], order=2, end="$")
    problem = (chain, Automaton.counter([2], 4, most=4), np.eye(5)[3], 0.3, kt.ForwardKL())
    local = token_local_on_automaton(*problem, length=5)
    texts = np.asarray(chain.sample(key=jax.random.key(0), num_samples=8, length=5))
    inside = jax.jit(lambda x: (x.log_prob(texts), x.conditionals([0])))(local)
    np.testing.assert_allclose(inside[0], local.log_prob(texts), rtol=1e-5)
    np.testing.assert_allclose(inside[1], local.conditionals([0]), rtol=1e-5)
