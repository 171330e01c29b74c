"""Targets of continuous spaces by quadrature and by samples, with atoms.

The oracles are adaptive quadrature inside a scalar root, closed forms (a bank of them and tilted
Gaussians), fine uniform grids handed to ``solve``, and Monte Carlo.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from oracles import DTYPES, assert_reference, eps, reference

import kltarget as kt
from kltarget.mixtures import GridTarget, solve_on_grid, solve_on_samples
from kltarget.objectives import LogDensityReward, QuadraticReward
from kltarget.spaces import GaussianMixture

DTYPE = DTYPES[0]
DOUBLE = DTYPES[0].itemsize == 8
TOL = 1e-10 if DOUBLE else 1e-6
ROUNDING = 64 * eps(DTYPE)
MIXTURE_A = GaussianMixture(
    np.log(np.array([0.7, 0.3], DTYPE)),
    np.array([[-2.0], [2.0]], DTYPE),
    np.array([0.64, 0.36], DTYPE),
    covariance_type="spherical",
)


def normal(size: int) -> GaussianMixture:
    return GaussianMixture(
        np.zeros(1, DTYPE),
        np.zeros((1, size), DTYPE),
        np.ones(1, DTYPE),
        covariance_type="spherical",
    )


def bowl(size: int, center: float = 0.0, depth: float = 1.0) -> QuadraticReward:
    """``−depth·|x − center|²``."""
    return QuadraticReward.peak(np.full(size, center, DTYPE), 2 * depth * np.eye(size, dtype=DTYPE))


def close(got, want, tol=TOL):
    want = np.asarray(want, np.float64)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=ROUNDING, atol=3 * tol)


@dataclasses.dataclass(frozen=True)
class Written:
    """A divergence with f and the inverse of f′ in plain NumPy."""

    divergence: kt.Divergence
    f: Callable[[float], float]
    inverse: Callable[[float], float]
    slope: float = math.inf


def power(gamma: float) -> Callable[[float], float]:
    return lambda s: (1 + gamma * s) ** (1 / gamma)


WRITTEN = {
    "reverse": Written(kt.ReverseKL(), lambda u: u * np.log(u) - u + 1 if u else 1.0, np.exp),
    "forward": Written(kt.ForwardKL(), lambda u: u - 1 - np.log(u), power(-1.0), 1.0),
    "chi2": Written(kt.ChiSquared(), lambda u: (u - 1) ** 2, lambda s: max(1 + s / 2, 0.0)),
    "js": Written(
        kt.JensenShannon(),
        lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2),
        lambda s: 1 / (2 * np.exp(-s) - 1),
        math.log(2),
    ),
    "alpha-1": Written(kt.Alpha(-1.0), lambda u: (1 / u + u - 2) / 2, power(-2.0), 0.5),
    "alpha0.5": Written(kt.Alpha(0.5), lambda u: 2 * (1 - np.sqrt(u)) ** 2, power(-0.5), 2.0),
}


def by_quadrature(written: Written, density, reward, best: float, beta: float):
    """Multiplier, mean reward and divergence on the line, by quad inside brentq."""
    box = (-9.0, 9.0)
    peak = reward(best)

    def integral(g, inner=()):
        cuts = [box[0], *sorted({best, -2.0, 2.0, *inner}), box[1]]
        parts = itertools.pairwise(cuts)
        return sum(
            scipy.integrate.quad(g, a, b, epsabs=1e-13, epsrel=1e-12, limit=200)[0]
            for a, b in parts
        )

    def edges(multiplier):
        # where χ² truncates the target it has a kink
        if not isinstance(written.divergence, kt.ChiSquared):
            return ()
        level = multiplier - 2 * beta
        reach = math.sqrt(max(peak - level, 0))
        return tuple(x for x in (best - reach, best + reach) if box[0] < x < box[1])

    def ratio(x, multiplier):
        return written.inverse((reward(x) - multiplier) / beta)

    def excess(multiplier):
        return integral(lambda x: density(x) * ratio(x, multiplier), edges(multiplier)) - 1

    low = peak - beta * written.slope + 1e-5 if written.slope < math.inf else -30.0
    multiplier = scipy.optimize.brentq(excess, low, peak + 1.0, xtol=1e-13)
    inner = edges(multiplier)
    mean = integral(lambda x: density(x) * ratio(x, multiplier) * reward(x), inner)
    cost = integral(lambda x: density(x) * written.f(ratio(x, multiplier)), inner)
    return multiplier, mean, cost


def density_a(x: float) -> float:
    left, right = math.exp(-(((x + 2) / 0.8) ** 2) / 2), math.exp(-(((x - 2) / 0.6) ** 2) / 2)
    return (0.7 / 0.8 * left + 0.3 / 0.6 * right) / math.sqrt(2 * math.pi)


def assert_by_quadrature(target, k, written, beta):
    assert float(target.error[k]) <= TOL
    beta = float(DTYPE.type(beta))
    found = by_quadrature(written, density_a, lambda x: -((x - 1) ** 2), 1.0, beta)
    multiplier, mean, cost = found
    # an error of the mass moves the multiplier by at most this much
    slack = 30 * TOL * max(1, beta)
    close(target.multiplier[k], multiplier, slack)
    close(target.expected_reward[k], mean, slack)
    close(target.divergence_value[k], cost, slack)
    close(target.value[k], mean - beta * cost, slack)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")  # at the bracket's end
def test_targets_on_the_line_by_adaptive_quadrature(name):
    written = WRITTEN[name]
    # At β = 0.4 the density of α = −1 peaks beyond what quad can bracket.
    betas = np.array([2.0 if name == "alpha-1" else 0.4, 3.0], DTYPE)
    target = solve_on_grid(MIXTURE_A, bowl(1, 1.0), betas, written.divergence, error_tol=TOL)
    target.raise_if_failed()
    for k, beta in enumerate(betas):
        assert_by_quadrature(target, k, written, beta)


@pytest.fixture(scope="module")
def forward() -> GridTarget:
    return solve_on_grid(MIXTURE_A, bowl(1, 1.0), DTYPE.type(0.5), kt.ForwardKL(), error_tol=TOL)


@pytest.mark.broad
@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")  # at the bracket's end
def test_forward_target_of_a_mixture(forward):
    name, at = "gmm-forward", {"ulps": 2000}
    assert_reference(name, forward.multiplier + 0.5, "tau", DTYPE, ulps=4000)
    assert_reference(name, forward.mean[0], "mean", DTYPE, **at)
    assert_reference(name, forward.expected_reward, "mean_reward", DTYPE, **at)
    assert forward.atom_mass == 0
    assert forward.multiplier.dtype == forward.points.dtype == DTYPE
    close(np.exp(forward.component_log_mass).sum(), 1)
    assert_by_quadrature(forward, (), WRITTEN["forward"], 0.5)


@pytest.mark.broad
@pytest.mark.parametrize("name", ["gmm-linear", "gmm-quad"])
def test_reverse_targets_are_tilted_mixtures(name):
    reward = {
        "gmm-linear": QuadraticReward(vector=np.array([0.3], DTYPE)),
        "gmm-quad": bowl(1, 1.0, 0.2),
    }[name]
    target = solve_on_grid(MIXTURE_A, reward, DTYPE.type(0.5), error_tol=TOL)
    for key, got in {
        "log_Z": target.value / 0.5,
        "mean": target.mean[0],
        "var": target.covariance[0, 0],
        "weights": np.exp(target.component_log_mass),
    }.items():
        assert_reference(name, got, key, DTYPE, ulps=128)
    want = reference(name)["expected"]
    x = np.array([[-3.0], [0.3], [2.5]], DTYPE)
    tilted = GaussianMixture(
        np.log(np.array(want["weights"])).astype(DTYPE),
        np.array(want["means"], DTYPE)[:, None],
        np.array(want["stds"], DTYPE)[:, None] ** 2,
        covariance_type="diag",
    )
    close(target.log_prob(x), tilted.log_prob(x), 1e-9 if TOL < 1e-8 else 1e-5)


@pytest.mark.slow
def test_a_fine_uniform_grid_has_the_same_target(forward):
    x = np.linspace(-9, 9, 20_001)
    log_ref = np.log(np.vectorize(density_a)(x)) + math.log(x[1] - x[0])
    with jax.enable_x64(True):
        objective = kt.Objective(-((x - 1) ** 2), log_ref, 0.5, kt.ForwardKL(), measure=True)
        fine = kt.solve(objective)
        value, multiplier = float(fine.value), float(fine.multiplier)
    close(forward.value, value, 1e-6)
    close(forward.multiplier, multiplier, 1e-6)


@pytest.mark.parametrize("size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_forward_targets_of_a_normal_reference(size):
    name = f"fkl-gauss-d{size}"
    beta = {1: 0.5, 3: 1.5}[size]
    tol = min(TOL * 1000 ** (size - 1), 1e-6)
    target = solve_on_grid(
        normal(size), bowl(size), DTYPE.type(beta), kt.ForwardKL(), error_tol=tol
    )
    assert float(target.error) <= tol
    assert float(target.atom_mass) == 0
    case = reference(name)["expected"]
    close(target.multiplier + beta, case["tau"], 10 * tol + 4 * eps(DTYPE))
    close(target.expected_reward, case["mean_reward"], 10 * tol)


def assert_atom(target, place, mass, tol):
    assert int(target.status) == int(kt.Status.CONDENSED)
    np.testing.assert_allclose(target.atom, place, atol=4 * eps(DTYPE))
    # what the error estimates, it also bounds
    assert abs(float(target.atom_mass) - mass) <= float(target.error) + 8 * eps(DTYPE)
    assert float(target.error) <= tol


@pytest.mark.slow
def test_no_atom_in_two_dimensions_however_small_beta():
    """``β g(τ) = 1`` with ``g = ½ e^{τ/2} E₁(τ/2)``: τ = 2 exp(−γ − 2/β) is 1e-29 at β = 0.03."""
    beta = float(DTYPE.type(0.03))
    target = solve_on_grid(normal(2), bowl(2), DTYPE.type(beta), kt.ForwardKL())
    target.raise_if_failed()
    assert float(target.atom_mass) == 0
    log_tau = math.log(2) - np.euler_gamma - 2 / beta
    # The density in the middle is β p/τ there; the node next to it is not quite the middle.
    log_peak = float(target.log_density.max())
    np.testing.assert_allclose(log_peak, math.log(beta / (2 * math.pi)) - log_tau, atol=0.03)


@pytest.mark.slow
def test_atoms_of_forward_targets_in_three_dimensions():
    name, beta = "fkl-gauss-atom-d3-b0.5", 0.5
    tol = 1e-5
    target = solve_on_grid(
        normal(3), bowl(3), DTYPE.type(beta), kt.ForwardKL(), error_tol=tol
    ).raise_if_failed()
    case = reference(name)["expected"]
    assert_atom(target, np.zeros(3), case["atom"], tol)
    close(target.expected_reward, case["mean_reward"], 3 * tol)
    close(target.multiplier, case["Lambda"] - beta, tol)
    close(target.mean, np.zeros(3), tol)


@pytest.mark.slow
@pytest.mark.parametrize(("divergence", "size"), [("alpha", 2), ("neyman", 3)])
def test_atoms_of_alpha_targets(divergence, size):
    """Neyman's χ² is twice the divergence of α = −1, and a far smaller program."""
    case = reference(f"alpha-condense-a-1.0-d{size}")["expected"]
    tol = 1e-5
    beta = DTYPE.type(case["beta_critical"] / (2 if divergence == "alpha" else 4))
    chosen = kt.Alpha(-1.0) if divergence == "alpha" else kt.NeymanChiSquared()
    target = solve_on_grid(normal(size), bowl(size), beta, chosen, error_tol=tol)
    assert_atom(target, np.zeros(size), case["atom_at_half"], tol)
    moved = target.expectation(lambda x: jnp.square(x).sum(-1))
    close(moved, -target.expected_reward, 1e-6)


@pytest.mark.slow
def test_an_atom_that_no_float_can_resolve_is_not_believed():
    """In two dimensions there is none, but Λ − sup r is e^−67 here, and r is a function only."""
    off = GaussianMixture(
        np.zeros(1, DTYPE),
        np.array([[1.0, 2.0]], DTYPE),
        np.ones(1, DTYPE),
        covariance_type="spherical",
    )

    def reward(x):
        return -jnp.square(x[:, 0] - 1.3) - jnp.square(x[:, 1] - 1.7)

    beta = DTYPE.type(0.03)
    target = solve_on_grid(off, reward, beta, kt.ForwardKL(), max_points=40_000)
    assert int(target.status) & int(kt.Status.NOT_CONVERGED)
    assert float(target.error) >= float(target.atom_mass)
    assert float(target.error) > 1e-3
    with pytest.raises(ValueError, match="not accurate enough"):
        target.raise_if_failed()


def test_functions_as_density_and_reward(forward):
    target = solve_on_grid(
        lambda x: MIXTURE_A.log_prob(x),
        lambda x: -jnp.square(x[:, 0] - 1),
        DTYPE.type(0.5),
        kt.ForwardKL(),
        bounds=forward.box,
        error_tol=TOL,
        modes=lambda x: (np.asarray(x)[:, 0] > 0.123).astype(int),
    )
    close(target.atom, [1.0], 1e-7)
    close(target.multiplier, forward.multiplier)
    tau = float(forward.multiplier) + 0.5
    above = scipy.integrate.quad(
        lambda x: 0.5 * density_a(x) / (tau + (x - 1) ** 2), 0.123, 9, points=[1.0], epsabs=1e-13
    )[0]
    # tau has the digits that λ leaves it
    close(np.exp(target.mode_log_mass)[1], above, 1e-9 if TOL < 1e-8 else 1e-4)
    close(np.exp(target.mode_log_mass).sum(), 1)


@pytest.mark.broad
def test_the_same_nodes_serve_again(forward):
    """The derivative of the value in β is −D, and in the reward's parameters a mean (envelope)."""

    def value(beta, center):
        reward = QuadraticReward.peak(center, 2 * np.eye(1, dtype=DTYPE))
        found = solve_on_grid(MIXTURE_A, reward, beta, kt.ForwardKL(), grid=forward)
        return found.value, found

    at = jnp.asarray(0.5, DTYPE), jnp.ones(1, DTYPE)
    slopes, again = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))(*at)
    loose = 1e-9 if DOUBLE else 1e-3
    close(again.log_density, forward.log_density, loose)
    close(slopes[0], -forward.divergence_value, loose)
    close(slopes[1], 2 * (forward.mean - 1), loose)


@pytest.mark.slow
def test_derivatives_on_the_same_nodes(forward):
    def value(theta):
        """β, the peak's place, its curvature, a mean and a weight of the reference."""
        beta, center, bend, mean, weight = theta
        density = GaussianMixture(
            jnp.log(jnp.stack([weight, 1 - weight])),
            jnp.stack([mean, jnp.full_like(mean, 2.0)])[:, None],
            np.array([0.64, 0.36], DTYPE),
            covariance_type="spherical",
        )
        reward = QuadraticReward.peak(center[None], 2 * bend[None, None])
        found = solve_on_grid(density, reward, beta, kt.ForwardKL(), grid=forward)
        return found.value + 0.7 * found.mean[0] - 0.4 * found.multiplier

    at = np.array([0.5, 1.0, 1.0, -2.0, 0.7])
    step = 1e-4 if DOUBLE else 2e-2
    points = at + step * np.concatenate([np.zeros((1, 5)), np.eye(5), -np.eye(5)])
    found = jax.jit(jax.vmap(jax.value_and_grad(value)))(jnp.asarray(points, DTYPE))
    values, slopes = (np.asarray(x, np.float64) for x in found)
    want = (values[1:6] - values[6:]) / (2 * step)
    np.testing.assert_allclose(slopes[0], want, rtol=1e-5 if DOUBLE else 1e-2, atol=20 * step**2)


@pytest.mark.slow
def test_a_truncated_space_is_one_of_its_own():
    box = np.array([[-4.0, -1.0]], DTYPE)
    target = solve_on_grid(
        MIXTURE_A,
        QuadraticReward(vector=np.ones(1, DTYPE)),
        DTYPE.type(0.5),
        kt.ForwardKL(),
        bounds=box,
        truncate=True,
        error_tol=TOL,
    ).raise_if_failed()
    mass = scipy.integrate.quad(density_a, -4, -1, epsabs=1e-13)[0]

    def excess(top):
        def integrand(x):
            return 0.5 * density_a(x) / mass / (top - x)

        return scipy.integrate.quad(integrand, -4, -1, epsabs=1e-12, limit=300)[0] - 1

    top = float(scipy.optimize.brentq(excess, -1 + 1e-7, 3, xtol=1e-13))  # pyright: ignore[reportArgumentType]
    close(target.multiplier + 0.5, top, 1e-9 if TOL < 1e-8 else 3e-6)
    x = np.array([[-2.0], [-0.9]], DTYPE)
    inside = math.log(0.5 * density_a(-2.0) / mass / (top + 2))
    np.testing.assert_allclose(target.log_prob(x), [inside, -np.inf], rtol=1e-5)


@pytest.mark.slow
def test_a_second_peak_is_seen_at_small_beta():
    """Next to nodes of one peak those of another one count for nothing."""
    places, widths = (-2.1234, 1.7654), (0.1, 0.05)

    def reward(x):
        bumps = [
            jnp.exp(-jnp.square((x[:, 0] - m) / s)) for m, s in zip(places, widths, strict=True)
        ]
        return bumps[0] + bumps[1]

    beta = 1e-4
    target = solve_on_grid(
        MIXTURE_A,
        reward,
        DTYPE.type(beta),
        bounds=[[-8, 7]],
        modes=lambda x: (np.asarray(x)[:, 0] > 0).astype(int),
    )
    # Laplace's approximation of either peak
    mass = [density_a(m) * s for m, s in zip(places, widths, strict=True)]
    close(np.exp(target.mode_log_mass), np.array(mass) / sum(mass), 1e-3)


DEGENERATE = {
    "a component without weight": ([0.0, -np.inf], [[0.0], [5.0]], [1.0, 1.0]),
    "identical components": ([math.log(0.5)] * 2, [[0.0], [0.0]], [1.0, 1.0]),
    "a narrow component far away": ([math.log(0.999), math.log(0.001)], [[0.0], [60.0]], [1, 1e-8]),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=[pytest.mark.slow if "narrow" in x else pytest.mark.broad])
        for x in DEGENERATE
    ],
)
def test_degenerate_mixtures(name):
    weights, means, variances = DEGENERATE[name]
    mixture = GaussianMixture(
        np.array(weights, DTYPE),
        np.array(means, DTYPE),
        np.array(variances, DTYPE),
        covariance_type="spherical",
    )
    slope = 0.1
    target = solve_on_grid(mixture, QuadraticReward(vector=np.array([slope], DTYPE)), DTYPE.type(1))
    log_z = np.log(
        sum(
            np.exp(w + slope * m[0] + slope**2 * v / 2)
            for w, m, v in zip(weights, means, variances, strict=True)
        )
    )
    close(target.value, log_z, 3e-6)
    assert target.raise_if_failed() is target


def test_what_is_refused_says_why():
    line, beta = normal(1), DTYPE.type(0.5)
    up = QuadraticReward(vector=np.ones(1, DTYPE))
    convex = QuadraticReward(np.full((1, 1), 0.8, DTYPE))
    for call, message in {
        lambda: solve_on_grid(line, up, beta, kt.ForwardKL()): "reward is unbounded",
        lambda: solve_on_grid(
            line, lambda x: x[:, 0], beta, kt.ForwardKL(), bounds=[[-9, 9]]
        ): "edge of the bounds",
        lambda: solve_on_grid(line, convex, beta): "beta must be above 0.8",
        lambda: solve_on_grid(line, up, beta, bounds=[[-9, 1]]): "has the mass 0.841",
        lambda: solve_on_grid(line, up, DTYPE.type(0.1), bounds=[[-7, 7]]): "mass of the target",
        lambda: solve_on_grid(line, up, -beta): "beta must be above 0",
        lambda: solve_on_grid(line, lambda x: x, beta, bounds=[[-9, 9]]): "one number per point",
        lambda: solve_on_grid(line, lambda x: x[:, 0], beta): "bounds are needed",
        lambda: solve_on_grid(lambda x: x[:, 0], up, beta): "bounds are needed",
        lambda: solve_on_grid(normal(4), QuadraticReward(dim=4), beta): "4 dimensions",
        lambda: solve_on_grid(line, up, beta, bounds=[[0, 1], [0, 1]]): r"shape \(1, 2\)",
        lambda: solve_on_grid(
            line, lambda x: jnp.log(x[:, 0]), beta, bounds=[[-9, 9]]
        ): "reward must be below",
        lambda: solve_on_grid(
            line, bowl(1), beta, kt.ForwardKL(), maximum=[1.0]
        ): "leave maximum out",
        lambda: solve_on_samples(np.zeros(3, DTYPE), up, beta): "samples has shape",
        lambda: solve_on_samples(np.zeros((3, 1), DTYPE), np.ones(2, DTYPE), beta): "per sample",
        lambda: solve_on_samples(
            np.zeros((3, 1), DTYPE), np.ones(3, DTYPE), beta, maximum=([0.0], 0.5)
        ): "maximum has the reward",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="pass the result as grid="):
        jax.jit(lambda b: solve_on_grid(line, up, b).value)(beta)


def test_a_log_density_as_reward():
    """``p e^{r/β}`` with ``r = β log q`` is ``pq``, a mixture over pairs of components."""
    likelihood = GaussianMixture(
        np.log(np.array([0.4, 0.6], DTYPE)),
        np.array([[-1.0], [2.5]], DTYPE),
        np.array([1.0, 0.25], DTYPE),
        covariance_type="spherical",
    )
    target = solve_on_grid(
        MIXTURE_A, LogDensityReward(likelihood, 0.5), DTYPE.type(0.5), error_tol=TOL
    )
    for key, got in {
        "log_Z": target.value / 0.5,
        "mean": target.mean[0],
        "var": target.covariance[0, 0],
    }.items():
        assert_reference("gmm-product", got, key, DTYPE, ulps=128)


def draws(count: int, size: int) -> jax.Array:
    return jax.random.normal(jax.random.key(6), (count, size), DTYPE)


@pytest.mark.slow
def test_samples_in_five_dimensions():
    """Regular at β = 4; with an atom at β = 1, and E|x|⁻⁴ finite, so that errors can be trusted."""
    regular = reference("fkl-gauss-d5")["expected"]
    atom = reference("fkl-gauss-atom-d5-b1.0")["expected"]
    betas = np.array([4.0, 1.0], DTYPE)
    target = solve_on_samples(draws(8000, 5), bowl(5), betas, kt.ForwardKL())
    assert list(target.status) == [0, int(kt.Status.CONDENSED)]

    def loss_and_atom(x):
        return jnp.stack([-jnp.square(x).sum(-1), (x == 0).all(-1).astype(DTYPE)], -1)

    both, errors = target.expectation(loss_and_atom), target.expectation_error(loss_and_atom)
    mean, held = np.asarray(both).T
    mean_error, held_error = np.asarray(errors).T
    assert abs(mean[0] - regular["mean_reward"]) < 4 * mean_error[0] < 0.4
    assert abs(held[1] - atom["atom"]) < 4 * held_error[1] < 0.05
    # At λ = λ_c the density times (sup r − r) is β p, whatever the samples: only rounding is left.
    assert abs(mean[1] - atom["mean_reward"]) < 4 * mean_error[1] + 8000 * eps(DTYPE)
    np.testing.assert_allclose(held[1], target.atom_mass[1], rtol=1e-5)
    np.testing.assert_allclose(mean, target.target.expected_reward, rtol=1e-4)
    # By duality the true value is E r − β D = Λ − β + β E log(β/(Λ − r)).
    top = regular["tau"]
    inner = scipy.integrate.quad(
        lambda y: math.log(4 / (top + y)) * scipy.stats.chi2.pdf(y, 5), 0, np.inf
    )[0]
    value, value_error = target.value, target.value_error
    assert abs(float(value[0]) - (top - 4 + 4 * inner)) < 4 * float(value_error[0]) < 0.4
    assert float(target.effective_sample_size[0]) > 2_000


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("reverse", marks=pytest.mark.slow),
        pytest.param("forward", marks=pytest.mark.slow),
        pytest.param("chi2", marks=pytest.mark.slow),
    ],
)
def test_intervals_cover_as_often_as_they_say(name):
    divergence = WRITTEN[name].divergence
    exact = solve_on_grid(normal(1), bowl(1, 0.5), DTYPE.type(1.0), divergence, error_tol=1e-8)
    samples = jax.random.normal(jax.random.key(1), (500, 400, 1), DTYPE)

    @jax.jit
    @jax.vmap
    def estimates(x):
        target = solve_on_samples(x, bowl(1, 0.5), DTYPE.type(1.0), divergence)
        mean = target.expectation(lambda x: x[:, 0])
        mean_error = target.expectation_error(lambda x: x[:, 0])
        return (mean, mean_error), (target.value, target.value_error)

    for (mean, error), truth in zip(estimates(samples), (exact.mean[0], exact.value), strict=True):
        covered = np.abs(np.asarray(mean) - float(truth)) < 1.96 * np.asarray(error)
        # 0.95 ± 4 binomial standard errors, and 0.01 for the bias of 400 samples
        assert abs(covered.mean() - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 500) + 0.01


@pytest.mark.slow
def test_estimates_from_samples_are_differentiable():
    x = draws(200, 2)

    @jax.jit
    @jax.vmap
    @jax.value_and_grad
    def mean(theta):
        reward = QuadraticReward.peak(theta[1:3], jnp.eye(2, dtype=DTYPE))
        target = solve_on_samples(x, reward, theta[0], kt.ForwardKL())
        return target.expectation(lambda x: x[:, 0])

    step = 1e-5 if DOUBLE else 1e-2
    eye = step * np.eye(3, dtype=DTYPE)
    points = np.array([1.0, 0.3, -0.2], DTYPE) + np.concatenate(
        [np.zeros((1, 3), DTYPE), eye, -eye]
    )
    means, slopes = map(np.asarray, mean(points))
    want = (means[1:4] - means[4:]) / (2 * step)
    np.testing.assert_allclose(slopes[0], want, rtol=1e-6 if step < 1e-3 else 2e-2)
