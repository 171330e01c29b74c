"""Real runs of TRL with MARA end where the closed form says, and those without where theirs does.

Run with ``pytest -m trainers``; each run takes seconds on one core.
"""

import importlib.metadata
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import kltarget as kt
from kltarget import adapters
from kltarget.adapters import trl as adapted

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("default")]

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")
tiny = pytest.importorskip("tiny_trl")

BETA, GROUP = 0.2, 8
TRAINERS = {
    ("rloo", True): adapted.MaraRLOOTrainer,
    ("rloo", False): trl.RLOOTrainer,
    ("grpo", True): adapted.MaraGRPOTrainer,
    ("grpo", False): trl.GRPOTrainer,
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
    config = trl.RLOOConfig if algorithm == "rloo" else trl.GRPOConfig
    return config(**(common | changes))


class Task:
    """Rewards and reference of all answers of some words, and how a run learns them.

    Args:
        reward: of all answers, the last word fastest.
        tables: log-probabilities of the next word by prefix.
        beta: of the KL.
        run: settings of the trainers.
    """

    def __init__(self, reward, tables, beta=BETA, **run):
        self.reward, self.tables = np.asarray(reward, np.float32), tables
        self.beta, self.run = beta, run
        self.right = self.reward == 1
        self.count = len(tables[()])
        self.length = round(math.log(len(reward)) / math.log(self.count))
        log_ref = tables[()]
        if self.length == 2:
            log_ref = (log_ref[:, None] + [tables[(a,)] for a in range(self.count)]).ravel()
        self.log_ref = np.asarray(log_ref, np.float32)


RIGHT_OR_WRONG = Task([1, 1, 0], {(): np.log([0.3, 0.02, 0.68])}, max_steps=200)
GRADED = Task(
    [1, 1, 0.9, 0.5, *[0] * 47],
    {(): np.log([0.3, 0.02, 0.1, 0.08, *[0.5 / 47] * 47])},
    max_steps=400,
)
# Models so small can jump onto wrong answers for good, where all rewards are equal, or drop one
# that nothing but its own samples brings back: small steps, and β not too small.
SLOWLY = {"beta": 0.5, "learning_rate": 3e-4, "per_device_train_batch_size": 512}
# Right are 00, 01 and 12, to which the reference gives 0.24, 0.06 and 0.016.
TWO_TOKENS = Task(
    [1, 1, 0, 0, 0, 1, 0, 0, 0],
    {
        (): np.log([0.3, 0.08, 0.62]),
        (0,): np.log([0.8, 0.2, 1e-6]) - np.log(1 + 1e-6),
        (1,): np.log([0.5, 0.3, 0.2]),
        (2,): np.log([0.2, 0.3, 0.5]),
    },
    max_steps=450,
    **SLOWLY,
)
# Right are 00, 01 and 11, as likely; but after 1 the second token is nearly sure.
SURE_SECOND_TOKEN = Task(
    [1, 1, 0, 0, 1, 0, 0, 0, 0],
    {
        (): np.log([0.3, 0.0163, 0.6837]),
        (0,): np.log([0.8, 0.2, 1e-6]) - np.log(1 + 1e-6),
        (1,): np.log([0.01, 0.98, 0.01]),
        (2,): np.log([0.2, 0.3, 0.5]),
    },
    max_steps=300,
    **SLOWLY,
)
TASKS = {
    ("right or wrong", "rloo"): RIGHT_OR_WRONG,
    ("right or wrong", "grpo"): RIGHT_OR_WRONG,
    ("graded", "rloo"): GRADED,
    ("graded", "grpo"): GRADED,
    ("two tokens", "rloo"): TWO_TOKENS,
    ("two tokens", "grpo"): SURE_SECOND_TOKEN,
}


def target_of(task, algorithm, mara):
    """What the recipe implies for the rewards that it is given: those of the table, or MARA's."""
    preset = f"trl-{algorithm}==1.16.0"
    recipe = kt.recipe(preset, beta=task.beta, group_size=GROUP, normalize="none")
    reward = task.reward
    if mara:
        # The β that acts is said here once more, by hand.
        acting = task.beta if algorithm == "rloo" else task.beta * GROUP / (GROUP - 1)
        table = kt.Objective(reward, task.log_ref, np.float32(acting))
        reward = np.asarray(kt.mara(table, 1.0).reward)
    space = kt.SequenceSpace(task.count, task.length) if task.length > 1 else None
    return np.asarray(kt.implied_target(recipe, reward, task.log_ref, space=space).probs)


def trained(folder, task, algorithm, mara):
    tiny.save_reference(folder / "model", task.tables)
    trainer = TRAINERS[algorithm, mara](
        model=str(folder / "model"),
        reward_funcs=tiny.judge(task.reward, task.length),
        args=settings(
            folder, algorithm, beta=task.beta, max_completion_length=task.length, **task.run
        ),
        train_dataset=tiny.prompts(64),
        **({"threshold": 1.0} if mara else {}),
    )
    log_ref = tiny.log_policy(trainer.model, task.count, task.length)
    np.testing.assert_allclose(log_ref, task.log_ref, atol=2e-3)
    trainer.train()
    return np.exp(tiny.log_policy(trainer.model, task.count, task.length))


@pytest.mark.filterwarnings("ignore:MaraGRPOTrainer:UserWarning")
@pytest.mark.parametrize("mara", [True, False], ids=["mara", "plain"])
@pytest.mark.parametrize(("name", "algorithm"), TASKS)
def test_a_run_ends_at_its_target(tmp_path, name, algorithm, mara):
    task = TASKS[name, algorithm]
    policy = trained(tmp_path, task, algorithm, mara)
    target = target_of(task, algorithm, mara)
    print(0.5 * np.abs(policy - target).sum(), policy[task.right], target[task.right])
    assert 0.5 * np.abs(policy - target).sum() < 0.03
    moved = 0.5 * np.abs(np.exp(task.log_ref) - target).sum()
    assert moved > 0.3
    kept, first = policy[task.right], np.exp(task.log_ref[task.right])
    if mara and (algorithm == "rloo" or task.length == 1):
        assert kept.max() / kept.min() < 1.15
    elif task.length == 1:
        assert kept[0] / kept[1] == pytest.approx(first[0] / first[1], rel=0.15)
    elif mara:
        # Each token on its own: all are kept, siblings equally.
        assert kept[0] / kept[1] == pytest.approx(1, rel=0.15)
        assert kept.min() > 0.2
    else:
        assert kept.argmin() == 2


def token_sums(trainer, completion_ids):
    """Log-probabilities of answers, one token after the other, each in a pass of its own."""
    sums = []
    trainer.model.eval()
    for ids in completion_ids:
        seen, total = [2], 0.0
        for token in ids:
            with torch.no_grad():
                logits = trainer.model(torch.tensor([seen])).logits[0, -1].double()
            total += float((logits / trainer.args.temperature).log_softmax(-1)[token])
            seen.append(token)
        sums.append(total)
    trainer.model.train()
    return sums


def with_endings():
    """Two words and an end that comes sooner or later: answers of one, two and three tokens."""
    return {(): np.log([0.5, 0.3]), (0,): np.log([0.4, 0.2]), (1,): np.log([0.25, 0.25])}


def few_steps(folder, trainer, algorithm, reward_funcs, **changes):
    """A trainer after two steps of small batches of answers of up to three tokens."""
    tiny.save_reference(folder / "model", with_endings(), end=-1.0)
    options = changes.pop("options", {})
    changes = {
        "max_completion_length": 3,
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        **changes,
    }
    made = trainer(
        model=str(folder / "model"),
        reward_funcs=reward_funcs,
        args=settings(folder, algorithm, **changes),
        train_dataset=tiny.prompts(16),
        **options,
    )
    made.train()
    return made


def on_one_of_two(folder):
    """What each of two processes does: three groups of answers, the second on both of them."""
    seen = []

    def reward(prompts, completion_ids, ref_logp, **_):
        rewards = [float(len(ids) > 1) for ids in completion_ids]
        seen.append((prompts, rewards, ref_logp))
        return rewards

    args = settings(
        folder,
        max_completion_length=3,
        max_steps=1,
        per_device_train_batch_size=12,
        logging_steps=1,
    )
    trainer = adapted.MaraRLOOTrainer(
        model=str(folder / "model"),
        reward_funcs=reward,
        args=args,
        train_dataset=tiny.prompts(3, ["w0", ":", "w1"]),
        threshold=1.0,
    )
    trainer.train()
    rank = trainer.accelerator.process_index
    (folder / f"{rank}.json").write_text(json.dumps([seen[0], trainer.state.log_history[0]]))


def test_processes_share_their_anchors(tmp_path):
    tiny.save_reference(tmp_path / "model", with_endings(), end=-1.0)
    (tmp_path / "each.py").write_text(
        f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
        "import pathlib, test_trainers_mara\n"
        f"test_trainers_mara.on_one_of_two(pathlib.Path({str(tmp_path)!r}))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*launch, str(tmp_path / "each.py")], check=True, timeout=300)
    ranks = [json.loads((tmp_path / f"{k}.json").read_text()) for k in (0, 1)]
    prompts, rewards, ref_logps = (ranks[0][0][k] + ranks[1][0][k] for k in range(3))
    assert len(rewards) == 24
    lifts = []
    for k in range(0, 24, GROUP):
        assert len(set(prompts[k : k + GROUP])) == 1
        group = slice(k, k + GROUP)
        lifts += lift_by_hand(rewards[group], ref_logps[group], BETA, 1.0)
    assert len(set(prompts)) == 3
    assert ranks[0][1]["rewards/mara/mean"] == pytest.approx(np.mean(lifts), abs=1e-5)
    assert np.mean(lifts) > 0


def length_reward(completion_ids, **_):
    return [len(ids) / 3 for ids in completion_ids]


@pytest.mark.parametrize("beta", [0.2, 0.0])
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_log_probs_are_sums_over_tokens(tmp_path, algorithm, beta):
    seen = []

    def reward(completion_ids, logp=None, ref_logp=None, **_):
        # Before the update: the model is still the one that drew these answers.
        seen.append((completion_ids, logp, ref_logp, token_sums(owner[0], completion_ids)))
        return length_reward(completion_ids)

    owner = []
    mixed_in = {"rloo": adapted.LogProbsRLOOTrainer, "grpo": adapted.LogProbsGRPOTrainer}

    def make(**arguments):
        owner.append(mixed_in[algorithm](**arguments))
        return owner[0]

    options = {"log_completions": True, "num_completions_to_print": 0, "temperature": 0.7}
    trainer = few_steps(tmp_path, make, algorithm, reward, beta=beta, **options)
    assert {len(ids) for answers, *_ in seen for ids in answers} == {1, 2, 3}
    logged = list(trainer._logs["extra"]["logp"])
    for step, (_, logp, ref_logp, by_tokens) in enumerate(seen):
        if logp is not None:
            np.testing.assert_allclose(logp, by_tokens, atol=1e-4)
        assert (logp is None) == (algorithm == "grpo" and beta == 0)
        assert (ref_logp is None) == (beta == 0)
        if beta and step == 0:
            np.testing.assert_allclose(ref_logp, by_tokens, atol=1e-4)
    np.testing.assert_allclose(logged, seen[-1][-1], atol=1e-4)
    if beta:
        assert np.max(np.abs(np.subtract(seen[-1][1], seen[-1][2]))) > 1e-3
    if algorithm == "rloo":
        return
    rollouts = kt.read_rollouts(tmp_path / "run" / "completions")
    last = rollouts[rollouts["step"] == 2]
    np.testing.assert_allclose(last["logp"], seen[-1][-1], atol=1e-4)
    np.testing.assert_allclose(last["reward"], length_reward(seen[-1][0]), rtol=1e-6)
    if beta:
        np.testing.assert_allclose(last["ref_logp"], seen[-1][2], atol=1e-6)


def test_completions_with_log_probs_prove_where_a_run_stands(tmp_path):
    options = {"log_completions": True, "num_completions_to_print": 0, "logging_steps": 1}
    judge = tiny.judge(RIGHT_OR_WRONG.reward, 1)
    tiny.save_reference(tmp_path / "model", RIGHT_OR_WRONG.tables)
    adapted.LogProbsGRPOTrainer(
        model=str(tmp_path / "model"),
        reward_funcs=judge,
        args=settings(tmp_path, "grpo", max_steps=4, **options),
        train_dataset=tiny.prompts(64),
    ).train()
    rollouts = kt.read_rollouts(tmp_path / "run" / "completions")
    recipe = kt.recipe("trl-grpo==1.16.0", beta=BETA, group_size=GROUP, normalize="none")
    report = kt.diagnose(rollouts, recipe)
    assert report.tier == 3
    # TRL's own words of the answers: one token each, with the reference's mass by hand.
    by_answer = rollouts.groupby("completion")["ref_logp"].first()
    for word, mass in zip(tiny.words(3), [0.3, 0.02, 0.68], strict=True):
        assert math.exp(by_answer[word]) == pytest.approx(mass, rel=1e-3)


def test_a_log_has_the_rewards_and_what_was_added(tmp_path):
    options = {"log_completions": True, "num_completions_to_print": 0, "logging_steps": 1}
    tiny.save_reference(tmp_path / "model", RIGHT_OR_WRONG.tables)
    both = type("Both", (adapted.LogProbs, adapted.MaraGRPOTrainer), {})
    both(
        model=str(tmp_path / "model"),
        reward_funcs=tiny.judge(RIGHT_OR_WRONG.reward, 1),
        args=settings(tmp_path, "grpo", max_steps=3, **options),
        train_dataset=tiny.prompts(64),
        threshold=1.0,
    ).train()
    folder = tmp_path / "run" / "completions"
    judged = kt.read_rollouts(folder, columns={"reward": "judged"})
    asked = kt.read_rollouts(folder)
    # By hand: β 8/7 log 15 more for the rare one of two right answers.
    for word, plain, lift in (("w0", 1, 0), ("w1", 1, 0.2 * 8 / 7 * math.log(15)), ("w2", 0, 0)):
        rewards = asked.loc[asked["completion"] == word, "reward"]
        np.testing.assert_allclose(rewards, plain + lift, rtol=1e-3)
        assert set(judged.loc[judged["completion"] == word, "reward"]) == {plain}
    # The advantages are those of the whole: the diagnosis finds no contradiction.
    recipe = kt.recipe("trl-grpo==1.16.0", beta=BETA, group_size=GROUP, normalize="none")
    assert any("advantages fit the recipe" in note for note in kt.diagnose(asked, recipe).notes)


def lift_by_hand(reward, ref_logp, acting, threshold):
    """The augmentation of answers to one prompt, from its definition."""
    good = [k for k, r in enumerate(reward) if r >= threshold]
    z = max(good, key=lambda k: (ref_logp[k], reward[k]), default=None)
    return [
        reward[z] + acting * (ref_logp[z] - p) - r if k in good else 0.0
        for k, (r, p) in enumerate(zip(reward, ref_logp, strict=True))
    ]


@pytest.mark.parametrize(("algorithm", "acting"), [("rloo", 0.2), ("grpo", 0.2 * 8 / 7)])
def test_the_augmentation_is_a_reward_of_its_own(tmp_path, algorithm, acting):
    """Several functions, weights, answers that none of them judges, and evaluation without it."""
    seen = []

    def first(completion_ids, ref_logp, **_):
        rewards = [None if ids[0] == 4 else float(len(ids) > 1) for ids in completion_ids]
        seen.append((completion_ids, rewards, ref_logp))
        return rewards

    def second(completion_ids, **_):
        return [None if ids[0] == 4 and len(ids) > 1 else 0.25 for ids in completion_ids]

    trainer = few_steps(
        tmp_path,
        adapted.MaraRLOOTrainer if algorithm == "rloo" else adapted.MaraGRPOTrainer,
        algorithm,
        [first, second],
        reward_weights=[2.0, 4.0],
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=16,
        options={"eval_dataset": tiny.prompts(2), "threshold": 1.0},
    )
    answers, firsts, ref_logps = seen[1]
    total = [
        2 * (a or 0) + (0 if ids[0] == 4 and len(ids) > 1 else 1.0)
        for ids, a in zip(answers, firsts, strict=True)
    ]
    judged = [not (ids[0] == 4 and len(ids) > 1) for ids in answers]
    assert 0 < sum(judged) < 16
    want = lift_by_hand(
        [t if j else -math.inf for t, j in zip(total, judged, strict=True)], ref_logps, acting, 1.0
    )
    logs = trainer.state.log_history
    training = next(x for x in logs if x.get("step") == 2 and "rewards/mara/mean" in x)
    lifts = [w for w, j in zip(want, judged, strict=True) if j]
    assert training["rewards/mara/mean"] == pytest.approx(np.mean(lifts), abs=1e-5)
    kept = [a for a in firsts if a is not None]
    assert training["rewards/first/mean"] == pytest.approx(np.mean(kept), abs=1e-6)
    whole = [t + w for t, w, j in zip(total, want, judged, strict=True) if j]
    assert training["reward"] == pytest.approx(np.mean(whole), abs=1e-5)
    evaluated = next(x for x in logs if "eval_reward" in x)
    assert evaluated["eval_rewards/mara/mean"] is None
    parts = 2 * evaluated["eval_rewards/first/mean"]
    assert evaluated["eval_reward"] <= parts + 1.0 + 1e-6
    assert trainer.args.reward_weights == [2.0, 4.0, 1.0]


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_answers_that_are_cut_off_and_masked_are_not_lifted(tmp_path, algorithm):
    seen = []

    def reward(completion_ids, ref_logp, **_):
        seen.append((completion_ids, ref_logp))
        return [1.0] * len(completion_ids)

    maker = adapted.MaraRLOOTrainer if algorithm == "rloo" else adapted.MaraGRPOTrainer
    trainer = few_steps(tmp_path, maker, algorithm, reward, mask_truncated_completions=True)
    cut = [[ids[-1] != 1 for ids in answers] for answers, _ in seen]
    assert 0 < sum(cut[0]) < 16
    for (_, ref_logp), is_cut in zip(seen, cut, strict=True):
        np.testing.assert_array_equal(np.isnan(ref_logp), is_cut)
    acting = BETA if algorithm == "rloo" else BETA * GROUP / (GROUP - 1)
    whole = [p for p, is_cut in zip(seen[0][1], cut[0], strict=True) if not is_cut]
    lifts = lift_by_hand([1.0] * len(whole), whole, acting, 1.0)
    logged = trainer.state.log_history[0]["rewards/mara/mean"]
    assert logged == pytest.approx(sum(lifts) / 16, abs=1e-5)


def test_the_best_so_far_is_remembered(tmp_path):
    """Once a right answer was seen, a batch of wrong ones has nothing to lift."""
    calls = []

    def reward(completion_ids, **_):
        calls.append(len(completion_ids))
        return [float(len(calls) == 1)] * len(completion_ids)

    trainer = few_steps(tmp_path, adapted.MaraRLOOTrainer, "rloo", reward)
    assert trainer.threshold == 1.0
    lifts = [x["rewards/mara/mean"] for x in trainer.state.log_history if "reward" in x]
    assert lifts[0] > 0
    assert lifts[1] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"num_iterations": 2},
        {"steps_per_generation": 2},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_several_updates_per_batch(tmp_path, algorithm, changes):
    seen = []

    def reward(completion_ids, ref_logp, logp, **_):
        seen.append((completion_ids, ref_logp, logp, token_sums(owner[0], completion_ids)))
        return length_reward(completion_ids)

    owner = []
    maker = adapted.MaraRLOOTrainer if algorithm == "rloo" else adapted.MaraGRPOTrainer
    both = type("Both", (adapted.LogProbs, maker), {})

    def make(**arguments):
        owner.append(both(**arguments))
        return owner[0]

    few_steps(tmp_path, make, algorithm, reward, max_steps=4, **changes)
    for answers, ref_logp, logp, by_tokens in seen:
        assert len(answers) == len(ref_logp)
        np.testing.assert_allclose(logp, by_tokens, atol=1e-4)
    np.testing.assert_allclose(seen[0][1], seen[0][3], atol=1e-4)


def test_an_adapter_is_turned_off_for_the_reference(tmp_path):
    peft = pytest.importorskip("peft")
    seen = []

    def reward(completion_ids, ref_logp, logp, **_):
        seen.append((ref_logp, logp))
        return length_reward(completion_ids)

    adapter = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = few_steps(
        tmp_path,
        adapted.MaraRLOOTrainer,
        "rloo",
        reward,
        learning_rate=0.1,
        options={"peft_config": adapter, "threshold": 1.0},
    )
    assert trainer.ref_model is None
    np.testing.assert_allclose(*seen[0], atol=1e-5)
    assert np.max(np.abs(np.subtract(*seen[1]))) > 1e-3


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        ("grpo", {"beta": 0.0}, "beta = 0: MARA acts through the KL.*set `beta`"),
        ("rloo", {"beta": 0.0}, "beta = 0: MARA acts through the KL.*set `beta`"),
        ("grpo", {"scale_rewards": "group"}, '`scale_rewards: "none"`; it is group-std.*σ'),
        ("grpo", {"scale_rewards": "batch"}, '`scale_rewards: "none"`; it is batch-std.*σ'),
        ("grpo", {"use_bias_correction_kl": False}, "use_bias_correction_kl.*over-corrects"),
        ("grpo", {"importance_sampling_level": "sequence"}, "`importance_sampling_level: token`"),
        ("grpo", {"multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize"),
        ("grpo", {"loss_type": "cispo", "epsilon_high": 5.0}, "loss_type = cispo"),
        ("grpo", {"top_entropy_quantile": 0.2}, "`top_entropy_quantile: 1.0`"),
        ("grpo", {"sync_ref_model": True}, "`sync_ref_model: false`"),
        ("rloo", {"sync_ref_model": True}, "`sync_ref_model: false`"),
        ("rloo", {"normalize_advantages": True}, "`normalize_advantages: false`"),
        ("rloo", {"reward_clip_range": (-1.0, 1.0)}, "unset `reward_clip_range`"),
    ],
)
def test_settings_that_defeat_it_are_refused(tmp_path, algorithm, changes, message):
    trainer = TRAINERS[algorithm, True]
    args = settings(tmp_path, algorithm, **changes)
    with pytest.raises(ValueError, match=message):
        trainer("no model", length_reward, args, train_dataset=tiny.prompts(8))


def test_arguments_that_it_cannot_do_with_are_refused(tmp_path):
    args = settings(tmp_path)
    for name in ("tools", "environment_factory", "rollout_func"):
        with pytest.raises(ValueError, match=f"MaraRLOOTrainer does not take {name}"):
            adapted.MaraRLOOTrainer("no model", length_reward, args, **{name: [print]})
    with pytest.raises(ValueError, match="MaraRLOOTrainer needs args"):
        adapted.MaraRLOOTrainer("no model", length_reward)
    # They would raise in the middle of a run, or never lift anything.
    for threshold in ("most", None, math.nan, math.inf):
        with pytest.raises(ValueError, match="threshold must be a reward or 'best', got"):
            adapted.MaraRLOOTrainer("no model", length_reward, args, threshold=threshold)


def test_the_kl_of_tokens_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="kept, but not equally; MaraRLOOTrainer"):
        few_steps(tmp_path, adapted.MaraGRPOTrainer, "grpo", length_reward)


def test_other_releases_of_trl_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.17.0")
    for trainer in (adapted.MaraRLOOTrainer, adapted.LogProbsRLOOTrainer):
        with pytest.raises(ImportError, match=r"trl 1.17.0 is installed.*pip install \"trl"):
            trainer("no model", length_reward, settings(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_tensors_stay_tensors(dtype):
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0, math.nan], dtype=dtype)
    ref_logps = torch.log(torch.tensor([0.3, 0.02, 0.68, 0.02, 0.1], dtype=dtype))
    got = adapters.mara_rewards(rewards, ref_logps, 0.1, 1.0, groups=torch.tensor([0, 0, 0, 1, 1]))
    assert got.dtype == dtype
    want = [1.0, 1.270805, 0.0, 1.0, math.nan]
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-6
    np.testing.assert_allclose(got.double().numpy(), want, rtol=tolerance)
    best = adapters.mara_rewards([[1, 1, 0, 1]], ref_logps[None, :4], 0.1, "best")
    np.testing.assert_allclose(best[0].double(), [1, 1.270805, 0, 1.270805], rtol=tolerance)
