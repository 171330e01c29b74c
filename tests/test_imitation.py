"""Fits of policies too small for their target: which of its modes each loss keeps."""

import itertools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DTYPES, eps
from scipy.special import logsumexp, softmax

from kltarget.policies import MarkovPolicy
from kltarget.training import imitate, losses

DTYPE = DTYPES[0]


def logs(x):
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.asarray(x, float)), DTYPE)


def starts_of(policy, number):
    keys = jax.random.split(jax.random.key(0), number)
    return jax.vmap(lambda key: policy.init(key=key))(keys)


def test_mixtures_of_kls_are_sums():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])
    reverse, forward = (q * np.log(q / p)).sum(), (p * np.log(p / q)).sum()
    for share in (0.0, 0.3, 1.0):
        got = losses.kl_mixture(logs(q), logs(p), share)
        assert float(got) == pytest.approx(share * reverse + (1 - share) * forward, rel=1e-5)
    gone = logs([1.0, 0.0, 0.0])
    assert float(losses.kl_mixture(gone, logs(p), 1.0)) == pytest.approx(np.log(2), rel=1e-5)
    assert float(losses.kl_mixture(gone, logs(p), 0.5)) == np.inf


def test_rankings_are_choices_one_after_another():
    p, q = np.array([0.2, 0.5, 0.3]), np.array([0.1, 0.2, 0.7])
    # Of outcomes 1, 2, 0 in this order.
    chances = [0.2 / 1.0, 0.7 / 0.8, 0.1 / 0.1]
    wanted = -(np.array([0.5, 0.3, 0.2]) * np.log(chances)).sum()
    assert float(losses.plackett_luce(logs(q), logs(p), 1.0)) == pytest.approx(wanted, rel=1e-5)
    sharper = -(np.array([0.25, 0.09, 0.04]) / 0.38 * np.log(chances)).sum()
    assert float(losses.plackett_luce(logs(q), logs(p), 0.5)) == pytest.approx(sharper, rel=1e-5)
    slope = jax.grad(losses.plackett_luce)(logs(q), logs([0.6, 0.4, 0.0]), 1.0)
    assert np.isfinite(slope).all()


def test_rankings_have_no_best_policy():
    """Claim: the weighted ranking loss is convex and translation-invariant in the student's logits,
    subsumes weighted cross-entropy and transfers the teacher's full ranking (arXiv 2506.12542).

    Holds: but no policy attains its infimum of 0, and policies that rank as the target does and
    come close to it have all their mass on one outcome.
    """
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(6))

    def loss(logits):
        return float(losses.plackett_luce(jnp.asarray(logits, DTYPE), logs(p), 1.0))

    for one, two in rng.normal(size=(20, 2, 6)):
        assert loss((one + two) / 2) <= (loss(one) + loss(two)) / 2 + 32 * eps(DTYPE)
        assert loss(one) == pytest.approx(loss(one + 3), rel=1e-4)
        # The first choice is among all: the cross-entropy of the likeliest outcome.
        first = p.max() * (logsumexp(one) - one[p.argmax()])
        order = np.argsort(-p)
        later = [p[order[k]] * (logsumexp(one[order[k:]]) - one[order[k]]) for k in range(1, 6)]
        assert loss(one) == pytest.approx(first + sum(later), rel=1e-4)
    ranks = np.argsort(np.argsort(p)).astype(float)
    values = [loss(steepness * ranks) for steepness in (1.0, 3.0, 9.0)]
    assert values[0] > values[1] > values[2]
    assert values[2] < 1e-3 < loss(np.log(p))
    assert softmax(9 * ranks).max() > 0.999


@pytest.mark.slow
def test_the_share_of_reverse_kl_at_which_a_mode_is_lost():
    """Claim: weighing forward against reverse KL balances the confidence of a student (arXiv
    2212.12965).

    Holds with a correction: of two equal modes a product of laws keeps both up to a share of
    reverse KL of 2/g, g the log-odds of a mode, and beyond it only one. From the abstract, whose
    weights are by sample and not constant.
    """
    joint = np.array([0.48, 0.02, 0.02, 0.48])
    gap = np.log(0.48 / 0.02)
    policy = MarkovPolicy(2, 2, 0)
    shares = 2 / gap + np.array([-0.1, 0.1, 0.3])
    run = imitate(
        policy,
        starts_of(policy, 6),
        logs(joint),
        losses.kl_mixture,
        parameter=shares[:, None],
        learning_rate=0.1,
        num_steps=500,
        history_every=None,
    )
    best = np.exp(np.asarray(run.log_probs)).max(-1)
    np.testing.assert_allclose(best[0], 0.25, atol=2e-3)
    assert (best[1] > 0.45).all()
    assert (best[2] > best[1]).all()
    # Along products of a law (a, 1 − a) with itself, where both modes are on the diagonal.
    a = np.linspace(0.5, 0.999, 4000)[:, None]
    law = np.concatenate([a * a, a * (1 - a), a * (1 - a), (1 - a) ** 2], 1)
    for share, found in zip(shares[1:], best[1:], strict=True):
        values = share * law * np.log(law / joint) - (1 - share) * joint * np.log(law)
        assert found == pytest.approx(law[values.sum(1).argmin(), 0], abs=3e-3)


def transported(p, q, cost, epsilon):
    """``OT_ε`` by a thousand iterations in NumPy."""
    kernel, v = np.exp(-cost / epsilon), np.ones(len(q))
    for _ in range(1000):
        u = 1 / (kernel @ (q * v))
        v = 1 / (kernel.T @ (p * u))
    return epsilon * (p @ np.log(u) + q @ np.log(v))


@pytest.mark.slow
def test_sinkhorn_is_what_plain_iterations_give():
    pytest.importorskip("ott")
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), 2)
    cost = np.square(np.subtract.outer(np.arange(5.0), np.arange(5.0))) / 4
    distance, divergence = (losses.sinkhorn(cost, debiased=x) for x in (False, True))
    between = transported(p, q, cost, 0.5)
    own = (transported(p, p, cost, 0.5) + transported(q, q, cost, 0.5)) / 2

    @jax.jit
    def found(logits):
        apart = jax.value_and_grad(lambda x: divergence(jax.nn.log_softmax(x), logs(q), 0.5))
        return distance(logits, logs(q), 0.5), *apart(logits)

    far, apart, slope = map(np.asarray, found(logs(p)))
    assert far == pytest.approx(between, rel=5e-3)
    assert apart == pytest.approx(between - own, rel=2e-2)
    step = 1e-3
    for k in range(5):
        moved = [softmax(np.log(p) + s * step * np.eye(5)[k]) for s in (1, -1)]
        up, down = (transported(x, q, cost, 0.5) - transported(x, x, cost, 0.5) / 2 for x in moved)
        assert slope[k] == pytest.approx((up - down) / (2 * step), abs=5e-3)


@pytest.mark.slow
def test_transport_averages_the_modes_of_a_target_that_cannot_be_held():
    """Claim: KL averages modes and reverse KL collapses on one, against which distillation by the
    Sinkhorn distance is proposed (arXiv 2402.17110).

    Holds with a correction: both do with modes at aaaa and bbbb and policies of independent letters
    (0.25 of the mass on both modes, 0.99 on one); but least transport by the number of letters that
    differ, at an ε of one letter, averages as KL does. From the abstract; the paper compares whole
    batches.
    """
    pytest.importorskip("ott")
    texts = np.array(list(itertools.product(range(2), repeat=4)))
    target = np.full(16, 1e-3)
    target[[0, -1]] = 0.7, 0.3
    target /= target.sum()
    cost = (texts[:, None] != texts[None]).sum(-1)
    policy = MarkovPolicy(2, 4, 0)
    starts, options = starts_of(policy, 4), {"learning_rate": 0.2, "history_every": None}
    kept = {}
    for name, loss, parameter in (
        ("kl", losses.kl_mixture, [[0.0], [1.0]]),
        ("transport", losses.sinkhorn(cost), [[1.0]]),
    ):
        run = imitate(
            policy,
            starts,
            logs(target),
            loss,
            parameter=jnp.asarray(parameter, DTYPE),
            num_steps=80,
            **options,
        )
        kept[name] = np.exp(np.asarray(run.log_probs))[..., [0, -1]].sum(-1)
    share = (target[:, None] * (texts == 0)).sum(0)[0]
    np.testing.assert_allclose(kept["kl"][0], share**4 + (1 - share) ** 4, atol=5e-3)
    assert (kept["kl"][1] > 0.97).all()
    assert (kept["transport"] < 0.35).all()


def test_without_its_library_transport_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ott.geometry.geometry", None)
    with pytest.raises(ImportError, match=r'pip install "kltarget\[transport\]"'):
        losses.sinkhorn(np.ones((2, 2)))


def test_what_a_fit_refuses():
    policy = MarkovPolicy(2, 2, 0)
    starts, target = starts_of(policy, 3), logs([0.25] * 4)
    options: dict[str, Any] = {"learning_rate": 0.1, "num_steps": 1}
    name: Any = "kl"
    with pytest.raises(TypeError, match="loss must be a function"):
        imitate(policy, starts, target, name, **options)
    with pytest.raises(ValueError, match="loss must give one number"):
        imitate(policy, starts, target, lambda q, p, x: q - p, **options)
    one = jax.tree.map(lambda x: x[0], starts)
    with pytest.raises(ValueError, match=r"starts has leaves of shapes \[\(2, 1, 2\)\]"):
        imitate(policy, one, target, losses.kl_mixture, **options)
    with pytest.raises(ValueError, match=r"start \(3,\), parameter \(2,\) do not broadcast"):
        imitate(policy, starts, target, losses.kl_mixture, parameter=[0.1, 0.2], **options)
    with pytest.raises(ValueError, match="cost has shape"):
        losses.sinkhorn(np.ones(3))
