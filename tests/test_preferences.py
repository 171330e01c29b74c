"""Preference targets: against the losses as papers write them, minimised directly, and training.

The oracles know a loss over logits and nothing of Bradley–Terry: SciPy minimises it, or follows
its gradient flow, and ``kltarget.training.dpo`` trains on the same pairs.
"""

import functools
import json
import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from hypothesis import given
from oracles import DTYPES, X64, assert_reference, double_precision, eps, reference
from scipy.integrate import solve_ivp
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax, logit

import kltarget as kt
from kltarget import cli
from kltarget.implied import preference_target, preference_targets
from kltarget.policies import TabularPolicy
from kltarget.tasks import (
    Preferences,
    TableError,
    read_preferences,
    read_preferences_by_prompt,
    read_reference,
    read_references_by_prompt,
)
from kltarget.training import dpo, sft

DTYPE = DTYPES[0]
FINE = 256 * eps(DTYPE)
REF = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
LOG_REF = np.log(REF).astype(DTYPE)
CIRCLES = Preferences(
    [0, 1, 2, 3, 0, 1], [1, 2, 3, 4, 4, 3], [3, 1, 2, 1, 1, 4], [1, 2, 3, 3, 2, 1]
)
TREE = Preferences.from_win_rates([0, 1, 1, 3], [1, 2, 3, 4], [0.8, 0.4, 0.9, 0.5], [1, 9, 2, 1])

SLOPES = {
    "reverse KL": (kt.ReverseKL(), np.log),
    "forward KL": (kt.ForwardKL(), lambda u: 1 - 1 / u),
    "Jensen-Shannon": (kt.JensenShannon(), lambda u: np.log(2 * u / (1 + u))),
    "chi-PO": (kt.ChiSquaredKL(), lambda u: u + np.log(u)),
}
"""f′ as papers write it: Table 1 of Wang et al. 2023 and the link φ of Huang et al. 2024."""


def comparisons(pairs):
    """Every comparison as (winner, loser, weight)."""
    for i, j, won, lost in zip(pairs.first, pairs.second, pairs.wins, pairs.losses, strict=True):
        yield from ((i, j, won), (j, i, lost))


def dpo_loss(slopes, pairs, beta):
    return -sum(n * log_expit(beta * (slopes[i] - slopes[j])) for i, j, n in comparisons(pairs))


def ipo_loss(slopes, pairs, beta):
    aim = 1 / (2 * beta)
    return sum(n * (slopes[i] - slopes[j] - aim) ** 2 for i, j, n in comparisons(pairs))


def minimised(loss, slope, pairs, beta, ref=REF):
    """The policy of least loss, by SciPy over logits, from the reference."""

    def of_logits(logits):
        return loss(slope(np.exp(log_softmax(logits)) / ref), pairs, beta)

    best = np.log(ref)
    for _ in range(3):
        best = minimize(of_logits, best, method="BFGS", options={"gtol": 1e-9}).x
    return np.exp(log_softmax(best))


def variation(p, q):
    return np.abs(np.asarray(p, np.float64) - np.asarray(q, np.float64)).sum() / 2


@pytest.mark.quick_only("dpo-forward KL", "dpo-chi-PO", "ipo-reverse KL", others="broad")
@pytest.mark.parametrize("divergence", SLOPES)
@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_losses_minimised_directly(loss, divergence):
    f, slope = SLOPES[divergence]
    target = preference_target(CIRCLES, LOG_REF, 0.5, loss=loss, divergence=f)
    known = {"dpo": dpo_loss, "ipo": ipo_loss}[loss]
    assert variation(target.probs, minimised(known, slope, CIRCLES, 0.5)) < 2e-6
    assert variation(target.probs, REF) > 0.02
    assert target.status == kt.Status.OK
    assert target.verdict.startswith("a target")


def conservative_loss(slopes, pairs, beta, wrong=0.2):
    """Mitchell 2023: the label is right with probability 1 − ε."""
    return -sum(
        n * ((1 - wrong) * log_expit(x) + wrong * log_expit(-x))
        for i, j, n in comparisons(pairs)
        for x in [beta * (slopes[i] - slopes[j])]
    )


ALWAYS = Preferences([0, 1, 2, 3], [1, 2, 3, 4], [1, 2, 0, 3], [0, 0, 1, 1])


@pytest.mark.quick_only("reverse KL", others="broad")
@pytest.mark.parametrize("divergence", ["reverse KL", "chi-PO"])
def test_smoothed_labels_minimised_directly(divergence):
    f, slope = SLOPES[divergence]
    for pairs in (CIRCLES, ALWAYS):
        target = preference_target(pairs, LOG_REF, 0.7, divergence=f, label_smoothing=0.2)
        assert target.status == kt.Status.OK
        want = minimised(conservative_loss, slope, pairs, 0.7)
        assert variation(target.probs, want) < 2e-6
        plain = preference_target(pairs, LOG_REF, 0.7, divergence=f)
        assert variation(target.probs, plain.probs) > 0.02
    # By hand: a unanimous pair is won with probability 1 − ε.
    two = preference_target(
        {"chosen": [0], "rejected": [1]}, LOG_REF, 1.0, divergence=f, label_smoothing=0.2
    )
    np.testing.assert_allclose(two.reward[0] - two.reward[1], np.log(4), rtol=FINE)


@pytest.mark.broad
def test_training_on_smoothed_labels_ends_there():
    for pairs in (CIRCLES, ALWAYS):
        target = preference_target(pairs, LOG_REF, 0.7, label_smoothing=0.2)
        assert variation(trained(pairs, beta=0.7, label_smoothing=0.2), target.probs) < 1e-4
    for options in ({"loss": "ipo"}, {"label_smoothing": 0.5}):
        with pytest.raises(ValueError, match="label_smoothing"):
            trained(CIRCLES, **{"label_smoothing": 0.1, **options})


@functools.cache
def coming_to_rest(num_steps):
    return lambda rate: optax.adam(optax.cosine_decay_schedule(rate, num_steps))


def trained(pairs, beta=0.5, num_steps=2000, log_ref=LOG_REF, optimizer=None, **options):
    policy = TabularPolicy(len(log_ref), 1)
    run = dpo(
        policy,
        policy.from_conditionals([log_ref[None]]),
        None,
        pairs=pairs,
        beta=beta,
        num_steps=num_steps,
        history_every=None,
        optimizer=optimizer or coming_to_rest(num_steps),
        gradient_tol=0.0,
        **{"learning_rate": 0.05, **options},
    )
    return np.exp(np.asarray(run.log_probs, np.float64))


@pytest.mark.broad
@pytest.mark.parametrize(
    ("loss", "divergence"), [*(("dpo", name) for name in SLOPES), ("ipo", "reverse KL")]
)
def test_training_ends_there(loss, divergence):
    f, _ = SLOPES[divergence]
    for pairs in (CIRCLES, TREE) if divergence == "reverse KL" else (CIRCLES,):
        target = preference_target(pairs, LOG_REF, 0.5, loss=loss, divergence=f)
        reached = trained(pairs, loss=loss, divergence=f)
        assert variation(reached, target.probs) < 1e-4
        assert variation(REF, target.probs) > 0.02


@pytest.mark.broad
def test_training_on_pairs_of_sequences():
    """Sequences are meant by their indices, and a reward beside given pairs is only measured."""
    policy, space = TabularPolicy(2, 2), kt.SequenceSpace(2, 2)
    params = policy.init(key=jax.random.key(0))
    log_ref = np.asarray(space.joint(policy.conditionals(params, space)))
    pairs = Preferences([0, 1, 2], [1, 2, 3], [4, 1, 2], [1, 2, 3])
    target = preference_target(pairs, log_ref, np.array([0.3, 1.0], DTYPE))
    options = {"num_steps": 2000, "optimizer": coming_to_rest(2000), "gradient_tol": 0.0}
    run = dpo(
        policy,
        params,
        target.reward,
        pairs=pairs,
        beta=np.array([0.3, 1.0], DTYPE),
        learning_rate=0.05,
        **options,
    )
    for k in range(2):
        assert variation(jnp.exp(run.log_probs[k]), target.probs[k]) < 1e-4
        assert variation(jnp.exp(log_ref), target.probs[k]) > 0.1
    # The gap is that of reinforcement learning with the reward of the pairs.
    assert (np.abs(run.gap) < 1e-3).all()


@pytest.mark.slow
def test_training_on_drawn_comparisons_ends_near():
    target = preference_target(CIRCLES, LOG_REF, 0.5)
    drawn = {"key": jax.random.key(0), "batch_size": 64}
    reached = trained(CIRCLES, num_steps=4000, **drawn)
    assert variation(reached, target.probs) < 0.02 < 0.1 < variation(REF, target.probs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("divergence", "pairs"),
    [("forward KL", "reference"), ("chi-PO", "reference"), ("chi-PO", "policy")],
)
def test_training_on_labelled_rewards_ends_at_the_divergence_s_target(divergence, pairs):
    """Claim: f-DPO ends at the target of its divergence (arXiv 2309.16240).

    Holds: for divergences with f′(0) = −∞, which are those it is defined for, whoever the pairs are
    drawn from.
    """
    f, _ = SLOPES[divergence]
    reward = np.array([1.0, 0.2, -0.5, 0.7, 0.0], DTYPE)
    policy = TabularPolicy(5, 1)
    params = policy.from_conditionals([LOG_REF[None]])
    options = {"num_steps": 4000, "optimizer": coming_to_rest(4000), "gradient_tol": 0.0}
    options |= {"learning_rate": 0.05, "pairs": pairs}
    run = dpo(policy, params, reward, beta=0.5, divergence=f, **options)
    target = kt.solve(kt.Objective(reward, LOG_REF, 0.5, f))
    assert variation(jnp.exp(run.log_probs), target.probs) < 1e-4
    assert abs(run.gap) < 1e-4


def test_the_reward_is_that_of_reinforcement_learning_at_the_same_beta():
    f = kt.JensenShannon()
    target = preference_target(TREE, LOG_REF, 0.3, divergence=f)
    r = np.asarray(target.reward, np.float64)
    i, j = TREE.first, TREE.second
    np.testing.assert_allclose(r[i] - r[j], logit(TREE.win_rate), rtol=FINE, atol=FINE)
    np.testing.assert_allclose(r.sum(), 0, atol=FINE)
    same = kt.solve(kt.Objective(target.reward, LOG_REF, 0.3, f))
    np.testing.assert_allclose(same.probs, target.probs, rtol=FINE)
    np.testing.assert_allclose(same.gap(target.log_probs), 0, atol=FINE)
    ipo = preference_target(TREE, LOG_REF, 0.3, loss="ipo")
    np.testing.assert_allclose(
        ipo.reward[i] - ipo.reward[j], TREE.win_rate - 0.5, rtol=FINE, atol=FINE
    )
    # Of two outcomes by hand: σ(r₀ − r₁) = 0.8, so that the odds are those of the reference · 4².
    two = preference_target(
        Preferences.from_win_rates([0], [1], [0.8]), np.log(np.array([0.5, 0.5], DTYPE)), 0.5
    )
    np.testing.assert_allclose(two.probs, [16 / 17, 1 / 17], rtol=FINE)


def test_win_rates_of_a_reward_give_it_back():
    """Bradley–Terry labels of a reward, all pairs: what RL with that reward has as target."""
    reward = np.array([0.3, -1.0, 2.0, 0.0, 0.9])
    i, j = np.triu_indices(5, 1)
    pairs = Preferences.from_win_rates(i, j, expit(reward[i] - reward[j]), comparisons=7)
    target = preference_target(pairs, LOG_REF, np.array([0.1, 1.0], DTYPE))
    for beta, probs in zip((0.1, 1.0), target.probs, strict=True):
        want = REF * np.exp(reward / beta)
        np.testing.assert_allclose(probs, want / want.sum(), rtol=20 * FINE)


def test_nearly_unanimous_pairs_are_exact():
    pairs = Preferences([0, 1, 2], [1, 2, 0], [1e12, 1.0, 0.0], [1.0, 1e9, 1.0])
    pairs = Preferences(pairs.first[:2], pairs.second[:2], pairs.wins[:2], pairs.losses[:2])
    with double_precision():
        reward = preference_target(pairs, np.log([0.2, 0.3, 0.5]), 2.0).reward
    np.testing.assert_allclose(reward[0] - reward[1], np.log(1e12), rtol=1e-13)
    np.testing.assert_allclose(reward[1] - reward[2], -np.log(1e9), rtol=1e-13)


@st.composite
def tables(draw):
    """Pairs among five outcomes, each won by both sides now and then, so that a target exists."""
    size = draw(st.integers(1, 8))
    sides = [draw(st.permutations(range(5)))[:2] for _ in range(size)]
    first, second = zip(*sides, strict=True)
    numbers = st.lists(st.integers(1, 20), min_size=size, max_size=size)
    return Preferences(list(first), list(second), draw(numbers), draw(numbers))


LOSSES = st.sampled_from(["dpo", "ipo"])


def close(got, want):
    np.testing.assert_allclose(got.probs, want, rtol=64 * FINE, atol=FINE)


@given(tables(), st.permutations(range(5)), LOSSES)
def test_outcomes_in_another_order(pairs, order, loss):
    where = np.argsort(order)
    moved = Preferences(where[pairs.first], where[pairs.second], pairs.wins, pairs.losses)
    target = preference_target(pairs, LOG_REF, 0.7, loss=loss)
    other = preference_target(moved, LOG_REF[list(order)], 0.7, loss=loss)
    close(other, np.asarray(target.probs)[list(order)])


@given(tables(), LOSSES)
def test_pairs_that_are_merged_split_or_turned(pairs, loss):
    i, j = np.nonzero(np.triu(pairs.win_matrix(5) + pairs.win_matrix(5).T))
    wins = pairs.win_matrix(5)
    merged = Preferences(j, i, wins[j, i], wins[i, j])
    target = preference_target(pairs, LOG_REF, 0.7, loss=loss)
    close(preference_target(merged, LOG_REF, 0.7, loss=loss), target.probs)
    many = Preferences(pairs.first, pairs.second, 50 * pairs.wins, 50 * pairs.losses)
    close(preference_target(many, LOG_REF, 0.7, loss=loss), target.probs)


@given(tables(), LOSSES, st.floats(0.0625, 16, width=32))
def test_the_log_ratio_is_the_reward_over_beta(pairs, loss, beta):
    """Claim: the optimum of DPO is π_ref e^{r/β} / Z, r the scores of Bradley and Terry (arXiv
    2305.18290).

    Holds.
    """
    one, other = (preference_target(pairs, LOG_REF, b, loss=loss) for b in (1.0, beta))
    np.testing.assert_allclose(other.reward, one.reward, rtol=FINE)
    want = np.log(REF) + np.asarray(one.reward, np.float64) / beta
    close(other, np.exp(log_softmax(want)))


@given(tables())
def test_the_likelihood_is_stationary(pairs):
    r = np.asarray(preference_target(pairs, LOG_REF, 1.0).reward, np.float64)
    wins = pairs.win_matrix(5)
    expected = (wins + wins.T) * expit(r[:, None] - r)
    np.testing.assert_allclose(wins.sum(1), expected.sum(1), rtol=64 * FINE)


def test_unanimous_pairs_have_no_target_but_for_ipo():
    """Claim: where preferences are deterministic DPO gives up the loser at every β, and IPO stays
    at a finite log ratio (arXiv 2310.12036).

    Holds.
    """
    pairs = Preferences([0, 1, 0], [1, 2, 3], [2, 5, 1], [1, 0, 1], ["a", "b", "c", "d"])
    log_ref = np.log(np.array([0.4, 0.3, 0.2, 0.1], DTYPE))
    for beta in (0.01, 100.0):
        target = preference_target(pairs, log_ref, beta)
        assert target.status == kt.Status.NO_TARGET
        assert target.unanimous == ((1, 2),)
        assert target.verdict == (
            "no target: these pairs are unanimous, the log ratio grows without bound at any β: "
            "“b” over “c”"
        )
        # What the loss is least at in the limit: c is given up, the others as their pairs ask.
        assert target.probs[2] == 0
        want = np.array([0.4 * 2 ** (1 / beta), 0.3, 0, 0.1 * 2 ** (1 / beta)])
        np.testing.assert_allclose(target.probs, want / want.sum(), rtol=8 * FINE)
        target.raise_if_failed()
    ipo = preference_target(pairs, log_ref, 1.0, loss="ipo")
    assert ipo.status == kt.Status.OK
    np.testing.assert_allclose(ipo.reward[1] - ipo.reward[2], 0.5, rtol=FINE)


def test_the_losses_of_the_bank():
    case = reference("fdpo-loss")
    given, kinds = (
        case["inputs"],
        {
            "alpha1": kt.ReverseKL(),
            "alpha0": kt.ForwardKL(),
            "alpha0.5": kt.Alpha(0.5),
            "js": kt.JensenShannon(),
            "chi2kl": kt.ChiSquaredKL(),
        },
    )
    for name, f in kinds.items():
        winner, loser = (float(f.f_prime(jnp.asarray(given[u], DTYPE))) for u in ("u_w", "u_l"))
        logit_of = given["beta"] * (winner - loser)
        np.testing.assert_allclose(logit_of, case["expected"][name]["logit"], rtol=FINE)
        np.testing.assert_allclose(-log_expit(logit_of), case["expected"][name]["loss"], rtol=FINE)


def all_pairs(reward, ref):
    """Every pair as often as two draws of the reference make it, labelled by the reward."""
    i, j = np.triu_indices(len(reward), 1)
    rates = expit(reward[i] - reward[j])
    return Preferences.from_win_rates(i, j, rates, ref[i] * ref[j])


def test_ipo_is_the_tilt_by_win_rates():
    """Claim: with Ψ the identity the optimum is π_ref exp(E[p(y ≻ y′)]/τ) / Z, and IPO's loss has
    its minimum there (arXiv 2310.12036).

    Holds.
    """
    case = reference("ipo")
    ref, reward = (np.array(case["inputs"][name]) for name in ("ref", "R"))
    tau, log_ref = case["inputs"]["tau"], np.log(ref).astype(DTYPE)
    rates = expit(reward[:, None] - reward) @ ref
    assert_reference("ipo", rates, "win_rates", DTYPE)
    asked = kt.solve(kt.Objective(rates.astype(DTYPE), log_ref, tau))
    assert_reference("ipo", asked.probs, "pi", DTYPE)
    loss = preference_target(all_pairs(reward, ref), log_ref, tau, loss="ipo")
    assert_reference("ipo", loss.probs, "pi", DTYPE, ulps=256)


def test_the_ratios_of_chi_po_grow_at_most_linearly():
    """Claim: χPO's density ratio is at most of the order of the reward over β, that of reverse KL
    grows like its exponential (arXiv 2407.13399).

    Holds: π/π_ref ≤ max(1, (r − λ)/β), λ the multiplier.
    """
    case = reference("chipo")
    ref, reward = (np.array(case["inputs"][name]) for name in ("ref", "R"))
    log_ref = np.log(ref).astype(DTYPE)
    pairs = all_pairs(reward, ref)
    found = preference_target(pairs, log_ref, 0.5, divergence=kt.ChiSquaredKL())
    assert_reference("chipo", found.probs, "pi", DTYPE, ulps=256)
    ratio = float(jnp.exp(found.log_probs - log_ref).max())
    np.testing.assert_allclose(ratio, case["expected"]["max_ratio"], rtol=FINE)
    other = preference_target(pairs, log_ref, 0.5)
    ratio = float(jnp.exp(other.log_probs - log_ref).max())
    np.testing.assert_allclose(ratio, case["expected"]["max_ratio_reverse"], rtol=FINE)
    # An outcome that the reference hardly has, at ever larger rewards.
    rare, sizes = np.array([np.log1p(-1e-6), np.log(1e-6)], DTYPE), np.array([5.0, 10.0, 20.0])
    problem = np.stack([np.zeros(3), sizes], -1).astype(DTYPE), rare
    linear = kt.solve(kt.Objective(*problem, 1.0, kt.ChiSquaredKL()))
    ratio = np.exp(np.asarray(linear.log_probs, np.float64) - rare)[:, 1]
    bound = np.asarray(problem[0][:, 1] - linear.multiplier, np.float64)
    assert (ratio <= bound * (1 + FINE)).all()
    assert (ratio > 0.5 * bound).all()
    tilted = kt.solve(kt.Objective(*problem, 1.0))
    growth = (np.asarray(tilted.log_probs, np.float64) - rare)[:, 1]
    np.testing.assert_allclose(growth[:2], sizes[:2], atol=0.05)


def test_f_dpo_with_a_finite_slope_at_0():
    """Claim: f-DPO's reparametrisation of rewards by policies needs 0 outside the domain of f′
    (arXiv 2309.16240).

    Holds with a correction: it fails where the target excludes outcomes; with a finite f′(0) and a
    β for which the target excludes none the loss still has its minimum there.
    """
    reward, f = np.array([0.1, 0.5, 1.0, 0.9, 0.3]), kt.ChiSquared()

    def reached(beta):
        def of_logits(logits):
            slopes = np.exp(log_softmax(logits)) / REF - 1
            return dpo_loss(f_scale * slopes, all_pairs(reward, REF), beta)

        best = LOG_REF.astype(np.float64)
        for _ in range(3):
            best = minimize(of_logits, best, method="BFGS", options={"gtol": 1e-10}).x
        return np.exp(log_softmax(best))

    # Of the same scale as the library's f.
    f_scale = float(f.f_prime(jnp.asarray(2.0, DTYPE)) - f.f_prime(jnp.asarray(1.0, DTYPE)))
    for beta, fits in ((2.0, True), (0.05, False)):
        target = kt.solve(kt.Objective(reward.astype(DTYPE), LOG_REF, beta, f))
        assert bool(target.status & kt.Status.TRUNCATED) != fits
        assert (variation(reached(beta), target.probs) < 1e-4) == fits
    with pytest.raises(ValueError, match="f′\\(0\\) = −∞"):
        preference_target(all_pairs(reward, REF), LOG_REF, 2.0, divergence=f)


@pytest.mark.parametrize("divergence", ["reverse KL", "chi-PO", "forward KL"])
def test_unanimous_pairs_give_up_the_loser_for_every_such_slope(divergence):
    """Claim: χPO aligns without overoptimisation (arXiv 2407.13399, title).

    Holds with a correction: it bounds how fast ratios of winners grow; where a pair is unanimous
    it gives up the loser at every β, as DPO does, for its slope at 0 is infinite too.
    """
    f, slope = SLOPES[divergence]
    once = Preferences([0], [1], [1], [0])
    for beta in (0.1, 10.0):
        target = preference_target(once, LOG_REF, beta, divergence=f)
        assert target.status & kt.Status.NO_TARGET
        assert target.probs[1] == 0
        losses = []
        for k in (1e-2, 1e-4, 1e-8, 1e-16):
            moved = REF * np.array([1.0, k, 1.0, 1.0, 1.0])
            losses.append(dpo_loss(slope(moved / moved.sum() / REF), once, beta))
        assert (np.diff(losses) <= 0).all()
        assert losses[-1] < losses[0]


@pytest.mark.broad
def test_what_supervised_training_rewards():
    """Claim: supervised fine-tuning is a case of learning an implicit reward, as DPO is, in which
    the KL from the reference is constant and does not hold the policy (arXiv 2507.00018, abstract).

    Holds: it ends at its data's law p from any start, the target of β log p/π_ref at every β; DPO
    from there adds its own reward to that one.
    """
    data = np.array([0.1, 0.4, 0.2, 0.05, 0.25])
    policy = TabularPolicy(5, 1)
    options = {"learning_rate": 0.05, "num_steps": 1500, "gradient_tol": 0.0}
    options["optimizer"] = coming_to_rest(1500)
    for start in (LOG_REF, LOG_REF[::-1]):
        params = policy.from_conditionals([start[None]])
        run = sft(policy, params, np.log(data).astype(DTYPE), **options)
        assert variation(jnp.exp(run.log_probs), data) < 1e-4
    reached = np.asarray(run.log_probs)
    second = np.array([1.0, 0.0, -0.5, 0.3, 0.0], DTYPE)
    for beta in (0.3, 2.0):
        implied = (beta * (reached - LOG_REF)).astype(DTYPE)
        assert variation(kt.solve(kt.Objective(implied, LOG_REF, beta)).probs, data) < 1e-4
        then = dpo(policy, run.params, second, beta=beta, **options)
        both = kt.solve(kt.Objective(implied + second, LOG_REF, beta))
        assert variation(jnp.exp(then.log_probs), both.probs) < 1e-4
        assert variation(data, both.probs) > 0.02


def test_unanimity_that_a_circle_holds_has_a_target():
    circle = Preferences([0, 1, 2], [1, 2, 0], [1, 1, 1], [0, 0, 0])
    target = preference_target(circle, np.log(np.array([0.5, 0.3, 0.2], DTYPE)), 0.1)
    assert target.status == kt.Status.OK
    np.testing.assert_allclose(target.probs, [0.5, 0.3, 0.2], rtol=FINE)


@pytest.mark.broad
def test_training_on_unanimous_pairs_never_ends():
    pairs = Preferences([0, 1, 2, 3], [1, 2, 3, 4], [1, 1, 1, 1], [0, 1, 1, 1])
    assert preference_target(pairs, LOG_REF, 0.5).status == kt.Status.NO_TARGET
    after = [
        trained(pairs, num_steps=n, optimizer=optax.sgd, learning_rate=2.0) for n in (100, 3000)
    ]
    ratios = [np.log(p[0] / p[1]) for p in after]
    assert ratios[1] > ratios[0] + 3 > 3


APART = Preferences([0, 2], [1, 3], [3, 1], [1, 4])


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_groups_that_no_pair_joins(loss):
    target = preference_target(APART, LOG_REF, 0.5, loss=loss)
    assert target.status == kt.Status.NOT_UNIQUE
    assert "which there are 3: the path" in target.verdict
    assert [len(set(np.asarray(target.group)[k])) for k in ([0, 1], [2, 3], [0, 2, 4])] == [1, 1, 3]
    # Whatever the groups' masses, the loss is as small: so it is at those of the reference.
    slopes = np.log(np.asarray(target.probs, np.float64) / REF)
    known = {"dpo": dpo_loss, "ipo": ipo_loss}[loss]
    moved = slopes + np.array([1, 1, -2, -2, 0.3])
    np.testing.assert_allclose(known(slopes, APART, 0.5), known(moved, APART, 0.5), rtol=FINE)


@pytest.mark.broad
@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_gradient_descent_keeps_the_sum_of_a_groups_logits(loss):
    target = preference_target(APART, LOG_REF, 0.5, loss=loss)
    rate = 10.0 if loss == "dpo" else 0.3
    reached = trained(APART, loss=loss, optimizer=optax.sgd, learning_rate=rate, num_steps=3000)
    assert variation(reached, target.probs) < 1e-5
    # Its pairs alone would have been met as well with the reference's masses of the groups.
    assert abs(reached[:2].sum() - REF[:2].sum()) > 0.01


def kto_value(x, pairs, desirable, undesirable):
    """Ethayarajh et al. 2024, equation 8, with both sides of every pair as single examples."""
    return sum(
        n * (desirable * expit(x[i]) + undesirable * expit(-x[j])) for i, j, n in comparisons(pairs)
    )


def kto_flow(log_ref, pairs, beta, weights, time):
    """Ascent of the logits, by differences of the value with z₀ as it is at each moment."""
    size, h = len(log_ref), 1e-5

    def slope(_, logits):
        ratio = log_softmax(logits) - log_ref
        z = np.exp(ratio + log_ref) @ ratio
        each = []
        for step in h * np.eye(size):
            up, down = (log_softmax(logits + s) - log_ref for s in (step, -step))
            values = (kto_value(beta * (x - z), pairs, *weights) for x in (up, down))
            each.append(np.subtract(*values) / (2 * h))
        return np.array(each)

    flow = solve_ivp(slope, (0, time), log_ref, method="LSODA", rtol=1e-8, atol=1e-9)
    return np.exp(log_softmax(flow.y[:, -1]))


KTO = [
    (CIRCLES, 0.1, (3.0, 0.5), REF),
    (CIRCLES, 0.8, (3.0, 0.5), REF),
    (Preferences([0, 1, 2], [1, 2, 0], [5, 1, 1], [4, 2, 3]), 0.3, (1.5, 1.0), [0.4, 0.3, 0.3]),
    # Of the policies that are stationary here the flow from the reference meets the first.
    (Preferences([0, 1, 2], [1, 2, 0], [1, 1, 1], [1, 1, 1]), 0.95, (2, 1), [0.74, 0.08, 0.18]),
]


@pytest.mark.broad
@pytest.mark.parametrize(("pairs", "beta", "weights", "ref"), KTO, ids=range(len(KTO)))
def test_kto_is_where_its_flow_ends(pairs, beta, weights, ref):
    log_ref = np.log(ref)
    named = dict(zip(("desirable_weight", "undesirable_weight"), weights, strict=True))
    target = preference_target(pairs, log_ref.astype(DTYPE), beta, loss="kto", **named)
    assert target.status == (kt.Status.SEVERAL if beta > 0.9 else kt.Status.OK)
    reached = kto_flow(log_ref, pairs, beta, weights, 3e3 / beta)
    assert variation(reached, target.probs) < 1e-5
    assert variation(np.exp(log_ref), target.probs) > 0.02
    # The reward is what the loss squashes, with the reference point at its own value.
    z = float(target.divergence_value)
    want = beta * (np.asarray(target.log_probs, np.float64) - log_ref - z)
    np.testing.assert_allclose(target.reward, want, atol=64 * FINE)


def test_kto_gives_up_what_is_not_desirable_on_balance():
    log_ref = np.log(np.array([0.25, 0.25, 0.2, 0.3], DTYPE))
    pairs = Preferences([0, 1], [2, 2], [3, 2], [1, 1], ["a", "b", "c", "unseen"])
    target = preference_target(pairs, log_ref, np.array([0.1, 0.5], DTYPE), loss="kto")
    assert (target.status == kt.Status.NO_TARGET).all()
    assert "KTO drives" in target.verdict
    assert target.verdict.endswith("“c”, “unseen”")
    assert (target.probs[:, 2:] == 0).all()
    kept = np.asarray(target.probs, np.float64)[:, :2]
    ratio = np.log(kept / 0.25)
    z = (kept * ratio).sum(1, keepdims=True)
    x = np.array([[0.1], [0.5]]) * (ratio - z)
    # Stationary: net weights 2 and 1 times the sigmoid's slope are in proportion to the masses.
    pull = np.array([2.0, 1.0]) * expit(x) * expit(-x)
    np.testing.assert_allclose(pull / pull.sum(1, keepdims=True), kept, rtol=64 * FINE)


@pytest.mark.broad
def test_kto_s_flow_gives_up_the_same():
    log_ref = np.log(np.array([0.25, 0.25, 0.5]))
    pairs = Preferences([0, 1], [2, 2], [3, 2], [1, 1])
    target = preference_target(pairs, log_ref.astype(DTYPE), 0.5, loss="kto")
    distances = [
        variation(kto_flow(log_ref, pairs, 0.5, (1, 1), time), target.probs) for time in (1e2, 1e4)
    ]
    assert distances[1] < 5e-3 < distances[0]


def test_kto_without_anything_to_move():
    pairs = Preferences([0, 2], [1, 3], [1, 2], [1, 2])
    target = preference_target(pairs, LOG_REF, 0.5, loss="kto")
    np.testing.assert_allclose(target.probs, REF, rtol=FINE)
    assert target.status == kt.Status.NOT_UNIQUE


def test_ties_and_single_outcomes_leave_the_reference():
    tied = Preferences.from_win_rates([0, 1, 2, 3], [1, 2, 3, 4], 0.5)
    for loss in ("dpo", "ipo"):
        target = preference_target(tied, LOG_REF, 0.01, loss=loss)
        np.testing.assert_allclose(target.probs, REF, rtol=FINE)
        assert target.status == kt.Status.OK


def test_what_the_reference_cannot_produce_stays_impossible():
    log_ref = np.append(np.log(REF[:4] / REF[:4].sum()), -np.inf).astype(DTYPE)
    pairs = Preferences([0, 1, 2], [1, 2, 3], [1, 3, 1], [1, 1, 2])
    for f in (kt.ReverseKL(), kt.ForwardKL()):
        target = preference_target(pairs, log_ref, 0.1, divergence=f)
        assert target.probs[4] == 0
        assert target.status == kt.Status.OK
    with pytest.raises(ValueError, match="log_ref is -inf for “4”, which is compared"):
        preference_target(TREE, log_ref, 0.1)


ONE = Preferences([0], [1], [1], [1])
TWO = np.log(np.array([0.5, 0.5], DTYPE))
REFUSED = {
    "no such loss": (
        lambda: preference_target(ONE, TWO, 1.0, loss="orpo"),
        "'dpo', 'ipo' or 'kto'",
    ),
    "beta": (lambda: preference_target(ONE, TWO, -1.0), "beta"),
    "reference": (lambda: preference_target(ONE, TWO + 1, 1.0), "kltarget.normalize"),
    "NaN": (lambda: preference_target(ONE, TWO * np.nan, 1.0), "log_ref"),
    "batch": (lambda: preference_target(ONE, TWO[None], 1.0), "give \\[A\\]"),
    "too few": (lambda: preference_target(TREE, TWO, 1.0), "compare outcome 4"),
    "labels": (
        lambda: preference_target({"chosen": ["x"], "rejected": ["y"]}, LOG_REF, 1.0),
        "2 labels: name all",
    ),
    "f′(0)": (
        lambda: preference_target(ONE, TWO, 1.0, divergence=kt.ChiSquared()),
        "must have f′\\(0\\) = −∞",
    ),
    "total variation": (
        lambda: preference_target(ONE, TWO, 1.0, divergence=kt.TotalVariation()),
        "must have f′\\(0\\) = −∞",
    ),
    "KTO's divergence": (
        lambda: preference_target(ONE, TWO, 0.5, loss="kto", divergence=kt.ForwardKL()),
        "must be ReverseKL for loss='kto'",
    ),
    "KTO's beta": (lambda: preference_target(ONE, TWO, 1.0, loss="kto"), "must be below 1"),
    "KTO's weights": (
        lambda: preference_target(ONE, TWO, 0.5, loss="kto", undesirable_weight=0.0),
        "undesirable_weight must be above 0",
    ),
    "weights of others": (
        lambda: preference_target(ONE, TWO, 0.5, desirable_weight=2.0),
        "desirable_weight is for loss='kto'",
    ),
    "nothing desirable": (
        lambda: preference_target(ONE, TWO, 0.5, loss="kto", undesirable_weight=2.0),
        "no outcome that is desirable on balance",
    ),
    "smoothing of others": (
        lambda: preference_target(ONE, TWO, 0.5, loss="ipo", label_smoothing=0.1),
        "label_smoothing is for loss='dpo'",
    ),
    "smoothing of a half": (
        lambda: preference_target(ONE, TWO, 0.5, label_smoothing=0.5),
        "label_smoothing must be from 0 to less than 0.5",
    ),
    "with itself": (lambda: Preferences([0, 1], [1, 1], [1, 1], [1, 1]), "different .* pair 1"),
    "no pairs": (lambda: Preferences([], [], [], []), "at least one pair"),
    "shapes": (lambda: Preferences([0], [1], [1, 2], [1]), "wins \\(2,\\)"),
    "negative": (lambda: Preferences([0], [1], [-1], [1]), "wins must be finite and 0 or more"),
    "never": (lambda: Preferences([0], [1], [0], [0]), "both 0"),
    "floats": (lambda: Preferences([0.5], [1], [1], [0]), "first must be integer"),
    "index": (lambda: Preferences([0], [2], [1], [0], ["a", "b"]), "must be below 2"),
    "rates": (
        lambda: Preferences.from_win_rates([0, 1], [1, 2], [0.1, 0.2, 0.3]),
        "win_rate \\(3,\\) .* as first \\(2,\\)",
    ),
    "rate": (lambda: Preferences.from_win_rates([0], [1], [1.2]), "between 0 and 1"),
    "a rate in a table": (
        lambda: read_preferences({"a": ["x", "x"], "b": ["y", "z"], "win_rate": [0.5, -0.1]}),
        "column 'win_rate', row 2: -0.1 must be between 0 and 1",
    ),
    "a table's row with itself": (
        lambda: read_preferences({"chosen": ["x"], "rejected": ["x"]}),
        "row 1: 'x' is compared with itself",
    ),
    "an empty table": (lambda: read_preferences({"chosen": [], "rejected": []}), "no rows"),
    "one side": (lambda: read_preferences({"chosen": ["x"]}), "neither 'chosen' and 'rejected'"),
    "no preferences": (lambda: read_preferences({"a": ["x"], "b": ["y"]}), "nor a 'win_rate'"),
    "prompts": (
        lambda: read_preferences({"prompt": "pq", "chosen": "xx", "rejected": "yy"}),
        "row 2: a second prompt begins",
    ),
    "lengths": (
        lambda: read_preferences({"chosen": ["x"], "rejected": ["y", "z"]}),
        "differ in length",
    ),
    "unknown name": (
        lambda: read_preferences({"chosen": ["x"], "rejected": ["y"]}, labels=["x", "z"]),
        "'y' is not among the labels",
    ),
    "labels twice": (
        lambda: read_preferences({"chosen": ["x"], "rejected": ["y"]}, labels=["x", "x", "y"]),
        "labels has a name twice",
    ),
    "count": (
        lambda: read_preferences({"chosen": ["x"], "rejected": ["y"], "count": ["many"]}),
        "'many' is not a number",
    ),
    "never compared": (
        lambda: read_preferences({"a": ["x"], "b": ["y"], "wins": [0], "losses": [0]}),
        "row 1: the pair was never compared",
    ),
    "empty entry": (
        lambda: read_preferences({"chosen": ["x"], "rejected": [""]}),
        "column 'rejected', row 1: the entry is empty",
    ),
    "negative index": (lambda: read_preferences({"chosen": [0], "rejected": [-1]}), "0 or more"),
    "trainer's loss": (lambda: trained(ONE, loss="kto"), "'dpo', 'ipo'"),
    "trainer's outcomes": (lambda: trained(TREE, log_ref=TWO), "pairs compare outcome"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_wrong_types():
    for call, message in (
        (lambda: preference_target(3, TWO, 1.0), "DataFrame"),
        (lambda: preference_target(ONE, TWO, 1.0, divergence="reverse"), "kltarget.Divergence"),
        (lambda: jax.jit(lambda x: preference_target(ONE, x, 1.0))(TWO), "outside of jit"),
        (lambda: read_preferences({"chosen": ["x"]}, columns={"best": "chosen"}), "unknown role"),
        (lambda: trained(ONE, log_ref=TWO, divergence="reverse"), "kltarget.Divergence"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_tables_in_every_form(tmp_path):
    rows = {
        "Chosen": ["tea", "milk", "tea"],
        "rejected": ["milk", "water", "water"],
        "n": [3, 1, 2],
    }
    path = tmp_path / "pairs.csv"
    path.write_text("Chosen,rejected,n\ntea,milk,3\nmilk,water,1\ntea,water,2\n")
    for table in (rows, pd.DataFrame(rows), path, str(path)):
        pairs = read_preferences(table)
        assert pairs.labels == ("tea", "milk", "water")
        np.testing.assert_array_equal(pairs.win_matrix(), [[0, 3, 2], [0, 0, 1], [0, 0, 0]])
    lines = tmp_path / "pairs.jsonl"
    lines.write_text('{"prompt": "?", "chosen": [{"content": "x"}], "rejected": "y"}\n')
    assert read_preferences(lines).labels == ('[{"content": "x"}]', "y")
    with pytest.raises(TableError, match=re.escape("pairs.csv: there is no")):
        read_preferences(path, columns={"chosen": "best"})


def test_columns_of_pairs():
    counts = {"a": [2, 0], "b": [0, 1], "wins": [3, 1], "losses": [1, 0]}
    pairs = read_preferences(counts)
    assert pairs.labels is None
    assert pairs.num_outcomes == 3
    np.testing.assert_array_equal(pairs.win_matrix(), [[0, 1, 1], [0, 0, 0], [3, 0, 0]])
    rates = {"x": ["p"], "y": ["q"], "win rate": [0.25], "count": [8]}
    named = read_preferences(
        rates, columns={"first": "x", "second": "y"}, labels=["q", "unseen", "p"]
    )
    assert named.labels == ("q", "unseen", "p")
    assert (named.first, named.second, named.wins, named.losses) == (2, 0, 2, 6)


def test_a_sweep_of_beta_is_a_batch():
    beta = np.array([0.1, 1.0, 10.0], DTYPE)
    for loss in ("dpo", "ipo"):
        target = preference_target(CIRCLES, LOG_REF, beta, loss=loss)
        assert target.probs.shape == (3, 5)
        assert target.status.shape == target.expected_reward.shape == (3,)
        for k in range(3):
            alone = preference_target(CIRCLES, LOG_REF, beta[k], loss=loss)
            np.testing.assert_allclose(target.probs[k], alone.probs, rtol=FINE)


@pytest.mark.broad
def test_few_pairs_among_very_many_outcomes():
    size = 300_000
    log_ref = np.full(size, -np.log(size), DTYPE)
    target = preference_target(Preferences([7], [size - 1], [4], [1]), log_ref, 1.0)
    np.testing.assert_allclose(target.reward[7], np.log(4) / 2, rtol=FINE)
    assert "there are 299999:" in target.verdict
    unanimous = preference_target(Preferences([7], [size - 1], [4], [0]), log_ref, 1.0)
    assert unanimous.unanimous == ((7, size - 1),)
    kto = preference_target(Preferences([7], [size - 1], [4], [1]), log_ref, 0.5, loss="kto")
    assert kto.probs[7] == 1


def test_of_many_unanimous_pairs_the_first_are_named():
    chain = Preferences(np.arange(4), np.arange(1, 5), np.ones(4), np.zeros(4))
    target = preference_target(chain, LOG_REF, 0.5)
    assert target.verdict.endswith("“0” over “1”, “1” over “2”, “2” over “3” and 1 more")
    np.testing.assert_array_equal(target.probs, [1, 0, 0, 0, 0])


def test_a_result_passes_through_jit_and_keeps_the_dtype():
    target = preference_target(CIRCLES, LOG_REF, 0.5)
    same = jax.jit(lambda x: x)(target)
    assert same.verdict == target.verdict
    assert target.probs.dtype == DTYPE
    if X64:
        assert preference_target(CIRCLES, LOG_REF.astype(np.float32), 0.5).probs.dtype == np.float32


@pytest.mark.broad
def test_many_outcomes_are_quick_enough_to_fit():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 400, (2, 4000))
    kept = first != second
    first, second, wins = first[kept], second[kept], rng.integers(1, 9, kept.sum())
    pairs = Preferences(first, second, wins, 10 - wins)
    target = preference_target(pairs, np.full(400, -np.log(400), DTYPE), 1.0)
    r = np.asarray(target.reward, np.float64)
    matrix = pairs.win_matrix(400)
    expected = (matrix + matrix.T) * expit(r[:, None] - r)
    np.testing.assert_allclose(matrix.sum(1), expected.sum(1), rtol=256 * FINE)


@pytest.fixture
def files(tmp_path):
    pairs, answers = tmp_path / "pairs.csv", tmp_path / "answers.csv"
    pairs.write_text("a,b,wins,losses\ntea,milk,8,2\nmilk,juice,5,5\n")
    answers.write_text("answer,prob\njuice,0.5\nmilk,0.3\ntea,0.2\n")
    return pairs, answers


def test_the_command_says_the_target(capsys, files):
    pairs, answers = files
    line = ["prefer", str(pairs), "--reference", str(answers), "--beta", "0.5,2"]
    assert cli.main(line) == 0
    page = capsys.readouterr().out
    # By hand: the log odds of 8 : 2 are log 4; the odds of tea and milk are 2/3 · 4^(1/β).
    assert page.startswith("pairs: 2 pairs of 3 outcomes, dpo with reverse KL\n")
    odds = np.array([0.5, 0.3, 0.2 * 16])
    cells = next(x.split() for x in page.splitlines() if x.startswith("tea"))
    assert cells[2:4] == ["0.2000", f"{odds[2] / odds.sum():.4f}"]
    assert "a target: that of the reward which explains the pairs, at the same β" in page
    assert cli.main([*line, "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["labels"] == ["juice", "milk", "tea"]
    assert content["unanimous"] == []
    first = content["targets"][0]
    np.testing.assert_allclose(np.exp(first["log_probs"]), odds / odds.sum(), rtol=1e-12)
    np.testing.assert_allclose(np.ptp(first["reward"]), np.log(4), rtol=1e-12)
    assert first["status"] == []


def test_the_command_says_where_there_is_no_target(capsys, files):
    pairs, answers = files
    pairs.write_text("chosen,rejected\ntea,milk\n")
    line = ["prefer", str(pairs), "--reference", str(answers), "--beta", "0.5", "--json", "-"]
    assert cli.main(line) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["unanimous"] == [["tea", "milk"]]
    assert content["targets"][0]["status"] == ["NOT_UNIQUE", "NO_TARGET"]
    assert content["targets"][0]["reward"][1] == "-inf"
    assert content["groups"][1] is None
    assert cli.main([*line[:-2], "--loss", "kto", "--top", "1"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "no target: KTO drives" in page
    assert "in the limit" in page
    assert "(2 more)" in page


@pytest.fixture
def prompts(tmp_path):
    pairs, answers = tmp_path / "pairs.csv", tmp_path / "answers.csv"
    pairs.write_text(
        "prompt,a,b,wins,losses\nmorning,tea,milk,8,2\nevening,juice,milk,3,0\n"
        "morning,milk,juice,5,5\nnoon,tea,milk,1,1\n"
    )
    answers.write_text(
        "prompt,answer,prob\nmorning,juice,0.5\nmorning,milk,0.3\nmorning,tea,0.2\n"
        "evening,milk,0.6\nevening,juice,0.4\nnoon,milk,0.5\nnoon,tea,0.4\nnoon,water,0.1\n"
    )
    return pairs, answers


def test_prompts_are_read_and_solved_one_by_one(prompts):
    file, answers = prompts
    references = read_references_by_prompt(answers)
    assert {name: x.labels for name, x in references.items()} == {
        "morning": ("juice", "milk", "tea"),
        "evening": ("milk", "juice"),
        "noon": ("milk", "tea", "water"),
    }
    np.testing.assert_allclose(np.exp(references["noon"].log_ref), [0.5, 0.4, 0.1])
    pairs = read_preferences_by_prompt(
        file, labels={name: x.labels for name, x in references.items()}
    )
    assert list(pairs) == ["morning", "evening", "noon"]
    assert pairs["morning"].win_matrix()[2, 1] == 8
    log_refs = {name: x.log_ref.astype(DTYPE) for name, x in references.items()}
    targets = preference_targets(pairs, log_refs, 0.5)
    # By hand: the log odds of 8 : 2 are log 4, of 16 times the reference's odds at β = ½.
    odds = np.array([0.5, 0.3, 0.2 * 16])
    np.testing.assert_allclose(targets["morning"].probs, odds / odds.sum(), rtol=FINE)
    assert targets["evening"].status == kt.Status.NO_TARGET
    np.testing.assert_allclose(targets["noon"].probs, [0.5, 0.4, 0.1], rtol=FINE)
    assert targets["noon"].status == kt.Status.NOT_UNIQUE
    smoothed = preference_targets(pairs, log_refs, 0.5, label_smoothing=0.1)
    np.testing.assert_allclose(np.ptp(smoothed["evening"].reward), np.log(9), rtol=FINE)


def test_what_is_wrong_with_one_prompt_names_it(prompts):
    file, _ = prompts
    pairs = read_preferences_by_prompt(file)
    with pytest.raises(ValueError, match="no reference for the prompt 'evening'"):
        preference_targets(pairs, {"morning": np.log(REF[:3] / REF[:3].sum())}, 0.5)
    with pytest.raises(ValueError, match="prompt 'morning': log_ref has 5 outcomes, but"):
        preference_targets(pairs, LOG_REF, 0.5)
    with pytest.raises(TypeError, match="read_preferences_by_prompt makes one"):
        preference_targets(TREE, LOG_REF, 0.5)
    with pytest.raises(ValueError, match="pairs has no prompt"):
        preference_targets({}, LOG_REF, 0.5)
    with pytest.raises(TableError, match="no prompt column: none of 'chosen', 'rejected' is"):
        read_preferences_by_prompt({"chosen": ["x"], "rejected": ["y"]})
    with pytest.raises(TableError, match=r"row 2 \(line 3\): there are no labels .* 'evening'"):
        read_preferences_by_prompt(file, labels={"morning": ("tea", "milk", "juice")})
    file.write_text("prompt,chosen,rejected\nA,tea,milk\nB,tea,tea\n")
    with pytest.raises(TableError, match=r"row 2 \(line 3\): 'tea' is compared with itself"):
        read_preferences_by_prompt(file)


def test_the_command_has_a_row_per_prompt(capsys, prompts):
    pairs, answers = prompts
    line = ["prefer", str(pairs), "--reference", str(answers), "--beta", "0.5,2"]
    assert cli.main(line) == 0
    page = capsys.readouterr().out
    assert page.startswith("pairs: 3 prompts, dpo with reverse KL\n")
    rows = {x.split()[0]: x.split()[1:] for x in page.splitlines() if x}
    assert rows["evening"][:4] == ["1", "2", "1", "none"]
    assert rows["noon"][:5] == ["1", "3", "0", "not", "unique"]
    odds = np.array([0.5, 0.3, 0.2 * 16]) / 4.0
    size = (odds * np.log(odds / [0.5, 0.3, 0.2])).sum()
    assert rows["morning"][:4] == ["2", "3", "0", "one"]
    assert float(rows["morning"][4]) == pytest.approx(size, rel=1e-3)
    said = " ".join(page.split())
    assert "1 of 3 prompts has no target, such as “evening”: no target: these pairs are" in said
    assert cli.main([*line, "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)["prompts"]
    assert [x["prompt"] for x in content] == ["morning", "evening", "noon"]
    np.testing.assert_allclose(np.exp(content[0]["targets"][0]["log_probs"]), odds, rtol=1e-12)
    assert cli.main([*line, "--prompt", "morning"]) == 0
    assert capsys.readouterr().out.startswith("pairs: 2 pairs of 3 outcomes, dpo with reverse KL")
    assert cli.main([*line, "--prompt", "night"]) == 2
    assert "has no prompt 'night'" in capsys.readouterr().err
    assert cli.main([*line, "--top", "1", "--label-smoothing", "0.2"]) == 0
    page = capsys.readouterr().out
    assert "labels smoothed by 0.2" in page
    assert "(2 more)" in page
    # One reference without prompts is that of all.
    answers.write_text("answer,prob\njuice,0.5\nmilk,0.3\ntea,0.2\n")
    assert cli.main(line) == 0
    assert "3 prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("chosen,rejected\ntea,coffee\n", (), "'coffee' is not among the labels"),
        ("chosen,rejected\ntea,tea\n", (), "compared with itself"),
        ("a,b,win_rate\ntea,milk,1.5\n", (), "row 1 (line 2): 1.5 must be between 0 and 1"),
        ("chosen,rejected\ntea,milk\n", ("--divergence", "chi-squared"), "f′(0) = −∞"),
        ("chosen,rejected\ntea,milk\n", ("--loss", "kto", "--beta", "1"), "beta must be below 1"),
        ("chosen,rejected\ntea,milk\n", ("--desirable-weight", "2"), "is for loss='kto'"),
    ],
    ids=range(6),
)
def test_the_command_refuses_in_one_line(capsys, files, text, options, message):
    pairs, answers = files
    pairs.write_text(text)
    line = ["prefer", str(pairs), "--reference", str(answers), "--beta", "0.5", *options]
    assert cli.main(line) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_reference_needs_no_rewards(files):
    _, answers = files
    table = read_reference(answers)
    np.testing.assert_allclose(np.exp(table.log_ref), [0.5, 0.3, 0.2])
    assert table.notes[0] == "outcome column 'answer'"
    assert (table.reward == 0).all()
