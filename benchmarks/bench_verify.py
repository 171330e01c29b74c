"""``kltarget verify`` from a cold start: a fresh interpreter, nothing compiled."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def seconds(folder: Path, *options: str) -> float:
    command = [sys.executable, "-m", "kltarget", "verify", *options, "--out", str(folder)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def test_verify(benchmark: Any, tmp_path: Path) -> None:
    # Untimed, a small problem shows that the benchmark runs.
    options = ["one-two", "--policies", "tabular", "--seeds", "1"] if benchmark.disabled else []
    wall = benchmark.pedantic(lambda: seconds(tmp_path, *options), rounds=1)
    benchmark.extra_info["seconds"] = wall
