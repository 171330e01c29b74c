"""Tasks over sequences: the right answers counted another way, and references that are models."""

import csv
import dataclasses
import importlib.resources
import itertools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DTYPES, eps, single_precision

import kltarget as kt
from kltarget import cli, plot, studies, tasks
from kltarget.policies import GRUPolicy
from kltarget.recipes import Recipe
from kltarget.tasks.sequence_tasks import SEQUENCE_TASKS
from kltarget.training import fine_tune

DTYPE = DTYPES[0]
ALL = (
    "words-3",
    pytest.param("words-4", marks=pytest.mark.slow),
    "arithmetic-24",
    pytest.param("brackets", marks=pytest.mark.slow),
    pytest.param("primes", marks=pytest.mark.slow),
)
MASS_ON_RIGHT = {
    "words-3": 0.4411,
    "words-4": 0.3044,
    "arithmetic-24": 0.1426,
    "brackets": 0.2891,
    "primes": 0.1954,
}


def listed_words(length):
    data = importlib.resources.files("kltarget") / "data" / "words.csv"
    rows = csv.DictReader(data.read_text(encoding="utf-8").splitlines())
    return {row["word"]: int(row["count"]) for row in rows if len(row["word"]) == length}


def spelt(name, which):
    spec = SEQUENCE_TASKS[name]
    labels = tasks.Labels(spec.space, spec.alphabet)
    return [labels[int(i)] for i in np.flatnonzero(which)]


@pytest.mark.parametrize(("length", "count"), [(3, 159), (4, 291)])
def test_right_words_are_those_of_the_list(length, count):
    words = spelt(f"words-{length}", SEQUENCE_TASKS[f"words-{length}"].right())
    assert words == sorted(listed_words(length))
    assert len(words) == count


def test_1788_of_177147_expressions_are_worth_24():
    spec = SEQUENCE_TASKS["arithmetic-24"]
    assert spec.num_outcomes == 9**4 * 3**3 == 177_147
    # + and − come last: sum the products that lie between them.
    count = 0
    for signs in itertools.product("+−×", repeat=3):
        for digits in itertools.product(range(1, 10), repeat=4):
            products, of = [digits[0]], [1]
            for sign, digit in zip(signs, digits[1:], strict=True):
                if sign == "×":
                    products[-1] *= digit
                else:
                    products.append(digit)
                    of.append(1 if sign == "+" else -1)
            count += sum(map(int.__mul__, products, of)) == 24
    right = spec.right()
    assert count == right.sum() == spec.num_right == 1788


@pytest.mark.slow
def test_the_values_of_expressions_are_those_of_python():
    spec = SEQUENCE_TASKS["arithmetic-24"]
    plain = str.maketrans("−×", "-*")
    labels = tasks.Labels(spec.space, spec.alphabet)
    worth = [eval(label.translate(plain)) == 24 for label in labels]
    np.testing.assert_array_equal(spec.right(), worth)


def test_balanced_strings_are_counted_by_the_catalan_number():
    spec = SEQUENCE_TASKS["brackets"]
    right = spec.right()
    assert spec.num_outcomes == 2**20
    assert right.sum() == spec.num_right == math.comb(20, 10) // 11 == 16_796
    for text in spelt("brackets", right)[::97]:
        while "()" in text:
            text = text.replace("()", "")
        assert text == ""


@pytest.mark.broad
def test_primes_are_the_numbers_without_divisors():
    spec = SEQUENCE_TASKS["primes"]
    right = spec.right()
    assert spec.num_outcomes == 10**6
    assert right.sum() == spec.num_right == 78_498
    composite = np.zeros(10**6, bool)
    for n in range(2, 1000):
        composite[2 * n :: n] = True
    np.testing.assert_array_equal(right[2:], ~composite[2:])
    assert not right[:2].any()
    assert spelt("primes", right)[:5] == ["000002", "000003", "000005", "000007", "000011"]


@pytest.mark.parametrize("name", SEQUENCE_TASKS)
def test_corpora_are_distributions_that_prefer_some_right_answers(name):
    spec = SEQUENCE_TASKS[name]
    probs, right = spec.corpus(), spec.right()
    assert probs.shape == right.shape == (spec.num_outcomes,)
    assert probs.sum() == pytest.approx(1, abs=1e-12)
    assert (probs >= 0).all()
    assert 0.02 < probs[right].sum() < 0.5
    assert probs[right].max() > 10 * probs[right].mean()


def test_corpora_by_hand():
    probs = SEQUENCE_TASKS["words-3"].corpus()
    words = listed_words(3)
    keep, slip = 0.75 + 0.25 / 26, 0.25 / 26
    the = sum(
        count / sum(words.values())
        * math.prod(keep if a == b else slip for a, b in zip(word, "the", strict=True))
        for word, count in words.items()
    )  # fmt: skip
    labels = tasks.Labels(SEQUENCE_TASKS["words-3"].space, SEQUENCE_TASKS["words-3"].alphabet)
    assert probs[labels.index("the")] == pytest.approx(the, rel=1e-12)

    probs = SEQUENCE_TASKS["primes"].corpus()
    assert probs[0] == 0
    for decade in range(6):  # Benford: every decade and, in it, log(1 + 1/d) for each first digit
        assert probs[10**decade : 10 ** (decade + 1)].sum() == pytest.approx(1 / 6)
        assert probs[10**decade : 2 * 10**decade].sum() == pytest.approx(math.log10(2) / 6)

    probs = SEQUENCE_TASKS["brackets"].corpus()
    labels = tasks.Labels(SEQUENCE_TASKS["brackets"].space, "()")
    assert probs[labels.index("()" * 10)] == pytest.approx((0.95 / 2) ** 10)
    assert probs[labels.index("(())" + "()" * 8)] == pytest.approx(
        (0.95 / 2) ** 8 * 0.95 * (1 / 2) * (2 / 3) * (1 / 2)
    )

    spec = SEQUENCE_TASKS["arithmetic-24"]
    labels, probs = tasks.Labels(spec.space, spec.alphabet), spec.corpus()
    one = 1 / sum(1 / d**2 for d in range(1, 10))
    assert probs[labels.index("1+1+1×1")] == pytest.approx(0.8 * one**4 * 0.5**2 * 0.2)
    assert probs[labels.index("2−1+1×1")] == pytest.approx(0.8 * one**4 / 4 * 0.3 * 0.5 * 0.2)
    assert 0.2 < probs[spec.right()].sum() < 0.21


@pytest.mark.broad
@pytest.mark.quick_only("words-3")
@pytest.mark.parametrize("name", ALL)
def test_the_reference_is_the_trained_policy(name):
    task = tasks.load(name)
    assert task.space.num_sequences == task.num_outcomes
    assert isinstance(task.policy, GRUPolicy)
    assert {x.dtype for x in jax.tree.leaves(task.params)} == {jnp.dtype("float32")}
    probs = np.exp(task.log_ref)
    assert np.isfinite(task.log_ref).all()
    assert probs.sum() == pytest.approx(1, abs=1e-12)
    right = task.reward > 0
    assert probs[right].sum() == pytest.approx(MASS_ON_RIGHT[name], abs=1e-4)
    np.testing.assert_array_equal(task.modes[right], np.arange(right.sum()))
    assert set(task.reward) == {0, 1}
    which = np.random.default_rng(0).integers(task.num_outcomes, size=500)
    tokens = np.stack(np.unravel_index(which, task.space.sizes), axis=-1)
    np.testing.assert_array_equal(task.space.index(tokens), which)
    each = task.policy.log_probs(task.params, tokens)
    assert each.dtype == jnp.float32
    np.testing.assert_allclose(each.sum(-1), task.log_ref[which], rtol=2e-5)
    assert [task.labels[i] for i in which[:20]] == [
        "".join(letters[token] for letters, token in zip(spelling(task), y, strict=True))
        for y in tokens[:20]
    ]


def spelling(task):
    alphabet = task.alphabet
    return alphabet if isinstance(alphabet, tuple) else (alphabet,) * task.space.length


@pytest.mark.broad
@pytest.mark.parametrize("name", ALL)
def test_the_reference_has_learnt_its_corpus(name):
    task, probs = tasks.load(name), SEQUENCE_TASKS[name].corpus()
    known = probs > 0
    kl = np.sum(probs[known] * (np.log(probs[known]) - task.log_ref[known]))
    assert 0 < kl < 0.2
    # Letters, digits and brackets alone, each by its frequency at its position, say much less.
    tree = probs.reshape(task.space.sizes)
    axes = range(tree.ndim)
    singles = [tree.sum(tuple(a for a in axes if a != t)) for t in axes]
    independent = sum(np.sum(p * np.log(p)) for p in singles if (p > 0).all())
    assert np.sum(probs * task.log_ref) > independent + 0.05


@pytest.mark.slow
def test_training_again_gives_as_good_a_reference(monkeypatch):
    """Already after 1500 of the 4000 steps; in float32, as what is shipped."""
    name = "words-3"
    task, probs = tasks.load(name), SEQUENCE_TASKS[name].corpus()
    monkeypatch.setitem(
        SEQUENCE_TASKS, name, dataclasses.replace(SEQUENCE_TASKS[name], num_steps=1500)
    )
    with single_precision():
        fitted = studies.train_reference(name, key=jax.random.key(1))
        again = task.space.joint(task.policy.conditionals(fitted.params, task.space))
    again = np.asarray(again, np.float64)
    shipped = np.sum(probs * task.log_ref)
    assert np.sum(probs * again) == pytest.approx(shipped, abs=0.02)
    assert fitted.held_out_log_likelihood == pytest.approx(shipped, abs=0.05)
    right = task.reward > 0
    assert np.exp(again)[right].sum() == pytest.approx(MASS_ON_RIGHT[name], rel=0.2)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_reference():
    task = tasks.load("words-3")
    run = fine_tune(
        task.policy, task.params, task.reward, Recipe(), beta=0.2,
        learning_rate=1e-2, num_steps=20, history_every=20,
    )  # fmt: skip
    start, end = run.history.expected_reward
    assert start == pytest.approx(MASS_ON_RIGHT["words-3"], abs=1e-4)
    assert end > start + 0.05
    assert run.history.reverse_kl[0] == pytest.approx(0, abs=1e-5)


@pytest.mark.broad
def test_loading_inside_a_trace_gives_numbers():
    task = tasks.load("arithmetic-24")
    tasks.sequence_tasks.load_sequence_task.cache_clear()

    def total(x):
        return x + tasks.load("arithmetic-24").log_ref.sum().astype(DTYPE)

    got = jax.jit(total)(jnp.zeros((), DTYPE))
    assert float(got) == pytest.approx(task.log_ref.sum(), rel=1e-5)


def test_listing_agrees_with_the_tasks():
    for entry in tasks.listing()[:4]:
        task = tasks.load(entry.name)
        assert entry == (
            task.name, task.num_outcomes, (task.reward > 0).sum(), task.description
        )  # fmt: skip
    assert tuple(entry.name for entry in tasks.listing()) == tasks.names()


def test_labels_are_a_sequence_of_strings():
    labels = tasks.Labels(kt.SequenceSpace((2, 3), 2), ("ab", "xyz"))
    every = ("ax", "ay", "az", "bx", "by", "bz")
    assert labels == every
    assert every == labels
    assert labels != every[:-1]
    assert labels != (*every[:-1], "b!")
    assert tuple(labels) == every
    assert tuple(reversed(labels)) == every[::-1]
    assert [labels.index(x) for x in every] == list(range(6))
    assert labels[1:-1:2] == every[1:-1:2]
    assert labels[-1] == "bz"
    assert "az" in labels
    assert "a" not in labels
    assert 3 not in labels
    assert pickle.loads(pickle.dumps(labels)) == labels
    assert repr(labels) == "<6 labels from 'ax' to 'bz'>"
    with pytest.raises(IndexError):
        labels[6]
    with pytest.raises(ValueError, match="'ba' is not among the labels"):
        labels.index("ba")
    with pytest.raises(ValueError, match="'ax' is not among the labels"):
        labels.index("ax", 1)
    with pytest.raises(ValueError, match="one character per token"):
        tasks.Labels(kt.SequenceSpace(3, 2), "ab")
    with pytest.raises(ValueError, match="one character per token"):
        tasks.Labels(kt.SequenceSpace(3, 2), "aab")


def test_a_space_of_another_size_is_refused():
    with pytest.raises(ValueError, match="space has 4 sequences, but there are 2 labels"):
        tasks.Task(
            "mine", "", np.log([0.5, 0.5]), [0, 1], ("a", "b"), [0, 1], kt.SequenceSpace(2, 2)
        )


def test_the_command_lists_tasks_without_loading_them(capsys, monkeypatch):
    monkeypatch.setattr(np, "load", None)
    assert cli.main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (primes,) = (line for line in lines if line.startswith("primes"))
    assert primes.split()[1:3] == ["1,000,000", "78,498"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "favourite"),
    [
        ("words-3", "the"),
        ("arithmetic-24", "3×8−1+1"),
    ],
)
def test_the_command_solves_them(name, favourite, capsys, tmp_path):
    picture = tmp_path / "target.png"
    assert cli.main(["solve", name, "--beta", "0.1", "--plot", str(picture)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    task = tasks.load(name)
    assert f"{task.num_outcomes:,} outcomes, {int(task.reward.sum()):,} right" in out
    rows = [line.split() for line in out.splitlines()]
    assert rows[[row[:1] == ["outcome"] for row in rows].index(True) + 1][0] == favourite
    reached = next(float(row[1]) for row in rows if row[:1] == ["0.1"])
    mass = MASS_ON_RIGHT[name]
    wanted = 1 / (1 + (1 - mass) / mass * math.exp(-10))
    assert reached == pytest.approx(wanted, abs=1e-4)
    assert picture.stat().st_size > 10_000


def test_numbers_of_many_digits_are_ranked_on_a_plot():
    space = kt.SequenceSpace(10, 4)
    rng = np.random.default_rng(0)
    log_ref = np.asarray(kt.normalize(rng.normal(size=10**4)))
    labels = tasks.Labels(space, "0123456789")
    task = tasks.Task("digits", "", log_ref, rng.integers(2, size=10**4), labels, np.arange(10**4))
    ax = plot.target(task)
    assert ax.get_xscale() == "log"
    named = {text.get_text() for text in ax.texts}
    assert named == {labels[int(i)] for i in np.argsort(-log_ref)[:8]}


@pytest.mark.slow
def test_many_modes_cost_no_square_of_memory():
    # A mask of modes by outcomes would take 10¹⁰ entries.
    size = 10**5
    log_ref = np.asarray(kt.normalize(np.random.default_rng(1).normal(size=size)))
    reward = np.arange(size) % 2
    summary = kt.summarize(kt.Objective(reward.astype(DTYPE), log_ref.astype(DTYPE), 0.1))
    assert summary.num_best_modes == size // 2
    ref = np.exp(np.asarray(log_ref, np.float64))[reward == 1]
    share = ref / ref.sum()
    effective = np.exp(-np.sum(share * np.log(share)))
    assert summary.effective_best_modes == pytest.approx(effective, rel=1e4 * eps(DTYPE))
    assert f"up to {ref.max() / ref.min():.3g} : 1" in summary.verdict
