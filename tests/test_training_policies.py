"""Policies: probabilities, samples, shared prefixes, and models of other libraries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DTYPES, eps

from kltarget.policies import GRUPolicy, TabularPolicy, TransformerPolicy
from kltarget.recipes import Recipe
from kltarget.spaces import SequenceSpace
from kltarget.training import fine_tune

DTYPE = DTYPES[0]
POLICIES = [
    policy
    for eos in (None, 1)
    for policy in (
        TabularPolicy(3, 3, eos=eos),
        GRUPolicy(3, 3, width=5, eos=eos),
        TransformerPolicy(3, 3, width=8, num_heads=2, num_layers=1, eos=eos),
    )
]


def space_of(policy):
    return SequenceSpace(policy.vocab_size, policy.length, policy.eos)


@pytest.fixture(scope="module", params=POLICIES, ids=lambda p: f"{type(p).__name__}-{p.eos}")
def policy(request):
    return request.param


@pytest.fixture(scope="module")
def params(policy):
    return policy.init(key=jax.random.key(0))


@pytest.mark.quick_only("TabularPolicy-1", "TabularPolicy-None", "GRUPolicy-1")
def test_conditionals_are_the_log_probs_of_sequences(policy, params):
    space = space_of(policy)
    conditionals = policy.conditionals(params, space)
    assert [x.shape for x in conditionals] == [(1, 3), (3, 3), (9, 3)]
    assert all(x.dtype == DTYPE for x in conditionals)
    joint = space.joint(conditionals)
    log_probs = policy.log_probs(params, space.sequences())
    assert log_probs.shape == (27, 3)
    np.testing.assert_allclose(log_probs.sum(-1), joint, atol=64 * eps(DTYPE))
    assert abs(np.exp(joint).sum() - 1) < 32 * eps(DTYPE)
    if policy.eos is not None:
        np.testing.assert_array_equal(np.isfinite(joint), space.possible())


@pytest.mark.broad
@pytest.mark.quick_only("TabularPolicy-None", "GRUPolicy-1", "TransformerPolicy-1")
def test_samples_are_as_frequent_as_they_are_probable(policy, params):
    space, num = space_of(policy), 20_000
    probs = np.exp(space.joint(policy.conditionals(params, space)), dtype=np.float64)
    tokens = policy.sample(params, key=jax.random.key(1), num_samples=num)
    assert tokens.shape == (num, 3)
    assert tokens.dtype == jnp.int32
    counts = np.bincount(space.index(tokens), minlength=27)
    assert not counts[probs == 0].any()
    error = np.sqrt(num * probs * (1 - probs))
    assert np.all(np.abs(counts - num * probs) <= 4.5 * error + 1e-9)
    again = policy.sample(params, key=jax.random.key(1), num_samples=num)
    np.testing.assert_array_equal(tokens, again)


@pytest.mark.broad
@pytest.mark.quick_only("GRUPolicy-1", "TransformerPolicy-None")
def test_log_probs_take_any_batch_shape(policy, params):
    tokens = jnp.array([[[0, 2, 1], [2, 2, 2]]])
    log_probs = policy.log_probs(params, tokens)
    assert log_probs.shape == tokens.shape
    np.testing.assert_allclose(log_probs[0, 1], policy.log_probs(params, tokens[0, 1]), rtol=1e-5)


@pytest.mark.quick_only("GRUPolicy-None")
def test_gradients_are_finite_and_agree_between_both_ways(policy, params):
    space = space_of(policy)
    weights = jax.random.normal(jax.random.key(2), (27,)) * space.possible().astype(DTYPE)

    def by_tree(params):
        joint = space.joint(policy.conditionals(params, space))
        return jnp.sum(weights * jnp.exp(joint))

    def by_sequence(params):
        log_probs = policy.log_probs(params, space.sequences()).sum(-1)
        return jnp.sum(weights * jnp.exp(log_probs))

    first, second = jax.jit(lambda p: (jax.grad(by_tree)(p), jax.grad(by_sequence)(p)))(params)
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, y, atol=200 * eps(DTYPE))


def test_tabular_parameters_of_a_tree():
    policy, space = TabularPolicy(3, 3), SequenceSpace(3, 3)
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(4), (27,)))
    params = policy.from_conditionals(space.conditionals(log_probs))
    joint = space.joint(policy.conditionals(params, space))
    np.testing.assert_allclose(joint, log_probs, rtol=32 * eps(DTYPE))
    with pytest.raises(ValueError, match="one array"):
        policy.from_conditionals([jnp.zeros((1, 3))])


def test_16_bit_parameters():
    policy = GRUPolicy(3, 3, width=4)
    params = policy.init(key=jax.random.key(0))
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wide = policy.log_probs(params, jnp.array([0, 1, 2]))
    got = policy.log_probs(narrow, jnp.array([0, 1, 2]))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wide, atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GRUPolicy(0, 3), "vocab_size must be an integer of 1 or more, got 0"),
        (lambda: GRUPolicy(3, 3, width=2.5), "width"),
        (lambda: TransformerPolicy(3, 3, width=6, num_heads=4), "multiple of num_heads"),
        (lambda: TabularPolicy(3, 3, eos=3), "eos must be a token"),
        (
            lambda: TabularPolicy(3, 3).conditionals({}, SequenceSpace(3, 4)),
            "space has length=4 and the policy length=3",
        ),
        (lambda: TabularPolicy(3, 3).log_probs({}, jnp.zeros(4, int)), r"tokens has shape \(4,\)"),
    ],
)
def test_policies_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture
def library_model():
    equinox = pytest.importorskip("equinox")

    @dataclasses.dataclass(frozen=True)
    class Perceptron:
        """A policy of another library's layers: reads the one-hot prefix, padded with zeros."""

        vocab_size: int
        length: int

        def init(self, *, key):
            size = self.vocab_size * self.length
            model = equinox.nn.MLP(size, self.vocab_size, width_size=16, depth=1, key=key)
            return equinox.filter(model, equinox.is_array)

        def _next(self, params, prefix):
            model = equinox.nn.MLP(
                self.vocab_size * self.length,
                self.vocab_size,
                width_size=16,
                depth=1,
                key=jax.random.key(0),
            )
            model = equinox.combine(params, equinox.filter(model, equinox.is_array, inverse=True))
            one_hot = jax.nn.one_hot(prefix, self.vocab_size, dtype=DTYPE)
            return jax.nn.log_softmax(model(one_hot.ravel()))

        def log_probs(self, params, tokens):
            flat = tokens.reshape(-1, self.length)
            later = jnp.arange(self.length)[:, None] <= jnp.arange(self.length)[None]

            def one(sequence):
                # Row t of the mask hides what comes at t and after.
                seen = jnp.where(later, -1, jnp.broadcast_to(sequence, later.shape))
                table = jax.vmap(lambda prefix: self._next(params, prefix))(seen)
                return jnp.take_along_axis(table, sequence[:, None], axis=1)[:, 0]

            return jax.vmap(one)(flat).reshape(tokens.shape)

        def sample(self, params, *, key, num_samples):
            tokens = jnp.full((num_samples, self.length), -1, jnp.int32)
            for t, k in enumerate(jax.random.split(key, self.length)):
                logits = jax.vmap(lambda prefix: self._next(params, prefix))(tokens)
                drawn = jax.random.categorical(k, logits, axis=-1).astype(jnp.int32)
                tokens = tokens.at[:, t].set(drawn)
            return tokens

        def conditionals(self, params, space):
            levels = []
            for t in range(self.length):
                each = SequenceSpace(self.vocab_size, max(t, 1)).sequences()
                prefixes = each if t else each[:1, :0]
                padding = ((0, 0), (0, self.length - t))
                padded = jnp.pad(prefixes, padding, constant_values=-1)
                levels.append(jax.vmap(lambda prefix: self._next(params, prefix))(padded))
            return tuple(levels)

    return Perceptron(3, 2)


@pytest.mark.slow
def test_a_model_of_another_library(library_model):
    policy, space = library_model, SequenceSpace(3, 2)
    params = policy.init(key=jax.random.key(0))
    joint = space.joint(policy.conditionals(params, space))
    log_probs = policy.log_probs(params, space.sequences())
    np.testing.assert_allclose(log_probs.sum(-1), joint, atol=64 * eps(DTYPE))
    reward = np.linspace(0, 1, 9, dtype=DTYPE)
    options = {"beta": 0.2, "learning_rate": 0.02, "num_steps": 500, "history_every": 500}
    run = fine_tune(policy, params, reward, Recipe(), **options)
    want = np.exp(joint + reward / 0.2)
    assert np.abs(np.exp(run.log_probs) - want / want.sum()).sum() < 1e-3
    sampled = fine_tune(
        policy, params, reward, Recipe(), **options, key=jax.random.key(1), batch_size=32
    )
    assert sampled.history.expected_reward[-1] > sampled.history.expected_reward[0] + 0.1
