"""What results look like in a notebook, and as frames: every number is that of the arrays."""

import html.parser

import jax
import numpy as np
import pandas as pd
import pytest

import kltarget as kt
from kltarget import tasks

LOG_REF = np.log(np.array([0.3, 0.02, 0.68]))
REWARD = np.array([1.0, 1.0, 0.0])


class Cells(html.parser.HTMLParser):
    """The rows of a page's tables."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")
        if self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def rows_of(result):
    return Cells(result._repr_html_()).rows


@pytest.mark.parametrize("beta", [0.3, [0.1, 1.0], [[0.1, 1.0], [2.0, 5.0]]])
def test_frames_hold_the_arrays(beta):
    target = kt.solve(kt.Objective(REWARD, LOG_REF, np.array(beta)))
    frame = target.to_dataframe()
    shape = target.log_probs.shape
    axes = [name for name in frame if name.startswith("row")]
    assert axes == {1: [], 2: ["row"], 3: ["row 0", "row 1"]}[len(shape)]
    places = tuple(frame[name].to_numpy() for name in (*axes, "outcome"))
    np.testing.assert_array_equal(frame.log_prob, np.asarray(target.log_probs)[places])
    np.testing.assert_array_equal(frame.beta, np.asarray(target.objective.beta)[places[:-1]])
    np.testing.assert_array_equal(frame.reward, REWARD[places[-1]])
    np.testing.assert_allclose(frame.log_ref, LOG_REF[places[-1]], rtol=1e-6)
    assert len(frame) == target.log_probs.size


def test_a_page_begins_with_the_likeliest_and_says_how_many_are_left_out():
    reward = np.append(np.full(11, -np.inf), [0.0, 1.0])
    target = kt.solve(kt.Objective(reward, np.log(np.full(13, 1 / 13)), 1.0))
    head, first, second, third, *_, last = rows_of(target)
    assert head == ["outcome", "reward", "reference", "target"]
    share = np.e / (1 + np.e)
    assert [first[0], first[3]] == ["12", f"{share:.4f}"]
    assert [second[0], second[3]] == ["11", f"{1 - share:.4f}"]
    assert third[1:] == last[1:] == ["-∞", "0.0769", "0"]
    page = target._repr_html_()
    assert "and 3 more outcomes" in page
    assert f"expected reward {share:.4g}" in page


def test_a_batch_is_a_row_each_with_what_is_wrong_with_it():
    # Under a trace a bad coefficient is no error but a status.
    def solved(beta):
        return kt.solve(kt.Objective(REWARD, LOG_REF, beta, kt.TotalVariation()))

    target = jax.jit(solved)(np.array([0.1, -1.0]))
    _, good, bad = rows_of(target)
    moved = f"{float(target.divergence_value[0]):.4g}"
    assert good == ["0", "0.1", "1", moved, "TRUNCATED|NOT_UNIQUE"]
    assert bad[2:4] == ["nan", "nan"]
    assert bad[4].endswith("INVALID_BETA")


def test_a_recipe_shows_its_own_reward_and_beta():
    recipe = kt.recipe("trl-grpo")
    target = kt.implied_target(recipe, REWARD, LOG_REF, beta=0.1)
    frame = target.to_dataframe()
    np.testing.assert_array_equal(frame.reward, REWARD)
    np.testing.assert_allclose(frame.beta, 0.1, rtol=1e-6)
    assert f"effective β {float(target.effective_beta):.4g}" in target._repr_html_()


@pytest.mark.parametrize("recipe", [kt.Recipe(), kt.recipe("trl-grpo"), kt.Recipe("loss", "k2")])
def test_a_recipe_prints_as_it_is_written(recipe):
    from kltarget.recipes import Recipe

    assert eval(repr(recipe), {"Recipe": Recipe}) == recipe
    frame = recipe.to_dataframe().set_index("setting")
    assert frame.value["level"] == recipe.level
    told = dict(rows_of(recipe)[1:])
    assert set(told) == {"place", "estimator", "level", "baseline", *frame.index[~frame.default]}


def test_tasks_show_their_likeliest_outcomes_and_escape_their_labels():
    task = tasks.Task("own", "<i>", LOG_REF, REWARD, ["<b>", "x", "y"], np.array([0, 1, -1]))
    assert "<b>y" not in task._repr_html_()
    assert "&lt;b&gt;" in task._repr_html_()
    assert rows_of(task)[1:] == [
        ["y", "0", "0.6800", ""],
        ["<b>", "1", "0.3000", "<b>"],
        ["x", "1", "0.0200", "x"],
    ]
    frame = task.to_dataframe()
    np.testing.assert_array_equal(frame.log_ref, task.log_ref)
    assert list(frame.label) == list(task.labels)


def test_large_results_print_in_a_line():
    task = tasks.load("primes")
    for x in (task, kt.solve(task, beta=1.0), task.objective(1.0)):
        assert len(repr(x)) < 300
        assert "\n" not in repr(x)


def test_under_a_trace_there_is_no_table():
    def shown(beta):
        target = kt.solve(kt.Objective(REWARD, LOG_REF, beta))
        assert target._repr_html_() is None
        assert "Target(" in repr(target)
        with pytest.raises(TypeError, match="to_dataframe needs numbers"):
            target.to_dataframe()
        return target.value

    jax.jit(shown)(0.3)


def test_mixtures_show_their_components():
    weights, means = np.array([0.7, 0.3]), np.array([[-2.0, 0.0], [2.0, 1.0]])
    covariances = np.array([[[0.64, 0.1], [0.1, 0.25]], [[0.36, 0.0], [0.0, 4.0]]])
    mixture = kt.GaussianMixture(np.log(weights), means, covariances)
    assert repr(mixture).startswith("GaussianMixture(log_weights=[")
    assert "cholesky=" in repr(mixture)
    assert "\n" not in repr(mixture)
    frame = mixture.to_dataframe()
    assert list(frame) == ["component", "weight", "mean 0", "mean 1", "std 0", "std 1"]
    np.testing.assert_allclose(frame.weight, weights, rtol=1e-6)
    np.testing.assert_allclose(frame[["mean 0", "mean 1"]], means, rtol=1e-6)
    spread = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    np.testing.assert_allclose(frame[["std 0", "std 1"]], spread, rtol=1e-6)
    assert rows_of(mixture)[1] == ["0", "0.7000", "-2", "0", "0.8", "0.5"]
    many = kt.GaussianMixture(np.log(np.full((2, 12), 1 / 12)), np.zeros((12, 6)), np.ones((12, 6)),
                              covariance_type="diag")  # fmt: skip
    assert len(many.to_dataframe()) == 24
    assert "and 14 more components and 2 more dimensions" in many._repr_html_()
    assert len(rows_of(many)[0]) == 2 + 1 + 2 * 4

    def shown(means):
        p = kt.GaussianMixture(np.log(weights), means, covariances)
        assert p._repr_html_() is None
        with pytest.raises(TypeError, match="to_dataframe needs numbers"):
            p.to_dataframe()
        return p.mean

    jax.jit(shown)(means)


def test_a_diagnosis_prints_in_a_line():
    frame = pd.DataFrame({"answer": ["1", "2"] * 8, "reward": [1, 0] * 8})
    frame = frame.assign(completion=frame.answer, prompt="?", step=1, group_id=0, logp=None)
    found = kt.diagnose(frame.assign(ref_logp=-0.7), kt.Recipe(), beta=0.5)
    assert found.headline in repr(found)
    assert "\n" not in repr(found)
    assert len(repr(found)) < 400
    assert list(found.to_dataframe().prompt) == ["?"]
    assert f"<h1>{found.headline}</h1>" in found._repr_html_()
