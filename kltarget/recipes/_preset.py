"""The record of what a range of versions of a trainer does by default."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from kltarget.recipes._followed import kl_term
from kltarget.recipes._recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Preset:
    """The recipe that a range of versions of a trainer follows by default.

    Args:
        name: what :func:`recipe` is asked for.
        trainer: the trainer's own name.
        versions: the range, such as ``">=1.10"``; ``"*"`` for all.
        recipe: what these versions do, with the trainer's default β.
        keys: for fields of the recipe, the key of the trainer's configuration.
        file: where the numbers were read.
        checked: when; the first of a month where only the month is known.
        read: the releases that were read, from old to new; empty where it was a commit or a paper.
        notes: what the fields cannot say.
        clipped: the estimators that ``log_ratio_clip`` and ``kl_clip`` are of; empty for all.
        before: why no earlier version is covered, where it is known.
        after: why no later version is covered, where it is known.
        distribution: the package whose defaults :func:`installed` compares; empty for none.
        configuration: its files that hold them, and the class of each.
        defaults: defaults as they were read, by key of the trainer's configuration, where they are
            not what the recipe says.
        caveat: what to mind where the version that was asked for is one that was not read.

    Example:
        >>> from kltarget import recipes
        >>> print(recipes.preset("trl-rloo"))
        trl-rloo   >=0.22   TRL RLOO   β 0.05   k1 in the reward
    """

    name: str
    trainer: str
    versions: str
    recipe: Recipe
    keys: Mapping[str, str] = dataclasses.field(hash=False)
    file: str
    checked: datetime.date
    read: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    clipped: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    distribution: str = ""
    configuration: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    caveat: str = ""

    @property
    def title(self) -> str:
        """The name with its range of versions, as people write it."""
        return self.name if self.versions == "*" else f"{self.name} {self.versions}"

    @property
    def row(self) -> tuple[str, str, str, str, str]:
        """Its name, versions, trainer, β and KL, as a table shows them."""
        beta = f"{self.recipe.beta:g}"
        return self.name, self.versions, self.trainer, beta, kl_term(self.recipe)

    def __str__(self) -> str:
        name, versions, trainer, beta, kl = self.row
        caveat = [self.caveat] if self.caveat else []
        return "   ".join((name, versions, trainer, f"β {beta}", kl, *caveat))
