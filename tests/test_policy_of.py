"""A model of JAX as a policy: against its own logits, and trained to targets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kltarget as kt
from kltarget.adapters import policy_of

RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(7, 7)), jnp.float32)


def bigram(params, tokens):
    return params[tokens]


def made(**options):
    return policy_of(
        bigram, TABLE, **{"prompt_ids": [3, 5], "length": 3, "vocab": [6, 2], **options}
    )


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def by_hand(sequence, vocab=(6, 2), last=5):
    """Of a bigram: each token by the row of the one before, among those of the vocabulary."""
    total, table = 0.0, np.asarray(TABLE, np.float64)
    for i in sequence:
        total += log_softmax(table[last][list(vocab)])[i]
        last = vocab[i]
    return total


def test_log_probs_conditionals_and_samples_are_of_one_model():
    policy, params = made()
    sequences = jnp.array(list(itertools.product(range(2), repeat=3)))
    each = policy.log_probs(params, sequences)
    expected = [by_hand(x) for x in sequences.tolist()]
    np.testing.assert_allclose(each.sum(-1), expected, rtol=2e-6)
    space = kt.SequenceSpace(2, 3)
    joint = space.joint(policy.conditionals(params, space))
    np.testing.assert_allclose(joint, expected, rtol=2e-6)
    drawn = policy.sample(params, key=jax.random.key(0), num_samples=4000)
    counts = np.bincount(np.asarray(space.index(drawn)), minlength=8) / 4000
    np.testing.assert_allclose(counts, np.exp(expected), atol=0.03)
    assert policy.init(key=jax.random.key(1)) is params


def test_nothing_follows_the_end():
    policy, params = made(eos=2)
    assert policy.eos == 1
    # The end, once said, is certain.
    ended = policy.log_probs(params, jnp.array([1, 1, 1]))
    np.testing.assert_allclose(ended, [by_hand([1]), 0, 0], rtol=2e-6)


def test_narrow_parameters_are_widened():
    policy, params = policy_of(
        bigram, TABLE.astype(jnp.bfloat16), prompt_ids=[0], length=1, vocab=[1, 2]
    )
    assert params.dtype == jnp.float32
    assert policy.log_probs(params, jnp.array([0])).dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt_ids": []}, ValueError, "prompt_ids must have"),
        ({"prompt_ids": [9]}, ValueError, "prompt_ids must be tokens of the model, 0 to 6"),
        ({"vocab": [1, 1]}, ValueError, "vocab must be tokens that differ"),
        ({"vocab": [1, 7]}, ValueError, "vocab must be tokens of the model"),
        ({"length": 0}, ValueError, "length"),
        ({"eos": 1}, ValueError, "eos must be one of vocab"),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        made(**options)


def test_models_that_are_none():
    asked = {"prompt_ids": [0], "length": 1, "vocab": [1, 2]}
    with pytest.raises(ValueError, match="params is needed"):
        policy_of(bigram, **asked)
    with pytest.raises(TypeError, match="must be floating-point arrays"):
        policy_of(bigram, jnp.zeros((7, 7), jnp.int32), **asked)
    with pytest.raises(TypeError, match="a module of flax or a function"):
        policy_of("gpt2", TABLE, **asked)
    with pytest.raises(ValueError, match=r"logits must be \[N, T, S\]"):
        policy_of(lambda params, tokens: params[tokens][:, -1], TABLE, **asked)


@pytest.mark.broad
def test_it_is_trained_to_its_target():
    policy, params = made(length=2)
    space = kt.SequenceSpace(2, 2)
    log_ref = space.joint(policy.conditionals(params, space))
    reward = jnp.array([1.0, 0.0, 0.3, 0.9])
    recipe = kt.Recipe("reward", "k1", baseline="leave-one-out")
    run = kt.fine_tune(policy, params, reward, recipe, beta=0.4, learning_rate=0.1, num_steps=300)
    target = kt.solve(kt.Objective(reward, log_ref, 0.4))
    np.testing.assert_allclose(run.log_probs, target.log_probs, atol=2e-3)


@pytest.fixture
def lax_promotion():
    """Models of other libraries mix dtypes and ranks as JAX lets them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.trainers
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_modules_of_flax(kind, lax_promotion):
    flax = pytest.importorskip("flax")
    asked = {"prompt_ids": [3, 5], "length": 2, "vocab": [6, 2, 0]}
    if kind == "nnx":
        from flax import nnx

        class Model(nnx.Module):
            def __init__(self, rngs):
                self.embed = nnx.Embed(7, 8, rngs=rngs)
                self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(12)])
                self.out = nnx.Linear(8, 7, rngs=rngs)

            def __call__(self, tokens):
                x = self.embed(tokens)
                for layer in self.layers:
                    x = x + jnp.tanh(layer(x))
                return self.out(x)

        model = Model(nnx.Rngs(0))
        logits = model(jnp.array([[3, 5, 2]]))
        policy, params = policy_of(model, **asked)
        with pytest.raises(ValueError, match="bring their own"):
            policy_of(model, params, **asked)
    else:

        class Model(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, tokens):
                x = flax.linen.Embed(7, 8)(tokens)
                return flax.linen.Dense(7)(jnp.tanh(x))

        model = Model()
        tokens = jnp.array([[3, 5, 2]])
        params = model.init(jax.random.key(0), tokens)["params"]
        logits = model.apply({"params": params}, tokens)
        policy, params = policy_of(model, params, **asked)
    first, second = log_softmax(np.asarray(logits, np.float64)[0, 1:][:, [6, 2, 0]])
    found = policy.log_probs(params, jnp.array([1, 2]))
    np.testing.assert_allclose(found, [first[1], second[2]], atol=1e-5)
    twice = jax.tree.map(lambda x: 2 * x, params)
    assert not np.allclose(policy.log_probs(twice, jnp.array([1, 2])), found)


@pytest.mark.trainers
@pytest.mark.filterwarnings("default")
def test_a_checkpoint_of_a_llama_goes_to_its_target(tmp_path, lax_promotion):
    """Saved by transformers, loaded by Tunix, trained here, held against the closed form."""
    tunix = pytest.importorskip("tunix.models.llama3.model")
    loading = pytest.importorskip("tunix.models.llama3.params")
    torch = pytest.importorskip("torch")
    import tiny_llama

    # Tunix 0.1.7 turns by this base, whatever its configuration says.
    saved = tiny_llama.model(rope_theta=1e6)
    saved.save_pretrained(tmp_path)
    config = saved.config
    model = loading.create_model_from_safe_tensors(
        str(tmp_path),
        tunix.ModelConfig(
            num_layers=config.num_hidden_layers,
            vocab_size=config.vocab_size,
            embed_dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            num_heads=config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            rope_theta=int(config.rope_parameters["rope_theta"]),
            norm_eps=config.rms_norm_eps,
        ),
        dtype=jnp.float32,
    )
    prompt, vocab = [3, 8, 9], [20, 21]
    policy, params = policy_of(model, prompt_ids=prompt, length=2, vocab=vocab)
    space = kt.SequenceSpace(2, 2)
    log_ref = space.joint(policy.conditionals(params, space))
    expected = []
    for pair in itertools.product(range(2), repeat=2):
        said = [vocab[i] for i in pair]
        with torch.no_grad():
            logits = saved(torch.tensor([prompt + said])).logits[0].double().numpy()
        rows = log_softmax(logits[len(prompt) - 1 : -1][:, vocab])
        expected.append(rows[0, pair[0]] + rows[1, pair[1]])
    np.testing.assert_allclose(log_ref, expected, atol=1e-4)

    reward = jnp.array([1.0, 0.0, 0.2, 1.0])
    recipe = kt.Recipe("reward", "k1", "sequence", "leave-one-out")
    report = kt.verify(
        (reward, log_ref),
        key=jax.random.key(0),
        space=space,
        policies={"llama": (policy, params)},
        recipes=[recipe],
        beta=[0.3],
        reward_scale=[1.0],
        num_seeds=1,
        num_steps=300,
        learning_rate=3e-3,
    )
    (run,) = report.runs
    assert run.target == "sequence_reverse"
    assert run.tv[run.target] < 0.005
    target = kt.solve(kt.Objective(reward, log_ref, 0.3))
    found = kt.fine_tune(
        policy, params, reward, recipe, beta=0.3, learning_rate=3e-3, num_steps=300
    )
    assert 0.5 * np.abs(np.exp(found.log_probs) - target.probs).sum() < 0.005
