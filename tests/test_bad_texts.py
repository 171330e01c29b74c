"""What is wrong with a reference, an automaton or a target of texts is named."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from test_automata import EVEN, SWITCH

import kltarget as kt
from kltarget.spaces import Automaton, MarkovReference
from kltarget.targets.automata import over_modes, token_local_on_automaton

LOG = np.errstate(divide="ignore")(np.log)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Automaton(np.array([[0, 2]])), "leads from state 0 to 2, but there are 1"),
        (lambda: Automaton(np.array([0, 1])), "it needs states and tokens"),
        (lambda: Automaton(np.array([[0]]), np.array([1])), "accepting must be a boolean"),
        (lambda: SWITCH.complement(), "this automaton has none"),
        (lambda: SWITCH.product(Automaton(np.array([[0]]))), "other reads 1 tokens"),
        (lambda: Automaton.from_words([], "ab"), "words must be one or more"),
        (lambda: Automaton.from_words(["ax"], "ab"), "'x' of 'ax' is not in the alphabet"),
        (lambda: Automaton.from_words(["a", ""], "ab"), "one of them is empty"),
        (lambda: Automaton.from_words(["a"], "ab", match="is"), "match must be"),
        (lambda: Automaton.from_words(["a"], "aba"), "alphabet has 'a' twice, at 0 and 2"),
        (lambda: Automaton.from_regex("a", "aba"), "alphabet has 'a' twice, at 0 and 2"),
        (lambda: Automaton.from_regex("(a", "ab"), r"pattern '\(a'"),
        (lambda: Automaton.from_regex("ax", "ab"), "'x' is not in the alphabet"),
        (lambda: Automaton.from_regex(r"a\.", "ab"), "'.' is not in the alphabet"),
        (lambda: Automaton.from_regex(r"a\$", "ab$", end="$"), "'.' is the end"),
        (lambda: Automaton.from_regex("a", "ab", end="$"), "end '.' is not in the alphabet"),
        (
            lambda: Automaton.from_words(["a"], "ab", match="equals", end="$"),
            "end '.' is not in the alphabet",
        ),
        (
            lambda: Automaton.from_words(["a$"], "ab$", match="equals", end="$"),
            "'a.' contains the end",
        ),
        (lambda: Automaton(np.array([[0]]), names=["a", "b"]), "names must be one for each of 1"),
        (lambda: MarkovReference.fit(["ab"], end="$$"), "end must be one letter"),
        (lambda: SWITCH.minimized([0, 1, 0]), r"labels has shape \(3,\)"),
        (lambda: SWITCH.run([[0, 1], [0, 2]]), r"from 0 to 1, got 2 at index \(1, 1\)"),
        (lambda: SWITCH.run(1), "tokens must have an axis of tokens"),
        (lambda: Automaton.counter([2], 2, most=1), "tokens must be from 0 to 1"),
        (lambda: Automaton.counter([], 2, most=1), "tokens must be from 0 to 1"),
        (lambda: Automaton.counter([1], 2, most=1.5), "most must be an integer of 1 or more"),
        (lambda: MarkovReference(np.log([0.5, 0.5]), np.log([[0.5, 0.5]])), "log_transition has"),
        (lambda: MarkovReference(np.log([0.5, 0.5]), np.log(np.ones((2, 2)))), "not normalised"),
        (lambda: dataclasses.replace(EVEN, end=1), "'a' follows the end after 'b'"),
        (
            lambda: MarkovReference(
                np.log(np.full((2, 2), 0.25)), np.log(np.full((2, 2, 2), 0.5)), None, 0
            ),
            "log_initial: 1 follows the end after 0,",
        ),
        (
            lambda: MarkovReference(
                LOG([[0.5, 0.0], [0.25, 0.25]]), np.log(np.full((2, 2, 2), 0.5)), None, 0
            ),
            "log_transition: 1 follows the end after 0, 0,",
        ),
        (lambda: MarkovReference.fit(["b", "a$"], end="$"), "text 1 contains the end '.' at 1"),
        (lambda: MarkovReference.fit([]), "texts must be"),
        (lambda: MarkovReference.fit(["ab"], order=3), "of 3 letters or more"),
        (lambda: MarkovReference.fit(["ab"], order=1.5), "order must be an integer of 1 or more"),
        (lambda: MarkovReference.fit(["ab"], smoothing=np.nan), "smoothing must be 0 or more"),
        (
            lambda: EVEN.sample(key=jax.random.key(0), num_samples=-1, length=3),
            "num_samples must be an integer of 1 or more",
        ),
        (lambda: EVEN.spell([0, -1]), "there is no token -1 at index 1"),
        (lambda: EVEN.log_prob("axb"), "'x' is not in the alphabet"),
        (lambda: EVEN.log_prob([0, 2]), "there is no token 2"),
        (lambda: kt.solve_on_automaton(EVEN, SWITCH, [0.0], 1.0, length=3), "has 2 states"),
        (lambda: kt.solve_on_automaton(EVEN, SWITCH, [0.0, 1.0], 1.0, length=0), "length must be"),
        (
            lambda: kt.solve_on_automaton(EVEN, SWITCH, [[0.0, 1.0], [-np.inf] * 2], 1.0, length=3),
            "reward forbids every text that the reference makes at index 1",
        ),
        (
            lambda: kt.solve_on_automaton(
                EVEN, SWITCH, np.zeros((3, 2)), 1.0, length=3, step_reward=np.zeros((2, 2, 2))
            ),
            r"reward \(3,\) do not broadcast against those of step_reward and beta \(2,\)",
        ),
        (
            lambda: kt.solve_on_automaton(EVEN, SWITCH, [0.0, 1.0], -1.0, length=3),
            "beta",
        ),
        (
            lambda: kt.solve_on_automaton(EVEN, SWITCH, [0.0, 1.0], 1.0, length=3).log_prob("ab"),
            "texts have 3 tokens",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Automaton.from_words("ab", "ab"), r"put it in a list, \['ab'\]"),
        (lambda: Automaton.from_words([1], "ab"), "words must be strings, got 1"),
        (lambda: MarkovReference.fit(["a", b"b"]), "texts must be strings, got b'b' at 1"),
        (lambda: Automaton.counter("a", 2, most=1), "tokens must be integers"),
        (lambda: SWITCH.run("ab"), "MarkovReference.tokens makes them from strings"),
        (lambda: MarkovReference.fit("ab"), r"put it in a list, \[text\]"),
        (
            lambda: kt.solve_on_automaton(EVEN, SWITCH, SWITCH.accepting, 1.0, length=3),
            "reward is None, as accepting is of an automaton without accepting states",
        ),
        (
            lambda: kt.solve_on_automaton(SWITCH, EVEN, [0.0, 1.0], 1.0, length=3),
            "reference must be a MarkovReference, got Automaton",
        ),
        (lambda: over_modes("dates"), "task must be a TextTask, as tasks.load_texts gives"),
    ],
)
def test_what_is_of_another_type_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: kt.solve_on_automaton(EVEN, SWITCH, [0.0, 1.0], 1.0, length=None),
        lambda: Automaton.counter([0], 2, most=None),
        lambda: MarkovReference.fit(["ab"], order=None),
        lambda: EVEN.sample(key=jax.random.key(0), num_samples=None, length=3),
    ],
)
def test_numbers_that_are_needed_cannot_be_none(call):
    with pytest.raises(ValueError, match="must be an integer of 1 or more, got None"):
        call()


@pytest.mark.broad
@pytest.mark.parametrize("first", [[np.nan, 0.0], [1.0, 0.0], [np.log(0.9), np.log(0.3)]])
def test_a_reference_that_is_none_is_flagged_under_a_trace(first):
    """Texts' masses are normalised, so that they would not tell."""

    def solved(log_initial):
        chain = MarkovReference(log_initial, np.log(np.full((2, 2), 0.5)))
        texts = kt.solve_on_automaton(chain, SWITCH, [0.0, 1.0], 0.5, length=3)
        walked = {"length": 3, "step_reward": np.ones((2, 2))}
        steps = kt.solve_on_automaton(chain, SWITCH, [0.0, 1.0], 0.5, **walked)
        local = token_local_on_automaton(chain, SWITCH, [0.0, 1.0], 0.5, kt.ReverseKL(), length=3)
        targets = texts, steps, local
        numbers = [(x.expected_reward, x.entropy, x.log_prob([0, 1, 0])) for x in targets]
        return [x.status for x in targets], numbers

    status, numbers = jax.jit(solved)(np.array(first))
    assert all(kt.Status.INVALID_REFERENCE in kt.Status(int(x)) for x in status)
    assert np.isnan(numbers).all()
    status, numbers = jax.jit(solved)(np.log([0.9, 0.1]))
    assert not any(map(int, status))
    assert np.isfinite(numbers).all()
