"""Curves of a run, from the files of trainers and trackers, and what a diagnosis makes of them."""

from __future__ import annotations

import json
import math
import pathlib
import sqlite3

import numpy as np
import pandas as pd
import pytest

from kltarget.rollouts import RolloutError, are_scalars, read_rollouts, read_scalars

LOGS = pathlib.Path(__file__).parent / "data" / "rollouts"
STATE = LOGS / "trl116_grpo_digit_b004_logp" / "trainer_state.json"
STEPS = [1, 5, 10]
VALUES = {"reward": [0.25, 0.5, 0.75], "kl": [0.0, 0.125, 0.5], "entropy": [2.0, 1.5, 1.0]}


def assert_values(frame, names=("reward", "kl", "entropy")):
    assert frame["step"].tolist() == STEPS
    for name in names:
        np.testing.assert_allclose(frame[name], VALUES[name], rtol=1e-6)


def rows(**names):
    """A record per step, with these names for ours."""
    return [
        {theirs: VALUES[ours][i] for ours, theirs in names.items()} | {"step": step}
        for i, step in enumerate(STEPS)
    ]


def test_a_trainer_state_of_a_real_run():
    frame = read_scalars(STATE)
    history = [x for x in json.loads(STATE.read_text())["log_history"] if "reward" in x]
    assert frame["step"].tolist() == [x["step"] for x in history]
    for ours, theirs in (("reward", "reward"), ("zero_std", "frac_reward_zero_std"), ("kl", "kl")):
        np.testing.assert_allclose(frame[ours], [x[theirs] for x in history])
    assert frame["length"].eq(1).all()
    assert frame["beta"].isna().all()
    assert frame.attrs["kl_per"] == "token"


def test_a_trainer_state_under_another_name(tmp_path):
    (tmp_path / "run-b.json").write_text(STATE.read_text())
    frame = read_scalars(tmp_path / "run-b.json")
    pd.testing.assert_frame_equal(frame, read_scalars(STATE))


def test_a_checkpoint_folder_is_read_as_curves_and_one_with_completions_as_rollouts(tmp_path):
    for step in (5, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        history = [
            x for x in rows(reward="reward", kl="kl", entropy="entropy") if x["step"] <= step
        ]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        (folder / "rng_state.pth").write_bytes(b"\x80\x04never opened")
    assert are_scalars(tmp_path)
    assert_values(read_scalars(tmp_path))
    assert not are_scalars(LOGS / "trl116_grpo_digit_b004_logp")
    assert len(read_rollouts(LOGS / "trl116_grpo_digit_b004_logp"))


def test_a_file_of_verl(tmp_path):
    named = rows(reward="critic/score/mean", kl="actor/kl_loss", entropy="actor/entropy")
    path = tmp_path / "experiment.jsonl"
    lines = [{"step": x["step"], "data": {**x, "training/global_step": x["step"]}} for x in named]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"step": 11, "da')
    assert are_scalars(path)
    assert_values(read_scalars(path))
    assert read_scalars(path).attrs["format"] == "verl"


def test_event_files_of_tensorboard(tmp_path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(tmp_path / "run"))
    for row in rows(reward="train/reward", kl="train/kl", entropy="train/entropy"):
        step = row.pop("step")
        values = [Summary.Value(tag=tag, simple_value=x) for tag, x in row.items()]
        writer.add_event(Event(step=step, summary=Summary(value=values), wall_time=0.0))
    writer.close()
    assert are_scalars(tmp_path)
    assert_values(read_scalars(tmp_path))


def test_without_tensorboard_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    name = "tensorboard.backend.event_processing.event_accumulator"
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(RolloutError, match=r'pip install "kltarget\[tensorboard\]"'):
        read_scalars(tmp_path)


def test_a_panel_of_weights_and_biases(tmp_path):
    def panel(name, ours):
        columns = {"Step": STEPS}
        for run, factor in (("a - long", 1.0), ("b", 3.0)):
            values = factor * np.array(VALUES[ours])
            columns |= {f"{run} - {name}": values, f"{run} - {name}__MIN": values - 1}
        pd.DataFrame(columns).to_csv(tmp_path / f"{ours}.csv", index=False)

    for name in ("reward", "kl"):
        panel(f"train/{name}", name)
    with pytest.raises(RolloutError, match="2 runs, 'a - long', 'b'"):
        read_scalars(tmp_path)
    frame = read_scalars(tmp_path, run="a - long")
    assert_values(frame, ("reward", "kl"))
    assert frame.attrs["notes"][-1] == "run 'a - long' of 2"
    assert read_scalars(tmp_path, run="b")["reward"].tolist() == [0.75, 1.5, 2.25]
    with pytest.raises(RolloutError, match="run='c' is none of"):
        read_scalars(tmp_path, run="c")


def test_a_history_of_weights_and_biases(tmp_path):
    history = pd.DataFrame(
        {
            "_step": [0, 1, 2, 3],
            "_runtime": [1.0, 2.0, 3.0, 4.0],
            "train/global_step": [*STEPS, math.nan],
            "train/reward": [*VALUES["reward"], math.nan],
            "train/kl": ["0.0", "0.125", "0.5", "NaN"],
        }
    )
    history.to_parquet(tmp_path / "history.parquet")
    assert_values(read_scalars(tmp_path / "history.parquet"), ("reward", "kl"))


def test_a_database_and_an_export_of_trackio(tmp_path):
    named = rows(reward="train/reward", kl="train/kl")
    with sqlite3.connect(tmp_path / "project.db") as database:
        database.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, "
            "step INTEGER, metrics TEXT)"
        )
        insert = "INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES ('', 'one', ?, ?)"
        database.executemany(insert, [(x["step"], json.dumps(x)) for x in named])
    database.close()
    assert_values(read_scalars(tmp_path / "project.db"), ("reward", "kl"))
    exported = pd.DataFrame(
        {
            "run_name": "one",
            "step": STEPS,
            "metrics": [json.dumps({"train/reward": x}) for x in VALUES["reward"]],
        }
    )
    exported.to_parquet(tmp_path / "project.parquet")
    assert_values(read_scalars(tmp_path / "project.parquet"), ("reward",))
    (tmp_path / "other.db").write_bytes(b"no database")
    with pytest.raises(RolloutError, match="not a database of Trackio's"):
        read_scalars(tmp_path / "other.db")


def test_a_step_that_was_logged_twice_counts_once(tmp_path):
    path = tmp_path / "again.jsonl"
    again = [{"step": 5, "reward": -1.0, "kl": 9.0}, *rows(reward="reward", kl="kl")]
    path.write_text("".join(json.dumps(x) + "\n" for x in again))
    assert_values(read_scalars(path), ("reward", "kl"))


def test_names_of_ones_own(tmp_path):
    path = tmp_path / "mine.csv"
    pd.DataFrame({"step": STEPS, "return": VALUES["reward"]}).to_csv(path, index=False)
    assert not are_scalars(path)
    assert are_scalars(path, columns={"reward": "return"})
    assert_values(read_scalars(path, columns={"reward": "return"}), ("reward",))
    with pytest.raises(RolloutError, match="'score' is none of reward"):
        read_scalars(path, columns={"score": "return"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("trainer_state.json", "{}", "it has no list log_history"),
        ("trainer_state.json", '{"log_history": []}', "nothing is logged yet"),
        ("trainer_state.json", '{"log_history": [{"step": 1, "a": 2}]}', "nothing is called as"),
        ("log.txt", "step reward", "no curves of a run"),
        ("run.csv", "step,loss\n1,2\n", "no curves of a run"),
        ("run.csv", "step,reward\n1,\n", "no step with a number"),
    ],
)
def test_what_is_no_curve_is_refused_in_a_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(RolloutError, match=message):
        read_scalars(tmp_path / name)


@pytest.mark.parametrize("folder", sorted(x.name for x in (LOGS / "other_formats").iterdir()))
def test_what_other_trainers_log_are_no_curves(folder):
    assert not are_scalars(LOGS / "other_formats" / folder)


def test_rollouts_are_no_curves(tmp_path):
    path = tmp_path / "rollouts.csv"
    path.write_text("step,prompt,completion,reward\n1,a,b,0.5\n")
    assert not are_scalars(path)
    for folder in LOGS.iterdir():
        if folder.is_dir():
            assert not are_scalars(folder), folder
