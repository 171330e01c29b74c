"""Processes that jax.distributed joins share the work and come to what one comes to alone."""

import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.slow

COMPILED = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"

# Four devices in all, however many processes they are of. Which parts a process writes is told by
# what it calls to write them.
_PROGRAM = """
import json, os, pathlib, sys
import jax, numpy as np
count, index, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_num_cpu_devices", 4 // count)
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
assert (jax.process_count(), jax.device_count()) == (count, 4)
import jax.numpy as jnp, kltarget as kt
from kltarget.policies import TabularPolicy
from kltarget.rollouts import RolloutError, read_rollouts

savez, written = np.savez, []
def counted(file, **arrays):
    if "parts" in str(file.name):
        written.append(file.name.split(".")[1])
    savez(file, **arrays)
np.savez = counted
data = kt.sweep("one-two", beta=np.geomspace(1e-3, 10, 120), chunk_rows=2, folder=folder + "/parts")
np.savez = savez

policy = TabularPolicy(vocab_size=3, length=1)
run = kt.fine_tune(
    policy, policy.init(key=jax.random.key(0)), jnp.array([0.0, 1.0, 0.5]),
    kt.Recipe(place="reward", estimator="k1"), beta=jnp.linspace(0.2, 2, 6), learning_rate=0.1,
    num_steps=40, key=jax.random.key(1), batch_size=8, history_every=20, chunk_runs=4,
)
logs = str(pathlib.Path(folder).parent / "logs")
rollouts = read_rollouts(logs, answer="number", skip_bad=True)
try:
    read_rollouts(logs)
    error = None
except RolloutError as wrong:
    error = str(wrong)
kept = [column for column in rollouts if column != "tokens"]
forecast = kt.forecast(logs.replace("logs", "base"), kt.Recipe(), beta=[0.5], num_draws=20)
good = read_rollouts(logs.replace("logs", "good"))
diagnosis = kt.diagnose(good, kt.Recipe(beta=0.5), num_bootstrap=5)
levels = good.assign(step=0, reward=good["completion"].str[-1].astype(float))
graded = kt.forecast(levels, kt.Recipe(), beta=np.geomspace(0.1, 5, 300), num_draws=250)
refused = count == 1
try:
    kt.diagnose(good.iloc[index:], kt.Recipe(beta=0.5), num_bootstrap=5)
except ValueError as different:
    refused = "different rollouts" in str(different)
assert refused
told = {
    "rollouts": json.loads(rollouts[kept].to_json(orient="split")),
    "notes": rollouts.attrs["notes"],
    "error": error,
    "forecast": str(forecast),
    "diagnosis": str(diagnosis),
    "statements": [[x.name, repr(x.value), repr(x.interval)] for x in diagnosis.statements],
    "prompts": repr(diagnosis.prompts),
    "featured": repr(diagnosis.featured),
    "graded": repr(graded.curves) + repr(graded.of_patterns),
}
here = pathlib.Path(folder)
(here / f"told-{index}.json").write_text(json.dumps(told))
(here / f"written-{index}.json").write_text(json.dumps(written))
with open(here / f"numbers-{index}.npz", "wb") as file:
    np.savez(
        file, **{name: data[name].values for name in data.data_vars}, log_probs=run.log_probs,
        run_status=run.status, rewards=run.history.expected_reward, logits=run.params["logits"],
    )
"""


def start(count, folder):
    """The processes of a job of so many."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-c", _PROGRAM, str(count)]
    return [
        subprocess.Popen(
            [*command, str(index), str(port), str(folder)], env=environment, stderr=subprocess.PIPE
        )
        for index in range(count)
    ]


def finish(processes):
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]


def results(folder, index):
    with np.load(folder / f"numbers-{index}.npz") as file:
        numbers = {name: file[name].tobytes() for name in file.files}
    return numbers, json.loads((folder / f"told-{index}.json").read_text("utf-8"))


def written(folder, count):
    """The parts that each process wrote."""
    names = [
        json.loads((folder / f"written-{i}.json").read_text("utf-8").replace("\n", ""))
        for i in range(count)
    ]
    return [sorted(x) for x in names]


def write_logs(folder):
    """Files of a base model, of a run, and of the same run with a line that breaks off."""
    rng = np.random.default_rng(0)
    for name, steps in (("base", 3), ("good", 5), ("logs", 5)):
        (folder / name).mkdir()
        for step in range(steps):
            lines = []
            for group in range(4):
                for _ in range(4):
                    answer = int(rng.integers(0, 3))
                    row = {
                        "prompt": f"question {group}",
                        "completion": f"so {answer}",
                        "reward": float(answer == group % 3),
                        "step": 0 if name == "base" else step,
                        "group_id": f"{step}-{group}",
                        "logp": float(np.log(1 / 3)),
                        "ref_logp": float(np.log([0.2, 0.3, 0.4][answer])),
                    }
                    lines.append(json.dumps(row))
            if name == "logs" and step == 3:
                lines[6] = lines[6][:20]
            (folder / name / f"{step}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process says, and the folder of logs beside its own."""
    folder = tmp_path_factory.mktemp("distributed")
    write_logs(folder)
    finish(start(1, folder / "alone"))
    return folder, results(folder / "alone", 0)


def check(folder, count, alone):
    numbers, told = alone
    for index in range(count):
        mine, said = results(folder, index)
        assert mine.keys() == numbers.keys()
        assert [name for name in numbers if mine[name] != numbers[name]] == []
        assert said == told
    assert "1 bad row skipped" in " ".join(told["notes"])
    assert "3.jsonl: line 7: not JSON" in told["error"]


def test_four_processes_come_to_what_one_comes_to(alone):
    folder, wanted = alone
    finish(start(4, folder / "four"))
    check(folder / "four", 4, wanted)
    shares = written(folder / "four", 4)
    assert sorted(itertools.chain(*shares)) == [f"part-{i:06}" for i in range(60)]  # each part once
    assert [len(share) for share in shares] == [15, 15, 15, 15]


def test_a_killed_job_goes_on(alone):
    folder, wanted = alone
    here = folder / "two"
    processes = start(2, here)
    while len(parts := list((here / "parts").glob("part-*"))) < 5:
        assert processes[1].poll() is None
        time.sleep(0.001)
    # As a batch system does it: of the others of a job that has lost one nothing is expected.
    for process in reversed(processes):
        process.send_signal(signal.SIGKILL)
        process.communicate()
    kept = {x.name: x.stat().st_mtime_ns for x in (here / "parts").glob("part-*")}
    assert 5 <= len(parts) <= len(kept) < 60
    finish(start(2, here))
    check(here, 2, wanted)
    now = {x.name: x.stat().st_mtime_ns for x in (here / "parts").glob("part-*")}
    assert {name: now[name] for name in kept} == kept
    new = list(itertools.chain(*written(here, 2)))
    assert sorted([*new, *(name.removesuffix(".npz") for name in kept)]) == [
        f"part-{i:06}" for i in range(60)
    ]
    assert not list((here / "parts").glob(".*"))
