"""Targets on real vectors, with mixtures of Gaussians as references."""

from kltarget.spaces._gaussian_mixture import GaussianMixture
from kltarget.spaces.mixtures._grid import solve_on_grid
from kltarget.spaces.mixtures._grid_target import GridTarget
from kltarget.spaces.mixtures._rewards import LogDensityReward, QuadraticReward, RewardSum
from kltarget.spaces.mixtures._samples import SampleTarget, solve_on_samples

__all__ = [
    "GaussianMixture",
    "GridTarget",
    "LogDensityReward",
    "QuadraticReward",
    "RewardSum",
    "SampleTarget",
    "solve_on_grid",
    "solve_on_samples",
]
