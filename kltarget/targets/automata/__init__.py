"""Targets on texts too many to enumerate: a Markov reference, rewarded by an automaton."""

from kltarget.targets.automata._automaton_target import AutomatonTarget, solve_on_automaton

__all__ = ["AutomatonTarget", "solve_on_automaton"]
