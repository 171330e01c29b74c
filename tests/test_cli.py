"""The command: what it prints, what it writes, and how it says that something is wrong."""

import importlib.metadata
import io
import json
import math
import os
import re
import stat
import subprocess
import sys
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import kltarget as kt
from kltarget import cli, targets, tasks
from kltarget.divergences.names import CLASSES

TABLE = "answer,reward,logp,family\nred,1,-1.2,warm\nblue,1,-3.9,cold\ngrey,0,-0.6,cold\n"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "colours.csv"
    path.write_text(TABLE)
    return path


def _run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def _json(capsys, path, *arguments):
    code, _, error = _run(capsys, *arguments, "--json", path)
    assert (code, error) == (0, "")
    return json.loads(path.read_text(encoding="utf-8"))


def test_what_a_newcomer_sees(capsys):
    code, out, err = _run(capsys, "solve", "one-two", "--beta", "0.01,0.1,1")
    assert (code, err) == (0, "")
    assert out.startswith(
        """\
one-two: two right answers, reference ratio 15:1
3 outcomes, 2 right (reward 1, reference mass 0.3200); regularised by reverse KL

β           expected reward   KL(π‖π_ref)   effective modes
reference            0.3200        0.0000         1.26 of 2
0.01                 1.0000        1.1394         1.26 of 2
0.1                  0.9999        1.1384         1.26 of 2
1                    0.5612        0.1231         1.26 of 2

outcome   reward   reference   β = 0.01   β = 0.1    β = 1
1              1      0.3000     0.9375    0.9374   0.5262
2              1      0.0200     0.0625    0.0625   0.0351
other          0      0.6800    7.9e-44   9.6e-05   0.4388

"""
    )
    # The words are those of the summary, and what no β changes is said once.
    verdicts = out.split("\n\n")[-1].replace("\n    ", " ").splitlines()
    task = tasks.load("one-two")
    summary = kt.summarize(task.objective(0.1), task.modes, labels=task.labels)
    first, always = summary.verdict.split("; ")
    assert verdicts[1] == f"β = 0.1: {first}"
    assert verdicts[3:] == [
        always,
        "“1” overtakes the reference's favourite “other” below β = 1.222",
    ]
    _, out, _ = _run(capsys, "solve", "one-two", "--beta", "0.1")
    assert f"β = 0.1: {summary.verdict}" in out.replace("\n    ", " ")


def test_labels_may_hold_what_parts_sentences(capsys, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        'answer,reward,prob\n"1; at every β",1,0.3\n"2; far",1,0.02\n"other; at every β",0,0.68\n'
    )
    code, out, _ = _run(capsys, "solve", path, "--beta", "0.1,0.2")
    assert code == 0
    first, second, *rest = out.split("\n\n")[-1].replace("\n    ", " ").splitlines()
    for line in (first, second):
        assert line.endswith("“1; at every β”, one of 2 equally rewarded modes")
    assert rest == [
        "equal rewards keep the reference's ratio (15 : 1) at every β",
        "“1; at every β” overtakes the reference's favourite “other; at every β” below β = 1.222",
    ]


@pytest.mark.slow
def test_python_dash_m_is_the_same_command(capsys):
    arguments = ["solve", "one-two", "--beta", "0.1", "--divergence", "forward-kl"]
    done = subprocess.run(
        [sys.executable, "-m", "kltarget", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=True,
    )
    assert done.stdout == _run(capsys, *arguments)[1]
    assert done.stderr == ""


@pytest.mark.broad
def test_a_second_call_compiles_nothing(tmp_path):
    def call(*more, **settings):
        asked = [sys.executable, "-m", "kltarget", "solve", "one-two", "--beta", "0.1", *more]
        bare = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        # One per system: where users' caches are.
        places = ("XDG_CACHE_HOME", "HOME", "LOCALAPPDATA")
        env = {**bare, **dict.fromkeys(places, str(tmp_path)), **settings}
        done = subprocess.run(asked, capture_output=True, encoding="utf-8", env=env, check=True)
        assert done.stderr == ""
        return done.stdout

    def kept():
        files = (x for x in tmp_path.rglob("*-cache") if "kltarget" in x.parts)
        return {x: x.read_bytes() for x in files}

    page = call(JAX_ENABLE_COMPILATION_CACHE="false")
    assert not kept()
    assert call("--no-cache") == page
    assert not kept()
    assert call() == page
    first = kept()
    assert len(first) > 5

    # Programs that no one asks for go: here more than are kept, all older than the first call.
    folder = next(iter(first)).parent
    for i in range(5000):
        (folder / f"{i}-cache").touch()
        os.utime(folder / f"{i}-cache", (0, 0))
    assert call() == page
    assert len(kept()) < 2500
    assert {path: program for path, program in kept().items() if program} == first


@pytest.mark.broad
def test_a_home_that_cannot_be_written_is_no_error(tmp_path):
    nowhere = tmp_path / "file"
    nowhere.touch()
    places = dict.fromkeys(("XDG_CACHE_HOME", "HOME", "LOCALAPPDATA"), str(nowhere))
    asked = [sys.executable, "-m", "kltarget", "tasks"]
    done = subprocess.run(asked, capture_output=True, env={**os.environ, **places}, check=True)
    assert done.stderr == b""


def test_the_console_script_is_declared():
    scripts = importlib.metadata.entry_points(group="console_scripts", name="kltarget")
    assert [script.value for script in scripts] in ([], ["kltarget.cli:command"])


def test_tasks_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    code, out, err = _run(capsys, "tasks")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].split() == ["task", "outcomes", "right", "description"]
    assert lines[4].split()[1:3] == ["3,118", "35"]
    # A block per space, which says for which commands it is.
    blocks = [block.splitlines() for block in out.split("\n\n")]
    listed = [[line.split()[0] for line in block[2:]] for block in blocks]
    spaces = (tasks.text_names(), tasks.chain_names(), tasks.mdp_names(), tasks.game_names())
    assert listed == [list(names) for names in (tasks.names(), *spaces)]
    assert blocks[2][0] == "Chains of steps, for verify:"
    assert next(line for line in lines if line.startswith("river-swim")).split()[1:4] == [
        "6",
        "×",
        "2",
    ]


def test_a_table_says_what_was_guessed(capsys, table, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    code, out, _ = _run(capsys, "solve", table, "--beta", "0.1")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "colours: 3 outcomes from colours.csv"
    assert lines[1] == "  outcome column 'answer', reward column 'reward'"
    assert lines[2].startswith(
        "  reference from log-probabilities in column 'logp': masses sum to 0.87"
    )
    assert lines[2].endswith("normalised away")


@pytest.mark.broad
def test_missing_mass_can_be_kept(capsys, table, tmp_path):
    content = _json(
        capsys, tmp_path / "o.json", "solve", table, "--beta", "0.1", "--unseen-reward", "-1"
    )
    assert content["labels"] == ["red", "blue", "grey", "(unseen)"]
    assert content["reward"] == [1, 1, 0, -1]
    assert content["missing_mass"] == pytest.approx(1 - np.exp([-1.2, -3.9, -0.6]).sum())
    np.testing.assert_allclose(content["log_ref"][:3], [-1.2, -3.9, -0.6])


def test_columns_can_be_named(capsys, tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\tc\td\nx\t1\t3\tu\ny\t0\t1\tu\n")
    content = _json(
        capsys,
        tmp_path / "o.json",
        *("solve", path, "--beta", "1", "--outcome", "a", "--reward", "b", "--count", "c"),
        *("--modes", "d"),
    )
    assert content["labels"] == ["x", "y"]
    assert content["modes"] == [0, 0]
    np.testing.assert_allclose(content["log_ref"], np.log([0.75, 0.25]))
    for kind in ("log-ref", "prob"):
        named = ("--outcome", "a", "--reward", "b", f"--{kind}", "c")
        code, _, err = _run(capsys, "solve", path, "--beta", "1", *named)
        assert code == 2
        assert "column 'c', row 1 (line 2): 3 is no" in err


@pytest.mark.broad
def test_modes_are_summed_when_they_are_groups(capsys, tmp_path):
    code, out, _ = _run(capsys, "solve", "bimodal", "--beta", "0.1", "--top", "4")
    assert code == 0
    assert "of “25”           21      0.8081" in out
    assert "not right         58      0.0710" in out
    assert "it overtakes the mode of “25” below β = 0.1316" in out.replace("\n    ", " ")
    assert "favourite" not in out


@pytest.mark.broad
@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        ("0.1", [0.1]),
        ("1,0.01, 0.1", [1, 0.01, 0.1]),
        ("1e-3:10:3", [1e-3, 1e-1, 10]),
        ("2:0.5:3", [2, 1, 0.5]),
        ("0.3:9:1", [0.3]),
    ],
)
def test_betas(capsys, tmp_path, beta, expected):
    content = _json(capsys, tmp_path / "o.json", "solve", "one-two", "--beta", beta)
    got = [row["beta"] for row in content["targets"]]
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    assert got[0] == expected[0]
    assert got[-1] == expected[-1]


@pytest.mark.parametrize("option", ["--expected-reward", "--reward"])
def test_the_beta_of_an_expected_reward(capsys, tmp_path, option):
    content = _json(capsys, tmp_path / "o.json", "solve", "one-two", option, "0.5,0.9")
    # p = m e^{1/β}/(1 − m + m e^{1/β}) with the mass m = 0.32 of the right answers.
    expected = [1 / (math.log(p / (1 - p)) - math.log(0.32 / 0.68)) for p in (0.5, 0.9)]
    np.testing.assert_allclose([row["beta"] for row in content["targets"]], expected, rtol=1e-9)
    assert content["asked"] == {"expected_reward": [0.5, 0.9]}


@pytest.mark.broad
def test_the_beta_of_a_kl_and_of_best_of_n(capsys, tmp_path):
    path = tmp_path / "o.json"
    right = 1 - 0.68**4
    kl = right * math.log(right / 0.32) + (1 - right) * math.log((1 - right) / 0.68)
    # Of two rewards the one with the same KL is the same distribution.
    beta = 1 / (math.log(right / (1 - right)) - math.log(0.32 / 0.68))
    for option in (("--kl-budget", repr(kl)), ("--best-of", "4")):
        content = _json(capsys, path, "solve", "one-two", *option)
        (row,) = content["targets"]
        assert row["beta"] == pytest.approx(beta, rel=1e-9)
        assert row["kl_to_reference"] == pytest.approx(kl, rel=1e-12)
    (found,) = content["asked"]["kl"]
    assert found == pytest.approx(kl, rel=1e-12)
    code, out, _ = _run(capsys, "solve", "one-two", "--best-of", "4")
    assert code == 0
    said = " ".join(out.split())
    assert f"best-of-4 has KL(π‖π_ref) {kl:.4f} (at most log n − (n − 1)/n = 0.6363)" in said
    assert f"the target has that KL at β = {beta:.6g}" in said


DIVERGENCES = {
    "reverse-kl": kt.ReverseKL(),
    "forward-kl": kt.ForwardKL(),
    "jensen-shannon": kt.JensenShannon(),
    "alpha:0.5": kt.Alpha(0.5),
    "chi-squared": kt.ChiSquared(),
    "neyman-chi-squared": kt.NeymanChiSquared(),
    "squared-hellinger": kt.SquaredHellinger(),
    "tsallis:1.5": kt.Tsallis(1.5),
    "chi-squared-kl": kt.ChiSquaredKL(),
    "total-variation": kt.TotalVariation(),
}


@pytest.mark.broad
@pytest.mark.quick_only("forward-kl", "total-variation")
@pytest.mark.parametrize("name", ["forward-kl", "total-variation", "alpha:0.5", "chi-squared-kl"])
def test_targets_of_a_divergence(capsys, tmp_path, name):
    content = _json(
        capsys, tmp_path / "o.json", "solve", "one-two", "--beta", "0.2", "--divergence", name
    )
    assert content["divergence"] == name
    with oracles.double_precision():
        objective = tasks.load("one-two").objective(np.array([0.2]), divergence=DIVERGENCES[name])
        target = kt.solve(objective)
        expected = target.log_probs[0], target.expected_reward[0], target.value[0]
    (row,) = content["targets"]
    got = [float(log_prob) for log_prob in row["log_probs"]]
    for found, wanted in zip((got, row["expected_reward"], row["value"]), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_all_divergences_are_offered():
    offered = {name.split(":")[0] for name in DIVERGENCES}
    assert offered == set(CLASSES)
    assert all(getattr(kt, cls.__name__) is cls for cls in CLASSES.values())
    assert {name: kt.divergences.named(name) for name in DIVERGENCES} == DIVERGENCES


def test_json_is_double_precision_and_documented(capsys, tmp_path):
    """Golden numbers; they need float64 whatever the mode of this process."""
    path = tmp_path / "o.json"
    content = _json(capsys, path, "solve", "one-two", "--beta", "0.1")
    assert set(content) == {
        *("problem", "divergence", "mara", "asked", "notes", "missing_mass"),
        *("labels", "reward", "log_ref", "modes", "targets"),
    }
    (row,) = content["targets"]
    assert set(row) == {
        *("beta", "log_probs", "expected_reward", "kl_to_reference", "entropy"),
        *("effective_modes", "value", "multiplier", "divergence_value", "status"),
    }
    for key in (*content, *row):
        assert f"``{key}``" in (cli.__doc__ or "")
    expected = [0.937409563552, 0.0624939709035, 9.64655442463e-5]
    np.testing.assert_allclose(np.exp(row["log_probs"]), expected, rtol=1e-11)
    assert row["effective_modes"] == pytest.approx(1.2633812503, rel=1e-10)
    assert row["value"] == pytest.approx(0.1 * 8.86066218701, rel=1e-11)
    assert row["kl_to_reference"] == pytest.approx(row["divergence_value"], rel=1e-12)
    assert row["status"] == []
    first = path.read_bytes()
    _json(capsys, path, "solve", "one-two", "--beta", "0.1")
    assert path.read_bytes() == first


def test_json_has_no_infinities(capsys, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(
        '{"answer": ["a", "b", "c"], "reward": [0, 1, -Infinity], "prob": [0.5, 0, 0.5]}'
    )
    content = _json(
        capsys, tmp_path / "o.json", "solve", path, "--beta", "0.1", "--divergence", "forward-kl"
    )
    assert content["log_ref"][1] == "-inf"
    assert content["reward"][2] == "-inf"
    (row,) = content["targets"]
    assert row["log_probs"][2] == "-inf"
    assert row["kl_to_reference"] == "inf"
    assert row["status"] == ["CONDENSED"]


@pytest.mark.broad
def test_remarks_of_the_solver_are_printed(capsys):
    code, out, _ = _run(
        capsys, "solve", "one-two", "--beta", "0.01,10", "--divergence", "chi-squared"
    )
    assert code == 0
    assert "Note: β = 0.01: the target is exactly 0 on outcomes that the reference can" in out


def test_the_precision_of_the_process_is_left_alone(capsys):
    before = jax.numpy.zeros(1).dtype
    assert _run(capsys, "solve", "one-two", "--beta", "0.1")[0] == 0
    assert jax.numpy.zeros(1).dtype == before


@pytest.mark.broad
def test_mara_equalises(capsys, tmp_path):
    for divergence, method in (("reverse-kl", "augment"), ("forward-kl", "substitute")):
        arguments = (
            "solve",
            "one-two",
            "--beta",
            "0.1",
            "--divergence",
            divergence,
            "--threshold",
            1,
        )
        content = _json(capsys, tmp_path / "o.json", *arguments)
        assert content["mara"] == {"threshold": 1, "method": method}
        assert content["reward"] == [1, 1, 0], "the problem is shown as it was read"
        (row,) = content["targets"]
        assert row["log_probs"][0] == pytest.approx(row["log_probs"][1], rel=1e-12)
        assert row["effective_modes"] == pytest.approx(2)
        _, out, _ = _run(capsys, *arguments)
        assert f"with MARA ({method})" in " ".join(out.split())
        assert "MARA makes the 2 outcomes of reward 1 or more equally probable\n" in out


def test_mara_that_over_corrects_is_remarked(capsys):
    _, out, _ = _run(
        capsys,
        *("solve", "one-two", "--beta", "0.1", "--divergence", "forward-kl"),
        *("--threshold", "1", "--mara-method", "augment"),
    )
    assert "unequal, by up to a factor 7.62 at β = 0.1" in out


@pytest.mark.broad
def test_only_the_top_is_printed_and_the_rest_summed(capsys):
    _, out, _ = _run(capsys, "solve", "words", "--beta", "1e-2:1:9", "--top", "3")
    lines = out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("outcome"))
    assert lines[head].count("β = ") == 5
    assert [line.split()[0] for line in lines[head + 1 : head + 4]] == ["is", "in", "and"]
    assert lines[head + 4].startswith("(3,115 more)")
    columns = np.array([line.split()[-6:] for line in lines[head + 1 : head + 5]], float)
    np.testing.assert_allclose(columns.sum(axis=0), 1, atol=3e-4)
    betas = next(i for i, line in enumerate(lines) if line.split()[:1] == ["β"])
    assert len(lines[betas + 2 : head - 1]) == 9, "every β has its row"


@pytest.mark.parametrize("name", ["targets.png", "targets.pdf", "targets.SVG"])
def test_plots_are_written(capsys, tmp_path, name):
    code, out, err = _run(capsys, "solve", "one-two", "--beta", "0.1", "--plot", tmp_path / name)
    assert (code, err) == (0, "")
    assert f"wrote {tmp_path / name}" in out
    magic = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[name[-4:].lower()]
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_files_appear_complete_or_not_at_all(capsys, tmp_path, monkeypatch):
    path = tmp_path / "o.json"
    path.write_text("old")

    def fail(*unused, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    code, _, err = _run(capsys, "solve", "one-two", "--beta", "0.1", "--json", path)
    assert (code, err) == (2, f"kltarget: {path}: cannot be written: No space left on device\n")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["o.json"]


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_files_have_the_permissions_of_new_files(capsys, tmp_path):
    (tmp_path / "new").touch()
    _json(capsys, tmp_path / "o.json", "solve", "one-two", "--beta", "0.1")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "o.json")}
    assert len(modes) == 1


def test_a_failed_solution_exits_with_one_and_names_its_beta(capsys, tmp_path, monkeypatch):
    solve = kt.solve

    def broken(objective):
        target = solve(objective)
        status = np.asarray(target.status).copy()
        status[1] |= int(kt.Status.NOT_CONVERGED)
        log_probs = target.log_probs.at[1].set(jnp.nan)
        return type(target)(target.objective, log_probs, target.multiplier, jnp.asarray(status))

    monkeypatch.setattr(targets, "solve", broken)
    path = tmp_path / "o.json"
    code, out, err = _run(capsys, "solve", "one-two", "--beta", "0.1,0.5,1", "--json", path)
    assert code == 1
    assert err == "kltarget: one-two: β = 0.5 failed: NOT_CONVERGED\n"
    assert "nan" in out
    rows = json.loads(path.read_text())["targets"]
    assert [row["status"] for row in rows] == [[], ["NOT_CONVERGED"], []]
    assert rows[1]["log_probs"] == ["nan"] * 3


BAD_OPTIONS = {
    "": "the following arguments are required: COMMAND (see kltarget --help)",
    "solve": "the following arguments are required: TABLE_OR_TASK (see kltarget solve --help)",
    "solve one-two": "the following arguments are required: --beta, or one of --kl-budget, --exp",
    "solve one-two --beta 0": "argument --beta: '0' is not a finite number above 0",
    "solve one-two --beta inf": "argument --beta: 'inf' is not a finite number above 0",
    "solve one-two --beta 0.1,,1": "argument --beta: '' is not a number",
    "solve one-two --beta nan": "argument --beta: 'nan' is not a number",
    "solve one-two --beta 1:2": "argument --beta: '1:2' is neither a list such as",
    "solve one-two --beta 1:2:0": "argument --beta: '0' is not a whole number above 0",
    "solve one-two --beta 1:2:1.5": "argument --beta: '1.5' is not a whole number above 0",
    "solve one-two --beta 1:-2:3": "argument --beta: '-2' is not a finite number above 0",
    "solve one-two --beta 1 --top 0": "argument --top: '0' is not a whole number above 0",
    "solve one-two --beta 1 --divergence kl": "argument --divergence: 'kl' is none of reverse-kl",
    "solve one-two --beta 1 --divergence alpha": "argument --divergence: alpha needs its par",
    "solve one-two --beta 1 --divergence alpha:inf": "argument --divergence: 'inf' is not a finite",
    "solve one-two --beta 1 --divergence tsallis:-1": "argument --divergence: q must be above 0",
    "solve one-two --beta 1 --divergence alpha:x": "argument --divergence: 'x' is not a number",
    "solve one-two --beta 1 --divergence reverse-kl:2": "argument --divergence: reverse-kl has",
    "solve one-two --beta 1 --mara-method augment": "--mara-method needs --threshold",
    "solve one-two --beta 1 --reward r": "--reward is for tables, but 'one-two' is a task",
    "solve one-two --beta 1 --unseen-reward 0": "--unseen-reward is for tables, but 'one-two'",
    "solve one-two --beta 1 --json nowhere/o.json": "nowhere/o.json: there is no folder 'nowhere'",
    "solve one-two --beta 1 --plot o.docx": "o.docx: cannot draw a .docx: use .png, .pdf or .svg",
    "solve one-two --beta 1 --plot o": "o: cannot draw a file without extension",
    "solve one-two --beta 1 --threshold 2": "one-two: ",
    "solve one_two --beta 1": "problem 'one_two' is neither a file nor a task: the tasks are ",
    "solve nowhere.csv --beta 1": "nowhere.csv: cannot be read: No such file or directory",
    "solve a.csv --beta 1 --prob p --count n": "argument --count: not allowed with argument --prob",
    "solve one-two --bet 1": "unrecognized arguments: --bet 1",
    "solve one-two --beta 1 --kl-budget 1": "argument --kl-budget: not allowed with argument --be",
    "solve one-two --kl-budget 2": "one-two: --kl-budget 2.0 is not reached: KL(π‖π_ref) lies",
    "solve one-two --kl-budget 0": "argument --kl-budget: '0' is not a finite number above 0",
    "solve one-two --reward 1.5": "one-two: --expected-reward 1.5 is not reached: the expected re",
    "solve one-two --reward r": "argument --reward: 'r' is not a number or a list of them",
    "solve one-two --best-of 1": "argument --best-of: '1' is not above 1, and one draw is the ref",
    "solve one-two --best-of 1e5": "one-two: --best-of 100000: its KL(π‖π_ref), 1.139 nats, is mo",
    "solve one-two --best-of 2 --threshold 1": "--best-of and --threshold: MARA's reward depends",
    "plot one-two": "argument COMMAND: invalid choice: 'plot'",
}


@pytest.mark.parametrize("line", BAD_OPTIONS)
def test_bad_options_exit_with_two_and_one_line(capsys, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    code, _, err = _run(capsys, *line.split())
    assert code == 2
    assert err.startswith(f"kltarget: {BAD_OPTIONS[line]}")
    assert err.count("\n") == 1
    assert not os.listdir(tmp_path), "nothing is left behind"


@pytest.mark.parametrize(
    "line",
    [
        "solve one-two --beta 1 --json made",
        "solve one-two --beta 1 --plot made.png",
        "explore one-two --html made",
        "sweep one-two --beta 1 --out made.nc",
        "sweep one-two --beta 1 --out made",
        "recipe trl-grpo --json made",
    ],
)
def test_where_nothing_can_be_written_nothing_is_computed(capsys, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    for name in ("made", "made.png", "made.nc"):
        (tmp_path / name).mkdir()
    code, out, err = _run(capsys, *line.split())
    assert (code, out) == (2, "")
    assert re.fullmatch(r"kltarget: made\S*: .*(is a folder: give|must end in) .*\n", err)


BAD_TABLES = {
    "reward that is NaN": ("a,nan,1\n", "column 'reward', row 1 (line 2): the entry is NaN"),
    "duplicate": (
        "a,1,1\na,1,1\n",
        "column 'answer', row 2 (line 3): 'a' is already in row 1 (line 2): "
        "give each outcome one row (add up its counts or probabilities)",
    ),
    "ragged": ("a,1,1,9\n", "row 1 (line 2) has 4 entries, the header has 3"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_exit_with_two_and_their_place(capsys, tmp_path, case):
    rows, message = BAD_TABLES[case]
    path = tmp_path / "t.csv"
    path.write_text("answer,reward,count\n" + rows)
    assert _run(capsys, "solve", path, "--beta", "1") == (2, "", f"kltarget: {path}: {message}\n")


def test_the_table_is_not_overwritten(capsys, tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"answer": ["a"], "reward": [1], "prob": [1]}')
    before = path.read_bytes()
    code, _, err = _run(capsys, "solve", path, "--beta", "1", "--json", path)
    assert (code, err) == (2, f"kltarget: {path}: this is the table itself: write elsewhere\n")
    assert path.read_bytes() == before


def test_parquet_without_pyarrow(capsys, tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = _run(capsys, "solve", path, "--beta", "1")
    assert code == 2
    assert err.endswith('needs pyarrow: pip install "kltarget[parquet]"\n')


def test_help_and_version(capsys):
    for arguments in (["--help"], ["solve", "--help"], ["tasks", "--help"]):
        code, out, err = _run(capsys, *arguments)
        assert (code, err) == (0, "")
        assert out.startswith("usage: kltarget")
    assert "TABLE_OR_TASK" in _run(capsys, "solve", "--help")[1]


def columns(line):
    """How many columns of a terminal a line takes."""
    wide = sum(unicodedata.east_asian_width(x) in "WF" for x in line)
    return len(line) + wide - sum(unicodedata.combining(x) > 0 for x in line)


def test_labels_of_any_script_stay_aligned(capsys, tmp_path):
    path = tmp_path / "t.csv"
    labels = ["日本語", "e\u0301te\u0301", "two\nlines", "x" * 60]
    quoted = "".join(f'"{label}",{i},1\n' for i, label in enumerate(labels))
    path.write_text("answer,reward,count\n" + quoted, encoding="utf-8")
    _, out, _ = _run(capsys, "solve", path, "--beta", "1")
    lines = out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("outcome"))
    block = lines[head : head + 5]
    assert {columns(line) for line in block} == {columns(block[0])}
    assert block[3].startswith("two\\nlines ")
    assert "x…x" in block[4]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_greek_still_gets_the_numbers(capsys, monkeypatch, encoding):
    for line, expected in (
        ("solve one-two --beta 0.1", "outcome   reward   reference   b = 0.1"),
        ("solve --help", "--beta b"),
    ):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            assert cli.main(line.split()) == 0
        assert expected in stdout.buffer.getvalue().decode(encoding)


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is POSIX's")
def test_a_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "kltarget", "tasks"],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("log_mass", "shown"),
    [
        (0.0, "1.0000"),
        (np.log(0.25), "0.2500"),
        (np.log(0.001), "0.0010"),
        (np.log(0.000994), "9.9e-04"),
        (np.log(0.000998), "1.0e-03"),
        (-1000.0, "5.1e-435"),
        (-np.inf, "0"),
    ],
)
def test_probabilities_are_shown_even_when_floats_underflow(capsys, tmp_path, log_mass, shown):
    path = tmp_path / "two.csv"
    with np.errstate(divide="ignore"):
        rest = np.log(-np.expm1(log_mass))
    path.write_text(f"answer,reward,logp\na,1,{log_mass}\nb,1,{rest}\n")
    code, out, _ = _run(capsys, "solve", path, "--beta", "1")
    assert code == 0
    (row,) = (line.split() for line in out.splitlines() if line.startswith("a "))
    assert row[2:] == [shown, shown]


def test_one_thing_is_not_several(capsys, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("answer,reward,prob\nonly,-0.0,1\n")
    code, out, err = _run(capsys, "solve", path, "--beta", "1")
    assert (code, err) == (0, "")
    assert out.startswith("t: 1 outcome from t.csv\n")
    assert "1 outcome, 1 right (reward 0, reference mass 1.0000)" in out
    assert "-0" not in out
    assert "1 outcomes" not in out
    _, out, _ = _run(capsys, "solve", path, "--beta", "1", "--threshold", "-1")
    assert "MARA changes nothing: there is one outcome of reward -1 or more" in out
    assert tasks.as_task(([0.0], [0.0])).description == "1 outcome"


@pytest.mark.broad
def test_what_has_no_mass_is_no_rival(capsys, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("answer,reward,prob\nA,1,0.6\nC,0,0\n")
    for divergence in ("reverse-kl", "forward-kl"):
        summary = kt.summarize(
            tasks.as_task(([1.0, 0.5, 0.0], np.log([0.6, 0.4, 1e-300]))).objective(0.3)
        )
        assert "prefers it to “1” already" in summary.verdict, "a rival that has mass is named"
        _, out, _ = _run(capsys, "solve", path, "--beta", "0.3", "--divergence", divergence)
        assert "“C”" not in out


@pytest.mark.broad
@pytest.mark.parametrize("beta", [1e3, 1e9, 1e17])
def test_divergences_are_not_negative(capsys, tmp_path, beta):
    path = tmp_path / "t.csv"
    rows = "".join(f"a{k},{k % 3},{k + 1}\n" for k in range(17))
    path.write_text("answer,reward,count\n" + rows)
    content = _json(capsys, tmp_path / "o.json", "solve", path, "--beta", beta)
    assert content["targets"][0]["kl_to_reference"] >= 0
    task = tasks.as_task(path)
    summary = kt.summarize(task.objective(beta), task.modes)
    assert summary.reverse_kl >= 0
    assert summary.forward_kl >= 0
    assert "is -" not in summary.headline
    explorer = kt.explore(path, beta=beta)
    assert all(
        x >= 0 for name in ("reverse_kl", "forward_kl") for x in explorer.scene.measures[name]
    )


def test_tiny_probabilities_do_not_fill_the_page(capsys):
    _, out, _ = _run(capsys, "solve", "one-two", "--beta", "1e-300")
    assert "exp(-1e300)" in out
    assert max(map(len, out.split())) < 20


@pytest.mark.parametrize("command", ["solve {} --beta 1 --plot {}", "sweep {} --plot {}"])
def test_warnings_of_drawing_are_one_line_without_source_files(capsys, tmp_path, command):
    path = tmp_path / "t.csv"
    path.write_text(
        "answer,reward,prob\n日本語,1,0.3\n中文,0.5,0.2\nother,0,0.5\n", encoding="utf-8"
    )
    line = command.format(path, tmp_path / "o.png").split()
    if line[0] == "sweep":
        line += ["--beta", "0.1,1", "--reward-scale", "1,2", "--out", str(tmp_path / "o.nc")]
    code, _, err = _run(capsys, *line)
    notes = [x for x in err.replace("\r", "\n").splitlines() if "kltarget" in x]
    said = "kltarget: note: the figure's fonts lack the letters 中文日本語: boxes stand for them"
    assert code == 0
    assert notes in ([], [said]), "some fonts have them"
    assert ".py" not in err
