"""Losses over pairs token by token: against their formulas minimised directly, and training.

The oracles write TDPO's and SparsePO's losses as sums over prefixes in NumPy; SciPy minimises them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import DTYPES, eps, reference
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax, logsumexp

import kltarget as kt
from kltarget.implied import preference_target, token_preference_target
from kltarget.policies import TabularPolicy
from kltarget.tasks import Preferences
from kltarget.training import dpo

DTYPE = DTYPES[0]
FINE = 256 * eps(DTYPE)
SPACE = kt.SequenceSpace(2, 3)


def problem(seed=0, space=SPACE, scale=1.0):
    rng = np.random.default_rng(seed)
    log_ref = log_softmax(rng.normal(size=space.num_sequences))
    return scale * rng.normal(size=space.num_sequences), log_ref


def levels(log_joint, size=2, length=3):
    """Next-token log-probabilities at the prefixes of each length, by sums over the leaves."""
    mass = [logsumexp(np.reshape(log_joint, (size**t, -1)), axis=1) for t in range(length + 1)]
    return [mass[t + 1].reshape(-1, size) - mass[t][:, None] for t in range(length)]


def compared(log_policy, log_ref, ratio_weight=None, kl_weight=None):
    """``Σ m log u`` and ``Σ d KL(ref‖π)`` of every sequence, prefix by prefix."""
    ones = [np.ones(2**t) for t in range(3)]
    margin, before = np.zeros(8), np.zeros(8)
    pairs = zip(levels(log_policy), levels(log_ref), strict=True)
    for t, (policy, ref) in enumerate(pairs):
        m, d = (x[t] if x is not None else ones[t] for x in (ratio_weight, kl_weight))
        margin += np.repeat((m[:, None] * (policy - ref)).ravel(), 2 ** (2 - t))
        kl = (np.exp(ref) * (ref - policy)).sum(1)
        before += np.repeat(d * kl, 2 ** (3 - t))
    return margin, before


def loss_of(log_policy, reward, log_ref, beta, *weights):
    margin, before = compared(log_policy, log_ref, *weights)
    x, share = beta * (margin + before), np.exp(log_ref)
    likely = expit(reward[:, None] - reward)
    return -2 * (share[:, None] * share * likely * log_expit(x[:, None] - x)).sum()


def masks(seed):
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.4, 1.6, 2**t) for t in range(3)]


def as_table(weights):
    return np.stack([np.repeat(x, 2 ** (3 - t)) for t, x in enumerate(weights)], -1).astype(DTYPE)


ZEROS = [np.zeros(2**t) for t in range(3)]
CASES = {
    "DPO": (None, ZEROS),
    "TDPO": (None, None),
    "half": (None, [x + 0.5 for x in ZEROS]),
    "one mask": (masks(1), masks(1)),
    "two masks": (masks(1), masks(2)),
}


def target_of(name, reward, log_ref, beta):
    ratio_weight, kl_weight = CASES[name]
    return token_preference_target(
        SPACE,
        reward.astype(DTYPE),
        log_ref.astype(DTYPE),
        beta,
        ratio_weight=1.0 if ratio_weight is None else as_table(ratio_weight),
        kl_weight=1.0 if kl_weight is None else as_table(kl_weight),
    )


def variation(p, q):
    return np.abs(np.exp(np.asarray(p, np.float64)) - np.exp(np.asarray(q, np.float64))).sum() / 2


def test_losses_of_the_bank():
    case = reference("tdpo")
    given, want, beta = case["inputs"], case["expected"], case["inputs"]["beta"]
    found = {}
    for side, name in (("chosen", "w"), ("rejected", "l")):
        pi, ref = (np.log(given[side][x]) for x in ("pi", "ref"))
        tokens = np.arange(2), given[side]["y"]
        found[name] = (pi - ref)[tokens].sum(), (np.exp(ref) * (ref - pi)).sum()
    # What the oracle of this file compares is the bank's.
    for name, (margin, before) in found.items():
        np.testing.assert_allclose(margin, want[f"margin_{name}"], rtol=1e-10)
        np.testing.assert_allclose(before, want[f"seqkl_{name}"], rtol=1e-10)
    gap, held = (found["w"][k] - found["l"][k] for k in (0, 1))
    np.testing.assert_allclose(beta * (gap + held), want["logit1"], rtol=1e-10)
    np.testing.assert_allclose(-log_expit(beta * (gap + held)), want["loss1"], rtol=1e-10)
    logit = beta * (gap + given["alpha"] * held)
    np.testing.assert_allclose(logit, want["logit2"], rtol=1e-10)
    np.testing.assert_allclose(-log_expit(logit), want["loss2"], rtol=1e-10)


@pytest.mark.quick_only("TDPO", "two masks", others="broad")
@pytest.mark.parametrize("name", CASES)
def test_losses_minimised_directly(name):
    reward, log_ref = problem()
    target = target_of(name, reward, log_ref, 0.5)

    def of_logits(logits):
        return loss_of(log_softmax(logits), reward, log_ref, 0.5, *CASES[name])

    # At the reference nothing is preferred.
    np.testing.assert_allclose(of_logits(log_ref), np.log(2), rtol=1e-12)
    best = log_ref
    for _ in range(2):
        best = minimize(of_logits, best, method="BFGS", options={"gtol": 1e-9}).x
    assert variation(log_softmax(best), target.log_probs) < 1e-5
    assert variation(log_ref, target.log_probs) > 0.1
    assert target.status == kt.Status.OK


@pytest.mark.parametrize("name", CASES)
def test_what_is_compared_adds_up_to_the_reward(name):
    """The certificate of the minimum at any size: it then fits every pair."""
    for seed, beta in ((1, 0.05), (2, 1.0), (3, 1e3)):
        reward, log_ref = problem(seed)
        target = target_of(name, reward, log_ref, beta)
        margin, before = compared(np.asarray(target.log_probs, np.float64), log_ref, *CASES[name])
        want = reward - np.asarray(target.multiplier, np.float64)
        atol = 64 * FINE * (1 + beta + np.abs(before).max() * beta)
        np.testing.assert_allclose(beta * (margin + before), want, atol=atol)


def test_without_weights_it_is_the_target_of_reverse_kl():
    reward, log_ref = problem(4)
    betas = np.array([0.1, 2.0], DTYPE)
    target = token_preference_target(SPACE, reward.astype(DTYPE), log_ref.astype(DTYPE), betas)
    want = log_softmax(log_ref + reward / np.array([[0.1], [2.0]]), axis=-1)
    np.testing.assert_allclose(target.log_probs, want, rtol=FINE, atol=FINE)
    np.testing.assert_allclose(
        target.multiplier, kt.solve(target.objective).value, rtol=FINE, atol=FINE
    )


def test_tdpo_tilts_tokens_by_what_the_reference_earns():
    """Claim: the token-level optimum of TDPO is π_ref exp(Q_ref/β) / Z at every prefix, Q_ref the
    reward to come under the reference (arXiv 2404.11999).

    Holds: and its first loss ends there, which is not the target of reverse KL, DPO's, unless there
    is one token.
    """
    reward, log_ref = problem(5)
    target = target_of("TDPO", reward, log_ref, 0.4)
    want, value = np.zeros(8), reward
    for ref in levels(log_ref)[::-1]:
        tilted = log_softmax(ref + value.reshape(-1, 2) / 0.4, axis=1)
        value = (np.exp(ref) * value.reshape(-1, 2)).sum(1)
        want += np.repeat(tilted.ravel(), 8 // tilted.size)
    np.testing.assert_allclose(target.log_probs, want, rtol=FINE, atol=FINE)
    whole = kt.solve(target.objective)
    assert variation(whole.log_probs, target.log_probs) > 0.01
    assert whole.gap(target.log_probs) > 0.01
    one = kt.SequenceSpace(8, 1)
    problem_of_one = reward.astype(DTYPE), log_ref.astype(DTYPE), 0.4
    alone = token_preference_target(one, *problem_of_one, kl_weight=1.0)
    np.testing.assert_allclose(alone.log_probs, whole.log_probs, rtol=FINE, atol=FINE)


def expected_gradient(logits, reward, log_ref, beta, weight):
    """Of TDPO's second loss by differences, the winner's KL held as it is."""
    held = compared(log_softmax(logits), log_ref)[1]
    share, likely = np.exp(log_ref), expit(reward[:, None] - reward)

    def value(x):
        margin, before = compared(log_softmax(x), log_ref)
        logit = beta * (margin[:, None] - margin + weight * (held[:, None] - before))
        return -2 * (share[:, None] * share * likely * log_expit(logit)).sum()

    steps = 1e-5 * np.eye(8)
    return np.array([(value(logits + h) - value(logits - h)) / 2e-5 for h in steps])


def coming_to_rest(rate):
    return optax.adam(optax.cosine_decay_schedule(rate, 1500))


def trained(reward, log_ref, **options):
    policy = TabularPolicy(2, 3)
    params = policy.from_conditionals([x.astype(DTYPE) for x in levels(log_ref)])
    options = {"num_steps": 1500, "optimizer": coming_to_rest, "gradient_tol": 0.0} | options
    given = None if reward is None else jnp.asarray(reward, DTYPE)
    return dpo(policy, params, given, beta=0.5, learning_rate=0.1, history_every=None, **options)


@pytest.mark.broad
@pytest.mark.parametrize("pairs", ["reference", "policy"])
def test_training_ends_there(pairs):
    """Pairs of the policy as it is, labelled by the reward, lead where the reference's do."""
    reward, log_ref = problem(6)
    for name in CASES if pairs == "reference" else ("TDPO", "one mask"):
        weights = CASES[name]
        given = {"ratio_weight": weights[0], "kl_weight": weights[1]}
        tables = {k: 1.0 if x is None else as_table(x) for k, x in given.items()}
        run = trained(reward, log_ref, pairs=pairs, **tables)
        assert variation(run.log_probs, target_of(name, reward, log_ref, 0.5).log_probs) < 1e-4


@pytest.mark.slow
def test_training_on_given_pairs_and_on_drawn_ones():
    reward, log_ref = problem(7)
    i, j = np.triu_indices(8, 1)
    pairs = Preferences.from_win_rates(i, j, expit(reward[i] - reward[j]))
    fitted = preference_target(pairs, log_ref.astype(DTYPE), 1.0).reward
    target = target_of("TDPO", np.asarray(fitted, np.float64), log_ref, 0.5)
    run = trained(None, log_ref, pairs=pairs, kl_weight=1.0)
    assert variation(run.log_probs, target.log_probs) < 1e-4
    for kind in ("reference", pairs):
        drawn = {"batch_size": 256, "key": jax.random.key(0), "num_steps": 600}
        run = trained(reward, log_ref, pairs=kind, kl_weight=1.0, **drawn)
        assert variation(run.log_probs, target.log_probs) < 0.05
        assert variation(log_ref, target.log_probs) > 0.15


@pytest.mark.broad
def test_the_second_loss_of_tdpo_rests_nearer_to_the_reference():
    """Claim: TDPO regulates the KL better than DPO (arXiv 2404.11999, abstract).

    Holds with a correction: at equal β the second loss, without the gradient through the winner's
    KL, rests nearer to the reference than DPO, the first for some rewards and not for others; and
    at equal reverse KL DPO's target, with a larger β, earns more than both.
    """
    reward, log_ref = problem(8)
    first = target_of("TDPO", reward, log_ref, 0.5)
    runs = {a: trained(reward, log_ref, kl_weight=a, kl_gradient="loser") for a in (0.5, 1.0)}
    for weight, run in runs.items():
        rest = np.asarray(run.log_probs, np.float64)
        field = expected_gradient(rest, reward, log_ref, 0.5, weight)
        assert np.abs(field).max() < 1e-5
        away = expected_gradient(
            np.asarray(first.log_probs, np.float64), reward, log_ref, 0.5, weight
        )
        assert np.abs(away).max() > 1e-3
    objective, ref = first.objective, first.objective.log_ref
    sizes = [float(kt.kl(runs[a].log_probs, ref)) for a in (1.0, 0.5)]
    assert sizes[0] < sizes[1] < float(kt.solve(objective).divergence_value)
    for found in (first.log_probs, runs[1.0].log_probs):
        beta = kt.frontier.beta_for(objective, kl=kt.kl(found, ref))
        best = kt.solve(kt.Objective(objective.reward, ref, beta))
        assert best.expected_reward > np.exp(np.asarray(found)) @ reward + 1e-4
    farther = set()
    for seed in range(4):
        found = [target_of(name, *problem(seed), 0.5) for name in ("TDPO", "DPO")]
        one, other = (float(kt.kl(x.log_probs, x.objective.log_ref)) for x in found)
        farther.add(one > other)
    assert farther == {True, False}


def test_a_mask_of_both_is_the_beta_of_its_prefix():
    """Claim: token masks weight how much each token's reward and KL count (arXiv 2410.05102,
    abstract).

    Holds with a correction: with one mask for both a token's weight is a factor of β at its prefix,
    so that less weight moves the token farther from the reference; without weight it does not move.
    Masks are given here and depend on prefixes; of the paper the abstract alone was at hand.
    """
    reward, log_ref = problem(9)
    shares = []
    for weight in (2.0, 1.0, 0.5):
        table = np.array([weight, 1.0, 1.0], DTYPE)
        problem_of = reward.astype(DTYPE), log_ref.astype(DTYPE)
        masked = {"ratio_weight": table, "kl_weight": table}
        target = token_preference_target(SPACE, *problem_of, 0.5, **masked)
        shares.append(levels(np.asarray(target.log_probs, np.float64)))
    # By hand: later tokens do not see the mask, and the first is tilted by what the rest earns.
    earned = (np.exp(log_ref) * reward).reshape(2, 4).sum(1) / np.exp(log_ref).reshape(2, 4).sum(1)
    for weight, found in zip((2.0, 1.0, 0.5), shares, strict=True):
        np.testing.assert_allclose(found[1:][0], shares[0][1], rtol=FINE, atol=FINE)
        tilt = levels(log_ref)[0][0] + earned / (0.5 * weight)
        np.testing.assert_allclose(found[0][0], log_softmax(tilt), rtol=FINE, atol=FINE)
    moved = [abs(x[0][0, 0] - levels(log_ref)[0][0, 0]) for x in shares]
    assert moved[0] < moved[1] < moved[2]


@pytest.mark.broad
def test_tokens_without_weight_do_not_move():
    reward, log_ref = problem(9)
    table = np.array([0.0, 1.0, 1.0], DTYPE)
    run = trained(reward, log_ref, ratio_weight=table, kl_weight=table)
    found, start = (levels(np.asarray(x, np.float64)) for x in (run.log_probs, log_ref))
    np.testing.assert_allclose(found[0], start[0], atol=FINE)
    assert np.abs(found[1] - start[1]).max() > 0.1


def test_ends_of_sequences_and_impossible_ones():
    """Against the tilt of each prefix by hand: what has ended, and what cannot be, has no say."""
    space = kt.SequenceSpace(2, 2, eos=0)
    log_ref = np.array([np.log(0.5), -np.inf, np.log(0.2), np.log(0.3)], DTYPE)
    reward = np.array([1.0, 7.0, 0.0, 3.0], DTYPE)
    target = token_preference_target(space, reward, log_ref, 1.0, kl_weight=1.0)
    after = np.array([0.2 / 0.5, 0.3 / 0.5 * np.exp(3.0)])
    first = np.array([0.5 * np.exp(1.0), 0.5 * np.exp(0.3 / 0.5 * 3.0)])
    after, first = after / after.sum(), first / first.sum()
    want = [first[0], 0.0, first[1] * after[0], first[1] * after[1]]
    np.testing.assert_allclose(target.probs, want, rtol=FINE, atol=FINE)
    run = dpo(
        TabularPolicy(2, 2, eos=0),
        TabularPolicy(2, 2, eos=0).init(key=jax.random.key(1)),
        jnp.asarray(reward),
        beta=1.0,
        learning_rate=0.1,
        num_steps=1,
        kl_weight=1.0,
    )
    assert np.isfinite(run.log_probs[jnp.array([0, 2, 3])]).all()


def test_derivatives_are_those_of_differences():
    reward, log_ref = (x.astype(DTYPE) for x in problem(3))

    def share(reward, beta, weight):
        target = token_preference_target(SPACE, reward, log_ref, beta, kl_weight=weight)
        return jnp.exp(target.log_probs[2])

    at = jnp.asarray(reward), jnp.asarray(0.7, DTYPE), jnp.asarray(0.8, DTYPE)
    slopes = jax.grad(share, (0, 1, 2))(*at)
    h = float(np.cbrt(eps(DTYPE)))
    for k, direction in ((0, jnp.eye(8, dtype=DTYPE)[5]), (1, 1.0), (2, 1.0)):
        moved = [list(at), list(at)]
        moved[0][k], moved[1][k] = (at[k] + s * h * direction for s in (1, -1))
        want = float(share(*moved[0]) - share(*moved[1])) / (2 * h)
        got = float(jnp.sum(slopes[k] * direction))
        np.testing.assert_allclose(got, want, rtol=0.02, atol=20 * h**2)


PLAIN = np.zeros(8, DTYPE), np.log(np.full(8, 1 / 8, DTYPE)), 1.0
WIDE = np.ones((8, 3), DTYPE)
WIDE[0, 1] = 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio_weight": np.ones(2, DTYPE)}, "must be one number, one per position .3., or one"),
        ({"kl_weight": -1.0}, "kl_weight must be 0 or more"),
        ({"ratio_weight": 0.0}, "ratio_weight must be above 0, got 0 for token 0"),
        ({"kl_weight": WIDE}, "alike before token 1, those of prefix 0"),
    ],
    ids=range(4),
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        token_preference_target(SPACE, *PLAIN, **options)


def test_what_else_is_refused():
    with pytest.raises(ValueError, match="reward must be finite: no pair may be unanimous"):
        token_preference_target(SPACE, np.where(np.arange(8) == 2, -np.inf, PLAIN[0]), *PLAIN[1:])
    with pytest.raises(ValueError, match=r"log_ref has shape \(4,\), but there are"):
        token_preference_target(SPACE, PLAIN[0][:4], PLAIN[1][:4], 1.0)
    for options, message in (
        ({"kl_weight": 1.0, "divergence": kt.ChiSquaredKL()}, "kl_weight is of the log ratios"),
        ({"kl_gradient": "loser"}, "needs a kl_weight"),
        ({"kl_gradient": "winner"}, "must be one of 'both', 'loser'"),
        ({"ratio_weight": np.ones(4, DTYPE)}, "ratio_weight has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(*problem(), **options)


def test_learned_masks_are_left_open_by_the_loss():
    """Claim: masks that are learned with the policy find an optimal level of sparsity (arXiv
    2410.05102, abstract).

    Fails: every positive mask reaches the same least loss, each with a policy of its own, so that
    the loss prefers none; a price on their sum then makes them ever smaller, and the policy leaves
    the reference for the best answer. Masks are free numbers of prefixes here, not functions of
    activations; of the paper the abstract alone was at hand.
    """
    reward, log_ref = problem()
    names = ("DPO", "TDPO", "one mask", "two masks")
    targets = [np.asarray(target_of(x, reward, log_ref, 0.5).log_probs, float) for x in names]
    least = [
        loss_of(x, reward, log_ref, 0.5, *CASES[name])
        for name, x in zip(names, targets, strict=True)
    ]
    np.testing.assert_allclose(least, least[0], rtol=FINE)
    assert min(variation(targets[0], x) for x in targets[1:]) > 0.01

    # A common mask is a factor of β: the smaller, the cheaper, and no less than the least is lost.
    kept = []
    for weight in (1.0, 0.25, 1 / 16, 1 / 64):
        target = kt.solve(kt.Objective(reward.astype(DTYPE), log_ref.astype(DTYPE), 0.5 * weight))
        policy = np.asarray(target.log_probs, float)
        same = [np.full(2**t, weight) for t in range(3)]
        lost = loss_of(policy, reward, log_ref, 0.5, same, ZEROS)
        np.testing.assert_allclose(lost, least[0], rtol=FINE)
        kept.append(np.exp(policy[reward.argmax()]))
    assert kept == sorted(kept)
    assert kept[0] < 0.5
    assert kept[-1] > 0.999

    def split(x):
        return log_softmax(x[:8]), [np.exp(x[8:9]), np.exp(x[9:11]), np.exp(x[11:])]

    def priced(x):
        policy, mask = split(x)
        return loss_of(policy, reward, log_ref, 0.5, mask, ZEROS) + 0.01 * np.exp(x[8:]).sum()

    start = np.concatenate([targets[0], np.zeros(7)])
    policy, mask = split(minimize(priced, start, method="BFGS", options={"maxiter": 40}).x)
    assert sum(map(np.sum, mask)) < 0.1 * 7
    assert np.exp(policy[reward.argmax()]) > 0.9
