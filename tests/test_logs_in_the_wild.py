"""Logs and tables as people have them: other names, layouts and habits than a trainer's own.

Files are those of `data/cases`, whose README says what they are and what is right, and others of
the same kinds that are written here.
"""

import gzip
import io
import json
import pathlib
import sys
import time

import numpy as np
import pandas as pd
import pytest

from kltarget import cli
from kltarget.diagnosis import diagnose
from kltarget.rollouts import RolloutError, read_rollouts
from kltarget.tasks import TableError, read_table

CASES = pathlib.Path(__file__).parent / "data" / "cases"
ROWS = [
    {"step": 1, "prompt": "q", "completion": "a", "reward": 1.0},
    {"step": 1, "prompt": "q", "completion": "b", "reward": 0.0},
    {"step": 2, "prompt": "q", "completion": "c", "reward": 0.5},
]


def noted(rollouts, text):
    return any(text in note for note in rollouts.attrs["notes"])


def group_sizes(rollouts):
    return rollouts.groupby("group_id").size().tolist()


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def written(folder, kind):
    """The rows in a file of a kind."""
    frame, path = pd.DataFrame(ROWS), folder / f"mine.{kind}"
    if kind == "csv.gz":
        path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    elif kind == "json.gz":
        path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    elif kind == "feather":
        frame.to_feather(path)
    elif kind == "arrow":
        import pyarrow
        import pyarrow.ipc

        table = pyarrow.Table.from_pandas(frame)
        with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    elif kind in ("columns", "split", "table", "lists", "trackio", "lines"):
        path = path.with_suffix(".json")
        if kind == "lines":
            return lines(path, ROWS)
        layout = {
            "columns": lambda: frame.to_json(),
            "split": lambda: frame.to_json(orient="split"),
            "table": lambda: frame.to_json(orient="table"),
            "lists": lambda: json.dumps(frame.to_dict("list")),
            "trackio": lambda: json.dumps({"_type": "trackio.table", "_value": ROWS}),
        }
        path.write_text(layout[kind]())
    else:
        path = path.with_suffix(".csv")
        frame.to_csv(path, index=False, sep=kind)
    return path


KINDS = ["csv.gz", "jsonl.gz", "json.gz", "feather", "arrow", ";", "\t", "|"]
KINDS += ["columns", "split", "table", "lists", "trackio", "lines"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_reader_of_files(tmp_path, kind):
    path = written(tmp_path, kind)
    rollouts = read_rollouts(path)
    for name in ROWS[0]:
        assert rollouts[name].tolist() == [row[name] for row in ROWS]
    assert rollouts["group_id"].tolist() == [0, 0, 1]
    # Tables know the same layouts.
    with pytest.raises(TableError, match="no reference column"):
        read_table(path)


def test_packed_files_that_break_off(tmp_path):
    path = written(tmp_path, "jsonl.gz")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RolloutError, match=r"mine.jsonl.gz: not a readable gzip file") as caught:
        read_rollouts(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"plain")
    with pytest.raises(RolloutError, match=r"mine.jsonl.gz: "):
        read_rollouts(path)
    broken = tmp_path / "x.arrow"
    broken.write_bytes(b"ARROW1 and no more")
    with pytest.raises(RolloutError, match=r"x.arrow: not a readable Arrow file"):
        read_rollouts(broken)


def test_standard_input(capsys, monkeypatch):
    def given(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    options = ["--trainer", "trl-grpo", "--beta", "0.04"]
    for content in [(CASES / "d00_base.csv").read_bytes()] * 2:
        given(content)
        code, out, _ = run(capsys, "diagnose", "-", *options)
        assert code == 0
        assert "\nkltarget diagnose · generic: 72 rollouts of 3 prompts in " in out
    given(gzip.compress((CASES / "p10_list.json").read_bytes()))
    assert run(capsys, "diagnose", "-", *options)[0] == 0
    given((CASES / "s03_log10.csv").read_bytes())
    assert "yes" in run(capsys, "solve", "-", "--beta", "1")[1]
    given(b"")
    assert run(capsys, "solve", "-", "--beta", "1")[2] == "kltarget: standard input is empty\n"
    given(b'{"prompt": "q", "completion": "a", "reward": "x"}')
    code, _, err = run(capsys, "diagnose", "-", *options)
    assert code == 2
    assert err.startswith("kltarget: standard input: line 1: column 'reward'")


def test_usual_names_in_any_case(tmp_path):
    assert read_rollouts(CASES / "l14_case.csv")["reward"].tolist() == [1.0, 0.0]
    rollouts = read_rollouts(CASES / "p13_openrlhf.jsonl")
    assert rollouts["reward"].tolist() == [1.5, -0.5] * 2
    assert noted(rollouts, "columns read by their names: 'input' as prompt, 'output' as completion")
    for names in (
        ("Question", "Response", "Is Correct", "Iteration"),
        ("problem", "generation", "score", "train-step"),
        ("query", "answer", "Correct", "GLOBAL_STEP"),
    ):
        rows = [dict(zip(names, ("q", "a", True, 3), strict=True))]
        rollouts = read_rollouts(lines(tmp_path / "x.jsonl", rows))
        row = rollouts[["prompt", "completion", "reward", "step"]].astype(object).iloc[0]
        assert row.tolist() == ["q", "a", 1.0, 3]
    # What is given goes before what is usual, and in any case too.
    rows = [{"prompt": "q", "completion": "a", "output": "b", "Reward": 1, "Style": 2}]
    path = lines(tmp_path / "y.jsonl", rows)
    asked = read_rollouts(path, columns={"completion": "output", "reward": ["reward", "style"]})
    assert asked[["completion", "reward"]].astype(object).iloc[0].tolist() == ["b", 3.0]
    table = tmp_path / "t.csv"
    table.write_text("Output,IS_CORRECT,Ref-LogP\nyes,true,-0.5\nno,false,-1.5\n")
    assert read_table(table, outcome="output").labels == ("yes", "no")


def test_advantages_show_groups_in_files_of_ones_own(tmp_path):
    rows = [
        {**ROWS[0], "completion": str(i), "reward": float(i == 0), "advantage": a}
        for i, a in enumerate([0.5, -0.5, 0.0, 0.0, 0.3, -0.3])
    ]
    assert group_sizes(read_rollouts(lines(tmp_path / "x.jsonl", rows))) == [2, 2, 2]
    for row in rows:
        row["advantage"] = 1.0
    assert group_sizes(read_rollouts(lines(tmp_path / "x.jsonl", rows))) == [6]


def test_conversations_and_rewards_of_several_shapes(tmp_path):
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": said, "reward": 1}]
    rollouts = read_rollouts(lines(tmp_path / "a.jsonl", rows))
    assert rollouts[["prompt", "completion"]].iloc[0].tolist() == ["q", "a"]
    rows = [{**ROWS[0], "reward": {"acc": 1.0, "style": 0.5}}, {**ROWS[0], "reward": {"acc": None}}]
    rollouts = read_rollouts(lines(tmp_path / "b.jsonl", rows))
    assert rollouts["reward"].tolist() == [1.5]
    assert rollouts["reward/style"].tolist() == [0.5]
    rows = [{**ROWS[0], "reward": [0, 0, 0.5, 1]}]
    assert read_rollouts(lines(tmp_path / "c.jsonl", rows))["reward"].tolist() == [1.5]


def test_the_delimiter_is_what_parts_most_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt;completion;so, why;reward\nq;a, b;x;1\n")
    assert read_rollouts(path)["completion"].tolist() == ["a, b"]
    path.write_text('prompt,completion,"a;b;c;d;e",reward\nq,a,x,1\n')
    assert read_rollouts(path)["reward"].tolist() == [1]


def test_blocks_that_lost_rows_are_no_smaller_blocks(tmp_path):
    """Two of 24 rows lost leave runs of 2 and 4, in which no group is of 2."""
    rows = [
        {"step": 1, "prompt": f"q{i // 4}", "completion": str(i), "r": float(i % 3 == 0)}
        for i in range(24)
    ]
    for row in rows:
        same = [x["r"] for x in rows if x["prompt"] == row["prompt"]]
        row["advantage"] = row["r"] - sum(same) / 4
    path = tmp_path / "completions_00001.parquet"
    pd.DataFrame(rows[:9] + rows[11:]).to_parquet(path)
    assert group_sizes(read_rollouts(path)) == [4, 4, 2, 4, 4, 4]


def test_lists_of_records_and_tables_of_trackers():
    assert read_rollouts(CASES / "p10_list.json")["reward"].tolist() == [1.0, 0.0]
    rollouts = read_rollouts(CASES / "p11_trackio.table.json")
    assert rollouts.attrs["format"] == "trl-table"
    assert rollouts["reward"].tolist() == [1.0, 0.0]


def test_lists_have_a_row_per_element(tmp_path):
    rollouts = read_rollouts(CASES / "p03_swift_completions.jsonl")
    assert group_sizes(rollouts.query("step == 1")) == [4, 4]
    assert rollouts["reward"].tolist()[:8] == [2, 1, 1, 2, 2, 1, 2, 1]
    names = {
        "prompt": "problem",
        "completion": "generations",
        "reward": "correctness_math_verify",
    }
    rollouts = read_rollouts(CASES / "p04_openr1.parquet", columns=names)
    assert group_sizes(rollouts) == [2, 2, 2]
    assert noted(rollouts, "groups are the completions of a row")
    assert rollouts["reward"].tolist() == [1, 0] * 3
    assert rollouts["prompt"].tolist() == ["q0", "q0", "q1", "q1", "q2", "q2"]
    # A text file spells lists; a chat is one completion, and so is a list of numbers.
    csv = tmp_path / "lists.csv"
    csv.write_text('prompt,responses,scores\nq,"[""a"", ""b""]","[1.0, 0.0]"\n')
    assert read_rollouts(csv)["completion"].tolist() == ["a", "b"]
    chat = [{"role": "assistant", "content": "a"}]
    rows = [{"prompt": "q", "completion": [chat, chat], "reward": [1, 0]}]
    assert read_rollouts(lines(tmp_path / "c.jsonl", rows))["completion"].tolist() == ["a", "a"]
    rows = [{"prompt": "q", "completion": said, "reward": 1} for said in ("[1, 2]", "[3]")]
    assert read_rollouts(lines(tmp_path / "d.jsonl", rows))["completion"].tolist() == [
        "[1, 2]",
        "[3]",
    ]


def test_advantages_say_which_columns_are_rewards():
    found = diagnose(CASES / "p02_trl5233_extra", "trl-grpo", beta=0.04)
    assert found["pass@1"].value == pytest.approx(13 / 18)
    assert found["effective_beta"].value == pytest.approx(0.0267, abs=1e-4)
    assert any("not counted as rewards, as the logged" in note for note in found.notes)


def test_advantages_say_the_weights_of_rewards(capsys):
    path = CASES / "p01_trl5352_weights"
    found = diagnose(path, "trl-grpo", beta=0.04)
    assert found["effective_beta"].value == pytest.approx(0.0277, abs=1e-4)
    rollouts = read_rollouts(path)
    assert np.ptp(rollouts["reward"]) == pytest.approx(1.1)
    assert noted(rollouts, "'accuracy_reward' × 1, 'format_reward' × 0.1")
    doubled = read_rollouts(path, reward_weights={"accuracy_reward": 2, "format_reward": 0.2})
    assert doubled["reward"].to_numpy() == pytest.approx(2 * rollouts["reward"].to_numpy())
    in_order = read_rollouts(path, reward_weights=[2, 0.2])
    assert in_order["reward"].tolist() == doubled["reward"].tolist()
    options = ["--trainer", "trl-grpo", "--beta", "0.04", "--reward-weights"]
    code, out, _ = run(capsys, "diagnose", path, *options, "accuracy_reward=1,format_reward=1")
    assert code == 0
    assert "median 0.0436" in out
    code, _, err = run(capsys, "diagnose", path, *options, "accuracy=1")
    assert code == 2
    assert "--reward-weights: no reward 'accuracy': the rewards are 'accuracy_reward'," in err
    with pytest.raises(RolloutError, match="1 weights"):
        read_rollouts(path, reward_weights=[1])


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 0.5, -0.25), (0, 1, 0), (0.3, 1, 0)])
def test_weights_are_found_again(tmp_path, weights, normalized):
    rng = np.random.default_rng(0)
    rows = []
    for step in range(4):
        for prompt in "ab":
            parts = np.stack([rng.integers(0, 2, 6), rng.integers(0, 3, 6), rng.random(6)], 1)
            total = parts @ np.array(weights, float)
            advantage = total - total.mean()
            if normalized:
                advantage /= total.std(ddof=1) + 1e-4
            for values, a in zip(parts.astype(float), np.float32(advantage), strict=True):
                rows.append({"step": step, "prompt": prompt, "completion": "x"})
                rows[-1] |= dict(zip(("r0", "r1", "r2"), values, strict=True))
                rows[-1]["advantage"] = float(a)
    path = tmp_path / "completions_00001.parquet"
    pd.DataFrame(rows).to_parquet(path)
    rollouts = read_rollouts(path)
    right = pd.DataFrame(rows)[["r0", "r1", "r2"]].to_numpy() @ np.array(weights, float)
    largest = max(map(abs, weights))
    assert rollouts["reward"].to_numpy() == pytest.approx(right / largest, abs=2e-3)
    rounded = pd.DataFrame(rows)
    rounded["advantage"] = rounded["advantage"].round(2)
    rounded.to_parquet(path)
    assert read_rollouts(path)["reward"].to_numpy() == pytest.approx(right / largest, abs=0.05)
    # Without the advantages, all that is logged counts.
    pd.DataFrame(rows).assign(advantage=0.0).to_parquet(path)
    plain = pd.DataFrame(rows)[["r0", "r1", "r2"]].sum(axis=1)
    assert read_rollouts(path)["reward"].to_numpy() == pytest.approx(plain.to_numpy())


def test_rewards_that_are_normalised_one_by_one_fit_no_weights(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for prompt in "abcdef":
        values = rng.integers(0, 2, (8, 2)).astype(float)
        values[:2] = [[0, 1], [1, 0]]
        advantage = ((values - values.mean(0)) / values.std(0, ddof=1)).sum(1)
        for (r0, r1), a in zip(values, advantage, strict=True):
            rows.append({"step": 1, "prompt": prompt, "completion": "x", "r0": r0, "r1": r1})
            rows[-1]["advantage"] = a
    path = tmp_path / "completions_00001.parquet"
    pd.DataFrame(rows).to_parquet(path)
    rollouts = read_rollouts(path)
    assert noted(rollouts, "the logged advantages fit no weights of the rewards: each counts as 1")
    pd.DataFrame(rows).astype({"r0": int, "r1": int}).to_parquet(path)
    whole = read_rollouts(path)
    assert whole["reward"].tolist() == rollouts["reward"].tolist()


def test_parts_are_added(capsys):
    columns = {"reward": ["acc", "fmt"]}
    assert read_rollouts(CASES / "m01_parts.jsonl", columns=columns)["reward"].tolist() == [2, 1, 1]
    options = ["--columns", "reward=acc,reward=fmt", "--trainer", "trl-grpo", "--beta", "0.04"]
    code, out, _ = run(capsys, "diagnose", CASES / "m01_parts.jsonl", *options)
    assert code == 0
    # Of two completions with a total of 1 one is accurate.
    assert "2 rewards are added, and their total does not say what is right" in " ".join(
        out.split()
    )
    code, out, _ = run(capsys, "diagnose", CASES / "m01_parts.jsonl", *options, "--threshold", "2")
    assert "right: reward ≥ 2" in out
    options[1] = "prompt=a,prompt=b"
    code, _, err = run(capsys, "diagnose", CASES / "m01_parts.jsonl", *options)
    assert (code, "'prompt' is given twice" in err) == (2, True)


def test_outputs_of_a_session_are_one_rollout(tmp_path):
    found = diagnose(CASES / "v01_verl6227", "verl-grpo", beta=0.001)
    assert found["pass@1"].value == pytest.approx(0.5)
    assert found["effective_beta"].value == pytest.approx(0.00141, abs=1e-5)
    assert found.recipe.group_size == 2
    row = {"prompt": "q", "session_id": "s", "reward": 0.0, "logp": -1.0}
    rows = [{**row, "completion": "b", "turn": 1, "reward": 1.0}, {**row, "completion": "a"}]
    rows[1]["turn"] = 0
    rollouts = read_rollouts(lines(tmp_path / "x.jsonl", rows))
    assert rollouts[["completion", "reward", "logp"]].astype(object).iloc[0].tolist() == [
        "a\nb",
        1.0,
        -2.0,
    ]
    # A number that occurs twice is none of an output in a session.
    rows = [{"input": "q", "output": x, "score": 1, "uid": "task_1_2"} for x in "ab"]
    assert len(read_rollouts(lines(tmp_path / "1.jsonl", rows))) == 2


def test_deviations_are_those_of_each_batch():
    recipe = "trl-grpo"
    import kltarget as kt

    batch = kt.recipes.recipe(recipe, normalize="batch-std")
    statement = diagnose(CASES / "b01_trl3991_batch.jsonl", batch, beta=0.04)["effective_beta"]
    assert statement.value == pytest.approx(0.0156, abs=1e-4)
    assert (statement.sample_size, statement.unit) == (3, "batches")
    assert "n = 3 batches" in statement.evidence(dict.fromkeys(statement.assumptions, "a"))
    one = kt.diagnosis.Statement("x", "y", sample_size=1, unit="batches")
    assert one.evidence({}) == "n = 1 batch"


def test_padding_is_no_token(tmp_path):
    rollouts = read_rollouts(CASES / "l01_trl6121_sentinel.jsonl")
    assert rollouts["logp"].tolist() == [-3.5, -5.5]
    assert rollouts["ref_logp"].tolist() == [-4.5, -5.5]
    assert rollouts["num_tokens"].tolist() == [3, 5]
    assert noted(rollouts, "2 tokens of log-probability +1 taken for padding and left out")
    rows = [{**ROWS[0], "token_logps": [-1.0, 0.5]}]
    with pytest.raises(RolloutError, match=r"logp: token 2 has 0.5, which is no log-probability"):
        read_rollouts(lines(tmp_path / "x.jsonl", rows))


def test_a_generation_counts_once(tmp_path):
    path = CASES / "p23_trl4086_reused"
    rollouts = read_rollouts(path)
    assert rollouts["step"].nunique() == 3
    assert group_sizes(rollouts) == [4] * 6
    assert noted(rollouts, "4 steps train on each generation: it is counted once, 72 rows left out")
    # A log that begins and ends within a generation, and one in which nothing recurs regularly.
    files = sorted(path.glob("*.parquet"))
    assert read_rollouts(files[2:11])["step"].tolist() == [3] * 8 + [5] * 8 + [9] * 8
    rows = [{**row, "step": step} for step in (1, 2, 4) for row in ROWS]
    rows += [{**row, "step": 5, "completion": "z"} for row in ROWS]
    rows += [{**row, "step": 6, "completion": "y"} for row in ROWS]
    rows += [{**row, "step": 7} for row in ROWS]
    assert len(read_rollouts(lines(tmp_path / "x.jsonl", rows))) == len(rows)
    # A policy that no longer changes gives the same answers, of which each is one.
    late = [{**ROWS[0], "step": step, "completion": str(min(step, 3))} for step in range(1, 9)]
    assert len(read_rollouts(lines(tmp_path / "y.jsonl", late))) == 8


def test_no_group_goes_over_files():
    rollouts = read_rollouts(CASES / "v03_resumed")
    assert group_sizes(rollouts) == [4] * 4
    assert noted(rollouts, "step 2 is in several files (run1/2.jsonl, run2/2.jsonl)")
    rollouts = read_rollouts(CASES / "d15_resumed")
    assert group_sizes(rollouts) == [4] * 24
    assert noted(rollouts, "steps 3 to 4 are in several files")


def test_groups_of_several_prompts_are_named(tmp_path):
    rows = [{**ROWS[0], "prompt": x, "group_id": 0} for x in "ab"]
    rows += [{**ROWS[0], "group_id": 1}]
    rollouts = read_rollouts(lines(tmp_path / "x.jsonl", rows))
    assert noted(rollouts, "1 of 2 groups hold several prompts, though a group is of one")


def test_steps_of_many_names(tmp_path):
    rollouts = read_rollouts(CASES / "c24_global_step.jsonl")
    assert group_sizes(rollouts) == [4] * 3
    assert rollouts["step"].tolist() == [1] * 4 + [2] * 4 + [3] * 4
    rows = [{"prompt": "q", "completion": x, "reward": 1} for x in "ab"]
    for name in ("step_7.jsonl", "run/global_step_7/a.jsonl", "iter-7.jsonl", "x_step7.jsonl"):
        assert read_rollouts(lines(tmp_path / name, rows))["step"].tolist() == [7, 7]
    lines(tmp_path / "several" / "a.jsonl", rows)
    lines(tmp_path / "several" / "b.jsonl", rows)
    assert group_sizes(read_rollouts(tmp_path / "several")) == [2, 2]


def test_tools_are_part_of_what_was_said(tmp_path):
    rollouts = read_rollouts(CASES / "w01_swe.jsonl")
    assert rollouts["answer"].nunique() == 4
    assert rollouts["completion"][0] == 'bash({"cmd": "sed a"})\ndone'
    for call in (
        {"content": [{"type": "tool_use", "name": "f", "input": {"x": 1}}]},
        {"content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
    ):
        rows = [{**ROWS[0], "completion": [{"role": "assistant", **call}]}]
        read = read_rollouts(lines(tmp_path / "x.jsonl", rows))
        assert read["completion"].tolist() == ['f({"x": 1})']


def test_rows_without_any_reward_are_left_out():
    rollouts = read_rollouts(CASES / "p16_trl5902_none", num_generations=4)
    assert rollouts["reward"].tolist() == [0, 1, 0] * 6
    assert group_sizes(rollouts) == [3] * 6
    assert noted(rollouts, "6 of 24 rows have no reward and are left out, the first: ")


def test_the_usual_size_of_groups():
    found = diagnose(CASES / "d14_unequal.csv", "trl-grpo==1.9.2", beta=0.04)
    assert found.recipe.group_size == 4
    assert found["effective_beta"].value == pytest.approx(0.0267, abs=1e-4)
    assert any("4, the largest and usual size, counts" in note for note in found.notes)


def test_few_rewards_of_few_rollouts_do_not_show_what_is_right(tmp_path):
    rows = [{**ROWS[0], "completion": str(i), "reward": x} for i, x in enumerate([0.1, 0.5, 0.9])]
    found = diagnose(read_rollouts(lines(tmp_path / "x.jsonl", rows)), "trl-grpo", beta=0.04)
    assert found["pass@1"].refused


@pytest.mark.parametrize("name", ["d06_cont.csv", "d11_allzero.csv"])
def test_what_is_right_may_not_be_known(name):
    found = diagnose(CASES / name, "trl-grpo", beta=0.04)
    for statement in (found["pass@1"], found["right_answers"]):
        assert statement.refused
        assert statement.value is None
        assert "--threshold" in statement.text
    assert np.isnan(found.prompts["pass@1"]).all()
    told = diagnose(CASES / name, "trl-grpo", beta=0.04, threshold=0.5)
    assert not told["pass@1"].refused


def test_grades_show_what_is_right():
    frame = read_rollouts(CASES / "d00_base.csv")
    assert diagnose(frame, "trl-grpo", beta=0.04)["pass@1"].value == pytest.approx(13 / 18)
    rng = np.random.default_rng(0)
    # Measured rewards that most prompts share the best of.
    graded = frame.assign(reward=frame["reward"] - (frame["reward"] == 0) * rng.random(len(frame)))
    assert diagnose(graded, "trl-grpo", beta=0.04)["pass@1"].value == pytest.approx(13 / 18)


def test_totals_show_what_is_right_if_one_reward_does(tmp_path):
    def read(**parts):
        each = zip(*parts.values(), strict=True)
        rows = [
            {"step": 1, "prompt": "q", "completion": str(i), **dict(zip(parts, x, strict=True))}
            for i, x in enumerate(each)
        ]
        return read_rollouts(lines(tmp_path / "x.jsonl", rows))

    def passed(frame):
        return diagnose(frame, "trl-grpo", beta=0.04)["pass@1"]

    accuracy = [1, 1, 0, 0]
    tells = read(accuracy_reward=accuracy, format_reward=[0.5, 0, 0.5, 0])
    assert "each reward counts as 1, as no advantages tell their weights" in tells.attrs["notes"]
    assert passed(tells).value == 0.5
    assert "right: reward ≥ 1)" in passed(tells).text
    for frame in (
        read(accuracy_reward=accuracy, format_reward=[1, 0, 1, 0]),
        read(accuracy_reward=[0, 0, 0, 0], format_reward=[1, 0, 1, 0]),
        read(a_reward=accuracy, b_reward=[1, 0, 1, 0]),
    ):
        assert passed(frame).refused
        assert "2 rewards are added" in passed(frame).text or len(set(frame["reward"])) == 2
        assert "--threshold" in passed(frame).text
    assert not passed(read(a_reward=accuracy, b_reward=[1, 1, 1, 1])).refused


@pytest.mark.parametrize(
    ("often", "right"),
    [((23, 20, 15, 17, 21), None), ((23, 5, 5, 5, 21), 1.0), ((9, 8, 9, 9, 12), 1.0)],
)
def test_the_best_of_many_grades_is_right_if_it_stands_out(often, right):
    grades = np.repeat([0, 0.25, 0.5, 0.75, 1.0], often)
    frame = pd.DataFrame({"reward": grades, "completion": "a", "answer": "a", "step": 1})
    frame = frame.assign(prompt="q", group_id=0, logp=np.nan, ref_logp=np.nan)
    said = diagnose(frame, "trl-grpo", beta=0.04)["pass@1"]
    assert said.refused == (right is None)


def test_accuracy_is_a_reward_if_nothing_else_is(tmp_path, capsys):
    rows = [{"prompt": "q", "completion": str(i), "accuracy": i, "length": 7.5} for i in (0, 1)]
    rollouts = read_rollouts(lines(tmp_path / "x.jsonl", rows))
    assert rollouts["reward"].tolist() == [0, 1]
    assert "columns read by their names: 'accuracy' as reward" in rollouts.attrs["notes"]
    other = read_rollouts(lines(tmp_path / "y.jsonl", [{**row, "reward": 5} for row in rows]))
    assert other["reward"].tolist() == [5, 5]
    unknown = [{"quality" if k == "accuracy" else k: x for k, x in row.items()} for row in rows]
    options = ("--trainer", "trl-grpo", "--beta", "0.1")
    code, _, err = run(capsys, "diagnose", lines(tmp_path / "z.jsonl", unknown), *options)
    assert code == 2
    assert (
        "no rewards; if one of the numbers 'quality', 'length' is one, say so by --columns" in err
    )


def test_impossible_probabilities_are_refused():
    k1 = "place=reward,estimator=k1,level=sequence,baseline=mean,normalize=none"
    from kltarget.recipes import Recipe

    recipe = Recipe(**dict(part.split("=") for part in k1.split(",")))
    frame = read_rollouts(CASES / "r04_meanlogp.jsonl")
    found = diagnose(frame, recipe, beta=0.25)
    assert found.tier == 1
    assert found["flip_beta"].refused
    assert "exp(ref_logp) adds up to 3.4, more than 1" in found["flip_beta"].text
    assert any(note.startswith("logp is not used") for note in found.notes)
    # Sums over tokens instead are taken.
    shifted = frame.assign(ref_logp=frame["ref_logp"] - 2, logp=frame["logp"] - 3)
    assert diagnose(shifted, recipe, beta=0.25).tier > 1


def test_logarithms_of_base_10_are_named(tmp_path):
    table = read_table(CASES / "s03_log10.csv")
    assert "as logarithms of base 10 they sum to 1" in " ".join(table.notes)
    path = tmp_path / "two.csv"
    path.write_text("answer,reward,logp\na,1,-1\nb,0,-1\n")
    assert "base 2" in " ".join(read_table(path).notes)
    path.write_text("answer,reward,logp\na,1,-0.1\nb,0,-0.2\n")
    assert "base" not in " ".join(read_table(path).notes)


@pytest.mark.broad
@pytest.mark.parametrize("rule", ["text", "number"])
def test_long_completions_cost_what_is_shown(capsys, tmp_path, rule):
    rng = np.random.default_rng(0)
    rows = [
        {**ROWS[0], "completion": " ".join(map(str, rng.integers(0, 10**5, 200_000))), "reward": i}
        for i in (0, 1, 0, 1)
    ]
    path = lines(tmp_path / "x.jsonl", rows)
    start = time.process_time()
    options = ["--trainer", "trl-grpo", "--beta", "0.04", "--answer", rule]
    assert run(capsys, "diagnose", path, *options)[0] == 0
    assert time.process_time() - start < 5
    table = tmp_path / "t.csv"
    text = "".join(f"{'abcdef'[i] * 8000},{i % 2},1\n" for i in range(6))
    table.write_text(f"answer,reward,count\n{text}")
    start = time.process_time()
    assert run(capsys, "solve", table, "--beta", "0.1")[0] == 0
    assert time.process_time() - start < 5


def test_versions_have_their_defaults(capsys):
    path = CASES / "d00_base.csv"
    code, out, _ = run(capsys, "diagnose", path, "--trainer", "trl-grpo==0.14.0")
    assert code == 0
    assert "β = 0.04 is the default of trl-grpo==0.14.0" in " ".join(out.split())
    code, _, err = run(capsys, "diagnose", path, "--trainer", "trl-grpo==0.13.0")
    assert code == 2
    assert "covers version 0.13.0" in err
