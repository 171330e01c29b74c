"""The figure of what targets over texts keep shows the numbers that it is of."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh

import kltarget as kt
from kltarget import plot, tasks


@pytest.mark.broad
def test_rows_are_the_masses_of_modes_and_the_line_is_where_they_are_kept():
    task, beta = tasks.load_texts("no-repeats"), np.array([0.1, 0.5, 1.0, 4.0])
    ax = plot.kept_texts(task, beta=beta, least_probability=2e-3)
    problem = (task.reference, task.automaton, task.reward)
    target = kt.solve_on_automaton(*problem, beta, length=task.length)
    probs = np.asarray(target.states.probs, np.float64)
    mesh = next(x for x in ax.collections if isinstance(x, QuadMesh))
    shown = np.asarray(mesh.get_array(), np.float64).reshape(-1, beta.size)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(names) == sorted(task.mode_names.values())
    labels = {name: label for label, name in task.mode_names.items()}
    wanted = [probs[:, task.modes == labels[name]].sum(-1) for name in names]
    np.testing.assert_allclose(shown, wanted, rtol=1e-4)
    assert (np.diff(shown[:, 0]) <= 0).all()
    # Steps of the line across a row: one for each row that is kept at some β and not at others.
    line = next(x for x in ax.collections if isinstance(x, LineCollection))
    across = [x for x in line.get_segments() if x[0, 0] == x[1, 0]]
    kept = np.asarray(wanted) >= 2e-3
    assert len(across) == (kept.any(-1) & ~kept.all(-1)).sum() > 0
    assert ax.get_title(loc="left") or ax.get_title()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": [1.0]}, "beta must be two or more"),
        ({"beta": [1.0, 0.5]}, "that increase"),
        ({"least_probability": 0.0}, "least_probability must be between 0 and 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        plot.kept_texts("no-repeats", **options)
