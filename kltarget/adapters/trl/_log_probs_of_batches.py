"""Log-probabilities of whole answers, kept where TRL computes them and throws them away."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from packaging.specifiers import SpecifierSet

TESTED = SpecifierSet(">=1.16,<1.17")
"""The releases of TRL whose methods these classes override, as their tests do."""


def require_tested_trl() -> str:
    """The installed version of TRL, or an error where its methods were not read."""
    version = importlib.metadata.version("trl")
    if version not in TESTED:
        raise ImportError(
            f"trl {version} is installed: these trainers override private methods of trl {TESTED} "
            f'and were tested with no other; pip install "trl{TESTED}"'
        )
    return version


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One pass over the batch of a generation: what went in, and each token's log-probability."""

    model: Any
    ids: Any
    mask: Any
    num_tokens: int
    options: Mapping[str, Any]
    logps: Any

    @property
    def answers(self) -> Any:
        """The tokens of the answers."""
        return self.ids[:, -self.num_tokens :]

    @property
    def counted(self) -> Any:
        """Which tokens of the answers count."""
        return self.mask[:, -self.num_tokens :]


_Trainer: Any = object
"""One of TRL's, by the class that this one is mixed into."""


class LogProbsOfBatches(_Trainer):
    """What TRL's trainers are made to do: hand on the log-probabilities that they compute.

    Reward functions get them as ``ref_logp`` and ``logp``, one number for each answer, beside the
    columns of the data set; the table of completions gets two columns of the same names.
    """

    policy_always = False
    """Whether the policy is asked too where TRL does not."""

    every_token = False
    """Whether the table has the tokens too, with the reference's log-probability of each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_tools(kwargs)
        self.trl_version = require_tested_trl()
        self._passes: list[_Pass] = []
        self.ref_logps: Any = None
        self.logps: Any = None
        super().__init__(*args, **kwargs)

    def _refuse_tools(self, kwargs: Mapping[str, Any]) -> None:
        for name in ("tools", "environment_factory", "rollout_func"):
            if kwargs.get(name):
                raise ValueError(
                    f"{type(self).__name__} does not take {name}: what tools and environments "
                    "write is not the policy's, and cannot be told apart before the rewards"
                )

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Any,
        attention_mask: Any,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        result = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        # Those for the loss ask for entropies, and come after the rewards.
        if not torch.is_grad_enabled() and not kwargs.get("compute_entropy"):
            if self._passes and self._passes[0].ids is not input_ids:
                self._passes.clear()
            options = {**dict(zip(("batch_size",), args, strict=False)), **kwargs}
            self._passes.append(
                _Pass(model, input_ids, attention_mask, logits_to_keep, options, result[0])
            )
        return result

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Any:
        self.ref_logps, self.logps = self._whole_answers(len(prompts))
        columns = {"ref_logp": self.ref_logps, "logp": self.logps}
        columns = {name: x.tolist() for name, x in columns.items() if x is not None}
        for name, values in columns.items():
            self._log_completion_extra(name, values)
        rows = [dict(row) for row in inputs]
        for name, values in columns.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = value
        return super()._calculate_rewards(rows, prompts, completions, completion_ids_list)

    def _whole_answers(self, num_answers: int) -> tuple[Any, Any]:
        """Sums over the tokens of each answer: of the reference, of the policy."""
        passes, self._passes = self._passes, []
        if any(len(x.logps) != num_answers for x in passes):
            passes = []
        has_reference = self.beta != 0
        if has_reference and not passes:
            raise RuntimeError(
                f"trl {self.trl_version} computed no reference log-probabilities before the rewards"
            )
        reference = passes.pop() if has_reference else None
        if reference is not None and self.every_token:
            self._log_completion_extra("token_ids", _listed(reference.answers, reference.counted))
            self._log_completion_extra(
                "ref_token_logps", _listed(reference.logps.float(), reference.counted)
            )
        policy = passes[0] if passes else None
        if policy is None and reference is not None and self.policy_always:
            policy = self._asked_again(reference)
        return (
            None if reference is None else summed(reference.logps, reference.counted),
            None if policy is None else summed(policy.logps, policy.counted),
        )

    def _asked_again(self, other: _Pass) -> _Pass:
        """The policy's pass over what another pass was made over."""
        with torch.no_grad():
            result = super()._get_per_token_logps_and_entropies(
                self.model, other.ids, other.mask, other.num_tokens, **other.options
            )
        return dataclasses.replace(other, model=self.model, logps=result[0])


def summed(logps: Any, counted: Any) -> Any:
    """Sums over the tokens that the trainer counts; NaN for an answer of which it counts none."""
    total = (logps.float() * counted).sum(1)
    return torch.where(counted.sum(1) > 0, total, torch.full_like(total, torch.nan))


def _listed(rows: Any, counted: Any) -> list[list[Any]]:
    return [row[keep].tolist() for row, keep in zip(rows, counted.bool(), strict=True)]
