"""Logs in which no answer recurs, and the rule that would tell answers apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core.words import abridged
from kltarget.diagnosis._say_rewards import Case
from kltarget.diagnosis._statement import Statement
from kltarget.rollouts import answer_rule

if TYPE_CHECKING:
    import pandas as pd

# So large a share of rollouts has an answer that no other of the prompt has.
_ALONE, _LEAST = 0.98, 8
# Rules look at so many completions, and of long ones at both ends.
_SAMPLE, _LONG = 1000, 4000
# What a rule has to do: find an answer in most, make few of many, and part the right from the rest.
_FOUND, _FEWER, _PURE = 0.8, 0.7, 0.95
_RULES = ("boxed", "answer", "number", r"regex:^\W*(\w+)", r"regex:(\w+)\W*$")
# What is marked as the answer is the answer, whatever fewer a word would leave.
_MARKED = _RULES[:2]
_CALLED = {
    "boxed": "",
    "answer": "",
    "number": "",
    r"regex:^\W*(\w+)": ", the first word,",
    r"regex:(\w+)\W*$": ", the last word,",
}


def own_answers(case: Case, frame: pd.DataFrame) -> tuple[list[Statement], str | None]:
    """That each completion is its own answer, if it is, and the rule that tells fewer apart."""
    log = case.log
    several = np.bincount(log.prompt)[log.prompt] > 1
    total, different = int(several.sum()), len(np.unique(log.answer[several]))
    if total < _LEAST or different < _ALONE * total:
        return [], None
    text = (
        f"each completion is its own answer, {different:,} of {total:,}: how diverse answers are, "
        "and which the target prefers, this does not show"
    )
    rule = _helping(frame)
    if rule is None:
        detail = "; say what tells answers apart, answer='regex:…' (--answer 'regex:…')"
    else:
        name, left, of = rule
        spelled = f"--answer {name!r}" if ":" in name else f"--answer {name}"
        detail = f"; read by answer={name!r} ({spelled}){_CALLED[name]} {of:,} of them would be "
        detail += f"{left:,} different answers"
    evidence = different / total, None, (), total
    said = Statement("answers", text, detail, *evidence, warning=True)
    return [said], None if rule is None else rule[0]


def _helping(frame: Any) -> tuple[str, int, int] | None:
    """The rule that leaves fewest different answers, how many of how many completions.

    A mark of the answer comes first; a word that is the same in all tells nothing apart.
    """
    import pandas as pd

    known = np.flatnonzero(np.isfinite(frame["reward"].to_numpy(float)))
    code = np.asarray(pd.factorize(frame["prompt"])[0])[known]
    # Prompts of many rollouts show best what recurs.
    order = np.argsort(-np.bincount(code)[code], kind="stable")[:_SAMPLE]
    chosen = np.zeros(len(frame), bool)
    chosen[known[order]] = True
    # One after the other: taking them together copies all of them.
    texts = [
        abridged(text, _LONG) if isinstance(text, str) else ""
        for text, wanted in zip(frame["completion"], chosen, strict=True)
        if wanted
    ]
    rewards = frame["reward"].to_numpy(float)[chosen].tolist()
    prompts = pd.factorize(frame["prompt"])[0][chosen].tolist()
    best = None
    for name in _RULES:
        _, rule = answer_rule(name)
        answers = [rule(text) for text in texts]
        found = [x for x in zip(prompts, answers, rewards, strict=True) if x[1] is not None]
        if len(found) < _FOUND * len(texts):
            continue
        left = len({x[:2] for x in found})
        # As many rewards as an answer has beyond its usual one are mixed with others.
        counts: dict[tuple[int, str | None], dict[float, int]] = {}
        for prompt, answer, reward in found:
            of_answer = counts.setdefault((prompt, answer), {})
            of_answer[reward] = of_answer.get(reward, 0) + 1
        pure = sum(max(of_answer.values()) for of_answer in counts.values())
        good = left <= _FEWER * len(found)
        if good and name in _MARKED:
            return name, left, len(found)
        good &= pure >= _PURE * len(found)
        if good and len({x[1] for x in found}) > 1 and (best is None or left < best[1]):
            best = name, left, len(found)
    return best
