"""The explorer: what the widget draws, and that a browser solves as Python does."""

import html
import json
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import kltarget as kt
from kltarget import cli, pages, tasks
from kltarget._core.numerics import double_precision
from kltarget.divergences._names import EXAMPLES, named

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--dump-dom",
]


def _shown(tmp_path, page, script, fragment=""):
    """The page after its scripts have run, and what a further one has found."""
    file = tmp_path / "page.html"
    found = f"<script>document.body.dataset.found = JSON.stringify({script});</script></body>"
    file.write_text(page.replace("</body>", found), encoding="utf-8")
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path}/user", f"{file.as_uri()}{fragment}"]
    dom = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    data = re.search(r'data-found="([^"]*)"', dom)
    assert data, "the script in the page failed"
    return json.loads(html.unescape(data[1])), dom


def _problems():
    """Rewards and references of eight outcomes, with ties, −∞ and what the reference lacks."""
    rng = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        log_ref = np.log([0.3, 0, 0.5, 0.1, 0, 0.06, 0.03, 0.01])
    lacking = np.array([0.5, 1, -np.inf, 0.1, 1, 0.5, 0.4, 0.9])
    normal, steep = rng.normal(size=(2, 8)) * [[2.0], [20.0]]
    with double_precision():
        normal, steep = np.asarray(kt.normalize(normal)), np.asarray(kt.normalize(steep))
    equal = np.array([1.0, 1, 0, 0, 0, 0, 0, 0])
    return [(lacking, log_ref), (rng.normal(size=8), normal), (equal, steep), (equal, normal)]


def _js(x):
    return json.dumps(np.asarray(x).tolist())


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize(
    "names",
    [
        ("reverse-kl", "forward-kl"),
        pytest.param((*EXAMPLES, "alpha:-2.5", "alpha:0.98"), marks=pytest.mark.slow),
    ],
    ids=["common", "all"],
)
def test_a_browser_solves_as_python_does(names, tmp_path):
    betas = np.array([1e-3, 0.02, 0.1316, 1.0, 50.0])
    problems = _problems()
    threshold = 0.5
    page = pages.page(tasks.load("bimodal"), beta=0.1)
    script = f"""{_js(problems)}.flatMap(([r, q]) => {_js(names)}.map((name) => {_js(betas)}.map(
      (beta) => [[r, q], kltarget.mara(r, q, beta, name, {threshold})].map(
        ([reward, ref]) => kltarget.solve(reward, ref, beta, name).map(
          (x) => x === -Infinity ? "-inf" : x)))))"""
    found, dom = _shown(tmp_path, page, script)
    found = iter(np.array(found, dtype=np.float64))
    with double_precision():
        for reward, log_ref in problems:
            # Of one shape and kind, so that a divergence is compiled once.
            rows = np.broadcast_to(reward, (5, 8)), np.broadcast_to(log_ref, (5, 8)), betas
            for name in names:
                objective = kt.Objective(*rows, named(name), measure=True)
                method = "augment" if name == "reverse-kl" else "substitute"
                augmented = kt.mara(objective, threshold, method=method)
                here = next(found)
                for k, problem in enumerate((objective, augmented)):
                    expected = np.asarray(kt.solve(problem).log_probs)
                    np.testing.assert_allclose(
                        here[:, k], expected, rtol=1e-10, atol=1e-10, err_msg=name
                    )
    # What the page itself says of the didactic problem.
    assert "flip at 0.1316" in dom
    assert re.search(r"flip at β</th><td></td><td>0\.1316<", dom)
    assert "prefers <b>“65–85”</b>, above it <b>“15–35”</b>" in dom


@pytest.fixture
def bimodal():
    task = tasks.load("bimodal")
    chosen = kt.explore(task, divergences=("reverse-kl", "forward-kl"), beta=0.1)
    return task, chosen


def _drawn(chosen):
    """Probabilities as heights of the bars, by colour, in units of the top of the axis."""
    svg = chosen.children[1].children[0].children[0].value
    bars = re.findall(r'class="target" d="([^"]*)"', svg)
    heights = [268 - float(y) for d in bars for y in re.findall(r"V([0-9.]+)", d)]
    return np.sort(heights) / (268 - 30)


def test_sliders_move_what_is_drawn(bimodal):
    task, chosen = bimodal
    first, second = task.modes == 0, task.modes == 1
    controls = chosen.controls
    assert (chosen.move.beta, chosen.move.threshold) == (0.1, np.inf)
    moves = [
        ("reverse-kl", 0.05, 1.0, None, np.inf),
        ("reverse-kl", 0.2, 3.0, 0.5, 0.75),
        ("forward-kl", 0.2, 0.5, 2.0, np.inf),
        ("forward-kl", 0.3, 1.0, 1.0, 0.75),
    ]
    for divergence, beta, scale, odds, threshold in moves:
        controls["divergence"].value = divergence
        controls["beta"].value = beta
        controls["reward_scale"].value = scale
        controls["threshold"].value = threshold
        probs = np.exp(task.log_ref)
        if odds is not None:
            controls["odds"].value = np.log10(odds)
            total = probs[first].sum() + probs[second].sum()
            probs[first] *= total * odds / (1 + odds) / probs[first].sum()
            probs[second] *= total / (1 + odds) / probs[second].sum()
        with double_precision():
            problem = scale * task.reward, np.log(probs), beta, named(divergence)
            objective = kt.Objective(*problem, measure=True)
            if threshold < np.inf:
                method = "augment" if divergence == "reverse-kl" else "substitute"
                objective = kt.mara(objective, scale * threshold, method=method)
            expected = np.asarray(kt.solve(objective).log_probs)
        scene = chosen.scene
        np.testing.assert_allclose(scene.log_probs, expected, rtol=1e-12, atol=1e-12)
        top = _drawn(chosen).max() / np.exp(expected).max()
        np.testing.assert_allclose(_drawn(chosen) / top, np.sort(np.exp(expected)), atol=1e-4)
        reward, wanted = scene.measures["expected_reward"][1], np.exp(expected) @ task.reward
        assert reward == pytest.approx(wanted, rel=1e-12)
        near = np.searchsorted(scene.path.betas, beta)
        masses = scene.path.masses[near - 1 : near + 1, 0]
        assert masses.min() <= np.exp(expected)[first].sum() <= masses.max()
        if threshold == np.inf:
            with double_precision():
                flip = 0.25 / 1.9 if odds is None else float(kt.flip_beta(objective, 25, 75))
            assert scene.path.flips == pytest.approx((flip,), rel=1e-7)
        else:
            assert scene.path.flips == ()
            assert scene.measures["effective_modes"][1] == pytest.approx(2, rel=1e-9)
    # What was met in double precision is not of it ever after.
    assert jnp.asarray(task.reward).dtype == jnp.result_type(float)
    # Moves compile nothing, but for the choice of a divergence.
    assert chosen._mover._targets._cache_size() == 2


def test_without_widgets_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "kltarget.pages._widget", raising=False)
    with pytest.warns(UserWarning, match=r'pip install "kltarget\[notebooks\]"'):
        figure = kt.explore(tasks.load("one-two"), beta=0.1)
    assert isinstance(figure, Figure)
    entries = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert entries == ["reference", "β = 0.001", "β = 0.01", "β = 0.1", "β = 1"]


def test_the_command_writes_one_page_that_needs_nothing(tmp_path, capsys):
    table = tmp_path / "answers.csv"
    table.write_text('answer,reward,prob\n"</script><b>",1,0.25\nb,1,0.25\nc,0,0.5\n')
    out = tmp_path / "answers.html"
    options = ["--divergence", "squared-hellinger", "--beta", "0.2", "--html"]
    assert cli.main(["explore", str(table), *options, str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "wrote" in capsys.readouterr().out
    assert not re.search(r"https?:|\bsrc=|@import|<link", page)
    assert page.count("</script>") == 2
    data = json.loads(re.search(r'id="data" type="application/json">(.*?)</script>', page, re.S)[1])
    assert data["labels"][0] == "</script><b>"
    assert (data["divergence"], data["beta"]) == ("squared-hellinger", 0.2)
    assert cli.main(["explore", str(table), "--html", str(table)]) == 2
    assert "this is the table itself" in capsys.readouterr().err


def _uniform(size):
    return kt.Objective(np.arange(size) / size, np.full(size, -np.log(size)), 0.1)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: _uniform(20_001), {}, ValueError, "20,001 outcomes are more than the 20,000"),
        (lambda: tasks.load("one-two").objective([0.1, 1.0]), {}, ValueError, "batch shape"),
        (lambda: 3, {}, TypeError, "a Task or an Objective"),
        (lambda: _uniform(3), {"pair": (0, 7)}, ValueError, "mode 7"),
        (lambda: _uniform(3), {"labels": "ab"}, ValueError, "2 labels for 3 outcomes"),
        (lambda: _uniform(3), {"beta": -1.0}, ValueError, "beta must be above 0"),
        (lambda: _uniform(3), {"divergences": ()}, ValueError, "divergences is empty"),
    ],
)
def test_what_cannot_be_explored_is_said(make, options, error, message):
    with pytest.raises(error, match=message):
        pages.page(make(), **options)
