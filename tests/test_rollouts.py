"""Rollouts are what the trainers logged, and what cannot be read is named with its place.

Files under `data/rollouts` were written by the trainers' own code; those that are written here are
synthetic, made from reading that code.
"""

import csv
import fractions
import io
import json
import pathlib
import re
import sys
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from kltarget.rollouts import FORMAT_NAMES, RolloutError, answer_rule, read_rollouts

DATA = pathlib.Path(__file__).parent / "data" / "rollouts"
OTHER = DATA / "other_formats"
TRL = sorted(path.name for path in DATA.glob("trl116_*"))
GRADED_LOGP = "trl116_grpo_graded_noscale_k3_b03_long_logp"

DTYPES = {
    "prompt_id": "int32",
    "sample_id": "int32",
    "step": "Int64",
    "prompt": "category",
    "completion": "string",
    "answer": "string",
    "reward": "float64",
    "ref_logp": "float64",
    "logp": "float64",
    "num_tokens": "float64",
    "advantage": "float64",
    "source": "category",
    "group_id": "int32",
}

ROWS = [
    {"prompt": "a?", "completion": "1", "reward": 1.0, "step": 3, "logp": -0.5, "ref_logp": -690.0},
    {"prompt": "a?", "completion": "2", "reward": 0.0, "step": 3, "logp": -1.5, "ref_logp": -2.0},
    {"prompt": "b?", "completion": "1 ", "reward": 0.5, "step": 4, "logp": -2.0, "ref_logp": -1.0},
]


def write(path, rows):
    """A generic file of records, in the format of its extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "," if path.suffix == ".csv" else "\t"
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


def table(path, rows):
    """A table as Weights & Biases and Trackio write it; synthetic."""
    names = list(rows[0])
    data = [[row[name] for name in names] for row in rows]
    path.write_text(json.dumps({"columns": names, "data": data}), encoding="utf-8")
    return path


def noted(rollouts, text):
    return any(text in note for note in rollouts.attrs["notes"])


def values(rollouts, *names):
    return [tuple(row) for row in rollouts[list(names)].astype(object).itertuples(index=False)]


def groups_of(rollouts):
    """What is in the groups, regardless of their order: step, prompt, completions, rewards."""
    return sorted(
        (int(group["step"].iloc[0]), *map(tuple, (group[x] for x in ("prompt", "completion"))))
        for _, group in rollouts.groupby("group_id")
    )


@pytest.fixture(scope="module")
def truth_rows():
    rows = pd.read_parquet(OTHER / "truth_rows.parquet")
    rows["group_id"] = rows.groupby(["step", rows["row"] // 8], sort=False).ngroup()
    rows["ids"] = [" ".join(map(str, ids)) for ids in rows["token_ids"]]
    return rows


def truth_of(rollouts, truth_rows, per_step):
    """The rows of the truth that were kept: so many of each step."""
    steps = [truth_rows[(truth_rows["step"] == s) & (truth_rows["row"] < n)] for s, n in per_step]
    truth = pd.concat(steps, ignore_index=True)
    assert len(truth) == len(rollouts)
    assert rollouts["step"].tolist() == truth["step"].tolist()
    assert rollouts["group_id"].tolist() == truth.groupby("group_id").ngroup().tolist()
    assert rollouts["sample_id"].tolist() == (truth["row"] % 8).tolist()
    return truth


@pytest.mark.parametrize("name", TRL)
def test_trl(name):
    rollouts = read_rollouts(DATA / name, format="trl")
    files = sorted((DATA / name / "completions").iterdir())
    written = pd.concat([pd.read_parquet(path) for path in files], ignore_index=True)
    truth = pd.read_parquet(DATA / name / "truth_completions.parquet")
    truth = truth[truth["file"].isin([path.name for path in files])]

    assert rollouts["prompt"].tolist() == truth["prompt"].tolist() == written["prompt"].tolist()
    assert rollouts["completion"].tolist() == truth["completion"].tolist()
    assert rollouts["step"].tolist() == truth["step"].tolist()
    (reward,) = [column for column in written if column.startswith("reward")]
    assert rollouts["reward"].tolist() == written[reward].tolist()
    assert rollouts[f"reward/{reward}"].tolist() == written[reward].tolist()
    assert rollouts["advantage"].tolist() == written["advantage"].tolist()
    assert rollouts["logp"].isna().all()
    group = truth.groupby(["step", truth["row"] // 8], sort=False).ngroup()
    assert rollouts["group_id"].tolist() == group.tolist()
    assert rollouts["sample_id"].tolist() == (truth["row"] % 8).tolist()
    assert rollouts["source"].tolist() == [str(files[0].parent / file) for file in truth["file"]]
    assert rollouts.attrs["format"] == "trl"
    assert noted(rollouts, "num_generations=8 is a guess from runs of equal prompts and advantages")
    assert noted(rollouts, f"reward from {reward!r}")
    assert noted(rollouts, "left out:")


def test_groups_of_one_step_may_share_their_prompt():
    path = DATA / "trl116_grpo_digit_b004" / "completions" / "completions_00009.parquet"
    rollouts = read_rollouts(path)
    assert rollouts.groupby("group_id")["prompt"].unique().map(list).tolist() == [
        ["one number:"],
        ["one number:"],
        ["one number:"],
        ["a digit?"],
    ]
    assert rollouts["prompt_id"].tolist() == [0] * 24 + [1] * 8


@pytest.mark.parametrize("name", [name for name in TRL if name.endswith("logp")])
def test_trl_with_log_probabilities(name):
    rollouts = read_rollouts(DATA / name)
    written = pd.read_parquet(DATA / name / "rollouts_logp.parquet")
    assert rollouts.attrs["format"] == "trl-logp"
    assert noted(rollouts, "left out: trainer_state.json, truth.json, completions_00001.parquet")
    for column in ("step", "prompt", "completion", "advantage", "logp", "ref_logp"):
        assert rollouts[column].tolist() == written[column].tolist()
    assert rollouts["group_id"].tolist() == (np.arange(len(written)) // 8).tolist()

    truth = json.loads((DATA / name / "truth.json").read_text())
    exact = {
        (prompt["prompt"], answer["text"]): answer["ref_logp"]
        for prompt in truth["exact"]
        for answer in prompt["answers"]
        if answer["text"]
    }
    seen = rollouts[rollouts["completion"] != ""]
    expected = [exact[key] for key in zip(seen["prompt"], seen["completion"], strict=True)]
    np.testing.assert_allclose(seen["ref_logp"], expected, atol=2e-5)


def test_per_token_log_probabilities_are_added(tmp_path, truth_rows):
    rows = truth_rows[["step", "prompt", "completion", "token_logps", "ref_token_logps"]]
    rows = rows.assign(my_reward=truth_rows["reward"], advantage=0.0, logp=None)
    path = tmp_path / "rollouts_logp.jsonl"
    rows.to_json(path, orient="records", lines=True, double_precision=15)
    rollouts = read_rollouts(path)
    assert rollouts.attrs["format"] == "trl-logp"
    np.testing.assert_allclose(rollouts["logp"], truth_rows["logp"], rtol=1e-12)
    np.testing.assert_allclose(rollouts["ref_logp"], truth_rows["ref_logp"], rtol=1e-12)
    assert (rollouts["num_tokens"] == 1).all()
    assert rollouts["reward/my_reward"].tolist() == truth_rows["reward"].tolist()


def trl_rows(prompts, size, step=1, **columns):
    rewards = columns.pop("rewards", None)
    return [
        {
            "step": step,
            "prompt": prompt,
            "completion": str(i),
            "r": 0.0 if rewards is None else rewards[i],
            "advantage": 0.0,
            **columns,
        }
        for prompt in prompts
        for i in range(size)
    ]


def test_the_size_of_groups_without_advantages(tmp_path):
    path = write(tmp_path / "completions_00001.parquet", trl_rows("aab", 6))
    rollouts = read_rollouts(path)
    assert noted(rollouts, "num_generations=6 is a guess from runs of equal prompts alone")
    assert rollouts["group_id"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    given_size = read_rollouts(path, num_generations=3)
    assert given_size["group_id"].tolist() == np.repeat(range(6), 3).tolist()
    assert noted(given_size, "blocks of 3 rows, as given")
    with pytest.raises(RolloutError, match=r"num_generations=4 does not fit.* row 17 .* 2 rows"):
        read_rollouts(path, num_generations=4)
    with pytest.raises(RolloutError, match=r"num_generations=9 .* row 13 a block has a second"):
        read_rollouts(path, num_generations=9)
    with pytest.raises(RolloutError, match="num_generations is 0"):
        read_rollouts(path, num_generations=0)


def test_shuffled_rows_are_grouped_by_step_and_prompt(tmp_path):
    rows = trl_rows("aba", 1) + trl_rows("ab", 1, step=2)
    rollouts = read_rollouts(write(tmp_path / "completions_00001.parquet", rows))
    assert rollouts["group_id"].tolist() == [0, 1, 0, 2, 3]
    assert rollouts["sample_id"].tolist() == [0, 0, 1, 0, 0]
    assert noted(rollouts, "all completions of one prompt at one step")


def test_rewards_that_do_not_apply_are_skipped(tmp_path):
    rows = trl_rows("a", 2, style=0.25, rewards=[1.0, np.nan], note="x")
    rollouts = read_rollouts(write(tmp_path / "completions_00001.parquet", rows))
    assert rollouts["reward"].tolist() == [1.25, 0.25]
    np.testing.assert_array_equal(rollouts["reward/r"], [1.0, np.nan])
    assert noted(rollouts, "reward from 'r', 'style'")


def test_chats_become_text(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": [{"type": "text", "text": "1+1?"}]}
    said = [{"role": "assistant", "content": "so 2"}]
    rows = [
        {**ROWS[0], "prompt": [{"role": "user", "content": "1+1?"}], "completion": said},
        {**ROWS[0], "prompt": [system, user], "completion": said},
    ]
    rollouts = read_rollouts(write(tmp_path / "a.jsonl", rows))
    assert rollouts["prompt"].tolist() == ["1+1?", "system: Be brief.\nuser: 1+1?"]
    assert rollouts["completion"].tolist() == ["so 2", "so 2"]
    rows = [{**row, "prompt": rows[0]["prompt"], "advantage": 0.0} for row in rows]
    rollouts = read_rollouts(write(tmp_path / "completions_00001.parquet", rows))
    assert values(rollouts, "prompt", "completion") == [("1+1?", "so 2")] * 2


def test_tables_repeat_their_last_step(tmp_path):
    """Synthetic: TRL's Parquet files as tables, whose last step is logged once more."""
    folder = DATA / "trl116_grpo_digit_b0" / "completions"
    steps = [pd.read_parquet(path).to_dict("records") for path in sorted(folder.iterdir())]
    expected = read_rollouts(folder)
    twice = table(tmp_path / "a.table.json", [*steps[0], *steps[1], *steps[1]])
    rollouts = read_rollouts(twice)
    pd.testing.assert_frame_equal(rollouts.drop(columns="source"), expected.drop(columns="source"))
    assert noted(rollouts, "32 rows of steps that were logged twice dropped")

    tables = tmp_path / "tables"
    tables.mkdir()
    for i, rows in enumerate([steps[0], steps[1], steps[1]]):
        table(tables / f"completions_{i}_abc.table.json", rows)
    (tables / "config.json").write_text("{}")
    (tables / "broken.json").write_text("{")
    rollouts = read_rollouts(tables)
    assert rollouts.attrs["format"] == "trl-table"
    assert values(rollouts, "step", "completion", "reward") == values(
        expected, "step", "completion", "reward"
    )
    assert noted(rollouts, "left out: broken.json, config.json")


def test_verl(truth_rows):
    rollouts = read_rollouts(OTHER / "verl_v1")
    assert rollouts.attrs["format"] == "verl"
    assert rollouts["step"].tolist() == np.repeat([1, 2, 5, 8], 32).tolist()
    truth = truth_rows[truth_rows["step"].isin([1, 2, 5, 8])]
    assert groups_of(rollouts) == groups_of(truth)
    assert rollouts["reward"].tolist() == rollouts["completion"].isin(["1", "2"]).tolist()
    assert noted(rollouts, "groups as the files name them")


def test_verl_without_uids(tmp_path):
    """Synthetic: an older verl, and one whose user logs log-probabilities."""
    rows = [
        {"input": prompt, "output": "x", "gts": "1", "score": 1, "old_log_probs": [-1.0, -9.0],
         "ref_log_prob": -2.5, "response_mask": [1, 0]}
        for prompt in "aab"
    ]  # fmt: skip
    write(tmp_path / "10.jsonl", rows)
    write(tmp_path / "9.jsonl", rows)
    rollouts = read_rollouts(tmp_path)
    assert rollouts["step"].tolist() == [9] * 3 + [10] * 3
    assert rollouts["group_id"].tolist() == [0, 0, 1, 2, 2, 3]
    assert rollouts["prompt_id"].tolist() == [0, 0, 1, 0, 0, 1]
    assert (rollouts["logp"] == -1).all()
    assert (rollouts["ref_logp"] == -2.5).all()


def test_open_instruct(truth_rows):
    rollouts = read_rollouts(OTHER / "open_instruct")
    truth = truth_of(rollouts, truth_rows, [(1, 32), (2, 32)])
    assert rollouts["completion"].tolist() == truth["ids"].tolist()
    assert rollouts["reward"].tolist() == (10 * truth["reward"]).tolist()
    np.testing.assert_allclose(rollouts["logp"], truth["logp"], rtol=1e-6)
    prompts = rollouts.groupby("prompt_id")["prompt"].first()
    assert prompts.nunique() == truth["prompt"].nunique()
    assert noted(rollouts, "token ids")
    assert noted(rollouts, "left out: digits_metadata.jsonl")


def test_nemo_rl(truth_rows):
    rollouts = read_rollouts(OTHER / "nemo_rl")
    truth = truth_of(rollouts, truth_rows, [(1, 16), (8, 8)])
    for column in ("prompt", "completion", "reward"):
        assert rollouts[column].tolist() == truth[column].tolist()
    np.testing.assert_allclose(rollouts["logp"], truth["logp"], rtol=1e-6)
    assert (rollouts["num_tokens"] == 1).all()
    np.testing.assert_allclose(rollouts.groupby("group_id")["advantage"].sum(), 0, atol=1e-5)


def test_prime_rl_token_exports(truth_rows):
    rollouts = read_rollouts(OTHER / "prime_rl")
    assert rollouts.attrs["format"] == "prime-rl-tokens"
    truth = truth_of(rollouts, truth_rows, [(1, 16), (8, 8)])
    assert rollouts["completion"].tolist() == truth["ids"].tolist()
    np.testing.assert_allclose(rollouts["logp"], truth["logp"], rtol=1e-6)
    assert rollouts["reward"].isna().all()
    assert noted(rollouts, "24 of 24 rows have no reward")


def trace(task, said, rewards, **node):
    user = {"parent": None, "message": {"role": "user", "content": "1+1?"}, "sampled": False,
            "token_ids": [1, 2], "mask": [False, False], "logprobs": []}  # fmt: skip
    dead_end = {**user, "parent": 0, "message": {"role": "assistant", "content": "hm"}}
    answer = {"parent": 0, "message": {"role": "assistant", "content": said}, "sampled": True,
              "token_ids": [3, 4, 5], "mask": [False, True, True], "logprobs": [-0.5, -1.0],
              "advantages": [0.5, 0.5], **node}  # fmt: skip
    return {"nodes": [user, dead_end, answer], "rewards": rewards, "task": task, "info": {}}


def test_prime_rl_traces(tmp_path):
    """Synthetic: traces as prime-rl's orchestrator saves them."""
    both = {"right": {"score": 1.0, "weight": 1.0}, "style": {"score": 0.5, "weight": 0.2}}
    one = {"right": {"score": 0.0, "weight": 1.0}, "style": None}
    task = {"type": "Sum", "key": "sum-1", "data": {"idx": 0}}
    rows = [
        trace(task, "2", both, reference_logprobs=[-1.0, -1.0]),
        trace(task, "3", one),
        trace({**task, "key": "sum-2"}, "2", both),
    ]
    write(tmp_path / "rollouts" / "step_7" / "train" / "all" / "traces.jsonl", rows)
    rollouts = read_rollouts(tmp_path)
    assert rollouts.attrs["format"] == "prime-rl"
    assert values(rollouts, "prompt", "completion", "step", "group_id", "num_tokens") == [
        ("1+1?", "2", 7, 0, 2.0),
        ("1+1?", "3", 7, 0, 2.0),
        ("1+1?", "2", 7, 1, 2.0),
    ]
    np.testing.assert_allclose(rollouts["reward"], [1.1, 0.0, 1.1])
    np.testing.assert_array_equal(rollouts["reward/style"], [0.5, np.nan, 0.5])
    assert (rollouts["logp"] == -1.5).all()
    assert (rollouts["advantage"] == 0.5).all()
    np.testing.assert_array_equal(rollouts["ref_logp"], [-2.0, np.nan, np.nan])
    assert rollouts["tokens"][0].tolist() == [4, 5]
    assert rollouts["ref_token_logps"][0].tolist() == [-1.0, -1.0]
    assert rollouts["tokens"][1] is None


def test_tunix():
    folder = DATA / "tunix017_agentic_odd_b004"
    rollouts = read_rollouts(folder)
    assert rollouts.attrs["format"] == "tunix"
    assert rollouts["group_id"].tolist() == np.repeat(range(10), 4).tolist()
    assert set(rollouts["prompt"]) == {"digit:", "a digit?"}
    assert rollouts["reward"].tolist() == rollouts["completion"].isin(["1", "3", "7"]).tolist()
    assert rollouts["step"].isna().all()
    assert (rollouts["num_tokens"] == 1).all()
    truth = json.loads((folder / "truth.json").read_text())
    exact = {
        (prompt["prompt"], answer["text"]): answer["ref_logp"]
        for prompt in truth["exact"]
        for answer in prompt["answers"]
    }
    # The first two groups were sampled by the reference.
    first = rollouts[rollouts["group_id"] < 2]
    expected = [exact[key] for key in zip(first["prompt"], first["completion"], strict=True)]
    np.testing.assert_allclose(first["logp"], expected, atol=2e-5)


def test_tunix_runs_nothing(tmp_path):
    """Nested values are literals; anything else is a bad row."""
    (path,) = (DATA / "tunix017_agentic_odd_b004").glob("*.csv")
    text = path.read_text().splitlines()
    text[2] = text[2].replace("[{'role'", "[print('run'), {'role'", 1)
    broken = tmp_path / "trajectory_log_1.csv"
    broken.write_text("\n".join(text))
    with pytest.raises(RolloutError, match=r"trajectory_log_1.csv: line 3: .*neither a Python"):
        read_rollouts(broken)
    assert len(read_rollouts(broken, skip_bad=True)) == 39


def test_skyrl_evaluations(truth_rows):
    rollouts = read_rollouts(OTHER / "skyrl", num_generations=8)
    truth = truth_of(rollouts, truth_rows, [(1, 32), (8, 32)])
    for column in ("prompt", "completion", "reward"):
        assert rollouts[column].tolist() == truth[column].tolist()
    assert noted(rollouts, "left out: aggregated_results.jsonl")
    by_prompt = read_rollouts(OTHER / "skyrl")
    pairs = by_prompt[["step", "prompt"]].astype(object).itertuples(index=False)
    assert by_prompt["group_id"].nunique() == len({tuple(pair) for pair in pairs})


@pytest.mark.parametrize("extension", ["jsonl", "csv", "tsv", "parquet"])
def test_generic_files(tmp_path, extension):
    rollouts = read_rollouts(write(tmp_path / f"mine.{extension}", ROWS))
    assert {name: str(dtype) for name, dtype in rollouts.dtypes.items()} == DTYPES
    assert rollouts.attrs["format"] == "generic"
    for column in ROWS[0]:
        assert rollouts[column].tolist() == [row[column] for row in ROWS]
    assert rollouts["answer"].tolist() == ["1", "2", "1"]
    assert rollouts["group_id"].tolist() == [0, 0, 1]
    assert rollouts["sample_id"].tolist() == [0, 1, 0]
    assert rollouts[["num_tokens", "advantage"]].isna().all(axis=None)


def test_files_with_columns_of_their_own(tmp_path):
    rows = [
        {"q": "a?", "prompt_tokens": [1], "response": "1", "answer": "2", "right": True, "style": 1}
    ]
    path = write(tmp_path / "mine.jsonl", rows)
    names = {"prompt": "q", "completion": "response", "reward": "right"}
    rollouts = read_rollouts(path, columns=names)
    assert values(rollouts, "prompt", "completion", "answer", "reward") == [("a?", "1", "1", 1.0)]
    added = read_rollouts(path, columns={**names, "reward": ["right", "style"]})
    assert added["reward"].tolist() == [2.0]
    assert added["reward/style"].tolist() == [1.0]
    assert read_rollouts(path, columns={**names, "answer": "answer"})["answer"].tolist() == ["2"]
    with pytest.raises(RolloutError, match="there is no column 'rigth': the columns are 'q'"):
        read_rollouts(path, columns={**names, "reward": "rigth"})
    with pytest.raises(RolloutError, match="'prompts' is none of 'prompt', 'completion'"):
        read_rollouts(path, columns={"prompts": "q"})
    with pytest.raises(RolloutError, match="not for format='verl'"):
        read_rollouts(path, columns=names, format="verl")
    with pytest.raises(RolloutError, match=r"not of any known format: .*; name those"):
        read_rollouts(path)


def test_what_is_not_logged_is_missing(tmp_path):
    tmp_path = tmp_path / "step_3" / "x"
    tmp_path.mkdir(parents=True)
    rows = [{"prompt_id": 7, "completion": "x"}, {"prompt_id": 8, "completion": "y"}]
    rollouts = read_rollouts(write(tmp_path / "mine.jsonl", rows))
    assert rollouts["prompt"].tolist() == ["7", "8"]
    assert rollouts["step"].isna().all()
    assert rollouts["reward"].isna().all()
    assert noted(rollouts, "2 of 2 rows have no reward")


# pandas writes a lone carriage return into CSV without quotes, where it ends a row.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=8)
FLOATS = st.floats(-1e6, 1e6)
LOGS = st.floats(-1e3, 0)
FRAMES = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": TEXTS,
            "completion": TEXTS,
            "reward": FLOATS,
            "step": st.integers(0, 3) | st.none(),
            "ref_logp": LOGS,
            "logp": LOGS | st.none(),
            "num_tokens": st.integers(1, 9),
            "advantage": FLOATS,
        }
    ),
    min_size=1,
    max_size=12,
)


@given(rows=FRAMES, answer=st.sampled_from(["text", "number"]))
@pytest.mark.parametrize("extension", ["jsonl", "csv", "tsv", "parquet"])
def test_what_was_read_can_be_written_and_read_again(tmp_path_factory, extension, rows, answer):
    if extension in ("csv", "tsv"):
        answer = "text"  # where a missing answer and an empty one are told apart
    folder = tmp_path_factory.mktemp("again")
    first = read_rollouts(write(folder / "first.jsonl", rows), answer=answer)
    path = folder / f"second.{extension}"
    match extension:
        case "parquet":
            first.to_parquet(path)
        case "jsonl":
            records = first.astype(object).where(first.notna(), None).to_dict("records")
            write(path, records)
        case _:
            first.to_csv(path, index=False, sep="," if extension == "csv" else "\t")
    second = read_rollouts(path)
    assert second.attrs["format"] == "generic"
    pd.testing.assert_frame_equal(second.drop(columns="source"), first.drop(columns="source"))


COMPLETION = (
    r"First 12, so <answer>\boxed{\frac{1}{2}}</answer> or <answer> 1,200.50 </answer>" + "\n"
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("text", COMPLETION.rstrip()),
        ("number", "1200.5"),
        ("boxed", r"\frac{1}{2}"),
        ("answer", "1,200.50"),
        (r"regex:<(\w+)>", "answer"),
        (r"regex:\d+", "50"),
        (re.compile(r"First (\d+)"), "12"),
        (lambda completion: completion[:5], "First"),
        ("regex:z", None),
        (lambda completion: None, None),
    ],
)
def test_answers(tmp_path, rule, expected):
    path = write(tmp_path / "a.jsonl", [{**ROWS[0], "completion": COMPLETION}])
    rollouts = read_rollouts(path, answer=rule)
    (answer,) = rollouts["answer"]
    assert (answer is pd.NA) if expected is None else answer == expected
    name = (
        rule
        if isinstance(rule, str)
        else f"regex:{rule.pattern}"
        if isinstance(rule, re.Pattern)
        else "<lambda>"
    )
    assert noted(rollouts, f"answer {name!r}:")
    assert noted(rollouts, "1 of 1 completions without one") == (expected is None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 42.", "42"),
        ("1, 2, 3", "3"),
        ("10-3", "3"),
        ("x = -3.0", "-3"),
        ("−.50", "-0.5"),
        ("007", "7"),
        ("-0", "0"),
        ("1,234,567", "1234567"),
        ("1,2345", "2345"),
        ("none", None),
        ("1e-3", "0.001"),
        ("about 1.50E6.", "1500000"),
        ("x = -2e−2", "-0.02"),
        ("3e", "3"),
        ("a3e5", "5"),
        ("1e-400", "1e-400"),
        ("1/2", "0.5"),
        ("it is -6 / 4", "-1.5"),
        ("4/6", "2/3"),
        ("8/4", "2"),
        ("0/7", "0"),
        ("1/0", "0"),
        (r"\boxed{-\frac{1}{2}}", "-0.5"),
        (r"\dfrac{10}{3}", "10/3"),
        ("on 2024/05/06", "6"),
        ("in a/3/4", "4"),
        ("1/2/x", "2"),
        ("24/7support", "7"),
        ("1,200/2", "600"),
        ("１２", "12"),
        ("－１．５０", "-1.5"),
        ("٣", "3"),
        ("1,200,000.50", "1200000.5"),
        ("12,34", "34"),
        ("5" + " " * 10_000, "5"),
        ("7" * 6000, "7" * 6000),
        ("7" * 6000 + ".50", "7" * 6000 + ".5"),
        ("1/" + "7" * 6000, "7" * 6000),
    ],
)
def test_numbers(text, number):
    assert answer_rule("number")[1](text) == number


@given(st.fractions(), st.text(alphabet="ab =:$"))
def test_equal_numbers_are_equal_answers(number, before):
    rule = answer_rule("number")[1]
    spelled = rule(f"{before} {number.numerator}/{number.denominator}")
    assert fractions.Fraction(spelled) == number
    assert spelled == rule(f"{before} {number.numerator * 6}/{number.denominator * 6}")
    assert spelled == rule(f"{before} {number.numerator}e2/{number.denominator * 100}")


@given(st.integers(), st.text(alphabet="ab =:$"))
def test_the_last_number_is_found(number, before):
    rule = answer_rule("number")[1]
    assert rule(f"{before} {number}") == rule(f"{before} {number:,}.00!") == str(number)


NESTED = st.recursive(
    st.text(alphabet="ab1\\ ", max_size=3).map(lambda text: text.replace("\\", "\\{")),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
)


@given(NESTED, st.text(alphabet="ab{ ", max_size=5))
def test_the_last_balanced_box_is_found(inside, around):
    rule = answer_rule("boxed")[1]
    text = f"\\boxed{{9}} {around} \\boxed{{{inside}}} \\boxed{{{around}"
    assert rule(text) == inside.strip()


@pytest.mark.parametrize(
    ("text", "box"),
    [(r"\boxed{1", None), (r"\boxed{1} \boxed{2", "1"), (r"\boxed{a\boxed{b}}", "b"), ("}", None)],
)
def test_broken_boxes(text, box):
    assert answer_rule("boxed")[1](text) == box


def test_rules_that_are_none(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(RolloutError, match=r"answer='nubmer' is no rule: give one of 'text'"):
        read_rollouts(path, answer="nubmer")
    with pytest.raises(RolloutError, match=r"answer='regex:\(' is no regular expression"):
        read_rollouts(path, answer="regex:(")
    with pytest.raises(TypeError, match="answer must return a text or None, not 1"):
        read_rollouts(path, answer=len)


GOOD = json.dumps(ROWS[0]).encode()
VERL = {"input": "a", "output": "b", "score": 1.0, "uid": "u_0_0"}
INSTRUCT = {"prompt_tokens": [1], "response_tokens": [2], "reward": 1.0, "prompt_idx": 0}


def changed(**columns):
    return json.dumps({**ROWS[0], **columns}).encode()


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b'{"prompt": "a', "not JSON: Unterminated string"),
        (b"[1, 2]", "not a record of named entries"),
        (b"[" * 100_000, "not JSON: nested too deeply"),
        (GOOD.replace(b"a?", b"\xe9?"), "not UTF-8 text (byte 0xe9): save the file as UTF-8"),
        (changed(completion=None), "column 'completion': the entry is empty"),
        (changed(completion="\ud800"), "surrogates not allowed"),
        (changed(reward=np.inf), "a reward of +inf has no target"),
        (changed(reward="0,5"), "'0,5' is not a number: write a decimal point, not a comma"),
        (changed(step=1.5), "column 'step': 1.5 is not a whole number"),
        (changed(step=1e300), "column 'step': 1e+300 is not a whole number"),
        (changed(logp=0.7), "0.7 is no log-probability: it must be 0 or less"),
        (changed(logp=[1]), "column 'logp': [1] is not a number"),
        (changed(group_id=3), "a group, unlike the rows before it"),
    ],
)
def test_broken_lines(tmp_path, bad, problem):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"", bad, GOOD, b""]))
    with pytest.raises(RolloutError) as caught:
        read_rollouts(path)
    assert str(caught.value).startswith(f"{path}: line 3: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    rollouts = read_rollouts(path, skip_bad=True)
    assert len(rollouts) == 2
    assert noted(rollouts, f"1 bad row skipped, the first: {path}: line 3: ")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**VERL, "uid": None}, "no group, unlike the rows before it"),
        ({**VERL, "score": {}}, "column 'score': no reward: {} is not a number"),
        (
            {**INSTRUCT, "prompt_idx": None, "response_tokens": 2},
            "2 is not a list of token ids",
        ),
        ({k: v for k, v in INSTRUCT.items() if k != "prompt_idx"}, "no 'prompt_idx', which 'open-"),
    ],
)
def test_broken_rows_of_trainers(tmp_path, row, problem):
    first = VERL if "input" in row else INSTRUCT
    path = write(tmp_path / "1.jsonl", [first, row])
    with pytest.raises(RolloutError, match=re.escape(problem)) as caught:
        read_rollouts(path)
    assert str(caught.value).startswith(f"{path}: line 2: ")
    assert len(read_rollouts(path, skip_bad=True)) == 1


def first_row(pattern):
    return json.loads(next(OTHER.glob(pattern)).read_text().splitlines()[0])


WRITTEN = {
    "generic": ROWS[0],
    "nemo-rl": first_row("nemo_rl/*.jsonl"),
    "open-instruct": first_row("open_instruct/*_rollouts_*.jsonl"),
    "prime-rl": trace({"key": "sum"}, "2", {"right": {"score": 1.0, "weight": 1.0}}),
    "prime-rl-tokens": first_row("prime_rl/**/*.jsonl"),
    "skyrl": first_row("skyrl/*/digits.jsonl"),
    "trl-logp": {**trl_rows("a", 1)[0], "logp": -1.0, "token_ids": [1]},
    "verl": first_row("verl_v1/*.jsonl"),
}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@pytest.mark.quick_only("generic", "nemo-rl", "verl", others="broad")
@given(data=st.data())
@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_whatever_a_row_holds_is_read_or_refused_in_one_line(tmp_path_factory, name, data):
    good = WRITTEN[name]
    bad = {**good, data.draw(st.sampled_from(sorted(good))): data.draw(ANY_JSON)}
    path = write(tmp_path_factory.mktemp("any") / "step_1.jsonl", [good, bad])
    problem = ""
    try:
        read = read_rollouts(path, format=name)
    except RolloutError as error:
        problem = str(error)
        read = read_rollouts(path, skip_bad=True)
    assert len(read) == (1 if problem or noted(read, "1 of 2 rows have no reward") else 2)
    assert not problem or problem.startswith(f"{path}: line 2: ")
    assert "\n" not in problem


def test_rewards_of_trl_that_are_all_nan(tmp_path):
    rows = trl_rows("a", 4, rewards=[0.0, 1.0, np.nan, 1.0]) + trl_rows("b", 4)
    path = write(tmp_path / "completions_00001.parquet", rows)
    rollouts = read_rollouts(path, num_generations=4)
    assert rollouts["group_id"].tolist() == [0] * 3 + [1] * 4
    where = rf"left out, the first: {re.escape(str(path))}: row 3"
    assert re.search(
        f"1 of 8 rows have no reward and are {where}", "\n".join(rollouts.attrs["notes"])
    )


@pytest.mark.parametrize("missing", [None, np.nan])
def test_rows_without_a_reward_are_left_out(tmp_path, missing):
    path = write(tmp_path / "mine.jsonl", [ROWS[0], {**ROWS[0], "reward": missing}, ROWS[2]])
    rollouts = read_rollouts(path)
    assert rollouts["reward"].tolist() == [1.0, 0.5]
    assert noted(
        rollouts, f"1 of 3 rows have no reward and are left out, the first: {path}: line 2"
    )
    csv_path = write(tmp_path / "mine.csv", [ROWS[0], {**ROWS[0], "reward": ""}, ROWS[2]])
    assert read_rollouts(csv_path)["group_id"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("lines", "line", "problem"),
    [
        (['x,1,1,"2'], 3, "unexpected end of data"),
        (["x,1"], 3, "2 entries, but the header has 4"),
        (['"x\ny",1,1', "x,1,1,2"], 3, "3 entries, but the header has 4"),
        (["\xe9,1,1,2"], 3, "not UTF-8 text (byte 0xe9)"),
    ],
)
def test_broken_csv(tmp_path, lines, line, problem):
    path = tmp_path / "mine.csv"
    text = "\n".join(["prompt,completion,reward,step", "x,1,1,2", *lines])
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RolloutError, match=re.escape(f"{path}: line {line}: {problem}")):
        read_rollouts(path)
    assert len(read_rollouts(path, skip_bad=True)) == len(lines)


def test_fields_may_be_long(tmp_path):
    limit = csv.field_size_limit()
    path = write(tmp_path / "mine.csv", [{**ROWS[0], "completion": "x" * 200_000}])
    assert read_rollouts(path)["completion"].str.len().tolist() == [200_000]
    assert csv.field_size_limit() == limit


def test_truncated_parquet(tmp_path):
    whole = write(tmp_path / "completions_00001.parquet", trl_rows("ab", 4))
    broken = tmp_path / "completions_00002.parquet"
    broken.write_bytes(whole.read_bytes()[:-100])
    for path in (broken, tmp_path):
        with pytest.raises(RolloutError) as caught:
            read_rollouts(path)
        assert str(caught.value).startswith(f"{broken}: not a readable Parquet file: ")
        assert "\n" not in str(caught.value)
    rollouts = read_rollouts(tmp_path, skip_bad=True)
    assert len(rollouts) == 8
    assert noted(rollouts, f"not read to its end: {broken}")
    whole.write_bytes(broken.read_bytes())
    with pytest.raises(RolloutError, match="not a readable Parquet file"):
        read_rollouts(tmp_path, skip_bad=True)


def test_files_that_are_none(tmp_path):
    def fails(path, message, **options):
        with pytest.raises(RolloutError, match=message) as caught:
            read_rollouts(path, **options)
        assert "\n" not in str(caught.value)

    empty = tmp_path / "empty.jsonl"
    empty.touch()
    fails(tmp_path / "no.jsonl", r"no.jsonl: there is no such file or folder")
    fails(empty, "empty.jsonl: the file is empty")
    fails([], "no paths were given")
    (tmp_path / "void").mkdir()
    fails(tmp_path / "void", "void: the folder is empty")
    (tmp_path / "a.txt").touch()
    fails(tmp_path / "a.txt", "unknown extension '.txt': rollouts end in .parquet")
    fails(tmp_path, r"nothing to read: a.txt, empty.jsonl: not of any known format")
    header = tmp_path / "header.csv"
    header.write_text("prompt,completion,reward\n")
    fails(header, "the file is empty, or has no row")
    (tmp_path / "twice.csv").write_text("prompt,completion,prompt\n")
    fails(tmp_path / "twice.csv", "two columns are called 'prompt'")
    (tmp_path / "utf16.csv").write_text("prompt,completion\n", encoding="utf-16")
    fails(tmp_path / "utf16.csv", "line 1: not UTF-8 text")
    (tmp_path / "a.json").write_text("{")
    fails(tmp_path / "a.json", "a.json: line 1: not JSON")
    none_good = tmp_path / "bad.jsonl"
    none_good.write_bytes(GOOD + b"\n")
    fails(none_good, "not of format 'tunix': the columns are", format="tunix")
    fails(none_good, "format='trll' is none of 'auto', 'nemo-rl'", format="trll")
    none_good.write_bytes(changed(reward=None) + b"\n")
    fails(none_good, r"bad.jsonl: line 1: no reward, and no row has one")
    none_good.write_bytes(changed(reward="x") + b"\n")
    fails(none_good, r"bad.jsonl: no rows that can be read: 1 are bad, the first", skip_bad=True)
    no_rows = tmp_path / "no_rows.parquet"
    pd.DataFrame(ROWS[:0], columns=list(ROWS[0])).to_parquet(no_rows)
    fails(no_rows, "no_rows.parquet: no rows")


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "global_step_5_training_input.pkl"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for given_path in (path, tmp_path):
        with pytest.raises(RolloutError, match=r"input.pkl: opening a pickle can run any code"):
            read_rollouts(given_path)


def test_mixed_folders():
    with pytest.raises(RolloutError) as caught:
        read_rollouts(OTHER)
    assert str(caught.value) == (
        f"{OTHER}: files of several formats, nemo-rl, open-instruct, prime-rl-tokens, skyrl, verl: "
        "read them one by one, or give the format"
    )
    assert read_rollouts(OTHER, format="verl").attrs["format"] == "verl"
    both = [OTHER / "verl_v1" / "1.jsonl", OTHER / "truth_rows.parquet"]
    with pytest.raises(RolloutError, match="files of several formats, generic, verl"):
        read_rollouts(both)


def test_runs_with_and_without_log_probabilities_are_not_mixed(tmp_path):
    rows = trl_rows("ab", 4)
    write(tmp_path / "one" / "rollouts_logp.parquet", [{**row, "logp": -1.0} for row in rows])
    write(tmp_path / "one" / "completions" / "completions_00001.parquet", rows)
    assert len(read_rollouts(tmp_path)) == 8
    write(tmp_path / "two" / "completions" / "completions_00001.parquet", rows)
    with pytest.raises(RolloutError, match="files of several formats, trl, trl-logp"):
        read_rollouts(tmp_path)


def test_every_format_is_documented():
    import kltarget.rollouts

    assert all(f"\n``{name}`` " in kltarget.rollouts.__doc__ for name in FORMAT_NAMES)
    assert issubclass(RolloutError, ValueError)


def test_without_pyarrow(monkeypatch, tmp_path):
    path = write(tmp_path / "a.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'a.parquet: .* pip install "kltarget\[parquet\]"'):
        read_rollouts(path)


@pytest.mark.parametrize("extension", ["jsonl", "csv", "parquet"])
def test_progress(monkeypatch, tmp_path, extension):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    path = write(tmp_path / f"a.{extension}", ROWS * 10)
    read_rollouts(path)
    assert not shown.getvalue()
    read_rollouts(path, progress=True)
    assert "rollouts: 100%" in shown.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("extension", ["jsonl", "parquet"])
def test_long_files_are_streamed(tmp_path, extension):
    """Synthetic: 20,000 rows take little more memory than the frame they become."""
    rows = np.arange(20_000)
    frame = pd.DataFrame(
        {
            "prompt": [f"what is {i // 8 % 1000}?" for i in rows],
            "completion": [f"it is {i}" for i in rows],
            "reward": rows % 2.0,
            "step": rows // 1000,
            "group_id": rows // 8,
        }
    )
    path = tmp_path / f"long.{extension}"
    if extension == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    tracemalloc.start()
    rollouts = read_rollouts(path, answer="number")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16e6
    assert rollouts["answer"].tolist() == [str(i) for i in rows]
    assert rollouts["group_id"].tolist() == (rows // 8).tolist()
    assert rollouts["sample_id"].tolist() == (rows % 8).tolist()
    assert rollouts["prompt"].nunique() == 1000


def test_scores_of_a_model_are_read_in_any_trainers_log(tmp_path):
    """Columns that were added to verl's, which spells its own otherwise."""
    path = tmp_path / "1.jsonl"
    row = {"input": "a?", "output": "b", "score": 1.0, "step": 1, "uid": "a_0_0"}
    rows = [
        {**row, "ref_logp": -2.5, "logp": -1.5},
        {**row, "uid": "a_1_0", "ref_log_prob": [-1.0, -2.0], "ref_logp": -2.5},
        {**row, "uid": "a_2_0", "ref_logp": None},
    ]
    path.write_text("".join(json.dumps(x) + "\n" for x in rows))
    frame = read_rollouts(path)
    assert frame.attrs["format"] == "verl"
    # What the trainer says itself comes first.
    np.testing.assert_allclose(frame["ref_logp"], [-2.5, -3.0, np.nan])
    np.testing.assert_allclose(frame["logp"], [-1.5, np.nan, np.nan])
