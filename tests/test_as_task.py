"""The one intake of problems: every form of a problem, for every verb that takes one."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import kltarget as kt
from kltarget import plot, targets, tasks
from kltarget.divergences.names import EXAMPLES, named
from kltarget.recipes import Recipe
from kltarget.verification import RECIPES

REWARD = np.array([1.0, 1.0, 0.0])
LOG_REF = np.log([0.3, 0.02, 0.68])


def forms(folder):
    """The problem of `one-two` in each form that a caller may hold."""
    path = folder / "answers.csv"
    rows = [f"{label},{r},{p}" for label, r, p in zip("ABC", REWARD, np.exp(LOG_REF), strict=True)]
    path.write_text("\n".join(["answer,reward,prob", *rows]), encoding="utf-8")
    return {
        "task": tasks.load("one-two"),
        "name": "one-two",
        "path": path,
        "text": str(path),
        "objective": kt.Objective(REWARD, LOG_REF, 0.1, kt.ForwardKL()),
        "arrays": (REWARD, LOG_REF),
        "jax": (jnp.asarray(REWARD), jnp.asarray(LOG_REF)),
        "lists": (REWARD.tolist(), LOG_REF.tolist()),
        "dictionary": {"reward": REWARD, "log_ref": LOG_REF},
        "frame": pd.DataFrame({"reward": REWARD, "prob": np.exp(LOG_REF)}),
        "named frame": pd.DataFrame(
            {"reward": REWARD, "prob": np.exp(LOG_REF)}, index=pd.Index([*"ABC"], name="reply")
        ),
    }


FORMS = ("task", "name", "path", "text", "objective", "arrays", "jax", "lists")
FORMS += ("dictionary", "frame", "named frame")


@pytest.fixture(params=FORMS)
def problem(request, tmp_path):
    return forms(tmp_path)[request.param]


def test_every_form_is_the_same_problem(problem):
    task = tasks.as_task(problem)
    np.testing.assert_array_equal(task.reward, REWARD)
    np.testing.assert_allclose(task.log_ref, LOG_REF, rtol=1e-6)
    np.testing.assert_allclose(np.exp(task.log_ref).sum(), 1, rtol=1e-15)
    np.testing.assert_array_equal(task.modes, [0, 1, -1])
    assert list(task.mode_names.values()) == [task.labels[0], task.labels[1]]
    renamed = tasks.as_task(problem, modes=[0, 0, 3], labels=["a", "b", "c"])
    assert renamed.mode_names == {0: "a", 3: "c"}


def test_sweeps_take_it(problem):
    data = kt.sweep(problem, beta=0.1, divergence="reverse-kl")
    np.testing.assert_allclose(data.mode_mass.values, [0.937410, 0.062494], rtol=1e-4)
    assert str(data.divergence.values) == "reverse-kl"
    found = kt.phase_boundaries(problem, modes=[0, -1, 1], divergence=kt.Alpha(0.5))
    assert str(found.divergence.values) == "alpha:0.5"


def test_the_divergence_of_an_objective_is_the_default(tmp_path):
    given = forms(tmp_path)
    assert str(kt.sweep(given["objective"], beta=0.1).divergence.values) == "forward-kl"
    assert str(kt.sweep(given["arrays"], beta=0.1).divergence.values) == "reverse-kl"


@pytest.mark.slow
def test_verify_takes_it(problem):
    options = {"policies": ["tabular"], "recipes": RECIPES[:1], "num_seeds": 1, "beta": [0.5]}
    report = kt.verify(problem, key=jax.random.key(0), reward_scale=[1.0], **options)
    assert report.passed, str(report)
    assert report.runs[0].mode_labels == tuple(tasks.as_task(problem).mode_names.values())


def test_implied_targets_take_it(problem):
    recipe = Recipe("loss", "k3", baseline="mean", group_size=8)
    target = kt.implied_target(recipe, problem, beta=0.35)
    plain = kt.implied_target(recipe, REWARD, LOG_REF, beta=0.35)
    np.testing.assert_allclose(target.log_probs, plain.log_probs, rtol=1e-5)


def test_figures_take_it(problem):
    labels = list(tasks.as_task(problem).labels)
    ax = plot.target(kt.solve(kt.Objective(REWARD, LOG_REF, 0.1)), problem=problem)
    assert len(ax.get_xticklabels()) == 3
    if isinstance(problem, kt.Objective):
        return  # an objective is drawn over its own β alone
    ax = plot.beta_path(problem, beta=[0.1, 1.0])
    assert [text.get_text() for text in ax.get_legend().get_texts()][:2] == labels[:2]
    ax = plot.ratio(problem, beta=[0.1, 1.0])
    assert ax.get_ylabel() == f"odds of {labels[0]} to {labels[1]}"
    assert [tick.get_text()[:1] for tick in plot.target(problem).get_xticklabels()] == [
        label[:1] for label in labels
    ]


def test_sequences_bring_their_space():
    space = kt.SequenceSpace(2, 2)
    task = tasks.as_task((np.arange(4.0), np.log(np.ones(4) / 4)), space=space)
    assert task.labels == ("0 0", "0 1", "1 0", "1 1")
    own = tasks.load("words-3")
    assert tasks.as_task("words-3") is own
    assert tasks.as_task(own, space=own.space) is own
    moved = tasks.as_task(own, space=kt.SequenceSpace(26**3, 1))
    assert (moved.policy, moved.params, moved.alphabet) == (None, None, None)
    token = Recipe("loss", "k3", "token")
    target = kt.implied_target(token, task, beta=0.5)
    plain = kt.implied_target(token, task.reward, task.log_ref, space=space, beta=0.5)
    np.testing.assert_array_equal(target.log_probs, plain.log_probs)


def test_a_task_without_modes_gets_those_of_its_right_outcomes():
    task = tasks.Task("t", "", LOG_REF, REWARD, ("a", "b", "c"), np.full(3, -1))
    assert tasks.as_task(task).mode_names == {0: "a", 1: "b"}


@pytest.mark.parametrize(
    ("problem", "options", "error", "message"),
    [
        (3, {}, TypeError, r"problem must be .* got int"),
        ((REWARD,), {}, TypeError, "problem must be"),
        ("one-three", {}, ValueError, "'one-three' is neither a file nor a task: the tasks are"),
        (
            "two-goals",
            {},
            ValueError,
            "'two-goals' is not a list of outcomes: .*load_mdp, or",
        ),
        ("cycle", {}, ValueError, "kltarget.tasks.load_game, or kltarget verify cycle"),
        ("one-three.xyz", {}, tasks.TableError, "unknown extension '.xyz'"),
        ("missing.csv", {}, tasks.TableError, "missing.csv"),
        ("one-two", {"columns": {"reward": "score"}}, TypeError, "columns are for a table"),
        ((REWARD, LOG_REF), {"columns": {"reward": "r"}}, TypeError, "columns are for a table"),
        ((REWARD[:2], LOG_REF), {}, ValueError, "reward has 2 outcomes and log_ref has 3"),
        ((REWARD * np.nan, LOG_REF), {}, ValueError, "reward must be finite or -inf"),
        ((REWARD, LOG_REF + 1), {}, ValueError, r"log_ref has mass 2\.718, not 1: pass"),
        ((REWARD[None], LOG_REF), {}, ValueError, r"problem has batch shape \(1,\)"),
        ("one-two", {"modes": [0, 1]}, ValueError, "modes has shape"),
        ("one-two", {"modes": [0.0, 1.0, 2.0]}, TypeError, "modes must be integer labels"),
        ("one-two", {"labels": ["a"]}, ValueError, "labels has 1 entries, but there are 3"),
        ("one-two", {"space": kt.SequenceSpace(2, 2)}, ValueError, "space has 4 sequences"),
    ],
)
def test_errors_name_the_argument(problem, options, error, message):
    with pytest.raises(error, match=message):
        tasks.as_task(problem, **options)


def test_what_is_no_one_problem_is_refused():
    with pytest.raises(ValueError, match="has a reference that is no distribution"):
        tasks.as_task(kt.mara(kt.Objective(REWARD, LOG_REF, 1.0), 0.9, method="substitute"))
    several = kt.Objective(REWARD, LOG_REF, [0.1, 1.0])
    assert tasks.as_task(several).num_outcomes == 3, "beta is not the problem's"
    for make in (lambda x: kt.Objective(x, LOG_REF, 1.0), lambda x: (x, LOG_REF)):
        with pytest.raises(TypeError, match="problem is traced"):
            jax.jit(lambda x, make=make: tasks.as_task(make(x)).reward)(REWARD)


@pytest.mark.parametrize("slug", EXAMPLES)
def test_slugs_and_names_are_inverse(slug):
    divergence = named(slug)
    assert divergence.slug == slug
    assert type(named(divergence.slug)) is type(divergence)
    assert divergence.title.startswith(divergence.name)
    assert (":" in slug) == ("(" in divergence.title)


@pytest.mark.parametrize("parameter", [0.1, 1 / 3, 1e-9, 2.0, 1234567.0])
def test_slugs_lose_no_digit_of_a_parameter(parameter):
    for divergence in (kt.Alpha(parameter), kt.Tsallis(parameter)):
        assert named(divergence.slug) == divergence


def test_slugs_of_others():
    le_cam = kt.FDivergence(lambda u: (1 - u) ** 2 / (2 * (1 + u)), name="Le Cam")
    assert (le_cam.slug, le_cam.title) == ("Le Cam", "Le Cam")
    with pytest.raises(ValueError, match="divergence has several parameters"):
        _ = kt.Alpha(jnp.array([0.5, 2.0])).slug


def test_summaries_take_it(problem):
    if isinstance(problem, kt.Objective):
        with pytest.raises(TypeError, match="have a beta"):
            kt.summarize(problem, beta=0.1)
        return
    summary = kt.summarize(problem, beta=0.1)
    task = tasks.as_task(problem)
    assert summary.rows[0].label == task.labels[0]
    assert summary.best_mass == pytest.approx(0.999903, rel=1e-4)
    with pytest.raises(TypeError, match="none is guessed: give beta="):
        kt.summarize(problem)
    other = kt.summarize(problem, beta=0.1, divergence=kt.ForwardKL())
    assert other.divergence == "forward KL"


def test_a_task_is_solved_at_a_beta():
    task = tasks.load("one-two")
    target = kt.solve(task, beta=[0.1, 1.0], divergence=kt.ForwardKL())
    expected = kt.solve(task.objective(np.array([0.1, 1.0]), divergence=kt.ForwardKL()))
    np.testing.assert_array_equal(target.log_probs, expected.log_probs)
    with pytest.raises(TypeError, match=r"a Task has no beta.*solve\(problem, beta=0.1\)"):
        kt.solve(task)
    with pytest.raises(TypeError, match="leave out beta, divergence"):
        kt.solve(task.objective(0.1), beta=0.1, divergence=kt.ForwardKL())


def test_solve_takes_it(problem):
    if isinstance(problem, kt.Objective):
        with pytest.raises(TypeError, match="leave out beta"):
            kt.solve(problem, beta=0.1)
        return
    with pytest.raises(TypeError, match=r"has no beta, and none is guessed"):
        kt.solve(problem)
    probs = kt.solve(problem, beta=0.1).probs
    np.testing.assert_allclose(probs, [0.937410, 0.062494, 0.000096], atol=1e-6)


def test_what_is_no_problem_is_not_solved():
    for given in (3.0, np.zeros(3), None):
        with pytest.raises(TypeError, match="problem must be a kltarget"):
            kt.solve(given, beta=0.1)
    with pytest.raises(TypeError, match="problem must be a kltarget"):
        kt.solve(np.zeros(3))
    with pytest.raises(TypeError, match="pass the objective of this Target"):
        kt.solve(kt.solve("one-two", beta=0.1), beta=0.1)
    with pytest.raises(ValueError, match="neither a file nor a task"):
        kt.solve("bimodel", beta=0.1)


def test_a_batch_in_beta_prints_as_one_page():
    summaries = kt.summarize("one-two", beta=[0.01, 1.0])
    assert isinstance(summaries, tuple)
    page = str(summaries)
    assert page.splitlines()[0] == "Targets of reverse KL, 2 problems"
    assert page.count("equal rewards keep the reference's ratio") == 1, "said once"
    assert page.splitlines()[3].startswith("β = 0.01  ")
    assert summaries._repr_html_().count("<tr>") == 3
    twice = str(kt.summarize("one-two", beta=[0.1, 0.1]))
    assert "0: β = 0.1" in twice
    assert "1: β = 0.1" in twice


FAULTS = {
    "no rows": ({}, "there are no rows"),
    "lengths": ({"reward": [1.0], "prob": [0.5, 0.5]}, "differ in length: 'reward' 1, 'prob' 2"),
    "shape": ({"reward": [[1.0]]}, r"column 'reward' has shape \(1, 1\)"),
    "NaN": ({"reward": [1.0, np.nan], "prob": [0.5, 0.5]}, "column 'reward', row 2: .* NaN"),
    "missing": ({"answer": ["a"], "prob": [1.0]}, "no reward column: none of 'answer', 'prob'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_table_in_memory_says_what_is_wrong(fault):
    content, message = FAULTS[fault]
    with pytest.raises(tasks.TableError, match=message):
        tasks.as_task(content)


def test_columns_of_a_table_in_memory_can_be_named():
    content = {"text": ["a", "b"], "x": [1, 0], "y": [3, 1], "kind": ["u", "v"]}
    columns = {"reward": "x", "count": "y", "modes": "kind", "outcome": "text"}
    task = tasks.as_task(content, columns=columns)
    assert task.labels == ("a", "b")
    np.testing.assert_allclose(np.exp(task.log_ref), [0.75, 0.25])
    assert task.description == "2 outcomes from a dictionary"
    assert task.modes.tolist() == [0, 1]


OF_ONE_OBJECTIVE = {
    "mara": lambda problem: kt.mara(problem, threshold=1),
    "collapse_beta": kt.collapse_beta,
    "flip_beta": lambda problem: kt.flip_beta(problem, 0, 1),
    "greedy_limit": targets.greedy_limit,
    "reference_limit": targets.reference_limit,
}


@pytest.mark.parametrize("name", OF_ONE_OBJECTIVE)
def test_what_is_no_objective_is_told_how_to_become_one(name):
    table = {"reward": [1.0, 0.0], "prob": [0.5, 0.5]}
    task = tasks.load("one-two")
    given = {
        "str 'bimodal': pass kltarget.tasks.as_task('bimodal').objective(beta)": "bimodal",
        "dict: pass kltarget.tasks.as_task(problem).objective(beta)": table,
        "DataFrame: pass kltarget.tasks.as_task(problem).objective(beta)": pd.DataFrame(table),
        "tuple: pass kltarget.tasks.as_task(problem).objective(beta)": (1, 0),
        "Target: pass the objective of this Target": kt.solve(task.objective(1.0)),
    }
    given["Task: a Task has no β, and none is guessed: pass task.objective(beta)"] = task
    for said, problem in given.items():
        with pytest.raises(TypeError, match=rf"^{name} takes a kltarget\.Objective") as error:
            OF_ONE_OBJECTIVE[name](problem)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    tasks.as_task(table).objective(1.0)
