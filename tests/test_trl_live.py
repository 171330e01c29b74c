"""TRL's own trainers with watched reward functions, on a tiny model."""

import importlib.util

import pytest
import tiny_llama

import kltarget as kt

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("default")]


def graded(completions, **kwargs):
    return [float("a" in x.split()) for x in completions]


async def short(completion_ids, **kwargs):
    return [0.1 * (len(x) < 4) for x in completion_ids]


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_a_run_shows_the_numbers_in_its_log(name, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from kltarget.adapters.trl import watch

    recipe = kt.recipe(f"trl-{name.lower()}")
    board = importlib.util.find_spec("tensorboard") is not None
    config = getattr(trl, f"{name}Config")(
        output_dir=str(tmp_path),
        beta=0.1,
        num_generations=4,
        max_completion_length=4,
        per_device_train_batch_size=8,
        max_steps=5,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        learning_rate=1e-3,
        report_to="tensorboard" if board else "none",
    )
    trainer = getattr(trl, f"{name}Trainer")(
        model=str(tiny_llama.saved(tmp_path / "base")),
        processing_class=tiny_llama.tokenizer(),
        reward_funcs=watch([graded, short], recipe, beta=0.1, group_size=4, alarm_window=2),
        args=config,
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a b ?", "c d ?"] * 8}),
    )
    trainer.train()
    logged = [x for x in trainer.state.log_history if "reward" in x]
    assert len(logged) == 5
    shown = {key for x in logged for key in x if key.startswith("kltarget/")}
    wanted = {"zero_std_groups", "effective_beta_p50", "pass@1", "pass@4", "missing_rewards"}
    assert {f"kltarget/{x}" for x in wanted} <= shown
    for entry in logged:
        assert entry["kltarget/missing_rewards"] == 0
        # TRL counts groups of equal rewards itself, RLOO after the KL was charged to them.
        if name == "GRPO":
            shown_share = entry["kltarget/zero_std_groups"]
            assert shown_share == pytest.approx(entry["frac_reward_zero_std"])
    assert {"rewards/graded/mean", "rewards/short/mean"} <= set(logged[0])
    if board:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (file,) = tmp_path.rglob("events.out.tfevents.*")
        events = EventAccumulator(str(file)).Reload()
        assert "train/kltarget/zero_std_groups" in events.Tags()["scalars"]
