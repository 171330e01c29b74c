"""Configuration files of trainers as recipes: what acts, what does nothing, what is refused."""

import json
import textwrap

import pytest

from kltarget import cli
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
    return {key.key: key.does for key in read}


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
    assert content["config"]["idle"][0]["key"] == "ref_model_sync_steps"


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
