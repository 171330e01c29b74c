"""Pages follow the terminal, standard output can be a file, and Ctrl-C ends in one line."""

import io
import json
import os
import re
import sys
import unicodedata

import jax
import pandas as pd
import pytest

import kltarget as kt
from kltarget import cli, pages, recipes, sweeps, verification
from kltarget.diagnosis import diagnose

WIDTHS = (60, 72, 80, 97, 120, 200)
COMMANDS = (
    "tasks",
    "recipe",
    "recipe trl-grpo",
    "recipe verl-grpo --beta 0.04 --reward-std 0.3",
    "recipe trl-grpo==1.9.2 --compare trl-grpo==1.10 --beta 0.04",
    "solve one-two --beta 1e-300,0.1",
    "solve bimodal --beta 1e-3:1:7",
    "solve words --beta 0.1 --threshold 1 --top 3",
    "solve --help",
    "diagnose --help",
    "prefer --help",
)


def columns(line):
    """How many columns of a terminal a line takes."""
    return sum(1 + (unicodedata.east_asian_width(x) in "WF") for x in line)


def widest(text):
    return max(map(columns, text.splitlines()))


@pytest.fixture(scope="module")
def report():
    options = {"policies": ["tabular"], "num_seeds": 1, "beta": [0.3], "num_steps": 20}
    return kt.verify("one-two", key=jax.random.key(0), **options)


@pytest.fixture(scope="module")
def diagnosis():
    completions = ["a very long answer " * 9, "x" * 90, "1", "日本語" * 20]
    rows = [
        {
            "prompt": f"say it {'again and ' * 30}{p}",
            "completion": completions[k],
            "answer": completions[k],
            "reward": float(k != 2),
            "step": step,
            "group_id": 10 * step + p,
            "ref_logp": -1.0 - k,
            "logp": -1.0 - 0.9 * k,
        }
        for step in range(3)
        for p in range(2)
        for k in range(4)
    ]
    return diagnose(pd.DataFrame(rows), recipes.recipe("trl-grpo", beta=0.1), beta=0.1)


@pytest.mark.quick_only(
    "tasks",
    "recipe",
    "recipe trl-grpo",
    "recipe verl-grpo --beta 0.04 --reward-std 0.3",
    "recipe trl-grpo==1.9.2 --compare trl-grpo==1.10 --beta 0.04",
    "solve words --beta 0.1 --threshold 1 --top 3",
    "diagnose --help",
    others="broad",
)
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_follow_the_terminal_and_cut_no_word(capsys, monkeypatch, command):
    words = {}
    for width in (1000, *WIDTHS):
        monkeypatch.setenv("COLUMNS", str(width))
        assert cli.main(command.split()) == 0
        page = capsys.readouterr().out
        assert widest(page) <= width
        words[width] = {x for x in page.split() if "=" not in x[1:-1]}
        # The example of a recipe's fields is longer than a line and parted between them.
        assert words[width] == words[1000], width


@pytest.mark.broad
@pytest.mark.parametrize("width", WIDTHS)
def test_printed_results_follow_the_terminal(monkeypatch, report, diagnosis, width):
    monkeypatch.setenv("COLUMNS", str(width))
    task = kt.tasks.load("bimodal")
    summary = kt.summarize(task.objective(0.1), task.modes, labels=task.labels)
    for page in (report, diagnosis, summary):
        assert widest(str(page)) <= width


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_every_recipe_fits(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for preset in recipes.presets():
        name = preset.title.replace(" ", "").replace("<=", "==").split("<")[0].split(">")[0]
        assert cli.main(["recipe", name]) == 0
    assert widest(capsys.readouterr().out) <= width


def test_a_word_longer_than_a_line_is_parted_after_a_sign(capsys, monkeypatch, tmp_path):
    path = tmp_path / "a-table-of.csv"
    path.write_text(f"answer,reward,prob,{'a_long_name/' * 6}\nx,1,0.5,u\ny,0,0.5,v\n")
    monkeypatch.setenv("COLUMNS", "40")
    line = ["solve", str(path), "--beta", "1", "--modes", "a_long_name/" * 6]
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert widest(out) <= 40
    assert "a_long_name/" * 6 in re.sub(r"\n *", "", out)
    assert re.search(r"(a_|a_long_|a_long_name/)\n", out)


def test_the_width_without_a_terminal_is_the_documented_one(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    bimodal = kt.tasks.load("bimodal").objective(1.0)
    assert 90 < widest(str(kt.summarize(bimodal))) <= 96
    assert "96 columns" in (cli.main.__doc__ or "")


def test_the_width_is_that_of_the_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def fileno(self):
            return 1

    terminal = Terminal()
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "__stdout__", terminal)
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((71, 20)))
    summary = kt.summarize(kt.tasks.load("bimodal").objective(1.0))
    assert 66 < widest(str(summary)) <= 71
    monkeypatch.setenv("COLUMNS", "64")
    assert 59 < widest(str(summary)) <= 64


@pytest.mark.parametrize("command", ["solve one-two --beta 0.1", "recipe trl-grpo"])
def test_json_dash_is_standard_output(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command.split(), "--json", "o.json"]) == 0
    capsys.readouterr()
    assert cli.main([*command.split(), "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((tmp_path / "o.json").read_text("utf-8"))
    assert printed.err == ""
    assert os.listdir(tmp_path) == ["o.json"], "no file is called -"


def test_diagnose_and_explore_print_what_a_dash_asks_for(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "?", "completion": str(k), "reward": k % 2, "step": 0} for k in range(8)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    line = ["diagnose", "log.jsonl", "--recipe", "place=loss,estimator=k3", "--beta", "0.1"]
    assert cli.main([*line, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["beta"] == 0.1
    assert cli.main([*line, "--html", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!DOCTYPE html>")
    assert cli.main([*line, "--html", "-", "--json", "-"]) == 2
    assert "standard output takes one thing" in capsys.readouterr().err
    assert cli.main(["explore", "one-two", "--html", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!DOCTYPE html>")
    assert os.listdir(tmp_path) == ["log.jsonl"]


def interrupt(*unused, **options):
    raise KeyboardInterrupt


def test_ctrl_c_is_one_line_and_130(capsys, monkeypatch):
    monkeypatch.setattr(kt.targets, "solve", interrupt)
    assert cli.main(["solve", "one-two", "--beta", "0.1"]) == 130
    assert capsys.readouterr().err == "kltarget: interrupted\n"


@pytest.mark.broad
def test_ctrl_c_names_what_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(kt.plot, "beta_path", interrupt)
    monkeypatch.setattr(kt.plot, "target", interrupt)
    made = tmp_path / "t.json"
    line = ["solve", "one-two", "--beta", "0.1", "--json", str(made)]
    assert cli.main([*line, "--plot", str(tmp_path / "t.png")]) == 130
    assert capsys.readouterr().err == f"kltarget: interrupted: wrote {made}\n"
    # Of another call of the command.
    monkeypatch.setattr(kt.targets, "solve", interrupt)
    assert cli.main(line) == 130
    assert capsys.readouterr().err == "kltarget: interrupted\n"


def test_ctrl_c_keeps_a_sweep_that_is_computed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "phase_boundaries", interrupt)
    out = tmp_path / "s.nc"
    assert cli.main(["sweep", "one-two", "--beta", "0.1,1", "--out", str(out)]) == 130
    assert capsys.readouterr().err.endswith(f"kltarget: interrupted: wrote {out}\n")
    assert sweeps.load(out).sizes["beta"] == 2


@pytest.mark.broad
def test_ctrl_c_keeps_a_report_whose_figure_is_drawn(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(kt.plot, "verification", interrupt)
    line = ["verify", "one-two", "--policies", "tabular", "--beta", "0.3", "--seeds", "1"]
    assert cli.main([*line, "--out", str(tmp_path)]) == 130
    *_, last = capsys.readouterr().err.splitlines()
    assert last == f"kltarget: interrupted: the report is in {tmp_path}"
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["passed"]
    assert sorted(os.listdir(tmp_path)) == ["report.csv", "report.json"]


class Watched(io.StringIO):
    """A terminal whose user presses Ctrl-C, once, as soon as something stands there."""

    def __init__(self, awaited):
        super().__init__()
        self.awaited = awaited

    def write(self, text):
        written = super().write(text)
        if self.awaited and self.awaited in self.getvalue():
            self.awaited = None
            interrupt()
        return written


def test_ctrl_c_keeps_the_runs_that_were_finished(tmp_path, monkeypatch):
    terminal = Watched("tabular, k3 in loss")
    monkeypatch.setattr(sys, "stderr", terminal)
    line = ["verify", "one-two", "--policies", "tabular", "--beta", "0.3", "--seeds", "1"]
    assert cli.main([*line, "--out", str(tmp_path)]) == 130
    *_, last = terminal.getvalue().replace("\r", "\n").splitlines()
    assert last == f"kltarget: interrupted: the runs that were finished are in {tmp_path}"
    content = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert len(content["runs"]) == 2
    assert not content["passed"]
    assert content["checks"][0]["detail"] == "stopped after 2 of 8"
    assert (tmp_path / "report.csv").exists()
    assert (tmp_path / "verify.png").exists()


@pytest.mark.broad
def test_ctrl_c_before_a_run_is_finished_keeps_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Watched("tabular, k1 in reward"))
    with pytest.raises(verification.Interrupted) as caught:
        kt.verify("one-two", key=jax.random.key(0), policies=["tabular"], progress=True)
    assert caught.value.report is None


def test_ctrl_c_says_how_a_sweep_goes_on(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "sweep", interrupt)
    line = ["sweep", "one-two", "--beta", "0.1,1", "--out", str(tmp_path / "s.nc")]
    assert cli.main(line) == 130
    said = "kltarget: interrupted: --parts FOLDER keeps what is finished\n"
    assert capsys.readouterr().err == said
    assert cli.main([*line, "--parts", str(tmp_path)]) == 130
    assert f"finished parts are in {tmp_path}" in capsys.readouterr().err


def test_the_bar_of_verify_is_there_before_the_targets(monkeypatch):
    terminal = Watched("targets")
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyboardInterrupt):
        kt.verify("one-two", key=jax.random.key(0), policies=["tabular"], progress=True)
    assert "0/48 " in terminal.getvalue()


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_page_on_a_phone_moves_what_is_wide_and_folds_what_is_long(diagnosis):
    page = pages.diagnosis(diagnosis)
    assert page.count('<div class="wide"><table>') == page.count("<table>")
    assert page.count('<div class="wide"><picture') == page.count("<picture") == 1
    assert "overflow-x: auto" in page
    assert "overflow-wrap: anywhere" in page
    ((short, whole),) = re.findall(r"<details><summary>(.*?)</summary><p>(.*?)</p>", page)
    assert len(short) < 250
    assert whole == diagnosis.featured.prompt
    assert page.split("<details>")[0].count("again and") < 20, "a long prompt hides no page"


def test_a_verification_counts_its_runs(report):
    assert "8 runs: 1 policy × 4 recipes × 1 β × 2 reward scales × 1 seed; exact" in str(report)
