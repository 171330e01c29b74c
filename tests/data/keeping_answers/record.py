"""Records how the shares of answers move in real runs of TRL, with MARA and without.

Run in this folder, with ``kltarget[trl]`` installed: ``python record.py``. It takes a minute.
"""

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
REFERENCE, REWARD = (0.3, 0.02, 0.68), (1.0, 1.0, 0.0)
BETA, STEPS, GROUP = 0.2, 150, 8
RUNS = (
    ("rloo", False),
    ("rloo", True),
    ("grpo", False),
    ("grpo", True),
)


def record(algorithm, mara, folder):
    """The shares of the three answers after every step of a run."""
    import tiny_trl
    import trl
    from transformers import TrainerCallback

    from kltarget.adapters import trl as adapted

    class Recorded(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            shares.append(np.exp(tiny_trl.log_policy(model, 3, 1)))
            model.train()

    shares = [np.array(REFERENCE)]
    name = {"rloo": "RLOO", "grpo": "GRPO"}[algorithm]
    made = getattr(adapted, f"Mara{name}Trainer") if mara else getattr(trl, f"{name}Trainer")
    scaled = {"scale_rewards": "none"} if algorithm == "grpo" else {}
    tiny_trl.save_reference(folder / "model", {(): np.log(REFERENCE)})
    made(
        model=str(folder / "model"),
        reward_funcs=tiny_trl.judge(REWARD, 1),
        args=getattr(trl, f"{name}Config")(
            output_dir=str(folder / "run"),
            beta=BETA,
            num_generations=GROUP,
            per_device_train_batch_size=256,
            max_completion_length=1,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            max_steps=STEPS,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **scaled,
        ),
        train_dataset=tiny_trl.prompts(64),
        callbacks=[Recorded()],
        **({"threshold": 1.0} if mara else {}),
    ).train()
    return shares


def main():
    sys.path.insert(0, str(HERE.parents[1]))
    with open(HERE / "shares.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("algorithm", "mara", "step", "likely", "rare", "wrong"))
        for algorithm, mara in RUNS:
            with tempfile.TemporaryDirectory() as folder:
                for step, shares in enumerate(record(algorithm, mara, Path(folder))):
                    rows.writerow((algorithm, mara, step, *(f"{x:.5g}" for x in shares)))


if __name__ == "__main__":
    main()
