"""TRL's trainers with the log-probabilities of each answer in the table of completions."""

from __future__ import annotations

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from accelerate.utils import gather_object  # pyright: ignore[reportMissingImports]
from trl import GRPOTrainer, RLOOTrainer  # pyright: ignore[reportMissingImports]

from kltarget.adapters.trl._log_probs_of_batches import LogProbsOfBatches, summed


class LogProbs(LogProbsOfBatches):
    """Writes the log-probabilities of each answer into the table of completions of a TRL trainer.

    Two columns, ``logp`` under the policy that drew the answer and ``ref_logp`` under the
    reference: sums over the tokens of the answer that the trainer counts, the one that ends it
    among them, in nats and at the temperature of the rollouts; and the tokens with the reference's
    log-probability of each, ``token_ids`` and ``ref_token_logps``, on which the targets of a KL
    that acts token by token rest. With ``log_completions=True`` GRPO
    writes the table to ``completions/*.parquet``, of which :func:`kltarget.read_rollouts` then
    reads all that :func:`kltarget.diagnose` can use; RLOO writes no file, and its table is in W&B
    or trackio. Reward functions get the same two as arguments of these names, beside the columns
    of the data set.

    Put it before the trainer: ``class Mine(LogProbs, GRPOTrainer): pass``. GRPO asks the policy
    only where generation and optimization are out of step; elsewhere this costs one more forward
    pass. With ``beta = 0`` TRL holds no reference: there is no ``ref_logp``, and in GRPO ``logp``
    goes to the table alone, after the rewards.

    Raises:
        ImportError: a release of TRL that it was not tested with.
        ValueError: ``tools``, an ``environment_factory`` or a ``rollout_func``.

    An answer of which no token counts, as one that is cut off under
    ``mask_truncated_completions``, has NaN.
    """

    policy_always = every_token = True

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        if self.logps is None:
            values = self._scored(batch).tolist()
            self._logs["extra"]["logp"].extend(gather_object(values))
        return batch

    def _scored(self, batch: dict[str, Any]) -> Any:
        """Log-probabilities of a batch whose rewards needed no pass over it."""
        tokens, counted = batch["completion_ids"], batch["completion_mask"]
        ids = torch.cat([batch["prompt_ids"], tokens], dim=1)
        mask = torch.cat([batch["prompt_mask"], counted], dim=1)
        pictures = (
            "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask",
            "spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids",
            "image_position_ids",
        )  # fmt: skip
        options = {name: batch[name] for name in pictures if name in batch}
        with torch.no_grad():
            logps = self._get_per_token_logps_and_entropies(
                self.model, ids, mask, tokens.size(1), self.args.per_device_train_batch_size,
                **options,
            )[0]  # fmt: skip
        self._passes.clear()
        return summed(logps, counted)


class LogProbsGRPOTrainer(LogProbs, GRPOTrainer):
    """TRL's ``GRPOTrainer`` with :class:`LogProbs`."""


class LogProbsRLOOTrainer(LogProbs, RLOOTrainer):
    """TRL's ``RLOOTrainer`` with :class:`LogProbs`."""
