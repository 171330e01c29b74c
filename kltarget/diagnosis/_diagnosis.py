"""What a diagnosis found: statements, the prompts behind them, and both as a page."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kltarget._core.files import open_whole
from kltarget._core.words import plain
from kltarget.evidence import Interval
from kltarget.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Statement:
    """One thing that a log says.

    Attributes:
        name: what it is about, in one word for programs.
        text: the statement as a sentence.
        value: its number; None if there is none, or if it is refused.
        interval: 95 % interval of ``value``; None if it is exact or has no number.
        assumption: what it takes for granted, phrases parted by "; ".
        sample_size: how many ``unit`` it rests on.
        unit: what was counted.
        tier: what the log had to hold: 1 rewards, 2 also the reference's log-probabilities, 3 also
            those of the policy.
        refused: whether it only says what is missing.
    """

    name: str
    text: str
    value: float | None = None
    interval: Interval | None = None
    assumption: str = ""
    sample_size: int = 0
    unit: str = "rollouts"
    tier: int = 1
    refused: bool = False


@dataclasses.dataclass(frozen=True)
class Featured:
    """The most informative prompt in numbers, an entry per outcome; the last holds all unseen.

    Attributes:
        prompt: its text.
        names: its answers.
        reward: mean logged reward of each.
        counts: rollouts in the whole log.
        reference: probability by the reference.
        target: by the recipe's target; None if there is none.
        now: by the policy of the last logged steps.
        mara_reward: what MARA would pay instead, None where it has no answer.
        flips: the answers that change places, a dictionary each: ``better``, ``worse``, ``beta`` of
            the trainer, ``effective_beta``, ``interval``, and ``other`` for good unseen answers.
        betas: coefficients of ``shares``.
        shares: target probabilities of every outcome at each of them.
        effective_beta: the configured coefficient in units of the logged reward.
    """

    prompt: str
    names: tuple[str, ...]
    reward: tuple[float, ...]
    counts: tuple[int, ...]
    reference: tuple[float, ...] | None
    target: tuple[float, ...] | None
    now: tuple[float, ...]
    mara_reward: tuple[float, ...] | None = None
    flips: tuple[dict[str, Any], ...] = ()
    betas: tuple[float, ...] = ()
    shares: tuple[tuple[float, ...], ...] = ()
    effective_beta: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """What :func:`kltarget.diagnosis.diagnose` found. Prints as a page.

    Attributes:
        title: the log in a line.
        recipe: what the trainer does, as it was given or completed from the log.
        recipe_name: name of the preset, or the recipe in words.
        beta: the trainer's coefficient.
        tier: 1 if the log has rewards alone, 2 with log-probabilities of the reference, 3 also with
            those of the policy.
        size: numbers of ``rollouts``, ``prompts``, ``groups`` and logged ``steps``, the
            ``group_size``, and how many prompts were ``analysed`` in full.
        notes: what was guessed or left out while reading and on the way.
        verdict: the page in a few sentences.
        statements: a :class:`Statement` each.
        history: along the steps, in at most a dozen bins: the first ``step`` of each and its last,
            ``until``, mean ``reward``, ``entropy`` of the answers in nats, the chance that two
            completions of a group ``differ``, and the share of groups with ``zero_std``.
        featured: the most informative prompt; None if no target could be computed.
        prompts: columns of :meth:`to_dataframe`, an entry per prompt.

    Example:
        >>> import pandas as pd
        >>> from kltarget.diagnosis import diagnose
        >>> from kltarget.recipes import Recipe
        >>> frame = pd.DataFrame(
        ...     {
        ...         "prompt": ["a digit?"] * 4,
        ...         "completion": ["1", "2", "1", "7"],
        ...         "answer": ["1", "2", "1", "7"],
        ...         "reward": [1.0, 1.0, 1.0, 0.0],
        ...         "step": [1, 1, 1, 1],
        ...         "group_id": [0, 0, 0, 0],
        ...         "ref_logp": [-1.0, -2.0, -1.0, -0.7],
        ...         "logp": [float("nan")] * 4,
        ...     }
        ... )
        >>> diagnosis = diagnose(frame, Recipe("reward", "k1"), beta=0.5)
        >>> diagnosis.tier, [round(p, 3) for p in diagnosis.featured.target]
        (2, [0.645, 0.237, 0.118, 0.0])
        >>> print(f"{diagnosis['reference_ratio'].value:.2f}")
        2.72
    """

    title: str
    recipe: Recipe
    recipe_name: str
    beta: float
    tier: int
    size: dict[str, int]
    notes: tuple[str, ...]
    verdict: tuple[str, ...]
    statements: tuple[Statement, ...]
    history: dict[str, list[float]]
    featured: Featured | None
    prompts: dict[str, list[Any]]

    def __getitem__(self, name: str) -> Statement:
        """The first statement of this name."""
        for statement in self.statements:
            if statement.name == name:
                return statement
        known = ", ".join(dict.fromkeys(x.name for x in self.statements))
        raise KeyError(f"no statement {name!r}: there are {known}")

    def __contains__(self, name: str) -> bool:
        return any(x.name == name for x in self.statements)

    def __str__(self) -> str:
        from kltarget.diagnosis._text_page import text_page

        return "\n".join(text_page(self))

    def _repr_html_(self) -> str:
        from kltarget.diagnosis._html_page import fragment

        return fragment(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for :meth:`from_dict`."""
        content = dataclasses.asdict(self)
        content["size"] = dict(self.size)
        return _listed(content)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Diagnosis:
        """What :meth:`to_dict` gave, read from JSON perhaps."""
        known = _numbers(dict(content))
        statements = tuple(
            Statement(**{**x, "interval": _pair(x["interval"])}) for x in known["statements"]
        )
        featured = known["featured"]
        if featured is not None:
            featured = {
                **{name: _tuples(value) for name, value in featured.items()},
                "flips": tuple(
                    {**flip, "interval": _pair(flip["interval"])} for flip in featured["flips"]
                ),
            }
            featured = Featured(**featured)
        return cls(
            **{
                **known,
                "recipe": Recipe(**known["recipe"]),
                "notes": tuple(known["notes"]),
                "verdict": tuple(known["verdict"]),
                "statements": statements,
                "featured": featured,
            }
        )

    def to_json(self) -> str:
        """Everything as JSON; what is not finite is a string."""
        return json.dumps(plain(self.to_dict()), ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes :meth:`to_json` to a file, which appears whole or not at all."""
        with open_whole(path) as file:
            file.write(self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Diagnosis:
        """Reads what :meth:`save` wrote."""
        with open(path, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))

    def to_dataframe(self) -> pd.DataFrame:
        """A row per prompt; numbers of prompts that were not analysed in full are NaN."""
        import pandas as pd

        return pd.DataFrame(self.prompts)


def _listed(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _listed(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_listed(value) for value in x]
    return x


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


def _pair(x: Any) -> Interval | None:
    return None if x is None else (x[0], x[1])


_TEXTS = frozenset({"prompt", "names", "text", "title", "notes", "verdict", "better", "worse"})


def _numbers(x: Any) -> Any:
    """Turns the strings that stand for infinities and NaN back, except in texts."""
    if isinstance(x, dict):
        return {name: v if name in _TEXTS else _numbers(v) for name, v in x.items()}
    if isinstance(x, list):
        return [_numbers(value) for value in x]
    return float(x) if x in ("nan", "inf", "-inf") else x
