"""A million rollouts of ten thousand prompts, read from one Parquet file and diagnosed.

In a fresh interpreter, so that imports, compilation and the peak of memory are in the numbers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

_CODE = """
import json, re, sys, time
from pathlib import Path
start = time.perf_counter()
from kltarget.diagnosis import diagnose
from kltarget.rollouts import read_rollouts
from kltarget.recipes import Recipe
frame = read_rollouts(sys.argv[1])
read = time.perf_counter() - start
recipe = Recipe("loss", "k3", baseline="mean", normalize="group-std", ddof=1, group_size=8)
found = diagnose(frame, recipe, beta=0.04)
str(found)
seconds = time.perf_counter() - start
# Not getrusage, which still counts what the process was before this program replaced it.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
print(json.dumps({"seconds": seconds, "reading": read, "peak_gib": peak, "tier": found.tier}))
"""


def make(
    path: Path, num_rollouts: int, num_prompts: int, group_size: int = 8, block: int = 1_000_000
) -> None:
    """Rollouts whose log-probabilities are those of a target, over twenty answers a prompt.

    A million at a time, to a file of Parquet or of JSON Lines, as its name says.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    num_answers, num_groups = 20, num_rollouts // group_size
    log_ref = np.log(rng.dirichlet(np.full(num_answers, 0.4) + 0.01, num_prompts))
    right = rng.random((num_prompts, num_answers)) < 0.15
    log_policy = log_ref + 2.0 * right
    log_policy -= np.logaddexp.reduce(log_policy, 1)[:, None]
    bounds = np.cumsum(np.exp(log_policy), 1)
    writer = None
    for start in range(0, num_groups, block // group_size):
        groups = np.arange(start, min(start + block // group_size, num_groups))
        group = np.repeat(groups, group_size)
        prompt = group % num_prompts
        levels = bounds[prompt]
        answer = (rng.random((len(prompt), 1)) > levels).sum(1).clip(max=num_answers - 1)
        frame = pd.DataFrame(
            {
                "prompt": [f"question {i}: what is it?" for i in prompt],
                "completion": [f"I think that it is {i}" for i in answer],
                "reward": right[prompt, answer].astype(float),
                "step": group * 100 // num_groups,
                "group_id": group,
                "logp": log_policy[prompt, answer],
                "ref_logp": log_ref[prompt, answer],
            }
        )
        if path.suffix == ".jsonl":
            frame.to_json(path, orient="records", lines=True, mode="a", double_precision=15)
            continue
        table = pa.Table.from_pandas(frame)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def measure(path: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", _CODE, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_million_rollouts(benchmark: Any, tmp_path: Path) -> None:
    path = tmp_path / "rollouts.parquet"
    # Untimed, a small log shows that the benchmark runs.
    make(path, *((2_000, 20) if benchmark.disabled else (1_000_000, 10_000)))
    found = benchmark.pedantic(lambda: measure(path), rounds=1)
    benchmark.extra_info.update(found)
