"""Presets of public trainers: what they say, how versions are resolved, and how they are read."""

import dataclasses
import datetime
import itertools
import json
import math
import pathlib
import re
import tomllib

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from packaging.specifiers import SpecifierSet

from kltarget import Status, cli, implied, recipes
from kltarget.divergences import ChiSquared, ForwardKL, ReverseKL, Scaled
from kltarget.recipes import Recipe, critical_beta, read, recipe

ALL = [pytest.param(entry, id=entry.title) for entry in recipes.presets()]


def _run(capsys, *arguments):
    code = cli.main(["recipe", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("entry", ALL)
def test_every_preset_is_complete(entry):
    assert isinstance(entry.recipe, Recipe)
    assert entry.recipe.beta is not None
    assert entry.file
    assert entry.checked.year >= 2026
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert set(entry.keys) <= fields
    assert all(note.endswith(".") for note in entry.notes)
    assert str(entry).startswith(f"{entry.name}   {entry.versions}   ")
    assert hash(entry) == hash(entry)
    with pytest.raises(TypeError):
        entry.keys["beta"] = "other"


def test_the_wanted_trainers_are_there(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    names = {entry.name for entry in recipes.presets()}
    assert names == {
        *("trl-grpo", "trl-rloo", "trl-ppo", "verl", "verl-grpo", "verl-kl-in-reward"),
        *("openrlhf", "openrlhf-group-norm", "open-instruct", "nemo-rl", "skyrl", "tunix"),
        *("maxtext", "prime-rl", "deepseek-r1", "deepseekmath", "dr-grpo", "ms-swift"),
        *("ms-swift-rloo", "slime", "areal", "tinker-cookbook", "easydel", "oat", "roll"),
        *("trinity-rft", "rlinf", "openrlhf-rloo", "verl-rloo", "unsloth-grpo", "axolotl-grpo"),
        *("axolotl-grpo-async", "areal-grpo", "miles", "easyr1", "easyr1-kl-in-reward"),
        *("oat-grpo", "rlinf-fsdp", "rlinf-reinpp", "roll-kl-in-reward", "ms-swift-reinforce++"),
        *("torchtune-grpo", "torchforge", "trl-gdpo", "llamafactory-ppo", "openpipe-art"),
    }
    table = recipes.table().splitlines()
    assert len(table) == 1 + len(recipes.presets())
    assert table[0].split() == ["name", "versions", "trainer", "β", "KL"]
    for entry, line in zip(recipes.presets(), table[1:], strict=True):
        assert line.split()[0] == entry.name
        assert line.endswith(str(entry).split("   ")[-1])


FACTS = [
    ("trl-grpo==0.14.0", {"beta": 0.04, "estimator": "k3", "length": "mean", "clip": None}),
    ("trl-grpo==0.18.2", {"beta": 0.04, "estimator": "k3", "length": "batch-mean", "clip": 0.2}),
    ("trl-grpo==0.19.0", {"beta": 0.0, "estimator": "k3", "length": "batch-mean"}),
    ("trl-grpo==1.9.2", {"beta": 0.0, "place": "loss", "estimator": "k3", "level": "token"}),
    ("trl-grpo==1.10.0", {"beta": 0.0, "place": "loss", "estimator": "weighted-k3"}),
    ("trl-grpo==1.16.0", {"normalize": "group-std", "ddof": 1, "epsilon": 1e-4, "group_size": 8}),
    ("trl-grpo==1.16.0", {"baseline": "mean", "length": "batch-mean", "level": "token"}),
    ("trl-rloo", {"beta": 0.05, "place": "reward", "estimator": "k1", "level": "sequence"}),
    ("trl-rloo", {"baseline": "leave-one-out", "normalize": "none", "group_size": 2}),
    ("trl-rloo", {"ratio_level": "sequence"}),
    ("trl-rloo==0.21", {"ratio_level": "sequence"}),
    ("trl-rloo==0.11.4", {"beta": 0.05, "group_size": 2, "baseline": "leave-one-out"}),
    ("verl-kl-in-reward", {"ratio_level": "token"}),
    ("trl-grpo==0.14.0", {"beta": 0.04, "length": "mean", "clip": None, "estimator": "k3"}),
    ("trl-grpo==0.15.2", {"beta": 0.04, "length": "mean", "epsilon": 1e-4, "ddof": 1}),
    ("trl-grpo==0.16.0", {"beta": 0.04, "length": "batch-mean", "clip": 0.2}),
    ("trl-grpo==0.17", {"beta": 0.04, "length": "batch-mean", "estimator": "k3"}),
    ("trl-grpo==0.18.2", {"beta": 0.04, "group_size": 8, "normalize": "group-std"}),
    ("trl-grpo==0.19.0", {"beta": 0.0, "length": "batch-mean", "estimator": "k3"}),
    ("trl-rloo==0.21", {"beta": 0.05, "group_size": 2, "updates_per_batch": 4}),
    ("trl-rloo==0.22", {"beta": 0.05, "group_size": 2, "updates_per_batch": 1}),
    ("trl-ppo==1.12", {"beta": 0.05, "place": "reward", "estimator": "k1", "level": "token"}),
    ("trl-ppo", {"temperature": 0.7, "reference": "fixed", "normalize": "batch-std"}),
    ("trl-gdpo", {"combine": "normalize-then-sum", "renormalize": "batch-std", "beta": 0.0}),
    ("trl-gdpo==1.10", {"estimator": "weighted-k3", "normalize": "group-std", "epsilon": 1e-4}),
    ("llamafactory-ppo", {"kl_target": 6.0, "kl_target_per": "sequence", "beta": 0.2}),
    ("llamafactory-ppo", {"place": "reward", "estimator": "k1", "updates_per_batch": 4}),
    ("openpipe-art", {"estimator": "k2", "place": "loss", "renormalize": "mean-abs", "ddof": 0}),
    ("openpipe-art", {"normalize": "group-std", "epsilon": 1e-6, "zero_std": "drop"}),
    ("tunix==0.1.7", {"temperature": 0.9}),
    ("tunix==0.1.6", {"temperature": 1.0}),
    ("verl", {"place": "none", "beta": 0.0}),
    ("verl-grpo", {"place": "loss", "estimator": "k3", "level": "token", "beta": 0.001}),
    ("verl-grpo", {"normalize": "group-std", "epsilon": 1e-6, "ddof": 1}),
    ("verl-grpo", {"log_ratio_clip": 20.0, "kl_clip": 10.0}),
    ("verl-kl-in-reward", {"place": "reward", "estimator": "k1", "beta": 0.001}),
    ("verl-kl-in-reward", {"normalize": "group-std", "normalize_when": "after"}),
    ("openrlhf", {"place": "reward", "estimator": "k1", "beta": 0.01, "kl_clip": 10.0}),
    ("openrlhf", {"log_ratio_clip": None, "length": "batch-mean", "ddof": 0, "epsilon": 0.0}),
    ("openrlhf==0.6.4", {"length": "mean", "kl_clip": None, "beta": 0.01, "reward_clip": 10.0}),
    ("openrlhf==0.8.5", {"length": "batch-mean", "kl_clip": None, "normalize": "batch-std"}),
    ("openrlhf==0.8.6", {"length": "batch-mean", "kl_clip": 10.0}),
    ("openrlhf-group-norm==0.7.5", {"length": "batch-mean", "kl_clip": None, "epsilon": 1e-9}),
    ("openrlhf-rloo==0.6.4", {"length": "mean", "kl_clip": None, "baseline": "leave-one-out"}),
    ("openrlhf-group-norm", {"log_ratio_clip": None, "kl_clip": 10.0, "length": "batch-mean"}),
    ("openrlhf", {"reward_clip": 10.0, "normalize": "batch-std", "normalize_when": "after"}),
    ("openrlhf-group-norm", {"normalize": "group-std", "normalize_when": "before"}),
    ("openrlhf-group-norm", {"epsilon": 1e-9, "beta": 0.01, "place": "reward"}),
    ("open-instruct", {"place": "loss", "estimator": "k3", "beta": 0.05, "reward_scale": 10.0}),
    ("open-instruct", {"baseline": "mean", "normalize": "none", "zero_std": "drop"}),
    ("open-instruct", {"log_ratio_clip": 40.0, "level": "token"}),
    ("nemo-rl==0.6.0", {"place": "loss", "estimator": "k3", "beta": 0.01, "level": "token"}),
    ("nemo-rl==0.3.1", {"log_ratio_clip": None, "kl_clip": None, "estimator": "k3"}),
    ("nemo-rl==0.4.0", {"log_ratio_clip": 20.0, "kl_clip": None, "estimator": "k3"}),
    ("nemo-rl==0.5.0", {"log_ratio_clip": 20.0, "kl_clip": 10.0, "estimator": "k3"}),
    ("nemo-rl==0.7.0", {"place": "loss", "estimator": "weighted-k3", "beta": 0.01}),
    ("nemo-rl", {"baseline": "leave-one-out", "normalize": "others-std", "ddof": 1}),
    ("nemo-rl", {"epsilon": 1e-6, "log_ratio_clip": 20.0, "kl_clip": 10.0}),
    ("skyrl", {"place": "loss", "estimator": "k3", "beta": 0.001, "epsilon": 1e-6}),
    ("skyrl", {"ddof": 1, "log_ratio_clip": 20.0, "kl_clip": 10.0, "group_size": 5}),
    ("skyrl", {"length": "batch-mean", "kl_length": "mean", "normalize": "group-std"}),
    ("tunix==0.1.6", {"place": "loss", "estimator": "k3", "beta": 0.04}),
    ("tunix==0.1.7", {"place": "loss", "estimator": "k1", "beta": 0.04}),
    ("tunix==0.1.3", {"epsilon": 1e-4, "length": "batch-mean", "ddof": 1}),
    ("tunix==0.1.4", {"epsilon": 1e-4, "length": "mean", "ddof": 1}),
    ("tunix==0.1.6", {"epsilon": 1e-4, "length": "mean", "normalize": "group-std"}),
    ("tunix", {"normalize": "group-std", "ddof": 1, "epsilon": 1e-6}),
    ("maxtext", {"estimator": "k1", "beta": 0.08, "eos": "cut"}),
    ("tunix==0.1.2", {"eos": "cut"}),
    ("tunix==0.1.6", {"eos": "cut"}),
    ("tunix==0.1.7", {"eos": "cut"}),
    ("prime-rl", {"place": "loss", "estimator": "sampler", "beta": 2e-3, "baseline": "mean"}),
    ("prime-rl", {"length": "batch-mean", "zero_std": "drop", "group_size": None}),
    ("ms-swift", {"beta": 0.04, "estimator": "k3", "log_ratio_clip": 20.0, "kl_clip": 10.0}),
    ("ms-swift", {"length": "mean", "ddof": 1, "epsilon": 1e-4, "group_size": 8}),
    ("ms-swift-rloo", {"place": "reward", "baseline": "leave-one-out", "level": "sequence"}),
    ("slime", {"place": "loss", "estimator": "k1", "beta": 0.0, "length": "mean"}),
    ("areal", {"place": "reward", "estimator": "k1", "beta": 0.1, "reward_clip": 20.0}),
    ("tinker-cookbook", {"estimator": "k2", "place": "loss", "length": "sum", "beta": 0.0}),
    ("easydel", {"estimator": "k3", "beta": 0.04, "ddof": 0, "epsilon": 1e-4, "group_size": 4}),
    ("oat", {"estimator": "k3", "beta": 0.1, "normalize": "none", "log_ratio_clip": 40.0}),
    ("roll", {"estimator": "k3", "beta": 0.0, "kl_clip": 10.0, "log_ratio_clip": None}),
    ("trinity-rft", {"estimator": "k2", "beta": 0.001, "ddof": 1, "kl_clip": None}),
    ("rlinf", {"estimator": "k3", "beta": 0.0, "kl_clip": 10.0, "log_ratio_clip": 20.0}),
    ("openrlhf-rloo", {"baseline": "leave-one-out", "normalize_when": "before", "kl_clip": 10.0}),
    ("verl-rloo", {"baseline": "leave-one-out", "place": "reward", "normalize": "none"}),
    ("unsloth-grpo==2026.9.10", {"estimator": "k3", "beta": 0.001, "log_ratio_clip": 20.0}),
    ("unsloth-grpo==2026.9.14", {"estimator": "weighted-k3", "beta": 0.0, "kl_clip": 10.0}),
    ("unsloth-grpo", {"normalize": "group-std", "ddof": 1, "epsilon": 1e-4, "group_size": 8}),
    ("axolotl-grpo==0.19", {"estimator": "k3", "beta": 0.0, "length": "batch-mean"}),
    ("axolotl-grpo==0.21", {"estimator": "weighted-k3", "beta": 0.0, "length": "batch-mean"}),
    ("axolotl-grpo-async", {"estimator": "k3", "beta": 0.0, "normalize": "group-std"}),
    ("areal-grpo", {"place": "reward", "normalize_when": "before", "epsilon": 1e-5, "clip": 0.4}),
    ("areal-grpo", {"beta": 0.0, "reward_scale": 10.0, "group_size": 4, "level": "token"}),
    ("miles", {"place": "loss", "estimator": "k1", "beta": 0.0, "length": "mean"}),
    ("easyr1", {"estimator": "k3", "beta": 0.01, "group_size": 5, "clip": 0.2, "clip_high": 0.3}),
    ("easyr1-kl-in-reward", {"place": "reward", "estimator": "k1", "beta": 0.001}),
    ("oat-grpo", {"normalize": "group-std", "epsilon": 1e-8, "ddof": 1, "length": "mean"}),
    ("rlinf-fsdp==0.3.0", {"place": "loss", "estimator": "swapped-k3", "beta": 0.0, "kl_clip": 10}),
    ("rlinf-reinpp", {"place": "reward", "normalize": "batch-std", "ddof": 0, "beta": 0.001}),
    ("roll-kl-in-reward", {"place": "reward", "normalize_when": "before", "beta": 0.2}),
    ("ms-swift-reinforce++", {"place": "reward", "baseline": "mean", "normalize": "batch-std"}),
    ("torchtune-grpo", {"estimator": "k3", "beta": 0.01, "group_size": 16, "epsilon": 1e-4}),
    ("torchforge", {"estimator": "k3", "beta": 0.1, "clip": None, "length": "mean"}),
    ("deepseek-r1", {"place": "loss", "estimator": "k3", "level": "token", "length": "mean"}),
    ("deepseek-r1", {"group_size": 16, "beta": 0.001, "normalize": "group-std"}),
    ("deepseekmath", {"group_size": 64, "beta": 0.04, "normalize": "group-std"}),
    ("dr-grpo", {"place": "none", "normalize": "none", "length": "sum", "beta": 0.0}),
]


@pytest.mark.parametrize(("name", "facts"), FACTS, ids=[f"{n}-{'-'.join(f)}" for n, f in FACTS])
def test_what_trainers_do(name, facts):
    found = recipe(name)
    assert {field: getattr(found, field) for field in facts} == facts


READINGS = [
    ("trl-grpo==1.9.2", {}, "none", "none"),
    ("trl-grpo==1.9.2", {"beta": 0.001}, "forward", "token-local hyperbolic"),
    ("trl-grpo==1.10", {"beta": 0.001}, "reverse", "token-local exponential tilt"),
    ("trl-rloo", {}, "reverse", "exponential tilt"),
    ("trl-ppo", {}, "reverse", "exponential tilt"),
    ("llamafactory-ppo", {}, "reverse", "exponential tilt"),
    ("trl-gdpo", {"beta": 0.1}, "reverse", "token-local exponential tilt"),
    ("openpipe-art", {"beta": 0.1}, "reverse", "token-local exponential tilt"),
    ("verl", {}, "none", "none"),
    ("verl-grpo", {}, "forward", "token-local hyperbolic"),
    ("verl-grpo", {"level": "sequence"}, "forward", "hyperbolic"),
    ("verl-kl-in-reward", {}, "reverse", "exponential tilt"),
    ("openrlhf", {}, "reverse", "exponential tilt"),
    ("openrlhf-group-norm", {}, "reverse", "exponential tilt"),
    ("open-instruct", {}, "forward", "token-local hyperbolic"),
    ("nemo-rl==0.6", {}, "forward", "token-local hyperbolic"),
    ("nemo-rl==0.7", {}, "reverse", "token-local exponential tilt"),
    ("skyrl", {}, "forward", "token-local hyperbolic"),
    ("tunix==0.1.6", {}, "forward", "token-local hyperbolic"),
    ("tunix==0.1.7", {}, "none", "none"),
    ("maxtext", {}, "none", "none"),
    ("prime-rl", {}, "none", "none"),
    ("ms-swift", {}, "forward", "token-local hyperbolic"),
    ("ms-swift-rloo", {}, "reverse", "exponential tilt"),
    ("slime", {"beta": 0.01}, "none", "none"),
    (
        "slime",
        {"beta": 0.01, "estimator": "weighted-k1"},
        "reverse",
        "token-local exponential tilt",
    ),
    ("areal", {}, "reverse", "exponential tilt"),
    ("tinker-cookbook", {"beta": 0.1}, "reverse", "token-local exponential tilt"),
    ("trinity-rft", {}, "reverse", "token-local exponential tilt"),
    ("easydel", {}, "forward", "token-local hyperbolic"),
    ("unsloth-grpo==2026.9.6", {}, "forward", "token-local hyperbolic"),
    ("unsloth-grpo", {"beta": 0.001}, "reverse", "token-local exponential tilt"),
    ("axolotl-grpo==0.19", {"beta": 0.04}, "forward", "token-local hyperbolic"),
    ("axolotl-grpo", {"beta": 0.04}, "reverse", "token-local exponential tilt"),
    ("axolotl-grpo-async", {"beta": 0.04}, "forward", "token-local hyperbolic"),
    ("areal-grpo", {"beta": 0.1}, "reverse", "exponential tilt"),
    ("miles", {"beta": 0.01}, "none", "none"),
    ("easyr1", {}, "forward", "token-local hyperbolic"),
    ("easyr1-kl-in-reward", {}, "reverse", "exponential tilt"),
    ("oat-grpo", {}, "forward", "token-local hyperbolic"),
    ("rlinf-reinpp", {}, "reverse", "exponential tilt"),
    ("rlinf-fsdp", {"beta": 0.01}, "other", "token-local target of 0.5 × χ²"),
    ("roll-kl-in-reward", {}, "reverse", "exponential tilt"),
    ("ms-swift-reinforce++", {}, "reverse", "exponential tilt"),
    ("torchtune-grpo", {}, "forward", "token-local hyperbolic"),
    ("torchforge", {}, "forward", "token-local hyperbolic"),
    ("verl-grpo", {"estimator": "absolute"}, "total variation", "total variation"),
    ("trl-rloo", {"estimator": "k3"}, "none", "none"),
]


@pytest.mark.parametrize(("name", "fields", "direction", "family"), READINGS)
def test_direction_and_family(name, fields, direction, family):
    found = read(recipe(name, **fields))
    assert (found.direction, found.family) == (direction, family)
    half = Scaled(ChiSquared(), 0.5)
    expected = {"reverse": ReverseKL(), "forward": ForwardKL(), "other": half}.get(direction)
    if recipe(name, **fields).beta:
        assert recipe(name, **fields).divergence == expected


@pytest.mark.parametrize(
    ("name", "fields", "formula", "value"),
    [
        ("trl-rloo", {}, "β", 0.05),
        ("trl-rloo", {"baseline": "mean"}, "β", 0.05),
        ("verl-kl-in-reward", {}, "β", 0.001),
        ("openrlhf", {}, "β", 0.01),
        ("openrlhf-group-norm", {}, "β(σ + 1e-9)", 0.01 * (0.3 + 1e-9)),
        ("trl-grpo", {"beta": 0.04}, "β G/(G − 1) (σ + 1e-4)", 0.04 * 8 / 7 * 0.3001),
        ("nemo-rl", {}, "β(σ + 1e-6)", 0.01 * 0.300001),
        ("deepseek-r1", {}, "β G/(G − 1) σ", 0.0003 * 16 / 15),
        ("trl-grpo", {"beta": 0.2, "normalize": "none"}, "β G/(G − 1)", 0.2 * 8 / 7),
        ("open-instruct", {}, "β G/(G − 1)/10", 0.05 * 4 / 3 / 10),
        ("open-instruct", {"baseline": "leave-one-out"}, "β/10", 0.005),
        ("openrlhf-group-norm", {"normalize": "none", "group_size": 4}, "β G/(G − 1)", 0.04 / 3),
        ("verl-grpo", {"normalize": "none"}, "β", 0.001),
        ("tunix", {}, None, None),
        ("verl", {}, None, None),
        # Divided before the KL is charged, or with it.
        ("roll-kl-in-reward", {}, "β G/(G − 1) (σ + 1e-6)", 0.2 * 8 / 7 * 0.300001),
        ("areal-grpo", {"beta": 0.1}, "β G/(G − 1) (σ + 1e-5)/10", 0.1 * 4 / 3 * 0.30001 / 10),
        ("easyr1-kl-in-reward", {}, "β", 0.001),
        ("rlinf-reinpp", {}, "β", 0.001),
        ("ms-swift-reinforce++", {}, "β", 0.04),
        ("torchforge", {}, "β G/(G − 1) (σ + 1e-4)", 0.1 * 8 / 7 * 0.3001),
    ],
)
def test_effective_beta(name, fields, formula, value):
    found = read(recipe(name, **fields), 0.3)
    assert found.effective == formula
    assert found.effective_beta == (value if value is None else pytest.approx(value, rel=1e-12))


@pytest.mark.parametrize(
    "trainer",
    [
        Recipe("reward", "k1", "sequence", "mean", "group-std", group_size=4, reward_scale=3.0),
        Recipe("loss", "k3", "token", "mean", group_size=4, reward_scale=3.0),
        Recipe("loss", "k2", "token", "mean", "batch-std", epsilon=0.1, group_size=4),
        Recipe("loss", "k3", "sequence", "none", "group-std", epsilon=0.01, reward_scale=2.0),
    ],
)
def test_the_formula_is_that_of_the_implied_target(trainer):
    reward, log_ref = np.array([1.0, 0.4, 0.0]), np.log([0.2, 0.3, 0.5])
    target = implied.implied_target(trainer, reward, log_ref, beta=1.5)
    probs = np.asarray(target.probs, np.float64)
    deviation = np.sqrt(probs @ (reward - probs @ reward) ** 2)
    factor = trainer.effective_factor(trainer.reward_scale * deviation)
    scaled = float(target.effective_beta) / trainer.reward_scale
    assert scaled == pytest.approx(1.5 * factor, rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "bounds", "said"),
    [
        ({}, None, "A = r"),
        ({"reward_clip": 10.0}, (-10, 10), "A = clip(r, ±10)"),
        ({"reward_clip": 1.0, "reward_clip_low": 0.0}, (0, 1), "A = clip(r, 0 … 1)"),
        ({"reward_clip": 5.0, "reward_clip_low": -2.0}, (-2, 5), "A = clip(r, -2 … 5)"),
        ({"reward_clip_low": 1.0}, (1, math.inf), "A = clip(r, 1 … ∞)"),
    ],
)
def test_what_rewards_are_cut_to(fields, bounds, said):
    trainer = Recipe("loss", "k2", beta=1.0, **fields)
    assert trainer.reward_bounds == bounds
    assert read(trainer).objective.endswith(said)


CLIPS = [
    ("verl-grpo", {"estimator": "k2"}, (None, None)),
    ("verl-grpo", {"estimator": "k3"}, (20.0, 10.0)),
    ("verl-grpo", {"estimator": "absolute"}, (None, None)),
    ("verl-grpo", {"estimator": "k2", "kl_clip": 5.0}, (None, 5.0)),
    ("verl-grpo", {"beta": 0.1}, (20.0, 10.0)),
    ("skyrl", {"estimator": "k1"}, (None, None)),
    # These cut whatever they compute.
    ("nemo-rl", {"estimator": "weighted-k1"}, (20.0, 10.0)),
    ("openrlhf", {"place": "loss", "estimator": "k2"}, (None, 10.0)),
    ("open-instruct", {"estimator": "k2"}, (40.0, None)),
]


@pytest.mark.parametrize(("name", "fields", "clips"), CLIPS)
def test_clips_of_one_estimator_go_with_it(name, fields, clips):
    found = recipe(name, **fields)
    assert (found.log_ratio_clip, found.kl_clip) == clips


def test_an_estimator_that_is_not_cut_is_not_said_to_be():
    reward, log_ref = np.array([1.0, 0.2, 0.0]), np.log([0.3, 0.02, 0.68])
    trainer = recipe("verl-grpo", estimator="k2", group_size=8, beta=0.1)
    assert not implied.implied_target(trainer, reward, log_ref).status & Status.CLIPPED


def test_skyrl_cuts_as_verl_does():
    reward, log_ref = np.array([1.0, 0.2, 0.0]), np.log([0.05, 0.15, 0.8])
    for name in ("skyrl", "verl-grpo"):
        trainer = recipe(name, beta=0.05, group_size=5)
        assert implied.implied_target(trainer, reward, log_ref).status & Status.CLIPPED


def test_a_weighted_k1_is_a_reverse_kl():
    """NeMo-RL from 0.7 on weighs every estimate; its k1 so has the target of k2."""
    reward, log_ref = np.array([1.0, 0.0, 0.3]), np.log([0.5, 0.25, 0.25])
    probs = [
        implied.implied_target(recipe("nemo-rl", estimator=x, beta=0.8), reward, log_ref).probs
        for x in ("weighted-k1", "k2", "weighted-k3")
    ]
    np.testing.assert_allclose(probs[0], probs[1], rtol=1e-5)
    np.testing.assert_allclose(probs[0], probs[2], rtol=1e-5)


def test_what_has_no_field_is_said():
    """What decides a target and is no field of a recipe stands in the notes."""
    said = {entry.title: " ".join(entry.notes) for entry in recipes.presets()}
    without = ("deepseek-r1", "deepseekmath", "dr-grpo")
    for title, notes in said.items():
        assert "temperature" in notes or title in without, title
    for title in ("tunix >=0.1.4, <=0.1.6", "tunix >=0.1.7", "maxtext"):
        assert "cuts <eos> off" in said[title]
    assert 'k1 is estimator = "weighted-k1"' in said["nemo-rl >=0.7"]
    assert "5 times as it comes" in said["trl-grpo >=1.10"]


def test_effective_beta_without_a_std_is_a_formula():
    found = read(recipe("trl-grpo", beta=0.04))
    assert found.effective_beta is None
    # The number is that of groups of 8, which the formula only comes near.
    said = "about β G/(G − 1) (σ + 1e-4); 0.02305 for rewards 0 and 1, groups of 8 and a success"
    assert said in found.effective_text
    at_half = 0.04 * 8 / 7 * (0.5 + 1e-4)
    assert f"(σ + 1e-4) = {at_half:.4g}, for G = 8" in read(found.recipe, 0.5).effective_text
    large = dataclasses.replace(found.recipe, group_size=None)
    assert "β(σ + 1e-4) = 0.02, for rewards 0 and 1, large groups" in read(large).effective_text
    assert "0.5762 β" in read(recipe("trl-grpo")).effective_text


@pytest.mark.parametrize("name", ["tunix==0.1.6", "trl-grpo", "nemo-rl", "skyrl"])
def test_effective_beta_at_even_chances_is_that_of_all_groups(name):
    trainer = recipe(name, beta=1.0)
    size = min(trainer.group_size, 10)
    trainer = dataclasses.replace(trainer, group_size=size)
    others = np.array(list(itertools.product([0.0, 1.0], repeat=size - 1)))

    def advantage(own):
        group = np.c_[np.full(len(others), own), others]
        left_out = trainer.baseline == "leave-one-out"
        centred = own - (others if left_out else group).mean(1)
        std = (others if trainer.normalize == "others-std" else group).std(1, ddof=trainer.ddof)
        # NeMo-RL divides by nothing where the others agree.
        agree = left_out & (std == 0)
        return (centred / np.where(agree, 1, std + trainer.epsilon)).mean()

    # A KL is weighed against the gain of success; in units of reward that is 1.
    expected = 1 / (advantage(1.0) - advantage(0.0))
    said = re.search(r"; (\S+) for rewards 0 and 1", read(trainer).effective_text)
    assert float(said[1]) == pytest.approx(expected, rel=5e-4)


def test_where_there_is_a_critical_beta():
    with_one = {entry.title for entry in recipes.presets() if read(entry.recipe).critical}
    assert with_one == {
        *("trl-grpo >=1.10", "nemo-rl >=0.7", "trinity-rft", "areal-grpo"),
        *("unsloth-grpo >=2026.9.14", "axolotl-grpo >=0.21", "roll-kl-in-reward"),
        *(f"openrlhf-group-norm {x}" for x in ("<0.7", ">=0.7, <0.8.6", ">=0.8.6")),
    }
    found = read(recipe("trl-grpo", beta=1.2))
    assert found.critical is not None
    assert list(found.critical) == ["0.1", "0.3", "0.5"]
    assert "β = 1.2 is below that of 0.5." in found.critical_text
    assert "above all" in read(recipe("trl-grpo", beta=2)).critical_text


# From p_ref to β_c: roots of the equation at 50 digits.
CRITICAL = {
    0.001: 0.2784190785710623,
    0.01: 0.40074215335019925,
    0.1: 0.6970060106388144,
    0.3: 1.0818781421140757,
    0.5: 1.50887956153832,
    0.605: 1.8105639541869405,
    0.9: 4.136987229619472,
}


def test_critical_beta_reference_values():
    found = critical_beta(list(CRITICAL))
    np.testing.assert_allclose(found, list(CRITICAL.values()), rtol=1e-13)
    assert found.dtype == np.float64
    assert critical_beta(np.full((2, 3), 0.1)).shape == (2, 3)


@pytest.mark.parametrize("p_ref", [1e-300, 1e-12, 1e-5, 0.2, 0.7, 0.99, 1 - 1e-6, 1 - 1e-12])
def test_critical_beta_to_thirty_digits(p_ref):
    with mpmath.workdps(40):
        p = mpmath.mpf(p_ref)
        logit = mpmath.log(p) - mpmath.log1p(-p)
        low, high = mpmath.mpf("1e-6"), abs(logit) + 20

        def excess(x):
            return x - logit - 2 * mpmath.coth(x / 2)

        for _ in range(120):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) < 0 else (low, middle)
        p_c = 1 / (1 + mpmath.exp(-low))
        expected = (2 * p_c - 1) / (2 * mpmath.sqrt(p_c * (1 - p_c)))
    assert critical_beta(p_ref) == pytest.approx(float(expected), rel=1e-10)


def test_critical_beta_is_where_the_fixed_points_meet():
    p = np.linspace(0.31, 1 - 1e-6, 200_001)
    beta = 1 / (np.sqrt(p * (1 - p)) * (np.log(p / (1 - p)) - math.log(3 / 7)))
    assert beta.min() == pytest.approx(critical_beta(0.3), rel=1e-6)


def test_critical_beta_keeps_kind_and_dtype():
    found = critical_beta(jnp.array([0.1, 0.5], jnp.float32))
    assert isinstance(found, jax.Array)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [0.697006, 1.50888], rtol=1e-6)
    assert critical_beta(np.float32(0.3)).dtype == np.float32


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, math.nan, [0.5, 2.0]])
def test_critical_beta_needs_probabilities(bad):
    with pytest.raises(ValueError, match="p_ref must be between 0 and 1"):
        critical_beta(bad)


def test_versions_are_compared_by_release():
    old, new = recipe("trl-grpo==1.9.2"), recipe("trl-grpo==1.10")
    assert old != new
    assert recipe("trl-grpo") == new
    for same in ("1.10.0", "v1.10", "1.10.0rc1", "1.10.post1", "1.10.0+cu12", "2", "1.16.0"):
        assert recipe(f"trl-grpo=={same}") == new, same
    for same in ("1.9.2.0", "1.9", "0.19", "1.9.2.dev0", "1.8.10"):
        assert recipe(f"trl-grpo == {same}") == old, same
    assert recipe("nemo-rl==0.6.99") == recipe("nemo-rl==0.6")
    assert recipe("verl-grpo==0.0.1") == recipe("verl-grpo")


@pytest.mark.parametrize("entry", ALL)
def test_an_entry_is_found_by_the_versions_it_names(entry):
    bound = entry.versions.split(",")[0].lstrip("<>= ")
    if entry.versions.startswith(("<=", ">=")):
        assert recipes.preset(f"{entry.name}=={bound.split(',')[0]}") is entry
    newest = [other for other in recipes.presets() if other.name == entry.name][-1]
    assert recipes.preset(entry.name) is newest


def test_fields_are_overridden():
    changed = recipe("trl-grpo", beta=0.1, group_size=16, normalize="none")
    assert changed == dataclasses.replace(
        recipe("trl-grpo"), beta=0.1, group_size=16, normalize="none"
    )
    assert recipe("trl-rloo", beta=None).beta == 0.05
    assert recipe("trl-rloo", beta=0).beta == 0


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("opnrlhf", {}, "there is no preset 'opnrlhf': did you mean 'openrlhf'"),
        (
            "nothing-like-it",
            {},
            "there is no preset 'nothing-like-it': choose of areal, areal-grpo, axolotl-grpo, ",
        ),
        (
            "trl-grpo==0.13.1",
            {},
            "no preset 'trl-grpo' covers version 0.13.1: TRL had no GRPO before 0.14",
        ),
        (
            "trl-ppo==1.13",
            {},
            "no preset 'trl-ppo' covers version 1.13: TRL has no PPO from 1.13 on",
        ),
        ("trl-ppo==0.11.4", {}, "no preset 'trl-ppo' covers version 0.11.4: before 0.12 TRL's"),
        ("trl-grpo==new", {}, "'new' in 'trl-grpo==new' is not a version such as 1.9.2"),
        ("trl-grpo==", {}, "'' in 'trl-grpo==' is not a version"),
        ("trl-rloo", {"bta": 1}, "a recipe has no field 'bta': did you mean 'beta'"),
        (
            "trl-rloo",
            {"normalise": "none"},
            "a recipe has no field 'normalise': did you mean 'normalize'",
        ),
        ("trl-rloo", {"estimator": "k4"}, "estimator must be one of"),
        ("trl-rloo", {"beta": -1}, "beta must be a number 0 or more, got -1"),
    ],
)
def test_what_is_refused(name, fields, message):
    with pytest.raises(ValueError, match=f"^{message.replace('?', '[?]')}") as caught:
        recipe(name, **fields)
    assert "\n" not in str(caught.value)


TRAINERS = pathlib.Path(recipes.__file__).parent / "trainers"
KEYS = {
    "name": str,
    "trainer": str,
    "versions": str,
    "file": str,
    "checked": datetime.date,
    "notes": list,
    "recipe": dict,
    "keys": dict,
    "clipped": list,
    "read": list,
    "before": str,
    "after": str,
    "distribution": str,
    "configuration": list,
    "defaults": dict,
}
OPTIONAL = {"notes", "clipped", "before", "after", "distribution", "configuration", "defaults"}
# A release below, at and above every bound there is.
RELEASES = [
    *(
        "0",
        "0.1.3",
        "0.1.4",
        "0.1.6",
        "0.1.7",
        "0.3.0",
        "0.3.1",
        "0.4",
        "0.5",
        "0.6.9",
        "0.7",
        "0.8.6",
        "0.11.4",
    ),
    *("0.12", "0.13", "0.14", "0.15.2", "0.16", "0.18.2", "0.19", "0.21", "0.22", "1.9.2"),
    *("1.9.3", "1.10", "1.12", "1.13", "1.16", "9", "2026.9.10", "2026.9.14", "9999"),
]


@pytest.mark.parametrize("file", sorted(TRAINERS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_file_says_what_it_should(file):
    document = tomllib.loads(file.read_text(encoding="utf-8"))
    assert set(document) <= {"preset", "explained"}
    fields = {field.name: field.default for field in dataclasses.fields(Recipe)}
    ranges = {}
    for entry in document.get("preset", ()):
        assert set(entry) <= set(KEYS)
        assert set(KEYS) - set(entry) <= OPTIONAL
        assert all(isinstance(entry[key], KEYS[key]) for key in entry)
        if "clipped" in entry:
            assert {"log_ratio_clip", "kl_clip"} & set(entry["recipe"])
            assert entry["recipe"]["estimator"] in entry["clipped"]
        texts = [*entry.get("notes", ()), *entry["keys"].values()]
        assert all(isinstance(text, str) for text in texts)
        assert set(entry["recipe"]) | set(entry["keys"]) <= set(fields)
        assert "beta" in entry["recipe"]
        assert re.fullmatch(r"[*]|((<=?|>=?|==)\d+([.]\d+)*(, |$))+", entry["versions"])
        assert entry["name"].split("-")[0] == file.stem.split("-")[0]
        within = SpecifierSet(entry["versions"].replace("*", ""))
        ranges.setdefault(entry["name"], []).append([x for x in RELEASES if x in within])
    for covered in ranges.values():
        assert all(covered)
        # No release twice, and those of an entry after those of the one above it.
        in_order = [RELEASES.index(release) for releases in covered for release in releases]
        assert in_order == sorted(set(in_order))


NOT_READ = [
    ("trl-grpo==9.9", ">=1.10", "the newest release that was is 1.16.0"),
    ("trl-grpo==1.16.1", ">=1.10", "the newest release that was is 1.16.0"),
    ("trl-grpo==1.9.3", ">=0.19, <=1.9.2", "1.9.2 does this, and 1.10.0 does what trl-grpo==1"),
    ("trl-grpo==0.18.3", ">=0.16, <0.19", "0.18.2 does this, and 0.19.0 does"),
    ("axolotl-grpo==0.20", "<=0.19", "0.19.0 does this, and 0.21.0 does"),
    ("unsloth-grpo==2026.9.12", "<=2026.9.10", "2026.9.10 does this, and 2026.9.14 does"),
    ("verl-grpo==0.5", "*", "the oldest release that was is 0.9.1"),
    ("trl-rloo==0.10", "<0.22", "the oldest release that was is 0.11.4"),
    ("easyr1==0.3.2", "*", "nor was any release: this is from examples/config.yaml, checked 2026"),
]


@pytest.mark.parametrize(("name", "versions", "said"), NOT_READ)
def test_a_version_that_was_not_read_is_answered_with_a_caveat(name, versions, said):
    found = recipes.preset(name)
    assert found.versions == versions
    wanted, _, version = name.partition("==")
    assert found.caveat.startswith(f"version {version} of {wanted} was not read")
    assert said in found.caveat
    assert found.caveat in str(found)
    # All else is that of the entry itself.
    assert dataclasses.replace(found, caveat="") in recipes.presets()


@pytest.mark.parametrize(
    "name",
    ["trl-grpo", "trl-grpo==1.16.0", "trl-grpo==1.16.0.post1", "trl-grpo==1.5", "trl-grpo==0.14"],
)
def test_what_was_read_or_lies_between_has_no_caveat(name):
    assert recipes.preset(name).caveat == ""


def test_the_caveat_is_on_every_page_of_the_recipe(capsys):
    name, told = "trl-grpo==9.9", "ersion 9.9 of trl-grpo was not read"
    for arguments in (
        [name],
        [name, "--compare", "trl-rloo"],
        ["--compare", "trl-rloo", name],
        [name, "--json", "-"],
    ):
        assert told in " ".join(_run(capsys, *arguments)[1].split())


@pytest.mark.broad
def test_the_caveat_is_on_every_page_of_a_diagnosis(capsys, tmp_path):
    log, html, record = (tmp_path / name for name in ("log.jsonl", "page.html", "page.json"))
    rows = [{"prompt": "?", "completion": x, "reward": r} for x, r in (("a", 1.0), ("b", 0.0)) * 4]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # Also where the recipe is changed, and the name goes on after the version.
    arguments = ["--trainer", "trl-grpo==9.9", "--recipe", "normalize=none", "--beta", 0.1]
    arguments += ["--group-size", 8, "--html", html, "--json", record]
    assert cli.main(["diagnose", str(log), *map(str, arguments)]) == 0
    pages = [capsys.readouterr().out, html.read_text("utf-8"), record.read_text("utf-8")]
    for page in pages:
        assert "ersion 9.9 of trl-grpo was not read" in " ".join(page.split())


ENTRY = """[[preset]]
name = "mine"
trainer = "Mine"
versions = ">=1"
file = "mine/config.py"
checked = 2026-01-02
read = ["1.0", "1.2"]
before = "there was none"
notes = ["Read."]
[preset.recipe]
place = "loss"
beta = 0.1
[preset.keys]
beta = "kl_coef"
"""


def test_a_whole_entry_is_read():
    (found,) = recipes.presets_from_toml(ENTRY, "mine.toml")
    assert (found.name, found.read, found.notes) == ("mine", ("1.0", "1.2"), ("Read.",))
    assert found.recipe == Recipe("loss", beta=0.1)
    assert found.checked == datetime.date(2026, 1, 2)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("versions", "verions", "there is no key 'verions': did you mean 'versions'"),
        ("[[preset]]", "[[presets]]", "there is no table 'presets': did you mean 'preset'?"),
        ("[[preset]]", "preset = [1]\n[[preset]]", "this is no TOML: "),
        ("[[preset]]", "[preset]", "preset must stand as [[preset]], once for each entry"),
        ('file = "mine/config.py"\n', "", "preset 'mine': file is missing"),
        ('read = ["1.0", "1.2"]\n', "", "preset 'mine': read is missing"),
        ('name = "mine"\n', "", "preset 1: name is missing"),
        ('name = "mine"', "name = 3", "preset 1: name must be a text, got 3"),
        ("2026-01-02", '"2026"', "preset 'mine': checked must be a date, got '2026'"),
        ("2026-01-02", "2026-01-02T03:04:05", "preset 'mine': checked must be a date"),
        ('["Read."]', '"Read."', "preset 'mine': notes must be a list of texts, got 'Read.'"),
        ('["Read."]', "[3]", "preset 'mine': notes must be a list of texts, got [3]"),
        ('"kl_coef"', "0.1", "preset 'mine': beta in [preset.keys] must be a text, got 0.1"),
        ('place = "loss"', 'place = "lss"', "preset 'mine': place must be one of 'reward', "),
        ("beta = 0.1", 'beta = "0.1"', "beta must be a number 0 or more, got '0.1'"),
        ("beta = 0.1", "gamma = 1", "there is no field of a recipe in [preset.recipe] 'gamma'"),
        ("beta = 0.1\n", "", "preset 'mine': beta is missing in [preset.recipe]"),
        ('beta = "kl', 'bta = "kl', "there is no field of a recipe in [preset.keys] 'bta'"),
        ('">=1"', '"from 1"', "preset 'mine': versions must be \"*\" or bounds such as"),
        ('"1.2"]', '"new"]', "preset 'mine': read must list releases such as 1.9.2: Invalid"),
        ('"1.0", "1.2"', '"1.2", "1.0"', "read must go from old to new, got 1.2, 1.0"),
        ('"1.0", "1.2"', '"0.9", "1.2"', "preset 'mine': read names 0.9, which is not of >=1"),
        ('"1.0", "1.2"', "", "preset 'mine': read is empty: which releases of >=1 were read?"),
        ('before = "there was none"\n', "", "preset 'mine': before is missing: why >=1 alone?"),
        ('">=1"', '">=1, <2"', "preset 'mine': after is missing: why >=1, <2 alone?"),
        ("[preset.keys]", "[preset.keys", "this is no TOML: "),
        (
            "notes = ",
            'distribution = "mine"\nnotes = ',
            "distribution and configuration go together",
        ),
        ("notes = ", 'configuration = ["a.py"]\nnotes = ', "distribution and configuration go"),
        ("[preset.keys]", "[preset.defaults]\na = 1\n[preset.keys]", "defaults go with them"),
        (
            "notes = ",
            'distribution = "mine"\nconfiguration = ["a.txt"]\nnotes = ',
            "configuration must list files such as package/file.py:Class, package/file.py or",
        ),
        ("notes = ", "clipped = []\nclipped = ", "this is no TOML: "),
    ],
)
def test_a_mistake_in_a_file_is_said_in_a_line(right, wrong, message):
    assert right in ENTRY
    with pytest.raises(ValueError, match=r"^mine\.toml[,:] ") as caught:
        recipes.presets_from_toml(ENTRY.replace(right, wrong, 1), "mine.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_files_name_no_bound_that_is_not_tested():
    ranges = [entry.versions for entry in recipes.presets() if entry.versions != "*"]
    assert {bound.strip("<>= ") for text in ranges for bound in text.split(",")} <= set(RELEASES)


@pytest.mark.parametrize(
    ("before", "after", "summary"),
    [
        ("tunix==0.1.6", "tunix==0.1.7", "same YAML, other target: forward KL → no KL"),
        ("nemo-rl==0.6", "nemo-rl", "same YAML, other target: forward KL → reverse KL"),
        ("trl-grpo==1", "trl-grpo", "no target either way at β = 0; with β above 0, same YAML, "),
        ("trl-rloo", "trl-rloo", "same target"),
        ("tunix", "maxtext", "no target either way: the path of training decides"),
        ("trl-rloo", "openrlhf", "same family of targets, another effective β: ratio 0.2"),
        ("trl-rloo", "openrlhf-group-norm", "same family of targets, another effective β: β → β("),
        ("trl-rloo", "nemo-rl", "other target: the same reverse KL, of sequences → of tokens"),
        ("trl-rloo", "skyrl", "other target: reverse KL → forward KL, of sequences → of tokens"),
    ],
)
def test_comparison_in_words(before, after, summary):
    same = recipes.preset(before).trainer == recipes.preset(after).trainer
    found = recipes.difference(read(recipe(before)), read(recipe(after)), same_keys=same)
    assert found.startswith(summary)


@pytest.mark.parametrize(
    ("before", "after", "beta", "differ"),
    [
        ("tunix==0.1.6", "nemo-rl==0.6", 0.04, "log_ratio_clip, kl_clip, length, eos"),
        ("skyrl", "verl-grpo", 0.04, "what differs: group_size, length, kl_length"),
        ("openrlhf", "trl-ppo", 0.05, "reward_clip, kl_clip, temperature"),
        # The KL is normalised with the reward, whatever by.
        ("verl-kl-in-reward", "trl-rloo", 0.05, None),
        ("trl-ppo", "trl-rloo", 0.05, "temperature"),
    ],
)
def test_the_same_target_is_one_of_the_same_fields(before, after, beta, differ):
    readings = [read(recipe(name, beta=beta)) for name in (before, after)]
    found = recipes.difference(*readings, same_keys=False)
    if differ is None:
        assert found == "same target"
    else:
        assert found.startswith("same family of targets")
        assert found.endswith(differ)


def test_what_has_no_target_for_which_reason():
    charged = read(Recipe("reward", "k3", baseline="mean", beta=5.0))
    assert "none that is unique" in charged.target
    assert not any("dies out" in caveat for caveat in charged.caveats)
    assert any("k3 still acts" in caveat for caveat in charged.caveats)
    assert read(recipe("verl", beta=0.01)).caveats[0].startswith("Without a KL")
    assert read(recipe("trl-grpo")).caveats[0].startswith("β = 0")


@pytest.mark.parametrize(
    ("x", "text"), [(1e-4, "1e-4"), (1e-6, "1e-6"), (0.001, "0.001"), (5e-4, "5e-4"), (20.0, "20")]
)
def test_numbers_as_people_write_them(x, text):
    assert Recipe("loss", "k2", reward_scale=x).effective_formula == f"β/{text}"


def test_page_of_a_trainer_that_divides_by_the_std(capsys):
    code, out, err = _run(capsys, "trl-grpo==1.9.2", "--beta", 0.04)
    assert (code, err) == (0, "")
    for phrase in (
        "trl-grpo: TRL GRPO, versions >=0.19, <=1.9.2\n",
        "maximise E_π[A(y)] − β E_π[Σ_t KL(π_ref‖π)(s_t)], A = (r − mean)/(std + 1e-4)\n",
        "KL            forward, KL(π_ref‖π): ",
        "effective β   about β G/(G − 1) (σ + 1e-4); 0.02305 ",
        "target        token-local hyperbolic, π(a|s) = β π_ref(a|s)/(Λ_s − Q(s,a))",
        "estimator                   k3   use_bias_correction_kl = False\n",
        "beta                      0.04   beta\n",
        "group_size                   8   num_generations\n",
    ):
        assert phrase in out, phrase
    assert "critical β" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_page_of_a_trainer_with_a_critical_beta(capsys):
    code, out, _ = _run(capsys, "nemo-rl", "--reward-std", 0.25)
    assert code == 0
    flat = " ".join(out.split())
    assert "reverse, KL(π‖π_ref): k3 carries the probability of its sample" in flat
    assert "β(σ + 1e-6) = 0.0025, for σ = 0.25." in flat
    assert "0.697, 1.082, 1.509 if the reference succeeds with probability 0.1, 0.3, 0.5." in flat
    assert "β = 0.01 is below all of them." in flat
    assert "In groups of 16 the success rate stays below 1 at every β" in flat
    assert "What defeats MARA: the division by a standard deviation σ scales the augm" in flat


def test_page_of_a_trainer_without_target(capsys):
    code, out, _ = _run(capsys, "tunix")
    assert code == 0
    flat = " ".join(out.split())
    assert "maximise E_π[A(y)], A = (r − mean)/(std + 1e-6) β" in flat
    assert "k1 in the loss has no expected gradient" in flat
    assert "none: the path of training decides" in flat
    assert "effective β" not in out


@pytest.mark.parametrize("entry", ALL)
def test_every_page_fits(capsys, entry):
    version = entry.versions.split(",")[0].lstrip("<>= ").replace("*", "")
    version = "" if entry.versions.startswith("<") and "=" not in entry.versions else version
    name = f"{entry.name}=={version}" if version else entry.name
    code, out, err = _run(capsys, name)
    assert (code, err) == (0, "")
    words = out.partition("\nfield")[0]
    assert max(map(len, words.splitlines())) <= 96
    assert not any(line != line.rstrip() for line in out.splitlines())


def test_two_side_by_side(capsys):
    code, out, err = _run(
        capsys, "trl-grpo==1.9.2", "--compare", "trl-grpo==1.10", "--beta", "0.04"
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["trl-grpo", ">=0.19,", "<=1.9.2", "trl-grpo", ">=1.10"]
    marked = [line[2:].split("  ")[0] for line in lines if line.startswith("≠ ")]
    assert marked == [
        *("objective", "KL", "critical β", "target", "estimator"),
        "marks what differs.",
    ]
    assert lines[-1] == "Same YAML, other target: forward KL → reverse KL."
    assert max(map(len, lines)) <= 100


def test_two_names_are_compared_in_their_order(capsys):
    names = ("trl-grpo==1.9.2", "trl-grpo==1.10")
    expected = _run(capsys, names[0], "--compare", names[1])
    assert _run(capsys, "--compare", *names) == expected


def test_nothing_differs(capsys):
    code, out, _ = _run(capsys, "trl-rloo", "--compare", "trl-rloo")
    assert code == 0
    assert "≠" not in out
    assert out.endswith("Same target.\n")


@pytest.mark.parametrize("arguments", [[], ["--list"]], ids=["alone", "list"])
def test_list(capsys, arguments):
    code, out, err = _run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert out.startswith(f"{recipes.table()}\n\n")
    others = out.removeprefix(recipes.table())
    assert all(entry.name in others for entry in recipes.explanations())


def test_json_round_trip(capsys, tmp_path):
    path = tmp_path / "recipe.json"
    code, out, _ = _run(capsys, "openrlhf-group-norm", "--reward-std", "0.5", "--json", path)
    assert code == 0
    assert out.endswith(f"wrote {path}\n")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert Recipe(**content["recipe"]) == recipe("openrlhf-group-norm")
    assert content["keys"] == dict(recipes.preset("openrlhf-group-norm").keys)
    assert content["direction"] == "reverse"
    assert content["effective_beta"] == pytest.approx(0.005)
    assert content["critical"]["0.3"] == pytest.approx(CRITICAL[0.3])
    assert content["checked"] == "2026-11-29"
    code, _, _ = _run(capsys, "trl-rloo", "--compare", "skyrl", "--json", path)
    pair = json.loads(path.read_text(encoding="utf-8"))
    assert [Recipe(**one["recipe"]) for one in pair] == [recipe("trl-rloo"), recipe("skyrl")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trl-gpro"], "there is no preset 'trl-gpro': did you mean"),
        (["trl-grpo==0.13"], "no preset 'trl-grpo' covers version 0.13: TRL had no GRPO before"),
        (["trl-grpo", "--compare", "nope"], "there is no preset 'nope'"),
        (["trl-grpo", "--beta", "-1"], "'-1' is not a finite number, 0 or more"),
        (["trl-grpo", "--reward-std", "0"], "'0' is not a finite number above 0"),
        (["--beta", "0.1"], "--beta says something of one trainer: give a NAME"),
        (["--reward-std", "0.1"], "--reward-std says something of one trainer"),
        (["--json", "a.json"], "--json writes one trainer"),
        (["--compare", "trl-grpo"], "two trainers side by side, not 1"),
        (["skyrl", "--compare", "tunix", "verl"], "two trainers side by side, not 3"),
        (["trl-grpo", "--list"], "--list lists all trainers"),
        (["--installed"], "--installed compares one trainer: give a NAME"),
        (["trl-grpo", "--installed", "--beta", "0"], "one trainer: leave --beta out"),
        (["trl-grpo", "--installed", "--compare", "verl"], "one trainer: leave --compare out"),
        (["deepseek-r1", "--installed"], "deepseek-r1 names no package whose defaults are read"),
        (["--list", "--json", "a.json"], "--json writes one trainer"),
        (["trl-grpo", "--json", "no/such/folder.json"], "there is no folder"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, arguments, message):
    code, out, err = _run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
