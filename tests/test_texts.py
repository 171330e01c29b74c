"""Tasks over texts too many to list, training on them by samples, and its verification."""

import collections
import datetime
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import eps

import kltarget as kt
from kltarget import tasks
from kltarget.policies import GRUPolicy, MarkovPolicy, TabularPolicy, TransformerPolicy
from kltarget.recipes import Recipe
from kltarget.spaces import MarkovReference
from kltarget.targets.automata import over_modes
from kltarget.training import fine_tune_on_texts, sft_on_texts
from kltarget.verification import verify_texts


def keyword_of(text):
    words = tasks.load_texts("keywords-64").mode_names.values()
    # A word that ends the text or begins it has a space on one side alone.
    found = {word for word in re.findall(r"(?<= )[a-z]+(?= )", text) if word in words}
    return found.pop() if len(found) == 1 else None


def month_of(text):
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return None
    year, month, day = map(int, text.split("-"))
    try:
        # The calendar of Python begins with year 1; the leap years of year 0 are those of 400.
        return datetime.date(year or 400, month, day).strftime("%B")
    except ValueError:
        return None


def depth_of(text):
    depth = np.cumsum([1 if bracket == "(" else -1 for bracket in text])
    return f"depth {depth.max()}" if depth.min() >= 0 and depth[-1] == 0 else None


def last_digit_of(text):
    if not re.fullmatch(r"([+-]\d){32}", text):
        return None
    return f"…{text[-1]}" if sum(int(term) for term in re.findall(r"[+-]\d", text)) == 24 else None


def missing_of(text):
    left = set("etaoinsrh") - set(text)
    return f"no {left.pop()}" if len(set(text)) == len(text) else None


MODES = {
    "keywords-64": keyword_of,
    "dates": month_of,
    "balanced-40": depth_of,
    "arithmetic-64": last_digit_of,
    "no-repeats": missing_of,
}


@pytest.mark.parametrize(
    "name",
    [
        name if name == "no-repeats" else pytest.param(name, marks=pytest.mark.broad)
        for name in MODES
    ],
)
def test_modes_are_what_they_say(name):
    """Automata against plain Python, on texts of the reference and of its target."""
    task = tasks.load_texts(name)
    target = kt.solve_on_automaton(
        task.reference, task.automaton, task.reward, 0.1, length=task.length
    )
    key = jax.random.key(0)
    own = task.reference.sample(key=key, num_samples=100, length=task.length)
    tokens = jnp.concatenate([own, target.sample(key=key, num_samples=200)])
    labels = np.asarray(task.mode_of(tokens))
    expected = [MODES[name](text) for text in task.reference.spell(tokens)]
    assert [task.mode_names.get(label) for label in labels.tolist()] == expected
    np.testing.assert_array_equal(task.reward_of(tokens), labels >= 0)
    assert np.mean(labels[100:] >= 0) > 0.5


def test_leap_years_and_the_calendar():
    task = tasks.load_texts("dates")
    texts = "2000-02-29", "1900-02-29", "2024-02-29", "2023-02-29", "2023-04-31", "2023-00-10"
    labels = task.mode_of(task.reference.tokens(texts)).tolist()
    assert labels == [1, -1, 1, -1, -1, -1]


def test_the_letters_are_those_that_were_counted():
    """Frequencies of pairs in long texts of a chain are the shipped counts."""
    reference = tasks.load_texts("keywords-64").reference
    texts = reference.spell(reference.sample(key=jax.random.key(3), num_samples=300, length=200))
    pairs = collections.Counter(text[i : i + 2] for text in texts for i in range(199))
    total = pairs.total()
    # " t" and "e " are the commonest beginning and end of English words.
    assert 0.02 < pairs[" t"] / total < 0.04
    assert 0.03 < pairs["e "] / total < 0.05


@pytest.mark.broad
@pytest.mark.parametrize("name", ["balanced-40", "no-repeats"])
@pytest.mark.parametrize("divergence", [kt.ReverseKL(), kt.ForwardKL()])
def test_a_list_of_modes_is_the_texts_merged(name, divergence):
    task = tasks.load_texts(name)
    merged = kt.solve(over_modes(task).objective(0.3, divergence=divergence))
    target = kt.solve_on_automaton(
        task.reference, task.automaton, task.reward, 0.3, divergence, length=task.length
    )
    rtol = 300 * eps(target.value.dtype)
    np.testing.assert_allclose(merged.value, target.value, rtol=rtol)
    np.testing.assert_allclose(merged.expected_reward, target.expected_reward, rtol=rtol)
    probs = np.exp(target.states.log_probs)
    masses = [probs[task.modes == mode].sum() for mode in task.mode_names]
    np.testing.assert_allclose(merged.probs[:-1], masses, rtol=10 * rtol, atol=1e-12)


def test_a_task_over_texts_is_no_list():
    with pytest.raises(ValueError, match="load_texts"):
        tasks.load("dates")
    with pytest.raises(ValueError, match="choose one of keywords-64"):
        tasks.load_texts("words")


NETWORKS = [
    GRUPolicy(3, 4, width=5, eos=1),
    TransformerPolicy(3, 4, width=4, num_layers=1, num_heads=2),
    TabularPolicy(2, 3),
    MarkovPolicy(3, 4, 2, eos=1),
    MarkovPolicy(2, 3, 4),
]


@pytest.mark.parametrize("policy", NETWORKS)
def test_next_tokens_are_those_of_the_tree(policy):
    params = policy.init(key=jax.random.key(0))
    space = kt.SequenceSpace(policy.vocab_size, policy.length, eos=policy.eos)
    texts = space.sequences()
    found = policy.next_log_probs(params, texts)
    index = jnp.zeros(len(texts), jnp.int32)
    for t, level in enumerate(policy.conditionals(params, space)):
        np.testing.assert_allclose(found[:, t], level[index], rtol=1e-5, atol=1e-6)
        index = index * policy.vocab_size + texts[:, t]


RECIPES = [
    Recipe("reward", "k1", "sequence", "leave-one-out"),
    Recipe("loss", "k3", "token", "mean", normalize="group-std", group_size=8),
    Recipe("loss", "k2", "sequence", "none", updates_per_batch=2),
    Recipe("reward", "k1", "token", "leave-one-out", eos="cut", length="mean"),
    Recipe("loss", "k1", "token", "none", reference="none", entropy_bonus=0.1),
]


@pytest.mark.broad
@pytest.mark.parametrize("recipe", RECIPES)
def test_training_is_that_on_a_list(recipe):
    """The same samples, and functions in place of tables: the same parameters."""
    policy = GRUPolicy(3, 4, width=4, eos=2)
    params = policy.init(key=jax.random.key(0))
    space = kt.SequenceSpace(3, 4, eos=2)
    reward = jnp.asarray(np.random.default_rng(0).normal(size=81), jnp.float32)
    options = {
        "beta": jnp.array([0.1, 0.5]),
        "batch_size": 16,
        "key": jax.random.key(1),
        "learning_rate": 0.03,
        "num_steps": 12,
        "history_every": 6,
    }
    listed = kt.fine_tune(policy, params, reward, recipe, **options)
    told = fine_tune_on_texts(
        policy, params, lambda tokens: reward[space.index(tokens)], recipe, **options
    )
    for one, other in zip(
        jax.tree.leaves(listed.params), jax.tree.leaves(told.params), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5)
    # What is measured are means over samples, with their errors.
    history = told.history
    for name in ("expected_reward", "reverse_kl", "entropy"):
        exact = getattr(listed.history, name)
        if name == "reverse_kl" and recipe.reference == "none":
            continue
        apart = getattr(history, name) - exact
        assert np.all(np.abs(apart) <= 5 * getattr(history, f"{name}_error") + 1e-5), name


def test_what_training_on_texts_refuses():
    policy = GRUPolicy(2, 3, width=2)
    params = policy.init(key=jax.random.key(0))
    options = {
        "batch_size": 4,
        "key": jax.random.key(0),
        "learning_rate": 0.1,
        "num_steps": 1,
        "beta": 1.0,
    }

    def reward(tokens):
        return tokens.mean(-1)

    with pytest.raises(TypeError, match="reward must be a function"):
        fine_tune_on_texts(policy, params, jnp.zeros(8), Recipe(), **options)
    with pytest.raises(ValueError, match=r"reward must turn tokens \[N, 3\]"):
        fine_tune_on_texts(policy, params, lambda tokens: tokens.astype(float), Recipe(), **options)
    with pytest.raises(ValueError, match="log_ref must turn tokens"):
        fine_tune_on_texts(policy, params, reward, Recipe(), **options, log_ref=reward)
    with pytest.raises(ValueError, match="teacher"):
        fine_tune_on_texts(policy, params, reward, Recipe(teacher=1.0), **options)
    known = MarkovReference(jnp.log(jnp.full(2, 0.5)), jnp.log(jnp.full((2, 2), 0.5)))
    recipe = Recipe(temperature=0.5)
    with pytest.raises(ValueError, match="temperature"):
        fine_tune_on_texts(policy, params, reward, recipe, **options, log_ref=known.log_probs)
    with pytest.raises(ValueError, match="beta is needed"):
        fine_tune_on_texts(policy, params, reward, Recipe(), **{**options, "beta": None})
    sample = functools.partial(known.sample, length=5)
    del options["beta"]
    with pytest.raises(ValueError, match="sample must draw"):
        sft_on_texts(policy, params, sample, **options)


@pytest.mark.broad
def test_imitation_learns_a_chain():
    """A GRU of two units can be a chain of two tokens: its KL to it vanishes."""
    chain = MarkovReference(
        jnp.log(jnp.array([0.7, 0.3])), jnp.log(jnp.array([[0.8, 0.2], [0.4, 0.6]]))
    )
    policy = GRUPolicy(2, 20, width=4)
    run = sft_on_texts(
        policy,
        policy.init(key=jax.random.key(0)),
        functools.partial(chain.sample, length=20),
        log_target=chain.log_probs,
        batch_size=256,
        key=jax.random.key(1),
        learning_rate=0.02,
        num_steps=300,
        history_every=300,
    )
    first, last = run.history.reverse_kl
    assert first > 0.5
    assert last < 0.02 + 5 * run.history.reverse_kl_error[-1]


@pytest.mark.slow
def test_verification_confirms_and_can_fail(monkeypatch):
    options = {"policies": ["gru"], "beta": [0.1], "num_measured": 256}
    report = verify_texts("dates", key=jax.random.key(0), num_steps=100, **options)
    assert report.passed, str(report)
    assert [x["passed"] for x in json.loads(report.to_json())["checks"]] == [True] * 7
    (run,) = report.runs
    # The identity J* − J = β KL, on the same texts.
    assert run["J*"] - run["J"] == pytest.approx(0.1 * run["KL"], abs=1e-3)
    (same,) = (check for check in report.checks if check.name.startswith("J* − J = β KL"))
    assert same.passed
    # The table fits on a terminal of 80 columns in one block, with errors of one digit.
    monkeypatch.setenv("COLUMNS", "80")
    lines = str(report).splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("policy"))
    head, row = lines[at : at + 2]
    assert head.split()[-1] == "left"
    assert row.split()[4] == f"{run['KL ±']:.1g}"
    masses = sum(x for name, x in run.items() if name.startswith("mass of") and "±" not in name)
    assert masses == pytest.approx(run["reward"], abs=1e-6)
    small = GRUPolicy(11, 10, width=4)
    options |= {"policies": {"small": (small, small.init(key=jax.random.key(0)))}}
    short = verify_texts("dates", key=jax.random.key(0), num_steps=1, **options)
    assert [check.passed for check in short.checks][1] is False


@pytest.mark.slow
def test_a_transformer_learns_dates_in_a_few_steps():
    options = {"policies": ["transformer"], "beta": [0.1], "num_measured": 256}
    options |= {"num_steps": 60, "learning_rate": 0.01}
    (run,) = verify_texts("dates", key=jax.random.key(0), **options).runs
    assert run["start KL"] > 6
    assert run["KL"] < 1


@pytest.mark.slow
def test_verified_networks_begin_at_the_reference():
    # The programs of the network above, with steps of nothing.
    options = {"policies": ["gru"], "beta": [0.3], "num_measured": 256}
    options |= {"num_steps": 100, "learning_rate": 1e-12}
    (run,) = verify_texts("dates", key=jax.random.key(0), **options).runs
    task = tasks.load_texts("dates")
    target = kt.solve_on_automaton(
        task.reference, task.automaton, task.reward, 0.3, length=task.length
    )
    log_ref = np.asarray(target.states.objective.log_ref, np.float64)
    log_probs = np.asarray(target.states.log_probs, np.float64)
    some = log_ref > -np.inf
    # Texts that end in one state have one ratio, so that the KL is that of states.
    exact = (np.exp(log_ref[some]) * (log_ref[some] - log_probs[some])).sum()
    assert (run["start KL"], run["start KL ±"]) == (pytest.approx(exact), 0)
    assert run["KL"] == pytest.approx(exact, abs=5 * run["KL ±"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_measured": 1}, "num_measured must be an integer of 2 or more"),
        ({"num_seeds": 0}, "num_seeds must be an integer of 1 or more"),
        ({"policies": []}, "policies asks for no run"),
        ({"beta": [0.1, -1.0]}, "beta must be finite numbers above 0"),
    ],
)
def test_what_a_verification_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        verify_texts("dates", key=jax.random.key(0), **change)
