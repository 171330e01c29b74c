"""Gains by difficulty against arbitrary precision, and filters by success group by group."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from oracles import DTYPES, assert_reference, double_precision, eps, reference, reference_ids
from scipy.optimize import brentq
from scipy.stats import binom

import kltarget as kt
from kltarget.frontier import success_gain
from kltarget.implied import implied_target
from kltarget.recipes import Recipe

DTYPE = DTYPES[0]
RIGHT = np.array([1.0, 0.0], DTYPE)


def exact_kl(p, beta):
    """``KL(π_ref‖π*)`` in 120 digits."""
    with mp.workdps(120):
        p, beta = mp.mpf(float(p)), mp.mpf(float(beta))
        return mp.log(1 - p + p * mp.e ** (1 / beta)) - p / beta


def pair(p, dtype=DTYPE):
    return np.log(np.stack([p, 1 - np.asarray(p)], -1)).astype(dtype)


@pytest.mark.parametrize("name", reference_ids("difficulty-p0"))
def test_gains_of_the_bank(name):
    inputs, expected = reference(name)["inputs"], reference(name)["expected"]
    beta = np.array(inputs["beta"], DTYPE)
    found = success_gain(np.array(inputs["p"], DTYPE), beta)
    assert found.gain.dtype == DTYPE
    assert_reference(name, found.gain, "gain", DTYPE)
    assert_reference(name, found.success, "p_star", DTYPE)
    for key, got in (("kl_ref_target", found.gain), ("second_order", found.second_order)):
        assert_reference(name, got / beta, key, DTYPE)
    np.testing.assert_allclose(found.lower / beta, expected["lower"], rtol=1024 * eps(DTYPE))
    # The bank has the bound for any p; where the tilt does not cross ½ a lower one holds.
    crosses = inputs["p"] < 0.5 < expected["p_star"]
    assert found.upper / beta <= expected["upper"] * (1 + 4 * eps(DTYPE))
    assert not crosses or found.upper / beta == pytest.approx(expected["upper"], rel=4 * eps(DTYPE))


@pytest.mark.parametrize("name", reference_ids("difficulty-pmax", "difficulty-threshold"))
def test_difficulties_of_the_bank(name):
    beta = np.array(reference(name)["inputs"]["beta"], DTYPE)
    found = success_gain(np.array(0.3, DTYPE), beta)
    if "threshold" in name:
        assert_reference(name, found.bound_holds_to, "p_threshold", DTYPE)
    else:
        assert_reference(name, found.best, "p_max", DTYPE)
        assert_reference(name, success_gain(found.best, beta).gain, "gain", DTYPE)


def test_gains_in_many_digits():
    p = np.array([0.0, 1e-30, 1e-7, 0.02, 0.3, 0.5, 0.7, 0.999, 1.0], DTYPE)
    beta = np.array([1e-12, 1e-3, 0.02, 0.3, 0.5, 0.7, 4.0, 1e3, 1e12], DTYPE)[:, None]
    found = success_gain(p, beta)
    assert found.gain.shape == (9, 9)
    tiny = float(np.finfo(DTYPE).tiny)
    for i, j in np.ndindex(9, 9):
        want = 0 if p[j] in (0, 1) else exact_kl(p[j], beta[i, 0]) * mp.mpf(float(beta[i, 0]))
        assert abs(float(found.gain[i, j]) - float(want)) <= 64 * eps(DTYPE) * float(want) + tiny, (
            i,
            j,
        )
    with mp.workdps(120):
        best = [x - 1 / mp.expm1(1 / x) for x in map(mp.mpf, beta[:, 0].tolist())]
    np.testing.assert_allclose(found.best[:, 0], np.array(best, float), rtol=64 * eps(DTYPE))


def test_the_second_order_term_is_no_lower_bound():
    """Claim: the KL from the start to the optimum is at least p(1 − p)/(2β²), p the success rate
    (arXiv 2504.03380).

    Fails: p = ½ at every β; from ½ on the term is an upper bound. The least p(1 − p) between p and
    the optimum's success is one, and the term itself up to a p below ½ that β decides, 0.38 at
    β = ½.
    """
    rng = np.random.default_rng(0)
    p, beta = rng.uniform(0.001, 0.999, 400), 10 ** rng.uniform(-1.5, 1.5, 400)
    with double_precision():
        found = success_gain(p, beta)
        half = success_gain(0.5, beta)
        assert (np.asarray(half.gain) < np.asarray(half.second_order)).all()
        gain, lower, upper = map(np.asarray, (found.gain, found.lower, found.upper))
        success, holds_to = np.asarray(found.success), np.asarray(found.bound_holds_to)
    kl = np.array([float(exact_kl(*x)) for x in zip(p, beta, strict=True)])
    term = p * (1 - p) / (2 * beta**2)
    assert (kl[p >= 0.5] < term[p >= 0.5]).all()
    assert ((kl > term) == (p < holds_to)).all()
    assert (holds_to < 0.5).all()
    slack = 1 + 1e-12
    assert (lower <= gain * slack).all()
    assert (gain <= upper * slack).all()
    # Where the optimum is still wrong more often than right, the term is a bound.
    hard = success <= 0.5
    assert hard.any()
    assert (kl[hard] > term[hard]).all()


def test_half_is_not_the_best_difficulty():
    """Claim: prompts of intermediate difficulty, with p(1 − p) at its largest, have the most to
    gain (arXiv 2504.03380).

    Holds with a correction: the most is gained at p = β − 1/(e^{1/β} − 1), which is below ½ at
    every β, close to β where that is small and to ½ where it is large.
    """
    beta = np.array([0.02, 0.1, 0.5, 1.0, 5.0, 100.0])
    grid = np.linspace(0.0005, 0.9995, 2000)
    with double_precision():
        found = success_gain(grid, beta[:, None])
        gain, best = np.asarray(found.gain), np.asarray(found.best[:, 0])
    largest = grid[gain.argmax(1)]
    np.testing.assert_allclose(largest, best, atol=3e-4)
    assert (largest < 0.5).all()
    np.testing.assert_allclose(largest[0], 0.02, atol=3e-4)
    # At β = 0.1 the balanced prompt gains less than two thirds of the best.
    assert gain[1, 1000] < 0.65 * gain[1].max()


@pytest.mark.broad
@pytest.mark.parametrize(
    ("divergence", "curvature"),
    [(kt.ForwardKL(), 1.0), (kt.JensenShannon(), 0.5), (kt.Alpha(0.5), 1.0)],
    ids=["forward", "js", "alpha"],
)
def test_other_divergences_gain_as_much_to_second_order(divergence, curvature):
    p = np.array([0.1, 0.5, 0.9])
    with double_precision():
        log_ref = pair(p, np.float64)

        def gain(beta):
            return (
                kt.solve(kt.Objective(jnp.array([1.0, 0.0]), log_ref, beta, divergence)).value - p
            )

        own = success_gain(p, 1e3).second_order / curvature
        np.testing.assert_allclose(gain(1e3), own, rtol=5e-3)


def test_derivatives_of_gains():
    with double_precision():

        @jax.jit
        def numbers(at):
            found = success_gain(*at)
            return jnp.stack([found.gain, found.success, found.best, found.bound_holds_to])

        slopes = jax.jit(jax.jacrev(numbers))
        for at in np.array([[0.3, 0.2], [0.05, 0.6], [0.8, 3.0]]):
            steps = 1e-5 * np.eye(2)
            ends = [(numbers(at + x) - numbers(at - x)) / 2e-5 for x in steps]
            np.testing.assert_allclose(slopes(at), np.stack(ends, 1), rtol=2e-6, atol=2e-9)
        assert np.isfinite(slopes(np.array([0.0, 0.5]))).all()
        assert np.isfinite(slopes(np.array([1.0, 0.5]))).all()


def test_gains_that_are_refused():
    with pytest.raises(ValueError, match=r"success must be a probability, from 0 to 1, got 1\.5"):
        success_gain([0.5, 1.5], 1.0)
    with pytest.raises(ValueError, match="beta must be above 0 and finite, got 0"):
        success_gain(0.5, 0.0)
    with pytest.raises(ValueError, match=r"success of shape \(2,\) and beta of shape \(3,\)"):
        success_gain([0.5, 0.5], [1.0, 1.0, 1.0])
    found = jax.jit(success_gain)(np.array([0.5, 2.0, 0.5], DTYPE), np.array([1, 1, -1], DTYPE))
    assert found.status.tolist() == [0, kt.Status.INVALID_REFERENCE, kt.Status.INVALID_BETA]
    assert np.isnan(found.gain).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="success_gain failed at index 1: INVALID_REFERENCE"):
        found.raise_if_failed()


SIZE, P_REF, BETA = 6, 0.3, 0.5


def pull_and_charge(p, keep, size=SIZE):
    """Of groups whose number of right answers is kept: gradient of the reward and charge of KL.

    By the success's log-odds, advantages centred and the KL by k3 in the loss; written with the
    binomial. ``p·charge`` is what ``β(p − p_ref)`` is multiplied by.
    """
    number = np.arange(size + 1)
    chance = binom.pmf(number, size, p) * keep
    others = binom.pmf(np.arange(size), size - 1, p)
    if_right, if_wrong = others @ keep[1:], others @ keep[:-1]
    return chance @ (number * (size - number)) / size**2, (1 - p) * if_right + p * if_wrong


def enumerated(p, keep, beta, p_ref, size=SIZE):
    """The expected gradient by the success's log-odds, over every group of right and wrong."""
    total = 0.0
    for group in itertools.product((1, 0), repeat=size):
        number = sum(group)
        if not keep[number]:
            continue
        chance = p**number * (1 - p) ** (size - number)
        for own in group:
            score = 1 - p if own else -p
            # The derivative of k3 = e^x − 1 − x, x = log π_ref/π, is 1 − e^x by log π.
            charge = 1 - (p_ref / p if own else (1 - p_ref) / (1 - p))
            total += chance * (own - number / size - beta * charge) * score / size
    return total


def settles(keep, beta=BETA, p_ref=P_REF):
    def balance(p):
        pull, charge = pull_and_charge(p, keep)
        return pull - beta * (p - p_ref) * charge

    return brentq(balance, p_ref, 1 - 1e-9, xtol=1e-14)


def kept(low, high):
    number = np.arange(SIZE + 1)
    return ((number >= low) & (number <= high)).astype(float)


@pytest.mark.parametrize("band", [(0, 6), (1, 5), (2, 4), (1, 4)])
def test_expected_gradients_of_filtered_groups(band):
    for p in (0.2, 0.55, 0.9):
        pull, charge = pull_and_charge(p, kept(*band))
        want = enumerated(p, kept(*band), BETA, P_REF)
        np.testing.assert_allclose(pull - BETA * (p - P_REF) * charge, want, rtol=1e-10, atol=1e-14)
    assert abs(enumerated(settles(kept(*band)), kept(*band), BETA, P_REF)) < 1e-12


def test_filtering_by_the_rollouts_that_are_used_moves_the_fixed_point():
    """Claim: groups that are all right or all wrong have no gradient, so that nothing is lost if
    they are left out (arXiv 2503.14476).

    Holds with a correction: without a KL. One in the loss loses its pull in them, and the
    success that training rests at rises, if the groups that decide are those that are used;
    other rollouts of the same prompt may decide.
    """
    recipe = Recipe("loss", "k3", "token", "mean", group_size=SIZE, beta=BETA)
    for zero_std, band in (("keep", (0, SIZE)), ("drop", (1, SIZE - 1))):
        told = dataclasses.replace(recipe, zero_std=zero_std)
        target = implied_target(told, RIGHT, pair(P_REF))
        np.testing.assert_allclose(target.probs[0], settles(kept(*band)), rtol=256 * eps(DTYPE))
    everything, dropped = settles(kept(0, SIZE)), settles(kept(1, SIZE - 1))
    assert dropped > everything + 0.01
    # Without a KL the gradient is what it was.
    p = 0.7
    pulls = [pull_and_charge(p, kept(*x))[0] for x in ((0, SIZE), (1, SIZE - 1))]
    np.testing.assert_allclose(pulls[0], pulls[1], rtol=1e-14)
    np.testing.assert_allclose(pulls[0], p * (1 - p) * (SIZE - 1) / SIZE, rtol=1e-14)
    # Decided by other rollouts, both terms have the same factor.
    chance = binom.pmf(np.arange(SIZE + 1), SIZE, everything) @ kept(2, 4)
    assert abs(chance * enumerated(everything, kept(0, SIZE), BETA, P_REF)) < 1e-12


def test_a_band_of_success_decides_where_training_rests():
    everything, middle, easy, hard = (
        settles(kept(*band), beta=0.05) for band in ((0, 6), (2, 4), (3, 5), (1, 3))
    )
    # Groups that are nearly all right are most of those that are met near the fixed point.
    assert hard < middle - 0.01 < everything - 0.01
    assert easy > everything


def test_a_curriculum_of_middling_prompts_ends_where_they_leave_it():
    """One policy per prompt, trained by exact gradients while its success is between two bounds."""
    low, high, beta, rate = 0.2, 0.8, 0.25, 0.01
    p = np.array([0.05, 0.19, 0.21, 0.4, 0.6, 0.79, 0.95])
    start = np.log(p / (1 - p))
    logit = start.copy()
    for _ in range(30_000):
        success = 1 / (1 + np.exp(-logit))
        # That of success − β KL by the log-odds.
        slope = success * (1 - success) * (1 - beta * (logit - start))
        logit = logit + rate * np.where((low < success) & (success < high), slope, 0.0)
    aim = np.asarray(success_gain(p.astype(DTYPE), beta).success)
    wanted = np.where((low < p) & (p < high), np.minimum(aim, high), p)
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), wanted, atol=rate)
    # The band is part of the objective: it changes what is reached, not only how soon.
    assert (wanted < aim - 0.05).sum() >= 4
    assert wanted.mean() < aim.mean() - 0.1
