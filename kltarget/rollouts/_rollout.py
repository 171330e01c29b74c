"""One completion as all formats are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping

import numpy as np

from kltarget._core.checks import ArgumentError

NAN = math.nan

# Log-probabilities of long completions are sums of rounded terms.
ROUNDING = 0.01


class RolloutError(ArgumentError):
    """A file of rollouts that cannot be read; the message is one line naming file and line."""

    __module__ = "kltarget.rollouts"


class BadRow(ValueError):
    """What is wrong with one row; becomes a ``RolloutError``, or the row is skipped."""


class UnusedRow(Exception):
    """Why a row, which is as it should be, is no rollout; it is counted and left out."""


@dataclasses.dataclass(slots=True)
class Rollout:
    """One completion of a prompt.

    Attributes:
        reward: none if the format has no rewards, NaN if this row has none.
        parts: the rewards of which ``reward`` is made, by name.
        group: what completions of one generation group share, besides the step.
        index: place in the file where groups are blocks, if it is not the row's.
        answer: the answer, if the file says it.
        answered: whether it does; otherwise the answer is to be found in the completion.
        session: what the outputs of one conversation share within a group.
        turn: place of an output in its session.
        padding: the number of tokens without a log-probability that were left out.
        tokens: the tokens of the completion, if they and the next are known, and it is not long.
        ref_token_logps: their log-probabilities by the reference.
    """

    prompt: str
    completion: str
    reward: float | None
    step: int | None = None
    ref_logp: float = NAN
    logp: float = NAN
    num_tokens: float = NAN
    advantage: float = NAN
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    group: Hashable = None
    index: int | None = None
    answer: str | None = None
    answered: bool = False
    session: Hashable = None
    turn: int | None = None
    padding: int = 0
    tokens: np.ndarray | None = None
    ref_token_logps: np.ndarray | None = None

    def check(self) -> None:
        """Refuses what cannot be a reward, a log-probability or a text."""
        if self.reward is not None and self.reward == math.inf:
            raise BadRow(f"the reward is {self.reward:g}: it must be a number or -inf")
        for name in ("logp", "ref_logp"):
            value = getattr(self, name)
            if value > ROUNDING:
                raise BadRow(f"{name}: {value:g} is no log-probability: it must be 0 or less")
        for text in (self.prompt, self.completion):
            if not text.isascii():
                text.encode()  # half a surrogate pair, which JSON can spell, is no character
