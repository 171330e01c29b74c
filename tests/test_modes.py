"""Odds, flips and collapse against arbitrary precision; metrics against enumeration."""

import itertools
import math
from fractions import Fraction

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import oracles
import pytest
from hypothesis import given
from oracles import CASES, DTYPES, INF, assert_reference, eps, reference, reference_ids

import kltarget as kt
from kltarget import testing

FLOAT = np.dtype(jnp.result_type(float))
P5 = ([0.4, 0.3, 0.15, 0.1, 0.05], [0.1, 0.5, 1.0, 0.9, 0.3])
ROOTED = ("jensen-shannon", "chi-squared-kl")
"""Cases without a closed form: each compiles a search."""
POWERS = [case for case in CASES if case.id not in ROOTED]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def log(p, dtype=FLOAT):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p, np.float64)).astype(dtype)


def problem(ref, reward, divergence=None, beta=1.0, dtype=FLOAT):
    reward = np.asarray(reward, np.float64).astype(dtype)
    beta = np.asarray(beta, np.float64).astype(dtype)
    return kt.Objective(reward, log(ref, dtype), beta, divergence or kt.ReverseKL())


def exact_odds(objective, case, beta, i, j):
    """The sign of log π_i − log π_j in arbitrary precision, 0 where both are 0."""
    with mp.workdps(60):
        found = oracles.exact_target(objective.reward, objective.log_ref, beta, case.generator)
        a, b = found.log_probs[i], found.log_probs[j]
        return 0 if a == b else (1 if a > b else -1)


def assert_flips(objective, case, i, j, dtype, ulps=64):
    """The claimed β is where the exact odds change sign, or they do not change at all."""
    beta = float(kt.flip_beta(objective, i, j))
    if math.isnan(beta):
        signs = {exact_odds(objective, case, 10.0**k, i, j) for k in np.arange(-4, 4.1, 0.5)}
        assert not {1, -1} <= signs
        return
    width = ulps * eps(dtype)
    below, above = (
        exact_odds(objective, case, beta * (1 + side * width), i, j) for side in (-1, 1)
    )
    assert below * above < 0, (beta, below, above)


# flip_beta


@pytest.mark.parametrize("name", reference_ids("flip-p5"))
@dtypes
def test_flip_reference_values(name, dtype):
    inputs = reference(name)["inputs"]
    divergence = kt.JensenShannon() if "f" in inputs else kt.Alpha(inputs["alpha"])
    objective = problem(inputs["ref"], inputs["R"], divergence, dtype=dtype)
    beta = kt.flip_beta(objective, inputs["i"], inputs["j"])
    assert beta.dtype == dtype
    assert_reference(name, beta, "beta_flip", dtype)
    assert beta == kt.flip_beta(objective, inputs["j"], inputs["i"])


@dtypes
def test_flip_of_two_modes_reference_values(dtype):
    name = "flip-twomode"
    inputs = reference(name)["inputs"]
    rest = math.log1p(-sum(map(math.exp, inputs["log_ref_modes"])))
    log_ref = np.array([rest, *inputs["log_ref_modes"]], dtype)
    reward = np.array([inputs["R_rest"], *inputs["R_modes"]], dtype)
    for key, divergence in (("beta_reverse", kt.ReverseKL()), ("beta_forward", kt.ForwardKL())):
        objective = kt.Objective(reward, log_ref, 1.0, divergence)
        assert_reference(name, kt.flip_beta(objective, 1, 2), key, dtype)


def test_forward_kl_may_never_flip():
    """Claim: with forward KL as with reverse KL, β decides which of two modes is the likelier
    (arXiv 2510.20817).

    Holds with a correction: under forward KL a mode that the reference prefers strongly enough
    leads at every β.
    """
    inputs = reference("flip-none-forward")["inputs"]
    reverse = problem(inputs["ref"], inputs["R"])
    assert_reference("flip-none-forward", kt.flip_beta(reverse, 0, 1), "beta_reverse", FLOAT)
    forward = problem(inputs["ref"], inputs["R"], kt.ForwardKL(), [1e-3, 0.05, 0.3, 1.0, 10.0])
    assert np.isnan(kt.flip_beta(forward, 0, 1)).all()
    assert (kt.log_odds(kt.solve(forward), 0, 1) > 0).all()


@pytest.mark.parametrize(
    ("key", "case"),
    [
        ("alpha1", "reverse-kl"),
        ("alpha0", "forward-kl"),
        ("alpha2", "alpha-3"),
        ("js", "jensen-shannon"),
    ],
)
def test_equal_probability_needs_a_known_gap(key, case):
    inputs = reference("equalprob-gap")["inputs"]
    divergence = kt.Alpha(2.0) if key == "alpha2" else oracles.BY_ID[case].divergence
    ref, c, beta = [inputs["ref1"], inputs["ref2"]], inputs["c"], inputs["beta"]
    # Let the two have probability c each at this β: the others get what is left.
    wish = log([c, c, 0.3, 0.2, 0.5 - 2 * c])
    log_ref = log([*ref, 0.1, 0.1, 0.8 - sum(ref)])
    reward = kt.reward_for(wish, log_ref, beta, divergence)
    assert_reference("equalprob-gap", reward[1] - reward[0], key, FLOAT)
    objective = kt.Objective(reward, log_ref, 1.0, divergence)
    np.testing.assert_allclose(kt.flip_beta(objective, 0, 1), beta, rtol=256 * eps(FLOAT))


SEARCHED = [
    *oracles.slow_look_alikes(POWERS),
    *oracles.slow(case for case in CASES if case.id in ROOTED),
]


@pytest.mark.quick_only("forward-kl", "chi-squared", "alpha-1-2^-5", "alpha-1.5", others="broad")
@pytest.mark.parametrize("case", SEARCHED)
def test_flips_are_where_the_exact_odds_change_sign(case):
    rng = np.random.default_rng(7)
    for _ in range(4):
        ref = rng.dirichlet(np.ones(5))
        objective = problem(ref, rng.choice([0, 0.25, 0.5, 1, 1.5], 5), case.divergence)
        for i, j in ((0, 1), (2, 3)):
            assert_flips(objective, case, i, j, FLOAT, ulps=512)
    for outside in (1.5, 1.01, 0.3):
        objective = problem([0.5, 0.25, 0.05, 0.2, 0], [0.2, 0.6, 0.5, 1, outside], case.divergence)
        for i, j in ((0, 4), (3, 4), (0, 3)):
            assert_flips(objective, case, i, j, FLOAT, ulps=512)


@pytest.mark.parametrize("case", oracles.slow_look_alikes(POWERS))
def test_flips_of_deep_references(case):
    log_ref = kt.normalize(np.array([0.0, -3.0, -30.0, -40.0, -2.0], FLOAT))
    reward = np.array([0.0, 0.25, 1.0, 1.0, 0.125], FLOAT)
    objective = kt.Objective(reward, log_ref, 1.0, case.divergence)
    for i, j in ((0, 1), (0, 2), (1, 3)):
        assert_flips(objective, case, i, j, FLOAT, ulps=4096)


def test_atoms_that_tie_share_alike():
    case = oracles.BY_ID["forward-kl"]
    objective = problem([0.6, 0.3, 0.1, 0, 0], [0.2, 0.6, 0.3, 1.5, 1.5], kt.ForwardKL())
    assert_flips(objective, case, 0, 3, FLOAT)
    assert np.isnan(kt.flip_beta(objective, 3, 4))


def test_flips_at_masses_that_underflow():
    log_ref = jnp.asarray(np.array([0.0, -800.0], FLOAT))
    reward = jnp.asarray(np.array([0.0, 1.0], FLOAT))
    flip = kt.flip_beta(kt.Objective(reward, log_ref, 1.0), 0, 1)
    np.testing.assert_allclose(flip, 1 / 800, rtol=4 * eps(FLOAT))
    # π = (½, ½): β/(L − r) is ½ at the first outcome, and e^800/2 times the gap to L at the second.
    flip = kt.flip_beta(kt.Objective(reward, log_ref, 1.0, kt.ForwardKL()), 0, 1)
    np.testing.assert_allclose(flip, 0.5, rtol=2000 * eps(FLOAT))


@pytest.mark.parametrize(
    "divergence",
    [
        kt.ReverseKL(),
        kt.ForwardKL(),
        kt.ChiSquared(),
        kt.JensenShannon(),
        pytest.param(kt.TotalVariation(), marks=pytest.mark.slow),
    ],
    ids=lambda d: d.name,
)
def test_no_flip_is_nan(divergence):
    equal = problem([0.5, 0.3, 0.1, 0.1, 0], [1.0, 1.0, 0.0, 1.0, 0.5], divergence)
    assert np.isnan(kt.flip_beta(equal, 0, 1))  # equal rewards
    assert np.isnan(kt.flip_beta(equal, 0, 0))
    assert np.isnan(kt.flip_beta(equal, 0, 2))  # the better one is preferred already
    assert np.isnan(kt.flip_beta(equal, 0, 4))  # one without any mass
    level = problem([0.3, 0.3, 0.2, 0.1, 0.1], [1.0, 0.0, 0.5, 0.2, -np.inf], divergence)
    if not isinstance(divergence, kt.TotalVariation):
        assert np.isnan(kt.flip_beta(level, 0, 1))  # equal masses: only at β = ∞
    assert np.isnan(kt.flip_beta(level, 0, 4))


def test_total_variation_flips_where_it_jumps():
    # Below β = 0.5 the first outcome gives its mass to the best one.
    objective = problem([0.5, 0.1, 0.2, 0.1, 0.1], [0.5, 1, 0.8, 0.8, 0.8], kt.TotalVariation())
    np.testing.assert_allclose(kt.flip_beta(objective, 0, 1), 0.5, rtol=8 * eps(FLOAT))


@pytest.mark.slow
def test_flip_of_a_callers_generator_is_that_of_the_named_one():
    custom = kt.FDivergence(
        lambda u: (u - 1) ** 2, f_prime_inverse=lambda s: 1 + s / 2, name="mine"
    )
    want = kt.flip_beta(problem(*P5, kt.ChiSquared()), 0, 2)
    got = kt.flip_beta(problem(*P5, custom), 0, 2)
    np.testing.assert_allclose(got, want, rtol=1e4 * eps(FLOAT))


small = testing.objectives(
    num_outcomes=5,
    divergence=st.sampled_from([case.divergence for case in POWERS if case.id.startswith("alpha")]),
)
"""One class, so that no example compiles anything."""


@given(small, st.integers(-6, 6))
def test_flips_scale_with_the_rewards(objective, k):
    scaled = kt.Objective(
        objective.reward * 2.0**k, objective.log_ref, objective.beta, objective.divergence
    )
    want = kt.flip_beta(objective, 0, 1) * 2.0**k
    np.testing.assert_allclose(kt.flip_beta(scaled, 0, 1), want, rtol=1e3 * eps(FLOAT))


@given(small, st.permutations(range(5)))
def test_flips_do_not_depend_on_the_order(objective, order):
    order = np.array(order)
    shuffled = kt.Objective(
        objective.reward[order], objective.log_ref[order], objective.beta, objective.divergence
    )
    want = np.asarray(kt.flip_beta(objective, int(order[0]), int(order[1])))
    got = np.asarray(kt.flip_beta(shuffled, 0, 1))
    np.testing.assert_allclose(got, want, rtol=1e3 * eps(FLOAT))


@pytest.mark.broad
@given(small)
def test_at_the_flip_the_target_is_level(objective):
    beta = kt.flip_beta(objective, 0, 1)
    if not 1e-6 < float(beta) < 1e6:
        return
    at = kt.Objective(objective.reward, objective.log_ref, beta, objective.divergence)
    target = kt.solve(at)
    odds, size = float(kt.log_odds(target, 0, 1)), float(jnp.abs(target.log_probs[:2]).max())
    gap = abs(float(at.reward[0] - at.reward[1])) / float(beta)
    slack = 1e4 * eps(FLOAT) * (1 + size + gap)
    if int(target.status) & kt.Status.CONDENSED:
        # What stands outside the reference is what is missing to one, of which eps is rounding.
        slack += 64 * eps(FLOAT) * math.exp(size)
    assert abs(odds) <= slack


# flip_beta between modes


@pytest.mark.parametrize("case", oracles.slow_look_alikes(c for c in POWERS if c in oracles.NAMED))
def test_modes_of_equal_rewards_are_merged_exactly(case):
    ref, reward = [0.25, 0.15, 0.3, 0.2, 0.1], [0.1, 0.1, 1.0, 0.5, 0.3]
    fine = problem(ref, reward, case.divergence)
    merged = problem([0.4, 0.3, 0.2, 0.1, 0.0], [0.1, 1.0, 0.5, 0.3, 0.0], case.divergence)
    np.testing.assert_allclose(
        kt.flip_beta(fine, 3, 7, modes=[3, 3, 7, -1, -1]),
        kt.flip_beta(merged, 0, 1),
        rtol=32 * eps(FLOAT),
    )


def test_merging_keeps_the_roots_too():
    fine = problem([0.25, 0.15, 0.1, 0.05, 0.45], [0.1, 0.1, 1, 1, 0.5], kt.JensenShannon())
    merged = problem([0.4, 0.15, 0.25, 0.2, 0], [0.1, 1, 0.5, 0.5, 0], kt.JensenShannon())
    np.testing.assert_allclose(
        kt.flip_beta(fine, 0, 1, modes=[0, 0, 1, 1, 2]),
        kt.flip_beta(merged, 0, 1),
        rtol=64 * eps(FLOAT),
    )


def test_modes_outside_the_reference_are_merged_too():
    ref, reward = [0.6, 0.4, 0, 0, 0], [0.2, 0.6, 1.5, 1.5, 1.5]
    objective = problem(ref, reward, kt.ForwardKL())
    flip = kt.flip_beta(objective, 0, 1, modes=[0, 2, 1, 1, 3])
    masses = kt.solve(problem(ref, reward, kt.ForwardKL(), flip)).probs
    np.testing.assert_allclose(masses[0], masses[2] + masses[3], rtol=64 * eps(FLOAT))


UNEVEN = [0.3, 0.3, 0.1, 0.05, 0.25], [0.2, 0.4, 1.0, 0.7, 0.0]
PAIRS = [0, 0, 1, 1, 2]


@pytest.mark.parametrize("name", ["reverse-kl", "forward-kl"])
def test_modes_of_unequal_rewards_flip_at_a_root(name):
    case = oracles.BY_ID[name]
    objective = problem(*UNEVEN, case.divergence)
    beta = float(kt.flip_beta(objective, 0, 1, modes=PAIRS))
    width = 256 * eps(FLOAT)
    signs = []
    for b in (beta * (1 - width), beta * (1 + width)):
        p = oracles.exact_target(objective.reward, objective.log_ref, b, case.generator).probs
        signs.append(mp.sign(p[0] + p[1] - p[2] - p[3]))
    assert signs == [-1, 1]


def test_the_largest_of_several_roots():
    # Mode 0 leads at the reference, mode 1 by its many good outcomes, mode 0 again by its best.
    ref, reward = [0.5, 1e-9, 0.3, 0.1, 0.1 - 1e-9], [0.0, 1.0, 0.6, 0.0, 0.0]
    modes = [0, 0, 1, 2, 2]
    betas = np.geomspace(1e-3, 1e3, 4001)
    masses = kt.mode_log_mass(kt.solve(problem(ref, reward, beta=betas)).log_probs, modes)
    lead = np.sign(np.asarray(masses[:, 0] - masses[:, 1]))
    changes = np.flatnonzero(np.diff(lead))
    assert len(changes) == 2
    flip = float(kt.flip_beta(problem(ref, reward), 0, 1, modes=modes))
    assert betas[changes[-1]] <= flip <= betas[changes[-1] + 1]


def test_labels_are_labels():
    objective = problem(*P5, kt.Alpha(0.5))
    assert kt.flip_beta(objective, 5, 9, modes=[5, 6, 9, 8, 7]) == kt.flip_beta(objective, 0, 2)


# flip_beta: shapes, types, transformations


@dtypes
def test_flips_of_a_batch_are_those_of_its_rows(dtype):
    ref, reward = P5
    scale = np.array([[1.0], [2.0]])
    objective = kt.Objective(
        (scale[..., None] * np.array(reward)).astype(dtype),
        log(ref, dtype),
        np.array([0.1, 1.0, 10.0], dtype),
        kt.Alpha(np.array([0.0, 0.5, 2.0], dtype)),
    )
    flips = kt.flip_beta(objective, 0, 2)
    assert flips.shape == objective.batch_shape == (2, 3)
    assert flips.dtype == dtype
    for a, row in zip((0.0, 0.5, 2.0), flips.T, strict=True):
        want = float(kt.flip_beta(problem(ref, reward, kt.Alpha(a)), 0, 2))
        np.testing.assert_allclose(row, [want, 2 * want], rtol=64 * eps(dtype))


def test_rows_of_a_searched_batch_do_not_touch():
    reward = np.array([UNEVEN[1], [1.0] * 5, [-np.inf, -np.inf, 0.5, 0.0, 0.0]], FLOAT)
    flips = kt.flip_beta(problem(UNEVEN[0], reward), 0, 1, modes=PAIRS)
    alone = kt.flip_beta(problem(*UNEVEN), 0, 1, modes=PAIRS)
    np.testing.assert_allclose(flips, [alone, np.nan, np.nan], rtol=8 * eps(FLOAT))


def test_sixteen_bits_are_computed_in_more():
    log_ref = kt.normalize(log(UNEVEN[0], np.float32)).astype(jnp.bfloat16)
    short = kt.Objective(jnp.array(UNEVEN[1], jnp.bfloat16), log_ref, 1.0)
    wide = kt.Objective(
        short.reward.astype(jnp.float32), log_ref.astype(jnp.float32), 1.0, measure=True
    )
    for pair in ({"i": 0, "j": 2}, {"i": 0, "j": 1, "modes": PAIRS}):
        got = kt.flip_beta(short, **pair)
        assert got.dtype == jnp.bfloat16
        assert got == kt.flip_beta(wide, **pair).astype(jnp.bfloat16)


TRANSFORMED = pytest.mark.parametrize(
    ("divergence", "modes"),
    [
        (kt.Alpha(1.5), None),
        (kt.ReverseKL(), PAIRS),
        pytest.param(kt.ForwardKL(), None, marks=pytest.mark.slow),
        pytest.param(kt.JensenShannon(), None, marks=pytest.mark.slow),
    ],
)


@TRANSFORMED
def test_flips_under_jit_and_vmap(divergence, modes):
    def flip(r):
        return kt.flip_beta(kt.Objective(r, log(UNEVEN[0]), 1.0, divergence), 0, 1, modes=modes)

    reward = jnp.array([[0.2, 0.4, 1.0, 0.7, 0.0], [0.1, 0.3, 0.6, 0.9, 0.2]], FLOAT)
    eager = jnp.stack([flip(r) for r in reward])
    np.testing.assert_allclose(jax.jit(jax.vmap(flip))(reward), eager, rtol=8 * eps(FLOAT))


@pytest.mark.quick_only("divergence0-None")
@TRANSFORMED
def test_gradients_of_flips(divergence, modes):
    def flip(x):
        objective = kt.Objective(x[:5], kt.normalize(x[5:]), 1.0, divergence)
        return kt.flip_beta(objective, 0, 2 if modes is None else 1, modes=modes)

    x = jnp.asarray(np.concatenate([UNEVEN[1], np.log(UNEVEN[0])]).astype(FLOAT))
    gradient = jax.jit(jax.grad(flip))(x)
    step = 2e-2 if eps(FLOAT) > 1e-10 else 1e-3
    jitted = jax.jit(flip)
    for k in range(10):
        unit = jnp.zeros_like(x).at[k].set(1.0)
        want = oracles.central_difference(lambda t, u=unit: jitted(x + t * u), 0.0, step)
        np.testing.assert_allclose(gradient[k], want, atol=1e4 * eps(FLOAT) ** 0.8)


def test_flips_of_traced_pairs():
    objective = problem(*P5, kt.ForwardKL())
    flips = jax.vmap(lambda j: kt.flip_beta(objective, 0, j))(jnp.arange(5))
    want = jnp.stack([kt.flip_beta(objective, 0, j) for j in range(5)])
    np.testing.assert_allclose(flips, want, rtol=4 * eps(FLOAT))


def test_flips_of_modes_under_jit_keep_their_closed_form():
    objective = problem([0.3, 0.1, 0.15, 0.4, 0.05], [0.1, 0.1, 1.0, 0.5, 0.5])

    def flip(objective):
        return kt.flip_beta(objective, 0, 1, modes=(0, 0, 1, -1, -1))

    np.testing.assert_allclose(jax.jit(flip)(objective), flip(objective), rtol=4 * eps(FLOAT))


@pytest.mark.broad
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.Alpha(0.0)], ids=lambda d: d.name)
def test_gradients_of_absent_flips_are_finite(divergence):
    def flip(r, q):
        return kt.flip_beta(kt.Objective(r, q, 1.0, divergence), 0, 1)

    rewards = jnp.array([[1, 1, 2], [0, 1, -9], [0, -np.inf, 3], [0, 1, 3]], FLOAT)
    log_refs = log([[0.6, 0.4, 0], [0.5, 0.5, 0], [0.6, 0.4, 0], [0.6, 0.4, 0]])
    gradients = jax.jit(jax.vmap(jax.grad(flip, argnums=(0, 1))))(rewards, log_refs)
    assert not np.isnan(np.asarray(gradients)).any()


def test_an_invalid_row_under_a_trace_is_nan():
    def flip(r):
        return kt.flip_beta(kt.Objective(r, log([0.5, 0.3, 0.2]), 1.0), 0, 1)

    rows = jax.jit(flip)(jnp.array([[0.0, 1.0, np.nan], [0.0, 1.0, 0.0]], FLOAT))
    np.testing.assert_array_equal(np.isnan(rows), [True, False])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 5), ValueError, "j must be the index of an outcome, from 0 to 4, got 5"),
        ((-1, 0), ValueError, "i must be the index"),
        ((0.0, 1), TypeError, "i must be an integer, got 0.0"),
        ((0, 4, [0, 0, 1, 1, 2]), ValueError, "j must be a label of 0 or more among modes, got 4"),
        ((0, -1, [0, 0, 1, 1, -1]), ValueError, "j must be a label"),
        ((0, 1, [0, 1]), ValueError, r"modes has shape \(2,\), but there are 5 outcomes"),
        ((0, 1, [0.0, 1, 2, 3, 4]), TypeError, "modes must be integer labels, got dtype float64"),
        ((0, 1, [-1] * 5), ValueError, "modes has no label of 0 or more"),
    ],
)
@pytest.mark.parametrize("function", [kt.flip_beta, kt.log_odds])
def test_bad_pairs_are_refused(function, arguments, error, message):
    i, j, *modes = arguments
    subject = problem(*P5) if function is kt.flip_beta else log(P5[0])
    with pytest.raises(error, match=message):
        function(subject, i, j, modes=modes[0] if modes else None)


def test_traced_labels_are_refused():
    with pytest.raises(TypeError, match="modes must be concrete labels"):
        jax.jit(kt.mode_log_mass)(jnp.zeros(3), jnp.array([0, 1, 1]))


# collapse_beta


@dtypes
def test_collapse_reference_values(dtype):
    inputs = reference("collapse-chi2")["inputs"]
    for key, alpha in (("alpha2", 2.0), ("alpha1_5", 1.5), ("alpha3", 3.0)):
        objective = problem(inputs["ref"], inputs["R"], kt.Alpha(alpha), dtype=dtype)
        got = kt.collapse_beta(objective)
        assert got.dtype == dtype
        assert_reference("collapse-chi2", got, key, dtype)


COLLAPSING = [
    kt.ChiSquared(),
    kt.Alpha(1.5),
    kt.Alpha(3.0),
    kt.TotalVariation(),
    kt.FDivergence(
        lambda u: (1 - u) ** 2 / (2 * (1 + u)),
        f_prime_inverse=lambda s: jnp.sqrt(1 / (0.25 - s / 2)) - 1,
        slope_at_infinity=0.5,
        name="Le Cam",
    ),
]


@pytest.mark.quick_only("total variation")
@pytest.mark.parametrize("divergence", COLLAPSING, ids=lambda d: d.name)
def test_targets_collapse_exactly_below_the_threshold(divergence):
    finite_slope = float(divergence.slope_at_infinity) < INF
    for ref, reward in (
        ([0.4, 0.3, 0.05, 0.15, 0.1], [0.1, 0.5, 1.0, 1.0, 0.8]),
        ([0.4, 0.3, 0.1, 0.2, 0.0], [0.1, 0.5, 1.0, 0.8, 1.5]),
        ([0.4, 0.3, 0.1, 0.2, 0.0], [0.1, 0.5, 1.0, 0.8, 0.5]),
    ):
        reachable = np.array(ref) > 0
        if finite_slope:
            reachable[:] = True
        best = reachable & (np.array(reward) == np.array(reward)[reachable].max())
        threshold = float(kt.collapse_beta(problem(ref, reward, divergence)))
        assert 0 < threshold < INF
        below, above = (
            np.asarray(kt.solve(problem(ref, reward, divergence, threshold * (1 + side))).log_probs)
            for side in (-0.02, 0.02)
        )
        assert np.isneginf(below[~best]).all()
        assert (above[~best] > -np.inf).any()


@pytest.mark.parametrize(
    "divergence",
    [kt.ReverseKL(), kt.ForwardKL(), kt.JensenShannon(), kt.ChiSquaredKL(), kt.Alpha(1.0)],
    ids=lambda d: d.name,
)
def test_others_never_collapse_exactly(divergence):
    assert kt.collapse_beta(problem(*P5, divergence)) == 0
    assert kt.collapse_beta(problem(P5[0], np.ones(5), divergence)) == INF


def test_a_generator_that_is_nan_at_zero():
    never = kt.FDivergence(lambda u: u * jnp.log(u) - u + 1, name="KL")
    assert kt.collapse_beta(problem(*P5, never)) == 0


def test_only_possible_outcomes_count_for_collapse():
    ref, reward = [0.5, 0.5, 0.0], [1.0, -np.inf, 0.9]
    assert kt.collapse_beta(problem(ref, reward, kt.ChiSquared())) == INF
    assert kt.collapse_beta(problem(ref, reward, kt.TotalVariation())) == INF
    # A likely best outcome, whose 1/m rounds to 1
    sure = problem([1 - 1e-9, 1e-9], [1.0, 0.25], kt.TotalVariation())
    assert kt.collapse_beta(sure) == 0.75


def test_collapse_of_unlikely_best_outcomes_keeps_its_digits():
    log_ref = kt.normalize(np.array([0.0, -60.0], FLOAT))
    objective = kt.Objective(np.array([0.0, 1.0], FLOAT), log_ref, 1.0, kt.Alpha(2.0))
    np.testing.assert_allclose(kt.collapse_beta(objective), np.exp(-60.0), rtol=64 * eps(FLOAT))


def test_collapse_is_differentiable():
    def threshold(r):
        return kt.collapse_beta(kt.Objective(r, log(P5[0]), 1.0, kt.ChiSquared()))

    # γ g m^γ/c with γ = 1, c = 2, m = 0.15
    gradient = jax.grad(threshold)(jnp.array(P5[1], FLOAT))
    np.testing.assert_allclose(gradient, [0, 0, 0.075, -0.075, 0], rtol=16 * eps(FLOAT))


# log_odds and mode_log_mass


@given(testing.log_policies(6), st.lists(st.integers(-1, 3), min_size=6, max_size=6))
def test_mode_masses_add_up(log_probs, modes):
    modes = np.array(modes)
    if (modes < 0).all():
        return
    got = np.exp(np.asarray(kt.mode_log_mass(log_probs, modes), np.float64))
    want = [
        np.exp(log_probs.astype(np.float64))[modes == m].sum() for m in np.unique(modes) if m >= 0
    ]
    np.testing.assert_allclose(got, want, rtol=32 * eps(FLOAT))


def test_mode_masses_of_many_outcomes_keep_their_digits():
    rng = np.random.default_rng(0)
    log_probs = log(rng.dirichlet(np.ones(50_000)))
    modes = rng.choice([0, 1, 5, -1], 50_000, p=[0.9, 0.05, 0.0499, 0.0001])
    got = kt.mode_log_mass(log_probs, modes)
    wide = np.exp(log_probs.astype(np.float64))
    want = np.log([wide[modes == m].sum() for m in (0, 1, 5)])
    assert got.shape == (3,)
    np.testing.assert_allclose(got, want, atol=64 * eps(FLOAT))


def test_empty_modes_and_tiny_masses():
    log_probs = jnp.array([-800.0, -801.0, 0.0, -np.inf, -np.inf], FLOAT)
    got = kt.mode_log_mass(log_probs, [0, 0, 1, 2, 2])
    want = [-800 + math.log1p(math.exp(-1)), 0, -np.inf]
    np.testing.assert_allclose(got, want, rtol=4 * eps(FLOAT))
    gradient = jax.jacobian(lambda x: kt.mode_log_mass(x, [0, 0, 1, 2, 2]))(log_probs)
    p = 1 / (1 + math.exp(-1))
    want = np.zeros((3, 5))
    want[0, :2], want[1, 2] = (p, 1 - p), 1
    np.testing.assert_allclose(gradient, want, atol=4 * eps(FLOAT))


def test_a_nan_row_stays_nan():
    log_probs = jnp.array([[np.nan, 0.0, -1.0], [0.0, -np.inf, -np.inf]], FLOAT)
    for metric in (
        kt.entropy,
        kt.effective_modes,
        lambda x: kt.coverage(x, least_probability=0.1),
        lambda x: kt.effective_modes(x, [0, 0, 1], order=INF),
        lambda x: kt.mode_log_mass(x, [0, 0, 1])[..., 0],
    ):
        nan, fine = metric(log_probs)
        assert np.isnan(nan)
        assert np.isfinite(fine)


def test_odds_of_forward_kl_are_polynomial():
    inputs = reference("odds-poly")["inputs"]
    target = kt.solve(problem(inputs["ref"], inputs["R"], kt.ForwardKL(), inputs["beta"]))
    odds = jnp.exp(kt.log_odds(target, 0, 1))
    assert_reference("odds-poly", odds, "odds", FLOAT, ulps=1024)


@pytest.mark.broad
def test_small_beta_limits():
    for name, divergence in (
        ("limit-small-beta-a0.5", kt.Alpha(0.5)),
        ("limit-small-beta-a-1.0", kt.Alpha(-1.0)),
    ):
        inputs, want = reference(name)["inputs"], reference(name)["expected"]
        beta = 1e-6
        target = kt.solve(problem(inputs["ref"], inputs["R"], divergence, beta))
        others = kt.mode_log_mass(target.log_probs, [0, 0, -1, 0, 0])[0]
        got = jnp.exp(others - want["exponent"] * math.log(beta))
        np.testing.assert_allclose(got, want["limit"], rtol=1e-2)


@dtypes
def test_log_odds(dtype):
    target = kt.solve(problem(*P5, beta=[0.1, 1.0], dtype=dtype))
    odds = kt.log_odds(target, 0, 2)
    assert odds.dtype == dtype
    assert odds.shape == (2,)
    ref, reward = P5
    want = [math.log(ref[0] / ref[2]) + (reward[0] - reward[2]) / b for b in (0.1, 1.0)]
    np.testing.assert_allclose(odds, want, rtol=64 * eps(dtype))
    of_modes = kt.log_odds(target.log_probs, 0, 1, modes=[0, 0, 1, 1, -1])
    p = np.asarray(target.probs, np.float64)
    want = np.log(p[:, :2].sum(-1) / p[:, 2:4].sum(-1))
    np.testing.assert_allclose(of_modes, want, atol=64 * eps(dtype) * 10)


def test_log_odds_of_impossible_outcomes():
    log_probs = log([0.5, 0.5, 0.0, 0.0])
    assert kt.log_odds(log_probs, 0, 2) == INF
    assert kt.log_odds(log_probs, 2, 0) == -INF
    assert np.isnan(kt.log_odds(log_probs, 2, 3))


@given(small)
def test_equal_rewards_keep_the_odds_of_the_reference(objective):
    """Claim: outcomes of equal reward keep the reference's ratio in the target of reverse KL, so
    that a likelier right answer stays the likelier by the same factor at every β (arXiv
    2510.20817).

    Holds with a correction: for every f-divergence, not for reverse KL alone.
    """
    tied = objective.reward.at[1].set(objective.reward[0])
    if not np.isfinite(np.asarray([*tied[:2], *objective.log_ref[:2]])).all():
        return
    target = kt.solve(kt.Objective(tied, objective.log_ref, objective.beta, objective.divergence))
    if not np.isfinite(np.asarray(target.log_probs[:2])).all():
        return
    odds, want = kt.log_odds(target, 0, 1), kt.log_odds(objective.log_ref, 0, 1)
    size = float(jnp.abs(target.log_probs[:2]).max() + jnp.abs(objective.log_ref[:2]).max())
    np.testing.assert_allclose(odds, want, atol=32 * eps(FLOAT) * (1 + size))


# effective_modes, coverage, entropy


@dtypes
def test_metrics_reference_values(dtype):
    inputs = reference("metrics-dist")["inputs"]
    log_probs = log(inputs["pi"], dtype)
    modes = np.where(np.isin(np.arange(5), inputs["correct"]), np.arange(5), -1)
    for key, got in (
        ("entropy", kt.entropy(log_probs)),
        ("effective_outcomes", kt.effective_modes(log_probs)),
        ("effective_modes", kt.effective_modes(log_probs, modes)),
        ("inverse_simpson", kt.effective_modes(log_probs, modes, order=2)),
        ("hill_inf", kt.effective_modes(log_probs, modes, order=INF)),
    ):
        assert got.dtype == dtype
        assert_reference("metrics-dist", got, key, dtype)
    assert kt.effective_modes(log_probs, modes, order=0) == 4
    for key, threshold, relative in (("coverage_abs", 0.05, False), ("coverage_rel", 0.1, True)):
        got = kt.coverage(log_probs, modes, least_probability=threshold, relative=relative)
        assert got.dtype == dtype
        assert_reference("metrics-coverage", got, key, dtype)
    inputs = reference("metrics-t3")["inputs"]
    for key, divergence in (
        ("effective_modes_reverse", kt.ReverseKL()),
        ("effective_modes_forward", kt.ForwardKL()),
    ):
        target = kt.solve(
            problem(inputs["ref"], inputs["R"], divergence, inputs["beta"], dtype=dtype)
        )
        got = kt.effective_modes(target.log_probs, [0, 1, -1])
        assert_reference("metrics-t3", got, key, dtype)


@given(testing.log_policies(5), st.sampled_from([0, 0.5, 1, 2, 3.5, INF]))
def test_hill_numbers_are_bounded_and_ordered(log_probs, order):
    number = float(kt.effective_modes(log_probs, order=order))
    assert 1 - 16 * eps(FLOAT) <= number <= 5 * (1 + 16 * eps(FLOAT))
    lower = float(kt.effective_modes(log_probs, order=order + 1))
    assert lower <= number * (1 + 64 * eps(FLOAT))
    with pytest.raises(ValueError, match="log_probs is not normalised"):
        kt.effective_modes(log_probs - FLOAT.type(3), order=order)


@pytest.mark.parametrize("order", [0, 0.5, 1, 2, INF])
def test_hill_numbers_of_equal_shares(order):
    log_probs = log([0.05, 0.15, 0.2, 0.2, 0.2, 0.2, 0.0])
    modes = [0, 0, 1, 2, -1, 3, 4]
    np.testing.assert_allclose(
        kt.effective_modes(log_probs, modes, order=order), 4, rtol=16 * eps(FLOAT)
    )
    assert np.isnan(kt.effective_modes(log([0.0, 0.0, 1.0]), [0, 1, -1], order=order))


def test_counts_of_pass_at_k_are_whole_numbers():
    for counts, name in (
        ((0.5, 4, 2), "num_correct"),
        ((1, 4.5, 2), "num_samples"),
        ((1, 4, 1.5), "k"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a whole number"):
            kt.modes.pass_at_k_from_counts(*counts)


@pytest.mark.parametrize("order", [0.5, 1, 2, INF])
def test_gradients_of_hill_numbers(order):
    modes = [0, 1, 0, 2, -1]
    x = jnp.array([-0.3, -1.2, 0.4, -0.7, 0.1], FLOAT)
    function = jax.jit(lambda x: kt.effective_modes(x, modes, order=order))
    gradient = jax.grad(function)(x)
    step = 3e-2 if eps(FLOAT) > 1e-10 else 1e-3
    for k in range(5):
        unit = jnp.zeros_like(x).at[k].set(1.0)
        want = oracles.central_difference(lambda t, u=unit: function(x + t * u), 0.0, step)
        np.testing.assert_allclose(gradient[k], want, atol=1e4 * eps(FLOAT) ** 0.9)
    assert np.isfinite(jax.grad(function)(x.at[1].set(-np.inf))).all()
    assert np.isfinite(jax.grad(kt.entropy)(x.at[1].set(-np.inf))).all()


def test_coverage_counts_what_equals_the_threshold():
    for size in (2, 3, 7, 10, 49):
        even = kt.normalize(np.zeros(size, FLOAT))
        assert kt.coverage(even, least_probability=1 / size) == 1
        assert kt.coverage(even, least_probability=1.0, relative=True) == 1
        assert kt.coverage(even, least_probability=1.001 / size) == 0


@given(testing.log_policies(4), st.sampled_from([1e-6, 0.01, 0.1, 0.3, 0.5, 1.0]), st.booleans())
def test_coverage_counts_modes(log_probs, threshold, relative):
    p = np.exp(log_probs.astype(np.float64))
    mass = np.array([p[0] + p[2], p[1], p[3]])
    bar = threshold * (mass.max() if relative else 1)
    if np.any(np.abs(mass / bar - 1) < 1e-4):
        return
    got = kt.coverage(log_probs, [0, 1, 0, 2], least_probability=threshold, relative=relative)
    np.testing.assert_allclose(got, (mass >= bar).mean(), rtol=4 * eps(FLOAT))


def test_metrics_take_batches_and_thresholds():
    log_probs = log([[0.5, 0.3, 0.2], [0.98, 0.01, 0.01]])
    got = kt.coverage(log_probs, least_probability=np.array([0.25, 0.01], FLOAT))
    np.testing.assert_allclose(got, [2 / 3, 1], rtol=4 * eps(FLOAT))
    single = kt.coverage(log_probs[0], least_probability=np.array([0.1, 0.25, 0.4], FLOAT))
    np.testing.assert_allclose(single, [1, 2 / 3, 1 / 3], rtol=4 * eps(FLOAT))
    assert kt.entropy(log_probs).shape == kt.effective_modes(log_probs).shape == (2,)
    short = kt.effective_modes(jnp.asarray(log_probs, jnp.bfloat16))
    assert short.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "metric",
    [
        lambda x: kt.effective_modes(x, [0, 1, 0, 2], order=2),
        lambda x: kt.coverage(x, [0, 1, 0, 2], least_probability=0.1),
        kt.entropy,
        lambda x: kt.mode_log_mass(x, [0, 1, 0, 2]),
        lambda x: kt.log_odds(x, 1, 2),
    ],
)
def test_metrics_under_jit_and_vmap(metric):
    x = log([[0.4, 0.3, 0.2, 0.1], [0.97, 0.01, 0.01, 0.01]])
    eager = metric(x)
    np.testing.assert_allclose(jax.jit(metric)(x), eager, rtol=4 * eps(FLOAT))
    np.testing.assert_allclose(jax.vmap(metric)(x), eager, rtol=4 * eps(FLOAT))


def test_bad_metrics_are_refused():
    with pytest.raises(ValueError, match="order must be 0 or more, got -1"):
        kt.effective_modes(log([0.5, 0.5]), order=-1)
    with pytest.raises(ValueError, match="order must be 0 or more, got nan"):
        kt.effective_modes(log([0.5, 0.5]), order=math.nan)
    for threshold in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="least_probability must be above 0 and at most 1"):
            kt.coverage(log([0.5, 0.5]), least_probability=threshold)
    with pytest.raises(ValueError, match="log_probs needs a last axis"):
        kt.entropy(0.0)


# pass@k


def test_pass_at_k_reference_values():
    inputs = reference("metrics-passk-exact")["inputs"]
    got = kt.pass_at_k(jnp.asarray(inputs["p"], FLOAT), jnp.array(inputs["k"]))
    assert_reference("metrics-passk-exact", got, "passk", FLOAT)
    inputs = reference("metrics-passk-unbiased")["inputs"]
    got = kt.modes.pass_at_k_from_counts(inputs["c"], inputs["n"], jnp.array(inputs["k"]))
    assert got[-1] == 1
    assert_reference("metrics-passk-unbiased", got, "passk", FLOAT)
    inputs = reference("metrics-passk-mixture")["inputs"]
    p = jnp.asarray(inputs["p"], FLOAT)
    got = kt.pass_at_k(p, inputs["k"]).mean()
    assert_reference("metrics-passk-mixture", got, "passk", FLOAT)
    got = kt.pass_at_k(p.mean(), inputs["k"])
    assert_reference("metrics-passk-mixture", got, "from_mean_p", FLOAT)
    inputs = reference("metrics-distinct-unbiased")["inputs"]
    got = kt.modes.pass_at_k_from_counts(np.array(inputs["counts"]), inputs["n"], inputs["k"]).sum()
    assert_reference("metrics-distinct-unbiased", got, "distinct", FLOAT)


@dtypes
def test_pass_at_k_in_arbitrary_precision(dtype):
    p = np.array([0, 1e-30, 1e-9, 0.1, 0.5, 0.999, 1], dtype)
    k = np.array([0, 1, 2, 100, 10**6])
    got = kt.pass_at_k(p[:, None], k)
    assert got.dtype == dtype
    assert got.shape == (7, 5)
    with mp.workdps(60):
        want = [[float(1 - (1 - mp.mpf(float(x))) ** int(n)) for n in k] for x in p]
    np.testing.assert_allclose(got, want, rtol=32 * eps(dtype))


def test_pass_at_k_counts_are_unbiased():
    """Claim: 1 − C(n − c, k)/C(n, k) is an unbiased estimate of pass@k (arXiv 2107.03374).

    Holds.
    """
    # The expectation over all outcomes of n draws is the exact value.
    n = 9
    for p, k in itertools.product((Fraction(1, 3), Fraction(9, 10)), (1, 2, 5, 9)):
        want = float(1 - (1 - p) ** k)
        weights = [float(math.comb(n, c) * p**c * (1 - p) ** (n - c)) for c in range(n + 1)]
        estimates = kt.modes.pass_at_k_from_counts(np.arange(n + 1), n, k)
        np.testing.assert_allclose(np.dot(weights, estimates), want, rtol=64 * eps(FLOAT))


@given(st.integers(1, 400), st.data())
def test_pass_at_k_counts_by_binomials(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    want = float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))
    got = kt.modes.pass_at_k_from_counts(c, n, k)
    assert got.dtype == FLOAT
    np.testing.assert_allclose(got, want, rtol=32 * eps(FLOAT))


def test_pass_at_k_is_differentiable_to_the_ends():
    for k, p in itertools.product((1, 2, 7), (0.0, 0.3, 1.0)):
        gradient = jax.grad(kt.pass_at_k)(jnp.asarray(p, FLOAT), k)
        np.testing.assert_allclose(gradient, k * (1 - p) ** (k - 1), rtol=16 * eps(FLOAT))


def test_pass_at_k_of_rounded_sums():
    assert kt.pass_at_k(jnp.asarray(1 + 2 * eps(FLOAT), FLOAT), 3) == 1


def test_pass_at_k_refuses_impossible_numbers():
    with pytest.raises(ValueError, match=r"success_probability must be between 0 and 1, got -0.1"):
        kt.pass_at_k(-0.1, 2)
    with pytest.raises(ValueError, match=r"k must be 0 or more, got -1.0 at index 1"):
        kt.pass_at_k(0.5, np.array([1, -1]))
    with pytest.raises(ValueError, match="do not broadcast"):
        kt.pass_at_k(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="num_correct must be between 0 and num_samples"):
        kt.modes.pass_at_k_from_counts(5, 4, 1)
    with pytest.raises(ValueError, match="k must be between 1 and num_samples"):
        kt.modes.pass_at_k_from_counts(1, 4, 5)
    traced = jax.jit(kt.pass_at_k)(jnp.array([0.5, 1.5]), 1)
    np.testing.assert_array_equal(np.isnan(traced), [False, True])
    traced = jax.jit(kt.modes.pass_at_k_from_counts)(jnp.array([1, 9]), 4, 2)
    np.testing.assert_array_equal(np.isnan(traced), [False, True])


def test_pass_at_k_under_vmap():
    c, n = jnp.array([0, 3, 17, 20]), 20
    eager = kt.modes.pass_at_k_from_counts(c, n, 4)
    mapped = jax.jit(jax.vmap(lambda c: kt.modes.pass_at_k_from_counts(c, n, 4)))(c)
    np.testing.assert_allclose(mapped, eager, rtol=4 * eps(FLOAT))
