"""Mode-anchored augmentation with its caveats, and rewards for wished targets."""

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from oracles import CASES, DTYPES, assert_reference, eps, reference

import kltarget as kt
from kltarget import testing

FLOAT = np.dtype(jnp.result_type(float))
T3 = [0.3, 0.02, 0.68], [1.0, 1.0, 0.0]
P5 = [0.4, 0.3, 0.15, 0.1, 0.05], [0.1, 0.5, 1.0, 0.9, 0.3]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
t3_betas = pytest.mark.parametrize("beta", ["0.001", "0.01", "0.1", "1.0"])


def log(p, dtype=FLOAT):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p, np.float64)).astype(dtype)


def problem(ref, reward, beta, divergence=None, dtype=FLOAT):
    reward, beta = (np.asarray(x, np.float64).astype(dtype) for x in (reward, beta))
    return kt.Objective(reward, log(ref, dtype), beta, divergence or kt.ReverseKL())


def close(name, got, key, beta=1.0, dtype=FLOAT):
    """A reference value, to what a reward of order one can resolve at this β."""
    want = np.asarray(reference(name)["expected"][key], np.float64)
    tolerance = max(64 * eps(dtype) / min(beta, 1), 1e-10)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-30, err_msg=f"{name} {key}")


# mara


@t3_betas
@dtypes
def test_augmentation_reference_values(beta, dtype):
    name, b = f"mara1-t3-b{beta}", float(beta)
    augmented = kt.mara(problem(*T3, b, dtype=dtype), 0.8)
    assert augmented.reward.dtype == dtype
    assert not augmented.measure
    assert_reference(name, augmented.reward, "R_aug", dtype)
    close(name, kt.solve(augmented).probs, "pi_reverse", b, dtype)


@t3_betas
def test_augmentation_is_not_uniform_under_forward_kl(beta):
    # Caveat 1: it over-corrects, and the least likely right answer gets the most.
    name, b = f"mara1-t3-b{beta}", float(beta)
    augmented = kt.mara(problem(*T3, b, kt.ForwardKL()), 0.8)
    target = kt.solve(augmented)
    close(name, target.probs, "pi_forward", b)
    close(name, target.multiplier + b, "Lambda_forward")
    assert target.probs[1] > 5 * target.probs[0]
    # On S it is π_ref/(κ − log(π_ref(z)/π_ref)), up to a factor.
    ratio = math.log(0.3 / 0.02)
    kappa = float(target.multiplier + b - 1) / b
    want = 0.3 / kappa / (0.02 / (kappa - ratio))
    np.testing.assert_allclose(target.probs[0] / target.probs[1], want, rtol=1e4 * eps(FLOAT) / b)


@t3_betas
def test_substitution_reference_values(beta):
    name, b = f"mara2-t3-b{beta}", float(beta)
    changed = kt.mara(problem(*T3, b, kt.ForwardKL()), 0.8, method="substitute")
    assert changed.measure
    target = kt.solve(changed)
    close(name, target.probs, "pi", b)
    close(name, target.multiplier + b, "Lambda")
    # The same target by rewards alone, with the reference as it is
    equivalent = jnp.asarray(reference(name)["expected"]["R_equiv"], FLOAT)
    same = kt.solve(kt.Objective(equivalent, log(T3[0]), b, kt.ForwardKL()))
    close(name, same.probs, "pi", b)


@pytest.mark.quick_only(
    "forward-kl",
    "chi-squared-kl",
    "alpha-0.5",
    "alpha-1",
    "alpha-1+2^-10",
    "alpha-1-2^-5",
    "alpha-1.5",
    "alpha-3",
)
@pytest.mark.parametrize("case", CASES, ids=oracles.ids)
def test_substitution_is_uniform_for_every_divergence(case):
    # Caveat 1, the way out
    changed = kt.mara(problem(*P5, 0.5, case.divergence), 0.9, method="substitute")
    target = kt.solve(changed).raise_if_failed()
    np.testing.assert_allclose(target.probs[2], target.probs[3], rtol=16 * eps(FLOAT))
    np.testing.assert_allclose(target.probs.sum(), 1, rtol=16 * eps(FLOAT))
    # Outcomes below the threshold keep their odds, reference and reward.
    np.testing.assert_array_equal(changed.reward[:2], problem(*P5, 0.5).reward[:2])
    np.testing.assert_array_equal(changed.log_ref[:2], log(P5[0])[:2])


def test_unequal_rewards_reference_values():
    name = "mara-p5-b0.5"
    reverse, forward = problem(*P5, 0.5), problem(*P5, 0.5, kt.ForwardKL())
    assert_reference(name, kt.mara(reverse, 0.9).reward, "R_aug", FLOAT)
    close(name, kt.solve(kt.mara(reverse, 0.9)).probs, "pi_reverse")
    close(name, kt.solve(kt.mara(forward, 0.9)).probs, "pi_forward_alg1")
    substituted = kt.solve(kt.mara(forward, 0.9, method="substitute"))
    close(name, substituted.probs, "pi_forward_alg2")
    close(name, substituted.multiplier + 0.5, "Lambda_alg2")
    both = kt.solve(kt.mara(reverse, 0.9, method="substitute"))
    close(name, both.probs, "pi_reverse")


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_substitution_in_the_alpha_family_reference_values(alpha):
    name = f"mara2-p5-a{alpha}"
    target = kt.solve(kt.mara(problem(*P5, 0.5, kt.Alpha(alpha)), 0.9, method="substitute"))
    close(name, target.probs, "pi")
    close(name, target.multiplier, "lam")


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_the_best_anchor_maximises_the_mass(beta):
    # Caveat 2
    case = reference(f"mara-anchor-b{beta}")
    ref, reward = case["inputs"]["ref"], case["inputs"]["R"]
    masses = [case["expected"][f"mass_on_set_z{z}"] for z in range(3)]
    got = {}
    for anchor in ("reference", "best"):
        target = kt.solve(kt.mara(problem(ref, reward, beta), 0.8, anchor=anchor))
        np.testing.assert_allclose(target.probs[:3], target.probs[0], rtol=64 * eps(FLOAT) / beta)
        got[anchor] = float(1 - target.probs[3])
        np.testing.assert_allclose(
            np.log(target.probs[3]),
            math.log1p(-(masses[0] if anchor == "reference" else max(masses))),
            rtol=max(1e3 * eps(FLOAT), 1e-8),
        )
    assert got["best"] >= got["reference"]


@pytest.mark.parametrize("beta", ["1.0", "2.0"])
def test_never_divide_the_advantages_by_their_deviation(beta):
    # Caveat 3: augmented rewards over σ, the KL term as it is; σ is that of the policy itself.
    case = reference(f"mara-std-b{beta}")["expected"]
    b = float(beta)
    augmented = kt.mara(problem(*T3, b), 0.8)
    reward = np.asarray(augmented.reward, np.float64)
    sigma = case["sigma"]
    target = kt.solve(problem(T3[0], reward / sigma, b))
    np.testing.assert_allclose(target.probs, case["pi"], rtol=64 * eps(FLOAT))
    p = np.asarray(target.probs, np.float64)
    deviation = math.sqrt(p @ reward**2 - (p @ reward) ** 2)
    np.testing.assert_allclose(deviation, sigma, rtol=1e3 * eps(FLOAT))
    want = (1 - 1 / sigma) * math.log(15)
    np.testing.assert_allclose(kt.log_odds(target, 0, 1), want, rtol=1e3 * eps(FLOAT))
    # The other fixed point has σ < 1 and reverses the order.
    smaller = min(case["roots_beta_eff"]) / b
    assert smaller < 1
    reversed_order = kt.solve(problem(T3[0], reward / smaller, b))
    assert kt.log_odds(reversed_order, 0, 1) < 0


def test_a_baseline_that_includes_the_sample_leaves_a_ratio():
    # Caveat 4: the KL coefficient is effectively βG/(G − 1).
    inputs = reference("mara-selfmean-t3")["inputs"]
    beta, size = inputs["beta"], inputs["G"]
    augmented = kt.mara(problem(*T3, beta), 0.8)
    target = kt.solve(kt.Objective(augmented.reward, augmented.log_ref, beta * size / (size - 1)))
    close("mara-selfmean-t3", target.probs, "pi", beta)
    ratio = jnp.exp(kt.log_odds(target, 0, 1))
    close("mara-selfmean", ratio, "ratio", beta)


def test_ties_in_the_reference_take_the_best_reward():
    got = kt.mara(problem([0.4, 0.4, 0.2], [0.8, 1.0, 0.0], 0.1), 0.5)
    np.testing.assert_array_equal(got.reward, np.array([1, 1, 0], FLOAT))


def test_outcomes_without_reference_mass_stay_as_they_are():
    objective = problem([0.6, 0.4, 0.0], [1.0, 0.9, 2.0], 0.1, kt.ForwardKL())
    for method in ("augment", "substitute"):
        for anchor in ("reference", "best"):
            got = kt.mara(objective, 0.9, method=method, anchor=anchor)
            assert got.reward[2] == 2
            assert got.log_ref[2] == -np.inf
            assert np.isfinite(got.reward).all()


def test_mara_of_batches():
    betas = np.array([0.1, 0.5, 1.0])
    batch = problem(P5[0], P5[1], betas)
    got = kt.mara(batch, np.array([0.9, 0.9, 0.5], FLOAT))
    assert got.batch_shape == (3,)
    for k, threshold in enumerate((0.9, 0.9, 0.5)):
        alone = kt.mara(problem(*P5, betas[k]), threshold)
        np.testing.assert_allclose(got.reward[k], alone.reward, rtol=4 * eps(FLOAT))


def test_mara_under_jit_and_vmap():
    def reward(r, threshold):
        return kt.mara(kt.Objective(r, log(P5[0]), 0.5), threshold).reward

    r = jnp.asarray(P5[1], FLOAT)
    rows = jax.jit(jax.vmap(reward, in_axes=(None, 0)))(r, jnp.array([0.9, 0.5, 7.0], FLOAT))
    for row, threshold in zip(rows, (0.9, 0.5), strict=False):
        np.testing.assert_allclose(row, reward(r, threshold), rtol=4 * eps(FLOAT))
    # A threshold that nothing reaches leaves a traced row alone.
    np.testing.assert_array_equal(rows[2], r)


def test_mara_is_differentiable():
    def augmented(x):
        return kt.mara(kt.Objective(x[:3], kt.normalize(x[3:6]), jnp.exp(x[6])), 0.8).reward[1]

    x = jnp.asarray([1.0, 1.0, 0.0, -1.2, -3.9, -0.4, -2.3], FLOAT)
    # r(z) + β[log π_ref(z) − log π_ref(1)]; at a tie in reward the anchor is the likely one
    beta = math.exp(-2.3)
    want = [1, 0, 0, beta, -beta, 0, beta * 2.7]
    np.testing.assert_allclose(jax.grad(augmented)(x), want, atol=64 * eps(FLOAT))


def test_mara_refuses_what_makes_no_sense():
    objective = problem(P5[0], P5[1], [0.1, 1.0])
    with pytest.raises(ValueError, match=r"threshold 1.5 is above the reward of every outcome"):
        kt.mara(objective, 1.5)
    with pytest.raises(ValueError, match=r"threshold 2 is above .* at index 1"):
        kt.mara(objective, np.array([0.5, 2.0], FLOAT))
    with pytest.raises(ValueError, match="every outcome with reference mass"):
        kt.mara(problem([0.5, 0.5, 0], [0, 0, 1], 0.1), 1.0)
    with pytest.raises(ValueError, match="is above the reward"):
        kt.mara(objective, math.nan)
    with pytest.raises(ValueError, match=r"threshold has shape \(3,\)"):
        kt.mara(objective, np.zeros(3))
    with pytest.raises(ValueError, match="method must be 'augment' or 'substitute', got 'mix'"):
        kt.mara(objective, 0.5, method="mix")
    with pytest.raises(ValueError, match="anchor must be 'reference' or 'best'"):
        kt.mara(objective, 0.5, anchor="first")


# reward_for


@pytest.mark.parametrize(
    ("key", "divergence"),
    [
        ("alpha1", kt.ReverseKL()),
        ("alpha0", kt.ForwardKL()),
        ("alpha0.5", kt.Alpha(0.5)),
        ("alpha2", kt.Alpha(2.0)),
        ("js", kt.JensenShannon()),
    ],
)
@dtypes
def test_inverse_reference_values(key, divergence, dtype):
    inputs = reference("inverse-p5")["inputs"]
    ref, wish = log(inputs["ref"], dtype), log(inputs["target"], dtype)
    got = kt.reward_for(wish, ref, inputs["beta"], divergence)
    assert got.dtype == dtype
    assert_reference("inverse-p5", got, key, dtype)


@pytest.mark.quick_only("reverse KL", "forward KL")
@pytest.mark.parametrize(
    "divergence",
    [
        *(case.divergence for case in CASES if case in oracles.NAMED),
        kt.Alpha(0.75),
        kt.Tsallis(1.5),
        kt.FDivergence(lambda u: (1 - u) ** 2 / (2 * (1 + u)), slope_at_infinity=0.5),
    ],
    ids=lambda d: d.name,
)
def test_the_target_of_the_reward_is_the_wish(divergence):
    rng = np.random.default_rng(3)
    for k in range(4):
        ref, wish = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
        beta = 10.0 ** rng.uniform(-2, 2)
        reward = kt.reward_for(log(wish), log(ref), beta, divergence)
        assert reward.max() == 0
        target = kt.solve(kt.Objective(reward, log(ref), beta, divergence)).raise_if_failed()
        # f′ is flat, and the inverse steep, where a finite slope at infinity is approached.
        rtol = 2e-3 if eps(FLOAT) > 1e-10 else 1e-7
        np.testing.assert_allclose(target.probs, np.exp(log(wish)), rtol=rtol, err_msg=str(k))


@pytest.mark.slow
def test_zeros_of_the_wish():
    wish, ref = log([0.5, 0.0, 0.5, 0.0]), log([0.25, 0.25, 0.5, 0.0])
    for divergence in (kt.ReverseKL(), kt.ForwardKL(), kt.JensenShannon(), kt.ChiSquaredKL()):
        reward = kt.reward_for(wish, ref, 0.5, divergence)
        assert np.isneginf(reward[jnp.array([1, 3])]).all()
        target = kt.solve(kt.Objective(reward, ref, 0.5, divergence))
        np.testing.assert_allclose(target.probs, np.exp(wish), atol=64 * eps(FLOAT))
    # χ²: f′(2) = 2, f′(1) = 0, and f′(0) = −2 is the largest reward that keeps the zero.
    reward = kt.reward_for(wish, ref, 0.5, kt.ChiSquared())
    np.testing.assert_allclose(reward, [0, -2, -1, -np.inf], rtol=16 * eps(FLOAT))
    for more, alive in ((0.0, False), (1e-2, True)):
        objective = kt.Objective(reward.at[1].add(more), ref, 0.5, kt.ChiSquared())
        assert bool(kt.solve(objective).probs[1] > 1e-4) == alive


@pytest.mark.parametrize("divergence", [kt.ForwardKL(), kt.JensenShannon()], ids=lambda d: d.name)
def test_a_wish_outside_the_reference_condenses(divergence):
    wish, ref = log([0.3, 0.2, 0.5]), log([0.5, 0.5, 0.0])
    reward = kt.reward_for(wish, ref, 2.0, divergence)
    assert reward[2] == 0
    target = kt.solve(kt.Objective(reward, ref, 2.0, divergence))
    assert int(target.status) & kt.Status.CONDENSED
    np.testing.assert_allclose(target.probs, np.exp(wish), rtol=64 * eps(FLOAT))


@given(
    testing.log_policies(5, zeros=False), testing.log_policies(5, zeros=False), st.integers(-3, 3)
)
def test_the_reverse_kl_reward_is_the_log_ratio(wish, ref, k):
    beta = FLOAT.type(10.0**k)
    reward = np.asarray(kt.reward_for(wish, ref, beta), np.float64)
    ratio = (wish.astype(np.float64) - ref) * float(beta)
    scale = 4 * eps(FLOAT) * float(beta) * (1 + np.abs(wish).max() + np.abs(ref).max())
    np.testing.assert_allclose(reward, ratio - ratio.max(), atol=4 * scale, rtol=4 * eps(FLOAT))


def test_rewards_of_batches_and_types():
    wish, ref = log([[0.5, 0.5], [0.9, 0.1]]), log([0.3, 0.7])
    betas = np.array([[0.1], [1.0], [10.0]], FLOAT)
    got = kt.reward_for(wish, ref, betas, kt.Alpha(np.array([0.5, 2.0], FLOAT)))
    assert got.shape == (3, 2, 2)
    for k, alpha in enumerate((0.5, 2.0)):
        alone = kt.reward_for(wish[k], ref, 10.0, kt.Alpha(alpha))
        np.testing.assert_allclose(got[2, k], alone, rtol=16 * eps(FLOAT))
    short = kt.reward_for(jnp.asarray(wish, jnp.bfloat16), jnp.asarray(ref, jnp.bfloat16), 1.0)
    assert short.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(short, np.float64), kt.reward_for(wish, ref, 1.0), atol=0.02
    )


@pytest.mark.quick_only("forward KL")
@pytest.mark.parametrize(
    "divergence", [kt.ReverseKL(), kt.ForwardKL(), kt.JensenShannon()], ids=lambda d: d.name
)
def test_rewards_under_transformations(divergence):
    def reward(x):
        wish, ref = kt.normalize(x[:3]), kt.normalize(x[3:6])
        return kt.reward_for(wish, ref, jnp.exp(x[6]), divergence)

    x = jnp.asarray([0.1, -0.4, -0.9, -1.0, 0.0, 0.3, -0.5], FLOAT)
    np.testing.assert_allclose(jax.jit(reward)(x), reward(x), atol=16 * eps(FLOAT))
    jacobian = jax.jit(jax.jacobian(reward))(x)
    jitted = jax.jit(reward)
    for k in range(7):
        unit = jnp.zeros_like(x).at[k].set(1.0)
        want = oracles.central_difference(
            lambda t, u=unit: jitted(x + t * u), 0.0, 3e-2 if eps(FLOAT) > 1e-10 else 1e-3
        )
        np.testing.assert_allclose(jacobian[:, k], want, atol=1e3 * eps(FLOAT) ** 0.8)


def test_invalid_rows_under_a_trace_are_nan():
    def reward(wish, beta):
        return kt.reward_for(wish, log([0.5, 0.5, 0.0]), beta)

    wishes = log([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.5, 0.1, 0.0], [0.5, 0.5, 0.0]])
    rows = jax.jit(jax.vmap(reward))(wishes, np.array([1.0, 1.0, 1.0, -1.0], FLOAT))
    np.testing.assert_array_equal(np.isnan(rows).any(-1), [False, True, True, True])


def test_reward_for_refuses_what_makes_no_sense():
    ref = log([0.5, 0.5])
    with pytest.raises(ValueError, match="total variation has no reward for a target"):
        kt.reward_for(ref, ref, 1.0, kt.TotalVariation())
    with pytest.raises(ValueError, match="log_target is not normalised"):
        kt.reward_for(ref - 1, ref, 1.0)
    with pytest.raises(ValueError, match="log_target is not normalised at index 1"):
        kt.reward_for(np.stack([ref, np.full(2, np.nan, FLOAT)]), ref, 1.0)
    with pytest.raises(ValueError, match="log_ref is not normalised"):
        kt.reward_for(ref, ref - 1, 1.0)
    with pytest.raises(ValueError, match="beta must be above 0"):
        kt.reward_for(ref, ref, 0.0)
    with pytest.raises(ValueError, match="need the same last axis"):
        kt.reward_for(ref, log([0.5, 0.25, 0.25]), 1.0)
    with pytest.raises(ValueError, match="log_target has mass where log_ref has none at index 1"):
        kt.reward_for(ref, log([1.0, 0.0]), 1.0)
    far = np.array([0.0, -800.0], FLOAT)
    with pytest.raises(ValueError, match="the reward is too large for"):
        kt.reward_for(far[::-1], far, 1.0, kt.ChiSquared())
    assert kt.reward_for(far[::-1], far, 1.0)[0] == -1600
