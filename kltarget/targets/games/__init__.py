"""Equilibria of games of two players who are each regularised to a reference."""

from kltarget.targets.games._equilibrium import Equilibrium
from kltarget.targets.games._equilibrium_flips import Flip, equilibrium_flips
from kltarget.targets.games._markov_equilibrium import MarkovEquilibrium
from kltarget.targets.games._solve_game import solve_game

__all__ = ["Equilibrium", "Flip", "MarkovEquilibrium", "equilibrium_flips", "solve_game"]
