"""Tables of counts are read strictly, and the shipped one is what its source says."""

import hashlib
import importlib.resources
import json
import math
import pathlib

import numpy as np
import pandas as pd
import pytest

from kltarget import tasks
from kltarget.evidence import read_counts
from kltarget.tasks import TableError

COLUMNS = {"prompt": ["a", "b", "c"], "correct": [0, 3, 4], "samples": [4, 4, 4]}


def stored(folder, kind):
    frame, path = pd.DataFrame(COLUMNS), folder / f"counts.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "json":
        path.write_text(json.dumps(COLUMNS))
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_files_and_frames_are_read_alike(tmp_path, kind):
    path = stored(tmp_path, kind)
    shuffled = pd.DataFrame(COLUMNS).set_index(pd.Index([7, 7, 1]))
    for source in (path, str(path), COLUMNS, shuffled):
        counts = read_counts(source)
        assert list(counts.columns) == ["prompt", "correct", "samples"]
        assert counts.to_dict("list") == COLUMNS
        assert counts.index.equals(pd.RangeIndex(3))
        assert [counts[x].dtype for x in ("correct", "samples")] == [np.int64, np.int64]


def test_which_columns():
    both = {"id": [1, 2], "base_correct": ["1", "2.0"], "rl_correct": [3, 4], "n": [4, 4]}
    for column, values in (("base_correct", [1, 2]), ("rl_correct", [3, 4])):
        counts = read_counts(both, columns={"correct": column})
        assert counts["correct"].tolist() == values
        assert counts["prompt"].tolist() == ["1", "2"]
    match = r"no correct column: none of 'id', 'base_correct', .*columns=\{'correct': …\}"
    with pytest.raises(TableError, match=match) as caught:
        read_counts(both)
    assert "\n" not in str(caught.value)
    with pytest.raises(TableError, match=r"no correct column 'dpo': the columns are 'id', "):
        read_counts(both, columns={"correct": "dpo"})
    with pytest.raises(TypeError, match=r"unknown role 'reward': roles are \['prompt', "):
        read_counts(both, columns={"reward": "rl_correct"})
    with pytest.raises(TypeError, match=r"source must be the path of a table, .* got int"):
        read_counts(3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("column", "entry", "problem"),
    [
        ("correct", 5, "column 'correct', row 2: 5 are correct of 4 samples"),
        ("correct", -1, "column 'correct', row 2: -1 is too few: it must be 0 or more"),
        ("correct", 0.5, "column 'correct', row 2: 0.5 is not a whole number"),
        ("correct", math.inf, "column 'correct', row 2: inf is not a whole number"),
        ("correct", math.nan, "column 'correct', row 2: the entry is NaN"),
        ("correct", None, "column 'correct', row 2: the entry is empty"),
        ("correct", "two", "column 'correct', row 2: 'two' is not a number"),
        ("samples", 0, "column 'samples', row 2: 0 is too few: it must be 1 or more"),
        ("samples", True, "column 'samples', row 2: True is not a number"),
        ("prompt", "a", "column 'prompt', row 2: the prompt 'a' is in row 1 too"),
        ("prompt", "", "column 'prompt', row 2: there is no prompt"),
        ("prompt", None, "column 'prompt', row 2: there is no prompt"),
    ],
)
def test_what_is_no_count(column, entry, problem):
    table = {name: list(entries) for name, entries in COLUMNS.items()}
    table[column][1] = entry
    with pytest.raises(TableError) as caught:
        read_counts(table)
    assert str(caught.value).startswith(f"counts: {problem}")
    assert "\n" not in str(caught.value)


def test_files_name_the_line(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("prompt,correct,samples\na,1,4\nb,1,4\na,1,4\n")
    match = r"counts.csv: column 'prompt', row 3 \(line 4\): the prompt 'a' is in row 1 \(line 2\)"
    with pytest.raises(TableError, match=match):
        read_counts(path)
    path.write_text("prompt,correct,samples\n")
    with pytest.raises(TableError, match="there are no rows, only the columns"):
        read_counts(path)
    with pytest.raises(TableError, match=r"the columns differ in length: 'prompt' 3, 'correct' 2"):
        read_counts({**COLUMNS, "correct": [1, 2]})


def chance_of_one(correct, samples, draws):
    """The chance that one of so many draws without replacement is correct, by hypergeometry."""
    wrong = samples - correct
    return 1 - math.comb(wrong, draws) / math.comb(samples, draws)


def test_deepscaler_is_what_its_source_says():
    folder = pathlib.Path(str(importlib.resources.files("kltarget"))) / "data"
    data = (folder / "deepscaler32k.csv").read_bytes().replace(b"\r\n", b"\n")
    assert (
        hashlib.sha256(data).hexdigest()
        == "5ad1277071b2c4f19f0e0322c80f4524506d75508fdc3065c4fc73fbd34c0543"
    )
    notice = (folder / "deepscaler32k-NOTICE.md").read_text("utf-8")
    assert "Copyright (c) 2026 passk-inference contributors" in notice
    assert "The above copyright notice and this permission notice shall be included" in notice
    table = tasks.deepscaler()
    assert list(table.columns) == ["prompt", "benchmark", "base_correct", "rl_correct", "samples"]
    assert len(table) == 1060
    assert table["benchmark"].value_counts().to_dict() == {
        "olympiadbench": 633,
        "gaokao2023en": 358,
        "amc23": 39,
        "aime24": 30,
    }
    # pass@1, 16, 64 and 128 as the source publishes them, in its expected.json.
    expected = {
        "base_correct": [
            *(0.6041052476415094, 0.8214858583327612, 0.8703492779681454, 0.8905660377358491),
        ],
        "rl_correct": [
            *(0.6800633844339623, 0.8252846710116392, 0.8573614320608303, 0.870754716981132),
        ],
    }
    for column, rates in expected.items():
        counts = read_counts(table, columns={"correct": column})
        assert set(counts["samples"]) == {128}
        correct = counts["correct"].to_numpy()
        for k, rate in zip((1, 16, 64, 128), rates, strict=True):
            mean = np.mean([chance_of_one(int(c), 128, k) for c in correct])
            assert mean == pytest.approx(rate, rel=1e-12)
    # What one caller does to the table another does not see.
    table["samples"] = 1
    assert set(tasks.deepscaler()["samples"]) == {128}
