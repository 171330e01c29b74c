"""One run's training is read: no validation, no second run, no group of two prompts."""

import json
import pathlib

import numpy as np
import pandas as pd
import pytest

from kltarget import cli
from kltarget.diagnosis import diagnose
from kltarget.rollouts import RolloutError, read_rollouts

CASES = pathlib.Path(__file__).parent / "data" / "cases"


def row(step=1, prompt="q", completion="a", reward=1.0, **others):
    return {"step": step, "prompt": prompt, "completion": completion, "reward": reward, **others}


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(x) + "\n" for x in rows), encoding="utf-8")
    return path


def noted(rollouts, text):
    return any(text in note for note in rollouts.attrs["notes"])


def group_sizes(rollouts):
    return rollouts.groupby("group_id").size().tolist()


def test_a_group_is_of_one_prompt(tmp_path):
    rows = [row(prompt=x, completion=str(i), group_id=0) for i in range(3) for x in "ab"]
    rollouts = read_rollouts(lines(tmp_path / "x.jsonl", rows))
    assert group_sizes(rollouts) == [3, 3]
    assert rollouts["sample_id"].tolist() == [0, 0, 1, 1, 2, 2]
    assert noted(rollouts, "1 of 1 groups hold several prompts, though a group is of one: each is")
    # One prompt spelled in several ways stays one group.
    rows = [row(prompt=f"q at {i}", completion=str(i), group_id=0) for i in range(4)]
    assert group_sizes(read_rollouts(lines(tmp_path / "y.jsonl", rows))) == [4]


def test_runs_of_equal_prompts_are_groups_where_no_step_is_logged(tmp_path):
    def rows(prompts, size=4):
        each = [row(prompt=x, completion=str(i)) for x in prompts for i in range(size)]
        return [{k: v for k, v in x.items() if k != "step"} for x in each]

    rollouts = read_rollouts(lines(tmp_path / "x.jsonl", rows("abcabbc")))
    assert group_sizes(rollouts) == [4] * 7
    assert noted(rollouts, "num_generations=4 is a guess from runs of equal prompts alone")
    for strange in (rows("abc"), rows("ab") + rows("ab", 3), rows("abab", 1)):
        rollouts = read_rollouts(lines(tmp_path / "x.jsonl", strange))
        assert noted(rollouts, "groups are a guess: all completions of one prompt")


def test_frames_made_by_hand_are_checked():
    frame = pd.DataFrame([row(completion=x, prompt=x, reward=float(x == "a")) for x in "abcd"])
    frame = frame.assign(answer=frame["completion"], group_id=0, logp=-1.0, ref_logp=-1.0)
    found = diagnose(frame, "trl-grpo", beta=0.1)
    assert any("several prompts" in note for note in found.notes)
    frame.loc[2, "logp"] = 0.5
    with pytest.raises(RolloutError, match=r"rollout 2: logp = 0.5 is no log-probability"):
        diagnose(frame, "trl-grpo", beta=0.1)


def test_names_of_files_are_held_against_steps(tmp_path):
    frame = pd.DataFrame([row(step=7, completion=x, advantage=0.0) for x in "ab"])
    for step in (5, 7):
        frame.to_parquet(tmp_path / f"completions_{step:05d}.parquet")
    rollouts = read_rollouts(tmp_path)
    assert noted(rollouts, "1 file of 2 named by another step than that of the rows, which counts")
    assert noted(rollouts, "completions_00005.parquet has step 7")
    # A file of many steps is not named by one of them.
    lines(tmp_path / "a" / "step_5.jsonl", [row(step=x) for x in (1, 2, 3)])
    assert not noted(read_rollouts(tmp_path / "a"), "another step")


VALIDATION = [
    ("split", "train", "val"),
    ("split", "train", "test"),
    ("kind", "rollout", "validation"),
    ("mode", "train", "eval/aime"),
    ("is_eval", False, True),
    ("validate", 0, 1),
    ("phase", "train", "test"),
    ("is_train", True, False),
    ("is_training", 1, 0),
    ("Split", "TRAIN", "Validation"),
]


@pytest.mark.parametrize(("column", "training", "validation"), VALIDATION)
def test_rows_of_validation_are_left_out(tmp_path, column, training, validation):
    rows = [row(completion=str(i), **{column: training}) for i in range(4)]
    held_out = [row(completion=f"v{i}", **{column: validation}) for i in range(2)]
    path = lines(tmp_path / "x.jsonl", [*rows[:2], *held_out, *rows[2:]])
    rollouts = read_rollouts(path)
    assert rollouts["completion"].tolist() == list("0123")
    assert noted(rollouts, "2 rows of validation left out, 4 of training read: only=")
    others = read_rollouts(path, only={column: str(validation)})
    assert others["completion"].tolist() == ["v0", "v1"]
    assert not noted(others, "validation left out")
    # What is of validation alone is read as it is.
    alone = read_rollouts(lines(tmp_path / "y.jsonl", held_out))
    assert len(alone) == 2
    assert noted(alone, "all rows are of validation")


def test_blocks_go_on_behind_rows_of_validation(tmp_path):
    rows = [row(completion=str(i), prompt=f"q{i // 2}", split="train") for i in range(8)]
    held_out = row(prompt="v", split="val")
    path = lines(tmp_path / "x.jsonl", [rows[0], held_out, *rows[1:5], held_out, *rows[5:]])
    assert group_sizes(read_rollouts(path, num_generations=2)) == [2, 2, 2, 2]


def test_files_of_validation_are_left_out(tmp_path):
    folder = tmp_path / "evaluation of mine"
    for step in (1, 2):
        rows = [{"input": "q", "output": str(i), "score": 1.0} for i in range(2)]
        lines(folder / "rollouts" / f"{step}.jsonl", rows)
        lines(folder / "validation" / f"{step}.jsonl", rows[:1])
    rollouts = read_rollouts(folder)
    assert group_sizes(rollouts) == [2, 2]
    assert noted(rollouts, "2 rows of validation left out, 4 of training read: 2 files such as 1.")
    assert len(read_rollouts(folder / "validation")) == 2


def test_columns_outweigh_the_names_of_files(tmp_path):
    train = [row(completion=str(i), split="train") for i in range(4)]
    path = lines(tmp_path / "train_val.jsonl", train)
    assert not noted(read_rollouts(path), "validation")
    both = read_rollouts(lines(tmp_path / "val.jsonl", [*train, row(prompt="v", split="val")]))
    assert len(both) == 4
    assert noted(both, "1 row of validation left out, 4 of training read: only={'split': 'val'}")
    alone = read_rollouts(lines(tmp_path / "run_eval_math.jsonl", [row()] * 4))
    assert len(alone) == 4
    assert not noted(alone, "all rows are of validation")
    assert noted(alone, "the name of run_eval_math.jsonl says that it is of validation, no column")


def test_words_that_only_look_like_validation(tmp_path):
    for column, entry in (("kind", "valid"), ("eval", 1.0), ("mode", "devel"), ("stage", 2)):
        rows = [row(**{column: entry}), row(**{column: "x" if column != "eval" else 0.0})]
        assert len(read_rollouts(lines(tmp_path / "x.jsonl", rows))) == 2


def run_of(folder, name, steps=range(1, 5), prompts="ab", size=4):
    for step in steps:
        rows = [row(step, x, f"{name}{i}", float(i == 0)) for x in prompts for i in range(size)]
        lines(folder / name / f"step_{step}.jsonl", rows)
    return folder / name


def test_two_runs_are_not_pooled(tmp_path):
    first, second = run_of(tmp_path, "lr1"), run_of(tmp_path, "lr2")
    for given in ([first, second], tmp_path):
        with pytest.raises(RolloutError, match=r"lr1 and .*lr2 are two runs") as caught:
            read_rollouts(given)
        assert "same prompts at steps 1 to 4" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(RolloutError, match="two runs"):
        diagnose([first, second], "trl-grpo", beta=0.1)
    whole = [
        lines(tmp_path / f"{x}.jsonl", [row(s, "q", str(i)) for s in (1, 2, 3) for i in range(4)])
        for x in ("one", "two")
    ]
    with pytest.raises(RolloutError, match=r"one.jsonl and .*two.jsonl are two runs"):
        read_rollouts(whole)


def test_runs_that_begin_at_the_same_step_and_differ(tmp_path):
    both = "a and .*b are two runs, which both begin at step 1"
    # Every second step, and every fifth: few of them are the same.
    often = run_of(tmp_path / "x", "a", steps=(1, 2, 4, 6, 8, 10))
    seldom = run_of(tmp_path / "x", "b", steps=(1, 5, 15, 20), prompts="cd")
    with pytest.raises(RolloutError, match=f"{both} and log other ones: take one of them, or read"):
        read_rollouts([often, seldom])
    # Ranks have the same steps, and other prompts; but groups of one size,
    folders = [run_of(tmp_path / "y", "a"), run_of(tmp_path / "y", "b", prompts="cd", size=8)]
    with pytest.raises(RolloutError, match=f"{both}, one in groups of 4, the other of 8: take"):
        read_rollouts(folders)
    # and no configuration of their own.
    folders = [run_of(tmp_path / "z", "a"), run_of(tmp_path / "z", "b", prompts="cd")]
    for name, beta in (("a", 0.1), ("b", 0.1)):
        (tmp_path / "z" / name / "config.yaml").write_text(f"beta: {beta}")
    assert len(read_rollouts(folders)) == 64
    (tmp_path / "z" / "b" / "config.yaml").write_text("beta: 0.4")
    with pytest.raises(RolloutError, match=f"{both}, each with a config.yaml of its own: take"):
        read_rollouts(folders)


def test_two_runs_of_trl_are_not_pooled(capsys):
    rollouts = CASES.parent / "rollouts"
    digit, graded = (
        str(rollouts / name)
        for name in ("trl116_grpo_digit_b004_logp", "trl116_grpo_graded_noscale_k3_b03_long_logp")
    )
    assert cli.main(["diagnose", digit, graded, "--trainer", "trl-grpo", "--beta", "0.1"]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    assert f"{digit} and {graded} are two runs, which both begin at step 1" in line
    assert f"take one of them, or compare them by --against {graded} (parts" in line
    with pytest.raises(RolloutError, match="take one of them, or read them one by one"):
        read_rollouts([digit, graded])


@pytest.mark.parametrize(
    ("folder", "runs"),
    [("gpu_0", "ab"), ("tmp.1DpG", "ab"), ("x", ("partial_a", "partial_b"))],
)
def test_what_the_folders_of_two_runs_are_called_makes_no_ranks_of_them(tmp_path, folder, runs):
    folders = [run_of(tmp_path / folder, name) for name in runs]
    with pytest.raises(RolloutError, match="are two runs"):
        read_rollouts(folders)


def test_parts_of_one_run_are(tmp_path):
    # Ranks see other prompts at the same steps, or are called what they are.
    parts = [run_of(tmp_path / "x", "r0"), run_of(tmp_path / "x", "r1", prompts="cd")]
    assert len(read_rollouts(parts)) == 64
    for name in ("rank_0", "rank_1"):
        run_of(tmp_path / "y", name)
    assert len(read_rollouts(tmp_path / "y")) == 64
    # A run that was resumed goes on.
    parts = [run_of(tmp_path / "z", "a"), run_of(tmp_path / "z", "b", steps=range(4, 9))]
    rollouts = read_rollouts(parts)
    assert rollouts["step"].nunique() == 8
    assert noted(rollouts, "step 4 is in several files")
    # Files of one step each are parts of a step.
    for name in "ab":
        lines(tmp_path / "w" / f"{name}.jsonl", [row(1, "q", str(i)) for i in range(4)])
    assert len(read_rollouts(tmp_path / "w")) == 8
    for name in ("v03_resumed", "d15_resumed"):
        read_rollouts(CASES / name)


@pytest.mark.parametrize("column", ["run", "run_id", "wandb_run_id", "experiment_name"])
def test_columns_that_name_two_runs(tmp_path, capsys, column):
    rows = [row(1, "q", str(i), float(i == 0), **{column: x}) for x in "ab" for i in range(4)]
    path = lines(tmp_path / "x.jsonl", rows)
    with pytest.raises(RolloutError, match=f"column '{column}' names several runs, “a” and “b”"):
        read_rollouts(path)
    assert len(read_rollouts(path, only={column: "b"})) == 4
    command = ["diagnose", str(path), "--trainer", "trl-grpo", "--beta", "0.1"]
    assert cli.main(command) == 2
    assert f"read one by --only {column}=a\n" in capsys.readouterr().err
    assert cli.main([*command, "--only", f"{column}=a"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--only", f"{column}=c"]) == 2
    assert f"no row has {column} = 'c': there 'a', 'b'" in capsys.readouterr().err
    with pytest.raises(RolloutError, match="no row has such a column"):
        read_rollouts(path, only={"colour": "red"})
    # A number for each completion is none of a run.
    for i, entry in enumerate(rows):
        entry[column] = i
    assert len(read_rollouts(lines(tmp_path / "y.jsonl", rows))) == 8


@pytest.mark.parametrize("column", ["seed", "model", "model_name", "experiment", "wandb_run"])
def test_columns_that_may_name_two_runs(tmp_path, column):
    steps = [(x, step) for x in (0, 1) for step in (1, 2)]
    rows = [row(s, "q", str(i), float(i == x), **{column: x}) for x, s in steps for i in range(4)]
    with pytest.raises(RolloutError, match=f"column '{column}' names several runs, “0” and “1”"):
        read_rollouts(lines(tmp_path / "x.jsonl", rows))
    rows = [row(s, f"q{x}{s}", str(i), **{column: "m"}) for x, s in steps for i in range(4)]
    assert len(read_rollouts(lines(tmp_path / "y.jsonl", rows))) == 16


def test_seeds_and_models_that_are_of_one_run(tmp_path):
    # A seed for every step, prompt or completion; a model that answers other prompts.
    for of in (lambda s, p, i: s, lambda s, p, i: p, lambda s, p, i: i, lambda s, p, i: 4):
        rows = [
            row(s, f"q{p}", str(i), float(i == 0), run_id="r", seed=of(s, p, i))
            for s in range(3)
            for p in range(2)
            for i in range(4)
        ]
        assert len(read_rollouts(lines(tmp_path / "x.jsonl", rows))) == 24


def test_two_runs_one_after_the_other(tmp_path):
    def run(name, steps=(1, 2, 3), prompts="ab"):
        each = [(s, p) for s in steps for p in prompts]
        return [row(s, p, f"{name}{i}", float(i == 0)) for s, p in each for i in range(4)]

    path = lines(tmp_path / "x.jsonl", run("a") + run("b"))
    with pytest.raises(RolloutError, match="two runs one after the other: in rollout 25 steps go"):
        read_rollouts(path)
    twice = read_rollouts(lines(tmp_path / "y.jsonl", run("a") * 2))
    assert group_sizes(twice) == [4] * 6
    assert noted(twice, "written twice, row for row: counted once, 24 rows left out")
    assert not noted(read_rollouts(lines(tmp_path / "z.jsonl", run("a"))), "twice")
    # Ranks, prompt by prompt, sample by sample, and a run that was resumed, are of one run.
    by_sample = [row(s, p, str(i)) for i in range(4) for s in (1, 2, 3) for p in "ab"]
    resumed = run("a") + run("b", (3, 4, 5))
    for rows in (run("a") + run("b", prompts="cd"), by_sample, resumed):
        assert len(read_rollouts(lines(tmp_path / "w.jsonl", rows))) == len(rows)


def test_many_files_are_compared_fast(tmp_path):
    rng = np.random.default_rng(0)
    steps = rng.permutation(200)
    for step in steps:
        lines(tmp_path / f"step_{step}.jsonl", [row(int(step), completion=x) for x in "ab"])
    assert read_rollouts(tmp_path)["step"].nunique() == 200
