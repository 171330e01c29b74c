"""What objects that hold tables print as, and what functions of lists say to targets over texts."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import kltarget as kt
from kltarget.spaces import MDP, Automaton, MarkovReference
from kltarget.tasks import as_task

ROWS = np.log(np.full((5, 5), 0.2, np.float32))


def test_tables_print_as_their_type_and_shape():
    reference = MarkovReference(ROWS[0], ROWS, tuple("abcde"))
    first = "MarkovReference(log_initial=float32[5], log_transition=float32[5, 5]"
    assert repr(reference) == f"{first}, alphabet=<5 names>)"
    count = Automaton.counter([1], 5, most=9)
    assert repr(count).startswith("Automaton(transitions=int32[10, 5]")
    mdp = MDP(np.ones((1, 2, 1), np.float32), np.array([[0.0, 1.0]], np.float32), 0.9)
    assert "transition=float32[1, 2, 1]" in repr(mdp)
    assert "discount=0.9" in repr(mdp)


def solved_texts(beta):
    rows = ROWS[:2, :2] + np.float32(np.log(2.5))
    count = Automaton.counter([1], 2, most=9)
    return kt.solve_on_automaton(
        MarkovReference(rows[0], rows), count, np.arange(10), beta, length=9
    )


def test_targets_over_texts_print_in_a_few_lines():
    text = repr(solved_texts(np.array([0.5, 1.0], np.float32)))
    assert "beta=[0.5, 1. ]" in text
    assert "divergence=ReverseKL()" in text
    assert "length=9" in text
    assert "log_ref=float32[10]" in text
    assert len(text) < 700
    # Nothing is known of numbers under a trace.
    seen = []
    jax.eval_shape(lambda beta: seen.append(repr(solved_texts(beta))), np.float32(0.5))
    assert "beta=float32[]" in seen[0]


@pytest.mark.parametrize("function", [kt.solve, kt.summarize, kt.collapse_beta, as_task])
def test_functions_of_lists_say_what_to_pass_of_a_target_over_texts(function):
    target = solved_texts(0.5)
    with pytest.raises(TypeError, match=r"got AutomatonTarget: .*states\.objective"):
        function(target)
    assert function is kt.collapse_beta or function(target.states.objective) is not None
