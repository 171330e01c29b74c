"""Presets beside the defaults of an installed package, of which nothing is run."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from kltarget import cli, recipes

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

# Running it would fail: it imports what is not there.
TRL = """
import no_such_module
from dataclasses import dataclass, field


@dataclass
class Other:
    beta: float = 7.0


@dataclass
class _Base(no_such_module.Anything):
    sync_ref_model: bool = False
    beta: float = 9.0


@dataclass
class GRPOConfig(_Base):
    beta: float = field(default=BETA, metadata={"help": "A coefficient."})
    num_generations: "int | None" = field(default=8)
    epsilon: float = 0.2
    epsilon_high: float | None = None
    num_iterations: int = field(default_factory=lambda: 1)
    scale_rewards: str = "group"
    loss_type: str = field(metadata={}, default="dapo")
    use_bias_correction_kl: bool = BIAS
    entropy_coef: float = 0
    importance_sampling_level: str = "token"
    multi_objective_aggregation: str = "sum_then_normalize"
    temperature: float = 1
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs files as a version of a distribution, before all others."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name, version, files):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(METADATA.format(name=name, version=version), "utf-8")
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")

    return install


def trl(beta="0.0", bias="True"):
    return {"trl/trainer/grpo_config.py": TRL.replace("BETA", beta).replace("BIAS", bias)}


def _run(capsys, *arguments):
    code = cli.main(["recipe", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_what_is_as_it_was_read(install, capsys):
    install("trl", "1.16.0", trl())
    found = recipes.installed("trl-grpo")
    assert (found.distribution, found.version) == ("trl", "1.16.0")
    assert found.preset.title == "trl-grpo >=1.10"
    assert {x.setting: x.installed for x in found.defaults} == {
        "use_bias_correction_kl": True,
        "scale_rewards": "group",
        "num_generations": 8,
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": None,
        "num_iterations": 1,
        "loss_type": "dapo",
        "entropy_coef": 0,
        "importance_sampling_level": "token",
        "multi_objective_aggregation": "sum_then_normalize",
        "sync_ref_model": False,
        "temperature": 1,
    }
    assert found.differences == ()
    code, out, err = _run(capsys, "trl-grpo", "--installed")
    assert (code, err) == (0, "")
    assert "All 13 defaults are as they were read." in out
    assert "≠" not in out
    assert "no_such_module" not in sys.modules
    assert "trl.trainer" not in sys.modules


def test_what_differs(install, capsys, tmp_path):
    install("trl", "1.99.0", trl(beta="0.01", bias="False"))
    record = tmp_path / "out.json"
    code, out, _ = _run(capsys, "trl-grpo", "--installed", "--json", record)
    assert code == 1
    flat = " ".join(out.split())
    assert "≠ use_bias_correction_kl estimator True False" in flat
    assert "≠ beta beta 0.0 0.01" in flat
    assert out.count("≠") == 2
    assert "2 of 13 defaults differ from what was read" in flat
    assert "Version 1.99.0 of trl-grpo was not read: the newest release that was is 1.16.0" in flat
    content = json.loads(record.read_text("utf-8"))
    assert (content["version"], content["versions"]) == ("1.99.0", ">=1.10")
    assert [x["setting"] for x in content["defaults"] if not x["same"]] == [
        "use_bias_correction_kl",
        "beta",
    ]
    assert "was not read" in content["caveat"]


def test_the_installed_version_chooses_the_preset(install):
    files = {"trl/trainer/grpo_config.py": TRL.replace("BETA", "0.0").replace("BIAS", "False")}
    install("trl", "1.9.2", files)
    assert recipes.installed("trl-grpo").preset.versions == ">=0.19, <=1.9.2"
    assert recipes.installed("trl-grpo").differences == ()
    newer = recipes.installed("trl-grpo==1.10")
    assert newer.preset.versions == ">=1.10"
    assert [x.setting for x in newer.differences] == ["use_bias_correction_kl"]


def test_one_of_several_defaults_that_were_read_is_no_difference(install):
    text = TRL.replace("BETA", "0.0").replace("    use_bias_correction_kl: bool = BIAS\n", "")
    install("trl", "0.19.0", {"trl/trainer/grpo_config.py": text.replace('"dapo"', '"bnpo"')})
    found = recipes.installed("trl-grpo")
    assert {x.setting: x.installed for x in found.defaults}["use_bias_correction_kl"] == "absent"
    assert found.differences == ()
    # None is not the word "none".
    assert not recipes.Default("a", None, "None", "none").same
    assert recipes.Default("a", None, "None", None).same


def test_a_key_that_is_gone_is_a_difference(install):
    text = trl()["trl/trainer/grpo_config.py"].replace("    epsilon:", "    eps:")
    install("trl", "1.16.0", {"trl/trainer/grpo_config.py": text})
    (gone,) = recipes.installed("trl-grpo").differences
    assert (gone.setting, gone.field, gone.installed) == ("epsilon", "clip", "absent")


def test_fields_lead_to_other_classes(install):
    text = """
class AlgorithmConfig(BaseConfig):
    advantage_estimator: str = "grpo"
    kl_estimator_type: str = "k3"
    use_kl_in_reward: bool = False
    use_kl_loss: bool = True
    kl_loss_coef: float = 0.002
    use_entropy_loss: bool = False
    entropy_loss_coef: float = 0.01
    loss_reduction: str = "token_mean"
    grpo_norm_by_std: bool = True
    zero_variance_filter: bool = False
    eps_clip_low: float = 0.2
    eps_clip_high: float = 0.2

class GeneratorConfig(BaseConfig):
    n_samples_per_prompt: int = 5

class TrainerConfig(BaseConfig):
    algorithm: "AlgorithmConfig" = field(default_factory=AlgorithmConfig)
    update_epochs_per_batch: int = 1

class SkyRLTrainConfig(BaseConfig):
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    generator: Optional[GeneratorConfig] = field(default_factory=GeneratorConfig)
"""
    install("skyrl", "0.4.0", {"skyrl/train/config/config.py": text})
    (found,) = recipes.installed("skyrl").differences
    assert (found.setting, found.installed) == ("trainer.algorithm.kl_loss_coef", 0.002)


def test_arguments_of_a_parser(install):
    text = """
import ray
def parse():
    parser.add_argument("--actor.eps_clip", type=float, default=0.2)
    parser.add_argument("--algo.kl.init-coef", type=float, default=0.01)
    parser.add_argument("--actor.loss_agg_mode", choices=["token-mean"], default="token-mean")
    parser.add_argument("--algo.kl.estimator", default="k3")
    parser.add_argument("--algo.kl.unbiased_gradient", action="store_true")
    parser.add_argument("--reward.clip_range", nargs=2, default=(-10, 10))
    parser.add_argument("--algo.advantage.estimator", default="gae")
    parser.add_argument("--algo.kl.use_loss", action="store_true", default=False)
"""
    install("openrlhf", "0.11.2", {"openrlhf/cli/train_ppo_ray.py": text})
    (found,) = recipes.installed("openrlhf").differences
    assert (found.setting, found.read, found.installed) == ("algo.kl.estimator", "k1", "k3")


YAML = """
rl:
  num_generations: 2
  num_iterations: 1
  grpo_beta: 8.0e-2
  grpo_epsilon: 2e-1
  loss_algo: 'grpo' # or gspo-token
  loss_agg_mode: 'token-mean'
"""


def test_yaml(install):
    pytest.importorskip("yaml")
    install("maxtext", "0.2.5", {"maxtext/configs/post_train/rl.yml": YAML})
    (found,) = recipes.installed("maxtext").differences
    assert (found.setting, found.installed) == ("rl.loss_agg_mode", "token-mean")


def test_yaml_without_what_reads_it(install, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yaml", None)
    install("maxtext", "0.2.5", {"maxtext/configs/post_train/rl.yml": YAML + "\n# another file\n"})
    code, out, err = _run(capsys, "maxtext", "--installed")
    assert (code, out) == (2, "")
    assert "rl.yml is YAML, which PyYAML reads: pip install pyyaml" in err
    assert err.count("\n") == 1


def test_an_editable_install(install, tmp_path, monkeypatch):
    install("trl", "1.16.0", {})
    elsewhere = tmp_path / "elsewhere"
    for name, text in (trl() | {"trl/__init__.py": "raise SystemExit"}).items():
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(elsewhere))
    assert recipes.installed("trl-grpo").differences == ()


def test_what_is_not_there_is_said_in_a_line(install, monkeypatch, capsys, tmp_path):
    install("trl", "1.16.0", {})
    install("verl", "0.9.1", {"verl/trainer/config/other.yaml": ""})
    recipes.preset("trl-grpo==1.16")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name, said in (
        ("skyrl", "skyrl is not installed: pip install --no-deps skyrl is enough"),
        ("oat", "oat-llm is not installed: pip install --no-deps oat-llm is enough"),
        ("trl-grpo", "trl 1.16.0 has no trl/trainer/grpo_config.py, where the defaults were read"),
        ("verl", "verl 0.9.1 has no verl/trainer/config/_generated_ppo_trainer.yaml, where"),
    ):
        code, out, err = _run(capsys, name, "--installed")
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("width", [40, 60, 100])
def test_the_page_fits(install, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    install("trl", "1.16.0", trl(beta="0.01"))
    _, out, _ = _run(capsys, "trl-grpo", "--installed")
    assert max(map(len, out.splitlines())) <= width


COMPARED = [entry for entry in recipes.presets() if entry.configuration]


@pytest.mark.parametrize("entry", COMPARED, ids=lambda entry: entry.title)
def test_every_preset_that_is_compared_says_what_each_default_was(entry):
    """A key that sets a choice has its default written down, where the recipe has other words."""
    numbers = (int, float, type(None))
    for field, key in entry.keys.items():
        if re.fullmatch(r"[\w.]+", key) and key not in entry.defaults:
            value = getattr(entry.recipe, field)
            assert isinstance(value, numbers) or field == "estimator", key


WORKFLOWS = pathlib.Path(__file__).parents[1] / ".github" / "workflows"


@pytest.fixture
def job():
    """The only job of the workflow."""
    yaml = pytest.importorskip("yaml")
    document = yaml.safe_load((WORKFLOWS / "trainers.yml").read_text(encoding="utf-8"))
    return document["jobs"]["defaults"]


def test_the_workflow_compares_every_preset_that_names_a_package(job):
    rows = job["strategy"]["matrix"]["include"]
    wanted = {}
    for entry in COMPARED:
        names = wanted.setdefault(entry.distribution, [])
        names += [entry.name] if entry.name not in names else []
    assert {row["distribution"]: row["presets"].split() for row in rows} == wanted
    pinned = (WORKFLOWS / "ci.yml").read_text(encoding="utf-8")
    assert all(f"uses: {step['uses']} #" in pinned for step in job["steps"] if "uses" in step)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(("differing", "code"), [("none", 0), ("two", 1)])
def test_the_workflow_ends_red_with_the_differences_in_its_summary(job, tmp_path, differing, code):
    script = job["steps"][-1]["run"]
    command = tmp_path / "kltarget"
    command.write_text(f'#!/bin/sh\necho "page of $*"\n[ "$2" != {differing} ]\n', "utf-8")
    command.chmod(0o755)
    summary = tmp_path / "summary.md"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, "PRESETS": "one two three", "GITHUB_STEP_SUMMARY": str(summary)}
    arguments = ["bash", "-e", "-c", script]
    ran = subprocess.run(arguments, env=env, cwd=tmp_path, capture_output=True, check=False)
    assert ran.returncode == code
    pages = [
        f"```text\npage of recipe {name} --installed\n```\n" for name in ("one", "two", "three")
    ]
    assert summary.read_text("utf-8") == "".join(pages)
