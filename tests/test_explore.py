"""The explorer: that a browser solves as Python does, and that both say where the sliders are."""

import contextlib
import html
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import oracles
import pandas as pd
import pytest
from matplotlib.figure import Figure
from traitlets import TraitError

import kltarget as kt
from kltarget import cli, pages, tasks
from kltarget.divergences.names import EXAMPLES, named

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
    "--virtual-time-budget=10000",
    "--dump-dom",
]


def _shown(tmp_path, page, script, fragment=""):
    """What a further script finds in the page, and what the explorer shows."""
    file = tmp_path / "page.html"
    found = f"""<script type="module">
    const shown = () => document.getElementById("explorer").shadowRoot.innerHTML;
    const found = {script};
    document.body.dataset.found = JSON.stringify([found, shown()]);</script></body>"""
    file.write_text(page.replace("</body>", found), encoding="utf-8")
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path}/user", f"{file.as_uri()}{fragment}"]
    dom = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    data = re.search(r'data-found="([^"]*)"', dom)
    assert data, "the script in the page failed"
    return json.loads(html.unescape(data[1]))


def _problems():
    """Rewards and references of eight outcomes, with ties, −∞ and what the reference lacks."""
    rng = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        log_ref = np.log([0.3, 0, 0.5, 0.1, 0, 0.06, 0.03, 0.01])
    lacking = np.array([0.5, 1, -np.inf, 0.1, 1, 0.5, 0.4, 0.9])
    normal, steep = rng.normal(size=(2, 8)) * [[2.0], [20.0]]
    with oracles.double_precision():
        normal, steep = np.asarray(kt.normalize(normal)), np.asarray(kt.normalize(steep))
    equal = np.array([1.0, 1, 0, 0, 0, 0, 0, 0])
    return [(lacking, log_ref), (rng.normal(size=8), normal), (equal, steep), (equal, normal)]


def _js(x):
    return json.dumps(np.asarray(x).tolist())


needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="needs a browser: apt-get install chromium"
)


@needs_browser
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
    page = pages.page("bimodal", beta=0.1)
    script = f"""{_js(problems)}.flatMap(([r, q]) => {_js(names)}.map((name) => {_js(betas)}.map(
      (beta) => [[r, q], kltarget.mara(r, q, beta, name, {threshold})].map(
        ([reward, ref]) => kltarget.solve(reward, ref, beta, name).map(
          (x) => x === -Infinity ? "-inf" : x)))))"""
    found, dom = _shown(tmp_path, page, script)
    found = iter(np.array(found, dtype=np.float64))
    with oracles.double_precision():
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


OWN = {
    "Le Cam": lambda u: (1 - u) ** 2 / (2 * (1 + u)),
    "quartic": lambda u: (u - 1) ** 2 + (u - 1) ** 4,
}


@pytest.mark.broad
@needs_browser
@pytest.mark.parametrize("name", ["Le Cam", pytest.param("quartic", marks=pytest.mark.slow)])
def test_a_browser_solves_a_generator_of_ones_own_as_python_does(name, tmp_path):
    own = kt.FDivergence(OWN[name], name=name)
    betas = np.array([1e-3, 0.02, 0.1316, 1.0, 50.0])
    page = pages.page("bimodal", beta=0.1, divergences=("reverse-kl", own))
    script = f"""((own) => {_js(_problems())}.map(([r, q]) => {_js(betas)}.map((beta) =>
      kltarget.solve(r, q, beta, own).map((x) => x === -Infinity ? "-inf" : x))))(
      kltarget.tabulated(JSON.parse(document.getElementById("data").text).divergences[1][2]))"""
    found, dom = _shown(
        tmp_path, page, script, f"#divergence={own.slug.replace(' ', '+')}&beta=0.2"
    )
    found = np.array(found, dtype=np.float64)
    for here, (reward, log_ref) in zip(found, _problems(), strict=True):
        with oracles.double_precision():
            rows = np.broadcast_to(reward, (5, 8)), np.broadcast_to(log_ref, (5, 8)), betas
            expected = np.asarray(kt.solve(kt.Objective(*rows, own, measure=True)).log_probs)
        np.testing.assert_allclose(np.exp(here), np.exp(expected), atol=1e-8)
        # Where it is not a matter of the last digits of f′ how little is left.
        clear = expected > -15
        np.testing.assert_allclose(here[clear], expected[clear], rtol=0, atol=1e-6)
    scene = kt.explore("bimodal", divergences=(own,)).move(beta=0.2)
    assert f"<td>{scene.measures['expected_reward'][1]:.4g}</td>" in dom


@pytest.fixture
def bimodal():
    return kt.explore("bimodal", divergences=("reverse-kl", "forward-kl"), beta=0.1)


MOVES = [
    ("reverse-kl", 0.05, 1.0, None, None),
    ("reverse-kl", 0.2, 3.0, 0.5, 0.75),
    ("forward-kl", 0.2, 0.5, 2.0, None),
    ("forward-kl", 0.3, 1.0, 1.0, 0.75),
]


@pytest.mark.broad
def test_scenes_are_the_targets_of_where_the_sliders_are(bimodal):
    task = tasks.load("bimodal")
    first, second = task.modes == 0, task.modes == 1
    assert (bimodal.beta, bimodal.odds, bimodal.threshold) == (0.1, None, None)
    for divergence, beta, scale, odds, threshold in MOVES:
        bimodal.divergence, bimodal.beta, bimodal.reward_scale = divergence, beta, scale
        scene = bimodal.move(odds=odds, threshold=threshold)
        probs = np.exp(task.log_ref)
        if odds is not None:
            total = probs[first].sum() + probs[second].sum()
            probs[first] *= total * odds / (1 + odds) / probs[first].sum()
            probs[second] *= total / (1 + odds) / probs[second].sum()
        with oracles.double_precision():
            problem = scale * task.reward, np.log(probs), beta, named(divergence)
            objective = kt.Objective(*problem, measure=True)
            if threshold is not None:
                method = "augment" if divergence == "reverse-kl" else "substitute"
                objective = kt.mara(objective, scale * threshold, method=method)
            expected = np.asarray(kt.solve(objective).log_probs)
            forward = float(kt.kl(np.log(probs), expected))
        np.testing.assert_allclose(scene.log_probs, expected, rtol=1e-12, atol=1e-12)
        assert np.array_equal(scene.log_probs, bimodal.scene.log_probs)
        reward, wanted = scene.measures["expected_reward"][1], np.exp(expected) @ task.reward
        assert reward == pytest.approx(wanted, rel=1e-12)
        assert scene.measures["forward_kl"] == pytest.approx((0, forward), rel=1e-12)
        if threshold is not None:
            assert scene.measures["effective_modes"][1] == pytest.approx(2, rel=1e-9)
    # What was met in double precision is not of it ever after.
    assert jnp.asarray(task.reward).dtype == jnp.result_type(float)


def test_what_no_slider_can_say_is_refused(bimodal):
    for name, value, message in [
        ("beta", 0.0, "beta must be above 0"),
        ("reward_scale", np.inf, "reward_scale must be above 0 and finite"),
        ("odds", -1.0, "odds must be above 0"),
        ("threshold", np.inf, "None for off"),
        ("divergence", "alpha:0.5", "one of reverse-kl, forward-kl"),
    ]:
        with pytest.raises(TraitError, match=message):
            setattr(bimodal, name, value)
    with pytest.raises(TypeError, match="no slider 'gamma'"):
        bimodal.move(gamma=1.0)
    assert bimodal.beta == 0.1


_LABELS = [f"{k}, “é”\n<&" for k in range(70)]
TAKEN = {
    # Everything moved at once, on a dark page.
    "shipped": (
        "bimodal",
        "#beta=0.2&divergence=forward-kl&reward_scale=3&odds=2&threshold=0.75",
        {},
    ),
    "inline": (
        {"answer": ["x", 'y" & <b>', "<"], "reward": [1, 0.5, -np.inf], "prob": [0.25, 0.5, 0.25]},
        "#threshold=0.5",
        {"beta": 0.3, "modes": [0, 1, -1]},
    ),
    "table": (
        {"answer": _LABELS, "reward": np.arange(70) % 4 / 3, "count": range(1, 71)},
        "#beta=0.4&odds=7",
        {},
    ),
}


@needs_browser
@pytest.mark.quick_only("shipped", others="broad")
@pytest.mark.parametrize("case", TAKEN)
def test_what_is_copied_and_saved_is_what_is_shown(case, tmp_path, monkeypatch):
    problem, fragment, options = TAKEN[case]
    page = pages.page(problem, **options)
    if case == "shipped":
        page = page.replace('content="light dark"', 'content="dark"')
    script = """await (async () => {
      const at = (id) => document.getElementById("explorer").shadowRoot.getElementById(id);
      const files = {};
      saved.download = (name, text) => { files[name] = text; };
      ["save-svg", "save-csv", "copy"].forEach((id) => at(id).click());
      return [files, at("code").textContent, at("numbers").innerText];
    })()"""
    (files, code, shown), _ = _shown(tmp_path, page, script, fragment)
    name = {"shipped": "bimodal"}.get(case, "problem")
    assert list(files) == [f"{name}.svg", f"{name}.csv"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.csv").write_text(files[f"{name}.csv"], encoding="utf-8")
    names = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, names)
    assert max(map(len, code.splitlines())) <= 88
    printed = re.findall(r"(?:reward|modes|\)) (\S+)", said.getvalue())
    rows = [line.split("\t")[-1] for line in shown.splitlines()][:4]
    assert [float(x.replace("∞", "inf").replace("−", "-")) for x in rows] == pytest.approx(
        [float(x) for x in printed], rel=2e-3
    )
    table = pd.read_csv(f"{name}.csv", dtype={"outcome": str}, keep_default_na=False)
    task = names["task"]
    assert table.outcome.tolist() == list(map(str, task.labels))
    assert table["mode"].tolist() == task.modes.tolist()
    objective, eps = names["objective"], jnp.finfo(jnp.result_type(float)).eps
    for column, here in [
        ("reward", task.reward),
        ("log_ref", task.log_ref),
        ("asked_reward", objective.reward),
        ("asked_log_ref", objective.log_ref),
        ("log_prob", names["target"].log_probs),
    ]:
        np.testing.assert_allclose(table[column], here, rtol=100 * eps, atol=100 * eps)
    picture = ElementTree.fromstring(files[f"{name}.svg"])
    words = ["".join(x.itertext()) for x in picture.iter() if x.tag.endswith("}text")]
    assert words[0] == name
    assert "reference" in words
    assert "var(" not in files[f"{name}.svg"]
    assert ("rgb(20, 23, 27)" in files[f"{name}.svg"]) == (case == "shipped")


class _Frontend:
    """The other end of a widget's comm."""

    comm_id, kernel = "explorer", "python"

    def __init__(self):
        self.sent = []

    def send(self, data=None, metadata=None, buffers=None):
        if data["method"] == "update":
            self.sent.append(data["state"])

    def on_msg(self, callback):
        self.receive = callback

    def close(self, *args, **kwargs):
        pass


def test_the_state_goes_both_ways(bimodal):
    frontend = _Frontend()
    bimodal.comm = frontend
    bimodal.beta = 0.05
    bimodal.move(divergence="forward-kl", threshold=0.75)
    assert frontend.sent == [{"beta": 0.05}, {"divergence": "forward-kl", "threshold": 0.75}]
    state = {"beta": 0.3, "threshold": None, "odds": 2.0}
    content = {"data": {"method": "update", "state": state, "buffer_paths": []}}
    frontend.receive({"content": content, "buffers": []})
    assert (bimodal.beta, bimodal.threshold, bimodal.odds) == (0.3, None, 2.0)
    assert repr(bimodal) == "Explorer('bimodal', divergence='forward-kl', beta=0.3, odds=2.0)"
    assert bimodal.scene.log_ref[25] - bimodal.scene.log_ref[75] == pytest.approx(np.log(2))


def test_the_widgets_module_needs_nothing(bimodal):
    module = bimodal._esm
    assert "export default { render };" in module
    # What it writes in Python has imports too.
    assert not re.search(r"\bimport\b(?! (?:kltarget|\$\{\{))", module)
    assert not re.search(r"https?:|\bfetch\b|XMLHttpRequest|url\(|\bsrc=", module)
    json.dumps(bimodal.get_state("problem"), allow_nan=False)


@needs_browser
def test_the_widget_shows_and_moves_its_model(tmp_path, bimodal):
    model = """class Model {
      constructor(state) { Object.assign(this, { state, heard: [], saved: 0 }); }
      get(name) { return this.state[name]; }
      set(name, value) {
        const changed = this.state[name] !== value;
        this.state[name] = value;
        for (const [event, call] of changed ? this.heard : []) event === `change:${name}` && call();
      }
      on(event, call) { this.heard.push([event, call]); }
      off(event, call) { this.heard = this.heard.filter(([e, f]) => e !== event || f !== call); }
      save_changes() { this.saved += 1; }
    }"""
    # Two views of one widget, as two outputs of a notebook may show it.
    page = f"""<!DOCTYPE html><meta charset="utf-8"><body><div id="explorer"></div>
    <div id="other"></div><script>requestAnimationFrame = (call) => {{ call(); return 0; }}; {model}
    async function widget() {{
      const type = {{ type: "text/javascript" }}, text = {json.dumps(bimodal._esm)};
      return (await import(URL.createObjectURL(new Blob([text], type)))).default;
    }}</script></body>"""
    state = {name: bimodal.get_state(name)[name] for name in ("problem", *bimodal._setup.start)}
    script = f"""await widget().then(({{ render }}) => {{
      const model = new Model({json.dumps(state)}), el = (id) => document.getElementById(id);
      const close = ["explorer", "other"].map((id) => render({{ model, el: el(id) }}));
      const at = (id, name) => el(id).shadowRoot.getElementById(name);
      const start = at("other", "numbers").textContent;
      model.set("beta", 0.05);
      const asked = [at("other", "numbers").textContent, at("explorer", "beta").value];
      at("other", "divergence").value = "forward-kl";
      at("other", "divergence").dispatchEvent(new Event("input", {{ bubbles: true }}));
      at("other", "odds").value = 30;
      at("other", "odds").dispatchEvent(new Event("input", {{ bubbles: true }}));
      const moved = at("explorer", "numbers").textContent;
      const shapes = (x) => [...new Set([...x].map((y) => y.getAttribute("d")))].sort();
      const marks = ["path", "legend"].map((id) => at("explorer", id).querySelectorAll("[d$=z]"));
      close.forEach((end) => end());
      const {{ divergence, odds }} = model.state;
      const last = [divergence, odds];
      return [start, asked, moved, last, marks.map(shapes), model.saved, model.heard.length];
    }})"""
    (start, asked, moved, said, marks, saved, listening), _ = _shown(tmp_path, page, script)

    def row(text, scene):
        numbers = (f"{x:.4g}" for x in scene.measures["expected_reward"])
        return f"expected reward{''.join(numbers)}" in text

    assert row(start, bimodal.scene)
    assert len(marks[0]) == 3  # two modes and the rest, told apart without colours
    assert marks[0] == marks[1]
    assert asked[1] == "-130"
    assert row(asked[0], bimodal.move(beta=0.05))
    assert said == ["forward-kl", 2]
    assert row(moved, bimodal.move(divergence="forward-kl", odds=2))
    assert (saved, listening) == (2, 0)


def test_without_widgets_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
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
    assert (data["start"]["divergence"], data["start"]["beta"]) == ("squared-hellinger", 0.2)
    assert cli.main(["explore", str(table), "--html", str(table)]) == 2
    assert "this is the table itself" in capsys.readouterr().err


def _uniform(size):
    return kt.Objective(np.arange(size) / size, np.full(size, -np.log(size)), 0.1)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: _uniform(20_001), {}, ValueError, "20,001 outcomes are more than the 20,000"),
        (lambda: tasks.load("one-two").objective([0.1, 1.0]), {}, ValueError, "batch shape"),
        (lambda: 3, {}, TypeError, "problem must be"),
        (lambda: _uniform(3), {"pair": (0, 7)}, ValueError, "mode 7"),
        (lambda: _uniform(3), {"labels": "ab"}, ValueError, "labels has 2 entries"),
        (lambda: _uniform(3), {"beta": -1.0}, ValueError, "beta must be above 0"),
        (lambda: _uniform(3), {"divergences": ()}, ValueError, "divergences is empty"),
    ],
)
def test_what_cannot_be_explored_is_said(make, options, error, message):
    with pytest.raises(error, match=message):
        pages.page(make(), **options)


def test_the_scene_measures_what_the_library_does():
    task = tasks.load("bimodal")
    scene = kt.explore(task, beta=0.2).scene
    logs = np.stack([scene.log_ref, scene.log_probs])
    expected = kt.effective_modes(logs, task.modes)
    np.testing.assert_allclose(scene.measures["effective_modes"], expected, rtol=1e-5)


NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node")


def _drawn(problem, moves=(), hover=None, **options):
    """What the elements of the page hold at first, after every move and while pointed at."""
    text = pages.page(problem, **options)
    script = re.search(r"<script>\n(.*)\nrender\(\{ model: inAddress", text, re.DOTALL)
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert script
    assert data
    given = {"script": script[1], "problem": json.loads(data[1]), "moves": moves, "hover": hover}
    drawer = pathlib.Path(__file__).with_name("explorer.mjs")
    done = subprocess.run(
        [NODE, drawer], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def _without_tags(text):
    return html.unescape(re.sub("<[^>]*>", "", text))


@needs_node
def test_the_verdict_follows_the_slider():
    first, second = _drawn("bimodal", [("beta", 1.0)], beta=0.1)
    said = [_without_tags(x["#verdict"]) for x in (first, second)]
    rest = "Below β = 0.132 the target prefers “65–85”, above it “15–35”."
    assert said[0] == f"At β = 0.1: “15–35” 35.4 %, “65–85” 64.6 %. {rest}"
    assert said[1] == f"At β = 1: “15–35” 81.1 %, “65–85” 15.6 %. {rest}"
    (alone,) = _drawn({"answer": ["x", "y"], "reward": [1, 0], "prob": [0.25, 0.75]}, beta=1.0)
    assert (
        _without_tags(alone["#verdict"]) == "At β = 1 the most probable outcome is “y” with 52.5 %."
    )


@needs_node
def test_what_was_pointed_at_is_forgotten():
    before, on, after = _drawn("one-two", hover=100, beta=0.1)
    assert on["#pointed"].startswith("“1”: reward 1, reference 0.3")
    assert not before["#pointed"].strip()
    assert not after["#pointed"].strip()


@needs_node
def test_a_few_impossible_outcomes_do_not_press_the_axis_together():
    log_ref = np.full(3000, -np.log(3000.0))
    log_ref[-1] = -150.0
    problem = (np.arange(3000.0), np.asarray(kt.normalize(jnp.asarray(log_ref))))
    (seen,) = _drawn(problem, beta=100.0)
    ticks = re.findall(r">10(⁻[⁰¹²³⁴⁵⁶⁷⁸⁹]+)<", seen["#target"])
    digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    assert -14 <= min(int(tick.translate(digits)) for tick in ticks) < -4
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", seen["#target"])]
    assert max(heights) <= 390, "nothing is drawn below the picture"


@needs_node
def test_names_on_the_rail_stay_apart_and_inside():
    seen = _drawn("words", beta=0.1)[0]["#target"]
    names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="strong" transform="rotate', seen)
    at = np.array(names, float)
    assert len(at) == 12
    assert (np.diff(at[:, 0]) > 25.9).all()
    # Twelve letters of at most 8 pixels that rise by 42 degrees.
    assert (at[:, 1] > 12 * 8 * np.sin(np.radians(42))).all()


@needs_node
@pytest.mark.parametrize("divergence", ["total-variation", "chi-squared"])
def test_corners_and_jumps_are_no_slopes(divergence):
    task = tasks.load("bimodal")
    (seen,) = _drawn(task, beta=0.1, divergences=(divergence,))
    lines = re.findall(r'<path d="([^"]*)" fill="none" stroke="var\(--first\)"', seen["#path"])
    points = np.array([re.findall(r"[ML]([\d.]+) ([\d.]+)", line) for line in lines], float)[0]
    across, down = np.abs(np.diff(points, axis=0)).T
    # A tenth of the picture's height is passed in steps, unless the curve itself is upright.
    assert (across[down > 17] < 1).all()
