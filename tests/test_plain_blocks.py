"""Rows read many at a time say what they say one by one, whatever is wrong with some of them."""

import gzip
import json
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from kltarget.rollouts import RolloutError, read_rollouts

pl = pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def row(number, **entries):
    plain = {
        "prompt": f"question {number % 3}",
        "completion": f"so {number % 5} é",
        "reward": float(number % 2),
        "step": number // 8,
        "group_id": number // 4,
        "logp": -0.5 - number % 7,
        "ref_logp": -1.5,
        "note": None,
    }
    return {**plain, **entries}


ODD = (
    *({"reward": x} for x in (None, "x", "1.5", True, 2, float("nan"), float("inf"), [1.0])),
    *({"prompt": x} for x in (5, 1.5, ["a"], None, "[INST] a", [{"role": "user", "content": "b"}])),
    *({"completion": x} for x in ("[x", "", "😀\0", "so 7\n ", "prompt", {"a": 1}, None)),
    *({"completion": x} for x in ("half \ud800", "\udc00", "reward", "x" * 1200)),
    *({"step": x} for x in (None, 2.0, "7", 1.5, 2**60, 10**30, True)),
    *({"group_id": x} for x in ("a", "", None, 1.5)),
    *({"logp": x} for x in (0.5, None, "-2", -np.inf)),
    *({"split": x} for x in ("train", "val", None)),
    *({"seed": x} for x in (1, 2)),
    *({"logps": x} for x in ([-0.5, -0.25], 3)),
    {"ref_logps": [0.5]},
    {"note": {"a": [1]}},
)
BROKEN = (b"", b"   ", b'{"prompt": "a', b"[1]", b"5", b'{"prompt": "\xff"}', b"{}", b"{} {}")
TWICE = (
    b'{"prompt": "a", "prompt": "b", "completion": "c", "reward": 1, "reward": 0, "group_id": 1}'
)

lines = st.one_of(
    st.none(),
    st.sampled_from(ODD).map(lambda entries: ("row", entries)),
    st.sampled_from([*BROKEN, TWICE]).map(lambda line: ("line", line)),
)


def content(made):
    written = []
    for number, odd in enumerate(made):
        if odd is not None and odd[0] == "line":
            written.append(odd[1])
            continue
        entries = row(number, **(odd[1] if odd else {}))
        ascii_alone = number % 2 == 0 or "\\ud" in json.dumps(entries)
        written.append(json.dumps(entries, ensure_ascii=ascii_alone).encode())
    return b"\n".join(written)


def read(path, **options):
    """A frame without what says which file it is of, its notes, or what is wrong."""
    try:
        frame = read_rollouts(path, **options)
    except RolloutError as error:
        return None, str(error).replace(str(path), "FILE")
    notes = [note.replace(str(path), "FILE") for note in frame.attrs["notes"]]
    return frame.drop(columns="source"), notes


def check(one, other, **options):
    (frame, said), (wanted, says) = read(one, **options), read(other, **options)
    assert said == says
    assert (frame is None) == (wanted is None)
    if frame is not None:
        pd.testing.assert_frame_equal(frame, wanted)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder, and blocks of a few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kltarget.rollouts._blocks._BYTES", 700)
        patch.setattr("kltarget.rollouts._blocks._ROWS", 5)
        yield tmp_path_factory.mktemp("blocks")


@given(st.lists(lines, min_size=1, max_size=24), st.booleans(), st.booleans(), st.booleans())
def test_lines_are_read_as_they_are_one_by_one(folder, made, skip_bad, full_text, mark):
    path, packed = folder / "log.jsonl", folder / "log.jsonl.gz"
    written = (b"\xef\xbb\xbf" if mark else b"") + content(made)
    path.write_bytes(written)
    packed.write_bytes(gzip.compress(written, 1))
    check(path, packed, skip_bad=skip_bad, full_text=full_text)


def test_bad_rows_among_many_are_named(folder):
    """Of 400 lines the 251st breaks off and the 301st has no number for a reward."""
    written = [json.dumps(row(number)) for number in range(400)]
    written[250] = written[250][:30]
    written[300] = json.dumps(row(300, reward="much"))
    path = folder / "dirty.jsonl"
    path.write_text("\n\n".join(written))  # every other line is empty
    frame = read_rollouts(path, skip_bad=True)
    assert len(frame) == 398
    assert f"2 bad rows skipped, the first: {path}: line 501: not JSON" in frame.attrs["notes"][-1]
    with pytest.raises(RolloutError, match="line 501: not JSON"):
        read_rollouts(path)


COLUMNS = {
    "reward": [pa.float64(), pa.float32(), pa.int8(), pa.bool_(), pa.string()],
    "step": [pa.int64(), pa.uint64(), pa.float64(), pa.string()],
    "group_id": [pa.int32(), pa.string(), pa.large_string()],
    "prompt": [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    "logp": [pa.float64(), pa.float32()],
}


@pytest.mark.parametrize("seed", range(12))
def test_parquet_is_read_as_arrow_is(folder, seed):
    """Columns of all types, with nulls and with a bad reward, against the same rows one by one."""
    rng = random.Random(seed)
    table = {}
    for name in ("prompt", "completion", "reward", "step", "group_id", "logp"):
        kind = rng.choice(COLUMNS.get(name, [pa.string()]))
        values = [row(number)[name] for number in range(40)]
        if kind not in (pa.string(), pa.large_string()):
            values = [x if isinstance(x, str) else type(x)(x) for x in values]
        else:
            values = list(map(str, values))
        if rng.random() < 0.3:
            values[rng.randrange(40)] = None
        made = pa.array(values, pa.string() if pa.types.is_dictionary(kind) else None)
        if pa.types.is_boolean(kind):
            made = pa.array([None if x is None else bool(x) for x in values])
        table[name] = made.cast(kind)
    if rng.random() < 0.3:
        table["split"] = pa.array([rng.choice(["train", "val"]) for _ in range(40)])
    path, other = folder / "log.parquet", folder / "log.arrow"
    whole = pa.table(table)
    pq.write_table(whole, path)
    with pa.OSFile(str(other), "wb") as file, pa.ipc.new_file(file, whole.schema) as writer:
        writer.write_table(whole)
    check(path, other, skip_bad=bool(seed % 2), answer="number")


@pytest.mark.parametrize("odd", [False, True])
def test_plain_rows_are_read_many_at_a_time(folder, odd):
    """A rule of answers is asked once for each different text of a block; by rows, for each."""
    asked = []

    def rule(text):
        asked.append(text)
        return text

    path = folder / "plain.jsonl"
    made = [row(number, completion="yes") for number in range(200)]
    if odd:
        made[100]["completion"] = "[1, 2]"
    path.write_text("\n".join(map(json.dumps, made)))
    assert len(read_rollouts(path, answer=rule)) == 200
    assert 20 < len(asked) < 70


TWICE_AND_MISSING = (
    '{"prompt": "a", "completion": "b", "reward": 1, "reward": 0}',
    r'{"prompt": "a", "completion": "b", "reward": 1, "re\u0077ard": 0}',
)


@pytest.mark.parametrize("first", TWICE_AND_MISSING, ids=["plain", "escaped"])
def test_a_reward_given_twice_beside_a_row_without_one(folder, first):
    path, packed = folder / "log.jsonl", folder / "log.jsonl.gz"
    path.write_text(first + '\n{"prompt": "a", "completion": "c"}\n')
    packed.write_bytes(gzip.compress(path.read_bytes()))
    columns = ["reward", "completion"]
    many, one_by_one = (read_rollouts(x, skip_bad=True)[columns] for x in (path, packed))
    pd.testing.assert_frame_equal(many, one_by_one)
