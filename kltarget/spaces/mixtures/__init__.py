"""Targets on real vectors, with mixtures of Gaussians as references."""

from kltarget.spaces._gaussian_mixture import GaussianMixture
from kltarget.spaces.mixtures._grid import solve_on_grid
from kltarget.spaces.mixtures._grid_target import GridTarget
from kltarget.spaces.mixtures._rewards import LogDensityReward, QuadraticReward, RewardSum

__all__ = [
    "GaussianMixture",
    "GridTarget",
    "LogDensityReward",
    "QuadraticReward",
    "RewardSum",
    "solve_on_grid",
]
