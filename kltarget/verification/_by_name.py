"""Which verification a shipped problem on a space of its own has."""

from __future__ import annotations

from collections.abc import Callable

from kltarget.tasks._kinds import kind_of
from kltarget.verification._of_chains import verify_chain
from kltarget.verification._of_games import verify_game
from kltarget.verification._of_mdps import verify_mdp
from kltarget.verification._of_texts import verify_texts
from kltarget.verification._space_report import SpaceReport


def verifier_of(name: str) -> Callable[..., SpaceReport] | None:
    """The function that verifies the shipped problem of a name, None for one over a list.

    Example:
        >>> from kltarget.verification import verifier_of
        >>> verifier_of("keywords-64").__name__, verifier_of("words-3")
        ('verify_texts', None)
    """
    kind = kind_of(name)
    return None if kind is None else _VERIFIERS[kind]


_VERIFIERS: dict[str, Callable[..., SpaceReport]] = {
    "text": verify_texts,
    "chain": verify_chain,
    "mdp": verify_mdp,
    "game": verify_game,
}
