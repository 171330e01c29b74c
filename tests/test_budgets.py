"""``beta_for`` against arbitrary precision, scipy's roots, finite differences and closed forms."""

import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.optimize
from oracles import (
    BY_ID,
    DTYPES,
    assert_reference,
    double_precision,
    eps,
    exact_target,
    reference,
    reference_ids,
)

import kltarget as kt
from kltarget.frontier import best_of_n, beta_for

FLOAT = np.dtype(jnp.result_type(float))
REF, REWARD = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.1, 0.5, 1.0, 0.9, 0.3])

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def problem(divergence=None, dtype=FLOAT, ref=REF, reward=REWARD):
    with np.errstate(divide="ignore"):
        log_ref = np.log(np.asarray(ref, np.float64)).astype(dtype)
    return kt.Objective(
        np.asarray(reward, dtype), log_ref, dtype.type(1), divergence or kt.ReverseKL()
    )


@pytest.mark.parametrize("name", reference_ids("budget-rkl", "budget-fkl"))
@dtypes
def test_budget_reference_values(name, dtype):
    forward = "fkl" in name
    objective = problem(kt.ForwardKL() if forward else None, dtype)
    asked = {"forward_kl" if forward else "kl": reference(name)["inputs"]["budget"]}
    beta = beta_for(objective, **asked)
    assert beta.dtype == dtype
    assert_reference(name, beta, "beta", dtype, ulps=128)
    target = kt.solve(kt.Objective(objective.reward, objective.log_ref, beta, objective.divergence))
    assert_reference(name, target.probs, "pi", dtype, ulps=256)
    assert_reference(name, target.expected_reward, "mean_reward", dtype)
    reward = reference(name)["expected"]["mean_reward"]
    back = beta_for(objective, expected_reward=reward)
    assert_reference(name, back, "beta", dtype, ulps=256)


def measured(kind, probs):
    """In arbitrary precision, of the problem above; success is of the last three outcomes."""
    ref, reward = ([mp.mpf(float(x)) for x in xs] for xs in (REF, REWARD))
    ref = [x / mp.fsum(ref) for x in ref]
    pairs = list(zip(probs, ref, strict=True))
    return {
        "kl": lambda: mp.fsum(p * mp.log(p / q) for p, q in pairs if p > 0),
        "forward_kl": lambda: mp.fsum(q * mp.log(q / p) for p, q in pairs),
        "expected_reward": lambda: mp.fsum(p * r for p, r in zip(probs, reward, strict=True)),
        "success": lambda: mp.fsum(probs[2:]),
        "effective_modes": lambda: mp.exp(-mp.fsum(p * mp.log(p) for p in probs if p > 0)),
    }[kind]()


GOALS = {"kl": 0.4, "forward_kl": 0.35, "expected_reward": 0.72, "success": 0.6}
GOALS |= {"effective_modes": 3.5}


def assert_fifty_digits(beta, case, kind):
    """That the measure crosses its goal within a digit or two of β's last ones."""
    log_ref, goal = np.log(REF), GOALS[kind]
    values = [
        measured(kind, exact_target(REWARD, log_ref, beta * (1 + side), case.generator).probs)
        for side in (-1e-11, 1e-11)
    ]
    assert (values[0] - goal) * (values[1] - goal) < 0


# A measure sees the target alone, so each divergence needs but a few of them, and each kind two.
# Others are those of the gradients below.
@pytest.mark.quick_only("reverse-kl-kl", "forward-kl-effective_modes")
@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("reverse-kl", "kl"),
        ("reverse-kl", "success"),
        ("forward-kl", "effective_modes"),
        ("jensen-shannon", "kl"),
        ("jensen-shannon", "success"),
        ("alpha--0.5", "expected_reward"),
        ("alpha--0.5", "forward_kl"),
    ],
)
def test_every_measure_of_every_divergence_against_fifty_digits(case, kind):
    case = BY_ID[case]
    with double_precision():
        objective = problem(case.divergence, np.dtype(np.float64))
        options = {"modes": [-1, -1, 0, 1, 2]} if kind == "success" else {}
        beta = float(beta_for(objective, **{kind: GOALS[kind]}, **options))
    assert_fifty_digits(beta, case, kind)


@dtypes
def test_a_batch_of_budgets_against_scipy(dtype):
    rng = np.random.default_rng(2)
    rewards = rng.normal(size=(3, 1, 8))
    log_ref = np.log(rng.dirichlet(np.ones(8), (3, 1)))
    budgets = np.array([0.05, 0.3, 0.6])

    def kl_at(log_beta, reward, q):
        log_p = q + reward / math.exp(log_beta)
        log_p -= np.logaddexp.reduce(log_p)
        return np.exp(log_p) @ (log_p - q)

    objective = kt.Objective(rewards.astype(dtype), log_ref.astype(dtype), dtype.type(3))
    found = np.asarray(beta_for(objective, kl=budgets.astype(dtype)))
    assert found.shape == (3, 3)
    assert found.dtype == dtype
    for i, k in np.ndindex(3, 3):
        row = rewards[i, 0], log_ref[i, 0]
        root = scipy.optimize.brentq(lambda x, k=k, row=row: kl_at(x, *row) - budgets[k], -9, 9)
        assert abs(found[i, k] / math.exp(root) - 1) <= max(512 * eps(dtype), 1e-11)


@pytest.mark.broad
def test_reward_bought_per_nat_is_beta():
    with double_precision():
        for divergence, kind in ((kt.ReverseKL(), "kl"), (kt.ForwardKL(), "forward_kl")):
            objective = problem(divergence, np.dtype(np.float64))
            budgets = np.array([0.02, 0.3, 1.1])

            def earned(nats, objective=objective, kind=kind):
                beta = beta_for(objective, **{kind: nats})
                rows = kt.Objective(objective.reward, objective.log_ref, beta, objective.divergence)
                return np.asarray(kt.solve(rows).expected_reward)

            slope = (earned(budgets + 1e-5) - earned(budgets - 1e-5)) / 2e-5
            beta = np.asarray(beta_for(objective, **{kind: budgets}))
            np.testing.assert_allclose(slope, beta, rtol=1e-6)


def test_a_reverse_kl_of_the_whole_reference_mass_of_the_best_is_not_reached():
    most = reference("budget-max")["expected"]["max_kl"]
    objective = problem()
    assert float(beta_for(objective, kl=most - 1e-3)) > 0
    with pytest.raises(ValueError, match=r"kl=2\.0 is not reached: .* between 0 and 1\.897 nats"):
        beta_for(objective, kl=2.0)
    with pytest.raises(ValueError, match=r"kl=-1\.0 is not reached"):
        beta_for(objective, kl=-1.0)
    with pytest.raises(
        ValueError, match=r"at index 1: the expected reward lies between 0\.445 and 1"
    ):
        beta_for(objective, expected_reward=np.array([0.5, 1.5], FLOAT))
    tied = problem(reward=[1.0] * 5)
    with pytest.raises(ValueError, match="between 0 and 0 nats"):
        beta_for(tied, kl=0.1)


@pytest.mark.parametrize("budget", [3.0, 12.0, 40.0])
@dtypes
def test_forward_kl_reaches_every_budget(budget, dtype):
    objective = problem(kt.ForwardKL(), dtype)
    beta = float(beta_for(objective, forward_kl=budget))
    # With Λ = 1 + β t: KL(π_ref‖π) = Σ π_ref log(Λ − r) − log β, of few digits fewer than β has.
    with mp.workdps(60):
        probs = exact_target(
            objective.reward.tolist(),
            objective.log_ref.tolist(),
            beta,
            BY_ID["forward-kl"].generator,
        ).probs
        ref = [mp.exp(x) for x in objective.log_ref.tolist()]
        reached = mp.fsum(q * mp.log(q / p) for q, p in zip(ref, probs, strict=True))
    assert abs(float(reached) - budget) <= 256 * eps(dtype) * budget


def test_a_budget_may_need_a_smaller_coefficient_than_there_is():
    with pytest.raises(ValueError, match=r"KL\(π_ref‖π\) is .* nats at the smallest β"):
        beta_for(problem(kt.ForwardKL()), forward_kl=5000.0)


@pytest.mark.broad
def test_total_variation_jumps_over_most_budgets():
    with pytest.raises(ValueError, match=r"KL\(π‖π_ref\) jumps between .* at β = 0\.9"):
        beta_for(problem(kt.TotalVariation()), kl=0.1)


@pytest.mark.broad
def test_condensation_ends_what_kl_can_be_spent():
    ref, reward = [0.5, 0.3, 0.2, 0.0], [0.2, 0.6, 1.0, 1.5]
    objective = problem(kt.ForwardKL(), ref=ref, reward=reward)
    # Λ = r_out holds from Σ β π_ref/(r_out − r) = 1 on.
    last = 1 / (0.5 / 1.3 + 0.3 / 0.9 + 0.2 / 0.5)
    with pytest.raises(ValueError, match=rf"jumps between .* and inf nats, at β = {last:.4g}"):
        beta_for(objective, kl=1.0)
    target = kt.solve(
        kt.Objective(
            objective.reward,
            objective.log_ref,
            beta_for(objective, expected_reward=1.3),
            kt.ForwardKL(),
        )
    )
    assert target.status == kt.Status.CONDENSED
    np.testing.assert_allclose(target.expected_reward, 1.3, rtol=64 * eps(FLOAT))


def test_of_several_betas_it_is_the_largest():
    """From a peaked reference over a mixture of both to a peak on the best: up and down again."""
    objective = problem(ref=[0.9, 0.1], reward=[0.0, 1.0])
    wanted = 1.7
    with pytest.warns(UserWarning, match=r"effective_modes=1\.7 is met at several β: .* largest"):
        beta = float(beta_for(objective, effective_modes=wanted))

    def modes_at(log_beta):
        share = 1 / (1 + 9 * math.exp(-math.exp(-log_beta)))
        return math.exp(-sum(p * math.log(p) for p in (share, 1 - share)))

    grid = np.linspace(math.log(10), math.log(0.05), 4000)
    above = np.array([modes_at(x) > wanted for x in grid])
    crossings = np.flatnonzero(above[1:] != above[:-1])
    assert len(crossings) == 2
    assert math.exp(grid[crossings[0] + 1]) < beta < math.exp(grid[crossings[0]])
    with pytest.raises(ValueError, match=r"effective_modes=2\.5 .* between 1 and 1\.99"):
        beta_for(objective, effective_modes=2.5)


def test_success_of_binary_rewards_has_a_closed_form():
    objective = problem(ref=[0.2, 0.05, 0.75], reward=[1.0, 1.0, 0.0])
    # p/(1 − p) = m/(1 − m) e^{1/β}
    for p in (0.3, 0.9, 0.999):
        beta = 1 / (math.log(p / (1 - p)) - math.log(0.25 / 0.75))
        np.testing.assert_allclose(beta_for(objective, success=p), beta, rtol=512 * eps(FLOAT))
    shifted = problem(ref=[0.2, 0.05, 0.75], reward=[3.0, 3.0, 2.0])
    one, other = (beta_for(x, success=0.9) for x in (objective, shifted))
    np.testing.assert_allclose(one, other, rtol=32 * eps(FLOAT))


@pytest.mark.quick_only("forward-kl-expected_reward")
@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("reverse-kl", "kl"),
        ("reverse-kl", "effective_modes"),
        ("forward-kl", "expected_reward"),
        ("forward-kl", "forward_kl"),
        ("chi-squared-kl", "kl"),
        ("chi-squared-kl", "effective_modes"),
    ],
)
def test_gradients_are_those_of_the_implicit_function(case, kind):
    """Beside central differences in every reward, every log-mass and the goal."""
    case, size = BY_ID[case], REF.size
    moves = 1e-5 * np.eye(2 * size + 1)
    moves = np.concatenate([np.zeros((1, 2 * size + 1)), moves, -moves])
    reward, logits, goal = np.split(moves, [size, 2 * size], axis=1)

    def found(reward, logits, goal):
        objective = kt.Objective(reward, kt.normalize(logits), 1.0, case.divergence)
        beta = beta_for(objective, **{kind: goal})
        return jnp.sum(beta), beta

    with double_precision():
        # All points are rows of one program, which gives both: it is compiling that takes the time.
        both = jax.jit(jax.grad(found, (0, 1, 2), has_aux=True))
        slopes, beta = both(reward + REWARD, logits + np.log(REF), goal[:, 0] + GOALS[kind])
        at, high, low = np.split(np.asarray(beta), [1, 2 * size + 2])
        slope = np.concatenate([np.ravel(np.asarray(x)[0]) for x in slopes])
    np.testing.assert_allclose(slope, (high - low) / 2e-5, rtol=1e-6, atol=1e-8)
    assert_fifty_digits(float(at[0]), case, kind)


def test_under_a_trace_what_is_not_reached_is_nan():
    reward, log_ref = problem().reward, problem().log_ref

    @jax.jit
    def found(reward, goal):
        return beta_for(kt.Objective(reward, log_ref, 1.0), kl=goal)

    rows = np.stack([reward, np.where(REWARD == 1.0, np.nan, reward)])
    beta = found(rows[:, None], np.array([0.5, 3.0], FLOAT))
    assert np.isfinite(beta).tolist() == [[True, False], [False, False]]
    one_by_one = jax.vmap(lambda x: found(reward, x))(np.array([0.1, 0.5], FLOAT))
    np.testing.assert_allclose(one_by_one, beta_for(problem(), kl=np.array([0.1, 0.5], FLOAT)))


def test_what_is_asked_for_is_one_thing():
    objective = problem()
    with pytest.raises(TypeError, match=r"exactly one of kl, .* got none"):
        beta_for(objective)
    with pytest.raises(TypeError, match="got kl, success"):
        beta_for(objective, kl=0.1, success=0.5)
    with pytest.raises(TypeError, match="modes is for effective_modes and success, not for kl"):
        beta_for(objective, kl=0.1, modes=[0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match=r"kl has shape \(3,\)"):
        beta_for(kt.Objective(REWARD, np.log(REF), np.ones(2)), kl=np.ones(3))
    with pytest.raises(TypeError, match="beta_for takes a kltarget"):
        beta_for("one-two", kl=0.1)


def test_scaled_and_tempered_coefficients():
    twice = kt.divergences.Scaled(kt.ReverseKL(), 2.0)
    one, other = (beta_for(problem(x), kl=0.5) for x in (None, twice))
    np.testing.assert_allclose(one, 2 * other, rtol=64 * eps(FLOAT))
    objective = problem()
    stretched = kt.Objective(1e6 * objective.reward - 3e5, objective.log_ref, 1.0)
    np.testing.assert_allclose(beta_for(stretched, kl=0.5), 1e6 * one, rtol=512 * eps(FLOAT))


@dtypes
def test_the_tilt_earns_more_than_best_of_n_at_equal_kl(dtype):
    """Claim: at equal KL the tilt earns at least what best-of-n earns (arXiv 2404.01730).

    Holds: it earns β·KL(best-of-n‖tilt) more.
    """
    name = "bon-vs-tilt-4"
    objective = problem(dtype=dtype)
    best = best_of_n(objective.reward, objective.log_ref, 4)
    beta = beta_for(objective, kl=best.kl)
    tilt = kt.solve(kt.Objective(objective.reward, objective.log_ref, beta))
    assert_reference(name, beta, "beta", dtype, ulps=256)
    assert_reference(name, tilt.expected_reward, "mean_reward_tilt", dtype)
    assert_reference(name, best.expected_reward, "mean_reward_bon", dtype)
    away = kt.kl(best.log_probs, tilt.log_probs)
    assert_reference(name, away, "kl_bon_to_tilt", dtype, ulps=512)


def test_what_the_tilt_earns_more_is_beta_times_the_divergence_to_it():
    with double_precision():
        rng = np.random.default_rng(11)
        reward, log_ref = rng.normal(size=(20, 6)), np.log(rng.dirichlet(np.ones(6), 20))
        best = best_of_n(reward, log_ref, 3.0)
        beta = beta_for(kt.Objective(reward, log_ref, 1.0), kl=best.kl)
        tilt = kt.solve(kt.Objective(reward, log_ref, beta))
        more = np.asarray(tilt.expected_reward - best.expected_reward)
        want = np.asarray(beta * kt.kl(best.log_probs, tilt.log_probs))
        assert (more >= 0).all()
        np.testing.assert_allclose(more, want, rtol=1e-8, atol=1e-12)
