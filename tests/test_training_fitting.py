"""Maximum likelihood on a corpus, parameters on disk, and mirror ascent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import DTYPES, eps

import kltarget as kt
from kltarget.policies import GRUPolicy, TabularPolicy, TransformerPolicy, load_params, save_params
from kltarget.recipes import Recipe
from kltarget.spaces import SequenceSpace
from kltarget.training import fine_tune, fit, mirror_ascent

DTYPE = DTYPES[0]
POLICY, SPACE = TabularPolicy(3, 2), SequenceSpace(3, 2)
COUNTS = np.array([5, 1, 3, 2, 8, 1, 4, 4, 2])


def test_maximum_likelihood_is_the_empirical_distribution():
    data = np.asarray(SPACE.sequences())
    repeated = np.repeat(data, COUNTS, axis=0)
    options = {"key": jax.random.key(0), "num_steps": 400, "learning_rate": 0.1, "holdout": 0}
    by_weight = fit(POLICY, data, weights=COUNTS, batch_size=None, **options)
    by_count = fit(POLICY, repeated, batch_size=None, **options)
    want = COUNTS / COUNTS.sum()
    for fitted in (by_weight, by_count):
        joint = SPACE.joint(POLICY.conditionals(fitted.params, SPACE))
        np.testing.assert_allclose(np.exp(joint), want, atol=1e-3)
        np.testing.assert_allclose(fitted.log_likelihood, want @ np.log(want), rtol=1e-4)
        assert np.isnan(fitted.held_out_log_likelihood)
    assert by_weight.step.tolist() == [0, 100, 200, 300, 400]
    assert np.all(np.diff(by_weight.history) > -1e-6)


@pytest.mark.slow
def test_held_out_likelihood_is_of_what_was_not_seen():
    corpus = np.asarray(
        POLICY.sample(POLICY.init(key=jax.random.key(5)), key=jax.random.key(6), num_samples=400)
    )
    policy, options = GRUPolicy(3, 2, width=4), {"key": jax.random.key(0), "num_steps": 150}
    fitted = fit(policy, corpus, **options, history_every=60, batch_size=32)
    assert fitted.step.tolist() == [0, 60, 120, 150]
    assert fitted.held_out_history[-1] == fitted.held_out_log_likelihood
    assert fitted.held_out_log_likelihood > fitted.held_out_history[0]
    unseen = np.array([[0, 0], [1, 2], [2, 1]])
    given = fit(policy, corpus, **options, holdout=unseen, optimizer=optax.sgd)
    want = policy.log_probs(given.params, jnp.asarray(unseen)).sum(-1).mean()
    np.testing.assert_allclose(given.held_out_log_likelihood, want, rtol=1e-5)
    again = fit(policy, corpus, **options, history_every=150, batch_size=32)
    # The same batches in programs of other lengths, whose rounding differs; others differ by more.
    for x, y in zip(jax.tree.leaves(fitted.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "options", "error", "message"),
    [
        (np.zeros((4, 3), int), {}, ValueError, r"tokens has shape \(4, 3\)"),
        (
            np.full((4, 2), 3),
            {},
            ValueError,
            r"tokens must be from 0 to 2, got 3 at index \(0, 0\)",
        ),
        (np.zeros((4, 2)), {}, TypeError, "tokens must be integers"),
        (np.zeros((4, 2), int), {"weights": np.ones(3)}, ValueError, "weights must be 4"),
        (np.zeros((4, 2), int), {"weights": np.zeros(4)}, ValueError, "nothing to train on"),
        (np.zeros((4, 2), int), {"holdout": 1.0}, ValueError, "holdout must be a share"),
        (np.zeros((4, 2), int), {"num_steps": 0}, ValueError, "num_steps"),
    ],
)
def test_errors_name_the_argument(tokens, options, error, message):
    with pytest.raises(error, match=message):
        fit(POLICY, tokens, **{"key": jax.random.key(0), "num_steps": 1, **options})


@pytest.mark.quick_only("default", others="broad")
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=["default", "bfloat16"])
def test_parameters_survive_the_disk(tmp_path, dtype):
    policy = TransformerPolicy(3, 2, width=4, num_heads=2, num_layers=2)
    params = policy.init(key=jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(dtype or x.dtype), params)
    save_params(tmp_path / "params.npz", params)
    other = jax.tree.map(lambda x: x + 1, params)
    loaded = load_params(tmp_path / "params.npz", like=other)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x.astype(jnp.float32), y.astype(jnp.float32))
    wider = TransformerPolicy(3, 3, width=4, num_heads=2, num_layers=2).init(key=jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"does not fit: .*positions has shape \(2, 4\), not \(3, 4"
    ):
        load_params(tmp_path / "params.npz", like=wider)
    with pytest.raises(ValueError, match=r"recurrent is missing.*layers.0.project is not a param"):
        load_params(tmp_path / "params.npz", like=GRUPolicy(3, 2).init(key=jax.random.key(0)))


@pytest.mark.slow
def test_a_saved_model_is_trained_on(tmp_path):
    """Twenty steps, through the disk, and thirty more are fifty steps."""
    params = POLICY.init(key=jax.random.key(1))
    log_ref = SPACE.joint(POLICY.conditionals(params, SPACE))
    reward = np.linspace(-1, 1, 9).astype(DTYPE)
    options = {
        "beta": 0.3,
        "learning_rate": 0.5,
        "optimizer": optax.sgd,
        "log_ref": kt.normalize(log_ref),
        "history_every": 10,
        "gradient_tol": 0.0,
    }
    whole = fine_tune(POLICY, params, reward, Recipe(), num_steps=50, **options)
    first = fine_tune(POLICY, params, reward, Recipe(), num_steps=20, **options)
    save_params(tmp_path / "run.npz", first.params)
    loaded = load_params(tmp_path / "run.npz", like=params)
    np.testing.assert_array_equal(loaded["logits"], first.params["logits"])
    second = fine_tune(POLICY, loaded, reward, Recipe(), num_steps=30, **options)
    np.testing.assert_allclose(second.history.gap[0], first.history.gap[-1], rtol=1e-5)
    np.testing.assert_allclose(second.history.gap, whole.history.gap[2:], rtol=1e-4)
    np.testing.assert_allclose(second.log_probs, whole.log_probs, atol=64 * eps(DTYPE))
    assert np.abs(second.log_probs - first.log_probs).max() > 0.05

    data = np.asarray(SPACE.sequences())
    plain = {"weights": COUNTS, "batch_size": None, "holdout": 0, "optimizer": optax.sgd}
    plain |= {"key": jax.random.key(0), "learning_rate": 1.0}
    save_params(tmp_path / "fit.npz", fit(POLICY, data, num_steps=20, **plain).params)
    loaded = load_params(tmp_path / "fit.npz", like=params)
    again = fit(POLICY, data, num_steps=30, params=loaded, **plain)
    want = fit(POLICY, data, num_steps=50, **plain)
    np.testing.assert_allclose(again.params["logits"], want.params["logits"], atol=64 * eps(DTYPE))


def test_fitting_shows_its_progress_where_asked(capsys):
    options = {"key": jax.random.key(0), "num_steps": 4, "batch_size": None, "holdout": 0.3}
    data = np.asarray(SPACE.sequences())
    fit(POLICY, data, **options)
    assert capsys.readouterr() == ("", "")
    fitted = fit(POLICY, data, **options, progress=True)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "4/4" in last
    assert f"log-likelihood={fitted.log_likelihood:.4g}" in last
    assert f"held out={fitted.held_out_log_likelihood:.4g}" in last


def test_fitting_that_diverges_says_so():
    options = {"key": jax.random.key(0), "num_steps": 4, "batch_size": None, "holdout": 0}
    fitted = fit(POLICY, np.asarray(SPACE.sequences()), **options, learning_rate=np.inf)
    assert np.isnan(fitted.log_likelihood)
    assert np.isfinite(fitted.history[0])


def test_nothing_follows_the_end_of_a_sequence():
    ending = TabularPolicy(3, 2, eos=0)
    options = {"key": jax.random.key(0), "num_steps": 1, "holdout": 0}
    assert np.isfinite(fit(ending, np.array([[0, 0], [1, 0], [1, 2]]), **options).log_likelihood)
    with pytest.raises(ValueError, match=r"eos=0 after the first eos, got 2 at index \(1, 1\)"):
        fit(ending, np.array([[0, 0], [0, 2]]), **options)


REWARD = np.random.default_rng(0).uniform(size=6)
REF = np.random.default_rng(1).dirichlet(np.ones(6))


def test_mirror_ascent_on_reverse_kl_contracts_at_its_known_rate():
    """After k steps the policy is the target at coefficient β/(1 − (1 − ηβ)^k)."""
    betas, rate = np.array([0.1, 0.5, 2.0]), 0.4
    for steps in (0, 1, 7):
        ascent = mirror_ascent(
            REWARD.astype(DTYPE),
            np.log(REF).astype(DTYPE),
            betas,
            learning_rate=rate,
            num_steps=steps,
        )
        tilt = (1 - (1 - rate * betas[:, None]) ** steps) / betas[:, None] * REWARD
        want = REF * np.exp(tilt)
        want /= want.sum(-1, keepdims=True)
        np.testing.assert_allclose(np.exp(ascent.log_probs), want, rtol=200 * eps(DTYPE))
        assert ascent.log_probs.dtype == DTYPE
    at_once = mirror_ascent(
        REWARD.astype(DTYPE),
        np.log(REF).astype(DTYPE),
        betas,
        learning_rate=1 / betas,
        num_steps=5,
        gap_tol=1e-5,
    )
    np.testing.assert_array_equal(at_once.num_steps, 1)
    assert at_once.converged.all()


@pytest.mark.slow
def test_mirror_ascent_on_other_divergences_is_certified_by_its_gap():
    objective = kt.Objective(REWARD.astype(DTYPE), np.log(REF).astype(DTYPE), 0.5, kt.ForwardKL())
    ascent = mirror_ascent(
        objective.reward,
        objective.log_ref,
        0.5,
        kt.ForwardKL(),
        learning_rate=0.6,
        num_steps=1000,
        gap_tol=1e-5,
    )
    assert ascent.converged
    assert ascent.num_steps < 1000
    assert kt.solve(objective).gap(ascent.log_probs) <= ascent.gap <= 1e-5
    multiplier = 0.5 / (np.exp(ascent.log_probs) / REF) + REWARD
    np.testing.assert_allclose(multiplier, multiplier[0], rtol=1e-3)


@pytest.mark.broad
def test_mirror_ascent_at_the_edges():
    reward, log_ref = np.array([1.0, -np.inf, 0.0, 5.0]), np.log([0.5, 0.25, 0.25, 1e-300])
    log_ref[3] = -np.inf
    arguments = (reward.astype(DTYPE), log_ref.astype(DTYPE), 1.0)
    ascent = mirror_ascent(*arguments, learning_rate=1.0, num_steps=3)
    want = np.array([0.5 * np.e, 0, 0.25, 0]) / (0.5 * np.e + 0.25)
    np.testing.assert_allclose(np.exp(ascent.log_probs), want, rtol=32 * eps(DTYPE))
    slope = jax.grad(
        lambda beta: jnp.exp(
            mirror_ascent(*arguments[:2], beta, learning_rate=0.5, num_steps=60).log_probs[0]
        )
    )(jnp.asarray(1.0, DTYPE))
    np.testing.assert_allclose(slope, -want[0] * want[2], rtol=1e-4)
    with pytest.raises(ValueError, match="learning_rate has shape"):
        mirror_ascent(REWARD, np.log(REF), np.ones(2), learning_rate=np.ones(3), num_steps=1)
    with pytest.raises(ValueError, match="num_steps"):
        mirror_ascent(REWARD, np.log(REF), 1.0, learning_rate=1.0, num_steps=-1)


def test_mirror_ascent_under_tracing_marks_the_bad_rows():
    reward, log_ref = (np.tile(x, (6, 1)).astype(DTYPE) for x in (REWARD, np.log(REF)))
    beta = np.ones(6, DTYPE)
    beta[1] = -1
    reward[2, 3] = np.nan
    log_ref[3] += 1
    reward[4] = -np.inf
    log_ref[5, 0] = np.nan
    found = jax.jit(
        lambda *problem: mirror_ascent(*problem, learning_rate=np.full((2, 6), 0.5), num_steps=3)
    )(reward, log_ref, beta)
    for x in (found.log_probs[0], found.gap[0]):
        assert np.isfinite(x[0]).all()
        assert np.isnan(x[1:]).all()
    assert found.gap.shape == (2, 6)
    assert not found.converged[0, 1:].any()
