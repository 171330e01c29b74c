"""Problems from the ends of every range, many at a time, and what no answer to them may violate."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import oracles
import pytest
from oracles import DTYPES, INF, X64, eps

import kltarget as kt

pytestmark = pytest.mark.precise

DTYPE = DTYPES[0]
FAILURES = 0xFFF0
WRITTEN = kt.FDivergence(lambda u: u * jnp.log(jnp.where(u > 0, u, 1)) - u + 1, name="written KL")
DIVERGENCES = {case.id: case.divergence for case in oracles.CASES}
DIVERGENCES |= {"alpha-8": kt.Alpha(8.0), "alpha-20": kt.Alpha(20.0), "tsallis-4": kt.Tsallis(4.0)}
DIVERGENCES |= {"total-variation": kt.TotalVariation(), "written": WRITTEN}
NUM, SIZE = 64, 5


def plain(rng, size):
    return rng.normal(size=size), rng.normal(size=size), 10 ** rng.uniform(-2, 1)


def tiny_beta(rng, size):
    return rng.normal(size=size), rng.normal(size=size), 10 ** rng.uniform(-12, -6)


def huge_beta(rng, size):
    return rng.normal(size=size), rng.normal(size=size), 10 ** rng.uniform(6, 12)


def deep(rng, size):
    weights = -rng.uniform(0, 800, size=size)
    weights[rng.integers(size)] = 0
    return rng.normal(size=size), weights, 10 ** rng.uniform(-2, 1)


def tied(rng, size):
    return rng.choice([0.0, 0.5, 1.0], size), 3 * rng.normal(size=size), 10 ** rng.uniform(-3, 1)


def forbidden(rng, size):
    reward, weights, beta = tied(rng, size)
    reward[rng.integers(size)] = -INF
    weights[rng.integers(size)] = -INF
    return reward, weights, beta


def offset(rng, size):
    reward, weights, beta = plain(rng, size)
    return 1e6 + np.round(reward * 64) / 64, weights, beta


def alone(rng, size):
    reward, weights, beta = plain(rng, size)
    weights[1:] = -INF
    return reward, weights, beta


REGIMES = (plain, tiny_beta, huge_beta, deep, tied, forbidden, offset, alone)


def problems(regime, dtype, seed=0):
    rng, rows = np.random.default_rng(seed), []
    while len(rows) < NUM:
        reward, weights, beta = regime(rng, SIZE)
        if not np.any((reward > -INF) & (weights > -INF)):
            continue
        rows.append((reward, oracles.log_normalised(weights, np.float64), beta))
    reward, log_ref, beta = (np.array(x).astype(dtype) for x in zip(*rows, strict=True))
    # Best outcomes that the reference lacks stay out of it: condensation has tests of its own.
    reward = np.where(np.isneginf(log_ref), dtype.type(-INF), reward)
    return reward, log_ref, beta


@functools.partial(jax.jit, static_argnames="measure")
def answers(reward, log_ref, beta, divergence, policies, measure=False):
    objective = kt.Objective(reward, log_ref, beta, divergence, measure=measure)
    target = kt.solve(objective)
    numbers = {name: getattr(target, name) for name in ("log_probs", "multiplier", "status")}
    measures = ("value", "expected_reward", "divergence_value")
    numbers |= {name: getattr(target, name) for name in measures}
    numbers["own_gap"] = target.gap(target.log_probs)
    numbers["gaps"] = [target.gap(x) for x in policies]
    numbers["values"] = [objective.value(x) for x in policies]
    return numbers


def policies_of(reward, log_ref, dtype):
    rng = np.random.default_rng(1)
    possible = np.isfinite(reward) & np.isfinite(log_ref)
    drawn = np.where(possible, rng.normal(size=reward.shape), -INF)
    restricted = np.where(possible, log_ref.astype(np.float64), -INF)
    return [oracles.log_normalised(x, np.float64).astype(dtype) for x in (drawn, restricted)]


def answers_of_one(reward, log_ref, beta, divergence, policy):
    """By the program of the many: one more outcome, which nothing has, and equal rows."""
    row = [np.append(x, [-INF] * (SIZE - len(x))).astype(DTYPE) for x in (reward, log_ref, policy)]
    reward, log_ref, policy = (np.tile(x, (NUM, 1)) for x in row)
    beta = np.full(NUM, beta, DTYPE)
    a = answers(reward, log_ref, beta, divergence, [policy, policy])
    return jax.tree.map(lambda x: np.asarray(x)[0], a)


@pytest.mark.quick_only("tied-forward-kl", "tiny_beta-total-variation")
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("regime", REGIMES, ids=lambda x: x.__name__)
def test_no_answer_is_visibly_wrong(regime, divergence):
    if divergence == "written" and regime is deep:
        pytest.skip("a generator of one's own is known at ratios only that floats hold")
    reward, log_ref, beta = problems(regime, DTYPE)
    policies = policies_of(reward, log_ref, DTYPE)
    a = jax.tree.map(np.asarray, answers(reward, log_ref, beta, DIVERGENCES[divergence], policies))
    failed = (a["status"] & FAILURES) != 0
    if divergence == "written":
        # Known at ratios only that floats hold: what it cannot solve it says.
        assert failed.mean() < 0.3
        a = jax.tree.map(lambda x: x[~failed], a)
        reward, log_ref, beta = reward[~failed], log_ref[~failed], beta[~failed]
        policies = [x[~failed] for x in policies]
    else:
        assert not failed.any()
    probs = np.exp(a["log_probs"].astype(np.float64))
    rounding = 64 * eps(DTYPE)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=rounding)
    assert not np.any(probs[np.isneginf(reward) | np.isneginf(log_ref)])
    finite = np.isfinite(a["value"])
    wide = [a[x].astype(np.float64) for x in ("value", "expected_reward", "divergence_value")]
    value, gain, cost = (np.where(finite, x, 0) for x in wide)
    level = np.abs(np.where(np.isfinite(reward), reward, 0)).max(-1)
    scale = level + beta * (1 + np.abs(cost))
    assert np.all(np.abs(value - (gain - beta * cost)) <= rounding * scale)
    assert np.all(cost >= -rounding)
    assert not np.isnan(a["value"]).any()
    assert np.all(a["own_gap"] <= rounding * scale)
    # Bars of 32 roundings in log π are as many in log u, and (α − 1) times as many in a slope; of
    # logarithms in the hundreds no more than 1,024 are allowed all the same.
    order = max([2.0, *(abs(x - 1) for x in jax.tree.leaves(DIVERGENCES[divergence]))])
    for gap, other, policy in zip(a["gaps"], a["values"], policies, strict=True):
        logs = np.stack([a["log_probs"], log_ref, policy])
        deepest = np.abs(np.where(np.isfinite(logs), logs, 0)).max((0, -1)).astype(np.float64)
        digits = np.minimum(1024, 32 * (1 + order * deepest)) * eps(DTYPE)
        assert np.all(gap >= 0)
        known = finite & np.isfinite(other)
        short = np.where(known, value - np.where(known, other, 0), 0)
        other_scale = scale + np.where(known, np.abs(other), 0)
        assert np.all(short >= -rounding * other_scale)
        if divergence == "written":
            continue  # where a target's own ratio underflows, its slope there is not known
        apart = np.abs(np.where(known & np.isfinite(gap), gap - short, 0))
        assert np.isfinite(gap[known & (np.abs(short) < 1e30)]).all()
        with np.errstate(over="ignore"):
            close = apart <= digits * (other_scale + np.abs(short))
        assert close.all(), (reward[~close][0], log_ref[~close][0], beta[~close][0])


@pytest.mark.broad
@pytest.mark.quick_only("alpha-3")
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_measures_of_any_mass_have_distributions_as_targets(divergence):
    beta = np.array([0.01, 0.1, 1, 10], DTYPE)
    measures = ((3.0, 6), (5.2, 6), (25.0, 50), (1e-3, 50), (1.8e3, 2_000))
    # Of one length, the rest being impossible, so that one program solves them all.
    rows = [(mass, size, wrong) for mass, size in measures for wrong in (0, size // 3)]
    reward, log_ref = np.full((2, len(rows), 1, 2_000), -INF, DTYPE)
    for row, (mass, size, wrong) in enumerate(rows):
        reward[row, :, :size] = np.arange(size) >= wrong
        log_ref[row, :, :size] = np.log(mass / size)
    objective = kt.Objective(reward, log_ref, beta, DIVERGENCES[divergence], measure=True)
    probs = np.exp(kt.solve(objective).raise_if_failed().log_probs)
    for row, (_, size, wrong) in enumerate(rows):
        case = f"{rows[row]}: mass, outcomes, wrong ones"
        atol = 2e-4 if not X64 else 1e-10
        np.testing.assert_allclose(probs[row].sum(-1), 1, atol=atol, err_msg=case)
        right = probs[row, :, wrong:size]
        same = right[:, :1] * np.ones_like(right)
        np.testing.assert_allclose(right, same, rtol=1e-3, err_msg=case)


@pytest.mark.parametrize("shift", [-1000.0, -64.0, 64.0, 128.0, 1024.0])
def test_under_reverse_kl_the_total_mass_of_a_measure_does_not_matter(shift):
    """e^1024 is beyond every float, and e^128 beyond those of 32 bits."""
    reward = np.array([1.0, 1.0, 0.0], DTYPE)
    log_ref = np.array([-1.5, -4.0, -0.25], DTYPE)
    objective = kt.Objective(reward, log_ref + shift, 0.125, measure=True)
    target = kt.solve(objective).raise_if_failed()
    plain = np.array([-1.5, -4.0, -8.25])
    total = np.logaddexp.reduce(plain)
    np.testing.assert_allclose(target.log_probs, plain - total, rtol=32 * eps(DTYPE))
    multiplier = 1 + 0.125 * (total + shift)
    np.testing.assert_allclose(target.multiplier, multiplier, rtol=32 * eps(DTYPE))


STEEP = [
    # α, reward, log_ref, beta, target
    (2.5, [0.5, 0, 1], [-0.62681949, -0.97681946, -2.41681957], 0.02, [5.9144e-4, 0, 0.99940856]),
    (
        3.0,
        [0.5, 0.5, 1],
        [-1.26269269, -0.48269263, -2.30269265],
        0.01,
        [3.38e-5, 7.37e-5, 0.999892],
    ),
    (
        4.0,
        [0, 1, 0],
        [-0.99156487, -1.91156483, -0.73156482],
        0.01,
        [4.46295e-3, 0.989749, 5.788e-3],
    ),
    (
        8.0,
        [0.5, 0, 1],
        [-0.97326076, -0.73326075, -1.95326078],
        0.05,
        [0.693272, 0.019452, 0.287276],
    ),
]


@pytest.mark.broad
@pytest.mark.quick_only("3.0-reward1-log_ref1-0.01-probs1")
@pytest.mark.parametrize(("alpha", "reward", "log_ref", "beta", "probs"), STEEP)
def test_next_to_a_steep_truncation(alpha, reward, log_ref, beta, probs):
    log_ref = np.array(log_ref)
    problem = (np.array(reward, DTYPE), log_ref.astype(DTYPE), DTYPE.type(beta))
    target = np.exp(kt.solve(kt.Objective(*problem, kt.Alpha(alpha))).log_probs)
    np.testing.assert_allclose(target, probs, rtol=2e-3, atol=1e-12)
    batch = answers_of_one(reward, log_ref, beta, kt.Alpha(alpha), log_ref)["log_probs"]
    np.testing.assert_allclose(np.exp(batch[:3]), target, rtol=8 * eps(DTYPE), atol=0)
    tsallis = answers_of_one(reward, log_ref, beta / alpha, kt.Tsallis(alpha), log_ref)
    np.testing.assert_allclose(np.exp(tsallis["log_probs"][:3]), target, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "alpha", [4.0, 8.0, *(pytest.param(x, marks=pytest.mark.slow) for x in (2.5, 20.0))]
)
def test_steep_members_in_arbitrary_precision(alpha):
    """By a search for the multiplier, in as many digits as truncation swallows."""
    rng, num = np.random.default_rng(7), 16
    reward = rng.choice([0, 0.1, 0.3, 0.5, 1], size=(num, 4)) + rng.normal(size=(num, 4)) * (
        np.arange(num)[:, None] % 2
    )
    weights = rng.normal(size=(num, 4)) * rng.choice([1, 3, 30], size=(num, 1))
    reward, log_ref = reward.astype(DTYPE), oracles.log_normalised(weights, DTYPE)
    beta = (10 ** rng.uniform(-3, 1.5, size=num)).astype(DTYPE)
    got = np.asarray(kt.solve(kt.Objective(reward, log_ref, beta, kt.Alpha(alpha))).log_probs)
    gamma = mp.mpf(alpha) - 1
    with mp.workdps(40 + int(20 * alpha)):
        for row in range(num):
            r, b = [mp.mpf(float(x)) for x in reward[row]], mp.mpf(float(beta[row]))
            q = [mp.exp(mp.mpf(float(x))) for x in log_ref[row]]
            best = max(range(len(r)), key=r.__getitem__)

            def masses(x, r=r, q=q, b=b, best=best):
                """By the logarithm of 1 + γ·s of the best outcome, which is at least its mass."""
                inside = [max(mp.exp(x) - gamma * (r[best] - y) / b, 0) for y in r]
                return [y * x ** (1 / gamma) for x, y in zip(inside, q, strict=True)]

            def excess(x, masses=masses):
                return mp.log(sum(masses(x)))

            level = oracles.increasing_root(excess, mp.mpf(0), -gamma * mp.log(q[best]))
            want = [mp.log(x) if x else -mp.inf for x in masses(level)]
            # What is cut off or next to it: no mass that a float of 1 would notice.
            want = [x if x > -60 else -mp.inf for x in want]
            shown = np.where(got[row] > -60, got[row], -INF)
            assert oracles.bar_errors(shown, want, DTYPE).max() <= 32, (row, shown, want)


@pytest.mark.broad
def test_what_is_no_distribution_is_not_returned_as_one():
    """A generator whose slope is flat away from 1 has no inverse that a search could use."""
    huber = kt.FDivergence(
        lambda u: jnp.where(jnp.abs(u - 1) < 0.5, (u - 1) ** 2 / 2, jnp.abs(u - 1) / 2 - 0.125),
        slope_at_infinity=0.5,
        name="Huber",
    )
    reward, log_ref = np.array([1.0, 0.0, 0.5], DTYPE), np.log(np.full(3, 1 / 3)).astype(DTYPE)
    target = kt.solve(kt.Objective(reward, log_ref, np.array([0.1, 10.0], DTYPE), huber))
    failed = (np.asarray(target.status) & int(kt.Status.NOT_CONVERGED)) != 0
    sums = np.asarray(target.probs).sum(-1)
    assert np.isnan(sums[failed]).all()
    np.testing.assert_allclose(sums[~failed], 1, atol=1e-3)


def test_total_variation_of_best_outcomes_whose_mass_no_float_holds():
    tv, deep = kt.TotalVariation(), -129.28125 * (8 if X64 else 1)
    reward, log_ref = np.array([1.0, 0.0], DTYPE), np.array([deep, 0.0], DTYPE)
    kept = kt.solve(kt.Objective(reward, log_ref, DTYPE.type(83), tv))
    assert kept.status == 0
    np.testing.assert_array_equal(kept.log_probs, log_ref)
    log_ref = np.array([0.0, -3000.5, -2000.25], DTYPE)
    shared = kt.solve(kt.Objective(np.array([0, 1, 1], DTYPE), log_ref, DTYPE.type(0.05), tv))
    np.testing.assert_allclose(shared.log_probs, [-INF, -1000.25, 0.0])


@pytest.mark.broad
@pytest.mark.parametrize("divergence", [kt.TotalVariation(), kt.ReverseKL(), kt.ChiSquared()])
def test_the_limit_of_large_beta_is_that_of_targets(divergence):
    log_ref = oracles.log_normalised(np.log([0.5, 0.2, 0.3]), DTYPE)
    problem = kt.Objective(np.array([-INF, 1.0, 0.5], DTYPE), log_ref, DTYPE.type(1e9), divergence)
    limit, target = kt.targets.reference_limit(problem), kt.solve(problem)
    # Targets differ from their limit by a few times the spread over beta.
    np.testing.assert_allclose(limit.probs, target.probs, rtol=64 * eps(DTYPE) + 4e-9, atol=0)


@pytest.mark.quick_only("divergence0")
@pytest.mark.parametrize("divergence", [kt.ForwardKL(), kt.NeymanChiSquared(), kt.Alpha(-0.5)])
def test_an_infinite_cost_of_a_mass_that_underflows_is_infinite(divergence):
    deep = -97.5 * (8 if X64 else 1)
    reward = np.array([0.0, 0.0, -INF, -INF], DTYPE)
    log_ref = np.array([-90.0, -85.0, deep, 0.0], DTYPE)
    log_probs = answers_of_one(reward, log_ref, 1.9, divergence, log_ref)["log_probs"][:4]
    a = answers_of_one(reward, log_ref, 1.9, divergence, log_probs)
    assert (a["value"], a["divergence_value"], a["values"][0]) == (-INF, INF, -INF)


@pytest.mark.broad
@pytest.mark.quick_only("reverse-kl-1e-05", "chi-squared-kl-1e-07")
@pytest.mark.parametrize("beta", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("name", ["reverse-kl", "forward-kl", "chi-squared", "chi-squared-kl"])
def test_gaps_at_small_beta(name, beta):
    case = oracles.BY_ID[name]
    reward = np.array([1, 0, 0, 1], DTYPE)
    log_ref = oracles.log_normalised(np.log([0.5, 0.34, 0.11, 0.05]), DTYPE)
    gap = answers_of_one(reward, log_ref, beta, case.divergence, log_ref)["gaps"][0]
    want = oracles.exact_gap(log_ref, reward, log_ref, DTYPE.type(beta), case.generator)
    assert gap == pytest.approx(float(want), rel=64 * eps(DTYPE))


@pytest.mark.slow
def test_gaps_to_targets_on_tiny_masses():
    log_ref, policy = np.array([0.0, -120.0], DTYPE), np.log(np.array([0.473, 0.527], DTYPE))
    reward = np.array([1.0, 0.0], DTYPE)
    for name in ("jensen-shannon", "hellinger", "forward-kl", "alpha-0.5"):
        case = oracles.BY_ID[name]
        gap = answers_of_one(reward, log_ref, 1, case.divergence, policy)["gaps"][0]
        want = oracles.exact_gap(policy, reward, log_ref, 1.0, case.generator)
        assert gap == pytest.approx(float(want), rel=64 * eps(DTYPE)), name


@pytest.mark.parametrize("depth", [1e2, 1e4, 1e5, 1e6, 1e7, 3.3e7])
def test_kl_to_logarithms_that_are_large(depth):
    p, q = np.log(np.array([0.3, 0.7])), np.array([-depth, 0.0])
    got = kt.kl(p.astype(DTYPE), q.astype(DTYPE))
    want = 0.3 * (np.log(0.3) + depth) + 0.7 * np.log(0.7)
    assert got == pytest.approx(want, rel=8 * eps(DTYPE))


@pytest.mark.parametrize("divergence", [kt.Tsallis(1.5), kt.ChiSquaredKL(), kt.ReverseKL()])
def test_divergences_of_nearly_equal_distributions_are_not_negative(divergence):
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.5, 0.3, 0.2]) * (1 + 1e-5 * np.array([1, -1, -1]))
    found = divergence(np.log(p).astype(np.float32), np.log(q).astype(np.float32))
    curvature = {"Tsallis KL": 1.5, "χ² + KL": 2.0, "reverse KL": 1.0}[divergence.name]
    assert found == pytest.approx(curvature * 0.5 * 1e-10, rel=0.05)


TIES = {
    "best": np.array([1.0, 1.0, 0.2]),
    "others": np.array([0.2, 0.2, 1.0]),
    "all": np.full(3, 0.5),
}
# Of multiples of other members, whose formulas are the same, one: its factor has a slope too.
MULTIPLES = ("neyman", "tsallis-0.5", "tsallis-1.5", "tsallis-4")
SMOOTH = [x for x in DIVERGENCES if x not in (*MULTIPLES, "total-variation")]


def weighed(reward, beta, divergence):
    log_ref, w = np.log(np.array([0.5, 0.13, 0.37])), np.array([0.3, -1.2, 0.7])
    log_probs = kt.solve(kt.Objective(reward, log_ref, beta, divergence)).log_probs
    return (w * jnp.where(log_probs > -INF, log_probs, 0)).sum()


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None))
@functools.partial(jax.jacfwd, has_aux=True)
def hessians_and_gradients(reward, beta, divergence):
    gradient = jax.grad(weighed)(reward, beta, divergence)
    return gradient, gradient


@pytest.mark.skipif(not X64, reason="second differences need their digits")
@pytest.mark.quick_only("forward-kl")
@pytest.mark.parametrize("divergence", SMOOTH)
def test_second_derivatives_at_ties(divergence):
    # Where truncation is far: at its kink there is no second derivative.
    steps = 1e-5 * np.eye(3)
    rewards = [x + y for x in TIES.values() for y in (np.zeros((1, 3)), steps, -steps)]
    found = hessians_and_gradients(np.concatenate(rewards), 0.9, DIVERGENCES[divergence])
    hessians, gradients = (np.asarray(x) for x in found)
    for row, tie in enumerate(TIES):
        at = 7 * row
        up, down = gradients[at + 1 : at + 4], gradients[at + 4 : at + 7]
        want = (up - down) / 2e-5
        np.testing.assert_allclose(hessians[at], want, rtol=1e-4, atol=1e-6, err_msg=tie)


@pytest.mark.skipif(not X64, reason="second differences need their digits")
def test_second_derivative_in_alpha_at_one():
    log_ref, reward = np.log(np.array([0.5, 0.2, 0.3])), np.array([0.1, 1.0, 0.6])

    @jax.jit
    @jax.value_and_grad
    @jax.grad
    def first(alpha):
        return kt.solve(kt.Objective(reward, log_ref, 0.4, kt.Alpha(alpha))).log_probs[1]

    want = (float(first(1 + 1e-5)[0]) - float(first(1 - 1e-5)[0])) / 2e-5
    assert first(1.0)[1] == pytest.approx(want, rel=1e-4)


@pytest.mark.broad
@pytest.mark.quick_only("forward-kl")
@pytest.mark.parametrize("name", ["forward-kl", "jensen-shannon", "hellinger", "neyman"])
def test_reverse_derivatives_where_the_best_outcome_is_rare(name):
    weights = np.array([[-x, 0.0, -1.0] for x in (30, 90, 130, 200, 400, 700)])
    log_ref = oracles.log_normalised(weights, DTYPE)
    reward, beta = np.array([1.0, 0.0, 0.2], DTYPE), DTYPE.type(0.5)

    def best(reward, beta, log_ref):
        objective = kt.Objective(reward, log_ref, beta, oracles.BY_ID[name].divergence)
        return kt.solve(objective).log_probs[0]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def both(*problem):
        return jax.grad(best, (0, 1))(*problem), jax.jacfwd(best, (0, 1))(*problem)

    for x, y in zip(*both(reward, beta, log_ref), strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)


def test_flips_of_total_variation_between_modes_that_are_both_cut_off_below():
    tv = kt.Objective(
        np.array([0.1, 0, 1], DTYPE),
        oracles.log_normalised(np.log([0.2, 0.3, 0.5]), DTYPE),
        1.0,
        kt.TotalVariation(),
    )
    assert kt.flip_beta(tv, 0, 1) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.slow
def test_flips_of_modes_that_are_both_cut_off_below():
    reward = np.array([0.58618056, -0.00901252, 0.60318662, 0.96833596, -1.15063447], DTYPE)
    log_ref = kt.normalize(
        np.array([-1.80507147, -2.10487617, -4.79448088, -0.40624309, -3.23772663], DTYPE)
    )
    modes = [0, 1, 1, 2, -1]
    at = float(kt.flip_beta(kt.Objective(reward, log_ref, 1.0, kt.Alpha(1.5)), 0, 1, modes=modes))
    beta = at * np.array([0.999, 1.001], DTYPE)
    target = kt.solve(kt.Objective(reward, log_ref, beta, kt.Alpha(1.5)))
    below, above = np.asarray(kt.log_odds(target, 0, 1, modes=modes))
    assert below < 0 < above


@pytest.mark.parametrize("name", ["reverse-kl", "forward-kl", "chi-squared", "total-variation"])
def test_a_reward_that_is_no_number_is_seen_in_a_long_row(name):
    """Wherever it stands, and where the reference has no mass."""
    wrong = [(3, np.nan), (8199, np.nan), (3, np.inf), (8199, np.inf)]
    reward = np.zeros((2 * len(wrong) + 1, 8200), DTYPE)
    log_ref = np.full(reward.shape, -np.log(8199), DTYPE)
    log_ref[:, 0] = -np.inf
    for i, (at, value) in enumerate(2 * wrong):
        reward[i, at] = value
        if i >= len(wrong):
            log_ref[i, [0, at]] = log_ref[i, [at, 0]]

    @jax.jit
    def solved(reward):
        return kt.solve(kt.Objective(reward, log_ref, 1.0, divergence=kt.divergences.named(name)))

    target = solved(reward)
    assert (np.asarray(target.status)[:-1] & int(kt.Status.INVALID_REWARD)).all()
    assert not int(target.status[-1]) & FAILURES
    assert np.isnan(target.log_probs[:-1]).all()
    assert np.isfinite(target.log_probs[-1, 1:]).all()
