"""MARA over texts too many to list, against MARA of the list where they are few."""

from __future__ import annotations

import dataclasses
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_automata import (
    DTYPES,
    assert_drawn_as_said,
    close,
    random_problem,
    wide,
)
from test_automata_enumerated import LAWS, random_automaton, solved

import kltarget as kt
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets.automata import mara_on_automaton, over_modes
from kltarget.tasks import load_texts

METHODS = [("augment", "reverse KL"), *(("substitute", x) for x in LAWS)]
# A walk does not know of divergences: contexts of two tokens need not meet each of them.
ORDERED = [*((*x, 1) for x in METHODS), (*METHODS[0], 2)]


def listed(arrays, length):
    """All texts, their log-probabilities and final states.

    Sums are rounded once, so that texts of the same steps in another order are exactly as likely.
    """
    first, then, table = arrays
    order, size = first.ndim, then.shape[-1]
    texts = np.array(list(itertools.product(range(size), repeat=length)))
    log_ref, finals = [], []
    for text in texts:
        later = [then[tuple(text[i - order : i + 1])] for i in range(order, length)]
        steps = [first[tuple(text[:order])], *later]
        log_ref.append(math.fsum(steps) if min(steps) > -np.inf else -np.inf)
        state = 0
        for token in text:
            state = table[state, token]
        finals.append(state)
    return texts, np.array(log_ref), np.array(finals)


def listed_mara(reward, log_ref, beta, law, threshold, method, anchor):
    """Targets of MARA's problems over listed texts ``[texts]``, a row for each β."""
    log_ref = log_ref - np.logaddexp.reduce(log_ref)
    good = (reward >= threshold) & (log_ref > -np.inf)
    scores = log_ref + (reward / beta if anchor == "best" else 0.0 * beta)
    best = np.where(good, scores, -np.inf)
    best = good & (best == best.max(-1, keepdims=True))
    anchors = np.where(best, reward, -np.inf).argmax(-1)[:, None]
    lifted = np.where(good, reward[anchors], reward)
    if method == "substitute":
        log_ref = np.where(good, log_ref[anchors], log_ref)
    else:
        finite = np.where(good, log_ref, 0.0)
        lifted = lifted + np.where(good, beta * (log_ref[anchors] - finite), 0.0)
    with np.errstate(all="ignore"):
        return solved(lifted, log_ref, beta, law)


@pytest.mark.precise
@pytest.mark.broad
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("method", "name", "order"), ORDERED)
@hypothesis.given(
    st.integers(0, 10**6), st.sampled_from([0.0, 0.3]), st.sampled_from(["reference", "best"])
)
@hypothesis.settings(max_examples=2)
def test_equal_to_mara_of_the_list(method, name, order, dtype, seed, zeros, anchor):
    wide(dtype)
    if dtype == np.float32 and jax.config.jax_enable_x64:
        pytest.skip("where float32 is the default it is tested")
    length = 5
    reference, _, arrays, rng = random_problem(seed, order, zeros=zeros, dtype=dtype)
    automaton = Automaton(random_automaton(rng, 3, order))
    arrays = (*arrays[:2], automaton.transitions)
    reward = rng.normal(size=4).astype(dtype)
    beta = np.array([0.3, 2.0], dtype)
    texts, log_ref, finals = listed(arrays, length)
    # A reward per final state, at least two of which are good where so many are reached.
    threshold = np.unique(reward[finals[log_ref > -np.inf]])[-2:][0]
    each, coefficient = reward[finals].astype(float), beta.astype(float)[:, None]
    exact = listed_mara(each, log_ref, coefficient, LAWS[name], threshold, method, anchor)
    hypothesis.assume(not exact.condensed.any())
    given = reference, automaton, reward, beta, LAWS[name].divergence
    plain = kt.solve_on_automaton(*given, length=length)
    target = mara_on_automaton(plain, threshold, method=method, anchor=anchor)
    reached = (exact.reward - beta * exact.divergence, exact.reward, exact.divergence)
    close(target.log_prob(texts), exact.log_probs, dtype)
    for found, wanted in zip(
        (target.value, target.expected_reward, target.divergence_value), reached, strict=True
    ):
        # The list's own sums round at the scale of its lifted rewards.
        close(found, wanted, dtype, 32 if dtype is np.float32 else 1e-12 / np.finfo(dtype).eps)
    log_probs = exact.log_probs
    probs = np.exp(log_probs)
    with np.errstate(invalid="ignore"):
        close(target.entropy, -np.where(probs > 0, probs * log_probs, 0.0).sum(-1), dtype)
    close(target.expectation(reward), (probs * reward[finals]).sum(-1), dtype)
    shares = [[probs[..., texts[:, t] == v].sum(-1) for v in range(3)] for t in range(length)]
    close(target.marginals(), np.moveaxis(shares, -1, 0), dtype)
    begins = (texts[:, :2] == texts[7][:2]).all(1)
    after = np.stack([probs[..., begins & (texts[:, 2] == v)].sum(-1) for v in range(3)], -1)
    if (after.sum(-1) > 0).all():
        wanted = after / after.sum(-1, keepdims=True)
        close(np.exp(np.asarray(target.conditionals(texts[7][:2]), np.float64)), wanted, dtype)
        given = np.asarray(target.next_log_probs(texts[7:9]), np.float64)
        close(np.exp(given[:, 0, 2]), wanted, dtype)
    chosen = np.asarray(target.anchor) @ 3 ** np.arange(length)[::-1]
    worth = np.stack([log_ref + (anchor == "best") * reward[finals] / b for b in beta])
    best = np.where((reward[finals] >= threshold) & (log_ref > -np.inf), worth, -np.inf).max(-1)
    close(worth[np.arange(2), chosen], best, dtype)


@pytest.mark.precise
@pytest.mark.broad
def test_as_many_good_texts_as_python_counts():
    """Exactly 150 of 1,000 letters are b: all C(1000, 150) of them, the reference's e^−962."""
    p, length = 1e-4, 1000
    even = np.log(np.array([1 - p, p]))
    reference = MarkovReference(even, np.stack([even, even]))
    count = Automaton.counter([1], 2, most=151)
    reward = (np.arange(152) == 150).astype(float)
    beta = 1e-3
    target = kt.solve_on_automaton(reference, count, reward, beta, length=length)
    found = mara_on_automaton(target, 1.0)
    ways = math.log(math.comb(length, 150))
    anchor = 150 * math.log(p) + 850 * math.log1p(-p)
    assert float(found.log_counts[150]) == pytest.approx(ways, rel=2e-5)
    assert float(found.log_anchor) == pytest.approx(anchor, rel=2e-5)
    assert float(found.entropy) == pytest.approx(ways, rel=2e-5)
    # All of them are as likely as the anchor, which MARA therefore does not lift.
    assert float(found.value) == pytest.approx(1 + beta * (ways + anchor), abs=1e-4)
    assert float(found.value) == pytest.approx(float(target.value), abs=1e-4)
    text = found.sample(key=jax.random.key(0), num_samples=2)
    assert (np.asarray(text).sum(-1) == 150).all()
    np.testing.assert_allclose(found.log_prob(text), -ways, rtol=2e-5)


@pytest.mark.broad
def test_draws_are_those_of_the_target():
    reference, automaton, arrays, rng = random_problem(3)
    reward = rng.normal(size=4)
    plain = kt.solve_on_automaton(reference, automaton, reward, [0.5, 2.0], length=4)
    target = mara_on_automaton(plain, np.sort(reward)[1])
    assert_drawn_as_said(target, listed(arrays, 4)[0])


@pytest.mark.broad
def test_jit_and_derivatives():
    reference, automaton, _, rng = random_problem(5)
    reward = jnp.asarray(rng.normal(size=4), float)
    bar = float(np.sort(reward)[1])

    def value(reward, beta):
        target = kt.solve_on_automaton(reference, automaton, reward, beta, length=6)
        return mara_on_automaton(target, bar).value

    jitted, slopes = jax.jit(jax.value_and_grad(value))(reward, 0.5)
    plain = kt.solve_on_automaton(reference, automaton, reward, 0.5, length=6)
    target = mara_on_automaton(plain, bar)
    np.testing.assert_allclose(jitted, target.value, rtol=1e-5)
    # Only rewards of the anchor's state and of those that are not good count.
    good = np.asarray(reward) >= bar
    probs = np.asarray(target.states.probs)
    wanted = np.where(good, 0.0, probs)
    wanted[int(automaton.run(target.anchor))] = probs[good].sum()
    np.testing.assert_allclose(slopes, wanted, atol=1e-5)


@pytest.mark.broad
def test_lengths_of_texts_that_end():
    reference = MarkovReference.fit(["ab", "abab", "b"], smoothing=0.5, end="$")
    automaton = Automaton(np.array([[0, 1, 2], [2, 1, 0], [1, 0, 2]]))
    plain = kt.solve_on_automaton(reference, automaton, [0.0, 1.0, -1.0], 0.3, length=5)
    target = mara_on_automaton(plain, 0.0)
    texts = np.array(list(itertools.product(range(3), repeat=5)))
    probs = np.exp(np.asarray(target.log_prob(texts), np.float64))
    assert probs.sum() == pytest.approx(1.0, rel=1e-5)
    lengths = np.array([[*text, 2].index(2) for text in texts.tolist()])
    wanted = [probs[lengths == n].sum() for n in range(6)]
    close(target.length_marginal(), wanted, target.value.dtype)


@pytest.mark.broad
def test_gibberish_is_uniform_over_texts_and_not_over_modes():
    """Short keywords fit into more texts; MARA over modes has every keyword alike."""
    task = dataclasses.replace(load_texts("keywords-64"), length=24)
    target = kt.solve_on_automaton(
        task.reference, task.automaton, task.reward, 0.1, length=task.length
    )
    texts = mara_on_automaton(target, 1.0)
    masses = np.exp(np.asarray(kt.mode_log_mass(texts.states.log_probs, task.modes), np.float64))
    by_length = {len(word): masses[mode] for mode, word in task.mode_names.items()}
    # A keyword is at one place in 22 or fewer, and what is around it is any text of the rest.
    assert by_length[2] / by_length[3] == pytest.approx(27 * 21 / 20, rel=0.01)
    number = np.logaddexp.reduce(np.asarray(texts.log_counts, np.float64)[task.reward > 0])
    assert float(texts.entropy) == pytest.approx(number, abs=1e-2)
    assert number > float(target.entropy) + 30
    even = kt.solve(kt.mara(over_modes(task).objective(0.1), 1.0)).probs[:-1]
    np.testing.assert_allclose(even, even[0], rtol=1e-4)


EVEN = MarkovReference(np.log([0.5, 0.5]), np.log(np.full((2, 2), 0.5)), ("a", "b"))
COUNT = Automaton.counter([1], 2, most=2)


def plain(divergence=None, reward=(0.0, 1.0, 2.0), **options):
    return kt.solve_on_automaton(EVEN, COUNT, list(reward), 0.5, divergence, length=3, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda: mara_on_automaton(plain(kt.ForwardKL()), 1.0),
            ValueError,
            "'substitute'",
            marks=pytest.mark.broad,
        ),
        (lambda: mara_on_automaton(plain(), 3.0), ValueError, "threshold 3 is above"),
        (lambda: mara_on_automaton(plain(), 1.0, method="add"), ValueError, "method must be"),
        (lambda: mara_on_automaton(plain(), 1.0, anchor="first"), ValueError, "anchor must be"),
        (lambda: mara_on_automaton(plain(), [1.0, 2.0]), ValueError, "does not broadcast"),
        pytest.param(
            lambda: mara_on_automaton(plain(step_reward=np.zeros((3, 2))), 1.0),
            ValueError,
            "let the automaton count them",
            marks=pytest.mark.broad,
        ),
        (lambda: mara_on_automaton(plain().states, 1.0), TypeError, "there is kltarget.mara"),
        (
            lambda: mara_on_automaton(plain(), 1.0).log_prob("ab"),
            ValueError,
            "texts have 3 tokens",
        ),
        (
            lambda: mara_on_automaton(plain(), 1.0).length_marginal(),
            ValueError,
            "this one has none",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.broad
def test_a_state_of_impossible_texts_is_no_anchor():
    """Every text with b is impossible; what has one would have the best reward."""
    with np.errstate(divide="ignore"):
        only_a = np.log(np.array([1.0, 0.0]))
    reference = MarkovReference(only_a, np.stack([only_a, only_a]))
    target = kt.solve_on_automaton(reference, COUNT, [0.5, 1.0, 2.0], 0.5, length=3)
    found = mara_on_automaton(target, 0.5, anchor="best")
    assert np.asarray(found.anchor).tolist() == [0, 0, 0]
    np.testing.assert_allclose(found.log_prob([0, 0, 0]), 0.0, atol=1e-6)
    assert np.isneginf(found.log_prob([0, 1, 0]))


@pytest.mark.broad
def test_of_texts_as_likely_the_best_rewarded_is_the_anchor():
    """All eight texts are: the anchor has two b or three, and its reward all seven with any."""
    target = mara_on_automaton(plain(), 1.0)
    assert int(np.asarray(target.anchor).sum()) >= 2
    wanted = np.exp([0.0, *[2 / 0.5] * 7])
    found = np.exp(np.asarray(target.log_prob(["aaa", "aab", "bbb"]), np.float64))
    np.testing.assert_allclose(found, wanted[[0, 1, 7]] / wanted.sum(), rtol=1e-5)
