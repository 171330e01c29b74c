"""The HTML page of a diagnosis: nothing is empty, nothing that models wrote runs."""

import html.parser
import json
import pathlib
import re
import time

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from kltarget import cli, pages, plot
from kltarget.diagnosis import Diagnosis, diagnose
from kltarget.recipes import Recipe
from kltarget.rollouts import read_rollouts

DATA = pathlib.Path(__file__).parent / "data" / "rollouts"
AT_ZERO = DATA / "trl116_grpo_digit_b0"
SHORT = DATA / "trl116_grpo_digit_b004_logp"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Tags(html.parser.HTMLParser):
    """The tags of a page with their attributes, and which are open at the end."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def evil(rows=64, prompts=2):
    rng = np.random.default_rng(0)
    answer = rng.choice([f"{EVIL}a", f"{EVIL}b", f"{EVIL}c"], rows)
    frame = pd.DataFrame({"answer": answer, "completion": answer})
    frame["prompt"] = [f"{EVIL}{i % prompts}" for i in range(rows)]
    frame["reward"] = [float(not x.endswith("c")) for x in answer]
    frame["step"] = np.arange(rows) // 32 + 1
    frame["group_id"] = np.arange(rows) // 8 * prompts + np.arange(rows) % prompts
    return frame.assign(ref_logp=np.log(1 / 3), logp=np.nan)


@pytest.fixture
def undrawn(monkeypatch):
    """Pages whose figures are not drawn."""
    for name in ("diagnosis", "history"):
        monkeypatch.setattr(plot, name, lambda found: Figure(figsize=(0.1, 0.1)))


@pytest.mark.usefixtures("undrawn")
def test_what_models_wrote_is_text():
    frame = evil().assign(source=f"/logs/{EVIL}.jsonl")
    frame[f"reward/{EVIL}"] = frame["reward"]
    frame.attrs |= {"notes": (f"column {EVIL}",), "format": "generic"}
    found = diagnose(frame, Recipe("reward", "k1"), beta=0.5, name=f"mine {EVIL}")
    page = pages.diagnosis(found, frame, path=f"/logs/{EVIL}", command=f"kltarget {EVIL}")
    tags = Tags(page)
    assert not tags.open
    assert [x for x in tags.of("script") if x] == []
    assert len(tags.of("script")) == 1
    assert all("onerror" not in attrs for _, attrs in tags.tags)
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    for link in (*tags.of("a"), *tags.of("img"), *tags.of("source")):
        target = link.get("href") or link.get("src") or link.get("srcset")
        assert target.startswith(("#prompt-", "data:image/png;base64,"))


@pytest.mark.usefixtures("undrawn")
def test_all_prompts_with_their_completions():
    frame = evil(320, 10)
    found = diagnose(frame, Recipe("reward", "k1"), beta=0.5)
    page = pages.diagnosis(found, frame)
    tags = Tags(page)
    places = {x["id"] for x in tags.of("details") if "id" in x}
    assert places == {f"prompt-{i}" for i in range(10)}
    assert {x["href"][1:] for x in tags.of("a")} == places
    # Each heading is a button, which keys reach, and says how it sorts.
    heads = [x for x in tags.of("th") if "aria-sort" in x]
    assert len(heads) == len(tags.of("button")) > 5
    assert {x["data-kind"] for x in heads} == {"text", "number"}
    numbers = [x["data-value"] for x in tags.of("td") if "data-value" in x]
    values = found.prompts["mean_reward"]
    assert {f"{x:.9g}" for x in values} <= set(numbers)
    assert len(tags.of("pre")) == 10 * 6
    assert "step 10, reward" in page
    # A long word breaks in what is folded as well.
    assert ".kltarget summary { overflow-wrap: anywhere; }" in page
    # Without the rollouts there are the numbers alone.
    alone = Tags(pages.diagnosis(found))
    assert not alone.of("a")
    assert len([x for x in alone.of("th") if "aria-sort" in x]) == len(heads)


@pytest.mark.usefixtures("undrawn")
def test_a_log_without_steps_has_a_page(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [{"prompt": "?", "completion": x, "reward": r} for x, r in (("a", 1.0), ("b", 0.0)) * 4]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frame = read_rollouts(path, num_generations=8)
    assert frame["step"].isna().all()
    page = pages.diagnosis(diagnose(frame), frame)
    assert "reward 1, log.jsonl, group 0" in page
    assert "step <NA>" not in html.unescape(page)


@pytest.mark.usefixtures("undrawn")
def test_a_large_log_makes_no_large_page():
    frame = evil(1_005 * 16, 1_005)
    frame["completion"] = frame["completion"] + "x" * 700
    found = diagnose(frame, num_bootstrap=2)
    page = pages.diagnosis(found, frame)
    assert "The 1,000 of 1,005 prompts with most rollouts" in page
    shown = re.search(r"cut to 400 characters, for (\d+) prompts.", page)
    assert 300 < int(shown[1]) < 1_000
    assert len(Tags(page).of("pre")) == 6 * int(shown[1])
    assert len(page) < 3_000_000


@pytest.mark.parametrize(
    ("log", "options", "figures"),
    [
        (AT_ZERO, {"recipe": "trl-grpo==1.16.0", "beta": 0.0}, 2),
        pytest.param(AT_ZERO, {}, 2, marks=pytest.mark.broad),
        pytest.param(SHORT, {"recipe": "trl-grpo", "beta": 0.0}, 2, marks=pytest.mark.broad),
    ],
)
def test_nothing_is_half_empty(log, options, figures):
    found = diagnose(log, num_bootstrap=20, **options)
    page = pages.diagnosis(found)
    assert page.count("<picture>") == figures
    assert len(plot.diagnosis(found).axes) == 1
    for ax in plot.history(found).axes:
        assert len(ax.lines) == 1
        assert np.isfinite(ax.lines[0].get_ydata()).sum() > 1
    for table in re.findall(r"<tbody>.*?</tbody>", page, re.DOTALL):
        rows = (re.findall(r"<td.*?</td>", row) for row in table.split("<tr>")[1:])
        columns = zip(*rows, strict=True)
        assert all(any(re.sub("<.*?>", "", cell) for cell in column) for column in columns)
    assert not re.search(r"<(ul|p|h2)[^>]*>\s*</", page)


def test_curves_have_their_targets():
    found = diagnose(SHORT, "trl-grpo==1.16.0", beta=0.04, num_bootstrap=20)
    figure = plot.history(found)
    for ax, name in zip(figure.axes, ("reward", "entropy", "differ", "zero_std"), strict=True):
        curve, target = ax.lines
        assert curve.get_ydata() == pytest.approx(found.history[name])
        assert target.get_linestyle() == "--"
        assert set(target.get_ydata()) == {found.asymptotes[name]}
    one = evil(32).assign(step=1)
    assert plot.history(diagnose(one)) is None
    assert pages.diagnosis(diagnose(one)).count("<picture>") == 1


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_exit_codes_for_ci(capsys):
    base = ("diagnose", AT_ZERO, "--trainer", "trl-grpo==1.16.0", "--beta", "0")
    code, out, err = run(capsys, *base)
    assert (code, err) == (0, "")
    assert out.startswith("Collapsed, and nothing in the recipe held it.\n  1. ")
    assert run(capsys, *base, "--fail-on", "collapsed")[0] == 1
    assert run(capsys, *base, "--fail-on", "narrowing")[0] == 1
    narrowing = ("diagnose", SHORT, "--max-prompts", "4")
    assert run(capsys, *narrowing, "--fail-on", "collapsed")[0] == 0
    assert run(capsys, *narrowing, "--fail-on", "narrowing")[0] == 1
    code, _, err = run(capsys, *narrowing, "--fail-on", "held")
    assert code == 2
    assert "--fail-on" in err


def test_watching_ends_where_it_fails(capsys, monkeypatch):
    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", stop)
    watch = ("diagnose", SHORT, "--watch", "1", "--fail-on")
    assert run(capsys, *watch, "narrowing")[0] == 1
    # What is not as bad goes on until it is interrupted.
    assert run(capsys, *watch, "collapsed")[0] != 1


@pytest.mark.usefixtures("undrawn")
def test_the_command_without_a_recipe(capsys, tmp_path):
    report, found = tmp_path / "report.html", tmp_path / "found.json"
    code, out, err = run(capsys, "diagnose", AT_ZERO, "--html", report, "--json", found)
    assert (code, err) == (0, "")
    assert "  1. Say what the trainer does: --trainer trl-grpo --beta β." in out
    assert "recipe: not given" in out
    page = report.read_text("utf-8")
    assert f"command: kltarget diagnose {AT_ZERO} --html {report}" in page
    assert f"log: {AT_ZERO}" in page
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d [+-]\d{4}, kltarget \d", page)
    assert "completions_00060.parquet, group" in page
    content = json.loads(found.read_text("utf-8"))
    assert (content["grade"], content["cause"]) == ("unknown", "unknown")
    assert content["actions"][0]["key"] == "--trainer"
    assert Diagnosis.load(found).headline == content["headline"]
    code, _, err = run(capsys, "diagnose", AT_ZERO, "--beta", "0.1")
    assert code == 2
    assert "say what the trainer does" in err


@pytest.mark.broad
def test_two_runs_side_by_side(capsys, tmp_path):
    base = ("diagnose", AT_ZERO, "--against", SHORT, "--trainer", "trl-grpo==1.16.0", "--beta", "0")
    code, out, _ = run(capsys, *base, "--fail-on", "collapsed")
    assert code == 1
    assert "A · Collapsed, and nothing in the recipe held it." in out
    assert "B · Narrowing, and nothing in the recipe held it." in out
    assert "  • Two completions of a group" in out
    assert re.search(r"grade +collapsed +narrowing\n", out)
    assert re.search(r"cause +not regularised at all +not regularised at all\n", out)
    # The first run alone decides.
    other = ("diagnose", SHORT, "--against", AT_ZERO, *base[4:])
    assert run(capsys, *other, "--fail-on", "collapsed")[0] == 0
