"""The package, and its core, against ``import jax``: in fresh interpreters, taken in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


@pytest.mark.parametrize(
    "statement", ["import kltarget", "from kltarget import solve"], ids=["package", "core"]
)
def test_import(benchmark, statement) -> None:
    seconds(statement)
    pairs = [(seconds(statement), seconds("import jax")) for _ in range(7)]
    benchmark.pedantic(lambda: seconds(statement), rounds=1)
    benchmark.extra_info.update(
        ratio=statistics.median(ours / theirs for ours, theirs in pairs),
        jax_seconds=statistics.median(theirs for _, theirs in pairs),
    )
