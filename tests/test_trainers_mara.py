"""Real runs of TRL with MARA end where the closed form says, and those without where theirs does.

Run with ``pytest -m trainers``; each run takes seconds on one core.
"""

import importlib.util

import numpy as np
import pytest

import kltarget as kt
from kltarget import adapters

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("default")]

if any(importlib.util.find_spec(name) is None for name in ("torch", "trl")):
    pytest.skip("TRL is not installed", allow_module_level=True)

import tiny_trl as tiny
import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from kltarget.adapters import trl as adapted

BETA, GROUP = 0.2, 8
TRAINERS = {
    ("rloo", True): adapted.MaraRLOOTrainer,
    ("rloo", False): RLOOTrainer,
    ("grpo", True): adapted.MaraGRPOTrainer,
    ("grpo", False): GRPOTrainer,
}


def settings(folder, algorithm="rloo", **changes):
    """A configuration for one core, under which MARA has its target."""
    common = {
        "output_dir": str(folder / "run"),
        "beta": BETA,
        "num_generations": GROUP,
        "per_device_train_batch_size": 256,
        "max_completion_length": 1,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "max_steps": 150,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    if algorithm == "grpo":
        common["scale_rewards"] = "none"
    config = RLOOConfig if algorithm == "rloo" else GRPOConfig
    return config(**(common | changes))


class Task:
    """Rewards and reference of all answers of some words."""

    def __init__(self, reward, tables, best):
        self.reward, self.tables, self.best = np.asarray(reward, np.float32), tables, best
        self.count = len(next(iter(tables.values())))
        self.length = round(np.log(len(reward)) / np.log(self.count))
        log_ref = tables[()]
        if self.length == 2:
            log_ref = (log_ref[:, None] + [tables[(a,)] for a in range(self.count)]).ravel()
        self.log_ref = np.asarray(log_ref, np.float32)


RIGHT_OR_WRONG = Task([1, 1, 0], {(): np.log([0.3, 0.02, 0.68])}, [0, 1])
GRADED = Task(
    [1, 1, 0.9, 0.5, *[0] * 47],
    {(): np.log([0.3, 0.02, 0.1, 0.08, *[0.5 / 47] * 47])},
    [0, 1],
)
TWO_TOKENS = Task(
    # Right are 00, 01 and 12; their references are 0.24, 0.06 and 0.016.
    [1, 1, 0, 0, 0, 1, 0, 0, 0],
    {
        (): np.log([0.3, 0.08, 0.62]),
        (0,): np.log([0.8, 0.2, 1e-6]) - np.log(1 + 1e-6),
        (1,): np.log([0.5, 0.3, 0.2]),
        (2,): np.log([0.2, 0.3, 0.5]),
    },
    [0, 1, 5],
)
TASKS = {"right or wrong": RIGHT_OR_WRONG, "graded": GRADED, "two tokens": TWO_TOKENS}


def target_of(task, algorithm, mara):
    """What the recipe implies for the rewards that it is given: those of the table, or MARA's."""
    preset = f"trl-{algorithm}==1.16.0"
    recipe = kt.recipe(preset, beta=BETA, group_size=GROUP, normalize="none")
    reward = task.reward
    if mara:
        # The β that acts is said here once more, by hand.
        acting = BETA if algorithm == "rloo" else BETA * GROUP / (GROUP - 1)
        table = kt.Objective(reward, task.log_ref, np.float32(acting))
        reward = np.asarray(kt.mara(table, 1.0).reward)
    space = kt.SequenceSpace(task.count, task.length) if task.length > 1 else None
    return np.asarray(kt.implied_target(recipe, reward, task.log_ref, space=space).probs)


def trained(folder, task, algorithm, mara, *, steps=150, **changes):
    tiny.save_reference(folder / "model", task.tables)
    trainer = TRAINERS[algorithm, mara](
        model=str(folder / "model"),
        reward_funcs=tiny.judge(task.reward, task.length),
        args=settings(
            folder, algorithm, max_completion_length=task.length, max_steps=steps, **changes
        ),
        train_dataset=tiny.prompts(64),
        **({"threshold": 1.0} if mara else {}),
    )
    log_ref = tiny.log_policy(trainer.model, task.count, task.length)
    np.testing.assert_allclose(log_ref, task.log_ref, atol=2e-3)
    trainer.train()
    return np.exp(tiny.log_policy(trainer.model, task.count, task.length))


@pytest.mark.parametrize("mara", [True, False], ids=["mara", "plain"])
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.parametrize("name", TASKS)
def test_a_run_ends_at_its_target(tmp_path, name, algorithm, mara):
    task = TASKS[name]
    steps = 150 if task is RIGHT_OR_WRONG and (mara or algorithm == "rloo") else 400
    policy = trained(tmp_path, task, algorithm, mara, steps=steps)
    target = target_of(task, algorithm, mara)
    print(0.5 * np.abs(policy - target).sum(), policy[task.best], target[task.best])
    assert 0.5 * np.abs(policy - target).sum() < 0.03
