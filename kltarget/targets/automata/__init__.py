"""Targets on texts too many to enumerate: a Markov reference, rewarded by an automaton."""

from kltarget.targets.automata._automaton_target import AutomatonTarget
from kltarget.targets.automata._mara_texts import AnchoredTarget, mara_on_automaton
from kltarget.targets.automata._over_modes import over_modes
from kltarget.targets.automata._solve_on_automaton import solve_on_automaton
from kltarget.targets.automata._token_local_on_automaton import token_local_on_automaton
from kltarget.targets.automata._token_local_texts import TokenLocalTexts

__all__ = [
    "AnchoredTarget",
    "AutomatonTarget",
    "TokenLocalTexts",
    "mara_on_automaton",
    "over_modes",
    "solve_on_automaton",
    "token_local_on_automaton",
]
