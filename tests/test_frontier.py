"""Budgets, best-of-n and curves against enumeration, arbitrary precision and convex programs."""

import itertools
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from oracles import DTYPES, assert_reference, double_precision, eps, reference, reference_ids

import kltarget as kt
from kltarget.frontier import best_of_n, beta_for, curve

FLOAT = np.dtype(jnp.result_type(float))
P5 = ([0.4, 0.3, 0.15, 0.1, 0.05], [0.1, 0.5, 1.0, 0.9, 0.3])

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def log(p, dtype=FLOAT):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p, np.float64)).astype(dtype)


# best_of_n


@pytest.mark.parametrize("name", reference_ids("bon-p5"))
@dtypes
def test_best_of_n_reference_values(name, dtype):
    inputs, expected = reference(name)["inputs"], reference(name)["expected"]
    best = best_of_n(np.array(inputs["R"], dtype), log(inputs["ref"], dtype), inputs["N"])
    assert best.log_probs.dtype == best.kl.dtype == dtype
    want = np.log(expected["pi"])
    assert (np.abs(np.asarray(best.log_probs) - want) <= 32 * eps(dtype) * (1 - want)).all()
    assert_reference(name, best.win_rate, "win_rate", dtype)
    assert_reference(name, best.expected_reward, "mean_reward", dtype)
    for key, got in (("kl", best.kl), ("kl_bound", best.kl_bound)):
        assert abs(float(got) - expected[key]) <= 64 * eps(dtype) * (1 + expected[key])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_what_all_tuples_give(n):
    ref, reward = [0.35, 0.25, 0.2, 0.15, 0.05], [1.0, 0.0, 1.0, 2.0, 0.0]
    probs = np.zeros(5)
    for draws in itertools.product(range(5), repeat=n):
        mass = np.prod([ref[i] for i in draws])
        highest = max(reward[i] for i in draws)
        winners = [i for i in draws if reward[i] == highest]
        for i in winners:
            probs[i] += mass / len(winners)
    wins = sum(
        probs[i] * ref[j] * (1.0 if reward[i] > reward[j] else 0.5 if reward[i] == reward[j] else 0)
        for i, j in itertools.product(range(5), repeat=2)
    )
    best = best_of_n(np.array(reward, FLOAT), log(ref), n)
    np.testing.assert_allclose(best.probs, probs, rtol=256 * eps(FLOAT))
    np.testing.assert_allclose(best.win_rate, wins, rtol=256 * eps(FLOAT))
    np.testing.assert_allclose(best.expected_reward, probs @ reward, rtol=256 * eps(FLOAT))
    np.testing.assert_allclose(np.exp(best.log_prob([3, 0])), probs[[3, 0]], rtol=256 * eps(FLOAT))
    lengths = np.array([[3.0, 1.0], [7.0, 0.0], [2.0, 5.0], [9.0, 1.0], [4.0, 2.0]])
    np.testing.assert_allclose(best.expectation(lengths), probs @ lengths, rtol=256 * eps(FLOAT))


def test_best_of_n_against_draws():
    log_ref, reward = log(P5[0]), np.array(P5[1], FLOAT)
    draws = jax.random.categorical(jax.random.key(3), log_ref, shape=(40_000, 6))
    picked = jnp.take_along_axis(draws, jnp.argmax(reward[draws], -1)[:, None], -1)[:, 0]
    shares = np.bincount(np.asarray(picked), minlength=5) / 40_000
    best = best_of_n(reward, log_ref, 6)
    probs = np.asarray(best.probs)
    error = np.sqrt(probs * (1 - probs) / 40_000)
    assert (np.abs(shares - probs) <= 5 * error).all()
    drawn = best.sample(key=jax.random.key(4), num_samples=40_000)
    own = np.bincount(np.asarray(drawn), minlength=5) / 40_000
    assert (np.abs(own - shares) <= 5 * np.sqrt(2) * error).all()


def test_best_of_n_answers_what_targets_do():
    log_ref, reward = log(P5[0]), np.array(P5[1], FLOAT)
    best = best_of_n(reward, log_ref, np.array([1.0, 4.0, 9.0], FLOAT))
    assert best.log_prob(np.array([[0], [4]])).shape == (2, 3)
    assert np.isnan(best.log_prob(5)).all()
    assert best.sample(key=jax.random.key(0), num_samples=7).shape == (7, 3)
    lengths = np.arange(10, dtype=FLOAT).reshape(5, 2)
    mean = best.expectation(lengths)
    assert (mean.shape, mean.dtype) == ((3, 2), FLOAT)
    np.testing.assert_array_equal(best.expectation(lambda i: jnp.asarray(lengths)[i]), mean)
    np.testing.assert_allclose(mean[0], P5[0] @ lengths, rtol=1e-5)  # of one draw
    np.testing.assert_array_equal(best.divergence_value, best.kl)
    assert best.status.tolist() == [0, 0, 0]
    assert best.raise_if_failed() is best
    assert not hasattr(best, "value")


def exact_best_of_n(reward, log_ref, n):
    """log q in 400 digits: enough for a difference of powers that agree to 300 of them."""
    with mp.workdps(400):
        mass = [mp.exp(mp.mpf(float(x))) for x in log_ref]
        mass = [x / mp.fsum(mass) for x in mass]
        pairs = list(zip(mass, reward, strict=True))
        found = []
        for x, r in pairs:
            below = mp.fsum(m for m, other in pairs if other < r)
            level = mp.fsum(m for m, other in pairs if other == r)
            both = [
                mp.power(y, mp.mpf(float(n))) if y else mp.mpf(0) for y in (below + level, below)
            ]
            found.append(mp.log(x) + mp.log((both[0] - both[1]) / level))
        return np.array([float(x) for x in found])


@pytest.mark.parametrize("n", [1.0, 1.5, 16.0, 1e6, 1e12])
@dtypes
def test_best_of_n_to_the_last_digits(n, dtype):
    rng = np.random.default_rng(int(n) % 97)
    for spread in (1.0, 5.0, 60.0):
        reward = rng.integers(0, 6, 12).astype(dtype)
        log_ref = rng.normal(size=12) * spread
        log_ref = (log_ref - np.logaddexp.reduce(log_ref)).astype(dtype)
        got = np.asarray(best_of_n(reward, log_ref, dtype.type(n)).log_probs, np.float64)
        want = exact_best_of_n(reward.tolist(), log_ref.tolist(), dtype.type(n))
        assert (np.abs(got - want) <= 32 * eps(dtype) * (1 + np.abs(want))).all()


@dtypes
def test_one_draw_is_the_reference_and_equal_rewards_keep_its_ratio(dtype):
    log_ref = log(P5[0], dtype)
    np.testing.assert_allclose(
        best_of_n(np.array(P5[1], dtype), log_ref, 1).log_probs, log_ref, rtol=16 * eps(dtype)
    )
    tied = np.asarray(best_of_n(np.array([0, 1, 1, 0, 1.0], dtype), log_ref, 37.5).log_probs)
    for i, j in ((1, 2), (2, 4), (0, 3)):
        difference = (tied[i] - tied[j]) - (log_ref[i] - log_ref[j])
        assert abs(difference) <= 4 * eps(dtype) * (1 + abs(tied[i]))


def test_order_and_merging_of_equal_rewards_change_nothing():
    ref, reward = np.array([0.1, 0.25, 0.05, 0.4, 0.2]), np.array([1.0, 3.0, 1.0, 2.0, 3.0], FLOAT)
    whole = best_of_n(reward, log(ref), 7)
    probs = np.asarray(whole.probs)
    order = np.array([3, 0, 4, 2, 1])
    shuffled = best_of_n(reward[order], log(ref[order]), 7)
    np.testing.assert_allclose(shuffled.probs, probs[order], rtol=32 * eps(FLOAT))
    merged = best_of_n(np.array([1.0, 2.0, 3.0], FLOAT), log([0.15, 0.4, 0.45]), 7)
    sums = [probs[[0, 2]].sum(), probs[3], probs[[1, 4]].sum()]
    np.testing.assert_allclose(merged.probs, sums, rtol=32 * eps(FLOAT))
    for name in ("kl", "win_rate", "expected_reward"):
        one, other = getattr(whole, name), getattr(merged, name)
        np.testing.assert_allclose(one, other, rtol=64 * eps(FLOAT))


def test_best_of_n_stays_within_its_bounds():
    """Claim: KL(best-of-n‖π_ref) is at most log n − (n − 1)/n (arXiv 2401.01879).

    Holds.
    """
    rng = np.random.default_rng(5)
    log_ref = kt.normalize(3 * rng.normal(size=(20, 1, 30)).astype(FLOAT))
    reward = rng.integers(0, 12, (20, 1, 30)).astype(FLOAT)
    n = np.array([1.0, 1.2, 2.0, 10.0, 1e3, 1e7], FLOAT)
    best = best_of_n(reward, log_ref, n)
    kl, bound, wins, gain = map(
        np.asarray, (best.kl, best.kl_bound, best.win_rate, best.expected_reward)
    )
    slack = 64 * eps(FLOAT)
    assert kl.shape == (20, 6)
    assert (kl >= 0).all()
    assert (kl <= bound + slack * (1 + bound)).all()
    assert (wins <= n / (n + 1) + slack).all()
    assert (np.diff(gain, axis=-1) >= -slack * 12).all()


def test_the_bound_is_met_by_many_distinct_rewards():
    """Claim: KL(best-of-n‖π_ref) equals log n − (n − 1)/n (arXiv 2401.01879).

    Holds with a correction: in the limit of many rewards that all differ; ties leave it below,
    at most −log of the best outcomes' reference mass.
    """
    best = best_of_n(np.arange(4096, dtype=FLOAT), np.full(4096, -np.log(4096.0), FLOAT), 8)
    np.testing.assert_allclose(best.kl, best.kl_bound, rtol=1e-3)
    np.testing.assert_allclose(best.win_rate, 8 / 9, rtol=1e-3)


def test_best_of_n_of_impossible_outcomes():
    log_ref = log([0.5, 0.0, 0.3, 0.2])
    best = best_of_n(np.array([0.0, 9.0, 1.0, -np.inf], FLOAT), log_ref, 3)
    np.testing.assert_allclose(best.probs, [0.335, 0.0, 0.657, 0.008], rtol=64 * eps(FLOAT))
    assert np.isneginf(best.expected_reward)
    np.testing.assert_allclose(best.kl, kt.kl(best.log_probs, log_ref), rtol=64 * eps(FLOAT))


def test_gradients_of_best_of_n():
    with double_precision():
        log_ref, reward = log([0.5, 0.2, 0.0, 0.3], np.float64), np.array([0.0, 1.0, 2.0, 1.0])
        weights = np.array([1.0, -2.0, 3.0, 0.5])
        inside = np.isfinite(log_ref)

        def score(logits, n):
            log_probs = best_of_n(reward, kt.normalize(logits), n).log_probs
            return (jnp.where(inside, log_probs, 0.0) * weights).sum()

        slopes, score = jax.jit(jax.grad(score, (0, 1))), jax.jit(score)
        for n in (1.0, 4.0, 300.0):
            by_ref, by_n = slopes(log_ref, n)
            assert by_ref[2] == 0
            for i in np.flatnonzero(inside):
                move = 1e-6 * np.eye(4)[i]
                slope = (score(log_ref + move, n) - score(log_ref - move, n)) / 2e-6
                np.testing.assert_allclose(by_ref[i], slope, rtol=1e-6, atol=1e-7)
            step = 1e-6 * n
            high, low = score(log_ref, n + 2 * step), score(log_ref, n + step)
            np.testing.assert_allclose(by_n, (high - low) / step, rtol=1e-4, atol=1e-7)
        gain = jax.grad(lambda r: best_of_n(r, log_ref, 4.0).expected_reward)(reward)
        np.testing.assert_allclose(gain, best_of_n(reward, log_ref, 4.0).probs, rtol=1e-12)


def test_rows_that_are_refused():
    log_ref, reward = log(P5[0]), np.array(P5[1], FLOAT)
    with pytest.raises(ValueError, match=r"n must be a finite number of 1 or more, got 0\.5"):
        best_of_n(reward, log_ref, 0.5)
    with pytest.raises(ValueError, match=r"n has shape \(3,\)"):
        best_of_n(np.tile(reward, (2, 1)), log_ref, np.ones(3, FLOAT))
    rows = np.stack([reward, np.where(reward == 1, np.nan, reward)])
    best = jax.jit(best_of_n)(rows, log_ref, np.array([0.5, 2.0], FLOAT)[:, None])
    assert best.log_probs.shape == (2, 2, 5)
    finite = np.isfinite(best.log_probs).all(-1)
    assert finite.tolist() == [[False, False], [True, False]]
    assert (np.isnan(best.kl) == ~finite).all()
    draws, rewards = kt.Status.INVALID_N, kt.Status.INVALID_REWARD
    assert best.status.tolist() == [[draws, draws | rewards], [0, rewards]]
    with pytest.raises(ValueError, match=r"best_of_n failed at index \(0, 0\): INVALID_N \(3 of 4"):
        best.raise_if_failed()


# long sequences of independent tokens


def tokens(m, p=0.3):
    """The number of ones among m tokens: log-masses and, as the reward, the number itself."""
    binomial = [
        math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1) for k in range(m + 1)
    ]
    ones = np.arange(m + 1.0)
    return ones, np.array(binomial) + ones * math.log(p) + (m - ones) * math.log1p(-p)


@pytest.mark.broad
@pytest.mark.parametrize("name", reference_ids("memoryless-bon"))
def test_best_of_n_of_long_sequences_comes_close_to_the_tilt(name):
    """Claim: of m independent tokens, best-of-n with n = e^{mΔ} earns per token what the tilt with
    KL Δ per token earns (arXiv 2404.01730).

    Holds.
    """
    inputs, expected = reference(name)["inputs"], reference(name)["expected"]
    m, rate = inputs["m"], inputs["Delta"]
    with double_precision():
        reward, log_ref = tokens(m, inputs["p"])
        best = best_of_n(reward, log_ref, math.exp(m * rate))
        beta = beta_for(kt.Objective(reward, log_ref, 1.0), kl=m * rate)
        tilt = kt.solve(kt.Objective(reward, log_ref, beta))
        earned, apart = tilt.expected_reward, kt.kl(best.log_probs, tilt.log_probs)
    per_token = reference("memoryless-tilt")["expected"]
    np.testing.assert_allclose(1 / float(beta), per_token["inv_beta"], rtol=1e-9)
    np.testing.assert_allclose(float(earned) / m, per_token["tilt_mean"], rtol=1e-9)
    got = {
        "reward_per_token": best.expected_reward,
        "kl_to_ref_per_token": best.kl,
        "kl_to_tilt_per_token": apart,
    }
    for key, x in got.items():
        np.testing.assert_allclose(float(x) / m, expected[key], rtol=1e-9, err_msg=key)


@pytest.mark.broad
def test_the_distance_to_the_tilt_vanishes_per_token_and_grows_in_all():
    """Claim: best-of-n becomes the tilt as sequences grow (arXiv 2404.01730).

    Holds with a correction: KL per token vanishes; KL of whole sequences grows with the
    logarithm of their length.
    """
    gaps = [
        reference(f"memoryless-bon-{m}")["expected"]["kl_to_tilt_per_token"] for m in (20, 100, 400)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    with double_precision():
        reward, log_ref = tokens(3200)
        best = best_of_n(reward, log_ref, math.exp(320.0))
        beta = beta_for(kt.Objective(reward, log_ref, 1.0), kl=320.0)
        tilt = kt.solve(kt.Objective(reward, log_ref, beta))
        assert float(kt.kl(best.log_probs, tilt.log_probs)) / 3200 < gaps[2] / 4


# curve


@pytest.mark.broad
def test_curves_of_one_problem():
    ref, reward = np.array([0.3, 0.02, 0.68]), np.array([1.0, 1.0, 0.0])
    data = curve("one-two", beta=[0.1, 0.5], n=[1, 2.5, 16], temperature=[1.0, 0.25])
    assert data.sizes == {"family": 5, "point": 3}
    assert data.family.values.tolist() == [
        "reverse-kl", "forward-kl", "mara", "best-of-n", "temperature"
    ]  # fmt: skip
    assert data.parameter_name.values.tolist() == ["beta", "beta", "beta", "n", "temperature"]
    assert np.isnan(data.parameter.sel(family="mara").values[2])
    assert {x: data[x].dims for x in data.data_vars} == dict.fromkeys(
        ("expected_reward", "kl", "forward_kl", "entropy", "effective_modes", "success"),
        ("family", "point"),
    )
    tilt = [ref * np.exp(reward / b) / (ref @ np.exp(reward / b)) for b in (0.1, 0.5)]
    raised = reward.copy()
    # Of the equally rewarded, the reference likes the first one best.
    even = []
    for b in (0.1, 0.5):
        raised[1] = 1 + b * math.log(0.3 / 0.02)
        even.append(ref * np.exp(raised / b) / (ref @ np.exp(raised / b)))
    drawn = []
    for n in (1, 2.5, 16):
        right = 1 - 0.68**n
        drawn.append(np.array([right * 0.3 / 0.32, right * 0.02 / 0.32, 1 - right]))
    sharp = [ref ** (1 / t) / (ref ** (1 / t)).sum() for t in (1.0, 0.25)]
    by_hand = {"reverse-kl": tilt, "mara": even, "best-of-n": drawn, "temperature": sharp}
    for family, policies in by_hand.items():
        for k, p in enumerate(policies):
            row = data.sel(family=family).isel(point=k)
            share = p[:2] / p[:2].sum()
            want = {
                "expected_reward": p @ reward,
                "kl": p @ np.log(p / ref),
                "forward_kl": ref @ np.log(ref / p),
                "entropy": -p @ np.log(p),
                "effective_modes": math.exp(-share @ np.log(share)),
                "success": p[:2].sum(),
            }
            for name, value in want.items():
                np.testing.assert_allclose(row[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.broad
def test_no_curve_lies_above_that_of_its_own_divergence():
    rng = np.random.default_rng(8)
    problem = (rng.normal(size=9), kt.normalize(rng.normal(size=9)))
    data = curve(problem, ["reverse-kl", "forward-kl", "best-of-n", "temperature", "mara"])
    for family, kl in (("reverse-kl", "kl"), ("forward-kl", "forward_kl")):
        best = data.sel(family=family).sortby(lambda x, kl=kl: x[kl])
        others = data.where(data[kl] < float(best[kl][-1]))
        most = np.interp(others[kl], best[kl], best.expected_reward)
        # The chord of a concave curve lies below it, by what a fine grid leaves.
        assert (others.expected_reward - most).max() <= 5e-3
    assert (data.kl >= -1e-12).all()


def test_curves_that_are_refused():
    with pytest.raises(ValueError, match="families holds 'best', which is none of mara, best-of-n"):
        curve("one-two", ["best"])
    with pytest.raises(ValueError, match=r"n must be finite and 1 or more, got 0\.5"):
        curve("one-two", ["best-of-n"], n=[0.5])
    with pytest.raises(ValueError, match=r"temperature has shape \(\)"):
        curve("one-two", ["temperature"], temperature=1.0)
    with pytest.raises(ValueError, match="each of them once"):
        curve("one-two", ["best-of-n", "best-of-n"])
    with pytest.raises(TypeError, match="give names or divergences"):
        curve("one-two", [3])
