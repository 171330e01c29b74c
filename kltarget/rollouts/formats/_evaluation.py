"""Logs of evaluations: a row has the samples of a prompt and what metrics say of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from kltarget._core.file_kinds import Row
from kltarget._core.rows import shown
from kltarget.rollouts import _entries as entries
from kltarget.rollouts._rollout import NAN, BadRow, Rollout, RolloutError, UnusedRow
from kltarget.rollouts.formats._format import FORMATS, Format


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a row of an evaluation holds.

    Attributes:
        prompt: what was asked.
        completions: what was sampled.
        metrics: by name a list with an entry per completion, or one entry; None if this kind of
            file may have none.
        group: what names the prompt within the file, if anything does.
        answers: an answer per completion, if they are logged.
        num_tokens: tokens per completion, if they are logged.
        judges_first: whether one entry is of the first completion where there are several.
        model: what was sampled from, if the row says so.
    """

    prompt: str
    completions: Sequence[str]
    metrics: Mapping[str, Any] | None
    group: Any = None
    answers: Sequence[str | None] = ()
    num_tokens: Sequence[float] = ()
    judges_first: bool = False
    model: Any = None


def written_by_evaluator(
    name: str, *kinds: str, columns: Collection[str], **settings: Any
) -> Callable[..., Any]:
    """Declares a format of evaluations, whose rows the decorated function makes ``Samples``."""

    def declare(samples: Callable[[Row], Samples]) -> Any:
        known = frozenset(columns)
        FORMATS.append(Format(name, kinds, known, _rollout_of, samples=samples, **settings))
        return samples

    return declare


def _rollout_of(row: Row, path: pathlib.Path) -> Rollout:
    """The rollout of a row that ``Metric.rows`` made."""
    return Rollout(**{name: x for name, x in row.items() if name != entries.ROW_ITSELF})


class Metric:
    """Which metric of a file is the reward: the first that can be read, or the one asked for.

    Args:
        format: the file's format.
        asked: the metric's name, if the user gave it.
        keeps_answers: whether logged answers are kept.

    Attributes:
        name: the metric's name once a row had it.
        others: names of the others.
        model: the model of the first row that names one.
    """

    def __init__(self, format: Format, asked: str | None, keeps_answers: bool) -> None:
        self._format, self._asked, self._keeps_answers = format, asked, keeps_answers
        self.name: str | None = None
        self.others: dict[str, None] = {}
        self.model: str | None = None
        self._columns: list[str] = []
        self._may_lack = False

    def rows(self, row: Row, position: int) -> list[Row]:
        """A row for every completion, of which some may have no reward."""
        assert self._format.samples is not None
        samples = self._format.samples(row)
        if not self.model and isinstance(samples.model, str):
            self.model = samples.model or None
        if not samples.completions:
            raise UnusedRow("there is no completion")
        self._columns = self._columns or list(row)
        count = len(samples.completions)
        metrics = samples.metrics
        self._may_lack |= metrics is None
        self._look_at(metrics or {})
        rewards: Sequence[float | None] = [None if metrics is None else NAN] * count
        if metrics and self.name is not None and self.name in metrics:
            rewards = _of_each(self.name, metrics[self.name], samples)
        answers = samples.answers if self._keeps_answers else ()
        lists = (("answer", answers), ("num_tokens", samples.num_tokens))
        for name, found in lists:
            if found and len(found) != count:
                raise BadRow(f"{name}: there are {len(found)} for {count} completions")
        group = entries.hashable(samples.group)
        return [
            {
                "prompt": samples.prompt,
                "completion": text,
                "reward": rewards[i],
                "group": position if group is None else group,
                "answered": bool(answers),
                **{name: found[i] for name, found in lists if found},
                **({entries.ROW_ITSELF: position} if group is None else {}),
            }
            for i, text in enumerate(samples.completions)
        ]

    def _look_at(self, metrics: Mapping[str, Any]) -> None:
        for name, entry in metrics.items():
            if name == self._asked or (
                self._asked is None and self.name is None and _is_amount(entry)
            ):
                self.name = name
            elif name != self.name:
                self.others[name] = None
        self.others.pop(self.name or "", None)

    def check(self, path: pathlib.Path) -> None:
        """Refuses a file in which no row has the metric that is wanted."""
        if self.name is not None or not self._columns:
            return
        found = ", ".join(map(repr, self.others))
        if self._asked is not None:
            have = f"the metrics are {found}" if found else "there is none"
            why = f"{path}: no row has the metric that {{}} asks for: {have}"
            python = f"columns={{'reward': {self._asked!r}}}"
            raise RolloutError(why, "columns", f"reward={self._asked}", python)
        if self._may_lack and not found:
            return
        columns = ", ".join(map(repr, self._columns))
        none = f"none of the metrics {found} is a number" if found else "no row has a metric"
        raise RolloutError(
            f"{path}: {none}: the columns are {columns}; name those of completions and rewards, if "
            "there are some, by {}",
            "columns",
            "prompt=…,completion=…,reward=…",
            python="columns={'prompt': …, 'completion': …, 'reward': …}",
        )

    def notes(self) -> list[str]:
        """Which metric is the reward, and how to read another."""
        if self.name is None:
            return []
        others = ", ".join(map(repr, self.others))
        also = f", not {others}: columns={{'reward': …}} reads another" if others else ""
        return [f"reward from the metric {self.name!r}{also}"]


def _is_amount(entry: Any) -> bool:
    """Whether an entry is an amount, or a list of them of which some may be missing."""
    found = entry if isinstance(entry, list) else [entry]
    try:
        return any(x is not None for x in found) and all(
            x is None or amount_of(x) is not None for x in found
        )
    except BadRow:
        return False


def _of_each(name: str, entry: Any, samples: Samples) -> list[float]:
    """The metric of every completion, NaN where it judges none."""
    count = len(samples.completions)
    if isinstance(entry, list):
        if len(entry) != count:
            raise BadRow(f"metric {name!r}: there are {len(entry)} entries for {count} completions")
        return [amount_of(x, name) for x in entry]
    amount = amount_of(entry, name)
    if count > 1 and not samples.judges_first and amount == amount:
        raise UnusedRow(
            f"metric {name!r} is one number for several completions, which does not say which of "
            "them are right: counts of right ones are read by kltarget.evidence.read_counts"
        )
    return [amount] + [NAN] * (count - 1)


_WORDS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "yes": 1.0, "no": 0.0}


def amount_of(entry: Any, name: str = "") -> float:
    """A metric's entry as a reward, NaN where there is none.

    Truth values are 1 and 0, as are the letters and words by which graders say right and wrong;
    "P" is partial credit.
    """
    if isinstance(entry, str):
        entry = entry.strip()
        word = _WORDS.get(entry, _WORDS.get(entry.lower()))
        if word is not None:
            return word
    if isinstance(entry, list | dict):
        raise BadRow(f"metric {name!r}: {shown(entry)} is not a number")
    try:
        return entries.reward_in({name: entry}, name)
    except BadRow:
        raise BadRow(f"metric {name!r}: {shown(entry)} is not a number") from None


def texts_in(entry: Any, column: str) -> list[str]:
    """A list of completions, each a text or a chat."""
    found = entries.parsed(entry)
    found = [found] if isinstance(found, str) else found
    if found is None:
        return []
    if not isinstance(found, list):
        raise BadRow(f"column {column!r}: {shown(entry)} is not a list of completions")
    return [entries.completion_in({column: x}, column) for x in found]
