"""All there is for Gaussian mixtures as references, under one name.

In closed form: :func:`tilt`, the reverse-KL target for quadratic rewards and log-densities, and
:func:`power_tilt`, that of forward KL and its kind for quadratic rewards, with its atom. By
quadrature in one to three dimensions: :func:`solve_on_grid`, for any reward and any f-divergence.
From samples of the reference in any number: :func:`solve_on_samples`. And what families that cannot
hold a target make of it: :func:`project`.
"""

from kltarget.modes._mixture_flips import mode_flip_beta
from kltarget.objectives._point_rewards import LogDensityReward, QuadraticReward, RewardSum
from kltarget.projections import MixtureFit, Projection, fit_mixture, from_sklearn, project
from kltarget.spaces import GaussianMixture, basins, cauchy_schwarz, find_modes
from kltarget.targets._samples import SampleTarget, solve_on_samples
from kltarget.targets.grids import GridTarget, solve_on_grid
from kltarget.targets.mixtures import (
    MixtureTarget,
    PowerTarget,
    existence_beta,
    power_tilt,
    tilt,
)

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
    "cauchy_schwarz",
    "existence_beta",
    "find_modes",
    "fit_mixture",
    "from_sklearn",
    "mode_flip_beta",
    "power_tilt",
    "project",
    "solve_on_grid",
    "solve_on_samples",
    "tilt",
]
