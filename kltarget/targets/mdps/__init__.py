"""Targets on decision processes: the policy that maximises discounted reward less divergence."""

from kltarget.targets.mdps._chi_squared_occupancy import OccupancyTarget, solve_occupancy
from kltarget.targets.mdps._mdp_target import MDPTarget
from kltarget.targets.mdps._solve_mdp import solve_mdp

__all__ = ["MDPTarget", "OccupancyTarget", "solve_mdp", "solve_occupancy"]
