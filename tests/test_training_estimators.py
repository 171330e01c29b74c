"""Which divergence's gradient each estimator follows, by autodiff of the divergences themselves.

The trees are random; expectations are exact sums over all of their sequences.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import DTYPES, X64, eps

import kltarget as kt
from kltarget.policies import TabularPolicy
from kltarget.recipes import Recipe
from kltarget.spaces import SequenceSpace
from kltarget.training import estimators

DTYPE = DTYPES[0]
SPACE = SequenceSpace(3, 3)
POLICY = TabularPolicy(3, 3)
PARAMS, REF = (POLICY.init(key=jax.random.key(seed)) for seed in (0, 1))
TOL = 200 * eps(DTYPE)


def table(params):
    levels = POLICY.conditionals(params, SPACE)
    return jnp.stack([jnp.repeat(x.ravel(), 27 // x.size) for x in levels], -1)


def sequence(params):
    return table(params).sum(-1)


LOG_REF, TOKEN_LOG_REF = sequence(REF), table(REF)


def followed(recipe, reward=None, beta=1.0):
    """The exact gradient that a trainer with this recipe descends."""
    reward = jnp.zeros(27, DTYPE) if reward is None else reward

    def loss(params):
        tokens = table(params)
        weights = jax.lax.stop_gradient(jnp.exp(tokens.sum(-1)))
        terms = estimators.surrogate(recipe, tokens, TOKEN_LOG_REF, reward, beta, weights)
        return -terms.sum()

    return jax.jit(jax.grad(loss))(PARAMS)["logits"]


def of(divergence):
    return jax.jit(jax.grad(divergence))(PARAMS)["logits"]


def reverse_kl(params):
    return jnp.sum(jnp.exp(sequence(params)) * (sequence(params) - LOG_REF))


def forward_kl(params):
    return jnp.sum(jnp.exp(LOG_REF) * (LOG_REF - sequence(params)))


def expected_k2_as_cost(params):
    now = sequence(PARAMS)
    return jnp.sum(jnp.exp(sequence(params)) * (now - LOG_REF) ** 2 / 2)


def per_prefix(divergence):
    """The sum over prefixes of a divergence of next tokens, prefixes weighted as they are now."""

    def total(params):
        now, result, mass = POLICY.conditionals(PARAMS, SPACE), 0.0, jnp.ones(1, DTYPE)
        trees = (POLICY.conditionals(params, SPACE), POLICY.conditionals(REF, SPACE), now)
        levels = zip(*trees, strict=True)
        for log_p, log_q, log_now in levels:
            result = result + jnp.sum(mass * divergence(log_p, log_q))
            mass = (mass[:, None] * jnp.exp(log_now)).ravel()
        return result

    return total


local_reverse = per_prefix(lambda p, q: jnp.sum(jnp.exp(p) * (p - q), -1))
local_forward = per_prefix(lambda p, q: jnp.sum(jnp.exp(q) * (q - p), -1))


TABLE = {
    ("reward", "k1", "sequence"): reverse_kl,
    ("reward", "k2", "sequence"): expected_k2_as_cost,
    ("reward", "k3", "sequence"): lambda p: reverse_kl(p) - forward_kl(p),
    ("loss", "k1", "sequence"): lambda p: 0.0 * reverse_kl(p),
    ("loss", "k2", "sequence"): reverse_kl,
    ("loss", "k3", "sequence"): forward_kl,
    ("loss", "weighted-k1", "sequence"): reverse_kl,
    ("loss", "weighted-k3", "sequence"): reverse_kl,
    ("reward", "k1", "token"): reverse_kl,
    ("loss", "k1", "token"): lambda p: 0.0 * reverse_kl(p),
    ("loss", "k2", "token"): local_reverse,
    ("loss", "k3", "token"): local_forward,
    ("loss", "weighted-k1", "token"): local_reverse,
    ("loss", "weighted-k3", "token"): local_reverse,
}


@pytest.mark.parametrize(("place", "estimator", "level"), TABLE, ids=map("-".join, TABLE))
def test_estimators_follow_these_divergences(place, estimator, level):
    """Claim: estimates of KL in the loss, token by token, do not have the gradient of the
    sequences' KL (arXiv 2506.09477).

    Holds: of k1, k2 and k3 only k2 of whole sequences has it; each of the table's rows has the
    divergence named there.
    """
    recipe = Recipe(place=place, estimator=estimator, level=level)
    got, want = followed(recipe), of(TABLE[place, estimator, level])
    np.testing.assert_allclose(got, want, atol=TOL * max(1, np.abs(want).max()))


@pytest.mark.broad
def test_published_gradients_of_one_step():
    """Claim: k2 in the loss has the gradient of reverse KL, k3 in the loss only to first order
    (arXiv 2510.01555).

    Holds: k3's is that of forward KL, and exactly.
    """
    log_policy = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.25, 0.15], DTYPE))
    log_ref = jnp.log(jnp.array([0.4, 0.3, 0.15, 0.1, 0.05], DTYPE))[:, None]
    reverse = [-0.176838058382, -0.157510266162, 0.093318287357, 0.133551127293, 0.107478909895]
    forward = [-0.3, -0.1, 0.15, 0.15, 0.1]
    wanted = {
        "k1": np.zeros(5),
        "k2": reverse,
        "k3": forward,
        "weighted-k1": reverse,
        "weighted-k3": reverse,
    }

    def loss(logits, recipe):
        tokens = jax.nn.log_softmax(logits)[:, None]
        weights = jax.lax.stop_gradient(jnp.exp(tokens[:, 0]))
        reward = jnp.zeros(5, DTYPE)
        return -estimators.surrogate(recipe, tokens, log_ref, reward, 1.0, weights).sum()

    for estimator, want in wanted.items():
        got = jax.grad(loss)(log_policy, Recipe(place="loss", estimator=estimator))
        np.testing.assert_allclose(got, want, atol=64 * eps(DTYPE))


@pytest.mark.parametrize("baseline", ["mean", "leave-one-out"])
def test_baselines_do_not_change_the_exact_gradient(baseline):
    reward = jax.random.normal(jax.random.key(3), (27,))
    want = followed(Recipe(), reward, 0.3)
    for level in ("sequence", "token"):
        got = followed(Recipe(baseline=baseline, level=level), reward, 0.3)
        np.testing.assert_allclose(got, want, atol=TOL)


@pytest.mark.quick_only("k3-token")
@pytest.mark.parametrize(
    ("recipe", "factor"),
    [
        (Recipe(place="reward", estimator="k1", baseline="leave-one-out"), 1),
        (Recipe(place="reward", estimator="k1", level="token", baseline="leave-one-out"), 1),
        (Recipe(place="reward", estimator="k1", baseline="mean"), 3 / 4),
        (Recipe(place="loss", estimator="k3", level="token", baseline="none"), 1),
        (Recipe(place="loss", estimator="weighted-k3"), 1),
    ],
    ids=["leave-one-out", "token", "mean", "k3-token", "weighted-k3"],
)
def test_the_mean_of_sampled_gradients_is_the_exact_one(recipe, factor):
    reward, beta, groups, size = jax.random.normal(jax.random.key(3), (27,)), 0.3, 8, 4

    def loss(params, key):
        tokens = POLICY.sample(PARAMS, key=key, num_samples=groups * size)
        which = SPACE.index(tokens).reshape(groups, size)
        log_probs = POLICY.log_probs(params, tokens).reshape(groups, size, 3)
        log_ref = TOKEN_LOG_REF[which]
        terms = estimators.surrogate(recipe, log_probs, log_ref, reward[which], beta)
        return -terms.sum()

    keys = jax.random.split(jax.random.key(7), 4000)
    sampled = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(PARAMS, keys)["logits"]
    error = sampled.std(0) / len(keys) ** 0.5
    want = factor * followed(recipe, reward, beta)
    z = (sampled.mean(0) - want) / jnp.maximum(error, 1e-6)
    # 39 logits, of which the most deviant exceeds 4.5 once in 4000 sets of keys
    assert np.abs(z).max() < 4.5, f"{np.abs(z).max():.1f} standard errors"


def later_update(recipe):
    """The gradient of log-probabilities that have moved since the samples were drawn, and those."""
    rng = np.random.default_rng(5)
    drawn, now, log_ref = (rng.uniform(-2, -0.2, (1, 4, 3)) for _ in range(3))
    now = drawn + 0.1 * now
    reward = np.array([[1.0, 0.0, 0.5, 0.2]])

    def total(log_probs):
        sampler = jnp.asarray(drawn, DTYPE)
        arrays = jnp.asarray(log_ref, DTYPE), jnp.asarray(reward, DTYPE)
        return estimators.surrogate(recipe, log_probs, *arrays, 0.3, log_sampler=sampler).sum()

    return np.asarray(jax.grad(total)(jnp.asarray(now, DTYPE))), drawn, now, log_ref, reward


@pytest.mark.quick_only("token", others="broad")
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_a_charge_is_that_of_the_policy_that_drew_the_sample(level):
    recipe = Recipe("reward", "k1", level, "mean", "group-std", ddof=1)
    got, drawn, now, log_ref, reward = later_update(recipe)
    charge = 0.3 * (drawn - log_ref)
    if level == "sequence":
        returns = np.broadcast_to((reward - charge.sum(-1))[..., None], now.shape)
    else:
        returns = reward[..., None] - charge[..., ::-1].cumsum(-1)[..., ::-1]
    centred = returns - returns.mean(-2, keepdims=True)
    want = centred / returns.std(-2, ddof=1, keepdims=True) * np.exp(now - drawn) / 4
    np.testing.assert_allclose(got, want, rtol=1e4 * eps(DTYPE), atol=TOL)


def test_ratios_of_sequences_are_clipped_as_one():
    options = {"baseline": "leave-one-out", "clip": 0.2, "ratio_level": "sequence"}
    got, drawn, now, log_ref, reward = later_update(Recipe("reward", "k1", **options))
    returns = reward - 0.3 * (drawn - log_ref).sum(-1)
    advantage = (returns - returns.mean(-1, keepdims=True)) * 4 / 3
    ratio = np.exp((now - drawn).sum(-1))
    # No gradient where the smaller of the two is the constant one.
    free = advantage * ratio <= advantage * np.clip(ratio, 0.8, 1.2)
    assert 0 < free.sum() < 4
    want = np.broadcast_to((advantage * ratio * free / 4)[..., None], now.shape)
    np.testing.assert_allclose(got, want, rtol=1e4 * eps(DTYPE), atol=TOL)


@pytest.mark.slow
def test_pseudo_rewards_follow_any_divergence():
    log_probs = sequence(PARAMS)
    score = jax.jit(jax.jacobian(sequence))(PARAMS)["logits"]
    for divergence in (kt.ReverseKL(), kt.ForwardKL(), kt.ChiSquared(), kt.TotalVariation()):
        pseudo = estimators.pseudo_reward(divergence, log_probs, LOG_REF)
        got = jnp.einsum("y,yna->na", -pseudo * jnp.exp(log_probs), score)
        want = of(lambda params, d=divergence: d(sequence(params), LOG_REF))
        np.testing.assert_allclose(got, want, atol=TOL * max(1, np.abs(want).max()))


@pytest.mark.parametrize("case", oracles.slow_look_alikes(oracles.CASES))
def test_pseudo_rewards_where_one_side_is_impossible(case):
    gone = estimators.pseudo_reward(case.divergence, -np.inf, -0.5)
    new = estimators.pseudo_reward(case.divergence, np.array([-0.5, -np.inf]), -np.inf)
    np.testing.assert_array_equal(gone, -case.divergence.f_prime(0.0))
    np.testing.assert_array_equal(new, -case.divergence.slope_at_infinity)


def test_values_near_and_far_from_agreement():
    log_ratio = np.array([1e-4, -1e-3, 0.0299, -0.0301, 0.5, -3.0, 20.0])
    exact = np.array([float(np.expm1(-x) + x) for x in log_ratio])
    near = log_ratio[:4]
    exact[:4] = sum((-near) ** k / math.factorial(k) for k in range(2, 12))
    tol = 1e-9 if X64 else 1e-4
    np.testing.assert_allclose(estimators.k3(jnp.asarray(log_ratio, DTYPE)), exact, rtol=tol)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"place": "loss ", "estimator": "k1"}, "place must be one of 'reward', 'loss', 'none'"),
        ({"estimator": "k4"}, "estimator must be one of 'k1', 'k2', 'k3', 'weighted-k1'"),
        ({"level": "word"}, "level must be one of 'sequence', 'token'"),
        ({"baseline": 0}, "baseline must be one of .*'leave-one-out', got 0"),
        ({"place": "reward", "estimator": "weighted-k3"}, "place='loss'"),
        ({"place": "reward", "estimator": "weighted-k1"}, "place='loss'"),
        ({"level": "token", "ratio_level": "sequence"}, "use level='sequence'"),
        ({"level": "sequence", "eos": "cut"}, "use level='token'"),
        ({"reward_clip": 1.0, "reward_clip_low": 2.0}, "reward_clip_low=2.0 must be below"),
        ({"reward_clip_low": math.nan}, "reward_clip_low must be a finite number, got nan"),
    ],
)
def test_recipes_name_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)
