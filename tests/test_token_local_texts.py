"""Fixed points of per-token losses over texts too many to list."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_reference, reference
from test_automata import close, random_problem

import kltarget as kt
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets.automata import token_local_on_automaton

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
