"""Several references, teachers, data and entropy in one objective, and weights that swap modes."""

import dataclasses

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from oracles import (
    assert_reference,
    central_difference,
    clarabel,
    double_precision,
    eps,
    reference,
)

import kltarget as kt
from kltarget.implied import implied_target
from kltarget.modes import flip_weight
from kltarget.objectives.references import combine, soup
from kltarget.recipes import Recipe

INF = np.inf
DTYPE = np.float64 if jax.config.jax_enable_x64 else np.float32
P5, R5 = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.1, 0.5, 1.0, 0.9, 0.3])
T5 = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
REF, TEACHER, REWARD = np.log(P5).astype(DTYPE), np.log(T5).astype(DTYPE), R5.astype(DTYPE)


BANK = {
    "combine-reverse": {"reverse": [(TEACHER, 0.3), (REF, 0.2)]},
    "combine-forward": {"forward": [(TEACHER, 0.3), (REF, 0.2)]},
    "combine-entropy": {"reverse": [(REF, 0.3)], "entropy": 0.2},
    # a H − b CE(π, ref) is (a − b) H − b KL(π‖ref).
    "combine-spl": {"reverse": [(REF, 0.2)], "entropy": 0.3},
    "combine-rev-fwd": {"reverse": [(REF, 0.3)], "forward": [(REF, 0.2)]},
    "combine-entropy-fwd": {"forward": [(REF, 0.3)], "entropy": 0.2},
    "opd": {"reverse": [(REF, 0.3), (TEACHER, 0.2)]},
    "teacher-only": {"reverse": [(TEACHER, 0.5)]},
}


@pytest.mark.parametrize("name", BANK)
@pytest.mark.precise
def test_combinations_of_the_bank(name):
    target = kt.solve(combine(REWARD, **BANK[name]))
    assert_reference(name, target.probs, "pi", DTYPE)
    expected = reference(name)["expected"]
    if "value" in expected and name != "combine-forward":
        assert_reference(name, target.value, "value", DTYPE)


def total(reward, log_policy, reverse=(), forward=(), entropy=0.0):
    """``E r − Σ b KL(π‖T) − Σ c KL(R‖π) + η H(π)``, as it is written."""
    p = np.exp(log_policy)
    value = (p * reward).sum(-1) - entropy * (p * log_policy).sum(-1)
    for log_probs, b in reverse:
        value = value - b * (p * (log_policy - log_probs)).sum(-1)
    for log_probs, c in forward:
        value = value - c * (np.exp(log_probs) * (log_probs - log_policy)).sum(-1)
    return value


def drawn(rng, *shape):
    logits = rng.normal(size=shape) * 2
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


@pytest.mark.parametrize("kinds", ["reverse", "forward", "entropy", "both", "all"])
def test_the_objective_has_the_value_of_the_sum_at_every_policy(kinds):
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(3, 1, 6))
    terms = {}
    if kinds in ("reverse", "both", "all"):
        # A negative coefficient, and one for each row.
        others = [(drawn(rng, 6), -0.2)] if kinds != "both" else []
        terms["reverse"] = [(drawn(rng, 6), 0.7), *others, (drawn(rng, 2, 6), np.array([0.4, 0.0]))]
    if kinds in ("forward", "both", "all"):
        terms["forward"] = [(drawn(rng, 6), 0.3), (drawn(rng, 6), np.array([[0.0], [0.5], [1.0]]))]
    if kinds in ("entropy", "all"):
        terms["entropy"] = 0.25
    made = combine(*jax.tree.map(lambda x: jnp.asarray(x, DTYPE), (reward,)), **narrow(terms))
    batch = np.broadcast_shapes((3, 1), made.batch_shape)
    for log_policy in drawn(rng, 4, *batch, 6):
        want = total(reward, log_policy, **terms)
        got = made.value(jnp.asarray(log_policy, DTYPE))
        np.testing.assert_allclose(got, want, rtol=64 * eps(DTYPE), atol=64 * eps(DTYPE))


def narrow(terms):
    """The same terms in the tests' float type."""
    return jax.tree.map(lambda x: jnp.asarray(x, DTYPE), terms)


@pytest.mark.broad
def test_the_target_maximises_the_sum_by_a_convex_solver():
    import cvxpy as cp

    rng = np.random.default_rng(1)
    reward, logs = rng.normal(size=7), drawn(rng, 4, 7)
    terms = {
        "reverse": [(logs[0], 0.5), (logs[1], 0.2)],
        "forward": [(logs[2], 0.3), (logs[3], 0.1)],
        "entropy": 0.15,
    }
    p = cp.Variable(7)
    goal = reward @ p + 0.15 * cp.sum(cp.entr(p))
    goal -= sum(b * cp.sum(cp.rel_entr(p, np.exp(x))) for x, b in terms["reverse"])
    goal -= sum(c * cp.sum(cp.rel_entr(np.exp(x), p)) for x, c in terms["forward"])
    problem = cp.Problem(cp.Maximize(goal), [cp.sum(p) == 1])
    error = clarabel(problem)
    target = kt.solve(combine(jnp.asarray(reward, DTYPE), **narrow(terms)))
    np.testing.assert_allclose(target.value, problem.value, atol=error + 64 * eps(DTYPE))
    np.testing.assert_allclose(target.probs, p.value, atol=max(2e-4, error))


@pytest.mark.precise
def test_soups_of_the_bank():
    given = {k: np.array(x, DTYPE) for k, x in reference("salsa")["inputs"].items()}
    made = soup([given["logits1"], given["logits2"]], [0.5, 0.5])
    assert_reference("salsa", np.exp(made), "soup", DTYPE)
    target = kt.solve(kt.Objective(given["R"], made, given["beta"]))
    assert_reference("salsa", target.probs, "pi", DTYPE)
    for name in ("gopd-0.5", "gopd-1.5"):
        w = reference(name)["inputs"]["w"]
        assert_reference(name, np.exp(soup([REF, TEACHER], [1 - w, w])), "pi", DTYPE)


@pytest.mark.precise
def test_a_reference_that_takes_over_a_share_of_the_policy():
    case = reference("ema")["inputs"]
    share, log_ref = case["alpha"], REF
    for _ in range(case["syncs"]):
        policy = kt.solve(kt.Objective(REWARD, log_ref, case["beta"])).log_probs
        log_ref = soup([log_ref, policy], [1 - share, share])
    last = kt.solve(kt.Objective(REWARD, log_ref, case["beta"]))
    assert_reference("ema", last.probs, "pi", DTYPE, ulps=256)


@pytest.mark.precise
def test_an_entropy_bonus_changes_the_ratio_of_equal_rewards():
    case = reference("entropy-ratio")["inputs"]
    log_ref = kt.normalize(jnp.log(jnp.asarray([case["ref_ratio"], 1.0, 4.0], DTYPE)))
    made = combine(
        jnp.asarray([1.0, 1.0, 0.0], DTYPE),
        reverse=[(log_ref, case["beta"])],
        entropy=case["eta"],
    )
    probs = kt.solve(made).probs
    assert_reference("entropy-ratio", probs[0] / probs[1], "ratio", DTYPE)
    # A penalty of entropy sharpens it.
    made = combine(made.reward, reverse=[(log_ref, case["beta"])], entropy=-0.1)
    probs = kt.solve(made).probs
    np.testing.assert_allclose(probs[0] / probs[1], case["ref_ratio"] ** 1.5, rtol=1e-4)


def test_soups_in_arbitrary_precision():
    rng = np.random.default_rng(2)
    logs = drawn(rng, 3, 5).astype(DTYPE)
    for weights in ([0.5, 0.3, 0.2], [1.0, 2.5, -2.5]):
        powers = [
            mp.exp(sum(mp.mpf(w) * mp.mpf(float(x)) for w, x in zip(weights, row, strict=True)))
            for row in logs.T
        ]
        want = [float(mp.log(x / mp.fsum(powers))) for x in powers]
        np.testing.assert_allclose(soup(list(logs), weights), want, rtol=64 * eps(DTYPE))
    mixed = soup(list(logs), [0.5, 0.3, 0.2], of="probabilities")
    want = np.log(np.exp(logs.astype(float)).T @ [0.5, 0.3, 0.2])
    np.testing.assert_allclose(mixed, want, rtol=64 * eps(DTYPE))
    # The one is the reference of a sum of reverse KLs, the other that of forward KLs.
    terms = [(x, w) for x, w in zip(logs, (0.5, 0.3, 0.2), strict=True)]
    reward = np.zeros(5, DTYPE)
    np.testing.assert_allclose(
        combine(reward, reverse=terms).log_ref, soup(list(logs), [0.5, 0.3, 0.2]), rtol=1e-5
    )
    np.testing.assert_allclose(combine(reward, forward=terms).log_ref, mixed, rtol=1e-5)


@pytest.mark.broad
def test_what_a_reference_lacks():
    lacks = np.array([np.log(0.5), np.log(0.5), -INF], DTYPE)
    full = np.log(np.array([0.25, 0.25, 0.5])).astype(DTYPE)
    reward = np.array([0.0, 1.0, 3.0], DTYPE)
    # A geometric mean lacks what one of its members lacks, a mixture does not.
    both = [(lacks, 0.3), (full, 0.2)]
    assert kt.solve(combine(reward, reverse=both)).probs[2] == 0
    mixed = kt.solve(combine(reward, forward=both)).probs
    np.testing.assert_allclose(mixed, kt.solve(mixture_objective(reward)).probs, rtol=1e-5)
    # Forward KL to what reverse KL forbids is infinite whatever is done.
    forbidden = kt.solve(combine(reward, reverse=[(lacks, 0.3)], forward=[(full, 0.2)]))
    assert forbidden.value == -INF
    assert forbidden.probs[2] == 0
    # A coefficient of 0 forbids nothing, and forbidden outcomes need no mass.
    free = combine(reward, reverse=[(lacks, 0.0), (full, 0.2)])
    assert kt.solve(free).probs[2] > 0.9
    reward[2] = -INF
    covered = kt.solve(combine(reward, reverse=[(full, 0.2)], forward=[(lacks, 0.3)]))
    np.testing.assert_allclose(covered.probs, direct([0.0, 1.0], 0.2, 0.3), rtol=1e-4)


def mixture_objective(reward):
    log_ref = np.log(np.array([0.4, 0.4, 0.2])).astype(DTYPE)
    return kt.Objective(reward, log_ref, 0.5, kt.ForwardKL())


def direct(reward, b, c):
    """By a scan of two outcomes, the third one forbidden: reverse KL to (¼, ¼, ½), forward to ½."""
    p = np.linspace(1e-6, 1 - 1e-6, 2_000_001)
    value = p * reward[0] + (1 - p) * reward[1] + 0.5 * c * (np.log(p) + np.log(1 - p))
    value -= b * (p * np.log(p) + (1 - p) * np.log(1 - p))
    best = p[value.argmax()]
    return [best, 1 - best, 0.0]


FULL, LACKS = np.log([0.25, 0.25, 0.5]), np.array([np.log(0.5), np.log(0.5), -INF])
BAD = {
    "there is nothing to regularise by": {},
    "reverse.0. must be a pair": {"reverse": [FULL]},
    "reverse.0. has 2 outcomes and reward has 3": {"reverse": [(np.log([0.5, 0.5]), 1.0)]},
    "forward.1. is not normalised": {"forward": [(FULL, 1.0), (FULL + 1, 1.0)]},
    r"batch axes do not broadcast: .* coefficient of reverse.0. \(3,\)": {
        "reverse": [(np.stack([FULL, FULL]), np.ones(3))]
    },
    "the coefficient of forward.0. must be 0 or more, got -1.0 at index 1": {
        "forward": [(FULL, np.array([1.0, -1.0]))]
    },
    "the sum of the coefficients of reverse and entropy must be above 0, got -0.5": {
        "reverse": [(FULL, 1.0)],
        "entropy": -1.5,
    },
    "the sum of the coefficients of forward must be above 0": {"forward": [(FULL, 0.0)]},
    "reverse.1. has a negative coefficient and lacks .* at index 2": {
        "reverse": [(FULL, 2.0), (LACKS, -1.0)]
    },
    "reverse has references without any outcome in common": {
        "reverse": [(np.array([-INF, -INF, 0.0]), 1.0), (LACKS, 1.0)]
    },
    "forward lacks an outcome that the other terms allow: .* at index 2": {
        "forward": [(LACKS, 1.0)],
        "entropy": 0.1,
    },
}


@pytest.mark.parametrize("message", BAD)
def test_bad_terms_are_named(message):
    with pytest.raises((ValueError, TypeError), match=message):
        combine(np.zeros(3), **BAD[message])


def test_bad_soups_are_named():
    for message, given in {
        "one weight each": ([FULL], [0.5, 0.5]),
        "sum of weights must be 1, got 1.5": ([FULL, FULL], [0.5, 1.0]),
        "log_probs.1. has a negative weight and lacks .* at index 2": ([FULL, LACKS], [2.0, -1.0]),
        "no outcome in common": ([np.array([-INF, -INF, 0.0]), LACKS], [0.5, 0.5]),
    }.items():
        with pytest.raises(ValueError, match=message):
            soup(*given)
    with pytest.raises(ValueError, match=r"weight of log_probs.0. must be 0 or more, got -1"):
        soup([FULL, FULL], [-1.0, 2.0], of="probabilities")
    with pytest.raises(ValueError, match="of must be"):
        soup([FULL], [1.0], of="weights")


@pytest.mark.broad
def test_what_is_bad_under_a_trace_has_no_target():
    def status(b, c):
        made = combine(REWARD, reverse=[(REF, b)], forward=[(TEACHER, c)])
        return kt.solve(made).status

    found = jax.jit(jax.vmap(status))(
        jnp.array([0.3, -0.1, 0.3], DTYPE), jnp.array([0.2, 0.2, -0.2], DTYPE)
    )
    assert [bool(x & kt.Status.INVALID_BETA) for x in found] == [False, True, True]
    assert found[0] == 0
    made = jax.jit(lambda w: soup([FULL, LACKS], [1 - w, w]))(jnp.array(-1.0))
    assert np.isnan(made).all()


RECIPES = {
    "teacher": (Recipe(teacher=0.2), {"reverse": [(REF, 0.3), (TEACHER, 0.2)]}),
    "teacher, forward": (
        Recipe(teacher=0.2, teacher_direction="forward"),
        {"reverse": [(REF, 0.3)], "forward": [(TEACHER, 0.2)]},
    ),
    "both forward": (
        Recipe("loss", "k3", teacher=0.2, teacher_direction="forward"),
        {"forward": [(REF, 0.3), (TEACHER, 0.2)]},
    ),
    "bonus": (Recipe(entropy_bonus=0.25), {"reverse": [(REF, 0.3)], "entropy": 0.25}),
    "bonus, forward": (
        Recipe("loss", "k3", entropy_bonus=0.25),
        {"forward": [(REF, 0.3)], "entropy": 0.25},
    ),
    "bonus and teacher": (
        Recipe(teacher=0.2, entropy_bonus=0.25),
        {"reverse": [(REF, 0.3), (TEACHER, 0.2)], "entropy": 0.25},
    ),
    "no reference": (Recipe(reference="none"), {"entropy": 0.3}),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.precise
def test_recipes_of_teachers_and_bonuses_lead_to_the_same_target(name):
    recipe, terms = RECIPES[name]
    told = {"log_teacher": TEACHER} if recipe.teacher else {}
    implied = implied_target(recipe, REWARD, REF, beta=0.3, **told)
    target = kt.solve(combine(REWARD, **terms))
    np.testing.assert_allclose(implied.log_probs, target.log_probs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_derivatives_are_those_of_differences():
    with double_precision():
        lacks = jnp.log(jnp.array([0.3, 0.7, 0.0]))
        full = jnp.log(jnp.array([0.5, 0.3, 0.2]))
        reward = jnp.array([0.1, 0.5, -jnp.inf])

        def numbers(x):
            terms = {"reverse": [(full, x[0]), (lacks, x[1])], "forward": [(lacks, x[2])]}
            target = kt.solve(combine(reward, **terms, entropy=x[3]))
            return jnp.stack([target.value, target.probs[0]])

        both = jax.jit(lambda x, direction: jax.jvp(numbers, (x,), (direction,)))
        at = np.array([0.3, 0.2, 0.4, 0.1])
        for k in range(4):
            along = np.eye(4)[k]
            slopes = both(at, along)[1]
            want = central_difference(lambda x, d=along: both(at + x * d, d)[0], 0, 1e-3)
            np.testing.assert_allclose(slopes, want, rtol=1e-6, atol=1e-9)


def soup_at(weight, of="logits", log_ref=REF, log_other=TEACHER, beta=0.5):
    return kt.Objective(REWARD, soup([log_ref, log_other], [1 - weight, weight], of=of), beta)


@pytest.mark.broad
def test_flips_in_a_weight_by_their_closed_forms():
    i, j, beta = 0, 2, 0.5
    rho, tau = REF[i] - REF[j], TEACHER[i] - TEACHER[j]
    delta = float(REWARD[i] - REWARD[j])
    rtol = 64 * eps(DTYPE)
    # Reverse KL to a soup of logits, also where it extrapolates, and to a teacher at a coefficient.
    low = kt.Objective(REWARD, REF, beta)
    assert kt.log_odds(kt.solve(low).log_probs, i, j) < 0
    got = flip_weight(soup_at, i, j, between=(-3.0, 2.0))
    np.testing.assert_allclose(got, (rho + delta / beta) / (rho - tau), rtol=rtol)
    mild = 2.5
    got = flip_weight(
        lambda w: combine(REWARD, reverse=[(REF, mild), (TEACHER, w)]), i, j, between=(0.0, 5.0)
    )
    np.testing.assert_allclose(got, -(mild * rho + delta) / tau, rtol=rtol)
    # Reverse KL to a soup of probabilities, of modes.
    modes = np.array([0, 0, 1, 1, -1])

    def lead(p):
        weighed = p * np.exp(R5 / mild)
        return weighed[:2].sum() - weighed[2:4].sum()

    got = flip_weight(lambda w: soup_at(w, of="probabilities", beta=mild), 0, 1, modes=modes)
    np.testing.assert_allclose(got, lead(P5) / (lead(P5) - lead(T5)), rtol=rtol)
    # An entropy bonus flattens odds and never turns them.
    bonus = flip_weight(lambda w: combine(REWARD, reverse=[(REF, mild)], entropy=w), i, j)
    assert np.isnan(bonus)


@pytest.mark.broad
@pytest.mark.parametrize("kind", ["forward", "replay", "modes"])
def test_other_flips_in_a_weight_are_roots(kind):
    made, modes, i, j = {
        "forward": (lambda w: combine(REWARD, forward=[(REF, 3.0), (TEACHER, w)]), None, 0, 2),
        "replay": (
            lambda w: combine(REWARD, reverse=[(TEACHER, 0.5)], forward=[(REF, w)]),
            None,
            0,
            2,
        ),
        "modes": (
            lambda w: combine(REWARD, reverse=[(REF, 2.0), (TEACHER, w)]),
            np.array([0, 0, 1, 1, 1]),
            0,
            1,
        ),
    }[kind]
    between = (0.0, 20.0)
    at = flip_weight(made, i, j, between=between, modes=modes)
    labels = np.arange(5) if modes is None else modes

    def lead(w):
        probs = np.asarray(kt.solve(made(jnp.asarray(w, DTYPE))).probs, float)
        return probs[labels == i].sum() - probs[labels == j].sum()

    assert abs(lead(at)) < 64 * eps(DTYPE)
    assert lead(0.9 * at) * lead(1.1 * at) < 0


@pytest.mark.broad
def test_flips_of_rows_and_their_derivatives():
    with double_precision():
        rewards, ref, teacher = jnp.asarray([R5, R5[::-1]]), jnp.log(P5), jnp.log(T5)

        def flips(reward, beta):
            def made(w):
                return combine(reward, reverse=[(ref, beta), (teacher, w)])

            return flip_weight(made, 0, 2, between=(0.0, 8.0))

        def total(beta):
            found = flips(rewards, beta)
            return found.sum(), found

        (_, got), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(2.5)
        delta, rho, tau = R5[0] - R5[2], ref[0] - ref[2], teacher[0] - teacher[2]
        want = [-(2.5 * rho + delta) / tau, -(2.5 * rho + R5[4] - R5[2]) / tau]
        np.testing.assert_allclose(got, want, rtol=1e-12)
        np.testing.assert_allclose(slope, -2 * rho / tau, rtol=1e-10)


def test_bad_ranges_and_paths_are_named():
    with pytest.raises(ValueError, match="smaller first"):
        flip_weight(soup_at, 0, 1, between=(1.0, 0.0))
    with pytest.raises(ValueError, match="from 0 to 4"):
        flip_weight(soup_at, 0, 5)
    with pytest.raises(ValueError, match="any axes before"):
        flip_weight(lambda w: kt.Objective(REWARD, REF, 1.0), 0, 1)
    with pytest.raises(TypeError, match="a function to"):
        flip_weight(lambda w: REF, 0, 1)


def test_distillation_is_rl_with_any_reference():
    """Claim: on-policy distillation is KL-constrained reinforcement learning in which reward and KL
    weigh the same and the reference may be any model (arXiv 2602.12125, abstract).

    Holds: E log(T/π_ref) − KL(π‖π_ref) is −KL(π‖T) at every policy, if the reference has all that
    the policy does.
    """
    rng = np.random.default_rng(3)
    for log_ref in drawn(rng, 3, 5):
        given = jnp.asarray(log_ref, DTYPE)
        plain = kt.Objective(TEACHER - given, given, 1.0)
        for log_policy in drawn(rng, 3, 5):
            policy = jnp.asarray(log_policy, DTYPE)
            np.testing.assert_allclose(plain.value(policy), -kt.kl(policy, TEACHER), rtol=1e-4)
        np.testing.assert_allclose(kt.solve(plain).probs, T5, rtol=1e-4)


def test_extrapolation_surpasses_the_teacher_from_its_own_reference_only():
    """Claim: a reward log(T/π_ref) scaled by w above 1 surpasses the teacher (arXiv 2602.12125,
    abstract).

    Holds with a correction: from the reference that the teacher was tuned from it is the target of
    the teacher's own reward at β/w and earns more than the teacher; from another one it may earn
    less, for what the teacher has from its base is exaggerated too. The abstract was at hand.
    """
    beta, w = 0.5, 1.5
    teacher = kt.solve(kt.Objective(REWARD, REF, beta))
    beyond = soup([REF, teacher.log_probs], [1 - w, w])
    sharper = kt.solve(kt.Objective(REWARD, REF, beta / w))
    np.testing.assert_allclose(beyond, sharper.log_probs, rtol=1e-4)
    assert sharper.expected_reward > teacher.expected_reward + 0.05
    # The student's own reference prefers the best outcome, the teacher's base another one.
    student = np.log([0.05, 0.05, 0.6, 0.25, 0.05]).astype(DTYPE)
    other = soup([student, teacher.log_probs], [1 - w, w])
    assert np.exp(other) @ REWARD < teacher.expected_reward - 0.05


def test_a_teacher_beside_a_reward_is_one_target():
    """Claim: one policy gradient minimises the reverse KL to a teacher and maximises the rewards of
    a rule (arXiv 2506.02208, abstract).

    Holds: its optimum is the teacher's law tilted by the reward, ∝ T e^{r/β}, of a success with
    logit p = logit p_T + 1/β; right answers keep the teacher's proportions and no answer that the
    teacher lacks is found. The abstract was at hand.
    """
    teacher = np.array([0.1, 0.2, 0.4, 0.3, 0.0])
    right = np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    with np.errstate(divide="ignore"):
        log_teacher = np.log(teacher).astype(DTYPE)
    probs = np.asarray(kt.solve(combine(right.astype(DTYPE), reverse=[(log_teacher, 0.4)])).probs)
    success = probs[right == 1].sum()
    np.testing.assert_allclose(np.log(success / (1 - success)), 2.5, rtol=1e-4)
    np.testing.assert_allclose(probs[0] / probs[2], 0.25, rtol=1e-4)
    assert probs[4] == 0


@pytest.mark.broad
def test_soups_as_references():
    """Claim: a soup of two fine-tuned models as the reference earns more than one of them as the
    reference (arXiv 2411.01798, abstract).

    Holds with a correction: at equal β it does where one model's faults are not the other's, and
    earns less where its right answers are not; at equal KL to the first model no target earns more
    than that of the first model alone. The abstract was at hand.
    """
    reward = np.array([1.0, 0.0, 0.0, 1.0], DTYPE)

    def earned(log_ref, beta=0.5):
        return kt.solve(kt.Objective(reward, log_ref, beta)).expected_reward

    own_faults = np.log([[0.4, 0.58, 0.01, 0.01], [0.4, 0.01, 0.58, 0.01]]).astype(DTYPE)
    own_answers = np.log([[0.58, 0.4, 0.01, 0.01], [0.01, 0.4, 0.01, 0.58]]).astype(DTYPE)
    for logs, better in ((own_faults, True), (own_answers, False)):
        mixed = soup(list(logs), [0.5, 0.5])
        assert all((earned(mixed) > earned(x) + 0.05) == better for x in logs)
        assert all(better or earned(mixed) < earned(x) - 0.05 for x in logs)
    mixed = kt.solve(kt.Objective(reward, soup(list(own_faults), [0.5, 0.5]), 0.5))
    spent = kt.kl(mixed.log_probs, own_faults[0])
    first = kt.Objective(reward, own_faults[0], 1.0)
    alone = dataclasses.replace(first, beta=kt.frontier.beta_for(first, kl=spent))
    assert kt.solve(alone).expected_reward > mixed.expected_reward + 0.01


@pytest.mark.broad
def test_fused_logits_are_targets_of_lists_and_not_of_sequences():
    """Claim: the difference of logits that tuning made in a small model, added to a large one's,
    gives it what tuning would have given it (arXiv 2406.15480, abstract).

    Holds with a correction: of whole answers, if the small one is a target of reverse KL at β, the
    sum at weight a is the large one's target of the same reward at β/a; fused token by token it is
    not, for the values of prefixes are those of the small model. The abstract was at hand.
    """
    rng = np.random.default_rng(5)
    space = kt.SequenceSpace(2, 2)
    large, small = (jnp.asarray(x, DTYPE) for x in drawn(rng, 2, 4))
    reward = jnp.asarray([1.0, 0.0, 0.0, 0.6], DTYPE)
    tuned = kt.solve(kt.Objective(reward, small, 0.3)).log_probs
    for a in (0.5, 1.0, 2.0):
        fused = soup([large, tuned, small], [1.0, a, -a])
        wanted = kt.solve(kt.Objective(reward, large, 0.3 / a)).log_probs
        np.testing.assert_allclose(fused, wanted, atol=1e-4)
    by_token = [space.conditionals(x) for x in (large, tuned, small)]
    parts = [soup(list(level), [1.0, 1.0, -1.0]) for level in zip(*by_token, strict=True)]
    wanted = kt.solve(kt.Objective(reward, large, 0.3)).log_probs
    assert np.abs(np.exp(space.joint(parts)) - np.exp(wanted)).max() > 0.02


@pytest.mark.broad
def test_replayed_data_hold_up_what_the_reward_lets_go_of():
    """Claim: a KL penalty on the new task alone does not guarantee what was known before, and
    replay preserves it (arXiv 2510.21978, abstract).

    Holds: without data the mass of an old answer falls like e^{−Δ/β}; a forward KL to data at c
    holds every old answer at c R/(Δ + c + β log(1/m)) or more, Δ the rewards' range and m the least
    mass of the reference. The abstract was at hand.
    """
    old = np.array([0.7, 0.3, 0.0, 0.0])
    ref, reward = np.array([0.6, 0.3, 0.05, 0.05]), np.array([0.0, 0.0, 1.0, 0.5])
    log_ref = np.log(ref).astype(DTYPE)
    log_data = soup([np.log(old + 1e-9), log_ref], [0.999, 0.001], of="probabilities")
    data, c = np.exp(np.asarray(log_data, float)), 0.1
    alone, kept = [], []
    for beta in (0.1, 0.05, 0.02):
        alone.append(kt.solve(kt.Objective(reward.astype(DTYPE), log_ref, beta)).probs[0])
        made = combine(
            reward.astype(DTYPE), reverse=[(log_ref, beta)], forward=[(log_data.astype(DTYPE), c)]
        )
        probs = np.asarray(kt.solve(made).probs, float)
        bound = c * data / (1 + c + beta * np.log(1 / ref.min()))
        assert (probs >= bound * (1 - 1e-4)).all()
        kept.append(probs[0])
    assert alone[0] < 1e-3
    assert alone[2] < 1e-19
    assert min(kept) > 0.05


def test_retained_data_limit_what_is_earned():
    """Claim: constraints on offline data limit the improvement that is possible, and it need not
    retain them (arXiv 2412.07762, abstract).

    Holds: with a forward KL to data at c the optimum falls short of the best reward by up to c, and
    by c exactly where rewards are c apart or more from the best; warm starts leave no trace in a
    target. The abstract was at hand, whose subject is the training of value functions.
    """
    reward = np.array([0.0, 0.0, 1.0], DTYPE)
    log_data = np.log([0.5, 0.499, 0.001]).astype(DTYPE)
    for c in (0.3, 0.1, 0.01):
        short = 1 - kt.solve(combine(reward, forward=[(log_data, c)])).expected_reward
        assert 0 < short <= c
        assert short > 0.9 * c
