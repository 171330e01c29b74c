"""Targets on real vectors, with mixtures of Gaussians as references."""

from kltarget.spaces._gaussian_mixture import GaussianMixture
from kltarget.spaces.mixtures._modes import basins, find_modes
from kltarget.spaces.mixtures._power import PowerTarget, power_tilt
from kltarget.spaces.mixtures._rewards import LogDensityReward, QuadraticReward, RewardSum
from kltarget.spaces.mixtures._tilt import MixtureTarget, critical_beta, tilt

__all__ = [
    "GaussianMixture",
    "LogDensityReward",
    "MixtureTarget",
    "PowerTarget",
    "QuadraticReward",
    "RewardSum",
    "basins",
    "critical_beta",
    "find_modes",
    "power_tilt",
    "tilt",
]
