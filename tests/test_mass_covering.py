"""Mass-covering penalties against reverse KL: what they keep, reach and ask for, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import double_precision, reference
from scipy.optimize import brentq
from scipy.special import expit, logit

import kltarget as kt

REF = np.array([0.3, 0.1, 0.02, 0.38, 0.2])
RIGHT = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
PASSES = np.array([1, 4, 16, 64, 256])


def solved(ref, reward, beta, divergence):
    with np.errstate(divide="ignore"):
        return kt.solve(kt.Objective(np.asarray(reward), np.log(ref), beta, divergence))


def pass_at(success, k):
    """Mean over prompts of the chance that one of k answers is right."""
    return 1 - ((1 - np.asarray(success)) ** np.reshape(k, (-1, 1))).mean(-1)


def successes(divergence, p, beta):
    """Success at the target on prompts that share a β, by their reference's."""
    ref = np.stack([p, 1 - p], -1)
    return np.exp(np.asarray(solved(ref, [1.0, 0.0], beta, divergence).log_probs))[:, 0]


@pytest.mark.broad
@pytest.mark.parametrize(
    ("divergence", "pass_at_4"), [(kt.ForwardKL(), 0.9213), (kt.JensenShannon(), 0.9153)], ids=str
)
def test_what_mass_covering_keeps_at_equal_success(divergence, pass_at_4):
    """Claim: reverse KL narrows the policy, and pass@k falls; mass-covering divergences, such as
    forward KL and Jensen–Shannon, keep it (arXiv 2509.07430, abstract).

    Holds with a correction: not within a prompt, where of right and wrong answers all divergences
    have one target at equal success, which keeps the proportions of right answers and lowers no
    pass@k. Prompts share β otherwise: at a mean success of ½ the hardest are lifted so far that
    pass@4 of an example is 0.92 where reverse KL has 0.63.
    """
    with double_precision():
        # One prompt: reverse KL at another β has the same policy.
        target = np.asarray(solved(REF, RIGHT, 0.2, divergence).probs)
        shift = logit(target @ RIGHT) - logit(REF @ RIGHT)
        tilt = REF * np.exp(RIGHT * shift)
        np.testing.assert_allclose(target, tilt / tilt.sum(), rtol=1e-12)
        # Many prompts at one β.
        p = np.geomspace(1e-6, 0.9, 25)
        reverse = brentq(lambda s: expit(logit(p) + s).mean() - 0.5, 0, 100, xtol=1e-13)
        own = brentq(lambda b: successes(divergence, p, b).mean() - 0.5, 0.1, 10, xtol=1e-11)
        lifted, covering = expit(logit(p) + reverse), successes(divergence, p, own)
        np.testing.assert_allclose(successes(kt.ReverseKL(), p, 1 / reverse), lifted, rtol=1e-10)
    np.testing.assert_allclose([lifted.mean(), covering.mean()], 0.5, rtol=1e-8)
    assert (np.minimum(lifted, covering) >= p).all()
    before, narrow, wide = (pass_at(x, PASSES) for x in (p, lifted, covering))
    assert (narrow > before).all()
    assert (wide[1:] > narrow[1:]).all()
    np.testing.assert_allclose([narrow[1], wide[1]], [0.6278, pass_at_4], atol=1e-4)
    # The hardest prompt gains, however hard it is, the easiest pays.
    with double_precision():
        failure = divergence.f_prime_inverse(divergence.slope_at_infinity - 1 / own)
    np.testing.assert_allclose(covering[0], 1 - float(failure), rtol=1e-4)
    assert covering[0] > 100 * lifted[0]
    assert covering[-1] < lifted[-1]


@pytest.mark.broad
def test_graded_rewards_at_equal_reward():
    """Where rewards differ within a prompt the divergences do too, at one expected reward: each
    spends least of its own kind, and forward KL takes no outcome as far below the reference."""
    ref, reward = (np.array(x) for x in ([0.4, 0.3, 0.15, 0.1, 0.05], [0.1, 0.5, 1.0, 0.9, 0.3]))
    with double_precision():
        found = {}
        for divergence in (kt.ReverseKL(), kt.ForwardKL()):
            objective = kt.Objective(reward, np.log(ref), 1.0, divergence)
            beta = kt.frontier.beta_for(objective, expected_reward=0.8)
            found[divergence.slug] = np.asarray(solved(ref, reward, beta, divergence).probs)
    reverse, forward = found["reverse-kl"], found["forward-kl"]
    np.testing.assert_allclose([reverse @ reward, forward @ reward], 0.8, rtol=1e-10)
    kl = [(q * np.log(q / ref)).sum() for q in (reverse, forward)]
    back = [(ref * np.log(ref / q)).sum() for q in (reverse, forward)]
    assert kl[0] < kl[1]
    assert back[1] < back[0]
    assert (forward / ref).min() > 1.2 * (reverse / ref).min()
    assert (forward / ref).max() > (reverse / ref).max()


@pytest.mark.broad
@pytest.mark.parametrize(
    ("divergence", "curvature"),
    [(kt.ReverseKL(), 1.0), (kt.ForwardKL(), 1.0), (kt.JensenShannon(), 0.5)],
    ids=str,
)
def test_divergence_only_prompts(divergence, curvature):
    """Claim: a mass-covering divergence from the initial policy rehearses what that could do
    (arXiv 2509.07430, abstract).

    Holds: on prompts without a reward, but for no reason of covering: the one minimiser of every
    divergence is the initial policy, and near it all pull alike, by β·f″(1), Jensen–Shannon half
    as much as either KL.
    """
    with double_precision():
        log_ref = np.log(REF)
        target = solved(REF, np.zeros(5), 0.3, divergence)
        np.testing.assert_allclose(target.probs, REF, rtol=1e-12)

        def charge(logits):
            return divergence(kt.normalize(logits), log_ref)

        both = jax.jit(lambda x: (jax.grad(charge)(x), jax.hessian(charge)(x)))
        slope, curved = both(log_ref)
        np.testing.assert_allclose(slope, 0, atol=1e-12)
        fisher = np.diag(REF) - np.outer(REF, REF)
        np.testing.assert_allclose(curved, curvature * fisher, atol=1e-12)


def flow(log_policy, ref, reward, beta, kind, steps=40_000, rate=0.01):
    """Natural gradient ascent of the reward less a KL, by the definitions."""
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(steps):
            policy = np.exp(log_policy)
            if kind == "forward":
                slope = reward + beta * np.where(ref > 0, ref / policy, 0.0)
            else:
                slope = reward - beta * (log_policy - np.log(ref))
            slope = np.where(policy > 0, slope, -np.inf)
            log_policy = log_policy + rate * slope
            log_policy = log_policy - np.logaddexp.reduce(log_policy)
    return np.exp(log_policy)


OUTSIDE = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.2, 0.6, 1.0, 1.5])


@pytest.mark.broad
def test_leaving_the_support():
    """Claim: the forward KL penalty lets the policy leave the support of the base model, where
    reverse KL keeps it (arXiv 2510.03865, abstract).

    Holds with a correction: the target leaves it where β is below 1/Σ π_ref/(R_out − r), 0.894 in
    an example, and not above; and gradients on the policy's own samples get there only from a
    policy that has some mass outside.
    """
    ref, reward = OUTSIDE
    edge = 1 / (ref[:3] / (1.5 - reward[:3])).sum()
    np.testing.assert_allclose(
        edge, reference("fkl-offsupport-critical")["expected"]["beta_condense"], rtol=1e-9
    )
    with double_precision():
        for beta in (0.3, 0.99 * edge, 1.01 * edge):
            target = np.asarray(solved(ref, reward, beta, kt.ForwardKL()).probs)
            assert (target[3] > 0) == (beta < edge)
        below = np.asarray(solved(ref, reward, 0.5, kt.ForwardKL()).probs)
        reverse = np.asarray(solved(ref, reward, 0.5, kt.ReverseKL()).probs)
    assert reverse[3] == 0
    start = np.log(np.array([0.499, 0.3, 0.2, 0.001]))
    np.testing.assert_allclose(flow(start, ref, reward, 0.5, "forward"), below, atol=1e-6)
    # From the reference itself nothing outside is ever drawn.
    with np.errstate(divide="ignore"):
        stays = flow(np.log(ref), ref, reward, 0.5, "forward")
    assert stays[3] == 0
    assert np.abs(stays - below).max() > 0.1


@pytest.mark.broad
@pytest.mark.parametrize(
    ("divergence", "leaves"),
    [
        (kt.ReverseKL(), False),
        (kt.ChiSquared(), False),
        (kt.ForwardKL(), True),
        (kt.JensenShannon(), True),
    ],
    ids=str,
)
def test_no_new_support(divergence, leaves):
    """Claim: reinforcement learning with verifiable rewards cannot reach solutions to which the
    base model gives no probability (arXiv 2507.14843, abstract).

    Holds: for reverse KL, every divergence with an infinite slope f′(∞), and exact gradients on the
    policy's own samples. Of a finite slope, as forward KL's and Jensen–Shannon's, the optimum has
    such mass at a small β.
    """
    ref, reward = OUTSIDE
    with double_precision():
        target = solved(ref, reward, 0.1, divergence)
        assert (float(target.probs[3]) > 0.5) == leaves
        assert leaves or float(target.probs[3]) == 0
        assert np.isfinite(float(divergence.slope_at_infinity)) == leaves
        with np.errstate(divide="ignore"):
            logits = np.log(ref)
        slope = np.asarray(jax.grad(lambda x: jax.nn.softmax(x) @ reward)(jnp.asarray(logits)))
    assert slope[3] == 0
    assert (slope[:3] != 0).all()


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_reweighted_references(beta):
    """Claim: with forward KL, reweighting the reference steers exploration within its support
    (arXiv 2510.03865, abstract).

    Holds: whatever the weights w, the optimum is β w π_ref/(Λ − r), that of the reference w π_ref,
    renormalised, at β times its mass; of equal rewards weights multiply the proportions and
    nothing else does.
    """
    weight = np.array([1.0, 4.0, 16.0, 1.0, 0.5])
    total = (weight * REF).sum()

    def mass(above):
        return (beta * weight * REF / (RIGHT.max() + above - RIGHT)).sum() - 1

    above = brentq(mass, 1e-12, 1e3, xtol=1e-15)
    want = beta * weight * REF / (RIGHT.max() + above - RIGHT)
    with double_precision():
        target = solved(weight * REF / total, RIGHT, beta * total, kt.ForwardKL())
        np.testing.assert_allclose(target.probs, want, rtol=1e-10)
        odds = np.divide(*np.asarray(target.probs)[[1, 0]])
    np.testing.assert_allclose(odds, 4 * REF[1] / REF[0], rtol=1e-10)
