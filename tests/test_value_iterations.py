"""Mirror-descent and Munchausen value iteration: averages of action values, and their errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from oracles import DTYPES, eps

from kltarget import plot
from kltarget.spaces import MDP
from kltarget.training import mirror_descent_vi, munchausen_vi

LAST = DTYPES[-1]
TRANSITION = np.array([[[0.9, 0.1], [0.4, 0.6]], [[0.3, 0.7], [0.2, 0.8]]])
REWARD = np.array([[0.0, 0.2], [1.0, 0.5]])
EVEN = np.log(np.full((2, 2), 0.5))
KNOWN = {
    # The iteration to 50 digits, ten steps.
    0.0: (
        [[5.264552724143281e-05, 0.9999473544727586], [0.999569281358802, 4.307186411980002e-04]],
        [[3.4454210321339978, 4.040902253064202], [4.919998497250243, 4.499094741436283]],
    ),
    0.1: (
        [[0.0095438433377728, 0.9904561566622272], [0.9684764706243653, 0.03152352937563479]],
        [[3.5192113772558553, 4.115320390304286], [4.994542192913973, 4.5737639955236595]],
    ),
}


def two_states():
    return MDP(TRANSITION.astype(LAST), REWARD.astype(LAST), 0.9)


def random_mdp(rng, size=4, actions=3, discount=0.8, batch=()):
    chances = rng.dirichlet(np.ones(size), size=(*batch, size, actions)).astype(LAST)
    return MDP(chances, rng.uniform(-1, 1, size=(*batch, size, actions)).astype(LAST), discount)


def policy(rng, *shape):
    return np.log(rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])).astype(LAST)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("tau", KNOWN)
def test_ten_steps_of_fifty_digits(tau):
    path = mirror_descent_vi(two_states(), EVEN, kl_weight=0.5, entropy_weight=tau, num_steps=10)
    probs, values = KNOWN[tau]
    np.testing.assert_allclose(jnp.exp(path.log_policy[-1]), probs, rtol=400 * eps(LAST))
    np.testing.assert_allclose(path.action_values[-1], values, rtol=50 * eps(LAST))


@pytest.mark.broad
@pytest.mark.parametrize("tau", [0.0, 0.15])
def test_policies_average_action_values_from_any_start(tau):
    """Claim: value iteration with a KL to the last policy and an entropy bonus is a softmax of an
    average of all past action values (arXiv 2003.14089).

    Holds.
    """
    rng = np.random.default_rng(0)
    mdp, lam, steps = random_mdp(rng), 0.6, 12
    start = policy(rng, 4, 3)
    errors = rng.normal(0, 0.1, size=(steps, 4, 3)).astype(LAST)
    path = mirror_descent_vi(
        mdp, start, kl_weight=lam, entropy_weight=tau, num_steps=steps, errors=errors
    )
    values = np.asarray(path.action_values, float)
    a = lam / (lam + tau)
    for k in range(steps):
        weights = a ** (k - np.arange(k + 1))
        total = np.einsum("j,jsa->sa", weights, values[: k + 1]) / (lam + tau)
        expected = log_softmax(a ** (k + 1) * start + total)
        np.testing.assert_allclose(path.log_policy[k + 1], expected, atol=500 * eps(LAST))


def tsallis_step(values, last, lam, tau, q):
    """The regularised greedy step by a general optimiser."""

    def loss(p):
        cost = lam * (p**q * last ** (1 - q) - p) + tau * (p**q - p)
        return -(p @ values) + cost.sum() / (q - 1)

    whole = {"type": "eq", "fun": lambda p: p.sum() - 1}
    found = scipy.optimize.minimize(
        loss, last, bounds=[(1e-12, 1)] * len(last), constraints=whole, tol=1e-14, method="SLSQP"
    )
    return found.x


@pytest.mark.broad
@pytest.mark.parametrize("q", [0.5, 1.5, 2.0])
def test_tsallis_steps_are_those_of_a_general_optimiser(q):
    rng = np.random.default_rng(1)
    mdp, start = random_mdp(rng), policy(rng, 4, 3)
    path = mirror_descent_vi(mdp, start, kl_weight=0.5, entropy_weight=0.2, q=q, num_steps=2)
    values, log_policy = (np.asarray(x, float) for x in (path.action_values, path.log_policy))
    for k in range(2):
        for s in range(4):
            last = np.maximum(np.exp(log_policy[k, s]), 1e-12)
            expected = tsallis_step(values[k, s], last, 0.5, 0.2, q)
            np.testing.assert_allclose(np.exp(log_policy[k + 1, s]), expected, atol=2e-5)
    # The evaluation of a step, term by term.
    p, last = np.exp(log_policy[2]), np.exp(log_policy[1])
    cost = 0.5 * (p**q * last ** (1 - q) - p) + 0.2 * (p**q - p)
    gain = (p * values[1]).sum(-1) - cost.sum(-1) / (q - 1)
    expected = np.asarray(mdp.reward) + 0.8 * np.asarray(mdp.transition) @ gain
    np.testing.assert_allclose(values[2], expected, atol=100 * eps(LAST))


@pytest.mark.broad
def test_munchausen_is_mirror_descent_at_index_one():
    """Claim: adding α τ log π to the reward is value iteration with a KL of weight α τ and entropy
    of weight (1 − α) τ (arXiv 2007.14430).

    Holds.
    """
    rng = np.random.default_rng(2)
    mdp, start, errors = random_mdp(rng), policy(rng, 4, 3), rng.normal(0, 0.1, (9, 4, 3))
    errors = errors.astype(LAST)
    path = munchausen_vi(mdp, start, temperature=0.5, munchausen=0.8, num_steps=9, errors=errors)
    same = mirror_descent_vi(
        mdp, start, kl_weight=0.4, entropy_weight=0.1, num_steps=9, errors=errors
    )
    np.testing.assert_allclose(path.log_policy, same.log_policy, atol=500 * eps(LAST))
    shifted = np.asarray(path.action_values) - 0.4 * np.asarray(path.log_policy)
    np.testing.assert_allclose(shifted, same.action_values, atol=500 * eps(LAST))


def ln_q(log_p, q):
    return log_p if q == 1 else np.expm1((q - 1) * log_p) / (q - 1)


def far_from_an_average(path, temperature, alpha, q):
    """How far action values, less what was added, are from the sums that averages would be of.

    Centred per state: the greedy step does not see what all actions of a state have in common.
    """
    values, log_policy = (np.asarray(x, float) for x in (path.action_values, path.log_policy))
    own = values - alpha * temperature * ln_q(log_policy, q)
    total, worst = values[0], 0.0
    for k in range(1, len(values)):
        total = own[k] + alpha / q * total
        rest = values[k] - total
        worst = max(worst, np.abs(rest - rest.mean(-1, keepdims=True)).max())
    return worst


@pytest.mark.broad
@pytest.mark.parametrize("q", [1.0, 1.5, 2.0])
def test_munchausen_sums_action_values_until_an_action_is_cut_off(q):
    """Claim: MVI(q) averages past action values, as Munchausen value iteration does (arXiv
    2301.11476).

    Holds with a correction: at q above 1 only until an action is cut off.
    """
    mdp = two_states()
    calm = munchausen_vi(mdp, EVEN, temperature=5.0, munchausen=0.9, q=q, num_steps=12)
    assert (calm.log_policy > -jnp.inf).all()
    assert far_from_an_average(calm, 5.0, 0.9, q) < 500 * eps(LAST)
    sharp = munchausen_vi(mdp, EVEN, temperature=0.05, munchausen=0.9, q=q, num_steps=12)
    cut = (sharp.log_policy == -jnp.inf).any()
    assert bool(cut) == (q > 1)
    far = far_from_an_average(sharp, 0.05, 0.9, q)
    assert far < 500 * eps(LAST) if q == 1 else far > 0.02


@pytest.mark.broad
def test_no_average_of_action_values_makes_tsallis_policies():
    """Claim: value iteration with a Tsallis KL to the last policy is determined by an average of
    past action values (arXiv 2301.11476).

    Fails: one state, values 0 and then r in every step: at q = 2 the same two errors in the
    other order give another policy; at q = 1 they do not.
    """
    found = {}
    for q in (1.0, 2.0):
        ends = []
        for order in ([0, 1], [1, 0]):
            errors = np.array([[1.2, 0.0, -0.4], [-0.2, 0.8, 0.3]], LAST)[order]
            mdp = MDP(np.ones((1, 3, 1), LAST), np.zeros((1, 3), LAST), 0.5)
            path = mirror_descent_vi(
                mdp,
                np.log(np.array([[0.2, 0.3, 0.5]], LAST)),
                kl_weight=1.0,
                q=q,
                num_steps=3,
                errors=np.concatenate([errors, np.zeros((1, 3), LAST)])[:, None],
            )
            ends.append(np.exp(np.asarray(path.log_policy[-1, 0], float)))
        assert (ends[0] > 0.01).all()
        found[q] = np.abs(ends[0] - ends[1]).max()
    assert found[1.0] < 30 * eps(LAST)
    assert found[2.0] > 1e-3


def optimal_values(mdp):
    """q* by plain iteration in NumPy."""
    chances, reward = np.asarray(mdp.transition, float), np.asarray(mdp.reward, float)
    q, gamma = np.zeros(reward.shape), float(mdp.discount)
    for _ in range(int(np.ceil(np.log(1e-9) / np.log(gamma)))):
        q = reward + gamma * np.einsum("...sat,...t->...sa", chances, q.max(-1))
    return q


def values_of(mdp, returns):
    chances, reward = np.asarray(mdp.transition, float), np.asarray(mdp.reward, float)
    after = np.einsum("...sat,k...t->k...sa", chances, np.asarray(returns, float))
    return reward + float(mdp.discount) * after


@pytest.mark.slow
def test_the_published_bound_on_errors_holds():
    """Claim: with a KL to the last policy what is lost is bounded by the norm of the mean error,
    2/(1 − γ) of it, and a term in 1/k (arXiv 2003.14089, Theorem 1).

    Holds.
    """
    rng, steps, gamma = np.random.default_rng(4), 80, 0.8
    mdp = random_mdp(rng, batch=(300,), discount=gamma)
    lam = rng.uniform(0.05, 1.0, size=300).astype(LAST)
    errors = rng.uniform(-0.5, 0.5, size=(steps, 300, 4, 3)).astype(LAST)
    even = np.full((4, 3), -np.log(3), LAST)
    path = mirror_descent_vi(mdp, even, kl_weight=lam, num_steps=steps, errors=errors)
    best = optimal_values(mdp)
    far = np.abs(best - values_of(mdp, path.returns)).max((-1, -2))
    most = (np.abs(np.asarray(mdp.reward, float)).max((-1, -2)) + lam * np.log(3)) / (1 - gamma)
    for k in range(1, steps + 1):
        mean = np.abs(errors[:k].mean(0)).max((-1, -2))
        bound = 2 / (1 - gamma) * mean + 4 * most / ((1 - gamma) * k)
        assert (far[k] <= bound).all()
    # The mean of the errors is what the bound rests on: errors that repeat do not average out.
    stuck = np.broadcast_to(errors[:1], errors.shape)
    same = mirror_descent_vi(mdp, even, kl_weight=lam, num_steps=steps, errors=stuck)
    lost = np.abs(best - values_of(mdp, same.returns[-1:])[0]).max((-1, -2))
    assert lost.mean() > 2 * far[-1].mean()


@pytest.mark.slow
def test_errors_average_out_with_the_divergence_alone():
    """Four times the steps halve what is lost with it; without it nothing changes."""
    rng, seeds, steps = np.random.default_rng(5), 256, 512
    mdp = random_mdp(rng, size=5, actions=4, discount=0.8)
    even = np.full((5, 4), -np.log(4), LAST)
    errors = rng.normal(0, 0.5, size=(steps, seeds, 5, 4)).astype(LAST)
    best = optimal_values(mdp).max(-1)
    lost = {}
    for name, lam, tau in (("KL", 1.0, 0.0), ("entropy", 0.0, 0.05), ("none", 0.0, 0.0)):
        path = mirror_descent_vi(
            mdp, even, kl_weight=lam, entropy_weight=tau, num_steps=steps, errors=errors
        )
        lost[name] = (best - np.asarray(path.returns, float)).mean(-1)
    for name, rows in lost.items():
        early, late = rows[64], rows[-1]
        change = late - early
        error = change.std() / np.sqrt(seeds)
        if name == "KL":
            assert late.mean() + 3 * late.std() / np.sqrt(seeds) < early.mean() / 2
        else:
            assert abs(change.mean()) < 4 * error
            assert late.mean() - 5 * late.std() / np.sqrt(seeds) > 10 * lost["KL"][-1].mean()


@pytest.mark.broad
def test_without_regulariser_it_is_plain_value_iteration():
    rng = np.random.default_rng(6)
    mdp = random_mdp(rng)
    even = np.full((4, 3), -np.log(3), LAST)
    path = mirror_descent_vi(mdp, even, kl_weight=0.0, num_steps=100)
    best = optimal_values(mdp)
    np.testing.assert_allclose(path.action_values[-1], best, atol=1e-5)
    np.testing.assert_allclose(path.returns[-1], best.max(-1), atol=1e-5)
    np.testing.assert_array_equal(jnp.exp(path.log_policy[-1]), best == best.max(-1)[:, None])
    start = jnp.asarray(even)
    np.testing.assert_allclose(path.log_policy[1], start, atol=1e-6)  # All tie at 0.


@pytest.mark.broad
def test_without_regulariser_errors_are_carried_as_value_iteration_carries_them():
    rng = np.random.default_rng(8)
    mdp, errors = random_mdp(rng), rng.normal(0, 1, size=(30, 4, 3)).astype(LAST)
    even = np.full((4, 3), -np.log(3), LAST)
    path = mirror_descent_vi(mdp, even, kl_weight=0.0, num_steps=30, errors=errors)
    values = np.zeros((4, 3))
    for error, found in zip(errors, path.action_values[1:], strict=True):
        after = np.asarray(mdp.transition, float) @ values.max(-1)
        values = np.asarray(mdp.reward, float) + 0.8 * after + error
        np.testing.assert_allclose(found, values, atol=100 * eps(LAST))


@pytest.mark.broad
def test_sparse_processes_batches_and_missing_actions():
    rng = np.random.default_rng(7)
    after = rng.integers(0, 6, size=(6, 3, 2))
    chances = rng.dirichlet(np.ones(2), size=(6, 3)).astype(LAST)
    reward = rng.normal(size=(6, 3)).astype(LAST)
    reward[2, 1] = -np.inf
    dense = np.zeros((6, 3, 6), LAST)
    for k in range(2):
        np.add.at(dense, (*np.indices((6, 3)), after[..., k]), chances[..., k])
    start, lam = policy(rng, 6, 3), np.array([0.2, 1.0], LAST)
    for q in (1.0, 2.0):
        options = {"kl_weight": lam, "entropy_weight": 0.1, "q": q, "num_steps": 7}
        first = mirror_descent_vi(MDP(dense, reward, 0.7), start, **options)
        second = mirror_descent_vi(MDP(chances, reward, 0.7, successors=after), start, **options)
        assert first.log_policy.shape == (8, 2, 6, 3)
        assert (first.log_policy[..., 2, 1] == -jnp.inf).all()
        for name in ("log_policy", "returns"):
            a, b = (np.exp(np.asarray(getattr(x, name), float)) for x in (first, second))
            np.testing.assert_allclose(a, b, rtol=2e3 * eps(LAST))
        alone = mirror_descent_vi(MDP(dense, reward, 0.7), start, **{**options, "kl_weight": 0.2})
        np.testing.assert_allclose(
            jnp.exp(alone.log_policy), jnp.exp(first.log_policy[:, 0]), rtol=500 * eps(LAST)
        )
        path = munchausen_vi(
            MDP(dense, reward, 0.7), start, temperature=0.5, munchausen=0.5, q=q, num_steps=3
        )
        assert (path.log_policy[..., 2, 1] == -jnp.inf).all()
        assert not jnp.isnan(path.action_values).any()


@pytest.mark.broad
def test_derivatives_are_those_of_differences():
    mdp = two_states()

    def last(lam):
        path = mirror_descent_vi(mdp, EVEN, kl_weight=lam, num_steps=5)
        return path.action_values[-1].sum()

    step = 0.02
    middle = (last(0.5 + step) - last(0.5 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(last)(0.5), middle, rtol=2e-2)


def test_each_fault_has_its_error():
    mdp = two_states()
    take = {"kl_weight": 0.5, "num_steps": 2}
    for error, message, call in (
        (TypeError, "mdp must be an MDP", lambda: mirror_descent_vi(REWARD, EVEN, **take)),
        (ValueError, "log_start has shape", lambda: mirror_descent_vi(mdp, EVEN[0], **take)),
        (ValueError, "log_start is not normalised", lambda: mirror_descent_vi(mdp, -EVEN, **take)),
        (
            ValueError,
            "kl_weight must be 0 or more",
            lambda: mirror_descent_vi(mdp, EVEN, kl_weight=-1.0, num_steps=2),
        ),
        (
            ValueError,
            "kl_weight and entropy_weight are both 0",
            lambda: mirror_descent_vi(mdp, EVEN, kl_weight=0.0, q=2.0, num_steps=2),
        ),
        (ValueError, "q must be above 0", lambda: mirror_descent_vi(mdp, EVEN, q=0.0, **take)),
        (
            ValueError,
            "errors has shape",
            lambda: mirror_descent_vi(mdp, EVEN, errors=np.zeros((3, 2, 2)), **take),
        ),
        (
            ValueError,
            "temperature must be above 0",
            lambda: munchausen_vi(mdp, EVEN, temperature=0.0, munchausen=0.5, num_steps=2),
        ),
        (
            ValueError,
            "munchausen must be at most 1",
            lambda: munchausen_vi(mdp, EVEN, temperature=1.0, munchausen=1.5, num_steps=2),
        ),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.broad
def test_the_figure_shows_losses_of_each_step():
    path = mirror_descent_vi(two_states(), EVEN, kl_weight=0.5, num_steps=6)
    ax = plot.value_iterations({"KL": path})
    lost = optimal_values(two_states()).max(-1) - np.asarray(path.returns, float)
    line = ax.get_lines()[0]
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 7))
    np.testing.assert_allclose(line.get_ydata(), lost.max(-1)[1:], atol=1e-4)
    with pytest.raises(ValueError, match="paths is empty"):
        plot.value_iterations({})
