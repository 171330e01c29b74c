"""TRL's own trainers with watched reward functions, on a tiny model."""

import importlib.util

import numpy as np
import pandas as pd
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


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
@pytest.mark.parametrize("chat", [False, True])
def test_scored_completions_have_the_trainers_own_log_probabilities(name, chat, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from kltarget.adapters.lm import score_files

    base, own = tiny_llama.saved(tmp_path / "base", chat=chat), []

    class Trainer(getattr(trl, f"{name}Trainer")):
        def _generate_and_score_completions(self, inputs):
            found = super()._generate_and_score_completions(inputs)
            if "ref_per_token_logps" in found:
                own.extend(
                    (found["ref_per_token_logps"] * found["completion_mask"]).sum(1).tolist()
                )
            return found

        def _get_per_token_logps_and_entropies(self, model, ids, mask, *arguments, **options):
            made = super()._get_per_token_logps_and_entropies(
                model, ids, mask, *arguments, **options
            )
            # RLOO keeps its reference's to itself.
            if name == "RLOO" and model is self.ref_model:
                own.extend((made[0] * mask[:, -made[0].shape[1] :]).sum(1).tolist())
            return made

    def ends(prompts, completion_ids, log_extra, **kwargs):
        log_extra("completion_ids", completion_ids)
        return [float(len(x)) for x in completion_ids]

    prompts = ["a b ?", "c"]
    if chat:
        prompts = [[{"role": "user", "content": x}] for x in prompts]
    trainer = Trainer(
        model=str(base),
        reward_funcs=ends,
        args=getattr(trl, f"{name}Config")(
            output_dir=str(tmp_path / "run"),
            beta=0.1,
            num_generations=4,
            temperature=0.8,
            max_completion_length=6,
            per_device_train_batch_size=16,
            max_steps=3,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            learning_rate=1e-2,
            report_to="none",
            log_completions=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts * 24}),
    )
    trainer.train()
    assert len(own) == 48
    log = tmp_path / "completions.parquet"
    written = sorted((tmp_path / "run").rglob("completions_*.parquet"))
    if written:
        frame = pd.concat(map(pd.read_parquet, written), ignore_index=True)
    else:  # RLOO writes no file: this is what it would
        frame = pd.DataFrame({k: list(trainer._logs[k]) for k in ("prompt", "completion")})
        frame["completion_ids"] = list(trainer._logs["extra"]["completion_ids"])
    frame.to_parquet(log)
    out = tmp_path / "scored.parquet"
    notes = score_files(log, base, out, temperature=0.8)
    assert "completions by their logged tokens" in " ".join(notes)
    scored = pd.read_parquet(out)["ref_logp"].to_numpy()
    own = np.array(own)[-len(scored) :]
    np.testing.assert_allclose(scored, own, atol=1e-4)
    # From texts alone, where they have no special tokens, and it is known which were cut.
    plain = [all(x > 3 or (x == 1 and i == len(ids) - 1) for i, x in enumerate(ids))
             for ids in frame["completion_ids"]]  # fmt: skip
    assert sum(plain) > 0
    frame.drop(columns="completion_ids").to_parquet(log)
    score_files(log, base, out, temperature=0.8, max_completion_length=6)
    scored = pd.read_parquet(out)["ref_logp"].to_numpy()
    np.testing.assert_allclose(scored[plain], own[plain], atol=1e-4)
