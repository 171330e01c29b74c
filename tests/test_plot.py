"""What the figures show: the right numbers, at the right places, under names that can be read."""

import dataclasses
import io
import itertools
import subprocess
import sys

import jax
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread

import kltarget as kt
from kltarget import plot, tasks

BETAS = [0.1, 1.0]


def _legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def _graded(size, *, label="answer {}"):
    rng = np.random.default_rng(0)
    return tasks.Task(
        name="graded",
        description="normal log-weights and normal rewards",
        log_ref=np.asarray(kt.normalize(rng.normal(scale=2, size=size))),
        reward=rng.normal(size=size),
        labels=tuple(label.format(i) for i in range(size)),
        modes=np.arange(size),
    )


def test_bars_are_the_probabilities():
    task = tasks.load("one-two")
    target = kt.solve(task.objective(BETAS))
    ax = plot.target(target, labels=task.labels)
    heights = np.array([[bar.get_height() for bar in group] for group in ax.containers])
    expected = np.vstack([np.exp(task.log_ref), target.probs])
    np.testing.assert_allclose(heights, expected, rtol=1e-6)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        "1\nreward 1",
        "2\nreward 1",
        "other\nreward 0",
    ]
    assert _legend(ax) == ["reference", "β = 0.1", "β = 1"]
    assert ax.get_legend().get_title().get_text() == "reverse KL"
    assert ax.get_ylabel() == "probability"
    left = [[bar.get_x() for bar in group] for group in ax.containers]
    assert np.all(np.diff(left, axis=0) > 0), "bars of one outcome stand side by side"


def test_axes_are_shown_as_their_figure():
    ax = plot.target(tasks.load("one-two").objective(0.1))
    picture = imread(io.BytesIO(ax._repr_png_()), format="png")
    assert picture.shape[0] > 200
    assert picture[..., :3].std() > 0.05
    ax.remove()
    assert ax._repr_png_() is None
    # Axes of somebody's own are left as they are.
    own = Figure().add_subplot()
    assert not hasattr(plot.target(tasks.load("one-two").objective(0.1), ax=own), "_repr_png_")


def test_long_labels_turn_the_bars():
    task = _graded(6, label="The answer to this question is {}")
    ax = plot.target(task.objective(BETAS), problem=task)
    widths = np.array([[bar.get_width() for bar in group] for group in ax.containers])
    np.testing.assert_allclose(widths[0], np.exp(task.log_ref), rtol=1e-5)
    ticks = [tick.get_text() for tick in ax.get_yticklabels()]
    assert ticks[3].startswith("The answer to thi…")
    assert f"{task.reward[3]:.3g}"[-3:] in ticks[3]
    assert ax.get_xlabel() == "probability"
    assert ax.yaxis_inverted(), "the first outcome is on top"


def test_a_task_shows_reference_and_reward():
    ax = plot.target(tasks.load("one-two"))
    assert len(ax.containers) == 1
    assert _legend(ax) == ["reference"]


@pytest.mark.quick_only("13", "100", others="broad")
@pytest.mark.parametrize("size", [13, 100, 3000])
def test_many_outcomes_are_ranked_by_reference_mass(size):
    task = _graded(size)
    target = kt.solve(task.objective(BETAS))
    ax = plot.target(target, problem=task, top=5)
    order = np.argsort(-task.log_ref, kind="stable")
    reference = ax.lines[0].get_xydata()
    np.testing.assert_allclose(reference[:, 0], np.arange(1, size + 1))
    np.testing.assert_allclose(reference[:, 1], np.exp(task.log_ref[order]), rtol=1e-6)
    for points, probs in zip(ax.collections, np.asarray(target.probs), strict=True):
        offsets = np.ma.filled(points.get_offsets(), 0)
        np.testing.assert_allclose(offsets[:, 1], probs[order], rtol=1e-6, atol=1e-37)
    assert ax.get_yscale() == "log"
    assert (ax.get_xscale() == "log") == (size > 60)
    names = {text.get_text() for text in ax.texts}
    best = np.argsort(-np.asarray(target.probs).max(axis=0))[:5]
    assert names == {task.labels[i] for i in best}
    (strip,) = ax.child_axes
    assert strip.get_label() == "reward"
    shades = strip.collections[0].get_array().ravel()
    assert shades.argmax() == task.reward[order].argmax()
    assert shades.size == size
    assert _legend(ax)[-2].startswith("reward ")
    assert len(_legend(ax)) == 5


def test_well_rewarded_outcomes_are_large():
    task = tasks.load("words")
    ax = plot.target(task.objective(0.1), problem=task)
    sizes = ax.collections[0].get_sizes()
    order = np.argsort(-task.log_ref, kind="stable")
    right = task.reward[order] == 1
    assert sizes[right].min() > 5 * sizes[~right].max()


def test_labels_that_count_keep_their_order_and_need_no_names():
    task = tasks.load("bimodal")
    ax = plot.target(task.objective(BETAS), labels=task.labels)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), np.arange(100))
    assert not ax.texts
    # Indices that merely stand in for labels do not.
    ax = plot.target(task.objective(BETAS))
    assert ax.lines[0].get_ydata().argmax() == 0
    assert len(ax.texts) == 8


@pytest.mark.parametrize("label", ["{}", "answer {}", "a rather long completion, number {}"])
@pytest.mark.parametrize("width", [4.0, 6.4, 10.0])
def test_names_neither_overlap_nor_leave_the_axes(label, width):
    task = _graded(300, label=label.format("{:03d}x"))
    with mpl.style.context(plot.STYLE):
        ax = Figure(figsize=(width, 3.8)).add_subplot()
    plot.target(task.objective(BETAS), problem=task, ax=ax, top=6)
    ax.figure.canvas.draw()
    # Parallel lines of text at 40 degrees keep this distance from each other.
    starts = sorted(text.get_position()[0] for text in ax.texts)
    distance = np.diff(starts).min() * ax.get_window_extent().width * np.sin(np.deg2rad(40))
    assert distance > 0.75 * ax.texts[0].get_fontsize() * ax.figure.dpi / 72
    strip = ax.child_axes[0].get_window_extent()
    legend = ax.get_legend().get_window_extent()
    for text in ax.texts:
        # The extent of an annotation includes its line, which only widens it to the left or below.
        box = text.get_window_extent()
        # Below narrow axes, beside others.
        assert legend.y1 < 0 if width < 5 else box.x1 <= legend.x0 + 2
        assert box.x1 <= ax.figure.bbox.x1
        assert box.y1 <= strip.y0 + 2


@pytest.mark.broad
def test_exact_zeros_and_impossible_outcomes_have_no_point():
    log_ref = np.full(16, -np.inf)
    log_ref[:15] = np.log(1 / 15)
    reward = np.arange(16.0)
    reward[3] = -np.inf
    for divergence in (kt.ReverseKL(), kt.ForwardKL(), kt.ChiSquared()):
        target = kt.solve(kt.Objective(reward, log_ref, [0.05, 1.0], divergence))
        ax = plot.target(target)
        ax.figure.savefig(io.BytesIO(), format="png")
        for points, row in zip(ax.collections, np.asarray(target.log_probs), strict=True):
            hidden = np.ma.getmaskarray(points.get_offsets())[:, 1]
            assert (~hidden).sum() == (row > -700).sum() < 16


def test_many_betas_share_a_short_legend():
    ax = plot.target(tasks.load("one-two").objective(np.geomspace(0.01, 10, 31)))
    assert len(ax.containers) == 32
    assert len(_legend(ax)) == 6
    assert _legend(ax)[1] == "β = 0.01"
    assert _legend(ax)[-1] == "β = 10"


def test_shades_follow_beta_whatever_the_order():
    def shades(betas):
        ax = plot.target(tasks.load("one-two").objective(betas))
        return {group.get_label(): group[0].get_facecolor() for group in ax.containers}

    assert shades([0.1, 1.0, 0.5]) == shades([1.0, 0.5, 0.1])
    assert len(set(shades([0.1, 1.0, 0.5]).values())) == 4


@pytest.mark.broad
def test_divergences_side_by_side_are_told_apart():
    task = tasks.load("one-two")
    kinds = (kt.ReverseKL(), kt.ForwardKL())
    ax = plot.target([kt.solve(task.objective(0.1, divergence=d)) for d in kinds])
    assert _legend(ax) == ["reference", "β = 0.1, reverse KL", "β = 0.1, forward KL"]
    assert [bars.patches[0].get_hatch() or None for bars in ax.containers] == [None, None, "///"]
    family = (kt.Alpha(0.5), kt.Alpha(2.0))
    ax = plot.target([kt.solve(task.objective(0.1, divergence=d)) for d in family])
    assert [name.split("(")[-1] for name in _legend(ax)[1:]] == ["0.5)", "2)"]


def test_problem_replaces_what_mara_changed():
    task = tasks.load("one-two")
    target = kt.solve(kt.mara(task.objective(0.1), 1.0, method="augment"))
    own, original = plot.target(target), plot.target(target, problem=task)
    assert own.get_xticklabels()[1].get_text() == "1\nreward 1.27"
    assert original.get_xticklabels()[1].get_text() == "2\nreward 1"


def test_style_reaches_the_targets_only():
    for data in (tasks.load("one-two"), tasks.load("words")):
        ax = plot.target(data.objective(0.1), alpha=0.25)
        if data.name == "one-two":
            reference, target = (group[0].get_alpha() for group in ax.containers)
        else:
            reference, target = ax.lines[0].get_alpha(), ax.collections[0].get_alpha()
        assert (reference, target) == (None, 0.25)


def test_the_style_sheet_is_used_and_not_left_behind():
    before = dict(mpl.rcParams)
    ax = plot.target(tasks.load("one-two"))
    assert dict(mpl.rcParams) == before
    assert not ax.spines["top"].get_visible()
    assert ax.spines["left"].get_edgecolor() == to_rgba("#555555")


@pytest.mark.broad
def test_pyplot_is_left_alone():
    code = (
        "import io, sys; from kltarget import plot, tasks; "
        "ax = plot.target(tasks.load('words').objective(0.1)); ax.figure.savefig(io.BytesIO()); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_given_axes_are_drawn_into_and_returned():
    figure = Figure()
    _, right = figure.subplots(1, 2)
    assert plot.target(tasks.load("words"), ax=right) is right
    assert right.lines
    assert len(figure.axes) == 2


def test_mistakes_are_named():
    task = tasks.load("one-two")
    with pytest.raises(ValueError, match="labels: 2 outcomes, but the reward has 3"):
        plot.target(task, labels=["a", "b"])
    with pytest.raises(TypeError, match="a Task, an Objective, a Target or a sequence"):
        plot.target([0.3, 0.7])
    with pytest.raises(TypeError, match="a sequence of Targets"):
        plot.target([])
    scaled = kt.Objective(np.array([[1.0], [2.0]]) * task.reward, task.log_ref, 0.1)
    with pytest.raises(ValueError, match="reward differs within the batch"):
        plot.target(scaled)
    both = [
        kt.solve(x) for x in (task.objective(0.1), kt.Objective(-task.reward, task.log_ref, 0.1))
    ]
    with pytest.raises(ValueError, match="the targets belong to different problems"):
        plot.target(both)
    assert len(plot.target(both, problem=task).containers) == 3


@pytest.mark.broad
def test_the_figure_of_a_verification_is_no_wider_than_a_page():
    options = {"policies": ["tabular"], "num_seeds": 1, "beta": [0.3], "num_steps": 20}
    report = kt.verify("one-two", key=jax.random.key(0), **options)
    figure = plot.verification(report)
    assert figure.get_size_inches()[0] <= 6.4
    figure.canvas.draw()
    assert min(ax.get_position().width * figure.get_size_inches()[0] for ax in figure.axes) > 2.2
    # A mode that is gone is at the edge, not beyond it.
    gone = np.array(report.runs[0].mode_mass)
    gone[0] = 1e-9
    runs = (dataclasses.replace(report.runs[0], mode_mass=gone), *report.runs[1:])
    ax = plot.predicted_vs_reached(dataclasses.replace(report, runs=runs))
    assert "1 at the lower edge: reached less" in _legend(ax)
    lowest = min(np.asarray(points.get_offsets())[:, 1].min() for points in ax.collections)
    assert ax.get_ylim()[0] < lowest == pytest.approx(1e-5)


def _falling(slope):
    """Forty outcomes, each less likely than the one before by a factor exp(slope)."""
    log_ref = np.asarray(kt.normalize(-slope * np.arange(40.0)))
    return kt.Objective((np.arange(40) % 7 == 0) * 0.8, log_ref, [0.01, 0.1, 1.0])


def test_a_tail_beyond_all_sight_is_counted_and_left_out():
    objective = _falling(3.8)
    assert objective.log_ref.min() / np.log(10) < -60
    ax = plot.target(objective)
    probs = np.asarray(kt.solve(objective).probs)
    below = (np.maximum(probs.max(0), np.exp(objective.log_ref)) < 1e-12).sum()
    assert ax.get_ylim()[0] == pytest.approx(1e-12)
    assert f"{below} outcomes below 1e-12" in _legend(ax)
    assert ax.get_xlim()[1] == pytest.approx(40 - below + 0.5)
    assert "below" not in " ".join(_legend(plot.target(_falling(0.2))))


def test_positions_are_on_a_linear_axis_where_it_shows_the_mass():
    task = tasks.load("bimodal")
    ax = plot.target(task.objective([0.05, 1.0]), labels=task.labels)
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim()[0] == 0
    # A favourite beside ninety-nine that share the rest: they would lie on the axis.
    log_ref = np.log(np.r_[0.6, np.full(99, 0.4 / 99)])
    assert plot.target((task.reward, log_ref), labels=task.labels).get_yscale() == "log"


def test_what_is_not_drawn_or_named_is_said():
    ax = plot.target(tasks.load("one-two").objective(np.geomspace(0.01, 10, 31)))
    title = ax.get_legend().get_title().get_text()
    assert title.splitlines() == ["reverse KL", f"{len(_legend(ax)) - 1} of 31 β named"]
    ax = plot.beta_path(_falling(3.8), top=5)
    assert _legend(ax)[-1] == "35 others, below 0.1 %"
    kinds = [kt.Alpha(x) for x in (-2.0, -1.0, 0.5, 1.5, 2.0, 2.5, 3.0)]
    task = _graded(20)
    ax = plot.target([kt.solve(task.objective(0.3, divergence=d)) for d in kinds], problem=task)
    assert sum("α-divergence" in x for x in _legend(ax)) == 7
    ax = plot.tree("words-3", least=0.01)
    probs = np.exp(np.asarray(tasks.load("words-3").log_ref, float))
    drawn = probs[probs > 0.01]
    assert ax.get_xlabel().startswith(f"tokens of {drawn.size} of {(probs > 0).sum():,} sequences")
    assert ax.get_xlabel().endswith(f"{100 * drawn.sum():.1f} %")


@pytest.mark.parametrize("sheet", [plot.STYLE, plot.DARK], ids=["light", "dark"])
def test_lines_are_told_apart_in_grey(sheet):
    with mpl.style.context(sheet):
        ax = plot.beta_path(_graded(12), beta=[0.1, 1.0, 10.0], top=9)
    lines = [line for line in ax.lines if str(line.get_label()).startswith("answer")]
    assert len(lines) == 9
    for line, other in itertools.combinations(lines, 2):
        apart = abs(_lightness(line.get_color()) - _lightness(other.get_color()))
        assert line.get_marker() != other.get_marker() or apart > 5


def _lightness(color):
    """L* of the CIE, from 0 to 100."""
    rgb = np.array(to_rgba(color)[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 116 * float(linear @ [0.2126, 0.7152, 0.0722]) ** (1 / 3) - 16


def test_figures_of_four_inches_keep_their_axes_and_cut_nothing():
    long = _graded(6, label="A rather long answer {}")
    beta = np.geomspace(0.1, 10, 9)
    targets = {name: kt.solve(long.objective(b)) for name, b in (("weak", 0.1), ("strong", 3.0))}
    drawings = (
        lambda ax: plot.target(long.objective([0.1, 1.0, 3.0]), problem=long, ax=ax),
        lambda ax: plot.beta_path(_graded(12), beta=beta, top=8, ax=ax),
        lambda ax: plot.ratio(kt.solve(long.objective(beta)), ax=ax),
        lambda ax: plot.recipe_comparison(targets, labels=long.labels, ax=ax),
    )
    for draw in drawings:
        with mpl.style.context(plot.STYLE):
            ax = Figure(figsize=(4.0, 3.8)).add_subplot()
        draw(ax)
        ax.figure.draw_without_rendering()
        legend = ax.get_legend()
        assert not legend.get_window_extent().overlaps(ax.get_window_extent())
        assert ax.get_window_extent().height > 0.3 * ax.figure.bbox.height
        named = {x.get_label() for x in (*ax.lines, *ax.containers)}
        assert {x for x in named if not str(x).startswith("_")} <= set(_legend(ax))
        # What a picture of all would take is what there is.
        drawn, page = ax.figure.get_tightbbox(), ax.figure.bbox_inches
        assert drawn.x0 > -0.02
        assert drawn.y0 > -0.02
        assert drawn.x1 < page.x1 + 0.02
        assert drawn.y1 < page.y1 + 0.02
