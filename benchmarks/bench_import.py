"""``import kltarget`` against ``import jax``, each in fresh interpreters, taken in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def test_import(benchmark) -> None:
    seconds("import kltarget")
    pairs = [(seconds("import kltarget"), seconds("import jax")) for _ in range(7)]
    benchmark.pedantic(lambda: seconds("import kltarget"), rounds=1)
    benchmark.extra_info.update(
        ratio=statistics.median(ours / theirs for ours, theirs in pairs),
        jax_seconds=statistics.median(theirs for _, theirs in pairs),
    )
