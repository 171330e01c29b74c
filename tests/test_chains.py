"""Targets on chains of steps, against sums over all paths, searches and 50 digits."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import kltarget as kt
from kltarget.divergences import Scaled
from kltarget.spaces import Chain
from kltarget.targets.chains import solve_chain

FIRST = np.array([0.5, 0.5])
STEPS = np.array([[[0.8, 0.2], [0.3, 0.7]], [[0.9, 0.1], [0.2, 0.8]]])
REWARD = np.array([1.0, 0.0])
DIVERGENCES = (kt.ReverseKL(), kt.ForwardKL(), kt.ChiSquared(), kt.JensenShannon())


def eps():
    return float(jnp.finfo(jnp.result_type(float)).eps)


def two_steps():
    return Chain(np.log(FIRST), np.log(STEPS))


def random_chain(states=3, steps=3, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.dirichlet(np.ones(states))
    return first, rng.dirichlet(np.ones(states), size=(steps, states)), rng.normal(size=states)


def enumerated(first, kernels):
    """All paths and their probabilities."""
    steps, states = kernels.shape[:2]
    paths = np.array(list(itertools.product(range(states), repeat=steps + 1)))
    mass = first[paths[:, 0]]
    for t in range(steps):
        mass = mass * kernels[t, paths[:, t], paths[:, t + 1]]
    return paths, mass


def kl(p, q):
    on = p > 0
    return float((p[on] * np.log(p[on] / q[on])).sum())


@functools.partial(jax.jit, static_argnames=("names", "tilt_first"))
def asked(chain, reward, beta, divergence=None, paths=None, *, names, tilt_first):
    """Answers of a target in one program; the marginals and the law of paths where asked for."""
    target = solve_chain(chain, reward, beta, divergence, tilt_first=tilt_first)
    answers = {name: getattr(target, name) for name in names}
    if paths is not None:
        answers["marginals"] = jnp.exp(target.log_marginals())
        answers["law"] = jnp.exp(target.log_prob(paths))
        answers["mean"] = target.expectation(reward)
    return answers


def law_of(target):
    paths, _ = enumerated(np.exp(target.chain.log_initial), np.exp(target.chain.log_kernels))
    return paths, np.exp(np.asarray(target.log_prob(paths), float))


def test_the_chain_of_three_variables_has_the_values_found_at_50_digits():
    tight = {"rtol": max(1e-12, 16 * eps())}
    tilted = solve_chain(two_steps(), REWARD, 0.5)
    np.testing.assert_allclose(
        tilted.values,
        [
            [0.8837062901897529, 0.6431697432780324],
            [0.9547823996540754, 0.41160749527884555],
            [1.0, 0.0],
        ],
        atol=8 * eps(),
        **tight,
    )
    for tilt_first in (True, False):
        twice = Scaled(kt.ReverseKL(), 2.0)
        scaled = solve_chain(two_steps(), REWARD, 0.25, twice, tilt_first=tilt_first)
        np.testing.assert_allclose(scaled.values, tilted.values, atol=8 * eps(), **tight)
        assert not scaled.remembers
    np.testing.assert_allclose(np.exp(tilted.chain.log_marginals()[-1]), [0.585, 0.415], **tight)
    np.testing.assert_allclose(
        np.exp(tilted.log_last), [0.9124028640771804, 0.08759713592281959], **tight
    )
    fixed = solve_chain(two_steps(), REWARD, 0.5, tilt_first=False)
    np.testing.assert_allclose(
        np.exp(fixed.log_last), [0.8980044088304844, 0.10199559116951568], **tight
    )
    np.testing.assert_allclose(fixed.value, np.mean([0.88370629019, 0.643169743278]), rtol=1e-6)


@pytest.mark.broad
@pytest.mark.parametrize("tilt_first", [True, False])
def test_the_law_of_paths_is_the_gibbs_law(tilt_first):
    first, kernels, reward = random_chain()
    beta = 0.4
    paths, mass = enumerated(first, kernels)
    names = (
        *("value", "expected_reward", "divergence_value", "step_kl", "marginal_kl"),
        *("log_first", "log_kernels"),
    )
    chain = Chain(np.log(first), np.log(kernels))
    found = asked(chain, reward, beta, None, paths, names=names, tilt_first=tilt_first)
    best = mass * np.exp(reward[paths[:, -1]] / beta)
    if tilt_first:
        best /= best.sum()
    else:
        for state in range(3):
            own = paths[:, 0] == state
            best[own] *= first[state] / best[own].sum()
    tight = {"rtol": 200 * eps(), "atol": 16 * eps()}
    np.testing.assert_allclose(found["law"], best, **tight)
    _, walked = enumerated(*(np.exp(found[name]) for name in ("log_first", "log_kernels")))
    np.testing.assert_allclose(walked, best, **tight)
    np.testing.assert_allclose(found["divergence_value"], kl(best, mass), **tight)
    np.testing.assert_allclose(np.sum(found["step_kl"]), kl(best, mass), **tight)
    earned = (best * reward[paths[:, -1]]).sum()
    np.testing.assert_allclose(found["expected_reward"], earned, **tight)
    np.testing.assert_allclose(found["mean"], earned, **tight)
    np.testing.assert_allclose(found["value"], earned - beta * kl(best, mass), **tight)
    for time in range(4):
        own, ref = (np.bincount(paths[:, time], w, 3) for w in (best, mass))
        np.testing.assert_allclose(found["marginals"][time], own, **tight)
        np.testing.assert_allclose(found["marginal_kl"][time], kl(own, ref), **tight)


@pytest.mark.broad
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.slug)
@pytest.mark.parametrize("tilt_first", [True, False])
def test_no_law_of_paths_is_better_under_any_divergence(divergence, tilt_first):
    """Paths as outcomes of their own, in logits that a search moves, know no chain."""
    first, kernels, reward = random_chain(states=2, steps=2, seed=3)
    beta = 0.7
    paths, mass = enumerated(first, kernels)
    names = ("value", "log_first", "log_kernels", "step_kl", "remembers")
    chain = Chain(np.log(first), np.log(kernels))
    target = asked(chain, reward, beta, divergence, paths, names=names, tilt_first=tilt_first)
    target = {name: np.asarray(x) for name, x in target.items()}
    own = np.array([paths[:, 0] == state for state in range(2)])
    generator = jax.jit(divergence.f)

    def law(logits):
        p = np.exp(logits - logits.max())
        if tilt_first:
            return p / p.sum()
        return sum(first[i] * own[i] * p / (own[i] * p).sum() for i in range(2))

    def loss(logits):
        p = law(logits)
        f = np.asarray(generator(p / mass), float)
        return beta * (mass * f).sum() - (p * reward[paths[:, -1]]).sum()

    found = minimize(loss, np.log(mass), method="BFGS" if eps() < 1e-9 else "Powell")
    np.testing.assert_allclose(target["value"], -found.fun, atol=1e-8 if eps() < 1e-9 else 3e-5)
    np.testing.assert_allclose(target["law"], law(found.x), atol=2e-4)
    remembers = bool(target["remembers"])
    assert remembers is not (tilt_first or isinstance(divergence, kt.ReverseKL))
    walked, begin = (np.exp(target[name].astype(float)) for name in ("log_kernels", "log_first"))
    if remembers:
        again = sum(enumerated(begin * (np.arange(2) == i), walked[i])[1] for i in range(2))
    else:
        again = enumerated(begin, walked)[1]
    np.testing.assert_allclose(again, target["law"], rtol=500 * eps(), atol=16 * eps())
    np.testing.assert_allclose(target["step_kl"].sum(), kl(again, mass), rtol=1e-4)
    marginal = target["marginals"].astype(float)
    np.testing.assert_allclose(marginal[1], np.bincount(paths[:, 1], again, 2), rtol=1e-5)


def test_steps_cost_more_than_the_last_marginal_where_the_first_law_is_fixed():
    """Claim: the KL summed over the steps of a chain is at least that of its last marginal (arXiv
    2305.16381).

    Holds: at the optimum the two are equal where the first law may be tilted; where it is fixed
    more is paid.
    """
    first, kernels, reward = random_chain(seed=5)
    chain = Chain(np.log(first), np.log(kernels))
    beta = np.array([0.1, 1.0])
    fixed = solve_chain(chain, reward, beta, tilt_first=False)
    tilted = solve_chain(chain, reward, beta)
    paid, seen = fixed.step_kl.sum(-1), fixed.marginal_kl[..., -1]
    assert (np.asarray(paid - seen) > 5e-4).all()
    np.testing.assert_allclose(
        tilted.step_kl.sum(-1), tilted.marginal_kl[..., -1], rtol=200 * eps(), atol=50 * eps()
    )
    assert (np.asarray(tilted.value) > np.asarray(fixed.value)).all()
    np.testing.assert_allclose(fixed.marginal_kl[..., 0], 0.0, atol=1e-12)


def test_steps_cost_the_last_marginal_and_what_is_told_of_the_way_there():
    """The chain rule from x_0: what steps pay beyond the marginal is the KL of paths given it."""
    first, kernels, reward = random_chain(steps=2, seed=6)
    target = solve_chain(Chain(np.log(first), np.log(kernels)), reward, 0.2, tilt_first=False)
    paths, mass = enumerated(first, kernels)
    _, best = law_of(target)
    beyond = 0.0
    for end in range(3):
        on = paths[:, -1] == end
        beyond += best[on].sum() * kl(best[on] / best[on].sum(), mass[on] / mass[on].sum())
    own, ref = (np.bincount(paths[:, -1], x, 3) for x in (best, mass))
    assert beyond > 1e-3
    np.testing.assert_allclose(target.step_kl.sum(), kl(own, ref) + beyond, rtol=1e3 * eps())
    np.testing.assert_allclose(target.marginal_kl[-1], kl(own, ref), rtol=1e3 * eps())


@pytest.mark.broad
def test_first_states_of_one_value_need_no_tilt():
    """Of a first step that forgets where it came from, both problems are one."""
    kernels = np.stack([np.full((2, 2), 0.5), STEPS[1]])
    chain = Chain(np.log([0.3, 0.7]), np.log(kernels))
    both = [solve_chain(chain, REWARD, 0.2, tilt_first=x).log_last for x in (True, False)]
    np.testing.assert_allclose(*map(np.exp, both), rtol=32 * eps())


@pytest.mark.broad
def test_drawn_paths_have_their_probabilities():
    listed, _ = enumerated(FIRST, STEPS)

    @jax.jit
    def drawn(beta, divergence):
        target = solve_chain(two_steps(), REWARD, beta, divergence, tilt_first=False)
        paths = target.sample(key=jax.random.key(1), num_samples=4000)
        return paths, jnp.exp(target.log_prob(listed))

    for divergence in (None, kt.ForwardKL()):
        paths, probs = (np.asarray(x) for x in drawn(np.array([0.2, 1.0]), divergence))
        assert paths.shape == (4000, 2, 3)
        for row in range(2):
            seen = np.bincount(paths[:, row] @ [4, 2, 1], minlength=8) / 4000
            assert (np.abs(seen - probs[row]) < 5 * np.sqrt(probs[row] / 4000) + 1e-3).all()
    plain = np.asarray(two_steps().sample(key=jax.random.key(2), num_samples=4000))
    assert abs((plain[:, -1] == 0).mean() - 0.585) < 5 * 0.5 / np.sqrt(4000)


def test_forbidden_ends_and_impossible_steps_are_left_out():
    kernels = STEPS.copy()
    kernels[0, 0] = [1.0, 0.0]
    kernels[1, 0] = [1.0, 0.0]
    with np.errstate(divide="ignore"):
        chain = Chain(np.log(FIRST), np.log(kernels))
    target = solve_chain(chain, np.array([-np.inf, 2.0]), 1.0)
    np.testing.assert_allclose(np.exp(target.log_marginals()), [[0, 1]] * 3, atol=eps())
    np.testing.assert_allclose(target.value, 2.0 + np.log(0.5 * 0.7 * 0.8), rtol=32 * eps())
    with pytest.raises(ValueError, match=r"from a first state at index 0: give one of them a"):
        solve_chain(chain, np.array([-np.inf, 2.0]), 1.0, tilt_first=False)
    with pytest.raises(ValueError, match="reward forbids every last state that the chain reaches"):
        solve_chain(chain, np.full(2, -np.inf), 1.0)


@pytest.mark.broad
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL()], ids=lambda d: d.slug)
def test_first_states_that_never_occur_change_no_step(divergence):
    """With rewards below 0 and a forbidden end, which such a state may not lift."""
    first, kernels, _ = random_chain(seed=5)
    first[1:] = 0.0, 0.0
    first[0] = 1.0
    reward = np.array([-1.0, -2.0, -np.inf])
    with np.errstate(divide="ignore"):
        chain = Chain(np.log(first), np.log(kernels))
    reverse = isinstance(divergence, kt.ReverseKL)
    names = ("log_kernels", "step_kl", *(["values"] if reverse else []))
    target = asked(chain, reward, 0.5, divergence, names=names, tilt_first=False)
    # With one first state there is nothing to tilt: the ends are a list by themselves.
    paths, mass = enumerated(first, kernels)
    with np.errstate(divide="ignore"):
        ends = np.log(np.bincount(paths[:, -1], mass, 3))
    listed = np.asarray(kt.solve(kt.Objective(reward, ends, 0.5, divergence)).probs, float)
    best = mass * (listed / np.exp(ends))[paths[:, -1]]
    tight = {"rtol": 200 * eps(), "atol": 16 * eps()}
    walked = np.asarray(target["log_kernels"], float)
    walked = np.exp(walked if reverse else walked[0])
    np.testing.assert_allclose(enumerated(first, walked)[1], best, **tight)
    np.testing.assert_allclose(np.sum(target["step_kl"]), kl(best, mass), **tight)
    if reverse:
        start = 0.5 * np.log((mass * np.exp(reward[paths[:, -1]] / 0.5)).sum())
        np.testing.assert_allclose(target["values"][0, 0], start, **tight)


@pytest.mark.broad
def test_values_have_the_derivatives_of_what_they_are():
    @functools.partial(jax.jit, static_argnums=2)
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def slopes(reward, kernels, tilt_first):
        chain = Chain(np.log(FIRST), jax.nn.log_softmax(kernels, axis=-1))
        target = solve_chain(chain, reward, 0.5, tilt_first=tilt_first)
        return target.value, target.log_last

    moved = np.zeros_like(STEPS)
    moved[0, 1, 0] = 1e-2
    for tilt_first in (True, False):
        here, up, down = (slopes(REWARD, np.log(STEPS) + s * moved, tilt_first) for s in (0, 1, -1))
        (_, log_last), (by_reward, by_kernels) = here
        np.testing.assert_allclose(by_reward, np.exp(log_last), rtol=100 * eps())
        difference = float(up[0][0]) - float(down[0][0])
        np.testing.assert_allclose(by_kernels[0, 1, 0], difference / 2e-2, rtol=2e-3)


@pytest.mark.broad
def test_a_forbidden_end_has_no_part_in_derivatives_by_beta():
    first, kernels, reward = random_chain(seed=9)
    reward[1] = -np.inf
    chain = Chain(np.log(first), np.log(kernels))
    paths, mass = enumerated(first, kernels)

    def fixed(beta):
        """Values of first states and the KL of paths, in NumPy."""
        weight = mass * np.exp(reward[paths[:, -1]] / beta)
        own = [weight[paths[:, 0] == state] for state in range(3)]
        values = [beta * np.log(w.sum() / p) for w, p in zip(own, first, strict=True)]
        laws = [p * w / w.sum() for w, p in zip(own, first, strict=True)]
        return np.array([np.sum(values), kl(np.concatenate(laws), mass)])

    @jax.jit
    @jax.jacrev
    def ours(beta):
        target = solve_chain(chain, reward, beta, tilt_first=False)
        return jnp.stack([target.values[0].sum(), target.step_kl.sum()])

    slopes = (fixed(0.4 + 1e-5) - fixed(0.4 - 1e-5)) / 2e-5
    np.testing.assert_allclose(ours(0.4), slopes, rtol=max(1e-6, 500 * eps()))


@pytest.mark.broad
@pytest.mark.parametrize("tilt_first", [True, False])
def test_a_condition_is_a_second_tilt(tilt_first):
    """Claim: a condition is added to a diffusion model by a reward of its log likelihood (arXiv
    2406.12120).

    Holds with a correction: by Bayes' rule only where the first law may be tilted; else each
    first state has its own constant.
    """
    first, kernels, reward = random_chain(seed=8)
    likelihood = np.array([0.7, 0.1, 0.4])
    paths, mass = enumerated(first, kernels)
    options = {"names": ("log_first", "log_kernels"), "tilt_first": tilt_first}
    once = asked(Chain(np.log(first), np.log(kernels)), reward, 0.5, None, paths, **options)
    again = Chain(once["log_first"], once["log_kernels"])
    twice = asked(again, np.log(likelihood), 1.0, None, paths, **options)
    law = mass * np.exp(reward[paths[:, -1]] / 0.5) * likelihood[paths[:, -1]]
    if tilt_first:
        law /= law.sum()
    else:
        for state in range(3):
            own = paths[:, 0] == state
            law[own] *= first[state] / law[own].sum()
    np.testing.assert_allclose(twice["law"], law, rtol=500 * eps(), atol=32 * eps())


@pytest.mark.broad
def test_a_batch_is_its_rows():
    chains = [random_chain(seed=seed) for seed in (0, 1)]
    first, kernels, reward = map(np.stack, zip(*chains, strict=True))
    beta = np.array([[0.3], [2.0]])
    options = {"names": ("value", "log_last", "log_kernels", "step_kl", "values")}
    for tilt_first in (True, False):
        options["tilt_first"] = tilt_first
        both = asked(Chain(np.log(first), np.log(kernels)), reward, beta, **options)
        assert both["log_kernels"].shape == (2, 2, 3, 3, 3)
        for i, j in ((0, 1), (1, 0)):
            alone = Chain(np.log(first[j]), np.log(kernels[j]))
            one = asked(alone, reward[j], beta[i, 0], **options)
            for name, theirs in one.items():
                ours = np.asarray(both[name])[i, j]
                np.testing.assert_allclose(ours, theirs, rtol=100 * eps(), atol=16 * eps())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Chain(np.log(FIRST), np.log(STEPS[0])), r"needs shape \[\*batch, T, 2, 2\]"),
        (lambda: Chain(np.log([0.5, 0.6]), np.log(STEPS)), "log_initial is not normalised"),
        (lambda: Chain(np.log(FIRST), np.log(0.9 * STEPS)), r"log_kernels .* at index \(0, 0\)"),
        (lambda: Chain(np.log(FIRST), STEPS * np.nan), r"log_kernels is NaN at index \(0, 0, 0\)"),
        (lambda: Chain(0.0, np.log(STEPS)), "log_initial needs a last axis of states"),
        (lambda: two_steps().log_prob([0, 1]), "the last axis must be 3"),
        (lambda: two_steps().log_prob([0, 1, 2]), "there is no state 2 at index 2, only 0 to 1"),
        (lambda: solve_chain(two_steps(), np.zeros(3), 1.0), "reward has shape"),
        (lambda: solve_chain(two_steps(), REWARD, -1.0), "beta"),
        (lambda: solve_chain(two_steps(), [np.nan, 0.0], 1.0), "reward"),
        (lambda: solve_chain(two_steps(), REWARD, 1.0, kt.ForwardKL()).values, "reverse KL"),
        # One value for two states, which would broadcast.
        (
            lambda: solve_chain(two_steps(), REWARD, 1.0).expectation([3.0]),
            r"fn gives values of shape \(1,\), but there are 2 outcomes: the first axis must be 2",
        ),
        (
            lambda: kt.solve(kt.Objective(REWARD, np.log(FIRST), 1.0)).expectation(3.0),
            r"fn gives values of shape \(\), but there are 2 outcomes",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.broad
@pytest.mark.parametrize("tilt_first", [True, False])
def test_a_first_law_that_is_none_is_flagged_under_a_trace(tilt_first):
    solve = jax.jit(
        lambda x: solve_chain(Chain(x, np.log(STEPS)), REWARD, 0.5, tilt_first=tilt_first)
    )
    for first in ([np.nan, 0.0], [1.0, 0.0]):
        target = solve(np.array(first))
        assert kt.Status.INVALID_REFERENCE in kt.Status(int(target.status))
        assert np.isnan(target.value)
    assert int(solve(np.log(FIRST)).status) == 0
