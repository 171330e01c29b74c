"""Targets on decision processes: the policy that maximises discounted reward less divergence."""

from kltarget.targets.mdps._solve_mdp import MDPTarget, solve_mdp

__all__ = ["MDPTarget", "solve_mdp"]
