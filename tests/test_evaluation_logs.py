"""Logs of evaluations are samples with rewards; what cannot be one is counted and named.

Files are written here, in the layouts that the sources of their writers have.
"""

import json
import pathlib
import re
import struct
import zipfile
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kltarget.rollouts import FORMAT_NAMES, RolloutError, read_rollouts

CASES = pathlib.Path(__file__).parent / "data" / "cases"

MESSAGE = {"role": "assistant", "content": "so 2"}


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def noted(rollouts, *texts):
    return all(any(text in note for note in rollouts.attrs["notes"]) for text in texts)


def one_line(caught):
    return "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "format", "rewards"),
    [
        ("e01_lm_eval.jsonl", "lm-eval", [1, 0, 0, 1, 0, 0]),
        ("e02_inspect.json", "inspect", [1, 0, 0.5, 1, 0, 1]),
        ("e03_noveltybench.jsonl", "noveltybench", [8, 3, 8, 4, 2]),
        ("e04_openr1.jsonl", "openr1", [1, 0, 1, 1]),
        ("e05_lighteval.jsonl", "lighteval", [0, 1, 0, 1]),
    ],
)
def test_a_file_of_each(name, format, rewards):
    rollouts = read_rollouts(CASES / name)
    assert rollouts.attrs["format"] == format
    assert rollouts["reward"].tolist() == rewards
    # Who wrote a file is told by it alone, and no other format takes it.
    for other in FORMAT_NAMES:
        if other not in (format, "generic"):
            with pytest.raises(RolloutError, match=f"not of format '{other}'"):
                read_rollouts(CASES / name, format=other)


def harness_row(doc_id, responses, filter="none", **metrics):
    """A row as the harness writes it since version 0.4.5."""
    return {
        "doc_id": doc_id,
        "doc": {"question": f"q{doc_id}", "answer": "2"},
        "target": "2",
        "arguments": {"gen_args_0": {"arg_0": f"Q: q{doc_id}\nA:", "arg_1": {"until": ["\n"]}}},
        "resps": [responses],
        "filtered_resps": responses[:1],
        "filter": filter,
        "metrics": list(metrics),
        "doc_hash": "a",
        "prompt_hash": "b",
        "target_hash": "c",
        **metrics,
    }


def test_the_harness(tmp_path):
    rows = [harness_row(i, [f"so {i}"], exact_match=float(i == 2)) for i in range(3)]
    path = lines(tmp_path / "samples_gsm8k_2026-01-01T00-00-00.jsonl", rows)
    (tmp_path / "results_2026-01-01T00-00-00.json").write_text('{"results": {"gsm8k": {}}}')
    for given in (path, tmp_path):
        rollouts = read_rollouts(given, answer="number")
        assert rollouts.attrs["format"] == "lm-eval"
        assert rollouts["prompt"].tolist() == [f"Q: q{i}\nA:" for i in range(3)]
        assert rollouts["completion"].tolist() == ["so 0", "so 1", "so 2"]
        assert rollouts["answer"].tolist() == ["0", "1", "2"]
        assert rollouts["reward"].tolist() == [0, 0, 1]
        assert rollouts["group_id"].tolist() == [0, 1, 2]
        assert rollouts["step"].isna().tolist() == [True] * 3
        assert noted(rollouts, "reward from the metric 'exact_match'")


def test_responses_that_two_filters_judge_count_once(tmp_path):
    rows = [
        harness_row(i, ["2"], filter, exact_match=float(filter == "flexible-extract"))
        for filter in ("strict-match", "flexible-extract")
        for i in range(2)
    ]
    path = lines(tmp_path / "samples_gsm8k_t.jsonl", rows)
    rollouts = read_rollouts(path)
    assert rollouts["reward"].tolist() == [0, 0]
    assert noted(rollouts, "2 rows of another filter than 'strict-match' left out: only={'filter'")
    assert read_rollouts(path, only={"filter": "flexible-extract"})["reward"].tolist() == [1, 1]


def test_rows_of_the_harness_before_it_listed_metrics(tmp_path):
    row = harness_row(0, ["a"], exact_match=1.0)
    del row["metrics"], row["filter"]
    row["arguments"] = [["Q: q0\nA:", {"until": []}]]
    rollouts = read_rollouts(lines(tmp_path / "samples_t.jsonl", [row]))
    assert rollouts[["prompt", "reward"]].to_numpy().tolist() == [["Q: q0\nA:", 1.0]]


def test_a_chat_is_the_prompt(tmp_path):
    row = harness_row(0, ["a"], exact_match=True)
    chat = json.dumps([{"role": "user", "content": "1+1?"}])
    for written in (chat, [chat]):
        row["arguments"]["gen_args_0"]["arg_0"] = written
        rollouts = read_rollouts(lines(tmp_path / "samples_t.jsonl", [row]))
        assert rollouts["prompt"].tolist() == ["1+1?"]
        assert rollouts["reward"].tolist() == [1]


def test_several_responses_of_the_harness(tmp_path):
    """One number is of the first if no filter is, of each if it is a list, else of none."""
    said = ["a", "b", "c"]
    first = harness_row(0, said, exact_match=1.0)
    each = harness_row(1, said, exact_match=[0, 1, None])
    mean = harness_row(2, said, exact_match=0.5) | {"filtered_resps": [said]}
    path = lines(tmp_path / "samples_t.jsonl", [first, each, mean])
    rollouts = read_rollouts(path)
    assert rollouts["completion"].tolist() == ["a", "a", "b"]
    assert rollouts["reward"].tolist() == [1, 0, 1]
    assert noted(
        rollouts,
        "3 of 6 rows have no reward and are left out",
        "1 row left out, metric 'exact_match' is one number for several completions",
        "samples_t.jsonl: line 3",
    )
    alone = lines(tmp_path / "samples_u.jsonl", [mean, mean])
    match = (
        r"samples_u.jsonl: line 1: metric 'exact_match' is one .*read_counts \(so it is in 2 rows"
    )
    with pytest.raises(RolloutError, match=match) as caught:
        read_rollouts(alone)
    assert one_line(caught)


def test_log_likelihoods_are_no_completions(tmp_path):
    choices = harness_row(0, [], acc=1.0) | {"resps": [[["-1.5", "False"]], [["-0.5", "True"]]]}
    path = lines(tmp_path / "samples_t.jsonl", [choices])
    with pytest.raises(RolloutError, match="log-likelihoods of given answers"):
        read_rollouts(path)
    rows = [choices, harness_row(1, ["a"], acc=0.0)]
    rollouts = read_rollouts(lines(path, rows))
    assert len(rollouts) == 1
    assert noted(rollouts, "1 row left out, log-likelihoods")


def test_which_of_several_metrics(tmp_path):
    rows = [
        harness_row(i, ["a"], comment="fine", perplexity=[1, 2, 3], exact_match=i, f1=0.25)
        for i in range(2)
    ]
    path = lines(tmp_path / "samples_t.jsonl", rows)
    rollouts = read_rollouts(path)
    assert rollouts["reward"].tolist() == [0, 1]
    assert noted(rollouts, "'exact_match', not 'comment', 'perplexity', 'f1': columns={'reward'")
    for format in ("auto", "lm-eval"):
        other = read_rollouts(path, format=format, columns={"reward": "f1"})
        assert other["reward"].tolist() == [0.25, 0.25]
        assert other.attrs["format"] == "lm-eval"
    with pytest.raises(
        RolloutError, match=r"'reward': 'bleu'.* asks for: the metrics are 'comment', 'perplexity'"
    ) as caught:
        read_rollouts(path, columns={"reward": "bleu"})
    assert one_line(caught)
    with pytest.raises(RolloutError, match=r"line 1: metric 'comment': 'fine' is not a number"):
        read_rollouts(path, columns={"reward": "comment"})
    with pytest.raises(RolloutError, match=r"metric 'perplexity': \(1, 2, 3\) is not a number"):
        read_rollouts(path, columns={"reward": "perplexity"})


def test_metrics_that_are_missing(tmp_path):
    rows = [harness_row(0, ["a"], exact_match=None), harness_row(1, ["b"], exact_match=1.0)]
    rollouts = read_rollouts(lines(tmp_path / "samples_t.jsonl", rows))
    assert rollouts["completion"].tolist() == ["b"]
    assert noted(rollouts, "1 of 2 rows have no reward and are left out, the first: ")
    path = lines(tmp_path / "samples_u.jsonl", [harness_row(0, ["a"])])
    with pytest.raises(
        RolloutError, match=r"no row has a metric: the columns are 'doc_id', .*columns={'prompt'"
    ) as caught:
        read_rollouts(path)
    assert one_line(caught)
    path = lines(tmp_path / "samples_v.jsonl", [harness_row(0, ["a"], note="x")])
    with pytest.raises(RolloutError, match="none of the metrics 'note' is a number"):
        read_rollouts(path)


def test_broken_rows_of_the_harness(tmp_path):
    good = harness_row(1, ["b"], exact_match=1.0)
    for broken, why in (
        ({"resps": 3}, "not as 'lm-eval' writes it"),
        ({"arguments": {}}, "no 'gen_args_0', which 'lm-eval' has"),
        ({"arguments": [[3]]}, "the first is no text"),
    ):
        path = lines(tmp_path / "samples_t.jsonl", [good, {**good, **broken}])
        with pytest.raises(RolloutError, match=f"line 2: .*{why}") as caught:
            read_rollouts(path)
        assert one_line(caught)
        rollouts = read_rollouts(path, skip_bad=True)
        assert len(rollouts) == 1
        assert noted(rollouts, "1 bad row skipped, the first: ")
    path = lines(tmp_path / "samples_t.jsonl", [harness_row(0, [], exact_match=0.0), good])
    assert noted(read_rollouts(path), "1 row left out, there is no completion, the first: ")


def sample(id, epoch, value, content: Any = "so 2", **more) -> dict[str, Any]:
    return {
        "id": id,
        "epoch": epoch,
        "input": f"question {id}",
        "target": "2",
        "messages": [MESSAGE],
        "output": {
            "model": "m",
            "choices": [{"message": {"role": "assistant", "content": content}}],
            "usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12},
        },
        "scores": {"match": {"value": value, "answer": "2"}},
        "attachments": {},
        **more,
    }


def log(samples, **more):
    """Epochs have reductions too, a second list of records."""
    reductions = [{"scorer": "match", "samples": [{"value": 1}]}]
    content = {"version": 2, "status": "success", "eval": {"task": "t"}, "results": {}}
    return {**content, "samples": samples, "reductions": reductions, **more}


def inspected(path, samples):
    """A log of Inspect in the layout of the path's extension."""
    if path.suffix == ".json":
        path.write_text(json.dumps(log(samples)))
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_journal/start.json", "{}")
        for x in samples:
            archive.writestr(f"samples/{x['id']}_epoch_{x['epoch']}.json", json.dumps(x))
        archive.writestr("summaries.json", json.dumps([{"id": 1, "epoch": 1}]))
        archive.writestr("header.json", json.dumps(log(None)))
    return path


@pytest.mark.parametrize("suffix", [".json", ".eval"])
def test_inspect(tmp_path, suffix):
    values = ["C", "I", "P", "N", True, 0.25]
    samples = [sample(1 + i // 3, 1 + i % 3, value) for i, value in enumerate(values)]
    rollouts = read_rollouts(inspected(tmp_path / f"log{suffix}", samples))
    assert rollouts.attrs["format"] == "inspect"
    assert rollouts["reward"].tolist() == [1, 0, 0.5, 0, 1, 0.25]
    assert rollouts["prompt"].tolist() == ["question 1"] * 3 + ["question 2"] * 3
    assert rollouts["group_id"].tolist() == [0] * 3 + [1] * 3
    assert rollouts["completion"].tolist() == ["so 2"] * 6
    assert rollouts["num_tokens"].tolist() == [7] * 6
    assert not noted(rollouts, "validation")


@pytest.mark.parametrize("suffix", [".json", ".eval"])
def test_samples_that_no_score_judges(tmp_path, suffix):
    failed = sample("x", 1, "C", scores=None, error={"message": "m"})
    unasked = sample("y", 1, "C")
    del unasked["output"], unasked["scores"]
    samples = [unasked, failed, sample(1, 1, float("nan")), sample(2, 1, "C")]
    rollouts = read_rollouts(inspected(tmp_path / f"log{suffix}", samples))
    assert rollouts["prompt"].tolist() == ["question 2"]
    assert noted(
        rollouts,
        "2 of 3 rows have no reward and are left out",
        "1 row left out, there is no completion",
    )


def test_scores_of_several_kinds(tmp_path):
    scores = {
        "grader": {"value": "a good answer"},
        "parts": {"value": {"right": "C", "brief": 0}},
        "match": {"value": "I"},
    }
    path = inspected(tmp_path / "log.eval", [sample(1, 1, "C", scores=scores)])
    rollouts = read_rollouts(path)
    assert rollouts["reward"].tolist() == [1]
    assert noted(rollouts, "the metric 'parts/right', not 'grader', 'parts/brief', 'match'")
    assert read_rollouts(path, columns={"reward": "match"})["reward"].tolist() == [0]


def test_texts_that_stand_apart(tmp_path):
    one = sample(1, 1, "C", [{"type": "text", "text": "attachment://k"}])
    one |= {"input": [{"role": "user", "content": "attachment://q"}]}
    one |= {"attachments": {"k": "long", "q": "long question"}}
    lost = {**one, "id": 2, "attachments": {}}
    rollouts = read_rollouts(inspected(tmp_path / "log.eval", [one, lost]))
    assert rollouts[["prompt", "completion"]].to_numpy().tolist() == [["long question", "long"]]
    assert noted(rollouts, "1 row left out, a text is in an attachment")


def test_of_several_choices_the_first_is_judged(tmp_path):
    several = sample(1, 1, "C")
    several["output"]["choices"] *= 2
    rollouts = read_rollouts(inspected(tmp_path / "log.json", [several]))
    assert rollouts["reward"].tolist() == [1]
    assert rollouts["num_tokens"].isna().tolist() == [True]
    assert noted(rollouts, "1 of 2 rows have no reward")


def test_archives_that_are_none(tmp_path):
    path = tmp_path / "log.eval"
    path.write_bytes(b"no zip file")
    with pytest.raises(RolloutError, match=r"log.eval: not a readable log of Inspect") as caught:
        read_rollouts(path)
    assert one_line(caught)
    path.write_bytes(b"")
    with pytest.raises(RolloutError, match=r"log.eval: the file is empty"):
        read_rollouts(path)
    inspected(path, [])
    with pytest.raises(RolloutError, match=r"log.eval: the file is empty, or has no row"):
        read_rollouts(path)
    inspected(path, [sample(1, 1, "C")])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("samples/3_epoch_1.json", "{")
        archive.writestr("samples/4_epoch_1.json", "[]")
    with pytest.raises(RolloutError, match=r"samples/3_epoch_1.json: not JSON"):
        read_rollouts(path)
    assert noted(read_rollouts(path, skip_bad=True), "2 bad rows skipped, the first: ")


def test_samples_that_would_fill_memory(tmp_path):
    """What an archive says of a sample's size, and what the sample has beyond it."""
    path = inspected(tmp_path / "log.eval", [sample(1, 1, "C"), sample(2, 1, "I")])
    content = path.read_bytes()
    at = content.rindex(b"samples/2_epoch_1.json") - 46
    for size, why in (
        (1 << 30, r"1,073,741,824 bytes: a sample may have"),
        (10, "cannot be unpack"),
    ):
        changed = bytearray(content)
        struct.pack_into("<I", changed, at + 24, size)
        path.write_bytes(changed)
        with pytest.raises(RolloutError, match=f"samples/2_epoch_1.json: {why}"):
            read_rollouts(path)
        assert read_rollouts(path, skip_bad=True)["reward"].tolist() == [1]


def test_archives_that_are_damaged_or_packed_otherwise(tmp_path):
    path = inspected(tmp_path / "log.eval", [sample(1, 1, "C"), sample(2, 1, "I")])
    content = path.read_bytes()
    where = content.index(b"samples/2_epoch_1.json") + 40
    damaged = content[:where] + bytes([content[where] ^ 255]) + content[where + 1 :]
    path.write_bytes(damaged)
    assert read_rollouts(path, skip_bad=True)["reward"].tolist() == [1]
    # Inspect packs by a method, 93, that zipfile knows from Python 3.14 on; 99 none knows.
    other = bytearray(content)
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.find(signature)
        while at >= 0:
            struct.pack_into("<H", other, at + offset, 99)
            at = content.find(signature, at + 1)
    path.write_bytes(other)
    with pytest.raises(RolloutError, match="inspect log convert --to json") as caught:
        read_rollouts(path)
    assert one_line(caught)


def test_a_sample_that_was_written_again_counts_once(tmp_path):
    path = inspected(tmp_path / "log.eval", [sample(1, 1, "I")])
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("samples/1_epoch_1.json", json.dumps(sample(1, 1, "C")))
    assert read_rollouts(path)["reward"].tolist() == [1]


def test_inspect_logs_without_samples(tmp_path):
    path = tmp_path / "log.json"
    content = log(None)
    del content["samples"]
    path.write_text(json.dumps(content))
    with pytest.raises(RolloutError, match=r"log.json: a log of Inspect without samples"):
        read_rollouts(path)


def details(metrics, texts=("a",), layout="now") -> dict[str, Any]:
    doc = {"query": "1+1?", "choices": ["2"], "gold_index": 0, "id": "0"}
    response = {"input": None, "text": list(texts), "output_tokens": [[1, 2]] * len(texts)}
    response |= {"logprobs": [], "input_tokens": [3]}
    if layout == "old":
        old = {"example": "1+1?", "full_prompt": "1+1?", "predictions": list(texts)}
        return {**old, "gold": ["2"], "metrics": metrics}
    names = ("doc", "model_response", "metric")
    if layout == "documented":
        names = tuple(f"__{name}__" for name in names)
    return dict(zip(names, (doc, response, metrics), strict=True))


@pytest.mark.parametrize("layout", ["now", "documented", "old"])
def test_lighteval(tmp_path, layout):
    pytest.importorskip("pyarrow")
    rows = [details({"em": 1.0, "f1": 0.5}, layout=layout), details({"em": 0.0}, layout=layout)]
    path = tmp_path / "details_gsm8k_2026-01-01.parquet"
    pd.DataFrame(rows).to_parquet(path)
    rollouts = read_rollouts(path)
    assert rollouts.attrs["format"] == "lighteval"
    assert rollouts["prompt"].tolist() == ["1+1?"] * 2
    assert rollouts["completion"].tolist() == ["a"] * 2
    assert rollouts["reward"].tolist() == [1, 0]
    if layout != "old":
        assert rollouts["num_tokens"].tolist() == [2, 2]
    assert noted(rollouts, "the metric 'em', not 'f1'")
    other = read_rollouts(path, columns={"reward": "f1"})
    assert other["reward"].tolist() == [0.5]
    assert noted(other, "1 of 2 rows have no reward")


def test_what_lighteval_does_not_say(tmp_path):
    several = details({"pass@k:k=1&n=2": 0.5}, texts=("a", "b"))
    with pytest.raises(RolloutError, match="'pass@k:k=1&n=2' is one number for several"):
        read_rollouts(lines(tmp_path / "d.jsonl", [several]))
    choices = details({"acc": 1.0}, texts=())
    choices["model_response"]["logprobs"] = [-1.0, -2.0]
    old = details({"acc": 1.0}, layout="old") | {"predictions": [[-1.0, False], [-2.0, True]]}
    for row in (choices, old):
        with pytest.raises(RolloutError, match="log-likelihoods of given answers"):
            read_rollouts(lines(tmp_path / "d.jsonl", [row]))
    nameless = details([1.0])
    with pytest.raises(RolloutError, match="line 1: the metrics are no entries by name"):
        read_rollouts(lines(tmp_path / "d.jsonl", [nameless]))


def test_validation_of_verl(tmp_path):
    rows = [
        {"input": "q", "output": said, "gts": "2", "score": score, "step": 20, "acc": score > 0}
        for said, score in (("2", 1.0), ("3", -1.0))
    ]
    path = lines(tmp_path / "validation" / "20.jsonl", rows)
    rollouts = read_rollouts(path)
    assert rollouts.attrs["format"] == "verl"
    assert rollouts["reward"].tolist() == [1, -1]
    assert rollouts["step"].tolist() == [20, 20]
    other = read_rollouts(path, columns={"reward": "acc"})
    assert other["reward"].tolist() == [1, 0]
    assert other["step"].tolist() == [20, 20]


def problem(uuid, generations, verified, **more):
    row = {"problem": f"p{uuid}", "answer": "2", "uuid": uuid, "generations": generations}
    return {**row, "correctness_math_verify": verified, **more}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json"])
def test_openr1(tmp_path, kind):
    rows = [
        problem("a", ["x", "y"], [True, False], correctness_llama=None, correctness_count=1),
        problem("b", ["x", "y", "z"], [True, None, True], correctness_llama=[False] * 3),
    ]
    path = tmp_path / f"train.{kind}"
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        pd.DataFrame(rows).to_parquet(path)
    elif kind == "jsonl":
        lines(path, rows)
    else:
        path.write_text(json.dumps(rows))
    rollouts = read_rollouts(path)
    assert rollouts.attrs["format"] == "openr1"
    assert rollouts["prompt"].tolist() == ["pa"] * 2 + ["pb"] * 2
    assert rollouts["completion"].tolist() == ["x", "y", "x", "z"]
    assert rollouts["reward"].tolist() == [1, 0, 1, 1]
    assert rollouts["group_id"].tolist() == [0, 0, 1, 1]
    assert noted(rollouts, "1 of 5 rows have no reward")
    by_model = read_rollouts(path, columns={"reward": "correctness_llama"})
    assert by_model["reward"].tolist() == [0, 0, 0]


def test_problems_that_cannot_be_used(tmp_path):
    good = problem("a", ["x", "y"], [True, False])
    path = lines(tmp_path / "t.jsonl", [good, problem("b", [], [])])
    rollouts = read_rollouts(path)
    assert len(rollouts) == 2
    assert noted(rollouts, "1 row left out, there is no completion, the first: ", "line 2")
    path = lines(tmp_path / "t.jsonl", [good, problem("b", ["x"], [True, False])])
    match = r"line 2: metric 'correctness_math_verify': there are 2 entries for 1 completions"
    with pytest.raises(RolloutError, match=match):
        read_rollouts(path)
    assert len(read_rollouts(path, skip_bad=True)) == 2
    counted = {"problem": "p", "generations": ["x", "y"], "correctness_count": 1}
    with pytest.raises(RolloutError, match="'correctness_count' is one number for several"):
        read_rollouts(lines(tmp_path / "t.jsonl", [counted]))
    with pytest.raises(RolloutError, match=r"'generations': 3 is not a list of completions"):
        read_rollouts(lines(tmp_path / "t.jsonl", [{**counted, "generations": 3}]))


def novel(id, generations, **more):
    return {"id": id, "prompt": f"p{id}", "model": "m", "generations": generations, **more}


def test_noveltybench(tmp_path):
    rows = [novel("c-0", ["x", "y", "x!"]), novel("c-1", ["u", "v"])]
    lines(tmp_path / "generations.jsonl", rows)
    bare = read_rollouts(tmp_path)
    assert bare.attrs["format"] == "noveltybench"
    assert bare["reward"].isna().tolist() == [True] * 5
    assert bare["answer"].tolist() == ["x", "y", "x!", "u", "v"]
    assert bare["group_id"].tolist() == [0, 0, 0, 1, 1]
    # The files that follow say the same and more, so that only the last is read.
    for row, labels in zip(rows, ([0, 1, 0], [0, 1]), strict=True):
        row |= {"partition": labels, "distinct": 2}
    lines(tmp_path / "partitions.jsonl", rows)
    rows[0] |= {"generation_scores": [8, 3, None], "partition_scores": [8, 3], "utility": 5.0}
    rows[1] |= {"generation_scores": [None, 2], "partition_scores": [None, 2], "utility": None}
    lines(tmp_path / "scores.jsonl", rows)
    rollouts = read_rollouts(tmp_path)
    assert rollouts["completion"].tolist() == ["x", "y", "x!", "v"]
    assert rollouts["answer"].tolist() == ["0", "1", "0", "1"]
    assert rollouts["reward"].tolist() == [8, 3, 8, 2]
    assert noted(rollouts, "left out: generations.jsonl, partitions.jsonl", "1 of 5 rows have no")
    as_said = read_rollouts(tmp_path / "scores.jsonl", answer=lambda text: text[0])
    assert as_said["answer"].tolist() == ["x", "y", "x", "v"]
    novelty = read_rollouts(tmp_path, columns={"reward": "generation_scores"})
    assert novelty["reward"].tolist() == [8, 3, 2]
    rows[0]["partition_scores"] = [8]
    with pytest.raises(RolloutError, match="line 1: partition: a class has none of the 1 part"):
        read_rollouts(lines(tmp_path / "scores.jsonl", rows))
    rows[0] |= {"partition": [0], "generation_scores": [8], "generations": ["x", "y"]}
    with pytest.raises(RolloutError, match=r"line 1: (metric|answer)"):
        read_rollouts(lines(tmp_path / "scores.jsonl", rows))


def test_samples_of_two_models_are_no_law_of_one(tmp_path):
    other = sample(1, 1, "I")
    other["output"]["model"] = "m2"
    inspected(tmp_path / "a.eval", [sample(1, 1, "C")])
    inspected(tmp_path / "b.eval", [other])
    match = "samples of several models, “m” in a.eval and “m2” in b.eval: read one by one"
    with pytest.raises(RolloutError, match=re.escape(match)):
        read_rollouts(tmp_path)
    inspected(tmp_path / "b.eval", [sample(1, 1, "I")])
    rollouts = read_rollouts(tmp_path)
    assert rollouts["reward"].tolist() == [1, 0]
    assert rollouts["prompt_id"].tolist() == [0, 0]


def test_folders_and_tasks_that_are_read_together(tmp_path):
    """The harness has a folder per model, but a sample of its logs does not name it."""
    rows = [harness_row(0, ["a"], exact_match=1.0)]
    for place in ("m1/samples_gsm8k_t1", "m1/samples_gsm8k_t2"):
        lines(tmp_path / f"{place}.jsonl", rows)
    rollouts = read_rollouts(tmp_path)
    assert len(rollouts) == 2
    assert not noted(rollouts, "folders")
    lines(tmp_path / "m2" / "samples_mmlu_t.jsonl", [harness_row(0, ["b"], acc=0.0)])
    assert noted(
        read_rollouts(tmp_path),
        "samples in 2 folders are read as those of one model",
        "reward from the metric 'exact_match'",
        "reward from the metric 'acc'",
    )


def test_files_of_ones_own_stay_ones_own(tmp_path):
    """Neither a column of evaluations nor a metric's name takes a file from another format."""
    mine = {"id": 1, "prompt": "q", "completion": "a", "reward": 1.0, "metric": 3, "epoch": 1}
    rollouts = read_rollouts(lines(tmp_path / "mine.jsonl", [mine]))
    assert rollouts.attrs["format"] == "generic"
    other = read_rollouts(tmp_path / "mine.jsonl", columns={"reward": "metric"})
    assert (other.attrs["format"], other["reward"].tolist()) == ("generic", [3])
    as_mine = {"prompt": "problem", "completion": "generations"}
    path = lines(tmp_path / "t.jsonl", [problem("a", ["x", "y"], [True, False])])
    rollouts = read_rollouts(path, columns=as_mine | {"reward": "correctness_math_verify"})
    assert rollouts.attrs["format"] == "generic"
    assert rollouts["reward"].tolist() == [1, 0]
    with pytest.raises(RolloutError, match="columns are for files of your own"):
        read_rollouts(path, format="openr1", columns=as_mine)
    np.testing.assert_array_equal(read_rollouts(path, format="openr1")["reward"], [1, 0])
