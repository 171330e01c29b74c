"""What a trainer does that no recipe says."""

from __future__ import annotations

import dataclasses
import datetime


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A trainer that no recipe describes, and what its β is.

    Args:
        name: what :func:`preset` would be asked for.
        trainer: the trainer's own name.
        file: where it was read.
        checked: when.
        text: what its coefficient is, and what it aims at; one sentence or two each.
        read: the releases that were read, from old to new; empty where it was a commit.
        caveat: what to mind where the version that was asked for is one that was not read.

    Example:
        >>> from kltarget import recipes
        >>> print(recipes.explanation("trl-gkd").text[0])
        beta is not a KL coefficient: ...
    """

    name: str
    trainer: str
    file: str
    checked: datetime.date
    text: tuple[str, ...]
    read: tuple[str, ...] = ()
    caveat: str = ""

    def __str__(self) -> str:
        caveat = [f"{self.caveat[:1].upper()}{self.caveat[1:]}"] if self.caveat else []
        return " ".join((*self.text, *caveat))
