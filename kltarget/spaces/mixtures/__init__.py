"""Targets on real vectors, with mixtures of Gaussians as references."""

from kltarget.spaces._gaussian_mixture import GaussianMixture
from kltarget.spaces.mixtures._rewards import LogDensityReward, QuadraticReward, RewardSum
from kltarget.spaces.mixtures._tilt import MixtureTarget, critical_beta, tilt

__all__ = [
    "GaussianMixture",
    "LogDensityReward",
    "MixtureTarget",
    "QuadraticReward",
    "RewardSum",
    "critical_beta",
    "tilt",
]
