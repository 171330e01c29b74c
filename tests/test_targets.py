"""The closed forms against the reference bank, arbitrary precision, convex solvers and laws."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import oracles
import pytest
from oracles import BY_ID, CASES, DTYPES, INF, eps

import kltarget as kt
from kltarget import targets

# Closed forms and their derivatives are worth their digits in double precision too.
pytestmark = pytest.mark.precise

cases = pytest.mark.parametrize("case", oracles.slow_look_alikes(CASES))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
TV = kt.TotalVariation()

BAR = 32
"""Largest error of a log-probability, in units of eps·(1 + |log p|)."""


def log(x, dtype=np.float64):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(x, np.float64)).astype(dtype)


divergence_value = jax.jit(lambda divergence, *policies: divergence(*policies))


def one_row(reward, log_ref, beta, divergence, dtype):
    return oracles.solve_rows([(reward, log_ref, beta)], divergence, dtype)[0]


BANK = {
    "alpha1": kt.Alpha(1.0),
    "js": kt.JensenShannon(),
    "hellinger": kt.SquaredHellinger(),
    "neyman": kt.NeymanChiSquared(),
    "pearson": kt.ChiSquared(),
    "chi2kl": kt.ChiSquaredKL(),
    "tv": TV,
}


def bank_divergence(case):
    inputs = case["inputs"]
    if case["section"] in "23":
        return kt.ReverseKL() if case["section"] == "2" else kt.ForwardKL()
    if "q" in inputs:
        return kt.Tsallis(inputs["q"])
    if "alpha" in inputs:
        return kt.Alpha(inputs["alpha"])
    return BANK[inputs.get("f", "tv")]


def bank_row(case, dtype):
    inputs = case["inputs"]
    if "log_ref_unnormalised" in inputs:
        log_ref = oracles.log_normalised(np.array(inputs["log_ref_unnormalised"]), dtype)
    else:
        log_ref = log(inputs["ref"], dtype)
    return np.array(inputs["R"], dtype), log_ref, dtype.type(inputs["beta"])


AT_THRESHOLD = "chi2-trunc-b0.345"
"""Its β is where an outcome reaches 0, on which side of it is up to the rounding of the inputs."""

TARGETS = [
    name
    for name in oracles.reference_ids(
        "rkl-", "fkl-", "alpha-", "f-", "tsallis-", "chi2-trunc-", "tv-", "recession-"
    )
    if oracles.reference(name)["section"] in "234"
    and {"pi", "log_pi", "pi_on_support", "log_odds"} & set(oracles.reference(name)["expected"])
    and "ref_best" not in oracles.reference(name)["inputs"]
    and name != AT_THRESHOLD
]


@dtypes
@pytest.mark.parametrize("name", oracles.slow_look_alikes(TARGETS))
def test_targets_of_the_bank(name, dtype):
    case = oracles.reference(name)
    expected = case["expected"]
    divergence = bank_divergence(case)
    reward, log_ref, beta = bank_row(case, dtype)
    got = one_row(reward, log_ref, beta, divergence, dtype)
    # Decimal inputs are rounded, and scaled rewards pass their rounding on.
    finite = np.asarray(reward[reward > -INF], np.float64)
    ulps = 32 * (1 + np.ptp(finite) / float(beta))
    check = functools.partial(oracles.assert_reference, name, dtype=dtype, ulps=ulps)
    best = finite.max()

    if "pi" in expected:
        check(got.probs, "pi")
        zeros = np.asarray(expected["pi"]) == 0
        assert np.all(got.log_probs[zeros] == -INF)
        truncated = np.any(zeros & (log_ref > -INF) & (reward > -INF))
        assert bool(got.status & kt.Status.TRUNCATED) == truncated
    if "log_pi" in expected:
        check(got.log_probs, "log_pi")
    if "pi_on_support" in expected:
        check(got.probs[:3], "pi_on_support")
        check(got.probs[3:].sum(), "atom_total")
        np.testing.assert_allclose(got.probs[3], got.probs[4], rtol=4 * eps(dtype))
        assert got.status == kt.Status.CONDENSED | kt.Status.NOT_UNIQUE
    if "log_odds" in expected:
        check(got.log_probs[0] - got.log_probs[1], "log_odds")
    if "value" in expected:
        check(got.value, "value")
    if "log_Z" in expected and "value" in expected:
        check(got.multiplier / beta, "log_Z")
    if "lam_u_log_u" in expected:
        check(got.multiplier - beta, "lam_u_log_u")
    if "lam" in expected:
        check(got.multiplier, "lam")
    if "Lambda" in expected:
        check(got.multiplier + beta, "Lambda")
    if "atom" in expected:
        check(got.probs[3], "atom")
        assert bool(got.status & kt.Status.CONDENSED) == (expected["atom"] > 0)
    if "support_size" in expected:
        assert np.count_nonzero(got.probs) == expected["support_size"]
    if "mean_reward" in expected:
        check(got.probs[reward > -INF] @ finite, "mean_reward")
    if "kl" in expected or "divergence" in expected:
        cost = divergence_value(divergence, got.log_probs, log_ref)
        key = "kl" if "kl" in expected else "divergence"
        # A small divergence is the square of a small difference, which rounding disturbs.
        check(cost, key, ulps=ulps * (1 + expected[key] ** -0.5))
    if "t" in expected and case["section"] == "3":
        t = (float(got.multiplier) + float(beta) - best) / float(beta)
        want = expected["t"]
        assert t == pytest.approx(want, rel=1e-9, abs=8 * eps(dtype) * (1 + best / float(beta)))


@dtypes
def test_at_a_truncation_threshold_of_the_bank(dtype):
    case = oracles.reference(AT_THRESHOLD)
    got = one_row(*bank_row(case, dtype), kt.Alpha(2.0), dtype)
    oracles.assert_reference(AT_THRESHOLD, got.probs, "pi", dtype)
    oracles.assert_reference(AT_THRESHOLD, got.multiplier, "lam", dtype)


@dtypes
@pytest.mark.parametrize("name", oracles.reference_ids("fkl-two-"))
def test_two_outcomes_of_the_bank(name, dtype):
    case = oracles.reference(name)
    m, gap = case["inputs"]["ref_best"], case["inputs"]["D"]
    got = one_row([1.0, 0.0], log([m, 1 - m]), 1 / gap, kt.ForwardKL(), dtype)
    np.testing.assert_allclose(
        got.probs, case["expected"]["pi"], rtol=max(1e-10, 64 * eps(dtype)), atol=0
    )


@dtypes
def test_condensation_starts_at_the_critical_beta(dtype):
    """Claim: the target of forward KL is β π_ref / (Λ − r) (arXiv 2007.12509).

    Holds with a correction: below a critical β a better outcome without reference mass takes
    what that leaves (condensation).
    """
    case = oracles.reference("fkl-offsupport-critical")
    critical = case["expected"]["beta_condense"]
    reward, log_ref = case["inputs"]["R"], log(case["inputs"]["ref"])
    for factor, condensed in ((1 - 1e-5, True), (1 + 1e-5, False)):
        got = one_row(reward, log_ref, critical * factor, kt.ForwardKL(), dtype)
        assert bool(got.status & kt.Status.CONDENSED) == condensed
        assert (got.probs[3] > 0) == condensed


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_expansion_at_large_beta_of_the_bank(alpha):
    case = oracles.reference("expansion-p5")
    dtype = DTYPES[-1]
    ref, first = np.array(case["inputs"]["ref"]), np.array(case["expected"]["first"])
    second = np.array(case["expected"][f"second_alpha{alpha:.0f}"])
    for beta in (30.0, 120.0):
        got = one_row(case["inputs"]["R"], log(ref), beta, kt.Alpha(alpha), dtype).probs
        rest = got - ref - first / beta - second / beta**2
        assert np.max(np.abs(rest)) < 0.2 / beta**3 + 32 * eps(dtype)


TRUNCATING = ("chi-squared", "tsallis-1.5", "alpha-1+2^-10", "alpha-1.5", "alpha-3")
NEAR_ONE = ("alpha-1-2^-5", "alpha-1+2^-10")


def allowance(case, log_ref, want):
    """What the two documented weak spots add to the bar, per outcome, in the bar's units.

    Probabilities sum to 1 to within eps. Where an outcome is about to be truncated, or a rare one
    of high reward to take mass over, a share in that moves the logarithm of what is left of it by
    ``κ_i/Σπκ``, κ = d log u/d s. And next to reverse KL an α-divergence's log ratio is
    ``log(1 + (α − 1)s)/(α − 1)``, so that rounding the sum costs it relative digits: more than the
    bar where it nearly cancels the reference's logarithm.
    """
    size, log_p = np.zeros(len(log_ref)), np.array([float(x) for x in want.log_probs])
    on = log_p > -1e300
    if case.id in NEAR_ONE:
        log_ratio = np.where(on, log_p - np.where(on, log_ref, 0), 0)
        size = size + 2.5 * np.abs(log_ratio) / (1 + np.where(on, np.abs(log_p), 0))
    if case.id in (*TRUNCATING, *NEAR_ONE):
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            u = np.exp(np.where(on, log_p - log_ref, 0.0))
            kappa = np.where(on, 1 / (u * np.asarray(case.divergence.f_second(u), np.float64)), 0)
        condition = kappa / np.sum(np.exp(log_p) * np.where(on, kappa, 0))
        size = size + np.where(on, 2 * condition / (1 + np.abs(log_p)), 0)
    return size


def accuracy(case, dtype, problems):
    """The largest error over problems, in units of the bar, with the problem it occurs in."""
    worst, where = 0.0, None
    solved = oracles.solve_rows(problems, case.divergence, dtype)
    for problem, got in zip(problems, solved, strict=True):
        assert not got.status & 0xFFF0, (kt.Status(got.status), problem)
        want = oracles.exact_target(*problem, case.generator)
        errors = oracles.bar_errors(got.log_probs, want.log_probs, dtype)
        if errors.max() > BAR:
            errors = np.maximum(errors - allowance(case, problem[1].astype(np.float64), want), 0)
        assert bool(got.status & kt.Status.CONDENSED) == want.condensed, problem
        if errors.max() > worst:
            worst, where = float(errors.max()), problem
    return worst, where


@dtypes
@cases
def test_accuracy_bar(case, dtype):
    worst, problem = accuracy(case, dtype, oracles.random_problems(0, 48, dtype))
    assert worst <= BAR, problem


@pytest.mark.slow
@dtypes
@cases
def test_accuracy_bar_on_many_problems(case, dtype):
    worst, problem = accuracy(case, dtype, oracles.random_problems(1, 192, dtype))
    assert worst <= BAR, problem


def corners(dtype):
    """Problems at the ends of every range, all of them in one."""
    deep = oracles.log_normalised(np.array([-800.0, 0.0, -1.0, -400.0]), np.float64)
    flat = log(np.full(4, 0.25))
    rewards = {
        "best-deep": [1, 0, 0.5, 0.25],
        "tied": [1, 1, 0, 1],
        "near-tie": [1, 1 - 2.0**-20, 0, 0.5],
        "far": [1e6 + 1, 1e6, 1e6 + 0.5, 1e6],
        "forbidden": [-INF, 1, 0, -INF],
        "constant": [3, 3, 3, 3],
    }
    return [
        (np.array(r, dtype), q.astype(dtype), dtype.type(beta))
        for r in rewards.values()
        for q in (deep, flat)
        for beta in (1e-12, 1e-3, 1.0, 1e12)
    ]


@dtypes
@cases
def test_accuracy_bar_at_the_corners(case, dtype):
    worst, problem = accuracy(case, dtype, corners(dtype))
    assert worst <= BAR, problem


@dtypes
@cases
def test_multiplier_and_value_in_arbitrary_precision(case, dtype):
    problems = [(r, q, b) for r, q, b in oracles.random_problems(7, 48, dtype) if 1e-3 <= b <= 1e3]
    for problem, got in zip(
        problems, oracles.solve_rows(problems, case.divergence, dtype), strict=True
    ):
        reward, log_ref, beta = problem
        want = oracles.exact_target(*problem, case.generator)
        with mp.workdps(800):
            value = mp.mpf(0)
            for p, r, q in zip(want.probs, reward, log_ref, strict=True):
                mass = mp.exp(mp.mpf(float(q))) if q > -INF else mp.mpf(0)
                value += p * mp.mpf(float(r)) if p > 0 else 0
                if mass > 0:
                    f = case.generator.f(p / mass) if p > 0 else case.generator.f_zero()
                    value -= mp.mpf(float(beta)) * mass * f
                elif p > 0:
                    value -= mp.mpf(float(beta)) * p * case.generator.slope()
            finite = np.abs(reward[reward > -INF]).max()
            s = abs((want.multiplier - finite) / mp.mpf(float(beta)))
            size = float(finite + beta * (1 + min(s, mp.mpf(10) ** 300)))
        largest = float(jnp.finfo(dtype).max)
        if value < -largest:
            assert got.value == -INF, problem
        else:
            assert abs(float(got.value) - float(value)) <= 64 * eps(dtype) * size, problem
        if want.multiplier < -largest:
            assert got.multiplier == -INF, problem
        else:
            error = abs(float(got.multiplier) - float(want.multiplier))
            assert error <= 64 * eps(dtype) * size, problem


LAW_BASES = 6


def law_bases(dtype):
    """Problems whose rewards, shifted or scaled, stay exact in every float type."""
    rng = np.random.default_rng(11)
    bases = []
    for k in range(LAW_BASES):
        reward = rng.integers(-16, 17, size=8) / 16
        reward[[1, 5]] = reward[0]  # equal rewards, not always the best
        weights = rng.normal(size=8) * (1, 4, 30)[k % 3]
        if k % 2:
            weights[7] = -np.inf
        beta = 2.0 ** rng.integers(-5, 4)
        bases.append((reward, oracles.log_normalised(weights, dtype), beta))
    return bases


def close(got, want, dtype, factor=2 * BAR, case=None, log_ref=None):
    """Equal log-probabilities up to rounding, magnified where rounded inputs say so."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    both = (got == -INF) & (want == -INF)
    with np.errstate(invalid="ignore"):
        error = np.where(both, 0, np.abs(got - want) / (1 + np.abs(want)))
    bar = np.full(got.shape, factor * eps(dtype))
    if case is not None and float(case.divergence.f_prime(0.0)) > -INF:
        # Next to a truncation a rounding of the inputs moves log u by 1/(u f″) as much.
        with np.errstate(invalid="ignore", divide="ignore"):
            u = np.exp(np.where(both, 0, want - log_ref))
        f_second = np.asarray(case.divergence.f_second(u), np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            steepest = 2 + np.asarray(case.divergence.f_prime(u.max()), np.float64)
            magnified = steepest / (u * f_second)
        bar = bar * np.where(both, 1, np.maximum(1, magnified))
    assert np.all(error <= bar), (got, want, error / eps(dtype))


@dtypes
@cases
def test_laws(case, dtype):
    order = np.array([3, 0, 7, 2, 6, 1, 5, 4])
    bases = law_bases(dtype)
    rows = []
    for reward, log_ref, beta in bases:
        merged = np.delete(log_ref, [1, 5]).astype(np.float64)
        merged[0] = np.log(np.exp(log_ref[[0, 1, 5]].astype(np.float64)).sum())
        rows += [
            (reward, log_ref, beta),
            (reward + 64, log_ref, beta),
            (reward * 4, log_ref, beta * 4),
            (reward[order], log_ref[order], beta),
            (np.delete(reward, [1, 5]), merged.astype(dtype), beta),
        ]
    solved = oracles.solve_rows(rows, case.divergence, dtype)
    for k, (_, log_ref, _) in enumerate(bases):
        base, shifted, scaled, permuted, merged = solved[5 * k : 5 * k + 5]
        close(shifted.log_probs, base.log_probs, dtype)
        close(scaled.log_probs, base.log_probs, dtype)
        close(permuted.log_probs, base.log_probs[order], dtype)
        # Outcomes of equal reward act as one, and share its probability as the reference does.
        group = np.logaddexp.reduce(base.log_probs[[0, 1, 5]].astype(np.float64))
        close(
            merged.log_probs.astype(np.float64),
            np.concatenate([[group], np.delete(base.log_probs, [0, 1, 5])]),
            dtype,
            case=case,
            log_ref=np.concatenate(
                [[np.logaddexp.reduce(log_ref[[0, 1, 5]])], np.delete(log_ref, [0, 1, 5])]
            ),
        )
        if base.log_probs[0] > -INF:
            for other in (1, 5):
                ratio = base.log_probs[other].astype(np.float64) - base.log_probs[0]
                kept = log_ref[other].astype(np.float64) - log_ref[0]
                size = 1 + np.abs(base.log_probs[[0, other]]).max() + np.abs(log_ref).min()
                assert abs(ratio - kept) <= 2 * BAR * eps(dtype) * size
        assert abs(base.probs.sum() - 1) <= 64 * eps(dtype)
        scale = 1 + abs(float(base.multiplier))
        assert (
            abs(float(shifted.multiplier) - 64 - base.multiplier) <= 256 * eps(dtype) * scale * 64
        )
        assert abs(float(scaled.value) / 4 - base.value) <= 64 * eps(dtype) * (
            scale + abs(float(base.value))
        )


@pytest.mark.quick_only(
    "forward-kl",
    "alpha-0",
    "alpha-0.5",
    "alpha-1",
    "alpha-1+2^-10",
    "alpha-1-2^-5",
    "alpha-1.5",
    "alpha-3",
    "chi-squared",
)
@dtypes
@cases
def test_limits_in_beta(case, dtype):
    bases = [(r, q, b) for r, q, b in law_bases(dtype)]
    solved = oracles.solve_rows(
        [(r, q, beta) for r, q, _ in bases for beta in (1e-12, 1e12)], case.divergence, dtype
    )
    rewards, log_refs = (np.stack(x).astype(dtype) for x in list(zip(*bases, strict=True))[:2])
    objective = kt.Objective(rewards, log_refs, dtype.type(1), case.divergence)
    greedy, reference = targets.greedy_limit(objective), targets.reference_limit(objective)
    assert greedy.log_probs.dtype == reference.log_probs.dtype == dtype
    greedy_probs = np.exp(greedy.log_probs)
    gain = (greedy_probs * np.where(greedy_probs > 0, rewards, 0)).sum(-1)
    np.testing.assert_allclose(greedy.value, gain, rtol=1e-5)
    for k in range(len(bases)):
        np.testing.assert_allclose(solved[2 * k].probs, greedy_probs[k], atol=1e-3)
        # What is left of the reward at β = 1e12 is a relative change of 1e-12.
        bar = BAR + 4e-12 / eps(dtype)
        close(solved[2 * k + 1].log_probs, reference.log_probs[k], dtype, bar)


def test_greedy_limit_keeps_the_reference_among_ties():
    log_ref = log([0.3, 0.02, 0.68])
    for divergence in (kt.ReverseKL(), kt.ForwardKL(), kt.ChiSquared()):
        limit = targets.greedy_limit(kt.Objective(np.array([1.0, 1, 0]), log_ref, 1.0, divergence))
        np.testing.assert_allclose(limit.probs, [0.9375, 0.0625, 0], rtol=1e-6)
        assert int(limit.status) == kt.Status.NOT_UNIQUE
        assert float(limit.value) == pytest.approx(1, rel=1e-6)


def test_greedy_limit_without_reference_mass():
    arguments = np.array([0.2, 0.6, 1.0, 1.5, 1.5]), log([0.5, 0.3, 0.2, 0, 0]), 1.0
    beyond = targets.greedy_limit(kt.Objective(*arguments, kt.ForwardKL()))
    np.testing.assert_allclose(beyond.probs, [0, 0, 0, 0.5, 0.5], rtol=1e-6)
    assert int(beyond.status) == kt.Status.NOT_UNIQUE | kt.Status.CONDENSED
    within = targets.greedy_limit(kt.Objective(*arguments, kt.ReverseKL()))
    np.testing.assert_allclose(within.probs, [0, 0, 1, 0, 0], rtol=1e-6)
    assert int(within.status) == 0


def test_reference_limit_drops_what_is_forbidden():
    objective = kt.Objective(np.array([0.0, -INF, 1.0]), log([0.5, 0.25, 0.25]), 1.0)
    np.testing.assert_allclose(
        targets.reference_limit(objective).probs, [2 / 3, 0, 1 / 3], rtol=1e-6
    )


@dtypes
@cases
def test_monotone_and_convex_in_beta(case, dtype):
    reward, log_ref = [0.1, 0.5, 1.0, 0.9, 0.3], log([0.4, 0.3, 0.15, 0.1, 0.05], dtype)
    betas = np.geomspace(0.01, 100, oracles.ROWS).astype(dtype)
    solved = oracles.solve_rows([(reward, log_ref, b) for b in betas], case.divergence, dtype)
    mean = np.array([row.probs @ reward for row in solved])
    # D from the probabilities in double precision, so that only solve's own error enters
    cost = np.array(
        [float(oracles.exact_divergence(row.log_probs, log_ref, case.generator)) for row in solved]
    )
    value = mean - betas.astype(np.float64) * cost
    slack = 64 * eps(dtype)
    assert np.all(np.diff(mean) <= slack)
    assert np.all(np.diff(cost) <= slack * (1 + cost[:-1]))
    # Envelope: −D is the slope of a convex J*(β), so it brackets every difference quotient.
    rise, run = np.diff(value), np.diff(betas.astype(np.float64))
    assert np.all(rise >= -cost[:-1] * run - slack * (1 + betas[1:] * (1 + cost[:-1])))
    assert np.all(rise <= -cost[1:] * run + slack * (1 + betas[1:] * (1 + cost[:-1])))


@dtypes
@cases
def test_a_single_outcome(case, dtype):
    for reward, beta in ((3.0, 0.5), (-1e6, 1e-12), (0.0, 1e12)):
        got = one_row([reward], [0.0], beta, case.divergence, dtype)
        assert got.log_probs[0] == 0
        assert got.status == 0
        assert float(got.value) == pytest.approx(reward, rel=4 * eps(dtype))


@pytest.mark.quick_only("reverse-kl", "forward-kl")
@dtypes
@pytest.mark.parametrize(
    "case",
    [BY_ID[x] for x in ("reverse-kl", "forward-kl", "jensen-shannon", "chi-squared")],
    ids=oracles.ids,
)
def test_a_million_outcomes(case, dtype):
    # Outcomes of equal reward act as one: twelve levels give the answer for all of them.
    rng = np.random.default_rng(5)
    size, levels = 1_000_000, np.linspace(0, 1, 12).astype(dtype)
    level = rng.integers(12, size=size)
    level[: size // 2] = 0  # half of the outcomes are hopeless
    log_ref = oracles.log_normalised(3 * rng.normal(size=size), dtype)
    exact = np.exp(log_ref.astype(np.float64))
    merged = np.log([np.sum(exact[level == k]) for k in range(12)])
    target = kt.solve(kt.Objective(levels[level], log_ref, dtype.type(0.05), case.divergence))
    assert not int(target.status) & 0xFFF0
    want = oracles.exact_target(levels, merged, dtype.type(0.05), case.generator)
    log_u = np.array([float(x - mp.mpf(q)) for x, q in zip(want.log_probs, merged, strict=True)])
    want_log_probs = log_ref.astype(np.float64) + log_u[level]
    got = np.asarray(target.log_probs, np.float64)
    zero = np.isneginf(want_log_probs)
    np.testing.assert_array_equal(np.isneginf(got), zero)
    error = np.abs(got[~zero] - want_log_probs[~zero]) / (1 + np.abs(want_log_probs[~zero]))
    assert error.max() <= BAR * eps(dtype)


LOG_RATIOS = {
    "forward-kl": (kt.ForwardKL(), lambda z: -np.log(z), None),
    "jensen-shannon": (kt.JensenShannon(), lambda z: -np.log(np.expm1(z)), None),
    "alpha-0.3": (kt.Alpha(0.3), lambda z: -np.log(0.7 * z) / np.longdouble(0.7), None),
    "alpha-1.5": (kt.Alpha(1.5), lambda s: 2 * np.log(np.maximum(1 + s / 2, 0)), 0),
    "chi-squared": (kt.ChiSquared(), lambda s: np.log(np.maximum(1 + s / 2, 0)), 0),
    "chi-squared-kl": (kt.ChiSquaredKL(), lambda s: lambert(s), 0),
}
"""``log (f′)⁻¹`` as it is written on paper, of the slope or of its distance to f′(∞)."""


def lambert(s):
    """The x with ``e^x + x = s``, by Newton's method from above."""
    x = np.where(s > 1, np.log(np.maximum(s, 1)), s)
    for _ in range(6):
        grown = np.exp(x)
        x = x - (grown + x - s) / (grown + 1)
    return x


@pytest.mark.quick_only("forward-kl")
@dtypes
@pytest.mark.parametrize("name", LOG_RATIOS)
def test_a_long_reference_is_not_copied_for_each_row(name, dtype):
    """With the same targets and derivatives as its copies have."""
    rng = np.random.default_rng(4)
    reward = rng.normal(size=(2, 3, 8_201)).astype(dtype)
    log_ref = oracles.log_normalised(2 * rng.normal(size=8_201), dtype)
    beta = np.array([0.1, 1e-3, 1e-7], dtype)

    def solved(log_ref):
        return kt.solve(kt.Objective.unchecked(reward, log_ref, beta, LOG_RATIOS[name][0]))

    shared, copied = solved(log_ref), solved(np.broadcast_to(log_ref, reward.shape))
    assert shared.log_probs.shape == reward.shape
    np.testing.assert_array_equal(shared.status, copied.status)
    held = np.asarray(copied.log_probs) > -30
    scale = BAR * eps(dtype) * (1 + np.abs(np.asarray(copied.log_probs)[held]))
    far = np.abs(np.asarray(shared.log_probs) - copied.log_probs)[held]
    assert (far <= scale).mean() > 0.999
    assert far.max() < 1e-3  # next to truncation
    slope = jax.grad(lambda x: jnp.sum(solved(x).probs[..., :9] ** 2))(jnp.asarray(log_ref))
    each = jax.grad(lambda x: jnp.sum(solved(x).probs[..., :9] ** 2))(
        jnp.asarray(np.broadcast_to(log_ref, reward.shape))
    )
    np.testing.assert_allclose(slope, each.sum((0, 1)), rtol=1e-3, atol=1e-5)


@pytest.mark.quick_only("forward-kl", "alpha-1.5")
@dtypes
@pytest.mark.parametrize("name", LOG_RATIOS)
def test_many_outcomes_of_many_rewards(name, dtype):
    """Rows so long that masses are summed in groups, against bisection in longer floats."""
    rng = np.random.default_rng(3)
    size = 8_201
    drawn = rng.normal(size=(6, size))
    drawn[0] = rng.uniform(size=size)
    drawn[1] = np.sort(drawn[1])
    drawn[2] = drawn[2] > 1
    drawn[3] = 0.01 * np.floor(300 * rng.beta(0.2, 0.2, size=size))
    drawn[4, rng.random(size) < 0.5] = -INF
    reward = drawn.astype(dtype)
    log_ref = oracles.log_normalised(2 * rng.normal(size=(6, size)), dtype)
    if name != "chi-squared-kl":  # it may put mass beyond the reference, or finds it in bounds
        log_ref[5, rng.random(size) < 0.5] = -INF
        log_ref[5, reward[5].argmax()] = -3.0
        log_ref[5] = oracles.log_normalised(log_ref[5], dtype)
    beta = np.array([0.1, 0.03, 0.3, 0.1, 1.0, 0.1], dtype)
    divergence, log_ratio, endless = LOG_RATIOS[name]
    target = kt.solve(kt.Objective(reward, log_ref, beta, divergence)).raise_if_failed()

    ref, gain = log_ref.astype(np.longdouble), reward.astype(np.longdouble) / beta[:, None]
    gap = gain - np.where(log_ref > -INF, gain, -INF).max(-1, keepdims=True)

    def at(x):  # the best one's slope, or the logarithm of its distance to the slope at infinity
        s = gap + x if endless is not None else np.exp(-x) - gap
        with np.errstate(all="ignore"):
            return np.where(gap > -INF, ref + log_ratio(s), -INF)

    low, high = np.full((6, 1), np.longdouble(-100)), np.full((6, 1), np.longdouble(1e4))
    for _ in range(75):
        middle = (low + high) / 2
        more = np.exp(at(middle)).sum(-1, keepdims=True) > 1
        low, high = np.where(more, low, middle), np.where(more, middle, high)
    log_probs = at(low)
    got = np.asarray(target.log_probs, np.longdouble)
    held = log_probs > -300
    assert held.sum(-1).min() > 1
    # An outcome that is about to be truncated moves with all the others' rounding.
    u = np.exp(np.where(held, log_probs, 0) - np.where(held, ref, 0)).astype(float)
    bend = np.where(held, 1 / (u * np.asarray(divergence.f_second(u.astype(dtype)))), 0)
    condition = bend / (np.exp(log_probs) * bend).sum(-1, keepdims=True)
    bar = BAR * (1 + np.abs(log_probs[held])) + (2 * condition[held] if endless == 0 else 0)
    assert (np.abs(got[held] - log_probs[held]) <= bar * eps(dtype)).all()
    slope = (
        low[:, 0]
        if endless is not None
        else float(divergence.slope_at_infinity) - np.exp(-low[:, 0])
    )
    best = np.where(log_ref > -INF, reward, -INF).max(-1)
    multiplier = (best - slope * beta).astype(float)
    np.testing.assert_allclose(target.multiplier, multiplier, rtol=64 * eps(dtype))


@dtypes
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL(), TV], ids=lambda d: d.name)
def test_batches_equal_loops(divergence, dtype):
    rng = np.random.default_rng(2)
    reward = rng.normal(size=(2, 1, 5)).astype(dtype)
    log_ref = oracles.log_normalised(rng.normal(size=(3, 5)), dtype)
    beta = np.array([[0.3], [2.0]], dtype)

    @jax.jit
    def solved(*problem):
        target = kt.solve(kt.Objective.unchecked(*problem, divergence))
        return target.log_probs, target.multiplier, target.value, target.status

    log_probs, multiplier, value, status = map(np.asarray, solved(reward, log_ref, beta))
    assert log_probs.shape == (2, 3, 5)
    assert multiplier.shape == value.shape == status.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        alone = solved(reward[i, 0], log_ref[j], beta[i, 0])
        close(log_probs[i, j], alone[0], dtype, 4)
        assert status[i, j] == alone[3]
        assert value[i, j] == pytest.approx(float(alone[2]), rel=64 * eps(dtype))


def test_an_empty_batch():
    target = kt.solve(kt.Objective(np.zeros((0, 3)), np.log(np.full(3, 1 / 3)), 1.0))
    assert target.log_probs.shape == (0, 3)
    assert target.raise_if_failed() is target


def test_raise_if_failed_names_the_row_and_the_reason():
    @jax.jit
    def solved(reward, beta):
        return kt.solve(kt.Objective(reward, np.log(np.full(2, 0.5)), beta))

    good = solved(np.array([0.0, 1.0]), 1.0)
    assert good.raise_if_failed() is good
    with pytest.raises(ValueError, match=r"solve failed: INVALID_BETA \(1 of 1 row\)"):
        solved(np.array([0.0, 1.0]), -1.0).raise_if_failed()
    rows = solved(np.array([[0.0, 1.0], [0.0, np.nan], [0.0, 1.0]]), np.array([1.0, 0.0, 0.0]))
    with pytest.raises(
        ValueError, match=r"failed at index 1: INVALID_BETA, INVALID_REWARD \(2 of 3 rows\)"
    ):
        rows.raise_if_failed()


def test_samples_follow_the_target():
    objective = kt.Objective(
        np.array([[0.0, 1.0, 2.0, 0.0], [3.0, 1.0, 2.0, 9.0]]),
        log([[0.25] * 4, [0.5, 0.3, 0.2, 0]]),
        1.0,
    )
    target, draws = kt.solve(objective), 20_000
    samples = np.asarray(target.sample(key=jax.random.key(4), num_samples=draws))
    assert samples.shape == (draws, 2)
    for row in range(2):
        p = np.asarray(target.probs[row], np.float64)
        counts = np.bincount(samples[:, row], minlength=4)
        sigma = np.sqrt(draws * p * (1 - p))
        assert np.all(np.abs(counts - draws * p) <= 4 * sigma)
    assert not np.any(samples[:, 1] == 3)
    again = target.sample(key=jax.random.key(4), num_samples=draws)
    np.testing.assert_array_equal(samples, again)


CONVEX = {
    "reverse-kl": kt.ReverseKL(),
    "forward-kl": kt.ForwardKL(),
    "jensen-shannon": kt.JensenShannon(),
    "hellinger": kt.SquaredHellinger(),
    "neyman": kt.NeymanChiSquared(),
    "chi-squared": kt.ChiSquared(),
    "chi-squared-kl": kt.ChiSquaredKL(),
    "alpha-1.5": kt.Alpha(1.5),
    "alpha-3": kt.Alpha(3.0),
    "total-variation": TV,
}


@pytest.mark.filterwarnings("ignore")  # of the convex modelling library, not ours
@pytest.mark.parametrize("name", oracles.slow_look_alikes(CONVEX))
def test_agrees_with_a_convex_solver(name):
    pytest.importorskip("cvxpy")
    dtype = DTYPES[-1]
    problems = [
        ([0.1, 0.5, 1.0, 0.9, 0.3], [0.4, 0.3, 0.15, 0.1, 0.05], 0.48),
        ([0.1, 0.5, 1.0, 0.9, 0.3], [0.4, 0.3, 0.15, 0.1, 0.05], 0.13),
        ([1.0, 1.0, 0.0], [0.3, 0.02, 0.68], 0.4),
        ([0.2, 0.6, 1.0, 1.5], [0.5, 0.3, 0.2, 0.0], 0.35),
        ([0.2, 0.6, 1.0, 0.9], [0.5, 0.3, 0.2, 0.0], 1.7),
    ]
    solved = oracles.solve_rows([(r, log(q), b) for r, q, b in problems], CONVEX[name], dtype)
    for (reward, ref, beta), got in zip(problems, solved, strict=True):
        policy, value, slack = oracles.convex_optimum(reward, ref, beta, name)
        assert float(got.value) == pytest.approx(value, abs=slack + 16 * eps(dtype))
        if not got.status & kt.Status.NOT_UNIQUE:
            # A policy whose value is short by `slack` is within 2·√(slack/β) where the generator's
            # curvature is at least ½ (Pinsker), and within its multiple where it has a kink.
            np.testing.assert_allclose(got.probs, policy, atol=2 * np.sqrt(slack / beta))


P5, R5 = [0.4, 0.3, 0.15, 0.1, 0.05], [0.1, 0.5, 1.0, 0.9, 0.3]


@dtypes
def test_truncation_thresholds_of_chi_squared(dtype):
    # χ² here is twice ½ Pearson: no zeros from β = ½(E r − r_min) on, collapse up to ½·m·gap.
    edge, collapse = 0.5 * (0.445 - 0.1), 0.5 * 0.15 * 0.1
    betas = [edge * 1.001, edge * 0.999, collapse * 1.001, collapse * 0.999]
    rows = oracles.solve_rows([(R5, log(P5), b) for b in betas], kt.ChiSquared(), dtype)
    assert [int(np.count_nonzero(row.probs)) for row in rows] == [5, 4, 2, 1]
    assert [bool(row.status & kt.Status.TRUNCATED) for row in rows] == [False, True, True, True]
    assert rows[3].probs[2] == 1


@dtypes
@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_collapse_threshold_of_the_alpha_family(alpha, dtype):
    """Claim: α-divergences with α above 1 have sparse optima (arXiv 2501.18537).

    Holds: all but the best outcomes vanish below a β that has a closed form.
    """
    threshold = (alpha - 1) * 0.1 * 0.15 ** (alpha - 1)
    above, below = oracles.solve_rows(
        [(R5, log(P5), threshold * 1.001), (R5, log(P5), threshold * 0.999)],
        kt.Alpha(alpha),
        dtype,
    )
    assert np.count_nonzero(above.probs) == 2
    np.testing.assert_array_equal(np.nonzero(below.probs)[0], [2])
    assert abs(float(below.log_probs[2])) <= 4 * eps(dtype)


@dtypes
def test_total_variation_by_its_rule(dtype):
    # Dyadic numbers, so that the thresholds are met exactly.
    reward, ref = [0.0, 0.25, 0.5, 1.0, 1.0], [0.25, 0.125, 0.125, 0.125, 0.375]
    rows = oracles.solve_rows([(reward, log(ref), b) for b in (0.375, 0.5, 0.625, 1.25)], TV, dtype)
    wanted = [
        [0, 0, 0, 0.25, 0.75],
        None,  # at the threshold any part of outcome 2 may move
        [0, 0, 0.125, 0.21875, 0.65625],
        ref,
    ]
    for row, want in zip(rows, wanted, strict=True):
        assert row.probs.sum() == pytest.approx(1, abs=16 * eps(dtype))
        if want is not None:
            np.testing.assert_allclose(row.probs, want, rtol=16 * eps(dtype), atol=0)
    assert rows[1].status & kt.Status.NOT_UNIQUE
    assert rows[0].status == kt.Status.TRUNCATED | kt.Status.NOT_UNIQUE
    assert rows[3].status == 0


@dtypes
@pytest.mark.parametrize(
    "case", oracles.slow_look_alikes([*CASES, oracles.Case("tv", TV, None, 0)])
)
def test_an_objective_without_preference_keeps_the_reference(case, dtype):
    log_ref = oracles.log_normalised(np.array([0.0, -3.0, -40.0, -1.0]), dtype)
    rows = [([2.5] * 4, log_ref, beta) for beta in (1e-12, 1.0, 1e12)]
    for row in oracles.solve_rows(rows, case.divergence, dtype):
        close(row.log_probs, log_ref, dtype, 8)
    # The masses' rounding is part of the problem, and at a large β it has its price.
    for row in oracles.solve_rows(rows[:2], case.divergence, dtype):
        assert float(row.value) == pytest.approx(2.5, rel=16 * eps(dtype))


@dtypes
def test_a_target_is_a_pytree_of_consistent_numbers(dtype):
    reward, log_ref = np.array(R5, dtype), log(P5, dtype)
    for divergence in (kt.ReverseKL(), kt.ForwardKL(), kt.ChiSquared()):
        beta = np.array([0.2, 0.7], dtype)
        objective = kt.Objective(reward, log_ref, beta, divergence)
        target = kt.solve(objective)
        again = jax.tree.map(lambda x: x, target)
        assert isinstance(again, kt.Target)

        @jax.jit
        def asked(t):
            numbers = (t.value, t.expected_reward, t.divergence_value, t.probs)
            others = (t.objective.divergence(t.log_probs, log_ref), t.objective.value(t.log_probs))
            return numbers, others

        (value, mean, cost, probs), others = jax.tree.map(np.asarray, asked(target))
        np.testing.assert_allclose(probs, np.exp(target.log_probs), rtol=4 * eps(dtype))
        np.testing.assert_allclose(mean, probs @ reward, rtol=8 * eps(dtype))
        np.testing.assert_allclose(cost, others[0], rtol=8 * eps(dtype))
        np.testing.assert_allclose(value, mean - beta * cost, rtol=32 * eps(dtype))
        np.testing.assert_allclose(value, others[1], rtol=32 * eps(dtype), atol=0)
        np.testing.assert_allclose(target.value, value, rtol=8 * eps(dtype))
        if isinstance(divergence, kt.ReverseKL):
            np.testing.assert_allclose(target.multiplier, value, rtol=32 * eps(dtype))
        if isinstance(divergence, kt.ForwardKL):
            np.testing.assert_allclose(target.multiplier, mean, rtol=64 * eps(dtype))


def test_structures_of_different_divergences_differ():
    # A jit cache that took one class for another would run the wrong divergence's program.
    structures = [jax.tree.structure(case.divergence) for case in oracles.NAMED]
    structures += [jax.tree.structure(x) for x in (TV, kt.Alpha(0.5), kt.Tsallis(0.5))]
    for i, one in enumerate(structures):
        assert [one == other for other in structures] == [i == j for j in range(len(structures))]


@pytest.mark.quick_only("forward-kl")
@dtypes
@pytest.mark.parametrize("name", ["forward-kl", "hellinger", "chi-squared"])
def test_a_written_generator_has_the_target_of_the_built_in_one(name, dtype):
    written = {
        "forward-kl": lambda u: -jnp.log(u) + u - 1,
        "hellinger": lambda u: (jnp.sqrt(u) - 1) ** 2,
        "chi-squared": lambda u: (u - 1) ** 2,
    }[name]
    problems = [
        (R5, log(P5), 0.5),
        (R5, log(P5), 0.1),
        ([0.2, 0.6, 1.0, 1.5], log([0.5, 0.3, 0.2, 0.0]), 0.1),
        ([1, 1, 0], log([0.3, 0.02, 0.68]), 5.0),
    ]
    own = oracles.solve_rows(problems, kt.FDivergence(written, name=name), dtype)
    built_in = oracles.solve_rows(problems, BY_ID[name].divergence, dtype)
    for got, want in zip(own, built_in, strict=True):
        assert got.status == want.status
        np.testing.assert_allclose(got.probs, want.probs, rtol=1e4 * eps(dtype), atol=1e-10)


@pytest.mark.slow
@dtypes
@pytest.mark.parametrize("power", [-9, -7, 6, 9])
def test_alpha_near_one_without_small_masses(power, dtype):
    """Truncation is near and far, and log1p of the platform may lose digits in between."""
    alpha = 1 + np.sign(power) * 2.0 ** -abs(power)
    rng, generator = np.random.default_rng(power % 10), oracles.power(alpha)
    problems = [
        (
            rng.uniform(size=4).astype(dtype),
            oracles.log_normalised(rng.normal(size=4), dtype),
            dtype.type(10 ** rng.uniform(-3, 0)),
        )
        for _ in range(24)
    ]
    rows = oracles.solve_rows(problems, kt.Alpha(alpha), dtype)
    for problem, got in zip(problems, rows, strict=True):
        want = oracles.exact_target(*problem, generator)
        kept = np.array([x > -1e4 for x in want.log_probs])
        errors = oracles.bar_errors(got.log_probs, want.log_probs, dtype)
        assert errors[kept].max() <= BAR, problem
