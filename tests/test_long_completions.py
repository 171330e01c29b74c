"""Long completions cost what is kept of them: their text once, or their ends."""

import json
import tracemalloc

import numpy as np
import pytest

from kltarget.diagnosis import diagnose
from kltarget.rollouts import answer_rule, read_rollouts

LENGTH = 30_000


def log_of(path, number, seed=0):
    """Rollouts of completions that all differ and end in one of eight answers."""
    rng = np.random.default_rng(seed)
    base = "".join(rng.choice(list("abcdefgh  "), 2 * LENGTH))
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            at = rng.integers(LENGTH)
            said = f"{i} {base[at : at + LENGTH]} so \\boxed{{{rng.integers(8)}}}"
            row = {"step": i // 64, "prompt": f"q{i // 8 % 8}", "completion": said}
            file.write(json.dumps({**row, "reward": float(rng.integers(2))}) + "\n")
    return path


def growth(tmp_path, few, many, **options):
    """Bytes that each further rollout takes at most while it is read, and frames of both."""
    paths = [log_of(tmp_path / f"{number}.jsonl", number) for number in (few, many)]
    read_rollouts(paths[0], **options)
    peaks, frames = [], []
    for path in paths:
        tracemalloc.start()
        frames.append(read_rollouts(path, **options))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (many - few), *frames


def test_ends_of_completions_take_little_memory(tmp_path):
    each, few, _ = growth(tmp_path, 100, 700, answer="boxed", full_text=False)
    assert each < LENGTH / 5
    size = few[["completion", "answer"]].memory_usage(index=False, deep=True).sum()
    assert size / len(few) < 2500
    assert few["answer"].isin(list("01234567")).all()
    text = few["completion"][3]
    assert text.startswith("3 ")
    assert text.endswith("}")
    assert "30,01" in text
    assert few["completion"].nunique() == len(few)


@pytest.mark.broad
@pytest.mark.parametrize("answer", ["text", "boxed"])
def test_completions_in_full_are_kept_once(tmp_path, answer):
    pyarrow = pytest.importorskip("pyarrow")
    each, few, many = growth(tmp_path, 800, 1600, answer=answer)
    # Texts are Arrow's, which Python does not count, but for those of the last chunk.
    assert each < LENGTH / 4
    assert (few["completion"].str.len() > LENGTH).all()
    del few, many
    before = pyarrow.total_allocated_bytes()
    frame = read_rollouts(tmp_path / "1600.jsonl", answer=answer)
    assert pyarrow.total_allocated_bytes() - before < 1.2 * LENGTH * len(frame)
    if answer == "text":
        assert frame["answer"].equals(frame["completion"])


def test_numbers_are_those_of_the_full_text(tmp_path):
    path = log_of(tmp_path / "x.jsonl", 128)
    short, full = (
        diagnose(path, "trl-grpo", beta=0.1),
        diagnose(read_rollouts(path), "trl-grpo", beta=0.1),
    )
    for one, other in zip(short.statements, full.statements, strict=True):
        assert (one.name, one.value, one.interval) == (other.name, other.value, other.interval)
    assert short["answers"].text == full["answers"].text
    # What is marked is the answer, though rewards are drawn here and have nothing to do with it.
    assert "answer='boxed'" in full["answers"].text


def test_sessions_of_long_outputs_are_joined(tmp_path):
    rows = [
        {"input": "q", "output": f"{turn} {'x' * 5000} \\boxed{{{turn}{s}}}", "score": 1.0}
        | {"uid": f"a_{s}_{turn}"}
        for s in range(3)
        for turn in range(2)
    ]
    path = tmp_path / "1.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for full_text in (True, False):
        rollouts = read_rollouts(path, answer="boxed", full_text=full_text)
        assert rollouts["answer"].tolist() == ["10", "11", "12"]


def test_the_last_box_is_found_from_the_end():
    rule = answer_rule("boxed")[1]
    assert rule(r"\boxed{1} \boxed{2}") == "2"
    assert rule(r"\boxed{1} \boxed{2") == "1"
    assert rule(r"\boxed{1} \\boxed{2}") == "1"
    assert rule(r"\boxed{1} \\\boxed{2}") == "2"
    assert rule(r"\boxed{a \boxed{b} c") == "b"
    assert rule(r"\boxed{1} and \boxed") == "1"
    assert rule("no box {2}") is None


@pytest.mark.slow
def test_heavy_frames_are_not_copied(tmp_path):
    frame = read_rollouts(log_of(tmp_path / "x.jsonl", 10_000), answer="text")
    pyarrow = pytest.importorskip("pyarrow")
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    found = diagnose(frame, "trl-grpo", beta=0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "answers" in found
    assert peak < 150e6
    assert pyarrow.total_allocated_bytes() - before < 50e6
