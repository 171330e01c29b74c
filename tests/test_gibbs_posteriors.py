"""Laws of models given data, and of data given a model: targets of −risk and of the loss.

A Gibbs posterior ``prior·e^{−n·risk}`` is the target of reward −risk at β = 1/n; the worst case in
a ball of KL around the data is the target of the loss, at the β of that radius. Models and data are
finite, so that all samples are listed by their counts, or Gaussian, with closed forms and draws.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from oracles import eps
from scipy.integrate import quad
from scipy.optimize import brentq, minimize_scalar
from scipy.special import logsumexp, rel_entr
from scipy.stats import multinomial, ncx2, norm

import kltarget as kt
from kltarget import frontier
from kltarget.targets import greedy_limit

DTYPE = np.float64 if jax.config.jax_enable_x64 else np.float32
LAW = np.array([0.5, 0.3, 0.2])  # of one datum
LOSS = np.array(
    [[0.1, 0.9, 0.4], [0.8, 0.0, 0.3], [0.5, 0.5, 0.5], [0.0, 1.0, 1.0], [0.3, 0.2, 0.6]]
)
PRIOR = np.array([0.3, 0.1, 0.3, 0.2, 0.1])


N = 12
COUNTS = np.array([(a, b, N - a - b) for a in range(N + 1) for b in range(N + 1 - a)])
"""All samples of N data, by how often they hold each, and the probability of each sample."""
CHANCE = multinomial.pmf(COUNTS, N, LAW)


def target(reward, weights, beta):
    with np.errstate(divide="ignore"):
        log_ref = np.log(weights).astype(DTYPE)
    return kt.solve(kt.Objective(np.asarray(reward, DTYPE), log_ref, np.asarray(beta, DTYPE)))


def float64(x):
    return np.asarray(x, np.float64)


def kl(p, q):
    return rel_entr(p, q).sum(-1)


def close(got, want, scale=1e3):
    np.testing.assert_allclose(float64(got), want, rtol=scale * eps(DTYPE), atol=scale * eps(DTYPE))


@pytest.mark.precise
def test_the_posterior_minimises_the_bound_on_its_risk():
    """Claim: of all laws of a model, the Gibbs posterior minimises the empirical risk plus the KL
    to the prior over λ (arXiv 2110.11216).

    Holds: it is the target of −risk at β = 1/λ, and the minimum is that target's value, negated.
    """
    cvxpy = pytest.importorskip("cvxpy")
    risk = COUNTS @ LOSS.T / N
    found, row = target(-risk, PRIOR, 1 / N), 40
    law = cvxpy.Variable(5)
    bound = risk[row] @ law + cvxpy.sum(cvxpy.kl_div(law, PRIOR)) / N
    least = cvxpy.Problem(cvxpy.Minimize(bound), [cvxpy.sum(law) == 1]).solve(cvxpy.CLARABEL)
    np.testing.assert_allclose(float64(found.probs)[row], law.value, atol=1e-4)
    np.testing.assert_allclose(-float(found.value[row]), least, rtol=1e-6)


def test_the_bound_holds_for_all_posteriors_at_once():
    """Claim: with probability 1 − δ of the sample, of all posteriors at once, the risk exceeds the
    empirical risk by at most λ/8n + (KL to the prior + log 1/δ)/λ, for losses in [0, 1]
    (arXiv 2110.11216).

    Holds: the worst excess beyond the KL is the value of a target, of the reward risk − empirical
    risk at β = 1/λ; counted over all samples here.
    """
    risk, empirical = LOSS @ LAW, COUNTS @ LOSS.T / N
    others, exceeded = np.random.default_rng(0).dirichlet(np.ones(5), 50), []
    for rate in (0.5, N, 4 * N):
        worst = float64(target(risk - empirical, PRIOR, 1 / rate).value)
        # Each datum is independent: what the exponential of the worst excess is on average.
        each = np.exp(rate * (risk[:, None] - LOSS) / N) @ LAW
        close(CHANCE @ np.exp(rate * worst), each**N @ PRIOR, 1e4)
        for delta in (0.5, 0.1, 0.01):
            allowed = rate / (8 * N) + np.log(1 / delta) / rate
            assert CHANCE @ (worst > allowed) <= delta
        excess = others @ (risk - empirical).T - kl(others, PRIOR)[:, None] / rate
        assert (excess <= worst + 100 * eps(DTYPE)).all()
        exceeded.append(CHANCE @ (worst > rate / (8 * N)))
    # Some samples do exceed what is left without the price of confidence.
    assert max(exceeded) > 0.1


def information(chance, laws):
    """Mutual and lautum information of sample and model."""
    mean = chance @ laws
    return chance @ kl(laws, mean), chance @ kl(mean, laws)


@pytest.mark.precise
@pytest.mark.parametrize("independent", [True, False])
def test_the_gap_of_the_posterior_is_symmetrised_information(independent):
    """Claim: the expected generalisation error of the Gibbs algorithm at inverse temperature γ is
    the symmetrised KL information of its input and output, over γ (arXiv 2107.13656).

    Holds: for any law of samples, independent data or not; β times that information in terms of
    the target of −risk.
    """
    chance = CHANCE if independent else np.random.default_rng(0).dirichlet(np.ones(len(COUNTS)))
    empirical = COUNTS @ LOSS.T / N
    for beta in (0.02, 1 / N, 3.0):
        laws = float64(target(-empirical, PRIOR, beta).probs)
        gap = (chance[:, None] * laws * (chance @ empirical - empirical)).sum()
        close(gap, beta * sum(information(chance, laws)))
        assert gap > 0


def test_the_gap_is_bounded_by_mutual_information():
    """Claim: for losses in [0, 1] the expected generalisation error is at most the square root of
    the mutual information of n data and the model over 2n (arXiv 1705.07809).

    Holds: and for a Gibbs posterior, whose error is β times more than that information, it is then
    at most 1/2nβ, which at β = 1/n says nothing: ½ where the error is below 0.1.
    """
    empirical = COUNTS @ LOSS.T / N
    for beta in (0.01, 1 / N, 1.0, 5.0):
        laws = float64(target(-empirical, PRIOR, beta).probs)
        gap = (CHANCE[:, None] * laws * (LOSS @ LAW - empirical)).sum()
        mutual, _ = information(CHANCE, laws)
        assert 0 < gap <= np.sqrt(mutual / (2 * N))
        assert gap <= 1 / (2 * N * beta)
        assert beta != 1 / N or gap < 0.1
    # Not only of Gibbs posteriors: the best on the sample, ties to the first.
    best = np.eye(5)[empirical.argmin(-1)]
    gap = (CHANCE[:, None] * best * (LOSS @ LAW - empirical)).sum()
    assert 0 < gap <= np.sqrt(information(CHANCE, best)[0] / (2 * N))


def regret(models, prior):
    """Expected log-loss of the mixture of models beyond the truth's, per datum, and posteriors."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log_loss = np.where(COUNTS[:, None] > 0, COUNTS[:, None] * -np.log(models), 0).sum(-1) / N
    posterior = target(-log_loss, prior, 1 / N)
    return CHANCE @ (COUNTS @ np.log(LAW) / N - float64(posterior.value)), posterior


def test_regret_is_bounded_by_the_mass_of_a_ball():
    """Claim: the regret of the Bayesian mixture under log-loss is governed not by the size of the
    class of models but by the prior mass of those within a KL of the truth (arXiv 2506.07661).

    Holds: it is at most ε + log(1/mass of the ball)/n for any ε; below all of these is −J* of a
    target, of the reward −KL at β = 1/n, and copies of models change neither.
    """
    steps = np.arange(9) / 8
    models = np.array([(a, b, 1 - a - b) for a, b in itertools.product(steps, steps) if a + b <= 1])
    prior = np.random.default_rng(0).dirichlet(np.ones(len(models)))
    apart = kl(LAW, models)
    near, order = apart <= 0.05, np.argsort(apart)
    assert np.isinf(apart).any()
    found, posterior = regret(models, prior)
    sequences = (prior * np.prod(models ** COUNTS[:, None], -1)).sum(-1)
    close(found, CHANCE @ (COUNTS @ np.log(LAW) - np.log(sequences)) / N, 1e4)
    sizes = np.arange(1, 92)
    tilts = target(-apart, prior, 1 / sizes)
    close(-tilts.value, -logsumexp(-sizes[:, None] * apart, b=prior, axis=-1) / sizes)
    balls = (apart[order] - np.log(np.cumsum(prior[order])) / sizes[:, None]).min(-1)
    assert (-float64(tilts.value) < balls).all()
    assert 0 < found < -float(tilts.value[N - 1])
    # What the ball has in the prior, in tilts by the KL, in the posterior of an average sample.
    masses = float64(tilts.probs)[:, near].sum(-1)
    assert prior[near].sum() < masses[0]
    assert (np.diff(masses) > 0).all()
    inside = CHANCE @ float64(posterior.probs)[:, near].sum(-1)
    assert inside > prior[near].sum()
    # A class that is larger by copies, or by as much prior mass far away.
    close(regret(np.tile(models, (2, 1)), np.tile(prior / 2, 2))[0], found)
    more = np.concatenate([models, np.tile([0.02, 0.02, 0.96], (len(models), 1))])
    diluted = np.concatenate([prior / 2, np.full(len(models), 0.5 / len(models))])
    assert found < regret(more, diluted)[0] < found + np.log(2) / N


LOSSES, WEIGHTS = np.array([0.0, 1.0, 0.5, 0.2, 1.0]), np.array([0.4, 0.1, 0.2, 0.25, 0.05])


def worst_case(losses, radius):
    """The law of the data in a ball of KL that has the highest expected loss."""
    objective = kt.Objective(losses, np.log(WEIGHTS).astype(DTYPE), 1.0)
    beta = frontier.beta_for(objective, kl=radius)
    return kt.solve(kt.Objective(losses, objective.log_ref, beta))


@pytest.mark.precise
def test_worst_cases_in_a_ball_are_targets_of_the_loss():
    """Claim: the law of the data with the highest expected loss within a relative entropy of a
    reference is a Gibbs law, and the only one (arXiv 2312.12236, abstract).

    Holds with a correction: where the ball leaves out the worst data alone; from a radius of
    −log(their mass) on every law on the worst data that is in the ball is worst, the Gibbs laws'
    limit at β → 0 among them, which no β gives.
    """
    cvxpy = pytest.importorskip("cvxpy")
    law = cvxpy.Variable(5)
    size = cvxpy.Parameter(nonneg=True)
    ball = [cvxpy.sum(law) == 1, cvxpy.sum(cvxpy.kl_div(law, WEIGHTS)) <= size]
    programme = cvxpy.Problem(cvxpy.Maximize(LOSSES @ law), ball)
    losses = LOSSES.astype(DTYPE)
    for radius in (0.05, 0.5, 1.5):
        size.value = radius
        highest = programme.solve(cvxpy.CLARABEL)
        found = worst_case(losses, radius)
        np.testing.assert_allclose(float(found.expected_reward), highest, rtol=2e-6)
        np.testing.assert_allclose(float64(found.probs), law.value, atol=1e-4)
        # The dual: β log E[e^{loss/β}] + β·radius is least at this β, where it is the same risk.
        dual = minimize_scalar(
            lambda b, rho=radius: b * logsumexp(LOSSES / b, b=WEIGHTS) + b * rho,
            bounds=(1e-2, 50),
            method="bounded",
            options={"xatol": 1e-10},
        )
        np.testing.assert_allclose(float(found.objective.beta), dual.x, rtol=1e-4)
        close(found.value + found.objective.beta * radius, dual.fun, 1e4)
        # What a model is to descend: the loss of each datum by its worst-case weight.
        slopes = jax.grad(lambda *x: worst_case(*x).expected_reward, (0, 1))(losses, DTYPE(radius))
        close(slopes[0], float64(found.probs), 1e4)
        close(slopes[1], float(found.objective.beta), 1e4)
    radius = 2.5
    with pytest.raises(ValueError, match=r"kl=2\.5 is not reached"):
        worst_case(losses, radius)
    limit = float64(greedy_limit(found.objective).probs)
    several = [limit, np.eye(5)[1], np.array([0, 0.8, 0, 0, 0.2])]
    size.value = radius
    assert programme.solve(cvxpy.CLARABEL) == pytest.approx(1.0, abs=1e-6)
    for each in several:
        assert kl(each, WEIGHTS) <= radius
        assert each @ LOSSES == pytest.approx(1.0)


MU, SIGMA = np.array([1.0, 0.5, -0.4]), 1.3
"""Classes y = ±1 lie at N(yμ, σ²), the loss of a classifier w is −y w·x."""


def within(draws, want, sigmas=4.0):
    """That the mean of draws is ``want``, by its standard error."""
    error = draws.std(ddof=1) / np.sqrt(len(draws))
    assert abs(draws.mean() - want) < sigmas * error, (draws.mean(), want, error)


@pytest.mark.broad
def test_posteriors_of_gaussian_classifiers():
    width, size, num = 0.7, 6, 4000
    beta = 1 / size
    rng = np.random.default_rng(0)
    labels = rng.choice([-1.0, 1.0], (num, size, 1))
    points = labels * MU + SIGMA * rng.normal(size=(num, size, 3))
    means = (labels * points).mean(1)
    prior = kt.GaussianMixture([0.0], [[0.0] * 3], [width**2], covariance_type="spherical")
    reward = kt.mixtures.QuadraticReward(np.zeros((3, 3), DTYPE), means.astype(DTYPE))
    posterior = kt.mixtures.tilt(prior, reward, beta)
    close(posterior.mixture.means[:, 0], width**2 * means / beta)
    drawn = float64(posterior.sample(key=jax.random.key(0), num_samples=1)[0])
    # β times the symmetrised information of a Gaussian channel from the sample to w.
    symmetrised = 3 * width**2 * SIGMA**2 / (size * beta**2)
    within((drawn * (means - MU)).sum(-1), beta * symmetrised)
    # w and a new y·x are normal; in units of their own spreads their product is the difference of
    # the squares of half their sum and half their difference, which are independent.
    spread = np.hypot(width, width**2 * SIGMA / (np.sqrt(size) * beta))
    ours, theirs = width**2 * MU / beta / spread, MU / SIGMA
    plus, minus = (np.sum((ours + sign * theirs) ** 2) / 2 for sign in (1, -1))
    wrong, _ = quad(lambda t: ncx2.pdf(t, 3, minus) * ncx2.cdf(t, 3, plus), 0, np.inf)
    lengths = np.linalg.norm(drawn, axis=-1)
    within(norm.cdf(-drawn @ MU / (SIGMA * lengths)), wrong)


@pytest.mark.broad
def test_worst_cases_of_a_gaussian_classifier():
    weights, radius = np.array([0.8, 0.1, 0.3]), 0.3
    size = SIGMA * np.linalg.norm(weights)
    margin = weights @ MU / size
    data = kt.GaussianMixture([0.0], MU[None], [SIGMA**2], covariance_type="spherical")
    loss = kt.mixtures.QuadraticReward(np.zeros((3, 3), DTYPE), -weights.astype(DTYPE))
    moved = kt.mixtures.tilt(data, loss, size / np.sqrt(2 * radius))
    close(moved.divergence_value, radius)
    highest = size * (np.sqrt(2 * radius) - margin)
    close(moved.expected_reward, highest)
    close(moved.mixture.means[0] @ weights.astype(DTYPE), -highest)
    # Samples of the data and their own worst cases, of the linear loss and of that of 0 and 1.
    margins = (MU + SIGMA * np.random.default_rng(0).normal(size=(20, 2000, 3))) @ weights
    flat = np.full(2000, -np.log(2000.0), DTYPE)
    wrong = norm.cdf(-margin)

    def beyond(rate):
        return rel_entr([rate, 1 - rate], [wrong, 1 - wrong]).sum() - radius

    most_wrong = brentq(beyond, wrong, 1 - 1e-9)
    for losses, want in ((-margins, highest), (margins < 0, most_wrong)):
        objective = kt.Objective(losses.astype(DTYPE), flat, 1.0)
        beta = frontier.beta_for(objective, kl=radius)
        worst = kt.solve(kt.Objective(objective.reward, flat, beta))
        within(float64(worst.expected_reward), want)
    # Moving the classes as far makes fewer errors than what is worst for errors.
    assert wrong < norm.cdf(highest / size) < most_wrong
