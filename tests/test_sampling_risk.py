"""What samples buy, against every sample there is, and against samples drawn."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DTYPES, eps
from scipy.optimize import brentq
from scipy.special import gammaln

import kltarget as kt
from kltarget.frontier import best_of_n
from kltarget.projections import moment_projection, sampling_risk

DTYPE = DTYPES[0]
P = np.array([0.5, 0.3, 0.2])
RHO = np.array([0.2, 0.3, 0.5])
LEVELS = np.arange(3.0)


def risk_of(target, number, proposal=None, features=None, ref=None, **options):
    laws = {"log_proposal": proposal, "features": features, "log_ref": ref}
    given = {
        name: jnp.asarray(x if name == "features" else np.log(x), DTYPE)
        for name, x in laws.items()
        if x is not None
    }
    return sampling_risk(jnp.log(jnp.asarray(target, DTYPE)), number, **given, **options)


def every_sample(number, law):
    """All counts of three outcomes, and how likely each is."""
    ends = itertools.combinations(range(number + 2), 2)
    counts = np.array([np.diff((-1, *c, number + 2)) - 1 for c in ends])
    logs = gammaln(number + 1) - gammaln(counts + 1).sum(1) + counts @ np.log(law)
    return counts, np.exp(logs)


def kl(p, q):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0).sum(-1)


def tabular(counts, weight):
    heavy = counts * weight
    return heavy / heavy.sum(-1, keepdims=True)


def exponential(counts, weight, ref):
    """Maximum likelihood of ``ref e^{ηk}``, k the level: the tilt with the samples' mean."""
    means = tabular(counts, weight) @ LEVELS

    def tilted(eta):
        law = ref * np.exp(eta * LEVELS - max(0, 2 * eta))
        return law / law.sum()

    fits = {m: np.eye(3)[int(m)] for m in (0.0, 2.0)}
    for m in set(means) - set(fits):
        fits[m] = tilted(brentq(lambda eta, m=m: tilted(eta) @ LEVELS - m, -60, 60, xtol=1e-13))
    return np.array([fits[m] for m in means])


def rest(number, law, fits, limit, first, *, forward=False, inside=False):
    """n² times what is left of the exact risk after its first order."""
    counts, chances = every_sample(number, law)
    fitted = fits(counts)
    chances = chances * (fitted > 0).all(1) if inside else chances
    each = kl(limit, fitted) if forward else kl(fitted, limit)
    risk = (chances * np.where(chances > 0, each, 0)).sum() / chances.sum()
    return (risk - first / (2 * number)) * number**2


def extrapolated(one, two, three):
    """The limit of ``a + b/n + c/n²`` from n, 2n, 4n."""
    return (8 * three - 6 * two + one) / 3


WAYS = {
    "samples": (P, lambda c: tabular(c, 1), P, {"target": P}),
    "weighted": (RHO, lambda c: tabular(c, P / RHO), P, {"target": P, "proposal": RHO}),
}


@pytest.mark.parametrize("way", WAYS)
def test_risks_of_all_laws_are_those_of_every_sample(way):
    law, fits, limit, arguments = WAYS[way]
    found = risk_of(number=100.0, **arguments)
    first = float(found.effective_parameters)
    counted = [rest(n, law, fits, limit, first) for n in (40, 80, 160)]
    exact = (P / law).sum() - (P**2 / law).sum()
    assert first == pytest.approx(exact, rel=32 * eps(DTYPE))
    tolerance = max(0.02, 160**2 * eps(DTYPE))
    assert float(found.second_order) == pytest.approx(extrapolated(*counted), rel=tolerance)
    value = first / 200 + float(found.second_order) / 1e4
    assert float(found.divergence_value) == pytest.approx(value, rel=32 * eps(DTYPE))
    assert float(found.missing_mass) == pytest.approx((P * (1 - law) ** 100).sum(), rel=1e-3)


@pytest.mark.broad
@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("proposal", [None, RHO], ids=["samples", "weighted"])
def test_risks_of_a_family_that_misses_the_target_are_those_of_every_sample(direction, proposal):
    ref = np.array([0.2, 0.6, 0.2])
    arguments = {"features": LEVELS[:, None], "ref": ref, "direction": direction}
    found = risk_of(P, 100, proposal, **arguments)
    limit = np.exp(np.asarray(found.log_probs, float))
    wanted = moment_projection(np.log(ref), LEVELS[:, None], [P @ LEVELS])
    np.testing.assert_allclose(limit, wanted.probs, rtol=1e-5)
    law = P if proposal is None else proposal
    forward = direction == "forward"
    limit = np.asarray(exponential(P[None], 1.0, ref)[0])
    first = float(found.effective_parameters)
    counted = [
        rest(
            n,
            law,
            lambda c: exponential(c, P / law, ref),
            limit,
            first,
            forward=forward,
            inside=forward,
        )
        for n in (30, 60, 120)
    ]
    tolerance = max(0.03, 120**2 * 4 * eps(DTYPE))
    assert float(found.second_order) == pytest.approx(extrapolated(*counted), rel=tolerance)
    assert int(found.num_parameters) == 1


def test_the_two_ways_of_a_family_agree():
    """That of all laws, as a sum over outcomes, and as an exponential family of indicators."""
    p, rho = (np.random.default_rng(k).dirichlet(np.ones(5), 2) for k in (0, 1))
    for direction in ("reverse", "forward"):
        own = risk_of(p, 50, rho, direction=direction)
        family = risk_of(p, 50, rho, np.eye(5)[:, :-1], direction=direction)
        assert own.num_parameters.tolist() == family.num_parameters.tolist() == [4, 4]
        for name in ("effective_parameters", "second_order", "effective_samples"):
            one, two = (np.asarray(getattr(x, name)) for x in (own, family))
            np.testing.assert_allclose(one, two, rtol=2e4 * eps(DTYPE), err_msg=name)


def test_numbers_of_samples_have_the_risk_that_was_asked_for():
    p = np.random.default_rng(0).dirichlet(np.ones(6), 3)
    for direction in ("reverse", "forward"):
        risk = risk_of(p, 50, direction=direction)
        wanted = jnp.asarray([0.2, 0.02, 1e-3], DTYPE)
        needed = risk.num_samples_for(wanted)
        again = risk_of(p, needed, direction=direction)
        np.testing.assert_allclose(again.divergence_value, wanted, rtol=100 * eps(DTYPE))
    assert float(risk_of(np.array([1.0]), 5).num_samples_for(0.1)) == 0
    assert float(risk_of(np.array([1.0]), 5).bayes_error) == 0.5
    # 1/2n − 1/n² is at most 1/16.
    one, less = (jnp.full(3, x, DTYPE) for x in (1.0, -1.0))
    bent = dataclasses.replace(risk, effective_parameters=one, second_order=less)
    assert np.isnan(bent.num_samples_for(0.07)).all()
    np.testing.assert_allclose(bent.num_samples_for(0.0625), 4, rtol=1e-3)
    far = jnp.asarray([-1.0, 0.5, 5.0], DTYPE)
    rates = dataclasses.replace(risk, divergence_value=far).bayes_error
    np.testing.assert_allclose(rates, [np.nan, 0.25, 0.0], atol=1e-6)
    with pytest.raises(ValueError, match="divergence must be above 0"):
        risk.num_samples_for(0.0)


@pytest.mark.parametrize("outcomes", [4, 40])
def test_the_criterion_of_dimension_and_number(outcomes):
    """Claim: whether n samples are enough for a model of p parameters can be told from both, by
    the risk to second order and what it implies for the Bayes error rate (arXiv 2105.08947).

    Holds with a correction: enough they are, but of n = p/16ε² and a little more, which Pinsker's
    inequality asks for at an error of ½ − ε, two thirds would do. From the abstract; the
    inequality is ours, and the two laws are the projection and the fit.
    """
    error, rng = 0.05, np.random.default_rng(outcomes)
    law = rng.dirichlet(np.full(outcomes, 5.0))
    risk = risk_of(law, 100)
    needed = float(risk.num_samples_for(8 * error**2))
    assert needed == pytest.approx((outcomes - 1) / (16 * error**2), rel=0.15)
    for share, enough in ((1.0, True), (0.7, True), (0.5, False)):
        fits = rng.multinomial(int(share * needed), law, size=4000) / int(share * needed)
        rates = (1 - np.abs(fits - law).sum(-1) / 2) / 2
        sure = 4 * rates.std() / 4000**0.5
        assert (rates.mean() - sure > 0.5 - error) == enough, (share, rates.mean())
    at = risk_of(law, int(needed))
    assert float(at.bayes_error) == pytest.approx(0.5 - error, abs=1e-4)
    assert rates.mean() < 0.5 - error


def test_the_risk_of_maximum_likelihood_to_second_order():
    """Claim: the estimation risk, the expected KL from the information projection to the model at
    the maximum likelihood estimate, expands to order 1/n² with a first term of p/2n where the
    model holds the truth (arXiv 2105.08947).

    Holds with a correction: on finitely many outcomes that risk is infinite, as samples may miss
    one; the expansion is that of samples which show all. The opposite KL has its own second term
    and is finite. From the abstract; the terms are derived here.
    """
    # Of three outcomes by hand: 5/12 Σ1/p − A/2 + 1/12, and (Σ1/p − 1)/12 in reverse.
    inverse = (1 / P).sum()
    for direction, second in (
        ("forward", 5 / 12 * inverse - 3 / 2 + 1 / 12),
        ("reverse", (inverse - 1) / 12),
    ):
        found = risk_of(P, 1000, direction=direction)
        assert float(found.effective_parameters) == pytest.approx(2, rel=1e-5)
        assert float(found.second_order) == pytest.approx(second, rel=1e-4)
        options = {"forward": direction == "forward", "inside": direction == "forward"}
        counted = [rest(n, P, lambda c: tabular(c, 1), P, 2, **options) for n in (60, 120, 240)]
        assert extrapolated(*counted) == pytest.approx(second, rel=0.02)
    assert rest(60, P, lambda c: tabular(c, 1), P, 2, forward=True) == np.inf


def test_the_price_of_stored_support():
    """Claim: no policy on the N stored rollouts comes closer to the optimum than β log 1/π*(S),
    S the outcomes that are stored, whatever it is trained for (arXiv 2605.02469, Theorem 6).

    Holds: the optimum restricted to S attains it, and self-normalised weights cost more. From the
    abstract and a summary of the theorem.
    """
    task, beta = kt.tasks.load("words"), 0.1
    target = kt.solve(task, beta=beta)
    draws = jax.random.categorical(jax.random.key(0), task.log_ref, shape=(200,))
    counts = jnp.bincount(draws, length=len(task.log_ref)).astype(target.log_probs.dtype)
    stored = counts > 0
    price = -beta * float(jax.nn.logsumexp(jnp.where(stored, target.log_probs, -jnp.inf)))
    best = jax.nn.log_softmax(jnp.where(stored, target.log_probs, -jnp.inf))
    assert float(target.gap(best)) == pytest.approx(price, rel=1e-3)
    weights = jnp.log(counts) + task.reward / beta
    fitted = jax.nn.log_softmax(weights)
    assert float(target.gap(fitted)) > 1.05 * price
    for key in jax.random.split(jax.random.key(1), 5):
        noise = jax.random.normal(key, best.shape)
        other = jax.nn.log_softmax(jnp.where(stored, best + noise, -jnp.inf))
        assert float(target.gap(other)) > price


def test_weighted_samples_are_worth_what_their_squared_weights_say_where():
    """Claim: what samples of the reference are worth to a one-shot weighted fit is governed by the
    effective sample size N/E[w²] (arXiv 2605.02469, Theorem 7).

    Holds with a correction: as an order of magnitude of N. A tabular policy's first-order risk is
    Σw(1 − π*)/2N: where 3 of 100 answers are right and β is 0.2 samples are worth 29 times what
    E[w²] says. For the success rate alone they are worth more than that exactly if the optimum's
    is above ½. From the abstract and a summary of the theorem.
    """
    ref, reward = np.full(100, 0.01), (np.arange(100) < 3) * 1.0
    for beta, more in ((0.2, True), (1.0, False)):
        target = ref * np.exp(reward / beta)
        target = target / target.sum()
        weight = target / ref
        by_weights = 1000 / (target @ weight)
        found = risk_of(target, 1000.0, ref)
        wanted = (weight * (1 - target)).sum()
        assert float(found.effective_parameters) == pytest.approx(wanted, rel=1e-4)
        rate = risk_of(target, 1000.0, ref, reward[:, None])
        assert (float(rate.effective_samples) > by_weights) == more == (target @ reward > 0.5)
        if more:
            assert float(found.effective_samples) / by_weights == pytest.approx(29, abs=0.5)
            counts = np.random.default_rng(0).multinomial(1000, ref, size=2000)
            exact = kl(tabular(counts, weight), target).mean()
            assert float(found.divergence_value) == pytest.approx(exact, rel=0.02)
            assert 99 / (2 * by_weights) > 25 * exact


@pytest.mark.broad
def test_sft_on_samples_of_best_of_n_costs_what_the_expansion_says():
    rng = np.random.default_rng(0)
    masses = np.exp(np.asarray(best_of_n(np.arange(6.0), np.full(6, -np.log(6)), 2).log_probs))
    law = masses.astype(float) / masses.sum(dtype=float)
    np.testing.assert_allclose(law, np.arange(1, 12, 2) / 36, rtol=1e-5)
    drawn = kl(rng.multinomial(200, law, size=200_000) / 200, law)
    found = risk_of(law, 200.0)
    error = drawn.std() / np.sqrt(len(drawn))
    assert float(found.divergence_value) == pytest.approx(drawn.mean(), abs=3e-5)
    assert abs(2.5 / 200 - drawn.mean()) > 1e-4 > 5 * error


def test_differentiable_and_traced():
    def value(log_target):
        return sampling_risk(jax.nn.log_softmax(log_target), 50.0).divergence_value

    logits = jnp.log(jnp.asarray(P, DTYPE))
    slope = jax.grad(value)(logits)
    step = 1e-2
    for k in range(3):
        moved = [float(value(logits.at[k].add(s * step))) for s in (1, -1)]
        assert float(slope[k]) == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=2e-5)
    masked = jnp.log(jnp.asarray([*P, 0.0], DTYPE))
    assert float(sampling_risk(masked, 50).divergence_value) == pytest.approx(
        float(value(logits)), rel=1e-4
    )
    assert np.isfinite(jax.grad(lambda x: sampling_risk(x, 50).divergence_value)(masked)).all()
    assert jax.jit(sampling_risk)(masked, jnp.arange(1, 4)).divergence_value.shape == (3,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be 1 or more"),
        ({"log_target": np.log(P) + 1}, "log_target"),
        ({"log_proposal": np.array([0.0, -np.inf, -np.inf])}, "log_proposal must have"),
        ({"features": np.ones((2, 1))}, r"features has shape \(2, 1\)"),
        ({"log_ref": np.log(P)}, "give its features too"),
        ({"direction": "both"}, "direction must be one of"),
        ({"log_proposal": np.log(P[:2])}, "same last axis"),
    ],
)
def test_what_it_refuses(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        sampling_risk(**{"log_target": np.log(P), "num_samples": 5, **options})
