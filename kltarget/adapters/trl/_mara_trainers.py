"""TRL's trainers with mode-anchored reward augmentation."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, Literal

import torch  # pyright: ignore[reportMissingImports]
from accelerate.utils import gather_object  # pyright: ignore[reportMissingImports]
from trl import GRPOTrainer, RLOOTrainer  # pyright: ignore[reportMissingImports]

from kltarget.adapters._mara_rewards import mara_rewards
from kltarget.adapters.trl._log_probs_of_batches import LogProbsOfBatches, require_tested_trl
from kltarget.adapters.trl._mara_settings import acting_beta, recipe_for_mara, threshold_of


class Mara(LogProbsOfBatches):
    """The part that both trainers have."""

    preset = ""
    """Which preset of ``kltarget.recipes`` reads the configuration."""

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        *others: Any,
        threshold: float | Literal["best"] = "best",
        **kwargs: Any,
    ) -> None:
        trainer = type(self).__name__
        if args is None or reward_funcs is None:
            missing = "args" if args is None else "reward_funcs"
            raise ValueError(f"{trainer} needs {missing}: it has no defaults of its own")
        self.threshold = threshold_of(threshold)
        self.recipe = recipe_for_mara(args.to_dict(), f"{self.preset}=={require_tested_trl()}")
        self.acting_beta = acting_beta(self.recipe)
        self._best_so_far = self.threshold == -math.inf
        if self.recipe.per_token and args.max_completion_length > 1:
            warnings.warn(
                f"{trainer}: the KL of GRPO acts token by token, so answers of several tokens are "
                "kept, but not equally; MaraRLOOTrainer keeps them equally",
                stacklevel=2,
            )
        funcs = list(reward_funcs) if isinstance(reward_funcs, list) else [reward_funcs]
        self._mara = _added_later
        if args.reward_weights is not None:
            args = copy.copy(args)
            args.reward_weights = [*args.reward_weights, 1.0]
        processing = kwargs.get("reward_processing_classes")
        if processing is not None:
            listed = processing if isinstance(processing, list) else [processing]
            kwargs["reward_processing_classes"] = [*listed, None]
        super().__init__(model, [*funcs, self._mara], args, *others, **kwargs)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Any:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if not self.model.training:
            return rewards
        column = self.reward_funcs.index(self._mara)
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        total[rewards.isnan().all(dim=1)] = torch.nan
        ref_logps = self.accelerator.gather(self.ref_logps)
        if self._best_so_far:
            usable = total[(total > -math.inf) & (ref_logps > -math.inf)]
            self.threshold = max([self.threshold, *usable.tolist()])
        if self.threshold == -math.inf:
            return rewards
        blocks = [repr(x) for x in gather_object(prompts)][:: self.num_generations]
        lifted = mara_rewards(
            total,
            ref_logps,
            self.acting_beta,
            self.threshold,
            groups=[x for x in blocks for _ in range(self.num_generations)],
        )
        rewards[:, column] = lifted - total
        return rewards


def _added_later(prompts: Any, **_: Any) -> list[None]:
    """The place of the augmentation among the rewards, which it needs all of."""
    return [None] * len(prompts)


_added_later.__name__ = "mara"


class MaraGRPOTrainer(Mara, GRPOTrainer):
    """TRL's ``GRPOTrainer`` with rewards that keep every right answer.

    Mode-anchored reward augmentation, :func:`kltarget.adapters.mara_rewards`, by the reference
    log-probabilities that TRL computes: whole answers, all those to a prompt in a batch, and the
    β that acts, ``β G/(G − 1)``. The augmentation is a reward of its own, ``mara``, of weight 1:
    the rewards that are logged under the names of your functions stay what they were, and their
    sum is what is trained on. Evaluation has no augmentation. ``ref_logp``, and ``logp`` where TRL
    computes it, are handed to reward functions and written beside the completions, as by
    :class:`LogProbs`, which can be put before this class to have both always.

    The KL of GRPO acts on each token on its own. Answers of one token end up equally likely;
    answers of several are kept, but by :func:`kltarget.implied_target` of ``recipe``, in which
    those whose later tokens the reference finds unlikely gain too much. ``MaraRLOOTrainer`` has no
    such limit.

    Args:
        model: as in TRL.
        reward_funcs: as in TRL.
        args: a ``GRPOConfig`` with ``beta`` above 0 and ``scale_rewards="none"``.
        others: as in TRL.
        threshold: the total reward from which on an answer is right, or ``"best"`` for the best
            one of the run so far. Until a right answer was seen, ``"best"`` takes the least bad for
            right: give the number if you know it.
        kwargs: as in TRL.

    Raises:
        ImportError: a release of TRL that it was not tested with.
        ValueError: a setting that keeps the augmentation from its target, such as
            ``scale_rewards="group"``, ``beta=0`` or ``use_bias_correction_kl=False``; the message
            says why and what to set.

    A reward that is None or NaN stays so.

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817, algorithm 1.
    """

    preset = "trl-grpo"


class MaraRLOOTrainer(Mara, RLOOTrainer):
    """TRL's ``RLOOTrainer`` with rewards that keep every right answer.

    As :class:`MaraGRPOTrainer`. RLOO charges its KL to whole answers and leaves each out of its
    own baseline: β acts as it is, and right answers of any length end up equally likely.

    Args:
        model: as in TRL.
        reward_funcs: as in TRL.
        args: an ``RLOOConfig`` with ``beta`` above 0.
        others: as in TRL.
        threshold: as in :class:`MaraGRPOTrainer`.
        kwargs: as in TRL.

    Raises:
        ImportError: a release of TRL that it was not tested with.
        ValueError: ``normalize_advantages=True``, a ``reward_clip_range``, ``sync_ref_model=True``
            or ``beta=0``.

    References:
        GX-Chen et al., "KL-Regularized Reinforcement Learning is Designed to Mode Collapse", 2025,
        arXiv 2510.20817, algorithm 1.
    """

    preset = "trl-rloo"
