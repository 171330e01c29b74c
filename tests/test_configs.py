"""Configuration files of trainers as recipes: what acts, what does nothing, what is refused."""

import dataclasses
import io
import json
import pathlib
import random
import sys
import textwrap
import tomllib

import pytest

from kltarget import cli, recipes
from kltarget.recipes import Recipe, from_config, recipe

VERL = """
#!/bin/bash
set -x
# the coefficient
export BETA=0.01
ALGO=(
    algorithm.adv_estimator=grpo  # groups
    algorithm.kl_ctrl.kl_coef=0.002
)
nvidia-smi | grep -c 'GPU "0"'
python3 -m verl.trainer.main_ppo ${ALGO[@]} \\
    data.train_files=$HOME/data/train.parquet \\
    actor_rollout_ref.actor.use_kl_loss=True \\
    actor_rollout_ref.actor.kl_loss_coef=$BETA \\
    actor_rollout_ref.actor.kl_loss_type="low_var_kl" \\
    +actor_rollout_ref.rollout.n=5 \\
    trainer.logger=['console','wandb']
ray stop --force
"""
TRL = """
model_name_or_path: some/model
num_generations: 16
beta: 1e-3
scale_rewards: batch
loss_type: dr_grpo
epsilon_high: 0.28
ref_model_sync_steps: 64
learning_rate: 1.0e-6
"""
OPENRLHF = """
deepspeed --module openrlhf.cli.train_ppo_ray \\
  --algo.kl.init_coef 1e-3 --algo.kl.estimator k3 --algo.kl.use_loss \\
  --algo.advantage.estimator group_norm \\
  --rollout.n_samples_per_prompt 8 --reward.clip_range -5 5 \\
  --actor.eps_clip_low_high 0.2 0.3
"""


def written(folder, name, text):
    path = folder / name
    path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return path


def keys(read):
    return {key.name: key.does for key in read}


def run(capsys, *arguments):
    code = cli.main(list(map(str, arguments)))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_command_line_of_verl(tmp_path):
    reading = from_config(written(tmp_path, "run.sh", VERL))
    assert reading.preset.name == "verl-grpo"
    assert reading.recipe == recipe("verl-grpo", beta=0.01, group_size=5)
    assert keys(reading.idle) == {
        "algorithm.kl_ctrl.kl_coef": "not read with algorithm.use_kl_in_reward = false"
    }
    assert reading.unknown == ("data.train_files", "trainer.logger")
    assert keys(reading.acting)["actor_rollout_ref.actor.kl_loss_coef"] == "beta = 0.01"
    assert reading.not_given == ()


KL_REWARD = {"algorithm.adv_estimator": "grpo", "algorithm.use_kl_in_reward": True}
KL_LOSS = {"algorithm.adv_estimator": "grpo", "actor_rollout_ref.actor.use_kl_loss": True}
LOSS_TYPE = "actor_rollout_ref.actor.kl_loss_type"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"actor_rollout_ref.rollout.n": 4}, recipe("verl")),
        (KL_REWARD | {"algorithm.kl_ctrl.kl_coef": 0.005}, recipe("verl-kl-in-reward", beta=0.005)),
        (
            KL_LOSS | {"algorithm.norm_adv_by_std_in_grpo": False},
            recipe("verl-grpo", normalize="none"),
        ),
        (KL_LOSS | {LOSS_TYPE: "low_var_kl+"}, recipe("verl-grpo", estimator="k2")),
        (KL_LOSS | {LOSS_TYPE: "kl"}, recipe("verl-grpo", estimator="k1")),
        ({"algorithm.adv_estimator": "grpo"}, recipe("verl-grpo", place="none", beta=0.0)),
        (
            {"algorithm.adv_estimator": "rloo", "algorithm.use_kl_in_reward": "True"},
            recipe("verl-rloo"),
        ),
        (
            KL_LOSS | {"actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean"},
            recipe("verl-grpo", length="mean"),
        ),
    ],
)
def test_combinations_of_verl(config, expected):
    assert from_config(config, trainer="verl").recipe == expected


def test_nested_and_dotted_keys_are_the_same():
    nested = {"actor_rollout_ref": {"actor": {"use_kl_loss": True, "kl_loss_coef": 0.1}}}
    dotted = {
        f"actor_rollout_ref.actor.{k}": v for k, v in nested["actor_rollout_ref"]["actor"].items()
    }
    assert from_config(nested).recipe == from_config(dotted).recipe


def test_yaml_of_trl(tmp_path):
    path = written(tmp_path, "grpo.yaml", TRL)
    reading = from_config(path, trainer="trl-grpo==1.9.2")
    changes = {"beta": 1e-3, "group_size": 16, "normalize": "batch-std", "length": "sum"}
    assert reading.recipe == recipe("trl-grpo==1.9.2", clip_high=0.28, **changes)
    assert from_config(path).recipe == recipe("trl-grpo", clip_high=0.28, **changes)
    assert keys(reading.idle) == {"ref_model_sync_steps": "not read with sync_ref_model = false"}
    assert reading.unknown == ("model_name_or_path", "learning_rate")


def test_json_of_training_arguments(tmp_path):
    arguments = {"beta": 0.04, "use_bias_correction_kl": False, "num_iterations": 2, "delta": None}
    path = written(tmp_path, "training_args.json", json.dumps(arguments))
    expected = recipe("trl-grpo", beta=0.04, estimator="k3", updates_per_batch=2)
    assert from_config(path).recipe == expected
    assert from_config(arguments).recipe == expected


def test_a_default_of_zero_leaves_keys_idle():
    config = {"use_bias_correction_kl": True, "num_generations": 4}
    assert keys(from_config(config).idle) == {"use_bias_correction_kl": "not read with beta = 0.0"}
    with_beta = from_config(config | {"beta": 0.1, "use_bias_correction_kl": False})
    assert (with_beta.recipe.estimator, with_beta.idle) == ("k3", ())


def test_keys_that_a_version_did_not_have_yet():
    config = {"use_bias_correction_kl": True, "loss_type": "dr_grpo", "beta": 0.1}
    for version, idle in [
        ("0.15.2", {"use_bias_correction_kl", "loss_type"}),
        ("0.18.2", {"use_bias_correction_kl"}),
        ("1.9.2", set()),
    ]:
        reading = from_config(config, trainer=f"trl-grpo=={version}")
        assert {key.name for key in reading.idle} == idle
        length = {} if "loss_type" in idle else {"length": "sum"}
        estimator = {} if idle else {"estimator": "weighted-k3"}
        assert reading.recipe == recipe(f"trl-grpo=={version}", beta=0.1, **length, **estimator)
    assert reading.preset == recipes.preset("trl-grpo==1.9.2")


def test_rloo_is_told_from_grpo():
    config = {"beta": 0.1, "normalize_advantages": True, "reward_clip_range": [-2, 3]}
    config |= {"scale_rewards": "none"}
    reading = from_config(config)
    expected = {"beta": 0.1, "normalize": "batch-std", "reward_clip_low": -2.0, "reward_clip": 3.0}
    assert reading.recipe == recipe("trl-rloo", **expected)
    assert keys(reading.idle) == {"scale_rewards": "not read by RLOO, only by GRPO"}


def test_command_line_of_openrlhf(tmp_path):
    reading = from_config(written(tmp_path, "train.sh", OPENRLHF))
    changes = {"place": "loss", "estimator": "k3", "beta": 1e-3, "group_size": 8, "clip_high": 0.3}
    assert reading.recipe == recipe("openrlhf-group-norm", **changes)
    assert keys(reading.acting)["--reward.clip_range"] == "no field of the recipe"
    assert any("reward.clip_range" in note for note in reading.notes)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--init_kl_coef 0.02", recipe("openrlhf", beta=0.02)),
        (
            "--algo.kl.init_coef 0.1 --algo.kl.use_loss --algo.kl.unbiased_gradient",
            recipe("openrlhf", beta=0.1, place="loss", estimator="k2", kl_clip=None),
        ),
        (
            "--init_kl_coef=0 --advantage_estimator rloo --n-samples-per-prompt 4",
            recipe("openrlhf-rloo", beta=0.0, group_size=4),
        ),
        (
            "--algo.kl.init_coef 0.1 --algo.advantage.no_std_norm --reward.clip_range -1 2",
            recipe("openrlhf", beta=0.1, normalize="none", reward_clip_low=-1.0, reward_clip=2.0),
        ),
    ],
)
def test_combinations_of_openrlhf(tmp_path, flags, expected):
    path = written(tmp_path, "train.sh", f"python -m openrlhf.cli.train_ppo_ray {flags}\n")
    assert from_config(path).recipe == expected


def test_a_preset_that_is_said_is_the_whole_combination(tmp_path):
    flags = "--critic_type grpo --num_samples 8"
    path = written(tmp_path, "oat.sh", f"python -m oat.experiment.run_math_rl {flags}\n")
    assert from_config(path).recipe == recipe("oat-grpo", group_size=8)
    assert from_config(path, trainer="oat-grpo").recipe == recipe("oat-grpo", group_size=8)
    config = {"actor_rollout_ref.actor.kl_loss_coef": 0.1}
    assert from_config(config).recipe == recipe("verl")
    said = from_config(config, trainer="verl-grpo")
    assert said.recipe == recipe("verl-grpo", beta=0.1)
    assert said.idle == ()


def test_files_overrides_and_references(tmp_path):
    base = """
        algorithm: {adv_estimator: grpo, kl_ctrl: {kl_coef: 0.5}}
        actor_rollout_ref:
          actor: {use_kl_loss: true, kl_loss_coef: "${algorithm.kl_ctrl.kl_coef}"}
          rollout: {n: 4}
    """
    run_of = """
        defaults: [base, other_file, _self_]
        actor_rollout_ref: {rollout: {n: 6}, actor: {clip_ratio_high: "${oc.env:CLIP}"}}
    """
    paths = [written(tmp_path, "base.yaml", base), written(tmp_path, "run.yaml", run_of)]
    reading = from_config(paths)
    assert reading.recipe == recipe("verl-grpo", beta=0.5, group_size=6)
    assert [x.split()[0].rstrip(",") for x in reading.not_given] == [
        "actor_rollout_ref.actor.clip_ratio_high",
        "other_file",
    ]
    overrides = ["algorithm.kl_ctrl.kl_coef=0.25", "~actor_rollout_ref.rollout.n"]
    assert from_config(paths, overrides=overrides).recipe == recipe("verl-grpo", beta=0.25)


SCRIPT = r"""
beta=${1:-0.5}
for n in 2 4; do
  x=$n
done
cat <<'END' > notes.txt
trl grpo --beta 9 "not closed
END
COMMON="--scale_rewards none --loss_type grpo"
COMMON+=" --epsilon 0.1"
if [ -z "$X" ]; then
  delta=3; fi
CUDA_VISIBLE_DEVICES=0 trl grpo --beta=$beta --num_generations $x $COMMON --delta ${delta} \
  --config other.yaml `date` "$@" > log.txt 2>&1 &
"""


def test_a_script_is_taken_apart_as_a_shell_would(tmp_path):
    reading = from_config(written(tmp_path, "run.sh", SCRIPT), trainer="trl-grpo")
    assert reading.recipe == recipe("trl-grpo", beta=0.5, normalize="none", length="mean", clip=0.1)
    assert [text.split()[0].rstrip(",") for text in reading.not_given] == [
        *("--num_generations", "--delta", "other.yaml", "$@"),
    ]


PYTHON = """
import os
from trl import GRPOConfig, GRPOTrainer
BETA = 0.04
if os.environ.get("LONG"):
    generations = 16
generations = 8
os.system("touch made")
training_args = GRPOConfig(
    output_dir="out", beta=BETA, num_generations=generations, epsilon_high=0.2 + 0.08,
    scale_rewards=False, loss_type="dr_grpo", **extra,
)
"""


def test_a_python_script_is_read_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reading = from_config(written(tmp_path, "train.py", PYTHON))
    fields = {"beta": 0.04, "normalize": "none", "length": "sum"}
    assert reading.recipe == recipe("trl-grpo", **fields)
    assert [text.split(":")[0] for text in reading.not_given] == [
        *("num_generations = $generations", "epsilon_high = $0.2 + 0.08"),
    ]
    with_unsloth = f"from unsloth import FastLanguageModel\n{PYTHON}"
    reading = from_config(written(tmp_path, "train.py", with_unsloth))
    assert reading.recipe == recipe("unsloth-grpo", **fields)
    rloo = written(tmp_path, "rloo.py", "import trl\nx = trl.RLOOConfig(num_generations=4)")
    assert from_config(rloo).recipe == recipe("trl-rloo", group_size=4)
    assert not (tmp_path / "made").exists()


def test_a_misspelt_key_is_noticed():
    config = {"algorithm.adv_estimator": "grpo", "actor_rollout_ref.actor.kl_los_coef": 0.1}
    unknown = from_config(config).unknown
    assert unknown == (
        "actor_rollout_ref.actor.kl_los_coef (did you mean actor_rollout_ref.actor.kl_loss_coef?)",
    )


def test_page_of_a_configuration(capsys, tmp_path):
    code, out, err = run(capsys, "recipe", "--config", written(tmp_path, "run.sh", VERL))
    assert (code, err) == (0, "")
    assert "read as verl-grpo (verl, GRPO with the KL in the loss)" in out
    assert "Does nothing here\n- algorithm.kl_ctrl.kl_coef = 0.002: not read with" in out
    assert "verl-grpo: verl, GRPO with the KL in the loss\n" in out
    assert max(map(len, out.partition("\nfield")[0].splitlines())) <= 96


def test_json_of_a_configuration(capsys, tmp_path):
    path = written(tmp_path, "grpo.yaml", TRL)
    code, out, _ = run(capsys, "recipe", "--config", path, "beta=0.5", "--json", "-")
    content = json.loads(out)
    assert code == 0
    assert Recipe(**content["recipe"]) == from_config(path, overrides=["beta=0.5"]).recipe
    assert content["recipe"]["beta"] == 0.5
    assert content["config"]["files"] == [str(path)]
    assert content["config"]["idle"][0]["name"] == "ref_model_sync_steps"


@pytest.mark.parametrize(
    ("text", "preset", "beta"),
    [
        (VERL, "verl-grpo", 0.01),
        (VERL.replace("#!/bin/bash\n", ""), "verl-grpo", 0.01),
        (TRL, "trl-grpo", 1e-3),
        ('{"beta": 0.3, "use_bias_correction_kl": true}', "trl-grpo", 0.3),
        ("from trl import GRPOConfig\nx: GRPOConfig = GRPOConfig(beta=0.2)\n", "trl-grpo", 0.2),
        ("beta = 0.4\nuse_bias_correction_kl = false\n", "trl-grpo", 0.4),
    ],
)
def test_a_configuration_from_standard_input(capsys, monkeypatch, text, preset, beta):
    def given(text):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    given(text)
    code, out, _ = run(capsys, "recipe", "--config", "-", "--json", "-")
    content = json.loads(out)
    assert (code, content["name"], content["recipe"]["beta"]) == (0, preset, beta)
    assert content["config"]["files"] == ["standard input"]
    given("")
    assert run(capsys, "recipe", "--config", "-") == (2, "", "kltarget: standard input is empty\n")


def test_an_error_in_standard_input_names_it(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"beta: [1, 2\nlr: 3")))
    code, out, err = run(capsys, "recipe", "--config", "-")
    assert (code, out) == (2, "")
    assert err.startswith("kltarget: standard input: line 2: did not find expected")


def test_two_configurations_side_by_side(capsys, tmp_path):
    first = written(tmp_path, "a.yaml", TRL)
    second = written(tmp_path, "b.yaml", TRL.replace("batch", "none"))
    expected = run(capsys, "recipe", "--config", first, "--compare", second)
    assert expected[0] == 0
    assert "≠ normalize" in expected[1]
    assert "≠ beta" not in expected[1]
    assert "ame YAML" not in expected[1]
    assert run(capsys, "recipe", "--compare", first, second) == expected
    assert run(capsys, "recipe", "--config", first, "--compare", "trl-rloo")[0] == 0


@pytest.mark.parametrize(
    "option", ["--compare", pytest.param("--same-target-as", marks=pytest.mark.broad)]
)
def test_what_no_file_says_is_said_beside_a_comparison(capsys, tmp_path, option):
    path = written(tmp_path, "a.yaml", f"{TRL}temperature: $T\n")
    code, out, err = run(capsys, "recipe", "--config", path, option, "trl-rloo")
    assert code == 0
    assert "trl-rloo" in out
    assert err.startswith("kltarget: note: temperature = $T: nothing given says what that is")


def test_same_target_as_another_configuration(capsys, tmp_path):
    # The group's mean shortens the reward by (G − 1)/G, so β G/(G − 1) is what is equal.
    base = "scale_rewards: none\nuse_bias_correction_kl: true\n"
    first = written(tmp_path, "a.yaml", f"{base}num_generations: 4\n")
    second = written(tmp_path, "b.yaml", f"{base}num_generations: 16\nbeta: 0.2\n")
    code, out, _ = run(
        *(capsys, "recipe", "--config", first, "--same-target-as", second, "--json", "-")
    )
    assert code == 0
    found = json.loads(out)["same_target"]
    assert set(found) == {"0.1", "0.3", "0.5"}
    for beta in found.values():
        assert beta == pytest.approx(0.2 * (16 / 15) / (4 / 3), rel=1e-4)
    code, out, _ = run(capsys, "recipe", "--config", first, "--same-target-as", second)
    assert code == 0
    assert "0.16" in out


@pytest.mark.broad
def test_a_run_is_diagnosed_by_its_configuration(capsys, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("prompt,completion,reward\np,a,1\np,a,1\np,b,0\np,c,1\n", encoding="utf-8")
    config = written(tmp_path, "grpo.yaml", TRL)
    options = ("--group-size", "4", "--json", "-")
    as_given = ("--config", config, "scale_rewards=none", "delta=$DELTA")
    code, out, err = run(capsys, "diagnose", log, *options, *as_given)
    assert code == 0
    assert err.startswith("kltarget: note: delta = $DELTA: nothing given says what that is")
    found = json.loads(out)["recipe"]
    expected = from_config(config, overrides=["scale_rewards=none"]).recipe
    assert (found["estimator"], found["normalize"]) == (expected.estimator, "none")
    assert found["beta"] == 1e-3
    by_name = ("--trainer", "trl-grpo==1.9.2", "--recipe", "normalize=none", "--beta", "0.3")
    _, out, _ = run(capsys, "diagnose", log, *options, "--config", config, *by_name)
    assert json.loads(out)["recipe"]["estimator"] == "k3"
    assert json.loads(out)["recipe"]["beta"] == 0.3
    code, out, err = run(capsys, "diagnose", log, "--config", tmp_path / "no.yaml")
    assert (code, out) == (2, "")
    assert "no.yaml: cannot be read: No such file or directory" in err


NEMO = """
defaults: grpo_math_1B.yaml
grpo: {num_generations_per_prompt: 8, normalize_rewards: true, use_leave_one_out_baseline: false}
loss_fn:
  reference_policy_kl_penalty: 0.05
  reference_policy_kl_type: "k1"
  ratio_clip_max: 0.28
  kl_input_clamp_value: null
  token_level_loss: false
policy: {model_name: some/model, tokenizer: {name: "${policy.model_name}"}}
"""
SLIME = """
GRPO_ARGS=(
   --advantage-estimator grpo
   --use-kl-loss
   --kl-loss-coef 0.01   # reference
   --kl-loss-type low_var_kl
   --kl-coef 0.002
   --entropy-coef 0.00
   --eps-clip 0.2
   --eps-clip-high 0.28
)
ROLLOUT_ARGS=(--n-samples-per-prompt 8 --rollout-max-response-len 8192)
ray job submit --address="http://127.0.0.1:8265" --runtime-env-json='{"a": "b c"}' \\
   -- python3 train.py ${GRPO_ARGS[@]} ${ROLLOUT_ARGS[@]}
"""
SWIFT = """
NPROC_PER_NODE=8 swift rlhf \\
    --rlhf_type grpo --model some/model --advantage_estimator rloo \\
    --num_generations 16 --beta 0.02 --loss_type dapo --temperature 1.0
"""
AXOLOTL = """
base_model: some/model
rl: grpo
rl_beta: 0.1
trl: {num_generations: 4, scale_rewards: false, use_vllm: true, loss_type: dr_grpo}
"""
AREAL = """
gconfig: {n_samples: 4}
actor:
  kl_ctl: 0.02
  reward_scaling: 10.0
  eps_clip: 0.4
  reward_norm: {mean_level: group, std_level: group, group_size: "${gconfig.n_samples}"}
  adv_norm: {mean_level: batch, std_level: batch}
ref: {path: some/model}
"""
ROLL = """
adv_estimator: "grpo"
use_kl_loss: true
kl_loss_coef: 0.001
init_kl_coef: 0.0
num_return_sequences_in_group: 8
loss_agg_mode: "seq-mean-token-mean"
ppo_epochs: 1
"""
EASYR1 = """
algorithm: {adv_estimator: grpo, disable_kl: false, use_kl_loss: true, kl_penalty: low_var_kl,
            kl_coef: 1.0e-2}
worker: {actor: {global_batch_size: 128}, rollout: {n: 5, top_p: 0.99}}
"""
RLINF = """
algorithm: {adv_type: grpo, group_size: 16, kl_beta: 0.01, kl_penalty_type: low_var_kl,
            ratio_clip_eps: 0.2, loss_agg_func: token-mean, reinpp_kl_beta: 0.001}
actor: {training_backend: megatron}
"""
TUNIX = """
python3 -m tunix.cli.grpo_main base_config.yaml grpo_config.beta=0.02 \\
  grpo_config.num_generations=4 rollout_engine="vllm" ppo_config.beta=0.5
"""
MAXTEXT = """
rl: {num_generations: 8, grpo_beta: 0.03, grpo_epsilon: 0.1, loss_agg_mode: token-mean}
"""
OAT = """
python -m oat.experiment.run_math_rl --critic_type grpo --beta 0 --num_samples 8 \\
    --kl_penalty_coef 0.01 --cliprange 0.3
"""
SKYRL = """
uv run --isolated -m skyrl_train.entrypoints.main_base \\
  trainer.algorithm.advantage_estimator="grpo" trainer.algorithm.use_kl_loss=true \\
  trainer.algorithm.kl_loss_coef=0.01 trainer.algorithm.kl_estimator_type=k2 \\
  trainer.algorithm.entropy_loss_coef=0.1 generator.n_samples_per_prompt=8
"""
OPEN_INSTRUCT = """
uv run open_instruct/grpo_fast.py --beta 0.01 --num_samples_per_prompt_rollout 16 \\
  --kl_estimator 3 --advantage_normalization_type standard --verification_reward 1.0
"""
UNSLOTH = """
beta: 0.02
use_vllm: true
unsloth_num_chunks: -1
num_generations: 4
loss_type: dapo
"""
PRIME_RL = """
max_steps = 100
[orchestrator]
batch_size = 512
group_size = 16
[orchestrator.train.sampling]
temperature = 0.7
[trainer.loss]
kl_tau = 2e-3
ipo_threshold = 0.1
adv_tau = 2.0
"""
TINKER = """
python -m tinker_cookbook.recipes.math_rl.train model_name="some/model" group_size=16 \\
  groups_per_batch=64 learning_rate=1e-4 kl_penalty_coef=0.01 loss_fn=importance_sampling
"""
TRL_PPO = """
accelerate launch examples/scripts/ppo/ppo.py --kl_coef 0.1 --num_ppo_epochs 1 --beta 0.3 \\
  --kl_estimator k1 --cliprange 0.1 --total_episodes 10000 --missing_eos_penalty 1.0
"""
LLAMA_FACTORY = """
model_name_or_path: some/model
stage: ppo
finetuning_type: lora
ppo_target: 3.0
ppo_epochs: 2
pref_beta: 0.2
top_p: 0.9
"""
ART = """
{"kl_penalty_coef": 0.02, "kl_penalty_step_lag": 5, "scale_rewards": false, "epsilon": 0.1,
 "kl_penalty_source": "sample", "importance_sampling_level": "token"}
"""

TRAINERS = [
    (
        *("nemo.yaml", NEMO, "nemo-rl"),
        {"beta": 0.05, "group_size": 8, "estimator": "weighted-k1", "baseline": "mean"}
        | {"normalize": "group-std", "clip_high": 0.28, "log_ratio_clip": None, "length": "mean"},
        {},
    ),
    (
        *("slime.sh", SLIME, "slime"),
        {"beta": 0.01, "estimator": "k3", "kl_clip": 10.0, "group_size": 8, "clip_high": 0.28},
        {"--kl-coef": "not read with --advantage-estimator = grpo"},
    ),
    (
        *("miles.sh", SLIME.replace("train.py", "/opt/miles/train.py"), "miles"),
        {"beta": 0.01, "estimator": "k3", "kl_clip": 10.0, "group_size": 8, "clip_high": 0.28},
        {"--kl-coef": "not read with --advantage-estimator = grpo"},
    ),
    (
        *("swift.sh", SWIFT, "ms-swift-rloo"),
        {"beta": 0.02, "group_size": 16, "length": "batch-mean"},
        {},
    ),
    (
        *("axolotl.yml", AXOLOTL, "axolotl-grpo"),
        {"beta": 0.1, "group_size": 4, "normalize": "none", "length": "sum"},
        {},
    ),
    (
        *("unsloth.yaml", UNSLOTH, "unsloth-grpo"),
        {"beta": 0.02, "group_size": 4, "clip_high": 0.28},
        {},
    ),
    ("areal.yaml", AREAL, "areal-grpo", {"beta": 0.02}, {}),
    (
        *("roll.yaml", ROLL, "roll", {"beta": 0.001, "group_size": 8}),
        {"init_kl_coef": "not read with add_token_level_kl = false"},
    ),
    ("easyr1.yaml", EASYR1, "easyr1", {"clip_high": 0.3}, {}),
    (
        *("rlinf.yaml", RLINF, "rlinf", {"beta": 0.01, "group_size": 16}),
        {"algorithm.reinpp_kl_beta": "not read with …adv_type = grpo"},
    ),
    (
        *("tunix.sh", TUNIX, "tunix", {"beta": 0.02, "group_size": 4, "eos": "kept"}),
        {"ppo_config.beta": "not read by GRPO, only by PPO"},
    ),
    (
        *("rl.yml", MAXTEXT, "maxtext"),
        {"beta": 0.03, "group_size": 8, "clip": 0.1, "length": "batch-mean"},
        {},
    ),
    (
        *("oat.sh", OAT, "oat-grpo"),
        {"place": "reward", "estimator": "k1", "level": "sequence", "beta": 0.01}
        | {"group_size": 8, "clip": 0.3, "log_ratio_clip": None},
        {},
    ),
    (
        *("skyrl.sh", SKYRL, "skyrl", {"beta": 0.01, "group_size": 8, "estimator": "k2"}),
        {"trainer.algorithm.entropy_loss_coef": "not read with …use_entropy_loss = false"},
    ),
    (
        *("open.sh", OPEN_INSTRUCT, "open-instruct"),
        {"beta": 0.01, "group_size": 16, "estimator": "weighted-k1", "normalize": "group-std"}
        | {"epsilon": 1e-8, "reward_scale": 1.0},
        {},
    ),
    (
        *("rl.toml", PRIME_RL, "prime-rl"),
        {"beta": 4e-3, "group_size": 16, "temperature": 0.7, "reward_scale": 2.0},
        {"trainer.loss.ipo_threshold": "not read with …type = default"},
    ),
    ("tinker.sh", TINKER, "tinker-cookbook", {"beta": 0.01, "group_size": 16}, {}),
    (
        *("ppo.sh", TRL_PPO, "trl-ppo", {"beta": 0.1, "updates_per_batch": 1, "clip": 0.1}),
        {"--beta": "not read by PPO: its coefficient is kl_coef"},
    ),
    (
        *("ppo.yaml", LLAMA_FACTORY, "llamafactory-ppo"),
        {"kl_target": 3.0, "updates_per_batch": 2},
        {"pref_beta": "not read with stage = ppo"},
    ),
    (
        *("art.json", ART, "openpipe-art"),
        {"beta": 0.02, "reference": "lagged", "reference_every": 5, "normalize": "none"},
        {"epsilon": "not read with ppo = false"},
    ),
]


@pytest.mark.parametrize(
    ("name", "text", "preset", "fields", "idle"), TRAINERS, ids=[x[0] for x in TRAINERS]
)
def test_every_trainer_is_told_and_read(tmp_path, name, text, preset, fields, idle):
    path = written(tmp_path, name, text)
    reading = from_config(path)
    assert reading.preset.name == preset
    assert reading.recipe == recipe(preset, **fields)
    assert keys(reading.idle) == idle
    assert from_config(path, trainer=preset).recipe == reading.recipe


def bomb(levels=12):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels)]
    return "\n".join(lines)


def merge_bomb(levels=40):
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}" for k in range(1, levels)]
    return "\n".join(lines)


BAD = [
    ("bomb.yaml", bomb(), (), "entries once its aliases (*name) are written out"),
    ("merge.yaml", merge_bomb(), (), "entries once its aliases (*name) are written out"),
    ("loop.yaml", "a: &a [*a]", (), "*a stands inside itself: write it out"),
    ("deep.yaml", "[" * 200, (), "nested deeper than 60"),
    ("code.yaml", "a: !!python/object/apply:os.system [ls]", (), "line 1: could not determine a"),
    ("broken.yaml", "beta: [1, 2\nlr: 3", (), "line 2: did not find expected"),
    ("tab.yaml", "a:\n\tb: 1", (), "line 2: found character"),
    ("list.yaml", "- a\n- b", (), "holds a list and no keys: give a trainer's configuration"),
    ("empty.yaml", " \n", (), "the file is empty"),
    ("broken.json", '{"beta": 1,}', (), "broken JSON"),
    ("deep.json", '{"a":' * 50_000, (), "nested too deep"),
    ("broken.toml", "beta = = 1", (), "broken TOML"),
    ("large.yaml", "beta: 1\n" * 40_000, (), "more than 256 kB"),
    (
        "training_args.bin",
        "x",
        (),
        "a pickle can run anything when it is loaded, so",
    ),
    ("notes.md", "# beta", (), "of no kind that is read: give a .yaml, .json, .toml, .sh or .py"),
    ("broken.py", "GRPOConfig(", (), "line 1: broken Python: '(' was never closed"),
    ("deep.py", "x = " + "(" * 5000, (), "line 1: broken Python: too many nested parentheses"),
    ("unary.py", "x = " + "-" * 200_000 + "1", (), "nested too deep, or not Python"),
    ("none.py", "print(1)", (), "no call of GRPOConfig, RLOOConfig or PPOConfig is in it"),
    ("quote.sh", "trl grpo --beta '0.1\n", (), "line 1: a quote ' is not closed"),
    ("array.sh", "A=(--beta 1\ntrl grpo ${A[@]}\n", (), "line 1: the array is not closed: write )"),
    ("here.sh", "cat <<END\nx\n", (), "no line 'END' ends the text"),
    ("grow.sh", "A=xxxxxxxx\n" + 'A="$A$A$A$A"\n' * 30, (), "its variables grow without bound"),
    ("many.sh", f"A='{'x ' * 60_000}'\n" + "python a.py $A\n" * 50, (), "grow without bound"),
    ("twice.sh", f"A='{'x' * 9000}'\npython a.py {'$A' * 900}", (), "grow without bound"),
    ("none.sh", "ls\n", (), "no command line with --flag or key=value settings is in it"),
    (
        "other.yaml",
        "lr: 1",
        (),
        "its keys tell no trainer: say --trainer, one of",
    ),
    ("both.yaml", "beta: 1\nnum_generations: 8", (), "those of ms-swift or of "),
    ("verl.yaml", "actor_rollout_ref: {rollout: {n: 8}}", ("--trainer", "trl-grpo"), "is of verl"),
    ("some.sh", "python a.py --beta 1 --num_generations 8", (), "its keys tell no trainer: say"),
    (
        "over.yaml",
        "defaults: base.yaml\nlr: 1",
        (),
        "no trainer, and base.yaml, on which it builds,",
    ),
    ("ppo.yaml", NEMO + "ppo: {a: 1}", (), "the ppo: block is that of NeMo-RL's PPO"),
    ("agents.yaml", ROLL + "custom_envs: {a: 1}", (), "custom_envs: is of ROLL's agentic pipeline"),
    ("roll.yaml", ROLL, ("adv_estimator=gae",), "no preset of roll is known for"),
    (
        *("roll.yaml", ROLL, ("adv_estimator=reinforce", "norm_std_type=running")),
        "norm_std_type = running: a running deviation, which no field",
    ),
    ("lr.yaml", "lr: 1", ("--trainer", "verl"), "has no key of verl: give its configuration"),
    ("trl.yaml", TRL, ("--trainer", "trl-gpro"), "there is no trainer 'trl-gpro': did you mean"),
    ("trl.yaml", TRL, ("--trainer", "dr-grpo"), "configurations of dr-grpo are not read: choose"),
    ("trl.yaml", TRL, ("scale_rewards=x",), "scale_rewards = x is not known: group, true, batch"),
    ("trl.yaml", TRL, ("beta=-1",), "beta = -1: beta must be a number 0 or more, got -1.0"),
    ("trl.yaml", TRL, ("beta=abc",), "beta = abc is not a number"),
    ("trl.yaml", TRL, ("num_generations=2.5",), "num_generations = 2.5 is not a whole number"),
    ("trl.yaml", TRL, ("num_generations=1",), "num_generations = 1 compares each answer with none"),
    ("trl.yaml", TRL, ("beta=nan",), "beta = nan is not a number"),
    ("trl.yaml", TRL, ("beta=[1,2]",), "beta = ['1', '2'] is not a number"),
    ("trl.yaml", TRL, ("a b=1",), "'a b=1' is no override such as"),
    (
        *("verl.sh", VERL, ("algorithm.use_kl_in_reward=true",)),
        "use_kl_loss and use_kl_in_reward are both on",
    ),
    ("verl.sh", VERL, ("algorithm.adv_estimator=remax",), "no preset of verl is known for"),
    (
        "verl.sh",
        VERL,
        ("--trainer", "verl-rloo"),
        "adv_estimator = grpo is not verl-rloo: leave",
    ),
    (
        *("grpo.yaml", f"{TRL}multi_objective_aggregation: normalize_then_sum\n"),
        *(("reward_weights=[1,x]",), "reward_weights = ['1', 'x'] is not a number"),
    ),
    (
        *("swift.sh", SWIFT.replace("rloo", "grpo"), ("scale_rewards=gdpo",)),
        "scale_rewards = gdpo: combine='normalize-then-sum' normalises each of several rewards",
    ),
    ("trl.yaml", TRL, ("sync_ref_model=true", "ref_model_mixup_alpha=2"), "reference_share=2.0 is"),
    ("ppo.yaml", LLAMA_FACTORY, ("stage=dpo",), "kltarget recipe llamafactory-dpo tells what"),
    ("ppo.yaml", LLAMA_FACTORY, ("stage=kto",), "kltarget recipe llamafactory-kto tells what"),
    ("ppo.yaml", LLAMA_FACTORY.replace("stage: ppo", ""), (), "which has no reward and no KL"),
]


def test_roll_normalises_as_it_is_told_unless_it_is_grpo():
    config = {"use_kl_loss": True, "kl_loss_coef": 0.1, "add_token_level_kl": False}
    config |= {"norm_mean_type": "group", "adv_estimator": "reinforce"}
    expected = recipe("roll", beta=0.1, normalize="none")
    assert from_config(config).recipe == expected
    assert from_config(config | {"norm_std_type": "batch"}).recipe.normalize == "batch-std"
    reading = from_config(config | {"adv_estimator": "grpo", "norm_std_type": None})
    assert reading.recipe == recipe("roll", beta=0.1)
    assert {key.name for key in reading.idle} == {"norm_mean_type", "norm_std_type"}
    del config["norm_mean_type"]
    expected = recipe("roll", beta=0.1, normalize="none", baseline="none")
    assert from_config(config).recipe == expected


def test_discounts_and_algorithms_of_tinker_and_prime_rl():
    reading = from_config({"kl_penalty_coef": 0.1, "kl_discount_factor": 1, "group_size": 8})
    expected = recipe("tinker-cookbook", beta=0.1, group_size=8)
    changes = {"place": "reward", "estimator": "k1", "kl_centre": "batch-mean"}
    # The group's mean is taken off the reward before the KL is charged.
    changes |= {"normalize_when": "before", "charge": "onward"}
    assert reading.recipe == dataclasses.replace(expected, **changes)
    off = from_config({"kl_discount_factor": 0.5, "kl_penalty_coef": 0})
    assert off.recipe == recipe("tinker-cookbook")
    with pytest.raises(ValueError, match=r"is known for kl_discount_factor = 0\.5"):
        from_config({"kl_penalty_coef": 0.1, "kl_discount_factor": 0.5})
    maxrl = from_config({"orchestrator": {"algo": {"type": "max_rl"}, "group_size": 8}})
    assert maxrl.recipe == recipe("prime-rl", group_size=8, normalize="group-mean")
    for config, message in [
        ({"orchestrator": {"algo": {"type": "opd"}}}, "the target is the teacher"),
        ({"trainer": {"loss": {"type": "custom"}}}, "recipe --loss reads it"),
        ({"orchestrator": {"group_size": 1}}, "compares each answer with none"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_config(config)


FURTHER_FIELDS = [
    (
        {"beta": 0.1, "sync_ref_model": True, "use_bias_correction_kl": True},
        recipe("trl-grpo", beta=0.1),
        {"reference": "averaged", "reference_every": 512, "reference_share": 0.6},
    ),
    (
        {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 8, "temperature": 0.7}
        | {"use_bias_correction_kl": True, "ref_model_mixup_alpha": 1.0},
        recipe("trl-grpo", beta=0.1),
        {"reference": "averaged", "reference_every": 8, "reference_share": 1.0, "temperature": 0.7},
    ),
    (
        {"sync_ref_model": True, "ref_model_sync_steps": 8, "use_bias_correction_kl": True},
        recipe("trl-grpo"),
        {},
    ),
    (
        {"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 0.5},
        recipe("trl-grpo"),
        {"entropy_bonus": 0.01, "entropy_target": 0.5},
    ),
    (
        {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1, 0.5, 2]}
        | {"use_bias_correction_kl": True, "beta": 0.1},
        recipe("trl-gdpo", beta=0.1),
        {"reward_weights": (1.0, 0.5, 2.0)},
    ),
    (
        {"rl": "grpo", "rl_beta": 0.1, "trl": {"sync_ref_model": True, "num_generations": 8}},
        recipe("axolotl-grpo", beta=0.1, group_size=8),
        {"reference": "averaged", "reference_every": 64, "reference_share": 0.9},
    ),
    (
        KL_REWARD | {"algorithm.kl_ctrl": {"type": "adaptive"}, "actor_rollout_ref.rollout.n": 5},
        recipe("verl-kl-in-reward", group_size=5),
        {"kl_target": 0.1, "kl_target_per": "token"},
    ),
    (
        {"algorithm.use_kl_loss": False, "algorithm.kl_type": "adaptive"}
        | {"algorithm.kl_target": 0.02, "worker.rollout.n": 5},
        recipe("easyr1-kl-in-reward", group_size=5),
        {"kl_target": 0.02, "kl_target_per": "token"},
    ),
    (
        {"adv_estimator": "grpo", "use_kl_loss": True, "kl_loss_coef": 0.01}
        | {"whiten_advantages": True, "advantage_clip": 2.0, "add_token_level_kl": False},
        recipe("roll", beta=0.01),
        {"renormalize": "batch-std", "advantage_clip": 2.0},
    ),
    (
        {"adv_estimator": "grpo", "add_token_level_kl": True, "init_kl_coef": 0.1}
        | {"target_kl": 0.05, "advantage_clip": 2.0, "use_kl_loss": False},
        recipe("roll-kl-in-reward", beta=0.1),
        {"kl_target": 0.05, "kl_target_per": "token"},
    ),
    (
        {"algorithm": {"adv_type": "grpo", "normalize_advantages": True, "kl_beta": 0.1}}
        | {"actor.training_backend": "megatron"},
        recipe("rlinf", beta=0.1),
        {"renormalize": "batch-std"},
    ),
    (
        {"trainer.algorithm": {"advantage_estimator": "maxrl", "kl_loss_coef": 0.1}},
        recipe("skyrl", beta=0.1),
        {"normalize": "group-mean"},
    ),
    (
        {"actor.kl_ctl": 0.2, "actor.reward_norm": {"mean_level": None, "std_level": None}},
        recipe("areal", beta=0.2),
        {"reference": "none"},
    ),
]


@pytest.mark.parametrize(("config", "start", "fields"), FURTHER_FIELDS)
def test_references_controllers_and_second_normalisations(config, start, fields):
    assert from_config(config).recipe == dataclasses.replace(start, **fields)


def test_areal_without_a_reference_says_so(tmp_path):
    reading = from_config(written(tmp_path, "areal.yaml", AREAL.partition("ref:")[0]))
    assert reading.recipe == recipe("areal-grpo", beta=0.02, reference="none")
    assert any("an entropy bonus, and no reference" in note for note in reading.notes)
    default = from_config(written(tmp_path, "b.yaml", "actor: {reward_norm: {mean_level: group}}"))
    assert (default.recipe.reference, default.recipe.beta) == ("none", 0.1)


def test_ppo_of_trl_in_python(tmp_path):
    script = "from trl.experimental.ppo import PPOConfig\nx = PPOConfig(kl_coef=0.2, lam=0.9)\n"
    reading = from_config(written(tmp_path, "ppo.py", script))
    assert reading.recipe == recipe("trl-ppo", beta=0.2)
    assert keys(reading.acting)["lam"] == "no field of the recipe"


def test_a_script_that_calls_another(tmp_path):
    script = 'bash examples/run_gsm8k.sh trainer.algorithm.kl_loss_coef=0.1 "$@"\n'
    reading = from_config(written(tmp_path, "run.sh", script))
    assert reading.recipe == recipe("skyrl", beta=0.1)
    assert [text.split(",")[0] for text in reading.not_given] == ["examples/run_gsm8k.sh", "$@"]


def test_a_clip_of_zero_is_left_out():
    reading = from_config({"rl.grpo_beta": 0.1, "rl.grpo_epsilon": 0})
    assert reading.recipe == recipe("maxtext", beta=0.1)
    assert reading.notes == (
        "rl.grpo_epsilon = 0 clips every ratio, which no field says: left out.",
    )


@pytest.mark.parametrize(("name", "text", "options", "message"), BAD)
def test_a_bad_configuration_is_one_line(capsys, tmp_path, name, text, options, message):
    path = written(tmp_path, name, text)
    code, out, err = run(capsys, "recipe", "--config", path, *options)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert name in err or message.startswith(("there is no trainer", "configurations of", "'a b"))


def test_what_no_text_is_and_what_is_not_there(capsys, tmp_path):
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\xff\xfe")
    for path, message in [
        (tmp_path / "image.yaml", "not a text in UTF-8"),
        (tmp_path / "absent.yaml", "cannot be read: No such file or directory"),
        (tmp_path, "this is a folder: give the files in it"),
    ]:
        code, out, err = run(capsys, "recipe", "--config", path)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{path}: {message}" in err


def test_yaml_needs_pyyaml(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = written(tmp_path, "grpo.yaml", TRL)
    code, out, err = run(capsys, "recipe", "--config", path)
    assert (code, out) == (2, "")
    assert f'{path}: reading YAML needs PyYAML: pip install "kltarget[config]"' in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "beta=1"], "--config has no file, only key=value"),
        (["trl-grpo", "--trainer", "verl"], "--trainer says whose --config it is"),
        (["--list", "--config", "a.yaml"], "--list lists all trainers"),
        (["trl-rloo", "--compare", "verl", "--same-target-as", "verl"], "are two questions"),
        (["trl-rloo", "--same-target-as", "verl"], "verl has no KL, so no β gives a target"),
        (["tunix", "--same-target-as", "skyrl"], "tunix >=0.1.7 has a KL that holds nothing"),
        (["skyrl", "--same-target-as", "trl-grpo"], "trl-grpo >=1.10 has β = 0 and no target"),
        (["--same-target-as", "verl"], "--list lists all trainers: give a NAME or a --config"),
    ],
)
def test_options_that_do_not_go_together(capsys, arguments, message):
    code, out, err = run(capsys, "recipe", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


SEEDS = [(x[0], x[1]) for x in TRAINERS]
SEEDS += [("run.sh", VERL), ("a.yaml", TRL), ("b.sh", SCRIPT), ("c.py", PYTHON)]
PIECES = [*"\n\t '\"$(){}[]&*!:#=\\|<>-~`%@,0", "\x00", "é", "<<EOF\n", "${", "1e999", "&a *a"]


def mutated(text, chance):
    """The text with a few pieces put in, taken out, doubled or exchanged."""
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(text) + 1)
        end = min(len(text), at + chance.randint(0, 30))
        change = chance.choice(["insert", "delete", "double", "move"])
        middle = {"insert": chance.choice(PIECES), "delete": "", "double": text[at:end] * 2}
        if change == "move":
            to = chance.randrange(len(text) + 1)
            text = text[:to] + text[at:end] + text[to:]
        else:
            text = text[:at] + middle[change] + text[end if change != "insert" else at :]
    return text


@pytest.mark.parametrize("seed", range(10))
def test_mutated_configurations_are_read_or_refused_in_a_line(capsys, tmp_path, seed):
    chance = random.Random(seed)
    for number in range(40):
        name, text = chance.choice(SEEDS)
        path = tmp_path / f"{number}_{name}"
        path.write_text(mutated(text, chance), encoding="utf-8")
        code, out, err = run(capsys, "recipe", "--config", path)
        assert code in (0, 2), path.read_text(encoding="utf-8")
        assert (code == 0) == bool(out)
        assert err.count("\n") == (code == 2)


VALUES = ["", "0", "-1", "1", "3", "0.5", "1e400", "nan", "true", "False", "null", "[]", "[1]"]
VALUES += ["[-1,2]", "[2,1]", "none", "grpo", "k3", "$X", "${beta}", "k2+", "9" * 400, "é"]


@pytest.mark.parametrize("name", [x[0] for x in TRAINERS])
def test_any_value_of_any_key_is_read_or_refused(tmp_path, name):
    chance = random.Random(name)
    path = written(tmp_path, name, next(x[1] for x in TRAINERS if x[0] == name))
    reading = from_config(path)
    names = [key.name.removeprefix("--") for key in (*reading.acting, *reading.idle)]
    for _ in range(60):
        chosen = chance.sample(names, chance.randint(1, min(3, len(names))))
        overrides = [f"{key.replace('-', '_')}={chance.choice(VALUES)}" for key in chosen]
        refused = ""
        try:
            assert str(from_config(path, overrides=overrides))
        except ValueError as error:
            refused = str(error)
        assert "\n" not in refused


def test_nothing_in_a_script_is_run(tmp_path):
    made = tmp_path / "made"
    script = f"touch {made}\nX=$(touch {made})\ntrl grpo --beta `touch {made}` --delta $X\n"
    reading = from_config(written(tmp_path, "run.sh", script))
    assert not made.exists()
    assert reading.recipe == recipe("trl-grpo")
    assert len(reading.not_given) == 2


KEYS = sorted((pathlib.Path(recipes.__file__).parent / "configs" / "keys").glob("*.toml"))
OF_A_TABLE = {"name", "file", "read", "checked", "variant"}
OPTIONAL = {"kin", "marks", "hints", "commands", "default", "alias", "never", "key"}
OF_A_KEY = {"key", "field", "fields", "factor", "values", "when", "unless", "note"}
OF_A_KEY |= {"always", "clearing"}


@pytest.mark.parametrize("file", KEYS, ids=lambda file: file.stem)
def test_every_table_of_keys_says_what_it_should(file):
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    assert OF_A_TABLE <= set(table) <= OF_A_TABLE | OPTIONAL
    assert table["name"] == file.stem
    assert {"marks", "commands"} & set(table)
    entries = {entry.name: entry for entry in recipes.presets()}
    versions = {entry.versions for entry in recipes.presets()}
    fields = {field.name for field in dataclasses.fields(Recipe)}
    for variant in table["variant"]:
        assert set(variant) <= {"preset", "when", "unless", "recipe", "note", "refuse"}
        assert ("refuse" in variant) != ("preset" in variant)
        assert variant.get("preset", "verl") in entries
        assert set(variant.get("recipe", ())) <= fields
    for rule in table["key"]:
        assert set(rule) <= OF_A_KEY
        assert "key" in rule
        assert {rule.get("field", "beta"), *rule.get("fields", ())} <= fields
        for changes in rule.get("values", {}).values():
            assert set(changes) <= fields | {"note", "refuse"}
        named = rule.get("when", {}).get("_versions", [])
        assert {named} <= versions if isinstance(named, str) else set(named) <= versions
    texts = [x[k] for x in (*table["variant"], *table["key"]) for k in ("note",) if k in x]
    texts += [y["note"] for x in table["key"] for y in x.get("values", {}).values() if "note" in y]
    assert all(text.endswith(".") for text in texts)
    known = {rule["key"] for rule in table["key"]}
    assert set(table.get("alias", {}).values()) <= known | set(table.get("default", {}))
    assert not known & set(table.get("never", ()))


def test_every_preset_of_a_trainer_that_is_read_is_reached():
    tables = [tomllib.loads(file.read_text(encoding="utf-8")) for file in KEYS]
    reached = {x.get("preset") for table in tables for x in table["variant"]}
    unread = {"deepseek-r1", "deepseekmath", "dr-grpo", "easydel"}
    # No configuration says which release it is for.
    unread |= {"rlinf-fsdp"}
    unread |= {"torchforge", "torchtune-grpo", "trinity-rft"}
    assert {entry.name for entry in recipes.presets()} - reached == unread


def test_a_key_that_chooses_the_preset_says_so(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("reward_weights: [1.0, 0.5]\nmulti_objective_aggregation: normalize_then_sum\n")
    reading = from_config(file, trainer="trl-grpo")
    does = {key.name: key.does for key in reading.acting}
    assert does["multi_objective_aggregation"] == "the preset trl-gdpo"
    assert reading.recipe.reward_weights == (1.0, 0.5)
    assert not any(note.startswith("Without reward_weights") for note in reading.notes)
