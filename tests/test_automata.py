"""Targets over texts too many to enumerate, and the automata and references that they are of."""

from __future__ import annotations

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kltarget as kt
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets.automata import mara_on_automaton

DTYPES = (np.float32, np.float64)
DIVERGENCES = (
    kt.ReverseKL(),
    kt.ForwardKL(),
    kt.Alpha(0.5),
    kt.ChiSquared(),
    kt.JensenShannon(),
)
LETTERS = "abc"


def wide(dtype):
    """Skips what needs 64 bits where they are off."""
    if dtype is np.float64 and not jax.config.jax_enable_x64:
        pytest.skip("64-bit floats are off")


def random_problem(seed, order=1, vocab_size=3, states=4, zeros=0.0, dtype=np.float64):
    """A reference and an automaton, and the reference's arrays as NumPy has them."""
    rng = np.random.default_rng(seed)
    first = rng.dirichlet(np.ones(vocab_size**order))
    then = rng.dirichlet(np.ones(vocab_size), size=vocab_size**order)
    gone = rng.uniform(size=then.shape) < zeros
    gone[:, 0] = False
    then = np.where(gone, 0.0, then)
    then /= then.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        first = np.log(first).reshape((vocab_size,) * order)
        then = np.log(then).reshape((vocab_size,) * (order + 1))
    table = rng.integers(0, states, size=(states, vocab_size))
    reference = MarkovReference(first.astype(dtype), then.astype(dtype))
    return reference, Automaton(table), (first, then, table), rng


def enumerated(arrays, length):
    """All texts, their log-probabilities by the chain and the states they end in, one by one."""
    first, then, table = arrays
    order, size = first.ndim, then.shape[-1]
    texts = np.array(list(itertools.product(range(size), repeat=length)))
    log_ref, finals = [], []
    for text in texts:
        total, state = first[tuple(text[:order])], 0
        for i in range(order, length):
            total += then[tuple(text[i - order : i + 1])]
        for token in text:
            state = table[state, token]
        log_ref.append(total)
        finals.append(state)
    return texts, np.array(log_ref), np.array(finals)


def close(found, wanted, dtype, factor=32):
    """Within so many roundings, ``-inf`` where ``-inf`` is."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(wanted))
    known = np.isfinite(wanted)
    error = np.abs(found[known] - wanted[known]) / (1 + np.abs(wanted[known]))
    assert error.size == 0 or error.max() <= factor * np.finfo(dtype).eps


@pytest.mark.precise
def test_a_thousand_tokens_do_not_underflow():
    """Of a chain that hardly ever says b, texts with exactly 150 b: about exp(−962)."""
    p, length, most = 1e-4, 1000, 151
    even = np.log(np.array([1 - p, p]))
    reference = MarkovReference(even, np.stack([even, even]))
    count = Automaton.counter([1], 2, most=most)
    reward = np.zeros(most + 1)
    reward[150] = 1.0
    target = kt.solve_on_automaton(reference, count, reward, 1e-4, length=length)
    ways = math.lgamma(length + 1) - math.lgamma(151) - math.lgamma(length - 149)
    exact = ways + 150 * math.log(p) + (length - 150) * math.log1p(-p)
    log_masses = np.asarray(target.states.objective.log_ref, np.float64)
    assert exact < -900
    assert log_masses[150] == pytest.approx(exact, rel=2e-5)
    assert float(target.expected_reward) == pytest.approx(1.0, abs=1e-3)
    text = target.sample(key=jax.random.key(0), num_samples=3)
    assert (np.asarray(text).sum(-1) == 150).all()


def assert_drawn_as_said(target, texts, number=4000):
    """Draws of two rows of texts of four letters, as often as their log-probabilities say."""
    draws = np.asarray(target.sample(key=jax.random.key(1), num_samples=number))
    assert draws.shape == (number, 2, 4)
    codes = draws @ 3 ** np.arange(4)[::-1]
    for row in range(2):
        probs = np.exp(np.asarray(target.log_prob(texts), np.float64))[row]
        share = np.bincount(codes[:, row], minlength=81) / number
        # 162 comparisons: beyond 5 standard errors is no accident.
        assert (np.abs(share - probs) <= 5 * np.sqrt(probs / number) + 1e-3).all()


@pytest.mark.broad
def test_draws_are_those_of_the_target():
    reference, automaton, arrays, rng = random_problem(3)
    target = kt.solve_on_automaton(reference, automaton, rng.normal(size=4), [0.3, 1.0], length=4)
    assert_drawn_as_said(target, enumerated(arrays, 4)[0])


def test_a_target_first_asked_under_a_trace_answers_after_it():
    reference, automaton, _, rng = random_problem(5)
    reward = jnp.asarray(rng.normal(size=4), float)
    target, same = (
        kt.solve_on_automaton(reference, automaton, reward, 0.5, length=3) for _ in range(2)
    )
    anchored, alike = (mara_on_automaton(x, float(reward.min())) for x in (target, same))
    key = jax.random.key(0)
    for one, other in ((target, same), (anchored, alike)):
        drawn = jax.jit(lambda key, x=one: x.sample(key=key, num_samples=4))(key)
        assert (drawn == other.sample(key=key, num_samples=4)).all()
        assert (one.sample(key=key, num_samples=4) == drawn).all()
    assert (jax.jit(lambda _: anchored.anchor)(0) == anchored.anchor).all()


@pytest.mark.broad
def test_jit_vmap_and_derivatives():
    reference, automaton, _, rng = random_problem(5)
    reward = jnp.asarray(rng.normal(size=4), float)

    def value(reward, beta):
        return kt.solve_on_automaton(reference, automaton, reward, beta, length=6).value

    beta = jnp.array([0.5, 1.0])
    target = kt.solve_on_automaton(reference, automaton, reward, beta, length=6)
    np.testing.assert_allclose(jax.jit(value)(reward, beta), target.value, rtol=1e-5)
    # The envelope: the derivative in the rewards is how likely each state is.
    slopes = jax.jit(jax.vmap(jax.value_and_grad(value), (None, 0)))
    mapped, by_reward = slopes(reward, beta)
    np.testing.assert_allclose(mapped, target.value, rtol=1e-5)
    np.testing.assert_allclose(by_reward, target.states.probs, atol=1e-5)


def test_a_reference_of_the_whole_past_is_one_of_one_token_where_that_is_all():
    """An order-2 chain whose rows do not differ in the older token is one of order 1."""
    first, then = np.log([0.2, 0.8]), np.log([[0.7, 0.3], [0.4, 0.6]])
    older = MarkovReference(first[:, None] + then, np.stack([then, then]))
    plain = MarkovReference(first, then)
    texts = np.array(list(itertools.product(range(2), repeat=5)))
    np.testing.assert_allclose(older.log_prob(texts), plain.log_prob(texts), rtol=1e-5)


def test_fitted_chains_end_where_texts_end():
    reference = MarkovReference.fit(["ab", "abab", "b"], order=2, smoothing=0.5, end="$")
    texts = np.array(list(itertools.product(range(3), repeat=4)))
    probs = np.exp(np.asarray(reference.log_prob(texts), np.float64))
    over = np.array([re.fullmatch("[^2]*2*", "".join(map(str, x))) is not None for x in texts])
    assert probs.sum() == pytest.approx(1.0, rel=1e-5)
    assert (probs[~over] == 0).all()
    assert reference.spell([0, 1, 2, 2]) == "ab"
    # Counts by hand: ab is followed by a once, and twice it is the end.
    given = np.exp(np.asarray(reference.log_next()[reference.contexts([0, 1, 0])[2]]))
    np.testing.assert_allclose(given, np.array([1.5, 0.5, 2.5]) / 4.5, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_no_text_goes_on_after_its_end(order, smoothing):
    reference = MarkovReference.fit(
        ["abab", "abbb"], order=order, smoothing=smoothing, alphabet="abc", end="$"
    )
    after_end = np.exp(np.asarray(reference.log_next(), np.float64))[reference.over]
    np.testing.assert_array_equal(after_end, np.tile([0, 0, 0, 1], (len(after_end), 1)))


@pytest.mark.precise
def test_16_bit_references_are_computed_in_32():
    rng = np.random.default_rng(0)
    first, then = np.log(rng.dirichlet(np.ones(3))), np.log(rng.dirichlet(np.ones(3), size=3))
    # XLA has no other 16 bits on processors without instructions for them.
    halves = first.astype(jnp.bfloat16), then.astype(jnp.bfloat16)
    reference = MarkovReference(*halves)
    exact = [np.float64(x) - np.log(np.exp(np.float64(x)).sum(-1, keepdims=True)) for x in halves]
    text = rng.integers(0, 3, size=300)
    wanted = exact[0][text[0]] + exact[1][text[:-1], text[1:]].sum()
    assert float(reference.log_prob(text)) == pytest.approx(wanted, rel=1e-5)
    count = Automaton.counter([1], 3, most=300)
    reward, beta = np.zeros(301, jnp.bfloat16), jnp.bfloat16(1)
    target = kt.solve_on_automaton(reference, count, reward, beta, length=300)
    # A constant reward changes nothing.
    assert float(target.log_prob(text)) == pytest.approx(wanted, rel=1e-4)
    assert target.marginals().dtype == target.entropy.dtype == np.float32


WORDS = ["ab", "abc", "ca"]


@pytest.mark.parametrize(
    ("automaton", "accepts"),
    [
        (Automaton.from_words(WORDS, LETTERS), lambda x: any(w in x for w in WORDS)),
        (
            Automaton.from_words(WORDS, LETTERS, match="which"),
            lambda x: sum(w in x for w in WORDS) == 1,
        ),
        (Automaton.from_words(WORDS, LETTERS, match="equals"), lambda x: x in WORDS),
        (
            Automaton.from_words(["a"], LETTERS).product(
                Automaton.from_words(["bb"], LETTERS).complement()
            ),
            lambda x: "a" in x and "bb" not in x,
        ),
        (
            Automaton.from_regex("(ab|c)*b?", LETTERS),
            lambda x: re.fullmatch("(ab|c)*b?", x) is not None,
        ),
    ],
    ids=["contains", "which", "equals", "product", "regex"],
)
def test_automata_accept_what_python_accepts(automaton, accepts):
    for length in (1, 2, 3, 5):
        texts = np.array(list(itertools.product(range(3), repeat=length)))
        wanted = [accepts("".join(LETTERS[i] for i in text)) for text in texts]
        assert automaton.accepting[np.asarray(automaton.run(texts))].tolist() == wanted
        smaller, became = automaton.minimized()
        assert smaller.num_states <= automaton.num_states
        assert smaller.accepting[np.asarray(smaller.run(texts))].tolist() == wanted
        assert (became[np.asarray(automaton.run(texts))] == np.asarray(smaller.run(texts))).all()


def test_texts_that_end_are_read_up_to_their_end():
    letters = "abc$"
    for automaton, accepts in (
        (Automaton.from_words(WORDS, letters, match="equals", end="$"), lambda x: x in WORDS),
        (
            Automaton.from_regex("(ab)*c?", letters, end="$"),
            lambda x: re.fullmatch("(ab)*c?", x) is not None,
        ),
    ):
        texts = np.array(list(itertools.product(range(4), repeat=4)))
        wanted = [accepts("".join(letters[i] for i in text).split("$")[0]) for text in texts]
        assert automaton.accepting[np.asarray(automaton.run(texts))].tolist() == wanted


@pytest.mark.parametrize(
    ("pattern", "accepted"),
    [
        ("a.b", ["aab", "abb", "a.b", "a+b", "a\nb"]),
        (r"a\.b", ["a.b"]),
        ("a+", ["a", "aa", "aaa"]),
        (r"a\+", ["a+"]),
        ("a[.+]", ["a.", "a+"]),
        ("[a-z]", ["a", "b"]),
        ("a\n", ["a\n"]),
        (r"a\n", ["a\n"]),
    ],
)
def test_signs_of_patterns_are_letters_after_a_backslash(pattern, accepted):
    letters = "ab.+\n"
    automaton = Automaton.from_regex(pattern, letters)
    found = []
    for length in (1, 2, 3):
        texts = np.array(list(itertools.product(range(5), repeat=length)))
        accepts = automaton.accepting[np.asarray(automaton.run(texts))]
        found += ["".join(letters[i] for i in text) for text in texts[accepts]]
    assert found == accepted


def test_a_word_given_twice_is_one():
    once = Automaton.from_words(["ab", "ca"], LETTERS, match="which")
    twice = Automaton.from_words(["ab", "ca", "ab"], LETTERS, match="which")
    assert set(twice.names) == {"ab", "ca", "none", "several"}
    assert twice.names == once.names
    np.testing.assert_array_equal(twice.transitions, once.transitions)


def test_names_in_a_list_make_a_pytree():
    named = Automaton(np.array([[0, 1], [1, 0]]), names=["even", "odd"])
    assert named.names == ("even", "odd")
    assert int(jax.jit(lambda x: x.run(jnp.array([1, 1, 1])))(named)) == 1


def test_which_word_is_named():
    automaton = Automaton.from_words(WORDS, LETTERS, match="which")
    reference = MarkovReference(np.log(np.ones(3) / 3), np.log(np.ones((3, 3)) / 3), tuple(LETTERS))
    named = {
        text: automaton.names[int(automaton.run(reference.tokens(text)))]
        for text in ("bab", "bbb", "bca", "caab")
    }
    assert named == {"bab": "ab", "bbb": "none", "bca": "ca", "caab": "several"}


def test_the_smallest_automaton_of_a_large_one():
    # Counting to 6 and asking whether it is even needs two states.
    count = Automaton(np.array([[i, (i + 1) % 6] for i in range(6)]))
    smaller, became = count.minimized(np.arange(6) % 2 == 0)
    assert smaller.transitions.tolist() == [[0, 1], [1, 0]]
    assert became.tolist() == [0, 1, 0, 1, 0, 1]


EVEN = MarkovReference(np.log([0.5, 0.5]), np.log(np.full((2, 2), 0.5)), ("a", "b"))
SWITCH = Automaton(np.array([[0, 1], [1, 0]]))


def test_the_empty_prefix_is_the_beginning():
    target = kt.solve_on_automaton(EVEN, SWITCH, [0.0, 1.0], 1.0, length=2)
    # Every first token is followed by one that leads to either state.
    for prefix in ("", [], np.zeros(0, int)):
        np.testing.assert_allclose(target.conditionals(prefix), np.log([0.5, 0.5]), rtol=1e-6)
    lean = kt.solve_on_automaton(EVEN, SWITCH, [0.0, 1.0], 1.0, length=1)
    np.testing.assert_allclose(lean.conditionals(""), -np.log1p(np.exp([1.0, -1.0])), rtol=1e-5)
    assert EVEN.log_prob("") == EVEN.log_prob([]) == 0
    assert int(SWITCH.run([])) == 0
    np.testing.assert_array_equal(EVEN.log_prob(np.array(["ab", "ba"])), EVEN.log_prob(["ab"] * 2))


def test_states_that_no_text_ends_in_have_no_mass():
    never = Automaton(np.array([[0, 0], [1, 1]]))
    target = kt.solve_on_automaton(EVEN, never, [0.0, 5.0], 0.5, length=3)
    assert float(target.expected_reward) == 0.0
    # No divergence finds a text there; one that is only impossible for the reference it may find.
    nothing = kt.solve_on_automaton(EVEN, never, [0.0, 5.0], 0.5, kt.ForwardKL(), length=3)
    assert float(nothing.expected_reward) == 0.0
    with np.errstate(divide="ignore"):
        only_a = MarkovReference(np.log([1.0, 0.0]), np.log([[1.0, 0.0], [1.0, 0.0]]))
    has_b = Automaton(np.array([[0, 1], [1, 1]]))
    condensed = kt.solve_on_automaton(only_a, has_b, [0.0, 5.0], 0.5, kt.ForwardKL(), length=3)
    assert kt.Status.CONDENSED in kt.Status(int(condensed.status))
    assert float(condensed.expected_reward) > 4
    assert np.isnan(condensed.log_prob([0, 1, 0]))
    assert np.isfinite(condensed.log_prob([0, 0, 0]))
    for call in (
        lambda x: x.sample(key=jax.random.key(0), num_samples=2),
        lambda x: x.conditionals([0]),
        lambda x: x.next_log_probs([0, 0, 0]),
        lambda x: x.likeliest(2),
        lambda x: x.marginals(),
    ):
        with pytest.raises(ValueError, match="the target has mass in state 1, where the reference"):
            call(condensed)
        for x in jax.tree.leaves(jax.jit(call)(condensed)):
            assert (np.asarray(x) == -1).all() or np.isnan(x).all()
    assert np.isnan(condensed.entropy)


def test_nothing_follows_what_no_text_begins_with():
    with np.errstate(divide="ignore"):
        begins_with_a = MarkovReference(np.log([1.0, 0.0]), np.log(np.full((2, 2), 0.5)))
    target = kt.solve_on_automaton(begins_with_a, SWITCH, [0.0, 1.0], 1.0, length=3)
    for policy in (target, mara_on_automaton(target, 1.0)):
        assert np.isnan(policy.conditionals([1])).all()
        after = np.asarray(policy.next_log_probs([[1, 0, 0], [0, 1, 0]]))
        np.testing.assert_array_equal(np.isnan(after[:, :, 0]), [[0, 1, 1], [0, 0, 0]])
        np.testing.assert_array_equal(policy.conditionals([0, 1]), after[1, 2])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_rewards_of_states_that_no_text_reaches_are_refused(bad):
    never = Automaton(np.array([[0, 0], [1, 1]]))
    reward = np.array([0.0, bad], np.float32)
    with pytest.raises(ValueError, match="reward"):
        kt.solve_on_automaton(EVEN, never, reward, 0.5, length=3)
    solve = jax.jit(lambda x: kt.solve_on_automaton(EVEN, never, x, 0.5, length=3))
    usual = jax.jit(lambda x: kt.solve(kt.Objective(x, np.log([0.5, 0.5]), 0.5)))(reward)
    assert int(usual.status) != 0
    assert int(solve(reward).status) == int(usual.status)


@pytest.mark.precise
@pytest.mark.broad
@pytest.mark.parametrize("order", [1, 2])
def test_lengths_equal_enumeration(order):
    reference = MarkovReference.fit(["ab", "abab", "b"], order=order, smoothing=0.5, end="$")
    automaton = Automaton(np.array([[0, 1, 2], [2, 1, 0], [1, 0, 2]]))
    reward, beta, length = np.array([0.0, 1.0, -np.inf]), np.array([0.2, 1.0]), 5
    target = kt.solve_on_automaton(reference, automaton, reward, beta, length=length)
    texts = np.array(list(itertools.product(range(3), repeat=length)))
    probs = np.exp(np.asarray(target.log_prob(texts), np.float64))
    lengths = np.array([[*text, 2].index(2) for text in texts.tolist()])
    wanted = [probs[:, lengths == n].sum(-1) for n in range(length + 1)]
    close(target.length_marginal(), np.stack(wanted, -1), target.value.dtype)

    @jax.jit
    @jax.grad
    def slopes(reward):
        return kt.solve_on_automaton(reference, automaton, reward, 0.2, length=length).entropy

    assert np.isfinite(slopes(np.array([0.0, 1.0, 0.5]))).all()
    with pytest.raises(ValueError, match="this one has none: every text has 3 tokens"):
        kt.solve_on_automaton(EVEN, SWITCH, [0.0, 1.0], 1.0, length=3).length_marginal()
