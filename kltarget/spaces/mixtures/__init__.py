"""Targets on real vectors, with mixtures of Gaussians as references.

In closed form: :func:`tilt`, the reverse-KL target for quadratic rewards and log-densities, and
:func:`power_tilt`, that of forward KL and its kind for quadratic rewards, with its atom. By
quadrature in one to three dimensions: :func:`solve_on_grid`, for any reward and any f-divergence.
From samples of the reference in any number: :func:`solve_on_samples`. And what families that cannot
hold a target make of it: :func:`project`.
"""

from kltarget.spaces._gaussian_mixture import GaussianMixture
from kltarget.spaces.mixtures._em import MixtureFit, fit_mixture, from_sklearn
from kltarget.spaces.mixtures._flips import flip_beta
from kltarget.spaces.mixtures._grid import solve_on_grid
from kltarget.spaces.mixtures._grid_target import GridTarget
from kltarget.spaces.mixtures._modes import basins, find_modes
from kltarget.spaces.mixtures._power import PowerTarget, power_tilt
from kltarget.spaces.mixtures._project import Projection, project
from kltarget.spaces.mixtures._rewards import LogDensityReward, QuadraticReward, RewardSum
from kltarget.spaces.mixtures._samples import SampleTarget, solve_on_samples
from kltarget.spaces.mixtures._tilt import MixtureTarget, critical_beta, tilt

__all__ = [
    "GaussianMixture",
    "GridTarget",
    "LogDensityReward",
    "MixtureFit",
    "MixtureTarget",
    "PowerTarget",
    "Projection",
    "QuadraticReward",
    "RewardSum",
    "SampleTarget",
    "basins",
    "critical_beta",
    "find_modes",
    "fit_mixture",
    "flip_beta",
    "from_sklearn",
    "power_tilt",
    "project",
    "solve_on_grid",
    "solve_on_samples",
    "tilt",
]
