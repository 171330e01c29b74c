"""Any term of a loss: which divergence it has, what its target is, and that training ends there."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import reference
from scipy.optimize import brentq

import kltarget as kt
from kltarget import recipes
from kltarget.divergences import Scaled, TermDivergence
from kltarget.implied import implied_target
from kltarget.policies import TabularPolicy
from kltarget.recipes import Recipe, Weighted, divergence_of, read_term
from kltarget.training import estimators, fine_tune

INF = np.inf
DTYPE = np.float64 if jax.config.jax_enable_x64 else np.float32
EPS = float(np.finfo(DTYPE).eps)
P5 = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.1, 0.5, 1.0, 0.9, 0.3])


def quartic(x):
    return x**4 / 4


def huber(x):
    return jnp.where(jnp.abs(x) < 1, x**2 / 2, jnp.abs(x) - 0.5)


def clamped_k2(x):
    return jnp.clip(x, -3, 3) ** 2 / 2


def clamped_k3(x):
    return jnp.minimum(jnp.exp(-x) - 1 + x, 3.0)


def soft(x):
    return jax.nn.softplus(x) - x / 2


def cubic_and_quartic(x):
    return x**2 / 2 - x**3 / 6 + x**4 / 24


def mixed(x):
    return 0.3 * x**2 / 2 + 0.7 * (jnp.exp(-x) - 1 + x)


def lopsided(x):
    return jnp.where(x > 0, x**2, x**2 / 4)


def of_numpy(x):
    return np.power(x, 4) / 8 + np.exp(-x) - 1 + x


# Derivatives by hand, their limits, and how far log ratios may go.
TERMS = {
    quartic: (lambda x: x**3, -INF, INF, INF),
    huber: (lambda x: np.clip(x, -1, 1), -1, 1, INF),
    clamped_k2: (lambda x: x, -INF, INF, 3),
    clamped_k3: (lambda x: 1 - np.exp(-x), -INF, 1, 1.749),
    soft: (lambda x: 1 / (1 + np.exp(-x)) - 0.5, -0.5, 0.5, INF),
    cubic_and_quartic: (lambda x: x - x**2 / 2 + x**3 / 6, -INF, INF, INF),
    mixed: (lambda x: 0.3 * x + 0.7 * (1 - np.exp(-x)), -INF, INF, INF),
    lopsided: (lambda x: np.where(x > 0, 2 * x, x / 2), -INF, INF, INF),
    of_numpy: (lambda x: x**3 / 2 + 1 - np.exp(-x), -INF, INF, INF),
}
NAMES = {term.__name__: term for term in TERMS}
terms = pytest.mark.parametrize("term", TERMS, ids=lambda x: x.__name__)


def by_bisection(slope, low, high, ref, reward, beta):
    """The target by nested bisections in NumPy: λ from the sum, each log ratio from its slope."""

    def ratio(s):
        if s <= max(low, slope(-60.0)):
            return 0.0
        if s >= high or slope(60.0) <= s:
            return INF
        return np.exp(brentq(lambda x: slope(x) - s, -60, 60, xtol=1e-14))

    def policy(level):
        return np.array([q * ratio((r - level) / beta) for q, r in zip(ref, reward, strict=True)])

    least = reward.max() - beta * high if high < INF else reward.min() - 1e3
    most = reward.max() + 1e3
    best = reward == reward.max()
    others = np.where(best, 0.0, policy(least)) if high < INF else np.ones_like(ref)
    if others.sum() < 1 and policy(least + 1e-9 * beta).sum() < 1:
        return np.where(best, (1 - others.sum()) / best.sum(), others)
    for _ in range(200):
        middle = (least + most) / 2
        least, most = (middle, most) if policy(middle).sum() > 1 else (least, middle)
    return policy(most)


def variation(log_p, log_q):
    return np.abs(np.exp(np.asarray(log_p, float)) - np.exp(np.asarray(log_q, float))).sum(-1) / 2


@pytest.mark.parametrize(
    ("case", "term"),
    [
        ("loss-swapped-k3", "swapped-k3"),
        ("loss-swapped-k3-b1", "swapped-k3"),
        ("loss-quartic", quartic),
    ],
)
def test_targets_of_the_bank(case, term):
    row = reference(case)
    ref, reward, beta = (np.asarray(row["inputs"][k]) for k in ("ref", "R", "beta"))
    recipe = Recipe("loss", term, beta=float(beta))
    target = implied_target(recipe, reward.astype(DTYPE), np.log(ref).astype(DTYPE))
    np.testing.assert_allclose(target.probs, row["expected"]["pi"], atol=1e-9 + 8 * EPS)


@pytest.mark.quick_only("mixed", others="broad")
@terms
def test_targets_are_where_the_slopes_are_level(term):
    slope, low, high, reach = TERMS[term]
    ref, reward = P5
    betas = np.array([0.3, 1.0, 5.0])
    want = np.array([by_bisection(slope, low, high, ref, reward, beta) for beta in betas])
    rewards, refs = (np.tile(x, (3, 1)).astype(DTYPE) for x in (reward, np.log(ref)))
    target = kt.solve(kt.Objective(rewards, refs, betas.astype(DTYPE), divergence_of(term)))
    assert not np.any(target.status & kt.Status.NOT_CONVERGED)
    inside = (want >= ref * np.exp(-reach)).all(-1) & (want < ref * np.exp(reach)).all(-1)
    assert inside.sum() >= 2
    apart = np.abs(np.asarray(target.probs) - want).sum(-1) / 2
    assert apart[inside].max() < (1e-6 if term is of_numpy else 32 * EPS)


@pytest.mark.broad
@pytest.mark.parametrize("term", [quartic, huber, mixed], ids=lambda x: x.__name__)
def test_no_policy_is_better(term):
    # By values that come from an integral, and gaps from Bregman's.
    ref, reward = (np.tile(x, (20, 1)).astype(DTYPE) for x in (np.log(P5[0]), P5[1]))
    objective = kt.Objective(reward, ref, 0.5, divergence_of(term))
    target = kt.solve(objective)
    drawn = np.random.default_rng(0).normal(size=(20, 5)) * 0.3
    near = jax.nn.log_softmax(np.asarray(target.log_probs) + drawn.astype(DTYPE))
    values = objective.value(near)
    assert np.all(values <= target.value + 16 * EPS)
    # Past a kink the integral is good to four digits.
    short, gap = np.asarray(target.value - values), np.asarray(target.gap(near))
    np.testing.assert_allclose(gap, short, atol=64 * EPS, rtol=1e-3)


KNOWN = {
    "k2": (lambda x: x**2 / 2, "loss", kt.ReverseKL()),
    "half of k2": (lambda x: x**2 / 4, "loss", Scaled(kt.ReverseKL(), 0.5)),
    "k3": (lambda x: jnp.exp(-x) - 1 + x, "loss", kt.ForwardKL()),
    "k3 in NumPy": (lambda x: np.exp(-x) - 1 + x, "loss", kt.ForwardKL()),
    "half of k1 and k3": (
        lambda x: (jnp.exp(-x) - 1 + 2 * x) / 2,
        "loss",
        Scaled(kt.ForwardKL(), 0.5),
    ),
    "weighted k3": (lambda x: jnp.exp(-x) - 1 + x, "weighted-loss", kt.ReverseKL()),
    "weighted k1": (lambda x: x, "weighted-loss", kt.ReverseKL()),
    "k1 in the reward": (lambda x: x, "reward", kt.ReverseKL()),
    "swapped k3": (lambda x: jnp.exp(x) - 1 - x, "loss", Scaled(kt.ChiSquared(), 0.5)),
    "|x|": (jnp.abs, "loss", Scaled(kt.TotalVariation(), 2.0)),
    "|x| in NumPy": (np.fabs, "loss", Scaled(kt.TotalVariation(), 2.0)),
    "a cubic power": (lambda x: jnp.exp(2 * x) / 4 - x / 2, "loss", kt.Alpha(3.0)),
    "the ratio less one": (lambda x: jnp.exp(x) - 1, "reward", Scaled(kt.ChiSquared(), 0.5)),
    "Jensen and Shannon's": (lambda x: -jax.nn.softplus(-x), "reward", kt.JensenShannon()),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_families_are_recognised(name):
    term, place, expected = KNOWN[name]
    found = divergence_of(term, place=place)
    assert found == expected
    assert read_term(term, place=place).remarks == ()
    assert divergence_of(term, place=place) is found, "one object, for which programs are compiled"


@pytest.mark.quick_only("k2", "Cauchy", others="broad")
@pytest.mark.parametrize(
    ("term", "place", "held", "said"),
    [
        (clamped_k2, "loss", (-3, 3), "reverse KL within |log ratio| = 3"),
        (clamped_k3, "loss", (-1.749031, 3.981339), "forward KL within log ratios -1.75 and 3.98"),
        (lambda x: jnp.log1p(x**2), "loss", (-1, 1), "beyond |log ratio| = 1 nothing holds"),
        (lambda x: x**2 / 2, "weighted-loss", (-1, INF), "beyond log ratio -1 nothing holds"),
        (lambda x: np.clip(x, -5, 5) ** 2 / 2, "loss", (-5, 5), "reverse KL within"),
    ],
    ids=["k2", "k3", "Cauchy", "weighted k2", "NumPy"],
)
def test_where_nothing_holds_the_policy_is_said(term, place, held, said):
    reading = read_term(term, place=place)
    np.testing.assert_allclose(reading.held, held, atol=1e-2 if "NumPy" in said else 2e-5)
    assert said in str(reading)
    assert isinstance(reading.divergence, TermDivergence)


def test_flat_pieces_are_said():
    reading = read_term(huber)
    np.testing.assert_allclose(reading.flat, [(-INF, -1), (1, INF)], atol=0.02)
    assert "below -1 and above 1 its pull does not change" in str(reading)
    dead = read_term(lambda x: jnp.maximum(jnp.abs(x) - 0.5, 0) ** 2)
    assert dead.flat[0] == pytest.approx((-0.5, 0.5), abs=0.02)


@pytest.mark.broad
@pytest.mark.parametrize("kink", [1.0, 1.2, 0.7])
def test_bends_of_what_is_not_written_with_jax(kink):
    def bent(x):
        return np.where(np.abs(x) < kink, x**2 / 2, kink * np.abs(x) - kink**2 / 2)

    reading = read_term(bent)
    np.testing.assert_allclose(reading.flat, [(-INF, -kink), (kink, INF)], atol=0.005)
    assert reading.divergence is not None
    x = np.linspace(-3, 3, 301)
    got = np.asarray(reading.divergence.f_prime(np.exp(x).astype(DTYPE)), float)
    away = np.abs(np.abs(x) - kink) > 0.01
    np.testing.assert_allclose(got[away], np.clip(x, -kink, kink)[away], atol=64 * EPS + 1e-9)
    np.testing.assert_allclose(got, np.clip(x, -kink, kink), atol=4e-3)
    ref, reward = np.array([0.4, 0.2, 0.2, 0.15, 0.05]), np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    low = -float(kink)
    for beta in (0.3 / kink, 1.2):
        want = by_bisection(lambda x: np.clip(x, -kink, kink), low, -low, ref, reward, beta)
        objective = (np.asarray(y, DTYPE) for y in (reward, np.log(ref), beta))
        target = kt.solve(kt.Objective(*objective, reading.divergence))
        np.testing.assert_allclose(target.probs, want, atol=64 * EPS + 1e-9)


NONE = {
    "constant": (lambda x: x, "loss", "the same at every log ratio"),
    "k2 in the reward": (lambda x: x**2 / 2, "reward", "falls at equality"),
    "k3 in the reward": (lambda x: jnp.exp(-x) - 1 + x, "reward", "below 0 its pull falls"),
    "away": (lambda x: -(x**2), "loss", "everywhere its pull falls"),
    "a step": (lambda x: jnp.where(x > 1, 2 * x, x), "loss", "its pull jumps"),
    "not finite": (jnp.log, "loss", "not finite at the log ratio -15"),
    "a sum": (lambda x: (x**2).sum(), "loss", "no sum or mean"),
    "not elementwise": (lambda x: x**2 / x.max(), "loss", "must be elementwise"),
}


@pytest.mark.parametrize("name", NONE)
def test_what_has_no_divergence_says_why(name):
    term, place, message = NONE[name]
    with pytest.raises(ValueError, match=message) as error:
        divergence_of(term, place=place)
    assert "\n" not in str(error.value)


def test_what_is_no_term_is_refused():
    count = iter(range(100))
    with pytest.raises(ValueError, match="other values when it is called again"):
        divergence_of(lambda x: np.asarray(x) ** 2 + next(count))
    with pytest.raises(TypeError, match="must be a function of log ratios, got str"):
        divergence_of("k3")
    with pytest.raises(TypeError, match=r"one array of log ratios.*missing 1 required"):
        divergence_of(lambda x, y: x)
    with pytest.raises(ValueError, match="place must be one of 'loss'"):
        divergence_of(quartic, place="advantage")
    with pytest.raises(ValueError, match="estimator must be one of"):
        Recipe("loss", "k4")
    with pytest.raises(ValueError, match="must be elementwise"):
        Recipe("loss", lambda x: x - x.mean())


@pytest.mark.broad
def test_terms_of_torch():
    torch = pytest.importorskip("torch")
    assert divergence_of(lambda x: torch.exp(-x) - 1 + x) == kt.ForwardKL()
    clamped = read_term(lambda x: torch.clamp(x, -5, 5) ** 2 / 2)
    np.testing.assert_allclose(clamped.held, (-5, 5), atol=1e-2)


def test_names_stand_for_functions():
    assert Recipe("loss", "abs") == Recipe("loss", "absolute")
    x = np.linspace(-2, 2, 9).astype(DTYPE)
    np.testing.assert_allclose(estimators.swapped_k3(x), np.exp(x) - 1 - x, atol=16 * EPS)
    assert Recipe("loss", "swapped-k3").divergence == Scaled(kt.ChiSquared(), 0.5)
    assert Recipe("loss", lambda x: x**2 / 2).aim == "reverse"
    assert Recipe("loss", lambda x: x).aim == "none"
    assert Recipe("reward", lambda x: x**3).aim == "other"
    absolute = implied_target(Recipe("loss", jnp.abs, beta=0.1), P5[1], np.log(P5[0]))
    named = implied_target(Recipe("loss", "absolute", beta=0.1), P5[1], np.log(P5[0]))
    np.testing.assert_array_equal(absolute.log_probs, named.log_probs)


def test_a_clip_of_the_term_is_that_of_its_value():
    ref, reward = (x.astype(DTYPE) for x in (np.log(P5[0]), P5[1]))
    # At log ratios of down to −3 the swapped k3 is 2, where k3 is 16.
    swapped = Recipe("loss", "swapped-k3", beta=0.34, kl_clip=3.0)
    target = implied_target(swapped, reward, ref)
    assert float((target.log_probs - ref).min()) < -3
    assert not target.status & kt.Status.CLIPPED
    tight = dataclasses.replace(swapped, kl_clip=0.5)
    assert implied_target(tight, reward, ref).status & kt.Status.CLIPPED


def test_a_target_beyond_a_clamp_is_marked():
    ref, reward = (x.astype(DTYPE) for x in (np.log(P5[0]), P5[1]))
    inside = implied_target(Recipe("loss", clamped_k2, beta=1.0), reward, ref)
    assert not inside.status & kt.Status.CLIPPED
    plain = implied_target(Recipe("loss", "k2", beta=1.0), reward, ref)
    assert variation(inside.log_probs, plain.log_probs) < 32 * EPS
    beyond = implied_target(Recipe("loss", clamped_k2, beta=0.05), reward, ref)
    assert beyond.status & kt.Status.CLIPPED


@pytest.mark.quick_only("divergence2", others="broad")
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL(), kt.TotalVariation()])
def test_a_multiple_is_another_coefficient(divergence):
    ref, reward = (x.astype(DTYPE) for x in (np.log(P5[0]), P5[1]))
    scaled = kt.Objective(reward, ref, 0.2, Scaled(divergence, 2.5))
    plain = kt.Objective(reward, ref, 0.5, divergence)
    got, want = kt.solve(scaled), kt.solve(plain)
    close = functools.partial(np.testing.assert_allclose, rtol=64 * EPS, atol=64 * EPS)
    close(got.log_probs, want.log_probs)
    close(got.value, want.value)
    close(got.gap(ref), want.gap(ref))
    close(got.divergence_value, 2.5 * want.divergence_value)
    close(kt.flip_beta(scaled, 1, 2), kt.flip_beta(plain, 1, 2) / 2.5)
    close(kt.collapse_beta(scaled), kt.collapse_beta(plain) / 2.5)


@pytest.mark.broad
def test_the_integral_is_the_generator():
    # Slopes of families that have generators of their own.
    for slope, ends, family in (
        (lambda x: x, (-INF, INF), kt.ReverseKL()),
        (lambda x: -jnp.expm1(-x), (-INF, 1.0), kt.ForwardKL()),
        (lambda x: 2 * jnp.expm1(x), (-2.0, INF), kt.ChiSquared()),
    ):
        own = TermDivergence(slope, *ends)
        u = np.array([0.0, 1e-30, 1e-5, 0.1, 0.99, 3.0, 1e5, 1e12]).astype(DTYPE)
        np.testing.assert_allclose(own.f(u), family.f(u), rtol=1e3 * EPS)
        rng = np.random.default_rng(0)
        p, q = (jax.nn.log_softmax(rng.normal(size=50).astype(DTYPE)) for _ in range(2))
        np.testing.assert_allclose(own(p, q), family(p, q), rtol=1e3 * EPS)
        got, want = (jax.grad(x, argnums=(0, 1))(p, q) for x in (own, family))
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x - x.mean(), y - y.mean(), atol=1e2 * EPS)


def choices():
    policy, space = TabularPolicy(3, 1), kt.SequenceSpace(3, 1)
    log_ref = np.log([0.3, 0.02, 0.68]).astype(DTYPE)
    return policy, policy.from_conditionals([log_ref[None]]), space, log_ref, [1.0, 1.0, 0.0]


def tree():
    policy, space = TabularPolicy(3, 3), kt.SequenceSpace(3, 3)
    params = policy.init(key=jax.random.key(1))
    log_ref = np.asarray(space.joint(policy.conditionals(params, space)))
    return policy, params, space, log_ref, np.random.default_rng(1).integers(0, 3, 27) / 2


TRAINED = {
    **NAMES,
    "swapped-k3": "swapped-k3",
    "weighted quartic": Weighted(quartic),
    "weighted softplus": Weighted(jax.nn.softplus),
}
# On the way to a mass of next to nothing training takes for ever; on a flat piece, which Huber's
# term has below a log ratio of −1, several policies may be stationary.
BETAS = {"soft": 3.0, "swapped-k3": 1.5, "huber": 1.0, "weighted softplus": 1.5}


@functools.cache
def coming_to_rest(num_steps):
    return lambda rate: optax.adam(optax.cosine_decay_schedule(rate, num_steps))


# Terms of every kind on a tree, at one level or the other; a list is a tree of one step. Left out
# are a second clamp, a second polynomial, and what is trained on the list and in groups.
ALIKE = ("clamped_k2", "cubic_and_quartic", "mixed")
PLACED = [("one-two", "sequence", "mixed")]
PLACED += [
    ("tree", ("token", "sequence")[i % 2], x) for i, x in enumerate(TRAINED) if x not in ALIKE
]


@pytest.mark.quick_only("one-two-sequence-mixed")
@pytest.mark.parametrize(("where", "level", "name"), PLACED)
def test_training_ends_at_the_target_of_its_term(where, level, name):
    assert_reached(where, Recipe("loss", TRAINED[name], level, "mean"), BETAS.get(name, 0.7))


WEIGHTED = {
    # Below −3 it falls; there it may be anything.
    quartic: lambda x: x**4 / 4 + x**3 if x > -3 else x - 3.75,
    jax.nn.softplus: lambda x: np.logaddexp(0, x) + 1 / (1 + np.exp(-x)) - np.log(2) - 0.5,
}


@pytest.mark.parametrize("term", WEIGHTED, ids=["quartic", "softplus"])
def test_a_weighted_term_has_the_slope_of_its_mean(term):
    slope = WEIGHTED[term]
    ref, reward = P5
    low = -np.log(2) - 0.5 if term is jax.nn.softplus else -INF
    want = by_bisection(slope, low, INF, ref, reward, 1.0)
    recipe = Recipe("loss", Weighted(term), baseline="mean", beta=1.0)
    target = implied_target(recipe, reward.astype(DTYPE), np.log(ref).astype(DTYPE))
    assert not target.status & kt.Status.CLIPPED
    np.testing.assert_allclose(target.probs, want, atol=32 * EPS)
    assert divergence_of(term, place="weighted-loss").name == f"divergence of {called(term)}"
    assert recipe.term is not None
    assert recipe.term.name == f"divergence of weighted {called(term)}"


def called(term):
    return term.__name__


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_a_weighted_name_is_its_function_weighted(name):
    own = Recipe("loss", Weighted(getattr(estimators, name)), "token", "mean", beta=0.3)
    named = dataclasses.replace(own, estimator=f"weighted-{name}")
    assert own.aim == named.aim == "reverse"
    _, _, space, log_ref, reward = tree()
    reward = np.asarray(reward, DTYPE)
    got, want = (implied_target(x, reward, log_ref, space=space) for x in (own, named))
    np.testing.assert_array_equal(got.log_probs, want.log_probs)
    # What is followed off-policy too, where the weight is not 1.
    policies = (jax.random.normal(jax.random.key(i), (27, 3), DTYPE) - 2 for i in range(3))
    now, then, sampler = policies

    def ascent(recipe):
        def total(now):
            ascended = estimators.surrogate(recipe, now, then, reward, 0.3, log_sampler=sampler)
            return ascended.sum()

        return jax.grad(total)(now)

    np.testing.assert_allclose(ascent(own), ascent(named), rtol=64 * EPS, atol=EPS)


def test_a_weight_of_the_whole_sequence_is_known_of_names_alone():
    _, _, space, log_ref, reward = tree()
    recipe = Recipe("loss", Weighted(quartic), "token", ratio_level="sequence", beta=1.0)
    with pytest.raises(ValueError, match="a term per token that is weighted by the ratio"):
        implied_target(recipe, reward, log_ref, space=space)


def test_what_is_weighted_is_for_the_loss():
    weighted = Weighted(quartic)
    assert weighted == Weighted(quartic) != Weighted(huber)
    assert hash(weighted) == hash(Weighted(quartic))
    assert Recipe("loss", weighted).estimator_name == "weighted quartic"
    np.testing.assert_array_equal(weighted(np.arange(3.0)), quartic(np.arange(3.0)))
    for fields, message in (
        ({"place": "reward"}, "use place='loss'"),
        ({"place": "loss", "level": "token", "eos": "cut"}, "use eos='kept'"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            Recipe(estimator=weighted, **fields)
        assert "\n" not in str(error.value)
    for place in ("reward", "weighted-loss"):
        with pytest.raises(ValueError, match="use place='loss'"):
            divergence_of(weighted, place=place)
    with pytest.raises(TypeError, match="weighted already"):
        Weighted(weighted)
    with pytest.raises(TypeError, match="a function of log ratios, got str"):
        Weighted("k2")
    reading = recipes.read(Recipe("loss", weighted, beta=0.1))
    assert "weighted quartic carries the probability of its sample" in reading.why
    assert "beyond log ratio -3 nothing holds the policy" in reading.why


@pytest.mark.slow
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_training_in_groups_ends_at_the_target(level):
    assert_reached("tree", Recipe("loss", mixed, level, "mean", "group-std", group_size=4), 1.0)


def assert_reached(where, recipe, beta):
    policy, params, space, log_ref, reward = choices() if where == "one-two" else tree()
    reward = np.asarray(reward, DTYPE)
    target = implied_target(recipe, reward, log_ref, space=space, beta=beta)
    run = fine_tune(
        *(policy, params, reward, recipe),
        beta=beta,
        learning_rate=0.05,
        num_steps=4000,
        history_every=None,
        optimizer=coming_to_rest(4000),
        gradient_tol=0.0,
    )
    assert variation(run.log_probs, target.log_probs) < 1e-4
    assert variation(log_ref, target.log_probs) > 0.02


def ascent_at(problem, recipe, beta, log_probs):
    """The largest component of the gradient that exact training would follow there."""
    policy, _, space, log_ref, reward = problem
    tokens = space.sequences()

    def objective(params):
        now = policy.log_probs(params, tokens)
        then = policy.log_probs(policy.from_conditionals(space.conditionals(log_ref)), tokens)
        weights = jax.lax.stop_gradient(jnp.exp(now.sum(-1)))
        reached = (now, then, jnp.asarray(reward, DTYPE), beta, weights)
        return estimators.surrogate(recipe, *reached).sum()

    params = policy.from_conditionals(space.conditionals(log_probs))
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(jax.grad(objective)(params)))


# Made when asked for: a term is read by differentiating it.
RESTING = {
    "normalised": (lambda: Recipe("loss", mixed, "token", "mean", "group-std", epsilon=1e-4), 1.0),
    "normalised sequences": (lambda: Recipe("loss", quartic, "sequence", "mean", "group-std"), 1.0),
    "mean of the group": (lambda: Recipe("loss", "swapped-k3", "token", "mean", group_size=4), 1.5),
    "beside entropy": (lambda: Recipe("loss", mixed, "token", "mean", entropy_bonus=0.2), 0.7),
    "charged": (lambda: Recipe("reward", lambda x: x + x**3, "sequence", "mean"), 0.7),
}


@pytest.mark.broad
@pytest.mark.parametrize("name", RESTING)
def test_training_rests_at_the_target(name):
    make, beta = RESTING[name]
    recipe = make()
    problem = tree()
    _, _, space, log_ref, reward = problem
    target = implied_target(recipe, reward, log_ref, space=space, beta=beta)
    # What is found by a table is known to 1e-6 or so.
    assert ascent_at(problem, recipe, beta, target.log_probs) < max(1e-5, 1e2 * EPS)
    other = implied_target(recipe, reward, log_ref, space=space, beta=1.2 * beta)
    assert ascent_at(problem, recipe, beta, other.log_probs) > 1e-3


def test_what_no_formula_is_known_of_is_refused():
    _, _, space, log_ref, reward = tree()
    recipe = Recipe("reward", lambda x: x**3, "token", beta=1.0)
    with pytest.raises(ValueError, match="charged token by token"):
        implied_target(recipe, reward, log_ref, space=space)


def test_a_recipe_with_a_term_is_read():
    reading = recipes.read(Recipe("loss", "swapped-k3", "token", "mean", beta=0.1))
    assert reading.family == "token-local target of 0.5 × χ²"
    assert "its mean derivative is the gradient of 0.5 × χ²" in reading.why
    other = recipes.read(Recipe("loss", quartic, "token", "mean", beta=0.1))
    assert recipes.difference(reading, other) == "other target: 0.5 × χ² → divergence of quartic"
    clamped = recipes.read(Recipe("loss", clamped_k2, beta=0.1))
    assert "beyond |log ratio| = 3 nothing holds the policy" in clamped.why


@pytest.mark.broad
def test_verify_takes_terms():
    from kltarget.verification import verify

    chosen = [
        Recipe("loss", mixed, "token", "mean"),
        Recipe("loss", "swapped-k3", "sequence", "mean"),
    ]
    options = {"policies": ["tabular"], "recipes": chosen, "num_seeds": 1, "beta": [0.5, 1.0]}
    report = verify("one-two", key=jax.random.key(0), **options)
    assert report.passed
    assert {run.target for run in report.runs} == {"token_mixed", "sequence_swapped-k3"}
    assert "token-local" in str(report)
    shown = [x.get_text() for x in kt.plot.distances(report).get_xticklabels()]
    assert len(shown) == 6
    assert shown[-2:] == ["token-local mixed", "sequence swapped-k3"]


def diagnosed(estimator, folder):
    rows = [
        {"step": step, "prompt": "p", "completion": answer, "reward": reward, "num_tokens": 1}
        | {"ref_logp": log_ref, "logp": log_ref}
        for step in (1, 2)
        for answer, reward, log_ref in [("a", 1.0, math.log(0.3)), ("b", 0.0, math.log(0.7))] * 4
    ]
    file = folder / "rollouts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    log = kt.read_rollouts(file)
    return kt.diagnose(log, Recipe("loss", estimator, "token", "mean", group_size=8), beta=0.5)


@pytest.mark.broad
@pytest.mark.parametrize("estimator", [quartic, Weighted(quartic)], ids=["plain", "weighted"])
def test_a_diagnosis_of_a_term_is_saved_and_loaded(estimator, tmp_path):
    diagnosis = diagnosed(estimator, tmp_path)
    said = " ".join(str(diagnosis).split())
    assert f"is the gradient of divergence of {estimator.__name__}" in said
    diagnosis.save(tmp_path / "found.json")
    loaded = type(diagnosis).load(tmp_path / "found.json")
    assert loaded.recipe == diagnosis.recipe
    assert str(loaded) == str(diagnosis)
    diagnosed(lambda x: x**4, tmp_path).save(tmp_path / "nameless.json")
    with pytest.raises(ValueError, match="is a function that is not there: import test_terms"):
        type(diagnosis).load(tmp_path / "nameless.json")
