"""``kltarget recipe NAME`` where no recipe says what a trainer does.

``--json OUT`` writes an object of these keys: ``name``, ``trainer``, ``file``, ``checked``,
``read``, ``caveat`` and ``text``, a list of sentences.
"""

from __future__ import annotations

import argparse
import dataclasses

from kltarget._core.page import Bullets, Heading, Item, Lines, Page, Paragraph
from kltarget._core.records import json_text
from kltarget._core.words import sentence
from kltarget.cli._output import InputError, say, write
from kltarget.recipes import Explanation


def explain(explanation: Explanation, arguments: argparse.Namespace) -> int:
    """Prints what the coefficient is instead."""
    for name in ("beta", "reward_std"):
        if getattr(arguments, name) is not None:
            option = f"--{name.replace('_', '-')}"
            told = f"no recipe says what {explanation.name} does: {explanation}"
            raise InputError(f"{option}: {told}")
    releases = f" of {', '.join(explanation.read)}" if explanation.read else ""
    told = [sentence(explanation.caveat)] if explanation.caveat else []
    page = Page(
        [
            Heading(f"{explanation.name}: {explanation.trainer}", 1),
            Lines([f"read in {explanation.file}{releases}, checked {explanation.checked}"]),
        ],
        [Paragraph("No recipe says what it does.")],
        [Bullets([Item("- ", text) for text in (*told, *explanation.text)])],
    )
    say(page, unless=[arguments.json])
    content = dataclasses.asdict(explanation) | {"checked": explanation.checked.isoformat()}
    say(write((arguments.json, lambda: json_text(content, indent=1))))
    return 0
