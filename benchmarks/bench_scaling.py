"""Weak scaling: twice the work on two devices, or in two processes, against once the work on one.

Each device or process is pinned to a core of its own, so that no more can be measured than there
are cores. One and two take turns. The efficiency is the time of one over the time of two, and once
more of processor time, which other jobs on the machine disturb less: 2 t₁ / t₂.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import pytest

_CODE = """
import json, os, sys, time
kind, count, index, port, folder, amount = *sys.argv[1:2], *map(int, sys.argv[2:5]), *sys.argv[5:]
amount = int(amount)
cores = sorted(os.sched_getaffinity(0))
mine = cores[:count] if kind == "fine_tune" else cores[index : index + 1]
os.sched_setaffinity(0, mine)
import jax
jax.config.update("jax_num_cpu_devices", count if kind == "fine_tune" else 1)
if kind == "sweep" and count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
import jax.numpy as jnp, numpy as np, kltarget as kt

def sweep(parts, name):
    kt.sweep(
        "bimodal", beta=np.geomspace(1e-2, 10, 2000), divergence=["reverse-kl", "forward-kl"],
        reward_scale=np.linspace(0.5, 2, parts), chunk_rows=2000, folder=f"{folder}/{name}",
    )

def fine_tune(steps, _):
    policy = kt.policies.TabularPolicy(vocab_size=8, length=4)
    run = kt.fine_tune(
        policy, policy.init(key=jax.random.key(0)), jnp.linspace(0, 1, 8**4),
        kt.Recipe(place="reward", estimator="k1"), beta=jnp.linspace(0.1, 1, 16 * count),
        learning_rate=0.01, num_steps=steps, history_every=None,
    )
    jax.block_until_ready(run.log_probs)

work = {"sweep": sweep, "fine_tune": fine_tune}[kind]
work({"sweep": count, "fine_tune": amount}[kind], "first")
start, used = time.perf_counter(), time.process_time()
work({"sweep": amount * count, "fine_tune": amount}[kind], "then")
print(json.dumps([time.perf_counter() - start, time.process_time() - used]))
"""


def measure(kind: str, count: int, amount: int) -> tuple[float, float]:
    """Seconds of the slowest process and processor time of all."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        number = count if kind == "sweep" else 1
        command = [sys.executable, "-c", _CODE, kind, str(count)]
        environment = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
        processes = [
            subprocess.Popen(
                [*command, str(i), str(port), folder, str(amount)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(number)
        ]
        told = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes)
    times = [json.loads(text.splitlines()[-1]) for text in told]
    return max(wall for wall, _ in times), sum(used for _, used in times)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize(("kind", "amount"), [("sweep", 150), ("fine_tune", 5000)])
def test_weak_scaling(benchmark: Any, kind: str, amount: int) -> None:
    rounds = 1 if benchmark.disabled else 5
    amount = 2 if benchmark.disabled else amount
    pairs = [(measure(kind, 1, amount), measure(kind, 2, amount)) for _ in range(rounds)]
    benchmark.pedantic(lambda: None)
    wall = [one[0] / two[0] for one, two in pairs]
    used = [2 * one[1] / two[1] for one, two in pairs]
    benchmark.extra_info.update(
        seconds=statistics.median(one[0] for one, _ in pairs),
        efficiency=statistics.median(wall),
        efficiency_of_processor_time=statistics.median(used),
        least=min(wall),
        most=max(wall),
    )


if __name__ == "__main__":
    for kind, amount in (("sweep", 150), ("fine_tune", 5000)):
        for _ in range(int(sys.argv[1])):
            one, two = measure(kind, 1, amount), measure(kind, 2, amount)
            print(kind, one, two, one[0] / two[0], 2 * one[1] / two[1], flush=True)
