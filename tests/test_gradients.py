"""Derivatives of the targets: the implicit ones, exact to rounding, finite everywhere."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import oracles
import pytest
from oracles import BY_ID, CASES, DTYPES, INF, X64, eps

import kltarget as kt

# Closed forms and their derivatives are worth their digits in double precision too.
pytestmark = pytest.mark.precise

cases = pytest.mark.parametrize("case", CASES, ids=oracles.ids)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
P5, R5 = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.1, 0.5, 1.0, 0.9, 0.3])


def log(x, dtype=np.float64):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(x, np.float64)).astype(dtype)


DEEP = oracles.log_normalised(np.array([-700.0, 0.0, -1.0, -1.5, -0.5, -1.0]), np.float64)
ROWS = {
    # reward, log_ref, beta
    "interior": ([0.1, 0.5, 1.0, 0.9, 0.3, 0.2], log([0.3, 0.3, 0.15, 0.1, 0.05, 0.1]), 0.5),
    "sharp": ([0.1, 0.5, 1.0, 0.9, 0.3, 0.2], log([0.3, 0.3, 0.15, 0.1, 0.05, 0.1]), 0.125),
    "tied": ([0.0, 1.0, 1.0, 0.5, 0.0, 1.0], log([0.3, 0.3, 0.15, 0.1, 0.05, 0.1]), 0.25),
    "impossible": ([0.1, 0.5, 1.0, 0.9, 0.0, 0.2], log([0.4, 0.3, 0.15, 0.15, 0, 0]), 0.5),
    "forbidden": ([0.1, -INF, 1.0, 0.9, 0.3, -INF], log([0.3, 0.3, 0.15, 0.1, 0.05, 0.1]), 0.5),
    "condensed": ([0.2, 0.6, 1.0, 1.5, 0.1, 0.0], log([0.5, 0.3, 0.2, 0, 0, 0]), 0.1),
    "deep": ([1.0, 0.0, 0.5, 0.25, 0.75, 0.5], DEEP, 0.5),
    "dear": ([0.1, 0.5, 1.0, 0.9, 0.3, 0.2], log([0.3, 0.3, 0.15, 0.1, 0.05, 0.1]), 64.0),
}


def table(dtype):
    columns = zip(*ROWS.values(), strict=True)
    return tuple(np.array(column).astype(dtype) for column in columns)


ARGUMENTS = ("divergence", "reward", "log_ref", "beta")


def outputs(divergence, reward, log_ref, beta):
    target = kt.solve(kt.Objective(reward, log_ref, beta, divergence))
    return (target.probs, target.log_probs, target.multiplier), target.log_probs


@functools.partial(jax.jit, static_argnames="mode")
def jacobians(divergence, reward, log_ref, beta, mode):
    """Row by row, of probabilities, log-probabilities and multiplier; and the second of these."""
    jac = jax.jacfwd if mode == "forward" else jax.jacrev
    argnums = (0, 1, 2, 3) if jax.tree.leaves(divergence) else (1, 2, 3)
    rows = jax.vmap(jac(outputs, argnums, has_aux=True), in_axes=(None, 0, 0, 0))
    return rows(divergence, reward, log_ref, beta)


@functools.cache
def exact_jacobians(case_id, dtype):
    """Difference quotients of the arbitrary-precision solution, to about twenty digits."""
    case = BY_ID[case_id]
    found = []
    with mp.workdps(700):
        h = mp.mpf(10) ** -40
        for reward, log_ref, beta in zip(*table(dtype), strict=True):
            r = [mp.mpf(float(x)) if x > -INF else -mp.inf for x in reward]
            q = [mp.mpf(float(x)) if x > -INF else -mp.inf for x in log_ref]
            b = mp.mpf(float(beta))

            def numbers(r, q, b):
                got = oracles.exact_target(r, q, b, case.generator)
                return [*got.probs, got.multiplier]

            here = numbers(r, q, b)

            def slope(r, q, b, here=here):
                there = numbers(r, q, b)
                return [float((x - y) / h) for x, y in zip(there, here, strict=True)]

            def moved(x, j):
                return [*x[:j], x[j] + h, *x[j + 1 :]]

            nothing = [0.0] * len(here)
            by_reward = [
                slope(moved(r, j), q, b) if r[j] > -mp.inf else nothing for j in range(len(r))
            ]
            by_ref = [
                slope(r, moved(q, j), b) if q[j] > -mp.inf else nothing for j in range(len(r))
            ]
            found.append((np.array(by_reward).T, np.array(by_ref).T, np.array(slope(r, q, b + h))))
    return found


def assert_matches(got, want, dtype, where, floor=0.0):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.all(np.isfinite(got)), where
    bar = eps(dtype) * (512 * np.abs(want).max() + floor)
    assert np.abs(got - want).max() <= bar, (where, got, want)


REVERSE = ("reverse-kl", "forward-kl", "chi-squared", "alpha-0.5")


@pytest.mark.slow
@pytest.mark.quick_only("reverse-kl", "forward-kl")
@dtypes
@cases
def test_jacobians_in_arbitrary_precision(case, dtype):
    columns = table(dtype)
    (probs, _, multiplier), _ = jacobians(case.divergence, *columns, mode="forward")
    for k, name in enumerate(ROWS):
        want = exact_jacobians(case.id, dtype)[k]
        for argument, of_probs, of_multiplier, exact in zip(
            ("reward", "log_ref", "beta"), probs[-3:], multiplier[-3:], want, strict=True
        ):
            where = f"{name}: by {argument}"
            assert_matches(of_probs[k], exact[:-1], dtype, where)
            scale = max(np.abs(exact[-1]).max(), 1)  # the multiplier moves with the reward
            error = np.abs(np.asarray(of_multiplier[k], np.float64) - exact[-1]).max()
            assert error <= 512 * eps(dtype) * scale, (where, of_multiplier[k], exact[-1])


@pytest.mark.quick_only("forward-kl")
@dtypes
@cases
def test_derivatives_at_masked_outcomes_are_exactly_zero(case, dtype):
    columns = table(dtype)
    found = jacobians(case.divergence, *columns, mode="forward")
    (probs, log_probs, multiplier), target = jax.tree.map(np.asarray, found)
    for k, name in enumerate(ROWS):
        reward, log_ref, _ = (column[k] for column in columns)
        zero = np.isneginf(target[k])
        dead = zero & (np.isneginf(reward) | np.isneginf(log_ref))
        for kind in (probs, log_probs):
            for jacobian in kind:
                for leaf in jax.tree.leaves(jacobian):
                    assert np.all(np.isfinite(leaf[k])), name
                    assert np.all(np.asarray(leaf[k])[zero] == 0), name
            by_reward, by_ref, _ = kind[-3:]
            assert np.all(np.asarray(by_reward[k])[:, dead] == 0), name
            assert np.all(np.asarray(by_ref[k])[:, np.isneginf(log_ref)] == 0), name
        for leaf in jax.tree.leaves(multiplier):
            assert np.all(np.isfinite(leaf[k])), name


@pytest.mark.broad
@pytest.mark.quick_only("forward-kl", "reverse-kl")
@dtypes
@pytest.mark.parametrize("name", REVERSE)
def test_forward_and_reverse_mode_agree(name, dtype):
    case, columns = BY_ID[name], table(dtype)
    forward, _ = jacobians(case.divergence, *columns, mode="forward")
    reverse, _ = jacobians(case.divergence, *columns, mode="reverse")
    for there, back in zip(jax.tree.leaves(forward), jax.tree.leaves(reverse), strict=True):
        for k, row in enumerate(ROWS):
            scale = np.abs(np.asarray(there[k], np.float64)).max()
            error = np.abs(np.asarray(there[k], np.float64) - np.asarray(back[k], np.float64))
            assert error.max() <= 64 * eps(dtype) * scale, row


@pytest.mark.slow
@pytest.mark.quick_only("0.5")
@dtypes
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.5, 1.0, 1.0 + 2.0**-10, 1.5, 3.0])
def test_derivative_by_alpha(alpha, dtype):
    columns = table(dtype)
    (probs, _, _), _ = jacobians(kt.Alpha(alpha), *columns, mode="forward")
    got = np.asarray(probs[0].alpha, np.float64)
    with mp.workdps(700):
        h = mp.mpf(2) ** -60  # the oracle's 80 digits lose 1/h near α = 1, and 1/h again here

        def at(order, k):
            # The order has more digits than a float: a generator of its own.
            def f_prime(u):
                return (u ** (order - 1) - 1) / (order - 1)

            def inverse(s):
                base = 1 + (order - 1) * s
                return base ** (1 / (order - 1)) if base > 0 else mp.mpf(0)

            generator = oracles.Generator(
                lambda u: mp.nan,
                f_prime,
                inverse,
                lambda: mp.nan,
                lambda: mp.inf if order >= 1 else 1 / (1 - order),
                0.5 * (1 + abs(alpha - 1)) + 0.5,
            )
            return oracles.exact_target(*(column[k] for column in columns), generator).probs

        for k, row in enumerate(ROWS):
            if alpha == 1 and row == "condensed":
                continue  # f′(∞) jumps from infinite to huge: the two one-sided limits meet in ∞
            up, down = at(mp.mpf(alpha) + h, k), at(mp.mpf(alpha) - h, k)
            want = [float((x - y) / (2 * h)) for x, y in zip(up, down, strict=True)]
            # At u near 1 the order hardly counts: what is left of terms of order one cancels.
            assert_matches(got[k], want, dtype, row, floor=4)


def test_against_central_differences_in_floating_point():
    if not X64:
        pytest.skip("differences of float32 results say little")
    rng = np.random.default_rng(8)
    point = np.concatenate([R5, log(P5), [0.5]])
    # Along the reward, the reference and β, one after the other.
    directions = np.zeros((3, 11))
    directions[0, :5], directions[1, 5:10], directions[2, 10] = *rng.normal(size=(2, 5)), 0.3
    cotangents = rng.normal(size=(3, 5))

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.vmap, in_axes=(None, 0, 0, 0))
    def both(divergence, x, direction, cotangent):
        def probs(x):
            return kt.solve(kt.Objective(x[:5], x[5:10], x[10], divergence, measure=True)).probs

        return *jax.jvp(probs, (x,), (direction,)), *jax.vjp(probs, x)[1](cotangent)

    # Of the point and of those beside it, in one program.
    steps = (0.0, 1e-3, -1e-3, 5e-4, -5e-4)
    points = np.concatenate([point + step * directions for step in steps])
    copies = [np.tile(x, (len(steps), 1)) for x in (directions, cotangents)]
    for divergence in (kt.ReverseKL(), kt.ForwardKL(), kt.JensenShannon(), kt.Alpha(1.5)):
        there, forward, backward = map(np.asarray, both(divergence, points, *copies))
        line = dict(zip(steps, np.split(there, len(steps)), strict=True))
        want = oracles.central_difference(line.__getitem__, 0.0, 1e-3)
        forward, backward = forward[:3], backward[:3]
        np.testing.assert_allclose(forward, want, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(
            (backward * directions).sum(-1), (want * cotangents).sum(-1), rtol=1e-8, atol=1e-10
        )


BANK = {
    "grad-alpha1-p5": kt.ReverseKL(),
    "grad-alpha0-p5": kt.ForwardKL(),
    "grad-alpha0.5-p5": kt.Alpha(0.5),
    "grad-js-p5": kt.JensenShannon(),
    "grad-chi2kl-p5": kt.ChiSquaredKL(),
}


@pytest.mark.quick_only("grad-alpha0-p5")
@dtypes
@pytest.mark.parametrize("name", BANK)
def test_gradients_of_the_bank(name, dtype):
    inputs = oracles.reference(name)["inputs"]
    # The first row of a table that is as large as the one above, with an impossible outcome more.
    columns = table(dtype)
    own = ([*inputs["R"], 0], log([*inputs["ref"], 0]), inputs["beta"])
    for column, x in zip(columns, own, strict=True):
        column[0] = x
    (probs, _, multiplier), _ = jacobians(BANK[name], *columns, mode="forward")
    by_reward, by_ref, by_beta = (np.asarray(x[0], np.float64)[..., :5] for x in probs[-3:])
    check = functools.partial(oracles.assert_reference, name, dtype=dtype, ulps=256)
    check(np.asarray(multiplier[-3][0])[:5], "dlam_dR")
    check(by_beta, "dpi_dbeta")
    check(by_reward[0], "dpi0_dR")
    check(by_ref[0] / np.array(inputs["ref"]), "dpi0_dref")


@dtypes
def test_derivatives_of_the_reverse_path_of_the_bank(dtype):
    name = "rkl-p5-derivs-b0.5"
    inputs = oracles.reference(name)["inputs"]
    reward, log_ref = np.array(inputs["R"], dtype), log(inputs["ref"], dtype)

    @jax.jit
    @jax.jacfwd
    def path(beta):
        target = kt.solve(kt.Objective(reward, log_ref, beta))
        return target.divergence_value, target.expected_reward, target.value

    derivatives = path(dtype.type(inputs["beta"]))
    for got, key in zip(derivatives, ("dKL_dbeta", "dER_dbeta", "dvalue_dbeta"), strict=True):
        oracles.assert_reference(name, got, key, dtype, ulps=128)


@pytest.mark.slow
@dtypes
@pytest.mark.parametrize("name", ["reverse-kl", "forward-kl", "chi-squared"])
def test_gradient_and_hessian_of_the_value(name, dtype):
    divergence = BY_ID[name].divergence

    @jax.jit
    def everything(reward, log_ref, beta):
        def value(reward, log_ref, beta):
            return kt.solve(kt.Objective(reward, log_ref, beta, divergence)).value

        def slopes(reward):
            gradient = jax.grad(value, (0, 1, 2))(reward, log_ref, beta)
            return gradient[0], gradient

        def probs(reward):
            target = kt.solve(kt.Objective(reward, log_ref, beta, divergence))
            return target.probs, target

        hessian, gradient = jax.jacfwd(slopes, has_aux=True)(reward)
        jacobian, target = jax.jacfwd(probs, has_aux=True)(reward)
        policy = jax.lax.stop_gradient(target.log_probs)

        def fixed(log_ref, beta):
            return kt.Objective(reward, log_ref, beta, divergence).value(policy)

        return {
            "gradient": gradient,
            "envelope": (target.probs, *jax.grad(fixed, (0, 1))(log_ref, beta)),
            "cost": target.divergence_value,
            "hessian": hessian,
            "jacobian": jacobian,
        }

    got = everything(R5.astype(dtype), log(P5, dtype), dtype.type(0.5))
    for x, want in zip(got["gradient"], got["envelope"], strict=True):
        np.testing.assert_allclose(x, want, rtol=64 * eps(dtype), atol=64 * eps(dtype))
    assert float(got["gradient"][2]) == pytest.approx(-float(got["cost"]), rel=64 * eps(dtype))
    np.testing.assert_allclose(
        got["hessian"], got["jacobian"], rtol=256 * eps(dtype), atol=64 * eps(dtype)
    )
    # J* is convex in the reward.
    curvature = np.linalg.eigvalsh(np.asarray(got["hessian"], np.float64))
    assert curvature.min() >= -256 * eps(dtype)


@dtypes
def test_second_derivatives_of_the_probabilities(dtype):
    reward, log_ref = jnp.asarray(R5, dtype), jnp.asarray(log(P5, dtype))

    def first(r):
        return kt.solve(kt.Objective(r, log_ref, dtype.type(0.5), kt.ForwardKL())).probs[0]

    hessian = np.asarray(jax.jit(jax.hessian(first))(reward), np.float64)
    np.testing.assert_allclose(hessian, hessian.T, atol=256 * eps(dtype))
    generator = BY_ID["forward-kl"].generator
    with mp.workdps(200):
        h = mp.mpf(10) ** -30
        exact_ref = [mp.mpf(float(x)) for x in np.asarray(log_ref)]

        def at(*moves):
            r = [mp.mpf(float(x)) for x in np.asarray(reward)]
            for index, step in moves:
                r[index] += step
            return oracles.exact_target(r, exact_ref, mp.mpf(0.5), generator).probs[0]

        for i, j in ((0, 0), (0, 2), (2, 3), (1, 4)):
            want = (
                at((i, h), (j, h))
                - at((i, h), (j, -h))
                - at((i, -h), (j, h))
                + at((i, -h), (j, -h))
            ) / (4 * h * h)
            assert hessian[i, j] == pytest.approx(
                float(want), abs=512 * eps(dtype) * np.abs(hessian).max()
            )


@dtypes
def test_total_variation_moves_only_what_is_kept(dtype):
    def probs(reward, log_ref, beta):
        return kt.solve(kt.Objective(reward, log_ref, beta, kt.TotalVariation())).probs

    by_reward, by_ref, by_beta = jax.jit(jax.jacrev(probs, (0, 1, 2)))(
        jnp.asarray(R5, dtype), jnp.asarray(log(P5, dtype)), dtype.type(0.75)
    )
    # The target is flat between its thresholds: [0, .3, .4 + .15, .1, .05].
    np.testing.assert_array_equal(by_reward, np.zeros((5, 5)))
    np.testing.assert_array_equal(by_beta, np.zeros(5))
    want = np.diag([0, 0.3, 0.15, 0.1, 0.05])
    want[2, 0] = 0.4
    np.testing.assert_allclose(by_ref, want, rtol=32 * eps(dtype), atol=32 * eps(dtype))


@pytest.mark.slow
def test_mapping_and_differentiating_commute():
    reward = np.stack([R5, R5[::-1], R5**2]).astype(np.float32)
    log_ref = log(P5, np.float32)

    def loss(r):
        return kt.solve(kt.Objective(r, log_ref, np.float32(0.3), kt.ForwardKL())).log_probs[..., 1]

    mapped = jax.jit(jax.vmap(jax.grad(loss)))(reward)
    batch = jax.jit(jax.grad(lambda r: loss(r).sum()))(reward)
    one = jax.jit(jax.grad(loss))
    one_by_one = [one(r) for r in reward]
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch, one_by_one, rtol=1e-5, atol=1e-6)


def total(reward, log_ref, beta, weights, divergence):
    target = kt.solve(kt.Objective.unchecked(reward, log_ref, beta, divergence))
    return (target.probs * weights).sum(), target


slopes_of_total = jax.value_and_grad(total, has_aux=True)


@pytest.mark.broad
@pytest.mark.parametrize(
    "divergence", [kt.ReverseKL(), kt.ForwardKL(), kt.JensenShannon(), kt.ChiSquared()], ids=str
)
def test_a_reward_that_the_same_program_computes(divergence):
    # A compiler may compute it anew at each use and round it otherwise: nothing is the best then.
    rng = np.random.default_rng(0)
    dtype = DTYPES[-1]
    x, y, z = rng.normal(size=(3, 16, 5)).astype(dtype)
    log_ref = log(rng.dirichlet(np.ones(5), size=16), dtype)
    beta = rng.uniform(0.05, 0.9, 16).astype(dtype)

    def row(x, y, z, log_ref, beta):
        reward = (jnp.exp(x) * y + z * x) / 0.77
        return reward, slopes_of_total(reward, log_ref, beta, y, divergence)

    apart = jax.jit(slopes_of_total)
    for each in (lambda f: f, jax.vmap):
        reward, ((_, got), slopes) = jax.jit(each(row))(x, y, z, log_ref, beta)
        (_, want), known = apart(np.asarray(reward), log_ref, beta, y, divergence)
        np.testing.assert_array_equal(got.status, want.status)
        probs, wanted = np.exp(got.log_probs), np.exp(want.log_probs)
        np.testing.assert_allclose(probs, wanted, rtol=64 * eps(dtype), atol=8 * eps(dtype))
        np.testing.assert_allclose(slopes, known, rtol=1e3 * eps(dtype), atol=1e3 * eps(dtype))
