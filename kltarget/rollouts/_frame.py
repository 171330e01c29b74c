"""Rollouts as columns of a data frame, gathered one at a time in little memory."""

from __future__ import annotations

import importlib.util
from array import array
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget.rollouts import _prompt_groups
from kltarget.rollouts._rollout import NAN, BadRow, Rollout

if TYPE_CHECKING:
    import pandas as pd

_NUMBERS = ("reward", "ref_logp", "logp", "num_tokens", "advantage")
_NO_STEP = -(2**62)
_CHUNK = 1 << 16


class Texts:
    """A column of texts that are packed chunk by chunk; missing ones are NA."""

    def __init__(self) -> None:
        import pandas as pd

        packed = importlib.util.find_spec("pyarrow") is not None
        self.dtype = pd.StringDtype("pyarrow" if packed else "python")
        self.chunks: list[pd.Series] = []
        self.texts: list[str | None] = []

    def append(self, text: str | None) -> None:
        self.texts.append(text)
        if len(self.texts) >= _CHUNK:
            self._pack()

    def _pack(self) -> None:
        import pandas as pd

        self.chunks.append(pd.Series(self.texts, dtype=self.dtype))
        self.texts = []

    def series(self) -> pd.Series:
        import pandas as pd

        self._pack()
        return pd.concat(self.chunks, ignore_index=True)


class Columns:
    """Columns that grow with every rollout."""

    def __init__(self) -> None:
        self.prompts: dict[str, int] = {}
        self.sources: dict[str, int] = {}
        self.groups: dict[Hashable, int] = {}
        self.prompt, self.source, self.group = array("i"), array("i"), array("i")
        self.step, self.position = array("q"), array("q")
        self.numbers = {name: array("d") for name in _NUMBERS}
        self.parts: dict[str, array[float]] = {}
        self.completion, self.answer = Texts(), Texts()
        self.unanswered = self.unrewarded = 0

    def __len__(self) -> int:
        return len(self.prompt)

    def add(self, rollout: Rollout, answer: str | None, source: str, position: int) -> None:
        """Adds one, unless its group is missing though others have one."""
        keyed = rollout.group is not None
        if len(self) and keyed != bool(self.groups):
            raise BadRow(f"{'a' if keyed else 'no'} group, unlike the rows before it")
        if keyed:
            key = (rollout.step, rollout.group)
            self.group.append(self.groups.setdefault(key, len(self.groups)))
        for name, part in rollout.parts.items():
            if name not in self.parts:
                self.parts[name] = array("d", [NAN]) * len(self)
            self.parts[name].append(part)
        self.prompt.append(self.prompts.setdefault(rollout.prompt, len(self.prompts)))
        self.source.append(self.sources.setdefault(source, len(self.sources)))
        self.step.append(_NO_STEP if rollout.step is None else rollout.step)
        self.position.append(position if rollout.index is None else rollout.index)
        self.completion.append(rollout.completion)
        self.answer.append(answer)
        self.unanswered += answer is None
        self.unrewarded += rollout.reward is None
        self.numbers["reward"].append(NAN if rollout.reward is None else rollout.reward)
        self.numbers["ref_logp"].append(rollout.ref_logp)
        self.numbers["logp"].append(rollout.logp)
        self.numbers["num_tokens"].append(rollout.num_tokens)
        self.numbers["advantage"].append(rollout.advantage)
        if len(rollout.parts) < len(self.parts):
            for part in self.parts.values():
                if len(part) < len(self):
                    part.append(NAN)

    def group_ids(
        self, grouping: str, num_generations: int | None, whole: bool
    ) -> tuple[np.ndarray, str]:
        """The group of every row, and a line that says where it is from.

        Args:
            grouping: "blocks" or "prompt", see ``Format``.
            num_generations: the size of groups, if the user knows.
            whole: whether all rows of the files are here, so that no block is cut short.
        """
        if self.groups:
            unused = "" if num_generations is None else ", so num_generations is not used"
            return np.array(self.group), f"groups as the files name them{unused}"
        source, prompt, position = map(np.asarray, (self.source, self.prompt, self.position))
        step = np.asarray(self.step)
        if num_generations is not None:
            groups = _prompt_groups.blocks(position, source, step, num_generations)
            _prompt_groups.check_blocks(groups, prompt, num_generations, whole)
            return groups, f"groups are blocks of {num_generations} rows, as given"
        if grouping == "blocks":
            advantage = np.asarray(self.numbers["advantage"])
            size, confirmed = _prompt_groups.guess_size(position, source, step, prompt, advantage)
            if size > 1:
                why = "and advantages that sum to zero" if confirmed else "alone"
                return _prompt_groups.blocks(position, source, step, size), (
                    f"num_generations={size} is a guess from runs of equal prompts {why}"
                )
        return _prompt_groups.by_prompt(step, prompt), (
            "groups are a guess: all completions of one prompt at one step"
        )

    def frame(self, group_id: np.ndarray) -> pd.DataFrame:
        import pandas as pd

        step = np.array(self.step)
        numbers = {name: np.array(values) for name, values in self.numbers.items()}
        columns: dict[str, Any] = {
            "prompt_id": np.array(self.prompt),
            "sample_id": _prompt_groups.index_in_group(group_id),
            "step": pd.arrays.IntegerArray(step, step == _NO_STEP),
            "prompt": _categorical(self.prompt, self.prompts),
            "completion": self.completion.series(),
            "answer": self.answer.series(),
            **numbers,
            "source": _categorical(self.source, self.sources),
            "group_id": group_id,
            **{f"reward/{name}": np.array(values) for name, values in self.parts.items()},
        }
        return pd.DataFrame(columns, copy=False)


def _categorical(codes: array[int], categories: dict[str, int]) -> pd.Categorical:
    import pandas as pd

    return pd.Categorical.from_codes(np.array(codes), list(categories))
