"""One backward pass for every space: nodes with shared children, kernels and choices by depth."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DTYPES, INF, eps

import kltarget as kt
from kltarget.spaces import backward

DTYPE = DTYPES[0]
BETA = 0.7


class Gathered(NamedTuple):
    """A layer whose nodes share children; a choice of log-probability ``-inf`` is none."""

    log_ref: jax.Array
    below: jax.Array
    step_reward: jax.Array
    sign: jax.Array | None = None
    """Whose turn it is, where two players take turns."""

    def children(self, values):
        after = values[..., self.below]
        return after + jnp.broadcast_to(self.step_reward, after.shape)


def dag(seed=0, sizes=(1, 2, 3, 3, 3, 4), choices=(2, 3, 2, 2, 3)):
    """Layers of random edges, of which the two in the middle have equal shapes."""
    rng = np.random.default_rng(seed)
    layers = []
    for t, number in enumerate(choices):
        logits = rng.normal(size=(sizes[t], number))
        if t == 1:
            logits[0, 1] = -INF
        layers.append(
            Gathered(
                kt.normalize(jnp.asarray(logits, DTYPE)),
                jnp.asarray(rng.integers(sizes[t + 1], size=(sizes[t], number))),
                jnp.asarray(rng.normal(size=(sizes[t], number)), DTYPE),
            )
        )
    return layers, jnp.asarray(rng.normal(size=sizes[-1]), DTYPE)


def paths(layers, leaves, node=0, t=0):
    """Reference probability and total reward of every path from a node."""
    if t == len(layers):
        yield 1.0, float(leaves[node])
        return
    layer = jax.tree.map(np.asarray, layers[t])
    for a in range(layer.below.shape[1]):
        for mass, reward in paths(layers, leaves, layer.below[node, a], t + 1):
            yield (
                math.exp(layer.log_ref[node, a]) * mass,
                float(layer.step_reward[node, a]) + reward,
            )


def soft(values, layer):
    log_ref = jnp.broadcast_to(layer.log_ref, values.shape)
    value = BETA * jax.nn.logsumexp(log_ref + values / BETA, axis=-1)
    return value, log_ref + (values - value[..., None]) / BETA


def greedy(values, layer):
    return jnp.where(layer.log_ref > -INF, values, -INF).max(-1), None


def mean(values, layer):
    """A token-local forward-KL policy at every node, worth its mean."""
    target = kt.solve(kt.Objective(values, layer.log_ref, BETA, kt.ForwardKL()))
    return target.expected_reward, target.log_probs


def test_soft_values_sum_over_all_paths():
    layers, leaves = dag()
    values, policies = jax.jit(lambda x: backward(layers, x, soft))(leaves)
    every = list(paths(layers, leaves))
    exact = BETA * math.log(sum(p * math.exp(r / BETA) for p, r in every))
    np.testing.assert_allclose(values[0], [exact], rtol=64 * eps(DTYPE))
    assert [x.shape[-1] for x in values] == [1, 2, 3, 3, 3, 4]
    for layer, log_policy in zip(layers, policies, strict=True):
        assert log_policy.shape == layer.log_ref.shape
        np.testing.assert_allclose(jnp.exp(log_policy).sum(-1), 1, rtol=64 * eps(DTYPE))


@pytest.mark.broad
def test_greatest_values_are_those_of_the_best_path():
    layers, leaves = dag(1)
    values, _ = backward(layers, leaves, greedy)
    best = max(reward for mass, reward in paths(layers, leaves) if mass > 0)
    np.testing.assert_allclose(values[0], [best], rtol=64 * eps(DTYPE))


def test_minimax_values_of_a_game_in_turns():
    layers, leaves = dag(2)

    def of_player(values, layer):
        allowed = jnp.where(layer.log_ref > -INF, layer.sign * values, -INF)
        return layer.sign * allowed.max(-1), allowed.argmax(-1)

    def exact(node, t):
        if t == len(layers):
            return float(leaves[node])
        layer = jax.tree.map(np.asarray, layers[t])
        options = [
            float(layer.step_reward[node, a]) + exact(layer.below[node, a], t + 1)
            for a in range(layer.below.shape[1])
            if layer.log_ref[node, a] > -INF
        ]
        return max(options) if t % 2 == 0 else min(options)

    turns = [x._replace(sign=jnp.asarray((-1.0) ** t, DTYPE)) for t, x in enumerate(layers)]
    values, moves = backward(turns, leaves, of_player)
    np.testing.assert_allclose(values[0], [exact(0, 0)], rtol=64 * eps(DTYPE))
    assert all(int(x.max()) < layer.below.shape[1] for x, layer in zip(moves, layers, strict=True))


@pytest.mark.broad
def test_mean_values_are_those_of_the_policy_they_make():
    layers, leaves = dag(3)
    values, policies = backward(layers, leaves, mean)
    followed = [
        layer._replace(log_ref=log_policy)
        for layer, log_policy in zip(layers, policies, strict=True)
    ]
    exact = sum(p * r for p, r in paths(followed, leaves))
    np.testing.assert_allclose(values[0], [exact], rtol=256 * eps(DTYPE))


@pytest.mark.slow
def test_derivatives_of_soft_values_are_visits_and_batches_are_rows():
    layers, leaves = dag(4)

    @jax.jit
    def root(x):
        return backward(layers, x, soft)[0][0][..., 0]

    slopes, leaves = jax.jit(jax.grad(root))(leaves), np.asarray(leaves)
    known, visits = jax.tree.map(np.asarray, layers), np.zeros(len(leaves))
    for edges in itertools.product(*(range(x.below.shape[1]) for x in known)):
        node, mass, reward = 0, 1.0, 0.0
        for a, layer in zip(edges, known, strict=True):
            mass *= math.exp(float(layer.log_ref[node, a]))
            reward += float(layer.step_reward[node, a])
            node = int(layer.below[node, a])
        visits[node] += mass * math.exp((reward + float(leaves[node])) / BETA)
    np.testing.assert_allclose(
        slopes, visits / visits.sum(), rtol=256 * eps(DTYPE), atol=4 * eps(DTYPE)
    )
    batch = np.stack([leaves, leaves[::-1]])
    rows = np.stack([root(x) for x in batch])
    np.testing.assert_allclose(root(batch), rows, rtol=8 * eps(DTYPE))
    np.testing.assert_allclose(jax.jit(jax.vmap(root))(batch), rows, rtol=8 * eps(DTYPE))


@pytest.mark.parametrize("depth", [3, 60])
def test_equal_layers_are_one_program(depth):
    layers, leaves = dag(5, (3,) * (depth + 1), (2,) * depth)
    traced = 0

    def counted(values, layer):
        nonlocal traced
        traced += 1
        return soft(values, layer)

    values, kept = backward(layers, leaves, counted)
    assert traced <= 2  # once for its shapes, once for the program
    assert len(values) == depth + 1
    assert len(kept) == depth
    by_hand = leaves
    for layer in reversed(layers):
        by_hand, _ = soft(layer.children(by_hand), layer)
    np.testing.assert_allclose(values[0], by_hand, rtol=16 * depth * eps(DTYPE))


def test_one_layer_again_and_again_is_as_many_equal_ones():
    layers, _ = dag()
    layer, leaves = layers[2], jnp.asarray([0.3, -0.2, 1.1], DTYPE)

    def soft(values, layer):
        return BETA * jax.nn.logsumexp(layer.log_ref + values / BETA, axis=-1), None

    again, _ = backward((layer,) * 40, leaves, soft)
    copies = [jax.tree.map(jnp.array, layer) for _ in range(40)]
    apart, _ = backward(copies, leaves, soft)
    assert len(again) == len(apart) == 41
    for one, other in zip(again, apart, strict=True):
        np.testing.assert_array_equal(one, other)
    # The kernel is in the program's arguments once, however long the walk.
    traced = jax.make_jaxpr(lambda x: backward((layer,) * 40, x, soft)[0][0])(leaves)
    largest = max(np.size(x) for x in traced.consts)
    assert largest <= layer.log_ref.size
