"""Regularisers ``D(π, π_ref)``: reverse and forward KL, every f-divergence, and one of your own."""

from kltarget.divergences._base import Divergence
from kltarget.divergences._families import (
    Alpha,
    ChiSquared,
    ChiSquaredKL,
    ForwardKL,
    JensenShannon,
    NeymanChiSquared,
    ReverseKL,
    SquaredHellinger,
    TotalVariation,
    Tsallis,
    kl,
)
from kltarget.divergences._generator import FDivergence
from kltarget.divergences._kl_mixture import KLMixture
from kltarget.divergences._scaled import Scaled
from kltarget.divergences._score_weight import score_weight
from kltarget.divergences._term_divergence import TermDivergence
from kltarget.divergences.names import named

__all__ = [
    "Alpha",
    "ChiSquared",
    "ChiSquaredKL",
    "Divergence",
    "FDivergence",
    "ForwardKL",
    "JensenShannon",
    "KLMixture",
    "NeymanChiSquared",
    "ReverseKL",
    "Scaled",
    "SquaredHellinger",
    "TermDivergence",
    "TotalVariation",
    "Tsallis",
    "kl",
    "named",
    "score_weight",
]
