"""The shipped problems are the published ones, and the same on every machine."""

import hashlib
import importlib.resources

import numpy as np
import pytest

import kltarget as kt
from kltarget import tasks

LARGE = ("words-4", "brackets", "primes")
LATER = ("arithmetic-24",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=[pytest.mark.slow] * (n in LARGE) + [pytest.mark.broad] * (n in LATER)
        )
        for n in tasks.names()
    ],
)
def test_every_task_is_a_normalised_problem(name):
    task = tasks.load(name)
    assert task.name == name
    assert task.description
    assert "\n" not in task.description
    assert task.log_ref.dtype == task.reward.dtype == np.float64
    assert task.modes.dtype == np.int64
    assert task.num_outcomes == len(task.labels) == task.log_ref.size
    assert len(set(task.labels)) == task.num_outcomes
    assert np.exp(task.log_ref).sum() == pytest.approx(1, abs=1e-13)
    right = task.reward > 0
    assert set(task.modes[~right]) == {-1}
    assert sorted(set(task.modes[right])) == list(range(task.modes.max() + 1))


def test_unknown_name_lists_the_tasks():
    with pytest.raises(
        ValueError, match=r"no task 'one_two': choose one of one-two, bimodal, words"
    ):
        tasks.load("one_two")


def test_tasks_are_shared_and_read_only():
    task = tasks.load("one-two")
    assert tasks.load("one-two") is task
    for array in (task.log_ref, task.reward, task.modes):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_task_does_not_freeze_the_arrays_it_is_given():
    log_ref = np.log([0.5, 0.5])
    task = tasks.Task("mine", "", log_ref, [0, 1], ("a", "b"), [0, 1])
    log_ref[0] = 7.0
    assert task.log_ref[0] == np.log(0.5)


def test_fields_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"reward has shape \(3,\), but there are 2 labels"):
        tasks.Task("mine", "", np.log([0.5, 0.5]), [0, 1, 2], ("a", "b"), [0, 1])


def test_one_two_is_the_published_problem():
    task = tasks.load("one-two")
    np.testing.assert_allclose(np.exp(task.log_ref), [0.3, 0.02, 0.68], rtol=1e-15)
    assert task.reward.tolist() == [1, 1, 0]
    assert task.labels == ("1", "2", "other")


def test_one_two_target():
    target = kt.solve(tasks.load("one-two").objective(0.1))
    expected = [0.937409563552, 0.0624939709035, 9.64655442463e-5]
    np.testing.assert_allclose(target.probs, expected, rtol=5e-6)


def test_bimodal_modes_trade_places_at_the_published_beta():
    """Claim: two modes trade places at β = Δr / Δlog π_ref, 0.25 / 1.9 in the didactic problem
    (arXiv 2510.20817).

    Holds.
    """
    task = tasks.load("bimodal")
    first, second = np.flatnonzero(task.modes == 0), np.flatnonzero(task.modes == 1)
    np.testing.assert_array_equal(second - first, 50)
    np.testing.assert_allclose(task.log_ref[first] - task.log_ref[second], 1.9, rtol=1e-14)
    assert set(task.reward[first]) == {0.75}
    assert set(task.reward[second]) == {1.0}
    assert task.log_ref.argmax() == 25
    assert task.log_ref[second].argmax() == 10
    flip = 0.25 / 1.9
    assert flip == pytest.approx(0.131578947368, rel=1e-11)
    below, above = kt.solve(task.objective([0.99 * flip, 1.01 * flip])).log_probs
    assert below[75] > below[25]
    assert above[75] < above[25]
    assert kt.flip_beta(task.objective(1.0), 25, 75) == pytest.approx(flip, rel=1e-5)


def test_words_are_the_shipped_counts():
    data = (importlib.resources.files("kltarget") / "data" / "words.csv").read_bytes()
    # A file with \r\n line ends holds the same counts.
    digest = hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()
    assert digest == "021d6d004af72180d96d364f2b0a9e6eb47ee127a3daf54b0e7e386e3a1b3ad0"
    task = tasks.load("words")
    assert task.num_outcomes == 3118
    assert task.labels[:3] == ("the", "a", "is")
    np.testing.assert_allclose(np.exp(task.log_ref[:3]) * 64285, [4585, 1958, 1837], rtol=1e-12)
    assert all(label.isalpha() and label.isascii() and label.islower() for label in task.labels)


def test_right_words_are_the_keywords_each_its_own_mode():
    task = tasks.load("words")
    right = task.reward == 1
    assert right.sum() == 35
    assert set(task.reward) == {0, 1}
    assert task.modes[right].tolist() == list(range(35))
    reference = kt.effective_modes(task.log_ref, task.modes)
    assert reference == pytest.approx(16.2551, rel=1e-5)
    reward = dict(zip(task.labels, task.reward, strict=True))
    assert all(reward[word] == 1 for word in ("and", "none", "true", "false", "nonlocal", "yield"))
    # Soft keywords are ordinary words.
    assert not any(reward[word] for word in ("the", "match", "case", "type", "print"))


def test_objective_sweeps_beta_and_takes_a_divergence():
    objective = tasks.load("one-two").objective([0.1, 1.0], divergence=kt.ForwardKL())
    assert isinstance(objective.divergence, kt.ForwardKL)
    assert objective.batch_shape == (2,)
    np.testing.assert_allclose(
        kt.solve(objective).probs[0], [0.87586125048, 0.058390750032, 0.0657479994879], rtol=5e-6
    )


def test_objective_rejects_a_beta_that_is_not_positive():
    with pytest.raises(ValueError, match="beta"):
        tasks.load("one-two").objective(0.0)
