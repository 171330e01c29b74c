"""Figures of modes: over β, of sweeps, of recipes and of token trees, on light and dark pages."""

import functools
import io
import itertools
import re

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import kltarget as kt
from kltarget import frontier, plot, sweeps, tasks

TASK = tasks.load("bimodal")
FLIP = 0.25 / 1.9
BETA = np.geomspace(0.02, 2.0, 41)
SCALE = np.geomspace(0.25, 4.0, 9)
CIRCLE = "flip: both level"


def softmax(log_weights):
    weights = np.exp(log_weights - log_weights.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def masses(task, beta, scale=1.0):
    """The target of reverse KL, and its modes, from the formula π ∝ π_ref exp(r/β)."""
    ratio = np.asarray(scale / beta)[..., None]
    probs = softmax(task.log_ref + ratio * task.reward)
    count = task.modes.max() + 1
    return probs, np.stack([probs[..., task.modes == k].sum(-1) for k in range(count)], -1)


def swept():
    """A sweep in the form that `kltarget.sweeps.sweep` has, computed by hand."""
    probs, mass = masses(TASK, BETA, SCALE[:, None])
    share = mass / mass.sum(-1, keepdims=True)
    logs = np.log(probs) - TASK.log_ref
    dims = ("reward_scale", "beta")
    found = {
        "expected_reward": (probs * TASK.reward).sum(-1),
        "reverse_kl": (probs * logs).sum(-1),
        "forward_kl": -(np.exp(TASK.log_ref) * logs).sum(-1),
        "effective_modes": np.exp(-(share * np.log(share)).sum(-1)),
    }
    data = xr.Dataset(
        {
            **{name: (dims, x) for name, x in found.items()},
            "mode_mass": ((*dims, "mode"), mass),
        },
        {
            "beta": BETA,
            "reward_scale": SCALE,
            "divergence": "reverse-kl",
            "mode": [0, 1],
            "mode_label": ("mode", ["25", "75"]),
        },
        {"problem": "bimodal"},
    )
    return data


def target_of(beta, log_probs):
    """A target that was not solved for: figures draw what they are given."""
    objective = kt.Objective(TASK.reward, TASK.log_ref, beta)
    zeros = jnp.zeros(np.shape(beta))
    return kt.Target(objective, jnp.asarray(log_probs), zeros, zeros.astype(jnp.int32))


def boundary(*rows):
    columns = zip(*rows, strict=True)
    names = ("ratio", "kind", "first", "second")
    return xr.Dataset({name: ("boundary", list(x)) for name, x in zip(names, columns, strict=True)})


ONE_FLIP = boundary((FLIP, "flip", "75", "25"))


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def labelled(ax, label):
    return [line for line in ax.lines if line.get_label() == label]


SOURCES = {
    "task": lambda: (TASK, {"beta": BETA}),
    "objective": lambda: (
        TASK.objective(BETA[::-1].copy()),
        {"modes": TASK.modes, "labels": TASK.labels},
    ),
    "target": lambda: (
        target_of(BETA, np.log(masses(TASK, BETA)[0])),
        {"modes": TASK.modes, "labels": TASK.labels},
    ),
    "sweep": lambda: (swept().sel(reward_scale=1.0, method="nearest"), {}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_paths_and_odds_are_those_of_the_formula(source):
    data, options = SOURCES[source]()
    _, mass = masses(TASK, BETA)
    ax = plot.beta_path(data, **options)
    for k, label in enumerate(["25", "75"]):
        (line,) = labelled(ax, label)
        np.testing.assert_allclose(line.get_xdata(), BETA, rtol=1e-6)
        np.testing.assert_allclose(line.get_ydata(), mass[:, k], rtol=2e-5, atol=1e-7)
    (rest,) = labelled(ax, "all others")
    np.testing.assert_allclose(rest.get_ydata(), 1 - mass.sum(1), atol=1e-6)
    (circle,) = labelled(ax, CIRCLE)
    np.testing.assert_allclose(circle.get_xdata(), FLIP, rtol=1e-5)
    np.testing.assert_allclose(circle.get_ydata(), np.interp(FLIP, BETA, mass[:, 0]), rtol=0.02)
    assert [text.get_text() for text in ax.texts] == ["0.132"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert ax.get_xlabel() == "β, reward units per nat"
    assert ax.get_ylabel() == "probability of the mode"

    ax = plot.ratio(data, **options)
    odds = ax.lines[0]
    np.testing.assert_allclose(odds.get_ydata(), mass[:, 0] / mass[:, 1], rtol=1e-3)
    reference = np.exp(1.9)
    drawn = labelled(ax, "reference")
    assert len(drawn) == (source != "sweep")
    for line in drawn:
        np.testing.assert_allclose(line.get_ydata(), reference, rtol=1e-5)
    (circle,) = labelled(ax, CIRCLE)
    np.testing.assert_allclose(circle.get_xdata(), FLIP, rtol=1e-5)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_ylabel() == "odds of 25 to 75"


def test_flips_are_exact_whatever_the_grid():
    # The flip of reverse KL is (r_j − r_i)/log(π_ref,i/π_ref,j); where there is none, no circle.
    rng = np.random.default_rng(3)
    log_ref, reward = np.log(softmax(rng.normal(size=5))), rng.normal(size=5)
    log_ref[4], reward[4] = log_ref[3], reward[3]
    beta = np.geomspace(1e-3, 1e3, 7)
    objective = kt.Objective(reward, kt.normalize(log_ref), beta)
    for i, j in itertools.combinations(range(5), 2):
        odds = log_ref[i] - log_ref[j]
        flip = (reward[j] - reward[i]) / odds if odds else -1.0
        circles = labelled(plot.ratio(objective, pair=(i, j)), CIRCLE)
        drawn = [x for line in circles for x in line.get_xdata()]
        np.testing.assert_allclose(drawn, [flip] if flip > 0 else [], rtol=1e-4)


def test_impossible_modes_have_no_odds():
    log_probs = np.log(masses(TASK, BETA)[0])
    log_probs[: BETA.size // 2, TASK.modes == 0] = -np.inf
    log_probs[0, TASK.modes == 1] = -np.inf
    log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
    ax = plot.ratio(target_of(BETA, log_probs), modes=TASK.modes)
    drawn = ax.lines[0].get_ydata()
    assert np.isnan(drawn[0])
    # Where one of them has nothing left the line runs out of the axes.
    assert (drawn[1 : BETA.size // 2] < 1e-6 * ax.get_ylim()[0]).all()
    assert np.isfinite(drawn[BETA.size // 2 :]).all()
    ax.figure.savefig(io.BytesIO())


def test_equal_rewards_keep_the_odds_of_the_reference():
    task = tasks.load("one-two")
    target = kt.solve(task.objective(BETA))
    ax = plot.ratio(target, labels=task.labels)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 15, rtol=1e-5)
    assert CIRCLE not in legend(ax)
    assert not labelled(plot.beta_path(target, modes=task.modes), CIRCLE)
    # Thousands of decades would leave nothing to see: the reference and 1 stay in view.
    ax = plot.ratio(target, pair=(0, 2))
    assert ax.get_ylim()[1] < 1e7
    assert ax.get_ylim()[0] < 0.3 / 0.68


def test_divergences_of_a_sweep_are_lines():
    data = swept().isel(reward_scale=4)
    both = xr.concat([data, data.assign_coords(divergence="forward-kl")], "divergence")
    ax = plot.ratio(both)
    assert legend(ax) == ["reverse-kl", "forward-kl", CIRCLE]
    with pytest.raises(ValueError, match=r"varies along divergence too: .* \.isel\(divergence=0\)"):
        plot.beta_path(both)


def test_phase_draws_the_sweep_and_the_boundary():
    data = swept()
    # Whatever the order of dimensions and points, cells lie where their numbers belong.
    shuffled = data.transpose("beta", ...).isel(beta=np.random.default_rng(0).permutation(41))
    ax = plot.phase(shuffled, boundaries=ONE_FLIP)
    mesh = ax.collections[0]
    np.testing.assert_allclose(mesh.get_array(), data["effective_modes"])
    corners = mesh.get_coordinates()
    middle = np.sqrt(corners[:-1, :-1] * corners[1:, 1:])
    np.testing.assert_allclose(middle[0, :, 0], BETA)
    np.testing.assert_allclose(middle[:, 0, 1], SCALE)
    assert ax.get_xlim() == (corners[0, 0, 0], corners[0, -1, 0])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("β, reward units per nat", "reward scale")
    assert ax.figure.axes[1].get_ylabel() == "effective modes"
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_xdata() / line.get_ydata(), FLIP)
    assert legend(ax) == ["75 ⇄ 25: β/scale = 0.132"]

    ax = plot.phase(data, variable="winning_mode", boundaries=ONE_FLIP)
    first_leads = data["mode_mass"].values.argmax(-1) == 0
    np.testing.assert_array_equal(ax.collections[0].get_array() == 0, first_leads)
    # Two modes are level where the exact line runs, which no cell knows of.
    np.testing.assert_array_equal(first_leads, BETA / SCALE[:, None] > FLIP)
    assert legend(ax)[:2] == ["25 leads", "75 leads"]


def test_boundaries_in_view_are_drawn_many_of_them_counted():
    rows = [(FLIP * (1 + k / 10), "flip", f"a{k}", "b") for k in range(5)]
    found = boundary(*rows, (0.05, "collapse", "75", ""), (1e3, "flip", "far", "off"))
    ax = plot.phase(swept(), boundaries=found)
    assert len(ax.lines) == 6
    assert legend(ax) == ["flip (5)", "collapse (1)"]
    assert ax.lines[-1].get_linestyle() != ax.lines[0].get_linestyle()


def test_boundaries_are_computed_for_named_tasks(monkeypatch):
    asked = []

    def phase_boundaries(problem, **settings):
        asked.append((problem, settings))
        return ONE_FLIP

    monkeypatch.setattr(sweeps, "phase_boundaries", phase_boundaries)
    data = swept()
    assert len(plot.phase(data.assign_coords(threshold=0.5)).lines) == 1
    assert asked == [("bimodal", {"divergence": "reverse-kl", "threshold": 0.5})]
    others = (
        data.assign_attrs(problem="objective"),
        data.assign_coords(entropy_weight=0.1),
        data.assign_coords(mode_label=("mode", ["of my", "own"])),
    )
    assert all(not plot.phase(other).lines for other in others)
    assert not plot.phase(data, boundaries=False).lines
    assert len(asked) == 1


def test_frontier_draws_a_line_per_setting():
    one = swept().isel(reward_scale=4)
    kinds = [one, one.assign_coords(divergence="forward-kl")]
    rows = [
        xr.concat([x, x * 0.5], "threshold").assign_coords(threshold=[np.nan, 0.7]) for x in kinds
    ]
    data = xr.concat(rows, "divergence")
    for kl, label in (("reverse_kl", "KL(π‖π_ref), nats"), ("forward_kl", "KL(π_ref‖π), nats")):
        figure = plot.frontier(data, kl=kl)
        left, right = figure.axes
        assert (left.get_xlabel(), right.get_xlabel()) == (label, "effective modes")
        assert left.get_ylabel() == "expected reward"
        (line,) = labelled(left, "forward-kl, MARA from 0.7")
        np.testing.assert_allclose(
            line.get_xydata(), 0.5 * np.stack([one[kl], one.expected_reward], 1)
        )
        (line,) = labelled(right, "reverse-kl, no MARA")
        np.testing.assert_allclose(
            line.get_xydata(), np.stack([one.effective_modes, one.expected_reward], 1)
        )
    lines = [x for x in left.lines if not x.get_label().startswith("_")]
    assert len({x.get_color() for x in lines}) == 2
    assert len({x.get_linestyle() for x in lines}) == 2
    # Circles at β = 0.1 and 1, filled at the smallest.
    circles = [x for x in left.lines if x.get_marker() == "o"][:2]
    decades = one.sel(beta=[0.1, 1.0], method="nearest").expected_reward
    np.testing.assert_allclose(circles[0].get_ydata(), decades)
    np.testing.assert_allclose(circles[1].get_ydata(), one.expected_reward[:1])
    assert right.get_xlim()[0] < 1 < 2 < right.get_xlim()[1] < 2.1
    axes = Figure().subplots(1, 2)
    assert plot.frontier(one, ax=axes) is axes[0].figure
    with pytest.raises(ValueError, match="9 reward_scale: at most 7 of one setting"):
        plot.frontier(swept())


@pytest.mark.broad
def test_frontier_draws_families_and_marks_what_is_next_to_a_point():
    data = frontier.curve("bimodal", n=[1, 10, 100.0])
    left, right = plot.frontier(data).axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("KL(π‖π_ref), nats", "effective modes")
    (line,) = labelled(left, "best-of-n (n)")
    drawn = data.sel(family="best-of-n").isel(point=[2, 1, 0])
    np.testing.assert_allclose(line.get_xydata(), np.stack([drawn.kl, drawn.expected_reward], 1))
    for panel, variable in ((left, "kl"), (right, "effective_modes")):
        (diamond,) = (x for x in panel.lines if x.get_marker() == "D")
        smallest = data.sel(family="mara").isel(point=0)
        assert diamond.get_xydata().tolist() == [[smallest[variable], smallest.expected_reward]]
        assert diamond.get_markersize() > 8
        assert [text.get_text() for text in panel.texts] == ["MARA"]
    # Filled at the far end: the smallest β, the most draws, the lowest temperature.
    far = [x for x in left.lines if x.get_marker() == "o" and x.get_markersize() == 5.5]
    ends = [(0, "reverse-kl"), (0, "forward-kl"), (2, "best-of-n"), (60, "temperature")]
    wanted = [data.expected_reward.sel(family=name)[k] for k, name in ends]
    np.testing.assert_allclose([float(x.get_ydata()[0]) for x in far], wanted)
    # By the forward KL best-of-n of many draws would push all others into a corner.
    narrow = plot.frontier(data, kl="forward_kl").axes[0].get_xlim()[1]
    assert narrow < 0.5 * float(data.forward_kl.max())
    with pytest.raises(ValueError, match="there are 8 families: at most 7"):
        plot.frontier(xr.concat([data, data.isel(family=[0, 1, 2])], "family"))


def test_recipes_stand_beside_the_reference():
    probs = masses(TASK, np.array([0.05, 1.0]))[0]
    targets = {f"β = {b}": target_of(b, np.log(p)) for b, p in zip((0.05, 1.0), probs, strict=True)}
    ax = plot.recipe_comparison(targets, modes=TASK.modes, labels=TASK.labels)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["reference", *targets]
    assert legend(ax) == ["25", "75", "all others"]
    assert ax.yaxis_inverted()
    hatches = [bars.patches[0].get_hatch() or None for bars in ax.containers]
    assert hatches == [None, "///", None]  # grey and orange are alike without colours
    widths = np.array([[bar.get_width() for bar in group] for group in ax.containers])
    rows = np.vstack([np.exp(TASK.log_ref), probs])
    for k, mode in enumerate((0, 1, -1)):
        np.testing.assert_allclose(widths[k], rows[:, TASK.modes == mode].sum(1), atol=1e-6)
    with pytest.raises(ValueError, match=r"'several' has batch shape \(41,\)"):
        plot.recipe_comparison({"several": target_of(BETA, np.log(masses(TASK, BETA)[0]))})
    with pytest.raises(TypeError, match="mapping of names to Targets"):
        plot.recipe_comparison([targets["β = 1.0"]])


def test_trees_show_masses_as_areas_and_conditionals_as_widths():
    space = kt.SequenceSpace(2, 3, eos=0)
    probs = np.where(space.possible(), 1.0, 0.0) * np.arange(1.0, 9.0)
    probs /= probs.sum()
    with np.errstate(divide="ignore"):
        ax = plot.tree(np.log(probs), space=space, alphabet=".a")
    # Nothing follows an end of sequence: ".", "a.", "aa." and "aaa" are all there is.
    leaves = [text.get_text().split() for text in ax.texts if "  " in text.get_text()]
    assert [word for word, _ in leaves] == [".", "a.", "aa.", "aaa"]
    np.testing.assert_allclose([float(p) for _, p in leaves], probs[probs > 0], rtol=0.05)
    nodes = ax.collections[0]
    area = nodes.get_sizes() / nodes.get_sizes()[0]
    tree = np.array([1.0, probs[0], 1 - probs[0], probs[4], probs[6] + probs[7], *probs[6:]])
    np.testing.assert_allclose(np.sort(area), np.sort(tree), rtol=1e-5)
    widths = np.array([branch.get_linewidth() for branch in ax.patches])
    after_a, after_aa = 1 - probs[0], probs[6] + probs[7]
    given = [probs[0], after_a, probs[4] / after_a, after_aa / after_a, *probs[6:] / after_aa]
    np.testing.assert_allclose(
        np.sort(widths) / widths.max(), np.sort(given) / max(given), rtol=1e-5
    )


def test_large_trees_say_how_to_make_them_small():
    space, rng = kt.SequenceSpace(4, 3), np.random.default_rng(0)
    log_probs = np.log(softmax(rng.normal(size=64)))
    with pytest.raises(ValueError, match=r"64 sequences .* at most 40 .* raise least= to") as error:
        plot.tree(log_probs, space=space)
    least = float(str(error.value).split("least= to ")[1].split(",")[0])
    ax = plot.tree(log_probs, space=space, least=least)
    leaves = [text for text in ax.texts if "  " in text.get_text()]
    assert len(leaves) == (np.exp(log_probs) > least).sum() <= 40
    with pytest.raises(ValueError, match="space is missing"):
        plot.tree(log_probs)


@functools.cache
def figures(sheet):
    """Every figure of this file once, laid out."""
    before = dict(mpl.rcParams)
    with mpl.style.context(sheet):
        drawn = _figures()
    assert dict(mpl.rcParams) == before
    # Ticks are made here, long after the style is gone.
    for figure in drawn.values():
        figure.draw_without_rendering()
    return drawn


def _figures():
    data = swept()
    log_probs = np.log(masses(TASK, BETA)[0])
    target = target_of(BETA, log_probs)
    named = {"modes": TASK.modes, "labels": TASK.labels}
    recipes = {"a recipe of a long name": target_of(BETA[9], log_probs[9])}
    return {
        "beta_path": plot.beta_path(target, **named).figure,
        "ratio": plot.ratio(target, **named).figure,
        "phase": plot.phase(data, boundaries=ONE_FLIP).figure,
        "winners": plot.phase(data, variable="winning_mode", boundaries=ONE_FLIP).figure,
        "frontier": plot.frontier(data.isel(reward_scale=[0, 4])),
        "recipes": plot.recipe_comparison(recipes, **named).figure,
        "tree": plot.tree(np.log(softmax(np.arange(8.0))), space=kt.SequenceSpace(2, 3)).figure,
        "target": plot.target(target_of(BETA[::10], log_probs[::10])).figure,
    }


def contrast(one, other):
    """The ratio of relative luminances, from 1 to 21 (WCAG 2.1)."""
    linear = [
        np.where(x <= 0.04, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        for x in map(np.array, (to_rgb(one), to_rgb(other)))
    ]
    low, high = sorted(float(x @ [0.2126, 0.7152, 0.0722]) for x in linear)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.broad
@pytest.mark.parametrize("sheet", [plot.STYLE, plot.DARK], ids=["light", "dark"])
def test_figures_are_legible_on_their_page(sheet):
    dark = sheet == plot.DARK
    for name, figure in figures(sheet).items():
        page = figure.get_facecolor()
        assert (np.mean(page[:3]) < 0.5) == dark, name
        texts = [x for x in figure.findobj(mpl.text.Text) if x.get_text()]
        assert len(texts) > 5
        for text in texts:
            assert contrast(text.get_color(), page) > 4.5, (name, text)
        for line in figure.findobj(mpl.lines.Line2D):
            curve = len(line.get_xdata()) > 5 and line.get_linestyle() != "None"
            if curve and line.axes is not None:
                assert contrast(line.get_color(), page) > 1.9, (name, line)


def test_figures_follow_any_dark_page():
    target = target_of(BETA, np.log(masses(TASK, BETA)[0]))
    with mpl.style.context("dark_background"):
        alone = plot.beta_path(target, modes=TASK.modes)
    beside = plot.beta_path(
        target, modes=TASK.modes, ax=Figure(facecolor="#101020").add_subplot(facecolor="none")
    )
    for ax in (alone, beside):
        assert contrast(ax.lines[0].get_color(), "black") > 6
        assert contrast(ax.xaxis.label.get_color(), "black") > 12


@pytest.mark.broad
def test_legends_cover_no_data_and_nothing_leaves_a_narrow_page():
    for name, figure in figures(plot.STYLE).items():
        # At 400 pixels of width a letter of the smallest text is as high as in small print.
        height = 400 / figure.get_figwidth() / 72
        texts = [x for x in figure.findobj(mpl.text.Text) if x.get_text() and x.get_visible()]
        assert min(text.get_fontsize() for text in texts) * height > 8, name
        drawn = figure.get_tightbbox()
        assert drawn.x0 > -0.02, name
        assert drawn.x1 < figure.get_figwidth() + 0.02, name
        axes = [ax.get_window_extent() for ax in figure.axes]
        legends = [*figure.legends, *filter(None, (ax.get_legend() for ax in figure.axes))]
        for key in legends:
            assert not any(key.get_window_extent().overlaps(box) for box in axes), name


def test_mistakes_in_figures_of_modes_are_named():
    target = target_of(BETA, np.log(masses(TASK, BETA)[0]))
    with pytest.raises(TypeError, match="data must be a Task, an Objective, a Target or a sweep"):
        plot.beta_path([0.5, 0.5])
    with pytest.raises(TypeError, match="beta is for a Task"):
        plot.beta_path(target, beta=BETA)
    with pytest.raises(ValueError, match="there is no mode 7: the labels are 0, 1"):
        plot.ratio(target, pair=(0, 7), modes=TASK.modes)
    with pytest.raises(ValueError, match=r"batch shape is \(\), but a path has one axis"):
        plot.beta_path(target_of(0.1, np.log(masses(TASK, 0.1)[0])))
    with pytest.raises(ValueError, match="has no dimension 'reward_scale'"):
        plot.phase(swept().isel(reward_scale=0))
    with pytest.raises(ValueError, match="variable must be one of"):
        plot.phase(swept(), variable="entropy")


def test_what_is_above_the_axes_is_a_band():
    weights = np.random.default_rng(0).dirichlet(np.ones(300))
    problem = (np.linspace(0, 1, 300), np.log(weights))
    ax = plot.beta_path(problem, beta=np.geomspace(0.3, 30, 40))
    (label,) = (x.get_text() for x in ax.get_legend().get_texts() if "others" in x.get_text())
    shown = sum(line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 40)
    ends = re.findall(r"[\d.]+(?= %)", label)
    assert label.startswith("all others, ")
    np.testing.assert_allclose(
        sorted(map(float, ends)), [100 - 100 * y for y in (shown.max(), shown.min())], atol=0.06
    )


def test_ordinary_labels_leave_the_axes_their_room(recwarn):
    answers = ("The answer is forty-two", "I cannot help with that", "It depends on the context")
    problem = {"answer": answers, "reward": [1, 0.6, 0.8], "prob": [0.1, 0.55, 0.35]}
    data = kt.sweep(problem, beta=np.geomspace(0.01, 10, 8), reward_scale=np.geomspace(0.1, 10, 8))
    ax = plot.phase(data, boundaries=kt.phase_boundaries(problem))
    ax.figure.canvas.draw()
    assert ax.get_position().width > 0.6
    assert not [x for x in recwarn if "constrained_layout" in str(x.message)]


@pytest.mark.broad
def test_lines_that_coincide_are_both_seen():
    data = kt.sweep(
        "bimodal",
        beta=np.geomspace(0.01, 10, 8),
        divergence=["reverse-kl", "forward-kl"],
        threshold=[np.inf, 0.75],
    )
    right = plot.frontier(data).axes[1]
    lines = [line for line in right.lines if "MARA from" in str(line.get_label())]
    assert [line.get_linestyle() for line in lines] == ["--", "--"]
    assert lines[0].get_linewidth() > lines[1].get_linewidth() + 1
    task = tasks.load("bimodal")
    target = kt.solve(task.objective(0.03))
    ax = plot.target([target, target], problem=task)
    first, second = (x.get_sizes() for x in ax.collections[:2])
    assert (second < 0.5 * first).all()


def test_overoptimization_draws_gold_and_proxy_and_marks_the_peak():
    problem, gold = (np.array([0.0, 1.0, 1.2]), np.log([0.6, 0.3, 0.1])), [0.0, 1.0, 0.0]
    given = {"beta": np.geomspace(0.05, 5, 9), "n": [1, 3, 9, 27]}
    data = frontier.curve(problem, ["reverse-kl", "best-of-n"], gold=gold, **given)
    ax = plot.overoptimization({"one": data.isel(family=[0]), "two": data.isel(family=[1])})
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[0].startswith("one: reverse-kl, best at β = 0.35")
    assert names[1].startswith("two: best-of-n, best at n = 3.89")
    (line,) = (x for x in ax.lines if x.get_label() == names[0])
    drawn = data.isel(family=0, point=slice(None, None, -1))
    np.testing.assert_allclose(line.get_xydata(), np.stack([drawn.kl**0.5, drawn.gold_reward], 1))
    circles = [x.get_xydata()[0] for x in ax.lines if x.get_marker() == "o"]
    np.testing.assert_allclose(circles, np.stack([data.peak_kl**0.5, data.peak_reward], 1))
    with pytest.raises(ValueError, match="no gold_reward"):
        plot.overoptimization(data.drop_vars("gold_reward"))
    with pytest.raises(ValueError, match="there are 8 families"):
        plot.overoptimization({str(k): data.isel(family=[0]) for k in range(8)})
