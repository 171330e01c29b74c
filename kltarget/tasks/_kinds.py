"""The kinds of shipped problems that are no lists of outcomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kltarget.tasks._chain_tasks import chain_names, load_chain
from kltarget.tasks._game_tasks import game_names, load_game
from kltarget.tasks._mdp_tasks import load_mdp, mdp_names
from kltarget.tasks._shipped_texts import load_texts, text_names


class Kind(NamedTuple):
    """Problems on one kind of space.

    Attributes:
        names: gives the names of all.
        load: gives the problem of a name.
    """

    names: Callable[[], tuple[str, ...]]
    load: Callable[[str], Any]


KINDS = {
    "text": Kind(text_names, load_texts),
    "chain": Kind(chain_names, load_chain),
    "mdp": Kind(mdp_names, load_mdp),
    "game": Kind(game_names, load_game),
}


def kind_of(name: str) -> str | None:
    """The kind of the problem of a name, None if it is a list of outcomes or there is none."""
    return next((kind for kind, its in KINDS.items() if name in its.names()), None)
