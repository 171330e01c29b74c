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
from kltarget.modes import (
    collapse_beta,
    coverage,
    effective_modes,
    entropy,
    flip_beta,
    log_odds,
    mode_log_mass,
    pass_at_k,
    pass_at_k_from_counts,
)
from kltarget.objectives import Objective, normalize
from kltarget.status import Status
from kltarget.targets import Target, greedy_limit, reference_limit, solve
