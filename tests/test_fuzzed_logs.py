"""A thousand damaged logs: each ends in a page or in one line that says what is wrong."""

import gzip
import json
import pathlib
import random
import re
import signal

import pytest

from kltarget import cli

DATA = pathlib.Path(__file__).parent / "data"
LOGS = sorted(
    path
    for folder in ("rollouts", "cases")
    for path in (DATA / folder).rglob("*")
    if path.suffix in (".jsonl", ".csv", ".json") and path.stat().st_size < 100_000
    # Tables of `solve`, and what lies beside logs.
    if path.stem not in ("truth", "trainer_state", "s03_log10", "digits", "config")
)
SECONDS = 60


def truncated(text, rng):
    return text[: rng.randrange(1, len(text))]


def shuffled(text, rng):
    head, *lines = text.splitlines()
    rng.shuffle(lines)
    return "\n".join([head, *lines])


def retyped(text, rng):
    """Some numbers become words, empty, infinite or very large."""
    return re.sub(
        r"-?\d+\.?\d*",
        lambda x: (
            rng.choice(["null", '"x"', "NaN", "-Infinity", "1e400", "true", "[1]", "{}"])
            if rng.random() < 0.02
            else x[0]
        ),
        text,
    )


def doubled(text, rng):
    """A line, or a piece of one, occurs twice."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    lines.insert(
        at, lines[at] if rng.random() < 0.5 else lines[at][: rng.randrange(len(lines[at]) + 1)]
    )
    return "\n".join(lines)


def renamed(text, rng):
    """A column is called as another one, or as nothing that is known."""
    names = sorted(set(re.findall(r'"(\w+)":', text))) or text.splitlines()[0].split(",")
    old, new = rng.choice(names), rng.choice([*names, "", "Ω", "reward", "step"])
    return (
        text.replace(old, new)
        if "," in text.splitlines()[0]
        else text.replace(f'"{old}":', f'"{new}":')
    )


def stripped(text, rng):
    """Single characters are lost."""
    at = sorted(rng.sample(range(len(text)), min(8, len(text))), reverse=True)
    for i in at:
        text = text[:i] + text[i + 1 :]
    return text


def joined(text, rng):
    """Another log of another kind is appended."""
    return text + rng.choice(LOGS).read_text("utf-8", errors="replace")


MUTATIONS = (truncated, shuffled, retyped, doubled, renamed, stripped, joined)
ENCODINGS = (*["utf-8"] * 8, "utf-8-sig", "utf-16", "latin-1", "gz")


def written(folder, path, text, encoding):
    if encoding == "gz":
        target = folder / f"{path.name}.gz"
        target.write_bytes(gzip.compress(text.encode("utf-8", "surrogateescape")))
    else:
        target = folder / path.name
        target.write_bytes(text.encode(encoding, "replace"))
    return target


def too_long(*_):
    raise TimeoutError(f"a damaged log took more than {SECONDS} s")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_damaged_logs_end_in_a_page_or_a_line(part, tmp_path, capsys):
    signal.signal(signal.SIGALRM, too_long)
    pages = 0
    for seed in range(50 * part, 50 * (part + 1)):
        rng = random.Random(seed)
        path = rng.choice(LOGS)
        text = path.read_text("utf-8", errors="replace")
        for mutate in rng.sample(MUTATIONS, rng.choice([1, 1, 2, 3])):
            text = mutate(text, rng) or " "
        log = written(tmp_path, path, text, rng.choice(ENCODINGS))
        page = tmp_path / f"{seed}.json"
        signal.alarm(SECONDS)
        asked = ["diagnose", str(log), "--trainer", "trl-grpo==1.9.2", "--beta", "0.04"]
        asked += ["--json", str(page), *(["--skip-bad"] if seed % 2 else [])]
        try:
            code = cli.main(asked)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {path.name}") from error
        finally:
            signal.alarm(0)
        out, err = capsys.readouterr()
        lines = [x for x in err.splitlines() if x.strip()]
        if code == 0:
            assert out.strip(), seed
            json.loads(page.read_text("utf-8"))
            pages += 1
        else:
            assert code == 2, (seed, code, err)
            assert len(lines) == 1, (seed, err)
            assert lines[0].startswith("kltarget: ")
        assert "Traceback" not in err
        log.unlink()
    assert pages >= 5, "damage that nothing survives tests little"
