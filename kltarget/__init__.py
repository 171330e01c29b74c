"""Exact target distributions of KL- and f-divergence-regularised reward maximisation."""

from kltarget.divergences import (
    Alpha,
    ChiSquared,
    ChiSquaredKL,
    Divergence,
    FDivergence,
    ForwardKL,
    JensenShannon,
    NeymanChiSquared,
    ReverseKL,
    SquaredHellinger,
    TotalVariation,
    Tsallis,
    kl,
)
from kltarget.objectives import Objective, normalize
from kltarget.targets import Status, Target, greedy_limit, reference_limit, solve
