"""Tables in every format give the same problem, and every defect is named with its place."""

import csv
import json
import sys

import numpy as np
import pytest

from kltarget.tasks import TableError, read_table

ROWS = [
    {"answer": "red", "reward": 1.0, "count": 30, "family": "warm"},
    {"answer": "blue", "reward": 1.0, "count": 2, "family": "cold"},
    {"answer": "grün, hell", "reward": 0.0, "count": 68, "family": "cold"},
]


def _write(path, rows=ROWS):
    names = list(rows[0])
    match path.suffix:
        case ".csv" | ".tsv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(
                    file, names, delimiter="," if path.suffix == ".csv" else "\t"
                )
                writer.writeheader()
                writer.writerows(rows)
        case ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case ".parquet":
            pyarrow = pytest.importorskip("pyarrow")
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("extension", ["csv", "tsv", "json", "jsonl", "parquet", "CSV"])
def test_every_format_gives_the_same_problem(tmp_path, extension):
    path = _write(tmp_path / f"colours.{extension.lower()}").rename(
        tmp_path / f"colours.{extension}"
    )
    table = read_table(path, modes="family")
    assert table.name == "colours"
    assert table.labels == ("red", "blue", "grün, hell")
    np.testing.assert_allclose(np.exp(table.log_ref), [0.3, 0.02, 0.68], rtol=1e-14)
    assert table.reward.tolist() == [1, 1, 0]
    assert table.modes.tolist() == [0, 1, 1]
    assert table.missing_mass == 0
    assert table.notes == (
        "outcome column 'answer', reward column 'reward', mode column 'family'",
        "reference from counts in column 'count' (total 100)",
    )


def test_without_a_mode_column_each_right_outcome_is_a_mode(tmp_path):
    assert read_table(_write(tmp_path / "t.csv")).modes.tolist() == [0, 1, -1]


def _csv(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_json_object_of_columns(tmp_path):
    path = _csv(
        tmp_path, '{"outcome": ["a", "b"], "reward": [1, 0], "prob": [0.25, 0.75]}', "t.json"
    )
    np.testing.assert_allclose(np.exp(read_table(path).log_ref), [0.25, 0.75])


def test_json_extremes(tmp_path):
    path = _csv(
        tmp_path,
        '{"outcome": ["a", "b", 3], "correct": [true, false, -Infinity], '
        '"logp": [0, "-inf", -800]}',
        "t.json",
    )
    table = read_table(path)
    assert table.labels == ("a", "b", "3")
    assert table.reward.tolist() == [1, 0, -np.inf]
    np.testing.assert_allclose(table.log_ref, [0, -np.inf, -800])
    assert "1 outcome has no reference mass" in table.notes


def test_quoted_entries_span_lines_and_blank_lines_are_skipped(tmp_path):
    path = _csv(tmp_path, '\ntext,score,n\n"two\nlines",1,3\n\n none ,0,1\n')
    table = read_table(path)
    assert table.labels == ("two\nlines", " none ")
    with pytest.raises(TableError, match=r"row 2 \(line 6\): 'x' is not a number"):
        read_table(_csv(tmp_path, '\ntext,score,n\n"two\nlines",1,3\n\n none ,x,1\n'))
    # What other readers take for a missing value is a word like any other.
    path = _csv(tmp_path, "word,reward,count\nnone,0,1\nnan,0,1\nnull,1,1\nNA,1,1\n")
    assert read_table(path).labels == ("none", "nan", "null", "NA")


def test_a_byte_order_mark_and_semicolons_from_a_spreadsheet(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("answer;reward;p\r\na;1;0.5\r\nb;0;0.5\r\n".encode("utf-8-sig"))
    table = read_table(path)
    assert table.labels == ("a", "b")
    assert "columns are separated by ';'" in table.notes


@pytest.mark.parametrize("reward", ["reward", "Score", " r ", "is correct", "is-correct"])
@pytest.mark.parametrize("outcome", ["completion", "Answer", "token"])
@pytest.mark.parametrize(
    ("reference", "values", "what"),
    [
        ("ref_logp", ("-0.6931471805599453", "-0.6931471805599453"), "log-probabilities"),
        ("LogP", ("-0.6931471805599453", "-0.6931471805599453"), "log-probabilities"),
        ("prob", ("0.5", "0.5"), "probabilities"),
        ("p", ("0.5", "5e-1"), "probabilities"),
        ("freq", ("7", "7.0"), "counts"),
    ],
)
def test_columns_are_found_by_name(tmp_path, outcome, reward, reference, values, what):
    path = _csv(tmp_path, f"{outcome},{reward},{reference}\na,1,{values[0]}\nb,0,{values[1]}\n")
    table = read_table(path)
    np.testing.assert_allclose(table.log_ref, np.log([0.5, 0.5]), rtol=1e-14)
    assert table.notes[1].startswith(f"reference from {what} in column {reference!r}")


def test_a_single_text_column_is_the_outcome_whatever_its_name(tmp_path):
    table = read_table(_csv(tmp_path, "id,smiles,reward,count\n1,CCO,1,3\n2,CO,0,1\n"))
    assert table.labels == ("CCO", "CO")
    assert "outcome column 'smiles'" in table.notes[0]


def test_named_columns_win_and_the_rest_is_said(tmp_path):
    path = _csv(
        tmp_path, "answer,label,reward,score,logp,ref_logp,n\na,x,1,5,-9,-1,3\nb,y,0,6,-9,-1,1\n"
    )
    guessed = read_table(path)
    assert guessed.labels == ("a", "b")
    assert guessed.reward.tolist() == [1, 0]
    assert guessed.notes[1].startswith("reference from log-probabilities in column 'ref_logp'")
    assert guessed.notes[2] == "not used for the reference: 'logp', 'n'"
    said = read_table(path, outcome="label", reward="score", count="n")
    assert said.labels == ("x", "y")
    assert said.reward.tolist() == [5, 6]
    np.testing.assert_allclose(np.exp(said.log_ref), [0.75, 0.25])


def test_missing_mass_is_normalised_away_or_kept(tmp_path):
    path = _csv(
        tmp_path, "answer,reward,ref_logp\na,1,-1.6094379124341003\nb,0,-1.6094379124341003\n"
    )
    table = read_table(path)
    np.testing.assert_allclose(np.exp(table.log_ref), [0.5, 0.5])
    assert table.missing_mass == pytest.approx(0.6)
    assert table.notes[1].endswith("masses sum to 0.4, missing mass 0.6 normalised away")
    kept = read_table(path, unseen_reward=-1.0)
    assert kept.labels == ("a", "b", "(unseen)")
    assert kept.reward.tolist() == [1, 0, -1]
    np.testing.assert_allclose(np.exp(kept.log_ref), [0.2, 0.2, 0.6])
    assert kept.modes.tolist() == [0, -1, -1]
    assert kept.notes[1].endswith("missing mass 0.6 kept as '(unseen)', reward -1")
    # With a mode column the unseen outcome is a mode of its own.
    path = _csv(tmp_path, "answer,reward,prob,mode\na,1,0.2,x\nb,0,0.2,x\n")
    assert read_table(path, unseen_reward=0.0).modes.tolist() == [0, 0, 1]


def test_an_unseen_reward_without_missing_mass_is_remarked(tmp_path):
    table = read_table(_write(tmp_path / "t.csv"), unseen_reward=0.0)
    assert len(table.labels) == 3
    assert table.notes[-1] == "no reference mass is missing: the unseen reward is not used"


def test_rounding_is_not_missing_mass(tmp_path):
    third = "0.3333333"
    table = read_table(_csv(tmp_path, f"word,r,p\na,0,{third}\nb,0,{third}\nc,1,{third}\n"))
    assert table.missing_mass == 0
    assert table.notes[1] == "reference from probabilities in column 'p'"
    np.testing.assert_allclose(np.exp(table.log_ref).sum(), 1, rtol=1e-15)


def test_too_much_mass_is_remarked(tmp_path):
    table = read_table(_csv(tmp_path, "word,r,p\na,0,0.9\nb,1,0.6\n"))
    assert "masses sum to 1.5, more than one: normalised; is each row a different" in table.notes[1]
    assert table.missing_mass == 0
    np.testing.assert_allclose(np.exp(table.log_ref), [0.6, 0.4])


HEAD = "answer,reward,count\n"
BAD = {
    "empty file": ("t.csv", "", "the file is empty"),
    "only a header": (
        "t.csv",
        HEAD,
        "there are no rows, only the columns 'answer', 'reward', 'count'",
    ),
    "nan reward": (
        "t.csv",
        HEAD + "a,nan,1\n",
        "column 'reward', row 1 (line 2): the entry is NaN",
    ),
    "infinite reward": (
        "t.csv",
        HEAD + "a,1,1\nb,inf,1\n",
        "column 'reward', row 2 (line 3): a reward of +inf has no target: "
        "rewards are finite or -inf",
    ),
    "text reward": (
        "t.csv",
        HEAD + "a,good,1\n",
        "column 'reward', row 1 (line 2): 'good' is not a number",
    ),
    "empty entry": (
        "t.tsv",
        "answer\treward\tp\na\t\t1\n",
        "column 'reward', row 1 (line 2): the entry is empty",
    ),
    "decimal comma": (
        "t.csv",
        "answer;reward;p\na;0,5;1\n",
        "column 'reward', row 1 (line 2): '0,5' is not a number: "
        "write a decimal point, not a comma",
    ),
    "digit groups": (
        "t.csv",
        HEAD + "a,1_0,1\n",
        "column 'reward', row 1 (line 2): '1_0' is not a number",
    ),
    "negative count": (
        "t.csv",
        HEAD + "a,1,-3\n",
        "column 'count', row 1 (line 2): -3 is no count: it must be finite and 0 or more",
    ),
    "boolean count": (
        "t.json",
        '[{"answer": "a", "reward": 1, "n": true}]',
        "column 'n', row 1: True is not a number",
    ),
    "counts all zero": (
        "t.csv",
        HEAD + "a,1,0\n",
        "column 'count': every outcome has reference mass zero",
    ),
    "probability above one": (
        "t.csv",
        "answer,reward,prob\na,1,0.1\nb,0,1.2\n",
        "column 'prob', row 2 (line 3): 1.2 is no probability: it must be between 0 and 1",
    ),
    "positive log-probability": (
        "t.csv",
        "answer,reward,logp\na,1,0.1\n",
        "column 'logp', row 1 (line 2): 0.1 is no log-probability: it must be 0 or less",
    ),
    "nan log-probability": (
        "t.jsonl",
        '{"answer": "a", "reward": 1, "logp": NaN}',
        "column 'logp', row 1 (line 1): the entry is NaN",
    ),
    "duplicate outcome": (
        "t.csv",
        HEAD + "a,1,1\nb,0,1\na,1,2\n",
        "column 'answer', row 3 (line 4): 'a' is already in row 1 (line 2): "
        "give each outcome one row (add up its counts or probabilities)",
    ),
    "duplicate column": ("t.csv", "answer,reward,p,p\na,1,1,1\n", "two columns are called 'p'"),
    "ragged row": (
        "t.csv",
        HEAD + "a,1,1\nb,1\n",
        "row 2 (line 3) has 2 entries, the header has 3",
    ),
    "unquoted comma": (
        "t.csv",
        HEAD + "a, b,1,1\n",
        "row 1 (line 2) has 4 entries, the header has 3",
    ),
    "open quote": ("t.csv", HEAD + '"a,1,1\n', "line 2: unexpected end of data"),
    "no reward column": (
        "t.csv",
        "answer,points,count\na,1,1\n",
        "no reward column: none of 'answer', 'points', 'count' "
        "is called 'reward', 'rewards' or 'score'",
    ),
    "no reference column": (
        "t.csv",
        "answer,reward\na,1\n",
        "no reference column: none of 'answer', 'reward' is called 'ref_logp', 'prob' or 'count'",
    ),
    "no outcome column": (
        "t.csv",
        "id,reward,count\n1,1,1\n",
        "no outcome column: none of 'id', 'reward', 'count' "
        "is called 'outcome', 'answer' or 'completion'",
    ),
    "nothing possible": (
        "t.csv",
        HEAD + "a,-inf,1\nb,1,0\n",
        "column 'reward': no outcome with reference mass has a finite reward",
    ),
    "broken json": (
        "t.json",
        '[{"answer": "a",\n "reward": }]',
        "line 2: not JSON: Expecting value",
    ),
    "json of another shape": ("t.json", "3", "expected a list of records or an object of columns"),
    "json of an empty object": ("t.json", "{}", "there are no rows, only the columns "),
    "json columns of other lengths": (
        "t.json",
        '{"answer": ["a"], "reward": [1, 2], "p": [1]}',
        "the columns differ in length: 'answer' 1, 'reward' 2, 'p' 1",
    ),
    "json column that is no list": (
        "t.json",
        '{"answer": "a"}',
        "column 'answer' is not a list: give one entry per outcome",
    ),
    "broken line": (
        "t.jsonl",
        '{"answer": "a"}\n\n{"answer"\n',
        "row 2 (line 3): not JSON: Expecting ':' delimiter",
    ),
    "line that is no record": (
        "t.jsonl",
        "[1]\n",
        "row 1 (line 1) is not a record of named entries",
    ),
    "entry missing from a record": (
        "t.jsonl",
        '{"answer": "a", "reward": 1, "p": 1}\n{"answer": "b", "p": 0}\n',
        "column 'reward', row 2 (line 2): the entry is empty",
    ),
    "label missing from a record": (
        "t.jsonl",
        '{"answer": "a", "reward": 1, "p": 1}\n{"reward": 1, "p": 0}\n',
        "column 'answer', row 2 (line 2): the entry is empty",
    ),
    "unknown extension": (
        "t.xlsx",
        "PK",
        "unknown extension '.xlsx': a table ends in .csv, .tsv, .json, .jsonl or .parquet",
    ),
    "no extension": (
        "table",
        "a",
        "unknown extension '': a table ends in .csv, .tsv, .json, .jsonl or .parquet",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_every_defect_is_named_with_its_place(tmp_path, case):
    name, text, message = BAD[case]
    path = _csv(tmp_path, text, name)
    with pytest.raises(TableError) as caught:
        read_table(path)
    assert str(caught.value) == f"{path}: {message}"


def test_wrong_encoding_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"answer,reward,count\na,1,1\ncaf\xe9,1,1\n")
    with pytest.raises(
        TableError, match=r"line 3 is not UTF-8 text \(byte 0xe9\): save the file as UTF-8$"
    ):
        read_table(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(TableError, match=r"t\.csv: cannot be read: No such file"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(TableError, match=r"folder\.csv: cannot be read: "):
        read_table(tmp_path / "folder.csv")


def test_truncated_parquet(tmp_path):
    path = _write(tmp_path / "t.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TableError, match=r"t\.parquet: not a readable Parquet file: [^\n]+$"):
        read_table(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = _csv(tmp_path, "PAR1", "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "kltarget\[parquet\]"'):
        read_table(path)


def test_null_in_parquet(tmp_path):
    rows = [*ROWS[:2], {**ROWS[2], "reward": None}]
    with pytest.raises(TableError, match=r"column 'reward', row 3: the entry is empty$"):
        read_table(_write(tmp_path / "t.parquet", rows))


@pytest.mark.parametrize("role", ["outcome", "reward", "log_ref", "prob", "count", "modes"])
def test_a_column_that_is_not_there_lists_those_that_are(tmp_path, role):
    path = _write(tmp_path / "t.csv")
    with pytest.raises(
        TableError,
        match=r"no \w+ column 'nope': the columns are 'answer', 'reward', 'count', 'family'$",
    ):
        read_table(path, **{role: "nope"})


def test_only_one_reference_may_be_given(tmp_path):
    path = _write(tmp_path / "t.csv")
    with pytest.raises(TableError, match="columns were given for prob and count"):
        read_table(path, prob="count", count="count")


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_unseen_reward_must_be_one(tmp_path, reward):
    with pytest.raises(TableError, match="reward of the unseen outcome"):
        read_table(_write(tmp_path / "t.csv"), unseen_reward=reward)


def test_the_unseen_outcome_needs_its_name(tmp_path):
    path = _csv(tmp_path, "answer,reward,p\n(unseen),1,0.5\n")
    with pytest.raises(
        TableError, match=r"row 1 \(line 2\): '\(unseen\)' is the name of the missing mass"
    ):
        read_table(path, unseen_reward=0.0)


def test_a_large_table_is_read_in_a_moment(tmp_path):
    path = _csv(tmp_path, HEAD + "".join(f"answer {i},{i % 2},{i + 1}\n" for i in range(50_000)))
    table = read_table(path)
    assert table.num_outcomes == 50_000
    assert table.modes.max() == 24_999
