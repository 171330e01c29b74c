"""Targets on texts too many to enumerate: a Markov reference, rewarded by an automaton."""

from kltarget.targets.automata._automaton_target import AutomatonTarget, solve_on_automaton
from kltarget.targets.automata._mara_texts import AnchoredTarget, mara_on_automaton
from kltarget.targets.automata._over_modes import over_modes

__all__ = [
    "AnchoredTarget",
    "AutomatonTarget",
    "mara_on_automaton",
    "over_modes",
    "solve_on_automaton",
]
