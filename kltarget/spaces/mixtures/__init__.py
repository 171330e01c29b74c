"""Targets on real vectors, with mixtures of Gaussians as references."""

from kltarget.spaces._gaussian_mixture import GaussianMixture
from kltarget.spaces.mixtures._em import MixtureFit, fit_mixture, from_sklearn
from kltarget.spaces.mixtures._project import Projection, project
from kltarget.spaces.mixtures._rewards import LogDensityReward, QuadraticReward, RewardSum

__all__ = [
    "GaussianMixture",
    "LogDensityReward",
    "MixtureFit",
    "Projection",
    "QuadraticReward",
    "RewardSum",
    "fit_mixture",
    "from_sklearn",
    "project",
]
