"""Targets on decision processes: the policy that maximises summed reward less divergence."""

from kltarget.targets.mdps._action_flips import ActionFlip, action_flips
from kltarget.targets.mdps._chi_squared_occupancy import OccupancyTarget, solve_occupancy
from kltarget.targets.mdps._mdp_target import MDPTarget
from kltarget.targets.mdps._regularization_gap import RegularizationGap, regularization_gap
from kltarget.targets.mdps._solve_mdp import solve_mdp

__all__ = [
    "ActionFlip",
    "MDPTarget",
    "OccupancyTarget",
    "RegularizationGap",
    "action_flips",
    "regularization_gap",
    "solve_mdp",
    "solve_occupancy",
]
