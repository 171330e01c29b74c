"""What ``kltarget prefer`` prints of several prompts: a row for each."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kltarget._core.page import Lines, Page, Paragraph, Table
from kltarget._core.status import Status
from kltarget._core.words import counted, decimal, short
from kltarget.divergences import kl
from kltarget.implied import PreferenceTarget

_MOST_COLUMNS = 5


def prompts_page(targets: Mapping[str, PreferenceTarget], arguments: Any) -> Page:
    """A table of prompts, those without a target first."""
    last = len(arguments.beta) - 1
    count = min(last + 1, _MOST_COLUMNS)
    columns = sorted({round(k * last / max(count - 1, 1)) for k in range(count)})
    heads = [f"KL, β = {arguments.beta[k]:g}" for k in columns]
    table = [["prompt", "pairs", "outcomes", "unanimous", "target", *heads]]
    words = {prompt: _word(target) for prompt, target in targets.items()}
    ordered = sorted(targets, key=lambda prompt: _WORDS.index(words[prompt]))
    for prompt in ordered[: arguments.top]:
        target = targets[prompt]
        nats = np.asarray(kl(target.log_probs, target.objective.log_ref))
        sizes = [len(target.pairs.first), target.log_probs.shape[-1], len(target.unanimous)]
        cells = [decimal(max(float(nats[k]), 0.0)) for k in columns]
        table.append([short(prompt), *map(str, sizes), words[prompt], *cells])
    if len(ordered) > arguments.top:
        more = f"({len(ordered) - arguments.top:,} more)"
        table.append([more, *[""] * (len(table[0]) - 1)])
    one = next(iter(targets.values()))
    smoothed = f", labels smoothed by {one.label_smoothing:g}" if one.label_smoothing else ""
    first = (
        f"{pathlib.Path(arguments.problem).stem}: {counted(len(targets), 'prompt')}, {one.loss} "
        f"with {one.objective.divergence.title}{smoothed}"
    )
    return Page(
        [Lines([first])],
        [Table(table, "lrrrl" + "r" * len(columns))],
        [Paragraph(sentence, hanging=4) for sentence in _sentences(targets, words, ordered)],
    )


_WORDS = ("none", "not unique", "one")


def _word(target: PreferenceTarget) -> str:
    bits = int(np.bitwise_or.reduce(np.asarray(target.status), axis=None))
    if bits & Status.NO_TARGET:
        return "none"
    return "not unique" if bits & Status.NOT_UNIQUE else "one"


def _sentences(
    targets: Mapping[str, PreferenceTarget], words: Mapping[str, str], ordered: list[str]
) -> list[str]:
    size = f"of {counted(len(targets), 'prompt')}"
    without = sum(word == "none" for word in words.values())
    loose = sum(word == "not unique" for word in words.values())
    said = []
    if without:
        first = ordered[0]
        said.append(
            f"{without:,} {size} {'have' if without > 1 else 'has'} no target, such as "
            f"“{short(first)}”: {targets[first].verdict}"
        )
    if loose:
        said.append(
            f"{loose:,} {size} {'have' if loose > 1 else 'has'} a target but for the mass of "
            "groups that no pair joins"
        )
    if not said:
        said.append(f"a target for each {size}: that of the reward which explains its pairs")
    return [*said, "--prompt NAME shows the target of one"]
