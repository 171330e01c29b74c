"""Fields of recipes that real trainers need: references that move, teachers, several rewards…"""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_reference, reference
from scipy.optimize import brentq

import kltarget as kt
from kltarget import recipes
from kltarget.implied import effective_beta, equivalent_beta, implied_target, saturation_beta
from kltarget.policies import TabularPolicy, Tempered
from kltarget.recipes import Recipe, groups
from kltarget.training import estimators, fine_tune

INF = np.inf
DTYPE = np.float64 if jax.config.jax_enable_x64 else np.float32
P5, R5 = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.1, 0.5, 1.0, 0.9, 0.3])
T5 = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
TWO = np.array([[0.0, 0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0, 0.0]])
RIGHT = TWO[0]
LOGS = np.log(P5).astype(DTYPE)


def variation(p, q):
    return np.abs(np.asarray(p, float) - np.asarray(q, float)).sum(-1) / 2


def of_bank(name):
    return reference(name)["inputs"]


@pytest.mark.precise
def test_an_averaged_reference_of_the_bank():
    case = of_bank("ema")
    recipe = Recipe(reference="averaged", reference_every=100, reference_share=case["alpha"])
    target = implied_target(recipe, R5.astype(DTYPE), LOGS, beta=0.3, num_syncs=case["syncs"])
    assert_reference("ema", target.probs, "pi", DTYPE, ulps=256)
    np.testing.assert_allclose(target.effective_beta, 0.3 / (1 + 3 * 0.6), rtol=1e-6)


@pytest.mark.parametrize("recipe", [Recipe(teacher=0.2), Recipe("loss", "k2", teacher=0.2)])
@pytest.mark.precise
def test_a_teacher_of_the_bank(recipe):
    target = implied_target(
        recipe, R5.astype(DTYPE), LOGS, beta=0.3, log_teacher=np.log(T5).astype(DTYPE)
    )
    assert_reference("opd", target.probs, "pi", DTYPE)


@pytest.mark.precise
def test_a_temperature_of_the_bank():
    target = implied_target(Recipe(temperature=0.7), R5.astype(DTYPE), LOGS, beta=0.3)
    assert_reference("temperature", target.probs, "pi", DTYPE)
    np.testing.assert_allclose(target.effective_beta, 0.3 / 0.7, rtol=1e-6)


@pytest.mark.precise
def test_the_mean_as_divisor_of_the_bank():
    recipe = Recipe("loss", "k2", baseline="mean", normalize="group-mean")
    target = implied_target(recipe, RIGHT.astype(DTYPE), LOGS, beta=0.3)
    assert_reference("maxrl", target.probs[2:4].sum(), "success", DTYPE)


@pytest.mark.parametrize(
    ("name", "combine"), [("gdpo", "normalize-then-sum"), ("sum-then-std", "sum")]
)
@pytest.mark.precise
def test_several_rewards_of_the_bank(name, combine):
    recipe = Recipe(
        "loss",
        "k2",
        baseline="mean",
        normalize="group-std",
        reward_weights=(1.0, 1.0),
        combine=combine,
    )
    target = implied_target(recipe, TWO.astype(DTYPE), LOGS, beta=4.0)
    assert_reference(name, target.probs, "pi", DTYPE)


def one_token():
    policy = TabularPolicy(5, 1)
    return policy, kt.SequenceSpace(5, 1), P5, R5, TWO, T5


def two_tokens():
    """Three tokens, two of them at most, the last of which ends a sequence early."""
    policy, space = TabularPolicy(3, 2, eos=2), kt.SequenceSpace(3, 2, eos=2)
    first, then = np.array([0.5, 0.3, 0.2]), np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    ref = np.append((first[:2, None] * then).ravel(), [0, 0, first[2]])
    told = np.append((first[::-1][:2, None] * then[::-1]).ravel(), [0, 0, first[0]])
    reward = np.array([0.0, 1.0, 0.5, 1.0, 0.0, 0.5, 0.0, 0.0, 0.5])
    second = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    return policy, space, ref, reward, np.stack([reward, second]), told


MEAN = {"baseline": "mean"}
STD = {"baseline": "mean", "normalize": "group-std", "normalize_when": "before"}
CHARGED = {"place": "reward", "estimator": "k1", "level": "token"}
COMBINATIONS = {
    "temperature": (Recipe(temperature=0.7), 0.3),
    "temperature, k3 per token": (Recipe("loss", "k3", "token", temperature=1.4), 0.4),
    "no reference": (Recipe(reference="none"), 0.4),
    "no reference, per token": (Recipe("loss", "k2", "token", reference="none"), 0.4),
    "teacher": (Recipe("loss", "k2", "token", teacher=0.2), 0.3),
    "teacher beside k3": (Recipe("loss", "k3", "token", teacher=0.2), 0.3),
    "teacher, forward": (Recipe(teacher=0.2, teacher_direction="forward"), 0.3),
    "teacher, both forward": (
        Recipe("loss", "k3", "token", teacher=0.2, teacher_direction="forward"),
        0.3,
    ),
    "teacher alone": (Recipe("none", level="token", teacher=0.4), 0.0),
    "teacher beside a swapped k3": (Recipe("loss", "swapped-k3", "token", teacher=0.2), 0.6),
    "top-k": (Recipe("loss", "k2", "token", teacher=0.2, teacher_top_k=2), 0.3),
    "top-k beside k3": (Recipe("loss", "k3", "token", teacher=0.2, teacher_top_k=2), 0.3),
    "top-k, forward": (
        Recipe("loss", "k2", "token", teacher=0.2, teacher_direction="forward", teacher_top_k=2),
        0.3,
    ),
    "mean as divisor": (Recipe("loss", "k3", "token", **MEAN, normalize="group-mean"), 0.5),
    "several rewards, added": (Recipe("loss", "k3", **STD, reward_weights=(1.0, 0.5)), 1.0),
    "several rewards, each normalised": (
        Recipe("loss", "k3", **STD, reward_weights=(1.0, 0.5), combine="normalize-then-sum"),
        1.5,
    ),
    "divided once more": (
        Recipe("loss", "k3", "token", **STD, epsilon=0.1, renormalize="mean-abs"),
        1.0,
    ),
    "whitened once more": (Recipe("loss", "k3", **MEAN, renormalize="batch-std"), 1.0),
    "cut": (Recipe("loss", "k2", "token", **STD, advantage_clip=0.8), 0.8),
    "charged to itself": (Recipe(**CHARGED, charge="own", **MEAN), 0.4),
    "charged to itself, after std": (Recipe(**CHARGED, charge="own", **STD), 1.2),
    "centred": (Recipe(**CHARGED, kl_centre="batch-mean"), 0.4),
    "centred, beside std": (Recipe(**CHARGED, kl_centre="batch-mean", **STD), 1.5),
    "ratio of the sequence": (Recipe("loss", "k3", "token", ratio_level="sequence"), 0.4),
    "sequence-level teacher": (Recipe("loss", "k2", teacher=0.2), 0.3),
}
QUICK = ("temperature, k3 per token", "teacher beside k3", "several rewards, each normalised")
QUICK += ("cut", "centred", "charged to itself", "no reference, per token", "divided once more")
combinations = pytest.mark.parametrize("name", COMBINATIONS)


def inputs(problem, recipe):
    policy, space, ref, reward, both, told = problem
    with np.errstate(divide="ignore"):
        log_ref, log_teacher = np.log(ref), np.log(told)
    given = {"log_teacher": log_teacher} if recipe.teacher else {}
    return policy, space, log_ref, both if recipe.reward_weights else reward, given


def target_of(problem, recipe, beta, **more):
    _, space, log_ref, reward, given = inputs(problem, recipe)
    return implied_target(recipe, reward, log_ref, space=space, beta=beta, **given, **more)


def pulls_at(problem, recipe, beta, *policies):
    """The largest component of the gradient of exact training at each policy."""
    policy, space, log_ref, reward, given = inputs(problem, recipe)
    trained = policy if recipe.temperature == 1 else Tempered(policy, recipe.temperature)
    tokens, lengths = space.sequences(), space.lengths()
    possible = space.possible()

    def table(policy, params):
        return jnp.where(possible[:, None], policy.log_probs(params, tokens), -INF)

    def of(log_probs):
        return policy.from_conditionals(space.conditionals(jnp.asarray(log_probs, float)))

    several = recipe.combine != "sum"
    whole = reward if reward.ndim == 1 else np.asarray(recipe.reward_weights) @ reward

    among = {}
    if recipe.teacher_top_k is not None:
        among["asked"] = asked(space, given["log_teacher"], recipe.teacher_top_k)

    def ascent(params):
        none = jnp.zeros((space.num_sequences, space.length))
        start = none if recipe.reference == "none" else table(trained, of(log_ref))
        further = dict(among)
        if given:
            further["token_log_teacher"] = table(policy, of(given["log_teacher"]))
        now = table(trained, params)
        weights = jax.lax.stop_gradient(jnp.exp(now.sum(-1)))
        return estimators.surrogate(
            recipe,
            now,
            start,
            jnp.asarray(whole, float),
            beta,
            weights,
            lengths=lengths,
            rewards=jnp.asarray(reward, float).T if several else None,
            **further,
        ).sum()

    pull = jax.jit(lambda log_probs: jax.grad(ascent)(of(log_probs)))
    found = [jax.tree.leaves(pull(np.asarray(x, float))) for x in policies]
    return [max(float(np.abs(np.asarray(x)).max()) for x in leaves) for leaves in found]


def asked(space, log_teacher, number):
    """Which tokens are among the likeliest ones of the teacher after what precedes them."""
    sequences = np.asarray(space.sequences())
    probs = np.exp(np.where(np.isfinite(log_teacher), log_teacher, -INF))
    found = np.zeros(sequences.shape)
    for row, tokens in enumerate(sequences):
        for t in range(space.length):
            same = (sequences[:, :t] == tokens[:t]).all(1)
            masses = [probs[same & (sequences[:, t] == v)].sum() for v in range(space.vocab_size)]
            found[row, t] = tokens[t] in np.argsort(-np.array(masses), kind="stable")[:number]
    return jnp.asarray(found, float)


@pytest.mark.quick_only(*QUICK, others="broad")
@combinations
def test_no_gradient_is_left(name):
    problem, (recipe, beta) = two_tokens(), COMBINATIONS[name]
    target = target_of(problem, recipe, beta)
    assert not int(target.status) & kt.Status.NO_TARGET
    log_ref = inputs(problem, recipe)[2]
    at_start, there = pulls_at(problem, recipe, beta, log_ref, target.log_probs)
    assert at_start > 1e-3
    assert there < 1e-4 * at_start


def of_one_length():
    policy, space = TabularPolicy(3, 2), kt.SequenceSpace(3, 2)
    first, then = (
        np.array([0.5, 0.3, 0.2]),
        np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]]),
    )
    reward = np.array([0.0, 1.0, 0.5, 1.0, 0.0, 0.5, 0.0, 1.0, 0.5])
    ref = (first[:, None] * then).ravel()
    return policy, space, ref, reward, np.stack([reward, reward[::-1]]), ref[::-1]


@pytest.mark.parametrize("estimator", ["weighted-k1", "weighted-k3"])
def test_estimates_of_tokens_weighed_by_the_ratio_of_the_sequence(estimator):
    recipe = Recipe("loss", estimator, "token", ratio_level="sequence")
    problem = of_one_length()
    target = target_of(problem, recipe, 0.4)
    assert pulls_at(problem, recipe, 0.4, target.log_probs)[0] < 1e-5
    # It is not what weights of their own would give.
    alone = target_of(problem, dataclasses.replace(recipe, ratio_level="token"), 0.4)
    assert variation(target.probs, alone.probs) > 1e-2
    if estimator == "weighted-k1":
        whole = target_of(problem, Recipe(), 0.2)
        np.testing.assert_allclose(target.probs, whole.probs, rtol=1e-4)


# One of each kind: at the targets of all of them no gradient is left.
ALIKE = ("temperature", "no reference", "teacher", "teacher, both forward", "teacher alone")
ALIKE += ("top-k beside k3", "several rewards, added", "whitened once more", "charged to itself")
ALIKE += ("centred", "ratio of the sequence", "sequence-level teacher")
TRAINED = (*(x for x in COMBINATIONS if x not in ALIKE), "weighed together")


def train(problem, recipe, beta, num_steps, learning_rate=0.02):
    policy, space, log_ref, reward, given = inputs(problem, recipe)
    params = policy.from_conditionals(space.conditionals(jnp.asarray(log_ref, DTYPE)))
    return fine_tune(
        policy,
        params,
        jnp.asarray(reward, DTYPE),
        recipe,
        beta=beta,
        learning_rate=learning_rate,
        num_steps=num_steps,
        history_every=None,
        gradient_tol=1e-7,
        **{name: jnp.asarray(x, DTYPE) for name, x in given.items()},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_training_ends_there(name):
    recipe, beta = COMBINATIONS.get(
        name, (Recipe("loss", "weighted-k3", "token", ratio_level="sequence"), 0.4)
    )
    problem = two_tokens() if name in COMBINATIONS else of_one_length()
    run, target = train(problem, recipe, beta, 3000), target_of(problem, recipe, beta)
    assert variation(jnp.exp(run.log_probs), target.probs) < 1e-4


FINITE = {
    "mean": {"baseline": "mean", "normalize": "group-mean"},
    "mean of the others": {"baseline": "leave-one-out", "normalize": "group-mean"},
    "cut": {"baseline": "mean", "normalize": "group-std", "advantage_clip": 0.8},
    "whitened": {"baseline": "mean", "normalize": "group-std", "renormalize": "batch-std"},
    "sizes": {"baseline": "none", "renormalize": "mean-abs", "advantage_clip": 1.1},
    "batch, cut": {"baseline": "mean", "normalize": "batch-std", "advantage_clip": 0.5},
    "dropped, whitened": {"baseline": "mean", "zero_std": "drop", "renormalize": "batch-std"},
    "each": {
        "baseline": "mean",
        "normalize": "group-std",
        "reward_weights": (1.0, -0.5),
        "combine": "normalize-then-sum",
        "renormalize": "batch-std",
    },
}


def advantage_in(recipe, group, weights):
    """Of the first in a group of rewards ``[G, J]`` before the batch is looked at, by hand."""
    total = 0.0
    for weight, column in zip(weights, group.T, strict=True):
        own, others = column[0], column[1:]
        centre = {"none": 0.0, "mean": column.mean(), "leave-one-out": others.mean()}
        value = own - centre[recipe.baseline]
        if recipe.normalize == "group-std":
            value = 0.0 if column.std() == 0 else value / (column.std() + recipe.epsilon)
        if recipe.normalize == "group-mean":
            value = 0.0 if column.mean() == 0 else value / (column.mean() + recipe.epsilon)
        total += weight * value
    return total, not (recipe.zero_std == "drop" and (group == group[0]).all())


def advantages_by_hand(recipe, levels, masses):
    """Expected advantages of every level, over all groups and after all that is done to a batch."""
    size, number = recipe.group_size, len(levels)
    weights = recipe.reward_weights or (1.0,)
    rows = []
    for group in itertools.product(range(number), repeat=size):
        value, kept = advantage_in(recipe, levels[list(group)], weights)
        rows.append((group[0], np.prod(masses[list(group)]), value, kept))
    own, chance, value, kept = map(np.array, zip(*rows, strict=True))
    if recipe.normalize == "batch-std":
        mean = masses @ levels[:, 0]
        value = value / (np.sqrt(masses @ (levels[:, 0] - mean) ** 2) + recipe.epsilon)
    if recipe.renormalize != "none":
        weight = chance * kept / (chance * kept).sum()
        sizes = {
            "mean-abs": weight @ np.abs(value),
            "batch-std": np.sqrt(weight @ (value - weight @ value) ** 2),
        }
        value = value / (sizes[recipe.renormalize] + recipe.epsilon)
    if recipe.advantage_clip is not None:
        value = np.clip(value, -recipe.advantage_clip, recipe.advantage_clip)
    value = value * kept
    each = [chance[own == k] @ value[own == k] / masses[k] for k in range(number)]
    counted = [chance[own == k] @ kept[own == k] / masses[k] for k in range(number)]
    return np.array(each), np.array(counted)


@pytest.mark.parametrize("name", FINITE)
def test_expected_advantages_by_enumeration(name):
    recipe = Recipe("loss", "k2", **FINITE[name], epsilon=0.05, group_size=4)
    levels = np.array([[0.0, 1.0], [0.5, 0.0], [2.0, 1.0]])
    masses = np.array([0.2, 0.5, 0.3])
    levels = levels if recipe.reward_weights else levels[:, :1]
    given = levels if recipe.reward_weights else levels[:, 0]
    advantage, kept = groups.make_groups(recipe, given).expected(masses)
    want, counted = advantages_by_hand(recipe, levels, masses)
    np.testing.assert_allclose(advantage, want, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(kept, counted, rtol=1e-12)
    together, _ = groups.make_groups(recipe, given).expected(np.stack([masses, masses[::-1]]))
    np.testing.assert_allclose(together[0], advantage, rtol=1e-12)


@pytest.mark.parametrize("name", [x for x in FINITE if x != "dropped, whitened"])
def test_large_groups_are_the_limit(name):
    # The mean of G shortens by (G − 1)/G, and deviations scatter by about 1/√G.
    fields = {**FINITE[name], "epsilon": 0.05}
    recipe = Recipe("loss", "k2", **fields)
    levels = np.array([[0.0, 1.0], [0.5, 0.0], [2.0, 1.0]])
    given = levels if recipe.reward_weights else levels[:, 0]
    masses = np.array([0.2, 0.5, 0.3])
    limit, _ = groups.make_groups(recipe, given).expected(masses)
    near, _ = groups.make_groups(dataclasses.replace(recipe, group_size=200), given).expected(
        masses
    )
    np.testing.assert_allclose(near, limit, atol=0.03)
    assert np.abs(near - limit).max() > 0


@pytest.mark.broad
@pytest.mark.parametrize("name", FINITE)
def test_no_gradient_is_left_in_finite_groups(name):
    recipe = Recipe("loss", "k3", **FINITE[name], epsilon=0.05, group_size=3)
    both = np.stack([TWO[0], 1 - TWO[1]])
    reward = both if recipe.reward_weights else TWO[0]
    beta = 0.8
    target = implied_target(recipe, reward, np.log(P5), beta=beta)
    policy = TabularPolicy(5, 1)
    run = fine_tune(
        policy,
        policy.from_conditionals([jnp.log(jnp.asarray(P5, DTYPE))[None]]),
        jnp.asarray(reward, DTYPE),
        recipe,
        beta=beta,
        learning_rate=0.02,
        num_steps=3000,
        history_every=None,
        gradient_tol=1e-7,
    )
    assert variation(jnp.exp(run.log_probs), target.probs) < 1e-4


def test_copies_divide_beta_by_their_number():
    """Claim: resetting the reference to the policy lets a long run go on improving (arXiv
    2505.24864).

    Holds with a correction: n resets at convergence are a reverse KL of β/(n + 1), so that
    without end nothing regularises.
    """
    recipe = Recipe(reference="copied", reference_every=10)
    for syncs in (0, 1, 4):
        moved = implied_target(recipe, R5, np.log(P5), beta=0.6, num_syncs=syncs)
        plain = implied_target(Recipe(), R5, np.log(P5), beta=0.6 / (syncs + 1))
        np.testing.assert_allclose(moved.probs, plain.probs, rtol=1e-5)
        np.testing.assert_allclose(moved.effective_beta, 0.6 / (syncs + 1), rtol=1e-5)


def forward_target(ref, reward, beta):
    level = brentq(
        lambda x: (beta * ref / (x - reward)).sum() - 1, reward.max() + 1e-13, reward.max() + beta
    )
    return beta * ref / (level - reward)


def test_a_forward_kl_is_solved_renewal_by_renewal():
    recipe = Recipe("loss", "k3", reference="averaged", reference_every=10, reference_share=0.3)
    ref = P5
    for _ in range(2):
        policy = forward_target(ref, R5, 0.5)
        ref = ref**0.7 * policy**0.3
        ref = ref / ref.sum()
    target = implied_target(recipe, R5, np.log(P5), beta=0.5, num_syncs=2)
    np.testing.assert_allclose(target.probs, forward_target(ref, R5, 0.5), rtol=2e-5)


def test_renewals_without_end_leave_the_best():
    recipe = Recipe("loss", "k3", reference="copied", reference_every=10)
    reward = np.array([1.0, 0.0, 1.0, 0.2, 0.0])
    target = implied_target(recipe, reward, np.log(P5), beta=0.5)
    np.testing.assert_allclose(target.probs, [0.4 / 0.55, 0, 0.15 / 0.55, 0, 0], rtol=1e-6)
    assert int(target.status) & kt.Status.NO_TARGET
    many = implied_target(recipe, reward, np.log(P5), beta=0.5, num_syncs=60)
    np.testing.assert_allclose(many.probs, target.probs, atol=1e-5)
    # An entropy bonus stays when the reference has gone along.
    kept = dataclasses.replace(recipe, entropy_bonus=0.3)
    held = implied_target(kept, reward, np.log(P5), beta=0.5)
    np.testing.assert_allclose(held.probs, jax.nn.softmax(jnp.asarray(reward / 0.3)), rtol=1e-5)


@pytest.mark.broad
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("loss", "k3", "token", reference="copied", reference_every=1500),
        Recipe(reference="averaged", reference_every=1500, reference_share=0.6),
        Recipe("loss", "k2", reference="copied", reference_every=1500, temperature=0.8),
    ],
)
def test_training_with_a_reference_that_moves(recipe):
    problem = two_tokens()
    run = train(problem, recipe, 0.8, 4500)
    target = target_of(problem, recipe, 0.8, num_syncs=2)
    assert variation(jnp.exp(run.log_probs), target.probs) < 1e-4


def test_a_lagged_reference_lets_go():
    # Held to what it was a moment ago, a policy goes where the reward alone would lead it.
    policy, _, log_ref, reward, _ = inputs(one_token(), Recipe())
    settings = {"beta": 0.5, "learning_rate": 0.05, "num_steps": 400, "history_every": None}
    start = policy.from_conditionals([jnp.asarray(log_ref, DTYPE)[None]])
    reward = jnp.asarray(reward, DTYPE)
    fixed = fine_tune(policy, start, reward, Recipe(), **settings)
    lagged = Recipe(reference="lagged", reference_every=5)
    run = fine_tune(policy, start, reward, lagged, **settings)
    assert jnp.exp(run.log_probs)[2] > 0.85 > jnp.exp(fixed.log_probs)[2]


def test_training_on_samples_with_what_moves():
    policy, _, log_ref, reward, given = inputs(one_token(), Recipe(teacher=0.2))
    start = policy.from_conditionals([jnp.asarray(log_ref, DTYPE)[None]])
    settings = {"beta": 0.5, "learning_rate": 0.02, "num_steps": 400, "history_every": None}
    more = [
        (Recipe(reference="copied", reference_every=100), {}),
        (Recipe("loss", "k2", "token", teacher=0.2, temperature=0.8), given),
        (Recipe(kl_target=0.2), {}),
    ]
    for recipe, further in more:
        run = fine_tune(
            policy,
            start,
            jnp.asarray(reward, DTYPE),
            recipe,
            batch_size=64,
            key=jax.random.key(0),
            **settings,
            **{name: jnp.asarray(x, DTYPE) for name, x in further.items()},
        )
        moves = recipe.reference == "copied"
        target = implied_target(
            recipe,
            reward,
            log_ref,
            beta=None if recipe.kl_target else 0.5,
            num_syncs=3 if moves else None,
            **further,
        )
        assert variation(jnp.exp(run.log_probs), target.probs) < 0.15
        assert variation(jnp.exp(run.log_probs), P5) > 0.2


@pytest.mark.parametrize("recipe", [Recipe(kl_target=0.3), Recipe("loss", "k3", kl_target=0.3)])
def test_a_controller_keeps_its_kl(recipe):
    target = implied_target(recipe, R5, np.log(P5))
    probs = np.asarray(target.probs, float)
    np.testing.assert_allclose((probs * np.log(probs / P5)).sum(), 0.3, rtol=1e-5)
    plain = dataclasses.replace(recipe, kl_target=None)
    again = implied_target(plain, R5, np.log(P5), beta=np.asarray(target.beta))
    np.testing.assert_allclose(again.probs, probs, rtol=1e-5)
    assert effective_beta(recipe, R5, np.log(P5)) == target.effective_beta


def test_a_kl_that_no_reward_buys_leaves_no_coefficient():
    target = implied_target(Recipe(kl_target=2.5), R5, np.log(P5))
    assert int(target.status) & kt.Status.NO_TARGET
    assert float(target.beta) == 0
    np.testing.assert_allclose(target.probs, [0, 0, 1, 0, 0])


def test_a_controller_looks_at_all_prompts_of_a_batch():
    rewards = np.stack([R5, R5[::-1]])
    target = implied_target(Recipe(kl_target=0.3), rewards, np.log(P5))
    probs = np.asarray(target.probs, float)
    each = (probs * np.log(probs / P5)).sum(-1)
    np.testing.assert_allclose(each.mean(), 0.3, rtol=1e-5)
    assert abs(each[0] - each[1]) > 0.01
    assert target.beta[0] == target.beta[1]


def test_a_controller_per_token():
    problem = two_tokens()
    recipe = Recipe(kl_target=0.1, kl_target_per="token")
    target = target_of(problem, recipe, None)
    probs, ref = np.asarray(target.probs, float), problem[2]
    some, lengths = ref > 0, np.asarray(problem[1].lengths())
    charged = probs[some] * np.log(probs[some] / ref[some]) / lengths[some]
    np.testing.assert_allclose(charged.sum(), 0.1, rtol=1e-5)


def test_a_controller_of_the_entropy():
    recipe = Recipe("loss", "k3", entropy_target=1.3)
    target = implied_target(recipe, R5, np.log(P5), beta=0.1)
    probs = np.asarray(target.probs, float)
    np.testing.assert_allclose(-(probs * np.log(probs)).sum(), 1.3, rtol=1e-5)
    # Where there is more already, there is no bonus.
    idle = implied_target(recipe, R5, np.log(P5), beta=2.0)
    plain = implied_target(Recipe("loss", "k3"), R5, np.log(P5), beta=2.0)
    np.testing.assert_allclose(idle.probs, plain.probs, rtol=1e-6)


@pytest.mark.broad
@pytest.mark.parametrize(
    "recipe",
    [Recipe("loss", "k3", kl_target=0.3), Recipe("loss", "k2", "token", entropy_target=0.9)],
)
def test_training_with_a_controller_settles_there(recipe):
    problem = one_token() if recipe.kl_target else two_tokens()
    beta = None if recipe.kl_target else 0.1
    run, target = train(problem, recipe, beta, 8000, 0.005), target_of(problem, recipe, beta)
    assert variation(jnp.exp(run.log_probs), target.probs) < 1e-3


UNKNOWN = {
    "reference='lagged'": Recipe(reference="lagged", reference_every=5),
    "k3 without a reference": Recipe("loss", "k3", reference="none"),
    "a teacher beside a KL that is normalised": Recipe(
        baseline="mean", normalize="group-std", teacher=0.1
    ),
    "a teacher's top-k where nothing holds": Recipe(
        "none", level="token", teacher=1.0, teacher_top_k=1
    ),
    "a forward KL to a teacher beside swapped-k3": Recipe(
        "loss", "swapped-k3", teacher=0.1, teacher_direction="forward"
    ),
    "advantages that are cut without a baseline": Recipe(advantage_clip=1.0),
    "an entropy bonus beside a KL that is normalised": Recipe(
        baseline="mean", normalize="group-mean", entropy_bonus=0.1
    ),
    "the absolute log-ratio with a temperature": Recipe("loss", "abs", temperature=0.5),
    "a controller beside a reference that moves": Recipe(
        reference="copied", reference_every=2, kl_target=0.1
    ),
    "a controller of the KL without a reference": Recipe(reference="none", kl_target=0.1),
    "two controllers at once": Recipe(kl_target=0.1, entropy_target=0.1),
    "reference='none' with a centred KL": Recipe(
        "reward", "k1", "token", reference="none", kl_centre="batch-mean"
    ),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_no_fixed_point_is_known_of_is_named(what):
    recipe = UNKNOWN[what]
    given = {"log_teacher": np.log(T5)} if recipe.teacher else {}
    beta = None if recipe.kl_target else 0.3
    with pytest.raises(ValueError, match=f"no fixed point is known for .*{what}"):
        implied_target(recipe, np.abs(R5), np.log(P5), beta=beta, **given)


ERRORS = [
    ({"reference": "copied"}, "reference='copied' needs reference_every"),
    ({"reference_every": 5}, "reference_every=5 is of a reference that moves"),
    ({"reference": "copied", "reference_every": 0}, "reference_every must be an integer of 1"),
    ({"reference_share": 0.5}, "reference_share=0.5 is of reference='averaged'"),
    (
        {"reference": "averaged", "reference_every": 5, "reference_share": 1.5},
        "reference_share=1.5 is of reference='averaged', and at most 1",
    ),
    ({"teacher_top_k": 3, "level": "token"}, "teacher_top_k is of the next tokens of a teacher"),
    ({"teacher_top_k": 3, "teacher": 0.1}, "and level='token'"),
    ({"teacher": -0.1}, "teacher must be a number 0 or more"),
    ({"temperature": 0}, "temperature must be a number above 0"),
    ({"charge": "own"}, "charge='own' is of a KL that is charged token by token"),
    ({"kl_centre": "batch-mean"}, "kl_centre='batch-mean' is of k1 that is charged token by"),
    ({"combine": "normalize-then-sum"}, "combine='normalize-then-sum' normalises each of several"),
    ({"reward_weights": ()}, "reward_weights must be finite numbers"),
    ({"reward_weights": (1.0, INF)}, "reward_weights must be finite numbers"),
    ({"reward_weights": 0.5}, "reward_weights must be finite numbers"),
    (
        {"combine": "normalize-then-sum", "reward_weights": (1, 1), "normalize": "group-std"},
        "a KL that is charged before belongs to none",
    ),
    ({"advantage_clip": -1}, "advantage_clip must be a number above 0"),
    ({"kl_target": 0.1, "place": "none"}, "kl_target is of a KL that has a coefficient"),
    ({"kl_target": 0}, "kl_target must be a number above 0"),
    ({"normalize": "mean"}, "normalize must be one of 'none', 'group-std'"),
    ({"ratio_level": "sequence", "level": "token"}, "gives each token an advantage of its own"),
]


@pytest.mark.parametrize(("fields", "message"), ERRORS)
def test_a_recipe_that_makes_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def at(recipe, **more):
    return lambda: implied_target(recipe, R5, np.log(P5), **{"beta": 0.3, **more})


def tune(recipe, **more):
    policy = TabularPolicy(5, 1)
    start = policy.from_conditionals([jnp.log(jnp.asarray(P5, DTYPE))[None]])
    settings = {"beta": 0.3, "learning_rate": 0.1, "num_steps": 1, **more}
    return lambda: fine_tune(policy, start, jnp.asarray(R5, DTYPE), recipe, **settings)


MOVES = Recipe(reference="copied", reference_every=5)
SEVERAL = Recipe(reward_weights=(1.0, 2.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (at(Recipe(teacher=0.1)), "log_teacher is needed"),
        (at(Recipe(), log_teacher=np.log(T5)), "log_teacher is given, but the recipe"),
        (at(Recipe(teacher=0.1), log_teacher=np.full(5, np.nan)), "log_teacher must be log-prob"),
        (at(Recipe(), num_syncs=2), "num_syncs is of a reference that is renewed"),
        (
            at(Recipe(teacher=0.1), log_teacher=np.array([INF, *np.log(np.full(4, 0.25))])),
            "log_teacher must be log-probabilities, without NaN or",
        ),
        (at(Recipe(teacher=0.1), log_teacher=T5), "log_teacher has a mass of 6.1"),
        (at(Recipe(teacher=0.1), log_teacher=np.log([0.5, 0.5])), "log_teacher must be of a shape"),
        (
            at(Recipe(teacher=0.1), log_teacher=np.array([-INF, *np.log(np.full(4, 0.25))])),
            "log_teacher must be finite wherever the reference has mass",
        ),
        (
            at(Recipe(entropy_target=float(np.log(5)))),
            "is more than any bonus reaches: the most is 1.609",
        ),
        (at(MOVES, num_syncs=-1), "num_syncs must be an integer of 0 or more"),
        (at(MOVES, num_syncs=1.5), "num_syncs must be an integer of 0 or more"),
        (at(SEVERAL), r"reward must be of shape \[\.\.\., 2, A\]"),
        (at(Recipe(kl_target=0.1)), "beta is what a controller moves"),
        (at(Recipe(entropy_target=3.0)), "entropy_target=3 nats per token is more than any"),
        (
            lambda: implied_target(
                Recipe("loss", "k2", normalize="group-mean"), -R5, np.log(P5), beta=1
            ),
            "reward must be 0 or more for normalize='group-mean'",
        ),
        (
            lambda: saturation_beta(Recipe("loss", "k2", normalize="group-mean"), R5, np.log(P5)),
            "saturation needs advantages that are divided by a standard deviation",
        ),
        (
            lambda: equivalent_beta(SEVERAL, TWO, np.log(P5), kt.ReverseKL(), beta=1.0),
            "equivalent_beta takes one reward",
        ),
        (tune(Recipe(teacher=0.1)), "log_teacher is needed"),
        (tune(Recipe(), log_teacher=jnp.log(T5)), "log_teacher is given, but the recipe"),
        (tune(SEVERAL), r"reward must be of shape \[2, 5\]"),
        (tune(MOVES, log_ref=jnp.log(P5)), "log_ref cannot be given: with reference='copied'"),
        (
            tune(Recipe(teacher=0.1), log_teacher=jnp.array([-INF, *np.log(np.full(4, 0.25))])),
            "log_teacher must be finite wherever the policy can go",
        ),
        (lambda: Tempered(TabularPolicy(2, 1), 0.0), "temperature must be above 0"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rewards_of_what_the_reference_cannot_produce_are_not_weighed():
    rewards = np.array([[1.0, 0.0, -INF], [0.0, 1.0, -INF]])
    with np.errstate(divide="ignore"):
        log_ref = np.log([0.5, 0.5, 0.0])
    for weights in ((-1.0, 1.0), (0.0, 1.0)):
        target = implied_target(Recipe(reward_weights=weights), rewards, log_ref, beta=0.5)
        odds = np.exp((weights[0] - weights[1]) / 0.5)
        np.testing.assert_allclose(target.probs, [odds / (1 + odds), 1 / (1 + odds), 0], rtol=1e-5)


def test_a_batch_normalised_once_more_is_refused_by_name():
    recipe = Recipe("loss", "k3", baseline="mean", renormalize="batch-std")
    rewards = np.stack([R5, R5[::-1]])
    with pytest.raises(ValueError, match="normalised more than once"):
        implied_target(recipe, rewards, np.log(P5), beta=0.3)
    each = implied_target(recipe, rewards, np.log(P5), beta=np.array([3.0, 3.0]))
    assert each.probs.shape == (2, 5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"reference": "averaged", "reference_every": 512, "reference_share": 0.6},
            "averaged with",
        ),
        ({"reference": "copied", "reference_every": 512}, r"copied .* every 512 steps"),
        ({"reference": "lagged", "reference_every": 8}, "the policy of 8 steps ago"),
        ({"reference": "none"}, "an entropy bonus"),
        ({"temperature": 0.7}, "used at 1"),
        ({"teacher": 0.2}, "A KL to a teacher counts 0.2"),
        ({"kl_target": 6.0}, "until the KL is 6 nats an answer"),
        ({"entropy_target": 0.5}, "does not fall below 0.5 nats"),
        ({"advantage_clip": 2.0}, "beyond ±2 count no more"),
        ({**CHARGED, "kl_centre": "batch-mean"}, "every further token is paid"),
        ({"place": "loss", "estimator": "k2", "normalize": "group-mean"}, "no critical β"),
    ],
)
def test_a_reading_says_so(fields, said):
    reading = recipes.read(Recipe(**{"beta": 0.1, **fields}))
    assert any(re.search(said, caveat) for caveat in reading.caveats), reading.caveats


def test_formulas_of_the_effective_beta():
    formula = {
        Recipe("loss", "k2", normalize="group-mean", epsilon=1e-6): "β(r̄ + 1e-6)",
        Recipe("loss", "k2", normalize="group-std", renormalize="mean-abs"): "βσ S",
        Recipe(temperature=0.5): "β/0.5",
    }
    for recipe, text in formula.items():
        assert recipe.effective_formula == text
    assert Recipe(temperature=0.5, beta=1.0).effective_factor() == 2.0
    divided = Recipe("loss", "k2", baseline="mean", normalize="group-mean", beta=0.1)
    assert "about βr̄; 0.05 for rewards 0 and 1" in recipes.read(divided).effective_text


def test_another_temperature_is_a_power_of_every_next_token():
    policy, space = TabularPolicy(3, 2, eos=1), kt.SequenceSpace(3, 2, eos=1)
    params = policy.init(key=jax.random.key(3))
    cold = Tempered(policy, 0.5)
    for own, other in zip(
        policy.conditionals(params, space), cold.conditionals(params, space), strict=True
    ):
        squared = np.exp(2 * np.asarray(own, float))
        np.testing.assert_allclose(
            np.exp(other), squared / squared.sum(-1, keepdims=True), rtol=1e-5
        )
    tokens = space.sequences()
    possible = np.asarray(space.possible())
    joint = np.asarray(space.joint(cold.conditionals(params, space)))[possible]
    np.testing.assert_allclose(
        cold.log_probs(params, tokens).sum(-1)[possible], joint, rtol=1e-5, atol=1e-6
    )
    drawn = space.index(cold.sample(params, key=jax.random.key(0), num_samples=20_000))
    seen = np.bincount(drawn, minlength=9)[possible] / 20_000
    probs = np.exp(joint)
    assert (np.abs(seen - probs) < 5 * np.sqrt(probs * (1 - probs) / 20_000) + 1e-9).all()
    with pytest.raises(TypeError, match="policy must be a TabularPolicy"):
        Tempered("policy", 1.0)
